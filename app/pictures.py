"""The pictures that requests are about: known by what is in their files, read when it is time.

A request that waits holds the place of a file, not its bytes, so a long line takes no memory. What
was read and decoded last is kept for the next move of a slider.
"""

import threading
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cachetools import LRUCache, cachedmethod
from PIL import Image

from app.decoding import decode_upload
from mae_core.errors import ImageError
from mae_core.measurements import RangeSpec
from mae_core.settings import digest_of

# A decoded picture takes at most 12 MiB.
_DECODED_BYTES = 48 * 2**20

# Files whose digest is remembered.
_MOST_FILES = 4096


@dataclass(frozen=True)
class PictureFile:
    """A picture file on this machine's disk, which nobody has looked into."""

    path: Path


# A file, or the bytes of one.
PictureSource: TypeAlias = PictureFile | bytes


class Pictures:
    """Digests and decoded pictures, those used last. Safe to share between threads."""

    def __init__(self) -> None:
        """Begin with none."""
        self._lock = threading.Lock()
        self._digests: LRUCache[Hashable, str] = LRUCache(_MOST_FILES)
        self._refused: LRUCache[Hashable, tuple[str, str]] = LRUCache(_MOST_FILES)
        self._decoded: LRUCache[Hashable, Image.Image] = LRUCache(_DECODED_BYTES, bytes_of)

    @property
    def bytes(self) -> float:
        """What the decoded pictures take."""
        return self._decoded.currsize

    def digest(self, source: PictureSource) -> str:
        """What a picture's file is known by.

        Raises:
            FileNotFoundError: If the file is gone.
        """
        if not isinstance(source, PictureFile):
            return digest_of(source)
        status = source.path.stat()
        changes = source.path, status.st_mtime_ns, status.st_size, status.st_ino
        return self._digest_by(changes, source)

    @cachedmethod(
        lambda self: self._digests,
        key=lambda self, changes, source: changes,
        lock=lambda self: self._lock,
    )
    def _digest_by(self, changes: Hashable, source: PictureFile) -> str:
        return digest_of(source.path)

    @cachedmethod(
        lambda self: self._decoded,
        key=lambda self, source, digest, value_range="auto", drawing=False: (
            digest, value_range, drawing,
        ),
        lock=lambda self: self._lock,
    )  # fmt: skip
    def decoded(
        self, source: PictureSource, digest: str, value_range: RangeSpec = "auto",
        drawing: bool = False,
    ) -> Image.Image:  # fmt: skip
        """A picture, of which `digest` was said before.

        Args:
            source: Where its bytes come from.
            digest: Their SHA-256.
            value_range: Of values of more than 8 bits; see `decode_upload`.
            drawing: Whether it is a drawn mask.

        Raises:
            FileNotFoundError: If the file is gone, or is another by now.
            ImageError: If it cannot be used; a file that failed is not decoded again.
        """
        key = digest, value_range, drawing
        with self._lock:
            refused = self._refused.get(key)
        if refused is not None:
            raise ImageError(refused[0], code=refused[1])
        data = source.path.read_bytes() if isinstance(source, PictureFile) else source
        if digest_of(data) != digest:
            raise FileNotFoundError("the picture was replaced")
        try:
            return decode_upload(data, value_range=value_range, drawing=drawing)
        except ImageError as error:
            with self._lock:
                self._refused[key] = str(error), error.code
            raise


def bytes_of(picture: Image.Image) -> int:
    """What a picture takes in memory, where three colours are kept in four bytes."""
    bands = len(picture.getbands())
    return picture.width * picture.height * (1 if bands == 1 else 4)
