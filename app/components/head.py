"""A script that runs before Gradio's own.

What Gradio is given for the page's head it puts there too late, when it has chosen a language.
"""

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PLACE = b"<head>"


class FirstScript:
    """ASGI middleware that puts a script first into the head of the page."""

    def __init__(self, app: ASGIApp, script: str) -> None:
        """Wrap an application.

        Args:
            app: What answers.
            script: JavaScript.
        """
        self._app = app
        self._head = _PLACE + f"<script>{script}</script>".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        start: Message | None = None

        async def send_on(message: Message) -> None:
            nonlocal start
            starts = message["type"] == "http.response.start"
            headers = dict(message["headers"]) if starts else {}
            if headers.get(b"content-type", b"").startswith(b"text/html"):
                # Its length is known when the script is in.
                start = message
                return
            if start is not None:
                body = message["body"]
                message = {**message, "body": body.replace(_PLACE, self._head, 1)}
                await send(_longer(start, len(message["body"]) - len(body)))
                start = None
            await send(message)

        await self._app(scope, receive, send_on)


def _longer(start: Message, more: int) -> dict[str, Any]:
    """The beginning of an answer whose body has grown."""
    headers = [
        (name, str(int(value) + more).encode() if name == b"content-length" else value)
        for name, value in start["headers"]
    ]
    return {**start, "headers": headers}
