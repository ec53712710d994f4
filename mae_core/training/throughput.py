"""What a device can do, which a run is measured against."""

import time

import torch
from torch import Tensor

# Sides of the square matrices that are multiplied: from the first, doubled until one product
# takes long enough for the device to be busy, at most to the last.
_FIRST_SIDE, _LAST_SIDE = 256, 8192
_LONG_ENOUGH = 2e-3

# Seconds that the products of the last size are repeated for.
_SECONDS = 0.15


def measure_matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of some square matrix products: what no training step exceeds.

    Takes about a fifth of a second, and draws nothing from torch's own generators.

    Args:
        device: Where to multiply.
        dtype: Number format of the matrices.
    """
    side, seconds = _FIRST_SIDE, _fastest_product(device, dtype, _FIRST_SIDE, 0.0)
    while seconds < _LONG_ENOUGH and side < _LAST_SIDE:
        side *= 2
        seconds = _fastest_product(device, dtype, side, 0.0)
    seconds = min(seconds, _fastest_product(device, dtype, side, _SECONDS))
    return float(2 * side**3 / seconds)


def _fastest_product(device: torch.device, dtype: torch.dtype, side: int, budget: float) -> float:
    """Seconds of the fastest of the products that fit into `budget` seconds, or of one."""
    # Numbers as in a model: products of zeros take less power, and run faster.
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in "ab")
    _seconds_of(a, b)  # the first one loads the kernel
    fastest, begun = _seconds_of(a, b), time.perf_counter()
    while time.perf_counter() - begun < budget:
        fastest = min(fastest, _seconds_of(a, b))
    return fastest


def _seconds_of(a: Tensor, b: Tensor) -> float:
    _wait(a.device)
    begun = time.perf_counter()
    torch.mm(a, b)
    _wait(a.device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    """Until the device has done all it was told to."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
