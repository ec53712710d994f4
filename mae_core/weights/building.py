"""A model from its config and its parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mae_core.config import ModelConfig
from mae_core.model.mae import MaskedAutoencoder


def build_model(config: ModelConfig, state: Mapping[str, Tensor]) -> MaskedAutoencoder:
    """The model with these parameters, not copied, in evaluation mode.

    Args:
        config: Its shape.
        state: Its parameters by the official names; all of them, and no others.
    """
    # On `meta` nothing is drawn only to be overwritten.
    with torch.device("meta"):
        model = MaskedAutoencoder(config)
    model.load_state_dict(state, strict=True, assign=True)
    for table in (model.pos_embed, model.decoder_pos_embed):
        table.requires_grad_(False)
    return model.eval()
