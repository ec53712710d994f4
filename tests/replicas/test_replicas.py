"""Two replicas of `python -m app` behind nginx, configured by docs/nginx.conf.template.

Skipped where there is no nginx, unless MAE_REQUIRE_NGINX=1.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest

from app.page.files import MAX_BYTES
from app.service import ReconstructionService
from mae_core.weights.formats import save_weights
from tests.app.serving import small_reconstructor
from tests.replicas.fleet import NGINX, Fleet, Replica, Visitor, fleet

SERVICE = ReconstructionService({"mine": small_reconstructor("mine")})


@pytest.fixture(scope="module")
def behind_nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    if NGINX is None:
        if os.environ.get("MAE_REQUIRE_NGINX") == "1":
            pytest.fail("MAE_REQUIRE_NGINX=1 but there is no nginx")
        pytest.skip("there is no nginx")
    folder = tmp_path_factory.mktemp("replicas")
    save_weights(folder / "mine.safetensors", small_reconstructor().model, record={})
    with fleet(folder / "mine.safetensors", folder) as running:
        yield running


def everybody(behind_nginx: Fleet) -> list[Visitor]:
    """Visitors who have opened the page and sent a picture; several on each replica."""
    visitors: list[Visitor] = []
    while any(len(of(replica, visitors, behind_nginx)) < 3 for replica in behind_nginx.replicas):
        assert len(visitors) < 120, "nginx sends everybody to one replica"
        visitor = behind_nginx.visitor(len(visitors), keeps_cookies=len(visitors) % 3 > 0)
        visitor.open_page()
        visitor.upload()
        visitors.append(visitor)
    return visitors


def of(replica: Replica, visitors: list[Visitor], behind_nginx: Fleet) -> list[Visitor]:
    """The visitors whose last answer came from a replica."""
    served = behind_nginx.served()
    return [visitor for visitor in visitors if served[visitor.name][-1] == replica.address]


def check_answers(visitor: Visitor, seeds: range) -> None:
    """Each answer is that of this visitor's own picture and seed."""
    for seed in seeds:
        panels = visitor.panels(seed)
        expected = SERVICE.reconstruct(visitor.picture, 0.75, seed, model="mine")
        for panel, wanted in zip(panels, expected.panels.values(), strict=True):
            difference = np.asarray(panel, np.int16) - np.asarray(wanted, np.int16)
            # Others may have shared the forward pass; sums in another order round otherwise.
            assert np.abs(difference).max() <= 1


def test_a_fleet_that_loses_one_replica(behind_nginx: Fleet) -> None:
    visitors = everybody(behind_nginx)
    with ThreadPoolExecutor(len(visitors)) as pool:
        list(pool.map(lambda visitor: check_answers(visitor, range(3)), visitors))
    served = behind_nginx.served()
    for visitor in visitors:
        assert len(set(served[visitor.name])) == 1, "a visitor was sent from one to the other"

    lost, kept = behind_nginx.replicas
    orphans = of(lost, visitors, behind_nginx)
    others = of(kept, visitors, behind_nginx)
    _lose(lost, others)
    # A replica of another machine would not have this one's files; here they are taken away.
    for visitor in orphans[::2]:
        Path(visitor.uploaded).unlink()
        kind, data = visitor.ask(seed=9)
        assert kind == "error"
        assert "no longer on the server" in str(data)
        visitor.upload()
    for visitor in orphans:
        check_answers(visitor, range(9, 11))
    assert not of(lost, visitors, behind_nginx)

    lost.start()
    lost.wait_until_served()
    deadline, divided = time.monotonic() + 60, Counter[str]()
    while not of(lost, orphans, behind_nginx):
        assert time.monotonic() < deadline, "nothing is sent to the replica that came back"
        for visitor in orphans:
            kind, data = visitor.ask(seed=20)
            # An answer takes two requests, and nginx may take the replica back between them.
            assert kind == "complete" or (kind, data) == ("error", "404: Not Found")
            divided[visitor.name] += kind == "error"
        time.sleep(0.5)
    assert max(divided.values()) <= 1
    for visitor in orphans:
        check_answers(visitor, range(20, 21))
    served = behind_nginx.served()
    for visitor in others:
        assert set(served[visitor.name]) == {kept.address}


def _lose(replica: Replica, others: list[Visitor]) -> None:
    """Kill a replica while the visitors of the other one are being answered."""
    begun = threading.Barrier(len(others) + 1, timeout=60)

    def go_on(visitor: Visitor) -> None:
        begun.wait()
        check_answers(visitor, range(3, 9))

    with ThreadPoolExecutor(len(others)) as pool:
        answered = [pool.submit(go_on, visitor) for visitor in others]
        begun.wait()
        replica.kill()
        for future in answered:
            future.result()


def test_visitors_cannot_say_who_they_are_or_read_the_numbers(behind_nginx: Fleet) -> None:
    cookies = {"mae_visitor": "chosen by hand"}
    with httpx.Client(base_url=behind_nginx.url, cookies=cookies) as client:
        assert client.get("/metrics").status_code == 404
        client.get("/config")
    assert not any("chosen" in name for name in behind_nginx.served())


def test_too_long_an_upload_is_refused_in_words(behind_nginx: Fleet) -> None:
    body = {"files": ("big.png", bytes(MAX_BYTES + 100_000), "image/png")}
    answer = httpx.post(f"{behind_nginx.url}/gradio_api/upload", files=body, timeout=60)
    assert (answer.status_code, answer.text) == (413, "This request is too long.\n")


def test_a_stream_cut_by_the_loss_ends(behind_nginx: Fleet) -> None:
    visitor = behind_nginx.visitor(200)
    visitor.open_page()
    (replica,) = (r for r in behind_nginx.replicas if of(r, [visitor], behind_nginx))
    with visitor.client.stream("GET", "/gradio_api/heartbeat/somebody") as stream:
        replica.kill()
        with suppress(httpx.RemoteProtocolError):
            stream.read()
    # What was asked of a replica that is gone is unknown to the other, which says so at once and
    # breaks off.
    answer = ""
    unknown = f"/gradio_api/call/reconstruct/{0:032}"
    with suppress(httpx.RemoteProtocolError), visitor.client.stream("GET", unknown) as stream:
        for part in stream.iter_text():
            answer += part
    assert "event: error" in answer
    assert "Traceback" not in answer


def test_nobody_left_is_said_in_words(behind_nginx: Fleet) -> None:
    for replica in behind_nginx.replicas:
        replica.kill()
    answer = httpx.get(behind_nginx.url, timeout=60)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "10"
    assert answer.text.startswith("No replica of the page answers.")
