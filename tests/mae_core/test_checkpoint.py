import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mae_core.checkpoint import (
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
    write_atomically,
)
from mae_core.config import to_dict
from mae_core.errors import CheckpointError
from mae_core.models.mae import MaskedAutoencoder


def test_weights_come_back_bitwise_with_config_and_record(
    small_model: MaskedAutoencoder, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, small_model, record={"steps": 3})
    weights = load_weights(path)
    assert weights.config == small_model.config
    assert weights.record == {"steps": 3}
    built = weights.build()
    assert not built.training
    for name, tensor in small_model.state_dict().items():
        assert torch.equal(built.state_dict()[name], tensor)
    trainable = {name for name, p in built.named_parameters() if p.requires_grad}
    assert trainable == {name for name, p in small_model.named_parameters() if p.requires_grad}


def test_half_precision_halves_the_file_and_loads_as_float32(
    small_model: MaskedAutoencoder, tmp_path: Path
) -> None:
    full, half = tmp_path / "f.safetensors", tmp_path / "h.safetensors"
    save_weights(full, small_model, record={})
    save_weights(half, small_model, record={}, dtype=torch.float16)
    assert half.stat().st_size < 0.6 * full.stat().st_size
    state = load_weights(half).state
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    torch.testing.assert_close(
        state["blocks.0.mlp.fc1.weight"],
        small_model.state_dict()["blocks.0.mlp.fc1.weight"],
        rtol=1e-3, atol=1e-6,
    )  # fmt: skip


def _header(model: MaskedAutoencoder) -> dict[str, str]:
    return {"format": "mae_core-1", "config": json.dumps(to_dict(model.config)), "record": "{}"}


def _state(model: MaskedAutoencoder) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_files_that_are_not_weights_are_refused(
    small_model: MaskedAutoencoder, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(CheckpointError, match="no weights at"):
        load_weights(path)
    path.write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_weights(path)
    save_file(_state(small_model), path)
    with pytest.raises(CheckpointError, match="format mae_core-1"):
        load_weights(path)
    save_file(_state(small_model), path, metadata={**_header(small_model), "config": "{"})
    with pytest.raises(CheckpointError, match="header of 'w.safetensors' is damaged"):
        load_weights(path)
    save_weights(path, small_model, record={})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_weights(path)


def test_weights_that_do_not_fit_their_config_are_refused(
    small_model: MaskedAutoencoder, tmp_path: Path
) -> None:
    path, header = tmp_path / "w.safetensors", _header(small_model)
    missing = _state(small_model)
    del missing["mask_token"]
    save_file(missing, path, metadata=header)
    with pytest.raises(CheckpointError, match="missing \\['mask_token'\\]"):
        load_weights(path)
    save_file({**_state(small_model), "extra": torch.zeros(1)}, path, metadata=header)
    with pytest.raises(CheckpointError, match="unknown \\['extra'\\]"):
        load_weights(path)
    save_file({**_state(small_model), "norm.bias": torch.zeros(3)}, path, metadata=header)
    with pytest.raises(CheckpointError, match="norm.bias .* has shape \\(3,\\)"):
        load_weights(path)
    broken = _state(small_model)
    broken["norm.bias"][0] = torch.nan
    save_file(broken, path, metadata=header)
    with pytest.raises(CheckpointError, match="norm.bias .* not finite"):
        load_weights(path)


class _Bomb:
    """Would create a file if it were ever unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.canary,)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    path, canary = tmp_path / "c.pt", tmp_path / "canary"
    torch.save({"format": "mae_core-1", "bomb": _Bomb(canary)}, path)
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(_Bomb(canary)))
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        load_checkpoint(path)
    assert not canary.exists()


def test_checkpoints_come_back_and_foreign_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"step": 3, "model": {"w": torch.ones(2)}})
    assert load_checkpoint(path)["step"] == 3
    torch.save({"step": 3}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint written by mae_core.train"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "none.pt")


def test_a_failed_write_leaves_the_old_file_and_no_partial_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write_half(partial: Path) -> None:
        partial.write_text("ne")
        raise OSError("No space left on device")

    with pytest.raises(CheckpointError, match="could not write 'file'.*free space"):
        write_atomically(path, write_half)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
