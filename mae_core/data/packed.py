"""A folder of pictures decoded once into one memory-mapped file of uint8 pixels.

Decoding is most of a loader's work; packed pictures are read at memory speed by every
epoch and every later run. Two files make a pack: `pictures.u8`, all pixels one picture after
another, and `pictures.json`, which says where each begins and has the SHA-256 of the pixels
and of the files that they came from.
The second is written last, so a pack without it is unfinished and made again. A third,
`pictures.checked`, remembers that the pixels had that hash, so that they are not read through
at every start.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mae_core.data.folders import check_unreadable, find_images, shown
from mae_core.data.reading import PictureReader
from mae_core.errors import DataError, ImageError
from mae_core.measurements import ValueRange

_log = logging.getLogger(__name__)

_PIXELS_FILE = "pictures.u8"
_INDEX_FILE = "pictures.json"
_CHECKED_FILE = "pictures.checked"

# Bytes hashed at once.
_BLOCK = 2**24

Pixels = NDArray[np.uint8]

# Ends the name of a file that is being written.
_PARTIAL = ".partial"


@dataclass(frozen=True)
class PackedImages:
    """Pictures of their own sizes, in one memory-mapped array.

    Attributes:
        pixels: (total bytes,) uint8.
        offsets: (M,) where each picture begins.
        sizes: (M, 2) height and width of each picture.
        names: The files the pictures came from, relative to their folder.
        unreadable: The files that were skipped.
        files: SHA-256 of each file; empty for a pack of version 0.1, which has none.
        channels: C of the pictures.
        bands: Which bands of the files they are; all if empty.
        value_range: What became 0 and 255 of values of more than 8 bits; None for photographs.
    """

    pixels: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    names: list[str]
    unreadable: list[str]
    files: list[str] = field(default_factory=list)
    channels: int = 3
    bands: tuple[int, ...] = ()
    value_range: ValueRange | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Picture `index` as (H, W, C) uint8."""
        height, width = (int(side) for side in self.sizes[index])
        start = int(self.offsets[index])
        pixels = self.pixels[start : start + height * width * self.channels]
        return pixels.reshape(height, width, self.channels)


def open_pack(folder: str | Path, memory: Path | None = None) -> PackedImages:
    """Open a pack, after checking its pixels' hash if that has not been done before.

    Args:
        folder: Folder of the pack.
        memory: Another folder that may remember that the check was passed, for a pack in a
            folder that cannot be written to.

    Raises:
        DataError: If there is no finished pack, it is empty, or its pixels are not those that
            were packed.
    """
    folder = Path(folder).expanduser()
    index = _read_index(folder)
    sizes = np.array(index["sizes"], dtype=np.int64).reshape(-1, 2)
    # Older packs have three channels and do not say so.
    channels = index.get("channels", 3)
    lengths = sizes.prod(axis=1) * channels
    path = folder / _PIXELS_FILE
    size = path.stat().st_size if path.is_file() else 0
    if size != lengths.sum():
        raise DataError(
            f"{str(path)!r} has {size:,} bytes instead of {lengths.sum():,}; copy the pack "
            "again, or make it again with mae pack"
        )
    # The packs that version 0.1 left in caches have no hash.
    if "sha256" in index:
        _check_hash(path, index["sha256"], [folder, *([memory] if memory else [])])
    pixels = np.zeros(0, dtype=np.uint8)
    if size:
        pixels = np.memmap(path, dtype=np.uint8, mode="r")
    value_range = index.get("value_range")
    return PackedImages(
        pixels, np.cumsum(lengths) - lengths, sizes,
        index["names"], index["unreadable"], index.get("files", []),
        channels, tuple(index.get("bands", ())),
        None if value_range is None else tuple((low, high) for low, high in value_range),
    )  # fmt: skip


