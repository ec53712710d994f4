"""Photographs: what a person sees in a file that Pillow reads, and what any file may measure.

Limits are judged by a file's header, before anything is decoded; only the parsers of `FORMATS`
run; metadata may not claim more memory than a file may hold. Whatever a parser raises becomes an
`ImageFormatError` or an `ImageLimitError`, whose sentence repeats neither the file's name nor the
parser's words. What a page has to bound beyond that, the page does (`app.decoding`).

Pillow's warnings are left to the process's own filters: silencing them here would change a global
of every thread. A filter that raises them makes such an image an `ImageError`.
"""

import importlib
import io
import math
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageFile, TiffTags, features
from PIL.ExifTags import Base as Tag
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from mae_core.errors import ConfigError, ImageFormatError, ImageLimitError, MAEError
from mae_core.measurements import (
    SOUND_COMPRESSIONS,
    RangeSpec,
    find_value_range,
    to_levels,
    upright,
)

__all__ = ["ImageLimits", "TiffTag", "decode_image", "format_of", "tiff_tags"]

_MAX_PROFILE_BYTES = 4 * 2**20

# Types of values in TIFF tags (EXIF data is a TIFF without pixels): bytes of those shorter than a
# field; those that are read as one string of bytes, not as a tuple of numbers.
_NUMBER_BYTES = {1: 1, 3: 2, 4: 4}
_TEXT_TYPES = (1, 2, 7)
_YCBCR = 6  # a photometric interpretation

# Memory that Pillow may take for a number in a TIFF tag. A TIFF of sixty thousand strips, with two
# numbers each, is taken.
_TAG_BYTES = 160

# Transparency is mostly all or nothing; a band of measurements hardly ever is.
_LEAST_EXTREME = 0.5

# Of 16-bit colours Pillow keeps the upper 8 bits: values of 12 bits and fewer are below this then.
_LOST_IN_16_BITS = 16

# Values that the range of such colours is found in.
_SAMPLED_VALUES = 2**20


class ImageFormat(NamedTuple):
    """A file format.

    Attributes:
        name: For people.
        pillow: Pillow's name; empty if Pillow does not read it.
        start: Matches the first `START_BYTES` of its files.
        suffixes: Of its files, in lower case.
        is_readable: Whether this machine reads it.
        remedy: What to do where it does not.
    """

    name: str
    pillow: str
    start: re.Pattern[bytes]
    suffixes: tuple[str, ...]
    is_readable: Callable[[], bool] = lambda: True
    remedy: str = ""


def _start(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.DOTALL)


START_BYTES = 64
_TIFF_START = _start(rb"(?:II|MM)(?:[*+]\0|\0[*+])")

# The first that matches counts: an AVIF file may begin as HEIC does, and lists `avif` later. The
# header that follows "BM" and twelve bytes in a BMP has 12 to 124 bytes.
FORMATS = (
    ImageFormat("JPEG", "JPEG", _start(rb"\xff\xd8\xff"), (".jpg", ".jpeg")),
    ImageFormat("PNG", "PNG", _start(rb"\x89PNG\r\n\x1a\n"), (".png",)),
    ImageFormat("WebP", "WEBP", _start(rb"RIFF....WEBP"), (".webp",)),
    ImageFormat("GIF", "GIF", _start(rb"GIF8[79]a"), (".gif",)),
    ImageFormat("BMP", "BMP", _start(rb"BM.{12}[\x0c-\x7c]\0\0\0"), (".bmp",)),
    ImageFormat("TIFF", "TIFF", _TIFF_START, (".tif", ".tiff")),
    ImageFormat(
        "AVIF", "AVIF", _start(rb"....ftyp(?:....)*?avi[fs]"), (".avif",),
        lambda: bool(features.check("avif")), "take a build of Pillow that reads AVIF",
    ),
    ImageFormat(
        "HEIC", "HEIF", _start(rb"....ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)"), (".heic", ".heif"),
        lambda: find_spec("pillow_heif") is not None, "pip install pillow-heif",
    ),
    ImageFormat("NumPy", "", _start(rb"\x93NUMPY"), (".npy",)),
)  # fmt: skip


# What is called an image by mistake, by how it begins.
_OTHER_KINDS = {
    b"%pdf": "a PDF document",
    b"%!ps": "a PostScript drawing",
    b"<svg": "an SVG drawing",
    b"<?xml": "an SVG drawing or other XML",
    b"<!doctype": "a web page",
    b"<html": "a web page",
}


