"""Proof that hidden pixels do not reach a prediction.

    proof = prove(Reconstructor(load()), ReconstructionRequest("cat.jpg"))
    proof.same  # True: whatever is hidden, the prediction is the same to the bit

In the view `answer` brightness and contrast of a patch are the original's, so hidden pixels do
reach the image. The proof shows that too: `proof.answer.same` is False.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae_core.errors import MaskError
from mae_core.model.patches import pixel_mask
from mae_core.reconstruct import ReconstructionRequest, Reconstructor

__all__ = ["Comparison", "LeakProof", "prove", "scramble"]


@dataclass(frozen=True)
class Comparison:
    """Two predictions, of an image and of the same with its hidden pixels scrambled.

    Attributes:
        view: One of `NORM_PIX_VIEWS`; None where the model predicts pixels.
        predictions: (C, H, W) pixels in 0..1, each.
    """

    view: str | None
    predictions: tuple[Tensor, Tensor]

    @property
    def same(self) -> bool:
        """Whether all values are equal, without tolerance."""
        return torch.equal(*self.predictions)

    @property
    def changed_values(self) -> int:
        """How many of the C * H * W values are not equal."""
        before, after = self.predictions
        return int((before != after).sum())

    @property
    def largest_change(self) -> float:
        """Of a value, in 0..1."""
        before, after = self.predictions
        return float((before - after).abs().max())


@dataclass(frozen=True)
class LeakProof(Comparison):
    """The comparison in the view that was asked for, and in the view `answer`.

    Attributes:
        original: (C, H, W) pixels in 0..1.
        scrambled: The same with noise in the removed patches.
        removed: (h, w) booleans, True = removed.
        answer: None where the model predicts pixels.
    """

    original: Tensor
    scrambled: Tensor
    removed: NDArray[np.bool_]
    answer: Comparison | None


def scramble(pixels: Tensor, removed: NDArray[np.bool_], patch_size: int, seed: int = 0) -> Tensor:
    """An image whose removed patches are noise.

    Args:
        pixels: (C, H, W) in 0..1.
        removed: (h, w) booleans, True = removed.
        patch_size: Side of a patch in pixels.
        seed: Of the noise, which is uniform in 0..1.

    Returns:
        (C, H, W) in 0..1, its visible pixels as they were.
    """
    h, w = removed.shape
    hidden = pixel_mask(torch.from_numpy(removed), (h, w), patch_size)[0]
    noise = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(hidden, noise, pixels)


def prove(reconstructor: Reconstructor, request: ReconstructionRequest, seed: int = 0) -> LeakProof:
    """Rebuild an image, and again with its hidden pixels scrambled, and compare.

    These are two forward passes of one image each, so that the kernels are the same, and two more
    for the view `answer` of a model of per-patch normalised pixels.

    Args:
        reconstructor: With the model.
        request: Image, mask and view.
        seed: Of the noise.

    Raises:
        MAEError: If the image cannot be used, a field is not allowed, or nothing is removed.
    """
    request, images, patch_mask = reconstructor.prepare(request)
    if patch_mask.num_visible == patch_mask.num_patches:
        raise MaskError(
            "no patch is removed, so no pixel is hidden; give a higher mask_ratio",
            code="nothing_removed",
        )
    config, grid_size = reconstructor.config, reconstructor.model.grid_of(images)
    removed = (patch_mask.mask[0].numpy() > 0).reshape(grid_size)

    images = images.contiguous()  # of other strides, kernels may be others
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    original = (images[0] * std + mean).clamp(0, 1)
    scrambled = scramble(original, removed, config.patch_size, seed)
    # Only the noise comes from there: visible pixels were rounded on the way.
    hidden = pixel_mask(patch_mask.mask, grid_size, config.patch_size) > 0
    both = images, torch.where(hidden, (scrambled - mean) / std, images)

    def compared(view: str) -> Comparison:
        before, after = (reconstructor.rebuild(one, patch_mask, view) for one in both)
        return Comparison(before.view, (before.pixels[0], after.pixels[0]))

    shown = compared(request.view)
    answer = compared("answer") if config.norm_pix else None
    return LeakProof(shown.view, shown.predictions, original, scrambled, removed, answer)
