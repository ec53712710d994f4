"""The load generator, against a page, and against answers that are not what was asked for."""

import json
import os
import random
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.service import Answer
from benchmarks import bench_load
from benchmarks.bench_load import Outcome, Watch, Wish
from mae_core.photographs import decode_image
from tests.app.serving import example, served, small_service

WISH = Wish(mask_ratio=0.5, seed=7, fit="whole")


@pytest.fixture(scope="module")
def answer() -> Answer:
    return small_service().reconstruct(example("cat"), fit="whole", mask_ratio=0.5, seed=7)


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    with served(small_service()) as url:
        yield url


def checked(answer: Answer, wish: Wish, picture: str = "cat", **facts: Any) -> str:
    panel = answer.panels["masked"]
    return bench_load.check_panel(panel, decode_image(example(picture)), wish, answer.facts | facts)


def test_the_panel_asked_for_is_right(answer: Answer) -> None:
    assert checked(answer, WISH) == ""


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"seed": 8}, "another mask"),
        ({"mask_ratio": 0.55}, "another mask"),
        ({"mask_ratio": 0.45}, "another picture, or mask"),
        ({"strategy": "block"}, "another mask"),
        ({"fit": "squash"}, "pixels for"),
    ],
)
def test_a_panel_of_another_wish_is_wrong(
    answer: Answer, changes: dict[str, Any], wrong: str
) -> None:
    wish = replace(WISH, **changes)
    assert "facts of another request" in checked(answer, wish)
    assert wrong in checked(answer, wish, **wish.changes)


def test_a_panel_of_another_picture_is_wrong(answer: Answer) -> None:
    panel = answer.panels["masked"]
    other = decode_image(example("coffee")).resize(panel.size)
    assert "another" in bench_load.check_panel(panel, other, WISH, answer.facts)


def test_visitors_do_a_bit_of_everything() -> None:
    done = list(islice(bench_load.wishes(random.Random(0)), 300))
    assert {wish.event for wish in done} == {"update", "reconstruct"}
    assert {wish.fit for wish in done if wish.allowed} == {"crop", "squash", "whole"}
    assert {wish.strategy for wish in done if wish.allowed} == {"random", "block", "grid"}
    assert 0 < sum(not wish.allowed for wish in done) < 60
    assert 0 < sum(wish.upload for wish in done) < 60
    # Some of them would come from a cache.
    assert len(set(map(repr, done))) < len(done)


def test_every_second_visitor_has_a_picture_of_its_own() -> None:
    pictures = [bench_load.picture_of(number, random.Random(0)) for number in range(4)]
    assert pictures[0] == pictures[2]
    assert len(set(pictures)) == 2
    others = {bench_load.picture_of(1, random.Random(n)) for n in range(10)}
    assert len(others) == 10
    assert all(isinstance(decode_image(picture), Image.Image) for picture in others)


def report_of(page: str, out: Path, *arguments: str) -> dict[str, Any]:
    bench_load.main([f"--url={page}", f"--out={out}", f"--cache={out.parent}", *arguments])
    report: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
    return report


