"""What the web server refuses before Gradio sees it, and what it says to browsers.

Gradio has routes for many things that this page does not do: it fetches addresses for its clients,
writes links to disk, edits its own source, streams and proxies, and it keeps whatever name a client
gives its session. So only what the page and `gradio_client` use is let through, in bounds.

Wiring (`launch` of the page; rates count HTTP requests, of which a reconstruction is about seven):

    Middleware(
        RequestGuard,
        max_upload_bytes=MAX_BYTES + _UPLOAD_ENVELOPE_BYTES,
        proxies=settings.proxies,
        requests=RateLimiter(per_minute=10 * settings.rate, burst=10 * settings.rate / 6),
        uploads=RateLimiter(per_minute=256 * 2**20, burst=128 * 2**20),  # bytes
    )
"""

import asyncio
import errno
import json
import logging
import math
import re
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException

from app.rates import RateLimiter
from app.visitors import visitor_of
from app.web.health import PEER

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Pair = tuple[bytes, bytes]
Headers = list[Pair]

# Request bodies other than uploads are a few slider values and a file's address.
MAX_BODY_BYTES = 256 * 1024
MAX_JSON_DEPTH = 16

# The next part of a body comes within this time, or its sender is gone or means ill.
BODY_SECONDS = 30.0

# Connections that stay open, by one visitor and by all; a tab has two.
MAX_STREAMS_PER_VISITOR = 256
MAX_STREAMS = 2048

MAX_RETRY_SECONDS = 3600.0

_FULL_DISK = (
    "This server's disk is full, so it takes no pictures for now; try again in a few minutes."
)

# Names of sessions and events become keys of Gradio's dictionaries.
_KEY = r"[\w-]{1,64}"
_STATIC = re.compile(
    r"/(assets|static|svelte)/(?!.*\.\.)[\w./@+~-]+"
    r"|/thumbnails/[0-9a-f]{16}\.jpg|/stage/[a-z]+\.js"
    r"|/(gradio_api/)?theme\.css|/(favicon\.ico|robots\.txt|manifest\.json|healthz|readyz|metrics)",
    re.ASCII,
)
# Two patterns, as a single one would look for an address from each `/file=` of a long path.
_FETCHES = re.compile(r"/(?:proxy=|file[=/])", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:https?|ftps?):", re.IGNORECASE)
_FILE = re.compile(r"/gradio_api/file=.+", re.DOTALL)
# The folder of a panel is the hash of its bytes, so what is behind its address never changes.
_PANEL = re.compile(
    r"/gradio_api/file=.*/[0-9a-f]{64}/(original|masked|reconstruction|pasted)\.png", re.DOTALL
)
_STREAM = re.compile(
    rf"/gradio_api/(queue/data|heartbeat/{_KEY}|call/(v2/)?{_KEY}/{_KEY})", re.ASCII
)
_READ = re.compile(r"/|/config/?|/gradio_api/(info|startup-events|app_id)/?")
_CALL = re.compile(
    rf"/gradio_api/(queue/join|cancel|reset|(?P<route>run|api|call|call/v2)/(?P<name>{_KEY}))/?",
    re.ASCII,
)
_UPLOAD = re.compile(r"/gradio_api/upload/?")
_PROGRESS = re.compile(r"/gradio_api/upload_progress")

# Gradio's page has scripts and styles in line, and makes functions out of templates.
_POLICY = "; ".join(
    (
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
        # Any site may embed the page; `_check_origin` keeps their scripts from using it.
        "frame-ancestors *",
    )
)
_HEADERS = {
    b"content-security-policy": _POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"strict-origin-when-cross-origin",
    b"permissions-policy": b"camera=(self), microphone=(), geolocation=(), payment=(), usb=()",
}
# Of files, which visitors have sent: nothing in them runs, whatever they are taken for.
_FILE_HEADERS = {
    **_HEADERS,
    b"content-security-policy": b"default-src 'none'; style-src 'unsafe-inline'; sandbox",
    b"cross-origin-resource-policy": b"same-origin",
}
_PANEL_CACHE = (b"cache-control", b"private, max-age=31536000, immutable")
_PICTURES = (b"image/png", b"image/jpeg", b"image/webp", b"image/gif")

_logger = logging.getLogger(__name__)


class Refusal(Exception):  # noqa: N818  (an answer, not a fault)
    """Ends a request with a status and a sentence."""

    def __init__(
        self,
        status: int,
        text: str,
        retry_seconds: float | None = None,
        *,
        closes: bool = False,
    ) -> None:
        """Refuse.

        Args:
            status: Of HTTP, from 400.
            text: A sentence for the visitor.
            retry_seconds: When it may be tried again.
            closes: Whether nothing else on this connection is answered.
        """
        super().__init__(text)
        self.status = status
        self.headers: Headers = []
        if retry_seconds is not None:
            self.headers.append((b"retry-after", str(math.ceil(retry_seconds)).encode()))
        if closes:
            self.headers.append((b"connection", b"close"))


