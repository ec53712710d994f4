import base64
import dataclasses
import io
import json
import math
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from mae_core.config import DataConfig, StageConfig, TrainConfig, to_dict
from mae_core.errors import CheckpointError
from mae_core.training.charts import (
    Axis,
    Mark,
    chart,
    number_text,
    round_ticks,
    smoothed,
    step_axis,
    thinned,
    value_axis,
)
from mae_core.training.report import write_report
from tests.pictures import draw_picture

Line = Mapping[str, Any]
finite = st.floats(-1e12, 1e12, allow_subnormal=False)


class Page(HTMLParser):
    """Tags, their attributes, and the text between them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(path.read_text("utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.lasttag != "style":
            self.text += data

    def pictures(self) -> list[Image.Image]:
        start = "data:image/jpeg;base64,"
        sources = [value for name, value in self.attributes if name == "src"]
        assert all(source.startswith(start) for source in sources)
        return [
            Image.open(io.BytesIO(base64.b64decode(source.removeprefix(start))))
            for source in sources
        ]


def make_run(out: Path, lines: Sequence[Line] = (), config: TrainConfig | None = None) -> Path:
    out.mkdir(parents=True)
    if config:
        (out / "config.json").write_text(json.dumps(to_dict(config)))
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


def steps(count: int, loss: float = 1.0) -> list[Line]:
    return [{"step": 10 * i, "seconds": 2.0 * i, "loss": loss / i} for i in range(1, count + 1)]


def page_of(out: Path) -> Page:
    path = write_report(out)
    assert path == out / "report.html"
    return Page(path)


def drawings(text: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)]


def places(path: ET.Element) -> list[tuple[float, float]]:
    """The points of a curve, in the drawing's 0..1000."""
    numbers = [float(number) for number in path.attrib["d"].strip("Mh0").split()]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def curve_of(text: str, name: str = "curve") -> list[tuple[float, float]]:
    (drawing,) = drawings(text)
    (path,) = (path for path in drawing.iter("path") if path.attrib["class"] == name)
    return places(path)


@given(low=finite, size=st.floats(1e-9, 1e12))
def test_ticks_are_round_even_few_and_within(low: float, size: float) -> None:
    high = low + size
    # Where a double cannot tell the ticks apart there is nothing to label.
    assume(size > 1e-6 * max(abs(low), abs(high)))
    ticks = round_ticks(low, high)
    slack = 1e-6 * size
    assert 2 <= len(ticks) <= 7
    assert low - slack <= ticks[0]
    assert ticks[-1] <= high + slack
    gaps = np.diff(ticks)
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-3)
    assert f"{gaps[0]:.1e}"[0] in "125"
    assert f"{gaps[0]:.1e}"[2] == "0"


@given(values=st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=20), log=st.booleans())
def test_every_value_is_within_its_axis(values: list[float], log: bool) -> None:
    axis = value_axis(values, allow_log=log)
    assert axis.low >= 0
    assert all(-1e-9 <= axis.place(value) <= 1 + 1e-9 for value in values + axis.ticks)
    assert axis.place(max(values)) >= axis.place(min(values))
    if not log:
        assert not axis.log


def test_axes_of_few_values_have_a_range() -> None:
    assert value_axis([0.0]) == Axis(0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert value_axis([-2.0]).low < -2.0 < value_axis([-2.0]).high
    assert step_axis(0) == Axis(0, 1, [0.0, 1.0])
    assert step_axis(5300).ticks == [0, 1000, 2000, 3000, 4000, 5000]


def test_a_wide_range_goes_by_its_logarithm() -> None:
    axis = value_axis([0.1, 10.0], allow_log=True)
    assert axis.log
    assert axis.ticks == [0.1, 0.2, 0.5, 1, 2, 5, 10]
    assert math.isclose(axis.place(1.0), 0.5)
    assert len(value_axis([1e-30, 1e30], allow_log=True).ticks) <= 7
    assert not value_axis([-0.1, 10.0], allow_log=True).log
    assert not value_axis([0.3, 1.0], allow_log=True).log


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (5300, "5,300"), (0.25, "0.25"), (18.0, "18"), (1.5e-4, "1.5e-4"),
        (-1e-5, "-1e-5"), (0.30000000000000004, "0.3"), (2e7, "2e7"), (1_000_000, "1,000,000"),
    ],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert number_text(value) == text


