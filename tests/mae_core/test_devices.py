"""How many threads of the CPU are used, and how they wait."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mae_core import MaskedAutoencoder, Reconstructor, cli, devices
from mae_core.config import PRESETS
from mae_core.devices import choose_threads
from mae_core.reconstruct import ReconstructionRequest
from tests.pictures import draw_picture
from tests.sources import ROOT


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine of eight cores without a quota, whatever runs the tests."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices, "_CPU_QUOTA", tmp_path / "cpu.max")
    # What this process remembers stays: an earlier test may have left torch with one thread.
    monkeypatch.setattr(devices, "_all_threads", cache(devices._all_threads.__wrapped__))
    threads = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(threads)


def reconstructor(preset: str) -> Reconstructor:
    """As far as its shape is known; `base` takes a second to build."""
    made = Reconstructor.__new__(Reconstructor)
    shape: Any = SimpleNamespace(config=PRESETS[preset])
    made.model = shape
    return made


@pytest.mark.parametrize(
    ("preset", "image_size", "mask_ratio", "count", "threads"),
    [
        ("tiny", None, 0.75, 1, 1), ("tiny", 224, 0.5, 1, 1), ("tiny", None, 0.75, 8, 8),
        ("tiny", 1024, 0.75, 1, 8), ("compact", None, 0.75, 1, 1), ("compact", None, 0.05, 1, 1),
        ("compact", None, 0.75, 2, 8), ("small", None, 0.75, 1, 8), ("small", None, 0.95, 1, 8),
        ("base", None, 0.75, 1, 8),
    ],
)  # fmt: skip
def test_small_passes_run_on_one_thread(
    preset: str, image_size: int | None, mask_ratio: float, count: int, threads: int
) -> None:
    request = ReconstructionRequest(draw_picture(0), mask_ratio, image_size=image_size)
    assert reconstructor(preset).threads_for([request] * count) == threads


def test_a_large_pass_after_a_small_one_has_all_threads() -> None:
    # As in a page of two models, in the threads of its workers.
    for flops, threads in ((0, 1), (1e12, 8), (0, 1), (1e12, 8)):
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(choose_threads, flops).result() == threads
            pool.submit(torch.set_num_threads, threads).result()


def test_a_mask_ratio_that_is_refused_later_is_no_obstacle() -> None:
    assert reconstructor("base").threads_for([ReconstructionRequest(draw_picture(0), 7.0)]) == 8


def test_the_users_number_of_threads_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    devices._CPU_QUOTA.write_text("200000 100000\n")
    assert choose_threads(0) == choose_threads() == 8


@pytest.mark.parametrize(
    ("quota", "threads"),
    [("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8),
     ("max 100000", 8), ("", 8)],
)  # fmt: skip
def test_no_more_threads_than_a_containers_quota(quota: str, threads: int) -> None:
    devices._CPU_QUOTA.write_text(quota)
    assert choose_threads() == threads


def test_command_lines_keep_to_the_quota() -> None:
    devices._CPU_QUOTA.write_text("200000 100000")
    assert cli.main(["fetch", "mae-tiny"]) == 0
    assert torch.get_num_threads() == 2


def test_the_library_leaves_the_number_of_threads_alone() -> None:
    small = MaskedAutoencoder(PRESETS["tiny"])
    Reconstructor(small, "small", device="cpu")(draw_picture(0))
    assert torch.get_num_threads() == 8


@pytest.mark.parametrize(
    ("line", "given", "spins"),
    [
        (["-m", "mae_core.train", "quick"], {}, "1000"),
        (["-m", "mae_core", "fetch"], {}, "1000"),
        (["-m", "mae_core", "fetch"], {"GOMP_SPINCOUNT": "7"}, "7"),
        (["-m", "mae_core", "fetch"], {"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
        (["-m", "app"], {}, "1000"),
        (["-c", "from mae_core import Reconstructor"], {}, "None"),
    ],
)
def test_only_our_own_commands_have_threads_spin_briefly(
    tmp_path: Path, line: list[str], given: dict[str, str], spins: str
) -> None:
    """The variable has to be set before torch is imported: this torch tells it, and ends."""
    (tmp_path / "torch.py").write_text(
        "import os\nprint(os.environ.get('GOMP_SPINCOUNT'), flush=True)\nos._exit(0)"
    )
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [sys.executable, *line], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**environment, "PYTHONPATH": str(tmp_path), **given},
    )  # fmt: skip
    assert done.stdout == f"{spins}\n"
