import asyncio
import math
import re
import threading
import time
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app.decoding import decode_upload
from app.line import BusyError, TookTooLongError
from app.ops.metrics import OUTCOMES
from app.pictures import PictureFile, Pictures, PictureSource
from app.service import Answer, ReconstructionService, Waiting
from app.settings import AppSettings
from mae_core import MAEError, Reconstructor
from mae_core.errors import (
    CheckpointError,
    ConfigError,
    ImageError,
    MaskError,
)
from mae_core.images import FITS
from mae_core.model.masking import MAX_SEED
from mae_core.reconstruct import NORM_PIX_VIEWS, ReconstructionRequest
from mae_core.weights.formats import save_weights
from tests.app.serving import (
    HeldReconstructor,
    encoded,
    example,
    small_reconstructor,
    small_service,
    stopped_clock,
)


def same(left: Image.Image, right: Image.Image) -> bool:
    return bool(np.array_equal(np.asarray(left), np.asarray(right)))


def asked(seed: int) -> dict[str, object]:
    """What a visitor asks for."""
    return {"image": example("cat"), "mask_ratio": 0.75, "seed": seed}


class CountingReconstructor(Reconstructor):
    """Counts its runs, and how many of them were under way at once."""

    def __init__(self, seconds: float = 0.0) -> None:
        plain = small_reconstructor()
        super().__init__(plain.model, plain.name, device="cpu", precision="float32")
        self.runs = self.under_way = self.most_under_way = 0
        self._seconds = seconds
        self._counter = threading.Lock()

    def batch(self, requests: Sequence[ReconstructionRequest]) -> Any:
        with self._counter:
            self.runs += 1
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        time.sleep(self._seconds)
        try:
            return super().batch(requests)
        finally:
            with self._counter:
                self.under_way -= 1


def test_an_answer_is_what_the_reconstructor_says(service: ReconstructionService) -> None:
    picture = example("cat")
    answer = service.reconstruct(
        picture, 0.5, 3, strategy="block", fit="squash", model="small-random"
    )
    reconstructor, threads = small_reconstructor(), torch.get_num_threads()
    # As many as the service takes: the last bits of figures depend on how sums are split.
    torch.set_num_threads(reconstructor.threads_for([ReconstructionRequest(picture, 0.5)]))
    direct = reconstructor(picture, 0.5, 3, strategy="block", fit="squash")
    torch.set_num_threads(threads)
    assert list(answer.panels) == ["original", "masked", "reconstruction", "pasted"]
    assert all(same(answer.panels[name], panel) for name, panel in direct.panels().items())
    expected = direct.facts()
    assert {**answer.facts, "seconds": 0} == {**expected, "seconds": 0}
    assert (answer.facts["visible"], answer.facts["patches"]) == (24, 49)


def test_defaults_are_random_crop_and_the_first_model(service: ReconstructionService) -> None:
    facts = service.reconstruct(example("cat"), 0.75, 2).facts
    assert (facts["strategy"], facts["fit"], facts["model"]) == ("random", "crop", "small-random")


def test_the_same_request_is_answered_from_the_cache() -> None:
    model = CountingReconstructor()
    service = ReconstructionService({"m": model})
    first = service.reconstruct(example("cat"), 0.75, 2)
    # 2.0 is how JSON may write 2.
    assert (
        service.reconstruct(example("cat"), 0.75, 2.0, strategy="random", fit="crop", model="m")
        is first
    )
    assert model.runs == 1


