import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mae_core.config import ModelConfig
from mae_core.errors import MaskError
from mae_core.inside.stages import Trace, trace
from mae_core.model.mae import MaskedAutoencoder, forward_flops
from mae_core.reconstruct import ReconstructionRequest, Reconstructor
from tests.pictures import draw_picture

REQUEST = ReconstructionRequest(draw_picture(0), fit="whole", seed=3)  # 6 x 8 patches, 12 visible

# What a variant changes in the small model's config.
VARIANTS = {
    "plain": {},
    "mask_tokens": {"encoder_mask_tokens": True},
    "pca": {"pca_components": 20},
}
MakeReconstructor = Callable[[str], Reconstructor]


@pytest.fixture
def make(small_config: ModelConfig) -> MakeReconstructor:
    def made(variant: str) -> Reconstructor:
        torch.manual_seed(0)
        model = MaskedAutoencoder(replace(small_config, **VARIANTS[variant]))
        return Reconstructor(model, device="cpu", precision="float32")

    return made


def names_of(found: Trace) -> list[str]:
    return [
        stage.name if stage.block is None else f"{stage.name} {stage.block}"
        for stage in found.stages
    ]


def test_stages_are_in_order_with_the_shapes_of_the_tensors(make: MakeReconstructor) -> None:
    found = trace(make("plain"), REQUEST)
    shapes = [stage.shape for stage in found.stages]
    assert list(zip(names_of(found), shapes, strict=True)) == [
        ("patches", (1, 48, 192)),
        ("embed", (1, 48, 32)),
        ("keep", (1, 13, 32)),
        ("encoder_block 0", (1, 13, 32)),
        ("encoder_block 1", (1, 13, 32)),
        ("norm", (1, 13, 32)),
        ("decoder_embed", (1, 13, 16)),
        ("restore", (1, 49, 16)),
        ("decoder_block 0", (1, 49, 16)),
        ("predict", (1, 48, 192)),
    ]  # fmt: skip
    assert (found.encoder_tokens, found.encoder_tokens_all) == (13, 49)
    assert found.grid_size == (6, 8)


def test_of_other_models_shapes_are_as_they_are(make: MakeReconstructor) -> None:
    shapes = {stage.name: stage.shape for stage in trace(make("mask_tokens"), REQUEST).stages}
    assert shapes["keep"] == shapes["encoder_block"] == (1, 49, 32)
    assert shapes["restore"] == (1, 49, 16)
    shapes = {stage.name: stage.shape for stage in trace(make("pca"), REQUEST).stages}
    assert (shapes["patches"], shapes["predict"]) == ((1, 48, 192), (1, 48, 20))


@pytest.mark.parametrize("variant", VARIANTS)
def test_operations_of_each_stage_are_what_torch_counts(
    make: MakeReconstructor, variant: str
) -> None:
    # The counter knows attention only as the products it is made of.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        found = trace(make(variant), REQUEST)
    counts = {
        name.removeprefix("MaskedAutoencoder."): sum(counted.values())
        for name, counted in counter.get_flop_counts().items()
    }
    modules = {
        "embed": "patch_embed", "encoder_block 0": "blocks.0", "encoder_block 1": "blocks.1",
        "decoder_embed": "decoder_embed", "decoder_block 0": "decoder_blocks.0",
        "predict": "decoder_pred",
    }  # fmt: skip
    for name, stage in zip(names_of(found), found.stages, strict=True):
        assert stage.flops == (counts[modules[name]] if name in modules else 0), name
    assert found.flops == counter.get_total_flops()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mask_ratio", [0.0, 0.5, 0.75, 0.9, 1.0])
def test_totals_are_the_models_own(
    make: MakeReconstructor, variant: str, mask_ratio: float
) -> None:
    reconstructor = make(variant)
    found = trace(reconstructor, replace(REQUEST, mask_ratio=mask_ratio))
    config = reconstructor.config
    assert found.flops == forward_flops(config, (6, 8), mask_ratio)
    assert found.flops_all == forward_flops(config, (6, 8), 0.0)
    encoder = [stage for stage in found.stages if stage.name in ("embed", "encoder_block")]
    assert found.encoder_flops == sum(stage.flops for stage in encoder)
    same = variant == "mask_tokens" or mask_ratio == 0
    assert (found.flops == found.flops_all) == same
    assert (found.encoder_flops == found.encoder_flops_all) == same
    assert (found.encoder_tokens == found.encoder_tokens_all) == same


