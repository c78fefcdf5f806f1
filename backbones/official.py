"""Published networks by name, under their published parameter names, classifiers included.

Source: none, ours; the networks name theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

import backbones.clip_vit
import backbones.orvit
import backbones.timesformer  # noqa: F401  (each registers its encoders)
from harness.registry import ENCODERS

NETWORKS = ("orvit", "motionformer", "clip_vit", "timesformer")


def build(
    name: str,
    size: str,
    state: Mapping[str, Tensor] | None = None,
    *,
    frames: int | None = None,
    image: int | None = None,
    classes: Mapping[str, int] | None = None,
    **changes: Any,
) -> nn.Module:
    """The network `name` at a named size, in evaluation mode, with the weights of `state`.

    `net(clips, boxes)` takes clips (B, 3, T, H, W), normalised as the network was trained, and for
    `orvit` boxes (B, T, O, 4), centre x, centre y, width, height in [0, 1], all zero where absent.
    It gives `tokens` (B, 1 + T' P, D) after the last norm, `features` (B, D) as the classifiers see
    them, and `logits`, target -> (B, classes), before any softmax.

    `frames`, `image` (pixels) and `changes` (fields of the size: `width`, `depth`, `heads`, ...)
    take the place of those of the size. `classes` are target -> number of classes, e.g.
    `{"verb": 97, "noun": 300}` for `orvit`, `{"action": 3806}` for the others; None: those that
    `state` has at a published size, else none.

    `state` holds published names, with or without `module.` before them, in any of the published
    layouts. Raises ValueError for an unknown name or size, and where a tensor is missing, left over
    or of another shape.
    """
    if name not in NETWORKS:
        raise ValueError(f"no published network is called {name!r}; known: {', '.join(NETWORKS)}")
    plain = {key.removeprefix("module."): value for key, value in (state or {}).items()}
    if classes is None:
        classes = (ENCODERS[name].recognise(plain) or {}).get("classes")
    network = ENCODERS[name].published(size, frames=frames, image=image, classes=classes, **changes)
    if state is not None:
        found = network.convert(plain, network.state_dict())
        missing = sorted(network.state_dict().keys() - found.tensors.keys())
        if missing or found.unexpected:
            raise ValueError(
                f"the weights do not fit {name} {size}: missing {missing[:5]}, "
                f"left over {list(found.unexpected)[:5]}"
            )
        network.load_state_dict(dict(found.tensors))
    return network.eval()
