"""A model's config from the shapes of its tensors, and from hints for what they cannot tell."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mae_core.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from mae_core.errors import CheckpointError, ConfigError
from mae_core.weights.contents import Hints, Kind
from mae_core.weights.files import shown

# Width -> heads, of the sizes that everybody trains.
_KNOWN_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_DECODER_WIDTH, _DECODER_DEPTH, _DECODER_HEADS = 512, 8, 16

# transformers' config field -> ours, where the shapes tell the same.
_HUGGINGFACE_SHAPES = {
    "hidden_size": "embed_dim", "num_hidden_layers": "depth", "patch_size": "patch_size",
    "num_channels": "in_chans",
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

# How far entries of a sin-cos table that encode the same place may lie apart: resampled ones do.
_SAME_PLACE = 1e-3

Told = dict[str, tuple[Any, str]]


@dataclasses.dataclass(frozen=True)
class Beside:
    """What came with the tensors.

    Attributes:
        config: The `config.json` of transformers or timm, empty if there is none.
        preprocessor: Likewise `preprocessor_config.json`.
        options: Those that the official training script, or PyTorch Lightning, saved in the same
            file.
        heads: Width -> heads, where the library that wrote the file has other ones than usual.
    """

    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    options: Mapping[str, Any]
    heads: Mapping[int, int] = dataclasses.field(default_factory=dict)


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
    grid, origin = _grid(name, state, shapes["patch_size"], beside, hints)
    shapes["image_size"] = min(grid) * shapes["patch_size"]
    told = _from_beside(beside, shapes, grid, kind)
    told.update(_from_hints(name, shapes, hints))
    values = {**_assumed(shapes), **told, **{key: (v, "shapes") for key, v in shapes.items()}}
    width = shapes["embed_dim"]
    if width in beside.heads and "num_heads" not in told:
        values["num_heads"] = beside.heads[width], "assumed"
    values["grid"] = (None if grid[0] == grid[1] else grid), origin
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
    hidden, _ = _shape(name, state, "blocks.0.mlp.fc1.weight", 2)
    values: dict[str, Any] = {
        "patch_size": patch, "in_chans": channels,
        "embed_dim": width, "depth": _depth(name, state, "blocks"),
        "mlp_ratio": _ratio(hidden, width), "decoder_mlp_ratio": None,
        "encoder_mask_tokens": "encoder_mask_token" in state, "pca_components": 0,
    }  # fmt: skip
    if kind == "autoencoder":
        decoder_width, _ = _shape(name, state, "decoder_embed.weight", 2)
        values["decoder_embed_dim"] = decoder_width
        values["decoder_depth"] = _depth(name, state, "decoder_blocks")
        hidden, _ = _shape(name, state, "decoder_blocks.0.mlp.fc1.weight", 2)
        if hidden != int(decoder_width * values["mlp_ratio"]):
            values["decoder_mlp_ratio"] = _ratio(hidden, decoder_width)
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


def _grid(
    name: str, state: Mapping[str, Tensor], patch: int, beside: Beside, hints: Hints
) -> tuple[tuple[int, int], str]:
    """The (h, w) grid of the position tables, and where it comes from.

    A sin-cos table tells its own rows and columns; of any other the number of entries tells only
    that it may be square.
    """
    if "cls_token" not in state:
        raise CheckpointError(
            f"{name!r} has no class token (cls_token), and models without one cannot be read; give "
            "weights of the paper's form"
        )
    _, entries, _ = _shape(name, state, "pos_embed", 3)
    patches, table = entries - 1, state["pos_embed"][0, 1:]
    found = _sincos_grid(table)
    if found is None and hints.grid is not None:
        if min(hints.grid) < 1 or math.prod(hints.grid) != patches:
            raise CheckpointError(
                f"grid is given as {_times(hints.grid)} and pos_embed in {name!r} has {patches} "
                f"entries beside the class token's; give h and w with h * w = {patches}"
            )
        return hints.grid, hints.source
    if found is None and (told := _told_grid(beside.config, patch, patches)) is not None:
        return told, "config"
    side = math.isqrt(max(patches, 0))
    if found is None and side > 0 and side * side == patches:
        found = side, side
    if found is None:
        raise CheckpointError(_without_grid(name, state, entries))
    if hints.grid is not None and hints.grid != found:
        raise CheckpointError(
            f"grid is given as {_times(hints.grid)}, and the position table in {name!r} is of "
            f"{_times(found)} patches; leave that option out"
        )
    return found, "shapes"


def _sincos_grid(table: Tensor) -> tuple[int, int] | None:
    """The (h, w) of an (L, D) sin-cos table, one half of which encodes x and the other y.

    None if it is no such table, as a learned one.
    """
    length, half = len(table), table.shape[1] // 2
    # The paper's tables have x first, some libraries' y.
    for x_half, y_half in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        found = []
        for w in (w for w in range(1, length + 1) if length % w == 0):
            cells = table.float().view(length // w, w, -1)
            x, y = cells[..., x_half], cells[..., y_half]
            if max((x - x[:1]).abs().max(), (y - y[:, :1]).abs().max()) < _SAME_PLACE:
                found.append((length // w, w))
        if len(found) == 1:
            return found[0]
    return None


def _told_grid(config: Mapping[str, Any], patch: int, patches: int) -> tuple[int, int] | None:
    """The grid by the `image_size` [H, W] of a config, if there are that many patches."""
    sides = config.get("image_size")
    if not isinstance(sides, list) or len(sides) != 2 or not all(type(s) is int for s in sides):
        return None
    h, w = (side // patch for side in sides)
    return (h, w) if h > 0 and h * w == patches else None


def _without_grid(name: str, state: Mapping[str, Tensor], entries: int) -> str:
    """Why the entries of a position table are those of no grid."""
    if entries > 1 and _sincos_grid(state["pos_embed"][0]):
        return (
            f"pos_embed in {name!r} has {entries} entries, one for each patch and none for a class "
            "token; models without it cannot be read: give weights with 1 + h * w entries, as the "
            "paper's have"
        )
    return (
        f"pos_embed in {name!r} has {entries} entries, which are not one and a square grid; tables "
        "that are not sin-cos and not square cannot be read without their grid, nor those without "
        "an entry for a class token: give the grid, by --grid H W of mae convert or "
        "Hints(grid=(h, w))"
    )


def _times(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]}"


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


def _from_beside(
    beside: Beside, shapes: Mapping[str, Any], grid: tuple[int, int], kind: Kind
) -> Told:
    """What came with the weights tells, after it has been held against the shapes."""
    if is_timm(beside.config):
        return _from_timm(beside.config, shapes)
    told = _from_options(beside.options, shapes)
    told.update(_from_huggingface(beside.config, shapes, grid, kind))
    told.update(_statistics(beside.preprocessor, "image_mean", "image_std"))
    return told


def _from_options(options: Mapping[str, Any], shapes: Mapping[str, Any]) -> Told:
    """What a training script calls as everybody does; what fits no model is another thing's."""
    told: Told = {}
    if isinstance(norm_pix := options.get("norm_pix_loss"), bool):
        told["norm_pix"] = norm_pix, "config"
    for field, of in _HEADS_OF.items():
        heads = options.get(field)
        if type(heads) is int and heads > 0 and of in shapes and shapes[of] % heads == 0:
            told[field] = heads, "config"
    return told


def _from_huggingface(
    config: Mapping[str, Any], shapes: Mapping[str, Any], grid: tuple[int, int], kind: Kind
) -> Told:
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
        ratio = shapes["decoder_mlp_ratio"] or shapes["mlp_ratio"]
        hidden["decoder_intermediate_size"] = int(shapes["decoder_embed_dim"] * ratio)
    for field, found in {**{a: shapes[b] for a, b in fields.items()}, **hidden}.items():
        _check_agrees(config, field, found)
    height, width = (side * shapes["patch_size"] for side in grid)
    if config.get("image_size") != [height, width]:
        _check_agrees(config, "image_size", height if height == width else [height, width])
    told = {}
    for field, ours in _HUGGINGFACE_REST.items():
        if field in config:
            told[ours] = (_checked(field, config[field]), "config")
    return told


def _check_agrees(config: Mapping[str, Any], field: str, found: object) -> None:
    """Hold a number against the shapes; sides may be given as two equal ones."""
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
