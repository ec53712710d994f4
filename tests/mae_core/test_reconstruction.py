import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from mae_core.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from mae_core.devices import choose_device, choose_precision, cpu_has_bfloat16
from mae_core.errors import (
    ConfigError,
    ImageError,
    MAEError,
    MaskError,
)
from mae_core.images import FITS
from mae_core.metrics import (
    compose,
    kernel_distance,
    removed_edges,
    removed_psnr,
    removed_ssim,
)
from mae_core.model.losses import reconstruction_loss
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import PatchMask, custom_mask, random_mask
from mae_core.model.patches import (
    normalize_patches,
    patch_statistics,
    patchify,
    pixel_mask,
    unpatchify,
)
from mae_core.normpix import estimate_statistics, fill_smoothly
from mae_core.reconstruct import (
    NORM_PIX_VIEWS,
    Reconstruction,
    ReconstructionRequest,
    Reconstructor,
    paste_back,
    rebuild,
)
from mae_core.weights.registry import load
from tests import references
from tests.forked import ForkedPython
from tests.pictures import draw_picture


@pytest.fixture
def reconstructor(small_model: MaskedAutoencoder) -> Reconstructor:
    return Reconstructor(small_model, "small", device="cpu", precision="float32")


def pca_model(config: ModelConfig, components: int) -> MaskedAutoencoder:
    """A model of principal components along random directions."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(replace(config, pca_components=components)).eval()
    square = torch.randn(config.patch_dim, config.patch_dim)
    model.set_pca(torch.randn(config.patch_dim), torch.linalg.qr(square)[0][:, :components])
    return model


def model_of(config: ModelConfig, target: str) -> MaskedAutoencoder:
    """A seeded model whose target is `pixels`, `norm_pix` or `pca`."""
    if target == "pca":
        return pca_model(config, 20)
    torch.manual_seed(0)
    return MaskedAutoencoder(replace(config, norm_pix=target == "norm_pix")).eval()


def pixels_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_panels_hold_what_their_names_say(reconstructor: Reconstructor) -> None:
    out = reconstructor(draw_picture(0), mask_ratio=0.75, seed=2)
    panels = {name: pixels_of(panel) for name, panel in out.panels().items()}
    assert list(panels) == ["original", "masked", "reconstruction", "pasted"]
    removed = out.removed.repeat(8, axis=0).repeat(8, axis=1)
    assert (panels["masked"][removed] == 128).all()
    for name in ("masked", "pasted"):
        np.testing.assert_array_equal(panels[name][~removed], panels["original"][~removed])
    np.testing.assert_array_equal(panels["pasted"][removed], panels["reconstruction"][removed])
    assert np.abs(panels["reconstruction"] - panels["original"]).max() > 10
    assert (out.visible, out.patches, out.grid_size) == (9, 36, (6, 6))
    assert out.removed.sum() == 27
    assert out.strip().size == (4 * 48 + 3 * 8, 48)
    assert out.strip(gap=0).size == (4 * 48, 48)
    with pytest.raises(ConfigError, match="^gap=-5: Input should be greater than or equal to 0"):
        out.strip(gap=-5)


def test_the_original_panel_is_the_fitted_picture_bit_for_bit(reconstructor: Reconstructor) -> None:
    square = draw_picture(1, 48, 48)
    panel = reconstructor(square, seed=0).panels()["original"]
    np.testing.assert_array_equal(pixels_of(panel), pixels_of(square))


def test_facts_are_plain_and_complete(reconstructor: Reconstructor) -> None:
    facts = reconstructor(draw_picture(0), mask_ratio=0.5, seed=7, strategy="block").facts()
    assert list(facts) == [
        "model", "device", "precision", "mask_ratio", "seed", "strategy", "fit", "view",
        "height", "width", "visible", "patches", "loss", "psnr", "ssim", "seconds",
    ]  # fmt: skip
    assert facts["model"] == "small"
    assert (facts["visible"], facts["patches"]) == (18, 36)
    assert (facts["view"], facts["height"], facts["width"]) == (None, 48, 48)
    json.dumps(facts)
    assert facts["seconds"] > 0
    assert all(isinstance(facts[name], float) for name in ("loss", "psnr", "ssim"))


def test_the_same_seed_gives_the_same_pictures_and_another_another(
    reconstructor: Reconstructor,
) -> None:
    first, again, other = (reconstructor(draw_picture(0), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.reconstruction, again.reconstruction)
    np.testing.assert_array_equal(first.removed, again.removed)
    assert (first.removed != other.removed).any()


def test_hidden_pixels_never_reach_the_picture(reconstructor: Reconstructor) -> None:
    square = np.asarray(draw_picture(5, 48, 48)).copy()
    out = reconstructor(square, seed=1)
    changed = square.copy()
    changed[out.removed.repeat(8, axis=0).repeat(8, axis=1)] = 255
    other = reconstructor(changed, seed=1)
    assert torch.equal(out.reconstruction, other.reconstruction)
    assert out.psnr != other.psnr


def hide(images: Tensor, removed: np.ndarray, patch_size: int) -> Tensor:
    """(C, H, W) with every removed pixel turned to its opposite."""
    gone = removed.repeat(patch_size, axis=0).repeat(patch_size, axis=1)
    return torch.where(torch.from_numpy(gone), 1 - images, images)


@pytest.mark.parametrize("strategy", ["random", "block", "grid", "custom"])
@pytest.mark.parametrize("target", ["pixels", "norm_pix", "pca"])
def test_hidden_pixels_change_no_panel_but_the_original(
    small_config: ModelConfig, target: str, strategy: str
) -> None:
    reconstructor = Reconstructor(model_of(small_config, target), "m", device="cpu")
    options: dict[str, Any] = {"strategy": strategy, "seed": 3}
    if strategy == "custom":
        options = {"mask": np.arange(36).reshape(6, 6) % 3 > 0}
    picture = torch.from_numpy(np.random.default_rng(0).random((3, 48, 48))).float()
    first = reconstructor(picture, **options)
    second = reconstructor(hide(picture, first.removed, 8), **options)
    panels, others = first.panels(), second.panels()
    assert panels["original"].tobytes() != others["original"].tobytes()
    for name in ("masked", "reconstruction", "pasted"):
        assert panels[name].tobytes() == others[name].tobytes(), name
    assert torch.equal(first.reconstruction, second.reconstruction)
    assert first.loss != second.loss


def test_hidden_pixels_change_the_view_that_uses_the_answer_and_no_other(
    norm_pix_reconstructor: Reconstructor,
) -> None:
    picture = torch.from_numpy(np.random.default_rng(0).random((3, 48, 48))).float() / 2
    changed = {}
    for view in NORM_PIX_VIEWS:
        first = norm_pix_reconstructor(picture, seed=3, view=view)
        second = norm_pix_reconstructor(hide(picture, first.removed, 8), seed=3, view=view)
        assert first.view == view
        assert first.facts()["view"] == view
        changed[view] = not torch.equal(first.reconstruction, second.reconstruction)
    assert changed == {"estimated": False, "answer": True, "normalized": False}


def test_hidden_pixels_that_are_no_numbers_do_not_spread() -> None:
    images, mask = torch.randn(2, 3, 48, 48), random_mask(2, 36, 0.75, seed=[0, 1])
    broken = images.masked_fill(pixel_mask(mask.mask, (6, 6), 8).bool(), math.nan)
    first, second = (estimate_statistics(x, mask.mask, (6, 6), 8) for x in (images, broken))
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.var, second.var)


@pytest.fixture
def norm_pix_reconstructor(small_config: ModelConfig) -> Reconstructor:
    model = model_of(small_config, "norm_pix")
    return Reconstructor(model, "norm_pix", device="cpu", precision="float32")


def perfect(reconstructor: Reconstructor, monkeypatch: pytest.MonkeyPatch, image: Tensor) -> None:
    """Let the decoder find the very target of (C, H, W) pixels in 0..1."""
    model = reconstructor.model
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (model.config.mean, model.config.std))
    target = model.target(((image - mean) / std)[None])
    monkeypatch.setattr(model, "decode", lambda latent, ids, grid: target)


def test_views_of_a_perfect_prediction(
    norm_pix_reconstructor: Reconstructor, monkeypatch: pytest.MonkeyPatch
) -> None:
    reconstructor = norm_pix_reconstructor
    picture = torch.from_numpy(np.asarray(draw_picture(5, 48, 48)).copy()).permute(2, 0, 1) / 255
    perfect(reconstructor, monkeypatch, picture)
    estimated, answer, bare = (reconstructor(picture, seed=1, view=v) for v in NORM_PIX_VIEWS)
    torch.testing.assert_close(answer.reconstruction, picture, rtol=0, atol=1e-4)
    assert answer.psnr is not None
    assert estimated.psnr is not None
    assert answer.psnr > 80 > estimated.psnr > 15
    # The bare prediction: a deviation is a quarter of the range, whatever the picture is.
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    patches = patchify(((picture - mean) / std)[None], 8)[0].double().numpy()
    rows = torch.from_numpy(references.normalized_patches(patches))[None]
    expected = (0.5 + unpatchify(rows, 8)[0] / 4).clamp(0, 1)
    torch.testing.assert_close(bare.reconstruction.double(), expected, rtol=0, atol=1e-4)
    assert (bare.psnr, bare.ssim) == (None, None)
    assert bare.loss == pytest.approx(0, abs=1e-8)


def test_models_of_pixels_have_one_view_and_wrong_views_are_refused(
    reconstructor: Reconstructor, norm_pix_reconstructor: Reconstructor
) -> None:
    default, answer = (reconstructor(draw_picture(0), view=v) for v in ("estimated", "answer"))
    assert (default.view, answer.view) == (None, None)
    assert torch.equal(default.reconstruction, answer.reconstruction)
    for each in (reconstructor, norm_pix_reconstructor):
        with pytest.raises(ConfigError, match="estimated, answer, normalized"):
            each(draw_picture(0), view="raw")


def membrane(values: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Each hidden value the mean of its neighbours in the grid, by solving for all at once."""
    h, w = values.shape
    matrix, right = np.eye(h * w), np.where(hidden, 0, values).reshape(-1)
    for y, x in zip(*np.nonzero(hidden), strict=True):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        inside = [(a, b) for a, b in around if 0 <= a < h and 0 <= b < w]
        for a, b in inside:
            matrix[y * w + x, a * w + b] = -1 / len(inside)
    solved: np.ndarray = np.linalg.solve(matrix, right).reshape(h, w)
    return solved


