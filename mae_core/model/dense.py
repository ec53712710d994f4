"""Encoders for dense tasks: four scales of a plain ViT, a segmenter, a detector.

    model = Segmenter(config, num_classes=150, head="upernet", image_size=512)
    logits = model(images)  # (N, 150, 512, 512)

A ViT has one scale, a p-th of the image; four are made of it by two deconvolutions, one, none and a
pooling (Li et al. 2022, ViTDet). Segmenter and detector take square images of one size, for which
their positions are resampled.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from mae_core._compat import ensure_torchvision_imports
from mae_core.config import ModelConfig
from mae_core.errors import ConfigError
from mae_core.model.mae import MaskedAutoencoder

Head = Literal["linear", "upernet"]

# Parts of a masked autoencoder that its features do not depend on.
_UNUSED = ("decoder_", "mask_token", "encoder_mask_token", "pca_")


class Encoder(MaskedAutoencoder):
    """The encoder of a masked autoencoder, without its decoder."""

    def __init__(self, config: ModelConfig) -> None:
        """Build it with freshly drawn parameters."""
        super().__init__(config)
        parts = (self._modules, self._parameters, self._buffers)
        for name in [name for part in parts for name in part if name.startswith(_UNUSED)]:
            delattr(self, name)

    def maps(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """(N, D, h, w) patch tokens of encoder blocks, numbered from 0 or from the end."""
        h, w = self.grid_of(images)
        tokens = self.features_of_blocks(images, blocks)
        return [one[:, 1:].transpose(1, 2).unflatten(2, (h, w)) for one in tokens]


class FourScales(nn.Module):
    """Four (N, D, h, w) maps at 4, 2, 1 and 1/2 times their height and width."""

    def __init__(self, width: int) -> None:
        from timm.layers.norm import LayerNorm2d

        super().__init__()

        def twice() -> nn.Module:
            return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)

        self.scales = nn.ModuleList([
            nn.Sequential(twice(), LayerNorm2d(width), nn.GELU(), twice()),
            twice(),
            nn.Identity(),
            nn.MaxPool2d(kernel_size=2, ceil_mode=True),
        ])  # fmt: skip

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Of the maps of four blocks, the earliest first, or four times the same."""
        return [scale(one) for scale, one in zip(self.scales, maps, strict=True)]


