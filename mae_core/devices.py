"""Where a model runs, in which number format, and on how many threads of the CPU."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from mae_core.errors import ConfigError

__all__ = [
    "PRECISIONS",
    "choose_device",
    "choose_precision",
    "choose_threads",
    "cpu_has_bfloat16",
    "without_tf32",
]

PRECISIONS = ("auto", "float32", "bfloat16")

# Floating-point operations of a forward pass over all patches below which one thread is best: an
# image of `compact` has 5.8e9, one of `small` 10.7e9 (`python -m benchmarks.bench_threads`).
_ONE_THREAD_FLOPS = 6e9

# Microseconds of CPU time, and the period in which they may be used (cgroup v2).
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def choose_device(name: str = "auto") -> torch.device:
    """The named device; `auto` is CUDA, else MPS, else the CPU."""
    counts = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    if name == "auto":
        return torch.device(next(kind for kind, count in counts.items() if count))
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"device {name!r} is unknown; give auto, cpu, cuda or mps", code="device"
        ) from error
    if (device.index or 0) >= counts.get(device.type, 0):
        raise ConfigError(
            f"device {name!r} is not on this machine; give auto or cpu", code="device"
        )
    return device


@contextmanager
def without_tf32() -> Iterator[None]:
    """Convolutions and matrix products of float32 in float32, also on GPUs that have TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def choose_precision(name: str, device: torch.device) -> str:
    """`float32` or `bfloat16`; `auto` is bfloat16 on CPUs that have instructions for it.

    There `base` and `large` take a third of the time (`python -m benchmarks.bench_reconstruct`),
    and the image stays the same to the eye (tests/test_bundled_weights.py holds the PSNR).
    """
    if name not in PRECISIONS:
        raise ConfigError(
            f"precision {name!r} is unknown; give {', '.join(PRECISIONS)}", code="device"
        )
    if name != "auto":
        return name
    return "bfloat16" if device.type == "cpu" and cpu_has_bfloat16() else "float32"


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices by instructions of its own."""
    flags = torch.backends.cpu.get_cpu_capability()
    return flags.startswith("AVX512") and bool(torch.cpu._is_avx512_bf16_supported())


def choose_threads(flops: float = math.inf) -> int:
    """CPU threads for a pass of that size (`forward_flops`, nothing removed); OMP_NUM_THREADS wins.

    Small passes run on one thread: more take more processor time, gain some on an idle machine and
    lose much on a busy one, for a pass has dozens of barriers at which all threads wait for the
    slowest.

    `torch.set_num_threads` holds for the calling thread and for threads that first run torch
    after it. Libraries should leave it to programs.
    """
    # Asked first, for afterwards torch's own number is not known any more.
    most = _all_threads()
    return 1 if "OMP_NUM_THREADS" not in os.environ and flops < _ONE_THREAD_FLOPS else most


@cache
def _all_threads() -> int:
    """Torch's own number, at most the CPU quota of a container, of which torch knows nothing."""
    threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ:
        return threads
    try:
        quota, period = map(int, _CPU_QUOTA.read_text().split())
    except (OSError, ValueError):  # no container, or one without a bound: "max 100000"
        return threads
    return min(threads, max(1, quota // period))
