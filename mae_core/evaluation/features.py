"""Frozen features of labelled images, computed once and kept in a cache.

weights = read_weights("mae-tiny")
train, val = (extract(weights, part) for part in open_labelled("flowers"))
x = train.of(block=-1, pool="mean")  # (N, D)
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from mae_core.config import DataConfig, ModelConfig, to_dict
from mae_core.data.datasets import ImageReader, shown
from mae_core.data.labelled import LabelledImages
from mae_core.data.transforms import Crop, crop_image, draw_crop, normalize
from mae_core.devices import choose_device, without_tf32
from mae_core.distributed import ALONE, World
from mae_core.errors import ConfigError, DataError, ImageError, MAEError
from mae_core.model.mae import MaskedAutoencoder, Pool
from mae_core.weights.files import write_atomically
from mae_core.weights.formats import Weights

__all__ = ["Features", "cache_folder", "compute", "computed", "extract"]

_log = logging.getLogger(__name__)

# Images that go through the model together.
_BATCH = 32

# Part of the name of each file in the cache: raised when features change.
_VERSION = 1

# The centre square; and crops as the official linear probe has them.
_CENTRE = DataConfig(crop="centre", flip=False, short_side=0)
_RANDOM = DataConfig(crop="random", crop_area=(0.08, 1.0), flip=True, short_side=0)


@dataclass(frozen=True)
class Features:
    """Features of N labelled images.

    Attributes:
        tokens: (N, B, 2, D) float32: for each of B blocks the class token, and the mean of the
            patch tokens. Those of the last block are after the encoder's final norm.
        labels: (N,) int64.
        rows: (N,) their places among the images that were given; the others cannot be read.
        classes: Names of the classes.
        blocks: Numbers of the B blocks, from 0.
    """

    tokens: Tensor
    labels: Tensor
    rows: Tensor
    classes: tuple[str, ...]
    blocks: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, block: int = -1, pool: Pool = "mean") -> Tensor:
        """(N, D) features of one block of `blocks`; -1 is the last of them."""
        place = self.blocks.index(self.blocks[-1] if block == -1 else block)
        return self.tokens[:, place, 0 if pool == "cls" else 1]


def cache_folder() -> Path:
    """Where features are kept: `mae_core/features` in XDG_CACHE_HOME or `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "mae_core" / "features"


def extract(
    weights: Weights, images: LabelledImages, *, image_size: int | None = None,
    blocks: Sequence[int] = (-1,), view: int | None = None, device: str = "auto",
    cache: Path | None = None, range_of: LabelledImages | None = None, world: World = ALONE,
) -> Features:  # fmt: skip
    """Run the encoder on whole images, in float32, or read what an earlier call has kept.

    Args:
        weights: With a decoder or without.
        images: What to take features of; those that cannot be read are left out, with a warning.
        image_size: Side of the crops in pixels, a multiple of the patch side; the model's own if
            not given.
        blocks: Numbers of encoder blocks, from 0; negative ones count from the end.
        view: None for the centre square. Else the number of a random crop of each image, 8 % of
            its area at least, mirrored or not, which is a function of this number.
        device: `auto`, `cpu`, `cuda` or `mps`.
        cache: Folder of the kept features; `cache_folder()` if not given.
        range_of: Images that tell the value range of files of more than 8 bits, where the weights
            do not; `images` if not given. Give the part that is learned from for both.
        world: Ranks that share the images; each gets the features of all. Collective.

    Raises:
        ConfigError: If a block or the size does not fit the model.
        DataError: If no image can be read.
    """
    model = weights.build_encoder()
    config, depth = model.config, model.config.depth
    side = image_size or config.image_size
    if side % config.patch_size:
        raise ConfigError(
            f"image_size is {side}; give a multiple of the patch side, {config.patch_size}"
        )
    if not all(-depth <= block < depth for block in blocks):
        raise ConfigError(f"blocks are {list(blocks)}; this encoder has {depth}: 0 to {depth - 1}")
    numbers = tuple(sorted({block % depth for block in blocks}))

    place = choose_device(device) if world.size == 1 else world.device
    about = [
        _VERSION, torch.__version__, place.type, to_dict(config), images.fingerprint,
        (range_of or images).fingerprint, side, numbers, view, weights.digest,
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
    path = (cache_folder() if cache is None else cache) / f"{key}.safetensors"
    kept = _read(path)
    if kept is None or world.any_rank(kept is None):
        own = compute(
            model.to(place), images, side, numbers, view=view, range_of=range_of or images,
            share=slice(world.rank, None, world.size),
        )  # fmt: skip
        tokens, rows = map(torch.cat, zip(*world.gather((own.tokens, own.rows)), strict=True))
        order = rows.argsort()
        kept = {"tokens": tokens[order], "rows": rows[order]}
        # An image that is missing may be there the next time.
        if world.is_main and len(rows) == len(images):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, partial(save_file, kept))
            # They are computed again, that is all.
            except (MAEError, OSError) as error:
                _log.warning("features are not kept: %s", error)
    labels = torch.from_numpy(images.labels)[kept["rows"]]
    return Features(kept["tokens"], labels, kept["rows"], images.classes, numbers)


def _read(path: Path) -> dict[str, Tensor] | None:
    try:
        kept = load_file(path)
        return kept if kept.keys() == {"tokens", "rows"} else None
    except (OSError, SafetensorError):
        return None


@torch.inference_mode()
def compute(
    model: MaskedAutoencoder, images: LabelledImages, side: int, blocks: tuple[int, ...],
    *, view: int | None = None, range_of: LabelledImages, share: slice = slice(None),
) -> Features:  # fmt: skip
    """`extract` of a model on its device, in evaluation mode; nothing is kept.

    `side` is the `image_size`, `blocks` are numbers from 0, in order, and `share` the images that
    are taken.
    """
    config, places = model.config, torch.arange(len(images))[share]

    def crop_of(i: int, height: int, width: int) -> Crop:
        rng = np.random.default_rng((view or 0, int(places[i])))
        return draw_crop(height, width, _CENTRE if view is None else _RANDOM, rng)

    tokens, found = computed(
        lambda batch: _pooled(model, batch, blocks), images.files[share], images.names[share],
        config, side=side, crop_of=crop_of, device=model.pos_embed.device, range_of=range_of.files,
        title="features",
    )  # fmt: skip
    rows = places[found]
    labels = torch.from_numpy(images.labels)[rows]
    return Features(tokens, labels, rows, images.classes, blocks)


def computed(
    function: Callable[[Tensor], Tensor], files: Sequence[Path | bytes], names: Sequence[str],
    config: ModelConfig, *, side: int, crop_of: Callable[[int, int, int], Crop],
    device: torch.device, range_of: Sequence[Path | bytes], title: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What a function gives for images, each read, cropped to a square and normalised.

    Args:
        function: Of (B, C, side, side) float32 images on the device, a tensor of B rows.
        files: The N images; those that cannot be read are left out, with a warning.
        names: Of the files, for the warning.
        config: Channels, bands, value range and statistics of the model.
        side: Of the squares, in pixels.
        crop_of: The crop of an image by its place, height and width.
        device: Where the function runs; outside of autocast in float32 without TF32.
        range_of: Images that tell the value range of files of more than 8 bits, where the config
            does not.
        title: Of the progress bar.

    Returns:
        (M, ...) the M rows on the CPU, and (M,) their places among the files.

    Raises:
        DataError: If no image can be read.
    """
    mean, std = (torch.tensor(v)[:, None, None].to(device) for v in (config.mean, config.std))
    reader = ImageReader(config.in_chans, config.bands, config.value_range or "auto", short_side=0)
    if not config.value_range:
        reader = replace(reader, value_range=reader.find_range(range_of) or "auto")

    def opened(i: int) -> NDArray[np.uint8] | ImageError:
        try:
            image = reader(files[i])
        except ImageError as error:
            return error
        height, width, _ = image.shape
        return crop_image(image, crop_of(i, height, width), side)

    found, rows = list[Tensor](), list[int]()
    bar = tqdm(total=len(files), desc=title, unit="img", leave=False)
    with ThreadPoolExecutor() as pool, bar:
        for start in range(0, len(files), _BATCH):
            numbers = range(start, min(start + _BATCH, len(files)))
            squares = list[NDArray[np.uint8]]()
            for i, square in zip(numbers, pool.map(opened, numbers), strict=True):
                if isinstance(square, ImageError):
                    _log.warning("left out %s: %s", shown(names[i]), square)
                else:
                    squares.append(square)
                    rows.append(i)
            bar.update(len(numbers))
            if squares:
                levels = torch.from_numpy(np.stack(squares)).to(device).permute(0, 3, 1, 2)
                batch = normalize(levels.float().contiguous(), None, mean, std)
                with without_tf32():
                    found.append(function(batch).cpu())
    if not rows:
        raise DataError("no image can be read; check the files")
    return torch.cat(found), torch.tensor(rows)


def _pooled(model: MaskedAutoencoder, images: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """(N, B, 2, D): class token and mean of the patch tokens of each block."""
    by_block = model.features_of_blocks(images, blocks)
    return torch.stack([torch.stack((t[:, 0], t[:, 1:].mean(dim=1)), dim=1) for t in by_block], 1)
