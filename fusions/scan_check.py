"""What `harness doctor` looks at of the scan: whether the fast kernels are here, and right."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from fusions.scan import compiled, convolution, cuda, selective_scan
from harness.registry import CHECKS, Finding

SHAPE = (2, 197, 64, 16)
"""B, L, D, N: a clip's patch tokens, narrow"""
TOLERANCE = 1e-4
"""largest difference to the plain loop, as a share of the largest number"""
KERNELS = ("mamba_ssm", "selective_scan_cuda")
INSTALL = 'MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation -e ".[cuda]"'


def numba() -> Finding:
    """The compiled scan against the plain loop, with gradients."""
    if not compiled.available():
        return Finding(
            "warn",
            "not installed: the scan on a CPU takes several times longer",
            "pip install numba",
        )
    return _compared("numba", "cpu", "set NUMBA_CACHE_DIR to a new folder, or uninstall numba")


def mamba() -> Finding:
    """The kernels of Mamba's authors against the plain loop; without a GPU, what is used."""
    why = _why_not()
    if not torch.cuda.is_available():
        instead = "numba" if compiled.available() else "plain torch"
        here = "not installed" if why else "installed, of no use without one"
        return Finding("skipped", f"no GPU; {here}. The scan is computed by {instead}")
    if not cuda.available():
        found = f"{why}. On this GPU the scan is computed by plain torch, slowly"
        return Finding("warn", found, f"install torch, then: {INSTALL}")
    found = _compared("cuda", "cuda", "pip uninstall mamba-ssm: plain torch takes its place")
    if found.state != "ok" or cuda.convolution() is None:
        return found
    x, taps, bias = torch.randn(2, 9, 8), torch.randn(4, 8), torch.randn(8)
    exact = convolution.causal_conv(x, taps, bias)
    fast = cuda.causal_conv(x.cuda(), taps.cuda(), bias.cuda())
    apart = _apart(exact, fast.cpu())
    if not apart <= TOLERANCE:
        return Finding("fail", f"causal-conv1d is off by {apart:.0e}", "uninstall causal-conv1d")
    return Finding("ok", f"{found.found}; causal-conv1d: {apart:.0e}")


def _compared(backend: str, device: str, fix: str) -> Finding:
    exact, fast = _with_gradients("reference", "cpu"), _with_gradients(backend, device)
    apart = max(_apart(one, other) for one, other in zip(exact, fast, strict=True))
    found = f"within {apart:.0e} of the plain loop, gradients too"
    return Finding("ok", found) if apart <= TOLERANCE else Finding("fail", found, fix)


def _with_gradients(backend: str, device: str) -> list[Tensor]:
    """y and the gradients of all inputs, on the CPU."""
    B, L, D, N = SHAPE
    rng = torch.Generator().manual_seed(0)
    shapes = ((B, L, D), (B, L, D), (D, N), (B, L, N), (B, L, N))
    x, dt, A, *rest = (torch.randn(shape, generator=rng) for shape in shapes)
    dt, A = torch.nn.functional.softplus(dt), -torch.exp(A)
    inputs = [t.to(device).requires_grad_() for t in (x, dt, A, *rest)]
    y = selective_scan(*inputs, backend=backend)
    return [t.detach().cpu() for t in (y, *torch.autograd.grad(y.square().sum(), inputs))]


def _apart(exact: Tensor, other: Tensor) -> float:
    return float((exact - other).abs().max() / exact.abs().max())


def _why_not() -> str | None:
    """Why no kernel can be imported; None if one can."""
    reasons = []
    for name in KERNELS:
        try:
            importlib.import_module(name)
            return None
        except (ImportError, OSError) as error:
            reasons.append((str(error).splitlines() or [name])[0])
    return "; ".join(reasons)


CHECKS["numba"] = numba
CHECKS["mamba-ssm"] = mamba
