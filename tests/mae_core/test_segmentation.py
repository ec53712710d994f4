"""Segmentation: data sets, samples, figures beside slow loops, and runs through the command."""

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mae_core.cli import mae
from mae_core.config import SystemConfig
from mae_core.data.dense import (
    IGNORED,
    Placement,
    batches,
    draw_placement,
    open_segmentation,
)
from mae_core.distributed import World
from mae_core.errors import CheckpointError, ConfigError, DataError, ImageError
from mae_core.evaluation.segmentation import (
    SegmentationFigures,
    count_pixels,
    mean_iou,
    measure_segmentation,
    segment_image,
    segmentation_report,
)
from mae_core.model.dense import DenseModel, FourScales, Segmenter
from mae_core.model.mae import MaskedAutoencoder
from mae_core.training.callbacks import Measured
from mae_core.training.runs import build_layer_decay
from mae_core.training.segment import Segmentation, SegmentConfig
from mae_core.training.trainer import Trainer
from mae_core.weights.files import load_latest
from mae_core.weights.formats import save_weights
from tests.pictures import draw_picture
from tests.sources import ROOT

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
CLASSES = ("background", "square", "disk")


def draw(seed: int, size: tuple[int, int] = (64, 48)) -> tuple[Image.Image, NDArray[np.uint8]]:
    """A smooth picture with a red square and a blue disk, and the class of each pixel."""
    rng = np.random.default_rng(seed)
    width, height = size
    pixels = np.array(draw_picture(seed, width, height).convert("RGB")) // 3
    labels = np.zeros((height, width), dtype=np.uint8)
    rows, columns = np.mgrid[:height, :width]
    for label, colour in ((1, (250, 40, 30)), (2, (30, 60, 250))):
        x, y = rng.integers(12, width - 12), rng.integers(12, height - 12)
        far = np.maximum if label == 1 else np.hypot
        inside = far(abs(columns - x), abs(rows - y)) < 10
        pixels[inside], labels[inside] = colour, label
    return Image.fromarray(pixels.astype(np.uint8)), labels


