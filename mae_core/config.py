"""What a model is made of, as plain frozen data.

`ModelConfig` describes a masked autoencoder; `PRESETS` names five of them. Any config
goes to and from JSON (`to_dict`, `from_dict`) and takes `field.path=value` changes from a
command line (`with_overrides`).
"""

import contextlib
import dataclasses
import json
import math
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mae_core.errors import ConfigError
from mae_core.value_range import as_value_range

# What the official models were trained with, and ours: ImageNet's channel statistics.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Fields of a model that count something.
_COUNTS = (
    "image_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads",
    "decoder_embed_dim", "decoder_depth", "decoder_num_heads",
)  # fmt: skip

# Fields that `to_dict` leaves out where they are None or empty, so that a model that does not need
# them is described as it was before there were any.
_OPTIONAL = ("decoder_mlp_ratio", "grid", "bands", "value_range")


def _convert_numbers(config: Any) -> None:
    """Make Python's own numbers of numpy's, which JSON and torch do not take."""
    for item in dataclasses.fields(config):
        object.__setattr__(config, item.name, _plain_number(getattr(config, item.name)))


def _plain_number(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_plain_number(item) for item in value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, int) else value


@dataclass(frozen=True)
class ModelConfig:
    """A masked autoencoder's shape (He et al. 2022, section 3 and A.1).

    Attributes:
        image_size: Side in pixels of the square grid that the position tables are made for, or
            the shorter side of `grid`; other sizes resample them.
        patch_size: Side of a patch in pixels; divides `image_size`.
        in_chans: Channels of an image.
        embed_dim: Encoder width D; a multiple of 4 and of `num_heads`.
        depth: Encoder blocks.
        num_heads: Encoder attention heads.
        decoder_embed_dim: Decoder width E; a multiple of 4 and of `decoder_num_heads`.
        decoder_depth: Decoder blocks.
        decoder_num_heads: Decoder attention heads.
        mlp_ratio: Hidden width of a block's MLP over its width.
        decoder_mlp_ratio: The same of the decoder; None is the encoder's.
        norm_pix: Whether the target is each patch normalised by its own mean and deviation.
        pca_components: Where above 0, the target is this many leading principal components of
            a patch instead of its pixels (He et al. 2022, table 1d); not with `norm_pix`.
        encoder_mask_tokens: Whether the encoder sees a mask token in place of each removed
            patch, instead of the visible patches only (He et al. 2022, table 1c).
        layer_norm_eps: Epsilon of every LayerNorm.
        mean: Channel means that images are normalised with, in 0..1. ImageNet's for three
            channels; for others 0.5, and training measures them, unless they are given.
        std: Channel deviations that images are normalised with, in 0..1; likewise.
        bands: Which bands of a picture the channels are, numbered from 1; all if empty.
        value_range: The values, of pictures of more than 8 bits, that become 0 and 1: one pair, or
            one a channel. None for photographs.
        grid: (h, w) patches that the position tables are made for; None is the square one.
    """

    image_size: int = 224
    patch_size: int = 16
    in_chans: int = 3
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    decoder_embed_dim: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    mlp_ratio: float = 4.0
    decoder_mlp_ratio: float | None = None
    norm_pix: bool = False
    pca_components: int = 0
    encoder_mask_tokens: bool = False
    layer_norm_eps: float = 1e-6
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    bands: tuple[int, ...] = ()
    value_range: tuple[tuple[float, float], ...] | None = None
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _convert_numbers(self)
        if self.in_chans != 3 and (self.mean, self.std) == (IMAGENET_MEAN, IMAGENET_STD):
            for name in ("mean", "std"):
                object.__setattr__(self, name, (0.5,) * self.in_chans)
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.pca_components <= self.patch_dim:
            raise ConfigError(
                f"pca_components is {self.pca_components}; a patch has {self.patch_dim} values, "
                "so give 0 to that many"
            )
        if self.pca_components and self.norm_pix:
            raise ConfigError("the target is norm_pix or pca_components, not both")
        if not (0 < self.mlp_ratio < math.inf and 0 < self.layer_norm_eps < math.inf):
            raise ConfigError("mlp_ratio and layer_norm_eps must be numbers above 0")
        if not 0 < self.mlp_ratios[1] < math.inf:
            raise ConfigError("decoder_mlp_ratio must be a number above 0, or null")
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.grid is not None and min(self.grid) * self.patch_size != self.image_size:
            raise ConfigError(
                f"grid is {list(self.grid)} patches of {self.patch_size} pixels; image_size has to "
                f"be its shorter side, and is {self.image_size}: change both, or give grid=null"
            )
        _check_width("embed_dim", self.embed_dim, self.num_heads)
        _check_width("decoder_embed_dim", self.decoder_embed_dim, self.decoder_num_heads)
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.in_chans:
                raise ConfigError(
                    f"{name} has {len(getattr(self, name))} values for in_chans={self.in_chans}; "
                    "give one value a channel"
                )
        if not all(0 < value < math.inf for value in self.std):
            raise ConfigError(f"std is {self.std}; each value must be a number above 0")
        _check_bands("bands", self.bands, self.in_chans)
        if self.value_range is not None:
            as_value_range(self.value_range)
            if len(self.value_range) not in (1, self.in_chans):
                raise ConfigError(
                    f"value_range has {len(self.value_range)} pairs for in_chans={self.in_chans}; "
                    "give one, or one a channel"
                )

    @property
    def grid_size(self) -> int:
        """Patches along one side of a square picture of `image_size`."""
        return self.image_size // self.patch_size

    @property
    def table_grid(self) -> tuple[int, int]:
        """(h, w) patches that the position tables are made for."""
        return self.grid or (self.grid_size, self.grid_size)

    @property
    def mlp_ratios(self) -> tuple[float, float]:
        """Of the encoder and of the decoder."""
        decoder = self.decoder_mlp_ratio
        return self.mlp_ratio, self.mlp_ratio if decoder is None else decoder

    @property
    def patch_dim(self) -> int:
        """P: values in one patch."""
        return self.patch_size**2 * self.in_chans

    @property
    def target_dim(self) -> int:
        """Values that the decoder predicts for a patch: P, or the principal components."""
        return self.pca_components or self.patch_dim


