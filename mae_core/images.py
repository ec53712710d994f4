"""Pictures in and out: bytes -> PIL -> tensor -> PIL.

`decode_image` turns whatever a person may hand over (a file's bytes, a path, a PIL picture, an
array) into the RGB picture that the person sees; `fit_image` brings it to whole patches;
`to_tensor` and `to_pil` go to the model's pixels and back. What is no picture but has the
model's own channels (`is_channels`) goes in by `channels_to_tensor` and is looked at by
`viewable`.

Files come from strangers. Size is judged by the header, before a pixel is decoded; only the
parsers of ordinary photo formats ever run; a file that hides far more work than its picture
needs is refused; and whatever a parser does with hostile bytes, the caller sees an
`ImageFormatError` or an `ImageLimitError`, in a sentence that repeats neither the file's name
nor the parser's words.

Pillow's warnings (say, about odd TIFF tags) are left to the process's own filters: silencing
them here would change a global of every thread. A filter that raises them makes such a
picture an `ImageError`.
"""

import importlib
import importlib.util
import io
import itertools
import math
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageCms, ImageFile, features
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from mae_core.errors import (
    ConfigError,
    ImageError,
    ImageFormatError,
    ImageLimitError,
    MAEError,
)
from mae_core.value_range import RangeSpec, find_value_range, to_levels

FITS = ("crop", "squash", "whole")

# Pillow takes MPO, the format of many phones' photos, for a JPEG.
_FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
if features.check("avif"):  # not every build of Pillow has it
    _FORMATS.append("AVIF")
if importlib.util.find_spec("pillow_heif"):
    _FORMATS.append("HEIF")
_NAMES = [{"WEBP": "WebP", "HEIF": "HEIC"}.get(name, name) for name in _FORMATS]
_ACCEPTED = f"{', '.join(_NAMES[:-1])} or {_NAMES[-1]}"

# How files of the accepted formats begin (AVIF and HEIC apart: see `_other_kind`), and what is
# said of brands of the last two, from the ninth byte.
_ACCEPTED_STARTS = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II", b"MM")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# What people hand over by mistake, by how it begins, so that the error can name it.
_OTHER_KINDS = (
    (b"%pdf", "a PDF document"),
    (b"%!ps", "a PostScript drawing"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an SVG drawing or other XML"),
    (b"<!doctype", "a web page"),
    (b"<html", "a web page"),
)

# A whole frame's long side is at most this many times its short side.
_WHOLE_MAX_ASPECT = 4

# How to turn a stored picture upright, by its EXIF orientation (1 is upright already).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Modes without transparency that an ICC profile may describe.
_COLOUR_MODES = ("L", "RGB", "CMYK")
_MAX_PROFILE_BYTES = 4 * 2**20

# Hidden work (see `_check_hidden_work`). A progressive JPEG has about ten scans; a GIF's first
# frame follows a handful of extension blocks; a TIFF of ten thousand strips has twice as many
# tag values. Each bound is far above those, and at most a few seconds of work.
_MAX_JPEG_SCANS = 50
_MAX_GIF_BLOCKS = 8192
_MAX_TAG_VALUES = 2**17

# TIFF tags (EXIF data is a TIFF without pixels).
_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION = 258, 259, 262, 274
_SAMPLES_PER_PIXEL, _PLANAR, _SAMPLE_FORMAT, _EXTRA_SAMPLES = 277, 284, 339, 338
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_SUB_DIRECTORIES = (34665, 34853, 40965)
_TAG_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8,
                   13: 4, 16: 8}  # fmt: skip
_NUMBER_TYPES = (3, 4)
_TEXT_TYPES = (1, 2, 7)  # read as one string of bytes, not as a tuple of numbers
TIFF_START = re.compile(rb"(?:II|MM)(?:[*+]\0|\0[*+])")

# TIFF compressions and colours: what Pillow reads by itself, and what it has libtiff read.
_UNCOMPRESSED, _YCBCR = 1, 6
SOUND_COMPRESSIONS = (_UNCOMPRESSED, 5, 8, 32773, 32946)  # LZW, deflate, PackBits, deflate

# Transparency is mostly all or nothing; a band of measurements hardly ever is.
_LEAST_EXTREME = 0.5

# Of 16-bit colours Pillow keeps the upper 8 bits: values of 12 bits and fewer are below this then.
_LOST_IN_16_BITS = 16

# Values that a range is found in.
_SAMPLE_VALUES = 2**20