def write_ade(root: Path, train: int = 12, val: int = 4) -> Path:
    for part, count in (("training", train), ("validation", val)):
        for kind in ("images", "annotations"):
            (root / kind / part).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image, labels = draw(i + 1000 * (part == "validation"))
            image.save(root / f"images/{part}/{i:02d}.png")
            values = labels + 1
            values[0, :3] = 0  # unlabelled
            Image.fromarray(values).save(root / f"annotations/{part}/{i:02d}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    return write_ade(tmp_path / "ade")


@pytest.fixture
def weights(small_model: MaskedAutoencoder, tmp_path: Path) -> Path:
    save_weights(tmp_path / "small.safetensors", small_model, record={})
    return tmp_path / "small.safetensors"


FIELDS = [
    "head=linear", "image_size=48", "epochs=0", "steps=6", "batch_size=4", "save_every=2",
    "optim.lr=1e-2", "optim.warmup_epochs=0", "optim.warmup_steps=2", "resamples=50",
]  # fmt: skip


def command(weights: Path, data: Path, out: Path, *fields: str) -> list[str]:
    return ["evaluate", "segment", str(weights), str(data), *FIELDS, *fields, "--out", str(out)]


# --- data sets


def test_a_picture_keeps_the_pixels_that_its_annotation_is_of(ade: Path) -> None:
    """Whatever EXIF says of turning it."""
    plain, labels = open_segmentation(ade)[0].read(0)
    path = open_segmentation(ade)[0].files[0][0]
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        with Image.open(path) as stored:
            stored.load()
            stored.save(path, exif=exif, quality=100, subsampling=0)
        image, same = open_segmentation(ade)[0].read(0)
        difference = np.abs(np.asarray(image, float) - np.asarray(plain, float))
        assert difference.mean() < 3, orientation
        np.testing.assert_array_equal(same, labels)


def test_pictures_in_folders_have_annotations_there(ade: Path) -> None:
    for kind in ("images", "annotations"):
        (ade / kind / "training/sub").mkdir()
        (ade / kind / "training/00.png").rename(ade / kind / "training/sub/00.png")
    pairs = {picture.parent.name: label for picture, label in open_segmentation(ade)[0].files}
    assert pairs["sub"] == ade / "annotations/training/sub/00.png"
    assert pairs["training"].parent.name == "training"
    with Image.open(ade / "images/training/01.png") as picture:
        picture.save(ade / "images/training/01.webp")
    with pytest.raises(DataError, match="two pictures have the annotation .*01.png; rename one"):
        open_segmentation(ade)


def test_ade_folders(ade: Path) -> None:
    train, val = open_segmentation(ade)
    assert (len(train), len(val)) == (12, 4)
    assert train.classes == val.classes == CLASSES
    image, labels = val.read(2)
    expected, classes = draw(1002)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    classes[0, :3] = IGNORED
    np.testing.assert_array_equal(labels, classes)


def test_voc_folders(tmp_path: Path) -> None:
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    image, labels = draw(1)
    labels[5:9, 3] = IGNORED
    palette = Image.fromarray(labels).convert("P")
    palette.putdata(labels.flatten().tolist())
    palette.putpalette([value for i in range(256) for value in (255 - i, i, 7)])
    for name in ("a", "b", "unlisted"):
        image.save(tmp_path / f"JPEGImages/{name}.jpg")
        palette.save(tmp_path / f"SegmentationClass/{name}.png")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a\n")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("b\na\n")
    train, val = open_segmentation(tmp_path)
    assert [picture.stem for picture, _ in train.files] == ["a"]
    assert [picture.stem for picture, _ in val.files] == ["b", "a"]
    assert len(train.classes) == 21
    assert train.classes[15] == "person"
    np.testing.assert_array_equal(train.read(0)[1], labels)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("b\nc\n")
    with pytest.raises(DataError, match=r"c.jpg is missing \(of 2 files\)"):
        open_segmentation(tmp_path)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("../b\n")
    with pytest.raises(DataError, match=r"val.txt names ../b; give names without a folder"):
        open_segmentation(tmp_path)


def test_folders_that_are_no_data_set_are_told_in_a_sentence(ade: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder of pictures with classes for their pixels"):
        open_segmentation(tmp_path / "nothing")
    (ade / "annotations/training/03.png").unlink()
    with pytest.raises(DataError, match="03.png is missing; each picture needs an annotation"):
        open_segmentation(ade)
    (ade / "classes.txt").write_text("one\n")
    with pytest.raises(DataError, match="1 classes are named; give 2 to 254"):
        open_segmentation(ade)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: Image.new("L", (63, 48)).save(path), r"\(64, 48\) pixels .* \(63, 48\)"),
        (lambda path: Image.new("L", (64, 48), 9).save(path),
         "has the value 9; the 3 classes are 1 to 3, and 255 is ignored"),
        (lambda path: Image.new("RGB", (64, 48)).save(path), "pixel format RGB; an annotation is"),
        (lambda path: Image.new("I;16", (64, 48)).save(path), "pixel format I;16; an annotation"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "damaged or cut short"),
        (lambda path: path.write_bytes(b"<html>"), "no accepted format"),
    ],
)  # fmt: skip
def test_a_spoilt_annotation_is_told_in_a_sentence(ade: Path, spoil: Any, sentence: str) -> None:
    spoil(ade / "annotations/validation/01.png")
    with pytest.raises(DataError, match=sentence):
        open_segmentation(ade)[1].read(1)


def test_a_bomb_is_refused_by_its_header(ade: Path) -> None:
    Image.new("L", (9000, 9000), 1).save(ade / "annotations/validation/01.png")
    with pytest.raises(DataError, match="01.png: the image is 9000 x 9000 pixels; at most") as told:
        open_segmentation(ade)[1].read(1)
    assert isinstance(told.value.__cause__, ImageError)


