"""Batches of crops, each a pure function of (seed, step).

Sample number k of a run is picture k of an endless sequence of shuffled epochs, cropped by
a generator seeded with (seed, k). So a resumed run sees the very batches that the
undisturbed run would have seen, however many threads prepare them.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae_core.config import DataConfig
from mae_core.data.augment import augment

# Names the kinds of chance, so that none shares a stream with another.
_ORDER, _CROP = 0, 1

# Batches prepared ahead of the step that uses them.
_AHEAD = 4


class Pictures(Protocol):
    """Anything that holds (H, W, 3) uint8 pictures by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]: ...


class BatchLoader:
    """Makes batches in the background, in order."""

    def __init__(
        self,
        pictures: Pictures,
        config: DataConfig,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        """Draw batches of `batch_size` crops; `seed` fixes order and crops."""
        self._pictures = pictures
        self._config = config
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = -1
        self._epoch_order: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def batches(self, start: int, stop: int, side_at: Callable[[int], int]) -> Iterator[Tensor]:
        """Batches of steps `start` up to `stop`, each (N, side, side, 3) uint8.

        Args:
            start: First step.
            stop: One past the last step.
            side_at: The side of the crops in pixels, by step.
        """
        waiting: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(max_workers=1) as pool:
            for step in range(start, min(start + _AHEAD, stop)):
                waiting.append(pool.submit(self.batch, step, side_at(step)))
            for step in range(start, stop):
                if step + _AHEAD < stop:
                    ahead = step + _AHEAD
                    waiting.append(pool.submit(self.batch, ahead, side_at(ahead)))
                yield waiting.popleft().result()

    def batch(self, step: int, side: int) -> Tensor:
        """The batch of one step: (N, side, side, 3) uint8."""
        first = step * self._batch_size
        crops = [self._sample(first + i, side) for i in range(self._batch_size)]
        return torch.from_numpy(np.stack(crops))

    def _sample(self, number: int, side: int) -> NDArray[np.uint8]:
        epoch, place = divmod(number, len(self._pictures))
        picture = self._pictures[int(self._order_of(epoch)[place])]
        rng = np.random.default_rng((self._seed, _CROP, number))
        return augment(picture, side, self._config, rng)

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            rng = np.random.default_rng((self._seed, _ORDER, epoch))
            self._epoch, self._epoch_order = epoch, rng.permutation(len(self._pictures))
        return self._epoch_order
