"""The page: layout and wiring."""

import io
import logging
import time
from pathlib import Path
from typing import Any

import gradio as gr

from app import gradio_seam
from app.examples import examples
from app.i18n import LABELS
from app.ops.storage import CacheFolder
from app.page.elements import example_grid, facts_line, panels, stage_part
from app.page.events import OWN_SIZE, PANELS, SIZES, TABS, Events, as_gradio_error
from app.page.files import byte_file, example_file
from app.pictures import PictureFile
from app.request import MASK_RATIO_MAX, MASK_RATIO_MIN
from app.service import ReconstructionService
from mae_core import MAEError
from mae_core.images import FITS
from mae_core.inside.sweep import film_ratios
from mae_core.model.masking import STRATEGIES
from mae_core.reconstruct import NORM_PIX_VIEWS

_logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parent.parent / "assets"

# Browsers name the Chinese of each place apart; Gradio knows two of them, which both read ours.
I18N = gr.I18n(en=LABELS["en"], **{"zh-CN": LABELS["zh"], "zh-TW": LABELS["zh"]})

_FIRST_EXAMPLE, _FIRST_RATIO, _FIRST_SEED, _LAST_SEED = "cat", 0.75, 2, 9999

# The film that the page opens with: its frames, of which the last is the first view, and the
# processor seconds that the others may take. A model that is slower opens without one.
_FILM_FRAMES, _FILM_SECONDS = 7, 3.0

# Who has to wait, waits in the service's line, where there are words for it; Gradio's holds what
# not even floods bring.
_QUEUE_SIZE = 10_000

# Between looks at how far a model is that is fetched.
_LOOK_SECONDS = 1

# The last value of an event: the language in which the browser shows the page.
_WITH_LANGUAGE = "(...values) => [...values.slice(0, -1), document.documentElement.lang]"

# The browser draws the mask of the sliders by itself.
_PREVIEW = """(ratio, seed, strategy) => import(new URL('stage/stage.js', document.baseURI))
  .then(({stage}) => { stage.draw(strategy, ratio, seed); return null; })"""

# No API, no check of values by Gradio, and no sign of progress but where one is asked for.
_PLAIN: dict[str, Any] = {
    "preprocess": False, "postprocess": False, "api_visibility": "private",
    "show_progress": "hidden",
}  # fmt: skip


