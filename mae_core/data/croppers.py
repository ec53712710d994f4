"""Where a batch's pixels are cropped: by threads of the CPU, or on the device.

Each cropper splits the work in three: `cut` takes what is needed of one picture, in any thread;
`join` makes a batch of that, in a background thread; and what `join` returns is called by the
thread that trains, for it alone gives work to the device. It returns levels (N, C, side, side)
and colour factors (N, 3) or none, both on the device.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mae_core.data.augment import Crop
from mae_core.data.crops import Regions, crop_batch, crop_one, factors_of, regions_of
from mae_core.data.packed import PackedImages

# Largest share of a device's free memory that a pack may take.
_RESIDENT_SHARE = 0.5

# Bytes of a pack copied to a device in one go.
_COPY_BYTES = 2**26

Pixels: TypeAlias = NDArray[np.uint8]
Joined: TypeAlias = Callable[[], tuple[Tensor, Tensor | None]]


class HostCrops:
    """Each picture is cropped by the thread that loads it, for models that run on the CPU."""

    def cut(self, picture: Pixels, crop: Crop, side: int) -> Pixels:
        """The whole crop, (side, side, C)."""
        return crop_one(picture, crop, side)

    def join(self, cuts: Sequence[Pixels], crops: Sequence[Crop], side: int) -> Joined:
        """A batch of them, still uint8: float would take four times the memory to wait in."""
        batch = torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2)
        return partial(self._finish, batch, factors_of(crops))

    def _finish(self, batch: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return batch.to(torch.float32, memory_format=torch.contiguous_format), factors


class RegionCrops:
    """The regions of the crops travel to the device and are resized there."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def cut(self, picture: Pixels, crop: Crop, side: int) -> Pixels:
        """The region in a piece of memory of its own."""
        left, top, right, bottom = crop.box
        return np.ascontiguousarray(picture[top:bottom, left:right])

    def join(self, cuts: Sequence[Pixels], crops: Sequence[Crop], side: int) -> Joined:
        """All regions one after another, in memory that a GPU reads by itself."""
        ends = np.cumsum([cut.size for cut in cuts]).tolist()
        starts = [end - cut.size for end, cut in zip(ends, cuts, strict=True)]
        # Freed and used again only when the copy out of it is done: torch sees to that.
        pixels = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=_pins(self._device))
        flat = pixels.numpy()
        for start, end, cut in zip(starts, ends, cuts, strict=True):
            flat[start:end] = cut.reshape(-1)
        channels = cuts[0].shape[2]
        row_bytes = [cut.shape[1] * channels for cut in cuts]
        regions = regions_of(starts, row_bytes, crops, channels)
        return partial(self._finish, pixels, _pinned(regions, self._device), side)

    def _finish(self, pixels: Tensor, regions: Regions, side: int) -> tuple[Tensor, Tensor | None]:
        there = regions.to(self._device)
        levels = crop_batch(pixels.to(self._device, non_blocking=True), there, side)
        return levels, there.factors


class ResidentCrops:
    """All pictures of a pack are on the device; only the boxes of the crops travel."""

    def __init__(self, pack: PackedImages, device: torch.device) -> None:
        self._pack = pack
        self._device = device
        self._pixels = _copy_to(pack.pixels, device)

    def __len__(self) -> int:
        return len(self._pack)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of picture `index`."""
        height, width = self._pack.sizes[index].tolist()
        return height, width

    def join(self, indices: Sequence[int], crops: Sequence[Crop], side: int) -> Joined:
        """A batch of crops of pictures given by number."""
        places = np.array(indices)
        lefts, tops = np.array([crop.box[:2] for crop in crops]).T
        channels = self._pack.channels
        row_bytes = self._pack.sizes[places, 1] * channels
        starts = self._pack.offsets[places] + tops * row_bytes + lefts * channels
        regions = regions_of(starts.tolist(), row_bytes.tolist(), crops, channels)
        return partial(self._finish, _pinned(regions, self._device), side)

    def _finish(self, regions: Regions, side: int) -> tuple[Tensor, Tensor | None]:
        there = regions.to(self._device)
        return crop_batch(self._pixels, there, side), there.factors


Cropper: TypeAlias = HostCrops | RegionCrops | ResidentCrops


def choose_cropper(
    pictures: object, device: torch.device, count: int, *, resident: bool
) -> Cropper:
    """What crops on a device.

    Args:
        pictures: Where crops are taken from.
        device: Where they are wanted.
        count: How many; copying a whole pack is not worth it for fewer than it has pictures.
        resident: Whether a pack may be copied to a GPU as a whole.
    """
    if device.type == "cpu":
        return HostCrops()
    asked = resident and device.type == "cuda"
    if asked and isinstance(pictures, PackedImages) and count >= len(pictures):
        free, _ = torch.cuda.mem_get_info(device)
        if pictures.pixels.nbytes <= _RESIDENT_SHARE * free:
            return ResidentCrops(pictures, device)
    return RegionCrops(device)


def _pins(device: torch.device) -> bool:
    return device.type == "cuda"


def _pinned(regions: Regions, device: torch.device) -> Regions:
    return regions.pin_memory() if _pins(device) else regions


def _copy_to(pixels: Pixels, device: torch.device) -> Tensor:
    """(bytes,) on a device, copied piece by piece, as a memory-mapped pack may be large."""
    copied = torch.empty(pixels.size, dtype=torch.uint8, device=device)
    with tqdm(total=pixels.size, desc=f"to {device}", unit="B", unit_scale=True) as bar:
        for start in range(0, pixels.size, _COPY_BYTES):
            piece = np.array(pixels[start : start + _COPY_BYTES])
            copied[start : start + piece.size].copy_(torch.from_numpy(piece))
            bar.update(piece.size)
    return copied