@given(values=st.lists(finite, min_size=1, max_size=3000), seed=st.integers(0, 100))
def test_thinning_keeps_the_ends_the_order_and_every_extreme(
    values: list[float], seed: int
) -> None:
    # Repeated, so that most examples are long enough to be thinned.
    order = np.random.default_rng(seed).permutation(np.tile(values, 1 + 2000 // len(values)))
    points = [(10 * i, float(value)) for i, value in enumerate(order)]
    kept = thinned(points)
    assert set(kept) <= set(points)
    assert len(kept) <= 802
    assert [step for step, _ in kept] == sorted(step for step, _ in kept)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert max(v for _, v in kept) == max(values)
    assert min(v for _, v in kept) == min(values)


@pytest.mark.parametrize("count", [1, 2, 40, 41, 530, 2000])
def test_smoothing_is_a_mean_around_each_point(count: int) -> None:
    rng = np.random.default_rng(count)
    points = [(10 * i, float(rng.normal())) for i in range(count)]
    curve, window = smoothed(points)
    half = window // 2
    assert window == (1 if count <= 40 else 2 * int(0.025 * count) + 1)
    for i, (step, mean) in enumerate(curve):
        reach = half if i >= half else i
        around = [value for _, value in points[i - reach : i + reach + 1]]
        assert step == points[i][0]
        assert math.isclose(mean, sum(around) / len(around), rel_tol=1e-6, abs_tol=1e-9)


def test_no_points_are_no_chart() -> None:
    assert chart("Loss", [], last_step=10) == ""


@pytest.mark.parametrize("count", [1, 2, 40, 41, 5000])
def test_a_chart_draws_every_point_where_it_belongs(count: int) -> None:
    points = [(10 * i, 2.0 + math.sin(i)) for i in range(1, count + 1)]
    text = chart("Speed", points, last_step=20 * count)
    drawn = curve_of(text)
    axis = value_axis([value for _, value in points])
    expected = [
        (1000 * step / (20 * count), 1000 * (1 - (value - axis.low) / (axis.high - axis.low)))
        for step, value in thinned(points)
    ]
    np.testing.assert_allclose(drawn, expected, atol=0.051)
    dots = [path for path in drawings(text)[0].iter("path") if path.attrib["class"] == "dot"]
    assert len(dots) == (count if count <= 40 else 0)
    # Said once more without the axis: higher values are higher on the page, which counts from
    # the top.
    heights = [-y for _, y in drawn]
    values = [value for _, value in thinned(points)]
    assert count == 1 or np.corrcoef(heights, values)[0, 1] > 0.999


def test_a_smoothed_curve_is_shown_beside_what_was_logged() -> None:
    points = [(i, 1.0 + (i % 2)) for i in range(1, 401)]
    text = chart("Loss", points, last_step=400, smooth=True)
    assert "thick: mean of 21 lines" in text
    assert {round(y) for _, y in curve_of(text, "raw")} == {54, 946}
    assert all(450 < y < 550 for _, y in curve_of(text)[20:])


def test_what_happened_is_marked_and_named_safely() -> None:
    marks = [Mark(0, "128 px"), Mark(50, "224 px"), Mark(70, 'a "jump" <b>', event=True)]
    text = chart("Loss", [(10, 1.0), (100, 0.5)], last_step=100, marks=marks)
    (drawing,) = drawings(text)
    lines = [p for p in drawing.iter("path") if p.attrib["class"] in ("mark", "event")]
    assert [p.attrib["d"] for p in lines] == ["M0.0 0V1000", "M500.0 0V1000", "M700.0 0V1000"]
    assert [p.findtext("title") for p in lines] == ["128 px", "224 px", 'a "jump" <b>']
    assert "<b>" not in text.replace("<b>Loss</b>", "")


def test_a_run_that_ended_is_told_in_a_sentence(tmp_path: Path) -> None:
    config = TrainConfig(
        steps=3000, batch_size=64, stages=(StageConfig(128, 0.5), StageConfig(224, 0.5)),
        data=DataConfig(holdout="others"),
    )  # fmt: skip
    lines = [*steps(300), {"step": 3000, "seconds": 600.0, "holdout_psnr": 18.25}]
    page = page_of(make_run(tmp_path / "flowers", lines, config))
    assert "flowers" in page.text
    assert "It went all its 3,000 steps and saw 192,000 pictures in 10 min, 320 a second" in (
        page.text
    )
    assert "18.25dB" in page.text
    assert "128 px" in page.text
    assert "optim.lr" in page.text
    assert "details" in page.tags


def test_a_run_that_was_stopped_says_how_far_it_came(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", steps(299), TrainConfig(steps=3000)))
    assert "It stopped at step 2,990 of 3,000 (99 %)" in page.text
    assert "The same command goes on from there." in page.text


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b'{"steps": "many"}', b"\xff"])
def test_what_is_missing_or_damaged_is_missing_on_the_page(
    tmp_path: Path, content: bytes | None
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    assert "Nothing was logged" in page_of(out).text
    make_run(tmp_path / "other", steps(5))
    if content is not None:
        (tmp_path / "other" / "config.json").write_bytes(content)
    assert "50 steps in 10 s." in page_of(tmp_path / "other").text


def dots_of(out: Path) -> list[str]:
    """Step and value of every point of the page's charts, in turn."""
    return re.findall(r"<title>(step \d+: [\d.]+)</title>", page_text(out))


def test_numbers_that_are_none_leave_a_gap(tmp_path: Path) -> None:
    lines = [
        {"step": 10, "seconds": 1.0, "loss": 1.0, "grad_norm": None},
        {"step": 20, "seconds": None, "loss": None, "grad_norm": 2.0},
        {"step": 30, "seconds": 3.0, "loss": 0.5, "lr": "much", "grad_norm": math.inf},
    ]
    out = make_run(tmp_path / "run", lines)
    assert "30 steps in 3 s" in page_of(out).text
    assert dots_of(out) == ["step 10: 1", "step 30: 0.5", "step 20: 2"]


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
    assert dots_of(out) == ["step 10: 1", "step 20: 0.75", "step 30: 0.5", "step 20: 0.8"]


def test_a_run_of_many_lines_is_a_small_page_with_its_spikes(tmp_path: Path) -> None:
    lines = [{"step": 10 * i, "seconds": float(i), "loss": 1.0} for i in range(1, 20_001)]
    lines[12_345] = {**lines[12_345], "loss": 3.0}
    out = make_run(tmp_path / "run", lines)
    page = page_of(out)
    assert (out / "report.html").stat().st_size < 100_000
    assert "200,000 steps" in page.text
    text = (out / "report.html").read_text()
    highest = min(curve_of(text, "raw"), key=lambda point: point[1])
    assert highest[0] == pytest.approx(1000 * 12_346 / 20_000, abs=0.1)


def test_nothing_in_the_folder_becomes_markup(tmp_path: Path) -> None:
    evil = '</title><script>alert("1")</script><img src=x onerror=alert(1)>'
    name = evil.replace("/", "")
    lines = [
        *steps(60),
        {"step": 600, "seconds": 120.0, "event": evil},
        {"step": 600, "seconds": 120.0, evil: 1.0},
    ]
    config = TrainConfig(data=DataConfig(folder=evil, holdout=evil), out=evil)
    out = make_run(tmp_path / name, lines, config)
    settings = {**to_dict(config), "recipe": evil}
    (out / "config.json").write_text(json.dumps(settings))
    (out / "weights.safetensors").write_bytes(b"")
    draw = Image.new("RGB", (8, 8))
    (out / "reconstructions").mkdir()
    draw.save(out / "reconstructions" / "step-000100.png")
    page = page_of(out)
    assert not {"script", "iframe", "link", "object", "a"} & set(page.tags)
    assert page.tags.count("title") == 1 + len(re.findall("<path[^>]*><title>", page_text(out)))
    assert page.tags.count("img") == 1
    assert page.text.count(evil) >= 4
    for attribute, value in page.attributes:
        assert not attribute.startswith("on")
        if attribute in ("src", "href"):
            assert value.startswith("data:image/jpeg;base64,")
    assert not re.search(r"url\(|@import|https?:", page_text(out))


def page_text(out: Path) -> str:
    return (out / "report.html").read_text("utf-8")


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
    assert "from the training set" in page.text
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


def test_the_settings_are_what_the_command_line_takes(tmp_path: Path) -> None:
    config = dataclasses.replace(TrainConfig(), out="runs/my flowers")
    out = make_run(tmp_path / "run", steps(3), config)
    write_report(out)
    rows = dict(re.findall("<tr><th>(.*?)</th><td>(.*?)</td></tr>", page_text(out)))
    assert rows["optim.base_lr"] == "0.00015"
    assert rows["optim.betas"] == "[0.9, 0.95]"
    assert rows["out"] == "runs/my flowers"
    assert rows["data.flip"] == "true"


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
