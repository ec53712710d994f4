"""Stands in for Hugging Face's package of that name on a machine that has no GPU.

As the real one does on ZeroGPU, it pretends in the thread that imports it that there is a GPU; what
is put there has no numbers in this process. A decorated function is run in a forked process, which
is kept for the next call, has the numbers, and gets and sends what can be pickled. Errors arrive as
those of a page, with a title and the name of their class.
"""

import multiprocessing
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_context = multiprocessing.get_context("fork")
_thread = threading.current_thread()
_numbers: dict[nn.Parameter, torch.Tensor] = {}
_to = nn.Module.to
_forked = False
_worker: Any = None

# What the platform was asked for: the pid of the worker, and the seconds.
calls: list[tuple[int, int]] = []
# What the platform answers instead, if anything.
refusal: Exception | None = None


class PageError(Exception):
    """Gradio's, as far as it matters."""

    def __init__(self, message: str, title: str) -> None:
        super().__init__(message)
        self.message, self.title = message, title


def _pretending_to(self: nn.Module, device: Any, dtype: Any = None) -> nn.Module:
    if torch.device(device).type != "cuda":
        return _to(self, device, dtype)
    if _forked:
        return _to(self, "cpu", dtype)
    if threading.current_thread() is not _thread:
        raise RuntimeError("Low-level CUDA init (`torch._C._cuda_init`) reached.")
    _to(self, "cpu", dtype)
    for parameter in self.parameters():
        _numbers[parameter] = parameter.data
        parameter.data = torch.zeros_like(parameter.data)
    return self


nn.Module.to = _pretending_to  # type: ignore[method-assign, assignment]
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1


def GPU(  # noqa: N802  (its name)
    task: Callable[..., Any], *, duration: Callable[..., int]
) -> Callable[..., Any]:
    """Have a function run in a worker."""

    def handler(*arguments: Any) -> Any:
        seconds = duration(*arguments)
        if refusal is not None:
            raise refusal
        worker = _worker or _start(task)
        calls.append((worker.pid, seconds))
        worker.sent.send(arguments)
        kind, value = worker.got.recv()
        if kind == "error":
            raise PageError(value, "ZeroGPU worker error")
        return value

    return handler


def end_worker() -> None:
    """Have the next call begin with a fork, as the platform does when it likes."""
    global _worker
    if _worker is not None:
        _worker.kill()
        _worker.join()
        _worker = None


def _start(task: Callable[..., Any]) -> Any:
    global _worker
    there, sent = _context.Pipe(duplex=False)
    got, back = _context.Pipe(duplex=False)
    _worker = _context.Process(target=_serve, args=(task, there, back), daemon=True)
    _worker.start()
    _worker.sent, _worker.got = sent, got
    return _worker


def _serve(task: Callable[..., Any], there: Any, back: Any) -> None:
    global _forked
    _forked = True
    for parameter, numbers in _numbers.items():
        parameter.data = numbers
    while True:
        arguments = there.recv()
        thread = threading.Thread(target=_answer, args=(task, arguments, back))
        thread.start()
        thread.join()


def _answer(task: Callable[..., Any], arguments: Any, back: Any) -> None:
    try:
        back.send(("value", task(*arguments)))
    except Exception as error:
        back.send(("error", type(error).__name__))
