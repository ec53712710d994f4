"""Pictures whose pixels have classes, or whose objects have boxes and masks; samples of them.

train, val = open_segmentation("ADEChallengeData2016")  # or VOC2012
train, val = open_detection("coco")

A sample is a random scale, crop and flip of one picture. As in `loader`, sample k of a run is
picture k of an endless sequence of shuffled epochs, and its chance a generator seeded with
(seed, k): batches are a function of (seed, step).
"""

import math
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae_core.config import ModelConfig
from mae_core.data.datasets import find_images, shown
from mae_core.errors import DataError, ImageError
from mae_core.images import DecodedImage, open_image, resized, size_of
from mae_core.photographs import ImageLimits, open_file, parser_errors

__all__ = [
    "IGNORED", "Placement", "SegmentationImages", "batches", "open_segmentation",
]  # fmt: skip

# Label of a pixel that is neither learned from nor measured.
IGNORED = 255

# As in `loader`: seed words of order and crops.
_ORDER, _CROP = 0, 1

# Batches prepared ahead of the step that uses them.
_AHEAD = 2

# Pictures come back in their own size, as annotations are of that.
_LIMITS = ImageLimits(keep_pixels=ImageLimits.max_pixels)

_VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip

_PHOTOGRAPHS = ModelConfig()

# Classes of ADE20K's benchmark.
_ADE = 150

Sample = TypeVar("Sample", covariant=True)
Item = TypeVar("Item")


# --- where a sample lies in its picture


class Placement(NamedTuple):
    """A picture scaled to `size` (width, height), and the square of `side` pixels cut out of it.

    `left` and `top` are of the square; outside the picture it is filled.
    """

    size: tuple[int, int]
    left: int
    top: int
    side: int
    flip: bool

    def image(self, image: DecodedImage, fill: Sequence[float]) -> NDArray[np.uint8]:
        """(side, side, C) pixels; `fill` is the colour outside, in 0..1."""
        pixels = np.atleast_3d(np.asarray(resized(image, self.size)))
        colour = np.round(np.array(fill) * 255).astype(np.uint8)
        return self._cut(pixels, np.broadcast_to(colour, (self.side, self.side, len(colour))))

    def labels(self, labels: NDArray[np.uint8], fill: int) -> NDArray[np.uint8]:
        """(side, side) labels or masks of the (H, W) ones, by the nearest pixel."""
        scaled = Image.fromarray(labels).resize(self.size, Image.Resampling.NEAREST)
        return self._cut(np.asarray(scaled), np.full((self.side, self.side), fill, np.uint8))

    def _cut(self, pixels: NDArray[np.uint8], square: NDArray[np.uint8]) -> NDArray[np.uint8]:
        part = pixels[self.top : self.top + self.side, self.left : self.left + self.side]
        filled = np.array(square)
        filled[: part.shape[0], : part.shape[1]] = part
        return np.ascontiguousarray(filled[:, ::-1]) if self.flip else filled


def draw_placement(
    size: tuple[int, int], base: float, side: int, scale: tuple[float, float], flip: bool,
    rng: np.random.Generator,
) -> Placement:  # fmt: skip
    """Draw the square of a sample.

    Args:
        size: (width, height) of the picture.
        base: What it is enlarged by at a scale of 1.
        side: Of the square.
        scale: Smallest and largest scale; they are drawn uniformly in their logarithm.
        flip: Whether half of the samples are mirrored.
        rng: Chance.
    """
    factor = base * math.exp(rng.uniform(math.log(scale[0]), math.log(scale[1])))
    width, height = (max(round(length * factor), 1) for length in size)
    left, top = (int(rng.integers(0, max(length - side, 0) + 1)) for length in (width, height))
    mirrored = flip and bool(rng.random() < 0.5)
    return Placement((width, height), left, top, side, mirrored)


