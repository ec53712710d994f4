import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import mae_core.commands.reconstruct
from mae_core.config import ModelConfig
from mae_core.model.mae import MaskedAutoencoder
from mae_core.weights.formats import save_weights
from tests.pictures import draw_picture

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
    assert mae_core.commands.reconstruct.main([*command, "--device", "cpu", "--out", str(out)]) == 0
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


def test_reconstruct_takes_a_size_and_a_view(
    small_config: ModelConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = MaskedAutoencoder(replace(small_config, norm_pix=True))
    save_weights(tmp_path / "normed.safetensors", model, record={})
    draw_picture(0, 100, 60).save(tmp_path / "picture.png")
    weights = ["--weights", str(tmp_path / "normed.safetensors"), "--device", "cpu"]
    command = [str(tmp_path / "picture.png"), *weights, "--out", str(tmp_path / "out")]
    said = {"estimated": "dB on removed patches,", "answer": "dB on removed patches, told the",
            "normalized": "no PSNR in this view"}  # fmt: skip
    for view, words in said.items():
        options = ["--image-size", "96", "--fit", "whole", "--view", view]
        assert mae_core.commands.reconstruct.main([*command, *options]) == 0
        facts = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert (facts["view"], facts["width"], facts["height"]) == (view, 160, 96)
        assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["reconstruct", "missing.jpg", "--out", "out"], "no file at that path"),
        (["reconstruct", "pyproject.toml", "--out", "out"], "JPEG"),
        (["reconstruct", PICTURE, "--weights", "nothing", "--out", "out"], "neither"),
        (["reconstruct", PICTURE, "--image-size", "100", "--out", "out"], "from 16 to 1024"),
        (["evaluate", "nothing", "tests"], "neither"),
        (["train", "quick"], "not a folder"),
        (["train", "fast"], "choose one of quick"),
        (["train", "quick", "steps=0"], "at least 1"),
        (["pack", "missing", "out"], "not a folder"),
        (["push", "nothing", "me/x"], "not the folder of a run"),
    ],
)
def test_mistakes_end_in_one_line_and_status_2(command: list[str], sentence: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mae_core", *command],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
