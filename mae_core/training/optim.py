"""Optimisers (AdamW, Muon) and what depends on the step alone: learning rate, size, masks."""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from mae_core.config import MaskConfig, OptimConfig, RunConfig, StageConfig, TrainConfig
from mae_core.devices import cpu_has_bfloat16
from mae_core.errors import ConfigError
from mae_core.model.masking import PatchMask, draw_mask, num_visible

_log = logging.getLogger(__name__)

AnyRun = TypeVar("AnyRun", bound=RunConfig)

# Third entry of a mask's random seed; the loader uses 0 for the order and 1 for crops.
_MASK = 2


def build_optimizers(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Build the optimisers of a run. Each trainable parameter is in exactly one of them.

    All parameters decay except biases and other vectors, as in the official pre-training, so
    class and mask tokens do. With `muon`, matrices inside the blocks are updated by
    orthogonalised momentum (Jordan et al. 2024), scaled so that AdamW's learning rate and decay
    fit (Liu et al. 2025).
    """
    muon, decayed, plain = list[nn.Parameter](), list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if config.name == "muon" and parameter.ndim == 2 and "blocks." in name:
            muon.append(parameter)
        else:
            (decayed if parameter.ndim > 1 else plain).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
    ]
    if muon:
        emulated = muon[0].device.type == "cpu" and not cpu_has_bfloat16()
        kind = Float32Muon if emulated else torch.optim.Muon
        optimizers.append(
            kind(
                muon, lr=config.lr, weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )  # fmt: skip
    return optimizers


def set_lr(optimizers: list[torch.optim.Optimizer], lr: float) -> None:
    """Set the learning rate of every group, times the group's `lr_scale` if it has one."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)


def as_one(optimizers: list[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """One object for a GradScaler, which then skips the steps of all optimisers or of none.

    The scaler decides for each optimiser by its own gradients, but clipping uses the norm of all
    gradients: an overflow in one optimiser turns the gradients of the others into NaN.
    """
    if len(optimizers) == 1:
        # A single fused AdamW skips on the device, without a synchronisation.
        return optimizers[0]

    def step() -> None:
        for optimizer in optimizers:
            optimizer.step()

    # This is the part of the interface that a GradScaler uses.
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return cast(torch.optim.Optimizer, SimpleNamespace(param_groups=groups, step=step))


class Float32Muon(torch.optim.Muon):
    """torch's Muon with `match_rms_adamw`, orthogonalised in float32 instead of bfloat16.

    CPUs without bfloat16 instructions emulate them: on one core limited to AVX2 the update of
    the `tiny` preset takes 9.2 s in bfloat16 and 0.35 s in float32. The state is torch's, so a
    checkpoint continues with either class.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; `closure` is not supported."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                gradient, state = parameter.grad, self.state[parameter]
                if gradient is None:
                    continue
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
                update = _orthogonalize(gradient.lerp(buffer, momentum), group)
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.add_(update, alpha=-lr * 0.2 * math.sqrt(max(parameter.shape)))


def _orthogonalize(matrix: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Newton-Schulz iterations towards U V^T of the singular value decomposition."""
    a, b, c = group["ns_coefficients"]
    # The shorter side first, so that the products are small.
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def with_steps(config: AnyRun, images: int | None) -> AnyRun:
    """Turn epochs into steps; warn of a warm-up that is longer than the run.

    `images` is the size of the training set, None for a stream, which cannot have epochs.
    """
    optim, steps = config.optim, config.steps
    if config.epochs or optim.warmup_epochs:
        if images is None:
            raise ConfigError("a stream has no known length; give steps= and optim.warmup_steps=")
        steps_of_epoch = images / config.batch_size
        if optim.warmup_epochs:
            warmup = math.ceil(optim.warmup_epochs * steps_of_epoch)
            optim = replace(optim, warmup_steps=warmup)
        steps = math.ceil(config.epochs * steps_of_epoch) or steps
    if optim.warmup_steps > steps:
        _log.warning(
            "optim.warmup_steps=%d is more than steps=%d: the learning rate ends at %.0f %% of "
            "its peak", optim.warmup_steps, steps, 100 * steps / optim.warmup_steps,
        )  # fmt: skip
    return replace(config, steps=steps, optim=optim)


def with_peak_lr(config: AnyRun) -> AnyRun:
    """Set `optim.lr`, where it is 0, to base_lr * batch_size / 256 (He et al. 2022, A.1)."""
    optim, batch = config.optim, config.batch_size
    if optim.lr:
        return config
    lr = optim.base_lr * batch / 256
    _log.info("learning rate %g = optim.base_lr=%g * batch_size=%d / 256", lr, optim.base_lr, batch)
    return replace(config, optim=replace(optim, lr=lr))


def with_image_size_of_model(config: TrainConfig, recipe: TrainConfig) -> TrainConfig:
    """Let image sizes follow a change of `model.image_size`.

    Stages that are still the recipe's are scaled alike, to whole patches. A `data.short_side`
    that is still the recipe's is raised to the largest crop, of another a warning says that crops
    are enlarged. `recipe` is the config before its fields were changed.
    """
    side, patch, stages, data = (
        config.model.image_size, config.model.patch_size, config.stages, config.data
    )  # fmt: skip
    if side == recipe.model.image_size:
        return config
    if stages == recipe.stages:
        scale = side / recipe.model.image_size / patch
        sizes = [patch * max(round(stage.image_size * scale), 2) for stage in stages]
        stages = tuple(replace(s, image_size=size) for s, size in zip(stages, sizes, strict=True))
        _log.info("crops of %s pixels, for model.image_size=%d", sizes, side)
    largest = max(stage.image_size for stage in stages)
    if 0 < data.short_side < largest:
        if data.short_side == recipe.data.short_side:
            data = replace(data, short_side=largest)
        else:
            _log.warning("crops of %d pixels are enlarged; raise data.short_side", largest)
    return replace(config, stages=stages, data=data)


def lr_at(step: int, steps: int, config: OptimConfig) -> float:
    """The learning rate of a step: linear warm-up, then half a cosine (He et al. 2022, A.1).

    With `decay_share` below 1 it stays at its peak until that share of the steps is left.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    begin = max(config.warmup_steps, round((1 - config.decay_share) * steps))
    progress = (step - begin) / max(steps - begin, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    return config.final_lr + (config.lr - config.final_lr) * cosine


def image_size_at(step: int, steps: int, stages: tuple[StageConfig, ...]) -> int:
    """The side in pixels of a step's crops: the stages follow each other by their shares."""
    end = 0.0
    for stage in stages:
        end += stage.share * steps
        # Rounded, so that the error of the sum does not move the end of a stage.
        if step < round(end):
            return stage.image_size
    return stages[-1].image_size


def mask_at(
    step: int, n: int, grid_size: tuple[int, int], config: MaskConfig, seed: int,
    rows: slice = slice(None),
) -> PatchMask:  # fmt: skip
    """Draw a step's n masks of (h, w) patches, of one ratio and strategy; return some `rows`."""
    rng = np.random.default_rng((seed, _MASK, step))
    ratio = float(rng.uniform(*config.ratio))
    shares = {"random": config.random, "block": config.block, "grid": config.grid}
    strategy = str(rng.choice(list(shares), p=list(shares.values())))
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    # The loss needs at least one removed patch.
    length = grid_size[0] * grid_size[1]
    ratio = 1 - num_visible(length, ratio, for_loss=True) / length
    return draw_mask(strategy, n, grid_size, ratio, generator=generator, rows=rows)
