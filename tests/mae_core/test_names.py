"""Parameter names against transformers' own models, a list by hand, and their own inverse."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mae_core.config import ModelConfig
from mae_core.errors import CheckpointError
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import mask_from_noise
from mae_core.weights.names import huggingface_from_official, official_from_huggingface

OFFICIAL_KEYS = Path(__file__).with_name("official_keys_base.txt")

# Every width, depth and head count differs from every other.
TINY = ModelConfig(
    image_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3,
    decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=4,
)  # fmt: skip

# What transformers 4 saves for one block of encoder and decoder each, and the official name of
# each; "qkv 0" is the first third of `attn.qkv`.
IN_BLOCK_4 = {
    "attention.attention.query": "qkv 0",
    "attention.attention.key": "qkv 1",
    "attention.attention.value": "qkv 2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
OUTSIDE_4 = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "vit.embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "vit.layernorm.weight": "norm.weight",
    "vit.layernorm.bias": "norm.bias",
    "decoder.mask_token": "mask_token",
    "decoder.decoder_pos_embed": "decoder_pos_embed",
    "decoder.decoder_embed.weight": "decoder_embed.weight",
    "decoder.decoder_embed.bias": "decoder_embed.bias",
    "decoder.decoder_norm.weight": "decoder_norm.weight",
    "decoder.decoder_norm.bias": "decoder_norm.bias",
    "decoder.decoder_pred.weight": "decoder_pred.weight",
    "decoder.decoder_pred.bias": "decoder_pred.bias",
}
# How transformers 5 calls what a block of transformers 4 has.
FOUR_TO_FIVE = (
    ("encoder.layer.", "layers."),
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)


def noisy(model: torch.nn.Module) -> Any:
    """A model with seeded noise in every parameter, positions and tokens included."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def peer_of(config: ModelConfig, *, bare: bool = False) -> Any:
    # Imported late: transformers needs the torchvision that importing mae_core has mended.
    from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

    peer_config = ViTMAEConfig(
        hidden_size=config.embed_dim, num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads, intermediate_size=4 * config.embed_dim,
        decoder_hidden_size=config.decoder_embed_dim,
        decoder_num_hidden_layers=config.decoder_depth,
        decoder_num_attention_heads=config.decoder_num_heads,
        decoder_intermediate_size=4 * config.decoder_embed_dim,
        image_size=config.image_size, patch_size=config.patch_size, mask_ratio=0.5,
        num_channels=config.in_chans, layer_norm_eps=config.layer_norm_eps,
    )  # fmt: skip
    return ViTMAEModel(peer_config) if bare else ViTMAEForPreTraining(peer_config)


def official_state() -> dict[str, Tensor]:
    return dict(noisy(MaskedAutoencoder(TINY)).state_dict())


def encoder_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not k.startswith("decoder_") and k != "mask_token"}


