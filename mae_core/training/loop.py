"""The training loop.

Nothing but model, optimisers and step is needed to go on after a stop: the learning rate,
the crops and the masks are pure functions of the step. On one CPU a resumed run ends in the
very bits of the undisturbed one.

The host never waits for the device but every few steps, when it looks at what the steps since
then have left there: their losses, and whether one of them went wrong.
"""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from mae_core.config import TrainConfig
from mae_core.data.loader import BatchLoader
from mae_core.errors import CheckpointError, ConfigError, TrainingError
from mae_core.model.losses import reconstruction_loss
from mae_core.model.mae import MaskedAutoencoder, forward_flops
from mae_core.model.masking import PatchMask
from mae_core.training.distributed import World, gradients_kept_local
from mae_core.training.optim import as_one, set_lr
from mae_core.training.precision import autocast
from mae_core.training.run_log import Progress, RunLog
from mae_core.training.schedule import image_size_at, lr_at, mask_at
from mae_core.training.state import RunState, restore
from mae_core.training.stop import StopRequest
from mae_core.training.throughput import measure_matmul_rate
from mae_core.weights.runs import CHECKPOINT_FILE, load_latest, save_checkpoint

_log = logging.getLogger(__name__)

# Steps between two looks at the device: a line of metrics, and whether all is well.
_LOG_EVERY = 10

# Weight of the last steps in the running average of the loss that a jump is measured against.
_AVERAGE_WEIGHT = 0.1

# Called in the first process with the model as it would be used and the number of steps done;
# what it returns is logged.
Evaluation = Callable[[MaskedAutoencoder, int], Mapping[str, float]]


@dataclass
class Output:
    """Where the first process says what happens.

    Attributes:
        log: Receives the figures.
        progress: Shown while the run goes on.
        evaluate: Called every `eval_every` steps and at the end.
    """

    log: RunLog
    progress: Progress
    evaluate: Evaluation


class Window:
    """What the steps since the last look have left on the device."""

    def __init__(self, device: torch.device) -> None:
        """Nothing yet."""
        self.steps = 0
        self.flops = 0
        self.begun = time.perf_counter()
        self.loss = torch.zeros((), device=device)
        self.grad_norm = torch.zeros((), device=device)
        self.bad = torch.zeros((), device=device, dtype=torch.bool)


class Watch:
    """Whether the loss jumps: the mean of some steps against the running average before them.

    Single steps say little, for the ratio and strategy of their masks differ.
    """

    def __init__(self, device: torch.device) -> None:
        """Nothing seen yet."""
        self._steps = 0
        self._sum = torch.zeros((), device=device)

    def add(self, level: Tensor) -> None:
        """One more step's loss, above 0; nothing waits for it."""
        self._steps += 1
        self._sum += level

    def judge(self, average: float, limit: float) -> tuple[bool, float]:
        """Look at the steps added since the last time.

        Args:
            average: Running average of the loss; not a number before the first time.
            limit: What counts as a jump, as a multiple of the average; 0 for nothing.

        Returns:
            Whether it jumped, and the average with these steps in it.
        """
        level = self._sum.item() / self._steps
        self._steps, self._sum = 0, torch.zeros_like(self._sum)
        if math.isnan(average):
            return False, level
        return 0 < limit * average < level, average + _AVERAGE_WEIGHT * (level - average)


def require_even_shares(config: TrainConfig, processes: int) -> None:
    """A batch has to be shared out evenly, for a mean of means to be the mean.

    Raises:
        ConfigError: If it cannot be.
    """
    shares = processes * config.system.accumulate
    if config.batch_size % shares:
        raise ConfigError(
            f"batch_size {config.batch_size} does not divide into {processes} processes "
            f"times {config.system.accumulate} micro-batches; pick a multiple of {shares}"
        )


