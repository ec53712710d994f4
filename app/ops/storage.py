"""The folder of uploads and panels, kept below a bound.

Gradio keeps every upload and panel as `FOLDER/<64 hexadecimal digits>/<name>`, and an upload that
is not complete as `FOLDER/tmp…`. It deletes by age only, and nothing of an upload that was cut
off; so `delete_cache` of the page is not set, and this is what deletes.

The age of a file goes by its own time or its folder's, whichever is later: a panel that is shown
again sets its folder's, as its own time is part of its ETag.
"""

import contextlib
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

from mae_core import MAEError

# Nothing is taken from under a visitor who has just sent it, unless the folder overflows.
YOUNG_SECONDS = 60
MAX_AGE_SECONDS = 3600

# What is left alone of a disk that others use as well.
RESERVED_BYTES = 256 * 2**20

_SWEEP_SECONDS = 10.0
# Of the time, at most; a folder of very many files is swept less often.
_SWEEP_SHARE = 0.05

# Whatever has another name is not ours.
_KEPT_FOLDER = re.compile(r"[0-9a-f]{64}")
_PARTIAL = re.compile(r"tmp[a-z0-9_]{8}")

_logger = logging.getLogger(__name__)


class StorageError(MAEError):
    """There is no room for uploads and panels."""

    code = "storage"


class CacheFolder:
    """Deletes the oldest uploads and panels of a folder. Thread-safe.

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
            path: Where Gradio keeps files.
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
        self._thread = threading.Thread(target=self._sweep_on, name="storage", daemon=True)

    @property
    def bytes(self) -> int:
        """Sum of the sizes of the files at the last sweep."""
        return self._bytes

    def sweep(self) -> None:
        """Delete files an hour old, and the oldest until the rest is below the bound.

        Files younger than a minute stay, unless the folder has twice its bound.
        """
        files = sorted(_files_of(self.path))
        now = time.time()
        total, kept, deleted = sum(size for _, size, _ in files), self._kept(), []
        for touched, size, path in files:
            # The clock was set back: the file's age is not known.
            age = now - touched if touched <= now else MAX_AGE_SECONDS
            spared = age < YOUNG_SECONDS and total <= 2 * self._max_bytes
            needed = age < MAX_AGE_SECONDS and total <= self._max_bytes
            if not (spared or needed or path in kept) and _delete(path):
                total -= size
                deleted.append(path)
        self._bytes = total
        if deleted:
            self._forget(deleted)
        for path in kept:
            # Others delete what was not read for days, too. Its time of change is part of its ETag.
            with suppress(OSError):
                os.utime(path, ns=(time.time_ns(), os.stat(path).st_mtime_ns))

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
        self._thread.start()

    def stop(self) -> None:
        """Sweep no more."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

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


def _files_of(folder: Path) -> Iterator[tuple[float, int, str]]:
    """(time, bytes, path) of each upload and panel; links are not followed, and files may go."""
    for entry in _entries(folder):
        files, used = [entry] if _PARTIAL.fullmatch(entry.name) else [], 0.0
        with contextlib.suppress(FileNotFoundError):
            if entry.is_dir(follow_symlinks=False) and _KEPT_FOLDER.fullmatch(entry.name):
                files, used = _entries(entry.path), entry.stat(follow_symlinks=False).st_mtime
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                if file.is_file(follow_symlinks=False):
                    stat = file.stat(follow_symlinks=False)
                    yield max(stat.st_mtime, used), stat.st_size, file.path


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return list(entries)
    return []


def _delete(path: str) -> bool:
    """Delete a file and its folder, if that is empty then; whether the file is gone."""
    with contextlib.suppress(OSError):
        os.unlink(path)
        os.rmdir(os.path.dirname(path))
    return not os.path.lexists(path)
