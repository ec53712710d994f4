"""Files over HTTPS: whole and as expected under their name, or not there.

A file is received under its name with `.partial` behind, beside a note (`.partial.json`) of
which version it is. What is there when a download ends for whatever reason is gone on with by the
next, if the server still has that version. Processes that want the same file take turns.

A server is given up after `ATTEMPTS` attempts in a row that brought nothing, with pauses of
`PAUSE_SECONDS`, twice that, and so on: within 3 s where nobody answers at once, within 33 s where
nobody answers at all, within 93 s where somebody does and then is silent.
"""

import contextlib
import errno
import hashlib
import ipaddress
import json
import os
import re
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import httpx2
import torch
from huggingface_hub import constants
from tqdm import tqdm

from mae_core.errors import DownloadError

# Bytes so far, and in all where that is known. One that raises ends the download.
Progress = Callable[[int, int | None], None]

# Looks into a file or folder that was received, and raises if it is not to be kept.
Check = Callable[[Path], object]

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
ATTEMPTS = 3
PAUSE_SECONDS = 1.0

# Four times the largest published file; no repository is worth more of anybody's disk.
MAX_BYTES = 16 * 2**30

_CHUNK = 2**20

# How often one who waits for another's download tells how far that is.
_WAIT_SECONDS = 0.5

