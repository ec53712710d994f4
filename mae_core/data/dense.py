"""Pictures whose pixels have classes, or whose objects have boxes and masks; samples of them.

train, val = open_segmentation("ADEChallengeData2016")  # or VOC2012
train, val = open_detection("coco")

A sample is a random scale, crop and flip of one picture. As in `loader`, sample k of a run is
picture k of an endless sequence of shuffled epochs, and its chance a generator seeded with
(seed, k): batches are a function of (seed, step).
"""

import hashlib
import json
import math
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, NamedTuple, NotRequired, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, TypeAdapter, ValidationError

# typing's are not what pydantic takes on Python 3.11.
from typing_extensions import TypedDict

from mae_core.config import ModelConfig
from mae_core.data.datasets import find_images, shown
from mae_core.errors import ConfigError, DataError, ImageError
from mae_core.images import DecodedImage, open_image, resized, size_of
from mae_core.measurements import orientation_of, upright
from mae_core.photographs import ImageLimits, open_file, parser_errors

__all__ = [
    "IGNORED", "DetectionImages", "Objects", "Placement", "SegmentationImages", "batches",
    "open_detection", "open_segmentation",
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
    """A picture as it is stored: annotations are of that, whatever EXIF says of turning it."""
    try:
        image = open_image(
            path, model.in_chans, bands=model.bands, value_range=model.value_range or "auto",
            limits=_LIMITS,
        )  # fmt: skip
        if not isinstance(image, Image.Image):
            return image
        orientation = orientation_of(open_file(path, _LIMITS).info.get("exif"))
    except ImageError as error:
        raise DataError(f"{shown(path)}: {error}") from error
    if orientation == 1:
        return image
    back = {6: 8, 8: 6}.get(orientation, orientation)  # the others undo themselves
    return Image.fromarray(np.ascontiguousarray(upright(np.asarray(image), back)))


def _listing(lines: Iterable[tuple[str, Path]]) -> str:
    """Digest of names and sizes of files."""
    digest = hashlib.sha256()
    for name, path in lines:
        size = path.stat().st_size if path.is_file() else 0
        digest.update(f"{name}\0{size}\n".encode(errors="replace"))
    return digest.hexdigest()


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

    @property
    def listing(self) -> str:
        """Digest of names and sizes of pictures and annotations, wherever they lie."""
        return _listing((path.name, path) for pair in self.files for path in pair)

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
        annotations = [annotation for _, annotation in files]
        if len({*annotations}) < len(annotations):
            twice = next(path for path in annotations if annotations.count(path) > 1)
            raise DataError(f"two pictures have the annotation {shown(twice)}; rename one of them")
        lost = [path for pair in files for path in pair if not path.is_file()]
        if lost or not files:
            what = f"{shown(lost[0])} is missing" if lost else f"there is nothing to {part}"
            more = f" (of {len(lost)} files)" if len(lost) > 1 else ""
            raise DataError(f"{what}{more}; each picture needs an annotation, a PNG of its name")
    train, val = (SegmentationImages(files, classes, first) for files in parts)
    return train, val


def _class_names(folder: Path) -> tuple[str, ...]:
    path = folder / "classes.txt"
    if not path.is_file():
        return ()
    names = [line.strip() for line in _text(path).rstrip().splitlines()]
    if "" in names or len({*names}) < len(names):
        raise DataError(f"{shown(path)} has an empty line or a name twice; give one name a line")
    return tuple(names)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"{shown(path)} cannot be read ({error})") from error


def _ade_files(folder: Path, part: str) -> list[tuple[Path, Path]]:
    root, annotations = folder / "images" / part, folder / "annotations" / part
    depth = len(root.parts)
    return [
        (path, annotations.joinpath(*path.parts[depth:]).with_suffix(".png"))
        for path in find_images(root)
    ]


def _voc_files(folder: Path, part: str) -> list[tuple[Path, Path]]:
    names = _text(folder / "ImageSets" / "Segmentation" / f"{part}.txt").split()
    if wrong := [name for name in names if Path(name).name != name]:
        raise DataError(f"{part}.txt names {shown(wrong[0])}; give names without a folder")
    pictures, labels = folder / "JPEGImages", folder / "SegmentationClass"
    return [(pictures / f"{name}.jpg", labels / f"{name}.png") for name in names]


# --- detection

# Bytes of a file of annotations; that of COCO's training pictures has half of it.
_MAX_JSON_BYTES = 2**30

# Of a box; larger numbers of pixels than a picture can have would overflow.
Number: TypeAlias = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Length: TypeAlias = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
# Of a polygon, which is brought into its picture.
Point: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]


class _Runs(TypedDict):
    """Run lengths of a mask, column by column, zeros first."""

    size: tuple[int, int]
    counts: list[Annotated[int, Field(ge=0)]]


