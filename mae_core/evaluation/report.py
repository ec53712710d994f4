"""The report of an evaluation: its figures as JSON, charts, and one HTML page of all.

save_report(probe("mae-tiny", "flowers", KnnConfig()), Path("flowers-knn"))
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from mae_core.config import text_of
from mae_core.reporting import ACCENT, draw, printable, render
from mae_core.weights.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["save_report"]

_log = logging.getLogger(__name__)

_METHODS = {
    "knn": "Nearest neighbours of frozen features",
    "linear": "Linear classifier on frozen features",
    "finetune": "Encoder and classifier trained end to end",
    "partial": "Classifier and the last blocks of the encoder trained",
    "scratch": "Encoder and classifier trained from random parameters",
    "classifier": "Fine-tuned classifier",
}

# Classes that are named beside the confusion matrix, and those whose shares are written in it.
_NAMED, _WRITTEN = 60, 30
# Classes that the page lists; of more than that, the worst and the best.
_LISTED, _ENDS = 60, 20
# Confusions that are told in words.
_TOLD = 10


def save_report(report: Mapping[str, Any], folder: Path, command: str = "") -> None:
    """Write `report.json`, `curve.png`, `confusion.png` and `evaluation.html` into a folder.

    The curve is of accuracy over blocks, where there are several. Without matplotlib or Jinja2,
    what needs them is left out with a warning. The page needs no network and runs no script. (Runs
    have a `report.html` of their own.)

    Args:
        report: As `probe`, `fine_tune` and `measure` return it.
        folder: Is made if it is not there.
        command: What the page says that it was made by.

    Raises:
        CheckpointError: If they cannot be written.
    """

    def write(name: str, data: bytes) -> None:
        write_atomically(folder / name, lambda path: path.write_bytes(data))

    write("report.json", (json.dumps(report, indent=2) + "\n").encode())
    drawn = dict[str, bytes]()
    try:
        for name, (paint, size) in _charts(report).items():
            write(f"{name}.png", draw(partial(_paint_titled, report, paint), size, "png"))
            drawn[name] = draw(paint, size)
    except ImportError as error:
        _log.warning("no charts: %s is not installed; pip install matplotlib", error.name)
    try:
        page = render(Path(__file__).with_name("evaluation.html.j2"), **_told(report), charts=drawn,
                      command=printable(command))  # fmt: skip
    except ImportError as error:
        _log.warning("no evaluation.html: %s is not installed; pip install jinja2", error.name)
        return
    write("evaluation.html", page)


# --- charts

_Chart = tuple[Callable[["Axes"], None], tuple[float, float]]


def _charts(report: Mapping[str, Any]) -> dict[str, _Chart]:
    """How charts are drawn, and how large, by their names."""
    charts = dict[str, _Chart]()
    if len(_rows(report)) > 1:
        charts["curve"] = partial(_paint_curve, report), (6.4, 3.6)
    count = len(report["classes"])
    side = 2.5 + 0.35 * max(count, 5) if count <= _NAMED else 12.0
    charts["confusion"] = partial(_paint_confusion, report), (side, side)
    return charts


def _rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures of blocks that have a number, in its order."""
    rows = [row for row in report.get("blocks", ()) if row["block"] != "all"]
    return sorted(rows, key=lambda row: float(row["block"]))


def _paint_titled(report: Mapping[str, Any], paint: Callable[["Axes"], None], axes: "Axes") -> None:
    title = f"{report['method']} of {_short(report['weights'])}: {100 * report['accuracy']:.1f} %"
    paint(axes)
    axes.set_title(title, loc="left", parse_math=False)


