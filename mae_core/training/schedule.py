"""What depends on the step alone: the learning rate, the picture size and the mask."""

import dataclasses
import logging
import math

import numpy as np
import torch

from mae_core.config import MaskConfig, OptimConfig, StageConfig, TrainConfig
from mae_core.errors import ConfigError
from mae_core.model.masking import PatchMask, draw_mask, num_visible

_log = logging.getLogger(__name__)

# Names this kind of chance; the loader's kinds are 0 and 1.
_MASK = 2


def with_steps(config: TrainConfig, pictures: int | None) -> TrainConfig:
    """The run with its epochs turned into steps; unchanged where it gives none.

    A warm-up that is longer than the run is warned of.

    Args:
        config: The run.
        pictures: How many there are; None for a stream.

    Raises:
        ConfigError: If epochs are given for a stream, or are less than one step.
    """
    if config.epochs or config.optim.warmup_epochs:
        config = _with_epochs_as_steps(config, pictures)
    if config.optim.warmup_steps > config.steps:
        _log.warning(
            "optim.warmup_steps=%d is more than steps=%d: the learning rate ends at %.0f %% of "
            "its peak", config.optim.warmup_steps, config.steps,
            100 * config.steps / config.optim.warmup_steps,
        )  # fmt: skip
    return config


def _with_epochs_as_steps(config: TrainConfig, pictures: int | None) -> TrainConfig:
    if pictures is None:
        raise ConfigError("a stream has no known length; give steps= and optim.warmup_steps=")
    steps_of_epoch = pictures / config.batch_size
    optim = config.optim
    if optim.warmup_epochs:
        warmup = math.ceil(optim.warmup_epochs * steps_of_epoch)
        optim = dataclasses.replace(optim, warmup_steps=warmup)
    steps = math.ceil(config.epochs * steps_of_epoch) if config.epochs else config.steps
    return dataclasses.replace(config, steps=steps, optim=optim)


def with_peak_lr(config: TrainConfig) -> TrainConfig:
    """The run with its peak learning rate, from that of a batch of 256 where it gives that.

    The rule of He et al. 2022 (A.1).
    """
    optim = config.optim
    if optim.lr:
        return config
    lr = optim.base_lr * config.batch_size / 256
    _log.info(
        "learning rate %g = optim.base_lr=%g * batch_size=%d / 256",
        lr, optim.base_lr, config.batch_size,
    )  # fmt: skip
    return dataclasses.replace(config, optim=dataclasses.replace(optim, lr=lr))


def with_image_size_of_model(config: TrainConfig, recipe: TrainConfig) -> TrainConfig:
    """The run with picture sizes that follow a change of `model.image_size`.

    Stages that are still the recipe's are scaled alike, to whole patches. Pictures are then kept
    at least as large as the largest crop, where `data.short_side` is still the recipe's; where
    it is not and is too small, a warning says that crops are enlarged.

    Args:
        config: The run.
        recipe: What it was before its fields were changed.
    """
    side, patch = config.model.image_size, config.model.patch_size
    if side == recipe.model.image_size:
        return config
    stages, data = config.stages, config.data
    if stages == recipe.stages:
        scale = side / recipe.model.image_size / patch
        stages = tuple(
            dataclasses.replace(stage, image_size=patch * max(round(stage.image_size * scale), 2))
            for stage in stages
        )
        sizes = ", ".join(str(stage.image_size) for stage in stages)
        _log.info("crops of %s pixels, for model.image_size=%d", sizes, side)
    largest = max(stage.image_size for stage in stages)
    if 0 < data.short_side < largest:
        if data.short_side == recipe.data.short_side:
            data = dataclasses.replace(data, short_side=largest)
        else:
            _log.warning(
                "data.short_side=%d is less than the largest crop: %d pixels of a crop are made "
                "of fewer", data.short_side, largest,
            )  # fmt: skip
    return dataclasses.replace(config, stages=stages, data=data)


def lr_at(step: int, steps: int, config: OptimConfig) -> float:
    """The learning rate of a step: linear warm-up, then half a cosine (He et al. 2022, A.1).

    Args:
        step: From 0.
        steps: Steps of the whole run.
        config: Peak, floor and warm-up.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.final_lr + (config.lr - config.final_lr) * cosine


def image_size_at(step: int, steps: int, stages: tuple[StageConfig, ...]) -> int:
    """The side in pixels of a step's crops: the stages follow each other by their shares."""
    end = 0.0
    for stage in stages:
        end += stage.share * steps
        # A stage ends at the nearest whole step, free of the sum's rounding error.
        if step < round(end):
            return stage.image_size
    return stages[-1].image_size


def mask_at(
    step: int,
    n: int,
    grid_size: tuple[int, int],
    config: MaskConfig,
    seed: int,
    rows: slice = slice(None),
) -> PatchMask:
    """The masks of a step's batch: a ratio and a strategy drawn for the step, n masks.

    Args:
        step: From 0.
        n: Images in the batch.
        grid_size: (h, w) patches.
        config: What to draw from.
        seed: The run's.
        rows: The images whose masks are wanted.
    """
    rng = np.random.default_rng((seed, _MASK, step))
    ratio = float(rng.uniform(*config.ratio))
    shares = {"random": config.random, "block": config.block, "grid": config.grid}
    strategy = str(rng.choice(list(shares), p=list(shares.values())))
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    # The loss needs a removed patch, so the ratio is that of the K it allows.
    length = grid_size[0] * grid_size[1]
    ratio = 1 - num_visible(length, ratio, for_loss=True) / length
    return draw_mask(strategy, n, grid_size, ratio, generator=generator, rows=rows)