def five(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in state.items():
        for old, new in FOUR_TO_FIVE:
            key = key.replace(old, new)
        renamed[key] = value
    return renamed


def expected_4(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The official state by the names of transformers 4, spelled out."""
    expected = {theirs: state[ours] for theirs, ours in OUTSIDE_4.items()}
    for theirs, ours, depth in (
        ("vit.encoder.layer", "blocks", TINY.depth),
        ("decoder.decoder_layers", "decoder_blocks", TINY.decoder_depth),
    ):
        for i in range(depth):
            for module, place in IN_BLOCK_4.items():
                for kind in ("weight", "bias"):
                    key = f"{theirs}.{i}.{module}.{kind}"
                    if place.startswith("qkv"):
                        whole = state[f"{ours}.{i}.attn.qkv.{kind}"]
                        width, third = len(whole) // 3, int(place[-1])
                        expected[key] = whole[third * width : (third + 1) * width]
                    else:
                        expected[key] = state[f"{ours}.{i}.{place}.{kind}"]
    return expected


def assert_same(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[key], expected[key]) for key in expected)


# --- against what transformers is and was


def test_the_names_of_transformers_4_are_these() -> None:
    state = official_state()
    assert_same(huggingface_from_official(state), expected_4(state))


def test_the_names_of_transformers_5_are_its_own() -> None:
    theirs = dict(noisy(peer_of(TINY)).state_dict())
    assert theirs.keys() == five(huggingface_from_official(official_state())).keys()
    bare = dict(noisy(peer_of(TINY, bare=True)).state_dict())
    assert bare.keys() == five(huggingface_from_official(encoder_of(official_state()))).keys()


def test_a_model_of_transformers_is_ours_under_official_names() -> None:
    peer, model = noisy(peer_of(TINY)), MaskedAutoencoder(TINY).eval()
    model.load_state_dict(official_from_huggingface(peer.state_dict()), strict=True)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 32, 32, generator=generator)
    drawn = torch.rand(2, 16, generator=generator)
    with torch.no_grad():
        ours, theirs = model(images, mask_from_noise(drawn, 0.5)), peer(images, noise=drawn)
    torch.testing.assert_close(ours.pred, theirs.logits, rtol=0, atol=1e-5)


def test_the_encoder_of_transformers_is_ours_under_official_names() -> None:
    bare = noisy(peer_of(TINY, bare=True))
    state = official_from_huggingface(bare.state_dict())
    assert state.keys() == encoder_of(official_state()).keys()
    prefixed = {f"vit.{key}": value for key, value in bare.state_dict().items()}
    assert_same(official_from_huggingface(prefixed), state)


def test_the_base_model_of_transformers_has_the_official_names_and_shapes() -> None:
    with torch.device("meta"):
        theirs = peer_of(ModelConfig()).state_dict()
    official = official_from_huggingface(theirs)
    lines = OFFICIAL_KEYS.read_text(encoding="utf-8").splitlines()
    listed = dict(line.split() for line in lines if not line.startswith("#"))
    assert {key: "x".join(map(str, value.shape)) for key, value in official.items()} == listed


# --- there and back


@given(
    depth=st.integers(1, 12), decoder_depth=st.integers(0, 3), version=st.sampled_from([4, 5]),
    bare=st.booleans(),
)  # fmt: skip
def test_there_and_back_is_bitwise(
    depth: int, decoder_depth: int, version: int, bare: bool
) -> None:
    template = encoder_of(official_state()) if bare else official_state()
    state = {}
    for key, value in template.items():
        stack, dot, rest = key.partition("blocks.0.")
        if dot:
            count = decoder_depth if stack else depth
            state.update({f"{stack}blocks.{i}.{rest}": value + i for i in range(count)})
        elif "blocks." not in key:
            state[key] = value
    theirs = huggingface_from_official(state)
    assert_same(official_from_huggingface(five(theirs) if version == 5 else theirs), state)


def test_number_formats_and_values_that_are_not_numbers_stay() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        state = {key: value.to(dtype) for key, value in official_state().items()}
        state["cls_token"][0, 0, 0] = float("inf")
        back = official_from_huggingface(huggingface_from_official(state))
        assert_same(back, state)
        assert {value.dtype for value in back.values()} == {dtype}


def test_without_biases_in_attention_there_are_none_after() -> None:
    state = {k: v for k, v in official_state().items() if not k.endswith("qkv.bias")}
    theirs = huggingface_from_official(state)
    assert not [key for key in theirs if key.endswith("query.bias")]
    assert_same(official_from_huggingface(theirs), state)


def test_no_two_names_share_memory_and_what_is_given_is_left_alone() -> None:
    state = official_state()
    theirs = huggingface_from_official(state)
    # safetensors would refuse them.
    storages = [value.untyped_storage().data_ptr() for value in theirs.values()]
    assert len(set(storages)) == len(storages)
    assert state.keys() == official_state().keys()
    keys = list(theirs)
    official_from_huggingface(theirs)
    assert list(theirs) == keys


# --- what is refused


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["head.weight"], "'head.weight': without a place in transformers' ViTMAE"),
        (["encoder_mask_token"], "'encoder_mask_token': without"),
        (["pca_mean", "pca_basis"], "'pca_mean', 'pca_basis': without"),
        (["norm.gamma"], "'norm.gamma': without"),
        (["blocks.0.attn.q_norm.weight"], "'blocks.0.attn.q_norm.weight': without"),
        (["blocks.x.norm1.weight"], "'blocks.x.norm1.weight': without"),
        (["cls_token.weight.bias"], "'cls_token.weight.bias': without"),
        (["a", "b", "c", "d", "e"], "'a', 'b', 'c' and 2 more: without"),
    ],
)
def test_official_names_without_a_place_are_refused(extra: list[str], message: str) -> None:
    state = official_state() | dict.fromkeys(extra, torch.zeros(3))
    with pytest.raises(CheckpointError, match=message):
        huggingface_from_official(state)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["classifier.weight"], "'classifier.weight': not parameters of transformers' ViTMAE"),
        (["vit.pooler.dense.weight"], "'vit.pooler.dense.weight': not parameters"),
        (["cls_token"], "'cls_token': not parameters"),
        (["vit.decoder.mask_token"], "'vit.decoder.mask_token': not parameters"),
        (["vit.encoder.layer.0.attention.query.weight"], "layer.0.attention.query.weight': not"),
        (["embeddings.cls_token"], "'embeddings.cls_token': there a second time"),
        (["vit.layers.1.mlp.fc1.bias"], "'vit.layers.1.mlp.fc1.bias': there a second time"),
        (["layers.2.attention.v_proj.bias"], "'layers.2.attention.v_proj.bias': there a second"),
    ],
)
def test_names_that_transformers_has_not_are_refused(extra: list[str], message: str) -> None:
    theirs = huggingface_from_official(official_state())
    with pytest.raises(CheckpointError, match=message):
        official_from_huggingface(theirs | dict.fromkeys(extra, torch.zeros(3)))


@pytest.mark.parametrize("left_out", [["key"], ["query", "value"]])
def test_a_part_of_query_key_and_value_is_refused(left_out: list[str]) -> None:
    theirs = huggingface_from_official(official_state())
    for name in left_out:
        del theirs[f"vit.encoder.layer.1.attention.attention.{name}.weight"]
    with pytest.raises(CheckpointError, match="value of 'blocks.1.attn.qkv.weight' are not all"):
        official_from_huggingface(theirs)


def test_shapes_that_do_not_join_or_divide_are_refused() -> None:
    theirs = huggingface_from_official(official_state())
    query = "vit.encoder.layer.0.attention.attention.query.bias"
    for shape in ((23,), (24, 1), ()):
        with pytest.raises(CheckpointError, match="query, key and value of 'blocks.0.attn.qkv"):
            official_from_huggingface(theirs | {query: torch.zeros(shape)})
    for shape in ((71,), ()):
        with pytest.raises(CheckpointError, match="does not divide into query, key and value"):
            huggingface_from_official({"blocks.0.attn.qkv.bias": torch.zeros(shape)})


def test_a_long_name_is_cut_in_the_sentence() -> None:
    for convert in (official_from_huggingface, huggingface_from_official):
        with pytest.raises(CheckpointError) as caught:
            convert({"\x1b[31m" + "x" * 10_000: torch.zeros(1)})
        assert len(str(caught.value)) < 200
        assert "\x1b" not in str(caught.value)
