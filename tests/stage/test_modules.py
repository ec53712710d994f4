"""The browser's modules beside Python: the same masks, from the same seeds."""

import json
import os
import random
import shutil
import subprocess
from typing import Any

import pytest

from mae_core.model.masking import MAX_SEED, STRATEGIES, draw_mask, num_visible
from tests.sources import ROOT

GRIDS = [(14, 14), (7, 7), (16, 12), (9, 21), (1, 5), (64, 64)]
RATIOS = [0, 0.05, 0.25, 0.5, 0.6, 0.75, 0.9, 0.95, 1]
SEEDS = [0, 2, 2**31, 2**32 - 1, 2**32 + 2, 2**53 - 1, 2**53 + 1, MAX_SEED]


@pytest.fixture(scope="module")
def node() -> str:
    """Path of Node.js."""
    path = shutil.which("node")
    if path is None:
        reason = "no Node.js on this machine: no node is on the PATH"
        if os.environ.get("MAE_REQUIRE_NODE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def run(node: str, script: str, given: object = None) -> bytes:
    """What a script writes to standard output; it has `given` as a constant of that name."""
    code = "import { readFileSync } from 'node:fs';\nconst given = JSON.parse(readFileSync(0));\n"
    return subprocess.run(
        [node, "--input-type=module", "--eval", code + script],
        cwd=ROOT, input=json.dumps(given).encode(), stdout=subprocess.PIPE, check=True,
    ).stdout  # fmt: skip


def drawn(case: dict[str, Any]) -> dict[str, Any]:
    """What `drawMask` gives, by `draw_mask`."""
    h, w = case["grid"]
    mask = draw_mask(case["strategy"], 1, (h, w), case["ratio"], seed=int(case["seed"]))
    return {
        "rows": ["".join(map(str, row)) for row in mask.mask.int().reshape(h, w).tolist()],
        "idsKeep": mask.ids_keep[0].tolist(),
        "idsRestore": mask.ids_restore[0].tolist(),
    }


DRAW = """
import { drawMask } from './app/stage/masking.js';
const masks = given.map((one) => drawMask(one.strategy, one.grid, one.ratio, BigInt(one.seed)));
console.log(JSON.stringify(masks));
"""


def test_masks_are_those_of_the_library(node: str) -> None:
    chance = random.Random(13)
    cases: list[dict[str, Any]] = []
    for number in range(306):
        cases.append({
            "strategy": STRATEGIES[number % 3],
            "grid": GRIDS[number // 3 % 6],
            "ratio": chance.choice([*RATIOS, chance.random()]),
            "seed": str(chance.choice([*SEEDS, chance.randrange(99), chance.randint(0, MAX_SEED)])),
        })  # fmt: skip
    for case, mask in zip(cases, json.loads(run(node, DRAW, cases)), strict=True):
        assert mask == drawn(case), case


COUNT = """
import { numVisible } from './app/stage/masking.js';
console.log(JSON.stringify(given.map(([length, ratio]) => numVisible(length, ratio))));
"""


def test_counts_are_those_of_the_library(node: str) -> None:
    cases = [(length, part / 100) for length in (1, 49, 100, 196, 4096) for part in range(101)]
    assert json.loads(run(node, COUNT, cases)) == [num_visible(*case) for case in cases]


def test_the_fixture_is_what_the_library_draws() -> None:
    """`masking.test.js` reads it, so that Node.js alone can tell a wrong mask."""
    cases = json.loads((ROOT / "tests/stage/masks.json").read_text("utf-8"))
    assert {case["strategy"] for case in cases} == set(STRATEGIES)
    for case in cases:
        assert case == case | drawn(case)
