"""The files of a Space, laid out in a folder as they will be there, with its weights."""

import logging
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi

from app.deploy.card import ZERO_GPU, front_matter, space_readme
from app.deploy.hub import explained
from mae_core import list_weights
from mae_core.errors import CheckpointError, ConfigError
from mae_core.weights import choose_files, find, is_repository, locate, read_weights, weights_name
from web.build import lay_out

_log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]

# Where PyTorch publishes its builds without CUDA, which are several GB smaller.
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"

# What git tracks here is sent, whatever its name; README.md shows the picture.
_SENT = (
    "app", "mae_core", "weights", "LICENSE", "README.md", "requirements.txt", "docs/panels.png",
    ":(exclude)app/deploy",
)  # fmt: skip
_SENT_TO_DOCKER = ("Dockerfile", ".dockerignore")


@dataclass
class ChosenWeights:
    """The weights of a Space."""

    # What the page is told to run, the first one shown first; empty for all bundled ones.
    sources: list[str] = field(default_factory=list)
    # Name in the Space -> file here.
    files: dict[str, Path] = field(default_factory=dict)
    # Repository -> the files of it that the hub fetches while it builds.
    preload: dict[str, Sequence[str]] = field(default_factory=dict)
    # Names of weights that the page fetches once it runs.
    fetched_later: list[str] = field(default_factory=list)


def stage(
    folder: Path,
    sdk: str,
    hardware: str,
    weights: ChosenWeights,
    torch_index: str | None = None,
    root: Path = ROOT,
) -> None:
    """Lay out what a Space holds in an empty folder: links to files here, and what differs there.

    Without `torch_index`, an address of Python packages, torch is chosen by the hardware.

    Raises:
        ConfigError: If a file is missing, or git does not say which files are the project's.
    """
    sent = _SENT + (_SENT_TO_DOCKER if sdk == "docker" else ())
    tracked = _listed(root, "--cached", *sent)
    if not tracked:
        raise ConfigError(
            "git does not say which files are the project's, so nothing is sent; deploy from a "
            "checkout (`git clone`), or run `git init` and `git add .` in the project's folder"
        )
    if untracked := _listed(root, "--others", "--exclude-standard", *sent):
        _log.info("not sent, as git does not track it: %s", ", ".join(untracked)[:300])
    for name, path in ({name: root / name for name in tracked} | weights.files).items():
        if not path.is_file():
            raise ConfigError(f"{name} is missing; restore it from the repository, or `git rm` it")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(path.resolve())
    requirements = (root / "requirements.txt").read_text("utf-8")
    index = torch_index
    if index is None:
        index = CPU_TORCH_INDEX if hardware.startswith("cpu-") else ""
    if sdk == "docker":
        # The settings of a Space may not reach its build, so the default is changed.
        line, text = f"ARG TORCH_INDEX={index}", (root / "Dockerfile").read_text("utf-8")
        dockerfile, found = re.subn(r"(?m)^ARG TORCH_INDEX=.*$", lambda _: line, text)
        if found != 1:
            raise ConfigError("the Dockerfile has no line ARG TORCH_INDEX=...; restore it")
        written = {"Dockerfile": dockerfile}
    else:
        zero = root / "requirements-zerogpu.txt"
        theirs = zero.read_text("utf-8") if hardware == ZERO_GPU else requirements
        first = f"--extra-index-url {index}\n" if index else ""
        written = {"requirements.txt": first + theirs}
    # The hub fetches nothing for a Docker Space before it starts.
    preload = weights.preload.items() if sdk == "gradio" else ()
    block = front_matter(
        requirements, sdk=sdk, hardware=hardware, models=list(weights.preload),
        preload=[f"{repository} {','.join(names)}" for repository, names in preload],
    )  # fmt: skip
    written["README.md"] = space_readme((root / "README.md").read_text("utf-8"), block)
    for name, content in written.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(content, encoding="utf-8", newline="\n")


