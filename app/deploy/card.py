"""The top of a Space's README.md, which is where the hub reads what to run and how to show it."""

import re
from collections.abc import Sequence
from typing import Any

from huggingface_hub import SpaceCardData

from mae_core.errors import ConfigError

SDKS = ("gradio", "docker")

# The hub's name for GPUs that are lent for the time of a request. The only hardware on which a
# free account may run a program of its own; made for Gradio's Spaces.
ZERO_GPU = "zero-a10g"
DEFAULT_HARDWARE = {"gradio": ZERO_GPU, "docker": "cpu-basic"}

# What the Dockerfile's page listens on.
_APP_PORT = 7860

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n+", re.DOTALL)


def front_matter(
    requirements: str,
    *,
    sdk: str = "gradio",
    hardware: str = ZERO_GPU,
    preload: Sequence[str] = (),
    models: Sequence[str] = (),
) -> str:
    """The YAML block of a Space, with the lines around it.

    Args:
        requirements: The text of requirements.txt, whose gradio is the Space's.
        sdk: `gradio` or `docker`.
        hardware: As the hub names it.
        preload: Files that the hub fetches while it builds, as `USER/NAME file,file`.
        models: Repositories of models that the page runs.
    """
    started: dict[str, Any] = {
        "sdk_version": _gradio_version(requirements),
        "python_version": "3.12",
        "app_file": "app/space.py",
    }
    if sdk == "docker":
        started = {"app_port": _APP_PORT}
    data = SpaceCardData(
        title="Masked Autoencoder",
        sdk=sdk,
        **started,
        license="apache-2.0",
        models=list(models) or None,
        tags=["masked-autoencoder", "self-supervised-learning", "vision-transformer"],
        emoji="🧩",
        colorFrom="green",
        colorTo="blue",
        short_description="Hide most of a picture and watch a model imagine the rest",
        suggested_hardware=hardware,
        preload_from_hub=list(preload) or None,
        disable_embedding=False,
        fullWidth=True,
        pinned=False,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def space_readme(readme: str, block: str) -> str:
    """A README.md with another block at its top.

    Args:
        readme: Its text, with a block or without.
        block: From `front_matter`.
    """
    return f"{block}\n{_FRONT_MATTER.sub('', readme)}"


def _gradio_version(requirements: str) -> str:
    found = re.search(r"^gradio==([\w.]+)$", requirements, re.MULTILINE)
    if found is None:
        raise ConfigError("requirements.txt pins no gradio; restore its line gradio==VERSION")
    return found[1]
