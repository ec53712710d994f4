"""Files of weights on disk: what they are called, safe reading, atomic writing.

A file is what its first bytes say, whatever its name. Nothing in a file is ever run, and nothing
is allocated only because a file claims it.
"""

import contextlib
import json
import logging
import os
import stat
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from mae_core.errors import CheckpointError
from mae_core.weights.safety import load_torch
from mae_core.weights.safety import shown as shown

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# The version of our own two formats: a weights file and a run's checkpoint.
FORMAT = "mae_core-1"

# A finished run's weights, those of before it was trained further, a run's state, and the state
# saved before it.
WEIGHTS_FILE = "weights.safetensors"
PREVIOUS_WEIGHTS_FILE = "weights.previous.safetensors"
CHECKPOINT_FILE = "checkpoint.pt"
PREVIOUS_CHECKPOINT_FILE = "checkpoint.previous.pt"
# Weights of a run on its way, `step-000250.safetensors`.
SNAPSHOTS_FOLDER = "snapshots"
RUN_FILES = (WEIGHTS_FILE, CHECKPOINT_FILE, PREVIOUS_CHECKPOINT_FILE)

# What transformers and timm call weights, whole or as the index of several files (shards).
INDEX_SUFFIX = ".index.json"
SAFETENSORS_FILE, TORCH_FILE = "model.safetensors", "pytorch_model.bin"
HUGGINGFACE_FILES = (
    SAFETENSORS_FILE, SAFETENSORS_FILE + INDEX_SUFFIX, TORCH_FILE, TORCH_FILE + INDEX_SUFFIX,
)  # fmt: skip
SIDECAR_FILES = ("config.json", "preprocessor_config.json")

# A config has kilobytes, the index of a large model a megabyte.
_MAX_CONFIG_BYTES = 2**20
_MAX_INDEX_BYTES = 2**24

# First bytes of files that are often mistaken for weights, and what they are.
_MISTAKEN = {
    b"version https://git-lfs": "a Git LFS pointer (run git lfs pull)",
    b"<": "a web page, such as a server's error message",
    b"\x89HDF": "an HDF5 file, as Keras writes",
    b"\x1f\x8b": "a gzip archive (unpack it)",
}
# Parts of weights that every process of a training left by itself.
_PARTS = ("*_model_states.pt", "*/*_model_states.pt", "*.distcp")


def main_file(names: Collection[str]) -> str | None:
    """The file to open among those of a folder, the best first; None if none holds weights.

    Our own go before safetensors, whole or in shards, these before the only other safetensors
    file, and that before torch files.
    """
    others = [name for name in names if name.endswith(".safetensors")]
    only = others if len(others) == 1 else []
    candidates = (*RUN_FILES, *HUGGINGFACE_FILES[:2], *only, *HUGGINGFACE_FILES[2:])
    return next((name for name in candidates if name in names), None)


def weights_in(folder: Path) -> Path | None:
    """The file of weights in a folder; None if there is none.

    Raises:
        CheckpointError: If only the parts of a distributed training lie there.
    """
    name = main_file({path.name for path in folder.iterdir()})
    if name is not None:
        return folder / name
    if any(any(folder.glob(pattern)) for pattern in _PARTS):
        raise CheckpointError(
            f"the folder {folder.name!r} holds weights in parts; join them, DeepSpeed's with its "
            "zero_to_fp32.py, others with python -m torch.distributed.checkpoint.format_utils "
            "dcp_to_torch FOLDER FILE, and give the file"
        )
    return None


# --- reading


def identify(path: Path) -> Literal["zip", "pickle", "safetensors", "json"]:
    """How the bytes of a file are laid out, whatever its name.

    Raises:
        CheckpointError: If it is nothing that weights come in.
    """
    head = _read(path, 512)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    # Before its JSON a safetensors file has a length of 8 bytes, which is no text.
    if head[8:9] == b"{" and not (head[:8].isascii() and head[:8].decode().isprintable()):
        return "safetensors"
    if text.startswith(b"{"):
        return "json"
    if head.startswith(b"\x80"):
        return "pickle"
    known = (what for sign, what in _MISTAKEN.items() if text.startswith(sign))
    what = next(known, "neither a safetensors file nor a torch file" if head else "empty")
    raise CheckpointError(
        f"{path.name!r} is {what}; download it again, or give a safetensors or torch file"
    )


def _read(path: Path, count: int) -> bytes:
    """The first bytes of an ordinary file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path.name!r} is a folder, a device or a pipe; give a file")
        with path.open("rb") as file:
            return file.read(count)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{str(path)!r} cannot be opened ({reason}); check the path and its rights"
        ) from error


def read_json(path: Path, limit: int = _MAX_CONFIG_BYTES) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: If the file is longer than `limit` bytes, or no JSON object.
    """
    data, values = _read(path, limit + 1), None
    if len(data) <= limit:
        with contextlib.suppress(ValueError, RecursionError):
            values = json.loads(data)
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{path.name!r} is no JSON object of at most {limit:,} bytes; restore the one that "
            "came with the weights"
        )
    return values


