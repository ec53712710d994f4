"""Uploads to images: the page's door to what strangers send.

A small file may cost Pillow minutes or gigabytes, crash it, or have it show the memory of its
process. So each upload is decoded in a process of its own, in bounds of time and memory that the
kernel keeps. It is a fork of a server that loads the decoders, sees no upload and is started
without this process's environment: no other picture and no token is in its memory.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress

from PIL import AvifImagePlugin, Image

from mae_core.errors import ImageError, MAEError
from mae_core.measurements import RangeSpec
from mae_core.photographs import decode_image, read_drawing

# Of one upload; docs/security.md says what the largest picture of each format takes.
_CPU_SECONDS, _WALL_SECONDS, _MEMORY_BYTES = 10, 25, 5 * 2**29

# Uploads that are decoded at once, and how long one waits for its turn: both together stay below
# the time that a run of a model may take.
_slots = threading.BoundedSemaphore(max(4, os.cpu_count() or 1))
_TURN_SECONDS = 15.0

# glibc overwrites new memory, so that rows which a decoder leaves out have one flat colour. Without
# these bounds each thread and core would take address space.
_ENVIRONMENT = {"MALLOC_PERTURB_": "128", "MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1"}


# What the server runs.
_PROGRAM = ("-m", "app.decoding")


class DecodersBusyError(MAEError):
    """No upload can be decoded in time, because too many others are."""

    code = "decoders_busy"


def decode_upload(
    data: bytes, *, value_range: RangeSpec = "auto", drawing: bool = False
) -> Image.Image:
    """The RGB image a person sees in an uploaded file; see `mae_core.decode_image`.

    Args:
        data: The file.
        value_range: Of values of more than 8 bits.
        drawing: Whether it is a drawn mask, which comes as black and white (`read_drawing`).

    Raises:
        ImageError: If it is not an image of an accepted format, is damaged, too large, too small
            or too narrow, or takes too much time or memory.
        DecodersBusyError: If too many others are decoded.
    """
    if not hasattr(os, "fork"):  # Windows: nothing is bounded there
        return _open(data, value_range, drawing)
    if not _slots.acquire(timeout=_TURN_SECONDS):
        raise DecodersBusyError("many uploads are being decoded; try again in a minute")
    try:
        question = json.dumps([value_range, drawing]).encode() + b"\n" + data
        answer = _server.ask(question)
        if not answer and not _server.is_running:
            answer = _server.ask(question)
    finally:
        _slots.release()
    try:
        line, _, pixels = answer.partition(b"\n")
        told = json.loads(line)
        if "size" in told:
            return Image.frombytes("RGB", tuple(told["size"]), pixels)
    except ValueError as error:  # the process has ended before it told all
        raise ImageError(
            f"decoding this file fails, or takes more than {_CPU_SECONDS} seconds or "
            f"{_MEMORY_BYTES / 2**30:g} GiB of memory; save it again as PNG or JPEG",
            code="image_limit",
        ) from error
    raise ImageError(told["error"], code=told["code"])


def _open(data: bytes, value_range: RangeSpec, drawing: bool) -> Image.Image:
    if drawing:
        return Image.fromarray(read_drawing(data)).convert("RGB")
    return decode_image(data, value_range=value_range)


class _Server:
    """The process that is forked for each upload; started when there is none, it ends with this."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket

    def ask(self, question: bytes) -> bytes:
        """What a new fork answers: nothing if it, or the server, ended before."""
        ours, theirs = socket.socketpair()
        ours.settimeout(_WALL_SECONDS + 5)
        try:
            with ours:
                with theirs, self._lock:
                    self._start()
                    socket.send_fds(self._channel, [b"-"], [theirs.fileno()])
                ours.sendall(question)
                ours.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: ours.recv(2**20), b""))
        except TimeoutError:
            # The server hangs; forks end by themselves, in time.
            with self._lock:
                self.stop()
        except OSError:
            pass
        return b""

    @property
    def is_running(self) -> bool:
        """Whether there is a server that can be asked."""
        return self._process is not None and self._process.poll() is None

    def _start(self) -> None:
        if self.is_running:
            return
        self.stop()
        self._channel, channel = socket.socketpair()
        libraries = {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}
        with channel:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", *_PROGRAM],
                stdin=channel.fileno(),
                stdout=subprocess.DEVNULL,
                env={"PYTHONPATH": os.pathsep.join(sys.path), **libraries, **_ENVIRONMENT},
                start_new_session=True,  # out of reach of a terminal's Ctrl-C
            )

    def stop(self) -> None:
        """End it if it runs."""
        if self._process:
            self._channel.close()
            self._process.kill()
            self._process.wait()


def _serve(channel: socket.socket) -> None:
    """Fork a process for each connection that comes, until the other end is closed."""
    Image.init()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 4  # as of HEIC; else one for each core
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    while connections := socket.recv_fds(channel, 1, 1)[1]:
        with socket.socket(fileno=connections[0]) as connection:
            if os.fork() == 0:
                try:
                    channel.close()
                    _decode(connection)
                finally:
                    os._exit(0)


def _decode(connection: socket.socket) -> None:
    import resource  # of Unix

    for kind, most in ((resource.RLIMIT_AS, _MEMORY_BYTES), (resource.RLIMIT_CPU, _CPU_SECONDS)):
        with suppress(OSError, ValueError):  # not on macOS, or there is a lower one
            resource.setrlimit(kind, (most, most))
    signal.alarm(_WALL_SECONDS)
    with connection.makefile("rwb") as file:
        (value_range, drawing), data = json.loads(file.readline()), file.read()
        told: dict[str, object]
        pixels = b""
        try:
            image = _open(data, value_range, drawing)
            told, pixels = {"size": image.size}, image.tobytes()
        except MAEError as error:
            if isinstance(error.__cause__, MemoryError):
                return
            told = {"error": str(error), "code": error.code}
        file.write(json.dumps(told).encode() + b"\n")
        file.write(pixels)


_server = _Server()
atexit.register(_server.stop)

if __name__ == "__main__":
    with socket.socket(fileno=0) as channel:
        _serve(channel)
