"""Questions beside the panels, beside what the library says of the same."""

import asyncio
import io
import json
import re
from collections.abc import Sequence
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app.experiments import _NUMBERS, KINDS, Plan, ask
from app.i18n import LOCALES, error_sentence
from app.line import BusyError
from app.models.served import ServedModel
from app.page.events import Events
from app.service import ReconstructionService, Waiting
from app.settings import AppSettings
from mae_core import MAEError, MaskedAutoencoder, Reconstruction, Reconstructor
from mae_core.errors import ConfigError, ImageError, MaskError
from mae_core.inside.attention import attend
from mae_core.inside.influence import influence
from mae_core.inside.snapshots import rebuild_by_snapshots
from mae_core.inside.stages import trace
from mae_core.inside.uncertainty import uncertainty
from mae_core.model.mae import forward_flops
from mae_core.reconstruct import ReconstructionRequest
from mae_core.settings import VERSION
from mae_core.weights.formats import save_weights
from tests.app.serving import (
    CONFIG,
    HeldReconstructor,
    example,
    small_reconstructor,
    small_service,
)

CAT = example("cat")
MASK = {"strategy": "random", "ratio": 0.5, "seed": 3, "rows": [], "drawing": ""}
REQUEST: dict[str, Any] = {
    "v": VERSION, "mask": MASK, "fit": "crop", "model": "small-random", "image_size": None,
    "view": "estimated",
}  # fmt: skip


class CountingReconstructor(Reconstructor):
    """Counts the pictures that it rebuilds."""

    def __init__(self, *, norm_pix: bool = False) -> None:
        plain = small_reconstructor(norm_pix=norm_pix)
        super().__init__(plain.model, plain.name, device="cpu", precision="float32")
        self.pictures = 0

    def batch(self, requests: Sequence[ReconstructionRequest]) -> list[Reconstruction | MAEError]:
        self.pictures += len(requests)
        return super().batch(requests)


README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def plan(kind: str, **values: Any) -> Plan:
    return Plan.from_json({"v": VERSION, "kind": kind, "request": REQUEST, **values}, CAT)


def parts_of(service: ReconstructionService, asked: Plan) -> list[dict[str, Any]]:
    async def collect() -> list[dict[str, Any]]:
        async with aclosing(ask(service, asked, "visitor")) as parts:
            return [part async for part in parts if not isinstance(part, Waiting)]

    return asyncio.run(collect())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "JSON object with v, kind and request"),
        ({"v": VERSION, "kind": "film"}, "JSON object with v, kind and request"),
        ({"v": 99, "kind": "film", "request": REQUEST}, "give v = 1"),
        ({"v": True, "kind": "film", "request": REQUEST}, "of version True; give v = 1"),
        ({"v": VERSION, "kind": "story", "request": REQUEST}, "kind is 'story'; choose"),
        ({"v": VERSION, "kind": "film", "request": REQUEST, "frames": 1}, "frames is 1; .* 2 to"),
        ({"v": VERSION, "kind": "doubt", "request": REQUEST, "masks": "x"}, "masks is 'x'; .* 64"),
        ({"v": VERSION, "kind": "film", "request": REQUEST, "format": "mp4"}, "webp, gif"),
        ({"v": VERSION, "kind": "film", "request": REQUEST, "format": []}, r"format is \[\]"),
        ({"v": VERSION, "kind": "doubt", "request": REQUEST, "mask": 4},
         "kind doubt has no 'mask'; it has v, kind, request, masks"),
        ({"v": VERSION, "kind": "doubt", "request": REQUEST, "format": "gif"}, "no 'format'"),
        ({"v": VERSION, "kind": "single", "request": REQUEST, "frames": 5}, "no 'frames'"),
        ({"v": VERSION, "kind": "film", "request": {**REQUEST, "v": 99}}, "are of version 99"),
        ({"v": VERSION, "kind": "film", "request": {**REQUEST, "speed": 1}}, "have no 'speed'"),
    ],
    ids=str,
)  # fmt: skip
def test_a_plan_of_another_form_is_refused(data: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Plan.from_json(data, CAT)
    assert told_of_its_own(caught.value)


def told_of_its_own(error: MAEError) -> bool:
    """Whether the Chinese sentence is more than that of any value which is not offered."""
    return error_sentence(error, "zh") not in ("", LOCALES["zh"]["errors"]["other"])


@pytest.mark.parametrize("text", [README, Events.ask.__doc__ or ""], ids=["README", "ask"])
def test_all_kinds_and_numbers_are_in_the_docs(text: str) -> None:
    prose = " ".join(text.split())
    for kind, numbers in _NUMBERS.items():
        for name, (least, most, default) in numbers.items():
            bounds = f", {least} to {most}, {default}" if least else ", [^)]*0"
            assert re.search(rf"`{kind}` \([^)]*`{name}`{bounds}[^)]*\)", prose), name
        assert f"`{kind}`" in prose
    assert re.search(r"`film` \([^)]*`format`", prose)


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"models"}))
def test_wrong_requests_are_refused_as_everywhere(kind: str) -> None:
    service = small_service()
    for changes, error, words in (
        ({"mask": MASK | {"ratio": 2}}, MaskError, "mask_ratio is 2"),
        ({"model": "other"}, ConfigError, "model is 'other'"),
        ({"fit": 5}, ConfigError, "fit is 5"),
    ):
        asked = {"v": VERSION, "kind": kind, "request": REQUEST | changes}
        with pytest.raises(error, match=words):
            parts_of(service, Plan.from_json(asked, CAT))
    with pytest.raises(ImageError, match="no picture"):
        parts_of(service, Plan.from_json({"v": VERSION, "kind": kind, "request": REQUEST}, None))


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"training"}))
def test_parts_are_plain_data_and_pictures(kind: str) -> None:
    def plain(value: Any) -> Any:
        return "picture" if isinstance(value, Image.Image) else value

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without(inner) for name, inner in value.items()}
        return plain(value)

    for part in parts_of(small_service(), plan(kind)):
        json.dumps(without(part), allow_nan=False)


