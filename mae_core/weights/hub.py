"""Weights from the network: published files over HTTPS, and repositories of the Hugging Face hub.

huggingface_hub receives both. `fetch_file` adds what its cache does not do: the next call resumes
an interrupted download, and the file gets its name only after its size, hashes and the caller's
check passed. Repositories lie in huggingface_hub's own cache, shared with other tools.

Every failure is one sentence, never an exception's own text, which a server controls.
"""

import contextlib
import glob
import hashlib
import logging
import os
import re
import shutil
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import httpx2
import torch
from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    get_token,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import HfFileMetadata, http_get
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from tqdm import tqdm

from mae_core.errors import CheckpointError, DownloadError
from mae_core.weights.files import (
    CHECKPOINT_FILE,
    INDEX_SUFFIX,
    PREVIOUS_CHECKPOINT_FILE,
    SAFETENSORS_FILE,
    SIDECAR_FILES,
    TORCH_FILE,
    WEIGHTS_FILE,
    main_file,
    read_json,
)

# Called with the bytes so far and in all, where that is known. An exception ends the download.
Progress = Callable[[int, int | None], None]

# Looks into a file or folder that was received, and raises if it is not to be kept.
Check = Callable[[Path], object]

# Seconds without an answer before a request is given up.
ANSWER_SECONDS = 10.0
# Four times the largest published file.
MAX_BYTES = 16 * 2**30
# How often a process that waits for another one's download reports its progress.
_WAIT_SECONDS = 0.5

_NETWORK_AND_DISK = (httpx2.HTTPError, httpx2.InvalidURL, OSError)


@dataclass(frozen=True)
class RemoteFile:
    """A published file, where it goes, and what is known of it; hashes are hexadecimal digits."""

    url: str
    path: Path
    bytes: int | None = None
    sha256: str | None = None
    md5_prefix: str | None = None

    def mismatch(self, path: Path) -> str | None:
        """How a file on disk differs from what is known; None if it does not."""
        size = path.stat().st_size
        if self.bytes not in (None, size):
            return f"it has {size:,} bytes rather than {self.bytes:,}"
        for name, wanted in (("sha256", self.sha256), ("md5", self.md5_prefix)):
            with path.open("rb") as file:
                new = partial(hashlib.new, name, usedforsecurity=False)
                if wanted and not hashlib.file_digest(file, new).hexdigest().startswith(wanted):
                    return f"its {name.upper()} is not the published one"
        return None


def is_repository(text: str) -> bool:
    """Whether a text has the form USER/NAME of a hub repository."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count("/") == 1 and text.isascii() and text.isprintable()


def choose_files(names: Iterable[str], *, torch_files: bool = True) -> tuple[str, ...]:
    """Which files of a folder or repository hold its weights, with the configs before them.

    The order is that of `main_file`; checkpoints of runs, files in a sub-folder and an index whose
    shards are not all there are never chosen. Without `torch_files` only safetensors are.

    Returns:
        Names of files; empty if there are no weights.
    """
    there = {name for name in names if re.fullmatch(r"[\w.-]+", name, re.ASCII)}
    there -= {CHECKPOINT_FILE, PREVIOUS_CHECKPOINT_FILE}
    if not torch_files:
        there -= {TORCH_FILE, TORCH_FILE + INDEX_SUFFIX}
    shards: dict[str, list[str]] = {}
    for whole in (SAFETENSORS_FILE, TORCH_FILE):
        stem, suffix = whole.split(".")
        first = re.compile(rf"{stem}-00001-of-(\d{{5}})\.{suffix}", re.ASCII)
        count = next((found[1] for found in map(first.fullmatch, there) if found), "00000")
        parts = [f"{stem}-{i:05}-of-{count}.{suffix}" for i in range(1, int(count) + 1)]
        if parts and there.issuperset(parts):
            shards[whole + INDEX_SUFFIX] = parts
        else:
            there.discard(whole + INDEX_SUFFIX)
    name = main_file(there)
    if name is None:
        return ()
    return (*(one for one in SIDECAR_FILES if one in there), name, *shards.get(name, ()))


def checkpoints_folder() -> Path:
    """Where torch.hub keeps the files it fetches, ours too; follows TORCH_HOME."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    return constants.is_offline_mode()


