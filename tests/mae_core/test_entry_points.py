import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_core import cli, images
from mae_core.cli import mae, main
from mae_core.config import ModelConfig
from mae_core.errors import ConfigError, MaskError
from mae_core.model import masking
from mae_core.model.mae import MaskedAutoencoder
from mae_core.reconstruct import NORM_PIX_VIEWS
from mae_core.weights.export import TARGETS
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
    assert mae(["reconstruct", *command, "--device", "cpu", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {
        "original.png", "masked.png", "reconstruction.png", "pasted.png", "panels.png",
        "metrics.json", "settings.json",
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
        assert mae(["reconstruct", *command, *options]) == 0
        facts = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert (facts["view"], facts["width"], facts["height"]) == (view, 160, 96)
        assert words in capsys.readouterr().out


def test_reconstruct_writes_the_picture_in_its_own_size(
    weights: Path, small_config: ModelConfig, tmp_path: Path
) -> None:
    # More pixels than are kept by default, and lying on its side.
    picture = draw_picture(0, 2900, 1500)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "picture.png", exif=exif)
    mask = np.zeros((6, 6), dtype=np.uint8)
    mask[0, 0] = 1
    np.save(tmp_path / "mask.npy", mask)
    command = ["reconstruct", str(tmp_path / "picture.png"), "--mask", str(tmp_path / "mask.npy")]
    options = ["--device", "cpu", "--full-size", "--out", str(tmp_path / "out")]
    assert mae([*command, *options, "--weights", str(weights)]) == 0
    with Image.open(tmp_path / "out" / "full.png") as file:
        full = np.asarray(file)
    upright = np.rot90(np.asarray(picture), -1)
    assert full.shape == (2900, 1500, 3)
    # A patch of the middle square, whose edges are rounded to pixels of the model, 30 of these.
    changed = (full != upright).any(axis=2)
    assert changed[690:950, :252].mean() > 0.9
    changed[690:950, :252] = False
    assert not changed.any()

    five = replace(small_config, in_chans=5, mean=(0.5,) * 5, std=(0.25,) * 5)
    save_weights(tmp_path / "five.safetensors", MaskedAutoencoder(five), record={})
    np.save(tmp_path / "five.npy", np.zeros((48, 48, 5), np.uint8))
    command = ["reconstruct", str(tmp_path / "five.npy"), *options]
    with pytest.raises(ConfigError, match="models of 1 or 3 channels, and this one has 5"):
        mae([*command, "--weights", str(tmp_path / "five.safetensors")])


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["reconstruct", "missing.jpg", "--out", "out"], "no file can be read"),
        (["reconstruct", "pyproject.toml", "--out", "out"], "JPEG"),
        (["reconstruct", PICTURE, "--weights", "nothing", "--out", "out"], "neither"),
        (["reconstruct", PICTURE, "--image-size", "100", "--out", "out"], "from 16 to 1024"),
        (["evaluate", "reconstruction", "nothing", "tests"], "neither"),
        (["train", "quick"], "no images are named; give data.folder=FOLDER"),
        (["train", "quick", "data.folder=nowhere"], "not a folder"),
        (["train", "fast"], "choose one of quick"),
        (["train", "quick", "recipe=base"], "TrainConfig has no field recipe"),
        (["train", "quick", "steps=0"], "steps=0: Input should be"),
        (["pack", "missing", "out"], "not a folder"),
        (["push", "nothing", "me/x"], "not the folder of a run"),
        (["export-web", "mae-tiny"], "the following arguments are required: --out; see mae exp"),
        (["trian", "quick"], "mae has no command 'trian'; did you mean train?"),
        (["info", "mae-tiny", "--jsn"], "mae info has no --jsn; see mae info --help"),
        (["info", ""], "no weights are named; give a name, a file, a folder or USER/NAME"),
        (
            ["evaluate", "reconstruction", "mae-tiny", "app/assets", "--image-size", "16"],
            "removes none of 1 patches",
        ),
        (["zzz"], "mae has no command 'zzz'; give reconstruct, train, "),
        (["reconstruct", PICTURE], "the following arguments are required: --out; see mae rec"),
        (["reconstruct", PICTURE, "--out", "out", "--bands", "a"], "'a'; give numbers such as"),
    ],
)
def test_mistakes_end_in_one_line_and_status_2(
    command: list[str], sentence: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(ROOT)
    assert main(command) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ")
    assert sentence in said


def test_a_mistake_ends_a_process_in_one_line_and_status_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mae_core.train", "quick", "--fast"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: mae train has no --fast; see mae train --help\n"


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "mae_core", "fetch"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate(timeout=240)
    assert (process.returncode, errors) == (141, "")


def test_help_names_every_command_and_what_the_library_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command in ([], ["--help"]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0
        listed = capsys.readouterr().out
        names = ("reconstruct", "train", "export-web", "push")
        assert all(f"\n    {name}" in listed for name in names)
    assert (cli.STRATEGIES, cli.FITS) == (masking.STRATEGIES, images.FITS)
    assert (NORM_PIX_VIEWS, tuple(TARGETS)) == (cli.VIEWS, cli.FORMATS)


@pytest.mark.parametrize("kind", ["grid.png", "grid.npy", "image.png", "image.npy"])
def test_a_mask_is_read_from_a_file(
    kind: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_picture(0, 96, 64).save(tmp_path / "image.png")
    removed = np.zeros((6, 6), dtype=np.uint8)
    removed[1:3, 2:5] = 1
    drawn = removed
    if kind.startswith("image"):
        # The crop is the middle of the frame: 64 of 96 pixels, each patch 64 / 6 wide.
        middle = np.kron(removed, np.ones((32, 32), dtype=np.uint8))
        fitted = Image.fromarray(middle * 255).resize((64, 64))
        drawn = np.zeros((64, 96), dtype=np.uint8)
        drawn[:, 16:80] = np.asarray(fitted) > 127
    path = tmp_path / kind.replace("image", "mask")
    if kind.endswith(".npy"):
        np.save(path, drawn)
    else:
        Image.fromarray(drawn * 255).save(path)
    out = tmp_path / "out"
    command = ["reconstruct", str(tmp_path / "image.png"), "--weights", str(weights)]
    assert mae([*command, "--mask", str(path), "--out", str(out)]) == 0
    assert "30 of 36 patches seen" in capsys.readouterr().out
    assert json.loads((out / "metrics.json").read_text())["strategy"] == "custom"
    with Image.open(out / "masked.png") as masked, Image.open(out / "original.png") as original:
        changed = (np.asarray(masked) != np.asarray(original)).any(axis=2)
    np.testing.assert_array_equal(changed.reshape(6, 8, 6, 8).any(axis=(1, 3)), removed == 1)


def test_what_is_transparent_in_a_mask_is_seen(weights: Path, tmp_path: Path) -> None:
    draw_picture(0, 64, 64).save(tmp_path / "image.png")
    strokes = np.zeros((6, 6, 4), dtype=np.uint8)
    strokes[1:3, 2:5] = 255
    Image.fromarray(strokes).save(tmp_path / "mask.png")
    command = ["reconstruct", str(tmp_path / "image.png"), "--weights", str(weights)]
    assert mae([*command, "--mask", str(tmp_path / "mask.png"), "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["visible"] == 30


def test_a_mask_that_does_not_fit_is_refused(weights: Path, tmp_path: Path) -> None:
    draw_picture(0, 96, 64).save(tmp_path / "image.png")
    command = ["reconstruct", str(tmp_path / "image.png"), "--weights", str(weights), "--out", "o"]
    np.save(tmp_path / "mask.npy", np.zeros((5, 6)))
    with pytest.raises(MaskError, match=r"\(5, 6\); give the image's, \(64, 96\) .* or \(6, 6\)"):
        mae([*command, "--mask", str(tmp_path / "mask.npy")])
    (tmp_path / "mask.npy").write_bytes(b"")
    for name in ("mask.npy", "missing.png"):
        with pytest.raises(MaskError, match=f"{name} cannot be read"):
            mae([*command, "--mask", str(tmp_path / name)])