@pytest.mark.parametrize(
    "change",
    [
        {"mask_ratio": 0.5},
        {"seed": 3},
        {"strategy": "grid"},
        {"fit": "squash"},
        {"model": "other"},
        {"image": "dogs"},
        {"image_size": 160},
        {"view": "answer"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_other_request_is_computed(change: dict[str, Any]) -> None:
    models = {"m": CountingReconstructor(), "other": CountingReconstructor()}
    service = ReconstructionService(models)
    request = {"image": "cat", "mask_ratio": 0.75, "seed": 2, "model": "m"}
    answers = []
    for given in (request, {**request, **change}):
        answers.append(service.reconstruct(**{**given, "image": example(str(given["image"]))}))
    assert answers[0] is not answers[1]
    assert models["m"].runs + models["other"].runs == 2


def test_a_picture_is_decoded_once_while_sliders_move(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def counting(data: bytes, **options: Any) -> Image.Image:
        decoded.append(len(data))
        return decode_upload(data, **options)

    monkeypatch.setattr("app.pictures.decode_upload", counting)
    service = small_service()
    for seed in range(5):
        service.reconstruct(example("cat"), 0.75, seed)
    assert len(decoded) == 1


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(300, 200), (200, 1000), (113, 112)])
def test_a_picture_is_fitted_once_and_to_the_same_pixels(fit: str, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    picture = encoded(Image.fromarray(pixels))
    service = small_service()
    first = service.reconstruct(picture, 0.75, 1, fit=fit)
    (fitted,) = service._fitted.values()
    direct = small_reconstructor()(picture, 0.75, 1, fit=fit)
    assert all(same(first.panels[name], panel) for name, panel in direct.panels().items())
    service._pictures._decoded.clear()
    service.reconstruct(picture, 0.5, 2, fit=fit)
    assert [*service._fitted.values()] == [fitted]
    assert not service._pictures._decoded


@pytest.mark.parametrize("workers", [1, 2])
def test_as_many_runs_are_under_way_as_there_are_workers(workers: int) -> None:
    model = CountingReconstructor(seconds=0.02)
    settings = AppSettings(max_batch=1, workers=workers)
    service = ReconstructionService({"m": model}, settings=settings)

    async def ask_all() -> list[Any]:
        return await asyncio.gather(*(steps_of(service, f"v{i}", seed=i) for i in range(8)))

    told = asyncio.run(ask_all())
    assert [steps[-1].facts["seed"] for steps in told] == list(range(8))
    assert (model.runs, model.most_under_way) == (8, workers)


def test_small_models_on_a_cpu_get_a_worker_for_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.service.choose_threads", lambda: 4)

    def workers(*threads: int, device: str = "cpu", **settings: Any) -> int:
        models = {f"{i}": small_reconstructor(f"{i}") for i in range(len(threads))}
        for model, worth in zip(models.values(), threads, strict=True):
            model.device = torch.device(device)
            model.threads_for = lambda requests, worth=worth: worth  # type: ignore[method-assign]
        service = ReconstructionService(models, settings=AppSettings(**settings))
        return service._line._workers

    assert workers(1, 1) == 4
    assert workers(1, 2) == 1
    assert workers(1, device="cuda") == 1
    assert workers(1, workers=3) == 3


BAD_VALUES: list[tuple[dict[str, Any], type[MAEError], str]] = [
    ({"image": None}, ImageError, "choose one"),
    ({"image": "cat.jpg"}, ImageError, "choose one"),
    ({"image": b""}, ImageError, "empty"),
    ({"image": b"not a picture"}, ImageError, "give an image"),
    ({"image": encoded(Image.new("RGB", (300, 1)))}, ImageError, "300 x 1"),
    ({"mask_ratio": "0.5"}, MaskError, "from 0.05 to 0.95"),
    ({"mask_ratio": None}, MaskError, "from 0.05 to 0.95"),
    ({"mask_ratio": True}, MaskError, "from 0.05 to 0.95"),
    ({"mask_ratio": math.nan}, MaskError, "from 0.05 to 0.95"),
    ({"mask_ratio": math.inf}, MaskError, "from 0.05 to 0.95"),
    ({"mask_ratio": 0.96}, MaskError, "from 0.05 to 0.95"),
    ({"mask_ratio": 0}, MaskError, "from 0.05 to 0.95"),
    ({"mask_ratio": [0.5]}, MaskError, "from 0.05 to 0.95"),
    ({"seed": "2"}, MaskError, "whole number"),
    ({"seed": None}, MaskError, "whole number"),
    ({"seed": True}, MaskError, "whole number"),
    ({"seed": 1.5}, MaskError, "whole number"),
    ({"seed": math.nan}, MaskError, "whole number"),
    ({"seed": math.inf}, MaskError, "whole number"),
    ({"seed": -1}, MaskError, "whole number"),
    ({"seed": MAX_SEED + 1}, MaskError, "whole number"),
    ({"strategy": "spiral"}, MaskError, "random, block, grid"),
    ({"strategy": None}, MaskError, "random, block, grid"),
    ({"fit": "stretch"}, ConfigError, "crop, squash, whole"),
    ({"fit": 3}, ConfigError, "crop, squash, whole"),
    ({"model": "other"}, ConfigError, "choose small-random"),
    ({"model": ["small-random"]}, ConfigError, "choose small-random"),
    ({"image_size": "224"}, ConfigError, "whole number of pixels up to 1024"),
    ({"image_size": True}, ConfigError, "whole number of pixels up to 1024"),
    ({"image_size": math.nan}, ConfigError, "whole number of pixels up to 1024"),
    ({"image_size": 1040}, ConfigError, "up to 1024"),
    ({"image_size": 10**400}, ConfigError, "up to 1024"),
    ({"image_size": 0}, ConfigError, "whole number of pixels"),
    ({"image_size": -16}, ConfigError, "whole number of pixels"),
    ({"image_size": 100}, ConfigError, "multiples of 16"),
    ({"view": "best"}, ConfigError, "estimated, answer, normalized"),
    ({"view": None}, ConfigError, "estimated, answer, normalized"),
    ({"model": "me/mine"}, ConfigError, "choose small-random"),
    ({"strategy": "x" * 10_000}, MaskError, "xxx...; choose"),
]


@pytest.mark.parametrize(
    ("bad", "kind", "words"), BAD_VALUES, ids=[str(case[0])[:40] for case in BAD_VALUES]
)
def test_a_bad_value_says_what_is_allowed(
    service: ReconstructionService, bad: dict[str, Any], kind: type[MAEError], words: str
) -> None:
    request = {"image": example("cat"), "mask_ratio": 0.75, "seed": 2, **bad}
    with pytest.raises(kind) as caught:
        service.reconstruct(**request)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_larger_size_gives_larger_panels(service: ReconstructionService) -> None:
    # 160.0 is how JSON may write 160.
    answer = service.reconstruct(example("cat"), 0.75, 2, image_size=160.0)
    assert {panel.size for panel in answer.panels.values()} == {(160, 160)}
    direct = small_reconstructor()(example("cat"), 0.75, 2, image_size=160)
    assert same(answer.panels["pasted"], direct.panels()["pasted"])


def test_the_hosts_bound_on_sizes_holds() -> None:
    service = ReconstructionService(
        {"m": small_reconstructor("m")}, settings=AppSettings(max_image_size=128)
    )
    assert service.reconstruct(example("cat"), 0.75, 2, image_size=128).facts["height"] == 128
    with pytest.raises(ConfigError, match="up to 128"):
        service.reconstruct(example("cat"), 0.75, 2, image_size=144)
    # The model's own size is never too large.
    assert (
        ReconstructionService(
            {"m": small_reconstructor("m")}, settings=AppSettings(max_image_size=16)
        )
        .reconstruct(example("cat"), 0.75, 2)
        .facts["height"]
        == 112
    )


def test_large_answers_push_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.service._ANSWERS_BYTES", 11 * 2**20)
    service = small_service()
    answers = [service.reconstruct(example("cat"), 0.75, seed, image_size=448) for seed in range(5)]
    # Four panels of 448 x 448 pixels are 3.1 MiB.
    assert service._answers.currsize == 3 * 4 * 448 * 448 * 4
    assert service.reconstruct(example("cat"), 0.75, 4, image_size=448) is answers[4]
    assert service.reconstruct(example("cat"), 0.75, 0, image_size=448) is not answers[0]


def test_what_is_above_a_bound_is_computed_each_time_and_pushes_nothing_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = 4 * 112 * 112 * 4
    monkeypatch.setattr("app.service._ANSWERS_BYTES", small)
    monkeypatch.setattr("app.pictures._DECODED_BYTES", 1000)
    service = small_service()
    kept = service.reconstruct(example("cat"), 0.75, 2)
    large = [service.reconstruct(example("cat"), 0.75, 2, image_size=448) for _ in range(2)]
    assert large[0] is not large[1]
    assert service.reconstruct(example("cat"), 0.75, 2) is kept
    figures = service.metrics.exposition()[0].decode()
    assert f"mae_answers_bytes {float(small)}" in figures
    assert "mae_pictures_bytes 0.0" in figures


def test_threads_leave_the_size_of_the_answers_right(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 10 * 4 * 112 * 112 * 4
    monkeypatch.setattr("app.service._ANSWERS_BYTES", most)
    service = small_service()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: service.reconstruct(example("cat"), 0.75, i * 7 % 25), range(200)))
    kept = sum(map(service._answers.getsizeof, service._answers.values()))
    assert service._answers.currsize == kept == most


def test_views_differ_and_only_one_uses_the_answer() -> None:
    norm = small_reconstructor("norm", norm_pix=True)
    service = ReconstructionService({"norm": norm})
    answers = {
        view: service.reconstruct(example("cat"), 0.75, 2, view=view) for view in NORM_PIX_VIEWS
    }
    assert [answer.facts["view"] for answer in answers.values()] == list(NORM_PIX_VIEWS)
    default = service.reconstruct(example("cat"), 0.75, 2)
    assert default is answers["estimated"]
    pictures = {answer.panels["reconstruction"].tobytes() for answer in answers.values()}
    assert len(pictures) == 3


def test_the_edges_of_the_ranges_are_allowed(service: ReconstructionService) -> None:
    for mask_ratio, seed in ((0.05, 0), (0.95, MAX_SEED)):
        facts = service.reconstruct(example("cat"), mask_ratio, seed).facts
        assert (facts["mask_ratio"], facts["seed"]) == (mask_ratio, seed)


def load(*weights: str, device: str = "cpu") -> ReconstructionService:
    return ReconstructionService.load(AppSettings(device=device, weights=weights, fetch="none"))


def joined(service: ReconstructionService) -> None:
    """Wait until nothing is opened in the background any more."""
    assert service._shelf is not None
    service._shelf.join()


def test_models_are_loaded_by_path_in_order(tmp_path: Path) -> None:
    for name in ("second", "first"):
        save_weights(tmp_path / f"{name}.safetensors", small_reconstructor().model, record={})
    paths = [str(tmp_path / "first.safetensors"), str(tmp_path / "second.safetensors")]
    service = load(*paths)
    assert service.models[:2] == ("first", "second")
    facts = service.reconstruct(example("cat"), 0.75, 2).facts
    assert (facts["model"], facts["device"]) == (service.models[0], "cpu")


def test_two_weights_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_weights(path, small_reconstructor().model, record={})
    with pytest.raises(ConfigError, match="a name of its own"):
        load(str(path), str(path))


def test_weights_that_cannot_be_opened_keep_their_place(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    save_weights(good, small_reconstructor().model, record={})
    bad.write_bytes(good.read_bytes()[:5000])
    service = load(str(bad), "no-such-weights", str(good))
    joined(service)
    assert service.models[:3] == ("bad", "no-such-weights", "good")
    assert service.reconstruct(example("cat"), 0.75, 2, model="good").facts["model"] == "good"
    # No other model is given in place of the one asked for.
    with pytest.raises(CheckpointError, match=r"^bad cannot be used now, as its weights are"):
        service.reconstruct(example("cat"), 0.75, 2)
    assert "cannot be used now" in str(service.offer("no-such-weights").error)
    assert [service.offer(name).state for name in service.models[:3]] == [
        "failed", "failed", "ready",
    ]  # fmt: skip
    assert service.ready() == "the model bad is not there: failed"
    assert load(str(good)).ready() is None


def test_weights_that_arrive_later_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.models.shelf.RETRY_SECONDS", 0)
    late = tmp_path / "late.safetensors"
    service = load(str(late))
    joined(service)
    assert service.ready() == "the model late is not there: waiting"
    joined(service)
    save_weights(late, small_reconstructor().model, record={})
    # What asks whether it is ready has it tried again.
    assert service.ready() is not None
    joined(service)
    assert service.ready() is None
    assert service.reconstruct(example("cat"), 0.75, 2).facts["model"] == "late"


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_weights(path, small_reconstructor().model, record={})
    with pytest.raises(ConfigError):
        load(str(path), device="abacus")


def test_no_model_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="no model"):
        ReconstructionService({})


def load_of(service: ReconstructionService) -> tuple[int, int]:
    """How many are computed, and how many wait."""
    return service._line.running, service._line.waiting


Steps = list[Waiting | Answer]


async def steps_of(service: ReconstructionService, visitor: str = "v", **changes: Any) -> Steps:
    """All that a request is told."""
    values = {"image": example("cat"), "mask_ratio": 0.75, "seed": 2, **changes}
    return [step async for step in service.answer(values, visitor)]


async def until(condition: Callable[[], object]) -> None:
    for _ in range(24_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


async def in_line(service: ReconstructionService, *seeds: int) -> "list[asyncio.Task[Steps]]":
    """Requests of which the first is being computed and the others wait."""
    asked = []
    for waiting, seed in enumerate(seeds):
        asked.append(asyncio.create_task(steps_of(service, seed=seed)))
        await until(lambda waiting=waiting: load_of(service) == (1, waiting))
    return asked


def numbers(service: ReconstructionService) -> str:
    return service.metrics.exposition()[0].decode()


def counted(service: ReconstructionService, outcome: str) -> float:
    (line,) = re.findall(
        rf'^mae_requests_total{{outcome="{outcome}"}} (.*)$', numbers(service), re.M
    )
    return float(line)


def held_service(**settings: Any) -> tuple[HeldReconstructor, ReconstructionService]:
    model = HeldReconstructor()
    given = AppSettings(**{"rate": 0, "max_batch": 1, "workers": 1, **settings})
    return model, ReconstructionService({"small-random": model}, settings=given)


def test_who_waits_is_told_the_place() -> None:
    model, service = held_service()

    told: list[Steps] = [[], [], []]

    async def ask(seed: int) -> None:
        async for step in service.answer(asked(seed), "v"):
            told[seed].append(step)

    def places() -> list[int | None]:
        latest = (steps[-1] if steps else None for steps in told)
        return [step.place if isinstance(step, Waiting) else None for step in latest]

    async def three() -> None:
        asked = []
        for seed in range(3):
            asked.append(asyncio.create_task(ask(seed)))
            await until(lambda seed=seed: load_of(service) == (1, seed))
        await until(lambda: places() == [0, 1, 2])
        model.gate.set()
        await asyncio.gather(*asked)

    with model.held():
        asyncio.run(three())
    for seed, steps in enumerate(told):
        assert isinstance(steps[-1], Answer)
        assert steps[-1].facts["seed"] == seed
    assert counted(service, "computed") == 3


def test_how_long_it_takes_is_said_once_it_is_known() -> None:
    model, service = held_service()

    async def first_step(seed: int) -> Waiting:
        async with aclosing(service.answer(asked(seed), "v")) as steps:
            async for step in steps:
                assert isinstance(step, Waiting)
                return step
        raise AssertionError

    with model.held():
        assert asyncio.run(first_step(0)).seconds is None
    asyncio.run(steps_of(service, seed=1))
    with model.held():
        seconds = asyncio.run(first_step(2)).seconds
    assert seconds is not None
    assert 0 < seconds < 60


def test_the_same_request_of_several_visitors_is_computed_once() -> None:
    model, service = held_service()

    async def together() -> list[Steps]:
        asked = [asyncio.create_task(steps_of(service, f"v{i}")) for i in range(5)]
        await asyncio.to_thread(model.begun.wait, 60)
        await asyncio.sleep(0.2)
        model.gate.set()
        return await asyncio.gather(*asked)

    with model.held():
        told = asyncio.run(together())
    assert model.sizes == [1]
    assert len({id(steps[-1]) for steps in told}) == 1


def test_what_is_cached_never_waits() -> None:
    model, service = held_service(queue=1)
    known = service.reconstruct(example("cat"), 0.75, 2)

    async def beside_a_full_line() -> Steps:
        others = await in_line(service, 3, 4)
        told = await steps_of(service)
        model.gate.set()
        await asyncio.gather(*others)
        return told

    with model.held():
        assert asyncio.run(beside_a_full_line()) == [known]
    assert counted(service, "cached") == 1


def test_a_full_line_refuses_at_once_and_in_words() -> None:
    model, service = held_service(queue=1)
    asyncio.run(steps_of(service))

    async def one_too_many() -> None:
        others = await in_line(service, 3, 4)
        with pytest.raises(BusyError) as caught:
            await steps_of(service, "w", seed=5)
        assert (caught.value.reason, caught.value.waiting) == ("full", 1)
        # From what the first one took.
        assert caught.value.retry_seconds is not None
        model.gate.set()
        await asyncio.gather(*others)

    with model.held():
        asyncio.run(one_too_many())
    assert counted(service, "busy") == 1


def test_the_rate_counts_what_is_computed_only() -> None:
    service = small_service(AppSettings(rate=6))
    now = stopped_clock(service)

    async def three() -> None:
        for _ in range(3):
            await steps_of(service)
        with pytest.raises(BusyError) as caught:
            await steps_of(service, seed=3)
        assert caught.value.reason == "rate"
        assert caught.value.retry_seconds == 10
        now[0] += 9
        with pytest.raises(BusyError):
            await steps_of(service, seed=3)
        # Another visitor has a rate of their own, and what is refused counts for nothing.
        await steps_of(service, "w", seed=3)
        with pytest.raises(MaskError):
            await steps_of(service, "w", seed=-3)

    asyncio.run(three())
    assert (counted(service, "cached"), counted(service, "refused")) == (2, 1)


def test_whoever_leaves_gives_up_the_place() -> None:
    model, service = held_service()

    async def leave() -> None:
        (first,) = await in_line(service, 0)
        steps = service.answer(asked(1), "w")
        assert await anext(steps) == Waiting(1, None)
        await steps.aclose()
        await until(lambda: load_of(service) == (1, 0))
        second = asyncio.create_task(steps_of(service, seed=2))
        await until(lambda: load_of(service) == (1, 1))
        second.cancel()
        await until(lambda: load_of(service) == (1, 0))
        model.gate.set()
        await first

    with model.held():
        asyncio.run(leave())
    assert model.sizes == [1]
    assert sum(counted(service, outcome) for outcome in OUTCOMES) == 1


def test_one_bad_picture_does_not_spoil_its_batch() -> None:
    model, service = held_service(max_batch=8)
    broken = example("cat")[:8000]

    async def ask_all() -> list[Any]:
        (first,) = await in_line(service, 0)
        images = [example("dogs"), broken, example("cat"), example("coffee")]
        asked = [
            asyncio.create_task(steps_of(service, f"v{i}", image=image, seed=i))
            for i, image in enumerate(images)
        ]
        await until(lambda: load_of(service) == (1, 4))
        model.gate.set()
        await first
        return await asyncio.gather(*asked, return_exceptions=True)

    with model.held():
        dogs, bad, cat, coffee = asyncio.run(ask_all())
    assert model.sizes == [1, 3]
    assert isinstance(bad, ImageError)
    for i, name, steps in ((0, "dogs", dogs), (2, "cat", cat), (3, "coffee", coffee)):
        direct = small_reconstructor()(example(name), 0.75, i)
        pasted = np.asarray(steps[-1].panels["pasted"]).astype(int)
        assert np.abs(pasted - np.asarray(direct.panels()["pasted"])).max() <= 1
        assert same(steps[-1].panels["masked"], direct.panels()["masked"])
    assert 'mae_batch_size_bucket{le="4.0"} 2.0' in numbers(service)


def test_a_waiting_request_holds_no_bytes(tmp_path: Path) -> None:
    model, service = held_service()
    path = tmp_path / "large.bmp"
    Image.new("RGB", (2000, 1500)).save(path)
    files = [tmp_path / f"{i}.bmp" for i in range(20)]
    for i, file in enumerate(files):
        file.write_bytes(path.read_bytes() + bytes([i]))

    async def let_them_wait() -> int:
        (first,) = await in_line(service, 2)
        tracemalloc.start()
        asked = [
            asyncio.create_task(steps_of(service, str(file), image=PictureFile(file)))
            for file in files
        ]
        await until(lambda: load_of(service) == (1, 20))
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        for task in asked:
            task.cancel()
        await until(lambda: load_of(service) == (1, 0))
        model.gate.set()
        await first
        return held

    with model.held():
        # One of the files alone is 9 MB.
        assert asyncio.run(let_them_wait()) < 2_000_000


def test_who_leaves_while_the_picture_is_looked_at_keeps_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, service = held_service()
    looking, look_on, looked = (threading.Event() for _ in range(3))
    path = tmp_path / "mine.jpg"
    path.write_bytes(example("astronaut"))

    def slow(self: Pictures, source: PictureSource) -> str:
        if source == PictureFile(path):
            looking.set()
            assert look_on.wait(240)
            looked.set()
        return digest(self, source)

    digest = Pictures.digest
    monkeypatch.setattr(Pictures, "digest", slow)

    async def leave() -> None:
        (first,) = await in_line(service, 2)
        leaving = asyncio.create_task(steps_of(service, image=PictureFile(path)))
        await until(looking.is_set)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        look_on.set()
        await until(looked.is_set)
        model.gate.set()
        await first

    with model.held():
        # Waits for the thread as well.
        asyncio.run(leave())
    assert (model.sizes, load_of(service)) == ([1], (0, 0))


def test_a_file_that_is_replaced_while_it_waits_is_not_shown(tmp_path: Path) -> None:
    model, service = held_service()
    path = tmp_path / "mine.jpg"
    path.write_bytes(example("cat"))

    async def replace_it() -> None:
        (first,) = await in_line(service, 2)
        second = asyncio.create_task(steps_of(service, image=PictureFile(path), seed=1))
        await until(lambda: load_of(service) == (1, 1))
        await until(model.begun.is_set)  # the first one's picture is decoded
        path.write_bytes(example("dogs"))
        service._pictures._decoded.clear()
        service._fitted.clear()
        model.gate.set()
        await first
        with pytest.raises(FileNotFoundError):
            await second

    with model.held():
        asyncio.run(replace_it())


def test_a_request_that_hangs_is_given_up_and_others_go_on() -> None:
    model, service = held_service(request_seconds=0.1)
    with model.held():
        for seed in range(3):
            assert (service.alive(), service.busy) == (None, seed > 0)
            with pytest.raises(TookTooLongError):
                asyncio.run(steps_of(service, seed=seed))
        assert (service.alive(), service.busy) == ("3 runs hang", True)
        assert "mae_workers_abandoned 3.0" in numbers(service)
        model.gate.set()
        asyncio.run(until(lambda: service.alive() is None))
    service._line._seconds = 240
    (*_, answer) = asyncio.run(steps_of(service, seed=9))
    assert isinstance(answer, Answer)
    assert counted(service, "timeout") == 3


def test_a_service_that_ends_answers_what_it_has() -> None:
    model, service = held_service()

    async def end() -> bool:
        asked = await in_line(service, 0, 1, 2)
        stopped = asyncio.create_task(asyncio.to_thread(service.stop, 60))
        await until(lambda: service.ready() == "the server is about to end")
        with pytest.raises(BusyError) as caught:
            await steps_of(service, seed=9)
        assert caught.value.reason == "stopping"
        model.gate.set()
        for steps in await asyncio.gather(*asked):
            assert isinstance(steps[-1], Answer)
        return await stopped

    with model.held():
        assert asyncio.run(end())


def test_a_log_line_tells_nothing_of_the_visitor(caplog: pytest.LogCaptureFixture) -> None:
    service = small_service()
    with caplog.at_level("INFO"):
        asyncio.run(steps_of(service, "192.0.2.7"))
        asyncio.run(steps_of(service, "192.0.2.7"))
        with pytest.raises(ConfigError):
            asyncio.run(steps_of(service, model="<b>mine</b>"))
    fields: list[Any] = [record.fields for record in caplog.records]  # type: ignore[attr-defined]
    told = [{key: given[key] for key in given if key != "seconds"} for given in fields]
    # The line is empty: it is next, unless the worker has it already.
    assert told[0].pop("place") in (0, 1)
    assert told == [
        {"outcome": "computed", "model": "small-random", "batch": 1},
        {"outcome": "cached", "model": "small-random"},
        {"outcome": "refused", "model": "other"},
    ]
