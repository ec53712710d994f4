"""The masked autoencoder (He et al. 2022).

    model = MaskedAutoencoder(preset("base"))
    out = model(images, mask_ratio=0.75, seed=2)  # .pred .mask .latent
    z = model.features(images, pool="mean")       # (N, D), nothing removed
    vit = model.to_timm(num_classes=100)          # for fine-tuning

The model is a deterministic function of (images, PatchMask): chance is drawn in `masking`.
Parameter names are the official flat ones, so that published files load unrenamed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from mae_core.config import ModelConfig, NotNegativeInt, Share, validated
from mae_core.errors import ConfigError
from mae_core.model.masking import PatchMask, draw_mask, num_visible
from mae_core.model.patches import grid_of, normalize_patches, patchify

if TYPE_CHECKING:
    from mae_core.model.blocks import VisionTransformer

Pool = Literal["mean", "cls"]


@dataclass(frozen=True)
class MAEOutput:
    """What one forward pass gives.

    Attributes:
        pred: (N, L, P) predicted patches in the units of `MaskedAutoencoder.target`; (N, L, q)
            where that is q principal components.
        mask: (N, L), 1 = removed.
        latent: (N, 1 + K, D) encoder output, class token first, visible patches in the
            mask's shuffled order; (N, 1 + L, D) with `encoder_mask_tokens`, the removed ones
            after them.
        ids_restore: (N, L) position of each patch in that order.
    """

    pred: Tensor
    mask: Tensor
    latent: Tensor
    ids_restore: Tensor


class MaskedAutoencoder(nn.Module):
    """MAE: a ViT encoder of visible patches, and a light decoder that predicts all of them.

    Images of any size that divides into patches are accepted; positions are resampled. Two
    variants of the paper's ablations are fields of the config: an encoder that sees mask tokens,
    and principal components of patches as the target.

    Attributes:
        name: Of the weights; empty if unknown.
        pca_mean: (P,) mean of all patches, only where the target is principal components.
        pca_basis: (P, q) their principal directions, likewise; orthonormal columns.
    """

    name: str = ""
    pca_mean: Tensor
    pca_basis: Tensor

    def __init__(self, config: ModelConfig) -> None:
        """Build the model with freshly drawn parameters (torch's global generator)."""
        from mae_core.model.blocks import PatchEmbed

        super().__init__()
        self.config = config
        width, decoder_width = config.embed_dim, config.decoder_embed_dim
        grid, (ratio, decoder_ratio) = config.table_grid, config.mlp_ratios

        self.patch_embed = PatchEmbed(
            img_size=None, patch_size=config.patch_size, in_chans=config.in_chans,
            embed_dim=width, strict_img_size=False,
        )  # fmt: skip
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(sincos_pos_embed(width, grid), requires_grad=False)
        self.blocks = _blocks(config, width, config.depth, config.num_heads, ratio)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        if config.encoder_mask_tokens:
            self.encoder_mask_token = nn.Parameter(torch.zeros(1, 1, width))

        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(
            sincos_pos_embed(decoder_width, grid), requires_grad=False
        )
        self.decoder_blocks = _blocks(
            config, decoder_width, config.decoder_depth, config.decoder_num_heads, decoder_ratio
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=config.layer_norm_eps)
        self.decoder_pred = nn.Linear(decoder_width, config.target_dim)
        if config.pca_components:
            # NaN until `set_pca`, so that a model that was given none cannot learn.
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
        """Set `pca_mean` and `pca_basis`, where principal components are the target."""
        dim, components = self.config.patch_dim, self.config.pca_components
        shapes = tuple(mean.shape), tuple(basis.shape)
        if not components or shapes != ((dim,), (dim, components)):
            raise ConfigError(
                f"a PCA of shapes {shapes} does not fit {dim=} and {components=}", code="patches"
            )
        self.pca_mean.copy_(mean)
        self.pca_basis.copy_(basis)

    def forward(
        self, images: Tensor, patch_mask: PatchMask | None = None, *, mask_ratio: float = 0.75,
        seed: int | Sequence[int] = 0, strategy: str = "random",
    ) -> MAEOutput:  # fmt: skip
        """Encode the visible patches and predict all of them.

        Args:
            images: (N, C, H, W), normalised; H and W multiples of the patch side.
            patch_mask: N masks of L = h * w patches, on the images' device; if not given, it is
                drawn by `draw_mask`, which takes the rest.
            mask_ratio: Fraction removed, 0..1.
            seed: Of the masks, or one for each image.
            strategy: `random`, `block` or `grid`.
        """
        grid_size = self.grid_of(images)
        if patch_mask is None:
            drawn = draw_mask(strategy, len(images), grid_size, mask_ratio, seed=seed)
            patch_mask = drawn.to(images.device)
        latent = self.encode(images, patch_mask)
        pred = self.decode(latent, patch_mask.ids_restore, grid_size)
        return MAEOutput(pred, patch_mask.mask, latent, patch_mask.ids_restore)

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """The (h, w) patch grid of (N, C, H, W) images."""
        if not isinstance(images, Tensor) or not images.is_floating_point():
            given = f"{type(images).__name__} of {getattr(images, 'dtype', 'unknown type')}"
            raise ConfigError(
                f"images are a {given}; give a torch tensor of floats, normalised by config.mean "
                "and config.std",
                code="patches",
            )
        if images.ndim != 4 or images.shape[1] != self.config.in_chans:
            raise ConfigError(
                f"images of shape {tuple(images.shape)} given; this model takes "
                f"(N, {self.config.in_chans}, H, W)",
                code="patches",
            )
        return grid_of(images.shape[2], images.shape[3], self.config.patch_size)

    def encode(self, images: Tensor, patch_mask: PatchMask) -> Tensor:
        """Embed images and run the encoder on the visible patches only: (N, 1 + K, D).

        With `encoder_mask_tokens` it runs on all patches, a token in place of each removed one:
        (N, 1 + L, D).
        """
        grid_size = self.grid_of(images)
        if patch_mask.mask.shape != (images.shape[0], grid_size[0] * grid_size[1]):
            raise ConfigError(
                f"a mask of shape {tuple(patch_mask.mask.shape)} does not fit "
                f"{images.shape[0]} images of {grid_size[0]}x{grid_size[1]} patches",
                code="patches",
            )
        removed = None
        if self.config.encoder_mask_tokens:
            removed = patch_mask.mask.bool().unsqueeze(-1)  # (N, L, 1)
        cls_token, tokens = self._embed(images, grid_size, removed)
        tokens = _take(tokens, self.encoder_ids(patch_mask))
        latent: Tensor = self.norm(self.blocks(torch.cat((cls_token, tokens), dim=1)))
        return latent

    def encoder_ids(self, patch_mask: PatchMask) -> Tensor:
        """Numbers of the patches that the encoder's tokens, after the class token, are of.

        (N, K), which is `ids_keep`; with `encoder_mask_tokens` (N, L), which is `ids_shuffle`.
        """
        if self.config.encoder_mask_tokens:
            return patch_mask.ids_restore.argsort(dim=1)
        return patch_mask.ids_keep

    def _embed(
        self, images: Tensor, grid_size: tuple[int, int], removed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Class token (N, 1, D) and patch tokens (N, L, D), with their positions."""
        pos_embed = resample_pos_embed(self.pos_embed, self.config.table_grid, grid_size)
        tokens = self.patch_embed(images.to(self.pos_embed.dtype))
        if removed is not None:
            tokens = torch.where(removed, self.encoder_mask_token, tokens)
        tokens = tokens + pos_embed[:, 1:]
        cls_token = (self.cls_token + pos_embed[:, :1]).expand(images.shape[0], -1, -1)
        return cls_token.to(tokens.dtype), tokens

    def decode(self, latent: Tensor, ids_restore: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Put mask tokens where patches were removed and predict every patch: (N, L, P).

        Args:
            latent: (N, 1 + K, D) or (N, 1 + L, D), as `encode` gave it.
            ids_restore: (N, L).
            grid_size: (h, w) with h * w = L.
        """
        source = self.config.table_grid
        tokens = self.decoder_embed(latent)  # (N, 1 + K, E)
        n, length = ids_restore.shape
        removed = length + 1 - tokens.shape[1]
        mask_tokens = self.mask_token.to(tokens.dtype).expand(n, removed, -1)
        shuffled = torch.cat((tokens[:, 1:], mask_tokens), dim=1)  # (N, L, E)
        tokens = torch.cat((tokens[:, :1], _take(shuffled, ids_restore)), dim=1)
        tokens = tokens + resample_pos_embed(self.decoder_pos_embed, source, grid_size)
        pred: Tensor = self.decoder_pred(self.decoder_norm(self.decoder_blocks(tokens)))
        return pred[:, 1:]  # (N, L, P)

    def features(
        self, images: Tensor, pool: Pool | None = None, block: int | None = None
    ) -> Tensor:
        """Encoder output for whole images: nothing removed, patches in grid order.

        Gradients flow as in any forward pass; for frozen features use `torch.inference_mode()`.

        Args:
            images: (N, C, H, W), normalised; H and W multiples of the patch side.
            pool: None for all tokens. `cls` is the class token. `mean` is the mean over the L
                patch tokens, without the class token, taken of this method's output, so after
                the final norm. (MAE's fine-tuning normalises the mean instead: see `to_timm`.)
            block: Number of the encoder block whose output is wanted, from 0; negative ones
                count from the end. The last one if not given. The final norm was trained on
                the last block's output and is applied to that alone; normalise other blocks'
                as your probe needs it, for example by a BatchNorm without affine parameters.

        Returns:
            (N, 1 + L, D), class token first; (N, D) with `pool`.
        """
        depth = self.config.depth
        if pool not in (None, "mean", "cls"):
            raise ConfigError(f"pool is {pool!r}; choose mean or cls, or None for all tokens")
        block = validated(int | None, block, "block")
        if block is not None and not -depth <= block < depth:
            raise ConfigError(
                f"block is {block}; this encoder has {depth}: give {-depth} to {depth - 1}"
            )
        (tokens,) = self.features_of_blocks(images, [-1 if block is None else block])
        if pool is None:
            return tokens
        return tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(dim=1)

    def features_of_blocks(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """`features(images, block=block)` of several blocks by one forward pass, in their order."""
        depth = self.config.depth
        numbers = [block % depth for block in blocks]
        tokens = torch.cat(self._embed(images, self.grid_of(images)), dim=1)  # (N, 1 + L, D)
        found: dict[int, Tensor] = {}
        for number, block in enumerate(list(self.blocks)[: max(numbers) + 1]):
            tokens = block(tokens)
            if number in numbers:
                found[number] = self.norm(tokens) if number == depth - 1 else tokens
        return [found[number] for number in numbers]

    def to_timm(
        self, num_classes: int = 0, *, drop_path: float = 0.0,
        global_pool: Literal["avg", "token"] = "avg",
        img_size: int | tuple[int, int] | None = None,
    ) -> "VisionTransformer":  # fmt: skip
        """A timm ViT with a copy of the encoder's weights, in training mode, for fine-tuning.

        With `avg` it is the classifier of MAE's fine-tuning: the patch tokens are averaged, and
        a fresh `fc_norm` normalises the mean; the encoder's own final norm is left out. With
        `token` it is the classic ViT, which keeps that norm: `forward_features` then is
        `features`.

        Args:
            num_classes: Outputs of the fresh head, whose weights begin near zero; 0 is no head.
            drop_path: Stochastic depth of the last block; it rises linearly from 0.
            global_pool: `avg` or `token`.
            img_size: Side, or (H, W), of the images it takes; positions are resampled to it. What
                this model's table is made for if not given.
        """
        if global_pool not in ("avg", "token"):
            raise ConfigError(f"global_pool is {global_pool!r}; choose avg or token")
        config = self.config
        num_classes = validated(NotNegativeInt, num_classes, "num_classes")
        drop_path = validated(Share, drop_path, "drop_path")
        img_size = validated(int | tuple[int, int] | None, img_size, "img_size")
        if img_size is None:
            h, w = config.table_grid
            img_size = (h * config.patch_size, w * config.patch_size)
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        grid_size = grid_of(height, width, config.patch_size)
        vit = timm_vit(config, (height, width), num_classes, global_pool, drop_path)
        state, wanted = self.state_dict(), vit.state_dict()
        state["pos_embed"] = resample_pos_embed(state["pos_embed"], config.table_grid, grid_size)
        shared = {name: tensor for name, tensor in state.items() if name in wanted}
        vit.load_state_dict(shared, strict=False)  # all but the head and fc_norm
        if isinstance(vit.head, nn.Linear):
            nn.init.trunc_normal_(vit.head.weight, std=2e-5)
            nn.init.zeros_(vit.head.bias)
        return vit.to(self.pos_embed.device, self.pos_embed.dtype)

    def target(self, images: Tensor) -> Tensor:
        """What `pred` is compared with, of (N, C, H, W) images.

        (N, L, P) pixels, normalised per patch if `norm_pix`; or the (N, L, q) leading principal
        components of the patches.
        """
        patches = patchify(images, self.config.patch_size)
        if self.config.pca_components:
            mean, basis = self.pca_mean.to(patches), self.pca_basis.to(patches)
            # A target rounded to bfloat16 would be another target.
            with torch.autocast(patches.device.type, enabled=False):
                return (patches - mean) @ basis
        return normalize_patches(patches) if self.config.norm_pix else patches

    def patches_from(self, pred: Tensor) -> Tensor:
        """(N, L, P) patches from a prediction, whose principal components are undone."""
        if not self.config.pca_components:
            return pred
        return pred @ self.pca_basis.to(pred).T + self.pca_mean.to(pred)


def timm_vit(
    config: ModelConfig, img_size: tuple[int, int], num_classes: int,
    global_pool: Literal["avg", "token"], drop_path: float = 0.0,
) -> "VisionTransformer":  # fmt: skip
    """A timm ViT of an encoder's shape, not initialised; the arguments are those of `to_timm`."""
    from mae_core.model.blocks import VisionTransformer

    return VisionTransformer(
        img_size=img_size, patch_size=config.patch_size, in_chans=config.in_chans,
        num_classes=num_classes, global_pool=global_pool, embed_dim=config.embed_dim,
        depth=config.depth, num_heads=config.num_heads, mlp_ratio=config.mlp_ratio,
        drop_path_rate=drop_path, weight_init="skip",
        norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
    )  # fmt: skip


def _blocks(
    config: ModelConfig, width: int, depth: int, heads: int, mlp_ratio: float
) -> nn.Sequential:
    from mae_core.model.blocks import Block

    norm_layer = partial(nn.LayerNorm, eps=config.layer_norm_eps)
    options: dict[str, Any] = {"mlp_ratio": mlp_ratio, "qkv_bias": True, "norm_layer": norm_layer}
    return nn.Sequential(*(Block(width, heads, **options) for _ in range(depth)))


def _take(tokens: Tensor, ids: Tensor) -> Tensor:
    """(N, M, D) tokens at (N, K) indices: (N, K, D)."""
    return torch.gather(tokens, 1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def sincos_pos_embed(dim: int, grid_size: tuple[int, int]) -> Tensor:
    """The fixed two-dimensional sin-cos position table of MAE (He et al. 2022, A.1).

    The first half of the channels encodes x (the column), the second y (the row); each half
    is sines then cosines of the position times 1 / 10000^(i / (dim / 4)).

    Args:
        dim: Channels; a multiple of 4.
        grid_size: (h, w) patches.

    Returns:
        (1, 1 + h * w, dim) float32, computed in float64; zeros first, for the class token.
    """

    def encoded(positions: Tensor) -> Tensor:
        omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
        angles = positions[:, None] * omega[None, :]
        return torch.cat((angles.sin(), angles.cos()), dim=1)  # (h * w, dim / 2)

    h, w = grid_size
    rows = torch.arange(h, dtype=torch.float64).repeat_interleave(w)
    columns = torch.arange(w, dtype=torch.float64).repeat(h)
    table = torch.cat((encoded(columns), encoded(rows)), dim=1)
    return torch.cat((table.new_zeros(1, dim), table)).to(torch.float32).unsqueeze(0)


def resample_pos_embed(
    table: Tensor, source: tuple[int, int], grid_size: tuple[int, int]
) -> Tensor:
    """Resample a position table to another grid, bicubic in both directions.

    A larger image is the same image seen more finely. Without antialiasing: positions are
    smooth, and averaging neighbours would blur them.

    Args:
        table: (1, 1 + h * w, D) with the class token's row first; returned if the grids are equal.
        source: (h, w) of the table.
        grid_size: (h, w) wanted.
    """
    # timm compares them too, but not while a graph is exported.
    if source == grid_size:
        return table
    from mae_core.model.blocks import resample_abs_pos_embed

    size, old = list(grid_size), list(source)
    resampled: Tensor = resample_abs_pos_embed(table, size, old, antialias=False)
    return resampled


def forward_flops(config: ModelConfig, grid_size: tuple[int, int], mask_ratio: float) -> int:
    """Floating-point operations of encoding and decoding one image.

    Matrix products only, a multiply-add counted as 2; all else is small beside them. A training
    step costs three times as much: its backward pass has two products for each one of these.
    """
    return sum(module_flops(config, grid_size, mask_ratio).values())


def module_flops(
    config: ModelConfig, grid_size: tuple[int, int], mask_ratio: float
) -> dict[str, int]:
    """Those of `forward_flops` by the name of the module that they are done in."""

    def block(tokens: int, width: int, mlp_ratio: float) -> int:
        # Queries, keys, values and the projection after them; the scores and their sum of values.
        attention = 2 * tokens * 4 * width**2 + 2 * 2 * tokens**2 * width
        return attention + 2 * 2 * tokens * width * int(width * mlp_ratio)

    length = grid_size[0] * grid_size[1]
    width, decoder_width = config.embed_dim, config.decoder_embed_dim
    ratio, decoder_ratio = config.mlp_ratios
    tokens = 1 + (length if config.encoder_mask_tokens else num_visible(length, mask_ratio))
    encoder = block(tokens, width, ratio)
    decoder = block(1 + length, decoder_width, decoder_ratio)
    return {
        "patch_embed": 2 * length * config.patch_dim * width,
        **{f"blocks.{i}": encoder for i in range(config.depth)},
        "decoder_embed": 2 * tokens * width * decoder_width,
        **{f"decoder_blocks.{i}": decoder for i in range(config.decoder_depth)},
        # The class token's row is predicted too, and dropped.
        "decoder_pred": 2 * (1 + length) * decoder_width * config.target_dim,
    }
