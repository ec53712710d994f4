"""Folders decoded once into a pack, or whenever a picture is asked for."""

import errno
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import numpy as np
import pytest
from PIL import Image

import mae_core.data.pack
from mae_core.cli import mae
from mae_core.config import DataConfig
from mae_core.data.datasets import FolderImages, ImageReader, find_images
from mae_core.data.loader import open_dataset
from mae_core.data.pack import PackedImages, open_pack, pack_folder
from mae_core.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]


def make_pack(
    folder: Path, cache: Path, max_unreadable: float = 0.2, short_side: int = 56
) -> PackedImages:
    return pack_folder(
        folder, cache, reader=ImageReader(short_side=short_side), max_unreadable=max_unreadable
    )


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files of pixels that are read through for their hash."""
    files: list[Path] = []
    sha256 = mae_core.data.pack._sha256

    def spy(path: Path) -> str:
        if path.suffix == ".u8":
            files.append(path)
        return sha256(path)

    monkeypatch.setattr(mae_core.data.pack, "_sha256", spy)
    return files


def test_a_pack_holds_every_picture_of_every_subfolder(
    picture_folder: Path, tmp_path: Path
) -> None:
    pack = make_pack(picture_folder, tmp_path / "cache")
    assert len(pack) == 12
    assert pack.names == sorted(pack.names)
    assert pack.unreadable == []
    for i, name in enumerate(pack.names):
        picture = Image.open(picture_folder / name).convert("RGB")
        size = (round(picture.width * 56 / 60), 56)
        expected = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(pack[i][0], expected)


def test_a_pack_is_made_once_and_again_when_a_file_changes(
    picture_folder: Path, tmp_path: Path, hashed: list[Path]
) -> None:
    cache = tmp_path / "cache"
    make_pack(picture_folder, cache)
    written = (cache / "pictures.u8").stat().st_mtime_ns
    make_pack(picture_folder, cache)
    assert (cache / "pictures.u8").stat().st_mtime_ns == written
    assert not hashed  # what was just written need not be read again
    Image.new("RGB", (90, 70), "red").save(picture_folder / "new.png")
    assert len(make_pack(picture_folder, cache)) == 13
    assert make_pack(picture_folder, cache, short_side=40)[0][0].shape[0] == 40


@pytest.mark.parametrize("damage", ["index", "list", "short", "gone", "flipped"])
def test_a_damaged_pack_of_a_cache_is_made_again(
    picture_folder: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    first = make_pack(picture_folder, cache)[3][0].copy()
    pixels = cache / "pictures.u8"
    if damage == "index":
        (cache / "pictures.json").write_text('{"finger')
    elif damage == "list":
        (cache / "pictures.json").write_text("[]")
    elif damage == "short":
        os.truncate(pixels, pixels.stat().st_size - 1)
    elif damage == "gone":
        pixels.unlink()
    else:
        flip_a_byte(pixels)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(make_pack(picture_folder, cache)[3][0], first)
    assert "packing again" in caplog.text


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    # However coarse the clock of the file system is.
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


def test_a_pack_killed_at_the_last_moment_is_made_again(
    picture_folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    code = (
        "import os, signal, sys; os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from mae_core.data.pack import pack_folder\n"
        "from mae_core.data.datasets import ImageReader\n"
        "reader = ImageReader(short_side=56)\n"
        "pack_folder(sys.argv[1], sys.argv[2], reader=reader, max_unreadable=0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(picture_folder), str(cache)], cwd=ROOT, check=False,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in cache.glob("pictures*")] == ["pictures.u8.partial"]
    assert len(make_pack(picture_folder, cache)) == 12
    assert not list(cache.glob("*.partial"))


def test_a_cache_of_version_0_1_is_used_as_it_is(picture_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    make_pack(picture_folder, cache)
    index = json.loads((cache / "pictures.json").read_text())
    del index["sha256"]
    (cache / "pictures.json").write_text(json.dumps(index))
    (cache / "pictures.checked").unlink()
    written = (cache / "pictures.u8").stat().st_mtime_ns
    assert len(make_pack(picture_folder, cache)) == 12
    assert (cache / "pictures.u8").stat().st_mtime_ns == written
    assert "sha256" not in json.loads((cache / "pictures.json").read_text())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="nothing here is always full")
def test_a_full_disk_ends_packing_in_a_sentence(picture_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "pictures.u8.partial").symlink_to("/dev/full")
    with pytest.raises(DataError, match=f"{os.strerror(errno.ENOSPC)}; free space.*decode=epoch"):
        make_pack(picture_folder, cache)
    assert not list(cache.glob("pictures*"))
    assert len(make_pack(picture_folder, cache)) == 12


def test_a_cache_that_cannot_be_written_is_a_sentence(picture_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be packed into .*data.cache"):
        make_pack(picture_folder, tmp_path / "file" / "cache")


# How earlier versions wrote a reader into the fingerprint: of photographs, and of measurements.
OLD_TEXTS = {
    ImageReader(short_side=56): "56",
    ImageReader(4, (), ((0.0, 3000.0),), 40): (
        "PictureReader(channels=4, bands=(), value_range=((0.0, 3000.0),), short_side=40)"
    ),
}


@pytest.mark.parametrize("reader", OLD_TEXTS)
def test_packs_of_earlier_versions_are_not_made_again(
    picture_folder: Path, reader: ImageReader
) -> None:
    paths = find_images(picture_folder)
    digest = hashlib.sha256(OLD_TEXTS[reader].encode())
    for path in paths:
        status = path.stat()
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    assert mae_core.data.pack._fingerprint(paths, reader) == digest.hexdigest()


def test_an_index_has_the_fields_of_earlier_versions(picture_folder: Path, tmp_path: Path) -> None:
    make_pack(picture_folder, tmp_path / "cache")
    assert list(json.loads((tmp_path / "cache" / "pictures.json").read_text())) == [
        "fingerprint", "names", "sizes", "files", "unreadable", "sha256", "channels", "bands",
        "value_range",
    ]  # fmt: skip


def test_a_class_of_unreadable_images_keeps_its_number(
    picture_folder: Path, tmp_path: Path
) -> None:
    (picture_folder / "aa").mkdir()
    (picture_folder / "aa" / "bad.jpg").write_bytes(b"not a picture")
    pack = make_pack(picture_folder, tmp_path / "cache")
    assert pack.classes == ("a", "aa", "b")
    assert pack.labels.tolist() == [0] * 6 + [2] * 6


def test_unreadable_files_are_named_skipped_and_fatal_above_a_share(
    picture_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (picture_folder / "a" / "broken.jpg").write_bytes(b"not a picture")
    with caplog.at_level(logging.WARNING):
        pack = make_pack(picture_folder, tmp_path / "cache", max_unreadable=0.1)
    assert "skipped a/broken.jpg" in caplog.text
    assert len(pack) == 12
    assert pack.unreadable == ["a/broken.jpg"]
    with pytest.raises(DataError, match="1 of 13 images are unreadable, such as a/broken.jpg"):
        make_pack(picture_folder, tmp_path / "cache", max_unreadable=0.05)


def test_a_link_that_leads_nowhere_is_an_unreadable_file(
    picture_folder: Path, tmp_path: Path
) -> None:
    (picture_folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert make_pack(picture_folder, tmp_path / "cache").unreadable == ["gone.png"]


def test_nothing_readable_is_never_enough(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "broken.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match="1 of 1 images are unreadable"):
        make_pack(folder, tmp_path / "cache", max_unreadable=1.0)
    with pytest.raises(DataError, match="1 of 1 images are unreadable"):
        FolderImages(folder, reader=ImageReader(short_side=56), max_unreadable=1.0)[0]


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    with pytest.raises(DataError, match="no image lies below"):
        find_images(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        find_images(tmp_path / "missing")
    with pytest.raises(DataError, match="'' is not a folder"):
        find_images("")


def test_pictures_decoded_each_time_are_those_of_a_pack(
    picture_folder: Path, tmp_path: Path
) -> None:
    pack = make_pack(picture_folder, tmp_path / "cache")
    folder = FolderImages(picture_folder, reader=ImageReader(short_side=56), max_unreadable=0)
    assert len(folder) == len(pack)
    for i in range(len(pack)):
        np.testing.assert_array_equal(folder[i][0], pack[i][0])


def test_the_next_picture_takes_the_place_of_one_found_unreadable(
    picture_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [path.relative_to(picture_folder).as_posix() for path in find_images(picture_folder)]
    for i in (4, 5, 11):
        (picture_folder / names[i]).write_bytes(b"not a picture")
    for order in (range(12), reversed(range(12))):
        folder = FolderImages(
            picture_folder, reader=ImageReader(short_side=56), max_unreadable=0.25
        )
        caplog.clear()
        pictures = {i: folder[i][0] for i in order}
        np.testing.assert_array_equal(pictures[4], pictures[6])
        np.testing.assert_array_equal(pictures[5], pictures[6])
        np.testing.assert_array_equal(pictures[11], pictures[0])
        skipped = sorted(line.split(": ")[0] for line in caplog.messages if "skipped" in line)
        assert skipped == [f"skipped {names[i]}" for i in (4, 5, 11)]
    strict = FolderImages(picture_folder, reader=ImageReader(short_side=56), max_unreadable=0.2)
    assert strict[4][0].shape == strict[6][0].shape
    with pytest.raises(DataError, match="3 of 12 images are unreadable"):
        strict[11]


def test_the_command_packs_a_folder_to_train_on(
    picture_folder: Path, tmp_path: Path, hashed: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "packs" / "mine"
    assert mae(["pack", str(picture_folder), str(out), "short_side=40"]) == 0
    said = capsys.readouterr().out
    assert f"12 images, 0 MB in {out}; train on them with data.pack={out}" in said
    pack = open_dataset(DataConfig(pack=str(out)), tmp_path / "cache")
    assert len(pack) == 12  # type: ignore[arg-type]
    assert not hashed


def test_mistakes_of_the_command_are_said(picture_folder: Path, tmp_path: Path) -> None:
    folder, out = str(picture_folder), str(tmp_path / "out")
    with pytest.raises(ConfigError, match="arguments are required: OUT; see mae pack --help"):
        mae(["pack", folder])
    with pytest.raises(ConfigError, match="short_side is 4"):
        mae(["pack", folder, out, "short_side=4"])
    with pytest.raises(ConfigError, match="crop"):
        mae(["pack", folder, out, "crop=centre"])
    with pytest.raises(DataError, match="is not a folder"):
        mae(["pack", str(tmp_path / "missing"), out])


def test_two_processes_pack_into_a_folder_one_after_the_other(
    picture_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    cache = tmp_path / "cache"
    cache.mkdir()
    with ThreadPoolExecutor(1) as pool:
        with filelock.FileLock(cache / ".lock"):
            packing = pool.submit(make_pack, picture_folder, cache)
            while not any("waiting for another process" in line for line in caplog.messages):
                time.sleep(0.01)
            assert not list(cache.glob("pictures*"))
        assert len(packing.result()) == 12


def copied_pack(picture_folder: Path, tmp_path: Path) -> Path:
    """A pack that came from elsewhere: nothing says that it was checked."""
    pack = tmp_path / "pack"
    make_pack(picture_folder, pack)
    (pack / "pictures.checked").unlink()
    return pack


def test_the_hash_of_a_pack_is_checked_once(
    picture_folder: Path, tmp_path: Path, hashed: list[Path]
) -> None:
    pack = copied_pack(picture_folder, tmp_path)
    for _ in range(3):
        assert len(open_pack(pack)) == 12
    assert hashed == [pack / "pictures.u8"]
    # Written again, it is checked again, also where the new pixels are the old ones.
    os.utime(pack / "pictures.u8", ns=(0, 0))
    open_pack(pack)
    assert len(hashed) == 2


def test_the_check_of_a_pack_that_cannot_be_written_to_is_remembered_elsewhere(
    picture_folder: Path, tmp_path: Path, hashed: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    pack = copied_pack(picture_folder, tmp_path)
    (pack / "pictures.checked").mkdir()  # as good as a folder without permission, for root too
    for _ in range(2):
        open_pack(pack, memory=tmp_path / "cache")
    assert len(hashed) == 1
    with caplog.at_level(logging.WARNING):
        open_pack(pack)
    assert "checked at each start" in caplog.text
    assert len(hashed) == 2


def test_a_pack_of_other_pixels_is_refused(picture_folder: Path, tmp_path: Path) -> None:
    pack = copied_pack(picture_folder, tmp_path)
    content = (pack / "pictures.u8").read_bytes()
    flip_a_byte(pack / "pictures.u8")
    config = DataConfig(pack=str(pack))
    for _ in range(2):  # a check that failed is not remembered as passed
        with pytest.raises(DataError, match="not those that were packed.*copy the pack again"):
            open_dataset(config, tmp_path / "cache")
    (pack / "pictures.u8").write_bytes(content[:-1])
    with pytest.raises(DataError, match="bytes instead of"):
        open_dataset(config, tmp_path / "cache")
    (pack / "pictures.json").unlink()
    with pytest.raises(DataError, match="no finished pack.*mae pack"):
        open_dataset(config, tmp_path / "cache")
