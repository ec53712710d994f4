"""How well removed patches are rebuilt, beside classical inpainting on the same masks."""

import logging
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mae_core.config import ModelConfig
from mae_core.data.folders import find_images
from mae_core.errors import DataError, ImageError, MaskError
from mae_core.images import Picture, size_of, to_tensor
from mae_core.masking import PatchMask, draw_mask
from mae_core.models.mae import MaskedAutoencoder
from mae_core.rasters import open_picture
from mae_core.reconstruction import Rebuilt, compose, fit_to_model, pixel_mask, rebuild, score

_log = logging.getLogger(__name__)

# Pictures that go through the model together.
_BATCH = 20

# OpenCV's neighbourhood in pixels, as in its own examples.
_TELEA_RADIUS = 3


@dataclass(frozen=True)
class Summary:
    """Mean and spread (standard deviation over pictures) of one figure."""

    mean: float
    std: float


@dataclass
class Figures:
    """One method's figures on removed patches, a value for each picture.

    Attributes:
        loss: Mean squared error of the model's target; empty for baselines, which have none.
        psnr: In dB, for pixels in 0..1.
        ssim: At most 1.
    """

    loss: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Summary]:
        """Mean and spread of each figure there is."""
        return {
            name: Summary(statistics.fmean(values), statistics.pstdev(values))
            for name, values in (("loss", self.loss), ("psnr", self.psnr), ("ssim", self.ssim))
            if values
        }


def load_pictures(
    folder: str | Path, config: ModelConfig, fit: str = "crop", image_size: int | None = None
) -> list[Picture]:
    """All readable pictures below a folder, fitted to a model; others are named and skipped.

    Args:
        folder: Looked through with all folders in it.
        config: The model's shape.
        fit: See `fit_to_model`.
        image_size: Likewise.

    Raises:
        DataError: If the folder is missing or holds no readable picture.
        ConfigError: If the fit or the size is not allowed.
    """
    pictures = []
    for path in find_images(folder):
        try:
            picture = open_picture(
                path, config.in_chans, bands=config.bands, value_range=config.value_range or "auto"
            )
            fitted = fit_to_model(picture, config, fit, image_size)
        except ImageError as error:
            _log.warning("skipped %s: %s", path.name, error)
            continue
        pictures.append(fitted)
    if not pictures:
        raise DataError(f"no file below {str(folder)!r} could be read as a picture")
    return pictures


def evaluate_reconstruction(
    model: MaskedAutoencoder,
    pictures: Sequence[Picture],
    *,
    mask_ratio: float = 0.75,
    seed: int = 0,
    strategy: str = "random",
    baselines: bool = True,
) -> dict[str, Figures]:
    """Rebuild every picture once and score its removed patches.

    A model of per-patch normalised pixels is scored in the view `estimated` (see `rebuild`), so
    that no figure owes anything to the answer.

    Args:
        model: In evaluation mode.
        pictures: Fitted to the model's patches.
        mask_ratio: Fraction removed, above 0 and below 1.
        seed: Picture i gets the mask of seed + i.
        strategy: One of `masking.STRATEGIES`.
        baselines: Whether to fill the same masks by the mean colour and by OpenCV's Telea
            inpainting (Telea 2004) too.

    Returns:
        Figures by method: `model`, and with baselines `mean_colour` and `telea`. Telea is
        missing where OpenCV is not installed, which is logged.

    Raises:
        MaskError: If ratio, seed or strategy are not allowed, or nothing is removed.
    """
    if mask_ratio == 0:
        raise MaskError("a mask_ratio of 0 removes nothing to measure; give one above 0")
    fillers = _fillers() if baselines else {}
    figures = {name: Figures() for name in ("model", *fillers)}
    for images, mask, grid_size in _batches(model, pictures, mask_ratio, seed, strategy):
        rebuilt = rebuild(model, images, mask)
        removed = pixel_mask(mask.mask, grid_size, model.config.patch_size)
        _add(figures["model"], rebuilt, mask, grid_size, model.config.patch_size)
        for name, fill in fillers.items():
            filled = torch.stack(
                [fill(image, gone) for image, gone in zip(rebuilt.original, removed, strict=True)]
            )
            no_loss = torch.full((len(images),), math.nan)
            other = Rebuilt(rebuilt.original, filled, no_loss)
            _add(figures[name], other, mask, grid_size, model.config.patch_size)
    return figures


def _batches(
    model: MaskedAutoencoder,
    pictures: Sequence[Picture],
    mask_ratio: float,
    seed: int,
    strategy: str,
) -> Iterator[tuple[Tensor, PatchMask, tuple[int, int]]]:
    """Runs of pictures of one size as (N, C, H, W), their masks and their grid."""
    start = 0
    with tqdm(total=len(pictures), desc="evaluating", unit="img", leave=False) as bar:
        while start < len(pictures):
            size = size_of(pictures[start])
            stop = start + 1
            while stop < min(start + _BATCH, len(pictures)) and size_of(pictures[stop]) == size:
                stop += 1
            tensors = [
                to_tensor(picture, model.config.mean, model.config.std)
                for picture in pictures[start:stop]
            ]
            images = torch.cat(tensors)
            grid_size = model.grid_of(images)
            seeds = [seed + i for i in range(start, stop)]
            yield (
                images,
                draw_mask(strategy, len(images), grid_size, mask_ratio, seed=seeds),
                grid_size,
            )
            bar.update(stop - start)
            start = stop


def _add(
    figures: Figures,
    rebuilt: Rebuilt,
    mask: PatchMask,
    grid_size: tuple[int, int],
    patch_size: int,
) -> None:
    scores = score(rebuilt, mask, grid_size, patch_size)
    for values, new in (
        (figures.loss, scores.loss), (figures.psnr, scores.psnr), (figures.ssim, scores.ssim),
    ):  # fmt: skip
        values.extend(value for value in new if value is not None)


def _fillers() -> dict[str, Any]:
    fillers: dict[str, Any] = {"mean_colour": _fill_mean_colour}
    try:
        import cv2  # noqa: F401  (only this baseline needs it)
    except ImportError:
        _log.warning("no telea baseline: opencv-python-headless is not installed")
    else:
        fillers["telea"] = _fill_telea
    return fillers


def _fill_mean_colour(image: Tensor, removed: Tensor) -> Tensor:
    """(C, H, W) image with removed pixels in the visible ones' mean colour."""
    visible = 1 - removed
    colour = (image * visible).sum(dim=(1, 2)) / visible.sum()
    return compose(image, colour.view(-1, 1, 1).expand_as(image), removed)


def _fill_telea(image: Tensor, removed: Tensor) -> Tensor:
    """(3, H, W) or (1, H, W) image with removed pixels inpainted by OpenCV."""
    import cv2

    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    holes = removed[0].to(torch.uint8).numpy()
    # The hidden pixels are blanked first, so that a leak would show.
    visible = np.ascontiguousarray(pixels * (1 - holes)[:, :, None])
    filled = cv2.inpaint(visible, holes, _TELEA_RADIUS, cv2.INPAINT_TELEA)
    # OpenCV gives one channel as (H, W).
    return torch.from_numpy(np.atleast_3d(filled)).permute(2, 0, 1).float() / 255
