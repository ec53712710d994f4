"""The parameter names of the official files and of other libraries.

The official names are the flat ones that `MaskedAutoencoder` and timm have. transformers keeps
query, key and value apart where the others have one matrix, and renamed the blocks' insides in
its version 5, which still reads the names of version 4. Those of OpenMMLab and of torchvision's
ViT, as lightly has used it, come in only. These are maps between dictionaries: they know neither
files nor shapes beyond what splitting and joining need.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mae_core.errors import CheckpointError
from mae_core.weights.safety import shown


def is_decoder_key(key: str) -> bool:
    """Whether a parameter of that official name is the decoder's, or its target's."""
    return key.startswith(("decoder_", "pca_")) or key == "mask_token"


# --- transformers

# A block's modules: official name -> those of transformers 4 and 5. The thirds of `qkv` in order.
_IN_BLOCK = {
    "norm1": ("layernorm_before",),
    "norm2": ("layernorm_after",),
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
    "mlp.fc2": ("output.dense", "mlp.fc2"),
}
_QKV = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
)
# The blocks themselves: of versions 4 and 5. When it saves, 5.23 calls the decoder's the last.
_BLOCKS = {
    "blocks": ("encoder.layer", "layers"),
    "decoder_blocks": ("decoder.decoder_layers", "decoder.decoder_encoder.layer"),
}
_OUTSIDE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.decoder_pos_embed",
} | {
    f"{ours}.{kind}": f"{theirs}.{kind}"
    for kind in ("weight", "bias")
    for ours, theirs in (
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("norm", "layernorm"),
        *((name, f"decoder.{name}") for name in ("decoder_embed", "decoder_norm", "decoder_pred")),
    )
}

_NUMBER = re.compile(r"\.([0-9]+)\.")


def _tables() -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, int | None]]]:
    """Official name -> transformers 4's, one or three; and any of its names -> official, third.

    A block's number is `#`.
    """
    theirs: dict[str, tuple[str, ...]] = {ours: (name,) for ours, name in _OUTSIDE.items()}
    ours: dict[str, tuple[str, int | None]] = {name: (our, None) for our, name in _OUTSIDE.items()}
    for kind in ("weight", "bias"):
        for blocks, places in _BLOCKS.items():
            qkv = f"{blocks}.#.attn.qkv.{kind}"
            theirs[qkv] = tuple(f"{places[0]}.#.{names[0]}.{kind}" for names in _QKV)
            for module, names in _IN_BLOCK.items():
                theirs[f"{blocks}.#.{module}.{kind}"] = (f"{places[0]}.#.{names[0]}.{kind}",)
            for place in places:
                for module, names in _IN_BLOCK.items():
                    official = f"{blocks}.#.{module}.{kind}", None
                    ours.update((f"{place}.#.{name}.{kind}", official) for name in names)
                for third, names in enumerate(_QKV):
                    ours.update((f"{place}.#.{name}.{kind}", (qkv, third)) for name in names)
    return theirs, ours


_THEIRS, _OURS = _tables()


def _numbered(key: str) -> tuple[str, str]:
    """A name with `#` in place of its first number, and that number with its dots."""
    found = _NUMBER.search(key)
    return (key, ".#.") if found is None else (_NUMBER.sub(".#.", key, count=1), found[0])


def official_from_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of transformers' ViTMAE under the official names.

    Args:
        state: Of a `ViTMAEForPreTraining`, or of a bare `ViTMAEModel`, which has no decoder and
            no `vit.` in front; in the names of transformers 4 or 5.

    Returns:
        The same by the official names, with query, key and value joined; the rest is not copied.

    Raises:
        CheckpointError: If a name is unknown or stands for what another one already is, or if
            query, key and value of a block are not all there and of one shape.
    """
    official: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    unknown, twice = [], []
    for key, tensor in state.items():
        bare = key if key.startswith("vit.decoder.") else key.removeprefix("vit.")
        template, number = _numbered(bare)
        name, third = _OURS.get(template, ("", None))
        name = name.replace(".#.", number)
        if not name:
            unknown.append(key)
        elif name in official or third in thirds.get(name, {}):
            twice.append(key)
        elif third is None:
            official[name] = tensor
        else:
            thirds.setdefault(name, {})[third] = tensor
    _refuse(unknown, "not parameters of transformers' ViTMAE")
    _refuse(twice, "there a second time under another name")
    return official | {name: _joined(name, parts) for name, parts in thirds.items()}


