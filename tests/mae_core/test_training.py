import copy
import json
import math
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from mae_core.cli import mae
from mae_core.config import (
    MaskConfig,
    ModelConfig,
    OptimConfig,
    RecoveryConfig,
    StageConfig,
    SystemConfig,
    TrainConfig,
    load_yaml,
    preset,
    with_overrides,
)
from mae_core.distributed import World
from mae_core.errors import CheckpointError, ConfigError, MAEError, TrainingError
from mae_core.model.losses import reconstruction_loss
from mae_core.model.mae import MaskedAutoencoder, forward_flops
from mae_core.model.masking import PatchMask, random_mask
from mae_core.recipes import RECIPES, recipe
from mae_core.training import callbacks, checkpoint, optim, pretraining, trainer
from mae_core.training import train as train_module
from mae_core.training.checkpoint import RunState
from mae_core.training.optim import (
    Float32Muon,
    build_optimizers,
    image_size_at,
    lr_at,
    mask_at,
    with_image_size_of_model,
    with_peak_lr,
    with_steps,
)
from mae_core.training.pretraining import Reconstruction
from mae_core.training.train import Run, start_run, train
from mae_core.training.trainer import (
    Trainer,
    compile_blocks,
    prefer_fast_attention,
    training_precision,
)
from mae_core.weights.files import load_checkpoint, load_latest, save_checkpoint
from mae_core.weights.publish import push
from mae_core.weights.registry import DEFAULT_WEIGHTS, read_weights
from tests.forked import ForkedPython
from tests.mae_core.conftest import MakeRun

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


def begin(config: TrainConfig) -> RunState:
    """The state that a run starts with."""
    return start_run(config, ALONE)[1]


