"""Say what weights are: mae info FILE_OR_NAME.

    mae info mae_pretrain_vit_base.pth
    mae info mae-tiny
    mae info runs/mine --json

prints the format, whether encoder and decoder are there, each field of the architecture and where
it comes from, what the model predicts, licence and source where they are known, and what the
weights can be used for. Weights that are not on this machine are described as far as the
manifest knows them; nothing is fetched.
"""

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mae_core.weights.contents import Contents
from mae_core.weights.registry import WeightsEntry, find_weights, list_weights, read_pretrained

# In the words of the manifest.
_TARGETS = {
    "pixels": "pixels",
    "norm_pix": "normalised pixels",
    "classes": "classes",
}


# Places in a file that were left aside; more are counted.
_MOST_ASIDE = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    facts = describe(arguments.weights)
    print(json.dumps(facts, indent=2) if arguments.json else _as_lines(facts))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mae info",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", metavar="FILE_OR_NAME", help="name, file, folder or USER/NAME")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def describe(weights: str) -> dict[str, Any]:
    """What weights are, as plain data.

    Args:
        weights: A name, a file, a folder or a repository.

    Raises:
        CheckpointError: If there is no such thing, or it cannot be used.
    """
    path = find_weights(weights)
    if path is None:
        return _describe_absent(weights, list_weights().get(weights))
    contents = read_pretrained(weights, fetch=False)
    return _describe_contents(weights, contents, _entry_of(weights, path))


def _entry_of(weights: str, path: Path) -> WeightsEntry | None:
    """What the manifest has of that name, or published as a file of that name."""
    entries = list_weights()
    if weights in entries:
        return entries[weights]
    published = (e for e in entries.values() if e.url and PurePosixPath(e.url).name == path.name)
    return next(published, None)


def _describe_absent(weights: str, entry: WeightsEntry | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"weights": weights, "on_this_machine": False}
    if entry is not None:
        facts |= {
            "summary": entry.summary, "format": entry.format, "kind": entry.kind,
            "target": {"value": _TARGETS[entry.target], "from": "registry"},
            "licence": entry.licence, "source": _source(entry),
            "parameters": {"total": entry.parameters},
            "bytes": {"value": entry.expected_bytes,
                      "from": "measured" if entry.bytes is not None else "parameters"},
        }  # fmt: skip
    else:
        facts["source"] = (
            f"{weights} on the Hugging Face hub, if there is such a repository; nothing lies at "
            "that path here"
        )
    return facts | {"fetch": f"mae fetch {weights}"}


def _source(entry: WeightsEntry) -> str:
    if entry.repo is not None:
        return f"{entry.repo} on the Hugging Face hub"
    return entry.url or "comes with this project"


def _describe_contents(
    weights: str, contents: Contents, entry: WeightsEntry | None
) -> dict[str, Any]:
    has_decoder = contents.kind == "autoencoder"
    facts: dict[str, Any] = {
        "weights": weights, "on_this_machine": True,
        "format": contents.format, **_found_in(contents), "kind": contents.kind,
        "encoder": True, "decoder": has_decoder,
        "architecture": _architecture(contents),
        "target": _target(contents, entry),
        "licence": entry.licence if entry else "not known; ask whoever gave you the file",
        "source": _source(entry) if entry else "not known",
        "parameters": _parameters(contents), "number_format": contents.dtype,
    }  # fmt: skip
    if contents.num_classes is not None:
        facts["classes"] = contents.num_classes
    return facts | {"record": contents.record, "uses": _uses(weights, contents)}


def _found_in(contents: Contents) -> dict[str, Any]:
    """Where in a file of more than the model it was found, and what else is there."""
    facts: dict[str, Any] = {}
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
    return facts


