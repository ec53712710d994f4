"""Pictures for the browser's models beside Pillow: the same limits, sizes and pixels."""

import base64
import dataclasses
import io
import json
import random
import re
import string
from typing import Any

import pytest
from PIL import Image, features

from app.i18n import LOCALES
from mae_core.images import FITS, fit_image, fitted_size
from mae_core.photographs import ImageLimits
from tests.javascript import run

RESIZE = """
import { fitPicture } from './web/pictures.js';
import { reduce, resize } from './web/resize.js';
const made = given.map(({ width, height, data, to, box, factor, fit, side }) => {
  const picture = { width, height, data: Uint8Array.from(Buffer.from(data, 'base64')) };
  if (factor) return reduce(picture, factor);
  return fit ? fitPicture(picture, fit, side, 16) : resize(picture, to, box);
});
console.log(JSON.stringify(made.map(({ width, height, data }) =>
  ({ width, height, data: Buffer.from(data).toString('base64') }))));
"""


def check(node: str, cases: list[tuple[Image.Image, dict[str, Any], Image.Image]]) -> None:
    """See that each picture becomes what it should, to the byte."""
    given = [facts(image) | asked for image, asked, _ in cases]
    made = json.loads(run(node, RESIZE, given))
    for (image, asked, wanted), found in zip(cases, made, strict=True):
        assert found == facts(wanted), (image.size, asked)


def facts(image: Image.Image) -> dict[str, Any]:
    data = base64.b64encode(image.tobytes()).decode()
    return {"width": image.width, "height": image.height, "data": data}


def noise(chance: random.Random, most: int = 300) -> Image.Image:
    size = chance.randint(1, most), chance.randint(1, most)
    data = chance.randbytes(size[0] * size[1] * 3)
    # Black and white overshoot the most.
    extreme = chance.random() < 0.5
    image = Image.frombytes("RGB", size, data)
    return image.point(lambda value: 255 * (value > 127)) if extreme else image


def test_resized_pictures_are_those_of_pillow(node: str) -> None:
    chance = random.Random(14)
    cases = []
    for _ in range(100):
        image = noise(chance)
        to = chance.randint(1, 400), chance.randint(1, 400)
        x, y = chance.randrange(to[0]), chance.randrange(to[1])
        right, bottom = chance.randint(x + 1, to[0]), chance.randint(y + 1, to[1])
        box = {"x": x, "y": y, "width": right - x, "height": bottom - y}
        wanted = image.resize(to, Image.Resampling.BICUBIC).crop((x, y, right, bottom))
        cases.append((image, {"to": to, "box": box}, wanted))
    check(node, cases)


def test_reduced_pictures_are_those_of_pillow(node: str) -> None:
    chance = random.Random(14)
    cases = []
    for factor in range(1, 31):
        image = noise(chance)
        cases.append((image, {"factor": factor}, image.reduce(factor)))
    check(node, cases)


def test_fitted_pictures_are_those_of_the_library(node: str) -> None:
    chance = random.Random(14)
    cases = []
    for number in range(60):
        image, fit, side = noise(chance), FITS[number % 3], chance.choice((48, 112, 224))
        wanted = fit_image(image, fit, image_size=side, patch_size=16)
        assert isinstance(wanted, Image.Image)
        cases.append((image, {"fit": fit, "side": side}, wanted))
    check(node, cases)


SIZES = """
import { fittedSize } from './app/stage/geometry.js';
console.log(JSON.stringify(given.map((one) => fittedSize(...one))));
"""


def test_sizes_are_those_of_the_library(node: str) -> None:
    chance = random.Random(14)
    cases = []
    for number in range(500):
        size = chance.randint(1, 9000), chance.randint(1, 9000)
        cases.append((size, FITS[number % 3], chance.choice((48, 112, 224)), 16))
    wanted = [
        [*fitted_size(size, fit, image_size=side, patch_size=patch)]
        for size, fit, side, patch in cases
    ]
    assert json.loads(run(node, SIZES, cases)) == wanted


def test_limits_are_those_of_the_library(node: str) -> None:
    script = "import { LIMITS } from './web/pictures.js';\nconsole.log(JSON.stringify(LIMITS));"
    snake = {
        re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name): value
        for name, value in json.loads(run(node, script)).items()
    }
    assert snake == dataclasses.asdict(ImageLimits())


HEADERS = """
import { readHeader, takeOrientation } from './web/formats.js';
console.log(JSON.stringify(given.map((file) => {
  const bytes = Uint8Array.from(Buffer.from(file, 'base64'));
  const header = readHeader(bytes);
  return { ...header, exif: takeOrientation(bytes, header) };
})));
"""


def test_headers_are_read_as_pillow_wrote_them(node: str) -> None:
    exif = Image.Exif()
    exif[270], exif[274], exif[306] = "of a test", 6, "2026:11:26 14:09:31"
    files, wanted = [], []
    for name in ("JPEG", "PNG", "WebP", "GIF", "BMP", *["AVIF"] * features.check("avif")):
        for mode in ("RGB", "RGBA"):
            for more in ({}, {"exif": exif, "icc_profile": b"any" * 99_999}):
                file = io.BytesIO()
                image = Image.new("RGB" if name == "JPEG" else mode, (37, 50), "teal")
                image.save(file, name, **more)
                files.append(base64.b64encode(file.getvalue()).decode())
                has_more = bool(more) and name not in ("GIF", "BMP")
                turns = has_more and name != "AVIF"
                wanted.append({
                    "format": name, "width": 37, "height": 50, "profile": has_more,
                    "exif": 6 if turns else 1,
                })  # fmt: skip
    assert json.loads(run(node, HEADERS, files)) == wanted


# What formats.test.js finds in them.
PROBLEMS = {
    "picture_bytes": {"given", "allowed"},
    "picture_pixels": {"width", "height", "allowed"},
    "picture_small": {"width", "height", "allowed"},
    "picture_long": {"width", "height", "allowed"},
    "picture_format": {"allowed"},
    "picture_damaged": set(),
}


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_have_sentences(name: str, language: str) -> None:
    parts = string.Formatter().parse(LOCALES[language]["web"][name])
    assert {field for _, field, _, _ in parts if field} == PROBLEMS[name]
