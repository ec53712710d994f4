import io
from dataclasses import replace

import numpy as np
import pytest

from mae_core.errors import ConfigError, ImageError, MaskError
from mae_core.inside.influence import MAX_RUNS, influence, leave_one_out, patch_change
from mae_core.model.mae import MaskedAutoencoder
from mae_core.reconstruct import Reconstructor
from tests.pictures import draw_picture


@pytest.fixture
def reconstructor(small_model: MaskedAutoencoder) -> Reconstructor:
    return Reconstructor(small_model, "small", device="cpu", precision="float32")


def test_each_mask_removes_one_more_patch() -> None:
    removed = np.array([[True, False, True], [False, True, False]])
    before = removed.copy()
    masks = leave_one_out(removed)
    assert [patch for patch, _ in masks] == [1, 3, 5]
    for patch, mask in masks:
        assert np.flatnonzero(mask != removed).tolist() == [patch]
        assert mask.flat[patch]
    np.testing.assert_array_equal(removed, before)


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        (np.zeros((4, 4), dtype=bool), "no patch is removed, .*; give a higher mask_ratio"),
        (np.arange(16).reshape(4, 4) > 0, "of 16 patches 1 is visible, .*; give a lower"),
        (
            np.arange(17 * 17).reshape(17, 17) > MAX_RUNS,
            "257 patches are visible, and at most 256 are left out in turn; give a higher "
            "mask_ratio or a smaller image_size",
        ),
    ],
)
def test_masks_that_nothing_can_be_left_out_of_are_refused(removed: np.ndarray, words: str) -> None:
    with pytest.raises(MaskError, match=f"^{words}"):
        leave_one_out(removed)


def test_as_many_patches_as_allowed_are_left_out() -> None:
    assert len(leave_one_out(np.arange(17 * 17).reshape(17, 17) >= MAX_RUNS)) == MAX_RUNS


def test_a_change_is_that_of_its_patch(reconstructor: Reconstructor) -> None:
    before = reconstructor(draw_picture(0), fit="whole", seed=1)
    assert before.grid_size == (6, 8)
    pixels = before.reconstruction.clone()
    pixels[:, 16:24, 40:48] += 0.25  # row 2, column 5
    pixels[0, 0, 0] -= 0.5
    expected = np.zeros((6, 8))
    expected[2, 5] = 0.25
    expected[0, 0] = (0.5**2 / (3 * 8 * 8)) ** 0.5
    change = patch_change(before, replace(before, reconstruction=pixels))
    np.testing.assert_allclose(change, expected, atol=1e-6)


@pytest.mark.parametrize("norm_pix", [False, True])
def test_influence_equals_runs_one_by_one(small_model: MaskedAutoencoder, norm_pix: bool) -> None:
    model = MaskedAutoencoder(replace(small_model.config, norm_pix=norm_pix))
    reconstructor = Reconstructor(model, device="cpu", precision="float32")
    file = io.BytesIO()
    draw_picture(3).save(file, "PNG")
    fields = {"fit": "whole", "strategy": "block", "mask_ratio": 0.6, "seed": 4}
    found = influence(reconstructor, file.getvalue(), **fields)

    before = reconstructor(file.getvalue(), **fields)  # type: ignore[arg-type]
    removed = before.removed.ravel()
    assert found.visible.tolist() == [i for i in range(48) if not removed[i]]
    assert found.removed.tolist() == [i for i in range(48) if removed[i]]
    assert found.change.shape == (len(found.visible), len(found.removed)) == (19, 29)
    np.testing.assert_array_equal(found.reconstruction.removed, before.removed)
    for k, left_out in enumerate(found.visible):
        mask = before.removed.copy()
        mask[left_out // 8, left_out % 8] = True
        after = reconstructor(file.getvalue(), fit="whole", mask=mask)
        for r, patch in enumerate(found.removed):
            y, x = patch // 8 * 8, patch % 8 * 8
            change = (after.reconstruction - before.reconstruction)[:, y : y + 8, x : x + 8]
            assert found.change[k, r] == pytest.approx(
                float(change.square().mean() ** 0.5), abs=2e-6
            )
    assert found.change.max() > 1e-3


def test_influence_of_channels_and_a_mask_of_ones_own(reconstructor: Reconstructor) -> None:
    channels = np.random.default_rng(0).random((3, 16, 24), dtype=np.float32)
    mask = np.array([[True, False, False], [False, True, True]])
    found = influence(reconstructor, channels, mask=mask)
    assert (found.visible.tolist(), found.removed.tolist()) == ([1, 2, 3], [0, 4, 5])
    assert found.reconstruction.strategy == "custom"


def test_progress_is_told_after_each_pass(
    reconstructor: Reconstructor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = influence(reconstructor, draw_picture(0))
    monkeypatch.setattr("mae_core.inside.influence.MAX_PATCHES", 4 * 36)
    told: list[tuple[int, int]] = []
    parts = influence(
        reconstructor, draw_picture(0), progress=lambda done, of: told.append((done, of))
    )
    assert told == [(4, 9), (8, 9), (9, 9)]
    np.testing.assert_allclose(parts.change, whole.change, atol=1e-6)


def test_what_a_reconstruction_refuses_is_refused(reconstructor: Reconstructor) -> None:
    with pytest.raises(ImageError):
        influence(reconstructor, b"no image")
    with pytest.raises(ConfigError, match="no view is called 'x'"):
        influence(reconstructor, draw_picture(0), view="x")
    with pytest.raises(MaskError, match="no patch is removed"):
        influence(reconstructor, draw_picture(0), mask_ratio=0.0)
