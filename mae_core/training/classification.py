"""Fine-tuning: a run that trains an encoder, or a part of it, as a classifier.

He et al. 2022, section 4 and A.1.

What is drawn for an image (crop, RandAugment, erasing, stochastic depth) is a function of the seed
and the number of the sample, and mixup pairs neighbours of the batch: so a resumed run, another
number of ranks and other micro-batches compute the same.
"""

import logging
import os
import random
import signal
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from mae_core.config import (
    DataConfig,
    Decay,
    ModelConfig,
    NotNegative,
    OptimConfig,
    PositiveShare,
    Share,
    without_places,
)
from mae_core.data.datasets import ImageReader, shown
from mae_core.data.labelled import LabelledImages
from mae_core.data.transforms import crop_image, draw_crop
from mae_core.distributed import World
from mae_core.errors import ConfigError, DataError, ImageError
from mae_core.model.mae import MaskedAutoencoder
from mae_core.training.callbacks import require_writers
from mae_core.training.optim import with_peak_lr, with_steps
from mae_core.training.runs import (
    TransferConfig,
    TransferRun,
    build_layer_decay,
    check_batch,
    identity_of,
    run_transfer,
)
from mae_core.training.trainer import Loss, Objective, build_state
from mae_core.weights.files import WEIGHTS_FILE
from mae_core.weights.formats import OFFICIAL_CROP_SHARE, Weights, save_classifier

_log = logging.getLogger(__name__)

# Seed words of the different kinds of chance, so that their numbers are independent.
_ORDER, _CROP, _AUGMENT, _DEPTH, _MIX = range(5)


@dataclass(frozen=True)
class FinetuneConfig(TransferConfig):
    """How an encoder becomes a classifier.

    Attributes:
        recipe: Where the other fields' defaults come from: `small` for few images, and those of the
            paper for `base`, `large` and `huge`. `auto` takes the paper's, by the width of the
            encoder, where there are 100,000 training images.
        blocks: How much of the encoder is trained: its last so many blocks, 0.5 for the MLP of the
            last one, 0 for none. Each is a run of its own. Empty for all of it, the patch embedding
            too. Norm and head are always trained.
        drop_path: Stochastic depth of the last block; it rises linearly from 0.
        randaugment: RandAugment in timm's notation, such as `rand-m9-mstd0.5-inc1`; none if empty.
            For images of three channels.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of cutmix; 0 for none. With both, each step has one of them.
        smoothing: Label smoothing, 0..1.
        erasing: Share of the images in which a rectangle is erased.
        crop_area: Smallest and largest share of the image's area in a crop.
        crop_share: Of the measured images' shorter side, the part that the centre square has.
    """

    out: str = "runs/finetune"
    recipe: Literal["auto", "small", "base", "large", "huge"] = "auto"
    blocks: tuple[Annotated[float, Field(ge=0)], ...] = ()
    drop_path: Decay = 0.1
    randaugment: str = "rand-m9-mstd0.5-inc1"
    mixup: NotNegative = 0.8
    cutmix: NotNegative = 1.0
    smoothing: Share = 0.1
    erasing: Share = 0.25
    crop_area: tuple[PositiveShare, PositiveShare] = (0.08, 1.0)
    crop_share: PositiveShare = OFFICIAL_CROP_SHARE

    def __post_init__(self) -> None:
        super().__post_init__()
        for blocks in self.blocks:
            if blocks not in (0.5, int(blocks)):
                raise ConfigError(
                    f"blocks={blocks:g}: give whole numbers, or 0.5 for the MLP of the last block"
                )
        DataConfig(crop_area=self.crop_area)


def freeze_all_but(vit: nn.Module, blocks: float) -> None:
    """Freeze a ViT but for its last blocks, 0.5 for the MLP of the last one, norm and head."""
    depth = len(vit.blocks)  # type: ignore[arg-type]
    for name, parameter in vit.named_parameters():
        part, _, rest = name.partition(".")
        number, _, inner = rest.partition(".")
        if part == "blocks":
            is_last_mlp = int(number) == depth - 1 and inner.startswith(("norm2", "mlp"))
            is_free = is_last_mlp if blocks == 0.5 else int(number) >= depth - blocks
        else:
            is_free = part in ("norm", "fc_norm", "head")
        parameter.requires_grad_(is_free)