def test_a_page_under_load(page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "reports" / "load.md"
    report = report_of(page, out, "--visitors=4", "--requests=12", f"--pid={os.getpid()}")
    assert report["requests"] == 4 * 12
    assert report["kinds"]["picture"] + report["kinds"]["refused"] == 4 * 12
    assert report["kinds"]["refused"] == sum(count for _, _, count in report["said"]) > 0
    assert 0 < report["latency"]["p50"] <= report["latency"]["p95"] <= report["latency"]["max"]
    assert len(report["samples"]) >= 2
    assert all(memory > 10 and files > 3 for _, memory, files, _ in report["samples"])
    assert out.read_text() == capsys.readouterr().out.removesuffix("\n")
    assert f"![The server's memory over time]({out.stem}.svg)" in out.read_text()
    assert ET.parse(out.with_suffix(".svg")).getroot().tag.endswith("svg")


def test_answers_of_others_and_errors_are_found(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bench_load.Visitor._event
    answers = iter(["swapped", "busy", "broken", "other", "lost", "nothing"])

    async def event(self: Any, event: Any, data: list[Any]) -> dict[str, Any]:
        match next(answers):
            case "swapped":
                data = [value + 1 if name == "seed" else value
                        for name, value in zip(event.names, data, strict=True)]  # fmt: skip
                output = await real(self, event, data)
                output["facts"]["seed"] -= 1
                return output
            case "busy":
                return {"panels": None, "facts": {"error": "3 requests are waiting."}}
            case "broken":
                return {"panels": None}
            case "other":
                return {"panels": None, "facts": {"error": "Something went wrong (id 7)."}}
            case "lost":
                raise bench_load.LostError("the stream ended before the request")
        return {"panels": None, "facts": {"waiting": "Fetching."}}

    monkeypatch.setattr(bench_load.Visitor, "_event", event)
    monkeypatch.setattr(bench_load, "wishes", lambda chance: iter([Wish()] * 6))
    report = report_of(page, tmp_path / "load.md", "--visitors=1", "--requests=6")
    assert report["kinds"] == {
        "picture": 0, "wrong": 1, "refused": 0, "busy": 1, "error": 3, "lost": 1,
    }  # fmt: skip
    assert sorted(said for _, said, _ in report["said"]) == [
        "LostError the stream ended before the request", "N requests are waiting.",
        "Something went wrong (id N).", "an answer that nobody understands: KeyError('facts')",
        "another mask", "neither a picture nor an error, but ['waiting']",
    ]  # fmt: skip
    assert report["samples"] == []


def test_a_sentence_of_the_page_that_fails_is_an_error(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is allowed and refused all the same, through the API."""
    monkeypatch.setattr(
        bench_load, "wishes",
        lambda chance: iter([Wish(event="reconstruct", mask_ratio=2), Wish(mask_ratio=2)]),
    )  # fmt: skip
    report = report_of(page, tmp_path / "load.md", "--visitors=1", "--requests=2")
    assert report["kinds"]["error"] == 2
    assert "N to N" in report["said"][0][1]


def test_a_server_that_is_not_there_loses_everything(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def vanish(self: Any) -> None:
        await self.client.get("http://127.0.0.1:9/")

    monkeypatch.setattr(bench_load.Visitor, "_upload", vanish)
    report = report_of(page, tmp_path / "load.md", "--visitors=2", "--requests=1")
    assert report["kinds"]["lost"] == 2


def test_steady_load_ends_in_time(page: str, tmp_path: Path) -> None:
    report = report_of(page, tmp_path / "load.md", "--visitors=2", "--minutes=0.02", "--pause=0.1")
    assert report["kinds"]["picture"] > 0
    assert report["kinds"]["lost"] == report["kinds"]["error"] == 0


@pytest.mark.parametrize(("per_second", "per_hour"), [(0, 0), (2, 7200), (-0.5, -1800)])
def test_growth_is_that_of_the_second_half(per_second: float, per_hour: float) -> None:
    warm = [(x, 100 + 50 * x) for x in range(100)]
    steady = [(x, 5000 + per_second * x) for x in range(100, 201)]
    assert bench_load.slope([*warm, *steady]) == pytest.approx(per_hour)


def test_percentiles_are_values_that_occurred() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    shares = [bench_load.percentile(values, share) for share in (0, 0.2, 0.5, 0.95, 1)]
    assert shares == [1, 1, 3, 5, 5]


def test_a_process_that_is_gone_is_not_sampled(tmp_path: Path) -> None:
    watch = Watch(2**22 + 1, tmp_path)
    watch.look()
    assert watch.samples == []


def test_what_is_said_is_counted_without_its_numbers() -> None:
    outcomes = [Outcome("busy", 0.1, f"{n} requests are ahead of yours") for n in range(3)]
    report = bench_load.summary(outcomes, Watch(None, Path()), 1.0)
    assert report["said"] == [["busy", "N requests are ahead of yours", 3]]
