"""Pictures drawn for tests."""

import numpy as np
from PIL import Image


def draw_picture(seed: int, width: int = 80, height: int = 60) -> Image.Image:
    """A smooth coloured picture, different for each seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (2, 3, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)
