"""The weights of a repository on the Hugging Face hub, in the cache of huggingface_hub.

The client lists the repository and knows its names, addresses and token; the files are received by
`http`, as the client's own downloads begin anew when they were cut. The cache has the layout of its
owner, which is documented: what others fetched is found, and what is fetched here others find.
"""

import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants, get_token, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from mae_core.errors import DownloadError
from mae_core.weights.transfer import (
    ATTEMPTS,
    CONNECT_SECONDS,
    MAX_BYTES,
    PASSING,
    PAUSE_SECONDS,
    Check,
    Progress,
    RemoteFile,
    check_space,
    explained_writing,
    fetch_file,
    network_reason,
    refusal,
    refuse_address,
    refuse_offline,
    shown_bytes,
)

# What the hub takes for a name.
_REPOSITORY = re.compile(
    r"(?!.*(?:\.\.|--|\.git$))[a-z0-9](?:[\w.-]{0,94}\w)?/\w(?:[\w.-]{0,94}\w)?",
    re.ASCII | re.IGNORECASE,
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"(model|pytorch_model)-\d{5}-of-(\d{5})\.(safetensors|bin)")

# From a folder of a commit to the files' contents.
_BLOBS = Path("..", "..", "blobs")

# What tells how to read the weights.
_CONFIG_FILES = ("config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class _HubFile:
    """A file of a repository: its name, size, and those of the cache and of LFS."""

    name: str
    bytes: int
    blob: str
    sha256: str | None


def is_repository(text: str) -> bool:
    """Whether a text is of the form USER/NAME that repositories of a hub have."""
    return _REPOSITORY.fullmatch(text) is not None


def choose_files(names: Iterable[str]) -> tuple[str, ...]:
    """Which files of a folder or repository hold its weights, with the configs before them.

    Ours comes first, then safetensors, whole or in shards, then any one other file of safetensors,
    then torch files of the Hugging Face names. Nothing else is ever chosen.

    Args:
        names: Files, as paths from the top; those in folders are ignored.

    Returns:
        Names; empty if there are no weights.
    """
    there = set(names)
    weights = next((files for files in _candidates(there) if files), ())
    configs = tuple(name for name in _CONFIG_FILES if name in there)
    return configs + weights if weights else ()


def _candidates(there: set[str]) -> Iterator[tuple[str, ...]]:
    yield _whole(there, "weights.safetensors")
    yield _whole(there, "model.safetensors")
    yield _sharded(there, "model.safetensors")
    others = [name for name in there if re.fullmatch(r"[\w.-]+\.safetensors", name, re.ASCII)]
    yield tuple(others) if len(others) == 1 else ()
    yield _whole(there, "pytorch_model.bin")
    yield _sharded(there, "pytorch_model.bin")


def _whole(there: set[str], name: str) -> tuple[str, ...]:
    return (name,) if name in there else ()


def _sharded(there: set[str], name: str) -> tuple[str, ...]:
    """An index and all of its shards, or nothing."""
    stem, suffix = name.split(".")
    index = f"{name}.index.json"
    found = [_SHARD.fullmatch(other) for other in sorted(there)]
    shards = [match for match in found if match and (match[1], match[3]) == (stem, suffix)]
    if index not in there or not shards or len(shards) != int(shards[0][2]):
        return ()
    return (index, *(match[0] for match in shards))


def find_repository(repo_id: str) -> Path | None:
    """The folder of a repository that is whole in huggingface_hub's cache; None if none is."""
    storage = _storage(repo_id)
    try:
        commit = (storage / "refs" / "main").read_text(encoding="utf-8").strip()
        if not _COMMIT.fullmatch(commit):
            return None
        folder = storage / "snapshots" / commit
        names = [path.name for path in folder.iterdir() if path.is_file()]
    except (OSError, ValueError):
        return None
    return folder if choose_files(names) else None


def fetch_repository(
    repo_id: str, *, progress: Progress, check: Check | None = None, account: bool = True
) -> Path:
    """Fetch the weights of a repository, and the configs beside them; no other file.

    Args:
        repo_id: USER/NAME.
        progress: Told how far all files are together.
        check: Looks into the folder; where it raises, the files are removed.
        account: Whether the hub is asked in the name of this machine's user, who may read more
            than others.

    Returns:
        The folder in huggingface_hub's cache.

    Raises:
        DownloadError: If there is no such repository, it has no weights that are read here, it may
            not be read, or it cannot be fetched.
    """
    refuse_offline(repo_id)
    commit, files = _listing(repo_id, account)
    storage = _storage(repo_id)
    folder = storage / "snapshots" / commit
    missing = [file for file in files if not (storage / "blobs" / file.blob).is_file()]
    with explained_writing(repo_id):
        folder.mkdir(parents=True, exist_ok=True)
    check_space(repo_id, folder, sum(file.bytes for file in missing))
    _fetch_files(repo_id, files, folder, progress, _headers(account))
    if check is not None:
        _check_folder(folder, missing, check)
    with explained_writing(repo_id):
        _write_reference(storage, commit)
    return folder


def _fetch_files(
    repo_id: str,
    files: Sequence[_HubFile],
    folder: Path,
    progress: Progress,
    headers: dict[str, str],
) -> None:
    total, before = sum(file.bytes for file in files), 0
    for file in files:
        remote = _remote(repo_id, file, folder)
        fetch_file(remote, progress=_shifted(progress, before, total), headers=headers)
        with explained_writing(repo_id):
            _link(remote.path, folder / file.name)
        before += file.bytes
    progress(total, total)


def _check_folder(folder: Path, fetched: Sequence[_HubFile], check: Check) -> None:
    try:
        check(folder)
    except Exception:
        for file in fetched:
            (folder / file.name).unlink(missing_ok=True)
            (folder / _BLOBS / file.blob).unlink(missing_ok=True)
        raise


def _headers(account: bool) -> dict[str, str]:
    token = get_token() if account and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else None
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _storage(repo_id: str) -> Path:
    # The layout is part of huggingface_hub's documentation.
    return Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"


def _remote(repo_id: str, file: _HubFile, folder: Path) -> RemoteFile:
    url = hf_hub_url(repo_id, file.name, revision=folder.name)
    blob = folder.parents[1] / "blobs" / file.blob
    return RemoteFile(url, blob, file.bytes, file.sha256, label=f"{file.name} of {repo_id}")


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(before + done, total)


def _link(blob: Path, path: Path) -> None:
    """Make a blob known under its name, as huggingface_hub does."""
    if path.is_file():
        return
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(_BLOBS / blob.name)
    except FileExistsError:
        # Another process was faster.
        return
    except OSError:
        # No links on this file system.
        shutil.copyfile(blob, path)


def _write_reference(storage: Path, commit: str) -> None:
    """Say which commit is the newest; without that, nothing is found in the cache."""
    reference = storage / "refs" / "main"
    partial = reference.with_name(f"main.{os.getpid()}-{threading.get_ident()}.partial")
    reference.parent.mkdir(exist_ok=True)
    partial.write_text(commit, encoding="utf-8")
    partial.replace(reference)


def _listing(repo_id: str, account: bool) -> tuple[str, list[_HubFile]]:
    """The commit of a repository's weights, and their files."""
    info = _ask_hub(repo_id, account)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    names = choose_files(siblings)
    if not names:
        raise DownloadError(
            f"{repo_id} has no weights that are read here: those are model.safetensors, "
            "weights.safetensors and pytorch_model.bin, whole or in shards, at its top"
        )
    files = [_hub_file(repo_id, siblings[name]) for name in names]
    if not _COMMIT.fullmatch(info.sha or ""):
        raise DownloadError(_unlike_a_hub(repo_id))
    total = sum(file.bytes for file in files)
    if total > MAX_BYTES:
        raise DownloadError(
            f"the weights of {repo_id} are {shown_bytes(total)}; no more than "
            f"{shown_bytes(MAX_BYTES)} is fetched"
        )
    return str(info.sha), files


def _hub_file(repo_id: str, sibling: Any) -> _HubFile:
    """A file as a listing has it; its numbers and digits come from whoever answers."""
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    blob = sha256 or sibling.blob_id
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", str(blob)) or not _is_size(sibling.size):
        raise DownloadError(_unlike_a_hub(repo_id))
    return _HubFile(sibling.rfilename, sibling.size, str(blob), sha256)


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


def _unlike_a_hub(repo_id: str) -> str:
    return f"what answers for {repo_id} is no Hugging Face hub; check HF_ENDPOINT and the network"


def _ask_hub(repo_id: str, account: bool) -> Any:
    url = httpx2.URL(constants.ENDPOINT)
    refuse_address(url)
    vain = 0
    while True:
        try:
            return HfApi().model_info(
                repo_id, files_metadata=True, timeout=CONNECT_SECONDS,
                token=None if account else False,
            )  # fmt: skip
        except Exception as error:  # a dozen types that have no base of their own
            vain += 1
            if vain == ATTEMPTS or not _may_pass(error):
                reason = _hub_reason(repo_id, error)
                message = f"could not fetch {repo_id} from {url.host}: {reason}"
                raise DownloadError(message) from error
        time.sleep(PAUSE_SECONDS * 2 ** (vain - 1))


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING
    return isinstance(error, httpx2.TransportError)


def _hub_reason(repo_id: str, error: Exception) -> str:
    if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
        return (
            "it has no such repository, or not for everybody; check the name, and for a private "
            "one run `hf auth login`"
        )
    if isinstance(error, HfHubHTTPError):
        return refusal(error.response.status_code)
    if isinstance(error, httpx2.HTTPError):
        return network_reason(error)
    return _unlike_a_hub(repo_id)
