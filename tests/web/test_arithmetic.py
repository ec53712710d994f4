"""Pixels and figures of a prediction beside those of `mae_core`."""

import base64
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mae_core import MaskedAutoencoder, ModelConfig, load
from mae_core.images import to_pil, to_tensor
from mae_core.metrics import removed_psnr, removed_ssim
from mae_core.model.masking import PatchMask, custom_mask, draw_mask
from mae_core.model.patches import pixel_mask
from mae_core.normpix import estimate_statistics
from mae_core.reconstruct import NORM_PIX_VIEWS, open_fitted
from mae_core.settings import rows_of
from tests.app.serving import CONFIG, example
from tests.javascript import run
from tests.web.running import NotingReconstructor, described, floats, is_near

NORMALISE = """
import { normalise } from './web/arithmetic.js';
const bytes = Uint8Array.from({ length: 768 }, (_, i) => Math.floor(i / 3));
process.stdout.write(new Uint8Array(normalise(bytes, given.mean, given.std).buffer));
"""


def test_every_level_is_normalised_as_in_the_library(node: str) -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3)
    config = ModelConfig()
    found = run(node, NORMALISE, {"mean": config.mean, "std": config.std})
    wanted = to_tensor(levels, config.mean, config.std)
    assert np.array_equal(np.frombuffer(found, np.float32), wanted.numpy().ravel())


REBUILD = """
import { denormalise, lossOf, normalise, toPixels, toRaster } from './web/arithmetic.js';
import { removedPsnr, removedSsim } from './web/metrics.js';
import { estimateStatistics } from './web/normpix.js';
import { finer } from './web/patches.js';
const base64 = (values) => Buffer.from(values.buffer).toString('base64');
const { description, rows, view, width } = given;
const pred = new Float32Array(new Uint8Array(Buffer.from(given.pred, 'base64')).buffer);
const { mean, std, patch_size: side } = description;
const images = normalise(Buffer.from(given.pixels, 'base64'), mean, std);
const pixels = toPixels(pred, images, rows, description, view);
const original = denormalise(images, mean, std);
const removed = finer(rows, side);
const statistics = estimateStatistics(images, rows, side);
console.log(JSON.stringify({
  pixels: base64(pixels),
  bytes: base64(toRaster(pixels, width).data),
  original: base64(toRaster(original, width).data),
  loss: lossOf(pred, images, rows, description),
  psnr: removedPsnr(pixels, original, removed),
  ssim: removedSsim(pixels, original, removed, width),
  mean: base64(statistics.mean), variance: base64(statistics.variance),
}));
"""

# Patches of 14 and 6 pixels do not divide into 4 cells, and those of 2 have fewer.
SMALL = {side: replace(CONFIG, image_size=7 * side, patch_size=side) for side in (16, 14, 6, 2)}

CASES = [
    *((config, "random", "estimated") for config in SMALL.values()),
    *(
        (replace(config, norm_pix=True), strategy, "estimated")
        for config in SMALL.values() for strategy in ("random", "block", "grid")
    ),
    *((replace(CONFIG, norm_pix=True), "random", view) for view in NORM_PIX_VIEWS[1:]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "strategy", "view"), CASES,
    ids=lambda one: str(getattr(one, "patch_size", one)),
)  # fmt: skip
def test_a_prediction_becomes_the_pixels_of_the_library(
    node: str, config: ModelConfig, strategy: str, view: str
) -> None:
    torch.manual_seed(0)
    # Three rows of five patches.
    pixels = np.random.default_rng(1).integers(0, 256, (3, 5), np.uint8)
    smooth = Image.fromarray(pixels).resize((5 * config.patch_size, 3 * config.patch_size))
    noise = np.random.default_rng(2).normal(0, 20, (smooth.height, smooth.width, 3))
    picture = np.clip(np.asarray(smooth)[..., None] + noise, 0, 255).astype(np.uint8)
    mask = draw_mask(strategy, 1, (3, 5), 0.6, seed=4)
    check(node, MaskedAutoencoder(config), picture, mask, view)


@pytest.mark.parametrize("strategy", ["random", "block"])
@pytest.mark.parametrize("ratio", [0.25, 0.75, 0.95])
def test_the_bundled_models_pixels_are_those_of_the_library(
    node: str, strategy: str, ratio: float
) -> None:
    model = load()
    picture = np.array(open_fitted(example("cat"), model.config))
    check(node, model, picture, draw_mask(strategy, 1, (14, 14), ratio, seed=2), "estimated")


def test_where_nothing_is_removed_there_are_no_figures(node: str) -> None:
    model = MaskedAutoencoder(replace(CONFIG, norm_pix=True))
    picture = np.random.default_rng(1).integers(0, 256, (32, 48, 3), np.uint8)
    found = check(node, model, picture, custom_mask(np.zeros((2, 3), bool)), "estimated")
    assert (found["loss"], found["psnr"], found["ssim"]) == (None, None, None)


def check(
    node: str, model: MaskedAutoencoder, picture: NDArray[np.uint8], mask: PatchMask, view: str
) -> dict[str, Any]:
    """Hold what the browser makes of a prediction against `rebuild`."""
    reconstructor = NotingReconstructor(model, "small")
    config, side = model.config, model.config.patch_size
    images = to_tensor(picture, config.mean, config.std)
    grid = model.grid_of(images)
    rebuilt = reconstructor.rebuild(images, mask, view)
    (noted,) = reconstructor.runs.values()
    found: dict[str, Any] = json.loads(run(node, REBUILD, {
        "description": described(config, "small"), "view": view, "width": picture.shape[1],
        "rows": rows_of(mask.mask[0].bool().reshape(grid)), "pred": noted["pred"],
        "pixels": base64.b64encode(picture.tobytes()).decode(),
    }))  # fmt: skip
    size = (picture.shape[1], picture.shape[0])
    for name, wanted in (("bytes", rebuilt.pixels), ("original", rebuilt.original)):
        shown = Image.frombytes("RGB", size, base64.b64decode(found[name]))
        assert is_near(shown, to_pil(wanted[0]))
    pixels = floats(found["pixels"])
    assert np.allclose(pixels, rebuilt.pixels.numpy().ravel(), rtol=0, atol=2e-6)
    removed = pixel_mask(mask.mask, grid, side)
    for name, figure, tolerance in (
        ("loss", rebuilt.loss, 1e-5 * float(rebuilt.loss[0])),
        ("psnr", removed_psnr(rebuilt.pixels, rebuilt.original, removed), 1e-4),
        ("ssim", removed_ssim(rebuilt.pixels, rebuilt.original, removed), 1e-5),
    ):
        told = np.nan if found[name] is None else found[name]
        assert told == pytest.approx(float(figure[0]), rel=0, abs=tolerance, nan_ok=True), name
    estimated = estimate_statistics(images, mask.mask, grid, side)
    for name, values in (("mean", estimated.mean), ("variance", estimated.var)):
        assert np.allclose(floats(found[name]), values.numpy().ravel(), rtol=1e-5, atol=1e-6), name
    return found


NOT_FINITE = """
import { toRaster } from './web/arithmetic.js';
try {
  toRaster(new Float32Array(12).fill(NaN), 2);
} catch ({ text }) {
  console.log(text);
}
"""


def test_what_is_no_number_is_no_picture(node: str) -> None:
    assert run(node, NOT_FINITE).decode().strip() == "not_finite"
