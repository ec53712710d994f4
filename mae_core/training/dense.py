"""Training of a segmenter or a detector on an encoder, once for each seed.

`segment` and `detect` have the configs, the objectives and the models; what they share is here.
"""

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from mae_core.config import (
    Count,
    NotNegative,
    NotNegativeInt,
    OptimConfig,
    Positive,
)
from mae_core.data.dense import Dataset, batches
from mae_core.distributed import World
from mae_core.errors import ConfigError
from mae_core.model.dense import DenseModel
from mae_core.training.callbacks import Logger, Measured, Progress, Report, require_writers
from mae_core.training.checkpoint import RunState, read_checkpoint, restore
from mae_core.training.optim import with_peak_lr, with_steps
from mae_core.training.runs import (
    TransferConfig,
    alone_in,
    build_layer_decay,
    check_batch,
    write_config,
)
from mae_core.training.trainer import Loss, Trainer, build_state
from mae_core.weights.formats import Weights
from mae_core.weights.registry import read_weights, weights_name

_log = logging.getLogger(__name__)

# As UPerNet and Mask R-CNN are fine-tuned.
_OPTIM = OptimConfig(lr=1e-4, betas=(0.9, 0.999), warmup_epochs=1, warmup_steps=0)

Model = TypeVar("Model", bound=DenseModel)
Figures = TypeVar("Figures")
Images = TypeVar("Images")


@dataclass(frozen=True)
class DenseConfig(TransferConfig):
    """What segmentation and detection share.

    Attributes:
        freeze: Whether the encoder stays as it is and the head alone is trained.
        channels: Width of the head.
        scale: Smallest and largest random scale of a sample.
        resamples: Of the measured images, for the interval (bootstrap); 0 for none.
    """

    freeze: bool = False
    channels: Count = 256
    scale: tuple[Positive, Positive] = (0.5, 2.0)
    resamples: NotNegativeInt = 1000
    optim: OptimConfig = _OPTIM
    epochs: NotNegative = 100.0
    batch_size: Count = 16
    eval_every: Count = 5000
    save_every: Count = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale[0] > self.scale[1]:
            raise ConfigError(f"scale is {list(self.scale)}; give the smaller number first")


@dataclass(frozen=True)
class Repeated(Generic[Figures]):
    """Runs of one config with several seeds.

    Attributes:
        figures: What was measured of each.
        facts: Plain data for the report: weights, init, config.
        stopped_by: Number of the signal that stopped the last one, or 0.
    """

    figures: list[Figures]
    facts: dict[str, Any]
    stopped_by: int = 0


def open_encoder(weights: str | Path, config: DenseConfig, world: World) -> Weights:
    """The weights, if their encoder can be taken; the decoder does not matter. Collective.

    Raises:
        CheckpointError: If they are a classifier, unless the encoder is to be a random one.
    """
    if not world.is_main:
        logging.getLogger("mae_core").setLevel(logging.WARNING)
    if world.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    with world.main_first():
        read = read_weights(weights)
    if config.init == "weights":
        read.build_encoder()
    return read


def repeat(
    weights: str | Path, read: Weights, config: DenseConfig, train: Dataset[Any],
    classes: Sequence[str], build: Callable[[], Model],
    objective: "Callable[[DenseConfig, World], DenseObjective]",
    measure: Callable[[Model], Figures], summary: Callable[[Figures], Mapping[str, float]],
    world: World,
) -> Repeated[Figures]:  # fmt: skip
    """Train and measure with each seed, in `out` or, if they are several, `out/seed-0` and so on.

    A run that is finished there is only measured again.

    Args:
        weights: As they were named.
        read: What they hold.
        config: Of the runs.
        train: What is learned from.
        classes: Their names.
        build: Makes a model with freshly drawn parameters.
        objective: Makes what a run trains for.
        measure: Measures a trained model; on rank 0.
        summary: Figures by name, for the log.
        world: Its ranks train together.

    Returns:
        Figures on rank 0, none on the others.
    """
    require_writers(config.writers)
    name, figures = weights_name(weights), list[Figures]()
    facts = {"weights": name, "init": config.init}
    kept = {"encoder": read.digest, "classes": list(classes), "number of images": len(train)}
    check_batch(config, world)
    out = Path(config.out).expanduser()
    config = with_steps(with_peak_lr(replace(config, out=str(out))), len(train))
    for seed in range(config.seed, config.seed + config.seeds):
        folder = out / f"seed-{seed}" if config.seeds > 1 else out
        one = replace(config, seed=seed, seeds=1, out=str(folder))
        with alone_in(Path(one.out), world):
            state = _begin(one, world, name, build, read, kept)
            write_config(one, "custom", world)
            callbacks: tuple[Any, ...] = ()
            if world.is_main:
                logger = Logger(Path(one.out), one)
                measured = Measured(logger, measure, summary)
                callbacks = (Progress(one.steps, state.step), logger, measured, Report(one))
            trainer = Trainer(one, state, objective(one, world), callbacks, world)
            if stopped_by := trainer.fit() or trainer.late_signal():
                _log.info("stopped at step %d; the same command goes on", state.step)
                return Repeated(figures, facts, stopped_by)
            if world.is_main:
                # Of a run that was finished before, nothing was measured now.
                figures.append(measured.last or measure(state.snapshot()))
                told = ", ".join(f"{k} {v:.4g}" for k, v in summary(figures[-1]).items())
                _log.info("seed %d: %s", seed, told)
            world.barrier()
    return Repeated(figures, facts | {"device": str(world.device)})


def _begin(
    config: DenseConfig, world: World, name: str, build: Callable[[], DenseModel], read: Weights,
    facts: dict[str, Any],
) -> RunState:  # fmt: skip
    """The run in its folder where it stopped, else one that begins with the weights."""
    torch.manual_seed(config.seed)
    model = build().train()
    if config.init == "weights":
        model.load_encoder(read.build_encoder())
    model.encoder.requires_grad_(not config.freeze)
    model.encoder.pos_embed.requires_grad_(False)  # it is a fixed table
    rates = partial(build_layer_decay, config=config.optim, layer_decay=config.layer_decay)
    state = build_state(config, model, world, build=build, build_optimizers=rates)
    state.init_from, state.facts = name, facts
    if saved := read_checkpoint(config):
        restore(state, saved, config)
    return state


class DenseObjective:
    """The loss of a model on samples of a data set; a child says which."""

    def __init__(self, config: DenseConfig, dataset: Dataset[Any], world: World) -> None:
        self.config, self.world, self._dataset = config, world, dataset

    def losses(self, begin: int) -> Generator[Sequence[Loss], None, None]:
        """Those of each step from `begin` on."""
        config, world = self.config, self.world
        size = config.batch_size // world.size // config.system.accumulate
        samples = batches(
            self._dataset, begin, config.steps, batch_size=config.batch_size, seed=config.seed,
            rank=world.rank, world_size=world.size, workers=config.workers,
        )  # fmt: skip
        with closing(samples):
            for step, batch in enumerate(samples, begin):
                parts = range(0, len(batch), size)
                yield [
                    partial(self.loss, batch[i : i + size], (step, world.rank, i)) for i in parts
                ]

    def loss(
        self, samples: Sequence[Any], place: tuple[int, int, int], forward: nn.Module
    ) -> Tensor:
        """The mean loss of samples; `place` is their step, rank and first number."""
        raise NotImplementedError

    def errors(self, losses: Tensor) -> Tensor:
        """The losses themselves, which are above 0."""
        return losses
