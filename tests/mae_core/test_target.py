"""What a model predicts is found out by trying it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mae_core import MaskedAutoencoder, ModelConfig, load
from mae_core.model.losses import reconstruction_loss
from mae_core.model.masking import random_mask
from mae_core.weights import DEFAULT_WEIGHTS
from mae_core.weights.formats import Hints, predicts_normalized_pixels
from mae_core.weights.registry import read_weights

STEPS = 150


def trained(config: ModelConfig) -> MaskedAutoencoder:
    """A model that has learned a little of slow waves in random directions and colours."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = MaskedAutoencoder(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    line = torch.linspace(0, 3, config.image_size)
    for step in range(STEPS):
        drawn = torch.rand(5, 16, config.in_chans, 1, 1, generator=generator)
        waves = torch.sin(line * drawn[0] + line[:, None] * (drawn[1] - 0.5) + 6 * drawn[2])
        images = 4 * drawn[3].mean(dim=1, keepdim=True) - 2 + waves * drawn[4]
        output = model(images, random_mask(16, config.grid_size**2, 0.5, seed=step))
        optimizer.zero_grad()
        reconstruction_loss(output.pred, model.target(images), output.mask).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("norm_pix", [False, True])
def test_files_of_trained_models_are_told_apart(
    norm_pix: bool, small_config: ModelConfig, tmp_path: Path
) -> None:
    config = replace(small_config, norm_pix=norm_pix, decoder_num_heads=16, num_heads=1)
    model = trained(config)
    assert predicts_normalized_pixels(model) is norm_pix
    # Such a file has the names of all others, and nothing that says what it predicts.
    path = tmp_path / "full.pth"
    torch.save({"model": model.state_dict()}, path)
    contents = read_weights(path)
    assert contents.config == config
    assert contents.origins["norm_pix"] == "trial"
    # Who knows better is believed.
    told = read_weights(path, hints=Hints(norm_pix=not norm_pix))
    assert (told.config.norm_pix, told.origins["norm_pix"]) == (not norm_pix, "option")


def test_the_bundled_weights_predict_pixels() -> None:
    model = load(DEFAULT_WEIGHTS)
    assert predicts_normalized_pixels(model) is False


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_untrained_weights_are_neither(channels: int, small_config: ModelConfig) -> None:
    half = (0.5,) * channels
    torch.manual_seed(0)
    model = MaskedAutoencoder(replace(small_config, in_chans=channels, mean=half, std=half))
    assert predicts_normalized_pixels(model.eval()) is None


def test_numbers_that_are_none_are_neither(small_model: MaskedAutoencoder) -> None:
    with torch.no_grad():
        small_model.decoder_pred.weight.fill_(float("nan"))
    assert predicts_normalized_pixels(small_model) is None
