"""Fine-tuning: what is trained, what is drawn for an image, and runs that stop and go on."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mae_core.cli import mae
from mae_core.config import ModelConfig, OptimConfig, load_yaml
from mae_core.data.labelled import open_labelled
from mae_core.distributed import World
from mae_core.errors import CheckpointError, ConfigError, DataError, MAEError
from mae_core.finetune import fine_tune
from mae_core.model.mae import MaskedAutoencoder
from mae_core.training import callbacks
from mae_core.training.checkpoint import RunState
from mae_core.training.classification import (
    FINETUNE_RECIPES,
    SCRATCH_RECIPES,
    Classification,
    FinetuneConfig,
    StochasticDepth,
    TrainingSamples,
    build_vit,
    recipe_for,
)
from mae_core.training.runs import build_layer_decay
from mae_core.weights.files import load_checkpoint
from mae_core.weights.formats import save_weights
from mae_core.weights.registry import read_weights
from tests.mae_core.test_probes import COLOURS, write_classes

ROOT = Path(__file__).resolve().parents[2]
ALONE = World(0, 1, torch.device("cpu"))
# Fields of a run that ends in the same bits wherever it is computed alone.
SMALL = {
    "steps": 24, "batch_size": 8, "save_every": 1, "eval_every": 100, "workers": 1, "seed": 3,
    "drop_path": 0.4, "mixup": 0.8, "cutmix": 1.0, "optim.lr": 1e-3, "optim.warmup_epochs": 0,
    "optim.warmup_steps": 2, "system.precision": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled images in `data`, and the weights of an encoder of two blocks."""
    root = tmp_path_factory.mktemp("finetune")
    write_classes(root / "data/train", 8, seed=1)
    write_classes(root / "data/val", 4, seed=2)
    torch.manual_seed(0)
    config = ModelConfig(
        image_size=48, patch_size=8, embed_dim=32, depth=2, num_heads=2,
        decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2,
    )  # fmt: skip
    save_weights(root / "small.safetensors", MaskedAutoencoder(config), record={})
    return root