class _Annotation(TypedDict):
    image_id: int
    category_id: int
    bbox: tuple[Number, Number, Length, Length]
    segmentation: _Runs | list[list[Point]]
    iscrowd: NotRequired[int]


class _Picture(TypedDict):
    id: int
    file_name: str
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]


class _Category(TypedDict):
    id: int
    name: str


class _Coco(TypedDict):
    images: list[_Picture]
    annotations: list[_Annotation]
    categories: list[_Category]


class Objects(NamedTuple):
    """The n objects of a picture of (H, W) pixels.

    Attributes:
        boxes: (n, 4) float32: left, top, right, bottom in pixels.
        labels: (n,) int64 numbers of their classes, from 0.
        masks: (n, H, W) booleans.
        crowd: (n,) whether it is a group, which is not learned from.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]
    crowd: NDArray[np.bool_]


@dataclass(frozen=True)
class DetectionImages:
    """Pictures and the objects in them.

    Attributes:
        files: The pictures.
        sizes: (width, height) of each, as the annotations have it.
        annotations: Of each, as COCO has them.
        categories: COCO's numbers of the classes, in their order.
        classes: Their names.
        model: Whose channels, bands and mean colour pictures are read with.
        side: Of a sample in pixels.
        scale: Smallest and largest scale of a sample; at 1 the longer side of the picture is
            `side`.
        flip: Whether half of the samples are mirrored.
    """

    files: Sequence[Path]
    sizes: Sequence[tuple[int, int]]
    annotations: Sequence[Sequence[_Annotation]]
    categories: tuple[int, ...]
    classes: tuple[str, ...]
    model: ModelConfig = _PHOTOGRAPHS
    side: int = 224
    scale: tuple[float, float] = (0.1, 2.0)
    flip: bool = True

    def __len__(self) -> int:
        return len(self.files)

    @property
    def listing(self) -> str:
        """Digest of the annotations, and of names and sizes of the pictures."""
        text = json.dumps(self.annotations)
        return _listing([*((path.name, path) for path in self.files), (text, Path())])

    def read(self, index: int) -> tuple[DecodedImage, Objects]:
        """A picture and its objects.

        Raises:
            DataError: If it cannot be read, or has another size than its annotations say.
        """
        image, size = _opened(self.files[index], self.model), self.sizes[index]
        if size_of(image) != size:
            raise DataError(
                f"{shown(self.files[index])} has {size_of(image)} pixels, and its annotations are "
                f"of {size} (width, height); give them the same size"
            )
        of = self.annotations[index]
        corners = np.array([one["bbox"] for one in of], dtype=np.float32).reshape(-1, 4)
        masks = [_mask(one["segmentation"], size) for one in of]
        return image, Objects(
            np.concatenate((corners[:, :2], corners[:, :2] + corners[:, 2:]), axis=1),
            np.array([self.categories.index(one["category_id"]) for one in of], dtype=np.int64),
            np.stack(masks) if masks else np.zeros((0, *size[::-1]), dtype=bool),
            np.array([bool(one.get("iscrowd", 0)) for one in of], dtype=bool),
        )

    def sample(self, index: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], Objects]:
        """(side, side, C) pixels of a random part of a picture, and what is seen of its objects.

        Boxes are those of the masks; groups are left out.
        """
        image, objects = self.read(index)
        size = size_of(image)
        base = self.side / max(size)
        place = draw_placement(size, base, self.side, self.scale, self.flip, rng)
        masks, boxes, labels = list[NDArray[np.bool_]](), list[tuple[int, ...]](), list[int]()
        for mask, label, crowd in zip(objects.masks, objects.labels, objects.crowd, strict=True):
            seen = place.labels(mask.astype(np.uint8), 0).astype(bool)
            if not crowd and seen.any():
                rows, columns = (np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0))
                boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
                masks.append(seen)
                labels.append(int(label))
        return place.image(image, self.model.mean), Objects(
            np.array(boxes, dtype=np.float32).reshape(-1, 4),
            np.array(labels, dtype=np.int64),
            np.stack(masks) if masks else np.zeros((0, self.side, self.side), dtype=bool),
            np.zeros(len(labels), dtype=bool),
        )


def _mask(segmentation: _Runs | list[list[float]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) booleans of polygons or run lengths."""
    width, height = size
    if isinstance(segmentation, dict):
        runs = segmentation["counts"]
        values = np.arange(len(runs)) % 2 == 1
        mask: NDArray[np.bool_] = np.repeat(values, runs).reshape(width, height).T
        return mask
    from pycocotools import mask as coco_mask

    # COCO's own drawing of polygons, of which ours would differ at the edges.
    polygons = [
        np.clip(np.array(one).reshape(-1, 2), 0, (width, height)).flatten().tolist()
        for one in segmentation
    ]
    drawn = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return np.asarray(coco_mask.decode(drawn)).astype(bool)


