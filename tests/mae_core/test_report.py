import dataclasses
import json
import math
import os
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mae_core.config import DataConfig, StageConfig, TrainConfig, save_yaml, to_dict
from mae_core.errors import CheckpointError, ConfigError
from mae_core.training.report import draw_chart, read_run, write_report
from tests import reports
from tests.pictures import draw_picture
from tests.reports import Page, places

Line = Mapping[str, Any]


def make_run(out: Path, lines: Sequence[Line] = (), config: TrainConfig | None = None) -> Path:
    out.mkdir(parents=True)
    if config:
        save_yaml(config, out / "config.yaml")
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


def steps(count: int, loss: float = 1.0) -> list[Line]:
    return [{"step": 10 * i, "seconds": 2.0 * i, "loss": loss / i} for i in range(1, count + 1)]


def page_of(out: Path) -> Page:
    path = write_report(out)
    assert path == out / "report.html"
    return Page(path)


def lines_of(out: Path, name: str, gid: str = "curve") -> list[ET.Element]:
    return reports.lines_of(draw_chart(read_run(out), name), gid)


@pytest.mark.parametrize("count", [2, 39, 40, 200])
def test_a_chart_draws_every_value_where_it_belongs(tmp_path: Path, count: int) -> None:
    values = [2.0 + math.sin(i) for i in range(count)]
    lines = [{"step": 10 * i + 10, "holdout_psnr": value} for i, value in enumerate(values)]
    (path,) = lines_of(make_run(tmp_path / "run", lines), "holdout_psnr")
    x, y = np.array(places(path)).T
    assert len(x) == count
    np.testing.assert_allclose(np.diff(x), (x[-1] - x[0]) / (count - 1), atol=0.03)
    slope, offset = np.polyfit(values, y, 1)
    assert slope < 0
    np.testing.assert_allclose(slope * np.array(values) + offset, y, atol=0.02)


def test_sizes_and_events_are_marked(tmp_path: Path) -> None:
    config = TrainConfig(steps=100, stages=(StageConfig(128, 0.5), StageConfig(224, 0.5)))
    lines = [*steps(10), {"step": 70, "event": "something"}]
    lines.sort(key=lambda line: int(line["step"]))
    out = make_run(tmp_path / "run", lines, config)
    starts = [places(path)[0][0] for path in lines_of(out, "loss", "stage")]
    (event,) = (places(path)[0][0] for path in lines_of(out, "loss", "event"))
    zero, half = starts
    assert (event - zero) / (half - zero) == pytest.approx(1.4, abs=0.01)
    svg = draw_chart(read_run(out), "loss")
    assert "128 px" in svg
    assert "224 px" in svg


def test_a_run_that_ended_is_told_in_figures(tmp_path: Path) -> None:
    config = TrainConfig(steps=3000, batch_size=64, data=DataConfig(holdout="others"))
    lines = [*steps(300), {"step": 3000, "seconds": 600.0, "holdout_psnr": 18.25}]
    page = page_of(make_run(tmp_path / "flowers", lines, config))
    for text in ("flowers", "3,000 of 3,000", "192,000", "10:00", "18.25 dB", "base_lr: 0.00015"):
        assert text in page.text
    assert "goes on" not in page.text


