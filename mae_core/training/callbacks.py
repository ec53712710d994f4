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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from mae_core.config import RunConfig, TrainConfig, without_places
from mae_core.errors import CheckpointError, ConfigError, MAEError
from mae_core.evaluation.probes import KnnProbe
from mae_core.evaluation.reconstruction import evaluate_reconstruction, load_images, summarize
from mae_core.images import DecodedImage
from mae_core.model.mae import MaskedAutoencoder
from mae_core.reconstruct import Reconstructor
from mae_core.training.checkpoint import RunState
from mae_core.training.report import IMAGES_FOLDER, METRICS_FILE, read_metrics, write_report
from mae_core.weights.files import SNAPSHOTS_FOLDER, write_atomically
from mae_core.weights.formats import save_weights

# Images in the grid that is drawn at every evaluation.
GRID_ROWS = 6

_log = logging.getLogger(__name__)


class Callback:
    """Hooks that the trainer calls on rank 0. The defaults do nothing."""

    def on_start(self, state: RunState) -> None:
        """Training starts, or goes on after `state.step` steps."""

    def on_step(self, state: RunState) -> None:
        """A step is done."""

    def on_log(self, state: RunState, values: Mapping[str, float]) -> None:
        """Figures by name: every ten steps, and when the run is saved or evaluated."""

    def on_event(self, state: RunState, text: str) -> None:
        """Something happened that people should read: a rollback, a checkpoint not written."""

    def on_image(self, state: RunState, image: Image.Image) -> None:
        """A grid of reconstructions, RGB, was drawn."""

    def on_eval(self, state: RunState, model: Any) -> None:
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


class Probe(Callback):
    """Measures the accuracy of nearest neighbours of the encoder's features, `probe_knn`."""

    def __init__(self, config: TrainConfig, logger: "Logger") -> None:
        """Open `data.labelled`."""
        self._probe, self._logger = KnnProbe(config.data.labelled), logger

    def on_eval(self, state: RunState, model: MaskedAutoencoder) -> None:
        """Measure, log."""
        try:
            accuracy = self._probe.accuracy(model)
        except MAEError as error:  # the images are gone: no reason to end a run
            _log.warning("no probe_knn: %s", error)
            return
        self._logger.on_log(state, {"probe_knn": accuracy})
        tqdm.write(f"step {state.step}: probe_knn {accuracy:.4g}", file=sys.stderr)


class Measured(Callback):
    """Measures a model on the way and at the end.

    Attributes:
        last: What was measured last; None at first.
    """

    def __init__(
        self, logger: "Logger", measure: Callable[[Any], Any],
        summary: Callable[[Any], Mapping[str, float]],
    ) -> None:  # fmt: skip
        """`measure` measures a model as it is exported, `summary` gives figures by name of that."""
        self._logger, self._measure, self._summary = logger, measure, summary
        self.last: Any = None

    def on_eval(self, state: RunState, model: Any) -> None:
        """Measure, log."""
        self.last = self._measure(model)
        values = self._summary(self.last)
        self._logger.on_log(state, values)
        figures = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        tqdm.write(f"step {state.step}: {figures}", file=sys.stderr)


class Snapshots(Callback):
    """Weights of the run on its way in `snapshots/`, at steps that double."""

    def __init__(self, config: TrainConfig) -> None:
        self._folder, self._total = Path(config.out) / SNAPSHOTS_FOLDER, config.steps
        self._steps = {config.steps >> i for i in range(config.snapshots)} - {0}

    def on_step(self, state: RunState) -> None:
        """Write the model, averaged with `ema`, at a few steps; a failure is logged.

        It is float16 whatever `export_dtype` is: there are many, and they are only looked at.
        """
        if state.step in self._steps:
            path = self._folder / f"step-{state.step:06d}.safetensors"
            record = {"step": state.step, "steps": self._total}
            try:
                save_weights(path, state.snapshot(), dtype=torch.float16, record=record)
            except CheckpointError as error:
                _log.warning("no snapshot: %s", error)


