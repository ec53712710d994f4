import json
import logging
import math
import os
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mae_core.evaluation.reconstruction as evaluation
from mae_core import devices
from mae_core.cli import mae
from mae_core.config import ModelConfig
from mae_core.errors import ConfigError, DataError, MaskError
from mae_core.evaluation.reconstruction import (
    FIGURES,
    FittedImages,
    Summary,
    evaluate_reconstruction,
    load_images,
    summarize,
)
from mae_core.model.mae import MaskedAutoencoder
from mae_core.reconstruct import Rebuilt, Reconstructor
from mae_core.weights.formats import save_weights
from mae_core.weights.registry import load
from tests.pictures import draw_picture


def test_figures_are_those_of_each_picture_alone(
    small_model: MaskedAutoencoder, picture_folder: Path
) -> None:
    pictures = load_images(picture_folder, small_model.config)
    figures = evaluate_reconstruction(small_model, pictures, mask_ratio=0.5, seed=10)
    reconstructor = Reconstructor(small_model, "small", device="cpu", precision="float32")
    for i, picture in enumerate(pictures):
        alone = reconstructor(picture, mask_ratio=0.5, seed=10 + i)
        assert figures["model"]["psnr"][i] == pytest.approx(alone.psnr, abs=1e-3)
        assert figures["model"]["ssim"][i] == pytest.approx(alone.ssim, abs=1e-4)
        assert figures["model"]["loss"][i] == pytest.approx(alone.loss, rel=1e-4)


def test_baselines_fill_the_same_masks_without_seeing_hidden_pixels(
    small_model: MaskedAutoencoder, picture_folder: Path
) -> None:
    pictures = load_images(picture_folder, small_model.config)
    figures = evaluate_reconstruction(small_model, pictures, mask_ratio=0.5, seed=0)
    assert list(figures) == ["model", "mean_colour", "telea"]
    assert figures["mean_colour"].keys() == set(FIGURES)
    assert len(figures["telea"]["psnr"]) == 12
    # On smooth pictures inpainting from the neighbours beats one colour for all.
    assert np.mean(figures["telea"]["psnr"]) > np.mean(figures["mean_colour"]["psnr"]) + 3
    reconstructor = Reconstructor(small_model, "small", device="cpu", precision="float32")
    out = reconstructor(pictures[0], mask_ratio=0.5, seed=0)
    original = out.original.numpy()
    removed = out.removed.repeat(8, axis=0).repeat(8, axis=1)
    colour = original[:, ~removed].mean(axis=1, keepdims=True)
    error = ((original[:, removed] - colour) ** 2).mean()
    assert figures["mean_colour"]["psnr"][0] == pytest.approx(-10 * math.log10(error), abs=1e-3)


