"""The model against plain matrices, against transformers' ViTMAE, and by its properties."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mae_core.config import ModelConfig, preset
from mae_core.errors import ConfigError
from mae_core.model.losses import LossKind, reconstruction_loss, seam_loss
from mae_core.model.mae import MaskedAutoencoder, sincos_pos_embed
from mae_core.model.masking import PatchMask, draw_mask, mask_from_noise, random_mask
from mae_core.model.patches import normalize_patches, patchify, pixel_mask, unpatchify
from mae_core.weights.formats import save_weights
from mae_core.weights.registry import load
from tests import references

OFFICIAL_KEYS = Path(__file__).with_name("official_keys_base.txt")

# Big enough that every width, head count and depth differs from every other.
TINY = ModelConfig(
    image_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3,
    decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=4,
)  # fmt: skip
GRID = (4, 4)


def build(config: ModelConfig = TINY, seed: int = 0) -> MaskedAutoencoder:
    """A model with noise in every parameter, positions and LayerNorms included."""
    model = MaskedAutoencoder(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    if config.pca_components:
        mean = torch.randn(config.patch_dim, generator=generator)
        square = torch.randn(config.patch_dim, config.patch_dim, generator=generator)
        model.set_pca(mean, torch.linalg.qr(square)[0][:, : config.pca_components])
    return model


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loss_of(model: MaskedAutoencoder, images: Tensor, patch_mask: PatchMask) -> Tensor:
    output = model(images, patch_mask)
    return reconstruction_loss(output.pred, model.target(images), output.mask)


@pytest.fixture(scope="module")
def model() -> MaskedAutoencoder:
    return build()


# --- the official architecture


def test_base_has_the_official_keys_and_shapes() -> None:
    lines = OFFICIAL_KEYS.read_text(encoding="utf-8").splitlines()
    official = dict(line.split() for line in lines if not line.startswith("#"))
    decoder = [key for key in official if key.startswith(("decoder_", "mask_token"))]
    assert (len(official) - len(decoder), len(decoder)) == (150, 104)
    with torch.device("meta"):
        state = MaskedAutoencoder(preset("base")).state_dict()
    ours = {key: "x".join(map(str, value.shape)) for key, value in state.items()}
    assert ours == official


def test_the_variants_add_what_they_need_and_no_more() -> None:
    plain = shapes_of(TINY)
    with_tokens = shapes_of(replace(TINY, encoder_mask_tokens=True))
    assert with_tokens == {**plain, "encoder_mask_token": (1, 1, 24)}
    assert shapes_of(replace(TINY, pca_components=10)) == {
        **plain, "pca_mean": (192,), "pca_basis": (192, 10),
        "decoder_pred.weight": (10, 16), "decoder_pred.bias": (10,),
    }  # fmt: skip


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = MaskedAutoencoder(config).state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}


@pytest.mark.parametrize(
    ("name", "encoder", "decoder", "total"),
    [
        ("base", 85_798_656, 26_109_184, 111_907_840),
        ("large", 303_301_632, 26_240_256, 329_541_888),
        ("huge", 630_764_800, 26_309_708, 657_074_508),
    ],
)
def test_parameter_counts_are_the_papers(name: str, encoder: int, decoder: int, total: int) -> None:
    with torch.device("meta"):
        parameters = dict(MaskedAutoencoder(preset(name)).named_parameters())
    of_decoder = sum(
        p.numel() for key, p in parameters.items() if key.startswith(("decoder_", "mask_token"))
    )
    of_all = sum(p.numel() for p in parameters.values())
    assert (of_all - of_decoder, of_decoder, of_all) == (encoder, decoder, total)


def test_every_layer_norm_has_the_configs_epsilon() -> None:
    for eps in (1e-6, 1e-3):
        with torch.device("meta"):
            model = MaskedAutoencoder(ModelConfig(layer_norm_eps=eps))
        norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
        assert len(norms) == 2 * (12 + 8) + 2
        assert {norm.eps for norm in norms} == {eps}


def test_fresh_parameters_are_drawn_as_the_official_ones() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(preset("tiny"))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert bound * 0.98 < module.weight.abs().max() <= bound, name
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02), name
            assert not module.bias.any(), name
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert not module.bias.any(), name
    # The patch projection is drawn as the matrix that it is, of 16 * 16 * 3 by 192.
    bound = math.sqrt(6 / (16 * 16 * 3 + 192))
    assert bound * 0.98 < model.patch_embed.proj.weight.abs().max() <= bound
    for token in (model.cls_token, model.mask_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.2)
        assert abs(token.mean().item()) < 0.006


def test_fresh_positions_are_the_fixed_table() -> None:
    model = MaskedAutoencoder(TINY)
    assert torch.equal(model.pos_embed, sincos_pos_embed(24, GRID))
    assert torch.equal(model.decoder_pos_embed, sincos_pos_embed(16, GRID))
    assert not model.pos_embed.requires_grad
    assert not model.decoder_pos_embed.requires_grad


def test_one_seed_builds_one_model() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(MaskedAutoencoder(TINY).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# --- against plain matrices


@pytest.mark.parametrize("norm_pix", [False, True])
@pytest.mark.parametrize("grid_size", [(4, 4), (3, 5), (6, 2)])
@pytest.mark.parametrize("strategy", ["random", "block"])
def test_forward_is_plain_matrices(
    grid_size: tuple[int, int], norm_pix: bool, strategy: str
) -> None:
    config = ModelConfig(**{**vars(TINY), "norm_pix": norm_pix})
    model = build(config).double()
    images = noise(2, 3, grid_size[0] * 8, grid_size[1] * 8).double()
    patch_mask = draw_mask(strategy, 2, grid_size, 0.6, seed=[3, 4])
    with torch.no_grad():
        output = model(images, patch_mask)

    state = {key: value.numpy() for key, value in model.state_dict().items()}
    if grid_size != GRID:
        for key in ("pos_embed", "decoder_pos_embed"):
            square = state[key][0, 1:].reshape(*GRID, -1)
            stretched = references.resize_bicubic(square, *grid_size)
            rows = stretched.reshape(-1, stretched.shape[-1])
            state[key] = np.concatenate([state[key][0, :1], rows])[None]
    losses = []
    for i in range(2):
        latent, pred, loss = references.mae_forward(
            images[i].numpy(), patch_mask.ids_keep[i].tolist(), state,
            patch_size=8, depths=(3, 2), heads=(3, 4), eps=1e-6, norm_pix=norm_pix,
        )  # fmt: skip
        # Positions are stretched in float32, so other grids agree to that.
        tolerance = 1e-10 if grid_size == GRID else 1e-5
        np.testing.assert_allclose(output.latent[i].numpy(), latent, rtol=0, atol=tolerance)
        np.testing.assert_allclose(output.pred[i].numpy(), pred, rtol=0, atol=tolerance)
        losses.append(loss)
    ours = reconstruction_loss(output.pred, model.target(images), patch_mask.mask)
    assert ours.item() == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("changes", [{"encoder_mask_tokens": True}, {"pca_components": 10}])
def test_a_variants_forward_is_plain_matrices(changes: dict[str, Any]) -> None:
    model = build(replace(TINY, **changes)).double()
    images, patch_mask = noise(2, 3, 32, 32).double(), random_mask(2, 16, 0.6, seed=[3, 4])
    with torch.no_grad():
        output = model(images, patch_mask)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    losses = []
    for i in range(2):
        kept = patch_mask.ids_keep[i].tolist()
        expected, pred, loss = references.mae_forward(
            images[i].numpy(), kept, state,
            patch_size=8, depths=(3, 2), heads=(3, 4), eps=1e-6, norm_pix=False,
        )  # fmt: skip
        latent = output.latent[i].numpy()
        if model.config.encoder_mask_tokens:
            # Ours has the visible patches first; the reference has the grid's order.
            latent = np.concatenate([latent[:1], latent[1:][patch_mask.ids_restore[i].numpy()]])
        np.testing.assert_allclose(latent, expected, rtol=0, atol=1e-10)
        np.testing.assert_allclose(output.pred[i].numpy(), pred, rtol=0, atol=1e-10)
        losses.append(loss)
    ours = reconstruction_loss(output.pred, model.target(images), patch_mask.mask)
    assert ours.item() == pytest.approx(np.mean(losses), rel=1e-6)


# --- against transformers

# Where transformers 5 keeps what a block of ours holds; {} is q_proj, k_proj or v_proj.
PEER_BLOCK = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip


def peer_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters under transformers' names."""
    renamed = {}
    for key, value in state.items():
        match = re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.+)\.(weight|bias)", key)
        if match:
            decoder, i, module, kind = match.groups()
            prefix = f"decoder.decoder_layers.{i}" if decoder else f"vit.layers.{i}"
            if module == "attn.qkv":
                for name, part in zip("qkv", value.chunk(3), strict=True):
                    renamed[f"{prefix}.attention.{name}_proj.{kind}"] = part
            else:
                renamed[f"{prefix}.{PEER_BLOCK[module]}.{kind}"] = value
        elif key.startswith("decoder_") or key == "mask_token":
            renamed[f"decoder.{key}"] = value
        else:
            name = key.replace("pos_embed", "position_embeddings")
            name = name.replace("patch_embed.proj", "patch_embeddings.projection")
            place = "vit.layernorm." if key.startswith("norm.") else "vit.embeddings."
            renamed[place + name.removeprefix("norm.")] = value
    return renamed