def open_detection(data: str | Path) -> tuple[DetectionImages, DetectionImages]:
    """Open both parts of a data set with boxes and masks of objects.

    Args:
        data: A folder as of COCO, `annotations/instances_{train,val}2017.json` with `train2017/`
            and `val2017/`, or `{train,val}.json` with `train/` and `val/`. Masks are polygons or
            lists of run lengths.

    Returns:
        What to learn from, and what to measure on.

    Raises:
        DataError: If it is neither, or a file cannot be read or is not as COCO has it.
    """
    require_pycocotools()
    folder = Path(data).expanduser()
    forms = {
        part: (
            (folder / f"annotations/instances_{part}2017.json", folder / f"{part}2017"),
            (folder / f"{part}.json", folder / part),
        )
        for part in ("train", "val")
    }
    opened = []
    for part, places in forms.items():
        found = [(file, pictures) for file, pictures in places if file.is_file()]
        if not found or not found[0][1].is_dir():
            raise DataError(
                f"{str(data)!r} has no {part}.json with {part}/, nor annotations/instances_"
                f"{part}2017.json with {part}2017/; give a folder as COCO has it"
            )
        opened.append(_open_coco(*found[0]))
    train, val = opened
    if (train.categories, train.classes) != (val.categories, val.classes):
        raise DataError(f"{str(data)!r} has other categories to learn from than to measure on")
    # As is usual: a picture without an object teaches nothing. Groups are neither learned from nor
    # measured.
    rows, measured = (
        [
            i
            for i, annotations in enumerate(part.annotations)
            if any(not one.get("iscrowd", 0) for one in annotations)
        ]
        for part in (train, val)
    )
    if not rows or not measured:
        raise DataError(f"{str(data)!r} has no object to learn from, or none to measure on")
    train = replace(
        train, files=[train.files[i] for i in rows], sizes=[train.sizes[i] for i in rows],
        annotations=[train.annotations[i] for i in rows],
    )  # fmt: skip
    return train, val


def require_pycocotools() -> None:
    """Refuse detection without COCO's package (ConfigError)."""
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "detection needs a package that is not installed: pip install -r requirements-dense.txt"
        ) from error


def _open_coco(file: Path, pictures: Path) -> DetectionImages:
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise DataError(f"{shown(file)} has more than {_MAX_JSON_BYTES / 2**30:g} GiB")
        values = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{shown(file)} cannot be read ({error})") from error
    try:
        coco = TypeAdapter(_Coco).validate_python(values)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        place = ".".join(str(part)[:60] for part in wrong["loc"])
        raise DataError(
            f"{shown(file)} is not as COCO has it: {place or 'it'}: {wrong['msg']}"
        ) from error
    categories = sorted(coco["categories"], key=lambda one: one["id"])
    known, root = {one["id"] for one in categories}, pictures.resolve()
    by_picture: dict[int, list[_Annotation]] = {one["id"]: [] for one in coco["images"]}
    sizes = {one["id"]: (one["width"], one["height"]) for one in coco["images"]}
    names = {one["name"] for one in categories}
    if len(by_picture) < len(coco["images"]) or not known:
        raise DataError(f"{shown(file)} has an id of a picture twice, or no categories")
    if min(len(known), len(names)) < len(categories):
        raise DataError(f"{shown(file)} has two categories of one id or name")
    for number, one in enumerate(coco["annotations"]):
        if one["image_id"] not in by_picture or one["category_id"] not in known:
            raise DataError(f"{shown(file)}: annotation {number} is of no known image or category")
        if trouble := _trouble_of(one["segmentation"], sizes[one["image_id"]]):
            raise DataError(f"{shown(file)}: the mask of annotation {number} {trouble}")
        by_picture[one["image_id"]].append(one)
    files = [_inside(root, one["file_name"], file) for one in coco["images"]]
    return DetectionImages(
        files, list(sizes.values()), list(by_picture.values()),
        tuple(one["id"] for one in categories), tuple(one["name"] for one in categories),
    )  # fmt: skip


def _inside(root: Path, name: str, file: Path) -> Path:
    """The path of a picture that a file names; it may not lead elsewhere."""
    path = root / name
    try:
        is_inside = path.resolve().is_relative_to(root)
    except (OSError, ValueError):  # a name that no file has
        is_inside = False
    if not is_inside:
        raise DataError(f"{shown(file)} names {name!r:.80}, which is not in its folder")
    return path


def _trouble_of(segmentation: _Runs | list[list[float]], size: tuple[int, int]) -> str:
    """What is wrong with a mask; empty if nothing is."""
    if not isinstance(segmentation, dict):
        fits = segmentation and all(len(one) >= 6 and len(one) % 2 == 0 for one in segmentation)
        return "" if fits else "is no polygon; give three or more points, x and y of each"
    if segmentation["size"] != size[::-1] or sum(segmentation["counts"]) != math.prod(size):
        return f"does not have the {math.prod(size)} pixels of its picture"
    return ""
