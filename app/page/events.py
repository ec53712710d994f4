"""Between widgets and the service: values in, pictures and facts out, errors as sentences."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from app.components import as_gradio_error, language_of, sentence_for, visitor_of
from app.i18n import line_sentence, progress_sentence, size_of, text
from app.models.served import Progress
from app.models.shelf import PATIENCE_SECONDS, NotReadyError, Offer
from app.service import Answer, ReconstructionService, Waiting
from mae_core import MAEError
from mae_core.errors import ImageError
from mae_core.reconstruct import NORM_PIX_VIEWS

PANELS = ("original", "masked", "reconstruction", "pasted")

Panel = Image.Image | None
Outputs = tuple[Panel, Panel, Panel, Panel, dict[str, Any]]

_EMPTY: tuple[None, None, None, None] = (None, None, None, None)

# What the page offers beside the model's own size, in pixels; `OWN_SIZE` stands for that.
OWN_SIZE = 0
SIZES = (336, 448, 672, 1024)

_PATIENCE = f"{PATIENCE_SECONDS / 60:g}"


class Handlers:
    """The functions that the page's events and the API call."""

    def __init__(self, service: ReconstructionService, examples: dict[str, Path]) -> None:
        """Handle events.

        Args:
            service: What answers them.
            examples: Name -> picture file.
        """
        self._service = service
        self._examples = examples

    async def reconstruct(
        self,
        image: Any,
        mask_ratio: Any,
        seed: Any,
        strategy: Any,
        fit: Any,
        model: Any,
        image_size: Any = None,
        view: Any = NORM_PIX_VIEWS[0],
        mask: Any = None,
        request: gr.Request | None = None,
    ) -> Outputs:
        """Remove patches of a picture and rebuild it; Gradio tells callers of this signature.

        Args:
            image: The picture, a file of an ordinary photo format.
            mask_ratio: Fraction of the patches removed, 0.05 to 0.95.
            seed: Which patches are removed, a whole number from 0.
            strategy: "random", "block" or "grid".
            fit: "crop", "squash" or "whole".
            model: Name of the weights.
            image_size: Size of the picture in pixels, a multiple of the model's patch side; the
                model's own if not given.
            view: Of models that predict normalised pixels: "estimated", "answer" or "normalized".
            mask: Own mask in place of ratio, seed and strategy: a list of rows of 0 and 1, one for
                each patch, 1 = removed.
            request: Who asks; Gradio fills it in.

        Returns:
            The pictures original, masked, reconstruction and pasted, and the facts.
        """
        values = {
            "image": image, "mask_ratio": mask_ratio, "seed": seed, "strategy": strategy,
            "fit": fit, "model": model, "image_size": image_size, "view": view, "mask": mask,
        }  # fmt: skip
        try:
            async with aclosing(self._service.answer(values, visitor_of(request))) as steps:
                async for step in steps:
                    if isinstance(step, Answer):
                        return outputs_of(step)
        except Exception as error:
            raise as_gradio_error(error, request) from error
        raise AssertionError("there is an answer or an error")

    async def update(
        self, request: gr.Request | None = None, **values: Any
    ) -> AsyncGenerator[tuple[Any, ...], None]:
        """As `reconstruct`, for the page: what cannot be shown leaves the panels empty.

        So the panels never show another picture than the one chosen. An error's sentence, or how
        far the model is on its way, takes the place of the facts; and so does, while the panels
        stay as they are, the place in the line. The last output is the timer, which asks again
        while the model is on its way.
        """
        if values["image"] is None:
            yield *_EMPTY, None, gr.Timer(active=False)
            return
        try:
            # In a thread, as files are looked at.
            values["image_size"] = await asyncio.to_thread(
                self._size_for, values["model"], values["image_size"]
            )
            async with aclosing(self._service.answer(values, visitor_of(request))) as steps:
                async for step in steps:
                    yield _step_outputs(step, request)
        except NotReadyError as error:
            yield *_EMPTY, _waiting(error.offer, request), gr.Timer(active=True)
        except Exception as error:
            yield *_EMPTY, {"error": sentence_for(error, request)}, gr.Timer(active=False)

    def _size_for(self, model: Any, size: Any) -> Any:
        """The size that a model takes, by the page's choice of sizes."""
        # Whoever changes a control wants it to be tried again.
        self._service.forget_failure(model)
        if isinstance(size, int) and size > OWN_SIZE:
            return self._service.nearest_size(model, size)
        return size or None

    def look(self, model: Any, request: gr.Request | None = None) -> tuple[Any, ...]:
        """How far a model is that was on its way.

        Returns:
            The facts, the timer, the count of arrivals, whose change is asked for the panels, and
            the list of models.
        """
        try:
            offer = self._service.ask_after(model)
        except Exception as error:
            facts = {"error": sentence_for(error, request)}
            return facts, gr.Timer(active=False), gr.skip(), gr.skip()
        if offer.pending:
            return _waiting(offer, request), gr.Timer(active=True), gr.skip(), gr.skip()
        models = gr.update(choices=self.model_choices(request))
        if offer.error is not None:
            facts = {"error": sentence_for(offer.error, request)}
            return facts, gr.Timer(active=False), gr.skip(), models
        return gr.skip(), gr.Timer(active=False), time.monotonic(), models

    def model_choices(self, request: gr.Request | None = None) -> list[tuple[str, str]]:
        """(label, name) of each model.

        A label says where the model is, its licence, and of one being trained how far it is.
        """
        language, progress = language_of(request), self._service.progress
        given = self._service.names
        return [
            (_label(offer, progress.get(offer.name), offer.name in given, language), offer.name)
            for offer in self._service.offers()
        ]

    def update_models(self, request: gr.Request | None = None) -> dict[str, Any]:
        """The drop-down list of models as it is by now."""
        return gr.update(choices=self.model_choices(request))

    def show_views(self, model: Any) -> dict[str, Any]:
        """The choice of views, where the model has more than one."""
        try:
            return gr.update(visible=bool(self._service.offer(model).norm_pix))
        except MAEError:
            return gr.update(visible=False)

    def choose_example(self, name: Any, request: gr.Request | None = None) -> str:
        """The file of an example."""
        path = self._examples.get(name) if isinstance(name, str) else None
        if path is None:
            error = ImageError("there is no such example; choose one of those shown")
            raise as_gradio_error(error, request)
        return str(path)


