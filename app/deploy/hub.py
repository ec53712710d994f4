"""A Space as the hub has it, and what to change so that it is as wanted."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    SpaceInfo,
    SpaceRuntime,
    get_token,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from app.deploy.files import Content, content_bytes, git_name
from mae_core.errors import DownloadError

# The hub's own; it says which files are large.
_OF_THE_HUB = ".gitattributes"

# By this a Space is known to be of this project, so that nobody loses another one by a slip.
_OURS = "mae_core/__init__.py"

# Never asleep, as the hub writes it.
NEVER = -1


@dataclass(frozen=True)
class Wanted:
    """What a Space is to be; None leaves a thing as it is.

    Attributes:
        repo_id: USER/NAME.
        files: Name -> content; others are deleted.
        sdk: `gradio` or `docker`.
        hardware: As the hub names it.
        private: Whether only its owner sees it.
        sleep_seconds: Without visitors until it sleeps, in seconds; `NEVER` for never.
        variables: Public settings; None as a value removes one. Others stay.
        secrets: Settings that nobody can read back. Others stay.
        replace_secrets: Whether secrets that are there already are sent again.
    """

    repo_id: str
    files: Mapping[str, Content]
    sdk: str
    hardware: str
    private: bool | None = None
    sleep_seconds: int | None = None
    variables: Mapping[str, str | None] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    replace_secrets: bool = False


@dataclass(frozen=True)
class Change:
    """One thing to change, in words that may be shown, and how.

    Attributes:
        what: Such as `hardware: t4-small`.
        make: Does it.
    """

    what: str
    make: Callable[[], object]


def open_hub() -> HfApi:
    """The hub, in the name of this machine's user.

    Raises:
        DownloadError: If there is no token.
    """
    token = get_token()
    if token is None:
        raise DownloadError(
            "there is no token; run `hf auth login`, or set HF_TOKEN to one", code="hub"
        )
    return HfApi(token=token)


def find_space(api: HfApi, repo_id: str) -> SpaceInfo | None:
    """What the hub tells of a Space; None if there is none that the token may see.

    Raises:
        DownloadError: If the hub cannot be reached or refuses.
    """
    with explained(f"could not look for the Space {repo_id!r}"):
        try:
            return api.space_info(repo_id)
        except RepositoryNotFoundError:
            return None


def create_space(api: HfApi, wanted: Wanted) -> None:
    """Make an empty Space.

    Raises:
        DownloadError: If the hub cannot be reached or refuses.
    """
    with explained(f"could not make the Space {wanted.repo_id!r}"):
        api.create_repo(
            wanted.repo_id,
            repo_type="space",
            private=wanted.private,
            space_sdk=wanted.sdk,
            # A free account may have a Space on this hardware and none on the one that the hub
            # would choose.
            space_hardware=wanted.hardware,  # type: ignore[arg-type]
        )


def changes_of(api: HfApi, wanted: Wanted) -> list[Change]:
    """What to change so that a Space is as wanted; empty if it is.

    The files come last, as the hub builds anew after each.

    Raises:
        DownloadError: If the hub cannot be reached or refuses.
    """
    with explained(f"could not read the Space {wanted.repo_id!r}"):
        info = api.space_info(wanted.repo_id)
        runtime = api.get_space_runtime(wanted.repo_id)
        return [
            *_visibility(api, wanted, info),
            *_variables(api, wanted),
            *_secrets(api, wanted),
            *_hardware(api, wanted, runtime),
            *_sleep(api, wanted, runtime),
            *_files(api, wanted),
        ]


def make_change(repo_id: str, change: Change) -> None:
    """Make a change.

    Raises:
        DownloadError: If the hub cannot be reached or refuses.
    """
    advice = "; what was done before is kept, and the same command goes on from there"
    with explained(f"could not set the {change.what.partition(':')[0]} of {repo_id!r}", advice):
        change.make()


def _visibility(api: HfApi, wanted: Wanted, info: SpaceInfo) -> Iterator[Change]:
    if wanted.private is None or wanted.private == info.private:
        return
    yield Change(
        f"visibility: {'private' if wanted.private else 'public'}",
        lambda: api.update_repo_settings(wanted.repo_id, private=wanted.private, repo_type="space"),
    )


def _variables(api: HfApi, wanted: Wanted) -> Iterator[Change]:
    there = {name: v.value for name, v in api.get_space_variables(wanted.repo_id).items()}
    for name, value in wanted.variables.items():
        if value == there.get(name):
            continue
        if value is None:
            yield Change(
                f"variable {name}: removed", _later(api.delete_space_variable, wanted, name)
            )
        else:
            add = _later(api.add_space_variable, wanted, name, value)
            yield Change(f"variable {name}: {value}", add)


def _secrets(api: HfApi, wanted: Wanted) -> Iterator[Change]:
    if not wanted.secrets:
        return
    there = api.get_space_secrets(wanted.repo_id)
    for name, value in wanted.secrets.items():
        if wanted.replace_secrets or name not in there:
            yield Change(f"secret {name}", _later(api.add_space_secret, wanted, name, value))


def _hardware(api: HfApi, wanted: Wanted, runtime: SpaceRuntime) -> Iterator[Change]:
    if hardware_of(runtime) != wanted.hardware:
        request = _later(api.request_space_hardware, wanted, wanted.hardware)
        yield Change(f"hardware: {wanted.hardware}", request)


def _sleep(api: HfApi, wanted: Wanted, runtime: SpaceRuntime) -> Iterator[Change]:
    seconds = wanted.sleep_seconds
    if seconds is None or seconds == (NEVER if runtime.sleep_time is None else runtime.sleep_time):
        return
    said = "never" if seconds == NEVER else f"after {seconds} s without visitors"
    yield Change(f"sleep: {said}", _later(api.set_space_sleep_time, wanted, seconds))


def _files(api: HfApi, wanted: Wanted) -> Iterator[Change]:
    """One commit of what differs, by the names that git and the hub give to contents."""
    tree = api.list_repo_tree(wanted.repo_id, recursive=True, repo_type="space")
    there = {file.path: file for file in tree if isinstance(file, RepoFile)}
    sent = [
        name
        for name, content in wanted.files.items()
        if name not in there or not _same(there[name], content_bytes(content))
    ]
    gone = sorted(there.keys() - wanted.files.keys() - {_OF_THE_HUB})
    if not sent and not gone:
        return
    if gone and _OURS not in there:
        raise DownloadError(
            f"the Space {wanted.repo_id!r} holds something else ({_named('', gone)}), which would "
            "be deleted; give another name, or delete that Space first",
            code="hub",
        )
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(name, wanted.files[name]) for name in sent),
        *(CommitOperationDelete(name) for name in gone),
    ]
    yield Change(
        "files: " + "; ".join(filter(None, (_named("sent ", sent), _named("deleted ", gone)))),
        lambda: api.create_commit(
            wanted.repo_id, operations, commit_message="Deploy the page", repo_type="space"
        ),
    )


def _same(there: RepoFile, data: bytes) -> bool:
    if there.lfs is not None:
        return there.lfs.sha256 == hashlib.sha256(data).hexdigest()
    return there.blob_id == git_name(data)


def _named(verb: str, names: list[str], most: int = 5) -> str:
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{verb}{', '.join(names[:most])}{more}"


def _later(call: Callable[..., object], wanted: Wanted, *values: object) -> Callable[[], object]:
    return lambda: call(wanted.repo_id, *values)


def hardware_of(runtime: SpaceRuntime | None) -> str | None:
    """What a Space runs on or is about to; None if nothing was asked for yet."""
    return None if runtime is None else runtime.requested_hardware or runtime.hardware


@contextlib.contextmanager
def explained(failed: str, advice: str = "") -> Iterator[None]:
    """Turns whatever the hub's client raises into a DownloadError."""
    try:
        yield
    except DownloadError:
        raise
    except Exception as error:  # a dozen types that have no base of their own
        raise DownloadError(f"{failed}: {_reason(error)}{advice}", code="hub") from error


