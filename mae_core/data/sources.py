"""Where training pictures come from: a folder, a pack, a hub data set or tar shards."""

import itertools
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mae_core.config import DataConfig, ModelConfig, TrainConfig, declared_facts
from mae_core.data.folders import FolderImages, find_images
from mae_core.data.loader import Pictures
from mae_core.data.packed import PackedImages, open_pack, pack_folder, without_holdout
from mae_core.data.reading import SAMPLED, PictureReader, channel_statistics, some_of
from mae_core.data.streams import PictureStream, import_datasets
from mae_core.errors import DataError
from mae_core.measurements import ValueRange, range_in_words

__all__ = [
    "PictureStream", "Source", "expand_braces", "open_pictures", "with_picture_facts",
]  # fmt: skip

_log = logging.getLogger(__name__)

_PHOTOGRAPHS = ModelConfig()

# What a `BatchLoader` makes batches of.
Source: TypeAlias = Pictures | PictureStream

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def with_picture_facts(config: TrainConfig, cache: Path) -> TrainConfig:
    """The run with what its pictures say of its model: bands, value range, channel statistics.

    The range is found in some of the pictures (see `data.range`); the statistics are measured there
    for models of other than three channels, unless they are given.

    Raises:
        DataError: If the source is missing, has no pictures, or none of those that are tried can be
            read with the channels of the model.
    """
    data, model = config.data, declared_facts(config).model
    pictures: Iterable[NDArray[np.uint8]]
    if data.pack:
        pack = open_pack(data.pack, memory=cache)
        if pack.channels == model.in_chans:
            value_range = model.value_range or pack.value_range
            model = replace(model, bands=model.bands or pack.bands, value_range=value_range)
        _check_pack(pack, data, model)
        pictures = (pack[i] for i in some_of(range(len(pack))))
    else:
        samples = _samples(data, model, cache)
        # Also where the range is declared: wrong bands are refused here, before anything is packed.
        found = _reader(data, replace(model, value_range=None)).find_range(samples)
        _compare_ranges(data, model.value_range, found)
        model = replace(model, value_range=model.value_range or found)
        pictures = _reader(data, model).readable(samples)
    unmeasured = (0.5,) * model.in_chans
    if model.in_chans != 3 and (model.mean, model.std) == (unmeasured, unmeasured):
        mean, std = channel_statistics(pictures)
        model = replace(model, mean=mean, std=std)
        _log.info("channel means %s, deviations %s", mean, std)
    return replace(config, model=model)


