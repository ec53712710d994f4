"""What a person wants to know of a run that has ended or was stopped, on one page.

The page is one file that needs no server and runs no script: curves are SVG, pictures are in
it. Everything on it is read from the run's folder, so it can be written again at any time.
"""

import base64
import io
import json
import logging
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from mae_core.config import TrainConfig, from_dict
from mae_core.errors import ConfigError
from mae_core.training.charts import Mark, chart, number_text, smoothed
from mae_core.training.run_log import (
    METRICS_FILE,
    PICTURES_FOLDER,
    duration_text,
    read_metrics,
)
from mae_core.training.schedule import image_size_at
from mae_core.weights.files import write_atomically
from mae_core.weights.registry import WEIGHTS_FILE
from mae_core.weights.runs import CHECKPOINT_FILE

REPORT_FILE = "report.html"

# Pictures on the page are at most this wide and high, in pixels, so that it stays a small file.
_PICTURE_SIZE = (960, 1440)
_JPEG_QUALITY = 80

# Figures that have a chart, in the order of the page: name, title, unit, and that unit in the
# figure's own.
_CHARTS = (
    ("loss", "Loss", "", 1),
    ("holdout_psnr", "Hold-out PSNR", "dB", 1),
    ("holdout_loss", "Hold-out loss", "", 1),
    ("lr", "Learning rate", "", 1),
    ("grad_norm", "Gradient norm", "before clipping", 1),
    ("images_per_second", "Speed", "pictures a second", 1),
    ("utilization", "Utilisation", "% of the device's matmul rate", 0.01),
)
_NOISY = ("loss", "grad_norm", "images_per_second", "utilization")
_WIDE_RANGE = ("loss", "holdout_loss", "grad_norm")

_log = logging.getLogger(__name__)


@dataclass
class _Run:
    """A run as its folder tells of it.

    Attributes:
        out: The folder.
        settings: What `config.json` says; empty if it cannot be read.
        config: The same as a config, where it is one of this version.
        step: Steps done when last heard of.
        seconds: Time spent training until then.
        figures: By name: (step, value) of the steps that count, in order.
        events: (step, seconds, text) of what happened.
    """

    out: Path
    settings: dict[str, Any]
    config: TrainConfig | None
    step: int = 0
    seconds: float = 0.0
    figures: dict[str, dict[int, float]] = field(default_factory=dict)
    events: list[tuple[int, float, str]] = field(default_factory=list)

    def points(self, name: str) -> list[tuple[int, float]]:
        """The curve of a figure; empty if it was never logged."""
        return list(self.figures.get(name, {}).items())


def write_report(out: Path) -> Path:
    """Write `report.html` into a run's folder.

    Args:
        out: The folder; what is missing in it is missing on the page.

    Returns:
        The page.

    Raises:
        CheckpointError: If it cannot be written.
    """
    path = out / REPORT_FILE
    # A folder's name may be any bytes; those that are no text become question marks.
    page = _page(_read_run(out)).encode("utf-8", errors="replace")
    write_atomically(path, lambda partial: partial.write_bytes(page))
    return path


def _read_run(out: Path) -> _Run:
    settings = _read_settings(out / "config.json")
    try:
        known = {name: value for name, value in settings.items() if name != "recipe"}
        config = from_dict(TrainConfig, known) if known else None
    except ConfigError:
        config = None  # of another version; its settings can be shown all the same
    run = _Run(out, settings, config)
    try:
        lines = read_metrics(out / METRICS_FILE)
    except OSError as error:
        _log.warning("%s cannot be read (%s); the report is without it", METRICS_FILE, error)
        lines = []
    for line in lines:
        _take_in(run, line)
    return run


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _take_in(run: _Run, line: Mapping[str, Any]) -> None:
    step = line["step"]
    if step < run.step:
        # The run went back; what it did after that step does not count.
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
    return isinstance(value, int | float) and abs(value) < float("inf")


def _page(run: _Run) -> str:
    name = escape(run.out.resolve().name)
    recipe = run.settings.get("recipe")
    kind = f"Training run · {escape(recipe)}" if isinstance(recipe, str) else "Training run"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<header><p class="kind">{kind}</p><h1>{name}</h1><p>{_sentence(run)}</p></header>\n'
        f"{_tiles(run)}{_charts(run)}{_pictures(run)}{_events(run)}{_settings(run)}{_footer(run)}"
        "</main>\n</body>\n</html>\n"
    )


def _sentence(run: _Run) -> str:
    """What happened, in a sentence or two."""
    if not run.figures:
        return "Nothing was logged: the run stopped before its first look at the loss."
    total = run.config.steps if run.config else None
    done = f"{run.step:,} steps"
    if total and run.step < total:
        done = f"It stopped at step {run.step:,} of {total:,} ({100 * run.step // total} %)"
    elif total:
        done = f"It went all its {run.step:,} steps"
    seen = ""
    if run.config:
        seen = f" and saw {run.step * run.config.batch_size:,} pictures"
    pace = ""
    if run.config and run.seconds:
        rate = run.step * run.config.batch_size / run.seconds
        pace = f", {number_text(round(rate, 1 if rate < 10 else None))} a second"
        pace += " with all measuring and saving"
    more = " The same command goes on from there." if total and run.step < total else ""
    return f"{done}{seen} in {duration_text(run.seconds)}{pace}.{more}"


