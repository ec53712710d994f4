"""Reconstruction losses: functions of (pred, target, mask)."""

from typing import get_args

import torch
from torch import Tensor

from mae_core.config import LossKind
from mae_core.errors import ConfigError

# Added to an image's error before the logarithm, so that nearly perfect images do not dominate.
LOG_MSE_FLOOR = 0.01

# In `seam_loss`, where images are plain and where seams are right.
_SEAM_TRUTH_FLOOR, _SEAM_FLOOR = 0.01, 0.05


def reconstruction_loss(
    pred: Tensor,
    target: Tensor,
    mask: Tensor,
    visible_weight: float = 0.0,
    kind: LossKind = "mse",
) -> Tensor:
    """The error on removed patches, plus `visible_weight` times that on visible ones.

    The paper's loss is `mse` with weight 0: nothing then asks the model to reproduce the
    patches it sees, and they come out speckled. A small weight cures that.

    Args:
        pred: (N, L, P).
        target: (N, L, P).
        mask: (N, L), 1 = removed; at least one patch removed, or the loss is NaN.
        visible_weight: Weight of the visible patches' mean error; 0 or more.
        kind: `mse` is the mean squared error. `log_mse` is the mean over images of the
            logarithm of each one's own, plus 0.01, so that plain images count as much as busy
            ones, as in a mean PSNR; an image's visible error is divided by what the logarithm
            divides the gradient of its removed error by, so that the weight means the same.

    Returns:
        () float32.
    """
    error = (pred.float() - target.float()).square().mean(dim=-1)  # (N, L)
    visible = 1 - mask
    if kind == "mse":
        loss = (error * mask).sum() / mask.sum()
        if visible_weight:
            loss = loss + visible_weight * (error * visible).sum() / visible.sum()
        return loss
    if kind == "log_mse":
        removed = (error * mask).sum(dim=-1) / mask.sum(dim=-1) + LOG_MSE_FLOOR  # (N,)
        loss = removed.log()
        if visible_weight:
            seen = (error * visible).sum(dim=-1) / visible.sum(dim=-1)  # (N,)
            loss = loss + visible_weight * seen / removed.detach()
        return loss.mean()
    raise ConfigError(f"no loss is called {kind!r}; choose {' or '.join(get_args(LossKind))}")


def seam_loss(pixels: Tensor, images: Tensor, mask: Tensor, patch_size: int) -> Tensor:
    """How wrong the pasted images' jumps across the borders of removed patches are.

    A squared error of pixels does not ask neighbours to fit each other, and patches that are
    predicted one by one show their borders. This is the mean over images and over strips of 1, 2
    and 4 pixels on each side of a border, at most half a patch, of log(e / (t + 0.01) + 0.05):
    e is the mean squared difference of predicted and true jumps between the strips' means, across
    borders of which at least one side is removed, t the mean square of the true ones. Without the
    wider strips the outermost pixels alone are moved, and the borders show as lines.

    Args:
        pixels: (N, C, H, W), predicted, normalised.
        images: (N, C, H, W), normalised; more than one patch.
        mask: (N, L), 1 = removed; at least one patch removed.
        patch_size: Side of a patch in pixels.

    Returns:
        () float32.
    """
    h, w = (side // patch_size for side in images.shape[-2:])
    removed, lost = mask.reshape(-1, 1, h, w), (pixels.float() - images.float())
    losses = []
    for width in [1, *(width for width in (2, 4) if width <= patch_size // 2)]:
        # Sums of errors and of truths, and their number.
        sums = torch.zeros(3, len(images), device=images.device)
        for hole, error, image in (
            (removed, lost, images), (removed.mT, lost.mT, images.mT)
        ):  # fmt: skip
            hidden = hole.repeat_interleave(patch_size, dim=3)
            one, other = hidden[:, :, :-1], hidden[:, :, 1:]  # (N, 1, h - 1, W)
            either = torch.maximum(one, other).expand(-1, images.shape[1], -1, -1)
            (wrong_one, wrong_other), (true_one, true_other) = (
                _strips(values, width, patch_size) for values in (error, image)
            )
            wrong = wrong_other * other - wrong_one * one
            true = (true_other - true_one) * either
            sums = sums + torch.stack(
                [value.sum(dim=(1, 2, 3)) for value in (wrong.square(), true.square(), either)]
            )
        e, t = sums[:2] / sums[2]
        losses.append((e / (t + _SEAM_TRUTH_FLOOR) + _SEAM_FLOOR).log().mean())
    return torch.stack(losses).mean()


def _strips(values: Tensor, width: int, patch_size: int) -> tuple[Tensor, Tensor]:
    """Means of the last rows above each border and of the first below it: 2 x (N, C, h - 1, W)."""
    rows = values.unflatten(2, (-1, patch_size))
    return rows[:, :, :-1, -width:].mean(dim=3), rows[:, :, 1:, :width].mean(dim=3)


def error_of(losses: Tensor, kind: LossKind) -> Tensor:
    """Losses as errors above 0, whose ratio says by how much one is larger."""
    return losses.exp() if kind == "log_mse" else losses
