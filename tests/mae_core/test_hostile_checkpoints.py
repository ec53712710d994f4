"""Files that are broken or made to harm: each is refused in a sentence, and nothing is run."""

import builtins
import io
import json
import os
import pickle
import struct
import subprocess
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mae_core.errors import CheckpointError
from mae_core.weights.files import load_checkpoint, read_json
from mae_core.weights.registry import load, read_weights
from tests import checkpoints
from tests.checkpoints import SMALL
from tests.forked import ForkedPython

STATE = checkpoints.random_state(SMALL)


class Runs:
    """A pickle that calls a function when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Restores:
    """A pickle that runs its own class's code when it is read."""

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["canary"]).touch()


def restoring(canary: Path) -> Restores:
    bomb = Restores()
    bomb.__dict__["canary"] = str(canary)
    return bomb


def with_tensor(tensor: object) -> dict[str, Any]:
    return {"model": {**STATE, "norm.bias": tensor}}


def saved(content: object) -> Callable[[Path, Path], Path]:
    return lambda folder, _: checkpoints.write_torch(folder / "x.pth", content)


def holding(data: bytes) -> Callable[[Path, Path], Path]:
    def write(folder: Path, _: Path) -> Path:
        (folder / "x.pth").write_bytes(data)
        return folder / "x.pth"

    return write


def running(
    make: Callable[[Path], object], *, legacy: bool = False
) -> Callable[[Path, Path], Path]:
    def write(folder: Path, canary: Path) -> Path:
        content = {"model": STATE, "bomb": make(canary)}
        return checkpoints.write_torch(folder / "x.pth", content, legacy=legacy)

    return write


def code(canary: Path) -> str:
    return f"__import__('pathlib').Path({str(canary)!r}).touch()"


def bare_pickle(protocol: int) -> Callable[[Path, Path], Path]:
    def write(folder: Path, canary: Path) -> Path:
        (folder / "x.pth").write_bytes(pickle.dumps(Runs(builtins.eval, code(canary)), protocol))
        return folder / "x.pth"

    return write


