"""Random crops, resized to a square, and flips (He et al. 2022, A.1)."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae_core.config import DataConfig

Box = tuple[float, float, float, float]


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
            top = int(rng.integers(0, height - crop_h + 1))
            left = int(rng.integers(0, width - crop_w + 1))
            return left, top, left + crop_w, top + crop_h
    return _centre_box(height, width, aspect)


def _centre_box(height: int, width: int, aspect: tuple[float, float]) -> Box:
    ratio = min(max(width / height, aspect[0]), aspect[1])
    crop_w, crop_h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - crop_w) // 2, (height - crop_h) // 2
    return left, top, left + crop_w, top + crop_h


def augment(
    picture: NDArray[np.uint8], side: int, config: DataConfig, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """One random crop of an (H, W, 3) picture as (side, side, 3), flipped half of the time."""
    height, width, _ = picture.shape
    box = random_crop_box(height, width, config.crop_area, config.crop_aspect, rng)
    crop = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC, box=box)
    flipped = config.flip and rng.random() < 0.5
    pixels = np.asarray(crop)
    return pixels[:, ::-1] if flipped else pixels
