"""Say what weights are: mae info FILE_OR_NAME.

    mae info mae_pretrain_vit_base.pth
    mae info mae-tiny
    mae info runs/mine --json

prints the format, whether there is a decoder, each field of the architecture and where it comes
from, what the model predicts, licence and source where they are known, and what the weights can be
used for. Weights that are not on this machine are described as far as the manifest knows them;
nothing is fetched.
"""

import argparse
import json
from collections.abc import Sequence

from mae_core.weights.info import as_lines, describe


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
    print(json.dumps(facts, indent=2) if arguments.json else "\n".join(as_lines(facts)))
    return 0