@dataclass(frozen=True)
class Source:
    """What lies at a path.

    Attributes:
        path: The file, or the index of several.
        content: Names to tensors, or a torch file's own structure.
        header: Texts in a safetensors file's header.
        size: Bytes on the disk.
    """

    path: Path
    content: Mapping[Any, Any]
    header: dict[str, str] = field(default_factory=dict)
    size: int = 0

    def sidecar(self, name: str) -> dict[str, Any]:
        """The JSON object of that name in the same folder, empty if there is none."""
        path = self.path.parent / name
        return read_json(path) if path.exists() else {}


def open_source(path: Path, *, allow_torch: bool = True) -> Source:
    """Read a safetensors file, a torch file if that is allowed, or the index of several.

    Raises:
        CheckpointError: If it is none of these, damaged or hostile.
    """
    if identify(path) != "json":
        return _open_file(path, allow_torch)
    places = read_json(path, _MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(
            f"{path.name!r} is JSON but no index of weights; give the weights themselves"
        )
    files, there = sorted(set(places.values())), {file.name for file in path.parent.iterdir()}
    # No name of a file leads out of its folder.
    if missing := [file for file in files if file not in there]:
        raise CheckpointError(
            f"{path.name!r} names {shown(missing[0])}, which is not in its folder; download the "
            "whole folder again"
        )
    state: dict[Any, Any] = {}
    size = 0
    for file in files:
        shard = _open_file(path.parent / file, allow_torch)
        state.update(shard.content)
        size += shard.size
    if odd := sorted(map(str, state.keys() ^ places.keys())):
        raise CheckpointError(
            f"{path.name!r} and the files that it names do not agree about {shown(odd[0])}; "
            "download the whole folder again"
        )
    return Source(path, state, {}, size)


def _open_file(path: Path, allow_torch: bool) -> Source:
    layout, size = identify(path), path.stat().st_size
    if layout == "safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return Source(path, state, file.metadata() or {}, size)
        except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"{path.name!r} is not a whole safetensors file; download it again"
            ) from error
    if not allow_torch:
        raise CheckpointError(
            f"{path.name!r} is a torch file, and of a repository that is not in the list only "
            "safetensors are read; download it, run `mae convert FOLDER mine.safetensors --to "
            "mae_core` and give that file"
        )
    content = read_torch(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path.name!r} holds {shown(type(content).__name__)} where a dict of names to tensors "
            "is needed; save the model's state_dict"
        )
    return Source(path, content, {}, size)


def read_torch(path: Path, *, mmap: bool = True) -> Any:
    """The content of a torch file; see `safety.load_torch`."""
    layout = identify(path)
    if layout not in ("zip", "pickle"):
        raise CheckpointError(f"{path.name!r} is no torch file; give one, or safetensors")
    return load_torch(path, is_zip=layout == "zip", mmap=mmap)


# --- a run's checkpoints


def save_checkpoint(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write the state of a run: tensors and plain data only.

    The file of that name becomes `checkpoint.previous.pt` beside it once the new one is
    whole on the disk: at every moment one of the two is whole.

    Raises:
        CheckpointError: If the file cannot be written; the one before it stays.
    """
    path = Path(path)
    previous = path.with_name(PREVIOUS_CHECKPOINT_FILE)
    save_torch(path, {"format": FORMAT, **values}, previous=previous)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; code in a hostile file is refused, not run.

    Raises:
        CheckpointError: If the file is missing, damaged or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {str(path)!r}; check the path")
    content = read_torch(path, mmap=False)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path.name!r} is not a checkpoint written by mae_core.train; to begin with its "
            "weights, give init_from="
        )
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


# --- writing


def save_torch(path: Path, content: Mapping[str, Any], *, previous: Path | None = None) -> None:
    """Write a torch file by `write_atomically`."""

    def write(partial: Path) -> None:
        # Through Python's own file, whose errors say why a write failed; torch's does not.
        with partial.open("wb") as file:
            torch.save(content, file)

    write_atomically(path, write, previous=previous)


def write_atomically(
    path: Path, write: Callable[[Path], object], *, previous: Path | None = None
) -> None:
    """Have `write` fill a temporary file beside `path`, flush it to the disk, and rename it.

    Args:
        path: The file; its rights are those that the umask gives new files.
        write: Called with the temporary file, which is there and empty.
        previous: Where the torch file now at `path` goes, if it is a whole one.

    Raises:
        CheckpointError: If the file cannot be written; `path` is as it was before.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        partial.touch()
        mode = partial.stat().st_mode & 0o777
        write(partial)
        # safetensors makes a file of its own, which only its owner may read.
        partial.chmod(mode)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        # Half a file, as a broken copy leaves it, must not take the place of a whole one.
        if previous is not None and zipfile.is_zipfile(path):
            path.replace(previous)
        partial.replace(path)
    except (OSError, SafetensorError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        # torch hides the system's error behind its own.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        raise CheckpointError(
            f"could not write {path.name!r} ({cause or error}); check the free space, and that "
            "its folder is one and may be written to"
        ) from error
