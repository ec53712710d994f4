"""Every model that has a name, and where a name, a path or a repository leads.

`weights/manifest.json` lists the weights that come with the project and the published ones,
which are fetched when they are asked for. A file is checked by what the manifest knows of it,
and a fetched one is read whole before it gets its name.
"""

import difflib
import functools
import json
import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from mae_core.errors import CheckpointError, DownloadError
from mae_core.model.mae import MaskedAutoencoder
from mae_core.weights.architecture import Hints, Kind
from mae_core.weights.files import (
    CHECKPOINT_FILE,
    HUGGINGFACE_FILES,
    RUN_FILES,
    SAFETENSORS_FILE,
    TORCH_FILE,
    weights_in,
)
from mae_core.weights.files import WEIGHTS_FILE as WEIGHTS_FILE
from mae_core.weights.formats import Weights, read_file
from mae_core.weights.hub import (
    Progress,
    RemoteFile,
    checkpoints_folder,
    fetch_file,
    fetch_repository,
    find_repository,
    is_repository,
    shown_bytes,
    terminal_bar,
)

# `weights/` of the checkout; pip installs it into the package as `bundled/`.
_INSTALLED = Path(__file__).resolve().parents[1] / "bundled"
WEIGHTS_FOLDER = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[1] / "weights"

# The weights used where none are named.
DEFAULT_WEIGHTS = "mae-compact"


@dataclass(frozen=True)
class WeightsEntry:
    """One model of the manifest; exactly one of `file`, `url` and `repo` says where it is.

    Attributes:
        kind: What they hold: `autoencoder`, `encoder` or `classifier`.
        format: As `Weights.format` has it.
        target: What the model learned to predict.
        parameters: How many values the weights are, position tables included.
        file: Name in `weights/`, where they are bundled.
        url: Address of the file, where they are published as one.
        repo: USER/NAME on the Hugging Face hub, where they are published there.
        bytes: Size of the file; None if unknown.
        sha256: Of the file, as hexadecimal digits; None if unknown.
        md5_prefix: First digits of the file's MD5, where its publisher gives them.
    """

    name: str
    summary: str
    licence: str
    kind: Kind
    format: str
    target: Literal["pixels", "norm_pix", "classes"]
    parameters: int
    file: str | None = None
    url: str | None = None
    repo: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    md5_prefix: str | None = None

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

    @property
    def remote(self) -> RemoteFile:
        """The file and what is known of it: the published one in the cache, or the bundled one."""
        path = WEIGHTS_FOLDER / str(self.file)
        if self.url is not None:
            path = checkpoints_folder() / PurePosixPath(self.url).name
        return RemoteFile(str(self.url), path, self.bytes, self.sha256, self.md5_prefix)


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


def entry_of(weights: str | Path, path: Path | None = None) -> WeightsEntry | None:
    """What the manifest has by that name or repository, or published as a file of that name."""
    entries = list_weights()
    published = (
        entry
        for entry in entries.values()
        if entry.repo == str(weights)
        or (path is not None and entry.url and PurePosixPath(entry.url).name == path.name)
    )
    return entries.get(str(weights)) or next(published, None)


def weights_name(weights: str | Path | None = None) -> str:
    """What to call weights: the name or repository, or that of the file or the run."""
    if weights is None:
        return DEFAULT_WEIGHTS
    path = Path(weights).expanduser()
    if is_repository(str(weights)) and not path.exists():
        return str(weights)
    path = path.resolve()
    if path.name in RUN_FILES:
        return path.parent.name
    return path.name if path.is_dir() else path.stem


def load(
    weights: str | Path | None = None,
    *,
    hints: Hints | None = None,
    fetch: bool = True,
    progress: Progress | None = None,
) -> MaskedAutoencoder:
    """A model with its decoder, by name, path or repository.

    Args:
        weights: A name that `list_weights` gives, a file in any published format, a folder of
            Hugging Face weights, the folder of a run, whose checkpoint is taken until it is
            finished, or the USER/NAME of a repository on the Hugging Face hub, the first of these
            that there is; `DEFAULT_WEIGHTS` if not given. Of repositories that the list does not
            have, only safetensors are read.
        hints: What the file does not tell.
        fetch: Whether what is not on this machine is fetched.
        progress: Called with how far a download is; a bar on standard error if not given.

    Returns:
        The model, float32, on the CPU, in evaluation mode; its `name` is that of the weights.

    Raises:
        CheckpointError: If nothing is there, it cannot be used, or has no decoder.
        DownloadError: If it cannot be fetched.
    """
    model = read_weights(weights, hints=hints, fetch=fetch, progress=progress).build()
    model.name = weights_name(weights)
    return model


def read_weights(
    weights: str | Path | None = None,
    *,
    hints: Hints | None = None,
    fetch: bool = True,
    progress: Progress | None = None,
    account: bool = True,
) -> Weights:
    """What weights hold, with a decoder or without.

    Args:
        weights: As for `load`.
        hints: What the file does not tell; what it predicts is taken from the manifest if it is
            not given, by the weights' name or that of the published file.
        fetch: As for `load`.
        progress: As for `load`.
        account: Whether the hub is sent this machine's token, which may read more than others.

    Raises:
        CheckpointError: If nothing is there or it cannot be used.
        DownloadError: If it cannot be fetched.
    """
    place = _place(weights)
    path, read = _located(place, fetch, progress, account)
    entry = place.entry or entry_of(place.name, path)
    known = Hints() if entry is None else entry.hints
    if hints is None:
        hints = known
    elif hints.norm_pix is None:
        hints = replace(hints, norm_pix=known.norm_pix)
    # What was read when it was fetched is not read again.
    return read if read is not None and hints == known else place.read(path, hints)


