"""Weights: a model, for use, as one safetensors file of ours or from any published format."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mae_core.config import ModelConfig, to_dict
from mae_core.errors import CheckpointError
from mae_core.model.mae import MaskedAutoencoder
from mae_core.weights.building import build_model
from mae_core.weights.contents import Contents, Hints
from mae_core.weights.files import write_atomically
from mae_core.weights.own import FORMAT
from mae_core.weights.reading import read_contents

_log = logging.getLogger(__name__)

_NO_HINTS = Hints()

# (Width, depth) of an encoder -> the published weights that have a decoder for it.
_WITH_DECODER = {
    (768, 12): "mae-base-visualize",
    (1024, 24): "mae-large-visualize",
    (1280, 32): "mae-huge-visualize",
}


@dataclass(frozen=True)
class Weights:
    """A model as read from a file.

    Attributes:
        config: Its shape.
        state: Its parameters by the official names, float32.
        record: How it was trained: plain data, empty if unknown.
    """

    config: ModelConfig
    state: dict[str, Tensor]
    record: dict[str, Any]

    def build(self) -> MaskedAutoencoder:
        """The model with these weights, on the CPU, in evaluation mode."""
        return build_model(self.config, self.state)


def save_weights(
    path: str | Path,
    model: MaskedAutoencoder,
    *,
    record: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model as one safetensors file.

    Args:
        path: Where to; replaced only once the new file is whole.
        model: The model.
        record: How it was trained, as plain data for JSON.
        dtype: Number format of the parameters in the file.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    state = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    header = {
        "format": FORMAT,
        "config": json.dumps(to_dict(model.config)),
        "record": json.dumps(dict(record)),
    }
    write_atomically(Path(path), lambda partial: save_file(state, partial, metadata=header))


def load_weights(path: str | Path, hints: Hints = _NO_HINTS) -> Weights:
    """Read a model that can reconstruct, from any format; see `read_contents`.

    What had to be guessed and changes the picture is said in a warning.

    Args:
        path: A file, an index of several, or a folder.
        hints: What the shapes of tensors cannot tell.

    Raises:
        CheckpointError: If the file cannot be used, or has no decoder.
    """
    contents = read_contents(path, hints)
    if contents.kind != "autoencoder":
        raise CheckpointError(_without_decoder(Path(path).name, contents))
    _warn_of_guesses(Path(path).name, contents)
    return Weights(contents.config, contents.state, contents.record)


def _warn_of_guesses(name: str, contents: Contents) -> None:
    """With another number of heads a model draws another picture, and no shape tells."""
    for field in ("num_heads", "decoder_num_heads"):
        if contents.origins[field] == "assumed":
            _log.warning(
                "%r does not say its %s: %d is a guess, and a wrong one draws wrong pictures; "
                "mae convert with --to mae_core --%s N writes the right one down",
                name, field, getattr(contents.config, field), field.replace("_", "-"),
            )  # fmt: skip


def _without_decoder(name: str, contents: Contents) -> str:
    what = "an encoder without its decoder"
    if contents.kind == "classifier":
        what = f"a classifier of {contents.num_classes} classes, which has no decoder"
    size = (contents.config.embed_dim, contents.config.depth)
    other = _WITH_DECODER.get(size)
    advice = f"take {other}, which has one" if other else "give weights with a decoder"
    return f"{name!r} is {what}, so no pixels can be drawn from it; {advice}"
