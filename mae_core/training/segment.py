"""Semantic segmentation: an encoder with a linear classifier or UPerNet on it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_core.config import ModelConfig
from mae_core.data.dense import IGNORED, SegmentationImages, open_segmentation
from mae_core.data.transforms import normalize
from mae_core.distributed import World
from mae_core.model.dense import Head, Segmenter
from mae_core.training.dense import DenseConfig, DenseObjective, Repeated, repeat

Figures = TypeVar("Figures")


@dataclass(frozen=True)
class SegmentConfig(DenseConfig):
    """A run that trains a segmenter; at a scale of 1 the shorter side of a picture is `image_size`.

    Attributes:
        head: `linear` or `upernet`.
    """

    head: Head = "upernet"


def segment(
    weights: str | Path, data: str | Path, config: SegmentConfig,
    measure: Callable[[Segmenter, SegmentationImages], Figures],
    summary: Callable[[Figures], Mapping[str, float]],
) -> Repeated[Figures]:  # fmt: skip
    """Train a segmenter with each seed and measure it.

    The arguments are those of `repeat`; `data` is as for `open_segmentation`.

    Raises:
        MAEError: If the weights, the data or a field cannot be used, or training fails.
    """

    def build(encoder: ModelConfig, num_classes: int, side: int) -> Segmenter:
        return Segmenter(
            encoder, num_classes=num_classes, head=config.head, image_size=side,
            channels=config.channels,
        )  # fmt: skip

    done = repeat(
        weights, data, config, open_segmentation, build, Segmentation, measure, summary
    )  # fmt: skip
    return replace(done, facts={"method": "segment", **done.facts})


class Segmentation(DenseObjective):
    """Cross-entropy of each pixel's class."""

    def __init__(self, config: DenseConfig, images: SegmentationImages, world: World) -> None:
        super().__init__(config, images, world)
        self._mean, self._std = (
            torch.tensor(values, device=world.device)[:, None, None]
            for values in (images.model.mean, images.model.std)
        )

    def loss(
        self, samples: Sequence[Any], place: tuple[int, int, int], forward: nn.Module
    ) -> Tensor:
        """Over all pixels; ignored ones count as 0, so that parts of a batch add up to it."""
        images, labels = (
            torch.from_numpy(np.stack(arrays)).to(self.world.device)
            for arrays in zip(*samples, strict=True)
        )
        levels = images.permute(0, 3, 1, 2).float().contiguous()
        logits = forward(normalize(levels, None, self._mean, self._std))
        total = F.cross_entropy(
            logits.float(), labels.long(), ignore_index=IGNORED, reduction="sum"
        )
        return total / labels.numel()
