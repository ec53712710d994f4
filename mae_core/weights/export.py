"""Weights written in every format: ours, the official, transformers', timm's, and as graphs.

    convert(weights, "encoder.safetensors", "timm")

The tensors are the same bit for bit, but for `dtype`. Each file is whole or absent; a file of the
same name is replaced. `why_not`, `lost_in` and `opening_line` are what a user should be told.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mae_core.config import PRESETS
from mae_core.errors import CheckpointError, ConfigError
from mae_core.weights.architecture import Sidecar, infer_config
from mae_core.weights.files import write_atomically
from mae_core.weights.formats import Hints, Weights, save_weights
from mae_core.weights.names import huggingface_from_official
from mae_core.weights.onnx import export_onnx, export_program

# Format -> what a file of it may end in; none for a folder.
TARGETS: dict[str, tuple[str, ...]] = {
    "mae_core": (".safetensors",),
    "official": (".pth", ".pt", ".bin"),
    "huggingface": (),
    "timm": (".safetensors", ".pth", ".bin"),
    "onnx": (".onnx",),
    "torch_export": (".pt2",),
}
GRAPHS = ("onnx", "torch_export")

HUGGINGFACE_FILES = ("model.safetensors", "preprocessor_config.json", "config.json")

# Pillow's number for the bicubic filter, by which crops are made in training.
_BICUBIC = 3

_TIMM_NAMES = {
    "tiny": "vit_tiny_patch16_224",
    "small": "vit_small_patch16_224",
    "base": "vit_base_patch16_224",
    "large": "vit_large_patch16_224",
    "huge": "vit_huge_patch14_224",
}


def convert(
    weights: Weights,
    path: str | Path,
    target: str,
    *,
    dtype: str = "float32",
    image_size: tuple[int, int] | None = None,
) -> None:
    """Write weights in another format.

    Args:
        weights: What was read.
        path: File or folder to write; a file is replaced.
        target: One of `TARGETS`.
        dtype: Number format to write: `float32`, `float16` or `bfloat16`; graphs are float32.
        image_size: (H, W) in pixels of the images that a graph takes; the model's own if not
            given.

    Raises:
        CheckpointError: If the format has no place for these weights, the number format none for
            their values, or the file cannot be written.
        ConfigError: If no format is called `target`, or packages that it needs are missing.
        PatchError: If a graph's images do not divide into patches.
    """
    path = Path(path)
    if target not in TARGETS:
        raise ConfigError(f"no format is called {target!r}; choose one of {', '.join(TARGETS)}")
    _refuse(weights, target)
    model = Weights(weights.config, weights.state, weights.record)
    if target in GRAPHS:
        export = export_onnx if target == "onnx" else export_program
        export(model, path, image_size=image_size)
        return
    number_format: torch.dtype = getattr(torch, dtype)
    state = {key: tensor.to(number_format) for key, tensor in weights.state.items()}
    for key, tensor in state.items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{key} holds numbers that are too large for {dtype}; write float32 or bfloat16"
            )
    if target == "mae_core":
        save_weights(path, model.build(), record=model.record, dtype=number_format)
    else:
        write = {"official": write_official, "huggingface": write_huggingface, "timm": write_timm}
        write[target](path, replace(weights, state=state, dtype=dtype))


# --- what to tell the user


def why_not(weights: Weights, target: str) -> str | None:
    """Why a format of `TARGETS` has no place for weights, as a sentence; None if it has."""
    config, kind = weights.config, weights.kind
    if target in ("mae_core", *GRAPHS) and kind != "autoencoder":
        return (
            f"these weights hold no decoder ({kind}), which {target} needs; convert the file with "
            "encoder and decoder, or write --to timm or official"
        )
    where = {"official": "the official layout", "huggingface": "transformers' ViTMAE"}.get(target)
    for field in ("pca_components", "encoder_mask_tokens"):
        if where and getattr(config, field):
            return (
                f"a model with {field} has no place in {where}; keep it as mae_core, or write its "
                "encoder for timm"
            )
    if target == "huggingface" and kind == "classifier":
        return (
            "transformers' ViTMAE has no classifier that pools like the official one; write it "
            "for timm or in the official layout"
        )
    if target == "huggingface" and config.grid is not None:
        return (
            "transformers' ViTMAE has position tables of square grids only, and this one is of "
            f"{config.grid[0]}x{config.grid[1]} patches; write it as official or mae_core"
        )
    return None


def _refuse(weights: Weights, target: str) -> None:
    if reason := why_not(weights, target):
        raise CheckpointError(reason)


def check_destination(
    path: Path, target: str, *, dtype: str = "float32", image_size: tuple[int, int] | None = None
) -> None:
    """Refuse what `convert` could not do well, before anything is fetched or read.

    Args:
        path: File or folder to write, which must not be there yet.
        target: One of `TARGETS`.
        dtype: As for `convert`.
        image_size: As for `convert`.

    Raises:
        ConfigError: If path, format and options do not fit each other.
    """
    suffixes = TARGETS[target]
    if suffixes and path.suffix not in suffixes:
        raise ConfigError(
            f"{path.name!r} is no name for --to {target}; let it end in {' or '.join(suffixes)}"
        )
    if not suffixes and any(path.suffix in of_files for of_files in TARGETS.values()):
        raise ConfigError(f"--to {target} writes a folder; {path.name!r} is a name for a file")
    if target in GRAPHS and dtype != "float32":
        raise ConfigError(f"--to {target} writes float32 only; leave --dtype out")
    if target not in GRAPHS and image_size is not None:
        raise ConfigError(f"--image-size is for --to {' and '.join(GRAPHS)} only; leave it out")
    # `write_huggingface` takes a folder that is empty.
    if os.path.lexists(path) and not (path.is_dir() and target == "huggingface"):
        raise ConfigError(f"{str(path)!r} is there already; remove it or give another name")


def lost_in(weights: Weights, target: str) -> list[str]:
    """Fields, as `name=value`, that a format does not hold and that nobody would guess right."""
    config = weights.config
    if target == "mae_core":
        return []
    if target != "official":
        own = {name: getattr(config, name) for name in ("bands", "value_range")}
        return [f"{name}={value}" for name, value in own.items() if value]
    grid = Hints(grid=config.grid)
    guess, origins = infer_config("", weights.state, weights.kind, Sidecar({}, {}, {}), grid)
    lost = [
        f"{field}={getattr(config, field)}"
        for field in weights.origins
        if getattr(config, field) != getattr(guess, field)
        and (weights.kind == "autoencoder" or not field.startswith("decoder_"))
    ]
    # Sin-cos tables tell it, and then its origin is another.
    return [*lost, f"grid={config.grid}"] if origins["grid"] == grid.source else lost


def opening_line(weights: Weights, path: Path, target: str) -> str:
    """One line of Python that opens what `convert` wrote."""
    file = repr(str(path))
    if target == "timm":
        return _timm_line(weights, file)
    model = "ViTMAEForPreTraining" if weights.kind == "autoencoder" else "ViTMAEModel"
    return {
        "mae_core": f"mae_core.Reconstructor.from_pretrained({file})",
        "official": f'torch.load({file}, weights_only=True)["model"]',
        "huggingface": f"transformers.{model}.from_pretrained({file})",
        "onnx": f"onnxruntime.InferenceSession({file})",
        "torch_export": f"torch.export.load({file}).module()",
    }[target]


def _timm_line(weights: Weights, file: str) -> str:
    """The call of timm that fits; every argument that is not the named model's own."""
    config, arguments = weights.config, [f"num_classes={weights.num_classes or 0}"]
    size = (config.embed_dim, config.depth)
    fitting = [name for name, known in PRESETS.items() if size == (known.embed_dim, known.depth)]
    name = fitting[0] if fitting else "base"
    if "fc_norm.weight" in weights.state:
        arguments.append('global_pool="avg"')
    for field in ("patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio"):
        if getattr(config, field) != getattr(PRESETS[name], field):
            arguments.append(f"{field}={getattr(config, field)}")
    if config.grid is not None:
        height, width = (side * config.patch_size for side in config.grid)
        arguments.append(f"img_size=({height}, {width})")
    elif config.image_size != PRESETS[name].image_size:
        arguments.append(f"img_size={config.image_size}")
    if config.layer_norm_eps != PRESETS[name].layer_norm_eps:
        arguments.append(
            f"norm_layer=functools.partial(torch.nn.LayerNorm, eps={config.layer_norm_eps})"
        )
    joined = ", ".join([*arguments, f"checkpoint_path={file}"])
    return f'timm.create_model("{_TIMM_NAMES[name]}", {joined})'