class Report(Callback):
    """Writes `report.html` when training ends, also after an error."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config

    def on_end(self, state: RunState) -> None:
        """Write the report. A full disk must not hide why the run ended."""
        try:
            _log.info("report: %s", write_report(Path(self._config.out), type(self._config)))
        except (CheckpointError, ConfigError, OSError) as error:
            _log.warning("no report: %s", error)


class _RunFolder(Callback):
    """One JSON object a line in `metrics.jsonl`; PNG files in `reconstructions/`."""

    def __init__(self, out: Path, config: RunConfig) -> None:
        self._out, self._path = out, out / METRICS_FILE

    def on_start(self, state: RunState) -> None:
        # A kill may have left half a line, and lines of steps that are about to be made again.
        if self._path.is_file():
            lines = [line for line in read_metrics(self._path) if line["step"] <= state.step]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            write_atomically(self._path, lambda partial: partial.write_text(text))

    def on_log(self, state: RunState, values: Mapping[str, float]) -> None:
        # JSON has no number that is not finite.
        self._append(state, {k: v if math.isfinite(v) else None for k, v in values.items()})

    def on_event(self, state: RunState, text: str) -> None:
        self._append(state, {"event": text})

    def _append(self, state: RunState, values: Mapping[str, Any]) -> None:
        line = {"step": state.step, "seconds": round(state.seconds, 1), **values}
        self._out.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def on_image(self, state: RunState, image: Image.Image) -> None:
        path = self._out / IMAGES_FOLDER / f"step-{state.step:06d}.png"
        write_atomically(path, lambda partial: image.save(partial, format="PNG"))


class _TensorBoard(Callback):
    """Event files in `tensorboard/`."""

    def __init__(self, out: Path, config: RunConfig) -> None:
        self._folder = str(out / "tensorboard")

    def on_start(self, state: RunState) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Of a resumed run, the board hides the steps that are about to be made again.
        self._board: Any = SummaryWriter(self._folder, purge_step=state.step + 1)

    def on_log(self, state: RunState, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(_grouped(name), value, state.step)

    def on_event(self, state: RunState, text: str) -> None:
        self._board.add_text("events", text, state.step)

    def on_image(self, state: RunState, image: Image.Image) -> None:
        self._board.add_image("reconstructions", np.asarray(image), state.step, dataformats="HWC")

    def on_end(self, state: RunState) -> None:
        self._board.close()


class _Wandb(Callback):
    """A run at Weights & Biases; files in `wandb/`.

    The project is `mae_core`, or WANDB_PROJECT. WANDB_MODE=offline needs no network. A resumed
    run continues there; steps that a stop or a rollback undid are there twice.
    """

    def __init__(self, out: Path, config: RunConfig) -> None:
        self._out, self._config = out, config
        self._run: Any = None

    def on_start(self, state: RunState) -> None:
        import wandb

        self._image: Any = wandb.Image
        id_file = self._out / "wandb" / "run-id"
        id_file.parent.mkdir(parents=True, exist_ok=True)
        if not (state.step and id_file.is_file()):
            id_file.write_text(secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "mae_core"), name=self._out.resolve().name,
                dir=str(self._out), id=id_file.read_text(), resume="allow",
                config=without_places(self._config),
            )  # fmt: skip
        except wandb.errors.UsageError as error:
            raise ConfigError(
                f"writers=wandb cannot start ({error}); run wandb login, or set WANDB_MODE=offline"
            ) from error
        # Steps of ours: those of Weights & Biases cannot go back.
        self._run.define_metric("*", step_metric="step")

    def on_log(self, state: RunState, values: Mapping[str, float]) -> None:
        self._run.log({"step": state.step, **{_grouped(name): v for name, v in values.items()}})

    def on_event(self, state: RunState, text: str) -> None:
        self._run.log({"step": state.step, "event": text})

    def on_image(self, state: RunState, image: Image.Image) -> None:
        self._run.log({"step": state.step, "reconstructions": self._image(image)})

    def on_end(self, state: RunState) -> None:
        if self._run:
            self._run.finish()


def _grouped(name: str) -> str:
    """Figures by groups, as boards fold them: `holdout/psnr`."""
    if name == "images_per_second":
        return f"speed/{name}"
    if name.startswith(("holdout_", "probe_")):
        return name.replace("_", "/", 1)
    return f"train/{name}" if name in ("loss", "grad_norm", "lr") else f"measured/{name}"


# By name: the class, and the module that it needs.
_WRITERS: dict[str, tuple[Any, str]] = {
    "tensorboard": (_TensorBoard, "torch.utils.tensorboard"),
    "wandb": (_Wandb, "wandb"),
}


def require_writers(names: Sequence[str]) -> None:
    """Refuse writers whose package is not installed (ConfigError)."""
    for name in names:
        try:
            importlib.import_module(_WRITERS[name][1])
        except ImportError as error:
            raise ConfigError(
                f"writers={name} needs the {name} package; install it with: pip install {name}"
            ) from error


class Logger(Callback):
    """Passes figures, events and images to all writers.

    If one cannot write, a warning says so once and the run goes on: the run's folder is tried
    again, the others are left out.
    """

    def __init__(self, out: Path, config: RunConfig) -> None:
        self._writers: list[Callback] = [_RunFolder(out, config)]
        self._writers += [_WRITERS[name][0](out, config) for name in config.writers]
        self._failed: set[Callback] = set()

    def on_start(self, state: RunState) -> None:
        """Open the writers; what was written of steps after `state.step` is dropped."""
        self._for_all(lambda writer: writer.on_start(state))

    def on_log(self, state: RunState, values: Mapping[str, float]) -> None:
        """Write figures by name."""
        self._for_all(lambda writer: writer.on_log(state, values))

    def on_event(self, state: RunState, text: str) -> None:
        """Write an event."""
        self._for_all(lambda writer: writer.on_event(state, text))

    def on_image(self, state: RunState, image: Image.Image) -> None:
        """Write a grid of reconstructions."""
        self._for_all(lambda writer: writer.on_image(state, image))

    def on_end(self, state: RunState) -> None:
        """Close the writers."""
        self._for_all(lambda writer: writer.on_end(state))

    def _for_all(self, write: Callable[[Callback], None]) -> None:
        for writer in list(self._writers):
            try:
                write(writer)
            except ConfigError:
                raise
            # A board may raise what it likes.
            except Exception as error:
                if writer not in self._failed:
                    _log.warning(
                        "metrics cannot be written by %s (%s); the run goes on. Check the free "
                        "space and the rights of its folder",
                        type(writer).__name__.strip("_"), error.__cause__ or error,
                    )  # fmt: skip
                self._failed.add(writer)
                if not isinstance(writer, _RunFolder):
                    self._writers.remove(writer)


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
