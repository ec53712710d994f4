"""How well removed patches are rebuilt, beside classical inpainting on the same masks."""

import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mae_core.config import ModelConfig
from mae_core.data.datasets import find_images, shown
from mae_core.errors import DataError, ImageError, MaskError
from mae_core.images import DecodedImage, size_of, to_tensor
from mae_core.measurements import RangeSpec
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import PatchMask, draw_mask
from mae_core.reconstruct import (
    compose,
    fit_to_model,
    picture_for,
    pixel_mask,
    rebuild,
    removed_psnr,
    removed_ssim,
)

_log = logging.getLogger(__name__)

# A picture rebuilt without error would have an infinite PSNR, and so would every mean with it.
MAX_PSNR = 100.0

# Pictures that go through the model together, and that are decoded at a time.
_BATCH = 20

# OpenCV's neighbourhood in pixels, as in its own examples.
_TELEA_RADIUS = 3


@dataclass(frozen=True)
class Summary:
    """One figure of one method over the pictures.

    Attributes:
        mean: Over the pictures.
        std: Standard deviation over the pictures.
        n: Pictures that it was taken of.
    """

    mean: float
    std: float
    n: int


@dataclass(frozen=True)
class PSNRSummary(Summary):
    """PSNR of one method over the pictures.

    Attributes:
        pooled: Of the mean squared error of all pictures together, in dB.
        capped: Pictures at `MAX_PSNR`.
    """

    pooled: float
    capped: int


@dataclass
class Figures:
    """One method's figures on removed patches, a value for each picture.

    What cannot be measured is not a number: all figures of a model that gives none, and the SSIM
    of pictures smaller than its window.

    Attributes:
        loss: Mean squared error of the model's target; empty for baselines, which have none.
        psnr: In dB, for pixels in 0..1; at most `MAX_PSNR`.
        ssim: At most 1.
    """

    loss: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)

    def columns(self) -> dict[str, list[float]]:
        """The figures there are, by name."""
        named = {"loss": self.loss, "psnr": self.psnr, "ssim": self.ssim}
        return {name: values for name, values in named.items() if values}


def summarize(figures: Mapping[str, Figures]) -> dict[str, dict[str, Summary]]:
    """Mean and spread of each figure of each method, over the same pictures for all methods.

    A picture without a value in one method counts in none, which is logged. A figure that no
    picture has is missing.

    Args:
        figures: By method, as `evaluate_reconstruction` gives them.
    """
    summaries: dict[str, dict[str, Summary]] = {method: {} for method in figures}
    for name in ("loss", "psnr", "ssim"):
        columns = {
            method: np.array(of.columns()[name])
            for method, of in figures.items()
            if name in of.columns()
        }
        if not columns:
            continue
        counted: NDArray[np.bool_] = np.isfinite(np.stack([*columns.values()])).all(axis=0)
        if not counted.all():
            _log.warning(
                "the %s of %d of %d pictures is not a number; no method's mean has them in it",
                name, (~counted).sum(), len(counted),
            )  # fmt: skip
        if counted.any():
            for method, values in columns.items():
                summaries[method][name] = _summary(name, values[counted])
    return summaries


def _summary(name: str, values: NDArray[np.float64]) -> Summary:
    mean, std, n = float(values.mean()), float(values.std()), len(values)
    if name != "psnr":
        return Summary(mean, std, n)
    pooled = -10 * math.log10(np.mean(10 ** (-values / 10)))
    return PSNRSummary(mean, std, n, pooled, int((values >= MAX_PSNR).sum()))


