"""Files that are no ordinary picture, made byte by byte: (name, what it is, file, what is said).

What is said is a part of the sentence that the visitor reads; `PICTURE` where the file is odd but
a picture all the same.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pillow_heif
from PIL import Image

from tests.security.encoded_pictures import encoded_pictures, photo

PICTURE = "picture"
DAMAGED = "damaged or cut short"
TOO_MUCH = "takes more than 10 seconds or 2.5 GiB of memory"
TOO_MANY = "million"
ORDINARY = "give an image as JPEG"


class HostilePicture(NamedTuple):
    """One file: its name, what is odd about it, and what the visitor is told."""

    name: str
    oddity: str
    make: Callable[[], bytes]
    said: str


def heic(side: int = 256, claimed: int | None = None) -> bytes:
    """A square HEIC photo, which may claim to be of another size."""
    pillow_heif.register_heif_opener()
    data = saved(Image.new("RGB", (side, side), "red"), "HEIF")
    at = data.index(b"ispe") + 8
    sides = struct.pack(">II", claimed or side, claimed or side)
    return data[:at] + sides + data[at + 8 :]


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, bits: int = 8, colours: int = 2) -> bytes:
    """A PNG with a header of any size and the chunks that are given."""
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    body = b"".join([chunk(b"IHDR", header), *chunks, chunk(b"IEND", b"")])
    return b"\x89PNG\r\n\x1a\n" + body


def pixels(width: int = 32, height: int = 32) -> bytes:
    """The data chunk of an RGB PNG."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(height))
    return chunk(b"IDAT", rows + packer.flush())


def inserted(marker: int, payload: bytes, times: int = 1) -> bytes:
    """A JPEG with segments of one's own behind its start."""
    jpeg = encoded_pictures()["jpeg"]
    segment = struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload
    return jpeg[:2] + segment * times + jpeg[2:]


def hidden_segments() -> bytes:
    """A JPEG with short segments in an extension, whose content Pillow does not skip."""
    jpeg = inserted(0xE1, b"Exif\0\0a", 1_000_000)
    return jpeg[:2] + b"\xff\xf0\xfe\xfe" + jpeg[2:]


def jpeg_of(width: int, height: int, precision: int = 8, frame: int = 0xC0) -> bytes:
    """A JPEG whose header says another size, precision or process than its data have."""
    jpeg = encoded_pictures()["jpeg"]
    at = jpeg.index(b"\xff\xc0")
    said = struct.pack(">BBHBHH", 0xFF, frame, 17, precision, height, width)
    return jpeg[:at] + said + jpeg[at + 9 :]


def tiff(*entries: tuple[int, int, int, int], following: int = 0, body: bytes = b"") -> bytes:
    """A TIFF whose directory is at byte 8: (tag, type, count, value)."""
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", following) + body


def grey_tiff(*more: tuple[int, int, int, int], side: int = 32, **options: Any) -> bytes:
    own = {256: (3, 1, side), 257: (3, 1, side), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1),
           273: (4, 1, 8), 277: (3, 1, 1), 278: (3, 1, side), 279: (4, 1, side * side)}  # fmt: skip
    own |= {tag: rest for tag, *rest in more}  # type: ignore[misc]
    entries = [(tag, *rest) for tag, rest in own.items()]
    return tiff(*entries, **{"body": bytes(side * side), **options})


def short_strip() -> bytes:
    """A TIFF of which libtiff leaves most rows as they were in memory."""
    strip = saved(photo("L", 512, 8), "JPEG")
    sizes = [(256, 4, 1, 512), (257, 4, 1, 1024), (278, 4, 1, 1024), (279, 4, 1, len(strip))]
    # Behind the header, nine entries and the offset of the next directory.
    place = [(259, 3, 1, 7), (273, 4, 1, 8 + 2 + 9 * 12 + 4)]
    return grey_tiff(*sizes, *place, body=strip)


def many_directories() -> bytes:
    """A TIFF of a picture and five thousand empty directories."""
    start = len(grey_tiff(body=b""))
    at = start + 32 * 32
    chain = b"".join(struct.pack("<HI", 0, at + 6 * (i + 1)) for i in range(5000))
    return grey_tiff(following=at) + chain


def webp_of(width: int, height: int) -> bytes:
    """A WebP that is little more than a header."""
    lossless = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(59)
    body = b"WEBPVP8L" + struct.pack("<I", len(lossless)) + lossless
    return b"RIFF" + struct.pack("<I", len(body)) + body


