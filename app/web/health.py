"""`/healthz` (restart the process?), `/readyz` (send visitors?) and `/metrics` (for Prometheus).

None of them touches a model. Metrics tell how busy the server is, so they are not public: with a
token they are for `Authorization: Bearer TOKEN` only; without one, for connections from this
machine or its private network that come through no proxy. A proxy that adds none of
`FORWARDED_HEADERS` must not pass `/metrics` on.
"""

import hmac
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from app.ops.metrics import Metrics

FORWARDED_HEADERS = (
    "forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip",
)  # fmt: skip

# Where the guard keeps the other end of the connection: `scope["client"]` is the visitor there.
PEER = "mae.peer"

_HEADERS = {"cache-control": "no-store"}


@dataclass(frozen=True)
class Health:
    """What the routes report.

    Attributes:
        alive: None, or why the process should be restarted: a few words, without paths.
        ready: None, or why no visitors should be sent here: likewise.
        metrics: The numbers.
        metrics_token: What a reader of the numbers must know, if anything.
    """

    alive: Callable[[], str | None]
    ready: Callable[[], str | None]
    metrics: Metrics
    metrics_token: str = ""


def routes(health: Health) -> list[Route]:
    """`/healthz`, `/readyz` and `/metrics`, for GET and HEAD."""

    async def alive(request: Request) -> Response:
        return _report(health.alive())

    async def ready(request: Request) -> Response:
        return _report(health.ready())

    async def metrics(request: Request) -> Response:
        if not _may_read(request, health.metrics_token):
            return PlainTextResponse("Metrics are not public.\n", 403, _HEADERS)
        body, content_type = health.metrics.exposition()
        return Response(body, headers=_HEADERS, media_type=content_type)

    return [Route("/healthz", alive), Route("/readyz", ready), Route("/metrics", metrics)]


def _report(trouble: str | None) -> Response:
    return PlainTextResponse(f"{trouble or 'ok'}\n", 503 if trouble else 200, _HEADERS)


def _may_read(request: Request, token: str) -> bool:
    if token:
        given = request.headers.get("authorization", "")
        return hmac.compare_digest(given.encode(), f"Bearer {token}".encode())
    if any(name in request.headers for name in FORWARDED_HEADERS):
        return False
    peer = request.scope.get(PEER, request.scope.get("client"))
    try:
        return ipaddress.ip_address(peer[0] if peer else "").is_private
    except ValueError:
        return False
