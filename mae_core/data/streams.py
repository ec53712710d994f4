"""Hub data sets and tar shards, streamed by the Hugging Face `datasets` package.

The order is a function of the seed, the epoch and the number of ranks: each rank gets its own part
(`split_dataset_by_node`), shuffled by shards and then within a buffer. A resumed run skips what it
has used: within the current epoch that is read again, but not decoded.

An image that cannot be read or fetched is counted, and the next one is used in its place too.
"""

import contextlib
import importlib
import json
import logging
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae_core.config import DataConfig
from mae_core.data.datasets import ImageReader, Sample
from mae_core.errors import DataError, ImageError

_log = logging.getLogger(__name__)

# Pinned by requirements-data.txt.
DATASETS_VERSION = "5.2.0"

# Encoded examples that the next one is drawn from.
_SHUFFLE_BUFFER = 1000

# Images decoded ahead by each thread.
_DECODE_AHEAD = 8

# The share of unreadable images is taken of at least so many, as the length is not known.
_MIN_SEEN = 1000

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass
class ImageStream:
    """An endless stream of (image, label), in an order of its own.

    Attributes:
        examples: A `datasets.IterableDataset` that does not decode images.
        column: Where the images are.
        label_column: Where the labels are, if there are any.
        classes: Names of the classes, if the data set has them.
        name: Of the data set, for messages.
        cache: Folder for the lengths of past epochs, so that a resumed run need not read them.
        reader: Reads the images.
        max_unreadable: Largest share of unreadable images, 0..1.
    """

    examples: Any
    column: str
    label_column: str
    classes: tuple[str, ...]
    name: str
    cache: Path
    reader: ImageReader
    max_unreadable: float

    def __post_init__(self) -> None:
        self._seen = self._unreadable = 0

    def samples(
        self,
        first: int,
        *,
        seed: int,
        rank: int,
        world_size: int,
        pool: ThreadPoolExecutor,
        workers: int,
    ) -> Iterator[Sample]:
        """Stream one rank's samples from number `first` on, epoch after epoch, without end.

        `pool` decodes, with `workers` threads; their number does not change the samples.

        Raises:
            DataError: If the stream breaks off, has no image for this rank, or too many of its
                images are unreadable.
        """
        waiting: deque[tuple[Future[NDArray[np.uint8] | ImageError], int]] = deque()
        missing = 0
        for example in self._epochs(first, seed, rank, world_size):
            label = example.get(self.label_column)
            future = pool.submit(self._decode, example.get(self.column))
            waiting.append((future, label if isinstance(label, int) else -1))
            if len(waiting) <= _DECODE_AHEAD * workers:
                continue
            future, label = waiting.popleft()
            image = future.result()
            self._seen += 1
            if isinstance(image, ImageError):
                self._count_unreadable(image)
                missing += 1
                continue
            # Each sample keeps its number, so skipping needs no decoding.
            for _ in range(missing + 1):
                yield image, label
            missing = 0

    def files(self) -> Iterator[Path | bytes]:
        """Files of the first epoch, unshuffled, without those that cannot be fetched."""
        for example in self._reported(self.examples):
            with contextlib.suppress(ImageError):
                yield _file_of(example.get(self.column))

    def _epochs(self, first: int, seed: int, rank: int, world_size: int) -> Iterator[Any]:
        """One rank's encoded examples from number `first` on."""
        source, path = f"{self.name}, seed {seed}", f"stream-{rank}-of-{world_size}.json"
        lengths = _read_lengths(self.cache / path, source)
        epoch, skipped = 0, first
        while epoch < len(lengths) and skipped >= lengths[epoch]:
            skipped -= lengths[epoch]
            epoch += 1
        if skipped:
            _log.info("skipping %d images of %s that were used already", skipped, self.name)
        examples = self.examples.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
        split = importlib.import_module("datasets.distributed").split_dataset_by_node
        examples = split(examples, rank=rank, world_size=world_size)
        while True:
            examples.set_epoch(epoch)
            length = 0
            for example in self._reported(examples):
                length += 1
                if length > skipped:
                    yield example
            if not length:
                raise DataError(
                    f"{self.name} has no image for process {rank} of {world_size}; use fewer "
                    "processes or another data set"
                )
            if epoch == len(lengths):
                lengths.append(length)
                _write_lengths(self.cache / path, source, lengths)
            epoch, skipped = epoch + 1, max(skipped - length, 0)

    def _reported(self, examples: Any) -> Iterator[Any]:
        try:
            yield from examples
        # Networks, file systems and formats raise errors without a common base.
        except Exception as error:
            raise DataError(
                f"reading {self.name} broke off ({type(error).__name__}: {error}); start the "
                "same command again to go on from the last checkpoint"
            ) from error

    def _decode(self, value: Any) -> NDArray[np.uint8] | ImageError:
        try:
            return self.reader(_file_of(value))
        except ImageError as error:
            return error

    def _count_unreadable(self, error: ImageError) -> None:
        self._unreadable += 1
        _log.warning("skipped image %d of %s: %s", self._seen, self.name, error)
        limit = self.max_unreadable * max(self._seen, _MIN_SEEN)
        if self._unreadable > limit or self._unreadable == _MIN_SEEN == self._seen:
            raise DataError(
                f"{self._unreadable} of the {self._seen} images of {self.name} that were read "
                f"are unreadable; at most {self.max_unreadable:.0%} may be: choose another "
                "column or data set, or raise data.max_unreadable"
            )


