"""Weights of any published format, and our own: found by content and never by name.

`read_file` turns a file or folder into `Weights`: a config, parameters by the official names, and
where each of it comes from. `save_weights` and `save_classifier` write our own format: one
safetensors file whose header carries the model's config and the record of its training as JSON, and
of a classifier the names of its classes.
"""

import argparse
import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from mae_core.config import ModelConfig, from_dict, to_dict
from mae_core.errors import CheckpointError
from mae_core.model.mae import MaskedAutoencoder, resample_pos_embed, timm_vit
from mae_core.model.masking import random_mask
from mae_core.model.patches import grid_of, normalize_patches, patchify
from mae_core.weights.architecture import Hints as Hints
from mae_core.weights.architecture import Kind as Kind
from mae_core.weights.architecture import Sidecar, infer_config, is_timm
from mae_core.weights.files import (
    CHECKPOINT_FILE,
    FORMAT,
    SIDECAR_FILES,
    Source,
    open_source,
    read_latest,
    shown,
    weights_in,
    write_atomically,
)
from mae_core.weights.layouts import Found, find_model, recognize, to_official, unfolded
from mae_core.weights.names import is_decoder_key

if TYPE_CHECKING:
    from mae_core.model.blocks import VisionTransformer

_log = logging.getLogger(__name__)

# Official fine-tuning measures images resized to 256 pixels on their central 224.
OFFICIAL_CROP_SHARE = 0.875

_NO_HINTS = Hints()
# What is in a file of a library's trainer.
_WRITTEN_BY = {"pytorch-lightning_version": "PyTorch Lightning", "ds_version": "DeepSpeed"}
_MOST_SHOWN = 5

# Of the names of classes: ImageNet-21k has 21,843 classes, and a folder's name is at most as long.
_MOST_CLASSES = 100_000
_LONGEST_CLASS = 255
_MOST_CLASSES_BYTES = 2**24

# (Width, depth) of an encoder -> the published weights that have a decoder for it.
_WITH_DECODER = {
    (768, 12): "mae-base-visualize",
    (1024, 24): "mae-large-visualize",
    (1280, 32): "mae-huge-visualize",
}


