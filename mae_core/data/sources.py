"""Where training pictures come from: a folder, a pack, a hub data set or tar shards."""

import re
from pathlib import Path
from typing import Any, TypeAlias

from mae_core.config import DataConfig
from mae_core.data.folders import FolderImages
from mae_core.data.loader import Pictures
from mae_core.data.packed import open_pack, pack_folder, without_holdout
from mae_core.data.streams import PictureStream, import_datasets
from mae_core.errors import DataError

__all__ = ["PictureStream", "Source", "expand_braces", "open_pictures"]

# What a `BatchLoader` makes batches of.
Source: TypeAlias = Pictures | PictureStream

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def open_pictures(config: DataConfig, cache: Path) -> Source:
    """The pictures that a config names, ready for a `BatchLoader`.

    Where several processes share a cache, one opens them first, and then the others: it packs
    the folder or checks the pack, and they find that done.

    Args:
        config: Names one source, or none, which is an error.
        cache: Folder for what is kept between starts: a folder's pack, a pack's passed check, a
            stream's lengths.

    Raises:
        DataError: If the source is missing, cannot be read, or has too few readable pictures.
    """
    if config.pack:
        pack = open_pack(config.pack, memory=cache)
        if not len(pack):
            raise DataError(f"the pack in {config.pack!r} is empty; make one of more pictures")
        return without_holdout(pack, config.holdout) if config.holdout else pack
    if config.hub:
        return _open_hub(config, cache)
    if config.shards:
        return _open_shards(config, cache)
    if config.decode == "epoch":
        return FolderImages(
            config.folder, short_side=config.short_side, max_unreadable=config.max_unreadable,
            holdout=config.holdout,
        )  # fmt: skip
    return pack_folder(
        config.folder, cache, short_side=config.short_side, max_unreadable=config.max_unreadable,
        holdout=config.holdout,
    )  # fmt: skip


def _open_hub(config: DataConfig, cache: Path) -> PictureStream:
    name = f"the data set {config.hub!r} ({config.split})"
    examples = _load(name, config.hub, split=config.split)
    columns = list(examples.features or {})
    if columns and config.column not in columns:
        raise DataError(
            f"{name} has no column {config.column!r}; it has {', '.join(columns)}: give "
            "data.column="
        )
    return _stream(examples, config.column, name, config, cache)


def _open_shards(config: DataConfig, cache: Path) -> PictureStream:
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
    return _stream(examples, columns[0], name, config, cache)


def _is_image(feature: Any) -> bool:
    return isinstance(feature, import_datasets().Image)


def _load(name: str, path: str, **options: Any) -> Any:
    datasets = import_datasets()
    try:
        return datasets.load_dataset(path, streaming=True, **options)
    # The package has no common base for what it raises; its sentences say what is missing.
    except Exception as error:
        raise DataError(f"{name} cannot be opened: {error}") from error


def _stream(
    examples: Any, column: str, name: str, config: DataConfig, cache: Path
) -> PictureStream:
    # Pictures are decoded by us, for the package knows no limits.
    examples = examples.decode(False) if examples.features else examples
    return PictureStream(
        examples, column, name=name, cache=cache,
        short_side=config.short_side, max_unreadable=config.max_unreadable,
    )  # fmt: skip


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