def _compare_ranges(data: DataConfig, known: ValueRange | None, found: ValueRange | None) -> None:
    """Warn where a declared range does nothing, or that of the weights does not fit."""
    if found is None and data.range != "auto":
        _log.warning(
            "data.range=%s does nothing: no picture that was looked at has more than 8 bits",
            data.range,
        )  # fmt: skip
    if known and found and data.range == "auto":
        spans = zip(known * (len(found) // len(known) or 1), found, strict=False)
        if any(max(abs(a - c), abs(b - d)) > (b - a) / 2 for (a, b), (c, d) in spans):
            _log.warning(
                "the weights of init_from map values from %s, and these pictures have values from "
                "%s; data.range=LOW,HIGH changes that",
                range_in_words(known), range_in_words(found),
            )  # fmt: skip


def _check_pack(pack: PackedImages, data: DataConfig, model: ModelConfig) -> None:
    """Refuse a pack of other channels, bands or range than the run's.

    Raises:
        DataError: If it is one.
    """
    other = {
        "channels": (pack.channels, model.in_chans),
        "bands": (list(pack.bands), list(model.bands)),
        "range": (pack.value_range, pack.value_range and model.value_range),
    }
    for name, (packed, wanted) in other.items():
        if packed != wanted:
            raise DataError(
                f"the pack in {data.pack!r} has {name} {packed} and the run {wanted}; give the "
                f"same, or pack the pictures again with {name}="
            )


def _reader(data: DataConfig, model: ModelConfig) -> PictureReader:
    """What reads the pictures of a run for its model."""
    return PictureReader(
        model.in_chans, model.bands, model.value_range or data.range, data.short_side
    )


def _samples(data: DataConfig, model: ModelConfig, cache: Path) -> Sequence[Path | bytes]:
    """The pictures' files; of a stream the first."""
    if data.hub or data.shards:
        stream = _open_stream(data, _reader(data, model), cache)
        return list(itertools.islice(stream.files(), SAMPLED))
    return find_images(data.folder, data.holdout, quiet=True)


def open_pictures(config: DataConfig, cache: Path, model: ModelConfig = _PHOTOGRAPHS) -> Source:
    """The pictures that a config names, ready for a `BatchLoader`.

    Where several processes share a cache, one opens them first, and then the others: it packs
    the folder or checks the pack, and they find that done.

    Args:
        config: Names one source, or none, which is an error.
        cache: Folder for what is kept between starts: a folder's pack, a pack's passed check, a
            stream's lengths.
        model: Says how they are read: channels, bands, value range.

    Raises:
        DataError: If the source is missing, cannot be read, or has too few readable pictures.
    """
    if config.pack:
        pack = open_pack(config.pack, memory=cache)
        if not len(pack):
            raise DataError(f"the pack in {config.pack!r} is empty; make one of more pictures")
        _check_pack(pack, config, model)
        return without_holdout(pack, config.holdout) if config.holdout else pack
    reader = _reader(config, model)
    if config.hub or config.shards:
        return _open_stream(config, reader, cache)
    if config.decode == "epoch":
        return FolderImages(
            config.folder, reader=reader, max_unreadable=config.max_unreadable,
            holdout=config.holdout,
        )  # fmt: skip
    return pack_folder(
        config.folder, cache, reader=reader, max_unreadable=config.max_unreadable,
        holdout=config.holdout,
    )  # fmt: skip


def _open_stream(config: DataConfig, reader: PictureReader, cache: Path) -> PictureStream:
    examples, column, name = _open_hub(config) if config.hub else _open_shards(config)
    # Pictures are decoded by us, for the package knows no limits.
    examples = examples.decode(False) if examples.features else examples
    return PictureStream(
        examples, column, name=name, cache=cache, reader=reader,
        max_unreadable=config.max_unreadable,
    )  # fmt: skip


def _open_hub(config: DataConfig) -> tuple[Any, str, str]:
    """The examples, where in them the pictures are, and what the data set is called."""
    name = f"the data set {config.hub!r} ({config.split})"
    examples = _load(name, config.hub, split=config.split)
    columns = list(examples.features or {})
    if columns and config.column not in columns:
        raise DataError(
            f"{name} has no column {config.column!r}; it has {', '.join(columns)}: give "
            "data.column="
        )
    return examples, config.column, name


def _open_shards(config: DataConfig) -> tuple[Any, str, str]:
    """As `_open_hub`."""
    name = f"the shards {config.shards!r}"
    paths = expand_braces(config.shards)
    missing = [path for path in paths if "://" not in path and not Path(path).is_file()]
    if missing:
        raise DataError(f"there is no file {missing[0]!r}; check data.shards")
    examples = _load(name, "webdataset", split="train", data_files={"train": paths})
    columns = [key for key, feature in examples.features.items() if _is_image(feature)]
    if len(columns) != 1:
        raise DataError(
            f"{name} hold {', '.join(columns) or 'no'} pictures for each example; each needs one, "
            "of the same suffix in all of them"
        )
    return examples, columns[0], name


def _is_image(feature: Any) -> bool:
    return isinstance(feature, import_datasets().Image)


def _load(name: str, path: str, **options: Any) -> Any:
    datasets = import_datasets()
    try:
        return datasets.load_dataset(path, streaming=True, **options)
    # The package has no common base for what it raises; its sentences say what is missing.
    except Exception as error:
        raise DataError(f"{name} cannot be opened: {error}") from error


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
    return [
        name
        for number in range(int(low), int(high) + 1)
        for name in expand_braces(
            f"{pattern[: found.start()]}{number:0{len(low)}d}{pattern[found.end() :]}"
        )
    ]
