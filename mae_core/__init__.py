"""Masked autoencoders (He et al. 2022): reconstruct images, read and write weights, train.

    import mae_core

    model = mae_core.load("mae-tiny")
    mae_core.Reconstructor(model)("cat.jpg", mask_ratio=0.75, seed=2).strip().save("cat.png")

A name is imported with its module when it is first used: `import mae_core` alone, and so
`mae --help`, does not wait for torch and timm. The parts (`mae_core.weights`, `mae_core.images`)
have more names than these.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae_core.config import PRESETS, ModelConfig, preset
    from mae_core.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        DeviceError,
        DownloadError,
        HubError,
        ImageError,
        ImageFormatError,
        ImageLimitError,
        MAEError,
        MaskError,
        PatchError,
        TrainingError,
    )
    from mae_core.images import FITS, open_image
    from mae_core.measurements import RangeSpec
    from mae_core.model.mae import MAEOutput, MaskedAutoencoder
    from mae_core.model.masking import (
        MAX_SEED,
        STRATEGIES,
        PatchMask,
        block_mask,
        custom_mask,
        draw_mask,
        grid_mask,
        mask_from_noise,
        num_visible,
        random_mask,
    )
    from mae_core.model.patches import patchify, unpatchify
    from mae_core.photographs import ImageLimits, decode_image
    from mae_core.reconstruct import (
        MAX_IMAGE_SIZE,
        MAX_PATCHES,
        NORM_PIX_VIEWS,
        Rebuilt,
        Reconstruction,
        ReconstructionRequest,
        Reconstructor,
    )
    from mae_core.weights.formats import Weights
    from mae_core.weights.hub import choose_files, is_offline, is_repository
    from mae_core.weights.registry import (
        DEFAULT_WEIGHTS,
        WeightsEntry,
        find,
        list_weights,
        locate,
        read_weights,
        weights_name,
    )

# Where each public name is; the imports above say the same to type checkers.
_NAMES = {
    "config": ("PRESETS", "ModelConfig", "preset"),
    "errors": (
        "CheckpointError", "ConfigError", "DataError", "DeviceError", "DownloadError", "HubError",
        "ImageError", "ImageFormatError", "ImageLimitError", "MAEError", "MaskError", "PatchError",
        "TrainingError",
    ),
    "images": ("FITS", "open_image"),
    "measurements": ("RangeSpec",),
    "photographs": ("ImageLimits", "decode_image"),
    "model.mae": ("MAEOutput", "MaskedAutoencoder"),
    "model.masking": (
        "MAX_SEED", "STRATEGIES", "PatchMask", "block_mask", "custom_mask", "draw_mask",
        "grid_mask", "mask_from_noise", "num_visible", "random_mask",
    ),
    "model.patches": ("patchify", "unpatchify"),
    "reconstruct": (
        "MAX_IMAGE_SIZE", "MAX_PATCHES", "NORM_PIX_VIEWS", "Rebuilt", "Reconstruction",
        "ReconstructionRequest", "Reconstructor",
    ),
    "weights.hub": ("choose_files", "is_offline", "is_repository"),
    "weights.registry": (
        "DEFAULT_WEIGHTS", "WeightsEntry", "find", "list_weights", "read_weights",
        "locate", "weights_name",
    ),
}  # fmt: skip
_HOME = {name: f"mae_core.{module}" for module, names in _NAMES.items() for name in names}

__all__ = [
    "DEFAULT_WEIGHTS",
    "FITS",
    "MAX_IMAGE_SIZE",
    "MAX_PATCHES",
    "MAX_SEED",
    "NORM_PIX_VIEWS",
    "PRESETS",
    "STRATEGIES",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "DownloadError",
    "HubError",
    "ImageError",
    "ImageFormatError",
    "ImageLimitError",
    "ImageLimits",
    "MAEError",
    "MAEOutput",
    "MaskError",
    "MaskedAutoencoder",
    "ModelConfig",
    "PatchError",
    "PatchMask",
    "RangeSpec",
    "Rebuilt",
    "Reconstruction",
    "ReconstructionRequest",
    "Reconstructor",
    "TrainingError",
    "Weights",
    "WeightsEntry",
    "block_mask",
    "choose_files",
    "custom_mask",
    "decode_image",
    "draw_mask",
    "find",
    "grid_mask",
    "is_offline",
    "is_repository",
    "list_weights",
    "locate",
    "mask_from_noise",
    "num_visible",
    "open_image",
    "patchify",
    "preset",
    "random_mask",
    "read_weights",
    "unpatchify",
    "weights_name",
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
