"""Train a masked autoencoder: mae train RECIPE [field=value …].

    mae train quick data=PICTURES
    mae train quick data=PICTURES data.holdout=OTHERS steps=4000
    mae train --config runs/quick/config.yaml out=runs/again
    torchrun --nproc-per-node 8 -m mae_core.train base data.pack=PACK

Recipes are functions in `recipes.py`; every field of `TrainConfig` can be changed. The run's
folder (`out=`) receives `config.yaml`, `metrics.jsonl`, `checkpoint.pt`, images in
`reconstructions/`, and at the end `weights.safetensors` and `report.html`. The page opens it at
any time: `python -m app --weights runs/quick`. The same command again goes on where a stopped run
ended; `--config` repeats a run. Ctrl-C and SIGTERM save before they end the run.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from mae_core.errors import ConfigError
from mae_core.recipes import RECIPES
from mae_core.training.train import train


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, or 128 plus the number of the signal that stopped it."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\nRecipes:")
        for name, make in RECIPES.items():
            print(f"  {name:<14} {(make.__doc__ or '').splitlines()[0]}")
        return 0
    recipe: str | Path = arguments.pop(0)
    if recipe == "--config":
        if not arguments:
            raise ConfigError("--config needs a file, such as runs/quick/config.yaml")
        recipe = Path(arguments.pop(0))
    for text in arguments:
        if not text.partition("=")[1]:
            raise ConfigError(f"{text!r} is not of the form field=value, such as epochs=20")
    run = train(recipe, **dict(text.split("=", 1) for text in arguments))
    return 128 + run.stopped_by if run.stopped_by else 0
