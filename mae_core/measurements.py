"""Images of more than 8 bits a value, or of other bands than red, green and blue.

An image of 8 bits says by its dtype which values are black and white. A measurement does not:
12-bit values in a 16-bit file fill a sixteenth of it, and floats have any unit. A value range maps
such values to 0..255. It is declared by whoever knows the data, or found from the values.

TIFF files of any kind are read by tifffile and imagecodecs (`requirements-science.txt`).
"""

import importlib
import io
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from mae_core.errors import ConfigError, ImageError

__all__ = ["RangeSpec", "Raster", "find_value_range", "to_levels"]

# The values that become 0 and 255: one pair for all bands, or one a band.
ValueRange: TypeAlias = tuple[tuple[float, float], ...]

# What a caller may ask for: `auto`, `dtype`, a pair, or a pair a band.
RangeSpec: TypeAlias = str | Sequence[float] | ValueRange

# Raises an error for a (width, height) that is not allowed.
SizeCheck: TypeAlias = Callable[[tuple[int, int]], None]

# A range that is found leaves out this share of the values at either end.
_PERCENTILES = (0.1, 99.9)
_SAMPLED_VALUES = 2**18  # of each image
_OVERSHOOT = 0.05  # what interpolation adds beyond a full range

# Tags of EXIF and TIFF: the orientation, and GDAL's value of pixels that were not measured.
_ORIENTATION, _GDAL_NODATA = 274, 42113

# TIFF: photometric interpretations, extra samples that are transparency, and the compressions of
# photographs that are left to Pillow: none, LZW, deflate, PackBits, deflate.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_ALPHA = (1, 2)
_COMMON_COMPRESSIONS = (1, 5, 8, 32773, 32946)


def as_value_range(spec: RangeSpec) -> ValueRange | Literal["auto", "dtype"]:
    """A value range as people give it: `auto`, `dtype`, `LOW,HIGH`, a pair, or a pair a band.

    Raises:
        ConfigError: If it is none of these, or a low value is not below its high value.
    """
    if isinstance(spec, str) and spec in ("auto", "dtype"):
        return "auto" if spec == "auto" else "dtype"
    pairs: npt.NDArray[np.float64] = np.empty(0)
    with suppress(ValueError, TypeError):
        parts: Any = spec.split(",") if isinstance(spec, str) else spec
        pairs = np.atleast_2d(np.array(parts, dtype=np.float64))
    is_range = pairs.ndim == 2 and pairs.shape[1] == 2 and len(pairs) > 0
    if not is_range or not np.isfinite(pairs).all() or not (pairs[:, 0] < pairs[:, 1]).all():
        raise ConfigError(
            f"the value range is {spec!r}; give auto, dtype, or LOW,HIGH such as 0,4095"
        )
    return tuple((float(low), float(high)) for low, high in pairs)


