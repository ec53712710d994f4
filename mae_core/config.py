"""Configuration as plain frozen data: a model, a training run.

`ModelConfig` describes a masked autoencoder, `PRESETS` names six of them, and `TrainConfig` is a
whole run; `RunConfig` is what all kinds of runs have. They go to and from plain data (`to_dict`,
`from_dict`) and files (`save_yaml`, `load_yaml`), and take `field.path=value` changes from a
command line (`with_overrides`). pydantic checks each field by its annotation.
"""

import dataclasses
import difflib
import functools
import json
import logging
import re
import reprlib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from mae_core.errors import ConfigError
from mae_core.measurements import as_value_range

# ImageNet's channel statistics: of the official models' training, and of ours.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The fields of `DataConfig` that may name where training images come from.
SOURCES = ("folder", "pack", "hub", "shards")

# `to_dict` leaves these fields of a model out where they are None or empty, so that the record of
# a model without them is the same as before they existed.
_OPTIONAL = ("decoder_mlp_ratio", "grid", "bands", "value_range")

# Part and field of earlier versions, which changed nothing in a model; files with them still open.
_REMOVED = (("", "tensorboard"), ("system", "shard"))

# The second field of each pair counts only where the first is 0. A command line that gives the
# second alone sets the first, which a recipe may have, to 0.
_PREFERRED = (
    ("epochs", "steps"),
    ("optim.warmup_epochs", "optim.warmup_steps"),
    ("optim.lr", "optim.base_lr"),
)

_CHECKS = ConfigDict(extra="forbid", allow_inf_nan=False)

_log = logging.getLogger(__name__)

Config = TypeVar("Config")

LossKind = Literal["mse", "log_mse"]  # of `mae_core.model.losses`
Count = Annotated[int, Field(ge=1)]
NotNegativeInt = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Checked:
    """Base of the configurations: each field gets the type and bounds of its annotation."""

    __pydantic_config__ = _CHECKS

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            object.__setattr__(self, name, validated(hint, getattr(self, name), name))


def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=None if dataclasses.is_dataclass(hint) else _CHECKS)


def validated(hint: Any, value: Any, path: str = "") -> Any:
    """`value` as the annotated type, or a ConfigError with pydantic's sentence after `path`."""
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
    place = ".".join(str(part)[:60] for part in wrong["loc"])
    if wrong["type"] == "unexpected_keyword_argument" and dataclasses.is_dataclass(hint):
        raise ConfigError(_no_field(hint, place))
    path, advice = ".".join(filter(None, (path, place))), wrong["msg"]
    if wrong["type"] == "dataclass_type":
        advice = "it has fields of its own; give a mapping of them"
        advice += "" if place else f", or one of them as {path}.FIELD=VALUE"
    raise ConfigError(f"{path}={reprlib.repr(wrong['input'])}: {advice}")


def _fields(cls: Any, prefix: str = "") -> dict[str, Any]:
    """Annotations by dotted names: of each field, and of the fields of its parts."""
    fields = {}
    for name, hint in _hints(cls).items():
        fields[prefix + name] = hint
        if dataclasses.is_dataclass(hint):
            fields |= _fields(hint, f"{prefix}{name}.")
    return fields


def _no_field(cls: Any, path: str) -> str:
    fields, (parent, dot, last) = list(_fields(cls)), path.rpartition(".")
    names = [field.rpartition(".")[2] for field in fields if field.rpartition(".")[0] == parent]
    near = [field for field in fields if field.endswith(f".{last}")]
    near = near or [parent + dot + name for name in difflib.get_close_matches(last, names)]
    above = [field for field in fields if path.startswith(f"{field}.")]
    if near:
        advice = f"did you mean {' or '.join(near)}?"
    elif names or not above:
        advice = f"it has {', '.join(names or fields)}"
    else:
        advice = f"give {above[-1]}=VALUE as a whole"
    return f"{cls.__name__} has no field {path}; {advice}"


