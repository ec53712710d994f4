"""What weights are, as plain data: format, architecture and where each field comes from, uses."""

import shlex
from typing import Any

from mae_core.weights.export import TARGETS, why_not
from mae_core.weights.formats import Weights
from mae_core.weights.registry import (
    WeightsEntry,
    entry_of,
    find,
    list_weights,
    read_weights,
)

_TARGETS = {"pixels": "pixels", "norm_pix": "normalised pixels", "classes": "classes"}

# Places in a file that were left aside; more are counted.
_MOST_ASIDE = 20


def describe(weights: str) -> dict[str, Any]:
    """What weights are. Nothing is fetched.

    Args:
        weights: A name, a file, a folder or a repository. Of weights that are not on this machine
            the manifest's facts are given.

    Returns:
        Plain data for JSON. Facts that are not certain are `{"value": …, "from": …}`, with the
        origins of `Weights.origins`.

    Raises:
        CheckpointError: If there is no such thing, or it cannot be used.
    """
    path = find(weights)
    if path is None:
        return _describe_absent(weights, list_weights().get(weights))
    contents = read_weights(weights, fetch=False)
    return _describe_contents(weights, contents, entry_of(weights, path))


def _describe_absent(weights: str, entry: WeightsEntry | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"weights": weights, "on_this_machine": False}
    if entry is None:
        facts["source"] = (
            f"{weights} on the Hugging Face hub, if there is such a repository; nothing lies at "
            "that path here"
        )
    else:
        measured = "parameters" if entry.bytes is None else "measured"
        facts |= {
            "summary": entry.summary,
            "format": entry.format,
            "kind": entry.kind,
            "target": {"value": _TARGETS[entry.target], "from": "registry"},
            "licence": entry.licence,
            "source": _source(entry),
            "parameters": {"total": entry.parameters},
            "bytes": {"value": entry.expected_bytes, "from": measured},
        }
    return facts | {"fetch": f"mae fetch {weights}"}


def _source(entry: WeightsEntry) -> str:
    if entry.repo is not None:
        return f"{entry.repo} on the Hugging Face hub"
    return entry.url or "comes with this project"


def _describe_contents(
    weights: str, contents: Weights, entry: WeightsEntry | None
) -> dict[str, Any]:
    config, whole = contents.config, contents.kind == "autoencoder"
    facts: dict[str, Any] = {
        "weights": weights,
        "on_this_machine": True,
        "format": contents.format,
    }
    if contents.container:
        facts["written_by"] = contents.container
    if contents.under:
        facts["found_under"] = [place for place in contents.under if place]
    if contents.left_aside:
        aside = [
            f"{place} ({count} tensor{'s' * (count > 1)})"
            for place, count in contents.left_aside.items()
        ]
        more = len(aside) - _MOST_ASIDE
        facts["left_aside"] = aside[:_MOST_ASIDE] + ([f"{more} more"] if more > 0 else [])
    facts |= {
        "kind": contents.kind,
        "encoder": True,
        "decoder": whole,
        "architecture": {
            field: {"value": getattr(config, field), "from": origin}
            for field, origin in contents.origins.items()
            if field != "norm_pix"
            and getattr(config, field) not in (None, ())
            and (whole or not field.startswith("decoder_"))
        },
        "target": _target(contents),
        "licence": entry.licence if entry else "not known; ask whoever gave you the file",
        "source": _source(entry) if entry else "not known",
        "parameters": _parameters(contents),
        "number_format": contents.dtype,
    }
    if contents.num_classes is not None:
        facts["classes"] = contents.num_classes
    return facts | {"record": contents.record, "uses": _uses(weights, contents)}


def _target(contents: Weights) -> dict[str, Any]:
    """What the model learned to predict, and how that is known."""
    config, origin = contents.config, contents.origins["norm_pix"]
    if contents.kind == "classifier":
        return {"value": f"{contents.num_classes} classes", "from": "shapes"}
    if config.pca_components:
        return {"value": f"{config.pca_components} principal components", "from": "shapes"}
    if contents.kind == "encoder" and origin == "assumed":
        return {"value": "not told by an encoder", "from": "assumed"}
    return {"value": _TARGETS["norm_pix" if config.norm_pix else "pixels"], "from": origin}


def _parameters(contents: Weights) -> dict[str, int]:
    """Elements of each part that there is, position tables included, and in all."""
    counts = {"encoder": 0, "decoder": 0, "head": 0}
    for key, tensor in contents.state.items():
        of_decoder = key.startswith(("decoder_", "mask_token", "pca_"))
        part = "decoder" if of_decoder else "head" if key.startswith("head.") else "encoder"
        counts[part] += tensor.numel()
    present = {part: count for part, count in counts.items() if count}
    return present | {"total": sum(counts.values())}


def _uses(weights: str, contents: Weights) -> list[str]:
    uses, typed = [], shlex.quote(weights)
    if contents.kind == "autoencoder":
        uses.append(f"reconstruct: mae reconstruct IMAGE --weights {typed}")
    if contents.kind != "classifier":
        start = shlex.quote(f"init_from={weights}")
        uses.append(f"train from it: python -m mae_core.train RECIPE {start}")
    targets = ",".join(target for target in TARGETS if why_not(contents, target) is None)
    return [*uses, f"convert it: mae convert {typed} DST --to {{{targets}}}"]
