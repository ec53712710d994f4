"""A grid of example pictures, each a button."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageOps

from app.components.quiet import QuietMeta

_THUMBNAIL_SIDE = 144

# The label is the word for "example" in the browser's language.
_TEMPLATE = """${items.map((item, i) =>
  '<button type="button" data-name="' + item.name + '" aria-label="' + label + ' ' + (i + 1) +
  '" aria-pressed="' + (value === item.name) + '"><img alt="" src="' + item.source + '"></button>'
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
            items=[{"name": path.stem, "source": _thumbnail(path)} for path in paths],
            html_template=_TEMPLATE,
            js_on_load=_SCRIPT,
            apply_default_css=False,
            elem_id=elem_id,
        )


def _thumbnail(path: Path) -> str:
    """A small square JPEG as a `data:` address, so that the grid costs no further requests."""
    side = (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE)
    with Image.open(path) as picture:
        small = ImageOps.fit(picture.convert("RGB"), side, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
