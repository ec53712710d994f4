"""Uploads to images: the page's door to what strangers send.

`mae_core.decode_image` bounds pixels and bytes, and runs Pillow's parsers of photographs alone.
Yet Pillow before 13 may take minutes or gigabytes for a small file, as it copies whatever a TIFF's
tags claim, and it shows the process's memory in some TIFFs. Such files are refused here, before a
parser runs.
"""

import math
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal, NamedTuple

from PIL import Image, TiffTags

from mae_core.errors import ImageError
from mae_core.measurements import RangeSpec
from mae_core.photographs import ImageLimits, decode_image

_LIMITS = ImageLimits()

# A JPEG marker that starts a segment. 0xFF and 0x00 are a coded 0xFF. Others stand alone, and for
# Pillow so do extensions: segments may hide in what follows one (`hidden.jpg`).
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xc8\xd0-\xd8\xf0-\xfd\xff])")

# A progressive JPEG has about ten scans, and each is decoded over the whole image (`scans.jpg`).
# EXIF data come in segments of 64 KB, which Pillow joins one by one (`exif.jpg`).
_MAX_SCANS, _MAX_EXIF_SEGMENTS = 50, 320

# Before a GIF's first frame there is a handful of blocks. Pillow joins those of a comment one by
# one, in time quadratic in their number (`comment.gif`).
_MAX_GIF_BLOCKS = 8192

_TIFF_START = re.compile(rb"(?:II|MM)(?:[*+]\0|\0[*+])")
_MAX_TIFF_TAGS = 4096

# Types of values in TIFF tags: bytes of the numbers shorter than a field; those that are read as
# one string of bytes, not as a tuple of numbers.
_NUMBER_BYTES = {1: 1, 3: 2, 4: 4}
_TEXT_TYPES = (1, 2, 7)

# Memory that Pillow may take for a number in a TIFF tag. A TIFF of sixty thousand strips, with two
# numbers each, is taken.
_TAG_BYTES = 160

# TIFF tags that decide who reads the pixels: compression, colours, tiles. Pillow takes the last of
# two entries, libtiff the first (`test_tiffs_that_may_show_memory_are_refused`).
_COMPRESSION, _COLOUR, _TILE_SIDES = 259, 262, (322, 323)
_DECIDING_TAGS = (_COMPRESSION, _COLOUR, *_TILE_SIDES)
_SHORT_OR_LONG = (3, 4)

# None; LZW, deflate, PackBits, deflate. With others, in tiles and in rows of YCbCr, libtiff may
# read past the end or leave rows as they were in memory (GHSA-462x-pgg6-55fp, GHSA-c6hw-5grf-ff96,
# GHSA-q45j-58j2-45rg).
_UNCOMPRESSED, _SOUND_COMPRESSIONS, _YCBCR = 1, (5, 8, 32773, 32946), 6


class _TiffTag(NamedTuple):
    number: int
    kind: int  # type of its values
    length: int  # how many there are
    value: int  # the first of them, or where in the TIFF they are


def decode_upload(data: bytes, *, value_range: RangeSpec = "auto") -> Image.Image:
    """The RGB image a person sees in an uploaded file; see `mae_core.decode_image`.

    Args:
        data: The file.
        value_range: Of values of more than 8 bits.

    Raises:
        ImageError: If it is not an image of an accepted format, is damaged, too large, too small
            or too narrow, or holds far more work than its size says.
    """
    is_tiff = _TIFF_START.match(data) is not None
    tags = list(islice(_tiff_tags(data), _MAX_TIFF_TAGS + 1)) if is_tiff else []
    if (
        (data.startswith(b"\xff\xd8") and _has_many_segments(data))
        or (data.startswith(b"GIF") and _has_many_blocks(data))
        or (is_tiff and _has_many_tags(tags))
        # Of AVIF and HEIC, which may hold EXIF data anywhere, and of TIFF.
        or ((is_tiff or data[4:8] == b"ftyp") and _claim_too_much(data))
    ):
        raise ImageError(
            "the file holds far more hidden data than its picture needs; save it again as PNG",
            code="image_limit",
        )
    if is_tiff and not _is_sound(tags):
        raise ImageError(
            "TIFF files are taken uncompressed, or in strips of RGB or grey compressed by LZW or "
            "deflate; save it as one of those, or as PNG"
        )
    return decode_image(data, value_range=value_range)


