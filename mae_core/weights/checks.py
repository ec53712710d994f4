"""What holds for the tensors of every format: ordinary, honest, of the right shape, finite."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mae_core.config import ModelConfig
from mae_core.errors import CheckpointError
from mae_core.model.mae import MaskedAutoencoder
from mae_core.weights.contents import Kind
from mae_core.weights.files import shown


def check_tensors(name: str, state: Mapping[Any, Any], size: int) -> None:
    """Refuse what is no ordinary tensor, and tensors that claim more bytes than the file has.

    In a torch file many tensors may share, or repeat, the same few bytes.

    Args:
        name: Of the file, for messages.
        state: Names to what should be tensors.
        size: Bytes of the file.

    Raises:
        CheckpointError: If anything is amiss.
    """
    claimed = 0
    for key, tensor in state.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{name!r} has the name {shown(key)}, which is no text")
        what = _oddity(tensor)
        if what:
            raise CheckpointError(
                f"{shown(key)} in {name!r} is {what} where ordinary floating-point numbers are "
                "needed; save the weights as float32, float16 or bfloat16"
            )
        claimed += tensor.nbytes
    if claimed > size:
        raise CheckpointError(
            f"the tensors in {name!r} claim {claimed:,} bytes, more bytes than the file has "
            f"({size:,}); it is made to harm or damaged: download it again"
        )


def _oddity(tensor: object) -> str:
    if type(tensor) not in (Tensor, torch.nn.Parameter) or not isinstance(tensor, Tensor):
        return f"no tensor but {shown(type(tensor).__name__)}"
    if tensor.layout != torch.strided:
        return "a sparse tensor"
    if tensor.device.type != "cpu":
        return "a tensor without numbers"
    if tensor.is_quantized:
        return "a quantised tensor"
    if not tensor.is_floating_point():
        return f"a tensor of {number_format(tensor)}"
    return ""


def number_format(tensor: Tensor) -> str:
    """Such as `float16`."""
    return str(tensor.dtype).removeprefix("torch.")


def check_shapes(
    name: str, config: ModelConfig, state: Mapping[str, Tensor], kind: Kind = "autoencoder"
) -> None:
    """Compare names and shapes with what a config asks for.

    Raises:
        CheckpointError: If a name is missing or unknown, or a shape is another.
    """
    expected = _expected_shapes(name, config, state, kind)
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{name!r} is not just a whole {kind}: missing {_some(missing)}, unknown "
            f"{_some(unknown)}; give all weights of the model and nothing else"
        )
    for key, tensor in state.items():
        if tensor.shape != expected[key]:
            raise CheckpointError(
                f"{key} in {name!r} has shape {tuple(tensor.shape)}; its config, or its other "
                f"shapes, ask for {tuple(expected[key])}"
            )


def _some(names: list[str]) -> str:
    return f"[{', '.join(shown(name) for name in names[:3])}]" if names else "nothing"


def _expected_shapes(
    name: str, config: ModelConfig, state: Mapping[str, Tensor], kind: Kind
) -> dict[str, torch.Size]:
    """The shapes that a config asks for, without their memory.

    The config may come from anybody: one that asks for more blocks than the file has tensors,
    or for more than can be counted, is refused before it costs anything.
    """
    blocks = config.depth + (config.decoder_depth if kind == "autoencoder" else 0)
    if blocks > len(state):
        raise CheckpointError(
            f"{name!r} does not fit its own config: {len(state)} tensors are too few for "
            f"{config.depth} + {blocks - config.depth} blocks"
        )
    try:
        with torch.device("meta"):
            whole = MaskedAutoencoder(config).state_dict()
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"the config in {name!r} describes no model: {error}") from error
    shapes = {key: tensor.shape for key, tensor in whole.items()}
    return shapes if kind == "autoencoder" else _encoder_shapes(shapes, state, kind)


def _encoder_shapes(
    shapes: dict[str, torch.Size], state: Mapping[str, Tensor], kind: Kind
) -> dict[str, torch.Size]:
    shapes = {
        key: shape
        for key, shape in shapes.items()
        if not key.startswith(("decoder_", "mask_token", "pca_"))
    }
    if kind == "encoder":
        return shapes
    width = shapes["cls_token"][-1]
    # A classifier of averaged tokens has its norm after the average; one of the class token not.
    if "fc_norm.weight" in state:
        for part in ("weight", "bias"):
            shapes[f"fc_norm.{part}"] = shapes.pop(f"norm.{part}")
    head = state.get("head.bias")
    classes = head.shape[0] if head is not None and head.ndim == 1 else 1
    return {
        **shapes,
        "head.weight": torch.Size((classes, width)),
        "head.bias": torch.Size((classes,)),
    }


def as_float32(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in memory, as float32.

    Raises:
        CheckpointError: If one has a number that is not finite.
    """
    copies = {key: t.detach().to(torch.float32, copy=True) for key, t in state.items()}
    for key, tensor in copies.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{key} in {name!r} holds numbers that are not finite; the training it comes from "
                "went wrong or the file is damaged: take an earlier one"
            )
    return copies
