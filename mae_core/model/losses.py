"""Reconstruction losses: functions of (pred, target, mask)."""

from typing import get_args

import torch
from torch import Tensor

from mae_core.config import LossKind
from mae_core.errors import ConfigError
from mae_core.model.patches import pixel_mask

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


def seam_loss(
    pixels: Tensor, images: Tensor, mask: Tensor, patch_size: int, *, inside: bool = True
) -> Tensor:
    """How wrong the steps from pixel to pixel of the pasted images are.

    A squared error of pixels does not ask neighbours to fit each other, and patches that are
    predicted one by one show their borders. This is the mean over images, and over steps across
    borders of patches and those inside, of log(e / (t + 0.01) + 0.05): e is the mean squared error
    of the differences of neighbouring pixels, of which at least one is removed, t the mean square
    of the true ones. Without the steps inside the outermost pixels alone are moved, and show as
    lines.

    Args:
        pixels: (N, C, H, W), predicted, normalised.
        images: (N, C, H, W), normalised.
        mask: (N, L), 1 = removed; at least one patch removed.
        patch_size: Side of a patch in pixels.
        inside: Whether steps inside patches count too, as much as those across borders.

    Returns:
        () float32.
    """
    h, w = (side // patch_size for side in images.shape[-2:])
    removed = pixel_mask(mask, (h, w), patch_size)  # (N, 1, H, W)
    lost, images = removed * (pixels.float() - images.float()), images.float()
    losses = []
    for across in (True, False) if inside else (True,):
        # Sums of squared errors and of true squares, and their number.
        sums = torch.zeros(3, len(images), device=images.device)
        for hole, error, true in ((removed, lost, images), (removed.mT, lost.mT, images.mT)):
            place = torch.arange(1, hole.shape[2], device=images.device) % patch_size
            at = ((place == 0) == across).nonzero()[:, 0]
            either = torch.maximum(hole[:, :, at], hole[:, :, at + 1]).expand_as(error[:, :, at])
            steps = [values[:, :, at + 1] - values[:, :, at] for values in (error, true)]
            squares = [step.square() * either for step in steps]
            sums = sums + torch.stack([values.sum(dim=(1, 2, 3)) for values in (*squares, either)])
        # None at all in an image of one patch, or in patches of one pixel.
        e, t = sums[:2] / sums[2].clamp(min=1)
        losses.append((e / (t + _SEAM_TRUTH_FLOOR) + _SEAM_FLOOR).log().mean())
    return torch.stack(losses).mean()


def error_of(losses: Tensor, kind: LossKind) -> Tensor:
    """Losses as errors above 0, whose ratio says by how much one is larger."""
    return losses.exp() if kind == "log_mse" else losses
