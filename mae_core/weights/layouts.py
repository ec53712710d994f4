"""Where in a file the model is, and its tensors by the official names.

Training scripts put a model's weights anywhere: under `model`, `state_dict` or `ema`, with
`module.` or `net.` before every name, encoder and decoder apart, a classifier or a loss beside
them. So a model is found by its content: the patch embedding that every ViT has says under which
prefix its encoder lies, the decoder's embedding says the same of the decoder.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
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

# What a model of each library has, by the first part of a name.
_OFFICIAL_DECODER = {
    "mask_token", "decoder_embed", "decoder_pos_embed", "decoder_blocks", "decoder_norm",
    "decoder_pred", "pca_mean", "pca_basis",
}  # fmt: skip
_PARTS = {
    "official": {"cls_token", "pos_embed", "patch_embed", "blocks", "norm", "fc_norm", "head",
                 "encoder_mask_token"} | _OFFICIAL_DECODER,
    "transformers": {"embeddings", "encoder", "layers", "layernorm", "decoder_layers",
                     "decoder_encoder"} | _OFFICIAL_DECODER,
    "openmmlab": {"cls_token", "pos_embed", "patch_embed", "layers", "ln1"} | _OFFICIAL_DECODER,
    "torchvision": {"class_token", "conv_proj", "encoder", "heads", "pos_embedding", "layers", "ln",
                    "prediction_head"} | _OFFICIAL_DECODER,
}  # fmt: skip
# The first part of a module's name that a ViT would be another model without; one of a loss or a
# projector is not.
_OF_A_MODEL = re.compile(
    r"(pos|patch|embed|embeddings|stem|norm|ln|blocks?|layers?|decoder|mask|dist|pre|rel)(_|\d|$)"
)
# What a head for classes is called, which a model that draws pixels has no use for.
_HEADS = ("head.", "fc_norm.", "heads.")

# Longer names of wrappers are nobody's, and would be repeated for every tensor within. No file of
# one model and its training has more names or models: each takes time to look at.
_LONGEST_PATH = 200
_MOST_NAMES = 100_000
_MOST_MODELS = 100
_MOST_SHOWN = 5


@dataclass(frozen=True)
class Found:
    """A model within a file.

    Attributes:
        library: Whose names it has: `official`, `transformers`, `openmmlab` or `torchvision`.
        encoder: Its encoder by the names after the prefix, and all else of a model in one piece.
        decoder: Its decoder likewise, where it has a prefix of its own.
        under: The prefixes, without the dot at the end; empty where there is none.
        left_aside: What else the file holds, single numbers aside: where, and how many tensors.
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


@dataclass(frozen=True)
class _Names:
    """A file's content, all mappings unfolded into dotted names.

    Attributes:
        values: Name -> tensor, or whatever else it is.
        twice: Names that the file has with and without a wrapper's prefix.
        no_text: Where a key is no text -> that key.
    """

    values: dict[str, Any] = field(default_factory=dict)
    twice: set[str] = field(default_factory=set)
    no_text: dict[str, Any] = field(default_factory=dict)


def find_model(name: str, content: Mapping[Any, Any]) -> Found:
    """The one model in a file, wherever it lies in it.

    A whole model goes before an encoder alone, and trained weights go before their running
    average (`ema`, `momentum`), which is taken where it is the only one. Of several that are left
    none is chosen. The first argument is the file's name, for messages.
    """
    names = _unfolded(content)
    if len(names.values) > _MOST_NAMES:
        raise CheckpointError(
            f"{name!r} has {len(names.values):,} names; at most {_MOST_NAMES:,} are read: save the "
            "model's state_dict alone"
        )
    if any(key.startswith("head.0.") for key in names.values):
        raise CheckpointError(
            f"{name!r} is a linear probe, whose head of several layers cannot be read; give the "
            "weights that it was trained on"
        )
    encoders = {
        key.removesuffix(anchor): library
        for key in names.values
        for anchor, library in _ENCODERS.items()
        if key == anchor or key.endswith("." + anchor)
    }
    if not encoders:
        raise CheckpointError(_no_model(name, content, names.values))
    if len(encoders) > _MOST_MODELS:
        raise CheckpointError(
            f"{name!r} holds {len(encoders):,} models; save the state_dict of the one that you "
            "want in a file of its own"
        )
    decoder_of = _paired(list(encoders), names.values)
    encoder = _chosen(name, decoder_of, names.values)
    found = _taken(encoders, encoder, decoder_of[encoder], names.values)
    _check_names(name, found, encoder, names)
    return found