def test_a_run_that_was_stopped_says_how_far_it_came(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", steps(299), TrainConfig(steps=3000)))
    assert "2,990 of 3,000" in page.text
    assert "The same command goes on from there." in page.text


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[1]", b'{"steps": "many"}', b"\xff", b"[" * 10_000]
)
def test_what_is_missing_or_damaged_is_missing_on_the_page(
    tmp_path: Path, content: bytes | None
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    assert "config.yaml" in page_of(out).text
    make_run(tmp_path / "other", steps(5))
    if content is not None:
        (tmp_path / "other" / "config.yaml").write_bytes(content)
    page = page_of(tmp_path / "other")
    assert "00:10" in page.text
    assert page.tags.count("img") == 1


def test_numbers_that_are_none_leave_a_gap(tmp_path: Path) -> None:
    lines = [
        {"step": 10, "seconds": 1.0, "loss": 1.0, "grad_norm": None},
        {"step": 20, "seconds": None, "loss": None, "grad_norm": 2.0},
        {"step": 30, "seconds": 3.0, "loss": 0.5, "lr": "much", "grad_norm": math.inf},
    ]
    out = make_run(tmp_path / "run", lines)
    assert "00:03" in page_of(out).text
    assert read_run(out).figures == {"loss": {10: 1.0, 30: 0.5}, "grad_norm": {20: 2.0}}


def test_steps_that_a_rollback_undid_are_not_drawn(tmp_path: Path) -> None:
    lines = [
        {"step": 10, "seconds": 1.0, "loss": 1.0},
        {"step": 20, "seconds": 2.0, "loss": 0.75},
        {"step": 20, "seconds": 2.0, "holdout_loss": 0.8},
        {"step": 30, "seconds": 3.0, "loss": 900.0},
        {"step": 30, "seconds": 3.0, "holdout_loss": 700.0},
        {"step": 20, "seconds": 4.0, "event": "the loss jumped: back to step 20"},
        {"step": 30, "seconds": 5.0, "loss": 0.5},
    ]
    out = make_run(tmp_path / "run", lines)
    assert "the loss jumped: back to step 20" in page_of(out).text
    figures = read_run(out).figures
    assert figures == {"loss": {10: 1.0, 20: 0.75, 30: 0.5}, "holdout_loss": {20: 0.8}}


def test_a_run_of_many_lines_is_a_small_page_with_its_spikes(tmp_path: Path) -> None:
    lines = [{"step": 10 * i, "seconds": float(i), "loss": 1.0} for i in range(1, 20_001)]
    lines[12_345] = {**lines[12_345], "loss": 3.0}
    out = make_run(tmp_path / "run", lines)
    assert "200,000" in page_of(out).text
    assert (out / "report.html").stat().st_size < 100_000
    (path,) = lines_of(out, "loss")
    points = places(path)
    assert len(points) == 200
    highest, first, last = min(points, key=lambda point: point[1]), points[0], points[-1]
    share = (highest[0] - first[0]) / (last[0] - first[0])
    assert share == pytest.approx(12_345 / 19_999, abs=5e-3)
    # The spike is a hundredth part of a mean, and the whole of the range around it.
    (area,) = lines_of(out, "loss", "range")
    heights = [y for _, y in places(area)]
    assert max(heights) - min(heights) == pytest.approx(100 * (first[1] - highest[1]), rel=0.01)


def test_nothing_in_the_folder_becomes_markup(tmp_path: Path) -> None:
    evil = "</title><script>alert(1)</script><img src=x onerror=alert(1)>"
    name = evil.replace("/", "")
    lines = [
        *steps(60),
        {"step": 600, "seconds": 120.0, "event": evil},
        {"step": 600, "seconds": 120.0, evil: 1.0},
    ]
    config = TrainConfig(data=DataConfig(folder=evil, holdout=evil), out=evil)
    out = make_run(tmp_path / name, lines, config)
    settings = {**to_dict(config), "recipe": evil}
    (out / "config.yaml").write_text(json.dumps(settings))
    (out / "weights.safetensors").write_bytes(b"")
    draw = Image.new("RGB", (8, 8))
    (out / "reconstructions").mkdir()
    draw.save(out / "reconstructions" / "step-000100.png")
    page = page_of(out)
    page.check_alone()
    assert page.tags.count("img") == len(page.pictures()) + 1
    assert page.text.count(evil) >= 4


def test_a_folder_whose_name_is_no_text_has_a_report_too(tmp_path: Path) -> None:
    out = Path(str(tmp_path) + "/run-\udcff")
    try:
        make_run(out, steps(3))
    except (OSError, UnicodeError):
        pytest.skip("this file system takes text only")
    (out / "weights.safetensors").write_bytes(b"")
    assert "run-?" in page_of(out).text


def save_grids(out: Path, *at: int, size: tuple[int, int] = (184, 272)) -> None:
    (out / "reconstructions").mkdir()
    for step in at:
        draw_picture(step, *size).save(out / "reconstructions" / f"step-{step:06d}.png")


def test_the_first_and_the_last_grid_are_in_the_page(tmp_path: Path) -> None:
    out = make_run(tmp_path / "run", steps(30), TrainConfig())
    save_grids(out, 100, 200, 300, 400)
    (out / "reconstructions" / "step-old.png").write_text("something else")
    page = page_of(out)
    # Step 400 is from before the run went back; it is not what the weights do now.
    assert re.findall(r"Step (\d+)", page.text) == ["100", "300"]
    assert "Images of the training set" in page.text
    for step, picture in zip((100, 300), page.pictures(), strict=True):
        expected = np.asarray(draw_picture(step, 184, 272), dtype=float)
        assert np.abs(np.asarray(picture, dtype=float) - expected).mean() < 6


def test_one_grid_is_shown_once_and_a_damaged_one_not_at_all(tmp_path: Path) -> None:
    out = make_run(tmp_path / "run", steps(30))
    save_grids(out, 100)
    assert len(page_of(out).pictures()) == 1
    whole = (out / "reconstructions" / "step-000100.png").read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:200] + b"\x00" * 40 + whole[240:]):
        (out / "reconstructions" / "step-000100.png").write_bytes(damaged)
        assert page_of(out).pictures() == []


def test_large_grids_become_small_pictures(tmp_path: Path) -> None:
    out = make_run(tmp_path / "run", steps(30))
    (out / "reconstructions").mkdir()
    rng = np.random.default_rng(0)
    for step in (100, 300):
        # Noise, which takes more space than any photograph.
        noise = Image.fromarray(rng.integers(0, 256, (2768, 1840, 3), dtype=np.uint8))
        noise.save(out / "reconstructions" / f"step-{step:06d}.png", compress_level=1)
    page = page_of(out)
    assert [picture.size for picture in page.pictures()] == [(957, 1440)] * 2
    assert (out / "report.html").stat().st_size < 2 * 2**20


def test_the_settings_are_those_of_the_config_file(tmp_path: Path) -> None:
    config = dataclasses.replace(TrainConfig(), out="runs/my <flowers>")
    out = make_run(tmp_path / "run", steps(3), config)
    assert (out / "config.yaml").read_text() in page_of(out).text


def test_a_report_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = make_run(tmp_path / "run", steps(3))
    before = write_report(out).read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=r"could not write 'report.html'"):
        write_report(out)
    assert (out / "report.html").read_bytes() == before


def test_the_config_of_an_earlier_version_is_understood(tmp_path: Path) -> None:
    out = make_run(tmp_path / "run", [*steps(10), {"step": 100, "utilization": 0.5}])
    settings = {"recipe": "quick", **to_dict(TrainConfig(steps=100)), "tensorboard": True}
    settings["system"]["shard"] = False
    (out / "config.json").write_text(json.dumps(settings))
    page = page_of(out)
    assert "100 of 100" in page.text
    assert '"recipe": "quick"' in page.text


def test_equal_runs_have_equal_reports(tmp_path: Path) -> None:
    out = make_run(tmp_path / "run", steps(50), TrainConfig())
    assert write_report(out).read_bytes() == write_report(out).read_bytes()


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_what_a_report_needs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=rf"{missing} is not installed.*pip install matplotlib"):
        write_report(make_run(tmp_path / "run", steps(3)))
