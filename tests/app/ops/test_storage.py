import hashlib
import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.ops import storage
from app.ops.storage import MAX_AGE_SECONDS, YOUNG_SECONDS, CacheFolder, StorageError

OLD = YOUNG_SECONDS + 100


def upload(folder: Path, name: str, size: int = 100, age: float = OLD) -> Path:
    """A file as Gradio keeps it."""
    path = folder / hashlib.sha256(name.encode()).hexdigest() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    written(path, size, age)
    os.utime(path.parent, (time.time() - age,) * 2)
    return path


def written(path: Path, size: int = 100, age: float = OLD) -> Path:
    path.write_bytes(b"x" * size)
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_the_oldest_go_until_the_rest_fits(tmp_path: Path) -> None:
    files = [upload(tmp_path, f"{n}.png", age=OLD + 10 * n) for n in range(5)]
    folder = CacheFolder(tmp_path, 250)
    folder.sweep()
    assert [file.exists() for file in files] == [True, True, False, False, False]
    assert folder.bytes == 200
    # Their folders go with them.
    assert len(list(tmp_path.iterdir())) == 2


def test_what_fits_stays_for_an_hour(tmp_path: Path) -> None:
    young = upload(tmp_path, "a.png", age=MAX_AGE_SECONDS - 100)
    old = upload(tmp_path, "b.png", age=MAX_AGE_SECONDS + 100)
    CacheFolder(tmp_path, 10**6).sweep()
    assert (young.exists(), old.exists()) == (True, False)


def test_a_file_is_as_young_as_its_folder(tmp_path: Path) -> None:
    used, old = (upload(tmp_path, name, age=MAX_AGE_SECONDS + 100) for name in ("a.png", "b.png"))
    os.utime(used.parent)
    CacheFolder(tmp_path, 10**6).sweep()
    assert (used.exists(), old.exists()) == (True, False)


def test_of_too_many_files_those_used_last_stay(tmp_path: Path) -> None:
    files = [upload(tmp_path, f"{n}.png", age=OLD + 10 * n) for n in range(5)]
    os.utime(files[4].parent)
    CacheFolder(tmp_path, 250).sweep()
    assert [file.exists() for file in files] == [True, False, False, False, True]


def test_the_young_stay_up_to_twice_the_bound(tmp_path: Path) -> None:
    files = [upload(tmp_path, f"{n}.png", age=YOUNG_SECONDS - 30 + n) for n in range(5)]
    CacheFolder(tmp_path, 250).sweep()
    assert all(file.exists() for file in files)
    CacheFolder(tmp_path, 200).sweep()
    assert [file.exists() for file in files] == [True, True, True, True, False]


def test_files_of_the_future_do_not_stay_for_ever(tmp_path: Path) -> None:
    # The clock was set back.
    file = upload(tmp_path, "a.png", age=-100_000)
    CacheFolder(tmp_path, 10**6).sweep()
    assert not file.exists()


def test_unfinished_uploads_go_too(tmp_path: Path) -> None:
    partial = written(tmp_path / "tmpab12_xyz", age=MAX_AGE_SECONDS + 1)
    CacheFolder(tmp_path, 10**6).sweep()
    assert not partial.exists()


def test_the_pages_own_files_stay_and_gradio_is_told_of_the_others(tmp_path: Path) -> None:
    own, others = upload(tmp_path, "own.png", age=10**6), upload(tmp_path, "b.png", age=10**6)
    told: list[Collection[str]] = []
    CacheFolder(tmp_path, 0, kept=lambda: {str(own)}, forget=told.append).sweep()
    assert (own.exists(), others.exists()) == (True, False)
    assert told == [[str(others)]]


def test_nothing_else_is_touched(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    precious = upload(outside, "precious.png", age=10**6)
    mine = upload(folder, "mine.png", age=10**6)
    bystanders = [
        written(folder / "notes.txt", age=10**6),
        written(folder / "tmp.txt", age=10**6),
        written(precious.parent / "more.png", age=10**6),
    ]
    (folder / "photos").mkdir()
    bystanders.append(written(folder / "photos" / "a.png", age=10**6))
    (folder / mine.parent.name / "deeper").mkdir()
    bystanders.append(written(folder / mine.parent.name / "deeper" / "a.png", age=10**6))
    (folder / precious.parent.name).symlink_to(precious.parent)
    (folder / "tmplink1234").symlink_to(precious)
    (mine.parent / "link.png").symlink_to(precious)
    CacheFolder(folder, 0).sweep()
    assert not mine.exists()
    assert precious.exists()
    assert all(file.exists() for file in bystanders)


def test_a_file_that_is_being_read_is_read_to_its_end(tmp_path: Path) -> None:
    with upload(tmp_path, "a.png", 10**6).open("rb") as file:
        file.read(10)
        CacheFolder(tmp_path, 0).sweep()
        assert len(file.read()) == 10**6 - 10


def test_files_may_go_while_they_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(10):
        upload(tmp_path, f"{n}.png")
    real = storage._entries

    def racing(folder: str | Path) -> list[os.DirEntry[str]]:
        entries = real(folder)
        if folder != tmp_path:
            shutil.rmtree(folder)
        return entries

    monkeypatch.setattr(storage, "_entries", racing)
    folder = CacheFolder(tmp_path, 0)
    folder.sweep()
    assert folder.bytes == 0


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path / "none", 0)
    folder.sweep()
    folder.check_space()
    assert folder.bytes == 0


def test_a_sweep_looks_at_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(200):
        upload(tmp_path, f"{n}.png")
    looks: list[str] = []
    real = storage._entries
    monkeypatch.setattr(storage, "_entries", lambda path: looks.append(str(path)) or real(path))
    CacheFolder(tmp_path, 10**9).sweep()
    assert len(looks) == 201


def test_a_disk_nearly_full_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CacheFolder(tmp_path / "none", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(StorageError, match="disk is nearly full") as caught:
        folder.check_space()
    assert str(tmp_path) not in str(caught.value)


def test_it_sweeps_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storage, "_SWEEP_SECONDS", 0.01)
    broken = [True]

    def kept() -> list[str]:
        if broken and broken.pop():
            raise RuntimeError("once")
        return []

    file = upload(tmp_path, "a.png")
    folder = CacheFolder(tmp_path, 0, kept=kept)
    folder.start()
    for _ in range(12_000):
        if not file.exists():
            break
        time.sleep(0.01)
    folder.stop()
    # One sweep that fails is not the last.
    assert not file.exists()
    assert "cannot sweep" in caplog.text