def without_holdout(pack: PackedImages, holdout: str | Path) -> PackedImages:
    """A pack without the pictures of a folder, whatever their names: their files tell.

    Raises:
        DataError: If the folder is missing or has no pictures, or no picture is left.
    """
    held_out = {_file_hash(path) for path in find_images(holdout)} - {""}
    if not pack.files:
        _log.warning(
            "the pack is of an older version and does not say whether pictures of %r are in it: "
            "remove it and make it again with mae pack, and they are left out",
            str(holdout),
        )
        return pack
    kept = [i for i, digest in enumerate(pack.files) if digest not in held_out]
    if not kept:
        raise DataError(
            f"all pictures of the pack are in data.holdout {str(holdout)!r}; give a folder of "
            "other pictures, or some of them"
        )
    if len(kept) < len(pack):
        _log.info("%d pictures; skipped %d of data.holdout", len(kept), len(pack) - len(kept))
    return replace(
        pack, offsets=pack.offsets[kept], sizes=pack.sizes[kept],
        names=[pack.names[i] for i in kept], files=[pack.files[i] for i in kept],
    )  # fmt: skip


def _read_index(folder: Path) -> dict[str, Any]:
    """What a pack says of itself.

    Raises:
        DataError: If the folder holds no finished pack.
    """
    try:
        index = json.loads((folder / _INDEX_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{str(folder)!r} holds no finished pack, for its {_INDEX_FILE} cannot be read; make "
            f"one with mae pack PICTURES {folder}"
        ) from error
    if not isinstance(index, dict) or not {"sizes", "names", "unreadable"} <= set(index):
        raise DataError(f"{str(folder / _INDEX_FILE)!r} is not a pack's; make the pack again")
    return index


def _check_hash(path: Path, expected: str, memories: Sequence[Path]) -> None:
    passed = _identity(path, expected)
    if any(_remembered(memory) == passed for memory in memories):
        return
    found = _hash_of(path)
    if found != expected:
        raise DataError(
            f"the pixels of {str(path)!r} are not those that were packed (SHA-256 {found[:12]}… "
            f"instead of {expected[:12]}…); copy the pack again, or make it again with "
            "mae pack"
        )
    if not any(_remember_check(path, expected, memory) for memory in memories):
        _log.warning("%s cannot be written to: the pack is checked at each start", path.parent)


def _remember_check(path: Path, sha256: str, memory: Path) -> bool:
    """Note in the folder `memory` that the pixels at `path` have this hash, if that can be."""
    text = json.dumps(_identity(path, sha256))
    try:
        memory.mkdir(parents=True, exist_ok=True)
        (memory / _CHECKED_FILE).write_text(text, encoding="utf-8")
    except OSError:
        return False
    return True


def _identity(path: Path, sha256: str) -> dict[str, object]:
    """What changes when a file is written again, beside the hash it should have."""
    status = path.stat()
    return {"sha256": sha256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _remembered(memory: Path) -> object:
    try:
        return json.loads((memory / _CHECKED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _file_hash(path: Path) -> str:
    """Of a picture's file; empty where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()


def _hash_of(path: Path) -> str:
    digest = hashlib.sha256()
    size = path.stat().st_size
    with (
        path.open("rb") as file,
        tqdm(total=size, desc="checking", unit="B", unit_scale=True) as bar,
    ):
        while block := file.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def pack_folder(
    folder: str | Path,
    cache: str | Path,
    *,
    reader: PictureReader,
    max_unreadable: float,
    holdout: str | Path = "",
) -> PackedImages:
    """Open the pack of a folder, making it first where it is missing, damaged or out of date.

    Args:
        folder: Searched through all its subfolders.
        cache: Folder of the pack.
        reader: Reads the pictures.
        max_unreadable: Largest share of unreadable files, 0..1.
        holdout: As of `find_images`.

    Raises:
        DataError: If there is no picture, too many files are unreadable (the first are named),
            or the pack cannot be written.
    """
    paths = find_images(folder, holdout)
    cache = Path(cache).expanduser()
    fingerprint = _fingerprint(paths, reader)
    pack = _current_pack(cache, fingerprint)
    if pack is None:
        _make_pack(paths, Path(folder).expanduser(), cache, reader, fingerprint)
        pack = open_pack(cache)
    # The pack is kept: mending the folder or raising the limit are both quick to try.
    check_unreadable(pack.unreadable, len(paths), max_unreadable)
    return pack


def _fingerprint(paths: list[Path], reader: PictureReader) -> str:
    """Changes whenever a file comes, goes, is written again, or is read in another way."""
    # Packs of photographs from before there were other readers stay what they are.
    plain = reader == PictureReader(short_side=reader.short_side)
    digest = hashlib.sha256(str(reader.short_side if plain else reader).encode())
    for path in paths:
        try:
            status = path.stat()
            state = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:  # a link that leads nowhere turns out unreadable later
            state = ""
        digest.update(os.fsencode(f"{path}\0{state}\n"))
    return digest.hexdigest()


def _current_pack(cache: Path, fingerprint: str) -> PackedImages | None:
    """The pack in a cache, or none where one has to be made."""
    if not (cache / _INDEX_FILE).exists():
        return None
    try:
        if _read_index(cache).get("fingerprint") != fingerprint:
            return None
        return open_pack(cache)
    except DataError as error:
        _log.warning("packing again: %s", error)
        return None


def _make_pack(
    paths: list[Path], root: Path, cache: Path, reader: PictureReader, fingerprint: str
) -> None:
    partial = cache / (_PIXELS_FILE + _PARTIAL)
    try:
        _write_pack(paths, root, cache, reader, fingerprint, partial)
    except OSError as error:
        # Half a pack is of no use, and a full disk is in everybody's way.
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise DataError(
            f"the pictures cannot be packed into {str(cache)!r}: {error.strerror or error}; free "
            "space, choose another folder (data.cache), pack them smaller (short_side), or take "
            "data.decode=epoch, which needs no space"
        ) from error


def _write_pack(
    paths: list[Path],
    root: Path,
    cache: Path,
    reader: PictureReader,
    fingerprint: str,
    partial: Path,
) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    (cache / _INDEX_FILE).unlink(missing_ok=True)
    with partial.open("wb") as file:
        index = _write_pixels(file, paths, root, reader)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(cache / _PIXELS_FILE)
    _remember_check(cache / _PIXELS_FILE, index["sha256"], cache)
    partial_index = cache / (_INDEX_FILE + _PARTIAL)
    partial_index.write_text(json.dumps({"fingerprint": fingerprint, **index}), encoding="utf-8")
    partial_index.replace(cache / _INDEX_FILE)


def _write_pixels(
    file: BinaryIO, paths: list[Path], root: Path, reader: PictureReader
) -> dict[str, Any]:
    """Write all readable pictures; returns their part of the index."""
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    files: list[str] = []
    unreadable: list[str] = []
    digest = hashlib.sha256()
    pictures = tqdm(_decoded(paths, reader), total=len(paths), desc="packing", unit="img")
    for path, (picture, file_hash) in zip(paths, pictures, strict=True):
        name = path.relative_to(root).as_posix()
        if isinstance(picture, ImageError):
            _log.warning("skipped %s: %s", shown(name), picture)
            unreadable.append(name)
            continue
        pixels = picture.tobytes()
        digest.update(pixels)
        file.write(pixels)
        names.append(name)
        sizes.append(picture.shape[:2])
        files.append(file_hash)
    return {
        "names": names, "sizes": sizes, "files": files, "unreadable": unreadable,
        "sha256": digest.hexdigest(), "channels": reader.channels, "bands": reader.bands,
        "value_range": None if isinstance(reader.value_range, str) else reader.value_range,
    }  # fmt: skip


def _decoded(paths: list[Path], reader: PictureReader) -> Iterator[tuple[Pixels | ImageError, str]]:
    """Each picture or its error, and its file's hash, in order; several threads decode."""

    def decode(path: Path) -> tuple[Pixels | ImageError, str]:
        try:
            return reader(path), _file_hash(path)
        except ImageError as error:
            return error, ""

    # Batches bound how many decoded pictures wait to be written.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), 256):
            yield from pool.map(decode, paths[start : start + 256])
