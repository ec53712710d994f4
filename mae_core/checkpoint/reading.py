"""Any published format, and our own, to one `Contents`: found by content and never by name."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mae_core.checkpoint.architecture import Beside, infer_config, is_timm
from mae_core.checkpoint.building import build_model
from mae_core.checkpoint.checks import as_float32, check_shapes, check_tensors, number_format
from mae_core.checkpoint.contents import Contents, Hints, Kind
from mae_core.checkpoint.layouts import check_names, kind_of, to_official, unwrap
from mae_core.checkpoint.own import is_ours, read_own
from mae_core.checkpoint.runs import CHECKPOINT_FILE, read_latest
from mae_core.checkpoint.sources import Source, find_file, open_source
from mae_core.checkpoint.target import predicts_normalized_pixels

_NO_HINTS = Hints()


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
    found = unwrap(name, source.content)
    check_names(name, found)
    check_tensors(name, found, source.size)
    layout, state = to_official(name, found)
    kind = kind_of(state)
    beside = _beside(source, layout, kind)
    config, origins = infer_config(name, state, kind, beside, hints)
    check_shapes(name, config, state, kind)
    classes = state["head.bias"].shape[0] if kind == "classifier" else None
    contents = Contents(
        "timm" if is_timm(beside.config) else layout, kind, config, as_float32(name, state), {},
        origins, number_format(state["cls_token"]), classes,
    )  # fmt: skip
    return _with_tried_target(contents)


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
    if layout != "official":
        preprocessor = source.beside("preprocessor_config.json")
        return Beside(source.beside("config.json"), preprocessor, options)
    config = source.beside("config.json") if kind != "autoencoder" else {}
    return Beside(config if is_timm(config) else {}, {}, options)


def _training_options(content: Mapping[Any, Any]) -> Mapping[str, Any]:
    options = content.get("args")
    if isinstance(options, argparse.Namespace):
        return vars(options)
    return options if isinstance(options, Mapping) else {}