def locate(
    weights: str | Path | None = None,
    *,
    fetch: bool = True,
    progress: Progress | None = None,
    account: bool = True,
) -> Path:
    """The file or folder that a name, a path or a repository leads to, fetched if need be.

    The arguments are those of `read_weights`.

    Raises:
        CheckpointError: If nothing is there, or it is not what the manifest says or no weights.
        DownloadError: If it cannot be fetched.
    """
    return _located(_place(weights), fetch, progress, account)[0]


def find(weights: str | Path | None = None) -> Path | None:
    """Where weights are on this machine already, None if nowhere; the network is never asked.

    Raises:
        CheckpointError: If there is no such thing.
    """
    return _place(weights).path


@dataclass(frozen=True)
class _Place:
    """Where weights are: by a name of the manifest, at a path, or in a repository of the hub."""

    name: str
    entry: WeightsEntry | None = None
    repo_id: str | None = None
    path: Path | None = None

    @property
    def torch_files(self) -> bool:
        """Whether torch files are read: anybody may have made a repository and typed its name."""
        return self.entry is not None or self.repo_id is None

    def read(self, path: Path, hints: Hints) -> Weights:
        return read_file(path, hints, allow_torch=self.torch_files)


def _place(weights: str | Path | None) -> _Place:
    """Where weights lead to; its path is None if they are not there. A `Path` is never a name."""
    name = DEFAULT_WEIGHTS if weights is None else str(weights)
    if not name:
        raise CheckpointError("no weights are named; give a name, a file, a folder or USER/NAME")
    entry = None if isinstance(weights, Path) else list_weights().get(name)
    if entry is None:
        try:
            path = Path(name).expanduser()
            file = _readable(path) if path.is_dir() else path if os.path.lexists(path) else None
        except (OSError, ValueError, RuntimeError) as error:
            # No such user, a name too long or with a zero byte, a folder that may not be read.
            raise CheckpointError(
                f"{name[:200]!r} cannot be opened ({type(error).__name__}); give another path"
            ) from error
        if file is not None:
            return _Place(name, path=file)
        entry = None if isinstance(weights, Path) else entry_of(name)
    if entry is not None and entry.repo is None:
        path = entry.remote.path
        return _Place(name, entry, path=path if entry.bundled or path.is_file() else None)
    repo_id = name if entry is None else str(entry.repo)
    if isinstance(weights, Path) or not is_repository(repo_id):
        near = difflib.get_close_matches(name, list_weights(), n=1)
        raise CheckpointError(
            f"{name[:200]!r} is neither a file of weights, a folder with {WEIGHTS_FILE}, "
            f"{SAFETENSORS_FILE}, {TORCH_FILE} or {CHECKPOINT_FILE}, the USER/NAME of a "
            "repository, nor a published name; "
            + (f"did you mean {near[0]}?" if near else "`mae fetch` lists the names")
        )
    folder = find_repository(repo_id)
    return _Place(name, entry, repo_id, None if folder is None else _readable(folder))


def _readable(folder: Path) -> Path | None:
    """What to read in a folder: itself, where its names are Hugging Face's, or its one file."""
    file = weights_in(folder)
    return folder if file is not None and file.name in HUGGINGFACE_FILES else file


def _located(
    place: _Place, fetch: bool, progress: Progress | None, account: bool
) -> tuple[Path, Weights | None]:
    """The file or folder, and what was read in it where it had to be fetched."""
    name, entry = place.name, place.entry
    if place.path is not None:
        if entry is not None and entry.repo is None:
            _verify(entry, place.path)
        return place.path, None
    if not fetch:
        size = "" if entry is None else f" (about {shown_bytes(entry.expected_bytes)})"
        raise CheckpointError(
            f"{name!r} is not on this machine yet{size}; fetch it by `mae fetch {name}`"
        )
    read: Weights | None = None

    def check(path: Path) -> None:
        """Read the whole of what was received: what cannot be used is never kept."""
        nonlocal read
        try:
            read = place.read(path, Hints() if entry is None else entry.hints)
        except CheckpointError as error:
            raise DownloadError(f"{name} was fetched, refused and removed: {error}") from error

    with terminal_bar(name) if progress is None else nullcontext(progress) as shown:
        if entry is not None and entry.repo is None:
            path = fetch_file(entry.remote, progress=shown, check=check)
        else:
            folder = fetch_repository(
                str(place.repo_id), progress=shown, check=check, account=account,
                torch_files=place.torch_files,
            )  # fmt: skip
            path = _readable(folder) or folder
    return path, read


def _verify(entry: WeightsEntry, path: Path) -> None:
    """Refuse a file that is not the one that the manifest describes."""
    try:
        status = path.stat()
        difference = _difference(entry, path, status.st_size, status.st_mtime_ns)
    except FileNotFoundError:
        difference = "it is missing"
    if difference is not None:
        advice = "restore it from the repository"
        if not entry.bundled:
            advice = f"remove {str(path)!r}, and it is fetched again"
        raise CheckpointError(
            f"{path.name!r} is not the file that the manifest describes as {entry.name!r}: "
            f"{difference}; {advice}"
        )


@functools.lru_cache(maxsize=64)
def _difference(entry: WeightsEntry, path: Path, size: int, mtime_ns: int) -> str | None:
    """How a file differs from the manifest; computed once for each version of it."""
    return entry.remote.mismatch(path)