# --- samples


def test_pixels_and_labels_of_a_sample_stay_together(ade: Path) -> None:
    """Each pixel's class can be told by its colour, wherever it is moved to."""
    train = replace(open_segmentation(ade)[0], side=48, scale=(0.4, 2.5))
    filled = 0
    for number in range(40):
        pixels, labels = train.sample(number % 12, np.random.default_rng(number))
        assert pixels.shape == (48, 48, 3)
        assert labels.shape == (48, 48)
        red, blue = (pixels[:, :, one].astype(int) - pixels[:, :, 2 - one] for one in (0, 2))
        for label, is_like in ((1, red > 150), (2, blue > 150)):
            assert (is_like == (labels == label)).mean() > 0.93
        filled += bool((labels[-1] == IGNORED).all())
    assert filled > 5  # small ones leave a part of the square empty
    again = train.sample(3, np.random.default_rng(3))
    for one, other in zip(train.sample(3, np.random.default_rng(3)), again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_placement_cuts_and_mirrors() -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    place = Placement((4, 3), left=1, top=1, side=4, flip=False)
    expected = np.full((4, 4), 99)
    expected[:2, :3] = labels[1:, 1:]
    np.testing.assert_array_equal(place.labels(labels, 99), expected)
    np.testing.assert_array_equal(place._replace(flip=True).labels(labels, 99), expected[:, ::-1])
    image = place.image(Image.fromarray(np.dstack([labels] * 3)), (1.0, 0.5, 0.0))
    np.testing.assert_array_equal(image[:2, :3, 1], labels[1:, 1:])
    assert image[3, 3].tolist() == [255, 128, 0]


def test_a_placement_is_drawn_within_its_bounds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        place = draw_placement((80, 60), 0.5, 32, (0.5, 2.0), True, rng)
        width, height = place.size
        assert 20 <= width <= 80
        assert abs(height - 0.75 * width) <= 1
        assert 0 <= place.left <= max(width - 32, 0)
        assert 0 <= place.top <= max(height - 32, 0)


class Numbers:
    """A data set whose samples say what they were made of."""

    def __len__(self) -> int:
        return 7

    def sample(self, index: int, rng: np.random.Generator) -> tuple[int, int]:
        return index, int(rng.integers(2**62))


def _made(begin: int, end: int, rank: int = 0, world_size: int = 1) -> list[list[tuple[int, int]]]:
    return list(
        batches(
            Numbers(), begin, end, batch_size=4, seed=5, rank=rank, world_size=world_size,
            workers=3,
        )
    )  # fmt: skip


def test_batches_are_a_function_of_the_step_and_shared_among_ranks() -> None:
    whole = _made(0, 7)
    assert _made(3, 7) == whole[3:]
    assert [[*a, *b] for a, b in zip(_made(0, 7, 0, 2), _made(0, 7, 1, 2), strict=True)] == whole
    flat = [sample for batch in whole for sample in batch]
    # Each epoch has each picture once, in an order and with a chance of its own.
    epochs = [[index for index, _ in flat[i : i + 7]] for i in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len({chance for _, chance in flat}) == 28


# --- models


def test_an_encoder_has_the_features_of_the_model_and_nothing_of_its_decoder(
    small_model: MaskedAutoencoder,
) -> None:
    model = Segmenter(small_model.config, num_classes=3, head="linear", image_size=32)
    model.load_encoder(small_model)
    names = {name.split(".")[0] for name in model.encoder.state_dict()}
    assert names == {"cls_token", "pos_embed", "patch_embed", "blocks", "norm"}
    images = torch.randn(2, 3, 32, 24)
    with torch.no_grad():
        maps = model.encoder.maps(images, (0, -1))
        for block, one in zip((0, -1), maps, strict=True):
            tokens = small_model.features(images, block=block)[:, 1:]
            torch.testing.assert_close(one[1, :, 2, 1], tokens[1, 2 * 3 + 1])
            assert one.shape == (2, 32, 4, 3)


def test_four_scales() -> None:
    maps = FourScales(8)([torch.randn(1, 8, 5, 6)] * 4)
    assert [tuple(one.shape[2:]) for one in maps] == [(20, 24), (10, 12), (5, 6), (3, 3)]


def test_layers_have_decaying_rates_and_the_head_the_full_one(small_config: Any) -> None:
    config = SegmentConfig(layer_decay=0.5)
    model: DenseModel = Segmenter(small_config, num_classes=3, head="linear", image_size=48)
    (optimizer,) = build_layer_decay(model, config=config.optim, layer_decay=0.5)
    scale_of = {
        id(parameter): (group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    expected = {
        "encoder.cls_token": 0.125, "encoder.patch_embed.proj.weight": 0.125,
        "encoder.blocks.0.mlp.fc1.weight": 0.25, "encoder.blocks.1.mlp.fc1.weight": 0.5,
        "encoder.norm.weight": 0.5, "classifier.weight": 1.0,
    }  # fmt: skip
    parameters = dict(model.named_parameters())
    for name, scale in expected.items():
        assert scale_of[id(parameters[name])][0] == scale, name
    assert scale_of[id(parameters["classifier.bias"])][1] == 0
    assert scale_of[id(parameters["classifier.weight"])][1] == 0.05
    assert scale_of[id(parameters["encoder.cls_token"])][1] == 0


def test_upernet_means_the_same_in_parts(small_config: Any) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    deep = replace(small_config, depth=8)
    model = Segmenter(deep, num_classes=3, head="upernet", image_size=48, channels=32).train()
    assert model.blocks == (1, 3, 5, 7)
    images = torch.randn(3, 3, 48, 48)
    logits = model(images)
    assert logits.shape == (3, 3, 48, 48)
    torch.testing.assert_close(logits[1:2], model(images[1:2]), atol=1e-4, rtol=1e-4)
    logits.sum().backward()
    learned = [name for name, one in model.named_parameters() if one.grad is None]
    assert learned == ["encoder.pos_embed"]
    with pytest.raises(ConfigError, match="of 4 blocks or more, and this one has 2; give head="):
        Segmenter(small_config, num_classes=3, head="upernet", image_size=48)


def test_a_missing_package_is_said(small_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("segmentation_models_pytorch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    deep = replace(small_config, depth=4)
    with pytest.raises(ConfigError, match="pip install -r requirements-dense.txt; head=linear"):
        Segmenter(deep, num_classes=3, head="upernet", image_size=48, channels=32)


def test_parts_of_a_batch_add_up_to_it(ade: Path, small_config: Any) -> None:
    train = replace(open_segmentation(ade)[0], model=small_config, side=48)
    torch.manual_seed(0)
    model = Segmenter(small_config, num_classes=3, head="linear", image_size=48)

    def gradients(parts: int) -> list[torch.Tensor]:
        config = SegmentConfig(
            steps=2, epochs=0, batch_size=4, system=SystemConfig(accumulate=parts)
        )
        losses = next(Segmentation(config, train, ALONE).losses(1))
        assert len(losses) == parts
        model.zero_grad()
        for loss in losses:
            (loss(model) / parts).backward()
        return [one.grad.clone() for one in model.parameters() if one.grad is not None]

    for whole, summed in zip(gradients(1), gradients(2), strict=True):
        torch.testing.assert_close(whole, summed, atol=1e-6, rtol=1e-4)


# --- figures


def test_pixels_are_counted_as_by_hand() -> None:
    labels = np.array([[0, 0, 1, 1], [0, 2, 2, IGNORED]])
    predicted = np.array([[0, 1, 1, 1], [0, 2, 0, 1]])
    counts = count_pixels(predicted, labels, 4)
    assert counts.tolist() == [[2, 2, 1, 0], [3, 3, 1, 0], [3, 2, 2, 0]]
    # 2 of 4, 2 of 3, 1 of 2; the last class does not occur.
    assert math.isclose(mean_iou(counts), (2 / 4 + 2 / 3 + 1 / 2) / 3)
    figures = SegmentationFigures(counts[None], Image.new("RGB", (1, 1)))
    assert math.isclose(figures.summary()["pixel_accuracy"], 5 / 7)


def test_counts_are_those_of_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 5, (2, 9, 7))
    labels[rng.random((9, 7)) < 0.2] = IGNORED
    counts = count_pixels(predicted, labels, 5)
    for label in range(5):
        pairs = [
            (truth == label, guess == label)
            for truth, guess in zip(labels.flat, predicted.flat, strict=True)
            if truth != IGNORED
        ]
        both, either = sum(a and b for a, b in pairs), sum(a or b for a, b in pairs)
        right, guessed, true = counts[:, label]
        assert (right, guessed + true - right) == (both, either)


def test_the_report_is_a_mean_over_seeds_with_an_interval_over_images() -> None:
    rng = np.random.default_rng(1)
    figures = []
    for _ in range(2):
        true = rng.integers(40, 60, (30, 2))
        right = (true * rng.uniform(0.3, 1.0, (30, 2))).astype(int)
        wrong = (true - right)[:, ::-1]
        counts = np.stack([right, right + wrong, true], axis=1)
        figures.append(SegmentationFigures(counts, Image.new("RGB", (1, 1))))
    report = segmentation_report(figures, ("a", "b"), resamples=400, seed=3)
    each = [mean_iou(one.counts.sum(axis=0)) for one in figures]
    assert report["seeds"] == each
    assert math.isclose(report["miou"], sum(each) / 2)
    assert math.isclose(report["deviation"], abs(each[0] - each[1]) / math.sqrt(2))
    low, high = report["interval"]
    assert low < report["miou"] < high
    # A bootstrap by hand, with chance of its own.
    drawn = []
    for _ in range(400):
        rows = rng.integers(0, 30, 30)
        drawn.append(sum(mean_iou(one.counts[rows].sum(axis=0)) for one in figures) / 2)
    np.testing.assert_allclose((low, high), np.quantile(drawn, (0.025, 0.975)), atol=0.01)
    assert math.isclose(sum(report["per_class"].values()) / 2, report["miou"], rel_tol=1e-9)
    assert segmentation_report(figures, ("a", "b"), resamples=0)["interval"] is None
    assert segmentation_report(figures[:1], ("a", "b"), resamples=0)["deviation"] is None


class ByColour(Segmenter):
    """Knows the red squares and the blue disks by their colour."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[2:] == (48, 48)
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.config.mean, self.config.std))
        red, _, blue = (images * std + mean).unbind(dim=1)
        return torch.stack((torch.full_like(red, 0.3), red - blue, blue - red), dim=1)


@pytest.mark.parametrize("size", [(64, 48), (48, 130), (200, 96)])
def test_whole_pictures_are_measured_in_their_own_size(
    ade: Path, small_config: Any, size: tuple[int, int]
) -> None:
    model = ByColour(small_config, num_classes=3, head="linear", image_size=48)
    image, labels = draw(7, size)
    predicted = segment_image(model, image)
    assert predicted.shape == labels.shape
    assert (predicted == labels).mean() > 0.97
    image.save(ade / "images/validation/02.png")
    Image.fromarray(labels + 1).save(ade / "annotations/validation/02.png")
    figures = measure_segmentation(model, replace(open_segmentation(ade)[1], model=small_config))
    assert figures.counts.shape == (4, 3, 3)
    assert figures.counts[2, 2].tolist() == np.bincount(labels.flatten(), minlength=3).tolist()
    assert figures.summary()["miou"] > 0.85
    for path in (ade / "annotations/validation").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) * 0).save(path)
    with pytest.raises(DataError, match="no pixel of the pictures to measure on has a class"):
        measure_segmentation(model, replace(open_segmentation(ade)[1], model=small_config))


# --- runs


def test_a_segmenter_learns_and_is_reported(
    ade: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = command(weights, ade, out, "steps=60", "seeds=2", "save_every=30", "eval_every=30")
    assert mae([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert json.loads((out / "report.json").read_text()) == report
    assert report["method"] == "segment"
    assert (report["weights"], report["init"]) == ("small", "weights")
    assert report["classes"] == list(CLASSES)
    assert report["config"]["head"] == "linear"
    assert len(report["seeds"]) == 2
    assert 0.5 < report["miou"] < 1
    assert report["interval"][0] <= report["miou"] <= report["interval"][1]
    with Image.open(out / "pictures.png") as drawing:
        assert drawing.size == (3 * 64 + 2 * 8, 4 * 48 + 3 * 8)
    for seed in (0, 1):
        assert (out / f"seed-{seed}/checkpoint.pt").is_file()
        lines = (out / f"seed-{seed}/metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines if "miou" in line] == [30, 60]
        assert "Mean intersection" in (out / f"seed-{seed}/report.html").read_text()
    # What is finished is measured again, not trained.
    assert mae(arguments) == 0
    assert "small (weights): 12 images to learn from, 4 measured" in capsys.readouterr().out
    assert json.loads((out / "report.json").read_text())["seeds"] == report["seeds"]


def test_a_frozen_encoder_stays_and_a_random_one_differs_by_seed(
    ade: Path, weights: Path, tmp_path: Path, small_model: MaskedAutoencoder
) -> None:
    def model_of(*fields: str, seed: int = 0) -> dict[str, torch.Tensor]:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        assert mae(command(weights, ade, out, *fields, f"seed={seed}")) == 0
        state: dict[str, torch.Tensor] = load_latest(out)["model"]
        return state

    frozen, tuned = model_of("freeze=true"), model_of("freeze=false")
    name = "blocks.1.mlp.fc1.weight"
    assert torch.equal(frozen[f"encoder.{name}"], small_model.state_dict()[name])
    assert not torch.equal(tuned[f"encoder.{name}"], small_model.state_dict()[name])
    # The table of positions is fixed in both.
    assert torch.equal(tuned["encoder.pos_embed"], small_model.pos_embed)
    random = [model_of("freeze=true", "init=random", seed=seed) for seed in (1, 2)]
    assert not torch.equal(random[0][f"encoder.{name}"], random[1][f"encoder.{name}"])
    assert not torch.equal(random[0][f"encoder.{name}"], frozen[f"encoder.{name}"])


def test_a_killed_run_ends_in_the_same_bits(
    ade: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mae(command(weights, ade, tmp_path / "whole", "ema=0.5")) == 0
    killed = command(weights, ade, tmp_path / "killed", "ema=0.5")
    update, done = Trainer._update, list[int]()

    def interrupted(self: Any, losses: Any) -> None:
        done.append(self.state.step)
        if self.state.step == 5:
            raise KeyboardInterrupt
        update(self, losses)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            mae(killed)
    assert load_latest(tmp_path / "killed")["step"] == 4
    assert mae(killed) == 0
    one, other = (load_latest(tmp_path / name) for name in ("whole", "killed"))
    for part in ("model", "ema"):
        for name, tensor in one[part].items():
            assert torch.equal(tensor, other[part][name]), name
    reports = [
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "killed")
    ]
    assert reports[0]["miou"] == reports[1]["miou"]


def test_two_processes_do_what_one_does(ade: Path, weights: Path, tmp_path: Path) -> None:
    fields = ["steps=3", "system.precision=float32"]
    assert mae(command(weights, ade, tmp_path / "one", *fields)) == 0
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["-m", "mae_core", *command(weights, ade, tmp_path / "two", *fields)]
    subprocess.run([sys.executable, *launch, *arguments], cwd=ROOT, check=True, timeout=300)
    one, two = (load_latest(tmp_path / name) for name in ("one", "two"))
    for name, tensor in one["model"].items():
        torch.testing.assert_close(two["model"][name], tensor, atol=2e-4, rtol=1e-3)
    assert len(list((tmp_path / "two").rglob("metrics.jsonl"))) == 1
    assert (tmp_path / "two/report.json").is_file()


def test_a_run_of_others_is_not_gone_on_with(
    ade: Path, weights: Path, tmp_path: Path, small_config: Any
) -> None:
    out = tmp_path / "out"
    assert mae(command(weights, ade, out)) == 0
    torch.manual_seed(9)
    other = weights.with_name("other.safetensors")
    save_weights(other, MaskedAutoencoder(small_config), record={})
    with pytest.raises(CheckpointError, match="of another encoder; give another out="):
        mae(command(other, ade, out))
    (ade / "classes.txt").write_text("one\ntwo\nthree\n")
    with pytest.raises(CheckpointError, match="of another set of classes; give another out="):
        mae(command(weights, ade, out))
    (ade / "classes.txt").write_text("\n".join(CLASSES))
    with pytest.raises(CheckpointError, match="of another freeze; give another out="):
        mae(command(weights, ade, out, "freeze=true"))
    # Annotations that were corrected meanwhile.
    labels = np.array(Image.open(ade / "annotations/training/00.png"))
    labels[5:15, 5:15] = 2
    Image.fromarray(labels).save(ade / "annotations/training/00.png")
    with pytest.raises(CheckpointError, match="of another set of training images"):
        mae(command(weights, ade, out))


def test_the_report_has_what_was_done(ade: Path, weights: Path, tmp_path: Path) -> None:
    fields = ["steps=2", "optim.lr=0", "optim.base_lr=0.5"]
    assert mae(command(weights, ade, tmp_path, *fields)) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["data"] == str(ade)
    assert report["config"]["optim"]["lr"] == 0.5 * 4 / 256
    # Nothing is done by other fields any more, but it is measured with them.
    assert (
        mae(command(weights, ade, tmp_path, *fields, "system.precision=bfloat16", "resamples=7"))
        == 0
    )
    again = json.loads((tmp_path / "report.json").read_text())
    assert again["config"]["system"]["precision"] == "auto"
    assert again["miou"] == report["miou"]


def test_a_signal_in_the_last_measurement_loses_nothing(
    ade: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Measured.on_eval

    def stop(self: Measured, state: Any, model: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        measure(self, state, model)

    monkeypatch.setattr(Measured, "on_eval", stop)
    assert mae(command(weights, ade, tmp_path / "one", "steps=2")) == 0
    assert (tmp_path / "one/report.json").is_file()
    assert (
        mae(command(weights, ade, tmp_path / "two", "steps=2", "seeds=2")) == 128 + signal.SIGTERM
    )
    assert not (tmp_path / "two/seed-1").exists()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (["head=dpt"], "head='dpt': Input should be 'linear' or 'upernet'"),
        (["image_size=50"], "image_size 50 is not a multiple of the patch side 8"),
        (["scale=2,1"], r"scale is \[2.0, 1.0\]; give the smaller number first"),
        (["optim.name=muon"], "optim.name=muon: layer decay is for adamw"),
        (["batch_size=5", "system.accumulate=2"], "pick a multiple of 2"),
        (["hed=linear"], "has no field hed; did you mean head"),
    ],
)
def test_a_wrong_field_is_told_in_a_sentence(
    ade: Path, weights: Path, tmp_path: Path, fields: list[str], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        mae(command(weights, ade, tmp_path / "out", *fields))