class RequestGuard:
    """ASGI middleware that lets through what this page needs, and no more of it than is fair.

    Behind it `scope["client"]` is the visitor, whom a trusted proxy may have told.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_upload_bytes: int,
        *,
        proxies: int = 0,
        requests: RateLimiter | None = None,
        uploads: RateLimiter | None = None,
    ) -> None:
        """Guard an application.

        Args:
            app: What answers the requests let through.
            max_upload_bytes: Length of the body of one upload.
            proxies: How many proxies in front tell the truth about who asks.
            requests: Bounds the requests of a visitor; those for static files are free.
            uploads: Bounds the bytes that a visitor uploads.
        """
        self._app = app
        self._max_upload_bytes = max_upload_bytes
        self._proxies = proxies
        self._requests = requests
        self._uploads = uploads
        self._streams: Counter[str] = Counter()
        self._warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            answer = _Answer(send, scope["method"], _path_of(scope))
            try:
                await self._judge(scope, receive, answer)
            except Refusal as refusal:
                await answer.refuse(refusal)
            except Exception as error:
                await answer.fail(error)
        # The page has no web sockets: closing is what a server does that knows none.
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})

    async def _judge(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        path, method = answer.path, answer.method
        _check_framing(scope)
        visitor = self._name_visitor(scope)
        if method in ("GET", "HEAD") and _STATIC.fullmatch(path):
            await self._app(scope, receive, answer.send)
            return
        if self._requests is not None:
            _take(self._requests, visitor, 1, "Too many requests come from your address")
        _check_origin(scope)
        if _names_address(path):
            raise Refusal(403, "This server does not fetch addresses.")
        if method in ("GET", "HEAD") and _STREAM.fullmatch(path):
            _check_key(
                parse_qs(scope.get("query_string", b"").decode("latin-1")).get("session_hash")
            )
            with self._stream(visitor):
                await self._app(scope, receive, answer.send)
        elif method in ("GET", "HEAD") and _READ.fullmatch(path):
            await self._app(scope, receive, answer.send)
        elif method in ("GET", "HEAD") and _FILE.fullmatch(path):
            await self._app(_whole(scope), receive, answer.send)
        elif method == "GET" and _PROGRESS.fullmatch(path):
            # Gradio never forgets the name of an upload whose progress nobody, or only somebody
            # else, asks for; no upload here is long enough to have any.
            await answer.give(200, b'data: {"msg": "done"}\n\n', b"text/event-stream")
        elif method == "POST" and (call := _CALL.fullmatch(path)):
            await self._call(scope, receive, answer, call)
        elif method == "POST" and _UPLOAD.fullmatch(path):
            await self._upload(scope, receive, answer, visitor)
        else:
            raise Refusal(404, "There is nothing here.")

    def _name_visitor(self, scope: Scope) -> str:
        peer = scope.get("client")
        forwarded = b", ".join(v for name, v in scope["headers"] if name == b"x-forwarded-for")
        visitor = visitor_of(
            peer[0] if peer else None, forwarded.decode("latin-1") or None, self._proxies
        )
        scope[PEER], scope["client"] = peer, (visitor, 0)
        if forwarded and not self._warned:
            self._check_proxies(forwarded.count(b",") + 1)
        return visitor

    def _check_proxies(self, entries: int) -> None:
        """Warn, once, where all visitors may count as one; anybody can write the header, though."""
        if self._proxies == 0 or entries < self._proxies:
            self._warned = True
            _logger.warning(
                "a request has %d entries in X-Forwarded-For, and --proxies is %d: if that many "
                "proxies are yours, say so, or all their visitors share the limits of one",
                entries, self._proxies,
            )  # fmt: skip

    @contextmanager
    def _stream(self, visitor: str) -> Iterator[None]:
        """Counts a connection that stays open while it does."""
        if self._streams[visitor] >= MAX_STREAMS_PER_VISITOR:
            raise Refusal(429, "Too many pages of this server are open at your address.", 30)
        if self._streams.total() >= MAX_STREAMS:
            raise Refusal(503, "This server has too many visitors just now; try again soon.", 30)
        self._streams[visitor] += 1
        try:
            yield
        finally:
            self._streams[visitor] -= 1
            if not self._streams[visitor]:
                del self._streams[visitor]

    async def _call(
        self, scope: Scope, receive: Receive, answer: "_Answer", call: re.Match[str]
    ) -> None:
        body = _Body(scope, receive, MAX_BODY_BYTES)
        data = await body.read()
        _check_function(scope["app"], call, _content_of(data))
        waiting: list[Message] = [{"type": "http.request", "body": data, "more_body": False}]

        async def receive_again() -> Message:
            return waiting.pop() if waiting else await body.receive()

        try:
            await self._app(scope, receive_again, answer.send)
        except (KeyError, TypeError) as error:
            # So Gradio ends where values are given by name, but not those that the function has.
            if call["route"] != "call/v2":
                raise
            raise Refusal(400, "This function takes other values.") from error

    async def _upload(
        self, scope: Scope, receive: Receive, answer: "_Answer", visitor: str
    ) -> None:
        def count(length: int) -> None:
            if self._uploads is not None:
                _take(self._uploads, visitor, length, "Too much is uploaded from your address")

        body = _Body(scope, receive, self._max_upload_bytes, count)

        async def send(message: Message) -> None:
            # What the application says of a body it was not given in full is beside the point.
            if body.refusal is None or answer.started:
                await answer.send(message)

        try:
            # Without its name, whose progress is not told.
            await self._app({**scope, "query_string": b""}, body.receive, send)
        except Exception as error:
            if _is_of_full_disk(error):
                _logger.error("the disk is full: an upload is refused")
                raise Refusal(507, _FULL_DISK, 60) from error
            if body.refusal is None:
                raise
        if body.refusal is not None and not answer.started:
            raise body.refusal


class _Body:
    """A request's body, cut off where it gets longer or slower than allowed."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        limit: int,
        count: Callable[[int], None] = lambda length: None,
    ) -> None:
        self._receive = receive
        self._left = limit
        self._count = count
        self._whole = False
        self.refusal: Refusal | None = None
        if _declared_length(scope) > limit:
            raise Refusal(413, "This request is too long.")

    async def receive(self) -> Message:
        """The next part, or a disconnect once it is refused."""
        if self._whole:
            return await self._receive()
        try:
            return await self.part()
        except Refusal as refusal:
            self.refusal = refusal
            return {"type": "http.disconnect"}

    async def part(self) -> Message:
        """The next part.

        Raises:
            Refusal: If it makes the body too long, comes too late or not at all, or is more than
                is fair.
        """
        if self.refusal is not None:
            raise self.refusal
        try:
            message = await asyncio.wait_for(self._receive(), BODY_SECONDS)
        except TimeoutError as error:
            raise Refusal(408, "This request came too slowly.") from error
        if message["type"] == "http.disconnect":
            raise Refusal(400, "This request is not complete.")
        length = len(message.get("body", b""))
        self._left -= length
        if self._left < 0:
            raise Refusal(413, "This request is too long.")
        self._count(length)
        self._whole = not message.get("more_body", False)
        return message

    async def read(self) -> bytes:
        """All of it.

        Raises:
            Refusal: As `part`.
        """
        parts = []
        while not self._whole:
            parts.append((await self.part()).get("body", b""))
        return b"".join(parts)