@dataclass(frozen=True)
class Weights:
    """A model as read from a file.

    Attributes:
        config: Its shape; where there is no decoder, with the official one's.
        state: The parameters by the official names: float32, on the CPU, checked.
        record: How it was trained: plain data, empty if unknown.
        name: Of the file, for messages.
        kind: Encoder and decoder, the encoder alone, or a classifier.
        format: `mae_core`, `mae_core checkpoint`, `official`, `transformers 4`,
            `transformers 5`, `timm`, `openmmlab` or `torchvision`.
        origins: Field of `config` -> where its value comes from: `shapes`, `config`, `registry`,
            `option`, `known width`, `trial` (of what the model predicts) or `assumed`.
        dtype: Number format in the file, such as `float16`.
        num_classes: Of a classifier; None for the others.
        classes: Names of a classifier's classes, in the order of its outputs; empty if the file
            does not say.
        container: `PyTorch Lightning` or `DeepSpeed` if that wrote the file, else empty.
        under: Under which prefixes of names they lie in it; empty where there are none.
        left_aside: What else the file holds and was not read: where, and how many tensors.
    """

    config: ModelConfig
    state: dict[str, Tensor]
    record: dict[str, Any] = field(default_factory=dict)
    name: str = "the weights"
    kind: Kind = "autoencoder"
    format: str = "mae_core"
    origins: dict[str, str] = field(default_factory=dict)
    dtype: str = "float32"
    num_classes: int | None = None
    container: str = ""
    under: tuple[str, ...] = ()
    left_aside: dict[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the parameters and their names."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state.items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def crop_share(self) -> float:
        """Of a classifier: the share of an image's shorter side that it was measured on, 0..1."""
        train = self.record.get("train")
        share = train.get("crop_share") if isinstance(train, dict) else None
        if isinstance(share, int | float) and 0 < share <= 1:
            return float(share)
        return OFFICIAL_CROP_SHARE

    @property
    def guesses(self) -> list[str]:
        """Fields that had to be guessed and change what the model computes."""
        heads = ["num_heads"] + ["decoder_num_heads"] * (self.kind == "autoencoder")
        return [name for name in heads if self.origins.get(name) == "assumed"]

    def build(self) -> MaskedAutoencoder:
        """The model with these parameters, not copied: on the CPU, in evaluation mode.

        What had to be guessed and changes the image is said in a warning.

        Raises:
            CheckpointError: If there is no decoder, without which no pixels can be drawn.
        """
        if self.kind != "autoencoder":
            other = _WITH_DECODER.get((self.config.embed_dim, self.config.depth))
            advice = f"take {other}, which has one" if other else "give weights with a decoder"
            if self.kind == "classifier":
                advice += "; mae evaluate predict names what is in a picture"
            raise CheckpointError(
                f"{self.name!r} has no decoder ({self.kind}), so no pixels can be drawn from it; "
                f"{advice}"
            )
        self._warn_of_guesses("draws wrong images")
        return _built(self.config, self.state)

    def build_encoder(self) -> MaskedAutoencoder:
        """The model for its features, in evaluation mode; a missing decoder is a random one.

        Raises:
            CheckpointError: If it is a classifier, whose encoder was fine-tuned.
        """
        if self.kind == "autoencoder":
            return self.build()
        if self.kind == "classifier":
            raise CheckpointError(
                f"{self.name!r} is a classifier, whose encoder was fine-tuned for its classes; "
                "give the weights from before that, or measure it by mae evaluate classifier"
            )
        with torch.random.fork_rng(devices=()):
            model = MaskedAutoencoder(self.config)
        model.load_state_dict(model.state_dict() | self.state)
        return model.eval()

    def build_classifier(self, *, image_size: int | None = None) -> "VisionTransformer":
        """The classifier as a timm ViT with these parameters: on the CPU, in evaluation mode.

        The patch tokens are averaged and `fc_norm` normalises the mean, as in MAE's fine-tuning,
        if the file has that norm; else the class token is classified after `norm`.

        Args:
            image_size: Side in pixels of the square images that it takes; positions are resampled
                to it. What the position table is made for if not given.

        Raises:
            CheckpointError: If it is no classifier.
            ConfigError: If the size is no multiple of the patch side.
        """
        config = self.config
        if self.kind != "classifier" or self.num_classes is None:
            raise CheckpointError(
                f"{self.name!r} is no classifier ({self.kind}): it has no head; give fine-tuned "
                "weights, such as mae-base-finetuned or what mae evaluate finetune writes"
            )
        self._warn_of_guesses("classifies wrongly")
        size: tuple[int, int] = (image_size or 0, image_size or 0)
        if image_size is None:
            h, w = config.table_grid
            size = h * config.patch_size, w * config.patch_size
        state, grid_size = dict(self.state), grid_of(*size, config.patch_size)
        # Whole images do not use it.
        state.pop("encoder_mask_token", None)
        state["pos_embed"] = resample_pos_embed(state["pos_embed"], config.table_grid, grid_size)
        pool: Literal["avg", "token"] = "avg" if "fc_norm.weight" in state else "token"
        # On `meta` nothing is drawn only to be overwritten.
        with torch.device("meta"):
            vit = timm_vit(config, size, self.num_classes, pool)
        vit.load_state_dict(state, strict=True, assign=True)
        return vit.eval()

    def _warn_of_guesses(self, harm: str) -> None:
        for guess in self.guesses:
            _log.warning(
                "%r does not say its %s: %d is a guess, and a wrong one %s; "
                "mae convert with --to mae_core --%s N writes the right one down",
                self.name, guess, getattr(self.config, guess), harm, guess.replace("_", "-"),
            )  # fmt: skip


def _built(config: ModelConfig, state: Mapping[str, Tensor]) -> MaskedAutoencoder:
    # On `meta` nothing is drawn only to be overwritten.
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
    model.load_state_dict(state, strict=True, assign=True)
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
    """Write a model as one safetensors file, replaced only once the new one is whole.

    Args:
        path: The file.
        model: The model.
        record: How it was trained, as plain data for JSON.
        dtype: Number format of the parameters in the file.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    _save(Path(path), model.state_dict(), model.config, record, dtype, {})


def save_classifier(
    path: str | Path,
    vit: "VisionTransformer",
    config: ModelConfig,
    *,
    classes: Sequence[str],
    record: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a classifier as one safetensors file, as `save_weights` does.

    Args:
        path: The file.
        vit: A timm ViT with a head, of `MaskedAutoencoder.to_timm` or `Weights.build_classifier`.
        config: Its shape, channel statistics and bands; `image_size`, or `grid`, are those of its
            own position table. `pca_components` and `encoder_mask_tokens`, which a classifier has
            no parameters for, are written as their defaults.
        classes: Names of the classes in the order of its outputs; empty if they have none.
        record: How it was trained, as plain data for JSON.
        dtype: Number format of the parameters in the file.

    Raises:
        CheckpointError: If the ViT is not of that shape or has no head, the names do not fit its
            outputs, or the file cannot be written.
    """
    state, name = dict(vit.state_dict()), Path(path).name
    block: Any = vit.blocks[0]
    # What no shape of a tensor tells.
    facts = {
        "heads": (block.attn.num_heads, config.num_heads),
        "the epsilon": (block.norm1.eps, config.layer_norm_eps),
        "the grid": (tuple(vit.patch_embed.grid_size), config.table_grid),
        "the pooling": (vit.global_pool, "avg" if "fc_norm.weight" in state else "token"),
    }
    for what, (found, wanted) in facts.items():
        if found != wanted:
            raise CheckpointError(
                f"{what} of this ViT: {found}, where its config and parameters ask for {wanted}; "
                "give the config of this ViT"
            )
    write_classifier(
        path, Weights(config, state, dict(record), name, "classifier", classes=tuple(classes)),
        dtype=dtype,
    )  # fmt: skip


def write_classifier(
    path: str | Path, weights: Weights, *, dtype: torch.dtype = torch.float32
) -> None:
    """`save_classifier` of weights."""
    config = replace(weights.config, pca_components=0, encoder_mask_tokens=False)
    state = {key: t for key, t in weights.state.items() if key != "encoder_mask_token"}
    if "head.weight" not in state:
        raise CheckpointError("this ViT has no head for classes; give num_classes= to to_timm")
    _check_shapes(weights.name, config, state, "classifier")
    names = checked_classes(weights.name, list(weights.classes), len(state["head.bias"]))
    header = {"kind": "classifier", "classes": json.dumps(names)}
    _save(Path(path), state, config, weights.record, dtype, header)


def _save(
    path: Path, state: Mapping[str, Tensor], config: ModelConfig, record: Mapping[str, Any],
    dtype: torch.dtype, more: Mapping[str, str],
) -> None:  # fmt: skip
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()
    }
    header = {
        "format": FORMAT,
        "config": json.dumps(to_dict(config)),
        "record": json.dumps(dict(record)),
        **more,
    }
    write_atomically(path, lambda partial: save_file(tensors, partial, metadata=header))


