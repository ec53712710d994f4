"""A grid of runs, in real processes, and its table and plot."""

import datetime
import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from mae_core import ablate
from mae_core.ablate import Ablation, Row, load_ablation, run_ablation, save_results
from mae_core.cli import mae
from mae_core.config import ModelConfig, text_of, with_overrides
from mae_core.errors import ConfigError, DataError
from mae_core.model.mae import MaskedAutoencoder
from mae_core.recipes import recipe
from mae_core.training.optim import mask_at
from mae_core.weights.formats import save_weights
from tests.pictures import draw_picture

GRIDS = Path(__file__).resolve().parents[2] / "docs/ablations"

SMALL = {
    "model.image_size": 32, "model.patch_size": 8, "model.embed_dim": 16, "model.depth": 1,
    "model.num_heads": 2, "model.decoder_embed_dim": 16, "model.decoder_depth": 1,
    "model.decoder_num_heads": 2, "stages": [{"image_size": 32, "share": 1.0}],
    "steps": 2, "batch_size": 4, "snapshots": 0, "optim.name": "adamw",
}  # fmt: skip


CONFIG = ModelConfig(
    image_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, decoder_embed_dim=16,
    decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for i in range(8):
        path = tmp_path / f"pictures/{'ab'[i % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_picture(i, 40, 40).save(path)
    return tmp_path / "pictures"


def write_grid(path: Path, pictures: Path, **changes: Any) -> Path:
    grid = {
        "fields": {**SMALL, "data.folder": str(pictures)},
        "grid": {"mask.ratio": [0.5, 2]},
        "measure": {
            "psnr": {"kind": "reconstruction", "data": str(pictures), "mask_ratio": 0.5},
            "knn": {"kind": "knn", "data": str(pictures), "k": 2},
        },
        "out": str(path.parent / "runs"),
    }
    path.write_text(yaml.safe_dump({**grid, **changes}, sort_keys=False))
    return path


def test_a_grid_is_trained_measured_and_drawn_once(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measure = {
        "psnr": {"kind": "reconstruction", "data": str(pictures), "mask_ratio": 0.5},
        "knn": {"kind": "knn", "data": str(pictures), "k": 2},
        "tuned": {
            "kind": "partial", "data": str(pictures), "blocks": [0, 1], "steps": 1, "workers": 1,
            "batch_size": 4,
        },
    }  # fmt: skip
    grid = write_grid(tmp_path / "grid.yaml", pictures, measure=measure)
    # One of the two rows cannot be trained; the other is.
    assert mae(["ablate", str(grid), "--jobs", "2"]) == 1
    said = capsys.readouterr().out
    assert "| runs | psnr | knn | tuned |" in said
    assert "mask.ratio=2, seed 0 failed: error: mask.ratio" in said
    results = json.loads((tmp_path / "runs/results.json").read_text())["rows"]
    assert [row["fields"] for row in results] == [{"mask.ratio": 0.5}, {"mask.ratio": 2}]
    assert 0 < results[0]["values"]["psnr"][0] < 40
    assert 0 <= results[0]["values"]["knn"][0] <= 1
    assert 0 <= results[0]["values"]["tuned"][0] <= 1
    assert list((tmp_path / "runs").glob("*/seed-0/tuned-*/blocks-1/weights.safetensors"))
    assert results[1]["values"] == {"psnr": [], "knn": [], "tuned": []}
    assert "failed" in (tmp_path / "runs/table.md").read_text()
    with Image.open(tmp_path / "runs/plot.png") as plot:
        assert plot.width > plot.height

    # Nothing is trained or measured again.
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command))
    monkeypatch.setattr(ablate, "probe", None)
    monkeypatch.setattr(ablate, "fine_tune", None)
    monkeypatch.setattr(ablate._Reconstruction, "value", None)
    grid = write_grid(tmp_path / "grid.yaml", pictures, grid={"mask.ratio": [0.5]}, measure=measure)
    assert mae(["ablate", str(grid), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == results[:1]
    assert not started


@pytest.mark.parametrize("grid", sorted(GRIDS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_grids_of_the_paper_can_be_run(grid: Path) -> None:
    ablation = load_ablation(grid)
    assert f"`{grid.name}`" in (GRIDS / "README.md").read_text()
    for fields in ablation.combinations():
        texts = [f"{key}={text_of(value)}" for key, value in {**ablation.fields, **fields}.items()]
        config = with_overrides(recipe(ablation.recipe), texts)
        # Draws one mask, which not every ratio allows.
        side = config.model.grid_size
        assert mask_at(0, 2, (side, side), config.mask, seed=0).mask.any()


def test_a_measure_that_fails_is_noted_and_the_others_stay(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    grid = write_grid(tmp_path / "grid.yaml", pictures, grid={}, seeds=[0, 1])
    ablation = load_ablation(grid)
    runs = [tmp_path / "runs" / ablate._folder_of(ablation, {}) / f"seed-{i}" for i in (0, 1)]
    torch.manual_seed(0)
    for run in runs:
        save_weights(run / "weights.safetensors", MaskedAutoencoder(CONFIG), record={})
    (runs[1] / "weights.safetensors").write_bytes(b"cut short")
    (row,) = run_ablation(ablation)
    assert [len(values) for values in row.values.values()] == [1, 1]
    assert row.failed.keys() == {1}
    assert row.failed[1].startswith("measuring: ")


def test_data_that_are_not_there_are_refused_before_anything_is_trained(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    for kind in ("knn", "reconstruction"):
        measure = {"x": {"kind": kind, "data": str(tmp_path / "nothing")}}
        grid = write_grid(tmp_path / "grid.yaml", pictures, measure=measure)
        with pytest.raises(DataError, match="is not a folder"):
            run_ablation(load_ablation(grid))


class Stub:
    """A run that goes on until it is told to stop, as `mae train` does."""

    def __init__(self, command: list[str], **_: Any) -> None:
        self.command, self.told = command, threading.Event()
        STARTED.append(self)
        if len(STARTED) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    def wait(self) -> int:
        assert self.told.wait(240)
        return 143

    def terminate(self) -> None:
        self.told.set()


STARTED: list[Stub] = []


def test_a_signal_stops_the_runs_and_starts_no_other(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    STARTED.clear()
    monkeypatch.setattr(subprocess, "Popen", Stub)
    grid = write_grid(
        tmp_path / "grid.yaml", pictures, recipe="base", seeds=[0, 1, 2, 3],
        grid={"model": ["tiny"], "data.holdout": [None]},
    )  # fmt: skip
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run_ablation(load_ablation(grid), jobs=2)
    assert signal.getsignal(signal.SIGTERM) == before
    assert len(STARTED) == 2
    # The recipe of the grid; and a whole part comes before fields of it.
    recipe, *fields = STARTED[0].command[3:]
    assert recipe == "base"
    assert fields.index("model=tiny") < fields.index("model.depth=1")
    assert "data.holdout=" in fields


def test_rows_are_combined_with_the_grid(tmp_path: Path, pictures: Path) -> None:
    grid = write_grid(
        tmp_path / "grid.yaml", pictures, grid={"a": [1, 2], "b": [3]}, rows=[{}, {"c": 4, "d": 5}]
    )
    assert load_ablation(grid).combinations() == [
        {"a": 1, "b": 3}, {"a": 2, "b": 3},
        {"c": 4, "d": 5, "a": 1, "b": 3}, {"c": 4, "d": 5, "a": 2, "b": 3},
    ]  # fmt: skip


def test_a_dry_run_lists_the_runs(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write_grid(tmp_path / "grid.yaml", pictures, seeds=[0, 1, 2])
    assert mae(["ablate", str(grid), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("6 runs: seeds [0, 1, 2] of each of\n")
    assert '  {"mask.ratio": 0.5}\n' in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"measure": {}}, "measure={}: "),
        ({"measure": {"x": {"kind": "speed", "data": "y"}}}, "measure.x is .*; give kind: recons"),
        ({"measure": {"x": {"kind": "knn"}}}, "and data: FOLDER"),
        ({"measure": {"x": {"kind": "knn", "data": "y", "kk": 3}}}, "KnnConfig has no field kk"),
        ({"grid": {"seed": [1, 2]}}, "seed is no field of an ablation's runs; give out and seeds"),
        ({"grid": {"a": []}}, "grid.a=\\[\\]"),
        ({"grid": {"a": [1, 1]}}, "a row is there twice: a=1"),
        ({"seeds": [3, 3]}, "a seed is there twice: 3"),
        ({"rows": [{"mask.ratio": 0.5}]}, "mask.ratio is in rows and in grid"),
        ({"measure": {"x": {"kind": ["knn"], "data": "y"}}}, "give kind: reconstruction, knn"),
        ({"fields": {"a": datetime.date(2024, 1, 1)}}, "fields.a"),
        ({"colour": "red"}, "Ablation has no field colour"),
    ],
)
def test_a_grid_that_cannot_work_is_refused(
    changes: dict[str, Any], sentence: str, tmp_path: Path, pictures: Path
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_ablation(write_grid(tmp_path / "grid.yaml", pictures, **changes))


@pytest.mark.parametrize("values", [[0.5, 0.25], ["ran$dom", "b|ock$"], []])
def test_a_table_and_a_plot_have_mean_and_spread(
    values: list[Any], tmp_path: Path, pictures: Path
) -> None:
    ablation = Ablation(
        measure={"knn": {"kind": "knn", "data": "y"}}, out=str(tmp_path / "out"),
        grid={"first": values, "second": [1, 2]} if values else {}, rows=[{}, {"own": True}],
        seeds=(0, 1),
    )  # fmt: skip
    rows = [
        Row(fields, {"knn": [0.5 + i / 100, 0.6 + i / 100]}, {})
        for i, fields in enumerate(ablation.combinations())
    ]
    table = save_results(ablation, rows).splitlines()
    assert len(table) == 2 + len(rows)
    label = f"first={values[0]} second=1".replace("|", r"\|") if values else "-"
    assert table[2] == f"| {label} | 0.55 ± 0.071 |"
    with Image.open(tmp_path / "out/plot.png") as plot:
        assert len(set(plot.convert("L").tobytes())) > 10
