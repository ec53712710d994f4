"""Where in a file the model is, and its tensors by the official names.

Training scripts put a model's weights anywhere: under `model`, `state_dict` or `ema`, with
`module.` or `net.` before every name, encoder and decoder apart, a classifier or a loss beside
them. So a model is found by its content: the patch embedding that every ViT has says under which
prefix its encoder lies, the decoder's embedding says the same of the decoder.
"""

import itertools
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mae_core.errors import CheckpointError
from mae_core.weights.names import official_from_huggingface, official_from_library
from mae_core.weights.safety import shown

# What wrappers of a module put within names and that says nothing.
_TRANSPARENT = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}

# A running average by a part of its path: `model_ema`, `momentum_backbone`.
_AVERAGE = re.compile(r"(^|[._])(ema|avg|averaged?|swa|momentum)([._]|$)", re.IGNORECASE)

# The name of a patch embedding -> the library whose names it is one of.
_ENCODERS = {
    "patch_embed.proj.weight": "official",
    "embeddings.patch_embeddings.projection.weight": "transformers",
    "patch_embed.projection.weight": "openmmlab",
    "conv_proj.weight": "torchvision",
}
_DECODERS = ("decoder_embed.weight", "decoder_pos_embed", "decoder_pred.weight")

# First parts of the names of a model, of these libraries and of any ViT: what begins otherwise is
# a loss, a projector or another module beside it.
_PARTS = re.compile(
    r"(cls_token|class_token|conv_proj|encoder|encoder_mask_token|fc_norm|heads?|layernorm|"
    r"prediction_head|pca_mean|pca_basis)$|"
    r"(pos|patch|embed|embeddings|stem|norm|ln|blocks?|layers?|decoder|mask|dist|pre|rel)(_|\d|$)"
)
# What a head for classes is called, which a model that draws pixels has no use for.
_HEADS = ("head.", "fc_norm.", "heads.")

# No wrapper has longer names, and they would be repeated for every tensor within. No file of
# one model and its training has more names or models: each takes time to look at.
_LONGEST_PATH = 200
_MOST_NAMES = 100_000
_MOST_MODELS = 100


@dataclass(frozen=True)
class Found:
    """A model within a file.

    Attributes:
        library: Whose names it has: `official`, `transformers`, `openmmlab` or `torchvision`.
        encoder: Its encoder by the names after the prefix, and all else of a model in one piece.
        decoder: Its decoder likewise, where it has a prefix of its own.
        under: The prefixes, without the dot at the end; empty where there is none.
        left_aside: What else the file holds, single values aside: where, and how many tensors.
    """

    library: str
    encoder: dict[str, Any]
    decoder: dict[str, Any]
    under: tuple[str, ...]
    left_aside: dict[str, int]

    @property
    def tensors(self) -> dict[str, Any]:
        """All of it, by names that are in no other part."""
        return {**self.encoder, **{f"decoder.{key}": t for key, t in self.decoder.items()}}


def unfolded(name: str, content: Mapping[Any, Any]) -> dict[str, Any]:
    """A file's content with all mappings unfolded into dotted names, wrappers' parts taken off."""
    values: dict[str, Any] = {}
    folded: list[tuple[str, Mapping[Any, Any]]] = [("", content)]
    seen = {id(content)}
    for path, mapping in folded:  # which grows
        for key, value in mapping.items():
            if not isinstance(key, str):
                continue
            bare = ".".join(part for part in (path + key).split(".") if part not in _TRANSPARENT)
            if isinstance(value, Mapping):
                if id(value) not in seen and len(path) + len(key) < _LONGEST_PATH:
                    seen.add(id(value))
                    folded.append((f"{bare}." if bare else "", value))
            elif not isinstance(values.get(bare), Tensor):
                values[bare] = value
            elif isinstance(value, Tensor):
                raise CheckpointError(
                    f"{name!r} has {shown(bare)} with and without a prefix such as module.; save "
                    "one model only"
                )
    if len(values) > _MOST_NAMES:
        raise CheckpointError(
            f"{name!r} has {len(values):,} names; at most {_MOST_NAMES:,} are read: save the "
            "model's state_dict alone"
        )
    return values


def find_model(name: str, values: Mapping[str, Any]) -> Found:
    """The one model among the `unfolded` names of a file.

    A whole model goes before an encoder alone, and trained weights go before their running
    average (`ema`, `momentum`), which is taken where it is the only one. Of several that are left
    none is chosen. The first argument is the file's name, for messages.
    """
    encoders, decoders = _prefixes(values, _ENCODERS), _prefixes(values, _DECODERS)
    if not encoders:
        some = ", ".join(shown(key) for key in sorted(values)[:3]) or "it is empty"
        raise CheckpointError(
            f"{name!r} is no masked autoencoder: none of its names is that of a patch embedding "
            f"({some}); give weights of MAE's ViT, its state_dict alone"
        )
    left = list(encoders)
    if max(len(encoders), len(decoders)) <= _MOST_MODELS:
        decoder_of = _paired(left, set(decoders))
        left = [prefix for prefix, decoder in decoder_of.items() if decoder is not None] or left
        left = [prefix for prefix in left if not _AVERAGE.search(prefix)] or left
        if len(left) == 1:
            others = [p for p in encoders if p != left[0] and p.startswith(left[0])]
            library = _ENCODERS[encoders[left[0]]]
            return _taken(values, library, left[0], decoder_of[left[0]], tuple(others))
    places = " and ".join(shown(prefix.rstrip(".")) for prefix in left[:5])
    raise CheckpointError(
        f"{name!r} holds {len(left)} models, under {places}, and nothing says which one is meant; "
        "save the state_dict of the one that you want in a file of its own"
    )


