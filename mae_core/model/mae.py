"""The masked autoencoder (He et al. 2022).

An encoder sees visible patches only; a light decoder fills in mask tokens and predicts pixels.
Two variants of the paper's ablations are here too: an encoder that sees mask tokens, and
principal components of patches as the target.
The model is a deterministic function of (images, PatchMask): chance is drawn in `masking`.
Parameter names are the official flat ones, so that published files load unrenamed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from mae_core._compat import ensure_torchvision_imports
from mae_core.config import ModelConfig
from mae_core.errors import PatchError
from mae_core.model.masking import PatchMask, draw_mask
from mae_core.model.patches import grid_of, normalize_patches, patchify
from mae_core.model.pos_embed import resample_pos_embed, sincos_pos_embed

ensure_torchvision_imports()

from timm.layers import PatchEmbed  # noqa: E402  (timm needs torchvision to import)
from timm.models.vision_transformer import Block  # noqa: E402


@dataclass(frozen=True)
class MAEOutput:
    """What one forward pass gives.

    Attributes:
        pred: (N, L, P) predicted patches: normalised pixels, or per-patch normalised ones
            where the model's target is `norm_pix`; (N, L, q) where it is q principal
            components.
        mask: (N, L), 1 = removed.
        latent: (N, 1 + K, D) encoder output, class token first, visible patches in the
            mask's shuffled order; (N, 1 + L, D) with `encoder_mask_tokens`, the removed ones
            after them.
        ids_restore: (N, L) where each patch stands in that order.
    """

    pred: Tensor
    mask: Tensor
    latent: Tensor
    ids_restore: Tensor


class MaskedAutoencoder(nn.Module):
    """MAE with a ViT encoder and a ViT decoder.

    Images of any size that divides into patches are accepted; positions are resampled.

    Attributes:
        name: Of its weights, for people; empty until they are loaded by one.
        pca_mean: (P,) mean of all patches, only where the target is principal components.
        pca_basis: (P, q) their principal directions, likewise; orthonormal columns.
    """

    name: str = ""
    pca_mean: Tensor
    pca_basis: Tensor

    def __init__(self, config: ModelConfig) -> None:
        """Build the model with freshly drawn parameters (torch's global generator)."""
        super().__init__()
        self.config = config
        width, decoder_width = config.embed_dim, config.decoder_embed_dim
        grid, (ratio, decoder_ratio) = config.table_grid, config.mlp_ratios

        self.patch_embed = PatchEmbed(
            img_size=None, patch_size=config.patch_size, in_chans=config.in_chans,
            embed_dim=width, strict_img_size=False,
        )  # fmt: skip
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(
            sincos_pos_embed(width, grid, cls_token=True), requires_grad=False
        )
        self.blocks = _blocks(config, width, config.depth, config.num_heads, ratio)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        if config.encoder_mask_tokens:
            self.encoder_mask_token = nn.Parameter(torch.zeros(1, 1, width))

        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(
            sincos_pos_embed(decoder_width, grid, cls_token=True), requires_grad=False
        )
        self.decoder_blocks = _blocks(
            config, decoder_width, config.decoder_depth, config.decoder_num_heads, decoder_ratio
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=config.layer_norm_eps)
        self.decoder_pred = nn.Linear(decoder_width, config.target_dim)
        if config.pca_components:
            # No numbers until `set_pca`, so that a model that was not given any cannot learn.
            nan, dim = math.nan, config.patch_dim
            self.register_buffer("pca_mean", torch.full((dim,), nan))
            self.register_buffer("pca_basis", torch.full((dim, config.pca_components), nan))
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
        # Last, so that all others are drawn alike with it and without.
        if self.config.encoder_mask_tokens:
            nn.init.normal_(self.encoder_mask_token, std=0.02)

    def set_pca(self, mean: Tensor, basis: Tensor) -> None:
        """Say what the principal components of a patch are, where they are the target.

        Args:
            mean: (P,) mean of all patches.
            basis: (P, q) with orthonormal columns, q being `pca_components`.

        Raises:
            PatchError: If the shapes are not this model's.
        """
        dim, components = self.config.patch_dim, self.config.pca_components
        if not components or mean.shape != (dim,) or basis.shape != (dim, components):
            raise PatchError(
                f"a PCA of shapes {tuple(mean.shape)} and {tuple(basis.shape)} does not fit "
                f"patches of {dim} values and pca_components={components}"
            )
        self.pca_mean.copy_(mean)
        self.pca_basis.copy_(basis)

    def forward(
        self,
        images: Tensor,
        patch_mask: PatchMask | None = None,
        *,
        mask_ratio: float = 0.75,
        seed: int | Sequence[int] = 0,
        strategy: str = "random",
    ) -> MAEOutput:
        """Encode the visible patches and predict all of them.

        Args:
            images: (N, C, H, W), normalised; H and W multiples of the patch side.
            patch_mask: N masks of L = h * w patches, on the images' device; if not given, it is
                drawn by `draw_mask` from the rest.
            mask_ratio: Fraction removed, 0..1.
            seed: Of the masks, or one for each image.
            strategy: `random`, `block` or `grid`.

        Raises:
            PatchError: If the images do not divide into patches or do not fit the mask.
            MaskError: If ratio, seed or strategy are not allowed.
        """
        grid_size = self.grid_of(images)
        if patch_mask is None:
            drawn = draw_mask(strategy, len(images), grid_size, mask_ratio, seed=seed)
            patch_mask = drawn.to(images.device)
        latent = self.encode(images, patch_mask)
        pred = self.decode(latent, patch_mask.ids_restore, grid_size)
        return MAEOutput(pred, patch_mask.mask, latent, patch_mask.ids_restore)

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

        With `encoder_mask_tokens` it runs on all patches, a token in place of each removed one.

        Returns:
            latent: (N, 1 + K, D); (N, 1 + L, D) with `encoder_mask_tokens`.

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
        ids = patch_mask.ids_keep
        if self.config.encoder_mask_tokens:
            removed = patch_mask.mask.bool().unsqueeze(-1)  # (N, L, 1)
            tokens = torch.where(removed, self.encoder_mask_token, tokens)
            ids = patch_mask.ids_restore.argsort(dim=1)  # ids_shuffle
        tokens = _take(tokens + pos_embed[:, 1:], ids)  # (N, K, D)
        cls_token = (self.cls_token + pos_embed[:, :1]).expand(images.shape[0], -1, -1)
        tokens = torch.cat((cls_token.to(tokens.dtype), tokens), dim=1)  # (N, 1 + K, D)
        latent: Tensor = self.norm(self.blocks(tokens))
        return latent

    def decode(self, latent: Tensor, ids_restore: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Put mask tokens where patches were removed and predict every patch.

        Args:
            latent: (N, 1 + K, D) or (N, 1 + L, D), as `encode` gave it.
            ids_restore: (N, L).
            grid_size: (h, w) with h * w = L.

        Returns:
            pred: (N, L, P), or (N, L, q) of principal components.
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
        """What `pred` is compared with.

        Returns:
            (N, L, P) pixels, normalised per patch if `norm_pix`; or the (N, L, q) leading
            principal components of the patches.
        """
        patches = patchify(images, self.config.patch_size)
        if self.config.pca_components:
            mean, basis = self._pca_for(patches)
            # A target rounded to bfloat16 would be another target.
            with torch.autocast(patches.device.type, enabled=False):
                return (patches - mean) @ basis
        return normalize_patches(patches) if self.config.norm_pix else patches

    def patches_from(self, pred: Tensor) -> Tensor:
        """Patches in the units of the images, or per-patch normalised ones, from a prediction.

        Args:
            pred: (N, L, P), or (N, L, q) of principal components, which are undone.

        Returns:
            (N, L, P); `pred` itself where it is that already.
        """
        if not self.config.pca_components:
            return pred
        mean, basis = self._pca_for(pred)
        return pred @ basis.T + mean

    def _pca_for(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and basis where `values` are and in their number format."""
        return self.pca_mean.to(values), self.pca_basis.to(values)

    @property
    def _table_grid(self) -> tuple[int, int]:
        return self.config.table_grid


def _blocks(
    config: ModelConfig, width: int, depth: int, heads: int, mlp_ratio: float
) -> nn.Sequential:
    # timm asks for a type but takes any factory.
    norm_layer = cast(type[nn.Module], partial(nn.LayerNorm, eps=config.layer_norm_eps))
    return nn.Sequential(
        *(
            Block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=norm_layer)
            for _ in range(depth)
        )
    )


def _take(tokens: Tensor, ids: Tensor) -> Tensor:
    """(N, M, D) tokens at (N, K) indices: (N, K, D)."""
    return torch.gather(tokens, 1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
