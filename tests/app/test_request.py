"""Requests as JSON; what values are allowed, `test_api.py` and `test_service.py` say."""

import json
from typing import Any

import pytest

from app.request import Mask, Request, parse
from mae_core import MAEError
from mae_core.errors import ConfigError

REQUESTS = [
    Request("digest", Mask(), "crop", "mae-tiny", None, "estimated"),
    Request("digest", Mask("grid", 0.5, 2**63 - 1), "whole", "other", 448, "answer"),
    Request("digest", Mask(rows=("0110", "1001")), "squash", "mae-tiny", None, "estimated"),
]


def read(data: Any) -> Request:
    return Request.from_json(data, ["mae-tiny", "other"], 1024)


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_a_request_is_the_same_after_json(request_: Request) -> None:
    written = json.loads(json.dumps(request_.to_json()))
    assert written["v"] == 1
    assert read(written) == request_


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"v": 2}, "of version 2"),
        ({"v": None}, "of version None"),
        ({"v": True}, "of version True"),
        ({"speed": 3}, "no 'speed'; leave it out"),
        ({"mask": {"ratio": 0.5, "seed": 0, "fit": "whole"}}, "no 'fit'; leave it out"),
        ({"mask": None}, "not complete"),
        ({"picture": 5}, "not complete"),
        ({"model": "secret"}, "choose mae-tiny, other"),
        ({"fit": "stretch"}, "choose crop, squash, whole"),
        ({"image_size": 2048}, "up to 1024"),
        ({"mask": {"strategy": "random", "ratio": 7, "seed": 0}}, "from 0.05 to 0.95"),
        ({"mask": {"strategy": "random", "ratio": 0.5}}, "seed is None"),
        ({"mask": {"rows": ["01", "x"]}}, "give rows"),
        ({"mask": {"rows": ["01", "0"]}}, "rows of equally many"),
        ({"mask": {"rows": 7}}, "give rows"),
        ({"mask": {"rows": [7, None]}}, "give rows"),
        ({"mask": {"drawing": "digest"}}, "give rows of 0 and 1"),
    ],
    ids=str,
)
def test_settings_that_are_not_ours_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MAEError, match=words):
        read({**REQUESTS[0].to_json(), **changes})


def test_a_drawing_is_known_by_its_digest_and_shares_no_pass() -> None:
    values = {"image": b"picture", "mask": b"drawing"}
    request = parse(values, "mae-tiny", 1024, lambda source: f"of {source!r}")
    assert request.mask == Mask(drawing="of b'drawing'")
    assert request.picture == "of b'picture'"
    assert request.batch_key(14) != request.batch_key(14)
    with pytest.raises(ConfigError, match="drawn mask"):
        read(request.to_json() | {"model": "other"})