def checked_classes(file: str, names: object, num_classes: int) -> tuple[str, ...]:
    """Names of classes that anybody may have written; empty of an empty list.

    Raises:
        CheckpointError: If they are no list of texts of 1 to 255 characters, one for each output,
            or more than 100,000.
    """
    what = ""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        what = "are no list of texts"
    elif len(names) > _MOST_CLASSES:
        what = f"are {len(names):,}, and at most {_MOST_CLASSES:,} are read"
    elif names and len(names) != num_classes:
        what = f"are {len(names):,}, and its head has {num_classes:,} outputs"
    elif odd := next((name for name in names if not 0 < len(name) <= _LONGEST_CLASS), None):
        what = f"have {shown(odd)} among them, of more than {_LONGEST_CLASS} characters"
    elif "" in names:
        what = "have an empty one among them"
    if what:
        raise CheckpointError(
            f"the names of the classes in {file!r} {what}; give one text for each output, or leave "
            "them out"
        )
    return tuple(names)  # type: ignore[arg-type]


def read_file(path: Path, hints: Hints = _NO_HINTS, *, allow_torch: bool = True) -> Weights:
    """Read weights of any format that is known.

    Of a run's checkpoint the running average is taken where it has one, and its record has
    `running`, `step` and `steps`. Where `checkpoint.pt` cannot be used, the one before it is,
    with a warning.

    Args:
        path: A file, an index of several, or a folder of a run, of transformers or of timm.
        hints: What the shapes of tensors cannot tell; our own formats say it themselves and are
            not to be contradicted.
        allow_torch: Whether torch files are read; safetensors always are.

    Raises:
        CheckpointError: If the file is missing, damaged, hostile, of no known format, does not
            fit its own config or the hints, or holds numbers that are not finite.
    """

    def read(path: Path) -> Weights:
        source = open_source(path, allow_torch=allow_torch)
        said = source.header.get("format") or source.content.get("format")
        if said == FORMAT:
            return _read_own(path.name, source, hints)
        if isinstance(said, str) and said.startswith("mae_core-"):
            raise CheckpointError(
                f"{path.name!r} is of the format {shown(said)} and this program reads {FORMAT}; "
                "use the version of the program that wrote it"
            )
        values = unfolded(path.name, source.content)
        try:
            return _read_foreign(path.name, source, values, hints)
        except CheckpointError as error:
            raise CheckpointError(f"{error}{recognize(values)}") from error

    file = (weights_in(path) if path.is_dir() else None) or path
    return read_latest(file.parent, read) if file.name == CHECKPOINT_FILE else read(file)