def avif_of(width: int, height: int) -> bytes:
    data = bytearray(encoded_pictures()["avif"])
    at = data.index(b"ispe")
    data[at + 8 : at + 16] = struct.pack(">II", width, height)
    return bytes(data)


def bmp_of(width: int, height: int) -> bytes:
    data = bytearray(encoded_pictures()["bmp"])
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def gif_of(width: int, height: int) -> bytes:
    data = encoded_pictures()["gif"]
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def animated(kind: str, count: int) -> bytes:
    """Many frames, no two alike, so that none are joined."""
    colours = [Image.new("RGB", (32, 32), (i % 256, i // 256, 9)) for i in range(count)]
    return saved(colours[0], kind, save_all=True, append_images=colours[1:])


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("picture.png", bytes(10_000_000))
    return file.getvalue()


def floats(value: float) -> bytes:
    return saved(Image.fromarray(np.full((32, 32), value, np.float32)), "TIFF")


def hostile_pictures() -> Iterator[HostilePicture]:
    """All of them."""
    for rows in (_no_pictures(), _bombs(), _hidden(), _headers(), _sides(), _odd(), _cut()):
        for row in rows:
            yield HostilePicture(*row)


_Row = tuple[str, str, Callable[[], bytes], str]

_SCRIPT = b"<script>alert(1)</script>"
_SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="DECOY/svg"/></svg>'


def _no_pictures() -> list[_Row]:
    return [
        ("empty.png", "no byte at all", lambda: b"", "empty"),
        ("text.png", "words", lambda: b"not a picture at all", ORDINARY),
        ("page.png", "HTML called .png", lambda: b"<!DOCTYPE html>" + _SCRIPT, ORDINARY),
        ("drawing.svg", "an SVG that loads an address", lambda: _SVG, ORDINARY),
        ("drawing.jpg", "the same called .jpg", lambda: _SVG, ORDINARY),
        ("entity.svg", "XML that reads a file", lambda: b'<?xml version="1.0"?><!DOCTYPE a '
         b'[<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>', ORDINARY),
        ("paper.pdf", "a PDF", lambda: b"%PDF-1.7\n" + bytes(200), ORDINARY),
        ("print.eps", "PostScript, which Pillow gives to Ghostscript",
         lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", ORDINARY),
        ("photo.heic", "an iPhone's photo", lambda: b"\0\0\0\x18ftypheic" + bytes(64), DAMAGED),
        ("film.mp4", "a film", lambda: b"\0\0\0\x18ftypisom" + bytes(64), ORDINARY),
        ("layers.psd", "Photoshop", lambda: b"8BPS\0\1" + bytes(64), ORDINARY),
        ("icon.ico", "ICO", lambda: saved(photo("RGBA", 64, 64), "ICO"), ORDINARY),
        ("icon.icns", "ICNS", lambda: saved(photo("RGBA", 64, 64), "ICNS"), ORDINARY),
        ("picture.jp2", "JPEG 2000", lambda: saved(photo("RGB"), "JPEG2000"), ORDINARY),
        ("picture.ppm", "PPM", lambda: saved(photo("RGB"), "PPM"), ORDINARY),
        ("picture.tga", "TGA, told by its name", lambda: saved(photo("RGB"), "TGA"), ORDINARY),
        ("archive.png", "a zip of 10 MB of zeros", zipped, ORDINARY),
        ("program.png", "an ELF program", lambda: b"\x7fELF" + bytes(200), ORDINARY),
        ("pickle.png", "a pickle that would run a command",
         lambda: b"cos\nsystem\n(S'exit'\ntR.", ORDINARY),
    ]  # fmt: skip


def _bombs() -> list[_Row]:
    return [
        ("bomb.png", "8,000 x 8,000 in 190 KB", lambda: png(8000, 8000, pixels(8000, 8000)),
         TOO_MANY),
        ("header.png", "2^31 - 1 pixels wide, by its header", lambda: png(2**31 - 1, 2**31 - 1,
         pixels()), TOO_MANY),
        ("header.jpg", "65,500 x 65,500, by its header", lambda: jpeg_of(65500, 65500), TOO_MANY),
        ("header.webp", "16,384 x 16,384, by its header", lambda: webp_of(16384, 16384),
         TOO_MANY),
        ("header.gif", "65,535 x 65,535, by its header", lambda: gif_of(65535, 65535), TOO_MANY),
        ("header.bmp", "30,000 x 30,000, by its header", lambda: bmp_of(30000, 30000), TOO_MANY),
        ("header.tiff", "65,535 x 65,535, by its header",
         lambda: grey_tiff((256, 3, 1, 65535), (257, 3, 1, 65535)), TOO_MANY),
        ("header.avif", "65,535 x 65,535, by its header", lambda: avif_of(65535, 65535),
         DAMAGED),
        ("frames.gif", "an animation of 500 frames", lambda: animated("GIF", 500), PICTURE),
        ("frames.webp", "an animation of 500 frames", lambda: animated("WEBP", 500), PICTURE),
        ("frames.png", "an APNG of 500 frames", lambda: animated("PNG", 500), PICTURE),
        ("claims.png", "an APNG that claims 2^32 - 1 frames",
         lambda: png(32, 32, chunk(b"acTL", b"\xff" * 8), pixels()),
         f"{PICTURE}|error: .*{DAMAGED}"),
    ]  # fmt: skip


def _hidden() -> list[_Row]:
    large, text = zlib.compress(bytes(64 * 2**20), 9), b"a\0\0"
    return [
        ("note.png", "64 MiB of text in 64 KB (zTXt)",
         lambda: png(32, 32, chunk(b"zTXt", text + large), pixels()), DAMAGED),
        ("notes.png", "a hundred of them", lambda: png(32, 32, chunk(b"zTXt", text + large) * 100,
         pixels()), DAMAGED),
        ("profile.png", "a profile of 64 MiB in 64 KB (iCCP)",
         lambda: png(32, 32, chunk(b"iCCP", text + large), pixels()), DAMAGED),
        ("exif.png", "EXIF data of 16 MiB", lambda: png(32, 32, chunk(b"eXIf", b"II*\0" +
         bytes(2**24)), pixels()), PICTURE),
        ("exif.jpg", "16 MiB of EXIF segments", lambda: inserted(0xE1, b"Exif\0\0" + bytes(65000),
         250), PICTURE),
        ("comments.jpg", "100,000 comments", lambda: inserted(0xFE, b"", 100_000), PICTURE),
        ("scans.jpg", "1,000 scans", lambda: encoded_pictures()["jpeg-progressive"][:-2] +
         b"\xff\xda\0\x08\1\1\0\0\x3f\0" * 1000, DAMAGED),
        ("hidden.jpg", "a million EXIF segments behind an extension", hidden_segments,
         TOO_MUCH),
        ("comment.gif", "10,000 comment blocks",
         lambda: b"GIF89a" + bytes(7) + b"!\xfe" + b"\1a" * 10_000 + b"\0", DAMAGED),
        ("claims.tiff", "a tag of 2^32 - 1 values", lambda: grey_tiff((700, 3, 2**32 - 1, 8)),
         PICTURE),
        ("tile.tiff", "one tile of 2^31 pixels", lambda: grey_tiff((322, 4, 1, 2**16),
         (323, 4, 1, 2**15)), PICTURE),
        ("ring.tiff", "a directory that follows itself", lambda: grey_tiff(following=8), PICTURE),
        ("inner-ring.tiff", "an EXIF directory inside itself",
         lambda: grey_tiff((34665, 4, 1, 8)), PICTURE),
        ("directories.tiff", "5,000 directories", many_directories, PICTURE),
        ("starts.tiff", "a TIFF that begins 400,000 times", lambda: b"II*\0\xff\xff\xff\x7f" *
         400_000, DAMAGED),
    ]  # fmt: skip


def _headers() -> list[_Row]:
    good = encoded_pictures()
    return [
        ("checksum.png", "a wrong checksum", lambda: good["png"][:29] + b"\0\0\0\0" +
         good["png"][33:], DAMAGED),
        ("nothing.png", "no pixels", lambda: png(32, 32), DAMAGED),
        ("few.png", "a tenth of the pixels", lambda: png(320, 320, pixels()), DAMAGED),
        ("palette.png", "no palette where one is needed",
         lambda: png(32, 32, pixels(), colours=3), DAMAGED),
        ("bits.png", "33 bits a pixel", lambda: png(32, 32, pixels(), bits=33), DAMAGED),
        ("precision.jpg", "12 bits a pixel", lambda: jpeg_of(24, 20, 12), DAMAGED),
        ("lossless.jpg", "a process that nobody reads", lambda: jpeg_of(24, 20, frame=0xC3),
         DAMAGED),
        ("zero.jpg", "no pixel wide", lambda: jpeg_of(0, 20), DAMAGED),
        ("zero.bmp", "no pixel high", lambda: bmp_of(24, 0), DAMAGED),
        ("negative.bmp", "a width of -2^31", lambda: bmp_of(-(2**31), 20), TOO_MANY),
        ("offset.tiff", "pixels behind the end of the file", lambda: grey_tiff((273, 4, 1, 2**31)),
         DAMAGED),
        ("compression.tiff", "an unknown compression", lambda: grey_tiff((259, 3, 1, 4242)),
         DAMAGED),
        ("memory.tiff", "a JPEG strip of 8 rows of 1,024, the rest being the decoder's memory",
         short_strip, PICTURE),
        ("fax.tiff", "a fax", lambda: saved(photo("1"), "TIFF", compression="group4"), PICTURE),
        ("samples.tiff", "65,535 samples a pixel", lambda: grey_tiff((277, 3, 1, 65535)),
         DAMAGED),
        ("nan.tiff", "pixels that are no numbers", lambda: floats(float("nan")), "no finite value"),
        ("infinite.tiff", "pixels without end", lambda: floats(float("inf")), "no finite value"),
        ("half.heic", "half of an HEIC photo", lambda: heic()[: len(heic()) // 2], DAMAGED),
        ("forged.heic", "2,048 x 2,048 pixels that claim to be 32 x 32",
         lambda: heic(2048, claimed=32), DAMAGED),
        ("large.heic", "100 pixels that claim to be 65,535 x 65,535",
         lambda: heic(100, claimed=65_535), TOO_MANY),
    ]  # fmt: skip


def _sides() -> list[_Row]:
    sizes = [(1, 1, "at least 16"), (1, 300, "at least 16"), (300, 1, "at least 16"),
             (15, 15, "at least 16"), (16, 321, "crop it"), (4000, 40, "crop it"),
             (16, 320, PICTURE)]  # fmt: skip
    return [
        (f"{width}x{height}.png", f"{width} x {height} pixels",
         lambda size=(width, height): saved(Image.new("RGB", size), "PNG"), said)  # type: ignore[misc]
        for width, height, said in sizes
    ]  # fmt: skip


def _odd() -> list[_Row]:
    good = encoded_pictures()
    rows: list[_Row] = [
        ("page-behind.png", "a picture with a page behind it", lambda: good["png"] + _SCRIPT,
         PICTURE),
        ("zip-behind.jpg", "a picture that is a zip as well", lambda: good["jpeg"] + zipped(),
         PICTURE),
        ("script.gif", "a picture that is a script as well", lambda: b"GIF89a/*" +
         good["gif"][8:] + b"*/=1;alert(1)", "crop it"),
        ("turned.jpg", "EXIF orientation 65,535", lambda: inserted(0xE1, b"Exif\0\0" +
         tiff((274, 3, 1, 65535))), PICTURE),
        ("torn-exif.jpg", "EXIF data cut short", lambda: inserted(0xE1, b"Exif\0\0II*\0\xff"),
         PICTURE),
        ("garbage-profile.png", "a profile of noise", lambda: png(32, 32, chunk(b"iCCP", b"a\0\0" +
         zlib.compress(b"\xa5" * 3000)), pixels()), PICTURE),
    ]  # fmt: skip
    rows += [
        (f"{name}.{name.split('-')[0]}", "an ordinary picture", lambda data=data: data, PICTURE)  # type: ignore[misc]
        for name, data in good.items()
        if name in ("jpeg-cmyk", "png-16", "png-grey-alpha", "png-palette", "tiff-float", "tiff-16",
                    "avif", "webp-lossless")
    ]  # fmt: skip
    return rows


def _cut() -> list[_Row]:
    good = encoded_pictures()
    return [
        (f"cut-{percent}.{name}", f"{percent} % of a {name.upper()} file",
         lambda name=name, percent=percent: good[name][: len(good[name]) * percent // 100],  # type: ignore[misc]
         f"{DAMAGED}|{ORDINARY}")
        for name in ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif")
        if name in good
        for percent in (10, 50, 80)
    ]  # fmt: skip
