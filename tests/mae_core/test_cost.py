"""The count of operations, against torch's own and against the paper."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mae_core.config import ModelConfig, preset
from mae_core.errors import MaskError
from mae_core.model.mae import MaskedAutoencoder, forward_flops
from mae_core.model.masking import random_mask


def counted_by_torch(config: ModelConfig, grid_size: tuple[int, int], mask_ratio: float) -> int:
    h, w = grid_size
    patch_mask = random_mask(1, h * w, mask_ratio, seed=0).to("meta")
    # On `meta` nothing is computed. The counter knows attention only as the products it is
    # made of.
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH):
        model = MaskedAutoencoder(config)
        images = torch.zeros(1, config.in_chans, h * config.patch_size, w * config.patch_size)
        with FlopCounterMode(display=False) as counter:
            latent = model.encode(images, patch_mask)
            model.decode(latent, patch_mask.ids_restore, grid_size)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("encoder_mask_tokens", [False, True])
@pytest.mark.parametrize("name", ["tiny", "base", "huge"])
def test_operations_are_what_torch_counts(name: str, encoder_mask_tokens: bool) -> None:
    config = replace(preset(name), encoder_mask_tokens=encoder_mask_tokens)
    grid_size = (config.grid_size, config.grid_size)
    assert forward_flops(config, grid_size, 0.75) == counted_by_torch(config, grid_size, 0.75)


@pytest.mark.parametrize("mask_ratio", [0.0, 0.4, 0.9])
def test_operations_of_odd_shapes_are_too(mask_ratio: float) -> None:
    config = ModelConfig(
        image_size=32, patch_size=8, in_chans=2, mean=(0.5, 0.5), std=(0.2, 0.2), embed_dim=24,
        depth=3, num_heads=3, decoder_embed_dim=20, decoder_depth=2, decoder_num_heads=5,
        mlp_ratio=2.7, pca_components=7,
    )  # fmt: skip
    assert forward_flops(config, (3, 5), mask_ratio) == counted_by_torch(config, (3, 5), mask_ratio)


def test_mask_tokens_in_the_encoder_cost_what_the_paper_says() -> None:
    large = preset("large")
    plain = forward_flops(large, (14, 14), 0.75)
    costly = forward_flops(replace(large, encoder_mask_tokens=True), (14, 14), 0.75)
    assert costly / plain == pytest.approx(3.3, abs=0.1)  # He et al. 2022, table 1c


def test_a_ratio_out_of_range_is_named() -> None:
    with pytest.raises(MaskError, match="1.5"):
        forward_flops(preset("tiny"), (14, 14), 1.5)