def outputs_of(answer: Answer) -> Outputs:
    """An answer in the order of the page's outputs."""
    original, masked, reconstruction, pasted = (answer.panels[name] for name in PANELS)
    return original, masked, reconstruction, pasted, answer.facts


def _step_outputs(step: Waiting | Answer, request: object) -> tuple[Any, ...]:
    """The page's outputs on the way to an answer, and then the answer's."""
    if isinstance(step, Waiting):
        line = line_sentence(step.place, step.seconds, language_of(request))
        return *(gr.skip(),) * 4, {"waiting": line, "fraction": None, "hint": None}, gr.skip()
    *panels, facts = outputs_of(step)
    return *panels, _noted(facts, request), gr.Timer(active=False)


def _label(offer: Offer, training: Progress | None, given: bool, language: str) -> str:
    """What the list calls a model; one given at the start is expected to be ready."""
    label = offer.name
    if training is not None:
        values = {"step": str(training.step), "steps": str(training.steps)}
        label = text("model_running", language, {"model": label, **values})
    elif not (given and offer.state == "ready"):
        key = {"ready": "model_here", "here": "model_here", "absent": "model_absent",
               "failed": "model_failed" if given else "model_absent"}.get(
            offer.state, "model_pending"
        )  # fmt: skip
        label = text(key, language, {"model": label, "size": size_of(offer, language)})
    return f"{label} · {offer.licence}" if offer.licence else label


def _waiting(offer: Offer, request: object) -> dict[str, Any]:
    language = language_of(request)
    fraction = offer.done / offer.total if offer.total and offer.state != "reading" else None
    hint = None if offer.state == "reading" else text("stop_hint", language, {"minutes": _PATIENCE})
    return {"waiting": progress_sentence(offer, language), "fraction": fraction, "hint": hint}


def _noted(facts: dict[str, Any], request: object) -> dict[str, Any]:
    """Facts that say in words what a picture is that is not what one would expect."""
    view, notice = facts.get("view"), facts.get("notice")
    keys = [f"note_{view}"] if view not in (None, NORM_PIX_VIEWS[0]) else []
    keys += [f"note_{notice}"] if notice else []
    notes = [text(key, language_of(request)) for key in keys]
    return facts | ({"note": " · ".join(notes)} if notes else {})
