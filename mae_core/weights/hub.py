"""Weights from the network: published files over HTTPS, and repositories of the Hugging Face hub.

huggingface_hub receives both. `fetch_file` adds what its cache does not do: an interrupted download
is resumed by the next call, also in another process, and the file gets its name only after its
size, its hashes and the caller's check passed. A repository lies in huggingface_hub's own cache:
what other tools fetched is found here, and the reverse.

Every failure is one sentence, never an exception's own text, which a server controls.
"""

import contextlib
import errno
import glob
import hashlib
import ipaddress
import logging
import os
import re
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import filelock
import httpx2
import torch
from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import HfFileMetadata, http_get
from tqdm import tqdm

from mae_core.errors import CheckpointError, DownloadError
from mae_core.weights.files import read_json

# Called with the bytes so far and in all, where that is known. An exception ends the download.
Progress = Callable[[int, int | None], None]

# Looks into a file or folder that was received, and raises if it is not to be kept.
Check = Callable[[Path], object]

# Seconds without an answer before a request is given up.
ANSWER_SECONDS = 10.0
# Requests before a server is given up, and the first pause between two, which then doubles.
ATTEMPTS = 3
PAUSE_SECONDS = 1.0

# Four times the largest published file.
MAX_BYTES = 16 * 2**30

# How often a process that waits for another one's download reports its progress.
_WAIT_SECONDS = 0.5
_TRANSIENT = {408, 429, 500, 502, 503, 504}

# Our own weights, where a folder or repository has them.
OURS = "weights.safetensors"

