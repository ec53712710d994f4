"""Features of whole images, and the encoder as a timm model, against timm's own ViT."""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mae_core.config import ModelConfig
from mae_core.errors import ConfigError
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import random_mask

# Two channels and a table that is not square, so that nothing fits by accident.
CONFIG = ModelConfig(
    image_size=24, grid=(3, 5), patch_size=8, in_chans=2, mean=(0.5, 0.5), std=(0.2, 0.2),
    embed_dim=24, depth=3, num_heads=3, mlp_ratio=3.0, decoder_embed_dim=16, decoder_depth=1,
    decoder_num_heads=4,
)  # fmt: skip
VARIANTS = [
    CONFIG,
    replace(CONFIG, encoder_mask_tokens=True),
    replace(CONFIG, pca_components=10),
    ModelConfig(image_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3,
                decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=4, layer_norm_eps=1e-3),
]  # fmt: skip
SIZES = [(24, 40), (32, 32), (40, 24), (8, 80), (56, 48)]

variants = pytest.mark.parametrize("config", VARIANTS, ids=["plain", "tokens", "pca", "square"])
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")


def build(config: ModelConfig = CONFIG) -> MaskedAutoencoder:
    """A model with noise in every parameter, positions and LayerNorms included."""
    model, generator = MaskedAutoencoder(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def noise(config: ModelConfig, n: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, config.in_chans, height, width, generator=generator)


def timms(model: MaskedAutoencoder, size: tuple[int, int]) -> VisionTransformer:
    """timm's ViT with the model's numbers, put together by hand."""
    config = model.config
    vit = VisionTransformer(
        img_size=size, patch_size=config.patch_size, in_chans=config.in_chans, num_classes=0,
        embed_dim=config.embed_dim, depth=config.depth, num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
    )  # fmt: skip
    vit.load_state_dict({name: model.state_dict()[name] for name in vit.state_dict()})
    return vit.eval()


@variants
def test_features_are_what_timm_computes(config: ModelConfig) -> None:
    model = build(config)
    size = (config.table_grid[0] * 8, config.table_grid[1] * 8)
    vit, images = timms(model, size), noise(config, 2, *size)
    with torch.inference_mode():
        expected = vit.forward_features(images)
        assert torch.equal(model.features(images), expected)
        assert torch.equal(model.features(images, pool="cls"), vit(images))
        mean = expected[:, 1:].mean(dim=1)
        assert torch.equal(model.features(images, pool="mean"), mean)


@variants
def test_features_of_a_block_are_what_timm_computes(config: ModelConfig) -> None:
    model = build(config)
    size = (config.table_grid[0] * 8, config.table_grid[1] * 8)
    vit, images = timms(model, size), noise(config, 2, *size)
    with torch.inference_mode():
        last, blocks = vit.forward_intermediates(
            images, output_fmt="NLC", return_prefix_tokens=True
        )
        for i, (patches, prefix) in enumerate(blocks[:-1]):
            expected = torch.cat((prefix, patches), dim=1)
            assert torch.equal(model.features(images, block=i), expected)
            assert torch.equal(model.features(images, block=i - 3), expected)
            assert torch.equal(model.features(images, "mean", i), expected[:, 1:].mean(dim=1))
            assert torch.equal(model.features(images, "cls", i), expected[:, 0])
        # The final norm belongs to the last block.
        assert torch.equal(model.features(images, block=2), last)
        assert torch.equal(model.features(images, block=-1), last)


@variants
@sizes
def test_features_are_the_encoders_with_nothing_removed(
    config: ModelConfig, size: tuple[int, int]
) -> None:
    model, images = build(config), noise(config, 2, *size)
    grid_size = model.grid_of(images)
    patch_mask = random_mask(2, grid_size[0] * grid_size[1], 0.0, seed=[3, 4])
    with torch.inference_mode():
        latent, features = model.encode(images, patch_mask), model.features(images)
    for i in range(2):
        patches = latent[i, 1:][patch_mask.ids_restore[i]]
        torch.testing.assert_close(features[i, 1:], patches, rtol=0, atol=1e-5)
        torch.testing.assert_close(features[i, 0], latent[i, 0], rtol=0, atol=1e-5)


def test_features_impose_no_mode_and_no_gradient_context() -> None:
    model = build().train()
    model.features(noise(CONFIG, 1, 24, 40), pool="mean").sum().backward()
    assert model.training
    assert model.blocks[0].attn.qkv.weight.grad is not None
    assert model.decoder_embed.weight.grad is None
    before = torch.get_rng_state()
    model.features(noise(CONFIG, 1, 24, 40))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("pool", ["max", "", True])
def test_a_pool_that_is_not_there_is_named(pool: Any) -> None:
    with pytest.raises(ConfigError, match=f"pool is {pool!r}; choose mean or cls"):
        build().features(noise(CONFIG, 1, 24, 40), pool=pool)


@pytest.mark.parametrize("block", [3, -4])
def test_a_block_that_is_not_there_is_named(block: int) -> None:
    with pytest.raises(ConfigError, match=f"block is {block}; this encoder has 3: give -3 to 2"):
        build().features(noise(CONFIG, 1, 24, 40), block=block)


def test_a_block_that_is_no_number_is_named() -> None:
    with pytest.raises(ConfigError, match="^block='last': Input should be a valid integer"):
        build().features(noise(CONFIG, 1, 24, 40), block="last")  # type: ignore[arg-type]


def test_features_of_images_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="a 20x40 image does not divide"):
        build().features(noise(CONFIG, 1, 20, 40))


