"""The line of plain facts under the panels."""

from typing import Any

import gradio as gr

from app.components.quiet import QuietMeta

# The label is the sentence with {placeholders}, in the browser's language; its parts become
# one element each, so that a narrow page breaks the line between facts.
_TEMPLATE = """${(() => {
  const safe = (text) => String(text).replace(/[&<>"']/g, (c) => '&#' + c.charCodeAt(0) + ';');
  if (!value || !label) return '';
  if (value.waiting) return '<div class="waiting" role="status">' + safe(value.waiting) +
    '<progress max="1"' + (value.fraction == null ? '' : ' value="' + value.fraction + '"') +
    '></progress>' + (value.hint ? '<small>' + safe(value.hint) + '</small>' : '') + '</div>';
  if (value.error) return '<strong role="alert">' + safe(value.error) + '</strong>';
  const shown = {
    visible: value.visible,
    patches: value.patches,
    psnr: value.psnr == null ? '–' : value.psnr.toFixed(1),
    milliseconds: Math.round(value.seconds * 1000),
    device: String(value.device).toUpperCase(),
    model: value.model + (value.step == null ? '' : ` (${value.step} / ${value.steps})`)
      + (value.licence ? ` (${value.licence})` : ''),
  };
  const fill = (part) => part.replace(/[{](.*?)[}]/g, (_, name) => safe(shown[name]));
  const note = value.note ? '<em>' + safe(value.note) + '</em>' : '';
  return note + label.split(' · ').map((part) => '<span>' + fill(part) + '</span>').join('');
})()}"""


class FactsLine(gr.HTML, metaclass=QuietMeta):
    """Shows a reconstruction's facts, or why there is none.

    Its value is the facts' dictionary, which has `step` and `steps` where the model is still
    being trained, `licence` where the model is not ours and `note` where the picture needs a
    word; or `{"error": sentence}`; or `{"waiting": sentence, "fraction": 0..1 or None,
    "hint": sentence or None}`; or None for an empty line.
    The label must be a sentence with `{visible}`, `{patches}`, `{psnr}`, `{milliseconds}`,
    `{device}` and `{model}`.
    """

    is_template = True

    @classmethod
    def create(cls, label: Any, value: dict[str, Any] | None, elem_id: str) -> "FactsLine":
        """Make the line.

        Args:
            label: The sentence, usually translated by the browser.
            value: Facts shown at first.
            elem_id: Id of the element in the page.
        """
        return cls(
            value,
            label=label,
            html_template=_TEMPLATE,
            js_on_load=None,
            apply_default_css=False,
            elem_id=elem_id,
        )

    def postprocess(self, value: dict[str, Any] | None) -> Any:  # type: ignore[override]
        """The facts as they are."""
        return value

    def api_info(self) -> dict[str, Any]:
        """A JSON object."""
        return {"type": "object", "description": "what was done and how well it went"}