# A JPEG marker that starts a segment. 0xFF and 0x00 are a coded 0xFF; the others stand alone.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
# Segments whose tags Pillow would read while it opens the file. Their markers never occur
# within coded pixels.
_JPEG_EXIF = re.compile(rb"(\xff\xe1..)Exif\0\0", re.DOTALL)
_JPEG_MPF = re.compile(rb"(\xff\xe2..)MPF\0", re.DOTALL)


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may measure; judged by its header, before it is decoded.

    Attributes:
        max_bytes: Bytes of a file.
        max_pixels: Width times height.
        max_whole_pixels: The same for files other than JPEG, which can be decoded smaller, and
            HEIC, which takes 8 bytes a pixel; decoding a WebP of so many pixels takes 16.
        keep_pixels: A picture of more pixels comes back scaled down by a whole factor, to
            bound the memory that it takes.
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


DEFAULT_LIMITS = ImageLimits()

# What `decode_image` takes.
ImageSource: TypeAlias = bytes | str | Path | Image.Image | npt.NDArray[Any]

# A picture of a model's channels: PIL for one or three, else (H, W, C) uint8.
Picture: TypeAlias = Image.Image | npt.NDArray[np.uint8]


def decode_image(
    source: ImageSource,
    limits: ImageLimits = DEFAULT_LIMITS,
    *,
    value_range: RangeSpec = "auto",
) -> Image.Image:
    """The RGB picture a person sees in a file, a PIL picture or an array.

    EXIF orientation is applied, transparency laid on white, an ICC profile converted to sRGB
    (a broken one is ignored), values of more than 8 bits rescaled, and of an animation the first
    frame taken. Metadata is left behind.

    Args:
        source: A file's bytes; the path of a local file; a PIL picture; or an array (H, W),
            (H, W, 1), (H, W, 3) or (H, W, 4), the fourth being transparency, of uint8, uint16 or
            floats.
        limits: What the picture may measure. `max_bytes` applies to bytes and files.
        value_range: Of values of more than 8 bits; see `find_value_range`.

    Returns:
        A new RGB picture of at most `limits.keep_pixels` pixels.

    Raises:
        ImageFormatError: If it is not a picture, is damaged, or is not of an accepted format.
        ImageLimitError: If it is too large, too small or too narrow.
    """
    if isinstance(source, Image.Image):
        check_size(source.size, limits.max_pixels, limits)
        return _see(source, limits, value_range)
    if isinstance(source, np.ndarray):
        return _see(_from_array(source, limits, value_range), limits, value_range)
    if isinstance(source, bytes | str | Path):
        return _see(_open(_bytes_of(source, limits), limits), limits, value_range)
    raise ImageFormatError(
        f"a {type(source).__name__} is not a picture; give a file's bytes, a path, a PIL picture "
        "or an array"
    )


def _bytes_of(source: bytes | str | Path, limits: ImageLimits) -> bytes:
    return source if isinstance(source, bytes) else read_file(source, limits.max_bytes + 1)


def stored_numbers(
    source: bytes | str | Path | Image.Image, limits: ImageLimits = DEFAULT_LIMITS
) -> npt.NDArray[Any] | None:
    """The values of a grey picture of more than 8 bits, (H, W) upright; None for others.

    Raises:
        ImageFormatError: If it is not a picture, is damaged, or is not of an accepted format.
        ImageLimitError: If it is too large, too small or too narrow.
    """
    if isinstance(source, Image.Image):
        check_size(source.size, limits.max_pixels, limits)
        image = source
    else:
        image = _open(_bytes_of(source, limits), limits)
    is_number = image.mode.startswith("I") or image.mode == "F"
    if not is_number or image.info.get("transparency") is not None:
        return None
    with parser_errors():
        numbers = _numbers(image)
        turn = _UPRIGHT.get(_orientation(image.info.get("exif") or b""))
        # Transposed by Pillow's own words, as numbers.
        return numbers if turn is None else np.asarray(Image.fromarray(numbers).transpose(turn))


def read_file(source: str | Path, most: int) -> bytes:
    """The first bytes of a local file.

    Raises:
        ImageFormatError: If it is an address, no file, or cannot be read.
    """
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


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    """A file's picture with its size checked, not yet decoded."""
    if not data:
        raise ImageFormatError(f"the file is empty; give a picture as {_ACCEPTED}")
    if len(data) > limits.max_bytes:
        raise ImageLimitError(
            f"the file has more than {limits.max_bytes / 2**20:.3g} MiB; make it smaller"
        )
    with parser_errors(data):
        _check_hidden_work(data, limits)
        if TIFF_START.match(data):
            _check_tiff(data)
        image = _identify(data, limits)
        in_full = image.format not in ("JPEG", "HEIF")
        check_size(image.size, limits.max_whole_pixels if in_full else limits.max_pixels, limits)
        if image.format == "JPEG":
            _prepare_jpeg(image, data, limits)
        _scale_transparency(image)
    return image


