"""What rank 0 does beside the steps: metrics, a progress bar, validation, the report.

`metrics.jsonl` has a line every ten steps and for each validation, {"step", "seconds", ...}, and
one for each event, {"step", "seconds", "event"}. Other writers (TensorBoard, Weights & Biases)
get the same. A file that cannot be written never stops a run.

This is the only module of `training` that uses `evaluation`.
"""

import importlib
import json
import logging
import math
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mae_core.config import TrainConfig, without_places
from mae_core.errors import CheckpointError, ConfigError
from mae_core.evaluation.reconstruction import evaluate_reconstruction, load_images, summarize
from mae_core.images import DecodedImage
from mae_core.model.mae import MaskedAutoencoder
from mae_core.reconstruct import Reconstructor
from mae_core.training.checkpoint import RunState
from mae_core.training.report import IMAGES_FOLDER, METRICS_FILE, read_metrics, write_report
from mae_core.weights.files import write_atomically

# Images in the grid that is drawn at every evaluation.
GRID_ROWS = 6

_log = logging.getLogger(__name__)


class Callback:
    """Hooks that the trainer calls on rank 0. The defaults do nothing."""

    def on_start(self, state: RunState) -> None:
        """Training starts or is resumed."""

    def on_step(self, state: RunState) -> None:
        """A step is done."""

    def on_log(self, state: RunState, values: Mapping[str, float]) -> None:
        """Metrics of the last steps are known: every ten steps, and before saving or evaluating."""

    def on_event(self, state: RunState, text: str) -> None:
        """Something happened that people should read: a rollback, a checkpoint not written."""

    def on_eval(self, state: RunState, model: MaskedAutoencoder) -> None:
        """Every `eval_every` steps and at the end, with the model as it is exported."""

    def on_end(self, state: RunState) -> None:
        """Training has ended, was stopped or failed."""


class Evaluator(Callback):
    """Measures the validation set and draws some reconstructions, always under the same masks."""

    def __init__(
        self, config: TrainConfig, logger: "Logger", examples: Sequence[DecodedImage]
    ) -> None:
        """Load `data.holdout`. Without one, `examples` are drawn, but never measured."""
        holdout = config.data.holdout
        self.images = load_images(holdout, config.model) if holdout else []
        self._logger, self._grid = logger, self.images[:GRID_ROWS] or examples

    def measure(self, model: MaskedAutoencoder) -> dict[str, float]:
        """Figures of the validation set by name; empty without one."""
        if not self.images:
            return {}
        figures = summarize(evaluate_reconstruction(model, self.images, baselines=False))["model"]
        return {f"holdout_{name}": figure.mean for name, figure in figures.items()}

    def on_eval(self, state: RunState, model: MaskedAutoencoder) -> None:
        """Draw, measure, log."""
        self._logger.on_image(state, draw_grid(model, self._grid))
        values = self.measure(model)
        if values:
            self._logger.on_log(state, values)
            figures = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            tqdm.write(f"step {state.step}: {figures}", file=sys.stderr)


def draw_grid(model: MaskedAutoencoder, images: Sequence[DecodedImage]) -> Image.Image:
    """The four panels of each image, below each other; image i has the mask of seed i."""
    device = str(model.pos_embed.device)
    reconstructor = Reconstructor(model, "run", device=device, precision="float32")
    # As channels: bands are chosen and values are scaled already.
    channels = [
        np.atleast_3d(np.asarray(image)).transpose(2, 0, 1) / np.float32(255) for image in images
    ]
    rows = [reconstructor(one, seed=i).strip() for i, one in enumerate(channels)]
    height = rows[0].height + 8
    grid = Image.new("RGB", (max(row.width for row in rows), height * len(rows) - 8), "white")
    for i, row in enumerate(rows):
        grid.paste(row, (0, i * height))
    return grid


class Report(Callback):
    """Writes `report.html` when training ends, also after an error."""

    def __init__(self, out: Path) -> None:
        self._out = out

    def on_end(self, state: RunState) -> None:
        """Write the report. A full disk must not hide why the run ended."""
        try:
            _log.info("report: %s", write_report(self._out))
        except (CheckpointError, ConfigError, OSError) as error:
            _log.warning("no report: %s", error)


