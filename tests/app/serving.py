"""A small model and a running page, for tests of the page."""

import asyncio
import io
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import gradio as gr
import torch
from PIL import Image

from app.__main__ import GRADIO_SETTINGS, launch
from app.service import ReconstructionService
from app.settings import AppSettings
from app.ui import EXAMPLES, build_page
from mae_core import MaskedAutoencoder, ModelConfig, Reconstructor
from mae_core.checkpoint import CHECKPOINT_FILE, save_checkpoint
from mae_core.config import to_dict

Result = TypeVar("Result")

CONFIG = ModelConfig(
    image_size=112, patch_size=16, embed_dim=32, depth=1, num_heads=2,
    decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip


def small_reconstructor(
    name: str = "small-random", seed: int = 0, *, norm_pix: bool = False
) -> Reconstructor:
    """Seeded random weights on a 7 x 7 grid, in float32."""
    torch.manual_seed(seed)
    model = MaskedAutoencoder(replace(CONFIG, norm_pix=norm_pix))
    return Reconstructor(model, name, device="cpu", precision="float32")


def save_step(run: Path, step: int, steps: int = 1000) -> None:
    """Save what a training run saves; the model is `small_reconstructor(seed=step)`'s."""
    values = {
        "config": {"model": to_dict(CONFIG), "steps": steps}, "recipe": "quick", "ema": None,
        "model": small_reconstructor(seed=step).model.state_dict(), "step": step, "seconds": 9.0,
    }  # fmt: skip
    save_checkpoint(run / CHECKPOINT_FILE, values)


def small_service() -> ReconstructionService:
    return ReconstructionService({"small-random": small_reconstructor()})


def example(name: str) -> bytes:
    return (EXAMPLES / f"{name}.jpg").read_bytes()


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def inside_a_loop(work: Callable[[], Result]) -> Result:
    """Do something while an event loop runs, in a thread that has no other.

    Without one Gradio makes several as it builds and launches, and closes none of them.
    """

    async def do() -> Result:
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(do())).result()


def built(service: ReconstructionService) -> gr.Blocks:
    os.environ.update(GRADIO_SETTINGS)
    return inside_a_loop(lambda: build_page(service))


@contextmanager
def served(service: ReconstructionService) -> Iterator[str]:
    """The page's address while it is served as `python -m app` serves it."""
    page = built(service)
    settings = AppSettings(port=free_port())
    try:
        yield inside_a_loop(lambda: launch(page, settings, wait=False)).rstrip("/")
    finally:
        page.close()
