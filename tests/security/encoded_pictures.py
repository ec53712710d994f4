"""Small pictures in every accepted format and variant: what fuzzing starts from."""

import functools
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageCms, features

_FORMATS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("jpeg", "RGB", "JPEG", {}),
    ("jpeg-progressive", "RGB", "JPEG", {"progressive": True}),
    ("jpeg-grey", "L", "JPEG", {}),
    ("jpeg-cmyk", "CMYK", "JPEG", {}),
    ("png", "RGB", "PNG", {}),
    ("png-alpha", "RGBA", "PNG", {}),
    ("png-grey-alpha", "LA", "PNG", {}),
    ("png-palette", "P", "PNG", {"transparency": 3}),
    ("png-one-bit", "1", "PNG", {}),
    ("png-16", "I;16", "PNG", {}),
    ("webp", "RGB", "WEBP", {}),
    ("webp-lossless", "RGBA", "WEBP", {"lossless": True}),
    ("gif", "P", "GIF", {"transparency": 3}),
    ("bmp", "RGB", "BMP", {}),
    ("bmp-palette", "P", "BMP", {}),
    ("tiff", "RGB", "TIFF", {}),
    ("tiff-lzw", "RGBA", "TIFF", {"compression": "tiff_lzw"}),
    ("tiff-deflate", "CMYK", "TIFF", {"compression": "tiff_adobe_deflate"}),
    ("tiff-float", "F", "TIFF", {}),
    ("tiff-16", "I;16", "TIFF", {}),
]
_ANIMATED = ("gif", "webp", "png", "tiff")


@functools.cache
def encoded_pictures() -> dict[str, bytes]:
    """Name -> file. AVIF is there where this Pillow writes it."""
    pictures = {name: _saved(mode, kind, options) for name, mode, kind, options in _FORMATS}
    pictures.update(_with_metadata())
    for name in _ANIMATED:
        more = {"save_all": True, "append_images": [photo("RGB").rotate(90)]}
        pictures[f"{name}-animated"] = _saved("RGB", name.upper(), more)
    if features.check("avif"):
        pictures["avif"] = _saved("RGB", "AVIF", {})
        pictures["avif-alpha"] = _saved("RGBA", "AVIF", {"quality": 90})
    return pictures


def photo(mode: str, width: int = 24, height: int = 20) -> Image.Image:
    """A smooth picture of a mode."""
    y, x = np.mgrid[0:height, 0:width]
    colours = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1)
    rgb = Image.fromarray(colours.astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray((colours[:, :, 2] * 257).astype(np.uint16))
    if mode == "RGBA":
        rgb.putalpha(rgb.getchannel(1))
        return rgb
    return rgb.convert(mode)


def _with_metadata() -> Iterator[tuple[str, bytes]]:
    """Pictures with an EXIF orientation and a colour profile."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        options = {"exif": exif, "icc_profile": profile}
        yield f"{kind.lower()}-metadata", _saved("RGB", kind, options)


def _saved(mode: str, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    photo(mode).save(file, kind, **options)
    return file.getvalue()
