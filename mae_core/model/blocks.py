"""The layers of timm that the model is built of.

Importing timm takes longer than importing torch: it brings torchvision, and that brings torch's
compiler. `mae` imports this module when a model is built, so that commands which only move files
do not wait for it.
"""

from mae_core._compat import ensure_torchvision_imports

ensure_torchvision_imports()

# timm needs torchvision.
from timm.layers import Attention, PatchEmbed, resample_abs_pos_embed  # noqa: E402
from timm.models.vision_transformer import Block, VisionTransformer  # noqa: E402

__all__ = ["Attention", "Block", "PatchEmbed", "VisionTransformer", "resample_abs_pos_embed"]