def _paint_curve(report: Mapping[str, Any], axes: "Axes") -> None:
    rows, is_partial = _rows(report), report["method"] == "partial"
    blocks = [row["block"] for row in rows]
    # Half a block and twelve are a step each, as in figure 9 of the paper.
    places = [*range(len(rows))] if is_partial else blocks
    percent = 100 * np.array([[row["accuracy"], *row["interval"]] for row in rows])
    seeds = [(x, 100 * one) for x, row in zip(places, rows, strict=True) for one in row["seeds"]]
    axes.vlines(
        places, percent[:, 1], percent[:, 2], color=ACCENT, alpha=0.4, linewidth=3, gid="intervals"
    )
    axes.plot(places, percent[:, 0], color=ACCENT, gid="means")
    axes.plot(*zip(*seeds, strict=True), "o", color=ACCENT, markersize=5, gid="seeds")
    axes.set_xticks(places, [f"{block:g}" for block in blocks])
    axes.set_xlabel("blocks trained" if is_partial else "encoder block")
    axes.set_ylabel("accuracy in %")
    axes.grid(axis="y", alpha=0.3)


def _paint_confusion(report: Mapping[str, Any], axes: "Axes") -> None:
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    counts = np.array(report["confusion"], dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # Seen on any page, with its text on it.
    colours = LinearSegmentedColormap.from_list("shares", [to_rgba(ACCENT, a) for a in (0, 0.9)])
    axes.imshow(shares, cmap=colours, vmin=0, vmax=1, interpolation="none")
    if len(counts) <= _NAMED:
        names, places = [*map(_short, report["classes"])], range(len(counts))
        axes.set_xticks(places, names, rotation=90, parse_math=False)
        axes.set_yticks(places, names, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("class")
    for (row, column), share in np.ndenumerate(shares) if len(counts) <= _WRITTEN else ():
        if share >= 0.005:
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center")


def _short(name: str) -> str:
    """A name that leaves room for a chart."""
    line = printable(name)
    return line if len(line) <= 24 else f"{line[:23]}…"


# --- the page


def _told(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the page tells."""
    method, weights = report["method"], printable(report["weights"])
    classes = [*map(printable, report["classes"])]
    per_class = [
        (printable(name), share)
        for name, share in sorted(report["per_class"].items(), key=lambda item: item[1] or 0)
        if share is not None and math.isfinite(share)
    ]
    is_long = len(per_class) > _LISTED
    counts = np.array(report["confusion"])
    wrong = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    most = np.argsort(-wrong, axis=None, kind="stable")[:_TOLD]
    confused = zip(*np.unravel_index(most, wrong.shape), strict=True)
    return {
        "title": f"{method} of {weights} on {len(report['per_class'])} classes",
        "subtitle": _METHODS.get(method, method),
        "is_random": report.get("init") == "random",
        "block": report.get("block", "all"),
        "is_partial": method == "partial",
        "key_figures": _key_figures(report),
        "rows": _rows(report),
        "num_seeds": len(report["seeds"]),
        "classes": [per_class[:_ENDS], per_class[-_ENDS:]] if is_long else [per_class],
        "num_classes": len(classes),
        "left_out": len(per_class) - 2 * _ENDS,
        "confusions": [
            f"{wrong[i, j]:,} of {counts[i].sum():,} {classes[i]} were called {classes[j]}"
            for i, j in confused
            if wrong[i, j]
        ],
        "fields": [*_fields(report["config"])],
    }


def _key_figures(report: Mapping[str, Any]) -> dict[str, str]:
    """What the page begins with."""
    low, high = (100 * value for value in report["interval"])
    tiles = {
        "Accuracy": f"{100 * report['accuracy']:.1f} %",
        "95 % interval in %": f"{low:.1f}–{high:.1f}",
        "Seeds": str(len(report["seeds"])),
    }
    if report["deviation"] is not None:
        tiles["Deviation in points"] = f"{100 * report['deviation']:.2f}"
    if "top5" in report:
        tiles["Top-5 accuracy"] = f"{100 * report['top5']:.1f} %"
    if "train" in report:
        tiles["Training images"] = f"{report['train']:,}"
    tiles["Measured images"] = f"{report['measured']:,}"
    if report.get("unreadable"):
        tiles["Unreadable images"] = f"{report['unreadable']:,}"
    time = tqdm.format_interval(report["seconds"])
    return tiles | {"Time": time, "Device": printable(report["device"])}


def _fields(config: Mapping[str, Any], parent: str = "") -> Iterator[str]:
    """As on the command line."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{parent}{name}.")
        else:
            yield printable(f"{parent}{name}={text_of(value)}")