_REPOSITORY = re.compile(
    r"(?!.*(?:\.\.|--|\.git$))[a-z0-9](?:[\w.-]{0,94}\w)?/\w(?:[\w.-]{0,94}\w)?",
    re.ASCII | re.IGNORECASE,
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHARD = re.compile(r"(model|pytorch_model)-\d{5}-of-(\d{5})\.(safetensors|bin)")

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch, and what is known of it.

    Attributes:
        url: Address; `https`, or `http` on this machine.
        path: Where it goes.
        bytes: Its size, if known.
        sha256: Hexadecimal digits, if known.
        md5_prefix: First hexadecimal digits of its MD5, if known.
    """

    url: str
    path: Path
    bytes: int | None = None
    sha256: str | None = None
    md5_prefix: str | None = None

    def mismatch(self, path: Path) -> str | None:
        """How a file on disk differs from what is known; None if it does not.

        Raises:
            OSError: If it cannot be read.
        """
        return _mismatch(path, self.bytes, sha256=self.sha256, md5=self.md5_prefix)


def _mismatch(path: Path, size: int | None, **digests: str | None) -> str | None:
    found = path.stat().st_size
    if size is not None and found != size:
        return f"it has {found:,} bytes rather than {size:,}"
    for name, wanted in digests.items():
        with path.open("rb") as file:
            new = partial(hashlib.new, name, usedforsecurity=False)
            if wanted and not hashlib.file_digest(file, new).hexdigest().startswith(wanted.lower()):
                return f"its {name.upper()} is not the published one"
    return None


def is_repository(text: str) -> bool:
    """Whether a text has the form USER/NAME of a hub repository."""
    return _REPOSITORY.fullmatch(text) is not None


def choose_files(names: Iterable[str], *, torch_files: bool = True) -> tuple[str, ...]:
    """Which files of a folder or repository hold its weights, with the configs before them.

    Ours comes first, then `model.safetensors`, whole or in shards, then any one other safetensors
    file, then `pytorch_model.bin`, whole or in shards. Nothing else is ever chosen.

    Args:
        names: Files, as paths from the top; those in folders are ignored.
        torch_files: Whether `pytorch_model.bin` may be chosen.

    Returns:
        Names; empty if there are no weights.
    """
    there = set(names)
    others = [name for name in there if re.fullmatch(r"[\w.-]+\.safetensors", name, re.ASCII)]
    candidates = [
        (OURS,),
        ("model.safetensors",),
        _sharded(there, "model.safetensors"),
        tuple(others) if len(others) == 1 else (),
    ]
    if torch_files:
        candidates += [("pytorch_model.bin",), _sharded(there, "pytorch_model.bin")]
    for weights in candidates:
        if weights and there.issuperset(weights):
            configs = ("config.json", "preprocessor_config.json")
            return (*(name for name in configs if name in there), *weights)
    return ()


def _sharded(there: set[str], name: str) -> tuple[str, ...]:
    """An index and all of its shards; empty if shards are missing."""
    stem, suffix = name.split(".")
    found = [_SHARD.fullmatch(other) for other in sorted(there)]
    shards = [match for match in found if match and (match[1], match[3]) == (stem, suffix)]
    if not shards or len(shards) != int(shards[0][2]):
        return ()
    return (f"{name}.index.json", *(match[0] for match in shards))


def checkpoints_folder() -> Path:
    """Where torch.hub keeps the files it fetches, ours too; follows TORCH_HOME."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE or MAE_OFFLINE forbids the network."""
    ours = os.environ.get("MAE_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return ours or constants.is_offline_mode()


# --- one file


def fetch_file(remote: RemoteFile, *, progress: Progress, check: Check | None = None) -> Path:
    """Fetch a file, or what is missing of it, unless it is there.

    Args:
        remote: The file.
        progress: Called with the bytes so far and in all.
        check: Looks into the file before it gets its name; where it raises, the file is removed.

    Returns:
        `remote.path`, whole and checked.

    Raises:
        DownloadError: If it cannot be fetched, or is not what is known of it. What was received
            stays for the next call, unless it was wrong.
    """
    path, name, host = remote.path, remote.path.name, httpx2.URL(remote.url).host
    if path.is_file():
        return path
    _refuse_offline(name)
    with _explained(name, host):
        found = _ask_for(remote)
        # One file for each version: bytes of two are never mixed.
        key = hashlib.sha256(f"{remote.url} {found.etag}".encode()).hexdigest()[:16]
        part = path.with_name(f"{name}.{key}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path, lambda: progress(_size(part), found.size))
    with lock:
        if path.is_file():
            return path
        with _explained(name, host):
            _receive(remote, found, part, progress)
        try:
            with _explained(name, host):
                difference = remote.mismatch(part)
            if difference is not None:
                raise DownloadError(
                    f"what {host} sent as {name} was removed: {difference}; try again, and if it "
                    "stays so, the file there is not the published one"
                )
            if check is not None:
                check(part)
        except Exception:
            part.unlink(missing_ok=True)
            raise
        with _explained(name, host):
            part.replace(path)
    return path


def _ask_for(remote: RemoteFile) -> HfFileMetadata:
    """The address that a file is redirected to, its version and its size, as the server tells."""
    start, name = httpx2.URL(remote.url), remote.path.name
    _refuse_address(start, start)
    found = _retried(lambda: get_hf_file_metadata(remote.url, token=False, timeout=ANSWER_SECONDS))
    _refuse_address(httpx2.URL(found.location), start)
    size = found.size
    if size is not None and size > MAX_BYTES:
        raise DownloadError(f"{name} is larger than {shown_bytes(MAX_BYTES)}, the most fetched")
    if size is not None and remote.bytes is not None and size != remote.bytes:
        raise DownloadError(
            f"{start.host} has another file as {name}: of {size:,} bytes rather than "
            f"{remote.bytes:,}; it was not fetched"
        )
    return found


def _acquire(path: Path, report: Callable[[], None]) -> contextlib.AbstractContextManager[Any]:
    """Wait until no other process or thread fetches the file, and report meanwhile."""
    lock = filelock.FileLock(path.with_name(path.name + ".lock"))
    while True:
        try:
            return lock.acquire(timeout=_WAIT_SECONDS)
        except filelock.Timeout:
            report()


def _receive(remote: RemoteFile, found: HfFileMetadata, part: Path, progress: Progress) -> None:
    """Receive what is missing of a file; what is left of other versions is removed."""
    path, tag, total = remote.path, found.etag, found.size
    for old in path.parent.glob(f"{glob.escape(path.name)}.*partial*"):
        if old != part or tag is None or _size(old) > (total or MAX_BYTES):
            old.unlink()
    done = _size(part)
    check_space(path.name, path.parent, (total or 0) - done)
    progress(done, total)
    headers = {"Accept-Encoding": "identity"} | ({"If-Range": f'"{tag}"'} if tag else {})
    bar = _bar(path.name, remote.bytes or total or MAX_BYTES, _shifted(progress, 0, total))
    # Unbuffered: what was received is on disk when the connection breaks.
    with part.open("ab", buffering=0) as file, _plain_downloads():
        http_get(
            found.location, file, resume_size=done, headers=headers, expected_size=total,
            tqdm_class=bar,
        )  # fmt: skip
    progress(_size(part), _size(part))


# --- a repository


@dataclass(frozen=True)
class _Listed:
    """A file as the hub lists it."""

    name: str
    bytes: int
    sha256: str | None


def find_repository(repo_id: str) -> Path | None:
    """The folder of a repository in huggingface_hub's cache if its weights are there, or None."""
    try:
        folder = Path(snapshot_download(repo_id, local_files_only=True))
        chosen = choose_files(path.name for path in folder.iterdir() if path.is_file())
        if "config.json" in chosen and "mae_core" in read_json(folder / "config.json"):
            # Pushed by this package: transformers fetches the half of it that lacks the record.
            return folder if OURS in chosen else None
    except (OSError, ValueError, CheckpointError):
        return None
    return folder if chosen else None


def fetch_repository(
    repo_id: str,
    *,
    progress: Progress,
    check: Check | None = None,
    account: bool = True,
    torch_files: bool = True,
) -> Path:
    """Fetch the weights of a repository, and the configs next to them; no other file.

    Args:
        repo_id: USER/NAME.
        progress: Called with the bytes of all files so far and in all.
        check: Looks into the folder; where it raises, the files that came are removed.
        account: Whether the hub is sent this machine's token.
        torch_files: Whether weights may be a torch file, where there are no others.

    Returns:
        The folder in huggingface_hub's cache.

    Raises:
        DownloadError: If there is no such repository, it has no weights that are read here, it may
            not be read, or it cannot be fetched.
    """
    _refuse_offline(repo_id)
    token = None if account else False
    host, cache = httpx2.URL(constants.ENDPOINT).host, Path(constants.HF_HUB_CACHE)
    with _explained(repo_id, host, everything=True):
        commit, files = _list_files(repo_id, token, torch_files)
    with _explained(repo_id, host):
        cache.mkdir(parents=True, exist_ok=True)
        missing = [
            file for file in files
            if not isinstance(try_to_load_from_cache(repo_id, file.name, cache, commit), str)
        ]  # fmt: skip
        check_space(repo_id, cache, sum(file.bytes for file in missing))
    total, done = sum(file.bytes for file in files), 0
    progress(0, total)
    for file in files:
        title = f"{file.name} of {repo_id}"
        bar = _bar(title, file.bytes, _shifted(progress, done, total))
        with _explained(title, host), _plain_downloads():
            path = Path(hf_hub_download(
                repo_id, file.name, revision=commit, token=token, tqdm_class=bar
            ))  # fmt: skip
            wrong = file in missing and _mismatch(path, file.bytes, sha256=file.sha256)
        if wrong:
            _remove(path)
            raise DownloadError(f"{title} was removed: {wrong}; try again")
        done += file.bytes
        progress(done, total)
    try:
        if check is not None:
            check(path.parent)
    except Exception:
        for file in missing:
            _remove(path.with_name(file.name))
        raise
    with _explained(repo_id, host, everything=True):
        # Notes in the cache which commit is the newest; `find_repository` goes by that.
        HfApi().resolve_revision(repo_id, token=token)
    return path.parent


def _remove(path: Path) -> None:
    """Remove a file from huggingface_hub's cache, and the content that it links to."""
    content = path.resolve()
    path.unlink(missing_ok=True)
    content.unlink(missing_ok=True)


def _list_files(repo_id: str, token: bool | None, torch_files: bool) -> tuple[str, list[_Listed]]:
    """The commit of a repository's weights, and their files; its values are not trusted."""
    endpoint = httpx2.URL(constants.ENDPOINT)
    _refuse_address(endpoint, endpoint)
    info = _retried(
        lambda: HfApi().model_info(
            repo_id, files_metadata=True, timeout=ANSWER_SECONDS, token=token
        )
    )
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    names = choose_files(siblings, torch_files=torch_files)
    if not names:
        kinds, advice = "model.safetensors, weights.safetensors and pytorch_model.bin", ""
        if not torch_files:
            kinds = "model.safetensors and weights.safetensors"
            advice = (
                "; torch files are read from a disk only: fetch them by `hf download`, and "
                "`mae convert` makes safetensors of them"
            )
        raise DownloadError(
            f"{repo_id} has no weights that are read here: those are {kinds}, whole or in shards, "
            f"at its top{advice}"
        )
    files = []
    for name in names:
        size, lfs = siblings[name].size, siblings[name].lfs
        if type(size) is not int or size < 0 or (lfs and not _SHA256.fullmatch(lfs.sha256)):
            raise ValueError("no size or hash")
        files.append(_Listed(name, size, lfs.sha256 if lfs else None))
    if not _COMMIT.fullmatch(info.sha or ""):
        raise ValueError("no commit")
    total = sum(file.bytes for file in files)
    if total > MAX_BYTES:
        raise DownloadError(
            f"the weights of {repo_id} are {shown_bytes(total)}; no more than "
            f"{shown_bytes(MAX_BYTES)} is fetched"
        )
    return str(info.sha), files


# --- what both share


def _retried(ask: Callable[[], _Answer]) -> _Answer:
    """The answer to a question that changes nothing; asked again after passing failures."""
    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except HfHubHTTPError as error:
            if attempt == ATTEMPTS - 1 or error.response.status_code not in _TRANSIENT:
                raise
        except httpx2.TransportError:
            if attempt == ATTEMPTS - 1:
                raise
        time.sleep(PAUSE_SECONDS * 2**attempt)
    raise AssertionError


def _bar(title: str, most: int, report: Callable[[int], None]) -> Any:
    """A class of progress bars that draw nothing, report bytes, and end downloads above `most`."""

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *_: object, initial: int = 0, **__: object) -> None:
            super().__init__(disable=True)
            self.n = initial

        def update(self, n: float | None = 1) -> None:
            self.n += int(n or 0)
            if self.n > most:
                raise DownloadError(f"{title} is larger than {most:,} bytes; it was not fetched")
            report(self.n)

    return Bar


def _shifted(progress: Progress, before: int, total: int | None) -> Callable[[int], None]:
    return lambda done: progress(before + done, total)


@contextlib.contextmanager
def _plain_downloads() -> Iterator[None]:
    """Make downloads of huggingface_hub stoppable and silent.

    Xet swallows exceptions of a progress bar, so nothing stops its downloads
    (https://github.com/huggingface/huggingface_hub/issues/4632); plain HTTP raises them after each
    chunk. Warnings would show signed addresses and what a server wrote.
    """
    logger = logging.getLogger("huggingface_hub")
    before = constants.HF_HUB_DISABLE_XET, constants.DOWNLOAD_CHUNK_SIZE, logger.level
    constants.HF_HUB_DISABLE_XET, constants.DOWNLOAD_CHUNK_SIZE = True, 2**16
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET, constants.DOWNLOAD_CHUNK_SIZE = before[:2]
        logger.setLevel(before[2])


@contextlib.contextmanager
def _explained(title: str, host: str, *, everything: bool = False) -> Iterator[None]:
    """Turn failures of the network and the disk, or everything, into a DownloadError."""
    try:
        yield
    except DownloadError:
        raise
    except Exception as error:
        if not everything and not isinstance(error, httpx2.HTTPError | httpx2.InvalidURL | OSError):
            raise
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT):
            sentence = (
                f"could not store {title}: the disk of its cache is full; free some space and try "
                "again"
            )
        elif number is not None:
            said = os.strerror(number)
            sentence = f"could not store {title}: {said}; check the rights of the cache's folder"
        else:
            sentence = f"could not fetch {title} from {host}: {_reason(error)}"
        raise DownloadError(sentence) from error


_LOGIN = (
    "it needs an account that may read it: accept its terms on its page if it has some, and run "
    "`hf auth login`"
)
_STATUSES = {
    401: _LOGIN,
    403: f"access is refused (403); {_LOGIN}",
    404: "it is not there (404); it may have been moved",
    410: "it is no longer there (410)",
}
_NOT_A_HUB = "it is no Hugging Face hub; check HF_ENDPOINT and the network"
# The first that fits the exception or one of its causes.
_REASONS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((socket.gaierror,), "its name was not found; check the network"),
    ((ssl.SSLError,), "its certificate was not accepted; check the clock and the network"),
    ((httpx2.ConnectTimeout,), f"no answer within {ANSWER_SECONDS:g} s; check the network"),
    ((httpx2.TimeoutException,), "it fell silent; try again"),
    ((httpx2.ConnectError,), "it cannot be reached; check the network"),
    ((httpx2.NetworkError, httpx2.RemoteProtocolError), "the connection was cut; try again"),
    ((httpx2.HTTPError, httpx2.InvalidURL), "the request failed; try again"),
    ((FileMetadataError,), _NOT_A_HUB),
    ((OSError,), "it sent another number of bytes than it said; try again"),
)


