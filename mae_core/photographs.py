"""Photographs: which files are images, what they may measure, and what a person sees in them.

Sizes are judged by a file's header, before it is decoded; only the parsers of `FORMATS` run, and
whatever one raises becomes an `ImageError`. A page that takes files from strangers has to check
more, for a small file may cost Pillow gigabytes.
"""

import importlib
import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, features
from PIL.ExifTags import Base as Tag
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from mae_core.errors import ImageError, MAEError
from mae_core.measurements import (
    RangeSpec,
    find_value_range,
    orientation_of,
    to_levels,
    upright,
)

__all__ = ["ImageLimits", "decode_image", "read_drawing"]

_MAX_PROFILE_BYTES = 4 * 2**20


class ImageFormat(NamedTuple):
    """A file format."""

    name: str
    pillow: str  # Pillow's name; empty if Pillow does not read it
    start: bytes  # pattern of the first `START_BYTES` of its files
    suffixes: tuple[str, ...]


START_BYTES = 64

# The first that matches counts: an AVIF file may begin as HEIC does, and lists `avif` later.
FORMATS = (
    ImageFormat("JPEG", "JPEG", rb"\xff\xd8\xff", (".jpg", ".jpeg")),
    ImageFormat("PNG", "PNG", rb"\x89PNG\r\n\x1a\n", (".png",)),
    ImageFormat("WebP", "WEBP", rb"RIFF....WEBP", (".webp",)),
    ImageFormat("GIF", "GIF", rb"GIF8[79]a", (".gif",)),
    ImageFormat("BMP", "BMP", rb"BM.{12}[\x0c-\x7c]\0\0\0", (".bmp",)),
    ImageFormat("TIFF", "TIFF", rb"(?:II|MM)(?:[*+]\0|\0[*+])", (".tif", ".tiff")),
    ImageFormat("AVIF", "AVIF", rb"....ftyp(?:....)*?avi[fs]", (".avif",)),
    ImageFormat("HEIC", "HEIF", rb"....ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)", (".heic", ".heif")),
    ImageFormat("NumPy", "", rb"\x93NUMPY", (".npy",)),
)


def format_of(start: bytes) -> ImageFormat | None:
    """The format of a file by its first `START_BYTES`; None if it is none of `FORMATS`."""
    start = start[:START_BYTES]
    return next((known for known in FORMATS if re.match(known.start, start, re.DOTALL)), None)


def is_readable(known: ImageFormat) -> bool:
    """Whether this machine reads a format: HEIC needs pillow-heif, AVIF a Pillow built with it."""
    if known.name == "HEIC":
        return find_spec("pillow_heif") is not None
    return known.name != "AVIF" or bool(features.check("avif"))


