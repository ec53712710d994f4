"""Which files of a folder are images, of which class, and what is said of the others."""

import errno
import importlib.util
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

import mae_core.photographs
from mae_core.config import DataConfig
from mae_core.data.datasets import FolderImages, ImageReader, find_images
from mae_core.data.loader import open_dataset
from mae_core.data.pack import PackedImages, open_pack, pack_folder
from mae_core.errors import DataError
from tests.pictures import draw_picture

READER = ImageReader(short_side=56)
HEIC_START = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)


def names(folder: Path, holdout: Path | str = "") -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_images(folder, holdout)]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


@pytest.fixture
def without_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        mae_core.photographs, "find_spec",
        lambda name: None if name == "pillow_heif" else find(name),
    )  # fmt: skip


def openings(config: DataConfig, cache: Path) -> dict[str, list[str]]:
    """What is trained on with each way of decoding, by name."""
    packed = open_dataset(config, cache)
    assert isinstance(packed, PackedImages)
    each = open_dataset(replace(config, decode="epoch"), cache)
    assert isinstance(each, FolderImages)
    for i, name in enumerate(packed.names):
        np.testing.assert_array_equal(each[i][0], packed[i][0], err_msg=name)
        assert each[i][1] == packed[i][1]
    assert len(each) == len(packed)
    assert each.classes == packed.classes
    return packed.names


