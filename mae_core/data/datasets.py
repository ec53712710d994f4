"""Data sets of (image, label): which files of a folder are images, and how they are read.

An image is (H, W, C) uint8, a label the number of its class or -1. Classes are those of
torchvision's `ImageFolder`: the folders directly below the root.
"""

import contextlib
import itertools
import logging
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from mae_core.errors import DataError, ImageError
from mae_core.images import open_image, read_raster, resized, size_of
from mae_core.measurements import RangeSpec, ValueRange, find_value_range
from mae_core.photographs import FORMATS, START_BYTES, ImageFormat, format_of, is_readable

_log = logging.getLogger(__name__)

_FORMAT_OF_SUFFIX = {suffix: known for known in FORMATS for suffix in known.suffixes}

# RAW photos start as a TIFF does, and hold a thumbnail.
_RAW_PHOTOS = (".arw", ".cr2", ".dng", ".nef", ".nrw", ".pef", ".srw")

# Written by other programs; names that begin with a dot are hidden as well.
_HIDDEN_FOLDERS = ("__macosx", "@eadir", "$recycle.bin")

# Images that are looked at to find the value range and the statistics of a data set.
SAMPLED = 64

Item = TypeVar("Item")

# (H, W, C) uint8, and the number of the class or -1.
Sample: TypeAlias = tuple[NDArray[np.uint8], int]


def find_images(folder: str | Path, holdout: str | Path = "", *, quiet: bool = False) -> list[Path]:
    """Find all images below a folder, sorted by path, each file once; log how many.

    A file is an image by its suffix or, if that says nothing, by its first bytes. Links are
    followed. Hidden files and folders are skipped, and NumPy files beside other images. Images of
    the folder `holdout` are left out, whatever links lead to them.
    """
    images, skipped = _list_images(folder)
    others = {key: path for key, path in images.items() if not path.lower().endswith(".npy")}
    if others:
        # NumPy files are embeddings or masks of the images beside them.
        skipped[".npy"] += len(images) - len(others)
        images = others
    if holdout:
        held_out, _ = _list_images(holdout)
        skipped["hold-out"] += len(images.keys() & held_out.keys())
        images = {key: path for key, path in images.items() if key not in held_out}
    kinds = ", ".join(f"{shown(kind)} {count:,}" for kind, count in (+skipped).most_common(8))
    rest = f"; skipped {skipped.total():,} other files ({kinds})" if kinds else ""
    if not images:
        advice = "; give a hold-out that leaves some" if skipped["hold-out"] else ""
        raise DataError(f"no image lies below {str(folder)!r}{rest}{advice}")
    if not quiet:
        _log.info("%s images below %r%s", f"{len(images):,}", str(folder), rest)
    return [Path(path) for path in sorted(images.values(), key=lambda path: path.split(os.sep))]


def _list_images(root: str | Path) -> tuple[dict[object, str], Counter[str]]:
    """Paths of images by file identity, and how many files of each suffix are none."""
    images: dict[object, str] = {}
    skipped: Counter[str] = Counter()
    start = Path(root).expanduser()
    if not str(root) or not start.is_dir():
        raise DataError(f"{str(root)!r} is not a folder; give one with images in it")
    # Each folder is entered once, so links may form circles. Links are followed last, so that a
    # folder is found under its own name.
    folders, links, entered = [str(start)], deque[str](), set[object]()
    while folders or links:
        folder = folders.pop() if folders else links.popleft()
        if (identity := _identity(folder)) in entered:
            continue
        entered.add(identity)
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            _log.warning("skipped the folder %s: %s", shown(folder), error.strerror)
            continue
        for name in names:
            path, suffix = os.path.join(folder, name), os.path.splitext(name)[1].lower()
            if name.startswith(".") or name.lower() in _HIDDEN_FOLDERS:
                continue
            if os.path.isdir(path):
                (links if os.path.islink(path) else folders).append(path)
                continue
            known = _format_of_file(path, suffix)
            if known is None:
                skipped[suffix or "without suffix"] += 1
            elif not is_readable(known):
                remedy = " (pip install pillow-heif)" if known.name == "HEIC" else ""
                skipped[known.name + remedy] += 1
            else:
                images.setdefault(_identity(path), path)
    return images, skipped


def _identity(path: str) -> object:
    """Device and inode, whatever the name."""
    try:
        status = os.stat(path)
    except OSError:  # a broken link
        return path
    return status.st_dev, status.st_ino


def _format_of_file(path: str, suffix: str) -> ImageFormat | None:
    if not os.path.isfile(path):
        # A broken link is named when it cannot be read. Reading a pipe would never end.
        return _FORMAT_OF_SUFFIX.get(suffix) if os.path.islink(path) else None
    if suffix in _FORMAT_OF_SUFFIX or suffix in _RAW_PHOTOS:
        return _FORMAT_OF_SUFFIX.get(suffix)
    try:
        with open(path, "rb") as file:
            return format_of(file.read(START_BYTES))
    except OSError:
        return None