class Dataset(Protocol[Sample]):
    """Numbered pictures that samples are made of."""

    def __len__(self) -> int:
        """How many there are."""

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """One sample of a picture."""


def batches(
    dataset: Dataset[Item], begin: int, end: int, *, batch_size: int, seed: int, rank: int,
    world_size: int, workers: int,
) -> Generator[list[Item], None, None]:  # fmt: skip
    """Rank `rank`'s samples of the steps `begin` up to `end`, made ahead by threads."""
    share = batch_size // world_size
    epochs: dict[int, NDArray[np.int64]] = {}

    def index(number: int) -> int:
        epoch, place = divmod(number, len(dataset))
        if epoch not in epochs:
            epochs.clear()
            rng = np.random.default_rng((seed, _ORDER, epoch))
            epochs[epoch] = rng.permutation(len(dataset))
        return int(epochs[epoch][place])

    def make(number: int, item: int) -> Item:
        return dataset.sample(item, np.random.default_rng((seed, _CROP, number)))

    with ThreadPoolExecutor(workers) as pool:
        waiting = deque[list[Future[Item]]]()
        steps = iter(range(begin, end))

        def submit(count: int) -> None:
            for step in islice(steps, count):
                first = step * batch_size + rank * share
                numbers = range(first, first + share)
                waiting.append([pool.submit(make, one, index(one)) for one in numbers])

        submit(_AHEAD)
        try:
            while waiting:
                samples = [future.result() for future in waiting.popleft()]
                submit(1)
                yield samples
        finally:
            for future in (future for batch in waiting for future in batch):
                future.cancel()


def _opened(path: Path, model: ModelConfig) -> DecodedImage:
    try:
        return open_image(
            path, model.in_chans, bands=model.bands, value_range=model.value_range or "auto",
            limits=_LIMITS,
        )  # fmt: skip
    except ImageError as error:
        raise DataError(f"{shown(path)}: {error}") from error


# --- segmentation


