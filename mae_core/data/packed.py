"""A folder of pictures decoded once into one memory-mapped file of uint8 pixels.

Decoding is most of a loader's work; packed pictures are read at memory speed by every
epoch and every later run. Two files make a pack: `pictures.u8`, all pixels one picture after
another, and `pictures.json`, which says where each begins. The second is written last, so a
pack without it is unfinished and made again.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mae_core.errors import DataError, ImageError
from mae_core.images import decode_image

_log = logging.getLogger(__name__)

_PIXELS = "pictures.u8"
_INDEX = "pictures.json"
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


@dataclass(frozen=True)
class PackedImages:
    """Pictures of their own sizes, in one memory-mapped array.

    Attributes:
        pixels: (total bytes,) uint8.
        offsets: (M,) where each picture begins.
        sizes: (M, 2) height and width of each picture.
        names: The files the pictures came from, relative to their folder.
        unreadable: The files that were skipped.
    """

    pixels: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    names: list[str]
    unreadable: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Picture `index` as (H, W, 3) uint8."""
        height, width = (int(side) for side in self.sizes[index])
        start = int(self.offsets[index])
        return self.pixels[start : start + height * width * 3].reshape(height, width, 3)


def pack_folder(
    folder: str | Path, cache: str | Path, *, short_side: int, max_unreadable: float
) -> PackedImages:
    """Open the pack of a folder, making it first where it is missing or out of date.

    Args:
        folder: Searched through all its subfolders.
        cache: Folder of the pack.
        short_side: Larger pictures are reduced to this shorter side, in pixels.
        max_unreadable: Largest share of unreadable files, 0..1.

    Raises:
        DataError: If there is no picture, or too many files are unreadable (the first are
            named).
    """
    paths = find_images(folder)
    cache = Path(cache)
    fingerprint = _fingerprint(paths, short_side)
    if not _is_current(cache, fingerprint):
        _write_pack(paths, Path(folder).expanduser(), cache, short_side, fingerprint)
    pack = _open_pack(cache)
    if not len(pack) or len(pack.unreadable) > max_unreadable * len(paths):
        # The pack is kept: mending the folder or raising the limit are both quick to try.
        raise DataError(
            f"{len(pack.unreadable)} of {len(paths)} files are unreadable, such as "
            f"{', '.join(pack.unreadable[:5])}; at most {max_unreadable:.0%} may be: remove "
            "them or raise data.max_unreadable"
        )
    return pack


def _fingerprint(paths: list[Path], short_side: int) -> str:
    """Changes whenever a file comes, goes, or is written again."""
    digest = hashlib.sha256(str(short_side).encode())
    for path in paths:
        status = path.stat()
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _is_current(cache: Path, fingerprint: str) -> bool:
    try:
        index = json.loads((cache / _INDEX).read_text())
    except (OSError, ValueError):
        return False
    return bool(index["fingerprint"] == fingerprint)


def _open_pack(cache: Path) -> PackedImages:
    index = json.loads((cache / _INDEX).read_text())
    sizes = np.array(index["sizes"], dtype=np.int64).reshape(-1, 2)
    lengths = sizes.prod(axis=1) * 3
    pixels = np.zeros(0, dtype=np.uint8)
    if len(sizes):
        pixels = np.memmap(cache / _PIXELS, dtype=np.uint8, mode="r")
    return PackedImages(
        pixels, np.cumsum(lengths) - lengths, sizes, index["names"], index["unreadable"]
    )


def _write_pack(
    paths: list[Path], root: Path, cache: Path, short_side: int, fingerprint: str
) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    (cache / _INDEX).unlink(missing_ok=True)
    partial = cache / (_PIXELS + ".partial")
    with partial.open("wb") as file:
        names, sizes, unreadable = _write_pixels(file, paths, root, short_side)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(cache / _PIXELS)
    index = {
        "fingerprint": fingerprint, "names": names, "sizes": sizes, "unreadable": unreadable,
    }  # fmt: skip
    partial_index = cache / (_INDEX + ".partial")
    partial_index.write_text(json.dumps(index))
    partial_index.replace(cache / _INDEX)


def _write_pixels(
    file: BinaryIO, paths: list[Path], root: Path, short_side: int
) -> tuple[list[str], list[tuple[int, int]], list[str]]:
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    unreadable: list[str] = []
    pictures = tqdm(_decoded(paths, short_side), total=len(paths), desc="packing", unit="img")
    for path, picture in zip(paths, pictures, strict=True):
        name = path.relative_to(root).as_posix()
        if isinstance(picture, ImageError):
            _log.warning("skipped %s: %s", name, picture)
            unreadable.append(name)
            continue
        file.write(picture.tobytes())
        names.append(name)
        sizes.append((picture.height, picture.width))
    return names, sizes, unreadable


def _decoded(paths: list[Path], short_side: int) -> Iterator[Image.Image | ImageError]:
    """Each picture or its error, in order, decoded by several threads (Pillow frees the GIL)."""

    def decode(path: Path) -> Image.Image | ImageError:
        try:
            return _reduce(decode_image(path), short_side)
        except ImageError as error:
            return error

    # Batches bound how many decoded pictures wait to be written.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), 256):
            yield from pool.map(decode, paths[start : start + 256])


def _reduce(picture: Image.Image, short_side: int) -> Image.Image:
    scale = short_side / min(picture.size)
    if scale >= 1:
        return picture
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    return picture.resize(size, Image.Resampling.BICUBIC)
