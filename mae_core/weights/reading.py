"""Any published format, and our own, to one `Contents`: found by content and never by name."""

import argparse
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mae_core.weights.architecture import Beside, infer_config, is_timm
from mae_core.weights.building import build_model
from mae_core.weights.checks import as_float32, check_shapes, check_tensors, number_format
from mae_core.weights.contents import Contents, Hints, Kind
from mae_core.weights.files import shown
from mae_core.weights.layouts import Found, find_model, kind_of, to_official
from mae_core.weights.own import is_ours, read_own
from mae_core.weights.runs import CHECKPOINT_FILE, read_latest
from mae_core.weights.sources import Source, find_file, open_source
from mae_core.weights.target import predicts_normalized_pixels

_log = logging.getLogger(__name__)

_NO_HINTS = Hints()

# A key in a training script's file -> what wrote it.
_CONTAINERS = {
    "pytorch-lightning_version": "PyTorch Lightning",
    "ds_version": "DeepSpeed",
}
_SOLO_LEARN_HEADS = {192: 12, 384: 12}
_MOST_NAMED = 5


def read_contents(path: str | Path, hints: Hints = _NO_HINTS) -> Contents:
    """Read weights of any format that is known.

    Nothing in a file is run, and no more memory is used than the tensors need as float32. A
    checkpoint's running average is taken where it has one, and its record has `running`, `step`
    and `steps`. Where a run's `checkpoint.pt` cannot be used, the one before it is, with a
    warning.

    Args:
        path: A file, an index of several, or a folder of a run, of transformers or of timm.
        hints: What the shapes of tensors cannot tell; not needed for our own formats, which
            say it themselves and are not to be contradicted.

    Raises:
        CheckpointError: If the file is missing, damaged, hostile, of no known format, does not
            fit its own config or the hints, or holds numbers that are not finite.
    """
    file = find_file(Path(path))
    read = partial(_read, hints=hints)
    if file.name == CHECKPOINT_FILE:
        return read_latest(file.parent, read)
    return read(file)


def _read(path: Path, hints: Hints) -> Contents:
    source = open_source(path)
    return read_own(source, hints) if is_ours(source) else _read_foreign(source, hints)


def _read_foreign(source: Source, hints: Hints) -> Contents:
    name = source.path.name
    found = find_model(name, source.content)
    _warn_of_left_aside(name, found)
    check_tensors(name, found.tensors, source.size)
    layout, state = to_official(name, found)
    kind = kind_of(state)
    beside = replace(_beside(source, layout, kind), heads=_unusual_heads(found))
    config, origins = infer_config(name, state, kind, beside, hints)
    check_shapes(name, config, state, kind)
    contents = Contents(
        "timm" if is_timm(beside.config) else layout, kind, config, as_float32(name, state), {},
        origins, number_format(state["cls_token"]),
        state["head.bias"].shape[0] if kind == "classifier" else None,
        _container(source.content), found.under, found.left_aside,
    )  # fmt: skip
    return _with_tried_target(contents)


def _warn_of_left_aside(name: str, found: Found) -> None:
    if not found.left_aside:
        return
    where = " and ".join(shown(place) for place in found.under if place) or "no prefix"
    aside = [shown(place) for place in found.left_aside]
    more = f" and {len(aside) - _MOST_NAMED} more" if len(aside) > _MOST_NAMED else ""
    _log.warning(
        "%r holds more than one thing: the model under %s is taken; left aside: %s%s",
        name, where, ", ".join(aside[:_MOST_NAMED]), more,
    )  # fmt: skip


def _unusual_heads(found: Found) -> dict[int, int]:
    """solo-learn's small models have twice and four times the heads that others have."""
    ends = [place.rpartition(".")[2] for place in found.under]
    has_classifier = any(place.rpartition(".")[2] == "classifier" for place in found.left_aside)
    return _SOLO_LEARN_HEADS if ends == ["backbone", "decoder"] and has_classifier else {}


def _container(content: Mapping[Any, Any]) -> str:
    meta = content.get("meta")
    if isinstance(meta, Mapping) and any(
        key in meta for key in ("mmengine_version", "mmcv_version")
    ):
        return "OpenMMLab"
    return next((what for key, what in _CONTAINERS.items() if key in content), "")


def _with_tried_target(contents: Contents) -> Contents:
    """Where nobody says what a model predicts, find it out."""
    if contents.kind != "autoencoder" or contents.origins["norm_pix"] != "assumed":
        return contents
    if contents.config.pca_components:
        return contents
    norm_pix = predicts_normalized_pixels(build_model(contents.config, contents.state))
    if norm_pix is None:
        return contents
    config = replace(contents.config, norm_pix=norm_pix)
    return replace(contents, config=config, origins=contents.origins | {"norm_pix": "trial"})


def _beside(source: Source, layout: str, kind: Kind) -> Beside:
    """What came with the tensors; a `config.json` only where it is of the same format."""
    options = _training_options(source.content)
    if layout.startswith("transformers"):
        preprocessor = source.beside("preprocessor_config.json")
        return Beside(source.beside("config.json"), preprocessor, options)
    config = source.beside("config.json") if kind != "autoencoder" else {}
    return Beside(config if is_timm(config) else {}, {}, options)


def _training_options(content: Mapping[Any, Any]) -> Mapping[str, Any]:
    """Those of the official script, or the hyperparameters that Lightning saves."""
    options = content.get("args", content.get("hyper_parameters"))
    if isinstance(options, argparse.Namespace):
        return vars(options)
    return options if isinstance(options, Mapping) else {}
