"""Blocks in which every error reaches the visitor as a short sentence, and nothing piles up."""

import html
import logging
import uuid
from collections.abc import Collection, Sequence
from typing import Any

import gradio as gr
from anyio import CapacityLimiter
from gradio.block_function import BlockFunction
from gradio.exceptions import ComponentProcessingError

from app.components.image import PanelImage, SafeImage
from app.i18n import error_sentence, preferred_language, text
from app.ops.storage import CacheFolder
from mae_core import MAEError
from mae_core.errors import ConfigError

_logger = logging.getLogger(__name__)

# In which values are read and panels are written; a panel takes a few milliseconds.
_THREADS = 8

# With messages that nobody has read yet.
_MOST_SESSIONS = 20_000


def sentence_for(error: Exception, request: object) -> str:
    """What a visitor is told about an error, in plain text.

    A `MAEError` says what to do; of any other the visitor learns an id only, under which the
    details are logged.

    Args:
        error: What was raised.
        request: The Gradio request, for its language; anything else means English.
    """
    language = language_of(request)
    if isinstance(error, ComponentProcessingError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, MAEError):
        return error_sentence(error, language)
    if isinstance(error, FileNotFoundError):
        return text("error_expired", language)
    error_id = uuid.uuid4().hex[:8]
    _logger.error("request failed, id %s", error_id, exc_info=error)
    return text("error_unknown", language, {"id": error_id})


def as_gradio_error(error: Exception, request: object) -> gr.Error:
    """An error as Gradio shows it and sends it to clients; see `sentence_for`."""
    return gr.Error(
        # Rendered as HTML, and a client may have put words into it.
        html.escape(sentence_for(error, request), quote=False),
        title=text("error", language_of(request)),
        print_exception=False,
    )


def visitor_of(request: object) -> str:
    """Who sends a Gradio request, by the address that the guard has found."""
    return str(getattr(getattr(request, "client", None), "host", None) or "unknown")


def language_of(request: object) -> str:
    """The language that a Gradio request asks for; English if it is anything else."""
    headers = getattr(request, "headers", None)
    return preferred_language(headers.get("accept-language") if headers else None)


class GuardedBlocks(gr.Blocks):
    """Blocks that check pictures before Gradio does, and put every failure into a sentence.

    Gradio keeps to itself what it finds wrong with a value before a handler runs (a wrong
    type, a file that is gone), and a web address given as a picture it fetches.

    Attributes:
        folder: The uploads and panels on disk.
    """

    def __init__(self, *, disk_bytes: int, **options: Any) -> None:
        """Begin an empty page.

        Args:
            disk_bytes: Bound on uploads and panels on disk.
            **options: Those of Gradio's Blocks.
        """
        super().__init__(**options)
        self.folder = CacheFolder(
            self.GRADIO_CACHE,
            disk_bytes,
            kept=lambda: {p for block in [*self.blocks.values()] for p in block.keep_in_cache},
            forget=self._forget,
        )

    def queue(self, *args: Any, **options: Any) -> "GuardedBlocks":
        """As Gradio's own, but that nobody who waits is forgotten."""
        super().queue(*args, **options)
        # By itself it forgets the sessions that came first, whether they wait or not. Those that
        # rest are forgotten by `app.sessions`.
        self._queue.pending_messages_per_session.max_size = _MOST_SESSIONS
        return self

    @property
    def is_busy(self) -> bool:
        """Whether an event is on its way."""
        return bool(len(self._queue) or self._queue.get_active_worker_count())

    def create_limiter(self) -> None:
        """Threads for values and panels; Gradio would take as many as events."""
        self.limiter = CapacityLimiter(_THREADS)  # type: ignore[assignment]

    def _forget(self, paths: Collection[str]) -> None:
        """Gradio remembers every file that it ever wrote."""
        for known in self.temp_file_sets:
            known.difference_update(paths)

    async def process_api(
        self,
        block_fn: BlockFunction | int,
        inputs: list[Any],
        state: Any = None,
        request: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Run one event.

        Raises:
            gr.Error: If it fails, for whatever reason.
        """
        try:
            function = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
            _check_inputs(function.inputs, inputs)
            if any(isinstance(block, PanelImage) for block in function.outputs):
                self.folder.check_space()
            return await super().process_api(block_fn, inputs, state, request, *args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            raise as_gradio_error(error, request) from error


def _check_inputs(blocks: Sequence[Any], inputs: Sequence[Any]) -> None:
    if len(inputs) != len(blocks):
        raise ConfigError(f"{len(inputs)} values were given; this call takes {len(blocks)}")
    for block, payload in zip(blocks, inputs, strict=True):
        if isinstance(block, SafeImage):
            block.check_payload(payload)
