"""Ablations: a grid of runs, each trained and measured, in one table and plot.

    ablation = load_ablation("masks.yaml")
    rows = run_ablation(ablation)

A grid is a YAML file:

    recipe: quick                    # what every run begins with
    fields: {data.folder: PICTURES, steps: 400}
    grid:                            # a run for each combination
      mask.ratio: [0.5, 0.75, 0.9]
      model.decoder_depth: [1, 4]
    rows: [{}, {model.norm_pix: true}]       # fields that go together; each times the grid
    seeds: [0, 1, 2]
    measure:
      psnr: {kind: reconstruction, data: HOLDOUT, mask_ratio: 0.75}
      linear: {kind: linear, data: FLOWERS, pool: cls}
    out: runs/masks

Runs are processes of their own in `out`; what is finished there is not done again.
"""

import hashlib
import itertools
import json
import logging
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Annotated, Any, Literal

from pydantic import Field, JsonValue
from tqdm import tqdm

from mae_core.config import (
    Checked,
    Count,
    Share,
    from_dict,
    read_yaml,
    split_field,
    text_of,
    with_overrides,
)
from mae_core.data.datasets import find_images
from mae_core.data.labelled import open_labelled
from mae_core.devices import choose_device, choose_threads
from mae_core.errors import ConfigError, DataError, MAEError
from mae_core.evaluation.probes import KnnConfig, LinearConfig, probe
from mae_core.evaluation.reconstruction import FittedImages, evaluate_reconstruction, summarize
from mae_core.finetune import fine_tune
from mae_core.training.classification import FinetuneConfig
from mae_core.weights.export import write_json
from mae_core.weights.files import WEIGHTS_FILE, read_json, write_atomically
from mae_core.weights.registry import load

__all__ = ["Ablation", "Row", "load_ablation", "run_ablation", "save_results"]

_log = logging.getLogger(__name__)

# In the folder of each run: what was measured.
_MEASURED_FILE = "measured.json"

# Fields that `run_ablation` gives itself.
_OWN_FIELDS = ("out", "seed")


@dataclass(frozen=True)
class Ablation(Checked):
    """What is varied and measured.

    Attributes:
        measure: By name: `kind`, `data` and the fields of that kind. `reconstruction` is the mean
            PSNR in dB on a folder of images, with `mask_ratio`; `knn`, `linear`, `finetune` and
            `partial` the accuracy on labelled images, with the fields of `KnnConfig`,
            `LinearConfig` and `FinetuneConfig`.
        out: Folder of the runs and results.
        recipe: What `mae train` begins with: a recipe or a config.yaml.
        fields: Fields of every run, by dotted names; a row's own win.
        grid: Values of fields; each combination is a row.
        rows: Fields that go together; each is combined with the grid.
        seeds: Each row is trained once with each.
    """

    measure: Annotated[dict[str, dict[str, JsonValue]], Field(min_length=1)]
    out: str
    recipe: str = "quick"
    fields: dict[str, JsonValue] = field(default_factory=dict)
    grid: dict[str, Annotated[list[JsonValue], Field(min_length=1)]] = field(default_factory=dict)
    rows: Annotated[list[dict[str, JsonValue]], Field(min_length=1)] = field(
        default_factory=lambda: [{}]
    )
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, given in self.measure.items():
            _check_measure(name, given)
        parts: list[Mapping[str, Any]] = [self.fields, self.grid, *self.rows]
        for fields in parts:
            if own := [name for name in _OWN_FIELDS if name in fields]:
                raise ConfigError(f"{own[0]} is no field of an ablation's runs; give out and seeds")
        for row in self.rows:
            if both := [name for name in row if name in self.grid]:
                raise ConfigError(f"{both[0]} is in rows and in grid; give it in one of them")
        labels = [Row(fields, {}, {}).label for fields in self.combinations()]
        for name, values in (("a row", labels), ("a seed", [*map(str, self.seeds)])):
            if twice := [value for value in values if values.count(value) > 1]:
                raise ConfigError(f"{name} is there twice: {twice[0]}")

    def combinations(self) -> list[dict[str, Any]]:
        """The fields of each row of the table."""
        return [
            {**own, **dict(zip(self.grid, values, strict=True))}
            for own in self.rows
            for values in itertools.product(*self.grid.values())
        ]


