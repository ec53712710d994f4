import importlib.util
import json
import logging
import math
import os
import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mae_core.config import TrainConfig
from mae_core.errors import ConfigError
from mae_core.training.callbacks import Logger, Progress, require_writers
from mae_core.training.report import read_metrics
from tests.forked import ForkedPython
from tests.pictures import draw_picture

FULL = Path("/dev/full")
TENSORBOARD = ("tensorboard",)

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)


class Log:
    """A run's logger, told of states that have a step and a time only."""

    def __init__(self, out: Path, after_step: int, writers: tuple[Any, ...]) -> None:
        self.logger = Logger(out, TrainConfig(writers=writers))
        self.logger.on_start(at(after_step))

    def scalars(self, step: int, seconds: float, values: dict[str, float]) -> None:
        self.logger.on_log(at(step, seconds), values)

    def event(self, step: int, seconds: float, text: str) -> None:
        self.logger.on_event(at(step, seconds), text)

    def image(self, step: int, image: Image.Image) -> None:
        self.logger.on_image(at(step), image)

    def close(self) -> None:
        self.logger.on_end(at(0))


def at(step: int, seconds: float = 0.0) -> Any:
    return SimpleNamespace(step=step, seconds=seconds)


def open_log(out: Path, after_step: int = 0, *, writers: tuple[Any, ...] = ()) -> Log:
    return Log(out, after_step, writers)


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_figures_and_events_are_a_line_each(tmp_path: Path) -> None:
    with closing(open_log(tmp_path / "run")) as log:
        log.scalars(10, 1.26, {"loss": 0.5, "lr": 1e-4})
        log.event(10, 1.3, "back to step 10 — a rollback\n")
        log.scalars(20, 2.0, {"loss": math.nan, "grad_norm": math.inf})
    assert lines_of(tmp_path / "run") == [
        {"step": 10, "seconds": 1.3, "loss": 0.5, "lr": 1e-4},
        {"step": 10, "seconds": 1.3, "event": "back to step 10 — a rollback\n"},
        {"step": 20, "seconds": 2.0, "loss": None, "grad_norm": None},
    ]


def test_no_line_needs_more_than_json(tmp_path: Path) -> None:
    with closing(open_log(tmp_path)) as log:
        log.scalars(10, 1.0, {"loss": math.nan})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)


@given(
    steps=st.lists(st.integers(0, 50), max_size=12),
    after_step=st.integers(0, 50),
    half=st.sampled_from(["", '{"step": 3', '{"step"', '{"step": 7, "loss": 0.', "{", "\n"]),
)
def test_a_resumed_log_has_the_lines_until_the_step_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], after_step: int, half: str
) -> None:
    out = tmp_path_factory.mktemp("run")
    texts = [json.dumps({"step": step, "seconds": 0.1 * step, "loss": 1 / 3}) for step in steps]
    (out / "metrics.jsonl").write_text("".join(text + "\n" for text in texts) + half)
    with closing(open_log(out, after_step)) as log:
        kept = (out / "metrics.jsonl").read_text()
        log.scalars(after_step + 1, 9.0, {"loss": 0.25})
    expected = ""
    for step, text in zip(steps, texts, strict=True):
        if step <= after_step:
            expected += text + "\n"
    assert kept == expected
    assert lines_of(out)[-1] == {"step": after_step + 1, "seconds": 9.0, "loss": 0.25}


def test_damaged_lines_are_dropped_with_a_warning_and_half_a_line_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    good = b'{"step": 1, "seconds": 0.1}\n'
    damaged = [
        b"\xff\xfe\x00", b"[1]", b'{"seconds": 1.0}', b'{"step": "2"}', b'{"step": true}',
        b'{"step": 3, ', b"[" * 100_000,
    ]  # fmt: skip
    path.write_bytes(good + b"\n".join(damaged) + b"\n" + good + b'{"step": 2, "sec')
    open_log(tmp_path, 5).close()
    assert path.read_bytes() == 2 * good
    assert [record.getMessage() for record in caplog.records] == [
        f"skipping {len(damaged)} damaged lines of {path}"
    ]
    caplog.clear()
    path.write_bytes(good + b'{"step": 2, "sec')
    assert read_metrics(path) == [{"step": 1, "seconds": 0.1}]
    assert not caplog.records


