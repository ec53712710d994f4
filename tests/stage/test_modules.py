"""The browser's modules beside Python: the same masks, and ZIP files that it opens."""

import io
import json
import random
import zipfile
from typing import Any

import numpy as np
from PIL import Image

from mae_core.config import ModelConfig
from mae_core.images import FITS, fitted_box, fitted_size
from mae_core.model.masking import MAX_SEED, STRATEGIES, draw_mask, num_visible
from mae_core.reconstruct import mask_from_drawing, paste_panel
from tests.javascript import run
from tests.sources import ROOT

GRIDS = [(14, 14), (7, 7), (16, 12), (9, 21), (1, 5), (64, 64)]
RATIOS = [0, 0.05, 0.25, 0.5, 0.6, 0.75, 0.9, 0.95, 1]
SEEDS = [0, 2, 2**31, 2**32 - 1, 2**32 + 2, 2**53 - 1, 2**53 + 1, MAX_SEED]


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


PICTURE = """
import { fromPicture } from './app/stage/drawing.js';
const masks = given.map(({ rows, grid }) => {
  const data = rows.flat().flatMap((grey) => [grey, grey, grey, 255]);
  const size = { width: rows[0].length, height: rows.length };
  return fromPicture({ data: Uint8ClampedArray.from(data), ...size }, grid);
});
console.log(JSON.stringify(masks));
"""


def test_a_picture_is_the_mask_that_the_library_makes_of_it(node: str) -> None:
    chance = np.random.default_rng(13)
    given = []
    # As large as the model's images, so that nothing is resized, or a pixel for each patch.
    for side in (224, 224, 14):
        shares = np.kron(chance.random((14, 14)), np.ones((side // 14, side // 14)))
        white = chance.random((side, side)) < shares
        greys = np.where(white, chance.integers(1, 256, white.shape), 0)
        given.append({"rows": greys.tolist(), "grid": (14, 14)})
    for one, rows in zip(given, json.loads(run(node, PICTURE, given)), strict=True):
        removed = mask_from_drawing(np.array(one["rows"]), (224, 224), ModelConfig())
        assert rows == ["".join(map(str, row)) for row in removed.astype(int).tolist()]


PASTED = """
import { removedBoxes, shownPart } from './app/stage/geometry.js';
console.log(JSON.stringify(given.map(({ size, fit, side, mask }) => {
  const part = shownPart(size, fit, side);
  return { part, boxes: removedBoxes(mask, part) };
})));
"""


def test_a_prediction_is_pasted_where_the_library_pastes_it(node: str) -> None:
    chance = random.Random(13)
    cases: list[dict[str, Any]] = []
    for number in range(60):
        fit, size = FITS[number % 3], (chance.randint(20, 400), chance.randint(20, 400))
        side = chance.choice((48, 112, 224))
        w, h = fitted_size(size, fit, image_size=side, patch_size=16)
        mask = ["".join(chance.choice("01") for _ in range(w // 16)) for _ in range(h // 16)]
        cases.append({"size": size, "fit": fit, "side": side, "mask": mask, "panel": (w, h)})
    for case, found in zip(cases, json.loads(run(node, PASTED, cases)), strict=True):
        part = found["part"]
        left, top, right, bottom = fitted_box(case["size"], case["fit"], case["side"])
        assert part == {"x": left, "y": top, "width": right - left, "height": bottom - top}
        pasted = Image.new("L", case["size"])
        for box in found["boxes"]:
            white = Image.new("L", (box["width"], box["height"]), 255)
            pasted.paste(white, (box["x"], box["y"]))
        removed = np.array([[cell == "1" for cell in row] for row in case["mask"]])
        prediction = Image.new("L", case["panel"], 255)
        wanted = paste_panel(Image.new("L", case["size"]), prediction, removed, case["fit"])
        assert np.array_equal(np.asarray(pasted), np.asarray(wanted)), case


ZIP = """
import { zip } from './app/stage/zip.js';
const files = given.map(([name, bytes]) => ({ name, bytes: Uint8Array.from(bytes) }));
process.stdout.write(zip(files, new Date(2026, 10, 26, 14, 9, 31)));
"""


def test_python_opens_zip_files(node: str) -> None:
    content = random.Random(13).randbytes(100_000)
    files = {"panels/original.png": content, "面板.json": b"{}", "empty": b""}
    zipped = run(node, ZIP, [[name, list(data)] for name, data in files.items()])
    with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == files
        assert {one.date_time for one in archive.infolist()} == {(2026, 11, 26, 14, 9, 30)}
