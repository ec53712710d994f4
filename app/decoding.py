"""Uploads to images: the page's door to what strangers send.

`mae_core.decode_image` bounds pixels, bytes and memory, and runs Pillow's parsers of photographs
alone. It may take minutes for a small file, and Pillow before 13 shows the process's memory in
some TIFFs. Such files are refused here, before a parser runs.
"""

import math
import re
from collections.abc import Sequence
from itertools import islice

from PIL import Image

from mae_core.errors import ImageFormatError, ImageLimitError
from mae_core.measurements import RangeSpec
from mae_core.photographs import ImageLimits, TiffTag, decode_image, format_of, tiff_tags

# A JPEG marker that starts a segment. 0xFF and 0x00 are a coded 0xFF; the others stand alone.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")

# A progressive JPEG has about ten scans, and each is decoded over the whole image (`scans.jpg`).
# EXIF data come in segments of 64 KB, which Pillow joins one by one (`exif.jpg`).
_MAX_SCANS, _MAX_EXIF_SEGMENTS = 50, 320

# Before a GIF's first frame there is a handful of blocks. Pillow joins those of a comment one by
# one, in time quadratic in their number (`comment.gif`).
_MAX_GIF_BLOCKS = 8192

# TIFF tags that decide who reads the pixels: compression, colours, tiles. Pillow takes the last of
# two entries, libtiff the first (`test_tiffs_that_may_show_memory_are_refused`).
_TILE_SIDES = (322, 323)
_DECIDING_TAGS = (259, 262, *_TILE_SIDES)
_NUMBER_TYPES = (3, 4)
_MAX_TIFF_TAGS = 4096


def decode_upload(data: bytes, *, value_range: RangeSpec = "auto") -> Image.Image:
    """The RGB image a person sees in an uploaded file; see `mae_core.decode_image`.

    Args:
        data: The file.
        value_range: Of values of more than 8 bits.

    Raises:
        ImageFormatError: If it is not an image of an accepted format, or is damaged.
        ImageLimitError: If it is too large, too small or too narrow, or holds far more work than
            its size says.
    """
    known = format_of(data)
    name = known.name if known else ""
    tags = list(islice(tiff_tags(data), _MAX_TIFF_TAGS + 1)) if name == "TIFF" else []
    if (
        (name == "JPEG" and _has_many_segments(data))
        or (name == "GIF" and _has_many_blocks(data))
        or (name == "TIFF" and _has_many_tags(tags))
    ):
        raise ImageLimitError(
            "the file holds far more hidden data than its picture needs; save it again as PNG"
        )
    if name == "TIFF" and _is_ambiguous(tags):
        raise ImageFormatError(
            "the TIFF does not say in one way how it is compressed; save it in strips of RGB or "
            "grey compressed by LZW or deflate, or as PNG"
        )
    return decode_image(data, value_range=value_range)


def _has_many_segments(data: bytes) -> bool:
    """Whether a JPEG has more scans or EXIF segments than a camera or program writes."""
    scans = exif = 0
    at = 2
    while (found := _JPEG_MARKER.search(data, at)) and found[1] != b"\xd9":
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


def _has_many_tags(tags: Sequence[TiffTag]) -> bool:
    """Whether a TIFF has more tags than anybody writes, or a tile larger than an image."""
    tile = math.prod(tag.value for tag in tags if tag.number in _TILE_SIDES)
    return len(tags) > _MAX_TIFF_TAGS or tile > ImageLimits().max_whole_pixels


def _is_ambiguous(tags: Sequence[TiffTag]) -> bool:
    """Whether two readers may take a TIFF for differently compressed ones."""
    deciding = [tag for tag in tags if tag.number in _DECIDING_TAGS]
    are_numbers = all(tag.length == 1 and tag.kind in _NUMBER_TYPES for tag in deciding)
    return not are_numbers or len({tag.number for tag in deciding}) < len(deciding)
