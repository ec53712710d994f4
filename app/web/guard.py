"""Which requests reach Gradio, and within which bounds.

Gradio has routes for much that this page does not do: it fetches addresses for its clients, writes
links to disk, edits its own source, streams and proxies, and it keeps any name that a client gives
its session. So only what the page and `gradio_client` use passes.
"""

import errno
import json
import logging
import math
import os
import re
import uuid
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.web.headers import path_of
from app.web.health import PEER
from app.web.limits import RateLimiter, bounded_body, visitor_of

# Of requests other than uploads: a few values and the path of a file.
MAX_BODY_BYTES = 256 * 1024
MAX_JSON_DEPTH = 16

# Open event streams, of one visitor and of all; a tab has two.
MAX_STREAMS_PER_VISITOR = 256
MAX_STREAMS = 2048

MAX_RETRY_SECONDS = 3600

_WRONG_BODY = f"The request body must be a JSON object nested at most {MAX_JSON_DEPTH} deep."
_NOT_UPLOADED = (
    "A picture must be an uploaded file; addresses and other files are not read. With "
    "gradio_client, pass handle_file(path)."
)
_WRONG_CALL = (
    "This page has no such function, or it takes other values; GET /gradio_api/info lists both."
)

# Names of sessions and events become keys of Gradio's dictionaries.
_KEY = r"[\w-]{1,64}"
_STATIC = re.compile(
    r"/(assets|static|svelte)/(?!.*\.\.)[\w./@+~-]+"
    r"|/thumbnails/[0-9a-f]{16}\.jpg|/stage/[a-z]+\.js|/locales/[a-z]+\.json"
    r"|/(gradio_api/)?theme\.css|/(favicon\.ico|robots\.txt|manifest\.json|healthz|readyz|metrics)",
    re.ASCII,
)
_READ = re.compile(r"/|/config/?|/gradio_api/(info|startup-events|app_id)/?")
# Absolute paths: Gradio would fetch an address.
_FILE = re.compile(r"/gradio_api/file=(?:[a-z]:)?[/\\].*", re.DOTALL | re.IGNORECASE)
_STREAM = re.compile(
    rf"/gradio_api/(queue/data|heartbeat/{_KEY}|call/(v2/)?{_KEY}/{_KEY})", re.ASCII
)
_CALL = re.compile(
    rf"/gradio_api/(queue/join|cancel|reset|(run|api|call|call/v2)/{_KEY})/?", re.ASCII
)
_UPLOAD = re.compile(r"/gradio_api/upload/?")

# What Gradio raises where it does not find a function, or a function's value by its name.
_LOOKUP_ERRORS = ("FnIndexInferError", "KeyError", "TypeError", "ValueError")

_logger = logging.getLogger(__name__)