def test_operations_of_a_mask_of_ones_own_are_those_of_its_share(make: MakeReconstructor) -> None:
    removed = np.random.default_rng(0).random((6, 8)) < 0.4
    found = trace(make("plain"), replace(REQUEST, mask=removed))
    assert found.encoder_tokens == 1 + (~removed).sum()
    assert found.mask_ratio == pytest.approx(removed.mean())
    assert found.flops == forward_flops(make("plain").config, (6, 8), found.mask_ratio)
    assert sorted(found.ids_keep) == np.flatnonzero(~removed).tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_all_and_each_counted_once(make: MakeReconstructor, variant: str) -> None:
    reconstructor = make(variant)
    found = trace(reconstructor, REQUEST)
    model = reconstructor.model
    encoder = [model.patch_embed, model.blocks, model.norm]
    counted = sum(p.numel() for part in encoder for p in part.parameters())
    counted += model.cls_token.numel() + model.pos_embed.numel()
    if variant == "mask_tokens":
        counted += model.encoder_mask_token.numel()
    assert found.encoder_parameters == counted
    total = sum(parameter.numel() for parameter in model.parameters())
    assert found.decoder_parameters == total - counted


@torch.no_grad()
@pytest.mark.parametrize("variant", ["plain", "mask_tokens"])
def test_ids_and_changes_are_those_of_the_pass(make: MakeReconstructor, variant: str) -> None:
    reconstructor = make(variant)
    found = trace(reconstructor, REQUEST)
    _, images, mask = reconstructor.prepare(REQUEST)
    assert found.ids_keep == mask.ids_keep[0].tolist()
    assert found.ids_restore == mask.ids_restore[0].tolist()
    order = sorted(range(48), key=lambda patch: found.ids_restore[patch])
    assert order[:12] == found.ids_keep
    assert found.encoder_ids == (order if variant == "mask_tokens" else order[:12])

    model, inputs = reconstructor.model, list[Tensor]()
    handle = model.blocks.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    latent = model.encode(images, mask)
    handle.remove()
    tokens = inputs[0]
    assert len(found.changes) == 2
    for block, changes in zip(model.blocks, found.changes, strict=True):
        result = block(tokens)
        expected = (result - tokens)[0, 1:].square().sum(dim=1).sqrt().tolist()
        assert changes == pytest.approx(expected, rel=1e-5)
        assert len(changes) == len(found.encoder_ids)
        tokens = result
    torch.testing.assert_close(model.norm(tokens), latent)


def test_the_model_keeps_no_hooks(make: MakeReconstructor) -> None:
    reconstructor = make("plain")
    trace(reconstructor, REQUEST)
    modules = reconstructor.model.modules()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def test_it_is_plain_data_for_json(make: MakeReconstructor) -> None:
    found = trace(make("plain"), REQUEST)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["stages"][3] == {
        "name": "encoder_block", "block": 0, "shape": [1, 13, 32], "flops": found.stages[3].flops,
    }  # fmt: skip
    assert data["changes"] == found.changes
    assert data["flops"] == found.flops


def test_half_precision_is_traced_too(small_config: ModelConfig) -> None:
    model = MaskedAutoencoder(small_config)
    found = trace(Reconstructor(model, device="cpu", precision="bfloat16"), REQUEST)
    exact = trace(Reconstructor(model, device="cpu", precision="float32"), REQUEST)
    assert found.stages == exact.stages
    np.testing.assert_allclose(found.changes, exact.changes, rtol=0.1)


def test_what_a_reconstruction_refuses_is_refused(make: MakeReconstructor) -> None:
    with pytest.raises(MaskError, match="mask_ratio is 7"):
        trace(make("plain"), replace(REQUEST, mask_ratio=7))
