"""Pictures of what was measured: masks and boxes over a photograph, in rows."""

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mae_core._compat import ensure_torchvision_imports
from mae_core.images import DecodedImage, resized

__all__ = ["as_rgb", "in_rows", "with_boxes", "with_masks"]

# Longest side of a picture and the space between two, in pixels.
_SIDE, _GAP = 320, 8


def as_rgb(image: DecodedImage) -> Image.Image:
    """The first three channels of an image, or the first."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    return Image.fromarray(image[:, :, : 3 if image.shape[2] >= 3 else 1].squeeze()).convert("RGB")


def with_masks(image: Image.Image, masks: Sequence[NDArray[np.bool_]]) -> Image.Image:
    """(H, W) masks over an RGB image; mask i always has the same colour among as many."""
    ensure_torchvision_imports()
    from torchvision.utils import draw_segmentation_masks

    if not masks:
        return image
    drawn = draw_segmentation_masks(
        _tensor(image), torch.from_numpy(np.stack(masks)), alpha=0.6, colors=_colours(len(masks))
    )
    return Image.fromarray(drawn.permute(1, 2, 0).numpy())


def with_boxes(
    image: Image.Image, boxes: NDArray[np.floating], labels: NDArray[np.integer],
    names: Sequence[str],
) -> Image.Image:  # fmt: skip
    """(n, 4) boxes, left, top, right, bottom, over an RGB image, with the names of their classes.

    The colour of class i is that of mask 1 + i of as many masks and the background.
    """
    ensure_torchvision_imports()
    from torchvision.utils import draw_bounding_boxes

    if not len(boxes):
        return image
    colours = _colours(1 + len(names))
    drawn = draw_bounding_boxes(
        _tensor(image), torch.from_numpy(boxes), [names[label] for label in labels],
        [colours[1 + label] for label in labels], width=2,
    )  # fmt: skip
    return Image.fromarray(drawn.permute(1, 2, 0).numpy())


def _colours(count: int) -> list[tuple[int, int, int]]:
    """Black, which is the background of most data sets, and hues a golden ratio apart."""
    hues = [colorsys.hsv_to_rgb(0.618 * i % 1, 0.9, 1.0) for i in range(count - 1)]
    return [(0, 0, 0), *((int(255 * r), int(255 * g), int(255 * b)) for r, g, b in hues)]


def _tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def in_rows(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Rows of pictures of one size, below each other on white."""
    scaled = list[list[Image.Image]]()
    for row in rows:
        width, height = row[0].size
        factor = min(_SIDE / max(width, height), 1)
        size = max(round(width * factor), 1), max(round(height * factor), 1)
        scaled.append([Image.fromarray(np.asarray(resized(one, size))) for one in row])
    width = max(sum(one.width + _GAP for one in row) for row in scaled) - _GAP
    grid = Image.new("RGB", (width, sum(row[0].height + _GAP for row in scaled) - _GAP), "white")
    top = 0
    for row in scaled:
        left = 0
        for one in row:
            grid.paste(one, (left, top))
            left += one.width + _GAP
        top += row[0].height + _GAP
    return grid
