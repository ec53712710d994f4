"""Crops: what chance draws, and the pixels it makes on any device."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as TF

import mae_core.data.transforms
from mae_core.config import DataConfig
from mae_core.data.transforms import (
    Crop,
    color_factors,
    crop_batch,
    crop_image,
    crop_regions,
    draw_crop,
    normalize,
    random_crop_box,
)
from tests.pictures import draw_picture

CAT = Path(__file__).resolve().parents[2] / "app/assets/examples/cat.jpg"
BICUBIC = InterpolationMode.BICUBIC

Pixels = NDArray[np.uint8]


def pictures() -> list[Pixels]:
    """A smooth one, noise, which has all overshoot there can be, and a photo."""
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    photo = Image.open(CAT).convert("RGB").resize((213, 160))
    return [np.array(draw_picture(3)), noise, np.array(photo)]


# Of every picture: all of it, a part that grows, a part that shrinks, one that does both.
CROPS = [
    Crop((0, 0, 80, 60), False, None),
    Crop((5, 7, 36, 50), True, None),
    Crop((0, 0, 90, 70), False, None),
    Crop((1, 2, 89, 41), True, None),
    Crop((3, 0, 213, 160), False, None),
    Crop((100, 50, 131, 90), True, None),
]
PICTURE_OF = [0, 0, 1, 1, 2, 2]


def flat_batch(crops: list[Crop] = CROPS) -> tuple[Tensor, Tensor, tuple[int, int, int]]:
    """All pictures one after another, and where the crops begin in them."""
    all_pixels = pictures()
    offsets = np.cumsum([0, *(picture.size for picture in all_pixels)])
    starts, row_bytes = [], []
    for crop, i in zip(crops, PICTURE_OF, strict=True):
        width = all_pixels[i].shape[1]
        starts.append(int(offsets[i]) + (crop.box[1] * width + crop.box[0]) * 3)
        row_bytes.append(width * 3)
    flat = torch.from_numpy(np.concatenate([picture.ravel() for picture in all_pixels]))
    return flat, *crop_regions(starts, row_bytes, crops)


def torchvision_crop(picture: Image.Image | Tensor, crop: Crop, side: int) -> Tensor:
    """(3, side, side) levels by torchvision."""
    left, top, right, bottom = crop.box
    box = (top, left, bottom - top, right - left)
    square = TF.resized_crop(picture, *box, [side, side], BICUBIC, antialias=True)
    if crop.flip:
        square = TF.hflip(square)
    pixels = (
        square
        if isinstance(square, Tensor)
        else torch.from_numpy(np.array(square)).permute(2, 0, 1)
    )
    return pixels.float()


@pytest.mark.parametrize("side", [16, 48, 224])
def test_batched_crops_are_torchvisions_of_the_same_boxes(side: int) -> None:
    flat, where, padded = flat_batch()
    levels = crop_batch(flat, where, padded, side)
    assert levels.shape == (6, 3, side, side)
    assert levels.dtype == torch.float32
    for i, crop in enumerate(CROPS):
        picture = Image.fromarray(pictures()[PICTURE_OF[i]])
        off = (levels[i] - torchvision_crop(picture, crop, side)).abs()
        # Pillow's fixed-point weights round some values to the other side.
        assert off.max() <= 2
        assert (off > 1).float().mean() < 1e-4
        assert off.mean() < 0.01


def test_batched_crops_are_near_torchvisions_of_tensors_too() -> None:
    flat, where, padded = flat_batch()
    levels = crop_batch(flat, where, padded, 64)
    # Its way for tensors does not round between the two directions, which noise makes visible.
    for i in (0, 1, 4, 5):
        picture = torch.from_numpy(pictures()[PICTURE_OF[i]]).permute(2, 0, 1)
        off = (levels[i] - torchvision_crop(picture, CROPS[i], 64)).abs()
        assert off.max() <= 2
        assert off.mean() < 0.3


@pytest.mark.parametrize("side", [16, 48, 224])
def test_both_ways_to_a_crop_agree(side: int) -> None:
    flat, where, padded = flat_batch()
    levels = crop_batch(flat, where, padded, side)
    for i, crop in enumerate(CROPS):
        one = crop_image(pictures()[PICTURE_OF[i]], crop, side)
        assert one.shape == (side, side, 3)
        off = (levels[i] - torch.from_numpy(one.copy()).permute(2, 0, 1)).abs()
        assert off.max() <= 2
        assert (off > 1).float().mean() < 1e-4
        assert off.mean() < 0.02


def test_batches_too_large_to_gather_at_once_are_cropped_in_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flat, where, padded = flat_batch()
    whole = crop_batch(flat, where, padded, 32)
    monkeypatch.setattr(mae_core.data.transforms, "_CHUNK_VALUES", 2 * 160 * 224 * 3)
    assert crop_batch(flat, where, padded, 32).allclose(whole, atol=1)
    monkeypatch.setattr(mae_core.data.transforms, "_CHUNK_VALUES", 1)
    assert crop_batch(flat, where, padded, 32).allclose(whole, atol=1)


def test_a_batch_is_cropped_without_reading_anything_back_from_the_device() -> None:
    # Nothing on `meta` has a value: whatever reads one fails.
    crops = [crop._replace(factors=(1.1, 0.9, 1.2)) for crop in CROPS]
    flat, where, padded = flat_batch(crops)
    factors = color_factors(crops)
    assert factors is not None
    levels = crop_batch(flat.to("meta"), where.to("meta"), padded, 32)
    constants = torch.zeros(3, 1, 1, device="meta")
    images = normalize(levels, factors.to("meta"), constants, constants)
    assert (images.shape, images.device.type) == ((6, 3, 32, 32), "meta")


def test_pixels_beyond_the_box_do_not_show() -> None:
    picture = np.full((20, 20, 3), 255, dtype=np.uint8)
    picture[5:15, 5:15] = 100
    crop = Crop((5, 5, 15, 15), False, None)
    assert (crop_image(picture, crop, 32) == 100).all()
    regions = crop_regions([(5 * 20 + 5) * 3], [60], [crop])
    assert (crop_batch(torch.from_numpy(picture).flatten(), *regions, 32) == 100).all()


def test_a_crop_of_everything_is_the_picture_and_a_flip_its_mirror() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    flat = torch.from_numpy(picture).flatten()
    for flip, expected in ((False, picture), (True, picture[:, ::-1])):
        crop = Crop((0, 0, 16, 16), flip, None)
        np.testing.assert_array_equal(crop_image(picture, crop, 16), expected)
        levels = crop_batch(flat, *crop_regions([0], [48], [crop]), 16)
        np.testing.assert_array_equal(levels[0].permute(1, 2, 0).numpy(), expected)


def test_colour_jitter_is_torchvisions() -> None:
    factors = [(1.3, 1.0, 1.0), (1.0, 0.6, 1.0), (1.0, 1.0, 1.7), (0.7, 1.4, 0.3)]
    levels = torch.from_numpy(np.stack([pictures()[1][:64, :64]] * 4)).permute(0, 3, 1, 2).float()
    crops = [Crop((0, 0, 64, 64), False, three) for three in factors]
    mean, std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    images = normalize(levels.clone(), color_factors(crops), mean, std)
    for image, before, (brightness, contrast, saturation) in zip(
        images, levels / 255, factors, strict=True
    ):
        expected = TF.adjust_brightness(before, brightness)
        expected = TF.adjust_contrast(expected, contrast)
        expected = TF.adjust_saturation(expected, saturation)
        torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)


def test_pixels_are_normalised_by_channel() -> None:
    levels = torch.rand(2, 3, 4, 4) * 255
    mean, std = torch.tensor([0.1, 0.5, 0.7]), torch.tensor([0.2, 0.3, 0.4])
    expected = TF.normalize(levels / 255, mean.tolist(), std.tolist())
    images = normalize(levels.clone(), None, mean.view(3, 1, 1), std.view(3, 1, 1))
    torch.testing.assert_close(images, expected)


def largest_gap(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Between two empirical distribution functions (Kolmogorov and Smirnov)."""
    at = np.concatenate([one, other])
    below = [
        np.searchsorted(np.sort(values), at, side="right") / len(values) for values in (one, other)
    ]
    return float(np.abs(below[0] - below[1]).max())