def format_of(start: bytes) -> ImageFormat | None:
    """The format of a file by its first `START_BYTES`; None if it is none of `FORMATS`."""
    return next((known for known in FORMATS if known.start.match(start[:START_BYTES])), None)


@dataclass(frozen=True)
class ImageLimits:
    """What an image may measure; judged by its header, before it is decoded.

    Attributes:
        max_bytes: Bytes of a file.
        max_pixels: Width times height.
        max_whole_pixels: The same for files other than JPEG, which can be decoded smaller, and
            HEIC, which takes 8 bytes a pixel; decoding a WebP of so many pixels takes 16.
        keep_pixels: An image of more pixels comes back scaled down by a whole factor, to bound the
            memory that it takes.
        min_side: Pixels of the shorter side.
        max_aspect: Longer side over shorter side.

    Raises:
        ConfigError: If a limit is below 1, or one of pixels is above Pillow's own.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    max_whole_pixels: int = 2**25  # an 8K screen
    keep_pixels: int = 4_194_304
    min_side: int = 16
    max_aspect: float = 20.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        most, ceiling = max(self.max_pixels, self.max_whole_pixels), Image.MAX_IMAGE_PIXELS
        if ceiling is not None and most > ceiling:
            raise ConfigError(
                f"a limit of {most} pixels is above the {ceiling} that Pillow opens "
                "(PIL.Image.MAX_IMAGE_PIXELS)"
            )

    def check_size(self, size: tuple[int, int], *, in_full: bool = False) -> None:
        """Refuse a (width, height) that is not allowed, of a file that is decoded in full or not.

        Raises:
            ImageLimitError: If it is too large, too small or too narrow.
        """
        given = f"the picture is {size[0]} x {size[1]} pixels"
        most = self.max_whole_pixels if in_full else self.max_pixels
        if math.prod(size) > most:
            raise ImageLimitError(
                f"{given}; at most {most / 1e6:.3g} million are taken: scale it down"
            )
        if min(size) < self.min_side:
            raise ImageLimitError(f"{given}; each side must have at least {self.min_side}")
        if max(size) > self.max_aspect * min(size):
            raise ImageLimitError(
                f"{given}; the longer side may be at most {self.max_aspect:g} times the shorter "
                "one: crop it"
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
    """The RGB image a person sees in a file or a PIL image. Pillow alone reads it.

    EXIF orientation is applied, transparency laid on white, an ICC profile converted to sRGB
    (a broken one is ignored), values of more than 8 bits rescaled, and of an animation the first
    frame taken. Metadata is left behind.

    Args:
        source: A file's bytes, the path of a local file, or a PIL image.
        limits: What the image may measure. `max_bytes` applies to bytes and files.
        value_range: Of values of more than 8 bits; see `find_value_range`.

    Returns:
        A new RGB image of at most `limits.keep_pixels` pixels.

    Raises:
        ImageFormatError: If it is not an image, is damaged, or is not of an accepted format.
        ImageLimitError: If it is too large, too small or too narrow.
    """
    image = _open(source, limits)
    with parser_errors():
        tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
        of_16_bits = any(";16" in str(tile[3]) for tile in tiles)
        image.load()
        if isinstance(image, TiffImageFile) and image.mode in ("LA", "RGBA"):
            image = _without_measurement(image)
        if of_16_bits and image.mode in ("LA", "RGB", "RGBA"):
            image = _stretched(image, value_range)
        profile, exif = image.info.get("icc_profile"), image.info.get("exif")
        factor = limits.shrink_factor(image.size)
        # I and F can be averaged as they are, and take much to convert.
        if factor > 1 and image.mode in ("I", "F"):
            image, factor = image.reduce(factor), 1
        plain = _to_plain_mode(image, value_range)
        seen = _on_white(plain if factor == 1 else plain.reduce(factor), profile)
        if 2 <= (orientation := _orientation(exif)) <= 8:
            turned = upright(np.asarray(seen), orientation)
            seen = Image.fromarray(np.ascontiguousarray(turned))
    seen.info = {}
    return seen


def grey_values(
    source: bytes | str | Path | Image.Image, limits: ImageLimits = DEFAULT_LIMITS
) -> npt.NDArray[Any] | None:
    """The (H, W) values of a grey image of more than 8 bits, as Pillow reads it; None for others.

    Raises:
        ImageFormatError: If it is not an image, is damaged, or is not of an accepted format.
        ImageLimitError: If it is too large, too small or too narrow.
    """
    image = _open(source, limits)
    is_number = image.mode.startswith("I") or image.mode == "F"
    if not is_number or image.info.get("transparency") is not None:
        return None
    with parser_errors():
        return upright(_numbers(image), _orientation(image.info.get("exif")))


def read_file(source: bytes | str | Path, most: int) -> bytes:
    """The first bytes of a local file, or of a file's bytes.

    Raises:
        ImageFormatError: If it is an address, no file, or cannot be read.
    """
    if isinstance(source, bytes):
        return source[:most]
    if isinstance(source, str) and (source[:5].lower() == "data:" or "://" in source):
        raise ImageFormatError(
            "addresses (http:, data: and the like) are not fetched; give a file's bytes or the "
            "path of a local file"
        )
    path = Path(source)
    try:
        # Asked before opening: opening a pipe waits for its writer.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageFormatError("that path is not a file; give the path of one picture")
        with path.open("rb") as file:
            return file.read(most)
    except FileNotFoundError as error:
        raise ImageFormatError("there is no file at that path; check it") from error
    except (OSError, ValueError) as error:
        raise ImageFormatError(
            "that file cannot be read; check the path and its permissions"
        ) from error


@contextmanager
def parser_errors() -> Iterator[None]:
    """Turn whatever a parser raises inside into an `ImageError`."""
    try:
        yield
    except MAEError:
        raise
    except MemoryError as error:
        raise ImageLimitError(
            "the picture needs more memory than is free; scale it down"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        most = DEFAULT_LIMITS.max_pixels / 1e6  # less than Pillow's own
        raise ImageLimitError(
            f"the picture has more than {most:.3g} million pixels; scale it down"
        ) from error
    # Hostile bytes have made parsers raise OSError, SyntaxError, ValueError, TypeError, KeyError,
    # EOFError, struct.error, ZeroDivisionError, AssertionError, ...
    except Exception as error:
        raise ImageFormatError(
            f"the picture is damaged or cut short; save it again as {_accepted()}"
        ) from error


def _accepted() -> str:
    names = [known.name for known in FORMATS if known.pillow and known.is_readable()]
    return f"{', '.join(names[:-1])} or {names[-1]}"


# ------------------------------------------------------------------------------- opening


class _Jpeg(JpegImageFile):
    """A JPEG whose EXIF data and list of further images are not parsed.

    Pillow parses the former to find the resolution, and copies what each tag claims: gigabytes, if
    all tags claim the same bytes (`test_a_jpegs_exif_is_never_parsed_in_full`). It parses the
    latter where `Image.open` opens the file.
    """

    def _read_dpi_from_exif(self) -> None:
        pass


def _open(source: bytes | str | Path | Image.Image, limits: ImageLimits) -> Image.Image:
    """An image with its size checked, of a file not yet decoded."""
    if isinstance(source, Image.Image):
        limits.check_size(source.size)
        return source
    if not isinstance(source, bytes | str | Path):
        raise ImageFormatError(
            f"a {type(source).__name__} is not a picture; give a file's bytes, a path, a PIL "
            "picture or an array"
        )
    data = read_file(source, limits.max_bytes + 1)
    if len(data) > limits.max_bytes:
        raise ImageLimitError(
            f"the file has more than {limits.max_bytes / 2**20:.3g} MiB; make it smaller"
        )
    known = format_of(data)
    if known is None or not known.pillow or not known.is_readable():
        what = f"this is {_kind(data, known)}" if data else "the file is empty"
        raise ImageFormatError(f"{what}; give a picture as {_accepted()}")
    with parser_errors():
        if known.name in ("TIFF", "AVIF", "HEIC"):
            _check_tags(data, limits)
        if known.name == "TIFF":
            _check_tiff(data)
        if known.name == "HEIC":
            importlib.import_module("pillow_heif").register_heif_opener()
        file = io.BytesIO(data)
        is_jpeg = known.name == "JPEG"
        image = _Jpeg(file) if is_jpeg else Image.open(file, formats=[known.pillow])
        limits.check_size(image.size, in_full=known.name not in ("JPEG", "HEIC"))
        if is_jpeg:
            factor = limits.shrink_factor(image.size)
            image.draft(None, (image.width // factor, image.height // factor))
        if known.name == "PNG":
            _scale_transparency(image)
    return image


def _kind(data: bytes, known: ImageFormat | None) -> str:
    """What a file is that is not accepted, in words."""
    if known and known.remedy:
        return f"an {known.name} file, which this machine does not read ({known.remedy})"
    if known:
        return f"a {known.name} file"
    if data[4:8] == b"ftyp":
        return "a video"
    head = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kinds = (kind for start, kind in _OTHER_KINDS.items() if head.startswith(start))
    return next(kinds, "not a picture of an accepted format")


class TiffTag(NamedTuple):
    """One entry of a TIFF directory.

    Attributes:
        number: Of the tag.
        kind: Type of its values.
        length: How many there are.
        value: The first of them, or where in the TIFF they are.
    """

    number: int
    kind: int
    length: int
    value: int


def tiff_tags(data: bytes, start: int = 0, offset: int | None = None) -> Iterator[TiffTag]:
    """The entries of a TIFF directory as they are stored, as far as `data` goes.

    Args:
        data: Bytes that hold a TIFF, or EXIF data.
        start: Where in them the TIFF starts.
        offset: Where in the TIFF the directory starts; its first one if not given.
    """
    order: Literal["little", "big"] = "little" if data[start : start + 1] == b"I" else "big"

    def number(at: int, width: int) -> int:
        return int.from_bytes(data[at : at + width], order)

    is_big = data[start + 2 : start + 3] == b"+"  # BigTIFF
    word = 8 if is_big else 4
    at = start + (number(start + word, word) if offset is None else offset)
    count = number(at, 8 if is_big else 2)
    at, size = at + (8 if is_big else 2), 4 + 2 * word
    for entry in range(at, min(at + count * size, len(data)), size):
        kind, values = number(entry + 2, 2), number(entry + 4, word)
        # A single number may be shorter than its field; what follows it there means nothing.
        width = _NUMBER_BYTES.get(kind, word) if values == 1 else word
        yield TiffTag(number(entry, 2), kind, values, number(entry + 4 + word, width))


def _orientation(exif: bytes | None) -> int:
    """The EXIF orientation; 1 if there is none or the data is damaged."""
    data = (exif or b"").removeprefix(b"Exif\0\0")
    tags = tiff_tags(data) if _TIFF_START.match(data) else ()
    return next((tag.value for tag in tags if tag.number == Tag.Orientation), 1)


def _check_tags(data: bytes, limits: ImageLimits) -> None:
    """Refuse a file whose TIFF tags take more memory than a file may.

    Pillow before 13 copies what each tag claims, and all tags may claim the same bytes (`*.tiff`
    in `tests/security/hostile_pictures.py`).
    """
    taken = 0
    for match in _TIFF_START.finditer(data):
        pending: list[int | None] = [None]
        while pending and taken <= limits.max_bytes:
            taken += _TAG_BYTES  # an empty directory takes its time, too
            for tag in tiff_tags(data, match.start(), pending.pop()):
                is_text = tag.kind in _TEXT_TYPES
                taken += _TAG_BYTES * (1 if is_text else max(tag.length, 1))
                taken += min(tag.length, len(data)) if is_text else 0
                if tag.number in TiffTags.TAGS_V2_GROUPS:
                    pending.append(tag.value)
                if taken > limits.max_bytes:
                    break
        if taken > limits.max_bytes:
            raise ImageLimitError(
                "the file holds far more hidden data than its picture needs; save it again as PNG"
            )


def _check_tiff(data: bytes) -> None:
    """Refuse a TIFF that Pillow cannot read, or reads wrongly.

    Pillow before 13 reads past the ends of compressed tiles and YCbCr rows, and shows memory as it
    finds it where a JPEG or fax strip ends early (GHSA-462x-pgg6-55fp, GHSA-c6hw-5grf-ff96,
    GHSA-q45j-58j2-45rg). Colours of 16 bits in planes come out as noise.
    """
    tags = ImageFileDirectory_v2(data[: 16 if data[2:3] == b"+" else 8])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    colour, compression = tags.get(Tag.PhotometricInterpretation), tags.get(Tag.Compression, 1)
    is_tiled = Tag.TileWidth in tags or Tag.TileLength in tags
    sound = compression in SOUND_COMPRESSIONS and not is_tiled and colour != _YCBCR
    if compression != 1 and not sound:
        raise ImageFormatError(
            "TIFF files are taken uncompressed, or in strips of RGB or grey compressed by LZW or "
            "deflate; save it as one of those, or as PNG"
        )
    samples, planar = tags.get(Tag.SamplesPerPixel, 1), tags.get(Tag.PlanarConfiguration, 1)
    bits, kind = tags.get(Tag.BitsPerSample, (1,))[0], tags.get(Tag.SampleFormat, (1,))[0]
    if samples == 1:
        known = bits <= 32
    elif colour in (0, 1):  # grey
        known = samples == 2 and bits == 8 and tags.get(Tag.ExtraSamples, (0,))[0] != 0
    else:
        known = kind == 1 and bits <= 16 and samples <= 4 and (planar == 1 or bits == 8)
    if not known:
        dtype = {2: "signed ", 3: "floating-point "}.get(kind, "")
        raise ImageFormatError(
            f"the TIFF has {samples} {'band' if samples == 1 else 'bands'} of {bits}-bit {dtype}"
            f"values{'' if planar == 1 else ' in planes'}; save it as RGB or grey of 8 bits"
        )


# ------------------------------------------------------------------------------- what is seen


def _scale_transparency(image: ImageFile.ImageFile) -> None:
    """Bring a PNG's transparent colour from the file's bit depth to that of Pillow's pixels."""
    value, rawmode = image.info.get("transparency"), image.tile[0].args
    if value is not None and rawmode in ("L;2", "L;4"):
        image.info["transparency"] = value * {"L;2": 85, "L;4": 17}[rawmode]
    elif value is not None and rawmode == "RGB;16B":
        image.info["transparency"] = tuple(channel >> 8 for channel in value)


