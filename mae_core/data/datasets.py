"""Data sets of (image, label): which files of a folder are images, and how they are read.

An image is (H, W, C) uint8, a label the number of its class or -1. Classes are those of
torchvision's `ImageFolder`: the folders directly below the root. `pack` and `streams` build on
this module.
"""

import contextlib
import itertools
import logging
import os
import re
import stat
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import features

from mae_core.errors import DataError, ImageError
from mae_core.images import open_image, read_raster, resized, size_of
from mae_core.measurements import RangeSpec, ValueRange, find_value_range

_log = logging.getLogger(__name__)

# First bytes and suffixes of each format. AVIF comes before HEIC: its files may start as HEIC files
# do, and list `avif` later.
_FORMATS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "JPEG": (rb"\xff\xd8\xff", (".jpg", ".jpeg")),
    "PNG": (rb"\x89PNG\r\n\x1a\n", (".png",)),
    "WebP": (rb"RIFF....WEBP", (".webp",)),
    "GIF": (rb"GIF8[79]a", (".gif",)),
    "BMP": (rb"BM....\0\0\0\0", (".bmp",)),
    "TIFF": (rb"II[*+]\0|MM\0[*+]", (".tif", ".tiff")),
    "AVIF": (rb"....ftyp(?:....)*?avi[fs]", (".avif",)),
    "HEIC": (rb"....ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)", (".heic", ".heif")),
    "NumPy": (rb"\x93NUMPY", (".npy",)),
}
_FORMAT_OF = {suffix: name for name, (_, suffixes) in _FORMATS.items() for suffix in suffixes}
_START_BYTES = 64

# Formats that some machines cannot read, and what to do there.
_REMEDIES = {"AVIF": "take a build of Pillow that reads AVIF", "HEIC": "pip install pillow-heif"}

# No images whatever their first bytes: videos, and RAW photos, most of which start as a TIFF does
# and hold a thumbnail.
_NO_IMAGES = frozenset((
    ".3gp", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm",
    ".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw",
))  # fmt: skip

# Written by other programs; names that begin with a dot are hidden as well.
_HIDDEN_FOLDERS = frozenset(("__macosx", "@eadir", "$recycle.bin"))
_HIDDEN_FILES = frozenset(("thumbs.db", "desktop.ini"))

# Kinds of skipped files that the log names; the others are added up.
_NAMED_KINDS = 8

# Images that are looked at to find the value range and the statistics of a data set.
SAMPLED = 64

Item = TypeVar("Item")

# (H, W, C) uint8, and the number of the class or -1.
Sample: TypeAlias = tuple[NDArray[np.uint8], int]

# Device and inode of a file, whatever its name.
_Identity: TypeAlias = tuple[int, int]