def _check_bands(name: str, bands: tuple[int, ...], channels: int) -> None:
    if bands and (len(bands) not in (1, channels) or min(bands) < 1):
        raise ConfigError(
            f"{name} is {list(bands)} and in_chans is {channels}; give that many numbers from 1"
        )


def _check_width(name: str, width: int, heads: int) -> None:
    if width % heads:
        raise ConfigError(f"{name} {width} does not divide into {heads} heads; pick a multiple")
    if width % 4:
        raise ConfigError(f"{name} {width} is not a multiple of 4, as sin-cos positions need")


PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(embed_dim=192, num_heads=3, decoder_embed_dim=160, decoder_depth=4,
                        decoder_num_heads=5),
    "small": ModelConfig(embed_dim=384, num_heads=6, decoder_embed_dim=256, decoder_depth=4,
                         decoder_num_heads=8),
    "base": ModelConfig(),
    "large": ModelConfig(embed_dim=1024, depth=24, num_heads=16),
    "huge": ModelConfig(patch_size=14, embed_dim=1280, depth=32, num_heads=16),
}  # fmt: skip


def preset(name: str) -> ModelConfig:
    """The named model.

    Raises:
        ConfigError: If no preset has that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset is called {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """A frozen dataclass as plain data, ready for JSON."""

    def set_fields(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {
            name: value for name, value in items if value not in (None, ()) or name not in _OPTIONAL
        }

    return dataclasses.asdict(config, dict_factory=set_fields)


def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a frozen dataclass from plain data, as `to_dict` wrote it.

    Raises:
        ConfigError: If a field is unknown or a value has the wrong type.
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(
            f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(hints)}"
        )
    return cls(**{name: _coerce(hints[name], value, name) for name, value in values.items()})


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Change fields of a config by `field.path=value` texts.

    A value is read as JSON, or as it stands where it is no JSON or the field takes text. Lists
    need no brackets, one number where two are needed is both of them, and a whole number may
    be written as 1e5. The config is checked once all changes are made, so fields that hang
    together may be given in any order.

    Raises:
        ConfigError: If a text has no `=`, a field is unknown, a value has the wrong type or
            the changed fields do not go together.
    """
    values = to_dict(config)
    given = {text.partition("=")[0] for text in overrides}
    if isinstance(config, TrainConfig):
        aside = [
            other for name, other in _OVERRIDES_OF_FIELDS if name in given and other not in given
        ]
        overrides = [*overrides, *(f"{other}=0" for other in aside)]
    for text in overrides:
        path, separator, value = text.partition("=")
        if not separator or not path:
            raise ConfigError(f"{text!r} is not of the form field=value, such as epochs=20")
        _set_at(values, type(config), path.split("."), value, path)
    return from_dict(type(config), values)


