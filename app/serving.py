"""Serve a page: launch it behind its middlewares, wait for a signal, drain."""

import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import gradio as gr
from fastapi.exceptions import RequestValidationError
from starlette.middleware import Middleware
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from app import gradio_seam
from app.examples import examples
from app.i18n import LOCALE_FOLDER
from app.ops.storage import CacheFolder
from app.page.build import ASSETS, I18N
from app.page.elements import thumbnail_route
from app.page.files import MAX_BYTES
from app.page.theme import THEME
from app.service import ReconstructionService
from app.settings import AppSettings
from app.web.guard import RequestGuard, refuse_values
from app.web.headers import ResponseHeaders
from app.web.health import Health, routes
from app.web.limits import RateLimiter
from mae_core.errors import ConfigError

_logger = logging.getLogger(__name__)

# What a browser wraps around a file that it uploads.
_UPLOAD_ENVELOPE_BYTES = 64 * 1024

# A reconstruction is about seven HTTP requests; and what one visitor may upload, a minute and
# at once.
_CALLS_PER_REQUEST = 10
_UPLOADED_BYTES, _UPLOADED_BURST = 256 * 2**20, 128 * 2**20

# Events that Gradio has in hand at once: those that wait, and those answered from the cache.
_MORE_EVENTS = 400

# uvicorn's 5 s are shorter than what browsers and proxies count on: a request on a connection that
# is just being closed is lost.
_KEEP_ALIVE_SECONDS = 75

# Between returns of freed memory to the system, a few milliseconds each.
_TRIM_SECONDS = 5.0

# The browser's modules.
STAGE = Path(__file__).parent / "stage"

# Gradio compresses these itself, with Brotli, but nothing whose path has no extension, such as the
# page. Event streams and pictures are excluded as well.
_NOT_GZIPPED = (
    *DEFAULT_EXCLUDED_CONTENT_TYPES,
    "application/javascript", "text/javascript", "text/css", "image/svg+xml",
)  # fmt: skip

# Between the last answer and the end, for browsers to fetch its pictures.
_LAST_SECONDS = 1.0


def serve(page: gr.Blocks, folder: CacheFolder, service: ReconstructionService) -> int:
    """Serve a page until this thread is interrupted (Ctrl-C) or told to exit (SIGTERM).

    Told to exit, it answers the requests that it has, as long as the settings allow. It does the
    same where too many runs of models hang.

    Returns:
        The exit status: 0, or 1 if runs hang.

    Raises:
        ConfigError: If the port is taken or the host is not this machine's.
    """
    service.metrics.watch(
        "mae_upload_folder_bytes", "Uploads and panels on disk.", lambda: folder.bytes
    )
    with _signals() as received:
        launch(page, service)
        folder.start()
        # What is there now stays. Left out of the search for garbage, it makes that search short
        # and frequent; with it, pictures that requests leave behind lie about for minutes.
        gc.collect()
        gc.freeze()
        trouble, trim, last_trim = None, _memory_trimmer(), time.monotonic()
        while not received and trouble is None:
            time.sleep(0.25)
            trouble = service.alive()
            if time.monotonic() - last_trim >= _TRIM_SECONDS:
                trim()
                last_trim = time.monotonic()
        if trouble is not None:
            _logger.critical("%s and cannot be stopped: this process has to be restarted", trouble)
        interrupted = received == [signal.SIGINT]
        answered = service.stop(0) if interrupted else _drain(page, service)
        page.close(verbose=False)
        folder.stop()
    if not answered:
        _logger.warning("some requests were given up")
    return 0 if trouble is None else 1


