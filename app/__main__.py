"""Serve the page: `python -m app [--host H] [--port P] [--device D] [--weights W,...]`.

`--fetch`, `--memory-gb` and `--max-image-size` bound what visitors may ask for. Each flag may also
come from the environment, as MAE_HOST, MAE_PORT, MAE_DEVICE, MAE_WEIGHTS and so on.
"""

import argparse
import dataclasses
import logging
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from app.components.image import MAX_BYTES
from app.guard import RequestGuard
from app.service import ReconstructionService
from app.settings import (
    AppSettings,
    parse_gigabytes,
    parse_pixels,
    parse_port,
    parse_weights,
)
from app.ui import EXAMPLES, I18N, STYLE, build_page
from mae_core import MAX_IMAGE_SIZE, ConfigError, MAEError

# Gradio as it comes reports to its makers; and after every event it sums up the last 10,000 of
# them for a page of statistics that is switched off here.
GRADIO_SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9),
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",
}

# What a browser wraps around a file that it uploads.
_UPLOAD_ENVELOPE_BYTES = 64 * 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted.

    Args:
        argv: Command line without the program's name; the process's own if not given.

    Returns:
        The exit status: 2 after an error that the caller can mend, 130 if interrupted before
        the page is served.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # Gradio asks its own server whether it is up, and addresses of downloads are as good as a key.
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.update(GRADIO_SETTINGS)
    try:
        settings = parse_settings(argv)
        page = build_page(ReconstructionService.load(settings))
        launch(page, settings)
    except MAEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # Gradio sees to it once the page is served; before that it is up to us.
        return 130
    return 0


def parse_settings(argv: Sequence[str] | None) -> AppSettings:
    """Settings from flags, then from the environment, then the defaults.

    Raises:
        ConfigError: If one of them is not what it should be.
    """
    parser = argparse.ArgumentParser(prog="python -m app", description="Serve the demo's page.")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=parse_port, help="port to listen on (default 7860)")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N or mps (default auto)")
    parser.add_argument(
        "--weights",
        type=parse_weights,
        help="names, files or folders of training runs, by commas (default: all bundled)",
    )
    parser.add_argument(
        "--fetch",
        help="what visitors may have fetched: none, published (weights that have a name), or any "
        "(also public Hugging Face repositories that they type) (default published)",
    )
    parser.add_argument(
        "--memory-gb",
        type=parse_gigabytes,
        help="memory for models that visitors choose beside --weights (default 4)",
    )
    parser.add_argument(
        "--max-image-size",
        type=parse_pixels,
        help=f"largest size of pictures in pixels (default {MAX_IMAGE_SIZE})",
    )
    given = vars(parser.parse_args(argv))
    flags = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(AppSettings.from_env(), **flags)


def launch(page: gr.Blocks, settings: AppSettings, *, wait: bool = True) -> str:
    """Serve a page, and nothing but what is on this machine.

    Args:
        page: From `build_page`.
        settings: Its host and port.
        wait: Return only when interrupted.

    Returns:
        The page's address.

    Raises:
        ConfigError: If the port is taken or the host is not this machine's.
    """
    _check_port(settings)
    _, url, _ = page.launch(
        server_name=settings.host,
        server_port=settings.port,
        prevent_thread_lock=not wait,
        **launch_options(),
    )
    return url


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


def launch_options() -> dict[str, Any]:
    """What the page is launched with, wherever it is launched."""
    guard = Middleware(RequestGuard, max_upload_bytes=MAX_BYTES + _UPLOAD_ENVELOPE_BYTES)
    return {
        "i18n": I18N,
        "theme": _theme(),
        "css_paths": STYLE,
        "app_kwargs": {"middleware": [guard]},
        # Where examples are, wherever the program is started.
        "allowed_paths": [str(EXAMPLES)],
        "max_file_size": MAX_BYTES,
        # Errors meant for the visitor are shown all the same; others carry paths.
        "show_error": False,
        "ssr_mode": False,
        "share": False,
        "run_history": False,
        "enable_monitoring": False,
        "footer_links": ["settings"],
    }


def _theme() -> gr.themes.Base:
    theme = gr.themes.Default(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        radius_size="md",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return theme.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_shadow="none",
        block_shadow_dark="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        block_title_text_weight="600",
        block_info_text_size="*text_xs",
    )


if __name__ == "__main__":
    sys.exit(main())
