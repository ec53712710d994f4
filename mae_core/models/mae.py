"""The masked autoencoder (He et al. 2022).

An encoder sees visible patches only; a light decoder fills in mask tokens and predicts pixels.
The model is a deterministic function of (images, PatchMask): chance is drawn in `masking`.
Parameter names are the official flat ones, so that published files load unrenamed.
"""

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from mae_core._compat import ensure_torchvision_imports
from mae_core.config import ModelConfig
from mae_core.errors import PatchError
from mae_core.masking import PatchMask
from mae_core.models.pos_embed import resample_pos_embed, sincos_pos_embed
from mae_core.patches import grid_of, normalize_patches, patchify

ensure_torchvision_imports()

from timm.layers import PatchEmbed  # noqa: E402  (timm needs torchvision to import)
from timm.models.vision_transformer import Block  # noqa: E402


@dataclass(frozen=True)
class MAEOutput:
    """What one forward pass gives.

    Attributes:
        pred: (N, L, P) predicted patches: normalised pixels, or per-patch normalised ones
            where the model's target is `norm_pix`.
        loss: () mean squared error over removed patches (plus the weighted visible ones).
        latent: (N, 1 + K, D) encoder output, class token first, visible patches in the
            mask's shuffled order.
    """

    pred: Tensor
    loss: Tensor
    latent: Tensor


def reconstruction_loss(
    pred: Tensor, target: Tensor, mask: Tensor, visible_weight: float = 0.0
) -> Tensor:
    """Mean squared error over removed patches, plus `visible_weight` times the visible ones'.

    The paper's loss has weight 0: nothing then asks the model to reproduce the patches it
    sees, and they come out speckled. A small weight cures that.

    Args:
        pred: (N, L, P).
        target: (N, L, P).
        mask: (N, L), 1 = removed; at least one patch removed, or the loss is not a number.
        visible_weight: Weight of the visible patches' mean error; 0 or more.

    Returns:
        () float32.
    """
    error = (pred.float() - target.float()).square().mean(dim=-1)  # (N, L)
    removed = (error * mask).sum() / mask.sum()
    if visible_weight == 0:
        return removed
    visible = 1 - mask
    return removed + visible_weight * (error * visible).sum() / visible.sum()