def _has_many_segments(data: bytes) -> bool:
    """Whether a JPEG has more scans or EXIF segments than a camera or program writes."""
    scans = exif = 0
    at = 2
    while found := _JPEG_MARKER.search(data, at):
        if found[1] == b"\xd9":  # the end, for Pillow after a scan only
            if scans:
                return False
            at = found.end()
            continue
        content = found.end() + 2
        at = found.end() + int.from_bytes(data[found.end() : content], "big")
        scans += found[1] == b"\xda"
        exif += found[1] == b"\xe1" and data.startswith(b"Exif\0\0", content)
        if scans > _MAX_SCANS or exif > _MAX_EXIF_SEGMENTS:
            return True
    return False


def _has_many_blocks(data: bytes) -> bool:
    """Whether a GIF has more extension blocks before its first frame than anybody writes."""
    flags = data[10] if len(data) > 10 else 0
    at = 13 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
    blocks = 0
    while data[at : at + 1] == b"!" and blocks <= _MAX_GIF_BLOCKS:
        at += 2
        while at < len(data) and data[at] and blocks <= _MAX_GIF_BLOCKS:
            at += data[at] + 1
            blocks += 1
        at += 1
        blocks += 1
    return blocks > _MAX_GIF_BLOCKS


def _has_many_tags(tags: Sequence[_TiffTag]) -> bool:
    """Whether a TIFF has more tags than anybody writes, or a tile larger than an image."""
    tile = math.prod(tag.value for tag in tags if tag.number in _TILE_SIDES)
    return len(tags) > _MAX_TIFF_TAGS or tile > _LIMITS.max_whole_pixels


def _claim_too_much(data: bytes) -> bool:
    """Whether the tags of all TIFFs in a file take more memory than a file may (`*.tiff`).

    All tags may claim the same bytes, and a directory may point at itself.
    """
    taken = 0
    for match in _TIFF_START.finditer(data):
        pending: list[int | None] = [None]
        while pending and taken <= _LIMITS.max_bytes:
            taken += _TAG_BYTES  # an empty directory takes its time, too
            for tag in _tiff_tags(data, match.start(), pending.pop()):
                is_text = tag.kind in _TEXT_TYPES
                taken += _TAG_BYTES * (1 if is_text else max(tag.length, 1))
                taken += min(tag.length, len(data)) if is_text else 0
                if tag.number in TiffTags.TAGS_V2_GROUPS:
                    pending.append(tag.value)
                if taken > _LIMITS.max_bytes:
                    return True
        if taken > _LIMITS.max_bytes:
            return True
    return False


def _tiff_tags(data: bytes, start: int = 0, offset: int | None = None) -> Iterator[_TiffTag]:
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
        yield _TiffTag(number(entry, 2), kind, values, number(entry + 4 + word, width))


def _is_sound(tags: Sequence[_TiffTag]) -> bool:
    """Whether a TIFF says in one way how it is stored, and that is read within its bounds."""
    deciding = [tag for tag in tags if tag.number in _DECIDING_TAGS]
    values = {tag.number: tag.value for tag in deciding}
    if len(values) < len(deciding):
        return False
    if any(tag.length != 1 or tag.kind not in _SHORT_OR_LONG for tag in deciding):
        return False
    compression = values.get(_COMPRESSION, _UNCOMPRESSED)
    in_strips_of_colours = not values.keys() & set(_TILE_SIDES) and values.get(_COLOUR) != _YCBCR
    return compression == _UNCOMPRESSED or (
        compression in _SOUND_COMPRESSIONS and in_strips_of_colours
    )
