"""A Space on the hub: set what differs, upload the files, wait until it runs."""

import argparse
import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, SpaceHardware, SpaceInfo, SpaceRuntime, constants
from huggingface_hub.errors import RepositoryNotFoundError

from mae_core.errors import DownloadError
from mae_core.weights import UPLOAD_STATUSES, reason_of

_log = logging.getLogger(__name__)

# The hub's number for a Space that never sleeps.
NEVER = -1

# `upload_folder` never deletes this one.
_OF_THE_HUB = ".gitattributes"
# A Space without one of these files holds something else, which an upload would delete.
_OURS = {"mae_core/__init__.py", "app/stage/stage.js"}

_POLL_SECONDS = 5.0
# How long a failure may still be that of the commit before.
_SETTLING_SECONDS = 60.0
_LOG_LINES = 20
# The stages in which a Space stays without running.
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
    """What the hub knows of a Space; None if there is none that the token may see."""
    with explained(f"could not look for the Space {repo_id!r}"):
        try:
            return api.space_info(repo_id)
        except RepositoryNotFoundError:
            return None


def hardware_of(runtime: SpaceRuntime | None) -> str | None:
    """The hardware a Space has asked for, or runs on."""
    return None if runtime is None else runtime.requested_hardware or runtime.hardware


def update_space(
    api: HfApi, wanted: argparse.Namespace, found: SpaceInfo | None, folder: Path
) -> str:
    """Make a Space if none was found, set what differs, upload the files; returns the commit.

    Files that `folder` lacks are deleted there. None in `wanted`, the command line, leaves a thing
    as it is, or removes a variable.

    Raises:
        DownloadError: If the Space holds something else, or the hub cannot be reached or refuses.
    """
    repo_id = wanted.space
    if found is None:
        with explained(f"could not make the Space {repo_id!r}"):
            # A free account may have a Space on this hardware and none on the hub's default.
            api.create_repo(
                repo_id, repo_type="space", private=wanted.private, space_sdk=wanted.sdk,
                space_hardware=wanted.hardware and SpaceHardware(wanted.hardware),
            )  # fmt: skip
        _log.info("made the Space %s", repo_id)
    with explained(f"could not read the Space {repo_id!r}"):
        info = found or api.space_info(repo_id)
        there = set(api.list_repo_files(repo_id, repo_type="space"))
        commits = api.list_repo_commits(repo_id, repo_type="space")
    # The first commit is the hub's; of a static Space it has a page to begin with.
    others = sorted(there - {_OF_THE_HUB, "README.md"}) if len(commits) > 1 else []
    if others and not _OURS & there:
        raise DownloadError(
            f"the Space {repo_id!r} holds something else ({_named(others)}), which would be "
            "deleted; give another name, or delete that Space first",
            code="hub",
        )
    gone = sorted(name for name in there - {_OF_THE_HUB} if not (folder / name).is_file())
    changed = False
    advice = "; what was done before is kept, and the same command goes on from there"
    with explained(f"could not update the Space {repo_id!r}", advice):
        for what in _set_what_differs(api, wanted, info):
            _log.info("set %s", what)
            changed = True
        # Last, as the hub builds anew after each change.
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, repo_type="space", delete_patterns="*",
            commit_message="Deploy the page",
        )  # fmt: skip
    if commit.oid != info.sha:
        deleted = f"; deleted {_named(gone)}" if gone else ""
        _log.info("set files: commit %s%s", commit.oid[:12], deleted)
    elif not changed:
        _log.info("nothing to change")
    return commit.oid


def _named(files: list[str]) -> str:
    return ", ".join(files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")


def _set_what_differs(api: HfApi, wanted: argparse.Namespace, info: SpaceInfo) -> Iterator[str]:
    """Set one thing after the other; yields what was set, in words that may be shown.

    Nothing is set to what it is already: the hub restarts a Space after each change.
    """
    repo_id, private, seconds = wanted.space, wanted.private, wanted.sleep_seconds
    if private not in (None, info.private):
        api.update_repo_settings(repo_id, private=private, repo_type="space")
        yield f"visibility: {'private' if private else 'public'}"
    variables = {name: known.value for name, known in api.get_space_variables(repo_id).items()}
    for name, value in wanted.variables.items():
        if value is None and name in variables:
            api.delete_space_variable(repo_id, name)
            yield f"variable {name}: removed"
        elif value is not None and value != variables.get(name):
            api.add_space_variable(repo_id, name, value)
            yield f"variable {name}: {value}"
    secrets = api.get_space_secrets(repo_id) if wanted.secrets else {}
    for name, value in wanted.secrets.items():
        if wanted.replace_secrets or name not in secrets:
            api.add_space_secret(repo_id, name, value)
            yield f"secret {name}"
    runtime = api.get_space_runtime(repo_id)
    if wanted.hardware and hardware_of(runtime) != wanted.hardware:
        api.request_space_hardware(repo_id, SpaceHardware(wanted.hardware))
        yield f"hardware: {wanted.hardware}"
    if seconds not in (None, NEVER if runtime.sleep_time is None else runtime.sleep_time):
        api.set_space_sleep_time(repo_id, seconds)
        yield "sleep: " + ("never" if seconds == NEVER else f"after {seconds} s without visitors")


def wait_until_up(
    api: HfApi, repo_id: str, newest: str | None, seconds: float, address: str
) -> None:
    """Return once a Space runs its newest commit, or sleeps until its next visitor.

    `newest` is None for a static Space, which has every commit at once.

    `HfApi.wait_for_space` would return while the commit before runs, show no progress, and fail
    at the first request that is not answered.

    Raises:
        DownloadError: If it does not come up, or not in time.
    """
    shown, since, deadline = "", 0.0, time.monotonic() + seconds
    while True:
        stage, is_newest = "no answer from the hub", False
        with contextlib.suppress(Exception):
            runtime = api.get_space_runtime(repo_id)
            stage = _plain(runtime.stage)[:40]
            is_newest = newest is None or runtime.raw.get("sha") in (None, newest)
        if stage != shown:
            _log.info("%s", stage)
            shown, since = stage, time.monotonic()
        if is_newest and stage in ("RUNNING", "SLEEPING"):
            return
        settled = time.monotonic() - since > _SETTLING_SECONDS
        if stage in _ENDS and (is_newest or settled):
            # The reason must be shown also where the hub gives no log.
            with contextlib.suppress(Exception):
                log = "".join(api.fetch_space_logs(repo_id, build=stage == "BUILD_ERROR"))
                for line in log.splitlines()[-_LOG_LINES:]:
                    _log.info("  | %s", _plain(line)[:300])
            failed, advice = f"does not run: {_ENDS[stage]}", f"see {address}"
        elif time.monotonic() > deadline:
            failed = f"is not up after {seconds:g} s ({stage})"
            advice = (
                f"it goes on without this command: see {address}, or wait longer with --timeout"
            )
        else:
            time.sleep(_POLL_SECONDS)
            continue
        raise DownloadError(f"{repo_id!r} {failed}; {advice}", code="hub")


def _plain(text: str) -> str:
    """A foreign text without the characters that a terminal would obey."""
    return "".join(filter(str.isprintable, text))
