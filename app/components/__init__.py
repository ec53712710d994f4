"""Gradio components and blocks of the page's own.

A value that comes through a component may come from anybody: these hand it on unchanged, as
bytes or plain data, and the service checks it.
"""

from app.components.examples import ExampleGrid
from app.components.facts import FactsLine
from app.components.guarded import (
    GuardedBlocks,
    as_gradio_error,
    language_of,
    sentence_for,
    visitor_of,
)
from app.components.image import PanelImage, SafeImage
from app.components.unchecked import (
    UncheckedDropdown,
    UncheckedNumber,
    UncheckedRadio,
    UncheckedSlider,
)

__all__ = [
    "ExampleGrid",
    "FactsLine",
    "GuardedBlocks",
    "PanelImage",
    "SafeImage",
    "UncheckedDropdown",
    "UncheckedNumber",
    "UncheckedRadio",
    "UncheckedSlider",
    "as_gradio_error",
    "language_of",
    "sentence_for",
    "visitor_of",
]
