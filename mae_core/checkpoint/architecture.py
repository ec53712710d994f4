"""A model's config from the shapes of its tensors, and from hints for what they cannot tell."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mae_core.checkpoint.contents import Hints, Kind
from mae_core.checkpoint.files import shown
from mae_core.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from mae_core.errors import CheckpointError, ConfigError

# Width -> heads, of the sizes that everybody trains.
_KNOWN_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_DECODER_WIDTH, _DECODER_DEPTH, _DECODER_HEADS = 512, 8, 16

# transformers' config field -> ours, where the shapes tell the same.
_HUGGINGFACE_SHAPES = {
    "hidden_size": "embed_dim", "num_hidden_layers": "depth", "image_size": "image_size",
    "patch_size": "patch_size", "num_channels": "in_chans",
}  # fmt: skip
_HUGGINGFACE_DECODER = {
    "decoder_hidden_size": "decoder_embed_dim", "decoder_num_hidden_layers": "decoder_depth",
}  # fmt: skip
# And where they do not.
_HUGGINGFACE_REST = {
    "num_attention_heads": "num_heads", "decoder_num_attention_heads": "decoder_num_heads",
    "norm_pix_loss": "norm_pix", "layer_norm_eps": "layer_norm_eps",
}  # fmt: skip
# Number of heads -> the width that they divide.
_HEADS_OF = {"num_heads": "embed_dim", "decoder_num_heads": "decoder_embed_dim"}
_HUGGINGFACE_FIXED = {"model_type": "vit_mae", "hidden_act": "gelu", "qkv_bias": True}

Told = dict[str, tuple[Any, str]]


@dataclasses.dataclass(frozen=True)
class Beside:
    """What came with the tensors.

    Attributes:
        config: The `config.json` of transformers or timm, empty if there is none.
        preprocessor: Likewise `preprocessor_config.json`.
        options: Those that the official training script saved in the same file.
    """

    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    options: Mapping[str, Any]


def infer_config(
    name: str, state: Mapping[str, Tensor], kind: Kind, beside: Beside, hints: Hints
) -> tuple[ModelConfig, dict[str, str]]:
    """The config of a model, and for each field where it comes from.

    Args:
        name: Of the file, for messages.
        state: Its tensors by official names.
        kind: What they are.
        beside: What came with them.
        hints: Go before everything but the shapes.

    Raises:
        CheckpointError: If the shapes are those of no masked autoencoder, a `config.json`
            contradicts them or asks for another model, or a hint fits no model of theirs.
    """
    shapes = _from_shapes(name, state, kind)
    told = _from_beside(beside, shapes, kind)
    told.update(_from_hints(name, shapes, hints))
    values = {**_assumed(shapes), **told, **{key: (v, "shapes") for key, v in shapes.items()}}
    if kind != "autoencoder":
        values["decoder_embed_dim"] = (_DECODER_WIDTH, "assumed")
        values["decoder_depth"] = (_DECODER_DEPTH, "assumed")
        values["decoder_num_heads"] = (_DECODER_HEADS, "assumed")
    try:
        config = ModelConfig(**{key: value for key, (value, _) in values.items()})
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{name!r} describes no model: {error}") from error
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    return config, {field: values[field][1] for field in fields}


def _from_shapes(name: str, state: Mapping[str, Tensor], kind: Kind) -> dict[str, Any]:
    width, channels, patch, _ = _shape(name, state, "patch_embed.proj.weight", 4)
    _, entries, _ = _shape(name, state, "pos_embed", 3)
    hidden, _ = _shape(name, state, "blocks.0.mlp.fc1.weight", 2)
    values = {
        "image_size": _grid(name, entries) * patch, "patch_size": patch, "in_chans": channels,
        "embed_dim": width, "depth": _depth(name, state, "blocks"),
        "mlp_ratio": _ratio(hidden, width),
        "encoder_mask_tokens": "encoder_mask_token" in state, "pca_components": 0,
    }  # fmt: skip
    if kind == "autoencoder":
        values["decoder_embed_dim"], _ = _shape(name, state, "decoder_embed.weight", 2)
        values["decoder_depth"] = _depth(name, state, "decoder_blocks")
        if "pca_basis" in state:
            _, values["pca_components"] = _shape(name, state, "pca_basis", 2)
    return values


def _shape(name: str, state: Mapping[str, Tensor], key: str, dimensions: int) -> tuple[int, ...]:
    tensor = state.get(key)
    if tensor is None:
        raise CheckpointError(
            f"{name!r} has no {key}, which every masked autoencoder of this form has; give the "
            "whole weights"
        )
    if tensor.ndim != dimensions or 0 in tensor.shape:
        raise CheckpointError(
            f"{key} in {name!r} has shape {tuple(tensor.shape)}; {dimensions} sides above 0 are "
            "needed, as a masked autoencoder has"
        )
    return tuple(tensor.shape)


def _grid(name: str, entries: int) -> int:
    side = math.isqrt(entries - 1)
    if side == 0 or side * side != entries - 1:
        raise CheckpointError(
            f"pos_embed in {name!r} has {entries} entries, which are not one and a square grid; "
            "models with other than one class token, and those for pictures that are not square "
            "cannot be read"
        )
    return side


def _depth(name: str, state: Mapping[str, Tensor], prefix: str) -> int:
    pattern = re.compile(rf"{prefix}\.([0-9]{{1,9}})\.")
    numbers = {int(match[1]) for key in state if (match := pattern.match(key))}
    gap = next(number for number in range(len(numbers) + 1) if number not in numbers)
    if gap < max(len(numbers), 1):
        raise CheckpointError(
            f"{name!r} has nothing of {prefix}.{gap}, though of others; give the whole weights"
        )
    return gap


def _ratio(hidden: int, width: int) -> float:
    """Such that the model's `int(width * ratio)` is the hidden width again."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _from_hints(name: str, shapes: Mapping[str, Any], hints: Hints) -> Told:
    told: Told = {}
    for field in _HUGGINGFACE_REST.values():
        value = getattr(hints, field)
        if value is None:
            continue
        if not 0 < value < math.inf and field != "norm_pix":
            raise CheckpointError(f"{field} is given as {value}; it has to be above 0")
        width = shapes.get(_HEADS_OF.get(field, ""), 0)
        if width and width % value:
            raise CheckpointError(
                f"{field} is given as {value}, and the width {width} in {name!r} does not divide "
                f"into {value} heads; give a divisor of {width}"
            )
        told[field] = (value, hints.source)
    return told


