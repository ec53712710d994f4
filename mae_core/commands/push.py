"""Upload a finished run to the Hugging Face hub: mae push RUN_DIR USER/NAME.

    mae push runs/flowers me/flowers dry_run=true
    mae push runs/flowers me/flowers private=true license=apache-2.0

One commit brings `weights.safetensors`, `config.json`, a model card (`README.md`) and the last
grid of reconstructions, which shows some of the run's pictures: look at the dry run first.

    private   whether only you can see it; false
    license   as the hub names it; unknown, as only you know what your pictures allow
    update    whether it may go on top of what is already there; false
    dry_run   write what would be uploaded to RUN_DIR/hub and send nothing; false

The token is the one that `hf auth login` or the variable HF_TOKEN gives.
"""

import contextlib
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from mae_core.config import to_dict, with_overrides
from mae_core.errors import CheckpointError, ConfigError, HubError
from mae_core.training.report import METRICS_FILE, read_metrics
from mae_core.weights.files import write_atomically
from mae_core.weights.model_card import GRID_FILE, NO_LICENSE, write_card
from mae_core.weights.registry import WEIGHTS_FILE, locate_weights
from mae_core.weights.saved import load_weights

_log = logging.getLogger(__name__)

# Where a dry run writes, inside the run's folder.
_DRY_RUN_FOLDER = "hub"


@dataclass(frozen=True)
class PushConfig:
    """How a run is uploaded.

    Attributes:
        private: Whether only its owner can see it.
        license: As the hub names it, such as `apache-2.0`.
        update: Whether it may go on top of what is already there.
        dry_run: Whether it is only written to a folder.
    """

    private: bool = False
    license: str = NO_LICENSE
    update: bool = False
    dry_run: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # It tells of every request.
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    if len(arguments) < 2:
        raise ConfigError("give the run's folder and where it goes: RUN_DIR USER/NAME")
    push(Path(arguments[0]), arguments[1], with_overrides(PushConfig(), arguments[2:]))
    return 0


def push(run: Path, repo_id: str, config: PushConfig) -> str:
    """Upload a finished run, or write what would be uploaded.

    Args:
        run: The run's folder.
        repo_id: USER/NAME on the hub.
        config: How.

    Returns:
        The address of the commit, or the folder of the dry run.

    Raises:
        CheckpointError: If the run is not finished or its weights are damaged.
        ConfigError: If the hub cannot have a repository of that name.
        HubError: If there is no token, or the hub cannot be reached or refuses.
    """
    _check_repo_id(repo_id)
    files = collect(run, repo_id, license_name=config.license)
    if config.dry_run:
        folder = run / _DRY_RUN_FOLDER
        for name, content in files.items():
            _write(folder / name, content)
        _log.info("wrote %s to %s; nothing was sent", ", ".join(files), folder)
        return str(folder)
    address = _upload(repo_id, files, config)
    _log.info("uploaded %s: %s", ", ".join(files), address)
    return address


def collect(run: Path, repo_id: str, *, license_name: str) -> dict[str, bytes | Path]:
    """What a run's repository holds: name -> content, or the file that has it.

    Raises:
        CheckpointError: If the run is not finished or its weights are damaged.
    """
    path = run / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(_unfinished(run))
    weights = load_weights(path)
    config = {
        "model_type": "mae_core",
        "model": to_dict(weights.config),
        "train": weights.record.get("train"),
    }
    grids = sorted(run.glob("reconstructions/step-*.png"))
    card = write_card(
        repo_id, weights, read_metrics(run / METRICS_FILE),
        license_name=license_name, has_grid=bool(grids),
    )  # fmt: skip
    files: dict[str, bytes | Path] = {
        "README.md": card.encode(),
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),
        WEIGHTS_FILE: path,
    }
    return files | ({GRID_FILE: grids[-1]} if grids else {})


def _unfinished(run: Path) -> str:
    """Why there is nothing to upload."""
    if not run.is_dir():
        return f"{str(run)!r} is not the folder of a run; give the out= of a training run"
    record = load_weights(locate_weights(run)).record
    return (
        f"the run in {str(run)!r} is not finished: it is at step {record['step']} of "
        f"{record['steps']}; start the same training command again, and upload it after that"
    )


def _check_repo_id(repo_id: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id, re.ASCII):
        raise ConfigError(
            f"{repo_id!r} is no name on a hub; give USER/NAME, such as me/flowers, of letters, "
            "digits, '-', '_' and '.'"
        )


def _write(path: Path, content: bytes | Path) -> None:
    data = content if isinstance(content, bytes) else content.read_bytes()
    write_atomically(path, lambda partial: partial.write_bytes(data))


def _upload(repo_id: str, files: Mapping[str, bytes | Path], config: PushConfig) -> str:
    additions = [CommitOperationAdd(name, content) for name, content in files.items()]
    with _explained(repo_id):
        token = get_token()
        if token is None:
            raise HubError("there is no token; run `hf auth login`, or set HF_TOKEN to one")
        api = HfApi(token=token)
        api.create_repo(repo_id, private=config.private, exist_ok=config.update)
    with _explained(repo_id, "; the repository is there by now, so try again with update=true"):
        message = "Upload a run of mae_core.commands.train"
        return str(api.create_commit(repo_id, additions, commit_message=message).commit_url)


@contextlib.contextmanager
def _explained(repo_id: str, advice: str = "") -> Iterator[None]:
    """Turns whatever the hub's client raises into a HubError."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # a dozen types that have no base of their own
        reason = _reason(error)
        raise HubError(f"could not upload to {repo_id!r}: {reason}{advice}") from error


def _reason(error: Exception) -> str:
    """What a hub or the way to it had against an upload, and what to do."""
    while not isinstance(error, HfHubHTTPError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it"
    if isinstance(error, HFValidationError):
        return f"{error}; give another name"
    if not isinstance(error, HfHubHTTPError):
        return f"{error or type(error).__name__}; check the network and HF_ENDPOINT"
    said = error.server_message or "no reason given"
    sentence = _SENTENCES.get(error.response.status_code, "the hub answered {status} ({said})")
    return sentence.format(status=error.response.status_code, said=said)


# By the status that the hub answers with.
_SENTENCES = {
    400: "the hub refused it ({said})",
    401: "the hub does not know the token; make one that may write, and run `hf auth login`",
    403: "the token may not write there ({said}); use one of that owner that may",
    404: "the hub has no such owner or repository ({said}); check the name",
    409: "there already is a repository of that name; give another, or update=true to go on top "
    "of it",
}