def _memory_trimmer() -> Callable[[], object]:
    """Glibc's malloc_trim(0), which returns freed memory to the system; elsewhere nothing.

    glibc keeps the holes between pictures that are still cached. A low threshold of malloc would
    return them at once, at the price of page faults that doubled the time of a picture.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda: None
    return lambda: trim(0)


def launch(
    page: gr.Blocks, service: ReconstructionService, settings: AppSettings | None = None
) -> str:
    """Start to serve a page, and nothing but what is on this machine.

    Args:
        page: From `build_page`.
        service: What answers it.
        settings: Its host and port, and so on; those of the service if not given.

    Returns:
        The page's address.

    Raises:
        ConfigError: If the port is taken or the host is not this machine's.
    """
    settings = settings or service.settings
    _check_port(settings)
    _, url, _ = page.launch(
        server_name=settings.host,
        server_port=settings.port,
        prevent_thread_lock=True,
        **launch_options(page, settings, service),
    )
    gradio_seam.keep_connections(page, _KEEP_ALIVE_SECONDS)
    gradio_seam.check(page)
    return url


def _drain(page: gr.Blocks, service: ReconstructionService) -> bool:
    """Answer what is waiting, and let it be fetched; says whether all was answered."""
    seconds = service.settings.drain_seconds
    latest = time.monotonic() + seconds
    _logger.info("about to end: answering what is waiting")
    answered = service.stop(seconds)
    while gradio_seam.is_busy(page) and time.monotonic() < latest:
        time.sleep(0.05)
    time.sleep(_LAST_SECONDS)
    return answered


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The SIGINT or SIGTERM that came, in a list that is empty before.

    Python drops an exception that a handler raises inside a destructor or a weak reference's
    callback, so a page that waited for one could miss its Ctrl-C.
    """
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # Another Ctrl-C waits for nothing: a thread that is in a model would make Python abort.
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        # As a shell has it of what it runs in the background.
        if handler != signal.SIG_IGN:
            signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_port(settings: AppSettings) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        # As the server does: connections of a page just stopped are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host.strip("[]"), settings.port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {settings.host}, port {settings.port}: {error.strerror}; give "
                "others with --host and --port or MAE_HOST and MAE_PORT"
            ) from error


def launch_options(
    page: gr.Blocks, settings: AppSettings, service: ReconstructionService
) -> dict[str, Any]:
    """What the page is launched with, wherever it is launched."""
    health = Health(
        service.alive, service.ready, service.metrics, os.environ.get("MAE_METRICS_TOKEN", "")
    )
    return {
        "i18n": I18N,
        "theme": THEME,
        "css_paths": [ASSETS / "style.css", *sorted(STAGE.glob("*.css"))],
        "app_kwargs": {
            "middleware": [
                Middleware(ResponseHeaders),
                _guard(page, settings),
                Middleware(GZipMiddleware, exclude_content_types=_NOT_GZIPPED),
                # Behind the compression, as it changes the page's text.
                Middleware(gradio_seam.LocaleScript),
            ],
            "exception_handlers": {RequestValidationError: refuse_values},
            "routes": [
                *routes(health),
                thumbnail_route(examples().values()),
                Mount("/stage", StaticFiles(directory=STAGE)),
                Mount("/locales", StaticFiles(directory=LOCALE_FOLDER)),
            ],
            "lifespan": gradio_seam.forgetting,
        },
        "max_file_size": MAX_BYTES,
        "max_threads": 2 * settings.queue + _MORE_EVENTS,
        "state_session_capacity": gradio_seam.SESSION_CONFIGS,
        # Errors meant for the visitor are shown all the same; others carry paths.
        "show_error": False,
        "ssr_mode": False,
        "share": False,
        "run_history": False,
        "enable_monitoring": False,
        "footer_links": ["settings"],
    }


def _guard(page: gr.Blocks, settings: AppSettings) -> Middleware:
    calls = _CALLS_PER_REQUEST * settings.rate
    return Middleware(
        RequestGuard,
        max_upload_bytes=MAX_BYTES + _UPLOAD_ENVELOPE_BYTES,
        folder=gradio_seam.upload_folder(page),
        proxies=settings.proxies,
        requests=RateLimiter(calls, max(1, calls / 6)) if settings.rate else None,
        uploads=RateLimiter(_UPLOADED_BYTES, _UPLOADED_BURST),
    )
