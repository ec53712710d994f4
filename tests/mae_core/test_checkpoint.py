import errno
import json
import os
import pickle
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mae_core.config import to_dict
from mae_core.errors import CheckpointError
from mae_core.model.mae import MaskedAutoencoder
from mae_core.weights.files import load_checkpoint, load_latest, save_checkpoint, write_atomically
from mae_core.weights.formats import save_weights
from mae_core.weights.registry import read_weights
from tests.forked import ForkedPython


def test_weights_come_back_bitwise_with_config_and_record(
    small_model: MaskedAutoencoder, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, small_model, record={"steps": 3})
    weights = read_weights(path)
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
    state = read_weights(half).state
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
    with pytest.raises(CheckpointError, match="neither a file of weights"):
        read_weights(path)
    path.write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="neither a safetensors file nor a torch file"):
        read_weights(path)
    save_file(_state(small_model), path, metadata={"format": "mae_core-2"})
    with pytest.raises(CheckpointError, match="'mae_core-2' and this program reads mae_core-1"):
        read_weights(path)
    save_file(_state(small_model), path, metadata={**_header(small_model), "config": "{"})
    with pytest.raises(CheckpointError, match="header of 'w.safetensors' is damaged"):
        read_weights(path)
    save_weights(path, small_model, record={})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_weights(path)


def test_weights_that_do_not_fit_their_config_are_refused(
    small_model: MaskedAutoencoder, tmp_path: Path
) -> None:
    path, header = tmp_path / "w.safetensors", _header(small_model)
    missing = _state(small_model)
    del missing["mask_token"]
    save_file(missing, path, metadata=header)
    with pytest.raises(CheckpointError, match="missing \\['mask_token'\\]"):
        read_weights(path)
    save_file({**_state(small_model), "extra": torch.zeros(1)}, path, metadata=header)
    with pytest.raises(CheckpointError, match="unknown \\['extra'\\]"):
        read_weights(path)
    save_file({**_state(small_model), "norm.bias": torch.zeros(3)}, path, metadata=header)
    with pytest.raises(CheckpointError, match="norm.bias .* has shape \\(3,\\)"):
        read_weights(path)
    broken = _state(small_model)
    broken["norm.bias"][0] = torch.nan
    save_file(broken, path, metadata=header)
    with pytest.raises(CheckpointError, match="norm.bias .* not finite"):
        read_weights(path)


