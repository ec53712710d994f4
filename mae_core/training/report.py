"""The report of a run: one HTML page, made from the files in the run's folder.

The page needs no server and runs no script: images and charts are part of the file. It can be
written again at any time.
"""

import io
import json
import logging
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mae_core.config import RunConfig, TrainConfig, load_yaml
from mae_core.errors import ConfigError
from mae_core.reporting import ACCENT, GREY, draw, render
from mae_core.weights.files import RUN_FILES, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS_FILE = "metrics.jsonl"
IMAGES_FOLDER = "reconstructions"
REPORT_FILE = "report.html"
# The second is of runs of earlier versions.
CONFIG_FILE, _OLD_CONFIG_FILE = "config.yaml", "config.json"

# Titles of the charts by the name of the figure, in the order of the page.
_CHARTS = {
    "loss": "Loss",
    "holdout_psnr": "Hold-out PSNR in dB",
    "holdout_ssim": "Hold-out SSIM",
    "holdout_loss": "Hold-out loss",
    "holdout_seams": "Hold-out seams in levels of 255",
    "holdout_seams_pasted": "Hold-out seams of pasted images",
    "holdout_sharpness": "Hold-out sharpness; 1 is as in the images",
    "probe_knn": "Nearest neighbours: accuracy on labelled images",
    "accuracy": "Accuracy",
    "miou": "Mean intersection over union",
    "pixel_accuracy": "Pixel accuracy",
    "box_ap": "Average precision of boxes",
    "mask_ap": "Average precision of masks",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm before clipping",
    "images_per_second": "Images a second",
}

# A curve is drawn with at most this many points: the means of as many parts of the run.
_POINTS = 200

# Images on the page are at most this wide and high, in pixels.
_IMAGE_SIZE = (960, 1440)

_log = logging.getLogger(__name__)


@dataclass
class RunFiles:
    """A run as its files tell it; what is missing or damaged in them is left out.

    Attributes:
        settings: The text of `config.yaml`.
        config: The same as a config; None if it is not one of this version.
        step: Steps done at the last line of metrics.
        seconds: Time spent training until then.
        figures: Values by name and step; without steps that a rollback undid.
        events: (step, text).
    """

    settings: str = ""
    config: RunConfig | None = None
    step: int = 0
    seconds: float = 0.0
    figures: dict[str, dict[int, float]] = field(default_factory=dict)
    events: list[tuple[int, str]] = field(default_factory=list)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's `metrics.jsonl`, in order; none without the file.

    Damaged lines are skipped with a warning. Half a line at the end, which a kill leaves, is
    skipped without.
    """
    if not path.is_file():
        return []
    *texts, last = path.read_bytes().decode(errors="replace").split("\n")
    lines = [_read_line(text) for text in texts if text.strip()]
    if None in lines:
        _log.warning("skipping %d damaged lines of %s", lines.count(None), path)
    return [line for line in (*lines, _read_line(last)) if line is not None]


def _read_line(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and type(line.get("step")) is int else None


def read_run(out: Path, kind: type[RunConfig] = TrainConfig) -> RunFiles:
    """Read the config, of that kind, and the metrics of a run's folder."""
    run = RunFiles()
    for path in (out / _OLD_CONFIG_FILE, out / CONFIG_FILE):
        with suppress(OSError):
            run.settings = path.read_bytes().decode(errors="replace")
        with suppress(ConfigError):
            run.config = load_yaml(kind, path)
    for line in read_metrics(out / METRICS_FILE):
        _add_line(run, line)
    return run


def _add_line(run: RunFiles, line: Mapping[str, Any]) -> None:
    step = line["step"]
    if step < run.step:
        # The run rolled back; what it logged after that step does not count.
        for name, values in run.figures.items():
            run.figures[name] = {s: value for s, value in values.items() if s <= step}
    run.step = step
    if isinstance(line.get("event"), str):
        run.events.append((step, line["event"]))
    for name, value in line.items():
        if isinstance(value, int | float) and abs(value) < 1e30:
            if name == "seconds":
                run.seconds = float(value)
            elif name != "step":
                run.figures.setdefault(name, {})[step] = float(value)


