import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mae_core.checkpoint import load_checkpoint, load_weights
from mae_core.config import MaskConfig, ModelConfig, OptimConfig, StageConfig, TrainConfig
from mae_core.data.packed import pack_folder
from mae_core.errors import CheckpointError, ConfigError, TrainingError
from mae_core.models.mae import MaskedAutoencoder, reconstruction_loss
from mae_core.recipes import RECIPES, recipe
from mae_core.train import main, run
from mae_core.training.loop import start_run, train
from mae_core.training.optim import build_optimizers
from mae_core.training.precision import prefer_fast_attention
from mae_core.training.schedule import image_size_at, lr_at, mask_at

MakeRun = Callable[..., TrainConfig]
CPU = torch.device("cpu")


def test_the_learning_rate_warms_up_linearly_and_falls_as_half_a_cosine() -> None:
    config = OptimConfig(lr=2.0, final_lr=0.5, warmup_steps=10)
    rates = [lr_at(step, 110, config) for step in range(110)]
    np.testing.assert_allclose(rates[:10], [0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0
    assert math.isclose(rates[60], 1.25)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert math.isclose(lr_at(110, 110, config), 0.5)


def test_stages_follow_each_other_by_their_shares() -> None:
    stages = (StageConfig(32, 0.45), StageConfig(48, 0.2), StageConfig(64, 0.35))
    sizes = [image_size_at(step, 20, stages) for step in range(20)]
    assert sizes == [32] * 9 + [48] * 4 + [64] * 7


def test_masks_are_functions_of_the_step_and_use_the_whole_range() -> None:
    config = MaskConfig(ratio=(0.25, 0.9), random=0.5, block=0.3, grid=0.2)
    masks = [mask_at(step, 3, (6, 6), config, seed=1) for step in range(300)]
    again = mask_at(7, 3, (6, 6), config, seed=1)
    assert torch.equal(again.mask, masks[7].mask)
    visible = [mask.num_visible for mask in masks]
    assert min(visible) <= 4
    assert max(visible) >= 26
    assert all(1 <= count <= 35 for count in visible)


def test_a_mask_for_training_always_removes_something() -> None:
    mask = mask_at(0, 2, (2, 2), MaskConfig(ratio=(0.01, 0.01)), seed=0)
    assert mask.num_visible == 3


def test_every_trainable_parameter_is_in_one_optimiser_and_decays_as_it_should(
    small_model: MaskedAutoencoder,
) -> None:
    for name in ("adamw", "muon"):
        optimizers = build_optimizers(small_model, OptimConfig(name=name, weight_decay=0.05))  # type: ignore[arg-type]
        assert len(optimizers) == (1 if name == "adamw" else 2)
        decay = {
            id(p): group["weight_decay"]
            for optimizer in optimizers
            for group in optimizer.param_groups
            for p in group["params"]
        }
        total = sum(len(g["params"]) for o in optimizers for g in o.param_groups)
        trainable = {n: p for n, p in small_model.named_parameters() if p.requires_grad}
        assert total == len(trainable) == len(decay)
        for key, parameter in trainable.items():
            plain = parameter.ndim == 1 or key in ("cls_token", "mask_token")
            assert decay[id(parameter)] == (0.0 if plain else 0.05), key


def test_plain_and_fused_attention_agree(small_config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(small_config)
    images = torch.randn(2, 3, 48, 48)
    mask = mask_at(0, 2, (6, 6), MaskConfig(), seed=0)
    fused = model(images, mask).pred
    prefer_fast_attention(model, CPU)
    torch.testing.assert_close(model(images, mask).pred, fused, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_mean_over_removed_patches_plus_the_weighted_visible_ones() -> None:
    rng = np.random.default_rng(0)
    pred, target = rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 5, 4))
    mask = np.array([[1, 0, 1, 1, 0], [0, 0, 1, 1, 1]], dtype=float)
    removed, visible = [], []
    for n in range(2):
        for patch in range(5):
            error = ((pred[n, patch] - target[n, patch]) ** 2).mean()
            (removed if mask[n, patch] else visible).append(error)
    tensors = [torch.tensor(value, dtype=torch.float32) for value in (pred, target, mask)]
    plain, mixed = reconstruction_loss(*tensors), reconstruction_loss(*tensors, 0.1)
    assert math.isclose(plain.item(), np.mean(removed), rel_tol=1e-5)
    assert math.isclose(mixed.item(), np.mean(removed) + 0.1 * np.mean(visible), rel_tol=1e-5)


def _weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_weights(Path(config.out) / "weights.safetensors").state


def test_a_run_learns_and_leaves_everything_behind(run_config: MakeRun, tmp_path: Path) -> None:
    config = run_config(
        steps=120, batch_size=12, save_every=60, eval_every=60, mask=MaskConfig(),
        stages=(StageConfig(48, 1.0),), optim=OptimConfig(name="muon", lr=1e-2, warmup_steps=5),
    )  # fmt: skip
    config = replace(config, data=replace(config.data, holdout=config.data.folder))
    path = run(config, "test")
    out = Path(config.out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    held_out = [line for line in lines if "holdout_psnr" in line]
    assert [line["step"] for line in held_out] == [60, 120]
    assert held_out[1]["holdout_psnr"] > held_out[0]["holdout_psnr"]
    assert (out / "reconstructions" / "step-000120.png").exists()
    record = load_weights(path).record
    assert record["pictures"] == 12
    assert record["pictures_seen"] == 1440
    assert record["holdout_psnr"] == pytest.approx(held_out[1]["holdout_psnr"])
    assert str(tmp_path) not in json.dumps(record)


class _Stop(Exception):
    pass


@pytest.mark.parametrize("stopped_after", [4, 6])
def test_a_resumed_run_ends_in_the_same_bits(
    run_config: MakeRun, tmp_path: Path, stopped_after: int
) -> None:
    whole = run_config(out=str(tmp_path / "whole"), eval_every=100)
    run(whole, "test")
    parts = run_config(out=str(tmp_path / "parts"), eval_every=stopped_after)

    def stop(model: MaskedAutoencoder, step: int) -> Mapping[str, float]:
        raise _Stop

    pictures = [np.asarray(p) for p in _pictures(parts)]
    (tmp_path / "parts").mkdir()
    state = start_run(parts, CPU)
    with pytest.raises(_Stop):
        train(parts, state, pictures, CPU, stop)
    run(replace(parts, eval_every=100), "test")
    first, second = _weights(whole), _weights(parts)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_was_changed_on_the_way_stands_in_the_record(run_config: MakeRun) -> None:
    config = run_config(eval_every=4, steps=8)
    Path(config.out).mkdir()

    def stop(model: MaskedAutoencoder, step: int) -> Mapping[str, float]:
        raise _Stop

    state = start_run(config, CPU)
    with pytest.raises(_Stop):
        train(config, state, _pictures(config), CPU, stop)
    moved = replace(config.data, cache=str(Path(config.out).parent / "elsewhere"))
    run(replace(config, visible_weight=0.2, eval_every=100, data=moved), "test")
    record = load_weights(Path(config.out) / "weights.safetensors").record
    assert record["changes"] == [
        {"step": 4, "field": "visible_weight", "from": 0.1, "to": 0.2},
        {"step": 4, "field": "eval_every", "from": 4, "to": 100},
    ]
    assert record["train"]["visible_weight"] == 0.2


def _pictures(config: TrainConfig) -> list[np.ndarray]:
    pack = pack_folder(
        config.data.folder, Path(config.out).parent / "pack",
        short_side=config.data.short_side, max_unreadable=0.0,
    )  # fmt: skip
    return [pack[i] for i in range(len(pack))]


def _command(out: Path, folder: Path) -> list[str]:
    small = [
        "model.image_size=48", "model.patch_size=8", "model.embed_dim=32", "model.depth=1",
        "model.num_heads=2", "model.decoder_embed_dim=16", "model.decoder_depth=1",
        "model.decoder_num_heads=2", 'stages=[{"image_size":48,"share":1.0}]',
    ]  # fmt: skip
    return [
        sys.executable, "-m", "mae_core.train", "quick", f"data.folder={folder}", f"out={out}",
        "steps=150", "batch_size=4", "save_every=3", "eval_every=1000", *small,
    ]  # fmt: skip


def test_kill_9_and_start_again_ends_in_the_same_bits(picture_folder: Path, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(_command(whole, picture_folder), check=True, capture_output=True, cwd=root)
    process = subprocess.Popen(
        _command(killed, picture_folder), cwd=root,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (killed / "checkpoint.pt").exists():
        assert process.poll() is None, "the run ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "weights.safetensors").exists()
    again = subprocess.run(
        _command(killed, picture_folder), check=True, capture_output=True, text=True, cwd=root
    )
    assert "resuming" in again.stderr
    first = load_weights(whole / "weights.safetensors").state
    second = load_weights(killed / "weights.safetensors").state
    assert all(torch.equal(first[name], second[name]) for name in first)
    steps = [
        json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(steps), "steps undone by the kill were logged twice"


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    run_config: MakeRun,
) -> None:
    config = run_config(steps=40, save_every=2, eval_every=100, precision="float32")
    pictures = _pictures(config)
    Path(config.out).mkdir()
    state = start_run(config, CPU)

    class Poisoned(list[np.ndarray]):
        """Gives good pictures at first; then breaks the model between two steps."""

        def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
            if state.step >= 10:
                with torch.no_grad():
                    state.model.decoder_pred.bias.fill_(torch.nan)
            return super().__getitem__(index)

    with pytest.raises(TrainingError, match="the loss is nan .* checkpoint from before .* kept"):
        train(config, state, Poisoned(pictures), CPU, lambda model, step: {})
    saved = load_checkpoint(Path(config.out) / "checkpoint.pt")
    assert saved["step"] >= 8
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())


def test_a_checkpoint_of_another_model_is_refused(
    run_config: MakeRun, small_config: ModelConfig
) -> None:
    config = run_config(eval_every=100)
    run(config, "test")
    with pytest.raises(CheckpointError, match="of another model or optimiser"):
        run(replace(config, model=replace(small_config, depth=3)), "test")


def test_recipes_are_valid_and_unknown_names_and_fields_are_explained() -> None:
    for name in RECIPES:
        assert recipe(name).steps > 0
    with pytest.raises(ConfigError, match="no recipe is called 'big'; choose one of quick"):
        recipe("big")
    with pytest.raises(ConfigError, match="no field is called 'lr'"):
        main(["quick", "lr=3"])
    with pytest.raises(ConfigError, match="not a multiple of the patch side"):
        main(["quick", 'stages=[{"image_size":100,"share":1.0}]'])


def test_help_names_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in RECIPES)
