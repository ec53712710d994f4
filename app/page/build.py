"""The page: layout and wiring only."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from app.components import (
    ExampleGrid,
    FactsLine,
    GuardedBlocks,
    PanelImage,
    SafeImage,
    UncheckedDropdown,
    UncheckedNumber,
    UncheckedRadio,
    UncheckedSlider,
)
from app.i18n import LANGUAGES, STRINGS
from app.page.events import OWN_SIZE, PANELS, SIZES, Handlers, outputs_of
from app.request import MASK_RATIO_MAX, MASK_RATIO_MIN
from app.service import ReconstructionService
from mae_core import MAEError
from mae_core.images import FITS
from mae_core.model.masking import STRATEGIES
from mae_core.reconstruct import NORM_PIX_VIEWS

_logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parent.parent / "assets"
EXAMPLES = ASSETS / "examples"
STYLE = ASSETS / "style.css"

# Browsers name the Chinese of each place apart; Gradio knows two of them, which both read ours.
I18N = gr.I18n(en=STRINGS["en"], **{"zh-CN": STRINGS["zh"], "zh-TW": STRINGS["zh"]})

# The others (Hong Kong, Macao, Singapore, or none) it would give English.
FIRST_SCRIPT = """
if (/^zh(?!-(CN|TW)$)/i.test(navigator.language))
  Object.defineProperty(navigator, 'language',
    {value: /hk|mo|hant/i.test(navigator.language) ? 'zh-TW' : 'zh-CN'});
