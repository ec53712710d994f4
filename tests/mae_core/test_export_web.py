import hashlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor

from mae_core.cli import mae
from mae_core.config import ModelConfig, to_dict
from mae_core.errors import CheckpointError, ConfigError, DataError
from mae_core.evaluation.web import measure_web_loss
from mae_core.inside.stages import trace
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import random_mask
from mae_core.reconstruct import ReconstructionRequest, Reconstructor
from mae_core.weights import WEB_PROPERTY, WebLoss, export_web, list_weights, save_weights
from mae_core.weights import web as module
from mae_core.weights.formats import Weights
from tests.pictures import draw_picture
from tests.sources import ROOT

MICRO = ModelConfig(
    image_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, decoder_embed_dim=8,
    decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip

CASES = {
    "pixels": MICRO,
    "norm_pix, wide": replace(MICRO, norm_pix=True, grid=(4, 6)),
    "mask tokens in the encoder": replace(MICRO, encoder_mask_tokens=True),
    "principal components": replace(MICRO, pca_components=5),
}
KINDS = ("int8", "float16")

SMALL, LARGE = WebLoss(0.01, 0.09, 3), WebLoss(0.01, 0.11, 3)


def weights_of(config: ModelConfig) -> Weights:
    """No parameter is what it begins as, so that none can be left out or taken for another."""
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(tensor.shape, generator=generator) * 0.2
        for name, tensor in MaskedAutoencoder(config).state_dict().items()
    }
    return Weights(config, state)


def rounded(weights: Weights, kind: str) -> MaskedAutoencoder:
    """The model as its file stores it, by arithmetic of the test's own."""
    state = {}
    for name, tensor in weights.state.items():
        state[name] = tensor.half().float() if tensor.ndim > 1 else tensor
        if kind == "int8" and tensor.ndim in (2, 4):
            step = tensor.flatten(1).abs().amax(dim=1) / 127
            step = step.view(-1, *[1] * (tensor.ndim - 1))
            state[name] = (tensor / step).round() * step
    return Weights(weights.config, state).build()


def load_session(content: bytes, **options: Any) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    for name, value in options.items():
        setattr(settings, name, value)
    return onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])


def run(session: Any, images: Tensor, mask: Any) -> tuple[Tensor, Tensor]:
    given = {"images": images, "ids_keep": mask.ids_keep, "ids_restore": mask.ids_restore}
    pred, changes = session.run(
        ["pred", "changes"], {name: tensor.numpy() for name, tensor in given.items()}
    )
    return torch.from_numpy(pred), torch.from_numpy(changes)


