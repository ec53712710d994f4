"""Named training configurations, each a function that returns one.

A command line starts from a name and changes any field: `mae train quick data.folder=IMAGES
optim.lr=1e-3`.
"""

from collections.abc import Callable
from dataclasses import replace

from mae_core.config import (
    AdversarialConfig,
    DataConfig,
    MaskConfig,
    ModelConfig,
    OptimConfig,
    StageConfig,
    SystemConfig,
    TrainConfig,
    preset,
)
from mae_core.errors import ConfigError
from mae_core.weights.registry import DEFAULT_WEIGHTS


def quick() -> TrainConfig:
    """A first look at your own images: minutes on two CPU cores, blurred but recognisable."""
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
        snapshots=8,
    )


def bundled_tiny() -> TrainConfig:
    """The recipe of the bundled `mae-tiny` weights: hours on two CPU cores."""
    return TrainConfig(
        model=preset("tiny"),
        data=DataConfig(short_side=160, crop_area=(0.25, 1.0)),
        mask=MaskConfig(ratio=(0.4, 0.9), random=0.8, block=0.15, grid=0.05),
        optim=OptimConfig(name="muon", lr=3e-3),
        # Micro-batches that stay in a core's cache.
        system=SystemConfig(accumulate=4),
        stages=(StageConfig(128, 0.2615), StageConfig(160, 0.164), StageConfig(224, 0.5745)),
        out="runs/bundled_tiny",
        steps=8700,
        batch_size=64,
        loss="log_mse",
        visible_weight=0.1,
        export_dtype="float16",
        snapshots=8,
    )


def bundled_compact() -> TrainConfig:
    """The recipe of the bundled `mae-compact` weights, as it ended: hours on two CPU cores."""
    return TrainConfig(
        model=preset("compact"),
        data=DataConfig(short_side=160, crop_area=(0.25, 1.0)),
        mask=MaskConfig(ratio=(0.4, 0.95), random=0.75, block=0.2, grid=0.05),
        # Constant until its last fifth, so that a run can be made longer or shorter on the way.
        optim=OptimConfig(name="muon", lr=4e-3, decay_share=0.2),
        # Micro-batches that stay in a core's cache.
        system=SystemConfig(accumulate=2),
        stages=(StageConfig(128, 0.583), StageConfig(224, 0.417)),
        out="runs/bundled_compact",
        steps=15000,
        batch_size=64,
        loss="log_mse",
        visible_weight=0.1,
        seam_weight=2.0,
        ema=0.999,
        export_dtype="float16",
        snapshots=8,
    )


def small_data() -> TrainConfig:
    """1,000 to 100,000 images of your own on one GPU: hours."""
    return TrainConfig(
        model=preset("small"),
        mask=MaskConfig(ratio=(0.4, 0.9), random=0.8, block=0.15, grid=0.05),
        optim=OptimConfig(name="muon", lr=2e-3, warmup_epochs=5),
        out="runs/small_data",
        epochs=200,
        batch_size=256,
        loss="log_mse",
        visible_weight=0.1,
        ema=0.999,
    )


def adapt() -> TrainConfig:
    """Continue from trained weights (`init_from=`) on your own images: minutes to hours."""
    return TrainConfig(
        data=DataConfig(crop_area=(0.25, 1.0)),
        mask=MaskConfig(ratio=(0.4, 0.9), random=0.8, block=0.15, grid=0.05),
        optim=OptimConfig(name="muon", lr=1e-3, warmup_steps=20),
        out="runs/adapt",
        snapshots=8,
        init_from=DEFAULT_WEIGHTS,
        steps=500,
        batch_size=32,
        loss="log_mse",
        visible_weight=0.1,
        eval_every=250,
        save_every=100,
    )


def sharpen() -> TrainConfig:
    """Make trained weights (`init_from=`) sharp against a discriminator: hours on two CPU cores."""
    return TrainConfig(
        # Enlarged crops are blurred, and the discriminator would take that for the truth.
        data=DataConfig(short_side=320, crop_area=(0.6, 1.0)),
        mask=MaskConfig(ratio=(0.4, 0.9), random=0.8, block=0.15, grid=0.05),
        optim=OptimConfig(
            name="muon",
            lr=6e-4,
            betas=(0.5, 0.95),
            warmup_steps=20,
            weight_decay=0.0,
            decay_share=0.33,
        ),
        out="runs/sharpen",
        init_from=DEFAULT_WEIGHTS,
        steps=3600,
        batch_size=16,
        loss="log_mse",
        visible_weight=0.1,
        seam_weight=0.3,
        # The discriminator learns at 1e-3: at 4e-4 it was too slow, and a mesh was seen.
        adversarial=AdversarialConfig(width=24, weight=0.7, begin=100, ramp=300, lr_factor=1.7),
        ema=0.99,
        eval_every=500,
        save_every=100,
        snapshots=8,
    )


def cifar() -> TrainConfig:
    """Images of 32 x 32 pixels, such as CIFAR: `tiny` with patches of 2 pixels."""
    return TrainConfig(
        model=replace(preset("tiny"), image_size=32, patch_size=2),
        data=DataConfig(short_side=32),
        optim=OptimConfig(base_lr=1.5e-4, warmup_epochs=20, clip_grad=0.0),
        stages=(StageConfig(32),),
        out="runs/cifar",
        epochs=400,
        batch_size=1024,
    )


def ablation() -> TrainConfig:
    """One run of an ablation at 64 x 64 pixels: minutes on two CPU cores."""
    return TrainConfig(
        model=ModelConfig(
            image_size=64, patch_size=8, embed_dim=128, depth=6, num_heads=4,
            decoder_embed_dim=96, decoder_depth=4, decoder_num_heads=3,
        ),
        data=DataConfig(short_side=80),
        optim=OptimConfig(lr=1.5e-3, warmup_steps=100),
        stages=(StageConfig(64),),
        out="runs/ablation",
        steps=1500,
        batch_size=64,
    )  # fmt: skip


def base() -> TrainConfig:
    """The paper's pre-training of ViT-B: 800 epochs in batches of 4096."""
    return _paper("base")


def large() -> TrainConfig:
    """The paper's pre-training of ViT-L: 800 epochs in batches of 4096."""
    return _paper("large")


def huge() -> TrainConfig:
    """The paper's pre-training of ViT-H: 800 epochs in batches of 4096."""
    return replace(_paper("huge"), system=SystemConfig(checkpoint_activations=True))


def _paper(model: str) -> TrainConfig:
    """Pre-training as He et al. 2022 do it (A.1), with normalised pixels as the target."""
    return TrainConfig(
        model=replace(preset(model), norm_pix=True),
        # Crops of the original files; a pack of ImageNet would take some 335 GB.
        data=DataConfig(decode="epoch", short_side=0),
        optim=OptimConfig(base_lr=1.5e-4, warmup_epochs=40, clip_grad=0.0),
        out=f"runs/{model}",
        epochs=800,
        batch_size=4096,
        eval_every=5000,
        save_every=500,
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    make.__name__: make
    for make in (
        quick,
        adapt,
        sharpen,
        small_data,
        cifar,
        ablation,
        base,
        large,
        huge,
        bundled_tiny,
        bundled_compact,
    )
}


def recipe(name: str) -> TrainConfig:
    """The named configuration.

    Raises:
        ConfigError: If no recipe has that name.
    """
    if name not in RECIPES:
        raise ConfigError(f"no recipe is called {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()