KILLED = """
import sys
from pathlib import Path
from types import SimpleNamespace
from mae_core.config import TrainConfig
from mae_core.training.callbacks import Logger
log = Logger(Path(sys.argv[1]), TrainConfig())
log.on_start(SimpleNamespace(step=0))
for step in range(1, 1_000_000):
    log.on_log(SimpleNamespace(step=step, seconds=step / 10), {"loss": 1 / step})
    if step == 200:
        print("ready", flush=True)
"""


def test_a_killed_run_goes_on_where_its_checkpoint_is(tmp_path: Path) -> None:
    with ForkedPython(KILLED, str(tmp_path)) as process:
        assert process.stdout.readline() == "ready\n"
        process.kill()
    with closing(open_log(tmp_path, 150)) as log:
        log.scalars(151, 15.1, {"loss": 1 / 151})
    assert lines_of(tmp_path) == [
        {"step": step, "seconds": round(step / 10, 1), "loss": 1 / step} for step in range(1, 152)
    ]


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_said_once_and_the_log_goes_on_when_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    with closing(open_log(tmp_path)) as log:
        path.symlink_to(FULL)
        log.scalars(10, 1.0, {"loss": 0.5})
        log.event(10, 1.0, "something")
        (warning,) = (record.getMessage() for record in caplog.records)
        assert "No space left on device" in warning
        assert "free space" in warning
        path.unlink()
        log.scalars(30, 3.0, {"loss": 0.25})
    assert [line["step"] for line in read_metrics(path)] == [30]


def test_an_unwritable_log_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "run"
    out.write_text("a file where the folder should be")
    with closing(open_log(out)) as log:
        for step in range(3):
            log.scalars(step, 1.0, {"loss": 0.5})
            log.image(step, draw_picture(step))
    (warning,) = (record.getMessage() for record in caplog.records)
    assert warning.startswith("metrics cannot be written by RunFolder (")


