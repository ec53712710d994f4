"""Repositories of the hub that visitors had fetched: which they are, and how much disk they take.

They lie in huggingface_hub's cache, beside those that the host fetched by an account of its own. A
file in a repository's folder says that it was begun for visitors, and so without an account: only
these are opened for visitors, only these count, and only these are ever removed. The mark stays
when the page is started again.
"""

import os
import shutil
import stat
from collections.abc import Collection
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from mae_core.errors import DownloadError

# Its time is that of the last use.
_MARK = ".fetched-for-visitors"


class VisitorRepositories:
    """What visitors had fetched, up to a number of bytes on the disk."""

    def __init__(self, max_bytes: int) -> None:
        """Bound what visitors may have fetched.

        Args:
            max_bytes: On the disk, all repositories together, what was left half-way too.
        """
        self._max_bytes = max_bytes

    def holds(self, name: str) -> bool:
        """Whether a repository was fetched, or begun, for visitors."""
        return (_folder(name) / _MARK).is_file()

    def begin(self, name: str) -> None:
        """Note that a repository is fetched for visitors from now on, or used by one.

        Raises:
            DownloadError: If it is there already, and not for visitors; or if nothing can be
                written.
        """
        folder = _folder(name)
        if folder.exists() and not self.holds(name):
            # By the same words, whatever it is that only the host may read.
            raise DownloadError(
                f"{name} is not fetched for visitors of this page; choose a model that it lists"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _MARK).touch()
        except OSError as error:
            raise DownloadError(f"{name} cannot be stored ({error.strerror})") from error

    def make_room(self, name: str, size: int, kept: Collection[str]) -> None:
        """Remove repositories that were not used for longest until another one fits.

        Args:
            name: The one that is to come.
            size: Its bytes.
            kept: Those that are not removed.

        Raises:
            DownloadError: If it does not fit all the same.
        """
        if size > self._max_bytes:
            raise DownloadError(
                f"{name} takes {size / 10**9:.2g} GB, and this page keeps at most "
                f"{self._max_bytes / 10**9:.2g} GB of repositories; choose a smaller one"
            )
        marks = Path(constants.HF_HUB_CACHE).glob(f"models--*/{_MARK}")
        others = [mark.parent for mark in marks if mark.parent != _folder(name)]
        sizes = {folder: _bytes_on_disk(folder) for folder in others}
        stay = {_folder(other) for other in kept}
        total = size + sum(sizes.values())
        for folder in sorted(sizes.keys() - stay, key=_last_use):
            if total <= self._max_bytes:
                return
            shutil.rmtree(folder, ignore_errors=True)
            total -= sizes[folder]
        if total > self._max_bytes:
            raise DownloadError(
                f"there is no room for {name} beside the repositories that are in use; try again "
                "later, or choose a model that is here"
            )

    def drop_empty(self, name: str) -> None:
        """Forget a repository of which nothing came."""
        folder = _folder(name)
        if self.holds(name) and not _bytes_on_disk(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _folder(name: str) -> Path:
    # The layout is part of huggingface_hub's documentation.
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")


def _last_use(folder: Path) -> float:
    try:
        return (folder / _MARK).stat().st_mtime
    except OSError:  # another process removed it
        return 0.0


def _bytes_on_disk(folder: Path) -> int:
    """Of whole and partial files; links do not count."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                status = (Path(path) / name).lstat()
            except OSError:  # renamed or removed meanwhile
                continue
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total
