"""Every published format opens, and says where each field of its model comes from."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mae_core.config import ModelConfig
from mae_core.errors import CheckpointError
from mae_core.model.losses import reconstruction_loss
from mae_core.model.masking import mask_from_noise
from mae_core.weights.formats import Hints, Weights
from mae_core.weights.registry import load, read_weights
from tests import checkpoints
from tests.checkpoints import SMALL

STATE = checkpoints.random_state(SMALL)
ENCODER = checkpoints.encoder_of(STATE)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return checkpoints.write_all(tmp_path_factory.mktemp("formats"))


FORMATS = {
    "official full": ("official", "autoencoder"),
    "official flat": ("official", "autoencoder"),
    "official legacy": ("official", "autoencoder"),
    "official encoder": ("official", "encoder"),
    "official classifier": ("official", "classifier"),
    "official training": ("official", "autoencoder"),
    "wrapped": ("official", "autoencoder"),
    "transformers 4": ("transformers 4", "autoencoder"),
    "transformers 4 bin": ("transformers 4", "autoencoder"),
    "transformers 4 shards": ("transformers 4", "autoencoder"),
    "transformers 4 bin shards": ("transformers 4", "autoencoder"),
    "transformers 4 file": ("transformers 4", "autoencoder"),
    "transformers 4 encoder": ("transformers 4", "encoder"),
    "transformers 5": ("transformers 5", "autoencoder"),
    "transformers 5 encoder": ("transformers 5", "encoder"),
    "timm file": ("official", "encoder"),
    "timm folder": ("timm", "encoder"),
    "mae_core": ("mae_core", "autoencoder"),
    "mae_core run": ("mae_core checkpoint", "autoencoder"),
}


def test_all_formats_are_tried(written: dict[str, Path]) -> None:
    assert written.keys() == FORMATS.keys()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_model_bitwise(name: str, written: dict[str, Path]) -> None:
    contents = read_weights(written[name])
    assert (contents.format, contents.kind) == FORMATS[name]
    assert contents.dtype == "float32"
    expected = {
        "autoencoder": STATE, "encoder": ENCODER, "classifier": checkpoints.classifier_of(STATE),
    }[contents.kind]  # fmt: skip
    assert contents.state.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(contents.state[key], tensor), key
    config = contents.config
    if contents.kind != "autoencoder":
        config = replace(config, decoder_depth=1)
    eps = 1e-12 if name.startswith("transformers") and name != "transformers 4 file" else 1e-6
    assert config == replace(SMALL, norm_pix=name == "official training", layer_norm_eps=eps)
    assert contents.num_classes == (10 if contents.kind == "classifier" else None)
    assert contents.origins.keys() == vars(config).keys()


def test_names_mean_nothing(written: dict[str, Path], tmp_path: Path) -> None:
    # A folder's files are found by their names.
    files = {name: path for name, path in written.items() if path.is_file()}
    assert len(files) == 10
    for name, path in files.items():
        copy = tmp_path / "weights.txt"
        copy.write_bytes(path.read_bytes())
        assert (read_weights(copy).format, read_weights(copy).kind) == FORMATS[name]


def test_files_of_a_folder_open_by_themselves(written: dict[str, Path]) -> None:
    folder = written["transformers 4 shards"]
    whole = read_weights(folder / "model.safetensors.index.json")
    assert whole.config == read_weights(folder).config
    file = read_weights(written["timm folder"] / "model.safetensors")
    assert file.format == "timm"


def test_origins_say_where_a_field_comes_from(written: dict[str, Path]) -> None:
    origins = read_weights(written["official full"]).origins
    assert {origins[name] for name in ("embed_dim", "depth", "patch_size", "image_size")} == {
        "shapes"
    }
    assert (origins["num_heads"], origins["decoder_num_heads"]) == ("known width", "known width")
    assert (origins["norm_pix"], origins["mean"]) == ("assumed", "assumed")
    origins = read_weights(written["transformers 4"]).origins
    for name in ("num_heads", "norm_pix", "layer_norm_eps", "mean", "std"):
        assert origins[name] == "config", name
    assert read_weights(written["official training"]).origins["norm_pix"] == "config"
    assert set(read_weights(written["mae_core"]).origins.values()) == {"config"}
    assert read_weights(written["timm folder"]).origins["std"] == "config"


def test_hints_go_before_what_lies_beside(written: dict[str, Path]) -> None:
    hints = Hints(num_heads=6, norm_pix=True, layer_norm_eps=1e-5, source="registry")
    contents = read_weights(written["transformers 4"], hints=hints)
    assert (contents.config.num_heads, contents.config.norm_pix) == (6, True)
    assert contents.config.layer_norm_eps == 1e-5
    assert contents.origins["num_heads"] == contents.origins["norm_pix"] == "registry"
    assert contents.config.decoder_num_heads == 16
    with pytest.raises(CheckpointError, match="does not divide into 5 heads"):
        read_weights(written["official full"], hints=Hints(num_heads=5))


@pytest.mark.parametrize(
    "hint",
    [{"num_heads": 0}, {"decoder_num_heads": -2}, {"layer_norm_eps": math.nan},
     {"layer_norm_eps": math.inf}],
)  # fmt: skip
def test_hints_that_are_no_number_of_anything_are_refused(
    hint: dict[str, Any], written: dict[str, Path]
) -> None:
    with pytest.raises(CheckpointError, match=f"describes no model: {next(iter(hint))}="):
        read_weights(written["official full"], hints=Hints(**hint))


@pytest.mark.parametrize("name", ["mae_core", "mae_core run"])
def test_what_a_file_says_itself_is_not_contradicted(name: str, written: dict[str, Path]) -> None:
    path = written[name]
    said = read_weights(path).config
    agreed = read_weights(path, hints=Hints(num_heads=said.num_heads, norm_pix=said.norm_pix))
    assert agreed.config == said
    with pytest.raises(CheckpointError, match="stores norm_pix=.*leave"):
        read_weights(path, hints=Hints(norm_pix=not said.norm_pix))
    # Of a file with a published name the registry may be wrong; nobody asked for its opinion.
    by_name = read_weights(path, hints=Hints(norm_pix=not said.norm_pix, source="registry"))
    assert by_name.config == said


@pytest.mark.parametrize("preset", ["base", "large", "huge"])
def test_published_sizes_are_read_from_shapes(preset: str, tmp_path: Path) -> None:
    from mae_core.config import PRESETS

    # Of two blocks each, so that a test can afford them; depth is counted like any other.
    config = replace(PRESETS[preset], depth=2, decoder_depth=1)
    state = checkpoints.random_state(config)
    contents = read_weights(checkpoints.write_torch(tmp_path / "x.pth", {"model": state}))
    assert contents.config == config
    assert contents.origins["num_heads"] == "known width"


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(image_size=24, patch_size=4, in_chans=1, embed_dim=64, depth=3, num_heads=1,
                    decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=16, mlp_ratio=3.3,
                    mean=(0.5,), std=(0.5,)),
        ModelConfig(image_size=48, patch_size=12, in_chans=5, embed_dim=36, depth=1, num_heads=1,
                    decoder_embed_dim=20, decoder_depth=1, decoder_num_heads=1, mlp_ratio=2,
                    mean=(0.5,) * 5, std=(0.5,) * 5),
        ModelConfig(image_size=16, patch_size=8, embed_dim=448, depth=1, num_heads=7,
                    decoder_embed_dim=48, decoder_depth=1, decoder_num_heads=16,
                    encoder_mask_tokens=True),
        ModelConfig(image_size=16, patch_size=8, embed_dim=64, depth=1, num_heads=1,
                    decoder_embed_dim=64, decoder_depth=1, decoder_num_heads=16,
                    pca_components=9),
    ],
    ids=["gray", "five channels", "mask tokens", "components"],
)  # fmt: skip
def test_unusual_models_are_read_from_shapes(config: ModelConfig, tmp_path: Path) -> None:
    path = checkpoints.write_torch(tmp_path / "x.pth", checkpoints.random_state(config))
    contents = read_weights(path)
    assert replace(contents.config, mlp_ratio=config.mlp_ratio) == config
    assert contents.origins["num_heads"] == contents.origins["decoder_num_heads"] == "assumed"
    assert contents.origins["mean"] == "assumed"
    load(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_formats_are_said_and_read(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {key: tensor.to(dtype) for key, tensor in STATE.items()}
    for contents in (
        read_weights(checkpoints.write_torch(tmp_path / "x.pth", state)),
        read_weights(checkpoints.write_safetensors(tmp_path / "x.safetensors", state)),
    ):
        assert contents.dtype == str(dtype).removeprefix("torch.")
        for key, tensor in contents.state.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, state[key].float())


def test_the_average_beside_the_model_is_left_alone(tmp_path: Path) -> None:
    spoilt = {key: tensor + 1 for key, tensor in STATE.items()}
    path = checkpoints.write_torch(tmp_path / "x.pth", {"model_ema": spoilt, "model": STATE})
    assert torch.equal(read_weights(path).state["cls_token"], STATE["cls_token"])


WRAPPERS: list[Callable[[dict[str, Any]], dict[str, Any]]] = [
    lambda s: {"state_dict": s},
    lambda s: {"model": {"state_dict": {"module": s}}},
    lambda s: {f"module.{key}": t for key, t in s.items()},
    lambda s: {"model": {f"_orig_mod.module.{key}": t for key, t in s.items()}},
    lambda s: {key.replace("blocks.0.", "blocks.0._orig_mod."): t for key, t in s.items()},
]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrappers_are_taken_off(
    wrap: Callable[[dict[str, Any]], dict[str, Any]], tmp_path: Path
) -> None:
    contents = read_weights(checkpoints.write_torch(tmp_path / "x.pth", wrap(dict(STATE))))
    assert contents.state.keys() == STATE.keys()


def test_what_is_read_does_not_need_its_file(tmp_path: Path) -> None:
    path = checkpoints.write_torch(tmp_path / "x.pth", STATE)
    contents = read_weights(path)
    path.write_bytes(b"")
    assert torch.equal(contents.state["norm.bias"], STATE["norm.bias"])


# --- config.json against the shapes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": 96}, "hidden_size '96' where '192' fits the weights"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers '1000000000000'"),
        ({"image_size": 48}, "image_size '48'"),
        ({"image_size": [32, 64]}, "image_size"),
        ({"intermediate_size": 7}, "intermediate_size"),
        ({"decoder_hidden_size": 7}, "decoder_hidden_size"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' where 'gelu'"),
        ({"qkv_bias": False}, "qkv_bias 'False'"),
        ({"model_type": "vit"}, "model_type 'vit'"),
        ({"num_attention_heads": 0}, "num_heads=0: "),
        ({"num_attention_heads": "three"}, "num_heads='three': "),
        ({"num_attention_heads": 7}, "does not divide into 7 heads"),
        ({"norm_pix_loss": "maybe"}, "norm_pix='maybe': "),
        ({"layer_norm_eps": -1}, "layer_norm_eps=-1: "),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps=nan: "),
    ],
)
def test_a_config_that_asks_for_another_model_is_refused(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = checkpoints.write_huggingface(tmp_path / "hf", SMALL, STATE)
    config = {**checkpoints.huggingface_config(SMALL), **change}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=words):
        read_weights(folder)


@pytest.mark.parametrize("mean", ["0.5", [0.5], [0.5, 0.5, "x"], [float("nan"), 0, 0]])
def test_statistics_that_are_none_are_refused(mean: object, tmp_path: Path) -> None:
    folder = checkpoints.write_huggingface(tmp_path / "hf", SMALL, STATE)
    checkpoints.write_json(folder / "preprocessor_config.json", {"image_mean": mean})
    with pytest.raises(CheckpointError, match="mean"):
        read_weights(folder)


def test_statistics_beside_the_weights_are_used(tmp_path: Path) -> None:
    folder = checkpoints.write_huggingface(tmp_path / "hf", SMALL, STATE)
    values = {"image_mean": [0.5, 0.25, 0], "image_std": [1, 0.5, 0.25]}
    checkpoints.write_json(folder / "preprocessor_config.json", values)
    config = read_weights(folder).config
    assert (config.mean, config.std) == ((0.5, 0.25, 0.0), (1.0, 0.5, 0.25))


def test_a_foreign_config_beside_an_official_file_is_no_matter(tmp_path: Path) -> None:
    checkpoints.write_json(tmp_path / "config.json", {"model_type": "bert", "hidden_size": 1})
    path = checkpoints.write_torch(tmp_path / "x.pth", STATE)
    assert read_weights(path).format == "official"
    path = checkpoints.write_torch(tmp_path / "y.pth", ENCODER)
    assert read_weights(path).format == "official"


def test_timm_config_of_another_width_is_refused(tmp_path: Path) -> None:
    folder = checkpoints.write_timm(tmp_path / "timm", replace(SMALL, embed_dim=384), STATE)
    with pytest.raises(CheckpointError, match="num_features '384' where '192' fits"):
        read_weights(folder)


# --- what cannot reconstruct


@pytest.mark.parametrize(
    ("size", "name"),
    [
        ((768, 12, 12), "mae-base-visualize"),
        ((1024, 24, 16), "mae-large-visualize"),
        ((192, 2, 3), "give weights with a decoder"),
    ],
)
def test_encoders_are_refused_with_the_name_of_what_has_a_decoder(
    size: tuple[int, int, int], name: str, tmp_path: Path
) -> None:
    width, depth, heads = size
    config = replace(
        SMALL, embed_dim=width, depth=depth, num_heads=heads, mlp_ratio=0.01, patch_size=16
    )
    state = checkpoints.random_state(config)
    path = checkpoints.write_torch(tmp_path / "x.pth", {"model": checkpoints.encoder_of(state)})
    with pytest.raises(CheckpointError, match=f"'x.pth' has no decoder .* {name}"):
        load(path)


def test_classifiers_are_refused_for_reconstruction(written: dict[str, Path]) -> None:
    with pytest.raises(
        CheckpointError, match="has no decoder \\(classifier\\), so no pixels can be"
    ):
        load(written["official classifier"])


def test_a_classifier_of_the_class_token_opens(tmp_path: Path) -> None:
    head = {key: t for key, t in checkpoints.classifier_of(STATE).items() if "head" in key}
    contents = read_weights(checkpoints.write_torch(tmp_path / "x.pth", {**ENCODER, **head}))
    assert (contents.kind, contents.num_classes) == ("classifier", 10)


# --- against transformers


@pytest.mark.parametrize("norm_pix", [False, True])
def test_what_transformers_saves_gives_its_own_numbers(norm_pix: bool, tmp_path: Path) -> None:
    # Imported late: transformers needs the torchvision that importing mae_core has mended.
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    peer = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
            decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
            decoder_intermediate_size=64, image_size=32, patch_size=8, norm_pix_loss=norm_pix,
        )
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    peer.save_pretrained(tmp_path)
    contents: Weights = read_weights(tmp_path)
    assert contents.config.num_heads == 4
    assert contents.config.norm_pix == norm_pix
    assert contents.config.layer_norm_eps == 1e-12
    model = load(tmp_path)
    images = torch.randn(3, 3, 32, 32, generator=generator)
    drawn = torch.rand(3, 16, generator=generator)
    with torch.no_grad():
        ours = model(images, mask_from_noise(drawn, 0.75))
        theirs = peer(images, noise=drawn)
        latent = peer.vit(images, noise=drawn).last_hidden_state
    torch.testing.assert_close(ours.pred, theirs.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.latent, latent, rtol=0, atol=1e-5)
    loss = reconstruction_loss(ours.pred, model.target(images), ours.mask)
    torch.testing.assert_close(loss, theirs.loss, rtol=1e-5, atol=0)
