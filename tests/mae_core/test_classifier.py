"""Classifiers are written, read, measured and asked, beside timm, transformers, torchvision."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mae_core._compat import ensure_torchvision_imports
from mae_core.cli import mae, main
from mae_core.config import ModelConfig
from mae_core.data.datasets import ImageReader
from mae_core.data.labelled import open_labelled, open_part
from mae_core.data.transforms import centre_crop, crop_image
from mae_core.errors import CheckpointError, ConfigError, DataError
from mae_core.evaluation.classifier import ClassifierConfig, PredictConfig, classify, measure
from mae_core.evaluation.features import extract
from mae_core.evaluation.linear import fit_lbfgs
from mae_core.evaluation.scores import wilson_interval
from mae_core.model.mae import MaskedAutoencoder
from mae_core.weights.export import convert
from mae_core.weights.formats import Weights, save_classifier, save_weights
from mae_core.weights.publish import write_repository
from mae_core.weights.registry import load, read_weights
from tests import checkpoints
from tests.pictures import draw_picture

ensure_torchvision_imports()

import timm  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

CLASSES = ("blue", "green", "red")
POOLS = ("avg", "token")


def vit_of(config: ModelConfig, num_classes: int = 3, pool: Any = "avg", seed: int = 0) -> Any:
    """A classifier with noise in every parameter, positions and norms included."""
    vit = MaskedAutoencoder(config).to_timm(num_classes, global_pool=pool).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in vit.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
    return vit


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))


def logits_of(vit: Any, images: Tensor) -> Tensor:
    with torch.inference_mode():
        outputs: Tensor = vit(images)
    return outputs


@pytest.fixture
def saved(small_config: ModelConfig, tmp_path: Path) -> Path:
    """The folder of a run that ended in a classifier."""
    folder = tmp_path / "tuned"
    save_classifier(
        folder / "weights.safetensors", vit_of(small_config), small_config, classes=CLASSES,
        record={"recipe": "finetune", "accuracy": 0.875},
    )  # fmt: skip
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, count in (("train", 2), ("val", 4)):
        for name in CLASSES:
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((80, 64), 3).save(folder / f"{i}.png")
    return tmp_path / "data"


# --- written and read


@pytest.mark.parametrize("pool", POOLS)
def test_what_is_written_is_read_again_bitwise(
    pool: str, small_config: ModelConfig, tmp_path: Path
) -> None:
    config = replace(small_config, grid=(6, 9), mean=(0.1, 0.2, 0.3), layer_norm_eps=1e-5)
    vit = vit_of(config, pool=pool)
    path = tmp_path / "tuned.safetensors"
    save_classifier(path, vit, config, classes=CLASSES, record={"steps": 3})
    weights = read_weights(path)
    assert (weights.kind, weights.format, weights.num_classes) == ("classifier", "mae_core", 3)
    assert (weights.classes, weights.config, weights.record) == (CLASSES, config, {"steps": 3})
    images = noise(2, 3, 48, 72)
    built = weights.build_classifier()
    assert not built.training
    assert torch.equal(logits_of(built, images), logits_of(vit, images))
    save_classifier(path, vit, config, classes=(), record={}, dtype=torch.float16)
    assert (read_weights(path).dtype, read_weights(path).classes) == ("float16", ())


def test_positions_are_resampled_to_another_size(saved: Path, small_config: ModelConfig) -> None:
    weights, images = read_weights(saved), noise(2, 3, 64, 64)
    model = MaskedAutoencoder(small_config)
    state = {key: t for key, t in weights.state.items() if key in model.state_dict()}
    model.load_state_dict(state, strict=False)
    expected = model.to_timm(3, img_size=64).eval()
    expected.load_state_dict({k: t for k, t in weights.state.items() if k != "pos_embed"}, False)
    built = weights.build_classifier(image_size=64)
    assert torch.equal(logits_of(built, images), logits_of(expected, images))
    with pytest.raises(ConfigError, match="a 50x50 image does not divide into patches"):
        weights.build_classifier(image_size=50)


def test_only_classifiers_are_built_as_such(
    saved: Path, small_model: MaskedAutoencoder, tmp_path: Path
) -> None:
    save_weights(tmp_path / "whole.safetensors", small_model, record={})
    whole = read_weights(tmp_path / "whole.safetensors")
    assert whole.classes == ()
    with pytest.raises(CheckpointError, match="'whole.safetensors' is no classifier .autoencoder"):
        whole.build_classifier()
    with pytest.raises(CheckpointError, match="no decoder .classifier.* mae evaluate predict"):
        load(saved)
    with pytest.raises(CheckpointError, match="is a classifier, .* mae evaluate classifier"):
        read_weights(saved).build_encoder()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_size": 64}, "the grid of this ViT: .6, 6., where .* ask for .8, 8."),
        ({"num_heads": 4}, "heads of this ViT: 2, where .* ask for 4"),
        ({"layer_norm_eps": 1e-5}, "the epsilon of this ViT: 1e-06"),
        ({"depth": 1}, "is not just a whole classifier: .* unknown .'blocks.1"),
        ({"embed_dim": 64}, "has shape .*; its config"),
    ],
)
def test_a_config_of_another_vit_is_refused(
    changes: dict[str, Any], sentence: str, small_config: ModelConfig, tmp_path: Path
) -> None:
    config = replace(small_config, **changes)
    with pytest.raises(CheckpointError, match=sentence):
        save_classifier(
            tmp_path / "x", vit_of(small_config), config, classes=CLASSES, record={}
        )  # fmt: skip
    assert not [*tmp_path.iterdir()]


def test_what_is_no_classifier_is_not_written(small_config: ModelConfig, tmp_path: Path) -> None:
    path, config = tmp_path / "x", small_config
    with pytest.raises(CheckpointError, match="are 2, and its head has 3 outputs"):
        save_classifier(path, vit_of(config), config, classes=("a", "b"), record={})
    headless = MaskedAutoencoder(config).to_timm(0)
    with pytest.raises(CheckpointError, match="has no head for classes"):
        save_classifier(path, headless, config, classes=(), record={})
    # A mean that `norm` comes before is computed by no other name than the class token's.
    other = timm.models.VisionTransformer(
        img_size=48, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3,
        global_pool="avg", fc_norm=False,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="the pooling of this ViT: avg"):
        save_classifier(path, other, config, classes=(), record={})
    assert not [*tmp_path.iterdir()]


def rewritten(path: Path, **changes: Any) -> Path:
    with safe_open(path, "pt") as file:
        header = {**file.metadata(), **changes}
    save_file(load_file(path), path, metadata={k: v for k, v in header.items() if v is not None})
    return path


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ({"classes": "{}"}, "the names of the classes in 'weights.safetensors' are no list of te"),
        ({"classes": '"abc"'}, "are no list of texts"),
        ({"classes": '["a", 1, "b"]'}, "are no list of texts"),
        ({"classes": '["a", ["b"], null]'}, "are no list of texts"),
        ({"classes": '["a", "b"]'}, "are 2, and its head has 3 outputs"),
        ({"classes": json.dumps(["a"] * 100_001)}, "are 100,001, and at most 100,000 are read"),
        ({"classes": json.dumps(["a", "b", "c" * 256])}, "'ccc.*of more than 255 characters"),
        ({"classes": '["a", "", "b"]'}, "have an empty one"),
        ({"classes": "[" * 100_000}, "the header of 'weights.safetensors' is damaged"),
        ({"classes": "[" + '"' + "a" * 2**24}, "is damaged"),
        ({"classes": "not json"}, "is damaged"),
        ({"kind": "segmenter"}, "has the kind 'segmenter', and this program reads auto"),
        ({"kind": "autoencoder"}, "is not just a whole autoencoder: missing"),
        ({"kind": None}, "is not just a whole autoencoder: missing"),
    ],
)
def test_hostile_headers_are_refused(header: dict[str, Any], sentence: str, saved: Path) -> None:
    rewritten(saved / "weights.safetensors", **header)
    with pytest.raises(CheckpointError, match=sentence):
        read_weights(saved)


def test_a_head_without_outputs_is_refused(saved: Path) -> None:
    path = saved / "weights.safetensors"
    state = load_file(path) | {"head.weight": torch.zeros(0, 32), "head.bias": torch.zeros(0)}
    with safe_open(path, "pt") as file:
        header = file.metadata()
    save_file(state, path, metadata={**header, "classes": "[]"})
    with pytest.raises(CheckpointError, match="head.* has shape .0"):
        read_weights(path)


def test_names_that_a_terminal_would_obey_are_shown_as_text(
    small_config: ModelConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, names = tmp_path / "x.safetensors", ("\x1b[2J", "猫", "\udcff")
    save_classifier(path, vit_of(small_config), small_config, classes=names, record={})
    assert read_weights(path).classes == names
    draw_picture(0, 60, 50).save(tmp_path / "a.png")
    assert mae(["evaluate", "predict", str(path), str(tmp_path / "a.png")]) == 0
    assert mae(["info", str(path)]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert all(text in said for text in ("\\x1b[2J", "猫", "\\udcff"))


def test_info_says_the_first_classes_and_what_to_do(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mae(["info", str(saved), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["classes"], facts["class_names"]) == (3, list(CLASSES))
    assert facts["record"] == {"recipe": "finetune", "accuracy": 0.875}
    assert "mae evaluate predict" in facts["uses"][0]
    assert not any("init_from" in use for use in facts["uses"])


# --- timm and transformers


@pytest.mark.parametrize("pool", POOLS)
def test_timm_opens_what_is_written_and_names_the_classes(
    pool: str, small_config: ModelConfig, tmp_path: Path
) -> None:
    config = replace(small_config, mean=(0.1, 0.2, 0.3))
    save_classifier(
        tmp_path / "x.safetensors", vit_of(config, pool=pool), config, classes=CLASSES, record={}
    )  # fmt: skip
    weights, images = read_weights(tmp_path / "x.safetensors"), noise(2, 3, 48, 48)
    expected = logits_of(weights.build_classifier(), images)
    convert(weights, tmp_path / "folder", "timm")
    peer = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    assert torch.equal(logits_of(peer, images), expected)
    assert tuple(peer.pretrained_cfg["label_names"]) == CLASSES
    assert timm.data.resolve_model_data_config(peer)["crop_pct"] == 0.875
    again = read_weights(tmp_path / "folder")
    assert (again.format, again.classes) == ("timm", CLASSES)
    assert again.config == replace(config, decoder_embed_dim=512, decoder_depth=8,
                                   decoder_num_heads=16)  # fmt: skip
    assert torch.equal(logits_of(again.build_classifier(), images), expected)
    # A file alone has no place for names.
    convert(weights, tmp_path / "file.safetensors", "timm")
    peer = timm.create_model(
        "vit_base_patch16_224", num_classes=3, global_pool=pool, patch_size=8, embed_dim=32,
        depth=2, num_heads=2, img_size=48, checkpoint_path=str(tmp_path / "file.safetensors"),
    ).eval()  # fmt: skip
    assert torch.equal(logits_of(peer, images), expected)


def test_an_encoder_is_a_folder_of_timm_too(small_model: MaskedAutoencoder, tmp_path: Path) -> None:
    save_weights(tmp_path / "x.safetensors", small_model, record={})
    line = ["convert", str(tmp_path / "x.safetensors"), str(tmp_path / "folder"), "--to", "timm"]
    assert mae(line) == 0
    peer = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    images = noise(2, 3, 48, 48)
    with torch.inference_mode():
        theirs, ours = peer.forward_features(images), small_model.features(images)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (peer.num_classes, read_weights(tmp_path / "folder").kind) == (0, "encoder")


@pytest.mark.parametrize("pool", POOLS)
def test_what_timm_saves_has_its_logits_and_names(pool: str, tmp_path: Path) -> None:
    peer = timm.create_model(
        "vit_tiny_patch16_224", num_classes=3, global_pool=pool, img_size=32, depth=2, num_heads=2,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for value in peer.state_dict().values():
            value.copy_(noise(*value.shape) * 0.2)
    timm.models.save_for_hf(
        peer, str(tmp_path), model_config={"label_names": list(CLASSES)}, safe_serialization=True
    )
    weights, images = read_weights(tmp_path), noise(2, 3, 32, 32)
    assert (weights.kind, weights.classes, weights.config.num_heads) == ("classifier", CLASSES, 2)
    assert torch.equal(logits_of(weights.build_classifier(), images), logits_of(peer, images))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"label_names": ["a"]}, "are 1, and its head has 3 outputs"),
        ({"label_names": "abc"}, "are no list of texts"),
        ({"num_classes": 1000}, "has num_classes '1000' where 3 fits"),
        ({"global_pool": "token"}, "has global_pool 'token' where avg fits"),
    ],
)
def test_a_config_of_timm_that_does_not_fit_is_refused(
    changes: dict[str, Any], sentence: str, saved: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "timm"
    convert(read_weights(saved), folder, "timm")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=sentence):
        read_weights(folder)


def test_timm_may_name_some_outputs_only(saved: Path, tmp_path: Path) -> None:
    convert(read_weights(saved), tmp_path / "timm", "timm")
    path = tmp_path / "timm/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"label_names": {"0": "a", "2": "b"}}))
    assert read_weights(tmp_path / "timm").classes == ()
    del config["label_names"]
    config["pretrained_cfg"]["label_names"] = list(CLASSES)
    path.write_text(json.dumps(config))
    assert read_weights(tmp_path / "timm").classes == CLASSES


def test_transformers_opens_a_classifier_of_the_class_token(
    small_config: ModelConfig, tmp_path: Path
) -> None:
    from transformers import ViTForImageClassification

    config = replace(small_config, layer_norm_eps=1e-5)
    vit = vit_of(config, pool="token")
    save_classifier(tmp_path / "x.safetensors", vit, config, classes=CLASSES, record={})
    convert(read_weights(tmp_path / "x.safetensors"), tmp_path / "hf", "huggingface")
    peer, report = ViTForImageClassification.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert peer.config.id2label == dict(enumerate(CLASSES))
    images = noise(2, 3, 48, 48)
    with torch.inference_mode():
        theirs = peer.eval()(images).logits
    torch.testing.assert_close(logits_of(vit, images), theirs, rtol=0, atol=1e-5)


def test_the_mean_of_tokens_has_no_place_in_transformers(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="if it averages the patch tokens, .* such as timm"):
        convert(read_weights(saved), tmp_path / "hf", "huggingface")


def test_an_epsilon_has_no_place_in_a_folder_of_timm(
    small_config: ModelConfig, tmp_path: Path
) -> None:
    config = replace(small_config, layer_norm_eps=1e-5)
    save_classifier(tmp_path / "x.safetensors", vit_of(config), config, classes=(), record={})
    with pytest.raises(CheckpointError, match="no place for LayerNorms of epsilon 1e-05; write a"):
        convert(read_weights(tmp_path / "x.safetensors"), tmp_path / "timm", "timm")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_what_is_pushed_opens_in_timm_and_here(saved: Path, tmp_path: Path) -> None:
    folder, images = tmp_path / "hub", noise(1, 3, 48, 48)
    write_repository(folder, "me/tuned", saved)
    expected = logits_of(read_weights(saved).build_classifier(), images)
    peer = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(logits_of(peer, images), expected)
    assert read_weights(folder).record["accuracy"] == 0.875
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert "`blue`, `green`, `red`" in card
    assert "0.875" in card
    assert "Reconstructor" not in card


def test_convert_says_what_becomes_of_the_names(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, target, lost in (("a.pth", "official", ["classes"]), ("b.bin", "timm", ["classes"]),
                               ("c", "timm", []), ("d.safetensors", "mae_core", [])):  # fmt: skip
        path = str(tmp_path / name)
        assert mae(["convert", str(saved), path, "--to", target, "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert [one for one in facts["cannot_say"] if one == "classes"] == lost
        assert read_weights(path).classes == (() if lost else CLASSES)
    assert "build_classifier()" in facts["open_with"]


# --- images


@pytest.mark.parametrize(("width", "height"), [(500, 375), (300, 451), (256, 256), (90, 1200)])
def test_the_centre_is_that_of_torchvision(width: int, height: int, tmp_path: Path) -> None:
    # Brightness is the place: red from left to right, green from top to bottom.
    y, x = np.mgrid[:height, :width]
    ramps = np.stack((255 * x / (width - 1), 255 * y / (height - 1), 0 * x), axis=-1)
    picture = Image.fromarray(ramps.round().astype(np.uint8))
    picture.save(tmp_path / "a.png")
    image = ImageReader(short_side=0)(tmp_path / "a.png")
    ours = crop_image(image, centre_crop(height, width, 224 / 256), 224).astype(float)
    official = v2.Compose([v2.Resize(256, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)])
    theirs = np.asarray(official(picture)).astype(float)
    # Ours begins at a whole pixel of the picture, theirs at one of the resized picture.
    for channel, length in ((0, width), (1, height)):
        pixel, resized = 255 / length, 255 / length * min(width, height) / 256
        apart = np.abs(ours - theirs)[:, :, channel].max()
        assert apart <= (pixel + resized) / 2 + 1, "levels, one of them by rounding"
        # Another share is another picture.
        other = crop_image(image, centre_crop(height, width, 1), 224).astype(float)
        assert np.abs(other - theirs)[:, :, channel].max() > 5 * min(width, height) / length


def test_logits_are_those_of_a_slow_loop(saved: Path, data: Path) -> None:
    weights, val = read_weights(saved), open_labelled(data)[1]
    vit = weights.build_classifier()
    logits, rows = classify(vit, weights.config, val, side=48)
    assert (logits.shape, logits.dtype, rows.tolist()) == ((12, 3), torch.float32, [*range(12)])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (weights.config.mean, weights.config.std))
    for path, found in zip(val.files, logits, strict=True):
        assert isinstance(path, Path)
        square = Image.open(path).crop((12, 4, 68, 60)).resize((48, 48), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255
        expected = logits_of(vit, ((pixels - mean) / std)[None])[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    narrow, _ = classify(vit, weights.config, val, side=48, precision="bfloat16")
    assert narrow.dtype == torch.float32
    assert not torch.equal(narrow, logits)
    torch.testing.assert_close(narrow, logits, rtol=0, atol=0.1)


def test_files_that_cannot_be_read_are_left_out(
    saved: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights, files = read_weights(saved), sorted((data / "val/red").iterdir())
    vit = weights.build_classifier()
    whole, _ = classify(vit, weights.config, files, side=48)
    files[1].write_bytes(b"junk")
    files[2].unlink()
    logits, rows = classify(vit, weights.config, files, side=48)
    assert rows.tolist() == [0, 3]
    assert torch.equal(logits, whole[rows])
    assert f"left out {files[1]}: the file is empty or of no accepted format" in caplog.text
    with pytest.raises(DataError, match="no image .*can be read"):
        classify(vit, weights.config, files[1:3], side=48)
    with pytest.raises(ConfigError, match="are of 64x64 pixels, and this classifier takes 48x48"):
        classify(vit, weights.config, files, side=64)
    with pytest.raises(ConfigError, match="crop_share is 0; give a number above 0"):
        classify(vit, weights.config, files, side=48, crop_share=0)


# --- measured


def counted(weights: Weights, data: Path, columns: list[int]) -> np.ndarray[Any, Any]:
    """(classes, outputs) counts of what is predicted, by a loop."""
    val = open_labelled(data)[1]
    logits, _ = classify(weights.build_classifier(), weights.config, val, side=48)
    counts = np.zeros((len(columns), logits.shape[1]), dtype=int)
    for label, row in zip(val.labels, logits, strict=True):
        counts[label, int(row.argmax())] += 1
    return counts


def test_an_official_checkpoint_is_measured_on_a_folder(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = checkpoints.classifier_of(checkpoints.random_state(checkpoints.SMALL))
    head = {key: t[:3] if key.startswith("head") else t for key, t in state.items()}
    path = checkpoints.write_torch(tmp_path / "tuned.pth", {"model": head})
    report = measure(path, data, ClassifierConfig(image_size=48))
    weights = read_weights(path)
    logits, _ = classify(
        weights.build_classifier(image_size=48), weights.config, open_labelled(data)[1], side=48
    )
    right = sum(int(row.argmax()) == i // 4 for i, row in enumerate(logits))
    assert report["accuracy"] == right / 12
    assert report["interval"] == list(wilson_interval(right, 12))
    assert report["seeds"] == [report["accuracy"]]
    assert report["classes_by"] == "order"
    assert report["classes"] == list(CLASSES)
    assert np.sum(report["confusion"]) == report["measured"] == 12
    assert "top5" not in report
    out = tmp_path / "report"
    line = ["evaluate", "classifier", str(path), str(data), "image_size=48"]
    assert mae([*line, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "classifier of tuned: 3 classes, 12 images measured, 0 could not be read" in said
    assert f"accuracy {100 * right / 12:.1f} % (95 % interval" in said
    assert (out / "confusion.png").is_file()
    assert mae([*line, "--json"]) == 0
    printed, kept = (
        json.loads(capsys.readouterr().out),
        json.loads((out / "report.json").read_text()),
    )
    assert printed | {"seconds": 0} == kept | {"seconds": 0}


def test_classes_are_found_by_their_names(
    small_config: ModelConfig, data: Path, tmp_path: Path
) -> None:
    names = ("sky", "red", "sea", "blue", "sun", "green", "sand")
    path = tmp_path / "seven.safetensors"
    save_classifier(path, vit_of(small_config, 7, seed=3), small_config, classes=names, record={})
    weights = read_weights(path)
    counts = counted(weights, data, [3, 5, 1])
    report = measure(weights, data, ClassifierConfig())
    right = counts[0, 3] + counts[1, 5] + counts[2, 1]
    assert report["accuracy"] == right / 12
    assert report["classes"] == [*CLASSES, "(another class)"]
    assert report["per_class"].keys() == set(CLASSES)
    others = counts[:, [0, 2, 4, 6]].sum(axis=1)
    expected = np.column_stack([counts[:, [3, 5, 1]], others])
    assert np.array_equal(report["confusion"], np.vstack([expected, np.zeros(4)]))
    logits, _ = classify(weights.build_classifier(), weights.config, open_part(data), side=48)
    column = [3, 5, 1]
    among = [column[i // 4] in row.argsort()[-5:] for i, row in enumerate(logits)]
    assert report["top5"] == pytest.approx(sum(among) / 12)
    assert (report["classes_by"], report["outputs"]) == ("names", 7)


@pytest.mark.parametrize(
    ("classes", "count", "fields", "sentence"),
    [
        (("blue", "green", "pink"), 3, {}, "no class called red; its classes are called as blue"),
        (("blue", "red", "red", "green"), 4, {}, "more than one class called red"),
        ((), 4, {}, "the data has 3 classes and the classifier 4 outputs, which nothing names"),
        ((), 4, {"class_names": "nothing.txt"}, "class_names=nothing.txt: it cannot be read as"),
        ((), 4, {"class_names": "imagenet"}, "has 1,000 names, and the classifier has 4 outputs"),
    ],
)
def test_classes_that_cannot_be_found_are_refused(
    classes: tuple[str, ...], count: int, fields: dict[str, Any], sentence: str,
    small_config: ModelConfig, data: Path, tmp_path: Path,
) -> None:  # fmt: skip
    path = tmp_path / "x.safetensors"
    save_classifier(path, vit_of(small_config, count), small_config, classes=classes, record={})
    with pytest.raises((ConfigError, DataError), match=sentence):
        measure(path, data, ClassifierConfig(**fields))


def test_a_part_of_imagenet_is_found_by_its_synsets(
    small_config: ModelConfig, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synsets = ("n01440764", "n02979186", "n03888257")  # outputs 0, 482 and 701
    for part in ("train", "val"):
        for name, synset in zip(CLASSES, synsets, strict=True):
            (data / part / name).rename(data / part / synset)
    vit, path = vit_of(small_config, 1000), tmp_path / "x.safetensors"
    with torch.no_grad():
        vit.head.bias[482] = 1000.0
    save_classifier(path, vit, small_config, classes=(), record={})
    with pytest.raises(DataError, match="nothing names, .* class_names=imagenet if it has Image"):
        measure(path, data, ClassifierConfig())
    report = measure(path, data, ClassifierConfig(class_names="imagenet"))
    assert report["per_class"] == {synsets[0]: 0.0, synsets[1]: 1.0, synsets[2]: 0.0}
    picture = next((data / "val").rglob("*.png"))
    line = ["evaluate", "predict", str(path), str(picture), "class_names=imagenet", "--top", "1"]
    assert mae(line) == 0
    assert re.search(r"n02979186 cassette player\s+100.0 %", capsys.readouterr().out)


def test_names_may_come_from_a_file(small_config: ModelConfig, data: Path, tmp_path: Path) -> None:
    path, names = tmp_path / "x.safetensors", tmp_path / "names.txt"
    save_classifier(path, vit_of(small_config), small_config, classes=(), record={})
    names.write_text("green\nred\nblue\n\n")
    counts = counted(read_weights(path), data, [2, 0, 1])
    report = measure(path, data, ClassifierConfig(class_names=str(names)))
    assert report["accuracy"] == (counts[0, 2] + counts[1, 0] + counts[2, 1]) / 12


def test_any_part_can_be_measured_alone(saved: Path, data: Path) -> None:
    def measured(folder: Path, part: Any) -> int:
        count: int = measure(saved, folder, ClassifierConfig(part=part))["measured"]
        return count

    assert (measured(data, "val"), measured(data, "train")) == (12, 6)
    assert measured(data / "val", "all") == 12
    assert (measured(data / "val", "val"), measured(data / "val", "train")) == (3, 9)
    with pytest.raises(DataError, match="the folders train, val, which are no classes; give part="):
        measured(data, "all")
    with pytest.raises(DataError, match="part=all is for folders"):
        open_part("hub:me/flowers", "all")
    # What learning is not measured on, and a class that is in one part only, do not matter here.
    (data / "train/red").rename(data / "train/pink")
    assert measured(data, "val") == 12
    (data / "train").rename(data / "elsewhere")
    assert measured(data, "val") == 12
    (data / "elsewhere/pink").rename(data / "elsewhere/red")
    (data / "elsewhere").rename(data / "train")
    (data / "train/red/linked.png").hardlink_to(data / "val/red/0.png")
    assert measured(data, "train") == 6
    (data / "val").rename(data / "elsewhere")
    assert measured(data, "train") == 7
    draw_picture(0, 40, 40).save(data / "elsewhere.png")
    with pytest.raises(DataError, match="is not a folder"):
        measured(data / "nothing", "val")


def test_other_weights_are_told_what_to_give(
    small_model: MaskedAutoencoder, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_weights(tmp_path / "whole.safetensors", small_model, record={})
    for command in ("classifier", "predict"):
        line = ["evaluate", command, str(tmp_path / "whole.safetensors"), str(data / "val")]
        assert main(line) == 2
        assert "is no classifier (autoencoder)" in capsys.readouterr().err


# --- asked


def test_pictures_are_named_and_the_unreadable_ones_too(
    saved: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, gone, empty = tmp_path / "bad.png", tmp_path / "gone.png", tmp_path / "empty"
    bad.write_bytes(b"junk")
    empty.mkdir()
    odd = tmp_path / "crop_share=2"
    odd.write_bytes((data / "val/red/0.png").read_bytes())
    pictures = [str(path) for path in (bad, odd, gone, data / "val/blue", empty)]
    line = ["evaluate", "predict", str(saved), *pictures, "--top", "2", "crop_share=1"]
    assert main([*line, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["config"]["crop_share"] == 1
    assert sorted(report["unreadable"]) == sorted(map(str, (bad, gone, empty)))
    files = [odd, *sorted((data / "val/blue").iterdir())]
    assert [one["file"] for one in report["pictures"]] == [*map(str, files)]
    weights = read_weights(saved)
    logits, _ = classify(
        weights.build_classifier(), weights.config, files, side=48, crop_share=1
    )  # fmt: skip
    for one, row in zip(report["pictures"], logits, strict=True):
        shares = (row.double().exp() / row.double().exp().sum()).tolist()
        best = sorted(range(3), key=lambda i: -shares[i])[:2]
        assert [found["output"] for found in one["classes"]] == best
        assert [found["name"] for found in one["classes"]] == [CLASSES[i] for i in best]
        for found in one["classes"]:
            assert found["probability"] == pytest.approx(shares[found["output"]], abs=1e-5)
    assert main(line) == 0
    said = capsys.readouterr().out
    assert f"{odd}\n  " in said
    assert "not read: " in said
    assert str(gone) in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["bad.png"], "no image .*can be read"),
        (["gone.png"], "no image .*can be read"),
        (["empty"], "no picture can be read; give files"),
        ([], "no picture is named; give files or folders"),
        (["bad.png", "--top", "0"], "top is 0; give 1 or more"),
        (["bad.png", "crop_share=2"], "crop_share=2"),
        (["bad.png", "crop_shar=1"], "PredictConfig has no field crop_shar"),
        (["bad.png", "--tpo", "3"], "mae evaluate predict has no --tpo"),
    ],
)
def test_nothing_to_name_is_a_sentence(
    arguments: list[str], sentence: str, saved: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"junk")
    (tmp_path / "empty").mkdir()
    assert main(["evaluate", "predict", str(saved), *arguments]) == 2
    assert re.search(rf"error: .*{sentence}", capsys.readouterr().err)


def test_more_classes_than_there_are_is_all_of_them(saved: Path, data: Path) -> None:
    from mae_core.evaluation.classifier import predict

    report = predict(saved, [data / "val/red/0.png"], PredictConfig(), top=10)
    shares = [one["probability"] for one in report["pictures"][0]["classes"]]
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(1, abs=1e-5)


def test_a_linear_probe_as_a_head_is_the_same_classifier(
    small_model: MaskedAutoencoder, small_config: ModelConfig, data: Path, tmp_path: Path
) -> None:
    save_weights(tmp_path / "whole.safetensors", small_model, record={})
    train, val = (
        extract(read_weights(tmp_path / "whole.safetensors"), part, cache=tmp_path / "cache")
        for part in open_labelled(data)
    )
    fitted = fit_lbfgs(train.of(pool="cls"), train.labels, 3, 1e-3)
    vit = small_model.to_timm(3, global_pool="token").eval()
    with torch.no_grad():
        vit.head.weight.copy_(fitted.weight / fitted.std)
        vit.head.bias.copy_(fitted.bias - fitted.weight @ (fitted.mean / fitted.std).double())
    path = tmp_path / "probe.safetensors"
    save_classifier(path, vit, small_config, classes=train.classes, record={})
    # The whole centre, as features are taken of.
    logits, rows = classify(
        read_weights(path).build_classifier(), small_config, open_part(data), side=48, crop_share=1
    )
    assert torch.equal(rows, val.rows)
    expected = fitted.logits(val.of(pool="cls")).float()
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
