"""What a run reads: its data set, and batches of crops that are a function of (seed, step).

Sample k of a run is image k of an endless sequence of shuffled epochs, cropped by a generator
seeded with (seed, k). So a resumed run sees the batches of the undisturbed one, however many
threads prepare them, and rank r of W takes its share of each batch. Streams have an order of
their own; their crops are drawn alike. For a CPU, threads crop image by image. For other devices
they cut out the regions of the crops, and the batch is cropped there.
"""

import itertools
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mae_core.config import DataConfig, ModelConfig, TrainConfig, declared_facts
from mae_core.data.datasets import (
    SAMPLED,
    FolderImages,
    ImageReader,
    channel_statistics,
    find_images,
    some_of,
)
from mae_core.data.pack import PackedImages, open_pack, pack_folder, without_holdout
from mae_core.data.streams import ImageStream
from mae_core.data.transforms import (
    Crop,
    color_factors,
    crop_batch,
    crop_image,
    crop_regions,
    draw_crop,
    normalize,
)
from mae_core.errors import ConfigError, DataError
from mae_core.measurements import ValueRange, range_in_words

_log = logging.getLogger(__name__)

# What a `BatchLoader` makes batches of.
Dataset: TypeAlias = FolderImages | PackedImages | ImageStream

# Seed words of the different kinds of chance, so that their numbers are independent.
_ORDER, _CROP = 0, 1

# Batches prepared ahead of the step that uses them.
_AHEAD = 4

# Images loaded and cut by one task of a thread.
_PART = 8

# Bytes of a pack copied to a device at once.
_COPY_BYTES = 2**26


def open_dataset(config: DataConfig, cache: Path, model: ModelConfig | None = None) -> Dataset:
    """Open the data set that a config names, for a `BatchLoader`.

    `cache` keeps a folder's pack, the note of a pack's passed check and a stream's epoch lengths.
    Ranks that share it open the data set one after the other, and the others find the work of the
    first done. Images are photographs without a `model`.
    """
    model = model or ModelConfig()
    if config.pack:
        pack = open_pack(config.pack, memory=cache)
        if not len(pack):
            raise DataError(f"the pack in {config.pack!r} is empty; make one of more images")
        _check_pack(pack, config, model)
        return without_holdout(pack, config.holdout) if config.holdout else pack
    reader = _reader(config, model)
    if config.hub or config.shards:
        return ImageStream(config, reader, cache)
    if config.decode == "epoch":
        return FolderImages(config.folder, reader, config.max_unreadable, config.holdout)
    return pack_folder(config.folder, cache, reader, config.max_unreadable, config.holdout)


def with_data_facts(config: TrainConfig, cache: Path) -> TrainConfig:
    """Complete a run's model by what its images say: bands, value range, channel statistics.

    The value range is found in some of the images (see `data.range`). The statistics are measured
    there for models of other than three channels, unless they are given.
    """
    data, model = config.data, declared_facts(config).model
    images: Iterable[NDArray[np.uint8]]
    if data.pack:
        pack = open_pack(data.pack, memory=cache)
        if pack.channels == model.in_chans:
            value_range = model.value_range or pack.value_range
            model = replace(model, bands=model.bands or pack.bands, value_range=value_range)
        _check_pack(pack, data, model)
        images = (pack[i][0] for i in some_of(range(len(pack))))
    else:
        # Also where the range is declared: wrong bands are refused here, before packing.
        reader = _reader(data, replace(model, value_range=None))
        files: Sequence[Path | bytes]
        if data.hub or data.shards:
            files = list(islice(ImageStream(data, reader, cache).files(), SAMPLED))
        else:
            files = find_images(data.folder, data.holdout, quiet=True)
        found = reader.find_range(files)
        _warn_of_range(data, model.value_range, found)
        model = replace(model, value_range=model.value_range or found)
        images = _reader(data, model).readable(files)
    unmeasured = (0.5,) * model.in_chans
    if model.in_chans != 3 and (model.mean, model.std) == (unmeasured, unmeasured):
        mean, std = channel_statistics(images)
        model = replace(model, mean=mean, std=std)
        _log.info("channel means %s, deviations %s", mean, std)
    return replace(config, model=model)


def _reader(data: DataConfig, model: ModelConfig) -> ImageReader:
    return ImageReader(
        model.in_chans, model.bands, model.value_range or data.range, data.short_side
    )


