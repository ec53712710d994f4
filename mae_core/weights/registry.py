"""Every model that has a name, and where a name, a path or a repository leads.

`weights/manifest.json` lists the weights that come with the project and the published ones,
which are fetched when they are asked for. A bundled file is checked by its SHA-256 before
it is read; a fetched one by what is known of it, and always by its content, before it gets
its name.
"""

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from mae_core.errors import CheckpointError, DownloadError
from mae_core.weights.contents import Contents, Hints, Kind
from mae_core.weights.hub import (
    Progress,
    RemoteFile,
    checkpoints_folder,
    choose_files,
    fetch_file,
    fetch_repository,
    find_repository,
    is_repository,
    shown_bytes,
    terminal_bar,
)
from mae_core.weights.reading import read_contents
from mae_core.weights.saved import Weights, load_weights
from mae_core.weights.sources import check_not_sharded

# `weights/` of the checkout; pip installs it into the package as `bundled/`.
_INSTALLED = Path(__file__).resolve().parents[1] / "bundled"
WEIGHTS_FOLDER = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[1] / "weights"

# What a finished run's weights are called.
WEIGHTS_FILE = "weights.safetensors"

# Where a run's folder has a model, the best first: a finished run's, a running one's, and a
# running one's in the moment between two saves. `checkpoint` owns the last two names.
_RUN_FILES = (WEIGHTS_FILE, "checkpoint.pt", "checkpoint.previous.pt")

# Names by which a folder of Hugging Face weights is read, with the config beside them.
_FOLDER_FILES = {
    name + suffix
    for name in ("model.safetensors", "pytorch_model.bin")
    for suffix in ("", ".index.json")
}

# The weights used where none are named.
DEFAULT_WEIGHTS = "mae-tiny"

Target = Literal["pixels", "norm_pix", "classes"]


@dataclass(frozen=True)
class WeightsEntry:
    """One model of the manifest; exactly one of `file`, `url` and `repo` says where it is.

    Attributes:
        name: What people call the weights.
        summary: What they are, in one sentence.
        licence: Under which they may be used.
        kind: What they hold: `autoencoder`, `encoder` or `classifier`.
        format: As `Contents.format` has it.
        target: What the model learned to predict: `pixels`, `norm_pix` or `classes`.
        parameters: How many numbers the weights are, position tables included.
        file: Name in `weights/`, where they are bundled.
        url: Address of the file, where they are published as one.
        repo: USER/NAME on the Hugging Face hub, where they are published there.
        bytes: Size of the file; None if nobody has measured it.
        sha256: Of the file, as hexadecimal digits; None if nobody has computed it.
        md5_prefix: First digits of the file's MD5, where its publisher gives them.
    """

    name: str
    summary: str
    licence: str
    kind: Kind
    format: str
    target: Target
    parameters: int
    file: str | None = None
    url: str | None = None
    repo: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    md5_prefix: str | None = None

    def __post_init__(self) -> None:
        if sum(place is not None for place in (self.file, self.url, self.repo)) != 1:
            raise ValueError(f"{self.name!r} must have one of file, url and repo")

    @property
    def bundled(self) -> bool:
        """Whether the weights come with the project."""
        return self.file is not None

    @property
    def expected_bytes(self) -> int:
        """The size of the file, or about that: four bytes for each parameter."""
        return self.bytes if self.bytes is not None else 4 * self.parameters

    @property
    def hints(self) -> Hints:
        """What is known of the weights that their file does not tell."""
        if self.format not in ("official", "timm"):
            return Hints(source="registry")
        return Hints(norm_pix=self.target == "norm_pix", source="registry")


def list_weights() -> dict[str, WeightsEntry]:
    """All weights that have a name, the bundled ones first.

    Raises:
        CheckpointError: If the manifest is missing or damaged.
    """
    try:
        lines = json.loads((WEIGHTS_FOLDER / "manifest.json").read_text(encoding="utf-8"))
        entries = [WeightsEntry(**line) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            "weights/manifest.json is missing or damaged; restore it from the repository"
        ) from error
    return {entry.name: entry for entry in sorted(entries, key=lambda entry: not entry.bundled)}