def _architecture(contents: Contents) -> dict[str, dict[str, Any]]:
    """Each field that the file has something to say about, and where its value comes from."""
    fields = {
        field: {"value": getattr(contents.config, field), "from": origin}
        for field, origin in contents.origins.items()
        if field != "norm_pix" and getattr(contents.config, field) not in (None, ())
    }
    if contents.kind != "autoencoder":
        fields = {key: fact for key, fact in fields.items() if not key.startswith("decoder_")}
    return fields


def _target(contents: Contents, entry: WeightsEntry | None) -> dict[str, Any]:
    """What the model learned to predict, and how that is known."""
    config = contents.config
    if contents.kind == "classifier":
        return {"value": f"{contents.num_classes} classes", "from": "shapes"}
    if config.pca_components:
        return {"value": f"{config.pca_components} principal components", "from": "shapes"}
    origin = contents.origins["norm_pix"]
    if contents.kind == "encoder" and origin == "assumed":
        return {"value": "not told by an encoder", "from": "assumed"}
    return {"value": _TARGETS["norm_pix" if config.norm_pix else "pixels"], "from": origin}


def _parameters(contents: Contents) -> dict[str, int]:
    """How many numbers the weights are, position tables included."""
    counts = dict.fromkeys(("encoder", "decoder", "head"), 0)
    for key, tensor in contents.state.items():
        part = "encoder"
        if key.startswith(("decoder_", "mask_token", "pca_")):
            part = "decoder"
        elif key.startswith("head."):
            part = "head"
        counts[part] += tensor.numel()
    present = {part: count for part, count in counts.items() if count}
    return present | {"total": sum(counts.values())}


def _uses(weights: str, contents: Contents) -> list[str]:
    targets = {
        "autoencoder": ["mae_core", "official", "huggingface", "timm", "onnx", "torch_export"],
        "encoder": ["official", "huggingface", "timm"],
        "classifier": ["official", "timm"],
    }[contents.kind]
    if contents.config.pca_components or contents.config.encoder_mask_tokens:
        targets = [target for target in targets if target not in ("official", "huggingface")]
    if contents.config.grid is not None:
        targets = [target for target in targets if target != "huggingface"]
    uses, typed = [], shlex.quote(weights)
    if contents.kind == "autoencoder":
        uses.append(f"reconstruct: mae reconstruct IMAGE --weights {typed}")
    if contents.kind != "classifier":
        start = shlex.quote(f"init_from={weights}")
        uses.append(f"train from it: python -m mae_core.train RECIPE {start}")
    return [*uses, f"convert it: mae convert {typed} DST --to "
            f"{{{','.join(targets)}}}"]  # fmt: skip


def _as_lines(facts: dict[str, Any]) -> str:
    lines = []
    for name, fact in facts.items():
        if name == "record":
            # The whole of it, settings and changes, is for --json.
            fact = {
                key: value for key, value in fact.items() if isinstance(value, str | int | float)
            }
            if not fact:
                continue
        if name == "architecture":
            lines.append(name)
            lines += [f"  {field:<21} {_shown(value)}" for field, value in fact.items()]
        elif isinstance(fact, list):
            lines.append(name.replace("_", " "))
            lines += [f"  {_printable(item)}" for item in fact]
        else:
            lines.append(f"{name.replace('_', ' '):<23} {_shown(fact)}")
    return "\n".join(lines)


def _shown(fact: object) -> str:
    """A value in words; what came from a file is kept short and printable."""
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    if isinstance(fact, int):
        return f"{fact:,}" if fact >= 10_000 else str(fact)
    if isinstance(fact, tuple):
        return ", ".join(str(item) for item in fact)
    if isinstance(fact, dict) and "value" in fact:
        return f"{_shown(fact['value']):<18} ({fact['from']})"
    if isinstance(fact, dict):
        return ", ".join(f"{_printable(key)} {_shown(value)}" for key, value in fact.items())
    return _printable(fact)


def _printable(fact: object) -> str:
    text = str(fact)
    text = text if len(text) <= 200 else text[:200] + "…"
    return text if text.isprintable() else ascii(text)