# --- one file


def fetch_file(remote: RemoteFile, *, progress: Progress, check: Check | None = None) -> Path:
    """Fetch what is missing of a file; returns `remote.path`, whole and checked.

    Args:
        remote: The file.
        progress: Called with the bytes so far and in all.
        check: Looks into the file before it gets its name; where it raises, the file is removed.

    Raises:
        DownloadError: If it cannot be fetched, or is not what is known of it. What was received
            stays for the next call, unless it was wrong.
    """
    path, name, host = remote.path, remote.path.name, httpx2.URL(remote.url).host
    if path.is_file():
        return path
    _refuse_offline(name)
    with _explained(name, host):
        _require_https(remote.url, remote.url)
        found = get_hf_file_metadata(remote.url, token=False, timeout=ANSWER_SECONDS)
        _require_https(found.location, remote.url)
        if remote.bytes is not None and found.size not in (None, remote.bytes):
            raise DownloadError(
                f"{host} has another file as {name}: of {found.size:,} bytes rather than "
                f"{remote.bytes:,}; it was not fetched"
            )
        # One file for each version: bytes of two are never mixed.
        key = hashlib.sha256(f"{remote.url} {found.etag}".encode()).hexdigest()[:16]
        part = path.with_name(f"{name}.{key}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _acquire(path, lambda: progress(_size(part), found.size)):
            if path.is_file():
                return path
            for old in path.parent.glob(f"{glob.escape(name)}.*partial*"):
                if old != part or found.etag is None:
                    old.unlink()
            _receive(remote, found, part, progress)
            try:
                if difference := remote.mismatch(part):
                    raise DownloadError(
                        f"what {host} sent as {name} was removed: {difference}; try again"
                    )
                if check is not None:
                    check(part)
            except Exception:
                part.unlink(missing_ok=True)
                raise
            part.replace(path)
    return path


def _acquire(path: Path, report: Callable[[], None]) -> contextlib.AbstractContextManager[Any]:
    """Wait until no other process or thread fetches the file, and report meanwhile."""
    lock = filelock.FileLock(f"{path}.lock")
    while True:
        try:
            return lock.acquire(timeout=_WAIT_SECONDS)
        except filelock.Timeout:
            report()


def _receive(remote: RemoteFile, found: HfFileMetadata, part: Path, progress: Progress) -> None:
    """Receive what is missing of a file."""
    name, done, tag, total = remote.path.name, _size(part), found.etag, found.size
    _check_room(name, part.parent, (total or 0) - done)
    progress(done, total)
    headers = {"Accept-Encoding": "identity"} | ({"If-Range": f'"{tag}"'} if tag else {})
    bar = _bar(name, remote.bytes or total or MAX_BYTES, lambda received: progress(received, total))
    # Unbuffered: what was received is on disk when the connection breaks.
    with part.open("ab", buffering=0) as file, _plain_downloads():
        http_get(
            found.location, file, resume_size=done, headers=headers, expected_size=total,
            tqdm_class=bar,
        )  # fmt: skip
    progress(_size(part), _size(part))


# --- a repository


def find_repository(repo_id: str) -> Path | None:
    """The folder of a repository in huggingface_hub's cache if its weights are there, or None."""
    try:
        folder = Path(snapshot_download(repo_id, local_files_only=True))
        chosen = choose_files(path.name for path in folder.iterdir() if path.is_file())
        if "config.json" in chosen and "mae_core" in read_json(folder / "config.json"):
            # Pushed by this package: transformers fetches the half of it that lacks the record.
            return folder if WEIGHTS_FILE in chosen else None
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
    """Fetch the weights of a repository and the configs next to them into huggingface_hub's cache.

    Args:
        repo_id: USER/NAME.
        progress: Called with the bytes of all files so far and in all.
        check: Looks into the folder; where it raises, the files that came are removed.
        account: Whether the hub is sent this machine's token.
        torch_files: Whether `pytorch_model.bin` is fetched where there are no safetensors.

    Raises:
        DownloadError: If it cannot be fetched, or has no weights that are read here.
    """
    _refuse_offline(repo_id)
    token = None if account else False
    host, cache = httpx2.URL(constants.ENDPOINT).host, Path(constants.HF_HUB_CACHE)
    with _explained(repo_id, host, (Exception,)):
        commit, files = _list_files(repo_id, token, torch_files)
    sizes = {name: file.bytes or 0 for name, file in files.items()}
    total, done = sum(sizes.values()), 0
    missing = [
        name for name in files
        if not isinstance(try_to_load_from_cache(repo_id, name, cache, commit), str)
    ]  # fmt: skip
    with _explained(repo_id, host):
        cache.mkdir(parents=True, exist_ok=True)
        _check_room(repo_id, cache, sum(sizes[name] for name in missing))
    progress(0, total)
    for name, size in sizes.items():
        title = f"{name} of {repo_id}"
        bar = _bar(title, size, lambda received: progress(done + received, total))  # noqa: B023
        with _explained(title, host), _plain_downloads():
            path = Path(
                hf_hub_download(repo_id, name, revision=commit, token=token, tqdm_class=bar)
            )
            if name in missing and (wrong := files[name].mismatch(path)):
                _remove(path)
                raise DownloadError(f"{title} was removed: {wrong}; try again")
        done += size
        progress(done, total)
    try:
        if check is not None:
            check(path.parent)
    except Exception:
        for name in missing:
            _remove(path.with_name(name))
        raise
    with _explained(repo_id, host, (Exception,)):
        # Notes in the cache which commit is the newest; `find_repository` goes by that.
        HfApi().resolve_revision(repo_id, token=token)
    return path.parent


def _list_files(
    repo_id: str, token: bool | None, torch_files: bool
) -> tuple[str, dict[str, RemoteFile]]:
    """The commit of a repository and the files of its weights, with their sizes."""
    _require_https(constants.ENDPOINT, constants.ENDPOINT)
    info = HfApi().model_info(repo_id, files_metadata=True, timeout=ANSWER_SECONDS, token=token)
    listed = {sibling.rfilename: sibling for sibling in info.siblings or []}
    files = {}
    for name in choose_files(listed, torch_files=torch_files):
        size, lfs = listed[name].size, listed[name].lfs
        if size is None or size < 0:
            raise ValueError("no size")
        files[name] = RemoteFile("", Path(name), size, lfs.sha256 if lfs else None)
    if not files:
        kinds = f"{SAFETENSORS_FILE}, {WEIGHTS_FILE}"
        if torch_files:
            kinds += f" and {TORCH_FILE}"
        elif choose_files(listed):
            kinds += "; a .bin of yours opens as a file, and `mae convert` makes safetensors of it"
        raise DownloadError(f"{repo_id} has no weights that are read from there: those are {kinds}")
    # The name of a folder in the cache.
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha or ""):
        raise ValueError("no commit")
    return str(info.sha), files


