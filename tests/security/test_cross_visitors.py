"""What one visitor may learn of, or do to, another."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

import pytest

from tests.security.attacker import CONTROLS, GOOD, Attacker, Outcome
from tests.security.encoded_pictures import encoded_pictures

SECRET = encoded_pictures()["jpeg"] + b"only this visitor has this file"


def read(visitor: Attacker, path: str) -> Outcome:
    return visitor.request("GET", f"/gradio_api/file={path}")


def panels(outcome: Outcome) -> list[str]:
    """Paths of the panels in an answer."""
    return [panel["path"] for panel in json.loads(outcome.text)[:4]]


def seed_of(outcome: Outcome) -> int:
    return int(json.loads(outcome.text)[4]["seed"])


def test_an_upload_lies_under_a_name_that_its_content_gives(visitor: Attacker) -> None:
    """256 bits, of the content and of a number that this installation drew for itself."""
    first, second = visitor.upload(SECRET), visitor.upload(SECRET + b"!")
    folders = [PurePosixPath(path).parent.name for path in (first, second)]
    assert all(re.fullmatch("[0-9a-f]{64}", folder) for folder in folders)
    assert len(set(folders)) == 2


def test_nobody_reads_an_upload_without_its_name(visitor: Attacker, other: Attacker) -> None:
    path = PurePosixPath(visitor.upload(SECRET))
    folder = path.parent
    near = folder.with_name(folder.name[:-1] + ("0" if folder.name[-1] != "0" else "1"))
    for guess in (near / path.name, folder, folder / "*", folder.parent, f"{folder}/", near):
        assert read(other, str(guess)).status in ("403", "404")
    assert read(other, str(path)).status == "200"


def test_nobody_reads_panels_without_their_name(visitor: Attacker, other: Attacker) -> None:
    path = PurePosixPath(panels(visitor.picture(SECRET))[2])
    assert re.fullmatch("[0-9a-f]{64}", path.parent.name)
    assert read(other, str(path)).status == "200"
    for guess in (path.parent, path.parent.parent, path.parent.with_name("0" * 64) / path.name):
        assert read(other, str(guess)).status in ("403", "404")


def test_events_are_read_under_their_own_name_only(visitor: Attacker, other: Attacker) -> None:
    path = "/gradio_api/call/reconstruct"
    call = {"data": [visitor.reference(visitor.upload(SECRET)), 0.75, 5, *CONTROLS]}
    event = visitor.http.post(path, json=call).json()["event_id"]
    assert re.fullmatch("[0-9a-f]{32}", event)
    for guess in ("0" * 32, event[:-1] + ("0" if event[-1] != "0" else "1"), event[:8]):
        assert other.events(f"{path}/{guess}").status != "picture"
    assert visitor.events(f"{path}/{event}").status == "picture"


@pytest.mark.parametrize("session", ["", "*", "visitor", "null", "0"])
def test_another_session_has_none_of_ones_events(other: Attacker, session: str) -> None:
    _, lines = other.stream(f"/gradio_api/queue/data?session_hash={session}")
    assert "process_completed" not in "".join(lines)


def test_nobody_cancels_what_he_cannot_name(visitor: Attacker, other: Attacker) -> None:
    path = visitor.upload(SECRET)

    def cancel(number: int) -> None:
        for route in ("cancel", "reset"):
            body: dict[str, Any] = {
                "session_hash": "visitor", "fn_index": number, "event_id": f"{number:032x}",
            }  # fmt: skip
            other.request("POST", f"/gradio_api/{route}", json=body)

    with ThreadPoolExecutor(4) as pool:
        pool.map(cancel, range(30))
        answers = [visitor.good(path, seed) for seed in range(10)]
    assert [seed_of(answer) for answer in answers] == list(range(10))


def test_everyone_gets_the_answer_to_his_own_request(page_url: str) -> None:
    visitors = [Attacker(page_url) for _ in range(8)]
    pictures = [GOOD, SECRET] * 4

    def ask(number: int) -> list[tuple[int, list[str]]]:
        path = visitors[number].upload(pictures[number])
        answers = [visitors[number].good(path, 1000 + 10 * number + i) for i in range(4)]
        return [(seed_of(answer), panels(answer)) for answer in answers]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    for visitor in visitors:
        visitor.close()
    for number, given in enumerate(answers):
        assert [seed for seed, _ in given] == [1000 + 10 * number + i for i in range(4)]
    originals = [{paths[0] for _, paths in given} for given in answers]
    assert originals[0] == originals[2]
    assert originals[0].isdisjoint(originals[1])


def test_a_shared_answer_holds_nothing_of_who_asked_first(
    visitor: Attacker, other: Attacker
) -> None:
    first = visitor.picture(SECRET, "my-private-name.jpg")
    second = other.picture(SECRET, "another.jpg")
    assert panels(first) == panels(second)
    assert "my-private-name" not in first.text + second.text


def test_pages_do_not_lie_in_each_others_names(visitor: Attacker) -> None:
    """A file that is no picture is never shown within the page's own address."""
    page = b"<!DOCTYPE html><script>alert(1)</script>"
    for name in ("page.html", "drawing.svg", "page.xhtml", "script.js", "page.png"):
        path = visitor.upload(page, name)
        answer = visitor.http.get(f"/gradio_api/file={path}")
        assert answer.status_code == 200
        shown = answer.headers["content-type"]
        harmless = shown == "application/octet-stream" or shown.startswith("image/png")
        assert harmless, shown
        if not name.endswith(".png"):
            assert answer.headers["content-disposition"].startswith("attachment")
