"""Controls that hand on what they are given.

Gradio's own check a value before the handler runs, and speak of a wrong one in its own words
or not at all; the service checks them all in one place.
"""

from typing import Any

import gradio as gr

from app.components.quiet import QuietMeta


class UncheckedSlider(gr.Slider, metaclass=QuietMeta):
    """A slider whose value may be anything."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """The value as it came."""
        return payload


class UncheckedRadio(gr.Radio, metaclass=QuietMeta):
    """A choice whose value may be anything."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """The value as it came."""
        return payload


class UncheckedDropdown(gr.Dropdown, metaclass=QuietMeta):
    """A drop-down choice whose value may be anything."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """The value as it came."""
        return payload


class UncheckedNumber(gr.Number, metaclass=QuietMeta):
    """A number whose value may be anything."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """The value as it came."""
        return payload
