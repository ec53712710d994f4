"""A model's config from the shapes of its tensors, and from hints for what they cannot tell."""

import dataclasses
import itertools
import math
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
    grid, origin = _grid(name, state["pos_embed"], shapes["patch_size"], sidecar, hints)
    shapes["image_size"] = min(grid) * shapes["patch_size"]
    facts = _assumed(shapes, sidecar.heads)
    statistics, keys = sidecar.preprocessor, ("image_mean", "image_std")
    if is_timm(sidecar.config):
        _check_agrees(sidecar.config, {"num_features": shapes["embed_dim"]})
        facts |= _from_options(_timm_arguments(sidecar.config), shapes)
        statistics, keys = sidecar.config.get("pretrained_cfg", sidecar.config), ("mean", "std")
    else:
        facts |= _from_options(sidecar.options, shapes)
        facts |= _from_huggingface(sidecar.config, shapes, grid)
    for field, key in zip(("mean", "std"), keys, strict=True):
        if isinstance(statistics, dict) and statistics.get(key) is not None:
            facts[field] = statistics[key], "config"
    for field in _HUGGINGFACE_REST.values():
        if getattr(hints, field) is not None:
            facts[field] = getattr(hints, field), hints.source
    facts |= {field: (value, "shapes") for field, value in shapes.items()}
    if kind != "autoencoder":
        facts |= {field: (value, "assumed") for field, value in _DECODER.items()}
    facts["grid"] = (None if grid[0] == grid[1] else grid), origin
    try:
        config = ModelConfig(**{field: value for field, (value, _) in facts.items()})
    except ConfigError as error:
        raise CheckpointError(f"{name!r} describes no model: {error}") from error
    return config, {field.name: facts[field.name][1] for field in dataclasses.fields(config)}


def _from_shapes(name: str, state: Mapping[str, Tensor], kind: Kind) -> dict[str, Any]:
    def shape(key: str, dimensions: int) -> tuple[int, ...]:
        tensor = state.get(key)
        if tensor is None or tensor.ndim != dimensions or 0 in tensor.shape:
            found = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
            raise CheckpointError(
                f"{key} {found} in {name!r}; every masked autoencoder of this form has it, with "
                f"{dimensions} sides above 0: give the whole weights"
            )
        return tuple(tensor.shape)

    def depth(blocks: str) -> int:
        return next(i for i in itertools.count() if f"{blocks}.{i}.norm1.weight" not in state)

    width, channels, patch, _ = shape("patch_embed.proj.weight", 4)
    hidden, _ = shape("blocks.0.mlp.fc1.weight", 2)
    shape("cls_token", 3)
    shape("pos_embed", 3)
    values: dict[str, Any] = {
        "patch_size": patch, "in_chans": channels, "embed_dim": width, "depth": depth("blocks"),
        "mlp_ratio": _ratio(hidden, width), "decoder_mlp_ratio": None,
        "encoder_mask_tokens": "encoder_mask_token" in state, "pca_components": 0,
    }  # fmt: skip
    if kind == "autoencoder":
        width, _ = shape("decoder_embed.weight", 2)
        values |= {"decoder_embed_dim": width, "decoder_depth": depth("decoder_blocks")}
        hidden, _ = shape("decoder_blocks.0.mlp.fc1.weight", 2)
        if hidden != int(width * values["mlp_ratio"]):
            values["decoder_mlp_ratio"] = _ratio(hidden, width)
        if "pca_basis" in state:
            _, values["pca_components"] = shape("pca_basis", 2)
    return values


