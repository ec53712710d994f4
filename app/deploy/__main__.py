"""Make or update a Space that serves the page: python -m app.deploy USER/SPACE.

    python -m app.deploy me/mae --dry-run               what would be sent; nothing is
    python -m app.deploy me/mae                         a Gradio Space on ZeroGPU
    python -m app.deploy me/mae --hardware cpu-basic
    python -m app.deploy me/mae --weights vit-mae-base,runs/flowers
    python -m app.deploy me/mae --sdk static            the page without a server, free for all

The same command again changes what differs and nothing else. What is not said stays as it is: the
hardware, who sees it, when it sleeps, other variables and secrets. The files are the project's:
others are deleted there. The token is the one that `hf auth login` or HF_TOKEN gives.
"""

import argparse
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from huggingface_hub import SpaceHardware, get_token

from app.deploy.card import SDKS, ZERO_GPU
from app.deploy.files import ChosenWeights, choose_weights, stage, stage_static
from app.deploy.hub import NEVER, find_space, hardware_of, update_space, wait_until_up
from mae_core import MAEError
from mae_core.errors import ConfigError
from mae_core.weights import is_repository, open_hub

_log = logging.getLogger(__name__)

_HARDWARE = [hardware.value for hardware in SpaceHardware]
_DEFAULT_HARDWARE = {"gradio": ZERO_GPU, "docker": "cpu-basic"}

