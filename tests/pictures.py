"""Pictures drawn for tests."""

import struct

import numpy as np
from PIL import Image


def draw_picture(seed: int, width: int = 80, height: int = 60) -> Image.Image:
    """A smooth coloured picture, different for each seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (2, 3, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


SIDE = 16  # the smallest side taken by default


def tiff(tags: dict[int, tuple[int, int, int]], body: bytes, order: str = "<") -> bytes:
    """A TIFF with `body` at byte 8; tags are number: (type, count, value or offset)."""
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(body))
    entries = b""
    for tag, (kind, count, value) in sorted(tags.items()):
        short = order == ">" and kind == 3 and count == 1
        entries += struct.pack(order + "HHII", tag, kind, count, value << 16 if short else value)
    return start + body + struct.pack(order + "H", len(tags)) + entries + bytes(4)


def grey_tiff(
    body: bytes,
    bits: int,
    photometric: int = 1,
    tags: dict[int, tuple[int, int, int]] | None = None,
) -> bytes:
    own = {256: (3, 1, SIDE), 257: (3, 1, SIDE), 258: (3, 1, bits), 259: (3, 1, 1),
            262: (3, 1, photometric), 273: (4, 1, 8), 277: (3, 1, 1), 278: (3, 1, SIDE),
            279: (4, 1, len(body))}  # fmt: skip
    return tiff(own | (tags or {}), body)
