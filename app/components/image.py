"""Pictures in, as bytes that nobody has decoded yet, and panels out, as lossless files."""

from collections.abc import Mapping
from pathlib import Path

import gradio as gr
from gradio import processing_utils
from gradio.data_classes import ImageData
from PIL import Image

from app.components.quiet import QuietMeta
from mae_core import ImageFormatError, ImageLimitError, ImageLimits

MAX_BYTES = ImageLimits().max_bytes


class SafeImage(gr.Image, metaclass=QuietMeta):
    """A picture input that gives the uploaded file's bytes.

    Gradio's own decodes the file itself: without limits, and `data:` addresses by another way
    than files. Here nothing is decoded, nothing but an uploaded file is taken, and the service
    has the bytes judged.
    """

    is_template = True

    @staticmethod
    def check_payload(payload: object) -> None:
        """Refuse all but an uploaded file. It must run before Gradio looks at the payload.

        Args:
            payload: What the client sent for this component.

        Raises:
            ImageFormatError: If it is an address or no file at all.
        """
        if payload is None:
            return
        if not isinstance(payload, Mapping) or not isinstance(payload.get("path"), str):
            raise ImageFormatError(
                "the picture must be an uploaded file; through the API, pass it by handle_file()"
            )
        addresses = (payload["path"], str(payload.get("url") or ""))
        if addresses[0].startswith(("http:", "https:")) or any(
            address.lstrip().lower().startswith("data:") for address in addresses
        ):
            raise ImageFormatError(
                "addresses (http:, data: and the like) are not fetched; upload the picture as a "
                "file"
            )

    def preprocess(self, payload: ImageData | None) -> bytes | None:  # type: ignore[override]
        """The file's bytes; None if there is no picture.

        Raises:
            ImageFormatError: If the payload is no uploaded file.
            ImageLimitError: If the file is too large.
        """
        if payload is None:
            return None
        self.check_payload(payload.model_dump())
        path = Path(str(payload.path))
        if path.stat().st_size > MAX_BYTES:
            raise ImageLimitError(
                f"the file has more than {MAX_BYTES / 2**20:.3g} MiB; make it smaller"
            )
        return path.read_bytes()


class PanelImage(gr.Image, metaclass=QuietMeta):
    """A picture output, served and downloaded as a PNG file.

    The file is called by the last word of the `elem_id`: `masked.png` for `panel-masked`.
    """

    is_template = True

    def postprocess(self, value: Image.Image | None) -> ImageData | None:  # type: ignore[override]
        """Write the picture to Gradio's cache."""
        if value is None:
            return None
        stem = str(self.elem_id).rpartition("-")[2]
        path = processing_utils.save_pil_to_cache(value, self.GRADIO_CACHE, stem, "png")
        return ImageData(path=path, orig_name=f"{stem}.png")
