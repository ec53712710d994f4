"""Models that are read and fetched when they are chosen, with downloads made up."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from app.models.served import ServedModel
from app.models.shelf import (
    MAX_WAITING,
    PACE_SECONDS,
    PATIENCE_SECONDS,
    RETRY_SECONDS,
    SLOWEST_BYTES,
    ModelShelf,
    NotReadyError,
    Offer,
    _Entry,
)
from app.page.events import OWN_SIZE, Events
from app.service import ReconstructionService
from mae_core.errors import CheckpointError, ConfigError, DownloadError
from mae_core.weights import WeightsEntry
from tests.app.serving import asked, events_of, example, shown, small_reconstructor
from tests.downloading import isolate

CHINESE: Any = SimpleNamespace(headers={"accept-language": "zh-CN"})
BYTES = 1_300_000_000


def entry(name: str, kind: str = "autoencoder", parameters: int = 1000) -> WeightsEntry:
    values: dict[str, Any] = {"target": "norm_pix" if name.startswith("norm") else "pixels"}
    place = {"file": "x"} if name == "bundled" else {"url": f"https://example.org/{name}"}
    return WeightsEntry(
        name=name, summary="A model", licence="CC-BY-NC-4.0, as it says", kind=kind,  # type: ignore[arg-type]
        format="official", parameters=parameters, bytes=BYTES, **place, **values,
    )  # fmt: skip


class World:
    """What is on disk, and a download that goes on when it is let."""

    def __init__(self) -> None:
        self.here: set[str] = {"bundled"}
        self.of_the_host: set[str] = set()
        self.looked_for: set[str] = set()
        self.fetched: list[str] = []
        self.read: list[str] = []
        self.under_way = self.most_under_way = 0
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.read_on = threading.Event()
        self.read_on.set()
        self.failure: Exception | None = None
        self.first_bytes = 492_000_000
        self._counter = threading.Lock()

    def find(self, name: str) -> Path | None:
        self.looked_for.add(name)
        if name == "broken":
            raise CheckpointError("the bundled weights are not there")
        return Path("x") if name in self.here else None

    def locate(
        self, name: str, *, fetch: bool, progress: Callable[[int, int | None], None],
        account: bool,
    ) -> Path:  # fmt: skip
        assert fetch
        # Visitors do not read what only the host may.
        assert account == (name in self.of_the_host)
        with self._counter:
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            self.fetched.append(name)
            progress(self.first_bytes, BYTES)
            self.begun.set()
            assert self.go_on.wait(240)
            progress(492_000_000, BYTES)
            if self.failure:
                raise self.failure
            self.here.add(name)
            return Path("x")
        finally:
            with self._counter:
                self.under_way -= 1

    def open(self, name: str) -> ServedModel:
        self.read.append(name)
        self.begun.set()
        assert self.read_on.wait(240)
        return ServedModel.fixed(small_reconstructor(name, norm_pix=name.startswith("norm")))

    def shelf(self, *entries: WeightsEntry, **options: Any) -> ModelShelf:
        registry = {e.name: e for e in entries or (entry("bundled"), entry("large"), entry("norm"))}
        return ModelShelf(registry, self.open, **options)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    isolate(monkeypatch, tmp_path)
    world = World()
    monkeypatch.setattr("app.models.shelf.find", world.find)
    monkeypatch.setattr("app.models.shelf.locate", world.locate)
    monkeypatch.setattr("app.models.shelf.is_offline", lambda: False)
    yield world
    world.go_on.set()
    world.read_on.set()


def served(shelf: ModelShelf) -> ReconstructionService:
    return ReconstructionService({"first": small_reconstructor("first")}, shelf)


def ask(service: ReconstructionService, model: str) -> Any:
    return service.reconstruct(example("cat"), 0.75, 2, model=model).facts


def not_ready(act: Callable[[], object]) -> Offer:
    with pytest.raises(NotReadyError) as caught:
        act()
    return caught.value.offer


def arrived(shelf: ModelShelf, name: str) -> ServedModel:
    not_ready(lambda: shelf.get(name))
    shelf.join()
    return shelf.get(name)


def test_what_is_here_is_offered_first_with_size_and_licence(world: World) -> None:
    world.here.add("norm")
    offers = world.shelf(*map(entry, ("large", "bundled", "norm"))).offers()
    assert offers == [
        Offer("bundled", "here", BYTES, exact=True, norm_pix=False),
        Offer("norm", "here", BYTES, exact=True, licence="CC-BY-NC-4.0", norm_pix=True),
        Offer("large", "absent", BYTES, exact=True, licence="CC-BY-NC-4.0", norm_pix=False),
    ]


def test_only_what_can_draw_is_offered(world: World) -> None:
    shelf = world.shelf(entry("large"), entry("half", "encoder"), entry("words", "classifier"))
    assert [offer.name for offer in shelf.offers()] == ["large"]
    for name in ("half", "words"):
        assert shelf.knows(name)
        with pytest.raises(CheckpointError, match="has no decoder"):
            shelf.get(name)
    assert not world.fetched


def test_a_model_is_fetched_and_read_behind_the_requests_backs(world: World) -> None:
    service = served(shelf := world.shelf())
    assert not_ready(lambda: ask(service, "large")).name == "large"
    assert world.begun.wait(240)
    # The same again, while it is fetched.
    offer = not_ready(lambda: ask(service, "large"))
    assert (offer.state, offer.done, offer.total) == ("fetching", 492_000_000, BYTES)
    # Others are answered meanwhile.
    assert ask(service, "first")["model"] == "first"
    world.go_on.set()
    shelf.join()
    facts = ask(service, "large")
    assert (facts["model"], facts["licence"]) == ("large", "CC-BY-NC-4.0")
    assert (world.fetched, world.read) == (["large"], ["large"])
    assert service.offer("large").state == "ready"


def test_what_is_on_disk_is_read_without_a_download_and_without_waiting(world: World) -> None:
    world.here.add("large")
    world.read_on.clear()
    service = served(shelf := world.shelf())
    assert not_ready(lambda: ask(service, "large")).state == "reading"
    assert world.begun.wait(240)
    assert ask(service, "first")["model"] == "first"
    assert not_ready(lambda: ask(service, "large")).state == "reading"
    world.read_on.set()
    shelf.join()
    assert ask(service, "large")["model"] == "large"
    assert (world.fetched, world.read) == ([], ["large"])


def test_many_who_ask_for_one_model_have_it_fetched_once(world: World) -> None:
    shelf = world.shelf()

    def get(_: int) -> Offer:
        return not_ready(lambda: shelf.get("large"))

    with ThreadPoolExecutor(8) as pool:
        assert {offer.name for offer in pool.map(get, range(16))} == {"large"}
    world.go_on.set()
    shelf.join()
    assert (world.fetched, world.read) == (["large"], ["large"])


def test_downloads_wait_in_a_line_that_ends(world: World) -> None:
    names = [f"model-{i}" for i in range(MAX_WAITING + 2)]
    shelf = world.shelf(*map(entry, names))
    for name in names[:-1]:
        not_ready(lambda name=name: shelf.get(name))  # type: ignore[misc]
    assert world.begun.wait(240)
    assert [shelf.offer(name).state for name in names] == [
        "fetching", *["waiting"] * MAX_WAITING, "absent",
    ]  # fmt: skip
    with pytest.raises(DownloadError, match="try again later"):
        shelf.get(names[-1])
    world.go_on.set()
    shelf.join()
    assert world.fetched == names[:-1]
    assert world.most_under_way == 1


def test_a_download_that_nobody_asks_after_ends_and_is_gone_on_with(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("app.models.shelf.time", SimpleNamespace(monotonic=lambda: now))
    shelf = world.shelf(*map(entry, ("large", "left", "in-line")))
    not_ready(lambda: shelf.get("left"))
    assert world.begun.wait(240)
    not_ready(lambda: shelf.get("in-line"))
    now += PATIENCE_SECONDS / 2
    not_ready(lambda: shelf.get("large"))
    now += PATIENCE_SECONDS / 2 + 1
    world.go_on.set()
    shelf.join()
    assert (world.fetched, world.read) == (["left", "large"], ["large"])
    assert [shelf.offer(name).state for name in ("left", "in-line")] == ["absent"] * 2
    assert arrived(shelf, "left").name == "left"


def test_models_that_nobody_waits_for_any_more_take_no_place_in_the_line(
    world: World, clock: SimpleNamespace
) -> None:
    names = [f"model-{i}" for i in range(MAX_WAITING + 2)]
    world.first_bytes = 492_000_000 - SLOWEST_BYTES + 1
    shelf = world.shelf(*map(entry, names))
    for name in names[:-1]:
        not_ready(lambda name=name: shelf.get(name))  # type: ignore[misc]
    assert world.begun.wait(240)
    clock.now += PATIENCE_SECONDS + 1
    shelf.ask_after(names[0])
    assert not_ready(lambda: shelf.get(names[-1])).state == "waiting"
    assert [shelf.offer(name).state for name in names] == [
        "fetching", *["absent"] * MAX_WAITING, "waiting",
    ]  # fmt: skip
    # Nor does a slow download end for them.
    clock.now += PATIENCE_SECONDS + 1
    shelf.ask_after(names[0])
    world.go_on.set()
    shelf.join()
    assert [shelf.offer(name).state for name in names] == [
        "ready", *["absent"] * (MAX_WAITING + 1),
    ]  # fmt: skip
    assert world.fetched == names[:1]


def test_a_model_asked_for_again_is_fetched_once(world: World, clock: SimpleNamespace) -> None:
    world.first_bytes = 492_000_000 - SLOWEST_BYTES
    shelf = world.shelf(*map(entry, ("first", "again", "third")))
    not_ready(lambda: shelf.get("first"))
    assert world.begun.wait(240)
    not_ready(lambda: shelf.get("again"))
    clock.now += PATIENCE_SECONDS + 1
    shelf.ask_after("first")
    not_ready(lambda: shelf.get("third"))
    assert shelf.offer("again").state == "absent"
    # It comes into the line a second time.
    assert not_ready(lambda: shelf.get("again")).state == "waiting"
    world.go_on.set()
    shelf.join()
    assert [shelf.offer(name).state for name in ("first", "again", "third")] == ["ready"] * 3
    assert (sorted(world.fetched), sorted(world.read)) == (["again", "first", "third"],) * 2


def test_where_no_thread_can_be_started_the_next_request_tries_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    shelf = world.shelf()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        for name in ("bundled", "large"):
            with pytest.raises(RuntimeError, match="new thread"):
                shelf.get(name)
    assert [shelf.offer(name).state for name in ("bundled", "large")] == ["here", "absent"]
    assert not shelf.busy
    world.go_on.set()
    for name in ("bundled", "large"):
        assert arrived(shelf, name).name == name


def test_a_model_that_is_begun_while_the_disk_is_looked_at_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.read_on.clear()
    shelf, looks = world.shelf(), list[str]()

    def look(name: str) -> Path | None:
        looks.append(name)
        if len(looks) == 1:
            not_ready(lambda: shelf.get(name))
            assert world.begun.wait(240)
        return Path("x")

    monkeypatch.setattr("app.models.shelf.find", look)
    assert shelf.offer("bundled").state == "reading"


def test_the_error_that_is_told_holds_nothing_of_the_requests(
    world: World, clock: SimpleNamespace
) -> None:
    world.of_the_host = {"host/own"}
    world.failure = CheckpointError("damaged", code="device")
    world.go_on.set()
    shelf = world.shelf(wanted={"own": "host/own"})
    shelf.start_wanted()
    shelf.join()
    depths = set()
    for _ in range(3):
        with pytest.raises(CheckpointError) as caught:
            shelf.get("own")
        depths.add(len(caught.traceback))
        assert caught.value.code == "device"
    assert len(depths) == 1


def test_a_model_given_at_the_start_pushes_no_other_out(world: World) -> None:
    world.here |= {"a", "host/own"}
    size = ServedModel.fixed(small_reconstructor()).bytes
    shelf = world.shelf(entry("a"), wanted={"own": "host/own"}, max_bytes=size)
    arrived(shelf, "a")
    shelf.start_wanted()
    shelf.join()
    assert [shelf.offer(name).state for name in ("own", "a")] == ["ready", "ready"]


def test_a_download_that_somebody_asks_after_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("app.models.shelf.time", SimpleNamespace(monotonic=lambda: now))
    events = events_of(served(shelf := world.shelf()))
    update(events, "large")
    assert world.begun.wait(240)
    for _ in range(4):
        now += PATIENCE_SECONDS / 2
        events.look("large")
    world.go_on.set()
    shelf.join()
    assert shelf.offer("large").state == "ready"


@pytest.mark.parametrize("failure", [None, DownloadError("no network")])
def test_what_is_over_at_once_was_begun_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch, failure: Exception | None
) -> None:
    shelf = world.shelf()
    begin = shelf._begin

    def begun(entry: Any) -> Offer:
        offer = begin(entry)
        shelf.join()
        return offer

    monkeypatch.setattr(shelf, "_begin", begun)
    world.failure = failure
    world.go_on.set()
    events = events_of(served(shelf))
    *_, facts, timer = update(events, "large")
    assert facts["waiting"] == "large is waiting to be fetched (1.3 GB)"
    assert timer.active


def test_a_failure_is_told_once_and_then_tried_again(world: World) -> None:
    world.failure = DownloadError("could not write to '/home/host/cache/large.pth': disk full")
    world.go_on.set()
    shelf = world.shelf()
    not_ready(lambda: shelf.get("large"))
    shelf.join()
    offer = shelf.offer("large")
    assert offer.state == "failed"
    # The host's folders are left out.
    assert str(offer.error) == "could not write to 'large.pth': disk full"
    with pytest.raises(DownloadError, match="disk full"):
        shelf.get("large")
    world.failure = None
    assert arrived(shelf, "large").name == "large"
    assert world.fetched == ["large", "large"]


def test_addresses_stay_in_a_failure(world: World) -> None:
    message = "https://example.org/a/b.pth did not answer; see /var/log/x.log"
    world.failure = DownloadError(message)
    world.go_on.set()
    shelf = world.shelf()
    not_ready(lambda: shelf.get("large"))
    shelf.join()
    assert str(shelf.offer("large").error) == (
        "https://example.org/a/b.pth did not answer; see x.log"
    )


def test_what_nobody_expected_is_logged_and_not_told(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.failure = RuntimeError("secret")
    world.go_on.set()
    shelf = world.shelf()
    not_ready(lambda: shelf.get("large"))
    shelf.join()
    with pytest.raises(CheckpointError, match="the server's log says why"):
        shelf.get("large")
    assert "secret" in caplog.text


def test_nothing_is_fetched_where_that_is_forbidden(world: World) -> None:
    shelf = world.shelf(fetch=False)
    assert [offer.name for offer in shelf.offers()] == ["bundled"]
    with pytest.raises(CheckpointError, match="`mae fetch large`"):
        shelf.get("large")
    assert arrived(shelf, "bundled").name == "bundled"
    assert not world.fetched


@pytest.mark.parametrize(
    "name",
    ["me/mine", "me/a..b", "me--you/mine", "me/mine.", "me/mine.git",
     "", "mine", "/etc/passwd", "../mine", "me/../mine", "me/mine/more", "me /mine", "me/mi\nne",
     "tests/app", ".", "~/mine", "me/" + "x" * 200, "mé/mine"],
)  # fmt: skip
def test_what_is_not_offered_is_refused_and_looked_for_nowhere(world: World, name: str) -> None:
    world.here.add(name)
    service = served(world.shelf())
    with pytest.raises(ConfigError, match="choose first, bundled, large, norm"):
        ask(service, name)
    assert (world.fetched, world.read) == ([], [])
    assert name not in world.looked_for


def test_models_leave_the_memory_in_the_order_of_their_last_use(world: World) -> None:
    world.here |= {"a", "b", "c"}
    size = ServedModel.fixed(small_reconstructor()).bytes
    shelf = world.shelf(*map(entry, "abc"), max_bytes=2 * size)
    for name in "ab":
        arrived(shelf, name)
    shelf.get("a")
    arrived(shelf, "c")
    assert {name: shelf.offer(name).state for name in "abc"} == {
        "a": "ready", "b": "here", "c": "ready",
    }  # fmt: skip
    assert arrived(shelf, "b").name == "b"
    assert shelf.offer("a").state == "here"


def test_a_model_that_is_too_large_is_neither_fetched_nor_read(world: World) -> None:
    shelf = world.shelf(entry("huge", parameters=657_074_508), max_bytes=10**9)
    with pytest.raises(CheckpointError, match="takes 2.6 GB, .* at most 1 GB"):
        shelf.get("huge")
    assert not world.fetched


def test_a_file_that_is_too_large_is_left_as_soon_as_that_is_known(world: World) -> None:
    world.go_on.set()
    shelf = world.shelf(max_bytes=10**9)
    not_ready(lambda: shelf.get("large"))
    shelf.join()
    with pytest.raises(CheckpointError, match="takes 1.3 GB"):
        shelf.get("large")
    assert not world.read


def test_bundled_weights_that_are_gone_are_no_reason_to_stop(world: World) -> None:
    assert [offer.state for offer in world.shelf(entry("broken")).offers()] == ["absent"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A time that only the test moves."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("app.models.shelf.time", clock)
    return clock


def test_what_was_given_at_the_start_is_fetched_and_read_without_being_asked_for(
    world: World,
) -> None:
    world.of_the_host = {"host/own", "gone/away"}
    shelf = world.shelf(wanted={"own": "host/own", "away": "gone/away"}, max_bytes=1)
    assert [(o.name, o.state) for o in shelf.offers()][:2] == [
        ("own", "absent"),
        ("away", "absent"),
    ]
    shelf.start_wanted()
    assert world.begun.wait(240)
    assert [(o.name, o.state) for o in shelf.offers()] == [
        ("own", "fetching"), ("away", "waiting"),
        ("bundled", "here"), ("large", "absent"), ("norm", "absent"),
    ]  # fmt: skip
    assert not_ready(lambda: shelf.get("own")).state == "fetching"
    world.go_on.set()
    shelf.join()
    # Under no bound, as whoever runs the page has asked for them.
    assert [offer.state for offer in shelf.offers()][:2] == ["ready", "ready"]
    assert shelf.get("own").name == "host/own"
    assert world.read == ["host/own", "gone/away"]


def test_what_was_given_at_the_start_is_tried_again_but_not_by_every_request(
    world: World, clock: SimpleNamespace
) -> None:
    world.of_the_host = {"host/own"}
    world.failure = DownloadError("nothing at '/home/host/own' (no network)")
    world.go_on.set()
    shelf = world.shelf(wanted={"own": "host/own"})
    shelf.start_wanted()
    shelf.join()
    offer = shelf.offers()[0]
    assert (offer.name, offer.state, str(offer.error)) == (
        "own", "failed", "nothing at 'own' (no network)",
    )  # fmt: skip
    for _ in range(3):
        clock.now += RETRY_SECONDS / 4
        shelf.forget_failure("own")
        with pytest.raises(DownloadError, match="no network"):
            shelf.get("own")
    assert len(world.fetched) == 1
    clock.now += RETRY_SECONDS / 4
    world.failure = None
    assert arrived(shelf, "own").name == "host/own"
    assert len(world.fetched) == 2


def test_visitors_models_never_push_out_what_was_given_at_the_start(world: World) -> None:
    world.here |= {"a", "b", "host/own"}
    size = ServedModel.fixed(small_reconstructor()).bytes
    shelf = world.shelf(*map(entry, "ab"), wanted={"own": "host/own"}, max_bytes=size)
    shelf.start_wanted()
    shelf.join()
    for name in "ab":
        arrived(shelf, name)
    assert [shelf.offer(name).state for name in ("own", "a", "b")] == ["ready", "here", "ready"]


def test_where_the_network_is_forbidden_nothing_is_offered_that_is_not_here(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.models.shelf.is_offline", lambda: True)
    shelf = world.shelf()
    assert [offer.name for offer in shelf.offers()] == ["bundled"]
    with pytest.raises(CheckpointError, match="this page fetches nothing"):
        shelf.get("large")
    assert not world.fetched


def test_a_slow_download_ends_where_others_wait(world: World, clock: SimpleNamespace) -> None:
    world.first_bytes = 492_000_000 - SLOWEST_BYTES + 1
    shelf = world.shelf(*map(entry, ("slow", "next")))
    not_ready(lambda: shelf.get("slow"))
    assert world.begun.wait(240)
    not_ready(lambda: shelf.get("next"))
    clock.now += PACE_SECONDS
    world.go_on.set()
    shelf.join()
    # The one behind it was as slow, but nobody waited for its end.
    assert [shelf.offer(name).state for name in ("slow", "next")] == ["failed", "ready"]
    with pytest.raises(DownloadError, match="comes too slowly, and others are waiting"):
        shelf.get("slow")


def test_pace_is_what_came_since_the_last_look(clock: SimpleNamespace) -> None:
    pace = _Entry("slow", False, True, 0, Offer("slow", "absent"))
    assert not pace.is_slow(0)
    clock.now += PACE_SECONDS
    assert not pace.is_slow(SLOWEST_BYTES)
    clock.now += PACE_SECONDS / 2
    assert not pace.is_slow(SLOWEST_BYTES)
    clock.now += PACE_SECONDS / 2
    assert pace.is_slow(2 * SLOWEST_BYTES - 1)


CONTROLS = (0.75, 2, "random", "crop")


def update(events: Events, model: str, request: Any = None) -> tuple[Any, ...]:
    return shown(
        events, example("cat"), *CONTROLS, model, OWN_SIZE, "estimated", request
    )  # fmt: skip


def test_labels_say_what_is_here_and_what_would_be_fetched(world: World) -> None:
    events = events_of(served(world.shelf()))
    assert events.model_choices("en") == [
        ("first", "first"),
        ("bundled · on disk", "bundled"),
        ("large · fetch 1.3 GB · CC-BY-NC-4.0", "large"),
        ("norm · fetch 1.3 GB · CC-BY-NC-4.0", "norm"),
    ]
    assert events.model_choices("zh")[2][0] == "large · 需下载 1.3 GB · CC-BY-NC-4.0"
    update(events, "large")
    assert events.model_choices("en")[2][0] == "large · on its way · CC-BY-NC-4.0"


def test_the_page_shows_progress_and_then_the_panels(world: World) -> None:
    events = events_of(served(shelf := world.shelf()))
    panels, _, timer = update(events, "norm")
    assert panels is None
    assert timer.active
    assert world.begun.wait(240)
    facts, timer, arrivals, models = events.look("norm", request=CHINESE)
    assert "2 分钟内无人等待" in facts.pop("hint")
    assert facts == {
        "waiting": "正在下载 norm：492 MB / 1.3 GB", "fraction": 492_000_000 / BYTES,
    }  # fmt: skip
    assert timer.active
    assert arrivals == models == gr.skip()
    world.go_on.set()
    shelf.join()
    facts, timer, arrivals, models = events.look("norm")
    assert facts == gr.skip()
    assert not timer.active
    assert arrivals != gr.skip()
    assert ("norm · on disk · CC-BY-NC-4.0", "norm") in models["choices"]
    assert events.show_views("norm")["visible"] is True
    panels, facts, timer = update(events, "norm")
    assert panels.keys() >= {"original", "reconstruction", "mask", "settings", "image"}
    assert (facts["model"], timer.active) == ("norm", False)


def test_the_page_shows_why_it_failed_and_tries_again_when_asked(world: World) -> None:
    world.failure = DownloadError("the server is gone")
    world.go_on.set()
    events = events_of(served(shelf := world.shelf()))
    update(events, "large")
    shelf.join()
    for _ in range(2):  # for one visitor and for another
        facts, timer, arrivals, _ = events.look("large")
        assert facts == {"error": "The server is gone."}
        assert not timer.active
        assert arrivals == gr.skip()
    world.failure = None
    assert update(events, "large")[-1].active
    shelf.join()
    assert update(events, "large")[1]["model"] == "large"


@pytest.mark.parametrize("fetch", [True, False])
def test_a_model_that_failed_stays_in_the_list(
    world: World, monkeypatch: pytest.MonkeyPatch, fetch: bool
) -> None:
    def fail(name: str) -> ServedModel:
        raise CheckpointError(f"{name} is damaged")

    monkeypatch.setattr(world, "open", fail)
    world.here.add("large")
    events = events_of(served(shelf := world.shelf(fetch=fetch)))
    update(events, "large")
    assert "large" in dict(events.model_choices("en")).values()
    shelf.join()
    facts, *_, models = events.look("large")
    assert facts == {"error": "Large is damaged."}
    assert "large" in dict(models["choices"]).values()


def test_the_api_says_how_far_it_is(world: World) -> None:
    events = events_of(served(world.shelf()))
    with pytest.raises(gr.Error):
        asked(events, example("cat"), *CONTROLS, "large")
    assert world.begun.wait(240)
    with pytest.raises(gr.Error) as caught:
        asked(events, example("cat"), *CONTROLS, "large")
    assert caught.value.message == (
        "Fetching large: 492 MB of 1.3 GB. Please ask again in a few seconds."
    )


def test_a_request_that_is_wrong_fetches_nothing(world: World) -> None:
    service = served(world.shelf())
    with pytest.raises(ConfigError):
        service.reconstruct(example("cat"), 0.75, 2, fit="stretch", model="large")
    assert service.offer("large").state == "absent"