def _read_own(name: str, source: Source, hints: Hints) -> Weights:
    """Weights of `save_weights` or `save_classifier`, or those of a run's checkpoint."""
    is_run, names = source.header.get("format") != FORMAT, None
    its_kind = source.header.get("kind", "autoencoder")
    if its_kind not in ("autoencoder", "classifier"):
        raise CheckpointError(
            f"the header of {name!r} has the kind {shown(its_kind)}, and this program reads "
            "autoencoder and classifier; use the version of the program that wrote it"
        )
    kind: Kind = "classifier" if its_kind == "classifier" else "autoencoder"
    try:
        if is_run:
            values, record, state = _run_parts(source.content)
        else:
            values, record = (json.loads(source.header[key]) for key in ("config", "record"))
            state = dict(source.content)
            names = json.loads(source.header.get("classes", "[]")[:_MOST_CLASSES_BYTES])
        if not isinstance(record, dict):
            raise TypeError("its record is no JSON object")
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            raise TypeError("its config is no mapping of fields")
        config = from_dict(ModelConfig, values)
    except Exception as error:  # values from anybody raise many types
        what = f"the checkpoint {name!r}" if is_run else f"the header of {name!r}"
        raise CheckpointError(
            f"{what} is damaged: {str(error)[:200]}; take an earlier one or another copy"
        ) from error
    for option, given in asdict(hints).items():
        said = config.table_grid if option == "grid" else getattr(config, option, given)
        if kind == "classifier" and option in ("decoder_num_heads", "norm_pix"):
            continue  # a classifier has no use for them
        if hints.source == "option" and given not in (None, said):
            raise CheckpointError(
                f"{name!r} stores {option}={said}, and {given} is given; leave that option out"
            )
    _check_tensors(name, state, source.size)
    _check_shapes(name, config, state, kind)
    num_classes = len(state["head.bias"]) if kind == "classifier" else None
    return Weights(
        config, _as_float32(name, state), record, name, kind,
        format="mae_core checkpoint" if is_run else "mae_core",
        origins=dict.fromkeys((item.name for item in fields(config)), "config"),
        dtype=_dtype_name(state["cls_token"]), num_classes=num_classes,
        classes=() if num_classes is None else checked_classes(name, names, num_classes),
    )  # fmt: skip


