"""Images in and out: a file, an array or a PIL image -> a model's pixels -> a PIL image.

`open_image` is the library's door to every image. It ends in a model's channels and 8 bits a
value: photographs as a person sees them (`photographs`), measurements by a range of their values
(`measurements`). `fit_image` brings an image to whole patches; `to_tensor` and `to_pil` go to the
model's pixels and back. What is no image but has the model's own channels (`is_channels`) goes in
by `channels_to_tensor` and is looked at by `viewable`.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from mae_core.errors import ConfigError, ImageError, ImageFormatError
from mae_core.measurements import (
    RangeSpec,
    Raster,
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
    parser_errors,
    read_file,
    to_srgb,
)

__all__ = ["FITS", "DecodedImage", "ImageSource", "fit_image", "open_image", "to_pil", "to_tensor"]

# What `open_image` takes.
ImageSource: TypeAlias = bytes | str | Path | Image.Image | npt.NDArray[Any]

# An image of a model's channels: PIL for one or three, else (H, W, C) uint8.
DecodedImage: TypeAlias = Image.Image | npt.NDArray[np.uint8]

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
    """Any image, with the channels that a model takes.

    A photograph is what `decode_image` makes of it. Of a measurement the bands are chosen, and its
    values scaled to 0..255.

    Args:
        source: A file's bytes, a path, a PIL image, or an array (H, W) or (H, W, B). Of uint8, a
            fourth band is transparency.
        channels: C of the model.
        bands: Numbers of bands from 1, C of them or one; without any see `Raster.select`.
        value_range: Of values of more than 8 bits: `auto` (see `find_value_range`), `dtype`, or
            pairs. Values of 8 bits are taken as they are.
        limits: What the image may measure; `max_bytes` is about photographs only.

    Returns:
        A PIL image for one channel (mode L) or three (RGB); else (H, W, C) uint8.

    Raises:
        ImageFormatError: If it is no image, damaged, has other bands than the model takes, or
            needs a package that is not installed.
        ImageLimitError: If it is too large, too small or too narrow.
        ConfigError: If the range is not allowed.
    """
    raster = read_raster(source, channels, bands, limits)
    if raster is None:
        if isinstance(source, np.ndarray):
            plain = source[:, :, 0] if source.shape[2:] == (1,) else source
            source = Image.fromarray(np.ascontiguousarray(plain))
        photograph = decode_image(source, limits, value_range=value_range)
        return photograph if channels == 3 else photograph.convert("L")
    values = raster.select(channels, bands)
    if values.dtype == np.uint8:
        value_range = "dtype"
    levels = to_levels(values, find_value_range([values], value_range))
    image: DecodedImage = levels
    if channels == 1:
        image = Image.fromarray(levels[:, :, 0])
    elif channels == 3:
        image = to_srgb(Image.fromarray(levels), None if bands else raster.profile)
    factor = limits.shrink_factor(size_of(image))
    return image if factor == 1 else of_each_band(image, lambda band: band.reduce(factor))


def read_raster(
    source: ImageSource,
    channels: int = 3,
    bands: Sequence[int] = (),
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Raster | None:
    """An image's values as they are stored; None for a photograph, which `decode_image` reads.

    A photograph is a raster too where bands are chosen, or the model takes other than one or three
    channels.

    Raises:
        ImageFormatError: If it is no image, damaged, or needs a package that is not installed.
        ImageLimitError: If it is too large, too small or too narrow.
    """
    as_bands = bool(bands) or channels not in (1, 3)
    if isinstance(source, np.ndarray):
        return raster_of(source, limits.check_size, as_bands=as_bands)
    if isinstance(source, bytes | str | Path):
        raster = _read_file(source, limits, as_bands)
    else:
        raster = _read_grey(source, limits)
    if raster is None and as_bands:
        return Raster(np.asarray(decode_image(source, limits)))
    return raster


def _read_file(source: bytes | str | Path, limits: ImageLimits, as_bands: bool) -> Raster | None:
    start = read_file(source, START_BYTES)
    known = format_of(start)
    name = known.name if known else ""
    if name == "NumPy":
        with parser_errors():
            return read_npy(source, limits.check_size)
    if name == "TIFF" and find_spec("tifffile"):
        with parser_errors():
            return read_tiff(source, limits.check_size, as_bands=as_bands)
    if name == "TIFF":
        try:
            return _read_grey(source, limits)
        except ImageFormatError as error:
            raise ImageFormatError(f"{error}; or pip install tifffile imagecodecs") from error
    if name != "PNG" or start[24:25] != b"\x10":  # bits a value
        return None
    # Pillow keeps only the upper half of 16-bit colours.
    if start[25:26] != b"\x02" or not find_spec("imagecodecs"):
        return _read_grey(source, limits)
    size = int.from_bytes(start[16:20], "big"), int.from_bytes(start[20:24], "big")
    limits.check_size(size, in_full=True)
    data = read_file(source, limits.max_bytes + 1)
    with parser_errors():
        return Raster(importlib.import_module("imagecodecs").png_decode(data))


def _read_grey(source: bytes | str | Path | Image.Image, limits: ImageLimits) -> Raster | None:
    values = grey_values(source, limits)
    return None if values is None else Raster(values[:, :, None])


def size_of(image: DecodedImage) -> tuple[int, int]:
    """(width, height) of an image."""
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0]
    return image.size


def of_each_band(image: DecodedImage, change: Callable[[Image.Image], Image.Image]) -> DecodedImage:
    """What `change` makes of a PIL image, or of each band of an array."""
    if isinstance(image, np.ndarray):
        planes = [Image.fromarray(np.ascontiguousarray(band)) for band in image.transpose(2, 0, 1)]
        return np.dstack([np.asarray(change(plane)) for plane in planes])
    return change(image)


def resized(image: DecodedImage, size: tuple[int, int]) -> DecodedImage:
    """An image of another (width, height), bicubic with antialiasing."""
    return of_each_band(image, lambda band: band.resize(size, Image.Resampling.BICUBIC))


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
    width, height = (side * image_size // min(size) for side in size)
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    box = left, top, left + image_size, top + image_size
    return of_each_band(
        image, lambda band: band.resize((width, height), Image.Resampling.BICUBIC).crop(box)
    )


def fitted_size(
    size: tuple[int, int], fit: str, *, image_size: int, patch_size: int
) -> tuple[int, int]:
    """The (width, height) of an image of `size` after `fit_image`.

    Raises:
        ConfigError: If no fit has that name or `image_size` is not a multiple of `patch_size`.
    """
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


def to_tensor(image: DecodedImage, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """An image as the model's input.

    Args:
        image: A PIL image is converted to RGB for three channels, to grey for one.
        mean: Channel means in 0..1, one a channel.
        std: Channel deviations, one a channel.

    Returns:
        (1, C, H, W) float32, normalised.

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
    """Channels as the model's input; they are not resized.

    Args:
        source: (C, H, W) floats in 0..1, on any device.
        mean: Channel means in 0..1, one a channel.
        std: Channel deviations, one a channel.

    Returns:
        (1, C, H, W) float32, normalised, on the CPU.

    Raises:
        ImageFormatError: If the shape, the dtype or a value is another.
    """
    floats = source.is_floating_point() if isinstance(source, Tensor) else source.dtype.kind == "f"
    if source.ndim != 3 or len(source) != len(mean) or not floats:
        raise ImageFormatError(
            f"these channels are {str(source.dtype).removeprefix('torch.')} of shape "
            f"{tuple(source.shape)}; give floats in 0..1 of shape ({len(mean)}, H, W)"
        )
    if isinstance(source, Tensor):
        channels = source.detach().to("cpu", torch.float32)
    else:
        channels = torch.from_numpy(np.array(source, dtype=np.float32))
    # "not" first: a NaN compares false.
    if channels.numel() == 0 or not (channels.min() >= 0 and channels.max() <= 1):
        raise ImageFormatError("the channels are empty or not all in 0..1; scale them to that")
    return _normalised(channels, mean, std)[None]


def viewable(pixels: Tensor, show: Sequence[int] = ()) -> Tensor:
    """The channels of a (C, H, W) tensor that an image shows.

    Args:
        pixels: Of any number of channels.
        show: Numbers of channels from 1: three, seen as red, green and blue, or one, in grey.
            Without any, the first three; the first of fewer.

    Returns:
        (3, H, W) or (1, H, W).

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
    """A tensor as an image.

    Args:
        pixels: (C, H, W) in 0..1, C = 1 or 3, on any device; values outside are clamped and the
            rest rounded to the nearest of 0..255.

    Returns:
        An image of mode RGB or L.

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
