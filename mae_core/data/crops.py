"""Crops from uint8 pixels to the model's input, on any device.

A crop is the bicubic, antialiased resize of its box alone, as `Image.crop` and `Image.resize`
of Pillow or torchvision's `resized_crop` make it, rounded to 0..255 after each of the two
directions as theirs is. There are two ways to it. `crop_batch` does a batch on a device by two
batched matrix products, without waiting for the device once. `crop_one` does a picture on the
CPU by torch's resize of uint8, where such products take far longer (a row of weights is mostly
zeros). A few values in a thousand differ by one level between the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mae_core.data.augment import Crop

# Values gathered at once on a device; each takes 8 bytes of index and 8 of pixels.
_CHUNK_VALUES = 2**25

# Padded regions are this much a multiple, so that few shapes occur and products are aligned.
_PAD_TO = 16

# Keys' sharpness, as in Pillow.
_A = -0.5

# ITU-R 601, as in torchvision's rgb_to_grayscale.
_LUMA = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class Regions:
    """Where a batch's crops lie in a flat array of pixels.

    Attributes:
        where: (N, 5) int64: first byte, bytes from row to row, height, width, and 1 for a flip.
        factors: (N, 3) float32 of brightness, contrast and saturation, or none.
        padded: Height and width that every region fits in, and channels. Numbers of the CPU, so
            that no shape has to be read from a device.
    """

    where: Tensor
    factors: Tensor | None
    padded: tuple[int, int, int]

    def to(self, device: torch.device) -> "Regions":
        """The same on a device; from pinned memory nobody waits."""
        where = self.where.to(device, non_blocking=True)
        factors = self.factors
        if factors is not None:
            factors = factors.to(device, non_blocking=True)
        return Regions(where, factors, self.padded)

    def pin_memory(self) -> "Regions":
        """The same in memory that a GPU reads by itself."""
        factors = None if self.factors is None else self.factors.pin_memory()
        return Regions(self.where.pin_memory(), factors, self.padded)


def regions_of(
    starts: Sequence[int], row_bytes: Sequence[int], crops: Sequence[Crop], channels: int = 3
) -> Regions:
    """The regions of crops whose first bytes are known.

    Args:
        starts: For each crop, where the first pixel of its box lies.
        row_bytes: For each crop, the bytes from a row to the next.
        crops: One or more.
        channels: C of the pictures.
    """
    heights = [crop.box[3] - crop.box[1] for crop in crops]
    widths = [crop.box[2] - crop.box[0] for crop in crops]
    flips = [int(crop.flip) for crop in crops]
    where = torch.tensor([starts, row_bytes, heights, widths, flips]).T.contiguous()
    padded = _round_up(max(heights)), _round_up(max(widths)), channels
    return Regions(where, factors_of(crops), padded)


def factors_of(crops: Sequence[Crop]) -> Tensor | None:
    """(N, 3) colour factors, or none without colour jitter."""
    factors = [crop.factors for crop in crops if crop.factors is not None]
    return torch.tensor(factors, dtype=torch.float32) if factors else None


def _round_up(length: int) -> int:
    return -(-length // _PAD_TO) * _PAD_TO


def crop_batch(pixels: Tensor, regions: Regions, side: int) -> Tensor:
    """All crops of a batch, where the pixels are.

    Args:
        pixels: (bytes,) uint8, pictures of (H, W, C) one after another.
        regions: Where the crops lie, on the same device.
        side: Of the result, in pixels.

    Returns:
        (N, C, side, side) float32, whole levels of 0..255.
    """
    height, width, channels = regions.padded
    chunk = max(_CHUNK_VALUES // (height * width * channels), 1)
    return torch.cat(
        [_crop_chunk(pixels, where, regions.padded, side) for where in regions.where.split(chunk)]
    )


def _crop_chunk(pixels: Tensor, where: Tensor, padded: tuple[int, int, int], side: int) -> Tensor:
    first, row_bytes, height, width, flip = where.unbind(dim=1)
    n, channels = len(where), padded[2]
    region = _gather(pixels, first, row_bytes, height, width, padded)  # (n, H, C, W)
    across = _resize_weights(width, padded[1], side, flip)
    down = _resize_weights(height, padded[0], side, torch.zeros_like(flip))
    # Rounded in between as well, for so do Pillow and torch: clipped overshoot must not return.
    rows = region.view(n, -1, padded[1]) @ across.transpose(1, 2)  # (n, H * C, side)
    rows = rows.round_().clamp_(0, 255).view(n, padded[0], channels * side)
    levels = (down @ rows).round_().clamp_(0, 255)  # (n, side, C * side)
    return levels.view(n, side, channels, side).transpose(1, 2)


def _gather(
    pixels: Tensor,
    first: Tensor,
    row_bytes: Tensor,
    height: Tensor,
    width: Tensor,
    padded: tuple[int, int, int],
) -> Tensor:
    """(n, H, C, W) float32 regions; padding repeats the last row and column, to stay inside."""
    rows, columns, channels = (torch.arange(length, device=pixels.device) for length in padded)
    y = torch.minimum(rows, height[:, None] - 1)  # (n, H)
    x = torch.minimum(columns, width[:, None] - 1)  # (n, W)
    row_starts = first[:, None] + y * row_bytes[:, None]
    places = channels[:, None] + padded[2] * x[:, None, None, :]
    index = row_starts[:, :, None, None] + places
    return pixels[index].to(torch.float32)


def _resize_weights(length: Tensor, padded: int, side: int, flip: Tensor) -> Tensor:
    """(n, side, padded) weights of source pixels in each pixel of a line of the result.

    Args:
        length: (n,) source pixels of each line; those behind have no weight.
        padded: Source pixels in all.
        side: Pixels of the result.
        flip: (n,) 1 where the result runs backwards.
    """
    scale = (length / side)[:, None, None]
    place = torch.arange(side, device=length.device)
    place = torch.where(flip[:, None] == 1, side - 1 - place, place)[:, :, None]
    source = torch.arange(padded, device=length.device)
    distance = (source + 0.5 - (place + 0.5) * scale) / scale.clamp(min=1)
    weights = _cubic(distance) * (source < length[:, None, None])
    return weights / weights.sum(dim=2, keepdim=True)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel, 0 from a distance of 2."""
    x = distance.abs()
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def crop_one(picture: NDArray[np.uint8], crop: Crop, side: int) -> NDArray[np.uint8]:
    """One crop of an (H, W, C) picture on the CPU, as (side, side, C)."""
    left, top, right, bottom = crop.box
    # A copy: pictures may be read-only, which torch warns of.
    region = torch.from_numpy(np.array(picture[top:bottom, left:right]))
    planes = region.permute(2, 0, 1)[None]  # channels last in memory, as torch's fast way needs
    resized = F.interpolate(planes, (side, side), mode="bicubic", antialias=True)
    square: NDArray[np.uint8] = resized[0].permute(1, 2, 0).numpy()
    return square[:, ::-1] if crop.flip else square


def finish(levels: Tensor, factors: Tensor | None, mean: Tensor, std: Tensor) -> Tensor:
    """Levels as the model's input: colour jitter, then normalised.

    Args:
        levels: (N, C, H, W) float32 in 0..255; changed in place.
        factors: (N, 3) of brightness, contrast and saturation, on the same device, or none; they
            need three channels.
        mean: (C, 1, 1) in 0..1, there too.
        std: (C, 1, 1), there too.

    Returns:
        (N, C, H, W) float32.
    """
    if factors is not None:
        levels = _jitter(levels, factors)
    images: Tensor = levels.div_(255).sub_(mean).div_(std).contiguous()
    return images


def _jitter(levels: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation in this order, as torchvision's `adjust_…` do them."""
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(dim=1)
    levels = (levels * brightness).clamp_(0, 255)
    mean = _grey(levels).mean(dim=(2, 3), keepdim=True)
    levels = mean.lerp(levels, contrast).clamp_(0, 255)
    jittered: Tensor = _grey(levels).lerp(levels, saturation).clamp_(0, 255)
    return jittered


def _grey(levels: Tensor) -> Tensor:
    """(N, 1, H, W) luma."""
    red, green, blue = levels.split(1, dim=1)
    grey: Tensor = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    return grey
