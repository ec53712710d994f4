"""Images to whole patches, to a model's pixels and back."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mae_core._compat import ensure_torchvision_imports
from mae_core.errors import ConfigError, ImageError
from mae_core.images import (
    FITS,
    channels_to_tensor,
    fit_image,
    fitted_size,
    is_channels,
    to_pil,
    to_tensor,
    viewable,
)


def photo(width: int = 48, height: int = 32) -> Image.Image:
    """A smooth picture with a different colour everywhere."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 255 // (width + height))
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


# ---------------------------------------------------------------- fits


@pytest.mark.parametrize(
    ("size", "fit", "expected"),
    [
        ((640, 480), "crop", (224, 224)),
        ((17, 300), "crop", (224, 224)),
        ((640, 480), "squash", (224, 224)),
        ((224, 224), "whole", (224, 224)),
        ((640, 480), "whole", (304, 224)),  # 298.7 is nearer to 304 than to 288
        ((480, 640), "whole", (224, 304)),
        ((620, 480), "whole", (288, 224)),  # 289.3
        ((800, 200), "whole", (896, 224)),
        ((2000, 200), "whole", (896, 96)),  # 89.6
        ((200, 4000), "whole", (48, 896)),  # 44.8
    ],
)
def test_fit_gives_exact_sizes(size: tuple[int, int], fit: str, expected: Any) -> None:
    fitted = fit_image(Image.new("RGB", size), fit, image_size=224, patch_size=16)
    assert fitted.size == expected
    assert fitted.mode == "RGB"


@settings(max_examples=60)
@given(width=st.integers(16, 900), height=st.integers(16, 900), patch=st.sampled_from([8, 14, 16]))
def test_a_whole_frame_keeps_its_aspect_within_half_a_patch(
    width: int, height: int, patch: int
) -> None:
    image = Image.new("L", (width, height))
    size = fit_image(image, "whole", image_size=112, patch_size=patch).size
    assert all(side % patch == 0 for side in size)
    short, long = sorted((width, height))
    if long <= 4 * short:
        assert min(size) == 112
        assert abs(max(size) - 112 * long / short) <= patch / 2
    else:
        assert abs(max(size) - 448) <= patch / 2
        assert min(size) == patch or abs(min(size) - 448 * short / long) <= patch / 2
    assert (size[0] >= size[1]) == (width >= height) or size[0] == size[1]


@pytest.mark.parametrize("size", [(640, 480), (481, 643), (100, 77), (224, 224), (333, 1000)])
def test_crop_is_the_resize_and_centre_crop_of_torchvision(size: tuple[int, int]) -> None:
    ensure_torchvision_imports()
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    image = photo(*size)
    expected = CenterCrop(224)(Resize(224, InterpolationMode.BICUBIC)(image))
    fitted = fit_image(image, "crop", image_size=224, patch_size=16)
    assert np.array_equal(np.asarray(fitted), np.asarray(expected))


def test_crop_takes_the_middle_and_squash_everything() -> None:
    thirds = np.zeros((60, 180, 3), dtype=np.uint8)
    thirds[:, :60, 0] = thirds[:, 60:120, 1] = thirds[:, 120:, 2] = 255
    image = Image.fromarray(thirds)
    cropped = np.asarray(fit_image(image, "crop", image_size=64, patch_size=16))
    squashed = np.asarray(fit_image(image, "squash", image_size=64, patch_size=16))
    assert cropped[32, 4:60].tolist() == [[0, 255, 0]] * 56
    assert [squashed[32, x].argmax() for x in (5, 32, 58)] == [0, 1, 2]


def test_shrinking_is_antialiased() -> None:
    checks = np.indices((512, 512)).sum(axis=0) % 2 * 255
    image = Image.fromarray(checks.astype(np.uint8))
    fitted = np.asarray(fit_image(image, "crop", image_size=64, patch_size=16)).astype(int)
    assert np.abs(fitted - 127.5).max() < 4


def test_unknown_fits_and_sizes_are_refused() -> None:
    assert FITS == ("crop", "squash", "whole")
    with pytest.raises(ConfigError, match="no fit is called 'stretch'; choose one of crop, squash"):
        fit_image(photo(), "stretch", image_size=64, patch_size=16)
    for image_size, patch_size in ((100, 16), (0, 16), (64, 0)):
        with pytest.raises(ConfigError, match="is not a multiple of patch_size"):
            fit_image(photo(), "crop", image_size=image_size, patch_size=patch_size)


# ---------------------------------------------------------------- tensors

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_to_tensor_by_hand() -> None:
    image = Image.new("RGB", (5, 4), (0, 51, 255))
    image.putpixel((3, 1), (255, 0, 102))
    tensor = to_tensor(image, MEAN, STD)
    assert tensor.shape == (1, 3, 4, 5)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    for value, channel in ((1.0, 0), (0.0, 1), (0.4, 2)):
        expected = (value - MEAN[channel]) / STD[channel]
        assert tensor[0, channel, 1, 3].item() == pytest.approx(expected, abs=1e-6)
    assert tensor[0, 1, 0, 0].item() == pytest.approx((0.2 - 0.456) / 0.224, abs=1e-6)


