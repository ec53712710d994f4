"""Make or update a Space that serves the page: python -m app.deploy USER/SPACE.

    python -m app.deploy me/mae --dry-run               what would be sent; nothing is
    python -m app.deploy me/mae                         a Gradio Space on ZeroGPU
    python -m app.deploy me/mae --hardware cpu-basic
    python -m app.deploy me/mae --weights vit-mae-base,runs/flowers

The same command again changes what differs and nothing else. What is not said stays as it is: the
hardware, who sees it, when it sleeps, other variables and secrets. The files are the project's:
others are deleted there. The token is the one that `hf auth login` or HF_TOKEN gives.
"""

import argparse
import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence

from huggingface_hub import HfApi, SpaceHardware, SpaceInfo, get_token

from app.deploy.card import DEFAULT_HARDWARE, SDKS, ZERO_GPU
from app.deploy.files import content_size, space_files
from app.deploy.hub import (
    NEVER,
    Wanted,
    changes_of,
    create_space,
    explained,
    find_space,
    hardware_of,
    make_change,
    open_hub,
)
from app.deploy.waiting import space_address, wait_until_up
from app.deploy.weights import ChosenWeights, choose_weights
from mae_core import MAEError
from mae_core.errors import ConfigError
from mae_core.weights import is_repository

_log = logging.getLogger(__name__)

_HARDWARE = [hardware.value for hardware in SpaceHardware]

# The hub decides when these sleep.
_FREE_HARDWARE = ("cpu-basic", ZERO_GPU)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Command line without the program's name; the process's own if not given.

    Returns:
        The exit status: 2 after an error that the caller can mend, 130 if interrupted.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    # They tell of every request.
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        deploy(arguments)
    except MAEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def deploy(arguments: argparse.Namespace) -> None:
    """Make a Space what it should be, and wait until it is up.

    Args:
        arguments: Of the command line.

    Raises:
        CheckpointError: If weights cannot be used.
        ConfigError: If an argument is not what it should be.
        DownloadError: If the hub cannot be reached or refuses, or the Space does not come up.
    """
    repo_id = arguments.space
    if not is_repository(repo_id):
        raise ConfigError(f"{repo_id[:80]!r} is no name of a Space; give USER/NAME, such as me/mae")
    secrets = _secrets(arguments.secret)
    chosen = choose_weights(arguments.weights, _files_on_hub)
    if arguments.dry_run:
        _show(_wanted(arguments, chosen, secrets, None), chosen)
        return
    api = open_hub()
    found = find_space(api, repo_id)
    wanted = _wanted(arguments, chosen, secrets, found)
    _show(wanted, chosen)
    if found is None:
        create_space(api, wanted)
        _log.info("made the Space %s", repo_id)
    _update(api, wanted)
    wait_until_up(api, repo_id, seconds=arguments.timeout)
    _log.info("up: %s", space_address(api, repo_id))


def _update(api: HfApi, wanted: Wanted) -> None:
    changes = changes_of(api, wanted)
    if not changes:
        _log.info("nothing to change")
    for change in changes:
        make_change(wanted.repo_id, change)
        _log.info("set %s", change.what)


def _wanted(
    arguments: argparse.Namespace,
    chosen: ChosenWeights,
    secrets: Mapping[str, str],
    found: SpaceInfo | None,
) -> Wanted:
    """What the Space is to be; what was not said is as it is there, or the default."""
    sdk = arguments.sdk or (found and found.sdk) or SDKS[0]
    there = hardware_of(found.runtime) if found else None
    hardware = arguments.hardware or there or DEFAULT_HARDWARE[sdk]
    _check_hardware(sdk, hardware, arguments.sleep_seconds)
    own = {"MAE_WEIGHTS": ",".join(chosen.sources) or None}
    return Wanted(
        repo_id=arguments.space,
        files=space_files(sdk, hardware, chosen, arguments.torch_index),
        sdk=sdk,
        hardware=hardware,
        private=arguments.private,
        sleep_seconds=arguments.sleep_seconds,
        variables=own | dict(arguments.variable),
        secrets=secrets,
        replace_secrets=arguments.replace_secrets,
    )


