"""Several processes under torchrun do what one does."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mae_core.config import SystemConfig, TrainConfig, split_field
from mae_core.distributed import init_distributed
from mae_core.errors import ConfigError
from mae_core.training.train import train
from mae_core.weights.registry import read_weights
from tests.mae_core.conftest import MakeRun

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ("mae_core.train",)
SMALL = [
    "model.image_size=48", "model.patch_size=8", "model.embed_dim=32", "model.depth=2",
    "model.num_heads=2", "model.decoder_embed_dim=16", "model.decoder_depth=1",
    "model.decoder_num_heads=2", 'stages=[{"image_size":48,"share":1.0}]',
    "mask.ratio=[0.5,0.8]", "optim.warmup_steps=2", "system.precision=float32",
]  # fmt: skip


def arguments(folder: Path, out: Path, *fields: str) -> list[str]:
    """What a small run is told after its recipe."""
    return [
        f"data.folder={folder}", f"out={out}", "steps=12", "batch_size=8", "save_every=1", *SMALL,
        *fields,
    ]  # fmt: skip


def torchrun(folder: Path, out: Path, *fields: str, module: Sequence[str] = TRAIN) -> list[str]:
    """The command line of the run in two processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [
        sys.executable, *launch, "-m", *module, "quick", *arguments(folder, out, *fields)
    ]  # fmt: skip


def train_here(folder: Path, out: Path, *fields: str) -> None:
    """The run to its end in this process, on one thread as each of two processes has it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train("quick", **dict(map(split_field, arguments(folder, out, *fields))))
    finally:
        torch.set_num_threads(threads)


def assert_same_run(one: Path, other: Path) -> None:
    """Both saw the same batches under the same masks: equal but for the order of sums."""
    first = read_weights(one / "weights.safetensors").state
    second = read_weights(other / "weights.safetensors").state
    for name, value in first.items():
        own, others = (_that_learns(name, tensor) for tensor in (value, second[name]))
        torch.testing.assert_close(others, own, rtol=0, atol=1e-5, msg=name)
    logged = [losses_of(out) for out in (one, other)]
    assert len(logged[0]) == 12
    assert logged[1] == pytest.approx(logged[0], rel=1e-5)


def losses_of(out: Path) -> list[float]:
    """The loss of every step."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def _that_learns(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Without the keys' biases: softmax cancels them, and AdamW makes steps of their rounding."""
    if not name.endswith("attn.qkv.bias"):
        return tensor
    query, _, value = tensor.chunk(3)
    return torch.cat((query, value))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.pictures import draw_picture

    folder = tmp_path_factory.mktemp("pictures")
    for i in range(12):
        draw_picture(i, 64, 56).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def one_process(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    train_here(pictures, out, "optim.name=adamw")
    return out


def test_two_processes_do_what_one_does(pictures: Path, one_process: Path, tmp_path: Path) -> None:
    """Averaged, accumulated and recomputed; the next test has a run that is only averaged."""
    fields = "optim.name=adamw", "system.accumulate=2", "system.checkpoint_activations=true"
    done = subprocess.run(
        torchrun(pictures, tmp_path / "two", *fields),
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_same_run(one_process, tmp_path / "two")
    assert read_weights(tmp_path / "two" / "weights.safetensors").record["processes"] == 2


def test_a_run_goes_on_with_another_number_of_processes(
    pictures: Path, one_process: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    out = tmp_path / "run"
    # After most of its steps, in which gradients are averaged over two processes.
    interrupted = ("tests.mae_core.interrupted", "SIGTERM", "8", "train")
    line = torchrun(pictures, out, "optim.name=adamw", module=interrupted)
    subprocess.run(
        line, cwd=ROOT, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300
    )
    train_here(pictures, out, "optim.name=adamw")
    assert re.search(r"resuming .* at step (9|1[01]) of 12", caplog.text)
    assert_same_run(one_process, out)


def test_a_mistake_is_told_once_and_ends_all_processes(tmp_path: Path) -> None:
    line = torchrun(tmp_path / "missing", tmp_path / "run")
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    said = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert len([text for text in said if "is not a folder" in text]) == 1
    assert all("is not a folder" in text or "another process" in text for text in said)
    assert "mae_core/training/train.py" not in done.stderr


def test_a_batch_that_cannot_be_shared_is_refused(run_config: MakeRun) -> None:
    config: TrainConfig = run_config(batch_size=4, system=SystemConfig(accumulate=3))
    with pytest.raises(ConfigError, match="batch_size 4 .* 3 micro-batches; pick a multiple of 3"):
        train(config)


def test_each_process_needs_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    refused = pytest.raises(ConfigError, match="has 2 GPUs for more processes; give .* 2$")
    with refused, init_distributed():
        pass
