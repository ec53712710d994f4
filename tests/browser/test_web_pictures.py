"""Pictures that a real Chromium decodes, beside those of Python.

`python -m pytest -s tests/browser/test_web_pictures.py` prints what differs: docs/browser.md.
"""

import base64
import io
import math
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image, features
from playwright.sync_api import Browser, Page

from mae_core.errors import ImageError
from mae_core.images import FITS, fit_image
from mae_core.photographs import decode_image
from tests.pictures import draw_picture
from tests.sources import ROOT

pytestmark = pytest.mark.browser

EXAMPLES = sorted((ROOT / "app/assets/examples").glob("*.jpg"))
WHITE = (255, 255, 255)

# For each fit, a picture of whole patches; with none, the picture itself.
WORKER = """
import { fitPicture, openPicture } from '%s/web/pictures.js';
onmessage = async ({ data: [bytes, fits] }) => {
  try {
    const picture = await openPicture(new Blob([bytes]));
    postMessage(fits.length ? fits.map((fit) => fitPicture(picture, fit, 224, 16)) : [picture]);
  } catch (problem) {
    postMessage({ problem: problem.text ?? String(problem) });
  }
};
"""
START = """(code) => {
  const file = URL.createObjectURL(new Blob([code], { type: 'text/javascript' }));
  globalThis.worker = new Worker(file, { type: 'module' });
}"""
ASK = """async ([file, fits]) => {
  const text = (bytes) => new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.split(',')[1]);
    reader.readAsDataURL(new Blob([bytes]));
  });
  const bytes = await (await fetch(`data:;base64,${file}`)).arrayBuffer();
  const answer = await new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = (event) => reject(event.message);
    worker.postMessage([bytes, fits]);
  });
  if (answer.problem) return answer.problem;
  return Promise.all(
    answer.map(async ({ data, ...size }) => ({ ...size, data: await text(data) })));
}"""


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(ROOT))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        page = browser.new_page()
        page.goto(f"{url}/web/problem.js")
        page.evaluate(START, WORKER % url)
        yield page
        page.close()
        server.shutdown()
        thread.join()


def seen(page: Page, file: bytes, *fits: str) -> list[np.ndarray] | str:
    """What the worker makes of a file, in the fits or as it is; or the text of its problem."""
    answer: list[dict[str, Any]] | str = page.evaluate(ASK, [base64.b64encode(file).decode(), fits])
    if isinstance(answer, str):
        return answer
    return [
        np.frombuffer(base64.b64decode(one["data"]), np.uint8).reshape(
            one["height"], one["width"], 3
        )
        for one in answer
    ]


def difference(found: np.ndarray, wanted: Image.Image, name: str) -> int:
    """The most that a value differs by, printed."""
    assert found.shape == (wanted.height, wanted.width, 3), name
    levels = np.abs(found.astype(int) - np.asarray(wanted))
    print(
        f"{name:28} {(levels != 0).mean():7.2%} of values differ, mean {levels.mean():.3f}, "
        f"most {levels.max()}"
    )
    return int(levels.max())


# ---------------------------------------------------------------- files


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def noisy(width: int = 160, height: int = 120) -> Image.Image:
    noise = np.random.default_rng(0).integers(-20, 21, (height, width, 3))
    return Image.fromarray((np.asarray(draw_picture(5, width, height)) + noise).clip(0, 255)
                           .astype(np.uint8))  # fmt: skip


def see_through(image: Image.Image | None = None) -> Image.Image:
    """Every transparency under many colours."""
    image = image or noisy(256, 256)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def animated(file_format: str, **options: Any) -> bytes:
    more = [draw_picture(7, 160, 120)]
    return encode(noisy(), file_format, save_all=True, append_images=more, **options)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(values: np.ndarray, colour: int, *, interlaced: bool = False) -> bytes:
    """A PNG file of (H, W, C) values of 8 or 16 bits."""
    height, width = values.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 8 * values.itemsize, colour, 0, 0, interlaced)
    adam7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
             (0, 1, 1, 2)]  # fmt: skip
    rows = b""
    for x, y, right, down in adam7 if interlaced else [(0, 0, 1, 1)]:
        part = values[y::down, x::right]
        rows += b"".join(b"\0" + row.astype(values.dtype.newbyteorder(">")).tobytes()
                         for row in part)  # fmt: skip
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def with_chunk(name: bytes, data: bytes) -> bytes:
    file = encode(noisy(), "PNG")
    return file[:33] + chunk(name, data) + file[33:]


