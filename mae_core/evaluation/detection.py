"""Detection: COCO's average precision of boxes and masks, with an interval over images.

figures = measure_detection(model, images)
report = detection_report([figures], images.classes)

A picture is resized so that its longer side is the model's size; what is found is brought back to
its own size. The precision is pycocotools': the mean over ten thresholds of the intersection over
union, 0.5 to 0.95, of at most 100 objects a picture.
"""

import contextlib
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

from mae_core.data.dense import DetectionImages, Objects
from mae_core.devices import without_tf32
from mae_core.evaluation.drawing import as_rgb, in_rows, with_boxes, with_masks
from mae_core.evaluation.scores import bootstrap_interval
from mae_core.images import DecodedImage, resized, size_of
from mae_core.model.dense import Detector

__all__ = ["DetectionFigures", "Found", "Precision", "detection_report", "measure_detection"]

# Pictures that are drawn, and the lowest score of what is drawn.
_DRAWN, _SHOWN_SCORE = 6, 0.5


class Found(NamedTuple):
    """What a detector finds in a picture of (H, W) pixels.

    Attributes:
        boxes: (n, 4) float: left, top, right, bottom in pixels.
        labels: (n,) numbers of classes, from 0.
        scores: (n,) 0..1.
        masks: (n, H, W) booleans.
    """

    boxes: NDArray[np.floating]
    labels: NDArray[np.integer]
    scores: NDArray[np.floating]
    masks: NDArray[np.bool_]


