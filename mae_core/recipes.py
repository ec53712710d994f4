"""Named training configurations, each a function that returns one.

Start from a name on the command line and change any field: `python -m mae_core.train quick
data.folder=PICTURES optim.lr=1e-3`.
"""

from collections.abc import Callable

from mae_core.config import (
    DataConfig,
    MaskConfig,
    OptimConfig,
    StageConfig,
    TrainConfig,
    preset,
)
from mae_core.errors import ConfigError


def quick() -> TrainConfig:
    """A first look at one's own pictures: minutes on two CPU cores, blurred but recognisable."""
    return TrainConfig(
        model=preset("tiny"),
        data=DataConfig(short_side=160, crop_area=(0.25, 1.0)),
        optim=OptimConfig(name="muon", lr=3e-3, warmup_steps=50),
        stages=(StageConfig(128, 0.7), StageConfig(224, 0.3)),
        out="runs/quick",
        steps=1000,
        batch_size=32,
        visible_weight=0.1,
        eval_every=250,
        save_every=100,
    )


def bundled_tiny() -> TrainConfig:
    """The recipe of the bundled `mae-tiny` weights: two hours on two CPU cores."""
    return TrainConfig(
        model=preset("tiny"),
        data=DataConfig(short_side=160, crop_area=(0.25, 1.0)),
        mask=MaskConfig(ratio=(0.4, 0.9), random=0.8, block=0.15, grid=0.05),
        optim=OptimConfig(name="muon", lr=3e-3),
        stages=(StageConfig(128, 0.43), StageConfig(160, 0.25), StageConfig(224, 0.32)),
        out="runs/bundled_tiny",
        steps=5300,
        batch_size=64,
        visible_weight=0.1,
        export_dtype="float16",
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {"quick": quick, "bundled_tiny": bundled_tiny}


def recipe(name: str) -> TrainConfig:
    """The named configuration.

    Raises:
        ConfigError: If no recipe has that name.
    """
    if name not in RECIPES:
        raise ConfigError(f"no recipe is called {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()
