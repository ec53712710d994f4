"""Pictures that are measurements: more than 8 bits a value, or bands other than red, green, blue.

`open_picture` is the door to every picture of the library: photographs by `decode_image`, and TIFF
files of any number format, bands, tiles and compression, NumPy files and arrays by what is here.
It ends in 8 bits a value, by a range of values that is declared or found (`value_range`).

TIFF files need tifffile, 16-bit colour PNG files imagecodecs (`requirements-science.txt`). Neither
is run on the page: `decode_image` judges what strangers hand over.
"""

import importlib
import importlib.util
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mae_core.errors import ImageFormatError, ImageLimitError
from mae_core.images import (
    DEFAULT_LIMITS,
    SOUND_COMPRESSIONS,
    TIFF_START,
    ImageLimits,
    ImageSource,
    Picture,
    check_size,
    decode_image,
    of_each_band,
    parser_errors,
    read_file,
    shrink_factor,
    stored_numbers,
    to_srgb,
)
from mae_core.value_range import RangeSpec, find_value_range, to_levels

_NPY_START = b"\x93NUMPY"

# TIFF's tags for the orientation and GDAL's value of pixels without a measurement; its photometric
# interpretations; its extra samples that are transparency.
_ORIENTATION, _GDAL_NODATA = 274, 42113
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_ALPHA = (1, 2)

# Bytes of a TIFF's values in memory.
_MOST_BYTES = 2**31

# How to turn an array of rows and columns upright, by TIFF's orientation.
_UPRIGHT: dict[int, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1], 8: lambda a: a.swapaxes(0, 1)[::-1],
}  # fmt: skip


@dataclass(frozen=True)
class Raster:
    """A picture as it is stored.

    Attributes:
        values: (H, W, B) in the file's number format; floats that are not finite where nothing
            was measured.
        seen: How many of the first bands a person sees, by the file's own word: of RGB three, of
            grey with transparency one; 0 if it does not say.
        profile: ICC profile of its colours, if any.
    """

    values: npt.NDArray[Any]
    seen: int = 0
    profile: bytes | None = None

    def select(self, channels: int, bands: Sequence[int] = ()) -> npt.NDArray[Any]:
        """The bands that are a model's channels.

        Args:
            channels: C of the model.
            bands: Numbers of bands from 1. Without any, all of them if they are C; else those
                that a person sees. A single band stands for three.

        Returns:
            (H, W, C).

        Raises:
            ImageFormatError: If there are other bands than the model takes.
        """
        found = self.values.shape[2]
        picked = self.values
        if bands:
            if not all(1 <= band <= found for band in bands):
                raise ImageFormatError(
                    f"bands {_listed(bands)} are asked for, and the picture has 1 to {found}"
                )
            picked = picked[..., [band - 1 for band in bands]]
        elif found != channels and self.seen:
            picked = picked[..., : self.seen]
        count = picked.shape[2]
        if count not in (1, channels) or (count == 1 and channels not in (1, 3)):
            noun = "band" if count == 1 else "bands"
            said = f"{count} {noun} chosen" if bands else f"{count} {noun} in the picture"
            advice = "give a picture that has them all"
            if found >= channels:
                advice = f"choose as many, such as bands={_listed(range(1, channels + 1))}"
            raise ImageFormatError(f"{said}, and the model takes {channels}; {advice}")
        return np.repeat(picked, channels, axis=2) if count < channels else picked


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(str(number) for number in numbers)


