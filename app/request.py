"""What a visitor asks for: values of any type in, a `Request` or an error out.

A value is named as in the API: `image`, `mask_ratio`, `seed`, `strategy`, `fit`, `model`,
`image_size`, `view`, `mask`. One more is a field of `Request` and a line of `parse`.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from app.pictures import PictureFile, PictureSource
from mae_core.errors import ConfigError, ImageError, MaskError
from mae_core.images import FITS
from mae_core.model.masking import MAX_SEED, STRATEGIES, num_visible
from mae_core.reconstruct import MAX_PATCHES, NORM_PIX_VIEWS, ReconstructionRequest

# The page's slider: outside of it there is next to nothing to guess, or to guess from.
MASK_RATIO_MIN, MASK_RATIO_MAX = 0.05, 0.95

# Names that an error lists; the page has them all.
_MOST_SHOWN = 5


@dataclass(frozen=True)
class Mask:
    """Which patches are removed: drawn from a seed, or the visitor's own.

    Attributes:
        strategy: `random`, `block` or `grid`.
        ratio: Fraction removed, 0.05..0.95.
        seed: 0..`MAX_SEED`.
        rows: Of an own mask, where the others mean nothing: for each row of patches a text of 0
            and 1, 1 = removed. Empty if it is drawn.
    """

    strategy: str = STRATEGIES[0]
    ratio: float = 0.75
    seed: int = 0
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """One reconstruction, all of whose values are allowed; equal ones have equal answers.

    Attributes:
        picture: The digest of its file.
        mask: Which patches are removed.
        fit: `crop`, `squash` or `whole`.
        model: Name of the weights.
        image_size: Pixels that the fit aims at, a multiple of the model's patch side; None is
            the model's own.
        view: One of `NORM_PIX_VIEWS`, of models that predict normalised pixels.
    """

    picture: str
    mask: Mask
    fit: str
    model: str
    image_size: int | None
    view: str

    def of(self, picture: Image.Image) -> ReconstructionRequest:
        """The same for a `Reconstructor`, with the picture decoded."""
        mask = self.mask
        own = np.array([[cell == "1" for cell in row] for row in mask.rows]) if mask.rows else None
        return ReconstructionRequest(
            picture, mask.ratio, mask.seed, mask.strategy, self.fit, own, self.image_size,
            self.view,
        )  # fmt: skip

    def batch_key(self, side: int) -> Hashable:
        """Equal for requests that may share a forward pass, of `side` x `side` patches or more."""
        whole = self.fit == "whole"
        # How many patches a whole frame has, its picture says.
        share = self.mask.ratio if whole else num_visible(side**2, self.mask.ratio)
        if self.mask.rows:
            share = sum(row.count("0") for row in self.mask.rows)
        return side, whole, share, self.view


def check_source(image: object) -> PictureSource:
    """Where the picture is, if there is one.

    Raises:
        ImageError: If there is none.
    """
    if isinstance(image, PictureFile | bytes):
        return image
    raise ImageError("there is no picture; choose one first")


def parse(
    values: Mapping[str, object], model: str, max_image_size: int, digest: Callable[[], str]
) -> Request:
    """Check what is asked of a model that there is; its picture is looked at last.

    Args:
        values: By the names of the API; without a `mask`, `mask_ratio` and `seed` are needed.
        model: Name of the weights.
        max_image_size: Largest `image_size`, in pixels.
        digest: Of the picture.

    Raises:
        ConfigError: If the fit, the size or the view is not one of those offered.
        MaskError: If the ratio, the seed, the strategy or the mask is not allowed.
    """
    return Request(
        mask=_parse_mask(values),
        fit=check_choice("fit", values.get("fit", FITS[0]), FITS),
        model=model,
        image_size=_check_image_size(values.get("image_size"), max_image_size),
        view=check_choice("view", values.get("view", NORM_PIX_VIEWS[0]), NORM_PIX_VIEWS),
        picture=digest(),
    )


def _parse_mask(values: Mapping[str, object]) -> Mask:
    own = values.get("mask")
    if own is not None:
        return Mask(rows=_check_rows(own))
    return Mask(
        _check_strategy(values.get("strategy", STRATEGIES[0])),
        _check_mask_ratio(values.get("mask_ratio")),
        _check_seed(values.get("seed")),
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


def _check_rows(value: object) -> tuple[str, ...]:
    """An own mask as texts of 0 and 1; equal ones are one key of the cache."""
    allowed = "give rows of equally many 0 and 1, one for each patch, 1 = removed"
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_PATCHES:
        raise MaskError(f"mask is {_shown(value)}; {allowed}")
    rows = tuple(_check_row(row, allowed) for row in value)
    if len(set(map(len, rows))) > 1 or len(rows) * len(rows[0]) > MAX_PATCHES:
        raise MaskError(
            f"mask has {len(rows)} rows of up to {max(map(len, rows))}; {allowed}, of at most "
            f"{MAX_PATCHES} patches"
        )
    if not any("0" in row for row in rows):
        raise MaskError("the mask removes every patch; leave at least one visible")
    return rows


def _check_row(value: object, allowed: str) -> str:
    # JSON's true and 1.0 are 1 too; other values are none of the two.
    row = value if isinstance(value, list) and len(value) <= MAX_PATCHES else []
    if row and all(isinstance(cell, int | float) and cell in (0, 1) for cell in row):
        return "".join(str(int(cell)) for cell in row)
    raise MaskError(f"a row of the mask is {_shown(value)}; {allowed}")


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
