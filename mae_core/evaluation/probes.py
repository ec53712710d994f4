"""Classification from frozen features: nearest neighbours and linear probes, with intervals.

report = probe("mae-tiny", "flowers", KnnConfig(k=10))
report["accuracy"], report["interval"], report["seeds"]
"""

import logging
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mae_core.config import Checked, Count, NotNegativeInt, Positive, to_dict
from mae_core.data.labelled import LabelledImages, open_labelled
from mae_core.devices import choose_device
from mae_core.distributed import ALONE, World
from mae_core.errors import ConfigError, DataError
from mae_core.evaluation.features import Features, compute, extract
from mae_core.evaluation.knn import knn_scores
from mae_core.evaluation.linear import (
    LEARNING_RATES,
    PENALTIES,
    fit_adamw,
    fit_lars,
    fit_lbfgs,
    sweep,
)
from mae_core.evaluation.scores import Scores, figures_of, score
from mae_core.model.mae import MaskedAutoencoder
from mae_core.weights.formats import Weights
from mae_core.weights.registry import read_weights, weights_name

__all__ = [
    "KnnConfig",
    "KnnProbe",
    "LinearConfig",
    "ProbeConfig",
    "probe",
    "untrained",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeConfig(Checked):
    """What is taken of the encoder.

    Attributes:
        blocks: Encoder blocks, from 0, negative ones from the end; each is measured, and the
            accuracy of the report is that of the last one named.
        pool: `mean` of the patch tokens, or the class token, `cls`.
        image_size: Side of the crops in pixels; 0 for the model's own.
        init: `weights`, or `random` for an encoder of the same shape that was never trained.
        seed: Of the first repetition; it fixes all chance in it.
        seeds: Repetitions, with one seed after another.
    """

    blocks: Annotated[tuple[int, ...], Field(min_length=1)] = (-1,)
    pool: Literal["mean", "cls"] = "mean"
    image_size: NotNegativeInt = 0
    init: Literal["weights", "random"] = "weights"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    seeds: Count = 1


@dataclass(frozen=True)
class KnnConfig(ProbeConfig):
    """Weighted nearest neighbours (Wu et al. 2018).

    Attributes:
        k: Neighbours that vote.
        temperature: A vote weighs exp(similarity / temperature).
    """

    k: Count = 20
    temperature: Positive = 0.07


@dataclass(frozen=True)
class LinearConfig(ProbeConfig):
    """A linear classifier on frozen features.

    Attributes:
        solver: `lbfgs` finds the strength of its L2 penalty, `adamw` its learning rate; both on a
            fifth of the training images. `lars` is the recipe of the paper (He et al. 2022, table
            10), which was made for a million images.
        epochs: Of `adamw` and `lars`.
        batch_size: Likewise; 0 is 256 and 16,384.
        base_lr: Learning rate of `lars` for a batch of 256.
        views: Random crops of each image that `lars` learns from, one an epoch; 0 for the centre.
            The features of all of them are in memory.
    """

    solver: Literal["lbfgs", "adamw", "lars"] = "lbfgs"
    epochs: Count = 90
    batch_size: NotNegativeInt = 0
    base_lr: Positive = 0.1
    views: NotNegativeInt = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views and self.solver != "lars":
            raise ConfigError(f"views={self.views} is for solver=lars; leave it out")


def probe(
    weights: str | Path | Weights, data: str | Path, config: KnnConfig | LinearConfig,
    *, device: str = "auto", cache: Path | None = None, world: World = ALONE,
) -> dict[str, Any]:  # fmt: skip
    """Measure the classification accuracy that an encoder's features allow.

    Args:
        weights: As `read_weights` takes them, or gave them.
        data: As for `open_labelled`.
        config: Which probe.
        device: `auto`, `cpu`, `cuda` or `mps`.
        cache: Folder of kept features; `cache_folder()` if not given.
        world: Ranks that share the images; each gets the report.

    Returns:
        Plain data. `accuracy` is the mean over the seeds, `interval` its 95 % interval over
        images, `seeds` the accuracy of each seed, `deviation` their standard deviation (None of
        one); `per_class` and `confusion` are of all seeds together. `blocks` has the same for each
        block.

    Raises:
        MAEError: If the weights or the data cannot be used, or a field does not fit them.
    """
    begun = time.perf_counter()
    name = weights.name if isinstance(weights, Weights) else weights_name(weights)
    read = weights if isinstance(weights, Weights) else read_weights(weights)
    train, val = open_labelled(data)
    by_block: dict[int, list[tuple[Scores, float | None]]] = {}
    for seed in range(config.seed, config.seed + config.seeds):
        encoder = read if config.init == "weights" else untrained(read, seed)
        take = partial(
            extract, encoder, blocks=config.blocks, device=device, cache=cache,
            image_size=config.image_size or None, range_of=train, world=world,
        )  # fmt: skip
        views = getattr(config, "views", 0)
        parts = [take(train, view=seed * 10**6 + i) for i in range(views)] or [take(train)]
        measured = take(val)
        if not all(torch.equal(part.rows, parts[0].rows) for part in parts):
            raise DataError("some images could be read at times only; try again")
        for block in measured.blocks:
            logits, chosen = _predicted(parts, measured, block, config, seed, device)
            one = score(logits.argmax(dim=1), measured.labels, len(val.classes))
            by_block.setdefault(block, []).append((one, chosen))
            _log.info("seed %d, block %d: %.2f %%", seed, block, 100 * one.accuracy)
    last = config.blocks[-1] % read.config.depth
    return {
        "method": type(config).__name__.removesuffix("Config").lower(),
        "weights": name, "data": str(data), "init": config.init, **_figures(by_block[last], val),
        "block": last,
        "blocks": [{"block": block, **_figures(of, val)} for block, of in by_block.items()],
        "classes": list(val.classes), "train": len(parts[0]), "measured": len(measured),
        "config": to_dict(config), "seconds": round(time.perf_counter() - begun, 1),
        "device": str(choose_device(device)),
    }  # fmt: skip


class KnnProbe:
    """Nearest neighbours of the last block's mean patch tokens, for a model that is trained."""

    def __init__(self, data: str | Path) -> None:
        """Open the data, as for `open_labelled`."""
        self._train, self._val = open_labelled(data)

    def accuracy(self, model: MaskedAutoencoder) -> float:
        """Accuracy, 0..1, of a model on its device."""
        config, last = model.config, model.config.depth - 1
        train, val = (
            compute(model, part, config.image_size, (last,), range_of=self._train)
            for part in (self._train, self._val)
        )
        votes = knn_scores(
            train.of(), train.labels, val.of(), len(val.classes),
            k=min(KnnConfig.k, len(train)), temperature=KnnConfig.temperature,
        )  # fmt: skip
        return score(votes.argmax(dim=1), val.labels, len(val.classes)).accuracy


def untrained(weights: Weights, seed: int) -> Weights:
    """An encoder of the same shape with random parameters."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        state = MaskedAutoencoder(weights.config).state_dict()
    return replace(weights, state=state, kind="autoencoder")


def _predicted(
    train: list[Features], val: Features, block: int, config: KnnConfig | LinearConfig, seed: int,
    device: str,
) -> tuple[Tensor, float | None]:  # fmt: skip
    """(M, C) scores of the classes, and what the probe chose for itself."""
    place, count = choose_device(device), len(val.classes)
    if place.type == "mps":
        place = torch.device("cpu")  # there is no float64 on the other
    views = [part.of(block, config.pool).to(place) for part in train]
    x, labels, queries = views[0], train[0].labels.to(place), val.of(block, config.pool).to(place)
    if isinstance(config, KnnConfig):
        votes = knn_scores(
            x, labels, queries, count, k=config.k, temperature=config.temperature
        )  # fmt: skip
        return votes, None
    if config.solver == "lbfgs":
        found = sweep(x, labels, count, fit_lbfgs, PENALTIES, seed=seed)
    elif config.solver == "adamw":
        fit = partial(
            fit_adamw, epochs=config.epochs, batch_size=config.batch_size or 256, seed=seed
        )
        found = sweep(x, labels, count, fit, LEARNING_RATES, seed=seed)
    else:
        found = fit_lars(
            views, labels, count, base_lr=config.base_lr, epochs=config.epochs,
            batch_size=config.batch_size or 16384, seed=seed,
        )  # fmt: skip
        return found.logits(queries), None
    return found.logits(queries), found.setting


def _figures(of: list[tuple[Scores, float | None]], val: LabelledImages) -> dict[str, Any]:
    chosen = [value for _, value in of if value is not None]
    figures = figures_of([one for one, _ in of], val.classes)
    return figures | ({"chosen": chosen} if chosen else {})
