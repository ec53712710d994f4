"""Labelled images in two parts: one to learn from, one to measure on.

train, val = open_labelled("flowers")                 # flowers/{train,val}/CLASS/*
train, val = open_labelled("photos")                  # photos/CLASS/*: every fifth is `val`
train, val = open_labelled("hub:uoft-cs/cifar10")     # a data set of the Hugging Face hub
"""

import contextlib
import hashlib
import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mae_core.data.datasets import find_classes, find_images, shown
from mae_core.data.streams import DATASETS_VERSION, encoded_image
from mae_core.errors import DataError, ImageError

__all__ = ["LabelledImages", "Part", "open_labelled", "open_part"]

# What is measured on; what is learned from; a folder of classes as a whole.
Part = Literal["val", "train", "all"]

_log = logging.getLogger(__name__)

# Folders and splits to measure on, the first that is there; the hub's test splits often have no
# labels.
_MEASURED = ("val", "validation", "test")

# Folders that are no classes.
_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}

# Without such a folder, one image of so many of each class.
_ONE_IN = 5


@dataclass(frozen=True)
class LabelledImages:
    """Image files, each of one class.

    Attributes:
        files: Paths, or contents of files.
        names: Of the files, for people, in the same order.
        labels: (N,) numbers of the classes.
        classes: Their names.
        fingerprint: Changes when a file comes, goes or changes.
    """

    files: Sequence[Path | bytes]
    names: Sequence[str]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def listing(self) -> str:
        """Digest of the names, sizes and classes of the files, wherever they lie.

        Of a data set of the hub it is the `fingerprint`.
        """
        if not isinstance(self.files, list):
            return self.fingerprint
        digest = hashlib.sha256()
        for name, file, label in zip(self.names, self.files, self.labels, strict=True):
            size = file.stat().st_size if isinstance(file, Path) and file.is_file() else 0
            digest.update(_digest(f"{name}\0{size}\0{self.classes[label]}"))
        return digest.hexdigest()


def open_labelled(data: str | Path) -> tuple[LabelledImages, LabelledImages]:
    """Open both parts of a labelled data set.

    Args:
        data: A folder with a folder for each class, in `train` and in `val`, `validation` or
            `test`, or directly below it; then one image in five of each class is measured on,
            chosen by the names of the files. Or `hub:USER/NAME`, a data set of the Hugging Face
            hub with such splits, a column of images and one of classes; it is fetched as a whole.

    Returns:
        What to learn from and what to measure on, of the same classes.

    Raises:
        DataError: If there are fewer than two classes or a class is in one part only, or the data
            cannot be read.
    """
    if str(data).startswith("hub:"):
        train, val = _open_hub(str(data).removeprefix("hub:"))
    else:
        train, val = _open_folder(Path(data).expanduser())
    if len(train.classes) < 2:
        raise DataError(
            f"{str(data)!r} has {len(train.classes)} classes; give a folder with a folder of "
            "images for each class, two at least"
        )
    for part, other, name in ((train, val, "train"), (val, train, "measured")):
        present = {part.classes[i] for i in np.unique(part.labels)}
        missing = [one for one in other.classes if one not in present]
        if missing or part.classes != other.classes:
            missing = missing or sorted({*part.classes} ^ {*other.classes})
            raise DataError(
                f"{str(data)!r} has no images of {', '.join(map(shown, missing[:5]))} in its "
                f"{name} part; both need every class"
            )
    return train, val


def open_part(data: str | Path, part: Part = "val") -> LabelledImages:
    """Open one part of a labelled data set, to measure a classifier that has learned already.

    Args:
        data: As for `open_labelled`; the other part may have other classes, and of a folder it may
            be missing.
        part: `val` or `train`; or `all`, for a folder with the folders of the classes directly
            below it, of which nothing was learned from.

    Raises:
        DataError: If there is no class, or the data cannot be read.
    """
    folder = Path(data).expanduser()
    measured = [folder / name for name in _MEASURED if (folder / name).is_dir()]
    if str(data).startswith("hub:"):
        if part == "all":
            raise DataError("part=all is for folders; give part=val or part=train")
        images = _open_hub(str(data).removeprefix("hub:"))[part == "val"]
    elif part == "all":
        images = _whole(folder, "give part=val or part=train, or the folder of one of them")
    elif part == "val" and measured:
        images = _of_folder(measured[0])
    elif part == "train" and (folder / "train").is_dir():
        images = _of_folder(folder / "train", next(iter(measured), ""))
    else:
        images = _open_folder(folder)[part == "val"]
    if not len(images):
        raise DataError(
            f"{str(data)!r} has no images in folders of classes; give a folder with a folder of "
            "images for each class"
        )
    return images


