"""Files as training scripts and other libraries leave them: opened, or refused for what they are.

The layouts are those of the libraries' own code, with random weights in them.
"""

import argparse
import datetime
import logging
import pathlib
import pickle
import sys
import types
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from mae_core.cli import mae
from mae_core.config import ModelConfig, from_dict, to_dict
from mae_core.errors import CheckpointError, ConfigError
from mae_core.model.mae import MaskedAutoencoder, forward_flops
from mae_core.model.masking import random_mask
from mae_core.reconstruct import Reconstructor
from mae_core.weights.files import read_torch
from mae_core.weights.formats import Hints, Weights, save_weights
from mae_core.weights.info import describe
from mae_core.weights.registry import load, read_weights
from tests import checkpoints
from tests.checkpoints import SMALL, State
from tests.mae_core.test_hostile_checkpoints import rezipped

STATE = checkpoints.random_state(SMALL)
ENCODER = checkpoints.encoder_of(STATE)
DECODER = {key: tensor for key, tensor in STATE.items() if key not in ENCODER}
OTHER = checkpoints.random_state(SMALL, seed=5)


def under(prefix: str, state: State) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def written(folder: Path, content: object, name: str = "x.ckpt") -> Path:
    return checkpoints.write_torch(folder / name, content)


def assert_state(contents: Weights, expected: State) -> None:
    assert contents.state.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(contents.state[key], tensor), key


# --- prefixes and what lies beside


@pytest.mark.parametrize(
    "prefix",
    ["model.", "net.", "backbone.", "mae.", "encoder.", "module.model.", "_orig_mod.",
     "model._orig_mod.", "a.b.c.d.", "network.0.", "whatever_it_is.", "_fsdp_wrapped_module."],
)  # fmt: skip
def test_any_prefix_is_taken_off(prefix: str, tmp_path: Path) -> None:
    for i, state in enumerate((STATE, ENCODER, checkpoints.huggingface_state(STATE))):
        contents = read_weights(written(tmp_path, {"x": under(prefix, state)}, str(i)))
        assert_state(contents, ENCODER if i == 1 else STATE)


def test_transparent_wrappers_within_names_are_taken_off(tmp_path: Path) -> None:
    state = {key.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module."): tensor
             for key, tensor in STATE.items()}  # fmt: skip
    assert_state(read_weights(written(tmp_path, under("_fsdp_wrapped_module.", state))), STATE)


BESIDE: dict[str, State] = {
    "criterion": {"criterion.weight": torch.ones(3)},
    "momentum_backbone": under("momentum_backbone.", ENCODER),
    "online_classifier": {"online_classifier.weight": torch.ones(10, 192),
                          "online_classifier.bias": torch.ones(10)},
    "lpips": {"lpips.conv1.weight": torch.ones(3, 3, 1, 1)},
    "metric": {"metric.confusion": torch.zeros(3, 3).int()},
}  # fmt: skip


@pytest.mark.parametrize("place", BESIDE)
def test_tensors_beside_the_model_are_left_aside_and_named(
    place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contents = read_weights(written(tmp_path, under("model.", STATE) | BESIDE[place]))
    assert_state(contents, STATE)
    assert contents.under == ("model",)
    assert contents.left_aside == {place: len(BESIDE[place])}
    assert f"the model under 'model' is taken; left aside: '{place}'" in caplog.text


def test_a_module_beside_a_model_without_prefix_is_left_aside(tmp_path: Path) -> None:
    beside = {"criterion.weight": torch.ones(3), "n_averaged": torch.tensor(3), "epoch": 3,
              "regressor.weight": torch.ones(3), "normalize.mean": torch.ones(3)}  # fmt: skip
    contents = read_weights(written(tmp_path, STATE | beside))  # type: ignore[operator]
    assert_state(contents, STATE)
    assert contents.left_aside == {"criterion": 1, "regressor": 1, "normalize": 1}


def test_a_head_for_classes_does_not_hide_the_decoder(tmp_path: Path) -> None:
    head = {"head.weight": torch.ones(10, 192), "head.bias": torch.ones(10)}
    contents = read_weights(written(tmp_path, under("backbone.", STATE | head)))
    assert (contents.kind, contents.left_aside) == ("autoencoder", {"backbone.head": 2})


def test_a_parameter_that_would_change_the_model_is_not_left_aside(tmp_path: Path) -> None:
    for key in ("dist_token", "norm_pre.weight", "pos_drop.scale", "blocks.0.attn.temperature"):
        path = written(tmp_path, under("model.", {**STATE, key: torch.ones(192)}))
        with pytest.raises(CheckpointError, match=f"{key}|not those of the paper"):
            read_weights(path)


def test_encoder_and_decoder_may_be_apart(tmp_path: Path) -> None:
    apart: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"encoder": ENCODER, "decoder": DECODER}, ("encoder", "decoder")),
        (under("mae.encoder.", ENCODER) | under("mae.", DECODER), ("mae.encoder", "mae")),
        (under("encoder.", ENCODER) | DECODER, ("encoder", "")),
        (ENCODER | under("decoder.", DECODER), ("", "decoder")),
    ]
    for content, places in apart:
        contents = read_weights(written(tmp_path, content))
        assert_state(contents, STATE)
        assert contents.under == places
        assert not contents.left_aside


