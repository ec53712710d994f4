"""A folder of pictures: its files, and each of them decoded whenever it is asked for."""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae_core.errors import DataError, ImageError
from mae_core.images import decode_image

_log = logging.getLogger(__name__)

_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"))


def find_images(folder: str | Path) -> list[Path]:
    """All picture files below a folder, by their suffix, sorted by path.

    Raises:
        DataError: If the folder is missing or holds no picture.
    """
    root = Path(folder).expanduser()
    if not folder or not root.is_dir():
        raise DataError(f"{str(folder)!r} is not a folder; give one with pictures in it")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise DataError(f"no picture lies below {str(folder)!r}; looked for {_suffix_list()}")
    return paths


def _suffix_list() -> str:
    return ", ".join(sorted(_SUFFIXES))


def decode_reduced(source: Path | bytes, short_side: int) -> Image.Image:
    """A picture, its shorter side reduced to at most `short_side` pixels; 0 for as it is.

    Raises:
        ImageError: If it cannot be used.
    """
    picture = decode_image(source)
    scale = short_side / min(picture.size)
    if not 0 < scale < 1:
        return picture
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    return picture.resize(size, Image.Resampling.BICUBIC)


def check_unreadable(unreadable: Sequence[str], total: int, max_unreadable: float) -> None:
    """Stop where too many of a folder's files are unreadable.

    Args:
        unreadable: Their names.
        total: Files in all.
        max_unreadable: Largest share of unreadable files, 0..1.

    Raises:
        DataError: If the share is larger, or no file is readable.
    """
    if len(unreadable) == total or len(unreadable) > max_unreadable * total:
        raise DataError(
            f"{len(unreadable)} of {total} files are unreadable, such as "
            f"{', '.join(unreadable[:5])}; at most {max_unreadable:.0%} may be: remove "
            "them or raise data.max_unreadable"
        )


class FolderImages:
    """Pictures of a folder, each decoded whenever it is asked for; several threads may ask."""

    def __init__(self, folder: str | Path, *, short_side: int, max_unreadable: float) -> None:
        """Find the pictures of a folder and its subfolders.

        Args:
            folder: Searched through all its subfolders.
            short_side: Larger pictures are reduced to this shorter side, in pixels; 0 for none.
            max_unreadable: Largest share of unreadable files, 0..1.

        Raises:
            DataError: If there is no picture.
        """
        self._paths = find_images(folder)
        self._root = Path(folder).expanduser()
        self._short_side = short_side
        self._max_unreadable = max_unreadable
        self._unreadable: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Picture `index` as (H, W, 3) uint8; the next readable one in place of an unreadable.

        Raises:
            DataError: If more files have turned out to be unreadable than may be.
        """
        while True:
            if index not in self._unreadable:
                try:
                    return np.asarray(decode_reduced(self._paths[index], self._short_side))
                except ImageError as error:
                    self._note(index, error)
            index = (index + 1) % len(self)

    @property
    def unreadable(self) -> list[str]:
        """The files that were found to be unreadable so far, relative to their folder."""
        with self._lock:
            return sorted(self._unreadable.values())

    def _note(self, index: int, error: ImageError) -> None:
        name = self._paths[index].relative_to(self._root).as_posix()
        with self._lock:
            known = index in self._unreadable
            self._unreadable[index] = name
        if not known:
            _log.warning("skipped %s: %s", name, error)
        check_unreadable(self.unreadable, len(self), self._max_unreadable)
