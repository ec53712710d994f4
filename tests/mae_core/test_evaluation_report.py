"""The files of an evaluation: figures, charts and a page that opens anywhere."""

import json
import logging
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae_core.errors import CheckpointError
from mae_core.evaluation.report import save_report
from mae_core.evaluation.scores import Scores, figures_of, score
from tests.reports import SVG, Page, groups_of, lines_of, places

EVIL = "</title><script>alert(1)</script><img src=x onerror=alert(1)>"
HOSTILE = (
    EVIL, "$x^2$ and \\frac{", "two\nlines\t", "\x00\x1b[31m\x7f", "bytes \udcff", "half \ud83d",
    "\u202ereversed", "狗和猫", "&amp; {{ 7 * 7 }} {% raw %}", "long " * 50,
)  # fmt: skip


def scores_of(classes: int, seeds: int, right: float = 0.7) -> list[Scores]:
    """Random predictions of 40 images of each class, of which about that share is right."""
    labels = torch.arange(classes).repeat_interleave(40)
    found = []
    for seed in range(seeds):
        rng = torch.Generator().manual_seed(seed)
        guesses = torch.randint(classes, labels.shape, generator=rng)
        is_right = torch.rand(labels.shape, generator=rng) < right
        found.append(score(torch.where(is_right, labels, guesses), labels, classes))
    return found


def report_of(
    classes: Sequence[str] = ("cat", "dog", "owl"), *, seeds: int = 1, method: str = "knn",
    rights: Mapping[float, float] | None = None, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """As `probe` returns it; `rights` has the blocks, and about how much is right after each."""
    rows = [
        {"block": block, **figures_of(scores_of(len(classes), seeds, right), classes)}
        for block, right in (rights or {3: 0.7}).items()
    ]
    return {
        "method": method, "weights": "mae-tiny", "init": "weights", **rows[-1], "blocks": rows,
        "classes": list(classes), "train": 2100, "measured": 40 * len(classes),
        "config": {"k": 20, "blocks": [0, 11], "optim": {"lr": 0.001}}, "seconds": 75.0,
        "device": "cpu", **changes,
    }  # fmt: skip


def saved(report: Mapping[str, Any], folder: Path, command: str = "") -> Page:
    save_report(report, folder, command)
    assert json.loads((folder / "report.json").read_text("utf-8")) == report
    page = Page(folder / "evaluation.html")
    page.check_alone()
    return page


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path, formats=["PNG"]) as picture:
        picture.load()
        return picture.size


def bars_of(page: Page) -> list[float]:
    """The widths of the bars in percent."""
    return [
        float(value.removeprefix("width: ").removesuffix("%"))
        for name, value in page.attributes
        if name == "style"
    ]


def test_the_page_tells_the_figures(tmp_path: Path) -> None:
    report = report_of(seeds=2, init="random")
    page = saved(report, tmp_path, "mae evaluate knn mae-tiny 'my flowers'")
    low, high = report["interval"]
    for text in (
        "knn of mae-tiny on 3 classes", "never pre-trained", "Encoder block: 3",
        f"{100 * report['accuracy']:.1f} %", f"{100 * low:.1f}–{100 * high:.1f}",
        f"{100 * report['deviation']:.2f}", "2,100", "120", "01:15", "all 2 seeds together",
        "k=20\nblocks=[0, 11]\noptim.lr=0.001", "mae evaluate knn mae-tiny 'my flowers'",
    ):  # fmt: skip
        assert text in page.text
    assert not (tmp_path / "curve.png").exists()  # of one block
    assert min(size_of(tmp_path / "confusion.png")) > 400
    assert len(page.embedded("svg+xml")) == 1


