"""What others offer, in the shape of one of our models."""

from typing import Any

from mae_core import ModelConfig


def transformers_mae(config: ModelConfig, mask_ratio: float, **options: Any) -> Any:
    """Transformers' ViTMAEForPreTraining with freshly drawn parameters, as it comes.

    Args:
        config: The shape.
        mask_ratio: What its forward pass removes, 0..1.
        options: More of ViTMAEConfig's, such as `attn_implementation`.
    """
    # Imported late: it needs the torchvision that importing mae_core has mended.
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    return ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=config.embed_dim, num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            intermediate_size=int(config.mlp_ratio * config.embed_dim),
            decoder_hidden_size=config.decoder_embed_dim,
            decoder_num_hidden_layers=config.decoder_depth,
            decoder_num_attention_heads=config.decoder_num_heads,
            decoder_intermediate_size=int(config.mlp_ratio * config.decoder_embed_dim),
            image_size=config.image_size, patch_size=config.patch_size, mask_ratio=mask_ratio,
            layer_norm_eps=config.layer_norm_eps, norm_pix_loss=config.norm_pix, **options,
        )
    )  # fmt: skip
