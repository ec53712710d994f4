"""Which format a mapping of tensors is in, by the names in it, and the official names for them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mae_core.checkpoint.contents import Kind
from mae_core.checkpoint.files import shown
from mae_core.checkpoint.names import official_from_huggingface
from mae_core.errors import CheckpointError

# Where training scripts put the weights within what they save.
_WRAPPERS = ("model", "state_dict", "module")
_MAX_WRAPPERS = 5
# What DistributedDataParallel and torch.compile put in front of every name.
_PREFIXES = ("module.", "_orig_mod.")

# What every ViT of the official names has.
_EMBEDDING = "patch_embed.proj.weight"

# What transformers 5.23 calls the decoder's blocks when it saves them: its own change of names
# back to version 4's also meets the end of `decoder_layers`.
_DECODER_LAYERS = {"decoder.decoder_encoder.layer.": "decoder.decoder_layers."}


def unwrap(name: str, content: Mapping[Any, Any]) -> dict[str, Any]:
    """The innermost mapping of names, without wrappers and their prefixes.

    A running average beside the model (`model_ema`) is left alone.

    Args:
        name: Of the file, for messages.
        content: What was in it.

    Raises:
        CheckpointError: If wrappers have no end, a name is no text, or two names become one.
    """
    for _ in range(_MAX_WRAPPERS):
        inner = next(
            (content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None
        )
        if inner is None:
            return _without_prefixes(name, content)
        content = inner
    raise CheckpointError(
        f"{name!r} has wrappers within wrappers without end; save the model's state_dict alone"
    )


def _without_prefixes(name: str, content: Mapping[Any, Any]) -> dict[str, Any]:
    state = {}
    for key, value in content.items():
        if not isinstance(key, str):
            raise CheckpointError(
                f"{name!r} has the name {shown(key)}, which is no text; save the model's "
                "state_dict, whose names are"
            )
        state[_bare(key)] = value
    if len(state) != len(content):
        raise CheckpointError(
            f"{name!r} has tensors of the same name with and without a prefix such as module.; "
            "save one model only"
        )
    return state


def _bare(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.partition(".")[2]
    return key.replace("._orig_mod.", ".")


def check_names(name: str, state: Mapping[str, Any]) -> None:
    """Refuse what is no masked autoencoder, before anything is said of its tensors.

    Args:
        name: Of the file, for messages.
        state: Names to what should be tensors.

    Raises:
        CheckpointError: If the names are those of no format that is known.
    """
    if any(key.startswith("head.0.") for key in state):
        raise CheckpointError(
            f"{name!r} is a linear probe, whose head of several layers cannot be read; give the "
            "weights that it was trained on"
        )
    if _EMBEDDING not in state and not _is_huggingface(state):
        some = ", ".join(shown(key) for key in sorted(state)[:3])
        raise CheckpointError(
            f"{name!r} is no masked autoencoder: none of its {len(state)} names is that of a patch "
            f"embedding ({some or 'it is empty'}); give weights of MAE's ViT, its state_dict alone"
        )


def _is_huggingface(state: Mapping[str, Any]) -> bool:
    return any(key.startswith(("vit.", "embeddings.", "decoder.")) for key in state)


def to_official(name: str, state: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The format, and the tensors by their official names.

    Args:
        name: Of the file, for messages.
        state: Names to tensors that `check_names` has let through.

    Returns:
        `official`, `transformers 4` or `transformers 5`, and the mapping.

    Raises:
        CheckpointError: If names are unknown to transformers' ViTMAE, or missing.
    """
    if not _is_huggingface(state):
        return "official", state
    is_new = any(".q_proj." in key for key in state)
    renamed = {_decoder_layers(key): tensor for key, tensor in state.items()}
    try:
        official = official_from_huggingface(renamed)
    except CheckpointError as error:
        raise CheckpointError(f"{name!r}: {error}") from error
    return ("transformers 5" if is_new else "transformers 4"), official


def _decoder_layers(key: str) -> str:
    for old, new in _DECODER_LAYERS.items():
        if key.startswith(old):
            return new + key[len(old) :]
    return key


def kind_of(state: Mapping[str, Tensor]) -> Kind:
    """What a mapping by official names holds."""
    if "mask_token" in state or any(key.startswith("decoder_") for key in state):
        return "autoencoder"
    if any(key.startswith(("head.", "fc_norm.")) for key in state):
        return "classifier"
    return "encoder"
