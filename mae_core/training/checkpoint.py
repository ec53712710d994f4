"""The state of a run: saved, resumed, or begun with the weights of `init_from`."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mae_core.config import (
    ModelConfig,
    RunConfig,
    TrainConfig,
    declared_facts,
    from_dict,
    with_overrides,
    without_places,
)
from mae_core.errors import CheckpointError, ConfigError
from mae_core.model.mae import MaskedAutoencoder, resample_pos_embed
from mae_core.weights.files import (
    CHECKPOINT_FILE,
    PREVIOUS_CHECKPOINT_FILE,
    load_checkpoint,
    load_latest,
)
from mae_core.weights.formats import Weights
from mae_core.weights.names import is_decoder_key
from mae_core.weights.registry import weights_name

_log = logging.getLogger(__name__)

# Fields that must agree for an encoder to be taken over, and for a decoder.
_ENCODER_FIELDS = (
    "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio",
    "encoder_mask_tokens",
)  # fmt: skip
_DECODER_FIELDS = (
    "decoder_embed_dim", "decoder_depth", "decoder_num_heads", "decoder_mlp_ratio",
    "pca_components",
)  # fmt: skip

# Numbers, texts and plain data of a run.
_PLAIN = ("init_from", "step", "seconds", "rollbacks", "loss_average", "levels", "changes")


@dataclass
class RunState:
    """A run between two steps.

    Attributes:
        build: Makes a model of the same shape.
        forward: The module to call in place of `model`, so that gradients are averaged.
        wrapper: Module that computes the loss, where that is not the model: it holds the model
            as `model`, beside modules that are trained with it and not exported.
        scaler: Loss scaler, for float16.
        precision: Of the forward pass: `float32`, `bfloat16` or `float16`.
        average: EMA of the parameters by name; empty without `ema`.
        loss_average: Running average of the loss; NaN at first.
        levels: Losses since it was last updated.
        init_from: Name of the weights that the run began with; empty if from scratch.
        step: Steps done.
        seconds: Time spent training so far, over all starts.
        identity: What a resumed run has to agree in, beside the `fixed` fields of its config.
        changes: Fields that were changed when the run was resumed: plain data with the step
            from which the new value holds.
        saved_config: Plain data of the config before the run was resumed; None at first.
    """

    model: nn.Module
    build: Callable[[], nn.Module]
    forward: nn.Module
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    precision: str
    average: dict[str, Tensor]
    device: torch.device
    wrapper: nn.Module | None = None
    loss_average: float = math.nan
    levels: list[float] = field(default_factory=list)
    init_from: str = ""
    step: int = 0
    seconds: float = 0.0
    rollbacks: int = 0
    identity: dict[str, Any] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)
    saved_config: dict[str, Any] | None = None

    def content(self, config: RunConfig) -> dict[str, Any]:
        """Everything that a checkpoint holds: tensors on the CPU and plain data."""
        return {
            "config": without_places(config),
            "identity": self.identity,
            "model": _to_cpu(self.model.state_dict()),
            "wrapper": _to_cpu(self._helpers()),
            "ema": _to_cpu(self.average) or None,
            "optimizers": [_to_cpu(optimizer.state_dict()) for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            **{name: getattr(self, name) for name in _PLAIN},
        }

    def _helpers(self) -> dict[str, Tensor]:
        """The state of the wrapper, without the model's."""
        state = self.wrapper.state_dict() if self.wrapper else {}
        return {name: value for name, value in state.items() if not name.startswith("model.")}

    def snapshot(self) -> Any:
        """A copy of the model as it is exported: in evaluation mode, averaged with `ema`."""
        model = self.build()
        model.load_state_dict(self.model.state_dict() | self.average)
        return model.to(self.device).eval()