# --- the formats of others


def write_official(path: str | Path, weights: Weights) -> None:
    """Write a torch file in the official layout: the parameters under `model`, nothing else.

    It holds what `weights` does: encoder and decoder, an encoder alone, or a classifier. The
    layout has no place for heads, epsilon, norm_pix, mean and deviation: see `lost_in`.

    Raises:
        CheckpointError: If the model is a variant that the official code has not, or the file
            cannot be written.
    """
    _refuse(weights, "official")
    write_atomically(Path(path), partial(_save_torch, {"model": _own(weights.state)}))


def write_timm(path: str | Path, weights: Weights) -> None:
    """Write a file that `timm.create_model(…, checkpoint_path=path)` opens strictly.

    It holds the encoder, or the whole classifier. The decoder and what only its target needs
    stay behind, and so does an encoder's mask token, which a whole image has no need of: timm
    takes a file with `mask_token` for one of DINOv2.

    Args:
        path: Where to; a safetensors file if it ends in `.safetensors`, a torch file if in
            `.pth` or `.bin`.
        weights: What to write.

    Raises:
        CheckpointError: If the path ends otherwise, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in TARGETS["timm"]:
        raise CheckpointError(
            f"{path.name!r} says no format; give a name that ends in .safetensors, .pth or .bin"
        )
    unknown = ("decoder_", "pca_", "mask_token", "encoder_mask_token")
    state = _own({key: t for key, t in weights.state.items() if not key.startswith(unknown)})
    save = _save_safetensors if path.suffix == ".safetensors" else _save_torch
    write_atomically(path, partial(save, state))


def write_huggingface(folder: str | Path, weights: Weights) -> None:
    """Write a folder that transformers opens: weights, config and image processor.

    Encoder and decoder are a `ViTMAEForPreTraining`, an encoder alone is a `ViTMAEModel`.

    Args:
        folder: Where to, missing or empty. It is whole or absent.
        weights: What to write.

    Raises:
        CheckpointError: If transformers' ViTMAE has no place for the weights, if the folder holds
            something, or if it cannot be written.
    """
    folder = Path(folder)
    writers = huggingface_writers(weights)
    unfinished = folder.with_name(folder.name + ".partial")
    try:
        if os.path.lexists(folder) and not folder.is_dir():
            raise CheckpointError(f"{str(folder)!r} is a file; give a folder that is not there yet")
        if folder.is_dir() and any(folder.iterdir()):
            raise CheckpointError(f"the folder {str(folder)!r} is not empty; give another")
        shutil.rmtree(unfinished, ignore_errors=True)
        for name, write in writers.items():
            write_atomically(unfinished / name, write)
        unfinished.replace(folder)
    except OSError as error:
        raise CheckpointError(
            f"could not write the folder {str(folder)!r} ({error.strerror}); change its rights, or "
            "give another"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def huggingface_writers(
    weights: Weights, more: Mapping[str, Any] | None = None
) -> dict[str, Callable[[Path], object]]:
    """What writes each of `HUGGINGFACE_FILES`.

    The names of parameters are those of transformers 4, which version 5 reads too.

    Args:
        weights: What to write.
        more: Further entries of the config, which transformers passes over.

    Raises:
        CheckpointError: If transformers' ViTMAE has no place for the weights.
    """
    _refuse(weights, "huggingface")
    config = weights.config
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": config.image_size, "width": config.image_size},
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
    }
    contents = (
        partial(_save_safetensors, _own(huggingface_from_official(weights.state))),
        partial(_save_json, processor),
        partial(_save_json, _huggingface_config(weights) | dict(more or {})),
    )
    return dict(zip(HUGGINGFACE_FILES, contents, strict=True))


def _huggingface_config(weights: Weights) -> dict[str, Any]:
    config, whole = weights.config, weights.kind == "autoencoder"
    dtype = next(iter(weights.state.values())).dtype
    values: dict[str, Any] = {
        "architectures": ["ViTMAEForPreTraining" if whole else "ViTMAEModel"],
        "model_type": "vit_mae",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.in_chans,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": int(config.embed_dim * config.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": config.layer_norm_eps,
        "qkv_bias": True,
        "mask_ratio": 0.75,
        "norm_pix_loss": config.norm_pix,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    if whole:
        values |= {
            "decoder_hidden_size": config.decoder_embed_dim,
            "decoder_num_hidden_layers": config.decoder_depth,
            "decoder_num_attention_heads": config.decoder_num_heads,
            "decoder_intermediate_size": int(config.decoder_embed_dim * config.mlp_ratios[1]),
        }
    return values


def _own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor with just its own memory: what a view looks at is not written with it."""
    return {
        key: tensor.detach().contiguous()
        if tensor.untyped_storage().nbytes() == tensor.nbytes
        else tensor.detach().clone(memory_format=torch.contiguous_format)
        for key, tensor in state.items()
    }


def _save_torch(content: Mapping[str, Any], path: Path) -> None:
    # Through Python's own file, whose errors say why a write failed; torch's does not.
    with path.open("wb") as file:
        torch.save(content, file)


def _save_safetensors(state: dict[str, Tensor], path: Path) -> None:
    # transformers asks for this word.
    save_file(state, path, metadata={"format": "pt"})


def _save_json(values: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
