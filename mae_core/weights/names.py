"""The parameter names of the official files and of other libraries.

The official names are the flat ones that `MaskedAutoencoder` and timm have. transformers keeps
query, key and value apart, and renamed the blocks' insides in its version 5, which still reads
the names of version 4. Those of OpenMMLab and of torchvision's ViT, as lightly has used it, come
in only.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mae_core.errors import CheckpointError
from mae_core.weights.safety import shown


def is_decoder_key(key: str) -> bool:
    """Whether a parameter of that official name is the decoder's, or its target's."""
    return key.startswith(("decoder_", "pca_")) or key == "mask_token"


# --- transformers: its names -> official ones; those of version 4 first, then those of 5

_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "decoder.mask_token": "mask_token",
    **{f"decoder.{name}": name
       for name in ("decoder_pos_embed", "decoder_embed", "decoder_norm", "decoder_pred")},
}  # fmt: skip
# When transformers 5.23 saves, it calls the decoder's blocks the last.
_BLOCKS = {
    "encoder.layer": "blocks",
    "layers": "blocks",
    "decoder.decoder_layers": "decoder_blocks",
    "decoder.decoder_encoder.layer": "decoder_blocks",
}
_IN_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.attention.query": "attn.qkv 0",
    "attention.attention.key": "attn.qkv 1",
    "attention.attention.value": "attn.qkv 2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "attention.q_proj": "attn.qkv 0",
    "attention.k_proj": "attn.qkv 1",
    "attention.v_proj": "attn.qkv 2",
    "attention.o_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_NUMBER = re.compile(r"\.([0-9]+)\.")


def _official_names() -> dict[str, str]:
    """The name in transformers -> the official one, and after a space which third of it.

    A block's number is `#`.
    """
    modules = _OUTSIDE | {
        f"{place}.#.{theirs}": f"{blocks}.#.{ours}"
        for place, blocks in _BLOCKS.items()
        for theirs, ours in _IN_BLOCK.items()
    }
    table = {}
    for theirs, ours in modules.items():
        name, space, third = ours.partition(" ")
        for kind in ("",) if name.endswith(("token", "pos_embed")) else (".weight", ".bias"):
            table[theirs + kind] = name + kind + space + third
    return table


_OFFICIAL = _official_names()
# Version 4's, which come first.
_THEIRS = {ours: theirs for theirs, ours in reversed(_OFFICIAL.items())}


def _numbered(key: str) -> tuple[str, str]:
    """A name with `#` in place of its first number, and that number with its dots."""
    found = _NUMBER.search(key)
    return (key, ".#.") if found is None else (_NUMBER.sub(".#.", key, count=1), found[0])


def official_from_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of transformers' ViTMAE, 4 or 5, under the official names.

    They may be of a `ViTMAEForPreTraining`, or of a bare `ViTMAEModel`, which has no decoder and
    no `vit.` in front. Query, key and value are joined; the rest is not copied.

    Raises:
        CheckpointError: If a name is unknown or stands for what another one already is, or if
            query, key and value of a block are not all there and of one shape.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    unknown, twice = [], []
    for key, tensor in state.items():
        bare = key if key.startswith("vit.decoder.") else key.removeprefix("vit.")
        template, number = _numbered(bare)
        name, _, third = _OFFICIAL.get(template, "").replace(".#.", number).partition(" ")
        if not name:
            unknown.append(key)
        elif third in parts.setdefault(name, {}):
            twice.append(key)
        else:
            parts[name][third] = tensor
    _refuse(unknown, "not parameters of transformers' ViTMAE")
    _refuse(twice, "there a second time under another name")
    return {name: found[""] if "" in found else _joined(name, found)
            for name, found in parts.items()}  # fmt: skip


def _joined(name: str, thirds: Mapping[str, Tensor]) -> Tensor:
    shapes = {tensor.shape for tensor in thirds.values()}
    if len(thirds) < 3 or len(shapes) > 1 or () in shapes:
        raise CheckpointError(
            f"query, key and value of {shown(name)} are not all there and of one shape; give the "
            "whole weights"
        )
    return torch.cat([thirds[third] for third in "012"])


def huggingface_from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official parameters under the names of transformers 4, which open in 4 and 5.

    Those of a whole model become what a `ViTMAEForPreTraining` saves, those of an encoder alone
    what a `ViTMAEModel` does. Query, key and value are copies; the rest is not copied.

    Raises:
        CheckpointError: If a name is none of the official encoder or decoder, or `attn.qkv`
            does not divide into three.
    """
    prefix = "vit." if any(is_decoder_key(key) for key in state) else ""
    theirs: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        template, number = _numbered(key)
        own = "" if is_decoder_key(key) else prefix
        if template in _THEIRS:
            theirs[own + _THEIRS[template].replace(".#.", number)] = tensor
        elif f"{template} 0" not in _THEIRS:
            unknown.append(key)
        elif tensor.ndim == 0 or tensor.shape[0] % 3:
            raise CheckpointError(
                f"{shown(key)} of shape {tuple(tensor.shape)} does not divide into query, key and "
                "value"
            )
        else:
            for third, part in enumerate(tensor.chunk(3)):
                # Each of its own, as safetensors writes no two views of one tensor.
                name = _THEIRS[f"{template} {third}"].replace(".#.", number)
                theirs[own + name] = part.clone()
    _refuse(unknown, "without a place in transformers' ViTMAE")
    return theirs


def _refuse(keys: list[str], why: str) -> None:
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