class MaskedAutoencoder(nn.Module):
    """MAE with a ViT encoder and a ViT decoder.

    Images of any size that divides into patches are accepted; positions are resampled.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build the model with freshly drawn parameters (torch's global generator)."""
        super().__init__()
        self.config = config
        width, decoder_width = config.embed_dim, config.decoder_embed_dim
        grid = (config.grid_size, config.grid_size)

        self.patch_embed = PatchEmbed(
            img_size=None, patch_size=config.patch_size, in_chans=config.in_chans,
            embed_dim=width, strict_img_size=False,
        )  # fmt: skip
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(
            sincos_pos_embed(width, grid, cls_token=True), requires_grad=False
        )
        self.blocks = _blocks(config, width, config.depth, config.num_heads)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(
            sincos_pos_embed(decoder_width, grid, cls_token=True), requires_grad=False
        )
        self.decoder_blocks = _blocks(
            config, decoder_width, config.decoder_depth, config.decoder_num_heads
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=config.layer_norm_eps)
        self.decoder_pred = nn.Linear(decoder_width, config.patch_dim)
        self._init_parameters()

    def _init_parameters(self) -> None:
        """Xavier-uniform weights, zero biases, tokens from normal(0.02): the official start."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        projection = self.patch_embed.proj
        nn.init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1))
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, images: Tensor, patch_mask: PatchMask, visible_weight: float = 0.0
    ) -> MAEOutput:
        """Encode the visible patches, predict all of them, and compare with the images.

        Args:
            images: (N, C, H, W), normalised; H and W multiples of the patch side.
            patch_mask: N masks of L = h * w patches, on the images' device.
            visible_weight: See `reconstruction_loss`.

        Raises:
            PatchError: If the images do not divide into patches or do not fit the mask.
        """
        latent = self.encode(images, patch_mask)
        pred = self.decode(latent, patch_mask.ids_restore, self.grid_of(images))
        loss = reconstruction_loss(pred, self.target(images), patch_mask.mask, visible_weight)
        return MAEOutput(pred, loss, latent)

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """The (h, w) patch grid of (N, C, H, W) images.

        Raises:
            PatchError: If the channels are not the model's or a side is no multiple of the
                patch side.
        """
        if images.ndim != 4 or images.shape[1] != self.config.in_chans:
            raise PatchError(
                f"images of shape {tuple(images.shape)} given; this model takes "
                f"(N, {self.config.in_chans}, H, W)"
            )
        return grid_of(images.shape[2], images.shape[3], self.config.patch_size)

    def encode(self, images: Tensor, patch_mask: PatchMask) -> Tensor:
        """Embed images and run the encoder on the visible patches only.

        Returns:
            latent: (N, 1 + K, D).

        Raises:
            PatchError: If the images do not divide into patches or do not fit the mask.
        """
        grid_size = self.grid_of(images)
        if patch_mask.mask.shape != (images.shape[0], grid_size[0] * grid_size[1]):
            raise PatchError(
                f"a mask of shape {tuple(patch_mask.mask.shape)} does not fit "
                f"{images.shape[0]} images of {grid_size[0]}x{grid_size[1]} patches"
            )
        pos_embed = resample_pos_embed(self.pos_embed, self._table_grid, grid_size)
        tokens = self.patch_embed(images.to(self.pos_embed.dtype))  # (N, L, D)
        tokens = tokens + pos_embed[:, 1:]
        visible = _take(tokens, patch_mask.ids_keep)  # (N, K, D)
        cls_token = (self.cls_token + pos_embed[:, :1]).expand(images.shape[0], -1, -1)
        tokens = torch.cat((cls_token.to(visible.dtype), visible), dim=1)  # (N, 1 + K, D)
        latent: Tensor = self.norm(self.blocks(tokens))
        return latent

    def decode(self, latent: Tensor, ids_restore: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Put mask tokens where patches were removed and predict every patch.

        Args:
            latent: (N, 1 + K, D), as `encode` gave it.
            ids_restore: (N, L).
            grid_size: (h, w) with h * w = L.

        Returns:
            pred: (N, L, P).
        """
        tokens = self.decoder_embed(latent)  # (N, 1 + K, E)
        n, length = ids_restore.shape
        removed = length + 1 - tokens.shape[1]
        mask_tokens = self.mask_token.to(tokens.dtype).expand(n, removed, -1)
        shuffled = torch.cat((tokens[:, 1:], mask_tokens), dim=1)  # (N, L, E)
        tokens = torch.cat((tokens[:, :1], _take(shuffled, ids_restore)), dim=1)
        tokens = tokens + resample_pos_embed(self.decoder_pos_embed, self._table_grid, grid_size)
        pred: Tensor = self.decoder_pred(self.decoder_norm(self.decoder_blocks(tokens)))
        return pred[:, 1:]  # (N, L, P)

    def target(self, images: Tensor) -> Tensor:
        """What `pred` is compared with: (N, L, P) pixels, normalised per patch if `norm_pix`."""
        patches = patchify(images, self.config.patch_size)
        return normalize_patches(patches) if self.config.norm_pix else patches

    @property
    def _table_grid(self) -> tuple[int, int]:
        return self.config.grid_size, self.config.grid_size


def _blocks(config: ModelConfig, width: int, depth: int, heads: int) -> nn.Sequential:
    # timm asks for a type but takes any factory.
    norm_layer = cast(type[nn.Module], partial(nn.LayerNorm, eps=config.layer_norm_eps))
    return nn.Sequential(
        *(
            Block(width, heads, mlp_ratio=config.mlp_ratio, qkv_bias=True, norm_layer=norm_layer)
            for _ in range(depth)
        )
    )


def _take(tokens: Tensor, ids: Tensor) -> Tensor:
    """(N, M, D) tokens at (N, K) indices: (N, K, D)."""
    return torch.gather(tokens, 1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
