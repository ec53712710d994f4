"""ZeroGPU, as far as it can be had without a GPU: `zero_spaces/spaces.py` says what stands in."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from app.models import zerogpu
from mae_core.weights.formats import save_weights
from tests.app.serving import small_reconstructor
from tests.sources import ROOT

STAND_IN = ROOT / "tests" / "app" / "zero_spaces"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `zero_spaces/page.py` found."""
    folder = tmp_path_factory.mktemp("zerogpu")
    files = [folder / "first.safetensors", folder / "second.safetensors"]
    for seed, file in enumerate(files):
        save_weights(file, small_reconstructor(seed=seed).model, record={})
    path = os.pathsep.join([str(ROOT), str(STAND_IN)])
    done = subprocess.run(
        [sys.executable, "-W", "error", STAND_IN / "page.py", *files, folder / "full"],
        cwd=folder, env=os.environ | {"SPACES_ZERO_GPU": "true", "PYTHONPATH": path},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_at_the_start_no_gpu_is_asked_for_and_no_numbers_stay(found: Any) -> None:
    assert (found["asked_at_start"], found["numbers_here"]) == (0, 0)


def test_pixels_come_from_the_worker(found: Any) -> None:
    assert found["first"] < 1e-5
    facts = found["facts"]
    assert (facts["device"], facts["precision"], facts["model"]) == ("cuda", "float32", "first")
    assert "notice" not in facts


def test_a_model_read_after_the_fork_is_read_by_the_worker_too(found: Any) -> None:
    assert found["second"] < 1e-5
    assert found["second_again"] < 1e-5
    assert found["workers"] == 1


def test_a_worker_of_later_inherits_it(found: Any) -> None:
    assert found["inherited"] == "Reconstruction"


def test_what_looks_inside_a_model_does_so_in_the_worker(found: Any) -> None:
    assert found["attention"] < 1e-6
    assert (found["trace"], found["proved"]) == (True, True)


def test_little_time_is_asked_for_and_no_visitor_pays_for_another(found: Any) -> None:
    assert found["seconds"] == [10]
    assert found["max_batch"] == 1


def test_what_visitors_do_wrong_costs_no_gpu(found: Any) -> None:
    assert found["refused_here"] == "MaskError"


def test_where_the_gpu_is_full_the_cpu_computes(found: Any) -> None:
    assert (found["full"]["device"], found["full"]["notice"]) == ("cpu", "cpu")


def test_refusals_of_the_platform_become_words(found: Any) -> None:
    refusals = found["refusals"]
    assert {name: refusal[:2] for name, refusal in refusals.items()} == {
        "quota": ["quota", "1 day, 0:12:00"], "runs": ["quota", None],
        "busy": ["busy", None], "aborted": ["failed", None],
    }  # fmt: skip
    assert "try again in 1 day, 0:12:00, or log in" in refusals["quota"][2]
    assert not any("<" in refusal[2] for refusal in refusals.values())


def test_elsewhere_spaces_is_not_imported() -> None:
    assert not zerogpu.ACTIVE
    assert "spaces" not in sys.modules