def _without_measurement(image: Image.Image) -> Image.Image:
    """A TIFF without its last band, if that is called transparency and is near infrared, say."""
    histogram = image.getchannel("A").histogram()
    if histogram[0] + histogram[255] >= _LEAST_EXTREME * image.width * image.height:
        return image
    return image.convert(image.mode.removesuffix("A"))


def _stretched(image: Image.Image, value_range: RangeSpec) -> Image.Image:
    """Colours or grey of 16 bits by their range, as far as Pillow keeps them: the upper 8 bits."""
    count = len(image.getbands()) - ("A" in image.getbands())
    colours = np.asarray(image)[..., :count]
    if 0 < colours.max() < _LOST_IN_16_BITS:
        raise ImageFormatError(
            "the picture has 16 bits a value and uses the lower 12 or fewer; save it as 8 bits, or "
            "scale its values to 0 to 65535"
        )
    step = math.isqrt(max(colours.size // _SAMPLED_VALUES, 1))
    sample = colours[::step, ::step].astype(np.uint16) * 257
    kept = np.arange(256, dtype=np.uint16).repeat(count).reshape(1, 256, count) * 257
    table = to_levels(kept, find_value_range([sample], value_range))[0].T.ravel().tolist()
    return image.point(table + (list(range(256)) if "A" in image.getbands() else []))


def _to_plain_mode(image: Image.Image, value_range: RangeSpec) -> Image.Image:
    """A loaded image as L, RGB, CMYK or RGBA."""
    if image.mode.startswith("I") or image.mode == "F":
        numbers = _numbers(image)
        values = numbers[:, :, None]
        grey = Image.fromarray(to_levels(values, find_value_range([values], value_range))[:, :, 0])
        transparent = image.info.get("transparency")
        if transparent is None:
            return grey
        rgba = grey.convert("RGBA")
        rgba.putalpha(Image.fromarray(np.where(numbers == transparent, 0, 255).astype(np.uint8)))
        return rgba
    if image.mode == "RGBA" or image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _numbers(image: Image.Image) -> npt.NDArray[Any]:
    """The (H, W) values of an image of grey of more than 8 bits."""
    numbers = np.asarray(image)
    if isinstance(image, TiffImageFile) and image.mode == "I;16":
        # Pillow hands these on as they are stored.
        if image.tag_v2.get(Tag.BitsPerSample) == (12,):
            numbers = numbers << 4 | numbers >> 8
        if image.tag_v2.get(Tag.PhotometricInterpretation) == 0:  # white is zero
            numbers = 65535 - numbers
    # Pillow's 32 bits hold what a file has in 16.
    is_wide = numbers.dtype.kind != "i" or numbers.min() < 0 or numbers.max() > 65535
    return numbers if is_wide else numbers.astype(np.uint16)


def _on_white(plain: Image.Image, profile: bytes | None) -> Image.Image:
    """An image of a plain mode as RGB; transparency shows white."""
    if plain.mode != "RGBA":
        return to_srgb(plain, profile)
    white = Image.new("RGB", plain.size, "white")
    white.paste(to_srgb(plain.convert("RGB"), profile), mask=plain.getchannel("A"))
    return white


def to_srgb(colour: Image.Image, profile: bytes | None) -> Image.Image:
    """An L, RGB or CMYK image as RGB, through its ICC profile where that makes sense."""
    if profile and len(profile) <= _MAX_PROFILE_BYTES:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(colour, source, target, outputMode="RGB")
            assert converted is not None  # None is for inPlace=True
            return converted
        # A profile that is broken, or of another colour space than the image, costs some
        # fidelity; viewers ignore it too.
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    return colour.convert("RGB")
