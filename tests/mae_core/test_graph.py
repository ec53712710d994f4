import json
import logging
import re
import resource
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.onnx._internal.exporter import _onnx_program

from mae_core.config import ModelConfig
from mae_core.errors import CheckpointError, ConfigError
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import PatchMask, block_mask, custom_mask, mask_from_noise, random_mask
from mae_core.weights import onnx as graph
from mae_core.weights.formats import Weights
from mae_core.weights.onnx import ONNX_OPSET, PROGRAM_FACTS, describe, export_onnx, export_program
from tests.sources import ROOT

MICRO = ModelConfig(
    image_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, decoder_embed_dim=8,
    decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip

# Every kind of model, each at another picture size: its own, a larger one, wide and tall ones.
CASES: dict[str, tuple[ModelConfig, tuple[int, int] | None]] = {
    "own size": (replace(MICRO, in_chans=1, mean=(0.4,), std=(0.2,)), None),
    "norm_pix, larger": (replace(MICRO, norm_pix=True), (48, 48)),
    "mask tokens in the encoder, wide": (replace(MICRO, encoder_mask_tokens=True), (16, 56)),
    "principal components, tall": (replace(MICRO, pca_components=5), (40, 24)),
}

Outputs = tuple[Tensor, Tensor]


def weights_of(config: ModelConfig) -> Weights:
    """No parameter is what it begins as, so that none can be left out or taken for another."""
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(tensor.shape, generator=generator) * 0.2
        for name, tensor in MaskedAutoencoder(config).state_dict().items()
    }
    return Weights(config, state, {})


def size_of(config: ModelConfig, image_size: tuple[int, int] | None) -> tuple[int, int]:
    return image_size or (config.image_size, config.image_size)


def masks_for(grid_size: tuple[int, int]) -> list[PatchMask]:
    """One image and many; one visible patch, one removed, none; every source of masks."""
    h, w = grid_size
    length = h * w
    removed = np.zeros((2, h, w), dtype=bool)
    removed[0, :, 1] = removed[1, :, w - 1] = True
    return [
        random_mask(1, length, 0.75, seed=2),
        random_mask(5, length, 0.5, seed=1),
        random_mask(2, length, 0, seed=3),
        mask_from_noise(torch.rand(3, length), 1 - 1 / length),
        mask_from_noise(torch.rand(1, length), 1 / length),
        block_mask(3, grid_size, 0.6, seed=4),
        custom_mask(removed),
        custom_mask(removed[0]),
    ]


def expected(model: MaskedAutoencoder, images: Tensor, patch_mask: PatchMask) -> Outputs:
    output = model(images, patch_mask)
    return model.patches_from(output.pred), output.latent


def run_onnx(session: Any, images: Tensor, patch_mask: PatchMask) -> Outputs:
    given = {
        "images": images.numpy(),
        "ids_keep": patch_mask.ids_keep.numpy(),
        "ids_restore": patch_mask.ids_restore.numpy(),
    }
    pred, latent = session.run(["pred", "latent"], given)
    return torch.from_numpy(pred), torch.from_numpy(latent)


def load_program(path: Path) -> torch.nn.Module:
    return torch.export.load(path).module()


def load_session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


Files = tuple[ModelConfig, tuple[int, int], Path]


