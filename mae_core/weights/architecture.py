"""A model's config from the shapes of its tensors, and from hints for what they cannot tell."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from mae_core.config import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from mae_core.errors import CheckpointError, ConfigError
from mae_core.weights.safety import shown

# What a file holds: encoder and decoder; the encoder alone; a fine-tuned classifier.
Kind = Literal["autoencoder", "encoder", "classifier"]

# Field of the config -> its value and where that comes from.
_Facts = dict[str, tuple[Any, str]]

# Width -> heads, of the sizes that everybody trains.
_KNOWN_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
# The published models' decoder.
_DECODER = {"decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16}

# transformers' config field -> ours, where the shapes tell the same, and where they do not.
_HUGGINGFACE_SHAPES = {
    "hidden_size": "embed_dim", "num_hidden_layers": "depth", "patch_size": "patch_size",
    "num_channels": "in_chans", "decoder_hidden_size": "decoder_embed_dim",
    "decoder_num_hidden_layers": "decoder_depth",
}  # fmt: skip
_HUGGINGFACE_REST = {
    "num_attention_heads": "num_heads", "decoder_num_attention_heads": "decoder_num_heads",
    "norm_pix_loss": "norm_pix", "layer_norm_eps": "layer_norm_eps",
}  # fmt: skip
_HUGGINGFACE_FIXED = {"model_type": "vit_mae", "hidden_act": "gelu", "qkv_bias": True}
# Number of heads -> the width that they divide.
_WIDTH_OF = {"num_heads": "embed_dim", "decoder_num_heads": "decoder_embed_dim"}

# How far entries of a sin-cos table that encode the same place may lie apart: resampled ones do.
_SAME_PLACE = 1e-3


@dataclasses.dataclass(frozen=True)
class Hints:
    """What the shapes of a file's tensors cannot tell; None where nothing is known.

    Attributes:
        num_heads: Encoder attention heads.
        decoder_num_heads: Decoder attention heads.
        norm_pix: Whether the target was each patch normalised by itself.
        layer_norm_eps: Epsilon of every LayerNorm.
        source: Where the hints come from: `option` or `registry`.
        grid: (h, w) patches that the position tables are made for, where they are not sin-cos.
    """

    num_heads: int | None = None
    decoder_num_heads: int | None = None
    norm_pix: bool | None = None
    layer_norm_eps: float | None = None
    source: str = "option"
    grid: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """What came with the tensors.

    Attributes:
        config: The `config.json` of transformers or timm, empty if there is none.
        preprocessor: Likewise `preprocessor_config.json`.
        options: Those that the official training script, or PyTorch Lightning, saved in the same
            file.
        heads: Width -> heads, where the library that wrote the file has other ones than usual.
    """

    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocessor: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    heads: Mapping[int, int] = dataclasses.field(default_factory=dict)


def infer_config(
    name: str, state: Mapping[str, Tensor], kind: Kind, sidecar: Sidecar, hints: Hints
) -> tuple[ModelConfig, dict[str, str]]:
    """The config of a model, and for each field where it comes from.

    Hints go before what came with the weights, shapes before everything.

    Raises:
        CheckpointError: If the shapes are those of no masked autoencoder, a `config.json`
            contradicts them or asks for another model, or a hint fits no model of theirs.
    """
    shapes = _from_shapes(name, state, kind)
    grid, origin = _grid(name, state, shapes["patch_size"], sidecar, hints)
    shapes["image_size"] = min(grid) * shapes["patch_size"]
    facts = _assumed(shapes, sidecar.heads)
    if is_timm(sidecar.config):
        facts |= _from_timm(sidecar.config, shapes)
    else:
        facts |= _from_options(sidecar.options, shapes)
        facts |= _from_huggingface(sidecar.config, shapes, grid)
        facts |= _statistics(sidecar.preprocessor, "image_mean", "image_std")
    facts |= _from_hints(name, shapes, hints)
    facts |= {field: (value, "shapes") for field, value in shapes.items()}
    if kind != "autoencoder":
        facts |= {field: (value, "assumed") for field, value in _DECODER.items()}
    facts["grid"] = (None if grid[0] == grid[1] else grid), origin
    try:
        config = ModelConfig(**{field: value for field, (value, _) in facts.items()})
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{name!r} describes no model: {error}") from error
    return config, {field.name: facts[field.name][1] for field in dataclasses.fields(config)}


# --- shapes


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


def _grid(
    name: str, state: Mapping[str, Tensor], patch: int, sidecar: Sidecar, hints: Hints
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
    patches, given = entries - 1, hints.grid
    if (found := _sincos_grid(state["pos_embed"][0, 1:])) is not None:
        if given not in (None, found):
            raise CheckpointError(
                f"grid is given as {given[0]}x{given[1]}, and the position table in {name!r} is of "
                f"{found[0]}x{found[1]} patches; leave that option out"
            )
        return found, "shapes"
    if given is not None:
        if min(given) < 1 or math.prod(given) != patches:
            raise CheckpointError(
                f"grid is given as {given[0]}x{given[1]} and pos_embed in {name!r} has {patches} "
                f"entries beside the class token's; give h and w with h * w = {patches}"
            )
        return given, hints.source
    sides = sidecar.config.get("image_size")
    if isinstance(sides, list) and len(sides) == 2 and all(type(side) is int for side in sides):
        h, w = (side // patch for side in sides)
        if h > 0 and h * w == patches:
            return (h, w), "config"
    side = math.isqrt(max(patches, 0))
    if side > 0 and side * side == patches:
        return (side, side), "shapes"
    why = (
        "are not one and a square grid; tables that are not sin-cos and not square cannot be read "
        "without their grid, nor those without an entry for a class token: give the grid, by "
        "--grid H W of mae convert or Hints(grid=(h, w))"
    )
    if entries > 1 and _sincos_grid(state["pos_embed"][0]):
        why = (
            "are one for each patch and none for a class token; models without it cannot be read: "
            "give weights with 1 + h * w entries, as the paper's have"
        )
    raise CheckpointError(f"pos_embed in {name!r} has {entries} entries, which {why}")


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


# --- what shapes cannot tell


def _assumed(shapes: Mapping[str, Any], unusual_heads: Mapping[int, int]) -> _Facts:
    """What is so in most models; its origin says how sure that is."""
    channels, width = shapes["in_chans"], shapes["embed_dim"]
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels,) * 2
    heads = (width // 64 if width % 64 == 0 else 1), "assumed"
    if width in unusual_heads:
        heads = unusual_heads[width], "assumed"
    elif width in _KNOWN_HEADS:
        heads = _KNOWN_HEADS[width], "known width"
    width, common = shapes.get("decoder_embed_dim", 0), _DECODER["decoder_num_heads"]
    # The official training script has 16 whatever the width.
    decoder_heads = common if width % common == 0 else 1
    is_known = width == _DECODER["decoder_embed_dim"]
    return {
        "num_heads": heads,
        "decoder_num_heads": (decoder_heads, "known width" if is_known else "assumed"),
        "norm_pix": (False, "assumed"), "layer_norm_eps": (1e-6, "assumed"),
        "mean": (mean, "assumed"), "std": (std, "assumed"),
        "bands": ((), "assumed"), "value_range": (None, "assumed"),
    }  # fmt: skip


def _from_hints(name: str, shapes: Mapping[str, Any], hints: Hints) -> _Facts:
    facts: _Facts = {}
    for field in _HUGGINGFACE_REST.values():
        value = getattr(hints, field)
        if value is None:
            continue
        if not 0 < value < math.inf and field != "norm_pix":
            raise CheckpointError(f"{field} is given as {value}; it has to be above 0")
        width = shapes.get(_WIDTH_OF.get(field, ""), 0)
        if width and width % value:
            raise CheckpointError(
                f"{field} is given as {value}, and the width {width} in {name!r} does not divide "
                f"into {value} heads; give a divisor of {width}"
            )
        facts[field] = (value, hints.source)
    return facts


def _from_options(options: Mapping[str, Any], shapes: Mapping[str, Any]) -> _Facts:
    """What a training script calls as everybody does; what fits no model is another thing's."""
    facts: _Facts = {}
    if isinstance(norm_pix := options.get("norm_pix_loss"), bool):
        facts["norm_pix"] = norm_pix, "config"
    for field, width in _WIDTH_OF.items():
        heads = options.get(field)
        if type(heads) is int and heads > 0 and width in shapes and shapes[width] % heads == 0:
            facts[field] = heads, "config"
    return facts