def test_a_holdout_inside_the_training_folder_is_not_trained_on(
    picture_folder: Path, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    config = DataConfig(folder=str(picture_folder), holdout=str(picture_folder / "a"))
    trained = openings(config, tmp_path / "cache")
    assert len(trained) == 6
    assert all(name.startswith("b/") for name in trained)
    assert "6 images below" in said.text
    assert "skipped 6 other files (hold-out 6)" in said.text


def test_a_holdout_is_the_same_pictures_under_any_name(
    picture_folder: Path, tmp_path: Path
) -> None:
    everything = names(picture_folder)
    (tmp_path / "link").symlink_to(picture_folder / "a", target_is_directory=True)
    assert not set(names(picture_folder, tmp_path / "link")) & set(names(picture_folder, "")[:6])
    assert names(tmp_path / "link" / "..", picture_folder / "a") == everything[6:]
    # The training folder leads to the hold-out, or the hold-out to training pictures.
    (picture_folder / "b" / "more").symlink_to(picture_folder / "a", target_is_directory=True)
    assert names(picture_folder, picture_folder / "a") == everything[6:]
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    (chosen / "soft.png").symlink_to(picture_folder / everything[0])
    os.link(picture_folder / everything[7], chosen / "hard.png")
    assert names(picture_folder, chosen) == [*everything[1:7], *everything[8:]]


def test_a_holdout_that_leaves_nothing_to_train_on_is_refused(
    picture_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(picture_folder, target_is_directory=True)
    for folder in (picture_folder, picture_folder / "a" / "..", tmp_path / "link"):
        with pytest.raises(
            DataError, match="skipped .*hold-out 12.*; give a hold-out that leaves some"
        ):
            find_images(picture_folder, folder)
    with pytest.raises(DataError, match="no image lies below .*; skipped .*hold-out 6"):
        find_images(picture_folder / "a", picture_folder)
    with pytest.raises(DataError, match="'nowhere' is not a folder"):
        find_images(picture_folder, "nowhere")


def test_a_pack_made_before_is_trained_on_without_the_holdout(
    picture_folder: Path, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    packed = pack_folder(picture_folder, tmp_path / "pack", reader=READER, max_unreadable=0)
    # Copied to another machine under other names.
    holdout = tmp_path / "holdout"
    holdout.mkdir()
    for i, name in enumerate(packed.names[2:5]):
        shutil.copy(picture_folder / name, holdout / f"copy{i}{Path(name).suffix}")
    config = DataConfig(pack=str(tmp_path / "pack"), holdout=str(holdout))
    pack = open_dataset(config, tmp_path / "cache")
    assert isinstance(pack, PackedImages)
    assert pack.names == packed.names[:2] + packed.names[5:]
    np.testing.assert_array_equal(pack[2][0], packed[5][0])
    assert "9 images; skipped 3 of data.holdout" in said.text
    with pytest.raises(DataError, match="no image of the pack is known to be outside data.hold"):
        open_dataset(replace(config, holdout=str(picture_folder)), tmp_path / "cache")


def test_a_pack_that_does_not_know_its_files_takes_no_holdout(
    picture_folder: Path, tmp_path: Path
) -> None:
    pack_folder(picture_folder, tmp_path / "pack", reader=READER, max_unreadable=0)
    index = json.loads((tmp_path / "pack" / "pictures.json").read_text())
    del index["files"]
    (tmp_path / "pack" / "pictures.json").write_text(json.dumps(index))
    config = DataConfig(pack=str(tmp_path / "pack"), holdout=str(picture_folder / "a"))
    with pytest.raises(DataError, match="or make a pack of an older version again"):
        open_dataset(config, tmp_path / "cache")
    config = replace(config, holdout="")
    assert len(open_dataset(config, tmp_path / "cache")) == 12  # type: ignore[arg-type]


def test_linked_class_folders_are_followed(picture_folder: Path, tmp_path: Path) -> None:
    train = tmp_path / "train"
    train.mkdir()
    (train / "cat").symlink_to(picture_folder / "a", target_is_directory=True)
    (train / "dog").symlink_to(picture_folder / "b", target_is_directory=True)
    assert len(names(train)) == 12
    assert names(train)[0] == "cat/01.jpg"
    assert len(pack_folder(train, tmp_path / "pack", reader=READER, max_unreadable=0)) == 12


def test_classes_are_those_of_torchvision(picture_folder: Path, tmp_path: Path) -> None:
    theirs = ImageFolder(picture_folder)
    expected = {Path(path): label for path, label in theirs.samples}
    ours = FolderImages(picture_folder, reader=READER, max_unreadable=0)
    pack = pack_folder(picture_folder, tmp_path / "pack", reader=READER, max_unreadable=0)
    assert ours.classes == pack.classes == tuple(theirs.classes) == ("a", "b")
    for i, name in enumerate(ours.names):
        assert ours[i][1] == pack[i][1] == expected[picture_folder / name]
    again = open_pack(tmp_path / "pack")
    assert (again.classes, again.labels.tolist()) == (pack.classes, pack.labels.tolist())


def test_an_image_in_the_root_has_no_class(picture_folder: Path, tmp_path: Path) -> None:
    draw_picture(0).save(picture_folder / "zz.png")
    folder = FolderImages(picture_folder, reader=READER, max_unreadable=0)
    assert [folder[i][1] for i in range(13)] == [0] * 6 + [1] * 6 + [-1]
    flat = FolderImages(picture_folder / "a", reader=READER, max_unreadable=0)
    assert flat.classes == ()
    assert {flat[i][1] for i in range(6)} == {-1}


def test_a_folder_without_images_to_train_on_is_no_class(
    picture_folder: Path, tmp_path: Path
) -> None:
    (picture_folder / "notes").mkdir()
    (picture_folder / "notes" / "a.txt").write_text("hello")
    config = DataConfig(folder=str(picture_folder), holdout=str(picture_folder / "a"))
    openings(config, tmp_path / "cache")
    folder = open_dataset(replace(config, decode="epoch"), tmp_path)
    assert folder.classes == ("b",)


def test_the_label_is_of_the_image_that_takes_the_place_of_an_unreadable_one(
    picture_folder: Path,
) -> None:
    (picture_folder / "a" / "11.webp").write_bytes(b"not a picture")
    folder = FolderImages(picture_folder, reader=READER, max_unreadable=0.1)
    assert folder.names[5] == "a/11.webp"
    image, label = folder[5]
    np.testing.assert_array_equal(image, folder[6][0])
    assert label == 1


def test_links_that_run_in_circles_end_and_each_file_counts_once(
    picture_folder: Path, said: pytest.LogCaptureFixture
) -> None:
    before = names(picture_folder)
    (picture_folder / "a" / "up").symlink_to(picture_folder, target_is_directory=True)
    (picture_folder / "again").symlink_to(picture_folder / "b" / "c", target_is_directory=True)
    (picture_folder / "itself").symlink_to(picture_folder / "itself")
    (picture_folder / "one.png").symlink_to(picture_folder / "b" / "c" / "00.png")
    os.link(picture_folder / "a" / "01.jpg", picture_folder / "a" / "zz.jpg")
    assert len(names(picture_folder)) == 12
    assert set(before) - set(names(picture_folder)) <= {"b/c/00.png"}
    assert said.messages[-1].endswith("'; skipped 1 other files (without suffix 1)")


def test_what_is_skipped_is_counted_by_suffix(
    picture_folder: Path, said: pytest.LogCaptureFixture, without_heic: None
) -> None:
    before = names(picture_folder)
    files = {
        "IMG_1.HEIC": HEIC_START, "IMG_2.heic": HEIC_START, "phone": HEIC_START,
        "._01.jpg": b"\0\5\x16\7", ".DS_Store": b"\0\0\0\1", "a/Thumbs.db": b"\xd0\xcf\x11\xe0",
        "readme.txt": b"hello", "clip.MOV": b"\0\0\0\x14ftypqt  ",
        "raw.NEF": b"MM\0*\0\0\0\x08", "set.zip": b"PK\3\4\0\0", "dump": b"\0\1\2\3",
        ".cache/x.png": b"", ".git/y": b"", "__MACOSX/z.png": b"", "@eaDir/thumb.jpg": b"",
    }  # fmt: skip
    for name, content in files.items():
        (picture_folder / name).parent.mkdir(exist_ok=True)
        (picture_folder / name).write_bytes(content)
    os.mkfifo(picture_folder / "pipe.jpg")
    assert names(picture_folder) == before
    found, kinds = said.messages[-1].removesuffix(")").split(" other files (")
    assert found == f"12 images below {str(picture_folder)!r}; skipped 10"
    assert kinds.startswith("HEIC (pip install pillow-heif) 3, ")
    assert set(kinds.split(", ")[1:]) == (
        {".db 1", ".mov 1", "without suffix 1", ".jpg 1", ".nef 1", ".txt 1", ".zip 1"}
    )


def test_a_folder_of_nothing_to_read_says_what_lies_there(
    tmp_path: Path, without_heic: None
) -> None:
    (tmp_path / "a.heic").write_bytes(HEIC_START)
    (tmp_path / "b.txt").write_text("hello")
    with pytest.raises(
        DataError, match=r"skipped 2 other files \(HEIC \(pip install .*\) 1, .txt 1"
    ):
        find_images(tmp_path)


def test_a_folder_that_cannot_be_opened_is_named(
    picture_folder: Path, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = os.listdir

    def refuse(folder: str) -> list[str]:
        # As the system does, but to root as well.
        if folder.endswith("a"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return listed(folder)

    monkeypatch.setattr(os, "listdir", refuse)
    assert len(names(picture_folder)) == 6
    assert f"skipped the folder {picture_folder / 'a'}: Permission denied" in said.text


def test_content_decides_where_the_suffix_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    kinds = {"JPEG": "jfif", "PNG": "png_large", "WEBP": "", "GIF": "1", "BMP": "orig", "TIFF": "x"}
    for i, (kind, suffix) in enumerate(kinds.items()):
        draw_picture(i).save(folder / f"{i}.{suffix}".rstrip("."), format=kind)
    draw_picture(6).save(folder / "6.txt", format="JPEG", quality=90)
    (folder / "7.html").write_text("<html>no picture</html>")
    (folder / "8").write_bytes(b"BMW, Audi and other makers")
    assert names(folder) == ["0.jfif", "1.png_large", "2", "3.1", "4.orig", "5.x", "6.txt"]
    pack = pack_folder(folder, tmp_path / "pack", reader=READER, max_unreadable=0)
    assert len(pack) == 7


def test_a_picture_suffix_is_believed_without_opening_the_file(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (picture_folder / "no.JPEG").write_bytes(b"no picture")
    (picture_folder / "no.png").write_bytes(b"")

    def refuse(*args: object) -> None:
        raise AssertionError(f"opened {args}")

    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", refuse)
        assert len(names(picture_folder)) == 14
    pack = pack_folder(picture_folder, tmp_path / "pack", reader=READER, max_unreadable=0.2)
    assert pack.unreadable == ["no.JPEG", "no.png"]


ODD_NAMES = [
    b"caf\xe9",
    b"two\nlines",
    "\N{CAT FACE} \N{SNOWMAN}".encode(),
    b"x" * 200,
    b"\x1b[31m",
]


@pytest.fixture
def odd_folder(tmp_path: Path) -> Path:
    root = tmp_path / "odd"
    root.mkdir()
    for i, name in enumerate(ODD_NAMES):
        path = os.path.join(os.fsencode(root), name)
        try:
            os.mkdir(path)
        except OSError:
            pytest.skip("this file system takes no such name")
        draw_picture(i).save(root / f"{i}.png")
        os.rename(root / f"{i}.png", os.path.join(path, name + b".jpg"))
        with open(os.path.join(path, name + b" bad.jpg"), "wb") as file:
            file.write(b"no picture")
    return root


def test_a_name_in_any_encoding_is_packed_and_found_again(
    odd_folder: Path, tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    pack = pack_folder(odd_folder, tmp_path / "pack", reader=READER, max_unreadable=0.5)
    again = open_pack(tmp_path / "pack")
    assert {os.fsencode(name) for name in again.names} == {
        n + b"/" + n + b".jpg" for n in ODD_NAMES
    }
    assert all((odd_folder / name).is_file() for name in again.names + again.unreadable)
    assert len(again.unreadable) == len(ODD_NAMES)
    written = (tmp_path / "pack" / "pictures.u8").stat().st_mtime_ns
    assert pack_folder(odd_folder, tmp_path / "pack", reader=READER, max_unreadable=0.5).names \
        == pack.names  # fmt: skip
    assert (tmp_path / "pack" / "pictures.u8").stat().st_mtime_ns == written
    # One line for each, that every terminal can print.
    skipped = [line for line in said.messages if line.startswith("skipped ")]
    assert len(skipped) == len(ODD_NAMES)
    assert all(line.encode() and line.isprintable() for line in said.messages)
    assert any("caf\\xe9 bad.jpg" in line for line in skipped)
    with pytest.raises(DataError) as caught:
        pack_folder(odd_folder, tmp_path / "pack", reader=READER, max_unreadable=0.1)
    assert str(caught.value).encode()
    assert str(caught.value).isprintable()


def test_a_name_in_any_encoding_is_read_each_epoch(
    odd_folder: Path, said: pytest.LogCaptureFixture
) -> None:
    folder = FolderImages(odd_folder, reader=READER, max_unreadable=0.5)
    assert {folder[i][0].shape for i in range(len(folder))} == {(56, 75, 3)}
    assert sum("skipped" in line for line in said.messages) == len(ODD_NAMES)
    assert all(line.encode() and line.isprintable() for line in said.messages)


def test_a_picture_of_a_numpy_array_is_listed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((20, 20, 4), dtype=np.float32))
    assert names(tmp_path) == ["a.npy"]


def test_arrays_beside_pictures_are_no_pictures(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    # Embeddings or masks of them.
    np.save(tmp_path / "a.npy", np.zeros(512, dtype=np.float32))
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    assert names(tmp_path) == ["a.png"]
    assert "skipped 1 other files (.npy 1)" in said.text