@pytest.fixture(scope="module", params=CASES)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A model, its picture size and the folder where it lies in both formats."""
    config, image_size = CASES[request.param]
    folder = tmp_path_factory.mktemp("graph")
    weights = weights_of(config)
    traced: dict[tuple[int, int], torch.export.ExportedProgram] = {}
    trace = graph.trace

    def once(weights: Weights, grid_size: tuple[int, int]) -> torch.export.ExportedProgram:
        if grid_size not in traced:
            traced[grid_size] = trace(weights, grid_size)
        return traced[grid_size]

    with pytest.MonkeyPatch.context() as patch:
        # Both begin with the same slow step.
        patch.setattr(graph, "trace", once)
        # A folder that is not there yet is made.
        export_program(weights, folder / "new" / "model.pt2", image_size=image_size)
        export_onnx(weights, folder / "new" / "model.onnx", image_size=image_size)
    return config, size_of(config, image_size), folder / "new"


@torch.inference_mode()
def test_both_give_what_the_model_gives(files: Files) -> None:
    config, (height, width), folder = files
    model = weights_of(config).build()
    program, session = load_program(folder / "model.pt2"), load_session(folder / "model.onnx")
    torch.manual_seed(0)
    for patch_mask in masks_for((height // 8, width // 8)):
        n = patch_mask.mask.shape[0]
        images = torch.randn(n, config.in_chans, height, width)
        wanted = expected(model, images, patch_mask)
        exported = program(images, patch_mask.ids_keep, patch_mask.ids_restore)
        for got in (exported, run_onnx(session, images, patch_mask)):
            torch.testing.assert_close(tuple(got), wanted, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_another_mask_is_another_picture(files: Files) -> None:
    config, (height, width), folder = files
    session = load_session(folder / "model.onnx")
    images = torch.randn(1, config.in_chans, height, width)
    length = height * width // 64
    one, other = (run_onnx(session, images, random_mask(1, length, 0.5, seed=s)) for s in (0, 1))
    assert not torch.allclose(one[0], other[0], atol=1e-3)


def test_the_file_is_valid_and_names_its_sizes(files: Files) -> None:
    config, (height, width), folder = files
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", ONNX_OPSET)]
    length = height * width // 64
    tokens: object = 1 + length if config.encoder_mask_tokens else "K + 1"
    sizes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert sizes == {
        "images": ["N", config.in_chans, height, width],
        "ids_keep": ["N", "K"],
        "ids_restore": ["N", length],
        "pred": ["N", length, config.patch_dim],
        "latent": ["N", tokens, config.embed_dim],
    }
    assert not [tensor.name for tensor in model.graph.initializer if tensor.external_data]


def test_positions_are_stored_at_the_size_they_are_used(files: Files) -> None:
    _, (height, width), folder = files
    operators = {node.op_type for node in onnx.load(folder / "model.onnx").graph.node}
    assert "Resize" not in operators
    program = torch.export.load(folder / "model.pt2")
    for name in ("pos_embed", "decoder_pos_embed"):
        assert program.state_dict[name].shape[1] == 1 + height * width // 64


def test_both_files_say_the_same_of_themselves(files: Files) -> None:
    config, (height, width), folder = files
    extra = {PROGRAM_FACTS: ""}
    torch.export.load(folder / "model.pt2", extra_files=extra)
    facts = json.loads(extra[PROGRAM_FACTS])
    props = onnx.load(folder / "model.onnx").metadata_props
    assert {prop.key: prop.value for prop in props} == facts
    assert facts == describe(config, (height // 8, width // 8))
    assert tuple(json.loads(facts["mean"])) == config.mean
    assert tuple(json.loads(facts["std"])) == config.std
    assert json.loads(facts["grid"]) == [height // 8, width // 8]
    assert json.loads(facts["image_size"]) == [height, width]
    assert facts["patch_size"] == "8"
    assert facts["target"] == ("norm_pix" if config.norm_pix else "pixels")
    assert not any("licen" in f"{name} {text}".lower() for name, text in facts.items())


def test_neither_file_says_where_it_was_made(files: Files) -> None:
    for file in ("model.pt2", "model.onnx"):
        content = (files[2] / file).read_bytes()
        assert str(ROOT).encode() not in content
        assert b"site-packages" not in content


@pytest.fixture(scope="module")
def micro() -> Weights:
    return weights_of(MICRO)


WITHOUT_US = """
import sys
import torch
given = torch.load("given.pt", weights_only=True)
pred, latent = torch.export.load("model.pt2").module()(*given)
torch.save((pred.detach(), latent.detach()), "got.pt")
assert not [name for name in sys.modules if name.split(".")[0] in ("mae_core", "timm")]
"""


def test_a_program_runs_without_this_package(
    micro: Weights, made_once: None, tmp_path: Path
) -> None:
    export_program(micro, tmp_path / "model.pt2")
    images, patch_mask = torch.randn(2, 3, 32, 32), random_mask(2, 16, 0.75, seed=0)
    torch.save((images, patch_mask.ids_keep, patch_mask.ids_restore), tmp_path / "given.pt")
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_US], cwd=tmp_path, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    with torch.inference_mode():
        wanted = expected(micro.build(), images, patch_mask)
    got = torch.load(tmp_path / "got.pt", weights_only=True)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_ids_need_no_torch() -> None:
    """What the docstring and the file's metadata say is what `masking` does."""
    documented = re.findall(
        r"^ +(ids_\w+ = numpy.*|ids_\w+ = ids_.*)$", export_onnx.__doc__ or "", re.M
    )
    assert len(documented) == 3
    noise = np.random.default_rng(0).random((3, 16), dtype=np.float32)
    removed = np.zeros((3, 16), dtype=bool)
    removed[0, 3:9] = removed[1, ::3] = removed[2, 10:] = True
    for given, patch_mask in (
        (noise, mask_from_noise(torch.from_numpy(noise), 0.625)),
        (removed.astype(np.float32), custom_mask(removed.reshape(3, 4, 4))),
    ):
        names: dict[str, Any] = {"numpy": np, "noise": given, "K": patch_mask.num_visible}
        exec(textwrap.dedent("\n".join(documented)), names)
        assert (names["ids_keep"] == patch_mask.ids_keep.numpy()).all()
        assert (names["ids_restore"] == patch_mask.ids_restore.numpy()).all()
        assert names["ids_keep"].dtype == names["ids_restore"].dtype == np.int64


def test_export_is_silent(
    micro: Weights,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export_program(micro, tmp_path / "model.pt2")
        export_onnx(micro, tmp_path / "model.onnx")
    assert not [str(warning.message) for warning in caught]
    assert capfd.readouterr() == ("", "")
    assert not [r.getMessage() for r in caplog.records if r.name.startswith(("onnx", "torch"))]


def test_weights_are_left_as_they_were(micro: Weights, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in micro.state.items()}
    export_program(micro, tmp_path / "model.pt2", image_size=(16, 40))
    assert before.keys() == micro.state.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in micro.state.items())


