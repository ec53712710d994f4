"""Weighted nearest neighbours on frozen features (Wu et al. 2018, section 3.4): no training."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_core.errors import ConfigError

__all__ = ["knn_scores", "nearest"]

# Similarities held at once.
_CHUNK_VALUES = 2**26


def nearest(features: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k features that are nearest to each query by cosine similarity, nearest first.

    Args:
        features: (N, D).
        queries: (M, D).
        k: 1 to N.

    Returns:
        (M, k) similarities in -1..1, and (M, k) places in `features`.
    """
    if not 1 <= k <= len(features):
        raise ConfigError(
            f"k is {k}; there are {len(features)} images to choose from, give 1 to that"
        )
    known, found = F.normalize(features, dim=1), list[tuple[Tensor, Tensor]]()
    for part in F.normalize(queries, dim=1).split(max(_CHUNK_VALUES // len(known), 1)):
        similar = part @ known.T
        # Stable, so that equal images are in their order on every machine.
        values, places = similar.sort(dim=1, descending=True, stable=True)
        found.append((values[:, :k], places[:, :k]))
    values, places = zip(*found, strict=True)
    return torch.cat(values), torch.cat(places)


def knn_scores(
    features: Tensor, labels: Tensor, queries: Tensor, num_classes: int,
    *, k: int = 20, temperature: float = 0.07,
) -> Tensor:  # fmt: skip
    """(M, C) votes of the k nearest features for each query's class.

    Each neighbour votes with weight exp(similarity / temperature).

    Args:
        features: (N, D) of images whose classes are known.
        labels: (N,) their classes, 0..C-1.
        queries: (M, D).
        num_classes: C.
        k: Neighbours, 1 to N.
        temperature: Above 0; a small one lets the nearest decide.
    """
    if temperature <= 0:
        raise ConfigError(f"temperature is {temperature}; give a number above 0")
    similar, places = nearest(features, queries, k)
    # From the nearest one down, so that no weight overflows.
    weights = ((similar - similar[:, :1]) / temperature).exp()
    votes = torch.zeros(len(queries), num_classes, dtype=weights.dtype, device=weights.device)
    return votes.scatter_add_(1, labels.to(places.device)[places], weights)
