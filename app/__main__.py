"""Serve the page: `python -m app [--host H] [--port P] [--device D] [--weights W,...]`.

Every setting of `app.settings` is a flag, and a variable of the environment: `--max-batch` is
MAE_MAX_BATCH. On SIGTERM the page takes no more requests, answers those it has, and ends. It also
ends, with status 1, when too many runs of models hang, so that whoever runs it starts it again.
"""

import contextlib
import ctypes
import errno
import logging
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from app import gradio_seam
from app.ops.logs import configure_logging
from app.page.build import build_page
from app.service import ReconstructionService
from app.serving import serve
from app.settings import AppSettings, read_settings
from mae_core import MAEError
from mae_core.errors import ConfigError

# Compiled kernels that oneDNN keeps. It compiles some for each number of visible patches, and of
# its own accord keeps 1024, by which the page grows as visitors try one mask ratio after another.
_KERNELS = "64"

# Of glibc's malloc.h.
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted, or told to end.

    Args:
        argv: Command line without the program's name; the process's own if not given.

    Returns:
        The exit status: 1 if runs of models hang, 2 after an error that the caller can mend, 130
        if interrupted before the page is served.
    """
    configure_logging()
    _return_memory()
    os.environ.update(gradio_seam.ENVIRONMENT)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KERNELS)
    service = None
    try:
        with _exiting_on_sigterm():
            settings = read_settings(sys.argv[1:] if argv is None else argv)
            os.environ["GRADIO_TEMP_DIR"] = os.environ.get("GRADIO_TEMP_DIR") or _folder(settings)
            service = ReconstructionService.load(settings)
            status = serve(*build_page(service), service)
    except MAEError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except OSError as error:
        # Such as a disk that is full, or a machine so busy that Gradio does not wait for it.
        print(f"error: the page cannot be started: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    except SystemExit as told:
        status = int(told.code or 0)
    if service is not None and service.busy:
        # Python would wait for threads that are still in a model or a download.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)
    return status


def _return_memory() -> None:
    """Have glibc give back what is freed.

    By itself it keeps a heap for each of many threads, and the holes that pictures leave in it.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_MMAP_THRESHOLD, 256 * 1024)


@contextlib.contextmanager
def _exiting_on_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit in the main thread, the first time."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _folder(settings: AppSettings) -> str:
    """A folder for uploads that no other user sees and no other page of this user's deletes from.

    It is the same after a restart, which so finds what was left.

    Raises:
        ConfigError: If it cannot be made, or somebody else was faster.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"mae-app-{user}-{settings.port}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != user:
            raise FileExistsError(errno.EEXIST, "somebody else's")
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(
            f"cannot keep uploads in {folder}: {error.strerror}; set GRADIO_TEMP_DIR to a folder "
            "of your own"
        ) from error
    return str(folder)


if __name__ == "__main__":
    sys.exit(main())
