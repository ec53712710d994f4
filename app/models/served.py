"""Models as they are served: one that is still being trained is read again when it moves on."""

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from app.models import zerogpu
from app.request import Request
from mae_core import MAEError, MaskedAutoencoder, ModelConfig, Reconstruction, Reconstructor
from mae_core.errors import CheckpointError, ConfigError
from mae_core.reconstruct import MAX_PATCHES, ReconstructionRequest
from mae_core.weights import find, locate, read_weights, weights_name

_logger = logging.getLogger(__name__)


class NoMemoryError(MAEError):
    """This machine has not enough memory for a picture."""

    code = "no_memory"


# Pictures in a run, by device. On a CPU larger runs are no faster for each picture, and leave other
# workers without work; on other devices nobody has measured yet.
_MAX_BATCH = {"cuda": 16, "cpu": 4}


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

    def facts(self, result: Reconstruction) -> dict[str, Any]:
        """What was done, how well it went and how far the model's training was, for JSON.

        `notice` is there only where there is something to say: `cpu` if the picture was computed
        on the CPU, as the memory of the model's device was full.
        """
        facts = result.facts() | (asdict(self.progress) if self.progress else {})
        elsewhere = result.device != str(self.reconstructor.device)
        return facts | ({"notice": "cpu"} if elsewhere else {})


class ServedModel:
    """A model that answers as its file has it by then. Safe to share between threads.

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
            source: What `locate` takes.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            fetch: Whether weights that are not on this machine are fetched first, with a bar.

        Raises:
            CheckpointError: If weights are missing or damaged.
            ConfigError: If they are of other pictures than the page takes.
            ConfigError: If the device is not there.
            DownloadError: If weights cannot be fetched.
        """
        locate(source, fetch=fetch)

        def read() -> tuple[Reconstructor, Progress | None]:
            weights = read_weights(source, fetch=False)
            _require_colour_or_grey(weights.config)
            record = weights.record
            running = Progress(record["step"], record["steps"]) if record.get("running") else None
            return _made_ready(weights.build(), source, device), running

        served = cls(read, lambda: _file_version(find(source)))
        if not zerogpu.ACTIVE:
            # The first run of a model takes many times as long as the next; nobody waits for it.
            served._state.reconstructor(Image.new("RGB", (64, 64)))
        return served

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

    @property
    def is_small(self) -> bool:
        """Whether it runs on a CPU, where a picture of its own size is worth one thread only."""
        reconstructor = self._state.reconstructor
        picture = ReconstructionRequest(Image.new("RGB", (1, 1)), 0.75)
        return reconstructor.device.type == "cpu" and reconstructor.threads_for([picture]) == 1

    @property
    def max_batch(self) -> int:
        """How many requests are worth running together."""
        reconstructor = self._state.reconstructor
        if isinstance(reconstructor, zerogpu.ZeroGPUReconstructor):
            # Each visitor spends the GPU time that is theirs.
            return 1
        return _MAX_BATCH.get(reconstructor.device.type, 1)

    def batch_key(self, request: Request) -> Hashable:
        """Equal for what may share a forward pass; of a large picture equal to no other."""
        side = (request.image_size or self.config.image_size) // self.config.patch_size
        if 2 * side**2 > MAX_PATCHES:
            return object()
        return self.name, self.version, request.batch_key(side)

    def run(
        self, requests: Sequence[ReconstructionRequest]
    ) -> tuple[list[Reconstruction | Exception], ModelState]:
        """Rebuild pictures, several in one forward pass where that is possible.

        Where the device's memory does not do, it is tried with fewer at a time, and with a single
        one on the CPU.

        Returns:
            For each request its result or why there is none, an `MAEError` unless it is unexpected;
            and the state of the model that they are of.
        """
        with self._lock:
            self._refresh()
            state = self._state
        # Holds for this thread alone, and others that run models may set it otherwise. By one
        # picture, as several small ones gain less by threads than by other workers.
        torch.set_num_threads(state.reconstructor.threads_for(requests[:1]))
        return _reconstruct(state.reconstructor, requests), state

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


def _reconstruct(
    reconstructor: Reconstructor, requests: Sequence[ReconstructionRequest]
) -> list[Reconstruction | Exception]:
    """Rebuild pictures, fewer at a time where all together fail."""
    try:
        return [*reconstructor.batch(requests)]
    except Exception as error:  # of one picture, or of all for want of memory
        failure = error
    if len(requests) == 1:
        return [_alone(reconstructor, requests[0], failure)]
    # The traceback holds what is to make room.
    del failure
    torch.cuda.empty_cache()
    half = len(requests) // 2
    return [
        *_reconstruct(reconstructor, requests[:half]),
        *_reconstruct(reconstructor, requests[half:]),
    ]


def _alone(
    reconstructor: Reconstructor, request: ReconstructionRequest, failure: Exception
) -> Reconstruction | Exception:
    """What becomes of a picture that could not even be rebuilt alone."""
    if not isinstance(failure, torch.OutOfMemoryError):
        return _in_words(failure)
    _logger.warning("the memory of %s is full: one picture on the CPU", reconstructor.device)
    try:
        (result,) = reconstructor.on_cpu().batch([request])
    except Exception as error:  # the caller has nobody else to blame
        return _in_words(error)
    return result


def _in_words(failure: Exception) -> Exception:
    # torch has no class of its own for it.
    full = isinstance(failure, MemoryError) or "DefaultCPUAllocator" in str(failure)
    if not full:
        return failure
    _logger.error("there is not enough memory for a picture", exc_info=failure)
    return NoMemoryError(
        "there is not enough memory for this picture at the moment; try a smaller image_size, or "
        "try again later"
    )


def _require_colour_or_grey(config: ModelConfig) -> None:
    if config.in_chans not in (1, 3) or config.bands:
        bands = f"bands {list(config.bands)}" if config.bands else f"{config.in_chans} bands"
        raise ConfigError(
            f"the model was trained on {bands} of its pictures, and the page takes colour or grey; "
            "use mae reconstruct, whose --show chooses what is seen"
        )


def _made_ready(model: MaskedAutoencoder, source: str, device: str) -> Reconstructor:
    name = weights_name(source)
    if zerogpu.ACTIVE and device != "cpu":
        return zerogpu.ZeroGPUReconstructor(model, name, source)
    return Reconstructor(model, name, device=device, in_place=True)


def _file_version(path: Path | None) -> Hashable:
    try:
        if path is None:
            raise FileNotFoundError
        status = path.stat()
    except OSError as error:
        raise CheckpointError("the weights are gone; check the path") from error
    return path, status.st_mtime_ns, status.st_size, status.st_ino
