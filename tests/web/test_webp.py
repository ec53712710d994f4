"""Films that are put together in the browser, opened by Pillow."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.javascript import run

FILM = """
import { animation } from './web/webp.js';
const stills = given.map((still) => Buffer.from(still, 'base64'));
try {
  process.stdout.write(animation(stills, { width: 45, height: 31 }, 250));
} catch ({ text, values }) {
  console.log(JSON.stringify({ text, values }));
}
"""


def still(colour: str, *, lossless: bool = False, exif: bytes = b"") -> bytes:
    """A picture of odd sides with one colour, and a speck so that lengths differ."""
    picture = Image.new("RGB", (45, 31), colour)
    picture.paste("white", (0, 0, len(colour), 3))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=lossless, exif=exif)
    return buffer.getvalue()


def film(node: str, stills: list[bytes]) -> bytes:
    return run(node, FILM, [base64.b64encode(one).decode() for one in stills])


def test_pillow_opens_a_film_and_its_frames_are_in_order(node: str) -> None:
    colours = ["red", "green", "blue", "#102030"]
    # A file with more than its picture has it in another chunk than the first.
    stills = [
        still("red"), still("green", lossless=True), still("blue", exif=b"Exif\0\0odd"),
        still("#102030"),
    ]  # fmt: skip
    with Image.open(io.BytesIO(film(node, stills))) as opened:
        assert opened.format == "WEBP"
        assert opened.size == (45, 31)
        assert opened.n_frames == 4  # type: ignore[attr-defined]
        assert opened.info["loop"] == 0
        for i, (one, colour) in enumerate(zip(stills, colours, strict=True)):
            opened.seek(i)
            shown = np.asarray(opened.convert("RGB"))
            assert opened.info["duration"] == 250
            with Image.open(io.BytesIO(one)) as alone:
                assert np.array_equal(shown, np.asarray(alone.convert("RGB"))), colour


@pytest.mark.parametrize("other", ["PNG", "empty", "cut"])
def test_what_is_no_webp_is_refused(node: str, other: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (45, 31)).save(buffer, "PNG")
    content = {"PNG": buffer.getvalue(), "empty": b"", "cut": still("red")[:14]}[other]
    told = json.loads(film(node, [still("red"), content]))
    assert told == {"text": "no_webp", "values": {}}