def build_page(service: ReconstructionService) -> tuple[gr.Blocks, CacheFolder]:
    """Lay out the page and wire it, its first example already reconstructed.

    Args:
        service: What answers the page; it reconstructs the first example here, if it can.

    Returns:
        The page, and the folder of its uploads and panels.
    """
    pictures = examples()
    page = gr.Blocks(
        analytics_enabled=False,
        title=" · ".join(labels["title"] for labels in LABELS.values()),
    )
    kept: set[str] = set()
    folder = CacheFolder(
        gradio_seam.upload_folder(page),
        int(service.settings.disk_gb * 10**9),
        kept=lambda: kept,
        forget=lambda paths: gradio_seam.forget_files(page, paths),
    )
    events = Events(service, pictures, folder)
    first = str(example_file(pictures[_FIRST_EXAMPLE], folder.path))
    view, facts = _first_outputs(service, events, first)
    # What the page opens with is never deleted.
    kept.add(first)
    kept.update(
        str(view[name]).partition("=")[2] for name in ("original", "reconstruction") if view
    )
    # What the page is built with grows old while a model is trained, or on its way.
    grows_old = any(service.progress.values()) or view is None
    film = None if grows_old or view is None else _opening_film(service, first, view, folder.path)
    if film:
        kept.update(address.partition("=")[2] for address in film["frames"])
    with page:
        _header()
        language = gr.Textbox(visible="hidden", show_label=False, elem_id="language")
        with gr.Row(elem_id="workbench"):
            with gr.Column(elem_id="inputs", scale=1, min_width=300):
                with gr.Column(elem_id="choose"):
                    image = gr.Image(
                        first, label=I18N("picture"),
                        placeholder=str(I18N("picture_hint")), buttons=[], elem_id="picture",
                        sources=["upload", "clipboard", "webcam"],
                    )  # fmt: skip
                    grid = example_grid(
                        pictures.values(), I18N("examples"), _FIRST_EXAMPLE, "examples"
                    )
                    mask_ratio, seed, rolled = _sliders()
                with gr.Column(elem_id="options"):
                    strategy, fit, image_size = _choices(service)
                    model, views = _models(events, service)
            with gr.Column(elem_id="outputs", scale=3, min_width=300):
                opener = stage_part("opener")
                mask = stage_part("editor")
                outputs = [
                    panels(I18N("panels"), view, "panels"),
                    facts_line(I18N("facts"), facts, "facts"),
                ]
                tabs = _tabs()
                gr.Markdown(I18N("trust"), elem_id="trust")
                gr.Markdown(I18N("legend"), elem_id="legend")
        # By the names of `app.request`.
        inputs: dict[str, Any] = {
            "image": image, "mask_ratio": mask_ratio, "seed": seed, "strategy": strategy,
            "fit": fit, "model": model, "image_size": image_size, "view": views, "mask": mask,
        }  # fmt: skip
        _wire(events, inputs, outputs, language, [page.load] if grows_old else [])
        page.load(events.update_models, language, model, queue=False, js=_WITH_LANGUAGE, **_PLAIN)
        grid.select(
            events.choose_example, grid, image, queue=False, trigger_mode="always_last", **_PLAIN
        )
        # A picture of the visitor's own is none of the examples.
        image.input(None, None, grid, js="() => null")
        # The browser draws the same mask at once; it takes the place of the visitor's own.
        for moved in (mask_ratio.input, seed.input, strategy.input, rolled.then):
            moved(None, [mask_ratio, seed, strategy], mask, js=_PREVIEW)
        # What modules of the stage ask of the page's controls: a link, the history, the lecture.
        controls = [
            image, grid, mask_ratio, seed, strategy, fit, model, image_size, views, mask, tabs
        ]  # fmt: skip
        opener.input(
            events.open, [opener, language], [*controls, opener],
            queue=False, js=_WITH_LANGUAGE, trigger_mode="always_last", **_PLAIN,
        )  # fmt: skip
        stage_part("opening", visible="hidden", value=film)
        gradio_seam.add_api(page, events.reconstruct, [*PANELS, "facts"])
        gradio_seam.add_api(page, events.ask, ["part"])
    page.queue(max_size=_QUEUE_SIZE, default_concurrency_limit=None)
    gradio_seam.keep_waiting_sessions(page)
    gradio_seam.answer_errors(page, as_gradio_error)
    return page, folder


def _header() -> None:
    with gr.Row(elem_id="header"):
        gr.HTML(
            label=I18N("title"), html_template="<h1>${label}</h1>", js_on_load=None,
            apply_default_css=False, elem_id="title",
        )  # fmt: skip
        gr.Markdown(I18N("tagline"), elem_id="tagline")
        stage_part("lecture")


def _tabs() -> Any:
    with gr.Tabs(elem_id="tabs") as tabs:
        for name in TABS:
            with gr.Tab(I18N(f"tab_{name}"), id=name):
                stage_part(name)
    return tabs