def _check_hardware(sdk: str, hardware: str, sleep_seconds: int | None) -> None:
    if sdk not in SDKS:
        raise ConfigError(f"the Space is of the kind {sdk}; say which to make of it with --sdk")
    if sdk == "docker" and hardware == ZERO_GPU:
        raise ConfigError(f"{ZERO_GPU} runs Gradio Spaces only; give another --hardware")
    if sleep_seconds is not None and hardware in _FREE_HARDWARE:
        raise ConfigError(
            f"the hub decides when a Space on {hardware} sleeps; leave --sleep-seconds out, or "
            "give another --hardware"
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


def _files_on_hub(repo_id: str) -> list[str]:
    with explained(f"could not look for weights in {repo_id!r}"):
        return [file.rfilename for file in HfApi().model_info(repo_id).siblings or []]


def _show(wanted: Wanted, chosen: ChosenWeights) -> None:
    """Say all that the Space is to be; of secrets the names."""
    _log.info("%s: %s Space on %s", wanted.repo_id, wanted.sdk, wanted.hardware)
    readme = wanted.files["README.md"]
    assert isinstance(readme, bytes)
    _log.info("%s", readme.decode().split("\n\n", 1)[0])
    for name, content in wanted.files.items():
        _log.info("%12s  %s", f"{content_size(content):,}", name)
    total = sum(map(content_size, wanted.files.values()))
    _log.info("%12s  in %d files", f"{total:,}", len(wanted.files))
    for name, value in wanted.variables.items():
        if value is not None:
            _log.info("variable %s: %s", name, value)
    for name in wanted.secrets:
        _log.info("secret %s: from the environment", name)
    later = chosen.fetched_later + (chosen.repositories if wanted.sdk == "docker" else [])
    if later:
        _log.info("fetched once the page is up, which says so meanwhile: %s", ", ".join(later))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app.deploy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("space", metavar="USER/SPACE", help="its name on the hub")
    parser.add_argument("--sdk", choices=SDKS, help="what runs it (default gradio)")
    parser.add_argument(
        "--hardware", choices=_HARDWARE, metavar="NAME",
        help=f"{', '.join(_HARDWARE)} (default {ZERO_GPU}, which is ZeroGPU; docker: cpu-basic)",
    )  # fmt: skip
    parser.add_argument(
        "--weights", type=_names, default=(), metavar="W,...",
        help="names, files, folders of finished runs, or USER/NAMEs (default: all bundled)",
    )  # fmt: skip
    parser.add_argument(
        "--private", action=argparse.BooleanOptionalAction, help="whether only you see it"
    )
    parser.add_argument(
        "--sleep-seconds", type=int, metavar="N",
        help=f"without visitors until paid hardware sleeps; {NEVER} for never",
    )  # fmt: skip
    parser.add_argument(
        "--variable", type=_variable, action="append", default=[], metavar="NAME=VALUE",
        help="a public setting, such as MAE_FETCH=none",
    )  # fmt: skip
    parser.add_argument(
        "--secret", type=_name, action="append", default=[], metavar="NAME",
        help="a setting that nobody can read back; its value is taken from the environment",
    )  # fmt: skip
    parser.add_argument(
        "--replace-secrets", action="store_true", help="send secrets that are there already again"
    )
    parser.add_argument("--torch-index", metavar="ADDRESS", help="package index with torch")
    parser.add_argument(
        "--timeout", type=float, default=1800.0, metavar="S", help="wait so long (default 1800)"
    )
    parser.add_argument("--dry-run", action="store_true", help="send nothing, say what would be")
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


if __name__ == "__main__":
    sys.exit(main())
