"""Attention of one patch, by layer and head.

    seen = attend(Reconstructor(load()), ReconstructionRequest("cat.jpg"), patch=90)
    seen.decoder[-1].mean(dim=0)[1:].reshape(seen.grid_size)

A probability says which share of a token's mixture another token's value has, in one head of one
layer. It is not a reason for a prediction, nor the influence of a patch on it: a large share of a
small value is little, residual connections pass by each layer, and from the second layer on a token
holds something of all the others. `influence` measures what a patch changes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mae_core.errors import ConfigError
from mae_core.inside.hooks import twin
from mae_core.model.blocks import Attention as SelfAttention
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import PatchMask
from mae_core.reconstruct import ReconstructionRequest, Reconstructor

__all__ = ["Attention", "attend", "attention", "probabilities"]


@dataclass(frozen=True)
class Attention:
    """Attention of the token of one patch; float32 on the CPU, rows sum to 1.

    Attributes:
        patch: Its number, row by row from 0.
        grid_size: (h, w) patches.
        decoder: (layers, heads, 1 + L) to the class token, then to the patches in row-major order.
        encoder: (layers, heads, 1 + K) to the class token, then to `visible`; None for a removed
            patch, which the encoder never sees. With `encoder_mask_tokens` it sees a token in
            place of each removed patch, so there is one for every patch, and all L are columns.
        visible: (K,) numbers of the patches of the encoder's columns; (L,) likewise.
    """

    patch: int
    grid_size: tuple[int, int]
    decoder: Tensor
    encoder: Tensor | None
    visible: list[int]


def attend(reconstructor: Reconstructor, request: ReconstructionRequest, patch: int) -> Attention:
    """Attention of one patch in the reconstruction that a request asks for.

    Args:
        reconstructor: With the model.
        request: Image and mask; the view means nothing here.
        patch: Number of the patch, 0 to L - 1, row by row.

    Raises:
        MAEError: If the image cannot be used, or a field is not allowed, or there is no such patch.
    """
    _, images, patch_mask = reconstructor.prepare(request)
    return reconstructor.run_model(attention, images, patch_mask, patch)


@torch.inference_mode()
def attention(
    model: MaskedAutoencoder, images: Tensor, patch_mask: PatchMask, patch: int
) -> Attention:
    """Attention of one patch in a forward pass.

    Args:
        model: In evaluation mode; on any device, in any precision.
        images: (1, C, H, W), normalised.
        patch_mask: One mask.
        patch: Number of the patch, 0 to L - 1, row by row.

    Raises:
        ConfigError: If there is no such patch.
    """
    h, w = grid_size = model.grid_of(images)
    if patch not in range(h * w):
        raise ConfigError(
            f"patch is {patch!r}; this image has {h * w}: give 0 to {h * w - 1}",
            code="no_patch", given=patch, patches=h * w, most=h * w - 1,
        )  # fmt: skip
    device = model.pos_embed.device
    images, patch_mask = images.to(device), patch_mask.to(device)
    columns: list[int] = model.encoder_ids(patch_mask)[0].tolist()
    watched = twin(model)
    decoder = _watch(watched.decoder_blocks, 1 + patch)
    encoder = _watch(watched.blocks, 1 + columns.index(patch)) if patch in columns else None
    watched(images, patch_mask)
    return Attention(
        int(patch), grid_size, torch.stack(decoder), torch.stack(encoder) if encoder else None,
        columns,
    )  # fmt: skip


def _watch(blocks: nn.Sequential, row: int) -> list[Tensor]:
    """Where each block's (heads, tokens) probabilities of one token come when it runs."""
    seen: list[Tensor] = []

    def record(module: SelfAttention, arguments: tuple[Tensor]) -> None:
        seen.append(probabilities(module, arguments[0], slice(row, row + 1))[0, :, 0].cpu())

    for module in blocks.modules():
        if isinstance(module, SelfAttention):
            module.register_forward_pre_hook(record)
    return seen


def probabilities(module: SelfAttention, tokens: Tensor, rows: slice = slice(None)) -> Tensor:
    """What a fused kernel does not give: softmax(q k^T), as float32.

    Args:
        module: Of a block of the model.
        tokens: (N, T, D) its input.
        rows: Of the tokens that attend.

    Returns:
        (N, heads, rows, T) probabilities, each row's sum 1.
    """
    n, length, _ = tokens.shape
    qkv = module.qkv(tokens).reshape(n, length, 3, module.num_heads, -1)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4)  # (N, heads, T, D / heads) each
    q, k = module.q_norm(q[:, :, rows]).float(), module.k_norm(k).float()
    shares: Tensor = (q @ k.transpose(-2, -1) * module.scale).softmax(dim=-1)
    return shares
