"""Streams: local stand-ins for a hub data set, and tar files made here. Nothing is fetched."""

import importlib.util
import io
import json
import logging
import re
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mae_core.data.streams
from mae_core.config import DataConfig
from mae_core.data.loader import BatchLoader, open_dataset
from mae_core.data.streams import DATASETS_VERSION, ImageStream, encoded_image, expand_braces
from mae_core.errors import DataError, ImageError

ROOT = Path(__file__).resolve().parents[2]

needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="datasets is not installed"
)


def file_of(level: int, kind: str = "PNG") -> bytes:
    """A plain grey picture that its level tells apart."""
    file = io.BytesIO()
    Image.new("RGB", (24, 20), (level, level, level)).save(file, kind)
    return file.getvalue()


def _key_of(value: Any) -> str:
    return "bytes" if isinstance(value, bytes) else "path"


def write_parquet(
    path: Path, values: list[Any], column: str = "image", classes: list[str] | None = None
) -> None:
    """A file of a hub data set; each value is a picture's file or its path.

    Labels are row numbers, modulo the number of classes if there are any.
    """
    import pyarrow
    import pyarrow.parquet

    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    label = {"names": classes, "_type": "ClassLabel"} if classes else {"_type": "Value"}
    features = {column: {"_type": "Image"}, "label": {"dtype": "int64", **label}}
    schema = pyarrow.schema(
        [(column, kind), ("label", pyarrow.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = [{"bytes": None, "path": None, _key_of(value): value} for value in values]
    labels = [i % len(classes or rows) for i in range(len(rows))]
    table = pyarrow.table({column: rows, "label": labels}, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture(autouse=True)
def no_naps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package sleeps for seconds after each epoch of parquet files (a bug of pyarrow's)."""
    if importlib.util.find_spec("datasets") is not None:
        monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A data set of 4 files with 10 pictures each, of levels 0..39."""
    for i in range(4):
        levels = range(10 * i, 10 * i + 10)
        name = f"data/train-{i:05d}-of-00004.parquet"
        write_parquet(tmp_path / "hub" / name, [file_of(level) for level in levels])
    return tmp_path / "hub"


def open_hub(hub: Path, cache: Path, **fields: Any) -> ImageStream:
    stream = open_dataset(DataConfig(hub=str(hub), **fields), cache)
    assert isinstance(stream, ImageStream)
    return stream


def levels_of(
    stream: ImageStream, count: int, first: int = 0, *, seed: int = 0, rank: int = 0,
    world_size: int = 1, workers: int = 2,
) -> list[int]:  # fmt: skip
    """Levels of a process's pictures number `first` up to `first + count`."""
    with ThreadPoolExecutor(workers) as pool:
        samples = stream.samples(first, seed=seed, rank=rank, world_size=world_size, pool=pool)
        found = [int(image.mean().round()) for image, _ in islice(samples, count)]
        samples.close()  # type: ignore[attr-defined]
        return found


@needs_datasets
def test_every_epoch_streams_every_picture_once_in_a_new_order(hub: Path, tmp_path: Path) -> None:
    levels = levels_of(open_hub(hub, tmp_path / "cache"), 120)
    epochs = [levels[:40], levels[40:80], levels[80:]]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, list(range(40))]}) == 4
    assert levels != levels_of(open_hub(hub, tmp_path / "cache"), 120, seed=1)


@needs_datasets
def test_a_stream_resumes_at_any_picture_with_any_number_of_workers(
    hub: Path, tmp_path: Path
) -> None:
    whole = levels_of(open_hub(hub, tmp_path / "cache"), 130)
    for first, workers in ((1, 1), (39, 3), (40, 2), (41, 1), (97, 5)):
        # With the lengths of the epochs in the cache, and without.
        for cache in (tmp_path / "cache", tmp_path / f"lost-{first}"):
            resumed = levels_of(open_hub(hub, cache), 130 - first, first, workers=workers)
            assert resumed == whole[first:], (cache, first)


def labels_by_level(stream: ImageStream, count: int) -> dict[int, int]:
    with ThreadPoolExecutor(2) as pool:
        samples = stream.samples(0, seed=0, rank=0, world_size=1, pool=pool)
        found = {int(image.mean().round()): label for image, label in islice(samples, count)}
        samples.close()  # type: ignore[attr-defined]
        return found


@needs_datasets
def test_labels_are_of_the_class_label_column(hub: Path, tmp_path: Path) -> None:
    values = [file_of(level) for level in range(9)]
    values[4] = b"not a picture"
    write_parquet(tmp_path / "named" / "train.parquet", values, classes=["cat", "dog", "fox"])
    stream = open_hub(tmp_path / "named", tmp_path / "cache")
    assert stream.classes == ("cat", "dog", "fox")
    labels = labels_by_level(stream, 40)
    assert labels == {level: level % 3 for level in range(9) if level != 4}
    # A column of plain numbers may be anything.
    stream = open_hub(hub, tmp_path / "cache")
    assert stream.classes == ()
    assert set(labels_by_level(stream, 40).values()) == {-1}


@needs_datasets
def test_labels_of_shards_are_their_cls_files(shards: str, tmp_path: Path) -> None:
    files = {}
    for level in range(6):
        files[f"{level}.png"] = file_of(level)
        files[f"{level}.cls"] = str(100 + level).encode()
    write_tar(tmp_path / "labelled.tar", files)
    stream = open_shards(str(tmp_path / "labelled.tar"), tmp_path / "cache")
    assert stream.classes == ()
    assert labels_by_level(stream, 20) == {level: 100 + level for level in range(6)}
    assert set(labels_by_level(open_shards(shards, tmp_path / "cache"), 24).values()) == {-1}


@needs_datasets
def test_epochs_whose_length_is_known_are_not_read_again(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    levels_of(open_hub(hub, cache), 130)
    known = json.loads((cache / "stream-0-of-1.json").read_text())
    assert known["lengths"][:2] == [40, 40]
    epochs: list[int] = []
    stream = open_hub(hub, cache)
    split = importlib.import_module("datasets.distributed").split_dataset_by_node

    def watched(*args: Any, **kwargs: Any) -> Any:
        examples = split(*args, **kwargs)
        set_epoch = examples.set_epoch
        examples.set_epoch = lambda epoch: (epochs.append(epoch), set_epoch(epoch))
        return examples

    monkeypatch.setattr("datasets.distributed.split_dataset_by_node", watched)
    levels_of(stream, 1, 85)
    assert epochs[0] == 2
    # Another seed's or garbled lengths are not taken for these.
    for text in (json.dumps({**known, "source": "another"}), "{", '{"source": 3}', "[]"):
        (cache / "stream-0-of-1.json").write_text(text)
        epochs.clear()
        levels_of(stream, 1, 85)
        assert epochs[0] == 0


@needs_datasets
@pytest.mark.parametrize("world_size", [2, 3])  # 4 files divide over 2, and not over 3
def test_processes_share_each_epoch_without_overlap(
    hub: Path, tmp_path: Path, world_size: int
) -> None:
    seen = []
    for rank in range(world_size):
        stream = open_hub(hub, tmp_path / "cache")
        share = len(range(rank, 40, world_size))
        levels = levels_of(stream, 2 * share, rank=rank, world_size=world_size)
        assert sorted(levels[:share]) != levels[:share]
        resumed = open_hub(hub, tmp_path / "cache")
        assert levels_of(resumed, 5, 3, rank=rank, world_size=world_size) == levels[3:8]
        seen += levels[:share]
    assert sorted(seen) == list(range(40))


@needs_datasets
def test_the_next_picture_takes_the_place_of_an_unreadable_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = [file_of(level) for level in range(10)]
    values[3], values[4] = b"not a picture", b""
    write_parquet(tmp_path / "hub" / "train.parquet", values)
    stream = open_hub(tmp_path / "hub", tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        levels = levels_of(stream, 20)
    assert {3, 4}.isdisjoint(levels)
    assert set(levels[:10]) | set(levels[10:11]) == {0, 1, 2, 5, 6, 7, 8, 9}
    assert caplog.text.count("skipped image") >= 4
    # Every sample keeps its number, so a resumed run needs not decode what it skips.
    for first in range(12):
        again = open_hub(tmp_path / "hub", tmp_path / "cache")
        assert levels_of(again, 20 - first, first) == levels[first:]


@needs_datasets
def test_too_many_unreadable_pictures_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mae_core.data.streams, "_MIN_SEEN", 20)
    values = [b"not a picture" if i % 5 == 0 else file_of(i) for i in range(20)]
    write_parquet(tmp_path / "hub" / "train.parquet", values)
    few = open_hub(tmp_path / "hub", tmp_path / "cache", max_unreadable=0.25)
    assert len(levels_of(few, 100)) == 100
    with pytest.raises(DataError, match="unreadable, such as the data set .*; at most 10% may be"):
        levels_of(open_hub(tmp_path / "hub", tmp_path / "cache", max_unreadable=0.1), 100)
    write_parquet(tmp_path / "none" / "train.parquet", [b"not a picture"] * 3)
    with pytest.raises(DataError, match="20 of 20 images"):
        levels_of(open_hub(tmp_path / "none", tmp_path / "cache", max_unreadable=1.0), 1)


@needs_datasets
def test_pictures_of_a_data_set_may_be_files_beside_it(tmp_path: Path) -> None:
    import fsspec

    (tmp_path / "one.png").write_bytes(file_of(7))
    with fsspec.open("memory://two.png", "wb") as file:
        file.write(file_of(9))
    paths = [str(tmp_path / "one.png"), "memory://two.png", "memory://missing.png"]
    write_parquet(tmp_path / "hub" / "train.parquet", paths)
    stream = open_hub(tmp_path / "hub", tmp_path / "cache")
    assert set(levels_of(stream, 9)) == {7, 9}


def test_a_data_set_of_others_names_no_files_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "private.png").write_bytes(file_of(7))
    for name in (str(tmp_path / "private.png"), "file:///private.png", "http://localhost/a.png"):
        with pytest.raises(ImageError, match="not on the hub or behind https"):
            encoded_image({"bytes": None, "path": name}, is_own=False)


@needs_datasets
def test_pictures_are_reduced_like_those_of_a_folder(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (90, 60)).save(file, "PNG")
    write_parquet(tmp_path / "hub" / "train.parquet", [file.getvalue()])
    stream = open_hub(tmp_path / "hub", tmp_path / "cache", short_side=40)
    with ThreadPoolExecutor(1) as pool:
        samples = stream.samples(0, seed=0, rank=0, world_size=1, pool=pool)
        assert next(samples)[0].shape == (40, 60, 3)


@needs_datasets
def test_a_data_set_that_cannot_be_opened_is_a_sentence(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="one column of images and has image, label: give data.column="
    ):
        open_hub(hub, tmp_path, column="img")
    with pytest.raises(DataError, match="cannot be read .*validation"):
        open_hub(hub, tmp_path, split="validation")
    with pytest.raises(DataError, match="'nobody/nothing' .* cannot be read"):
        open_hub(Path("nobody/nothing"), tmp_path)
    stream = open_hub(hub, tmp_path, column="label", max_unreadable=0.0)
    with pytest.raises(DataError, match="unreadable"):
        levels_of(stream, 1)


@needs_datasets
def test_a_process_without_pictures_is_told(tmp_path: Path) -> None:
    write_parquet(tmp_path / "hub" / "train.parquet", [file_of(1)])
    stream = open_hub(tmp_path / "hub", tmp_path / "cache")
    with pytest.raises(DataError, match="no image for process 1 of 2; use fewer processes"):
        levels_of(stream, 1, rank=1, world_size=2)


@needs_datasets
def test_a_cache_that_cannot_be_written_only_costs_time(
    hub: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert len(levels_of(open_hub(hub, tmp_path / "file" / "cache"), 50)) == 50
    assert "cannot be written" in caplog.text


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Three tar files with 8 pictures each, of levels 0..23, each beside a caption."""
    for i in range(3):
        files = {}
        for level in range(8 * i, 8 * i + 8):
            files[f"{level:04d}.jpg"] = file_of(level, "JPEG")
            files[f"{level:04d}.txt"] = b"grey"
        write_tar(tmp_path / f"train-{i:02d}.tar", files)
    return str(tmp_path / "train-{00..02}.tar")


def open_shards(pattern: str, cache: Path, **fields: Any) -> ImageStream:
    stream = open_dataset(DataConfig(shards=pattern, **fields), cache)
    assert isinstance(stream, ImageStream)
    return stream


@needs_datasets
def test_shards_stream_every_picture_and_resume(shards: str, tmp_path: Path) -> None:
    whole = levels_of(open_shards(shards, tmp_path / "cache"), 60)
    assert sorted(whole[:24]) == sorted(whole[24:48]) == list(range(24))
    for first in (5, 24, 50):
        resumed = levels_of(open_shards(shards, tmp_path / "cache"), 60 - first, first, workers=1)
        assert resumed == whole[first:]
    shares = [
        levels_of(open_shards(shards, tmp_path / "cache"), 8, rank=rank, world_size=3)
        for rank in range(3)
    ]
    assert sorted(level for share in shares for level in share) == list(range(24))


@needs_datasets
def test_shards_that_cannot_be_used_are_a_sentence(tmp_path: Path) -> None:
    write_tar(tmp_path / "text.tar", {"0.txt": b"a", "1.txt": b"b"})
    with pytest.raises(DataError, match="one image of the same suffix in each example"):
        open_shards(str(tmp_path / "text.tar"), tmp_path)
    write_tar(tmp_path / "both.tar", {"0.jpg": file_of(0), "0.png": file_of(0)})
    with pytest.raises(DataError, match="one column of images and has .*jpg, png: give"):
        open_shards(str(tmp_path / "both.tar"), tmp_path)
    (tmp_path / "no.tar").write_bytes(b"not a tar file" * 100)
    with pytest.raises(DataError, match="no.tar' cannot be read"):
        open_shards(str(tmp_path / "no.tar"), tmp_path)
    write_tar(tmp_path / "train-00.tar", {"0.png": file_of(0)})
    with pytest.raises(DataError, match="no file .*train-01.tar'; check data.shards"):
        open_shards(str(tmp_path / "train-{00..01}.tar"), tmp_path)


@needs_datasets
def test_a_shard_that_breaks_off_stops_the_run_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "train.tar"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    write_tar(path, {f"{i}.png": file.getvalue() for i in range(20)})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    stream = open_shards(str(path), tmp_path / "cache")
    with pytest.raises(DataError, match="cannot be read .*the same command goes on"):
        levels_of(stream, 40)


def stream_batches(hub: Path, cache: Path, start: int, workers: int) -> list[torch.Tensor]:
    config = DataConfig(hub=str(hub), workers=workers)
    loader = BatchLoader(
        open_dataset(config, cache), config, batch_size=8, seed=3, mean=(0.5,) * 3,
        std=(0.2,) * 3, device=torch.device("cpu"), rank=1, world_size=2,
    )  # fmt: skip
    return [images for images, _ in loader.batches(start, 12, lambda step: 16)]


@needs_datasets
def test_batches_of_a_stream_resume_exactly_with_another_number_of_workers(
    hub: Path, tmp_path: Path
) -> None:
    whole = stream_batches(hub, tmp_path / "cache", 0, workers=3)
    assert [tuple(batch.shape) for batch in whole] == [(4, 3, 16, 16)] * 12
    for start in (1, 6):
        resumed = stream_batches(hub, tmp_path / "cache", start, workers=1)
        assert all(a.equal(b) for a, b in zip(whole[start:], resumed, strict=True))


def test_without_the_package_a_stream_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "train.tar").touch()
    for config in (DataConfig(hub="a/b"), DataConfig(shards=str(tmp_path / "train.tar"))):
        with pytest.raises(DataError, match=f"pip install datasets=={DATASETS_VERSION}"):
            open_dataset(config, tmp_path)


def test_the_version_named_is_the_version_pinned() -> None:
    pins = re.findall(r"^datasets==(.*)$", (ROOT / "requirements-data.txt").read_text(), re.M)
    assert pins == [DATASETS_VERSION]


def test_braces_stand_for_all_numbers_between() -> None:
    assert expand_braces("a-{008..011}.tar") == [f"a-{i}.tar" for i in ("008", "009", "010", "011")]
    assert expand_braces("{0..1}/{7..8}") == ["0/7", "0/8", "1/7", "1/8"]
    assert expand_braces("plain.tar") == ["plain.tar"]
    assert expand_braces("s3://b/{3..3}.tar") == ["s3://b/3.tar"]
    assert expand_braces("{5..1}") == []
