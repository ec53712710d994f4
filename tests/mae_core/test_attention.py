from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mae_core.errors import ConfigError, MaskError
from mae_core.inside.attention import Attention, attend, attention, probabilities
from mae_core.inside.hooks import twin
from mae_core.model.blocks import Attention as SelfAttention
from mae_core.model.mae import MaskedAutoencoder
from mae_core.reconstruct import ReconstructionRequest, Reconstructor
from tests.pictures import draw_picture

REQUEST = ReconstructionRequest(draw_picture(0), fit="whole", seed=3)  # 6 x 8 patches, 12 visible


@pytest.fixture
def reconstructor(small_model: MaskedAutoencoder) -> Reconstructor:
    return Reconstructor(small_model, "small", device="cpu", precision="float32")


def mask_tokens_model(model: MaskedAutoencoder) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(replace(model.config, encoder_mask_tokens=True)).eval()


@pytest.mark.parametrize("normed", [False, True])
def test_probabilities_times_values_are_the_attentions_own_output(normed: bool) -> None:
    torch.manual_seed(0)
    module = SelfAttention(24, num_heads=3, qkv_bias=True, qk_norm=normed, norm_layer=nn.LayerNorm)
    tokens = torch.randn(2, 7, 24)
    found = probabilities(module, tokens)
    assert found.shape == (2, 3, 7, 7)
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(2, 3, 7))
    values = module.qkv(tokens)[..., 48:].reshape(2, 7, 3, 8).transpose(1, 2)
    mixed = (found @ values).transpose(1, 2).reshape(2, 7, 24)
    torch.testing.assert_close(module.proj(mixed), module(tokens), rtol=0, atol=1e-5)
    torch.testing.assert_close(probabilities(module, tokens, slice(4, 5)), found[:, :, 4:5])


def slow_rows(model: MaskedAutoencoder, blocks: nn.Sequential, tokens: Tensor, row: int) -> Tensor:
    """Each block's probabilities of one token, one head and one token at a time."""
    layers = []
    for block in blocks:
        q, k, _ = block.attn.qkv(block.norm1(tokens))[0].chunk(3, dim=-1)
        size = q.shape[1] // block.attn.num_heads
        heads = []
        for start in range(0, q.shape[1], size):
            scores = [float(q[row, start : start + size] @ key[start : start + size]) for key in k]
            exponentials = np.exp(np.array(scores) / size**0.5)
            heads.append(torch.from_numpy(exponentials / exponentials.sum()))
        layers.append(torch.stack(heads))
        tokens = block(tokens)
    return torch.stack(layers).float()


@torch.no_grad()
@pytest.mark.parametrize("mask_tokens", [False, True])
@pytest.mark.parametrize("visible", [False, True])
def test_rows_are_those_of_the_forward_pass(
    small_model: MaskedAutoencoder, mask_tokens: bool, visible: bool
) -> None:
    model = mask_tokens_model(small_model) if mask_tokens else small_model
    reconstructor = Reconstructor(model, device="cpu", precision="float32")
    _, images, mask = reconstructor.prepare(REQUEST)
    patch = int(mask.ids_keep[0, 4]) if visible else int(torch.nonzero(mask.mask[0])[3])
    found = attend(reconstructor, REQUEST, patch)
    assert (found.patch, found.grid_size) == (patch, (6, 8))

    inputs: list[Tensor] = []
    watched = twin(model)
    for blocks in (watched.blocks, watched.decoder_blocks):
        blocks.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    watched(images, mask)
    decoder = slow_rows(model, model.decoder_blocks, inputs[1], 1 + patch)
    assert found.decoder.shape == decoder.shape == (1, 2, 49)
    torch.testing.assert_close(found.decoder, decoder)
    if not visible and not mask_tokens:
        assert found.encoder is None
        return
    assert found.encoder is not None
    encoder = slow_rows(model, model.blocks, inputs[0], 1 + found.visible.index(patch))
    assert found.encoder.shape == encoder.shape == (2, 2, 49 if mask_tokens else 13)
    torch.testing.assert_close(found.encoder, encoder)


@pytest.mark.parametrize("mask_tokens", [False, True])
def test_columns_are_the_encoders_tokens_in_order(
    small_model: MaskedAutoencoder, mask_tokens: bool
) -> None:
    model = mask_tokens_model(small_model) if mask_tokens else small_model
    reconstructor = Reconstructor(model, device="cpu", precision="float32")
    mask = reconstructor.prepare(REQUEST).patch_mask
    visible = attend(reconstructor, REQUEST, 0).visible
    assert visible[:12] == mask.ids_keep[0].tolist()
    if mask_tokens:
        assert sorted(visible) == list(range(48))
        restored = torch.tensor(visible)[mask.ids_restore[0]]
        assert restored.tolist() == list(range(48))
    else:
        assert len(visible) == 12


def test_the_model_stays_as_it_is(small_model: MaskedAutoencoder) -> None:
    before = {name: tensor.clone() for name, tensor in small_model.state_dict().items()}
    copied = twin(small_model)
    assert all(
        mine is theirs
        for mine, theirs in zip(copied.parameters(), small_model.parameters(), strict=True)
    )
    reconstructor = Reconstructor(small_model, device="cpu", precision="float32")
    assert reconstructor.model is small_model
    attend(reconstructor, REQUEST, 5)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small_model.modules())
    for name, tensor in small_model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_rows_sum_to_one_in_half_precision_too(small_model: MaskedAutoencoder) -> None:
    reconstructor = Reconstructor(small_model, device="cpu", precision="bfloat16")
    patch = int(reconstructor.prepare(REQUEST).patch_mask.ids_keep[0, 0])
    found = attend(reconstructor, REQUEST, patch)
    assert isinstance(found, Attention)
    assert found.encoder is not None
    for rows in (found.encoder, found.decoder):
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.sum(dim=-1), torch.ones(rows.shape[:2]))


@pytest.mark.parametrize("patch", [-1, 48, 1.5, "first"])
def test_a_patch_that_is_not_there_is_named(reconstructor: Reconstructor, patch: int) -> None:
    with pytest.raises(ConfigError, match=f"^patch is {patch!r}; this image has 48: give 0 to 47$"):
        attend(reconstructor, REQUEST, patch)


def test_what_a_reconstruction_refuses_is_refused(reconstructor: Reconstructor) -> None:
    with pytest.raises(MaskError, match="mask_ratio is 7"):
        attend(reconstructor, replace(REQUEST, mask_ratio=7), 0)


def test_a_model_can_be_asked_itself(small_model: MaskedAutoencoder) -> None:
    reconstructor = Reconstructor(small_model, device="cpu", precision="float32")
    _, images, mask = reconstructor.prepare(REQUEST)
    found = attention(small_model, images, mask, 7)
    torch.testing.assert_close(found.decoder, attend(reconstructor, REQUEST, 7).decoder)
