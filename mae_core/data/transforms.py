"""Random crops of uint8 images, on the CPU or on a device.

`draw_crop` draws box, flip and colour factors from a generator on the CPU, so a crop is a function
of its seed. `crop_image` then crops one image on the CPU by torch's uint8 resize; `crop_batch`
crops a batch on a device by two matrix products, and never waits for the device (on a CPU they
take far longer). Both are the bicubic, antialiased resize of the box alone, as Pillow's
`Image.crop().resize()`, and differ by one level in a few values of a thousand.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mae_core.config import DataConfig

# Left, top, right, bottom in whole pixels.
Box = tuple[int, int, int, int]

# Side of a `fixed` crop over the shorter side of the image.
_FIXED_SHARE = 7 / 8

# Values gathered at once on a device; each takes 8 bytes of index and 8 of pixels.
_CHUNK_VALUES = 2**25

# Regions are padded to a multiple of this: few different shapes, and aligned products.
_PAD_TO = 16


class Crop(NamedTuple):
    """The part of an image that is resized to a square, mirrored if `flip`.

    `factors` are those of brightness, contrast and saturation; None without colour jitter.
    """

    box: Box
    flip: bool
    factors: tuple[float, float, float] | None


def draw_crop(height: int, width: int, config: DataConfig, rng: np.random.Generator) -> Crop:
    """Draw the crop of an image of `height` x `width` pixels (He et al. 2022, A.1)."""
    if config.crop == "random":
        box = random_crop_box(height, width, config.crop_area, config.crop_aspect, rng)
    elif config.crop == "centre":
        box = _centre_box(height, width, (1.0, 1.0))
    else:
        side = max(round(min(height, width) * _FIXED_SHARE), 1)
        box = _random_place(height, width, side, side, rng)
    flip = config.flip and bool(rng.random() < 0.5)
    factors = None
    if config.color_jitter:
        low, high = 1 - config.color_jitter, 1 + config.color_jitter
        brightness, contrast, saturation = rng.uniform(low, high, size=3)
        factors = float(brightness), float(contrast), float(saturation)
    return Crop(box, flip, factors)


def random_crop_box(
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """Draw a box as torchvision's RandomResizedCrop does: uniform area, log-uniform aspect.

    `area` and `aspect` are the smallest and largest share of the image's area and width over
    height. If ten draws do not fit, it is the largest centred box of an allowed aspect.
    """
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        crop_w, crop_h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < crop_w <= width and 0 < crop_h <= height:
            return _random_place(height, width, crop_h, crop_w, rng)
    return _centre_box(height, width, aspect)


def _random_place(
    height: int, width: int, crop_h: int, crop_w: int, rng: np.random.Generator
) -> Box:
    top = int(rng.integers(0, height - crop_h + 1))
    left = int(rng.integers(0, width - crop_w + 1))
    return left, top, left + crop_w, top + crop_h


def _centre_box(height: int, width: int, aspect: tuple[float, float]) -> Box:
    ratio = min(max(width / height, aspect[0]), aspect[1])
    crop_w, crop_h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - crop_w) // 2, (height - crop_h) // 2
    return left, top, left + crop_w, top + crop_h


def centre_crop(height: int, width: int, share: float) -> Crop:
    """The centre square of this share (0..1) of the shorter side.

    Resized to s pixels, it is what a resize of the shorter side to s / share and then the centre
    crop of s give, up to parts of a pixel.
    """
    side = max(round(min(height, width) * share), 1)
    left, top = (width - side) // 2, (height - side) // 2
    return Crop((left, top, left + side, top + side), flip=False, factors=None)


def crop_image(image: NDArray[np.uint8], crop: Crop, side: int) -> NDArray[np.uint8]:
    """Crop an (H, W, C) image on the CPU, to (side, side, C)."""
    left, top, right, bottom = crop.box
    # A copy: the image may be read-only, and torch warns of that.
    region = torch.from_numpy(np.array(image[top:bottom, left:right]))
    planes = region.permute(2, 0, 1)[None]  # channels last in memory, as torch's fast path needs
    resized = F.interpolate(planes, (side, side), mode="bicubic", antialias=True)
    square: NDArray[np.uint8] = resized[0].permute(1, 2, 0).numpy()
    return square[:, ::-1] if crop.flip else square


def color_factors(crops: Sequence[Crop]) -> Tensor | None:
    """(N, 3) colour factors, or None without colour jitter."""
    factors = [crop.factors for crop in crops if crop.factors is not None]
    return torch.tensor(factors, dtype=torch.float32) if factors else None


def crop_regions(
    starts: Sequence[int], row_bytes: Sequence[int], crops: Sequence[Crop], channels: int = 3
) -> tuple[Tensor, tuple[int, int, int]]:
    """Where the boxes of N crops lie in a flat array of pixels.

    Returns:
        (N, 5) int64: first byte, bytes from row to row, height, width, and 1 for a flip; and the
        height and width that hold every box, and channels. The latter are plain numbers, so that
        no shape has to be read back from a device.
    """
    heights = [crop.box[3] - crop.box[1] for crop in crops]
    widths = [crop.box[2] - crop.box[0] for crop in crops]
    flips = [int(crop.flip) for crop in crops]
    where = torch.tensor([starts, row_bytes, heights, widths, flips]).T.contiguous()
    height, width = (-(-max(lengths) // _PAD_TO) * _PAD_TO for lengths in (heights, widths))
    return where, (height, width, channels)


def crop_batch(pixels: Tensor, where: Tensor, padded: tuple[int, int, int], side: int) -> Tensor:
    """Crop a batch on the device of its pixels.

    Args:
        pixels: (bytes,) uint8, images of (H, W, C) one after another.
        where: See `crop_regions`; on the same device.
        padded: Likewise.
        side: Of the result, in pixels.

    Returns:
        (N, C, side, side) float32, whole levels of 0..255.
    """
    parts = where.split(max(_CHUNK_VALUES // math.prod(padded), 1))
    return torch.cat([_crop_chunk(pixels, part, padded, side) for part in parts])


def _crop_chunk(pixels: Tensor, where: Tensor, padded: tuple[int, int, int], side: int) -> Tensor:
    first, row_bytes, height, width, flip = where.unbind(dim=1)
    n, channels = len(where), padded[2]
    # Padding repeats the last row and column; its weights are zero.
    rows, columns, planes = (torch.arange(length, device=pixels.device) for length in padded)
    y = torch.minimum(rows, height[:, None] - 1)  # (n, H)
    x = torch.minimum(columns, width[:, None] - 1)  # (n, W)
    row_starts = (first[:, None] + y * row_bytes[:, None])[:, :, None, None]
    index = row_starts + planes[:, None] + channels * x[:, None, None, :]  # (n, H, C, W)
    region = pixels[index].to(torch.float32)
    across = _resize_weights(width, padded[1], side, flip)
    down = _resize_weights(height, padded[0], side, torch.zeros_like(flip))
    # Rounded in between as Pillow and torch do: overshoot is clipped before the second direction.
    lines = region.view(n, -1, padded[1]) @ across.transpose(1, 2)  # (n, H * C, side)
    lines = lines.round_().clamp_(0, 255).view(n, padded[0], channels * side)
    levels = (down @ lines).round_().clamp_(0, 255)  # (n, side, C * side)
    return levels.view(n, side, channels, side).transpose(1, 2)


def _resize_weights(length: Tensor, padded: int, side: int, flip: Tensor) -> Tensor:
    """(n, side, padded) weights of (n,) source pixels, mirrored where `flip` is 1."""
    scale = (length / side)[:, None, None]
    place = torch.arange(side, device=length.device)
    place = torch.where(flip[:, None] == 1, side - 1 - place, place)[:, :, None]
    source = torch.arange(padded, device=length.device)
    distance = (source + 0.5 - (place + 0.5) * scale) / scale.clamp(min=1)
    # Keys' cubic convolution kernel, as sharp as Pillow's.
    x, a = distance.abs(), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    weights = weights * (source < length[:, None, None])
    return weights / weights.sum(dim=2, keepdim=True)


def normalize(levels: Tensor, factors: Tensor | None, mean: Tensor, std: Tensor) -> Tensor:
    """Levels as the model's input: colour jitter, then channel statistics. All on one device.

    Args:
        levels: (N, C, H, W) float32 in 0..255; changed in place.
        factors: (N, 3) of brightness, contrast and saturation, for three channels; or None.
        mean: (C, 1, 1) in 0..1.
        std: (C, 1, 1) in 0..1.
    """
    if factors is not None:
        # As torchvision's `adjust_...`, with factors per image.
        brightness, contrast, saturation = factors[:, :, None, None, None].unbind(dim=1)
        levels = (levels * brightness).clamp_(0, 255)
        grey = _luma(levels).mean(dim=(2, 3), keepdim=True)
        levels = grey.lerp(levels, contrast).clamp_(0, 255)
        levels = _luma(levels).lerp(levels, saturation).clamp_(0, 255)
    images: Tensor = levels.div_(255).sub_(mean).div_(std).contiguous()
    return images


def _luma(levels: Tensor) -> Tensor:
    """(N, 1, H, W) brightness by ITU-R 601, as torchvision's rgb_to_grayscale."""
    red, green, blue = levels.split(1, dim=1)
    luma: Tensor = 0.2989 * red + 0.587 * green + 0.114 * blue
    return luma
