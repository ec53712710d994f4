"""Between widgets and the service: values in, pictures and facts out, errors as sentences."""

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from app.components import as_gradio_error, language_of, sentence_for
from app.i18n import text
from app.service import Answer, ReconstructionService
from mae_core import ImageFormatError

PANELS = ("original", "masked", "reconstruction", "pasted")

Panel = Image.Image | None
Outputs = tuple[Panel, Panel, Panel, Panel, dict[str, Any] | None]


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

    def reconstruct(
        self,
        image: Any,
        mask_ratio: Any,
        seed: Any,
        strategy: Any,
        fit: Any,
        model: Any,
        request: gr.Request | None = None,
    ) -> Outputs:
        """Remove patches of a picture and rebuild it.

        Args:
            image: The picture, a file of an ordinary photo format.
            mask_ratio: Fraction of the patches removed, 0.05 to 0.95.
            seed: Which patches are removed, a whole number from 0.
            strategy: "random", "block" or "grid".
            fit: "crop", "squash" or "whole".
            model: Name of the weights.
            request: Who asks; Gradio fills it in.

        Returns:
            The pictures original, masked, reconstruction and pasted, and the facts.
        """
        try:
            answer = self._service.reconstruct(image, mask_ratio, seed, strategy, fit, model)
        except Exception as error:
            raise as_gradio_error(error, request) from error
        return outputs_of(answer)

    def update(
        self,
        image: Any,
        mask_ratio: Any,
        seed: Any,
        strategy: Any,
        fit: Any,
        model: Any,
        request: gr.Request | None = None,
    ) -> Outputs:
        """As `reconstruct`, for the page: what cannot be shown leaves the panels empty.

        So the panels never show another picture than the one chosen. An error's sentence takes
        the place of the facts.
        """
        if image is None:
            return None, None, None, None, None
        try:
            answer = self._service.reconstruct(image, mask_ratio, seed, strategy, fit, model)
        except Exception as error:
            return None, None, None, None, {"error": sentence_for(error, request)}
        return outputs_of(answer)

    def model_choices(self, request: gr.Request | None = None) -> list[tuple[str, str]]:
        """(label, name) of each model; the label of one being trained says how far it is."""
        language = language_of(request)
        choices = []
        for name, progress in self._service.progress.items():
            label = name
            if progress is not None:
                values = {"step": str(progress.step), "steps": str(progress.steps)}
                label = text("model_running", language, {"model": name, **values})
            choices.append((label, name))
        return choices

    def update_models(self, request: gr.Request | None = None) -> dict[str, Any]:
        """The drop-down list of models as it is by now."""
        return gr.update(choices=self.model_choices(request))

    def choose_example(self, name: Any, request: gr.Request | None = None) -> str:
        """The file of an example."""
        path = self._examples.get(name) if isinstance(name, str) else None
        if path is None:
            error = ImageFormatError("there is no such example; choose one of those shown")
            raise as_gradio_error(error, request)
        return str(path)


def outputs_of(answer: Answer) -> Outputs:
    """An answer in the order of the page's outputs."""
    original, masked, reconstruction, pasted = (answer.panels[name] for name in PANELS)
    return original, masked, reconstruction, pasted, answer.facts
