"""One running page for the tests that attack it, and an address that it must never fetch."""

from collections.abc import Iterator

import pytest

from tests.app.serving import served, small_service
from tests.security.attacker import Attacker, Decoy, decoy


@pytest.fixture(scope="package")
def page_url() -> Iterator[str]:
    with served(small_service()) as url:
        yield url


@pytest.fixture(scope="package")
def target() -> Iterator[Decoy]:
    with decoy() as server:
        yield server


@pytest.fixture
def visitor(page_url: str) -> Iterator[Attacker]:
    visitor = Attacker(page_url)
    yield visitor
    visitor.close()


@pytest.fixture
def other(page_url: str) -> Iterator[Attacker]:
    visitor = Attacker(page_url)
    yield visitor
    visitor.close()
