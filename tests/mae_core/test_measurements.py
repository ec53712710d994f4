"""Measurements: TIFF files of every kind, NumPy files, 16-bit PNG, arrays; ranges of values."""

import io
import struct
import sys
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from mae_core.errors import ConfigError, ImageError
from mae_core.images import open_image, read_raster
from mae_core.measurements import as_value_range, find_value_range, to_levels
from mae_core.photographs import ImageLimits, decode_image

SIDE = 64


def waves(bands: int, low: float = 0, high: float = 1, dtype: Any = np.float64) -> np.ndarray:
    """(SIDE, SIDE, bands) of smooth values from low to high, another in each band."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    each = [(np.sin(5 * x + band) + np.cos(7 * y + band) + 2) / 4 for band in range(bands)]
    unit = np.stack(each, axis=-1)
    return (low + (high - low) * (unit - unit.min()) / np.ptp(unit)).astype(dtype)


def tiff(values: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    if values.ndim == 3 and values.shape[2] not in (1, SIDE) and "rgb" not in options.values():
        options = {"planarconfig": "contig", **options}
    tifffile.imwrite(file, values[:, :, 0] if values.shape[2:] == (1,) else values, **options)
    return file.getvalue()


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def levels_of(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip(np.rint((values.astype(np.float64) - low) / (high - low) * 255), 0, 255)


def opened(source: Any, channels: int, **options: Any) -> np.ndarray:
    picture = np.asarray(open_image(source, channels, **options)).astype(int)
    return picture if picture.ndim == 3 else picture[:, :, None]


BLACK_IS_ZERO = {"photometric": "minisblack"}


@pytest.mark.parametrize(
    "options",
    [{}, {"tile": (16, 32)}, {"compression": "lzw"}, {"compression": "zlib", "predictor": True},
     {"compression": "zstd"}, {"compression": "zlib", "tile": (32, 32)}, {"bigtiff": True},
     {"byteorder": ">"}, {"rowsperstrip": 5}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("bands", [1, 2, 4, 13])
def test_tiffs_of_every_kind(bands: int, dtype: str, options: dict[str, Any]) -> None:
    high = 255 if dtype == "uint8" else 3000
    low = -1000 if dtype in ("int16", "float32") else 0
    values = waves(bands, low, high, dtype)
    data = tiff(values, **BLACK_IS_ZERO, **options)
    seen = opened(data, bands, value_range=(low, high))
    # Halves are rounded either way.
    assert np.abs(seen - levels_of(values, low, high)).max() <= 1
    assert (seen == levels_of(values, low, high)).mean() > 0.99


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize(("dtype", "white"), [("uint8", 255), ("uint16", 65535), ("float32", 1)])
def test_colours_in_pixels_and_in_planes(dtype: str, white: float, planar: str) -> None:
    values = waves(3, 0, white, dtype)
    stored = values if planar == "contig" else np.moveaxis(values, 2, 0).copy()
    data = tiff(stored, photometric="rgb", planarconfig=planar)
    assert np.array_equal(opened(data, 3), levels_of(values, 0, white))


def test_pages_of_one_size_are_bands_where_bands_are_asked_for() -> None:
    values = waves(5, 0, 255, np.uint8)
    data = tiff(np.moveaxis(values, 2, 0).copy())
    assert np.array_equal(opened(data, 5), values)
    assert np.array_equal(opened(data, 2, bands=(5, 1)), values[:, :, [4, 0]])
    # A person is shown the first page.
    assert np.array_equal(opened(data, 1), values[:, :, :1])


def test_chosen_bands_in_any_order() -> None:
    values = waves(4, 0, 3000, np.uint16)
    data = tiff(values, **BLACK_IS_ZERO)
    seen = opened(data, 3, bands=(4, 2, 1), value_range="0,3000")
    assert np.array_equal(seen, levels_of(values[:, :, [3, 1, 0]], 0, 3000))
    one = opened(data, 3, bands=(4,), value_range="0,3000")
    assert np.array_equal(one, np.repeat(levels_of(values[:, :, 3:], 0, 3000), 3, axis=2))


@pytest.mark.parametrize(
    ("bands", "channels", "chosen", "sentence"),
    [(4, 3, (), "the image has 4 bands and the model takes 3; choose as many, .* bands=1,2,3"),
     (5, 3, (1, 2), r"5 bands, of which \[1, 2\] are asked for, and the model takes 3"),
     (4, 3, (1, 2, 5), r"4 bands, of which \[1, 2, 5\] are asked for, and the model takes 3"),
     (1, 4, (), "1 band and the model takes 4")],
)  # fmt: skip
def test_other_bands_than_the_model_takes(
    bands: int, channels: int, chosen: tuple[int, ...], sentence: str
) -> None:
    for data in (tiff(waves(bands, 0, 3000, np.uint16), **BLACK_IS_ZERO), npy(waves(bands))):
        with pytest.raises(ImageError, match=sentence):
            open_image(data, channels, bands=chosen)


def test_the_fourth_band_beside_rgb() -> None:
    for dtype, white in (("uint8", 255), ("uint16", 65535)):
        values = waves(4, 0, white, dtype)
        data = tiff(values, photometric="rgb", extrasamples=["unassalpha"])
        assert np.array_equal(opened(data, 4), levels_of(values, 0, white))
        assert np.abs(opened(data, 3) - levels_of(values[:, :, :3], 0, white)).max() <= 1


def test_white_may_be_zero() -> None:
    values = waves(1, 0, 65535, np.uint16)
    data = tiff(values[:, :, 0], photometric="miniswhite")
    assert np.array_equal(opened(data, 1), levels_of(65535 - values, 0, 65535))
    bits = imagecodecs.packints_encode(values[:, :, 0] >> 4, 12)
    tags = {256: SIDE, 257: SIDE, 258: 12, 259: 1, 262: 0, 273: 8, 277: 1, 278: SIDE,
            279: len(bits)}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = b"II*\0" + struct.pack("<I", 8 + len(bits))
    packed = start + bits + struct.pack("<H", len(tags)) + entries + bytes(4)
    seen = opened(packed, 1, value_range="0,4095")
    assert np.array_equal(seen, levels_of(4095 - (values >> 4), 0, 4095))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiffs_are_turned_upright(orientation: int) -> None:
    values = waves(4, 0, 255, np.uint8)[:, :40]
    data = tiff(values, **BLACK_IS_ZERO, extratags=[(274, 3, 1, orientation, True)])
    seen = opened(data, 4)
    # Pillow turns what it reads itself.
    grey = decode_image(
        tiff(values[:, :, 0], photometric="minisblack", extratags=[(274, 3, 1, orientation, True)])
    )
    assert np.array_equal(seen[:, :, 0], np.asarray(grey)[:, :, 0])


@pytest.mark.parametrize("tag", ["-9999", "nan"])
def test_gdals_value_for_nothing_measured(tag: str) -> None:
    values = waves(4, 1000, 2000, np.float32)
    values[:20] = float(tag)
    data = tiff(values, **BLACK_IS_ZERO, extratags=[(42113, 2, len(tag) + 1, tag, True)])
    seen = opened(data, 4)
    assert (seen[:20] == 0).all()
    assert np.ptp(seen[20:]) > 200


def test_pixels_that_were_not_measured_change_no_range() -> None:
    values = waves(4, 1000, 65000, np.uint16)
    holes = values.copy()
    holes[:20] = 0
    data = tiff(holes, **BLACK_IS_ZERO, extratags=[(42113, 2, 2, "0", True)])
    for spec in ("auto", "dtype"):
        seen = opened(data, 4, value_range=spec)
        assert (seen[:20] == 0).all()
        expected = opened(tiff(values, **BLACK_IS_ZERO), 4, value_range=spec)
        np.testing.assert_array_equal(seen[20:], expected[20:])
        raster = read_raster(data, 4)
        assert raster is not None
        assert set(find_value_range([raster.select(4)], spec)) == {(0.0, 65535.0)}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float16", "float32", "float64"])
def test_numpy_files(dtype: str, tmp_path: Path) -> None:
    values = waves(4, 0, 250, dtype)
    expected = levels_of(values, 0, 255 if dtype == "uint8" else 250)
    path = tmp_path / "a.npy"
    path.write_bytes(npy(values))
    for source in (npy(values), path, str(path), values):
        assert np.array_equal(opened(source, 4, value_range="0,250"), expected)
    grey = npy(values[:, :, 0])
    assert np.array_equal(opened(grey, 1, value_range="0,250"), expected[:, :, :1])
    assert np.array_equal(opened(grey, 3, value_range="0,250"), np.repeat(expected[:, :, :1], 3, 2))


@pytest.mark.parametrize(
    "data",
    [npy(np.array([{"a": 1}], dtype=object)), npy(np.zeros(9)), npy(np.zeros((2, 64, 64, 3))),
     npy(np.zeros((64, 64), dtype=complex)), npy(np.array(["text"])), npy(waves(2))[:500],
     b"\x93NUMPY\1\0" + b"\xff" * 100],
    ids=["objects", "line", "batch", "complex", "text", "cut", "header"],
)  # fmt: skip
def test_other_numpy_files_are_refused_in_a_sentence(data: bytes) -> None:
    with pytest.raises(ImageError, match="damaged or cut short|this array is "):
        open_image(data, 2)


@pytest.mark.parametrize("most", [4095, 65535])
def test_16_bit_colours_in_png_keep_all_bits(most: int) -> None:
    values = waves(3, 0, most, np.uint16)
    data = imagecodecs.png_encode(values)
    assert np.abs(opened(data, 3) - levels_of(values, 0, most)).max() <= 1
    grey = values[:, :, :1].copy()
    seen = opened(imagecodecs.png_encode(grey[:, :, 0]), 1, value_range=(0, most))
    assert np.abs(seen - levels_of(grey, 0, most)).max() <= 1


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_the_fourth_band_of_an_array_is_none_of_transparency(dtype: str) -> None:
    values = waves(4, 0, 4095, dtype)
    with pytest.raises(ImageError, match="4 bands and the model takes 3"):
        open_image(values)
    seen = opened(values, 3, bands=(1, 2, 3), value_range="0,4095")
    assert np.abs(seen - levels_of(values[:, :, :3], 0, 4095)).max() <= 1
    assert np.abs(opened(values, 4, value_range="0,4095") - levels_of(values, 0, 4095)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_grey_of_16_bits_is_turned_upright(orientation: int) -> None:
    values = waves(1, 0, 65535, np.uint16)[:, :40, 0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", exif=exif)
    data = file.getvalue()
    assert np.array_equal(opened(data, 3), np.asarray(decode_image(data)).astype(int))


def test_the_range_of_12_bits_in_16_is_found() -> None:
    values = waves(1, 0, 4095, np.uint16)
    image = Image.fromarray(values[:, :, 0])
    file = io.BytesIO()
    image.save(file, "PNG")
    for source in (file.getvalue(), image, values, values[:, :, 0], tiff(values[:, :, 0])):
        seen = opened(source, 3)
        assert np.abs(seen - levels_of(values, 0, 4095)).max() <= 3


def test_photographs_are_what_decode_image_makes_of_them(tmp_path: Path) -> None:
    image = Image.fromarray(waves(3, 0, 255, np.uint8))
    for file_format in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"):
        file = io.BytesIO()
        image.save(file, file_format)
        data = file.getvalue()
        assert read_raster(data) is None
        assert np.array_equal(opened(data, 3), np.asarray(decode_image(data)))
        assert np.array_equal(opened(data, 1)[:, :, 0], np.asarray(decode_image(data).convert("L")))
        # A declared range is about measurements.
        assert np.array_equal(opened(data, 3, value_range="0,9"), np.asarray(decode_image(data)))
    assert np.array_equal(opened(image, 1, bands=(2,)), np.asarray(image)[:, :, 1:2])


def test_the_profile_of_16_bit_colours_is_applied() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    values = waves(3, 0, 65535, np.uint16)
    plain = opened(tiff(values, photometric="rgb"), 3)
    # Not one of pictures: ignored, as elsewhere.
    assert np.array_equal(opened(tiff(values, photometric="rgb", iccprofile=profile), 3), plain)


def test_sizes_are_judged_before_anything_is_decoded() -> None:
    limits = ImageLimits(max_pixels=1000, max_whole_pixels=1000)
    bands = [tiff(waves(5), **BLACK_IS_ZERO), npy(waves(5)), waves(5)]
    for source, channels in (*((one, 5) for one in bands),
                             (imagecodecs.png_encode(waves(3, 0, 9, np.uint16)), 3)):  # fmt: skip
        with pytest.raises(ImageError, match="64 x 64 pixels"):
            open_image(source, channels, limits=limits)


def test_the_shape_of_a_numpy_file_is_judged_before_its_values_are_read(tmp_path: Path) -> None:
    path = tmp_path / "large.npy"
    # 8 TB that are not there: a sparse file's header says so.
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 8 * 10**12)
    with pytest.raises(ImageError, match="1000000 x 1000000 pixels"):
        open_image(path)


def test_large_measurements_are_reduced_as_photographs_are() -> None:
    values = waves(4, 0, 255, np.uint8)
    large = values.repeat(2, axis=0).repeat(2, axis=1)
    limits = ImageLimits(keep_pixels=SIDE**2)
    assert np.array_equal(opened(large, 4, limits=limits), values)


def test_an_array_with_its_channels_in_front_is_named() -> None:
    with pytest.raises(ImageError, match=r"of shape \(3, 64, 64\); give .* \(H, W, bands\)"):
        open_image(np.zeros((3, SIDE, SIDE), np.uint16))


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_damaged_tiffs_are_a_sentence(cut: float) -> None:
    data = tiff(waves(5, 0, 9, np.uint16), compression="zlib", **BLACK_IS_ZERO)
    with pytest.raises(ImageError):
        open_image(data[: int(len(data) * cut)], 5)


def test_without_tifffile_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ImageError, match="a kind that is not read; .* tifffile imagecodecs"):
        open_image(tiff(waves(5, 0, 9, np.uint16), **BLACK_IS_ZERO), 5)
    # What Pillow reads needs nothing else.
    values = waves(1, 0, 4095, np.uint16)
    assert np.abs(opened(tiff(values[:, :, 0]), 1) - levels_of(values, 0, 4095)).max() <= 3


# ---------------------------------------------------------------- ranges of values


def ramp(low: float, high: float, dtype: Any, bands: int = 1) -> np.ndarray:
    """(100, 100, bands) from low to high."""
    line = np.linspace(low, high, 10_000).reshape(100, 100, 1)
    return np.repeat(line, bands, axis=2).astype(dtype)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [("auto", "auto"), ("dtype", "dtype"), ("0,4095", ((0, 4095),)), ((0, 1.5), ((0, 1.5),)),
     ([-1, 1], ((-1, 1),)), (((0, 1), (0, 5)), ((0, 1), (0, 5))),
     (np.array([0, 9]), ((0, 9),)), (np.array([[0, 9], [1, 2]]), ((0, 9), (1, 2)))],
)  # fmt: skip
def test_a_range_as_people_give_it(spec: Any, expected: Any) -> None:
    assert as_value_range(spec) == expected


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "1",
        "0,0",
        "5,1",
        "0,1,2",
        "low,high",
        "nan,1",
        "0,inf",
        "-inf,inf",
        (1,),
        7,
        None,
        ((0, 1), (2, 1)),
    ],
)
def test_senseless_ranges_are_refused(spec: Any) -> None:
    with pytest.raises(ConfigError, match="the value range is .*; give auto, dtype, or LOW,HIGH"):
        as_value_range(spec)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (ramp(0, 40, np.uint8), (0, 255)),  # of 8 bits nothing is found
        (ramp(0, 65535, np.uint16), (0, 65535)),
        (ramp(0, 33000, np.uint16), (0, 65535)),  # more than half of the format
        (ramp(0, 1, np.float32), (0, 1)),
        (ramp(-0.02, 1.03, np.float32), (0, 1)),  # as interpolation leaves it
        (ramp(0, 255, np.float64), (0, 255)),
        (ramp(-3, 258, np.float64), (0, 255)),
        (np.full((9, 9, 1), 13107, np.uint16), (0, 65535)),  # flat
        (np.full((9, 9, 1), 0.2), (0, 1)),
        (np.full((9, 9, 1), 300.0), (299, 301)),
        (ramp(0, 1, bool), (0, 1)),
    ],
)
def test_the_full_range_where_it_is_used(values: np.ndarray, expected: tuple[float, float]) -> None:
    assert find_value_range([values]) == (expected,)


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(0, 4095, np.uint16), (0, 0.1, np.float32), (-1000, 3000, np.int16), (250, 320, np.float64),
     (70_000, 170_000, np.int32), (0, 2.5, np.float32), (-1, 1, np.float32)],
)  # fmt: skip
def test_percentiles_of_other_values(low: float, high: float, dtype: Any) -> None:
    ((found_low, found_high),) = find_value_range([ramp(low, high, dtype)])
    margin = 0.003 * (high - low)
    assert low <= found_low <= low + margin
    assert high - margin <= found_high <= high


def test_a_few_hot_pixels_do_not_darken_the_rest() -> None:
    values = ramp(0, 4095, np.uint16)
    values[0, :5] = 65535
    ((_, high),) = find_value_range([values])
    assert high <= 4095


def test_the_range_is_that_of_the_whole_data_set() -> None:
    dark, bright = ramp(0, 100, np.uint16), ramp(2000, 4000, np.uint16)
    ((low, high),) = find_value_range([dark, bright])
    assert low < 5
    assert high > 3980


def test_three_bands_share_a_range_and_others_have_their_own() -> None:
    factors = np.array([1, 10, 100, 1000])
    values = (ramp(0, 1, np.float64, 4) * factors).astype(np.float32)
    of_four = find_value_range([values + 300])
    assert [round(high - low) for low, high in of_four] == [1, 10, 100, 998]
    assert len(find_value_range([values[..., :3]])) == 1


def test_the_number_formats_own_range_and_declared_ones() -> None:
    values = ramp(0, 4095, np.uint16)
    assert find_value_range([values], "dtype") == ((0, 65535),)
    assert find_value_range([values.astype(np.float32)], "dtype") == ((0, 1),)
    assert find_value_range([values], "10,20") == ((10, 20),)


def test_missing_values_do_not_count() -> None:
    values = ramp(0, 1, np.float32)
    values[:50] = np.nan
    values[50] = np.inf
    assert find_value_range([values]) == ((0, 1),)
    levels = to_levels(values, ((0, 1),))
    assert (levels[:51] == 0).all()
    with pytest.raises(ImageError, match="no finite value"):
        find_value_range([values[:50]])


def test_levels_are_rounded_to_nearest_and_clipped() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    assert np.array_equal(to_levels(values, ((0, 65535),)), np.rint(values / 257))
    line = np.array([[[-1.0], [0.0], [0.5], [1.0], [9.0]]])
    assert to_levels(line, ((0, 1),)).ravel().tolist() == [0, 0, 128, 255, 255]
    large = np.array([[[2_000_000_000], [2_000_000_255]]], dtype=np.int64)
    assert to_levels(large, ((2e9, 2e9 + 255),)).ravel().tolist() == [0, 255]


def test_a_range_for_each_band() -> None:
    values = np.dstack([ramp(0, 10, np.float64), ramp(0, 1000, np.float64)])
    levels = to_levels(values, ((0, 10), (0, 1000)))
    assert np.array_equal(levels[..., 0], levels[..., 1])
    with pytest.raises(ConfigError, match="3 value ranges are given for 2 bands"):
        to_levels(values, ((0, 1),) * 3)
