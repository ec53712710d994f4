"""Models as they are served: one that is still being trained is read again when it moves on."""

import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mae_core import (
    CheckpointError,
    ModelConfig,
    Reconstruction,
    Reconstructor,
    find_weights,
    load_pretrained,
    locate_weights,
    weights_name,
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a running training run is.

    Attributes:
        step: Steps done.
        steps: Steps in all.
    """

    step: int
    steps: int


@dataclass(frozen=True)
class ModelState:
    """A model as one version of its file has it.

    Attributes:
        reconstructor: The model.
        version: Of the file.
        progress: How far its training was; None if it was finished.
    """

    reconstructor: Reconstructor
    version: Hashable
    progress: Progress | None


class ServedModel:
    """A model that answers one request at a time, as its file has it by then.

    The file of a running training run is replaced again and again. The request that finds a
    newer one reads it; where that fails the model stays as it is, and the log says why.

    Attributes:
        name: What the model is called.
    """

    def __init__(
        self,
        read: Callable[[], tuple[Reconstructor, Progress | None]],
        version: Callable[[], Hashable],
    ) -> None:
        """Read a model.

        Args:
            read: Reads the model from its file.
            version: Tells the versions of the file apart; cheap.

        Raises:
            CheckpointError: If the model cannot be read.
        """
        self._read, self._version = read, version
        self._lock = threading.Lock()
        self._state = self._newest()
        self._refused: Hashable = None
        self.name = self._state.reconstructor.name

    @classmethod
    def fixed(cls, reconstructor: Reconstructor) -> "ServedModel":
        """A model that never changes."""
        return cls(lambda: (reconstructor, None), lambda: "fixed")

    @classmethod
    def open(cls, source: str, *, device: str = "auto", fetch: bool = False) -> "ServedModel":
        """The model of a name, a file of weights, or a training run's folder.

        Args:
            source: What `locate_weights` takes.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            fetch: Whether weights that are not on this machine are fetched first, with a bar.

        Raises:
            CheckpointError: If weights are missing or damaged.
            DeviceError: If the device is not there.
            DownloadError: If weights cannot be fetched.
        """
        locate_weights(source, fetch=fetch)

        def read() -> tuple[Reconstructor, Progress | None]:
            weights = load_pretrained(source, fetch=False)
            reconstructor = Reconstructor(weights.build(), weights_name(source), device=device)
            return reconstructor, _progress(weights.record)

        model = cls(read, lambda: _file_version(find_weights(source)))
        # The first run of a model takes many times as long as the next; nobody waits for it.
        model._state.reconstructor(Image.new("RGB", (64, 64)))
        return model

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self._state.reconstructor.config

    @property
    def bytes(self) -> int:
        """What the model takes of the device's memory while nobody uses it."""
        model = self._state.reconstructor.model
        return sum(t.numel() * t.element_size() for t in model.state_dict().values())

    @property
    def version(self) -> Hashable:
        """Of the file that the next request is answered from; another one, another answer."""
        try:
            version = self._version()
        except CheckpointError:
            # Moved away while it is served.
            return self._state.version
        return self._state.version if version == self._refused else version

    @property
    def progress(self) -> Progress | None:
        """How far its training is, by what is in the file now; None if it is finished."""
        with self._lock:
            self._refresh()
            return self._state.progress

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Reconstruction, ModelState]:
        """Rebuild a picture as `Reconstructor` does; also says with which state of the model."""
        with self._lock:
            self._refresh()
            return self._state.reconstructor(*args, **kwargs), self._state

    def _refresh(self) -> None:
        version = self.version
        if version == self._state.version:
            return
        try:
            self._state = self._newest()
        except Exception:  # whatever it is, the model that was read before still works
            self._refused = version
            _logger.exception("could not read the newer state of %s; serving the one before",
                              self.name)  # fmt: skip

    def _newest(self) -> ModelState:
        # Before the file is read: replaced in between, it is read once more than needed.
        version = self._version()
        reconstructor, progress = self._read()
        return ModelState(reconstructor, version, progress)


def _progress(record: dict[str, Any]) -> Progress | None:
    return Progress(record["step"], record["steps"]) if record.get("running") else None


def _file_version(path: Path | None) -> Hashable:
    try:
        if path is None:
            raise FileNotFoundError
        status = path.stat()
    except OSError as error:
        raise CheckpointError("the weights are gone; check the path") from error
    return path, status.st_mtime_ns, status.st_size, status.st_ino
