"""Which files make a Space: by list, so that nothing else that lies about is ever sent."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from app.deploy.card import ZERO_GPU, front_matter, space_readme
from app.deploy.weights import ChosenWeights
from mae_core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]

# Where PyTorch publishes its builds without CUDA, which are several GB smaller.
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"

# All that runs, but for this command. Pictures are the examples; README.md shows the last one.
_RUNS = (
    "app/*.py",
    "app/components/*.py",
    "app/assets/*.css",
    "app/assets/examples/*.jpg",
    "app/assets/examples/LICENSES.md",
    "mae_core/**/*.py",
    "mae_core/**/*.j2",
    "mae_core/py.typed",
    "weights/README.md",
    "weights/manifest.json",
    "docs/panels.png",
    "LICENSE",
)

# A file's content, or where it is.
Content = bytes | Path


def space_files(
    sdk: str,
    hardware: str,
    weights: ChosenWeights,
    torch_index: str | None = None,
    root: Path = ROOT,
) -> dict[str, Content]:
    """What a Space holds: name -> content.

    Args:
        sdk: `gradio` or `docker`.
        hardware: As the hub names it.
        weights: What the page runs.
        torch_index: Address of a package index with the builds of torch to take; by the
            hardware if not given.
        root: The project's folder.

    Raises:
        ConfigError: If a file is missing or the address is none.
    """
    requirements = _read(root / "requirements.txt")
    index = _torch_index(hardware, torch_index)
    # A Docker Space's files are fetched by nobody before it starts.
    preload = weights.preload if sdk == "gradio" else ()
    block = front_matter(
        requirements, sdk=sdk, hardware=hardware, preload=preload, models=weights.repositories
    )
    written = {
        "README.md": space_readme(_read(root / "README.md"), block),
    }
    if sdk == "docker":
        written["requirements.txt"] = requirements
        written["Dockerfile"] = _dockerfile(_read(root / "Dockerfile"), index)
        written[".dockerignore"] = _read(root / ".dockerignore")
    else:
        source = "requirements-zerogpu.txt" if hardware == ZERO_GPU else "requirements.txt"
        first = f"--extra-index-url {index}\n" if index else ""
        written["requirements.txt"] = first + _read(root / source)
    files: dict[str, Content] = {name: text.encode() for name, text in written.items()}
    files.update(weights.files)
    files.update(_listed(root))
    return dict(sorted(files.items()))


def content_bytes(content: Content) -> bytes:
    """What a file holds."""
    return content if isinstance(content, bytes) else content.read_bytes()


def content_size(content: Content) -> int:
    """How many bytes a file has."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def git_name(data: bytes) -> str:
    """What git calls a content, as hexadecimal digits."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _listed(root: Path) -> Mapping[str, Path]:
    found: dict[str, Path] = {}
    for pattern in _RUNS:
        # An editor's hidden copies end like what they are copies of.
        paths = {path.relative_to(root).as_posix(): path for path in root.glob(pattern)}
        paths = {name: path for name, path in paths.items() if not f"/{name}".count("/.")}
        if not paths:
            raise ConfigError(f"{pattern} is missing; restore it from the repository")
        found |= paths
    return found


def _torch_index(hardware: str, given: str | None) -> str:
    """Where torch is looked for besides; empty for nowhere, which brings CUDA."""
    if given is None:
        return CPU_TORCH_INDEX if hardware.startswith("cpu-") else ""
    if not re.fullmatch(r"https?://[^\s#\"'$\\]+", given):
        raise ConfigError(f"{given[:80]!r} is no address of packages; give https://...")
    return given


def _dockerfile(text: str, index: str) -> str:
    """The Dockerfile with another default: a Space's settings may not be there to build it."""
    changed, found = re.subn(
        r"^ARG TORCH_INDEX=.*$", lambda _: f"ARG TORCH_INDEX={index}", text, flags=re.MULTILINE
    )
    if found != 1:
        raise ConfigError("the Dockerfile has no line ARG TORCH_INDEX=...; restore it")
    return changed


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path.name} is missing; restore it from the repository") from error
