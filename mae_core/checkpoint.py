"""Weights (a model, for use) and checkpoints (a run, to go on with) on disk.

Weights are one safetensors file; its header carries the model's config and the record of
its training as JSON, so the file explains itself. A checkpoint is a torch file, always read
with `weights_only=True`. Both are written under a temporary name, flushed to the disk and
renamed, so a name never holds half a file.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mae_core.config import ModelConfig, from_dict, to_dict
from mae_core.errors import CheckpointError, ConfigError
from mae_core.models.mae import MaskedAutoencoder

CHECKPOINT_FILE = "checkpoint.pt"

_FORMAT = "mae_core-1"


@dataclass(frozen=True)
class Weights:
    """A model as read from a file.

    Attributes:
        config: Its shape.
        state: Its parameters by the official names, float32.
        record: How it was trained: plain data, empty if unknown.
    """

    config: ModelConfig
    state: dict[str, Tensor]
    record: dict[str, Any]

    def build(self) -> MaskedAutoencoder:
        """The model with these weights, on the CPU, in evaluation mode."""
        # On `meta` nothing is drawn only to be overwritten.
        with torch.device("meta"):
            model = MaskedAutoencoder(self.config)
        model.load_state_dict(self.state, strict=True, assign=True)
        for table in (model.pos_embed, model.decoder_pos_embed):
            table.requires_grad_(False)
        return model.eval()


def save_weights(
    path: str | Path,
    model: MaskedAutoencoder,
    *,
    record: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model as one safetensors file.

    Args:
        path: Where to; replaced only once the new file is whole.
        model: The model.
        record: How it was trained, as plain data for JSON.
        dtype: Number format of the parameters in the file.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    state = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    header = {
        "format": _FORMAT,
        "config": json.dumps(to_dict(model.config)),
        "record": json.dumps(dict(record)),
    }
    write_atomically(Path(path), lambda partial: save_file(state, partial, metadata=header))


def load_weights(path: str | Path) -> Weights:
    """Read weights written by `save_weights`; nothing in the file is run.

    Raises:
        CheckpointError: If the file is missing, damaged, of another format, does not fit
            its own config, or holds numbers that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there are no weights at {str(path)!r}; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path.name!r} is not a whole safetensors file; give weights written by mae_core.train"
        ) from error
    config, record = _read_header(path.name, header)
    _check_state(path.name, config, state)
    return Weights(config, state, record)


def _read_header(name: str, header: Mapping[str, str]) -> tuple[ModelConfig, dict[str, Any]]:
    if header.get("format") != _FORMAT:
        raise CheckpointError(
            f"{name!r} does not say that it is of the format {_FORMAT}; give weights written "
            "by mae_core.train"
        )
    try:
        config = from_dict(ModelConfig, json.loads(header["config"]))
        record = json.loads(header["record"])
    except (KeyError, ValueError, TypeError, ConfigError) as error:
        raise CheckpointError(f"the header of {name!r} is damaged: {error}") from error
    return config, record


def _check_state(name: str, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        expected = MaskedAutoencoder(config).state_dict()
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{name!r} does not fit its own config: missing {missing[:3] or 'nothing'}, "
            f"unknown {unknown[:3] or 'nothing'}"
        )
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            raise CheckpointError(
                f"{key} in {name!r} has shape {tuple(tensor.shape)}; its config asks for "
                f"{tuple(expected[key].shape)}"
            )
        if not math.isfinite(tensor.abs().max().item()):
            raise CheckpointError(f"{key} in {name!r} holds numbers that are not finite")


def save_checkpoint(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write the state of a run: tensors and plain data only.

    Raises:
        CheckpointError: If the file cannot be written; the one before it stays.
    """
    content = {"format": _FORMAT, **values}
    write_atomically(Path(path), lambda partial: torch.save(content, partial))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; code in a hostile file is refused, not run.

    Raises:
        CheckpointError: If the file is missing, damaged or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {str(path)!r}; check the path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for damaged and hostile files
        raise CheckpointError(
            f"{path.name!r} is not a whole checkpoint written by mae_core.train"
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{path.name!r} is not a checkpoint written by mae_core.train")
    return content


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file beside `path`, flush it to the disk, and rename it.

    Raises:
        CheckpointError: If the file cannot be written; `path` is as it was before.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(
            f"could not write {path.name!r} ({error}); check the free space and the rights of "
            f"its folder"
        ) from error