def _open_folder(folder: Path) -> tuple[LabelledImages, LabelledImages]:
    measured = [name for name in _MEASURED if (folder / name).is_dir()]
    if (folder / "train").is_dir() and measured:
        measured_on = folder / measured[0]
        # A file that both lead to by links is measured on, and not learned from.
        return _of_folder(folder / "train", measured_on), _of_folder(measured_on)
    whole = _whole(folder, "call them train and val")
    # By names, so that a new image moves one other of its class at most.
    order = np.array([_digest(name) for name in whole.names])
    is_val = np.zeros(len(whole), dtype=bool)
    for label in range(len(whole.classes)):
        rows = np.flatnonzero(whole.labels == label)
        is_val[rows[np.argsort(order[rows])][: -(-len(rows) // _ONE_IN)]] = len(rows) > 1
    _log.info(
        "%r has no train and val: %d of its %d images are measured on", str(folder), is_val.sum(),
        len(whole),
    )  # fmt: skip
    return _rows(whole, ~is_val), _rows(whole, is_val)


def _whole(folder: Path, advice: str) -> LabelledImages:
    whole = _of_folder(folder)
    if parts := [name for name in whole.classes if name.lower() in _PARTS]:
        raise DataError(
            f"{str(folder)!r} has the folders {', '.join(map(shown, parts))}, which are no "
            f"classes; {advice}"
        )
    return whole


def _of_folder(folder: Path, holdout: str | Path = "") -> LabelledImages:
    paths = find_images(folder, holdout)
    depth = len(folder.parts)
    names = ["/".join(path.parts[depth:]) for path in paths]
    labels, classes = find_classes(names)
    if (labels < 0).any():
        _log.warning("left out %d images that are in no class's folder", (labels < 0).sum())
    known = [i for i, label in enumerate(labels) if label >= 0]
    digest = hashlib.sha256(_digest(str(folder.resolve())))
    for i in known:
        with contextlib.suppress(OSError):  # a broken link, which cannot be read either
            status = paths[i].stat()
            digest.update(_digest(f"{names[i]}\0{status.st_size}\0{status.st_mtime_ns}"))
    return LabelledImages(
        [paths[i] for i in known], [names[i] for i in known], labels[known], classes,
        digest.hexdigest(),
    )  # fmt: skip


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="replace")).digest()


def _rows(images: LabelledImages, chosen: NDArray[np.bool_]) -> LabelledImages:
    rows = np.flatnonzero(chosen).tolist()
    digest = hashlib.sha256(f"{images.fingerprint} {rows}".encode()).hexdigest()
    return LabelledImages(
        [images.files[i] for i in rows], [images.names[i] for i in rows], images.labels[rows],
        images.classes, digest,
    )  # fmt: skip


class _HubFiles(Sequence[Path | bytes]):
    """The files of a column of a data set, read when they are asked for."""

    def __init__(self, examples: Any, column: str, folder: Path) -> None:
        """`folder` has what was fetched; a data set may name no other file of this machine."""
        self._examples, self._column, self._folder = examples, column, folder

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            rows = range(*index.indices(len(self)))
            return _HubFiles(self._examples.select(rows), self._column, self._folder)
        value = self._examples[index][self._column]
        path = Path((value or {}).get("path") or "").resolve()
        try:
            return encoded_image(value, is_own=path.is_relative_to(self._folder))
        except ImageError as error:
            _log.warning("image %d: %s", index, error)
            return b""  # no image either


def _open_hub(name: str) -> tuple[LabelledImages, LabelledImages]:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            f"hub: needs a package that is not installed: pip install datasets=={DATASETS_VERSION}"
        ) from error
    try:
        splits = datasets.load_dataset(name)
    # Networks, file systems and formats raise errors without a common base.
    except Exception as error:
        raise DataError(
            f"the data set {name!r} cannot be read ({type(error).__name__}: {error})"
        ) from error
    measured = [split for split in _MEASURED if split in splits]
    if "train" not in splits or not measured:
        raise DataError(
            f"the data set {name!r} has the splits {', '.join(splits)}; it needs train and one of "
            f"{', '.join(_MEASURED)}"
        )
    own = Path(name).expanduser()
    folder = (own if own.exists() else Path(datasets.config.HF_CACHE_HOME)).resolve()
    train, val = (_of_split(splits[part], name, folder) for part in ("train", measured[0]))
    return train, val


def _of_split(examples: Any, name: str, folder: Path) -> LabelledImages:
    datasets = importlib.import_module("datasets")
    images, labels = (
        [column for column, feature in examples.features.items() if isinstance(feature, kind)]
        for kind in (datasets.Image, datasets.ClassLabel)
    )
    if len(images) != 1 or not labels:
        raise DataError(
            f"the data set {name!r} has the columns {', '.join(examples.features)}; it needs one "
            "of images and one of classes"
        )
    if len(labels) > 1:
        _log.warning("of the columns of classes %s, %s is taken", ", ".join(labels), labels[0])
    numbers = [-1 if label is None else label for label in examples[labels[0]]]
    if min(numbers, default=-1) < 0:
        raise DataError(f"the data set {name!r} does not tell the classes of {examples.split}")
    # Images are decoded by the reader: the package sets no limits.
    files = examples.cast_column(images[0], datasets.Image(decode=False))
    return LabelledImages(
        _HubFiles(files, images[0], folder),
        [f"{examples.split} {i}" for i in range(len(examples))],
        np.array(numbers, dtype=np.int64),
        tuple(examples.features[labels[0]].names),
        # Of the content, as `datasets` caches by it.
        str(examples._fingerprint),
    )
