"""Pictures that are streamed by the Hugging Face `datasets` package: hub data sets and shards.

The pictures of a stream come in an order that depends on the seed, the epoch and the number of
processes, and on nothing else: every process gets a part of its own (`split_dataset_by_node`),
shuffled shard by shard and then within a buffer. Threads decode, so their number changes
nothing. A resumed run skips what was used: nothing is decoded then, but everything up to
there in the epoch is read again.

Files come from strangers, and go through `decode_image` only. A picture that cannot be read or
fetched is counted, and the next one takes its place as well as its own.
"""

import importlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae_core.data.folders import decode_reduced
from mae_core.errors import DataError, ImageError

_log = logging.getLogger(__name__)

# The version that was tried; requirements-data.txt pins it.
DATASETS_VERSION = "5.2.0"

# Examples, not decoded, that the next one is drawn from.
_SHUFFLE_BUFFER = 1000

# Pictures that are decoded ahead by each thread.
_DECODE_AHEAD = 8

# A stream's length is not known: its share of unreadable pictures is taken of at least so many.
_MIN_SEEN = 1000

Pixels = NDArray[np.uint8]


def import_datasets() -> Any:
    """The `datasets` package.

    Raises:
        DataError: If it is not installed.
    """
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            "data.hub and data.shards need a package that is not installed: pip install "
            f"datasets=={DATASETS_VERSION}"
        ) from error


class PictureStream:
    """Pictures that come in an order of their own, without end."""

    def __init__(
        self,
        examples: Any,
        column: str,
        *,
        name: str,
        cache: Path,
        short_side: int,
        max_unreadable: float,
    ) -> None:
        """Stream one column of a data set.

        Args:
            examples: A `datasets.IterableDataset` that does not decode pictures.
            column: Where the pictures are.
            name: What the data set is called in messages.
            cache: Folder that remembers how long the epochs were, which spares a resumed run
                reading all of them again.
            short_side: Larger pictures are reduced to this shorter side, in pixels; 0 for none.
            max_unreadable: Largest share of unreadable pictures, 0..1.
        """
        self._examples = examples
        self._column = column
        self._name = name
        self._cache = cache
        self._short_side = short_side
        self._max_unreadable = max_unreadable
        self._seen = self._unreadable = 0

    def pictures(
        self,
        first: int,
        *,
        seed: int,
        rank: int,
        world_size: int,
        pool: ThreadPoolExecutor,
        workers: int,
    ) -> Iterator[Pixels]:
        """This process's pictures from number `first` on, epoch after epoch, without end.

        Args:
            first: Pictures that this process used already.
            seed: Of the order.
            rank: Of this process.
            world_size: Processes in all.
            pool: Threads that decode.
            workers: How many they are.

        Yields:
            (H, W, 3) uint8.

        Raises:
            DataError: If the stream breaks off, is empty for this process, or too many of its
                pictures are unreadable.
        """
        encoded = self._encoded(first, seed, rank, world_size)
        missing = 0
        for picture in _mapped_ahead(self._decode, encoded, pool, _DECODE_AHEAD * workers):
            self._seen += 1
            if isinstance(picture, ImageError):
                self._count_unreadable(picture)
                missing += 1
                continue
            # Each sample keeps its number, so that skipping needs no decoding.
            for _ in range(missing + 1):
                yield picture
            missing = 0

    def _encoded(self, first: int, seed: int, rank: int, world_size: int) -> Iterator[Any]:
        """The column's values from number `first` on."""
        lengths = _EpochLengths(self._cache, f"{self._name}, seed {seed}", rank, world_size)
        epoch, skipped = lengths.place_of(first)
        if skipped:
            _log.info("skipping %d pictures of %s that were used already", skipped, self._name)
        examples = self._examples.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
        split = importlib.import_module("datasets.distributed").split_dataset_by_node
        examples = split(examples, rank=rank, world_size=world_size)
        while True:
            examples.set_epoch(epoch)
            length = 0
            for example in self._reported(examples):
                length += 1
                if length > skipped:
                    yield example.get(self._column)
            if not length:
                raise DataError(
                    f"{self._name} has no picture for process {rank} of {world_size}; use fewer "
                    "processes or another data set"
                )
            lengths.add(epoch, length)
            epoch, skipped = epoch + 1, max(skipped - length, 0)

    def _reported(self, examples: Any) -> Iterator[Any]:
        """The examples; whatever breaks them off becomes a DataError."""
        try:
            yield from examples
        # Networks, file systems and formats each have errors of their own, and the package
        # has no common base for them.
        except Exception as error:
            raise DataError(
                f"reading {self._name} broke off ({type(error).__name__}: {error}); start the "
                "same command again to go on from the last checkpoint"
            ) from error

    def _decode(self, value: Any) -> Pixels | ImageError:
        try:
            return np.asarray(decode_reduced(_file_of(value), self._short_side))
        except ImageError as error:
            return error

    def _count_unreadable(self, error: ImageError) -> None:
        self._unreadable += 1
        _log.warning("skipped picture %d of %s: %s", self._seen, self._name, error)
        limit = self._max_unreadable * max(self._seen, _MIN_SEEN)
        if self._unreadable > limit or self._unreadable == _MIN_SEEN == self._seen:
            raise DataError(
                f"{self._unreadable} of the {self._seen} pictures of {self._name} that were read "
                f"are unreadable; at most {self._max_unreadable:.0%} may be: choose another "
                "column or data set, or raise data.max_unreadable"
            )


class _EpochLengths:
    """How many examples each epoch had for one process, in a small file.

    Nothing else says where in which epoch a picture's number lies, but reading all epochs again.
    """

    def __init__(self, cache: Path, source: str, rank: int, world_size: int) -> None:
        self._path = cache / f"stream-{rank}-of-{world_size}.json"
        self._source = source
        self._lengths: list[int] = []
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if content["source"] == source:
                self._lengths = [int(length) for length in content["lengths"]]
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def place_of(self, number: int) -> tuple[int, int]:
        """The last epoch known to begin at or before an example, and the examples from there."""
        for epoch, length in enumerate(self._lengths):
            if number < length:
                return epoch, number
            number -= length
        return len(self._lengths), number

    def add(self, epoch: int, length: int) -> None:
        """Note the length of an epoch; without a place to write, a resume only takes longer."""
        if epoch < len(self._lengths):
            return
        self._lengths.append(length)
        content = {"source": self._source, "lengths": self._lengths}
        partial = self._path.with_suffix(".partial")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(content), encoding="utf-8")
            partial.replace(self._path)
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._path, error.strerror or error)


def _file_of(value: Any) -> bytes | Path:
    """A picture's file, as a data set that does not decode has it.

    Raises:
        ImageError: If it cannot be fetched, or the column holds something else.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        content: bytes = value["bytes"]
        return content
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, str):
        raise ImageError(f"the column holds a {type(value).__name__} instead of a picture's file")
    if "://" not in path:
        return Path(path)
    try:
        with importlib.import_module("fsspec").open(path, "rb") as file:
            fetched: bytes = file.read()
            return fetched
    # As many kinds of error as there are kinds of address.
    except Exception as error:
        raise ImageError(f"it cannot be fetched ({type(error).__name__}: {error})") from error


def _mapped_ahead(
    function: Callable[[Any], Any], values: Iterator[Any], pool: ThreadPoolExecutor, ahead: int
) -> Iterator[Any]:
    """`function` of endless values, in order; the pool works on the next `ahead` meanwhile."""
    waiting: deque[Future[Any]] = deque()
    for value in values:
        waiting.append(pool.submit(function, value))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
