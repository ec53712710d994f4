"""Spaces, against a hub of our own; the real one has not been asked."""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import HfApi, SpaceCard, SpaceRuntime, constants

import app.deploy.files
import app.deploy.hub
from app.deploy.__main__ import main
from app.deploy.card import front_matter, space_readme
from app.deploy.files import CPU_TORCH_INDEX, ROOT, choose_weights, stage
from mae_core import MAEError
from mae_core.errors import ConfigError
from mae_core.weights.formats import save_weights
from tests.app.serving import save_step, small_reconstructor
from tests.hub import TOKEN, Hub, running_hub

# The hub's client says this of itself as it sends a large file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

NAME = "me/mae"
SECRET = "hf_" + "onlyreads"


# Each command stages and sends all files again: of each kind there is one.
FEW_FILES = (
    "app/page/build.py", "app/stage/stage.js", "mae_core/__init__.py", "weights", "LICENSE",
    "README.md", "requirements.txt", "docs/panels.png",
)  # fmt: skip
ALL_FILES = app.deploy.files._SENT


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client in this process asks, without the patience that real ones need.

    It is sent a project of few files, unless a test takes `all_files`.
    """
    monkeypatch.setattr(app.deploy.files, "_SENT", FEW_FILES)
    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(app.deploy.hub, "_POLL_SECONDS", 0.0)
        yield hub


@pytest.fixture
def all_files(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole project is sent."""
    monkeypatch.setattr(app.deploy.files, "_SENT", ALL_FILES)


@dataclass
class Said:
    """How the command ended, and what it printed."""

    status: int
    output: str
    error: str


Say = Callable[..., Said]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Iterator[Say]:
    """Runs the command in this process."""
    root = logging.getLogger()
    before = root.handlers[:], root.level

    def run(*arguments: str, space: str = NAME) -> Said:
        # Set up once, it would print to where standard output was then.
        root.handlers[:] = []
        capsys.readouterr()
        said = Said(main([space, *arguments]), *capsys.readouterr())
        for never in (TOKEN, SECRET, "Traceback"):
            assert never not in said.output + said.error
        return said

    yield run
    root.handlers[:], root.level = before


def deployed(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.deploy", NAME, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def files_of(
    sdk: str = "gradio", hardware: str = "zero-a10g", index: str | None = None, root: Path = ROOT
) -> dict[str, bytes]:
    """What a Space with the bundled weights holds: name -> content."""
    with tempfile.TemporaryDirectory() as name:
        stage(Path(name), sdk, hardware, choose_weights(()), index, root)
        paths = [path for path in Path(name).rglob("*") if path.is_file()]
        return {path.relative_to(name).as_posix(): path.read_bytes() for path in paths}


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


