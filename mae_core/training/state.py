"""A run between two steps: how it begins, goes on, and is kept."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mae_core.config import (
    ModelConfig,
    TrainConfig,
    declared_facts,
    from_dict,
    with_overrides,
    without_places,
)
from mae_core.errors import CheckpointError, ConfigError
from mae_core.model.mae import MaskedAutoencoder, resample_pos_embed
from mae_core.training.distributed import World, distribute, split_like, whole
from mae_core.training.optim import build_optimizers
from mae_core.training.precision import (
    checkpoint_activations,
    compile_blocks,
    loss_scaler,
    prefer_fast_attention,
    training_precision,
)
from mae_core.weights.contents import Contents
from mae_core.weights.registry import read_pretrained, weights_name
from mae_core.weights.runs import CHECKPOINT_FILE, PREVIOUS_CHECKPOINT_FILE, load_latest

_log = logging.getLogger(__name__)

# Fields of a model that an encoder cannot be taken over without, and likewise a decoder.
_OF_ENCODER = (
    "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio",
    "encoder_mask_tokens",
)  # fmt: skip
_OF_DECODER = (
    "decoder_embed_dim", "decoder_depth", "decoder_num_heads", "decoder_mlp_ratio",
    "pca_components",
)  # fmt: skip

# What a checkpoint holds; `RunState.content` writes it.
_KINDS: dict[str, tuple[type, ...]] = {
    "config": (dict,), "init_from": (str,), "model": (dict,), "ema": (dict, type(None)),
    "optimizers": (list,), "scaler": (dict,), "step": (int,), "seconds": (int, float),
    "rollbacks": (int,), "loss_average": (int, float), "changes": (list,),
}  # fmt: skip


@dataclass
class RunState:
    """A run between two steps.

    Attributes:
        model: Its parameters so far; split over the processes where `system.shard` says so.
        forward: What to call in place of `model`, so that gradients are averaged.
        optimizers: Their moments so far.
        scaler: Of the loss, for float16.
        precision: Of the forward pass: `float32`, `bfloat16` or `float16`.
        average: Running average of the parameters by name; empty without `ema`.
        init_from: Name of the weights that the run began with, and whether only their encoder
            was taken; empty if from scratch.
        step: Steps done.
        seconds: Time spent training so far, over all starts.
        rollbacks: How often the run has rolled back.
        device: Where the model is.
        loss_average: Running average of the loss; not a number at first.
        changes: Fields that were changed when the run was started again, each with the step
            from which the new value held; plain data.
        saved_config: Plain data of the run as it was before it was started again; None where
            this is its first start.
    """

    model: MaskedAutoencoder
    forward: nn.Module
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    precision: str
    average: dict[str, Tensor]
    device: torch.device
    loss_average: float = math.nan
    init_from: str = ""
    step: int = 0
    seconds: float = 0.0
    rollbacks: int = 0
    changes: list[dict[str, Any]] = field(default_factory=list)
    saved_config: dict[str, Any] | None = None

    def content(self, config: TrainConfig) -> dict[str, Any]:
        """All of it as whole tensors on the CPU and plain data, for a checkpoint.

        Every process has to ask.
        """
        return {
            "config": without_places(config),
            "init_from": self.init_from,
            "model": whole(self.model.state_dict()),
            "ema": whole(self.average) or None,
            "optimizers": [whole(optimizer.state_dict()) for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "rollbacks": self.rollbacks,
            "loss_average": self.loss_average,
            "changes": self.changes,
        }

    def snapshot(self) -> MaskedAutoencoder:
        """The model as it would be used: a whole copy in evaluation mode, averaged with `ema`.

        Every process has to ask.
        """
        parameters = whole(self.model.state_dict()) | whole(self.average)
        model = MaskedAutoencoder(self.model.config)
        model.load_state_dict(parameters)
        return model.to(self.device).eval()


def start_run(config: TrainConfig, world: World) -> RunState:
    """The run in `config.out` where it stopped, else `resume`, else `init_from`, else scratch.

    The log says which.

    Raises:
        CheckpointError: If the checkpoint or the weights are damaged or of another model.
        ConfigError: If the encoder in the weights of `init_from` is another than the model's.
        TrainingError: If the model is to be split and there is one process.
    """
    # First, for with a checkpoint the weights that the run began with need not be there.
    content = _saved(config)
    # The same parameters in every process.
    torch.manual_seed(config.seed)
    model = MaskedAutoencoder(config.model)
    state = _fresh(config, model, world, "" if content else _initialize(model, config))
    if content:
        restore(state, content, config)
        end = f"{config.epochs:g} epochs" if config.epochs else config.steps
        _log.info("resuming %s at step %d of %s", _folder_to_resume(config), state.step, end)
    elif state.init_from:
        _log.info("starting from the weights %s in %s", state.init_from, config.out)
    else:
        _log.info("starting from scratch in %s", config.out)
    return state


def _folder_to_resume(config: TrainConfig) -> Path | None:
    out = Path(config.out)
    if any((out / name).exists() for name in (CHECKPOINT_FILE, PREVIOUS_CHECKPOINT_FILE)):
        return out
    if not config.resume:
        return None
    path = Path(config.resume).expanduser()
    return path if path.is_dir() else path.parent


def _saved(config: TrainConfig) -> dict[str, Any] | None:
    """The checkpoint to go on from, with all it should hold; None where there is none.

    Raises:
        CheckpointError: If it is damaged or something is missing in it.
    """
    folder = _folder_to_resume(config)
    if folder is None:
        return None
    content = load_latest(folder)
    for name, kinds in _KINDS.items():
        if name not in content:
            raise _unusable(config, f"it has no {name!r}")
        if not isinstance(content[name], kinds):
            found, needed = type(content[name]).__name__, kinds[0].__name__
            raise _unusable(config, f"its {name!r} is of type {found} instead of {needed}")
    return content


def _unusable(config: TrainConfig, why: str) -> CheckpointError:
    folder = str(_folder_to_resume(config) or config.out)
    return CheckpointError(
        f"the checkpoint in {folder!r} cannot be used: {why}; delete it to go on from "
        f"{PREVIOUS_CHECKPOINT_FILE}, if that is there, or give another out= to begin anew"
    )


def _config_in(content: Mapping[str, Any], config: TrainConfig) -> TrainConfig:
    """The configuration that a checkpoint was written with; fields it lacks have the defaults."""
    try:
        return from_dict(TrainConfig, content["config"])
    except (ConfigError, TypeError) as error:
        raise _unusable(
            config, f"its configuration is not one of this version ({error})"
        ) from error


def _fresh(config: TrainConfig, model: MaskedAutoencoder, world: World, init_from: str) -> RunState:
    model = model.to(world.device)
    prefer_fast_attention(model, world.device)
    if config.system.checkpoint_activations:
        checkpoint_activations(model)
    if config.system.compile:
        compile_blocks(model)
    forward = distribute(model, world, shard=config.system.shard)
    precision = training_precision(config.system.precision, world.device)
    return RunState(
        model=model,
        forward=forward,
        optimizers=build_optimizers(model, config.optim),
        scaler=loss_scaler(precision, world.device),
        precision=precision,
        average=_trained(model) if config.ema else {},
        device=world.device,
        init_from=init_from,
    )


def with_shape_of_weights(config: TrainConfig, changes: Sequence[str] = ()) -> TrainConfig:
    """The run with the model that its checkpoint or else the weights of `init_from` are of.

    The decoder of weights that hold none is that of `config`, and so is the target.

    Args:
        config: The run.
        changes: `model.field=value` texts, which go before the shape of the weights: another
            decoder, image size or target.

    Raises:
        CheckpointError: If there are no such weights or they, or the checkpoint, cannot be used.
        ConfigError: If a change is none or asks for another encoder.
        DownloadError: If the weights cannot be fetched.
    """
    if not config.init_from:
        return with_overrides(config, changes)
    content = _saved(config)
    if content:
        model = _config_in(content, config).model
        return with_overrides(replace(config, model=model), changes)
    contents = read_pretrained(config.init_from)
    model = contents.config
    if contents.kind != "autoencoder":
        own = {name: getattr(config.model, name) for name in (*_OF_DECODER, "norm_pix")}
        model = replace(model, **own)
    config = with_overrides(replace(config, model=model), changes)
    _require_encoder(contents, config)
    _warn_of_guesses(contents, config, changes)
    return config


def with_saved_facts(config: TrainConfig) -> TrainConfig | None:
    """The run with what its checkpoint says of its pictures; None without a checkpoint.

    Those are the bands, the value range and the channel statistics: a folder to which pictures
    were added since may have others. What `config.data` declares goes before them.

    Raises:
        CheckpointError: If the checkpoint cannot be used.
    """
    content = _saved(config)
    if content is None:
        return None
    then, now = _config_in(content, config).model, declared_facts(config).model
    facts = {
        name: getattr(then, name)
        for name in ("bands", "value_range", "mean", "std")
        if getattr(now, name) == getattr(ModelConfig(in_chans=now.in_chans), name)
    }
    return replace(config, model=replace(now, **facts))


def _warn_of_guesses(contents: Contents, config: TrainConfig, changes: Sequence[str]) -> None:
    """Weights with another number of heads compute something else, and no shape tells."""
    guessed = [name for name in ("num_heads", "decoder_num_heads")
               if contents.origins.get(name) == "assumed"]  # fmt: skip
    if contents.kind != "autoencoder":
        guessed = [name for name in guessed if name == "num_heads"]
    for name in guessed:
        if not any(change.startswith(f"model.{name}=") for change in changes):
            _log.warning(
                "init_from=%s does not say how many heads it has: model.%s=%d is a guess; give "
                "the right one", config.init_from, name, getattr(config.model, name),
            )  # fmt: skip


def _require_encoder(contents: Contents, config: TrainConfig) -> None:
    """Refuse weights whose encoder is not the model's."""
    if contents.kind == "classifier":
        raise ConfigError(
            f"init_from={config.init_from} holds a classifier, whose encoder has been fine-tuned "
            "and has no last norm; give weights from before that"
        )
    other = _differing(_OF_ENCODER, contents, config.model)
    if other:
        given = " ".join(f"model.{name}={getattr(config.model, name)}" for name in other)
        fitting = " ".join(f"model.{name}={getattr(contents.config, name)}" for name in other)
        raise ConfigError(
            f"{given} cannot be changed: the weights of init_from={config.init_from} hold an "
            f"encoder of another shape than model=; give {fitting}, or leave the model's fields "
            "out"
        )