def test_a_single_answer_is_the_reconstruction() -> None:
    (part,) = parts_of(small_service(), plan("single"))
    direct = small_reconstructor()(CAT, 0.5, 3)
    for name in ("original", "reconstruction"):
        assert np.array_equal(np.asarray(part[name]), np.asarray(direct.panels()[name]))
    assert part["facts"]["psnr"] == pytest.approx(direct.psnr)
    assert part["settings"]["mask"] == MASK | {"rows": ()}


def test_a_films_masks_are_nested_and_its_frames_are_kept() -> None:
    model = CountingReconstructor()
    service = ReconstructionService({"small-random": model})
    frames = parts_of(service, plan("film", frames=5))
    assert [part["mask_ratio"] for part in frames] == [0.95, 0.725, 0.5, 0.275, 0.05]
    assert [(part["done"], part["of"]) for part in frames] == [(i + 1, 5) for i in range(5)]
    removed = [{i for i, c in enumerate("".join(part["mask"])) if c == "1"} for part in frames]
    assert all(later < earlier for earlier, later in pairwise(removed))
    direct = small_reconstructor()(CAT, 0.5, 3)
    assert frames[2]["facts"]["psnr"] == pytest.approx(direct.psnr)
    assert set(frames[2]["baselines"]) == {"mean_colour", "telea"}
    assert model.pictures == 5
    *_, film = parts_of(service, plan("film", frames=5, format="webp"))
    assert model.pictures == 5
    with Image.open(io.BytesIO(film["file"])) as animation:
        assert (animation.format, animation.n_frames) == ("WEBP", 5)  # type: ignore[attr-defined]
    assert film["name"] == "film.webp"


def test_an_own_mask_does_not_change_the_film() -> None:
    own = REQUEST | {"mask": MASK | {"rows": ["0" * 7] + ["1" * 7] * 6}}
    asked = Plan.from_json({"v": VERSION, "kind": "film", "request": own, "frames": 2}, CAT)
    assert [part["mask"] for part in parts_of(small_service(), asked)] == [
        part["mask"] for part in parts_of(small_service(), plan("film", frames=2))
    ]


def test_doubt_is_that_of_the_library() -> None:
    *progress, part = parts_of(small_service(), plan("doubt", masks=6))
    assert [step["done"] for step in progress] == [1, 2, 3, 4, 5, 6]
    direct = uncertainty(small_reconstructor(), CAT, 6, 0.5, 3)
    assert (part["runs"], part["mask_ratio"]) == (6, 0.5)
    assert np.array_equal(part["hidden"], direct.hidden)
    assert part["mean_psnr"] == pytest.approx(direct.mean_psnr, abs=1e-3)
    for name, pixels, patches in (
        ("error", direct.error, direct.patch_error),
        ("disagreement", direct.disagreement, direct.patch_disagreement),
    ):
        levels = np.asarray(part[name]["picture"], float)
        known = levels[..., 2] == 255
        assert np.array_equal(known, np.isfinite(pixels))
        shown = (256 * levels[..., 0] + levels[..., 1]) / 65535 * part[name]["scale"]
        assert np.abs(shown - pixels)[known].max() <= 1e-4
        values = np.array(part[name]["patches"], float)
        assert np.allclose(values, patches, atol=1e-3, equal_nan=True)


