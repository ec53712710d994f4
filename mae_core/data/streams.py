"""Hub data sets and tar shards, streamed by the Hugging Face `datasets` package.

The order is a function of the seed, the epoch and the number of ranks: each rank gets its own part
(`split_dataset_by_node`), shuffled by shards and then within a buffer. A resumed run skips what it
has used: within the current epoch that is read again, but not decoded.
"""

import contextlib
import importlib
import json
import logging
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mae_core.config import DataConfig
from mae_core.data.datasets import ImageReader, Sample, check_unreadable
from mae_core.errors import DataError, ImageError

_log = logging.getLogger(__name__)

# Pinned by requirements-data.txt.
DATASETS_VERSION = "5.2.0"

# Encoded examples that the next one is drawn from.
_SHUFFLE_BUFFER = 1000

_DECODED_AHEAD = 32

# The share of unreadable images is taken of at least so many, as the length is not known.
_MIN_SEEN = 1000


class ImageStream:
    """An endless stream of (image, label), in an order of its own.

    The next image takes the place of one that cannot be read or fetched, too.

    Attributes:
        name: For messages.
        classes: Names of the classes, if the data set has them.
    """

    def __init__(self, config: DataConfig, reader: ImageReader, cache: Path) -> None:
        """Open the stream that `config.hub` or `config.shards` names.

        Labels are those of the first `ClassLabel` column, or of `cls` files in shards. `cache`
        keeps the lengths of past epochs, so that a resumed run need not read them again.
        """
        try:
            datasets = importlib.import_module("datasets")
        except ImportError as error:
            raise DataError(
                "data.hub and data.shards need a package that is not installed: pip install "
                f"datasets=={DATASETS_VERSION}"
            ) from error
        if config.hub:
            self.name = f"the data set {config.hub!r} ({config.split})"
            path, options = config.hub, dict[str, Any](split=config.split)
        else:
            self.name = f"the shards {config.shards!r}"
            paths = expand_braces(config.shards)
            missing = [path for path in paths if "://" not in path and not Path(path).is_file()]
            if missing or not paths:
                raise DataError(f"there is no file {(missing or [''])[0]!r}; check data.shards")
            path, options = "webdataset", {"split": "train", "data_files": {"train": paths}}
        with self._readable():
            examples = datasets.load_dataset(path, streaming=True, **options)
        features = examples.features or {}
        images, labels = (
            [name for name, feature in features.items() if isinstance(feature, kind)]
            for kind in (datasets.Image, datasets.ClassLabel)
        )
        columns = [config.column] if config.hub else images
        if len(columns) != 1 or (features and columns[0] not in features):
            raise DataError(
                f"{self.name} must have one column of images and has {', '.join(features)}: give "
                "data.column=, or shards with one image of the same suffix in each example"
            )
        self._column, self._label_column = columns[0], (labels or ["cls"])[0]
        self.classes = tuple(getattr(features.get(self._label_column), "names", ()))
        # Images are decoded by the reader: the package sets no limits.
        self._examples = examples.decode(False) if features else examples
        self._reader, self._cache, self._max_unreadable = reader, cache, config.max_unreadable
        self._is_own = not config.hub or Path(config.hub).expanduser().exists()
        self._seen = self._unreadable = 0

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        # Networks, file systems and formats raise errors without a common base.
        except Exception as error:
            raise DataError(
                f"{self.name} cannot be read ({type(error).__name__}: {error}); once that is "
                "mended, the same command goes on from the last checkpoint"
            ) from error

    def samples(
        self, first: int, *, seed: int, rank: int, world_size: int, pool: ThreadPoolExecutor
    ) -> Iterator[Sample]:
        """Stream one rank's samples from number `first` on, without end; `pool` decodes."""
        waiting: deque[tuple[Future[NDArray[np.uint8]], Any]] = deque()
        missing = 0
        for example in self._epochs(first, seed, rank, world_size):
            future = pool.submit(self._read, example.get(self._column))
            waiting.append((future, example.get(self._label_column)))
            if len(waiting) <= _DECODED_AHEAD:
                continue
            future, label = waiting.popleft()
            self._seen += 1
            try:
                image = future.result()
            except ImageError as error:
                _log.warning("skipped image %d of %s: %s", self._seen, self.name, error)
                missing, self._unreadable = missing + 1, self._unreadable + 1
                total = max(self._seen, _MIN_SEEN)
                check_unreadable(self._unreadable, total, self._max_unreadable, [self.name])
                continue
            # Each sample keeps its number, so skipping needs no decoding.
            for _ in range(missing + 1):
                yield image, label if isinstance(label, int) else -1
            missing = 0

    def files(self) -> Iterator[Path | bytes]:
        """Files of the first epoch, unshuffled, without those that cannot be fetched."""
        with self._readable():
            for example in self._examples:
                with contextlib.suppress(ImageError):
                    yield encoded_image(example.get(self._column), self._is_own)

    def _epochs(self, first: int, seed: int, rank: int, world_size: int) -> Iterator[Any]:
        """One rank's encoded examples from number `first` on."""
        source = f"{self.name}, seed {seed}"
        path, lengths = self._cache / f"stream-{rank}-of-{world_size}.json", list[int]()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            past = json.loads(path.read_text(encoding="utf-8"))
            lengths = past["lengths"] if past["source"] == source else []
        epoch, skipped = 0, first
        while epoch < len(lengths) and skipped >= lengths[epoch]:
            skipped -= lengths[epoch]
            epoch += 1
        if skipped:
            _log.info("skipping %d images of %s that were used already", skipped, self.name)
        examples = self._examples.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
        split = importlib.import_module("datasets.distributed").split_dataset_by_node
        examples = split(examples, rank=rank, world_size=world_size)
        while True:
            examples.set_epoch(epoch)
            length = 0
            with self._readable():
                for length, example in enumerate(examples, 1):
                    if length > skipped:
                        yield example
            if not length:
                raise DataError(
                    f"{self.name} has no image for process {rank} of {world_size}; use fewer "
                    "processes or another data set"
                )
            if epoch == len(lengths):
                lengths.append(length)
                partial = path.with_suffix(".partial")
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    partial.write_text(json.dumps({"source": source, "lengths": lengths}))
                    partial.replace(path)
                except OSError as error:  # a resumed run takes longer, that is all
                    _log.warning("%s cannot be written: %s", path, error.strerror or error)
            epoch, skipped = epoch + 1, max(skipped - length, 0)

    def _read(self, value: Any) -> NDArray[np.uint8]:
        return self._reader(encoded_image(value, self._is_own))


def encoded_image(value: Any, is_own: bool) -> bytes | Path:
    """The file of an image, from a column that is not decoded."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ImageError(f"the column holds a {type(value).__name__} instead of an image file")
    # A data set of a stranger may not name files of this machine or of its network.
    if not is_own and not value.startswith(("hf://", "https://")):
        raise ImageError("the column names a file that is not on the hub or behind https")
    if "://" not in value:
        return Path(value)
    try:
        with importlib.import_module("fsspec").open(value, "rb") as file:
            fetched: bytes = file.read()
            return fetched
    # Every kind of address has errors of its own.
    except Exception as error:
        raise ImageError(f"it cannot be fetched ({type(error).__name__}: {error})") from error


def expand_braces(pattern: str) -> list[str]:
    """All names that `{000..099}` stands for, at every place where it occurs."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not found:
        return [pattern]
    low, high = found.groups()
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [
        name
        for number in range(int(low), int(high) + 1)
        for name in expand_braces(f"{before}{number:0{len(low)}d}{after}")
    ]
