"""A folder of pictures: its files, and each of them decoded whenever it is asked for."""

import logging
import os
import re
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import features

from mae_core.data.reading import PictureReader
from mae_core.errors import DataError, ImageError

_log = logging.getLogger(__name__)


class Format(NamedTuple):
    """A picture format.

    Attributes:
        name: For people.
        start: Matches the first 64 bytes of its files.
        suffixes: Files of these are taken without a look into them.
        is_readable: Whether this machine reads it.
        remedy: What to do where it does not.
    """

    name: str
    start: re.Pattern[bytes]
    suffixes: tuple[str, ...]
    is_readable: Callable[[], bool] = lambda: True
    remedy: str = ""


def _start(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.DOTALL)


# The first that matches counts: an AVIF file may begin as HEIC does, and lists `avif` later.
FORMATS = (
    Format("JPEG", _start(rb"\xff\xd8\xff"), (".jpg", ".jpeg")),
    Format("PNG", _start(rb"\x89PNG\r\n\x1a\n"), (".png",)),
    Format("WebP", _start(rb"RIFF....WEBP"), (".webp",)),
    Format("GIF", _start(rb"GIF8[79]a"), (".gif",)),
    Format("BMP", _start(rb"BM....\0\0\0\0"), (".bmp",)),
    Format("TIFF", _start(rb"II[*+]\0|MM\0[*+]"), (".tif", ".tiff")),
    Format(
        "AVIF", _start(rb"....ftyp(?:....)*?avi[fs]"), (".avif",),
        lambda: bool(features.check("avif")), "take a build of Pillow that reads AVIF",
    ),
    Format(
        "HEIC", _start(rb"....ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)"), (".heic", ".heif"),
        lambda: find_spec("pillow_heif") is not None, "pip install pillow-heif",
    ),
    Format("NumPy", _start(rb"\x93NUMPY"), (".npy",)),
)  # fmt: skip

_FORMAT_OF = {suffix: known for known in FORMATS for suffix in known.suffixes}
_START_BYTES = 64

# Folders that programs add to people's pictures; those that begin with a dot are hidden as well.
_HIDDEN_FOLDERS = frozenset(("__macosx", "@eadir", "$recycle.bin"))
_HIDDEN_FILES = frozenset(("thumbs.db", "desktop.ini"))

