"""Position tables against loops in float64, and their stretching to other grids."""

import numpy as np
import pytest
import torch

from mae_core.model.mae import resample_pos_embed, sincos_pos_embed
from tests import references


@pytest.mark.parametrize(("dim", "h", "w"), [(8, 3, 3), (16, 2, 5), (192, 14, 14), (160, 7, 4)])
def test_table_is_the_papers(dim: int, h: int, w: int) -> None:
    table = sincos_pos_embed(dim, (h, w))
    assert table.shape == (1, 1 + h * w, dim)
    assert table.dtype == torch.float32
    # Computed in float64, so that only the last rounding differs.
    expected = references.sincos_table(dim, h, w).astype(np.float32)
    np.testing.assert_allclose(table[0].numpy(), expected, rtol=0, atol=6e-8)


def test_first_half_of_the_channels_is_x() -> None:
    table = sincos_pos_embed(16, (3, 5))[0, 1:].reshape(3, 5, 16)
    assert torch.equal(table[0, :, :8], table[2, :, :8]), "the first half changes with the row"
    assert torch.equal(table[:, 0, 8:], table[:, 4, 8:]), "the second changes with the column"
    assert len(table[0, :, :8].unique(dim=0)) == 5
    assert len(table[:, 0, 8:].unique(dim=0)) == 3


def test_same_grid_gives_the_same_table() -> None:
    table = sincos_pos_embed(16, (4, 6))
    assert resample_pos_embed(table, (4, 6), (4, 6)) is table


@pytest.mark.parametrize("grid_size", [(7, 7), (5, 9), (2, 3), (8, 4), (1, 12)])
def test_stretching_is_bicubic_in_both_directions(grid_size: tuple[int, int]) -> None:
    h, w = 4, 6
    table = torch.randn(1, 1 + h * w, 12, generator=torch.Generator().manual_seed(0))
    stretched = resample_pos_embed(table, (h, w), grid_size)
    assert torch.equal(stretched[:, 0], table[:, 0]), "the class token has no place"
    square = table[0, 1:].double().numpy().reshape(h, w, 12)
    expected = references.resize_bicubic(square, *grid_size).reshape(-1, 12)
    np.testing.assert_allclose(stretched[0, 1:].numpy(), expected, rtol=0, atol=1e-5)


def test_stretching_keeps_rows_and_columns_apart() -> None:
    table = sincos_pos_embed(16, (14, 14))
    stretched = resample_pos_embed(table, (14, 14), (10, 20))[0, 1:].reshape(10, 20, 16)
    torch.testing.assert_close(stretched[0, :, :8], stretched[9, :, :8], rtol=0, atol=1e-6)
    torch.testing.assert_close(stretched[:, 0, 8:], stretched[:, 19, 8:], rtol=0, atol=1e-6)


def test_stretching_of_a_bfloat16_table_stays_bfloat16() -> None:
    table = sincos_pos_embed(16, (4, 4))
    narrow = resample_pos_embed(table.bfloat16(), (4, 4), (6, 6))
    assert narrow.dtype == torch.bfloat16
    wide = resample_pos_embed(table, (4, 4), (6, 6))
    torch.testing.assert_close(narrow.float(), wide, rtol=0, atol=0.02)
