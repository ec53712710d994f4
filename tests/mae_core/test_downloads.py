"""Downloads, against servers of our own with every bad habit; the real ones were not asked."""

import hashlib
import json
import logging
import os
import random
import shutil
import socket
import ssl
import subprocess
from collections import namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import close_session, constants, scan_cache_dir, try_to_load_from_cache

from mae_core.errors import DownloadError
from mae_core.weights import hub
from mae_core.weights.hub import (
    RemoteFile,
    checkpoints_folder,
    choose_files,
    fetch_file,
    fetch_repository,
    find_repository,
    is_repository,
    shown_bytes,
    terminal_bar,
)
from tests.downloading import CLOSED, Seen, isolate, use_hub
from tests.file_server import FileServer, running_file_server
from tests.hub import TOKEN, Hub, running_hub

DATA = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(250_000)
# Bytes are written in pieces of 64 KiB.
CUT = 2 * 2**16

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with running_file_server() as server:
        server.files["a/model.pth"] = DATA
        yield server


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as running:
        use_hub(monkeypatch, running.url)
        running.publish("me/flowers", {
            "config.json": b"{}", "model.safetensors": DATA, "README.md": b"hello",
            "modeling.py": b"raise SystemExit", "tf_model.h5": b"h", "pytorch_model.bin": OTHER,
        })  # fmt: skip
        yield running


def remote(server: FileServer, **known: Any) -> RemoteFile:
    return RemoteFile(f"{server.url}/a/model.pth", checkpoints_folder() / "model.pth", **known)


def fetch(server: FileServer, **known: Any) -> bytes:
    return fetch_file(remote(server, **known), progress=Seen()).read_bytes()


def refusal(action: Callable[[], object]) -> str:
    """The sentence of a download that fails."""
    with pytest.raises(DownloadError) as caught:
        action()
    sentence = str(caught.value)
    assert sentence
    assert "\n" not in sentence
    assert len(sentence) < 400
    return sentence


def left() -> list[str]:
    """What is in the cache, whole or not; who waits for whom is no matter here."""
    folder = checkpoints_folder()
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(name for name in names if not name.endswith(".lock"))


def test_a_file_comes_whole_once_and_leaves_nothing_beside_it(server: FileServer) -> None:
    seen = Seen()
    digests = {"sha256": hashlib.sha256(DATA).hexdigest(), "md5_prefix": md5(DATA)[:6]}
    file = remote(server, bytes=len(DATA), **digests)
    assert fetch_file(file, progress=seen) == file.path
    assert file.path.read_bytes() == DATA
    assert left() == ["model.pth"]
    assert (seen.calls[0], seen.calls[-1]) == ((0, len(DATA)), (len(DATA), len(DATA)))
    assert seen.calls == sorted(seen.calls)
    fetch_file(file, progress=seen)
    assert server.sent == [len(DATA)]


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def test_a_cut_is_gone_on_with_from_where_it_was(server: FileServer) -> None:
    server.habits.cuts = [CUT, 2**16]
    assert fetch(server) == DATA
    assert [request.asked for request in server.downloads] == [
        None, f"bytes={CUT}-", f"bytes={CUT + 2**16}-",
    ]  # fmt: skip
    assert sum(server.sent) == len(DATA)


# What the client gives up after: it resumes five times in a row without a new byte.
GIVEN_UP = [CUT, *[0] * 6]


def partial() -> Path:
    (path,) = checkpoints_folder().glob("model.pth.*.partial")
    return path


def test_the_next_download_goes_on_where_the_last_was_given_up(server: FileServer) -> None:
    server.habits.cuts = [*GIVEN_UP]
    sentence = refusal(lambda: fetch(server))
    assert sentence.endswith("the connection was cut; try again")
    assert left() == [partial().name]
    assert partial().stat().st_size == CUT
    assert fetch(server) == DATA
    assert sum(server.sent) == len(DATA)
    assert left() == ["model.pth"]


def test_who_stops_a_download_can_go_on_with_it(server: FileServer) -> None:
    with pytest.raises(KeyboardInterrupt):
        fetch_file(remote(server), progress=Seen(stop_after=CUT + 1))
    assert partial().stat().st_size == CUT
    assert fetch(server) == DATA
    assert server.downloads[-1].asked == f"bytes={CUT}-"


