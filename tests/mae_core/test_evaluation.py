import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mae_core.evaluate
from mae_core.checkpoint import save_weights
from mae_core.config import ModelConfig
from mae_core.errors import ConfigError, DataError, MaskError
from mae_core.evaluation.reconstruction import evaluate_reconstruction, load_pictures
from mae_core.models.mae import MaskedAutoencoder
from mae_core.reconstruction import Reconstructor


def test_figures_are_those_of_each_picture_alone(
    small_model: MaskedAutoencoder, picture_folder: Path
) -> None:
    pictures = load_pictures(picture_folder, small_model.config)
    figures = evaluate_reconstruction(small_model, pictures, mask_ratio=0.5, seed=10)
    reconstructor = Reconstructor(small_model, "small", device="cpu", precision="float32")
    for i, picture in enumerate(pictures):
        alone = reconstructor(picture, mask_ratio=0.5, seed=10 + i)
        assert figures["model"].psnr[i] == pytest.approx(alone.psnr, abs=1e-3)
        assert figures["model"].ssim[i] == pytest.approx(alone.ssim, abs=1e-4)
        assert figures["model"].loss[i] == pytest.approx(alone.loss, rel=1e-4)


def test_baselines_fill_the_same_masks_without_seeing_hidden_pixels(
    small_model: MaskedAutoencoder, picture_folder: Path
) -> None:
    pictures = load_pictures(picture_folder, small_model.config)
    figures = evaluate_reconstruction(small_model, pictures, mask_ratio=0.5, seed=0)
    assert list(figures) == ["model", "mean_colour", "telea"]
    assert figures["mean_colour"].loss == []
    assert len(figures["telea"].psnr) == 12
    # On smooth pictures inpainting from the neighbours beats one colour for all.
    assert np.mean(figures["telea"].psnr) > np.mean(figures["mean_colour"].psnr) + 3
    reconstructor = Reconstructor(small_model, "small", device="cpu", precision="float32")
    out = reconstructor(pictures[0], mask_ratio=0.5, seed=0)
    original = out.original.numpy()
    removed = out.removed.repeat(8, axis=0).repeat(8, axis=1)
    colour = original[:, ~removed].mean(axis=1, keepdims=True)
    error = ((original[:, removed] - colour) ** 2).mean()
    assert figures["mean_colour"].psnr[0] == pytest.approx(-10 * math.log10(error), abs=1e-3)


def test_normalised_targets_are_scored_without_the_answer(
    small_config: ModelConfig, picture_folder: Path
) -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(replace(small_config, norm_pix=True)).eval()
    pictures = load_pictures(picture_folder, small_config)[:3]
    figures = evaluate_reconstruction(model, pictures, seed=10, baselines=False)["model"]
    reconstructor = Reconstructor(model, "norm_pix", device="cpu", precision="float32")
    for i, picture in enumerate(pictures):
        views = {
            view: reconstructor(picture, seed=10 + i, view=view).psnr
            for view in ("estimated", "answer")
        }
        assert figures.psnr[i] == pytest.approx(views["estimated"], abs=1e-3)
        assert figures.psnr[i] != pytest.approx(views["answer"], abs=5e-3)


def test_a_model_of_one_channel_is_measured_in_grey(
    small_config: ModelConfig, picture_folder: Path
) -> None:
    config = replace(small_config, in_chans=1, mean=(0.5,), std=(0.25,))
    torch.manual_seed(0)
    pictures = load_pictures(picture_folder, config)
    figures = evaluate_reconstruction(MaskedAutoencoder(config).eval(), pictures)
    assert {len(method.psnr) for method in figures.values()} == {12}
    assert np.mean(figures["telea"].psnr) > np.mean(figures["mean_colour"].psnr)


def test_pictures_are_measured_at_the_size_asked_for(
    small_config: ModelConfig, picture_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = load_pictures(picture_folder, small_config, image_size=96)
    assert {picture.size for picture in pictures} == {(96, 96)}
    with pytest.raises(ConfigError, match="from 8 to 1024, such as 96"):
        load_pictures(picture_folder, small_config, image_size=100)
    with pytest.raises(ConfigError, match="takes 4 channels"):
        load_pictures(
            picture_folder, replace(small_config, in_chans=4, mean=(0.5,) * 4, std=(0.5,) * 4)
        )
    # Whole frames of 424 rows: the wider ones have more than 4096 patches.
    some = load_pictures(picture_folder, small_config, "whole", image_size=424)
    assert 0 < len(some) < 12
    assert "at most 4096 are taken" in caplog.text


def test_pictures_of_several_shapes_are_measured_in_one_go(
    small_model: MaskedAutoencoder, picture_folder: Path
) -> None:
    pictures = load_pictures(picture_folder, small_model.config, "whole")
    assert len({picture.size for picture in pictures}) > 1
    figures = evaluate_reconstruction(small_model, pictures, baselines=False)
    assert len(figures["model"].psnr) == 12


def test_what_cannot_be_measured_is_refused(
    small_model: MaskedAutoencoder, tmp_path: Path, picture_folder: Path
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="no file below .* could be read"):
        load_pictures(tmp_path / "bad", small_model.config)
    pictures = load_pictures(picture_folder, small_model.config)
    with pytest.raises(MaskError, match="2"):
        evaluate_reconstruction(small_model, pictures, mask_ratio=2.0)
    with pytest.raises(MaskError, match="removes nothing"):
        evaluate_reconstruction(small_model, pictures, mask_ratio=0.0)


def test_the_command_prints_a_table_or_json(
    small_model: MaskedAutoencoder,
    picture_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "run" / "weights.safetensors"
    save_weights(path, small_model, record={})
    command = ["reconstruction", str(path.parent), str(picture_folder), "--device", "cpu"]
    assert mae_core.evaluate.main(command) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ("model", "mean_colour", "telea", "PSNR", "SSIM", "±"))
    assert mae_core.evaluate.main([*command, "--json", "--strategy", "block"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["image_size"] == 48
    assert mae_core.evaluate.main([*command, "--json", "--image-size", "32"]) == 0
    assert json.loads(capsys.readouterr().out)["image_size"] == 32
    assert report["strategy"] == "block"
    assert report["pictures"] == 12
    assert set(report["methods"]["model"]) == {"loss", "psnr", "ssim"}
    assert torch.isfinite(torch.tensor(report["methods"]["telea"]["psnr"]["mean"]))