def peer_of(model: MaskedAutoencoder, mask_ratio: float) -> Any:
    # Imported late: transformers needs the torchvision that importing mae_core has mended.
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = model.config
    peer = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=config.embed_dim, num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads, intermediate_size=4 * config.embed_dim,
            decoder_hidden_size=config.decoder_embed_dim,
            decoder_num_hidden_layers=config.decoder_depth,
            decoder_num_attention_heads=config.decoder_num_heads,
            decoder_intermediate_size=4 * config.decoder_embed_dim,
            image_size=config.image_size, patch_size=config.patch_size,
            num_channels=config.in_chans, layer_norm_eps=config.layer_norm_eps,
            norm_pix_loss=config.norm_pix, mask_ratio=mask_ratio,
        )
    )  # fmt: skip
    peer.load_state_dict(peer_state(model.state_dict()), strict=True)
    return peer.eval()


@pytest.mark.parametrize("norm_pix", [False, True])
@pytest.mark.parametrize("mask_ratio", [0.75, 0.5])
def test_transformers_says_the_same(norm_pix: bool, mask_ratio: float) -> None:
    model = build(ModelConfig(**{**vars(TINY), "norm_pix": norm_pix}))
    peer = peer_of(model, mask_ratio)
    images, drawn = noise(3, 3, 32, 32), noise(3, 16, seed=2)
    with torch.no_grad():
        ours = model(images, mask_from_noise(drawn, mask_ratio))
        theirs = peer(images, noise=drawn, output_hidden_states=True)
        latent = peer.vit(images, noise=drawn).last_hidden_state
    torch.testing.assert_close(ours.pred, theirs.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.latent, latent, rtol=0, atol=1e-5)
    loss = reconstruction_loss(ours.pred, model.target(images), ours.mask)
    torch.testing.assert_close(loss, theirs.loss, rtol=1e-5, atol=0)
    assert torch.equal(mask_from_noise(drawn, mask_ratio).mask, theirs.mask)