def test_classes_begin_with_the_worst_and_confusions_with_the_most_frequent(tmp_path: Path) -> None:
    confusion = [[90, 3, 7], [17, 80, 3], [0, 1, 99]]
    shares = {"cat": 0.9, "dog": 0.8, "owl": 0.99}
    page = saved(report_of(confusion=confusion, per_class=shares), tmp_path)
    assert bars_of(page) == [80.0, 90.0, 99.0]
    assert re.findall(r"^\w+ of \w+ \w+ were called \w+$", page.text, re.M) == [
        "17 of 100 dog were called cat", "7 of 100 cat were called owl",
        "3 of 100 cat were called dog", "3 of 100 dog were called owl",
        "1 of 100 owl were called dog",
    ]  # fmt: skip


def test_names_of_classes_are_text_wherever_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = report_of(HOSTILE, rights={0: 0.1, 11: 0.2}, weights=EVIL, config={"names": EVIL})
    page = saved(report, tmp_path, f"mae evaluate knn {EVIL} \udcff")
    assert page.text.count(EVIL) >= 5
    for text in (
        "$x^2$ and \\frac{", "two\\nlines\\t", "\\x00\\x1b[31m\\x7f", "bytes \\udcff",
        "half \\ud83d", "\\u202ereversed", "狗和猫", "&amp; {{ 7 * 7 }} {% raw %}", "long " * 50,
    ):  # fmt: skip
        assert text in page.text
    assert page.tags.count("img") == 2
    assert not set(page.source) & {chr(i) for i in range(32) if i != ord("\n")}
    # A chart is XML, which takes no control characters, and its formulas would be pictures.
    (curve, confusion) = page.embedded("svg+xml")
    texts = [
        "".join(group.itertext()).strip() for group in groups_of(confusion, "matplotlib.axis_1")
    ]
    assert "$x^2$ and \\frac{" in texts[0]
    assert b"alert(1)</script>" not in curve + confusion
    for name in ("curve", "confusion"):
        assert min(size_of(tmp_path / f"{name}.png")) > 300
    assert not caplog.records


def points_of(page: Page) -> tuple[Any, Any, Any]:
    """Means (n, 2), intervals (n, 2, 2) and seeds (m, 2) of the curve, as it is drawn."""
    curve = page.embedded("svg+xml")[0]
    (means,), (intervals,), (seeds,) = (
        lines_of(curve, "means"), groups_of(curve, "intervals"), groups_of(curve, "seeds")
    )  # fmt: skip
    whiskers = [places(path) for path in intervals.iter(f"{SVG}path")]
    dots = [(float(use.attrib["x"]), float(use.attrib["y"])) for use in seeds.iter(f"{SVG}use")]
    return np.array(places(means)), np.array(whiskers), np.array(dots)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(
    ("method", "rights"),
    [
        ("linear", {0: 0.2, 4: 0.5, 11: 0.7}),
        ("partial", {12.0: 1.0, 0.0: 0.1, 4.0: 0.9, 0.5: 0.5, 1.0: 0.6, 2.0: 0.8}),
    ],
)
def test_the_curve_draws_every_figure_where_it_belongs(
    tmp_path: Path, method: str, rights: dict[float, float], seeds: int
) -> None:
    report = report_of(method=method, rights=rights, seeds=seeds)
    page = saved(report, tmp_path)
    assert min(size_of(tmp_path / "curve.png")) > 300
    means, whiskers, dots = points_of(page)
    rows = sorted(report["blocks"], key=lambda row: float(row["block"]))
    blocks = [row["block"] for row in rows]
    x = np.arange(len(rows)) if method == "partial" else np.array(blocks)
    np.testing.assert_allclose(np.polyval(np.polyfit(x, means[:, 0], 1), x), means[:, 0], atol=0.02)
    # One straight line leads from accuracies to heights, for means, ends and seeds alike.
    accuracy = np.array([row["accuracy"] for row in rows])
    line = np.polyfit(accuracy, means[:, 1], 1)
    assert line[0] < 0
    np.testing.assert_allclose(np.polyval(line, accuracy), means[:, 1], atol=0.02)
    ends = np.array([row["interval"] for row in rows])
    np.testing.assert_allclose(whiskers[:, :, 0], means[:, :1].repeat(2, axis=1), atol=0.02)
    np.testing.assert_allclose(whiskers[:, :, 1], np.polyval(line, ends), atol=0.02)
    each = np.array([row["seeds"] for row in rows])
    np.testing.assert_allclose(dots[:, 0], means[:, 0].repeat(seeds), atol=0.02)
    np.testing.assert_allclose(dots[:, 1], np.polyval(line, each).ravel(), atol=0.02)
    curve = page.embedded("svg+xml")[0].decode()
    (axis,) = groups_of(curve, "matplotlib.axis_1")
    texts = ["".join(text.itertext()) for text in axis.iter(f"{SVG}text")]
    assert texts[:-1] == [f"{block:g}" for block in blocks]
    assert texts[-1] == ("blocks trained" if method == "partial" else "encoder block")