@dataclass(frozen=True)
class _Reconstruction(Checked):
    """Mean PSNR of removed patches, in dB."""

    mask_ratio: Share = 0.75
    seed: Annotated[int, Field(ge=0)] = 0
    strategy: Literal["random", "block", "grid"] = "random"
    image_size: Count | None = None

    def value(self, run: Path, data: str) -> float:
        model = load(run).to(choose_device("auto"))
        images = FittedImages(data, model.config, image_size=self.image_size)
        figures = evaluate_reconstruction(
            model, images, mask_ratio=self.mask_ratio, seed=self.seed, strategy=self.strategy,
            baselines=False,
        )  # fmt: skip
        found = summarize(figures)["model"].get("psnr")
        if found is None:
            raise DataError(f"no image of {data!r} has a PSNR")
        return found.mean


# What the fields of a measure are those of, by its kind.
_KINDS: dict[str, type[Checked]] = {
    "reconstruction": _Reconstruction, "knn": KnnConfig, "linear": LinearConfig,
    "finetune": FinetuneConfig, "partial": FinetuneConfig,
}  # fmt: skip


def _check_measure(name: str, given: Mapping[str, Any]) -> None:
    if given.get("kind") not in [*_KINDS] or not isinstance(given.get("data"), str):
        raise ConfigError(
            f"measure.{name} is {dict(given)}; give kind: {', '.join(_KINDS)}, and data: FOLDER"
        )
    if "out" in given:
        raise ConfigError(f"measure.{name} has out; the folder of the run is taken")
    with_overrides(_KINDS[given["kind"]](), _texts_of(given))


def _texts_of(given: Mapping[str, Any]) -> list[str]:
    return [f"{key}={text_of(v)}" for key, v in given.items() if key not in ("kind", "data")]


def _measure(name: str, given: Mapping[str, Any], run: Path, key: str) -> float:
    """Measure a finished run; `key` is of the weights and the fields."""
    kind, data, texts = given["kind"], given["data"], _texts_of(given)
    if kind in ("finetune", "partial"):
        # A run of other weights or fields is another one.
        folder = run / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        fields = dict(map(split_field, [*texts, f"out={folder}"]))
        report = fine_tune(run, data, kind, **fields)
        if "stopped_by" in report:
            raise KeyboardInterrupt
        return float(report["accuracy"])
    config: Any = with_overrides(_KINDS[kind](), texts)
    if isinstance(config, _Reconstruction):
        return config.value(run, data)
    return float(probe(run, data, config)["accuracy"])


@dataclass(frozen=True)
class Row:
    """One combination of fields and what came of it.

    Attributes:
        fields: What it differs in, by dotted names.
        values: By the name of the measure, a value for each seed.
        failed: By seed, why there is no value.
    """

    fields: dict[str, Any]
    values: dict[str, list[float]]
    failed: dict[int, str]

    @property
    def label(self) -> str:
        """The fields in words."""
        return " ".join(f"{key}={text_of(value)}" for key, value in self.fields.items()) or "-"


