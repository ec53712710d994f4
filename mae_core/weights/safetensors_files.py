"""Safetensors files, one or many with an index."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mae_core.errors import CheckpointError
from mae_core.weights.files import check_file

# A huge model's header has about 50 kilobytes.
_MAX_HEADER_BYTES = 2**24


@dataclass(frozen=True)
class SafetensorsFile:
    """What a safetensors file holds.

    Attributes:
        header: Its texts by name.
        state: Its tensors by name, in the file's number format.
    """

    header: dict[str, str]
    state: dict[str, Tensor]


def read_safetensors(path: Path) -> SafetensorsFile:
    """Read a safetensors file.

    Raises:
        CheckpointError: If it is damaged, cut short, or claims a header longer than it is.
    """
    _check_header_length(path)
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, Any] = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{path.name!r} is not a whole safetensors file; download it again, or give weights "
            "written by mae_core.train"
        ) from error
    return SafetensorsFile(header, state)


def _check_header_length(path: Path) -> None:
    size = check_file(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, _MAX_HEADER_BYTES):
        raise CheckpointError(
            f"{path.name!r} is not a whole safetensors file: it claims a header of {length:,} "
            f"bytes, and the file has {size:,}; download it again"
        )