def _from_huggingface(
    config: Mapping[str, Any], shapes: Mapping[str, Any], grid: tuple[int, int]
) -> _Facts:
    """What transformers' `config.json` tells, after it has been held against the shapes."""
    for field, needed in _HUGGINGFACE_FIXED.items():
        if config.get(field, needed) != needed:
            raise CheckpointError(
                f"config.json has {field} {shown(config[field])}; only {shown(needed)} can be "
                "read, as ViTMAE has"
            )
    expected = {
        theirs: shapes[ours] for theirs, ours in _HUGGINGFACE_SHAPES.items() if ours in shapes
    }
    expected["intermediate_size"] = int(shapes["embed_dim"] * shapes["mlp_ratio"])
    if "decoder_embed_dim" in shapes:
        ratio = shapes["decoder_mlp_ratio"] or shapes["mlp_ratio"]
        expected["decoder_intermediate_size"] = int(shapes["decoder_embed_dim"] * ratio)
    height, width = (side * shapes["patch_size"] for side in grid)
    expected["image_size"] = height if height == width else [height, width]
    for field, found in expected.items():
        _check_agrees(config, field, found)
    facts: _Facts = {}
    for field, ours in _HUGGINGFACE_REST.items():
        if field not in config:
            continue
        value, kind = (
            config[field],
            {"norm_pix_loss": bool, "layer_norm_eps": float}.get(field, int),
        )
        is_number = type(value) in (int, float)
        is_of_kind = type(value) is kind or (kind is float and is_number)
        if not is_of_kind or (is_number and not 0 < value < 100_000):
            raise CheckpointError(
                f"config.json has {field} {shown(value)}; {kind.__name__} above 0 is needed"
            )
        facts[ours] = value, "config"
    return facts


def _check_agrees(config: Mapping[str, Any], field: str, found: object) -> None:
    """Hold a number against the shapes; sides may be given as two equal ones."""
    given = config.get(field, found)
    if given != found and given != [found, found]:
        raise CheckpointError(
            f"config.json has {field} {shown(given)} and the weights' shapes {found}; restore the "
            "config.json that came with the weights"
        )


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of timm."""
    return "architecture" in config or "pretrained_cfg" in config


def _from_timm(config: Mapping[str, Any], shapes: Mapping[str, Any]) -> _Facts:
    _check_agrees(config, "num_features", shapes["embed_dim"])
    pretrained = config.get("pretrained_cfg", config)
    return _statistics(pretrained, "mean", "std") if isinstance(pretrained, dict) else {}


def _statistics(values: Mapping[str, Any], mean: str, std: str) -> _Facts:
    facts: _Facts = {}
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
        facts[ours] = tuple(float(number) for number in given), "config"
    return facts