def box_figures(boxes: list[tuple[int, int, int, int]]) -> dict[str, NDArray[np.float64]]:
    """What a sampler could get wrong, of (left, top, right, bottom) boxes."""
    left, top, right, bottom = np.array(boxes, dtype=np.float64).T
    width, height = right - left, bottom - top
    return {
        "area": width * height, "aspect": width / height,
        "across": left / np.maximum(500 - width, 1), "down": top / np.maximum(400 - height, 1),
    }  # fmt: skip


def test_boxes_are_distributed_as_torchvisions() -> None:
    draws, area, aspect = 4000, (0.2, 1.0), (3 / 4, 4 / 3)
    rng = np.random.default_rng(0)
    ours = box_figures([random_crop_box(400, 500, area, aspect, rng) for _ in range(draws)])
    picture = torch.empty(3, 400, 500)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        boxes = []
        for _ in range(draws):
            top, left, height, width = RandomResizedCrop.get_params(picture, [*area], [*aspect])
            boxes.append((left, top, left + width, top + height))
    theirs = box_figures(boxes)
    # Two samples of one distribution are further apart once in a thousand times.
    bound = 1.95 * (2 / draws) ** 0.5
    for name, values in ours.items():
        assert largest_gap(values, theirs[name]) < bound, name
    # Samplers that are a little wrong are found out: a uniform side, a wider range of aspects,
    # places that lean to one side.
    wrong = box_figures([random_crop_box(400, 500, (0.3, 1.0), aspect, rng) for _ in range(draws)])
    assert largest_gap(wrong["area"], theirs["area"]) > bound
    wrong = box_figures([random_crop_box(400, 500, area, (0.7, 1.5), rng) for _ in range(draws)])
    assert largest_gap(wrong["aspect"], theirs["aspect"]) > bound
    assert largest_gap(ours["across"] ** 1.2, theirs["across"]) > bound


