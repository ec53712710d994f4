"""Whether a model draws pixels or per-patch normalised ones, found out by trying it.

Published files of both kinds have the same names and shapes, and a model taken for the wrong
kind draws noise. On a picture as easy as the one here a trained model's prediction is close
to its target, and far from the other one.
"""

import math

import torch
from torch import Tensor

from mae_core.config import ModelConfig
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import random_mask
from mae_core.model.patches import normalize_patches, patchify

# Share of a target's variance that a prediction must explain to count as one of it. Measured:
# `mae-tiny` 0.998 of pixels and -0.38 of normalised ones; a model of its shape trained for 400
# steps on normalised pixels -0.0004 and 0.89; random weights are below 0 for both.
_ENOUGH = 0.3

_MASK_RATIO = 0.5

# Patches along a side: as many as most models are made for, and quick for the others.
_GRID = 14


@torch.inference_mode()
def predicts_normalized_pixels(model: MaskedAutoencoder) -> bool | None:
    """Try a model on an easy picture, dark and bright.

    Takes one forward pass of two pictures.

    Args:
        model: In evaluation mode, on the CPU.

    Returns:
        None if its prediction is neither, as that of untrained weights.
    """
    images = _easy_pictures(model.config)
    grid_size = model.grid_of(images)
    patch_mask = random_mask(len(images), grid_size[0] * grid_size[1], _MASK_RATIO, seed=0)
    latent = model.encode(images, patch_mask)
    pred = model.decode(latent, patch_mask.ids_restore, grid_size)
    patches = patchify(images, model.config.patch_size)
    pixels = _explained(pred, patches)
    normalized = _explained(pred, normalize_patches(patches))
    if not max(pixels, normalized) > _ENOUGH:
        return None
    return normalized > pixels


def _easy_pictures(config: ModelConfig) -> Tensor:
    """(2, C, H, W) slow waves, normalised as the model's images are."""
    line = torch.linspace(0, 1, config.patch_size * min(config.grid_size, _GRID))
    channel = torch.arange(config.in_chans).view(-1, 1, 1)
    # Each channel's waves lie in a direction of their own.
    x, y = torch.cos(channel.float()) * line, torch.sin(channel.float() + 1) * line[:, None]
    waves = torch.sin(math.pi * (x + y) + channel)  # (C, H, W)
    pictures = torch.stack((0.3 + 0.25 * waves, 0.7 + 0.25 * waves))
    mean = torch.tensor(config.mean).view(1, -1, 1, 1)
    return (pictures - mean) / torch.tensor(config.std).view(1, -1, 1, 1)


def _explained(pred: Tensor, target: Tensor) -> float:
    """Share of the target's variance, at most 1; below 0 if its mean would be a better guess."""
    return 1 - ((pred - target).square().mean() / target.var()).item()
