"""Other models by the names of their tensors, so that a refusal says what a file is."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mae_core.weights.files import shown

_NEEDED = "give weights of MAE's ViT with its decoder"

# A name in a file, what it says of the model, and what to do. The first that fits is told: the
# more special ones stand before those whose names they share.
_SIGNS = tuple(
    (re.compile(pattern), what, advice)
    for pattern, what, advice in (
        (r"(_packed_params|\.(zero_point|qweight|qzeros|absmax|SCB|weight_scale))(\.|$)",
         "its weights are quantised", "save them as float32, float16 or bfloat16 before that"),
        (r"\.lora_([AB]|down|up)\b", "it is a LoRA adapter, not a model",
         "merge it into its model and save that"),
        (r"(^|\.)(diffusion_model|first_stage_model|time_embed(ding)?|t_embedder|down_blocks)\.",
         "it is a diffusion model", _NEEDED),
        (r"(^|\.)(text_model|text_projection|token_embedding|logit_scale|class_embedding)(\.|$)",
         "it is CLIP or another model of pictures and text", _NEEDED),
        (r"(^|\.)(word_embeddings|embed_tokens|wte)\.weight$", "it is a language model", _NEEDED),
        (r"(^|\.)(momentum_encoder|base_encoder|encoder_[qk])\.", "it is MoCo, which predicts no "
         "pixels", _NEEDED),
        (r"(^|\.)predictor_(embed|blocks|pos_embed)\b|(^|\.)target_encoder\.",
         "it is I-JEPA, which predicts features and no pixels", _NEEDED),
        (r"(^|\.)predictor\.predictor_", "it is I-JEPA, which predicts features and no pixels",
         _NEEDED),
        (r"(^|\.)(dino_head|ibot_head|last_layer)\b|(^|\.)head\.(mlp\.|last_layer)",
         "it is DINO, a student and a teacher that predict no pixels", _NEEDED),
        (r"(^|\.)(register_tokens|reg_token)$", "it has register tokens, as DINOv2 has", _NEEDED),
        (r"\.(rel_pos_[hw]|neck\.0\.weight)$", "it is a ViT of SAM or ViTDet, with relative "
         "positions", _NEEDED),
        (r"(^|\.)decoder\.0\.(weight|bias)$", "it is SimMIM, whose decoder is one layer", _NEEDED),
        (r"(^|\.)layers\.\d+\.(blocks\.\d+|downsample)\.", "it is a Swin transformer", _NEEDED),
        (r"relative_position_(bias|index)|(^|\.)rel_pos_bias\.|(^|\.)lm_head\.|\.attn\.[qv]_bias$",
         "it has relative positions or predicts visual words, as BEiT does", _NEEDED),
        (r"\.(ls[12]|layer_scale_?[12]?)(\.|$)|\.(gamma_[12]|lambda_?1)$",
         "its blocks have a layer scale, as those of DINOv2 and BEiT", _NEEDED),
        (r"(^|\.)to_patch_embedding\.", "it is a ViT of vit-pytorch, which embeds patches in "
         "another way", _NEEDED),
        (r"(^|\.)(patch_embed|blocks)[1-4]\.|stage\d_output_decode",
         "it is ConvMAE, whose first stages are convolutions", _NEEDED),
        (r"(^|\.)(downsample_layers\.|stages\.\d+\.\d+\.(dwconv|gamma)|stages\.\d+\.blocks\.)",
         "it is a ConvNeXt or another network in stages", _NEEDED),
        (r"(^|\.)layer[1-4]\.\d+\.(conv|bn)\d|(^|\.)conv1\.weight$",
         "it is a convolutional network, such as a ResNet", _NEEDED),
        (r"(^|\.)embeddings\.mask_token$", "it is SimMIM or BEiT, whose encoder sees mask tokens",
         _NEEDED),
        (r"\.attn\.[qk]_norm\.|(^|\.)(norm_pre|pre_norm|ln_pre)\.|\.mlp\.w12\.",
         "its blocks are not those of the paper's ViT", _NEEDED),
    )
)  # fmt: skip


def recognize(values: Mapping[str, Any]) -> str:
    """What names say of a model that is no masked autoencoder of ours, and what to do.

    Args:
        values: A file's names, or those of one model in it, to what they hold.

    Returns:
        The end of a sentence; empty if nothing is known of such names.
    """
    tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
    for pattern, what, advice in _SIGNS:
        for key in tensors:
            if pattern.search(key):
                return f"by {shown(key)} {what}; {advice}"
    for key, tensor in tensors.items():
        if not key.endswith("patch_embed.proj.weight"):
            continue
        if tensor.ndim == 5:
            return f"by {shown(key)} of five sides it is a model of videos; {_NEEDED}"
        if tensor.shape == (0,):
            return (
                f"{shown(key)} is empty, as in a file of DeepSpeed's stage 3, whose weights are in "
                "parts; join them with zero_to_fp32.py and give the file that it writes"
            )
    if any("decoder" in key for key in tensors):
        return ""
    for key in tensors:
        if key.rpartition(".")[2] == "mask_token":
            return (
                f"by {shown(key)} its encoder sees mask tokens, and it has no decoder, as BEiT, "
                f"SimMIM and data2vec; {_NEEDED}"
            )
    return ""
