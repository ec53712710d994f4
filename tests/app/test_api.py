"""The served page through `gradio_client` and plain HTTP, as programs use it."""

import io
import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from app.examples import EXAMPLES
from app.gradio_seam import is_busy
from app.page.events import PANELS
from app.page.files import MAX_BYTES
from app.service import ReconstructionService
from app.settings import AppSettings
from tests.app.serving import (
    HeldReconstructor,
    encoded,
    example,
    launched,
    served,
    small_reconstructor,
    stopped_clock,
)

CAT = EXAMPLES / "cat.jpg"


@pytest.fixture(scope="module")
def client(page_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(page_url, verbose=False, download_files=tmp_path_factory.mktemp("answers"))
    yield client
    client.close()


def ask(client: Client, **changes: Any) -> Any:
    call = {"image": handle_file(CAT), "mask_ratio": 0.75, "seed": 2, **changes}
    return client.predict(**call, api_name="/reconstruct")


def test_a_call_gives_four_lossless_pictures_and_the_facts(
    client: Client, service: ReconstructionService
) -> None:
    *files, facts = ask(client, mask_ratio=0.5, seed=7, strategy="grid", fit="whole")
    answer = service.reconstruct(example("cat"), 0.5, 7, strategy="grid", fit="whole")
    assert facts == answer.facts
    for name, file in zip(PANELS, files, strict=True):
        assert Path(file).name == f"{name}.png"
        with Image.open(file) as picture:
            assert picture.format == "PNG"
            assert np.array_equal(np.asarray(picture), np.asarray(answer.panels[name]))


def test_strategy_fit_and_model_have_defaults(client: Client) -> None:
    facts = ask(client)[4]
    chosen = (facts["strategy"], facts["fit"], facts["model"])
    assert chosen == ("random", "crop", "small-random")


def test_an_own_mask_gives_the_pixels_of_the_library(client: Client) -> None:
    rows = [[(row + column) % 3 > 0 for column in range(7)] for row in range(7)]
    *files, facts = ask(client, mask=[[int(cell) for cell in row] for row in rows])
    direct = small_reconstructor()(CAT, mask=rows)
    for file, panel in zip(files, direct.panels().values(), strict=True):
        with Image.open(file) as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(panel))
    assert (facts["strategy"], facts["visible"]) == ("custom", 17)
    # Equal masks are one request, whatever else was given and however 1 is written.
    again = ask(client, mask=[[float(cell) for cell in row] for row in rows], mask_ratio=0.5)
    assert again[4] == facts