class _Answer:
    """What is sent back: with the headers that tell browsers what not to do with it."""

    def __init__(self, send: Send, method: str, path: str) -> None:
        self._send = send
        self.method = method
        self.path = path
        self.started = False

    async def send(self, message: Message) -> None:
        """Pass a part of the application's answer on.

        Raises:
            Refusal: In place of one that repeats what the visitor has sent.
        """
        if message["type"] == "http.response.start" and message["status"] == 422:
            raise Refusal(422, "This request has not the values that it should have.")
        await self._pass(message)

    async def _pass(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = list(message.get("headers", ()))
            headers = _with_policy(headers, _FILE.fullmatch(self.path))
            if message["status"] == 200 and _PANEL.fullmatch(self.path):
                headers.append(_PANEL_CACHE)
            message = {**message, "headers": headers}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with a sentence: to a call, in the form in which Gradio's clients look for it."""
        body, kind = str(refusal).encode(), b"text/plain; charset=utf-8"
        if self.method == "POST":
            body, kind = json.dumps({"detail": str(refusal)}).encode(), b"application/json"
        await self.give(refusal.status, body, kind, refusal.headers)

    async def fail(self, error: Exception) -> None:
        """Answer where the application failed: with an id, under which the log has the rest.

        The server itself would close the connection, which a client may be using again by then.

        Raises:
            Exception: The error, if it leaves an answer in pieces.
        """
        if not self.started:
            error_id = uuid.uuid4().hex[:8]
            _logger.error("request failed, id %s", error_id, exc_info=error)
            await self.refuse(Refusal(500, f"Something went wrong here; its id is {error_id}."))
        elif isinstance(error.__cause__, HTTPException):
            # Gradio says in the stream that it knows no such session or event, and then fails.
            await self._send({"type": "http.response.body", "body": b""})
        else:
            raise error

    async def give(self, status: int, body: bytes, kind: bytes, more: Sequence[Pair] = ()) -> None:
        """Answer in Gradio's place."""
        headers = [
            (b"content-type", kind),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            *more,
        ]
        await self._pass({"type": "http.response.start", "status": status, "headers": headers})
        await self._pass({"type": "http.response.body", "body": body})


def _path_of(scope: Scope) -> str:
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _names_address(path: str) -> bool:
    """Whether a path asks for a file elsewhere."""
    route = _FETCHES.search(path)
    if route is None:
        return False
    return "proxy" in route[0].lower() or _ADDRESS.search(path, route.end()) is not None


def _take(limiter: RateLimiter, visitor: str, amount: float, complaint: str) -> None:
    seconds = limiter.take(visitor, amount)
    if seconds > 0:
        # For ever, if it is more than a visitor may take at once.
        wait = math.ceil(min(seconds, MAX_RETRY_SECONDS))
        unit = "second" if wait == 1 else "seconds"
        raise Refusal(429, f"{complaint}; try again in {wait} {unit}.", wait)


def _is_of_full_disk(error: Exception) -> bool:
    # By name: not every system has quotas.
    name = errno.errorcode.get(getattr(error, "errno", None) or 0)
    return isinstance(error, OSError) and name in ("ENOSPC", "EDQUOT")


def _check_origin(scope: Scope) -> None:
    """Other sites may link to and embed the page, but their scripts and forms may not use it.

    Gradio lets them, with the visitor's cookies: those open a private Space, and it is the
    visitor's share that is used up, whether the other site may read the answer or not.
    """
    given = dict(scope["headers"])
    foreign = given.get(b"sec-fetch-site") in (b"cross-site", b"same-site")
    if foreign and (given.get(b"sec-fetch-mode") == b"cors" or scope["method"] == "POST"):
        raise Refusal(403, "This server does not answer the scripts of other sites.")


def _whole(scope: Scope) -> Scope:
    """A request for all of a file, not compressed.

    Gradio sends a part of one with the headers of the request, and an upload may be large.
    """
    left_out = (b"range", b"accept-encoding")
    return {**scope, "headers": [pair for pair in scope["headers"] if pair[0] not in left_out]}


def _check_framing(scope: Scope) -> None:
    """A proxy that goes by the other of both takes what follows for another visitor's request."""
    if {name for name, _ in scope["headers"]} >= {b"content-length", b"transfer-encoding"}:
        raise Refusal(400, "A request has a length or comes in chunks, not both.", closes=True)


def _content_of(data: bytes) -> dict[str, Any]:
    """A call's JSON body, judged."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "The body of this request is not JSON.") from error
    if not isinstance(content, dict) or _depth(content) > MAX_JSON_DEPTH:
        raise Refusal(400, "The body of this request has not the form that it should have.")
    try:
        # Python reads these, but Gradio cannot write an answer that repeats them.
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise Refusal(400, "NaN, Infinity and halves of characters are not JSON.") from error
    for name in ("session_hash", "event_id"):
        _check_key([content[name]] if content.get(name) is not None else None)
    return content


def _check_function(app: Any, call: re.Match[str], content: dict[str, Any]) -> None:
    """A function, by its number or else by its name, is one of the page: Gradio takes it to be."""
    functions, number = app.get_blocks().fns, content.get("fn_index")
    known = number is None or (isinstance(number, int) and number in functions)
    if call["name"] and (number is None or call["route"] in ("call", "call/v2")):
        known = known and call["name"] in {function.api_name for function in functions.values()}
    if not known:
        raise Refusal(404, "This page has no such function.")


def _depth(content: object) -> int:
    """How deep JSON is nested, counted no further than one more than is allowed."""
    level, depth = [content], 0
    while level and depth <= MAX_JSON_DEPTH:
        depth += 1
        level = [
            value
            for item in level
            if isinstance(item, dict | list)
            for value in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def _check_key(values: list[Any] | None) -> None:
    for value in values or ():
        if not isinstance(value, str) or not re.fullmatch(_KEY, value, re.ASCII):
            raise Refusal(400, "A session's name is up to 64 letters, digits, - and _.")


def _with_policy(headers: Headers, file: object) -> Headers:
    policy = _FILE_HEADERS if file else _HEADERS
    headers = [pair for pair in headers if pair[0].lower() not in policy]
    if file and dict(headers).get(b"content-type") not in _PICTURES:
        ours = (b"content-type", b"content-disposition")
        headers = [pair for pair in headers if pair[0].lower() not in ours]
        headers += [
            (b"content-type", b"application/octet-stream"),
            (b"content-disposition", b"attachment"),
        ]
    return headers + list(policy.items())


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0
