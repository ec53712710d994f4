"""A small model, a small run and a folder of pictures, for tests that need one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mae_core.config import (
    DataConfig,
    MaskConfig,
    ModelConfig,
    OptimConfig,
    StageConfig,
    TrainConfig,
)
from mae_core.model.mae import MaskedAutoencoder
from tests.pictures import draw_picture

MakeRun = Callable[..., TrainConfig]


@pytest.fixture
def small_config() -> ModelConfig:
    """A masked autoencoder of 48 x 48 pictures that runs in milliseconds."""
    return ModelConfig(
        image_size=48, patch_size=8, embed_dim=32, depth=2, num_heads=2,
        decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2,
    )  # fmt: skip


@pytest.fixture
def small_model(small_config: ModelConfig) -> MaskedAutoencoder:
    """The same with seeded parameters, in evaluation mode."""
    torch.manual_seed(0)
    return MaskedAutoencoder(small_config).eval()


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    """Twelve pictures in nested folders and three formats."""
    root = tmp_path / "pictures"
    for i in range(12):
        folder = root / ("a" if i % 2 else "b/c")
        folder.mkdir(parents=True, exist_ok=True)
        suffix = ("png", "jpg", "webp")[i % 3]
        draw_picture(i, 80 + 4 * i, 60).save(folder / f"{i:02d}.{suffix}")
    return root


@pytest.fixture
def run_config(small_config: ModelConfig, picture_folder: Path, tmp_path: Path) -> MakeRun:
    """A run of eight steps over two picture sizes; fields can be changed."""

    def make(**changes: object) -> TrainConfig:
        values: dict[str, object] = {
            "model": small_config,
            "data": DataConfig(folder=str(picture_folder), short_side=56),
            "mask": MaskConfig(ratio=(0.5, 0.8), random=0.6, block=0.2, grid=0.2),
            "optim": OptimConfig(name="muon", lr=2e-3, warmup_steps=2),
            "stages": (StageConfig(32, 0.5), StageConfig(48, 0.5)),
            "out": str(tmp_path / "run"),
            "steps": 8,
            "batch_size": 4,
            "visible_weight": 0.1,
            "eval_every": 4,
            "save_every": 2,
        }
        return TrainConfig(**{**values, **changes})  # type: ignore[arg-type]

    return make