def _first_outputs(
    service: ReconstructionService, events: Events, example: str
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Panels and facts to open with, empty where the default model is not there yet."""
    try:
        picture = PictureFile(Path(example))
        answer = service.reconstruct(picture, _FIRST_RATIO, _FIRST_SEED)
        return events.view(answer, example), answer.facts
    except MAEError as error:
        _logger.warning("the page opens without its first example: %s", error)
        return None, None


def _opening_film(
    service: ReconstructionService, example: str, view: dict[str, Any], folder: Path
) -> dict[str, Any] | None:
    """Frames of falling mask ratios before the first view; None if they cannot be had soon.

    Returns:
        The mask `ratios`; `frames`, the addresses of their reconstructions; `before`, that of the
        view's.
    """
    ratios = film_ratios(_FILM_FRAMES, MASK_RATIO_MAX, _FIRST_RATIO)[:-1]
    frames, began = [], time.thread_time()
    try:
        for ratio in ratios:
            answer = service.reconstruct(PictureFile(Path(example)), ratio, _FIRST_SEED)
            if time.thread_time() - began > _FILM_SECONDS:
                _logger.info("the page opens without a film: the model is too slow")
                return None
            # A tenth of the bytes of a PNG file, for half a second on the screen.
            buffer = io.BytesIO()
            answer.panels["reconstruction"].save(buffer, "WEBP", quality=80)
            frames.append(byte_file(buffer.getvalue(), "frame.webp", folder))
    except MAEError as error:
        _logger.warning("the page opens without a film: %s", error)
        return None
    addresses = [f"gradio_api/file={path}" for path in frames]
    return {"ratios": ratios, "frames": addresses, "before": view["reconstruction"]}


def _sliders() -> tuple[gr.Slider, gr.Slider, Any]:
    """Mask ratio, seed, and the event of another seed."""
    mask_ratio = gr.Slider(
        MASK_RATIO_MIN, MASK_RATIO_MAX, _FIRST_RATIO, step=0.01,
        label=I18N("mask_ratio"), info=I18N("mask_ratio_hint"), buttons=[],
        elem_id="mask-ratio",
    )  # fmt: skip
    with gr.Row(elem_id="seed-row"):
        seed = gr.Slider(
            0, _LAST_SEED, _FIRST_SEED, step=1, precision=0,
            label=I18N("seed"), info=I18N("seed_hint"), buttons=[],
            elem_id="seed",
        )  # fmt: skip
        dice = gr.Button(I18N("dice"), elem_id="dice", size="sm")
    rolled = dice.click(None, None, seed, js=f"() => Math.floor(Math.random() * {_LAST_SEED + 1})")
    return mask_ratio, seed, rolled


def _choices(service: ReconstructionService) -> list[gr.Radio]:
    sizes = [(str(size), size) for size in SIZES if size <= service.settings.max_image_size]
    choices: dict[str, list[tuple[Any, Any]]] = {
        "strategy": [(I18N(f"strategy_{name}"), name) for name in STRATEGIES],
        "fit": [(I18N(f"fit_{name}"), name) for name in FITS],
        "size": [(I18N("size_own"), OWN_SIZE), *sizes],
    }
    return [
        gr.Radio(options, value=options[0][1], label=I18N(name), elem_id=name)
        for name, options in choices.items()
    ]


def _models(events: Events, service: ReconstructionService) -> tuple[gr.Dropdown, gr.Radio]:
    choices = events.model_choices("en")
    first = choices[0][1]
    model = gr.Dropdown(
        choices, value=first, label=I18N("model"), elem_id="model", filterable=False
    )
    views = gr.Radio(
        [(I18N(f"view_{name}"), name) for name in NORM_PIX_VIEWS],
        value=NORM_PIX_VIEWS[0], label=I18N("view"), elem_id="view",
        visible=bool(service.offer(first).norm_pix),
    )  # fmt: skip
    model.change(events.show_views, model, views, queue=False, **_PLAIN)
    return model, views


def _wire(
    events: Events, inputs: dict[str, Any], outputs: list[Any], language: gr.Textbox,
    opening: list[Any],
) -> None:  # fmt: skip
    """One event for every control, so that the panels always end in the last state."""
    facts = outputs[-1]
    timer = gr.Timer(_LOOK_SECONDS, active=False)
    # A component, not a state: only those report a change that came past the queue.
    arrivals = gr.Number(0, show_label=False, visible="hidden", elem_id="arrivals")
    changes = [*(widget.change for widget in inputs.values()), arrivals.change, *opening]
    gr.on(
        changes,
        events.update,
        None,
        [*outputs, timer],
        inputs_kwargs={**inputs, "language": language},
        js=_WITH_LANGUAGE,
        trigger_mode="always_last",
        show_progress_on=facts,
        **_PLAIN | {"show_progress": "minimal"},
    )
    model = inputs["model"]
    # Not in the queue: how far a model is, is known at once.
    timer.tick(
        events.look, [model, language], [facts, timer, arrivals, model],
        queue=False, js=_WITH_LANGUAGE, **_PLAIN,
    )  # fmt: skip
    arrivals.change(events.show_views, model, inputs["view"], queue=False, **_PLAIN)