class FittedPictures:
    """The pictures below a folder, fitted to a model while they are iterated over; none is kept.

    Attributes:
        names: Of the pictures that were given out, relative to the folder.
        unreadable: Of the files that were skipped, likewise.
    """

    def __init__(
        self,
        folder: str | Path,
        config: ModelConfig,
        fit: str = "crop",
        image_size: int | None = None,
        bands: Sequence[int] = (),
        value_range: RangeSpec | None = None,
    ) -> None:
        """Find the pictures; see `find_images`.

        Args:
            folder: Looked through with all folders in it.
            config: The model's shape.
            fit: See `fit_to_model`.
            image_size: Likewise.
            bands: See `picture_for`.
            value_range: Likewise.

        Raises:
            DataError: If the folder is missing or holds no picture.
        """
        self._paths = find_images(folder)
        self._folder = Path(folder).expanduser()
        self._open = partial(picture_for, config=config, bands=bands, value_range=value_range)
        self._fit = partial(fit_to_model, config=config, fit=fit, image_size=image_size)
        self.names: list[str] = []
        self.unreadable: list[str] = []

    def __len__(self) -> int:
        """Files, readable or not."""
        return len(self._paths)

    def __iter__(self) -> Iterator[DecodedImage]:
        """The readable pictures, sorted by path; others are named in the log and skipped.

        Raises:
            DataError: If there was none.
            ConfigError: If the fit or the size is not allowed.
        """
        self.names, self.unreadable = [], []
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(self), _BATCH):
                paths = self._paths[start : start + _BATCH]
                for path, fitted in zip(paths, pool.map(self._fitted, paths), strict=True):
                    name = path.relative_to(self._folder).as_posix()
                    if isinstance(fitted, ImageError):
                        _log.warning("skipped %s: %s", shown(name), fitted)
                        self.unreadable.append(name)
                    else:
                        self.names.append(name)
                        yield fitted
        if not self.names:
            raise DataError(f"no file below {str(self._folder)!r} could be read as a picture")

    def _fitted(self, path: Path) -> DecodedImage | ImageError:
        try:
            return self._fit(self._open(path))
        except ImageError as error:
            return error


def load_pictures(
    folder: str | Path, config: ModelConfig, fit: str = "crop", image_size: int | None = None
) -> list[DecodedImage]:
    """All of `FittedPictures` at once."""
    return list(FittedPictures(folder, config, fit, image_size))


def evaluate_reconstruction(
    model: MaskedAutoencoder,
    pictures: Iterable[DecodedImage],
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
        model: In evaluation mode; in float32, for figures to compare with others.
        pictures: Fitted to the model's patches; of what is no list, few are held at a time.
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
    if isinstance(seed, np.integer):
        seed = int(seed)  # those of NumPy overflow
    fillers = _fillers() if baselines else {}
    figures = {name: Figures() for name in ("model", *fillers)}
    for images, mask, grid_size in _batches(model, pictures, mask_ratio, seed, strategy):
        rebuilt = rebuild(model, images, mask)
        removed = pixel_mask(mask.mask, grid_size, model.config.patch_size)
        figures["model"].loss.extend(rebuilt.loss.tolist())
        _add(figures["model"], rebuilt.pixels, rebuilt.original, removed)
        for name, fill in fillers.items():
            filled = torch.stack(
                [fill(image, gone) for image, gone in zip(rebuilt.original, removed, strict=True)]
            )
            _add(figures[name], filled, rebuilt.original, removed)
    return figures


def _batches(
    model: MaskedAutoencoder,
    pictures: Iterable[DecodedImage],
    mask_ratio: float,
    seed: int,
    strategy: str,
) -> Iterator[tuple[Tensor, PatchMask, tuple[int, int]]]:
    """Runs of pictures of one size as (N, C, H, W), their masks and their grid."""
    total = len(pictures) if isinstance(pictures, Sized) else None
    with tqdm(total=total, desc="evaluating", unit="img", leave=False) as bar:
        for _, alike in itertools.groupby(pictures, key=size_of):
            while batch := list(itertools.islice(alike, _BATCH)):
                images = torch.cat(
                    [to_tensor(one, model.config.mean, model.config.std) for one in batch]
                )
                grid_size = model.grid_of(images)
                seeds = list(range(seed, seed + len(batch)))
                mask = draw_mask(strategy, len(batch), grid_size, mask_ratio, seed=seeds)
                yield images, mask, grid_size
                seed += len(batch)
                bar.update(len(batch))


def _add(figures: Figures, pixels: Tensor, original: Tensor, removed: Tensor) -> None:
    psnr = removed_psnr(pixels, original, removed).clamp(max=MAX_PSNR)
    figures.psnr.extend(psnr.tolist())
    figures.ssim.extend(removed_ssim(pixels, original, removed).tolist())


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
    """(C, H, W) image with removed pixels inpainted by OpenCV, which takes 3 channels or 1."""
    import cv2

    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    holes = removed[0].to(torch.uint8).numpy()
    # The hidden pixels are blanked first, so that a leak would show.
    visible = np.ascontiguousarray(pixels * (1 - holes)[:, :, None])
    parts = [visible] if visible.shape[2] in (1, 3) else np.split(visible, visible.shape[2], axis=2)
    filled = [cv2.inpaint(part, holes, _TELEA_RADIUS, cv2.INPAINT_TELEA) for part in parts]
    # OpenCV gives one channel as (H, W).
    return torch.from_numpy(np.dstack(filled)).permute(2, 0, 1).float() / 255
