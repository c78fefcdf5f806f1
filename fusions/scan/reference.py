"""The scan as the plain loop it is defined by: what every faster backend is compared with.

Source: MambaVL eq. 2 and 3. Its gradients are autograd's.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, zoh: bool) -> Tensor:
    """y (B, L, D), one token after the other."""
    if x.shape[1] == 0:
        return x * dt  # empty, and still part of the graph
    h_BDN = x.new_zeros(x.shape[0], *A.shape)
    ys = []
    steps = zip(x.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True)
    for x_BD, dt_BD, B_BN, C_BN in steps:
        z_BDN = dt_BD[..., None] * A
        gain_BDN = dt_BD[..., None] * (_exprel(z_BDN) if zoh else 1.0)
        h_BDN = torch.exp(z_BDN) * h_BDN + gain_BDN * x_BD[..., None] * B_BN[:, None]
        ys.append((h_BDN * C_BN[:, None]).sum(-1))
    return torch.stack(ys, dim=1)


def _exprel(z: Tensor) -> Tensor:
    """(exp(z) - 1) / z with the limit 1 at zero; its gradient is stable too."""
    near = z.abs() < 1e-3
    away = torch.where(near, 1.0, z)
    series = 1 + z / 2 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5)))
    return torch.where(near, series, torch.expm1(away) / away)


def forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, zoh: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    """(y, nothing)."""
    return scan(x, dt, A, B, C, zoh), x.new_empty(0)


def backward(
    gy: Tensor, kept: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, zoh: bool
) -> tuple[Tensor, ...]:
    """Gradients of x, dt, A, B, C by differentiating the loop."""
    inputs = [part.detach().requires_grad_() for part in (x, dt, A, B, C)]
    with torch.enable_grad():
        y = scan(*inputs, zoh=zoh)
    return torch.autograd.grad(y, inputs, gy, materialize_grads=True)


def kept_shape(B: int, L: int, D: int, N: int) -> tuple[int, ...]:
    """Nothing is kept."""
    return (0,)