class RequestGuard:
    """ASGI middleware that passes what this page needs, within bounds.

    Behind it `scope["client"]` is the visitor, whose address a trusted proxy may have given.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_upload_bytes: int,
        folder: str | Path,
        *,
        proxies: int = 0,
        requests: RateLimiter | None = None,
        uploads: RateLimiter | None = None,
    ) -> None:
        """Guard an application.

        Args:
            app: What answers the requests that pass.
            max_upload_bytes: Bound on the body of one upload.
            folder: Where uploads are; a call may name no other file.
            proxies: Number of trusted proxies in front.
            requests: Bounds the requests of a visitor; those for static files are free.
            uploads: Bounds the bytes that a visitor uploads.
        """
        self._app = app
        self._max_upload_bytes = max_upload_bytes
        spellings = {os.path.abspath(folder), os.path.realpath(folder)}
        self._folders = tuple(spelling + os.sep for spelling in spellings)
        self._proxies = proxies
        self._requests, self._uploads = requests, uploads
        self._streams: Counter[str] = Counter()
        self._warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            # The page has none.
            await send({"type": "websocket.close", "code": 1008})
            return
        started = False

        async def send_on(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._pass(scope, receive, send_on)
        except Exception as error:
            if not started:
                await _refusal(scope["method"], error)(scope, receive, send)
            elif isinstance(error.__cause__, HTTPException):
                # Gradio says in the stream that it does not know the session, and then fails.
                await send({"type": "http.response.body", "body": b""})
            else:
                raise

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method, headers = path_of(scope), scope["method"], Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:
            # A proxy that goes by the other one takes the rest for another visitor's request.
            text = "A request may have a Content-Length or a Transfer-Encoding, not both."
            raise HTTPException(400, text, {"connection": "close"})
        visitor = self._name_visitor(scope, headers)
        reads, posts = method in ("GET", "HEAD"), method == "POST"
        _check_origin(headers, posts, trusts_proxy=self._proxies > 0)
        if reads and _STATIC.fullmatch(path):
            await self._app(scope, receive, send)
            return
        _take(self._requests, visitor, 1, "Too many requests come from your address")
        if reads and _READ.fullmatch(path):
            await self._app(scope, receive, send)
        elif reads and _FILE.fullmatch(path):
            # Gradio repeats a request's headers in its answer to a range. Files are not compressed,
            # but for texts, which Gradio compresses outside of this.
            left_out = (b"range", b"accept-encoding")
            kept = [pair for pair in scope["headers"] if pair[0] not in left_out]
            await self._app({**scope, "headers": kept}, receive, send)
        elif reads and _STREAM.fullmatch(path):
            await self._stream(scope, receive, send, visitor)
        elif method == "GET" and path == "/gradio_api/upload_progress":
            # Gradio never forgets the name of an upload whose progress was asked for.
            done = Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")
            await done(scope, receive, send)
        elif posts and _CALL.fullmatch(path):
            await self._call(scope, bounded_body(scope, receive, MAX_BODY_BYTES), send)
        elif posts and _UPLOAD.fullmatch(path):
            await self._upload(scope, receive, send, visitor)
        else:
            raise HTTPException(404, "There is nothing here.")

    def _name_visitor(self, scope: Scope, headers: Headers) -> str:
        peer, forwarded = scope.get("client"), ", ".join(headers.getlist("x-forwarded-for"))
        visitor = visitor_of(peer[0] if peer else None, forwarded, self._proxies)
        scope[PEER], scope["client"] = peer, (visitor, 0)
        entries = forwarded.count(",") + 1
        # Once: anybody can write the header.
        if forwarded and not self._warned and not 0 < self._proxies <= entries:
            self._warned = True
            _logger.warning(
                "a request has %d entries in X-Forwarded-For, but --proxies is %d; set it to the "
                "number of trusted proxies, or all visitors behind them share one visitor's limits",
                entries, self._proxies,
            )  # fmt: skip
        return visitor

    async def _stream(self, scope: Scope, receive: Receive, send: Send, visitor: str) -> None:
        for key in QueryParams(scope["query_string"]).getlist("session_hash"):
            _check_key(key)
        if (
            self._streams[visitor] >= MAX_STREAMS_PER_VISITOR
            or self._streams.total() >= MAX_STREAMS
        ):
            text = "Too many pages of this server are open; close some, or try again in a minute."
            raise HTTPException(503, text, {"retry-after": "30"})
        self._streams[visitor] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._streams[visitor] -= 1
            if not self._streams[visitor]:
                del self._streams[visitor]

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        data = self._checked(await Request(scope, receive).body())
        waiting: list[Message] = [{"type": "http.request", "body": data, "more_body": False}]

        async def receive_again() -> Message:
            return waiting.pop() if waiting else await receive()

        try:
            await self._app(scope, receive_again, send)
        except Exception as error:
            if type(error).__name__ not in _LOOKUP_ERRORS:
                raise
            _logger.debug("a call is refused", exc_info=error)
            raise HTTPException(400, _WRONG_CALL) from error

    async def _upload(self, scope: Scope, receive: Receive, send: Send, visitor: str) -> None:
        def count(length: int) -> None:
            _take(self._uploads, visitor, length, "Too much is uploaded from your address")

        bounded = bounded_body(scope, receive, self._max_upload_bytes, count)
        try:
            # Without the upload's name, whose progress Gradio would keep.
            await self._app({**scope, "query_string": b""}, bounded, send)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            _logger.error("the disk is full: an upload is refused")
            text = "This server's disk is full; try again in a few minutes."
            raise HTTPException(507, text, {"retry-after": "60"}) from error

    def _checked(self, data: bytes) -> bytes:
        """The JSON body of a call, with nothing of a file but its path."""
        try:
            content = json.loads(data)
            self._check_json(content)
            # Python reads NaN and the like, but Gradio cannot write an answer that repeats them.
            data = json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            text = "The request body must be JSON, without NaN, Infinity and unpaired surrogates."
            raise HTTPException(400, text) from error
        if not isinstance(content, dict):
            raise HTTPException(400, _WRONG_BODY)
        for name in ("session_hash", "event_id"):
            if content.get(name) is not None:
                _check_key(content[name])
        return data

    def _check_json(self, value: object, depth: int = 1) -> None:
        if depth > MAX_JSON_DEPTH:
            raise HTTPException(400, _WRONG_BODY)
        if isinstance(value, dict) and isinstance(path := value.get("path"), str):
            # With `preprocess=False` too, Gradio downloads a file at an address before a handler
            # runs, fails with a traceback on other files and on fields of a wrong type, and hands
            # on any path that is not marked as a file.
            if "\0" in path or not os.path.normpath(path).startswith(self._folders):
                raise HTTPException(400, _NOT_UPLOADED)
            value.clear()
            value.update(path=path, meta={"_type": "gradio.FileData"})
        if isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                self._check_json(item, depth + 1)


async def refuse_values(request: Request, error: Exception) -> Response:
    """Answer in place of FastAPI's own handler, which repeats what was sent."""
    return JSONResponse({"detail": _WRONG_CALL}, 422)


