"""What may be asked for: values of any type in, a `Request` or an error out."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from app.pictures import PictureBytes, PictureFile, PictureSource
from mae_core.errors import ConfigError, ImageError, MaskError
from mae_core.images import FITS
from mae_core.model.masking import MAX_SEED, STRATEGIES
from mae_core.reconstruct import NORM_PIX_VIEWS

# The page's slider: outside of it there is next to nothing to guess, or to guess from.
MASK_RATIO_MIN, MASK_RATIO_MAX = 0.05, 0.95

# Names that an error lists; the page has them all.
_MOST_SHOWN = 5


@dataclass(frozen=True)
class Values:
    """What somebody asks for, by the names of the API; anything may be in it.

    Attributes:
        image: A `PictureFile`, or the bytes of one.
        mask_ratio: Fraction removed, 0.05..0.95.
        seed: Of the mask, 0..`MAX_SEED`.
        strategy: `random`, `block` or `grid`.
        fit: `crop`, `squash` or `whole`.
        model: Name of a model; None is the default.
        image_size: Pixels that the fit aims at, a multiple of the model's patch side; None is
            the model's own.
        view: One of `NORM_PIX_VIEWS`, of models that predict normalised pixels.
    """

    image: object
    mask_ratio: object
    seed: object
    strategy: object = "random"
    fit: object = "crop"
    model: object = None
    image_size: object = None
    view: object = NORM_PIX_VIEWS[0]


@dataclass(frozen=True)
class Request:
    """A request whose values are all allowed; equal ones have equal answers.

    Attributes:
        picture: The digest of its file.
        version: That of the model, so that no answer of an older state is given.
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


def check_source(image: object) -> PictureSource:
    """Where the picture is, if there is one.

    Raises:
        ImageError: If there is none.
    """
    if isinstance(image, bytes):
        return PictureBytes(image)
    if isinstance(image, PictureFile):
        return image
    raise ImageError("there is no picture; choose one first")


def check_request(
    values: Values, model: str, max_image_size: int, digest: Callable[[], str]
) -> Request:
    """A request for a model that there is; its picture is looked at last.

    Raises:
        ConfigError: If the fit, the size or the view is not one of those offered.
        MaskError: If the ratio, the seed or the strategy is not allowed.
    """
    return Request(
        mask_ratio=_check_mask_ratio(values.mask_ratio),
        seed=_check_seed(values.seed),
        strategy=_check_strategy(values.strategy),
        fit=check_choice("fit", values.fit, FITS),
        model=model,
        image_size=_check_image_size(values.image_size, max_image_size),
        view=check_choice("view", values.view, NORM_PIX_VIEWS),
        version=None,
        picture=digest(),
    )


def check_choice(name: str, value: object, allowed: Sequence[str]) -> str:
    """A value, if it is one of those allowed.

    Args:
        name: What the error calls it.
        value: Anything.
        allowed: What it may be.

    Raises:
        ConfigError: If it is not.
    """
    if value not in allowed:
        some = ", ".join(allowed[:_MOST_SHOWN])
        such = "one of those offered, such as " if len(allowed) > _MOST_SHOWN else ""
        raise ConfigError(f"{name} is {_shown(value)}; choose {such}{some}")
    return str(value)


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


def _check_image_size(value: object, most: int) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None:
        return None
    # What is a multiple of the patch side, the model says.
    if isinstance(value, bool) or not isinstance(value, int) or value > most:
        raise ConfigError(
            f"image_size is {_shown(value)}; it must be a whole number of pixels up to {most}, or "
            "none for the model's own"
        )
    return value


def _shown(value: object) -> str:
    """A value as an error may show it: short, whatever it is."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