def tune(folder: Path, out: Path, method: Any = "finetune", **changes: Any) -> dict[str, Any]:
    """A small run on one thread, as each of two processes has it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fields = {**SMALL, "out": str(out), **changes}
        return fine_tune(folder / "small.safetensors", folder / "data", method, **fields)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run from its begin to its end."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    tune(folder, out)
    return out


def state_of(run: Path) -> dict[str, Tensor]:
    return read_weights(run / "weights.safetensors").state


# --- the command


def test_an_encoder_becomes_a_classifier(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    fields = [
        "steps=40", "batch_size=12", "eval_every=20", "randaugment=", "mixup=0", "cutmix=0",
        "optim.lr=3e-3", "optim.warmup_epochs=0", "optim.warmup_steps=2", "seeds=2", "workers=1",
    ]  # fmt: skip
    command = [
        "evaluate", "finetune", str(folder / "small.safetensors"), str(folder / "data"), *fields,
        "--out", str(out),
    ]  # fmt: skip
    assert mae([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((out / "report.json").read_text())
    assert report["accuracy"] > 0.9
    assert report["accuracy"] == pytest.approx(np.mean(report["seeds"]))
    assert len(report["seeds"]) == 2
    assert report["interval"][0] < report["accuracy"] <= report["interval"][1]
    assert (report["method"], report["init"], report["block"]) == ("finetune", "weights", "all")
    assert set(report["per_class"]) == {*COLOURS}
    assert (report["train"], report["measured"], report["config"]["recipe"]) == (24, 12, "small")
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        "report.json", "evaluation.html", "confusion.png",
    }  # fmt: skip
    for seed in (0, 1):
        run = out / f"seed-{seed}"
        assert "Accuracy" in (run / "report.html").read_text()
        lines = list(map(json.loads, (run / "metrics.jsonl").read_text().splitlines()))
        accuracies = {line["step"]: line["accuracy"] for line in lines if "accuracy" in line}
        assert accuracies.keys() == {20, 40}
        assert accuracies[40] == report["seeds"][seed]
        written = read_weights(run / "weights.safetensors")
        assert (written.kind, written.classes) == ("classifier", (*sorted(COLOURS),))
        assert written.record["accuracy"] == report["seeds"][seed]
    classifier = ["evaluate", "classifier", str(out / "seed-1"), str(folder / "data"), "--json"]
    assert mae(classifier) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == report["seeds"][1]
    # What is finished is not trained again.
    lines = (out / "seed-1/metrics.jsonl").read_text()
    assert mae(command) == 0
    assert f"all    {100 * report['accuracy']:.1f} %" in capsys.readouterr().out
    assert (out / "seed-1/metrics.jsonl").read_text() == lines


def test_partial_fine_tuning_is_a_run_for_each_number_of_blocks(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    report = tune(folder, tmp_path, "partial", steps=2, blocks=(0, 0.5, 2))
    assert [row["block"] for row in report["blocks"]] == [0, 0.5, 2]
    assert report["block"] == 2
    begin = read_weights(folder / "small.safetensors").state
    for blocks, changed in {
        "0": (),
        "0.5": ("blocks.1.norm2", "blocks.1.mlp"),
        "2": ("blocks.",),
    }.items():
        after = state_of(tmp_path / f"blocks-{blocks}")
        moved = {name for name in after if name in begin and not after[name].equal(begin[name])}
        assert moved == {name for name in begin if name.startswith(changed) and name in after}
    # All of the encoder is more than all of its blocks.
    assert not state_of(whole)["patch_embed.proj.weight"].equal(begin["patch_embed.proj.weight"])


def test_scratch_begins_with_other_random_parameters_for_each_seed(
    folder: Path, tmp_path: Path
) -> None:
    report = tune(folder, tmp_path, "scratch", steps=1, seeds=2)
    assert (report["init"], report["config"]["layer_decay"], report["config"]["ema"]) == (
        "random", 1.0, 0.999,
    )  # fmt: skip
    first, second = (state_of(tmp_path / f"seed-{seed}") for seed in (3, 4))
    begin = read_weights(folder / "small.safetensors").state
    name = "blocks.0.attn.qkv.weight"
    assert (first[name] - second[name]).abs().max() > 0.05
    assert (first[name] - begin[name]).abs().max() > 0.05


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("finetune", {"blocks": (1,)}, "blocks= is for partial; leave it out of finetune"),
        ("partial", {"blocks": (3,)}, "blocks are 3; this encoder has 2"),
        ("partial", {"blocks": (0.7,)}, "blocks=0.7: give whole numbers, or 0.5 for the MLP"),
        ("scratch", {"init": "weights"}, "scratch begins with random parameters; leave init out"),
        ("finetune", {"batch_size": 5}, "mix pairs of images, and a micro-batch .* has 5; give"),
        ("finetune", {"randaugment": "strong"}, "randaugment=strong is not timm's notation"),
        ("finetune", {"recipe": "tiny"}, "recipe='tiny'"),
        ("finetune", {"image_size": 50}, "image_size 50 is not a multiple of patch_size 8"),
        ("finetune", {"drop_path": 1.0}, "drop_path=1"),
        ("finetune", {"resume": "runs/other"}, "resume= is for mae train; give --out"),
        ("finetune", {"optim.name": "muon"}, "optim.name=muon: layer decay is for adamw"),
        ("finetune", {"crop_area": (1, 0.5)}, "crop_area"),
        ("finetune", {"batch_size": 6, "system.accumulate": 4}, "batch_size 6 does not divide"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    folder: Path, tmp_path: Path, method: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(MAEError, match=message):
        tune(folder, tmp_path / "run", method, **changes)
    assert not (tmp_path / "run/checkpoint.pt").exists()


def test_the_folder_of_another_run_is_left_alone(folder: Path, whole: Path, tmp_path: Path) -> None:
    """Of another encoder of the same name, of other classes, of other fields."""
    before = {path: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    other = tmp_path / "small.safetensors"
    torch.manual_seed(1)
    config = read_weights(folder / "small.safetensors").config
    save_weights(other, MaskedAutoencoder(config), record={})
    fields = {**SMALL, "out": str(whole)}
    with pytest.raises(CheckpointError, match="is of another encoder; give another out="):
        fine_tune(other, folder / "data", **fields)
    shutil.copytree(folder / "data", tmp_path / "data")
    with Image.open(tmp_path / "data/train/red/00.png") as picture:
        picture.resize((20, 20)).save(tmp_path / "data/train/red/00.png")
    with pytest.raises(CheckpointError, match="is of another set of training images"):
        fine_tune(folder / "small.safetensors", tmp_path / "data", **fields)
    for part in ("train", "val"):
        (tmp_path / "data" / part / "red").rename(tmp_path / "data" / part / "pink")
    with pytest.raises(CheckpointError, match="is of another set of classes"):
        fine_tune(folder / "small.safetensors", tmp_path / "data", **fields)
    for change in ({"image_size": 32}, {"mixup": 0}, {"steps": 30}, {"optim.weight_decay": 0}):
        with pytest.raises(CheckpointError, match=rf"of another {next(iter(change))[:5]}"):
            tune(folder, whole, **change)
    assert {path: path.read_bytes() for path in whole.iterdir() if path.is_file()} == before
    # How the machine does it, and how often it is measured, may change.
    tune(folder, whole, **{"workers": 2, "eval_every": 7, "system.accumulate": 2})
    assert state_of(whole)["head.weight"].equal(load_checkpoint_model(whole)["head.weight"])
    record = read_weights(whole).record
    assert record["train"]["system"]["accumulate"] == 1, "a finished run is what it was"


def load_checkpoint_model(run: Path) -> dict[str, Tensor]:
    model: dict[str, Tensor] = load_checkpoint(run / "checkpoint.pt")["model"]
    return model


def test_what_is_measured_is_said_before_training(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "data", tmp_path / "data")
    for path in (tmp_path / "data/val").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the measured images that were tried can be read"):
        fine_tune(folder / "small.safetensors", tmp_path / "data", out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_classifier_keeps_its_crop(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tune(folder, tmp_path / "run", steps=1, crop_share=0.3)
    assert read_weights(tmp_path / "run").crop_share == 0.3
    capsys.readouterr()
    assert (
        mae(["evaluate", "classifier", str(tmp_path / "run"), str(folder / "data"), "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["accuracy"] == report["accuracy"]


def test_the_folder_is_an_option_and_may_begin_with_a_tilde(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ConfigError, match="the folder is given by --out DIR"):
        mae([*arguments(folder, tmp_path), "out=elsewhere"])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert mae([*arguments(folder, Path("~/run")), "steps=1"]) == 0
    assert {"report.json", "weights.safetensors"} <= {p.name for p in (tmp_path / "run").iterdir()}
    assert not (tmp_path / "~").exists()


def test_a_short_run_is_not_all_warm_up(folder: Path, tmp_path: Path) -> None:
    changes = {"epochs": 2, "batch_size": 8, "workers": 1, "out": str(tmp_path / "run")}
    fine_tune(folder / "small.safetensors", folder / "data", **changes)
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    # 8e-3 * 8 / 256 at its peak, and almost nothing at the end of six steps.
    assert [line["lr"] for line in lines if "lr" in line][-1] < 1e-4
    config = load_yaml(FinetuneConfig, tmp_path / "run/config.yaml")
    assert config.optim.warmup_epochs == pytest.approx(5 * 2 / 50)


def test_images_that_cannot_be_read_are_skipped(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    write_classes(data / "train", 2)
    write_classes(data / "val", 1)
    (data / "train/red/00.png").write_bytes(b"not an image")
    train, _ = open_labelled(data)
    model = read_weights(folder / "small.safetensors").config
    samples = TrainingSamples(train, model, FinetuneConfig(), 48)
    labels = [samples[i][1] for i in range(6)]
    assert sorted(labels) == [0, 0, 1, 1, 2, 2]
    assert "skipped red/00.png" in caplog.text


# --- the same bits


def test_a_stopped_run_ends_in_the_same_bits(folder: Path, whole: Path, tmp_path: Path) -> None:
    with stopped_when_measured():
        stopped = tune(folder, tmp_path, eval_every=4)
    assert stopped == {"stopped_by": signal.SIGTERM}
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 5
    assert not (tmp_path / "weights.safetensors").exists()
    tune(folder, tmp_path)
    expected, found = state_of(whole), state_of(tmp_path)
    assert all(found[name].equal(expected[name]) for name in expected)


@contextmanager
def stopped_when_measured() -> Iterator[None]:
    """Have SIGTERM arrive while a run measures."""
    measure = callbacks.Measured.on_eval

    def stop(self: callbacks.Measured, state: RunState, vit: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        measure(self, state, vit)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(callbacks.Measured, "on_eval", stop)
        yield


def test_a_signal_at_the_end_of_a_run_stops_the_next_one(folder: Path, tmp_path: Path) -> None:
    with stopped_when_measured():
        assert tune(folder, tmp_path, steps=2, seeds=2) == {"stopped_by": signal.SIGTERM}
        # The last one is reported: nothing would be stopped any more.
        assert "accuracy" in tune(folder, tmp_path / "alone", steps=2)
    assert (tmp_path / "seed-3/weights.safetensors").exists()
    assert not (tmp_path / "seed-4").exists()


def arguments(folder: Path, out: Path, *fields: str) -> list[str]:
    return [
        "evaluate", "finetune", str(folder / "small.safetensors"), str(folder / "data"),
        *(f"{name}={value}" for name, value in SMALL.items()), *fields, "--out", str(out),
    ]  # fmt: skip


@pytest.mark.parametrize(("sent", "status", "step"), [("SIGKILL", -9, 9), ("GROUP", 143, 11)])
def test_a_killed_run_ends_in_the_same_bits(
    folder: Path, whole: Path, tmp_path: Path, sent: str, status: int, step: int
) -> None:
    """By SIGKILL, or by SIGTERM for the process and all its workers, as a cluster sends it."""
    killed = subprocess.run(
        [
            sys.executable, "-m", "tests.mae_core.interrupted", sent, "10",
            *arguments(folder, tmp_path),
        ],
        cwd=ROOT, capture_output=True, timeout=300, check=False, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert killed.returncode == status, killed.stderr
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == step
    tune(folder, tmp_path)
    expected, found = state_of(whole), state_of(tmp_path)
    assert all(found[name].equal(expected[name]) for name in expected)


def assert_close(one: Path, other: Path) -> None:
    """Equal but for the order of sums."""
    expected, found = state_of(one), state_of(other)
    for name, value in expected.items():
        if not name.endswith("attn.qkv.bias"):  # softmax cancels the keys'
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=name)


def test_two_processes_do_what_one_does(folder: Path, whole: Path, tmp_path: Path) -> None:
    """Until torchrun is told to stop; one process goes on."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    subprocess.run(
        [
            sys.executable, *launch, "tests.mae_core.interrupted", "SIGTERM", "10",
            *arguments(folder, tmp_path),
        ],
        cwd=ROOT, capture_output=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert 10 < load_checkpoint(tmp_path / "checkpoint.pt")["step"] < 24
    tune(folder, tmp_path)
    assert_close(whole, tmp_path)


