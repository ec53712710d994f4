"""Images in and out: a file, an array or a PIL image -> a model's pixels -> a PIL image.

`open_image` opens every image: photographs as a person sees them (`photographs`), measurements by
a range of their values (`measurements`). `fit_image` brings an image to whole patches; `to_tensor`
and `to_pil` go to the model's pixels and back.
"""

import importlib
import io
import math
import operator
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from mae_core.errors import ConfigError, ImageError
from mae_core.measurements import (
    RangeSpec,
    Raster,
    as_value_range,
    find_value_range,
    raster_of,
    read_npy,
    read_tiff,
    to_levels,
)
from mae_core.photographs import (
    DEFAULT_LIMITS,
    START_BYTES,
    ImageLimits,
    decode_image,
    format_of,
    grey_values,
    open_file,
    parser_errors,
    read_file,
    to_srgb,
)

__all__ = [
    "FITS",
    "DecodedImage",
    "ImageSource",
    "fit_image",
    "open_image",
    "png_bytes",
    "to_pil",
    "to_tensor",
]

# What `open_image` takes, and what it gives: PIL for one or three channels, else (H, W, C) uint8.
ImageSource: TypeAlias = bytes | str | Path | Image.Image | npt.NDArray[Any]
DecodedImage: TypeAlias = Image.Image | npt.NDArray[np.uint8]

# (left, top, right, bottom) in pixels.
_Box: TypeAlias = tuple[int, int, int, int]

FITS = ("crop", "squash", "whole")

# A whole frame's long side is at most this many times its short side.
_WHOLE_MAX_ASPECT = 4


def open_image(
    source: ImageSource,
    channels: int = 3,
    *,
    bands: Sequence[int] = (),
    value_range: RangeSpec = "auto",
    limits: ImageLimits = DEFAULT_LIMITS,
) -> DecodedImage:
    """Open any image with the channels that a model takes.

    Args:
        source: A file's bytes, a path, a PIL image, or an array (H, W) or (H, W, B). Of uint8, a
            fourth band is transparency.
        channels: C of the model.
        bands: Numbers of bands from 1, C of them or one; without any see `Raster.select`.
        value_range: Of values of more than 8 bits; see `as_value_range`, `find_value_range`.
        limits: What the image may measure; `max_bytes` is about photographs only.

    Returns:
        A PIL image for one channel (mode L) or three (RGB); else (H, W, C) uint8.

    Raises:
        ImageError: If it cannot be used.
        ConfigError: If the range is not allowed.
    """
    as_value_range(value_range)
    try:
        bands = [operator.index(band) for band in bands]
    except TypeError as error:
        raise ConfigError(f"bands is {bands!r}; give numbers from 1, such as (3, 2, 1)") from error
    found = _read(source, channels, bands, limits)
    if isinstance(found, Image.Image):
        photograph = decode_image(found, limits, value_range=value_range)
        return photograph if channels == 3 else photograph.convert("L")
    values = found.select(channels, bands)
    if values.dtype == np.uint8:
        value_range = "dtype"
    levels = to_levels(values, find_value_range([values], value_range))
    image: DecodedImage = levels
    if channels == 1:
        image = Image.fromarray(levels[:, :, 0])
    elif channels == 3:
        image = to_srgb(Image.fromarray(levels), None if bands else found.profile)
    factor = limits.shrink_factor(size_of(image))
    return image if factor == 1 else _of_each_band(image, lambda band: band.reduce(factor))