def write_report(out: Path, kind: type[RunConfig] = TrainConfig) -> Path:
    """Write `report.html` into a run's folder; what is missing there is missing on the page.

    Raises:
        ConfigError: If matplotlib or Jinja2 is not installed.
        CheckpointError: If the page cannot be written.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"a report needs matplotlib and Jinja2, and {error.name} is not installed; install "
            "them with: pip install matplotlib jinja2"
        ) from error
    run = read_run(out, kind)
    opens = any((out / name).is_file() for name in RUN_FILES)
    content = render(
        Path(__file__).with_name("report.html.j2"),
        name=out.resolve().name, run=run, key_figures=_key_figures(run), images=_images(out, run),
        charts={
            title: draw_chart(run, name).encode()
            for name, title in _CHARTS.items() if run.figures.get(name)
        },
        command=f"python -m app --weights {shlex.quote(str(out))}" if opens else "",
    )  # fmt: skip
    write_atomically(out / REPORT_FILE, lambda partial: partial.write_bytes(content))
    return out / REPORT_FILE


def _key_figures(run: RunFiles) -> dict[str, str]:
    """What the page begins with."""
    tiles = {"Steps": f"{run.step:,}", "Time": tqdm.format_interval(run.seconds)}
    if run.config:
        tiles["Steps"] += f" of {run.config.steps:,}"
        tiles["Images"] = f"{run.step * run.config.batch_size:,}"
    figures = {name: list(values.values()) for name, values in run.figures.items() if values}
    if "images_per_second" in figures:
        tiles["Images a second"] = f"{np.median(figures['images_per_second']):,.0f}"
    if "loss" in figures:
        tiles["Loss at the end"] = f"{np.mean(figures['loss'][-10:]):.4g}"
    if "holdout_psnr" in figures:
        tiles["Hold-out PSNR"] = f"{figures['holdout_psnr'][-1]:.2f} dB"
    if "holdout_ssim" in figures:
        tiles["Hold-out SSIM"] = f"{figures['holdout_ssim'][-1]:.3f}"
    for name, title in (("probe_knn", "Nearest neighbours"), ("accuracy", "Accuracy")):
        if name in figures:
            tiles[title] = f"{100 * figures[name][-1]:.1f} %"
    return tiles


def draw_chart(run: RunFiles, name: str) -> str:
    """Draw the curve of a figure over the steps as SVG, with marks where the run changed.

    A long curve is the mean of each of its parts; the area around it is their range.
    """
    points = np.array(list(run.figures[name].items()))  # (n, 2): step and value
    parts = np.array_split(points, min(len(points), _POINTS))
    steps = [part[-1, 0] for part in parts]
    low, mean, high = ([f(part[:, 1]) for part in parts] for f in (np.min, np.mean, np.max))

    def paint(axes: "Axes") -> None:
        axes.fill_between(steps, low, high, color=ACCENT, alpha=0.25, linewidth=0, gid="range")
        axes.plot(steps, mean, color=ACCENT, marker="o" if len(steps) < 40 else "", gid="curve")
        if name != "lr" and 0 < 5 * min(low) < max(high):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        for step, text in _stages(run):
            axes.axvline(step, color=GREY, linestyle=":", gid="stage")
            axes.annotate(text, (step, 1.02), xycoords=("data", "axes fraction"))
        for step, _ in run.events:
            axes.axvline(step, color="#d2503c", linestyle="--", linewidth=1, gid="event")

    return draw(paint, (5.2, 2.6)).decode()


def _stages(run: RunFiles) -> Iterator[tuple[int, str]]:
    """Where each image size begins, of those that the run has reached; none if it has one."""
    if not isinstance(run.config, TrainConfig) or len(run.config.stages) == 1:
        return
    share = 0.0
    for stage in run.config.stages:
        begin = round(share * run.config.steps)
        if begin < run.step:
            yield begin, f"{stage.image_size} px"
        share += stage.share


def _images(out: Path, run: RunFiles) -> dict[int, bytes]:
    """The first and the last grid of reconstructions by their step, as JPEG."""
    paths: dict[int, Path] = {}
    for path in (out / IMAGES_FOLDER).glob("step-*.png"):
        number = re.fullmatch(r"step-(\d+)\.png", path.name)
        if number and int(number[1]) <= run.step:
            paths[int(number[1])] = path
    images: dict[int, bytes] = {}
    for step in sorted({min(paths), max(paths)}) if paths else ():
        buffer = io.BytesIO()
        try:
            with Image.open(paths[step], formats=["PNG"]) as file:
                grid = file.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            _log.warning("%s is not in the report: %s", paths[step].name, error)
            continue
        grid.thumbnail(_IMAGE_SIZE)
        grid.save(buffer, "JPEG", quality=80)
        images[step] = buffer.getvalue()
    return images