def test_holes_are_filled_as_by_a_membrane() -> None:
    rng = np.random.default_rng(0)
    values, hidden = rng.normal(size=(3, 7, 9)), rng.random((3, 7, 9)) < 0.7
    hidden[1] = True  # one image with a single known value,
    hidden[1, 2, 3] = False
    hidden[2] = False  # and one without holes
    given = np.where(hidden, math.nan, values)
    filled = fill_smoothly(torch.from_numpy(given)[:, None], torch.from_numpy(hidden)[:, None])
    for i in range(3):
        expected = membrane(values[i], hidden[i])
        np.testing.assert_allclose(filled[i, 0].numpy(), expected, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(filled[i, 0].numpy()[~hidden[i]], values[i][~hidden[i]])


def test_estimated_brightness_follows_a_slope_into_a_wide_hole() -> None:
    images = torch.linspace(-1, 1, 48).expand(1, 3, 48, 48)
    removed = np.zeros((6, 6), dtype=bool)
    removed[:, 1:5] = True  # both edges are all that is left
    stats = estimate_statistics(images, custom_mask(removed).mask, (6, 6), 8)
    own = patch_statistics(patchify(images, 8)).mean
    torch.testing.assert_close(stats.mean, own, rtol=0, atol=0.02)


def test_estimated_statistics_are_exact_where_visible_and_nearby_where_not() -> None:
    # Shades of grey that rise by 1 a column and 6 a row.
    levels = torch.arange(36.0).reshape(1, 36, 1)
    noise = torch.randn(1, 36, 192, generator=torch.Generator().manual_seed(0))
    patches = normalize_patches(noise) * 2 + levels
    removed = np.zeros((6, 6), dtype=bool)
    removed[2, 3] = removed[0, 0] = True
    stats = estimate_statistics(unpatchify(patches, 8), custom_mask(removed).mask, (6, 6), 8)
    visible = ~removed.reshape(-1)
    torch.testing.assert_close(stats.mean[0, visible], levels[0, visible], rtol=1e-4, atol=1e-4)
    # The neighbours' mean is the patch's own, but for the noise along their edges.
    assert abs(stats.mean[0, 2 * 6 + 3].item() - 15) < 1
    assert 1 < stats.mean[0, 0].item() < 7
    torch.testing.assert_close(stats.var, torch.full((1, 36, 1), 4.0), rtol=1e-3, atol=1e-3)


def test_a_whole_frame_is_rebuilt_on_a_rectangular_grid(reconstructor: Reconstructor) -> None:
    out = reconstructor(draw_picture(0, 120, 60), fit="whole", mask_ratio=0.5)
    assert out.grid_size == (6, 12)
    assert out.panels()["pasted"].size == (96, 48)


@pytest.mark.parametrize(
    ("fit", "image_size", "grid"),
    [("crop", 96, (12, 12)), ("squash", 16, (2, 2)), ("whole", 32, (4, 8)), ("crop", 1024, None)],
)
def test_pictures_of_other_sizes(
    reconstructor: Reconstructor, fit: str, image_size: int, grid: tuple[int, int] | None
) -> None:
    picture = draw_picture(0, 120, 60)
    if grid is None:  # 128 x 128 patches
        with pytest.raises(ImageError, match="128 x 128 patches, and at most 4096"):
            reconstructor(picture, fit=fit, image_size=image_size)
        return
    out = reconstructor(picture, fit=fit, image_size=image_size)
    assert out.grid_size == grid
    assert out.original.shape == (3, grid[0] * 8, grid[1] * 8)
    assert {panel.size for panel in out.panels().values()} == {(grid[1] * 8, grid[0] * 8)}


@pytest.mark.parametrize(
    "image_size", [0, -8, 50, 4, 1032, 10**9, 48.0, True, "48", np.bool_(True), np.float32(48)]
)
def test_sizes_that_are_not_allowed(reconstructor: Reconstructor, image_size: Any) -> None:
    expected = f"image_size is {image_size!r}; this model takes multiples of 8 from 8 to 1024"
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        reconstructor(draw_picture(0), image_size=image_size)


def test_a_picture_smaller_than_the_window_of_ssim_has_none(small_config: ModelConfig) -> None:
    config = replace(small_config, image_size=4, patch_size=2)
    out = Reconstructor(MaskedAutoencoder(config), "m", device="cpu")(draw_picture(0))
    assert out.psnr is not None
    assert out.ssim is None


def channels_model(config: ModelConfig, channels: int) -> MaskedAutoencoder:
    torch.manual_seed(0)
    shape = {"in_chans": channels, "mean": (0.5,) * channels, "std": (0.25,) * channels}
    return MaskedAutoencoder(replace(config, **shape)).eval()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_channels_of_any_number_go_in_as_they_are(small_config: ModelConfig, channels: int) -> None:
    reconstructor = Reconstructor(channels_model(small_config, channels), "m", device="cpu")
    values = np.random.default_rng(0).random((channels, 32, 64))
    out = reconstructor(values, seed=1)
    assert (out.fit, out.grid_size, out.original.shape) == ("none", (4, 8), values.shape)
    np.testing.assert_allclose(out.original.numpy(), values, atol=1e-6)
    assert out.reconstruction.shape == values.shape
    assert out.psnr is not None
    assert out.ssim is not None
    panels = out.panels()
    assert {(panel.size, panel.mode) for panel in panels.values()} == {
        ((64, 32), "RGB" if channels >= 3 else "L")
    }
    # The first three channels are seen, or the first.
    shown = np.rint(values[: 3 if channels >= 3 else 1] * 255).transpose(1, 2, 0).squeeze()
    np.testing.assert_allclose(pixels_of(panels["original"]), shown, atol=1)
    assert out.strip().size == (4 * 64 + 3 * 8, 32)
    again = reconstructor(torch.from_numpy(values).requires_grad_(), seed=1)
    assert torch.equal(again.reconstruction, out.reconstruction)


def test_a_model_of_one_channel_takes_any_picture(small_config: ModelConfig) -> None:
    reconstructor = Reconstructor(channels_model(small_config, 1), "m", device="cpu")
    picture = draw_picture(0, 48, 48)
    out = reconstructor(picture)
    assert (out.fit, out.original.shape) == ("crop", (1, 48, 48))
    assert {panel.mode for panel in out.panels().values()} == {"L"}
    np.testing.assert_array_equal(
        pixels_of(out.panels()["original"]), pixels_of(picture.convert("L"))
    )


def test_a_picture_and_its_channels_give_the_same(reconstructor: Reconstructor) -> None:
    picture = draw_picture(0, 48, 48)
    channels = np.asarray(picture).transpose(2, 0, 1) / np.float32(255)
    first, second = reconstructor(picture), reconstructor(channels)
    torch.testing.assert_close(first.reconstruction, second.reconstruction, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "image", "error", "sentence"),
    [
        (4, draw_picture(0), ImageError, "3 bands .* takes 4; choose as many"),
        (2, draw_picture(0), ImageError, "3 bands .* takes 2; choose as many"),
        (2, np.zeros((3, 48, 48)), ImageError, r"\(3, 48, 48\); give .* \(H, W, bands\)"),
        (4, torch.zeros(3, 48, 48), ImageError, r"shape \(3, 48, 48\); give .*\(4, H, W\)"),
        (3, torch.zeros(1, 3, 48, 48), ImageError, r"shape \(1, 3, 48, 48\); give"),
        (3, np.zeros((3, 48, 48), np.uint8), ImageError, "uint8 .* give floats in 0..1"),
        (3, np.full((3, 48, 48), None), ImageError, "object .* give floats in 0..1"),
        (3, torch.full((3, 48, 48), 1.5), ImageError, "not all in 0..1"),
        (3, torch.full((3, 48, 48), math.nan), ImageError, "not all in 0..1"),
        (3, torch.zeros(3, 0, 48), ImageError, "empty"),
        (3, torch.zeros(3, 48, 50), ConfigError, "multiples of 8"),
        (3, torch.zeros(3, 8, 8 * 4097), ImageError, "1 x 4097 patches"),
    ],
)  # fmt: skip
def test_channels_that_do_not_fit_are_refused(
    small_config: ModelConfig, channels: int, image: Any, error: type[Exception], sentence: str
) -> None:
    reconstructor = Reconstructor(channels_model(small_config, channels), "m", device="cpu")
    with pytest.raises(error, match=sentence):
        reconstructor(image)


