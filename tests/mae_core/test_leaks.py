from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mae_core.config import ModelConfig
from mae_core.errors import ConfigError, MaskError
from mae_core.inside.leaks import prove, scramble
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import PatchMask
from mae_core.reconstruct import ReconstructionRequest, Reconstructor
from tests.pictures import draw_picture

REQUEST = ReconstructionRequest(draw_picture(0), fit="whole", seed=3)  # 6 x 8 patches of 8


def reconstructor_of(
    config: ModelConfig, kind: type[MaskedAutoencoder] = MaskedAutoencoder, **changes: Any
) -> Reconstructor:
    torch.manual_seed(0)
    model = kind(replace(config, **changes))
    return Reconstructor(model, device="cpu", precision="float32")


def of_pixels(removed: np.ndarray) -> Tensor:
    return torch.from_numpy(removed.repeat(8, axis=0).repeat(8, axis=1))


def test_scrambled_is_what_is_removed_and_nothing_else() -> None:
    pixels = torch.full((2, 24, 32), 0.5)
    removed = np.random.default_rng(0).random((3, 4)) < 0.5
    hidden = of_pixels(removed)
    scrambled = scramble(pixels, removed, 8, seed=1)
    assert torch.equal(scrambled[:, ~hidden], pixels[:, ~hidden])
    noise = scrambled[:, hidden]
    assert (noise != 0.5).all()
    assert 0 <= noise.min() < 0.02
    assert 0.98 < noise.max() <= 1
    assert noise.mean() == pytest.approx(0.5, abs=0.05)
    assert noise[0].ne(noise[1]).any()
    assert torch.equal(scrambled, scramble(pixels, removed, 8, seed=1))
    assert not torch.equal(scrambled, scramble(pixels, removed, 8, seed=2))
    assert (pixels == 0.5).all()


@pytest.mark.parametrize("strategy", ["random", "block", "custom"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_model_of_pixels_leaks_nothing(
    small_config: ModelConfig, strategy: str, precision: str
) -> None:
    model = reconstructor_of(small_config).model
    reconstructor = Reconstructor(model, device="cpu", precision=precision)
    own = np.arange(48).reshape(6, 8) % 3 > 0
    request = (
        replace(REQUEST, mask=own) if strategy == "custom" else replace(REQUEST, strategy=strategy)
    )
    proof = prove(reconstructor, request, seed=5)
    assert (proof.same, proof.changed_values, proof.largest_change) == (True, 0, 0.0)
    assert (proof.view, proof.answer) == (None, None)
    (expected,) = reconstructor.batch([request])
    np.testing.assert_array_equal(proof.removed, expected.removed)  # type: ignore[union-attr]
    for pixels in proof.predictions:
        assert torch.equal(pixels, expected.reconstruction)  # type: ignore[union-attr]
    hidden = of_pixels(proof.removed)
    assert torch.equal(proof.scrambled[:, ~hidden], proof.original[:, ~hidden])
    assert (proof.scrambled != proof.original)[:, hidden].float().mean() > 0.99
    assert torch.equal(proof.scrambled, scramble(proof.original, proof.removed, 8, seed=5))


def test_mask_tokens_in_the_encoder_leak_nothing(small_config: ModelConfig) -> None:
    assert prove(reconstructor_of(small_config, encoder_mask_tokens=True), REQUEST).same


@pytest.mark.parametrize("view", ["estimated", "normalized"])
def test_of_normalised_pixels_only_the_answer_leaks(small_config: ModelConfig, view: str) -> None:
    proof = prove(reconstructor_of(small_config, norm_pix=True), replace(REQUEST, view=view))
    assert (proof.view, proof.same, proof.changed_values) == (view, True, 0)
    answer = proof.answer
    assert answer is not None
    assert (answer.view, answer.same) == ("answer", False)
    before, after = answer.predictions
    changed = (before != after).any(dim=0)
    hidden = of_pixels(proof.removed)
    assert not changed[~hidden].any()
    assert changed[hidden].float().mean() > 0.9
    assert answer.changed_values == (before != after).sum() > 0
    assert answer.largest_change == (before - after).abs().max() > 0.1


def test_where_the_answer_is_asked_for_the_proof_says_that_it_leaks(
    small_config: ModelConfig,
) -> None:
    proof = prove(reconstructor_of(small_config, norm_pix=True), replace(REQUEST, view="answer"))
    assert (proof.view, proof.same) == ("answer", False)
    assert proof.answer is not None
    assert proof.changed_values == proof.answer.changed_values > 0


class LeakingModel(MaskedAutoencoder):
    """Tells each token a little of the mean of all pixels."""

    def encode(self, images: Tensor, patch_mask: PatchMask) -> Tensor:
        return super().encode(images, patch_mask) + 1e-3 * images.mean()


@pytest.mark.parametrize("norm_pix", [False, True])
def test_a_model_that_leaks_is_found_out(small_config: ModelConfig, norm_pix: bool) -> None:
    proof = prove(reconstructor_of(small_config, LeakingModel, norm_pix=norm_pix), REQUEST)
    assert not proof.same
    assert proof.changed_values > 0
    assert 0 < proof.largest_change < 0.1


class WatchedReconstructor(Reconstructor):
    """Keeps what its model was given."""

    def rebuild(self, images: Tensor, patch_mask: PatchMask, view: str) -> Any:
        self.given = [*getattr(self, "given", []), images]
        return super().rebuild(images, patch_mask, view)


def test_the_model_gets_noise_for_hidden_pixels_and_visible_ones_to_the_bit(
    small_config: ModelConfig,
) -> None:
    reconstructor = WatchedReconstructor(
        reconstructor_of(small_config).model, device="cpu", precision="float32"
    )
    # Strides of an image that was (H, W, C).
    channels = torch.rand(24, 40, 3, generator=torch.Generator().manual_seed(0)).permute(2, 0, 1)
    proof = prove(reconstructor, ReconstructionRequest(channels, seed=1))
    assert proof.same
    original, scrambled = reconstructor.given
    assert original.stride() == scrambled.stride()
    hidden = of_pixels(proof.removed)
    assert torch.equal(original[..., ~hidden], scrambled[..., ~hidden])
    assert (original != scrambled)[..., hidden].float().mean() > 0.99
    deviation = torch.tensor(small_config.std).reshape(3, 1, 1)
    mean = torch.tensor(small_config.mean).reshape(3, 1, 1)
    torch.testing.assert_close(scrambled[0] * deviation + mean, proof.scrambled)


def test_where_nothing_is_hidden_there_is_nothing_to_prove(small_config: ModelConfig) -> None:
    with pytest.raises(MaskError, match="no patch is removed, .* give a higher mask_ratio"):
        prove(reconstructor_of(small_config), replace(REQUEST, mask_ratio=0.0))


def test_what_a_reconstruction_refuses_is_refused(small_config: ModelConfig) -> None:
    with pytest.raises(ConfigError, match="no view is called 'x'"):
        prove(reconstructor_of(small_config), replace(REQUEST, view="x"))
