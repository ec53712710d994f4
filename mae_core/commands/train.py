"""Train a masked autoencoder: python -m mae_core.train RECIPE [field=value …].

    python -m mae_core.train quick data.folder=PICTURES
    python -m mae_core.train quick data.folder=PICTURES data.holdout=OTHERS steps=4000
    torchrun --nproc-per-node 8 -m mae_core.train base data.pack=PACK

Recipes are functions in `recipes.py`; every field of `TrainConfig` can be changed. The run's
folder (`out=`) receives `config.json`, `metrics.jsonl`, `checkpoint.pt`, pictures in
`reconstructions/`, and at the end `weights.safetensors` and `report.html`. The page opens it at
any time: `python -m app --weights runs/quick`. Starting the same command again goes on where a
stopped run ended. Ctrl-C and SIGTERM save before they end the run.
"""

import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mae_core.config import TrainConfig, to_dict, with_overrides, without_places
from mae_core.data.datasets import find_images
from mae_core.data.loader import BatchLoader, Dataset, open_dataset, with_data_facts
from mae_core.data.streams import ImageStream
from mae_core.errors import CheckpointError
from mae_core.evaluation.reconstruction import (
    evaluate_reconstruction,
    load_images,
    summarize,
)
from mae_core.images import DecodedImage
from mae_core.measurements import range_in_words
from mae_core.model.mae import MaskedAutoencoder
from mae_core.recipes import RECIPES, recipe
from mae_core.reconstruct import Reconstructor
from mae_core.training.distributed import World, joined_world
from mae_core.training.loop import Output, Trainer, require_even_shares
from mae_core.training.pca import fit_pca
from mae_core.training.report import write_report
from mae_core.training.run_log import Progress, RunLog, import_tensorboard
from mae_core.training.schedule import (
    image_size_at,
    with_image_size_of_model,
    with_peak_lr,
    with_steps,
)
from mae_core.training.state import (
    RunState,
    note_changes,
    start_run,
    with_saved_facts,
    with_shape_of_weights,
)
from mae_core.training.stop import StopRequest, stop_on_signals
from mae_core.weights.files import write_atomically
from mae_core.weights.registry import WEIGHTS_FILE
from mae_core.weights.saved import save_weights

_log = logging.getLogger(__name__)

# Pictures in the grid that is drawn at every evaluation.
_GRID_ROWS = 6

# Pictures that the principal components are fitted to: 50,000 patches at 224 pixels.
_PCA_PICTURES = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\nRecipes:")
        for name, make in RECIPES.items():
            print(f"  {name:<14} {(make.__doc__ or '').splitlines()[0]}")
        return 0
    name, changes = arguments[0], arguments[1:]
    plain = recipe(name)
    begun = with_overrides(plain, [c for c in changes if c.startswith("init_from=")])
    if not begun.init_from:
        return run(with_overrides(begun, changes), name, unchanged=plain)
    # With weights to begin with, these change the model of the weights, not of the recipe.
    of_model = [change for change in changes if change.startswith(("model=", "model."))]
    config = with_overrides(begun, [change for change in changes if change not in of_model])
    return run(config, name, of_model, plain)


def run(
    config: TrainConfig,
    recipe_name: str,
    model_changes: Sequence[str] = (),
    unchanged: TrainConfig | None = None,
) -> int:
    """Train to the end and write the weights, or save where a signal asks to stop.

    Args:
        config: The run. With `init_from` the model has the shape of those weights.
        recipe_name: What the weights' record calls it.
        model_changes: `model.field=value` texts that go before the shape of those weights.
        unchanged: What `config` was before its fields were changed, for those that follow from
            others; see `with_image_size_of_model`.

    Returns:
        The exit status: 0, or 128 plus the signal's number, as shells report it.

    Raises:
        ConfigError: If the fields do not go together with the pictures, weights or processes.
        DataError: If there are too few readable pictures.
        CheckpointError: If the run's folder holds a checkpoint of another model, or cannot be
            written, or there are no such weights as `init_from`.
        DownloadError: If they cannot be fetched.
        TrainingError: If the loss goes wrong more often than the run may roll back.
    """
    with joined_world() as world, stop_on_signals() as stop:
        if not world.is_first:
            logging.getLogger().setLevel(logging.WARNING)
        if world.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        require_even_shares(config, world.size)
        config = _shaped(config, model_changes, world)
        if unchanged:
            config = with_image_size_of_model(config, unchanged)
        finished = _run_in(world, stop, with_peak_lr(config), recipe_name)
        return 0 if finished else 128 + stop.signal


