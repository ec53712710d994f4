"""Models on ZeroGPU, where a GPU is lent for a moment, to another process.

On a ZeroGPU Space the platform's package `spaces` emulates a GPU in this process. A function that
it decorates runs in a fork that has a real one; the fork is kept, and replaced at any time. So

* one decorated function runs the model, and nothing else does;
* arguments and results are bytes: a function's name, pixels, masks. Models are never sent: a
  worker has those that were there when it was forked, and reads the others from their files;
* a model of the main thread is put on "cuda" at the start, and moves to the GPU when a worker
  begins. Only that thread emulates a GPU; models read in others stay on the CPU until a worker
  uses them. In this process, parameters on "cuda" hold no values and are never used;
* the visitor who pays is the one whose request is in the context (`contextvars`), so requests of
  two visitors never share a pass.

Elsewhere nothing of this is used, and `spaces` is not imported.
"""

import importlib
import itertools
import logging
import os
import pickle
import re
import threading
from collections.abc import Callable
from typing import Any, Literal, TypeVar
from weakref import WeakValueDictionary

import torch
from cachetools import LRUCache, cached

from mae_core import MAEError, MaskedAutoencoder, Reconstructor, load

_logger = logging.getLogger(__name__)

# As in `spaces`.
ACTIVE = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")

# GPU seconds to ask for: a base, and per gigabyte of a model that is moved or read. A shorter time
# means a shorter wait; the least that suffices was not measured.
_BASE_SECONDS, _SECONDS_PER_GB = 10, 5

# Of models that a worker has read itself.
_WORKER_BYTES = 8 * 10**9

# When a visitor's share is renewed, in the platform's words.
_WAIT = re.compile(r"Try again in ((?:\d+ days?, )?\d+:\d\d:\d\d)")

Result = TypeVar("Result")
Reason = Literal["quota", "busy", "failed"]

_SENTENCES: dict[Reason, str] = {
    "quota": "your share of this Space's GPU time is used up; try again {when}, or log in to "
    "Hugging Face, which gives you more",
    "busy": "no GPU was free within the time that this Space waits for one; try again {when}",
    "failed": "the GPU that this Space was lent did not bring a picture; try again {when}",
}


class NoGPUError(MAEError):
    """The platform lent no GPU, or it failed.

    Attributes:
        reason: `quota`, the visitor's share is used up; `busy`, none was free in time; `failed`.
        wait: Time until the share is renewed, such as `1:23:45`, if known.
    """

    code = "no_gpu"

    def __init__(self, reason: Reason, wait: str | None = None) -> None:
        super().__init__(_SENTENCES[reason].format(when=f"in {wait}" if wait else "later"))
        self.reason, self.wait = reason, wait


class ZeroGPUReconstructor(Reconstructor):
    """Runs its model in a worker, and all else here."""

    def __init__(self, model: MaskedAutoencoder, name: str, source: str) -> None:
        """Make a model ready for the workers.

        Args:
            model: On the CPU; it is moved.
            name: Of the weights.
            source: What `read_weights` takes; workers may have to read it.
        """
        device = "cuda" if threading.current_thread() is threading.main_thread() else "cpu"
        super().__init__(model, name, device=device, precision="float32", in_place=True)
        self.device, self.source = torch.device("cuda"), source
        self._key = next(_keys)
        _models[self._key] = self

    def run_model(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Call `work(model, *arguments)` in a worker.

        Raises:
            NoGPUError: If no GPU is lent, or it fails.
            torch.OutOfMemoryError: If the GPU's memory is full.
        """
        sent = pickle.dumps((work, arguments))
        try:
            got = _lent_run(self._key, self.source, sent)
        except Exception as error:  # Gradio's, with the platform's sentences, or a broken worker's
            raise _in_words(error) from error
        if got is None:
            raise torch.OutOfMemoryError("the memory of the lent GPU is full")
        result: Result = pickle.loads(got)  # noqa: S301  (our own fork sent it)
        return result

    def on_cpu(self) -> Reconstructor:
        """Read the model again, as its parameters here may hold no values."""
        model = load(self.source, fetch=False)
        return Reconstructor(model, self.name, device="cpu", in_place=True)


_keys = itertools.count()
# Models in use; in a worker, those of the time when it was forked.
_models: WeakValueDictionary[int, ZeroGPUReconstructor] = WeakValueDictionary()


def _model_bytes(reconstructor: Reconstructor) -> int:
    return sum(p.numel() * p.element_size() for p in reconstructor.model.parameters())


def _run(key: int, source: str, sent: bytes) -> bytes | None:
    """In a worker: run a model; None if the GPU's memory is full."""
    work, arguments = pickle.loads(sent)  # noqa: S301  (the process it is a fork of)
    try:
        reconstructor: Reconstructor | None = _models.get(key)
        if reconstructor is None:
            reconstructor = _read_in_worker(key, source)
        return pickle.dumps(work(reconstructor.model.to("cuda"), *arguments))
    except torch.OutOfMemoryError:
        return None


@cached(LRUCache(_WORKER_BYTES, _model_bytes), key=lambda key, source: key, lock=threading.Lock())
def _read_in_worker(key: int, source: str) -> Reconstructor:
    model = load(source, fetch=False)
    return Reconstructor(model, source, device="cuda", precision="float32", in_place=True)


def _seconds(key: int, source: str, sent: bytes) -> int:
    """GPU seconds to ask for; takes the arguments of `_run`."""
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


# Decorated on import: in the main thread, and before the launch, when the platform looks for it.
_lent_run = importlib.import_module("spaces").GPU(_run, duration=_seconds) if ACTIVE else _run
