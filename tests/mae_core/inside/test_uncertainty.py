import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from mae_core.config import ModelConfig
from mae_core.errors import ConfigError, ImageError, MaskError
from mae_core.inside.uncertainty import Doubt, doubt_seeds, uncertainty
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import MAX_SEED
from mae_core.reconstruct import Reconstruction, Reconstructor
from tests.pictures import draw_picture


@pytest.fixture
def reconstructor(small_model: MaskedAutoencoder) -> Reconstructor:
    return Reconstructor(small_model, "small", device="cpu", precision="float32")


def added(results: list[Reconstruction]) -> Doubt:
    doubt = Doubt()
    for result in results:
        doubt.add(result)
    return doubt


def over_patches(pixels: np.ndarray) -> np.ndarray:
    """(H, W) -> (h, w), a patch of 8 x 8 at a time."""
    rows, columns = (side // 8 for side in pixels.shape)
    return np.array(
        [
            [
                np.sqrt(np.mean(pixels[y * 8 : y * 8 + 8, x * 8 : x * 8 + 8] ** 2))
                for x in range(columns)
            ]
            for y in range(rows)
        ]
    )


@pytest.mark.parametrize(("masks", "ratio"), [(12, 0.75), (3, 0.3), (1, 0.5)])
def test_doubt_is_that_of_all_pictures_side_by_side(
    reconstructor: Reconstructor, masks: int, ratio: float
) -> None:
    picture = draw_picture(3, 120, 60)
    results = [
        reconstructor(picture, ratio, seed, strategy="block", fit="whole")
        for seed in range(7, 7 + masks)
    ]
    doubt = uncertainty(reconstructor, picture, masks, ratio, seed=7, strategy="block", fit="whole")
    original = results[0].original.double().numpy()  # (C, H, W)
    stacked = np.stack([result.reconstruction.double().numpy() for result in results])
    gone = np.stack([r.removed.repeat(8, axis=0).repeat(8, axis=1) for r in results])
    stacked[np.broadcast_to(~gone[:, None], stacked.shape)] = np.nan
    count = gone.sum(axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing
        mean = np.nanmean(stacked, axis=0)
        error = np.sqrt(np.nanmean((stacked - original) ** 2, axis=(0, 1)))
        disagreement = np.sqrt(np.nanvar(stacked, axis=0).mean(axis=0))
    disagreement[count < 2] = np.nan

    assert doubt.runs == masks
    np.testing.assert_array_equal(
        doubt.hidden, sum(result.removed.astype(int) for result in results)
    )
    assert (count == 0).any() == (doubt.hidden == 0).any()
    np.testing.assert_allclose(doubt.mean, np.where(count, mean, original), rtol=0, atol=1e-5)
    np.testing.assert_allclose(doubt.error, error, rtol=0, atol=1e-5)
    np.testing.assert_allclose(doubt.disagreement, disagreement, rtol=0, atol=1e-5)
    np.testing.assert_allclose(doubt.patch_error, over_patches(error), rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        doubt.patch_disagreement, over_patches(disagreement), rtol=0, atol=1e-5
    )
    mean_error = np.mean((mean - original)[:, count > 0] ** 2)
    assert doubt.mean_psnr == pytest.approx(-10 * math.log10(mean_error), abs=1e-4)
    psnrs = [result.psnr for result in results if result.psnr is not None]
    assert doubt.single_psnr == pytest.approx(np.mean(psnrs), abs=1e-4)


def test_the_spread_of_nearly_equal_pictures_is_not_lost(reconstructor: Reconstructor) -> None:
    first = reconstructor(draw_picture(0), mask=np.arange(36).reshape(6, 6) > 0)
    rng = np.random.default_rng(0)
    noise = rng.normal(scale=1e-6, size=(50, *first.reconstruction.shape))
    doubt = added([replace(first, reconstruction=0.9 + torch.from_numpy(each)) for each in noise])
    expected = np.sqrt(noise.var(axis=0).mean(axis=0))
    expected[:8, :8] = np.nan
    np.testing.assert_allclose(doubt.disagreement, expected, rtol=1e-6)


def test_a_patch_that_was_never_removed_has_no_doubt(reconstructor: Reconstructor) -> None:
    mask = np.zeros((6, 6), dtype=bool)
    mask[2:, 3] = True
    first = reconstructor(draw_picture(0), mask=mask)
    once = added([first])
    assert np.isnan(once.disagreement).all()
    np.testing.assert_array_equal(np.isnan(once.patch_error), ~mask)
    twice = added([first, first])
    np.testing.assert_array_equal(np.isnan(twice.patch_disagreement), ~mask)
    assert (twice.patch_disagreement[mask] == 0).all()
    np.testing.assert_array_equal(twice.mean[:, :16], first.original[:, :16].numpy())
    assert twice.mean_psnr == pytest.approx(first.psnr, abs=1e-4)


def test_without_anything_removed_there_is_nothing_to_doubt(reconstructor: Reconstructor) -> None:
    none = Doubt()
    assert (none.runs, none.hidden.shape, none.error.shape) == (0, (0, 0), (0, 0))
    assert (none.mean_psnr, none.single_psnr) == (None, None)
    doubt = uncertainty(reconstructor, draw_picture(0), 2, 0.0)
    assert (doubt.runs, doubt.mean_psnr, doubt.single_psnr) == (2, None, None)
    assert np.isnan(doubt.error).all()


def test_seeds_follow_each_other_and_begin_again_after_the_last() -> None:
    assert doubt_seeds(5, 3) == [5, 6, 7]
    assert doubt_seeds(MAX_SEED - 1, 3) == [MAX_SEED - 1, MAX_SEED, 0]
    with pytest.raises(ConfigError, match="masks is 0; give a whole number from 1"):
        doubt_seeds(0, 0)


def test_pictures_that_do_not_belong_together_are_refused(
    reconstructor: Reconstructor, small_config: ModelConfig
) -> None:
    doubt = added([reconstructor(draw_picture(0))])
    with pytest.raises(ImageError, match="3 channels of 32 x 32 in .* 48 x 48 .*; add .* one pict"):
        doubt.add(reconstructor(draw_picture(0), image_size=32))
    assert doubt.runs == 1
    normalised = Reconstructor(
        MaskedAutoencoder(replace(small_config, norm_pix=True)), device="cpu"
    )
    with pytest.raises(ConfigError, match="choose estimated or answer"):
        uncertainty(normalised, draw_picture(0), view="normalized")
    with pytest.raises(MaskError, match="mask_ratio"):
        uncertainty(reconstructor, draw_picture(0), mask_ratio=7)
