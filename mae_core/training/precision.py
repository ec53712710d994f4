"""Number formats, kernels and memory of a training step."""

from functools import partial

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch.utils.checkpoint import checkpoint

from mae_core.devices import cpu_has_bfloat16
from mae_core.model.mae import MaskedAutoencoder


def training_precision(name: str, device: torch.device) -> str:
    """The number format of a forward pass: `float32`, `bfloat16` or `float16`.

    Args:
        name: One of these, or `auto`: bfloat16 where the device multiplies it; else float16 on
            CUDA, whose small gradients a loss scaler keeps; else float32.
        device: Where the model runs.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(False) else "float16"
    return "bfloat16" if device.type == "cpu" and cpu_has_bfloat16() else "float32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward pass in a number format that `training_precision` gave."""
    reduced = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, reduced, enabled=precision != "float32")


def loss_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """What keeps float16 gradients from vanishing; does nothing for the other formats."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")


def prefer_fast_attention(model: MaskedAutoencoder, device: torch.device) -> None:
    """On a CPU, spell attention out instead of calling the fused kernel.

    The backward pass of torch's fused attention on CPUs took 37 % of a training step of the
    `tiny` preset at 224 pixels; plain matrix products made the whole step 1.5 times as fast
    (python -m benchmarks.bench_attention).
    """
    if device.type == "cpu":
        for module in model.modules():
            if isinstance(module, Attention):
                # timm marks the flag final for TorchScript only.
                module.fused_attn = False  # type: ignore[misc]


def checkpoint_activations(model: MaskedAutoencoder) -> None:
    """Have the backward pass recompute each block instead of keeping what is inside it."""
    for block in _blocks_of(model):
        # Nothing in a block draws chance, so there is no generator state to keep.
        block.forward = partial(  # type: ignore[method-assign]
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )


def compile_blocks(model: MaskedAutoencoder) -> None:
    """Compile each block in place; they share the code, whatever the number of tokens."""
    for block in _blocks_of(model):
        block.compile(dynamic=True)


def _blocks_of(model: MaskedAutoencoder) -> list[Block]:
    return [module for module in model.modules() if isinstance(module, Block)]