def _differing(names: Sequence[str], contents: Contents, model: ModelConfig) -> list[str]:
    """Fields in which a model is not what the weights say; what was guessed does not count."""
    return [
        name
        for name in names
        if getattr(contents.config, name) != getattr(model, name)
        and contents.origins.get(name) not in ("assumed", "known width")
    ]


def _initialize(model: MaskedAutoencoder, config: TrainConfig) -> str:
    """Load the weights of `init_from`, if any; returns what they are called.

    Where they have no decoder, or another than the model's, it keeps its own and the name says so.
    """
    if not config.init_from:
        return ""
    contents, name = read_pretrained(config.init_from), weights_name(config.init_from)
    _require_encoder(contents, config)
    why, state, fresh = _why_fresh(contents, config.model), dict(contents.state), {}
    if why:
        state = {key: value for key, value in state.items() if not _of_decoder(key)}
        fresh = {key: value for key, value in model.state_dict().items() if _of_decoder(key)}
    if contents.config.table_grid != config.model.table_grid:
        _resample(state, contents.config, config.model)
    model.load_state_dict(state | fresh)
    if not why:
        return name
    _log.info("init_from=%s: its encoder is taken; the decoder starts fresh, as %s", name, why)
    return f"{name} (encoder only, fresh decoder)"


