"""What the page refuses before a parser runs. `mae_core.decode_image` has its own tests."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, features
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from app.decoding import decode_upload
from mae_core.errors import ImageError
from tests.pictures import SIDE, grey_tiff, tiff

HIDDEN = "the file holds far more hidden data than its picture needs; save it again"


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def photo(width: int = 48, height: int = 32) -> Image.Image:
    """A smooth picture with a different colour everywhere."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 255 // (width + height))
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode_upload(data)).astype(int)


def jpeg_with_segment(data: bytes, marker: int, payload: bytes, times: int = 1) -> bytes:
    segment = struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload
    return data[:2] + segment * times + data[2:]


JPEG = encode(photo(), "JPEG")
GIF = encode(photo(), "GIF")


def repeated_scans(times: int) -> bytes:
    data = encode(photo(), "JPEG", progressive=True)
    scan = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + scan * times + data[-2:]


def commented_gif(blocks: int) -> bytes:
    start = 13 + 3 * 2 ** ((GIF[10] & 7) + 1)
    return GIF[:start] + b"!\xfe" + (b"\xff" + bytes(255)) * blocks + b"\0" + GIF[start:]


def test_jpeg_scans_are_bounded() -> None:
    assert decode_upload(repeated_scans(30)).size == photo().size
    with pytest.raises(ImageError, match=HIDDEN):
        decode_upload(repeated_scans(50))


def test_what_looks_like_scans_behind_or_beside_the_pixels_is_not_counted() -> None:
    """Phones append films to their photos; a film has any bytes."""
    looks = b"\xff\xda\xff\xe1\0\xffExif\0\0" * 500
    # The length of nothing comes first, lest a reader that goes on skips what it should not see.
    for data in (JPEG + b"\0\2" + looks, jpeg_with_segment(JPEG, 0xEF, looks)):
        assert np.array_equal(pixels(data), pixels(JPEG))


def test_scans_do_not_hide_behind_a_marker_that_stands_alone() -> None:
    # A reader that took 0xFF01 for a segment would skip the scans after it.
    scan = repeated_scans(1)[len(repeated_scans(0)) - 2 : -2]
    hidden = b"\xff\x01" + scan * 150
    with pytest.raises(ImageError, match=HIDDEN):
        decode_upload(repeated_scans(0)[:-2] + hidden + b"\xff\xd9")


def test_exif_segments_are_bounded() -> None:
    # All of a photo's EXIF data at its longest, and many short pieces, which are joined one by one.
    segment = b"Exif\0\0" + bytes(60_000)
    assert np.array_equal(pixels(jpeg_with_segment(JPEG, 0xE1, segment, 300)), pixels(JPEG))
    with pytest.raises(ImageError, match=HIDDEN):
        decode_upload(jpeg_with_segment(JPEG, 0xE1, b"Exif\0\0a", 1_000_000))


@pytest.mark.parametrize("stand_alone", [b"\xff\xd9", b"\xff\xf0\xfe\xfe", b"\xff\xc8\xfe\xfe"])
def test_segments_do_not_hide_where_pillow_skips_nothing(stand_alone: bytes) -> None:
    # Pillow goes on after an early end, and takes extensions for markers without content.
    hidden = stand_alone + jpeg_with_segment(JPEG, 0xE1, b"Exif\0\0a", 1000)[2:]
    with pytest.raises(ImageError, match=HIDDEN):
        decode_upload(JPEG[:2] + hidden)


def test_gif_comments_are_bounded() -> None:
    assert np.array_equal(pixels(commented_gif(1000)), pixels(GIF))
    for blocks in (9000, 80_000):
        with pytest.raises(ImageError, match=HIDDEN):
            decode_upload(commented_gif(blocks))
    start = 13 + 3 * 2 ** ((GIF[10] & 7) + 1)
    with pytest.raises(ImageError, match=HIDDEN):
        decode_upload(GIF[:start] + b"!\xfe\x01a\0" * 9000 + GIF[start:])


def test_tiff_tiles_larger_than_a_picture() -> None:
    body = zlib.compress(bytes(100))
    tiles = {259: (3, 1, 8), 322: (4, 1, 40000), 323: (4, 1, 40000), 324: (4, 1, 8),
             325: (4, 1, len(body))}  # fmt: skip
    with pytest.raises(ImageError, match=HIDDEN):
        decode_upload(grey_tiff(body, 8, tags=tiles))


def test_tiff_tags_are_bounded() -> None:
    tags = {40000 + number: (3, 1, 0) for number in range(5000)}
    with pytest.raises(ImageError, match=HIDDEN):
        decode_upload(grey_tiff(bytes(SIDE**2), 8, tags=tags))


def claiming_tags(tags: int, size: int) -> dict[int, tuple[int, int, int]]:
    """Tags that all claim the same bytes."""
    return {40000 + number: (7, size, 8) for number in range(tags)}