def build_vit(
    encoder: MaskedAutoencoder, classes: int, config: FinetuneConfig, side: int
) -> nn.Module:
    """The classifier at step 0; the head is drawn from torch's global generator."""
    vit = encoder.to_timm(classes, img_size=side)
    if config.blocks:
        freeze_all_but(vit, config.blocks[0])
    rates = torch.linspace(0, config.drop_path, len(vit.blocks)).tolist()
    block: Any
    for rate, block in zip(rates, vit.blocks, strict=True):
        # What is frozen is to give the same features each time.
        if rate and block.attn.qkv.weight.requires_grad:
            block.drop_path1 = StochasticDepth(rate)
        if rate and block.mlp.fc1.weight.requires_grad:
            block.drop_path2 = StochasticDepth(rate)
    return vit


class StochasticDepth(nn.Module):
    """A branch that is left out for some of the images (Huang et al. 2016).

    Attributes:
        scale: (N,) of the next batch: 0 where the branch is left out, else 1 / (1 - rate).
    """

    scale: Tensor | None = None

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(N, 1 + L, D)."""
        if not self.training or self.scale is None:
            return branch
        return branch * self.scale.to(branch.dtype).view(-1, 1, 1)


class TrainingSamples(Dataset[tuple[Tensor, int]]):
    """Sample k is image k of an endless sequence of shuffled epochs, augmented."""

    def __init__(
        self, images: LabelledImages, model: ModelConfig, config: FinetuneConfig, side: int
    ) -> None:
        """Of (C, side, side) crops, normalised."""
        from timm.data.auto_augment import rand_augment_transform
        from timm.data.random_erasing import RandomErasing

        self._images, self._seed, self._side = images, config.seed, side
        self._reader = _reader(model)
        self._crop = DataConfig(
            crop="random", crop_area=config.crop_area, flip=config.flip, short_side=0
        )
        self._mean, self._std = (torch.tensor(v)[:, None, None] for v in (model.mean, model.std))
        self._augment: Any = None
        if config.randaugment:
            if model.in_chans != 3:
                raise ConfigError(
                    f"RandAugment is for images of 3 channels, and this model has "
                    f"{model.in_chans}; give randaugment="
                )
            try:
                self._augment = rand_augment_transform(
                    config.randaugment,
                    {
                        "translate_const": int(0.45 * side),
                        "interpolation": Image.Resampling.BICUBIC,
                        "img_mean": tuple(round(255 * value) for value in model.mean),
                    },
                )  # fmt: skip
            except (AssertionError, ValueError, KeyError) as error:
                raise ConfigError(
                    f"randaugment={config.randaugment} is not timm's notation ({error}); give such "
                    "as rand-m9-mstd0.5-inc1"
                ) from error
        self._erase = RandomErasing(config.erasing, mode="pixel", device="cpu")
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        """Image (C, side, side) and class of sample `number`."""
        epoch, place = divmod(number, len(self._images))
        if epoch != self._epoch:
            rng = np.random.default_rng((self._seed, _ORDER, epoch))
            self._epoch, self._order = epoch, rng.permutation(len(self._images))
        image, label = self._read(int(self._order[place]))
        height, width, _ = image.shape
        rng = np.random.default_rng((self._seed, _CROP, number))
        square = crop_image(image, draw_crop(height, width, self._crop, rng), self._side)
        # timm draws from the generators of this process, which is a worker.
        key = int(np.random.SeedSequence((self._seed, _AUGMENT, number)).generate_state(1)[0])
        random.seed(key)
        np.random.seed(key)
        torch.manual_seed(key)
        if self._augment is not None:
            square = np.asarray(self._augment(Image.fromarray(np.ascontiguousarray(square))))
        levels = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
        erased: Tensor = self._erase((levels - self._mean) / self._std)
        return erased.contiguous(), label

    def _read(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """The image, or the next one that can be read."""
        while True:
            try:
                return self._reader(self._images.files[index]), int(self._images.labels[index])
            except ImageError as error:
                _log.warning("skipped %s: %s", shown(self._images.names[index]), error)
                index = (index + 1) % len(self._images)


def _ignore_signals(worker: int) -> None:
    """In a worker process: a signal to the whole group is for the run, which ends its workers."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _reader(model: ModelConfig) -> ImageReader:
    return ImageReader(model.in_chans, model.bands, model.value_range or "auto", short_side=0)


