"""What goes over the wire: how much, compressed or not, and what browsers keep of it."""

import io
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from app.examples import examples
from app.gradio_seam import LOCALE_SCRIPT
from app.page.events import PANELS
from app.service import ReconstructionService
from app.settings import AppSettings
from tests.app.serving import HeldReconstructor, example, served

ENCODINGS = "gzip, deflate, br, zstd"


@pytest.fixture(scope="module")
def http(page_url: str) -> Iterator[httpx.Client]:
    with browser(page_url) as client:
        yield client


def browser(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"accept-encoding": ENCODINGS}, timeout=60)


def wire_bytes(http: httpx.Client, path: str, encodings: str) -> tuple[httpx.Response, int]:
    """An answer without its body, and the body's length as it was sent."""
    with http.stream("GET", path, headers={"accept-encoding": encodings}) as answer:
        return answer, sum(map(len, answer.iter_raw()))


def uploaded(http: httpx.Client, name: str, data: bytes) -> str:
    return str(http.post("/gradio_api/upload", files={"files": (name, data)}).json()[0])


def call_of(path: str, seed: int) -> list[Any]:
    picture = {"path": path, "meta": {"_type": "gradio.FileData"}}
    return [picture, 0.75, seed, "random", "crop", "small-random", None, "estimated", None]


@pytest.mark.parametrize("encodings", ["gzip", ENCODINGS])
@pytest.mark.parametrize("path", ["/", "/config"])
def test_the_page_is_small_on_the_wire(http: httpx.Client, path: str, encodings: str) -> None:
    answer, length = wire_bytes(http, path, encodings)
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["vary"] == "Accept-Encoding"
    assert length == int(answer.headers["content-length"]) < 25 * 1024


def test_the_page_is_plain_to_whoever_cannot_decompress(http: httpx.Client) -> None:
    answer, length = wire_bytes(http, "/", "identity")
    assert "content-encoding" not in answer.headers
    assert length == int(answer.headers["content-length"]) == len(http.get("/").content)


def test_the_first_script_is_in_the_compressed_page(http: httpx.Client) -> None:
    assert http.get("/").text.count(f"<head><script>{LOCALE_SCRIPT}</script>") == 1


def test_gradio_compresses_its_own_scripts_and_styles(http: httpx.Client) -> None:
    for path in ("/static/js/iframeResizer.contentWindow.min.js", "/theme.css"):
        assert wire_bytes(http, path, ENCODINGS)[0].headers["content-encoding"] == "br", path


def thumbnails(http: httpx.Client) -> list[str]:
    """Addresses of the thumbnails, in the page's order."""
    components = http.get("/config").json()["components"]
    (items,) = (found for c in components if (found := c["props"].get("props", {}).get("items")))
    assert [item["name"] for item in items] == [*examples()]
    return [f"/thumbnails/{item['thumbnail']}" for item in items]


def test_thumbnails_are_small_files_that_browsers_keep(http: httpx.Client) -> None:
    addresses = thumbnails(http)
    assert len(set(addresses)) == 12
    for address in addresses:
        answer = http.get(address)
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["content-type"] == "image/jpeg"
        assert "content-encoding" not in answer.headers
        assert len(answer.content) < 12_000
        with Image.open(io.BytesIO(answer.content)) as picture:
            assert (picture.format, picture.size) == ("JPEG", (144, 144))
        assert http.head(address).headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize("name", ["0123456789abcdef.jpg", "", "cat.jpg", "%2e%2e/config"])
def test_there_is_nothing_beside_the_thumbnails(http: httpx.Client, name: str) -> None:
    answer = http.get(f"/thumbnails/{name}")
    assert answer.status_code == 404
    assert "max-age" not in answer.headers.get("cache-control", "")


def test_browsers_keep_panels(http: httpx.Client) -> None:
    picture = uploaded(http, "mine.jpg", example("dogs"))
    seen = []
    for _ in range(2):
        event = http.post("/gradio_api/call/reconstruct", json={"data": call_of(picture, 11)})
        answer = http.get(f"/gradio_api/call/reconstruct/{event.json()['event_id']}")
        _, _, data = answer.text.partition("event: complete\ndata: ")
        files = httpx.Response(200, text=data).json()[:4]
        panels = [http.get(f"/gradio_api/file={file['path']}") for file in files]
        for panel in panels:
            assert panel.headers["cache-control"] == "private, max-age=31536000, immutable"
            assert panel.headers["content-type"] == "image/png"
            assert "content-encoding" not in panel.headers
        seen.append([(str(panel.url), panel.headers["etag"]) for panel in panels])
    assert [address.rpartition("/")[2] for address, _ in seen[0]] == [f"{n}.png" for n in PANELS]
    # Shown a second time, they are the same to whoever asks by their ETag.
    assert seen[0] == seen[1]


def test_uploads_stay_as_they_are(http: httpx.Client) -> None:
    answer = http.get(f"/gradio_api/file={uploaded(http, 'mine.jpg', example('dogs'))}")
    assert answer.content == example("dogs")
    assert "cache-control" not in answer.headers
    assert "content-encoding" not in answer.headers
    # Nor is time spent on compressing what somebody has sent.
    text = uploaded(http, "mine.bin", b"text " * 10_000)
    assert "content-encoding" not in http.get(f"/gradio_api/file={text}").headers


def test_events_come_as_they_happen() -> None:
    model = HeldReconstructor()
    service = ReconstructionService({"small-random": model}, settings=AppSettings(rate=0))
    with served(service) as url, browser(url) as http:
        number = next(
            function["id"]
            for function in http.get("/config").json()["dependencies"]
            if function["api_name"] == "reconstruct"
        )
        call = {
            "fn_index": number,
            "data": call_of(uploaded(http, "mine.jpg", example("dogs")), 11),
            "session_hash": "events",
        }
        with model.held():
            http.post("/gradio_api/queue/join", json=call).raise_for_status()
            request = http.build_request("GET", "/gradio_api/queue/data?session_hash=events")
            stream = http.send(request, stream=True)
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert "content-encoding" not in stream.headers
            lines = stream.iter_lines()
            # Held back, it would come no sooner than the picture, which is not there yet.
            assert next(line for line in lines if "process_starts" in line)
        assert next(line for line in lines if "process_completed" in line)
        stream.close()