Made = tuple[Weights, dict[str, bytes]]


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Weights and their file in each storage, as it is measured."""
    weights, contents = weights_of(CASES[request.param]), []

    def measure(model: MaskedAutoencoder, content: bytes) -> WebLoss:
        contents.append(content)
        return LARGE

    export_web(weights, tmp_path_factory.mktemp("web"), name="micro", measure=measure)
    return weights, dict(zip(KINDS, contents, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_the_graph_gives_what_the_stored_model_gives(made: Made, kind: str) -> None:
    weights, contents = made
    model, session = rounded(weights, kind), load_session(contents[kind])
    h, w = weights.config.table_grid
    torch.manual_seed(0)
    for n, ratio in ((1, 0.75), (5, 0.5), (2, 0.0), (3, 1 - 1 / (h * w)), (1, 1 / (h * w))):
        images = torch.randn(n, 3, h * 8, w * 8)
        mask = random_mask(n, h * w, ratio, seed=n)
        pred, changes = run(session, images, mask)
        wanted = model.patches_from(model(images, mask).pred)
        torch.testing.assert_close(pred, wanted, rtol=1e-4, atol=1e-4)
        assert changes.shape == (2, n, model.encoder_ids(mask).shape[1])


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.03), ("float16", 0.001)])
@torch.inference_mode()
def test_what_is_stored_is_close_to_the_model(made: Made, kind: str, most: float) -> None:
    weights, contents = made
    h, w = weights.config.table_grid
    images, mask = torch.randn(2, 3, h * 8, w * 8), random_mask(2, h * w, 0.75, seed=2)
    model = weights.build()
    wanted = model.patches_from(model(images, mask).pred)
    pred, _ = run(load_session(contents[kind]), images, mask)
    assert (pred - wanted).square().mean() < most**2 * wanted.square().mean()


@pytest.mark.parametrize("kind", KINDS)
def test_changes_are_those_of_a_trace(made: Made, kind: str) -> None:
    weights, contents = made
    reconstructor = Reconstructor(rounded(weights, kind), device="cpu", precision="float32")
    h, w = weights.config.table_grid
    picture = draw_picture(0, w * 8, h * 8)
    request, images, mask = reconstructor.prepare(
        ReconstructionRequest(picture, fit="whole", seed=3)
    )
    _, changes = run(load_session(contents[kind]), images, mask)
    wanted = torch.tensor(trace(reconstructor, request).changes)
    torch.testing.assert_close(changes[:, 0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_all_arithmetic_is_float32_and_right_without_optimisations(
    made: Made, kind: str, tmp_path: Path
) -> None:
    weights, contents = made
    levels = onnxruntime.GraphOptimizationLevel
    plain = load_session(contents[kind], graph_optimization_level=levels.ORT_DISABLE_ALL)
    folded = load_session(
        contents[kind], graph_optimization_level=levels.ORT_ENABLE_EXTENDED,
        optimized_model_filepath=str(tmp_path / "folded.onnx"),
    )  # fmt: skip
    graph = onnx.load(tmp_path / "folded.onnx").graph
    assert not {node.op_type for node in graph.node} & {"Cast", "DequantizeLinear"}
    narrow = {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT16}
    assert not narrow & {tensor.data_type for tensor in graph.initializer}
    h, w = weights.config.table_grid
    images, mask = torch.randn(2, 3, h * 8, w * 8), random_mask(2, h * w, 0.75, seed=2)
    for got, wanted in zip(run(folded, images, mask), run(plain, images, mask), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_valid_small_and_names_its_sizes(made: Made, kind: str) -> None:
    weights, contents = made
    config = weights.config
    model = onnx.load_from_string(contents[kind])
    onnx.checker.check_model(model, full_check=True)
    h, w = config.table_grid
    sizes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert sizes == {
        "images": ["N", 3, h * 8, w * 8],
        "ids_keep": ["N", "K"],
        "ids_restore": ["N", h * w],
        "pred": ["N", h * w, config.patch_dim],
        "changes": [2, "N", h * w if config.encoder_mask_tokens else "K"],
    }
    assert all(
        tensor.name.endswith(".scale") or len(tensor.dims) < 2
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    )


@pytest.fixture(scope="module")
def translated() -> torch.onnx.ONNXProgram:
    traced = module.trace(weights_of(MICRO), (4, 4), module._WebGraph)
    return module.translate(traced, ("pred", "changes"))


@pytest.fixture
def micro(translated: torch.onnx.ONNXProgram, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """The slow half of an export is done once for all tests that are about its files."""
    monkeypatch.setattr(module, "trace", lambda *_: None)
    monkeypatch.setattr(module, "translate", lambda *_: translated)
    return weights_of(MICRO)


@pytest.mark.parametrize(
    ("storage", "loss", "chosen"),
    [
        (None, None, "float16"),
        (None, SMALL, "int8"),
        (None, LARGE, "float16"),
        (None, WebLoss(0.03, 0.03, 1), "float16"),
        ("int8", None, "int8"),
        ("int8", LARGE, "int8"),
        ("float16", SMALL, "float16"),
    ],
)
def test_what_is_measured_decides(
    storage: Any, loss: WebLoss | None, chosen: str, micro: Weights, tmp_path: Path
) -> None:
    measure = (lambda *_: loss) if loss else None
    facts = export_web(micro, tmp_path, name="micro", storage=storage, measure=measure)
    assert (facts["storage"], facts["loss_db"]) == (chosen, loss and asdict(loss))


def test_it_says_what_it_is(micro: Weights, tmp_path: Path) -> None:
    micro = replace(micro, record={"step": 250, "steps": 1000})
    facts = export_web(
        micro, tmp_path / "new", name="me/Lilies \N{SUNFLOWER}", licence="mine", storage="int8"
    )
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "me-Lilies.json", "me-Lilies.onnx",
    ]  # fmt: skip
    content = (tmp_path / "new" / "me-Lilies.onnx").read_bytes()
    described = json.loads((tmp_path / "new" / "me-Lilies.json").read_text("utf-8"))
    assert described == json.loads(json.dumps(facts)) == {
        "v": 1, "name": "me-Lilies", "file": "me-Lilies.onnx", "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(), "licence": "mine", "target": "pixels",
        "mean": list(MICRO.mean), "std": list(MICRO.std), "patch_size": 8, "grid": [4, 4],
        "storage": "int8", "parameters": sum(t.numel() for t in micro.state.values()),
        "step": 250, "steps": 1000, "loss_db": None,
        "config": json.loads(json.dumps(to_dict(MICRO))),
    }  # fmt: skip
    (own,) = onnx.load_from_string(content).metadata_props
    assert own.key == WEB_PROPERTY
    for name in ("file", "bytes", "sha256"):
        del described[name]
    assert json.loads(own.value) == described


@pytest.mark.parametrize(
    ("name", "safe"), [("..", "model"), ("../a", "a"), ("mae-tiny", "mae-tiny")]
)
def test_names_stay_in_their_folder(name: str, safe: str, micro: Weights, tmp_path: Path) -> None:
    assert export_web(micro, tmp_path, name=name)["file"] == f"{safe}.onnx"
    assert (tmp_path / f"{safe}.json").is_file()


def test_steps_that_are_no_numbers_are_not_repeated(micro: Weights, tmp_path: Path) -> None:
    facts = export_web(replace(micro, record={"step": "<b>", "steps": []}), tmp_path, name="micro")
    assert (facts["step"], facts["steps"]) == (None, None)


def test_the_same_weights_give_the_same_bytes_that_name_no_place(
    translated: torch.onnx.ONNXProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_web(weights_of(MICRO), tmp_path / "one", name="micro", storage="int8")
    monkeypatch.setattr(module, "translate", lambda *_: translated)
    export_web(weights_of(MICRO), tmp_path / "other", name="micro", storage="int8")
    one, other = ((tmp_path / name / "micro.onnx").read_bytes() for name in ("one", "other"))
    assert one == other
    for place in (str(ROOT), str(tmp_path), "site-packages", "File ", ".py"):
        assert place.encode() not in one


def test_the_description_comes_last(micro: Weights, tmp_path: Path) -> None:
    (tmp_path / "micro.onnx").mkdir()
    with pytest.raises(CheckpointError, match=r"could not write 'micro.onnx'"):
        export_web(micro, tmp_path, name="micro")
    assert [path.name for path in tmp_path.iterdir()] == ["micro.onnx"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"kind": "encoder"}, "has no decoder"),
        (
            {"config": replace(MICRO, in_chans=1, mean=(0.5,), std=(0.5,))},
            "a model of 1 channels, and the page in a browser shows pictures of 3",
        ),
    ],
)
def test_other_models_are_refused(changes: Any, sentence: str, tmp_path: Path) -> None:
    weights = weights_of(changes.get("config", MICRO))
    with pytest.raises(CheckpointError, match=sentence):
        export_web(replace(weights, **changes), tmp_path, name="micro")
    assert not list(tmp_path.iterdir())


def test_what_a_browser_cannot_hold_is_refused(
    micro: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = sum(tensor.numel() for tensor in micro.state.values())
    monkeypatch.setattr(module, "_MAX_BYTES", parameters)
    with pytest.raises(CheckpointError, match=f"{parameters // 2:,} of them as float16.* int8"):
        export_web(micro, tmp_path, name="micro")
    # Nothing else is left to choose.
    facts = export_web(micro, tmp_path, name="micro", measure=lambda *_: LARGE)
    assert facts["storage"] == "int8"
    monkeypatch.setattr(module, "_MAX_BYTES", parameters - 1)
    with pytest.raises(CheckpointError, match=r"of 1 GiB, .* as int8; give smaller weights$"):
        export_web(micro, tmp_path, name="other", storage="int8")
    assert not (tmp_path / "other.onnx").exists()


def test_numbers_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    weights = weights_of(MICRO)
    weights.state["mask_token"][0, 0, 0] = 7e4
    with pytest.raises(CheckpointError, match="mask_token .* too large for float16"):
        export_web(weights, tmp_path, name="micro")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_are_named(
    missing: str, micro: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=f"{missing}.*pip install -r requirements-onnx.txt"):
        export_web(micro, tmp_path, name="micro", measure=lambda *_: SMALL)
    assert not list(tmp_path.iterdir())


# --- measured


def unfit_for_int8() -> Weights:
    """A model of one plain grey, whose every output has one weight that the others are lost beside.

    The decoder's norm gives 0 where that weight is, and 1 elsewhere.
    """
    weights = weights_of(MICRO)
    state, small = weights.state, 2**-4
    state["decoder_norm.weight"].zero_()
    state["decoder_norm.bias"].fill_(1)[0] = 0
    state["decoder_pred.weight"].fill_(small)[:, 0] = 20
    grey = (torch.tensor(128 / 255) - torch.tensor(MICRO.mean)) / torch.tensor(MICRO.std)
    state["decoder_pred.bias"] = grey.repeat(MICRO.patch_size**2) - 7 * small
    return weights


def test_int8_is_left_where_it_is_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    translations: list[torch.onnx.ONNXProgram] = []

    def kept(*given: Any) -> torch.onnx.ONNXProgram:
        translations.append(translate(*given))
        return translations[0]

    translate = module.translate
    monkeypatch.setattr(module, "translate", kept)
    (tmp_path / "pictures").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (50, 40), (128, 128, 128)).save(tmp_path / "pictures" / name)
    path = tmp_path / "grey.safetensors"
    save_weights(path, unfit_for_int8().build(), record={})
    command = ["export-web", str(path), "--out", str(tmp_path / "out")]
    measured = [*command, "--data", str(tmp_path / "pictures")]

    assert mae(measured) == 0
    facts = json.loads((tmp_path / "out" / "grey.json").read_text("utf-8"))
    assert (facts["storage"], facts["loss_db"]["pictures"]) == ("float16", 2)
    assert facts["loss_db"]["worst"] <= 0.1
    out, err = capsys.readouterr()
    assert f"grey.onnx: float16, {facts['bytes'] / 1e6:.1f} MB\nit loses " in out
    assert "warning" not in err

    # The same weights: only how they are stored differs.
    monkeypatch.setattr(module, "translate", lambda *_: translations[0])
    assert mae([*measured, "--storage", "int8"]) == 0
    facts = json.loads((tmp_path / "out" / "grey.json").read_text("utf-8"))
    assert facts["storage"] == "int8"
    assert facts["loss_db"]["mean"] > 1
    assert "warning: that is above 0.02 dB on average or 0.1 dB at most" in capsys.readouterr().err


@torch.inference_mode()
def test_the_loss_is_that_of_the_pictures_that_are_shown(made: Made, tmp_path: Path) -> None:
    """Figures of `Reconstructor`, before and after the weights are rounded."""
    weights, contents = made
    h, w = weights.config.table_grid
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for i, path in enumerate(paths):
        draw_picture(i, 8 * w, 8 * h).save(path)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    lost = []
    for path in paths:
        for seed in (2, 3, 4):
            one, other = (
                Reconstructor(model, device="cpu", precision="float32")(
                    path, 0.75, seed, fit="whole"
                )
                for model in (weights.build(), rounded(weights, "int8"))
            )
            assert one.psnr is not None
            assert other.psnr is not None
            lost.append(one.psnr - other.psnr)
    loss = measure_web_loss(weights.build(), contents["int8"], tmp_path)
    assert loss.pictures == 2
    assert loss.mean == pytest.approx(np.mean(lost), abs=2e-3)
    assert loss.worst == pytest.approx(max(lost), abs=2e-3)


@pytest.mark.usefixtures("micro")
def test_without_pictures_nothing_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "micro.safetensors"
    save_weights(path, weights_of(MICRO).build(), record={})
    command = ["export-web", str(path), "--out", str(tmp_path / "out")]
    assert mae(command) == 0
    out = capsys.readouterr().out
    assert "micro.onnx: float16" in out
    assert "nothing was measured; --data IMAGES halves the file" in out
    assert mae([*command, "--storage", "int8"]) == 0
    assert "measured" not in capsys.readouterr().out
    facts = json.loads((tmp_path / "out" / "micro.json").read_text("utf-8"))
    assert (facts["storage"], facts["loss_db"], facts["licence"]) == ("int8", None, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image lies below"):
        mae([*command, "--data", str(tmp_path / "empty")])


@pytest.mark.usefixtures("micro")
def test_bundled_weights_keep_their_licence(tmp_path: Path) -> None:
    assert mae(["export-web", "mae-tiny", "--out", str(tmp_path)]) == 0
    facts = json.loads((tmp_path / "mae-tiny.json").read_text("utf-8"))
    assert facts["licence"] == list_weights()["mae-tiny"].licence