def test_a_drawn_mask_gives_the_pixels_of_the_library(client: Client, tmp_path: Path) -> None:
    removed = np.zeros((7, 7), dtype=bool)
    removed[2:5, 1:6] = True
    with Image.open(CAT) as picture:
        width, height = picture.size
    # Over the middle square of the picture, which the crop keeps.
    side = min(width, height)
    drawn = Image.fromarray(removed).resize((side, side), Image.Resampling.NEAREST)
    drawing = Image.new("L", (width, height))
    drawing.paste(drawn, ((width - side) // 2, (height - side) // 2))
    drawing.save(tmp_path / "mask.png")
    *files, facts = ask(client, mask=handle_file(tmp_path / "mask.png"))
    direct = small_reconstructor()(CAT, mask=removed)
    for file, panel in zip(files, direct.panels().values(), strict=True):
        with Image.open(file) as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(panel))
    assert (facts["strategy"], facts["visible"]) == ("custom", 49 - 15)
    # The other ways to draw it: of the patches alone, of 1 and 0, grey, and white on nothing.
    for small in (
        Image.fromarray(removed),
        Image.fromarray(removed.astype(np.uint8)),
        Image.fromarray(removed.astype(np.uint8) * 100),
        Image.fromarray(np.stack([removed.astype(np.uint8) * 255] * 4, axis=2)),
    ):
        small.save(tmp_path / "mask.png")
        assert ask(client, mask=handle_file(tmp_path / "mask.png"))[4] | {"seconds": 0} == (
            facts | {"seconds": 0}
        )
    Image.new("L", (100, 40)).save(tmp_path / "mask.png")
    with pytest.raises(AppError, match="give the image's"):
        ask(client, mask=handle_file(tmp_path / "mask.png"))


def test_size_is_obeyed(client: Client) -> None:
    *files, facts = ask(client, image_size=160)
    assert (facts["height"], facts["width"], facts["patches"]) == (160, 160, 100)
    for file in files:
        with Image.open(file) as picture:
            assert picture.size == (160, 160)


def test_there_are_two_endpoints(client: Client) -> None:
    info: Any = client.view_api(return_format="dict", print_info=False)
    assert list(info["named_endpoints"]) == ["/reconstruct", "/ask"]
    assert not info["unnamed_endpoints"]
    endpoint = info["named_endpoints"]["/reconstruct"]
    names = [parameter["parameter_name"] for parameter in endpoint["parameters"]]
    assert names == [
        "image", "mask_ratio", "seed", "strategy", "fit", "model", "image_size", "view", "mask",
    ]  # fmt: skip
    optional = [parameter["parameter_has_default"] for parameter in endpoint["parameters"]]
    assert optional == [False] + [True] * 8
    assert [value["label"] for value in endpoint["returns"]] == [*PANELS, "facts"]
    asking = info["named_endpoints"]["/ask"]
    assert [one["parameter_name"] for one in asking["parameters"]] == ["image", "plan"]
    assert [value["label"] for value in asking["returns"]] == ["part"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask_ratio": "much"}, "from 0.05 to 0.95"),
        ({"mask_ratio": None}, "from 0.05 to 0.95"),
        ({"mask_ratio": True}, "from 0.05 to 0.95"),
        ({"mask_ratio": 1.5}, "from 0.05 to 0.95"),
        ({"seed": "two"}, "whole number"),
        ({"seed": None}, "whole number"),
        ({"seed": -1}, "whole number"),
        ({"seed": 0.5}, "whole number"),
        ({"strategy": "spiral"}, "random, block, grid"),
        ({"fit": 3}, "crop, squash, whole"),
        ({"model": "other"}, "choose small-random"),
        ({"image_size": 100}, "multiples of 16"),
        ({"image_size": 4}, "multiples of 16, such as 16"),
        ({"image_size": 0}, "whole number of pixels"),
        ({"image_size": -16}, "whole number of pixels"),
        ({"image_size": True}, "whole number of pixels"),
        ({"image_size": "large"}, "whole number of pixels"),
        ({"view": "best"}, "estimated, answer, normalized"),
        ({"mask": "0101"}, "Mask is '0101'; give rows of equally many 0 and 1"),
        ({"mask": [[0, 1], [1]]}, "Mask has 2 rows of up to 2; give rows of equally many"),
        ({"mask": [[0, 2]]}, "A row of the mask is [0, 2]"),
        ({"mask": [[]]}, "A row of the mask is []"),
        pytest.param({"mask": [[0] * 100] * 50}, "of at most 4096 patches", id="large mask"),
        ({"mask": [[1] * 7] * 7}, "The mask removes every patch; leave at least one"),
        ({"mask": [[0, 1]]}, "this image has 7 rows of 7 patches"),
        ({"image": None}, "There is no picture"),
        ({"image": "cat.jpg"}, "must be an uploaded file"),
    ],
    ids=str,
)
def test_a_wrong_value_is_answered_in_a_sentence(
    client: Client, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(AppError) as caught:
        ask(client, **changes)
    assert_is_a_sentence(str(caught.value), words)
    assert ask(client)[4]["visible"] == 12


def assert_is_a_sentence(message: str, words: str) -> None:
    assert words in message
    assert message.strip("'\"").endswith(".")
    assert len(message) < 250
    assert "Traceback" not in message
    assert "/" not in message.replace("http:/", "")


def png_of(width: int, height: int) -> bytes:
    """A black picture of any size in a few kilobytes, written without holding its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, data) for kind, data in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    )


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><rect/></svg>'

BAD_FILES: list[tuple[str, Callable[[], bytes], str]] = [
    ("words.txt", lambda: b"not a picture at all", "give an image as JPEG"),
    ("words.png", lambda: b"not a picture at all", "give an image as JPEG"),
    ("cut.jpg", lambda: CAT.read_bytes()[:8000], "damaged or cut short"),
    ("empty.png", lambda: b"", "empty"),
    ("drawing.svg", lambda: SVG, "give an image as JPEG"),
    ("bomb.png", lambda: png_of(12_000, 12_000), "12000 x 12000 pixels; at most 33.6 million"),
    ("line.png", lambda: encoded(Image.new("RGB", (1, 300))), "1 x 300"),
]


@pytest.mark.parametrize(
    ("name", "content", "words"), BAD_FILES, ids=[name for name, *_ in BAD_FILES]
)
def test_a_bad_picture_is_answered_in_a_sentence(
    client: Client, tmp_path: Path, name: str, content: Callable[[], bytes], words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content())
    with pytest.raises(AppError) as caught:
        ask(client, image=handle_file(path))
    assert_is_a_sentence(str(caught.value), words)
    assert ask(client)[4]["visible"] == 12


class Api:
    """Calls `/reconstruct` with whatever JSON one likes."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=f"{url}/gradio_api", timeout=240)
        files = {"files": ("cat.jpg", CAT.read_bytes())}
        path = self.http.post("/upload", files=files).json()[0]
        self.cat = {"path": path, "meta": {"_type": "gradio.FileData"}}

    def post(self, body: str, headers: dict[str, str] | None = None) -> httpx.Response:
        headers = {"content-type": "application/json", **(headers or {})}
        return self.http.post("/call/reconstruct", content=body, headers=headers)

    def call(self, data: list[Any], headers: dict[str, str] | None = None) -> tuple[str, Any]:
        """The kind of answer, `complete` or `error`, and its data."""
        event = self.post(json.dumps({"data": data}), headers).json()["event_id"]
        lines = self.http.get(f"/call/reconstruct/{event}").text.splitlines()
        answer = json.loads(lines[1].removeprefix("data: "))
        return lines[0].removeprefix("event: "), answer


@pytest.fixture(scope="module")
def api(page_url: str) -> Iterator[Api]:
    api = Api(page_url)
    yield api
    api.http.close()


CONTROLS = [0.75, 2, "random", "crop", "small-random", None, "estimated", None]


def test_not_a_number_is_no_mask_ratio(api: Api) -> None:
    for value in (float("nan"), float("inf")):
        refused = api.post(json.dumps({"data": [api.cat, value, *CONTROLS[1:]]}))
        assert refused.status_code == 400
        assert_is_a_sentence(refused.json()["detail"], "without NaN")
        assert api.call([api.cat, *CONTROLS])[0] == "complete"


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "data:image/png;base64,aaaa"},
        {"path": "http://127.0.0.1:9/a.png"},
        {"path": str(EXAMPLES.parent / "style.css"), "meta": None},
    ],
    ids=str,
)
def test_only_uploaded_files_are_read(api: Api, changes: dict[str, Any]) -> None:
    refused = api.post(json.dumps({"data": [{**api.cat, **changes}, *CONTROLS]}))
    assert refused.status_code == 400
    assert_is_a_sentence(refused.json()["detail"], "must be an uploaded file")
    assert api.call([api.cat, *CONTROLS])[0] == "complete"


