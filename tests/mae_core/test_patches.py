"""Cutting into patches and putting together, against loops."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mae_core.errors import ConfigError
from mae_core.model.patches import (
    PatchStatistics,
    denormalize_patches,
    grid_of,
    normalize_patches,
    patch_statistics,
    patchify,
    unpatchify,
)
from tests import references


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("shape", "patch_size"),
    [
        ((2, 3, 8, 8), 4),
        ((1, 3, 4, 12), 2),
        ((3, 1, 9, 6), 3),
        ((1, 5, 4, 4), 4),
        ((1, 2, 3, 2), 1),
    ],
)
def test_patchify_is_the_loops(shape: tuple[int, int, int, int], patch_size: int) -> None:
    images = noise(*shape)
    expected = references.patchify(images.double().numpy(), patch_size)
    assert np.array_equal(patchify(images, patch_size).double().numpy(), expected)


@given(
    n=st.integers(1, 3), c=st.integers(1, 5), h=st.integers(1, 4), w=st.integers(1, 4),
    patch_size=st.integers(1, 4),
)  # fmt: skip
def test_unpatchify_undoes_patchify(n: int, c: int, h: int, w: int, patch_size: int) -> None:
    images = noise(n, c, h * patch_size, w * patch_size)
    assert torch.equal(unpatchify(patchify(images, patch_size), patch_size, (h, w)), images)


def test_unpatchify_takes_a_square_grid_by_itself() -> None:
    images = noise(2, 3, 12, 12)
    assert torch.equal(unpatchify(patchify(images, 4), 4), images)


@pytest.mark.parametrize(
    ("height", "width"), [(224, 230), (225, 224), (0, 16), (8, 16), (16, 15), (-16, 16)]
)
def test_sides_that_do_not_divide_are_named(height: int, width: int) -> None:
    expected = (
        f"a {height}x{width} image does not divide into patches of 16 pixels; "
        "resize it to multiples of 16"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        grid_of(height, width, 16)


def test_patchify_refuses_sides_that_do_not_divide() -> None:
    with pytest.raises(ConfigError, match="a 8x10 image does not divide into patches of 4"):
        patchify(noise(1, 3, 8, 10), 4)


def test_grid_is_rows_by_columns() -> None:
    assert grid_of(32, 48, 16) == (2, 3)


def test_unpatchify_names_a_grid_that_does_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"6 patches do not fill a 2x2 grid; pass grid_size="):
        unpatchify(noise(1, 6, 12), 2)
    with pytest.raises(ConfigError, match="6 patches do not fill a 4x2 grid"):
        unpatchify(noise(1, 6, 12), 2, (4, 2))


def test_unpatchify_refuses_broken_pixels() -> None:
    with pytest.raises(ConfigError, match="13 values are not whole pixels of a 2-pixel patch"):
        unpatchify(noise(1, 4, 13), 2)


def test_normalised_patches_are_the_loops() -> None:
    patches = noise(1, 5, 12).double() * 3 + 1
    expected = references.normalized_patches(patches[0].numpy())
    np.testing.assert_allclose(normalize_patches(patches)[0].numpy(), expected, atol=1e-12)


def test_statistics_are_of_each_patch_and_unbiased() -> None:
    patches = noise(2, 3, 12)
    statistics = patch_statistics(patches)
    assert statistics.mean.shape == statistics.var.shape == (2, 3, 1)
    expected = np.var(patches.double().numpy(), axis=-1, ddof=1)
    np.testing.assert_allclose(statistics.var[..., 0].numpy(), expected, rtol=1e-5)


def test_denormalising_undoes_normalising() -> None:
    patches = noise(2, 3, 12) * 5 + 2
    statistics = patch_statistics(patches)
    restored = denormalize_patches(normalize_patches(patches), statistics)
    torch.testing.assert_close(restored, patches, rtol=0, atol=1e-5)


def test_denormalising_takes_the_statistics_given() -> None:
    patches = noise(1, 2, 12)
    statistics = PatchStatistics(torch.full((1, 2, 1), 2.0), torch.full((1, 2, 1), 4.0))
    expected = patches * (4 + 1e-6) ** 0.5 + 2
    torch.testing.assert_close(denormalize_patches(patches, statistics), expected)


def test_a_flat_patch_stays_finite() -> None:
    flat = normalize_patches(torch.full((1, 1, 12), 0.5))
    assert torch.equal(flat, torch.zeros(1, 1, 12))
