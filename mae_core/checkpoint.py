"""Weights (a model, for use) and checkpoints (a run, to go on with) on disk.

Weights are one safetensors file; its header carries the model's config and the record of
its training as JSON, so the file explains itself. A checkpoint is a torch file, always read
with `weights_only=True`; the one before it is kept beside it. Both are written under a
temporary name, flushed to the disk and renamed, so a name never holds half a file.
"""

import contextlib
import errno
import json
import logging
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mae_core.config import ModelConfig, from_dict, to_dict
from mae_core.errors import CheckpointError, ConfigError
from mae_core.models.mae import MaskedAutoencoder

_log = logging.getLogger(__name__)

# A run's state, and the one saved before it.
CHECKPOINT_FILE = "checkpoint.pt"
PREVIOUS_CHECKPOINT_FILE = "checkpoint.previous.pt"

_Result = TypeVar("_Result")

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
    """Read weights written by `save_weights`, or those of a run's checkpoint (`.pt`).

    Nothing in the file is run. A checkpoint's running average is taken where it has one, and
    its record has `running`, `step` and `steps`. Where a run's `checkpoint.pt` cannot be used,
    the one before it is, with a warning.

    Raises:
        CheckpointError: If the file is missing, damaged, of another format, does not fit
            its own config, or holds numbers that are not finite.
    """
    path = Path(path)
    if path.name == CHECKPOINT_FILE:
        return _latest(path.parent, _weights_of_checkpoint)
    if path.suffix == ".pt":
        return _weights_of_checkpoint(path)
    return _weights_of_safetensors(path)


def _weights_of_safetensors(path: Path) -> Weights:
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
    _check_shapes(path.name, config, state)
    _check_finite(path.name, state)
    return Weights(config, state, record)


def _read_header(name: str, header: Mapping[str, str]) -> tuple[ModelConfig, dict[str, Any]]:
    if header.get("format") != _FORMAT:
        raise CheckpointError(
            f"{name!r} does not say that it is of the format {_FORMAT}; give weights written "
            "by mae_core.train"
        )
    try:
        config = _model_config(json.loads(header["config"]))
        record = json.loads(header["record"])
        if not isinstance(record, dict):
            raise TypeError("its record is no JSON object")
    except (KeyError, ValueError, TypeError, RecursionError, ConfigError) as error:
        raise CheckpointError(f"the header of {name!r} is damaged: {error}") from error
    return config, record


def _model_config(values: object) -> ModelConfig:
    """A model's config from a file that may hold anything; see `_read_header` for the errors."""
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise TypeError("its config is no mapping of fields")
    try:
        return from_dict(ModelConfig, values)
    except OverflowError as error:
        raise ValueError(f"a number in its config is out of range ({error})") from error


def _weights_of_checkpoint(path: Path) -> Weights:
    # Mapped: of a hostile file no more is in memory than is on the disk, and of an honest one
    # the optimiser's state is never read.
    content = _read_checkpoint(path, mmap=True)
    try:
        record = _running_record(content)
        config = _model_config(content["config"]["model"])
        state = _averaged_state(content)
    except (KeyError, ValueError, TypeError, ConfigError) as error:
        raise CheckpointError(f"the checkpoint {path.name!r} is damaged: {error}") from error
    _check_tensors(path, state)
    _check_shapes(path.name, config, state)
    state = {key: tensor.detach().to(torch.float32, copy=True) for key, tensor in state.items()}
    _check_finite(path.name, state)
    return Weights(config, state, record)