def _assumed(shapes: Mapping[str, Any]) -> Told:
    """What is so in most models; its origin says how sure that is."""
    channels = shapes["in_chans"]
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if channels != 3:
        mean = std = (0.5,) * channels
    return {
        "num_heads": _heads(shapes["embed_dim"]),
        "decoder_num_heads": _decoder_heads(shapes.get("decoder_embed_dim", _DECODER_WIDTH)),
        "norm_pix": (False, "assumed"), "layer_norm_eps": (1e-6, "assumed"),
        "mean": (mean, "assumed"), "std": (std, "assumed"),
        "bands": ((), "assumed"), "value_range": (None, "assumed"),
    }  # fmt: skip


def _heads(width: int) -> tuple[int, str]:
    if width in _KNOWN_HEADS:
        return _KNOWN_HEADS[width], "known width"
    return (width // 64 if width % 64 == 0 else 1), "assumed"


def _decoder_heads(width: int) -> tuple[int, str]:
    if width == _DECODER_WIDTH:
        return _DECODER_HEADS, "known width"
    # The official training script has 16 whatever the width.
    if width % _DECODER_HEADS == 0:
        return _DECODER_HEADS, "assumed"
    return (width // 64 if width % 64 == 0 else 1), "assumed"


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of timm."""
    return "architecture" in config or "pretrained_cfg" in config


def _from_beside(beside: Beside, shapes: Mapping[str, Any], kind: Kind) -> Told:
    """What came with the weights tells, after it has been held against the shapes."""
    if is_timm(beside.config):
        return _from_timm(beside.config, shapes)
    norm_pix = beside.options.get("norm_pix_loss")
    told: Told = {"norm_pix": (norm_pix, "config")} if isinstance(norm_pix, bool) else {}
    told.update(_from_huggingface(beside.config, shapes, kind))
    told.update(_statistics(beside.preprocessor, "image_mean", "image_std"))
    return told


def _from_huggingface(config: Mapping[str, Any], shapes: Mapping[str, Any], kind: Kind) -> Told:
    for field, needed in _HUGGINGFACE_FIXED.items():
        if config.get(field, needed) != needed:
            raise CheckpointError(
                f"config.json has {field} {shown(config[field])}; only {shown(needed)} can be "
                "read, as ViTMAE has"
            )
    fields = dict(_HUGGINGFACE_SHAPES)
    hidden = {"intermediate_size": int(shapes["embed_dim"] * shapes["mlp_ratio"])}
    if kind == "autoencoder":
        fields |= _HUGGINGFACE_DECODER
        hidden["decoder_intermediate_size"] = int(shapes["decoder_embed_dim"] * shapes["mlp_ratio"])
    for field, found in {**{a: shapes[b] for a, b in fields.items()}, **hidden}.items():
        _check_agrees(config, field, found)
    told = {}
    for field, ours in _HUGGINGFACE_REST.items():
        if field in config:
            told[ours] = (_checked(field, config[field]), "config")
    return told


def _check_agrees(config: Mapping[str, Any], field: str, found: int) -> None:
    """Hold a number against the shapes; sides of pictures may be given as two equal ones."""
    given = config.get(field, found)
    if given != found and given != [found, found]:
        raise CheckpointError(
            f"config.json has {field} {shown(given)} and the weights' shapes {found}; restore the "
            "config.json that came with the weights"
        )


def _checked(field: str, value: Any) -> Any:
    """A value of the kind that its field takes."""
    kind = {"norm_pix_loss": bool, "layer_norm_eps": float}.get(field, int)
    is_number = type(value) in (int, float)
    good = type(value) is kind or (kind is float and is_number)
    if not good or (is_number and not 0 < value < 100_000):
        raise CheckpointError(
            f"config.json has {field} {shown(value)}; {kind.__name__} above 0 is needed"
        )
    return value


def _statistics(values: Mapping[str, Any], mean: str, std: str) -> Told:
    told: Told = {}
    for field, ours in ((mean, "mean"), (std, "std")):
        given = values.get(field)
        if given is None:
            continue
        if not isinstance(given, list) or not all(
            type(number) in (int, float) and -1e3 < number < 1e3 for number in given
        ):
            raise CheckpointError(
                f"the JSON beside the weights has {field} {shown(given)}; a list of numbers, one "
                "a channel, is needed"
            )
        told[ours] = (tuple(float(number) for number in given), "config")
    return told


def _from_timm(config: Mapping[str, Any], shapes: Mapping[str, Any]) -> Told:
    _check_agrees(config, "num_features", shapes["embed_dim"])
    pretrained = config.get("pretrained_cfg", config)
    return _statistics(pretrained, "mean", "std") if isinstance(pretrained, dict) else {}
