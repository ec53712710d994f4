"""The report of a run: one HTML page, made from the files in the run's folder.

The page needs no server and runs no script: curves are SVG, images are part of the file. It can
be written again at any time.
"""

import base64
import io
import json
import logging
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae_core.config import TrainConfig, from_dict, read_yaml
from mae_core.errors import ConfigError
from mae_core.weights.files import CHECKPOINT_FILE, write_atomically
from mae_core.weights.registry import WEIGHTS_FILE

METRICS_FILE = "metrics.jsonl"
IMAGES_FOLDER = "reconstructions"
REPORT_FILE = "report.html"
CONFIG_FILE = "config.yaml"
# Of runs of earlier versions.
_OLD_CONFIG_FILE = "config.json"

# Images on the page are at most this wide and high, in pixels.
_IMAGE_SIZE = (960, 1440)
_JPEG_QUALITY = 80

# What has a chart, in the order of the page: name, title, unit.
_CHARTS = (
    ("loss", "Loss", ""),
    ("holdout_psnr", "Hold-out PSNR", "dB"),
    ("holdout_ssim", "Hold-out SSIM", ""),
    ("holdout_loss", "Hold-out loss", ""),
    ("lr", "Learning rate", ""),
    ("grad_norm", "Gradient norm", "before clipping"),
    ("images_per_second", "Speed", "images/s"),
)
_NOISY = ("loss", "grad_norm", "images_per_second")
_WIDE_RANGE = ("loss", "holdout_loss", "grad_norm")

# A range of more than this, largest over smallest value, is drawn on a logarithmic axis.
_LOG_RANGE = 5.0

# A longer curve is drawn by the extremes of this many parts of it, so that no spike is lost.
_PARTS = 400

# A curve of more points than this is smoothed; a shorter one is drawn with markers.
_FEW = 40

# Share of a curve that its smoothing averages over.
_SMOOTH_SHARE = 0.05

_log = logging.getLogger(__name__)


@dataclass
class RunFiles:
    """A run as its files tell it.

    Attributes:
        out: The folder.
        settings: Content of `config.yaml`; empty if it cannot be read.
        config: The same as a config; None if it is not one of this version.
        step: Steps done at the last line of metrics.
        seconds: Time spent training until then.
        figures: Values by name and step; without steps that a rollback undid.
        events: (step, seconds, text).
    """

    out: Path
    settings: dict[str, Any]
    config: TrainConfig | None
    step: int = 0
    seconds: float = 0.0
    figures: dict[str, dict[int, float]] = field(default_factory=dict)
    events: list[tuple[int, float, str]] = field(default_factory=list)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's `metrics.jsonl`, in order; none without the file.

    Damaged lines are skipped with a warning. Half a line at the end, which a kill leaves, is
    skipped without.

    Raises:
        OSError: If the file is there and cannot be read.
    """
    if not path.is_file():
        return []
    texts = path.read_bytes().decode(errors="replace").split("\n")
    lines = [_read_line(text) for text in texts]
    damaged = [t for t, line in zip(texts[:-1], lines, strict=False) if line is None and t.strip()]
    if damaged:
        _log.warning("skipping %d damaged lines of %s", len(damaged), path)
    return [line for line in lines if line is not None]


def _read_line(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        return None
    return line


def read_run(out: Path) -> RunFiles:
    """Read the config and the metrics of a run's folder; what is missing or damaged is left out."""
    settings: dict[str, Any] = {}
    for name in (_OLD_CONFIG_FILE, CONFIG_FILE):
        with suppress(ConfigError):
            settings = read_yaml(out / name)
    run = RunFiles(out, settings, None)
    # A config of another version is not one, but its settings are shown.
    with suppress(ConfigError, TypeError):
        known = {name: value for name, value in settings.items() if name != "recipe"}
        run.config = from_dict(TrainConfig, known) if known else None
    try:
        lines = read_metrics(out / METRICS_FILE)
    except OSError as error:
        _log.warning("%s cannot be read (%s); the report is without it", METRICS_FILE, error)
        lines = []
    for line in lines:
        _add_line(run, line)
    return run