def test_a_whole_file_that_was_not_named_yet_is_not_asked_for_again(server: FileServer) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_file(remote(server), progress=Seen(), check=interrupt)
    assert fetch(server) == DATA
    assert server.sent == [len(DATA)]


@pytest.mark.parametrize("changes", [
    {}, {"ranges": False}, {"careless": True}, {"tagged": False},
    {"tagged": False, "careless": True},
])  # fmt: skip
def test_another_version_on_the_server_is_never_mixed_in(
    server: FileServer, changes: dict[str, Any]
) -> None:
    server.habits.__dict__.update(changes)
    server.habits.cuts = [*GIVEN_UP]
    refusal(lambda: fetch(server))
    server.files["a/model.pth"] = OTHER
    server.habits.cuts = []
    assert fetch(server) == OTHER
    assert left() == ["model.pth"]


@pytest.mark.parametrize("changes", [{"ranges": False}, {"tagged": False}])
def test_a_server_without_parts_sends_the_whole_again(
    server: FileServer, changes: dict[str, Any]
) -> None:
    server.habits.__dict__.update(changes)
    server.habits.cuts = [CUT]
    assert fetch(server) == DATA
    assert server.sent == [CUT, len(DATA)]


def test_what_another_address_left_is_not_gone_on_with(server: FileServer) -> None:
    server.habits.cuts = [*GIVEN_UP]
    refusal(lambda: fetch(server))
    server.files["b/model.pth"] = DATA
    file = RemoteFile(f"{server.url}/b/model.pth", checkpoints_folder() / "model.pth")
    fetch_file(file, progress=Seen())
    assert server.downloads[-1].asked is None


def test_a_length_that_nobody_tells_is_no_hindrance(server: FileServer) -> None:
    server.habits.told_length = False
    seen = Seen()
    assert fetch_file(remote(server), progress=seen).read_bytes() == DATA
    assert seen.calls[0] == (0, None)
    assert seen.calls[-1] == (len(DATA), len(DATA))


@pytest.mark.parametrize(("known", "reason"), [
    ({"sha256": hashlib.sha256(DATA).hexdigest()}, "its SHA256 is not the published one"),
    ({"md5_prefix": md5(DATA)[:6]}, "its MD5 is not the published one"),
])  # fmt: skip
def test_what_is_not_the_published_file_is_removed(
    server: FileServer, known: dict[str, str], reason: str
) -> None:
    server.habits.corrupt = True
    sentence = refusal(lambda: fetch(server, **known))
    assert sentence.startswith(f"what 127.0.0.1 sent as model.pth was removed: {reason}")
    assert left() == []
    server.habits.corrupt = False
    assert fetch(server, **known) == DATA


def test_what_a_check_refuses_is_removed(server: FileServer) -> None:
    def check(path: Path) -> None:
        assert path.read_bytes() == DATA
        raise ValueError("no weights")

    with pytest.raises(ValueError, match="no weights"):
        fetch_file(remote(server), progress=Seen(), check=check)
    assert left() == []


def test_a_file_of_another_size_is_refused_before_it_comes(server: FileServer) -> None:
    sentence = refusal(lambda: fetch(server, bytes=5))
    assert "of 300,000 bytes rather than 5" in sentence
    assert server.downloads == []
    server.habits.told_length = False
    assert "is larger than 5 bytes" in refusal(lambda: fetch(server, bytes=5))
    assert partial().stat().st_size == 0


@pytest.mark.parametrize("told_length", [True, False])
def test_nothing_endless_is_fetched(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, told_length: bool
) -> None:
    monkeypatch.setattr(hub, "MAX_BYTES", 150_000)
    server.habits.told_length = told_length
    words = "needs 0.3 MiB more" if told_length else "is larger than 150,000"
    assert words in refusal(lambda: fetch(server))
    assert sum((checkpoints_folder() / name).stat().st_size for name in left()) <= 150_000


@pytest.mark.parametrize(("status", "words"), [
    (401, "hf auth login"), (403, "hf auth login"), (404, "not for everybody (404)"),
    (418, "it answered 418"), (503, "it answered 503; try again later"),
])  # fmt: skip
def test_refusals_are_said_and_not_repeated(server: FileServer, status: int, words: str) -> None:
    server.habits.statuses = [status, status]
    sentence = refusal(lambda: fetch(server))
    assert sentence.startswith("could not fetch model.pth from 127.0.0.1: ")
    assert words in sentence
    assert len(server.heads) == 1


