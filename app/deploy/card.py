"""The top of a Space's README.md, where the hub reads what to run and how to show it."""

import re
from collections.abc import Sequence
from typing import Any

from huggingface_hub import SpaceCardData

from mae_core.errors import ConfigError

SDKS = ("gradio", "docker", "static")

# The hub's name for ZeroGPU: GPUs lent for the time of a request, to Gradio Spaces. The only
# hardware on which a free account may run a program of its own.
ZERO_GPU = "zero-a10g"

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n+", re.DOTALL)


# What gives a static Space threads, by the hub's documentation of `custom_headers`. The hub shows
# it in a frame, and so has to be allowed to load it.
_STATIC_HEADERS = {
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "cross-origin",
}


def front_matter(
    requirements: str,
    *,
    sdk: str = "gradio",
    hardware: str | None = ZERO_GPU,
    preload: Sequence[str] = (),
    models: Sequence[str] = (),
) -> str:
    """The YAML block of a Space, with the lines around it.

    A Gradio Space gets the gradio that the text `requirements` pins. `preload` has the files that
    the hub fetches while it builds, as `USER/NAME file,file`; `models` the repositories of models.
    """
    gradio = re.search(r"^gradio==([\w.]+)$", requirements, re.MULTILINE)
    if gradio is None:
        raise ConfigError("requirements.txt pins no gradio; restore its line gradio==VERSION")
    # The port is that of the Dockerfile.
    started: dict[str, Any] = {"app_port": 7860}
    if sdk == "gradio":
        started = {
            "sdk_version": gradio[1], "python_version": "3.12", "app_file": "app/space.py",
        }  # fmt: skip
    elif sdk == "static":
        started = {"app_file": "index.html", "custom_headers": _STATIC_HEADERS}
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
    """The text of a README.md with the block of `front_matter` in place of its own, if any."""
    return f"{block}\n{_FRONT_MATTER.sub('', readme)}"
