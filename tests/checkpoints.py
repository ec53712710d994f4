"""Writers of every published format, written apart from the readers, with random weights.

Each takes a `ModelConfig`, small or at full size, and puts seeded noise into every parameter,
position tables and tokens included, so that nothing that is mixed up stays unnoticed.
`write_all` writes one of each into a folder.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mae_core.config import ModelConfig, to_dict
from mae_core.model.mae import MaskedAutoencoder
from mae_core.weights.files import save_checkpoint
from mae_core.weights.formats import save_weights

State = dict[str, Tensor]

# Small, and of a width and a decoder's width whose heads everybody knows.
SMALL = ModelConfig(
    image_size=32, patch_size=8, embed_dim=192, depth=2, num_heads=3,
    decoder_embed_dim=512, decoder_depth=1, decoder_num_heads=16,
)  # fmt: skip

NUM_CLASSES = 10

# Inside a block: official name -> transformers 4 and 5. Query, key and value are apart there.
_BLOCK = {
    "norm1": ("layernorm_before", "layernorm_before"),
    "norm2": ("layernorm_after", "layernorm_after"),
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
    "mlp.fc2": ("output.dense", "mlp.fc2"),
}
_QKV = {
    4: tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
    5: tuple(f"attention.{name}_proj" for name in "qkv"),
}


def random_state(config: ModelConfig, seed: int = 0) -> State:
    """Noise for every parameter by its official name, of a size that models bear."""
    with torch.device("meta"):
        shapes = {key: t.shape for key, t in MaskedAutoencoder(config).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=generator) * 0.02
        is_scale = key.endswith("weight") and "norm" in key
        state[key] = noise + 1 if is_scale else noise
    return state


def encoder_of(state: Mapping[str, Tensor]) -> State:
    """The part of a state that encoder-only files have."""
    return {k: t for k, t in state.items() if not k.startswith(("decoder_", "mask_token"))}


def classifier_of(state: Mapping[str, Tensor], seed: int = 1) -> State:
    """A fine-tuned classifier's state around the same encoder."""
    classifier = encoder_of(state)
    classifier["fc_norm.weight"] = classifier.pop("norm.weight")
    classifier["fc_norm.bias"] = classifier.pop("norm.bias")
    generator = torch.Generator().manual_seed(seed)
    width = state["cls_token"].shape[-1]
    classifier["head.weight"] = torch.randn(NUM_CLASSES, width, generator=generator)
    classifier["head.bias"] = torch.randn(NUM_CLASSES, generator=generator)
    return classifier


def huggingface_state(state: Mapping[str, Tensor], version: int = 4) -> State:
    """A state by the names of transformers 4 or 5."""
    return {name: part for key, t in state.items() for name, part in _their(key, t, version)}


def _their(key: str, tensor: Tensor, version: int) -> list[tuple[str, Tensor]]:
    column = version - 4
    if key.startswith(("blocks.", "decoder_blocks.")):
        blocks, number, inner = key.split(".", 2)
        module, kind = inner.rsplit(".", 1)
        encoder = f"vit.{'encoder.layer' if version == 4 else 'layers'}.{number}."
        place = f"decoder.decoder_layers.{number}." if blocks == "decoder_blocks" else encoder
        if module == "attn.qkv":
            thirds = zip(_QKV[version], tensor.chunk(3), strict=True)
            return [(f"{place}{name}.{kind}", part.clone()) for name, part in thirds]
        return [(f"{place}{_BLOCK[module][column]}.{kind}", tensor)]
    if key.startswith("decoder_") or key == "mask_token":
        return [(f"decoder.{key}", tensor)]
    outside = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "vit.embeddings.patch_embeddings.projection.bias",
        "norm.weight": "vit.layernorm.weight",
        "norm.bias": "vit.layernorm.bias",
    }
    return [(outside[key], tensor)]


def huggingface_config(config: ModelConfig) -> dict[str, Any]:
    """What transformers writes as config.json for such a model."""
    return {
        "architectures": ["ViTMAEForPreTraining"], "model_type": "vit_mae",
        "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0,
        "hidden_act": "gelu", "initializer_range": 0.02, "qkv_bias": True, "mask_ratio": 0.75,
        "hidden_size": config.embed_dim, "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": int(config.embed_dim * config.mlp_ratio),
        "decoder_hidden_size": config.decoder_embed_dim,
        "decoder_num_hidden_layers": config.decoder_depth,
        "decoder_num_attention_heads": config.decoder_num_heads,
        "decoder_intermediate_size": int(config.decoder_embed_dim * config.mlp_ratio),
        "image_size": config.image_size, "patch_size": config.patch_size,
        "num_channels": config.in_chans, "layer_norm_eps": 1e-12,
        "norm_pix_loss": config.norm_pix, "torch_dtype": "float32",
    }  # fmt: skip


def timm_config(config: ModelConfig) -> dict[str, Any]:
    """What timm writes as config.json for the encoder."""
    sides = [config.in_chans, config.image_size, config.image_size]
    return {
        "architecture": "vit_base_patch16_224", "num_classes": 0,
        "num_features": config.embed_dim, "global_pool": "token",
        "pretrained_cfg": {
            "tag": "mae", "custom_load": False, "input_size": sides, "num_classes": 0,
            "mean": list(config.mean), "std": list(config.std), "first_conv": "patch_embed.proj",
        },
    }  # fmt: skip