def _to_cpu(values: Any) -> Any:
    if isinstance(values, Tensor):
        return values.detach().cpu()
    if isinstance(values, Mapping):
        return {key: _to_cpu(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_to_cpu(value) for value in values]
    return values


# --- resume


def folder_to_resume(config: RunConfig) -> Path | None:
    """The folder with the checkpoint to go on from: `out`, else `resume`."""
    out = Path(config.out)
    if any((out / name).exists() for name in (CHECKPOINT_FILE, PREVIOUS_CHECKPOINT_FILE)):
        return out
    path = Path(config.resume).expanduser()
    return None if not config.resume else path.parent if path.is_file() else path


def read_checkpoint(config: RunConfig) -> dict[str, Any] | None:
    """The checkpoint to go on from, its `config` of the same class; None if there is none."""
    folder = folder_to_resume(config)
    if folder is None:
        return None
    file = Path(config.resume).expanduser()
    named = folder != Path(config.out) and file.is_file()
    saved = load_checkpoint(file) if named else load_latest(folder)
    try:
        return saved | {"config": from_dict(type(config), saved["config"])}
    except (AttributeError, ConfigError, KeyError, TypeError) as error:
        raise _unusable(folder, error) from error


def _unusable(folder: object, error: Exception) -> CheckpointError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return CheckpointError(
        f"the checkpoint in {str(folder)!r} is damaged or of another version ({reason}); delete it "
        f"to go on from {PREVIOUS_CHECKPOINT_FILE}, or give another out= to begin anew"
    )


def with_saved_facts(config: TrainConfig, saved: Mapping[str, Any]) -> TrainConfig:
    """Take bands, value range and channel statistics from a checkpoint.

    The folder may have other ones by now, as images were added. What `config.data` declares
    wins.
    """
    then, now = saved["config"].model, declared_facts(config).model
    facts = {
        name: getattr(then, name)
        for name in ("bands", "value_range", "mean", "std")
        if getattr(now, name) == getattr(ModelConfig(in_chans=now.in_chans), name)
    }
    return replace(config, model=replace(now, **facts))


def restore(state: RunState, saved: Mapping[str, Any], config: RunConfig) -> None:
    """Load what `read_checkpoint` gave, unless it differs in what has to stay."""
    then: RunConfig = saved["config"]
    known = saved.get("identity")  # not in version 0.1
    known = known if isinstance(known, dict) else {}
    other = [name for name, value in state.identity.items() if known.get(name) != value]
    other += [name for name in config.fixed if attrgetter(name)(then) != attrgetter(name)(config)]
    if other:
        raise CheckpointError(
            f"the checkpoint in {str(folder_to_resume(config))!r} is of another "
            f"{' and '.join(other)}; give another out= or the fields it was started with"
        )
    try:
        state.model.load_state_dict(saved["model"])
        if state.wrapper:
            model = {f"model.{name}": value for name, value in saved["model"].items()}
            state.wrapper.load_state_dict(model | saved["wrapper"])
        # An EMA that begins only now begins at the parameters.
        averaged = saved["ema"] or saved["model"]
        for name, average in state.average.items():
            average.copy_(averaged[name])
        for optimizer, content in zip(state.optimizers, saved["optimizers"], strict=True):
            # Settings are those of the present config; torch compares the groups' parameters.
            groups = [
                now | {"params": before["params"]}
                for now, before in zip(
                    optimizer.state_dict()["param_groups"], content["param_groups"], strict=True
                )
            ]
            optimizer.load_state_dict({"state": content["state"], "param_groups": groups})
        # A disabled scaler has an empty state and accepts no other.
        if saved["scaler"]:
            state.scaler.load_state_dict(saved["scaler"])
        state.init_from, state.step = str(saved["init_from"]), int(saved["step"])
        state.seconds, state.rollbacks = float(saved["seconds"]), int(saved["rollbacks"])
        state.loss_average = float(saved["loss_average"])
        state.levels = [float(level) for level in saved.get("levels", ())]  # not in version 0.1
        state.changes = [dict(change) for change in saved["changes"]]
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise _unusable(folder_to_resume(config), error) from error
    state.saved_config = without_places(then)


def note_changes(state: RunState, config: RunConfig) -> None:
    """Keep the fields in which a resumed run differs from before; epochs are steps."""
    now = without_places(config)
    then = state.saved_config or now
    state.changes += [
        {"step": state.step, "field": name, "from": then[name], "to": now[name]}
        for name in now
        if now[name] != then[name]
    ]


# --- init_from


def with_model(
    config: TrainConfig, changes: Sequence[str], saved: Mapping[str, Any] | None,
    weights: Weights | None,
) -> TrainConfig:  # fmt: skip
    """Give a run with `init_from` the model of its checkpoint, or else of the weights.

    If the weights have no decoder, the decoder and the target are those of `config`. `changes`
    (`model.field=value`) win: another decoder, image size or target. Another encoder is refused.
    """

    def changed(model: ModelConfig) -> ModelConfig:
        """The model with the changes, before it is the run's: only then the target may fit it."""
        return with_overrides(model, [change.removeprefix("model.") for change in changes])

    if saved and config.init_from:
        return replace(config, model=changed(saved["config"].model))
    if weights is None:
        return with_overrides(config, changes)
    source, model = f"init_from={config.init_from}", weights.config
    if weights.kind == "classifier":
        raise ConfigError(
            f"{source} holds a classifier, whose encoder has been fine-tuned and has no last norm; "
            "give weights from before that"
        )
    if weights.kind != "autoencoder":
        own = {name: getattr(config.model, name) for name in (*_DECODER_FIELDS, "norm_pix")}
        model = replace(model, **own)
    config = replace(config, model=changed(model))
    if other := _differing(_ENCODER_FIELDS, weights, config.model):
        fitting = " ".join(f"model.{name}={getattr(weights.config, name)}" for name in other)
        raise ConfigError(
            f"{source} holds an encoder of another shape; give {fitting}, or leave the model's "
            "fields out"
        )
    # A wrong number of heads computes something else, and no shape tells.
    for name in weights.guesses:
        if not any(change.startswith(f"model.{name}=") for change in changes):
            heads = getattr(config.model, name)
            _log.warning("model.%s=%d is a guess for %s; give the right one", name, heads, source)
    return config


def _differing(names: Sequence[str], weights: Weights, model: ModelConfig) -> list[str]:
    """Fields in which a model differs from weights; guessed fields do not count."""
    return [
        name
        for name in names
        if getattr(weights.config, name) != getattr(model, name)
        and weights.origins.get(name) not in ("assumed", "known width")
    ]


def load_initial_weights(model: MaskedAutoencoder, weights: Weights, init_from: str) -> str:
    """Load the weights of `init_from`; returns their name.

    If they have no decoder, or another than the model's, the model keeps its own and the name
    says so.
    """
    name, state, own = weights_name(init_from), dict(weights.state), model.state_dict()
    grids = weights.config.table_grid, model.config.table_grid
    if grids[0] != grids[1]:
        for table in {"pos_embed", "decoder_pos_embed"} & set(state):
            state[table] = resample_pos_embed(state[table], *grids)
    other = _differing(_DECODER_FIELDS, weights, model.config)
    if other or weights.kind != "autoencoder":
        state = {key: own[key] if is_decoder_key(key) else state[key] for key in own}
        _log.info(
            "init_from=%s: its encoder is taken; the decoder starts fresh%s",
            name, f", as {', '.join(other)} differ" if weights.kind == "autoencoder" else "",
        )  # fmt: skip
        name += " (encoder only, fresh decoder)"
    model.load_state_dict(state)
    return name
