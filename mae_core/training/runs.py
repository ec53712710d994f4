"""What runs of all kinds share: a folder, a config, a batch; and what encoders are trained with."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

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
from mae_core.training.report import CONFIG_FILE
from mae_core.weights.files import write_atomically


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
            raise ConfigError(f"optim.name={self.optim.name}: layers of their own rates take adamw")
        if self.resume:
            raise ConfigError("resume= is of mae train; the folder of a run goes on by itself")

    @property
    def fixed(self) -> tuple[str, ...]:
        """All fields that have to do with what is learned: a figure is of one set of them."""
        free = {"system", "recovery", "out", "resume", "eval_every", "save_every", "writers"}
        free |= {"workers", "seeds"}
        return tuple(field.name for field in fields(self) if field.name not in free)


def build_layer_decay(
    model: Any, *, config: OptimConfig, layer_decay: float
) -> list[torch.optim.Optimizer]:
    """AdamW whose groups have the `lr_scale` of their layer; biases and vectors do not decay."""
    from timm.optim import param_groups_layer_decay

    kept = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups = param_groups_layer_decay(model, config.weight_decay, kept, layer_decay=layer_decay)
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
