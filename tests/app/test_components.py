import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio.data_classes import ImageData
from PIL import Image

import app
from app.components import PanelImage, SafeImage, UncheckedSlider
from app.components.image import MAX_BYTES
from app.ops.storage import MAX_AGE_SECONDS, CacheFolder
from app.page.build import EXAMPLES
from app.pictures import PictureFile
from mae_core.errors import ImageError

FILE = {"_type": "gradio.FileData"}


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    folder = tmp_path / "uploads"
    folder.mkdir()
    return folder


@pytest.fixture
def safe_image(uploads: Path) -> SafeImage:
    component = SafeImage()
    component.GRADIO_CACHE = str(uploads)
    return component


def uploaded(folder: Path, data: bytes) -> ImageData:
    path = folder / "picture.png"
    path.write_bytes(data)
    return ImageData(path=str(path))


def test_an_upload_is_handed_on_as_a_file(safe_image: SafeImage, uploads: Path) -> None:
    data = bytes(range(256))
    picture = safe_image.preprocess(uploaded(uploads, data))
    assert isinstance(picture, PictureFile)
    assert picture.read() == data


def test_an_upload_in_use_does_not_get_old(safe_image: SafeImage, uploads: Path) -> None:
    payload, now = uploaded(uploads, b"picture"), time.time()
    path = Path(str(payload.path))
    for age, noted in ((MAX_AGE_SECONDS - 60, True), (60, False)):
        os.utime(path, (now - age,) * 2)
        safe_image.preprocess(payload)
        assert (path.stat().st_mtime >= now - 30) == noted


def test_no_picture_is_none(safe_image: SafeImage) -> None:
    assert safe_image.preprocess(None) is None
    safe_image.check_payload(None)


def test_a_file_that_is_too_large_is_not_read(safe_image: SafeImage, uploads: Path) -> None:
    payload = uploaded(uploads, b"")
    with Path(str(payload.path)).open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ImageError, match="20 MiB"):
        safe_image.preprocess(payload)


@pytest.mark.parametrize(
    "payload",
    [
        "cat.jpg",
        3,
        [],
        {},
        {"path": "cat.jpg"},
        {"path": "cat.jpg", "meta": {"_type": "else"}},
        {"path": None, "meta": FILE},
        {"url": "data:image/png;base64,aaaa"},
    ],
    ids=str,
)
def test_what_is_no_file_is_refused(safe_image: SafeImage, payload: object) -> None:
    with pytest.raises(ImageError, match="must be an uploaded file"):
        safe_image.check_payload(payload)


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "http://127.0.0.1/a.png"},
        {"path": "https://example.com/a.png"},
        {"path": "data:image/png;base64,aaaa"},
        {"url": "data:image/png;base64,aaaa"},
    ],
    ids=str,
)
def test_addresses_are_refused(
    safe_image: SafeImage, uploads: Path, changes: dict[str, Any]
) -> None:
    payload = {"path": uploaded(uploads, b"x").path, "meta": FILE, **changes}
    with pytest.raises(ImageError, match="not fetched"):
        safe_image.check_payload(payload)


def test_files_that_were_not_uploaded_are_out_of_reach(
    safe_image: SafeImage, uploads: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    (uploads / "link.png").symlink_to(secret)
    outside = [str(secret), str(uploads / ".." / "secret.png"), str(uploads / "link.png")]
    for path in [*outside, str(uploads), "", "a\0b"]:
        with pytest.raises(ImageError, match="must be an uploaded file"):
            safe_image.check_payload({"path": path, "meta": FILE})
        with pytest.raises(ImageError, match="must be an uploaded file"):
            safe_image.preprocess(ImageData(path=path))


def test_an_upload_that_was_deleted_is_not_found(safe_image: SafeImage, uploads: Path) -> None:
    with pytest.raises(FileNotFoundError):
        safe_image.check_payload({"path": str(uploads / "gone.png"), "meta": FILE})


def test_a_panel_is_a_lossless_file_of_its_own_name(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    component = PanelImage(elem_id="panel-masked", format="png")
    component.GRADIO_CACHE = str(tmp_path)
    first, second = (component.postprocess(Image.fromarray(pixels)) for _ in range(2))
    assert first is not None
    assert first == second
    path = Path(str(first.path))
    assert path.name == first.orig_name == "masked.png"
    with Image.open(path) as saved:
        assert np.array_equal(np.asarray(saved), pixels)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["masked.png"]


def test_an_empty_panel_is_none() -> None:
    assert PanelImage(elem_id="panel-masked").postprocess(None) is None


@pytest.mark.parametrize("value", ["0.5", None, True, 7.5, [1]], ids=str)
def test_a_slider_hands_on_whatever_comes(value: object) -> None:
    assert UncheckedSlider(0, 1).preprocess(value) is value


def test_a_panel_shown_again_does_not_get_old_and_stays_the_same_file(tmp_path: Path) -> None:
    component = PanelImage(elem_id="panel-masked", format="png")
    component.GRADIO_CACHE = str(tmp_path)
    first = component.postprocess(Image.new("RGB", (8, 8)))
    assert first is not None
    path, long_ago = Path(str(first.path)), time.time() - MAX_AGE_SECONDS - 60
    for old in (path, path.parent):
        os.utime(old, (long_ago,) * 2)
    before = path.stat()
    assert component.postprocess(Image.new("RGB", (8, 8))) == first
    # What an ETag is made of.
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    CacheFolder(tmp_path, 10**6).sweep()
    assert path.exists()
    os.utime(path.parent, (long_ago,) * 2)
    CacheFolder(tmp_path, 10**6).sweep()
    assert not path.exists()


def test_a_panel_that_was_deleted_is_written_again(tmp_path: Path) -> None:
    component = PanelImage(elem_id="panel-masked", format="png")
    component.GRADIO_CACHE = str(tmp_path)
    for folder_too in (True, False, False):
        panel = component.postprocess(Image.new("RGB", (8, 8)))
        assert panel is not None
        path = Path(str(panel.path))
        # It is there each time, whatever was deleted of it.
        path.unlink()
        if folder_too:
            path.parent.rmdir()


def test_every_example_has_its_licence() -> None:
    licences = (EXAMPLES / "LICENSES.md").read_text(encoding="utf-8")
    names = {path.name for path in EXAMPLES.glob("*.jpg")}
    assert names
    assert not {name for name in names if f"| {name} |" not in licences}


def test_components_leave_no_stub_files() -> None:
    assert not list(Path(app.__path__[0]).rglob("*.pyi"))
