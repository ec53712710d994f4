"""Batches: which images, which crops, for which process, on which device."""

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import mae_core.data.loader
from mae_core.config import DataConfig
from mae_core.data.datasets import ImageReader
from mae_core.data.loader import BatchLoader, open_dataset
from mae_core.data.pack import PackedImages, pack_folder
from mae_core.errors import ConfigError, DataError

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def plain_pictures(count: int = 10) -> list[NDArray[np.uint8]]:
    """Pictures that their crops tell apart: picture i is grey of level i."""
    return [np.full((20, 20, 3), i, dtype=np.uint8) for i in range(count)]


def noisy_pictures(count: int = 7) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8) for i in range(count)]


def packed(pictures: list[NDArray[np.uint8]]) -> PackedImages:
    sizes = np.array([picture.shape[:2] for picture in pictures])
    channels = pictures[0].shape[2]
    lengths = sizes.prod(axis=1) * channels
    pixels = np.concatenate([picture.ravel() for picture in pictures])
    names = [str(i) for i in range(len(pictures))]
    return PackedImages(pixels, np.cumsum(lengths) - lengths, sizes, names, [], channels=channels)


def loader_of(
    pictures: object, batch_size: int = 4, seed: int = 0, device: torch.device = CPU,
    config: DataConfig | None = None, **processes: int,
) -> BatchLoader:  # fmt: skip
    # Picture i of a list has label i.
    dataset = (
        [(one, i) for i, one in enumerate(pictures)] if isinstance(pictures, list) else pictures
    )
    return BatchLoader(
        dataset, config or DataConfig(), batch_size=batch_size, seed=seed,  # type: ignore[arg-type]
        mean=MEAN, std=STD, device=device, **processes,
    )  # fmt: skip


def batches(loader: BatchLoader, start: int, stop: int, side: int = 8) -> list[Tensor]:
    return [images for images, _ in loader.batches(start, stop, lambda step: side)]


