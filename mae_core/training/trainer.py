"""The training loop, of whatever an `Objective` asks of a model.

Model, optimisers, step and the average loss are the whole state of a run: learning rate, batches
and all chance are pure functions of the step. On one CPU a resumed run ends in the same bits as an
undisturbed one.

The host does not wait for the device except every few steps, when it reads the losses.
"""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mae_core.config import RunConfig
from mae_core.devices import cpu_has_bfloat16
from mae_core.distributed import World, distribute
from mae_core.errors import CheckpointError, TrainingError
from mae_core.model.blocks import Attention, Block
from mae_core.training.callbacks import Callback
from mae_core.training.checkpoint import RunState, read_checkpoint, restore
from mae_core.training.optim import as_one, lr_at, set_lr
from mae_core.weights.files import CHECKPOINT_FILE, save_checkpoint

_log = logging.getLogger(__name__)

# Steps between two readings of the losses, and between ranks asking each other for signals.
_LOG_EVERY, _VOTE_EVERY = 10, 5


# The mean loss of a micro-batch, of the module to call: (), or (1 + n,) with n figures after it.
Loss: TypeAlias = Callable[[nn.Module], Tensor]


class Objective:
    """What a run trains its model for; a child says which losses.

    Attributes:
        figures: Names of what is logged of each step beside the loss.
    """

    figures: tuple[str, ...] = ()

    def losses(self, begin: int) -> Generator[Sequence[Loss], None, None]:
        """From step `begin` on, each step's losses of this rank: one of each micro-batch.

        The micro-batches are of one size, so that the mean of their losses is that of all images.
        """
        raise NotImplementedError

    def errors(self, losses: Tensor) -> Tensor:
        """Losses as numbers above 0, whose ratio says by how much one is larger."""
        return losses


# --- number formats, kernels and memory of a step


def training_precision(name: str, device: torch.device) -> str:
    """The number format of a forward pass: `float32`, `bfloat16` or `float16`.

    `auto` is bfloat16 if the device multiplies it, else float16 on CUDA, else float32.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(False) else "float16"
    return "bfloat16" if device.type == "cpu" and cpu_has_bfloat16() else "float32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward pass in a number format that `training_precision` gave."""
    reduced = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, reduced, enabled=precision != "float32")


def prefer_fast_attention(model: nn.Module, device: torch.device) -> None:
    """On a CPU, compute attention by plain matrix products instead of the fused kernel.

    Its backward pass took 37 % of a training step of the `tiny` preset at 224 pixels; plain
    matrix products made the whole step 1.5 times as fast (python -m benchmarks.bench_attention).
    """
    if device.type == "cpu":
        for module in model.modules():
            if isinstance(module, Attention):
                # timm marks the flag final for TorchScript only.
                module.fused_attn = False  # type: ignore[misc]


def compile_blocks(model: nn.Module) -> None:
    """Compile each block in place; they share code for any number of tokens."""
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(dynamic=True)


def build_state(
    config: RunConfig, model: nn.Module, world: World, *, build: Callable[[], nn.Module],
    build_optimizers: Callable[[nn.Module], list[torch.optim.Optimizer]],
    wrapper: nn.Module | None = None,
) -> RunState:  # fmt: skip
    """The state of a run at step 0, with this model; `build` makes another of its shape.

    `wrapper` is the module to call where that is not the model: it holds the model as `model`.
    """
    device = world.device
    model, wrapper = model.to(device), wrapper.to(device) if wrapper else None
    prefer_fast_attention(model, device)
    if config.system.checkpoint_activations:
        for module in model.modules():
            if isinstance(module, Block):
                # Nothing in a block is random, so no generator state needs to be kept.
                module.forward = partial(  # type: ignore[method-assign]
                    checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False
                )
    if config.system.compile:
        compile_blocks(model)
    precision = training_precision(config.system.precision, device)
    average = {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if config.ema and parameter.requires_grad
    }
    return RunState(
        model=model, build=build, forward=distribute(wrapper or model, world), wrapper=wrapper,
        precision=precision,
        average=average, optimizers=build_optimizers(model), device=device,
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "float16"),
    )  # fmt: skip


# --- the loop