def _unfolded(content: Mapping[Any, Any]) -> _Names:
    names = _Names()
    folded: list[tuple[str, Mapping[Any, Any]]] = [("", content)]
    seen = {id(content)}
    for path, mapping in folded:  # which grows
        for key, value in mapping.items():
            if not isinstance(key, str):
                names.no_text.setdefault(path, key)
                continue
            bare = ".".join(part for part in (path + key).split(".") if part not in _TRANSPARENT)
            if isinstance(value, Mapping):
                if id(value) not in seen and len(path) + len(key) < _LONGEST_PATH:
                    seen.add(id(value))
                    folded.append((f"{bare}." if bare else "", value))
            elif not isinstance(names.values.get(bare), Tensor):
                names.values[bare] = value
            elif isinstance(value, Tensor):
                names.twice.add(bare)
    return names


def _paired(encoders: list[str], values: Mapping[str, Any]) -> dict[str, str | None]:
    """Each encoder's prefix -> its decoder's: the same, or the one with most of its path."""
    decoders = {
        key.removesuffix(anchor)
        for key in values
        for anchor in _DECODERS
        if key == anchor or key.endswith("." + anchor)
    }
    pairs: dict[str, str | None] = {key: key if key in decoders else None for key in encoders}
    for decoder in sorted(decoders - pairs.keys()):
        best = max(encoders, key=lambda key: (len(_common(key, decoder)), not _is_average(key)))
        pairs[best] = pairs[best] or decoder
    return pairs


def _common(one: str, other: str) -> str:
    """The path that two prefixes share."""
    parts = []
    for a, b in zip(one.split(".")[:-1], other.split(".")[:-1], strict=False):
        if a != b:
            break
        parts.append(a + ".")
    return "".join(parts)


def _is_average(prefix: str) -> bool:
    return _AVERAGE.search(prefix) is not None


def _chosen(name: str, pairs: Mapping[str, str | None], values: Mapping[str, Any]) -> str:
    whole = [prefix for prefix, decoder in pairs.items() if decoder is not None]
    if not whole and len(pairs) > 1 and (what := _recognize(values)):
        raise CheckpointError(f"{name!r} is no masked autoencoder: {what}")
    left = whole or list(pairs)
    left = [prefix for prefix in left if not _is_average(prefix)] or left
    if len(left) == 1:
        return left[0]
    places = " and ".join(shown(prefix.rstrip(".")) for prefix in left[:_MOST_SHOWN])
    raise CheckpointError(
        f"{name!r} holds {len(left)} models, under {places}, and nothing says which one is meant; "
        "save the state_dict of the one that you want in a file of its own"
    )


def _taken(
    encoders: Mapping[str, str], encoder: str, decoder: str | None, values: Mapping[str, Any]
) -> Found:
    """The tensors of one model, and where the others are."""
    library, apart = encoders[encoder], decoder if decoder != encoder else None
    others = tuple(p for p in encoders if p != encoder and p.startswith(encoder))
    parts: dict[str, dict[str, Any]] = {encoder: {}, **({} if apart is None else {apart: {}})}
    aside: dict[str, int] = {}
    for key, value in values.items():
        prefix = max((p for p in parts if key.startswith(p)), key=len, default=None)
        inner = key.removeprefix(prefix or "")
        if (
            prefix is not None
            and not key.startswith(others)
            and _belongs(inner, value, library, whole=decoder is not None)
        ):
            parts[prefix][inner] = value
        elif isinstance(value, Tensor) and value.ndim > 0:  # a count or a score is no weight
            shared = max((_common(key, p) for p in parts), key=len)
            place = shared + key.removeprefix(shared).partition(".")[0]
            aside[place] = aside.get(place, 0) + 1
    if apart is not None and "mask_token" not in parts[apart]:
        # Sidecar both, where the module that holds them keeps it.
        beside = _common(encoder, apart) + "mask_token"
        if isinstance(values.get(beside), Tensor):
            parts[apart]["mask_token"] = values[beside]
            aside.pop(beside, None)
    under = tuple(p.rstrip(".") for p in parts)
    own_decoder = {} if apart is None else parts[apart]
    return Found(library, parts[encoder], own_decoder, under if any(under) else (), aside)