def find_weights(weights: str | Path | None = None) -> Path | None:
    """Where weights are on this machine already; the network is never asked.

    Args:
        weights: As for `locate_weights`.

    Returns:
        The file or folder, or None if it would have to be fetched.

    Raises:
        CheckpointError: If there is no such thing.
    """
    name = DEFAULT_WEIGHTS if weights is None else str(weights)
    entry = list_weights().get(name)
    if entry is not None:
        return _find_entry(entry)
    path = _find_path(name)
    if path is None and is_repository(name):
        return _find_repository(name)
    if path is None:
        raise CheckpointError(_no_such_thing(name))
    return path


def locate_weights(
    weights: str | Path | None = None,
    *,
    fetch: bool = True,
    progress: Progress | None = None,
    account: bool = True,
) -> Path:
    """The file or folder that a name, a path or a repository leads to, fetched if need be.

    Args:
        weights: A name that `list_weights` gives, a file, a folder of Hugging Face weights, the
            folder of a run, whose checkpoint is taken until it is finished, or the USER/NAME
            of a repository on the Hugging Face hub, the first of these that there is;
            `DEFAULT_WEIGHTS` if not given.
        fetch: Whether what is not on this machine is fetched.
        progress: Told how far a download is; a bar on standard error if not given.
        account: Whether the hub is asked in the name of this machine's user, who may read more
            than others.

    Raises:
        CheckpointError: If nothing is there, or it is not what the manifest says or no weights.
        DownloadError: If it cannot be fetched.
    """
    name = DEFAULT_WEIGHTS if weights is None else str(weights)
    path, entry = find_weights(name), list_weights().get(name)
    if path is not None:
        return path if entry is None else _verified(entry, path)
    if not fetch:
        raise CheckpointError(
            f"{name!r} is not on this machine yet{_size_note(entry)}; fetch it by "
            f"`mae fetch {name}`"
        )
    if progress is not None:
        return _fetch(name, entry, progress, account)
    with terminal_bar(name) as bar:
        return _fetch(name, entry, bar, account)


def load_pretrained(
    weights: str | Path | None = None,
    *,
    hints: Hints | None = None,
    fetch: bool = True,
    progress: Progress | None = None,
) -> Weights:
    """A model with its decoder, by name, path or repository; fetched if need be.

    Args:
        weights: As for `locate_weights`.
        hints: What the file does not tell; what is not given is taken from the manifest, by the
            weights' name or that of the published file.
        fetch: As for `locate_weights`.
        progress: As for `locate_weights`.

    Raises:
        CheckpointError: If nothing is there, it cannot be used, or has no decoder.
        DownloadError: If it cannot be fetched.
    """
    path = locate_weights(weights, fetch=fetch, progress=progress)
    return load_weights(path, _hints(weights, path, hints))


def read_pretrained(
    weights: str | Path | None = None,
    *,
    hints: Hints | None = None,
    fetch: bool = True,
    progress: Progress | None = None,
) -> Contents:
    """What weights hold, with a decoder or without; takes what `load_pretrained` takes.

    Raises:
        CheckpointError: If nothing is there or it cannot be used.
        DownloadError: If it cannot be fetched.
    """
    path = locate_weights(weights, fetch=fetch, progress=progress)
    return read_contents(path, _hints(weights, path, hints))


def weights_name(weights: str | Path | None = None) -> str:
    """What to call weights: the name or repository, or that of the file or the run."""
    if weights is None:
        return DEFAULT_WEIGHTS
    path = Path(weights).expanduser()
    if is_repository(str(weights)) and not path.exists():
        return str(weights)
    path = path.resolve()
    if path.name in _RUN_FILES:
        return path.parent.name
    return path.name if path.is_dir() else path.stem


def _find_entry(entry: WeightsEntry) -> Path | None:
    if entry.repo is not None:
        return _find_repository(entry.repo)
    path = _remote_file(entry).path if entry.url is not None else WEIGHTS_FOLDER / str(entry.file)
    if path.is_file():
        return path
    if entry.bundled:
        raise CheckpointError(
            f"the bundled weights {entry.name!r} are not in weights/; restore {entry.file} from "
            "the repository"
        )
    return None


def _find_repository(repo_id: str) -> Path | None:
    folder = find_repository(repo_id)
    return None if folder is None else _readable(folder)


