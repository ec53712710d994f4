import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mae_core.config import ModelConfig
from mae_core.devices import choose_device, choose_precision, cpu_has_bfloat16
from mae_core.errors import DeviceError, ImageFormatError, MaskError
from mae_core.masking import PatchMask, custom_mask, random_mask
from mae_core.models.mae import MaskedAutoencoder
from mae_core.patches import normalize_patches, patchify, unpatchify
from mae_core.reconstruction import (
    Rebuilt,
    Reconstructor,
    compose,
    estimate_statistics,
    pixel_mask,
    rebuild,
    removed_psnr,
    removed_ssim,
    score,
)
from tests import references
from tests.pictures import draw_picture


@pytest.fixture
def reconstructor(small_model: MaskedAutoencoder) -> Reconstructor:
    return Reconstructor(small_model, "small", device="cpu", precision="float32")


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


def test_the_original_panel_is_the_fitted_picture_bit_for_bit(reconstructor: Reconstructor) -> None:
    square = draw_picture(1, 48, 48)
    panel = reconstructor(square, seed=0).panels()["original"]
    np.testing.assert_array_equal(pixels_of(panel), pixels_of(square))


def test_facts_are_plain_and_complete(reconstructor: Reconstructor) -> None:
    facts = reconstructor(draw_picture(0), mask_ratio=0.5, seed=7, strategy="block").facts()
    assert list(facts) == [
        "model", "device", "precision", "mask_ratio", "seed", "strategy", "fit", "visible",
        "patches", "loss", "psnr", "ssim", "seconds",
    ]  # fmt: skip
    assert facts["model"] == "small"
    assert (facts["visible"], facts["patches"]) == (18, 36)
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


@pytest.mark.parametrize("norm_pix", [False, True])
def test_hidden_pixels_never_reach_a_norm_pix_picture_either(
    small_config: ModelConfig, norm_pix: bool
) -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(replace(small_config, norm_pix=norm_pix)).eval()
    images, mask = torch.randn(2, 3, 48, 48), random_mask(2, 36, 0.75, seed=0)
    hidden = pixel_mask(mask.mask, (6, 6), 8).bool()
    changed = torch.where(hidden, 9.0, images)
    first, second = rebuild(model, images, mask), rebuild(model, changed, mask)
    assert torch.equal(first.pixels, second.pixels)
    assert not torch.equal(first.loss, second.loss)


def test_estimated_statistics_are_exact_where_visible_and_nearby_where_not(
    small_config: ModelConfig,
) -> None:
    model = MaskedAutoencoder(replace(small_config, norm_pix=True)).eval()
    levels = torch.arange(36.0).reshape(1, 36, 1)
    noise = torch.randn(1, 36, 192, generator=torch.Generator().manual_seed(0))
    patches = normalize_patches(noise) * 2 + levels
    removed = np.zeros((6, 6), dtype=bool)
    removed[2, 3] = removed[0, 0] = True
    stats = estimate_statistics(model, unpatchify(patches, 8), custom_mask(removed), (6, 6))
    visible = ~removed.reshape(-1)
    torch.testing.assert_close(stats.mean[0, visible], levels[0, visible], rtol=1e-4, atol=1e-4)
    # Brightness rises by 1 a column and 6 a row: the neighbours' mean is the patch's own.
    assert abs(stats.mean[0, 2 * 6 + 3].item() - 15) < 0.1
    assert 1 < stats.mean[0, 0].item() < 7
    torch.testing.assert_close(stats.var, torch.full((1, 36, 1), 4.0), rtol=1e-3, atol=1e-3)


def test_a_whole_frame_is_rebuilt_on_a_rectangular_grid(reconstructor: Reconstructor) -> None:
    out = reconstructor(draw_picture(0, 120, 60), fit="whole", mask_ratio=0.5)
    assert out.grid_size == (6, 12)
    assert out.panels()["pasted"].size == (96, 48)


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
    with pytest.raises(ImageFormatError):
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
    worse_where_visible = torch.where(
        pixel_mask(mask.mask, (6, 6), 8).bool(), rebuilt.pixels, torch.zeros(())
    )
    changed = Rebuilt(rebuilt.original, worse_where_visible, rebuilt.loss)
    assert score(rebuilt, mask, (6, 6), 8) == score(changed, mask, (6, 6), 8)


def test_the_loss_is_the_models(small_model: MaskedAutoencoder) -> None:
    images, mask = torch.randn(2, 3, 48, 48), random_mask(2, 36, 0.75, seed=[0, 1])
    losses = rebuild(small_model, images, mask).loss
    with torch.inference_mode():
        output = small_model(images, mask)
    pred = output.pred
    assert losses.mean().item() == pytest.approx(output.loss.item(), rel=1e-5)
    error = (pred - patchify(images, 8)).square().mean(-1)
    expected = (error * mask.mask).sum(1) / mask.mask.sum(1)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-4, atol=1e-5)


def pca_model(config: ModelConfig, components: int) -> MaskedAutoencoder:
    """A model of principal components along random directions."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(replace(config, pca_components=components)).eval()
    square = torch.randn(config.patch_dim, config.patch_dim)
    model.set_pca(torch.randn(config.patch_dim), torch.linalg.qr(square)[0][:, :components])
    return model


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


def test_hidden_pixels_never_reach_a_picture_of_principal_components(
    small_config: ModelConfig,
) -> None:
    model = pca_model(small_config, 20)
    images, mask = torch.randn(2, 3, 48, 48), random_mask(2, 36, 0.75, seed=0)
    changed = torch.where(pixel_mask(mask.mask, (6, 6), 8).bool(), 9.0, images)
    first, second = rebuild(model, images, mask), rebuild(model, changed, mask)
    assert torch.equal(first.pixels, second.pixels)
    assert not torch.equal(first.loss, second.loss)


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
        with pytest.raises(DeviceError, match="auto"):
            choose_device(name)
    assert choose_precision("float32", cpu) == "float32"
    assert choose_precision("auto", torch.device("cuda")) == "float32"
    if not cpu_has_bfloat16():
        assert choose_precision("auto", cpu) == "float32"
    with pytest.raises(DeviceError, match="float32, bfloat16"):
        choose_precision("fp8", cpu)


def test_masks_move_to_the_models_device(small_model: MaskedAutoencoder) -> None:
    mask = random_mask(1, 36, 0.5, seed=0)
    moved = mask.to("cpu")
    assert isinstance(moved, PatchMask)
    assert torch.equal(moved.ids_keep, mask.ids_keep)
