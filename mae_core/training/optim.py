"""Optimisers: AdamW, or Muon for the blocks' matrices."""

from typing import Any

import torch
from torch import nn

from mae_core.config import OptimConfig


def build_optimizers(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """The optimisers of a run; each trainable parameter is in exactly one of them.

    Matrices decay; biases, norms and tokens do not (He et al. 2022, A.1). With `muon` the
    matrices inside the blocks are updated by orthogonalised momentum (Jordan et al. 2024),
    scaled so that AdamW's learning rate and decay fit it (Liu et al. 2025).
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden = [p for name, p in named if config.name == "muon" and _is_block_matrix(name, p)]
    taken = {id(p) for p in hidden}
    rest = [(name, p) for name, p in named if id(p) not in taken]
    decayed = [p for name, p in rest if _decays(name, p)]
    plain = [p for name, p in rest if not _decays(name, p)]
    groups: list[dict[str, Any]] = [
        {"params": decayed},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True,
        )
    ]  # fmt: skip
    if hidden:
        optimizers.append(
            torch.optim.Muon(
                hidden, lr=config.lr, weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )  # fmt: skip
    return optimizers


def set_lr(optimizers: list[torch.optim.Optimizer], lr: float) -> None:
    """Give every group of every optimiser this learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def _is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and "blocks." in name


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and not name.endswith("_token")
