"""What can be asked of a picture beside its panels: a `Plan` in, parts of an answer out.

A plan is JSON, of the version that `Request` has:

    {"v": 1, "kind": "doubt", "masks": 16, "request": {...as Request.to_json...}}

Each part is a dictionary of plain data and pictures. Every run of the model is a request in line.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache, cached
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from app.models.zerogpu import ZeroGPUReconstructor
from app.pictures import PictureSource
from app.request import Mask, Request, check_choice, check_whole
from app.service import Answer, Job, ReconstructionService, Waiting
from mae_core.errors import ConfigError
from mae_core.images import to_pil
from mae_core.inside.attention import Attention, attend
from mae_core.inside.influence import leave_one_out, patch_change
from mae_core.inside.leaks import Comparison, LeakProof, prove
from mae_core.inside.snapshots import open_snapshot
from mae_core.inside.stages import Trace, trace
from mae_core.inside.sweep import (
    FILM_FORMATS,
    baseline_psnr,
    encode_film,
    film_frame,
    film_ratios,
)
from mae_core.inside.uncertainty import Doubt, doubt_seeds
from mae_core.reconstruct import MAX_PATCHES, Reconstruction, ReconstructionRequest, Reconstructor
from mae_core.settings import VERSION, rows_of

# Whole numbers of a plan: kind -> name -> (least, most, default).
_NUMBERS: dict[str, dict[str, tuple[int, int, int]]] = {
    "single": {},
    "files": {},
    "film": {"frames": (2, 37, 19)},
    "doubt": {"masks": (2, 64, 16)},
    "influence": {},
    "attention": {"patch": (0, MAX_PATCHES - 1, 0)},
    "inside": {},
    "leak": {"noise": (0, 2**31 - 1, 0)},
    "training": {},
    "models": {},
}
KINDS = tuple(_NUMBERS)

# Classical inpainting and the encoding of films take seconds for large pictures: one at a time, so
# that films leave the cores to the line.
_films = ThreadPoolExecutor(1, "films")

# Masks of pictures whose baselines are kept.
_BASELINES = 4096

# Of a panel in a film that is saved, in pixels.
_FILM_SIDE = 512

Part = dict[str, Any]
Parts = AsyncGenerator[Waiting | Part, None]


@dataclass(frozen=True)
class Plan:
    """One question about one picture.

    Attributes:
        kind: One of `KINDS`.
        values: By the names of `app.request`: the request that the question is about.
        number: Frames, masks, a patch or a seed; 0 where the kind has none.
        format: Of a film as a file: `webp` or `gif`; empty for none.
    """

    kind: str
    values: Mapping[str, object]
    number: int = 0
    format: str = ""

    @classmethod
    def from_json(cls, data: object, image: PictureSource | None) -> "Plan":
        """A plan from anything that JSON holds; the service checks its request.

        Raises:
            ConfigError: If it is of another version or form, or has what its kind does not take.
        """
        asked = data.get("request") if isinstance(data, Mapping) else None
        if not isinstance(data, Mapping) or not isinstance(asked, Mapping):
            raise ConfigError(
                "a question is a JSON object with v, kind and request", code="no_question"
            )
        version = data.get("v")
        if version != VERSION or isinstance(version, bool):
            raise ConfigError(
                f"this question is of version {version!r:.40}; give v = {VERSION}",
                code="version", given=f"{version!r:.40}", allowed=VERSION,
            )  # fmt: skip
        kind = check_choice("kind", data.get("kind"), KINDS)
        own = [*_NUMBERS[kind], *(["format"] if kind == "film" else [])]
        names = ["v", "kind", "request", *own]
        if unknown := [name for name in data if name not in names]:
            given, allowed = f"{unknown[0]!r:.40}", ", ".join(names)
            raise ConfigError(
                f"a question of the kind {kind} has no {given}; it has {allowed}",
                code="no_field", kind=kind, given=given, allowed=allowed,
            )  # fmt: skip
        number = 0
        for name, (least, most, default) in _NUMBERS[kind].items():
            number = check_whole(name, data.get(name, default), least, most)
        form = check_choice("format", data["format"], FILM_FORMATS) if "format" in data else ""
        values = Request.values_of(asked) | {"image": image}
        return cls(kind, values, number, form)


async def ask(service: ReconstructionService, plan: Plan, visitor: str) -> Parts:
    """The answer to a plan, in parts as they come.

    Raises:
        MAEError: As `ReconstructionService.answer`.
    """
    if plan.kind in ("single", "files"):
        async with aclosing(service.answer(plan.values, visitor)) as answers:
            async for answer in answers:
                if isinstance(answer, Waiting):
                    yield answer
                else:
                    # All panels are those that `mae reconstruct` writes.
                    yield view_of(answer) if plan.kind == "single" else dict(answer.panels)
        return
    if plan.kind == "models":
        yield {"models": await asyncio.to_thread(_models, service)}
        return
    job = await service.prepare(plan.values)
    parts = {
        "film": _film, "doubt": _doubt, "influence": _influence, "attention": _attention,
        "inside": _inside, "leak": _leak, "training": _training,
    }[plan.kind](service, job, plan, visitor)  # fmt: skip
    async with aclosing(parts):
        async for part in parts:
            yield part


def view_of(answer: Answer) -> Part:
    """What a page shows of an answer; masked and pasted are composed there."""
    return {
        "original": answer.panels["original"],
        "reconstruction": answer.panels["reconstruction"],
        "mask": answer.mask,
        "facts": answer.facts,
        "settings": answer.request.to_json(),
    }


def _models(service: ReconstructionService) -> list[Part]:
    """Models that another answer can be asked of; `bytes` of its files, where known."""
    return [
        {"name": offer.name, "state": offer.state, "bytes": offer.total}
        for offer in service.offers()
    ]


async def _film(service: ReconstructionService, job: Job, plan: Plan, visitor: str) -> Parts:
    """A frame for each mask ratio, and at last the film as a file."""
    ratios = film_ratios(plan.number)
    drawn = replace(job.request.mask, rows=(), drawing="")
    masks = [replace(drawn, ratio=ratio) for ratio in ratios]
    loop = asyncio.get_running_loop()
    frames: list[Image.Image] = []
    done = 0
    while plan.format and service.films.locked():
        yield Waiting(0, None, paused=True)
        await asyncio.sleep(1)
    async with service.films if plan.format else nullcontext():
        async with aclosing(service.series(job, masks, visitor)) as steps:
            async for step in steps:
                if isinstance(step, Waiting):
                    yield step
                    continue
                answer, _ = step
                ratio = ratios[done]
                done += 1
                if plan.format:
                    frames.append(await loop.run_in_executor(_films, _frame, answer.panels, ratio))
                yield {
                    **view_of(answer), "done": done, "of": len(ratios), "mask_ratio": ratio,
                    "baselines": await loop.run_in_executor(_films, _baselines, answer),
                }  # fmt: skip
        if plan.format:
            film = await loop.run_in_executor(_films, encode_film, frames, plan.format)
            yield {"file": film, "name": f"film.{plan.format}"}


def _frame(panels: Mapping[str, Image.Image], mask_ratio: float) -> Image.Image:
    factor = max(1.0, *(max(panel.size) / _FILM_SIDE for panel in panels.values()))
    reduced = {
        name: panel.resize((round(panel.width / factor), round(panel.height / factor)))
        for name, panel in panels.items()
    }
    return film_frame(reduced, mask_ratio)


@cached(
    LRUCache(_BASELINES), lock=threading.Lock(),
    key=lambda answer: (answer.mask, hash(answer.panels["original"].tobytes())),
)  # fmt: skip
def _baselines(answer: Answer) -> dict[str, float | None]:
    removed = np.array([[cell == "1" for cell in row] for row in answer.mask])
    pixels = np.asarray(answer.panels["original"].convert("RGB"), np.float32) / 255
    return baseline_psnr(torch.from_numpy(pixels).permute(2, 0, 1), removed)


async def _doubt(service: ReconstructionService, job: Job, plan: Plan, visitor: str) -> Parts:
    """Maps of error and disagreement, and the mean picture, over masks of one ratio."""
    drawn = replace(job.request.mask, rows=(), drawing="")
    masks = [replace(drawn, seed=seed) for seed in doubt_seeds(drawn.seed, plan.number)]
    doubt, original = Doubt(), None
    async with aclosing(service.series(job, masks, visitor, exact=True)) as steps:
        async for step in steps:
            if isinstance(step, Waiting):
                yield step
                continue
            result = _exact(step)
            original = result.original
            await asyncio.to_thread(doubt.add, result)
            yield {"done": doubt.runs, "of": len(masks)}
    assert original is not None
    yield {"mask_ratio": drawn.ratio} | await asyncio.to_thread(_doubt_part, doubt, original)


def _doubt_part(doubt: Doubt, original: Tensor) -> Part:
    return {
        "runs": doubt.runs,
        "hidden": doubt.hidden.tolist(),
        "original": to_pil(original),
        "mean": to_pil(torch.from_numpy(doubt.mean).float()),
        "mean_psnr": doubt.mean_psnr,
        "single_psnr": doubt.single_psnr,
        "error": _map(doubt.error, doubt.patch_error),
        "disagreement": _map(doubt.disagreement, doubt.patch_disagreement),
    }


def _map(pixels: NDArray[np.floating[Any]], patches: NDArray[np.floating[Any]]) -> Part:
    """A map for the browser.

    Its `picture` has 16 bits a pixel in red and green, the share of `scale`; blue is 255 where
    there is a value. `patches` has None where there is none.
    """
    known = np.isfinite(pixels)
    scale = float(pixels[known].max()) if known.any() else 0.0
    levels = np.where(known, pixels / (scale or 1.0) * 65535, 0).round().astype(np.uint16)
    bands = np.stack([levels >> 8, levels & 255, np.where(known, 255, 0)], axis=-1)
    rows = [[round(v, 6) if np.isfinite(v) else None for v in row] for row in patches.tolist()]
    return {"picture": Image.fromarray(bands.astype(np.uint8)), "scale": scale, "patches": rows}


async def _influence(service: ReconstructionService, job: Job, plan: Plan, visitor: str) -> Parts:
    """For each visible patch, how much each removed patch changes without it."""
    before = None
    async with aclosing(service.series(job, [job.request.mask], visitor, exact=True)) as steps:
        async for step in steps:
            if isinstance(step, Waiting):
                yield step
            else:
                before = _exact(step)
    assert before is not None
    without = leave_one_out(before.removed)
    masks = [Mask(rows=rows_of(removed)) for _, removed in without]
    count = 0
    series = service.series(job, masks, visitor, exact=True, begun=True)
    async with aclosing(series) as steps:
        async for step in steps:
            if isinstance(step, Waiting):
                yield step
                continue
            change = (await asyncio.to_thread(patch_change, before, _exact(step))).ravel()
            count += 1
            yield {
                "done": count, "of": len(masks), "patch": without[count - 1][0],
                "mask": rows_of(before.removed),
                "change": [float(f"{value:.5g}") for value in change],
            }  # fmt: skip


def _exact(step: tuple[Answer, Reconstruction | None]) -> Reconstruction:
    result = step[1]
    assert result is not None  # asked for
    return result


async def _attention(service: ReconstructionService, job: Job, plan: Plan, visitor: str) -> Parts:
    """Attention of one patch by layer and head."""
    measure = partial(attend, patch=plan.number)
    async with aclosing(service.measure(job, measure, visitor)) as steps:
        async for step in steps:
            if not isinstance(step, Waiting):
                step = await asyncio.to_thread(_attention_part, step)
            yield step


def _attention_part(attention: Attention) -> Part:
    encoder = attention.encoder
    return {
        "patch": attention.patch,
        "visible": list(attention.visible),
        "decoder": np.asarray(attention.decoder, float).round(6).tolist(),
        "encoder": None if encoder is None else np.asarray(encoder, float).round(6).tolist(),
    }


async def _inside(service: ReconstructionService, job: Job, plan: Plan, visitor: str) -> Parts:
    """What the model does with the picture, stage by stage."""
    async with aclosing(service.measure(job, trace, visitor)) as steps:
        async for step in steps:
            yield step.to_json() if isinstance(step, Trace) else step


async def _leak(service: ReconstructionService, job: Job, plan: Plan, visitor: str) -> Parts:
    """Whether other pixels under the removed patches change the prediction."""
    measure = partial(prove, seed=plan.number)
    # Both pictures, and again with the answer's brightness and contrast.
    runs = 4 if job.served.config.norm_pix else 2
    async with aclosing(service.measure(job, measure, visitor, runs)) as steps:
        async for step in steps:
            yield _leak_part(step) if isinstance(step, LeakProof) else step


def _leak_part(proof: LeakProof) -> Part:
    return {
        "scrambled": to_pil(proof.scrambled),
        **_comparison(proof),
        # Of models of normalised pixels, told the answer's brightness and contrast.
        "answer": proof.answer and _comparison(proof.answer),
    }


def _comparison(pair: Comparison) -> Part:
    before, after = map(to_pil, pair.predictions)
    return {
        "before": before, "after": after, "same": pair.same,
        "changed_values": pair.changed_values, "values": pair.predictions[0].numel(),
        "largest_change": pair.largest_change,
    }  # fmt: skip


async def _training(service: ReconstructionService, job: Job, plan: Plan, visitor: str) -> Parts:
    """The picture by each snapshot of the model's training run."""
    snapshots = job.served.snapshots
    if not snapshots:
        raise ConfigError(
            f"{job.request.model} has no snapshots of its training; train with snapshots=8 and "
            "serve the run's folder by --weights",
            code="no_snapshots", model=job.request.model,
        )  # fmt: skip
    for done, (step, path) in enumerate(snapshots.items(), 1):
        measure = partial(_by_snapshot, path=path)
        begun = done > 1
        async with aclosing(service.measure(job, measure, visitor, begun=begun)) as results:
            async for result in results:
                if isinstance(result, Waiting):
                    yield result
                    continue
                answer = Answer(
                    job.request, result.panels(), result.facts(), rows_of(result.removed)
                )
                yield {**view_of(answer), "done": done, "of": len(snapshots), "step": step}


def _by_snapshot(
    reconstructor: Reconstructor, request: ReconstructionRequest, *, path: Path
) -> Reconstruction:
    device = "cpu" if isinstance(reconstructor, ZeroGPUReconstructor) else reconstructor.device
    return open_snapshot(path, device=str(device))(**vars(request))
