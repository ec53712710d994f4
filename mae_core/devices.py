"""Where a model runs and in which number format."""

import torch

from mae_core.errors import DeviceError

PRECISIONS = ("auto", "float32", "bfloat16")


def choose_device(name: str = "auto") -> torch.device:
    """The named device; `auto` is CUDA, else MPS, else the CPU.

    Raises:
        DeviceError: If the name is unknown or the device is not on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device {name!r} is unknown; give auto, cpu, cuda or mps") from error
    if not _is_present(device):
        raise DeviceError(f"device {name!r} is not on this machine; give auto or cpu")
    return device


def _is_present(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    return device.type == "cpu"


def choose_precision(name: str, device: torch.device) -> str:
    """`float32` or `bfloat16`; `auto` is bfloat16 on CPUs that have instructions for it.

    There `base` and `large` take a third of the time (`python -m benchmarks.bench_reconstruct`),
    and the picture stays the same to the eye (tests/test_bundled_weights.py holds the PSNR
    between the two).

    Raises:
        DeviceError: If no precision has that name.
    """
    if name not in PRECISIONS:
        raise DeviceError(f"precision {name!r} is unknown; give {', '.join(PRECISIONS)}")
    if name != "auto":
        return name
    return "bfloat16" if device.type == "cpu" and cpu_has_bfloat16() else "float32"


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices by instructions of its own."""
    flags = torch.backends.cpu.get_cpu_capability()
    return flags.startswith("AVX512") and bool(torch.cpu._is_avx512_bf16_supported())
