"""Files of the page: uploads that nobody has looked into yet, and panels."""

import contextlib
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from PIL import Image

from app.ops.storage import MAX_AGE_SECONDS, StorageError
from app.pictures import PictureFile
from mae_core.errors import ImageError
from mae_core.images import png_bytes
from mae_core.photographs import ImageLimits

_logger = logging.getLogger(__name__)

MAX_BYTES = ImageLimits().max_bytes

# An upload in use is touched, so that it is not deleted as old; not at each use, because its time
# is part of what identifies it.
_TOUCH_SECONDS = MAX_AGE_SECONDS / 6


def uploaded(payload: object, folder: Path) -> PictureFile | None:
    """The file of a picture component's value, unread.

    Args:
        payload: Anything a client sends.
        folder: Where uploads are.

    Returns:
        None if there is no picture.

    Raises:
        ImageError: If it is no uploaded file, or the file is too large.
        FileNotFoundError: If the file was deleted since.
    """
    if payload is None:
        return None
    path = payload.get("path") if isinstance(payload, Mapping) else None
    try:
        if not isinstance(path, str):
            raise ValueError("no path")
        resolved = Path(path).resolve()
        if not resolved.is_relative_to(folder) or resolved.is_dir():
            raise ValueError("elsewhere")
    except ValueError as error:
        raise not_uploaded() from error
    status = resolved.stat()
    if status.st_size > MAX_BYTES:
        raise ImageError(
            f"the file has more than {MAX_BYTES / 2**20:.3g} MiB; make it smaller",
            code="image_limit",
        )
    if time.time() - status.st_mtime > _TOUCH_SECONDS:
        os.utime(resolved)
    return PictureFile(resolved)


def not_uploaded() -> ImageError:
    """The error of a value that is no uploaded file."""
    return ImageError(
        "the picture must be an uploaded file; through the API, pass it by handle_file()",
        code="not_uploaded",
    )


def panel_file(panel: Image.Image, name: str, folder: Path) -> Path:
    """`FOLDER/<hash of the pixels>/NAME.png`, written if it is not there.

    Raises:
        StorageError: If it cannot be written.
    """
    key = f"{panel.mode} {panel.size}".encode() + panel.tobytes()
    return _written(key, f"{name}.png", folder, partial(png_bytes, panel))


def byte_file(data: bytes, name: str, folder: Path) -> Path:
    """`FOLDER/<hash of the bytes>/NAME`, written if it is not there.

    Raises:
        StorageError: If it cannot be written.
    """
    return _written(data, name, folder, lambda: data)


def example_file(example: Path, folder: Path) -> Path:
    """A copy of an example among the uploads: its own place is not for clients to see.

    Raises:
        StorageError: If it cannot be written.
    """
    return byte_file(example.read_bytes(), example.name, folder)


def _written(key: bytes, name: str, folder: Path, data: Callable[[], bytes]) -> Path:
    path = folder / hashlib.sha256(key).hexdigest() / name
    with contextlib.suppress(OSError):
        # Keeps it from being deleted as old. The file's own time is part of its ETag.
        os.utime(path.parent)
        if path.exists():
            return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written in place, it would be cut short for a client that is being sent it.
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data())
        os.replace(file.name, path)
    except OSError as error:
        _logger.error("cannot write a picture", exc_info=error)
        raise StorageError(
            "this server cannot keep pictures at the moment; try again in a few minutes"
        ) from error
    return path