class DenseModel(nn.Module):
    """What a segmenter and a detector share: an encoder, and how fast its layers learn.

    Attributes:
        config: Of the encoder; `mean` and `std` normalise the images.
        image_size: Side of the square images in pixels.
    """

    def __init__(self, config: ModelConfig, image_size: int) -> None:
        super().__init__()
        if image_size % config.patch_size:
            raise ConfigError(
                f"image_size {image_size} is not a multiple of the patch side {config.patch_size}"
            )
        self.config, self.image_size = config, image_size
        self.encoder = Encoder(config)

    def load_encoder(self, model: MaskedAutoencoder) -> None:
        """Take over the encoder of a model of the same `config`."""
        own = self.encoder.state_dict()
        self.encoder.load_state_dict({name: model.state_dict()[name] for name in own})

    def no_weight_decay(self) -> set[str]:
        """Timm's description of the parameters that are not decayed, beside vectors."""
        return {"encoder.cls_token", "encoder.pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Timm's description of the layers, for a learning rate that decays from the head down."""
        return {
            "stem": r"^encoder\.(?:cls_token|pos_embed|patch_embed)",
            # The last norm goes with the last block; all else is the head.
            "blocks": [(r"^encoder\.blocks\.(\d+)", None), (r"^encoder\.norm", (99999,))],
        }


class Segmenter(DenseModel):
    """Classifies each pixel.

    `linear` is a linear classifier of the last block's tokens. `upernet` is UPerNet (Xiao et al.
    2018) on the outputs of four blocks, at the ends of the quarters of the depth; it normalises
    the channels of each pixel, as ViTDet's pyramid, where others normalise over the batch: so a
    batch means the same in parts and on many devices.
    """

    def __init__(
        self, config: ModelConfig, *, num_classes: int, head: Head, image_size: int,
        channels: int = 256,
    ) -> None:  # fmt: skip
        """Build it with freshly drawn parameters.

        Args:
            config: Of the encoder.
            num_classes: K.
            head: `linear` or `upernet`, which needs the package segmentation-models-pytorch.
            image_size: Side in pixels; a multiple of the patch side.
            channels: Width of UPerNet.
        """
        super().__init__(config, image_size)
        self.blocks: tuple[int, ...] = (-1,)
        width = config.embed_dim
        if head == "upernet":
            self.blocks = tuple(config.depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
            if config.depth < 4:
                raise ConfigError(
                    f"head=upernet takes an encoder of 4 blocks or more, and this one has "
                    f"{config.depth}; give head=linear"
                )
            self.scales = FourScales(width)
            self.decoder = _upernet(width, channels)
            width = channels
        self.classifier = nn.Conv2d(width, num_classes, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, K, S, S) logits of (N, C, S, S) images, normalised."""
        maps = self.encoder.maps(images, self.blocks)
        features = maps[0]
        if len(maps) == 4:
            # As an encoder of images at full and at half size, which UPerNet does not look at.
            features = self.decoder([None, None, *self.scales(maps)])
        size = images.shape[-2:]
        return F.interpolate(self.classifier(features), size, mode="bilinear", align_corners=False)


def _upernet(width: int, channels: int) -> nn.Module:
    ensure_torchvision_imports()
    from timm.layers.norm import LayerNorm2d

    try:
        from segmentation_models_pytorch.base.initialization import initialize_decoder
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
    except ImportError as error:
        raise ConfigError(
            "head=upernet needs a package that is not installed: pip install -r "
            "requirements-dense.txt; head=linear needs none"
        ) from error
    decoder: nn.Module = UPerNetDecoder((0, 0, *[width] * 4), decoder_channels=channels)
    initialize_decoder(decoder)
    for module in [*decoder.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, LayerNorm2d(child.num_features))
    return decoder


class SimplePyramid(nn.Module):
    """Features of an encoder's last block at strides p / 4 to 4 p (Li et al. 2022, ViTDet)."""

    def __init__(self, encoder: Encoder, channels: int) -> None:
        from timm.layers.norm import LayerNorm2d

        super().__init__()
        width = encoder.config.embed_dim
        # Not the encoder itself: its parameters would have two names.
        self.maps, self.out_channels = encoder.maps, channels
        self.scales = FourScales(width)
        self.outputs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, channels, kernel_size=1, bias=False), LayerNorm2d(channels),
                nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
                LayerNorm2d(channels),
            )
            for _ in range(4)
        )  # fmt: skip

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, channels, ...) maps by `0` to `3`, the finest first, and the coarsest, `pool`."""
        scaled = self.scales(self.maps(images, (-1,)) * 4)
        maps = {str(i): output(scaled[i]) for i, output in enumerate(self.outputs)}
        return maps | {"pool": F.max_pool2d(maps["3"], kernel_size=1, stride=2)}


class Detector(DenseModel):
    """torchvision's Mask R-CNN (He et al. 2017) on a simple pyramid."""

    def __init__(
        self, config: ModelConfig, *, num_classes: int, image_size: int, channels: int = 256
    ) -> None:
        """Build it with freshly drawn parameters.

        Args:
            config: Of the encoder; the patch side is a power of 2.
            num_classes: Without the background.
            image_size: Side in pixels; a multiple of two patch sides.
            channels: Width of the pyramid and of the convolutions that predict masks.
        """
        super().__init__(config, image_size)
        patch = config.patch_size
        if not math.log2(patch).is_integer() or patch < 4:
            raise ConfigError(
                f"the encoder's patch side is {patch}, and torchvision's detector takes strides "
                "that are powers of 2; give an encoder of 8 or 16 pixels a patch"
            )
        if image_size % (2 * patch):
            raise ConfigError(
                f"image_size {image_size} does not divide into {2 * patch}, the coarsest stride; "
                "give a multiple of it"
            )
        ensure_torchvision_imports()
        from torchvision.models.detection import MaskRCNN
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
        from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
        from torchvision.models.detection.transform import GeneralizedRCNNTransform

        strides = [patch // 4 * 2**i for i in range(5)]
        anchors = AnchorGenerator(tuple((8 * s,) for s in strides), ((0.5, 1.0, 2.0),) * 5)
        self.rcnn = MaskRCNN(
            SimplePyramid(self.encoder, channels), num_classes=None, rpn_anchor_generator=anchors,
            box_predictor=FastRCNNPredictor(1024, num_classes + 1),
            mask_head=MaskRCNNHeads(channels, (channels,) * 4, dilation=1),
            mask_predictor=MaskRCNNPredictor(channels, channels, num_classes + 1),
        )  # fmt: skip
        # Images have their size already; a smaller one is laid in the corner of the square.
        self.rcnn.transform = GeneralizedRCNNTransform(
            image_size, image_size, list(config.mean), list(config.std), size_divisible=image_size
        )

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> Any:
        """torchvision's: losses by name in training mode, else detections of each image.

        Args:
            images: (C, H, W) in 0..1 each, H and W at most `image_size` and one of them equal.
            targets: In training mode, of each image `boxes` (n, 4) as left, top, right, bottom,
                `labels` (n,) from 1, and `masks` (n, H, W) uint8.
        """
        return self.rcnn(list(images), targets and list(targets))