def _ratio(hidden: int, width: int) -> float:
    """Such that the model's `int(width * ratio)` is the hidden width again."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _grid(
    name: str, table: Tensor, patch: int, sidecar: Sidecar, hints: Hints
) -> tuple[tuple[int, int], str]:
    """The (h, w) grid of the position tables, and where it comes from.

    A sin-cos table tells its own rows and columns; of any other the number of entries tells only
    that it may be square.
    """
    patches, given, found = table.shape[1] - 1, hints.grid, sincos_grid(table[0, 1:])
    if given is not None and (given != (found or given) or math.prod(given) != patches):
        raise CheckpointError(
            f"grid is given as {given[0]}x{given[1]}, and pos_embed in {name!r} has {patches} "
            f"entries beside the class token's{f', in {found[0]}x{found[1]}' if found else ''}; "
            "give another grid or none"
        )
    if found is not None:
        return found, "shapes"
    if given is not None:
        return given, hints.source
    sides = sidecar.config.get("image_size", _timm_arguments(sidecar.config).get("img_size"))
    if isinstance(sides, list) and len(sides) == 2 and all(type(side) is int for side in sides):
        h, w = (side // patch for side in sides)
        if h > 0 and h * w == patches:
            return (h, w), "config"
    side = math.isqrt(patches)
    if side == 0 or side * side != patches:
        raise CheckpointError(
            f"pos_embed in {name!r} has {patches + 1} entries, which are not one for a class token "
            "and a square grid; give the grid, by --grid H W of mae convert or Hints(grid=(h, w))"
        )
    return (side, side), "shapes"


def sincos_grid(table: Tensor) -> tuple[int, int] | None:
    """The (h, w) of an (L, D) sin-cos table, whose halves encode x and y; None of another one."""
    found, (length, width) = [], table.shape
    for w in (w for w in range(1, length + 1) if length % w == 0 and width % 2 == 0):
        x, y = table.float().view(length // w, w, width).chunk(2, dim=-1)
        if max((x - x[:1]).abs().max(), (y - y[:, :1]).abs().max()) < _SAME_PLACE:
            found.append((length // w, w))
    return found[0] if len(found) == 1 else None


def _assumed(shapes: Mapping[str, Any], unusual_heads: Mapping[int, int]) -> _Facts:
    """What is so in most models; its origin says how sure that is."""
    channels, width = shapes["in_chans"], shapes["embed_dim"]
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels,) * 2
    if width in unusual_heads:
        heads = unusual_heads[width], "assumed"
    elif width in _KNOWN_HEADS:
        heads = _KNOWN_HEADS[width], "known width"
    else:
        heads = (width // 64 if width % 64 == 0 else 1), "assumed"
    width, common = shapes.get("decoder_embed_dim", 0), _DECODER["decoder_num_heads"]
    is_known = width == _DECODER["decoder_embed_dim"]
    return {
        "num_heads": heads,
        # The official training script has 16 whatever the width.
        "decoder_num_heads": (
            common if width % common == 0 else 1, "known width" if is_known else "assumed"
        ),
        "norm_pix": (False, "assumed"), "layer_norm_eps": (1e-6, "assumed"),
        "mean": (mean, "assumed"), "std": (std, "assumed"),
        "bands": ((), "assumed"), "value_range": (None, "assumed"),
    }  # fmt: skip


def _from_options(options: Mapping[str, Any], shapes: Mapping[str, Any]) -> _Facts:
    """What a training script calls as everybody does; what fits no model is another thing's."""
    facts: _Facts = {}
    if isinstance(norm_pix := options.get("norm_pix_loss"), bool):
        facts["norm_pix"] = norm_pix, "config"
    for field, width in (("num_heads", "embed_dim"), ("decoder_num_heads", "decoder_embed_dim")):
        heads = options.get(field)
        if type(heads) is int and heads > 0 and width in shapes and shapes[width] % heads == 0:
            facts[field] = heads, "config"
    return facts


def _from_huggingface(
    config: Mapping[str, Any], shapes: Mapping[str, Any], grid: tuple[int, int]
) -> _Facts:
    """What transformers' `config.json` tells, after it has been held against the shapes."""
    expected = {
        theirs: shapes[ours] for theirs, ours in _HUGGINGFACE_SHAPES.items() if ours in shapes
    }
    expected["intermediate_size"] = int(shapes["embed_dim"] * shapes["mlp_ratio"])
    if "decoder_embed_dim" in shapes:
        ratio = shapes["decoder_mlp_ratio"] or shapes["mlp_ratio"]
        expected["decoder_intermediate_size"] = int(shapes["decoder_embed_dim"] * ratio)
    height, width = (side * shapes["patch_size"] for side in grid)
    expected["image_size"] = height if height == width else [height, width]
    _check_agrees(config, _HUGGINGFACE_FIXED | expected)
    known = {ours: config[theirs] for theirs, ours in _HUGGINGFACE_REST.items() if theirs in config}
    return {field: (value, "config") for field, value in known.items()}


def _check_agrees(config: Mapping[str, Any], expected: Mapping[str, object]) -> None:
    """Hold a `config.json` against what the weights are; sides may be two equal ones."""
    for field, found in expected.items():
        given = config.get(field, found)
        if given not in (found, [found, found]):
            raise CheckpointError(
                f"config.json has {field} {shown(given)} where {shown(found)} fits the weights "
                "and ViTMAE; restore the config.json that came with the weights"
            )


def _timm_arguments(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Those of `timm.create_model` in timm's `config.json`."""
    arguments = config.get("model_args")
    return arguments if isinstance(arguments, dict) else {}


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of timm."""
    return "architecture" in config or "pretrained_cfg" in config