def levels_of(images: Tensor) -> Tensor:
    """Normalised images as levels of 0..255 again."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images.cpu() * std + mean) * 255


def test_every_epoch_shows_every_picture_once_in_a_new_order() -> None:
    images = torch.cat(batches(loader_of(plain_pictures()), 0, 5))  # 20 samples: two epochs
    seen = [int(level.round()) for level in levels_of(images).mean(dim=(1, 2, 3))]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def expected_sample(pictures: list[NDArray[np.uint8]], seed: int, number: int) -> Tensor:
    """Sample `number` as the module says it is made, by Pillow; the seeds are part of a run."""
    epoch, place = divmod(number, len(pictures))
    order = np.random.default_rng((seed, 0, epoch)).permutation(len(pictures))
    picture = Image.fromarray(pictures[order[place]])
    rng = np.random.default_rng((seed, 1, number))
    while True:
        area = picture.height * picture.width * rng.uniform(0.2, 1.0)
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        width, height = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if width <= picture.width and height <= picture.height:
            break
    top = rng.integers(0, picture.height - height + 1)
    left = rng.integers(0, picture.width - width + 1)
    crop = picture.crop((left, top, left + width, top + height)).resize((16, 16), Image.BICUBIC)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(crop)).permute(2, 0, 1).float()


def test_sample_k_is_what_the_seeds_say() -> None:
    pictures = noisy_pictures()
    images = torch.cat(batches(loader_of(pictures, seed=5), 0, 6, side=16))
    expected = torch.stack([expected_sample(pictures, 5, number) for number in range(24)])
    off = (levels_of(images) - expected).abs()
    assert off.max() < 1.01
    assert off.mean() < 0.05


def test_a_run_resumed_at_any_step_sees_the_same_batches() -> None:
    def side_at(step: int) -> int:
        return 8 if step < 3 else 16

    whole = [images for images, _ in loader_of(noisy_pictures()).batches(0, 7, side_at)]
    assert [tuple(b.shape) for b in whole] == [(4, 3, 8, 8)] * 3 + [(4, 3, 16, 16)] * 4
    for start in range(1, 7):
        for workers in (1, 3):
            loader = loader_of(noisy_pictures(), config=DataConfig(workers=workers))
            resumed = [images for images, _ in loader.batches(start, 7, side_at)]
            assert all(a.equal(b) for a, b in zip(whole[start:], resumed, strict=True))
    assert not whole[0].equal(batches(loader_of(noisy_pictures(), seed=1), 0, 1)[0])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_all_processes_together_see_the_batch_of_one(world_size: int) -> None:
    pictures, config = noisy_pictures(), DataConfig(color_jitter=0.3)
    alone = batches(loader_of(pictures, batch_size=8, config=config), 2, 5)
    shares = [
        batches(
            loader_of(pictures, batch_size=8, config=config, rank=rank, world_size=world_size), 2, 5
        )
        for rank in range(world_size)
    ]
    assert shares[0][0].shape[0] == 8 // world_size
    together = [torch.cat(step) for step in zip(*shares, strict=True)]
    # The last bits of a mean over pixels depend on how many are added up side by side.
    assert all(a.allclose(b, atol=1e-5) for a, b in zip(alone, together, strict=True))


def test_every_image_comes_with_its_label(cropping: str) -> None:
    classes = ["cat", "zebra", ""]
    names = [f"{classes[i % 3]}/{i}.png".lstrip("/") for i in range(10)]
    pictures = dataclasses.replace(packed(plain_pictures()), names=names)
    assert pictures.classes == ("cat", "zebra")
    for rank, world_size in ((0, 1), (1, 2)):
        loader = loader_of(pictures, batch_size=8, rank=rank, world_size=world_size)
        for images, labels in cropped(loader, cropping).batches(1, 4, lambda step: 8):
            assert (labels.dtype, labels.device) == (torch.int64, CPU)
            levels = levels_of(images).mean(dim=(1, 2, 3)).round().int().tolist()
            assert labels.tolist() == [(0, 1, -1)[level % 3] for level in levels]


def test_a_batch_has_to_divide_over_the_processes() -> None:
    with pytest.raises(ConfigError, match="batch_size 10 does not divide over 4 processes"):
        loader_of(plain_pictures(), batch_size=10, world_size=4)


@pytest.fixture(params=["host", "regions", "resident"])
def cropping(request: pytest.FixtureRequest) -> str:
    """Each of the ways to crop in turn, all on the CPU."""
    return str(request.param)


def cropped(loader: BatchLoader, cropping: str) -> BatchLoader:
    """A loader that crops in one of these ways."""
    loader._on_host = cropping == "host"
    if cropping == "resident":
        loader._copy_to_device()
    return loader


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_each_channel_is_cropped_as_it_would_be_among_three(cropping: str, channels: int) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (30 + i, 40, channels), dtype=np.uint8) for i in range(7)]
    loader = BatchLoader(
        packed(pictures), DataConfig(), batch_size=4, seed=0, mean=MEAN[:1] * channels,
        std=STD[:1] * channels, device=CPU,
    )  # fmt: skip
    images = torch.cat(batches(cropped(loader, cropping), 0, 3))
    assert images.shape == (12, channels, 8, 8)
    for channel in range(channels):
        three = [np.repeat(picture[:, :, channel : channel + 1], 3, axis=2) for picture in pictures]
        alone = levels_of(torch.cat(batches(cropped(loader_of(packed(three)), cropping), 0, 3)))[
            :, 0
        ]
        levels = (images[:, channel] * STD[0] + MEAN[0]) * 255
        # Sums of another order round a few of them to the level beside it.
        difference = (levels - alone).abs()
        assert difference.max() < 1.01
        assert (difference > 0.5).float().mean() < 0.01


@pytest.mark.parametrize("crop", ["random", "fixed", "centre"])
def test_all_ways_to_crop_make_the_same_batches(cropping: str, crop: str) -> None:
    pictures = packed(noisy_pictures())
    config = DataConfig(crop=crop)  # type: ignore[arg-type]
    loader = cropped(loader_of(pictures, config=config), cropping)
    images = torch.cat(batches(loader, 1, 5, side=24))
    expected = torch.cat(batches(loader_of(noisy_pictures(), config=config), 1, 5, side=24))
    off = (levels_of(images) - levels_of(expected)).abs()
    assert off.max() < (0.01 if cropping == "host" else 2.01)
    assert off.mean() < 0.02


def test_all_ways_to_crop_jitter_colours(cropping: str) -> None:
    pictures = packed([np.full((20, 20, 3), 100, dtype=np.uint8)] * 4)
    config = DataConfig(color_jitter=0.5, crop="centre", flip=False)
    loader = cropped(loader_of(pictures, config=config), cropping)
    levels = levels_of(torch.cat(batches(loader, 0, 8)))
    brightness = levels.mean(dim=(1, 2, 3)) / 100
    for number, value in enumerate(brightness):
        rng = np.random.default_rng((0, 1, number))
        assert value == pytest.approx(rng.uniform(0.5, 1.5), abs=0.01)


def test_a_pack_goes_to_the_device_if_asked_for_and_it_takes_at_most_half_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack = packed(plain_pictures())
    free = 2 * pack.pixels.nbytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))

    def is_copied(
        pictures: object = pack, device: str = "cuda:0", count: int = 10, resident: bool = True
    ) -> bool:
        loader = loader_of(pictures, config=DataConfig(resident=resident))
        loader._device = torch.device(device)
        return loader._is_worth_copying(count)

    assert is_copied()
    assert not is_copied(count=9)
    assert not is_copied(plain_pictures())
    assert not is_copied(device="mps")
    assert not is_copied(device="cpu")
    assert not is_copied(resident=False)
    free -= 1
    assert not is_copied()


def test_large_packs_are_copied_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = packed(noisy_pictures())
    monkeypatch.setattr(mae_core.data.loader, "_COPY_BYTES", 1000)
    loader = cropped(loader_of(pictures), "resident")
    assert loader._resident is not None
    np.testing.assert_array_equal(loader._resident.numpy(), pictures.pixels)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("steps", [1, 6])  # regions travel; the pack is there
def test_a_gpu_gets_the_batches_of_a_cpu_without_waiting_for_it(steps: int) -> None:
    pictures = packed(noisy_pictures())
    config = DataConfig(color_jitter=0.2, resident=True)
    expected = batches(loader_of(pictures, config=config), 0, steps, side=24)
    loader = loader_of(pictures, config=config, device=torch.device("cuda"))
    made: list[Tensor] = []
    running = (images for images, _ in loader.batches(0, steps, lambda step: 24))
    made.append(next(running))  # copies the pack, which may wait
    assert (loader._resident is None) == (steps == 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        made.extend(running)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for there, here in zip(made, expected, strict=True):
        assert there.is_cuda
        assert (levels_of(there) - levels_of(here)).abs().mean() < 0.05


@pytest.mark.parametrize("kind", ["once", "epoch"])
def test_a_folder_decoded_once_or_each_epoch_gives_the_same_batches(
    picture_folder: Path, tmp_path: Path, kind: str
) -> None:
    config = DataConfig(folder=str(picture_folder), short_side=40, decode=kind)  # type: ignore[arg-type]
    pictures = open_dataset(config, tmp_path / "cache")
    made = batches(loader_of(pictures, config=config), 0, 5)
    pack = pack_folder(
        picture_folder, tmp_path / "other", reader=ImageReader(short_side=40), max_unreadable=0
    )
    expected = batches(loader_of([pack[i][0] for i in range(len(pack))]), 0, 5)
    assert all(a.equal(b) for a, b in zip(made, expected, strict=True))
    assert (tmp_path / "cache").exists() == (kind == "once")


def test_too_many_unreadable_files_stop_the_run_that_finds_them(
    picture_folder: Path, tmp_path: Path
) -> None:
    config = DataConfig(folder=str(picture_folder), decode="epoch", max_unreadable=0.1)
    for name in ("a/01.jpg", "a/03.png"):
        (picture_folder / name).write_bytes(b"not a picture")
    pictures = open_dataset(config, tmp_path)
    before = threading.active_count()
    with pytest.raises(DataError, match="2 of 12 images are unreadable"):
        batches(loader_of(pictures, config=config), 0, 3)
    assert threading.active_count() == before


def test_a_run_that_stops_early_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    running = loader_of(noisy_pictures()).batches(0, 1000, lambda step: 16)
    next(running)
    assert threading.active_count() > before
    running.close()
    assert threading.active_count() == before
