"""Runs the browser's modules in Node.js."""

import json
import subprocess

from tests.sources import ROOT


def run(node: str, script: str, given: object = None) -> bytes:
    """What a script writes to standard output; it has `given` as a constant of that name."""
    code = "import { readFileSync } from 'node:fs';\nconst given = JSON.parse(readFileSync(0));\n"
    return subprocess.run(
        [node, "--input-type=module", "--eval", code + script],
        cwd=ROOT, input=json.dumps(given).encode(), stdout=subprocess.PIPE, check=True,
    ).stdout  # fmt: skip