def test_channels_are_not_resized(reconstructor: Reconstructor) -> None:
    with pytest.raises(ConfigError, match="resize the channels yourself"):
        reconstructor(torch.zeros(3, 48, 48), image_size=96)


REQUESTS = st.builds(
    ReconstructionRequest,
    image=st.sampled_from([draw_picture(0), draw_picture(1, 120, 60), draw_picture(2, 50, 70)]),
    mask_ratio=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    seed=st.integers(0, 3),
    strategy=st.sampled_from(["random", "block", "grid"]),
    fit=st.sampled_from(["crop", "squash", "whole"]),
    image_size=st.sampled_from([None, 32, 48]),
    view=st.sampled_from(NORM_PIX_VIEWS),
)
REFUSED = st.sampled_from(
    [
        ReconstructionRequest(b"no picture"),
        ReconstructionRequest(draw_picture(0), mask_ratio=2.0),
        ReconstructionRequest(draw_picture(0), view="raw"),
        ReconstructionRequest(draw_picture(0), image_size=50),
    ]
)


def alone(reconstructor: Reconstructor, request: ReconstructionRequest) -> Any:
    try:
        return reconstructor(**vars(request))
    except MAEError as error:
        return error


@pytest.mark.parametrize("target", ["pixels", "norm_pix", "pca"])
@hypothesis.settings(max_examples=15)
@hypothesis.given(requests=st.lists(REQUESTS | REFUSED, max_size=8))
def test_a_picture_is_rebuilt_in_a_batch_as_it_is_alone(
    target: str, requests: list[ReconstructionRequest]
) -> None:
    config = ModelConfig(
        image_size=48, patch_size=8, embed_dim=32, depth=2, num_heads=2,
        decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2,
    )  # fmt: skip
    model = model_of(config, target)
    reconstructor = Reconstructor(model, "m", device="cpu", precision="float32")
    together = reconstructor.batch(requests)
    assert len(together) == len(requests)
    for request, got in zip(requests, together, strict=True):
        expected = alone(reconstructor, request)
        if isinstance(got, MAEError):
            assert (type(got), str(got)) == (type(expected), str(expected))
            continue
        np.testing.assert_array_equal(got.removed, expected.removed)
        assert torch.equal(got.original, expected.original)
        torch.testing.assert_close(got.reconstruction, expected.reconstruction, rtol=0, atol=1e-5)
        facts, others = got.facts(), expected.facts()
        for name in ("loss", "psnr", "ssim"):
            mine, other = facts.pop(name), others.pop(name)
            assert mine == other or mine == pytest.approx(other, rel=1e-3, abs=1e-4)
        del facts["seconds"], others["seconds"]
        assert facts == others