def to_dict(config: Any) -> dict[str, Any]:
    """A frozen dataclass as plain data, ready for JSON and YAML."""

    def set_fields(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {
            name: value for name, value in items if value not in (None, ()) or name not in _OPTIONAL
        }

    return dataclasses.asdict(config, dict_factory=set_fields)


def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a config from plain data, as `to_dict` wrote it, now or in earlier versions.

    Fields that are left out have their defaults. A model may be given by the name of a preset.

    Raises:
        ConfigError: If a field is unknown, a value has the wrong type, or the fields do not go
            together.
    """
    values = {name: dict(v) if isinstance(v, Mapping) else v for name, v in values.items()}
    for part, name in _REMOVED:
        fields = values.get(part) if part else values
        if isinstance(fields, dict) and (value := fields.pop(name, None)):
            path = f"{part}.{name}".strip(".")
            _log.warning("%s=%s of an earlier version is left out", path, value)
    config: Config = validated(cls, values)
    return config


def save_yaml(config: Any, path: str | Path, **extra: Any) -> None:
    """Write a config as YAML, after the `extra` entries; `load_yaml` reads it."""
    text = yaml.safe_dump(
        {**extra, **to_dict(config)}, sort_keys=False, default_flow_style=None, width=100
    )
    Path(path).write_text(text, encoding="utf-8")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The entries of a YAML file, or of the `config.json` of an earlier version."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        is_json = Path(path).suffix == ".json"
        values = json.loads(text) if is_json else _YamlLoader(text).get_single_data()
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no fields; write lines such as steps: 1000")
    return values


def load_yaml(cls: type[Config], path: str | Path) -> Config:
    """Read a config from what `read_yaml` takes; an entry `recipe` is passed over."""
    values = read_yaml(path)
    values.pop("recipe", None)
    try:
        return from_dict(cls, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


class _YamlLoader(yaml.SafeLoader):  # type: ignore[misc]
    """PyYAML reads YAML 1.1, where 1e-4 is text; here it is a number, as in YAML 1.2."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)  # fmt: skip


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """Change fields of a config by `field.path=value` texts.

    A value is read as JSON, or as it stands where it is no JSON or the field takes text. Nothing
    after the = is None, or an empty list. Lists
    need no brackets, one number where two are needed is both of them, and a whole number may
    be written as 1e5. `model=base` is the preset. Fields that hang together may be given in any
    order, as the whole is checked at the end.

    Raises:
        ConfigError: If a field is unknown, or a value or the whole is not allowed.
    """
    given = {text.partition("=")[0] for text in overrides}
    if isinstance(config, RunConfig):
        aside = [first for first, other in _PREFERRED if other in given and first not in given]
        overrides = [*overrides, *(f"{name}=0" for name in aside)]
    hints, values = _fields(type(config)), to_dict(config)
    for text in overrides:
        path, value = split_field(text)
        if path not in hints:
            raise ConfigError(_no_field(type(config), path))
        *parents, last = path.split(".")
        fields = values
        for name in parents:
            fields = fields[name]
        read = validated(hints[path], _read(hints[path], value), path)
        fields[last] = to_dict(read) if dataclasses.is_dataclass(read) else read
    return from_dict(type(config), values)


def split_field(text: str) -> tuple[str, str]:
    """The path and the value of a `field.path=value` text, or a ConfigError."""
    path, separator, value = text.partition("=")
    if not separator or not path:
        raise ConfigError(f"{text!r} is not of the form field=value, such as epochs=20")
    return path, value


def text_of(value: object) -> str:
    """A value as `with_overrides` reads it."""
    if value is None or isinstance(value, str | Path):
        return str(value or "")
    return json.dumps(
        value, default=lambda one: to_dict(one) if dataclasses.is_dataclass(one) else str(one)
    )


def _read(hint: Any, text: str) -> Any:
    """A value from a command line."""
    if hint is str:
        return text  # a folder called 007 or 1e3
    lists = [one for one in (hint, *typing.get_args(hint)) if typing.get_origin(one) is tuple]
    if not text:
        return None if type(None) in typing.get_args(hint) else [] if lists else text
    try:
        value = json.loads(f"[{text}]" if lists and "," in text and text[0] != "[" else text)
    except ValueError:
        if text == "None":
            return None
        value = text.split(",") if lists else text
    if not lists or value is None or isinstance(value, list | dict):
        return value
    items = typing.get_args(lists[0])
    return [value] * (1 if Ellipsis in items else len(items))


def _check_width(name: str, width: int, heads: int) -> None:
    if width % heads or width % 4:
        raise ConfigError(
            f"{name} {width} does not divide into {heads} heads and by 4; pick a multiple of both"
        )


def _check_order(path: str, pair: tuple[float, float]) -> None:
    if pair[0] > pair[1]:
        raise ConfigError(f"{path} is {list(pair)}; give the smaller number first")


@dataclass(frozen=True)
class ModelConfig(Checked):
    """A masked autoencoder's shape (He et al. 2022, section 3 and A.1).

    Attributes:
        image_size: Side in pixels of the square grid of the position tables, or the shorter side of
            `grid`; other sizes resample them.
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
        pca_components: Above 0, the target is this many principal components of a patch instead of
            its pixels (table 1d); not with `norm_pix`.
        encoder_mask_tokens: Whether the encoder sees a mask token for each removed patch, instead
            of visible patches only (table 1c).
        layer_norm_eps: Epsilon of every LayerNorm.
        mean: Channel means of normalisation, in 0..1. ImageNet's for three channels; for others
            0.5, and training measures them, unless they are given.
        std: Channel deviations of normalisation, in 0..1; likewise.
        bands: Bands of an image that are the channels, numbered from 1; all if empty.
        value_range: Values, of images of more than 8 bits, that become 0 and 1: one pair, or one a
            channel. None for photographs.
        grid: (h, w) patches of the position tables; None is the square one.
    """

    image_size: Count = 224
    patch_size: Count = 16
    in_chans: Count = 3
    embed_dim: Count = 768
    depth: Count = 12
    num_heads: Count = 12
    decoder_embed_dim: Count = 512
    decoder_depth: Count = 8
    decoder_num_heads: Count = 16
    mlp_ratio: Positive = 4.0
    decoder_mlp_ratio: Positive | None = None
    norm_pix: bool = False
    pca_components: NotNegativeInt = 0
    encoder_mask_tokens: bool = False
    layer_norm_eps: Positive = 1e-6
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[Positive, ...] = IMAGENET_STD
    bands: tuple[Count, ...] = ()
    value_range: tuple[tuple[float, float], ...] | None = None
    grid: tuple[Count, Count] | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, value: Any) -> Any:
        return vars(preset(value)) if isinstance(value, str) else value

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.in_chans != 3 and (self.mean, self.std) == (IMAGENET_MEAN, IMAGENET_STD):
            for name in ("mean", "std"):
                object.__setattr__(self, name, (0.5,) * self.in_chans)
        if self.pca_components > self.patch_dim:
            raise ConfigError(
                f"pca_components is {self.pca_components}; a patch has {self.patch_dim} values, "
                "so give 0 to that many"
            )
        if self.pca_components and self.norm_pix:
            raise ConfigError("the target is norm_pix or pca_components, not both")
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
        self._check_channels()

    def _check_channels(self) -> None:
        for name, counts in (
            ("mean", {self.in_chans}), ("std", {self.in_chans}),
            ("bands", {0, 1, self.in_chans}), ("value_range", {1, self.in_chans}),
        ):  # fmt: skip
            values = getattr(self, name)
            if values is not None and len(values) not in counts:
                raise ConfigError(
                    f"{name} has {len(values)} values for in_chans={self.in_chans}; give one "
                    "value a channel"
                )
        if self.value_range is not None:
            as_value_range(self.value_range)

    @property
    def grid_size(self) -> int:
        """Patches along one side of a square image of `image_size`."""
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


PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(embed_dim=192, num_heads=3, decoder_embed_dim=160, decoder_depth=4,
                        decoder_num_heads=5),
    "compact": ModelConfig(embed_dim=256, num_heads=4, decoder_embed_dim=256, decoder_depth=4,
                           decoder_num_heads=8),
    "small": ModelConfig(embed_dim=384, num_heads=6, decoder_embed_dim=256, decoder_depth=4,
                         decoder_num_heads=8),
    "base": ModelConfig(),
    "large": ModelConfig(embed_dim=1024, depth=24, num_heads=16),
    "huge": ModelConfig(patch_size=14, embed_dim=1280, depth=32, num_heads=16),
}  # fmt: skip


def preset(name: str) -> ModelConfig:
    """The model of that name in `PRESETS`."""
    if name not in PRESETS:
        raise ConfigError(f"no preset is called {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True)
class DataConfig(Checked):
    """Where images come from and how they are cropped.

    One of `folder`, `pack`, `hub` and `shards` names the source.

    Attributes:
        folder: Folder of images, searched with all folders in it; hidden ones are not looked into.
        pack: Pack of images, as `mae pack` makes it.
        hub: Name of a Hugging Face data set, streamed; needs the `datasets` package.
        shards: WebDataset tar files, streamed: a path or address with `{000..099}` for many; needs
            the `datasets` package.
        split: Part of the `hub` data set.
        column: Where the images are in the `hub` data set.
        holdout: Folder of images to measure on and never train on; none if empty. It may lie inside
            `folder`, or link to its files.
        labelled: Labelled images, as for `open_labelled`: at each validation they are classified by
            nearest neighbours of the encoder's features. None if empty.
        cache: Folder for the packed images; inside the run's folder if empty.
        decode: A folder's images are decoded `once` into a pack, or in each `epoch`, which needs no
            space on the disk but more of the processor.
        bands: Bands of the images that are the model's channels, numbered from 1; all if empty.
        range: Values, of images of more than 8 bits, that become black and white: `auto` (see
            `find_value_range`), `dtype` for the full range of the number format, or `LOW,HIGH`.
        short_side: Pixels that images keep on their shorter side at most; 0 for all of them.
        max_unreadable: Largest share of unreadable files, 0..1; above it the run stops.
        crop: `random` is RandomResizedCrop; `fixed` a window of seven eighths of the shorter side
            at a random place; `centre` the same square every time (He et al. 2022, table 1e).
        crop_area: Smallest and largest share of the image's area in a `random` crop.
        crop_aspect: Smallest and largest width over height of a `random` crop.
        flip: Whether half of the crops are mirrored.
        color_jitter: Brightness, contrast and saturation are each multiplied by a factor of
            1 - this to 1 + this; 0..1.
        workers: Threads that decode and crop.
        resident: Whether a pack is copied to the GPU as a whole and cropped there, if it takes at
            most half of the memory that is free when the run starts.
    """

    folder: str = ""
    pack: str = ""
    hub: str = ""
    shards: str = ""
    split: str = "train"
    column: str = "image"
    holdout: str = ""
    labelled: str = ""
    cache: str = ""
    decode: Literal["once", "epoch"] = "once"
    bands: tuple[Count, ...] = ()
    range: str = "auto"
    short_side: NotNegativeInt = 256
    max_unreadable: Share = 0.05
    crop: Literal["random", "fixed", "centre"] = "random"
    crop_area: tuple[PositiveShare, PositiveShare] = (0.2, 1.0)
    crop_aspect: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    flip: bool = True
    color_jitter: Share = 0.0
    workers: Count = 4
    resident: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        named = [name for name in SOURCES if getattr(self, name)]
        if len(named) > 1:
            raise ConfigError(f"data.{' and data.'.join(named)} are given; give one source")
        as_value_range(self.range)
        _check_order("data.crop_area", self.crop_area)
        _check_order("data.crop_aspect", self.crop_aspect)
        if 0 < self.short_side < 16:
            raise ConfigError(
                f"short_side is {self.short_side}; give at least 16 pixels, or 0 to keep "
                "images as they are"
            )


@dataclass(frozen=True)
class PackConfig(Checked):
    """How `mae pack` packs images; the fields are those of `DataConfig` and `ModelConfig`."""

    short_side: NotNegativeInt = DataConfig.short_side
    max_unreadable: Share = DataConfig.max_unreadable
    channels: Count = ModelConfig.in_chans
    bands: tuple[Count, ...] = ()
    range: str = DataConfig.range

    def __post_init__(self) -> None:
        super().__post_init__()
        DataConfig(short_side=self.short_side, range=self.range)
        ModelConfig(in_chans=self.channels, bands=self.bands)


@dataclass(frozen=True)
class MaskConfig(Checked):
    """How masks are drawn, once for each step's batch.

    Attributes:
        ratio: Smallest and largest mask ratio; one is drawn uniformly for each step.
        random: Share of steps with random masks.
        block: Share of steps with block-wise masks.
        grid: Share of steps with grid masks. The three shares add up to 1.
    """

    ratio: tuple[PositiveShare, PositiveShare] = (0.75, 0.75)
    random: Share = 1.0
    block: Share = 0.0
    grid: Share = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_order("mask.ratio", self.ratio)
        shares = (self.random, self.block, self.grid)
        if abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(f"mask.random, block and grid are {shares}; they must add up to 1")


@dataclass(frozen=True)
class OptimConfig(Checked):
    """The optimiser and its schedule (He et al. 2022, A.1).

    Attributes:
        name: `adamw`, or `muon` for the blocks' matrices with AdamW for the rest.
        lr: Peak learning rate. Where it is 0, the peak is base_lr * batch_size / 256; `base_lr=` on
            a command line sets the `lr` of a recipe to 0.
        base_lr: Peak learning rate of a batch of 256; not looked at where `lr` is above 0.
        weight_decay: Of all parameters but biases and norms.
        betas: AdamW's.
        warmup_steps: Steps of linear warm-up from 0.
        warmup_epochs: The same in epochs; takes the place of `warmup_steps` where above 0.
        final_lr: Learning rate the cosine ends at.
        decay_share: Last share of the steps in which the learning rate falls; it is constant
            before. 1 is the paper's. With less (warm-up, stable, decay; Hu et al. 2024), a run may
            be cut short or made longer until its rate falls: give another `steps` when it is
            resumed, and `stages` whose sizes begin at the same steps.
        clip_grad: Largest norm of the whole gradient; 0 for no clipping.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: NotNegative = 0.0
    base_lr: NotNegative = 1.5e-4
    weight_decay: NotNegative = 0.05
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    warmup_steps: NotNegativeInt = 300
    warmup_epochs: NotNegative = 0.0
    final_lr: NotNegative = 0.0
    decay_share: PositiveShare = 1.0
    clip_grad: NotNegative = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lr and not self.base_lr:
            raise ConfigError("optim.lr and optim.base_lr are both 0; give one of them")


@dataclass(frozen=True)
class StageConfig(Checked):
    """A part of the run at one image size; small images first, as few tokens are cheap.

    Attributes:
        image_size: Side of the crops in pixels; a multiple of the patch side.
        share: Share of all steps; the shares of a run add up to 1.
    """

    image_size: Count = 224
    share: PositiveShare = 1.0


@dataclass(frozen=True)
class SystemConfig(Checked):
    """How the machine does the work; nothing here changes what is computed, beyond rounding.

    Attributes:
        precision: Of the forward pass; weights stay float32. `auto` is bfloat16, or float16 with a
            loss scaler on GPUs that have no bfloat16.
        accumulate: Micro-batches that a process adds up for each step; more need less memory.
        checkpoint_activations: Whether the backward pass recomputes each block, for less memory.
        compile: Whether blocks are compiled (torch.compile), which takes a minute at the start.
    """

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    accumulate: Count = 1
    checkpoint_activations: bool = False
    compile: bool = False


@dataclass(frozen=True)
class RecoveryConfig(Checked):
    """What happens when the loss jumps or stops being a number.

    Attributes:
        max_rollbacks: Times that a run goes back to its last checkpoint before it gives up.
        lr_factor: The learning rate is multiplied by this at each of them, 0..1.
        spike: The loss of a few steps counts as a jump above this many times its running average; 0
            to notice only numbers that are not finite.
    """

    max_rollbacks: NotNegativeInt = 3
    lr_factor: PositiveShare = 0.5
    spike: NotNegative = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.spike <= 1:
            raise ConfigError(f"recovery.spike is {self.spike}; give 0, or a number above 1")


@dataclass(frozen=True)
class RunConfig(Checked):
    """What the training loop asks of a run, whatever it trains.

    Attributes:
        optim: The optimiser.
        system: How the machine does the work.
        recovery: What happens when the loss jumps.
        out: Folder of the run: checkpoint, weights, metrics and images.
        resume: Checkpoint, or folder of a run, to go on from where `out` holds none.
        steps: Optimiser steps in all.
        epochs: The same as passes over all images; takes the place of `steps` where above 0.
        batch_size: Images in a step, over all processes.
        ema: Decay for each step of a running average of the parameters, 0..1, which is measured and
            written; 0 for none. After t steps it is (1 + t) / (10 + t) at most.
        seed: Of the initial weights, the order, the crops and all other chance.
        eval_every: Steps between measurements.
        save_every: Steps between checkpoints.
        writers: Where metrics go beside `metrics.jsonl`: `tensorboard`, `wandb` or both. Each needs
            the package of that name.
    """

    optim: OptimConfig = OptimConfig()
    system: SystemConfig = SystemConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    out: str = "runs/mae"
    resume: str = ""
    steps: Count = 1000
    epochs: NotNegative = 0.0
    batch_size: Count = 64
    ema: Decay = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    eval_every: Count = 500
    save_every: Count = 250
    writers: tuple[Literal["tensorboard", "wandb"], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.out:
            raise ConfigError("out is empty; give the folder of the run")

    @property
    def fixed(self) -> tuple[str, ...]:
        """Fields that a resumed run has to keep."""
        return ("optim.name",)


@dataclass(frozen=True)
class AdversarialConfig(Checked):
    """A discriminator that makes reconstructions sharp (`mae train sharpen`).

    Attributes:
        width: Channels after the discriminator's first convolution, which double three times; 0
            for no discriminator.
        weight: Length of the adversarial gradient at each image's prediction over that of the rest
            of the loss.
        begin: First steps, in which that weight is 0.
        ramp: Steps after those in which the weight rises from 0.
        lr_factor: The discriminator's learning rate over the model's.
        features_weight: Weight of a perceptual loss: on what the model's own encoder, which has to
            be frozen then, makes of pasted and of true images.
    """

    width: Annotated[int, Field(ge=0, le=1024)] = 0
    weight: NotNegative = 0.0
    begin: NotNegativeInt = 50
    ramp: NotNegativeInt = 100
    lr_factor: Positive = 2.0
    features_weight: NotNegative = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.width and (self.weight or self.features_weight):
            raise ConfigError(
                "adversarial.weight and features_weight are for a run against a discriminator; "
                "give adversarial.width=16 too, or set them to 0"
            )


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """A run that pre-trains a masked autoencoder.

    Attributes:
        model: The model, or the name of a preset.
        data: The images.
        mask: The masks.
        stages: Image sizes in turn.
        init_from: Weights to begin with, where there is nothing to go on from: a name, a file or
            folder of any published format, a run, or USER/NAME on the Hugging Face hub.
        loss: `mse` is the paper's; `log_mse` the mean over images of the logarithm of each one's
            error, so that plain images count as much as busy ones, as in a mean PSNR.
        visible_weight: Weight of the loss on visible patches; the paper's is 0, which leaves them
            speckled in the reconstruction.
        seam_weight: Weight of the loss on steps from pixel to pixel, half of it across borders of
            patches, which show as seams (`seam_loss`); all of it beside a discriminator. The
            paper's is 0. For models that predict pixels, beside `log_mse`, as it is a logarithm
            too.
        adversarial: A discriminator, for sharp reconstructions; for models that predict pixels.
        freeze_encoder: Whether only the decoder learns.
        export_dtype: Number format of the weights written at the end.
        snapshots: How many weights of the run on its way are kept, float16, the last after all
            steps and each after half of the steps of the next one; a page that serves the run shows
            a picture by each. 0 for none.
    """

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    mask: MaskConfig = MaskConfig()
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    init_from: str = ""
    loss: LossKind = "mse"
    visible_weight: NotNegative = 0.0
    seam_weight: NotNegative = 0.0
    adversarial: AdversarialConfig = AdversarialConfig()
    freeze_encoder: bool = False
    export_dtype: Literal["float32", "float16"] = "float32"
    snapshots: Annotated[int, Field(ge=0, le=32)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.color_jitter and self.model.in_chans != 3:
            raise ConfigError(
                f"data.color_jitter is of colours and model.in_chans is {self.model.in_chans}; set "
                "data.color_jitter=0"
            )
        for name, value in (
            ("seam_weight", self.seam_weight), ("adversarial.width", self.adversarial.width)
        ):  # fmt: skip
            if value and (self.model.norm_pix or self.model.pca_components):
                raise ConfigError(
                    f"{name} is {value:g}, for models that predict pixels, and this one predicts "
                    f"others; set {name}=0, or begin with weights that predict pixels"
                )
        if self.seam_weight and self.loss != "log_mse":
            raise ConfigError(
                f"seam_weight is {self.seam_weight:g}, and a loss on seams is a logarithm; give "
                "loss=log_mse too, or seam_weight=0"
            )
        if self.adversarial.features_weight and not self.freeze_encoder:
            raise ConfigError(
                "adversarial.features_weight is for an encoder that stays as it is; give "
                "freeze_encoder=true too, or adversarial.features_weight=0"
            )
        if abs(sum(stage.share for stage in self.stages) - 1) > 1e-6:
            raise ConfigError("the stages' shares must add up to 1")
        smallest = min(stage.image_size for stage in self.stages)
        if self.adversarial.width and smallest < 32:
            raise ConfigError(
                f"a discriminator needs images of at least 32 pixels, and a stage has {smallest}; "
                "give larger stages, or train without one (adversarial.width=0)"
            )
        patch = self.model.patch_size
        for size in (stage.image_size for stage in self.stages):
            if size % patch or size == patch:
                raise ConfigError(
                    f"a stage's image_size {size} is not a multiple of the patch side {patch} "
                    f"from {2 * patch}"
                )

    @property
    def fixed(self) -> tuple[str, ...]:
        """What a checkpoint has a state of, and which part of the model learns."""
        return "model", "optim.name", "freeze_encoder", "adversarial.width"


def declared_facts(config: TrainConfig) -> TrainConfig:
    """The run with a model of the bands and the value range that `config.data` declares."""
    model, spec = config.model, as_value_range(config.data.range)
    bands = config.data.bands or model.bands
    # `dtype` is asked of the images again, whatever range the weights of `init_from` have.
    inherited = None if spec == "dtype" else model.value_range
    value_range = inherited if isinstance(spec, str) else spec
    return dataclasses.replace(
        config, model=dataclasses.replace(model, bands=bands, value_range=value_range)
    )


def without_places(config: RunConfig) -> dict[str, Any]:
    """What shapes a run, as plain JSON data: all but the folders of the machine it runs on."""
    values: dict[str, Any] = json.loads(json.dumps(to_dict(config)))
    for name in ("folder", "pack", "shards", "holdout", "labelled", "cache"):
        values.get("data", {}).pop(name, None)
    for name in ("out", "resume", "init_from"):
        values.pop(name, None)
    return values
