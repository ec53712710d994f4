"""One service and one running page for all tests that only ask."""

from collections.abc import Iterator

import pytest

from app.service import ReconstructionService
from tests.app.serving import served, small_service


@pytest.fixture(scope="session")
def service() -> ReconstructionService:
    return small_service()


@pytest.fixture(scope="session")
def page_url(service: ReconstructionService) -> Iterator[str]:
    with served(service) as url:
        yield url