def profile(colours: bytes, gamma: float, *axes: tuple[float, float, float]) -> bytes:
    """An ICC profile of a gamma and, for RGB, of where red, green and blue lie in XYZ."""
    curve = b"curv" + bytes(4) + struct.pack(">IHH", 1, round(gamma * 256), 0)
    xyz = [
        b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in axis))
        for axis in ((0.9642, 1.0, 0.8249), *axes)
    ]
    tags = dict(zip((b"wtpt", b"rXYZ", b"gXYZ", b"bXYZ"), xyz, strict=False))
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC") if axes else (b"kTRC",), curve)
    entries, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        entries += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data
    head = bytes(4) + struct.pack(">I", 0x02400000) + b"mntr" + colours + b"XYZ " + bytes(12)
    head = (bytes(4) + head + b"acsp").ljust(68, b"\0") + xyz[0][8:]
    whole = head.ljust(128, b"\0") + entries + body
    return struct.pack(">I", len(whole)) + whole[4:]


ADOBE = profile(
    b"RGB ", 2.2, (0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)
)


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = value
    return exif


def turned(file_format: str, value: int) -> bytes:
    return encode(noisy(), file_format, exif=orientation(value))


def palette(bits: int) -> bytes:
    return encode(noisy().quantize(2**bits), "PNG", bits=bits)


def deep_grey() -> np.ndarray:
    return np.linspace(0, 65535, 160 * 120).astype(np.uint16).reshape(120, 160, 1)


def deep_colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65536, (120, 160, 3), dtype=np.uint16)


def avif_of_other_colours() -> bytes:
    """Said to be Display P3."""
    file = encode(noisy(), "AVIF")
    at = file.index(b"colrnclx") + 8
    return file[:at] + struct.pack(">H", 12) + file[at + 2 :]


needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")

# What Chromium decodes to the same bytes.
SAME: dict[str, Callable[[], bytes]] = {
    **{
        f"{file_format} turned, {value}": partial(turned, file_format, value)
        for file_format in ("JPEG", "PNG", "WEBP", "AVIF")
        for value in range(1, 9)
    },
    "large PNG turned": lambda: encode(
        draw_picture(5, 2503, 2101), "PNG", compress_level=1, exif=orientation(6)
    ),
    "JPEG progressive": lambda: encode(noisy(), "JPEG", progressive=True),
    "JPEG 4:4:4": lambda: encode(noisy(), "JPEG", subsampling=0),
    "JPEG 4:2:2": lambda: encode(noisy(), "JPEG", subsampling=1),
    "JPEG grey": lambda: encode(noisy().convert("L"), "JPEG"),
    "JPEG CMYK": lambda: encode(noisy().convert("CMYK"), "JPEG"),
    "JPEG of several": lambda: animated("MPO"),
    "PNG see-through": lambda: encode(see_through(), "PNG"),
    "PNG grey see-through": lambda: encode(see_through().convert("LA"), "PNG"),
    "PNG palette see-through": lambda: encode(noisy().quantize(64), "PNG", transparency=3),
    "PNG colour see-through": lambda: encode(
        noisy(), "PNG", transparency=noisy().getpixel((5, 5))
    ),
    "PNG grey": lambda: encode(noisy().convert("L"), "PNG"),
    "PNG 1 bit": lambda: encode(noisy().convert("1"), "PNG"),
    **{f"PNG palette, {bits} bits": partial(palette, bits) for bits in (1, 2, 4, 8)},
    "PNG interlaced": lambda: png(np.asarray(noisy()), 2, interlaced=True),
    "PNG 16 bits": lambda: png(deep_colours(), 2),
    "PNG animated": lambda: animated("PNG"),
    "PNG of other gamma": lambda: with_chunk(b"gAMA", struct.pack(">I", 100_000)),
    "PNG of other colours": lambda: with_chunk(b"cICP", bytes([9, 16, 0, 1])),
    "WebP lossy": lambda: encode(noisy(), "WEBP"),
    "WebP see-through": lambda: encode(see_through(), "WEBP", lossless=True, exact=True),
    "WebP animated": lambda: animated("WEBP", lossless=True),
    "GIF": lambda: encode(noisy(), "GIF", interlace=0),
    "GIF interlaced": lambda: encode(noisy(), "GIF", interlace=1),
    "GIF see-through": lambda: encode(noisy().quantize(64), "GIF", transparency=3),
    "GIF animated": lambda: animated("GIF"),
    "BMP": lambda: encode(noisy(), "BMP"),
    "BMP palette": lambda: encode(noisy().quantize(64), "BMP"),
    "AVIF": lambda: encode(noisy(), "AVIF"),
    "AVIF 4:4:4": lambda: encode(noisy(), "AVIF", subsampling="4:4:4"),
    "AVIF grey": lambda: encode(noisy().convert("L"), "AVIF"),
    "AVIF of other colours": avif_of_other_colours,
    "broken profile": lambda: encode(noisy(), "JPEG", icc_profile=ADOBE[:200]),
    "CMYK with RGB profile": lambda: encode(noisy().convert("CMYK"), "JPEG", icc_profile=ADOBE),
}  # fmt: skip

