"""Our own two formats: weights as one safetensors file, and a run's checkpoint as a torch file.

The header of the first carries the model's config and the record of its training as JSON, so
the file explains itself; the second holds both as plain data.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mae_core.config import ModelConfig, from_dict
from mae_core.errors import CheckpointError, ConfigError
from mae_core.weights.checks import as_float32, check_shapes, check_tensors, number_format
from mae_core.weights.contents import Contents, Hints
from mae_core.weights.files import shown
from mae_core.weights.sources import Source

FORMAT = "mae_core-1"
_ANY_VERSION = "mae_core-"


def is_ours(source: Source) -> bool:
    """Whether a file says that it is of this project.

    Raises:
        CheckpointError: If it is, but of a version that cannot be read.
    """
    said = source.header.get("format") or source.content.get("format")
    if said == FORMAT:
        return True
    if isinstance(said, str) and said.startswith(_ANY_VERSION):
        raise CheckpointError(
            f"{source.path.name!r} is of the format {shown(said)} and this program reads {FORMAT}; "
            "use the version of the program that wrote it"
        )
    return False


def read_own(source: Source, hints: Hints) -> Contents:
    """Read weights of `save_weights`, or those of a checkpoint of `save_checkpoint`.

    Args:
        source: The file.
        hints: Not needed, for the file says all of it; options may not contradict it.

    Raises:
        CheckpointError: If the file does not fit its own config, holds numbers that are not
            finite, or says something else than an option.
    """
    name = source.path.name
    if "config" in source.header or source.header.get("format") == FORMAT:
        config, record = _read_header(name, source.header)
        found: Mapping[str, Any] = source.content
        layout = "mae_core"
    else:
        config, record, found = _read_run(name, source.content)
        layout = "mae_core checkpoint"
    _check_options(name, config, hints)
    check_tensors(name, found, source.size)
    check_shapes(name, config, found)
    origins = dict.fromkeys((field.name for field in dataclasses.fields(config)), "config")
    return Contents(
        layout, "autoencoder", config, as_float32(name, found), record, origins,
        number_format(found["cls_token"]), None,
    )  # fmt: skip


def _check_options(name: str, config: ModelConfig, hints: Hints) -> None:
    """Refuse options that would be passed over in silence."""
    for field, given in dataclasses.asdict(hints).items():
        if hints.source != "option" or field == "source" or given is None:
            continue
        said = config.table_grid if field == "grid" else getattr(config, field)
        if given != said:
            raise CheckpointError(
                f"{name!r} says itself that its {field} is {said}, and {given} is given; leave "
                "that option out"
            )


def _read_header(name: str, header: Mapping[str, str]) -> tuple[ModelConfig, dict[str, Any]]:
    try:
        config = _model_config(json.loads(header["config"]))
        record = json.loads(header["record"])
        if not isinstance(record, dict):
            raise TypeError("its record is no JSON object")
    except (KeyError, ValueError, TypeError, RecursionError, ConfigError) as error:
        raise CheckpointError(
            f"the header of {name!r} is damaged: {_brief(error)}; take another copy"
        ) from error
    return config, record


def _brief(error: Exception) -> str:
    """What an error says, of which a file may have written a part."""
    text = str(error)
    return text if len(text) <= 200 else text[:200] + "..."


def _model_config(values: object) -> ModelConfig:
    """A model's config from a file that may hold anything; see `_read_header` for the errors."""
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise TypeError("its config is no mapping of fields")
    try:
        return from_dict(ModelConfig, values)
    except OverflowError as error:
        raise ValueError(f"a number in its config is out of range ({error})") from error


def _read_run(
    name: str, content: Mapping[Any, Any]
) -> tuple[ModelConfig, dict[str, Any], dict[str, Tensor]]:
    try:
        record = _running_record(content)
        config = _model_config(content["config"]["model"])
        return config, record, _averaged_state(content)
    except (KeyError, ValueError, TypeError, ConfigError) as error:
        raise CheckpointError(
            f"the checkpoint {name!r} is damaged: {_brief(error)}; take the one before it"
        ) from error


def _averaged_state(content: Mapping[Any, Any]) -> dict[str, Any]:
    """The parameters as they would be used: the running average where there is one."""
    model, average = content["model"], content.get("ema")
    if average is None:
        average = {}
    if not isinstance(model, dict) or not isinstance(average, dict):
        raise TypeError("its model is no mapping of names to tensors")
    # Of what is not trained there is no average.
    return {**model, **average}


def _running_record(content: Mapping[Any, Any]) -> dict[str, Any]:
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
