"""What is found in a file of weights, whatever its format."""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from mae_core.config import ModelConfig

# What a file holds: encoder and decoder; the encoder alone; a fine-tuned classifier.
Kind = Literal["autoencoder", "encoder", "classifier"]


@dataclass(frozen=True)
class Hints:
    """What the shapes of a file's tensors cannot tell; None where nothing is known.

    Attributes:
        num_heads: Encoder attention heads.
        decoder_num_heads: Decoder attention heads.
        norm_pix: Whether the target was each patch normalised by itself.
        layer_norm_eps: Epsilon of every LayerNorm.
        source: Where the hints come from: `option` or `registry`.
        grid: (h, w) patches that the position tables are made for, where they are not sin-cos.
    """

    num_heads: int | None = None
    decoder_num_heads: int | None = None
    norm_pix: bool | None = None
    layer_norm_eps: float | None = None
    source: str = "option"
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Contents:
    """A file or folder of weights as read.

    Attributes:
        format: `mae_core`, `mae_core checkpoint`, `official`, `transformers 4`,
            `transformers 5`, `timm`, `openmmlab` or `torchvision`.
        kind: What the file holds.
        config: The model's shape. Where there is no decoder, its decoder fields are the
            official 512 wide, 8 blocks, 16 heads.
        state: The parameters by the official names: float32, on the CPU, checked.
        record: How the model was trained: plain data, empty if unknown.
        origins: For each field of `config` where its value comes from: `shapes`, `config`,
            `registry`, `option`, `known width`, `trial` (of what a model predicts, by
            `target`) or `assumed`.
        dtype: Number format in the file, such as `float16`.
        num_classes: Of a classifier; None for the others.
        container: What wrote the file around the weights, such as `PyTorch Lightning`; empty if
            that is not known.
        under: Under which prefixes of names they lie in it; empty where there are none.
        left_aside: What else the file holds and was not read: where, and how many tensors.
    """

    format: str
    kind: Kind
    config: ModelConfig
    state: dict[str, Tensor]
    record: dict[str, Any]
    origins: dict[str, str]
    dtype: str
    num_classes: int | None
    container: str = ""
    under: tuple[str, ...] = ()
    left_aside: dict[str, int] = field(default_factory=dict)