def training_state(state: Mapping[str, Tensor], *, norm_pix: bool = True) -> dict[str, Any]:
    """What the official training script saves after an epoch."""
    options = argparse.Namespace(
        batch_size=64, epochs=400, model="mae_vit_base_patch16", input_size=224, mask_ratio=0.75,
        norm_pix_loss=norm_pix, lr=None, blr=1e-3, device="cuda", distributed=False,
    )  # fmt: skip
    moments = {i: {"step": torch.tensor(7.0), "exp_avg": t * 0} for i, t in
               enumerate(state.values())}  # fmt: skip
    return {
        "model": dict(state), "epoch": 12, "scaler": {"scale": 65536.0, "_growth_tracker": 0},
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.95)}]},
        "args": options,
    }  # fmt: skip


def write_json(path: Path, values: object) -> None:
    """A JSON file, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def write_torch(path: Path, content: object, *, legacy: bool = False) -> Path:
    """A torch file, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def write_huggingface(
    folder: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    *,
    version: int = 4,
    bin_file: bool = False,
    shards: int = 1,
    bare: bool = False,
) -> Path:
    """A folder as `save_pretrained` leaves it; `bare` is the ViTMAEModel alone."""
    theirs = huggingface_state(encoder_of(state) if bare else state, version)
    if bare:
        theirs = {key.removeprefix("vit."): tensor for key, tensor in theirs.items()}
    write_json(folder / "config.json", huggingface_config(config))
    preprocessor = {"image_mean": list(config.mean), "image_std": list(config.std)}
    write_json(folder / "preprocessor_config.json", {"do_normalize": True, **preprocessor})
    stem, suffix = ("pytorch_model", "bin") if bin_file else ("model", "safetensors")
    names = [f"{stem}-{i + 1:05d}-of-{shards:05d}.{suffix}" for i in range(shards)]
    if shards == 1:
        names = [f"{stem}.{suffix}"]
    keys = sorted(theirs)
    for i, name in enumerate(names):
        part = {key: theirs[key] for key in keys[i::shards]}
        if bin_file:
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name, metadata={"format": "pt"})
    if shards > 1:
        places = {key: names[i % shards] for i, key in enumerate(keys)}
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        write_json(folder / f"{stem}.{suffix}.index.json", index)
    return folder


def write_safetensors(path: Path, state: Mapping[str, Tensor]) -> Path:
    """A safetensors file that says nothing of itself, as timm's are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(state), path, metadata={"format": "pt"})
    return path


def write_timm(folder: Path, config: ModelConfig, state: Mapping[str, Tensor]) -> Path:
    """A folder as timm pushes an encoder to a hub."""
    write_json(folder / "config.json", timm_config(config))
    write_safetensors(folder / "model.safetensors", encoder_of(state))
    return folder


def write_own(path: Path, config: ModelConfig, state: Mapping[str, Tensor]) -> Path:
    """Our own weights."""
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
    model.load_state_dict(state, assign=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, model, record={"recipe": "noise"})
    return path


def write_run(folder: Path, config: ModelConfig, state: Mapping[str, Tensor]) -> Path:
    """The folder of a run of ours that is still going on."""
    save_checkpoint(folder / "checkpoint.pt", {
        "config": {"model": to_dict(config), "steps": 1000}, "recipe": "noise",
        "model": dict(state), "ema": None, "step": 400, "seconds": 1800.0,
    })  # fmt: skip
    write_json(folder / "config.json", {"steps": 1000})
    return folder


def wrapped(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """A state as DistributedDataParallel around torch.compile leaves it, within a trainer's."""
    inner = {f"module._orig_mod.{key}": tensor for key, tensor in state.items()}
    average = {key: torch.full_like(tensor, 9.0) for key, tensor in list(state.items())[:3]}
    return {"state_dict": {"model": inner}, "model_ema": average, "epoch": 3}


def write_all(folder: Path, config: ModelConfig = SMALL, seed: int = 0) -> dict[str, Path]:
    """One of every published format, by what to call it; all have the same random weights.

    At base size each is about 450 MB, the training checkpoint twice as much.
    """
    state = random_state(config, seed)
    encoder, classifier = encoder_of(state), classifier_of(state)
    hub = _huggingface_variants(folder, config, state)
    return hub | {
        "official full": write_torch(folder / "visualize.pth", {"model": state}),
        "official flat": write_torch(folder / "flat.pth", state),
        "official legacy": write_torch(folder / "legacy.pth", {"model": state}, legacy=True),
        "official encoder": write_torch(folder / "pretrain.pth", {"model": encoder}),
        "official classifier": write_torch(folder / "finetuned.pth", {"model": classifier}),
        "official training": write_torch(folder / "checkpoint-12.pth", training_state(state)),
        "wrapped": write_torch(folder / "wrapped.pth", wrapped(state)),
        "timm file": write_safetensors(folder / "timm.safetensors", encoder),
        "timm folder": write_timm(folder / "timm", config, state),
        "mae_core": write_own(folder / "own.safetensors", config, state),
        "mae_core run": write_run(folder / "run", config, state),
    }


def _huggingface_variants(folder: Path, config: ModelConfig, state: State) -> dict[str, Path]:
    def write(name: str, **options: Any) -> Path:
        return write_huggingface(folder / name, config, state, **options)

    bare_file = write_torch(folder / "hf-file.bin", huggingface_state(state))
    return {
        "transformers 4": write("hf4"),
        "transformers 4 bin": write("hf4-bin", bin_file=True),
        "transformers 4 shards": write("hf4-shards", shards=3),
        "transformers 4 bin shards": write("hf4-bin-shards", shards=2, bin_file=True),
        "transformers 5": write("hf5", version=5),
        "transformers 5 encoder": write("hf5-bare", version=5, bare=True),
        "transformers 4 encoder": write("hf4-bare", bare=True),
        "transformers 4 file": bare_file,
    }
