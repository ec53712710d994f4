"""How well removed patches are rebuilt, beside classical inpainting under the same masks.

images = FittedImages("folder", model.config)
figures = evaluate_reconstruction(model, images, mask_ratio=0.75)
summarize(figures)["model"]["psnr"].mean
"""

import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mae_core.config import ModelConfig
from mae_core.data.datasets import find_images, shown
from mae_core.errors import DataError, ImageError, MaskError
from mae_core.images import DecodedImage, size_of, to_tensor
from mae_core.inpainting import FILLERS
from mae_core.measurements import RangeSpec, as_value_range
from mae_core.metrics import compose, removed_edges, removed_psnr, removed_ssim
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import draw_mask, num_visible
from mae_core.model.patches import pixel_mask
from mae_core.reconstruct import open_fitted, rebuild

_log = logging.getLogger(__name__)

# An image rebuilt without error would have an infinite PSNR, and so would every mean with it.
MAX_PSNR = 100.0

# Images that go through the model together, and that are decoded at a time.
_BATCH = 20

# One method's figures by name, `loss` and `FIGURES`: a value for each image. NaN is what cannot be
# measured: what a model gets wrong, and the SSIM of images smaller than its window.
Figures = dict[str, list[float]]
FIGURES = ("psnr", "ssim", "seams", "seams_pasted", "sharpness")


class FittedImages:
    """The images below a folder, fitted to a model while they are iterated over; none is kept.

    Attributes:
        names: Of the images that were given out, relative to the folder.
        unreadable: Of the files that were skipped, likewise.
    """

    def __init__(
        self, folder: str | Path, config: ModelConfig, fit: str = "crop",
        image_size: int | None = None, bands: Sequence[int] = (),
        value_range: RangeSpec | None = None,
    ) -> None:  # fmt: skip
        """Find the images by `find_images`; the other arguments are those of `open_fitted`."""
        if value_range is not None:
            as_value_range(value_range)  # refused before the folder is searched
        self._paths = find_images(folder)
        self._folder = Path(folder).expanduser()
        self._open = partial(
            open_fitted, config=config, fit=fit, image_size=image_size, bands=bands,
            value_range=value_range,
        )  # fmt: skip
        self.names: list[str] = []
        self.unreadable: list[str] = []

    def __len__(self) -> int:
        """Files, readable or not."""
        return len(self._paths)

    def __iter__(self) -> Iterator[DecodedImage]:
        """The readable images, sorted by path; others are named in the log and skipped."""
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
            raise DataError(f"no file below {str(self._folder)!r} could be read as an image")

    def _fitted(self, path: Path) -> DecodedImage | ImageError:
        try:
            return self._open(path)
        except ImageError as error:
            return error


def load_images(
    folder: str | Path, config: ModelConfig, fit: str = "crop", image_size: int | None = None
) -> list[DecodedImage]:
    """All of `FittedImages` at once."""
    return list(FittedImages(folder, config, fit, image_size))


def evaluate_reconstruction(
    model: MaskedAutoencoder, images: Iterable[DecodedImage], *, mask_ratio: float = 0.75,
    seed: int = 0, strategy: str = "random", baselines: bool = True,
) -> dict[str, Figures]:  # fmt: skip
    """Rebuild every image once and score its removed patches.

    A model of per-patch normalised pixels is scored in the view `estimated` (see `rebuild`), so
    that no figure depends on the answer.

    Args:
        model: In evaluation mode; in float32, for figures to compare with others.
        images: Fitted to the model's patches; unless they are a list, few are held at a time.
        mask_ratio: Fraction removed, above 0 and below 1.
        seed: Image i gets the mask of seed + i.
        strategy: One of `masking.STRATEGIES`.
        baselines: Whether to fill the same masks by the mean colour and by OpenCV's Telea
            inpainting (Telea 2004) too.

    Returns:
        Figures by method: `model`, and with baselines `mean_colour` and `telea`, which have no
        loss. PSNR is in dB, for pixels in 0..1, and at most `MAX_PSNR`; seams and sharpness are
        `removed_edges` of the reconstruction, seams of the pasted image too. Telea is missing
        where OpenCV is not installed, which is logged.
    """
    num_visible(1, mask_ratio)  # refused before the images are opened
    config, fillers = model.config, FILLERS if baselines else {}
    patch = config.patch_size
    if baselines and "telea" not in fillers:
        _log.warning("no telea baseline: opencv-python-headless is not installed")
    figures: dict[str, Figures] = {"model": {"loss": []}, **{name: {} for name in fillers}}
    bar = tqdm(images, desc="evaluating", unit="img", leave=False)
    for _, alike in itertools.groupby(bar, key=size_of):
        while several := list(itertools.islice(alike, _BATCH)):
            batch = torch.cat([to_tensor(one, config.mean, config.std) for one in several])
            n, grid_size = len(batch), model.grid_of(batch)
            mask = draw_mask(strategy, n, grid_size, mask_ratio, seed=range(seed, seed + n))
            if mask.num_visible == mask.num_patches:
                raise MaskError(
                    f"a mask_ratio of {mask_ratio} removes none of {mask.num_patches} patches; "
                    "give a larger one, or a larger image_size"
                )
            seed += n
            removed = pixel_mask(mask.mask, grid_size, patch)
            rebuilt = rebuild(model, batch, mask)
            figures["model"]["loss"] += rebuilt.loss.tolist()
            pixels = {"model": rebuilt.pixels}
            for name, fill in fillers.items():
                pixels[name] = torch.stack([*map(fill, rebuilt.original, removed)])
            for name, theirs in pixels.items():
                true = rebuilt.original
                pasted = compose(true, theirs, removed)
                seams, sharpness = removed_edges(theirs.clamp(0, 1), true, removed, patch)
                values = (
                    removed_psnr(theirs, true, removed).clamp(max=MAX_PSNR),
                    removed_ssim(theirs, true, removed), seams,
                    removed_edges(pasted, true, removed, patch)[0], sharpness,
                )  # fmt: skip
                for figure, value in zip(FIGURES, values, strict=True):
                    figures[name].setdefault(figure, []).extend(value.tolist())
    return figures


@dataclass(frozen=True)
class Summary:
    """One figure of one method over n images: mean and standard deviation.

    Attributes:
        pooled: PSNR of the mean squared error of all images together, in dB; None of others.
        capped: Images at `MAX_PSNR`; None of other figures.
    """

    mean: float
    std: float
    n: int
    pooled: float | None = None
    capped: int | None = None


def summarize(figures: Mapping[str, Figures]) -> dict[str, dict[str, Summary]]:
    """Mean and spread of each figure of each method, over the same images for all methods.

    An image without a value in one method counts in none, which is logged. A figure that no
    image has is missing.
    """
    summaries: dict[str, dict[str, Summary]] = {method: {} for method in figures}
    for name in dict.fromkeys(itertools.chain.from_iterable(figures.values())):
        columns = {method: np.array(of[name]) for method, of in figures.items() if name in of}
        counted = np.isfinite(np.stack([*columns.values()])).all(axis=0)
        if not counted.all():
            _log.warning(
                "the %s of %d of %d images is not a number; no method's mean has them in it",
                name, (~counted).sum(), len(counted),
            )  # fmt: skip
        if not counted.any():
            continue
        for method, column in columns.items():
            values = column[counted]
            pooled = capped = None
            if name == "psnr":
                pooled = -10 * math.log10(np.mean(10 ** (-values / 10)))
                capped = int((values >= MAX_PSNR).sum())
            mean, std = float(values.mean()), float(values.std())
            summaries[method][name] = Summary(mean, std, len(values), pooled, capped)
    return summaries
