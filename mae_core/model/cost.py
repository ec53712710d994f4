"""What a forward pass costs, counted from a model's shape."""

from mae_core.config import ModelConfig
from mae_core.model.masking import num_visible


def forward_flops(config: ModelConfig, grid_size: tuple[int, int], mask_ratio: float) -> int:
    """Floating-point operations of encoding and decoding one image.

    Matrix products only, a multiply-add counted as 2; all else, the loss included, is small
    beside them. A training step costs three times as much, for its backward pass has two
    products for each one of the forward pass.

    Args:
        config: The model.
        grid_size: (h, w) patches.
        mask_ratio: Fraction removed, 0..1.

    Raises:
        MaskError: If the ratio is not within 0..1.
    """
    length = grid_size[0] * grid_size[1]
    visible = num_visible(length, mask_ratio)
    width, decoder_width = config.embed_dim, config.decoder_embed_dim
    ratio, decoder_ratio = config.mlp_ratios
    tokens = 1 + (length if config.encoder_mask_tokens else visible)
    embed = 2 * length * config.patch_dim * width
    encoder = config.depth * _block_flops(tokens, width, ratio)
    bridge = 2 * tokens * width * decoder_width
    decoder = config.decoder_depth * _block_flops(1 + length, decoder_width, decoder_ratio)
    # The class token's row is predicted too, and dropped.
    predict = 2 * (1 + length) * decoder_width * config.target_dim
    return embed + encoder + bridge + decoder + predict


def _block_flops(tokens: int, width: int, mlp_ratio: float) -> int:
    hidden = int(width * mlp_ratio)
    # Queries, keys, values and the projection after them; the scores and their sum of values.
    attention = 2 * tokens * 4 * width**2 + 2 * 2 * tokens**2 * width
    return attention + 2 * 2 * tokens * width * hidden
