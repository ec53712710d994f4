import hashlib
import json
from pathlib import Path

import pytest

import mae_core.weights
from mae_core.checkpoint import (
    CHECKPOINT_FILE,
    PREVIOUS_CHECKPOINT_FILE,
    load_weights,
    save_checkpoint,
    save_weights,
)
from mae_core.config import to_dict
from mae_core.errors import CheckpointError
from mae_core.models.mae import MaskedAutoencoder
from mae_core.reconstruction import Reconstructor
from mae_core.weights import list_weights, locate_weights, weights_name


@pytest.fixture
def folder(small_model: MaskedAutoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights folder with one entry, `mine`."""
    path = tmp_path / "mine.safetensors"
    save_weights(path, small_model, record={})
    entry = {
        "name": "mine", "file": path.name, "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licence": "Apache-2.0", "summary": "random weights",
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps([entry]))
    monkeypatch.setattr(mae_core.weights, "WEIGHTS_FOLDER", tmp_path)
    return tmp_path


def test_names_files_and_run_folders_lead_to_weights(folder: Path) -> None:
    assert locate_weights("mine") == folder / "mine.safetensors"
    assert locate_weights(folder / "mine.safetensors") == folder / "mine.safetensors"
    run = folder / "run"
    run.mkdir()
    (run / "weights.safetensors").write_bytes((folder / "mine.safetensors").read_bytes())
    assert locate_weights(run) == run / "weights.safetensors"
    names = [weights_name(value) for value in ("mine", run, run / "weights.safetensors")]
    assert names == ["mine", "run", "run"]
    assert Reconstructor.from_pretrained("mine", device="cpu").name == "mine"


def test_unknown_weights_are_refused_with_the_names_there_are(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="'yours' is neither .* one of mine"):
        locate_weights("yours")
    with pytest.raises(CheckpointError, match="mae-tiny"):
        locate_weights()


def test_a_changed_or_missing_bundled_file_is_refused(folder: Path) -> None:
    path = folder / "mine.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="not the file the manifest describes"):
        locate_weights("mine")
    path.unlink()
    with pytest.raises(CheckpointError, match="are not in weights/"):
        locate_weights("mine")


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
    with pytest.raises(CheckpointError, match="folder with weights.safetensors or checkpoint.pt"):
        locate_weights(run)
    for _ in range(2):
        save_checkpoint(run / CHECKPOINT_FILE, values)
    assert locate_weights(run) == run / CHECKPOINT_FILE
    # The moment between two saves, or the end of a run killed in it.
    (run / CHECKPOINT_FILE).unlink()
    assert locate_weights(run) == run / PREVIOUS_CHECKPOINT_FILE
    assert load_weights(locate_weights(run)).record["running"]
    save_checkpoint(run / CHECKPOINT_FILE, values)
    save_weights(run / "weights.safetensors", small_model, record={})
    assert locate_weights(run) == run / "weights.safetensors"
    for path in (run, *run.iterdir()):
        assert weights_name(path) == "flowers.v2"
