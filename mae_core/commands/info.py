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
from collections.abc import Sequence
from typing import Any

from mae_core.weights.info import describe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="mae info",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", metavar="FILE_OR_NAME", help="name, file, folder or USER/NAME")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    facts = describe(arguments.weights)
    print(json.dumps(facts, indent=2) if arguments.json else _as_lines(facts))
    return 0


def _as_lines(facts: dict[str, Any]) -> str:
    lines = []
    for name, fact in facts.items():
        title = name.replace("_", " ")
        if name == "architecture":
            lines += [title, *(f"  {key:<21} {_shown(value)}" for key, value in fact.items())]
        elif name == "record":
            # The whole of it, settings and changes, is for --json.
            known = {key: v for key, v in fact.items() if isinstance(v, str | int | float)}
            lines += [f"{title:<23} {_shown(known)}"] if known else []
        elif isinstance(fact, list):
            lines += [title, *(f"  {_printable(item)}" for item in fact)]
        else:
            lines.append(f"{title:<23} {_shown(fact)}")
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
