"""Adversarial fine-tuning: its gradient, what learns by it, and runs that go on."""

import os
import re
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mae_core.config import (
    AdversarialConfig,
    MaskConfig,
    ModelConfig,
    OptimConfig,
    StageConfig,
    TrainConfig,
)
from mae_core.errors import CheckpointError, ConfigError
from mae_core.model.losses import seam_loss
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import PatchMask, random_mask
from mae_core.model.patches import pixel_mask, unpatchify
from mae_core.training.adversarial import CELL, Adversaries, Discriminator, _likeness
from mae_core.training.pretraining import pixel_loss
from mae_core.training.report import read_metrics
from mae_core.training.train import train
from mae_core.weights.files import load_checkpoint, load_latest, save_checkpoint
from mae_core.weights.names import is_decoder_key
from mae_core.weights.registry import read_weights
from tests.mae_core.conftest import MakeRun
from tests.mae_core.test_distributed import ROOT, torchrun, train_here
from tests.mae_core.test_training import stop_at

SHARP = AdversarialConfig(weight=0.5, begin=1, ramp=2, width=4)


@pytest.fixture
def make_sharp(run_config: MakeRun) -> MakeRun:
    """A run against a discriminator; fields can be changed."""

    def make(**changes: object) -> object:
        fields: dict[str, object] = {
            "adversarial": SHARP, "seam_weight": 0.3, "loss": "log_mse", "ema": 0.9,
            "optim": OptimConfig(lr=2e-3, betas=(0.5, 0.95), warmup_steps=2), "eval_every": 100,
        }  # fmt: skip
        return run_config(**{**fields, **changes})

    return make  # type: ignore[return-value]


def build(config: ModelConfig, adversarial: AdversarialConfig, **fields: object) -> Adversaries:
    """Both models, in evaluation mode: the discriminator's spectral norms stay as they are."""
    torch.manual_seed(1)
    run = TrainConfig(
        model=config, adversarial=adversarial, loss="log_mse", visible_weight=0.1,
        stages=(StageConfig(48),), **fields,  # type: ignore[arg-type]
    )  # fmt: skip
    adversaries = Adversaries(MaskedAutoencoder(config), run)
    adversaries.train()
    first = torch.randn(2, 3, 48, 48)
    adversaries.discriminator(first, first)  # a first iteration of the norms
    return adversaries.eval()


def batch(n: int = 4) -> tuple[torch.Tensor, PatchMask]:
    torch.manual_seed(2)
    return torch.randn(n, 3, 48, 48), random_mask(n, 36, 0.7, seed=range(n))


