"""The training loop.

Nothing but model, optimisers and step is needed to go on after a stop: the learning rate,
the crops and the masks are pure functions of the step. On one CPU a resumed run ends in the
very bits of the undisturbed one.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mae_core.checkpoint import CHECKPOINT_FILE, load_checkpoint, save_checkpoint
from mae_core.config import TrainConfig, without_places
from mae_core.data.loader import BatchLoader, Pictures
from mae_core.errors import CheckpointError, TrainingError
from mae_core.models.mae import MaskedAutoencoder
from mae_core.training.optim import build_optimizers, set_lr
from mae_core.training.precision import autocast, prefer_fast_attention
from mae_core.training.schedule import image_size_at, lr_at, mask_at

_log = logging.getLogger(__name__)

# Steps between two lines of metrics.jsonl and two checks that the loss is a number.
_LOG_EVERY = 10

_METRICS_FILE = "metrics.jsonl"

# Called with the model in evaluation mode and the number of steps done; what it returns is
# logged.
Evaluation = Callable[[MaskedAutoencoder, int], Mapping[str, float]]


@dataclass
class RunState:
    """A run between two steps.

    Attributes:
        model: Its parameters so far.
        optimizers: Their moments so far.
        step: Steps done.
        seconds: Time spent training so far, over all starts.
        changes: Fields that were changed when the run was started again, each with the step
            from which the new value held; plain data.
    """

    model: MaskedAutoencoder
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0
    changes: list[dict[str, Any]] = field(default_factory=list)


def start_run(config: TrainConfig, device: torch.device) -> RunState:
    """A new run from scratch, or the one in `config.out` where it stopped; says which.

    Raises:
        CheckpointError: If the checkpoint there is damaged or of another model.
    """
    torch.manual_seed(config.seed)
    model = MaskedAutoencoder(config.model).to(device)
    prefer_fast_attention(model, device)
    state = RunState(model, build_optimizers(model, config.optim))
    path = Path(config.out) / CHECKPOINT_FILE
    if not path.exists():
        _log.info("starting from scratch in %s", config.out)
        return state
    _restore(state, load_checkpoint(path), config)
    _log.info("resuming %s at step %d of %d", config.out, state.step, config.steps)
    return state


def _restore(state: RunState, content: dict[str, Any], config: TrainConfig) -> None:
    now, then = without_places(config), content["config"]
    if now["model"] != then["model"] or now["optim"]["name"] != then["optim"]["name"]:
        raise CheckpointError(
            f"the checkpoint in {config.out!r} is of another model or optimiser; give another "
            "out= or the fields it was started with"
        )
    state.model.load_state_dict(content["model"])
    for optimizer, saved in zip(state.optimizers, content["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    state.step, state.seconds = content["step"], content["seconds"]
    state.changes = content["changes"]
    for name in now:
        if now[name] != then[name]:
            _log.warning("%s changed from %s to %s", name, then[name], now[name])
            change = {"step": state.step, "field": name, "from": then[name], "to": now[name]}
            state.changes.append(change)
    _forget_metrics_after(state.step, Path(config.out) / _METRICS_FILE)


def _forget_metrics_after(step: int, path: Path) -> None:
    """Drop the lines of steps that a stop undid, for they are about to be made again."""
    if path.exists():
        lines = path.read_text().splitlines()
        # A kill can leave half a line at the end.
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in kept))


def train(
    config: TrainConfig,
    state: RunState,
    pictures: Pictures,
    device: torch.device,
    evaluate: Evaluation,
) -> None:
    """Train from `state.step` to `config.steps`, with checkpoints and metrics on the way.

    Args:
        config: The run.
        state: Where it stands; changed in place.
        pictures: What to train on.
        device: Where the model is.
        evaluate: Called every `eval_every` steps and at the end.

    Raises:
        TrainingError: If the loss or the gradient is no longer a finite number; the last
            checkpoint is from before that.
    """
    loader = BatchLoader(pictures, config.data, batch_size=config.batch_size, seed=config.seed)
    batches = loader.batches(
        state.step, config.steps, lambda step: image_size_at(step, config.steps, config.stages)
    )
    with tqdm(
        total=config.steps, initial=state.step, unit="step", desc="training", smoothing=0.05
    ) as bar:
        begun = time.perf_counter() - state.seconds
        for batch in batches:
            loss, norm = _train_step(config, state, batch.to(device))
            state.step += 1
            state.seconds = time.perf_counter() - begun
            _after_step(config, state, loss, norm, bar, evaluate)


def _train_step(config: TrainConfig, state: RunState, batch: Tensor) -> tuple[Tensor, Tensor]:
    """One update; returns the loss and the gradient's norm before clipping."""
    model = state.model
    images = _normalize(batch, config)
    mask = mask_at(state.step, len(images), model.grid_of(images), config.mask, config.seed)
    set_lr(state.optimizers, lr_at(state.step, config.steps, config.optim))
    with autocast(config.precision, images.device):
        output = model(images, mask.to(images.device), config.visible_weight)
    output.loss.backward()
    limit = config.optim.clip_grad or math.inf
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return output.loss.detach(), norm


def _normalize(batch: Tensor, config: TrainConfig) -> Tensor:
    """(N, H, W, C) uint8 -> (N, C, H, W) float32, normalised."""
    mean = torch.tensor(config.model.mean, device=batch.device)
    std = torch.tensor(config.model.std, device=batch.device)
    return ((batch / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def _after_step(
    config: TrainConfig,
    state: RunState,
    loss: Tensor,
    norm: Tensor,
    bar: "tqdm[Any]",
    evaluate: Evaluation,
) -> None:
    last = state.step == config.steps
    saving = state.step % config.save_every == 0 or last
    if state.step % _LOG_EVERY == 0 or saving:
        _check_finite(state.step, loss, norm)
        values = {
            "loss": loss.item(),
            "grad_norm": norm.item(),
            "lr": lr_at(state.step - 1, config.steps, config.optim),
        }
        _write_metrics(config, state, values)
        rate = (bar.format_dict["rate"] or 0.0) * config.batch_size
        bar.set_postfix_str(f"loss {values['loss']:.3f}, {rate:.0f} img/s", refresh=False)
    bar.update()
    if saving:
        save_checkpoint(Path(config.out) / CHECKPOINT_FILE, _checkpoint_of(config, state))
    if state.step % config.eval_every == 0 or last:
        state.model.eval()
        values = dict(evaluate(state.model, state.step))
        state.model.train()
        _write_metrics(config, state, values)
        if values:
            bar.write(f"step {state.step}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()))


def _check_finite(step: int, loss: Tensor, norm: Tensor) -> None:
    if not math.isfinite(loss.item()) or not math.isfinite(norm.item()):
        raise TrainingError(
            f"at step {step} the loss is {loss.item():.3g} and the gradient's norm "
            f"{norm.item():.3g}; the checkpoint from before that is kept. Lower optim.lr, set "
            "optim.clip_grad=1 or precision=float32, and start the same command again"
        )


def _checkpoint_of(config: TrainConfig, state: RunState) -> dict[str, Any]:
    return {
        "config": without_places(config),
        "model": state.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in state.optimizers],
        "step": state.step,
        "seconds": state.seconds,
        "changes": state.changes,
    }


def _write_metrics(config: TrainConfig, state: RunState, values: Mapping[str, float]) -> None:
    """Append one JSON line, so that a run can be plotted without a server."""
    line = {"step": state.step, "seconds": round(state.seconds, 1), **values}
    with (Path(config.out) / _METRICS_FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")
