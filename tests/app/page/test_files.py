import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.examples import EXAMPLES
from app.ops.storage import MAX_AGE_SECONDS, CacheFolder, StorageError
from app.page.files import MAX_BYTES, example_file, panel_file, uploaded
from app.pictures import PictureFile
from mae_core.errors import ImageError
from tests.app.serving import pixels_of

FILE = {"_type": "gradio.FileData"}
OWN = EXAMPLES / "cat.jpg"


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    folder = tmp_path / "uploads"
    folder.mkdir()
    return folder


def upload(folder: Path, data: bytes) -> dict[str, Any]:
    path = folder / "picture.png"
    path.write_bytes(data)
    return {"path": str(path), "meta": FILE}


def test_an_upload_is_handed_on_as_a_file(uploads: Path) -> None:
    data = bytes(range(256))
    picture = uploaded(upload(uploads, data), uploads)
    assert isinstance(picture, PictureFile)
    assert picture.path.read_bytes() == data


def test_an_upload_in_use_does_not_get_old(uploads: Path) -> None:
    payload, now = upload(uploads, b"picture"), time.time()
    path = Path(payload["path"])
    for age, noted in ((MAX_AGE_SECONDS - 60, True), (60, False)):
        os.utime(path, (now - age,) * 2)
        uploaded(payload, uploads)
        assert (path.stat().st_mtime >= now - 30) == noted


def test_no_picture_is_none(uploads: Path) -> None:
    assert uploaded(None, uploads) is None


def test_an_example_is_copied_once_and_again_where_it_was_deleted(uploads: Path) -> None:
    copy = example_file(OWN, uploads)
    before = copy.stat()
    assert copy.read_bytes() == OWN.read_bytes()
    assert example_file(OWN, uploads) == copy
    assert copy.stat().st_ino == before.st_ino
    assert uploaded({"path": str(copy)}, uploads) == PictureFile(copy)
    copy.unlink()
    assert example_file(OWN, uploads).read_bytes() == OWN.read_bytes()
    with pytest.raises(ImageError, match="must be an uploaded file"):
        uploaded({"path": str(OWN)}, uploads)


def test_a_file_that_is_too_large_is_not_read(uploads: Path) -> None:
    payload = upload(uploads, b"")
    with Path(payload["path"]).open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ImageError, match="20 MiB"):
        uploaded(payload, uploads)


@pytest.mark.parametrize(
    "payload",
    [
        "cat.jpg",
        3,
        [],
        {},
        {"path": "cat.jpg"},
        {"path": None, "meta": FILE},
        {"path": ["cat.jpg"]},
        {"path": "http://127.0.0.1/a.png", "meta": FILE},
        {"path": "data:image/png;base64,aaaa", "meta": FILE},
        {"url": "data:image/png;base64,aaaa"},
    ],
    ids=str,
)
def test_what_is_no_upload_is_refused(uploads: Path, payload: object) -> None:
    with pytest.raises(ImageError, match="must be an uploaded file"):
        uploaded(payload, uploads)


def test_files_that_were_not_uploaded_are_out_of_reach(uploads: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    (uploads / "link.png").symlink_to(secret)
    outside = [str(secret), str(uploads / ".." / "secret.png"), str(uploads / "link.png")]
    for path in [*outside, str(uploads), "", "a\0b"]:
        with pytest.raises(ImageError, match="must be an uploaded file"):
            uploaded({"path": path, "meta": FILE}, uploads)


def test_an_upload_that_was_deleted_is_not_found(uploads: Path) -> None:
    with pytest.raises(FileNotFoundError):
        uploaded({"path": str(uploads / "gone.png"), "meta": FILE}, uploads)


def test_a_panel_is_a_lossless_file_of_its_own_name(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    first, second = (panel_file(Image.fromarray(pixels), "masked", tmp_path) for _ in range(2))
    assert first == second
    assert np.array_equal(pixels_of(str(first)), pixels)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["masked.png"]


def test_panels_of_other_shapes_or_colours_are_other_files(tmp_path: Path) -> None:
    panels = [Image.new("RGB", (16, 32)), Image.new("RGB", (32, 16)), Image.new("L", (48, 32))]
    assert len({panel_file(panel, "masked", tmp_path) for panel in panels}) == 3


def test_a_panel_shown_again_does_not_get_old_and_stays_the_same_file(tmp_path: Path) -> None:
    path = panel_file(Image.new("RGB", (8, 8)), "masked", tmp_path)
    long_ago = time.time() - MAX_AGE_SECONDS - 60
    for old in (path, path.parent):
        os.utime(old, (long_ago,) * 2)
    before = path.stat()
    assert panel_file(Image.new("RGB", (8, 8)), "masked", tmp_path) == path
    # What an ETag is made of.
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    CacheFolder(tmp_path, 10**6).sweep()
    assert path.exists()
    os.utime(path.parent, (long_ago,) * 2)
    CacheFolder(tmp_path, 10**6).sweep()
    assert not path.exists()


def test_a_panel_that_was_deleted_is_written_again(tmp_path: Path) -> None:
    for folder_too in (True, False, False):
        path = panel_file(Image.new("RGB", (8, 8)), "masked", tmp_path)
        # It is there each time, whatever was deleted of it.
        path.unlink()
        if folder_too:
            path.parent.rmdir()


def test_a_panel_that_cannot_be_written_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="try again in a few minutes"):
        panel_file(Image.new("RGB", (8, 8)), "masked", tmp_path / "file")


def test_every_example_has_its_licence() -> None:
    licences = (EXAMPLES / "LICENSES.md").read_text(encoding="utf-8")
    names = {path.name for path in EXAMPLES.glob("*.jpg")}
    assert names
    assert not {name for name in names if f"| {name} |" not in licences}