def rezipped(folder: Path, content: object, change: Callable[[str, bytes], bytes]) -> Path:
    """A torch file whose entries have been changed."""
    whole = io.BytesIO()
    torch.save(content, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(folder / "x.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return folder / "x.pth"


def compressed(folder: Path, _: Path) -> Path:
    whole = io.BytesIO()
    torch.save({"model": {"cls_token": torch.zeros(10_000_000)}}, whole)
    with (
        zipfile.ZipFile(whole) as old,
        zipfile.ZipFile(folder / "x.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return folder / "x.pth"


def cut(share: float, legacy: bool = False) -> Callable[[Path, Path], Path]:
    def write(folder: Path, _: Path) -> Path:
        path = checkpoints.write_torch(folder / "x.pth", {"model": STATE}, legacy=legacy)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        return path

    return write


def cut_safetensors(folder: Path, _: Path) -> Path:
    path = checkpoints.write_safetensors(folder / "x.safetensors", STATE)
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def huge_header(length: int) -> Callable[[Path, Path], Path]:
    return holding(struct.pack("<Q", length) + b'{"a": 1}' + b" " * 100)


def quantised(folder: Path, _: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to drop these
        tensor = torch.quantize_per_tensor(torch.ones(192), 0.1, 0, torch.qint8)
        return checkpoints.write_torch(folder / "x.pth", with_tensor(tensor))


def repeated(folder: Path, _: Path) -> Path:
    """All tensors of the model share the same four bytes."""
    one = torch.ones(1)
    state = {key: one.expand(tensor.shape) for key, tensor in STATE.items()}
    return checkpoints.write_torch(folder / "x.pth", {"model": state})


def two_numbers() -> Any:
    storage = torch.ones(2).untyped_storage()
    return torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)


def beyond(legacy: bool) -> Callable[[Path, Path], Path]:
    """A tensor that asks for more room than its storage has."""

    def write(folder: Path, _: Path) -> Path:
        rebuild = Runs(torch._utils._rebuild_tensor_v2, two_numbers(), 0, (10**6, 10**6),
                       (10**6, 1), False, OrderedDict())  # fmt: skip
        return checkpoints.write_torch(folder / "x.pth", {"model": rebuild}, legacy=legacy)

    return write


def legacy_claim(folder: Path, _: Path) -> Path:
    """An old torch file whose storage claims 2 ** 30 numbers and has ten."""
    path = checkpoints.write_torch(
        folder / "x.pth", {"model": {"cls_token": torch.ones(4321)}}, legacy=True
    )
    data = path.read_bytes()
    number = b"M" + struct.pack("<H", 4321)
    assert data.count(number) >= 2
    path.write_bytes(data.replace(number, b"J" + struct.pack("<i", 2**30)))
    return path


def zip_claim(folder: Path, _: Path) -> Path:
    """A torch file whose storage claims 2 ** 30 numbers and has 4321."""
    old, new = b"M" + struct.pack("<H", 4321), b"J" + struct.pack("<i", 2**30)
    content = {"model": {"cls_token": torch.ones(4321)}}
    path = rezipped(folder, content, lambda _, part: part.replace(old, new))
    assert new in path.read_bytes()
    return path


def index(places: object) -> Callable[[Path, Path], Path]:
    def write(folder: Path, _: Path) -> Path:
        checkpoints.write_safetensors(folder.parent / "outside.safetensors", STATE)
        checkpoints.write_json(folder / "model.safetensors.index.json", {"weight_map": places})
        return folder

    return write


def missing_shard(folder: Path, _: Path) -> Path:
    checkpoints.write_huggingface(folder / "hf", SMALL, STATE, shards=3)
    (folder / "hf" / "model-00002-of-00003.safetensors").unlink()
    return folder / "hf"


def swapped_shards(folder: Path, _: Path) -> Path:
    checkpoints.write_huggingface(folder / "hf", SMALL, STATE, shards=2)
    first = folder / "hf" / "model-00001-of-00002.safetensors"
    first.write_bytes((folder / "hf" / "model-00002-of-00002.safetensors").read_bytes())
    return folder / "hf"


def config_json(text: str) -> Callable[[Path, Path], Path]:
    def write(folder: Path, _: Path) -> Path:
        checkpoints.write_huggingface(folder / "hf", SMALL, STATE)
        (folder / "hf" / "config.json").write_text(text)
        return folder / "hf"

    return write


def link_loop(folder: Path, _: Path) -> Path:
    (folder / "a.pth").symlink_to(folder / "b.pth")
    (folder / "b.pth").symlink_to(folder / "a.pth")
    return folder / "a.pth"


def pipe(folder: Path, _: Path) -> Path:
    os.mkfifo(folder / "x.pth")
    return folder / "x.pth"


def folder_for_a_file(folder: Path, _: Path) -> Path:
    (folder / "model.safetensors").mkdir()
    return folder


def program(folder: Path, _: Path) -> Path:
    path = folder / "x.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), path)
    return path


def torchscript(folder: Path, _: Path) -> Path:
    names = ("x/data.pkl", "x/constants.pkl", "x/code/__torch__.py", "x/version")
    with zipfile.ZipFile(folder / "x.pth", "w") as archive:
        for name in names:
            archive.writestr(name, b"\x80\x02}.")
    return folder / "x.pth"


def plain_zip(folder: Path, _: Path) -> Path:
    with zipfile.ZipFile(folder / "x.pth", "w") as archive:
        archive.writestr("weights/readme.txt", "hello")
    return folder / "x.pth"


def two_pickles(folder: Path, canary: Path) -> Path:
    """A torch file with a second pickle of the same name, which another reader may take."""
    path = running(lambda _: Runs(bytearray, 10**12))(folder, canary)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")  # zipfile tells of the second one
        archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/data.pkl", b"\x80\x02}.")
    return path


def many_entries(folder: Path, _: Path) -> Path:
    """A zip whose end claims a list of entries of 64 megabytes."""
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, 2**26, 0, 0)
    return holding(b"PK\x03\x04" + bytes(100) + end)(folder, folder)


def wrapped_in_itself() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


def without(*names: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in STATE.items() if key not in names}


def position_table(entries: int) -> dict[str, Tensor]:
    return {**STATE, "pos_embed": torch.zeros(1, entries, 192)}


def bert() -> dict[str, Tensor]:
    return {"embeddings.word_embeddings.weight": torch.ones(3, 3)}


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 448\n"
PAGE = b"<!DOCTYPE html><html><head><title>403 Forbidden</title></head></html>"
DAMAGED = "'x.pth' is damaged or was cut short, or claims more than it has"
NOT_PLAIN = "holds {}, which plain weights never do, and nothing in it was run; if you trust it"
OTHER_FILE = "'x.pth' is {}.*; download it again, or give a safetensors or torch file"
NEITHER = OTHER_FILE.format("neither a safetensors file nor a torch file")
NO_JSON = "'config.json' is no JSON object of at most 1,048,576 bytes; restore the one"

HOSTILE: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "runs os.system": (
        running(lambda c: Runs(os.system, f"touch {c}")), NOT_PLAIN.format("'posix.system'")),
    "runs eval": (
        running(lambda c: Runs(builtins.eval, code(c))), NOT_PLAIN.format("'builtins.eval'")),
    "runs a function": (
        running(lambda c: Runs(Path.touch, c)), NOT_PLAIN.format("'builtins.getattr'")),
    "runs a class": (running(restoring), NOT_PLAIN.format("'.*Restores'")),
    "runs eval, legacy": (
        running(lambda c: Runs(builtins.eval, code(c)), legacy=True),
        NOT_PLAIN.format("'builtins.eval'")),
    "runs a subprocess, legacy": (
        running(lambda c: Runs(subprocess.run, ["touch", str(c)]), legacy=True),
        NOT_PLAIN.format("'commands.run'")),
    "bare pickle": (bare_pickle(2), NOT_PLAIN.format("a pickle that torch.save did not write")),
    "bare new pickle": (bare_pickle(4), "a pickle that torch.save did not"),
    "bare old pickle": (bare_pickle(0), NEITHER),
    "whole model": (
        running(lambda _: nn.Linear(2, 2)), "holds 'torch.nn.modules.*save the model's state_dict"),
    "endless bytes": (running(lambda _: Runs(bytearray, 10**12)), "holds 'builtins.bytearray'"),
    "endless tensor": (
        running(lambda _: Runs(torch.FloatTensor, 10**12)), "holds 'torch.FloatTensor'"),
    "plain pickle": (holding(pickle.dumps({"model": 1}, 2)), "a pickle that torch.save did not"),
    "compressed zip": (compressed, NOT_PLAIN.format("compressed entries")),
    "truncated zip": (cut(0.7), DAMAGED),
    "truncated legacy": (cut(0.7, legacy=True), DAMAGED),
    "truncated legacy pickle": (cut(0.0002, legacy=True), DAMAGED),
    "endless zip directory": (many_entries, DAMAGED),
    "truncated safetensors": (cut_safetensors, "not a whole safetensors file; download it"),
    "huge header": (huge_header(10**12), "not a whole safetensors file; download it"),
    "largest header": (huge_header(2**64 - 1), "not a whole safetensors file; download it"),
    "empty": (holding(b""), OTHER_FILE.format("empty")),
    "web page": (holding(PAGE), OTHER_FILE.format("a web page")),
    "Git LFS pointer": (holding(LFS), OTHER_FILE.format("a Git LFS pointer .*git lfs pull")),
    "HDF5": (holding(b"\x89HDF\r\n\x1a\n" + bytes(600)), OTHER_FILE.format("an HDF5 file")),
    "gzip": (holding(b"\x1f\x8b" + bytes(600)), OTHER_FILE.format("a gzip archive")),
    "text": (holding(b"weights " * 100), NEITHER),
    "NaN": (saved(with_tensor(torch.full((192,), torch.nan))), "norm.bias .* not finite"),
    "infinity": (saved(with_tensor(torch.full((192,), -torch.inf))), "norm.bias .* not finite"),
    "overflow": (
        saved(with_tensor(torch.full((192,), 1e300, dtype=torch.float64))), "not finite"),
    "wrong shape": (saved(with_tensor(torch.ones(7))), "norm.bias .* shape \\(7,\\)"),
    "no shape": (saved({**STATE, "pos_embed": torch.tensor(1.0)}), "pos_embed .* shape \\(\\)"),
    "empty tensor": (
        saved({**STATE, "patch_embed.proj.weight": torch.zeros(0, 3, 8, 8)}), "sides above 0"),
    "missing": (saved(without("mask_token", "norm.bias")), "missing \\['mask_token', 'norm.bias"),
    "missing block": (
        saved({k: t for k, t in STATE.items() if "blocks.0." not in k}),
        "blocks.0.mlp.fc1.weight is missing"),
    "missing positions": (saved(without("pos_embed")), "pos_embed is missing"),
    "unknown": (saved({**STATE, "\x1b[31m" * 40: torch.ones(1)}), "unknown \\['.x1b"),
    "block of nowhere": (
        saved({**STATE, "blocks.999999999.x": torch.ones(1)}), "unknown \\['blocks.999999999.x'"),
    "sparse": (saved(with_tensor(torch.ones(192).to_sparse())), "_rebuild_sparse_tensor"),
    "quantised": (quantised, "torch.per_tensor_affine"),
    "whole numbers": (saved(with_tensor(torch.ones(192).int())), "is a tensor of int32 where"),
    "complex": (saved(with_tensor(torch.ones(192) + 0j)), "is a tensor of complex64 where"),
    "no tensor": (saved(with_tensor([1.0])), "missing \\['norm.bias'\\]"),
    "shared bytes": (repeated, "more bytes than the file has"),
    "beyond its numbers": (beyond(legacy=False), DAMAGED),
    "beyond its numbers, legacy": (beyond(legacy=True), DAMAGED),
    "legacy claim": (legacy_claim, DAMAGED),
    "zip claim": (zip_claim, DAMAGED),
    "list": (saved([STATE]), "holds 'list' where a dict of names to tensors"),
    "nothing": (saved(None), "holds 'NoneType' where"),
    "empty dict": (saved({}), "no masked autoencoder.*it is empty"),
    "wrapped in itself": (saved(wrapped_in_itself()), "no masked autoencoder.*it is empty"),
    "keys twice": (
        saved({**STATE, "module.norm.bias": torch.ones(192)}),
        "has 'norm.bias' with and without a prefix"),
    "another model": (saved(bert()), "'embeddings.word_embeddings.weight'"),
    "resnet": (
        saved({"conv1.weight": torch.ones(1), "bn1.num_batches_tracked": torch.tensor(3)}),
        "no masked autoencoder.*'conv1.weight'"),
    "no tensors": (saved({"net": [STATE]}), "no masked autoencoder.*'net'.*state_dict alone"),
    "linear probe": (
        saved({**checkpoints.encoder_of(STATE), "head.0.running_mean": torch.ones(192)}),
        "unknown .*by 'head.0.running_mean' it may be a linear probe"),
    "not square": (
        saved(position_table(1 + 3 * 5)), "16 entries, which are not one for a class token and a"),
    "no grid": (saved(position_table(1)), "1 entries, which are not one for a class token and a"),
    "TorchScript": (torchscript, "a TorchScript program"),
    "program": (program, "an archive that torch.save did not write"),
    "two pickles": (two_pickles, NOT_PLAIN.format("an archive that torch.save did not write")),
    "plain zip": (plain_zip, "an archive that torch.save did not write"),
    "link loop": (link_loop, "cannot be opened \\(Too many levels of symbolic links\\)"),
    "pipe": (pipe, "is a folder, a device or a pipe"),
    "device": (lambda *_: Path("/dev/zero"), "is a folder, a device or a pipe"),
    "nowhere": (lambda folder, _: folder / "none.pth", "neither a file of weights, a folder with"),
    "impossible path": (lambda folder, _: folder / "a\0b", "neither a file of weights"),
    "empty folder": (lambda folder, _: folder, "neither .* a folder with weights.safetensors"),
    "folder for a file": (folder_for_a_file, "is a folder, a device or a pipe"),
    "index outside": (index({"a": "../outside.safetensors"}), "which is not in its folder"),
    "index absolute": (index({"a": "/etc/passwd"}), "which is not in its folder"),
    "index to a parent": (index({"a": ".."}), "which is not in its folder"),
    "index of itself": (index({"a": "model.safetensors.index.json"}), "is no torch file"),
    "index of numbers": (index({"a": 3}), "JSON but no index of weights"),
    "index no object": (index([1]), "JSON but no index of weights"),
    "index of many": (
        index({str(i): str(i) for i in range(1001)}), "names '0', which is not in its folder"),
    "missing shard": (
        missing_shard, "'model-00002-of-00003.safetensors', which is not in its folder"),
    "swapped shards": (swapped_shards, "do not agree about 'decoder.*the whole folder again"),
    "config of a billion layers": (
        config_json(json.dumps({"model_type": "vit_mae", "num_hidden_layers": 10**9})),
        "num_hidden_layers '1000000000' where '2' fits"),
    "deep JSON": (config_json("[" * 100_000), NO_JSON),
    "huge JSON": (config_json(" " * 2**21), NO_JSON),
    "broken JSON": (config_json("{"), NO_JSON),
    "JSON list": (config_json("[]"), NO_JSON),
    "endless number": (config_json('{"hidden_size": ' + "9" * 9999 + "}"), NO_JSON),
}  # fmt: skip


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_broken_files_are_refused(name: str, tmp_path: Path, canary: Path) -> None:
    write, words = HOSTILE[name]
    folder = tmp_path / "files"
    folder.mkdir()
    path = write(folder, canary)
    for read in (read_weights, load):
        with pytest.raises(CheckpointError, match=words) as refusal:
            read(path)
        sentence = str(refusal.value)
        assert len(sentence) < 700
        assert sentence.isprintable()
    assert not canary.exists()


def test_the_canary_would_sing(tmp_path: Path, canary: Path) -> None:
    """Without the guard the same files do run: the test above can fail."""
    for make in (lambda c: Runs(builtins.eval, code(c)), restoring):
        path = running(make)(tmp_path, canary)
        torch.load(path, weights_only=False)
        assert canary.exists()
        canary.unlink()


@pytest.mark.parametrize("name", ["runs os.system", "runs eval, legacy", "compressed zip"])
def test_checkpoints_of_runs_are_as_guarded(name: str, tmp_path: Path, canary: Path) -> None:
    write, words = HOSTILE[name]
    path = write(tmp_path, canary)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(path)
    assert not canary.exists()


MEASURE = """
import sys
from pathlib import Path
import mae_core
from mae_core.weights.registry import read_weights
from mae_core.errors import CheckpointError

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

before = peak()
for path in sys.argv[1:]:
    try:
        read_weights(path)
        raise SystemExit("read " + path)
    except CheckpointError:
        pass
print((peak() - before) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak there")
def test_refusing_costs_little_memory(tmp_path: Path, canary: Path) -> None:
    names = ["compressed zip", "shared bytes", "beyond its numbers, legacy", "legacy claim",
             "zip claim", "endless bytes", "endless tensor", "huge header",
             "config of a billion layers"]  # fmt: skip
    paths = []
    for i, name in enumerate(names):
        folder = tmp_path / str(i)
        folder.mkdir()
        paths.append(str(HOSTILE[name][0](folder, canary)))
    with ForkedPython(MEASURE, *paths) as process:
        output = process.communicate()
    assert process.returncode == 0, output
    # The largest of the files has 10 MB; what they claim is 40 MB to 4 TB.
    assert int(output) < 60


def test_random_damage_never_raises_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    generator = torch.Generator().manual_seed(0)
    for legacy in (False, True):
        whole = checkpoints.write_torch(path, {"model": STATE}, legacy=legacy).read_bytes()
        refused = 0
        for _ in range(25):
            damaged = bytearray(whole)
            for place in torch.randint(0, 6000, (20,), generator=generator).tolist():
                damaged[place] = int(torch.randint(0, 256, (), generator=generator))
            path.write_bytes(damaged)
            try:
                read_weights(path)
            except CheckpointError:
                refused += 1
        assert refused > 12


def test_json_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}')
    assert read_json(path, 8) == {"a": 1}
    with pytest.raises(CheckpointError, match="no JSON object of at most 7 bytes"):
        read_json(path, 7)


def test_safetensors_of_whole_numbers_are_refused(tmp_path: Path) -> None:
    save_file({**STATE, "norm.bias": torch.ones(192).long()}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="'norm.bias' in 'x' is a tensor of int64"):
        read_weights(tmp_path / "x")
