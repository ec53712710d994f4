"""Where in a file the model is, and its tensors by the official names.

Training scripts put a model's weights anywhere: under `model`, `state_dict` or `ema`, with
`module.` or `net.` before every name, encoder and decoder apart, a classifier or a loss beside
them. So a model is found by its content: the patch embedding that every ViT has says under which
prefix its encoder lies, the decoder's embedding says the same of the decoder.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mae_core.errors import CheckpointError
from mae_core.weights.contents import Kind
from mae_core.weights.files import shown
from mae_core.weights.foreign import recognize
from mae_core.weights.names import official_from_huggingface, official_from_library

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

# Longer names of wrappers are nobody's, and would be repeated for every tensor within.
_LONGEST_PATH = 200
_MOST_NAMED = 5
# No file of one model and its training has more: each takes time to look at.
_MOST_NAMES = 100_000
_MOST_MODELS = 100

# What transformers 5.23 calls the decoder's blocks when it saves them: its own change of names
# back to version 4's also meets the end of `decoder_layers`.
_DECODER_LAYERS = {"decoder.decoder_encoder.layer.": "decoder.decoder_layers."}


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

    values: dict[str, Any]
    twice: set[str]
    no_text: dict[str, Any]


def find_model(name: str, content: Mapping[Any, Any]) -> Found:
    """The one model in a file, wherever it lies in it.

    A whole model goes before an encoder alone, and trained weights go before their running
    average (`ema`, `momentum`), which is taken where it is the only one. Of several that are left
    none is chosen.

    Args:
        name: Of the file, for messages.
        content: What was in it.

    Raises:
        CheckpointError: If there is no model or more than one, a name is no text, or two names
            become one.
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
    encoders = dict(_anchors(names.values))
    if not encoders:
        raise CheckpointError(_no_model(name, content, names))
    if len(encoders) > _MOST_MODELS:
        raise CheckpointError(
            f"{name!r} holds {len(encoders):,} models; save the state_dict of the one that you "
            "want in a file of its own"
        )
    pairs = _paired(encoders, names.values)
    chosen = _chosen(name, pairs, names)
    found = _taken(encoders, chosen, pairs[chosen], names)
    _check_names(name, found, chosen, names)
    return found


def _unfolded(content: Mapping[Any, Any]) -> _Names:
    names = _Names({}, set(), {})
    folded: list[tuple[str, Mapping[Any, Any]]] = [("", content)]
    seen = {id(content)}
    for path, mapping in folded:  # which grows
        for key, value in mapping.items():
            if not isinstance(key, str):
                names.no_text.setdefault(path, key)
            elif not isinstance(value, Mapping):
                bare = _bare(path + key)
                if not isinstance(names.values.get(bare), Tensor):
                    names.values[bare] = value
                elif isinstance(value, Tensor):
                    names.twice.add(bare)
            elif id(value) not in seen and len(path) + len(key) < _LONGEST_PATH:
                seen.add(id(value))
                folded.append((_bare(f"{path}{key}."), value))
    return names


def _bare(name: str) -> str:
    """A name or prefix without what wrappers of a module put into it."""
    return ".".join(part for part in name.split(".") if part not in _TRANSPARENT)


