"""Which patches are removed: random, block, grid and custom masks.

Every strategy is a *noise* over patches, and `mask_from_noise` keeps the K patches of the lowest
noise. So counts are exact, and the masks of one seed are nested: what 50 % removes, 75 % removes
too. Noise is drawn on the CPU, so that a seed gives the same mask on every device.
"""

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mae_core.errors import MaskError

__all__ = [
    "MAX_SEED",
    "STRATEGIES",
    "PatchMask",
    "block_mask",
    "custom_mask",
    "draw_mask",
    "grid_mask",
    "mask_from_noise",
    "num_visible",
    "random_mask",
]

MAX_SEED = 2**63 - 1

# A block's share of the image and its height over width, after BEiT (Bao et al. 2022,
# algorithm 1), whose blocks on a 14 x 14 grid take 16 to 75 patches.
_BLOCK_AREA = (16 / 196, 75 / 196)
_BLOCK_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))

# Blocks of a mask. On average 10 of them cover 75 % of an image, and 30 to 54 cover 95 %; of
# 12,300 masks on five grids none needed more than 158 for that. Corners take hundreds more.
_BLOCKS = 192


@dataclass(frozen=True)
class PatchMask:
    """Which of L patches are removed, for each of N images.

    Attributes:
        mask: (N, L) float, 1 = removed, 0 = visible.
        ids_keep: (N, K) indices of the visible patches, in shuffled order.
        ids_restore: (N, L) position of each patch in the shuffled order (visible ones first).
    """

    mask: Tensor
    ids_keep: Tensor
    ids_restore: Tensor

    @property
    def num_patches(self) -> int:
        """L: patches of an image."""
        return self.mask.shape[1]

    @property
    def num_visible(self) -> int:
        """K: visible patches of an image."""
        return self.ids_keep.shape[1]

    def to(self, device: torch.device | str) -> "PatchMask":
        """The same masks on another device. The copy is asynchronous if they are pinned."""
        # From any other memory, an asynchronous copy could be read before it has arrived.
        pinned = self.mask.is_pinned()
        return self._each(lambda tensor: tensor.to(device, non_blocking=pinned))

    def pin_memory(self) -> "PatchMask":
        """The same masks in pinned host memory."""
        return self._each(lambda tensor: tensor.pin_memory())

    def rows(self, start: int, stop: int) -> "PatchMask":
        """The masks of images `start` up to `stop`."""
        return self._each(lambda tensor: tensor[start:stop])

    @staticmethod
    def cat(masks: Sequence["PatchMask"]) -> "PatchMask":
        """Masks of equal L and K as one batch."""
        columns = zip(*((one.mask, one.ids_keep, one.ids_restore) for one in masks), strict=True)
        return PatchMask(*(torch.cat(column) for column in columns))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "PatchMask":
        return PatchMask(change(self.mask), change(self.ids_keep), change(self.ids_restore))


def num_visible(length: int, mask_ratio: float, *, for_loss: bool = False) -> int:
    """K: how many of `length` patches stay visible; at least 1.

    It is the official `int(length * (1 - mask_ratio))` without its float error, by which
    `int(100 * (1 - 0.9))` is 9. With `for_loss` at least one patch is removed, as a loss over
    removed patches needs.

    Raises:
        MaskError: If the ratio is not within 0..1 or there are too few patches.
    """
    number = isinstance(mask_ratio, numbers.Real) and not isinstance(mask_ratio, bool)
    if not number or not 0 <= mask_ratio <= 1:
        raise MaskError(f"mask_ratio is {mask_ratio!r}; give a number from 0 to 1, such as 0.75")
    most = length - 1 if for_loss else length
    if most < 1:
        raise MaskError(f"{length} patches are too few to mask; use a larger image")
    # Nine decimals are far finer than 1 / L and far coarser than the rounding error.
    visible = math.floor(round(length * (1 - float(mask_ratio)), 9))
    return min(max(visible, 1), most)


def mask_from_noise(noise: Tensor, mask_ratio: float) -> PatchMask:
    """Keep the K patches of the lowest noise (the official order of operations).

    Args:
        noise: (N, L), any real values; ties keep the earlier patch.
        mask_ratio: Fraction removed, 0..1.
    """
    visible = num_visible(noise.shape[1], mask_ratio)
    ids_shuffle = torch.argsort(noise, dim=1, stable=True)  # (N, L)
    ids_restore = torch.argsort(ids_shuffle, dim=1)
    mask = (ids_restore >= visible).to(torch.float32)
    return PatchMask(mask, ids_shuffle[:, :visible].contiguous(), ids_restore)


