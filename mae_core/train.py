"""Train a masked autoencoder: python -m mae_core.train RECIPE [field=value …].

    python -m mae_core.train quick data.folder=PICTURES
    python -m mae_core.train quick data.folder=PICTURES data.holdout=OTHERS steps=4000

Recipes are functions in `recipes.py`; every field of `TrainConfig` can be changed. The run's
folder (`out=`) receives `config.json`, `metrics.jsonl`, `checkpoint.pt`, pictures in
`reconstructions/`, and at the end `weights.safetensors`, which the page opens:
`python -m app --weights runs/quick`. Starting the same command again goes on where a stopped
run ended.
"""

import json
import logging
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mae_core.checkpoint import save_weights
from mae_core.config import TrainConfig, to_dict, with_overrides, without_places
from mae_core.data.packed import PackedImages, pack_folder
from mae_core.devices import choose_device
from mae_core.entry import run_entry
from mae_core.evaluation.reconstruction import evaluate_reconstruction, load_pictures
from mae_core.images import fit_image
from mae_core.models.mae import MaskedAutoencoder
from mae_core.recipes import RECIPES, recipe
from mae_core.reconstruction import Reconstructor
from mae_core.training.loop import RunState, start_run, train
from mae_core.weights import WEIGHTS_FILE

_log = logging.getLogger(__name__)

# Pictures in the grid that is drawn at every evaluation.
_GRID_ROWS = 6


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\nRecipes:")
        for name, make in RECIPES.items():
            print(f"  {name:<14} {(make.__doc__ or '').splitlines()[0]}")
        return 0
    run(with_overrides(recipe(arguments[0]), arguments[1:]), arguments[0])
    return 0


def run(config: TrainConfig, recipe_name: str) -> Path:
    """Train to the end and write the weights.

    Returns:
        The weights' file.

    Raises:
        DataError: If there are too few readable pictures.
        CheckpointError: If the run's folder holds a checkpoint of another model.
        TrainingError: If the loss stops being a number.
    """
    out = Path(config.out)
    device = choose_device()
    pictures = pack_folder(
        config.data.folder, config.data.cache or out / "cache",
        short_side=config.data.short_side, max_unreadable=config.data.max_unreadable,
    )  # fmt: skip
    holdout = load_pictures(config.data.holdout, config.model) if config.data.holdout else []
    _log.info("%d pictures, %d held out, on %s", len(pictures), len(holdout), device)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(to_dict(config), indent=2))
    state = start_run(config, device)

    def evaluate(model: MaskedAutoencoder, step: int) -> Mapping[str, float]:
        _draw_grid(model, holdout or _first_pictures(pictures, config), out, step)
        return _measure(model, holdout)

    train(config, state, pictures, device, evaluate)
    path = out / WEIGHTS_FILE
    save_weights(
        path, state.model, dtype=getattr(torch, config.export_dtype),
        record=_record(config, recipe_name, state, pictures, _measure(state.model.eval(), holdout)),
    )  # fmt: skip
    _log.info("wrote %s; look at it with: python -m app --weights %s", path, config.out)
    return path


def _first_pictures(pictures: PackedImages, config: TrainConfig) -> list[Image.Image]:
    """Without a hold-out, training pictures are drawn, but never measured."""
    return [
        fit_image(
            Image.fromarray(pictures[i]), "crop",
            image_size=config.model.image_size, patch_size=config.model.patch_size,
        )
        for i in range(min(_GRID_ROWS, len(pictures)))
    ]  # fmt: skip


def _measure(model: MaskedAutoencoder, holdout: list[Image.Image]) -> dict[str, float]:
    if not holdout:
        return {}
    figures = evaluate_reconstruction(model, holdout, baselines=False)["model"]
    return {f"holdout_{name}": value.mean for name, value in figures.summary().items()}


def _draw_grid(
    model: MaskedAutoencoder, pictures: Sequence[Image.Image], out: Path, step: int
) -> None:
    """The four panels of a few pictures, always under the same masks, as one PNG."""
    device = str(model.pos_embed.device)
    reconstructor = Reconstructor(model, "run", device=device, precision="float32")
    rows = [
        reconstructor(picture, seed=i).strip() for i, picture in enumerate(pictures[:_GRID_ROWS])
    ]
    width, height = max(row.width for row in rows), rows[0].height + 8
    grid = Image.new("RGB", (width, height * len(rows) - 8), "white")
    for i, row in enumerate(rows):
        grid.paste(row, (0, i * height))
    folder = out / "reconstructions"
    folder.mkdir(exist_ok=True)
    grid.save(folder / f"step-{step:06d}.png")


def _record(
    config: TrainConfig,
    recipe_name: str,
    state: RunState,
    pictures: PackedImages,
    figures: Mapping[str, float],
) -> dict[str, Any]:
    """How the weights came about, for their file's header; names no path of this machine."""
    return {
        "recipe": recipe_name, "train": without_places(config), "changes": state.changes,
        "pictures": len(pictures),
        "pictures_seen": state.step * config.batch_size, "steps": state.step,
        "hours": round(state.seconds / 3600, 3), **figures,
        "device": str(state.model.pos_embed.device), "machine": platform.machine(),
        "cores": os.cpu_count(), "torch": torch.__version__,
    }  # fmt: skip


if __name__ == "__main__":
    run_entry(main)