@pytest.mark.parametrize(("adversarial", "inside"), [(AdversarialConfig(), True), (SHARP, False)])
def test_steps_inside_patches_are_left_to_the_discriminator(
    small_config: ModelConfig, adversarial: AdversarialConfig, inside: bool
) -> None:
    images, mask = batch()
    model = MaskedAutoencoder(small_config)
    pred = torch.randn(4, 36, 192)
    run = TrainConfig(model=small_config, adversarial=adversarial, loss="log_mse", seam_weight=2.0)
    plain = pixel_loss(replace(run, seam_weight=0.0), model, pred, images, mask)
    seams = (pixel_loss(run, model, pred, images, mask) - plain) / 2
    pixels = unpatchify(pred, 8, (6, 6))
    expected = seam_loss(pixels, images, mask.mask, 8, inside=inside)
    torch.testing.assert_close(seams, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_gradient_is_the_sum_of_both_with_the_lengths_that_were_asked_for(
    small_config: ModelConfig, weight: float
) -> None:
    both = build(small_config, SHARP, seam_weight=0.3)
    images, mask = batch()
    values = both(images, mask, (3, 5), weight)
    values[0].backward()
    found = [p.grad for p in both.model.parameters() if p.grad is not None]

    # The same by hand: one backward pass for each image and part of the loss.
    pred = both.model(images, mask).pred
    removed = pixel_mask(mask.mask, (6, 6), 8)
    total = torch.zeros(())
    for i in range(len(images)):
        leaf = pred[i : i + 1].detach().requires_grad_()
        rows = mask.rows(i, i + 1)
        rest = pixel_loss(both._config, both.model, leaf, images[i : i + 1], rows) / len(images)
        (gradient,) = torch.autograd.grad(rest, leaf)
        pasted = torch.where(removed[i : i + 1].bool(), unpatchify(leaf, 8), images[i : i + 1])
        pasted, whole = (
            F.pad(of, (5, 11, 3, 13), mode="reflect") for of in (pasted, images[i : i + 1])
        )
        scores = both.discriminator(pasted, whole)
        cells = F.avg_pool2d(F.pad(removed[i : i + 1], (5, 11, 3, 13)), CELL)
        (sharper,) = torch.autograd.grad(-(scores * cells).sum(), leaf)
        together = gradient + weight * sharper * gradient.norm() / sharper.norm()
        total = total + (pred[i : i + 1] * together).sum()
    expected = torch.autograd.grad(total, [p for p in both.model.parameters() if p.requires_grad])
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_the_figures_are_those_of_the_pixels_and_of_the_cells_that_were_removed(
    small_config: ModelConfig,
) -> None:
    both = build(small_config, SHARP)
    images, mask = batch()
    loss, against, real, rebuilt = both(images, mask, (0, 15), 0.5).tolist()
    with torch.no_grad():
        pred = both.model(images, mask).pred
        rest = pixel_loss(both._config, both.model, pred, images, mask)
        removed = pixel_mask(mask.mask, (6, 6), 8)
        pasted = torch.where(removed.bool(), unpatchify(pred, 8), images)
        wholes = [F.pad(of, (15, 1, 0, 16), mode="reflect") for of in (images, pasted)]
        true, false = (both.discriminator(of, wholes[0]) for of in wholes)
    means = []
    for i in range(len(images)):
        figures, whole = torch.zeros(3), 0.0
        for y in range(4):
            for x in range(4):
                columns = slice(max(16 * x - 15, 0), 16 * x + 1)
                share = removed[i, 0, 16 * y : 16 * y + 16, columns].sum() / 256
                a, b = true[i, 0, y, x], false[i, 0, y, x]
                figures += share * torch.stack(((1 - a).clamp(0) + (1 + b).clamp(0), a, b))
                whole += share.item()
        means.append(figures / max(whole, 1))
    expected = [rest.item(), *torch.stack(means).mean(dim=0).tolist()]
    assert [loss, against, real, rebuilt] == pytest.approx(expected, rel=1e-4)


def test_what_is_the_same_in_every_patch_is_seen() -> None:
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(2, 3, 96, 96, generator=generator)
    tile = torch.randn(2, 3, 16, 16, generator=generator).repeat(1, 1, 6, 6)
    signs = torch.ones(6, 6)
    signs[::2] = -1
    stripes = tile * signs.repeat_interleave(16, 0).repeat_interleave(16, 1)
    inside = (slice(None), slice(None), slice(10, 14), slice(10, 14))  # away from the wrapped edge
    alike = {
        name: _likeness(images, 16)[inside].mean(dim=(0, 2, 3)).tolist()
        for name, images in {
            "noise": noise, "tile": tile, "stripes": stripes, "faint": 1e-3 * tile,
        }.items()
    }  # fmt: skip
    assert alike["noise"] == pytest.approx([0] * 6, abs=0.15)
    assert alike["tile"] == pytest.approx([1] * 6, abs=0.05)
    # Right, down, both diagonals, two to the right, two down.
    assert alike["stripes"] == pytest.approx([1, -1, -1, -1, 1, 1], abs=0.3)
    assert alike["faint"] == pytest.approx([0] * 6, abs=0.05)


def test_the_frame_of_an_image_is_judged_as_its_middle_is(small_config: ModelConfig) -> None:
    images = torch.randn(8, 3, 48, 48, generator=torch.Generator().manual_seed(3))
    total = torch.zeros(48, 48)
    for seed in range(8):
        # The random weights of one look more to one side than to the other.
        torch.manual_seed(seed)
        discriminator = Discriminator(3, 4, small_config.patch_size)
        for offset in range(CELL):
            whole = images.clone().requires_grad_()
            padded = F.pad(whole, (offset, CELL - offset, offset, CELL - offset), mode="reflect")
            scores = discriminator(padded, padded.detach())
            (gradient,) = torch.autograd.grad(scores.sum(), whole)
            total += gradient.abs().mean(dim=(0, 1))
    middle = total[16:32, 16:32].mean()
    for edge in (total[0], total[-1], total[:, 0], total[:, -1]):
        assert 0.5 * middle < edge.mean() < 2 * middle


def test_parts_of_a_batch_add_up_to_it(small_config: ModelConfig) -> None:
    both = build(small_config, replace(SHARP, features_weight=0.5), freeze_encoder=True)
    images, mask = batch()
    gradients, values = [], []
    for parts in ([slice(0, 4)], [slice(0, 2), slice(2, 4)]):
        both.zero_grad()
        losses = [both(images[p], mask.rows(p.start, p.stop), (3, 5), 0.5) for p in parts]
        mean = torch.stack(losses).mean(dim=0)
        mean[0].backward()
        values.append(mean.detach())
        gradients.append([p.grad.clone() for p in both.parameters() if p.grad is not None])
    torch.testing.assert_close(values[0], values[1])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_the_discriminator_learns_from_its_own_loss_alone(small_config: ModelConfig) -> None:
    both = build(small_config, SHARP)
    images, mask = batch()
    gradients = []
    for weight in (0.0, 0.5):
        both.zero_grad()
        both(images, mask, (3, 5), weight)[0].backward()
        gradients.append([p.grad.clone() for p in both.discriminator.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
        # What is the same for both images cancels.
        assert one.ndim == 1 or one.abs().sum() > 0


def test_a_discriminator_tells_photographs_from_blurred_ones() -> None:
    torch.manual_seed(0)
    net = Discriminator(3, 8, 16)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, betas=(0.5, 0.95))

    def scores() -> tuple[torch.Tensor, torch.Tensor]:
        sharp = F.interpolate(torch.randn(8, 3, 24, 24), scale_factor=2)
        return net(sharp, sharp), net(F.avg_pool2d(sharp, 5, stride=1, padding=2), sharp)

    for _ in range(60):
        sharp, blurred = scores()
        loss = F.relu(1 - sharp).mean() + F.relu(1 + blurred).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sharp, blurred = scores()
    assert sharp.shape == (8, 1, 3, 3)
    assert sharp.mean() > 0.5
    assert blurred.mean() < -0.5


def test_features_of_the_same_image_cost_nothing(small_config: ModelConfig) -> None:
    both = build(small_config, replace(SHARP, features_weight=1.0), freeze_encoder=True)
    images, _ = batch()
    assert both._feature_loss(images, images).item() == pytest.approx(0, abs=1e-6)
    other = images.roll(1, dims=0).requires_grad_()
    loss = both._feature_loss(other, images)
    loss.backward()
    assert loss > 0.01
    assert other.grad is not None
    assert other.grad.abs().sum() > 0


def test_a_run_sharpens_and_leaves_the_encoder_as_it_was(
    make_sharp: MakeRun, tmp_path: Path
) -> None:
    begun = train(make_sharp(adversarial=AdversarialConfig(), out=str(tmp_path / "begun")))
    frozen = replace(SHARP, features_weight=0.2)
    run = train(make_sharp(init_from=str(begun.folder), freeze_encoder=True, adversarial=frozen))
    before, after = begun.model.state_dict(), run.model.state_dict()
    for name, value in before.items():
        learns = is_decoder_key(name) and name != "decoder_pos_embed"
        assert torch.equal(value, after[name]) == (not learns), name
    lines = [line for line in run.metrics() if "loss" in line]
    for name in ("loss_discriminator", "score_real", "score_rebuilt"):
        assert all(name in line for line in lines)
    assert load_latest(run.folder)["wrapper"].keys() == {
        key for key in Adversaries(run.model, run.config).state_dict() if key[:6] != "model."
    }
    assert read_weights(run.folder).record["train"]["adversarial"]["weight"] == 0.5
    assert "discriminator" not in " ".join(read_weights(run.folder).state)


@pytest.mark.parametrize("stopped_after", [3, 6])
def test_a_stopped_run_ends_in_the_same_bits(
    make_sharp: MakeRun, tmp_path: Path, stopped_after: int
) -> None:
    whole = make_sharp(out=str(tmp_path / "whole"))
    train(whole)
    parts = make_sharp(out=str(tmp_path / "parts"), eval_every=stopped_after)
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_at(stopped_after, monkeypatch)
        assert train(parts).stopped_by == signal.SIGTERM
    assert load_latest(parts.out)["step"] == stopped_after + 1
    assert train(parts).finished
    states = [load_latest(config.out) for config in (whole, parts)]
    for part in ("model", "wrapper", "ema"):
        first, second = (state[part] for state in states)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), part
    assert len(states[0]["optimizers"]) == 2


def test_two_processes_do_what_one_does(picture_folder: Path, tmp_path: Path) -> None:
    fields = (
        "optim.name=adamw", "optim.lr=2e-4", "adversarial.weight=0.3", "adversarial.begin=2",
        "adversarial.ramp=3", "adversarial.width=4", "freeze_encoder=true",
        "adversarial.features_weight=0.1",
    )  # fmt: skip
    train_here(picture_folder, tmp_path / "one", *fields)
    done = subprocess.run(
        torchrun(picture_folder, tmp_path / "two", *fields),
        cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # AdamW makes steps of rounding where a gradient is almost 0, so parameters say little; the
    # gradients of both parts, weighed by the image, are in the norm.
    logged = [
        [line for line in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in line]
        for name in ("one", "two")
    ]
    assert [len(lines) for lines in logged] == [12, 12]
    bounds = {"loss": 1e-5, "grad_norm": 3e-5, "loss_discriminator": 2e-3}
    for name, bound in bounds.items():
        first, second = ([line[name] for line in lines] for lines in logged)
        assert second == pytest.approx(first, rel=bound), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adversarial": replace(SHARP, features_weight=1.0)}, "give freeze_encoder=true too"),
        ({"stages": (StageConfig(16),)}, "images of at least 32 pixels, and a stage has 16;"),
        ({"stages": ()}, "shares must add up to 1"),
        ({"norm_pix": True}, "adversarial.width is 4, for models that predict pixels"),
        ({"loss": "mse"}, "give loss=log_mse too, or seam_weight=0"),
    ],
)
def test_runs_that_cannot_be(
    make_sharp: MakeRun, small_config: ModelConfig, changes: dict[str, object], message: str
) -> None:
    if changes.pop("norm_pix", False):
        changes |= {"model": replace(small_config, norm_pix=True), "seam_weight": 0.0}
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_sharp(**changes)


