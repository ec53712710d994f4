"""The example pictures of the page, and what is shown of them before they are chosen."""

import io
from pathlib import Path

from PIL import Image, ImageOps

EXAMPLES = Path(__file__).parent / "assets" / "examples"

THUMBNAIL_SIDE = 144


def examples() -> dict[str, Path]:
    """Name -> example picture, in the order in which the page shows them."""
    return {path.stem: path for path in sorted(EXAMPLES.glob("*.jpg"))}


def thumbnail(path: Path) -> bytes:
    """A small square JPEG of a picture file; the same bytes each time."""
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    with Image.open(path) as picture:
        small = ImageOps.fit(picture.convert("RGB"), side, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()
