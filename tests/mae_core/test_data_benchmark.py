"""The loader's benchmark runs from end to end; what it measures is nobody's promise here."""

import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks import bench_loader
from mae_core import ModelConfig
from mae_core.config import PRESETS

MICRO = ModelConfig(
    image_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, decoder_embed_dim=16,
    decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip


@pytest.mark.parametrize("given", [True, False])
def test_loaders_are_timed_beside_steps_and_written_down(
    monkeypatch: pytest.MonkeyPatch,
    picture_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    given: bool,
) -> None:
    monkeypatch.setitem(PRESETS, "micro", MICRO)
    monkeypatch.setattr(bench_loader, "GENERATED", 5)
    command = f"--models micro --batch-size 2 --rounds 2 --batches 2 --out {tmp_path / 'out'}"
    if given:
        command = f"--folder {picture_folder} {command}"
    bench_loader.main(command.split(" "))
    out = tmp_path / "out"
    (page,), (numbers,) = out.glob("*-loader-cpu.md"), out.glob("*-loader-cpu.json")
    assert page.read_text() == capsys.readouterr().out.removesuffix("\n")
    report = json.loads(numbers.read_text())
    assert report["command"] == f"python -m benchmarks.bench_loader {command}"
    assert report["pictures"] == (12 if given else 5)
    sources = ["folder, decoded each epoch", "pack"]
    if importlib.util.find_spec("datasets"):
        sources.append("shards")
    assert list(report["loader"]) == sources
    for row in [*report["loader"].values(), *report["step"].values()]:
        low, high = row["quartiles"]
        assert 0 < low <= row["median"] <= high
    assert all(row["ratios"]["micro"]["median"] > 0 for row in report["loader"].values())
    assert all(f"| {source} |" in page.read_text() for source in sources)