def test_weights_of_another_target_are_taken_once_it_is_changed(
    make_sharp: MakeRun, small_config: ModelConfig, tmp_path: Path
) -> None:
    plain = make_sharp(adversarial=AdversarialConfig(), seam_weight=0.0, steps=2)
    other = replace(plain, model=replace(small_config, norm_pix=True), out=str(tmp_path / "other"))
    train(other)
    config = make_sharp(init_from=other.out, steps=2)
    with pytest.raises(ConfigError, match="begin with weights that predict pixels"):
        train(config)
    run = train(config, **{"model.norm_pix": False})
    assert not run.model.config.norm_pix


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"adversarial": AdversarialConfig()}, "adversarial.width"),
        ({"adversarial": replace(SHARP, width=8)}, "adversarial.width"),
        ({"freeze_encoder": True}, "freeze_encoder"),
    ],
)
def test_a_checkpoint_of_a_run_with_other_helpers_is_refused(
    make_sharp: MakeRun, changes: dict[str, object], what: str
) -> None:
    config = make_sharp(steps=2)
    train(config)
    with pytest.raises(CheckpointError, match=f"of another .*{what}"):
        train(replace(config, **changes))  # type: ignore[type-var]


@pytest.mark.parametrize("change", [None, {}, {"discriminator.score.bias": torch.zeros(3)}])
def test_a_checkpoint_without_its_discriminator_is_refused(
    make_sharp: MakeRun, change: dict[str, torch.Tensor] | None
) -> None:
    config = make_sharp(steps=2)
    train(config)
    path = Path(config.out) / "checkpoint.pt"
    content = load_checkpoint(path)
    content.pop("format")
    content.pop("wrapper")
    save_checkpoint(path, content if change is None else content | {"wrapper": change})
    with pytest.raises(CheckpointError, match="is damaged or of .*; delete it to go on from"):
        train(config)


def test_masks_that_remove_almost_nothing_are_no_trouble(make_sharp: MakeRun) -> None:
    run = train(make_sharp(mask=MaskConfig(ratio=(0.03, 0.06)), steps=3))
    assert all(torch.isfinite(value).all() for value in run.model.state_dict().values())