def test_to_tensor_of_one_channel() -> None:
    tensor = to_tensor(Image.new("RGB", (5, 4), (10, 10, 10)), (0.5,), (0.25,))
    assert tensor.shape == (1, 1, 4, 5)
    assert tensor.unique().item() == pytest.approx((10 / 255 - 0.5) / 0.25, abs=1e-6)


@pytest.mark.parametrize(("mean", "std"), [((0, 0, 0), (1, 1, 1)), (MEAN, STD)])
def test_round_trip_is_exact(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))
    tensor = to_tensor(image, mean, std)[0]
    scaled = tensor * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    assert np.array_equal(np.asarray(to_pil(scaled)), np.asarray(image))


def test_round_trip_of_grey_is_exact() -> None:
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    back = to_pil(to_tensor(image, (0.5,), (0.5,))[0] * 0.5 + 0.5)
    assert back.mode == "L"
    assert np.array_equal(np.asarray(back), np.asarray(image))


def test_what_a_picture_will_measure_is_what_it_measures() -> None:
    for fit in FITS:
        for size in ((48, 32), (32, 48), (200, 20), (20, 200)):
            expected = fit_image(Image.new("RGB", size), fit, image_size=64, patch_size=16).size
            assert fitted_size(size, fit, image_size=64, patch_size=16) == expected


def test_channels_are_told_from_pictures() -> None:
    assert is_channels(torch.zeros(1), 3)
    assert is_channels(np.zeros((3, 16, 16)), 3)
    for picture in (np.zeros((16, 16, 3)), np.zeros((16, 16)), np.zeros((4, 16, 16)), photo(), b""):
        assert not is_channels(picture, 3)


def test_channels_to_tensor_by_hand() -> None:
    tensor = channels_to_tensor(np.full((2, 1, 3), 0.75), (0.5, 0.25), (0.25, 0.5))
    assert (tensor.shape, tensor.dtype) == ((1, 2, 1, 3), torch.float32)
    assert tensor.flatten().tolist() == [1.0] * 6


def test_of_many_channels_the_first_three_are_viewable() -> None:
    for channels, seen in ((1, 1), (2, 1), (3, 3), (4, 3), (13, 3)):
        values = torch.rand(channels, 2, 2)
        assert torch.equal(viewable(values), values[:seen])


def test_to_pil_clamps_and_rounds_to_nearest() -> None:
    values = torch.tensor([-3.0, 0.0, 100.4 / 255, 100.6 / 255, 1.0, 7.0]).reshape(1, 1, 6)
    assert np.asarray(to_pil(values)).tolist() == [[0, 0, 100, 101, 255, 255]]
    assert to_pil(values.expand(3, 1, 6)).mode == "RGB"


def test_to_pil_takes_half_precision_and_gradients() -> None:
    values = torch.full((3, 2, 2), 0.5, dtype=torch.bfloat16, requires_grad=True)
    assert np.unique(np.asarray(to_pil(values))).tolist() == [128]


@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4), (1, 3, 4, 4)])
def test_to_pil_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"give \(3, H, W\) or \(1, H, W\)"):
        to_pil(torch.zeros(shape))


def test_to_pil_refuses_numbers_that_are_not_finite() -> None:
    with pytest.raises(ImageError, match="not all finite"):
        to_pil(torch.full((3, 2, 2), float("nan")))


@pytest.mark.parametrize(("mean", "std"), [((0, 0), (1, 1)), ((0, 0, 0), (1,)), ((), ())])
def test_to_tensor_refuses_other_channels(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="means and . deviations are given for 3 channels"):
        to_tensor(photo(), mean, std)


def test_to_tensor_of_many_channels() -> None:
    levels = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
    tensor = to_tensor(levels, (0.5,) * 5, (0.25,) * 5)
    expected = (levels.transpose(2, 0, 1) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(tensor[0], expected, rtol=1e-6)
    with pytest.raises(ConfigError, match="3 means and 3 deviations are given for 5 channels"):
        to_tensor(levels, MEAN, STD)


@pytest.mark.parametrize("fit", FITS)
def test_each_band_is_fitted_as_a_picture_is(fit: str) -> None:
    rgb = photo(100, 77)
    bands = np.dstack([np.asarray(rgb), np.asarray(rgb)[:, :, :1]])
    fitted = fit_image(bands, fit, image_size=64, patch_size=16)
    expected = np.asarray(fit_image(rgb, fit, image_size=64, patch_size=16))
    assert np.array_equal(fitted[..., :3], expected)
    assert np.array_equal(fitted[..., 3], expected[..., 0])


def test_chosen_channels_are_viewable_in_any_order() -> None:
    pixels = torch.arange(4.0).view(4, 1, 1)
    assert viewable(pixels, (4, 1, 2)).flatten().tolist() == [3, 0, 1]
    assert viewable(pixels, (3,)).flatten().tolist() == [2]
    for show in ((1, 2), (0,), (5,), (1, 2, 3, 4)):
        with pytest.raises(ConfigError, match="give three or one, numbered from 1 to 4"):
            viewable(pixels, show)