def test_micro_batches_add_up_to_the_batch(folder: Path, whole: Path, tmp_path: Path) -> None:
    tune(folder, tmp_path, **{"system.accumulate": 4, "system.checkpoint_activations": True})
    assert_close(whole, tmp_path)


def test_a_part_that_is_frozen_adds_up_too(folder: Path, tmp_path: Path) -> None:
    fields = {"blocks": (0.5,), "ema": 0.9, "drop_path": 0.5, "steps": 6}
    tune(folder, tmp_path / "one", "partial", **fields)
    tune(folder, tmp_path / "two", "partial", **fields, **{"system.accumulate": 2})
    assert_close(tmp_path / "one", tmp_path / "two")


# --- its parts


def test_the_learning_rate_falls_layer_by_layer(folder: Path) -> None:
    """As official fine-tuning: the head 1, block i decay^(depth - i), what is before the blocks."""
    encoder = read_weights(folder / "small.safetensors").build_encoder()
    vit = build_vit(encoder, 3, FinetuneConfig(), 48)
    (optimizer,) = build_layer_decay(vit, config=OptimConfig(lr=1.0), layer_decay=0.5)
    found = {
        id(parameter): (group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups for parameter in group["params"]
    }  # fmt: skip
    for name, parameter in vit.named_parameters():
        part, _, rest = name.partition(".")
        layers = {"head": 0, "fc_norm": 0, "blocks": 2 - int(rest[:1]) if part == "blocks" else 0}
        decays = parameter.ndim > 1 and name not in ("cls_token", "pos_embed")
        expected = 0.5 ** layers.get(part, 3), 0.05 if decays else 0.0
        assert found[id(parameter)] == expected, name


def test_branches_are_left_out_by_image(folder: Path) -> None:
    encoder = read_weights(folder / "small.safetensors").build_encoder()
    config = FinetuneConfig(drop_path=0.5, batch_size=4000, seed=1)
    vit = build_vit(encoder, 3, config, 48)
    depths = [module for module in vit.modules() if isinstance(module, StochasticDepth)]
    assert [depth.rate for depth in depths] == [0.5, 0.5]  # of the last block; of the first 0
    for blocks, count in ((0.0, 0), (0.5, 1), (1.0, 2)):  # never of what is frozen
        part = build_vit(encoder, 3, replace(config, blocks=(blocks,)), 48)
        assert len([m for m in part.modules() if isinstance(m, StochasticDepth)]) == count
    scales = Classification(config, vit, None, 3, ALONE)._draw_depths(5)  # type: ignore[arg-type]
    assert scales.unique().tolist() == [0.0, 2.0]
    assert scales.mean().item() == pytest.approx(1, abs=0.05)
    depth, tokens = depths[0], torch.ones(2, 3, 4)
    depth.scale = torch.tensor((0.0, 2.0))
    assert depth.train()(tokens)[:, 0, 0].tolist() == [0.0, 2.0]
    assert depth.eval()(tokens).equal(tokens)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.0, 0.0), (0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_pairs_are_mixed_as_their_targets_are(mixup: float, cutmix: float) -> None:
    config = FinetuneConfig(mixup=mixup, cutmix=cutmix, smoothing=0.2, batch_size=4)
    objective = Classification(config, torch.nn.Identity(), None, 4, ALONE)  # type: ignore[arg-type]
    # Image i is i everywhere, so that a mean tells the share of the other image.
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 20, 16)
    labels, kinds = torch.tensor((0, 1, 2, 2)), set[str]()
    plain = F.one_hot(labels, 4) * 0.8 + 0.05
    for step in range(40):
        mixed, targets = objective.mix(images, labels, step)
        share = 1 - mixed[0].mean()  # of the image itself, whose partner is 1
        is_cut = {*mixed.unique().tolist()} <= {0, 1, 2, 3}
        kinds.add("none" if share == 1 else "cutmix" if is_cut else "mixup")
        assert mixed[1].mean().item() == pytest.approx(share.item(), abs=1e-5)
        assert mixed[2].mean().item() == pytest.approx(3 - share.item(), abs=1e-5)
        expected = share * plain + (1 - share) * plain[[1, 0, 3, 2]]
        torch.testing.assert_close(targets, expected, rtol=0, atol=1e-5)
        again = objective.mix(images, labels, step)
        assert again[0].equal(mixed)
    expected_kinds = {"mixup"} if mixup else set[str]()
    expected_kinds |= {"cutmix"} if cutmix else set()
    assert kinds - {"none"} == expected_kinds
    assert images.unique().tolist() == [0, 1, 2, 3], "the batch itself was changed"