def test_the_learning_rate_warms_up_linearly_and_falls_as_half_a_cosine() -> None:
    config = OptimConfig(lr=2.0, final_lr=0.5, warmup_steps=10)
    rates = [lr_at(step, 110, config) for step in range(110)]
    np.testing.assert_allclose(rates[:10], [0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0
    assert math.isclose(rates[60], 1.25)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert math.isclose(lr_at(110, 110, config), 0.5)


def test_the_learning_rate_may_stay_until_a_last_share_of_the_steps() -> None:
    config = OptimConfig(lr=2.0, final_lr=0.5, warmup_steps=10, decay_share=0.2)
    rates = [lr_at(step, 100, config) for step in range(100)]
    assert rates[:10] == [
        lr_at(step, 100, OptimConfig(lr=2.0, warmup_steps=10)) for step in range(10)
    ]
    assert rates[10:81] == [2.0] * 71
    assert math.isclose(rates[90], 1.25)
    assert math.isclose(lr_at(100, 100, config), 0.5)
    # A run that is cut short has done the same until its decay begins.
    assert [lr_at(step, 50, config) for step in range(41)] == rates[:41]
    # A warm-up that takes longer wins.
    long = OptimConfig(lr=2.0, warmup_steps=90, decay_share=0.5)
    assert lr_at(89, 100, long) == lr_at(90, 100, long) == 2.0


def test_groups_keep_a_scale_of_their_own() -> None:
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.AdamW(
        [{"params": weights[:1]}, {"params": weights[1:], "lr_scale": 0.5}]
    )
    for lr in (1e-3, 3e-3):
        optim.set_lr([optimizer], lr)
        assert [group["lr"] for group in optimizer.param_groups] == [lr, lr / 2]


def _peak(name: str, *changes: str) -> float:
    return with_peak_lr(with_overrides(recipe(name), changes)).optim.lr


def test_the_learning_rate_of_256_pictures_is_scaled_by_the_batch_that_is_trained() -> None:
    for name in ("base", "large", "huge"):
        assert _peak(name) == pytest.approx(2.4e-3)
        assert _peak(name, "batch_size=256") == pytest.approx(1.5e-4)
    assert _peak("cifar") == pytest.approx(6e-4)
    assert _peak("base", "batch_size=256", "optim.base_lr=1e-3") == pytest.approx(1e-3)
    # A rate that is given is the rate.
    assert _peak("base", "optim.lr=1e-3") == _peak("quick", "optim.lr=1e-3") == 1e-3
    assert _peak("quick", "batch_size=64") == 3e-3
    assert _peak("quick", "batch_size=64", "optim.base_lr=1e-3") == pytest.approx(2.5e-4)


def test_the_resolved_learning_rate_is_said_and_kept(
    run_config: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = run_config(optim=OptimConfig(base_lr=0.0128, warmup_steps=0), steps=1)
    train(config)
    assert "learning rate 0.0002 = optim.base_lr=0.0128 * batch_size=4 / 256" in caplog.messages
    kept = load_yaml(TrainConfig, Path(config.out) / "config.yaml").optim
    assert kept.lr == load_latest(Path(config.out))["config"]["optim"]["lr"] == 0.0002


def test_the_papers_recipes_crop_the_pictures_themselves() -> None:
    for name in ("base", "large", "huge"):
        data = recipe(name).data
        assert (data.decode, data.short_side) == ("epoch", 0)


def _sizes(name: str, *changes: str) -> tuple[list[int], int]:
    """The stages of a run and what pictures are kept at."""
    config = with_overrides(recipe(name), changes)
    config = with_image_size_of_model(config, recipe(name))
    return [stage.image_size for stage in config.stages], config.data.short_side


def test_crops_and_packs_follow_the_models_image_size(caplog: pytest.LogCaptureFixture) -> None:
    assert _sizes("quick") == ([128, 224], 160)
    assert _sizes("quick", "model.image_size=448") == ([256, 448], 448)
    assert _sizes("quick", "model.image_size=96") == ([48, 96], 160)
    assert _sizes("small_data", "model.image_size=448") == ([448], 448)
    assert _sizes("cifar", "model.image_size=64") == ([64], 64)
    assert _sizes("base", "model.image_size=448") == ([448], 0)
    assert _sizes("huge", "model.image_size=448") == ([448], 0)
    # What is given stays.
    stages = 'stages=[{"image_size":320}]'
    assert _sizes("quick", "model.image_size=448", stages) == ([320], 320)
    assert not caplog.messages
    given = _sizes("quick", "model.image_size=448", "data.short_side=300")
    assert given == ([256, 448], 300)
    assert "crops of 448 pixels are enlarged; raise data.short_side" in caplog.text


def test_the_command_line_trains_at_the_image_size_that_it_gives(
    picture_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    small = [field for field in _fields(out, picture_folder) if "stages" not in field]
    assert mae(["train", *small, "model.image_size=96", "steps=2"]) == 0
    config = load_yaml(TrainConfig, out / "config.yaml")
    assert [stage.image_size for stage in config.stages] == [56, 96]
    assert config.data.short_side == 160


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


@pytest.mark.parametrize("strategy", ["random", "block", "grid"])
def test_a_process_draws_the_masks_of_its_own_rows(strategy: str) -> None:
    shares = dict.fromkeys(("random", "block", "grid"), 0.0) | {strategy: 1.0}
    config = MaskConfig(ratio=(0.4, 0.9), **shares)
    whole = mask_at(5, 8, (6, 6), config, seed=1)
    for rank in range(4):
        rows = slice(2 * rank, 2 * rank + 2)
        part = mask_at(5, 8, (6, 6), config, seed=1, rows=rows)
        assert torch.equal(part.ids_restore, whole.ids_restore[rows])
        assert torch.equal(part.ids_keep, whole.ids_keep[rows])


def test_masks_are_drawn_in_a_thread_while_the_step_before_is_trained(
    run_config: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, bool]] = []

    def noted(step: int, *args: Any) -> PatchMask:
        drawn.append((step, threading.current_thread() is threading.main_thread()))
        return mask_at(step, *args)

    monkeypatch.setattr(pretraining, "mask_at", noted)
    train(run_config())
    assert drawn == [(step, False) for step in range(8)]


def test_a_mask_for_training_always_removes_something() -> None:
    mask = mask_at(0, 2, (2, 2), MaskConfig(ratio=(0.01, 0.01)), seed=0)
    assert mask.num_visible == 3


def test_every_trainable_parameter_is_in_one_optimiser_and_decays_as_it_should(
    small_config: ModelConfig,
) -> None:
    """As in the official pre-training: all but biases and other vectors decay, tokens too."""
    small_model = MaskedAutoencoder(replace(small_config, encoder_mask_tokens=True))
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
            plain = (
                key.endswith(".bias") or ".norm" in key or key.startswith(("norm", "decoder_norm"))
            )
            assert decay[id(parameter)] == (0.0 if plain else 0.05), key
        tokens = {key for key in trainable if key.endswith("_token")}
        assert tokens == {"cls_token", "mask_token", "encoder_mask_token"}
        assert not any("pos_embed" in key for key in trainable)


def _muon(
    small_config: ModelConfig, monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool
) -> tuple[MaskedAutoencoder, torch.optim.Optimizer]:
    """A seeded model and the Muon for its matrices on such a CPU."""
    monkeypatch.setattr(optim, "cpu_has_bfloat16", lambda: has_bfloat16)
    torch.manual_seed(0)
    model = MaskedAutoencoder(small_config)
    return model, build_optimizers(model, OptimConfig(name="muon", lr=1e-2))[1]


def _step_with_gradients(
    model: MaskedAutoencoder, optimizer: torch.optim.Optimizer, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def test_muon_multiplies_no_bfloat16_on_a_cpu_without_instructions_for_it(
    small_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = _muon(small_config, monkeypatch, has_bfloat16=False)
    addmm, seen = torch.addmm, set[torch.dtype]()

    def noted(*args: torch.Tensor, **options: float) -> torch.Tensor:
        seen.add(args[0].dtype)
        return addmm(*args, **options)

    monkeypatch.setattr(torch, "addmm", noted)
    _step_with_gradients(model, optimizer, 0)
    assert seen == {torch.float32}


def test_muon_in_float32_does_what_torch_does_in_bfloat16(
    small_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = (_muon(small_config, monkeypatch, has) for has in (False, True))
    assert type(theirs[1]) is torch.optim.Muon
    before = {name: p.detach().clone() for name, p in ours[0].named_parameters()}
    for seed in range(3):
        for model, optimizer in (ours, theirs):
            _step_with_gradients(model, optimizer, seed)
    moved = 0
    for (name, mine), other in zip(ours[0].named_parameters(), theirs[0].parameters(), strict=True):
        step = other - before[name]
        moved += bool(step.any())
        # bfloat16 has 8 bits; the rounding of five iterations adds up.
        assert (mine - other).norm() <= 0.02 * step.norm(), name
    assert moved == len(ours[1].param_groups[0]["params"])


def test_a_run_goes_on_on_a_cpu_without_bfloat16(
    small_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = (_muon(small_config, monkeypatch, has) for has in (False, True))
    for there, here in ((ours, theirs), (theirs, ours)):
        _step_with_gradients(*there, 0)
        here[1].load_state_dict(there[1].state_dict())
        for one, other in zip(there[1].state.values(), here[1].state.values(), strict=True):
            assert list(one) == ["momentum_buffer"]
            assert torch.equal(one["momentum_buffer"], other["momentum_buffer"])
    assert isinstance(ours[1], Float32Muon)


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
    return read_weights(Path(config.out) / "weights.safetensors").state


def test_a_run_learns_and_leaves_everything_behind(run_config: MakeRun, tmp_path: Path) -> None:
    config = run_config(
        steps=120, batch_size=12, save_every=60, eval_every=60, mask=MaskConfig(),
        stages=(StageConfig(48, 1.0),), optim=OptimConfig(name="muon", lr=1e-2, warmup_steps=5),
    )  # fmt: skip
    holdout = shutil.copytree(config.data.folder, tmp_path / "holdout")
    config = replace(config, data=replace(config.data, holdout=str(holdout)))
    assert train(config).finished
    out = Path(config.out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    held_out = [line for line in lines if "holdout_psnr" in line]
    assert [line["step"] for line in held_out] == [60, 120]
    assert held_out[1]["holdout_psnr"] > held_out[0]["holdout_psnr"]
    assert (out / "reconstructions" / "step-000120.png").exists()
    record = read_weights(out / "weights.safetensors").record
    assert record["pictures"] == 12
    assert record["pictures_seen"] == 1440
    assert record["holdout_psnr"] == pytest.approx(held_out[1]["holdout_psnr"])
    assert str(tmp_path) not in json.dumps(record)


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have SIGTERM arrive while the run measures after this step."""
    draw = callbacks.draw_grid

    def stop(model: MaskedAutoencoder, images: list[Any]) -> Image.Image:
        signal.raise_signal(signal.SIGTERM)
        return draw(model, images)

    monkeypatch.setattr(callbacks, "draw_grid", stop)


@pytest.mark.parametrize("stopped_after", [3, 6])
def test_a_run_stopped_by_sigterm_saves_and_ends_in_the_same_bits(
    run_config: MakeRun, tmp_path: Path, stopped_after: int
) -> None:
    whole = run_config(out=str(tmp_path / "whole"), ema=0.9, eval_every=100)
    assert train(whole).finished
    parts = run_config(
        out=str(tmp_path / "parts"), ema=0.9, eval_every=stopped_after, save_every=100
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_at(stopped_after, monkeypatch)
        assert train(parts).stopped_by == signal.SIGTERM
    # The signal came while it measured: it does one more step, then looks.
    assert load_latest(tmp_path / "parts")["step"] == stopped_after + 1
    assert (tmp_path / "parts" / "report.html").exists()
    assert not (tmp_path / "parts" / "weights.safetensors").exists()
    assert train(parts).finished
    first, second = _weights(whole), _weights(parts)
    assert all(torch.equal(first[name], second[name]) for name in first)
    # What a jump of the loss is measured by.
    levels = [load_latest(run.out)["levels"] for run in (whole, parts)]
    assert levels[0] == levels[1]
    assert len(levels[0]) == 8


def test_a_finished_run_that_is_trained_further_is_its_checkpoint(run_config: MakeRun) -> None:
    finished = train(run_config(steps=2))
    first = finished.model.state_dict()
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_at(4, monkeypatch)
        stopped = train(run_config())
    assert stopped.stopped_by == signal.SIGTERM
    saved, own = load_latest(stopped.folder)["model"], stopped.model.state_dict()
    assert all(torch.equal(own[name], saved[name]) for name in own)
    assert not torch.equal(own["cls_token"], first["cls_token"])
    kept = read_weights(stopped.folder / "weights.previous.safetensors").state
    assert all(torch.equal(kept[name], first[name]) for name in first)
    with pytest.raises(CheckpointError, match="is not finished: it is at step 5 of 8"):
        push(stopped.folder, "me/flowers", dry_run=True)
    assert train(run_config()).finished
    assert not torch.equal(_weights(stopped.config)["cls_token"], own["cls_token"])


def test_a_run_has_the_folder_that_it_names(
    run_config: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    # As published weights are called.
    assert train(run_config(steps=1, out="mae-tiny")).model.config.depth == 2
    run = train(run_config(steps=1, out="~/run"))
    assert run.folder == tmp_path / "home" / "run"
    assert (run.folder / "weights.safetensors").exists()
    assert not (tmp_path / "~").exists()


def test_two_runs_in_one_folder_are_refused(run_config: MakeRun) -> None:
    config = run_config()
    with (
        filelock.FileLock(Path(config.out) / ".lock"),
        pytest.raises(TrainingError, match="another process trains in .*; wait for it, or give"),
    ):
        train(config)
    assert train(config).finished


def test_what_was_changed_on_the_way_stands_in_the_record(
    run_config: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(eval_every=4, steps=8)
    with monkeypatch.context() as patched:
        stop_at(4, patched)
        train(config)
    moved = replace(config.data, cache=str(Path(config.out).parent / "elsewhere"))
    train(replace(config, visible_weight=0.2, eval_every=100, data=moved))
    record = read_weights(Path(config.out) / "weights.safetensors").record
    assert record["changes"] == [
        {"step": 5, "field": "eval_every", "from": 4, "to": 100},
        {"step": 5, "field": "visible_weight", "from": 0.1, "to": 0.2},
    ]
    assert record["train"]["visible_weight"] == 0.2


def test_settings_of_the_optimiser_may_change_on_the_way(run_config: MakeRun) -> None:
    config = run_config()
    train(config)
    calm = replace(config.optim, weight_decay=0.3)
    state = begin(replace(config, optim=calm))
    decays = {g["weight_decay"] for o in state.optimizers for g in o.param_groups}
    assert decays == {0.0, 0.3}


def test_a_run_goes_on_from_another_folder_or_from_weights(
    run_config: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first = run_config()
    train(first)
    trained = _weights(first)
    out = str(Path(first.out).parent / "second")
    resumed = begin(replace(first, out=out, resume=first.out))
    assert resumed.step == 8
    begun = begin(replace(first, out=out, init_from=first.out))
    assert (begun.step, begun.init_from) == (0, "run")
    for state in (resumed, begun):
        own = state.model.state_dict()
        assert all(torch.equal(own[name], trained[name]) for name in own)
    said = " ".join(caplog.messages)
    assert "resuming" in said
    assert "starting from the weights run" in said


def test_weights_to_begin_with_bring_their_shape(run_config: MakeRun) -> None:
    first = run_config()
    train(first)
    out = str(Path(first.out).parent / "second")
    train(replace(first, out=out, init_from=first.out, model=ModelConfig()))
    weights = read_weights(Path(out) / "weights.safetensors")
    assert weights.config == first.model
    assert weights.record["init_from"] == "run"
    with pytest.raises(ConfigError, match="an encoder of another shape; give model.depth=2"):
        train(replace(first, out=f"{out}-deeper", init_from=out), **{"model.depth": 3})


@pytest.mark.parametrize(("ema", "decays"), [(0.999, (1 / 10, 2 / 11)), (0.15, (1 / 10, 0.15))])
def test_the_average_follows_the_parameters_and_forgets_the_start(
    run_config: MakeRun, ema: float, decays: tuple[float, float]
) -> None:
    config = run_config(steps=2, save_every=1, ema=ema, stages=(StageConfig(48),))
    begun = {k: v.clone() for k, v in begin(config).model.state_dict().items()}
    train(config)
    out = Path(config.out)
    one, two = (
        load_checkpoint(out / "checkpoint.previous.pt"),
        load_checkpoint(out / "checkpoint.pt"),
    )
    assert (one["step"], two["step"]) == (1, 2)
    written = _weights(config)
    for name, average in two["ema"].items():
        after_one = decays[0] * begun[name] + (1 - decays[0]) * one["model"][name]
        expected = decays[1] * after_one + (1 - decays[1]) * two["model"][name]
        torch.testing.assert_close(average, expected)
        assert torch.equal(written[name], average)


def test_an_average_that_begins_later_begins_at_the_parameters(run_config: MakeRun) -> None:
    config = run_config(eval_every=100)
    train(config)
    state = begin(replace(config, ema=0.999))
    parameters = dict(state.model.named_parameters())
    assert state.average
    assert all(torch.equal(value, parameters[name]) for name, value in state.average.items())


def test_micro_batches_add_up_to_the_batch(run_config: MakeRun, tmp_path: Path) -> None:
    exact = SystemConfig(precision="float32")
    for loss, seam_weight in (("mse", 0.0), ("log_mse", 0.3)):
        together = run_config(
            out=str(tmp_path / f"{loss}1"), system=exact, loss=loss, seam_weight=seam_weight
        )
        apart = replace(
            together, out=str(tmp_path / f"{loss}4"), system=replace(exact, accumulate=4)
        )
        train(together)
        train(apart)
        first, second = _logged(together), _logged(apart)
        assert len(first) == len(second) == 4
        for one, other in zip(first, second, strict=True):
            assert one == pytest.approx(other, rel=1e-4)


def _logged(config: TrainConfig) -> list[tuple[float, float]]:
    """Loss and gradient norm of every line that has them."""
    lines = (Path(config.out) / "metrics.jsonl").read_text().splitlines()
    values = [json.loads(line) for line in lines]
    return [(line["loss"], line["grad_norm"]) for line in values if "loss" in line]


def test_recomputed_activations_change_nothing(run_config: MakeRun, tmp_path: Path) -> None:
    kept = run_config(out=str(tmp_path / "kept"))
    system = replace(kept.system, checkpoint_activations=True)
    again = replace(kept, out=str(tmp_path / "again"), system=system)
    train(kept)
    train(again)
    first, second = _weights(kept), _weights(again)
    assert all(torch.equal(first[name], second[name]) for name in first)


# torch's compiler imports what torch has deprecated.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")
def test_compiled_blocks_are_the_same_blocks(small_model: MaskedAutoencoder) -> None:
    images = torch.randn(2, 3, 48, 48)
    mask = mask_at(0, 2, (6, 6), MaskConfig(), seed=0)
    expected = small_model(images, mask).pred
    names = list(small_model.state_dict())
    compile_blocks(small_model)
    # What the compiler makes of a block is its own affair, and takes a minute.
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(small_model(images, mask).pred, expected)
    assert list(small_model.state_dict()) == names


def test_float16_keeps_its_scale_over_a_stop(run_config: MakeRun, tmp_path: Path) -> None:
    config = run_config(system=SystemConfig(precision="float16"), eval_every=100)
    train(config)
    saved = load_checkpoint(Path(config.out) / "checkpoint.pt")
    assert saved["scaler"]["scale"] > 1
    state = begin(config)
    assert state.scaler.state_dict() == saved["scaler"]
    exact = replace(config, out=str(tmp_path / "exact"), system=SystemConfig(precision="float32"))
    train(exact)
    first, second = _weights(config), _weights(exact)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0.02, msg=name)


@pytest.mark.parametrize("where", ["blocks.0.mlp.fc1.weight", "decoder_pred.bias"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("clip_grad", [0.0, 1.0])
@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_gradient_that_overflows_float16_skips_the_step_of_all_optimisers(
    run_config: MakeRun, where: str, value: float, clip_grad: float, name: str
) -> None:
    """One matrix of Muon's, or one bias of AdamW's, and nothing of either moves."""
    config = run_config(
        system=SystemConfig(precision="float16"), stages=(StageConfig(48),), mask=MaskConfig(),
        optim=OptimConfig(name=name, lr=1e-2, warmup_steps=0, clip_grad=clip_grad),  # type: ignore[arg-type]
    )  # fmt: skip
    state = begin(config)
    objective = Reconstruction(config, state.model, None, ALONE)  # type: ignore[arg-type]
    loop = Trainer(config, state, objective, (), ALONE)
    images, mask = torch.randn(4, 3, 48, 48), mask_at(0, 4, (6, 6), config.mask, 0)
    losses = [partial(objective.loss, 0, images, mask)]
    loop._update(losses)
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    moments = [copy.deepcopy(one.state_dict()["state"]) for one in state.optimizers]
    scale = state.scaler.get_scale()
    parameter = dict(state.model.named_parameters())[where]
    hook = parameter.register_hook(lambda gradient: torch.full_like(gradient, value))
    loop._update(losses)
    hook.remove()
    for key, tensor in state.model.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    for optimizer, then in zip(state.optimizers, moments, strict=True):
        for number, values in optimizer.state_dict()["state"].items():
            for key, tensor in values.items():
                assert torch.equal(tensor, then[number][key]), (number, key)
    assert state.scaler.get_scale() == scale / 2
    loop._update(losses)
    assert all(tensor.isfinite().all() for tensor in state.model.state_dict().values())
    assert not torch.equal(parameter, before[where])
    assert state.scaler.get_scale() == scale / 2


def test_the_best_number_format_is_chosen_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert training_precision("float16", CPU) == "float16"
    for has_bfloat16, chosen in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(trainer, "cpu_has_bfloat16", lambda has=has_bfloat16: has)
        assert training_precision("auto", CPU) == chosen
    for has_bfloat16, chosen in ((True, "bfloat16"), (False, "float16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated, has=has_bfloat16: has)
        assert training_precision("auto", torch.device("cuda")) == chosen


def _events(config: TrainConfig) -> list[str]:
    lines = (Path(config.out) / "metrics.jsonl").read_text().splitlines()
    return [line["event"] for line in map(json.loads, lines) if "event" in line]


def test_a_run_whose_loss_is_no_number_rolls_back_and_goes_on_slower(run_config: MakeRun) -> None:
    config = run_config(
        steps=20, save_every=5, eval_every=100, optim=OptimConfig(lr=1e30, warmup_steps=0),
        recovery=RecoveryConfig(lr_factor=1e-33),
    )  # fmt: skip
    assert train(config).finished
    weights = read_weights(Path(config.out) / "weights.safetensors")
    assert weights.record["rollbacks"] == 1
    (event,) = _events(config)
    assert "the loss jumped or was not finite before step 5" in event
    assert "back to step 0, learning rate x 1e-33" in event


@pytest.mark.parametrize("loss", ["mse", "log_mse"])
def test_a_run_whose_loss_jumps_rolls_back_to_the_last_checkpoint(
    run_config: MakeRun, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    monkeypatch.setattr(trainer, "lr_at", lambda step, *_: 1e-3 if step < 20 else 10.0)
    config = run_config(
        steps=40, save_every=10, eval_every=100, loss=loss, recovery=RecoveryConfig(lr_factor=1e-4)
    )
    assert train(config).finished
    (event,) = _events(config)
    assert event.endswith("before step 30: back to step 20, learning rate x 0.0001")


def test_a_jump_is_a_jump_of_the_mean_of_some_steps(run_config: MakeRun) -> None:
    state = begin(run_config())

    def judge(*losses: float, average: float, limit: float = 4.0) -> tuple[bool, float]:
        config = run_config(recovery=RecoveryConfig(spike=limit))
        objective = Reconstruction(config, state.model, None, ALONE)  # type: ignore[arg-type]
        loop = Trainer(config, state, objective, (), ALONE)
        state.loss_average = average
        # A checkpoint on the way: the losses until then count too.
        for step, part in ((7, losses[:1]), (10, losses[1:])):
            state.step = step
            values = torch.tensor(part, dtype=torch.float64)
            jumped = loop._went_wrong(values, torch.ones_like(values))
        return jumped, state.loss_average

    assert judge(1.0, 3.0, average=math.nan) == (False, 2.0)
    assert judge(1.0, 19.0, average=2.0) == (True, pytest.approx(2.8))
    # One step with a hard mask among easy ones is none.
    assert judge(1.0, 1.0, 13.0, average=2.0) == (False, pytest.approx(2.3))
    assert judge(1000.0, average=2.0, limit=0.0)[0] is False


def test_a_run_that_keeps_going_wrong_stops_and_keeps_the_good_checkpoint(
    run_config: MakeRun,
) -> None:
    config = run_config(
        steps=20, save_every=5, optim=OptimConfig(lr=1e30, warmup_steps=0),
        recovery=RecoveryConfig(max_rollbacks=2, lr_factor=1.0),
    )  # fmt: skip
    with pytest.raises(TrainingError, match="after 2 rollbacks; the checkpoint .* is kept"):
        train(config)
    saved = load_latest(Path(config.out))
    assert saved["rollbacks"] == 2
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())
    assert len(_events(config)) == 2


def test_a_full_disk_on_the_way_is_told_of_and_survived(
    run_config: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(save_every=2, eval_every=100)
    written: list[int] = []

    def save(path: Path, content: Mapping[str, object]) -> None:
        written.append(content["step"])  # type: ignore[arg-type]
        if content["step"] in (2, 4):
            raise CheckpointError("could not write 'checkpoint.pt' (no space left)")
        save_checkpoint(path, content)

    monkeypatch.setattr(trainer, "save_checkpoint", save)
    assert train(config).finished
    assert written == [0, 2, 4, 6, 8]
    events = _events(config)
    assert [event[:35] for event in events] == [
        "the checkpoint of step 2 is missing", "the checkpoint of step 4 is missing",
    ]  # fmt: skip


def test_the_last_checkpoint_has_to_be_written(
    run_config: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(path: Path, content: Mapping[str, object]) -> None:
        if content["step"]:
            raise CheckpointError("no space left")

    monkeypatch.setattr(trainer, "save_checkpoint", save)
    with pytest.raises(CheckpointError, match="no space left"):
        train(run_config())


def test_epochs_become_steps() -> None:
    config = TrainConfig(
        epochs=3, batch_size=4, optim=OptimConfig(warmup_epochs=0.5, warmup_steps=7)
    )
    resolved = with_steps(config, 10)
    assert (resolved.steps, resolved.optim.warmup_steps) == (8, 2)
    assert with_steps(TrainConfig(steps=9), None).steps == 9
    with pytest.raises(ConfigError, match="a stream has no known length"):
        with_steps(config, None)


def test_targets_of_principal_components_are_fitted_and_kept(run_config: MakeRun) -> None:
    config = run_config()
    config = replace(config, model=replace(config.model, pca_components=12))
    train(config)
    state = _weights(config)
    assert state["pca_basis"].shape == (192, 12)
    torch.testing.assert_close(
        state["pca_basis"].T @ state["pca_basis"], torch.eye(12), rtol=0, atol=1e-4
    )


def _fields(out: Path, folder: Path) -> list[str]:
    """Recipe and fields of a small run, as `mae train` takes them."""
    return [
        "quick", f"data.folder={folder}", f"out={out}", "steps=60", "batch_size=4", "save_every=3",
        "eval_every=1000", "model.image_size=48", "model.patch_size=8", "model.embed_dim=32",
        "model.depth=1", "model.num_heads=2", "model.decoder_embed_dim=16",
        "model.decoder_depth=1", "model.decoder_num_heads=2",
        'stages=[{"image_size":48,"share":1.0}]',
    ]  # fmt: skip


def test_kill_9_and_start_again_ends_in_the_same_bits(
    picture_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert mae(["train", *_fields(whole, picture_folder)]) == 0
    # Step 40 is in the log, and the last checkpoint is of step 39.
    to_kill = ["SIGKILL", "40", "train", *_fields(killed, picture_folder)]
    with ForkedPython("from tests.mae_core import interrupted as i; i.run()", *to_kill) as process:
        output = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    assert '"step": 40' in (killed / "metrics.jsonl").read_text()
    assert not (killed / "weights.safetensors").exists()
    caplog.set_level("INFO")
    assert mae(["train", *_fields(killed, picture_folder)]) == 0
    assert "resuming" in caplog.text
    first = read_weights(whole / "weights.safetensors").state
    second = read_weights(killed / "weights.safetensors").state
    assert all(torch.equal(first[name], second[name]) for name in first)
    steps = [
        json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(steps), "steps undone by the kill were logged twice"


def test_a_checkpoint_of_another_model_is_refused(
    run_config: MakeRun, small_config: ModelConfig
) -> None:
    config = run_config(eval_every=100)
    train(config)
    with pytest.raises(CheckpointError, match="of another model; give another out="):
        train(replace(config, model=replace(small_config, depth=3)))


_KEYS = (
    "config", "init_from", "model", "ema", "optimizers", "scaler", "step", "seconds", "rollbacks",
    "loss_average", "changes",
)  # fmt: skip


def _spoiled(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A checkpoint without each of its keys, with another kind of value, and spoiled within."""
    for key in _KEYS:
        yield {name: value for name, value in content.items() if name != key}
        if key != "init_from":
            yield content | {key: b"spoiled"}
    first, *others = content["optimizers"]
    tensor = {name: torch.zeros(3) for name in content["model"]}
    yield content | {"config": {"model": {}, "speed": 3}}
    yield content | {"model": tensor}
    yield content | {"ema": tensor}
    yield content | {"optimizers": [first]}
    yield content | {"optimizers": [{"state": {}}, *others]}
    yield content | {"optimizers": [first | {"state": 3}, *others]}
    yield content | {"changes": [3]}
    yield content | {"levels": [None]}
    yield content | {"scaler": {"scale": "large"}}


def test_a_checkpoint_that_lacks_something_is_refused_with_a_sentence(run_config: MakeRun) -> None:
    config = run_config(system=SystemConfig(precision="float16"), ema=0.9, eval_every=100)
    train(config)
    path = Path(config.out) / "checkpoint.pt"
    content = load_checkpoint(path)
    content.pop("format")
    # Checkpoints of version 0.1 lack the first two, and these runs have no identity, and no
    # wrapper.
    assert set(content) == {*_KEYS, "levels", "identity", "wrapper"}
    for spoiled in _spoiled(content):
        save_checkpoint(path, spoiled)
        with pytest.raises(CheckpointError, match="is damaged or of .*; delete it to go on from"):
            begin(config)


def _refused(change: str, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """The run with something that cannot work."""
    data, out = config.data, Path(config.out)
    if change == "tensorboard":
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        return replace(config, writers=("tensorboard",))
    if change in ("no hold-out", "empty hold-out"):
        folder = out.parent / "holdout"
        if change == "empty hold-out":
            folder.mkdir()
        return replace(config, data=replace(data, holdout=str(folder)))
    if change == "channels":
        return replace(config, model=replace(config.model, in_chans=4))
    if change == "bands":
        return replace(config, data=replace(data, bands=(1, 2, 7)))
    if change == "bands and range":
        return replace(config, data=replace(data, bands=(1, 2, 7), range="0,9"))
    if change == "another model":
        train(replace(config, data=replace(data, cache=str(out.parent / "cache"))))
        return replace(config, model=replace(config.model, depth=3))
    if change == "out":
        out.write_text("a file")
    return {
        "resume": replace(config, resume=str(out.parent / "none")),
        "batch": replace(config, system=SystemConfig(accumulate=3)),
        "init_from": replace(config, init_from=str(out.parent / "none.safetensors")),
        "out": config,
    }[change]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("tensorboard", "writers=tensorboard needs .* pip install tensorboard"),
        ("no hold-out", "is not a folder"),
        ("empty hold-out", "no image lies below"),
        ("channels", "tried can be read: the image has 3 bands and the model takes 4"),
        (
            "bands and range",
            "tried can be read: the image has 3 bands, of which .1, 2, 7. are asked",
        ),
        ("bands", "tried can be read: the image has 3 bands, of which .1, 2, 7. are asked for"),
        ("another model", "of another model; give another out="),
        ("resume", "there is no checkpoint at"),
        ("batch", "batch_size 4 does not divide into 1 processes times 3"),
        ("init_from", "none.safetensors"),
        ("out", "the folder .* cannot be written to .File exists.; give another out="),
    ],
)
def test_what_cannot_work_is_said_before_pictures_are_packed(
    run_config: MakeRun, monkeypatch: pytest.MonkeyPatch, change: str, message: str
) -> None:
    config = _refused(change, run_config(), monkeypatch)
    packed: list[object] = []
    monkeypatch.setattr(train_module, "open_dataset", lambda *given: packed.append(given))
    with pytest.raises(MAEError, match=message):
        train(config)
    assert not packed


def test_a_warm_up_longer_than_the_run_is_warned_of(
    run_config: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    train(run_config(optim=OptimConfig(lr=1e-3, warmup_steps=16)))
    said = [line for line in caplog.messages if "warmup" in line]
    assert said == [
        "optim.warmup_steps=16 is more than steps=8: the learning rate ends at 50 % of its peak"
    ]
    caplog.clear()
    config = run_config(epochs=1, optim=OptimConfig(lr=1e-3, warmup_epochs=4))
    train(replace(config, out=config.out + "2"))
    assert ["warmup_steps=12 is more than steps=3" in line for line in caplog.messages] == [True]


def test_a_checkpoint_with_other_groups_of_parameters_is_refused(run_config: MakeRun) -> None:
    """As those from before tokens decayed: its moments would go to other parameters."""
    config = run_config(eval_every=100)
    train(config)
    path = Path(config.out) / "checkpoint.pt"
    content = load_checkpoint(path)
    decayed, plain = content["optimizers"][0]["param_groups"]
    plain["params"] = [*decayed["params"][:2], *plain["params"]]
    del decayed["params"][:2]
    save_checkpoint(path, content)
    with pytest.raises(CheckpointError, match="doesn't match the size of optimizer's group"):
        begin(config)


def test_a_run_goes_on_without_the_weights_that_it_began_with(
    run_config: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_config()
    train(first)
    weights = tmp_path / "begin.safetensors"
    shutil.copy(Path(first.out) / "weights.safetensors", weights)
    config = run_config(
        out=str(tmp_path / "second"), init_from=str(weights), model=ModelConfig(), eval_every=3
    )
    with monkeypatch.context() as patched:
        stop_at(3, patched)
        assert train(config).stopped_by == signal.SIGTERM
    weights.unlink()
    assert train(replace(config, eval_every=100)).finished
    written = read_weights(tmp_path / "second" / "weights.safetensors")
    assert (written.config, written.record["init_from"]) == (first.model, "begin")
    for change in ("model.depth=3", "model.decoder_depth=2", "model.norm_pix=true"):
        with pytest.raises(CheckpointError, match="of another model; give another out="):
            train(config, **dict([change.split("=")]))


def test_recipes_are_valid_and_unknown_names_and_fields_are_explained() -> None:
    for name in RECIPES:
        assert recipe(name).steps > 0
    with pytest.raises(ConfigError, match="no recipe is called 'big'; choose one of quick"):
        recipe("big")
    with pytest.raises(ConfigError, match="no field lr; did you mean optim.lr"):
        mae(["train", "quick", "lr=3"])
    with pytest.raises(ConfigError, match="not a multiple of the patch side"):
        mae(["train", "quick", 'stages=[{"image_size":100,"share":1.0}]'])


def test_weights_to_begin_with_leave_no_choice_of_the_model() -> None:
    with pytest.raises(ConfigError, match=f"init_from={DEFAULT_WEIGHTS} holds an encoder of anoth"):
        mae(["train", "adapt", "data.folder=PICTURES", "model.depth=3"])


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains(
    name: str, small_config: ModelConfig, picture_folder: Path, tmp_path: Path
) -> None:
    """At a size that takes no time, alone, with everything else as it stands."""
    patch = recipe(name).model.patch_size
    side = max(4 * patch, 32)
    norm_pix = recipe(name).model.norm_pix
    model = replace(small_config, patch_size=patch, image_size=side, norm_pix=norm_pix)
    run = train(
        name, data=picture_folder, model=model, stages=(StageConfig(side),), init_from="",
        out=tmp_path / name, batch_size=4, steps=3, **{"optim.warmup_steps": 1},
    )  # fmt: skip
    assert run.finished
    assert run.config.data.folder == str(picture_folder)
    assert read_weights(tmp_path / name / "weights.safetensors").record["recipe"] == name


def test_a_notebook_trains_and_looks_at_the_run(
    run_config: MakeRun, tmp_path: Path, picture_folder: Path
) -> None:
    config = run_config(ema=0.9)
    run = train(config, data=picture_folder, steps=4, **{"optim.base_lr": 0.0128})
    assert (run.folder, run.finished, run.stopped_by) == (Path(config.out), True, 0)
    assert (run.config.steps, run.config.optim.lr) == (4, 0.0002)
    # What is exported is the average.
    average = load_checkpoint(run.folder / "checkpoint.pt")["ema"]
    own = run.model.state_dict()
    assert all(torch.equal(own[name], average[name]) for name in average)
    assert [line["step"] for line in run.metrics() if "loss" in line] == [2, 4]


def test_none_is_no_value_and_a_folder_no_recipe(run_config: MakeRun) -> None:
    config = run_config(steps=1, model=replace(run_config().model, decoder_mlp_ratio=2.0))
    changes: dict[str, Any] = {"model.decoder_mlp_ratio": None, "data.bands": None, "resume": None}
    run = train(config, **changes)
    assert run.config.model.decoder_mlp_ratio is None
    with pytest.raises(ConfigError, match="is a folder; give '.*config.yaml'"):
        train(run.folder)


def test_a_config_file_repeats_a_run(
    run_config: MakeRun, tmp_path: Path, picture_folder: Path
) -> None:
    again = tmp_path / "again"
    small = _fields(tmp_path / "run", picture_folder)
    assert mae(["train", *small, "steps=5", "data.holdout=", "optim.warmup_epochs=0.5"]) == 0
    assert mae(["train", "--config", str(tmp_path / "run" / "config.yaml"), f"out={again}"]) == 0
    first, second = (read_weights(out / "weights.safetensors") for out in (tmp_path / "run", again))
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)
    assert (first.record["recipe"], first.record["train"]) == ("quick", second.record["train"])
    assert second.record["recipe"] == "quick"


def test_a_config_file_repeats_a_run_that_began_with_weights(
    run_config: MakeRun, tmp_path: Path
) -> None:
    train(run_config(steps=1))
    changes: dict[str, Any] = {"model.decoder_depth": 2, "model.norm_pix": True}
    onward = run_config(init_from=str(tmp_path / "run"), out=str(tmp_path / "onward"), steps=2)
    first = train(onward, **changes)
    second = train(first.folder / "config.yaml", out=tmp_path / "again")
    assert second.config.model == first.config.model
    own, other = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in own)


def test_a_run_of_an_earlier_version_goes_on(
    run_config: MakeRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config(steps=4, eval_every=100)
    train(config)
    path = tmp_path / "run" / "checkpoint.pt"
    content = load_checkpoint(path)
    del content["config"]["writers"]
    del content["levels"]
    content["config"] |= {"steps": 8, "tensorboard": False}
    content["config"]["system"]["shard"] = True
    save_checkpoint(path, content)
    settings = {"recipe": "quick", **content["config"], "data": {"folder": config.data.folder}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert load_yaml(TrainConfig, tmp_path / "config.json").steps == 8
    assert "system.shard=True of an earlier version is left out" in caplog.text
    assert train(replace(config, steps=8)).finished
    record = read_weights(tmp_path / "run" / "weights.safetensors").record
    assert (record["steps"], record["changes"]) == (8, [])


@pytest.mark.parametrize("text", [None, "", "steps: [", "[1]", "speed: 3", "steps: many"])
def test_a_config_file_that_is_none_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError):
        mae(["train", "--config", str(path)])


def test_fields_on_the_command_line_need_a_value() -> None:
    for wrong in ("steps", "steps 3"):
        with pytest.raises(ConfigError, match="is not of the form field=value"):
            mae(["train", "quick", wrong])
    with pytest.raises(ConfigError, match="--config: expected one argument; see mae train --help"):
        mae(["train", "--config"])


def test_training_outside_the_main_thread_leaves_signals_alone(run_config: MakeRun) -> None:
    before = signal.getsignal(signal.SIGTERM)
    runs: list[Run] = []
    thread = threading.Thread(target=lambda: runs.append(train(run_config(steps=1))))
    thread.start()
    thread.join()
    assert runs[0].finished
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_without_what_a_report_needs_says_so_once(
    run_config: MakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = train(run_config(steps=1))
    assert run.finished
    assert not (run.folder / "report.html").exists()
    assert len([text for text in caplog.messages if "pip install matplotlib jinja2" in text]) == 1


def test_a_checkpoint_is_read_once(run_config: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(eval_every=100)
    train(config)
    read: list[Path] = []

    def noted(folder: Path) -> dict[str, Any]:
        read.append(folder)
        return load_latest(folder)

    monkeypatch.setattr(checkpoint, "load_latest", noted)
    train(replace(config, steps=10))
    assert read == [Path(config.out)]


def test_help_names_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert mae(["train"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in RECIPES)


def test_a_training_step_costs_three_forward_passes() -> None:
    config = preset("tiny")
    torch.manual_seed(0)
    model = MaskedAutoencoder(config)
    prefer_fast_attention(model, CPU)  # torch does not count the backward pass of the fused one
    mask = random_mask(2, 196, 0.75, seed=0)
    images = torch.randn(2, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        output = model(images, mask)
        reconstruction_loss(output.pred, model.target(images), output.mask).backward()
    counted = counter.get_total_flops() / 2
    # Less by what no gradient is asked for: the pictures'.
    assert 0.97 < counted / (3 * forward_flops(config, (14, 14), 0.75)) <= 1.0
