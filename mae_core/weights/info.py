"""What weights are, as plain data: format, architecture and where each field comes from, uses."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from mae_core.weights.export import TARGETS, why_not
from mae_core.weights.formats import Weights
from mae_core.weights.names import is_decoder_key
from mae_core.weights.registry import WeightsEntry, entry_of, find, list_weights, read_weights

_TARGETS = {"pixels": "pixels", "norm_pix": "normalised pixels", "classes": "classes"}

# Places in a file that were left aside and are listed.
_MOST_ASIDE = 20
# Names of a classifier's classes that are listed.
_MOST_CLASSES = 5


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
    contents, entry = read_weights(weights, fetch=False), entry_of(weights, path)
    config, whole = contents.config, contents.kind == "autoencoder"
    many_classes = len(contents.classes) > _MOST_CLASSES
    aside = [f"{place} ({n} tensor{'s' * (n > 1)})" for place, n in contents.left_aside.items()]
    facts = {
        "weights": weights,
        "on_this_machine": True,
        "format": contents.format,
        "written_by": contents.container,
        "found_under": [place for place in contents.under if place],
        "left_aside": aside[:_MOST_ASIDE] + ["…"] * (len(aside) > _MOST_ASIDE),
        "kind": contents.kind,
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
        "classes": contents.num_classes,
        "class_names": [*contents.classes[:_MOST_CLASSES], *["…"] * many_classes],
        "record": contents.record,
        "uses": _uses(weights, contents),
    }
    return {name: fact for name, fact in facts.items() if fact not in (None, "", [], {})}


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
        part = (
            "decoder" if is_decoder_key(key) else "head" if key.startswith("head.") else "encoder"
        )
        counts[part] += tensor.numel()
    present = {part: count for part, count in counts.items() if count}
    return present | {"total": sum(counts.values())}


def _uses(weights: str, contents: Weights) -> list[str]:
    uses, typed = [], shlex.quote(weights)
    if contents.kind == "autoencoder":
        uses.append(f"reconstruct: mae reconstruct IMAGE --weights {typed}")
    if contents.kind == "classifier":
        uses.append(f"name what is in pictures: mae evaluate predict {typed} PICTURES")
        uses.append(f"measure it: mae evaluate classifier {typed} DATA")
    else:
        start = shlex.quote(f"init_from={weights}")
        uses.append(f"train from it: mae train RECIPE {start}")
    targets = ",".join(target for target in TARGETS if why_not(contents, target) is None)
    return [*uses, f"convert it: mae convert {typed} DST --to {{{targets}}}"]


def as_lines(facts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """The facts of `describe` as lines of text; what came from a file is short and printable."""
    for name, fact in facts.items():
        title = _shown(name if indent else name.replace("_", " "))
        if isinstance(fact, dict) and fact.keys() == {"value", "from"}:
            value, origin = _shown(fact["value"]), _shown(fact["from"])
            yield f"{indent}{title:<22} {value:<18} ({origin})"
        elif not isinstance(fact, dict | list):
            yield f"{indent}{title:<22} {_shown(fact)}"
        elif not indent:  # what lies deeper, such as the settings of a training, is for --json
            yield title
            yield from (
                as_lines(fact, "  ") if isinstance(fact, dict) else (f"  {_shown(f)}" for f in fact)
            )


def _shown(fact: object) -> str:
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    text = f"{fact:,}" if isinstance(fact, int) else str(fact)[:200]
    return text if text.isprintable() else ascii(text)