@variants
@sizes
def test_the_timm_model_computes_our_features_at_its_size(
    config: ModelConfig, size: tuple[int, int]
) -> None:
    model, images = build(config), noise(config, 2, *size)
    vit = model.to_timm(global_pool="token", img_size=size).eval()
    with torch.inference_mode():
        assert torch.equal(vit.forward_features(images), model.features(images))
        assert torch.equal(vit(images), model.features(images, pool="cls"))


@pytest.mark.parametrize("num_classes", [0, 7])
@pytest.mark.parametrize("global_pool", ["avg", "token"])
def test_the_timm_model_has_all_of_the_encoder(global_pool: Any, num_classes: int) -> None:
    model = build()
    vit = model.to_timm(num_classes, global_pool=global_pool)
    ours, theirs = model.state_dict(), vit.state_dict()
    fresh = {"head.weight", "head.bias"} if num_classes else set()
    norm = {"norm.weight", "norm.bias"}
    if global_pool == "avg":
        fresh |= {"fc_norm.weight", "fc_norm.bias"}
    encoder = {name for name in ours if not name.startswith(("decoder_", "mask_token"))}
    assert set(theirs) - fresh == (encoder - norm if global_pool == "avg" else encoder)
    for name in set(theirs) - fresh:
        assert torch.equal(ours[name], theirs[name]), name
        assert ours[name].data_ptr() != theirs[name].data_ptr(), "a copy"
    assert vit.training
    assert all(parameter.requires_grad for parameter in vit.parameters())


def test_the_timm_model_is_the_classifier_of_fine_tuning() -> None:
    model, images = build(), noise(CONFIG, 2, 24, 40)
    vit = model.to_timm(num_classes=7, drop_path=0.2)
    assert vit(images).shape == (2, 7)
    assert 0 < vit.head.weight.std() < 1e-4
    assert not vit.head.bias.any()
    rates = [module.drop_prob for module in vit.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.1, 0.1, 0.2, 0.2])  # two in each block but the first
    assert {m.eps for m in vit.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
    vit = vit.eval()
    with torch.inference_mode():
        tokens = vit.forward_features(images)
        mean = tokens[:, 1:].mean(dim=1)
        torch.testing.assert_close(model.norm(tokens), model.features(images), rtol=0, atol=1e-6)
        expected = nn.functional.layer_norm(mean, (24,), eps=1e-6)
        pooled = vit.forward_head(tokens, pre_logits=True)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-6)


def test_the_timm_model_learns_and_leaves_ours_alone() -> None:
    model, images = build(), noise(CONFIG, 4, 32, 32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    vit = model.to_timm(num_classes=2, img_size=32)
    optimizer = torch.optim.AdamW(vit.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(vit(images), torch.tensor([0, 1, 0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_timm_model_is_where_ours_is_in_its_number_format() -> None:
    vit = build().bfloat16().to_timm(num_classes=3)
    assert {tensor.dtype for tensor in vit.state_dict().values()} == {torch.bfloat16}


def test_timm_models_that_cannot_be() -> None:
    model = build()
    with pytest.raises(ConfigError, match="global_pool is 'map'; choose avg or token"):
        model.to_timm(global_pool="map")  # type: ignore[arg-type]
    message = "a 100x100 image does not divide into patches of 8 pixels"
    with pytest.raises(ConfigError, match=re.escape(message)):
        model.to_timm(img_size=100)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_classes": -1}, "num_classes=-1: Input should be greater than or equal to 0"),
        ({"drop_path": 2}, "drop_path=2: Input should be less than or equal to 1"),
        ({"img_size": "large"}, "img_size.int='large': Input should be a valid integer"),
    ],
)
def test_values_that_no_timm_model_can_have(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        build().to_timm(**given)


def test_a_model_may_have_a_name_which_is_no_part_of_its_state() -> None:
    model = build()
    assert model.name == ""
    model.name = "mine"
    assert MaskedAutoencoder(CONFIG).name == ""
    assert "name" not in model.state_dict()