def _reason(error: Exception) -> str:
    """What a hub or the way to it had against it, and what to do."""
    while not isinstance(error, HfHubHTTPError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it"
    if isinstance(error, HFValidationError):
        return f"{error}; give another name"
    if not isinstance(error, HfHubHTTPError):
        return f"{_brief(str(error)) or type(error).__name__}; check the network and HF_ENDPOINT"
    status, said = error.response.status_code, _brief(error.server_message or "no reason given")
    if status >= 500:
        return f"the hub is in trouble ({status}); try again in some minutes"
    sentence = _SENTENCES.get(status, "the hub answered {status} ({said})")
    return sentence.format(status=status, said=said)


def _brief(text: str) -> str:
    return " ".join(text.split())[:200]


# By the status that the hub answers with.
_SENTENCES = {
    400: "the hub refused it ({said})",
    401: "the hub does not know the token; make one that may write, and run `hf auth login`",
    402: "the account does not pay for that ({said}); a free one may have a Gradio Space on "
    "ZeroGPU: --sdk gradio --hardware zero-a10g",
    403: "the token may not write there ({said}); use one of that owner that may",
    404: "the hub has no such owner or Space ({said}); check the name",
    409: "the hub has another Space or change of that name in its way ({said}); look at it there",
    429: "the hub has had too many requests from this account; try again in some minutes",
}