def test_tiff_tags_may_not_claim_more_than_a_file_holds() -> None:
    body = bytes(2**20)
    assert (pixels(grey_tiff(body, 8, tags=claiming_tags(3, 2**20))) == 0).all()
    with pytest.raises(ImageError, match=HIDDEN):
        decode_upload(grey_tiff(body, 8, tags=claiming_tags(30, 2**20)))


def test_tags_of_a_tiffs_own_exif_are_counted_too() -> None:
    claims = tiff(claiming_tags(30, 2**20), b"")[8:]
    body = bytes(2**20) + claims
    with pytest.raises(ImageError, match=HIDDEN):
        decode_upload(grey_tiff(body, 8, tags={34665: (4, 1, 8 + 2**20)}))


def test_a_tiff_directory_that_points_at_itself() -> None:
    looped = grey_tiff(bytes(SIDE**2), 8, tags={34665: (4, 1, 8 + SIDE**2)})
    with pytest.raises(ImageError, match=HIDDEN):
        decode_upload(looped)


def test_a_tiff_that_begins_again_and_again() -> None:
    with pytest.raises(ImageError, match=HIDDEN):
        decode_upload(b"II*\0\xff\xff\xff\x7f" * 400_000)


def test_tiff_values_are_bounded() -> None:
    body = struct.pack("<H", 8) * 200_000
    with pytest.raises(ImageError, match=HIDDEN):
        decode_upload(grey_tiff(body, 8, tags={273: (3, 200_000, 8)}))


@pytest.mark.parametrize("order", ["<", ">"])
def test_ordinary_tiff_tiles(order: str) -> None:
    tags = {256: (3, 1, 32), 257: (3, 1, 16), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1),
            277: (3, 1, 1), 322: (3, 1, 32), 323: (3, 1, 16), 324: (4, 1, 8),
            325: (4, 1, 512)}  # fmt: skip
    assert pixels(tiff(tags, bytes(range(256)) * 2, order))[0, :3, 0].tolist() == [0, 1, 2]


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_tags_of_an_avif_are_bounded() -> None:
    block = tiff({40000: (3, 200_000, 8)}, bytes(400_000))
    with pytest.raises(ImageError, match=HIDDEN):
        decode_upload(encode(photo(), "AVIF", exif=b"Exif\0\0" + block))


@pytest.mark.parametrize(("marker", "start"), [(0xE1, b"Exif\0\0"), (0xE2, b"MPF\0")])
def test_tags_in_a_jpeg_are_never_parsed_in_full(
    marker: int, start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """65 kB of EXIF can claim itself five thousand times; over several segments, gigabytes."""
    block = tiff(claiming_tags(4000, 60_000) | {0x0112: (3, 1, 6)}, b"")
    data = jpeg_with_segment(JPEG, marker, start + block, times=3)
    monkeypatch.setattr(ImageFileDirectory_v2, "load", lambda *_: pytest.fail("it was parsed"))
    turns = -1 if marker == 0xE1 else 0
    assert np.array_equal(pixels(data), np.rot90(pixels(JPEG), turns))


def short_strip_tiff(*more: tuple[int, int]) -> bytes:
    """A TIFF of 512 x 1024 whose one JPEG strip holds 8 rows, and further (tag, value)."""
    strip = encode(Image.new("L", (512, 8), 128), "JPEG")
    tags = [(256, 512), (257, 1024), (258, 8), (259, 7), (262, 1), (273, 8), (277, 1), (278, 1024),
            (279, len(strip)), *more]  # fmt: skip
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, value)
        for tag, value in sorted(tags, key=lambda tag: tag[0])
    )
    return (
        b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip
        + struct.pack("<H", len(tags)) + entries + bytes(4)
    )  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        # Pillow 12 shows the process's memory in the other 1016 rows.
        short_strip_tiff(),
        # libtiff takes the first of two entries, Pillow 12 the last.
        short_strip_tiff((259, 5)),
        short_strip_tiff((259, 1)),
        encode(photo(), "TIFF", compression="jpeg"),
        encode(photo().convert("1"), "TIFF", compression="group4"),
        grey_tiff(bytes(SIDE**2), 8, tags={259: (3, 1, 5), 322: (3, 1, 16), 323: (3, 1, 16)}),
        grey_tiff(bytes(SIDE**2), 8, photometric=6, tags={259: (3, 1, 5)}),
        grey_tiff(bytes(SIDE**2), 8, tags={259: (3, 2, 5)}),
        grey_tiff(bytes(SIDE**2), 8, tags={259: (1, 1, 5)}),
    ],
    ids=["short strip", "two compressions", "second is none", "jpeg", "fax", "tiles", "ycbcr",
         "two values", "bytes"],
)  # fmt: skip
def test_tiffs_that_may_show_memory_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="compressed by LZW or deflate"):
        decode_upload(data)
