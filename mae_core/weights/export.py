"""Weights in the formats of others: the official files, transformers' folders and timm's files.

What is written is what `Contents` holds, in the number format of its tensors. Each file is whole
or absent. A file of the same name is replaced, as `save_weights` does; a folder that holds
anything but what an interrupted `write_huggingface` left there is refused.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mae_core.config import ModelConfig
from mae_core.errors import CheckpointError
from mae_core.weights.contents import Contents
from mae_core.weights.files import write_atomically
from mae_core.weights.names import huggingface_from_official

# In the order in which they are written: a folder without its config is not finished.
_FOLDER_FILES = ("model.safetensors", "preprocessor_config.json", "config.json")

# Pillow's number for the bicubic filter, by which crops are made in training.
_BICUBIC = 3


def write_official(path: str | Path, contents: Contents) -> None:
    """Write a torch file in the official layout: the parameters under `model`, nothing else.

    It holds what `contents` does: encoder and decoder, an encoder alone, or a classifier. The
    layout has no place for heads, epsilon, norm-pix, mean and deviation; who opens the file has
    to know them.

    Args:
        path: Where to; replaced only once the new file is whole.
        contents: What to write.

    Raises:
        CheckpointError: If the model is a variant that the official code has not, or the file
            cannot be written.
    """
    _refuse_variants(contents.config, "the official layout")
    _write_torch(Path(path), {"model": _own(contents.state)})


def write_huggingface(folder: str | Path, contents: Contents) -> None:
    """Write a folder that transformers opens: weights, config and image processor.

    The names are those of transformers 4, which version 5 reads too. Encoder and decoder are a
    `ViTMAEForPreTraining`, an encoder alone is a `ViTMAEModel`.

    Args:
        folder: Where to. It may be missing, empty, or what an interrupted call left; anything
            else in it is somebody's, and refused. If writing fails nothing stays behind.
        contents: What to write.

    Raises:
        CheckpointError: If the model is a classifier or a variant, neither of which transformers'
            ViTMAE has, if the folder holds something, or if it cannot be written.
    """
    folder = Path(folder)
    if contents.kind == "classifier":
        raise CheckpointError(
            "transformers' ViTMAE has no classifier that pools like the official one; write it "
            "for timm or in the official layout"
        )
    _refuse_variants(contents.config, "transformers' ViTMAE")
    if contents.config.grid is not None:
        raise CheckpointError(
            "transformers' ViTMAE has position tables of square grids only, and this one is of "
            f"{contents.config.grid[0]}x{contents.config.grid[1]} patches; write it as official "
            "or mae_core"
        )
    state = _own(huggingface_from_official(contents.state))
    _require_free(folder)
    was_there = os.path.lexists(folder)
    writers: tuple[Callable[[Path], object], ...] = (
        partial(_save_safetensors, state),
        partial(_save_json, _image_processor(contents.config)),
        partial(_save_json, _huggingface_config(contents)),
    )
    try:
        for name, write in zip(_FOLDER_FILES, writers, strict=True):
            write_atomically(folder / name, write)
    except CheckpointError:
        _remove_unfinished(folder, keep_folder=was_there)
        raise


def write_timm(path: str | Path, contents: Contents) -> None:
    """Write a file that `timm.create_model(…, checkpoint_path=path)` opens strictly.

    It holds the encoder, or the whole classifier. The decoder and what only its target needs
    stay behind, and so does an encoder's mask token, of which a whole picture has no need: timm
    takes a file with `mask_token` for one of DINOv2.

    Args:
        path: Where to; a safetensors file if it ends in `.safetensors`, a torch file if in
            `.pth` or `.bin`. Replaced only once the new file is whole.
        contents: What to write.

    Raises:
        CheckpointError: If the path ends otherwise, or the file cannot be written.
    """
    path = Path(path)
    state = _own({k: v for k, v in contents.state.items() if not _unknown_to_timm(k)})
    if path.suffix == ".safetensors":
        write_atomically(path, partial(_save_safetensors, state))
    elif path.suffix in (".pth", ".bin"):
        _write_torch(path, state)
    else:
        raise CheckpointError(
            f"{path.name!r} says no format; give a name that ends in .safetensors, .pth or .bin"
        )


def _unknown_to_timm(key: str) -> bool:
    return key.startswith(("decoder_", "pca_")) or key in ("mask_token", "encoder_mask_token")


def _refuse_variants(config: ModelConfig, where: str) -> None:
    for field in ("pca_components", "encoder_mask_tokens"):
        if getattr(config, field):
            raise CheckpointError(
                f"a model with {field} has no place in {where}; keep it as mae_core, or write "
                "its encoder for timm"
            )


def _own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor with just its own memory: what a view looks at is not written with it."""
    return {
        key: tensor.detach().contiguous()
        if tensor.untyped_storage().nbytes() == tensor.nbytes
        else tensor.detach().clone(memory_format=torch.contiguous_format)
        for key, tensor in state.items()
    }


def _huggingface_config(contents: Contents) -> dict[str, Any]:
    config, whole = contents.config, contents.kind == "autoencoder"
    dtype = next(iter(contents.state.values())).dtype
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


def _image_processor(config: ModelConfig) -> dict[str, Any]:
    return {
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


def _require_free(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise CheckpointError(f"{str(folder)!r} is a file; give a folder that is not there yet")
    ours = {*_FOLDER_FILES[:-1], *(f"{name}.partial" for name in _FOLDER_FILES)}
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise CheckpointError(
            f"the folder {str(folder)!r} cannot be read; change its rights, or give another"
        ) from error
    if names - ours:
        raise CheckpointError(
            f"the folder {str(folder)!r} is not empty; give one that is not there yet"
        )


def _remove_unfinished(folder: Path, *, keep_folder: bool) -> None:
    with contextlib.suppress(OSError):
        for name in _FOLDER_FILES:
            (folder / name).unlink(missing_ok=True)
        if not keep_folder:
            folder.rmdir()


def _write_torch(path: Path, content: Mapping[str, Any]) -> None:
    def write(partial_path: Path) -> None:
        # Through Python's own file, whose errors say why a write failed; torch's does not.
        with partial_path.open("wb") as file:
            torch.save(content, file)

    write_atomically(path, write)


def _save_safetensors(state: dict[str, Tensor], path: Path) -> None:
    # transformers asks for this word.
    save_file(state, path, metadata={"format": "pt"})


def _save_json(values: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
