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
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from tqdm import tqdm

from mae_core.config import Checked, Count, Share, load_yaml, with_overrides
from mae_core.errors import ConfigError
from mae_core.evaluation.probes import KnnConfig, LinearConfig, probe
from mae_core.evaluation.reconstruction import FittedImages, evaluate_reconstruction, summarize
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
            PSNR in dB on a folder of images, with `mask_ratio`; `knn` and `linear` the accuracy on
            labelled images, with the fields of `KnnConfig` and `LinearConfig`.
        out: Folder of the runs and results.
        recipe: What `mae train` begins with: a recipe or a config.yaml.
        fields: Fields of every run, by dotted names.
        grid: Values of fields; each combination is a row.
        rows: Fields that go together; each is combined with the grid.
        seeds: Each row is trained once with each.
    """

    measure: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    out: str
    recipe: str = "quick"
    fields: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = field(default_factory=dict)
    rows: Annotated[list[dict[str, Any]], Field(min_length=1)] = field(default_factory=lambda: [{}])
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, given in self.measure.items():
            _measure_of(name, given)
        for fields in (self.fields, self.grid, *self.rows):
            if own := [name for name in _OWN_FIELDS if name in fields]:
                raise ConfigError(f"{own[0]} is no field of an ablation's runs; give out and seeds")

    def combinations(self) -> list[dict[str, Any]]:
        """The fields of each row of the table."""
        values = itertools.product(self.rows, *self.grid.values())
        return [{**own, **dict(zip(self.grid, others, strict=True))} for own, *others in values]


@dataclass(frozen=True)
class _Reconstruction(Checked):
    """Mean PSNR of removed patches, in dB."""

    mask_ratio: Share = 0.75
    seed: Annotated[int, Field(ge=0)] = 0
    strategy: Literal["random", "block", "grid"] = "random"
    image_size: Count | None = None

    def value(self, run: Path, data: str) -> float:
        model = load(run)
        images = FittedImages(data, model.config, image_size=self.image_size)
        figures = evaluate_reconstruction(
            model, images, mask_ratio=self.mask_ratio, seed=self.seed, strategy=self.strategy,
            baselines=False,
        )  # fmt: skip
        return summarize(figures)["model"]["psnr"].mean


_KINDS: dict[str, Any] = {
    "reconstruction": _Reconstruction, "knn": KnnConfig, "linear": LinearConfig,
}  # fmt: skip


def _measure_of(name: str, given: Mapping[str, Any]) -> tuple[Any, str]:
    """The configuration of a measure and its data."""
    fields = {key: value for key, value in given.items() if key not in ("kind", "data")}
    kind, data = given.get("kind"), given.get("data")
    if kind not in _KINDS or not isinstance(data, str):
        raise ConfigError(
            f"measure.{name} is {dict(given)}; give kind: {', '.join(_KINDS)}, and data: FOLDER"
        )
    texts = [f"{key}={_text_of(value)}" for key, value in fields.items()]
    return with_overrides(_KINDS[kind](), texts), data


@dataclass(frozen=True)
class Row:
    """One combination of fields and what came of it.

    Attributes:
        fields: What it differs in, by dotted names.
        values: By the name of the measure, a value for each seed.
        failed: By seed, the last line that the run said.
    """

    fields: dict[str, Any]
    values: dict[str, list[float]]
    failed: dict[int, str]

    @property
    def label(self) -> str:
        """The fields in words."""
        return " ".join(f"{key}={_text_of(value)}" for key, value in self.fields.items()) or "-"


def load_ablation(path: str | Path) -> Ablation:
    """Read a grid from YAML.

    Raises:
        ConfigError: If it cannot be read, or a field is unknown or not allowed.
    """
    return load_yaml(Ablation, path)


def run_ablation(ablation: Ablation, jobs: int = 1) -> list[Row]:
    """Train and measure what is not there yet, `jobs` runs at a time.

    A run that fails is noted in its row, and the others go on. Ctrl-C stops the runs, which save;
    the same call goes on from there.
    """
    runs = {
        (i, seed): Path(ablation.out).expanduser() / _folder_of(ablation, fields) / f"seed-{seed}"
        for i, fields in enumerate(ablation.combinations()) for seed in ablation.seeds
    }  # fmt: skip
    failed: dict[tuple[int, int], str] = {}
    combinations = ablation.combinations()
    processes: list[subprocess.Popen[bytes]] = []

    def trained(key: tuple[int, int]) -> None:
        problem = _train(ablation, combinations[key[0]], key[1], runs[key], jobs, processes)
        if problem:
            failed[key] = problem
            _log.warning("%s: %s", runs[key], problem)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            list(tqdm(pool.map(trained, runs), total=len(runs), desc="runs", unit="run"))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            raise
    rows = []
    for i, fields in enumerate(combinations):
        done = [seed for seed in ablation.seeds if (i, seed) not in failed]
        measured = [_measured(ablation, runs[i, seed]) for seed in done]
        values = {name: [of[name] for of in measured] for name in ablation.measure}
        lost = {seed: failed[i, seed] for seed in ablation.seeds if (i, seed) in failed}
        rows.append(Row(fields, values, lost))
    return rows


def _folder_of(ablation: Ablation, fields: Mapping[str, Any]) -> str:
    """A name that people can read, and that runs with any other field do not have."""
    text = ",".join(f"{key}={_text_of(value)}" for key, value in fields.items()) or "plain"
    whole = json.dumps([ablation.recipe, {**ablation.fields, **fields}], sort_keys=True)
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9._=,-]+', '-', text)[:80]}-{digest}"


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _train(
    ablation: Ablation, fields: Mapping[str, Any], seed: int, run: Path, jobs: int,
    processes: list[subprocess.Popen[bytes]],
) -> str:  # fmt: skip
    """Train a run to its end, unless it is there; why it failed, or nothing."""
    if (run / WEIGHTS_FILE).is_file():
        return ""
    run.mkdir(parents=True, exist_ok=True)
    given = {**ablation.fields, **fields, "seed": seed, "out": str(run)}
    texts = [f"{key}={_text_of(value)}" for key, value in given.items()]
    recipe = ablation.recipe
    start = ["--config", recipe] if Path(recipe).suffix in (".yaml", ".yml") else [recipe]
    environ = dict(os.environ)
    if jobs > 1:
        environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // jobs, 1)))
    log = run / "log.txt"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mae_core.train", *start, *texts],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environ,
        )  # fmt: skip
        processes.append(process)
        status = process.wait()
    if status == 0 and (run / WEIGHTS_FILE).is_file():
        return ""
    lines = log.read_text(errors="replace").replace("\r", "\n").split("\n")
    return next((line for line in reversed(lines) if line.strip()), f"status {status}")


def _measured(ablation: Ablation, run: Path) -> dict[str, float]:
    """What was measured of a finished run, now or before with the same weights and fields."""
    status = (run / WEIGHTS_FILE).stat()
    path = run / _MEASURED_FILE
    known = read_json(path) if path.is_file() else {}
    values = {}
    for name, given in ablation.measure.items():
        key = json.dumps([given, status.st_size, status.st_mtime_ns], sort_keys=True)
        if key not in known:
            config, data = _measure_of(name, given)
            if isinstance(config, _Reconstruction):
                known[key] = config.value(run, data)
            else:
                known[key] = probe(run, data, config)["accuracy"]
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
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    for row in rows:
        for seed, problem in row.failed.items():
            table += f"\n\n{row.label}, seed {seed} failed: {problem}"
    write_json(out / "results.json", {"rows": [vars(row) for row in rows]})
    write_atomically(out / "table.md", lambda path: path.write_text(table + "\n"))
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
    choices = [_text_of(value) for value in ablation.grid.get(field_name, [])]
    numbers = all(type(value) in (int, float) for value in ablation.grid.get(field_name, []))
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
            places = [choices.index(_text_of(row.fields[field_name])) for row in of]
        means = [statistics.fmean(row.values[name]) for row in of]
        for place, row in zip(places, of, strict=True):
            axes.scatter([place] * len(row.values[name]), row.values[name], s=12, color="0.6")
        axes.plot(places, means, marker="o", label=label)
    if not choices:
        axes.set_xticks(range(len(lines)), [*lines], rotation=20, ha="right")
    elif not numbers:
        axes.set_xticks(range(len(choices)), choices, rotation=20, ha="right")
    if choices and len(lines) > 1:
        axes.legend(fontsize="small")
    axes.set_xlabel(field_name)
    axes.set_title(name, loc="left")
    axes.grid(alpha=0.3)
