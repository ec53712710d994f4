"""Weights written in every format: ours, the official, transformers', timm's, and as graphs.

    convert(weights, "encoder.safetensors", "timm")

The tensors are the same bit for bit, but for `dtype`. Each file is whole or absent; a file of the
same name is replaced. `why_not`, `lost_in` and `opening_line` are sentences for the user.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mae_core.config import IMAGENET_MEAN, IMAGENET_STD, PRESETS
from mae_core.errors import CheckpointError, ConfigError
from mae_core.weights.architecture import sincos_grid
from mae_core.weights.files import SAFETENSORS_FILE, SIDECAR_FILES, save_torch, write_atomically
from mae_core.weights.formats import Weights, save_weights, write_classifier
from mae_core.weights.names import huggingface_from_official, is_decoder_key
from mae_core.weights.onnx import export_onnx, export_program

# Format -> what a file of it may end in; "" for a folder.
TARGETS: dict[str, tuple[str, ...]] = {
    "mae_core": (".safetensors",),
    "official": (".pth", ".pt", ".bin"),
    "huggingface": ("",),
    "timm": (".safetensors", ".pth", ".bin", ""),
    "onnx": (".onnx",),
    "torch_export": (".pt2",),
}
GRAPHS = ("onnx", "torch_export")

# The config last: with it the folder is complete.
TRANSFORMERS_FILES = (SAFETENSORS_FILE, *reversed(SIDECAR_FILES))

# The epsilon of timm's ViTs, which its config.json has no place for.
_TIMM_EPS = 1e-6

# transformers' class and model_type of each kind.
_TRANSFORMERS_MODELS = {
    "autoencoder": ("ViTMAEForPreTraining", "vit_mae"),
    "encoder": ("ViTMAEModel", "vit_mae"),
    "classifier": ("ViTForImageClassification", "vit"),
}

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
        ConfigError: If a graph's images do not divide into patches.
    """
    path = Path(path)
    if target not in TARGETS:
        raise ConfigError(f"no format is called {target!r}; choose one of {', '.join(TARGETS)}")
    if reason := why_not(weights, target):
        raise CheckpointError(reason)
    # Nothing is guessed any more in what is written down.
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
    if target == "mae_core" and weights.kind == "classifier":
        write_classifier(path, weights, dtype=number_format)
    elif target == "mae_core":
        save_weights(path, model.build(), record=weights.record, dtype=number_format)
    else:
        write = {"official": write_official, "huggingface": write_huggingface, "timm": write_timm}
        write[target](path, replace(weights, state=state, dtype=dtype))


# --- what to tell the user


def why_not(weights: Weights, target: str) -> str | None:
    """Why a format of `TARGETS` has no place for weights, as a sentence; None if it has."""
    config, kind = weights.config, weights.kind
    if (kind == "encoder" and target == "mae_core") or (kind != "autoencoder" and target in GRAPHS):
        return (
            f"these weights hold no decoder ({kind}), which {target} needs; convert the file with "
            "encoder and decoder, or write --to timm or official"
        )
    if target not in ("official", "huggingface"):
        return None
    if target == "huggingface" and kind == "classifier" and "fc_norm.weight" in weights.state:
        return (
            "a classifier has no place in transformers if it averages the patch tokens, as "
            "ViTForImageClassification takes the class token; write another format, such as timm"
        )
    what = ""
    for field in ("pca_components", "encoder_mask_tokens"):
        if getattr(config, field):
            what = f"a model with {field}"
    if target == "huggingface" and config.grid is not None:
        what = f"a grid of {config.grid[0]}x{config.grid[1]} patches, which is not square,"
    vit = "ViT" if kind == "classifier" else "ViTMAE"
    layout = "the official layout" if target == "official" else f"transformers' {vit}"
    return f"{what} has no place in {layout}; write another format, such as timm" if what else None


def lacks_epsilon(weights: Weights) -> str | None:
    """Why timm's `config.json` cannot describe weights, as a sentence; None if it can."""
    epsilon = weights.config.layer_norm_eps
    if epsilon == _TIMM_EPS:
        return None
    return f"timm's config.json has no place for LayerNorms of epsilon {epsilon}"


def check_destination(
    path: Path, target: str, *, dtype: str = "float32", image_size: tuple[int, int] | None = None
) -> None:
    """Refuse what `convert` could not do well, before anything is fetched or read.

    Raises:
        ConfigError: If path, format and options do not fit each other, or the path is taken.
    """
    suffixes = TARGETS[target]
    is_file = any(path.suffix in of_files for of_files in TARGETS.values() if path.suffix)
    if is_file and suffixes == ("",):
        raise ConfigError(f"--to {target} writes a folder; {path.name!r} is a name for a file")
    if path.suffix not in suffixes and suffixes != ("",):
        ends = " or ".join(suffix or "nothing, for a folder" for suffix in suffixes)
        raise ConfigError(f"{path.name!r} is no name for --to {target}; let it end in {ends}")
    if target in GRAPHS and dtype != "float32":
        raise ConfigError(f"--to {target} writes float32 only; leave --dtype out")
    if target not in GRAPHS and image_size is not None:
        raise ConfigError(f"--image-size is for --to {' and '.join(GRAPHS)} only; leave it out")
    # A folder that is empty is taken.
    if os.path.lexists(path) and not (path.is_dir() and not is_file and "" in suffixes):
        raise ConfigError(f"{str(path)!r} is there already; remove it or give another name")


