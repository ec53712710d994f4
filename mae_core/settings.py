"""Settings that replay: one reconstruction as JSON, as the page and `mae reconstruct` write it.

settings = read_settings("settings.json")
Reconstructor(load("runs/mine"))(**vars(settings.of("photo.jpg")))

By the same weights the panels are the same bytes on the same kind of machine and in the same
precision, neither of which the settings hold.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from operator import methodcaller
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike
from pydantic import ConfigDict, Field

from mae_core.config import Count, Share, validated
from mae_core.errors import ConfigError
from mae_core.images import FITS, ImageSource
from mae_core.model.masking import MAX_SEED, STRATEGIES, custom_mask
from mae_core.reconstruct import NORM_PIX_VIEWS, ReconstructionRequest
from mae_core.weights.files import write_atomically

__all__ = [
    "SETTINGS_FILE",
    "VERSION",
    "Mask",
    "Settings",
    "digest_of",
    "read_settings",
    "rows_of",
    "save_settings",
]

# Of the JSON form.
VERSION = 1

# What the settings of a folder of panels are called.
SETTINGS_FILE = "settings.json"

# Settings with a row for each patch are far below; more than that is something else.
_MAX_BYTES = 2**20


# SHA-256 of a file, in hexadecimal; empty for none.
Digest = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]


@dataclasses.dataclass(frozen=True)
class Mask:
    """Which patches are removed: drawn from a seed, or one's own.

    Attributes:
        strategy: `random`, `block` or `grid`.
        ratio: Fraction removed, 0..1.
        seed: 0..`MAX_SEED`.
        rows: Own mask in place of the above: for each row of patches a text of 0 and 1, 1 =
            removed. Empty if there is none.
        drawing: Likewise: digest of a black-and-white picture, white = removed.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    strategy: str = STRATEGIES[0]
    ratio: Share = 0.75
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    rows: tuple[Annotated[str, Field(pattern="^[01]+$")], ...] = ()
    drawing: Digest = ""

    @property
    def removed(self) -> list[list[bool]] | None:
        """The own mask of `rows`, True = removed."""
        return [[cell == "1" for cell in row] for row in self.rows] or None


@dataclasses.dataclass(frozen=True)
class Settings:
    """One reconstruction of a picture, without the picture. Only `read_settings` checks values.

    Attributes:
        picture: `digest_of` its file.
        mask: Which patches are removed.
        fit: `crop`, `squash` or `whole`.
        model: Name of the weights. In a stranger's file it may be any text: see that
            `list_weights` has it before `load`, which takes paths and repositories too.
        image_size: Pixels that the fit aims at, a multiple of the model's patch side; None is
            the model's own.
        view: One of `NORM_PIX_VIEWS`, of models that predict normalised pixels.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    picture: Digest
    mask: Mask
    fit: str
    model: str
    image_size: Count | None
    view: str

    def of(self, picture: ImageSource) -> ReconstructionRequest:
        """The same for a `Reconstructor`, with the picture; not with a drawn mask."""
        mask = self.mask
        return ReconstructionRequest(
            picture, mask.ratio, mask.seed, mask.strategy, self.fit, mask.removed,
            self.image_size, self.view,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON, with its version."""
        return {"v": VERSION, **dataclasses.asdict(self)}


def read_settings(source: str | Path | Mapping[str, Any]) -> Settings:
    """Settings from a file, or from what it holds, as `Settings.to_json` gave it.

    Raises:
        ConfigError: If the file cannot be read, or holds another version or form, or a value that
            is not allowed, or the source is neither.
        MaskError: If rows of the own mask are not equally long, or remove every patch.
    """
    data = _read_json(Path(source).expanduser()) if isinstance(source, str | Path) else source
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"settings are given as {source!r:.40}; give the path of a settings.json, or a mapping "
            "as Settings.to_json gives it"
        )
    version = data.get("v")
    if version != VERSION or isinstance(version, bool):
        raise ConfigError(
            f"these settings are of version {version!r:.40}; give settings of version {VERSION}, "
            "as the page and mae reconstruct write them"
        )
    settings: Settings = validated(
        Settings, {name: value for name, value in data.items() if name != "v"}, "settings"
    )
    for name, value, allowed in (
        ("mask.strategy", settings.mask.strategy, STRATEGIES),
        ("fit", settings.fit, FITS),
        ("view", settings.view, NORM_PIX_VIEWS),
    ):
        if value not in allowed:
            raise ConfigError(f"settings.{name}={value!r:.40}: choose {', '.join(allowed)}")
    if settings.mask.removed is not None:
        custom_mask(settings.mask.removed)
    return settings


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"no settings can be read at {str(path)!r} ({error.strerror}); give a settings.json"
        ) from error
    data = None
    if len(text) <= _MAX_BYTES:
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            data = None
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path.name!r} is no JSON object of at most {_MAX_BYTES:,} bytes; give a "
            "settings.json as the page or mae reconstruct wrote it"
        )
    return data


def save_settings(
    path: str | Path, request: ReconstructionRequest, picture: str, model: str
) -> None:
    """Write the settings of a request, but for its bands and range of values, which they lack.

    Args:
        path: Of the file.
        request: As it was given to a `Reconstructor`.
        picture: `digest_of` its image.
        model: Name of the weights.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    rows = () if request.mask is None else rows_of(request.mask)
    # NumPy's numbers too, which JSON cannot hold.
    mask = Mask(request.strategy, float(request.mask_ratio), int(request.seed), rows)
    size = None if request.image_size is None else int(request.image_size)
    settings = Settings(picture, mask, request.fit, model, size, request.view)
    text = json.dumps(settings.to_json(), indent=2) + "\n"
    write_atomically(Path(path), methodcaller("write_text", text))


def rows_of(removed: ArrayLike) -> tuple[str, ...]:
    """A mask (h, w), True = removed, as `Mask.rows`."""
    return tuple("".join("01"[int(cell)] for cell in row) for row in np.asarray(removed))


def digest_of(source: bytes | str | Path) -> str:
    """SHA-256 of a picture's file, or of its bytes: by that settings know it.

    Raises:
        OSError: If the file cannot be read.
    """
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with Path(source).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