def _identify(data: bytes, limits: ImageLimits) -> ImageFile.ImageFile:
    if "HEIF" in _FORMATS and data[4:8] == b"ftyp":
        importlib.import_module("pillow_heif").register_heif_opener()
    try:
        return Image.open(io.BytesIO(_without_jpeg_tags(data)), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageLimitError(
            f"the picture has more than {limits.max_pixels / 1e6:.3g} million pixels; scale it down"
        ) from error


def _prepare_jpeg(image: ImageFile.ImageFile, data: bytes, limits: ImageLimits) -> None:
    """Give a JPEG back the EXIF data that its parser did not see, and have it decoded small."""
    image.info["exif"] = _jpeg_exif(data)
    factor = shrink_factor(image.size, limits)
    image.draft(None, (image.width // factor, image.height // factor))


@contextmanager
def parser_errors(data: bytes | None = None) -> Iterator[None]:
    """Turn whatever a parser raises inside into an `ImageError`; `data` may be another kind."""
    try:
        yield
    except MAEError:
        raise
    except MemoryError as error:
        raise ImageLimitError(
            "the picture needs more memory than is free; scale it down"
        ) from error
    # Hostile bytes have made parsers raise OSError, SyntaxError, ValueError, TypeError, KeyError,
    # EOFError, struct.error, ZeroDivisionError, AssertionError, ...
    except Exception as error:
        kind = _other_kind(data) if data else None
        if kind:
            raise ImageFormatError(f"this is {kind}; give a picture as {_ACCEPTED}") from error
        raise ImageFormatError(
            f"the picture is damaged or cut short; save it again as {_ACCEPTED}"
        ) from error


def _other_kind(data: bytes) -> str | None:
    """What a file is, in a person's words; None if it begins as an accepted format does."""
    if data.startswith(_ACCEPTED_STARTS):
        return None
    if data[4:8] == b"ftyp":
        if b"avif" in data[8:64]:
            return None
        if data[8:12] in _HEIC_BRANDS:
            return None if "HEIF" in _FORMATS else "an HEIC photo, which needs pillow-heif"
        return "a video"
    head = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for prefix, kind in _OTHER_KINDS:
        if head.startswith(prefix):
            return kind
    return "not a picture of an accepted format"


def check_size(size: tuple[int, int], max_pixels: int, limits: ImageLimits) -> None:
    """Refuse a picture of a size, (width, height), that the limits do not allow.

    Raises:
        ImageLimitError: If it is too large, too small or too narrow.
    """
    width, height = size
    given = f"the picture is {width} x {height} pixels"
    if width * height > max_pixels:
        raise ImageLimitError(
            f"{given}; at most {max_pixels / 1e6:.3g} million are taken: scale it down"
        )
    if min(size) < limits.min_side:
        raise ImageLimitError(f"{given}; each side must have at least {limits.min_side}")
    if max(size) > limits.max_aspect * min(size):
        raise ImageLimitError(
            f"{given}; the longer side may be at most {limits.max_aspect:g} times the shorter "
            "one: crop it"
        )


# Hidden work: a small file can cost its parser minutes or gigabytes whatever its width and height.


def _check_hidden_work(data: bytes, limits: ImageLimits) -> None:
    """Refuse a file that costs its parser far more than its picture's size says.

    Raises:
        ImageLimitError: If it has dozens of JPEG scans, thousands of GIF extensions, TIFF
            or EXIF tags that together claim more than a file may hold, or TIFF tiles larger than
            a picture.
    """
    if data.startswith(b"\xff\xd8"):
        scans = (marker for marker, _ in _jpeg_segments(data) if marker == b"\xda")
        excessive = len(list(itertools.islice(scans, _MAX_JPEG_SCANS + 1))) > _MAX_JPEG_SCANS
    elif data.startswith(b"GIF8"):
        excessive = _count_gif_blocks(data) > _MAX_GIF_BLOCKS
    elif data[4:8] == b"ftyp" or TIFF_START.match(data):
        excessive = _tags_exceed(data, limits)
    else:
        excessive = False
    if excessive:
        raise ImageLimitError(
            "the file holds far more hidden data than its picture needs; save it again as PNG"
        )


def _jpeg_segments(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Marker and content of a JPEG's segments, to the end of its first picture."""
    at = 2
    while (found := _JPEG_MARKER.search(data, at)) and found[1] != b"\xd9":
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
        yield found[1], data[found.end() + 2 : at]


def _jpeg_exif(data: bytes) -> bytes:
    """A JPEG's own EXIF data, not that of a picture behind it."""
    for marker, content in _jpeg_segments(data):
        if marker == b"\xe1" and content.startswith(b"Exif\0\0"):
            return content
    return b""


def _count_gif_blocks(data: bytes) -> int:
    """Extension blocks before a GIF's first frame, counted to just above the limit.

    Pillow joins a comment's blocks one by one, in time quadratic in their number.
    """
    has_palette, palette_bits = data[10] & 0x80, (data[10] & 7) + 1
    at, count = 13 + (3 * 2**palette_bits if has_palette else 0), 0
    while data[at : at + 1] == b"!" and count <= _MAX_GIF_BLOCKS:
        at += 2
        while at < len(data) and data[at] and count <= _MAX_GIF_BLOCKS:
            at += data[at] + 1
            count += 1
        at += 1
        count += 1
    return count


class _Tag(NamedTuple):
    """One entry of a TIFF directory.

    Attributes:
        tag: Its number.
        kind: The type of its values.
        values: How many there are.
        number: The first of them, or where in the TIFF they are.
    """

    tag: int
    kind: int
    values: int
    number: int


def _directory(data: bytes, start: int, offset: int | None = None) -> Iterator[_Tag]:
    """Entries of a TIFF directory, as far as `data` goes.

    Args:
        data: Bytes that hold a TIFF.
        start: Where in them the TIFF starts.
        offset: Where in the TIFF the directory starts; its first one if not given.
    """
    order: Literal["little", "big"] = "little" if data[start : start + 1] == b"I" else "big"
    big = data[start + 2 : start + 3] == b"+"  # BigTIFF
    word, number_bytes = (8, 8) if big else (4, 2)
    if offset is None:
        offset = int.from_bytes(data[start + word : start + 2 * word], order)
    at = start + offset
    number = int.from_bytes(data[at : at + number_bytes], order)
    at += number_bytes
    size = 4 + 2 * word
    for entry in range(at, min(at + number * size, len(data)), size):
        tag = int.from_bytes(data[entry : entry + 2], order)
        kind = int.from_bytes(data[entry + 2 : entry + 4], order)
        values = int.from_bytes(data[entry + 4 : entry + 4 + word], order)
        # A single value may be shorter than its field; what follows it there means nothing.
        width = min(_TAG_TYPE_BYTES.get(kind, word), word) if values == 1 else word
        number = int.from_bytes(data[entry + 4 + word : entry + 4 + word + width], order)
        yield _Tag(tag, kind, values, number)


def _tags_exceed(data: bytes, limits: ImageLimits) -> bool:
    """Whether the tags of the TIFFs in a file claim more than a file of pictures may hold.

    Pillow copies what each tag claims, and tags may all claim the same bytes.
    """
    claimed = values = 0
    for match in TIFF_START.finditer(data):
        pending: list[int | None] = [None]
        while pending:
            tile_pixels = 1
            values += 1  # a directory without entries takes its time too
            if values > _MAX_TAG_VALUES:
                return True
            for entry in _directory(data, match.start(), pending.pop()):
                claimed += min(entry.values * _TAG_TYPE_BYTES.get(entry.kind, 0), len(data))
                values += 1 if entry.kind in _TEXT_TYPES else max(entry.values, 1)
                if entry.tag in _SUB_DIRECTORIES:
                    pending.append(entry.number)
                if entry.tag in (_TILE_WIDTH, _TILE_LENGTH):
                    tile_pixels *= entry.number
                excessive = claimed > limits.max_bytes or values > _MAX_TAG_VALUES
                if excessive or tile_pixels > limits.max_whole_pixels:
                    return True
    return False


def _check_tiff(data: bytes) -> None:
    """Refuse a TIFF that Pillow cannot read, or reads wrongly.

    Pillow before 13 reads past the ends of compressed tiles and YCbCr rows, and shows memory as it
    finds it where a JPEG or fax strip ends early (GHSA-462x-pgg6-55fp, GHSA-c6hw-5grf-ff96,
    GHSA-q45j-58j2-45rg). Every entry of a tag counts: Pillow takes the last, libtiff the first.
    Colours of 16 bits in planes come out as noise.

    Raises:
        ImageFormatError: If it is compressed, and not in strips of an ordinary compression; or its
            bands, bits or planes are others than those of photographs.
    """
    tags = list(_directory(data, 0))
    deciding = [tag for tag in tags if tag.tag in (_COMPRESSION, _PHOTOMETRIC)]
    compressions = {tag.number for tag in deciding if tag.tag == _COMPRESSION}
    colours = {tag.number for tag in deciding if tag.tag == _PHOTOMETRIC}
    tiled = any(tag.tag in (_TILE_WIDTH, _TILE_LENGTH) for tag in tags)
    plain = all(tag.values == 1 and tag.kind in _NUMBER_TYPES for tag in deciding)
    strips = compressions.issubset(SOUND_COMPRESSIONS) and not tiled and _YCBCR not in colours
    if not plain or not (compressions <= {_UNCOMPRESSED} or strips):
        raise ImageFormatError(
            "TIFF files are taken uncompressed, or in strips of RGB or grey compressed by LZW or "
            "deflate; save it as one of those, or as PNG"
        )
    samples, bits, planar, kind, extra = (
        _first_value(data, tags, tag, default)
        for tag, default in (
            (_SAMPLES_PER_PIXEL, 1), (_BITS_PER_SAMPLE, 1), (_PLANAR, 1), (_SAMPLE_FORMAT, 1),
            (_EXTRA_SAMPLES, 0),
        )
    )  # fmt: skip
    is_grey = not colours.isdisjoint((0, 1))
    if samples == 1:
        known = bits <= 32
    elif is_grey:
        known = samples == 2 and bits == 8 and extra != 0
    else:
        known = kind == 1 and bits <= 16 and samples <= 4 and (planar == 1 or bits == 8)
    if not known:
        numbers = {2: "signed ", 3: "floating-point "}.get(kind, "")
        planes = " in planes" if planar != 1 else ""
        raise ImageFormatError(
            f"the TIFF has {samples} {'bands' if samples != 1 else 'band'} of {bits}-bit {numbers}"
            f"values{planes}; save it as RGB or grey of 8 bits"
        )


def _first_value(data: bytes, tags: Sequence[_Tag], number: int, default: int) -> int:
    """The first value of a tag of a TIFF."""
    order: Literal["little", "big"] = "little" if data[:1] == b"I" else "big"
    word = 8 if data[2:3] == b"+" else 4
    for tag in tags:
        width = _TAG_TYPE_BYTES.get(tag.kind, word)
        if tag.tag != number or tag.values == 1:
            continue
        inline = tag.number.to_bytes(word, order)
        stored = inline if tag.values * width <= word else data[tag.number :]
        return int.from_bytes(stored[:width], order)
    return next((tag.number for tag in tags if tag.tag == number), default)


def _without_jpeg_tags(data: bytes) -> bytes:
    """A JPEG with its EXIF and multi-picture tags renamed, so that no parser reads them."""
    if not data.startswith(b"\xff\xd8"):
        return data
    return _JPEG_MPF.sub(rb"\1____", _JPEG_EXIF.sub(rb"\1______", data))


# What a person sees.


def _orientation(exif: bytes) -> int:
    """The EXIF orientation, 1..8; 1 where the data says none or is damaged."""
    exif = exif.removeprefix(b"Exif\0\0")
    if not TIFF_START.match(exif):
        return 1
    for entry in _directory(exif, 0):
        if entry.tag == _ORIENTATION:
            return entry.number
    return 1


def _scale_transparency(image: ImageFile.ImageFile) -> None:
    """Bring a PNG's transparent colour from the file's bit depth to that of Pillow's pixels."""
    value = image.info.get("transparency")
    if image.format != "PNG" or value is None:
        return
    rawmode = image.tile[0].args
    if rawmode in ("L;2", "L;4"):
        image.info["transparency"] = value * {"L;2": 85, "L;4": 17}[rawmode]
    elif rawmode == "RGB;16B":
        image.info["transparency"] = tuple(channel >> 8 for channel in value)


def shrink_factor(size: tuple[int, int], limits: ImageLimits) -> int:
    """The smallest whole factor that brings a picture to at most `keep_pixels`."""
    factor = 1
    while math.ceil(size[0] / factor) * math.ceil(size[1] / factor) > limits.keep_pixels:
        factor += 1
    return factor


def _shrink(image: Image.Image, factor: int) -> Image.Image:
    return image if factor == 1 else image.reduce(factor)


def _see(image: Image.Image, limits: ImageLimits, value_range: RangeSpec) -> Image.Image:
    """An opened picture of an allowed size, decoded to what a person sees."""
    with parser_errors():
        tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
        of_16_bits = any(";16" in str(tile[3]) for tile in tiles)
        image.load()
        if isinstance(image, TiffImageFile) and image.mode in ("LA", "RGBA"):
            image = _without_measurement(image)
        if of_16_bits and image.mode in ("LA", "RGB", "RGBA"):
            image = _stretched(image, value_range)
        factor = shrink_factor(image.size, limits)
        if image.mode in ("I", "F"):  # can be averaged as they are, and take much to convert
            plain = _to_plain_mode(_shrink(image, factor), value_range)
        else:
            plain = _shrink(_to_plain_mode(image, value_range), factor)
        rgb = _on_white(plain, image.info.get("icc_profile"))
        turn = _UPRIGHT.get(_orientation(image.info.get("exif") or b""))
        seen = rgb if turn is None else rgb.transpose(turn)
    seen.info = {}
    return seen


def _without_measurement(image: Image.Image) -> Image.Image:
    """A TIFF without its last band, if that is called transparency and is near infrared, say."""
    histogram = image.getchannel("A").histogram()
    if histogram[0] + histogram[255] >= _LEAST_EXTREME * image.width * image.height:
        return image
    seen = image.convert(image.mode.removesuffix("A"))
    seen.info = image.info
    return seen


def _stretched(image: Image.Image, value_range: RangeSpec) -> Image.Image:
    """Colours or grey of 16 bits by their range, as far as Pillow keeps them: the upper 8 bits.

    Raises:
        ImageFormatError: If too little is left of them.
    """
    count = len(image.getbands()) - ("A" in image.getbands())
    colours = np.asarray(image)[..., :count]
    if 0 < colours.max() < _LOST_IN_16_BITS:
        raise ImageFormatError(
            "the picture has 16 bits a value and uses the lower 12 or fewer; save it as 8 bits, or "
            "scale its values to 0 to 65535"
        )
    step = math.isqrt(max(colours.size // _SAMPLE_VALUES, 1))
    sample = colours[::step, ::step].astype(np.uint16) * 257
    kept = np.arange(256, dtype=np.uint16).repeat(count).reshape(1, 256, count) * 257
    table = to_levels(kept, find_value_range([sample], value_range))[0].T.ravel().tolist()
    stretched = image.point(table + (list(range(256)) if "A" in image.getbands() else []))
    stretched.info = image.info
    return stretched


def _to_plain_mode(image: Image.Image, value_range: RangeSpec) -> Image.Image:
    """A loaded picture as L, RGB, CMYK or RGBA."""
    if image.mode.startswith("I") or image.mode == "F":
        return _from_numbers(image, value_range)
    if image.mode == "RGBA" or (image.mode in _COLOUR_MODES and not image.has_transparency_data):
        return image
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode == "1" else "RGB")


def _from_numbers(image: Image.Image, value_range: RangeSpec) -> Image.Image:
    """A picture of 16-bit, 32-bit or floating-point grey as L or, with transparency, RGBA."""
    numbers = _numbers(image)
    grey = Image.fromarray(_to_bytes(numbers, value_range))
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey
    rgba = grey.convert("RGBA")
    rgba.putalpha(Image.fromarray(np.where(numbers == transparent, 0, 255).astype(np.uint8)))
    return rgba


def _numbers(image: Image.Image) -> npt.NDArray[Any]:
    """What a picture of grey of more than 8 bits stores."""
    numbers = np.asarray(image)
    if isinstance(image, TiffImageFile) and image.mode == "I;16":
        # Pillow hands these on as they are stored.
        if image.tag_v2.get(_BITS_PER_SAMPLE) == (12,):
            numbers = numbers << 4 | numbers >> 8
        if image.tag_v2.get(_PHOTOMETRIC) == 0:  # white is zero
            numbers = 65535 - numbers
    # Pillow's 32 bits hold what a file has in 16.
    is_wide = numbers.dtype.kind != "i" or numbers.min() < 0 or numbers.max() > 65535
    return numbers if is_wide else numbers.astype(np.uint16)


def _to_bytes(numbers: npt.NDArray[Any], value_range: RangeSpec) -> npt.NDArray[np.uint8]:
    """(H, W) or (H, W, B) numbers as 0..255, all bands by one range."""
    if numbers.dtype == np.uint8:
        return numbers
    column = numbers.reshape(len(numbers), -1, 1)
    levels = to_levels(column, find_value_range([column], value_range))
    return levels.reshape(numbers.shape)


def _on_white(plain: Image.Image, profile: bytes | None) -> Image.Image:
    """A picture of a plain mode as RGB; transparency shows white."""
    if plain.mode != "RGBA":
        return to_srgb(plain, profile)
    white = Image.new("RGB", plain.size, "white")
    white.paste(to_srgb(plain.convert("RGB"), profile), mask=plain.getchannel("A"))
    return white


def to_srgb(colour: Image.Image, profile: bytes | None) -> Image.Image:
    """An L, RGB or CMYK picture as RGB, through its ICC profile where that makes sense."""
    if profile and len(profile) <= _MAX_PROFILE_BYTES:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(colour, source, target, outputMode="RGB")
            assert converted is not None  # None is for inPlace=True
            return converted
        # A profile that is broken, or of another colour space than the picture, costs some
        # fidelity; viewers ignore it too.
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    return colour.convert("RGB")


def _from_array(
    array: npt.NDArray[Any], limits: ImageLimits, value_range: RangeSpec
) -> Image.Image:
    """An array as a PIL picture of mode L, RGB or RGBA."""
    shape_ok = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not shape_ok or not (array.dtype in (np.uint8, np.uint16) or array.dtype.kind == "f"):
        raise ImageFormatError(
            f"this array is {array.dtype} of shape {array.shape}; give (H, W), (H, W, 3) or "
            "(H, W, 4) of uint8, uint16 or floats"
        )
    check_size((array.shape[1], array.shape[0]), limits.max_pixels, limits)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(_to_bytes(array, value_range)))


def size_of(picture: Picture) -> tuple[int, int]:
    """(width, height) of a picture."""
    if isinstance(picture, np.ndarray):
        return picture.shape[1], picture.shape[0]
    return picture.size


def of_each_band(picture: Picture, change: Callable[[Image.Image], Image.Image]) -> Picture:
    """What `change` makes of a PIL picture, or of each band of other pictures."""
    if isinstance(picture, np.ndarray):
        planes = [
            Image.fromarray(np.ascontiguousarray(band)) for band in picture.transpose(2, 0, 1)
        ]
        return np.dstack([np.asarray(change(plane)) for plane in planes])
    return change(picture)


def resized(picture: Picture, size: tuple[int, int]) -> Picture:
    """A picture of another (width, height), bicubic with antialiasing."""
    return of_each_band(picture, lambda band: band.resize(size, Image.Resampling.BICUBIC))


def fit_image(image: Picture, fit: str, *, image_size: int, patch_size: int) -> Picture:
    """Bring a picture to whole patches, bicubic with antialiasing.

    Args:
        image: A picture of any size.
        fit: "crop": the short side becomes `image_size` and the middle square is kept.
            "squash": `image_size` square without regard to aspect (as the official notebook).
            "whole": the whole frame; the short side becomes `image_size` and the long side the
            nearest multiple of `patch_size`. A frame longer than 4 to 1 gets a long side of
            4 * `image_size` instead, and its short side the nearest multiple, to bound the
            number of patches.
        image_size: Pixels; a multiple of `patch_size`.
        patch_size: Side of a patch in pixels.

    Raises:
        ConfigError: If no fit has that name or `image_size` is not a multiple of `patch_size`.
    """
    size = fitted_size(size_of(image), fit, image_size=image_size, patch_size=patch_size)
    if fit == "crop":
        return of_each_band(image, lambda band: _fit_crop(band, image_size))
    return resized(image, size)


def fitted_size(
    size: tuple[int, int], fit: str, *, image_size: int, patch_size: int
) -> tuple[int, int]:
    """What a picture of `size` will measure when `fit_image` has fitted it, (width, height).

    Raises:
        ConfigError: If no fit has that name or `image_size` is not a multiple of `patch_size`.
    """
    if image_size < 1 or patch_size < 1 or image_size % patch_size:
        raise ConfigError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
    if fit not in FITS:
        raise ConfigError(f"no fit is called {fit!r}; choose one of {', '.join(FITS)}")
    if fit == "whole":
        return _whole_size(size, image_size, patch_size)
    return image_size, image_size


def _fit_crop(image: Image.Image, image_size: int) -> Image.Image:
    short = min(image.size)
    width, height = (side * image_size // short for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    return resized.crop((left, top, left + image_size, top + image_size))


def _whole_size(size: tuple[int, int], image_size: int, patch_size: int) -> tuple[int, int]:
    """(width, height) of a whole frame in multiples of `patch_size`."""
    scale = min(image_size / min(size), _WHOLE_MAX_ASPECT * image_size / max(size))
    width, height = (
        max(1, math.floor(side * scale / patch_size + 0.5)) * patch_size for side in size
    )
    return width, height


def to_tensor(image: Picture, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """A picture as the model's input.

    Args:
        image: A picture; PIL's is converted to RGB for three channels, to grey for one.
        mean: Channel means in 0..1, one a channel.
        std: Channel deviations, one a channel.

    Returns:
        (1, C, H, W) float32, normalised.

    Raises:
        ConfigError: If there are other numbers of means and deviations than channels.
    """
    if isinstance(image, np.ndarray):
        pixels = image
    else:
        pixels = np.atleast_3d(np.array(image.convert("L" if len(mean) == 1 else "RGB")))
    if not len(mean) == len(std) == pixels.shape[2]:
        raise ConfigError(
            f"{len(mean)} means and {len(std)} deviations are given for {pixels.shape[2]} "
            "channels; give one of each a channel"
        )
    scaled = torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32) / 255  # (C, H, W)
    normalised = (scaled - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    return normalised[None].contiguous()


def is_channels(source: object, in_chans: int) -> TypeGuard[Tensor | npt.NDArray[Any]]:
    """Whether a source is the channels of a model's input, not a picture.

    A tensor always is; an array is if it has `in_chans` rows of planes. A picture's array with
    one or three channels is never that low, so the two are not taken for each other.
    """
    if isinstance(source, np.ndarray):
        return source.ndim == 3 and source.shape[0] == in_chans
    return isinstance(source, Tensor)


def channels_to_tensor(
    source: Tensor | npt.NDArray[Any], mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Channels as the model's input; they are not resized.

    Args:
        source: (C, H, W) floats in 0..1, on any device.
        mean: Channel means in 0..1, one a channel.
        std: Channel deviations, one a channel.

    Returns:
        (1, C, H, W) float32, normalised, on the CPU.

    Raises:
        ImageFormatError: If the shape, the number format or a value is another.
    """
    floats = source.is_floating_point() if isinstance(source, Tensor) else source.dtype.kind == "f"
    if source.ndim != 3 or len(source) != len(mean) or not floats:
        raise ImageFormatError(
            f"these channels are {str(source.dtype).removeprefix('torch.')} of shape "
            f"{tuple(source.shape)}; give floats in 0..1 of shape ({len(mean)}, H, W)"
        )
    if isinstance(source, Tensor):
        channels = source.detach().to("cpu", torch.float32)
    else:
        channels = torch.from_numpy(np.array(source, dtype=np.float32))
    # "not" first: a NaN compares false.
    if channels.numel() == 0 or not (channels.min() >= 0 and channels.max() <= 1):
        raise ImageFormatError("the channels are empty or not all in 0..1; scale them to that")
    return ((channels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])[None]


def viewable(pixels: Tensor, show: Sequence[int] = ()) -> Tensor:
    """The channels of a (C, H, W) tensor that a picture shows.

    Args:
        pixels: Of any number of channels.
        show: Numbers of channels from 1: three, seen as red, green and blue, or one, in grey.
            Without any, the first three; the first of fewer.

    Returns:
        (3, H, W) or (1, H, W).

    Raises:
        ConfigError: If there are no such channels.
    """
    count = len(pixels)
    chosen = tuple(show) or ((1, 2, 3) if count >= 3 else (1,))
    if len(chosen) not in (1, 3) or not all(1 <= channel <= count for channel in chosen):
        raise ConfigError(
            f"channels {list(show)} are to be shown; give three or one, numbered from 1 to {count}"
        )
    return pixels[[channel - 1 for channel in chosen]]


def to_pil(pixels: Tensor) -> Image.Image:
    """A tensor as a picture.

    Args:
        pixels: (C, H, W) in 0..1, C = 1 or 3, on any device; values outside are clamped and the
            rest rounded to the nearest of 0..255.

    Returns:
        A picture of mode RGB or L.

    Raises:
        ImageError: If the shape is another, or a value is not finite.
    """
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ImageError(f"pixels of shape {tuple(pixels.shape)}; give (3, H, W) or (1, H, W)")
    values = pixels.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(values).all()):
        raise ImageError("the pixels are not all finite; check the model and its input")
    levels = (values.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(levels[:, :, 0] if len(pixels) == 1 else levels))
