"""The weights that come with the project, and where a name or a path leads.

`weights/manifest.json` lists what is bundled; each file is checked against its SHA-256
before it is read.
"""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from mae_core.errors import CheckpointError

WEIGHTS_FOLDER = Path(__file__).resolve().parent.parent / "weights"

# What a finished run's weights are called.
WEIGHTS_FILE = "weights.safetensors"

# Where a run's folder has a model, the best first: a finished run's, a running one's, and a
# running one's in the moment between two saves. `checkpoint` owns the last two names.
_RUN_FILES = (WEIGHTS_FILE, "checkpoint.pt", "checkpoint.previous.pt")

# The weights used where none are named.
DEFAULT_WEIGHTS = "mae-tiny"


@dataclass(frozen=True)
class WeightsEntry:
    """One line of the manifest.

    Attributes:
        name: What people call the weights.
        file: Name of the file in `weights/`.
        sha256: Of the file, as hexadecimal digits.
        bytes: Size of the file.
        licence: Under which they may be used.
        summary: What they are, in one sentence.
    """

    name: str
    file: str
    sha256: str
    bytes: int
    licence: str
    summary: str


def list_weights() -> dict[str, WeightsEntry]:
    """The bundled weights by name, in the manifest's order.

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
    return {entry.name: entry for entry in entries}


def locate_weights(weights: str | Path | None = None) -> Path:
    """The file that a name or a path leads to, checked by hash where the manifest has one.

    Args:
        weights: A name that `list_weights` gives, a file, or the folder of a run, whose
            checkpoint is taken until it is finished; `DEFAULT_WEIGHTS` if not given.

    Raises:
        CheckpointError: If nothing is there, or a bundled file is not what the manifest says.
    """
    if weights is None:
        weights = DEFAULT_WEIGHTS
    known = list_weights()
    if str(weights) in known:
        return _verified(known[str(weights)])
    path = Path(weights).expanduser()
    candidates = [path / name for name in _RUN_FILES] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        f"{str(weights)!r} is neither a file of weights, a folder with {WEIGHTS_FILE} or "
        f"checkpoint.pt, nor one of {', '.join(known)}"
    )


def weights_name(weights: str | Path | None = None) -> str:
    """What to call weights given by name or path: the name, or that of the file or the run."""
    if weights is None:
        return DEFAULT_WEIGHTS
    path = Path(weights).expanduser().resolve()
    if path.name in _RUN_FILES:
        return path.parent.name
    return path.name if path.is_dir() else path.stem


def _verified(entry: WeightsEntry) -> Path:
    path = WEIGHTS_FOLDER / entry.file
    if not path.is_file():
        raise CheckpointError(
            f"the bundled weights {entry.name!r} are not in weights/; restore {entry.file} from "
            "the repository"
        )
    status = path.stat()
    if _sha256(path, status.st_size, status.st_mtime_ns) != entry.sha256:
        raise CheckpointError(
            f"weights/{entry.file} is not the file the manifest describes; restore it from the "
            "repository"
        )
    return path


@functools.lru_cache(maxsize=16)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Of a file; computed once for each version of it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