class Classification(Objective):
    """Cross-entropy of a classifier, with mixed images and smoothed labels."""

    def __init__(
        self, config: FinetuneConfig, vit: nn.Module, samples: TrainingSamples, classes: int,
        world: World,
    ) -> None:  # fmt: skip
        self._config, self._samples, self._classes, self._world = config, samples, classes, world
        self._depths = [m for m in vit.modules() if isinstance(m, StochasticDepth)]
        self._share = config.batch_size // world.size
        self._size = self._share // config.system.accumulate
        if (config.mixup or config.cutmix) and self._size % 2:
            raise ConfigError(
                f"mixup and cutmix mix pairs of images, and a micro-batch of a process has "
                f"{self._size}; give a batch_size that makes it even, or mixup=0 cutmix=0"
            )

    def losses(self, begin: int) -> Generator[Sequence[Loss], None, None]:
        """Those of each step from `begin` on."""
        config, world = self._config, self._world
        first = world.rank * self._share

        def numbers() -> Iterator[list[int]]:
            for step in range(begin, config.steps):
                start = step * config.batch_size + first
                yield list(range(start, start + self._share))

        loader = DataLoader(
            self._samples, batch_sampler=numbers(),
            num_workers=min(config.workers, os.cpu_count() or 1),
            worker_init_fn=_ignore_signals, pin_memory=world.device.type == "cuda",
        )  # fmt: skip
        for step, (images, labels) in enumerate(loader, begin):
            images = images.to(world.device, non_blocking=True)
            images, targets = self.mix(images, labels.to(world.device), step)
            scales = self._draw_depths(step)[:, first : first + self._share]
            scales = scales.to(world.device, non_blocking=True)
            parts = (slice(i, i + self._size) for i in range(0, self._share, self._size))
            yield [
                partial(self.loss, images[part], targets[part], scales[:, part]) for part in parts
            ]

    def mix(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mix pairs of neighbours by mixup or cutmix (Zhang et al. 2018, Yun et al. 2019).

        Args:
            images: (N, C, H, W), N even.
            labels: (N,).
            step: Draws the kind and the share, which are those of all ranks.

        Returns:
            (N, C, H, W) images and (N, classes) targets.
        """
        config, rng = self._config, np.random.default_rng((self._config.seed, _MIX, step))
        targets = F.one_hot(labels, self._classes).float()
        targets = targets * (1 - config.smoothing) + config.smoothing / self._classes
        alphas = [alpha for alpha in (config.mixup, config.cutmix) if alpha]
        if not alphas:
            return images, targets
        uses_cutmix = bool(config.cutmix) and (len(alphas) == 1 or bool(rng.random() < 0.5))
        alpha = config.cutmix if uses_cutmix else config.mixup
        share = float(rng.beta(alpha, alpha))
        partners, other = (t.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) for t in (images, targets))
        if uses_cutmix:
            rows, columns = (
                _cutmix_side(side, (1 - share) ** 0.5, int(rng.integers(side)))
                for side in images.shape[-2:]
            )
            images = images.clone()
            images[..., rows, columns] = partners[..., rows, columns]
            cut = (rows.stop - rows.start) * (columns.stop - columns.start)
            share = 1 - cut / (images.shape[-2] * images.shape[-1])
        else:
            images = images * share + partners * (1 - share)
        return images, targets * share + other * (1 - share)

    def _draw_depths(self, step: int) -> Tensor:
        """(M, batch size) scales of the M branches for all images of a step."""
        rng = np.random.default_rng((self._config.seed, _DEPTH, step))
        drawn = torch.from_numpy(rng.random((len(self._depths), self._config.batch_size)))
        rates = torch.tensor([depth.rate for depth in self._depths], dtype=drawn.dtype)[:, None]
        return ((drawn >= rates) / (1 - rates)).float()

    def loss(self, images: Tensor, targets: Tensor, scales: Tensor, forward: nn.Module) -> Tensor:
        """The mean cross-entropy of (N, C, H, W) images and (N, classes) targets."""
        for depth, scale in zip(self._depths, scales, strict=True):
            depth.scale = scale
        return F.cross_entropy(forward(images).float(), targets)


def _cutmix_side(side: int, share: float, centre: int) -> slice:
    """The pixels of one side of a cutmix box that has that share of it, around a centre."""
    half = int(side * share) // 2
    return slice(max(centre - half, 0), min(centre + half, side))


# --- recipes

_ADAMW = OptimConfig(
    betas=(0.9, 0.999), weight_decay=0.05, warmup_epochs=5, final_lr=1e-6, clip_grad=0
)
_SCRATCH = OptimConfig(base_lr=1e-4, weight_decay=0.3, warmup_epochs=20, clip_grad=0)

# Few images are seen a few thousand times in all, too few for images that are mixed.
_SMALL = FinetuneConfig(
    recipe="small", optim=replace(_ADAMW, base_lr=8e-3), epochs=50, batch_size=64,
    layer_decay=0.85, mixup=0.0, cutmix=0.0, eval_every=200, save_every=100,
)  # fmt: skip
_LARGE = FinetuneConfig(
    recipe="large", optim=replace(_ADAMW, base_lr=1e-3), epochs=50, batch_size=1024,
    layer_decay=0.75, drop_path=0.2, eval_every=12_500, save_every=1000,
)  # fmt: skip

# The paper's of B, L and H (table 9), and one for few images.
FINETUNE_RECIPES: dict[str, FinetuneConfig] = {
    "small": _SMALL,
    "base": replace(
        _LARGE, recipe="base", optim=replace(_ADAMW, base_lr=5e-4), epochs=100, layer_decay=0.65,
        drop_path=0.1,
    ),
    "large": _LARGE,
    "huge": replace(_LARGE, recipe="huge", drop_path=0.3),
}  # fmt: skip

# From random parameters, with strong regularisation (table 11).
SCRATCH_RECIPES: dict[str, FinetuneConfig] = {
    name: replace(
        config, init="random", layer_decay=1.0, ema=0.9999, optim=_SCRATCH, erasing=0.0,
        batch_size=4096, epochs=300 if name == "base" else 200,
        drop_path=0.1 if name == "base" else 0.2,
    )
    for name, config in FINETUNE_RECIPES.items() if name != "small"
} | {
    "small": replace(
        _SMALL, init="random", layer_decay=1.0, ema=0.999, mixup=0.8, cutmix=1.0,
        optim=replace(_SCRATCH, base_lr=4e-3, warmup_epochs=5),
    )
}  # fmt: skip

# From so many training images on, `auto` is the recipe of the paper.
_LARGE_DATA = 100_000


def recipe_for(width: int, images: int, *, scratch: bool) -> FinetuneConfig:
    """The recipe of `auto`, for an encoder of that width and a number of training images."""
    recipes = SCRATCH_RECIPES if scratch else FINETUNE_RECIPES
    if images < _LARGE_DATA:
        return recipes["small"]
    return recipes["base" if width <= 768 else "large" if width <= 1024 else "huge"]


# --- a run


def train_classifier(
    config: FinetuneConfig, weights: Weights, train: LabelledImages, val: LabelledImages,
    world: World, measure: Callable[[Any, ModelConfig, float], Any],
    summary: Callable[[Any], Mapping[str, float]],
) -> TransferRun[FinetuneConfig]:  # fmt: skip
    """Train to the end and write the classifier, or save and return when a signal asks to stop.

    Where `config.out` holds a checkpoint the run goes on from it. Collective.

    Args:
        config: At most one of `blocks`.
        weights: Their encoder is fine-tuned, in whole or in part.
        train: Images to learn from.
        val: Images to measure on, of the same classes.
        world: The ranks.
        measure: Measures a ViT on its device, of images as a config has them and cropped to a
            share; on rank 0.
        summary: Figures by name of what was measured.

    Raises:
        MAEError: If a field does not fit the encoder or the images, no image can be read, or the
            folder holds another run.
    """
    check_batch(config, world)
    require_writers(config.writers)
    encoder, classes = weights.build_encoder(), train.classes
    side = config.image_size or encoder.config.image_size
    model = replace(encoder.config, image_size=side, grid=None)
    for part, name in ((train, "training"), (val, "measured")):
        if next(_reader(model).readable(part.files), None) is None:
            raise DataError(f"none of the {name} images that were tried can be read; check them")
    if not model.value_range:
        model = replace(model, value_range=_reader(model).find_range(train.files))
    config = with_peak_lr(with_steps(config, len(train)))

    # The same initial parameters on every rank.
    torch.manual_seed(config.seed)
    build = partial(build_vit, encoder, len(classes), config, side)
    vit = build()
    samples = TrainingSamples(train, model, config, side)
    objective = Classification(config, vit, samples, len(classes), world)
    state = build_state(
        config, vit, world, build=build,
        build_optimizers=partial(
            build_layer_decay, config=config.optim, layer_decay=config.layer_decay
        ),
    )  # fmt: skip
    state.init_from = weights.name
    state.identity = identity_of(weights, train)

    def write(trained: Any, found: Any, config: FinetuneConfig) -> None:
        record = {
            "init_from": weights.name, "train": without_places(config), "pictures": len(train),
            "steps": state.step, "hours": round(state.seconds / 3600, 3), **summary(found),
        }  # fmt: skip
        path = Path(config.out) / WEIGHTS_FILE
        save_classifier(path, trained, model, classes=classes, record=record)

    return run_transfer(
        config, state, objective, world, summary=summary, finish=write,
        measure=lambda vit: measure(vit, model, config.crop_share),
    )  # fmt: skip
