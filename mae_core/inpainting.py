"""Classical inpainting: what fills removed pixels without a model, to measure one against."""

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from mae_core.metrics import compose

__all__ = ["FILLERS", "Filler", "fill_mean_colour", "fill_telea"]

# Fills the removed pixels, 1 in (1, H, W), of a (C, H, W) image in 0..1.
Filler = Callable[[Tensor, Tensor], Tensor]

# OpenCV's neighbourhood in pixels, as in its own examples.
_TELEA_RADIUS = 3


def fill_mean_colour(image: Tensor, removed: Tensor) -> Tensor:
    """Fill removed pixels with the mean of the visible ones."""
    visible = 1 - removed
    colour = (image * visible).sum(dim=(1, 2)) / visible.sum()
    return compose(image, colour.view(-1, 1, 1).expand_as(image), removed)


def fill_telea(image: Tensor, removed: Tensor) -> Tensor:
    """Fill removed pixels by fast marching (Telea 2004), in 256 levels; needs OpenCV."""
    import cv2  # only this one needs it

    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    holes = removed[0].to(torch.uint8).numpy()
    # The hidden pixels are blanked first, so that a leak would show.
    visible = np.ascontiguousarray(pixels * (1 - holes)[:, :, None])
    # OpenCV takes 3 channels or 1, and gives 1 as (H, W).
    parts = [visible] if visible.shape[2] in (1, 3) else np.split(visible, visible.shape[2], axis=2)
    filled = [cv2.inpaint(part, holes, _TELEA_RADIUS, cv2.INPAINT_TELEA) for part in parts]
    return torch.from_numpy(np.dstack(filled)).permute(2, 0, 1).float() / 255


# By name; `telea` is missing where OpenCV is not installed.
FILLERS: dict[str, Filler] = {"mean_colour": fill_mean_colour}
if find_spec("cv2"):
    FILLERS["telea"] = fill_telea