def _joined(name: str, parts: Mapping[int, Tensor]) -> Tensor:
    if missing := [names[0].rpartition(".")[2] for i, names in enumerate(_QKV) if i not in parts]:
        raise CheckpointError(
            f"{shown(name)} cannot be put together: its {' and '.join(missing)} is missing"
        )
    ordered = [parts[i] for i in range(3)]
    if ordered[0].ndim == 0 or len({part.shape for part in ordered}) > 1:
        shapes = ", ".join(str(tuple(part.shape)) for part in ordered)
        raise CheckpointError(f"query, key and value of {shown(name)} have shapes {shapes}")
    return torch.cat(ordered)


def huggingface_from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official parameters under the names of transformers 4, which open in 4 and 5.

    Args:
        state: Of a whole model, or of an encoder alone, by the official names.

    Returns:
        The same as a `ViTMAEForPreTraining` saves them; those of an encoder alone as a
        `ViTMAEModel` does, with no `vit.` in front. Query, key and value are copies of their
        thirds; the rest is not copied.

    Raises:
        CheckpointError: If a name is none of the official encoder or decoder, or `attn.qkv`
            does not divide into three.
    """
    prefix = "vit." if any(is_decoder_key(key) for key in state) else ""
    theirs: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        template, number = _numbered(key)
        places = _THEIRS.get(template, ())
        if not places:
            unknown.append(key)
            continue
        parts = [tensor] if len(places) == 1 else _split(key, tensor)
        own = "" if is_decoder_key(key) else prefix
        theirs |= {
            own + place.replace(".#.", number): part
            for place, part in zip(places, parts, strict=True)
        }
    _refuse(unknown, "without a place in transformers' ViTMAE")
    return theirs


def _split(key: str, tensor: Tensor) -> list[Tensor]:
    if tensor.ndim == 0 or tensor.shape[0] % 3:
        raise CheckpointError(
            f"{shown(key)} of shape {tuple(tensor.shape)} does not divide into query, key and value"
        )
    # Each of its own, as safetensors writes no two views of one tensor.
    return [part.clone() for part in tensor.chunk(3)]


def _refuse(keys: Sequence[str], why: str) -> None:
    if keys:
        some = ", ".join(shown(key) for key in keys[:3])
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise CheckpointError(f"{some}{more}: {why}")


# --- OpenMMLab and torchvision

# Their names -> official ones: within a block, of the encoder, of the decoder. What is in no
# table is called the same.
_LIBRARIES = {
    "openmmlab": (
        {"ln1": "norm1", "ln2": "norm2", "ffn.layers.0.0": "mlp.fc1", "ffn.layers.1": "mlp.fc2"},
        {"patch_embed.projection": "patch_embed.proj", "ln1": "norm"},
        {"ln1": "decoder_norm"},
    ),
    "torchvision": (
        # The MLP before torchvision 0.13 and after.
        {"ln_1": "norm1", "ln_2": "norm2", "self_attention.in_proj": "attn.qkv",
         "self_attention.out_proj": "attn.proj", "mlp.linear_1": "mlp.fc1", "mlp.0": "mlp.fc1",
         "mlp.linear_2": "mlp.fc2", "mlp.3": "mlp.fc2"},
        {"conv_proj": "patch_embed.proj", "class_token": "cls_token", "heads.head": "head",
         "encoder.pos_embedding": "pos_embed", "encoder.ln": "norm"},
        {"pos_embedding": "decoder_pos_embed", "ln": "decoder_norm",
         "prediction_head": "decoder_pred"},
    ),
}  # fmt: skip
_THEIR_BLOCK = re.compile(
    r"(?:encoder\.)?(?:layers|decoder_blocks)\.(?:encoder_layer_)?([0-9]+)\.(.+)[._](weight|bias)"
)


def official_from_library(
    library: str, encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Parameters of OpenMMLab's MAE, or one of torchvision's ViT, under the official names.

    No prefix is before the names of encoder and decoder. Unknown names stay as they are.
    """
    in_block, *outside = _LIBRARIES[library]
    official = {}
    for prefix, part, names in zip(("", "decoder_"), (encoder, decoder), outside, strict=True):
        for key, tensor in part.items():
            module, dot, kind = key.rpartition(".")
            name = names.get(key) or names.get(module, module) + dot + kind
            if block := _THEIR_BLOCK.fullmatch(key):
                number, module, kind = block.groups()
                name = f"{prefix}blocks.{number}.{in_block.get(module, module)}.{kind}"
            official[name] = tensor
    return official
