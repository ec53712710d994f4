"""Masked autoencoders (He et al. 2022): see a picture rebuilt, train your own.

from mae_core import Reconstructor, load_pretrained
r = Reconstructor(load_pretrained().build())
out = r("photo.jpg", mask_ratio=0.75, seed=2)
out.panels()["pasted"].save("pasted.png")
"""

import os
import sys

# For `python -m mae_core.train` and its like only, never for programs that import the library.
# OpenMP's threads spin at each barrier until the last of them arrives. If another program occupies
# a core, that one is not scheduled and the spinning wastes its time: a step takes several times as
# long. libgomp reads the variables when torch is imported, so they cannot be set later.
if "-m" in sys.orig_argv[:-1] and "OMP_WAIT_POLICY" not in os.environ:
    _command = sys.orig_argv[sys.orig_argv.index("-m") + 1]
    if _command == __name__ or _command.startswith(f"{__name__}."):
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")

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
from mae_core.images import FITS, ImageLimits, decode_image
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
from mae_core.rasters import open_picture
from mae_core.reconstruct import (
    MAX_IMAGE_SIZE,
    MAX_PATCHES,
    NORM_PIX_VIEWS,
    Rebuilt,
    Reconstruction,
    ReconstructionRequest,
    Reconstructor,
)
from mae_core.value_range import RangeSpec
from mae_core.weights.hub import choose_files, is_repository
from mae_core.weights.registry import (
    DEFAULT_WEIGHTS,
    WeightsEntry,
    find_weights,
    list_weights,
    load_pretrained,
    locate_weights,
    weights_name,
)
from mae_core.weights.saved import Weights, load_weights
from mae_core.weights.transfer import is_offline

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
    "find_weights",
    "grid_mask",
    "is_offline",
    "is_repository",
    "list_weights",
    "load_pretrained",
    "load_weights",
    "locate_weights",
    "mask_from_noise",
    "num_visible",
    "open_picture",
    "patchify",
    "preset",
    "random_mask",
    "unpatchify",
    "weights_name",
]
