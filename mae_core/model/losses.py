"""Reconstruction losses: functions of (pred, target, mask)."""

from typing import get_args

from torch import Tensor

from mae_core.config import LossKind
from mae_core.errors import ConfigError

# Added to an image's error before the logarithm, so that nearly perfect images do not dominate.
LOG_MSE_FLOOR = 0.01


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


def error_of(losses: Tensor, kind: LossKind) -> Tensor:
    """Losses as errors above 0, whose ratio says by how much one is larger."""
    return losses.exp() if kind == "log_mse" else losses
