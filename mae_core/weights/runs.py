"""The state of a training run on disk: the last checkpoint, and the one before it."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from mae_core.errors import CheckpointError
from mae_core.weights.files import write_atomically
from mae_core.weights.own import FORMAT
from mae_core.weights.torch_files import read_torch

_log = logging.getLogger(__name__)

# A run's state, and the one saved before it.
CHECKPOINT_FILE = "checkpoint.pt"
PREVIOUS_CHECKPOINT_FILE = "checkpoint.previous.pt"

_Result = TypeVar("_Result")


def save_checkpoint(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write the state of a run: tensors and plain data only.

    The file of that name becomes `checkpoint.previous.pt` beside it once the new one is
    whole on the disk: at every moment one of the two is whole.

    Raises:
        CheckpointError: If the file cannot be written; the one before it stays.
    """
    path = Path(path)
    content = {"format": FORMAT, **values}

    def write(partial: Path) -> None:
        # Through Python's own file, whose errors say why a write failed; torch's does not.
        with partial.open("wb") as file:
            torch.save(content, file)

    write_atomically(path, write, previous=path.with_name(PREVIOUS_CHECKPOINT_FILE))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; code in a hostile file is refused, not run.

    Raises:
        CheckpointError: If the file is missing, damaged or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {str(path)!r}; check the path")
    try:
        content = read_torch(path, mmap=False)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path.name!r} is not a whole checkpoint written by mae_core.train ({error})"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path.name!r} is not a checkpoint written by mae_core.train")
    return content


def load_latest(folder: str | Path) -> dict[str, Any]:
    """The checkpoint of a run's folder, or with a warning the one before it.

    Raises:
        CheckpointError: If neither is there and whole.
    """
    return read_latest(Path(folder), load_checkpoint)


def read_latest(folder: Path, read: Callable[[Path], _Result]) -> _Result:
    """What `read` makes of a run's checkpoint, or with a warning of the one before it."""
    try:
        return read(folder / CHECKPOINT_FILE)
    except CheckpointError as error:
        previous = folder / PREVIOUS_CHECKPOINT_FILE
        if not previous.is_file():
            raise
        _log.warning("%s; taking %s, the one before it", error, previous.name)
        return read(previous)
