"""Torch files, as zip archives and in the older layout, read without running anything."""

import argparse
import contextlib
import io
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mae_core.errors import CheckpointError
from mae_core.weights.files import check_file, identify
from mae_core.weights.pickles import DICTS, LISTS, NAMESPACE, PLAIN, Survey, survey

# An optimiser's state of a huge model is a pickle of about a megabyte.
_MAX_PICKLE_BYTES = 2**25
_MAX_DIRECTORY_BYTES = 2**24

# The version of pickles that torch.save writes.
_PROTOCOL = 2

# First of the five pickles of an older torch file.
_MAGIC = 0x1950A86A20F9469CFC6C

# What torch may make beside plain data is one setting for all threads.
_plain_lock = threading.Lock()


class _Ignored:
    """In place of a path, a date or a number of numpy: takes all that those do, keeps nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _EmptyDict:
    """In place of a kind of dict, called or by `__new__`: torch fills plain ones only."""

    def __new__(cls, *_: object) -> dict[Any, Any]:  # type: ignore[misc]
        return {}


class _EmptyList:
    """Likewise of a kind of list."""

    def __new__(cls, *_: object) -> list[Any]:  # type: ignore[misc]
        return []


# What torch makes of names that it does not know: nothing here runs anything of theirs.
_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (argparse.Namespace, NAMESPACE),
    *((_Ignored, name) for name in sorted(PLAIN)),
    *((_EmptyDict, name) for name in sorted(DICTS)),
    *((_EmptyList, name) for name in sorted(LISTS)),
]


def read_torch(path: Path, *, mmap: bool = True) -> Any:
    """The content of a torch file.

    Args:
        path: The file.
        mmap: Whether numbers stay on the disk until they are used, where the layout allows.

    Raises:
        CheckpointError: If it is no such file, is damaged, would run code, is compressed, or
            claims more numbers than it has.
    """
    layout = identify(path)
    if layout == "zip":
        found = _survey_zip(path)
    elif layout == "pickle":
        found = _survey_legacy(path)
    else:
        raise CheckpointError(f"{path.name!r} is no torch file; give one, or safetensors")
    if found.needed_bytes > check_file(path):
        raise CheckpointError(
            f"{path.name!r} claims more bytes of numbers than the file has; it was cut short "
            "or made to harm: download it again"
        )
    if found.protocol > _PROTOCOL:
        raise CheckpointError(
            f"{path.name!r} is written in version {found.protocol} of pickles, and only version "
            f"{_PROTOCOL} can be read without running it; save the weights again without "
            "pickle_protocol=, or as safetensors"
        )
    try:
        with _with_stand_ins(found.has_plain):
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=mmap and layout == "zip"
            )
    except Exception as error:  # torch raises a dozen types for damaged files
        raise CheckpointError(
            f"{path.name!r} is damaged or cut short; download it again"
        ) from error


@contextlib.contextmanager
def _with_stand_ins(needed: bool) -> Any:
    if not needed:
        yield
        return
    with _plain_lock, torch.serialization.safe_globals(_STAND_INS):
        yield


def _survey_zip(path: Path) -> Survey:
    try:
        _check_directory(path)
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(path.name, entries)
            entry = next(entry for entry in entries if _inner(entry.filename) == "data.pkl")
            if entry.file_size > _MAX_PICKLE_BYTES:
                raise ValueError("an endless pickle")
            return survey(io.BytesIO(archive.read(entry)), path.name)
    except StopIteration as error:
        raise CheckpointError(
            f"{path.name!r} is a zip archive that torch.save did not write; unpack it, or give "
            "the weights themselves"
        ) from error
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(
            f"{path.name!r} is a damaged zip archive or was cut short; download it again"
        ) from error


def _check_directory(path: Path) -> None:
    """Refuse a list of entries that would need far more memory than the file has bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 2**17))
        tail = file.read()
    place, big = tail.rfind(b"PK\x05\x06"), tail.rfind(b"PK\x06\x06")
    if place < 0:
        raise ValueError("no end of a zip archive")
    length = int.from_bytes(tail[place + 12 : place + 16], "little")
    if big >= 0:
        length = max(length % 0xFFFFFFFF, int.from_bytes(tail[big + 40 : big + 48], "little"))
    if length > _MAX_DIRECTORY_BYTES:
        raise ValueError("an endless list of entries")


def _check_entries(name: str, entries: list[zipfile.ZipInfo]) -> None:
    inner = {_inner(entry.filename) for entry in entries}
    if "archive_format" in inner:
        raise CheckpointError(
            f"{name!r} is a torch.export program, which holds a graph; give the weights that it "
            "was made from"
        )
    if "constants.pkl" in inner or any(part.startswith("code/") for part in inner):
        raise CheckpointError(
            f"{name!r} is a TorchScript archive, which holds a program; save the model's "
            "state_dict with torch.save instead"
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            f"{name!r} is compressed, which torch.save never does, and may unfold into any "
            "amount of memory; unpack it yourself if you trust it, or take another file"
        )


def _inner(name: str) -> str:
    """An entry's name below the archive's one folder."""
    return name.partition("/")[2]


def _survey_legacy(path: Path) -> Survey:
    with path.open("rb") as file:
        start = io.BytesIO(file.read(_MAX_PICKLE_BYTES))
    found = survey(start, path.name)
    if found.value != _MAGIC:
        raise CheckpointError(
            f"{path.name!r} is a pickle that torch.save did not write; save the weights with "
            "torch.save or as safetensors"
        )
    # Version of the layout, facts of the machine, the content, the order of the numbers.
    _, _, content, _ = (survey(start, path.name) for _ in range(4))
    return content
