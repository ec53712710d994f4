"""What people see in a file is what comes out, and no file brings anything else about.

Every file is made here, in memory, most by Pillow, the hostile ones byte by byte.
"""

import dataclasses
import io
import os
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pillow_heif
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile, features
from PIL.GifImagePlugin import GifImageFile

from mae_core.errors import ImageError
from mae_core.images import open_image
from mae_core.photographs import ImageLimits, decode_image
from tests.pictures import SIDE, grey_tiff, tiff

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
pillow_heif.register_heif_opener()


# ---------------------------------------------------------------- files made by hand


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def photo(width: int = 48, height: int = 32) -> Image.Image:
    """A smooth picture with a different colour everywhere."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 255 // (width + height))
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def decoded(data: bytes) -> np.ndarray:
    return pixels(decode_image(data))


def shown(source: Any, **options: Any) -> np.ndarray:
    """A file's or PIL image's photograph; of an array, what the door to all images makes of it."""
    door = open_image if isinstance(source, np.ndarray) else decode_image
    return pixels(door(source, **options))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour_type: int, row: bytes, *chunks: bytes) -> bytes:
    """A PNG of `height` equal rows; colour type 0 is grey, 2 RGB, 4 grey + alpha, 6 RGBA."""
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(b"\0" + row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"".join((
        b"\x89PNG\r\n\x1a\n", png_chunk(b"IHDR", header), *chunks,
        png_chunk(b"IDAT", body), png_chunk(b"IEND", b""),
    ))  # fmt: skip


def exif(orientation: int, order: str = "<") -> bytes:
    return b"Exif\0\0" + tiff({0x0112: (3, 1, orientation)}, b"", order)


def jpeg_with_segment(data: bytes, marker: int, payload: bytes, times: int = 1) -> bytes:
    segment = struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload
    return data[:2] + segment * times + data[2:]


# ---------------------------------------------------------------- what a person sees

ORIENTED = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}


def blocks(layout: list[list[int]]) -> np.ndarray:
    """Squares of 16 pixels, as grey as their number times 40."""
    return np.kron(np.array(layout) * 40, np.ones((16, 16), dtype=int))


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 100}),
        pytest.param("AVIF", {"quality": 100}, marks=needs_avif),
    ],
)
def test_exif_orientation_is_applied(
    file_format: str, options: dict[str, Any], orientation: int
) -> None:
    stored = Image.fromarray(blocks(ORIENTED[1]).astype(np.uint8)).convert("RGB")
    tags = Image.Exif()
    tags[0x0112] = orientation
    seen = decoded(encode(stored, file_format, exif=tags, **options))
    expected = blocks(ORIENTED[orientation])
    assert seen.shape == (*expected.shape, 3)
    assert np.abs(seen - expected[:, :, None]).max() <= (2 if file_format == "AVIF" else 0)


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_of_either_byte_order(order: str) -> None:
    stored = Image.fromarray(blocks(ORIENTED[1]).astype(np.uint8))
    seen = decoded(encode(stored, "JPEG", quality=100, exif=exif(6, order)))
    assert np.array_equal(seen[:, :, 0], blocks(ORIENTED[6]))


@pytest.mark.parametrize(
    "data",
    [b"", b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0" + b"\xff" * 40, exif(6)[:-20], exif(0),
     exif(9), exif(65535)],
)  # fmt: skip
def test_damaged_exif_leaves_the_picture_as_it_is(data: bytes) -> None:
    plain = encode(photo(), "JPEG")
    assert np.array_equal(decoded(jpeg_with_segment(plain, 0xE1, data)), decoded(plain))


def test_a_picture_opened_by_the_caller_is_turned_and_left_alone() -> None:
    stored = Image.fromarray(blocks(ORIENTED[1]).astype(np.uint8))
    opened = Image.open(io.BytesIO(encode(stored, "PNG", exif=exif(6))))
    assert np.array_equal(pixels(decode_image(opened))[:, :, 0], blocks(ORIENTED[6]))
    assert (opened.mode, opened.size) == ("L", stored.size)


def test_metadata_is_left_behind() -> None:
    tags = Image.Exif()
    tags[0x010F] = "Maker"
    seen = decode_image(encode(photo(), "JPEG", exif=tags, comment=b"private"))
    assert seen.info == {}
    assert not seen.getexif()
    assert b"Maker" not in encode(seen, "PNG")


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_on_white(file_format: str) -> None:
    alpha, value = np.mgrid[0:256, 0:256].astype(np.uint8)
    # Half of it opaque, as of most pictures: else a TIFF's fourth band counts as a measurement.
    alpha, value = np.vstack([alpha, np.full_like(alpha, 255)]), np.vstack([value, value])
    rgba = Image.fromarray(np.stack([value, value, value, alpha], axis=-1))
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    seen = decoded(encode(rgba, file_format, **options))
    weight = alpha / 255
    expected = value * weight + 255 * (1 - weight)
    assert np.abs(seen - expected[:, :, None]).max() <= 0.5 + 1e-9  # rounded to nearest


def test_alpha_laid_on_white_keeps_its_colour() -> None:
    seen = decoded(encode(Image.new("RGBA", (SIDE, SIDE), (200, 100, 0, 51)), "PNG"))
    assert (seen == (244, 224, 204)).all()


def test_grey_with_alpha() -> None:
    seen = decoded(encode(Image.new("LA", (SIDE, SIDE), (100, 51)), "PNG"))
    assert (seen == 224).all()


def palette_picture() -> Image.Image:
    """Left half red (0), right half blue (1)."""
    image = Image.new("P", (32, 16), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (16, 0, 32, 16))
    return image


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette(file_format: str) -> None:
    seen = decoded(encode(palette_picture(), file_format))
    assert (seen[:, :16] == (255, 0, 0)).all()
    assert (seen[:, 16:] == (0, 0, 255)).all()


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_palette_with_one_transparent_colour(file_format: str) -> None:
    seen = decoded(encode(palette_picture(), file_format, transparency=1))
    assert (seen[:, :16] == (255, 0, 0)).all()
    assert (seen[:, 16:] == 255).all()


def test_palette_with_alpha_of_each_colour() -> None:
    seen = decoded(encode(palette_picture(), "PNG", transparency=bytes([51, 255])))
    assert (seen[:, :16] == (255, 204, 204)).all()
    assert (seen[:, 16:] == (0, 0, 255)).all()


@pytest.mark.parametrize(("transparent", "expected"), [(1, [0, 255]), (0, [255, 255])])
def test_transparent_grey_of_one_bit(transparent: int, expected: Any) -> None:
    key = png_chunk(b"tRNS", struct.pack(">H", transparent))
    seen = decoded(png(SIDE, SIDE, 1, 0, bytes([0b01010101]) * (SIDE // 8), key))
    assert seen[0, :2, 0].tolist() == expected


RAMP_16 = np.arange(65536, dtype=np.uint16).reshape(256, 256)


@pytest.mark.parametrize(
    "source",
    [
        RAMP_16,
        encode(Image.fromarray(RAMP_16), "PNG"),
        encode(Image.fromarray(RAMP_16), "TIFF"),
        encode(Image.fromarray(RAMP_16.astype(">u2")), "TIFF"),
        encode(Image.fromarray(RAMP_16), "TIFF", compression="tiff_lzw"),
    ],
    ids=["array", "png", "tiff", "big-endian tiff", "lzw tiff"],
)
def test_16_bit_grey_is_rescaled_exactly(source: Any) -> None:
    expected = np.rint(RAMP_16 / 257)
    assert np.array_equal(shown(source), np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize(
    ("colour_type", "stored", "expected"),
    [(2, [40, 90, 250], [40, 90, 250]), (4, [40, 255], [40, 40, 40]), (4, [100, 51], [224] * 3),
     (6, [40, 90, 250, 255], [40, 90, 250]), (6, [200, 100, 0, 51], [244, 224, 204])],
)  # fmt: skip
def test_16_bit_colour_and_alpha(colour_type: int, stored: list[int], expected: Any) -> None:
    pixel = b"".join(struct.pack(">H", value * 257) for value in stored)
    assert (decoded(png(SIDE, SIDE, 16, colour_type, pixel * SIDE)) == expected).all()


def test_tiff_whose_white_is_zero() -> None:
    for body, bits, expected in ((struct.pack("<H", 2570), 16, 245), (b"\x0a", 8, 245)):
        assert (decoded(grey_tiff(body * SIDE**2, bits, photometric=0)) == expected).all()


def test_tiff_of_12_bits() -> None:
    # Two values of 12 bits in three bytes: 0xfff and 0x800.
    data = grey_tiff(b"\xff\xf8\x00" * (SIDE**2 // 2), 12)
    seen = pixels(decode_image(data, value_range="0,4095"))
    assert seen[0, :2, 0].tolist() == [255, 128]


@pytest.mark.parametrize("white", [1, 255])
@pytest.mark.parametrize("file", [True, False], ids=["tiff", "array"])
def test_floating_point(white: int, file: bool) -> None:
    levels = np.arange(256).reshape(16, 16)
    numbers = (levels * (white / 255)).astype(np.float32)
    source = encode(Image.fromarray(numbers), "TIFF") if file else numbers
    assert np.array_equal(shown(source)[:, :, 0], levels)


@pytest.mark.parametrize("noise", [0.0004, 0.04])
@pytest.mark.parametrize("white", [1, 255])
def test_floats_a_hair_beyond_their_range(white: int, noise: float) -> None:
    numbers = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1)) * white
    numbers += np.float32(noise * white)
    expected = np.clip(np.rint(numbers / white * 255), 0, 255)
    for source in (numbers, encode(Image.fromarray(numbers), "TIFF")):
        assert np.abs(shown(source)[:, :, 0] - expected).max() <= 1


@pytest.mark.parametrize("missing", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_missing_are_black(missing: float) -> None:
    numbers = np.tile(np.linspace(0, 1, SIDE, dtype=np.float32), (SIDE, 1))
    numbers[0] = missing
    for source in (numbers, encode(Image.fromarray(numbers), "TIFF")):
        seen = shown(source)[:, :, 0]
        assert (seen[0] == 0).all()
        assert np.array_equal(seen[1:], np.rint(numbers[1:] * 255))
    with pytest.raises(ImageError, match="no finite value"):
        open_image(np.full((SIDE, SIDE), missing, dtype=np.float32))


# Values of 12 bits in 16, of a number format of 32 bits, with signs, and in another unit.
MEASURED = {
    "12 bits": (np.linspace(0, 4095, 4096), np.uint16),
    "32 bits": (np.linspace(70_000, 170_000, 4096), np.int32),
    "signs": (np.linspace(-1000, 3000, 4096), np.int16),
    "kelvin": (np.linspace(250, 320, 4096), np.float32),
}


@pytest.mark.parametrize("name", MEASURED)
def test_measurements_show_all_levels(name: str) -> None:
    line, dtype = MEASURED[name]
    numbers = line.reshape(64, 64).astype(dtype)
    sources = [Image.fromarray(numbers)] if dtype != np.int16 else []
    files = [encode(image, "TIFF") for image in sources]
    arrays = [numbers] if dtype in (np.uint16, np.float32) else []
    for source in (*sources, *files, *arrays):
        seen = shown(source)[:, :, 0]
        assert seen[0, 0] == 0
        assert seen[-1, -1] == 255
        assert 120 <= np.median(seen) <= 135


def test_a_declared_range_goes_before_what_is_found() -> None:
    numbers = np.linspace(0, 2000, 4096).reshape(64, 64).astype(np.uint16)
    png_file = encode(Image.fromarray(numbers), "PNG")
    seen = pixels(decode_image(png_file, value_range="0,4095"))[:, :, 0]
    assert np.array_equal(seen, np.rint(numbers / 4095 * 255))
    assert pixels(decode_image(png_file, value_range="dtype")).max() == 8


@pytest.mark.parametrize("colour_type", [2, 6])
def test_colours_of_12_bits_in_16_are_refused_rather_than_black(colour_type: int) -> None:
    opaque = (65535,) if colour_type == 6 else ()
    row = struct.pack(f">{3 + len(opaque)}H", 4095, 2000, 0, *opaque) * SIDE
    with pytest.raises(ImageError, match="uses the lower 12 or fewer"):
        decode_image(png(SIDE, SIDE, 16, colour_type, row))


@pytest.mark.parametrize("bits", [13, 14, 15])
@pytest.mark.parametrize("file_format", ["png", "png with alpha", "tiff"])
def test_colours_of_less_than_16_bits_are_not_dark(bits: int, file_format: str) -> None:
    most = 2**bits - 1
    values = bands(3, most, np.uint16)
    if file_format == "tiff":
        data = tiff_of(values, photometric="rgb")
    else:
        alpha = np.full((64, 64, 1), 65535, np.uint16)
        four = np.concatenate([values, alpha], axis=2) if "alpha" in file_format else values
        data = imagecodecs.png_encode(four)
    expected = values / most * 255
    # Pillow keeps 8 bits of 16: of 14 bits 64 levels are left.
    step = 2 ** (16 - bits)
    for value_range in ("auto", ((0.0, float(most)),)):
        seen = pixels(decode_image(data, value_range=value_range))
        assert np.abs(seen - expected).max() <= step + 3


def test_black_of_16_bits_is_black() -> None:
    assert decoded(png(SIDE, SIDE, 16, 2, bytes(6) * SIDE)).max() == 0


def tiff_of(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def bands(count: int, white: float, dtype: Any) -> np.ndarray:
    """(64, 64, count) of smooth values, another in each band."""
    y, x = np.mgrid[0:64, 0:64] / 64
    waves = [(np.sin(5 * x + band) + np.cos(7 * y + band) + 2) / 4 for band in range(count)]
    return (np.stack(waves, axis=-1) * white).astype(dtype)


# What Pillow reads as noise or calls damaged.
OTHER_TIFFS = {
    "planes": tiff_of(np.moveaxis(bands(3, 65535, np.uint16), 2, 0), photometric="rgb",
                      planarconfig="separate"),
    "float colours": tiff_of(bands(3, 1, np.float32), photometric="rgb"),
    "doubles": tiff_of(bands(1, 1, np.float64)[:, :, 0]),
    "2": tiff_of(bands(2, 255, np.uint8), photometric="minisblack", planarconfig="contig"),
    "13": tiff_of(bands(13, 3000, np.uint16), photometric="minisblack", planarconfig="contig",
                  bigtiff=True),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_TIFFS)
def test_other_kinds_of_tiff_are_refused(name: str) -> None:
    with pytest.raises(ImageError, match="of a kind that is not read; save it again as PNG"):
        decode_image(OTHER_TIFFS[name])


@pytest.mark.parametrize("mode", ["uint8", "uint16"])
def test_near_infrared_is_no_transparency(mode: str) -> None:
    white = {"uint8": 255, "uint16": 65535}[mode]
    four = bands(4, white, mode)
    # tifffile, as GDAL, says of a fourth band beside RGB that it is transparency.
    seen = decoded(tiff_of(four, photometric="rgb"))
    assert np.abs(seen - four[:, :, :3] / white * 255).max() <= 1


@pytest.mark.parametrize(
    ("ink", "expected"),
    [((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0)), ((0, 0, 0, 0), (255, 255, 255)),
     ((255, 0, 0, 51), (0, 204, 204))],
)  # fmt: skip
@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk(file_format: str, ink: tuple[int, ...], expected: Any) -> None:
    seen = decoded(encode(Image.new("CMYK", (32, 32), ink), file_format))
    assert np.abs(seen - expected).max() <= 3


@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "tiff_lzw", "packbits"])
def test_compressed_tiff(compression: str) -> None:
    seen = decoded(encode(photo(), "TIFF", compression=compression))
    assert np.array_equal(seen, pixels(photo()))


def test_one_bit() -> None:
    stripes = np.tile(np.array([True, False]), (SIDE, SIDE // 2))
    seen = decoded(encode(Image.fromarray(stripes), "PNG"))
    assert seen[0, :4, 0].tolist() == [255, 0, 255, 0]


@pytest.mark.parametrize(
    "file_format", ["GIF", "WEBP", "PNG", "TIFF", pytest.param("AVIF", marks=needs_avif)]
)
def test_animation_shows_its_first_frame(file_format: str) -> None:
    red, blue = (Image.new("RGB", (32, 32), name) for name in ("red", "blue"))
    seen = decoded(encode(red, file_format, save_all=True, append_images=[blue, red]))
    assert np.abs(seen - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_are_exact(file_format: str) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {}
    assert np.array_equal(decoded(encode(photo(), file_format, **options)), pixels(photo()))


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", pytest.param("AVIF", marks=needs_avif)])
def test_lossy_formats_are_close(file_format: str) -> None:
    seen = decoded(encode(photo(), file_format, quality=90))
    assert np.abs(seen - pixels(photo())).mean() < 4


def test_several_pictures_in_a_jpeg_show_the_first() -> None:
    red, blue = (Image.new("RGB", (32, 32), name) for name in ("red", "blue"))
    seen = decoded(encode(red, "MPO", save_all=True, append_images=[blue]))
    assert np.abs(seen - (255, 0, 0)).max() <= 3


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def red_is_blue_profile() -> bytes:
    """sRGB with the names of its red and blue primaries exchanged."""
    swapped = srgb_profile().replace(b"rXYZ", b"____").replace(b"bXYZ", b"rXYZ")
    return swapped.replace(b"____", b"bXYZ")


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_an_icc_profile_is_converted_to_srgb(file_format: str) -> None:
    image = Image.new("RGB", (32, 32), (255, 0, 0))
    seen = decoded(encode(image, file_format, icc_profile=red_is_blue_profile()))
    assert np.abs(seen - (0, 0, 255)).max() <= 4


def test_an_icc_profile_and_alpha_together() -> None:
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 51))
    seen = decoded(encode(image, "PNG", icc_profile=red_is_blue_profile()))
    assert np.abs(seen - (204, 204, 255)).max() <= 1


def test_an_srgb_profile_changes_nothing() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert np.array_equal(decoded(encode(image, "PNG", icc_profile=srgb_profile())), pixels(image))


@pytest.mark.parametrize(
    "profile",
    [
        b"not a profile",
        red_is_blue_profile()[:200],
        red_is_blue_profile().replace(b"RGB ", b"CMYK"),
        red_is_blue_profile() + bytes(4 * 2**20),
    ],
    ids=["text", "cut short", "of another colour space", "huge"],
)
def test_a_senseless_icc_profile_is_ignored(profile: bytes) -> None:
    image = Image.new("RGB", (32, 32), (255, 0, 0))
    assert (decoded(encode(image, "TIFF", icc_profile=profile)) == (255, 0, 0)).all()


# ---------------------------------------------------------------- sources


def test_paths_and_bytes_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(photo(), "PNG"))
    for source in (path, str(path), path.read_bytes()):
        assert np.array_equal(pixels(decode_image(source)), pixels(photo()))


@pytest.mark.parametrize("shape", [(SIDE, 32), (SIDE, 32, 1), (SIDE, 32, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64", "float16"])
def test_arrays(dtype: str, shape: tuple[int, ...]) -> None:
    white = {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    seen = pixels(open_image(np.full(shape, white / 5, dtype=dtype)))
    assert seen.shape == (SIDE, 32, 3)
    assert np.abs(seen - 51).max() <= 0.5


def test_the_fourth_band_of_8_bits_is_transparency() -> None:
    expected = round(51 / 5 + 204)
    assert (pixels(open_image(np.full((SIDE, 32, 4), 51, np.uint8))) == expected).all()


def test_an_array_that_is_a_view_with_steps() -> None:
    array = np.asarray(photo())
    assert np.array_equal(pixels(open_image(array[::-1, ::-1])), array[::-1, ::-1])


@pytest.mark.parametrize(
    "array",
    [np.zeros(32), np.zeros((1, 32, 32, 3)), np.array("text"), np.array([[None]]),
     np.zeros((32, 32), dtype=complex)],
)  # fmt: skip
def test_senseless_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"this array is .* give \(H, W\)"):
        open_image(array)


@pytest.mark.parametrize("source", [None, 7, 1.5, ["a.png"], {"path": "a.png"}, io.BytesIO(b"")])
def test_wrong_types_are_refused(source: Any) -> None:
    for door in (decode_image, open_image):
        with pytest.raises(ImageError, match=r"is not an image; give a file's bytes"):
            door(source)


@pytest.mark.parametrize(
    "source",
    ["http://example.com/a.png", "HTTPS://example.com/a.png", "data:image/png;base64,iVBORw0KGgo=",
     "DATA:,x", "file:///a.png", "ftp://example.com/a.png"],
)  # fmt: skip
def test_addresses_are_not_fetched(source: Any) -> None:
    with pytest.raises(ImageError, match="are not fetched"):
        decode_image(source)


def test_paths_without_a_picture(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    for source in (tmp_path / "none.png", tmp_path, str(tmp_path), "", fifo, "a\0.png", "s" * 5000):
        with pytest.raises(
            ImageError, match="no file can be read at '.*'; give the path of a local image"
        ):
            decode_image(source)


# ---------------------------------------------------------------- not a picture

JPEG = encode(photo(), "JPEG")
PNG = encode(photo(), "PNG")
GIF = encode(photo(), "GIF")
WEBP = encode(photo(), "WEBP")
TIFF = encode(photo(), "TIFF", compression="tiff_lzw")
BMP = encode(photo(), "BMP")

NOT_PICTURES = {
    "empty": b"",
    "text": b"Dear all,\nthis is not a picture.\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n",
    "video": b"\0\0\0\x18ftypisom\0\0\0\0mp42isom" + bytes(64),
    "ppm": b"P6 16 16 255\n" + bytes(768),
    "ico": encode(Image.new("RGB", (32, 32)), "ICO"),
    "random": np.random.default_rng(0).bytes(5000),
    "zeros": bytes(5000),
}

DAMAGED = {
    "jpeg half": JPEG[: len(JPEG) // 2],
    "jpeg header": JPEG[:200],
    "jpeg start": JPEG[:3],
    "png half": PNG[: len(PNG) // 2],
    "png header": PNG[:33],
    "png signature": PNG[:8],
    "png checksum": PNG[:29] + b"\0\0\0\0" + PNG[33:],
    "png pixels": png(64, 64, 8, 0, bytes(64)).replace(b"IDAT", b"IDAT\xff"),
    "gif half": GIF[: len(GIF) // 2],
    "gif header": GIF[:10],
    "webp half": WEBP[: len(WEBP) // 2],
    "webp header": WEBP[:16],
    "tiff half": TIFF[: len(TIFF) // 2],
    "tiff header": TIFF[:8],
    "bmp half": BMP[: len(BMP) // 2],
    "bmp header": BMP[:20],
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64),
    "heic as mif1": b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(64),
    "avif header": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(40),
    "png text bomb": png(
        32, 32, 8, 0, bytes(32), png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))
    ),
    "png profile bomb": png(
        32, 32, 8, 0, bytes(32), png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8)))
    ),
}


@pytest.mark.parametrize("name", NOT_PICTURES)
def test_what_is_not_a_picture_is_refused(name: str) -> None:
    with pytest.raises(ImageError, match="no accepted format; give an image as JPEG, PNG"):
        decode_image(NOT_PICTURES[name])


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused_and_neither_named_nor_explained(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "secret<b>.png"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(ImageError) as caught:
        decode_image(path)
    assert str(caught.value) == (
        "the image is damaged or cut short, or of a kind that is not read; save it again as PNG "
        "or JPEG"
    )


def test_an_heic_photo_is_shown_as_it_was_taken() -> None:
    for turn in (None, 1, 6):
        exif = Image.Exif()
        exif[0x0112] = turn or 1
        options = {} if turn is None else {"exif": exif.tobytes()}
        seen = decoded(encode(photo(320, 240), "HEIF", quality=90, **options))
        upright = photo(320, 240).rotate(-90, expand=True) if turn == 6 else photo(320, 240)
        assert seen.shape == pixels(upright).shape
        assert np.abs(seen - pixels(upright)).mean() < 3


def test_an_heic_photo_without_its_reader_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(photo(64, 64), "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(
        ImageError, match="HEIC files are not read here .HEIC takes pip install pillow-h"
    ):
        decode_image(data)


def test_only_the_parsers_of_the_accepted_formats_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("this parser must not run")

    Image.init()
    accepted = {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"}
    for name, (_, accept) in list(Image.OPEN.items()):
        if name not in accepted:
            monkeypatch.setitem(Image.OPEN, name, (never, accept and never))
    with pytest.raises(ImageError, match="no accepted format"):
        decode_image(NOT_PICTURES["ppm"])


# ---------------------------------------------------------------- limits


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt at pixels fails, and not with an error that is expected."""

    def load(_: ImageFile.ImageFile) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


