"""How the pictures of a data set become arrays of a model's channels."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mae_core.errors import DataError, ImageError
from mae_core.images import open_image, read_raster, resized, size_of
from mae_core.measurements import RangeSpec, ValueRange, find_value_range

# Pictures that are looked at to find the range of a data set.
SAMPLED = 64

Item = TypeVar("Item")


@dataclass(frozen=True)
class PictureReader:
    """Reads picture files as (H, W, C) uint8.

    Attributes:
        channels: C of the model.
        bands: Numbers of the bands, from 1, that are the channels; all if empty.
        value_range: Of values of more than 8 bits; see `open_image`.
        short_side: Larger pictures are reduced to this shorter side, in pixels; 0 for none.
    """

    channels: int = 3
    bands: tuple[int, ...] = ()
    value_range: RangeSpec = "auto"
    short_side: int = 256

    def __call__(self, source: Path | bytes) -> NDArray[np.uint8]:
        """One picture.

        Raises:
            ImageError: If it cannot be used.
        """
        picture = open_image(source, self.channels, bands=self.bands, value_range=self.value_range)
        width, height = size_of(picture)
        scale = self.short_side / min(width, height)
        if 0 < scale < 1:
            size = max(round(width * scale), 1), max(round(height * scale), 1)
            picture = resized(picture, size)
        return np.atleast_3d(np.asarray(picture))

    def find_range(self, sources: Sequence[Path | bytes]) -> ValueRange | None:
        """The common range of those pictures that are measurements; None if none is.

        Of many pictures some are looked at, evenly spaced.

        Raises:
            DataError: If none of the pictures can be read.
        """
        measured = self._measured(sources)
        first = next(measured, None)
        if first is None:
            return None
        return find_value_range(itertools.chain([first], measured), self.value_range)

    def _measured(self, sources: Sequence[Path | bytes]) -> Iterator[NDArray[Any]]:
        """The values of each picture that is a measurement."""
        readable, failure = False, None
        for source in some_of(sources):
            try:
                raster = read_raster(source, self.channels, self.bands)
                values = None if raster is None else raster.select(self.channels, self.bands)
            except ImageError as error:
                failure = error
                continue
            readable = True
            if values is not None and values.dtype != np.uint8:
                yield values
        if failure and not readable:
            raise DataError(f"no picture that was tried can be read: {failure}")

    def readable(self, sources: Sequence[Path | bytes]) -> Iterator[NDArray[np.uint8]]:
        """Those pictures that can be read; of many some, evenly spaced."""
        for source in some_of(sources):
            with contextlib.suppress(ImageError):
                yield self(source)


def channel_statistics(
    pictures: Iterable[NDArray[np.uint8]],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel over all pixels of (H, W, C) pictures, in 0..1.

    Raises:
        DataError: If there are no pictures.
    """
    sums: list[NDArray[np.float64]] = []
    for picture in pictures:
        pixels = picture.reshape(-1, picture.shape[2]) / 255
        count = np.full(pixels.shape[1], len(pixels))
        sums.append(np.stack([count, pixels.sum(axis=0), np.square(pixels).sum(axis=0)]))
    if not sums:
        raise DataError("no picture can be read to measure the channels' means; check the files")
    count, total, squares = np.sum(sums, axis=0)
    mean = total / count
    # A flat channel has no deviation to divide by.
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-4))
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())


def some_of(many: Sequence[Item]) -> Sequence[Item]:
    """At most `SAMPLED` of them, evenly spaced."""
    return many[:: -(-len(many) // SAMPLED) or 1]