def lost_in(weights: Weights, target: str) -> list[str]:
    """Fields, as `name=value`, that a format does not hold and that cannot be guessed."""
    config = weights.config
    usual: dict[str, Any] = {"bands": (), "value_range": None}
    if target == "official":
        heads = {known.embed_dim: known.num_heads for known in PRESETS.values()}
        usual |= {
            "num_heads": heads.get(config.embed_dim), "norm_pix": False, "layer_norm_eps": 1e-6,
            "mean": IMAGENET_MEAN, "std": IMAGENET_STD,
        }  # fmt: skip
        if weights.kind == "autoencoder":
            usual["decoder_num_heads"] = 16
        if sincos_grid(weights.state["pos_embed"][0, 1:]) is None:
            usual["grid"] = None
    lost = [name for name, value in usual.items() if getattr(config, name) != value]
    return [] if target == "mae_core" else [f"{name}={getattr(config, name)}" for name in lost]


def lost_names(weights: Weights, path: Path, target: str) -> bool:
    """Whether the names of a classifier's classes have no place in what is written."""
    return bool(weights.classes) and (
        target == "official" or (target == "timm" and path.suffix != "")
    )


def opening_line(weights: Weights, path: Path, target: str) -> str:
    """One line of Python that opens what `convert` wrote."""
    file = repr(str(path))
    model, _ = _TRANSFORMERS_MODELS[weights.kind]
    ours = f"mae_core.load({file})"
    if weights.kind == "classifier":
        ours = f"mae_core.weights.read_weights({file}).build_classifier()"
    return {
        "mae_core": ours,
        "official": f'torch.load({file}, weights_only=True)["model"]',
        "huggingface": f"transformers.{model}.from_pretrained({file})",
        "timm": _timm_line(weights, path),
        "onnx": f"onnxruntime.InferenceSession({file})",
        "torch_export": f"torch.export.load({file}).module()",
    }[target]


def _timm_line(weights: Weights, path: Path) -> str:
    if path.suffix == "":
        return f'timm.create_model("local-dir:{path}", pretrained=True)'
    name, arguments = _timm_arguments(weights)
    shown = {"num_classes": str(weights.num_classes or 0)}
    # As in Python, but for texts, which are in double quotes.
    shown |= {key: f'"{v}"' if isinstance(v, str) else repr(v) for key, v in arguments.items()}
    if weights.config.layer_norm_eps != _TIMM_EPS:
        eps = f"eps={weights.config.layer_norm_eps}"
        shown["norm_layer"] = f"functools.partial(torch.nn.LayerNorm, {eps})"
    shown["checkpoint_path"] = repr(str(path))
    joined = ", ".join(f"{key}={value}" for key, value in shown.items())
    return f'timm.create_model("{name}", {joined})'


def _timm_arguments(weights: Weights) -> tuple[str, dict[str, Any]]:
    """The model of timm that fits, and what of it is not the named model's own."""
    config, arguments = weights.config, dict[str, Any]()
    size = (config.embed_dim, config.depth)
    fitting = [
        name for name in _TIMM_NAMES if size == (PRESETS[name].embed_dim, PRESETS[name].depth)
    ]
    name = fitting[0] if fitting else "base"
    if "fc_norm.weight" in weights.state:
        arguments["global_pool"] = "avg"
    for field in ("patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio"):
        if getattr(config, field) != getattr(PRESETS[name], field):
            arguments[field] = getattr(config, field)
    if config.grid is not None or config.image_size != PRESETS[name].image_size:
        arguments["img_size"] = tuple(side * config.patch_size for side in config.table_grid)
    return _TIMM_NAMES[name], arguments


# --- the formats of others


def write_official(path: str | Path, weights: Weights) -> None:
    """Write a torch file in the official layout: the parameters under `model`, nothing else."""
    save_torch(Path(path), {"model": _own(weights.state)})


def write_timm(path: str | Path, weights: Weights) -> None:
    """Write a file that `timm.create_model(…, checkpoint_path=path)` opens strictly.

    A path without a suffix is a folder, with timm's `config.json`: see `write_timm_files`.

    It holds the encoder, or the whole classifier; safetensors if it ends in `.safetensors`. The
    mask token of an encoder is left out too: whole images do not use it, and timm takes a file with
    `mask_token` for one of DINOv2.
    """
    if Path(path).suffix == "":
        if reason := lacks_epsilon(weights):
            raise CheckpointError(f"{reason}; write a file, such as {Path(path).name}.safetensors")
        _write_folder(Path(path), lambda folder: write_timm_files(folder, weights))
        return
    write = _write_safetensors if Path(path).suffix == ".safetensors" else save_torch
    write(Path(path), _own(_timm_state(weights)))


