"""The sum of every stream's projected tokens, squashed to [-1, 1] one by one.

Source: none, ours; what a stranger's package looks like.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from harness.contracts import Fusion, PluginConfig, Tokens
from harness.registry import FUSIONS


@FUSIONS.register("toy_sum")
class ToySum(Fusion):
    """sum over streams and tokens of tanh(linear(token))."""

    additive = True

    class Config(PluginConfig):
        bias: bool = True
        """whether the projections have a bias"""

    def __init__(self, config: Config, widths: Mapping[str, int], width: int) -> None:
        super().__init__(config, widths, width)
        self.project = nn.ModuleDict(
            {name: nn.Linear(size, width, config.bias) for name, size in self.widths.items()}
        )

    def forward(self, streams: Mapping[str, Tokens]) -> Tensor:
        pooled = []
        for name, project in self.project.items():
            features, mask = streams[name]
            tokens = project(features.masked_fill(~mask[..., None], 0.0)).tanh()
            pooled.append((tokens * mask[..., None]).sum(dim=1))
        return sum(pooled[1:], pooled[0])
