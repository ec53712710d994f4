"""Serve a built site on this machine, with its headers: python -m web.serve build/web.

A browser runs service workers and threads on https and on 127.0.0.1 only.
"""

import argparse
import contextlib
import functools
import sys
from collections.abc import Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from web.headers import HEADERS


class Handler(SimpleHTTPRequestHandler):
    """Answers with a file and the headers of every file."""

    protocol_version = "HTTP/1.1"
    # Not by the machine's own table.
    extensions_map = {  # noqa: RUF012 - as in the base class
        "": "application/octet-stream", ".css": "text/css", ".gz": "application/gzip",
        ".html": "text/html", ".jpg": "image/jpeg", ".js": "text/javascript",
        ".json": "application/json", ".md": "text/plain", ".mjs": "text/javascript",
        ".png": "image/png", ".webmanifest": "application/manifest+json",
    }  # fmt: skip

    def end_headers(self) -> None:
        """Add the headers of every file."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        """Show no folder, as static hosts do."""
        self.send_error(404)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 2 after an error that can be mended."""
    parser = argparse.ArgumentParser("python -m web.serve", None, __doc__)
    parser.add_argument("site", type=Path, metavar="FOLDER", help="what web.build wrote")
    parser.add_argument("--host", default="127.0.0.1", help="address (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=7870, help="default 7870; 0 is any free one")
    wanted = parser.parse_args(argv)
    if not (wanted.site / "sw.js").is_file():
        print(f"error: there is no site in {str(wanted.site)!r}; run `make web`", file=sys.stderr)
        return 2
    handler = functools.partial(Handler, directory=str(wanted.site))
    try:
        server = ThreadingHTTPServer((wanted.host, wanted.port), handler)
    except (OSError, OverflowError) as error:
        problem = f"cannot serve on {wanted.host}:{wanted.port} ({error}); give another --port"
        print(f"error: {problem}", file=sys.stderr)
        return 2
    with server:
        print(f"http://{wanted.host}:{server.server_address[1]}/", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 130


if __name__ == "__main__":
    sys.exit(main())