def _run_parts(content: Mapping[Any, Any]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A checkpoint's model config, its record in the words of a finished run's, its parameters."""
    run, model, average = content["config"], content["model"], content.get("ema")
    average = {} if average is None else average
    if not all(isinstance(values, dict) for values in (run, model, average)):
        raise TypeError("its config or its model is no mapping of names")
    record = {
        "running": True,
        "recipe": str(content.get("recipe", "")),
        "step": int(content["step"]),
        "steps": int(run["steps"]),
        "hours": round(float(content["seconds"]) / 3600, 3),
    }
    # Of what is not trained there is no average.
    return run["model"], record, {**model, **average}


def _read_foreign(name: str, source: Source, values: Mapping[str, Any], hints: Hints) -> Weights:
    found = find_model(name, values)
    if found.left_aside:
        where = " and ".join(shown(place) for place in found.under if place) or "no prefix"
        aside = [shown(place) for place in found.left_aside]
        more = f" and {len(aside) - _MOST_SHOWN} more" if len(aside) > _MOST_SHOWN else ""
        _log.warning(
            "%r holds more than one thing: the model under %s is taken; left aside: %s%s",
            name, where, ", ".join(aside[:_MOST_SHOWN]), more,
        )  # fmt: skip
    _check_tensors(name, found.tensors, source.size)
    layout, state = to_official(name, found)
    kind: Kind = "encoder"
    if any(is_decoder_key(key) for key in state):
        kind = "autoencoder"
    elif any(key.startswith(("head.", "fc_norm.")) for key in state):
        kind = "classifier"
    sidecar = _sidecar(source, found, layout, kind)
    config, origins = infer_config(name, state, kind, sidecar, hints)
    _check_shapes(name, config, state, kind)
    num_classes, classes = None, tuple[str, ...]()
    if kind == "classifier":
        num_classes = len(state["head.bias"])
        if is_timm(sidecar.config):
            classes = _timm_classes(name, state, sidecar.config)
    weights = Weights(
        config, _as_float32(name, state), {}, name, kind,
        "timm" if is_timm(sidecar.config) else layout, origins, _dtype_name(state["cls_token"]),
        num_classes,
        next((name for key, name in _WRITTEN_BY.items() if key in source.content), ""),
        found.under, found.left_aside, classes,
    )  # fmt: skip
    if kind != "autoencoder" or origins["norm_pix"] != "assumed" or config.pca_components:
        return weights
    # It is not declared what the model predicts.
    norm_pix = predicts_normalized_pixels(_built(config, weights.state))
    if norm_pix is None:
        return weights
    config = replace(config, norm_pix=norm_pix)
    return replace(weights, config=config, origins=origins | {"norm_pix": "trial"})


def _timm_classes(
    name: str, state: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[str, ...]:
    """The names in timm's `config.json`, which has to agree with the tensors."""
    num_classes = len(state["head.bias"])
    wanted = {
        "num_classes": num_classes,
        # Of a mean without `fc_norm`, which nothing in the tensors tells, and others.
        "global_pool": "avg" if "fc_norm.weight" in state else "token",
    }
    for key, found in wanted.items():
        if (said := config.get(key, found)) != found:
            raise CheckpointError(
                f"config.json beside {name!r} has {key} {shown(said)} where {found} fits the "
                "weights; restore the config.json that came with them"
            )
    cfg = config.get("pretrained_cfg")
    inner = cfg.get("label_names") if isinstance(cfg, dict) else None
    names = config.get("label_names", inner)
    # timm takes a mapping too, from some of the outputs to names.
    given = names is not None and not isinstance(names, dict)
    return checked_classes(name, names, num_classes) if given else ()


def _sidecar(source: Source, found: Found, layout: str, kind: Kind) -> Sidecar:
    """What came with the tensors; a `config.json` only where it is of the same format."""
    # Those of the official script, or the hyperparameters that Lightning saves.
    options = source.content.get("args", source.content.get("hyper_parameters"))
    options = vars(options) if isinstance(options, argparse.Namespace) else options
    options = options if isinstance(options, Mapping) else {}
    # solo-learn's small models have twice and four times the heads that others have.
    ends, aside = (
        [place.rpartition(".")[2] for place in places] for places in (found.under, found.left_aside)
    )
    is_solo_learn = ends == ["backbone", "decoder"] and "classifier" in aside
    heads = {192: 12, 384: 12} if is_solo_learn else {}
    if layout.startswith("transformers"):
        config, preprocessor = (source.sidecar(name) for name in SIDECAR_FILES)
        return Sidecar(config, preprocessor, options, heads)
    config = source.sidecar(SIDECAR_FILES[0]) if kind != "autoencoder" else {}
    return Sidecar(config if is_timm(config) else {}, {}, options, heads)


# --- what holds for the tensors of every format


def _check_tensors(name: str, state: Mapping[Any, Any], size: int) -> None:
    """Refuse what is no ordinary tensor, and tensors that claim more bytes than the file has.

    In a torch file many tensors may share, or repeat, the same few bytes.
    """
    claimed = 0
    for key, tensor in state.items():
        is_tensor = type(tensor) in (Tensor, torch.nn.Parameter)
        is_plain = is_tensor and tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not is_plain or not tensor.is_floating_point():
            what = f"a tensor of {_dtype_name(tensor)}" if is_plain else "no plain tensor"
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


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_shapes(
    name: str, config: ModelConfig, state: Mapping[Any, Tensor], kind: Kind = "autoencoder"
) -> None:
    """Compare names and shapes with what a config asks for.

    The config may come from anybody: one that asks for more blocks than the file has tensors,
    or for more than can be counted, is refused before it costs anything.
    """
    depth = config.depth + (config.decoder_depth if kind == "autoencoder" else 0)
    if depth > len(state):
        raise CheckpointError(
            f"{name!r} does not fit its own config: {len(state)} tensors are too few for {depth} "
            "blocks"
        )
    try:
        with torch.device("meta"):
            whole = MaskedAutoencoder(config).state_dict()
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"the config in {name!r} describes no model: {error}") from error
    expected = {
        key: tensor.shape for key, tensor in whole.items()
        if kind == "autoencoder" or not is_decoder_key(key)
    }  # fmt: skip
    if kind == "classifier":
        _expect_head(expected, state)
    missing, unknown = (
        f"[{', '.join(shown(key) for key in sorted(map(str, keys))[:3])}]" if keys else "nothing"
        for keys in (expected.keys() - state.keys(), state.keys() - expected.keys())
    )
    if expected.keys() != state.keys():
        raise CheckpointError(
            f"{name!r} is not just a whole {kind}: missing {missing}, unknown {unknown}; give all "
            "weights of the model and nothing else"
        )
    for key, tensor in state.items():
        if tensor.shape != expected[key]:
            raise CheckpointError(
                f"{key} in {name!r} has shape {tuple(tensor.shape)}; its config, or its other "
                f"shapes, ask for {tuple(expected[key])}"
            )