def load_ablation(path: str | Path) -> Ablation:
    """Read a grid from YAML.

    Raises:
        ConfigError: If it cannot be read, or a field is unknown or not allowed.
    """
    values = read_yaml(path)
    try:
        return from_dict(Ablation, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def run_ablation(ablation: Ablation, jobs: int = 1) -> list[Row]:
    """Train and measure what is not there yet, `jobs` runs at a time.

    A run that fails is noted in its row, and the others go on. Ctrl-C and SIGTERM stop the runs,
    which save; the same call goes on from there.

    Raises:
        MAEError: If the data of a measure cannot be opened; nothing is trained then.
    """
    for given in ablation.measure.values():
        if given["kind"] == "reconstruction":
            find_images(str(given["data"]), quiet=True)
        else:
            open_labelled(str(given["data"]))
    combinations = ablation.combinations()
    runs = {
        (i, seed): Path(ablation.out).expanduser() / _folder_of(ablation, fields) / f"seed-{seed}"
        for i, fields in enumerate(combinations) for seed in ablation.seeds
    }  # fmt: skip
    failed: dict[tuple[int, int], str] = {}
    processes = _Processes(jobs)

    def trained(key: tuple[int, int]) -> None:
        try:
            problem = _train(ablation, combinations[key[0]], key[1], runs[key], processes)
        except OSError as error:
            problem = str(error)
        if problem:
            failed[key] = problem
            _log.warning("%s: %s", runs[key], problem)

    with processes.stopped_by_signals(), ThreadPoolExecutor(jobs) as pool:
        list(tqdm(pool.map(trained, runs), total=len(runs), desc="runs", unit="run"))
    values: dict[tuple[int, int], dict[str, float]] = {}
    for key, run in runs.items():
        try:
            values[key] = {} if key in failed else _measured(ablation, run)
        except MAEError as error:
            failed[key] = f"measuring: {error}"
            _log.warning("%s: %s", run, failed[key])
    return [
        Row(
            fields,
            {
                name: [values[i, s][name] for s in ablation.seeds if (i, s) not in failed]
                for name in ablation.measure
            },
            {seed: failed[i, seed] for seed in ablation.seeds if (i, seed) in failed},
        )
        for i, fields in enumerate(combinations)
    ]


class _Processes:
    """Runs that are trained now, `jobs` at a time, and can be stopped together."""

    def __init__(self, jobs: int) -> None:
        self._environ = dict(os.environ)
        if jobs > 1:
            self._environ.setdefault("OMP_NUM_THREADS", str(max(choose_threads() // jobs, 1)))
        self._lock = threading.Lock()
        self._all: list[subprocess.Popen[bytes]] = []
        self._stopping = False

    def run(self, arguments: Sequence[str], output: IO[bytes]) -> int:
        """Train; returns the exit status, negative for a signal."""
        with self._lock:
            if self._stopping:
                return -signal.SIGTERM
            process = subprocess.Popen(
                [sys.executable, "-m", "mae_core.train", *arguments],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self._environ,
            )  # fmt: skip
            self._all.append(process)
        return process.wait()

    @contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """Stop all runs at Ctrl-C or SIGTERM, and raise KeyboardInterrupt once they have saved."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def stop(number: int, frame: FrameType | None) -> None:
            # Not here: the thread that is interrupted may hold the lock.
            threading.Thread(target=self._stop).start()

        for number in before:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._stopping:
            raise KeyboardInterrupt

    def _stop(self) -> None:
        with self._lock:
            self._stopping = True
            for process in self._all:
                process.terminate()


def _folder_of(ablation: Ablation, fields: Mapping[str, Any]) -> str:
    """A name that people can read, and that runs with any other field do not have."""
    text = ",".join(f"{key}={text_of(value)}" for key, value in fields.items()) or "plain"
    recipe = Path(ablation.recipe).expanduser()
    digest = hashlib.sha256(recipe.read_bytes() if recipe.is_file() else ablation.recipe.encode())
    digest.update(json.dumps(_ordered({**ablation.fields, **fields})).encode())
    return f"{re.sub(r'[^A-Za-z0-9._=,-]+', '-', text)[:80]}-{digest.hexdigest()[:8]}"


def _ordered(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A whole part (`model`) before fields of it, which it would replace otherwise."""
    return dict(sorted(fields.items(), key=lambda item: (item[0].count("."), item[0])))


def _train(
    ablation: Ablation, fields: Mapping[str, Any], seed: int, run: Path, processes: _Processes
) -> str:
    """Train a run to its end, unless it is there; why it failed, or nothing."""
    if (run / WEIGHTS_FILE).is_file():
        return ""
    run.mkdir(parents=True, exist_ok=True)
    given = {**_ordered({**ablation.fields, **fields}), "seed": seed, "out": str(run)}
    recipe = os.path.expanduser(ablation.recipe)
    with (run / "log.txt").open("ab") as output:
        begin = output.tell()
        texts = [f"{key}={text_of(value)}" for key, value in given.items()]
        status = processes.run([recipe, *texts], output)
    if status == 0 and (run / WEIGHTS_FILE).is_file():
        return ""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    said = (run / "log.txt").read_bytes()[begin:].decode(errors="replace").replace("\r", "\n")
    return next((line for line in reversed(said.split("\n")) if line.strip()), f"status {status}")


def _measured(ablation: Ablation, run: Path) -> dict[str, float]:
    """What was measured of a finished run, now or before with the same weights and fields.

    Data that changed meanwhile are not noticed.
    """
    status = (run / WEIGHTS_FILE).stat()
    path = run / _MEASURED_FILE
    known = read_json(path) if path.is_file() else {}
    values = {}
    for name, given in ablation.measure.items():
        key = json.dumps([given, status.st_size, status.st_mtime_ns], sort_keys=True)
        if key not in known:
            known[key] = _measure(name, given, run, key)
            write_json(path, known)
        values[name] = float(known[key])
    return values


def save_results(ablation: Ablation, rows: Sequence[Row]) -> str:
    """Write `results.json`, `table.md` and where matplotlib is installed `plot.png` to `out`.

    Returns:
        The table, as Markdown: mean and deviation over the seeds.
    """
    out = Path(ablation.out).expanduser()
    names = [*ablation.measure]
    lines = [["runs", *names], ["---"] * (1 + len(names))]
    lines += [[row.label, *(_cell(row.values[name]) for name in names)] for row in rows]
    cells = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    table = "\n".join(f"| {' | '.join(line)} |" for line in cells)
    for row in rows:
        for seed, problem in row.failed.items():
            table += f"\n\n{row.label}, seed {seed} failed: {problem}"
    write_json(out / "results.json", {"rows": [vars(row) for row in rows]})
    write_atomically(out / "table.md", lambda path: path.write_text(table + "\n", "utf-8"))
    try:
        from matplotlib.figure import Figure
    except ImportError:
        _log.warning("no plot.png: matplotlib is not installed; pip install matplotlib")
        return table
    figure = Figure(figsize=(5.5 * len(names), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _draw(axes, ablation, rows, name)
    write_atomically(out / "plot.png", lambda path: figure.savefig(path, format="png", dpi=120))
    return table


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.4g}"
    return f"{mean} ± {statistics.stdev(values):.2g}" if len(values) > 1 else mean


def _draw(axes: Any, ablation: Ablation, rows: Sequence[Row], name: str) -> None:
    """A line for each combination of the other fields over the values of the grid's first field.

    Numbers are where they lie on the axis, other values beside each other.
    """
    field_name = next(iter(ablation.grid), "")
    values = ablation.grid.get(field_name, [])
    numbers = all(type(value) in (int, float) for value in values)
    choices = [text_of(value) for value in (sorted(values) if numbers else values)]  # type: ignore[type-var]
    lines: dict[str, list[Row]] = {}
    for row in rows:
        others = {key: value for key, value in row.fields.items() if key != field_name}
        lines.setdefault(Row(others, {}, {}).label, []).append(row)
    for label, of in lines.items():
        of = [row for row in of if row.values[name]]
        if not choices:
            places: list[float] = [[*lines].index(label)] * len(of)
        elif numbers:
            places = [row.fields[field_name] for row in of]
        else:
            places = [choices.index(text_of(row.fields[field_name])) for row in of]
        means = [statistics.fmean(row.values[name]) for row in of]
        for place, row in zip(places, of, strict=True):
            axes.scatter([place] * len(row.values[name]), row.values[name], s=12, color="0.6")
        order = sorted(range(len(of)), key=lambda i: places[i])
        axes.plot(
            [places[i] for i in order], [means[i] for i in order], marker="o", label=_plain(label)
        )
    if not choices:
        axes.set_xticks(range(len(lines)), [*map(_plain, lines)], rotation=20, ha="right")
    elif not numbers:
        axes.set_xticks(range(len(choices)), [*map(_plain, choices)], rotation=20, ha="right")
    if choices and len(lines) > 1:
        axes.legend(fontsize="small")
    axes.set_xlabel(_plain(field_name))
    axes.set_title(_plain(name), loc="left")
    axes.grid(alpha=0.3)


def _plain(text: str) -> str:
    """Text of a plot, where a dollar would begin a formula."""
    return text.replace("$", r"\$")
