"""Classification accuracy with its interval, by class, and the confusion matrix."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae_core.errors import ConfigError

__all__ = ["Scores", "bootstrap_interval", "figures_of", "pooled", "score", "wilson_interval"]

# Standard deviations on either side of the mean that hold 95 % of a normal distribution.
_Z = 1.959963984540054


@dataclass(frozen=True)
class Scores:
    """Of one classifier on n images; shares are 0..1.

    Attributes:
        accuracy: Share of images that are classified correctly.
        interval: Wilson's 95 % interval of the accuracy (Wilson 1927): what other images of the
            same kind would give. It knows nothing of other random seeds.
        per_class: (C,) accuracy of each class; NaN of a class without images.
        confusion: (C, C) images by their class (row) and the predicted one (column).
        deviation: Standard deviation of the accuracy over seeds; NaN of one.
    """

    accuracy: float
    interval: tuple[float, float]
    per_class: tuple[float, ...]
    confusion: tuple[tuple[int, ...], ...]
    deviation: float = math.nan


def score(predicted: Tensor, labels: Tensor, num_classes: int) -> Scores:
    """Compare (n,) predicted numbers of classes with the (n,) true ones."""
    if predicted.shape != labels.shape or labels.ndim != 1 or not len(labels):
        raise ConfigError(
            f"predictions of shape {tuple(predicted.shape)} and labels of {tuple(labels.shape)}; "
            "give one of each for at least one image"
        )
    pairs = labels.cpu().long() * num_classes + predicted.cpu().long()
    confusion = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)
    right = int(confusion.diagonal().sum())
    return Scores(
        accuracy=right / len(labels),
        interval=wilson_interval(right, len(labels)),
        per_class=tuple((confusion.diagonal() / confusion.sum(dim=1)).tolist()),
        confusion=tuple(map(tuple, confusion.tolist())),
    )


def wilson_interval(right: float, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share, of `right` in `n` trials (Wilson 1927)."""
    share, square = right / n, _Z**2
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = _Z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def bootstrap_interval(
    figure: Callable[[NDArray[np.int64]], float], n: int, resamples: int, seed: int
) -> list[float] | None:
    """The 95 % percentile interval of a figure of n images (Efron 1979).

    Args:
        figure: Of the images with these n numbers, some of them several times.
        n: Images.
        resamples: How often n of them are drawn; 0 for no interval.
        seed: Of the draws.
    """
    if not resamples:
        return None
    rng = np.random.default_rng(seed)
    values = [figure(rng.integers(0, n, n)) for _ in range(resamples)]
    # Of small sets, a draw may have nothing that can be measured.
    return [float(value) for value in np.nanquantile(values, (0.025, 0.975))]


def pooled(scores: Sequence[Scores]) -> Scores:
    """Those of several seeds on the same images: the mean accuracy, and how it varies.

    The interval is over images, as if the mean had been measured once; `per_class` and `confusion`
    are of all seeds together.
    """
    confusion = torch.tensor([one.confusion for one in scores]).sum(dim=0)
    n, total = int(confusion.sum()) // len(scores), float(confusion.diagonal().sum())
    mean = total / (n * len(scores))
    return Scores(
        accuracy=mean, interval=wilson_interval(mean * n, n),
        per_class=tuple((confusion.diagonal() / confusion.sum(dim=1)).tolist()),
        confusion=tuple(map(tuple, confusion.tolist())),
        deviation=statistics.stdev(s.accuracy for s in scores) if len(scores) > 1 else math.nan,
    )  # fmt: skip


def figures_of(scores: Sequence[Scores], classes: Sequence[str]) -> dict[str, Any]:
    """Scores of several seeds as plain data for a report; None is what is not a number."""
    whole = pooled(scores)
    return {
        "accuracy": whole.accuracy, "interval": list(whole.interval),
        "seeds": [one.accuracy for one in scores],
        "deviation": None if math.isnan(whole.deviation) else whole.deviation,
        "per_class": {
            name: None if math.isnan(share) else share
            for name, share in zip(classes, whole.per_class, strict=True)
        },
        "confusion": [list(row) for row in whole.confusion],
    }  # fmt: skip