def test_a_filled_image_does_not_depend_on_the_others_of_its_batch() -> None:
    rng = np.random.default_rng(1)
    values = torch.from_numpy(rng.normal(size=(4, 1, 20, 24)))
    hidden = torch.from_numpy(rng.random((4, 1, 20, 24)) < np.array([0.2, 0.9, 0, 0.6])[
        :, None, None, None
    ])  # fmt: skip
    together = fill_smoothly(values, hidden)
    for i in range(4):
        single = fill_smoothly(values[i : i + 1], hidden[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], single, rtol=0, atol=1e-12)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch, reconstructor: Reconstructor) -> list[int]:
    """The pictures of each forward pass, in order."""
    sizes: list[int] = []
    encode = reconstructor.model.encode

    def counting(images: Tensor, patch_mask: PatchMask) -> Tensor:
        sizes.append(len(images))
        return encode(images, patch_mask)

    monkeypatch.setattr(reconstructor.model, "encode", counting)
    return sizes


def test_pictures_share_a_pass_where_they_can(
    reconstructor: Reconstructor, passes: list[int]
) -> None:
    request = ReconstructionRequest(draw_picture(0))
    # 27 of 36 patches are removed by both ratios.
    ratios = [0.75, 0.75, 0.5, 0.76]
    requests = [replace(request, seed=i, mask_ratio=r) for i, r in enumerate(ratios)]
    requests.append(replace(requests[0], strategy="block"))
    requests.append(replace(requests[0], mask=np.arange(36).reshape(6, 6) >= 9))
    results = reconstructor.batch([*requests, replace(request, image_size=64)])
    assert [type(one).__name__ for one in results] == ["Reconstruction"] * 7
    assert passes == [4, 1, 1, 1]


