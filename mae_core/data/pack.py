"""A folder of images decoded once into one memory-mapped file of uint8 pixels.

Decoding is most of a loader's work; a pack is read at the speed of memory. It is a folder of
`pictures.u8`, all pixels, one image after another; `pictures.json`, the index, with the SHA-256 of
the pixels and of each source file, written last, so a pack without it is unfinished; and
`pictures.checked`, a note that the pixels had their hash.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import filelock
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mae_core.data.datasets import (
    ImageReader,
    Sample,
    check_unreadable,
    find_classes,
    find_images,
    shown,
)
from mae_core.errors import DataError, ImageError
from mae_core.measurements import ValueRange

_log = logging.getLogger(__name__)

_PIXELS_FILE = "pictures.u8"
_INDEX_FILE = "pictures.json"
_CHECKED_FILE = "pictures.checked"

# Images decoded before they are written, which bounds memory.
_DECODED_AT_ONCE = 256


@dataclass
class PackedImages:
    """M images of their own sizes in one memory-mapped array.

    Attributes:
        pixels: (total bytes,) uint8.
        offsets: (M,) first byte of each image.
        sizes: (M, 2) height and width of each image.
        names: Source files, relative to their folder.
        unreadable: Source files that were skipped.
        files: SHA-256 of each source file; empty for a pack of version 0.1.
        channels, bands, value_range: As of the `ImageReader`; no range for files of 8 bits.
        fingerprint: Of the source files' paths, sizes and times, and of the reader.
        labels: (M,) number of the class of each image, or -1.
        classes: Names of the classes, as of the folder that was packed.
    """

    pixels: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    names: list[str]
    unreadable: list[str]
    files: Sequence[str] = ()
    channels: int = 3
    bands: tuple[int, ...] = ()
    value_range: ValueRange | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        labels, self.classes = find_classes([*self.names, *self.unreadable])
        self.labels = labels[: len(self)]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Image `index` as (H, W, C) uint8, and its label or -1."""
        height, width = (int(side) for side in self.sizes[index])
        start = int(self.offsets[index])
        pixels = self.pixels[start : start + height * width * self.channels]
        return pixels.reshape(height, width, self.channels), int(self.labels[index])


def open_pack(folder: str | Path, memory: Path | None = None) -> PackedImages:
    """Open a pack, and check the hash of its pixels unless that was done before.

    The note of a passed check goes to the folder `memory` if that of the pack is read-only.
    """
    folder = Path(folder).expanduser()
    try:
        index = json.loads((folder / _INDEX_FILE).read_text(encoding="utf-8"))
        sizes = np.array(index["sizes"], dtype=np.int64).reshape(-1, 2)
        names, unreadable = index["names"], index["unreadable"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{str(folder)!r} holds no finished pack, for its {_INDEX_FILE} cannot be read; make "
            f"one with mae pack IMAGES {folder}"
        ) from error
    # Packs of earlier versions lack some of the other fields.
    channels, value_range = index.get("channels", 3), index.get("value_range")
    lengths = sizes.prod(axis=1) * channels
    path = folder / _PIXELS_FILE
    size = path.stat().st_size if path.is_file() else 0
    if size != lengths.sum():
        raise DataError(
            f"{str(path)!r} has {size:,} bytes instead of {lengths.sum():,}; copy the pack "
            "again, or make it again with mae pack"
        )
    if "sha256" in index:
        _verify(path, index["sha256"], memory or folder)
    return PackedImages(
        np.memmap(path, np.uint8, "r") if size else np.zeros(0, dtype=np.uint8),
        np.cumsum(lengths) - lengths, sizes, names, unreadable, index.get("files", []),
        channels, tuple(index.get("bands", ())),
        None if value_range is None else tuple((low, high) for low, high in value_range),
        index.get("fingerprint", ""),
    )  # fmt: skip


def _verify(path: Path, sha256: str, memory: Path) -> None:
    """Check the hash of the pixels, unless a note beside them or in `memory` says it was right."""
    note, places = _note(path, sha256), (path.with_name(_CHECKED_FILE), memory / _CHECKED_FILE)
    for place in places:
        with contextlib.suppress(OSError, ValueError):
            if place.read_text(encoding="utf-8") == note:
                return
    _log.info("checking the pixels of %s", path)
    if _sha256(path) != sha256:
        raise DataError(
            f"the pixels of {str(path)!r} are not those that were packed; copy the pack again, or "
            "make it again with mae pack"
        )
    for place in places:
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(note, encoding="utf-8")
            return
    _log.warning("%s cannot be written to: the pack is checked at each start", path.parent)


def _note(path: Path, sha256: str) -> str:
    """Text that changes whenever the file is written again."""
    status = path.stat()
    return json.dumps({"sha256": sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns})


