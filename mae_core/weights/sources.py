"""From a file or folder, whatever lies there, to a mapping of names to what it holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_core.errors import CheckpointError
from mae_core.weights.files import (
    MAX_INDEX_BYTES,
    check_file,
    identify,
    read_json,
    shown,
    stat_of,
)
from mae_core.weights.safetensors_files import read_safetensors
from mae_core.weights.torch_files import read_torch

# What a folder's weights are called, the best first: a finished run's, a running one's, those
# of transformers and timm whole, and in several files with an index.
_IN_FOLDER = (
    "weights.safetensors", "checkpoint.pt", "checkpoint.previous.pt", "model.safetensors",
    "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json",
)  # fmt: skip

_MAX_SHARDS = 1000


@dataclass(frozen=True)
class Source:
    """What lies at a path.

    Attributes:
        path: The file, or the index of several.
        content: What the file holds: names to tensors, or a torch file's own structure.
        header: Texts in a safetensors file's header.
        size: Bytes on the disk.
    """

    path: Path
    content: Mapping[Any, Any]
    header: dict[str, str]
    size: int

    def beside(self, name: str) -> dict[str, Any]:
        """The JSON object of that name in the same folder, empty if there is none.

        Raises:
            CheckpointError: If it is damaged, or too long to be honest.
        """
        beside = self.path.parent / name
        return read_json(beside) if beside.exists() else {}


def find_file(path: Path) -> Path:
    """The file of weights that a path leads to: itself, or the one in a folder.

    Raises:
        CheckpointError: If nothing is there, or the folder has no weights.
    """
    stat_of(path)
    if not path.is_dir():
        return path
    for name in _IN_FOLDER:
        if (path / name).exists():
            return path / name
    check_not_sharded(path)
    raise CheckpointError(
        f"the folder {path.name!r} has none of {', '.join(_IN_FOLDER)}; give the file of weights "
        "itself"
    )


def check_not_sharded(folder: Path) -> None:
    """Refuse a folder in which every process of a training has left its own part of the weights.

    Raises:
        CheckpointError: If it is one of DeepSpeed or of torch.distributed.checkpoint.
    """
    for pattern in ("*_model_states.pt", "*/*_model_states.pt"):
        if any(folder.glob(pattern)):
            raise CheckpointError(
                f"the folder {folder.name!r} is a checkpoint of DeepSpeed, whose weights are in "
                "parts; join them with the zero_to_fp32.py that lies in it and give the file that "
                "it writes"
            )
    if (folder / ".metadata").is_file() and any(folder.glob("*.distcp")):
        raise CheckpointError(
            f"the folder {folder.name!r} is of torch.distributed.checkpoint, whose weights are in "
            "parts; join them with python -m torch.distributed.checkpoint.format_utils "
            "dcp_to_torch FOLDER FILE and give the file"
        )


def open_source(path: Path) -> Source:
    """Read a file, by what its bytes are and not by its name.

    Raises:
        CheckpointError: If it cannot be used; see `files`, `torch_files`, `safetensors_files`.
    """
    if identify(path) == "json":
        state, size = _read_shards(path)
        return Source(path, state, {}, size)
    content, header = _read_file(path)
    return Source(path, content, header, check_file(path))


def _read_file(path: Path) -> tuple[Mapping[Any, Any], dict[str, str]]:
    if identify(path) == "safetensors":
        found = read_safetensors(path)
        return found.state, found.header
    content = read_torch(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path.name!r} holds {shown(type(content).__name__)} where a dict of names to tensors "
            "is needed; save the model's state_dict"
        )
    return content, {}


def _read_shards(index: Path) -> tuple[dict[str, Any], int]:
    """All tensors of the files that an index names, which lie beside it."""
    places = read_json(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(
            f"{index.name!r} is JSON but no index of weights; give the weights themselves"
        )
    files = sorted(set(places.values()))
    if len(files) > _MAX_SHARDS:
        raise CheckpointError(f"{index.name!r} names {len(files):,} files; at most 1,000 are read")
    state: dict[str, Any] = {}
    size = 0
    for file in files:
        shard = _shard(index, file)
        content, _ = _read_file(shard)
        _check_shard(index, file, content, places)
        state.update(content)
        size += check_file(shard)
    return state, size


def _shard(index: Path, file: str) -> Path:
    if not file or file in (".", "..") or any(mark in file for mark in "/\\:\0"):
        raise CheckpointError(
            f"{index.name!r} names the file {shown(file)}, which is outside its own folder; "
            "nothing there was read, use another copy of the weights"
        )
    shard = index.parent / file
    if not shard.is_file():
        raise CheckpointError(
            f"{index.name!r} names the file {shown(file)}, which is not there; download the "
            "missing part into the same folder"
        )
    if identify(shard) == "json":
        raise CheckpointError(f"{index.name!r} names {shown(file)}, which holds no weights")
    return shard


def _check_shard(
    index: Path, file: str, content: Mapping[Any, Any], places: Mapping[str, str]
) -> None:
    promised = {name for name, place in places.items() if place == file}
    odd = sorted(str(name) for name in content.keys() ^ promised)
    if odd:
        raise CheckpointError(
            f"{index.name!r} and {shown(file)} do not agree about {shown(odd[0])}; download the "
            "folder again"
        )