def test_a_classifier_has_neither_blocks_nor_images_that_it_learned_from(tmp_path: Path) -> None:
    report = report_of(["cat", "dog"], method="classifier", top5=0.987, unreadable=3)
    for name in ("block", "blocks", "train", "init"):
        del report[name]
    # What it took for something else has no images of its own.
    report["classes"] = ["cat", "dog", "(another class)"]
    report["confusion"] = [[30, 4, 6], [2, 38, 0], [0, 0, 0]]
    page = saved(report, tmp_path)
    assert "classifier of mae-tiny on 2 classes" in page.text
    assert "6 of 40 cat were called (another class)" in page.text
    assert "98.7 %" in page.text
    assert "Training images" not in page.text
    assert "lock:" not in page.text


def test_a_whole_encoder_has_no_curve(tmp_path: Path) -> None:
    report = report_of(method="finetune", block="all")
    report["blocks"][0]["block"] = "all"
    page = saved(report, tmp_path)
    assert "lock:" not in page.text
    assert len(page.embedded("svg+xml")) == 1


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_class_without_images_is_left_out(tmp_path: Path, missing: float | None) -> None:
    report = report_of(confusion=[[9, 1, 0], [0, 0, 0], [0, 0, 5]])
    report["per_class"] = {"cat": 0.9, "dog": missing, "owl": 1.0}
    save_report(report, tmp_path)
    assert bars_of(Page(tmp_path / "evaluation.html")) == [90.0, 100.0]


def test_of_many_classes_the_worst_and_the_best_are_listed(tmp_path: Path) -> None:
    names = [f"class-{i:03d}" for i in range(200)]
    page = saved(report_of(names), tmp_path)
    listed = bars_of(page)
    shares = sorted(100 * share for share in report_of(names)["per_class"].values())
    assert listed == pytest.approx([*shares[:20], *shares[-20:]], abs=0.06)
    assert "160 classes between these are not listed" in page.text
    assert (tmp_path / "evaluation.html").stat().st_size < 400_000
    assert len(bars_of(saved(report_of(names[:60]), tmp_path))) == 60


@pytest.mark.parametrize(
    ("missing", "files"),
    [
        ("matplotlib", {"report.json", "evaluation.html"}),
        ("jinja2", {"report.json", "curve.png", "confusion.png"}),
    ],
)
def test_what_a_report_needs_is_named_and_the_rest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    missing: str, files: set[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, missing, None)
    with caplog.at_level(logging.WARNING):
        save_report(report_of(rights={0: 0.5, 1: 0.6}), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == files
    (record,) = caplog.records
    assert f"{missing} is not installed; pip install {missing}" in record.getMessage()
    if "evaluation.html" in files:
        assert len(bars_of(Page(tmp_path / "evaluation.html"))) == 3


def test_equal_evaluations_have_equal_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save_report(report_of(rights={0: 0.5, 1: 0.6}), tmp_path / folder)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_folder_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("something else")
    with pytest.raises(CheckpointError, match=r"could not write 'report.json'"):
        save_report(report_of(), tmp_path / "file")

    flush, calls = os.fsync, list[int]()

    def fail(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=r"could not write 'evaluation.html' .*No space left"):
        save_report(report_of(), tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"report.json", "confusion.png"}
