import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_core.config import DataConfig
from mae_core.data.augment import augment, random_crop_box
from mae_core.data.loader import BatchLoader
from mae_core.data.packed import find_images, pack_folder
from mae_core.errors import DataError


def _pack(folder: Path, cache: Path, max_unreadable: float = 0.2, short_side: int = 56):  # type: ignore[no-untyped-def]
    return pack_folder(folder, cache, short_side=short_side, max_unreadable=max_unreadable)


def test_a_pack_holds_every_picture_of_every_subfolder(
    picture_folder: Path, tmp_path: Path
) -> None:
    pack = _pack(picture_folder, tmp_path / "cache")
    assert len(pack) == 12
    assert pack.names == sorted(pack.names)
    assert pack.unreadable == []
    for i, name in enumerate(pack.names):
        picture = Image.open(picture_folder / name).convert("RGB")
        size = (round(picture.width * 56 / 60), 56)
        expected = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(pack[i], expected)


def test_a_pack_is_made_once_and_again_when_a_file_changes(
    picture_folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    _pack(picture_folder, cache)
    written = (cache / "pictures.u8").stat().st_mtime_ns
    _pack(picture_folder, cache)
    assert (cache / "pictures.u8").stat().st_mtime_ns == written
    Image.new("RGB", (90, 70), "red").save(picture_folder / "new.png")
    assert len(_pack(picture_folder, cache)) == 13
    assert _pack(picture_folder, cache, short_side=40)[0].shape[0] == 40


def test_an_unfinished_pack_is_made_again(picture_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = _pack(picture_folder, cache)[3].copy()
    (cache / "pictures.json").write_text('{"finger')
    np.testing.assert_array_equal(_pack(picture_folder, cache)[3], first)


def test_unreadable_files_are_named_skipped_and_fatal_above_a_share(
    picture_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (picture_folder / "a" / "broken.jpg").write_bytes(b"not a picture")
    with caplog.at_level(logging.WARNING):
        pack = _pack(picture_folder, tmp_path / "cache", max_unreadable=0.1)
    assert "skipped a/broken.jpg" in caplog.text
    assert len(pack) == 12
    assert pack.unreadable == ["a/broken.jpg"]
    with pytest.raises(DataError, match="1 of 13 files are unreadable, such as a/broken.jpg"):
        _pack(picture_folder, tmp_path / "cache", max_unreadable=0.05)


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    with pytest.raises(DataError, match="no picture lies below"):
        find_images(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        find_images(tmp_path / "missing")
    with pytest.raises(DataError, match="'' is not a folder"):
        find_images("")


def test_crop_boxes_have_the_areas_and_aspects_asked_for() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array(
        [random_crop_box(400, 500, (0.2, 0.6), (0.75, 4 / 3), rng) for _ in range(3000)]
    )
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 500).all()
    assert (boxes[:, 3] <= 400).all()
    areas, log_aspects = widths * heights / (400 * 500), np.log(widths / heights)
    assert 0.195 < areas.min() < 0.21
    assert 0.59 < areas.max() < 0.605
    # Uniform areas and log-uniform aspects, as torchvision draws them: means and spreads.
    assert abs(areas.mean() - 0.4) < 0.01
    assert abs(areas.std() - 0.4 / np.sqrt(12)) < 0.005
    assert abs(log_aspects.mean()) < 0.015
    assert abs(log_aspects.std() - 2 * np.log(4 / 3) / np.sqrt(12)) < 0.01


def test_a_picture_too_narrow_for_the_crop_gives_its_widest_allowed_centre() -> None:
    rng = np.random.default_rng(0)
    assert random_crop_box(400, 20, (1.0, 1.0), (0.5, 2.0), rng) == (0, 180, 20, 220)
    assert random_crop_box(20, 400, (1.0, 1.0), (0.5, 2.0), rng) == (180, 0, 220, 20)


def test_a_crop_of_everything_is_the_picture_and_half_are_mirrored() -> None:
    picture = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    config = DataConfig(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0))
    rng = np.random.default_rng(0)
    crops = [augment(picture, 16, config, rng) for _ in range(200)]
    mirrored = sum(np.array_equal(crop, picture[:, ::-1]) for crop in crops)
    assert mirrored + sum(np.array_equal(crop, picture) for crop in crops) == 200
    assert 70 < mirrored < 130


def _loader(seed: int = 0, batch_size: int = 4) -> BatchLoader:
    pictures = [np.full((20, 20, 3), i, dtype=np.uint8) for i in range(10)]
    return BatchLoader(pictures, DataConfig(), batch_size=batch_size, seed=seed)


def test_every_epoch_shows_every_picture_once_in_a_new_order() -> None:
    batches = [_loader().batch(step, 8) for step in range(5)]  # 20 samples: two epochs
    seen = [int(crop.float().mean().round()) for batch in batches for crop in batch]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_batches_depend_on_seed_and_step_alone() -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (30, 40, 3), dtype=np.uint8) for _ in range(6)]
    make = lambda seed: BatchLoader(pictures, DataConfig(), batch_size=4, seed=seed)  # noqa: E731
    whole = list(make(1).batches(0, 6, lambda step: 8 if step < 3 else 16))
    resumed = list(make(1).batches(2, 6, lambda step: 8 if step < 3 else 16))
    assert [tuple(batch.shape) for batch in whole] == [(4, 8, 8, 3)] * 3 + [(4, 16, 16, 3)] * 3
    assert all(a.equal(b) for a, b in zip(whole[2:], resumed, strict=True))
    assert not make(2).batch(0, 8).equal(whole[0])