def read_raster(
    source: ImageSource,
    channels: int = 3,
    bands: Sequence[int] = (),
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Raster | None:
    """An image's values as they are stored, by `open_image`'s arguments; None for a photograph.

    A photograph is a raster too where bands are chosen, or channels are other than one or three.
    """
    found = _read(source, channels, bands, limits)
    return found if isinstance(found, Raster) else None


def _read(
    source: ImageSource, channels: int, bands: Sequence[int], limits: ImageLimits
) -> Raster | Image.Image:
    """Stored values, or a photograph that is opened but not decoded."""
    as_bands = bool(bands) or channels not in (1, 3)
    found: Raster | Image.Image
    if isinstance(source, np.ndarray):
        plain = source[:, :, 0] if source.shape[2:] == (1,) else source
        raster = raster_of(source, limits.check_size, as_bands=as_bands)
        found = raster or Image.fromarray(np.ascontiguousarray(plain))
    elif isinstance(source, bytes | str | Path):
        found = _read_file(source, limits, as_bands)
    else:
        found = open_file(source, limits)
    if isinstance(found, Raster):
        return found
    values = grey_values(found)
    if values is None and as_bands:
        values = np.asarray(decode_image(found, limits))
    return found if values is None else Raster(values)


def _read_file(
    source: bytes | str | Path, limits: ImageLimits, as_bands: bool
) -> Raster | Image.Image:
    start = read_file(source, START_BYTES)
    known = format_of(start)
    name = known.name if known else ""
    raster = None
    with parser_errors():
        if name == "NumPy":
            raster = read_npy(source, limits.check_size)
        elif name == "TIFF" and find_spec("tifffile"):
            raster = read_tiff(source, limits.check_size, as_bands=as_bands)
    if raster:
        return raster
    try:
        image = open_file(source, limits)
    except ImageError as error:
        if name != "TIFF" or find_spec("tifffile") or error.code == "image_limit":
            raise
        raise ImageError(f"{error}, or pip install tifffile imagecodecs") from error
    # Pillow keeps only the upper half of a PNG's 16-bit colours.
    if name == "PNG" and start[24:26] == b"\x10\2" and find_spec("imagecodecs"):
        with parser_errors():
            data = read_file(source, limits.max_bytes)
            return Raster(importlib.import_module("imagecodecs").png_decode(data))
    return image


def size_of(image: DecodedImage) -> tuple[int, int]:
    """(width, height) of an image."""
    return image.shape[1::-1] if isinstance(image, np.ndarray) else image.size


def _of_each_band(
    image: DecodedImage, change: Callable[[Image.Image], Image.Image]
) -> DecodedImage:
    """What `change` makes of a PIL image, or of each band of an array."""
    if isinstance(image, np.ndarray):
        planes = [Image.fromarray(np.ascontiguousarray(band)) for band in image.transpose(2, 0, 1)]
        return np.dstack([np.asarray(change(plane)) for plane in planes])
    return change(image)


def resized(image: DecodedImage, size: tuple[int, int]) -> DecodedImage:
    """An image of another (width, height), bicubic with antialiasing."""
    return _of_each_band(image, lambda band: band.resize(size, Image.Resampling.BICUBIC))


def fit_image(image: DecodedImage, fit: str, *, image_size: int, patch_size: int) -> DecodedImage:
    """Bring an image to whole patches, bicubic with antialiasing.

    Args:
        image: Of any size.
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
    size = size_of(image)
    fitted = fitted_size(size, fit, image_size=image_size, patch_size=patch_size)
    if fit != "crop":
        return resized(image, fitted)
    whole, box = _cropped(size, image_size)
    return _of_each_band(image, lambda band: band.resize(whole, Image.Resampling.BICUBIC).crop(box))


def _cropped(size: tuple[int, int], image_size: int) -> tuple[tuple[int, int], _Box]:
    """Of the fit `crop`: the size of the resized image, and the box that is kept of it."""
    width, height = (side * image_size // min(size) for side in size)
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    return (width, height), (left, top, left + image_size, top + image_size)


def fitted_box(size: tuple[int, int], fit: str, image_size: int) -> _Box:
    """The part of an image of `size` that `fit_image` keeps.

    Returns:
        (left, top, right, bottom) in the image's own pixels, to the nearest whole one.
    """
    if fit != "crop":
        return 0, 0, *size
    whole, box = _cropped(size, image_size)
    left, top, right, bottom = (
        round(edge * size[axis % 2] / whole[axis % 2]) for axis, edge in enumerate(box)
    )
    return left, top, right, bottom


def fitted_size(
    size: tuple[int, int], fit: str, *, image_size: int, patch_size: int
) -> tuple[int, int]:
    """The (width, height) of an image of `size` after `fit_image`, which raises the same."""
    if image_size < 1 or patch_size < 1 or image_size % patch_size:
        raise ConfigError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
    if fit not in FITS:
        raise ConfigError(f"no fit is called {fit!r}; choose one of {', '.join(FITS)}")
    if fit != "whole":
        return image_size, image_size
    scale = min(image_size / min(size), _WHOLE_MAX_ASPECT * image_size / max(size))
    width, height = (
        max(1, math.floor(side * scale / patch_size + 0.5)) * patch_size for side in size
    )
    return width, height


# ------------------------------------------------------------------------------- tensors


def to_tensor(image: DecodedImage, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """An image as the model's input: (1, C, H, W) float32, normalised.

    Args:
        image: A PIL image is converted to RGB for three channels, to grey for one.
        mean: Of each channel, in 0..1.
        std: Likewise.

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
    return _normalised(scaled, mean, std)[None].contiguous()


def _normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def is_channels(source: object, in_chans: int) -> TypeGuard[Tensor | npt.NDArray[Any]]:
    """Whether a source is the channels of a model's input, not an image.

    A tensor always is; an array is if it has shape (`in_chans`, H, W). An image's array (H, W, C)
    is never that low, so the two are not taken for each other.
    """
    if isinstance(source, np.ndarray):
        return source.ndim == 3 and source.shape[0] == in_chans
    return isinstance(source, Tensor)


def channels_to_tensor(
    source: Tensor | npt.NDArray[Any], mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Channels, (C, H, W) floats in 0..1, as the model's input: (1, C, H, W) float32, normalised.

    Raises:
        ImageError: If the shape, the dtype or a value is another.
    """
    floats = source.is_floating_point() if isinstance(source, Tensor) else source.dtype.kind == "f"
    if source.ndim != 3 or len(source) != len(mean) or not floats:
        raise ImageError(
            f"these channels are {str(source.dtype).removeprefix('torch.')} of shape "
            f"{tuple(source.shape)}; give floats in 0..1 of shape ({len(mean)}, H, W)"
        )
    if isinstance(source, Tensor):
        channels = source.detach().to("cpu", torch.float32)
    else:
        channels = torch.from_numpy(np.array(source, dtype=np.float32))
    # "not" first: a NaN compares false.
    if channels.numel() == 0 or not (channels.min() >= 0 and channels.max() <= 1):
        raise ImageError("the channels are empty or not all in 0..1; scale them to that")
    return _normalised(channels, mean, std)[None]


def viewable(pixels: Tensor, show: Sequence[int] = ()) -> Tensor:
    """The channels of (C, H, W) pixels that an image shows, as (3, H, W) or (1, H, W).

    Args:
        pixels: Of any number of channels.
        show: Numbers of channels from 1: three, seen as red, green and blue, or one, in grey.
            Without any, the first three; the first of fewer.

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
    """A tensor as an image of mode RGB or L.

    Args:
        pixels: (3, H, W) or (1, H, W) in 0..1; values outside are clamped and the rest rounded to
            the nearest of 0..255.

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


def png_bytes(image: Image.Image) -> bytes:
    """An image as a PNG file; the one encoder of panels, so that equal panels are equal files."""
    buffer = io.BytesIO()
    # Three times as fast as the default, for 3 % more bytes of a photograph.
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
