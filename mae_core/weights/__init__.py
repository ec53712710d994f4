"""Weights in any published format: `load` opens them by name, path or repository."""

from mae_core.weights.files import (
    CHECKPOINT_FILE,
    HUGGINGFACE_FILES,
    PREVIOUS_CHECKPOINT_FILE,
    RUN_FILES,
    SIDECAR_FILES,
    WEIGHTS_FILE,
)
from mae_core.weights.formats import Hints, Kind, Weights, save_classifier, save_weights
from mae_core.weights.hub import (
    UPLOAD_STATUSES,
    choose_files,
    is_offline,
    is_repository,
    open_hub,
    reason_of,
)
from mae_core.weights.names import is_decoder_key
from mae_core.weights.registry import (
    DEFAULT_WEIGHTS,
    WeightsEntry,
    find,
    list_weights,
    load,
    locate,
    read_weights,
    weights_name,
)
from mae_core.weights.web import WEB_PROPERTY, WebLoss, export_web

__all__ = [
    "CHECKPOINT_FILE",
    "DEFAULT_WEIGHTS",
    "HUGGINGFACE_FILES",
    "PREVIOUS_CHECKPOINT_FILE",
    "RUN_FILES",
    "SIDECAR_FILES",
    "UPLOAD_STATUSES",
    "WEB_PROPERTY",
    "WEIGHTS_FILE",
    "Hints",
    "Kind",
    "WebLoss",
    "Weights",
    "WeightsEntry",
    "choose_files",
    "export_web",
    "find",
    "is_decoder_key",
    "is_offline",
    "is_repository",
    "list_weights",
    "load",
    "locate",
    "open_hub",
    "read_weights",
    "reason_of",
    "save_classifier",
    "save_weights",
    "weights_name",
]