def _of_decoder(key: str) -> bool:
    return key.startswith(("decoder_", "pca_")) or key == "mask_token"


def _why_fresh(contents: Contents, model: ModelConfig) -> str:
    """Why the decoder of the weights is not taken, as half a sentence; empty if it is."""
    if contents.kind != "autoencoder":
        return "these weights have none"
    other = _differing(_OF_DECODER, contents, model)
    values = (f"{name} {getattr(contents.config, name)}" for name in other)
    return f"theirs has {', '.join(values)}" if other else ""


def _resample(state: dict[str, Tensor], source: ModelConfig, target: ModelConfig) -> None:
    """Stretch the position tables over another grid."""
    for name in ("pos_embed", "decoder_pos_embed"):
        if name in state:
            state[name] = resample_pos_embed(state[name], source.table_grid, target.table_grid)


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def restore(state: RunState, content: Mapping[str, Any], config: TrainConfig) -> None:
    """Put a checkpoint's content into a run.

    Raises:
        CheckpointError: If it is damaged, or of another model or optimiser.
    """
    then = _config_in(content, config)
    if then.model != config.model or then.optim.name != config.optim.name:
        raise CheckpointError(
            f"the checkpoint in {config.out!r} is of another model or optimiser; give another "
            "out= or the fields it was started with"
        )
    try:
        _load(state, content)
    except torch.OutOfMemoryError:
        raise
    except (
        AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError
    ) as error:  # fmt: skip
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise _unusable(config, f"it does not fit its own model ({what})") from error
    state.init_from = content["init_from"]
    state.step, state.seconds = content["step"], content["seconds"]
    state.rollbacks = content["rollbacks"]
    state.loss_average = content["loss_average"]
    state.changes = list(content["changes"])
    state.saved_config = without_places(then)