@pytest.mark.usefixtures("all_files")
def test_the_whole_command_and_again_changes_nothing(
    hub: Hub, say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment = inherited | {
        "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1", "READER": SECRET,
    }  # fmt: skip
    hub.course = ["RUNNING"]
    arguments = ("--private", "--variable", "MAE_FETCH=none", "--secret", "READER")
    done = deployed(*arguments, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    space = hub.spaces[NAME]
    assert done.stdout.splitlines()[-1] == f"up: {hub.url}/spaces/{NAME}"
    assert (space.sdk, space.hardware, space.private) == ("gradio", "zero-a10g", True)
    assert space.variables == {"MAE_FETCH": "none"}
    assert space.secrets == {"READER": SECRET}
    assert space.files == files_of() | {".gitattributes": space.files[".gitattributes"]}
    changes = len(hub.changes)
    monkeypatch.setenv("READER", SECRET)
    again = say(*arguments)
    assert again.status == 0, again.error
    assert "nothing to change" in again.output
    assert (len(hub.changes), space.commits) == (changes, 2)
    for never in (TOKEN, SECRET):
        assert never not in done.stdout + done.stderr


@pytest.mark.usefixtures("all_files")
def test_a_dry_run_says_all_and_sends_nothing(hub: Hub, say: Say) -> None:
    said = say("--dry-run", "--variable", "MAE_FETCH=none")
    assert said.status == 0
    assert not hub.requests
    for name, data in files_of().items():
        assert f"{len(data):,}  {name}\n" in said.output
    assert "sdk: gradio" in said.output
    assert "variable MAE_FETCH: none" in said.output


def test_only_what_differs_is_changed(hub: Hub, say: Say) -> None:
    first = say("--hardware", "cpu-basic")
    assert first.status == 0, first.error
    space = hub.spaces[NAME]
    right = dict(space.files)
    space.files |= {"app/page/build.py": b"changed", "old.py": b"of before"}
    del space.files["weights/mae-tiny.safetensors"]
    space.variables |= {"MAE_WEIGHTS": "of-before", "OTHERS": "kept"}
    hub.changes.clear()
    # What is not said stays as it is: the hardware is not the default.
    said = say("--private", "--sleep-seconds", "600", "--hardware", "t4-small")
    assert said.status == 0
    assert space.private
    assert (space.hardware, space.sleep_seconds) == ("t4-small", 600)
    assert space.variables == {"OTHERS": "kept"}
    assert space.files.keys() == right.keys()
    assert space.files["app/page/build.py"] == right["app/page/build.py"]
    commits = [change for change in hub.changes if change.endswith("/commit/main")]
    assert len(commits) == 1
    assert "deleted old.py" in said.output
    hub.changes.clear()
    said = say("--sleep-seconds", "600")
    assert said.status == 0
    assert "nothing to change" in said.output
    assert (hub.changes, space.private, space.hardware) == ([], True, "t4-small")


def test_secrets_are_sent_once_or_when_it_is_said(
    hub: Hub, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("READER", SECRET)
    assert say("--secret", "READER").status == 0
    hub.spaces[NAME].secrets["READER"] = "somebody's"
    assert say("--secret", "READER").status == 0
    assert hub.spaces[NAME].secrets == {"READER": "somebody's"}
    assert say("--secret", "READER", "--replace-secrets").status == 0
    assert hub.spaces[NAME].secrets == {"READER": SECRET}
    monkeypatch.delenv("READER")
    assert "there is no variable READER here" in say("--secret", "READER").error
    # Who deploys may write everywhere; the page of the public must not.
    assert "HF_TOKEN is the token that deploys" in say("--secret", "HF_TOKEN").error


@pytest.mark.parametrize(
    ("stages", "status", "words"),
    [
        (["BUILDING", "APP_STARTING", "RUNNING"], 0, "up: "),
        # What runs first is the commit before.
        (["old:RUNNING", "BUILDING", "RUNNING"], 0, "RUNNING\nBUILDING\nRUNNING\nup: "),
        (["RUNNING_BUILDING", "SLEEPING"], 0, "SLEEPING\nup: "),
        (["BUILDING", "BUILD_ERROR"], 2, "does not run: it could not be built"),
        (["BUILDING", "RUNTIME_ERROR"], 2, "does not run: it was built and then failed"),
        (["CONFIG_ERROR"], 2, "does not understand the top of its README.md"),
        (["PAUSED"], 2, "somebody paused it"),
        (["BUILDING"], 2, "is not up after 0.2 s (BUILDING); it goes on without this command"),
        (["INVENTED"], 2, "is not up after 0.2 s (INVENTED); it goes on without this command"),
    ],
    ids=["up", "updated", "sleeps", "build", "run", "config", "paused", "late", "unknown"],
)
def test_it_waits_until_the_space_is_up_or_will_not_be(
    hub: Hub, say: Say, monkeypatch: pytest.MonkeyPatch,
    stages: list[str], status: int, words: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(app.deploy.hub, "_SETTLING_SECONDS", -1.0)
    hub.course, hub.log = stages, "first\n" + "more\n" * 30 + "no \x1b[31mmatching torch\n"
    said = say("--timeout", "60" if status == 0 or "0.2" not in words else "0.2")
    assert said.status == status
    assert words in (said.error if status else said.output)
    does_not_run = "does not run" in said.error
    assert ("  | no [31mmatching torch\n" in said.output) == does_not_run
    assert "first" not in said.output
    assert ("  | more\n" in said.output) == does_not_run


def test_a_failure_of_the_commit_before_is_none(
    hub: Hub, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.course = ["old:BUILD_ERROR", "BUILDING", "RUNNING"]
    assert say().status == 0


def test_the_hub_may_fail_to_answer_while_it_builds(
    hub: Hub, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first look is for the hardware.
    look, troubles = HfApi.get_space_runtime, [False, False, True, False]

    def troubled(api: HfApi, repo_id: str) -> SpaceRuntime:
        if troubles.pop(0):
            hub.refuse_once["/runtime"] = 503
        return look(api, repo_id)

    monkeypatch.setattr(HfApi, "get_space_runtime", troubled)
    hub.course = ["BUILDING", "RUNNING"]
    said = say()
    assert said.status == 0
    assert "BUILDING\nno answer from the hub\nRUNNING\nup: " in said.output


def test_an_interrupt_says_that_the_hub_goes_on(
    hub: Hub, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("app.deploy.hub.time.sleep", interrupted)
    said = say()
    assert said.status == 130
    assert said.output.endswith(
        f"not waiting any longer; the hub goes on: {hub.url}/spaces/{NAME}\n"
    )


@pytest.mark.parametrize(
    ("part", "status", "words"),
    [
        ("/api/repos/create", 401, "it does not know the token; make one that may write"),
        ("/api/repos/create", 402, "a free one may have a Gradio Space on ZeroGPU"),
        ("/api/repos/create", 403, "the token may not write there (not today)"),
        ("/api/repos/create", 409, "in its way (not today)"),
        (
            "/api/repos/create",
            429,
            "too many requests from this account; try again in some minutes",
        ),
        ("/api/repos/create", 500, "it answered 500; try again later"),
        ("/variables", 403, "the token may not write there (not today)"),
        ("/tree/", 404, "check the name"),
        ("/commit/", 400, "what was done before is kept, and the same command goes on"),
        ("/commit/", 418, "it answered 418; try again later"),
    ],
)
def test_refusals_are_sentences_and_the_next_try_goes_on(
    hub: Hub, say: Say, part: str, status: int, words: str
) -> None:
    hub.refuse_once[part] = status
    said = say()
    assert said.status == 2
    assert said.error.splitlines()[-1].startswith("error: could not ")
    assert words in said.error
    assert not hub.refuse_once
    assert say().status == 0


def test_a_readme_that_the_hub_refuses_is_one_line(
    hub: Hub, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = "---\nsdk: gradio\ncolorFrom: black\ncolorTo: white\n---\n"
    monkeypatch.setattr(app.deploy.files, "front_matter", lambda *_, **__: block)
    said = say()
    assert said.status == 2
    wrong = "it refused this (colorFrom is wrong colorTo is wrong); what was done before is kept"
    assert wrong in said.error
    assert said.error.count("\n") == 1
    assert hub.spaces[NAME].commits == 1


def test_somebody_elses_name_a_wrong_token_and_none(
    hub: Hub, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "You are not you" in say(space="you/mae").error
    assert "give USER/NAME, such as me/mae" in say(space="mae").error
    assert say().status == 0
    hub.spaces["you/mae"] = hub.spaces[NAME]
    assert "the token may not write there" in say("--variable", "A=b", space="you/mae").error
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "it does not know the token" in say().error
    monkeypatch.setenv("HF_TOKEN", "")
    assert say().error == "error: there is no token; run `hf auth login`, or set HF_TOKEN to one\n"


def test_no_way_to_the_hub_is_a_sentence(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "HF_HUB_OFFLINE is set; unset it" in say().error
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    said = say()
    assert said.status == 2
    assert said.error == (
        "error: could not look for the Space 'me/mae' on http://127.0.0.1:9: it cannot be reached; "
        "check the network\n"
    )


def test_a_space_of_something_else_is_left_alone(hub: Hub, say: Say) -> None:
    assert say().status == 0
    files = hub.spaces[NAME].files
    files.clear()
    files |= {"README.md": b"---\nsdk: gradio\n---\n", "app.py": b"years of work"}
    said = say()
    assert said.status == 2
    assert "holds something else (app.py), which would be deleted" in said.error
    assert files["app.py"] == b"years of work"
    assert hub.spaces[NAME].commits == 2


def test_a_free_account_has_zerogpu(hub: Hub, say: Say) -> None:
    hub.pays = False
    assert "--sdk gradio --hardware zero-a10g" in say("--sdk", "docker").error
    assert say().status == 0
    assert "--sdk gradio --hardware zero-a10g" in say("--hardware", "t4-small").error
    assert hub.spaces[NAME].hardware == "zero-a10g"


def test_a_docker_space_has_its_dockerfile(hub: Hub, say: Say) -> None:
    assert say("--sdk", "docker").status == 0
    space = hub.spaces[NAME]
    assert (space.sdk, space.hardware) == ("docker", "cpu-basic")
    assert {"Dockerfile", ".dockerignore"} <= space.files.keys()
    card = SpaceCard(space.files["README.md"].decode()).data
    assert (card.app_port, card.app_file) == (7860, None)
    assert f"ARG TORCH_INDEX={CPU_TORCH_INDEX}\n".encode() in space.files["Dockerfile"]
    # What it is need not be said again.
    assert "nothing to change" in say().output
    assert "runs Gradio Spaces only" in say("--hardware", "zero-a10g").error
    assert say("--hardware", "t4-small").status == 0
    assert b"ARG TORCH_INDEX=\n" in space.files["Dockerfile"]


@pytest.mark.parametrize(
    "arguments",
    [["--variable", "A"], ["--variable", "1=2"], ["--variable", "MAE_WEIGHTS=x"],
     ["--secret", "a b"], ["--hardware", "abacus"], ["--torch-index", "a b\n"]],
    ids=" ".join,
)  # fmt: skip
def test_mistakes_are_said_before_anything_is_asked(
    hub: Hub, say: Say, arguments: list[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        say(*arguments)
    assert not hub.requests


def test_the_hub_decides_when_free_hardware_sleeps(hub: Hub, say: Say) -> None:
    assert "the hub decides when" in say("--sleep-seconds", "60").error
    assert not hub.spaces


# Static Spaces.


@pytest.fixture
def built(site: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Has the site built once for all; the list gets the weights that each build was asked for."""
    asked: list[tuple[str, ...]] = []

    def lay_out(folder: Path, weights: Sequence[str], *, root: Path) -> None:
        assert root == ROOT
        asked.append(tuple(weights))
        shutil.copytree(site, folder, dirs_exist_ok=True)

    monkeypatch.setattr(app.deploy.files, "lay_out", lay_out)
    return asked


def test_a_static_space_is_the_site_with_a_readme(
    hub: Hub, say: Say, site: Path, built: list[tuple[str, ...]]
) -> None:
    # Any account may have one.
    hub.pays = False
    said = say("--sdk", "static", "--private")
    assert said.status == 0, said.error
    space = hub.spaces[NAME]
    assert (space.sdk, space.hardware, space.private, space.variables) == ("static", None, True, {})
    assert f"{NAME}: static Space\n" in said.output
    assert said.output.endswith(f"RUNNING\nup: {hub.url}/spaces/{NAME}\n")
    # Those of the hub are gone.
    beside = {".gitattributes", "README.md", "docs/panels.png"}
    for name in space.files.keys() - beside:
        assert space.files[name] == (site / name).read_bytes()
    sent = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert space.files.keys() == sent | beside
    card = SpaceCard(space.files["README.md"].decode()).data.to_dict()
    assert (card["sdk"], card["app_file"]) == ("static", "index.html")
    assert card["custom_headers"] == {
        "cross-origin-embedder-policy": "require-corp",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "cross-origin",
    }
    assert not card.keys() & {"suggested_hardware", "preload_from_hub", "python_version"}
    changes = len(hub.changes)
    # What it is need not be said again.
    again = say()
    assert again.status == 0, again.error
    assert "nothing to change" in again.output
    assert len(hub.changes) == changes
    assert built == [(), ()]


@pytest.mark.usefixtures("all_files")
def test_a_space_may_become_static_and_back(
    hub: Hub, say: Say, built: list[tuple[str, ...]]
) -> None:
    assert say("--weights", "mae-tiny", "--variable", "MAE_FETCH=none").status == 0
    space = hub.spaces[NAME]
    said = say("--sdk", "static", "--weights", "mae-tiny")
    assert said.status == 0, said.error
    assert built == [("mae-tiny",)]
    assert space.sdk == "static"
    assert "mae_core/__init__.py" not in space.files
    # Others of it are not ours to remove.
    assert space.variables == {"MAE_FETCH": "none"}
    assert say("--sdk", "gradio").status == 0
    assert (space.sdk, space.hardware) == ("gradio", "zero-a10g")
    assert space.files.keys() == files_of().keys() | {".gitattributes"}


def test_a_dry_run_shows_the_files_of_a_static_space(
    hub: Hub, say: Say, site: Path, built: list[tuple[str, ...]]
) -> None:
    said = say("--sdk", "static", "--dry-run", "--weights", "a,b")
    assert said.status == 0
    assert not hub.requests
    assert built == [("a", "b")]
    assert "sdk: static" in said.output
    assert f"{(site / 'web/page.js').stat().st_size:,}  web/page.js\n" in said.output


@pytest.mark.parametrize(
    "given",
    [["--hardware", "cpu-basic"], ["--variable", "A=b"], ["--secret", "READER"],
     ["--sleep-seconds", "60"], ["--torch-index", "https://example.org"]],
    ids=lambda given: given[0],
)  # fmt: skip
def test_a_static_space_has_nothing_of_a_program(
    hub: Hub, say: Say, monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    monkeypatch.setenv("READER", SECRET)
    said = say("--sdk", "static", *given)
    assert said.status == 2
    assert f"takes no {given[0]}; leave it out, or give another --sdk" in said.error
    assert not hub.spaces


def test_somebodys_static_page_is_left_alone(
    hub: Hub, say: Say, built: list[tuple[str, ...]]
) -> None:
    # Of a run that ended there, the Space is as the hub made it.
    hub.refuse_once["/commit/"] = 500
    assert say("--sdk", "static").status == 2
    assert hub.spaces[NAME].files.keys() >= {"index.html", "style.css"}
    assert say("--sdk", "static").status == 0
    space = hub.spaces[NAME]
    space.files.clear()
    space.files |= {"README.md": b"---\nsdk: static\n---\n", "index.html": b"years of work"}
    said = say()
    assert "holds something else (index.html), which would be deleted" in said.error
    assert space.files["index.html"] == b"years of work"


# Files.


def test_all_that_git_tracks_of_the_page_is_sent_and_nothing_else() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "app", "mae_core", "weights"],
        cwd=ROOT, capture_output=True, check=True,
    ).stdout.decode().split("\0")  # fmt: skip
    known = {name for name in listed if (ROOT / name).is_file()}
    beside = {"LICENSE", "README.md", "requirements.txt", "docs/panels.png"}
    ours = {name for name in known if not name.startswith("app/deploy/")} | beside
    assert set(files_of(hardware="cpu-basic")) == ours


def test_what_lies_about_is_not_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "project"
    # In a folder and with a suffix that nobody has heard of.
    expected = files_of("docker", "cpu-basic") | {"app/new/deep/texts.unheard": b"tracked"}
    write(root, expected)
    with pytest.raises(ConfigError, match="git does not say which files are the project's"):
        files_of("docker", "cpu-basic", root=root)
    for command in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    lying = [
        ".env", "app/.env", "app/.ui.py", "app/notes.txt", "app/page/build.py~", "app/new.py",
        "app/__pycache__/ui.pyc", "app/.hidden/ui.py", "mae_core/.cache/x.py", "mae_core/mine.pt",
        "runs/quick/weights.safetensors", "weights/mine.safetensors", "app/assets/mine.jpg",
        "app/assets/examples/.mine.jpg", "docs/notes.md", "tests/test_x.py", "token",
    ]  # fmt: skip
    write(root, dict.fromkeys(lying, b"secret"))
    with caplog.at_level(logging.INFO):
        assert files_of("docker", "cpu-basic", root=root) == expected
    assert ["not sent, as git does not track it: " in line for line in caplog.messages] == [True]
    assert "app/new.py" in caplog.text
    (root / "LICENSE").unlink()
    with pytest.raises(ConfigError, match="LICENSE is missing; restore it"):
        files_of("docker", "cpu-basic", root=root)


def requirements_of(hardware: str, index: str | None = None) -> str:
    return files_of("gradio", hardware, index)["requirements.txt"].decode()


def test_each_hardware_gets_the_torch_that_it_takes() -> None:
    plain = (ROOT / "requirements.txt").read_text()
    assert requirements_of("t4-small") == plain
    on_cpu = f"--extra-index-url {CPU_TORCH_INDEX}\n{plain}"
    assert requirements_of("cpu-basic") == on_cpu
    own = requirements_of("cpu-upgrade", "https://example.org/simple")
    assert own == f"--extra-index-url https://example.org/simple\n{plain}"
    zero = requirements_of("zero-a10g")
    assert zero == (ROOT / "requirements-zerogpu.txt").read_text()


def pins(name: str) -> set[str]:
    lines = (ROOT / name).read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def test_zerogpu_differs_in_its_torch_only() -> None:
    theirs, ours = pins("requirements-zerogpu.txt"), pins("requirements.txt")
    assert {line.split("==")[0] for line in theirs - ours} == {"spaces", "torch", "torchvision"}
    assert {line.split("==")[0] for line in ours - theirs} == {"torch", "torchvision"}


@pytest.mark.parametrize("sdk", ["gradio", "docker"])
def test_the_hub_reads_the_front_matter(sdk: str) -> None:
    block = front_matter("gradio==1.2.3\n", sdk=sdk, preload=["a/b c,d"], models=["a/b"])
    card = SpaceCard(block + "\n# Title\n").data.to_dict()
    assert (card["sdk"], card["license"], card["models"]) == (sdk, "apache-2.0", ["a/b"])
    assert len(card["short_description"]) <= 60
    assert card["preload_from_hub"] == ["a/b c,d"]
    assert card["disable_embedding"] is False
    if sdk == "gradio":
        # As text: 3.10 as a number would be 3.1.
        started = (card["sdk_version"], card["python_version"], card["app_file"])
        assert started == ("1.2.3", "3.12", "app/space.py")
        assert (ROOT / card["app_file"]).is_file()
    with pytest.raises(ConfigError, match="pins no gradio"):
        front_matter("gradio>=6\n")


def test_the_projects_own_readme_has_the_front_matter_of_a_space() -> None:
    block = front_matter((ROOT / "requirements.txt").read_text())
    readme = (ROOT / "README.md").read_text()
    assert readme.startswith(block)
    assert SpaceCard(readme).data.to_dict() == SpaceCard(block).data.to_dict()
    sent = space_readme(readme, "---\nsdk: docker\n---\n")
    assert sent == readme.replace(block, "---\nsdk: docker\n---\n")


# Weights.


def test_published_weights_are_preloaded_or_fetched_later(hub: Hub, say: Say) -> None:
    there = ("config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "README.md")
    hub.publish("facebook/vit-mae-base", dict.fromkeys(there, b""))
    said = say("--weights", "vit-mae-base,mae-tiny,mae-base-visualize")
    assert said.status == 0
    space = hub.spaces[NAME]
    assert space.variables == {"MAE_WEIGHTS": "vit-mae-base,mae-tiny,mae-base-visualize"}
    card = SpaceCard(space.files["README.md"].decode()).data.to_dict()
    # No other file of the repository.
    preloaded = ["facebook/vit-mae-base config.json,model.safetensors"]
    assert card["preload_from_hub"] == preloaded
    assert card["models"] == ["facebook/vit-mae-base"]
    assert (
        "fetched once the page is up, which says so meanwhile: mae-base-visualize\n" in said.output
    )
    assert "weights/mae-tiny.safetensors" in space.files
    # Without --weights they are gone again.
    assert say().status == 0
    assert space.variables == {}
    assert "preload_from_hub" not in space.files["README.md"].decode()


def test_ones_own_file_and_run_are_sent_as_one_file_each(
    hub: Hub, say: Say, tmp_path: Path
) -> None:
    model = small_reconstructor().model
    run = tmp_path / "roses, red"
    run.mkdir()
    save_weights(run / "weights.safetensors", model, record={})
    save_weights(tmp_path / "mine.safetensors", model, record={})
    (tmp_path / "linked").symlink_to(run)
    assert say("--weights", f"{tmp_path / 'linked'},{tmp_path / 'mine.safetensors'}").status == 0
    space = hub.spaces[NAME]
    own = "weights/roses-red.safetensors"
    assert space.variables == {"MAE_WEIGHTS": f"{own},weights/mine.safetensors"}
    assert space.files[own] == (run / "weights.safetensors").read_bytes()
    again = say("--weights", f"{tmp_path / 'linked'},{tmp_path / 'mine.safetensors'}")
    assert "nothing to change" in again.output


def test_weights_that_a_space_cannot_show_are_refused(hub: Hub, tmp_path: Path) -> None:
    def refused(*sources: str) -> str:
        with pytest.raises(MAEError) as caught:
            choose_weights(sources)
        return str(caught.value)

    hub.publish("me/nothing", {"README.md": b"", "tf_model.h5": b""})
    # Anybody may have made it, so the page reads no torch file of it.
    hub.publish("me/torch", {"config.json": b"{}", "pytorch_model.bin": b""})
    (tmp_path / "run").mkdir()
    save_step(tmp_path / "run", 3)
    assert "is not finished; start the same training command" in refused(str(tmp_path / "run"))
    assert "has no decoder (encoder)" in refused("mae-base-pretrain")
    assert "has no weights that are read here" in refused("me/nothing")
    assert "has no weights that are read here" in refused("me/torch")
    assert "could not look for weights in 'me/none' on " in refused("me/none")
    assert "given twice" in refused("mae-tiny", "mae-tiny")
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    assert "is more than one file; make one of it first" in refused(str(folder))
    (tmp_path / "mae-tiny.safetensors").write_bytes(b"damaged")
    assert "safetensors" in refused(str(tmp_path / "mae-tiny.safetensors"))
    save_weights(tmp_path / "mae-tiny.safetensors", small_reconstructor().model, record={})
    assert "there already are weights called" in refused(str(tmp_path / "mae-tiny.safetensors"))