def test_pictures_are_kept_as_they_are_by_their_step(tmp_path: Path) -> None:
    grid = draw_picture(0)
    with closing(open_log(tmp_path)) as log:
        log.image(500, grid)
        log.image(1_234_567, grid)
    folder = tmp_path / "reconstructions"
    assert sorted(os.listdir(folder)) == ["step-000500.png", "step-1234567.png"]
    with Image.open(folder / "step-000500.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), np.asarray(grid))


def read_board(out: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(out / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    board.Reload()
    return board


@needs_tensorboard
def test_tensorboard_has_the_figures_in_groups_and_the_grid(tmp_path: Path) -> None:
    grid = draw_picture(3)
    with closing(open_log(tmp_path, writers=TENSORBOARD)) as log:
        values = {"loss": 0.5, "lr": 1e-4, "grad_norm": 2.0, "images_per_second": 120.0}
        log.scalars(10, 1.0, values)
        log.scalars(20, 2.0, {"loss": 0.25})
        log.scalars(20, 2.0, {"holdout_psnr": 17.5, "holdout_loss": 0.5})
        log.image(20, grid)
        log.event(20, 2.0, "something happened")
    board = read_board(tmp_path)
    assert sorted(board.Tags()["scalars"]) == [
        "holdout/loss", "holdout/psnr", "speed/images_per_second", "train/grad_norm",
        "train/loss", "train/lr",
    ]  # fmt: skip
    assert [(e.step, e.value) for e in board.Scalars("train/loss")] == [(10, 0.5), (20, 0.25)]
    (picture,) = board.Images("reconstructions")
    assert (picture.step, picture.width, picture.height) == (20, *grid.size)
    (event,) = board.Tensors("events/text_summary")
    assert (event.step, event.tensor_proto.string_val) == (20, [b"something happened"])


@needs_tensorboard
def test_tensorboard_shows_no_step_twice_after_a_stop(tmp_path: Path) -> None:
    with closing(open_log(tmp_path, writers=TENSORBOARD)) as log:
        for step in (10, 20, 30, 40):
            log.scalars(step, step, {"loss": float(step)})
    with closing(open_log(tmp_path, 20, writers=TENSORBOARD)) as log:
        for step in (30, 40, 50):
            log.scalars(step, step, {"loss": 100.0 + step})
    assert [(e.step, e.value) for e in read_board(tmp_path).Scalars("train/loss")] == [
        (10, 10.0), (20, 20.0), (30, 130.0), (40, 140.0), (50, 150.0),
    ]  # fmt: skip


@needs_tensorboard
def test_tensorboard_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def fail(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    with closing(open_log(tmp_path / "a", writers=TENSORBOARD)) as log:
        monkeypatch.setattr(SummaryWriter, "add_scalar", fail)
        log.scalars(10, 1.0, {"loss": 0.5})
        log.scalars(20, 2.0, {"loss": 0.5})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "tensorboard").write_text("a file where the folder should be")
    with closing(open_log(tmp_path / "b", writers=TENSORBOARD)) as log:
        log.scalars(10, 1.0, {"loss": 0.5})
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert [len(lines_of(tmp_path / name)) for name in "ab"] == [2, 1]


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")]
)
def test_a_writer_that_is_not_installed_says_what_to_install(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"writers={name} needs .*: pip install {name}"):
        require_writers([name])


class FakeWandb(ModuleType):
    """As much of the `wandb` package as is used; keeps what it is given."""

    class Error(Exception):
        pass

    class UsageError(Error):
        pass

    def __init__(self) -> None:
        super().__init__("wandb")
        self.errors = SimpleNamespace(UsageError=self.UsageError)
        self.started: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.finished = 0
        self.failure: Exception | None = None

    def init(self, **options: Any) -> "FakeWandb":
        if self.failure:
            raise self.failure
        self.started.append(options)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, values: dict[str, Any]) -> None:
        if self.failure:
            raise self.failure
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1

    def Image(self, image: Image.Image) -> tuple[int, int]:  # noqa: N802
        return image.size


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


def test_weights_and_biases_gets_figures_events_and_the_grid(
    wandb: FakeWandb, tmp_path: Path
) -> None:
    out = tmp_path / "flowers"
    with closing(open_log(out, writers=("wandb",))) as log:
        log.scalars(10, 1.0, {"loss": 0.5, "images_per_second": 120.0})
        log.scalars(20, 2.0, {"holdout_psnr": 17.5})
        log.image(20, draw_picture(0, 64, 48))
        log.event(20, 2.0, "something happened")
    assert wandb.logged == [
        {"step": 10, "train/loss": 0.5, "speed/images_per_second": 120.0},
        {"step": 20, "holdout/psnr": 17.5},
        {"step": 20, "reconstructions": (64, 48)},
        {"step": 20, "event": "something happened"},
    ]
    (start,) = wandb.started
    assert (start["project"], start["name"], start["dir"]) == ("mae_core", "flowers", str(out))
    assert start["config"]["batch_size"] == 64
    assert str(tmp_path) not in json.dumps(start["config"])
    assert wandb.finished == 1
    assert len(lines_of(out)) == 3


def test_a_resumed_run_continues_at_weights_and_biases(
    wandb: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    for after_step in (0, 20, 0):
        open_log(tmp_path, after_step, writers=("wandb",)).close()
    first, resumed, anew = (start["id"] for start in wandb.started)
    assert first == resumed != anew
    assert {start["resume"] for start in wandb.started} == {"allow"}
    assert {start["project"] for start in wandb.started} == {"mine"}


def test_weights_and_biases_that_fails_stops_nothing(
    wandb: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(open_log(tmp_path, writers=("wandb",))) as log:
        wandb.failure = wandb.Error("no network")
        log.scalars(10, 1.0, {"loss": 0.5})
        log.scalars(20, 2.0, {"loss": 0.5})
    assert len(lines_of(tmp_path)) == 2
    open_log(tmp_path, writers=("wandb",)).close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    wandb.failure = wandb.UsageError("no key")
    with pytest.raises(ConfigError, match=r"no key.*wandb login, or set WANDB_MODE=offline"):
        open_log(tmp_path, writers=("wandb",))


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_weights_and_biases_itself_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with closing(open_log(tmp_path, writers=("wandb",))) as log:
        log.scalars(10, 1.0, {"loss": 0.5})
        log.image(10, draw_picture(0))
        log.event(10, 1.0, "something happened")
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))


def last_state(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.rstrip("\n").split("\r")[-1]


def test_the_bar_says_how_far_and_how_well_and_goes_back_with_the_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bar = Progress(1000, 100)
    for step in (200, 300, 110, 130):
        bar.on_log(at(step), {"loss": 0.5, "images_per_second": 100.0})
        bar.on_step(at(step))
    bar.on_end(at(130))
    state = last_state(capsys)
    assert "130/1000 [" in state
    assert "loss=0.5, img/s=100" in state


def test_a_log_file_is_not_filled_with_bars(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress(100_000, 0)
    for step in range(10, 20_000, 10):
        bar.on_step(at(step))
    bar.on_end(at(20_000))
    assert len(capsys.readouterr().err) < 2000