def custom_mask(removed: ArrayLike) -> PatchMask:
    """Remove the given patches.

    Args:
        removed: (h, w) or (N, h, w) booleans, True = removed.

    Raises:
        MaskError: If the array is not boolean, removes everything, or its images keep
            different numbers of patches.
    """
    try:
        array = np.asarray(removed)
    except ValueError as error:
        raise MaskError("the rows of a custom mask are not equally long; give (h, w)") from error
    if array.dtype != np.bool_ or array.ndim not in (2, 3) or array.size == 0:
        raise MaskError(
            f"a custom mask is a (h, w) or (N, h, w) array of booleans, True = removed; "
            f"this one is {array.dtype} of shape {array.shape}"
        )
    flat = array.reshape(-1, array.shape[-2] * array.shape[-1])  # (N, L)
    visible = (~flat).sum(axis=1)
    if visible.min() == 0:
        raise MaskError("the mask removes every patch; leave at least one visible")
    if visible.min() != visible.max():
        few, many = visible.min(), visible.max()
        raise MaskError(f"images of one batch keep {few} to {many} patches; keep equally many")
    noise = torch.from_numpy(flat.astype(np.float32))
    return mask_from_noise(noise, 1 - float(visible[0]) / flat.shape[1])


def draw_mask(
    strategy: str, n: int, grid_size: tuple[int, int], mask_ratio: float, *,
    seed: int | Sequence[int] | None = None, generator: torch.Generator | None = None,
    rows: slice = slice(None),
) -> PatchMask:  # fmt: skip
    """Draw the masks of N images by a strategy.

    * `random` removes patches uniformly (He et al. 2022, section 3). Seed 2 at 75 % on 14 x 14
      gives the mask of the official notebook.
    * `block` removes one rectangle after another; the last is cut to the exact count. What 192 of
      them leave, a few per cent at most, goes patch by patch at random.
    * `grid` removes in the order of a Bayer matrix, which the seed shifts: 75 % keeps one of every
      2 x 2, 50 % a checkerboard.

    Args:
        strategy: One of `STRATEGIES`.
        n: N, images.
        grid_size: (h, w) patches.
        mask_ratio: Fraction removed, 0..1.
        seed: One seed for the batch, or one for each image; each image of the latter gets the
            mask that it would get alone.
        generator: A CPU generator instead of a seed.
        rows: Which of the N images get a mask: the one they have among all N. The others cost
            next to nothing.

    Raises:
        MaskError: If no strategy has that name, or the ratio or a seed is not allowed.
    """
    if strategy not in STRATEGIES:
        raise MaskError(f"no strategy is called {strategy!r}; choose {', '.join(STRATEGIES)}")
    sources = _generators(n, seed, generator)
    noise = _NOISES[strategy]
    if len(sources) == 1:
        drawn = noise(n, grid_size, sources[0], rows)
    else:
        drawn = torch.cat([noise(1, grid_size, source, slice(1)) for source in sources[rows]])
    return mask_from_noise(drawn, mask_ratio)


def random_mask(n: int, length: int, mask_ratio: float, *, seed: int | Sequence[int]) -> PatchMask:
    """`draw_mask` by the strategy `random`, for `length` patches of any grid."""
    return draw_mask("random", n, (1, length), mask_ratio, seed=seed)


def block_mask(
    n: int, grid_size: tuple[int, int], mask_ratio: float, *, seed: int | Sequence[int]
) -> PatchMask:
    """`draw_mask` by the strategy `block`."""
    return draw_mask("block", n, grid_size, mask_ratio, seed=seed)


def grid_mask(
    n: int, grid_size: tuple[int, int], mask_ratio: float, *, seed: int | Sequence[int]
) -> PatchMask:
    """`draw_mask` by the strategy `grid`."""
    return draw_mask("grid", n, grid_size, mask_ratio, seed=seed)