def _prefixes(values: Mapping[str, Any], anchors: Collection[str]) -> dict[str, str]:
    """What is before the names that end in an anchor -> that anchor."""
    return {
        key.removesuffix(anchor): anchor
        for key in values
        for anchor in anchors
        if key == anchor or key.endswith("." + anchor)
    }


def _paired(encoders: list[str], decoders: set[str]) -> dict[str, str | None]:
    """Each encoder's prefix -> its decoder's: the same, or the one with most of its path."""
    pairs: dict[str, str | None] = {key: key if key in decoders else None for key in encoders}
    for decoder in sorted(decoders - pairs.keys()):
        best = max(encoders, key=lambda key: (len(_common(key, decoder)), not _AVERAGE.search(key)))
        pairs[best] = pairs[best] or decoder
    return pairs


def _taken(
    values: Mapping[str, Any],
    library: str,
    encoder: str,
    decoder: str | None,
    others: tuple[str, ...],
) -> Found:
    """The tensors of one model, and where the rest lies."""
    parts: dict[str, dict[str, Any]] = {encoder: {}}
    if decoder is not None:
        parts.setdefault(decoder, {})
    aside: dict[str, int] = {}
    for key, value in values.items():
        # A count of steps, or a score, is no weight.
        if not isinstance(value, Tensor) or (value.ndim == 0 and not value.is_floating_point()):
            continue
        prefix = max((p for p in parts if key.startswith(p)), key=len, default=None)
        inner = key.removeprefix(prefix or "")
        first, dot, _ = inner.partition(".")
        is_head = decoder is not None and inner.startswith(_HEADS)
        if prefix is None or key.startswith(others) or is_head or (dot and not _PARTS.match(first)):
            if value.ndim:
                shared = max((_common(key, p) for p in parts), key=len)
                place = shared + key.removeprefix(shared).partition(".")[0]
                aside[place] = aside.get(place, 0) + 1
        else:
            parts[prefix][inner] = value
    own_decoder = {} if decoder in (None, encoder) else parts[decoder]
    beside = _common(encoder, decoder or "") + "mask_token"
    if own_decoder and "mask_token" not in own_decoder and isinstance(values.get(beside), Tensor):
        # The module that holds both may keep it.
        own_decoder["mask_token"] = values[beside]
        aside.pop(beside, None)
    under = tuple(p.rstrip(".") for p in parts)
    return Found(library, parts[encoder], own_decoder, under if any(under) else (), aside)


def _common(one: str, other: str) -> str:
    """The path that two names share, with the dot at its end."""
    pairs = zip(one.split(".")[:-1], other.split(".")[:-1], strict=False)
    return "".join(a + "." for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def to_official(name: str, found: Found) -> tuple[str, dict[str, Tensor]]:
    """The format, as in `Weights.format`, and the tensors by their official names."""
    if found.library == "official":
        return "official", {**found.encoder, **found.decoder}
    if found.library != "transformers":
        return found.library, official_from_library(found.library, found.encoder, found.decoder)
    version = 5 if any(".q_proj." in key for key in found.tensors) else 4
    try:
        return f"transformers {version}", official_from_huggingface(found.tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{name!r}: {error}") from error


# A name in a refused file and what model that may be; the first that fits is named.
_SIGNS = {
    r"(_packed_params|\.(zero_point|qweight|qzeros|absmax|SCB|weight_scale))(\.|$)":
        "quantised weights, which have to be saved as floats",
    r"\.lora_([AB]|down|up)\b": "a LoRA adapter, which has to be merged into its model",
    r"(^|\.)(text_model|token_embedding|word_embeddings|embed_tokens|logit_scale|class_embedding)"
    r"(\.|$)": "CLIP or a language model",
    r"(^|\.)(diffusion_model|first_stage_model|t_embedder|down_blocks)\.": "a diffusion model",
    r"(^|\.)(momentum_encoder|base_encoder|encoder_[qk])\.": "MoCo",
    r"(^|\.)predictor_(embed|blocks|pos_embed)\b|(^|\.)target_encoder\.": "I-JEPA",
    r"(^|\.)(dino_head|ibot_head|last_layer)\b|(^|\.)head\.(mlp\.|last_layer)": "DINO",
    r"(^|\.)(register_tokens|reg_token)$|\.(ls[12]|layer_scale_?[12]?)(\.|$)": "DINOv2",
    r"(^|\.)decoder\.0\.(weight|bias)$|(^|\.)embeddings\.mask_token$": "SimMIM",
    r"(^|\.)layers\.\d+\.(blocks\.\d+|downsample)\.": "a Swin transformer",
    r"\.(rel_pos_[hw]|neck\.0\.weight)$": "SAM or ViTDet",
    r"relative_position_(bias|index)|\.attn\.[qv]_bias$|\.gamma_[12]$": "BEiT",
    r"(^|\.)to_patch_embedding\.": "a ViT of vit-pytorch",
    r"(^|\.)head\.0\.": "a linear probe",
    r"(^|\.)((patch_embed|blocks|layer)[1-4]|conv1|downsample_layers|stages)\.":
        "ConvMAE, a ResNet or another convolutional network",
}  # fmt: skip


def recognize(values: Mapping[str, Any]) -> str:
    """What a refused model may be, as the end of a sentence; empty if such names tell nothing."""
    for pattern, what in _SIGNS.items():
        for key in values:
            if re.search(pattern, key):
                return f"; by {shown(key)} it may be {what}"
    return ""