class _Bomb:
    """Would create a file if it were ever unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.canary,)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    path, canary = tmp_path / "c.pt", tmp_path / "canary"
    torch.save({"format": "mae_core-1", "bomb": _Bomb(canary)}, path)
    with pytest.raises(CheckpointError, match="nothing in it was run"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(_Bomb(canary)))
    with pytest.raises(CheckpointError, match="a pickle that torch.save did not write"):
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


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_written_files_obey_the_umask(small_model: MaskedAutoencoder, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_weights(tmp_path / "w.safetensors", small_model, record={})
        save_checkpoint(tmp_path / "checkpoint.pt", {"step": 1})
        # What a killed process left behind says nothing about the next file.
        (tmp_path / "x.safetensors.partial").touch(0o600)
        save_weights(tmp_path / "x.safetensors", small_model, record={})
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o640}
    assert names(tmp_path) == {"w.safetensors", "checkpoint.pt", "x.safetensors"}


def test_the_checkpoint_before_is_kept(tmp_path: Path) -> None:
    path, previous = tmp_path / "checkpoint.pt", tmp_path / "checkpoint.previous.pt"
    values = {"step": 1, "ema": None, "changes": [{"from": [1, {"a": None}]}], "recipe": "x"}
    save_checkpoint(path, values)
    assert names(tmp_path) == {"checkpoint.pt"}
    assert load_latest(tmp_path) == {"format": "mae_core-1", **values}
    for step in (2, 3):
        save_checkpoint(path, {"step": step})
    assert (load_checkpoint(path)["step"], load_checkpoint(previous)["step"]) == (3, 2)
    assert names(tmp_path) == {"checkpoint.pt", "checkpoint.previous.pt"}


@pytest.mark.parametrize("damage", ["missing", "half", "empty"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        save_checkpoint(path, {"step": step, "model": torch.zeros(100)})
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 900 if damage == "half" else 0])
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert load_latest(tmp_path)["step"] == 1
    assert "taking checkpoint.previous.pt, the one before it" in caplog.text
    # The next save does not lose the good one to the damaged one.
    save_checkpoint(path, {"step": 2})
    assert load_latest(tmp_path)["step"] == 2
    assert load_checkpoint(tmp_path / "checkpoint.previous.pt")["step"] == 1


def test_no_whole_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_latest(tmp_path)
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="'checkpoint.previous.pt' is"):
        load_latest(tmp_path)


class _Killed(BaseException):
    """Stands for the end of the process: nothing of ours handles it."""


def _die_at(call: int, monkeypatch: pytest.MonkeyPatch, *, after: bool) -> None:
    """End the process right before or right after the given change of the folder."""
    calls = 0

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def replacement(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call and not after:
                raise _Killed
            result = original(*args, **kwargs)
            if calls == call:
                raise _Killed
            return result

        return replacement

    for owner, name in (
        (Path, "unlink"), (Path, "touch"), (Path, "chmod"), (Path, "replace"),
        (os, "fsync"), (torch, "save"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", range(1, 8))
def test_a_kill_at_any_moment_leaves_one_whole_checkpoint(
    call: int, after: bool, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        save_checkpoint(path, {"step": step})
    with pytest.MonkeyPatch.context() as patched:
        _die_at(call, patched, after=after)
        with pytest.raises(_Killed):
            save_checkpoint(path, {"step": 3})
    # The last of the seven changes is the one that puts the new checkpoint in its place.
    assert load_latest(tmp_path)["step"] == (3 if (call, after) == (7, True) else 2)
    save_checkpoint(path, {"step": 4})
    assert load_latest(tmp_path)["step"] == 4
    assert names(tmp_path) == {"checkpoint.pt", "checkpoint.previous.pt"}


WRITE_WITH_LITTLE_SPACE = """
import resource, signal, sys, torch
from mae_core.weights.files import save_checkpoint
from mae_core.weights.formats import save_weights
from mae_core.errors import CheckpointError
from mae_core.model.mae import MaskedAutoencoder
from mae_core.config import ModelConfig
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
out = sys.argv[1]
model = MaskedAutoencoder(ModelConfig(image_size=32, embed_dim=64, depth=2, num_heads=2,
    decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2))
for write in (
    lambda: save_checkpoint(out + "/checkpoint.pt", {"model": model.state_dict()}),
    lambda: save_weights(out + "/weights.safetensors", model, record={}),
):
    try:
        write()
    except CheckpointError as error:
        print(error)
