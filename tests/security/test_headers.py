"""What browsers are told about every answer, so that nothing a visitor sends runs as the page."""

import httpx
import pytest

from tests.security.attacker import GOOD, Attacker


def policy(answer: httpx.Response) -> dict[str, list[str]]:
    """The Content-Security-Policy by directive."""
    parts = [part.split() for part in answer.headers["content-security-policy"].split(";")]
    return {part[0]: part[1:] for part in parts}


@pytest.mark.parametrize("path", ["/", "/config", "/nothing", "/gradio_api/file=nothing"])
def test_every_answer_says_how_it_is_to_be_taken(visitor: Attacker, path: str) -> None:
    answer = visitor.http.get(path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    told = policy(answer)
    assert told.get("object-src", told["default-src"]) == ["'none'"]


def test_the_page_loads_from_itself_only(visitor: Attacker) -> None:
    told = policy(visitor.http.get("/"))
    assert told["default-src"] == told["connect-src"] == ["'self'"]
    for name, sources in told.items():
        assert "*" not in sources or name == "frame-ancestors"
        assert "http:" not in sources


def test_any_site_may_embed_the_page(visitor: Attacker) -> None:
    answer = visitor.http.get("/")
    assert policy(answer)["frame-ancestors"] == ["*"]
    assert "x-frame-options" not in answer.headers


def test_in_an_uploaded_file_nothing_runs(visitor: Attacker) -> None:
    path = visitor.upload(GOOD, "picture.png")
    told = policy(visitor.http.get(f"/gradio_api/file={path}"))
    assert told["default-src"] == ["'none'"]
    assert "sandbox" in told


def test_foreign_pages_get_no_answers(visitor: Attacker) -> None:
    answer = visitor.http.get("/config", headers={"origin": "http://evil.example"})
    assert answer.headers.get("access-control-allow-origin") not in ("http://evil.example", "*")