def _remove(path: Path) -> None:
    """Remove a file from huggingface_hub's cache, and the content that it links to."""
    content = path.resolve()
    path.unlink(missing_ok=True)
    content.unlink(missing_ok=True)


# --- what both share


def _bar(title: str, most: int, report: Callable[[int], None]) -> type[Any]:
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
def _explained(
    title: str, host: str, errors: tuple[type[Exception], ...] = _NETWORK_AND_DISK
) -> Iterator[None]:
    """Turn failures into a DownloadError."""
    try:
        yield
    except DownloadError:
        raise
    except errors as error:
        if number := getattr(error, "errno", None):
            sentence = (
                f"could not store {title}: {os.strerror(number)}; check the free space and the "
                "rights of the cache's folder"
            )
        else:
            sentence = f"could not fetch {title} from {host}: {reason_of(error)}"
        raise DownloadError(sentence) from error


_LOGIN = (
    "it needs an account that may read it: accept its terms on its page if it has some, and run "
    "`hf auth login`"
)
_STATUSES = {
    401: _LOGIN,
    403: _LOGIN,
    404: "it is not there, or not for everybody (404); check the name, and for a private "
    "repository run `hf auth login`",
}
# By the status that a hub refuses an upload with.
UPLOAD_STATUSES = {
    400: "it refused this ({said})",
    401: "it does not know the token; make one that may write, and run `hf auth login`",
    403: "the token may not write there ({said}); use one of that owner that may",
    404: "it has no such owner or repository ({said}); check the name",
    409: "there already is a repository of that name; give another, or --update to go on top of it",
}
# The first that fits the exception or one of its causes.
_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (OfflineModeIsEnabled, "HF_HUB_OFFLINE is set; unset it"),
    (socket.gaierror, "its name was not found; check the network"),
    (ssl.SSLError, "its certificate was not accepted; check the clock and the network"),
    (httpx2.TimeoutException, "it fell silent; check the network and try again"),
    (httpx2.ConnectError, "it cannot be reached; check the network"),
    (httpx2.TransportError, "the connection was cut; try again"),
)


