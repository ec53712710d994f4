"""Whether the server is alive and ready, and its numbers, for those who run it.

`/healthz` says whether the process should go on living, `/readyz` whether visitors should be sent
to it, `/metrics` gives Prometheus its numbers. All three are answered without touching a model.

Wiring:

    health = Health(alive, ready, metrics, os.environ.get("MAE_METRICS_TOKEN", ""))
    launch(app_kwargs={"routes": routes(health), "middleware": [...]})

Who reads the numbers knows how busy the server is, so they are not for everyone. With a token set,
whoever sends `Authorization: Bearer TOKEN` gets them and nobody else; without one, only who
connects from this machine or its private network directly, that is without a proxy's header. A
proxy that adds none of `FORWARDED_HEADERS` must not pass `/metrics` on.
"""

import hmac
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from app.ops.metrics import Metrics

# Any of them says that the request comes from further away than its connection.
FORWARDED_HEADERS = (
    "forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip",
)  # fmt: skip

# Where the guard keeps who is at the other end of the connection: `scope["client"]` is the
# visitor's address there, which a proxy may have told.
PEER = "mae.peer"

_HEADERS = {"cache-control": "no-store"}


@dataclass(frozen=True)
class Health:
    """What the routes ask.

    Attributes:
        alive: None, or why the process should be restarted: a few words, without paths.
        ready: None, or why no visitors should be sent here: likewise.
        metrics: The numbers.
        metrics_token: What a reader of the numbers must know; empty for the rule about peers.
    """

    alive: Callable[[], str | None]
    ready: Callable[[], str | None]
    metrics: Metrics
    metrics_token: str = ""


def routes(health: Health) -> list[Route]:
    """`/healthz`, `/readyz` and `/metrics`, for GET and HEAD."""

    async def metrics(request: Request) -> Response:
        if not _may_read(request, health.metrics_token):
            return _answer("The numbers of this server are not public.", 403)
        body, content_type = health.metrics.exposition()
        return Response(body, headers=_HEADERS, media_type=content_type)

    return [
        Route("/healthz", _reporting(health.alive)),
        Route("/readyz", _reporting(health.ready)),
        Route("/metrics", metrics),
    ]


def _reporting(reason: Callable[[], str | None]) -> Callable[[Request], Response]:
    async def report(request: Request) -> Response:
        trouble = reason()
        return _answer("ok", 200) if trouble is None else _answer(trouble, 503)

    return report  # type: ignore[return-value]


def _answer(text: str, status: int) -> Response:
    return PlainTextResponse(f"{text}\n", status, headers=_HEADERS)


def _may_read(request: Request, token: str) -> bool:
    if token:
        given = request.headers.get("authorization", "")
        return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())
    return not any(name in request.headers for name in FORWARDED_HEADERS) and _is_near(request)


def _is_near(request: Request) -> bool:
    peer = request.scope.get(PEER, request.scope.get("client"))
    try:
        return ipaddress.ip_address(peer[0] if peer else "").is_private
    except ValueError:
        return False