def _run_in(world: World, stop: StopRequest, config: TrainConfig, recipe_name: str) -> bool:
    """One process's part of the run; whether the end was reached."""
    # Whatever cannot work is said before pictures are packed, which takes its time; and once.
    if world.is_first:
        config = _with_facts(config)
    world.wait()
    if not world.is_first:
        config = _with_facts(config)
    state = start_run(config, world)
    if world.is_first:
        _write_config(config, recipe_name)
    pictures = _open_pictures(config, world)
    if _counts_epochs(config) and not isinstance(pictures, ImageStream):
        config = with_steps(config, len(pictures))
    note_changes(state, config)
    # Neither a checkpoint nor weights brought any.
    if config.model.pca_components and state.model.pca_mean.isnan().any():
        state.model.set_pca(*_principal_components(config, pictures))
    trainer = partial(
        Trainer, config, state, _loader(config, pictures, world), world=world, stop=stop
    )
    if world.is_first:
        finished = _train_in_sight(config, recipe_name, state, pictures, trainer)
    else:
        finished = trainer(output=None).run()
    if finished:
        _write_weights(config, recipe_name, state, pictures, world)
    return finished


def _counts_epochs(config: TrainConfig) -> bool:
    return bool(config.epochs or config.optim.warmup_epochs)


def _with_facts(config: TrainConfig) -> TrainConfig:
    """The run with its steps, where they do not depend on the pictures, and its picture facts.

    Raises:
        CheckpointError: If the checkpoint to go on from cannot be used.
        ConfigError: If TensorBoard is missing, or a stream is given in epochs.
        DataError: If the hold-out is missing or holds no picture, or as of `with_data_facts`.
    """
    if config.tensorboard:
        import_tensorboard()
    if config.data.holdout:
        find_images(config.data.holdout, quiet=True)
    if config.data.hub or config.data.shards or not _counts_epochs(config):
        config = with_steps(config, None)
    config = with_saved_facts(config) or with_data_facts(config, _cache(config))
    if config.model.value_range:
        words = range_in_words(config.model.value_range)
        _log.info("values from %s become black to white", words)
    return config


def _write_config(config: TrainConfig, recipe_name: str) -> None:
    text = json.dumps({"recipe": recipe_name, **to_dict(config)}, indent=2)
    write_atomically(Path(config.out) / "config.json", lambda file: file.write_text(text))


def _shaped(config: TrainConfig, model_changes: Sequence[str], world: World) -> TrainConfig:
    """The run with its model; the first process fetches weights, and the others find them."""
    if not config.init_from:
        return with_shape_of_weights(config, model_changes)
    if world.is_first:
        shaped = with_shape_of_weights(config, model_changes)
    world.wait()
    return shaped if world.is_first else with_shape_of_weights(config, model_changes)


def _open_pictures(config: TrainConfig, world: World) -> Dataset:
    """The pictures; the first process packs them, and the others find them packed."""
    if world.is_first:
        pictures = open_dataset(config.data, _cache(config), config.model)
    world.wait()
    if world.is_first:
        return pictures
    data = config.data
    if data.folder and data.decode == "once":
        # The pack itself, without a look at every file of the folder in every process.
        data = replace(data, folder="", pack=str(_cache(config)), holdout="")
    return open_dataset(data, _cache(config), config.model)


def _cache(config: TrainConfig) -> Path:
    return Path(config.data.cache or Path(config.out) / "cache")


def _loader(config: TrainConfig, pictures: Dataset, world: World) -> BatchLoader:
    return BatchLoader(
        pictures, config.data, batch_size=config.batch_size, seed=config.seed,
        mean=config.model.mean, std=config.model.std,
        device=world.device, rank=world.rank, world_size=world.size,
    )  # fmt: skip


def _first_crops(config: TrainConfig, pictures: Dataset, count: int) -> Tensor:
    """The first crops of the run, at the model's own size: (count, C, H, W), on the CPU."""
    alone = World(0, 1, torch.device("cpu"))
    loader = _loader(replace(config, batch_size=count), pictures, alone)
    with closing(loader.batches(0, 1, lambda step: config.model.image_size)) as batches:
        return next(batches)[0]


def _principal_components(config: TrainConfig, pictures: Dataset) -> tuple[Tensor, Tensor]:
    crops = _first_crops(config, pictures, _PCA_PICTURES)
    return fit_pca(crops.split(32), config.model.patch_size, config.model.pca_components)