def bomb(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel."""
    return png(width, height, 1, 0, bytes((width + 7) // 8))


def test_a_bomb_is_refused_by_its_header(no_decoding: None) -> None:
    data = bomb(12000, 12000)
    assert len(data) < 140_000
    # Pillow warns of it, and here warnings are errors; by default it says so and goes on.
    with pytest.raises(ImageError, match="more than 50 million pixels; scale it down"):
        decode_image(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError, match=r"12000 x 12000 pixels; at most 33.6 million"):
            decode_image(data)


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ((60000, 60000), "more than 50 million pixels"),
        ((2**31 - 1, 2**31 - 1), "more than 50 million pixels"),
        ((9000, 9000), "9000 x 9000 pixels; at most 33.6 million are taken: scale it down"),
        ((1, 400), "1 x 400 pixels; each side must have at least 16"),
        ((400, 1), "400 x 1 pixels; each side must have at least 16"),
        ((15, 15), "15 x 15 pixels; each side must have at least 16"),
        ((16, 321), "16 x 321 pixels; the longer side may be at most 20 times the shorter"),
        ((321, 16), "321 x 16 pixels; the longer side may be at most 20 times the shorter"),
    ],
)
def test_sizes_are_refused_by_the_header(
    no_decoding: None, size: tuple[int, int], sentence: str
) -> None:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 1, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    with pytest.raises(ImageError, match=sentence):
        decode_image(data)


@pytest.mark.parametrize(
    "file_format",
    ["JPEG", "GIF", "WEBP", "BMP", "TIFF", pytest.param("AVIF", marks=needs_avif)],
)
def test_every_format_is_judged_by_its_header(no_decoding: None, file_format: str) -> None:
    data = encode(photo(400, 300), file_format)
    tight = ImageLimits(max_pixels=100_000, max_whole_pixels=100_000)
    with pytest.raises(ImageError, match="400 x 300 pixels; at most 0.1 million"):
        decode_image(data, tight)


@pytest.mark.parametrize("source", [photo(400, 300), np.asarray(photo(400, 300))])
def test_pictures_in_memory_are_judged_too(source: Any) -> None:
    with pytest.raises(ImageError, match="400 x 300 pixels"):
        shown(source, limits=ImageLimits(max_pixels=100_000))


def test_a_size_at_the_limits_is_taken() -> None:
    assert decode_image(bomb(16, 320)).size == (16, 320)
    assert decode_image(bomb(320, 16)).size == (320, 16)


def test_too_many_bytes(tmp_path: Path) -> None:
    limits = ImageLimits(max_bytes=len(PNG) - 1)
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    for source in (PNG, path):
        with pytest.raises(ImageError, match="the file has more than .* MiB; make it smaller"):
            decode_image(source, limits)
    decode_image(PNG, dataclasses.replace(limits, max_bytes=len(PNG)))


def test_the_default_limit_of_bytes() -> None:
    with pytest.raises(ImageError, match="more than 20 MiB"):
        decode_image(PNG + bytes(20 * 2**20))


def test_running_out_of_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: ImageFile.ImageFile) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(ImageError, match="needs more memory than is free, or .*; scale it down"):
        decode_image(PNG)


# ---------------------------------------------------------------- large pictures come back smaller


def large(mode: str) -> Image.Image:
    wide = photo(250, 200)
    if mode == "I;16":
        return Image.fromarray(np.asarray(wide.convert("L")).astype(np.uint16) * 257)
    if mode in ("F", "I"):
        return Image.fromarray(np.asarray(wide.convert("L")).astype({"F": "f4", "I": "i4"}[mode]))
    if mode == "RGBA":
        wide.putalpha(wide.getchannel("R"))
        return wide
    return wide.convert(mode)


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [("RGB", "PNG"), ("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"),
     ("P", "PNG"), ("1", "PNG"), ("I;16", "PNG"), ("F", "TIFF"), ("I", "TIFF"), ("LA", "PNG")],
)  # fmt: skip
def test_a_large_picture_is_the_average_of_its_small_squares(mode: str, file_format: str) -> None:
    data = encode(large(mode), file_format)
    seen = pixels(decode_image(data, ImageLimits(keep_pixels=125 * 100)))
    whole = decoded(data)
    assert whole.shape == (200, 250, 3)
    assert seen.shape == (100, 125, 3)
    averages = whole.reshape(100, 2, 125, 2, 3).mean(axis=(1, 3))
    assert np.abs(seen - averages).mean() < 1.5


def test_transparent_edges_of_a_large_picture_have_no_fringe() -> None:
    # Opaque red beside transparent black: no black may bleed into the edge.
    rgba = np.zeros((40, 40, 4), dtype=np.uint8)
    rgba[:, :21] = (255, 0, 0, 255)
    seen = pixels(decode_image(encode(Image.fromarray(rgba), "PNG"), ImageLimits(keep_pixels=400)))
    assert seen.shape == (20, 20, 3)
    assert seen[0, 9].tolist() == [255, 0, 0]
    assert np.abs(seen[0, 10] - (255, 128, 128)).max() <= 1
    assert seen[0, 11].tolist() == [255, 255, 255]


def test_the_default_number_of_pixels_kept() -> None:
    assert decode_image(bomb(2048, 2048)).size == (2048, 2048)
    assert decode_image(bomb(2049, 2048)).size == (1025, 1024)


def test_a_large_jpeg_is_never_decoded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    load = ImageFile.ImageFile.load

    def spy(image: ImageFile.ImageFile) -> object:
        sizes.append(image.size)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", spy)
    seen = decode_image(encode(Image.new("RGB", (4000, 3000)), "JPEG", exif=exif(6)))
    assert set(sizes) == {(2000, 1500)}
    assert seen.size == (1500, 2000)


# ---------------------------------------------------------------- behind the first picture


def test_the_exif_of_a_picture_behind_the_first_is_not_its_own() -> None:
    second = encode(photo(), "JPEG", exif=exif(6))
    assert np.array_equal(decoded(JPEG + b"\0\2" + second), decoded(JPEG))


def test_only_the_first_of_many_frames_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    start = 13 + 3 * 2 ** ((GIF[10] & 7) + 1)
    many = GIF[:start] + GIF[start:-1] * 200 + GIF[-1:]
    monkeypatch.setattr(GifImageFile, "seek", lambda *_: pytest.fail("another frame was sought"))
    monkeypatch.setattr(GifImageFile, "n_frames", property(lambda _: pytest.fail("counted")))
    assert np.array_equal(decoded(many), decoded(GIF))


SEEDS: dict[str, bytes] = {
    "jpeg": encode(photo(), "JPEG", exif=exif(6), icc_profile=srgb_profile()),
    "progressive jpeg": encode(photo(), "JPEG", progressive=True),
    "png": encode(photo(), "PNG", icc_profile=srgb_profile()),
    "palette png": encode(palette_picture(), "PNG", transparency=bytes([51, 255])),
    "16-bit png": encode(Image.fromarray(RAMP_16[:32, :32].copy()), "PNG"),
    "gif": encode(photo(), "GIF", save_all=True, append_images=[photo().rotate(90)]),
    "webp": encode(photo(), "WEBP", exif=exif(6)),
    "tiff": encode(photo(), "TIFF"),
    "lzw tiff": encode(photo(), "TIFF", compression="tiff_lzw"),
    "float tiff": encode(Image.fromarray(np.zeros((32, 32), dtype=np.float32)), "TIFF"),
    "bmp": encode(photo(), "BMP"),
} | ({"avif": encode(photo(), "AVIF", exif=exif(6))} if features.check("avif") else {})


@pytest.mark.parametrize("name", SEEDS)
@settings(max_examples=25)
@given(data=st.data())
def test_mutated_files_give_a_picture_or_an_image_error(name: str, data: st.DataObject) -> None:
    mutated = bytearray(SEEDS[name])
    # Headers decide what a parser does: half of the changes go there.
    position = st.integers(0, len(mutated) - 1) | st.integers(0, min(200, len(mutated) - 1))
    for at, value in data.draw(st.lists(st.tuples(position, st.integers(0, 255)), max_size=8)):
        mutated[at] = value
    cut = data.draw(st.none() | position)
    try:
        seen = decode_image(bytes(mutated[:cut]))
    except ImageError:
        return
    assert seen.mode == "RGB"
    assert min(seen.size) >= SIDE