def stage_static(folder: Path, weights: Sequence[str], root: Path = ROOT) -> None:
    """Build the page without a server in an empty folder, with what the hub reads and shows.

    Args:
        folder: The folder.
        weights: As for `web.build.lay_out`.
        root: The project's folder.

    Raises:
        ConfigError: If npm's packages, or those that write ONNX, are missing.
        MAEError: If the weights cannot be read or exported.
    """
    lay_out(folder, weights, root=root)
    readme = root / "README.md"
    block = front_matter(
        (root / "requirements.txt").read_text("utf-8"), sdk="static", hardware=None
    )
    text = space_readme(readme.read_text("utf-8"), block)
    (folder / readme.name).write_text(text, encoding="utf-8", newline="\n")
    # README.md shows it.
    (folder / "docs").mkdir()
    (folder / "docs/panels.png").symlink_to(root / "docs/panels.png")


def _listed(root: Path, *arguments: str) -> list[str]:
    """What `git ls-files` names; nothing without git or a checkout."""
    command = ["git", "ls-files", "-z", *arguments]
    try:
        listed = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [name for name in listed.decode(errors="surrogateescape").split("\0") if name]


def choose_weights(sources: Sequence[str]) -> ChosenWeights:
    """Decide how weights get to a Space: names, files, folders of finished runs, USER/NAMEs.

    The bundled ones are always sent: they are small, and the page runs them until it has others.

    Raises:
        CheckpointError: If weights are missing, damaged or have no decoder.
        ConfigError: If they cannot be sent.
        DownloadError: If the hub has no such repository.
    """
    published = list_weights()
    bundled = [entry for entry in published.values() if entry.bundled]
    chosen = ChosenWeights(files={f"weights/{one.file}": locate(one.name) for one in bundled})
    for source in sources:
        is_path = Path(source).expanduser().exists() or not is_repository(source)
        add = _send if is_path and source not in published else _name
        add(chosen, source)
    if len(set(chosen.sources)) < len(chosen.sources):
        raise ConfigError("the same weights are given twice; give each once")
    return chosen


def _name(chosen: ChosenWeights, source: str) -> None:
    """Have the hub or the page fetch published weights."""
    chosen.sources.append(source)
    entries = list_weights().values()
    entry = next((entry for entry in entries if source in (entry.name, entry.repo)), None)
    if entry is not None and entry.kind != "autoencoder":
        raise CheckpointError(
            f"{source!r} has no decoder ({entry.kind}), so it draws no picture; choose another of "
            "`mae fetch`"
        )
    if entry is not None and entry.repo is None:
        chosen.fetched_later += [] if entry.bundled else [source]
        return
    repository = source if entry is None else str(entry.repo)
    with explained(f"could not look for weights in {repository!r}"):
        siblings = HfApi().model_info(repository).siblings or []
    # The page reads no torch files of repositories that are not listed.
    names = choose_files((file.rfilename for file in siblings), torch_files=entry is not None)
    if not names:
        raise CheckpointError(f"{repository!r} has no weights that are read here; give another")
    chosen.preload[repository] = names


def _send(chosen: ChosenWeights, source: str) -> None:
    """Send a file of the user's own."""
    path = find(source)
    if path is None or path.is_dir() or path.name.endswith(".index.json"):
        raise ConfigError(
            f"{source!r} is more than one file; make one of it first: "
            f"`mae convert {source} mine.safetensors --to mae_core`"
        )
    # Safe in a list of names and in a path.
    stem = re.sub(r"[^\w.-]+", "-", weights_name(path), flags=re.ASCII).strip(".-") or "weights"
    place = f"weights/{stem}{path.suffix}"
    # Read as the Space will read them: nothing is beside them there.
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / Path(place).name
        alone.symlink_to(path.resolve())
        if read_weights(alone).record.get("running"):
            raise ConfigError(
                f"the run in {source!r} is not finished; start the same training command again, "
                "and deploy it after that"
            )
    if chosen.files.setdefault(place, path) != path:
        raise ConfigError(f"there already are weights called {place}; rename {source!r}")
    chosen.sources.append(place)
