"""The command that fetches, against a hub of our own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mae_core.cli import mae, main
from mae_core.model.mae import MaskedAutoencoder
from mae_core.weights.formats import save_weights
from mae_core.weights.registry import list_weights, locate
from tests.downloading import isolate, use_hub
from tests.hub import TOKEN, Hub, running_hub

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fake_hub(small_model: MaskedAutoencoder, tmp_path: Path) -> Iterator[Hub]:
    path = tmp_path / "weights.safetensors"
    save_weights(path, small_model, record={})
    with running_hub() as hub:
        hub.publish("me/flowers", {path.name: path.read_bytes(), "config.json": b"{}"})
        yield hub


def start(fake_hub: Hub, tmp_path: Path, *names: str) -> subprocess.Popen[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment = inherited | {
        "HF_ENDPOINT": fake_hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"),
        "TORCH_HOME": str(tmp_path / "torch"),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "mae_core", "fetch", *names], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_two_processes_fetch_a_repository_once(fake_hub: Hub, tmp_path: Path) -> None:
    fake_hub.gated.add("me/flowers")
    fake_hub.habits.pause = 0.02
    both = [start(fake_hub, tmp_path, "me/flowers") for _ in range(2)]
    answers = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert answers[0] == answers[1]
    path, stderr = answers[0]
    assert stderr == ""
    assert Path(path.strip()).read_bytes() == fake_hub.files("me/flowers")["weights.safetensors"]
    assert [request.path.rsplit("/", 1)[-1] for request in fake_hub.downloads] == [
        "config.json", "weights.safetensors",
    ]  # fmt: skip


def test_a_failure_is_one_line_without_the_token(
    fake_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    isolate(monkeypatch, tmp_path / "cache")
    use_hub(monkeypatch, fake_hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["fetch", "me/nothing"]) == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith("error: could not fetch me/nothing from 127.0.0.1: it is not there")
    assert stderr.count("\n") == 1
    assert TOKEN not in stderr


def test_without_a_name_there_is_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    isolate(monkeypatch, tmp_path)
    assert mae(["fetch"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["name", "size", "here"]
    assert [row.split()[0] for row in rows] == list(list_weights())
    large = next(row for row in rows if row.startswith("mae-large-visualize "))
    assert large.split()[1:6] == ["1.23", "GiB", "no", "autoencoder", "pixels"]
    assert "CC-BY-NC-4.0" in large
    base = next(row for row in rows if row.startswith("mae-base-visualize "))
    assert "about 426.9 MiB" in base
    assert " yes " in rows[0]


def test_what_is_here_is_named_and_not_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert mae(["fetch", "mae-tiny"]) == 0
    assert capsys.readouterr().out.strip() == str(locate("mae-tiny"))
