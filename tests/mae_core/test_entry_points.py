import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import mae_core.reconstruct
from mae_core.checkpoint import save_weights
from mae_core.models.mae import MaskedAutoencoder

ROOT = Path(__file__).resolve().parents[2]
PICTURE = "app/assets/examples/cat.jpg"


@pytest.fixture
def weights(small_model: MaskedAutoencoder, tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    save_weights(path, small_model, record={})
    return path


def test_reconstruct_writes_panels_and_metrics(
    weights: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "deep"
    image = next(picture_folder.rglob("*.png"))
    command = [str(image), "--mask-ratio", "0.75", "--seed", "2", "--weights", str(weights)]
    assert mae_core.reconstruct.main([*command, "--device", "cpu", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {
        "original.png", "masked.png", "reconstruction.png", "pasted.png", "panels.png",
        "metrics.json",
    }  # fmt: skip
    with Image.open(out / "pasted.png") as pasted:
        assert pasted.size == (48, 48)
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["model"], metrics["visible"], metrics["patches"]) == ("small", 9, 36)
    assert {"loss", "psnr", "ssim", "seconds", "device", "strategy"} <= set(metrics)
    assert "9 of 36 patches seen" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["reconstruct", "missing.jpg", "--out", "out"], "no file at that path"),
        (["reconstruct", "pyproject.toml", "--out", "out"], "JPEG"),
        (["reconstruct", PICTURE, "--weights", "nothing", "--out", "out"], "neither"),
        (["evaluate", "reconstruction", "nothing", "tests"], "neither"),
        (["train", "quick"], "not a folder"),
        (["train", "fast"], "choose one of quick"),
        (["train", "quick", "steps=0"], "at least 1"),
        (["pack", "missing", "out"], "not a folder"),
        (["push", "nothing", "me/x"], "not the folder of a run"),
    ],
)
def test_mistakes_end_in_one_line_and_status_2(command: list[str], sentence: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"mae_core.{command[0]}", *command[1:]],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
