"""Fixed sin-cos position tables, and their resampling to other grids."""

import torch
from torch import Tensor
from torch.nn import functional as F


def sincos_pos_embed(dim: int, grid_size: tuple[int, int], *, cls_token: bool) -> Tensor:
    """The fixed two-dimensional sin-cos table of MAE (He et al. 2022, A.1).

    The first half of the channels encodes x (the column), the second y (the row); each half
    is sines then cosines of the position times 1 / 10000^(i / (dim / 4)).

    Args:
        dim: Channels; a multiple of 4.
        grid_size: (h, w) patches.
        cls_token: Whether a row of zeros stands in front, for the class token.

    Returns:
        (1, [1 +] h * w, dim), float32, computed in float64.
    """
    h, w = grid_size
    rows = torch.arange(h, dtype=torch.float64).repeat_interleave(w)
    columns = torch.arange(w, dtype=torch.float64).repeat(h)
    table = torch.cat((_sincos(dim // 2, columns), _sincos(dim // 2, rows)), dim=1)
    if cls_token:
        table = torch.cat((table.new_zeros(1, dim), table))
    return table.to(torch.float32).unsqueeze(0)


def _sincos(dim: int, positions: Tensor) -> Tensor:
    """(M,) positions as (M, dim) sines then cosines."""
    omega = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions[:, None] * omega[None, :]
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def resample_pos_embed(
    table: Tensor, source: tuple[int, int], grid_size: tuple[int, int]
) -> Tensor:
    """Stretch a position table over another grid, in both directions at once.

    The new patches' centres are looked up in the old table by bicubic interpolation, so a
    larger picture is the same picture seen more finely. Without antialiasing: positions are
    smooth, and averaging neighbours would blur the places of the patches.

    Args:
        table: (1, 1 + h * w, D) with the class token's row first.
        source: (h, w) of the table.
        grid_size: (h, w) wanted.

    Returns:
        (1, 1 + h' * w', D); `table` itself if the grids are equal.
    """
    if source == grid_size:
        return table
    dim = table.shape[-1]
    square = table[:, 1:].reshape(1, *source, dim).permute(0, 3, 1, 2)
    stretched = F.interpolate(square.float(), size=grid_size, mode="bicubic", align_corners=False)
    rows = stretched.permute(0, 2, 3, 1).reshape(1, -1, dim).to(table.dtype)
    return torch.cat((table[:, :1], rows), dim=1)