def test_a_pass_has_no_more_patches_than_the_largest_picture(
    reconstructor: Reconstructor, passes: list[int]
) -> None:
    # 32 x 32 patches each, a quarter of what is allowed, and 64 x 64.
    small = ReconstructionRequest(draw_picture(0), image_size=256)
    large = replace(small, image_size=512)
    reconstructor.batch([small] * 6 + [large] * 2)
    assert passes == [4, 2, 1, 1]


def test_a_copy_on_the_cpu_gives_the_same_picture(
    norm_pix_reconstructor: Reconstructor,
) -> None:
    copy = norm_pix_reconstructor.on_cpu()
    for tensor in norm_pix_reconstructor.model.parameters():
        assert tensor.data_ptr() not in {other.data_ptr() for other in copy.model.parameters()}
    first, second = (r(draw_picture(0), seed=2) for r in (norm_pix_reconstructor, copy))
    assert (second.device, second.model) == ("cpu", "norm_pix")
    error = (first.reconstruction - second.reconstruction).square().mean().item()
    # The copy may run in bfloat16.
    assert error < 1e-4


# What the peak of a process grows by while it rebuilds one picture, in MiB.
PEAK = """
import torch
from pathlib import Path
from PIL import Image
from mae_core.config import PRESETS, with_overrides
from mae_core.model.mae import MaskedAutoencoder
from mae_core.reconstruct import Reconstructor

def peak():
    # Not getrusage's: a child process begins with what its parent had at most.
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    return int(line.split()[1]) / 1024

torch.set_num_threads(1)
model = MaskedAutoencoder(with_overrides(PRESETS["tiny"], ["norm_pix=true"]))
reconstructor = Reconstructor(model, "tiny", device="cpu", precision="float32")
image = Image.effect_noise((1024, 1024), 60).convert("RGB")
reconstructor(image)  # what is set up once
before = peak()
out = reconstructor(image, mask_ratio=0.25, image_size=1024)
out.panels()
assert out.patches == 4096
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_1024_pixels_stay_within_the_memory_that_is_stated() -> None:
    with ForkedPython(PEAK) as process:
        output = process.communicate()
    assert process.returncode == 0, output
    # One table of 4096 x 4096 numbers for each head of attention would be 192 MiB more.
    assert 50 < float(output) < 300


@pytest.mark.parametrize(
    ("fit", "size", "box"),
    [
        ("crop", (300, 200), (50, 0, 250, 200)),
        ("crop", (200, 300), (0, 50, 200, 250)),
        ("crop", (48, 30), (9, 0, 39, 30)),  # smaller than the model's
        # 71 x 48 pixels, of which columns 12 up to 60 are kept.
        ("crop", (301, 203), (51, 0, 254, 203)),
        ("squash", (301, 203), (0, 0, 301, 203)),
        ("whole", (301, 203), (0, 0, 301, 203)),
        ("whole", (203, 301), (0, 0, 203, 301)),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_prediction_is_pasted_into_the_picture_at_its_own_resolution(
    reconstructor: Reconstructor, fit: str, size: tuple[int, int], box: tuple[int, ...], mode: str
) -> None:
    picture = draw_picture(1, *size).convert(mode)
    out = reconstructor(picture, 0.5, seed=3, fit=fit)
    full = paste_back(picture, out)
    assert (full.mode, full.size) == (mode, size)
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    panel = out.panels()["reconstruction"]
    prediction = pixels_of(panel.resize((width, height), Image.Resampling.BICUBIC).convert(mode))
    expected = pixels_of(picture).copy()
    rows, columns = out.grid_size
    # A pixel belongs to the patch that its middle lies in.
    for y in range(height):
        for x in range(width):
            if out.removed[int((y + 0.5) * rows / height), int((x + 0.5) * columns / width)]:
                expected[top + y, left + x] = prediction[y, x]
    np.testing.assert_array_equal(pixels_of(full), expected)
    assert (pixels_of(full) != pixels_of(picture)).any()


@pytest.mark.parametrize("fit", FITS)
def test_in_a_picture_of_the_models_size_it_is_the_pasted_panel(
    reconstructor: Reconstructor, fit: str
) -> None:
    picture = draw_picture(1, 96, 48) if fit == "whole" else draw_picture(1, 48, 48)
    out = reconstructor(picture, fit=fit)
    np.testing.assert_array_equal(
        pixels_of(paste_back(picture, out)), pixels_of(out.panels()["pasted"])
    )


def test_what_is_no_fitted_picture_takes_no_prediction(reconstructor: Reconstructor) -> None:
    channels = reconstructor(torch.rand(3, 48, 48))
    with pytest.raises(ImageError, match="fit 'none'; give one .* rebuilt with crop, squash"):
        paste_back(draw_picture(0), channels)
    with pytest.raises(ImageError, match="of mode RGBA and"):
        paste_back(draw_picture(0).convert("RGBA"), reconstructor(draw_picture(0)))


def test_a_custom_mask_removes_what_it_says(reconstructor: Reconstructor) -> None:
    mask = np.zeros((6, 6), dtype=bool)
    mask[1:3, 2:5] = True
    out = reconstructor(draw_picture(0), mask=mask)
    np.testing.assert_array_equal(out.removed, mask)
    assert out.strategy == "custom"
    assert out.mask_ratio == pytest.approx(6 / 36)
    with pytest.raises(MaskError, match="6 rows of 6 patches"):
        reconstructor(draw_picture(0), mask=np.zeros((5, 6), dtype=bool))


def test_with_nothing_removed_there_is_nothing_to_score(reconstructor: Reconstructor) -> None:
    out = reconstructor(draw_picture(0), mask_ratio=0.0)
    assert out.visible == 36
    assert (out.loss, out.psnr, out.ssim) == (None, None, None)


def test_errors_name_what_is_allowed(reconstructor: Reconstructor) -> None:
    with pytest.raises(MaskError, match="1.5"):
        reconstructor(draw_picture(0), mask_ratio=1.5)
    with pytest.raises(MaskError, match="random, block, grid"):
        reconstructor(draw_picture(0), strategy="blocks")
    with pytest.raises(ImageError):
        reconstructor(b"no picture")


def test_compose_takes_removed_pixels_from_the_other_and_clamps_last() -> None:
    original, other = torch.tensor([[[[0.2, 0.4]]]]), torch.tensor([[[[0.9, 1.7]]]])
    removed = torch.tensor([[[[0.0, 1.0]]]])
    assert compose(original, other, removed).flatten().tolist() == pytest.approx([0.2, 1.0])


def test_scores_agree_with_the_obvious_loops() -> None:
    rng = np.random.default_rng(0)
    mask = random_mask(2, 6, 0.5, seed=0)
    removed = pixel_mask(mask.mask, (2, 3), 8)
    original, pixels = (torch.from_numpy(rng.random((2, 3, 16, 24))).float() for _ in range(2))
    psnr, ssim = removed_psnr(pixels, original, removed), removed_ssim(pixels, original, removed)
    pasted = compose(original, pixels, removed).double().numpy()
    for n in range(2):
        gone = removed[n, 0].numpy() > 0
        x, y = pixels[n].double().numpy(), original[n].double().numpy()
        assert psnr[n].item() == pytest.approx(references.removed_psnr(x, y, gone), abs=1e-4)
        expected = np.mean(
            [
                references.ssim_at(pasted[n, c], y[c], row, column)
                for c in range(3)
                for row, column in zip(*np.nonzero(gone), strict=True)
            ]
        )
        assert ssim[n].item() == pytest.approx(expected, abs=1e-4)


def test_scores_look_at_removed_patches_only(small_model: MaskedAutoencoder) -> None:
    images, mask = torch.randn(1, 3, 48, 48), random_mask(1, 36, 0.5, seed=0)
    rebuilt = rebuild(small_model, images, mask)
    removed = pixel_mask(mask.mask, (6, 6), 8)
    worse_where_visible = torch.where(removed.bool(), rebuilt.pixels, torch.zeros(()))
    for measure in (removed_psnr, removed_ssim):
        good = measure(rebuilt.pixels, rebuilt.original, removed)
        assert torch.equal(good, measure(worse_where_visible, rebuilt.original, removed))


@pytest.mark.parametrize("shape", [(48, 48), (24, 40)])
def test_seams_and_sharpness_agree_with_the_obvious_loops(shape: tuple[int, int]) -> None:
    original, images = torch.rand(3, 3, *shape), torch.rand(3, 3, *shape)
    h, w = shape[0] // 8, shape[1] // 8
    removed = pixel_mask(random_mask(3, h * w, 0.6, seed=[3, 4, 5]).mask, (h, w), 8)
    seams, sharpness = removed_edges(images, original, removed, 8)
    for i in range(3):
        expected = references.removed_edges(
            images[i].double().numpy(), original[i].double().numpy(),
            removed[i, 0].bool().numpy(), 8,
        )  # fmt: skip
        assert (seams[i].item(), sharpness[i].item()) == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_the_kernel_distance_agrees_with_its_sums_and_tells_sets_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(n, 6, generator=generator) for n in (20, 30))
    expected = references.kernel_distance(first.double().numpy(), second.double().numpy())
    assert kernel_distance(first, second).item() == pytest.approx(expected, rel=1e-6)
    alike = [kernel_distance(*torch.randn(2, 40, 6, generator=generator)).item() for _ in range(30)]
    # Without bias: below 0 as often as above.
    assert abs(np.mean(alike)) < 3 * np.std(alike) / 30**0.5
    assert kernel_distance(first, second * 2).item() > 10 * np.std(alike)


def test_flat_patches_have_seams_and_no_sharpness() -> None:
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    removed = torch.ones(1, 1, 32, 32)
    steps = ramp.reshape(1, 3, 32, 4, 8).mean(dim=-1, keepdim=True).expand(-1, -1, -1, -1, 8)
    seams, sharpness = removed_edges(steps.reshape(1, 3, 32, 32), ramp, removed, 8)
    # Half of the borders lie along the ramp, where nothing jumps.
    assert seams.item() == pytest.approx(255 * 8 / 31 / 2, rel=1e-4)
    assert sharpness.item() == pytest.approx(0, abs=1e-5)
    same = removed_edges(ramp, ramp, removed, 8)
    assert [value.item() for value in same] == pytest.approx([0, 1])


def test_the_loss_is_the_models(small_model: MaskedAutoencoder) -> None:
    images, mask = torch.randn(2, 3, 48, 48), random_mask(2, 36, 0.75, seed=[0, 1])
    losses = rebuild(small_model, images, mask).loss
    with torch.inference_mode():
        output = small_model(images, mask)
    pred = output.pred
    loss = reconstruction_loss(pred, small_model.target(images), mask.mask)
    assert losses.mean().item() == pytest.approx(loss.item(), rel=1e-5)
    error = (pred - patchify(images, 8)).square().mean(-1)
    expected = (error * mask.mask).sum(1) / mask.mask.sum(1)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("components", [192, 20])
def test_principal_components_are_shown_and_scored_as_pixels(
    small_config: ModelConfig, components: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pca_model(small_config, components)
    square = draw_picture(5, 48, 48)
    pixels = torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)[None] / 255
    mean = torch.tensor(small_config.mean).view(1, 3, 1, 1)
    std = torch.tensor(small_config.std).view(1, 3, 1, 1)
    images = (pixels - mean) / std
    # As if the decoder had found the very components.
    monkeypatch.setattr(model, "decode", lambda latent, ids, grid: model.target(images))
    out = Reconstructor(model, "pca", device="cpu", precision="float32")(square, seed=1)

    centre, basis = model.pca_mean.double().numpy(), model.pca_basis.double().numpy()
    patches = patchify(images, 8)[0].double().numpy()
    seen = references.principal_components(patches, centre, basis) @ basis.T + centre
    expected = (unpatchify(torch.from_numpy(seen)[None], 8) * std + mean).clamp(0, 1)[0]
    torch.testing.assert_close(out.reconstruction.double(), expected, rtol=0, atol=1e-5)
    assert out.loss == pytest.approx(0, abs=1e-10)
    panels = {name: pixels_of(panel) for name, panel in out.panels().items()}
    removed = out.removed.repeat(8, axis=0).repeat(8, axis=1)
    np.testing.assert_array_equal(panels["pasted"][~removed], panels["original"][~removed])
    if components == 192:
        assert out.psnr > 90
        np.testing.assert_array_equal(panels["pasted"], panels["original"])
    else:
        psnr = references.removed_psnr(expected.numpy(), pixels[0].double().numpy(), removed)
        assert out.psnr == pytest.approx(psnr, abs=1e-3)
        assert psnr < 30


@pytest.mark.parametrize("components", [0, 20])
def test_bfloat16_shows_the_same_picture_under_the_same_mask(
    small_config: ModelConfig, components: int
) -> None:
    outs = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = (
            pca_model(small_config, components) if components else MaskedAutoencoder(small_config)
        )
        outs.append(
            Reconstructor(model, "small", device="cpu", precision=precision)(
                draw_picture(0), seed=3
            )
        )
    full, half = outs
    np.testing.assert_array_equal(full.removed, half.removed)
    error = (full.reconstruction - half.reconstruction).square().mean().item()
    assert -10 * math.log10(error) > 40


def test_devices_and_precisions_are_chosen_or_told() -> None:
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("gpu", "meta", "cuda:99"):
        with pytest.raises(ConfigError, match="auto"):
            choose_device(name)
    assert choose_precision("float32", cpu) == "float32"
    assert choose_precision("auto", torch.device("cuda")) == "float32"
    if not cpu_has_bfloat16():
        assert choose_precision("auto", cpu) == "float32"
    with pytest.raises(ConfigError, match="float32, bfloat16"):
        choose_precision("fp8", cpu)


def test_masks_move_to_the_models_device(small_model: MaskedAutoencoder) -> None:
    mask = random_mask(1, 36, 0.5, seed=0)
    moved = mask.to("cpu")
    assert isinstance(moved, PatchMask)
    assert torch.equal(moved.ids_keep, mask.ids_keep)


def test_the_callers_model_stays_as_it_is(small_config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(small_config).train()
    model.blocks[0].eval()  # as one does with frozen blocks
    model.cls_token.requires_grad_(False)

    def look() -> list[object]:
        return [
            *(module.training for module in model.modules()),
            *((p.dtype, p.device, p.requires_grad, p.data_ptr()) for p in model.parameters()),
        ]

    before, parameters = look(), [p.detach().clone() for p in model.parameters()]
    for precision in ("bfloat16", "float32", "auto"):
        reconstructor = Reconstructor(model, "m", device="cpu", precision=precision)
        assert not any(module.training for module in reconstructor.model.modules())
        reconstructor(draw_picture(0))
    assert look() == before
    for parameter, was in zip(model.parameters(), parameters, strict=True):
        assert torch.equal(parameter, was)
    # It can still be trained.
    images = torch.randn(2, 3, 48, 48)
    model(images, random_mask(2, 36, 0.5, seed=0)).pred.sum().backward()
    assert model.mask_token.grad is not None


def test_a_model_that_is_ready_is_shared_and_one_in_place_is_moved(
    small_model: MaskedAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("copied")

    monkeypatch.setattr(MaskedAutoencoder, "__deepcopy__", refuse, raising=False)
    shared = Reconstructor(small_model, "m", device="cpu", precision="float32")
    assert shared.model is small_model
    own = Reconstructor(small_model, "m", device="cpu", precision="bfloat16", in_place=True)
    assert own.model is small_model
    assert small_model.pos_embed.dtype == torch.bfloat16
    read = load("mae-tiny")
    Reconstructor(read, device="cpu", precision="bfloat16", in_place=True).on_cpu()


def test_a_reconstructor_has_the_models_name(small_model: MaskedAutoencoder) -> None:
    assert Reconstructor(small_model, device="cpu").name == "model"
    small_model.name = "mine"
    assert Reconstructor(small_model, device="cpu").name == "mine"
    assert Reconstructor(small_model, device="cpu", precision="bfloat16").on_cpu().name == "mine"
    other = Reconstructor(small_model, "yours", device="cpu")
    assert (other.name, small_model.name) == ("yours", "mine")
    assert other(draw_picture(0)).facts()["model"] == "yours"


def test_panels_and_facts_are_saved(reconstructor: Reconstructor, tmp_path: Path) -> None:
    out = reconstructor(draw_picture(0), seed=2)
    out.save(tmp_path / "deep" / "out")
    for name, panel in {**out.panels(), "panels": out.strip()}.items():
        with Image.open(tmp_path / "deep" / "out" / f"{name}.png") as saved:
            np.testing.assert_array_equal(pixels_of(saved), pixels_of(panel))
    assert json.loads((tmp_path / "deep" / "out" / "metrics.json").read_text()) == out.facts()
    with pytest.raises(ConfigError, match="numbered from 1 to 3"):
        out.save(tmp_path, show=[4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": np.eye(6), "seed": None}, "seed is None; give a whole number"),
        ({"mask": [[True], [True, False]]}, "mask"),
        ({"bands": 3}, "bands is 3; give numbers from 1"),
        ({"bands": "abc"}, "bands is 'abc'"),
        ({"value_range": "x"}, "range"),
        ({"value_range": (5, 1)}, "range|low"),
    ],
)
def test_a_request_that_cannot_be_spoils_no_other(
    reconstructor: Reconstructor, options: dict[str, Any], message: str
) -> None:
    good = ReconstructionRequest(draw_picture(0))
    bad = ReconstructionRequest(draw_picture(0), **options)
    done, refused = reconstructor.batch([good, bad])
    assert isinstance(done, Reconstruction)
    assert isinstance(refused, MAEError)
    assert re.search(message, str(refused))


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'mae-tiny' is not a model; give mae_core\.load"):
        Reconstructor("mae-tiny")  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers(reconstructor: Reconstructor) -> None:
    grid = np.zeros((6, 6), dtype=bool)
    grid[0] = True
    out = reconstructor(draw_picture(0), np.float64(0.5), np.int64(2), mask=grid,
                        image_size=np.int32(48))  # fmt: skip
    assert json.loads(json.dumps(out.facts()))["seed"] == 2
    wide = reconstructor(draw_picture(0, 120, 60), image_size=np.uint16(96), fit="whole")
    assert wide.original.shape == (3, 96, 192)