def _generators(
    n: int, seed: int | Sequence[int] | None, generator: torch.Generator | None
) -> list[torch.Generator]:
    """One shared generator (an int seed or a generator), or one for each image (n seeds)."""
    if (seed is None) == (generator is None):
        raise MaskError(f"seed is {seed!r} and generator is {generator!r}; give one of the two")
    if generator is not None:
        return [generator]
    if isinstance(seed, np.ndarray | Tensor):
        seed = seed.tolist()
    seeds: list[Any] = [seed]
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        seeds = list(seed)
        if len(seeds) != n:
            raise MaskError(
                f"{len(seeds)} seed{'s' * (len(seeds) != 1)} for a batch of {n}; give one for each "
                "image, or a single whole number"
            )
    for value in seeds:
        # NumPy's integers are Integral too, and so is bool.
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not (whole and 0 <= int(value) <= MAX_SEED):
            raise MaskError(f"seed is {value!r}; it must be a whole number from 0 to {MAX_SEED}")
    return [torch.Generator().manual_seed(int(value)) for value in seeds]


# The noise of n images from one generator, of which `rows` are returned: (rows, L). What an image
# takes of the generator does not depend on what was drawn before, so no row needs the others.

_Noise = Callable[[int, tuple[int, int], torch.Generator, slice], Tensor]


def _random_noise(
    n: int, grid_size: tuple[int, int], generator: torch.Generator, rows: slice
) -> Tensor:
    return torch.rand(n, grid_size[0] * grid_size[1], generator=generator)[rows]


def _block_noise(
    n: int, grid_size: tuple[int, int], generator: torch.Generator, rows: slice
) -> Tensor:
    """The later a patch is removed the lower its noise."""
    h, w = grid_size
    drawn = torch.rand(n, _BLOCKS * 4 + h * w, generator=generator)[rows].double().numpy()
    # Each block takes four uniform numbers: area, aspect, and its place.
    uniform = drawn[:, : _BLOCKS * 4].reshape(-1, _BLOCKS, 4)
    area = h * w * (_BLOCK_AREA[0] + (_BLOCK_AREA[1] - _BLOCK_AREA[0]) * uniform[..., 0])
    low, high = _BLOCK_LOG_ASPECT
    aspect = np.exp(low + (high - low) * uniform[..., 1])
    block_h = np.clip(np.rint(np.sqrt(area * aspect)), 1, h)
    block_w = np.clip(np.rint(np.sqrt(area / aspect)), 1, w)
    top = np.rint((h - block_h) * uniform[..., 2])
    left = np.rint((w - block_w) * uniform[..., 3])
    corners = np.stack((top, top + block_h, left, left + block_w), axis=-1).astype(int).tolist()

    first = np.full((len(drawn), h, w), _BLOCKS)  # which block removes a patch
    for image, blocks in zip(first, corners, strict=True):
        # Backwards, for a patch goes with the first block that covers it.
        for block in range(_BLOCKS - 1, -1, -1):
            y0, y1, x0, x1 = blocks[block]
            image[y0:y1, x0:x1] = block
    order = first.reshape(-1, h * w)
    # Within a block from left to right and downwards; below 1 where no block was.
    noise = (_BLOCKS - order) * (h * w) - np.arange(h * w)
    return torch.from_numpy(np.where(order < _BLOCKS, noise, drawn[:, _BLOCKS * 4 :]))


def _grid_noise(
    n: int, grid_size: tuple[int, int], generator: torch.Generator, rows: slice
) -> Tensor:
    """Bayer's order: the low bits of (row, column) decide first, so it thins evenly."""
    h, w = grid_size
    bits = max(h - 1, w - 1, 1).bit_length()
    shift = torch.randint(2**bits, (n, 2), generator=generator)[rows]
    down = (torch.arange(h) + shift[:, :1])[:, :, None]
    across = (torch.arange(w) + shift[:, 1:])[:, None, :]
    order = torch.zeros(len(shift), h, w, dtype=torch.int64)
    for bit in range(bits):
        row_bit, column_bit = (down >> bit) & 1, (across >> bit) & 1
        # 0 and 1 lie on one diagonal of the 2 x 2 cell, 2 and 3 on the other.
        order = order * 4 + 2 * (row_bit ^ column_bit) + column_bit
    return order.flatten(1).to(torch.float32)


_NOISES: dict[str, _Noise] = {
    "random": _random_noise, "block": _block_noise, "grid": _grid_noise,
}  # fmt: skip

STRATEGIES = tuple(_NOISES)
