"""Models on ZeroGPU, where a GPU is lent for a moment, to another process.

On a ZeroGPU Space the package `spaces`, which the platform installs, pretends that there is a
GPU. A function decorated by it is run in a process forked from this one that has a real one; the
process is kept, and forked again later, as the platform likes. So

* what runs the model is the one decorated function, and nothing else is;
* arguments and results are sent as bytes: pixels, masks and pixels. A model never is: the worker
  has those that were there when it was forked, and reads the others from their files;
* a model of the main thread is put on "cuda" at the start, which moves it to the GPU as soon as a
  worker begins. In other threads nothing pretends, so that models read there stay on the CPU
  until a worker wants them. The numbers of a model on "cuda" are never touched in this process:
  they are no numbers here;
* the visitor whose time is spent is the one whose request is in this context (`contextvars`).
  Requests of two visitors therefore never share a pass.

Elsewhere nothing of this is used, and `spaces` is not imported.
"""

import importlib
import itertools
import logging
import os
import pickle
import re
import threading
from typing import Literal
from weakref import WeakValueDictionary

import torch
from cachetools import LRUCache, cached
from torch import Tensor

from mae_core import MAEError, MaskedAutoencoder, PatchMask, Reconstructor, load
from mae_core.reconstruct import Rebuilt

_logger = logging.getLogger(__name__)

# As `spaces` decides it.
ACTIVE = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")

# Seconds of a GPU that are asked for, at least and for each gigabyte of the model, which may have
# to be moved or read. Who asks for less waits less; how little would do, nobody has measured yet.
_BASE_SECONDS, _SECONDS_PER_GB = 10, 5

# Of models that a worker had to read itself.
_WORKER_BYTES = 8 * 10**9

# How the platform says when a visitor's share is renewed.
_WAIT = re.compile(r"Try again in ((?:\d+ days?, )?\d+:\d\d:\d\d)")

Reason = Literal["quota", "busy", "failed"]

_SENTENCES: dict[Reason, str] = {
    "quota": "your share of this Space's GPU time is used up; try again {when}, or log in to "
    "Hugging Face, which gives you more",
    "busy": "no GPU was free within the time that this Space waits for one; try again {when}",
    "failed": "the GPU that this Space was lent did not bring a picture; try again {when}",
}


class NoGPUError(MAEError):
    """The platform lent no GPU, or it brought nothing.

    Attributes:
        reason: The visitor's share is used up, nobody's turn came in time, or it went wrong.
        wait: How long until the share is renewed, as in `1:23:45`; None if nobody says.
    """

    code = "no_gpu"

    def __init__(self, reason: Reason, wait: str | None = None) -> None:
        """Say why, and what to do."""
        super().__init__(_SENTENCES[reason].format(when=f"in {wait}" if wait else "later"))
        self.reason, self.wait = reason, wait


class ZeroGPUReconstructor(Reconstructor):
    """Has its model run where the GPU is; all else is done here.

    Attributes:
        source: From where a worker reads the model that was forked before it was here.
    """

    def __init__(self, model: MaskedAutoencoder, name: str, source: str) -> None:
        """Make a model ready for the workers.

        Args:
            model: The model, on the CPU; it is moved to the GPU.
            name: Of the weights, for people.
            source: What `read_weights` takes.
        """
        pretending = threading.current_thread() is threading.main_thread()
        device = "cuda" if pretending else "cpu"
        super().__init__(model, name, device=device, precision="float32", in_place=True)
        self.device, self.source = torch.device("cuda"), source
        self._key = next(_keys)
        _models[self._key] = self

    def rebuild(self, images: Tensor, patch_mask: PatchMask, view: str) -> Rebuilt:
        """Have a worker run the model.

        Raises:
            NoGPUError: If there is none.
            torch.OutOfMemoryError: If its GPU's memory is full.
        """
        sent = pickle.dumps((images, patch_mask, view))
        try:
            got = _lent_rebuild(self._key, self.source, sent)
        except Exception as error:  # Gradio's, with the platform's sentences, or a broken worker's
            raise _in_words(error) from error
        if got is None:
            raise torch.OutOfMemoryError("the memory of the lent GPU is full")
        rebuilt: Rebuilt = pickle.loads(got)  # noqa: S301  (our own fork sent it)
        return rebuilt

    def on_cpu(self) -> Reconstructor:
        """The model read once more, as what is here may have no numbers."""
        model = load(self.source, fetch=False)
        return Reconstructor(model, self.name, device="cpu", in_place=True)


_keys = itertools.count()
# Those in use. A worker has what was here when it was forked, and reads more.
_models: WeakValueDictionary[int, ZeroGPUReconstructor] = WeakValueDictionary()


def _model_bytes(reconstructor: Reconstructor) -> int:
    return sum(p.numel() * p.element_size() for p in reconstructor.model.parameters())


def _rebuild(key: int, source: str, sent: bytes) -> bytes | None:
    """In a worker: run a model; None if the GPU's memory is full."""
    images, patch_mask, view = pickle.loads(sent)  # noqa: S301  (the process it is a fork of)
    try:
        reconstructor = _in_worker(key, source)
        return pickle.dumps(Reconstructor.rebuild(reconstructor, images, patch_mask, view))
    except torch.OutOfMemoryError:
        return None


def _in_worker(key: int, source: str) -> Reconstructor:
    """A model that was inherited or has been read, on the GPU."""
    inherited = _models.get(key)
    if inherited is not None:
        inherited.model.to("cuda")
        return inherited
    return _read_in_worker(key, source)


@cached(LRUCache(_WORKER_BYTES, _model_bytes), key=lambda key, source: key, lock=threading.Lock())
def _read_in_worker(key: int, source: str) -> Reconstructor:
    model = load(source, fetch=False)
    return Reconstructor(model, source, device="cuda", precision="float32", in_place=True)


def _seconds(key: int, source: str, sent: bytes) -> int:
    """How long a GPU is asked for; the arguments are those of `_rebuild`."""
    return _BASE_SECONDS + round(_SECONDS_PER_GB * _model_bytes(_models[key]) / 10**9)


def _in_words(error: Exception) -> NoGPUError:
    title, message = str(getattr(error, "title", "")), str(getattr(error, "message", ""))
    if "No GPU was available" in message:
        return NoGPUError("busy")
    if "quota" in title or "credits" in title:
        wait = _WAIT.search(message)
        return NoGPUError("quota", wait[1] if wait else None)
    _logger.error("the lent GPU brought nothing: %s", type(error).__name__, exc_info=error)
    return NoGPUError("failed")


# Decorated here, as the platform looks for such a function when the page is launched; and in the
# main thread, the one in which `spaces` pretends.
_lent_rebuild = (
    importlib.import_module("spaces").GPU(_rebuild, duration=_seconds) if ACTIVE else _rebuild
)