# Kinds that are told by their suffix. Most RAW photos begin as a TIFF does, and hold a thumbnail.
_KIND_OF = {
    **dict.fromkeys((".3gp", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm"), "video"),
    **dict.fromkeys(
        (".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw"),
        "RAW photo",
    ),
}
_NOT_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f]")

# Kinds of skipped files that the log names; the rest is added up.
_NAMED_KINDS = 8

# Of a file, whatever its name: device and inode.
_Identity = tuple[int, int]


def find_images(folder: str | Path, holdout: str | Path = "", *, quiet: bool = False) -> list[Path]:
    """All pictures below a folder, sorted by path; the log says how many, and what was skipped.

    A file is a picture by its suffix or, if that says nothing, by its first bytes. Links are
    followed; a folder or file that several lead to is taken once. Hidden folders and files are
    skipped.

    Args:
        folder: Looked through with all folders in it.
        holdout: Folder whose pictures are left out, also where links lead to them; none if empty.
        quiet: Whether the log says nothing, as the same folder is looked through again.

    Raises:
        DataError: If a folder is missing, or no picture is left.
    """
    root = _checked(folder)
    pictures, skipped = _list_pictures(root)
    arrays = {key for key, path in pictures.items() if path.lower().endswith(".npy")}
    if len(arrays) < len(pictures):
        # Embeddings or masks of the pictures beside them.
        skipped["NumPy file"] = len(arrays)
        pictures = {key: path for key, path in pictures.items() if key not in arrays}
    if holdout:
        if os.path.samefile(root, _checked(holdout)):
            raise DataError(
                f"data.holdout {str(holdout)!r} is the training folder itself; give a folder of "
                "other pictures, or one inside it"
            )
        held_out, _ = _list_pictures(_checked(holdout))
        skipped["hold-out picture"] = len(pictures.keys() & held_out.keys())
        pictures = {key: path for key, path in pictures.items() if key not in held_out}
    if not pictures:
        raise DataError(
            f"no picture lies below {str(folder)!r}{_told(skipped)}; looked for "
            + ", ".join(known.name for known in FORMATS)
        )
    if not quiet:
        _log.info("%s pictures below %r%s", f"{len(pictures):,}", str(folder), _told(skipped))
    return [root / path for path in sorted(pictures.values(), key=lambda path: path.split(os.sep))]


def shown(name: str | Path) -> str:
    """A file's name for people, on one line: what is not text in it is escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _checked(folder: str | Path) -> Path:
    root = Path(folder).expanduser()
    if not str(folder) or not root.is_dir():
        raise DataError(f"{str(folder)!r} is not a folder; give one with pictures in it")
    return root


def _told(skipped: Mapping[str, int]) -> str:
    counts = [(kind, count) for kind, count in Counter(skipped).most_common() if count]
    if not counts:
        return ""
    remedies = {_kind_of(known): f" ({known.remedy})" for known in FORMATS if known.remedy}
    parts = [
        f"{count:,} {kind}{'s' if count > 1 else ''}{remedies.get(kind, '')}"
        for kind, count in counts[:_NAMED_KINDS]
    ]
    if len(counts) > _NAMED_KINDS:
        parts.append(f"{sum(count for _, count in counts[_NAMED_KINDS:]):,} of other kinds")
    return "; skipped " + ", ".join(parts)


def _kind_of(known: Format) -> str:
    return f"{known.name} picture"


def _list_pictures(root: Path) -> tuple[dict[_Identity, str], Counter[str]]:
    """Pictures below a folder, relative to it, and how many files of each kind are none."""
    pictures: dict[_Identity, str] = {}
    skipped: Counter[str] = Counter()
    unreadable = {known for known in FORMATS if not known.is_readable()}
    for path, status in _walk(str(root), skipped):
        identity = (status.st_dev, status.st_ino)
        kind = _kind_if_skipped(path, status, unreadable)
        if not kind and identity in pictures:
            kind = "duplicate link"
        if kind:
            skipped[kind] += 1
        else:
            pictures[identity] = path.removeprefix(str(root)).lstrip(os.sep)
    return pictures, skipped


def _walk(root: str, skipped: Counter[str]) -> Iterator[tuple[str, os.stat_result]]:
    """Every file below a folder, and what its link leads to; counts what cannot be entered.

    Each folder is entered once, so that links may run in circles. Links are followed last, so that
    a folder is found under its own name.
    """
    entered: set[_Identity] = set()
    folders, links = [root], list[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                content = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            _log.warning("skipped the folder %s: %s", shown(folder), error.strerror or error)
            skipped["unreadable folder"] += 1
            continue
        for entry in content:
            found = _status(entry.path)
            if found is None:
                skipped["unreadable file"] += 1
            elif not stat.S_ISDIR(found.st_mode):
                yield entry.path, found
            elif entry.name.startswith(".") or entry.name.lower() in _HIDDEN_FOLDERS:
                skipped["hidden folder"] += 1
            else:
                (links if entry.is_symlink() else folders).append(entry.path)


def _status(path: str) -> os.stat_result | None:
    """Of what a link leads to, or of a link that leads nowhere itself."""
    with suppress(OSError):
        return os.stat(path)
    with suppress(OSError):
        return os.lstat(path)
    return None


def _kind_if_skipped(path: str, status: os.stat_result, unreadable: set[Format]) -> str:
    """What a file is that is no picture; empty for a picture."""
    name = os.path.basename(path)
    suffix = os.path.splitext(name)[1].lower()
    known = _FORMAT_OF.get(suffix)
    if name.startswith(".") or name.lower() in _HIDDEN_FILES:
        return "hidden file"
    if suffix in _KIND_OF:
        return _KIND_OF[suffix]
    # With a picture's suffix it turns out unreadable, and is named then.
    if stat.S_ISLNK(status.st_mode):
        return "" if known else "broken link"
    if not stat.S_ISREG(status.st_mode):
        return "special file"
    if known is None:
        try:
            with open(path, "rb") as file:
                start = file.read(_START_BYTES)
        except OSError:
            return "unreadable file"
        known = next((one for one in FORMATS if one.start.match(start)), None)
        if known is None:
            return _kind_by_start(start, suffix)
    return _kind_of(known) if known in unreadable else ""


def _kind_by_start(start: bytes, suffix: str) -> str:
    if not start:
        return "empty file"
    if not _NOT_TEXT.search(start):
        return "text file"
    return f"{shown(suffix)} file" if suffix else "unknown file"


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
            f"{', '.join(map(shown, unreadable[:5]))}; at most {max_unreadable:.0%} may be: remove "
            "them or raise data.max_unreadable"
        )


class FolderImages:
    """Pictures of a folder, each decoded whenever it is asked for; several threads may ask."""

    def __init__(
        self,
        folder: str | Path,
        *,
        reader: PictureReader,
        max_unreadable: float,
        holdout: str | Path = "",
    ) -> None:
        """Find the pictures of a folder and its subfolders.

        Args:
            folder: Searched through all its subfolders.
            reader: Reads the pictures.
            max_unreadable: Largest share of unreadable files, 0..1.
            holdout: As of `find_images`.

        Raises:
            DataError: If there is no picture.
        """
        self._paths = find_images(folder, holdout)
        self._root = Path(folder).expanduser()
        self._reader = reader
        self._max_unreadable = max_unreadable
        self._unreadable: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Picture `index` as (H, W, C) uint8; the next readable one in place of an unreadable.

        Raises:
            DataError: If more files have turned out to be unreadable than may be.
        """
        while True:
            if index not in self._unreadable:
                try:
                    return self._reader(self._paths[index])
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
            _log.warning("skipped %s: %s", shown(name), error)
        check_unreadable(self.unreadable, len(self), self._max_unreadable)
