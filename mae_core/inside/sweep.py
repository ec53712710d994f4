"""The film of the mask ratio: one picture under nested masks, from nearly all removed to little.

    film = sweep(Reconstructor(mae_core.load()), "photo.jpg", seed=2)
    save_film(film, "film.webp")

The masks of one seed are nested (`masking`), so patches only come back from frame to frame.
"""

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mae_core.errors import ConfigError
from mae_core.images import ImageSource
from mae_core.inpainting import FILLERS
from mae_core.metrics import removed_psnr
from mae_core.model.patches import pixel_mask
from mae_core.reconstruct import Reconstruction, Reconstructor
from mae_core.weights.files import write_atomically

__all__ = [
    "FILM_FORMATS",
    "FILM_PANELS",
    "baseline_psnr",
    "encode_film",
    "film_frame",
    "film_ratios",
    "save_film",
    "sweep",
]

FILM_FORMATS = ("webp", "gif")

# The panels of a frame, from left to right.
FILM_PANELS = ("masked", "reconstruction", "pasted")

# Of a frame, in pixels: between panels, and of the bar below them.
_GAP, _BAR = 8, 6
_BAR_COLOUR, _BAR_GROUND = "#1f6feb", "#d0d7de"

# Seconds that a frame may be shown.
_MIN_SECONDS, _MAX_SECONDS = 0.02, 60.0


def film_ratios(frames: int = 19, first: float = 0.95, last: float = 0.05) -> list[float]:
    """Evenly spaced mask ratios from `first` to `last`, rounded to 6 decimals.

    Raises:
        ConfigError: If there are fewer than 2 frames.
    """
    if frames < 2:
        raise ConfigError(f"frames is {frames!r}; a film has at least 2")
    step = (last - first) / (frames - 1)
    return [round(first + step * i, 6) for i in range(frames)]


def sweep(
    reconstructor: Reconstructor, image: ImageSource | Tensor,
    ratios: Iterable[float] | None = None, **fields: Any,
) -> Iterator[Reconstruction]:  # fmt: skip
    """Rebuild an image once for each mask ratio, while it is iterated over.

    Args:
        reconstructor: Of the model.
        image: As in a `ReconstructionRequest`.
        ratios: In the order of the film; `film_ratios()` if not given.
        fields: Further fields of a `ReconstructionRequest`, but for `mask`: seed, strategy, fit...

    Raises:
        MAEError: If the image cannot be used, or a value is not allowed.
    """
    for ratio in film_ratios() if ratios is None else ratios:
        yield reconstructor(image, ratio, **fields)


def baseline_psnr(original: Tensor, removed: NDArray[np.bool_]) -> dict[str, float | None]:
    """PSNR in dB of the removed patches, filled by each of `FILLERS` under the same mask.

    Args:
        original: (C, H, W) pixels in 0..1.
        removed: (h, w) booleans, True = removed.

    Returns:
        None where nothing was removed, or it is filled without error.
    """
    h, w = removed.shape
    mask = torch.from_numpy(removed.astype("float32")).reshape(1, h * w)
    pixels = pixel_mask(mask, (h, w), original.shape[1] // h)
    figures: dict[str, float | None] = {}
    for name, fill in FILLERS.items():
        filled = fill(original, pixels[0])
        psnr = removed_psnr(filled[None], original[None], pixels).item()
        figures[name] = psnr if math.isfinite(psnr) else None
    return figures


def film_frame(panels: Mapping[str, Image.Image], mask_ratio: float) -> Image.Image:
    """One frame of a film: `FILM_PANELS` side by side, below them a bar as long as the ratio.

    Args:
        panels: Images of one size by the names of `Reconstruction.panels`.
        mask_ratio: Fraction removed, 0..1.
    """
    width, height = panels[FILM_PANELS[0]].size
    length = len(FILM_PANELS) * (width + _GAP) - _GAP
    frame = Image.new("RGB", (length, height + _GAP + _BAR), "white")
    for i, name in enumerate(FILM_PANELS):
        frame.paste(panels[name], (i * (width + _GAP), 0))
    frame.paste(_BAR_GROUND, (0, height + _GAP, length, height + _GAP + _BAR))
    frame.paste(_BAR_COLOUR, (0, height + _GAP, round(length * mask_ratio), height + _GAP + _BAR))
    return frame


def encode_film(frames: Sequence[Image.Image], format: str, seconds: float = 0.25) -> bytes:
    """An animation that repeats for ever.

    Args:
        frames: Of one size.
        format: One of `FILM_FORMATS`.
        seconds: How long each frame is shown; a GIF counts hundredths.

    Raises:
        ConfigError: If there is no frame, or the format, the time or a frame's size is not allowed.
    """
    _check_film(format, seconds)
    sizes = {frame.size for frame in frames}
    if len(sizes) != 1:
        raise ConfigError(
            f"a film has frames of {len(sizes)} sizes; give at least one, of one size"
        )
    buffer = io.BytesIO()
    frames[0].save(
        buffer, format, save_all=True, append_images=frames[1:], loop=0,
        duration=round(seconds * 1000), quality=85,
    )  # fmt: skip
    return buffer.getvalue()


def save_film(
    results: Iterable[Reconstruction], path: str | Path, *, seconds: float = 0.25
) -> None:
    """Write the film of reconstructions of one picture, `film_frame` by `film_frame`.

    Args:
        results: In the order of the film, such as from `sweep`.
        path: Ends in `.webp` or `.gif`, which says the format.
        seconds: How long each frame is shown.

    Raises:
        ConfigError: If the ending or the time is not allowed, before anything is computed.
        CheckpointError: If the file cannot be written.
    """
    path = Path(path).expanduser()
    format = path.suffix.removeprefix(".").lower()
    _check_film(format, seconds)
    frames = [film_frame(result.panels(), result.mask_ratio) for result in results]
    data = encode_film(frames, format, seconds)
    write_atomically(path, lambda partial: partial.write_bytes(data))


def _check_film(format: str, seconds: float) -> None:
    if format not in FILM_FORMATS:
        raise ConfigError(f"no film is written as {format!r}; choose {' or '.join(FILM_FORMATS)}")
    if not _MIN_SECONDS <= seconds <= _MAX_SECONDS:
        raise ConfigError(
            f"seconds is {seconds!r}; a frame is shown for {_MIN_SECONDS} to {_MAX_SECONDS:g}"
        )