def _tiles(run: _Run) -> str:
    tiles = [
        f"<div><dt>{escape(label)}</dt><dd>{escape(figure)}<small>{escape(unit)}</small></dd></div>"
        for label, figure, unit in _key_figures(run)
    ]
    return f'<dl class="tiles">{"".join(tiles)}</dl>\n' if tiles else ""


def _key_figures(run: _Run) -> Iterator[tuple[str, str, str]]:
    """Label, figure and unit of what the page begins with."""
    loss = run.points("loss")
    if loss:
        window = smoothed(loss)[1]
        last = [value for _, value in loss[-window:]]
        yield "Loss at the end", f"{sum(last) / len(last):.4g}", ""
    for name, label, digits, unit in (
        ("holdout_psnr", "Hold-out PSNR", 2, "dB"),
        ("holdout_ssim", "Hold-out SSIM", 3, ""),
    ):
        if run.points(name):
            yield label, f"{run.points(name)[-1][1]:.{digits}f}", unit
    speeds = sorted(run.figures.get("images_per_second", {}).values())
    if speeds:
        yield "Speed, median", f"{speeds[len(speeds) // 2]:,.0f}", "pictures/s"
    shares = sorted(run.figures.get("utilization", {}).values())
    if shares:
        yield (
            "Utilisation, median",
            number_text(float(f"{100 * shares[len(shares) // 2]:.2g}")),
            "%",
        )


def _charts(run: _Run) -> str:
    shown = [entry for entry in _CHARTS if run.points(entry[0])]
    marks = _marks(run)
    figures = [
        chart(
            title, [(step, value / scale) for step, value in run.points(name)], unit=unit,
            last_step=run.step, marks=marks if name in _NOISY else (),
            allow_log=name in _WIDE_RANGE, smooth=name in _NOISY,
            # The first, and the one that would be left alone in its row.
            wide=i == 0 or (i == len(shown) - 1 and i % 2 == 1),
        )
        for i, (name, title, unit, scale) in enumerate(shown)
    ]  # fmt: skip
    return f'<section class="charts">{"".join(figures)}</section>\n' if figures else ""


def _marks(run: _Run) -> list[Mark]:
    """What a curve's bends may come from: picture sizes, and what happened."""
    events = [Mark(step, f"step {step:,}: {text}", event=True) for step, _, text in run.events]
    return _stages(run) + events


def _stages(run: _Run) -> list[Mark]:
    """Where each picture size begins; nothing if there is but one."""
    if run.config is None or len(run.config.stages) == 1:
        return []
    marks: list[Mark] = []
    for step in range(min(run.step, run.config.steps)):
        text = f"{image_size_at(step, run.config.steps, run.config.stages)} px"
        if not marks or marks[-1].text != text:
            marks.append(Mark(step, text))
    return marks


def _pictures(run: _Run) -> str:
    """The first and the last grid of reconstructions."""
    grids = sorted(
        (int(match[1]), path)
        for path in (run.out / PICTURES_FOLDER).glob("step-*.png")
        if (match := re.fullmatch(r"step-(\d+)\.png", path.name)) and int(match[1]) <= run.step
    )
    chosen = grids[:1] + grids[1:][-1:]
    figures = [figure for step, path in chosen if (figure := _picture(step, path))]
    if not figures:
        return ""
    whose = (
        "held out from training"
        if run.config and run.config.data.holdout
        else "from the training set"
    )
    if run.config is None:
        whose = "the same at each step"
    return (
        f'<section><h2>Reconstructions</h2><p class="note">Pictures {whose}. From left to right: '
        "original, masked, reconstruction, and the reconstruction with the visible patches "
        f'put back.</p><div class="pictures">{"".join(figures)}</div></section>\n'
    )


def _picture(step: int, path: Path) -> str:
    """One grid as an HTML figure with the picture in it; nothing if the file is damaged."""
    try:
        with Image.open(path) as file:
            grid = file.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        _log.warning("%s cannot be read (%s); the report is without it", path.name, error)
        return ""
    grid.thumbnail(_PICTURE_SIZE, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    grid.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f"<figure><figcaption><b>Step {step:,}</b></figcaption>"
        f'<img src="data:image/jpeg;base64,{data}" width="{grid.width}" height="{grid.height}" '
        f'alt="Reconstructions after {step:,} steps"></figure>'
    )


def _events(run: _Run) -> str:
    rows = [
        f"<li><b>Step {step:,}</b> <span>{duration_text(seconds)}</span> {escape(text)}</li>"
        for step, seconds, text in run.events
    ]
    if not rows:
        return ""
    return f'<section><h2>What happened</h2><ol class="events">{"".join(rows)}</ol></section>\n'


