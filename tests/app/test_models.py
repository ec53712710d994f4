"""A training run that goes on while it is served."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import app.models
from app.handlers import Handlers
from app.models import Progress, ServedModel
from app.service import ReconstructionService
from app.settings import AppSettings
from mae_core import ConfigError, load_pretrained, locate_weights
from mae_core.checkpoint import CHECKPOINT_FILE, save_weights
from tests.app.serving import example, save_step, small_reconstructor
from tests.downloading import isolate


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that has got to step 400 of 1,000."""
    folder = tmp_path / "flowers"
    save_step(folder, 400)
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that models were read from, in order."""
    paths: list[Path] = []

    def counting(source: str, *, fetch: bool) -> Any:
        paths.append(locate_weights(source))
        return load_pretrained(source, fetch=fetch)

    monkeypatch.setattr(app.models, "load_pretrained", counting)
    return paths


@pytest.fixture(autouse=True)
def _nothing_else_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def served(run: Path) -> ReconstructionService:
    return load(run)


def load(*runs: Path) -> ReconstructionService:
    """The runs and nothing that could be fetched."""
    weights = tuple(map(str, runs))
    return ReconstructionService.load(AppSettings(device="cpu", weights=weights, fetch="none"))


def guess(service: ReconstructionService) -> Image.Image:
    return service.reconstruct(example("cat"), 0.75, 2).panels["reconstruction"]


def guess_at(step: int) -> Image.Image:
    """What the model that `save_step` saved at a step makes of the same request."""
    return small_reconstructor(seed=step)(example("cat"), 0.75, 2).panels()["reconstruction"]


def assert_same(left: Image.Image, right: Image.Image) -> None:
    # The page may run the model in bfloat16; models of two seeds differ by much more.
    difference = np.abs(np.asarray(left, np.int16) - np.asarray(right, np.int16))
    assert difference.mean() < 2


def test_models_of_two_steps_can_be_told_apart() -> None:
    with pytest.raises(AssertionError):
        assert_same(guess_at(400), guess_at(600))


def test_a_running_run_is_in_the_list_with_its_step(run: Path) -> None:
    service = served(run)
    assert service.models == ("flowers", "mae-tiny")
    assert service.progress == {"flowers": Progress(400, 1000)}
    facts = service.reconstruct(example("cat"), 0.75, 2).facts
    assert (facts["model"], facts["step"], facts["steps"]) == ("flowers", 400, 1000)
    assert_same(guess(service), guess_at(400))


def test_a_newer_checkpoint_answers_the_next_request(run: Path, reads: list[Path]) -> None:
    service = served(run)
    first = guess(service)
    assert guess(service) is first
    save_step(run, 600)
    second = guess(service)
    assert_same(second, guess_at(600))
    # From the cache again, and read once only.
    assert guess(service) is second
    assert service.progress == {"flowers": Progress(600, 1000)}
    assert reads == [run / CHECKPOINT_FILE] * 2


def test_the_end_of_the_run_is_noticed(run: Path) -> None:
    service = served(run)
    guess(service)
    save_weights(run / "weights.safetensors", small_reconstructor(seed=7).model, record={})
    assert service.progress == {"flowers": None}
    assert_same(guess(service), guess_at(7))
    assert "step" not in service.reconstruct(example("cat"), 0.75, 2).facts


def test_the_label_is_new_before_any_request(run: Path) -> None:
    service = served(run)
    handlers = Handlers(service, {})
    assert handlers.model_choices()[0] == ("flowers (step 400 of 1000)", "flowers")
    save_step(run, 600)
    assert handlers.model_choices()[0] == ("flowers (step 600 of 1000)", "flowers")


def test_what_cannot_be_read_leaves_the_model_and_its_answers(
    run: Path, reads: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    service = served(run)
    first = guess(service)
    (run / CHECKPOINT_FILE).write_bytes(b"half a file")
    with caplog.at_level(logging.ERROR):
        assert guess(service) is not first
    assert "could not read the newer state of flowers" in caplog.text
    again = guess(service)
    assert_same(again, first)
    assert service.progress == {"flowers": Progress(400, 1000)}
    # It is not tried again for every request, but as soon as there is another file.
    assert len(reads) == 2
    save_step(run, 600)
    assert_same(guess(service), guess_at(600))


def test_a_folder_that_goes_away_leaves_the_model(run: Path) -> None:
    service = served(run)
    first = guess(service)
    (run / CHECKPOINT_FILE).unlink()
    assert guess(service) is first
    assert service.progress == {"flowers": Progress(400, 1000)}


def test_many_requests_read_a_newer_checkpoint_once(run: Path, reads: list[Path]) -> None:
    service = served(run)
    save_step(run, 600)
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda seed: service.reconstruct(example("cat"), 0.75, seed), range(16))
        )
    assert {answer.facts["step"] for answer in answers} == {600}
    assert len(reads) == 2


def test_an_answer_is_kept_under_the_state_that_gave_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = served(run)

    def then_save(data: bytes) -> Image.Image:
        # Between the look into the cache and the model's turn.
        save_step(run, 600)
        return Image.new("RGB", (112, 112))

    monkeypatch.setattr("app.service.decode_image", then_save)
    answer = service.reconstruct(example("cat"), 0.75, 2)
    assert answer.facts["step"] == 600
    assert service.reconstruct(example("cat"), 0.75, 2) is answer


def test_two_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        save_step(tmp_path / parent / "run", 400)
    with pytest.raises(ConfigError, match="two weights are called 'run'"):
        load(*(tmp_path / name / "run" for name in "ab"))


def test_a_fixed_model_has_one_version() -> None:
    model = ServedModel.fixed(small_reconstructor("mine"))
    assert (model.name, model.version, model.progress) == ("mine", model.version, None)
