"""Fetch published weights: mae fetch NAME [NAME ...].

    mae fetch                       every name, its size, and whether it is here
    mae fetch mae-large-visualize   fetched with a bar, and what is left of it next
    mae fetch USER/NAME             of a repository on the Hugging Face hub

Files go to the caches of torch.hub (TORCH_HOME) and huggingface_hub (HF_HOME), and what is there
already is not fetched again. The token of private repositories is the one that `hf auth login` or
HF_TOKEN gives. HF_HUB_OFFLINE=1 forbids the network.
"""

import argparse
import logging
from collections.abc import Sequence

from mae_core.weights.hub import shown_bytes
from mae_core.weights.registry import find, list_weights, locate


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="mae fetch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the table, or USER/NAME")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # It tells of every request, with addresses that are as good as a key.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    for name in arguments.names:
        print(locate(name))
    if not arguments.names:
        print(_table())
    return 0


def _table() -> str:
    rows = [("name", "size", "here", "holds", "predicts", "licence", "what it is")]
    for entry in list_weights().values():
        size = f"{'' if entry.bytes else 'about '}{shown_bytes(entry.expected_bytes)}"
        here = "no" if find(entry.name) is None else "yes"
        about = (entry.kind, entry.target, entry.licence, entry.summary)
        rows.append((entry.name, size, here, *about))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