def _settings(run: _Run) -> str:
    rows = [
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in _flat(run.settings)
    ]
    if not rows:
        return ""
    return (
        "<details><summary>Settings, as they are given on the command line</summary>"
        f"<table>{''.join(rows)}</table></details>\n"
    )


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Every setting by its dotted name, its value as JSON; texts as they are."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield path + name, value if isinstance(value, str) else json.dumps(value)


def _footer(run: _Run) -> str:
    look = ""
    if any((run.out / name).is_file() for name in (CHECKPOINT_FILE, WEIGHTS_FILE)):
        command = f"python -m app --weights {shlex.quote(str(run.out))}"
        look = f"<br>See what the model learned: <code>{escape(command)}</code>"
    return (
        f"<footer>The figures of this page are in <code>{METRICS_FILE}</code>, its pictures in "
        f"full size in <code>{PICTURES_FOLDER}/</code>.{look}</footer>\n"
    )


_STYLE = """
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --text: #1b222c; --soft: #616b7a; --edge: #e3e6eb;
  --grid: #e9ebef; --curve: #2459d6; --raw: #9db7f2; --mark: #b8bfca; --event: #d2503c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0e1116; --card: #171b22; --text: #e6e9ee; --soft: #98a2b1; --edge: #262c36;
    --grid: #242a33; --curve: #7aa7ff; --raw: #375186; --mark: #4b5563; --event: #ff8a75;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 48px; }
header { margin-bottom: 24px; }
header p { max-width: 46em; margin: 0; }
.kind { color: var(--soft); font-size: 13px; }
h1 { margin: 0 0 8px; font-size: 30px; line-height: 1.2; letter-spacing: -.02em;
  overflow-wrap: anywhere; }
h2 { margin: 0 0 4px; font-size: 17px; }
.note, footer { color: var(--soft); font-size: 13px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 1px;
  margin: 0 0 20px; overflow: hidden; border: 1px solid var(--edge); border-radius: 10px;
  background: var(--edge); }
.tiles div { padding: 12px 16px; background: var(--card); }
.tiles dt { color: var(--soft); font-size: 13px; white-space: nowrap; }
.tiles dd { margin: 0; font-size: 22px; font-weight: 600; letter-spacing: -.01em;
  white-space: nowrap; }
.tiles small { margin-left: 4px; color: var(--soft); font-size: 13px; font-weight: 400; }
section, details { margin-bottom: 20px; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 20px; }
figure { margin: 0; }
.chart, .pictures figure, .events, details { padding: 16px 20px; border: 1px solid var(--edge);
  border-radius: 10px; background: var(--card); }
.wide { grid-column: 1 / -1; }
.chart figcaption { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 10px; }
.area { position: relative; height: 200px; margin: 22px 8px 24px 48px; }
.wide .area { height: 280px; }
.area svg { display: block; width: 100%; height: 100%; overflow: visible; }
.area path { fill: none; stroke-width: 1; vector-effect: non-scaling-stroke; }
.area .grid { stroke: var(--grid); }
.area .mark { stroke: var(--mark); stroke-dasharray: 2 3; }
.area .event { stroke: var(--event); stroke-dasharray: 5 3; stroke-width: 1.5; }
.area .raw { stroke: var(--raw); }
.area .curve { stroke: var(--curve); stroke-width: 2; stroke-linejoin: round; }
.area .dot { stroke: var(--curve); stroke-width: 7; stroke-linecap: round; }
.area span { position: absolute; color: var(--soft); font-size: 12px; line-height: 1;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
.area .y { right: 100%; margin-right: 8px; transform: translateY(-50%); }
.area .x { top: 100%; margin-top: 10px; transform: translateX(-50%); }
.area .steps { top: 100%; right: 100%; margin: 10px 8px 0 0; }
.area .part { bottom: 100%; margin: 0 0 4px -1px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr));
  gap: 20px; margin-top: 12px; }
.pictures img { display: block; width: 100%; height: auto; margin-top: 8px; border-radius: 4px; }
.events { margin: 8px 0 0; list-style: none; }
.events li + li { margin-top: 6px; }
.events span { margin: 0 6px; color: var(--soft); }
summary { cursor: pointer; font-weight: 600; }
table { width: 100%; margin-top: 12px; border-collapse: collapse;
  font: 13px/1.5 ui-monospace, Menlo, Consolas, "Liberation Mono", monospace; }
th, td { padding: 3px 12px 3px 0; border-top: 1px solid var(--grid); text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 400; }
code { font: 13px ui-monospace, Menlo, Consolas, "Liberation Mono", monospace;
  overflow-wrap: anywhere; }
@media (max-width: 720px) {
  main { padding: 20px 12px 32px; }
  h1 { font-size: 25px; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tiles div:last-child:nth-child(odd) { grid-column: 1 / -1; }
  .charts { grid-template-columns: minmax(0, 1fr); gap: 12px; }
  .chart, .pictures figure, .events, details { padding: 14px 12px; }
  .wide .area { height: 220px; }
}
"""