def _timm_state(weights: Weights) -> dict[str, Tensor]:
    return {
        key: tensor
        for key, tensor in weights.state.items()
        if not is_decoder_key(key) and key != "encoder_mask_token"
    }


def write_timm_files(folder: Path, weights: Weights, more: Mapping[str, Any] | None = None) -> None:
    """Write the files of `timm.create_model("local-dir:…", pretrained=True)`, the config last.

    On the hub they are opened by `hf-hub:USER/NAME`. `more` are further entries of the config. The
    names of the classes are its `label_names`.
    """
    config, num_classes = weights.config, weights.num_classes or 0
    name, arguments = _timm_arguments(weights)
    pool = "avg" if "fc_norm.weight" in weights.state else "token"
    height, width = (side * config.patch_size for side in config.table_grid)
    values = {
        "architecture": name,
        "num_classes": num_classes,
        "num_features": config.embed_dim,
        "global_pool": pool,
        **({"label_names": list(weights.classes)} if weights.classes else {}),
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": num_classes,
            "input_size": [config.in_chans, height, width],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            # Of the images that a classifier is fine-tuned and measured on; an encoder's are whole.
            "crop_pct": weights.crop_share if num_classes else 1.0,
            "mean": list(config.mean),
            "std": list(config.std),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        **(more or {}),
    }
    _write_safetensors(folder / SAFETENSORS_FILE, _own(_timm_state(weights)))
    write_json(folder / SIDECAR_FILES[0], values)


def write_huggingface(folder: str | Path, weights: Weights) -> None:
    """Write a folder that transformers opens, missing or empty before; it is whole or absent.

    Raises:
        CheckpointError: If the folder holds something or cannot be written.
    """
    _write_folder(Path(folder), lambda files: write_transformers_files(files, weights))


def _write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    unfinished = None
    try:
        if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
            raise CheckpointError(f"{str(folder)!r} is not an empty folder; give another")
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent)
        files = Path(unfinished) / folder.name  # with the rights that the umask gives
        write(files)
        files.replace(folder)
    except OSError as error:
        raise CheckpointError(
            f"could not write the folder {str(folder)!r} ({error.strerror}); change its rights, or "
            "give another"
        ) from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


def write_transformers_files(
    folder: Path, weights: Weights, more: Mapping[str, Any] | None = None
) -> None:
    """Write `TRANSFORMERS_FILES`, the config last, with further entries that transformers ignores.

    Encoder and decoder are a `ViTMAEForPreTraining`, an encoder alone is a `ViTMAEModel`, and a
    classifier of the class token a `ViTForImageClassification`. The names of parameters are those
    of transformers 4, which version 5 reads too.
    """
    config, whole = weights.config, weights.kind == "autoencoder"
    model, model_type = _TRANSFORMERS_MODELS[weights.kind]
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": config.image_size, "width": config.image_size},
        "resample": 3,  # Pillow's number for the bicubic filter, by which training crops
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
    }
    values: dict[str, Any] = {
        "architectures": [model],
        "model_type": model_type,
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
        "torch_dtype": str(weights.state["cls_token"].dtype).removeprefix("torch."),
    }
    state = huggingface_from_official(
        {key: tensor for key, tensor in weights.state.items() if not key.startswith("head.")}
    )
    if weights.kind == "classifier":
        names = weights.classes or [f"LABEL_{i}" for i in range(weights.num_classes or 0)]
        values |= {
            "id2label": dict(enumerate(names)),
            "label2id": {n: i for i, n in enumerate(names)},
        }
        state = {f"vit.{key}": tensor for key, tensor in state.items()}
        state |= {
            f"classifier.{part}": weights.state[f"head.{part}"] for part in ("weight", "bias")
        }
    else:
        values |= {"mask_ratio": 0.75, "norm_pix_loss": config.norm_pix}
    if whole:
        values |= {
            "decoder_hidden_size": config.decoder_embed_dim,
            "decoder_num_hidden_layers": config.decoder_depth,
            "decoder_num_attention_heads": config.decoder_num_heads,
            "decoder_intermediate_size": int(config.decoder_embed_dim * config.mlp_ratios[1]),
        }
    tensors, *texts = TRANSFORMERS_FILES
    _write_safetensors(folder / tensors, _own(state))
    for name, content in zip(texts, (processor, values | dict(more or {})), strict=True):
        write_json(folder / name, content)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    text = json.dumps(values, indent=2) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor with its own memory: what a view looks at is not written with it."""
    return {
        key: tensor.detach().clone(memory_format=torch.contiguous_format)
        for key, tensor in state.items()
    }


def _write_safetensors(path: Path, state: dict[str, Tensor]) -> None:
    # transformers asks for this word.
    write_atomically(path, lambda partial: save_file(state, partial, metadata={"format": "pt"}))