def _read_lengths(path: Path, source: str) -> list[int]:
    """Lengths of the epochs of a stream, as far as they are known."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["source"] == source:
            return [int(length) for length in content["lengths"]]
    return []


def _write_lengths(path: Path, source: str, lengths: list[int]) -> None:
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"source": source, "lengths": lengths}), encoding="utf-8")
        partial.replace(path)
    except OSError as error:  # a resumed run takes longer, that is all
        _log.warning("%s cannot be written: %s", path, error.strerror or error)


def _file_of(value: Any) -> bytes | Path:
    """The file of an image, from a column that is not decoded."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(content, bytes):
        return content
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, str):
        raise ImageError(f"the column holds a {type(value).__name__} instead of an image file")
    if "://" not in path:
        return Path(path)
    try:
        with importlib.import_module("fsspec").open(path, "rb") as file:
            fetched: bytes = file.read()
            return fetched
    # Every kind of address has errors of its own.
    except Exception as error:
        raise ImageError(f"it cannot be fetched ({type(error).__name__}: {error})") from error


def open_stream(config: DataConfig, reader: ImageReader, cache: Path) -> ImageStream:
    """Open the stream that `config.hub` or `config.shards` names.

    Labels are those of the first `ClassLabel` column, or of `cls` files in shards.

    Raises:
        DataError: If the package is missing, or the data set cannot be opened or has no images
            where they are looked for.
    """
    if config.hub:
        name = f"the data set {config.hub!r} ({config.split})"
        examples = _load(name, config.hub, split=config.split)
        column = config.column
        columns = list(examples.features or {})
        if columns and column not in columns:
            raise DataError(
                f"{name} has no column {column!r}; it has {', '.join(columns)}: give data.column="
            )
    else:
        name = f"the shards {config.shards!r}"
        paths = expand_braces(config.shards)
        missing = [path for path in paths if "://" not in path and not Path(path).is_file()]
        if missing:
            raise DataError(f"there is no file {missing[0]!r}; check data.shards")
        examples = _load(name, "webdataset", split="train", data_files={"train": paths})
        columns = _columns_of(examples, "Image")
        if len(columns) != 1:
            raise DataError(
                f"{name} hold {', '.join(columns) or 'no'} images for each example; each needs "
                "one, of the same suffix in all of them"
            )
        column = columns[0]
    features = examples.features or {}
    label_column, *_ = [*_columns_of(examples, "ClassLabel"), "cls"]
    classes = tuple(getattr(features.get(label_column), "names", ()))
    # Images are decoded by the reader: the package sets no limits.
    examples = examples.decode(False) if features else examples
    return ImageStream(
        examples, column, label_column, classes, name, cache, reader, config.max_unreadable
    )


def _load(name: str, path: str, **options: Any) -> Any:
    datasets = _import_datasets()
    try:
        return datasets.load_dataset(path, streaming=True, **options)
    # The package's errors have no common base; their messages say what is missing.
    except Exception as error:
        raise DataError(f"{name} cannot be opened: {error}") from error


def _import_datasets() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            "data.hub and data.shards need a package that is not installed: pip install "
            f"datasets=={DATASETS_VERSION}"
        ) from error


def _columns_of(examples: Any, kind: str) -> list[str]:
    """Columns whose feature is of a class of `datasets`, such as `Image`."""
    feature_class = getattr(_import_datasets(), kind)
    items = (examples.features or {}).items()
    return [name for name, feature in items if isinstance(feature, feature_class)]


def expand_braces(pattern: str) -> list[str]:
    """All names that `{000..099}` stands for, at every place where it occurs.

    Raises:
        DataError: If a range runs backwards.
    """
    found = _RANGE.search(pattern)
    if not found:
        return [pattern]
    low, high = found.groups()
    if int(low) > int(high):
        raise DataError(f"{found.group()} in {pattern!r} runs backwards; give the smaller first")
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [
        name
        for number in range(int(low), int(high) + 1)
        for name in expand_braces(f"{before}{number:0{len(low)}d}{after}")
    ]
