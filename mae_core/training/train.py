"""Train a masked autoencoder: from a recipe and images to weights.

    run = train("quick", data="photos", steps=200, **{"optim.base_lr": 1e-4})
    model = run.model

The folder of a run (`out`) receives `config.yaml`, `metrics.jsonl`, `checkpoint.pt`, images in
`reconstructions/`, and at the end `weights.safetensors` and `report.html`.
"""

import logging
import os
import platform
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mae_core.config import (
    SOURCES,
    TrainConfig,
    load_yaml,
    read_yaml,
    text_of,
    to_dict,
    with_overrides,
    without_places,
)
from mae_core.data.datasets import find_images
from mae_core.data.labelled import open_labelled
from mae_core.data.loader import BatchLoader, Dataset, open_dataset, with_data_facts
from mae_core.data.streams import ImageStream
from mae_core.distributed import World, init_distributed
from mae_core.errors import ConfigError, DataError
from mae_core.images import DecodedImage
from mae_core.measurements import range_in_words
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.patches import patchify
from mae_core.recipes import recipe as recipe_named
from mae_core.training.adversarial import AdversarialReconstruction, Adversaries
from mae_core.training.callbacks import (
    GRID_ROWS,
    Evaluator,
    Logger,
    Probe,
    Progress,
    Report,
    Snapshots,
    require_writers,
)
from mae_core.training.checkpoint import (
    RunState,
    folder_to_resume,
    load_initial_weights,
    note_changes,
    read_checkpoint,
    restore,
    with_model,
    with_saved_facts,
)
from mae_core.training.optim import (
    build_optimizers,
    with_image_size_of_model,
    with_peak_lr,
    with_steps,
)
from mae_core.training.pretraining import Reconstruction
from mae_core.training.report import CONFIG_FILE, METRICS_FILE, read_metrics
from mae_core.training.runs import alone_in, check_batch, write_config
from mae_core.training.trainer import Trainer, build_state
from mae_core.weights.files import PREVIOUS_WEIGHTS_FILE, WEIGHTS_FILE
from mae_core.weights.formats import Weights, save_weights
from mae_core.weights.names import is_decoder_key
from mae_core.weights.registry import load, read_weights

_log = logging.getLogger(__name__)

# Images that principal components are fitted to: 50,000 patches at 224 pixels.
_PCA_IMAGES = 256


