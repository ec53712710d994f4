"""A Space on the hub: what differs is set, the files are uploaded, its start is waited for."""

import argparse
import contextlib
import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, SpaceHardware, SpaceInfo, SpaceRuntime, constants
from huggingface_hub.errors import RepositoryNotFoundError

from mae_core.errors import DownloadError
from mae_core.weights import UPLOAD_STATUSES, reason_of

_log = logging.getLogger(__name__)

# Never asleep, as the hub writes it.
NEVER = -1

# The hub's own, which `upload_folder` never deletes.
_OF_THE_HUB = ".gitattributes"
# By this a Space is known to be of this project, so that nobody loses another one by a slip.
_OURS = "mae_core/__init__.py"

_POLL_SECONDS = 5.0
# For how long a failure may still be that of the commit before.
_SETTLING_SECONDS = 60.0
_LOG_LINES = 20
# What each stage means at which a Space stays that does not run.
_ENDS = {
    "BUILD_ERROR": "it could not be built",
    "RUNTIME_ERROR": "it was built and then failed",
    "CONFIG_ERROR": "the hub does not understand the top of its README.md",
    "NO_APP_FILE": "the hub found nothing to start",
    "PAUSED": "somebody paused it; restart it in its settings",
    "STOPPED": "it was stopped; restart it in its settings",
    "DELETING": "somebody deletes it",
}

_STATUSES = UPLOAD_STATUSES | {
    402: "the account does not pay for that ({said}); a free one may have a Gradio Space on "
    "ZeroGPU: --sdk gradio --hardware zero-a10g",
    409: "it has another Space or change of that name in its way ({said}); look at it there",
    429: "it has had too many requests from this account; try again in some minutes",
}


@contextlib.contextmanager
def explained(failed: str, advice: str = "") -> Iterator[None]:
    """Turn whatever the hub's client raises into a DownloadError."""
    try:
        yield
    except Exception as error:  # a dozen types without a common base
        reason = reason_of(error, _STATUSES)
        raise DownloadError(
            f"{failed} on {constants.ENDPOINT}: {reason}{advice}", code="hub"
        ) from error


def find_space(api: HfApi, repo_id: str) -> SpaceInfo | None:
    """What the hub tells of a Space; None if there is none that the token may see."""
    with explained(f"could not look for the Space {repo_id!r}"):
        try:
            return api.space_info(repo_id)
        except RepositoryNotFoundError:
            return None


def hardware_of(runtime: SpaceRuntime | None) -> str | None:
    """What a Space runs on or is about to; None if nothing was asked for yet."""
    return None if runtime is None else runtime.requested_hardware or runtime.hardware


def update_space(api: HfApi, wanted: argparse.Namespace, folder: Path) -> str:
    """Set what differs and upload the files; returns the newest commit.

    The files come last, as the hub builds anew after each change.

    Args:
        api: The hub.
        wanted: The command line, filled in; None leaves a thing as it is or removes a variable.
        folder: All files of the Space; others are deleted there.

    Raises:
        DownloadError: If the Space holds something else, or the hub cannot be reached or refuses.
    """
    repo_id = wanted.space
    with explained(f"could not read the Space {repo_id!r}"):
        info = api.space_info(repo_id)
        there = set(api.list_repo_files(repo_id, repo_type="space"))
        settings = list(_settings(api, wanted, info))
    gone = sorted(name for name in there - {_OF_THE_HUB} if not (folder / name).is_file())
    named = ", ".join(gone[:5]) + (f" and {len(gone) - 5} more" if len(gone) > 5 else "")
    if gone and _OURS not in there:
        raise DownloadError(
            f"the Space {repo_id!r} holds something else ({named}), which would be deleted; give "
            "another name, or delete that Space first",
            code="hub",
        )
    advice = "; what was done before is kept, and the same command goes on from there"
    for what, change in settings:
        with explained(f"could not set the {what.partition(':')[0]} of {repo_id!r}", advice):
            change(repo_id)
        _log.info("set %s", what)
    with explained(f"could not set the files of {repo_id!r}", advice):
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, repo_type="space", delete_patterns="*",
            commit_message="Deploy the page",
        )  # fmt: skip
    if commit.oid != info.sha:
        _log.info("set files: commit %s%s", commit.oid[:12], f"; deleted {named}" if gone else "")
    elif not settings:
        _log.info("nothing to change")
    return commit.oid