def test_without_opencv_there_is_no_telea_and_the_log_says_so(
    small_model: MaskedAutoencoder, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.delitem(evaluation.FILLERS, "telea")
    figures = evaluate_reconstruction(small_model, [draw_picture(0, 48, 48)])
    assert list(figures) == ["model", "mean_colour"]
    assert "opencv-python-headless is not installed" in caplog.text


def test_normalised_targets_are_scored_without_the_answer(
    small_config: ModelConfig, picture_folder: Path
) -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(replace(small_config, norm_pix=True)).eval()
    pictures = load_images(picture_folder, small_config)[:3]
    figures = evaluate_reconstruction(model, pictures, seed=10, baselines=False)["model"]
    reconstructor = Reconstructor(model, "norm_pix", device="cpu", precision="float32")
    for i, picture in enumerate(pictures):
        views = {
            view: reconstructor(picture, seed=10 + i, view=view).psnr
            for view in ("estimated", "answer")
        }
        assert figures["psnr"][i] == pytest.approx(views["estimated"], abs=1e-3)
        assert figures["psnr"][i] != pytest.approx(views["answer"], abs=5e-3)


def test_a_model_of_one_channel_is_measured_in_grey(
    small_config: ModelConfig, picture_folder: Path
) -> None:
    config = replace(small_config, in_chans=1, mean=(0.5,), std=(0.25,))
    torch.manual_seed(0)
    pictures = load_images(picture_folder, config)
    figures = evaluate_reconstruction(MaskedAutoencoder(config).eval(), pictures)
    assert {len(method["psnr"]) for method in figures.values()} == {12}
    assert np.mean(figures["telea"]["psnr"]) > np.mean(figures["mean_colour"]["psnr"])


def test_pictures_are_measured_at_the_size_asked_for(
    small_config: ModelConfig, picture_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = load_images(picture_folder, small_config, image_size=96)
    assert {picture.size for picture in pictures} == {(96, 96)}
    with pytest.raises(ConfigError, match="from 8 to 1024"):
        load_images(picture_folder, small_config, image_size=100)
    with pytest.raises(DataError, match="could be read as an image"):
        load_images(
            picture_folder, replace(small_config, in_chans=4, mean=(0.5,) * 4, std=(0.5,) * 4)
        )
    # Whole frames of 424 rows: the wider ones have more than 4096 patches.
    some = load_images(picture_folder, small_config, "whole", image_size=424)
    assert 0 < len(some) < 12
    assert "at most 4096 are taken" in caplog.text


def test_pictures_of_several_shapes_are_measured_in_one_go(
    small_model: MaskedAutoencoder, picture_folder: Path
) -> None:
    pictures = load_images(picture_folder, small_model.config, "whole")
    assert len({picture.size for picture in pictures}) > 1
    figures = evaluate_reconstruction(small_model, pictures, baselines=False)
    assert len(figures["model"]["psnr"]) == 12


def test_what_cannot_be_measured_is_refused(
    small_model: MaskedAutoencoder, tmp_path: Path, picture_folder: Path
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="no file below .* could be read"):
        load_images(tmp_path / "bad", small_model.config)
    pictures = load_images(picture_folder, small_model.config)
    with pytest.raises(MaskError, match="2"):
        evaluate_reconstruction(small_model, pictures, mask_ratio=2.0)
    for ratio in (0, 0.0):
        with pytest.raises(MaskError, match=f"a mask_ratio of {ratio} removes none of 36 patches"):
            evaluate_reconstruction(small_model, pictures, mask_ratio=ratio)
    for spec in ("none", "3,2"):
        with pytest.raises(ConfigError, match="give auto, dtype, or LOW,HIGH"):
            FittedImages(tmp_path / "nowhere", small_model.config, value_range=spec)


def test_the_command_prints_a_table_or_json(
    small_model: MaskedAutoencoder,
    picture_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "run" / "weights.safetensors"
    save_weights(path, small_model, record={})
    command = [str(path.parent), str(picture_folder), "--device", "cpu"]
    assert mae(["evaluate", "reconstruction", *command]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ("model", "mean_colour", "telea", "PSNR", "SSIM", "±"))
    assert mae(["evaluate", "reconstruction", *command, "--json", "--strategy", "block"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["image_size"] == 48
    assert mae(["evaluate", "reconstruction", *command, "--json", "--image-size", "32"]) == 0
    assert json.loads(capsys.readouterr().out)["image_size"] == 32
    assert report["strategy"] == "block"
    assert report["pictures"] == 12
    assert set(report["methods"]["model"]) == {"loss", *FIGURES}
    assert torch.isfinite(torch.tensor(report["methods"]["telea"]["psnr"]["mean"]))


@pytest.fixture
def weights(small_model: MaskedAutoencoder, tmp_path: Path) -> str:
    path = tmp_path / "run" / "weights.safetensors"
    save_weights(path, small_model, record={})
    return str(path.parent)


def test_a_picture_filled_without_error_counts_for_every_method(
    small_model: MaskedAutoencoder,
) -> None:
    flat, drawn = Image.new("RGB", (48, 48), "red"), draw_picture(1, 48, 48)
    figures = evaluate_reconstruction(small_model, [flat, drawn])
    assert {len(method["psnr"]) for method in figures.values()} == {2}
    assert figures["mean_colour"]["psnr"][0] == figures["telea"]["psnr"][0] == 100
    summary = summarize(figures)
    assert {method["psnr"].n for method in summary.values()} == {2}
    psnr = summary["telea"]["psnr"]
    assert psnr.capped == 1
    assert psnr.mean == pytest.approx((100 + figures["telea"]["psnr"][1]) / 2)
    # Half of the error of the one that has an error.
    assert psnr.pooled == pytest.approx(figures["telea"]["psnr"][1] + 10 * math.log10(2), abs=1e-4)


def test_a_figure_that_is_missing_in_one_method_counts_in_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    figures = {
        "model": {
            "loss": [1.0, math.nan, 3.0],
            "psnr": [20.0, math.nan, 22.0],
            "ssim": [math.nan] * 3,
        },
        "telea": {"psnr": [10.0, 90.0, 12.0], "ssim": [math.nan] * 3},
    }
    summary = summarize(figures)
    assert summary["model"]["loss"] == Summary(2.0, 1.0, 2)
    assert (summary["telea"]["psnr"].mean, summary["telea"]["psnr"].n) == (11.0, 2)
    assert "ssim" not in summary["model"]
    assert "the psnr of 1 of 3 images is not a number" in caplog.text
    assert summarize({"model": {"loss": [], "psnr": []}}) == {"model": {}}


def test_what_a_model_gets_wrong_is_null_and_counted(
    weights: str,
    picture_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rebuild = evaluation.rebuild

    def spoilt(*args: Any) -> Rebuilt:
        rebuilt = rebuild(*args)
        pixels = rebuilt.pixels.clone()
        pixels[0] = math.nan
        return replace(rebuilt, pixels=pixels)

    monkeypatch.setattr(evaluation, "rebuild", spoilt)
    command = [weights, str(picture_folder), "--device", "cpu"]
    assert mae(["evaluate", "reconstruction", *command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert report["rows"][0]["model"]["psnr"] is None
    assert report["rows"][0]["telea"]["psnr"] > 0
    assert {method["psnr"]["n"] for method in report["methods"].values()} == {11}
    assert mae(["evaluate", "reconstruction", *command]) == 0
    table = capsys.readouterr().out.splitlines()
    assert all(line.split()[1] == "11" for line in table if line.startswith(("model", "telea")))


def test_files_that_cannot_be_read_are_counted_and_named(
    weights: str, picture_folder: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    odd = os.path.join(os.fsencode(picture_folder), b"caf\xe9\n.jpg")
    for name in (odd, os.fsencode(picture_folder / "a" / "cut.png")):
        with open(name, "wb") as file:
            file.write(b"no picture")
    command = [weights, str(picture_folder), "--device", "cpu"]
    assert mae(["evaluate", "reconstruction", *command]) == 0
    table = capsys.readouterr().out
    assert "pictures 12, files 14" in table
    assert all(f"skipped {name}: " in caplog.text for name in ("a/cut.png", "caf\\xe9\\n.jpg"))
    assert mae(["evaluate", "reconstruction", *command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["unreadable"] == ["a/cut.png", "caf\\xe9\\n.jpg"]
    assert (report["pictures"], report["files"]) == (12, 14)
    assert [row["file"] for row in report["rows"]][:2] == ["a/01.jpg", "a/03.png"]
    assert report["rows"][3]["model"].keys() == {"loss", *FIGURES}


def test_the_command_measures_in_float32_and_without_baselines_if_asked(
    weights: str,
    picture_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: True)
    fillers = {"mean_colour": lambda *_: pytest.fail("made a baseline")}
    monkeypatch.setattr(evaluation, "FILLERS", fillers)
    command = [weights, str(picture_folder), "--device", "cpu"]
    assert mae(["evaluate", "reconstruction", *command, "--no-baselines", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["precision"] == "float32"
    assert list(report["methods"]) == ["model"]
    # The very figures of a run's own measurement.
    model = load(weights)
    figures = evaluate_reconstruction(
        model, load_images(picture_folder, model.config), baselines=False
    )
    assert [row["model"]["psnr"] for row in report["rows"]] == figures["model"]["psnr"]


def test_pictures_are_read_while_they_are_measured(
    small_model: MaskedAutoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(120):
        draw_picture(i, 60 + i % 3, 60).save(folder / f"{i:03d}.png")
    alive: weakref.WeakValueDictionary[int, Image.Image] = weakref.WeakValueDictionary()
    most = 0
    fit = evaluation.open_fitted

    def watched(*args: Any, **options: Any) -> Image.Image:
        nonlocal most
        fitted = fit(*args, **options)
        alive[id(fitted)] = fitted
        most = max(most, len(alive))
        return fitted

    monkeypatch.setattr(evaluation, "open_fitted", watched)
    pictures = FittedImages(folder, small_model.config)
    figures = evaluate_reconstruction(small_model, pictures, baselines=False)
    assert most <= 60
    assert len(figures["model"]["psnr"]) == len(pictures.names) == 120
    monkeypatch.undo()
    at_once = evaluate_reconstruction(
        small_model, load_images(folder, small_model.config), baselines=False
    )
    assert at_once == figures


def test_pictures_may_come_from_anywhere(small_model: MaskedAutoencoder) -> None:
    def drawn() -> Iterator[Image.Image]:
        for i in range(45):
            yield draw_picture(i, 48, 48)

    figures = evaluate_reconstruction(small_model, drawn(), seed=250, baselines=False)
    listed = evaluate_reconstruction(small_model, [*drawn()], seed=250, baselines=False)
    assert figures == listed


def test_an_evaluated_folder_is_listed_as_a_trained_one(
    small_config: ModelConfig, picture_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (picture_folder / "a").rename(picture_folder.parent / "elsewhere")
    (picture_folder / "a").symlink_to(picture_folder.parent / "elsewhere")
    (picture_folder / "notes.txt").write_text("hello")
    with caplog.at_level(logging.INFO):
        assert len(load_images(picture_folder, small_config)) == 12
    assert "12 images below" in caplog.text
    assert "skipped 1 other files (.txt 1)" in caplog.text