def _sha256(path: Path) -> str:
    """Hash of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def without_holdout(pack: PackedImages, holdout: str | Path) -> PackedImages:
    """Leave out the images of a folder, told by the hashes of their files."""
    held_out = {_sha256(path) for path in find_images(holdout)} - {""}
    kept = [i for i, digest in enumerate(pack.files) if digest not in held_out]
    if not kept:
        raise DataError(
            f"no image of the pack is known to be outside data.holdout {str(holdout)!r}; give a "
            "folder of other images, or make a pack of an older version again with mae pack"
        )
    _log.info("%d images; skipped %d of data.holdout", len(kept), len(pack) - len(kept))
    return replace(
        pack, offsets=pack.offsets[kept], sizes=pack.sizes[kept],
        names=[pack.names[i] for i in kept], files=[pack.files[i] for i in kept],
    )  # fmt: skip


def pack_folder(
    folder: str | Path,
    cache: str | Path,
    reader: ImageReader,
    max_unreadable: float,
    holdout: str = "",
) -> PackedImages:
    """Open the pack of a folder; make it first if it is missing, damaged or out of date.

    The pack lies in `cache`; `max_unreadable` is a share of the files, 0..1.
    """
    paths = find_images(folder, holdout)
    cache = Path(cache).expanduser()
    fingerprint = _fingerprint(paths, reader)
    pack = _pack_of(cache, fingerprint)
    if pack is None:
        with _packing(cache):
            # Another process may have made it meanwhile.
            pack = _pack_of(cache, fingerprint)
            if pack is None:
                _make_pack(paths, Path(folder).expanduser(), cache, reader, fingerprint)
                pack = open_pack(cache)
    # The pack stays even if this fails: both remedies are then quick to try.
    check_unreadable(len(pack.unreadable), len(paths), max_unreadable, pack.unreadable)
    return pack


def _pack_of(cache: Path, fingerprint: str) -> PackedImages | None:
    """The pack of that fingerprint in `cache`, if there is a whole one."""
    if not (cache / _INDEX_FILE).exists():
        return None
    try:
        pack = open_pack(cache)
    except DataError as error:
        _log.warning("packing again: %s", error)
        return None
    return pack if pack.fingerprint == fingerprint else None


@contextlib.contextmanager
def _packing(cache: Path) -> Iterator[None]:
    """Wait until no other process packs into `cache`."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(cache / ".lock")
        try:
            held = lock.acquire(timeout=0)
        except filelock.Timeout:
            _log.info("waiting for another process that packs into %s", cache)
            held = lock.acquire()
    except OSError as error:
        raise _not_packed(cache, error) from error
    with held:
        yield


def _not_packed(cache: Path, error: OSError) -> DataError:
    return DataError(
        f"the images cannot be packed into {str(cache)!r}: {error.strerror or error}; free "
        "space, choose another folder (data.cache), pack them smaller (short_side), or take "
        "data.decode=epoch, which needs no space"
    )


def _fingerprint(paths: Sequence[Path], reader: ImageReader) -> str:
    """Changes whenever a file comes, goes, is written again, or is read in another way."""
    # The texts of earlier versions, for their packs to stay valid.
    how = str(reader.short_side)
    if reader != ImageReader(short_side=reader.short_side):
        how = repr(reader).replace("ImageReader", "PictureReader", 1)
    digest = hashlib.sha256(how.encode())
    for path in paths:
        try:
            status = path.stat()
            state = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:  # a broken link; it is unreadable later
            state = ""
        digest.update(os.fsencode(f"{path}\0{state}\n"))
    return digest.hexdigest()


def _make_pack(
    paths: Sequence[Path], root: Path, cache: Path, reader: ImageReader, fingerprint: str
) -> None:
    names, sizes, files, unreadable = list[str](), list[tuple[int, ...]](), list[str](), list[str]()
    digest = hashlib.sha256()
    pixels, index = cache / _PIXELS_FILE, cache / _INDEX_FILE
    partial = cache / f"{_PIXELS_FILE}.partial"
    try:
        index.unlink(missing_ok=True)
        with partial.open("wb") as file:
            decoded = tqdm(_decoded(paths, reader), total=len(paths), desc="packing", unit="img")
            for path, (image, file_hash) in zip(paths, decoded, strict=True):
                name = path.relative_to(root).as_posix()
                if isinstance(image, ImageError):
                    _log.warning("skipped %s: %s", shown(name), image)
                    unreadable.append(name)
                    continue
                content = image.tobytes()
                digest.update(content)
                file.write(content)
                names.append(name)
                sizes.append(image.shape[:2])
                files.append(file_hash)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(pixels)
        note = _note(pixels, digest.hexdigest())
        (cache / _CHECKED_FILE).write_text(note, encoding="utf-8")
        value_range = None if isinstance(reader.value_range, str) else reader.value_range
        content_of_index = {
            "fingerprint": fingerprint, "names": names, "sizes": sizes, "files": files,
            "unreadable": unreadable, "sha256": digest.hexdigest(),
            "channels": reader.channels, "bands": reader.bands, "value_range": value_range,
        }  # fmt: skip
        partial_index = cache / f"{_INDEX_FILE}.partial"
        partial_index.write_text(json.dumps(content_of_index), encoding="utf-8")
        partial_index.replace(index)
    except OSError as error:
        # Half a pack is of no use, and fills the disk.
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise _not_packed(cache, error) from error


def _decoded(
    paths: Sequence[Path], reader: ImageReader
) -> Iterator[tuple[NDArray[np.uint8] | ImageError, str]]:
    """Each image or its error, and the hash of its file, in order; several threads decode."""

    def decode(path: Path) -> tuple[NDArray[np.uint8] | ImageError, str]:
        try:
            return reader(path), _sha256(path)
        except ImageError as error:
            return error, ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), _DECODED_AT_ONCE):
            yield from pool.map(decode, paths[start : start + _DECODED_AT_ONCE])
