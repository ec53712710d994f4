"""Response headers by path: nothing that a visitor has sent runs as a part of the page."""

import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Gradio's page has inline scripts and styles, and compiles templates to functions.
_PAGE_POLICY = "; ".join((
    "default-src 'self'",
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
    "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data: blob:",
    "media-src 'self' blob:",
    "font-src 'self' data:",
    "connect-src 'self'",
    "object-src 'none'",
    "base-uri 'self'",
    "form-action 'self'",
    # Any site may embed the page; the guard keeps their scripts from using it.
    "frame-ancestors *",
))  # fmt: skip
_FILE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
_PICTURES = ("image/png", "image/jpeg", "image/webp", "image/gif")

_FILE = re.compile(r"/gradio_api/file=.+", re.DOTALL)
# What their addresses show never changes: the folder of a panel is the hash of its pixels, and the
# name of an asset of Gradio ends in a hash of its content.
_PANEL = re.compile(
    r"/gradio_api/file=.*/[0-9a-f]{64}/(original|masked|reconstruction|pasted)\.png", re.DOTALL
)
_ASSET = re.compile(r"/assets/[\w.-]+-[\w-]{8}\d?\.[a-z0-9]+", re.ASCII)


class ResponseHeaders:
    """ASGI middleware that adds security and cache headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                _set_headers(MutableHeaders(scope=message), path_of(scope), message["status"])
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def path_of(scope: Scope) -> str:
    """The path of a request below the root path."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _set_headers(headers: MutableHeaders, path: str, status: int) -> None:
    headers["x-content-type-options"] = "nosniff"
    headers["referrer-policy"] = "strict-origin-when-cross-origin"
    headers["permissions-policy"] = (
        "camera=(self), microphone=(), geolocation=(), payment=(), usb=()"
    )
    headers["content-security-policy"] = _PAGE_POLICY
    if _FILE.fullmatch(path):
        headers["content-security-policy"] = _FILE_POLICY
        headers["cross-origin-resource-policy"] = "same-origin"
        if headers.get("content-type") not in _PICTURES:
            headers["content-type"] = "application/octet-stream"
            headers["content-disposition"] = "attachment"
    if status == 200 and _PANEL.fullmatch(path):
        headers["cache-control"] = "private, max-age=31536000, immutable"
    elif status == 200 and _ASSET.fullmatch(path):
        headers["cache-control"] = "public, max-age=31536000, immutable"