def _reason(error: BaseException) -> str:
    """Why a request failed, and what to do."""
    causes = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, RepositoryNotFoundError) and not isinstance(cause, GatedRepoError):
            return (
                "it has no such repository, or not for everybody; check the name, and for a "
                "private one run `hf auth login`"
            )
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            return _STATUSES.get(status, f"it answered {status}; try again later")
    for types, sentence in _REASONS:
        if any(isinstance(cause, types) for cause in causes):
            return sentence
    return _NOT_A_HUB


def check_space(title: str, folder: Path, needed: int) -> None:
    """Refuse what does not fit on the disk of a folder.

    Raises:
        DownloadError: If fewer than `needed` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{title} needs {shown_bytes(needed)} more, and the disk of its cache has "
            f"{shown_bytes(free)} free; make room, or move the cache by TORCH_HOME and HF_HOME"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _refuse_offline(title: str) -> None:
    if is_offline():
        raise DownloadError(
            f"{title} is not on this machine and may not be fetched: HF_HUB_OFFLINE or MAE_OFFLINE "
            "is set; unset it"
        )


def _refuse_address(url: httpx2.URL, start: httpx2.URL) -> None:
    """Refuse addresses other than `https`, but for `http` on this machine from the start."""
    try:
        local = url.host == "localhost" or ipaddress.ip_address(url.host).is_loopback
    except ValueError:
        local = False
    if url.scheme != "https" and not (url.scheme == start.scheme == "http" and local):
        raise DownloadError(
            f"{url.host} is not asked over {url.scheme or 'nothing'}; it must be https"
        )


def shown_bytes(size: int) -> str:
    """A number of bytes as people read it, such as `13.3 MiB`."""
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"


@contextlib.contextmanager
def terminal_bar(name: str) -> Iterator[Progress]:
    """A bar on standard error while the context lasts; none where that is no terminal."""
    with tqdm(
        desc=name, unit="B", unit_scale=True, unit_divisor=1024, disable=None, leave=True
    ) as bar:

        def progress(done: int, total: int | None) -> None:
            if bar.n == 0:
                # What was there before does not count as speed.
                bar.initial = done
            bar.total = total
            bar.update(done - bar.n)

        yield progress
