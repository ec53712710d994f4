"""Fine-tuning as an evaluation: how well an encoder can be made to classify.

report = fine_tune("mae-tiny", "flowers", epochs=20)
report["accuracy"], report["interval"], report["seeds"]
"""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from mae_core.config import ModelConfig, text_of, to_dict, with_overrides
from mae_core.data.labelled import LabelledImages, open_labelled
from mae_core.distributed import init_distributed
from mae_core.errors import ConfigError
from mae_core.evaluation.classifier import classify
from mae_core.evaluation.probes import untrained
from mae_core.evaluation.scores import Scores, figures_of, score
from mae_core.training.classification import (
    FINETUNE_RECIPES,
    SCRATCH_RECIPES,
    FinetuneConfig,
    recipe_for,
    train_classifier,
)
from mae_core.training.runs import open_weights
from mae_core.weights.registry import weights_name

__all__ = ["Method", "fine_tune"]

_log = logging.getLogger(__name__)

Method = Literal["finetune", "partial", "scratch"]

# Blocks that `partial` trains if not told otherwise, and all of them.
_BLOCKS = (0.0, 0.5, 1.0, 2.0, 4.0)


def fine_tune(
    weights: str | Path, data: str | Path, method: Method = "finetune", **changes: Any
) -> dict[str, Any]:
    """Train classifiers that begin with an encoder, and measure them.

    The run is in the folder `out`; of several seeds or numbers of blocks, each is in one of its own
    below it (`blocks-0.5/seed-0`). What is finished there is not done again. Under torchrun call it
    on every rank.

    Args:
        weights: As `read_weights` takes them.
        data: As for `open_labelled`.
        method: `finetune` trains all of the encoder, `partial` its last blocks, `scratch` one of
            the same shape from random parameters, with strong regularisation.
        **changes: Fields of `FinetuneConfig` by dotted names; text is read as on the command line.

    Returns:
        Plain data, as `evaluation.probes.probe` returns it; `blocks` has an entry for each number
        of blocks, `all` of them if they were not varied. On ranks other than 0, and if a signal
        asked to stop (`stopped_by`), there are no figures.

    Raises:
        MAEError: If the weights or the data cannot be used, or a field does not fit them.
    """
    begun = time.perf_counter()
    texts = [f"{field}={text_of(value)}" for field, value in changes.items()]
    asked = with_overrides(FinetuneConfig(), texts)  # a wrong field is told before data are read
    with init_distributed() as world:
        read = open_weights(weights, world)
        with world.main_first():
            train, val = open_labelled(data)
        name, width, depth = weights_name(weights), read.config.embed_dim, read.config.depth
        config = _resolved(asked.recipe, method, texts, width, len(train))
        _check(config, method, depth)
        if method == "partial" and not config.blocks:
            config = replace(config, blocks=tuple(sorted({*_BLOCKS, float(depth)})))

        by_blocks: dict[float | str, list[Scores]] = {}
        runs = _runs(config)
        for run in runs:
            encoder = read if config.init == "weights" else untrained(read, run.seed)
            done = train_classifier(
                run, replace(encoder, name=name), train, val, world, partial(_measured, val),
                lambda scores: {"accuracy": scores.accuracy},
            )  # fmt: skip
            if done.stopped_by and not (done.finished and run is runs[-1]):
                return {"stopped_by": done.stopped_by}
            if done.found:
                blocks = run.blocks[0] if run.blocks else "all"
                by_blocks.setdefault(blocks, []).append(done.found)
                _log.info("%s: %.2f %%", run.out, 100 * done.found.accuracy)
        if not world.is_main:
            return {}
        rows = [
            {"block": blocks, **figures_of(scores, val.classes)}
            for blocks, scores in by_blocks.items()
        ]
        return {
            "method": method, "weights": name, "data": str(data), "init": config.init, **rows[-1],
            "blocks": rows, "classes": list(val.classes), "train": len(train),
            "measured": sum(map(sum, rows[-1]["confusion"])) // config.seeds,
            "config": to_dict(replace(
                done.config, out=config.out, seed=config.seed, seeds=config.seeds,
                blocks=config.blocks,
            )),
            "seconds": round(time.perf_counter() - begun, 1), "device": str(world.device),
        }  # fmt: skip


def _resolved(
    asked: str, method: Method, texts: Sequence[str], width: int, images: int
) -> FinetuneConfig:
    """The recipe with the fields that were given, for an encoder and a number of images."""
    scratch = method == "scratch"
    if asked == "auto":
        plain = recipe_for(width, images, scratch=scratch)
    else:
        plain = (SCRATCH_RECIPES if scratch else FINETUNE_RECIPES)[asked]
    config = with_overrides(replace(plain, out=f"runs/{method}"), texts)
    config = replace(config, recipe=plain.recipe, out=os.path.expanduser(config.out))
    _log.info("recipe %s, %d images to learn from", plain.recipe, images)
    epochs = config.epochs or config.steps * config.batch_size / images
    if epochs < plain.epochs and not any(text.startswith("optim.warmup") for text in texts):
        # A short run is not all warm-up.
        warmup = plain.optim.warmup_epochs * epochs / plain.epochs
        config = replace(config, optim=replace(config.optim, warmup_epochs=warmup))
    return config


def _measured(val: LabelledImages, vit: Any, model: ModelConfig, crop_share: float) -> Scores:
    """Scores of a ViT on its device, in float32, as `mae evaluate classifier` has them."""
    logits, rows = classify(vit, model, val, side=model.image_size, crop_share=crop_share)
    labels = torch.from_numpy(val.labels)[rows]
    return score(logits.argmax(dim=1), labels, len(val.classes))


def _check(config: FinetuneConfig, method: Method, depth: int) -> None:
    if method == "scratch" and config.init != "random":
        raise ConfigError("scratch begins with random parameters; leave init out")
    if method != "partial" and config.blocks:
        raise ConfigError(f"blocks= is for partial; leave it out of {method}")
    if config.blocks and max(config.blocks) > depth:
        raise ConfigError(
            f"blocks are {', '.join(f'{n:g}' for n in config.blocks)}; this encoder has {depth}"
        )


def _runs(config: FinetuneConfig) -> list[FinetuneConfig]:
    """A run for each number of blocks and each seed, in a folder of its own if there are more."""
    runs = []
    for blocks in config.blocks or (None,):
        for seed in range(config.seed, config.seed + config.seeds):
            out, chosen = Path(config.out), () if blocks is None else (blocks,)
            if len(config.blocks) > 1:
                out /= f"blocks-{blocks:g}"
            if config.seeds > 1:
                out /= f"seed-{seed}"
            runs.append(replace(config, seed=seed, seeds=1, blocks=chosen, out=str(out)))
    return runs