class Writer:
    """A destination of metrics. What a writer does not override is ignored.

    Attributes:
        required: Whether it is tried again after a failure; others are closed.
        errors: What counts as a failure to write.
    """

    required = False
    errors: tuple[type[Exception], ...] = (OSError, CheckpointError)

    def __init__(self, out: Path, config: TrainConfig) -> None:
        self.out, self.config = out, config

    def open(self, after_step: int) -> None:
        """Start, after so many steps; those of later steps are about to be written again."""

    def scalars(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Write figures by name."""

    def event(self, step: int, seconds: float, text: str) -> None:
        """Write that something happened."""

    def image(self, step: int, image: Image.Image) -> None:
        """Write an RGB image."""

    def close(self) -> None:
        """Write what is held back."""


class _RunFolder(Writer):
    """One JSON object a line in `metrics.jsonl`; PNG files in `reconstructions/`."""

    required = True

    def open(self, after_step: int) -> None:
        # A kill may have left half a line.
        path = self.out / METRICS_FILE
        if path.is_file():
            lines = [line for line in read_metrics(path) if line["step"] <= after_step]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            write_atomically(path, lambda partial: partial.write_text(text))

    def scalars(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        # JSON has no number that is not finite.
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        self._append({"step": step, "seconds": round(seconds, 1), **finite})

    def event(self, step: int, seconds: float, text: str) -> None:
        self._append({"step": step, "seconds": round(seconds, 1), "event": text})

    def _append(self, line: Mapping[str, Any]) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / METRICS_FILE).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def image(self, step: int, image: Image.Image) -> None:
        path = self.out / IMAGES_FOLDER / f"step-{step:06d}.png"
        write_atomically(path, lambda partial: image.save(partial, format="PNG"))


class _TensorBoard(Writer):
    """Event files in `tensorboard/`."""

    def open(self, after_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._step = after_step
        folder = str(self.out / "tensorboard")
        self._board: Any = SummaryWriter(folder, purge_step=after_step + 1)

    def scalars(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._at(step).add_scalar(_grouped(name), value, step)

    def event(self, step: int, seconds: float, text: str) -> None:
        self._at(step).add_text("events", text, step)

    def image(self, step: int, image: Image.Image) -> None:
        self._at(step).add_image("reconstructions", np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        self._board.close()

    def _at(self, step: int) -> Any:
        """The board; a new file if the run rolled back, which purges the steps since."""
        if step < self._step:
            self._board.close()
            self.open(step)
        self._step = step
        return self._board


class _Wandb(Writer):
    """A run at Weights & Biases; files in `wandb/`.

    The project is `mae_core`, or WANDB_PROJECT. WANDB_MODE=offline needs no network. A resumed
    run continues there; steps that a stop or a rollback undid are there twice.
    """

    def open(self, after_step: int) -> None:
        import wandb

        self._image: Any = wandb.Image
        self.errors = (*Writer.errors, wandb.Error)
        id_file = self.out / "wandb" / "run-id"
        id_file.parent.mkdir(parents=True, exist_ok=True)
        if not (after_step and id_file.is_file()):
            id_file.write_text(secrets.token_hex(4))
        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "mae_core"), name=self.out.resolve().name,
                dir=str(self.out), id=id_file.read_text(), resume="allow",
                config=without_places(self.config),
            )  # fmt: skip
        except wandb.errors.UsageError as error:
            raise ConfigError(
                f"writers=wandb cannot start ({error}); run wandb login, or set WANDB_MODE=offline"
            ) from error
        # Steps of ours: those of Weights & Biases cannot go back.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **{_grouped(name): v for name, v in values.items()}})

    def event(self, step: int, seconds: float, text: str) -> None:
        self._run.log({"step": step, "event": text})

    def image(self, step: int, image: Image.Image) -> None:
        self._run.log({"step": step, "reconstructions": self._image(image)})

    def close(self) -> None:
        self._run.finish()


# By name: the class, and the module that it needs.
WRITERS: dict[str, tuple[type[Writer], str]] = {
    "tensorboard": (_TensorBoard, "torch.utils.tensorboard"),
    "wandb": (_Wandb, "wandb"),
}


def require_writers(names: Sequence[str]) -> None:
    """Refuse writers whose package is not installed (ConfigError)."""
    for name in names:
        try:
            importlib.import_module(WRITERS[name][1])
        except ImportError as error:
            raise ConfigError(
                f"writers={name} needs the {name} package; install it with: pip install {name}"
            ) from error


def _grouped(name: str) -> str:
    """Figures by groups, as boards fold them: `holdout/psnr`."""
    if name == "images_per_second":
        return f"speed/{name}"
    return name.replace("_", "/", 1) if name.startswith("holdout_") else f"train/{name}"


class Logger(Callback):
    """Passes figures, events and images to all writers.

    If one cannot write, a warning says so once and the run goes on.
    """

    def __init__(self, out: Path, config: TrainConfig, *, after_step: int = 0) -> None:
        """Open the writers of a run; what was written of steps after `after_step` is dropped."""
        require_writers(config.writers)
        self._writers: list[Writer] = [_RunFolder(out, config)]
        self._writers += [WRITERS[name][0](out, config) for name in config.writers]
        self._failed: set[Writer] = set()
        self._for_all(lambda writer: writer.open(after_step))

    def on_start(self, state: RunState) -> None:
        """Write where a resumed run goes on, and with which changes."""
        if state.step:
            self.on_event(state, f"went on from step {state.step}")
        for change in state.changes:
            if change["step"] == state.step:
                text = f"{change['field']} changed from {change['from']} to {change['to']}"
                self.on_event(state, text)

    def on_log(self, state: RunState, values: Mapping[str, float]) -> None:
        """Write figures by name."""
        self._for_all(lambda writer: writer.scalars(state.step, state.seconds, values))

    def on_event(self, state: RunState, text: str) -> None:
        """Write an event."""
        self._for_all(lambda writer: writer.event(state.step, state.seconds, text))

    def on_image(self, state: RunState, image: Image.Image) -> None:
        """Write a grid of reconstructions."""
        self._for_all(lambda writer: writer.image(state.step, image))

    def on_end(self, state: RunState) -> None:
        """Close the writers."""
        self._for_all(lambda writer: writer.close())

    def _for_all(self, write: Callable[[Writer], None]) -> None:
        for writer in list(self._writers):
            try:
                write(writer)
            except writer.errors as error:
                if writer not in self._failed:
                    self._failed.add(writer)
                    name, reason = type(writer).__name__.strip("_"), error.__cause__ or error
                    _log.warning(
                        "the metrics in %s are incomplete: %s failed (%s); the run goes on. Check "
                        "the free space and the rights of the folder", writer.out, name, reason,
                    )  # fmt: skip
                if not writer.required:
                    self._writers.remove(writer)
                    # It may not be open.
                    with suppress(AttributeError, *writer.errors):
                        writer.close()


class Progress(Callback):
    """A bar on standard error: steps, time left, loss, images a second."""

    def __init__(self, steps: int, done: int) -> None:
        # A log file keeps every state of the bar, so it is redrawn rarely there.
        interval = 0.1 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(
            total=steps, initial=done, desc="training", unit="step", dynamic_ncols=True,
            mininterval=interval, maxinterval=max(interval, 10.0),
        )  # fmt: skip

    def on_step(self, state: RunState) -> None:
        """Move the bar; back if the run rolled back."""
        self._bar.update(state.step - self._bar.n)

    def on_log(self, state: RunState, values: Mapping[str, float]) -> None:
        """Show the figures, when the bar moves next."""
        figures = {"loss": values["loss"], "img/s": values["images_per_second"]}
        self._bar.set_postfix(figures, refresh=False)

    def on_end(self, state: RunState) -> None:
        """Leave the bar as it is."""
        self._bar.close()