# --- properties


@given(
    h=st.integers(1, 5), w=st.integers(2, 5), percent=st.integers(1, 99), seed=st.integers(0, 99),
    strategy=st.sampled_from(["random", "block", "grid"]), mask_tokens=st.booleans(),
)  # fmt: skip
def test_removed_pixels_never_change_the_latent(
    h: int, w: int, percent: int, seed: int, strategy: str, mask_tokens: bool
) -> None:
    model = build(replace(TINY, encoder_mask_tokens=mask_tokens))
    images = noise(2, 3, 8 * h, 8 * w, seed=seed)
    patch_mask = draw_mask(strategy, 2, (h, w), percent / 100, seed=seed)
    hidden = pixels_of(patch_mask, (h, w))
    other = torch.where(hidden, noise(*images.shape, seed=seed + 1) * 100, images)
    with torch.no_grad():
        latent = model.encode(images, patch_mask)
        assert torch.equal(latent, model.encode(other, patch_mask))
        encoded = patch_mask.num_patches if mask_tokens else patch_mask.num_visible
        assert latent.shape == (2, 1 + encoded, 24)


def pixels_of(patch_mask: PatchMask, grid_size: tuple[int, int]) -> Tensor:
    """(N, 1, H, W) booleans, True on removed patches of 8 x 8 pixels."""
    cells = patch_mask.mask.bool().reshape(-1, 1, *grid_size)
    return cells.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)


