"""Images cut into patches and put together again; normalisation of patches."""

from typing import NamedTuple

import torch
from torch import Tensor

from mae_core.errors import ConfigError

# Added to a patch's variance before the root (He et al. 2022, official value).
NORM_PIX_EPS = 1e-6


def grid_of(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """The (h, w) grid of patches of an image of that size.

    Raises:
        ConfigError: If a side is not a positive multiple of `patch_size`.
    """
    if height < patch_size or width < patch_size or height % patch_size or width % patch_size:
        raise ConfigError(
            f"a {height}x{width} image does not divide into patches of {patch_size} pixels; "
            f"resize it to multiples of {patch_size}",
            code="patches",
        )
    return height // patch_size, width // patch_size


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into flattened square patches.

    Args:
        images: (N, C, H, W); H and W multiples of `patch_size`, in pixels.
        patch_size: Side of a patch in pixels.

    Returns:
        (N, L, P) patches in row-major grid order, pixels in (p, q, c) order.
    """
    n, c, height, width = images.shape
    h, w = grid_of(height, width, patch_size)
    cells = images.reshape(n, c, h, patch_size, w, patch_size)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(n, h * w, patch_size**2 * c)


def unpatchify(
    patches: Tensor, patch_size: int, grid_size: tuple[int, int] | None = None
) -> Tensor:
    """Put flattened patches back into images; the inverse of `patchify`.

    Args:
        patches: (N, L, P), pixels in (p, q, c) order.
        patch_size: Side of a patch in pixels.
        grid_size: (h, w) with h * w = L; a square grid if not given.

    Returns:
        (N, C, H, W) images.
    """
    n, length, values = patches.shape
    h, w = grid_size or (int(length**0.5), int(length**0.5))
    if h * w != length:
        raise ConfigError(
            f"{length} patches do not fill a {h}x{w} grid; pass grid_size=", code="patches"
        )
    if values % patch_size**2:
        raise ConfigError(
            f"{values} values are not whole pixels of a {patch_size}-pixel patch", code="patches"
        )
    c = values // patch_size**2
    cells = patches.reshape(n, h, w, patch_size, patch_size, c)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(n, c, h * patch_size, w * patch_size)


class PatchStatistics(NamedTuple):
    """Mean and variance of each patch, (N, L, 1) each; the variance is unbiased."""

    mean: Tensor
    var: Tensor


def patch_statistics(patches: Tensor) -> PatchStatistics:
    """Each patch's own mean and unbiased variance over its P values; patches is (N, L, P)."""
    mean = patches.mean(dim=-1, keepdim=True)
    return PatchStatistics(mean, patches.var(dim=-1, keepdim=True, unbiased=True))


def normalize_patches(patches: Tensor) -> Tensor:
    """Normalise (N, L, P) patches by their own statistics (He et al. 2022, section 3)."""
    mean, var = patch_statistics(patches)
    return (patches - mean) / torch.sqrt(var + NORM_PIX_EPS)


def denormalize_patches(patches: Tensor, statistics: PatchStatistics) -> Tensor:
    """Undo `normalize_patches` with the statistics given; patches is (N, L, P)."""
    return patches * torch.sqrt(statistics.var + NORM_PIX_EPS) + statistics.mean


def pixel_mask(mask: Tensor, grid_size: tuple[int, int], patch_size: int) -> Tensor:
    """(N, L) mask of patches -> (N, 1, H, W) mask of pixels, 1 = removed."""
    cells = mask.reshape(-1, 1, *grid_size)
    return cells.repeat_interleave(patch_size, dim=2).repeat_interleave(patch_size, dim=3)