class Trainer:
    """Takes a run from where it stands to its end, or to where it is asked to stop."""

    def __init__(
        self,
        config: TrainConfig,
        state: RunState,
        loader: BatchLoader,
        *,
        world: World,
        output: Output | None,
        stop: StopRequest,
    ) -> None:
        """Bring the parts of a run together.

        Args:
            config: The run.
            state: Where it stands; changed in place.
            loader: Gives this process its share of each batch.
            world: Who trains together.
            output: In the first process; None in the others.
            stop: Looked at after every step.
        """
        self.config, self.state, self.loader = config, state, loader
        self.world, self.output, self.stop = world, output, stop
        self._optimizer = as_one(state.optimizers)
        self._begun = time.perf_counter() - state.seconds
        self._window, self._watch = Window(world.device), Watch(world.device)
        self._peak = world.size * measure_matmul_rate(world.device, _matmul_dtype(state.precision))

    def run(self) -> bool:
        """Train from `state.step` to `config.steps`, with checkpoints and metrics on the way.

        Returns:
            Whether the end was reached; if not, the run was asked to stop, and has saved.

        Raises:
            TrainingError: If the loss went wrong more often than the run may roll back; the
                last checkpoint is from before that.
            CheckpointError: If the first or the last checkpoint cannot be written.
        """
        # Something to roll back to, and a disk that proves that it can be written to.
        self._save()
        while self.state.step < self.config.steps:
            with closing(self._batches()) as batches:
                if not self._follow(batches):
                    return False
        return True

    def _batches(self) -> Generator[tuple[Tensor, PatchMask], None, None]:
        """This process's batches and their masks; the next mask is drawn in a thread."""
        begin, steps = self.state.step, self.config.steps
        with (
            ThreadPoolExecutor(1) as pool,
            closing(self.loader.batches(begin, steps, self._image_size_at)) as batches,
        ):
            drawn = pool.submit(self._mask_at, begin)
            for step, (images, _) in enumerate(batches, begin):
                mask = drawn.result()
                if step + 1 < steps:
                    drawn = pool.submit(self._mask_at, step + 1)
                yield images, mask

    def _image_size_at(self, step: int) -> int:
        return image_size_at(step, self.config.steps, self.config.stages)

    def _mask_at(self, step: int) -> PatchMask:
        """This process's rows of the batch's masks, on the CPU."""
        config, share = self.config, self.config.batch_size // self.world.size
        side = self._image_size_at(step) // config.model.patch_size
        rows = slice(self.world.rank * share, (self.world.rank + 1) * share)
        return mask_at(step, config.batch_size, (side, side), config.mask, config.seed, rows)

    def _follow(self, batches: Iterable[tuple[Tensor, PatchMask]]) -> bool:
        """Train on these until the end, a rollback (true) or a request to stop (false)."""
        for images, mask in batches:
            self._update(images, mask)
            self._count_flops(mask)
            self.state.step += 1
            stopping = self.world.any(self.stop.signal != 0)
            if not self._after_step(stopping):
                return True
            if stopping and self.state.step < self.config.steps:
                return False
        return True

    def _update(self, images: Tensor, mask: PatchMask) -> None:
        """One step of the optimisers on this process's share of the batch."""
        state, config = self.state, self.config
        set_lr(state.optimizers, self._lr(state.step))
        loss = self.world.mean(self._backward(images, self._to_device(mask)))
        norm = self._clip()
        state.scaler.step(self._optimizer)
        for optimizer in state.optimizers:
            optimizer.zero_grad(set_to_none=True)
        state.scaler.update()
        _average(state, config.ema)
        self._note(loss, norm)

    def _backward(self, images: Tensor, mask: PatchMask) -> Tensor:
        """The gradient of the batch's mean loss, added up over micro-batches; the local loss."""
        state, config = self.state, self.config
        total = torch.zeros((), device=images.device)
        size = len(images) // config.system.accumulate
        for start in range(0, len(images), size):
            more = start + size < len(images)
            with gradients_kept_local(state.forward, local=more):
                with autocast(state.precision, images.device):
                    part = images[start : start + size]
                    output = state.forward(part, mask.rows(start, start + size))
                    loss = reconstruction_loss(
                        output.pred, state.model.target(part), output.mask,
                        config.visible_weight, config.loss,
                    )  # fmt: skip
                loss = loss / config.system.accumulate
                state.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _to_device(self, mask: PatchMask) -> PatchMask:
        device = self.world.device
        pinned = mask.pin_memory() if device.type == "cuda" else mask
        return pinned.to(device)

    def _count_flops(self, mask: PatchMask) -> None:
        side = math.isqrt(mask.num_patches)
        visible = 1 - mask.num_visible / mask.num_patches
        flops = forward_flops(self.config.model, (side, side), visible)
        self._window.flops += 3 * self.config.batch_size * flops

    def _clip(self) -> Tensor:
        """Bound the gradient; returns its norm before that."""
        state = self.state
        state.scaler.unscale_(self._optimizer)
        limit = self.config.optim.clip_grad or math.inf
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), limit)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _note(self, loss: Tensor, norm: Tensor) -> None:
        """Leave on the device how the step went; nothing waits for it."""
        window = self._window
        window.steps += 1
        window.loss += loss
        window.grad_norm = norm
        window.bad |= ~loss.isfinite()
        # The scaler skips steps of infinite gradients itself, and lowers its scale.
        if not self.state.scaler.is_enabled():
            window.bad |= ~norm.isfinite()
        self._watch.add(loss.exp() if self.config.loss == "log_mse" else loss)

    def _after_step(self, stopping: bool) -> bool:
        """Log, save and measure where it is time; false if the run rolled back instead."""
        step, config = self.state.step, self.config
        self.state.seconds = time.perf_counter() - self._begun
        last = step == config.steps
        saving = last or stopping or step % config.save_every == 0
        measuring = last or step % config.eval_every == 0
        if saving or measuring or step % _LOG_EVERY == 0:
            if self.world.any(self._went_wrong()):
                self._roll_back()
                return False
            self._write_metrics()
        elif self.output:
            self.output.progress.update()
        if saving:
            self._save(must=last or stopping)
        if measuring:
            self._measure()
        if saving or measuring:
            self._window = Window(self.world.device)
        return True

    def _went_wrong(self) -> bool:
        """Wait for the device, and look at what it was left."""
        if bool(self._window.bad):
            return True
        if self.state.step % _LOG_EVERY:
            return False
        limit = self.config.recovery.spike
        jumped, self.state.loss_average = self._watch.judge(self.state.loss_average, limit)
        return jumped

    def _write_metrics(self) -> None:
        window, state = self._window, self.state
        if self.output:
            elapsed = time.perf_counter() - window.begun
            rate = window.steps * self.config.batch_size / elapsed
            values = {
                "loss": window.loss.item() / window.steps,
                "grad_norm": window.grad_norm.item(),
                "lr": self._lr(state.step - 1),
                "images_per_second": rate,
                "utilization": window.flops / elapsed / self._peak,
            }
            self.output.log.scalars(state.step, state.seconds, values)
            self.output.progress.update(loss=values["loss"], images_per_second=rate)
        self._window = Window(self.world.device)

    def _lr(self, step: int) -> float:
        return lr_at(step, self.config.steps, self.config.optim) * self._lr_scale

    @property
    def _lr_scale(self) -> float:
        """What rolling back has multiplied the learning rate by."""
        return float(self.config.recovery.lr_factor**self.state.rollbacks)

    def _roll_back(self) -> None:
        """Go back to the last checkpoint, with a lower learning rate from there.

        Raises:
            TrainingError: If that has been done as often as allowed.
        """
        state, recovery = self.state, self.config.recovery
        failed, done = state.step, state.rollbacks
        trouble = f"the loss jumped or was no number in the steps before {failed}"
        if done == recovery.max_rollbacks:
            raise TrainingError(
                f"{trouble}, after {done} rollbacks; the checkpoint from before that is kept. "
                "Lower optim.lr, set optim.clip_grad=1 or system.precision=float32, and start "
                "the same command again"
            )
        self.world.wait()
        restore(state, load_latest(Path(self.config.out)), self.config)
        state.rollbacks = done + 1
        self._window, self._watch = Window(self.world.device), Watch(self.world.device)
        self._tell(f"{trouble}: back to step {state.step}, learning rate x {self._lr_scale:g}")
        self._save()
        if self.output:
            self.output.progress.back_to(state.step)

    def _save(self, *, must: bool = True) -> None:
        """Write a checkpoint; without `must`, a full disk is told of and the run goes on."""
        if not (self.world.is_first or self.config.system.shard):
            return
        content = self.state.content(self.config)
        if not self.world.is_first:
            return
        try:
            save_checkpoint(Path(self.config.out) / CHECKPOINT_FILE, content)
        except CheckpointError as error:
            if must:
                raise
            self._tell(f"the checkpoint of step {self.state.step} is missing: {error}")

    def _measure(self) -> None:
        if self.world.is_first or self.config.system.shard:
            model = self.state.snapshot()
            if self.output:
                values = self.output.evaluate(model, self.state.step)
                self.output.log.scalars(self.state.step, self.state.seconds, values)
                if values:
                    figures = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
                    self.output.progress.write(f"step {self.state.step}: {figures}")
        self.world.wait()

    def _tell(self, text: str) -> None:
        if self.output:
            _log.warning("%s", text)
            self.output.log.event(self.state.step, self.state.seconds, text)


def _matmul_dtype(precision: str) -> torch.dtype:
    dtypes = {
        "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
    }  # fmt: skip
    return dtypes[precision]


def _average(state: RunState, decay: float) -> None:
    """Move the running average towards the parameters; fast at first, away from a random start."""
    if state.average:
        decay = min(decay, (1 + state.step) / (10 + state.step))
        parameters = dict(state.model.named_parameters())
        with torch.no_grad():
            torch._foreach_lerp_(
                list(state.average.values()), [parameters[name] for name in state.average],
                1 - decay,
            )  # fmt: skip
