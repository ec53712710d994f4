"""Which values become black and white: declared, by the number format, or found."""

from typing import Any

import numpy as np
import pytest

from mae_core.errors import ConfigError, ImageFormatError
from mae_core.value_range import as_value_range, find_value_range, to_levels


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
    with pytest.raises(ImageFormatError, match="no finite value"):
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