class MapDataset(Protocol):
    """A data set whose samples have numbers. Several threads may read it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def find_images(folder: str | Path, holdout: str | Path = "", *, quiet: bool = False) -> list[Path]:
    """Find all images below a folder, sorted by path; log how many, and what was skipped.

    A file is an image by its suffix or, if that says nothing, by its first bytes. Links are
    followed; a folder or file with several names is taken once. Hidden folders and files are
    skipped, and NumPy files beside other images.

    Args:
        folder: Searched with all its subfolders.
        holdout: Folder whose images are left out, whatever links lead to them; none if empty.
        quiet: Whether to log nothing.

    Raises:
        DataError: If a folder is missing, or no image is left.
    """
    root = _existing(folder)
    images, skipped = _list_images(root)
    arrays = {key for key, path in images.items() if path.lower().endswith(".npy")}
    if len(arrays) < len(images):
        # Embeddings or masks of the images beside them.
        skipped["NumPy file"] = len(arrays)
        images = {key: path for key, path in images.items() if key not in arrays}
    if holdout:
        if os.path.samefile(root, _existing(holdout)):
            raise DataError(
                f"data.holdout {str(holdout)!r} is the training folder itself; give a folder of "
                "other images, or one inside it"
            )
        held_out, _ = _list_images(_existing(holdout))
        skipped["hold-out image"] = len(images.keys() & held_out.keys())
        images = {key: path for key, path in images.items() if key not in held_out}
    if not images:
        raise DataError(
            f"no image lies below {str(folder)!r}{_described(skipped)}; looked for "
            + ", ".join(_FORMATS)
        )
    if not quiet:
        _log.info("%s images below %r%s", f"{len(images):,}", str(folder), _described(skipped))
    return [root / path for path in sorted(images.values(), key=lambda path: path.split(os.sep))]


def _existing(folder: str | Path) -> Path:
    root = Path(folder).expanduser()
    if not str(folder) or not root.is_dir():
        raise DataError(f"{str(folder)!r} is not a folder; give one with images in it")
    return root


def _described(skipped: Counter[str]) -> str:
    parts = []
    named = (+skipped).most_common(_NAMED_KINDS)
    for kind, count in named:
        remedy = _REMEDIES.get(kind.removesuffix(" image"))
        parts.append(f"{count:,} {kind}{'s' * (count > 1)}{f' ({remedy})' if remedy else ''}")
    others = skipped.total() - sum(count for _, count in named)
    if others:
        parts.append(f"{others:,} of other kinds")
    return "; skipped " + ", ".join(parts) if parts else ""


def _list_images(root: Path) -> tuple[dict[_Identity, str], Counter[str]]:
    """Images below a folder, relative to it, and how many files of each kind were skipped."""
    images: dict[_Identity, str] = {}
    skipped: Counter[str] = Counter()
    unreadable = {"AVIF": not features.check("avif"), "HEIC": find_spec("pillow_heif") is None}
    for path in _walk(str(root), skipped):
        try:
            status = os.stat(path) if os.path.exists(path) else os.lstat(path)
        except OSError:
            skipped["unreadable file"] += 1
            continue
        identity = status.st_dev, status.st_ino
        kind = _format_or_kind(path, status)
        if kind not in _FORMATS:
            skipped[kind] += 1
        elif unreadable.get(kind):
            skipped[f"{kind} image"] += 1
        elif identity in images:
            skipped["duplicate link"] += 1
        else:
            images[identity] = path.removeprefix(str(root)).lstrip(os.sep)
    return images, skipped


def _walk(root: str, skipped: Counter[str]) -> Iterator[str]:
    """Every file below a folder.

    Each folder is entered once, so links may form circles. Links are followed last, so a folder
    is found under its own name.
    """

    def warn(error: OSError) -> None:
        _log.warning("skipped the folder %s: %s", shown(error.filename), error.strerror)
        skipped["unreadable folder"] += 1

    entered: set[_Identity] = set()
    links = [root]
    while links:
        for folder, subfolders, files in os.walk(links.pop(0), onerror=warn):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:
                subfolders.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
            yield from (os.path.join(folder, name) for name in sorted(files))
            visible = [
                name
                for name in sorted(subfolders)
                if not name.startswith(".") and name.lower() not in _HIDDEN_FOLDERS
            ]
            skipped["hidden folder"] += len(subfolders) - len(visible)
            links += filter(os.path.islink, [os.path.join(folder, name) for name in visible])
            # `os.walk` enters them in this order, but no links.
            subfolders[:] = reversed(visible)


def _format_or_kind(path: str, status: os.stat_result) -> str:
    """The format of an image, or what else a file is."""
    name = os.path.basename(path)
    suffix = os.path.splitext(name)[1].lower()
    other = f"{shown(suffix)} file" if suffix else "unknown file"
    if name.startswith(".") or name.lower() in _HIDDEN_FILES:
        return "hidden file"
    if stat.S_ISLNK(status.st_mode):
        # As an image it is named when it cannot be read.
        return _FORMAT_OF.get(suffix, "broken link")
    if not stat.S_ISREG(status.st_mode):
        return "special file"
    if suffix in _FORMAT_OF or suffix in _NO_IMAGES:
        return _FORMAT_OF.get(suffix, other)
    try:
        with open(path, "rb") as file:
            return format_of(file.read(_START_BYTES)) or other
    except OSError:
        return "unreadable file"


def format_of(start: bytes) -> str | None:
    """Name of the image format whose files start with these bytes, if any."""
    for name, (pattern, _) in _FORMATS.items():
        if re.match(pattern, start, re.DOTALL):
            return name
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


def check_unreadable(unreadable: Sequence[str], total: int, max_unreadable: float) -> None:
    """Raise a DataError if the share of unreadable files is too large, or no file is readable."""
    if len(unreadable) == total or len(unreadable) > max_unreadable * total:
        raise DataError(
            f"{len(unreadable)} of {total} files are unreadable, such as "
            f"{', '.join(map(shown, unreadable[:5]))}; at most {max_unreadable:.0%} may be: remove "
            "them or raise data.max_unreadable"
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
        """Read one image.

        Raises:
            ImageError: If it cannot be used.
        """
        image = open_image(source, self.channels, bands=self.bands, value_range=self.value_range)
        width, height = size_of(image)
        scale = self.short_side / min(width, height)
        if 0 < scale < 1:
            size = max(round(width * scale), 1), max(round(height * scale), 1)
            image = resized(image, size)
        return np.atleast_3d(np.asarray(image))

    def find_range(self, sources: Sequence[Path | bytes]) -> ValueRange | None:
        """Find the common value range of some of these images; None if all have 8 bits a value.

        Raises:
            DataError: If none of the images can be read.
        """
        measured = self._measured(sources)
        first = next(measured, None)
        if first is None:
            return None
        return find_value_range(itertools.chain([first], measured), self.value_range)

    def _measured(self, sources: Sequence[Path | bytes]) -> Iterator[NDArray[Any]]:
        """The values of each image of more than 8 bits."""
        readable, failure = False, None
        for source in some_of(sources):
            try:
                raster = read_raster(source, self.channels, self.bands)
                values = None if raster is None else raster.select(self.channels, self.bands)
            except ImageError as error:
                failure = error
                continue
            readable = True
            if values is not None and values.dtype != np.uint8:
                yield values
        if failure and not readable:
            raise DataError(f"no image that was tried can be read: {failure}")

    def readable(self, sources: Sequence[Path | bytes]) -> Iterator[NDArray[np.uint8]]:
        """Read some of these images, evenly spaced; unreadable ones are left out."""
        for source in some_of(sources):
            with contextlib.suppress(ImageError):
                yield self(source)


def channel_statistics(
    images: Iterable[NDArray[np.uint8]],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel over all pixels of (H, W, C) images, in 0..1.

    Raises:
        DataError: If there are no images.
    """
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
        classes: Names of the classes.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        reader: ImageReader,
        max_unreadable: float,
        holdout: str | Path = "",
    ) -> None:
        """Find the images by `find_images`; `max_unreadable` is a share of them, 0..1."""
        self._paths = find_images(folder, holdout)
        # Faster than `relative_to`, for a million files.
        depth = len(Path(folder).expanduser().parts)
        self.names = ["/".join(path.parts[depth:]) for path in self._paths]
        self._labels, self.classes = find_classes(self.names)
        self._reader = reader
        self._max_unreadable = max_unreadable
        self._unreadable: set[int] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:
        """Image `index` and its label; the next readable ones if it is unreadable.

        Raises:
            DataError: If too many files have turned out to be unreadable.
        """
        while True:
            if index not in self._unreadable:
                try:
                    return self._reader(self._paths[index]), int(self._labels[index])
                except ImageError as error:
                    self._count_unreadable(index, error)
            index = (index + 1) % len(self)

    @property
    def unreadable(self) -> list[str]:
        """Names of the files found unreadable so far."""
        with self._lock:
            return [self.names[index] for index in sorted(self._unreadable)]

    def _count_unreadable(self, index: int, error: ImageError) -> None:
        with self._lock:
            known = index in self._unreadable
            self._unreadable.add(index)
        if not known:
            _log.warning("skipped %s: %s", shown(self.names[index]), error)
        check_unreadable(self.unreadable, len(self), self._max_unreadable)
