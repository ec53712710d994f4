"""Detection and instance segmentation: Mask R-CNN on an encoder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mae_core.config import ModelConfig, NotNegativeInt, Positive, PositiveShare
from mae_core.data.dense import DetectionImages, Objects, open_detection
from mae_core.model.dense import Detector
from mae_core.training.dense import DenseConfig, DenseObjective, Repeated, repeat

Figures = TypeVar("Figures")

# Seed word of what torchvision draws: which boxes are learned from.
_BOXES = 3


@dataclass(frozen=True)
class DetectConfig(DenseConfig):
    """A run that trains a detector; at a scale of 1 a picture's longer side is `image_size`."""

    layer_decay: PositiveShare = 0.7
    scale: tuple[Positive, Positive] = (0.1, 2.0)
    resamples: NotNegativeInt = 100


def detect(
    weights: str | Path, data: str | Path, config: DetectConfig,
    measure: Callable[[Detector, DetectionImages], Figures],
    summary: Callable[[Figures], Mapping[str, float]],
) -> Repeated[Figures]:  # fmt: skip
    """Train a detector with each seed and measure it.

    The arguments are those of `repeat`; `data` is as for `open_detection`.

    Raises:
        MAEError: If the weights, the data or a field cannot be used, or training fails.
    """

    def build(encoder: ModelConfig, num_classes: int, side: int) -> Detector:
        return Detector(
            encoder, num_classes=num_classes, image_size=side, channels=config.channels
        )  # fmt: skip

    done = repeat(weights, data, config, open_detection, build, Detection, measure, summary)
    return replace(done, facts={"method": "detect", **done.facts})


class Detection(DenseObjective):
    """The sum of torchvision's losses: of proposals, classes, boxes and masks."""

    def loss(
        self,
        samples: Sequence[tuple[np.ndarray, Objects]],
        place: tuple[int, int, int],
        forward: nn.Module,
    ) -> Tensor:
        """The mean over samples; the chance in it is a function of the seed and their place."""
        device = self.world.device
        images = [
            torch.from_numpy(pixels).to(device).permute(2, 0, 1).float() / 255
            for pixels, _ in samples
        ]
        targets = [
            {
                "boxes": torch.from_numpy(objects.boxes).to(device),
                "labels": torch.from_numpy(objects.labels + 1).to(device),
                "masks": torch.from_numpy(objects.masks.astype(np.uint8)).to(device),
            }
            for _, objects in samples
        ]
        seed = np.random.SeedSequence((self.config.seed, _BOXES, *place)).generate_state(1)[0]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(seed))
            losses: Mapping[str, Tensor] = forward(images, targets)
        return torch.stack([*losses.values()]).sum()