# --- which of two


@pytest.mark.parametrize(
    "average", ["ema", "model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "swa"]
)
def test_an_average_is_left_alone_beside_the_model_and_taken_without(
    average: str, tmp_path: Path
) -> None:
    contents = read_weights(written(tmp_path, {average: OTHER, "state_dict": STATE}))
    assert_state(contents, STATE)
    assert contents.left_aside == {average: len(OTHER)}
    alone = read_weights(written(tmp_path, {average: OTHER, "epoch": 3}))
    assert_state(alone, OTHER)
    assert alone.under == (average,)


def test_a_whole_average_goes_before_an_encoder(tmp_path: Path) -> None:
    contents = read_weights(written(tmp_path, {"model": ENCODER, "model_ema": OTHER}))
    assert_state(contents, OTHER)


@pytest.mark.parametrize("key", ["model_state_dict", "net", "weights", "params", "teacher", "ema"])
def test_a_wrapper_may_be_called_anything(key: str, tmp_path: Path) -> None:
    assert_state(read_weights(written(tmp_path, {key: STATE, "epoch": 3, "loss": 0.1})), STATE)


def test_the_same_weights_under_two_names_are_one_model(tmp_path: Path) -> None:
    assert_state(read_weights(written(tmp_path, {"model": STATE, "best": STATE})), STATE)


@pytest.mark.parametrize("names", [("student", "teacher"), ("a", "b"), ("ema", "model_ema")])
def test_of_two_models_none_is_chosen(names: tuple[str, str], tmp_path: Path) -> None:
    path = written(tmp_path, dict(zip(names, (STATE, OTHER), strict=True)))
    words = f"holds 2 models, under '{names[0]}' and '{names[1]}'.*save the state_dict of the one"
    with pytest.raises(CheckpointError, match=words):
        read_weights(path)


def test_a_whole_student_goes_before_a_teacher_without_decoder(tmp_path: Path) -> None:
    path = written(tmp_path, {"student": STATE, "teacher": checkpoints.encoder_of(OTHER)})
    assert_state(read_weights(path), STATE)


def test_files_of_countless_names_or_models_are_refused(tmp_path: Path) -> None:
    one = torch.ones(1)
    path = written(tmp_path, {str(i): one for i in range(100_001)})
    with pytest.raises(CheckpointError, match="has 100,001 names; at most 100,000"):
        read_weights(path)
    path = written(tmp_path, {f"{i}.patch_embed.proj.weight": one for i in range(101)})
    with pytest.raises(CheckpointError, match="holds 101 models"):
        read_weights(path)


# --- layouts of libraries


def lightning(state: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What `Trainer.save_checkpoint` of PyTorch Lightning 2 writes."""
    moments = {i: {"step": torch.tensor(7.0), "exp_avg": torch.zeros(3)} for i in range(3)}
    return {
        "epoch": 3, "global_step": 400, "pytorch-lightning_version": "2.4.0",
        "state_dict": OrderedDict(state),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {
            "monitor": "loss", "best_model_score": torch.tensor(0.3), "best_k_models": {
                "runs/a.ckpt": torch.tensor(0.3)}, "dirpath": pathlib.PurePosixPath("runs"),
            "kth_value": torch.tensor(0.3)}},
        "optimizer_states": [{"state": moments, "param_groups": [{"lr": 1e-4, "params": [0]}]}],
        "lr_schedulers": [{"base_lrs": [1e-4], "last_epoch": 3, "_step_count": 4}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"norm_pix_loss": True, "decoder_num_heads": 8, "lr": 1e-4},
        **more,
    }  # fmt: skip


def test_a_lightning_checkpoint_opens(tmp_path: Path) -> None:
    content = lightning(under("model.", STATE) | {"criterion.weight": torch.ones(3)})
    contents = read_weights(written(tmp_path, content))
    assert_state(contents, STATE)
    assert (contents.container, contents.under) == ("PyTorch Lightning", ("state_dict.model",))
    assert contents.left_aside == {"state_dict.criterion": 1}
    # What the module was made with is saved beside it.
    assert (contents.config.norm_pix, contents.config.decoder_num_heads) == (True, 8)
    assert contents.origins["norm_pix"] == contents.origins["decoder_num_heads"] == "config"
    assert load(tmp_path / "x.ckpt").config == contents.config


def test_hyperparameters_that_fit_no_model_are_anothers(tmp_path: Path) -> None:
    content = lightning(STATE, hyper_parameters={"num_heads": 7, "decoder_num_heads": "many"})
    config = read_weights(written(tmp_path, content)).config
    assert (config.num_heads, config.decoder_num_heads) == (3, 16)


def solo_learn(state: State) -> State:
    """solo-learn's MAE: backbone, decoder and a classifier; its small ViTs have 12 heads."""
    encoder = checkpoints.encoder_of(state)
    decoder = {key: tensor for key, tensor in state.items() if key not in encoder}
    classifier = {"classifier.weight": torch.ones(10, 192), "classifier.bias": torch.ones(10)}
    return under("backbone.", encoder) | under("decoder.", decoder) | classifier


def test_solo_learn_opens_with_its_own_heads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, lightning(solo_learn(STATE), hyper_parameters={}))
    contents = read_weights(path)
    assert_state(contents, STATE)
    assert contents.under == ("state_dict.backbone", "state_dict.decoder")
    assert contents.config.num_heads == 12
    load(path)
    assert "does not say its num_heads: 12 is a guess" in caplog.text
    assert read_weights(path, hints=Hints(num_heads=3)).config.num_heads == 3


def test_lightly_with_timm_opens(tmp_path: Path) -> None:
    head = {"head.weight": torch.ones(1000, 192), "head.bias": torch.ones(1000)}
    state = under("backbone.vit.", ENCODER | head) | under("decoder.", DECODER)
    state["backbone.mask_token"] = torch.zeros(1, 1, 192)
    contents = read_weights(written(tmp_path, lightning(state)))
    assert_state(contents, STATE)
    assert contents.left_aside.keys() >= {
        "state_dict.backbone.vit.head", "state_dict.backbone.mask_token"
    }  # fmt: skip


class TorchvisionMAE(nn.Module):
    """lightly's MAE on torchvision's ViT: `MAEBackbone`, `MAEDecoder` and a token beside them."""

    def __init__(self) -> None:
        super().__init__()
        from functools import partial

        from torchvision.models.vision_transformer import Encoder, VisionTransformer

        norm = partial(nn.LayerNorm, eps=1e-6)
        self.backbone = VisionTransformer(
            image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=192, mlp_dim=768,
            norm_layer=norm,
        )  # fmt: skip
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 512))
        self.decoder = Encoder(17, 1, 16, 512, 2048, 0.0, 0.0, norm)
        self.decoder.decoder_embed = nn.Linear(192, 512)
        self.decoder.prediction_head = nn.Linear(512, 192)

    def forward(self, images: Tensor, mask: Any) -> Tensor:
        vit, n = self.backbone, len(images)
        tokens = vit.conv_proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat((vit.class_token.expand(n, -1, -1), tokens), 1)
        tokens = tokens + vit.encoder.pos_embedding
        keep = torch.cat((torch.zeros(n, 1, dtype=torch.long), mask.ids_keep + 1), 1)
        index = keep.unsqueeze(-1)
        seen = tokens.gather(1, index.expand(-1, -1, 192))
        seen = vit.encoder.ln(vit.encoder.layers(seen))
        whole = self.mask_token.expand(n, 17, -1)
        embedded = self.decoder.decoder_embed(seen)
        whole = whole.scatter(1, index.expand(-1, -1, 512), embedded)
        pred: Tensor = self.decoder.prediction_head(self.decoder(whole))
        return pred[:, 1:]