def shown(name: str | Path) -> str:
    """A file's name on one printable line; other characters and bytes are escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def find_classes(names: Iterable[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels and classes of images, by their paths relative to the root.

    A class is a folder directly below the root that holds images. An image directly in the root
    has the label -1.
    """
    folders = [name.partition("/")[0] if "/" in name else "" for name in names]
    classes = tuple(sorted(set(folders) - {""}))
    numbers = {"": -1, **{name: number for number, name in enumerate(classes)}}
    return np.array([numbers[folder] for folder in folders], dtype=np.int64), classes


def check_unreadable(count: int, total: int, max_unreadable: float, where: Sequence[str]) -> None:
    """Raise a DataError if the share of unreadable images is too large, or none is readable."""
    if count == total or count > max_unreadable * total:
        raise DataError(
            f"{count} of {total} images are unreadable, such as {', '.join(map(shown, where[:5]))}"
            f"; at most {max_unreadable:.0%} may be: remove them or raise max_unreadable"
        )


@dataclass(frozen=True)
class ImageReader:
    """Reads image files as (H, W, C) uint8.

    Attributes:
        channels: C of the model.
        bands: Numbers of the bands, from 1, that are the channels; all if empty.
        value_range: Of values of more than 8 bits; see `open_image`.
        short_side: Larger images are reduced to this shorter side, in pixels; 0 for none.
    """

    channels: int = 3
    bands: tuple[int, ...] = ()
    value_range: RangeSpec = "auto"
    short_side: int = 256

    def __call__(self, source: Path | bytes) -> NDArray[np.uint8]:
        """Read one image; an ImageError says why it cannot be used."""
        image = open_image(source, self.channels, bands=self.bands, value_range=self.value_range)
        width, height = size_of(image)
        scale = self.short_side / min(width, height)
        if 0 < scale < 1:
            image = resized(image, (max(round(width * scale), 1), max(round(height * scale), 1)))
        return np.atleast_3d(np.asarray(image))

    def find_range(self, sources: Sequence[Path | bytes]) -> ValueRange | None:
        """Find the common value range of some of these images; None if all have 8 bits a value."""
        tried, failures = some_of(sources), list[ImageError]()

        def measured() -> Iterator[NDArray[Any]]:
            for source in tried:
                try:
                    raster = read_raster(source, self.channels, self.bands)
                    values = raster.select(self.channels, self.bands) if raster else None
                except ImageError as error:
                    failures.append(error)
                    continue
                if values is not None and values.dtype != np.uint8:
                    yield values

        images = measured()
        first = next(images, None)
        if failures and len(failures) == len(tried):
            raise DataError(f"no image that was tried can be read: {failures[-1]}")
        if first is None:
            return None
        return find_value_range(itertools.chain([first], images), self.value_range)

    def readable(self, sources: Sequence[Path | bytes]) -> Iterator[NDArray[np.uint8]]:
        """Read some of these images, evenly spaced; unreadable ones are left out."""
        for source in some_of(sources):
            with contextlib.suppress(ImageError):
                yield self(source)


def channel_statistics(
    images: Iterable[NDArray[np.uint8]],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel over all pixels of (H, W, C) images, in 0..1."""
    count = 0
    total = squares = np.zeros(1)
    for image in images:
        pixels = image.reshape(-1, image.shape[2]) / 255
        count += len(pixels)
        total = total + pixels.sum(axis=0)
        squares = squares + np.square(pixels).sum(axis=0)
    if not count:
        raise DataError("no image can be read to measure the channels' means; check the files")
    mean = total / count
    # A flat channel has no deviation to divide by.
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-4))
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())


def some_of(items: Sequence[Item]) -> Sequence[Item]:
    """At most `SAMPLED` items, evenly spaced."""
    return items[:: -(-len(items) // SAMPLED) or 1]


class FolderImages:
    """Images of a folder, decoded at each access; several threads may read it.

    Attributes:
        names: Of the files, relative to the folder.
        classes: Names of the classes, in the order of their numbers.
    """

    def __init__(
        self, folder: str | Path, reader: ImageReader, max_unreadable: float, holdout: str = ""
    ) -> None:
        """Find the images by `find_images`; `max_unreadable` is a share of them, 0..1."""
        self._paths = find_images(folder, holdout)
        # Faster than `relative_to`, for a million files.
        depth = len(Path(folder).expanduser().parts)
        self.names = ["/".join(path.parts[depth:]) for path in self._paths]
        self._labels, self.classes = find_classes(self.names)
        self._reader, self._max_unreadable = reader, max_unreadable
        self._unreadable: set[int] = set()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:
        """Image `index` and its label; the next readable ones if it is unreadable."""
        while index in self._unreadable or (image := self._read(index)) is None:
            index = (index + 1) % len(self)
        return image, int(self._labels[index])

    def _read(self, index: int) -> NDArray[np.uint8] | None:
        try:
            return self._reader(self._paths[index])
        except ImageError as error:
            _log.warning("skipped %s: %s", shown(self.names[index]), error)
        self._unreadable.add(index)
        found = [self.names[i] for i in sorted(self._unreadable)]
        check_unreadable(len(found), len(self), self._max_unreadable, found)
        return None
