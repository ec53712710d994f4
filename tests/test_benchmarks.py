"""The benchmarks run from end to end; what they measure is nobody's promise here."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import bench_onnx, bench_threads, bench_train, bench_weights, made_sets, parity
from mae_core import ModelConfig
from mae_core.config import PRESETS
from mae_core.data.dense import open_detection, open_segmentation
from mae_core.evaluation.reconstruction import (
    evaluate_reconstruction,
    load_images,
    summarize,
)
from mae_core.model.mae import MaskedAutoencoder, forward_flops
from mae_core.model.masking import random_mask
from mae_core.model.patches import patchify
from mae_core.weights.formats import save_weights
from mae_core.weights.registry import load
from tests.pictures import draw_picture

MICRO = ModelConfig(
    image_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, decoder_embed_dim=16,
    decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip


def test_training_steps_are_timed_and_written_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PRESETS, "micro", MICRO)
    monkeypatch.setitem(bench_train.MATMULS, "cpu", (64, 1))
    losses: list[float] = []

    def watched(loss: Tensor, optimizers: list[torch.optim.Optimizer]) -> None:
        parameters = optimizers[0].param_groups[0]["params"]
        before = [parameter.detach().clone() for parameter in parameters]
        update(loss, optimizers)
        pairs = zip(before, parameters, strict=True)
        assert not all(torch.equal(was, is_now) for was, is_now in pairs), "nothing was learned"
        losses.append(loss.item())

    update = bench_train.update
    monkeypatch.setattr(bench_train, "update", watched)
    command = f"--models micro --batch-size 2 --rounds 2 --steps-per-round 3 --out {tmp_path}"
    bench_train.main(command.split(" "))

    # Six contestants, a round of warm-up and two more, of three steps each.
    assert len(losses) == 6 * 3 * 3
    assert all(math.isfinite(loss) for loss in losses)
    (page,), (numbers,) = tmp_path.glob("*-train-cpu.md"), tmp_path.glob("*-train-cpu.json")
    assert page.read_text() == capsys.readouterr().out.removesuffix("\n")
    report = json.loads(numbers.read_text())
    assert report["command"] == f"python -m benchmarks.bench_train {command}"
    for key, base in (("peer", "transformers"), ("mask_tokens", "mask tokens in the encoder")):
        rows = report[key]
        assert len(rows) == 3
        assert all(f"| micro | {row['who']} |" in page.read_text() for row in rows)
        (compared,) = [
            row for row in rows if row["who"].split(",")[0] == base and row["ratio"] == 1
        ]
        assert compared["ratio_quartiles"] == [1, 1]
        for row in rows:
            low, high = row["quartiles"]
            assert 0 < low <= row["images_per_second"] <= high
            assert row["utilization"] > 0
    assert report["peer"][0]["gflop"] == 3 * forward_flops(MICRO, (4, 4), 0.75) / 1e9
    assert report["mask_tokens"][0]["gflop"] > report["mask_tokens"][1]["gflop"]


def test_graphs_are_timed_and_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(PRESETS, "micro", MICRO)
    bench_onnx.main(f"--presets micro --rounds 2 --threads 1 --out {tmp_path}".split())
    report = json.loads(next(tmp_path.glob("*-onnx-cpu.json")).read_text())
    rows = report["rows"]
    assert len(rows) == 3
    assert rows[0]["ratio"] == 1
    assert all(0 <= row["difference"] < 1e-5 and row["median"] > 0 for row in rows)
    assert set(report["megabytes"]) == {"micro"}


def test_parity_is_measured_for_every_set_of_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(PRESETS, "micro", MICRO)
    parity.main(f"--presets micro --image-size 32 --out {tmp_path}".split())
    rows = json.loads(next(tmp_path.glob("*-parity-cpu.json")).read_text())["rows"]
    assert [(row["target"], row["names"]) for row in rows] == [
        (target, names) for target in ("pixels", "norm_pix") for names in parity.WRITERS
    ]
    for row in rows:
        assert row["pred_mean"] <= row["pred_max"] < 1e-5 < row["pred_scale"]
        assert row["latent_mean"] <= row["latent_max"] < 1e-5
        assert row["loss_difference"] < 1e-5 < row["loss"]


def test_threads_are_timed_idle_and_busy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ways = {way: bench_threads.WAYS[way] for way in ("before", "one thread")}
    monkeypatch.setattr(bench_threads, "WAYS", ways)
    bench_threads.main(f"--work train:tiny:1 --rounds 2 --out {tmp_path}".split())
    rows = json.loads(next(tmp_path.glob("*-threads-*.json")).read_text())["rows"]
    assert [(row["busy"], row["way"]) for row in rows] == [
        (busy, way) for busy in (False, True) for way in ways
    ]
    assert all(row["rounds"] == 2 and 0 < row["least"] <= row["median"] for row in rows)
    assert [row["ratio"] for row in rows if row["way"] == "before"] == [1, 1]
    assert [row["threads"] for row in rows if row["way"] == "one thread"] == [1, 1]


def test_weights_are_measured_and_drawn_beside_each_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench_weights, "SET", 50)
    monkeypatch.setattr(bench_weights, "SETS", 3)
    monkeypatch.setattr(bench_weights, "FLICKER_MASKS", 3)
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        draw_picture(i, 224, 224).save(folder / f"{i}.png")
    arguments = ["--images", "3", str(folder), "mae-tiny", "--out", str(tmp_path / "out")]
    assert bench_weights.main(arguments) == 0
    (numbers,) = (tmp_path / "out").glob("*-weights.json")
    report = json.loads(numbers.read_text())
    assert report["command"].endswith(" HOLDOUT mae-tiny --images 3")
    found = report["weights"]["mae-tiny"]
    model = load("mae-tiny")
    images = load_images(folder, model.config)
    for mask, (strategy, ratio) in bench_weights.MASKS.items():
        figures = evaluate_reconstruction(model, images, mask_ratio=ratio, strategy=strategy)
        for method in ("model", "telea"):
            for figure, one in summarize(figures)[method].items():
                assert found[mask][method][figure] == pytest.approx(one.mean, rel=1e-4)
    assert math.isfinite(found["kid"][0])
    assert len(found["mesh"]) == 8
    (page,) = (tmp_path / "out").glob("*-weights.md")
    assert page.read_text().count("| Telea inpainting |") == len(bench_weights.FIGURES)
    assert len(list((tmp_path / "out").glob("weights-*.png"))) == len(bench_weights.MASKS)


def test_the_common_pattern_agrees_with_the_obvious_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    pred, target = torch.randn(2, 3, 9, 48, generator=generator)
    mask = random_mask(3, 9, 0.6, seed=[0, 1, 2]).mask
    found = bench_weights.common_pattern(pred, target, mask, channels=3)
    for i in range(3):
        errors = (pred - target)[i].numpy().reshape(9, 16, 3)
        rows = [errors[k] - errors[k].mean(axis=0) for k in range(9) if mask[i, k]]
        independent = sum((row**2).mean() for row in rows) / len(rows) ** 2
        expected = (np.mean(rows, axis=0) ** 2).mean() / independent
        assert found[i].item() == pytest.approx(expected, rel=1e-5)
    # The same error in each of n patches; other colours are no pattern.
    same = target + torch.randn(1, 1, 48, generator=generator)
    of_same = bench_weights.common_pattern(same, target, mask, 3)
    assert of_same.tolist() == pytest.approx(mask.sum(1).tolist())
    cast = pred + torch.randn(3, 9, 3, generator=generator).repeat(1, 1, 16)
    of_cast = bench_weights.common_pattern(cast, target, mask, 3)
    assert of_cast.tolist() == pytest.approx(found.tolist(), rel=1e-4)
    assert bench_weights.common_pattern(target, target, mask, 3).tolist() == [0, 0, 0]


def test_a_mesh_and_a_common_pattern_are_found() -> None:
    torch.manual_seed(0)
    originals = torch.rand(4, 3, 224, 224)
    masks = torch.ones(4, 196)
    mesh = torch.zeros(224)
    mesh[::8] = 0.2
    meshed, noisy = originals + mesh, originals + 0.05 * torch.randn_like(originals)
    plain = bench_weights.mesh_of(originals)
    found = np.subtract(bench_weights.mesh_of(meshed), plain)
    # A line every 8 pixels: 2/16 of a cycle a pixel, and its multiples.
    assert min(found[[1, 3, 5, 7]]) > 10
    assert max(abs(found[[0, 2, 4, 6]])) < 3
    assert max(abs(np.subtract(bench_weights.mesh_of(noisy), plain))) < 3
    # A patch of another colour has no pattern.
    cast = noisy + torch.tensor([0.2, 0.0, -0.2]).view(3, 1, 1)
    patterns = [
        bench_weights.common_pattern(patchify(one, 16), patchify(originals, 16), masks, 3)
        .mean()
        .item()
        for one in (meshed, noisy, cast)
    ]
    assert patterns[0] > 100
    assert 0.8 < patterns[1] < 1.2
    assert patterns[2] == pytest.approx(patterns[1], rel=1e-3)


def test_weights_that_cannot_be_measured_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_picture(0, 224, 224).save(tmp_path / "0.png")
    small = replace(PRESETS["tiny"], image_size=112, patch_size=8, embed_dim=48, depth=1)
    save_weights(tmp_path / "small.safetensors", MaskedAutoencoder(small), record={})
    for folder, names, message in (
        (tmp_path / "none", ["mae-tiny"], "none' is not a folder; give one with images in it"),
        (tmp_path, ["mae-tiny", "mae-tiny"], "names of their own"),
        (tmp_path, [str(tmp_path / "small.safetensors")], "image_size 112; give weights that have"),
    ):
        with pytest.raises(SystemExit):
            bench_weights.main([str(folder), *names])
        assert message in capsys.readouterr().err


def test_made_sets_open_and_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocotools")
    (tmp_path / "photographs").mkdir()
    for i in range(5):
        draw_picture(i, 90, 70).save(tmp_path / f"photographs/{i}.jpg")
    command = f"made_sets {tmp_path}/photographs {tmp_path}/made --train 3 --val 2 --side 64"
    monkeypatch.setattr("sys.argv", command.split(" "))
    made_sets.main()
    for part, count in zip((0, 1), (3, 2), strict=True):
        pixels = open_segmentation(tmp_path / "made/segment")[part]
        objects = open_detection(tmp_path / "made/detect")[part]
        assert len(pixels) == len(objects) == count
        assert pixels.classes == ("background", *objects.classes)
        for i in range(count):
            (image, labels), (same, found) = pixels.read(i), objects.read(i)
            assert image.tobytes() == same.tobytes()
            drawn = np.zeros_like(labels)
            for label, mask in zip(found.labels, found.masks, strict=True):
                drawn[mask] = 1 + label
            np.testing.assert_array_equal(drawn, labels)