# Answers that may be others a moment later.
PASSING = {408, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch, and what is known of it.

    Attributes:
        url: Address; `https`, or `http` on this machine.
        path: Where it goes.
        bytes: Its size, if known.
        sha256: Hexadecimal digits, if known.
        md5_prefix: First hexadecimal digits of its MD5, if known.
        label: What messages call it; never the path of a cache or an address with a signature.
    """

    url: str
    path: Path
    bytes: int | None = None
    sha256: str | None = None
    md5_prefix: str | None = None
    label: str = ""

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.label or self.path.name

    @property
    def host(self) -> str:
        """Who has it."""
        return httpx2.URL(self.url).host

    def mismatch(self, path: Path) -> str | None:
        """How a file on disk differs from what is known; None if it does not.

        Raises:
            OSError: If it cannot be read.
        """
        size = path.stat().st_size
        if self.bytes is not None and size != self.bytes:
            return f"it has {size:,} bytes rather than {self.bytes:,}"
        for name, wanted in (("sha256", self.sha256), ("md5", self.md5_prefix)):
            if wanted and not _digest(path, name).startswith(wanted.lower()):
                return f"its {name.upper()} is not the published one"
        return None


def checkpoints_folder() -> Path:
    """Where torch.hub keeps the files it fetches, ours too; follows TORCH_HOME."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE or MAE_OFFLINE forbids the network."""
    ours = os.environ.get("MAE_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return ours or constants.is_offline_mode()


def fetch_file(
    remote: RemoteFile,
    *,
    progress: Progress,
    check: Check | None = None,
    headers: Mapping[str, str] | None = None,
) -> Path:
    """Fetch a file, or what is missing of it, unless it is there.

    Args:
        remote: The file.
        progress: Told how far it is.
        check: Looks into the file before it gets its name; where it raises, the file is removed.
        headers: Sent with the request, and never to another host it is redirected to.

    Returns:
        `remote.path`, whole and checked.

    Raises:
        DownloadError: If it cannot be fetched, or is not what is known of it. What was received
            stays for the next attempt, unless it was wrong.
    """
    if remote.path.is_file():
        return remote.path
    refuse_offline(remote.title)
    refuse_address(httpx2.URL(remote.url))
    partial = _Partial(remote)
    with _alone(partial, progress):
        if not remote.path.is_file():
            _receive_all(partial, progress, dict(headers or {}))
            _keep(partial, check)
    return remote.path


def _keep(partial: "_Partial", check: Check | None) -> None:
    """Give a whole file its name if it is what it should be; else remove it."""
    remote = partial.remote
    try:
        with explained_writing(remote.title):
            difference = remote.mismatch(partial.path)
        if difference is not None:
            raise DownloadError(
                f"what {remote.host} sent as {remote.title} was removed: {difference}; try again, "
                "and if it stays so, the file there is not the published one"
            )
        if check is not None:
            check(partial.path)
    except Exception:
        partial.drop()
        raise
    with explained_writing(remote.title):
        partial.path.replace(remote.path)
        partial.drop()


class _PassingError(Exception):
    """An answer that may be another a moment later; its text is for people."""


class _Partial:
    """A file that is being received, and the note of which version it is."""

    def __init__(self, remote: RemoteFile) -> None:
        self.remote = remote
        self.path = remote.path.with_name(remote.path.name + ".partial")
        self._note = remote.path.with_name(remote.path.name + ".partial.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def note(self) -> dict[str, Any]:
        """What the server said of this version; empty if that is not known."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        # Another address had a file of that name.
        return note if isinstance(note, dict) and note.get("url") == self.remote.url else {}

    @property
    def total(self) -> int | None:
        total = self.note().get("bytes")
        return total if isinstance(total, int) else None

    @property
    def whole(self) -> bool:
        return self.path.is_file() and self.size == self.total

    def start(self, response: httpx2.Response, total: int | None) -> None:
        """Forget what is there; a version begins of which the response tells."""
        with explained_writing(self.remote.title):
            self.path.unlink(missing_ok=True)
            self.path.touch()
        self._write_note(_version(response), total)

    def finish(self) -> None:
        """All is there, whether the server had said how much that would be or not."""
        self._write_note(self.note().get("version"), self.size)

    def drop(self) -> None:
        for path in (self.path, self._note):
            path.unlink(missing_ok=True)

    def _write_note(self, version: str | None, total: int | None) -> None:
        note = {"url": self.remote.url, "version": version, "bytes": total}
        new = self._note.with_name(self._note.name + ".new")
        with explained_writing(self.remote.title):
            new.write_text(json.dumps(note), encoding="utf-8")
            # At once: whoever waits for this download reads it meanwhile.
            new.replace(self._note)


@contextlib.contextmanager
def _alone(partial: _Partial, progress: Progress) -> Iterator[None]:
    """Waits until nobody else fetches the file, telling how far they are."""
    remote = partial.remote
    with explained_writing(remote.title):
        remote.path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(remote.path.with_name(remote.path.name + ".lock"))
    while True:
        try:
            with explained_writing(remote.title):
                lock.acquire(timeout=_WAIT_SECONDS)
            break
        except filelock.Timeout:
            # There is none before the first bytes, nor while the whole file gets its name.
            if note := partial.note():
                progress(partial.size, note.get("bytes"))
    try:
        yield
    finally:
        lock.release()


def _receive_all(partial: _Partial, progress: Progress, headers: Mapping[str, str]) -> None:
    vain = 0
    with _client(httpx2.URL(partial.remote.url)) as client:
        while not partial.whole:
            before = partial.size
            try:
                _receive(client, partial, progress, headers)
            except (httpx2.HTTPError, httpx2.InvalidURL, _PassingError) as error:
                vain = 1 if partial.size > before else vain + 1
                if vain >= ATTEMPTS or not isinstance(error, httpx2.TransportError | _PassingError):
                    raise DownloadError(_sentence(partial, error)) from error
                time.sleep(PAUSE_SECONDS * 2 ** (vain - 1))
    progress(partial.size, partial.total)


def _receive(
    client: httpx2.Client, partial: _Partial, progress: Progress, headers: Mapping[str, str]
) -> None:
    """One request, and as much of the file as it brings."""
    asked = {**headers, **_resuming(partial), "Accept-Encoding": "identity"}
    with client.stream("GET", partial.remote.url, headers=asked) as response:
        _check_status(partial, response)
        goes_on = response.status_code == 206
        total = partial.total if goes_on else _length(response)
        _check_size(partial.remote, total)
        # Where it begins anew, what is there makes room.
        check_space(partial.remote.title, partial.path.parent, (total or 0) - partial.size)
        if not goes_on:
            partial.start(response, total)
        progress(partial.size, total)
        _append(partial, response, total, progress)
    partial.finish()


def _append(
    partial: _Partial, response: httpx2.Response, total: int | None, progress: Progress
) -> None:
    done = partial.size
    # Neither side gathers: what has come is on the disk when the connection is cut.
    with partial.path.open("ab", buffering=0) as file:
        for chunk in response.iter_raw():
            done += len(chunk)
            _check_size(partial.remote, done, exact=False)
            with explained_writing(partial.remote.title):
                file.write(chunk)
            progress(done, total)


def _resuming(partial: _Partial) -> dict[str, str]:
    """Asks for what is missing, of the same version only."""
    version = partial.note().get("version")
    if not partial.size or not isinstance(version, str):
        return {}
    return {"Range": f"bytes={partial.size}-", "If-Range": version}


def _version(response: httpx2.Response) -> str | None:
    """What tells versions apart byte by byte; a weak tag does not."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _length(response: httpx2.Response) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _check_status(partial: _Partial, response: httpx2.Response) -> None:
    status = response.status_code
    if status in PASSING:
        raise _PassingError(f"it answered {status}, which may pass; try again later")
    if status == 416 or (status == 206 and not _goes_on(partial, response)):
        # Not the version whose beginning is here.
        partial.drop()
        raise _PassingError("what it has is not what was begun; try again")
    if status not in (200, 206):
        raise DownloadError(f"{_opening(partial.remote)}: {refusal(status)}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError(f"{_opening(partial.remote)}: it sends it packed, as was not asked for")


def _goes_on(partial: _Partial, response: httpx2.Response) -> bool:
    """Whether a part is the one that was asked for."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if found is None or not _resuming(partial):
        return False
    return (int(found[1]), int(found[2])) == (partial.size, partial.total)


def _check_size(remote: RemoteFile, size: int | None, *, exact: bool = True) -> None:
    if size is None:
        return
    if size > MAX_BYTES:
        raise DownloadError(
            f"{remote.title} is larger than {shown_bytes(MAX_BYTES)}, the most that is fetched"
        )
    if remote.bytes is not None and (size != remote.bytes if exact else size > remote.bytes):
        raise DownloadError(
            f"{remote.host} has another file as {remote.title}: of {size:,} bytes rather than "
            f"{remote.bytes:,}; it was not fetched"
        )


def check_space(title: str, folder: Path, needed: int) -> None:
    """Refuse what does not fit on the disk.

    Args:
        title: What it is called.
        folder: Where it goes; is there.
        needed: Bytes still to come.

    Raises:
        DownloadError: If fewer are free.
    """
    with explained_writing(title):
        free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{title} needs {shown_bytes(needed)} more, and the disk of its cache has "
            f"{shown_bytes(free)} free; make room, or move the cache by TORCH_HOME and HF_HOME"
        )


@contextlib.contextmanager
def explained_writing(title: str) -> Iterator[None]:
    """Says of a failing disk what failed and what to do.

    Args:
        title: What is written.

    Raises:
        DownloadError: For every OSError.
    """
    try:
        yield
    except filelock.Timeout:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk of its cache is full; free some space, and it goes on from there"
        else:
            reason = (
                f"{error.strerror or type(error).__name__}; check the rights of the cache's folder"
            )
        raise DownloadError(f"could not store {title}: {reason}") from error


def refuse_offline(title: str) -> None:
    """Refuse to fetch where the network is forbidden.

    Raises:
        DownloadError: If it is.
    """
    if is_offline():
        raise DownloadError(
            f"{title} is not on this machine and may not be fetched: HF_HUB_OFFLINE or MAE_OFFLINE "
            "is set; unset it"
        )


def _client(start: httpx2.URL) -> httpx2.Client:
    """A client that is led on to `https` only; one that starts on this machine may stay there."""

    def on_request(request: httpx2.Request) -> None:
        if request.url.scheme != "https" and start.scheme == "https":
            raise DownloadError(f"{start.host} leads to an address that is not https; not followed")
        refuse_address(request.url)

    return httpx2.Client(
        timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
        follow_redirects=True,
        event_hooks={"request": [on_request]},
    )


def refuse_address(url: httpx2.URL) -> None:
    """Refuse addresses other than `https`, or `http` on this machine.

    Raises:
        DownloadError: If it is one.
    """
    if url.scheme == "https" or (url.scheme == "http" and _on_this_machine(url.host)):
        return
    raise DownloadError(f"{url.host} is not asked over {url.scheme or 'nothing'}; it must be https")


def _on_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _opening(remote: RemoteFile) -> str:
    return f"could not fetch {remote.title} from {remote.host}"


def _sentence(partial: _Partial, error: Exception) -> str:
    """What stopped a download, and what to do."""
    kept = f"; {partial.size:,} bytes are kept, and it goes on from there" if partial.size else ""
    return f"{_opening(partial.remote)}: {network_reason(error)}{kept}"


def network_reason(error: BaseException) -> str:
    """What the way to a server had against a request, and what to do.

    Never the error's own words: a server, which may be anybody, has a say in them.
    """
    causes = list(_causes(error))
    if isinstance(error, _PassingError):
        return str(error)
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return "its name was not found; check the network"
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return "its certificate was not accepted; check the clock and the network"
    if isinstance(error, httpx2.ConnectTimeout):
        return f"no answer within {CONNECT_SECONDS:g} s; check the network and try again"
    if isinstance(error, httpx2.TimeoutException):
        return f"nothing came for {READ_SECONDS:g} s; try again"
    if isinstance(error, httpx2.ConnectError):
        return "it cannot be reached; check the network"
    if isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError):
        return "the connection was cut; try again"
    return f"the request failed ({type(error).__name__}); try again"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def refusal(status: int) -> str:
    """What an HTTP status of 400 or more means to people, and what to do."""
    sentence = _REFUSALS.get(status, "it answered {status}; try again later")
    return sentence.format(status=status)


_LOGIN = (
    "it needs an account that may read it: accept its terms on its page if it has some, and run "
    "`hf auth login`"
)
_REFUSALS = {
    401: _LOGIN,
    403: f"access is refused (403); {_LOGIN}",
    404: "it is not there (404); it may have been moved",
    410: "it is no longer there (410)",
}


def _digest(path: Path, name: str) -> str:
    digest = hashlib.new(name, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def shown_bytes(size: int) -> str:
    """A number of bytes as people read it."""
    if size < 2**30:
        return f"{size / 2**20:.1f} MiB"
    return f"{size / 2**30:.2f} GiB"


@contextlib.contextmanager
def terminal_bar(name: str) -> Iterator[Progress]:
    """A bar on standard error while the context lasts; none where that is no terminal."""
    with tqdm(
        desc=name, unit="B", unit_scale=True, unit_divisor=1024, disable=None, leave=True
    ) as bar:

        def progress(done: int, total: int | None) -> None:
            if bar.n == 0:
                # What was there before is no speed.
                bar.initial = done
            bar.total = total
            bar.update(done - bar.n)

        yield progress