def test_influence_is_that_of_the_library() -> None:
    parts = parts_of(small_service(), plan("influence"))
    direct = influence(small_reconstructor(), CAT, mask_ratio=0.5, seed=3)
    assert [part["patch"] for part in parts] == direct.visible.tolist()
    assert parts[-1]["done"] == parts[-1]["of"] == len(direct.visible) == 24
    change = np.array([part["change"] for part in parts])[:, direct.removed]
    assert np.abs(change - direct.change).max() < 1e-3
    assert change.max() > 1e-3


def test_attention_is_that_of_the_library() -> None:
    (part,) = parts_of(small_service(), plan("attention", patch=4))
    direct = attend(small_reconstructor(), ReconstructionRequest(CAT, 0.5, 3), 4)
    assert np.allclose(part["decoder"], direct.decoder, atol=1e-5)
    assert part["visible"] == direct.visible
    assert (part["encoder"] is None) == (direct.encoder is None)


def test_a_patch_that_is_not_there_is_refused() -> None:
    with pytest.raises(MAEError, match="give 0 to 48") as caught:
        parts_of(small_service(), plan("attention", patch=49))
    assert error_sentence(caught.value, "zh") == (
        "patch 为 49；这张图片有 49 个图块，请给出 0 到 48。"
    )


def test_questions_that_cannot_be_answered_say_why_in_chinese() -> None:
    service = ReconstructionService({"small-random": small_reconstructor(norm_pix=True)})
    drawn = REQUEST | {"mask": MASK | {"drawing": "digest"}}
    for request, words in (
        (REQUEST | {"view": "normalized"}, "normalized cannot be compared"),
        (drawn, "need its picture"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            parts_of(service, plan("doubt", request=request))
        assert told_of_its_own(caught.value)


def test_stages_are_counted_from_the_model() -> None:
    (part,) = parts_of(small_service(), plan("inside"))
    direct = trace(small_reconstructor(), ReconstructionRequest(CAT, 0.5, 3)).to_json()
    assert json.dumps(part | {"changes": 0}) == json.dumps(direct | {"changes": 0})
    assert part["flops"] == forward_flops(CONFIG, (7, 7), 0.5)


@pytest.mark.parametrize("norm_pix", [False, True])
def test_scrambled_pixels_leave_the_prediction_as_it_is(norm_pix: bool) -> None:
    model = small_reconstructor(norm_pix=norm_pix)
    (part,) = parts_of(ReconstructionService({"small-random": model}), plan("leak"))
    assert (part["same"], part["changed_values"], part["values"]) == (True, 0, 3 * 112 * 112)
    assert np.array_equal(np.asarray(part["before"]), np.asarray(part["after"]))
    assert (part["answer"] is not None) == norm_pix
    if norm_pix:
        assert not part["answer"]["same"]
        assert part["answer"]["changed_values"] > 0


@pytest.mark.parametrize(
    ("kind", "values", "runs"),
    [("single", {}, 1), ("film", {"frames": 4}, 4), ("doubt", {"masks": 5}, 5),
     ("influence", {}, 25), ("attention", {}, 1), ("inside", {}, 1), ("leak", {}, 2)],
)  # fmt: skip
def test_a_question_costs_as_many_runs_as_it_takes(
    kind: str, values: dict[str, int], runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = small_service(AppSettings(rate=6000))
    taken: list[float] = []
    assert service._rate is not None
    monkeypatch.setattr(
        service._rate, "take", lambda visitor, amount=1, spare=0: taken.append(amount) or 0.0
    )
    parts_of(service, plan(kind, **values))
    assert sum(taken) == runs


def test_a_visitor_beyond_the_rate_waits_between_the_runs_of_a_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = small_service(AppSettings(rate=6000))
    waits = iter([0.0, 0.01, 0.01, 0.0, 0.0, 5.0])
    assert service._rate is not None
    monkeypatch.setattr(service._rate, "take", lambda visitor, amount=1, spare=0: next(waits))
    assert len(parts_of(service, plan("film", frames=3))) == 3
    # Nothing that has begun is waited for.
    with pytest.raises(BusyError):
        parts_of(service, plan("doubt", masks=3))


def test_who_leaves_a_question_takes_its_other_runs_along() -> None:
    model = HeldReconstructor()
    service = ReconstructionService(
        {"small-random": model}, settings=AppSettings(rate=0, workers=1, max_batch=1)
    )

    async def leave() -> None:
        parts = ask(service, plan("film", frames=30), "visitor")
        async with aclosing(parts):
            async for part in parts:
                if not isinstance(part, Waiting):
                    break

    asyncio.run(leave())
    # Those that were in line with the first.
    assert len(model.sizes) <= 5


def test_the_runs_of_a_question_take_turns_with_other_visitors() -> None:
    model = HeldReconstructor()
    service = ReconstructionService(
        {"small-random": model}, settings=AppSettings(rate=0, workers=1, max_batch=1)
    )

    async def both() -> int:
        long = asyncio.create_task(_collected(service, plan("doubt", masks=40), "first"))
        await asyncio.to_thread(model.begun.wait, 240)
        short = asyncio.create_task(_collected(service, plan("single"), "second"))
        while service._line.waiting < 2:
            await asyncio.sleep(0.01)
        model.gate.set()
        await short
        done = len(model.sizes)
        long.cancel()
        return done

    model.gate.clear()
    assert asyncio.run(both()) < 20


async def _collected(
    service: ReconstructionService, asked: Plan, visitor: str
) -> list[dict[str, Any]]:
    async with aclosing(ask(service, asked, visitor)) as parts:
        return [part async for part in parts if not isinstance(part, Waiting)]


def test_a_training_run_is_seen_by_its_snapshots(tmp_path: Path) -> None:
    model = small_reconstructor().model
    for step in (2, 40):
        torch.manual_seed(step)
        other = MaskedAutoencoder(CONFIG)
        path = tmp_path / "snapshots" / f"step-{step:06d}.safetensors"
        save_weights(path, other, record={"step": step, "steps": 40})
    save_weights(tmp_path / "weights.safetensors", model, record={})
    served = ServedModel.open(str(tmp_path), device="cpu")
    parts = parts_of(ReconstructionService({"small-random": served}), plan("training"))
    assert [(part["step"], part["done"], part["of"]) for part in parts] == [(2, 1, 2), (40, 2, 2)]
    by_library = rebuild_by_snapshots(tmp_path, CAT, mask_ratio=0.5, seed=3, device="cpu")
    for part, (step, result) in zip(parts, by_library, strict=True):
        assert part["step"] == step
        assert np.array_equal(
            np.asarray(part["reconstruction"]), np.asarray(result.panels()["reconstruction"])
        )
    assert parts[0]["facts"]["psnr"] != parts[1]["facts"]["psnr"]


def test_a_model_without_snapshots_says_how_to_get_them() -> None:
    with pytest.raises(ConfigError, match=r"no snapshots of its training; train with snapshots=8"):
        parts_of(small_service(), plan("training"))


def test_a_long_question_leaves_the_visitor_half_of_what_may_come_at_once() -> None:
    model = HeldReconstructor()
    settings = AppSettings(rate=60, workers=1, max_batch=1)
    service = ReconstructionService({"small-random": model}, settings=settings)

    async def both() -> int:
        async with aclosing(ask(service, plan("doubt", masks=30), "visitor")) as parts:
            async for part in parts:
                if isinstance(part, Waiting) and part.paused:
                    break
            # What the page asks meanwhile is answered.
            return len(await _collected(service, plan("single"), "visitor"))

    assert asyncio.run(both()) == 1
    assert len(model.sizes) <= 7


def test_who_saves_a_film_while_another_is_saved_is_told_to_wait() -> None:
    service = ReconstructionService({"small-random": small_reconstructor()})

    async def both() -> tuple[object, list[object]]:
        held = 0
        while not service.films.locked():
            await service.films.acquire()
            held += 1
        parts = ask(service, plan("film", frames=2, format="webp"), "visitor")
        first = await anext(parts)
        for _ in range(held):
            service.films.release()
        return first, [part async for part in parts if not isinstance(part, Waiting)]

    first, rest = asyncio.run(both())
    assert isinstance(first, Waiting)
    assert first.paused
    assert len(rest) == 3
