"""A grid of example pictures, each a button, and the route that serves their thumbnails."""

import functools
import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageOps
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.components.quiet import QuietMeta

_SIDE = 144

# The name of a thumbnail is a hash of its bytes, so what is behind an address never changes.
_HEADERS = {"cache-control": "public, max-age=31536000, immutable"}

# The label is the word for "example" in the browser's language.
_TEMPLATE = """${items.map((item, i) =>
  '<button type="button" data-name="' + item.name + '" aria-label="' + label + ' ' + (i + 1) +
  '" aria-pressed="' + (value === item.name) + '"><img alt="" loading="lazy" width="' + side +
  '" height="' + side + '" src="thumbnails/' + item.thumbnail + '"></button>'
).join('')}"""

_SCRIPT = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-name]');
  if (!button) return;
  props.value = button.dataset.name;
  trigger('select');
});
"""


class ExampleGrid(gr.HTML, metaclass=QuietMeta):
    """Example pictures; its value is the name of the one chosen last, its event `select`."""

    is_template = True

    @classmethod
    def create(
        cls, paths: Sequence[Path], *, label: Any, value: str | None, elem_id: str
    ) -> "ExampleGrid":
        """Make the grid.

        Args:
            paths: Picture files; their stems are the names.
            label: What a screen reader calls them, followed by a number.
            value: Name of the one chosen at first.
            elem_id: Id of the element in the page.
        """
        return cls(
            value,
            label=label,
            items=[{"name": path.stem, "thumbnail": _thumbnail(path)[0]} for path in paths],
            side=_SIDE,
            html_template=_TEMPLATE,
            js_on_load=_SCRIPT,
            apply_default_css=False,
            elem_id=elem_id,
        )


def thumbnail_route(paths: Iterable[Path]) -> Route:
    """`/thumbnails/NAME`, for GET and HEAD.

    Args:
        paths: Picture files, those of the grid.
    """
    files = dict(map(_thumbnail, paths))

    async def thumbnail(request: Request) -> Response:
        data = files.get(request.path_params["name"])
        if data is None:
            raise HTTPException(404)
        return Response(data, headers=_HEADERS, media_type="image/jpeg")

    return Route("/thumbnails/{name}", thumbnail)


@functools.cache
def _thumbnail(path: Path) -> tuple[str, bytes]:
    """The name and the bytes of a small square JPEG."""
    with Image.open(path) as picture:
        small = ImageOps.fit(picture.convert("RGB"), (_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80, optimize=True)
    data = buffer.getvalue()
    return f"{hashlib.sha256(data).hexdigest()[:16]}.jpg", data