def _averaged_state(content: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters as they would be used: the running average where there is one."""
    model, average = content["model"], content.get("ema")
    if average is None:
        average = {}
    if not isinstance(model, dict) or not isinstance(average, dict):
        raise TypeError("its model is no mapping of names to tensors")
    # Of what is not trained there is no average.
    return {**model, **average}


def _running_record(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint tells of its run, in the words of a finished run's record."""
    run, step, seconds = content["config"], content["step"], content["seconds"]
    if not isinstance(run, dict):
        raise TypeError("its config is no mapping of fields")
    steps = run["steps"]
    if not all(type(value) is int and value >= 0 for value in (step, steps)):
        raise ValueError("its step is no number of steps")
    if type(seconds) not in (int, float):
        raise ValueError("its seconds are no number")
    return {
        "running": True,
        "recipe": str(content.get("recipe", "")),
        "step": step,
        "steps": steps,
        "hours": round(seconds / 3600, 3),
    }


def _check_tensors(path: Path, state: Mapping[str, Any]) -> None:
    """Refuse what is no ordinary tensor, and tensors that claim more bytes than the file has.

    In a torch file many tensors may share, or repeat, the same few bytes.
    """
    refusal = CheckpointError(f"the model in {path.name!r} is not a mapping of names to tensors")
    size = 0
    for key, tensor in state.items():
        if (
            not isinstance(key, str)
            or type(tensor) not in (Tensor, torch.nn.Parameter)
            or tensor.layout != torch.strided
            or tensor.device.type != "cpu"
            or not tensor.is_floating_point()
        ):
            raise refusal
        size += tensor.nbytes
    if size > path.stat().st_size:
        raise CheckpointError(f"the model in {path.name!r} claims more bytes than the file has")


def _check_shapes(name: str, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    expected = _expected_state(name, config, len(state))
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


def _expected_state(name: str, config: ModelConfig, tensors: int) -> dict[str, Tensor]:
    """The parameters that a config asks for, without their memory.

    The config may come from anybody: one that asks for more blocks than the file has tensors,
    or for more than can be counted, is refused before it costs anything.
    """
    if config.depth + config.decoder_depth > tensors:
        raise CheckpointError(
            f"{name!r} does not fit its own config: {tensors} tensors are too few for "
            f"{config.depth} + {config.decoder_depth} blocks"
        )
    try:
        with torch.device("meta"):
            return MaskedAutoencoder(config).state_dict()
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"the config in {name!r} describes no model: {error}") from error


def _check_finite(name: str, state: Mapping[str, Tensor]) -> None:
    for key, tensor in state.items():
        if not math.isfinite(tensor.abs().max().item()):
            raise CheckpointError(f"{key} in {name!r} holds numbers that are not finite")


def save_checkpoint(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write the state of a run: tensors and plain data only.

    The file of that name becomes `checkpoint.previous.pt` beside it once the new one is
    whole on the disk: at every moment one of the two is whole.

    Raises:
        CheckpointError: If the file cannot be written; the one before it stays.
    """
    path = Path(path)
    content = {"format": _FORMAT, **values}

    def write(partial: Path) -> None:
        # Through Python's own file, whose errors say why a write failed; torch's does not.
        with partial.open("wb") as file:
            torch.save(content, file)

    write_atomically(path, write, previous=path.with_name(PREVIOUS_CHECKPOINT_FILE))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; code in a hostile file is refused, not run.

    Raises:
        CheckpointError: If the file is missing, damaged or of another format.
    """
    return _read_checkpoint(Path(path), mmap=False)


def load_latest(folder: str | Path) -> dict[str, Any]:
    """The checkpoint of a run's folder, or with a warning the one before it.

    Raises:
        CheckpointError: If neither is there and whole.
    """
    return _latest(Path(folder), load_checkpoint)


def _latest(folder: Path, read: Callable[[Path], _Result]) -> _Result:
    try:
        return read(folder / CHECKPOINT_FILE)
    except CheckpointError as error:
        previous = folder / PREVIOUS_CHECKPOINT_FILE
        if not previous.is_file():
            raise
        _log.warning("%s; taking %s, the one before it", error, previous.name)
        return read(previous)


def _read_checkpoint(path: Path, *, mmap: bool) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {str(path)!r}; check the path")
    try:
        _refuse_compressed(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises a dozen types for damaged and hostile files
        raise CheckpointError(
            f"{path.name!r} is not a whole checkpoint written by mae_core.train"
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{path.name!r} is not a checkpoint written by mae_core.train")
    return content


def _refuse_compressed(path: Path) -> None:
    """Torch never compresses; a small file that does may unfold into any amount of memory."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("a checkpoint is not compressed")


def write_atomically(
    path: Path, write: Callable[[Path], object], *, previous: Path | None = None
) -> None:
    """Have `write` fill a temporary file beside `path`, flush it to the disk, and rename it.

    Args:
        path: The file; its rights are those that the umask gives new files.
        write: Called with the temporary file, which is there and empty.
        previous: Where the torch file now at `path` goes, if it is a whole one.

    Raises:
        CheckpointError: If the file cannot be written; `path` is as it was before.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        partial.touch()
        mode = partial.stat().st_mode & 0o777
        write(partial)
        # safetensors makes a file of its own, which only its owner may read.
        partial.chmod(mode)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        # Half a file, as a broken copy leaves it, must not take the place of a whole one.
        if previous is not None and zipfile.is_zipfile(path):
            path.replace(previous)
        partial.replace(path)
    except (OSError, SafetensorError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise CheckpointError(f"could not write {path.name!r}{_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Why a write failed and what to do; torch hides the system's error behind its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return ": the disk is full; free some space and start the same command again"
    return f" ({cause or error}); check the free space and the rights of its folder"
