import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mae_core.weights.registry
from mae_core.config import ModelConfig, to_dict
from mae_core.errors import CheckpointError, DownloadError
from mae_core.model.mae import MaskedAutoencoder
from mae_core.weights.export import write_huggingface, write_official
from mae_core.weights.files import (
    CHECKPOINT_FILE,
    PREVIOUS_CHECKPOINT_FILE,
    main_file,
    save_checkpoint,
)
from mae_core.weights.formats import Hints, Kind, Weights, read_file, save_weights
from mae_core.weights.hub import checkpoints_folder
from mae_core.weights.registry import (
    DEFAULT_WEIGHTS,
    WeightsEntry,
    find,
    list_weights,
    load,
    locate,
    read_weights,
    weights_name,
)
from tests.downloading import Seen, isolate, use_hub
from tests.file_server import FileServer, running_file_server
from tests.hub import Hub, running_hub

SIZES = {
    "base": ModelConfig(),
    "large": ModelConfig(embed_dim=1024, depth=24, num_heads=16),
    "huge": ModelConfig(patch_size=14, embed_dim=1280, depth=32, num_heads=16),
}


@pytest.fixture
def folder(small_model: MaskedAutoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights folder with one entry, `mine`."""
    path = tmp_path / "mine.safetensors"
    save_weights(path, small_model, record={})
    entry = {
        "name": "mine", "file": path.name, "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licence": "Apache-2.0", "summary": "random weights", "kind": "autoencoder",
        "format": "mae_core", "target": "pixels", "parameters": 1,
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps([entry]))
    monkeypatch.setattr(mae_core.weights.registry, "WEIGHTS_FOLDER", tmp_path)
    return tmp_path


def test_names_files_and_run_folders_lead_to_weights(folder: Path) -> None:
    assert locate("mine") == folder / "mine.safetensors"
    assert locate(folder / "mine.safetensors") == folder / "mine.safetensors"
    run = folder / "run"
    run.mkdir()
    (run / "weights.safetensors").write_bytes((folder / "mine.safetensors").read_bytes())
    assert locate(run) == run / "weights.safetensors"
    names = [weights_name(value) for value in ("mine", run, run / "weights.safetensors")]
    assert names == ["mine", "run", "run"]
    assert load("mine").name == "mine"


def test_unknown_weights_are_refused_with_the_names_there_are(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="'yours' is neither .*`mae fetch` lists the names"):
        locate("yours")
    with pytest.raises(CheckpointError, match=DEFAULT_WEIGHTS):
        locate()


def test_a_changed_or_missing_bundled_file_is_refused(folder: Path) -> None:
    path = folder / "mine.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(
        CheckpointError, match="not the file that the manifest describes as 'mine': its SHA256"
    ):
        locate("mine")
    path.unlink()
    with pytest.raises(CheckpointError, match="describes as 'mine': it is missing; restore"):
        locate("mine")


def test_a_damaged_manifest_is_refused(folder: Path) -> None:
    (folder / "manifest.json").write_text("[{}]")
    with pytest.raises(CheckpointError, match="manifest.json is missing or damaged"):
        list_weights()


def test_a_running_run_leads_to_its_checkpoint_until_it_is_finished(
    small_model: MaskedAutoencoder, folder: Path
) -> None:
    run = folder / "flowers.v2"
    config = {"model": to_dict(small_model.config), "steps": 9}
    values = {"config": config, "model": small_model.state_dict(), "step": 3, "seconds": 1.0}
    with pytest.raises(CheckpointError, match="neither a file .* or checkpoint.pt"):
        locate(run)
    for _ in range(2):
        save_checkpoint(run / CHECKPOINT_FILE, values)
    assert locate(run) == run / CHECKPOINT_FILE
    # The moment between two saves, or the end of a run killed in it.
    (run / CHECKPOINT_FILE).unlink()
    assert locate(run) == run / PREVIOUS_CHECKPOINT_FILE
    assert read_weights(locate(run)).record["running"]
    save_checkpoint(run / CHECKPOINT_FILE, values)
    save_weights(run / "weights.safetensors", small_model, record={})
    assert locate(run) == run / "weights.safetensors"
    for path in (run, *run.iterdir()):
        assert weights_name(path) == "flowers.v2"


@pytest.mark.parametrize("size", SIZES)
def test_the_manifest_counts_parameters_as_the_models_have_them(size: str) -> None:
    with torch.device("meta"):
        state = MaskedAutoencoder(SIZES[size]).state_dict()
    counts = {
        "autoencoder": sum(tensor.numel() for tensor in state.values()),
        "encoder": sum(
            tensor.numel() for name, tensor in state.items()
            if not name.startswith(("decoder", "mask_token"))
        ),
    }  # fmt: skip
    # A norm of another name, and a matrix and a bias for 1000 classes.
    counts["classifier"] = counts["encoder"] + 1000 * SIZES[size].embed_dim + 1000
    entries = [entry for entry in list_weights().values() if f"-{size}" in entry.name]
    assert {entry.kind for entry in entries} == set(counts)
    for entry in entries:
        assert entry.parameters == counts[entry.kind], entry.name


def test_the_manifest_has_every_published_file_once_and_no_hash_that_nobody_computed() -> None:
    entries = [entry for entry in list_weights().values() if not entry.bundled]
    assert len(entries) == 19
    places = [entry.url or entry.repo for entry in entries]
    assert len(set(places)) == len(places)
    for entry in entries:
        assert entry.sha256 is None
        published = entry.kind == "classifier" or (entry.kind == "encoder" and entry.url)
        assert (entry.md5_prefix is not None) == bool(published), entry.name
        if entry.url:
            assert entry.url.startswith("https://dl.fbaipublicfiles.com/mae/")
            assert entry.bytes is None or 0.99 < entry.bytes / (4 * entry.parameters) < 1.01
    names = {entry.name for entry in entries}
    assert {"mae-large-visualize", "mae-large-gan", "vit-mae-base", "timm-vit-base-mae"} <= names
    assert next(iter(list_weights().values())).bundled


@pytest.fixture
def contents(small_model: MaskedAutoencoder) -> Weights:
    state = {name: tensor.detach() for name, tensor in small_model.state_dict().items()}
    return Weights(small_model.config, state, format="official")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FileServer]:
    isolate(monkeypatch, tmp_path)
    with running_file_server() as server:
        yield server


Publish = Callable[..., None]


@pytest.fixture
def publish(folder: Path, server: FileServer) -> Publish:
    """Makes the manifest have `theirs`, published with a content."""

    def make(data: bytes, kind: Kind = "autoencoder", **known: object) -> None:
        server.files["theirs.pth"] = data
        entry = {
            "name": "theirs", "summary": "", "licence": "CC-BY-NC-4.0", "kind": kind,
            "format": "official", "target": "norm_pix", "parameters": len(data) // 4,
            "url": f"{server.url}/theirs.pth", **known,
        }  # fmt: skip
        mine = json.loads((folder / "manifest.json").read_text())[-1]
        (folder / "manifest.json").write_text(json.dumps([entry, mine]))

    return make


@pytest.fixture
def official(contents: Weights, tmp_path: Path) -> bytes:
    write_official(tmp_path / "official.pth", contents)
    return (tmp_path / "official.pth").read_bytes()


HEADS = Hints(num_heads=2, decoder_num_heads=2)


def test_published_weights_are_fetched_checked_and_read_with_what_is_known_of_them(
    publish: Publish, official: bytes, server: FileServer, contents: Weights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(WeightsEntry, "hints", Hints(2, 2, True, source="registry"))
    publish(official)
    assert list(list_weights()) == ["mine", "theirs"]
    assert find("theirs") is None
    with pytest.raises(CheckpointError, match="`mae fetch theirs`"):
        locate("theirs", fetch=False)
    assert server.downloads == []
    seen = Seen()
    weights = read_weights("theirs", progress=seen)
    assert seen.calls[-1] == (len(official), len(official))
    assert weights.config.norm_pix
    for name, tensor in contents.state.items():
        assert torch.equal(weights.state[name], tensor)
    path = find("theirs")
    assert path == checkpoints_folder() / "theirs.pth"
    # The file tells by its name which it is.
    assert read_weights(path, fetch=False).config.norm_pix
    assert read_weights("theirs", fetch=False).origins["norm_pix"] == "registry"
    # Whoever asks for something else gets it.
    other = Hints(2, 2, norm_pix=False)
    assert not read_weights("theirs", hints=other).config.norm_pix
    assert len(server.downloads) == 1


def test_the_manifest_fills_in_what_is_not_given(
    publish: Publish, official: bytes, tmp_path: Path
) -> None:
    publish(official)
    checkpoints_folder().mkdir(parents=True)
    (checkpoints_folder() / "theirs.pth").write_bytes(official)
    assert read_weights("theirs", hints=HEADS).config.norm_pix
    elsewhere = tmp_path / "mine.pth"
    elsewhere.write_bytes(official)
    assert not read_weights(elsewhere, hints=HEADS).config.norm_pix


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("text", ["x" * 300, "~nobody-of-that-name/weights", "a\0b"])
def test_paths_that_cannot_be_are_refused(text: str) -> None:
    for look in (find, locate):
        with pytest.raises(CheckpointError, match="cannot be opened|neither a file"):
            look(text)


def test_what_is_no_weights_is_refused_and_removed_and_nothing_runs(
    publish: Publish, official: bytes, server: FileServer, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    torch.save({"model": Canary(canary)}, tmp_path / "hostile.pth")
    hostile = (tmp_path / "hostile.pth").read_bytes()
    for data in (hostile, pickle.dumps(Canary(canary)), official[:-100], b"<html>", b""):
        publish(data)
        with pytest.raises(DownloadError, match="theirs was fetched, refused and removed: "):
            locate("theirs", progress=Seen())
        assert find("theirs") is None
        assert not [path for path in checkpoints_folder().iterdir() if path.suffix != ".lock"]
    assert not canary.exists()
    # Of the empty one there is nothing to receive.
    assert len(server.downloads) == 4


def test_a_file_in_the_cache_that_is_another_is_refused(publish: Publish, official: bytes) -> None:
    publish(official, bytes=len(official) + 1)
    path = checkpoints_folder() / "theirs.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(official)
    with pytest.raises(CheckpointError, match=r"bytes rather than .*; remove .* fetched again"):
        locate("theirs")
    publish(official, md5_prefix="000000")
    with pytest.raises(CheckpointError, match="its MD5 is not the published one"):
        locate("theirs")
    digest = hashlib.md5(official, usedforsecurity=False).hexdigest()
    publish(official, md5_prefix=digest[:6])
    assert locate("theirs") == path


@pytest.fixture
def fake_hub(folder: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as running:
        use_hub(monkeypatch, running.url)
        yield running


def test_a_repository_of_any_kind_is_read_like_a_file(
    fake_hub: Hub, contents: Weights, folder: Path
) -> None:
    write_huggingface(folder / "theirs", contents)
    theirs = {path.name: path.read_bytes() for path in (folder / "theirs").iterdir()}
    ours = (folder / "mine.safetensors").read_bytes()
    fake_hub.publish("me/theirs", theirs)
    fake_hub.publish("me/ours", {"weights.safetensors": ours, "config.json": b"{}"})
    fake_hub.publish("me/other", {"anything.safetensors": ours})
    for repo_id in ("me/theirs", "me/ours", "me/other"):
        assert find(repo_id) is None
        weights = read_weights(repo_id, progress=Seen())
        assert weights.config == contents.config
        assert torch.equal(weights.state["pos_embed"], contents.state["pos_embed"])
        assert find(repo_id) == locate(repo_id, fetch=False)
        assert weights_name(repo_id) == repo_id
    found = locate("me/theirs")
    assert found.is_dir()
    assert weights_name(folder / "theirs") == "theirs"


def test_torch_files_are_read_of_listed_repositories_and_local_folders_only(
    fake_hub: Hub, contents: Weights, folder: Path
) -> None:
    write_huggingface(folder / "theirs", contents)
    files = {path.name: path.read_bytes() for path in (folder / "theirs").glob("*.json")}
    state = load_file(folder / "theirs" / "model.safetensors")
    torch.save(state, folder / "theirs" / "pytorch_model.bin")
    (folder / "theirs" / "model.safetensors").unlink()
    files["pytorch_model.bin"] = (folder / "theirs" / "pytorch_model.bin").read_bytes()
    for repo_id in ("me/listed", "me/typed"):
        fake_hub.publish(repo_id, files)
    entry = {
        "name": "listed", "summary": "", "licence": "", "kind": "autoencoder", "target": "pixels",
        "format": "transformers 4", "parameters": 1, "repo": "me/listed",
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps([entry]))
    seen = Seen()
    with pytest.raises(DownloadError, match="me/typed has no weights that are read"):
        read_weights("me/typed", progress=seen)
    # Not even received.
    assert seen.calls == []
    assert find("me/typed") is None
    # By its name or by the repository's.
    for name in ("listed", "me/listed", folder / "theirs"):
        weights = read_weights(name, progress=Seen())
        assert torch.equal(weights.state["pos_embed"], contents.state["pos_embed"])


def test_what_is_fetched_is_read_once(
    publish: Publish, official: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WeightsEntry, "hints", Hints(2, 2, True, source="registry"))
    publish(official)
    paths = []

    def counting(path: Path, *args: Any, **kwargs: Any) -> Weights:
        paths.append(path)
        return read_file(path, *args, **kwargs)

    monkeypatch.setattr(mae_core.weights.registry, "read_file", counting)
    model = load("theirs", progress=Seen())
    assert (model.name, model.config.norm_pix) == ("theirs", True)
    assert len(paths) == 1


def test_the_best_file_of_a_folder_is_taken() -> None:
    best_first = [
        "weights.safetensors", "checkpoint.pt", "checkpoint.previous.pt", "model.safetensors",
        "model.safetensors.index.json", "other.safetensors", "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ]  # fmt: skip
    for i, name in enumerate(best_first):
        assert main_file([*best_first[i:], "config.json"]) == name
    assert main_file(["a.safetensors", "b.safetensors", "config.json"]) is None


def test_a_path_is_never_a_published_name(
    folder: Path, small_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for name in ("mine", "me/flowers"):
        with pytest.raises(CheckpointError, match=f"'{name}' is neither a file of weights, a fold"):
            load(Path(name))
    other = MaskedAutoencoder(replace(small_config, depth=1))
    save_weights(folder / "mine" / "weights.safetensors", other, record={})
    assert (load("mine").config.depth, load(Path("mine")).config.depth) == (2, 1)


def test_a_path_goes_before_a_repository_of_that_name(
    fake_hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "me").mkdir()
    (folder / "me" / "ours").write_bytes((folder / "mine.safetensors").read_bytes())
    monkeypatch.chdir(folder)
    assert locate("me/ours") == Path("me/ours")
    assert weights_name("me/ours") == "ours"
    assert fake_hub.requests == []


def test_a_repository_with_hostile_weights_is_removed(
    fake_hub: Hub, folder: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    torch.save(Canary(canary), tmp_path / "hostile.bin")
    files = {"config.json": b"{}", "pytorch_model.bin": (tmp_path / "hostile.bin").read_bytes()}
    fake_hub.publish("me/hostile", files)
    fake_hub.publish("me/damaged", {"model.safetensors": b"12345678{" + bytes(100)})
    entry = {
        "name": "listed", "summary": "", "licence": "", "kind": "autoencoder", "target": "pixels",
        "format": "transformers 4", "parameters": 1, "repo": "me/hostile",
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps([entry]))
    for name in ("listed", "me/hostile", "me/damaged"):
        with pytest.raises(DownloadError, match=f"{name} was fetched, refused and removed"):
            read_weights(name, progress=Seen())
        assert find(name) is None
    assert not canary.exists()
