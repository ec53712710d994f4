"""Brightness and contrast of removed patches, estimated from the visible ones.

A model trained on per-patch normalised pixels predicts neither. A visible patch has its own;
into the removed ones both are continued smoothly. Hidden pixels are never looked at.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_core.model.patches import PatchStatistics, patch_statistics, patchify

# Cells along a side of a patch from which its mean is estimated.
_MEAN_CELLS = 4

# Filling stops when the residual has shrunk by so much, far below a level of grey, or after so
# many steps: holes of blocks in 256 x 256 cells take up to 600.
_FILL_TOLERANCE, _FILL_STEPS = 1e-5, 1000
_TINY = 1e-30


def estimate_statistics(
    images: Tensor, mask: Tensor, grid_size: tuple[int, int], patch_size: int
) -> PatchStatistics:
    """Mean and variance of every patch, as far as the visible patches tell.

    The variance is continued from patch to patch. The mean is continued from cells of a quarter
    of a patch: what tells most about it are the pixels at the edges of its neighbours.

    Args:
        images: (N, C, H, W), in the model's units; removed pixels may be anything.
        mask: (N, L), 1 = removed; at least one patch visible.
        grid_size: (h, w) with h * w = L.
        patch_size: Side of a patch in pixels.
    """
    raw = patch_statistics(patchify(images, patch_size))
    n, (h, w), cells = len(images), grid_size, min(_MEAN_CELLS, patch_size)
    hidden = mask.bool().reshape(n, 1, h, w)
    # No cell crosses the edge of a patch, not even where `cells` does not divide its side.
    grey = F.adaptive_avg_pool2d(images.mean(dim=1, keepdim=True), (h * cells, w * cells))
    holes = hidden.repeat_interleave(cells, dim=2).repeat_interleave(cells, dim=3)
    mean = F.avg_pool2d(fill_smoothly(grey, holes), cells).reshape(n, -1, 1)
    var = fill_smoothly(raw.var.reshape(n, 1, h, w), hidden).reshape(n, -1, 1)
    return PatchStatistics(torch.where(hidden.reshape(n, -1, 1), mean, raw.mean), var)


def fill_smoothly(values: Tensor, hidden: Tensor) -> Tensor:
    """Continue known values into holes, as a stretched membrane would.

    Solves Laplace's equation by conjugate gradients: each hidden value becomes the mean of its
    neighbours, so that none is outside of what is known.

    Args:
        values: (N, 1, h, w) floats; those that are hidden are never looked at.
        hidden: (N, 1, h, w) booleans, True = to be filled; not all of an image.
    """

    def total(x: Tensor) -> Tensor:
        return x.sum(dim=(1, 2, 3), keepdim=True)

    holes = hidden.double()
    known = torch.where(hidden, 0.0, values.double())
    level = total(known) / total(1 - holes)
    filled = torch.where(hidden, level, known)
    residual = -_laplacian(filled) * holes
    direction, size = residual, total(residual.square())
    goal = _FILL_TOLERANCE**2 * size
    for _ in range(_FILL_STEPS):
        if bool((size <= goal).all()):
            break
        change = _laplacian(direction) * holes
        # Images that are done stay as they are, so that none depends on the others of its batch;
        # the tiny number is for those that have no error left.
        step = torch.where(size > goal, size / (total(direction * change) + _TINY), 0.0)
        filled = filled + step * direction
        residual = residual - step * change
        previous, size = size, total(residual.square())
        direction = residual + size / (previous + _TINY) * direction
    return torch.where(hidden, filled.to(values.dtype), values)


def _laplacian(x: Tensor) -> Tensor:
    """Four times each value of (N, 1, h, w) less its four neighbours, edges repeated."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across = padded[:, :, 1:-1, 2:] + padded[:, :, 1:-1, :-2]
    return 4 * x - across - padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
