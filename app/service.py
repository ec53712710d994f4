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
from app.fetching import ModelShelf, Offer, licence_of
from app.models import Progress, ServedModel
from app.settings import AppSettings
from mae_core import (
    DEFAULT_WEIGHTS,
    FITS,
    MAX_IMAGE_SIZE,
    MAX_PATCHES,
    MAX_SEED,
    NORM_PIX_VIEWS,
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

# Names that an error lists; the page has them all.
_MOST_SHOWN = 5

# A decoded picture takes at most 12 MiB; four panels of 224 x 224 pixels 0.6 MiB, and of
# 1024 x 1024 pixels 12 MiB.
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
    image_size: int | None
    view: str
    version: Hashable


class ReconstructionService:
    """Answers reconstruct requests, from a cache where it can.

    A model runs one request at a time; different models may run side by side. A model that is
    being trained answers by its newest checkpoint.
    """

    def __init__(
        self,
        models: Mapping[str, Reconstructor | ServedModel],
        shelf: ModelShelf | None = None,
        *,
        max_image_size: int = MAX_IMAGE_SIZE,
    ) -> None:
        """Serve some models.

        Args:
            models: Name -> model; the first is the default.
            shelf: Further models, read when they are asked for.
            max_image_size: Largest size that can be asked for, in pixels.

        Raises:
            ConfigError: If there is none.
        """
        if not models:
            raise ConfigError("there is no model to serve; give weights by name or path")
        self._models = {
            name: ServedModel.fixed(model) if isinstance(model, Reconstructor) else model
            for name, model in models.items()
        }
        self._shelf = shelf
        self.max_image_size = max_image_size
        self._pictures: LRUCache[str, Image.Image] = LRUCache(_PICTURES_BYTES, _picture_bytes)
        self._answers: LRUCache[_Request, Answer] = LRUCache(_ANSWERS_BYTES, _answer_bytes)

    @classmethod
    def load(cls, settings: AppSettings) -> "ReconstructionService":
        """Load models and serve them; those that visitors choose are loaded then.

        Args:
            settings: Their names or paths, the first the default, and what visitors may choose
                beside them.

        Raises:
            CheckpointError: If weights are missing or damaged.
            ConfigError: If two weights have the same name.
            DeviceError: If the device is not there.
            DownloadError: If weights cannot be fetched.
        """
        models: dict[str, Reconstructor | ServedModel] = {}
        for source in settings.weights or _bundled_weights():
            fetch = settings.fetch != "none"
            model = ServedModel.open(source, device=settings.device, fetch=fetch)
            if model.name in models:
                raise ConfigError(
                    f"two weights are called {model.name!r}; give each a name of its own"
                )
            models[model.name] = model
        shelf = ModelShelf(
            {name: entry for name, entry in list_weights().items() if name not in models},
            lambda name: ServedModel.open(name, device=settings.device),
            policy=settings.fetch,
            max_bytes=int(settings.memory_gb * 10**9),
        )
        return cls(models, shelf, max_image_size=settings.max_image_size)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, the default first."""
        return tuple(offer.name for offer in self.offers())

    @property
    def takes_repositories(self) -> bool:
        """Whether any repository of the Hugging Face hub can be asked for."""
        return self._shelf is not None and self._shelf.policy == "any"

    @property
    def progress(self) -> dict[str, Progress | None]:
        """How far the training of each model loaded is now; None where it is finished."""
        return {name: model.progress for name, model in self._models.items()}

    def offers(self) -> list[Offer]:
        """The models that can be chosen, the default first."""
        return [*map(self.offer, self._models), *(self._shelf.offers() if self._shelf else [])]

    def offer(self, name: object) -> Offer:
        """Where a model is by now.

        Raises:
            ConfigError: If there is no such model.
        """
        known = self._check_model(name)
        if known not in self._models:
            assert self._shelf is not None
            return self._shelf.offer(known)
        licence = licence_of(list_weights().get(known))
        return Offer(known, "ready", licence=licence, norm_pix=self._models[known].config.norm_pix)

    def ask_after(self, name: object) -> Offer:
        """As `offer`, for somebody who waits for the model: its download goes on.

        Raises:
            ConfigError: If there is no such model.
        """
        if self._shelf is not None and isinstance(name, str):
            self._shelf.ask_after(name)
        return self.offer(name)

    def forget_failure(self, name: object) -> None:
        """Have the next request for a model try again what failed."""
        if self._shelf is not None and isinstance(name, str):
            self._shelf.forget_failure(name)

    def nearest_size(self, name: object, image_size: int) -> int:
        """The size in pixels next to another one that a model takes of square pictures.

        Raises:
            ConfigError: If there is no such model.
            MAEError: If the model is not in memory.
        """
        patch = self._model(self._check_model(name)).config.patch_size
        most = min(self.max_image_size // patch, math.isqrt(MAX_PATCHES))
        return min(max(round(image_size / patch), 1), most) * patch

    def reconstruct(
        self,
        image: object,
        mask_ratio: object,
        seed: object,
        strategy: object = "random",
        fit: object = "crop",
        model: object = None,
        image_size: object = None,
        view: object = NORM_PIX_VIEWS[0],
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
            image_size: Pixels that the fit aims at, a multiple of the model's patch side up to
                `max_image_size`; None is the model's own.
            view: One of `NORM_PIX_VIEWS`, of models that predict normalised pixels.

        Raises:
            ImageError: If the picture is missing or cannot be used.
            MaskError: If the ratio, the seed or the strategy is not allowed.
            ConfigError: If the fit, the model, the size or the view is not one of those offered.
            NotReadyError: If the model is on its way.
            CheckpointError: If the model cannot be used.
            DownloadError: If the model cannot be fetched.
        """
        if not isinstance(image, bytes):
            raise ImageFormatError("there is no picture; choose one first")
        name = next(iter(self._models)) if model is None else self._check_model(model)
        request = _Request(
            picture=hashlib.sha256(image).hexdigest(),
            mask_ratio=_check_mask_ratio(mask_ratio),
            seed=_check_seed(seed),
            strategy=_check_strategy(strategy),
            fit=_check_choice("fit", fit, FITS),
            model=name,
            image_size=self._check_image_size(image_size),
            view=_check_choice("view", view, NORM_PIX_VIEWS),
            version=None,
        )
        # Only for a request that is right in all else is a model fetched.
        served = self._model(name)
        request = replace(request, version=served.version)
        answer = self._answers.get(request)
        return self._compute(request, served, image) if answer is None else answer

    def _compute(self, request: _Request, served: ServedModel, image: bytes) -> Answer:
        picture = self._pictures.get(request.picture)
        if picture is None:
            picture = decode_image(image)
            self._pictures.put(request.picture, picture)
        result, state = served(
            picture,
            request.mask_ratio,
            request.seed,
            strategy=request.strategy,
            fit=request.fit,
            image_size=request.image_size,
            view=request.view,
        )
        licence = self.offer(request.model).licence
        facts = result.facts() | (asdict(state.progress) if state.progress else {})
        facts |= {"licence": licence} if licence else {}
        answer = Answer(result.panels(), facts)
        self._answers.put(replace(request, version=state.version), answer)
        return answer

    def _model(self, name: str) -> ServedModel:
        if name in self._models:
            return self._models[name]
        assert self._shelf is not None
        return self._shelf.get(name)

    def _check_model(self, value: object) -> str:
        known = isinstance(value, str) and (
            value in self._models or (self._shelf is not None and self._shelf.knows(value))
        )
        other = ", or give the USER/NAME of a Hugging Face repository"
        more = other if self.takes_repositories else ""
        return str(value) if known else _check_choice("model", value, self.models, more)

    def _check_image_size(self, value: object) -> int | None:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None:
            return None
        # What is a multiple of the patch side, the model says.
        if isinstance(value, bool) or not isinstance(value, int) or value > self.max_image_size:
            raise ConfigError(
                f"image_size is {_shown(value)}; it must be a whole number of pixels up to "
                f"{self.max_image_size}, or none for the model's own"
            )
        return value


def _bundled_weights() -> list[str]:
    names = (name for name, entry in list_weights().items() if entry.bundled)
    return [DEFAULT_WEIGHTS, *(name for name in names if name != DEFAULT_WEIGHTS)]


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


def _check_choice(name: str, value: object, allowed: Sequence[str], more: str = "") -> str:
    if value not in allowed:
        some = ", ".join(allowed[:_MOST_SHOWN])
        such = "one of those offered, such as " if len(allowed) > _MOST_SHOWN else ""
        raise ConfigError(f"{name} is {_shown(value)}; choose {such}{some}{more}")
    return str(value)


def _shown(value: object) -> str:
    """A value as an error may show it: short, whatever it is."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