@pytest.mark.parametrize("old", [False, True])
def test_lightly_with_torchvision_gives_its_own_numbers(old: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    peer = TorchvisionMAE().eval()
    for parameter in peer.parameters():
        nn.init.normal_(parameter, std=0.05)
    state = peer.state_dict()
    if old:
        renamed = {"mlp.0": "mlp.linear_1", "mlp.3": "mlp.linear_2"}
        for new, before in renamed.items():
            state = {key.replace(new, before): tensor for key, tensor in state.items()}
    path = written(tmp_path, lightning(state))
    contents = read_weights(path)
    assert (contents.format, contents.kind) == ("torchvision", "autoencoder")
    images, mask = torch.randn(2, 3, 32, 32), random_mask(2, 16, 0.75, seed=0)
    model = load(path, hints=Hints(decoder_num_heads=16))
    with torch.no_grad():
        pred = model(images, mask).pred
        torch.testing.assert_close(pred, peer(images, mask), rtol=0, atol=1e-5)


def openmmlab(state: State) -> State:
    """MAE of mmselfsup and mmpretrain: `backbone` and `neck`."""
    inside = {
        "norm1": "ln1",
        "norm2": "ln2",
        "mlp.fc1": "ffn.layers.0.0",
        "mlp.fc2": "ffn.layers.1",
    }
    theirs = {}
    for key, tensor in state.items():
        name = f"neck.{key}" if key in DECODER else f"backbone.{key}"
        for ours, other in inside.items():
            name = name.replace(f".{ours}.", f".{other}.")
        name = name.replace("backbone.blocks.", "backbone.layers.")
        name = name.replace("patch_embed.proj.", "patch_embed.projection.")
        name = name.replace("backbone.norm.", "backbone.ln1.")
        theirs[name.replace("neck.decoder_norm.", "neck.ln1.")] = tensor
    return theirs


def test_openmmlab_opens(tmp_path: Path) -> None:
    theirs = openmmlab(STATE)
    names = {"backbone.layers.0.ffn.layers.0.0.weight", "backbone.ln1.bias", "neck.ln1.weight",
             "neck.decoder_blocks.0.ln2.bias", "backbone.layers.1.attn.qkv.weight"}  # fmt: skip
    assert names <= theirs.keys()
    meta = {"epoch": 300, "mmengine_version": "0.10.3", "experiment_name": "mae"}
    contents = read_weights(written(tmp_path, {"meta": meta, "state_dict": theirs}))
    assert_state(contents, STATE)
    assert contents.format == "openmmlab"
    encoder = {key: t for key, t in theirs.items() if key.startswith("backbone.")}
    assert_state(read_weights(written(tmp_path, {"state_dict": encoder})), ENCODER)


def test_a_deepspeed_file_opens(tmp_path: Path) -> None:
    content = {"module": STATE, "ds_version": "0.15.1", "ds_config": {"zero": 1},
               "param_shapes": [OrderedDict(a=torch.Size([1, 2]))], "optimizer": None}  # fmt: skip
    contents = read_weights(written(tmp_path, content, "mp_rank_00_model_states.pt"))
    assert_state(contents, STATE)
    assert contents.container == "DeepSpeed"


# --- harmless things beside the weights


@dataclass
class Settings:
    """What a script may keep beside its weights, of a class of its own."""

    lr: float = 0.1


PLAIN: dict[str, object] = {
    "path": pathlib.PosixPath("/data/pictures"),
    "pure path": pathlib.PureWindowsPath("C:/data"),
    "date": datetime.date(2024, 5, 1),
    "moment": datetime.datetime(2024, 5, 1, 12, 30, tzinfo=datetime.UTC),
    "duration": datetime.timedelta(hours=3),
    "numpy scalar": np.float64(0.5),
    "numpy integer": np.int32(3),
    "numpy bool": np.bool_(True),
    "numpy array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "numpy texts": np.array(["a", "b"]),
    "numpy objects": np.array([{"a": 1}, None], dtype=object),
    "dtype": np.dtype("float32"),
    "numpy type": np.float32,
    "numpy generator": np.random.RandomState(0).get_state(),
    "defaultdict": defaultdict(list, a=[1, 2]),
    "deque": deque([1, 2], maxlen=3),
    "ordered": OrderedDict(a=1),
    "options": argparse.Namespace(a=1, folder=pathlib.PosixPath("/data")),
    "simple": SimpleNamespace(a=1),
    "plain": [1, 2.5, "x", None, True, b"bytes", b"", (1,), {"a": 1}, 2**70, -1],
    "set": {1, 2},
    "frozen set": frozenset({1, 2}),
    "complex": 1 + 2j,
    "size": torch.Size([1, 2]),
    "device": torch.device("cuda:0"),
    "number format": torch.bfloat16,
    "generator": torch.Generator().get_state(),
    "torch version": torch.__version__,
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_harmless_things_beside_the_weights_do_not_matter(
    name: str, legacy: bool, tmp_path: Path
) -> None:
    content = {"model": STATE, "beside": PLAIN[name], "args": argparse.Namespace(x=PLAIN[name])}
    path = checkpoints.write_torch(tmp_path / "x.pth", content, legacy=legacy)
    assert_state(read_weights(path), STATE)


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
@pytest.mark.parametrize("kind", ["WindowsPath", "PosixPath"])
def test_paths_of_any_machine_and_python_are_passed_over(
    kind: str, module: str, tmp_path: Path
) -> None:
    content = {"model": STATE, "folder": pathlib.PurePosixPath("/data")}
    own = f"c{pathlib.PurePosixPath.__module__}\nPurePosixPath\n".encode()
    other = f"c{module}\n{kind}\n".encode()
    path = rezipped(tmp_path, content, lambda _, part: part.replace(own, other))
    assert other in path.read_bytes()
    assert_state(read_weights(path), STATE)


def test_the_dicts_of_lightning_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pickled by `__newobj__`, as every subclass of dict is.
    module = types.ModuleType("lightning_fabric.utilities.data")
    kind = type("AttributeDict", (dict,), {"__module__": module.__name__})
    module.AttributeDict = kind  # type: ignore[attr-defined]
    for name in ("lightning_fabric", "lightning_fabric.utilities", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    path = written(tmp_path, {"state_dict": STATE, "hyper_parameters": kind(num_heads=2, x=[1])})
    assert_state(read_weights(path), STATE)


def test_nothing_that_is_named_is_made(tmp_path: Path) -> None:
    options = argparse.Namespace(
        folder=pathlib.PosixPath("/data"), when=datetime.date(2024, 5, 1), x=np.float64(1)
    )
    path = written(tmp_path, {"model": STATE, "args": options})
    read = vars(read_torch(path)["args"])
    assert {type(value).__name__ for value in read.values()} == {"_Inert"}
    # Outside of reading torch allows no more than it did.
    with pytest.raises(pickle.UnpicklingError, match="Unsupported"):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("legacy", [False, True])
def test_much_honest_content_opens(legacy: bool, tmp_path: Path) -> None:
    moments = {i: {"step": torch.tensor(7.0), "exp_avg": torch.zeros(3)} for i in range(3000)}
    betas = (0.9, 0.95)
    content = {
        "model": OrderedDict(STATE), "scalars": [np.float64(i) for i in range(20_000)],
        "array": np.zeros(400_000), "bytes": [bytes([i % 256]) * 40 for i in range(20_000)],
        "optimizer": {"state": moments, "param_groups": [{"betas": betas} for _ in range(3000)]},
        "shapes": [torch.Size([i, 2]) for i in range(5000)], "names": set(map(str, range(20_000))),
    }  # fmt: skip
    path = checkpoints.write_torch(tmp_path / "x.pth", content, legacy=legacy)
    assert_state(read_weights(path), STATE)


def test_an_object_of_a_script_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    words = "holds '{}', which plain weights never do, and nothing in it was run.*state_dict alone"
    for content in ({"model": STATE, "config": Settings()},
                    lightning(STATE, hyper_parameters={"config": Settings()})):  # fmt: skip
        with pytest.raises(CheckpointError, match=words.format("tests.*Settings")):
            read_weights(written(tmp_path, content))
    with pytest.raises(CheckpointError, match=words.format("torch.nn.modules.*")):
        read_weights(written(tmp_path, {"model": nn.Linear(2, 2)}))


def test_another_version_of_pickles_is_not_called_damaged(tmp_path: Path) -> None:
    torch.save({"model": STATE}, tmp_path / "x.pth", pickle_protocol=4)
    with pytest.raises(CheckpointError, match="holds a pickle of version 4, which plain weights"):
        read_weights(tmp_path / "x.pth")


# --- unequal MLPs

UNEQUAL = replace(SMALL, mlp_ratio=4.0, decoder_mlp_ratio=2.0)


def test_unequal_mlps_are_read_from_shapes(tmp_path: Path) -> None:
    state = checkpoints.random_state(UNEQUAL)
    assert state["decoder_blocks.0.mlp.fc1.weight"].shape == (1024, 512)
    contents = read_weights(written(tmp_path, {"model": state}))
    assert contents.config == UNEQUAL
    assert contents.origins["decoder_mlp_ratio"] == "shapes"
    folder = checkpoints.write_huggingface(tmp_path / "hf", SMALL, state)
    checkpoints.write_json(folder / "config.json", {
        **checkpoints.huggingface_config(SMALL), "decoder_intermediate_size": 1024})  # fmt: skip
    assert read_weights(folder).config.decoder_mlp_ratio == 2.0


def test_unequal_mlps_go_out_and_in_again(tmp_path: Path) -> None:
    path = written(tmp_path, checkpoints.random_state(UNEQUAL), "x.pth")
    for target, name in (("mae_core", "x.safetensors"), ("official", "y.pth"),
                         ("huggingface", "hf")):  # fmt: skip
        assert mae(["convert", str(path), str(tmp_path / name), "--to", target]) == 0
        assert read_weights(tmp_path / name).config.mlp_ratios == (4.0, 2.0)


def test_a_config_without_the_new_fields_is_as_it_was() -> None:
    # A run is resumed only if its model is described as it was when it began.
    assert not {"decoder_mlp_ratio", "grid"} & to_dict(SMALL).keys()
    assert from_dict(ModelConfig, to_dict(SMALL)) == SMALL
    assert from_dict(ModelConfig, to_dict(UNEQUAL)) == UNEQUAL
    assert forward_flops(UNEQUAL, (4, 4), 0.75) < forward_flops(SMALL, (4, 4), 0.75)
    with pytest.raises(ConfigError, match="decoder_mlp_ratio=-1.0: "):
        replace(SMALL, decoder_mlp_ratio=-1.0)


# --- position tables that are not square


def wide_state(grid: tuple[int, int], *, learned: bool = False) -> State:
    h, w = grid
    config = replace(SMALL, image_size=min(grid) * 8, grid=grid)
    state = dict(checkpoints.random_state(config))
    if not learned:
        fresh = MaskedAutoencoder(config).state_dict()
        state |= {name: fresh[name] for name in ("pos_embed", "decoder_pos_embed")}
    assert state["pos_embed"].shape[1] == 1 + h * w
    return state


@pytest.mark.parametrize("grid", [(4, 8), (2, 16), (8, 4), (2, 8), (1, 5), (3, 5), (4, 4)])
def test_a_sincos_table_tells_its_grid(grid: tuple[int, int], tmp_path: Path) -> None:
    config = read_weights(written(tmp_path, wide_state(grid))).config
    assert config.table_grid == grid
    assert config.image_size == min(grid) * 8
    assert (config.grid is None) == (grid[0] == grid[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_rounded_sincos_table_tells_its_grid(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {key: tensor.to(dtype) for key, tensor in wide_state((4, 8)).items()}
    assert read_weights(written(tmp_path, state)).config.table_grid == (4, 8)


def test_pictures_of_the_trained_size_are_as_the_original_model_draws_them(tmp_path: Path) -> None:
    state = wide_state((2, 8))  # as many entries as 4 x 4, which it was taken for
    path = written(tmp_path, state)
    model = load(path)
    images, mask = torch.randn(2, 3, 16, 64), random_mask(2, 16, 0.75, seed=0)
    # As the original does: its own tables, added as they are.
    tokens = model.patch_embed(images) + state["pos_embed"][:, 1:]
    visible = tokens.gather(1, mask.ids_keep.unsqueeze(-1).expand(-1, -1, 192))
    cls = (state["cls_token"] + state["pos_embed"][:, :1]).expand(2, -1, -1)
    with torch.no_grad():
        latent = model.norm(model.blocks(torch.cat((cls, visible), 1)))
        hidden = model.mask_token.expand(2, 16 - mask.num_visible, -1)
        embedded = model.decoder_embed(latent)
        whole = torch.cat((embedded[:, 1:], hidden), 1)
        whole = whole.gather(1, mask.ids_restore.unsqueeze(-1).expand(-1, -1, 512))
        whole = torch.cat((embedded[:, :1], whole), 1) + state["decoder_pos_embed"]
        pred = model.decoder_pred(model.decoder_norm(model.decoder_blocks(whole)))[:, 1:]
        assert torch.equal(model(images, mask).pred, pred)
    # A whole frame of that shape is taken as it is.
    reconstructor = Reconstructor(model, "wide", device="cpu", precision="float32")
    shown = reconstructor(Image.new("RGB", (64, 16)), fit="whole")
    assert shown.reconstruction.shape == (3, 16, 64)


def test_a_learned_table_needs_a_hint_or_a_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = wide_state((2, 4), learned=True)
    path = written(tmp_path, state, "x.pth")
    with pytest.raises(CheckpointError, match="9 entries.*a square grid.*--grid H W"):
        read_weights(path)
    contents = read_weights(path, hints=Hints(grid=(2, 4)))
    assert (contents.config.grid, contents.origins["grid"]) == ((2, 4), "option")
    for grid in ((3, 3), (-2, -4), (0, 8)):
        with pytest.raises(
            CheckpointError, match="has 8 entries .*give another|describes no model"
        ):
            read_weights(path, hints=Hints(grid=grid))
    target = tmp_path / "own.safetensors"
    assert mae(["convert", str(path), str(target), "--to", "mae_core", "--grid", "2", "4"]) == 0
    official = str(tmp_path / "y.pth")
    assert mae(["convert", str(target), official, "--to", "official"]) == 0
    assert "not stored: grid=(2, 4)" in capsys.readouterr().out
    assert read_weights(target).config.grid == (2, 4)
    assert read_weights(target, hints=Hints(grid=(2, 4))).config.grid == (2, 4)
    with pytest.raises(CheckpointError, match="leave that option out"):
        read_weights(target, hints=Hints(grid=(4, 2)))
    folder = checkpoints.write_huggingface(tmp_path / "hf", SMALL, state)
    checkpoints.write_json(folder / "config.json", {
        **checkpoints.huggingface_config(SMALL), "image_size": [16, 32]})  # fmt: skip
    told = read_weights(folder)
    assert (told.config.grid, told.origins["grid"]) == ((2, 4), "config")


def test_a_hint_that_contradicts_a_sincos_table_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, wide_state((4, 8)))
    with pytest.raises(
        CheckpointError, match="given as 8x4, and pos_embed .* has 32 entries .*, in 4x8; give"
    ):
        read_weights(path, hints=Hints(grid=(8, 4)))


def test_a_wide_model_goes_out_and_in_again(tmp_path: Path) -> None:
    path = written(tmp_path, wide_state((4, 8)), "x.pth")
    for target, name in (("mae_core", "x.safetensors"), ("official", "y.pth")):
        assert mae(["convert", str(path), str(tmp_path / name), "--to", target]) == 0
        assert read_weights(tmp_path / name).config.grid == (4, 8)
    with pytest.raises(CheckpointError, match="a grid of 4x8 patches, which is not square"):
        mae(["convert", str(path), str(tmp_path / "hf"), "--to", "huggingface"])


def test_a_graph_of_a_wide_model_takes_its_own_pictures(tmp_path: Path) -> None:
    path = written(tmp_path, wide_state((4, 8)), "x.pth")
    assert mae(["convert", str(path), str(tmp_path / "x.pt2"), "--to", "torch_export"]) == 0
    graph = torch.export.load(tmp_path / "x.pt2").module()
    images, mask = torch.randn(2, 3, 32, 64), random_mask(2, 32, 0.75, seed=0)
    with torch.no_grad():
        pred, _ = graph(images, mask.ids_keep, mask.ids_restore)
        ours = load(path)(images, mask).pred
    torch.testing.assert_close(pred, ours, rtol=0, atol=1e-5)


def test_a_wide_model_opens_in_timm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import timm

    path = written(tmp_path, wide_state((4, 8)), "x.pth")
    target = tmp_path / "e.safetensors"
    assert mae(["convert", str(path), str(target), "--to", "timm"]) == 0
    call = capsys.readouterr().out.split("open it with: ")[1]
    assert "img_size=(32, 64)" in call
    peer = eval(call, {"timm": timm}).eval()
    images = torch.randn(1, 3, 32, 64)
    mask = random_mask(1, 32, 0.0, seed=0)
    with torch.no_grad():
        ours = load(path).encode(images, mask)[:, 0]
        torch.testing.assert_close(peer.forward_features(images)[:, 0], ours, rtol=0, atol=1e-5)


def test_a_grid_that_is_not_the_image_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="image_size has to be its shorter side, and is 32"):
        replace(SMALL, grid=(2, 4))


def test_tables_and_models_without_a_class_token_are_refused(tmp_path: Path) -> None:
    state = {**STATE, "pos_embed": wide_state((4, 4))["pos_embed"][:, 1:]}
    with pytest.raises(CheckpointError, match="16 entries, which are not one for a class token"):
        read_weights(written(tmp_path, state))
    without = {key: tensor for key, tensor in STATE.items() if key != "cls_token"}
    with pytest.raises(CheckpointError, match="cls_token is missing"):
        read_weights(written(tmp_path, without))


# --- refused for what it is


def vit(prefix: str = "", **more: Tensor) -> State:
    return under(prefix, {**ENCODER, **more})


def one() -> Tensor:
    return torch.ones(2)


FOREIGN: dict[str, tuple[object, str]] = {
    "SimMIM": (
        vit("encoder.", mask_token=torch.zeros(1, 1, 192)) | {"decoder.0.weight": one()},
        "decoder_embed.weight is missing .*by 'decoder.0.weight' it may be SimMIM"),
    "BEiT": (
        vit(**{"blocks.0.gamma_1": one(), "blocks.0.attn.q_bias": one()}), "unknown .*BEiT"),
    "DINOv2": (
        vit(**{"register_tokens": one(), "mask_token": one(), "blocks.0.ls1.gamma": one()}),
        "may be DINOv2"),
    "DINO": (
        {"student": vit("module.backbone.", **{"head.mlp.0.weight": one()}),
         "teacher": vit("backbone.", **{"head.last_layer.weight_v": one()})},
        "holds 2 models.*may be DINO"),
    "I-JEPA": (
        {"encoder": vit("module."), "target_encoder": vit("module."),
         "predictor": {"module.predictor_embed.weight": one()}}, "holds 2 models.*I-JEPA"),
    "MoCo": (
        {"state_dict": {"module.encoder_q.conv1.weight": one(), "module.queue": one()}}, "MoCo"),
    "CLIP": (
        {"visual.class_embedding": one(), "visual.conv1.weight": one(), "logit_scale": one(),
         "token_embedding.weight": one()}, "no masked autoencoder: .*CLIP"),
    "ConvMAE": (
        {"patch_embed1.proj.weight": one(), "blocks1.0.norm1.weight": one()}, "ConvMAE"),
    "Swin": (
        {"patch_embed.proj.weight": torch.ones(96, 3, 4, 4),
         "layers.0.blocks.0.attn.relative_position_bias_table": one()}, "Swin"),
    "SAM": (vit("image_encoder.", **{"blocks.0.attn.rel_pos_h": one()}), "SAM"),
    "videos": (
        under("encoder.", {**ENCODER, "patch_embed.proj.weight": torch.ones(192, 3, 2, 8, 8)}),
        r"patch_embed.proj.weight has shape \(192, 3, 2, 8, 8\)"),
    "quantised": (vit(**{"blocks.0.mlp.fc1.weight_scale": one()}), "quantised"),
    "LoRA": ({"base.blocks.0.attn.qkv.lora_A.weight": one()}, "LoRA"),
    "unknown": ({"a": one(), "b": one()}, "of a patch embedding \\('a', 'b'\\)"),
    "optimiser": (
        {"state": {0: {"exp_avg": one()}}, "param_groups": [{"lr": 0.1}]}, "'param_groups'"),
    "stage 3": (
        {"module": {key: torch.zeros(0) for key in STATE}, "ds_version": "0.15.1"},
        r"patch_embed.proj.weight has shape \(0,\)"),
    "empty dict": ({}, "it is empty"),
    "tensor": (torch.ones(3), "holds 'Tensor' where a dict of names to tensors is needed"),
    "scalars": ({"epoch": 3, "loss": 0.1}, "no masked autoencoder: .*'epoch', 'loss'"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_another_model_is_refused_with_what_it_may_be(name: str, tmp_path: Path) -> None:
    content, words = FOREIGN[name]
    path = written(tmp_path, content)
    with pytest.raises(CheckpointError, match=words) as refusal:
        read_weights(path)
    sentence = str(refusal.value)
    assert not any(false in sentence for false in ("damaged", "cut short", "download"))
    assert sentence.isprintable()


def test_whole_numbers_in_safetensors_are_named(tmp_path: Path) -> None:
    save_file(under("model.", {**STATE, "norm.bias": torch.ones(192).int()}), tmp_path / "x")
    with pytest.raises(CheckpointError, match="is a tensor of int32 where ordinary"):
        read_weights(tmp_path / "x")


@pytest.mark.parametrize("nested", [False, True])
def test_folders_of_parts_are_named(nested: bool, tmp_path: Path) -> None:
    folder = tmp_path / "epoch=1.ckpt"
    inner = folder / "checkpoint" if nested else folder
    written(inner, {"module": {}}, "mp_rank_00_model_states.pt")
    for read in (read_weights, load, describe):
        with pytest.raises(CheckpointError, match=r"weights in parts.*zero_to_fp32\.py"):
            read(str(folder))
    other = tmp_path / "dcp"
    other.mkdir()
    (other / "__0_0.distcp").touch()
    with pytest.raises(CheckpointError, match="dcp_to_torch FOLDER FILE"):
        read_weights(other)


# --- said, by every way in


def test_info_says_where_it_was_found_and_what_was_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, lightning(solo_learn(STATE)))
    assert mae(["info", str(path)]) == 0
    lines = capsys.readouterr().out
    for words in ("PyTorch Lightning", "found under", "state_dict.backbone", "left aside",
                  "state_dict.classifier (2 tensors)"):  # fmt: skip
        assert words in lines
    facts = describe(str(path))
    assert facts["written_by"] == "PyTorch Lightning"
    assert facts["found_under"] == ["state_dict.backbone", "state_dict.decoder"]


def test_the_page_and_the_library_open_them_alike(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.WARNING)
    path = written(tmp_path, lightning(under("mae.", STATE) | BESIDE["lpips"]))
    weights = read_weights(path)
    assert weights.state.keys() == STATE.keys()
    assert "left aside" in caplog.text
    assert mae(["info", str(path)]) == 0
    assert "state_dict.mae" in capsys.readouterr().out


def test_saved_weights_know_their_grid(tmp_path: Path) -> None:
    config = replace(SMALL, image_size=16, grid=(2, 4), decoder_mlp_ratio=1.5)
    save_weights(tmp_path / "x.safetensors", MaskedAutoencoder(config), record={})
    assert read_weights(tmp_path / "x.safetensors").config == config
