"""Principal components of patches, for models that predict those (He et al. 2022, table 1d)."""

from collections.abc import Iterable

import torch
from torch import Tensor

from mae_core.errors import DataError
from mae_core.model.patches import patchify


def fit_pca(images: Iterable[Tensor], patch_size: int, components: int) -> tuple[Tensor, Tensor]:
    """The mean of all patches and their leading principal directions.

    The covariance is added up in float64 on the CPU, so that every device gets the same, and
    each direction's sign is fixed, so that it is the pictures' alone.

    Args:
        images: Batches of (n, C, side, side), normalised as the model will see them; n and
            side may differ from batch to batch.
        patch_size: Side of a patch in pixels.
        components: q, directions wanted; at most P.

    Returns:
        The (P,) mean and the (P, q) directions, float32, for `MaskedAutoencoder.set_pca`:
        orthonormal columns, the largest variance first.

    Raises:
        DataError: If there are no images.
    """
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for batch in images:
        patches = patchify(batch.cpu().double(), patch_size).flatten(0, 1)  # (n * L, P)
        count += len(patches)
        total = total + patches.sum(dim=0)
        products = products + patches.T @ patches
    if not count:
        raise DataError("principal components need pictures to be found in; none were given")
    mean = total / count
    covariance = products / count - torch.outer(mean, mean)
    # Eigenvalues come in ascending order.
    directions = torch.linalg.eigh(covariance).eigenvectors.flip(dims=(1,))[:, :components]
    return mean.float(), _with_fixed_signs(directions).float()


def _with_fixed_signs(directions: Tensor) -> Tensor:
    """(P, q) columns, turned so that the first large entry of each is positive.

    Not the largest entry: the two halves of an odd pattern tie for it, and rounding would
    decide.
    """
    sizes = directions.abs()
    first = (sizes >= 0.5 * sizes.amax(dim=0)).int().argmax(dim=0)  # (q,)
    return directions * directions.gather(0, first.unsqueeze(0)).sign()