def find_value_range(images: Iterable[npt.NDArray[Any]], spec: RangeSpec = "auto") -> ValueRange:
    """Find the value range of a data set, or of one image: one pair, or one a band.

    `auto` takes the full range of the dtype where the values use more than half of it (uint8:
    always; uint16: 0 to 65535; floats: 0 to 1, or 0 to 255). Else it takes the 0.1th and the
    99.9th percentile: of all bands together for one or three bands, whose ratios are a colour, and
    of each band for other numbers of bands.

    Args:
        images: (H, W, B) arrays of the same B. Values that are masked or not finite are left out.
            Read once; only a sample of each is kept.
        spec: See `as_value_range`.

    Raises:
        ConfigError: If `spec` is not allowed.
        ImageError: If no value is finite.
    """
    given = as_value_range(spec)
    if not isinstance(given, str):
        return given
    samples, dtypes = [], set()
    for values in images:
        dtypes.add(values.dtype)
        flat = values.reshape(-1, values.shape[-1])
        sample = flat[:: max(1, flat.size // _SAMPLED_VALUES)].astype(np.float64)
        samples.append(np.ma.filled(sample, np.nan))
        if given == "dtype":
            break
    dtype = np.result_type(*dtypes)
    if given == "dtype" or dtype == np.uint8:
        return ((0.0, _full(dtype)),)
    sample = np.concatenate(samples)
    columns = [sample.ravel()] if sample.shape[1] in (1, 3) else list(sample.T)
    return tuple(_found(column[np.isfinite(column)], dtype) for column in columns)


def _found(values: npt.NDArray[np.float64], dtype: np.dtype[Any]) -> tuple[float, float]:
    if not values.size:
        raise ImageError("the image holds no finite value; check how it was written")
    low, high = (float(value) for value in np.percentile(values, _PERCENTILES))
    fulls = {"f": (1.0, 255.0), "u": (_full(dtype),), "b": (1.0,)}.get(dtype.kind, ())
    for full in fulls:
        fits = low >= -_OVERSHOOT * full and high <= (1 + _OVERSHOOT) * full
        if fits and (high > full / 2 or low == high):
            return 0.0, full
    # A flat image tells nothing but its level.
    return (low, high) if low < high else (low - 1, low + 1)


def _full(dtype: np.dtype[Any]) -> float:
    return 1.0 if dtype.kind in "fb" else float(np.iinfo(dtype).max)


def to_levels(values: npt.NDArray[Any], value_range: ValueRange) -> npt.NDArray[np.uint8]:
    """Values as 0..255, rounded to nearest and clipped.

    Args:
        values: (H, W, B); values that are masked or not finite become 0.
        value_range: One pair, or one a band; else a ConfigError is raised.
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
        scaled = np.ma.filled(scaled, np.nan)
        scaled -= low
        scaled *= 255 / (high - low)
        scaled[~np.isfinite(scaled)] = 0
        levels[..., band] = np.clip(np.rint(scaled, out=scaled), 0, 255, out=scaled)
    return levels


def range_in_words(value_range: ValueRange) -> str:
    """Such as `0 to 4095`, or one for each band."""
    return ", ".join(f"{low:g} to {high:g}" for low, high in value_range)


@dataclass(frozen=True)
class Raster:
    """An image's values as they are stored.

    Attributes:
        values: (H, W, B) in the file's dtype; masked, or not finite, where nothing was measured.
        seen: How many of the first bands a person sees, if the file says so: of RGB three, of grey
            with transparency one; else 0.
        profile: ICC profile of its colours, if any.
    """

    values: npt.NDArray[Any]
    seen: int = 0
    profile: bytes | None = None

    def select(self, channels: int, bands: Sequence[int] = ()) -> npt.NDArray[Any]:
        """The (H, W, C) bands that are a model's `channels`.

        Args:
            channels: C of the model.
            bands: Numbers of bands from 1. Without any, all of them if they are C; else those
                that a person sees. A single band stands for three.

        Raises:
            ImageError: If there are other bands than the model takes.
        """
        values, found = self.values, self.values.shape[2]
        is_known = all(1 <= band <= found for band in bands)
        if bands and is_known:
            values = values[..., [band - 1 for band in bands]]
        elif found != channels and self.seen:
            values = values[..., : self.seen]
        if is_known and values.shape[2] == channels:
            return values
        if is_known and values.shape[2] == 1 and channels == 3:
            return np.repeat(values, 3, axis=2)
        asked = f", of which {list(bands)} are asked for," if bands else ""
        advice = "bands=" + ",".join(str(band) for band in range(1, channels + 1))
        raise ImageError(
            f"the image has {found} band{'s' * (found > 1)}{asked} and the model takes "
            f"{channels}; choose as many, such as {advice}, or give another image"
        )


def raster_of(
    array: npt.NDArray[Any], check_size: SizeCheck, *, as_bands: bool = True
) -> Raster | None:
    """An array (H, W) or (H, W, B) of numbers as a raster; None for a photograph.

    Of uint8, one band, three, or four with transparency are a photograph, unless `as_bands`.
    """
    has_channels_first = array.ndim == 3 and len(array) < 16 <= array.shape[2]
    if array.ndim not in (2, 3) or array.dtype.kind not in "buif" or has_channels_first:
        raise ImageError(
            f"this array is {array.dtype} of shape {array.shape}; give (H, W) or (H, W, bands) of "
            "numbers"
        )
    values = array[:, :, None] if array.ndim == 2 else array
    if not as_bands and values.dtype == np.uint8 and values.shape[2] in (1, 3, 4):
        return None
    check_size((array.shape[1], array.shape[0]))
    return Raster(values)


def read_npy(source: bytes | str | Path, check_size: SizeCheck) -> Raster | None:
    """A NumPy file; its shape is judged before its values are read."""
    if isinstance(source, bytes):
        return raster_of(np.load(io.BytesIO(source), allow_pickle=False), check_size)
    return raster_of(np.load(source, mmap_mode="r", allow_pickle=False), check_size)


def read_tiff(
    source: bytes | str | Path, check_size: SizeCheck, *, as_bands: bool
) -> Raster | None:
    """A TIFF of any dtype, bands, tiles and compression, in grey, RGB or bands; by tifffile.

    None for a photograph, unless `as_bands`: palettes, inks, profiles and transparency on white
    are Pillow's. With `as_bands`, pages of one size are bands; else the first page is the image.
    """
    tifffile = importlib.import_module("tifffile")
    with tifffile.TiffFile(io.BytesIO(source) if isinstance(source, bytes) else source) as tiff:
        page = tiff.pages.first
        check_size((page.imagewidth, page.imagelength))
        alpha = bool(page.extrasamples) and page.extrasamples[-1] in _ALPHA
        seen = 3 if page.photometric == _RGB else page.samplesperpixel - alpha
        plain = page.dtype == np.uint8 and seen in (1, 3) and page.samplesperpixel <= seen + alpha
        common = page.compression in _COMMON_COMPRESSIONS and not page.is_tiled
        if page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB) or (
            plain and common and not as_bands
        ):
            return None
        stored = tiff.series[0] if as_bands else page
        axes = stored.axes.index("Y"), stored.axes.index("X")
        values = np.moveaxis(stored.asarray(), axes, (0, 1))
        values = values.reshape(*values.shape[:2], -1)
        if page.photometric == _WHITE_IS_ZERO and values.dtype.kind in "bu":
            # Of the bits that the file has, which may be 12 in a dtype of 16.
            values = values ^ np.array(2**page.bitspersample - 1, dtype=values.dtype)
        nodata = page.tags.valueof(_GDAL_NODATA)
        if nodata is not None and values.dtype != np.uint8:
            # Masked, for the dtype says what full scale is, and integers have no NaN.
            values = np.ma.masked_equal(values, float(str(nodata).strip("\0 ")))
        return Raster(upright(values, page.tags.valueof(_ORIENTATION, 1)), seen, page.iccprofile)


def upright(values: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """A stored (H, W, ...) array as it is seen, by its EXIF or TIFF orientation of 1 to 8."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values


def orientation_of(exif: bytes | None) -> int:
    """The orientation in EXIF data; 1 if there is none or the data is damaged.

    Pillow's parser copies whatever all tags claim; nothing but this tag is read here.
    """
    data = (exif or b"").removeprefix(b"Exif\0\0")
    order = "<" if data[:2] == b"II" else ">"
    with suppress(struct.error):
        (at,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", data, entry)
            if tag == _ORIENTATION:
                form = order + ("I" if kind == 4 else "H")
                return int(struct.unpack_from(form, data, entry + 8)[0])
    return 1