def open_picture(
    source: ImageSource,
    channels: int = 3,
    *,
    bands: Sequence[int] = (),
    value_range: RangeSpec = "auto",
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Picture:
    """Any picture, with the channels that a model takes.

    A photograph is what `decode_image` makes of it. Of a measurement the bands are chosen, and its
    values scaled to 0..255.

    Args:
        source: A file's bytes, a path, a PIL picture, or an array (H, W) or (H, W, B).
        channels: C of the model.
        bands: Numbers of bands from 1, C of them or one; without any see `Raster.select`.
        value_range: Of values of more than 8 bits: `auto` (see `find_value_range`), `dtype`, or
            pairs. Values of 8 bits are taken as they are.
        limits: See `decode_image`; `max_bytes` is about photographs only.

    Returns:
        A PIL picture for one channel (mode L) or three (RGB); else (H, W, C) uint8.

    Raises:
        ImageFormatError: If it is no picture, damaged, has other bands than the model takes, or
            needs a package that is not installed.
        ImageLimitError: If it is too large, too small or too narrow.
        ConfigError: If the range is not allowed.
    """
    raster = read_raster(source, channels, bands, limits)
    if raster is None:
        photograph = decode_image(source, limits, value_range=value_range)
        return photograph if channels == 3 else photograph.convert("L")
    values = raster.select(channels, bands)
    if values.dtype == np.uint8:
        value_range = "dtype"
    levels = to_levels(values, find_value_range([values], value_range))
    picture: Picture = levels
    if channels == 1:
        picture = Image.fromarray(levels[:, :, 0])
    elif channels == 3:
        picture = to_srgb(Image.fromarray(levels), None if bands else raster.profile)
    factor = shrink_factor((levels.shape[1], levels.shape[0]), limits)
    return picture if factor == 1 else of_each_band(picture, lambda band: band.reduce(factor))


def read_raster(
    source: ImageSource,
    channels: int = 3,
    bands: Sequence[int] = (),
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Raster | None:
    """A picture's values as they are stored; None for a photograph, which `decode_image` reads.

    A photograph is a raster too where bands are chosen, or the model takes other than one or three
    channels.

    Raises:
        ImageFormatError: If it is no picture, damaged, or needs a package that is not installed.
        ImageLimitError: If it is too large, too small or too narrow.
    """
    chosen = bool(bands) or channels not in (1, 3)
    if isinstance(source, np.ndarray):
        raster = _from_array(source, limits, chosen)
    elif isinstance(source, Image.Image):
        numbers = stored_numbers(source)
        raster = None if numbers is None else Raster(_rows(numbers))
    elif isinstance(source, bytes | str | Path):
        raster = _from_file(source, limits, chosen)
    else:
        raster = None
    if raster is None and chosen:
        return Raster(np.asarray(decode_image(source, limits)))
    return raster


def _rows(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(H, W) or (H, W, B) as (H, W, B)."""
    return values[:, :, None] if values.ndim == 2 else values


def _from_array(array: npt.NDArray[Any], limits: ImageLimits, chosen: bool) -> Raster | None:
    if array.ndim not in (2, 3) or array.dtype.kind not in "buif":
        return None
    # Of 8 bits, four bands are a photograph with transparency.
    is_photograph = array.dtype == np.uint8 and (array.ndim == 2 or array.shape[2] in (1, 3, 4))
    if is_photograph and not chosen:
        return None
    if array.ndim == 3 and array.shape[0] < limits.min_side <= array.shape[2]:
        raise ImageFormatError(
            f"this array is of shape {array.shape}; give (H, W, bands), or floats in 0..1 of shape "
            "(C, H, W) for a model of C channels"
        )
    check_size((array.shape[1], array.shape[0]), limits.max_pixels, limits)
    return Raster(_rows(array))


def _from_file(source: bytes | str | Path, limits: ImageLimits, chosen: bool) -> Raster | None:
    head = source[:32] if isinstance(source, bytes) else read_file(source, 32)
    if head.startswith(_NPY_START):
        with parser_errors():
            # A file's shape is judged before its numbers are read.
            if isinstance(source, bytes):
                array = np.load(io.BytesIO(source), allow_pickle=False)
            else:
                array = np.load(source, mmap_mode="r", allow_pickle=False)
        raster = _from_array(array, limits, chosen=True)
        if raster is None:
            raise ImageFormatError(
                f"the array in the file is {array.dtype} of shape {array.shape}; give numbers of "
                "shape (H, W) or (H, W, bands)"
            )
        return raster
    if TIFF_START.match(head):
        return _from_tiff(source, limits, chosen)
    if head.startswith(b"\x89PNG") and head[24:25] == b"\x10":
        return _from_png(source, limits, is_colour=head[25:26] == b"\x02")
    return None


def _from_numbers(source: bytes | str | Path, limits: ImageLimits) -> Raster | None:
    """Grey of more than 8 bits, as Pillow reads it."""
    numbers = stored_numbers(source, limits)
    return None if numbers is None else Raster(_rows(numbers))


def _from_png(source: bytes | str | Path, limits: ImageLimits, is_colour: bool) -> Raster | None:
    """16 bits a value; Pillow keeps only the upper half of those of colours."""
    if not is_colour or not importlib.util.find_spec("imagecodecs"):
        return _from_numbers(source, limits)
    data = source if isinstance(source, bytes) else read_file(source, limits.max_bytes + 1)
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    check_size((width, height), limits.max_whole_pixels, limits)
    with parser_errors():
        return Raster(importlib.import_module("imagecodecs").png_decode(data))


def _from_tiff(source: bytes | str | Path, limits: ImageLimits, chosen: bool) -> Raster | None:
    """A TIFF of any number format, bands, tiles and compression, in grey, RGB or bands.

    Pages of one size are bands where bands are chosen; else the first page is the picture.
    """
    if not importlib.util.find_spec("tifffile"):
        try:
            return _from_numbers(source, limits)
        except ImageFormatError as error:
            raise ImageFormatError(f"{error}; or pip install tifffile imagecodecs") from error
    tifffile = importlib.import_module("tifffile")
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with parser_errors(), tifffile.TiffFile(file) as tiff:
        page = tiff.pages.first
        check_size((page.imagewidth, page.imagelength), limits.max_pixels, limits)
        alpha = bool(page.extrasamples) and page.extrasamples[-1] in _ALPHA
        seen = 3 if page.photometric == _RGB else page.samplesperpixel - alpha
        # Of these Pillow knows more: palettes, inks, profiles, transparency on white.
        plain = page.dtype == np.uint8 and seen in (1, 3) and page.samplesperpixel <= seen + alpha
        sound = page.compression in SOUND_COMPRESSIONS and not page.is_tiled
        if page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB) or (
            plain and sound and not chosen
        ):
            return None
        stored = tiff.series[0] if chosen else page
        if stored.nbytes > _MOST_BYTES:
            raise ImageLimitError(
                f"the picture's values take {stored.nbytes / 2**30:.3g} GiB; at most "
                f"{_MOST_BYTES / 2**30:.3g} are read: cut it into tiles"
            )
        places = stored.axes.index("Y"), stored.axes.index("X")
        values = np.moveaxis(stored.asarray(), places, (0, 1))
        values = values.reshape(*values.shape[:2], -1)
        if page.photometric == _WHITE_IS_ZERO and values.dtype.kind in "bu":
            # Of the bits that the file has, which may be 12 in a number format of 16.
            values = values ^ np.array(2**page.bitspersample - 1, dtype=values.dtype)
        nodata = page.tags.get(_GDAL_NODATA)
        if nodata is not None and values.dtype != np.uint8:
            measured = values != float(str(nodata.value).strip("\0 "))
            values = np.where(measured, values, np.nan)
        turn = _UPRIGHT.get(page.tags.valueof(_ORIENTATION, 1))
        return Raster(values if turn is None else turn(values), seen, page.iccprofile)