@dataclass
class Precision:
    """Collects what is there and what was found, picture by picture."""

    num_classes: int
    images: list[dict[str, int]] = field(default_factory=list)
    truth: list[dict[str, Any]] = field(default_factory=list)
    found: list[dict[str, Any]] = field(default_factory=list)

    def add(self, objects: Objects, found: Found) -> None:
        """The next picture."""
        height, width = objects.masks.shape[1:]
        for boxes, masks, labels, extra, records in (
            (objects.boxes, objects.masks, objects.labels, ("iscrowd", objects.crowd), self.truth),
            (found.boxes, found.masks, found.labels, ("score", found.scores), self.found),
        ):
            name, values = extra
            for box, mask, label, value in zip(boxes, masks, labels, values, strict=True):
                left, top, right, bottom = (float(edge) for edge in box)
                records.append({
                    # From 1: to pycocotools, number 0 is that of no object.
                    "id": len(records) + 1, "image_id": len(self.images), "category_id": int(label),
                    "bbox": [left, top, right - left, bottom - top], "area": int(mask.sum()),
                    "segmentation": _encoded(mask), "iscrowd": 0, name: value.item(),
                })  # fmt: skip
        self.images.append({"id": len(self.images), "height": height, "width": width})

    def evaluated(self, kind: str) -> "Evaluated":
        """Compare by boxes (`bbox`) or masks (`segm`)."""
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        numbers = {
            "images": self.images,
            "categories": [{"id": i} for i in range(self.num_classes)],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            sets = []
            for records in (self.truth, self.found):
                coco = COCO()
                coco.dataset = {**numbers, "annotations": [dict(one) for one in records]}
                coco.createIndex()
                sets.append(coco)
            evaluation = COCOeval(*sets, iouType=kind)
            # Objects of all sizes alone, and the usual number of them: a tenth of the time.
            evaluation.params.areaRng = evaluation.params.areaRng[:1]
            evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
            evaluation.params.maxDets = evaluation.params.maxDets[-1:]
            evaluation.evaluate()
        return Evaluated(evaluation, list(evaluation.evalImgs), len(self.images))


def _encoded(mask: NDArray[np.bool_]) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    runs: dict[str, Any] = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return runs


@dataclass(frozen=True)
class Evaluated:
    """Matches of pycocotools, image by image; figures of any choice of images."""

    evaluation: Any
    matches: list[Any]
    images: int

    def precisions(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """(T, K) average precision by threshold and class; NaN of a class without an object.

        `rows` are as many numbers of images as there are, some several times; each once if not
        given.
        """
        by_class = [
            self.matches[i : i + self.images] for i in range(0, len(self.matches), self.images)
        ]
        chosen = range(self.images) if rows is None else rows.tolist()
        self.evaluation.evalImgs = [of[i] for of in by_class for i in chosen]
        with contextlib.redirect_stdout(io.StringIO()):
            self.evaluation.accumulate()
        found: NDArray[np.float64] = self.evaluation.eval["precision"][:, :, :, 0, 0]  # (T, R, K)
        return np.where(found[:, 0] < 0, math.nan, found.mean(axis=1))


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


@dataclass(frozen=True)
class DetectionFigures:
    """What was measured of one model.

    Attributes:
        box: Of boxes.
        mask: Of masks.
        drawing: A few pictures: picture, truth, what was found; RGB.
    """

    box: Evaluated
    mask: Evaluated
    drawing: Image.Image

    def summary(self) -> dict[str, float]:
        """`box_ap`, `box_ap50` and `box_ap75`, and the same of masks, 0..1."""
        figures = dict[str, float]()
        for kind, evaluated in (("box", self.box), ("mask", self.mask)):
            found = evaluated.precisions()
            parts = (("ap", found), ("ap50", found[0]), ("ap75", found[5]))
            figures |= {f"{kind}_{name}": _mean(part) for name, part in parts}
        return figures


@without_tf32()
@torch.inference_mode()
def measure_detection(model: Detector, images: DetectionImages) -> DetectionFigures:
    """Detect in whole pictures in float32, on the model's device.

    Raises:
        DataError: If a picture cannot be used.
    """
    precision, rows = Precision(len(images.classes)), list[list[Image.Image]]()
    drawn = set(np.linspace(0, len(images) - 1, min(_DRAWN, len(images))).astype(int).tolist())
    for i in tqdm(range(len(images)), desc="detecting", unit="img", leave=False):
        image, objects = images.read(i)
        found = find_objects(model, image)
        precision.add(objects, found)
        if i in drawn:
            sure = found.scores >= _SHOWN_SCORE
            picture, names = as_rgb(image), images.classes
            truth = _drawn(picture, objects.boxes, objects.labels, objects.masks, names)
            guess = _drawn(
                picture, found.boxes[sure], found.labels[sure], found.masks[sure], names
            )  # fmt: skip
            rows.append([picture, truth, guess])
    return DetectionFigures(precision.evaluated("bbox"), precision.evaluated("segm"), in_rows(rows))


def find_objects(model: Detector, image: DecodedImage) -> Found:
    """What a detector finds in a picture of any size."""
    width, height = size_of(image)
    scale = model.image_size / max(width, height)
    small = resized(image, (max(round(width * scale), 1), max(round(height * scale), 1)))
    pixels = torch.from_numpy(np.atleast_3d(np.array(small))).permute(2, 0, 1).float() / 255
    (found,) = model([pixels.to(model.encoder.pos_embed.device)])
    ratio = np.array([width / pixels.shape[2], height / pixels.shape[1]] * 2)
    # Masks are shares of 0..1 before they are cut at a half.
    shares = found["masks"].split(16)
    masks = [
        F.interpolate(part, (height, width), mode="bilinear", align_corners=False)[:, 0] > 0.5
        for part in shares
        if len(part)
    ]
    return Found(
        found["boxes"].cpu().numpy() * ratio, found["labels"].cpu().numpy() - 1,
        found["scores"].cpu().numpy(),
        torch.cat(masks).cpu().numpy() if masks else np.zeros((0, height, width), dtype=bool),
    )  # fmt: skip


def _drawn(
    image: Image.Image, boxes: NDArray[np.floating], labels: NDArray[np.integer],
    masks: NDArray[np.bool_], classes: Sequence[str],
) -> Image.Image:  # fmt: skip
    nothing = np.zeros(masks.shape[1:], dtype=bool)
    of_class = [
        np.logical_or.reduce(masks[labels == label], axis=0, initial=False) | nothing
        for label in range(len(classes))
    ]
    return with_boxes(with_masks(image, [nothing, *of_class]), boxes, labels, classes)


def detection_report(
    figures: Sequence[DetectionFigures], classes: Sequence[str], *, resamples: int = 100,
    seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """The figures of several seeds as plain data.

    `box_ap`, `mask_ap` and those at thresholds of 0.5 and 0.75 are means over the seeds. Of boxes,
    `seeds` has the value of each seed, `deviation` their standard deviation, `interval` the 95 %
    interval of their mean over images (bootstrap), `per_class` the mean of each class; of masks
    these are `mask_seeds` and so on. None is what is not known.
    """
    summaries = [one.summary() for one in figures]
    report: dict[str, Any] = {
        name: statistics.fmean(one[name] for one in summaries) for name in summaries[0]
    }
    for kind, prefix in (("box", ""), ("mask", "mask_")):
        parts: list[Evaluated] = [getattr(one, kind) for one in figures]

        def mean(rows: NDArray[np.int64], parts: Sequence[Evaluated] = parts) -> float:
            return statistics.fmean(_mean(one.precisions(rows)) for one in parts)

        seeds = [one[f"{kind}_ap"] for one in summaries]
        by_class = np.stack([one.precisions().mean(axis=0) for one in parts]).mean(axis=0)
        report |= {
            f"{prefix}seeds": seeds,
            f"{prefix}deviation": statistics.stdev(seeds) if len(seeds) > 1 else None,
            f"{prefix}interval": bootstrap_interval(mean, parts[0].images, resamples, seed),
            f"{prefix}per_class": {
                name: None if math.isnan(value) else value
                for name, value in zip(classes, by_class.tolist(), strict=True)
            },
        }
    return report
