"""The functions that the page's events and the API call: values in, panels and facts out.

Events hand values on as the client sent them; the service checks them. Errors become sentences: on
the page in place of the facts, through the API as `gr.Error`.
"""

import asyncio
import html
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import gradio as gr
from PIL import Image
from pydantic import ValidationError

from app.experiments import Plan, ask, view_of
from app.i18n import (
    error_sentence,
    line_sentence,
    preferred_language,
    progress_sentence,
    size_of,
    text,
)
from app.models.served import Progress
from app.models.shelf import PATIENCE_SECONDS, NotReadyError, Offer
from app.ops.storage import CacheFolder
from app.page.files import byte_file, example_file, not_uploaded, panel_file, uploaded
from app.request import Request
from app.service import Answer, ReconstructionService, Waiting
from mae_core import MAEError
from mae_core.errors import ConfigError, ImageError, MaskError
from mae_core.reconstruct import NORM_PIX_VIEWS
from mae_core.settings import digest_of

_logger = logging.getLogger(__name__)

PANELS = ("original", "masked", "reconstruction", "pasted")

# What the page offers beside the model's own size, in pixels; `OWN_SIZE` stands for that.
OWN_SIZE = 0
SIZES = (336, 448, 672, 1024)

# Ids of the tabs below the panels, each drawn by the module of its name.
TABS = ("film", "doubt", "origin", "compare", "inside", "proof", "keep")

# Values that settings set: see `Events.open`.
_CONTROLS = 11

_PATIENCE = f"{PATIENCE_SECONDS / 60:g}"


def sentence_for(error: Exception, language: str) -> str:
    """What a visitor is told about an error, in plain text.

    A `MAEError` says what to do; of any other the visitor learns an id only, under which the
    details are logged.
    """
    if isinstance(error, gr.exceptions.InvalidPathError | ValidationError):
        # What Gradio finds wrong with a picture's value.
        error = not_uploaded()
    if isinstance(error, MAEError):
        return error_sentence(error, language)
    if isinstance(error, FileNotFoundError):
        return text("error_expired", language)
    error_id = uuid.uuid4().hex[:8]
    _logger.error("request failed, id %s", error_id, exc_info=error)
    return text("error_unknown", language, id=error_id)


def as_gradio_error(error: Exception, request: object) -> gr.Error:
    """An error as Gradio shows it and sends it to clients, in the language of the request."""
    language = _language_of(request)
    return gr.Error(
        # Rendered as HTML, and a client may have put words into it.
        html.escape(sentence_for(error, language), quote=False),
        title=text("error", language),
        print_exception=False,
    )


def _language_of(request: object, page: object = None) -> str:
    """Language of the page if that says one, else of the request's Accept-Language."""
    headers = getattr(request, "headers", None)
    asked = headers.get("accept-language") if headers else None
    return preferred_language(page if isinstance(page, str) and page else asked)


def _visitor_of(request: object) -> str:
    """Address of the visitor, as the guard has found it."""
    return str(getattr(getattr(request, "client", None), "host", None) or "unknown")