# What counts only where the other is 0, and the other.
_OVERRIDES_OF_FIELDS = (
    ("steps", "epochs"),
    ("optim.warmup_steps", "optim.warmup_epochs"),
    ("optim.base_lr", "optim.lr"),
)


def _set_at(values: dict[str, Any], cls: type, path: list[str], text: str, full_path: str) -> None:
    """Change the entry of `values`, the plain data of a `cls`, that the path leads to."""
    hints = typing.get_type_hints(cls)
    name, rest = path[0], path[1:]
    if name not in hints:
        raise ConfigError(f"no field is called {full_path!r}; here it may be {', '.join(hints)}")
    hint = hints[name]
    if not rest:
        values[name] = _plain(_coerce(hint, _read_value(hint, text), full_path))
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        _set_at(values[name], hint, rest, text, full_path)
    else:
        raise ConfigError(f"{full_path!r}: {name} has no fields of its own")


def _plain(value: Any) -> Any:
    return to_dict(value) if dataclasses.is_dataclass(value) else value


def _read_value(hint: Any, text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        value = {"True": True, "False": False, "None": None}.get(text, text)
    if typing.get_origin(hint) is tuple:
        value = _read_list(hint, text, value)
    # A folder called 007 or 1e3 is a name, not a number.
    return text if hint is str and not isinstance(value, str) else value


def _read_list(hint: Any, text: str, value: Any) -> Any:
    """A list without its brackets, or one number for all of as many as are needed."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return json.loads(f"[{text}]")
    numbers_needed = typing.get_args(hint)
    if isinstance(value, int | float) and not dataclasses.is_dataclass(numbers_needed[0]):
        return [value] * (1 if Ellipsis in numbers_needed else len(numbers_needed))
    return value


def _coerce(hint: Any, value: Any, name: str) -> Any:
    """`value` as the annotated type, or a ConfigError that says what the field takes."""
    value = _plain_number(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return from_dict(hint, value)
    elif origin is tuple:
        return _coerce_tuple(hint, value, name)
    elif origin is types.UnionType:
        return _coerce_union(hint, value, name)
    elif origin is typing.Literal:
        if value in typing.get_args(hint):
            return value
        raise ConfigError(f"{name}={value!r}: choose one of {', '.join(typing.get_args(hint))}")
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
        raise ConfigError(f"{name}={value!r}: a finite number is needed")
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{name}={value!r}: {getattr(hint, '__name__', hint)} is needed")


def _coerce_tuple(hint: Any, value: Any, name: str) -> tuple[Any, ...]:
    args = typing.get_args(hint)
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{name}={value!r}: a list such as [1, 2] is needed")
    if args[-1] is Ellipsis:
        return tuple(_coerce(args[0], item, name) for item in value)
    if len(value) != len(args):
        raise ConfigError(f"{name}={value!r}: {len(args)} values are needed")
    return tuple(_coerce(arg, item, name) for arg, item in zip(args, value, strict=True))


def _coerce_union(hint: Any, value: Any, name: str) -> Any:
    for option in typing.get_args(hint):
        if option is type(None):
            if value is None:
                return None
            continue
        try:
            return _coerce(option, value, name)
        except ConfigError:
            continue
    raise ConfigError(f"{name}={value!r}: {hint} is needed")


# The fields of `DataConfig` that may name where training pictures come from.
SOURCES = ("folder", "pack", "hub", "shards")


def _check_range(name: str, pair: tuple[float, float], least: float, most: float) -> None:
    low, high = pair
    if not least < low <= high <= most:
        raise ConfigError(
            f"{name} is {list(pair)}; give two numbers, smaller first, above {least:g} and at "
            f"most {most:g}"
        )


@dataclass(frozen=True)
class DataConfig:
    """Where pictures come from and how they are cropped.

    One of `folder`, `pack`, `hub` and `shards` names the source.

    Attributes:
        folder: Folder of training pictures, searched through all its subfolders; links are
            followed, hidden files and folders are not looked into.
        pack: Pack of pictures, as `mae pack` makes it.
        hub: Name of a Hugging Face data set, streamed; needs the `datasets` package.
        shards: WebDataset tar files, streamed: a path or address with `{000..099}` for many;
            needs the `datasets` package.
        split: Part of the `hub` data set.
        column: Where the pictures are in the `hub` data set.
        holdout: Folder of pictures to measure on and never train on; none if empty. It may lie
            inside `folder`, or link to its files.
        cache: Folder for the packed pictures; inside the run's folder if empty.
        decode: A folder's pictures are decoded `once` into a pack, or in each `epoch`, which
            needs no space on the disk but more of the processor.
        bands: Which bands of the pictures are the model's channels, numbered from 1; all if empty.
        range: The values, of pictures of more than 8 bits, that become black and white: `auto` for
            the percentiles of the data set, or the full range of its number format if more than
            half of that is used (see `find_value_range`); `dtype` for the full range; or
            `LOW,HIGH`.
        short_side: Pictures are kept with their shorter side at most this many pixels; 0 for as
            they are.
        max_unreadable: Largest share of unreadable files, 0..1; above it the run stops.
        crop: `random` is RandomResizedCrop; `fixed` a window of seven eighths of the picture's
            shorter side at a random place; `centre` the same square every time (He et al.
            2022, table 1e).
        crop_area: Smallest and largest share of the picture's area in a `random` crop.
        crop_aspect: Smallest and largest width over height of a `random` crop.
        flip: Whether half of the crops are mirrored.
        color_jitter: Brightness, contrast and saturation are each multiplied by a factor drawn
            from 1 - this to 1 + this; 0..1.
        workers: Threads that decode and crop.
        resident: Whether a pack is copied to the GPU as a whole and cropped there, if it takes
            at most half of the memory that is free when the run starts.
    """

    folder: str = ""
    pack: str = ""
    hub: str = ""
    shards: str = ""
    split: str = "train"
    column: str = "image"
    holdout: str = ""
    cache: str = ""
    decode: typing.Literal["once", "epoch"] = "once"
    bands: tuple[int, ...] = ()
    range: str = "auto"
    short_side: int = 256
    max_unreadable: float = 0.05
    crop: typing.Literal["random", "fixed", "centre"] = "random"
    crop_area: tuple[float, float] = (0.2, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    color_jitter: float = 0.0
    workers: int = 4
    resident: bool = False

    def __post_init__(self) -> None:
        _convert_numbers(self)
        named = [name for name in SOURCES if getattr(self, name)]
        if len(named) > 1:
            raise ConfigError(f"data.{' and data.'.join(named)} are given; give one source")
        as_value_range(self.range)
        _check_range("data.crop_area", self.crop_area, 0.0, 1.0)
        _check_range("data.crop_aspect", self.crop_aspect, 0.0, float("inf"))
        if self.short_side != 0 and self.short_side < 16:
            raise ConfigError(
                f"data.short_side is {self.short_side}; give at least 16 pixels, or 0 to keep "
                "pictures as they are"
            )
        if not 0 <= self.max_unreadable <= 1:
            raise ConfigError(f"data.max_unreadable is {self.max_unreadable}; give 0 to 1")
        if not 0 <= self.color_jitter <= 1:
            raise ConfigError(f"data.color_jitter is {self.color_jitter}; give 0 to 1")
        if self.workers < 1:
            raise ConfigError(f"data.workers is {self.workers}; give at least 1")


@dataclass(frozen=True)
class MaskConfig:
    """How masks are drawn, once for each step's batch.

    Attributes:
        ratio: Smallest and largest mask ratio; one is drawn uniformly for each step.
        random: Share of steps with random masks.
        block: Share of steps with block-wise masks.
        grid: Share of steps with grid masks. The three shares add up to 1.
    """

    ratio: tuple[float, float] = (0.75, 0.75)
    random: float = 1.0
    block: float = 0.0
    grid: float = 0.0

    def __post_init__(self) -> None:
        _convert_numbers(self)
        _check_range("mask.ratio", self.ratio, 0.0, 1.0)
        shares = (self.random, self.block, self.grid)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(f"mask.random, block and grid are {shares}; they must add up to 1")


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its schedule (He et al. 2022, A.1).

    Attributes:
        name: `adamw`, or `muon` for the blocks' matrices with AdamW for the rest.
        lr: Peak learning rate, as is. Where it is 0, the peak is base_lr * batch_size / 256;
            `base_lr=` on a command line puts the `lr` of a recipe aside.
        base_lr: Peak learning rate of a batch of 256; not looked at where `lr` is above 0.
        weight_decay: Of all parameters but biases and norms.
        betas: AdamW's.
        warmup_steps: Steps of linear warm-up from 0.
        warmup_epochs: The same in epochs; takes the place of `warmup_steps` where above 0.
        final_lr: Learning rate the cosine ends at.
        clip_grad: Largest norm of the whole gradient; 0 for no clipping.
    """

    name: typing.Literal["adamw", "muon"] = "adamw"
    lr: float = 0.0
    base_lr: float = 1.5e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 300
    warmup_epochs: float = 0.0
    final_lr: float = 0.0
    clip_grad: float = 1.0

    def __post_init__(self) -> None:
        _convert_numbers(self)
        if not self.lr and not self.base_lr:
            raise ConfigError("optim.lr and optim.base_lr are both 0; give one of them")
        for name in (
            "lr", "base_lr", "weight_decay", "final_lr", "clip_grad", "warmup_steps",
            "warmup_epochs",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; give 0 or more")


@dataclass(frozen=True)
class StageConfig:
    """A part of the run at one picture size; small pictures first, as few tokens are cheap.

    Attributes:
        image_size: Side of the crops in pixels; a multiple of the patch side.
        share: Share of all steps; the shares of a run add up to 1.
    """

    image_size: int = 224
    share: float = 1.0

    def __post_init__(self) -> None:
        _convert_numbers(self)


@dataclass(frozen=True)
class SystemConfig:
    """How the machine does the work; nothing here changes what is computed, beyond rounding.

    Attributes:
        precision: Of the forward pass; weights stay float32. `auto` is bfloat16, or float16
            with a loss scaler on GPUs that have no bfloat16.
        accumulate: Micro-batches that a process adds up for each step; more need less memory.
        checkpoint_activations: Whether the backward pass recomputes each block, for less memory.
        compile: Whether blocks are compiled (torch.compile), which takes a minute at the start.
    """

    precision: typing.Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    accumulate: int = 1
    checkpoint_activations: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        _convert_numbers(self)
        if self.accumulate < 1:
            raise ConfigError(f"system.accumulate is {self.accumulate}; give at least 1")


@dataclass(frozen=True)
class RecoveryConfig:
    """What happens when the loss jumps or stops being a number.

    Attributes:
        max_rollbacks: Times that a run goes back to its last checkpoint before it gives up.
        lr_factor: The learning rate is multiplied by this at each of them, 0..1.
        spike: The loss of a few steps counts as a jump above this many times its running
            average; 0 to notice only numbers that are not finite.
    """

    max_rollbacks: int = 3
    lr_factor: float = 0.5
    spike: float = 4.0

    def __post_init__(self) -> None:
        _convert_numbers(self)
        if self.max_rollbacks < 0 or not 0 < self.lr_factor <= 1:
            raise ConfigError("recovery: max_rollbacks is 0 or more, lr_factor above 0 up to 1")
        if self.spike != 0 and self.spike <= 1:
            raise ConfigError(f"recovery.spike is {self.spike}; give 0, or a number above 1")


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run.

    Attributes:
        model: The model.
        data: The pictures.
        mask: The masks.
        optim: The optimiser.
        system: How the machine does the work.
        recovery: What happens when the loss jumps.
        stages: Picture sizes in turn.
        out: Folder of the run: checkpoint, weights, metrics and images.
        resume: Checkpoint, or folder of a run, to go on from where `out` holds none.
        init_from: Weights to begin with, where there is nothing to go on from: a name, a file or
            a folder of any published format, a run, or USER/NAME on the Hugging Face hub.
        steps: Optimiser steps in all.
        epochs: The same as passes over all pictures; takes the place of `steps` where above 0.
        batch_size: Pictures in a step, over all processes.
        loss: `mse` is the paper's; `log_mse` the mean over images of the logarithm of each
            one's error, so that plain pictures count as much as busy ones, as in a mean PSNR.
        visible_weight: Weight of the loss on visible patches; the paper's is 0, which leaves
            them speckled in the reconstruction.
        ema: Decay for each step of a running average of the parameters, 0..1, which is what is
            measured and written; 0 for none. After t steps it is (1 + t) / (10 + t) at most, so
            that nothing is left of a random start.
        export_dtype: Number format of the weights written at the end.
        seed: Of the initial weights, the order, the crops and the masks.
        eval_every: Steps between hold-out measurements.
        save_every: Steps between checkpoints.
        writers: Where metrics go beside `metrics.jsonl`: `tensorboard`, `wandb` or both. Each
            needs the package of that name.
    """

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    mask: MaskConfig = MaskConfig()
    optim: OptimConfig = OptimConfig()
    system: SystemConfig = SystemConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    out: str = "runs/mae"
    resume: str = ""
    init_from: str = ""
    steps: int = 1000
    epochs: float = 0.0
    batch_size: int = 64
    loss: typing.Literal["mse", "log_mse"] = "mse"
    visible_weight: float = 0.0
    ema: float = 0.0
    export_dtype: typing.Literal["float32", "float16"] = "float32"
    seed: int = 0
    eval_every: int = 500
    save_every: int = 250
    writers: tuple[typing.Literal["tensorboard", "wandb"], ...] = ()

    def __post_init__(self) -> None:
        _convert_numbers(self)
        for name in ("steps", "batch_size", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if min(self.visible_weight, self.seed, self.epochs) < 0:
            raise ConfigError("visible_weight, seed and epochs must be 0 or more")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema is {self.ema}; give 0, or a decay below 1 such as 0.999")
        if self.data.color_jitter and self.model.in_chans != 3:
            raise ConfigError(
                f"data.color_jitter is of colours and model.in_chans is {self.model.in_chans}; set "
                "data.color_jitter=0"
            )
        if abs(sum(stage.share for stage in self.stages) - 1) > 1e-6:
            raise ConfigError("the stages' shares must add up to 1")
        for stage in self.stages:
            if stage.image_size < 1 or stage.image_size % self.model.patch_size:
                raise ConfigError(
                    f"a stage's image_size {stage.image_size} is not a multiple of the patch "
                    f"side {self.model.patch_size}"
                )
            if stage.image_size == self.model.patch_size:
                raise ConfigError(
                    f"a stage's image_size {stage.image_size} is a single patch, of which none "
                    "can be removed; give at least two patches a side"
                )


def declared_facts(config: TrainConfig) -> TrainConfig:
    """The run with a model of the bands and the value range that `config.data` declares."""
    model, spec = config.model, as_value_range(config.data.range)
    bands = config.data.bands or model.bands
    # `dtype` is asked of the pictures again, whatever range the weights of `init_from` have.
    inherited = None if spec == "dtype" else model.value_range
    value_range = inherited if isinstance(spec, str) else spec
    return dataclasses.replace(
        config, model=dataclasses.replace(model, bands=bands, value_range=value_range)
    )


def without_places(config: TrainConfig) -> dict[str, Any]:
    """What shapes a run, as plain JSON data: all but the folders of the machine it runs on."""
    values: dict[str, Any] = json.loads(json.dumps(to_dict(config)))
    for name in ("folder", "pack", "shards", "holdout", "cache"):
        del values["data"][name]
    for name in ("out", "resume", "init_from"):
        del values[name]
    return values


def without_removed_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data of a run that an earlier version wrote, in the fields of this version."""
    values = dict(values)
    if values.pop("tensorboard", False):
        values.setdefault("writers", ["tensorboard"])
    if isinstance(values.get("system"), Mapping):
        values["system"] = {k: v for k, v in values["system"].items() if k != "shard"}
    return values


def save_yaml(config: Any, path: Path, **extra: Any) -> None:
    """Write a config as YAML, `extra` entries first."""
    values = {**extra, **to_dict(config)}
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The entries of a `config.yaml`, or of the `config.json` of an earlier version.

    Raises:
        ConfigError: If the file cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        # Most JSON is YAML, but YAML takes 1e-06 for text.
        values = json.loads(text) if text.startswith("{") else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{str(path)!r} is not YAML; give the config.yaml of a run") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{str(path)!r} holds no fields; give the config.yaml of a run")
    return values


def load_yaml(cls: type[Config], path: str | Path) -> Config:
    """Read a config that `save_yaml` wrote, or the `config.json` of an earlier version.

    Raises:
        ConfigError: If the file cannot be read, a field is unknown or a value is not allowed.
    """
    values = read_yaml(path)
    values.pop("recipe", None)
    system = values.get("system")
    if isinstance(system, Mapping) and system.get("shard"):
        raise ConfigError(
            "system.shard=true is not supported any more: every rank holds the whole model; "
            "leave it out, and set system.checkpoint_activations=true to save memory"
        )
    return from_dict(cls, without_removed_fields(values))
