"""Which values of a picture are black and white.

A picture of 8 bits says it by its number format. A measurement does not: 12-bit values in a 16-bit
file fill a sixteenth of it, and floats are in any unit. A value range maps such values to 0..1; it
is declared by whoever knows the data, or found from the values.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from mae_core.errors import ConfigError, ImageFormatError

# The values that become 0 and 1: one pair for all bands, or one a band.
ValueRange: TypeAlias = tuple[tuple[float, float], ...]

# What a caller may ask for: `auto`, `dtype`, a pair, or a pair a band.
RangeSpec: TypeAlias = str | Sequence[float] | ValueRange

# Shares of the values that a found range leaves out at either end, in percent.
_PERCENTILES = (0.1, 99.9)

# Values looked at in each picture.
_MOST_VALUES = 2**18

# What interpolation adds beyond a full range.
_OVERSHOOT = 0.05


def as_value_range(spec: RangeSpec) -> ValueRange | Literal["auto", "dtype"]:
    """A range as people give it.

    Args:
        spec: `auto`, `dtype`, `LOW,HIGH`, a pair of numbers, or a pair a band.

    Raises:
        ConfigError: If it is none of these, or a low value is not below its high value.
    """
    if isinstance(spec, str) and spec in ("auto", "dtype"):
        return "auto" if spec == "auto" else "dtype"
    try:
        parts: Any = spec.split(",") if isinstance(spec, str) else spec
        values = np.atleast_1d(np.array(parts, dtype=np.float64))
        pairs = values.reshape(-1, 2) if values.ndim == 2 or values.size == 2 else values[:0]
    except (ValueError, TypeError):
        pairs = np.zeros((0, 2))
    if not (len(pairs) and np.isfinite(pairs).all() and (pairs[:, 0] < pairs[:, 1]).all()):
        raise ConfigError(
            f"the value range is {spec!r}; give auto, dtype, or LOW,HIGH such as 0,4095"
        )
    return tuple((float(low), float(high)) for low, high in pairs)


def find_value_range(pictures: Iterable[npt.NDArray[Any]], spec: RangeSpec = "auto") -> ValueRange:
    """The range of a data set, or of one picture.

    `auto` takes the full range of the number format where the values use more than half of it
    (uint8: always; uint16: 0 to 65535; floats: 0 to 1, or 0 to 255). Else it takes the 0.1th and
    the 99.9th percentile of the values: of all bands together for one or three bands, whose
    ratios are a colour, and of each band for other numbers of bands.

    Args:
        pictures: (H, W, B) arrays of one number of bands. Values that are not finite count as
            missing. Read once; not more than one is kept.
        spec: See `as_value_range`.

    Returns:
        One pair, or one a band.

    Raises:
        ConfigError: If `spec` is not allowed.
        ImageFormatError: If no value is finite.
    """
    given = as_value_range(spec)
    if not isinstance(given, str):
        return given
    samples, dtypes = [], set()
    for values in pictures:
        dtypes.add(values.dtype)
        flat = values.reshape(-1, values.shape[-1])
        samples.append(flat[:: max(1, flat.size // _MOST_VALUES)])
        if given == "dtype":
            break
    dtype = np.result_type(*dtypes)
    if given == "dtype" or dtype == np.uint8:
        return ((0.0, _full(dtype)),)
    sample = np.concatenate(samples).astype(np.float64)
    together = sample.shape[1] in (1, 3)
    columns = [sample.ravel()] if together else list(sample.T)
    return tuple(_found(column[np.isfinite(column)], dtype) for column in columns)


def _found(values: npt.NDArray[np.float64], dtype: np.dtype[Any]) -> tuple[float, float]:
    if not values.size:
        raise ImageFormatError("the picture holds no finite value; check how it was written")
    low, high = (float(value) for value in np.percentile(values, _PERCENTILES))
    fulls = {"f": (1.0, 255.0), "u": (_full(dtype),), "b": (1.0,)}.get(dtype.kind, ())
    for full in fulls:
        fits = low >= -_OVERSHOOT * full and high <= (1 + _OVERSHOOT) * full
        if fits and (high > full / 2 or low == high):
            return 0.0, full
    # A flat picture tells nothing but its level.
    return (low, high) if low < high else (low - 1, low + 1)


def _full(dtype: np.dtype[Any]) -> float:
    return 1.0 if dtype.kind in "fb" else float(np.iinfo(dtype).max)


def to_levels(values: npt.NDArray[Any], value_range: ValueRange) -> npt.NDArray[np.uint8]:
    """Values as 0..255, rounded to nearest; what lies outside the range is clipped.

    Args:
        values: (H, W, B); values that are not finite become 0.
        value_range: One pair, or one a band.

    Returns:
        (H, W, B).

    Raises:
        ConfigError: If there are other than one or B pairs.
    """
    bands = values.shape[-1]
    if len(value_range) not in (1, bands):
        raise ConfigError(
            f"{len(value_range)} value ranges are given for {bands} bands; give one for all, or "
            "one a band"
        )
    levels = np.empty(values.shape, dtype=np.uint8)
    # Band by band, to bound the memory that floats take.
    for band in range(bands):
        low, high = value_range[band % len(value_range)]
        if values.dtype == np.uint8 and (low, high) == (0, 255):
            levels[..., band] = values[..., band]
            continue
        scaled = values[..., band].astype(np.result_type(values.dtype, np.float32))
        scaled -= low
        scaled *= 255 / (high - low)
        scaled[~np.isfinite(scaled)] = 0
        levels[..., band] = np.clip(np.rint(scaled, out=scaled), 0, 255, out=scaled)
    return levels


def range_in_words(value_range: ValueRange) -> str:
    """Such as `0 to 4095`, or one for each band."""
    return ", ".join(f"{low:g} to {high:g}" for low, high in value_range)