def _warn_of_range(data: DataConfig, known: ValueRange | None, found: ValueRange | None) -> None:
    """Warn if a declared range has no effect, or that of the weights does not fit."""
    if found is None and data.range != "auto":
        _log.warning("data.range=%s does nothing: no image has more than 8 bits", data.range)
    if known and found and data.range == "auto":
        spans = zip(known * (len(found) // len(known) or 1), found, strict=False)
        if any(max(abs(a - c), abs(b - d)) > (b - a) / 2 for (a, b), (c, d) in spans):
            _log.warning(
                "the weights of init_from map values from %s, and these images have values from "
                "%s; data.range=LOW,HIGH changes that",
                range_in_words(known), range_in_words(found),
            )  # fmt: skip


def _check_pack(pack: PackedImages, data: DataConfig, model: ModelConfig) -> None:
    for name, packed, wanted in (
        ("channels", pack.channels, model.in_chans),
        ("bands", pack.bands, model.bands),
        ("range", pack.value_range, pack.value_range and model.value_range),
    ):
        if packed != wanted:
            raise DataError(
                f"the pack in {data.pack!r} has {name} {packed} and the run {wanted}; give the "
                f"same, or pack the images again with {name}="
            )


class BatchLoader:
    """Makes the batches of one rank in the background, in order."""

    def __init__(
        self,
        dataset: Dataset,
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
        """Make batches of crops for `device`; `seed` fixes their order and chance.

        `batch_size` counts the images of a step over all ranks. `mean` and `std` are those of the
        C channels, in 0..1.
        """
        if batch_size % world_size:
            raise ConfigError(
                f"batch_size {batch_size} does not divide over {world_size} processes; make it a "
                "multiple of them"
            )
        if device.type == "cuda" and device.index is None:
            # A background thread would take the first GPU.
            device = torch.device("cuda", torch.cuda.current_device())
        self._dataset, self._config, self._seed = dataset, config, seed
        self._batch_size, self._share, self._rank = batch_size, batch_size // world_size, rank
        self._world_size, self._device = world_size, device
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32).view(-1, 1, 1).to(device)
            for values in (mean, std)
        )
        self._on_host = device.type == "cpu"
        self._resident: Tensor | None = None  # the pixels of a pack

    def batches(
        self, start: int, stop: int, side_at: Callable[[int], int]
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Make this rank's share of the batches of steps `start` up to `stop`.

        `side_at` tells the side S of a step's crops in pixels.

        Yields:
            Images (N, C, S, S) float32, normalised, on the device, for N = batch_size /
            world_size; and labels (N,) int64 on the CPU, -1 where there is none.
        """
        if self._resident is None and self._is_worth_copying((stop - start) * self._share):
            self._copy_to_device()
        on_gpu = self._device.type == "cuda"
        use_device = partial(torch.cuda.set_device, self._device) if on_gpu else None
        with (
            ThreadPoolExecutor(self._config.workers) as pool,
            ThreadPoolExecutor(1, initializer=use_device) as background,
        ):
            items, steps = self._items(start, pool), iter(range(start, stop))
            waiting: deque[Future[tuple[Callable[[], Tensor], Tensor]]] = deque()

            def submit(count: int) -> None:
                for step in islice(steps, count):
                    future = background.submit(self._prepare, items, side_at(step), pool)
                    waiting.append(future)

            submit(_AHEAD)
            try:
                while waiting:
                    make_images, labels = waiting.popleft().result()
                    submit(1)
                    yield make_images(), labels
            finally:
                for future in waiting:
                    future.cancel()

    def _is_worth_copying(self, count: int) -> bool:
        """Whether a pack may go to the GPU, takes half of what is free there, and is all used."""
        if not (self._config.resident and self._device.type == "cuda"):
            return False
        if not isinstance(self._dataset, PackedImages) or count < len(self._dataset):
            return False
        free, _ = torch.cuda.mem_get_info(self._device)
        return 2 * self._dataset.pixels.nbytes <= free

    def _copy_to_device(self) -> None:
        """Copy the pack in pieces, as it may be larger than the memory of the host."""
        assert isinstance(self._dataset, PackedImages)
        pixels = self._dataset.pixels
        copy = torch.empty(pixels.size, dtype=torch.uint8, device=self._device)
        for start in tqdm(range(0, pixels.size, _COPY_BYTES), desc=f"to {self._device}"):
            piece = np.array(pixels[start : start + _COPY_BYTES])
            copy[start : start + piece.size].copy_(torch.from_numpy(piece))
        self._resident = copy

    def _items(self, start: int, pool: ThreadPoolExecutor) -> Iterator[tuple[int, Any]]:
        """This rank's samples from step `start` on: numbers, and indices or a stream's samples."""
        first = self._rank * self._share
        numbers = (
            step * self._batch_size + first + place
            for step in itertools.count(start)
            for place in range(self._share)
        )
        if isinstance(self._dataset, ImageStream):
            # `datasets` shuffles by a single number.
            seed = int(np.random.SeedSequence((self._seed, _ORDER)).generate_state(1)[0])
            samples = self._dataset.samples(
                start * self._share, seed=seed, rank=self._rank, world_size=self._world_size,
                pool=pool,
            )  # fmt: skip
            yield from zip(numbers, samples, strict=False)
            return
        current, order = -1, np.zeros(0, dtype=np.int64)
        for number in numbers:
            epoch, place = divmod(number, len(self._dataset))
            if epoch != current:
                rng = np.random.default_rng((self._seed, _ORDER, epoch))
                current, order = epoch, rng.permutation(len(self._dataset))
            yield number, int(order[place])

    def _prepare(
        self, items: Iterator[tuple[int, Any]], side: int, pool: ThreadPoolExecutor
    ) -> tuple[Callable[[], Tensor], Tensor]:
        """What makes a batch's images, and its labels.

        The former gives work to the device, so the thread that trains has to call it.
        """
        samples = list(islice(items, self._share))
        parts = [samples[i : i + _PART] for i in range(0, len(samples), _PART)]
        cuts = [cut for part in pool.map(partial(self._cut, side), parts) for cut in part]
        arrays, starts, crops, classes = map(list, zip(*cuts, strict=True))
        labels, factors = torch.tensor(classes), color_factors(crops)
        if self._on_host:
            # uint8 until it is used: float32 takes four times the memory.
            squares = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
            return partial(self._finish, squares, factors), labels
        pinned = self._device.type == "cuda"
        if self._resident is None:
            *starts, size = itertools.accumulate((a.size for a in arrays), initial=0)
            # torch uses pinned memory again only after the copy out of it.
            pixels = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
            np.concatenate([a.reshape(-1) for a in arrays], out=pixels.numpy())
        else:
            pixels = self._resident
        row_bytes = [a.strides[0] for a in arrays]
        where, padded = crop_regions(starts, row_bytes, crops, channels=arrays[0].shape[2])
        if pinned:
            where = where.pin_memory()
            factors = None if factors is None else factors.pin_memory()

        def crop() -> Tensor:
            # Asynchronous, as the tensors are pinned or on the device already.
            there = pixels.to(self._device, non_blocking=True)
            levels = crop_batch(there, where.to(self._device, non_blocking=True), padded, side)
            return self._finish(levels, factors)

        return crop, labels

    def _cut(
        self, side: int, samples: Sequence[tuple[int, Any]]
    ) -> list[tuple[NDArray[np.uint8], int, Crop, int]]:
        """Pixels, first byte in a resident pack, crop and label of each sample.

        Pixels are the finished crop for a CPU, else the region of the crop.
        """
        cuts = []
        for number, item in samples:
            image, label = item if isinstance(self._dataset, ImageStream) else self._dataset[item]
            height, width, channels = image.shape
            rng = np.random.default_rng((self._seed, _CROP, number))
            crop = draw_crop(height, width, self._config, rng)
            left, top, right, bottom = crop.box
            start, pixels = 0, image[top:bottom, left:right]
            if self._on_host:
                pixels = crop_image(image, crop, side)
            elif self._resident is None:
                pixels = np.ascontiguousarray(pixels)
            elif isinstance(self._dataset, PackedImages):
                start = int(self._dataset.offsets[item]) + (top * width + left) * channels
            cuts.append((pixels, start, crop, label))
        return cuts

    def _finish(self, levels: Tensor, factors: Tensor | None) -> Tensor:
        levels = levels.to(torch.float32, memory_format=torch.contiguous_format)
        if factors is not None:
            factors = factors.to(self._device, non_blocking=True)
        return normalize(levels, factors, self._mean, self._std)
