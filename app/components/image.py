"""Pictures in, as files that nobody has looked into yet, and panels out, as lossless files."""

import contextlib
import hashlib
import io
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image

from app.components.quiet import QuietMeta
from app.ops.storage import MAX_AGE_SECONDS, StorageError
from app.pictures import PictureFile
from mae_core.errors import ImageError
from mae_core.photographs import ImageLimits

_logger = logging.getLogger(__name__)

MAX_BYTES = ImageLimits().max_bytes

# An upload in use is noted as such, so that it is not deleted as old; not at each use, as what is
# known of a file goes by its time.
_NOTE_SECONDS = MAX_AGE_SECONDS / 6


class SafeImage(gr.Image, metaclass=QuietMeta):
    """A picture input that gives the uploaded file, unread.

    Gradio's own decodes the file itself: without limits, and `data:` addresses by another way
    than files. Here nothing is decoded, nothing but an uploaded file is taken, and the service
    has its bytes judged when their turn comes.
    """

    is_template = True

    def check_payload(self, payload: object) -> None:
        """Refuse all but an uploaded file. It must run before Gradio looks at the payload.

        Args:
            payload: What the client sent for this component.

        Raises:
            ImageError: If it is an address or no uploaded file.
            FileNotFoundError: If the file was deleted since.
        """
        if payload is None:
            return
        # Gradio looks after the paths of files that are marked as such, and of no others.
        if (
            not isinstance(payload, Mapping)
            or payload.get("meta") != {"_type": "gradio.FileData"}
            or not isinstance(payload.get("path"), str)
        ):
            raise _not_uploaded()
        path, url = payload["path"], str(payload.get("url") or "")
        if path.startswith(("http:", "https:", "data:")) or url.startswith("data:"):
            raise ImageError(
                "addresses (http:, data: and the like) are not fetched; upload the picture as a "
                "file"
            )
        self._uploaded(path)

    def preprocess(self, payload: ImageData | None) -> PictureFile | None:  # type: ignore[override]
        """The file; None if there is no picture.

        Raises:
            ImageError: If the payload is no uploaded file, or the file is too large.
        """
        if payload is None:
            return None
        path = self._uploaded(str(payload.path))
        status = path.stat()
        if status.st_size > MAX_BYTES:
            raise ImageError(
                f"the file has more than {MAX_BYTES / 2**20:.3g} MiB; make it smaller",
                code="image_limit",
            )
        if time.time() - status.st_mtime > _NOTE_SECONDS:
            os.utime(path)
        return PictureFile(path)

    def _uploaded(self, path: str) -> Path:
        """The file at a path, which must be one that Gradio has put there."""
        try:
            resolved = Path(path).resolve()
        except ValueError as error:
            raise _not_uploaded() from error
        if not resolved.is_relative_to(Path(self.GRADIO_CACHE).resolve()) or resolved.is_dir():
            raise _not_uploaded()
        if not resolved.exists():
            raise FileNotFoundError(path)
        return resolved


def _not_uploaded() -> ImageError:
    return ImageError(
        "the picture must be an uploaded file; through the API, pass it by handle_file()"
    )


class PanelImage(gr.Image, metaclass=QuietMeta):
    """A picture output, served and downloaded as a PNG file.

    The file is called by the last word of the `elem_id`: `masked.png` for `panel-masked`.
    """

    is_template = True

    def postprocess(self, value: Image.Image | None) -> ImageData | None:  # type: ignore[override]
        """Write the picture to Gradio's cache, once.

        Raises:
            StorageError: If that fails.
        """
        if value is None:
            return None
        name = f"{str(self.elem_id).rpartition('-')[2]}.png"
        buffer = io.BytesIO()
        # Three times as fast as the default, for 3 % more bytes of a photograph.
        value.save(buffer, "PNG", compress_level=1)
        try:
            path = _keep(buffer.getvalue(), name, self.GRADIO_CACHE)
        except OSError as error:
            _logger.error("cannot write a panel", exc_info=error)
            raise StorageError(
                "this server cannot keep pictures at the moment; try again in a few minutes"
            ) from error
        return ImageData(path=str(path), orig_name=name)


def _keep(data: bytes, name: str, cache: str) -> Path:
    """A file of that name and content; an equal one is used again.

    Writing over it, as Gradio would, cuts it short for whoever is being sent it.
    """
    path = Path(cache).resolve() / hashlib.sha256(data).hexdigest() / name
    with contextlib.suppress(FileNotFoundError):
        # Old files are deleted; this one is in use. Its own time is part of its ETag.
        os.utime(path.parent)
        if path.exists():
            return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)
    return path
