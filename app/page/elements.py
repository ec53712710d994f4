"""HTML elements of the page's own: examples, panels, facts."""

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.examples import THUMBNAIL_SIDE, thumbnail
from app.i18n import LOCALES, text

_EXAMPLES = """${items.map((item, i) =>
  '<button type="button" data-name="' + item.name + '" aria-label="' + label + ' ' + (i + 1) +
  '" aria-pressed="' + (value === item.name) + '"><img alt="" loading="lazy" width="' + side +
  '" height="' + side + '" src="thumbnails/' + item.thumbnail + '"></button>'
).join('')}"""

_CHOOSE = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-name]');
  if (!button) return;
  props.value = button.dataset.name;
  trigger('select');
});
"""

# The label is in the browser's language, which may change.
_PANELS = """
import(new URL('stage/panels.js', document.baseURI)).then(({Panels}) => {
  const panels = new Panels(element.querySelector('.panels'));
  const name = () => {
    panels.name(props.label);
    panels.show(props.value);
  };
  name();
  watch(['value'], () => panels.show(props.value));
  watch(['label'], name);
});
"""

_FACTS = """
import(new URL('stage/facts.js', document.baseURI)).then(({showFacts}) => {
  const show = () => showFacts(element.querySelector('.facts'), props.value, props.label);
  show();
  watch(['value', 'label'], show);
});
"""


def example_grid(paths: Iterable[Path], label: Any, value: str, elem_id: str) -> gr.HTML:
    """Example pictures, each a button; its value is the chosen name, its event `select`.

    Args:
        paths: Picture files; their stems are the names.
        label: Name for a screen reader, followed by a number.
        value: Name of the one chosen at first.
        elem_id: Id of the element in the page.
    """
    return gr.HTML(
        value,
        label=label,
        items=[{"name": path.stem, "thumbnail": _thumbnail(path)[0]} for path in paths],
        side=THUMBNAIL_SIDE,
        html_template=_EXAMPLES,
        js_on_load=_CHOOSE,
        apply_default_css=False,
        elem_id=elem_id,
    )


def thumbnail_route(paths: Iterable[Path]) -> Route:
    """`/thumbnails/NAME`, for GET and HEAD, of the pictures of `example_grid`."""
    files = dict(map(_thumbnail, paths))

    async def answer(request: Request) -> Response:
        data = files.get(request.path_params["name"])
        if data is None:
            raise HTTPException(404)
        # The name is a hash of the bytes: what is behind an address never changes.
        headers = {"cache-control": "public, max-age=31536000, immutable"}
        return Response(data, headers=headers, media_type="image/jpeg")

    return Route("/thumbnails/{name}", answer)


@functools.cache
def _thumbnail(path: Path) -> tuple[str, bytes]:
    """Name and bytes of a thumbnail."""
    data = thumbnail(path)
    return f"{hashlib.sha256(data).hexdigest()[:16]}.jpg", data


def panels(label: Any, value: dict[str, Any] | None, elem_id: str) -> gr.HTML:
    """The four panels, drawn by `stage/panels.js`.

    Args:
        label: Words for download, enlarge and a failure, and the titles of the panels, joined by
            " · ".
        value: Addresses of `original` and `reconstruction`, and `mask` as rows of 0 and 1; None
            for empty panels.
        elem_id: Id of the element in the page.
    """
    return gr.HTML(
        value,
        label=label,
        html_template='<div class="panels"></div>',
        js_on_load=_PANELS,
        apply_default_css=False,
        elem_id=elem_id,
    )


def stage_part(
    name: str, visible: Literal[True, "hidden"] = True, value: dict[str, Any] | None = None
) -> gr.HTML:
    """A part of the stage, drawn by `stage/NAME.js`; its id is the name.

    Args:
        name: Of the module.
        visible: As Gradio's.
        value: What the module starts from.
    """
    module = "new URL('stage/stage.js', document.baseURI)"
    failed = json.dumps({language: text("not_loaded", language) for language in LOCALES})
    return gr.HTML(
        value,
        html_template='<section class="part"></section>',
        js_on_load=f"import({module}).then((m) => "
        f"m.mount('{name}', {{element, props, trigger, watch}})).catch((error) => {{"
        "console.warn(error); element.querySelector('.part').textContent = "
        f"{failed}[document.documentElement.lang.startsWith('zh') ? 'zh' : 'en']; }});",
        apply_default_css=False,
        visible=visible,
        elem_id=name,
    )


def facts_line(label: Any, value: dict[str, Any] | None, elem_id: str) -> gr.HTML:
    """A line of facts about a reconstruction, or why there is none, drawn by `stage/facts.js`.

    Args:
        label: A sentence with `{visible}`, `{patches}`, `{psnr}`, `{milliseconds}`, `{device}` and
            `{model}`.
        value: The facts, with `step` and `steps` where the model is still being trained, `licence`
            where the model is not ours, and `note`; or `{"error": sentence}`; or `{"waiting":
            sentence, "fraction": 0..1 or None, "hint": sentence or None}`; or None.
        elem_id: Id of the element in the page.
    """
    return gr.HTML(
        value,
        label=label,
        html_template='<div class="facts"></div>',
        js_on_load=_FACTS,
        apply_default_css=False,
        elem_id=elem_id,
    )
