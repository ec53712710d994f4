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
    ModelConfig,
    NotNegative,
    NotNegativeInt,
    OptimConfig,
    Positive,
    to_dict,
)
from mae_core.data.dense import Dataset, DetectionImages, SegmentationImages, batches
from mae_core.distributed import World, init_distributed
from mae_core.errors import ConfigError
from mae_core.model.dense import DenseModel
from mae_core.training.callbacks import require_writers
from mae_core.training.checkpoint import RunState
from mae_core.training.optim import with_peak_lr, with_steps
from mae_core.training.runs import (
    TransferConfig,
    build_layer_decay,
    check_batch,
    identity_of,
    open_weights,
    run_transfer,
)
from mae_core.training.trainer import Loss, Objective, build_state
from mae_core.weights.formats import Weights
from mae_core.weights.registry import weights_name

_log = logging.getLogger(__name__)

# As UPerNet and Mask R-CNN are fine-tuned.
_OPTIM = OptimConfig(lr=1e-4, betas=(0.9, 0.999), warmup_epochs=1, warmup_steps=0)

AnyDense = TypeVar("AnyDense", bound="DenseConfig")
Model = TypeVar("Model", bound=DenseModel)
Figures = TypeVar("Figures")
Images = TypeVar("Images", SegmentationImages, DetectionImages)


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
        facts: Plain data for the report.
        stopped_by: Number of the signal that stopped them, or 0.
    """

    figures: list[Figures]
    facts: dict[str, Any]
    stopped_by: int = 0


def repeat(
    weights: str | Path, data: str | Path, config: AnyDense, open_parts: Callable[
        [str | Path], tuple[Images, Images]
    ],
    build: Callable[[ModelConfig, int, int], Model],
    objective: "Callable[[AnyDense, Images, World], DenseObjective]",
    measure: Callable[[Model, Images], Figures], summary: Callable[[Figures], Mapping[str, float]],
) -> Repeated[Figures]:  # fmt: skip
    """Train and measure with each seed, in `out` or, if they are several, `out/seed-0` and so on.

    A run that is finished there is only measured again. Under torchrun call it on every rank.

    Args:
        weights: As `read_weights` takes them.
        data: As `open_parts` takes them.
        config: Of the runs.
        open_parts: Opens what is learned from, and what is measured on.
        build: Makes a model of an encoder's config, a number of classes and a side in pixels.
        objective: Makes what a run trains for.
        measure: Measures a trained model; on rank 0.
        summary: Figures by name, for the log.

    Returns:
        Figures on rank 0, none on the others.

    Raises:
        MAEError: If the weights, the data or a field cannot be used, or training fails.
    """
    require_writers(config.writers)
    parts = open_parts(data)
    with init_distributed() as world:
        check_batch(config, world)
        read, name, figures = open_weights(weights, world), weights_name(weights), list[Figures]()
        if config.init == "weights":
            read.build_encoder()  # a classifier is refused before anything is trained
        side = config.image_size or read.config.image_size
        train, val = (
            replace(part, model=read.config, side=side, scale=config.scale, flip=config.flip)
            for part in parts
        )
        make = partial(build, read.config, len(train.classes), side)
        identity = identity_of(read, train)
        out = Path(config.out).expanduser()
        config = with_steps(with_peak_lr(replace(config, out=str(out))), len(train))
        seeds = range(config.seed, config.seed + config.seeds)
        for seed in seeds:
            folder = out / f"seed-{seed}" if config.seeds > 1 else out
            one = replace(config, seed=seed, seeds=1, out=str(folder))
            state = _begin(one, world, make, read)
            state.init_from, state.identity = name, identity
            done = run_transfer(
                one, state, objective(one, train, world), world,
                measure=lambda model: measure(model, val), summary=summary,
            )  # fmt: skip
            if done.stopped_by and not (done.finished and seed == seeds[-1]):
                _log.info("stopped at step %d; the same command goes on", state.step)
                return Repeated(figures, {}, done.stopped_by)
            if world.is_main:
                figures.append(done.found)
                told = ", ".join(f"{k} {v:.4g}" for k, v in summary(done.found).items())
                _log.info("seed %d: %s", seed, told)
    reported = replace(done.config, seed=config.seed, seeds=config.seeds, out=config.out)
    return Repeated(figures, {
        "weights": name, "data": str(data), "init": config.init, "classes": list(train.classes),
        "train": len(train), "measured": len(val), "image_size": side,
        "config": to_dict(reported), "device": str(world.device),
    })  # fmt: skip


def _begin(
    config: DenseConfig, world: World, build: Callable[[], DenseModel], read: Weights
) -> RunState:
    """The state at step 0, of an encoder that begins with the weights or at random."""
    torch.manual_seed(config.seed)
    model = build().train()
    if config.init == "weights":
        model.load_encoder(read.build_encoder())
    model.encoder.requires_grad_(not config.freeze)
    model.encoder.pos_embed.requires_grad_(False)  # it is a fixed table
    rates = partial(build_layer_decay, config=config.optim, layer_decay=config.layer_decay)
    return build_state(config, model, world, build=build, build_optimizers=rates)


class DenseObjective(Objective):
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