@dataclass(frozen=True)
class Run:
    """A run that has ended, or was stopped by a signal of that number; `config` as resolved."""

    config: TrainConfig
    stopped_by: int = 0

    @property
    def folder(self) -> Path:
        """Where the files of the run are."""
        return Path(self.config.out)

    @property
    def finished(self) -> bool:
        """Whether the run reached its end; if not, starting it again goes on."""
        return self.stopped_by == 0

    @property
    def model(self) -> MaskedAutoencoder:
        """The trained model, with `ema` the averaged one; of a stopped run, its checkpoint."""
        return load(self.folder)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`: figures and events, each with `step` and `seconds`."""
        return read_metrics(self.folder / METRICS_FILE)


def train(
    recipe: str | Path | TrainConfig, /, *, data: str | Path | None = None, **changes: Any
) -> Run:
    """Train to the end and write the weights, or save and return when a signal asks to stop.

    Signals (SIGTERM, Ctrl-C) are noted in the main thread only. Under torchrun call it on every
    rank.

    Args:
        recipe: Name of a recipe, the `config.yaml` of a run, or a config. With `init_from` the
            model of a recipe or config has the shape of those weights.
        data: Folder of training images, in short for `data.folder`.
        **changes: Other fields by their dotted names, such as `steps=200` or
            `**{"optim.base_lr": 1e-4}`. Text is read as on the command line.

    Raises:
        MAEError: If fields do not fit each other, the images, the weights or the checkpoint in
            the run's folder, if files cannot be read or written, and if the loss goes wrong more
            often than the run may roll back. Its sentence says what to do.
    """
    if data is not None:
        changes = {"data.folder": data, **changes}
    plain, name, texts = _begin(recipe)
    texts += [f"{field}={text_of(value)}" for field, value in changes.items()]
    config = with_overrides(plain, [text for text in texts if text.startswith("init_from=")])
    of_model: list[str] = []
    if config.init_from:
        # These change the model of the weights, not that of the recipe.
        of_model = [text for text in texts if text.startswith(("model=", "model."))]
    config = with_overrides(config, [text for text in texts if text not in of_model])

    # Unlike Path.expanduser it keeps the name of a user that there is not.
    out = Path(os.path.expanduser(config.out))
    config = replace(config, out=str(out))
    with init_distributed() as world, alone_in(out, world):
        if not world.is_main:
            logging.getLogger("mae_core").setLevel(logging.WARNING)
        if world.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        given = None if isinstance(recipe, TrainConfig) else plain
        config, state = start_run(config, world, of_model, given)
        write_config(config, name, world)
        config, images = _open_images(config, world)
        note_changes(state, config)
        model = cast(MaskedAutoencoder, state.model)
        _fit_pca_of_run(config, model, images)
        write_config(config, name, world)
        loader = _loader(config, images, world)
        kind = AdversarialReconstruction if config.adversarial.width else Reconstruction
        objective = kind(config, model, loader, world)
        if not world.is_main:
            return Run(config, Trainer(config, state, objective, (), world).fit())
        weights = out / WEIGHTS_FILE
        if weights.exists() and state.step < config.steps:
            # Until the end the run is its checkpoint.
            weights.replace(out / PREVIOUS_WEIGHTS_FILE)
        logger = Logger(out, config)
        evaluator = Evaluator(config, logger, _examples(config, images))
        _log.info("%d held out, on %s", len(evaluator.images), _device_name(state))
        progress, report = Progress(config.steps, state.step), Report(config)
        probes = [Probe(config, logger)] if config.data.labelled else []
        callbacks = (progress, logger, evaluator, *probes, Snapshots(config), report)
        run = Run(config, Trainer(config, state, objective, callbacks, world).fit())
        if run.stopped_by:
            _log.info("stopped at step %d; the same command goes on from there", state.step)
        else:
            trained = state.snapshot()
            record = _record(config, name, state, images, world) | evaluator.measure(trained)
            save_weights(weights, trained, dtype=getattr(torch, config.export_dtype), record=record)
            _log.info("wrote %s; look at it with: python -m app --weights %s", weights, out)
        return run


def _begin(recipe: str | Path | TrainConfig) -> tuple[TrainConfig, str, list[str]]:
    """The config before changes, the name of its recipe, and changes that a file brings."""
    if isinstance(recipe, TrainConfig):
        return recipe, "custom", []
    if not isinstance(recipe, str | Path):
        raise ConfigError(f"{recipe!r} is no recipe; give its name, a config.yaml or a TrainConfig")
    if (Path(recipe) / CONFIG_FILE).is_file():
        raise ConfigError(f"{str(recipe)!r} is a folder; give {str(Path(recipe) / CONFIG_FILE)!r}")
    if isinstance(recipe, str) and Path(recipe).suffix not in (".yaml", ".yml", ".json"):
        return recipe_named(recipe), recipe, []
    plain = load_yaml(TrainConfig, recipe)
    # The file says which decoder, size and target the weights of `init_from` were given.
    model = [f"model.{field}={text_of(value)}" for field, value in to_dict(plain.model).items()]
    return plain, str(read_yaml(recipe).get("recipe", "custom")), model


def start_run(
    config: TrainConfig, world: World, model_changes: Sequence[str] = (),
    plain: TrainConfig | None = None,
) -> tuple[TrainConfig, RunState]:  # fmt: skip
    """The run in `out` where it stopped, else `resume`, else `init_from`, else from scratch.

    What cannot work is refused here, before a folder is packed, which takes long. `model_changes`
    (`model.field=value`) win over the weights of `init_from`; `plain` is the config before its
    fields were changed, for those that follow from others. Collective. The config that is
    returned is resolved but for epochs.
    """
    require_writers(config.writers)
    check_batch(config, world)
    if not any(getattr(config.data, name) for name in SOURCES):
        raise ConfigError(
            "no images are named; give data.folder=FOLDER (or data.pack=, data.hub=, data.shards=)"
        )
    if config.data.holdout:
        find_images(config.data.holdout, quiet=True)
    if config.data.labelled:
        open_labelled(config.data.labelled)
    saved, weights = read_checkpoint(config), None
    # With a checkpoint, the weights that the run began with need not be there any more.
    if config.init_from and not saved:
        with world.main_first():
            weights = read_weights(config.init_from)
    config = with_model(config, model_changes, saved, weights)
    config = with_peak_lr(with_image_size_of_model(config, plain) if plain else config)
    with world.main_first():
        if saved:
            config = with_saved_facts(config, saved)
        else:
            config = with_data_facts(config, _cache(config))
    if config.model.value_range:
        words = range_in_words(config.model.value_range)
        _log.info("values from %s become black to white", words)

    state = _build_state(config, world, weights)
    if saved:
        restore(state, saved, config)
        end = f"{config.epochs:g} epochs" if config.epochs else config.steps
        _log.info("resuming %s at step %d of %s", folder_to_resume(config), state.step, end)
    else:
        begin = f"the weights {state.init_from}" if state.init_from else "scratch"
        _log.info("starting from %s in %s", begin, config.out)
        if config.freeze_encoder and not state.init_from:
            _log.warning(
                "the encoder stays random; give init_from=WEIGHTS for one that has learned"
            )
    return config, state


def _build_state(config: TrainConfig, world: World, weights: Weights | None) -> RunState:
    """The state at step 0, with the parameters of `weights` or freshly drawn ones."""
    # The same initial parameters on every rank.
    torch.manual_seed(config.seed)
    build = partial(MaskedAutoencoder, config.model)
    model = build()
    name = load_initial_weights(model, weights, config.init_from) if weights else ""
    if config.freeze_encoder:
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and is_decoder_key(key))
    wrapper = Adversaries(model, config) if config.adversarial.width else None

    def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
        built = build_optimizers(model, config.optim)
        return [*built, wrapper.optimizer()] if wrapper else built

    state = build_state(
        config, model, world, build=build, build_optimizers=optimizers, wrapper=wrapper
    )
    state.init_from = name
    return state


def _cache(config: TrainConfig) -> Path:
    return Path(config.data.cache or Path(config.out) / "cache")


def _open_images(config: TrainConfig, world: World) -> tuple[TrainConfig, Dataset]:
    """The images, and the config with epochs as steps.

    Rank 0 packs a folder; the others open the pack and never list the folder.
    """
    data = config.data
    if not world.is_main and data.folder and data.decode == "once":
        data = replace(data, folder="", pack=str(_cache(config)), holdout="")
    with world.main_first():
        images = open_dataset(data, _cache(config), config.model)
    return with_steps(config, None if isinstance(images, ImageStream) else len(images)), images


def _loader(config: TrainConfig, images: Dataset, world: World) -> BatchLoader:
    return BatchLoader(
        images, config.data, batch_size=config.batch_size, seed=config.seed,
        mean=config.model.mean, std=config.model.std,
        device=world.device, rank=world.rank, world_size=world.size,
    )  # fmt: skip


def _first_crops(config: TrainConfig, images: Dataset, count: int) -> Tensor:
    """The first crops of the run, at the model's own size: (count, C, H, W), on the CPU."""
    alone = World(0, 1, torch.device("cpu"))
    loader = _loader(replace(config, batch_size=count), images, alone)
    with closing(loader.batches(0, 1, lambda step: config.model.image_size)) as batches:
        return next(batches)[0]


def _examples(config: TrainConfig, images: Dataset) -> list[DecodedImage]:
    """Training images to draw, where there is no hold-out."""
    if config.data.holdout:
        return []
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.model.mean, config.model.std))
    crops = _first_crops(config, images, GRID_ROWS) * std + mean
    return [(crop * 255).round().byte().permute(1, 2, 0).numpy() for crop in crops]


def _record(
    config: TrainConfig, recipe_name: str, state: RunState, images: Dataset, world: World
) -> dict[str, Any]:
    """How the weights came about, for their file's header; names no path of this machine."""
    return {
        "recipe": recipe_name, "init_from": state.init_from, "train": without_places(config),
        "changes": state.changes,
        "pictures": None if isinstance(images, ImageStream) else len(images),
        "pictures_seen": state.step * config.batch_size, "steps": state.step,
        "rollbacks": state.rollbacks, "hours": round(state.seconds / 3600, 3),
        "processes": world.size, "device": _device_name(state),
        "machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__,
    }  # fmt: skip


def _device_name(state: RunState) -> str:
    device = state.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _fit_pca_of_run(config: TrainConfig, model: MaskedAutoencoder, images: Dataset) -> None:
    """Fit the components of the target, unless a checkpoint or weights brought them."""
    count = config.model.pca_components
    if count and model.pca_mean.isnan().any():
        crops = _first_crops(config, images, _PCA_IMAGES).split(32)
        model.set_pca(*fit_pca(crops, config.model.patch_size, count))


def fit_pca(images: Iterable[Tensor], patch_size: int, components: int) -> tuple[Tensor, Tensor]:
    """The mean of all patches and their leading principal directions (He et al. 2022, table 1d).

    The covariance is summed in float64 on the CPU, so that every device gets the same. `images`
    are batches of (n, C, side, side), normalised; n and side may differ between batches.

    Returns:
        The (P,) mean and the (P, components) directions, float32: orthonormal columns, the
        largest variance first.
    """
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for batch in images:
        patches = patchify(batch.cpu().double(), patch_size).flatten(0, 1)  # (n * L, P)
        count += len(patches)
        total = total + patches.sum(dim=0)
        products = products + patches.T @ patches
    if not count:
        raise DataError("principal components are fitted to images; none were given")
    mean = total / count
    covariance = products / count - torch.outer(mean, mean)
    # Eigenvalues come in ascending order.
    directions = torch.linalg.eigh(covariance).eigenvectors.flip(dims=(1,))[:, :components]
    # An eigenvector has no sign; here the first large entry is positive. Not the largest entry:
    # the two halves of an odd pattern tie for it, and rounding would decide.
    sizes = directions.abs()
    first = (sizes >= 0.5 * sizes.amax(dim=0)).int().argmax(dim=0)  # (q,)
    directions = directions * directions.gather(0, first.unsqueeze(0)).sign()
    return mean.float(), directions.float()
