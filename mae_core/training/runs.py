"""What runs of all kinds share: a folder, a config, a batch; and what encoders are trained with."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import filelock
import torch
from pydantic import Field

from mae_core.config import (
    Count,
    NotNegativeInt,
    OptimConfig,
    PositiveShare,
    RunConfig,
    save_yaml,
)
from mae_core.distributed import World
from mae_core.errors import ConfigError, TrainingError
from mae_core.training.callbacks import Logger, Measured, Progress, Report
from mae_core.training.checkpoint import RunState, read_checkpoint, restore
from mae_core.training.report import CONFIG_FILE
from mae_core.training.trainer import Objective, Trainer
from mae_core.weights.files import write_atomically
from mae_core.weights.formats import Weights
from mae_core.weights.registry import read_weights

AnyTransfer = TypeVar("AnyTransfer", bound="TransferConfig")


@dataclass(frozen=True)
class TransferConfig(RunConfig):
    """A run that trains a pre-trained encoder for another task.

    Attributes:
        init: `weights`, or `random` for an encoder of the same shape that was never trained.
        image_size: Side of the squares that the model sees, in pixels; 0 for the model's own.
        layer_decay: The learning rate of each block is that of the next one times this, 0..1.
        flip: Whether half of the crops are mirrored; not for letters and the like.
        seeds: Repetitions, with one seed after another from `seed` on.
        workers: Processes or threads that read images.
    """

    init: Literal["weights", "random"] = "weights"
    image_size: NotNegativeInt = 0
    layer_decay: PositiveShare = 0.75
    flip: bool = True
    seeds: Count = 1
    workers: Count = 4
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optim.name != "adamw":
            raise ConfigError(
                f"optim.name={self.optim.name}: layer decay is for adamw; leave optim.name out"
            )
        if self.resume:
            raise ConfigError(
                "resume= is for mae train; give --out the folder of the run to continue it"
            )

    @property
    def fixed(self) -> tuple[str, ...]:
        """All fields that say what is learned: a figure stands for one choice of them."""
        free = {"system", "recovery", "out", "resume", "eval_every", "save_every", "writers"}
        free |= {"workers", "seeds", "resamples"}
        return tuple(field.name for field in fields(self) if field.name not in free)


@dataclass(frozen=True)
class TransferRun(Generic[AnyTransfer]):
    """What came of a run.

    Attributes:
        config: As resolved; of a run that was finished before, that of then.
        found: What was measured at the end; None if it was stopped before, and on other ranks than
            0.
        finished: Whether it came to its end.
        stopped_by: Number of the signal that was received, also in the last step, or 0.
    """

    config: AnyTransfer
    found: Any
    finished: bool
    stopped_by: int


def open_weights(weights: str | Path, world: World) -> Weights:
    """Read weights on all ranks, of which the first alone logs. Collective."""
    if not world.is_main:
        logging.getLogger("mae_core").setLevel(logging.WARNING)
    if world.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    with world.main_first():
        return read_weights(weights)


def identity_of(weights: Weights, images: Any) -> dict[str, Any]:
    """What a resumed run has to agree in: images have `classes` and a `listing`."""
    return {
        "encoder": weights.digest, "set of classes": list(images.classes),
        "set of training images": images.listing,
    }  # fmt: skip


def run_transfer(
    config: AnyTransfer, state: RunState, objective: Objective, world: World, *,
    measure: Callable[[Any], Any], summary: Callable[[Any], Mapping[str, float]],
    finish: Callable[[Any, Any, AnyTransfer], None] | None = None,
) -> TransferRun[AnyTransfer]:  # fmt: skip
    """Train to the end and measure; where `config.out` holds a checkpoint the run goes on from it.

    Args:
        config: Resolved.
        state: At step 0.
        objective: What is trained for.
        world: The ranks.
        measure: Measures a model as it is exported; on rank 0.
        summary: Figures by name, for the log.
        finish: Gets the trained model, what was measured and the config of the result; on rank 0.

    Raises:
        MAEError: If the folder holds another run, or training fails.
    """
    out = Path(config.out)
    with alone_in(out, world):
        if saved := read_checkpoint(config):
            restore(state, saved, config)
        if saved and state.step >= config.steps:
            # Precision and the like are those that it was trained with.
            config = replace(saved["config"], out=config.out)
        else:
            write_config(config, getattr(config, "recipe", "custom"), world)
        logger = Logger(out, config)
        measured = Measured(logger, measure, summary)
        callbacks = (Progress(config.steps, state.step), logger, measured, Report(config))
        trainer = Trainer(config, state, objective, callbacks if world.is_main else (), world)
        stopped_by, found = trainer.fit(), None
        if world.is_main and not stopped_by:
            model = state.snapshot()
            # Of a run that was finished before, nothing was measured now.
            found = measured.last or measure(model)
            if finish:
                finish(model, found, config)
        return TransferRun(config, found, not stopped_by, stopped_by or trainer.late_signal())


def build_layer_decay(
    model: Any, *, config: OptimConfig, layer_decay: float
) -> list[torch.optim.Optimizer]:
    """AdamW whose groups have the `lr_scale` of their layer; biases and vectors do not decay."""
    from timm.optim import param_groups_layer_decay

    groups = param_groups_layer_decay(
        model, config.weight_decay, model.no_weight_decay(), layer_decay=layer_decay
    )
    return [torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)]


@contextmanager
def alone_in(out: Path, world: World) -> Iterator[None]:
    """Make the folder of a run; refuse a second run in it at the same time."""
    if not world.is_main:
        yield
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(out / ".lock").acquire(timeout=0)
    except filelock.Timeout as error:
        raise TrainingError(
            f"another process trains in {str(out)!r}; wait for it, or give another out="
        ) from error
    except OSError as error:
        raise TrainingError(
            f"the folder {str(out)!r} cannot be written to ({error.strerror}); give another out="
        ) from error
    with lock:
        yield


def check_batch(config: RunConfig, world: World) -> None:
    """Refuse a batch that ranks and micro-batches cannot share alike."""
    shares = world.size * config.system.accumulate
    if config.batch_size % shares:
        # A mean of means would not be the mean.
        raise ConfigError(
            f"batch_size {config.batch_size} does not divide into {world.size} processes "
            f"times {config.system.accumulate} micro-batches; pick a multiple of {shares}"
        )


def write_config(config: RunConfig, recipe_name: str, world: World) -> None:
    """Write `config.yaml` into the folder of a run."""
    if world.is_main:
        path = Path(config.out) / CONFIG_FILE
        write_atomically(path, lambda partial: save_yaml(config, partial, recipe=recipe_name))
