"""Files, whoever they are from: what one is by its first bytes, JSON within limits, safe writing.

Nothing here trusts a file. Each refusal says what the file is and what to do about it.
"""

import contextlib
import errno
import json
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from mae_core.errors import CheckpointError

# How a file's bytes are laid out.
Layout = Literal["zip", "pickle", "safetensors", "json"]

# Beyond these no honest file goes: a config is a few kilobytes, an index a megabyte.
MAX_CONFIG_BYTES = 2**20
MAX_INDEX_BYTES = 2**24

_AGAIN = "download it again"
_COMPRESSED = (
    b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!",
)  # fmt: skip


def shown(text: object) -> str:
    """Text from a file, quoted and short enough to be part of a sentence."""
    characters = str(text)
    return ascii(characters if len(characters) <= 60 else characters[:57] + "...")


def stat_of(path: Path) -> os.stat_result:
    """What is at a path.

    Raises:
        CheckpointError: If nothing is, or it is neither a file nor a folder.
    """
    try:
        status = path.stat()
    except (OSError, ValueError, RuntimeError) as error:
        looped = isinstance(error, RuntimeError) or getattr(error, "errno", None) == errno.ELOOP
        if looped:
            raise CheckpointError(
                f"{path.name!r} is a link that leads back to itself; give the file it should "
                "lead to"
            ) from error
        if isinstance(error, PermissionError):
            raise CheckpointError(
                f"{str(path)!r} may not be read; change its rights or its folder's"
            ) from error
        raise CheckpointError(f"there are no weights at {str(path)!r}; check the path") from error
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise CheckpointError(
            f"{path.name!r} is a device or a pipe, neither a file nor a folder; give a file of "
            "weights"
        )
    return status


def check_file(path: Path) -> int:
    """The size of an ordinary file in bytes.

    Raises:
        CheckpointError: If it is something else or cannot be read.
    """
    status = stat_of(path)
    if stat.S_ISDIR(status.st_mode):
        raise CheckpointError(f"{path.name!r} is a folder where a file is needed; give the file")
    return status.st_size


def identify(path: Path) -> Layout:
    """How the bytes of a file are laid out, whatever its name.

    Raises:
        CheckpointError: If it is nothing that weights come in.
    """
    size = check_file(path)
    head = _read(path, 512)
    if size == 0:
        raise CheckpointError(f"{path.name!r} is empty; {_AGAIN}")
    _refuse_impostors(path.name, head)
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    # Before its JSON a safetensors file has a length of 8 bytes, which is no text.
    if head[8:9] == b"{" and not (head[:8].isascii() and head[:8].decode().isprintable()):
        return "safetensors"
    if head.lstrip()[:1] == b"{":
        return "json"
    if head.startswith(b"\x80"):
        return "pickle"
    raise CheckpointError(
        f"{path.name!r} is neither a safetensors file nor a torch file; give weights in one of "
        f"these, or {_AGAIN}"
    )


def _read(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise CheckpointError(
            f"{path.name!r} cannot be read ({error.strerror}); check its rights and its disk"
        ) from error


def _refuse_impostors(name: str, head: bytes) -> None:
    """Say what a file is that goes by the name of weights and is something else."""
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{name!r} is a Git LFS pointer, which stands for the file and is not it; run "
            "git lfs pull, or download the file itself"
        )
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise CheckpointError(
            f"{name!r} is a web page, such as a server's error message, saved under that name; "
            "download the file itself"
        )
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        raise CheckpointError(
            f"{name!r} is an HDF5 file, as Keras and TensorFlow write them; give the weights in "
            "PyTorch's format or as safetensors"
        )
    if head.startswith(_COMPRESSED) or head[257:262] == b"ustar":
        raise CheckpointError(f"{name!r} is an archive; unpack it and give the weights in it")


def read_json(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: If the file is longer than `limit` bytes, no JSON or no object.
    """
    size = check_file(path)
    if size > limit:
        raise CheckpointError(
            f"{path.name!r} has {size:,} bytes of JSON where at most {limit:,} are read; restore "
            "the one that came with the weights"
        )
    try:
        values = json.loads(_read(path, limit))
    except RecursionError as error:
        raise CheckpointError(
            f"{path.name!r} is nested too deeply; restore the one that came with the weights"
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{path.name!r} is no JSON; restore the one that came with the weights"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{path.name!r} holds no JSON object; restore the one that came with the weights"
        )
    return values


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
        raise CheckpointError(f"could not write {path.name!r}{_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Why a write failed and what to do; torch hides the system's error behind its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return ": the disk is full; free some space and start the same command again"
    if isinstance(cause, FileExistsError | NotADirectoryError):
        return ": a part of its path is a file where a folder is needed; give another path"
    return f" ({cause or error}); check the free space and the rights of its folder"