def test_visible_pixels_do_change_the_latent(model: MaskedAutoencoder) -> None:
    images, patch_mask = noise(1, 3, 32, 32), random_mask(1, 16, 0.75, seed=0)
    for patch in patch_mask.ids_keep[0].tolist():
        other = images.clone()
        other[0, 0, patch // 4 * 8, patch % 4 * 8] += 1
        with torch.no_grad():
            assert not torch.equal(
                model.encode(images, patch_mask), model.encode(other, patch_mask)
            )


def test_the_order_of_visible_patches_does_not_matter(model: MaskedAutoencoder) -> None:
    images = noise(1, 3, 32, 32)
    drawn = noise(1, 16)
    first = mask_from_noise(drawn, 0.5)
    # The same patches are kept, in the order of the grid.
    second = mask_from_noise(first.mask, 0.5)
    assert torch.equal(first.mask, second.mask)
    assert not torch.equal(first.ids_keep, second.ids_keep)
    with torch.no_grad():
        a, b = model(images, first), model(images, second)
    torch.testing.assert_close(a.pred, b.pred, rtol=0, atol=1e-5)
    torch.testing.assert_close(loss_of(model, images, first), loss_of(model, images, second))


def test_an_image_in_a_batch_is_as_alone(model: MaskedAutoencoder) -> None:
    images = noise(3, 3, 32, 32)
    together = model(images, random_mask(3, 16, 0.75, seed=[5, 6, 7]))
    alone = model(images[1:2], random_mask(1, 16, 0.75, seed=6))
    torch.testing.assert_close(together.pred[1:2], alone.pred, rtol=0, atol=1e-5)
    torch.testing.assert_close(together.latent[1:2], alone.latent, rtol=0, atol=1e-5)


@pytest.mark.parametrize("strategy", ["random", "block", "grid"])
@pytest.mark.parametrize("seed", [3, [3, 4]])
def test_forward_draws_the_mask_that_it_is_asked_for(
    model: MaskedAutoencoder, strategy: str, seed: int | list[int]
) -> None:
    images, patch_mask = noise(2, 3, 24, 40), draw_mask(strategy, 2, (3, 5), 0.6, seed=seed)
    drawn = model(images, mask_ratio=0.6, seed=seed, strategy=strategy)
    given_it = model(images, patch_mask)
    assert torch.equal(drawn.mask, patch_mask.mask)
    for name in ("pred", "mask", "latent", "ids_restore"):
        assert torch.equal(getattr(drawn, name), getattr(given_it, name)), name


def test_forward_removes_three_quarters_under_seed_0_by_itself(model: MaskedAutoencoder) -> None:
    assert torch.equal(model(noise(1, 3, 32, 32)).mask, random_mask(1, 16, 0.75, seed=0).mask)


def test_forward_draws_nothing_of_torchs_own_chance(model: MaskedAutoencoder) -> None:
    images, patch_mask = noise(2, 3, 32, 32), random_mask(2, 16, 0.75, seed=0)
    before = torch.get_rng_state()
    first = model.train()(images, patch_mask)
    second = model.eval()(images, patch_mask)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.pred, second.pred), "training mode hides no dropout"