def _belongs(inner: str, value: object, library: str, *, whole: bool) -> bool:
    """Whether what lies under a model's prefix is of the model, known or not."""
    if whole and inner.startswith(_HEADS):
        return False
    first, dot, _ = inner.partition(".")
    if first in _PARTS[library]:
        return True
    if not isinstance(value, Tensor):
        return False
    # A parameter of its own changes a model, a count of steps does not.
    is_count = not value.is_floating_point() and value.ndim == 0
    return not is_count and (not dot or _OF_A_MODEL.match(first) is not None)


def _check_names(name: str, found: Found, encoder: str, names: _Names) -> None:
    if encoder in names.no_text:
        raise CheckpointError(
            f"{name!r} has the name {shown(names.no_text[encoder])}, which is no text; save the "
            "model's state_dict, whose names are"
        )
    prefixes = [f"{place}." if place else "" for place in found.under] or [""]
    parts = zip(prefixes, (found.encoder, found.decoder), strict=False)
    if any(prefix + key in names.twice for prefix, part in parts for key in part):
        raise CheckpointError(
            f"{name!r} has tensors of the same name with and without a prefix such as module.; "
            "save one model only"
        )
    if what := _recognize(found.tensors):
        raise CheckpointError(f"{name!r} is no masked autoencoder: {what}")


def _no_model(name: str, content: Mapping[Any, Any], values: Mapping[str, Any]) -> str:
    tensors = sorted(key for key, value in values.items() if isinstance(value, Tensor))
    if not tensors and any(value is content for value in content.values()):
        return (
            f"{name!r} has wrappers within wrappers without end; save the model's state_dict alone"
        )
    some = ", ".join(shown(key) for key in (tensors or sorted(values))[:3])
    what = _recognize(values)
    if not what and ("param_groups" in content or (not tensors and "optimizer" in content)):
        what = (
            "it is the state of an optimiser, without a model; give the file that has the model's "
            "state_dict"
        )
    elif not what and not tensors and some:
        what = f"it holds no tensors by name, only {some}; save the model's state_dict"
    elif not what:
        what = (
            f"none of its {len(tensors)} names is that of a patch embedding "
            f"({some or 'it is empty'}); give weights of MAE's ViT, its state_dict alone"
        )
    return f"{name!r} is no masked autoencoder: {what}"


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


# --- other models

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
         "it is CLIP or another model of images and text", _NEEDED),
        (r"(^|\.)(word_embeddings|embed_tokens|wte)\.weight$", "it is a language model", _NEEDED),
        (r"(^|\.)(momentum_encoder|base_encoder|encoder_[qk])\.", "it is MoCo, which predicts no "
         "pixels", _NEEDED),
        (r"(^|\.)predictor_(embed|blocks|pos_embed)\b|(^|\.)target_encoder\.|"
         r"(^|\.)predictor\.predictor_", "it is I-JEPA, which predicts features and no pixels",
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


def _recognize(values: Mapping[str, Any]) -> str:
    """What names say of a model that is no masked autoencoder of ours, and what to do.

    The end of a sentence; empty if nothing is known of such names.
    """
    tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
    for pattern, what, advice in _SIGNS:
        for key in tensors:
            if pattern.search(key):
                return f"by {shown(key)} {what}; {advice}"
    for key, tensor in tensors.items():
        if key.endswith("patch_embed.proj.weight") and tensor.ndim == 5:
            return f"by {shown(key)} of five sides it is a model of videos; {_NEEDED}"
        if key.endswith("patch_embed.proj.weight") and tensor.shape == (0,):
            return (
                f"{shown(key)} is empty, as in a file of DeepSpeed's stage 3, whose weights are in "
                "parts; join them with zero_to_fp32.py and give the file that it writes"
            )
    tokens = [key for key in tensors if key.rpartition(".")[2] == "mask_token"]
    if tokens and not any("decoder" in key for key in tensors):
        return (
            f"by {shown(tokens[0])} its encoder sees mask tokens, and it has no decoder, as BEiT, "
            f"SimMIM and data2vec; {_NEEDED}"
        )
    return ""
