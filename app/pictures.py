"""The pictures that requests are about: known by what is in their files, read when it is time.

A request that waits holds the place of a file, not its bytes, so a long line takes no memory. What
was read and decoded last is kept for the next move of a slider.
"""

import hashlib
import threading
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from cachetools import LRUCache, cachedmethod
from PIL import Image

from app.decoding import decode_upload
from mae_core.measurements import RangeSpec

# A decoded picture takes at most 12 MiB.
_DECODED_BYTES = 96 * 2**20

# Files whose digest is remembered.
_MOST_FILES = 4096

_READ_BYTES = 2**20


class PictureSource(Protocol):
    """Where a picture's bytes come from; nobody has looked into them."""

    def identity(self) -> Hashable:
        """What differs whenever the bytes may differ; None where only the bytes tell."""

    def digest(self) -> str:
        """The SHA-256 of the bytes, in hexadecimal digits."""

    def read(self) -> bytes:
        """The bytes."""


@dataclass(frozen=True)
class PictureFile:
    """A picture file on this machine's disk."""

    path: Path

    def identity(self) -> Hashable:
        """The file's place, time, size and number."""
        status = self.path.stat()
        return self.path, status.st_mtime_ns, status.st_size, status.st_ino

    def digest(self) -> str:
        """The SHA-256 of the file, which is never in memory as a whole."""
        with self.path.open("rb") as file:
            return _digest_of(file)

    def read(self) -> bytes:
        """The file's bytes."""
        return self.path.read_bytes()


@dataclass(frozen=True)
class PictureBytes:
    """A picture file that is in memory."""

    data: bytes

    def identity(self) -> None:
        """Nothing but the bytes."""

    def digest(self) -> str:
        """The SHA-256 of the bytes."""
        return hashlib.sha256(self.data).hexdigest()

    def read(self) -> bytes:
        """The bytes."""
        return self.data


class Pictures:
    """Digests and decoded pictures, those used last. Safe to share between threads."""

    def __init__(self) -> None:
        """Begin with none."""
        self._lock = threading.Lock()
        self._digests: LRUCache[Hashable, str] = LRUCache(_MOST_FILES)
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
        identity = source.identity()
        return source.digest() if identity is None else self._digest_by(identity, source)

    @cachedmethod(
        lambda self: self._digests,
        key=lambda self, identity, source: identity,
        lock=lambda self: self._lock,
    )
    def _digest_by(self, identity: Hashable, source: PictureSource) -> str:
        return source.digest()

    @cachedmethod(
        lambda self: self._decoded,
        key=lambda self, source, digest, value_range="auto": (digest, value_range),
        lock=lambda self: self._lock,
    )
    def decoded(
        self, source: PictureSource, digest: str, value_range: RangeSpec = "auto"
    ) -> Image.Image:
        """A picture, of which `digest` was said before.

        Args:
            source: Where its bytes come from.
            digest: Their SHA-256.
            value_range: Of values of more than 8 bits; see `decode_upload`.

        Raises:
            FileNotFoundError: If the file is gone, or is another by now.
            ImageError: If it cannot be used.
        """
        data = source.read()
        if hashlib.sha256(data).hexdigest() != digest:
            raise FileNotFoundError("the picture was replaced")
        return decode_upload(data, value_range=value_range)


def bytes_of(picture: Image.Image) -> int:
    """What a picture takes in memory, where three colours are kept in four bytes."""
    bands = len(picture.getbands())
    return picture.width * picture.height * (1 if bands == 1 else 4)


def _digest_of(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while part := file.read(_READ_BYTES):
        digest.update(part)
    return digest.hexdigest()
