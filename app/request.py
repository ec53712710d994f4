"""What a visitor asks for: values of any type in, a `Request` or an error out.

A value is named as in the API: `image`, `mask_ratio`, `seed`, `strategy`, `fit`, `model`,
`image_size`, `view`, `mask`. One more is a field of `Settings` and a line of `parse`.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from app.pictures import PictureFile, PictureSource
from mae_core.errors import ConfigError, ImageError, MaskError
from mae_core.images import FITS
from mae_core.model.masking import MAX_SEED, STRATEGIES, num_visible
from mae_core.reconstruct import MAX_PATCHES, NORM_PIX_VIEWS
from mae_core.settings import VERSION, Settings
from mae_core.settings import Mask as Mask

# The page's slider: beyond it there is next to nothing to guess, or to guess from.
MASK_RATIO_MIN, MASK_RATIO_MAX = 0.05, 0.95

# What an own mask has in place of the values that it does not need.
_DRAWN = {"strategy": STRATEGIES[0], "mask_ratio": 0.75, "seed": 0}

# Allowed values that an error lists.
_MOST_LISTED = 5


@dataclass(frozen=True)
class Request(Settings):
    """One reconstruction, all of whose values are allowed. Equal keys have equal answers.

    Its mask ratio is within 0.05..0.95.
    """

    @property
    def key(self) -> "Request":
        """The request without what an own mask does not need."""
        mask = self.mask
        if not mask.rows and not mask.drawing:
            return self
        return replace(self, mask=Mask(rows=mask.rows, drawing=mask.drawing))

    def batch_key(self, side: int) -> Hashable:
        """Equal for requests that may share a forward pass, of `side` x `side` patches or more."""
        if self.mask.drawing:
            return object()
        whole = self.fit == "whole"
        # How many patches a whole frame has, its picture says.
        share = self.mask.ratio if whole else num_visible(side**2, self.mask.ratio)
        if self.mask.rows:
            share = sum(row.count("0") for row in self.mask.rows)
        return side, whole, share, self.view

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], models: Sequence[str], max_image_size: int
    ) -> "Request":
        """A request from what `to_json` gave.

        Args:
            data: Anything that JSON holds.
            models: Names of the weights that there are.
            max_image_size: As for `parse`.

        Raises:
            ConfigError: If it is of another version or form, or as `parse`.
            MaskError: As `parse`.
        """
        mask, picture = data.get("mask"), data.get("picture")
        if data.get("v") != VERSION or not isinstance(mask, dict) or not isinstance(picture, str):
            raise ConfigError(
                f"these settings are of version {_shown(data.get('v'))}, or not complete; give "
                f"settings of version {VERSION} as this page wrote them"
            )
        model = check_choice("model", data.get("model"), models)
        values = cls.values_of(data) | {"image": b""}
        return parse(values, model, max_image_size, lambda _: picture)

    @staticmethod
    def values_of(data: Mapping[str, Any]) -> dict[str, Any]:
        """What `to_json` gave by the names of the API, its values unchecked, without the picture.

        Raises:
            ConfigError: If it is of another version, has a field that settings have not, or the
                mask is a drawing.
        """
        version = data.get("v", VERSION)
        if version != VERSION or isinstance(version, bool):
            raise ConfigError(
                f"these settings are of version {_shown(version)}; give settings of version "
                f"{VERSION}, as this page wrote them",
                code="version", given=_shown(version), allowed=VERSION,
            )  # fmt: skip
        mask = data.get("mask")
        mask = mask if isinstance(mask, dict) else {}
        for given, names in ((data, {"v", *_names(Settings)}), (mask, _names(Mask))):
            if unknown := [name for name in given if name not in names]:
                raise ConfigError(
                    f"settings have no {_shown(unknown[0])}; leave it out",
                    code="no_setting", given=_shown(unknown[0]),
                )  # fmt: skip
        if mask.get("drawing"):
            raise ConfigError(
                "settings with a drawn mask need its picture; give rows of 0 and 1",
                code="drawn_mask",
            )
        rows = mask.get("rows") or None
        own = [*rows] if isinstance(rows, tuple) else rows
        return {**data, **mask, "mask_ratio": mask.get("ratio"), "mask": own}


def _names(kind: type[Settings] | type[Mask]) -> set[str]:
    return {field.name for field in fields(kind)}


def check_source(image: object) -> PictureSource:
    """The picture, if there is one.

    Raises:
        ImageError: If there is none.
    """
    if isinstance(image, bytes | PictureFile):
        return image
    raise ImageError("there is no picture; choose one first", code="no_picture")


def parse(
    values: Mapping[str, object], model: str, max_image_size: int,
    digest: Callable[[PictureSource], str],
) -> Request:  # fmt: skip
    """Check what is asked of a model that there is; the picture last.

    Args:
        values: By the names of the API; without a `mask`, `mask_ratio` and `seed` are needed.
        model: Name of the weights.
        max_image_size: Largest `image_size`, in pixels.
        digest: Of a picture.

    Raises:
        ConfigError: If the fit, the size or the view is not one of those offered.
        ImageError: If there is no picture.
        MaskError: If the ratio, the seed, the strategy or the mask is not allowed.
    """
    own = values.get("mask")
    if own is not None:
        # Beside an own mask they are what further questions start from, such as a film.
        drawn = {name: value for name, value in _DRAWN.items() if values.get(name) is None}
        values = {**values, **drawn}
    mask = Mask(
        check_choice("strategy", values.get("strategy", STRATEGIES[0]), STRATEGIES, MaskError),
        _check_mask_ratio(values.get("mask_ratio")),
        _check_seed(values.get("seed")),
    )
    if isinstance(own, bytes | PictureFile):
        mask = replace(mask, drawing=digest(own))
    elif own is not None:
        mask = replace(mask, rows=_check_rows(own))
    return Request(
        mask=mask,
        fit=check_choice("fit", values.get("fit", FITS[0]), FITS),
        model=model,
        image_size=check_image_size(values.get("image_size"), max_image_size),
        view=check_choice("view", values.get("view", NORM_PIX_VIEWS[0]), NORM_PIX_VIEWS),
        picture=digest(check_source(values.get("image"))),
    )


def check_choice(
    name: str, value: object, allowed: Sequence[str],
    kind: type[ConfigError] | type[MaskError] = ConfigError,
) -> str:  # fmt: skip
    """A value, if it is one of those allowed.

    Args:
        name: What the error calls it.
        value: Anything.
        allowed: What it may be.
        kind: Of the error.

    Raises:
        ConfigError: If it is not; or the `kind` given.
    """
    if value in allowed:
        return str(value)
    some, given = ", ".join(allowed[:_MOST_LISTED]), _shown(value)
    such = "one of those offered, such as " if len(allowed) > _MOST_LISTED else ""
    raise kind(
        f"{name} is {given}; choose {such}{some}", code="choice", name=name, given=given,
        allowed=some,
    )  # fmt: skip


def _check_mask_ratio(value: object) -> float:
    """A float in range; rounded finer than any slider, so that 0.75 is one key of the cache."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and MASK_RATIO_MIN <= value <= MASK_RATIO_MAX:  # type: ignore[operator]
        return round(float(value), 6)  # type: ignore[arg-type]
    raise MaskError(
        f"mask_ratio is {_shown(value)}; it must be a number from {MASK_RATIO_MIN} to "
        f"{MASK_RATIO_MAX}, such as 0.75",
        code="mask_ratio", given=_shown(value), least=MASK_RATIO_MIN, most=MASK_RATIO_MAX,
    )  # fmt: skip