class Events:
    """The functions that the page's events and the API call.

    Events of the page give its `language`, as the browser shows it.
    """

    def __init__(
        self, service: ReconstructionService, examples: dict[str, Path], folder: CacheFolder
    ) -> None:
        """Handle events.

        Args:
            service: What answers them.
            examples: Name -> picture file.
            folder: Of uploads and panels.
        """
        self._service = service
        self._examples = examples
        self._names = {digest_of(path): name for name, path in examples.items()}
        self._folder = folder

    async def reconstruct(
        self,
        image: gr.FileData,
        mask_ratio: float = 0.75,
        seed: int = 0,
        strategy: str = "random",
        fit: str = "crop",
        model: str | None = None,
        image_size: int | None = None,
        view: str = NORM_PIX_VIEWS[0],
        mask: list[list[int]] | gr.FileData | None = None,
        request: gr.Request | None = None,
    ) -> tuple[gr.FileData, gr.FileData, gr.FileData, gr.FileData, dict[str, Any]]:
        """Remove patches of a picture and rebuild it.

        Args:
            image: The picture, a file of an ordinary photo format.
            mask_ratio: Fraction of the patches removed, 0.05 to 0.95.
            seed: Which patches are removed, a whole number from 0.
            strategy: "random", "block" or "grid".
            fit: "crop", "squash" or "whole".
            model: Name of the weights; the page's first model if not given.
            image_size: Size of the picture in pixels, a multiple of the model's patch side; the
                model's own if not given.
            view: Of models that predict normalised pixels: "estimated", "answer" or "normalized".
            mask: Own mask in place of ratio, seed and strategy: a list of rows of 0 and 1, one for
                each patch, 1 = removed; or a black-and-white picture file, white = removed.
            request: The HTTP request; Gradio fills it in.

        Returns:
            The pictures original, masked, reconstruction and pasted, and the facts.
        """
        values = {
            "image": image, "mask_ratio": mask_ratio, "seed": seed, "strategy": strategy,
            "fit": fit, "model": model, "image_size": image_size, "view": view, "mask": mask,
        }  # fmt: skip
        async with aclosing(self._answer(values, request)) as steps:
            async for step in steps:
                if isinstance(step, Answer):
                    files = await asyncio.to_thread(self._files, step)
                    original, masked, reconstruction, pasted = (
                        gr.FileData(path=str(path), orig_name=path.name) for path in files
                    )
                    return original, masked, reconstruction, pasted, step.facts
        raise AssertionError("there is an answer or an error")

    async def ask(
        self, image: gr.FileData, plan: dict[str, Any], request: gr.Request | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Ask more of a picture than its panels; the answer comes in parts.

        Args:
            image: The picture, a file of an ordinary photo format.
            plan: `{"v": 1, "kind": ..., "request": ...}`, the request of the form of `settings` in
                an answer. The kinds, and what some take besides, with the value if not given:
                `single`; `files`, the four panels; `film` (`frames`, 2 to 37, 19; `format`, webp or
                gif, for a file too); `doubt` (`masks`, 2 to 64, 16); `influence`; `attention`
                (`patch`, its number from 0, 0); `inside`; `leak` (`noise`, a seed from 0, 0);
                `training`, the picture by each snapshot of a run; `models`, those that can be
                asked. Anything else is refused.
            request: The HTTP request; Gradio fills it in.

        Yields:
            Parts of the answer, pictures as addresses below the page's; or `waiting`, a sentence.
        """
        source = await asyncio.to_thread(uploaded, image, self._folder.path)
        language, visitor = _language_of(request), _visitor_of(request)
        parts = ask(self._service, Plan.from_json(plan, source), visitor)
        async with aclosing(parts):
            async for part in parts:
                if isinstance(part, Waiting):
                    sentence = line_sentence(part.place, part.seconds, language, paused=part.paused)
                    yield {"waiting": sentence}
                else:
                    yield await asyncio.to_thread(self._addressed, part)

    def _addressed(self, part: dict[str, Any]) -> dict[str, Any]:
        """A part of an answer with addresses in place of pictures and files."""
        self._folder.check_space()
        folder = self._folder.path

        def addressed(name: str, value: Any) -> Any:
            if isinstance(value, dict):
                return {key: addressed(key, inner) for key, inner in value.items()}
            if isinstance(value, Image.Image):
                return f"gradio_api/file={panel_file(value, name, folder)}"
            if isinstance(value, bytes):
                return f"gradio_api/file={byte_file(value, part['name'], folder)}"
            return value

        return {name: addressed(name, value) for name, value in part.items()}

    def open(
        self, settings: Any, language: Any = None, request: gr.Request | None = None
    ) -> tuple[Any, ...]:
        """Values of the page's controls for settings from a link, a file or the history.

        Args:
            settings: `{"example": name}` or `{"image": {"path": ...}}`, `request` as `settings` of
                an answer, and the `tab` to be shown; each may be missing. `turn` comes back.
            language: Of the page.
            request: The HTTP request.

        Returns:
            Picture, example, mask ratio, seed, strategy, fit, model, size, view, own mask, tab, and
            `answer` of the opener, `{"turn": ..., "problem": sentence}`. With a problem all others
            stay; without one the sentence is empty.
        """
        settings = settings if isinstance(settings, dict) else {}
        controls, problem = (gr.skip(),) * _CONTROLS, ""
        try:
            controls = self._controls(settings)
        except Exception as error:
            problem = sentence_for(error, _language_of(request, language))
        # Not its value, where newer settings may wait for their turn by now.
        return *controls, gr.update(answer={"turn": settings.get("turn"), "problem": problem})

    def _controls(self, settings: dict[str, Any]) -> tuple[Any, ...]:
        picture, example = gr.skip(), gr.skip()
        if (name := settings.get("example")) is not None:
            picture, example = self.choose_example(name), name
        elif (image := settings.get("image")) is not None:
            file = uploaded(image, self._folder.path)
            assert file is not None
            picture, example = gr.FileData(path=str(file.path)), None
        tab = settings.get("tab")
        chosen = gr.Tabs(selected=tab) if tab in TABS else gr.skip()
        if (asked := settings.get("request")) is None:
            return picture, example, *[gr.skip()] * (_CONTROLS - 3), chosen
        if not isinstance(asked, dict):
            raise ConfigError("settings are a JSON object; give them as this page wrote them")
        models = self._service.models
        wanted = Request.from_json(
            {"picture": "", **asked}, models, self._service.settings.max_image_size
        )
        mask = wanted.mask
        return (
            picture, example, mask.ratio, mask.seed, mask.strategy, wanted.fit, wanted.model,
            wanted.image_size or OWN_SIZE, wanted.view, [*mask.rows] or None, chosen,
        )  # fmt: skip

    async def update(
        self, request: gr.Request | None = None, language: Any = None, **values: Any
    ) -> AsyncGenerator[tuple[Any, Any, Any], None]:
        """As `reconstruct`, for the page: panels, facts, timer.

        What cannot be shown leaves the panels empty, so that they never show another picture than
        the one chosen. An error's sentence, or the progress of a model on its way, takes the place
        of the facts. While the request waits in line, its place does, and the panels stay. The
        timer asks again while the model is on its way.
        """
        language = _language_of(request, language)
        if values["image"] is None:
            yield None, None, gr.Timer(active=False)
            return
        # Gradio sends an empty text for the editor that has no mask.
        values["mask"] = values.get("mask") or None
        try:
            # In a thread, as files are looked at.
            values["image_size"] = await asyncio.to_thread(
                self._size_for, values["model"], values["image_size"]
            )
            async with aclosing(self._stretched(values, request)) as steps:
                async for step in steps:
                    if isinstance(step, Answer):
                        view = await asyncio.to_thread(self.view, step, values["image"]["path"])
                        yield view, _noted(step.facts, language), gr.Timer(active=False)
                    else:
                        line = line_sentence(step.place, step.seconds, language)
                        waiting = {"waiting": line, "fraction": None, "hint": None}
                        yield gr.skip(), waiting, gr.skip()
        except NotReadyError as error:
            yield None, _waiting(error.offer, language), gr.Timer(active=True)
        except Exception as error:
            yield None, {"error": sentence_for(error, language)}, gr.Timer(active=False)

    async def _stretched(
        self, values: dict[str, Any], request: object
    ) -> AsyncGenerator[Waiting | Answer, None]:
        """As `_answer`; an own mask drawn on another grid is stretched over this picture's."""
        try:
            async with aclosing(self._answer(values, request)) as steps:
                async for step in steps:
                    yield step
        except MaskError as error:
            if error.code != "mask_shape":
                raise
            h, w = (cast(int, error.parameters[side]) for side in ("rows", "columns"))
            old: list[str] = values["mask"]
            rows = [old[i * len(old) // h] for i in range(h)]
            values = values | {"mask": [[row[j * len(row) // w] for j in range(w)] for row in rows]}
            async with aclosing(self._answer(values, request)) as steps:
                async for step in steps:
                    yield step

    async def _answer(
        self, values: dict[str, Any], request: object
    ) -> AsyncGenerator[Waiting | Answer, None]:
        folder = self._folder.path
        files = {"image": values["image"]}
        if isinstance(values.get("mask"), dict):
            files["mask"] = values["mask"]
        for name, payload in files.items():
            files[name] = await asyncio.to_thread(uploaded, payload, folder)
        steps = self._service.answer({**values, **files}, _visitor_of(request))
        async with aclosing(steps):
            async for step in steps:
                yield step

    def _files(self, answer: Answer) -> list[Path]:
        self._folder.check_space()
        return [panel_file(answer.panels[name], name, self._folder.path) for name in PANELS]

    def view(self, answer: Answer, image: str) -> dict[str, Any]:
        """What the stage shows of an answer, and what further questions need.

        Args:
            answer: To a request.
            image: Path of the picture's file among the uploads.
        """
        example = self._names.get(answer.request.picture)
        return self._addressed(view_of(answer)) | {"image": {"path": image}, "example": example}

    def _size_for(self, model: Any, size: Any) -> Any:
        """The size that a model takes, by the page's choice of sizes."""
        # Whoever changes a control wants it to be tried again.
        self._service.forget_failure(model)
        return None if size in (None, OWN_SIZE) else self._service.nearest_size(model, size)

    def look(
        self, model: Any, language: Any = None, request: gr.Request | None = None
    ) -> tuple[Any, ...]:
        """How far a model is that was on its way.

        Returns:
            The facts, the timer, the count of arrivals, whose change is asked for the panels, and
            the list of models.
        """
        language = _language_of(request, language)
        try:
            offer = self._service.ask_after(model)
        except Exception as error:
            facts = {"error": sentence_for(error, language)}
            return facts, gr.Timer(active=False), gr.skip(), gr.skip()
        if offer.pending:
            return _waiting(offer, language), gr.Timer(active=True), gr.skip(), gr.skip()
        models = gr.update(choices=self.model_choices(language))
        if offer.error is not None:
            facts = {"error": sentence_for(offer.error, language)}
            return facts, gr.Timer(active=False), gr.skip(), models
        return gr.skip(), gr.Timer(active=False), time.monotonic(), models

    def model_choices(self, language: str) -> list[tuple[str, str]]:
        """(label, name) of each model.

        A label says where the model is, its licence, and of one being trained how far it is.
        """
        given, progress = self._service.names, self._service.progress
        return [
            (_label(offer, progress.get(offer.name), offer.name in given, language), offer.name)
            for offer in self._service.offers()
        ]

    def update_models(
        self, language: Any = None, request: gr.Request | None = None
    ) -> dict[str, Any]:
        """The drop-down list of models as it is by now."""
        return gr.update(choices=self.model_choices(_language_of(request, language)))

    def show_views(self, model: Any) -> dict[str, Any]:
        """The choice of views, where the model has more than one."""
        try:
            return gr.update(visible=bool(self._service.offer(model).norm_pix))
        except MAEError:
            return gr.update(visible=False)

    def choose_example(self, name: Any) -> gr.FileData:
        """The file of an example."""
        path = self._examples.get(name) if isinstance(name, str) else None
        if path is None:
            raise ImageError("there is no such example; choose one of those shown")
        copy = example_file(path, self._folder.path)
        return gr.FileData(path=str(copy), orig_name=path.name)


def _label(offer: Offer, training: Progress | None, given: bool, language: str) -> str:
    """What the list calls a model; one given at the start is expected to be ready."""
    label = offer.name
    if training is not None:
        label = text("model_running", language, model=label, **asdict(training))
    elif not (given and offer.state == "ready"):
        key = {"ready": "model_here", "here": "model_here", "absent": "model_absent",
               "failed": "model_failed" if given else "model_absent"}.get(
            offer.state, "model_pending"
        )  # fmt: skip
        label = text(key, language, model=label, size=size_of(offer, language))
    return f"{label} · {offer.licence}" if offer.licence else label


def _waiting(offer: Offer, language: str) -> dict[str, Any]:
    fraction = offer.done / offer.total if offer.total and offer.state != "reading" else None
    hint = None if offer.state == "reading" else text("stop_hint", language, minutes=_PATIENCE)
    return {"waiting": progress_sentence(offer, language), "fraction": fraction, "hint": hint}


def _noted(facts: dict[str, Any], language: str) -> dict[str, Any]:
    """Facts that say in words what a picture is that is not what one would expect."""
    view, notice = facts.get("view"), facts.get("notice")
    keys = [f"note_{view}"] if view not in (None, NORM_PIX_VIEWS[0]) else []
    keys += [f"note_{notice}"] if notice else []
    notes = [text(key, language) for key in keys]
    return facts | ({"note": " · ".join(notes)} if notes else {})
