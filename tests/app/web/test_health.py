from collections.abc import Mapping

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from app.ops.metrics import Metrics
from app.web.health import PEER, Health, routes
from tests.app.web.test_guard import Receive, Scope, Send

PRIVATE = "10.1.2.3"


def client(
    alive: str | None = None, ready: str | None = None, token: str = "", peer: str = PRIVATE
) -> TestClient:
    health = Health(lambda: alive, lambda: ready, Metrics(), token)
    return TestClient(Starlette(routes=routes(health)), client=(peer, 1))


def numbers(peer: str, headers: Mapping[str, str] | None = None, token: str = "") -> int:
    """Status of the answer to who asks for the numbers."""
    return client(token=token, peer=peer).get("/metrics", headers=headers).status_code


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_all_is_well(path: str) -> None:
    answer = client().get(path)
    assert (answer.status_code, answer.text) == (200, "ok\n")
    assert answer.headers["cache-control"] == "no-store"
    head = client().head(path)
    assert (head.status_code, head.text) == (200, "")


def test_what_is_not_well_is_said() -> None:
    asked = client(alive="3 workers hang", ready="stopping")
    dead, unready = asked.get("/healthz"), asked.get("/readyz")
    assert (dead.status_code, dead.text) == (503, "3 workers hang\n")
    assert (unready.status_code, unready.text) == (503, "stopping\n")
    assert asked.head("/readyz").status_code == 503


@pytest.mark.parametrize("peer", ["127.0.0.1", PRIVATE, "192.168.0.9", "::1", "fd00::1"])
def test_numbers_are_for_those_near(peer: str) -> None:
    assert numbers(peer) == 200


@pytest.mark.parametrize("peer", ["8.8.8.8", "2001:4860:4860::8888", "unknown", "", "localhost"])
def test_numbers_are_not_for_others(peer: str) -> None:
    assert numbers(peer) == 403


@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "X-Forwarded-Host", "Via"])
def test_numbers_are_not_for_who_comes_through_a_proxy(name: str) -> None:
    assert numbers(PRIVATE, {name: PRIVATE}) == 403


@pytest.mark.parametrize("given", [b"", b"Bearer", b"Bearer wrong", b"secret", b"\xc3\xa4"])
def test_numbers_are_for_who_knows_the_token(given: bytes) -> None:
    # Whoever has set a token means it, wherever the request comes from.
    asked = client(token="secret", peer="127.0.0.1")
    assert asked.get("/metrics", headers={b"Authorization": given}).status_code == 403
    assert numbers("8.8.8.8", {"Authorization": "Bearer secret"}, "secret") == 200


def test_the_peer_counts_and_not_who_the_visitor_is_said_to_be() -> None:
    app = Starlette(routes=routes(Health(lambda: None, lambda: None, Metrics())))

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope | {PEER: ("8.8.8.8", 1), "client": (PRIVATE, 0)}, receive, send)

    assert TestClient(guarded).get("/metrics").status_code == 403