def _find_path(text: str) -> Path | None:
    try:
        path = Path(text).expanduser()
        if path.is_dir():
            runs = (path / name for name in _RUN_FILES)
            found = next((file for file in runs if file.is_file()), None) or _readable(path)
            if found is None:
                check_not_sharded(path)
            return found
        return path if path.is_file() else None
    except (OSError, ValueError, RuntimeError) as error:
        # No such user, a name too long or with a zero byte, a folder that may not be read.
        reason = (error.strerror or "") if isinstance(error, OSError) else str(error)
        raise CheckpointError(
            f"{text[:200]!r} cannot be looked into ({reason}); give another path"
        ) from error


def _readable(folder: Path) -> Path | None:
    """What to read in a folder: itself, where its names are Hugging Face's, or its one file."""
    names = [path.name for path in folder.iterdir()]
    chosen = choose_files(names)
    if any(name in _FOLDER_FILES for name in chosen or names):
        return folder
    return folder / chosen[-1] if chosen else None


def _no_such_thing(text: str) -> str:
    return (
        f"{text[:200]!r} is neither a file of weights, a folder with {WEIGHTS_FILE}, "
        "model.safetensors, pytorch_model.bin or checkpoint.pt, the USER/NAME of a repository, nor "
        f"one of {', '.join(list_weights())}"
    )


def _remote_file(entry: WeightsEntry) -> RemoteFile:
    path = checkpoints_folder() / PurePosixPath(str(entry.url)).name
    return RemoteFile(str(entry.url), path, entry.bytes, entry.sha256, entry.md5_prefix)


def _fetch(name: str, entry: WeightsEntry | None, progress: Progress, account: bool) -> Path:
    def check(path: Path) -> None:
        """Read the whole of it: what cannot be used is never kept."""
        try:
            read_contents(path, Hints() if entry is None else entry.hints)
        except CheckpointError as error:
            raise DownloadError(f"{name} was fetched, refused and removed: {error}") from error

    if entry is not None and entry.repo is None:
        return fetch_file(_remote_file(entry), progress=progress, check=check)
    repo_id = name if entry is None else str(entry.repo)
    folder = fetch_repository(
        repo_id, progress=progress, check=lambda f: check(_readable(f) or f), account=account
    )
    return _readable(folder) or folder


def _size_note(entry: WeightsEntry | None) -> str:
    return "" if entry is None else f" (about {shown_bytes(entry.expected_bytes)})"


def _hints(weights: str | Path | None, path: Path, given: Hints | None) -> Hints:
    """What was given, and of the target what the manifest knows."""
    entry = entry_of(DEFAULT_WEIGHTS if weights is None else str(weights), path)
    known = Hints() if entry is None else entry.hints
    if given is None:
        return known
    return given if given.norm_pix is not None else replace(given, norm_pix=known.norm_pix)


def entry_of(name: str, path: Path) -> WeightsEntry | None:
    """What the manifest has of that name, or published as a file of that name."""
    entries = list_weights()
    if name in entries:
        return entries[name]
    published = (e for e in entries.values() if e.url and PurePosixPath(e.url).name == path.name)
    return next(published, None)


def _verified(entry: WeightsEntry, path: Path) -> Path:
    """A file that is on disk, if it is the one that the manifest describes."""
    if entry.repo is not None:
        return path
    status = path.stat()
    difference = _difference(entry, path, status.st_size, status.st_mtime_ns)
    if difference is None:
        return path
    if entry.bundled:
        raise CheckpointError(
            f"weights/{entry.file} is not the file the manifest describes: {difference}; restore "
            "it from the repository"
        )
    raise CheckpointError(
        f"{path.name!r} in the cache is not the file that is published as {entry.name!r}: "
        f"{difference}; remove {str(path)!r}, and it is fetched again"
    )


@functools.lru_cache(maxsize=64)
def _difference(entry: WeightsEntry, path: Path, size: int, mtime_ns: int) -> str | None:
    """How a file differs from the manifest; computed once for each version of it."""
    remote = RemoteFile(str(entry.url), path, entry.bytes, entry.sha256, entry.md5_prefix)
    return remote.mismatch(path)