@pytest.mark.parametrize("url", ["data:image/png;base64,aaaa", "http://127.0.0.1:9/a.png"])
def test_an_address_beside_an_upload_is_left_aside(api: Api, url: str) -> None:
    assert api.call([{**api.cat, "url": url}, *CONTROLS])[0] == "complete"


def test_an_upload_that_was_deleted_is_said_to_be_gone(api: Api) -> None:
    gone = str(Path(api.cat["path"]).with_name("gone.jpg"))
    kind, answer = api.call([{**api.cat, "path": gone}, *CONTROLS])
    assert kind == "error"
    assert answer["error"] == "The picture is no longer on the server. Please choose it again."


def test_a_wrong_number_of_values_is_said_to_be(api: Api) -> None:
    kind, answer = api.call([api.cat, 0.75, 2])
    assert kind == "error"
    assert answer["error"] == "3 values were given; this call takes 9."


def test_errors_are_in_the_language_asked_for(page_url: str, api: Api) -> None:
    chinese = Api(page_url)
    chinese.http.headers["accept-language"] = "zh-CN"
    _, answer = chinese.call([api.cat, 7, *CONTROLS[1:]])
    chinese.http.close()
    assert answer["error"].startswith("mask_ratio 为 7；必须是")


@pytest.mark.parametrize(
    "path",
    ["file=http://127.0.0.1:9/", "file=https://example.com/", "file/http://127.0.0.1:9/",
     "file=%68ttp://127.0.0.1:9/", "proxy=http://127.0.0.1:9/"],
)  # fmt: skip
def test_the_server_fetches_nothing_for_others(api: Api, path: str) -> None:
    response = api.http.get(f"/{path}")
    assert (response.status_code, response.text) == (404, "There is nothing here.")


def test_the_programs_own_files_are_out_of_reach(api: Api) -> None:
    assert api.http.get(f"/file={EXAMPLES / 'cat.jpg'}").status_code == 403
    assert api.http.get(f"/file={EXAMPLES.parent.parent / 'service.py'}").status_code == 403


def test_a_file_that_is_too_large_is_not_taken(api: Api) -> None:
    files = {"files": ("a.jpg", io.BytesIO(bytes(MAX_BYTES + 1)))}
    assert api.http.post("/upload", files=files).status_code == 413


def test_a_call_that_is_too_long_is_not_taken(api: Api) -> None:
    body = json.dumps({"data": ["x" * 1_000_000, *CONTROLS]})
    assert api.post(body).status_code == 413
    assert api.call([api.cat, *CONTROLS])[0] == "complete"


def test_calls_of_every_ratio(client: Client) -> None:
    picture = handle_file(CAT)
    for seed in range(20):
        mask_ratio = round(0.05 + 0.9 * (seed * 7 % 20) / 19, 2)
        facts = ask(client, image=picture, mask_ratio=mask_ratio, seed=seed)[4]
        assert (facts["mask_ratio"], facts["seed"]) == (mask_ratio, seed)
        assert facts["visible"] == max(1, int(round(49 * (1 - mask_ratio), 9)))


