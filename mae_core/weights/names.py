"""The parameter names of the official files and of transformers' ViTMAE, both ways.

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

# Official name of a module or parameter -> transformers' name of it, outside the blocks.
_ENCODER = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_DECODER = {
    name: f"decoder.{name}"
    for name in ("mask_token", "decoder_pos_embed", "decoder_embed", "decoder_norm", "decoder_pred")
}

# Inside a block: official name -> names of transformers 4 and of transformers 5.
_IN_BLOCK = {
    "norm1": ("layernorm_before", "layernorm_before"),
    "norm2": ("layernorm_after", "layernorm_after"),
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
    "mlp.fc2": ("output.dense", "mlp.fc2"),
}
# The thirds of the official `attn.qkv`, in its order.
_QKV = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
)

_FROM_OUTSIDE = {theirs: ours for ours, theirs in (_ENCODER | _DECODER).items()}
_FROM_BLOCK = {theirs: ours for ours, names in _IN_BLOCK.items() for theirs in names}
_THIRD = {theirs: i for i, names in enumerate(_QKV) for theirs in names}

_OFFICIAL_BLOCK = re.compile(r"(decoder_)?blocks\.([0-9]+)\.(.+)\.(weight|bias)")
_THEIR_BLOCK = re.compile(
    r"(?:encoder\.layer|layers|(decoder\.decoder_layers))\.([0-9]+)\.(.+)\.(weight|bias)"
)


# Names of OpenMMLab and torchvision -> official ones, of the encoder and of the decoder. What is
# in no table is called the same.
_IN_BLOCK_OF = {
    "openmmlab": {"ln1": "norm1", "ln2": "norm2", "ffn.layers.0.0": "mlp.fc1",
                  "ffn.layers.1": "mlp.fc2"},
    "torchvision": {
        "ln_1": "norm1", "ln_2": "norm2", "self_attention.out_proj": "attn.proj",
        # Before torchvision 0.13 and after.
        "mlp.linear_1": "mlp.fc1", "mlp.0": "mlp.fc1", "mlp.linear_2": "mlp.fc2",
        "mlp.3": "mlp.fc2",
    },
}  # fmt: skip
_OUTSIDE_OF = {
    "openmmlab": ({"patch_embed.projection": "patch_embed.proj", "ln1": "norm"},
                  {"ln1": "decoder_norm"}),
    "torchvision": (
        {"conv_proj": "patch_embed.proj", "class_token": "cls_token", "heads.head": "head",
         "encoder.pos_embedding": "pos_embed", "encoder.ln": "norm"},
        {"pos_embedding": "decoder_pos_embed", "ln": "decoder_norm",
         "prediction_head": "decoder_pred"},
    ),
}  # fmt: skip
_A_BLOCK = re.compile(
    r"(?:encoder\.)?(?:layers|decoder_blocks)\.(?:encoder_layer_)?([0-9]+)\.(.+)[._](weight|bias)"
)


def official_from_library(
    library: str, encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Parameters of OpenMMLab's MAE, or one of torchvision's ViT, under the official names.

    Args:
        library: `openmmlab` or `torchvision`.
        encoder: Its encoder, no prefix before its names.
        decoder: Its decoder likewise.

    Returns:
        The same by the official names, nothing copied; unknown names stay as they are.
    """
    in_block = _IN_BLOCK_OF[library] | {"self_attention.in_proj": "attn.qkv"}
    official = {}
    parts = zip(("", "decoder_"), (encoder, decoder), _OUTSIDE_OF[library], strict=True)
    for prefix, part, outside in parts:
        for key, tensor in part.items():
            block = _A_BLOCK.fullmatch(key)
            if block is not None:
                number, module, kind = block.groups()
                name = f"{prefix}blocks.{number}.{in_block.get(module, module)}.{kind}"
            else:
                name = _renamed(key, outside) or key
            official[name] = tensor
    return official


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
    placed: dict[tuple[str, int | None], Tensor] = {}
    unknown, twice = [], []
    for key, tensor in state.items():
        place = _official_place(key)
        if not place[0]:
            unknown.append(key)
        elif place in placed:
            twice.append(key)
        else:
            placed[place] = tensor
    _refuse(unknown, "not parameters of transformers' ViTMAE")
    _refuse(twice, "there a second time under another name")
    official = {name: tensor for (name, third), tensor in placed.items() if third is None}
    thirds = dict.fromkeys(name for name, third in placed if third is not None)
    joined = {name: _joined(name, placed) for name in thirds}
    return official | joined


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
    prefix = "vit." if any(_of_decoder(key) for key in state) else ""
    theirs: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        own = "" if _of_decoder(key) else prefix
        places = _their_places(key)
        if len(places) == 1:
            theirs[own + places[0]] = tensor
        elif places:
            parts = zip(places, _split(key, tensor), strict=True)
            theirs.update((own + place, part) for place, part in parts)
        else:
            unknown.append(key)
    _refuse(unknown, "without a place in transformers' ViTMAE")
    return theirs


