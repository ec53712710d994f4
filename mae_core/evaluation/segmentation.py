"""Semantic segmentation: intersection over union of each class, with an interval over images.

figures = measure_segmentation(model, images)
report = segmentation_report([figures], images.classes)

A picture is resized so that its shorter side is the model's size; square windows, which overlap by
a third, cover the longer one, and their logits are averaged. They are resized to the picture's own
size, where pixels are compared.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from mae_core.data.dense import IGNORED, SegmentationImages
from mae_core.devices import without_tf32
from mae_core.errors import DataError
from mae_core.evaluation.drawing import as_rgb, in_rows, with_masks
from mae_core.evaluation.scores import bootstrap_interval
from mae_core.images import DecodedImage, resized, size_of, to_tensor
from mae_core.model.dense import Segmenter

__all__ = [
    "SegmentationFigures", "count_pixels", "mean_iou", "measure_segmentation",
    "segmentation_report",
]  # fmt: skip

# Windows that go through the model together, and classes that are resized together.
_BATCH, _CLASSES = 16, 16

# From one window to the next, over its side.
_STRIDE = 2 / 3

# Pictures that are drawn.
_DRAWN = 6


@dataclass(frozen=True)
class SegmentationFigures:
    """What was measured of one model.

    Attributes:
        counts: (N, 3, K) labelled pixels of each image and class: right ones, those predicted to be
            of the class, and those that are.
        drawing: A few pictures: picture, truth, prediction; RGB.
    """

    counts: NDArray[np.int64]
    drawing: Image.Image

    def summary(self) -> dict[str, float]:
        """The main figures, 0..1."""
        right, _, true = self.counts.sum(axis=0)
        return {
            "miou": mean_iou(self.counts.sum(axis=0)),
            "pixel_accuracy": float(right.sum() / max(true.sum(), 1)),
        }


def count_pixels(
    predicted: NDArray[Any], labels: NDArray[Any], num_classes: int
) -> NDArray[np.int64]:
    """(3, K) labelled pixels by class: right, predicted, true; `IGNORED` labels do not count."""
    known = labels != IGNORED
    true, guess = labels[known], predicted[known]
    return np.stack(
        [np.bincount(one, minlength=num_classes) for one in (true[true == guess], guess, true)]
    )


def iou_of_classes(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K,) intersection over union of (3, K) counts; NaN of a class without a true pixel."""
    right, predicted, true = counts
    union = np.where(true > 0, predicted + true - right, 1)
    return np.where(true > 0, right / union, math.nan)


def mean_iou(counts: NDArray[np.int64]) -> float:
    """Mean intersection over union of the classes that have a true pixel; NaN without any."""
    known = iou_of_classes(counts)[counts[2] > 0]
    return float(known.mean()) if len(known) else math.nan


@without_tf32()
@torch.inference_mode()
def measure_segmentation(model: Segmenter, images: SegmentationImages) -> SegmentationFigures:
    """Segment whole pictures in float32, on the model's device.

    Raises:
        DataError: If a picture or its annotation cannot be used, or no pixel has a class.
    """
    counts, rows = list[NDArray[np.int64]](), list[list[Image.Image]]()
    drawn = set(np.linspace(0, len(images) - 1, min(_DRAWN, len(images))).astype(int).tolist())
    for i in tqdm(range(len(images)), desc="segmenting", unit="img", leave=False):
        image, labels = images.read(i)
        predicted = segment_image(model, image)
        counts.append(count_pixels(predicted, labels, len(images.classes)))
        if i in drawn:
            of_classes = [
                [one == label for label in range(len(images.classes))]
                for one in (labels, predicted)
            ]
            picture = as_rgb(image)
            rows.append([picture, *(with_masks(picture, masks) for masks in of_classes)])
    if not any(one.any() for one in counts):
        raise DataError("no pixel of the pictures to measure on has a class; check annotations")
    return SegmentationFigures(np.stack(counts), in_rows(rows))


def segment_image(model: Segmenter, image: DecodedImage) -> NDArray[np.int64]:
    """(H, W) numbers of classes of a picture of any size."""
    side, config = model.image_size, model.config
    width, height = size_of(image)
    scale = side / min(width, height)
    small = resized(image, (max(round(width * scale), side), max(round(height * scale), side)))
    device = model.encoder.pos_embed.device
    pixels = to_tensor(small, config.mean, config.std)[0].to(device)
    places = [
        (top, left)
        for top in _starts(pixels.shape[1], side)
        for left in _starts(pixels.shape[2], side)
    ]
    total, times = torch.zeros(()), pixels.new_zeros(pixels.shape[1:])
    for start in range(0, len(places), _BATCH):
        part = places[start : start + _BATCH]
        windows = torch.stack([pixels[:, t : t + side, x : x + side] for t, x in part])
        logits = model(windows)
        if not total.ndim:
            total = logits.new_zeros(logits.shape[1], *times.shape)
        for (top, left), one in zip(part, logits, strict=True):
            total[:, top : top + side, left : left + side] += one
            times[top : top + side, left : left + side] += 1
    return _largest(total / times, (height, width)).cpu().numpy()


def _starts(length: int, side: int) -> list[int]:
    """Where windows begin that cover a length."""
    return [*range(0, length - side, max(int(side * _STRIDE), 1)), length - side]


def _largest(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) number of the largest of (K, h, w) logits, resized; a few classes at a time."""
    best = logits.new_full(size, -math.inf)
    found = torch.zeros(size, dtype=torch.int64, device=logits.device)
    for number, part in enumerate(logits.split(_CLASSES)):
        resized_part = F.interpolate(part[None], size, mode="bilinear", align_corners=False)[0]
        values, places = resized_part.max(dim=0)
        found = torch.where(values > best, places + number * _CLASSES, found)
        best = torch.maximum(values, best)
    return found


def segmentation_report(
    figures: Sequence[SegmentationFigures], classes: Sequence[str], *, resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """The figures of several seeds as plain data.

    `miou` is the mean over the seeds, `interval` its 95 % interval over images (bootstrap), `seeds`
    the value of each seed, `deviation` their standard deviation. None is what is not known.
    """
    counts = np.stack([one.counts for one in figures])  # (seeds, N, 3, K)
    values = [one.summary() for one in figures]
    mious = [one["miou"] for one in values]

    def miou(rows: NDArray[np.int64]) -> float:
        return statistics.fmean(mean_iou(one[rows].sum(axis=0)) for one in counts)

    by_class = np.stack([iou_of_classes(one.sum(axis=0)) for one in counts]).mean(axis=0)
    return {
        "miou": statistics.fmean(mious), "seeds": mious,
        "interval": bootstrap_interval(miou, counts.shape[1], resamples, seed),
        "deviation": statistics.stdev(mious) if len(mious) > 1 else None,
        "pixel_accuracy": statistics.fmean(one["pixel_accuracy"] for one in values),
        "per_class": {
            name: None if math.isnan(value) else value
            for name, value in zip(classes, by_class.tolist(), strict=True)
        },
    }  # fmt: skip
