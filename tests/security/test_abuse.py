"""Every line of the abuse table: what the visitor is told, and that the page goes on."""

import itertools
import re

import pytest

from tests.security.abuse_table import Abuse, abuses
from tests.security.attacker import GOOD, Attacker, Decoy
from tests.security.internals import internals_in

ABUSES = list(abuses())

_seeds = itertools.count(100)


@pytest.fixture(scope="module")
def good_path(page_url: str) -> str:
    visitor = Attacker(page_url)
    path = visitor.upload(GOOD)
    visitor.close()
    return path


@pytest.mark.parametrize("abuse", ABUSES, ids=[abuse.name for abuse in ABUSES])
def test_abuse_is_answered_and_the_page_goes_on(
    visitor: Attacker, target: Decoy, good_path: str, abuse: Abuse
) -> None:
    outcome = abuse.send(visitor, target.url)
    assert re.match(abuse.outcome, str(outcome))
    assert not internals_in(outcome.text)
    assert target.connections == 0
    # Of a new seed, so that it is computed.
    assert visitor.good(good_path, next(_seeds)).status == "picture"