def _add_line(run: RunFiles, line: Mapping[str, Any]) -> None:
    step = line["step"]
    if step < run.step:
        # The run rolled back; what it logged after that step does not count.
        for name, values in run.figures.items():
            run.figures[name] = {s: value for s, value in values.items() if s <= step}
    run.step = step
    if _is_number(line.get("seconds")):
        run.seconds = float(line["seconds"])
    if isinstance(line.get("event"), str):
        run.events.append((step, run.seconds, line["event"]))
    for name, value in line.items():
        if name not in ("step", "seconds") and _is_number(value):
            run.figures.setdefault(name, {})[step] = float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e30


def write_report(out: Path) -> Path:
    """Write `report.html` into a run's folder.

    Args:
        out: The folder; what is missing in it is missing on the page.

    Returns:
        The page.

    Raises:
        ConfigError: If matplotlib or Jinja2 is not installed.
        CheckpointError: If the page cannot be written.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"a report needs matplotlib and Jinja2, and {error.name} is not installed; install "
            "them with: pip install matplotlib jinja2"
        ) from error
    run = read_run(out)
    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(template).render(_context(run))
    path = out / REPORT_FILE
    # A folder's name may be any bytes; those that are not text become question marks.
    content = page.encode("utf-8", errors="replace")
    write_atomically(path, lambda partial: partial.write_bytes(content))
    return path


def _context(run: RunFiles) -> dict[str, Any]:
    recipe = run.settings.get("recipe")
    whose = "of the run, the same at each step"
    if run.config:
        holdout = run.config.data.holdout
        whose = "held out from training" if holdout else "from the training set"
    command = ""
    if any((run.out / name).is_file() for name in (CHECKPOINT_FILE, WEIGHTS_FILE)):
        command = f"python -m app --weights {shlex.quote(str(run.out))}"
    return {
        "name": run.out.resolve().name,
        "recipe": recipe if isinstance(recipe, str) else "",
        "summary": _summary(run),
        "key_figures": list(_key_figures(run)),
        "charts": list(_charts(run)),
        "images": list(_images(run)),
        "whose": whose,
        "events": [(step, duration_text(seconds), text) for step, seconds, text in run.events],
        "settings": list(_flat(run.settings)),
        "command": command,
    }


def _summary(run: RunFiles) -> str:
    if not run.figures:
        return "Nothing was logged: the run stopped before its first line of metrics."
    text = f"{run.step:,} steps"
    if run.config and run.step < run.config.steps:
        share = 100 * run.step // run.config.steps
        text = f"Stopped at step {run.step:,} of {run.config.steps:,} ({share} %)"
    elif run.config:
        text = f"All {run.step:,} steps are done"
    if run.config:
        text += f": {run.step * run.config.batch_size:,} images"
    text += f" in {duration_text(run.seconds)}"
    if run.config and run.seconds:
        rate = run.step * run.config.batch_size / run.seconds
        text += f", {rate:,.{1 if rate < 10 else 0}f} images/s with all evaluations and saving"
    if run.config and run.step < run.config.steps:
        text += ". The same command goes on from there"
    return text + "."


def _key_figures(run: RunFiles) -> Iterator[tuple[str, str, str]]:
    """Label, figure and unit of what the page begins with."""
    if losses := list(run.figures.get("loss", {}).values()):
        window = smoothed(np.array(losses))[1]
        yield "Loss at the end", f"{np.mean(losses[-window:]):.4g}", ""
    for name, label, digits, unit in (
        ("holdout_psnr", "Hold-out PSNR", 2, "dB"),
        ("holdout_ssim", "Hold-out SSIM", 3, ""),
    ):
        if values := list(run.figures.get(name, {}).values()):
            yield label, f"{values[-1]:.{digits}f}", unit
    if speeds := sorted(run.figures.get("images_per_second", {}).values()):
        yield "Speed, median", f"{speeds[len(speeds) // 2]:,.0f}", "images/s"


def _charts(run: RunFiles) -> Iterator[dict[str, str]]:
    for name, title, unit in _CHARTS:
        if run.figures.get(name):
            svg, note = draw_chart(run, name)
            note = " · ".join(text for text in (unit, note) if text)
            yield {"title": title, "note": note, "svg": svg}


def draw_chart(run: RunFiles, name: str) -> tuple[str, str]:
    """Draw the curve of a figure over the steps, with marks where the run changed.

    Returns:
        An SVG element without any text from the run's files, and what its caption should say.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    steps = np.array(list(run.figures[name]))
    values = np.array(list(run.figures[name].values()))
    curve, window = smoothed(values) if name in _NOISY else (values, 1)
    log = name in _WIDE_RANGE and values.min() > 0 and values.max() > _LOG_RANGE * values.min()
    buffer = io.StringIO()
    # Ids depend on the name, so that those of several charts on a page differ.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "path.simplify": False,
                  "axes.edgecolor": "none", "grid.color": "#8b95a3", "grid.alpha": 0.3}  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=(5.2, 2.6))
        axes = figure.add_axes((0.12, 0.1, 0.82, 0.8))
        if window > 1:
            axes.plot(*thinned(steps, values), color="#9db7f2", linewidth=1, gid="raw")
        marker = "o" if len(values) <= _FEW else None
        axes.plot(*thinned(steps, curve), color="#3b6fe0", marker=marker, markersize=4, gid="curve")
        axes.set_xlim(0, max(run.step, steps[-1], 1))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(visible=True, axis="y")
        for step, text in _stages(run):
            axes.axvline(step, color="#8b95a3", linestyle=":", linewidth=1, gid="stage")
            axes.annotate(text, (step, 1.02), xycoords=("data", "axes fraction"))
        if name in _NOISY:
            for step, _, _ in run.events:
                axes.axvline(step, color="#d2503c", linestyle="--", linewidth=1, gid="event")
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    notes = ["log scale" if log else "", f"thick: mean of {window:,} lines" if window > 1 else ""]
    return _inline(buffer.getvalue()), " · ".join(note for note in notes if note)


