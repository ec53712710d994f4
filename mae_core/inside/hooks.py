"""A model to hang hooks on."""

import copy

from mae_core.model.mae import MaskedAutoencoder

__all__ = ["twin"]


def twin(model: MaskedAutoencoder) -> MaskedAutoencoder:
    """Modules of its own with the same parameters, of which there is no copy.

    Hooks on it leave the model alone, which other threads may run meanwhile.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
