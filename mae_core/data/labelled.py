"""Labelled images in two parts: one to learn from, one to measure on.

train, val = open_labelled("flowers")                 # flowers/{train,val}/CLASS/*
train, val = open_labelled("photos")                  # photos/CLASS/*: every fifth is `val`
train, val = open_labelled("hub:uoft-cs/cifar10")     # a data set of the Hugging Face hub
"""

import hashlib
import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae_core.data.datasets import find_classes, find_images, shown
from mae_core.data.streams import DATASETS_VERSION, encoded_image
from mae_core.errors import DataError

__all__ = ["LabelledImages", "open_labelled"]

_log = logging.getLogger(__name__)

# Folders and splits to measure on, the first that is there; the hub's test splits often have no
# labels.
_MEASURED = ("val", "validation", "test")

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


def _open_folder(folder: Path) -> tuple[LabelledImages, LabelledImages]:
    measured = [name for name in _MEASURED if (folder / name).is_dir()]
    if (folder / "train").is_dir() and measured:
        return _of_folder(folder / "train"), _of_folder(folder / measured[0])
    whole = _of_folder(folder)
    # By names alone, so that a new image moves no other one.
    order = np.array(
        [hashlib.sha256(name.encode(errors="replace")).digest() for name in whole.names]
    )
    is_val = np.zeros(len(whole), dtype=bool)
    for label in range(len(whole.classes)):
        rows = np.flatnonzero(whole.labels == label)
        is_val[rows[np.argsort(order[rows])][: -(-len(rows) // _ONE_IN)]] = len(rows) > 1
    _log.info(
        "%r has no train and val: %d of its %d images are measured on", str(folder), is_val.sum(),
        len(whole),
    )  # fmt: skip
    return _rows(whole, ~is_val), _rows(whole, is_val)


def _of_folder(folder: Path) -> LabelledImages:
    paths = find_images(folder)
    depth = len(folder.parts)
    names = ["/".join(path.parts[depth:]) for path in paths]
    labels, classes = find_classes(names)
    if (labels < 0).any():
        _log.warning("left out %d images that are in no class's folder", (labels < 0).sum())
    known = [i for i, label in enumerate(labels) if label >= 0]
    digest = hashlib.sha256()
    for i in known:
        status = paths[i].stat()
        digest.update(
            f"{names[i]}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="replace")
        )
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

    def __init__(self, examples: Any, column: str, *, is_own: bool) -> None:
        self._examples, self._column, self._is_own = examples, column, is_own

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: Any) -> Any:
        return encoded_image(self._examples[int(index)][self._column], self._is_own)


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
    is_own = Path(name).expanduser().exists()
    return _of_split(splits["train"], name, is_own), _of_split(splits[measured[0]], name, is_own)


def _of_split(examples: Any, name: str, is_own: bool) -> LabelledImages:
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
    # Images are decoded by the reader: the package sets no limits.
    files = examples.cast_column(images[0], datasets.Image(decode=False))
    return LabelledImages(
        _HubFiles(files, images[0], is_own=is_own),
        [f"{examples.split} {i}" for i in range(len(examples))],
        np.array(examples[labels[0]], dtype=np.int64),
        tuple(examples.features[labels[0]].names),
        # Of the content, as `datasets` caches by it.
        str(examples._fingerprint),
    )
