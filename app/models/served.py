"""Models as they are served; one that is being trained is read again when its file changes."""

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
from mae_core import MAEError, ModelConfig, Reconstruction, Reconstructor
from mae_core.errors import CheckpointError, ConfigError
from mae_core.inside.snapshots import find_snapshots
from mae_core.reconstruct import MAX_PATCHES, ReconstructionRequest
from mae_core.weights import RUN_FILES, find, locate, read_weights, weights_name

_logger = logging.getLogger(__name__)


class NoMemoryError(MAEError):
    """The host's memory is too small for a picture."""

    code = "no_memory"


# Pictures in a run, by device type. On a CPU larger runs are no faster per picture, and leave other
# workers without work; other devices were not measured.
_MAX_BATCH = {"cuda": 16, "cpu": 4}


@dataclass(frozen=True)
class Progress:
    """Steps done, and steps in all, of a training run."""

    step: int
    steps: int


@dataclass(frozen=True)
class ModelState:
    """A model as one version of its file has it; `progress` is None after the training."""

    reconstructor: Reconstructor
    version: Hashable
    progress: Progress | None

    def facts(self, result: Reconstruction) -> dict[str, Any]:
        """Facts of a result and progress of the training, for JSON.

        `notice` is `cpu` if the memory of the model's device was full, and absent otherwise.
        """
        facts = result.facts() | (asdict(self.progress) if self.progress else {})
        elsewhere = result.device != str(self.reconstructor.device)
        return facts | ({"notice": "cpu"} if elsewhere else {})


class ServedModel:
    """A model that follows its file. Thread-safe.

    A training run replaces the file again and again. The next request reads the newer one; if that
    fails, it is logged and the model stays.

    Attributes:
        name: Of the model.
    """

    def __init__(
        self,
        read: Callable[[], tuple[Reconstructor, Progress | None]],
        version: Callable[[], Hashable],
        run: Path | None = None,
    ) -> None:
        """Read a model.

        Args:
            read: Reads the model from its file; what it raises, this raises.
            version: Tells versions of the file apart; cheap.
            run: Folder of its training run, if it is one's.
        """
        self._read, self._version, self._run = read, version, run
        self._lock = threading.Lock()
        self._state = self._newest()
        self._refused: Hashable = None
        self.name = self._state.reconstructor.name

    @classmethod
    def fixed(cls, reconstructor: Reconstructor) -> "ServedModel":
        """A model that never changes."""
        return cls(lambda: (reconstructor, None), lambda: "fixed")

    @classmethod
    def open(cls, source: str, *, device: str = "auto") -> "ServedModel":
        """Read a model on this machine.

        Args:
            source: What `locate` takes.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

        Raises:
            CheckpointError: If weights are missing or damaged.
            ConfigError: If they are of other pictures than the page takes, or there is no such
                device.
        """
        located = locate(source, fetch=False)

        def read() -> tuple[Reconstructor, Progress | None]:
            weights = read_weights(source, fetch=False)
            _require_colour_or_grey(weights.config)
            record, model, name = weights.record, weights.build(), weights_name(source)
            running = Progress(record["step"], record["steps"]) if record.get("running") else None
            if zerogpu.ACTIVE and device != "cpu":
                return zerogpu.ZeroGPUReconstructor(model, name, source), running
            return Reconstructor(model, name, device=device, in_place=True), running

        def version() -> Hashable:
            try:
                if (path := find(source)) is None:
                    raise FileNotFoundError
                status = path.stat()
            except OSError as error:
                raise CheckpointError("the weights are gone; check the path") from error
            return path, status.st_mtime_ns, status.st_size, status.st_ino

        served = cls(read, version, located.parent if located.name in RUN_FILES else None)
        if not zerogpu.ACTIVE:
            # The first run of a model takes many times as long as the next ones.
            served._state.reconstructor(Image.new("RGB", (64, 64)))
        return served

    @property
    def config(self) -> ModelConfig:
        """Of the model."""
        return self._state.reconstructor.config

    @property
    def snapshots(self) -> dict[int, Path]:
        """Files of its training on its way, by steps done."""
        return find_snapshots(self._run) if self._run else {}

    @property
    def bytes(self) -> int:
        """Memory of the parameters and buffers."""
        model = self._state.reconstructor.model
        return sum(t.numel() * t.element_size() for t in model.state_dict().values())

    @property
    def version(self) -> Hashable:
        """Of the file that the next request is answered from."""
        try:
            version = self._version()
        except CheckpointError:
            # Its file is gone.
            return self._state.version
        return self._state.version if version == self._refused else version

    @property
    def progress(self) -> Progress | None:
        """Progress of its training by the file's present version; None if it is finished."""
        with self._lock:
            self._refresh()
            return self._state.progress

    @property
    def is_small(self) -> bool:
        """Whether it runs on a CPU, and one picture of its own size is worth one thread only."""
        reconstructor = self._state.reconstructor
        picture = ReconstructionRequest(Image.new("RGB", (1, 1)), 0.75)
        return reconstructor.device.type == "cpu" and reconstructor.threads_for([picture]) == 1

    @property
    def max_batch(self) -> int:
        """How many requests are worth running together."""
        reconstructor = self._state.reconstructor
        if isinstance(reconstructor, zerogpu.ZeroGPUReconstructor):
            # Each visitor spends their own GPU time.
            return 1
        return _MAX_BATCH.get(reconstructor.device.type, 1)

    def runs_alone(self, request: Request) -> bool:
        """Whether the picture is so large that no other shares its forward pass."""
        return 2 * self._side(request) ** 2 > MAX_PATCHES

    def batch_key(self, request: Request) -> Hashable:
        """Equal for requests that may share a forward pass; unique for a large picture."""
        if self.runs_alone(request):
            return object()
        return self.name, self.version, request.batch_key(self._side(request))

    def _side(self, request: Request) -> int:
        """Patches along a side of a square picture."""
        return (request.image_size or self.config.image_size) // self.config.patch_size

    def run(
        self, requests: Sequence[ReconstructionRequest]
    ) -> tuple[list[Reconstruction | Exception], ModelState]:
        """Rebuild pictures, several in one forward pass if possible.

        If the device's memory is full, fewer are tried at a time, and at last one on the CPU.

        Returns:
            For each request its result or error, an `MAEError` unless it is unexpected; and the
            state of the model that they come from.
        """
        with self._lock:
            self._refresh()
            state = self._state
        # For each run, as this thread runs other models too; by one picture, as several small ones
        # gain less by threads than by other workers.
        torch.set_num_threads(state.reconstructor.threads_for(requests[:1]))
        return _reconstruct(state.reconstructor, requests), state

    def measure(
        self,
        function: Callable[[Reconstructor, ReconstructionRequest], Any],
        request: ReconstructionRequest,
    ) -> tuple[Any, None, int] | Exception:
        """What a function says of the model and a picture, alone in a run; or its error."""
        with self._lock:
            self._refresh()
            reconstructor = self._state.reconstructor
        torch.set_num_threads(reconstructor.threads_for([request]))
        try:
            return function(reconstructor, request), None, 1
        except Exception as error:  # of this question, or for want of memory
            failure = error
        if isinstance(failure, torch.OutOfMemoryError):
            try:
                return function(reconstructor.on_cpu(), request), None, 1
            except Exception as error:  # of any kind: it is this question's alone
                failure = error
        return _in_words(failure)

    def _refresh(self) -> None:
        version = self.version
        if version == self._state.version:
            return
        try:
            self._state = self._newest()
        except Exception:  # of any kind: the model read before still works
            self._refused = version
            _logger.exception("could not read the newer state of %s; serving the one before",
                              self.name)  # fmt: skip

    def _newest(self) -> ModelState:
        # First, so that a file replaced meanwhile is read again, not missed.
        version = self._version()
        reconstructor, progress = self._read()
        return ModelState(reconstructor, version, progress)


def _reconstruct(
    reconstructor: Reconstructor, requests: Sequence[ReconstructionRequest]
) -> list[Reconstruction | Exception]:
    """Rebuild pictures; in halves if all together fail, and a single one on the CPU."""
    try:
        return [*reconstructor.batch(requests)]
    except Exception as error:  # of one picture, or of all for want of memory
        failure = error
    if len(requests) > 1:
        # Its traceback holds the memory that is needed.
        del failure
        torch.cuda.empty_cache()
        half = len(requests) // 2
        return [
            *_reconstruct(reconstructor, requests[:half]),
            *_reconstruct(reconstructor, requests[half:]),
        ]
    if isinstance(failure, torch.OutOfMemoryError):
        _logger.warning("the memory of %s is full: one picture on the CPU", reconstructor.device)
        try:
            return [*reconstructor.on_cpu().batch(requests)]
        except Exception as error:  # of any kind: it is this picture's alone
            failure = error
    return [_in_words(failure)]


def _in_words(failure: Exception) -> Exception:
    # torch has no class of its own for the host's memory.
    if isinstance(failure, MemoryError) or "DefaultCPUAllocator" in str(failure):
        _logger.error("there is not enough memory for a picture", exc_info=failure)
        return NoMemoryError(
            "there is not enough memory for this picture at the moment; try a smaller image_size, "
            "or try again later"
        )
    return failure


def _require_colour_or_grey(config: ModelConfig) -> None:
    if config.in_chans not in (1, 3) or config.bands:
        bands = f"bands {list(config.bands)}" if config.bands else f"{config.in_chans} bands"
        raise ConfigError(
            f"the model was trained on {bands} of its pictures, and the page takes colour or grey; "
            "use mae reconstruct, whose --show chooses what is seen"
        )