"""


def test_where_a_file_cannot_grow_the_old_ones_stay(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path / "checkpoint.pt", {"step": step})
    (tmp_path / "weights.safetensors").write_text("old")
    with ForkedPython(WRITE_WITH_LITTLE_SPACE, str(tmp_path)) as process:
        output = process.communicate()
    assert process.returncode == 0, output
    first, second = output.splitlines()
    assert first.startswith("could not write 'checkpoint.pt' ([Errno 27] File too large); check")
    assert second.startswith("could not write 'weights.safetensors' (")
    assert names(tmp_path) == {"checkpoint.pt", "checkpoint.previous.pt", "weights.safetensors"}
    assert load_latest(tmp_path)["step"] == 2
    assert load_checkpoint(tmp_path / "checkpoint.previous.pt")["step"] == 1
    assert (tmp_path / "weights.safetensors").read_text() == "old"


def test_a_full_disk_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="'checkpoint.pt' .*No space left on device.*; check"):
        save_checkpoint(path, {"step": 2})
    assert names(tmp_path) == {"checkpoint.pt"}
    assert load_latest(tmp_path)["step"] == 1


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(CheckpointError, match="could not write 'checkpoint.pt'"):
        save_checkpoint(tmp_path / "run" / "checkpoint.pt", {"step": 2})


def running(autoencoder: MaskedAutoencoder, **changes: object) -> dict[str, object]:
    """What a run of 1,000 steps has saved at step 400."""
    config = {"model": to_dict(autoencoder.config), "steps": 1000}
    return {
        "config": config, "recipe": "quick", "model": _state(autoencoder), "ema": None,
        "optimizers": [{"state": {0: {"m": torch.ones(3)}}}], "step": 400, "seconds": 1800.0,
        "changes": [], **changes,
    }  # fmt: skip


def test_a_running_run_gives_its_weights(small_model: MaskedAutoencoder, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, running(small_model))
    weights = read_weights(path)
    assert weights.config == small_model.config
    assert weights.record == {
        "running": True, "recipe": "quick", "step": 400, "steps": 1000, "hours": 0.5,
    }  # fmt: skip
    for name, tensor in small_model.state_dict().items():
        assert torch.equal(weights.build().state_dict()[name], tensor)


def test_the_running_average_is_preferred(small_model: MaskedAutoencoder, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    ema = {name: (tensor + 1).half() for name, tensor in _state(small_model).items()}
    save_checkpoint(path, running(small_model, ema=ema))
    state = read_weights(path).state
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in ema.items())
    # The position tables are never trained, and need no average.
    del ema["pos_embed"], ema["decoder_pos_embed"]
    save_checkpoint(path, running(small_model, ema=ema))
    state = read_weights(path).state
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in ema.items())
    assert torch.equal(state["pos_embed"], small_model.pos_embed)


def test_a_checkpoint_of_the_first_version_gives_its_weights(
    small_model: MaskedAutoencoder, tmp_path: Path
) -> None:
    old = running(small_model)
    del old["ema"], old["recipe"]
    model = to_dict(small_model.config)
    del model["pca_components"], model["encoder_mask_tokens"]
    save_checkpoint(
        tmp_path / "c.pt", {**old, "config": {"model": model, "steps": 7, "precision": "bfloat16"}}
    )
    weights = read_weights(tmp_path / "c.pt")
    assert weights.config == small_model.config
    assert (weights.record["steps"], weights.record["recipe"]) == (7, "")


def test_a_damaged_running_run_gives_the_weights_before(
    small_model: MaskedAutoencoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, running(small_model, step=300))
    save_checkpoint(path, running(small_model))
    path.write_bytes(path.read_bytes()[:5000])
    assert read_weights(path).record["step"] == 300
    assert "'checkpoint.pt' is damaged or was cut short" in caplog.text


def _changed(model: MaskedAutoencoder, **fields: object) -> dict[str, object]:
    return {"config": {"model": {**to_dict(model.config), **fields}, "steps": 1000}}


def _with_tensor(model: MaskedAutoencoder, tensor: object) -> dict[str, object]:
    return {"model": {**_state(model), "norm.bias": tensor}}


NOT_WEIGHTS: list[tuple[str, Callable[[MaskedAutoencoder], dict[str, object]], str]] = [
    ("no config", lambda _: {"config": None}, "no mapping of names"),
    ("config a tensor", lambda _: {"config": torch.ones(2)}, "no mapping of names"),
    ("no model config", lambda _: {"config": {"steps": 3}}, "is damaged"),
    ("model config a list", lambda _: {"config": {"model": [], "steps": 3}}, "no mapping"),
    ("unknown field", lambda m: _changed(m, red=1), "has no field red"),
    ("wrong type", lambda m: _changed(m, depth="two"), "depth='two'"),
    ("tensor as field", lambda m: _changed(m, depth=torch.ones(2)), "depth=tensor"),
    ("number too large", lambda m: _changed(m, mlp_ratio=10**400), "mlp_ratio=1000"),
    ("number uncountable", lambda m: _changed(m, mlp_ratio=1e300), "describes no model"),
    ("keys no text", lambda m: {"config": {"model": {1: 2, "a": 3}, "steps": 3}}, "no mapping"),
    ("endless depth", lambda m: _changed(m, depth=10**12), "too few for 10+1 blocks"),
    ("endless width", lambda m: _changed(m, embed_dim=2**62), "describes no model|has shape"),
    ("wide", lambda m: _changed(m, embed_dim=2**20), "has shape"),
    ("step a text", lambda _: {"step": "four"}, "is damaged: "),
    ("step a tensor", lambda _: {"step": torch.ones(2)}, "is damaged: "),
    ("seconds a list", lambda _: {"seconds": [1]}, "is damaged: "),
    ("no state", lambda _: {"model": None}, "no mapping of names"),
    ("ema a list", lambda _: {"ema": [torch.ones(2)]}, "no mapping of names"),
    ("ema a tensor", lambda _: {"ema": torch.ones(2, 2)}, "no mapping of names"),
    ("ema hostile", lambda m: {"ema": {"norm.bias": torch.ones(1).expand(10**12)}}, "more bytes"),
    ("name no text", lambda m: {"model": {**_state(m), 3: torch.ones(1)}}, "unknown \\['3'\\]"),
    ("not a tensor", lambda m: _with_tensor(m, [1.0] * 32), "is no plain tensor where"),
    ("sparse", lambda m: _with_tensor(m, torch.ones(32).to_sparse()), "_rebuild_sparse_tensor"),
    ("whole numbers", lambda m: _with_tensor(m, torch.ones(32).int()), "a tensor of int32"),
    ("complex", lambda m: _with_tensor(m, torch.ones(32) + 0j), "a tensor of complex64"),
    ("elsewhere", lambda m: _with_tensor(m, torch.ones(32, device="meta")), "_rebuild_meta_tensor"),
    ("repeated", lambda m: _with_tensor(m, torch.ones(1).expand(10**12)), "more bytes than"),
    ("shape", lambda m: _with_tensor(m, torch.ones(3)), "norm.bias in .* has shape \\(3,\\)"),
    ("infinite", lambda m: _with_tensor(m, torch.full((32,), torch.inf)), "are not finite"),
    ("missing", lambda m: {"model": {"norm.bias": torch.ones(32)}}, "too few for 3 blocks"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "words"), [case[1:] for case in NOT_WEIGHTS], ids=[case[0] for case in NOT_WEIGHTS]
)
def test_hostile_checkpoints_are_refused(
    make: Callable[[MaskedAutoencoder], dict[str, object]],
    words: str,
    small_model: MaskedAutoencoder,
    tmp_path: Path,
) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, running(small_model, **make(small_model)))
    with pytest.raises(CheckpointError, match=words):
        read_weights(path)


def test_a_checkpoint_that_unfolds_is_refused(
    small_model: MaskedAutoencoder, tmp_path: Path
) -> None:
    path, small = tmp_path / "c.pt", tmp_path / "small.pt"
    zeros = {name: torch.zeros_like(tensor) for name, tensor in _state(small_model).items()}
    save_checkpoint(path, running(small_model, model=zeros))
    with (
        zipfile.ZipFile(path) as stored,
        zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    assert small.stat().st_size < path.stat().st_size / 4
    for read in (read_weights, load_checkpoint):
        with pytest.raises(
            CheckpointError, match="compressed entries, which plain weights never do"
        ):
            read(small)


def test_random_damage_never_raises_anything_else(
    small_model: MaskedAutoencoder, tmp_path: Path
) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, running(small_model))
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        # Among the first bytes are the names and the shapes; the rest is mostly numbers.
        for place in torch.randint(0, 12_000, (20,), generator=generator).tolist():
            damaged[place] = int(torch.randint(0, 256, (), generator=generator))
        path.write_bytes(damaged)
        try:
            read_weights(path)
        except CheckpointError:
            refused += 1
    assert refused > 30


def test_headers_that_are_no_objects_are_refused(
    small_model: MaskedAutoencoder, tmp_path: Path
) -> None:
    path, header = tmp_path / "w.safetensors", _header(small_model)
    for change in (
        {"config": "[]"}, {"config": "5"}, {"record": "3"}, {"config": "[" * 100_000},
        {"config": json.dumps({**to_dict(small_model.config), "mlp_ratio": 10**400})},
    ):  # fmt: skip
        save_file(_state(small_model), path, metadata={**header, **change})
        with pytest.raises(CheckpointError, match="header of 'w.safetensors' is damaged"):
            read_weights(path)
    deep = {**to_dict(small_model.config), "depth": 10**12}
    save_file(_state(small_model), path, metadata={**header, "config": json.dumps(deep)})
    with pytest.raises(CheckpointError, match="too few for"):
        read_weights(path)


def test_a_copied_checkpoint_is_known_by_its_ending(
    small_model: MaskedAutoencoder, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "checkpoint.pt", running(small_model))
    shutil.copy(tmp_path / "checkpoint.pt", tmp_path / "step400.pt")
    assert read_weights(tmp_path / "step400.pt").record["step"] == 400