@dataclass(frozen=True)
class ImageLimits:
    """What an image may measure; `PIL.Image.MAX_IMAGE_PIXELS` holds as well.

    Attributes:
        max_bytes: Bytes of a file.
        max_pixels: Width times height.
        max_whole_pixels: The same for files other than JPEG, which can be decoded smaller, and
            HEIC, which takes 8 bytes a pixel; decoding a WebP of so many pixels takes 16.
        keep_pixels: An image of more pixels comes back scaled down by a whole factor.
        min_side: Pixels of the shorter side.
        max_aspect: Longer side over shorter side.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    max_whole_pixels: int = 2**25  # an 8K screen
    keep_pixels: int = 4_194_304
    min_side: int = 16
    max_aspect: float = 20.0

    def check_size(self, size: tuple[int, int], *, in_full: bool = False) -> None:
        """Raise an ImageError if a (width, height), to be decoded in full, is not allowed."""
        most = self.max_whole_pixels if in_full else self.max_pixels
        if math.prod(size) > most:
            allowed = f"at most {most / 1e6:.3g} million are taken: scale it down"
        elif min(size) < self.min_side:
            allowed = f"each side must have at least {self.min_side}"
        elif max(size) > self.max_aspect * min(size):
            allowed = (
                f"the longer side may be at most {self.max_aspect:g} times the shorter: crop it"
            )
        else:
            return
        raise ImageError(
            f"the image is {size[0]} x {size[1]} pixels; {allowed}", code="image_limit"
        )

    def shrink_factor(self, size: tuple[int, int]) -> int:
        """The smallest whole factor that brings a (width, height) to at most `keep_pixels`."""
        factor = 1
        while math.prod(math.ceil(side / factor) for side in size) > self.keep_pixels:
            factor += 1
        return factor


DEFAULT_LIMITS = ImageLimits()


def decode_image(
    source: bytes | str | Path | Image.Image,
    limits: ImageLimits = DEFAULT_LIMITS,
    *,
    value_range: RangeSpec = "auto",
) -> Image.Image:
    """Return the RGB image a person sees in a file or a PIL image, read by Pillow alone.

    EXIF orientation is applied, transparency laid on white, an ICC profile converted to sRGB
    (a broken one is ignored), values of more than 8 bits rescaled, and of an animation the first
    frame taken. It has at most `limits.keep_pixels` pixels and no metadata.

    Raises:
        ImageError: If it cannot be used.
    """
    image = open_file(source, limits)
    with parser_errors():
        is_deep = _is_deep(image)
        image.load()
        if isinstance(image, TiffImageFile) and image.mode in ("LA", "RGBA"):
            # Transparency is mostly all or nothing. Near infrared is called transparency, too.
            alpha = image.getchannel("A").histogram()
            if alpha[0] + alpha[255] < image.width * image.height / 2:
                image = image.convert(image.mode.removesuffix("A"))
        profile, exif = image.info.get("icc_profile"), image.info.get("exif")
        factor = limits.shrink_factor(image.size)
        # These can be averaged as they are, and take much memory to convert.
        if factor > 1 and (is_deep or image.mode in ("I", "F")):
            image, factor = image.reduce(factor), 1
        plain = _to_8_bits(image, is_deep, value_range)
        plain = plain if factor == 1 else plain.reduce(factor)
        seen = to_srgb(plain.convert("RGB") if plain.mode == "RGBA" else plain, profile)
        if plain.mode == "RGBA":
            colours, seen = seen, Image.new("RGB", plain.size, "white")
            seen.paste(colours, mask=plain.getchannel("A"))
        if 2 <= (orientation := orientation_of(exif)) <= 8:
            turned = upright(np.asarray(seen), orientation)
            seen = Image.fromarray(np.ascontiguousarray(turned))
    seen.info = {}
    return seen


def read_drawing(source: bytes | str | Path) -> npt.NDArray[np.uint8]:
    """A black-and-white image, such as a drawn mask: (H, W) values of 0 and 255, 255 = not black.

    What is transparent is black.

    Args:
        source: A file's path or bytes, of any of the formats; a side of one pixel is enough.

    Raises:
        ImageError: As `decode_image`.
    """
    limits = ImageLimits(min_side=1, max_aspect=4096)
    image = open_file(source, limits)
    if image.has_transparency_data:
        with parser_errors():
            colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), colours)
    values = np.asarray(decode_image(image, limits).convert("L"))
    return np.where(values != 0, 255, 0).astype(np.uint8)


def read_file(source: bytes | str | Path, most: int) -> bytes:
    """The first `most` bytes of a local file, or of a file's bytes.

    Raises:
        ImageError: If no file at that path can be read.
    """
    if isinstance(source, bytes):
        return source[:most]
    with suppress(OSError, ValueError):
        if Path(source).is_file():  # opening a pipe would wait for its writer
            with open(source, "rb") as file:
                return file.read(most)
    raise ImageError(
        f"no file can be read at {str(source)[:200]!r}; give the path of a local image "
        "(addresses are not fetched)"
    )


@contextmanager
def parser_errors() -> Iterator[None]:
    """Turn whatever a parser raises inside into an `ImageError`."""
    try:
        yield
    except MAEError:
        raise
    except (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            "the image needs more memory than is free, or has more than "
            f"{DEFAULT_LIMITS.max_pixels / 1e6:.3g} million pixels; scale it down",
            code="image_limit",
        ) from error
    # OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError, struct.error, ...
    except Exception as error:
        raise ImageError(
            "the image is damaged or cut short, or of a kind that is not read; save it again as "
            "PNG or JPEG"
        ) from error


class _Jpeg(JpegImageFile):
    """Without the tags of EXIF data and of the list of further images, which may claim gigabytes.

    Pillow reads all of the former for the resolution, and `Image.open` those of the latter.
    """

    def _read_dpi_from_exif(self) -> None:
        pass


def open_file(source: object, limits: ImageLimits) -> Image.Image:
    """An image with its size checked, of a file not yet decoded."""
    if isinstance(source, Image.Image):
        limits.check_size(source.size)
        return source
    if not isinstance(source, bytes | str | Path):
        raise ImageError(
            f"a {type(source).__name__} is not an image; give a file's bytes, a path, a PIL "
            "image or an array"
        )
    data = read_file(source, limits.max_bytes + 1)
    if len(data) > limits.max_bytes:
        most = limits.max_bytes / 2**20
        raise ImageError(
            f"the file has more than {most:.3g} MiB; make it smaller", code="image_limit"
        )
    known = format_of(data)
    if known is None or not known.pillow or not is_readable(known):
        what = "the file is empty or of no accepted format"
        if known:
            what = f"{known.name} files are not read here (HEIC takes pip install pillow-heif)"
        accepted = ", ".join(one.name for one in FORMATS if one.pillow and is_readable(one))
        raise ImageError(f"{what}; give an image as {accepted}")
    with parser_errors():
        if known.name == "HEIC":
            importlib.import_module("pillow_heif").register_heif_opener()
        file = io.BytesIO(data)
        is_jpeg = known.name == "JPEG"
        image = _Jpeg(file) if is_jpeg else Image.open(file, formats=[known.pillow])
        limits.check_size(image.size, in_full=known.name not in ("JPEG", "HEIC"))
        factor = limits.shrink_factor(image.size)
        image.draft(None, (image.width // factor, image.height // factor))  # for JPEG alone
        tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
        if tags.get(Tag.PlanarConfiguration) == 2 and max(tags.get(Tag.BitsPerSample, (1,))) > 8:
            raise ValueError("Pillow shows 16-bit colours in planes as noise")
    return image


def _is_deep(image: Image.Image) -> bool:
    """Whether a file, not decoded yet, has colours or transparency of 16 bits a value."""
    tiles = getattr(image, "tile", ())
    return image.mode in ("LA", "RGB", "RGBA") and any(";16" in str(tile[3]) for tile in tiles)


def grey_values(image: Image.Image) -> npt.NDArray[Any] | None:
    """The (H, W, 1) stored values, upright, of grey of more than 8 bits; None for other images."""
    if image.mode[0] not in "IF":
        return None
    with parser_errors():
        values = _numbers(image)[:, :, None]
        return upright(values, orientation_of(image.info.get("exif")))


def _numbers(image: Image.Image) -> npt.NDArray[Any]:
    numbers = np.asarray(image)
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    # Pillow does not invert 16 bits whose white is zero.
    is_inverted = image.mode == "I;16" and tags.get(Tag.PhotometricInterpretation) == 0
    return 65535 - numbers if is_inverted else numbers


def _to_8_bits(image: Image.Image, is_deep: bool, value_range: RangeSpec) -> Image.Image:
    """A loaded image as L, RGB, CMYK or RGBA; values of more than 8 bits by their range."""
    if is_deep:  # Pillow keeps the upper half of each value
        values = np.asarray(image.convert("RGB")).astype(np.uint16) * 257
        if 0 < values.max() < 2**12:
            raise ImageError(
                "the image has 16 bits a value and uses the lower 12 or fewer; save it as 8 bits"
            )
    elif image.mode[0] in "IF":
        values = _numbers(image)[:, :, None]
    elif image.mode == "RGBA" or image.has_transparency_data:
        return image.convert("RGBA")
    elif image.mode in ("L", "RGB", "CMYK"):
        return image
    else:
        return image.convert("L" if image.mode == "1" else "RGB")
    levels = to_levels(values, find_value_range([values], value_range))
    plain = Image.fromarray(levels if is_deep else levels[:, :, 0])
    if "A" in image.getbands():
        plain.putalpha(image.getchannel("A"))
    return plain


def to_srgb(colour: Image.Image, profile: bytes | None) -> Image.Image:
    """An L, RGB or CMYK image as RGB, through its ICC profile where that makes sense."""
    if profile and len(profile) <= _MAX_PROFILE_BYTES:
        # A profile that is broken, or of another colour space, is ignored, as viewers do.
        with suppress(ImageCms.PyCMSError, OSError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(colour, source, target, outputMode="RGB")
            assert converted is not None  # None is for inPlace=True
            return converted
    return colour.convert("RGB")