def _refusal(method: str, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        # The server itself would close the connection, which a client may be using again by then.
        error_id = uuid.uuid4().hex[:8]
        _logger.error("request failed, id %s", error_id, exc_info=error)
        error = HTTPException(500, f"Something went wrong on this server. Error id: {error_id}.")
    headers = {"cache-control": "no-store", **(error.headers or {})}
    if method == "POST":
        # Where Gradio's clients look for the sentence.
        return JSONResponse({"detail": error.detail}, error.status_code, headers)
    return PlainTextResponse(error.detail, error.status_code, headers)


def _take(limiter: RateLimiter | None, visitor: str, amount: float, complaint: str) -> None:
    seconds = limiter.take(visitor, amount) if limiter is not None else 0.0
    if seconds > 0:
        # Infinity, if it is more than a visitor may take at once.
        wait = math.ceil(min(seconds, MAX_RETRY_SECONDS))
        text = f"{complaint}; try again in {wait} second{'' if wait == 1 else 's'}."
        raise HTTPException(429, text, {"retry-after": str(wait)})


def _check_origin(headers: Headers, posts: bool, *, trusts_proxy: bool) -> None:
    """Refuse scripts and forms of other sites, which may only link to and embed the page.

    Gradio answers them, with the visitor's cookies (which open a private Space), and at the
    expense of the visitor's limits.
    """
    site = headers.get("sec-fetch-site")
    foreign = site in ("cross-site", "same-site")
    foreign = foreign and (posts or headers.get("sec-fetch-mode") == "cors")
    origin = headers.get("origin")
    if site is None and origin is not None:
        # Browsers say more on https and localhost only.
        own = {headers.get("host"), headers.get("x-forwarded-host") if trusts_proxy else None}
        foreign = urlsplit(origin).netloc not in own
    if foreign:
        raise HTTPException(403, "This server does not answer scripts of other sites.")


def _check_key(value: object) -> None:
    if not isinstance(value, str) or not re.fullmatch(_KEY, value, re.ASCII):
        text = "The name of a session or event has 1 to 64 letters, digits, hyphens or underscores."
        raise HTTPException(400, text)