def _of_decoder(key: str) -> bool:
    return key.startswith("decoder_") or key == "mask_token"


def _official_place(key: str) -> tuple[str, int | None]:
    """Where a parameter of transformers goes: official name, and which third of it, if one.

    The name is empty if there is no such parameter.
    """
    if not key.startswith("vit.decoder."):
        key = key.removeprefix("vit.")
    block = _THEIR_BLOCK.fullmatch(key)
    if block is None:
        return _renamed(key, _FROM_OUTSIDE), None
    decoder, i, module, kind = block.groups()
    prefix = f"decoder_blocks.{i}" if decoder else f"blocks.{i}"
    if module in _THIRD:
        return f"{prefix}.attn.qkv.{kind}", _THIRD[module]
    if module in _FROM_BLOCK:
        return f"{prefix}.{_FROM_BLOCK[module]}.{kind}", None
    return "", None


def _their_places(key: str) -> tuple[str, ...]:
    """Where an official parameter goes in transformers 4: one name, three, or none."""
    block = _OFFICIAL_BLOCK.fullmatch(key)
    if block is None:
        name = _renamed(key, _ENCODER | _DECODER)
        return (name,) if name else ()
    decoder, i, module, kind = block.groups()
    prefix = f"decoder.decoder_layers.{i}" if decoder else f"encoder.layer.{i}"
    if module == "attn.qkv":
        return tuple(f"{prefix}.{old}.{kind}" for old, _ in _QKV)
    return (f"{prefix}.{_IN_BLOCK[module][0]}.{kind}",) if module in _IN_BLOCK else ()


def _renamed(key: str, names: Mapping[str, str]) -> str:
    """A parameter outside the blocks by its other name; empty if it has none."""
    module, dot, kind = key.rpartition(".")
    if key in names:
        return names[key]
    return names[module] + dot + kind if module in names and kind in ("weight", "bias") else ""


def _joined(name: str, placed: Mapping[tuple[str, int | None], Tensor]) -> Tensor:
    missing = [_QKV[i][0].rpartition(".")[2] for i in range(3) if (name, i) not in placed]
    if missing:
        raise CheckpointError(
            f"{_shown(name)} cannot be put together: its {' and '.join(missing)} is missing"
        )
    parts = [placed[name, i] for i in range(3)]
    if parts[0].ndim == 0 or len({part.shape for part in parts}) > 1:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise CheckpointError(f"query, key and value of {_shown(name)} have shapes {shapes}")
    return torch.cat(parts)


def _split(key: str, tensor: Tensor) -> list[Tensor]:
    if tensor.ndim == 0 or tensor.shape[0] % 3:
        raise CheckpointError(
            f"{_shown(key)} of shape {tuple(tensor.shape)} does not divide into query, key and "
            "value"
        )
    # Each of its own, as safetensors writes no two views of one tensor.
    return [part.clone() for part in tensor.chunk(3)]


def _refuse(keys: Sequence[str], why: str) -> None:
    if keys:
        shown = ", ".join(_shown(key) for key in keys[:3])
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise CheckpointError(f"{shown}{more}: {why}")


def _shown(key: str) -> str:
    """A name out of a file that anybody may have written, short enough for a sentence."""
    return repr(key if len(key) <= 80 else key[:80] + "…")