def test_a_picture_too_narrow_for_the_crop_gives_its_widest_allowed_centre() -> None:
    rng = np.random.default_rng(0)
    assert random_crop_box(400, 20, (1.0, 1.0), (0.5, 2.0), rng) == (0, 180, 20, 220)
    assert random_crop_box(20, 400, (1.0, 1.0), (0.5, 2.0), rng) == (180, 0, 220, 20)


def draw(config: DataConfig, count: int = 400, height: int = 64, width: int = 80) -> list[Crop]:
    return [draw_crop(height, width, config, np.random.default_rng(i)) for i in range(count)]


def test_fixed_crops_are_seven_eighths_of_the_shorter_side_anywhere() -> None:
    boxes = np.array([crop.box for crop in draw(DataConfig(crop="fixed"))])
    assert (boxes[:, 2] - boxes[:, 0] == 56).all()
    assert (boxes[:, 3] - boxes[:, 1] == 56).all()
    assert set(boxes[:, 0]) == set(range(25))
    assert set(boxes[:, 1]) == set(range(9))


def test_centre_crops_are_the_largest_centred_square_every_time() -> None:
    assert {crop.box for crop in draw(DataConfig(crop="centre"))} == {(8, 0, 72, 64)}
    assert {crop.box for crop in draw(DataConfig(crop="centre"), 9, 81, 64)} == {(0, 8, 64, 72)}


def test_half_of_the_crops_are_mirrored_if_any() -> None:
    for kind in ("random", "fixed", "centre"):
        assert 170 < sum(crop.flip for crop in draw(DataConfig(crop=kind))) < 230
        assert not any(crop.flip for crop in draw(DataConfig(crop=kind, flip=False)))


def test_colour_factors_fill_their_range_and_change_no_other_chance() -> None:
    plain, jittered = draw(DataConfig()), draw(DataConfig(color_jitter=0.4))
    assert [crop[:2] for crop in plain] == [crop[:2] for crop in jittered]
    assert all(crop.factors is None for crop in plain)
    factors = np.array([crop.factors for crop in jittered])
    assert factors.shape == (400, 3)
    assert (factors.min(axis=0) < 0.62).all()
    assert (factors.min(axis=0) >= 0.6).all()
    assert (factors.max(axis=0) > 1.38).all()
    assert (factors.max(axis=0) <= 1.4).all()
    assert np.abs(np.corrcoef(factors.T) - np.eye(3)).max() < 0.2
