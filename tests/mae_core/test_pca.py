"""Principal components of patches: against another algorithm, and by their properties."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mae_core.errors import DataError
from mae_core.model.patches import patchify
from mae_core.training.train import fit_pca
from tests import references


def batches() -> list[Tensor]:
    """Patches of 4 x 4 x 3 values that vary very differently in different directions."""
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for n, side in ((5, 16), (3, 24), (1, 8)):
        images = torch.randn(n, 3, side, side, generator=generator)
        # Neighbours alike, as in pictures; each channel at another level.
        images = images.cumsum(dim=2).cumsum(dim=3) / side
        drawn.append(images + torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1))
    return drawn


def all_patches() -> np.ndarray:
    images = [references.patchify(batch.double().numpy(), 4) for batch in batches()]
    return np.concatenate([patches.reshape(-1, 48) for patches in images])


def test_the_mean_is_of_all_patches() -> None:
    mean, _ = fit_pca(batches(), 4, 5)
    np.testing.assert_allclose(mean.numpy(), all_patches().mean(axis=0), rtol=0, atol=1e-5)


def test_directions_are_those_of_a_singular_value_decomposition() -> None:
    patches = all_patches()
    mean, basis = fit_pca(iter(batches()), 4, 6)
    centred = patches - patches.mean(axis=0)
    singular_values, rows = np.linalg.svd(centred)[1:]
    for i in range(6):
        assert abs(rows[i] @ basis[:, i].numpy()) == pytest.approx(1, abs=1e-5)
    # No projection on 6 directions leaves out less.
    kept = references.principal_components(patches, mean.double().numpy(), basis.double().numpy())
    left = ((centred - kept @ basis.double().numpy().T) ** 2).sum()
    assert left == pytest.approx((singular_values[6:] ** 2).sum(), rel=1e-4)
    rng = np.random.default_rng(0)
    for _ in range(5):
        other = np.linalg.qr(rng.normal(size=(48, 6)))[0]
        assert ((centred - centred @ other @ other.T) ** 2).sum() > left


@pytest.mark.parametrize("components", [1, 10, 48])
def test_directions_are_orthonormal(components: int) -> None:
    mean, basis = fit_pca(batches(), 4, components)
    assert (mean.shape, basis.shape) == ((48,), (48, components))
    assert (mean.dtype, basis.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(basis.T @ basis, torch.eye(components), rtol=0, atol=1e-5)


def test_fewer_patches_than_directions_still_give_orthonormal_ones() -> None:
    basis = fit_pca([torch.randn(1, 3, 8, 8)], 4, 48)[1]
    torch.testing.assert_close(basis.T @ basis, torch.eye(48), rtol=0, atol=1e-5)


def test_batches_and_their_order_do_not_matter() -> None:
    images = batches()
    mean, basis = fit_pca(images, 4, 10)
    one_by_one = [image[None] for batch in reversed(images) for image in batch]
    other_mean, other_basis = fit_pca(one_by_one, 4, 10)
    torch.testing.assert_close(other_mean, mean, rtol=0, atol=1e-5)
    # Signs too, which an eigenvector does not have by itself.
    torch.testing.assert_close(other_basis, basis, rtol=0, atol=1e-4)


def test_a_pictures_negative_has_the_same_directions() -> None:
    basis = fit_pca(batches(), 4, 10)[1]
    negative = fit_pca([-batch for batch in batches()], 4, 10)[1]
    torch.testing.assert_close(negative, basis, rtol=0, atol=1e-4)
    for column in basis.T:
        first = next(value for value in column if value.abs() >= 0.5 * column.abs().max())
        assert first > 0


def test_ramps_are_found() -> None:
    """Patches that differ along two known patterns have those for directions."""
    across = torch.linspace(-1, 1, 4).repeat(4, 1).expand(3, 4, 4)
    generator = torch.Generator().manual_seed(0)
    amounts = torch.randn(200, 2, 1, 1, 1, generator=generator)
    images = 2 * amounts[:, 0] * across + 0.5 * amounts[:, 1] * across.transpose(1, 2)
    basis = fit_pca([images], 4, 2)[1]
    for i, pattern in enumerate((across, across.transpose(1, 2))):
        direction = patchify(pattern[None], 4)[0, 0]
        cosine = direction @ basis[:, i] / direction.norm()
        assert abs(cosine.item()) > 0.99


def test_no_pictures_are_an_error() -> None:
    with pytest.raises(DataError, match="none were given"):
        fit_pca([], 4, 5)