@contextmanager
def stop_on_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and the first Ctrl-C instead of ending at once; a second one ends at once.

    Outside the main thread nothing is collected: Python handles signals there only.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number, handler in before.items():
        # An ignored signal stays ignored, as Ctrl-C is for background jobs of a shell.
        if handler is not signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Trainer:
    """Takes a run from its state to its end, or to a signal that asks to stop."""

    def __init__(
        self, config: RunConfig, state: RunState, objective: Objective,
        callbacks: Sequence[Callback], world: World,
    ) -> None:  # fmt: skip
        """Bring the parts of a run together; `callbacks` are empty on ranks other than 0."""
        self.config, self.state, self.objective = config, state, objective
        self.callbacks, self.world = callbacks, world
        self._optimizer = as_one(state.optimizers)
        self._begun = time.perf_counter() - state.seconds
        self._signals: list[int] = []
        self._restart_meters()

    def _restart_meters(self) -> None:
        # Loss, its figures and gradient norm of the steps since they were last read; on the device.
        self._rows: list[Tensor] = []
        self._read_at = time.perf_counter()

    def fit(self) -> int:
        """Train from `state.step` to `config.steps`, with checkpoints and metrics on the way.

        Returns:
            0 at the end, or the number of the signal that asked to stop; the run is saved then.
        """
        with stop_on_signals() as self._signals:
            try:
                for callback in self.callbacks:
                    callback.on_start(self.state)
                if 0 < self.state.step < self.config.steps:
                    self._report_start()
                # Something to roll back to, and a proof that the disk can be written to.
                self._save()
                while self.state.step < self.config.steps:
                    if self._train():
                        # Another rank may have got the signal.
                        return self._signals[0] if self._signals else signal.SIGTERM
                return 0
            finally:
                for callback in self.callbacks:
                    callback.on_end(self.state)

    def late_signal(self) -> int:
        """SIGTERM if a rank got a signal in the last step, which `fit` does not tell, or 0.

        For whoever would begin another run. Collective.
        """
        return signal.SIGTERM if self.world.any_rank(bool(self._signals)) else 0

    def _report_start(self) -> None:
        begin = self.state.step
        changes = [change for change in self.state.changes if change["step"] == begin]
        texts = ["{field} changed from {from} to {to}".format(**change) for change in changes]
        self._report(", ".join((f"went on from step {begin}", *texts)))

    def _train(self) -> bool:
        """Train until the run ends, rolls back, or has to stop, which is true."""
        state, steps = self.state, self.config.steps
        with closing(self.objective.losses(state.step)) as batches:
            for losses in batches:
                self._update(losses)
                state.step += 1
                state.seconds = time.perf_counter() - self._begun
                stopping = self._should_stop() and state.step < steps
                if not self._after_step(must_save=stopping or state.step == steps):
                    return False
                if stopping:
                    return True
        return False

    def _update(self, losses: Sequence[Loss]) -> None:
        """One step of the optimisers on this rank's share of the batch."""
        state, config = self.state, self.config
        set_lr(state.optimizers, self._lr(state.step))
        means = self._backward(losses)
        state.scaler.unscale_(self._optimizer)
        limit = config.optim.clip_grad or math.inf
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), limit)
        state.scaler.step(self._optimizer)
        for optimizer in state.optimizers:
            optimizer.zero_grad(set_to_none=True)
        state.scaler.update()
        if state.average:
            # Fast at first, away from random initial values.
            decay = min(config.ema, (1 + state.step) / (10 + state.step))
            parameters = dict(state.model.named_parameters())
            now = [parameters[name].detach() for name in state.average]
            torch._foreach_lerp_(list(state.average.values()), now, 1 - decay)
        self._rows.append(torch.cat((means, norm.reshape(1))))

    def _backward(self, losses: Sequence[Loss]) -> Tensor:
        """Gradients of this rank's mean loss, summed over micro-batches.

        Returns the loss and its figures: (1 + n,).
        """
        state, forward = self.state, self.state.forward
        total = torch.zeros(1 + len(self.objective.figures), device=state.device)
        for number, loss_of in enumerate(losses, 1):
            # Ranks average their gradients after the last micro-batch only.
            local = number < len(losses) and isinstance(forward, DistributedDataParallel)
            with forward.no_sync() if local else nullcontext():  # type: ignore[operator]
                with autocast(state.precision, state.device):
                    values = loss_of(forward).reshape(-1)
                values = values / len(losses)
                state.scaler.scale(values[0]).backward()
            total += values.detach()
        return total

    def _should_stop(self) -> bool:
        """Whether a rank received a signal. Collective, at the same steps on every rank."""
        if self.world.size > 1 and self.state.step % _VOTE_EVERY:
            return False
        return self.world.any_rank(bool(self._signals))

    def _after_step(self, *, must_save: bool) -> bool:
        """Log, save and evaluate if it is time; false if the run rolled back instead."""
        step, config = self.state.step, self.config
        saving = must_save or step % config.save_every == 0
        evaluating = step == config.steps or step % config.eval_every == 0
        values = None
        if saving or evaluating or step % _LOG_EVERY == 0:
            rows = self.world.mean(torch.stack(self._rows, dim=1)).cpu().double()
            losses, norms = rows[0], rows[-1]
            rate = len(losses) / (time.perf_counter() - self._read_at)
            self._restart_meters()
            if self._went_wrong(losses, norms):
                self._roll_back()
                return False
            values = {
                "loss": float(losses.mean()), "grad_norm": float(norms[-1]),
                "lr": self._lr(step - 1), "images_per_second": rate * config.batch_size,
                **dict(zip(self.objective.figures, rows[1:-1].mean(dim=1).tolist(), strict=True)),
            }  # fmt: skip
        for callback in self.callbacks:
            callback.on_step(self.state)
            if values:
                callback.on_log(self.state, values)
        if saving:
            self._save(must=must_save)
        if evaluating:
            if self.callbacks:
                model = self.state.snapshot()
                for callback in self.callbacks:
                    callback.on_eval(self.state, model)
            self.world.barrier()
        if saving or evaluating:
            # The time that these took is not that of the next steps.
            self._restart_meters()
        return True

    def _went_wrong(self, losses: Tensor, norms: Tensor) -> bool:
        """Whether the loss spiked or is not finite; the same on every rank."""
        state = self.state
        # The loss scaler skips steps whose gradients are not finite.
        checked = losses if state.scaler.is_enabled() else torch.cat((losses, norms))
        if not checked.isfinite().all():
            return True
        # Single steps say little, as the ratio and the strategy of their masks differ.
        state.levels += self.objective.errors(losses).tolist()
        if state.step % _LOG_EVERY:
            return False
        level, average = sum(state.levels) / len(state.levels), state.loss_average
        state.levels = []
        if math.isnan(average):
            average = level
        state.loss_average = average + 0.1 * (level - average)
        return 0 < self.config.recovery.spike * average < level

    def _lr(self, step: int) -> float:
        scale = self.config.recovery.lr_factor**self.state.rollbacks
        return lr_at(step, self.config.steps, self.config.optim) * scale

    def _roll_back(self) -> None:
        """Go back to the last checkpoint, with a lower learning rate from there."""
        state, recovery, done = self.state, self.config.recovery, self.state.rollbacks
        trouble = f"the loss jumped or was not finite before step {state.step}"
        if done == recovery.max_rollbacks:
            raise TrainingError(
                f"{trouble}, after {done} rollbacks; the checkpoint from before that is kept. "
                "Lower optim.lr, set optim.clip_grad=1 or system.precision=float32, and start "
                "the same command again"
            )
        self.world.barrier()
        saved = read_checkpoint(self.config)
        assert saved is not None  # `fit` begins with one
        restore(state, saved, self.config)
        state.rollbacks, state.levels = done + 1, []
        scale = recovery.lr_factor**state.rollbacks
        self._report(f"{trouble}: back to step {state.step}, learning rate x {scale:g}")
        self._save()

    def _save(self, *, must: bool = True) -> None:
        """Write a checkpoint; without `must`, a failure is an event and the run goes on."""
        if not self.world.is_main:
            return
        path = Path(self.config.out) / CHECKPOINT_FILE
        try:
            save_checkpoint(path, self.state.content(self.config))
        except CheckpointError as error:
            if must:
                raise
            self._report(f"the checkpoint of step {self.state.step} is missing: {error}")

    def _report(self, text: str) -> None:
        if self.world.is_main:
            _log.warning("%s", text)
        for callback in self.callbacks:
            callback.on_event(self.state, text)