def reason_of(error: BaseException, statuses: Mapping[int, str] = _STATUSES) -> str:
    """Why a request failed and what to do; in `statuses`, `{said}` is what the server wrote."""
    causes = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            # Several lines, where there are several reasons.
            said = " ".join((cause.server_message or "no reason given").split())[:200]
            if isinstance(cause, RepositoryNotFoundError) and not isinstance(cause, GatedRepoError):
                status = 404  # the hub says 401 to those without an account
            return statuses.get(status, f"it answered {status}; try again later").format(said=said)
    for kind, sentence in _REASONS:
        if any(isinstance(cause, kind) for cause in causes):
            return sentence
    return "its answer makes no sense; check HF_ENDPOINT and the network, and try again"


def open_hub() -> HfApi:
    """The hub, in the name of this machine's user.

    Raises:
        DownloadError: If there is no token.
    """
    token = get_token()
    if token is None:
        raise DownloadError(
            "there is no token; run `hf auth login`, or set HF_TOKEN to one", code="hub"
        )
    return HfApi(token=token)


def _check_room(title: str, folder: Path, needed: int) -> None:
    # huggingface_hub only warns.
    free = shutil.disk_usage(folder).free
    if needed > min(free, MAX_BYTES):
        raise DownloadError(
            f"{title} needs {shown_bytes(needed)} more; {shown_bytes(free)} are free, and at most "
            f"{shown_bytes(MAX_BYTES)} are fetched; make room, or move the cache by TORCH_HOME and "
            "HF_HOME"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _refuse_offline(title: str) -> None:
    if is_offline():
        raise DownloadError(f"{title} is not on this machine, and HF_HUB_OFFLINE is set; unset it")


def _require_https(address: str, start: str) -> None:
    """Refuse all but `https`; `http` on this machine is allowed from the start only."""
    url = httpx2.URL(address)
    local = url.host in ("localhost", "127.0.0.1") and start.startswith("http:")
    if url.scheme != "https" and not (url.scheme == "http" and local):
        raise DownloadError(
            f"{url.host} is not asked over {url.scheme or 'nothing'}; it must be https"
        )


def shown_bytes(size: int) -> str:
    """A number of bytes as people read it, such as `13.3 MiB`."""
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"


@contextlib.contextmanager
def terminal_bar(name: str) -> Iterator[Progress]:
    """A bar on standard error while the context lasts; none where that is no terminal."""
    with tqdm(desc=name, unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar:

        def progress(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress
