"""The demo without a page: models, limits and a cache behind one call.

`ReconstructionService` takes bytes and plain values that nobody has checked yet, and gives
pictures and facts or a `MAEError`. It never imports Gradio.
"""

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from PIL import Image

from app.cache import LRUCache
from app.models import Progress, ServedModel
from mae_core import (
    DEFAULT_WEIGHTS,
    FITS,
    MAX_SEED,
    STRATEGIES,
    ConfigError,
    ImageFormatError,
    MaskError,
    Reconstructor,
    decode_image,
    list_weights,
)

# The page's slider: outside of it there is next to nothing to guess, or to guess from.
MASK_RATIO_MIN, MASK_RATIO_MAX = 0.05, 0.95

# A decoded picture takes at most 12 MiB, four panels of 224 x 224 pixels 0.6 MiB.
_PICTURES_BYTES = 96 * 2**20
_ANSWERS_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Answer:
    """What a request gets.

    Attributes:
        panels: The pictures `original`, `masked`, `reconstruction` and `pasted`.
        facts: What was done and how well it went, as plain data for JSON.
    """

    panels: dict[str, Image.Image]
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Request:
    """A request whose values are all allowed; the cache's key.

    `version` is that of the model, so that no answer of an older state is given.
    """

    picture: str
    mask_ratio: float
    seed: int
    strategy: str
    fit: str
    model: str
    version: Hashable


class ReconstructionService:
    """Answers reconstruct requests, from a cache where it can.

    A model runs one request at a time; different models may run side by side. A model that is
    being trained answers by its newest checkpoint.
    """

    def __init__(self, models: Mapping[str, Reconstructor | ServedModel]) -> None:
        """Serve some models.

        Args:
            models: Name -> model; the first is the default.

        Raises:
            ConfigError: If there is none.
        """
        if not models:
            raise ConfigError("there is no model to serve; give weights by name or path")
        self._models = {
            name: ServedModel.fixed(model) if isinstance(model, Reconstructor) else model
            for name, model in models.items()
        }
        self._pictures: LRUCache[str, Image.Image] = LRUCache(_PICTURES_BYTES, _picture_bytes)
        self._answers: LRUCache[_Request, Answer] = LRUCache(_ANSWERS_BYTES, _answer_bytes)

    @classmethod
    def load(cls, weights: Sequence[str] = (), *, device: str = "auto") -> "ReconstructionService":
        """Load models and serve them.

        Args:
            weights: Names or paths, the first the default; every bundled model if empty.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

        Raises:
            CheckpointError: If weights are missing or damaged.
            ConfigError: If two weights have the same name.
            DeviceError: If the device is not there.
        """
        models: dict[str, Reconstructor | ServedModel] = {}
        for source in weights or _bundled_weights():
            model = ServedModel.open(source, device=device)
            if model.name in models:
                raise ConfigError(
                    f"two weights are called {model.name!r}; give each a name of its own"
                )
            models[model.name] = model
        return cls(models)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, the default first."""
        return tuple(self._models)

    @property
    def progress(self) -> dict[str, Progress | None]:
        """How far the training of each model is now; None where it is finished."""
        return {name: model.progress for name, model in self._models.items()}

    def reconstruct(
        self,
        image: object,
        mask_ratio: object,
        seed: object,
        strategy: object = "random",
        fit: object = "crop",
        model: object = None,
    ) -> Answer:
        """Remove patches of a picture and rebuild it.

        The arguments may be anything: they are checked here.

        Args:
            image: Bytes of a picture file.
            mask_ratio: Fraction removed, 0.05..0.95.
            seed: Of the mask, 0..`MAX_SEED`.
            strategy: `random`, `block` or `grid`.
            fit: `crop`, `squash` or `whole`.
            model: One of `models`; None is the default.

        Raises:
            ImageError: If the picture is missing or cannot be used.
            MaskError: If the ratio, the seed or the strategy is not allowed.
            ConfigError: If the fit or the model is not one of those offered.
        """
        if not isinstance(image, bytes):
            raise ImageFormatError("there is no picture; choose one first")
        name = self.models[0] if model is None else _check_choice("model", model, self.models)
        request = _Request(
            picture=hashlib.sha256(image).hexdigest(),
            mask_ratio=_check_mask_ratio(mask_ratio),
            seed=_check_seed(seed),
            strategy=_check_strategy(strategy),
            fit=_check_choice("fit", fit, FITS),
            model=name,
            version=self._models[name].version,
        )
        answer = self._answers.get(request)
        return self._compute(request, image) if answer is None else answer

    def _compute(self, request: _Request, image: bytes) -> Answer:
        picture = self._pictures.get(request.picture)
        if picture is None:
            picture = decode_image(image)
            self._pictures.put(request.picture, picture)
        result, state = self._models[request.model](
            picture,
            request.mask_ratio,
            request.seed,
            strategy=request.strategy,
            fit=request.fit,
        )
        facts = result.facts() | (asdict(state.progress) if state.progress else {})
        answer = Answer(result.panels(), facts)
        self._answers.put(replace(request, version=state.version), answer)
        return answer


def _bundled_weights() -> list[str]:
    names = [name for name in list_weights() if name != DEFAULT_WEIGHTS]
    return [DEFAULT_WEIGHTS, *names]


def _picture_bytes(picture: Image.Image) -> int:
    return picture.width * picture.height * len(picture.getbands())


def _answer_bytes(answer: Answer) -> int:
    return sum(_picture_bytes(panel) for panel in answer.panels.values())


def _check_mask_ratio(value: object) -> float:
    """A float in range; rounded finer than any slider, so that 0.75 is one key of the cache."""
    allowed = f"it must be a number from {MASK_RATIO_MIN} to {MASK_RATIO_MAX}, such as 0.75"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MaskError(f"mask_ratio is {_shown(value)}; {allowed}")
    if not MASK_RATIO_MIN <= value <= MASK_RATIO_MAX or math.isnan(value):
        raise MaskError(f"mask_ratio is {_shown(value)}; {allowed}")
    return round(float(value), 6)


def _check_seed(value: object) -> int:
    # JSON has one kind of number: a browser may send 2 as 2.0.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_SEED:
        raise MaskError(f"seed is {_shown(value)}; it must be a whole number from 0 to {MAX_SEED}")
    return value


def _check_strategy(value: object) -> str:
    if value not in STRATEGIES:
        raise MaskError(f"strategy is {_shown(value)}; choose {', '.join(STRATEGIES)}")
    return str(value)


def _check_choice(name: str, value: object, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ConfigError(f"{name} is {_shown(value)}; choose {', '.join(allowed)}")
    return str(value)


def _shown(value: object) -> str:
    """A value as an error may show it: short, whatever it is."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
