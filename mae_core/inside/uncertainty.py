"""Doubt: where a model errs and where it disagrees with itself, over many masks of one picture.

    doubt = uncertainty(Reconstructor(mae_core.load()), "photo.jpg", masks=16, seed=0)
    doubt.error, doubt.disagreement  # (H, W), in pixels of 0..1

A pixel counts in the masks that removed it: elsewhere the model was told what it is.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mae_core.errors import ConfigError, ImageError, MAEError
from mae_core.images import ImageSource
from mae_core.model.masking import MAX_SEED
from mae_core.reconstruct import Reconstruction, ReconstructionRequest, Reconstructor

__all__ = ["Doubt", "doubt_seeds", "uncertainty"]

_Floats = NDArray[np.float64]

# Reconstructions that are held at a time.
_BATCH = 8


class Doubt:
    """Error and disagreement of the reconstructions of one picture, added one at a time.

    It takes memory for a few pictures in float64, however many are added.

    Attributes:
        runs: Reconstructions that were added.
        hidden: (h, w) how many of them removed each patch.
    """

    def __init__(self) -> None:
        """Begin with none; figures are of size 0 until one is added."""
        self.runs = 0
        self.hidden: NDArray[np.int64] = np.zeros((0, 0), np.int64)
        self._patch_size = 1
        self._original: _Floats = np.zeros((1, 0, 0))
        # Of the masks in which a pixel was removed: mean (C, H, W); over the channels, (H, W), the
        # sums of squared differences from that mean (Welford 1962) and from the original.
        self._mean = self._original.copy()
        self._squares, self._errors = np.zeros((0, 0)), np.zeros((0, 0))
        self._psnrs: list[float] = []

    def add(self, result: Reconstruction) -> None:
        """Count one more mask.

        Raises:
            ImageError: If the result is of another size than those before.
            ConfigError: If its view has other pixels than the original.
        """
        if result.view == "normalized":
            raise ConfigError(
                "the view normalized cannot be compared with the original; choose estimated or "
                "answer",
                code="not_comparable",
            )
        pixels: _Floats = result.reconstruction.double().numpy()
        if not self.runs:
            self._patch_size = result.patch_size
            self._original = result.original.double().numpy()
            self._mean = np.zeros_like(pixels)
            self._squares, self._errors = np.zeros(pixels.shape[1:]), np.zeros(pixels.shape[1:])
            self.hidden = np.zeros(result.grid_size, np.int64)
        shapes = [(*each.shape, side) for each, side in (
            (pixels, result.patch_size), (self._original, self._patch_size)
        )]  # fmt: skip
        if shapes[0] != shapes[1]:
            given, allowed = ("{} channels of {} x {} in patches of {}".format(*s) for s in shapes)
            raise ImageError(
                f"this reconstruction has {given}, and those before have {allowed}; add "
                "reconstructions of one picture, fitted alike"
            )
        self.runs += 1
        self.hidden += result.removed
        removed = self._of_pixels(result.removed)
        change = (pixels - self._mean) * removed
        self._mean += change / np.maximum(self._of_pixels(self.hidden), 1)
        self._squares += (change * (pixels - self._mean)).sum(axis=0)
        self._errors += (np.square(pixels - self._original) * removed).sum(axis=0)
        if result.psnr is not None:
            self._psnrs.append(result.psnr)

    @property
    def mean(self) -> _Floats:
        """(C, H, W) the mean picture: of the masks that removed a pixel, else the original."""
        return np.where(self._of_pixels(self.hidden) > 0, self._mean, self._original)

    @property
    def error(self) -> _Floats:
        """(H, W) root mean square error, over channels and masks; NaN where never removed."""
        return self._root_mean(self._errors, least=1)

    @property
    def disagreement(self) -> _Floats:
        """(H, W) root of the variance over masks, averaged over channels.

        The variance is the population's; NaN where removed less than twice.
        """
        return self._root_mean(self._squares, least=2)

    @property
    def patch_error(self) -> _Floats:
        """(h, w) root mean square of the `error` of each patch's pixels."""
        return self._of_patches(self.error)

    @property
    def patch_disagreement(self) -> _Floats:
        """(h, w) root mean square of the `disagreement` of each patch's pixels."""
        return self._of_patches(self.disagreement)

    @property
    def mean_psnr(self) -> float | None:
        """PSNR of the `mean` picture in dB, over the pixels that were ever removed."""
        ever = self._of_pixels(self.hidden) > 0
        errors = np.square(self._mean - self._original)[:, ever]
        return -10 * math.log10(errors.mean()) if errors.any() else None

    @property
    def single_psnr(self) -> float | None:
        """Mean over the masks of the PSNR of each, in dB."""
        return float(np.mean(self._psnrs)) if self._psnrs else None

    def _of_pixels(self, patches: NDArray[Any]) -> NDArray[Any]:
        """(h, w) -> (H, W)."""
        return patches.repeat(self._patch_size, axis=0).repeat(self._patch_size, axis=1)

    def _of_patches(self, pixels: _Floats) -> _Floats:
        h, w = self.hidden.shape
        cells = pixels.reshape(h, self._patch_size, w, self._patch_size)
        roots: _Floats = np.sqrt(np.square(cells).mean(axis=(1, 3)))
        return roots

    def _root_mean(self, sums: _Floats, least: int) -> _Floats:
        """The root of the mean of (H, W) sums; NaN where fewer than `least` masks counted."""
        counts = self._of_pixels(np.where(self.hidden < least, np.nan, self.hidden))
        roots: _Floats = np.sqrt(sums / (counts * len(self._original)))
        return roots


def doubt_seeds(seed: int, masks: int) -> list[int]:
    """The seeds of so many masks: `seed` and those after it; 0 comes after `MAX_SEED`.

    Raises:
        ConfigError: If there are fewer than 1.
    """
    if masks < 1:
        raise ConfigError(f"masks is {masks!r}; give a whole number from 1, or from 2 to disagree")
    return [(seed + i) % (MAX_SEED + 1) for i in range(masks)]


def uncertainty(
    reconstructor: Reconstructor, image: ImageSource | Tensor, masks: int = 16,
    mask_ratio: float = 0.75, seed: int = 0, **fields: Any,
) -> Doubt:  # fmt: skip
    """Rebuild an image under several masks of one ratio.

    Args:
        reconstructor: Of the model.
        image: As in a `ReconstructionRequest`.
        masks: How many; below 2 there is no disagreement.
        mask_ratio: Fraction removed, 0..1.
        seed: Of the first mask; see `doubt_seeds`.
        fields: Further fields of a `ReconstructionRequest`, but for `mask`: strategy, fit...

    Raises:
        MAEError: If the image cannot be used, or a value is not allowed.
    """
    doubt = Doubt()
    requests = [
        ReconstructionRequest(image, mask_ratio, each, **fields)
        for each in doubt_seeds(seed, masks)
    ]
    for start in range(0, masks, _BATCH):
        for result in reconstructor.batch(requests[start : start + _BATCH]):
            if isinstance(result, MAEError):
                raise result
            doubt.add(result)
    return doubt