# What a Space that runs nothing does not have.
_OF_PROGRAMS = ("hardware", "sleep_seconds", "variable", "secret", "torch_index")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 2 after an error that can be mended, 130 if interrupted."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    # They log every request, that there is nothing to upload, and each node of a graph.
    for name in ("httpx", "httpx2", "huggingface_hub", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        _deploy(arguments)
    except MAEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _deploy(wanted: argparse.Namespace) -> None:
    """Make a Space what the command line says, and wait until it is up."""
    repo_id = wanted.space
    if not is_repository(repo_id):
        raise ConfigError(f"{repo_id[:80]!r} is no name of a Space; give USER/NAME, such as me/mae")
    wanted.secrets = _secrets(wanted.secret)
    api = None if wanted.dry_run else open_hub()
    found = find_space(api, repo_id) if api else None
    # What was not said is as it is there, or the default.
    wanted.sdk = wanted.sdk or (found and found.sdk) or SDKS[0]
    static = wanted.sdk == "static"
    if static:
        _check_static(wanted)
        weights = ChosenWeights()
    else:
        there = hardware_of(found.runtime) if found else None
        wanted.hardware = wanted.hardware or there or _DEFAULT_HARDWARE.get(wanted.sdk)
        _check_hardware(wanted.sdk, wanted.hardware, wanted.sleep_seconds)
        weights = choose_weights(wanted.weights)
    wanted.variables = {"MAE_WEIGHTS": ",".join(weights.sources) or None, **dict(wanted.variable)}
    with tempfile.TemporaryDirectory() as name:
        if static:
            stage_static(Path(name), wanted.weights)
        else:
            stage(Path(name), wanted.sdk, wanted.hardware, weights, wanted.torch_index)
        _show(wanted, Path(name), weights)
        if api is None:
            return
        newest = update_space(api, wanted, found, Path(name))
    address = f"{api.endpoint}/spaces/{repo_id}"
    try:
        wait_until_up(api, repo_id, None if static else newest, wanted.timeout, address)
    except KeyboardInterrupt:
        _log.info("not waiting any longer; the hub goes on: %s", address)
        raise
    _log.info("up: %s", address)


def _check_hardware(sdk: str, hardware: str, sleep_seconds: int | None) -> None:
    if sdk not in SDKS:
        raise ConfigError(f"the Space is of the kind {sdk}; say which to make of it with --sdk")
    if sdk == "docker" and hardware == ZERO_GPU:
        raise ConfigError(f"{ZERO_GPU} runs Gradio Spaces only; give another --hardware")
    if sleep_seconds is not None and hardware in ("cpu-basic", ZERO_GPU):
        raise ConfigError(
            f"the hub decides when a Space on {hardware} sleeps; leave --sleep-seconds out, or "
            "give another --hardware"
        )


def _check_static(wanted: argparse.Namespace) -> None:
    given = [name for name in _OF_PROGRAMS if getattr(wanted, name)]
    if given:
        raise ConfigError(
            f"a static Space runs no program, so it takes no --{given[0].replace('_', '-')}; leave "
            "it out, or give another --sdk"
        )


def _secrets(names: Iterable[str]) -> dict[str, str]:
    """Values from the environment: a command line is seen by others and kept."""
    secrets = {name: os.environ.get(name, "") for name in names}
    for name, value in secrets.items():
        if not value:
            raise ConfigError(f"there is no variable {name} here; set it to the secret's value")
        if value == get_token():
            raise ConfigError(
                f"{name} is the token that deploys, which may write; make one that may only read, "
                "and keep the other in `hf auth login`"
            )
    return secrets


def _show(wanted: argparse.Namespace, folder: Path, weights: ChosenWeights) -> None:
    """Print what the Space is to be, in a dry run with each file; of secrets the names."""
    place = f" on {wanted.hardware}" if wanted.hardware else ""
    _log.info("%s: %s Space%s", wanted.space, wanted.sdk, place)
    sizes = {path: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    if wanted.dry_run:
        _log.info("%s", (folder / "README.md").read_text(encoding="utf-8").split("\n\n", 1)[0])
        for path, size in sizes.items():
            _log.info("%12s  %s", f"{size:,}", path.relative_to(folder).as_posix())
    _log.info("%12s  in %d files", f"{sum(sizes.values()):,}", len(sizes))
    for name, value in wanted.variables.items():
        if value is not None:
            _log.info("variable %s: %s", name, value)
    for name in wanted.secrets:
        _log.info("secret %s: from the environment", name)
    later = weights.fetched_later + (list(weights.preload) if wanted.sdk == "docker" else [])
    if later:
        _log.info("fetched once the page is up, which says so meanwhile: %s", ", ".join(later))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m app.deploy", None, __doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    # fmt: off
    add("space", metavar="USER/SPACE", help="its name on the hub")
    add("--sdk", choices=SDKS,
        help="what runs it: gradio (the default), docker, or static: visitors' browsers")
    add("--hardware", choices=_HARDWARE, metavar="NAME",
        help=f"{', '.join(_HARDWARE)} (default {ZERO_GPU}, which is ZeroGPU; docker: cpu-basic)")
    add("--weights", type=_names, default=(), metavar="W,...",
        help="names, files, folders of finished runs, or USER/NAMEs (default: all bundled)")
    add("--private", action=argparse.BooleanOptionalAction, help="whether only you see it")
    add("--sleep-seconds", type=int, metavar="N",
        help=f"without visitors until paid hardware sleeps; {NEVER} for never")
    add("--variable", type=_variable, action="append", default=[], metavar="NAME=VALUE",
        help="a public setting, such as MAE_FETCH=none")
    add("--secret", type=_name, action="append", default=[], metavar="NAME",
        help="a setting that nobody can read back; its value is taken from the environment")
    add("--replace-secrets", action="store_true", help="send secrets that are there already again")
    add("--torch-index", type=_address, metavar="ADDRESS", help="package index with torch")
    add("--timeout", type=float, default=1800.0, metavar="S", help="wait so long (default 1800)")
    add("--dry-run", action="store_true", help="send nothing, say what would be")
    # fmt: on
    return parser


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*", text, re.ASCII):
        raise argparse.ArgumentTypeError("it is no name of a variable; give one such as MAE_FETCH")
    return text


def _variable(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not value:
        raise argparse.ArgumentTypeError("it has no value; give NAME=VALUE")
    if name == "MAE_WEIGHTS":
        raise argparse.ArgumentTypeError("give weights with --weights")
    return _name(name), value


def _address(text: str) -> str:
    # It becomes a line of requirements.txt and of the Dockerfile.
    if not re.fullmatch(r"https?://[^\s#\"'$\\]+", text):
        raise argparse.ArgumentTypeError("it is no address of packages; give https://...")
    return text


if __name__ == "__main__":
    sys.exit(main())
