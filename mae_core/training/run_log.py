"""What a run says while it goes on: figures and pictures as plain files, and a progress bar.

`metrics.jsonl` has a line for each look at the run, {"step", "seconds", ...}, and one for each
event, {"step", "seconds", "event"}. Nothing needs a server; TensorBoard's files come beside
them where asked for. Files that cannot be written never stop a run.
"""

import datetime
import json
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mae_core.errors import CheckpointError, ConfigError
from mae_core.weights.files import write_atomically

METRICS_FILE = "metrics.jsonl"
PICTURES_FOLDER = "reconstructions"

_BOARD_FOLDER = "tensorboard"

_SPEEDS = ("images_per_second", "utilization")

# Looks at the run that the rate is taken over: enough to have measurements and checkpoints in
# it, few enough to follow a machine that gets slower.
_LOOKS = 100

# Steps at which the cost of those still to come is asked for.
_COST_SAMPLES = 200

_log = logging.getLogger(__name__)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, in its order; without the file, none.

    Damaged lines are passed over with a warning; one that a kill left half, without.

    Raises:
        OSError: If the file is there and cannot be read.
    """
    if not path.is_file():
        return []
    texts = path.read_bytes().decode(errors="replace").split("\n")
    lines = [_read_line(text) for text in texts]
    damaged = [t for t, line in zip(texts[:-1], lines, strict=False) if line is None and t.strip()]
    if damaged:
        _log.warning("passing over %d damaged lines of %s", len(damaged), path)
    return [line for line in lines if line is not None]


def _read_line(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return None
    return line


class RunLog:
    """Figures, events and pictures of a run, in its folder.

    Where a file cannot be written, a warning says so once, and the run goes on without it.
    """

    def __init__(self, out: Path, *, tensorboard: bool, after_step: int) -> None:
        """Open the log, and drop the lines of steps that a stop undid.

        Args:
            out: Folder of the run.
            tensorboard: Whether to write TensorBoard's event files too.
            after_step: Steps done; lines of later ones are about to be made again.

        Raises:
            ConfigError: If TensorBoard is asked for and not installed.
        """
        self._out = out
        self._complained: set[str] = set()
        self._torn = False
        self._board: _Board | None = None
        if tensorboard:
            try:
                self._board = _Board(out / _BOARD_FOLDER, after_step)
            except OSError as error:
                self._complain(_BOARD_FOLDER, error)
        try:
            self._forget_after(after_step)
        except (OSError, CheckpointError) as error:
            self._complain(METRICS_FILE, error)

    def scalars(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Write figures down.

        Args:
            step: Steps done.
            seconds: Time spent training so far.
            values: Figures by name; numbers that are not finite become null. Nothing is
                written where there are none.
        """
        if values:
            finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
            self._append({"step": step, "seconds": round(seconds, 1), **finite})
            self._show(lambda board: board.scalars(step, values))

    def event(self, step: int, seconds: float, text: str) -> None:
        """Write down that something happened: a rollback, a resume, a changed field.

        Args:
            step: Steps done, after a rollback those that are left.
            seconds: Time spent training so far.
            text: What happened, for people.
        """
        self._append({"step": step, "seconds": round(seconds, 1), "event": text})
        self._show(lambda board: board.event(step, text))

    def picture(self, step: int, grid: Image.Image) -> None:
        """Save a grid of reconstructions.

        Args:
            step: Steps done.
            grid: RGB, of any size.
        """
        path = self._out / PICTURES_FOLDER / f"step-{step:06d}.png"
        try:
            write_atomically(path, lambda partial: grid.save(partial, format="PNG"))
        except CheckpointError as error:
            self._complain(PICTURES_FOLDER, error)
        self._show(lambda board: board.picture(step, grid))

    def close(self) -> None:
        """Write out what TensorBoard holds back."""
        self._show(lambda board: board.close())

    def _forget_after(self, step: int) -> None:
        path = self._out / METRICS_FILE
        lines = read_metrics(path)
        text = "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step)
        if path.is_file() and path.read_bytes() != text.encode():
            # Should the rewrite fail, what is appended does not become part of half a line.
            self._torn = True
            write_atomically(path, lambda partial: partial.write_text(text))
            self._torn = False

    def _append(self, line: Mapping[str, Any]) -> None:
        text = ("\n" if self._torn else "") + json.dumps(line) + "\n"
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            with (self._out / METRICS_FILE).open("a") as file:
                file.write(text)
            self._torn = False
        except OSError as error:
            self._torn = True
            self._complain(METRICS_FILE, error)

    def _show(self, show: "Callable[[_Board], None]") -> None:
        """Have TensorBoard's writer do something; the first failure is its last."""
        if self._board:
            try:
                show(self._board)
            except OSError as error:
                self._complain(_BOARD_FOLDER, error)
                with suppress(OSError):
                    self._board.close()
                self._board = None

    def _complain(self, name: str, error: Exception) -> None:
        if name not in self._complained:
            self._complained.add(name)
            _log.warning(
                "could not write %s (%s); the run goes on without. Check the free space and the "
                "rights of its folder", self._out / name, error.__cause__ or error,
            )  # fmt: skip


