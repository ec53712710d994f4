"""What the web server refuses before Gradio sees it.

Gradio fetches web addresses for its clients (`/gradio_api/file=http…`, `/gradio_api/proxy=…`)
and reads JSON bodies of any size. This demo needs neither: a server that fetches for
strangers reaches what only it may reach, and a body of any size fills its memory.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# Request bodies other than uploads are a few slider values and a file's address.
MAX_BODY_BYTES = 256 * 1024

_FETCHES = re.compile(r"/(?:proxy=|file(?:=|/).*?(?:https?|ftps?):)", re.IGNORECASE | re.DOTALL)
_UPLOAD = re.compile(r"/upload/?$")


class RequestGuard:
    """ASGI middleware that answers 403 to fetching and 413 to bodies that are too long."""

    def __init__(self, app: ASGIApp, max_upload_bytes: int) -> None:
        """Guard an application.

        Args:
            app: What answers the requests let through.
            max_upload_bytes: Length of the body of one upload.
        """
        self._app = app
        self._max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif _FETCHES.search(scope["path"]):
            await _refuse(send, 403, b"This server does not fetch addresses.")
        else:
            await self._pass_on(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._max_upload_bytes if _UPLOAD.search(scope["path"]) else MAX_BODY_BYTES
        body = _LimitedBody(receive, limit)
        answered = False

        async def send_once(message: Message) -> None:
            nonlocal answered
            # What the application says of a body it was not given in full is beside the point.
            if not body.too_long or answered:
                answered = True
                await send(message)

        if _declared_length(scope) > limit:
            await _refuse(send, 413, b"This request is too long.")
            return
        try:
            await self._app(scope, body.receive, send_once)
        except Exception:
            if not body.too_long:
                raise
        if body.too_long and not answered:
            await _refuse(send, 413, b"This request is too long.")


class _LimitedBody:
    """A request's body, cut off where it gets longer than allowed."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._left = limit
        self.too_long = False

    async def receive(self) -> Message:
        """The next part, or a disconnect from the limit on."""
        if self.too_long:
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                self.too_long = True
                return {"type": "http.disconnect"}
        return message


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


async def _refuse(send: Send, status: int, text: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
