"""Detection: COCO's files, samples, average precision by hand, and runs through the command."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mae_core import _compat
from mae_core.cli import mae
from mae_core.config import SystemConfig
from mae_core.data.dense import Objects, open_detection
from mae_core.distributed import World
from mae_core.errors import ConfigError, DataError
from mae_core.evaluation.detection import (
    DetectionFigures,
    Evaluated,
    Found,
    Precision,
    detection_report,
    find_objects,
)
from mae_core.model.dense import Detector
from mae_core.model.mae import MaskedAutoencoder
from mae_core.training.detect import DetectConfig, Detection
from mae_core.training.trainer import Trainer
from mae_core.weights.files import load_latest
from mae_core.weights.formats import save_weights
from tests.pictures import draw_picture

pytest.importorskip("pycocotools")

ALONE = World(0, 1, torch.device("cpu"))
WIDTH, HEIGHT = 64, 48


def draw(seed: int) -> tuple[Image.Image, Objects]:
    """A smooth picture with a red square and a blue disk that do not touch."""
    rng = np.random.default_rng(seed)
    pixels = np.array(draw_picture(seed, WIDTH, HEIGHT).convert("RGB")) // 3
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    masks = []
    for label, colour in enumerate(((250, 40, 30), (30, 60, 250))):
        x, y = int(rng.integers(11, 21)) + 32 * label, int(rng.integers(11, HEIGHT - 11))
        if label:
            mask = np.hypot(columns - x, rows - y) <= 10
        else:
            mask = np.maximum(abs(columns - x), abs(rows - y)) <= 9
        pixels[mask] = colour
        masks.append(mask)
    boxes = [box_of(mask) for mask in masks]
    objects = Objects(
        np.array(boxes, dtype=np.float32), np.array([0, 1]), np.stack(masks), np.zeros(2, bool)
    )
    return Image.fromarray(pixels.astype(np.uint8)), objects


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def runs_of(mask: NDArray[np.bool_]) -> list[int]:
    """Run lengths of a mask by a slow loop."""
    counts, value = [0], False
    for pixel in mask.T.flatten().tolist():
        if pixel != value:
            counts, value = [*counts, 0], pixel
        counts[-1] += 1
    return counts


def coco_of(pictures: dict[int, Objects]) -> dict[str, Any]:
    annotations = []
    for image, objects in pictures.items():
        for box, label, mask in zip(objects.boxes, objects.labels, objects.masks, strict=True):
            left, top, right, bottom = box.tolist()
            segmentation: Any = {"size": [HEIGHT, WIDTH], "counts": runs_of(mask)}
            if label == 0:
                segmentation = [[left, top, right, top, right, bottom, left, bottom]]
            annotations.append({
                "id": len(annotations), "image_id": image, "category_id": (7, 30)[label],
                "bbox": [left, top, right - left, bottom - top], "segmentation": segmentation,
                "area": int(mask.sum()), "iscrowd": 0,
            })  # fmt: skip
    return {
        "info": {"year": 2026},
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT, "license": 1}
            for i in pictures
        ],
        "annotations": annotations,
        "categories": [{"id": 30, "name": "disk"}, {"id": 7, "name": "square"}],
    }


def write_coco(root: Path, train: int = 8, val: int = 3) -> Path:
    for part, count, first in (("train", train, 0), ("val", val, 500)):
        (root / part).mkdir(parents=True)
        pictures = {}
        for i in range(first, first + count):
            image, pictures[i] = draw(i)
            image.save(root / part / f"{i}.png")
        (root / f"{part}.json").write_text(json.dumps(coco_of(pictures)))
    return root


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


@pytest.fixture
def weights(small_model: MaskedAutoencoder, tmp_path: Path) -> Path:
    save_weights(tmp_path / "small.safetensors", small_model, record={})
    return tmp_path / "small.safetensors"


def command(weights: Path, data: Path, out: Path, *fields: str) -> list[str]:
    plain = [
        "image_size=64", "channels=16", "epochs=0", "steps=4", "batch_size=2", "save_every=2",
        "optim.lr=2e-3", "optim.warmup_epochs=0", "scale=0.8,1.2", "resamples=5",
    ]  # fmt: skip
    return ["evaluate", "detect", str(weights), str(data), *plain, *fields, "--out", str(out)]


# --- files


def test_objects_are_read_as_they_were_drawn(coco: Path) -> None:
    train, val = open_detection(coco)
    assert (len(train), len(val)) == (8, 3)
    assert (train.classes, train.categories) == (("square", "disk"), (7, 30))
    image, objects = val.read(1)
    picture, expected = draw(501)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(picture))
    np.testing.assert_array_equal(objects.boxes, expected.boxes)
    np.testing.assert_array_equal(objects.labels, expected.labels)
    # The square is a polygon, the disk run lengths.
    np.testing.assert_array_equal(objects.masks, expected.masks)
    assert not objects.crowd.any()


def test_the_official_names_and_groups(coco: Path) -> None:
    (coco / "annotations").mkdir()
    for part in ("train", "val"):
        (coco / part).rename(coco / f"{part}2017")
        (coco / f"{part}.json").rename(coco / f"annotations/instances_{part}2017.json")
    file = coco / "annotations/instances_train2017.json"
    values = json.loads(file.read_text())
    for one in values["annotations"]:
        # Picture 2 has groups alone, picture 3 has one of them.
        one["iscrowd"] = int(
            one["image_id"] == 2 or (one["image_id"], one["category_id"]) == (3, 7)
        )
    file.write_text(json.dumps(values))
    train, _ = open_detection(coco)
    assert [path.stem for path in train.files] == ["0", "1", "3", "4", "5", "6", "7"]
    assert train.read(2)[1].crowd.tolist() == [True, False]
    _, seen = replace(train, side=64, scale=(1.0, 1.0)).sample(2, np.random.default_rng(0))
    assert seen.labels.tolist() == [1]


def _change(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: values["annotations"][3].update(changes)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_change(image_id=77), "annotation 3 is of no known image or category"),
        (_change(category_id=8), "annotation 3 is of no known image or category"),
        (_change(bbox=[1, 2, -3, 4]), r"annotations.3.bbox.2: Input should be greater than or"),
        (_change(bbox=[1, 2, float("nan"), 4]), r"annotations.3.bbox.2: Input should be a finite"),
        (_change(segmentation=[[1, 2, 3]]), "the mask of annotation 3 is no polygon; give three"),
        (_change(segmentation=[]), "the mask of annotation 3 is no polygon"),
        (_change(segmentation={"size": [48, 64], "counts": [10**12]}), "does not have the 3072"),
        (_change(segmentation={"size": [10**9, 64], "counts": [3072]}), "does not have the 3072"),
        (_change(segmentation={"size": [48, 64], "counts": "abc"}), "annotations.3.segmentation"),
        (lambda values: values.pop("categories"), "not as COCO has it: categories: Field required"),
        (lambda values: values["images"].append(values["images"][0]),
         "has an id of a picture twice"),
        (lambda values: values["images"][0].update(file_name="../../secret.png"),
         "names .*secret.png., which is not in its folder"),
        (lambda values: values["images"][0].update(file_name="a\0b.png"),
         "names .*, which is not in its folder"),
        (_change(bbox=[1e300, 2, 1e300, 4]), "annotations.3.bbox.0: Input should be less than"),
        (lambda v: v["categories"][0].update(name=v["categories"][1]["name"]),
         "has two categories of one id or name"),
        (lambda values: [one.update(iscrowd=1) for one in values["annotations"]],
         "no object to learn from, or none to measure on"),
    ],
)  # fmt: skip
def test_a_spoilt_file_is_told_in_a_sentence(
    coco: Path, spoil: Callable[[dict[str, Any]], Any], sentence: str
) -> None:
    values = json.loads((coco / "val.json").read_text())
    spoil(values)
    (coco / "val.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=sentence):
        open_detection(coco)


def test_other_trouble_is_told_in_a_sentence(coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="has no train.json with train/"):
        open_detection(coco / "train")
    draw_picture(1, 40, 40).save(coco / "val/500.png")
    with pytest.raises(DataError, match=r"\(40, 40\) pixels, and its annotations are of \(64, 48"):
        open_detection(coco)[1].read(0)
    (coco / "val/500.png").unlink()
    with pytest.raises(DataError, match="500.png: no file can be read"):
        open_detection(coco)[1].read(0)
    (coco / "val.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="val.json cannot be read"):
        open_detection(coco)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(ConfigError, match="pip install -r requirements-dense.txt"):
        open_detection(coco)


def test_points_far_outside_are_brought_to_the_edge(coco: Path) -> None:
    values = json.loads((coco / "val.json").read_text())
    far = [-1e12, -1e12, 1e12, -1e12, 1e12, 1e12, -1e12, 1e12]
    values["annotations"][0]["segmentation"] = [far]
    (coco / "val.json").write_text(json.dumps(values))
    assert open_detection(coco)[1].read(0)[1].masks[0].all()


def test_boxes_of_a_sample_are_those_of_its_masks(coco: Path) -> None:
    train = replace(open_detection(coco)[0], side=48, scale=(0.3, 6.0))
    counts = set()
    for number in range(40):
        pixels, objects = train.sample(number % 8, np.random.default_rng(number))
        counts.add(len(objects.labels))
        for box, label, mask in zip(objects.boxes, objects.labels, objects.masks, strict=True):
            assert tuple(box) == box_of(mask)
            levels = pixels[mask].astype(int)
            redness = (levels[:, 0] - levels[:, 2]).mean() * (-1 if label else 1)
            assert redness > 100 or mask.sum() < 40  # a strip at the edge of the square
    assert counts == {0, 1, 2}


# --- torchvision's operators, where they do not load


def test_non_maximum_suppression_is_that_of_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 30, (60, 2))
    boxes = np.concatenate((corners, corners + rng.uniform(5, 20, (60, 2))), axis=1)
    scores = rng.random(60)

    def overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        inside = max(width, 0) * max(height, 0)
        areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (a, b)]
        return float(inside / (sum(areas) - inside))

    kept = list[int]()
    for i in np.argsort(-scores).tolist():
        if all(overlap(boxes[i], boxes[j]) <= 0.4 for j in kept):
            kept.append(i)
    assert 5 < len(kept) < 50
    found = _compat._nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.4)
    assert found.tolist() == kept


@pytest.mark.parametrize("samples", [2, -1])
@pytest.mark.parametrize("aligned", [False, True])
def test_aligned_regions_are_means_of_interpolated_pixels(samples: int, aligned: bool) -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(2, 3, 9, 12))
    rois = np.array([[1, 3, 5, 77, 60], [0, 0, 0, 96, 72], [1, 40.5, 20, 44, 23.5]])
    found = _compat._roi_align(
        torch.from_numpy(features), torch.from_numpy(rois), 1 / 8, 3, 2, samples, aligned
    )
    assert found.shape == (3, 3, 3, 2)

    def value(image: int, channel: int, x: float, y: float) -> float:
        x, y = min(max(x, 0), 11), min(max(y, 0), 8)
        left, top = min(int(x), 10), min(int(y), 7)
        corners = features[image, channel, top : top + 2, left : left + 2]
        across = corners[:, 0] * (left + 1 - x) + corners[:, 1] * (x - left)
        return float(across[0] * (top + 1 - y) + across[1] * (y - top))

    for number, (image, *corners) in enumerate(rois.tolist()):
        left, top, right, bottom = (edge / 8 - 0.5 * aligned for edge in corners)
        width, height = right - left, bottom - top
        if not aligned:
            width, height = max(width, 1), max(height, 1)
        across, down = (
            samples if samples > 0 else math.ceil(length / cells)
            for length, cells in ((width, 2), (height, 3))
        )
        for row, column, channel in np.ndindex(3, 2, 3):
            values = [
                value(
                    int(image), channel,
                    left + (column + (i + 0.5) / across) * width / 2,
                    top + (row + (j + 0.5) / down) * height / 3,
                )
                for i in range(across)
                for j in range(down)
            ]  # fmt: skip
            expected = sum(values) / len(values)
            assert math.isclose(found[number, channel, row, column], expected, abs_tol=1e-5)


# --- figures


def found_of(objects: Objects, shift: int = 0, score: float = 0.9) -> Found:
    """What is there, moved to the right."""
    return Found(
        objects.boxes + np.array([shift, 0, shift, 0]), objects.labels,
        np.full(len(objects.labels), score), np.roll(objects.masks, shift, axis=2),
    )  # fmt: skip


NOTHING = Found(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), np.zeros((0, HEIGHT, WIDTH), bool))


def figures_of(found: list[Found]) -> DetectionFigures:
    precision = Precision(2)
    for i, one in enumerate(found):
        precision.add(draw(i)[1], one)
    drawing = Image.new("RGB", (1, 1))
    return DetectionFigures(precision.evaluated("bbox"), precision.evaluated("segm"), drawing)


def test_perfect_and_empty_predictions() -> None:
    perfect = figures_of([found_of(draw(i)[1]) for i in range(4)]).summary()
    assert set(perfect) == {f"{a}_{b}" for a in ("box", "mask") for b in ("ap", "ap50", "ap75")}
    np.testing.assert_allclose([*perfect.values()], 1)
    np.testing.assert_array_equal([*figures_of([NOTHING] * 4).summary().values()], 0)


def test_shifted_predictions_count_up_to_their_overlap() -> None:
    figures = figures_of([found_of(draw(i)[1], shift=4) for i in range(4)])
    # A square of 19 pixels moved by 4: 15 of 23 columns, 0.652; the disk's box is 21 wide, 17 of
    # 25, 0.68. Of ten thresholds from 0.5, 0.5 to 0.65 are passed.
    np.testing.assert_allclose(figures.box.precisions()[:, 0], [1] * 4 + [0] * 6)
    np.testing.assert_allclose(figures.box.precisions()[:, 1], [1] * 4 + [0] * 6)
    summary = figures.summary()
    assert math.isclose(summary["box_ap"], 0.4)
    assert (summary["box_ap50"], summary["box_ap75"]) == (1, 0)
    _, objects = draw(0)
    disk, moved = objects.masks[1], np.roll(objects.masks[1], 4, axis=1)
    overlap = (disk & moved).sum() / (disk | moved).sum()
    passed = sum(overlap >= 0.5 + 0.05 * i for i in range(10))
    np.testing.assert_allclose(figures.mask.precisions()[:, 1], [1] * passed + [0] * (10 - passed))


def test_a_sure_mistake_costs_precision_and_an_unsure_one_does_not() -> None:
    _, objects = draw(0)
    wrong = found_of(objects, shift=-11)

    def box_ap(score: float) -> float:
        both = [np.concatenate(pair) for pair in zip(
            found_of(objects), wrong._replace(scores=np.full(2, score)), strict=True
        )]  # fmt: skip
        return figures_of([Found(*both)]).summary()["box_ap"]

    assert math.isclose(box_ap(0.1), 1)
    assert math.isclose(box_ap(0.99), 0.5)


def test_groups_are_neither_missed_nor_wrong() -> None:
    _, objects = draw(0)
    precision = Precision(2)
    precision.add(objects._replace(crowd=np.array([True, False])), found_of(objects))
    precision.add(objects._replace(crowd=np.array([True, False])), NOTHING)
    found = precision.evaluated("bbox").precisions()
    assert np.isnan(found[:, 0]).all()
    np.testing.assert_allclose(found[:, 1], 51 / 101)  # of 101 recalls, those up to a half


def test_figures_of_resampled_images_are_those_of_a_new_set() -> None:
    found = [found_of(draw(0)[1]), NOTHING, found_of(draw(2)[1], 4), found_of(draw(3)[1], 2)]
    figures = figures_of(found)
    rows = [0, 3, 3, 1]
    again = Precision(2)
    for i in rows:
        again.add(draw(i)[1], found[i])
    for kind, evaluated in (("bbox", figures.box), ("segm", figures.mask)):
        expected: Evaluated = again.evaluated(kind)
        np.testing.assert_allclose(evaluated.precisions(np.array(rows)), expected.precisions())
    report = detection_report([figures, figures], ("square", "disk"), resamples=30)
    assert report["deviation"] == 0
    assert report["seeds"] == [report["box_ap"]] * 2
    low, high = report["interval"]
    assert low < report["box_ap"] < high
    assert math.isclose(sum(report["mask_per_class"].values()) / 2, report["mask_ap"])


# --- the detector


def test_the_pyramid_has_the_strides_that_torchvision_infers(small_config: Any) -> None:
    model = Detector(small_config, num_classes=2, image_size=64, channels=16)
    maps = model.rcnn.backbone(torch.randn(1, 3, 64, 64))
    assert [(name, one.shape[1:]) for name, one in maps.items()] == [
        ("0", (16, 32, 32)), ("1", (16, 16, 16)), ("2", (16, 8, 8)), ("3", (16, 4, 4)),
        ("pool", (16, 2, 2)),
    ]  # fmt: skip
    # Each parameter has one name: an average of weights knows no other.
    assert len(model.state_dict()) == len(list(model.parameters()))
    for config, side, sentence in (
        (replace(small_config, patch_size=12), 48, "patch side is 12, and .* powers of 2"),
        (small_config, 56, "image_size 56 does not divide into 16, the coarsest stride"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            Detector(config, num_classes=2, image_size=side)


def test_what_is_found_is_brought_to_the_pictures_size(
    small_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Detector(small_config, num_classes=2, image_size=64, channels=16)
    image, objects = draw(0)
    large = image.resize((160, 120))

    def seen(images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        (one,) = images
        assert one.shape == (3, 48, 64)
        assert one.max() <= 1
        return [{
            "boxes": torch.from_numpy(objects.boxes), "labels": torch.tensor([1, 2]),
            "scores": torch.tensor([0.9, 0.8]),
            "masks": torch.from_numpy(objects.masks[:, None].astype(np.float32)),
        }]  # fmt: skip

    monkeypatch.setattr(model, "forward", seen)
    found = find_objects(model, large)
    np.testing.assert_allclose(found.boxes, objects.boxes * 2.5)
    assert found.labels.tolist() == [0, 1]
    assert found.masks.shape == (2, 120, 160)
    wanted = np.asarray(Image.fromarray(objects.masks[0]).resize((160, 120)))
    assert (found.masks[0] == wanted).mean() > 0.98


def test_the_loss_is_a_function_of_seed_and_step_and_parts_add_up(
    coco: Path, small_config: Any
) -> None:
    train = replace(open_detection(coco)[0], model=small_config, side=64)
    torch.manual_seed(0)
    model = Detector(small_config, num_classes=2, image_size=64, channels=16).train()

    def losses(parts: int, step: int = 1) -> list[float]:
        config = DetectConfig(
            steps=3, epochs=0, batch_size=4, system=SystemConfig(accumulate=parts)
        )
        return [loss(model).item() for loss in next(Detection(config, train, ALONE).losses(step))]

    state = torch.get_rng_state()
    whole = losses(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert losses(1) == whole
    assert losses(1, step=2) != whole
    # Which boxes are learned from is drawn for each part, so they add up about.
    assert math.isclose(sum(losses(2)) / 2, whole[0], rel_tol=0.2)


def test_a_detector_is_trained_and_reported_and_a_killed_one_ends_in_the_same_bits(
    coco: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    assert mae([*command(weights, coco, out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert json.loads((out / "report.json").read_text()) == report
    assert (report["method"], report["weights"], report["init"]) == ("detect", "small", "weights")
    assert report["seeds"] == [report["box_ap"]]
    assert report["mask_seeds"] == [report["mask_ap"]]
    assert set(report["per_class"]) == {"square", "disk"}
    with Image.open(out / "pictures.png") as drawing:
        assert drawing.size == (3 * WIDTH + 2 * 8, 3 * HEIGHT + 2 * 8)

    killed = command(weights, coco, tmp_path / "killed")
    update = Trainer._update

    def interrupted(self: Any, losses: Any) -> None:
        if self.state.step == 3:
            raise KeyboardInterrupt
        update(self, losses)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            mae(killed)
    assert mae(killed) == 0
    whole, again = (load_latest(tmp_path / name)["model"] for name in ("out", "killed"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, again[name]), name