def _anchors(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The prefix of each patch embedding, and whose name it is."""
    for key in values:
        for anchor, library in _ENCODERS.items():
            if key == anchor or key.endswith("." + anchor):
                yield key.removesuffix(anchor), library


def _paired(encoders: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, str | None]:
    """Each encoder's prefix -> its decoder's: the same, or the one with most of its path."""
    decoders = {
        key.removesuffix(anchor)
        for key in values
        for anchor in _DECODERS
        if key == anchor or key.endswith("." + anchor)
    }
    pairs: dict[str, str | None] = {key: key if key in decoders else None for key in encoders}
    for decoder in sorted(decoders - encoders.keys()):
        near = {key: (len(_common(key, decoder)), not _is_average(key)) for key in encoders}
        best = max(near, key=near.__getitem__)
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


def _chosen(name: str, pairs: Mapping[str, str | None], names: _Names) -> str:
    whole = [prefix for prefix, decoder in pairs.items() if decoder is not None]
    if not whole and len(pairs) > 1 and (what := recognize(names.values)):
        raise CheckpointError(f"{name!r} is no masked autoencoder: {what}")
    left = whole or list(pairs)
    left = [prefix for prefix in left if not _is_average(prefix)] or left
    if len(left) == 1:
        return left[0]
    places = " and ".join(shown(prefix.rstrip(".")) for prefix in left[:_MOST_NAMED])
    raise CheckpointError(
        f"{name!r} holds {len(left)} models, under {places}, and nothing says which one is meant; "
        "save the state_dict of the one that you want in a file of its own"
    )


def _taken(encoders: Mapping[str, str], encoder: str, decoder: str | None, names: _Names) -> Found:
    """The tensors of one model, and where the others are."""
    library, apart = encoders[encoder], decoder if decoder != encoder else None
    others = tuple(p for p in encoders if p != encoder and p.startswith(encoder))
    parts: dict[str | None, dict[str, Any]] = {encoder: {}, apart: {}}
    longest_first = sorted((p for p in parts if p is not None), key=len, reverse=True)
    aside: dict[str, int] = {}
    for key, value in names.values.items():
        prefix = next((p for p in longest_first if key.startswith(p)), None)
        inner = key.removeprefix(prefix or "")
        is_inside = prefix is not None and not key.startswith(others)
        if is_inside and _belongs(inner, value, library, whole=decoder is not None):
            parts[prefix][inner] = value
        elif isinstance(value, Tensor) and value.ndim > 0:  # a count or a score is no weight
            place = _place(key, encoder, apart)
            aside[place] = aside.get(place, 0) + 1
    if apart is not None and "mask_token" not in parts[apart]:
        # Beside both, where the module that holds them keeps it.
        beside = _common(encoder, apart) + "mask_token"
        if isinstance(names.values.get(beside), Tensor):
            parts[apart]["mask_token"] = names.values[beside]
            aside.pop(beside, None)
    under = tuple(p.rstrip(".") for p in (encoder, apart) if p is not None)
    return Found(library, parts[encoder], parts[apart], under if any(under) else (), aside)


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


def _place(key: str, encoder: str, decoder: str | None) -> str:
    """The shortest part of a name that is neither the encoder's nor the decoder's path."""
    shared = max((_common(key, p) for p in (encoder, decoder) if p is not None), key=len)
    rest = key.removeprefix(shared)
    return shared + rest.partition(".")[0]


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
    what = recognize(found.tensors)
    if what:
        raise CheckpointError(f"{name!r} is no masked autoencoder: {what}")


def _no_model(name: str, content: Mapping[Any, Any], names: _Names) -> str:
    tensors = sorted(key for key, value in names.values.items() if isinstance(value, Tensor))
    if not tensors and any(value is content for value in content.values()):
        return (
            f"{name!r} has wrappers within wrappers without end; save the model's state_dict alone"
        )
    what = recognize(names.values)
    if what:
        return f"{name!r} is no masked autoencoder: {what}"
    if "param_groups" in content or (not tensors and "optimizer" in content):
        return (
            f"{name!r} is no masked autoencoder but the state of an optimiser, without a model; "
            "give the file that has the model's state_dict"
        )
    some = ", ".join(shown(key) for key in (tensors or sorted(names.values))[:3])
    if not tensors and some:
        return (
            f"{name!r} is no masked autoencoder: it holds no tensors by name, only {some}; save "
            "the model's state_dict"
        )
    return (
        f"{name!r} is no masked autoencoder: none of its {len(tensors)} names is that of a patch "
        f"embedding ({some or 'it is empty'}); give weights of MAE's ViT, its state_dict alone"
    )


def to_official(name: str, found: Found) -> tuple[str, dict[str, Tensor]]:
    """The format, and the tensors by their official names.

    Args:
        name: Of the file, for messages.
        found: What `find_model` gave, all of it tensors.

    Returns:
        `official`, `transformers 4`, `transformers 5`, `openmmlab` or `torchvision`, and the
        mapping.

    Raises:
        CheckpointError: If names are unknown to the library, or missing.
    """
    if found.library == "official":
        return "official", {**found.encoder, **found.decoder}
    if found.library != "transformers":
        return found.library, official_from_library(found.library, found.encoder, found.decoder)
    is_new = any(".q_proj." in key for key in found.tensors)
    renamed = {_decoder_layers(key): tensor for key, tensor in found.tensors.items()}
    try:
        official = official_from_huggingface(renamed)
    except CheckpointError as error:
        raise CheckpointError(f"{name!r}: {error}") from error
    return ("transformers 5" if is_new else "transformers 4"), official


def _decoder_layers(key: str) -> str:
    for old, new in _DECODER_LAYERS.items():
        if key.startswith(old):
            return new + key[len(old) :]
    return key


def kind_of(state: Mapping[str, Tensor]) -> Kind:
    """What a mapping by official names holds."""
    if "mask_token" in state or any(key.startswith("decoder_") for key in state):
        return "autoencoder"
    if any(key.startswith(("head.", "fc_norm.")) for key in state):
        return "classifier"
    return "encoder"