def test_nothing_removed_encodes_everything(model: MaskedAutoencoder) -> None:
    images = noise(1, 3, 32, 48)
    patch_mask = random_mask(1, 24, 0.0, seed=0)
    latent = model.encode(images, patch_mask)
    assert latent.shape == (1, 25, 24)
    assert model.decode(latent, patch_mask.ids_restore, (4, 6)).shape == (1, 24, 192)


def test_any_number_of_channels() -> None:
    model = MaskedAutoencoder(
        ModelConfig(**{**vars(TINY), "in_chans": 5, "mean": (0.5,) * 5, "std": (0.2,) * 5})
    )
    images, patch_mask = noise(2, 5, 32, 32), random_mask(2, 16, 0.75, seed=0)
    assert model(images, patch_mask).pred.shape == (2, 16, 8 * 8 * 5)
    assert loss_of(model, images, patch_mask).isfinite()


def test_every_parameter_but_the_positions_learns() -> None:
    model = build()
    loss_of(model, noise(2, 3, 32, 32), random_mask(2, 16, 0.75, seed=0)).backward()
    assert idle_parameters(model) == {"pos_embed", "decoder_pos_embed"}


def idle_parameters(model: MaskedAutoencoder) -> set[str]:
    return {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}


def test_with_mask_tokens_in_the_encoder_the_decoder_needs_none() -> None:
    model = build(replace(TINY, encoder_mask_tokens=True))
    loss_of(model, noise(2, 3, 32, 32), random_mask(2, 16, 0.75, seed=0)).backward()
    assert idle_parameters(model) == {"pos_embed", "decoder_pos_embed", "mask_token"}
    # Not absent: processes that train together average every parameter's gradient.
    assert model.mask_token.grad is not None


def test_mask_tokens_in_the_encoder_change_no_other_draw() -> None:
    states = []
    for mask_tokens in (False, True):
        torch.manual_seed(0)
        states.append(MaskedAutoencoder(replace(TINY, encoder_mask_tokens=mask_tokens)))
    plain, variant = (model.state_dict() for model in states)
    assert variant.pop("encoder_mask_token").std().item() == pytest.approx(0.02, rel=0.5)
    assert all(torch.equal(plain[name], variant[name]) for name in plain | variant)


def test_with_nothing_removed_mask_tokens_in_the_encoder_change_nothing() -> None:
    images, patch_mask = noise(1, 3, 32, 32), random_mask(1, 16, 0.0, seed=0)
    variant = build(replace(TINY, encoder_mask_tokens=True))
    state = variant.state_dict()
    del state["encoder_mask_token"]
    plain = MaskedAutoencoder(TINY)
    plain.load_state_dict(state)
    assert torch.equal(plain.encode(images, patch_mask), variant.encode(images, patch_mask))


def test_bfloat16_stays_near_float32() -> None:
    images, patch_mask = noise(1, 3, 224, 224), random_mask(1, 196, 0.75, seed=0)
    torch.manual_seed(0)
    model = MaskedAutoencoder(preset("tiny")).eval()
    with torch.no_grad():
        wide = model(images, patch_mask)
        narrow = model.bfloat16()(images, patch_mask)
    assert narrow.pred.dtype == torch.bfloat16
    target = model.target(images)
    assert reconstruction_loss(narrow.pred, target, narrow.mask).dtype == torch.float32
    error = (narrow.pred.float() - wide.pred).square().mean().sqrt()
    assert error < 0.02 * wide.pred.square().mean().sqrt()


# --- loss