def _inline(svg: str) -> str:
    """An SVG file as an element of a page: no prolog, no namespaces, two decimals in attributes."""

    def shorter(tag: re.Match[str]) -> str:
        text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", tag[0])
        return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", text)

    return re.sub(r"<[^>]*>", shorter, svg[svg.index("<svg") :])


def smoothed(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Means over a window around each value, and the window's length.

    At the beginning, where losses fall fast, the window is symmetric and shorter; at the end it
    is cut off.
    """
    half = int(len(values) * _SMOOTH_SHARE / 2) if len(values) > _FEW else 0
    sums = np.concatenate([[0.0], np.cumsum(values)])
    i = np.arange(len(values))
    start = i - np.minimum(half, i)
    stop = np.minimum(2 * i - start + 1, len(values))
    return (sums[stop] - sums[start]) / (stop - start), 2 * half + 1


def thinned(
    steps: NDArray[np.int64], values: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The smallest and the largest value of each of a few hundred parts of a long curve."""
    if len(values) <= 2 * _PARTS:
        return steps, values
    kept = {0, len(values) - 1}
    for part in np.array_split(np.arange(len(values)), _PARTS):
        kept |= {int(part[values[part].argmin()]), int(part[values[part].argmax()])}
    order = sorted(kept)
    return steps[order], values[order]


def _stages(run: RunFiles) -> list[tuple[int, str]]:
    """Where each image size begins; empty if there is only one."""
    if run.config is None or len(run.config.stages) == 1:
        return []
    marks: list[tuple[int, str]] = []
    begin, end = 0, 0.0
    for stage in run.config.stages:
        end += stage.share * run.config.steps
        text = f"{stage.image_size} px"
        if begin < min(run.step, round(end)) and (not marks or marks[-1][1] != text):
            marks.append((begin, text))
        begin = round(end)
    return marks


def _images(run: RunFiles) -> Iterator[dict[str, Any]]:
    """The first and the last grid of reconstructions, as JPEG."""
    grids = sorted(
        (int(match[1]), path)
        for path in (run.out / IMAGES_FOLDER).glob("step-*.png")
        if (match := re.fullmatch(r"step-(\d+)\.png", path.name)) and int(match[1]) <= run.step
    )
    for step, path in grids[:1] + grids[1:][-1:]:
        try:
            with Image.open(path) as file:
                grid = file.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            _log.warning("%s cannot be read (%s); the report is without it", path.name, error)
            continue
        grid.thumbnail(_IMAGE_SIZE, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        grid.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode()
        yield {"step": step, "data": data, "width": grid.width, "height": grid.height}


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Every setting by its dotted name: text as it is, other values as JSON."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield f"{path}{name}", text


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
