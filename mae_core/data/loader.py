"""Batches of crops, each a pure function of (seed, step).

Sample number k of a run is picture k of an endless sequence of shuffled epochs, cropped by
a generator seeded with (seed, k). So a resumed run sees the very batches that the
undisturbed run would have seen, however many threads prepare them; and process r of W takes
its share of each batch, so that all of them together see what one would have seen. Streams
have an order of their own (see `streams`); their crops are drawn alike.

Where the pixels are cropped depends on the device. For a CPU, threads crop each picture. For
others the batch is cropped there, out of the regions that threads cut; or, with
`data.resident`, out of a pack that was copied there as a whole, if it takes no more than half of
the device's free memory and so many pictures are asked for.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae_core.config import DataConfig
from mae_core.data.augment import Crop, draw_crop
from mae_core.data.croppers import (
    Cropper,
    HostCrops,
    Joined,
    Pixels,
    RegionCrops,
    ResidentCrops,
    choose_cropper,
)
from mae_core.data.crops import finish
from mae_core.data.streams import PictureStream
from mae_core.errors import ConfigError

# Names the kinds of chance, so that none shares a stream with another.
_ORDER, _CROP = 0, 1

# Batches prepared ahead of the step that uses them.
_AHEAD = 4

# Pictures that a thread loads and cuts in one go.
_PART = 8

# Loads one picture, when it is called.
_Load = Callable[[], Pixels]


class Pictures(Protocol):
    """Anything that holds (H, W, C) uint8 pictures by number; several threads may ask."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]: ...


class BatchLoader:
    """Makes one process's batches in the background, in order."""

    def __init__(
        self,
        pictures: Pictures | PictureStream,
        config: DataConfig,
        *,
        batch_size: int,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Draw batches of crops.

        Args:
            pictures: As `open_pictures` gives them.
            config: How they are cropped, and by how many threads.
            batch_size: Pictures in a step, over all processes; a multiple of `world_size`.
            seed: Fixes order and crops.
            mean: Channel means in 0..1, C of them.
            std: Channel deviations, likewise.
            device: Where the batches are wanted.
            rank: Of this process.
            world_size: Processes in all.

        Raises:
            ConfigError: If the batch does not divide over the processes.
        """
        if batch_size % world_size:
            raise ConfigError(
                f"batch_size {batch_size} does not divide over {world_size} processes; make it a "
                "multiple of them"
            )
        self._pictures = pictures
        self._config = config
        self._batch_size, self._share = batch_size, batch_size // world_size
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self._device = _numbered(device)
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32).view(-1, 1, 1).to(self._device)
            for values in (mean, std)
        )
        self._cropper: Cropper | None = None
        self._epoch = -1
        self._epoch_order: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def batches(
        self, start: int, stop: int, side_at: Callable[[int], int]
    ) -> Generator[Tensor, None, None]:
        """This process's part of the batches of steps `start` up to `stop`.

        Args:
            start: First step.
            stop: One past the last step.
            side_at: The side of the crops in pixels, by step.

        Yields:
            (batch_size / world_size, C, side, side) float32, normalised, on the device.

        Raises:
            DataError: If the source breaks off, or too many pictures are unreadable.
        """
        cropper = self._cropper_for((stop - start) * self._share)
        waiting: deque[Future[Joined]] = deque()
        with self._threads(self._config.workers) as pool, self._threads(1) as one:
            loading = self._loading(start, pool)

            def prepare(step: int) -> None:
                waiting.append(
                    one.submit(self._prepare, cropper, loading, step, side_at(step), pool)
                )

            try:
                for step in range(start, min(start + _AHEAD, stop)):
                    prepare(step)
                for step in range(start, stop):
                    levels, factors = waiting.popleft().result()()
                    if step + _AHEAD < stop:
                        prepare(step + _AHEAD)
                    yield finish(levels, factors, self._mean, self._std)
            finally:
                for future in waiting:
                    future.cancel()

    def _cropper_for(self, count: int) -> Cropper:
        """The cropper for a run of so many pictures; a whole pack is worth copying once."""
        if self._cropper is None or not isinstance(self._cropper, ResidentCrops):
            self._cropper = choose_cropper(
                self._pictures, self._device, count, resident=self._config.resident
            )
        return self._cropper

    def _threads(self, count: int) -> ThreadPoolExecutor:
        if self._device.type != "cuda":
            return ThreadPoolExecutor(count)
        # A thread begins on the first GPU, whichever the process uses.
        return ThreadPoolExecutor(
            count, initializer=torch.cuda.set_device, initargs=(self._device,)
        )

    def _numbers(self, step: int) -> range:
        """The numbers of this process's samples in a step."""
        first = step * self._batch_size + self._rank * self._share
        return range(first, first + self._share)

    def _index_of(self, number: int, length: int) -> int:
        """Which picture sample `number` is of."""
        epoch, place = divmod(number, length)
        if epoch != self._epoch:
            rng = np.random.default_rng((self._seed, _ORDER, epoch))
            self._epoch, self._epoch_order = epoch, rng.permutation(length)
        return int(self._epoch_order[place])

    def _draw(self, number: int, height: int, width: int) -> Crop:
        rng = np.random.default_rng((self._seed, _CROP, number))
        return draw_crop(height, width, self._config, rng)

    def _loading(self, start: int, pool: ThreadPoolExecutor) -> Callable[[range], list[_Load]]:
        """What gives the pictures of the numbers of each step in turn, from step `start` on."""
        pictures = self._pictures
        if not isinstance(pictures, PictureStream):
            length = len(pictures)
            return lambda numbers: [
                partial(pictures.__getitem__, self._index_of(number, length)) for number in numbers
            ]
        # The shuffling of a stream wants one number.
        seed = int(np.random.SeedSequence((self._seed, _ORDER)).generate_state(1)[0])
        stream = pictures.pictures(
            start * self._share, seed=seed, rank=self._rank, world_size=self._world_size,
            pool=pool, workers=self._config.workers,
        )  # fmt: skip
        return lambda numbers: [partial(_same, picture) for picture in islice(stream, len(numbers))]

    def _prepare(
        self,
        cropper: Cropper,
        loading: Callable[[range], list[_Load]],
        step: int,
        side: int,
        pool: ThreadPoolExecutor,
    ) -> Joined:
        """All of a batch but what the thread that trains has to do."""
        numbers = self._numbers(step)
        if isinstance(cropper, ResidentCrops):
            indices = [self._index_of(number, len(cropper)) for number in numbers]
            crops = [self._draw(n, *cropper.size(i)) for n, i in zip(numbers, indices, strict=True)]
            return cropper.join(indices, crops, side)
        samples = list(zip(numbers, loading(numbers), strict=True))
        parts = [samples[i : i + _PART] for i in range(0, len(samples), _PART)]
        done = [cut for part in pool.map(partial(self._cut, cropper, side), parts) for cut in part]
        return cropper.join([cut for cut, _ in done], [crop for _, crop in done], side)

    def _cut(
        self, cropper: HostCrops | RegionCrops, side: int, samples: list[tuple[int, _Load]]
    ) -> list[tuple[Pixels, Crop]]:
        cuts = []
        for number, load in samples:
            picture = load()
            crop = self._draw(number, picture.shape[0], picture.shape[1])
            cuts.append((cropper.cut(picture, crop, side), crop))
        return cuts


def _numbered(device: torch.device) -> torch.device:
    """The device with its number, as background threads need to be told of a GPU."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _same(picture: Pixels) -> Pixels:
    return picture