def _expect_head(expected: dict[str, torch.Size], state: Mapping[Any, Tensor]) -> None:
    # A classifier of averaged tokens has its norm after the average; one of the class token not.
    if "fc_norm.weight" in state:
        for part in ("weight", "bias"):
            expected[f"fc_norm.{part}"] = expected.pop(f"norm.{part}")
    head = state.get("head.bias")
    classes = max(head.shape[0], 1) if head is not None and head.ndim == 1 else 1
    expected["head.weight"] = torch.Size((classes, expected["cls_token"][-1]))
    expected["head.bias"] = torch.Size((classes,))


def _as_float32(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in memory of finite numbers."""
    copies = {key: t.detach().to(torch.float32, copy=True) for key, t in state.items()}
    for key, tensor in copies.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{key} in {name!r} holds numbers that are not finite; the training it comes from "
                "went wrong or the file is damaged: take an earlier one"
            )
    return copies


# --- what a model predicts

# Share of a target's variance that a prediction must explain to count as one of it. Measured:
# `mae-tiny` 0.998 of pixels and -0.38 of normalised ones; a model of its shape trained for 400
# steps on normalised pixels -0.0004 and 0.89; random weights are below 0 for both.
_ENOUGH = 0.3
_MASK_RATIO = 0.5
# Patches along a side: as many as most models are made for, and quick for the others.
_GRID = 14


@torch.inference_mode()
def predicts_normalized_pixels(model: MaskedAutoencoder) -> bool | None:
    """Whether a model draws per-patch normalised pixels, found out by trying it on the CPU.

    Published files of both kinds have the same names and shapes, and a model taken for the wrong
    kind draws noise. On an image as easy as the one here a trained model's prediction is close
    to its target, and far from the other one. None if it is neither, as of untrained weights.
    """
    config = model.config
    line = torch.linspace(0, 1, config.patch_size * min(config.grid_size, _GRID))
    channel = torch.arange(config.in_chans).view(-1, 1, 1)
    # Slow waves, dark and bright. Each channel's lie in a direction of their own.
    x, y = torch.cos(channel.float()) * line, torch.sin(channel.float() + 1) * line[:, None]
    waves = torch.sin(math.pi * (x + y) + channel)  # (C, H, W)
    images = torch.stack((0.3 + 0.25 * waves, 0.7 + 0.25 * waves))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (config.mean, config.std))
    images = (images - mean) / std
    patches = patchify(images, config.patch_size)
    mask = random_mask(len(images), patches.shape[1], _MASK_RATIO, seed=0)
    pred = model(images, mask).pred
    # Of each target's variance, at most 1; below 0 if its mean would be a better guess.
    pixels, normalized = (
        1 - ((pred - target).square().mean() / target.var()).item()
        for target in (patches, normalize_patches(patches))
    )
    if not max(pixels, normalized) > _ENOUGH:
        return None
    return bool(normalized > pixels)
