"""Masked autoencoders (He et al. 2022): reconstruct images, read and write weights, train.

    import mae_core

    model = mae_core.load("mae-compact")
    mae_core.Reconstructor(model)("cat.jpg", mask_ratio=0.75, seed=2).strip().save("cat.png")

A name is imported when it is first used: `import mae_core` alone, and so `mae --help`, does not
wait for torch and timm. The parts (`mae_core.weights`, `mae_core.images`) have more names.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae_core.config import ModelConfig, TrainConfig, preset
    from mae_core.errors import MAEError
    from mae_core.images import open_image
    from mae_core.model.mae import MaskedAutoencoder
    from mae_core.model.masking import (
        PatchMask,
        block_mask,
        custom_mask,
        draw_mask,
        grid_mask,
        num_visible,
        random_mask,
    )
    from mae_core.model.patches import patchify, unpatchify
    from mae_core.reconstruct import Reconstruction, Reconstructor
    from mae_core.training.train import Run, train
    from mae_core.weights.registry import list_weights, load

# Where each public name is; the imports above say the same to type checkers.
_HOME = {
    "MAEError": "mae_core.errors",
    "MaskedAutoencoder": "mae_core.model.mae",
    "ModelConfig": "mae_core.config",
    "PatchMask": "mae_core.model.masking",
    "Reconstruction": "mae_core.reconstruct",
    "Reconstructor": "mae_core.reconstruct",
    "Run": "mae_core.training.train",
    "TrainConfig": "mae_core.config",
    "block_mask": "mae_core.model.masking",
    "custom_mask": "mae_core.model.masking",
    "draw_mask": "mae_core.model.masking",
    "grid_mask": "mae_core.model.masking",
    "list_weights": "mae_core.weights.registry",
    "load": "mae_core.weights.registry",
    "num_visible": "mae_core.model.masking",
    "open_image": "mae_core.images",
    "patchify": "mae_core.model.patches",
    "preset": "mae_core.config",
    "random_mask": "mae_core.model.masking",
    "train": "mae_core.training.train",
    "unpatchify": "mae_core.model.patches",
}

__all__ = [
    "MAEError",
    "MaskedAutoencoder",
    "ModelConfig",
    "PatchMask",
    "Reconstruction",
    "Reconstructor",
    "Run",
    "TrainConfig",
    "block_mask",
    "custom_mask",
    "draw_mask",
    "grid_mask",
    "list_weights",
    "load",
    "num_visible",
    "open_image",
    "patchify",
    "preset",
    "random_mask",
    "train",
    "unpatchify",
]


def __getattr__(name: str) -> Any:
    """A public name from its module, or a part of the package."""
    part = f"mae_core.{name}"
    try:
        value = (
            getattr(importlib.import_module(_HOME[name]), name)
            if name in _HOME
            else importlib.import_module(part)
        )
    except ModuleNotFoundError as error:
        if error.name != part:
            raise
        raise AttributeError(f"module 'mae_core' has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