@pytest.mark.parametrize("body", [False, True])
def test_a_silent_server_is_given_up(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, body: bool
) -> None:
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 60 if body else 0.2)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    # Whether it is silent from the start, or once it has told which file it has.
    server.habits.silent, server.habits.silent_heads = (99, 0) if body else (0, 99)
    assert refusal(lambda: fetch(server)).endswith(
        "it fell silent; check the network and try again"
    )


def test_a_server_that_nobody_reaches_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    file = RemoteFile(f"{CLOSED}/model.pth", checkpoints_folder() / "model.pth")
    sentence = refusal(lambda: fetch_file(file, progress=Seen()))
    assert sentence.endswith("it cannot be reached; check the network")

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    file = RemoteFile("https://weights.example/model.pth", checkpoints_folder() / "model.pth")
    sentence = refusal(lambda: fetch_file(file, progress=Seen()))
    assert sentence.endswith("its name was not found; check the network")


def test_a_connection_that_nobody_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object, **__: object) -> None:
        raise httpx2.ConnectTimeout("")

    monkeypatch.setattr(httpx2.HTTPTransport, "handle_request", silent)
    file = RemoteFile("https://weights.example/model.pth", checkpoints_folder() / "model.pth")
    assert "it fell silent; check the network" in refusal(lambda: fetch_file(file, progress=Seen()))