def test_a_sample_is_a_function_of_its_number(folder: Path) -> None:
    train, _ = open_labelled(folder / "data")
    model = read_weights(folder / "small.safetensors").config
    first, second = (TrainingSamples(train, model, FinetuneConfig(seed=5), 48) for _ in range(2))
    for number in (30, 3, 7):
        random.seed(number)
        image, label = first[number]
        random.seed(0)
        np.random.seed(1)
        torch.manual_seed(2)
        again, same = second[number]
        assert image.equal(again)
        assert label == same
        assert image.shape == (3, 48, 48)
    # An epoch has every image once; the next one in another order.
    orders = [[first[epoch * 24 + i][1] for i in range(24)] for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == [0] * 8 + [1] * 8 + [2] * 8
    assert orders[0] != orders[1]


def test_recipes_are_those_of_the_paper_where_there_are_many_images() -> None:
    assert recipe_for(1024, 2000, scratch=False) == FINETUNE_RECIPES["small"]
    for width, name in ((192, "base"), (768, "base"), (1024, "large"), (1280, "huge")):
        assert recipe_for(width, 1_281_167, scratch=False) == FINETUNE_RECIPES[name]
        assert recipe_for(width, 1_281_167, scratch=True) == SCRATCH_RECIPES[name]
    for name, values in {
        "base": (100, 5e-4, 0.65, 0.1), "large": (50, 1e-3, 0.75, 0.2),
        "huge": (50, 1e-3, 0.75, 0.3),
    }.items():  # fmt: skip
        one = FINETUNE_RECIPES[name]
        assert (one.epochs, one.optim.base_lr, one.layer_decay, one.drop_path) == values
        assert (one.batch_size, one.mixup, one.cutmix, one.smoothing) == (1024, 0.8, 1.0, 0.1)
        assert one.optim.betas == (0.9, 0.999)
    for name, recipe in {**FINETUNE_RECIPES, **SCRATCH_RECIPES}.items():
        assert recipe.recipe == name
    assert all(one.init == "random" for one in SCRATCH_RECIPES.values())