def _check_seed(value: object) -> int:
    seed = _whole(value)
    if seed is None or not 0 <= seed <= MAX_SEED:
        raise MaskError(
            f"seed is {_shown(value)}; it must be a whole number from 0 to {MAX_SEED}",
            code="seed", given=_shown(value), most=MAX_SEED,
        )  # fmt: skip
    return seed


def check_image_size(value: object, most: int) -> int | None:
    """A size in pixels, or None for the model's own.

    Raises:
        ConfigError: If it is neither.
    """
    if value is None:
        return None
    size = _whole(value)
    # What is a multiple of the patch side, the model says.
    if size is None or not 1 <= size <= most:
        raise ConfigError(
            f"image_size is {_shown(value)}; it must be a whole number of pixels up to {most}, or "
            "none for the model's own",
            code="image_size", given=_shown(value), most=most,
        )  # fmt: skip
    return size


def check_patches(request: Request, patch: int) -> None:
    """Check the size of a request against a model's patches of `patch` x `patch` pixels.

    Raises:
        ConfigError: If it is not a multiple.
    """
    size = request.image_size
    if size is not None and size % patch:
        raise ConfigError(
            f"image_size is {size}; this model takes multiples of {patch}, such as "
            f"{max(round(size / patch), 1) * patch}",
            code="image_step", given=size, step=patch,
        )  # fmt: skip


def check_whole(name: str, value: object, least: int, most: int) -> int:
    """A whole number in a range.

    Raises:
        ConfigError: If it is none.
    """
    number = _whole(value)
    if number is None or not least <= number <= most:
        raise ConfigError(
            f"{name} is {_shown(value)}; it must be a whole number from {least} to {most}",
            code="whole", name=name, given=_shown(value), least=least, most=most,
        )  # fmt: skip
    return number


def _whole(value: object) -> int | None:
    """A whole number. JSON has one kind of number: a browser may send 2 as 2.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _check_rows(value: object) -> tuple[str, ...]:
    """An own mask as texts of 0 and 1; equal ones are one key of the cache."""
    allowed = "give rows of equally many 0 and 1, one for each patch, 1 = removed"
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_PATCHES:
        raise MaskError(f"mask is {_shown(value)}; {allowed}")
    rows = []
    for row in value:
        cells = row if isinstance(row, list | str) and len(row) <= MAX_PATCHES else []
        # JSON's true and 1.0 are 1 too.
        if not cells or not all(cell in ("0", "1", 0, 1) for cell in cells):
            raise MaskError(f"a row of the mask is {_shown(row)}; {allowed}")
        rows.append("".join(str(int(cell)) for cell in cells))
    if len({*map(len, rows)}) > 1 or len(rows) * len(rows[0]) > MAX_PATCHES:
        raise MaskError(
            f"mask has {len(rows)} rows of up to {max(map(len, rows))}; {allowed}, of at most "
            f"{MAX_PATCHES} patches"
        )
    if not any("0" in row for row in rows):
        raise MaskError("the mask removes every patch; leave at least one visible")
    return tuple(rows)


def _shown(value: object) -> str:
    """A value as an error may show it: short, whatever it is."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
