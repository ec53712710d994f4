"""The chance in a crop: its box, its flip and its colour factors (He et al. 2022, A.1).

Only numbers are drawn here, on the CPU; `crops` makes pixels of them, on any device.
"""

import math
from typing import NamedTuple

import numpy as np

from mae_core.config import DataConfig

# Left, top, right, bottom in whole pixels.
Box = tuple[int, int, int, int]

# Side of the `fixed` window over the picture's shorter side.
_FIXED_SHARE = 7 / 8


class Crop(NamedTuple):
    """What is made of one picture.

    Attributes:
        box: The part that is resized to a square.
        flip: Whether it is mirrored.
        factors: Of brightness, contrast and saturation, in the order they are applied; none
            without colour jitter.
    """

    box: Box
    flip: bool
    factors: tuple[float, float, float] | None


def draw_crop(height: int, width: int, config: DataConfig, rng: np.random.Generator) -> Crop:
    """The crop of a picture of `height` x `width` pixels."""
    box = _draw_box(height, width, config, rng)
    flip = config.flip and bool(rng.random() < 0.5)
    factors = None
    if config.color_jitter:
        low, high = 1 - config.color_jitter, 1 + config.color_jitter
        brightness, contrast, saturation = rng.uniform(low, high, size=3)
        factors = float(brightness), float(contrast), float(saturation)
    return Crop(box, flip, factors)


def _draw_box(height: int, width: int, config: DataConfig, rng: np.random.Generator) -> Box:
    if config.crop == "random":
        return random_crop_box(height, width, config.crop_area, config.crop_aspect, rng)
    if config.crop == "centre":
        return _centre_box(height, width, (1.0, 1.0))
    side = max(round(min(height, width) * _FIXED_SHARE), 1)
    return _placed(height, width, side, side, rng)


def random_crop_box(
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """A box as torchvision's RandomResizedCrop draws it: uniform area, log-uniform aspect.

    Args:
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.
        area: Smallest and largest share of the picture's area.
        aspect: Smallest and largest width over height.
        rng: Where chance comes from.

    Returns:
        (left, top, right, bottom) in pixels. Where ten tries do not fit, the largest centred
        box whose aspect is allowed.
    """
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        crop_w, crop_h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < crop_w <= width and 0 < crop_h <= height:
            return _placed(height, width, crop_h, crop_w, rng)
    return _centre_box(height, width, aspect)


def _placed(height: int, width: int, crop_h: int, crop_w: int, rng: np.random.Generator) -> Box:
    """A box of a given size at a random place."""
    top = int(rng.integers(0, height - crop_h + 1))
    left = int(rng.integers(0, width - crop_w + 1))
    return left, top, left + crop_w, top + crop_h


def _centre_box(height: int, width: int, aspect: tuple[float, float]) -> Box:
    ratio = min(max(width / height, aspect[0]), aspect[1])
    crop_w, crop_h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - crop_w) // 2, (height - crop_h) // 2
    return left, top, left + crop_w, top + crop_h