# What it decodes otherwise, and the most levels that a value differs by.
OTHER: dict[str, tuple[Callable[[], bytes], int]] = {
    "JPEG with profile": (lambda: encode(noisy(), "JPEG", icc_profile=ADOBE), 1),
    "PNG with profile": (lambda: encode(see_through(), "PNG", icc_profile=ADOBE), 1),
    "WebP with profile": (lambda: encode(noisy(), "WEBP", icc_profile=ADOBE, lossless=True), 1),
    "AVIF with profile": (lambda: encode(noisy(), "AVIF", icc_profile=ADOBE), 1),
    "grey with profile": (
        lambda: encode(noisy().convert("L"), "JPEG", icc_profile=profile(b"GRAY", 1.8)), 1
    ),
    "grey with RGB profile": (
        lambda: encode(noisy().convert("L"), "JPEG", icc_profile=ADOBE), 6
    ),
    "PNG grey, 16 bits": (lambda: png(deep_grey(), 0), 1),
    "large PNG see-through": (
        lambda: encode(see_through(draw_picture(5, 2502, 2100)), "PNG", compress_level=1), 2
    ),
    "AVIF see-through": (lambda: encode(see_through(), "AVIF"), 20),
    "AVIF animated": (lambda: animated("AVIF"), 20),
}  # fmt: skip


def avif_skipped(names: dict[str, Any]) -> list[Any]:
    return [pytest.param(name, marks=needs_avif) if "AVIF" in name else name for name in names]


# ---------------------------------------------------------------- tests


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_those_of_python(page: Page, path: Any) -> None:
    file = path.read_bytes()
    wanted = decode_image(file)
    whole, fitted = seen(page, file), seen(page, file, *FITS)
    assert difference(whole[0], wanted, path.stem) == 0
    for fit, found in zip(FITS, fitted, strict=True):
        image = fit_image(wanted, fit, image_size=224, patch_size=16)
        assert np.array_equal(found, np.asarray(image)), fit


@pytest.mark.parametrize("name", avif_skipped(SAME))
def test_a_file_is_what_it_is_to_python(page: Page, name: str) -> None:
    file = SAME[name]()
    found = seen(page, file)
    assert not isinstance(found, str), found
    assert difference(found[0], decode_image(file), name) == 0


@pytest.mark.parametrize("name", avif_skipped(OTHER))
def test_what_chromium_decodes_otherwise_stays_near(page: Page, name: str) -> None:
    make, most = OTHER[name]
    file = make()
    found = seen(page, file)
    assert not isinstance(found, str), found
    assert difference(found[0], decode_image(file), name) <= most


def test_a_large_jpeg_is_nearly_that_of_python(page: Page) -> None:
    """Which has libjpeg decode it smaller: that keeps more of the details than an average does."""
    mosaic = Image.new("RGB", (4000, 3000))
    for tile in range(64):
        example = Image.open(EXAMPLES[tile % len(EXAMPLES)]).resize((500, 375))
        mosaic.paste(example, (tile % 8 * 500, tile // 8 * 375))
    file = encode(mosaic, "JPEG", quality=90)
    wanted = decode_image(file)
    fitted = fit_image(wanted, "crop", image_size=224, patch_size=16)
    for found, image, least in (
        (seen(page, file), wanted, 44),
        (seen(page, file, "crop"), fitted, 54),
    ):
        assert isinstance(image, Image.Image)
        difference(found[0], image, f"large JPEG, {image.width} pixels")
        decibels = -10 * math.log10(np.square((found[0] - np.asarray(image, float)) / 255).mean())
        print(f"PSNR {decibels:.1f} dB")
        assert decibels > least


@pytest.mark.parametrize("size", [(4001, 2999), (5000, 7001), (2100, 2000)])
def test_a_large_jpeg_is_reduced_as_far_as_in_python(page: Page, size: tuple[int, int]) -> None:
    file = encode(Image.new("RGB", size, "teal"), "JPEG")
    difference(seen(page, file)[0], decode_image(file), f"JPEG {size}")


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut": (lambda: encode(noisy(), "JPEG")[:-900], "picture_damaged"),
    "cut PNG": (lambda: encode(noisy(), "PNG")[:-900], "picture_damaged"),
    "small": (lambda: encode(noisy(40, 15), "PNG"), "picture_small"),
    "long": (lambda: encode(noisy(420, 20), "PNG"), "picture_long"),
    "many pixels": (lambda: encode(Image.new("1", (8000, 8000)), "PNG"), "picture_pixels"),
    "SVG": (
        lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"/>',
        "picture_format",
    ),
    "empty": (lambda: b"", "picture_format"),
    "GIF longer than it says": (
        lambda: b"GIF89a\x10\0\x10\0" + encode(noisy(420, 20), "GIF")[10:], "picture_long"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_python_refuses_is_refused(page: Page, name: str) -> None:
    make, problem = REFUSED[name]
    file = make()
    assert seen(page, file) == problem
    with pytest.raises(ImageError):
        decode_image(file)


def test_what_no_browser_decodes_everywhere_is_refused(page: Page) -> None:
    assert seen(page, encode(noisy(), "TIFF")) == "picture_format"
