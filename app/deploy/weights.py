"""Which weights a Space runs, and how each gets there."""

import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mae_core import list_weights
from mae_core.errors import CheckpointError, ConfigError
from mae_core.weights import choose_files, find, is_repository, locate, read_weights, weights_name

# Names of the files that a repository of the hub has.
ListFiles = Callable[[str], Iterable[str]]


@dataclass
class ChosenWeights:
    """The weights of a Space.

    Attributes:
        sources: What the page is told to run, the first one shown first; empty for all that
            come with the project.
        files: Name in the Space -> file here.
        preload: Files that the hub fetches while it builds, as `USER/NAME file,file`.
        repositories: Where those are from.
        fetched_later: Names of weights that the page fetches once it runs.
    """

    sources: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    preload: list[str] = field(default_factory=list)
    repositories: list[str] = field(default_factory=list)
    fetched_later: list[str] = field(default_factory=list)


def choose_weights(sources: Sequence[str], list_files: ListFiles) -> ChosenWeights:
    """Decide how weights get to a Space.

    Those that come with the project are always sent: they are small, and what the page falls
    back on while others are on their way.

    Args:
        sources: Names that `list_weights` gives, files of weights, folders of finished runs, and
            USER/NAMEs of the hub, the first one shown first; none for those of the project.
        list_files: Asks the hub for the files of a repository.

    Raises:
        CheckpointError: If weights are missing, damaged or have no decoder.
        ConfigError: If they cannot be sent.
        DownloadError: If the hub has no such repository.
    """
    chosen = ChosenWeights()
    for entry in list_weights().values():
        if entry.bundled:
            chosen.files[f"weights/{entry.file}"] = locate(entry.name)
    for source in sources:
        _choose(chosen, source, list_files)
    if len(set(chosen.sources)) < len(chosen.sources):
        raise ConfigError("the same weights are given twice; give each once")
    return chosen


def _choose(chosen: ChosenWeights, source: str, list_files: ListFiles) -> None:
    entry = list_weights().get(source)
    if entry is None and (Path(source).expanduser().exists() or not is_repository(source)):
        return _send(chosen, source)
    chosen.sources.append(source)
    if entry is not None and entry.kind != "autoencoder":
        raise CheckpointError(
            f"{source!r} has no decoder ({entry.kind}), so it draws no picture; choose another of "
            "`mae fetch`"
        )
    if entry is not None and entry.repo is None:
        chosen.fetched_later += [] if entry.bundled else [source]
        return None
    repository = source if entry is None else str(entry.repo)
    names = choose_files(list_files(repository))
    if not names:
        raise CheckpointError(f"{repository!r} has no weights that are read here; give another")
    chosen.repositories.append(repository)
    chosen.preload.append(f"{repository} {','.join(names)}")
    return None


def _send(chosen: ChosenWeights, source: str) -> None:
    """Send a file of somebody's own."""
    path = find(source)
    if path is None or path.is_dir() or path.name.endswith(".index.json"):
        raise ConfigError(
            f"{source!r} is more than one file; make one of it first: "
            f"`mae convert {source} mine.safetensors --to mae_core`"
        )
    name = f"{_plain(weights_name(path))}{path.suffix}"
    if _is_running(path, name):
        raise ConfigError(
            f"the run in {source!r} is not finished; start the same training command again, and "
            "deploy it after that"
        )
    place = f"weights/{name}"
    if chosen.files.setdefault(place, path) != path:
        raise ConfigError(f"there already are weights called {place}; rename {source!r}")
    chosen.sources.append(place)


def _is_running(path: Path, name: str) -> bool:
    """Whether weights are those of a run that goes on; read as the Space will read them.

    Raises:
        CheckpointError: If they cannot be used: nothing is beside them there.
    """
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / name
        alone.symlink_to(path.resolve())
        return bool(read_weights(alone).record.get("running"))


def _plain(name: str) -> str:
    """A name that is safe in a list of names and in a path."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip(".-") or "weights"