def _load(state: RunState, content: Mapping[str, Any]) -> None:
    own = state.model.state_dict()
    state.model.load_state_dict(
        {name: split_like(value, own[name]) for name, value in content["model"].items()}
    )
    # An average that begins only now begins at the parameters.
    averaged = content["ema"] or content["model"]
    for name, average in state.average.items():
        average.copy_(split_like(averaged[name], average))
    for optimizer, saved in zip(state.optimizers, content["optimizers"], strict=True):
        _load_optimizer(optimizer, saved)
    # A scaler that is not in use keeps nothing, and takes nothing.
    if content["scaler"]:
        state.scaler.load_state_dict(content["scaler"])
    for change in content["changes"]:
        if not {"step", "field", "from", "to"} <= set(change):
            raise ValueError("a change on the way is not said in full")


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    # The groups' settings are the config's of now, not those of then.
    groups = optimizer.state_dict()["param_groups"]
    sizes = [[len(group["params"]) for group in these] for these in (groups, saved["param_groups"])]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"its optimiser has groups of {sizes[1]} parameters instead of {sizes[0]}, as those "
            "of other versions have"
        )
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.ndim:
                if value.shape != parameter.shape:
                    raise ValueError(f"a {name} has the shape {tuple(value.shape)}")
                moments[name] = split_like(value, parameter)


def note_changes(state: RunState, config: TrainConfig) -> None:
    """Keep, and say, which fields are not those that the run was started with before.

    Args:
        state: A run as `start_run` gives it.
        config: With its epochs turned into steps.
    """
    if state.saved_config is None:
        return
    then, now = state.saved_config, without_places(config)
    for name in now:
        if now[name] != then[name]:
            _log.warning("%s changed from %s to %s", name, then[name], now[name])
            state.changes.append(
                {"step": state.step, "field": name, "from": then[name], "to": now[name]}
            )