@pytest.fixture
def held() -> HeldReconstructor:
    return HeldReconstructor()


@contextmanager
def busy_page(model: HeldReconstructor, **settings: Any) -> Iterator[Api]:
    """A page whose limits are small, and its API."""
    given = AppSettings(**{"rate": 0, "max_batch": 1, "workers": 1, **settings})
    service = ReconstructionService({"small-random": model}, settings=given)
    with served(service) as url:
        api = Api(url)
        yield api
        api.http.close()


def test_a_busy_server_says_so_and_answers_the_others(held: HeldReconstructor) -> None:
    def ask(seed: int) -> tuple[str, Any]:
        return api.call([api.cat, 0.75, seed, *CONTROLS[2:]])

    with busy_page(held, queue=2) as api, ThreadPoolExecutor(8) as pool:
        with held.held():
            first = pool.submit(ask, 10)
            assert held.begun.wait(240)
            others = [pool.submit(ask, seed) for seed in range(11, 16)]
            # Three of them find the line full, and are told at once.
            refused = [answer.result() for answer in islice(as_completed(others), 3)]
        answers = [answer.result() for answer in (first, *others)]
    assert [kind for kind, _ in refused] == ["error"] * 3
    for _, answer in refused:
        assert answer["error"].startswith("Too many requests are waiting (2). Please try again in")
    seeds = [answer[4]["seed"] for kind, answer in answers if kind == "complete"]
    assert len(seeds) == 3
    assert 10 in seeds


def test_one_visitor_cannot_fill_the_line(held: HeldReconstructor) -> None:
    def ask(seed: int, visitor: str) -> tuple[str, Any]:
        return api.call([api.cat, 0.75, seed, *CONTROLS[2:]], {"x-forwarded-for": visitor})

    with busy_page(held, per_visitor=1, proxies=1) as api, ThreadPoolExecutor(8) as pool:
        with held.held():
            first = pool.submit(ask, 10, "192.0.2.1")
            assert held.begun.wait(240)
            greedy = [pool.submit(ask, seed, "192.0.2.1") for seed in (11, 12)]
            kind, answer = next(as_completed(greedy)).result()
            assert (kind, answer["error"].partition(".")[0]) == (
                "error", "You have several requests waiting",
            )  # fmt: skip
            other = pool.submit(ask, 13, "192.0.2.2")
        assert [answer.result()[0] for answer in (first, other)] == ["complete"] * 2


def test_who_asks_too_often_is_told_so(held: HeldReconstructor) -> None:
    settings = AppSettings(rate=6, proxies=1)
    service = ReconstructionService({"small-random": held}, settings=settings)
    stopped_clock(service)
    with served(service) as url:
        api = Api(url)
        answers = [
            api.call([api.cat, 0.75, seed, *CONTROLS[2:]], {"x-forwarded-for": "192.0.2.1"})
            for seed in (10, 11)
        ]
        other = api.call([api.cat, 0.75, 12, *CONTROLS[2:]], {"x-forwarded-for": "192.0.2.2"})
        api.http.close()
    assert [kind for kind, _ in (*answers, other)] == ["complete", "error", "complete"]
    assert answers[1][1]["error"].startswith("Too many requests come from your address.")


def test_what_takes_too_long_is_given_up_in_words(held: HeldReconstructor) -> None:
    service = ReconstructionService({"small-random": held}, settings=AppSettings(rate=0))
    with served(service) as url, held.held():
        api = Api(url)
        service._line._seconds = 0.1
        kind, answer = api.call([api.cat, *CONTROLS[:1], 10, *CONTROLS[2:]])
        assert kind == "error"
        assert answer["error"].startswith("This took longer than 0.1 s and was stopped.")
        held.gate.set()
        service._line._seconds = 240
        assert api.call([api.cat, *CONTROLS])[0] == "complete"
        api.http.close()


def test_nothing_piles_up_in_gradio(held: HeldReconstructor) -> None:
    service = ReconstructionService({"small-random": held}, settings=AppSettings(rate=0))
    with launched(service) as (page, url):
        api = Api(url)
        for seed in range(30):
            assert api.call([api.cat, 0.75, seed % 3, *CONTROLS[2:]])[0] == "complete"
        queue = page._queue
        deadline = time.monotonic() + 240
        # Gradio forgets an event when its answer is on its way already.
        while is_busy(page) or queue.event_ids_to_events or page.app.iterators:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(queue.event_analytics) <= 1
        assert all(messages.empty() for messages in queue.pending_messages_per_session.values())
        api.http.close()