def test_a_disk_without_room_is_noticed_before(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, len(DATA) - 1))
    assert "needs 0.3 MiB more; 0.3 MiB are free" in refusal(lambda: fetch(server))
    # What is there already needs no room.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, len(DATA)))
    server.habits.cuts = [*GIVEN_UP]
    refusal(lambda: fetch(server))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, len(DATA) - CUT))
    assert fetch(server) == DATA


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_fills_up_is_said(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open
    with monkeypatch.context() as patch:
        # The kernel's own answer to a write.
        patch.setattr(
            Path, "open", lambda path, mode, **options: opened(Path("/dev/full"), mode, **options)
        )
        sentence = refusal(lambda: fetch(server))
    assert sentence.startswith("could not store model.pth: No space left on device; check")
    assert fetch(server) == DATA


def test_a_cache_that_cannot_be_written_is_said(server: FileServer) -> None:
    checkpoints_folder().parent.mkdir(parents=True)
    checkpoints_folder().write_text("no folder")
    assert "could not store model.pth: File exists; check" in refusal(lambda: fetch(server))


def test_offline_means_offline(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(server)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    # What is here is used.
    assert fetch(server) == DATA
    (checkpoints_folder() / "model.pth").unlink()
    assert "HF_HUB_OFFLINE is set" in refusal(lambda: fetch(server))
    assert "me/flowers" in refusal(lambda: fetch_repository("me/flowers", progress=Seen()))
    assert len(server.downloads) == 1


def test_two_at_once_ask_once_and_both_see_it_come(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_WAIT_SECONDS", 0.05)
    server.gate.clear()
    first, second = Seen(), Seen()
    with ThreadPoolExecutor(2) as pool:
        fetching = [pool.submit(fetch_file, remote(server), progress=first)]
        assert first.started.wait(240)
        fetching.append(pool.submit(fetch_file, remote(server), progress=second))
        assert second.started.wait(240)
        server.gate.set()
        assert [one.result().read_bytes() for one in fetching] == [DATA] * 2
    assert server.sent == [len(DATA)]
    assert second.calls
    assert all(total == len(DATA) for _, total in second.calls)


def test_only_safe_addresses_are_asked(server: FileServer) -> None:
    for url in ("http://weights.example/x", "ftp://127.0.0.1/x", "file:///etc/passwd"):
        file = RemoteFile(url, checkpoints_folder() / "x")
        assert "it must be https" in refusal(lambda file=file: fetch_file(file, progress=Seen()))
    server.habits.redirects = ["http://weights.example/x"]
    assert "weights.example is not asked over http" in refusal(lambda: fetch(server))
    server.habits.redirects = [f"{server.url}/a/model.pth"] * 50
    assert "makes no sense" in refusal(lambda: fetch(server))
    server.habits.redirects = [f"{server.url}/a/model.pth"]
    assert fetch(server) == DATA


def test_compressed_content_that_is_none_is_refused(server: FileServer) -> None:
    server.habits.packed = True
    assert "makes no sense" in refusal(lambda: fetch(server))


def test_nothing_of_a_download_is_logged(
    server: FileServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monitored = logging.getLogger("huggingface_hub")
    monitored.addHandler(caplog.handler)
    try:
        server.habits.cuts = [*GIVEN_UP]
        refusal(lambda: fetch(server))
    finally:
        monitored.removeHandler(caplog.handler)
    # Addresses may be signed.
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that nobody trusts, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate")
    files = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-out", str(files[0]),
         "-keyout", str(files[1])],
        check=True, capture_output=True,
    )  # fmt: skip
    return files


def test_https_needs_a_certificate_and_never_leads_out_of_it(
    server: FileServer, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.url = server.url.replace("http:", "https:")
    close_session()
    assert "its certificate was not accepted" in refusal(lambda: fetch(server))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    close_session()
    server.habits.redirects = [f"{CLOSED}/a/model.pth"]
    assert "127.0.0.1 is not asked over http" in refusal(lambda: fetch(server))
    assert fetch(server) == DATA
    # The next test's client does not trust it.
    close_session()


def hub_files(fake: Hub) -> list[str]:
    return [request.path.rsplit("/", 1)[-1] for request in fake.downloads]


def test_of_a_repository_only_weights_and_configs_come(fake_hub: Hub) -> None:
    assert find_repository("me/flowers") is None
    seen = Seen()
    folder = fetch_repository("me/flowers", progress=seen)
    assert hub_files(fake_hub) == ["config.json", "model.safetensors"]
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == DATA
    total = len(DATA) + 2
    assert seen.calls[-1] == (total, total)
    assert {call[1] for call in seen.calls} == {total}
    assert find_repository("me/flowers") == folder


def test_other_tools_find_what_was_fetched(fake_hub: Hub) -> None:
    folder = fetch_repository("me/flowers", progress=Seen())
    found = try_to_load_from_cache("me/flowers", "model.safetensors", constants.HF_HUB_CACHE)
    assert found == str(folder / "model.safetensors")
    cache = scan_cache_dir(constants.HF_HUB_CACHE)
    assert [repo.repo_id for repo in cache.repos] == ["me/flowers"]
    assert not cache.warnings


def test_what_was_fetched_is_not_fetched_again_but_what_is_new_is(fake_hub: Hub) -> None:
    fetch_repository("me/flowers", progress=Seen())
    fake_hub.publish("me/flowers", {"config.json": b'{"new": 1}'})
    folder = fetch_repository("me/flowers", progress=Seen())
    assert hub_files(fake_hub) == ["config.json", "model.safetensors", "config.json"]
    assert (folder / "config.json").read_bytes() == b'{"new": 1}'
    assert find_repository("me/flowers") == folder


def test_a_cut_download_of_a_repository_is_resumed_or_nothing(fake_hub: Hub) -> None:
    fake_hub.habits.cuts = [9, *GIVEN_UP]
    sentence = refusal(lambda: fetch_repository("me/flowers", progress=Seen()))
    assert sentence.startswith("could not fetch model.safetensors of me/flowers from 127.0.0.1")
    assert find_repository("me/flowers") is None
    fake_hub.habits.cuts = [CUT]
    folder = fetch_repository("me/flowers", progress=Seen())
    assert (folder / "model.safetensors").read_bytes() == DATA
    assert find_repository("me/flowers") == folder


def test_a_progress_that_raises_ends_the_download_of_a_repository(fake_hub: Hub) -> None:
    class LeftError(Exception):
        pass

    def progress(done: int, total: int | None) -> None:
        if done > 2:
            raise LeftError

    with pytest.raises(LeftError):
        fetch_repository("me/flowers", progress=progress)
    assert find_repository("me/flowers") is None
    assert constants.HF_HUB_DISABLE_XET is False


def test_what_the_hub_lists_is_what_has_to_come(fake_hub: Hub) -> None:
    fake_hub.habits.corrupt = True
    sentence = refusal(lambda: fetch_repository("me/flowers", progress=Seen()))
    assert "its SHA256 is not the published one" in sentence
    assert find_repository("me/flowers") is None


def test_a_repository_whose_content_is_refused_is_removed(fake_hub: Hub) -> None:
    def check(folder: Path) -> None:
        assert (folder / "model.safetensors").read_bytes() == DATA
        raise ValueError("no weights")

    with pytest.raises(ValueError, match="no weights"):
        fetch_repository("me/flowers", progress=Seen(), check=check)
    assert find_repository("me/flowers") is None
    files = [path.name for path in Path(constants.HF_HUB_CACHE).rglob("*") if path.is_file()]
    assert [name for name in files if not name.endswith(".lock")] == ["CACHEDIR.TAG"]


def test_a_token_goes_to_the_hub_and_nowhere_else(
    fake_hub: Hub, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.gated.add("me/flowers")
    sentence = refusal(lambda: fetch_repository("me/flowers", progress=Seen()))
    assert "accept its terms on its page" in sentence
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.files["store"] = DATA
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    with pytest.raises(DownloadError, match="accept its terms"):
        fetch_repository("me/flowers", progress=Seen(), account=False)
    fake_hub.heads.clear()
    fake_hub.publish("me/flowers", {"config.json": b""})
    fake_hub.habits.redirects = [f"{elsewhere}/empty", f"{elsewhere}/store"]
    server.files["empty"] = b""
    folder = fetch_repository("me/flowers", progress=Seen())
    assert (folder / "model.safetensors").read_bytes() == DATA
    assert [request.authorization for request in fake_hub.heads] == [f"Bearer {TOKEN}"] * 2
    assert fake_hub.downloads == []
    # Of an empty file, nothing is asked for.
    assert [request.authorization for request in server.downloads] == [None]


def test_no_sentence_has_the_token(fake_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fake_hub.refuse_once["resolve"] = 403
    assert TOKEN not in refusal(lambda: fetch_repository("me/flowers", progress=Seen()))
    fake_hub.refuse_once["api"] = 403
    assert TOKEN not in refusal(lambda: fetch_repository("me/flowers", progress=Seen()))


def test_refusals_of_the_hub_are_sentences(fake_hub: Hub) -> None:
    def sentence(repo_id: str) -> str:
        return refusal(lambda: fetch_repository(repo_id, progress=Seen()))

    assert "it is not there, or not for everybody" in sentence("me/nothing")
    fake_hub.publish("me/text", {"README.md": b"hello", "weights/model.safetensors": DATA})
    assert "me/text has no weights that are read from there" in sentence("me/text")
    fake_hub.refuse_once["api/models/me/text"] = 403
    assert "needs an account" in sentence("me/text")
    fake_hub.refuse_once["api/models/me/text"] = 503
    assert "it answered 503; try again later" in sentence("me/text")


@pytest.mark.parametrize("lies", [
    {"sha": "../../../../evil"}, {"sha": None},
    {"siblings": [{"rfilename": "model.safetensors", "size": -5, "blobId": "0" * 40}]},
    {"siblings": [{"rfilename": "model.safetensors", "blobId": "0" * 40}]},
    {"siblings": [{"rfilename": "model.safetensors", "size": 5, "lfs": {"size": 5}}]},
    {"siblings": [{"size": 5}]}, {"siblings": 7},
])  # fmt: skip
def test_a_listing_that_lies_about_names_or_sizes_is_refused(
    fake_hub: Hub, lies: dict[str, Any], tmp_path: Path
) -> None:
    fake_hub.listed["me/flowers"] = lies
    sentence = refusal(lambda: fetch_repository("me/flowers", progress=Seen()))
    assert "makes no sense; check HF_ENDPOINT" in sentence
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_repositories_that_are_too_large_or_do_not_fit_are_refused(
    fake_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sibling = {"rfilename": "model.safetensors", "size": 17 * 2**30, "blobId": "0" * 40}
    fake_hub.listed["me/flowers"] = {"siblings": [sibling]}
    sentence = refusal(lambda: fetch_repository("me/flowers", progress=Seen()))
    assert "at most 16.00 GiB are fetched" in sentence
    fake_hub.listed.clear()
    # Enough for each file, not for both.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, len(DATA) + 1))
    sentence = refusal(lambda: fetch_repository("me/flowers", progress=Seen()))
    assert sentence.startswith("me/flowers needs 0.3 MiB more")
    assert fake_hub.downloads == []


def test_a_hub_that_is_none_or_not_there_is_said(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sentence() -> str:
        return refusal(lambda: fetch_repository("me/flowers", progress=Seen()))

    assert "from 127.0.0.1: it cannot be reached" in sentence()
    use_hub(monkeypatch, server.url)
    server.files["api/models/me/flowers?blobs=true"] = b"<html>hello"
    assert "makes no sense; check HF_ENDPOINT" in sentence()
    use_hub(monkeypatch, "http://hub.example")
    assert "hub.example is not asked over http" in sentence()


def test_half_a_repository_in_the_cache_is_none(fake_hub: Hub) -> None:
    folder = fetch_repository("me/flowers", progress=Seen())
    blob = (folder / "model.safetensors").resolve()
    blob.unlink()
    assert find_repository("me/flowers") is None


SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(("names", "chosen"), [
    (["pytorch_model.bin", "model.safetensors", "x.py"], ["model.safetensors"]),
    (["pytorch_model.bin", "tf_model.h5", "flax.msgpack"], ["pytorch_model.bin"]),
    (["weights.safetensors", "model.safetensors"], ["weights.safetensors"]),
    (["mine.safetensors", "README.md"], ["mine.safetensors"]),
    (["one.safetensors", "two.safetensors"], []),
    (["one.safetensors", "two.safetensors", "pytorch_model.bin"], ["pytorch_model.bin"]),
    ([INDEX, *SHARDS], [INDEX, *SHARDS]),
    ([INDEX, *SHARDS[:2], "pytorch_model.bin"], ["pytorch_model.bin"]),
    (SHARDS, []),
    ([INDEX], []),
    (["sub/model.safetensors", "../model.safetensors", "a/../../x.safetensors"], []),
    (["model.pkl", "config.json"], []),
    (["preprocessor_config.json", "model.safetensors", "config.json"],
     ["config.json", "preprocessor_config.json", "model.safetensors"]),
])  # fmt: skip
def test_files_are_chosen_by_name(names: list[str], chosen: list[str]) -> None:
    assert list(choose_files(names)) == chosen


def test_shards_come_together(fake_hub: Hub) -> None:
    files = {name: name.encode() for name in SHARDS}
    fake_hub.publish("me/large", {INDEX: json.dumps({"weight_map": {}}).encode(), **files})
    folder = fetch_repository("me/large", progress=Seen())
    assert sorted(os.listdir(folder)) == sorted([INDEX, *SHARDS])
    assert find_repository("me/large") == folder


def test_whole_shards_of_a_cut_download_are_kept(fake_hub: Hub) -> None:
    files = {name: DATA + name.encode() for name in SHARDS}
    fake_hub.publish("me/large", {INDEX: json.dumps({"weight_map": {}}).encode(), **files})
    fake_hub.habits.cuts = [10**9, 10**9, *GIVEN_UP]
    refusal(lambda: fetch_repository("me/large", progress=Seen()))
    assert find_repository("me/large") is None
    fake_hub.downloads.clear()
    fake_hub.habits.cuts = []
    fetch_repository("me/large", progress=Seen())
    assert hub_files(fake_hub) == SHARDS[1:]


def test_names_of_repositories_are_told_from_others() -> None:
    for name in ("me/flowers", "facebook/vit-mae-base", "timm/vit_base_patch16_224.mae", "a/b"):
        assert is_repository(name), name
    for name in ("flowers", "a/b/c", "/a", "a/", "../b", "a/..", "./a", "a/b c", "a/ä", "a/x--y",
                 "a/b\n", "a/b.", "a/b-", "a/b.git", "-a/b", "", "~/a", "a\\b", "http://x/y",
                 "a/" + "b" * 200):  # fmt: skip
        assert not is_repository(name), name


def test_sizes_are_shown_as_people_read_them() -> None:
    assert shown_bytes(13_918_816) == "13.3 MiB"
    assert shown_bytes(1_318_315_181) == "1.23 GiB"


def test_the_bar_follows_a_download_that_starts_again(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal_bar("weights") as progress:
        for done in (50, 100, 0, 200):
            progress(done, 200)
    # No terminal, no bar.
    assert capsys.readouterr().err == ""
