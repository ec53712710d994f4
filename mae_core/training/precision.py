"""Number formats and kernels of a training step."""

import torch
from timm.layers import Attention

from mae_core.models.mae import MaskedAutoencoder


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward pass: bfloat16 where asked for, else nothing changes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


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