def test_loss_is_the_mean_over_removed_patches() -> None:
    pred, target = noise(2, 3, 4), noise(2, 3, 4, seed=2)
    mask = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    removed = [(0, 0), (0, 2), (1, 1)]
    expected = np.mean([((pred[i, j] - target[i, j]) ** 2).mean().item() for i, j in removed])
    assert reconstruction_loss(pred, target, mask).item() == pytest.approx(expected, rel=1e-6)


def test_visible_patches_count_by_their_weight() -> None:
    pred, target = noise(2, 3, 4), noise(2, 3, 4, seed=2)
    mask = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    visible = [(0, 1), (1, 0), (1, 2)]
    theirs = np.mean([((pred[i, j] - target[i, j]) ** 2).mean().item() for i, j in visible])
    plain = reconstruction_loss(pred, target, mask).item()
    weighted = reconstruction_loss(pred, target, mask, visible_weight=0.1).item()
    assert weighted == pytest.approx(plain + 0.1 * theirs, rel=1e-6)


@pytest.mark.parametrize("norm_pix", [False, True])
def test_target_is_pixels_or_normalised_pixels(norm_pix: bool) -> None:
    model = MaskedAutoencoder(ModelConfig(**{**vars(TINY), "norm_pix": norm_pix}))
    images = noise(1, 3, 32, 40)
    patches = patchify(images, 8)
    expected = normalize_patches(patches) if norm_pix else patches
    assert torch.equal(model.target(images), expected)