@dataclass(frozen=True)
class SegmentationImages:
    """Pictures and the classes of their pixels.

    Attributes:
        files: (picture, annotation) each.
        classes: Names by label.
        first: Value of the first class in an annotation: 1 where 0 is unlabelled, as in ADE20K.
        model: Whose channels, bands and mean colour pictures are read with.
        side: Of a sample in pixels.
        scale: Smallest and largest scale of a sample; at 1 the shorter side of the picture is
            `side`.
        flip: Whether half of the samples are mirrored.
    """

    files: Sequence[tuple[Path, Path]]
    classes: tuple[str, ...]
    first: int
    model: ModelConfig = _PHOTOGRAPHS
    side: int = 224
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> tuple[DecodedImage, NDArray[np.uint8]]:
        """A picture and its (H, W) labels, `IGNORED` where there is none.

        Raises:
            DataError: If a file cannot be read, or they do not fit each other or the classes.
        """
        picture, annotation = self.files[index]
        image, labels = _opened(picture, self.model), self._labels(annotation)
        if size_of(image) != labels.shape[::-1]:
            raise DataError(
                f"{shown(picture)} has {size_of(image)} pixels and its annotation "
                f"{labels.shape[::-1]} (width, height); give them the same size"
            )
        return image, labels

    def _labels(self, path: Path) -> NDArray[np.uint8]:
        try:
            image = open_file(path, _LIMITS)
            with parser_errors():
                image.load()
        except ImageError as error:
            raise DataError(f"{shown(path)}: {error}") from error
        if image.mode not in ("L", "P"):
            raise DataError(
                f"{shown(path)} has the pixel format {image.mode}; an annotation is a PNG of 8 "
                "bits in grey or with a palette, whose numbers are the classes"
            )
        values = np.asarray(image)
        labels = np.where(values < self.first, IGNORED, values - self.first).astype(np.uint8)
        labels[values == IGNORED] = IGNORED
        unknown = labels[(labels >= len(self.classes)) & (labels != IGNORED)]
        if len(unknown):
            last = self.first + len(self.classes) - 1
            raise DataError(
                f"{shown(path)} has the value {int(unknown[0]) + self.first}; the "
                f"{len(self.classes)} classes are {self.first} to {last}, and {IGNORED} is ignored"
            )
        return labels

    def sample(
        self, index: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """(side, side, C) pixels and (side, side) labels of a random part of a picture."""
        image, labels = self.read(index)
        size = size_of(image)
        base = self.side / min(size)
        place = draw_placement(size, base, self.side, self.scale, self.flip, rng)
        return place.image(image, self.model.mean), place.labels(labels, IGNORED)


def open_segmentation(data: str | Path) -> tuple[SegmentationImages, SegmentationImages]:
    """Open both parts of a data set with a class for each pixel.

    Args:
        data: A folder as of ADE20K's benchmark, `images/{training,validation}/` and
            `annotations/{training,validation}/*.png`, where 0 is unlabelled and 1 the first class;
            or as of Pascal VOC, `JPEGImages/`, `SegmentationClass/*.png` and
            `ImageSets/Segmentation/{train,val}.txt`, where 0 is the first class, the background.
            `classes.txt` names the classes, one a line; without it they are those of the two data
            sets. 255 is ignored in both.

    Returns:
        What to learn from, and what to measure on.

    Raises:
        DataError: If it is neither, a picture has no annotation, or a part is empty.
    """
    folder = Path(data).expanduser()
    if (folder / "images").is_dir() and (folder / "annotations").is_dir():
        classes = _class_names(folder) or tuple(f"class {i}" for i in range(1, _ADE + 1))
        parts = [_ade_files(folder, part) for part in ("training", "validation")]
        first = 1
    elif (folder / "JPEGImages").is_dir() and (folder / "SegmentationClass").is_dir():
        classes, first = _class_names(folder) or _VOC, 0
        parts = [_voc_files(folder, part) for part in ("train", "val")]
    else:
        raise DataError(
            f"{str(data)!r} is no folder of pictures with classes for their pixels; give one with "
            "images/ and annotations/ as ADE20K has it, or JPEGImages/ and SegmentationClass/ as "
            "Pascal VOC"
        )
    if not 2 <= len(classes) < IGNORED:
        raise DataError(f"{len(classes)} classes are named; give 2 to {IGNORED - 1}")
    for files, part in zip(parts, ("learn from", "measure on"), strict=True):
        lost = [picture for picture, annotation in files if not annotation.is_file()]
        if lost or not files:
            what = f"{shown(lost[0])} has no annotation" if lost else f"nothing to {part}"
            more = f" ({len(lost)} have none)" if len(lost) > 1 else ""
            raise DataError(f"{str(data)!r}: {what}{more}; each picture needs a PNG of its name")
    train, val = (SegmentationImages(files, classes, first) for files in parts)
    return train, val


def _class_names(folder: Path) -> tuple[str, ...]:
    path = folder / "classes.txt"
    if not path.is_file():
        return ()
    return tuple(line.strip() for line in _text(path).splitlines() if line.strip())


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{shown(path)} cannot be read ({error})") from error


def _ade_files(folder: Path, part: str) -> list[tuple[Path, Path]]:
    annotations = folder / "annotations" / part
    pictures = find_images(folder / "images" / part)
    return [(path, annotations / f"{path.stem}.png") for path in pictures]


def _voc_files(folder: Path, part: str) -> list[tuple[Path, Path]]:
    names = _text(folder / "ImageSets" / "Segmentation" / f"{part}.txt").split()
    if wrong := [name for name in names if Path(name).name != name]:
        raise DataError(f"{part}.txt names {shown(wrong[0])}; give names without a folder")
    pictures, labels = folder / "JPEGImages", folder / "SegmentationClass"
    return [(pictures / f"{name}.jpg", labels / f"{name}.png") for name in names]
