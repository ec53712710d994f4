"""Weights (a model, for use) and checkpoints (a run, to go on with) on disk, of every format.

`read_contents` opens whatever published MAE weights come in, found by content; `load_weights`
gives a model that can reconstruct. Our own weights are one safetensors file whose header explains
it; a checkpoint is a torch file with the one before it kept beside it. Files are written under a
temporary name, flushed to the disk and renamed, so a name never holds half a file.
"""

from mae_core.checkpoint.contents import Contents, Hints, Kind
from mae_core.checkpoint.files import write_atomically
from mae_core.checkpoint.reading import read_contents
from mae_core.checkpoint.runs import (
    CHECKPOINT_FILE,
    PREVIOUS_CHECKPOINT_FILE,
    load_checkpoint,
    load_latest,
    save_checkpoint,
)
from mae_core.checkpoint.weights import Weights, load_weights, save_weights

__all__ = [
    "CHECKPOINT_FILE",
    "PREVIOUS_CHECKPOINT_FILE",
    "Contents",
    "Hints",
    "Kind",
    "Weights",
    "load_checkpoint",
    "load_latest",
    "load_weights",
    "read_contents",
    "save_checkpoint",
    "save_weights",
    "write_atomically",
]