def import_tensorboard() -> Any:
    """TensorBoard's `SummaryWriter`.

    Raises:
        ConfigError: If TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "tensorboard=true needs the tensorboard package; install it with: "
            "pip install -r requirements-train.txt"
        ) from error
    return SummaryWriter


class _Board:
    """TensorBoard's event files of a run."""

    def __init__(self, folder: Path, after_step: int) -> None:
        self._folder, self._step = folder, after_step
        self._class = import_tensorboard()
        self._writer = self._open(after_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer_at(step).add_scalar(_tag(name), value, step)

    def event(self, step: int, text: str) -> None:
        self._writer_at(step).add_text("events", text, step)

    def picture(self, step: int, grid: Image.Image) -> None:
        pixels = np.asarray(grid.convert("RGB"))
        self._writer_at(step).add_image("reconstructions", pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()

    def _open(self, after_step: int) -> Any:
        return self._class(str(self._folder), purge_step=after_step + 1)

    def _writer_at(self, step: int) -> Any:
        """The writer; where the run went back, TensorBoard is told to forget what came after."""
        if step < self._step:
            self._writer.close()
            self._writer = self._open(step)
        self._step = step
        return self._writer


def _tag(name: str) -> str:
    """Figures by groups, as TensorBoard folds them: `holdout/psnr`."""
    if name in _SPEEDS:
        return f"speed/{name}"
    return name.replace("_", "/", 1) if name.startswith("holdout_") else f"train/{name}"


class Progress:
    """A bar on standard error: steps, loss, images a second, how long and until when."""

    def __init__(
        self, steps: int, done: int, cost: Callable[[int], float] = lambda step: 1.0
    ) -> None:
        """Show the bar.

        Args:
            steps: Of the whole run.
            done: Of these before this start.
            cost: What a step takes beside others, in any unit: with it the estimate knows that
                the larger pictures of a later stage take longer.
        """
        self._steps, self._cost = steps, cost
        self._looks: deque[tuple[int, float]] = deque(maxlen=_LOOKS)
        # A log file keeps every state of the bar, so it is shown rarely there.
        interval = 0.1 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(
            total=steps, initial=done, desc="training", dynamic_ncols=True,
            mininterval=interval, maxinterval=max(interval, 10.0),
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )  # fmt: skip

    def update(self, *, loss: float | None = None, images_per_second: float = 0.0) -> None:
        """One more step is done.

        Args:
            loss: Where the loop has looked at the device: the mean loss since it last did.
            images_per_second: And how fast it was.
        """
        # The figures come first, for it is the step that has the bar drawn.
        if loss is not None:
            step = self._bar.n + 1
            self._looks.append((step, time.perf_counter()))
            left = self._seconds_left(step)
            end = f", {end_text(datetime.datetime.now(), left)}" if left is not None else ""
            self._bar.set_postfix_str(
                f"loss {loss:.3f}, {images_per_second:.0f} img/s{end}", refresh=False
            )
        self._bar.update()

    def back_to(self, step: int) -> None:
        """The run went back to this many steps done."""
        self._looks.clear()
        self._bar.update(step - self._bar.n)
        self._bar.refresh()

    def write(self, text: str) -> None:
        """Show a line above the bar."""
        self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def _seconds_left(self, step: int) -> float | None:
        """By the rate since the oldest look remembered; None at the first look and at the end."""
        (first, begun), (_, now) = self._looks[0], self._looks[-1]
        if step in (first, self._steps):
            return None
        rate = (now - begun) / self._cost_between(first, step)
        return rate * self._cost_between(step, self._steps)

    def _cost_between(self, start: int, stop: int) -> float:
        """The sum of the costs of these steps, from as many of them as are quickly asked."""
        samples = min(stop - start, _COST_SAMPLES)
        if samples == 0:
            return 0.0
        width = (stop - start) / samples
        return width * sum(self._cost(start + int((i + 0.5) * width)) for i in range(samples))


def end_text(now: datetime.datetime, seconds: float) -> str:
    """How long something still takes and when it ends: `27 min left, ends 17:52`.

    Args:
        now: The time on the clock.
        seconds: How long it takes from then.
    """
    # Minutes are what is shown, so the clock is rounded to them as well.
    end = now + datetime.timedelta(seconds=seconds + 30)
    days = (end.date() - now.date()).days
    day = "" if days == 0 else f"{end:%a} " if days < 7 else f"{end.day} {end:%b} "
    return f"{duration_text(seconds)} left, ends {day}{end:%H:%M}"


def duration_text(seconds: float) -> str:
    """A length of time in its two largest units: `45 s`, `27 min`, `3 h 05 min`, `2 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"