def _training_crops(config: TrainConfig, pictures: Dataset) -> list[DecodedImage]:
    """Without a hold-out, training pictures are drawn, but never measured."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.model.mean, config.model.std))
    crops = _first_crops(config, pictures, _GRID_ROWS) * std + mean
    return [(crop * 255).round().byte().permute(1, 2, 0).numpy() for crop in crops]


def _train_in_sight(
    config: TrainConfig,
    recipe_name: str,
    state: RunState,
    pictures: Dataset,
    trainer: Callable[..., Trainer],
) -> bool:
    """Train in the first process, which leaves all that people look at."""
    out, held_out = Path(config.out), _holdout(config)
    rows = held_out[:_GRID_ROWS] or _training_crops(config, pictures)
    _log.info("%d held out, on %s", len(held_out), _device_name(state))
    _write_config(config, recipe_name)

    def evaluate(model: MaskedAutoencoder, step: int) -> Mapping[str, float]:
        log.picture(step, _draw_grid(model, rows))
        return _measure(model, held_out)

    with (
        closing(RunLog(out, tensorboard=config.tensorboard, after_step=state.step)) as log,
        closing(Progress(config.steps, state.step, partial(_pixels_of_step, config))) as progress,
    ):
        _tell_of_the_past(state, log)
        try:
            finished = trainer(output=Output(log, progress, evaluate)).run()
        finally:
            _report(out)
    if not finished:
        _log.info("stopped at step %d; the same command goes on from there", state.step)
    return finished


def _tell_of_the_past(state: RunState, log: RunLog) -> None:
    """What the log should say of a run that goes on."""
    if state.step:
        log.event(state.step, state.seconds, f"went on from step {state.step}")
    for change in state.changes:
        if change["step"] == state.step:
            text = f"{change['field']} changed from {change['from']} to {change['to']}"
            log.event(state.step, state.seconds, text)


def _report(out: Path) -> None:
    """Write the report; a full disk must not hide why the run ended."""
    try:
        _log.info("what happened: %s", write_report(out))
    except CheckpointError as error:
        _log.warning("there is no report: %s", error)


def _pixels_of_step(config: TrainConfig, step: int) -> float:
    """What a step takes beside others, for the estimate of the end."""
    return image_size_at(step, config.steps, config.stages) ** 2


def _holdout(config: TrainConfig) -> list[DecodedImage]:
    return load_images(config.data.holdout, config.model) if config.data.holdout else []


def _measure(model: MaskedAutoencoder, held_out: list[DecodedImage]) -> dict[str, float]:
    if not held_out:
        return {}
    summary = summarize(evaluate_reconstruction(model, held_out, baselines=False))["model"]
    return {f"holdout_{name}": figure.mean for name, figure in summary.items()}


def _draw_grid(model: MaskedAutoencoder, pictures: Sequence[DecodedImage]) -> Image.Image:
    """The four panels of a few pictures, always under the same masks."""
    device = str(model.pos_embed.device)
    reconstructor = Reconstructor(model, "run", device=device, precision="float32")
    # As channels, for their bands are chosen and their values scaled already.
    channels = [
        np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1) / np.float32(255)
        for picture in pictures
    ]
    rows = [reconstructor(one, seed=i).strip() for i, one in enumerate(channels)]
    width, height = max(row.width for row in rows), rows[0].height + 8
    grid = Image.new("RGB", (width, height * len(rows) - 8), "white")
    for i, row in enumerate(rows):
        grid.paste(row, (0, i * height))
    return grid


def _write_weights(
    config: TrainConfig, recipe_name: str, state: RunState, pictures: Dataset, world: World
) -> None:
    """The model for use, with the record of its training. Every process has to ask."""
    if not (world.is_first or config.system.shard):
        return
    model = state.snapshot()
    if world.is_first:
        path = Path(config.out) / WEIGHTS_FILE
        record = _record(config, recipe_name, state, pictures, world)
        record |= _measure(model, _holdout(config))
        save_weights(path, model, dtype=getattr(torch, config.export_dtype), record=record)
        _log.info("wrote %s; look at it with: python -m app --weights %s", path, config.out)


def _record(
    config: TrainConfig, recipe_name: str, state: RunState, pictures: Dataset, world: World
) -> dict[str, Any]:
    """How the weights came about, for their file's header; names no path of this machine."""
    return {
        "recipe": recipe_name, "init_from": state.init_from, "train": without_places(config),
        "changes": state.changes,
        "pictures": None if isinstance(pictures, ImageStream) else len(pictures),
        "pictures_seen": state.step * config.batch_size, "steps": state.step,
        "rollbacks": state.rollbacks, "hours": round(state.seconds / 3600, 3),
        "processes": world.size, "device": _device_name(state),
        "machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__,
    }  # fmt: skip


def _device_name(state: RunState) -> str:
    device = state.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