@pytest.mark.usefixtures("made_once")
@torch.inference_mode()
def test_a_model_too_large_for_one_file_has_a_data_file(
    micro: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 1000)
    path = tmp_path / "model.onnx"
    export_onnx(micro, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    external = [
        entry.value
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    ]
    assert external
    assert set(external) == {"model.onnx.data"}
    # Both may be moved, together.
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for file in ("model.onnx", "model.onnx.data"):
        (tmp_path / file).replace(folder / file)
    onnx.checker.check_model(folder / "model.onnx")
    images, patch_mask = torch.randn(2, 3, 32, 32), random_mask(2, 16, 0.75, seed=0)
    got = run_onnx(load_session(folder / "model.onnx"), images, patch_mask)
    wanted = expected(micro.build(), images, patch_mask)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def traced(micro: Weights) -> torch.export.ExportedProgram:
    return graph.trace(micro, (4, 4))


@pytest.fixture(scope="module")
def translated(traced: torch.export.ExportedProgram) -> torch.onnx.ONNXProgram:
    return graph.translate(traced, ("pred", "latent"))


@pytest.fixture
def made_once(
    traced: torch.export.ExportedProgram,
    translated: torch.onnx.ONNXProgram,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The slow half of an export is done once for all tests that are about its files."""
    monkeypatch.setattr(graph, "trace", lambda weights, grid_size: traced)
    monkeypatch.setattr(graph, "translate", lambda program, outputs: translated)


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file grows above `size` bytes: the system itself refuses, halfway through a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("made_once")
@pytest.mark.parametrize(
    ("name", "export"), [("model.pt2", export_program), ("model.onnx", export_onnx)]
)
def test_a_file_is_whole_or_as_it_was(
    name: str, export: Any, micro: Weights, tmp_path: Path
) -> None:
    path = tmp_path / name
    with disk_of(4096), pytest.raises(CheckpointError, match=f"could not write '{name}'"):
        export(micro, path)
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"the one before")
    with disk_of(4096), pytest.raises(CheckpointError, match=f"could not write '{name}'"):
        export(micro, path)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert path.read_bytes() == b"the one before"
    with pytest.raises(CheckpointError, match="could not write 'model'"):
        export(micro, path / "model")
    export(micro, path)
    assert path.stat().st_size > 4096


@pytest.mark.usefixtures("made_once")
def test_a_model_in_two_files_is_whole_or_as_it_was(
    micro: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 1000)
    path, data = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    path.write_bytes(b"the graph before")
    data.write_bytes(b"its data")
    with disk_of(4096), pytest.raises(CheckpointError, match="could not write 'model.onnx'"):
        export_onnx(micro, path)
    assert sorted(tmp_path.iterdir()) == [path, data]
    assert (path.read_bytes(), data.read_bytes()) == (b"the graph before", b"its data")


@pytest.mark.usefixtures("made_once")
@pytest.mark.parametrize("last", ["model.onnx", "model.onnx.data"])
def test_an_old_graph_never_meets_new_data(
    last: str, micro: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(path: Path, target: Path) -> Path:
        if target == tmp_path / last:
            raise OSError(28, "No space left on device")
        return replace_file(path, target)

    replace_file = Path.replace
    monkeypatch.setattr(Path, "replace", stop)
    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 1000)
    (tmp_path / "model.onnx").write_bytes(b"the graph before")
    (tmp_path / "model.onnx.data").write_bytes(b"its data")
    with pytest.raises(CheckpointError, match="No space left on device"):
        export_onnx(micro, tmp_path / "model.onnx")
    # Data without a graph is no model.
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx.data"]


@pytest.mark.parametrize(
    ("image_size", "message"),
    [
        ((32, 36), "32x36 image does not divide into patches of 8 pixels"),
        ((0, 32), "0x32 image does not divide"),
        ((8, 8), "8x8 image is a single patch"),
    ],
)
@pytest.mark.parametrize("export", [export_program, export_onnx])
def test_sizes_that_cannot_be_masked_are_refused(
    export: Any, image_size: tuple[int, int], message: str, micro: Weights, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        export(micro, tmp_path / "model", image_size=image_size)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_missing_packages_are_named(
    missing: str, micro: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match="pip install -r requirements-onnx.txt"):
        export_onnx(micro, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@torch.inference_mode()
def test_two_patches_are_enough(micro: Weights, tmp_path: Path) -> None:
    export_program(micro, tmp_path / "model.pt2", image_size=(8, 16))
    program, model = load_program(tmp_path / "model.pt2"), micro.build()
    for n in (1, 2, 3):
        images, patch_mask = torch.randn(n, 3, 8, 16), random_mask(n, 2, 0.5, seed=0)
        got = program(images, patch_mask.ids_keep, patch_mask.ids_restore)
        wanted = expected(model, images, patch_mask)
        torch.testing.assert_close(tuple(got), wanted, rtol=1e-5, atol=1e-5)
