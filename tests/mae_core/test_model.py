"""The model against plain matrices, against transformers' ViTMAE, and by its properties."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mae_core.config import ModelConfig, preset
from mae_core.errors import PatchError
from mae_core.masking import PatchMask, draw_mask, mask_from_noise, random_mask
from mae_core.models.mae import MaskedAutoencoder, reconstruction_loss
from mae_core.models.pos_embed import sincos_pos_embed
from mae_core.patches import normalize_patches, patchify
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
    return model


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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
    assert torch.equal(model.pos_embed, sincos_pos_embed(24, GRID, cls_token=True))
    assert torch.equal(model.decoder_pos_embed, sincos_pos_embed(16, GRID, cls_token=True))
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
    assert output.loss.item() == pytest.approx(np.mean(losses), rel=1e-5)


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
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-5, atol=0)
    assert torch.equal(mask_from_noise(drawn, mask_ratio).mask, theirs.mask)


# --- properties


@given(
    h=st.integers(1, 5), w=st.integers(2, 5), percent=st.integers(1, 99), seed=st.integers(0, 99),
    strategy=st.sampled_from(["random", "block", "grid"]),
)  # fmt: skip
def test_removed_pixels_never_change_the_latent(
    h: int, w: int, percent: int, seed: int, strategy: str
) -> None:
    model = build()
    images = noise(2, 3, 8 * h, 8 * w, seed=seed)
    patch_mask = draw_mask(strategy, 2, (h, w), percent / 100, seed=seed)
    hidden = pixels_of(patch_mask, (h, w))
    other = torch.where(hidden, noise(*images.shape, seed=seed + 1) * 100, images)
    with torch.no_grad():
        latent = model.encode(images, patch_mask)
        assert torch.equal(latent, model.encode(other, patch_mask))
        assert latent.shape == (2, 1 + patch_mask.num_visible, 24)


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
    torch.testing.assert_close(a.loss, b.loss)


def test_an_image_in_a_batch_is_as_alone(model: MaskedAutoencoder) -> None:
    images = noise(3, 3, 32, 32)
    together = model(images, random_mask(3, 16, 0.75, seed=[5, 6, 7]))
    alone = model(images[1:2], random_mask(1, 16, 0.75, seed=6))
    torch.testing.assert_close(together.pred[1:2], alone.pred, rtol=0, atol=1e-5)
    torch.testing.assert_close(together.latent[1:2], alone.latent, rtol=0, atol=1e-5)


def test_forward_draws_nothing(model: MaskedAutoencoder) -> None:
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
    output = model(noise(2, 5, 32, 32), random_mask(2, 16, 0.75, seed=0))
    assert output.pred.shape == (2, 16, 8 * 8 * 5)
    assert output.loss.isfinite()


def test_every_parameter_but_the_positions_learns() -> None:
    model = build()
    model(noise(2, 3, 32, 32), random_mask(2, 16, 0.75, seed=0)).loss.backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert idle == {"pos_embed", "decoder_pos_embed"}


def test_bfloat16_stays_near_float32() -> None:
    images, patch_mask = noise(1, 3, 224, 224), random_mask(1, 196, 0.75, seed=0)
    torch.manual_seed(0)
    model = MaskedAutoencoder(preset("tiny")).eval()
    with torch.no_grad():
        wide = model(images, patch_mask)
        narrow = model.bfloat16()(images, patch_mask)
    assert narrow.pred.dtype == torch.bfloat16
    assert narrow.loss.dtype == torch.float32
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


def test_forward_passes_the_visible_weight_on(model: MaskedAutoencoder) -> None:
    images, patch_mask = noise(2, 3, 32, 32), random_mask(2, 16, 0.75, seed=0)
    output = model(images, patch_mask, visible_weight=0.5)
    expected = reconstruction_loss(output.pred, model.target(images), patch_mask.mask, 0.5)
    assert torch.equal(output.loss, expected)
    assert output.loss > model(images, patch_mask).loss


@pytest.mark.parametrize("norm_pix", [False, True])
def test_target_is_pixels_or_normalised_pixels(norm_pix: bool) -> None:
    model = MaskedAutoencoder(ModelConfig(**{**vars(TINY), "norm_pix": norm_pix}))
    images = noise(1, 3, 32, 40)
    patches = patchify(images, 8)
    expected = normalize_patches(patches) if norm_pix else patches
    assert torch.equal(model.target(images), expected)


# --- what does not fit


@pytest.mark.parametrize(
    ("shape", "length", "message"),
    [
        ((1, 1, 32, 32), 16,
         "images of shape (1, 1, 32, 32) given; this model takes (N, 3, H, W)"),
        ((3, 32, 32), 16, "images of shape (3, 32, 32) given; this model takes (N, 3, H, W)"),
        ((1, 3, 30, 32), 16,
         "a 30x32 picture does not divide into patches of 8 pixels; resize it to multiples of 8"),
        ((1, 3, 32, 40), 16, "a mask of shape (1, 16) does not fit 1 images of 4x5 patches"),
        ((2, 3, 32, 32), 16, "a mask of shape (1, 16) does not fit 2 images of 4x4 patches"),
    ],
)  # fmt: skip
def test_images_that_do_not_fit(
    model: MaskedAutoencoder, shape: tuple[int, ...], length: int, message: str
) -> None:
    with pytest.raises(PatchError, match=f"^{re.escape(message)}$"):
        model(noise(*shape), random_mask(1, length, 0.75, seed=0))