KINDS: list[LossKind] = ["mse", "log_mse"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("visible_weight", [0.0, 0.1, 2.0])
def test_losses_agree_with_the_obvious_loops(kind: LossKind, visible_weight: float) -> None:
    # Errors of very different sizes, for there the two kinds differ most.
    sizes = torch.tensor([0.01, 1.0, 30.0]).reshape(3, 1, 1)
    pred, target = noise(3, 8, 5) * sizes, noise(3, 8, 5, seed=2) * sizes
    mask = random_mask(3, 8, 0.6, seed=0).mask
    loss = reconstruction_loss(pred, target, mask, visible_weight, kind)
    expected = references.reconstruction_loss(
        pred.numpy(), target.numpy(), mask.numpy(), visible_weight, kind
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert loss.dtype == torch.float32
    narrow = reconstruction_loss(pred.bfloat16(), target, mask, visible_weight, kind)
    assert narrow.dtype == torch.float32
    assert narrow.item() == pytest.approx(expected, rel=0.02)


def test_log_mse_pulls_each_image_by_the_inverse_of_its_error() -> None:
    sizes = torch.tensor([0.05, 4.0]).reshape(2, 1, 1)
    pred = (noise(2, 6, 3) * sizes).double().requires_grad_()
    target = (noise(2, 6, 3, seed=2) * sizes).double()
    mask = random_mask(2, 6, 0.5, seed=0).mask
    reconstruction_loss(pred, target, mask, visible_weight=0.2, kind="log_mse").backward()
    difference = (pred - target).detach()
    for i in range(2):
        # 3 of 6 patches are removed, each of 3 values, in 2 images.
        error = sum(
            (difference[i, patch] ** 2).sum().item() for patch in range(6) if mask[i, patch]
        ) / (3 * 3)
        for patch in range(6):
            weight = 1.0 if mask[i, patch] else 0.2
            by_hand = weight * 2 * difference[i, patch] / (3 * 3) / (error + 0.01) / 2
            torch.testing.assert_close(pred.grad[i, patch], by_hand, rtol=1e-5, atol=0)


def test_log_mse_of_a_perfect_image_is_finite() -> None:
    target = noise(2, 4, 3)
    pred = target.clone().requires_grad_()
    loss = reconstruction_loss(pred, target, torch.ones(2, 4), kind="log_mse")
    loss.backward()
    assert loss.item() == pytest.approx(math.log(0.01))
    assert pred.grad.isfinite().all()


@pytest.mark.parametrize("grid_size", [(2, 2), (3, 5), (1, 2)])
@pytest.mark.parametrize("side", [2, 4, 8])
@pytest.mark.parametrize("inside", [True, False])
def test_the_seam_loss_agrees_with_the_obvious_loop(
    grid_size: tuple[int, int], side: int, inside: bool
) -> None:
    h, w = grid_size
    images, pixels = noise(3, 2, h * side, w * side), noise(3, 2, h * side, w * side, seed=2)
    mask = random_mask(3, h * w, 0.5, seed=[0, 1, 2]).mask
    loss = seam_loss(pixels, images, mask, side, inside=inside)
    removed = pixel_mask(mask, (h, w), side)[:, 0].bool().numpy()
    expected = references.seam_loss(pixels.numpy(), images.numpy(), removed, side, inside=inside)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    narrow = seam_loss(pixels.bfloat16(), images, mask, side, inside=inside)
    assert narrow.dtype == torch.float32
    assert narrow.item() == pytest.approx(expected, rel=0.05)


def test_the_seam_loss_asks_nothing_of_visible_pixels() -> None:
    images, mask = noise(1, 3, 48, 48), torch.zeros(1, 9)
    mask[0, 4] = 1
    pixels = noise(1, 3, 48, 48, seed=2).requires_grad_()
    seam_loss(pixels, images, mask, 16).backward()
    touched = (pixels.grad != 0).all(dim=1)[0]
    removed = torch.zeros(48, 48, dtype=torch.bool)
    removed[16:32, 16:32] = True
    assert torch.equal(touched, removed)
    # Where nothing is wrong it is as small as it gets, and has a gradient.
    right = images.clone().requires_grad_()
    loss = seam_loss(right, images, mask, 16)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(0.05))
    assert right.grad.isfinite().all()


def test_the_seam_loss_of_patches_of_one_pixel_has_no_steps_inside() -> None:
    images, pixels = noise(2, 3, 3, 3), noise(2, 3, 3, 3, seed=2)
    both, across = (
        seam_loss(pixels, images, torch.ones(2, 9), 1, inside=inside) for inside in (True, False)
    )
    assert both.item() == pytest.approx((across.item() + math.log(0.05)) / 2)


def test_the_seam_loss_of_one_patch_has_no_steps_across_borders() -> None:
    images = noise(2, 3, 8, 8)
    pixels = noise(2, 3, 8, 8, seed=2).requires_grad_()
    loss = seam_loss(pixels, images, torch.ones(2, 1), 8)
    loss.backward()
    assert loss.isfinite()
    assert (pixels.grad != 0).all()
    across = seam_loss(pixels, images, torch.ones(2, 1), 8, inside=False)
    assert across.item() == pytest.approx(math.log(0.05))


def test_a_loss_that_is_not_there_is_named() -> None:
    pred = noise(1, 16, 192)
    with pytest.raises(ConfigError, match="'l1'; choose mse or log_mse"):
        reconstruction_loss(pred, pred, torch.ones(1, 16), kind="l1")  # type: ignore[arg-type]


# --- principal components


@pytest.mark.parametrize("grid_size", [(4, 4), (3, 5)])
def test_all_principal_components_are_the_patch(grid_size: tuple[int, int]) -> None:
    model = build(replace(TINY, pca_components=192))
    images = noise(2, 3, 8 * grid_size[0], 8 * grid_size[1])
    target = model.target(images)
    assert target.shape == (2, grid_size[0] * grid_size[1], 192)
    torch.testing.assert_close(
        unpatchify(model.patches_from(target), 8, grid_size), images, rtol=0, atol=1e-5
    )


def test_some_principal_components_are_a_projection() -> None:
    model = build(replace(TINY, pca_components=10))
    images = noise(1, 3, 32, 32)
    seen = model.patches_from(model.target(images))
    again = model.target(unpatchify(seen, 8))
    torch.testing.assert_close(again, model.target(images), rtol=0, atol=1e-5)
    # What is left out is at right angles to what is kept.
    left = patchify(images, 8) - seen
    torch.testing.assert_close(left @ model.pca_basis, torch.zeros(1, 16, 10), rtol=0, atol=1e-5)
    assert left.square().mean() > 0.1


def test_without_principal_components_a_prediction_is_patches(model: MaskedAutoencoder) -> None:
    pred = noise(1, 16, 192)
    assert model.patches_from(pred) is pred


def test_the_target_is_not_rounded_where_the_network_is() -> None:
    model = build(replace(TINY, pca_components=10))
    images, patch_mask = noise(2, 3, 32, 32), random_mask(2, 16, 0.75, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        target, output = model.target(images), model(images, patch_mask)
    assert torch.equal(target, model.target(images))
    assert output.pred.dtype == torch.bfloat16
    assert output.pred.shape == (2, 16, 10)
    # A whole model in bfloat16 keeps its directions in it, too.
    narrow = model.bfloat16().target(images)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, target, rtol=0, atol=0.1)


def test_principal_components_are_part_of_the_weights(tmp_path: Path) -> None:
    model = build(replace(TINY, pca_components=10, encoder_mask_tokens=True))
    save_weights(tmp_path / "pca.safetensors", model, record={})
    again = load(tmp_path / "pca.safetensors")
    images, patch_mask = noise(2, 3, 32, 32), random_mask(2, 16, 0.75, seed=0)
    assert torch.equal(loss_of(model, images, patch_mask), loss_of(again, images, patch_mask))
    pred = noise(1, 16, 10)
    assert torch.equal(model.patches_from(pred), again.patches_from(pred))
    assert not again.pca_basis.requires_grad


def test_a_model_without_its_principal_components_cannot_learn() -> None:
    model = MaskedAutoencoder(replace(TINY, pca_components=10))
    loss = loss_of(model, noise(1, 3, 32, 32), random_mask(1, 16, 0.75, seed=0))
    assert not loss.isfinite()


@pytest.mark.parametrize(
    ("components", "mean", "basis"),
    [
        (10, (192,), (192, 9)),
        (10, (191,), (192, 10)),
        (0, (192,), (192, 0)),
    ],
)
def test_principal_components_that_do_not_fit(
    components: int, mean: tuple[int, ...], basis: tuple[int, ...]
) -> None:
    model = MaskedAutoencoder(replace(TINY, pca_components=components))
    message = f"a PCA of shapes {(mean, basis)} does not fit dim=192 and components={components}"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        model.set_pca(torch.zeros(mean), torch.zeros(basis))


# --- what does not fit


@pytest.mark.parametrize(
    ("shape", "length", "message"),
    [
        ((1, 1, 32, 32), 16,
         "images of shape (1, 1, 32, 32) given; this model takes (N, 3, H, W)"),
        ((3, 32, 32), 16, "images of shape (3, 32, 32) given; this model takes (N, 3, H, W)"),
        ((1, 3, 30, 32), 16,
         "a 30x32 image does not divide into patches of 8 pixels; resize it to multiples of 8"),
        ((1, 3, 32, 40), 16, "a mask of shape (1, 16) does not fit 1 images of 4x5 patches"),
        ((2, 3, 32, 32), 16, "a mask of shape (1, 16) does not fit 2 images of 4x4 patches"),
    ],
)  # fmt: skip
def test_images_that_do_not_fit(
    model: MaskedAutoencoder, shape: tuple[int, ...], length: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        model(noise(*shape), random_mask(1, length, 0.75, seed=0))


@pytest.mark.parametrize(
    ("images", "given"),
    [
        (np.zeros((1, 3, 32, 32), np.float32), "a ndarray of float32"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "a Tensor of torch.uint8"),
        ([0.5], "a list of unknown type"),
    ],
)
def test_images_that_are_no_tensor_of_floats(
    model: MaskedAutoencoder, images: Any, given: str
) -> None:
    message = f"images are {given}; give a torch tensor of floats, normalised by config.mean"
    with pytest.raises(ConfigError, match=re.escape(message)):
        model(images, seed=2)
