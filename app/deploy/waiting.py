"""Waiting until a Space is up, and what to say where it does not come up."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, SpaceRuntime

from app.deploy.hub import explained
from mae_core.errors import DownloadError

_log = logging.getLogger(__name__)

_POLL_SECONDS = 5.0

# For how long a failure may still be that of the commit before.
_SETTLING_SECONDS = 60.0
_LOG_LINES = 20

_ON_ITS_WAY = {"BUILDING", "APP_STARTING", "RUNNING_BUILDING", "RUNNING_APP_STARTING"}

# What each stage that is an end means; any other one is shown as it is.
_ENDS = {
    "BUILD_ERROR": "it could not be built",
    "RUNTIME_ERROR": "it was built and then failed",
    "CONFIG_ERROR": "the hub does not understand the top of its README.md",
    "NO_APP_FILE": "the hub found nothing to start",
    "PAUSED": "somebody paused it; restart it in its settings",
    "STOPPED": "it was stopped; restart it in its settings",
    "DELETING": "somebody deletes it",
}


def wait_until_up(api: HfApi, repo_id: str, *, seconds: float) -> None:
    """Return once a Space runs its newest commit, or sleeps until its next visitor.

    Args:
        api: The hub.
        repo_id: USER/NAME.
        seconds: For how long to wait.

    Raises:
        DownloadError: If it does not come up, or not in time.
    """
    address = space_address(api, repo_id)
    deadline = time.monotonic() + seconds
    with explained(f"could not look after {repo_id!r}"), _interruptible(address):
        newest = api.space_info(repo_id).sha
    shown, since = "", time.monotonic()
    with _interruptible(address):
        while True:
            runtime = _runtime(api, repo_id)
            stage = "no answer from the hub" if runtime is None else _stage(runtime)
            if stage != shown:
                _log.info("%s", stage)
                shown, since = stage, time.monotonic()
            if runtime is not None and _is_end(runtime, newest, time.monotonic() - since):
                return _finish(api, repo_id, stage)
            if time.monotonic() > deadline:
                raise DownloadError(
                    f"{repo_id!r} is not up after {seconds:g} s ({stage}); it goes on without "
                    f"this command: see {address}, or wait longer with --timeout",
                    code="hub",
                )
            time.sleep(_POLL_SECONDS)


def space_address(api: HfApi, repo_id: str) -> str:
    """Where a Space is looked at."""
    return f"{api.endpoint}/spaces/{repo_id}"


def _stage(runtime: SpaceRuntime) -> str:
    # As the hub sends it, and so not always one of the client's names.
    return "".join(filter(str.isprintable, str(runtime.raw.get("stage"))))[:40]


def _runtime(api: HfApi, repo_id: str) -> SpaceRuntime | None:
    """How a Space is; None if the hub did not answer this time."""
    try:
        return api.get_space_runtime(repo_id)
    except Exception:  # a moment without network, or of trouble at the hub: it is asked again
        return None


def _is_end(runtime: SpaceRuntime, newest: str | None, lasted: float) -> bool:
    """Whether there is nothing to wait for, which what is left of an older commit is not."""
    stage = _stage(runtime)
    if stage in _ON_ITS_WAY:
        return False
    settled = stage in _ENDS and lasted > _SETTLING_SECONDS
    return settled or runtime.raw.get("sha") in (None, newest)


def _finish(api: HfApi, repo_id: str, stage: str) -> None:
    if stage == "RUNNING":
        return
    if stage == "SLEEPING":
        _log.info("it sleeps until its next visitor")
        return
    for line in _last_lines(api, repo_id, build=stage == "BUILD_ERROR"):
        _log.info("  | %s", line)
    raise DownloadError(
        f"{repo_id!r} does not run: {_ENDS.get(stage, stage)}; see {space_address(api, repo_id)}",
        code="hub",
    )


def _last_lines(api: HfApi, repo_id: str, *, build: bool) -> list[str]:
    """The end of a log, without what a terminal would obey; empty if the hub gives none."""
    try:
        text = "".join(api.fetch_space_logs(repo_id, build=build))
    except Exception:  # the reason why it failed is said all the same
        return []
    lines = text.splitlines()[-_LOG_LINES:]
    return ["".join(filter(str.isprintable, line))[:300] for line in lines]


@contextmanager
def _interruptible(address: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _log.info("not waiting any longer; the hub goes on: %s", address)
        raise