"""

_FIRST_EXAMPLE, _FIRST_RATIO, _FIRST_SEED, _LAST_SEED = "cat", 0.75, 2, 9999

# Who has to wait, waits in the service's line, where there are words for it; Gradio's holds what
# not even floods bring.
_QUEUE_SIZE = 10_000

# Between looks at how far a model is that is fetched.
_LOOK_SECONDS = 1


def examples() -> list[Path]:
    """The example pictures, in the order in which the page shows them."""
    return sorted(EXAMPLES.glob("*.jpg"))


def build_page(service: ReconstructionService) -> GuardedBlocks:
    """Lay out the page and wire it, its first example already reconstructed.

    Args:
        service: What answers the page; it reconstructs the first example here, if it can.
    """
    pictures = {path.stem: path for path in examples()}
    handlers = Handlers(service, pictures)
    first = _first_outputs(service, pictures[_FIRST_EXAMPLE])
    page = GuardedBlocks(
        analytics_enabled=False,
        title=" · ".join(STRINGS[language]["title"] for language in LANGUAGES),
        disk_bytes=int(service.settings.disk_gb * 10**9),
    )
    with page:
        with gr.Row(elem_id="header"):
            gr.Markdown(I18N("title"), elem_id="title")
            gr.Markdown(I18N("tagline"), elem_id="tagline")
        with gr.Row(elem_id="workbench"):
            with gr.Column(elem_id="inputs", scale=1, min_width=300):
                with gr.Column(elem_id="choose"):
                    image, grid = _picture(pictures[_FIRST_EXAMPLE])
                    mask_ratio, seed, dice = _sliders()
                with gr.Column(elem_id="options"):
                    choices = _choices(service)
                    model, view = _models(handlers, service)
            with gr.Column(elem_id="outputs", scale=3, min_width=300):
                outputs = _outputs(first)
        # By the names of `app.request`.
        inputs: dict[str, Any] = {
            "image": image, "mask_ratio": mask_ratio, "seed": seed, "strategy": choices[0],
            "fit": choices[1], "model": model, "image_size": choices[2], "view": view,
        }  # fmt: skip
        # What the page is built with grows old while a model is trained, or on its way.
        opening = [page.load] if any(service.progress.values()) or first[-1] is None else []
        _wire(handlers, inputs, outputs, opening)
        gr.on(
            [page.load], handlers.update_models, None, model, queue=False,
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        grid.select(
            handlers.choose_example, grid, image, queue=False, show_progress="hidden",
            trigger_mode="always_last", api_visibility="private",
        )  # fmt: skip
        # A picture of the visitor's own is none of the examples.
        image.input(None, None, grid, js="() => null")
        dice.click(
            None, None, seed, js=f"() => Math.floor(Math.random() * {_LAST_SEED + 1})",
        )  # fmt: skip
        _add_api(handlers, service.models)
    page.queue(max_size=_QUEUE_SIZE, default_concurrency_limit=None)
    return page


def _first_outputs(service: ReconstructionService, example: Path) -> tuple[Any, ...]:
    """The outputs to open with, empty where the default model is not there yet."""
    try:
        return outputs_of(service.reconstruct(example.read_bytes(), _FIRST_RATIO, _FIRST_SEED))
    except MAEError as error:
        _logger.warning("the page opens without its first example: %s", error)
        return (None,) * 5


def _picture(first: Path) -> tuple[gr.Image, ExampleGrid]:
    image = SafeImage(
        str(first),
        label=I18N("picture"),
        placeholder=str(I18N("picture_hint")),
        sources=["upload", "clipboard", "webcam"],
        buttons=[],
        elem_id="picture",
    )
    grid = ExampleGrid.create(
        examples(), label=I18N("examples"), value=_FIRST_EXAMPLE, elem_id="examples"
    )
    return image, grid


def _sliders() -> tuple[gr.Slider, gr.Slider, gr.Button]:
    mask_ratio = UncheckedSlider(
        MASK_RATIO_MIN, MASK_RATIO_MAX, _FIRST_RATIO, step=0.01,
        label=I18N("mask_ratio"), info=I18N("mask_ratio_hint"), buttons=[],
        elem_id="mask-ratio",
    )  # fmt: skip
    with gr.Row(elem_id="seed-row"):
        seed = UncheckedSlider(
            0, _LAST_SEED, _FIRST_SEED, step=1, precision=0,
            label=I18N("seed"), info=I18N("seed_hint"), buttons=[],
            elem_id="seed",
        )  # fmt: skip
        dice = gr.Button(I18N("dice"), elem_id="dice", size="sm")
    return mask_ratio, seed, dice


def _choices(service: ReconstructionService) -> tuple[gr.Radio, gr.Radio, gr.Radio]:
    strategy = UncheckedRadio(
        [(I18N(f"strategy_{name}"), name) for name in STRATEGIES],
        value=STRATEGIES[0], label=I18N("strategy"), elem_id="strategy",
    )  # fmt: skip
    fit = UncheckedRadio(
        [(I18N(f"fit_{name}"), name) for name in FITS],
        value=FITS[0], label=I18N("fit"), elem_id="fit",
    )  # fmt: skip
    sizes = [(str(size), size) for size in SIZES if size <= service.settings.max_image_size]
    size = UncheckedRadio(
        [(I18N("size_own"), OWN_SIZE), *sizes],
        value=OWN_SIZE, label=I18N("size"), elem_id="size",
    )  # fmt: skip
    return strategy, fit, size


def _models(handlers: Handlers, service: ReconstructionService) -> tuple[gr.Dropdown, gr.Radio]:
    choices = handlers.model_choices()
    first = choices[0][1]
    model = UncheckedDropdown(
        choices, value=first, label=I18N("model"), elem_id="model", filterable=False
    )
    view = UncheckedRadio(
        [(I18N(f"view_{name}"), name) for name in NORM_PIX_VIEWS],
        value=NORM_PIX_VIEWS[0], label=I18N("view"), elem_id="view",
        visible=bool(service.offer(first).norm_pix),
    )  # fmt: skip
    model.change(
        handlers.show_views, model, view, queue=False, show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip
    return model, view


def _outputs(first: tuple[Any, ...]) -> list[Any]:
    with gr.Row(elem_id="panels"):
        panels = [
            PanelImage(
                picture, label=I18N(name), format="png", buttons=["download", "fullscreen"],
                interactive=False, min_width=120, elem_id=f"panel-{name}",
            )
            for name, picture in zip(PANELS, first[:4], strict=True)
        ]  # fmt: skip
    facts = FactsLine.create(I18N("facts"), first[4], "facts")
    gr.Markdown(I18N("trust"), elem_id="trust")
    gr.Markdown(I18N("legend"), elem_id="legend")
    return [*panels, facts]


def _wire(
    handlers: Handlers, inputs: dict[str, Any], outputs: list[Any],
    opening: list[Callable[..., Any]],
) -> None:  # fmt: skip
    """One event for every control, so that the panels always end in the last state."""
    timer = gr.Timer(_LOOK_SECONDS, active=False)
    # A component, not a state: only those report a change that came past the queue.
    arrivals = gr.Number(0, show_label=False, visible="hidden", elem_id="arrivals")
    changes = [*(widget.change for widget in inputs.values()), arrivals.change, *opening]
    gr.on(
        changes,
        handlers.update,
        None,
        [*outputs, timer],
        inputs_kwargs=inputs,
        trigger_mode="always_last",
        show_progress="minimal",
        show_progress_on=outputs[-1],
        api_visibility="private",
    )
    # Not in the queue: how far a model is, is known at once.
    timer.tick(
        handlers.look, inputs["model"], [outputs[-1], timer, arrivals, inputs["model"]],
        queue=False, show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    arrivals.change(
        handlers.show_views, inputs["model"], inputs["view"], queue=False, show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip


def _add_api(handlers: Handlers, models: tuple[str, ...]) -> None:
    """The endpoint `/reconstruct`, whose widgets nobody sees and whose picture has no default."""
    with gr.Column(visible=False):
        inputs: dict[str, Any] = {
            "image": SafeImage(label="image"),
            "mask_ratio": UncheckedSlider(
                MASK_RATIO_MIN, MASK_RATIO_MAX, _FIRST_RATIO, label="mask_ratio"
            ),
            "seed": UncheckedSlider(0, _LAST_SEED, 0, step=1, precision=0, label="seed"),
            "strategy": UncheckedRadio(list(STRATEGIES), value=STRATEGIES[0], label="strategy"),
            "fit": UncheckedRadio(list(FITS), value=FITS[0], label="fit"),
            "model": UncheckedDropdown(list(models), value=models[0], label="model"),
            "image_size": UncheckedNumber(value=None, label="image_size"),
            "view": UncheckedRadio(list(NORM_PIX_VIEWS), value=NORM_PIX_VIEWS[0], label="view"),
            "mask": gr.JSON(value=None, label="mask"),
        }
        outputs: list[Any] = [
            PanelImage(label=name, elem_id=f"api-{name}", format="png") for name in PANELS
        ]
        outputs.append(gr.JSON(label="facts"))
        gr.Button().click(
            handlers.reconstruct, None, outputs, inputs_kwargs=inputs, api_name="reconstruct"
        )
