"""A small model and a running page, for tests of the page."""

import asyncio
import io
import os
import shutil
import socket
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import gradio as gr
import numpy as np
import torch
from PIL import Image

from app import gradio_seam
from app.examples import EXAMPLES
from app.ops.storage import CacheFolder
from app.page.build import build_page
from app.page.events import Events, as_gradio_error
from app.service import ReconstructionService
from app.serving import launch
from app.settings import AppSettings, read_settings
from mae_core import MAEError, MaskedAutoencoder, ModelConfig, Reconstruction, Reconstructor
from mae_core.config import to_dict
from mae_core.reconstruct import ReconstructionRequest
from mae_core.weights.files import CHECKPOINT_FILE, save_checkpoint

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


class HeldReconstructor(Reconstructor):
    """The small model, which stands still while its gate is closed.

    Attributes:
        gate: Open when set.
        begun: Is set when a batch has reached the gate.
        sizes: Of the batches, in order.
    """

    def __init__(self, name: str = "small-random") -> None:
        plain = small_reconstructor(name)
        super().__init__(plain.model, name, device="cpu", precision="float32")
        self.gate, self.begun = threading.Event(), threading.Event()
        self.gate.set()
        self.sizes: list[int] = []

    def batch(self, requests: Sequence[ReconstructionRequest]) -> list[Reconstruction | MAEError]:
        self.sizes.append(len(requests))
        self.begun.set()
        assert self.gate.wait(240)
        return super().batch(requests)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Stand still for as long as this lasts."""
        self.begun.clear()
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()


def stopped_clock(service: ReconstructionService) -> list[float]:
    """The seconds of a service's rate, which pass only as one sets them."""
    now = [0.0]
    assert service._rate is not None
    service._rate._clock = lambda: now[0]
    return now


def save_step(run: Path, step: int, steps: int = 1000) -> None:
    """Save what a training run saves; the model is `small_reconstructor(seed=step)`'s."""
    values = {
        "config": {"model": to_dict(CONFIG), "steps": steps}, "recipe": "quick", "ema": None,
        "model": small_reconstructor(seed=step).model.state_dict(), "step": step, "seconds": 9.0,
    }  # fmt: skip
    save_checkpoint(run / CHECKPOINT_FILE, values)


def settings_from(environ: Mapping[str, str]) -> AppSettings:
    """What a page is served with whose environment this is."""
    with patch.dict(os.environ, environ, clear=True):
        return read_settings()


def small_service(settings: AppSettings | None = None) -> ReconstructionService:
    """A service of one small model, in which tests may ask as fast as they can."""
    settings = settings or AppSettings(rate=0)
    return ReconstructionService({"small-random": small_reconstructor()}, settings=settings)


def events_of(service: ReconstructionService) -> Events:
    """The events of a page with one example, whose folder goes when they do."""
    folder = tempfile.mkdtemp()
    events = Events(service, {"cat": EXAMPLES / "cat.jpg"}, CacheFolder(folder, 10**9))
    weakref.finalize(events, shutil.rmtree, folder)
    return events


def upload(events: Events, image: bytes | None) -> dict[str, str] | None:
    """A picture as a client names it that has uploaded it."""
    if image is None:
        return None
    path = events._folder.path / "upload"
    path.write_bytes(image)
    return {"path": str(path)}


def asked(events: Events, image: bytes | None, *controls: Any, request: Any = None) -> Any:
    """What the API gives: panels and facts."""
    call: Any = events.reconstruct(upload(events, image), *controls, request=request)  # type: ignore[arg-type]
    try:
        *files, facts = asyncio.run(call)
    except Exception as error:
        raise as_gradio_error(error, request) from error
    return *map(pixels_of, (file.path for file in files)), facts


def shown(events: Events, image: bytes | None, *controls: Any) -> Any:
    """What the page shows in the end; the last of the controls may be Gradio's request."""
    names = ("mask_ratio", "seed", "strategy", "fit", "model", "image_size", "view", "request")
    given = dict(zip(names, controls, strict=False))

    async def last() -> Any:
        outputs = events.update(image=upload(events, image), **given)
        return [output async for output in outputs][-1]

    return asyncio.run(last())


def pixels_of(path: str) -> Any:
    with Image.open(path) as panel:
        return np.asarray(panel)


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
    os.environ.update(gradio_seam.ENVIRONMENT)
    return inside_a_loop(lambda: build_page(service))[0]


@contextmanager
def launched(
    service: ReconstructionService, port: int | None = None
) -> Iterator[tuple[gr.Blocks, str]]:
    """A page while it is served as `python -m app` serves it, and its address."""
    page = built(service)
    settings = service.settings.model_copy(update={"port": port or free_port()})
    try:
        yield page, inside_a_loop(lambda: launch(page, service, settings)).rstrip("/")
    finally:
        page.close()


@contextmanager
def served(service: ReconstructionService, port: int | None = None) -> Iterator[str]:
    """The page's address while it is served as `python -m app` serves it."""
    with launched(service, port) as (_, url):
        yield url
