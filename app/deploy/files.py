"""The files of a Space, laid out in a folder as they will be there, and its weights among them."""

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

_log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]

# Where PyTorch publishes its builds without CUDA, which are several GB smaller.
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"

# What runs, and what is sent of it where git does not say which files are the project's.
_FOLDERS = ("app", "mae_core", "weights")
_KNOWN = (
    *(f"app/**/*.{suffix}" for suffix in ("py", "js", "css", "json")),
    "app/assets/examples/*.jpg", "app/assets/examples/LICENSES.md",
    "mae_core/**/*.py", "mae_core/**/*.j2", "mae_core/py.typed",
)  # fmt: skip
# README.md shows the second one.
_BESIDE = ("LICENSE", "docs/panels.png", "weights/README.md", "weights/manifest.json")


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


def stage(
    folder: Path,
    sdk: str,
    hardware: str,
    weights: ChosenWeights,
    torch_index: str | None = None,
    root: Path = ROOT,
) -> None:
    """Lay out what a Space holds; what is sent as it is here is linked, as weights may be large.

    Args:
        folder: An empty one.
        sdk: `gradio` or `docker`.
        hardware: As the hub names it.
        weights: What the page runs.
        torch_index: Address of a package index with the builds of torch to take; by the
            hardware if not given.
        root: The project's folder.

    Raises:
        ConfigError: If a file is missing or the address is none.
    """
    index = torch_index
    if index is None:
        index = CPU_TORCH_INDEX if hardware.startswith("cpu-") else ""
    elif not re.fullmatch(r"https?://[^\s#\"'$\\]+", index):
        raise ConfigError(f"{index[:80]!r} is no address of packages; give https://...")

    def text(name: str) -> str:
        return _existing(root / name, name).read_text(encoding="utf-8")

    requirements = text("requirements.txt")
    # A Docker Space's files are fetched by nobody before it starts.
    preload = weights.preload if sdk == "gradio" else ()
    block = front_matter(
        requirements, sdk=sdk, hardware=hardware, preload=preload, models=weights.repositories
    )
    written = {"README.md": space_readme(text("README.md"), block)}
    if sdk == "docker":
        # A Space's settings may not be there to build it, so the default is another.
        dockerfile, found = re.subn(
            r"(?m)^ARG TORCH_INDEX=.*$", lambda _: f"ARG TORCH_INDEX={index}", text("Dockerfile")
        )
        if found != 1:
            raise ConfigError("the Dockerfile has no line ARG TORCH_INDEX=...; restore it")
        written |= {"requirements.txt": requirements, "Dockerfile": dockerfile}
        written[".dockerignore"] = text(".dockerignore")
    else:
        first = f"--extra-index-url {index}\n" if index else ""
        theirs = text("requirements-zerogpu.txt") if hardware == ZERO_GPU else requirements
        written["requirements.txt"] = first + theirs
    linked = {name: root / name for name in (*_BESIDE, *_project_files(root))} | weights.files
    for name in (*linked, *written):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for name, path in linked.items():
        (folder / name).symlink_to(_existing(path, name).resolve())
    for name, content in written.items():
        (folder / name).write_text(content, encoding="utf-8", newline="\n")


def _existing(path: Path, name: str) -> Path:
    if not path.is_file():
        raise ConfigError(f"{name} is missing; restore it from the repository")
    return path


def _project_files(root: Path) -> list[str]:
    """What git tracks of all that runs, but for this command; without git, what is known."""
    names = _git(root, "--cached")
    if not names:
        known = {path.relative_to(root).as_posix() for one in _KNOWN for path in root.glob(one)}
        # An editor's hidden copies end like what they are copies of.
        names = [name for name in known if "/." not in f"/{name}"]
    elif lying := _git(root, "--others", "--exclude-standard"):
        _log.info("not sent, as git does not track it: %s", ", ".join(lying)[:300])
    return [
        name for name in names if not name.startswith("app/deploy/") and (root / name).is_file()
    ]


def _git(root: Path, *which: str) -> list[str]:
    """Names that git lists in our folders; none where there is no git or no checkout."""
    command = ["git", "ls-files", "-z", *which, "--", *_FOLDERS]
    try:
        listed = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [name for name in listed.decode(errors="surrogateescape").split("\0") if name]


def choose_weights(sources: Sequence[str]) -> ChosenWeights:
    """Decide how weights get to a Space.

    Those that come with the project are always sent: they are small, and what the page falls
    back on while others are on their way.

    Args:
        sources: Names that `list_weights` gives, files of weights, folders of finished runs, and
            USER/NAMEs of the hub, the first one shown first; none for those of the project.

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
        is_path = Path(source).expanduser().exists() or not is_repository(source)
        if source not in list_weights() and is_path:
            _send(chosen, source)
        else:
            _name(chosen, source)
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
    # As the page: of repositories that are not listed it reads no torch files.
    names = choose_files((file.rfilename for file in siblings), torch_files=entry is not None)
    if not names:
        raise CheckpointError(f"{repository!r} has no weights that are read here; give another")
    chosen.repositories.append(repository)
    chosen.preload.append(f"{repository} {','.join(names)}")


def _send(chosen: ChosenWeights, source: str) -> None:
    """Send a file of somebody's own."""
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