def _settings(
    api: HfApi, wanted: argparse.Namespace, info: SpaceInfo
) -> Iterator[tuple[str, partial[Any]]]:
    """What differs, in words that may be shown, and the call that sets it."""
    repo_id, private, seconds = wanted.space, wanted.private, wanted.sleep_seconds
    if private not in (None, info.private):
        yield (
            f"visibility: {'private' if private else 'public'}",
            partial(api.update_repo_settings, private=private, repo_type="space"),
        )
    there = {name: known.value for name, known in api.get_space_variables(repo_id).items()}
    for name, value in wanted.variables.items():
        if value is None and name in there:
            yield f"variable {name}: removed", partial(api.delete_space_variable, key=name)
        elif value is not None and value != there.get(name):
            add = partial(api.add_space_variable, key=name, value=value)
            yield f"variable {name}: {value}", add
    known_secrets = api.get_space_secrets(repo_id) if wanted.secrets else {}
    for name, value in wanted.secrets.items():
        if wanted.replace_secrets or name not in known_secrets:
            yield f"secret {name}", partial(api.add_space_secret, key=name, value=value)
    runtime = api.get_space_runtime(repo_id)
    if hardware_of(runtime) != wanted.hardware:
        request = partial(api.request_space_hardware, hardware=SpaceHardware(wanted.hardware))
        yield f"hardware: {wanted.hardware}", request
    if seconds not in (None, NEVER if runtime.sleep_time is None else runtime.sleep_time):
        said = "never" if seconds == NEVER else f"after {seconds} s without visitors"
        yield f"sleep: {said}", partial(api.set_space_sleep_time, sleep_time=seconds)


def wait_until_up(api: HfApi, repo_id: str, newest: str, seconds: float, address: str) -> None:
    """Return once a Space runs its newest commit, or sleeps until its next visitor.

    Not by `wait_for_space`: that ends at the commit before, says nothing meanwhile, and gives up
    at the first moment without an answer.

    Raises:
        DownloadError: If it does not come up, or not in time.
    """
    shown, since, deadline = "", 0.0, time.monotonic() + seconds
    while True:
        stage, is_newest = "no answer from the hub", False
        with contextlib.suppress(Exception):  # asked again after a moment of trouble
            runtime = api.get_space_runtime(repo_id).raw
            # As the hub sends it, and so not always one of the client's names.
            stage, is_newest = _plain(runtime["stage"])[:40], runtime.get("sha") in (None, newest)
        if stage != shown:
            _log.info("%s", stage)
            shown, since = stage, time.monotonic()
        if is_newest and stage in ("RUNNING", "SLEEPING"):
            if stage == "SLEEPING":
                _log.info("it sleeps until its next visitor")
            return
        settled = time.monotonic() - since > _SETTLING_SECONDS
        if stage in _ENDS and (is_newest or settled):
            _show_log(api, repo_id, build=stage == "BUILD_ERROR")
            raise DownloadError(
                f"{repo_id!r} does not run: {_ENDS[stage]}; see {address}", code="hub"
            )
        if time.monotonic() > deadline:
            raise DownloadError(
                f"{repo_id!r} is not up after {seconds:g} s ({stage}); it goes on without this "
                f"command: see {address}, or wait longer with --timeout",
                code="hub",
            )
        time.sleep(_POLL_SECONDS)


def _show_log(api: HfApi, repo_id: str, *, build: bool) -> None:
    """Show the end of a log; the reason why it failed is said also where the hub gives none."""
    with contextlib.suppress(Exception):
        text = "".join(api.fetch_space_logs(repo_id, build=build))
        for line in text.splitlines()[-_LOG_LINES:]:
            _log.info("  | %s", _plain(line)[:300])


def _plain(text: str) -> str:
    """A text of somebody else's, without what a terminal would obey."""
    return "".join(filter(str.isprintable, text))
