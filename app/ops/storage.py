"""The folder of uploads and panels, kept below a bound.

Gradio keeps every upload and every picture it shows as `FOLDER/<64 hexadecimal digits>/<name>`,
and an upload that is still coming as `FOLDER/tmp…`. It deletes by age only, and not what a visitor
left behind who hung up in the middle. So this folder has one owner, and that is not Gradio.

The age of a file goes by its own time or its folder's, whichever is later. A panel that is shown
again sets the folder's: the file's own time is part of its ETag.

Wiring, with `delete_cache` of the page not set and `GRADIO_TEMP_DIR` set before the page is built:

    folder = CacheFolder(
        os.environ["GRADIO_TEMP_DIR"], int(settings.disk_gb * 1e9),
        kept=lambda: {path for block in list(page.blocks.values()) for path in block.keep_in_cache},
        # Gradio remembers every file that it ever wrote.
        forget=lambda paths: [known.difference_update(paths) for known in page.temp_file_sets],
    )
    folder.start()          # before the page is served; folder.stop() after it
    folder.check_space()    # where a panel is about to be written: StorageError says it in words
"""

import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from mae_core import MAEError

# Nothing is taken from under a visitor who has just sent it, unless the folder overflows.
YOUNG_SECONDS = 60
MAX_AGE_SECONDS = 3600

# What is left alone of a disk that others use as well.
RESERVED_BYTES = 256 * 2**20

_SWEEP_SECONDS = 10.0
_STOP_SECONDS = 5.0
# Of the time, at most; a folder of very many files is swept less often.
_SWEEP_SHARE = 0.05

# The layout above. Whatever else is in the folder is not ours.
_KEPT_FOLDER = re.compile(r"[0-9a-f]{64}")
_PARTIAL = re.compile(r"tmp[a-z0-9_]{8}")

_logger = logging.getLogger(__name__)


class StorageError(MAEError):
    """There is no room for uploads and panels."""

    code = "storage"


class _File(NamedTuple):
    touched: float
    size: int
    path: str


class CacheFolder:
    """Deletes the oldest uploads and panels of a folder. Safe to share between threads.

    A file that is being sent is sent to its end: on Linux and macOS the reader still has it.
    """

    def __init__(
        self,
        path: str | Path,
        max_bytes: int,
        *,
        kept: Callable[[], Collection[str]] = tuple,
        forget: Callable[[Collection[str]], object] = lambda paths: None,
    ) -> None:
        """Look after a folder, which need not be there yet.

        Args:
            path: Where Gradio keeps files. What has another layout than Gradio's is never touched.
            max_bytes: Bound on the sum of the sizes of its files.
            kept: Paths that are part of the page itself and never deleted.
            forget: Is told which paths were deleted.
        """
        self.path = Path(path).resolve()
        self._max_bytes = max_bytes
        self._kept = kept
        self._forget = forget
        self._bytes = 0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def bytes(self) -> int:
        """Sum of the sizes of the files at the last sweep."""
        return self._bytes

    def sweep(self) -> None:
        """Delete files an hour old, and the oldest until the rest is below the bound.

        Files younger than a minute stay, unless the folder has twice its bound.
        """
        files = sorted(_files_of(self.path))
        # After the last look: a file written meanwhile is none of the future.
        now = time.time()
        total, kept, deleted = sum(file.size for file in files), self._kept(), []
        for file in files:
            # A file of the future is as old as a clock that jumped: of no known age.
            age = now - file.touched if file.touched <= now else MAX_AGE_SECONDS
            spared = age < YOUNG_SECONDS and total <= 2 * self._max_bytes
            needed = age < MAX_AGE_SECONDS and total <= self._max_bytes
            if spared or needed or file.path in kept:
                continue
            if _delete(file.path):
                total -= file.size
                deleted.append(file.path)
        self._bytes = total
        if deleted:
            self._forget(deleted)

    def check_space(self) -> None:
        """Make sure that there is room for another file.

        Raises:
            StorageError: If the disk is nearly full.
        """
        place = next(path for path in (self.path, *self.path.parents) if path.exists())
        if shutil.disk_usage(place).free < RESERVED_BYTES:
            raise StorageError(
                "this server's disk is nearly full, so it takes no pictures for now; try again in "
                "a few minutes"
            )

    def start(self) -> None:
        """Sweep every ten seconds, in a thread that ends with the process."""
        self._thread = threading.Thread(target=self._sweep_on, name="storage", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Sweep no more."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)

    def _sweep_on(self) -> None:
        pause = 0.0
        while not self._stopped.wait(pause):
            began = time.monotonic()
            try:
                self.sweep()
            except Exception:
                # A full disk needs the next sweep more than ever.
                _logger.exception("cannot sweep the folder of uploads")
            pause = max(_SWEEP_SECONDS, (time.monotonic() - began) / _SWEEP_SHARE)


def _files_of(folder: Path) -> Iterator[_File]:
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False) and _KEPT_FOLDER.fullmatch(entry.name):
            try:
                used = entry.stat(follow_symlinks=False).st_mtime
            except FileNotFoundError:
                continue
            files = filter(None, map(_file, _entries(entry.path)))
            yield from (file._replace(touched=max(file.touched, used)) for file in files)
        elif _PARTIAL.fullmatch(entry.name) and (file := _file(entry)):
            yield file


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _file(entry: os.DirEntry[str]) -> _File | None:
    """A file, if it is one; links are not followed."""
    try:
        if not entry.is_file(follow_symlinks=False):
            return None
        stat = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    return _File(stat.st_mtime, stat.st_size, entry.path)


def _delete(path: str) -> bool:
    try:
        os.unlink(path)
        os.rmdir(os.path.dirname(path))
    except FileNotFoundError:
        return True
    except OSError:
        # Not empty, or the folder itself; whether the file is gone is what counts.
        return not os.path.lexists(path)
    return True
