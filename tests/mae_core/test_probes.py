"""Frozen features, nearest neighbours and linear probes, beside slow loops and scikit-learn."""

import json
import math
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from mae_core.cli import mae
from mae_core.config import ModelConfig
from mae_core.data.labelled import open_labelled
from mae_core.devices import choose_device
from mae_core.errors import CheckpointError, ConfigError, DataError
from mae_core.evaluation import features as features_module
from mae_core.evaluation.features import extract
from mae_core.evaluation.knn import knn_scores
from mae_core.evaluation.linear import (
    LEARNING_RATES,
    fit_adamw,
    fit_lars,
    fit_lbfgs,
    split_rows,
    sweep,
)
from mae_core.evaluation.probes import KnnConfig, KnnProbe, LinearConfig, probe
from mae_core.evaluation.scores import pooled, score, wilson_interval
from mae_core.images import open_image
from mae_core.model.mae import MaskedAutoencoder
from mae_core.training.train import train
from mae_core.weights.formats import Weights, save_weights
from mae_core.weights.registry import read_weights
from tests.mae_core.conftest import MakeRun
from tests.pictures import draw_picture
from tests.reports import Page

COLOURS = {"blue": (20, 40, 200), "green": (30, 180, 40), "red": (200, 30, 30)}


def write_classes(root: Path, per_class: int, *, seed: int = 0) -> Path:
    """Noisy squares, a colour for each class."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            noise = rng.normal(0, 60, (56, 64, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02d}.png")
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_classes(tmp_path / "data/train", 8, seed=1)
    write_classes(tmp_path / "data/val", 4, seed=2)
    return tmp_path / "data"


@pytest.fixture
def weights(small_model: MaskedAutoencoder, tmp_path: Path) -> Weights:
    save_weights(tmp_path / "small.safetensors", small_model, record={})
    return read_weights(tmp_path / "small.safetensors")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/mae_core/features"


# --- the data


def test_folders_of_classes_are_two_parts(data: Path) -> None:
    train, val = open_labelled(data)
    assert train.classes == val.classes == ("blue", "green", "red")
    assert (len(train), len(val)) == (24, 12)
    assert train.names[8] == "green/00.png"
    assert train.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8


def test_without_parts_one_in_five_of_each_class_is_measured_on(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "photos", 7)
    train, val = open_labelled(root)
    assert (len(train), len(val)) == (15, 6)
    assert np.bincount(val.labels).tolist() == [2, 2, 2]
    assert not {*train.names} & {*val.names}
    # A new image moves no other from one part to the other, but for the one it takes the place of.
    draw_picture(3, 40, 40).save(root / "red/new.png")
    assert len({*open_labelled(root)[1].names} - {*val.names}) <= 1
    # Nothing is left of a class of one image to measure on.
    (tmp_path / "photos/single").mkdir()
    draw_picture(3, 40, 40).save(root / "single/one.png")
    with pytest.raises(DataError, match="has no images of single in its measured part"):
        open_labelled(root)


def test_parts_of_other_classes_are_refused(data: Path, tmp_path: Path) -> None:
    (data / "val/red").rename(data / "val/pink")
    with pytest.raises(DataError, match="has no images of pink in its train part"):
        open_labelled(data)
    (tmp_path / "flat").mkdir()
    draw_picture(3, 40, 40).save(tmp_path / "flat/one.png")
    with pytest.raises(DataError, match="has 0 classes; give a folder with a folder"):
        open_labelled(tmp_path / "flat")
    write_classes(tmp_path / "named/Train", 2)
    write_classes(tmp_path / "named/Test", 2)
    with pytest.raises(DataError, match="Test, Train, which are no classes; call them train and"):
        open_labelled(tmp_path / "named")


def test_a_picture_of_both_parts_is_measured_on_and_not_learned_from(data: Path) -> None:
    (data / "train/red/linked.png").hardlink_to(data / "val/red/00.png")
    train, val = open_labelled(data)
    assert (len(train), len(val)) == (24, 12)


def test_a_data_set_of_the_hub(tmp_path: Path, weights: Weights) -> None:
    datasets = pytest.importorskip("datasets")
    feature = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["dark", "light"])}
    )
    for split, count in (("train", 70), ("validation", 4)):
        rows = {
            "picture": [Image.new("RGB", (40, 40), (150 * (i % 2) + i,) * 3) for i in range(count)],
            "kind": [i % 2 for i in range(count)],
        }
        (tmp_path / "hub/data").mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_dict(rows, features=feature)
        table.to_parquet(tmp_path / f"hub/data/{split}-00000-of-00001.parquet")
    train, val = open_labelled(f"hub:{tmp_path / 'hub'}")
    assert train.classes == val.classes == ("dark", "light")
    assert val.labels.tolist() == [0, 1, 0, 1]
    assert open_image(val.files[1], 3).getpixel((0, 0)) == (151, 151, 151)
    report = probe(weights, f"hub:{tmp_path / 'hub'}", KnnConfig(k=5))
    assert (report["accuracy"], report["train"], report["measured"]) == (1.0, 70, 4)
    # Test splits of competitions say -1.
    hidden = datasets.Dataset.from_dict({**rows, "kind": [-1] * 4}, features=feature)
    hidden.to_parquet(tmp_path / "hub/data/validation-00000-of-00001.parquet")
    with pytest.raises(DataError, match="does not tell the classes of validation"):
        open_labelled(f"hub:{tmp_path / 'hub'}")
    with pytest.raises(DataError, match="cannot be read"):
        open_labelled(f"hub:{tmp_path / 'nothing'}")


# --- features


def test_features_are_those_of_the_model(
    weights: Weights, data: Path, small_model: MaskedAutoencoder
) -> None:
    train, _ = open_labelled(data)
    found = extract(weights, train, blocks=[0, -1])
    assert found.blocks == (0, 1)
    assert found.tokens.shape == (24, 2, 2, 32)
    mean, std = (torch.tensor(v)[:, None, None] for v in (weights.config.mean, weights.config.std))
    for i in (0, 13):
        # The centre square, which is 56 pixels wide.
        square = np.asarray(Image.open(data / "train" / train.names[i]).crop((4, 0, 60, 56)))
        pixels = torch.from_numpy(square.copy()).permute(2, 0, 1)[None]
        resized = F.interpolate(pixels, (48, 48), mode="bicubic", antialias=True)
        image = (resized / 255 - mean) / std
        for block in (0, 1):
            for pool in ("cls", "mean"):
                with torch.no_grad():
                    wanted = small_model.features(image, pool=pool, block=block)  # type: ignore[arg-type]
                got = found.of(block, pool)[i : i + 1]  # type: ignore[arg-type]
                torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


def test_features_are_computed_once(
    weights: Weights, data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = open_labelled(data)
    first = extract(weights, train)
    assert len([*cache.iterdir()]) == 1

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    with monkeypatch.context() as patched:
        patched.setattr(features_module, "compute", never)
        assert torch.equal(extract(weights, train).tokens, first.tokens)
    # Whatever changes the features changes the name that they are kept under.
    other = {name: tensor + 0.1 for name, tensor in weights.state.items()}
    extract(replace(weights, state=other), train)
    extract(weights, val)
    extract(weights, train, image_size=32)
    extract(weights, train, blocks=[0])
    assert not torch.equal(extract(weights, train, view=0).tokens, first.tokens)
    assert not torch.equal(
        extract(weights, train, view=1).tokens, extract(weights, train, view=0).tokens
    )
    assert len([*cache.iterdir()]) == 7
    draw_picture(1, 50, 50).save(data / "train/red/00.png")
    assert not torch.equal(extract(weights, open_labelled(data)[0]).tokens, first.tokens)
    # A damaged file is computed again.
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(extract(weights, train, view=1).labels, first.labels)


def test_a_file_that_cannot_be_read_is_left_out(weights: Weights, data: Path, cache: Path) -> None:
    (data / "train/green/03.png").write_bytes(b"\x89PNG\r\n\x1a\n but no picture")
    (data / "train/red/gone.png").symlink_to(data / "nowhere.png")
    train, _ = open_labelled(data)
    found = extract(weights, train)
    assert len(found) == len(found.tokens) == len(found.rows) == 23
    left_out = {*range(len(train))} - {*found.rows.tolist()}
    assert [train.names[i] for i in sorted(left_out)] == ["green/03.png", "red/gone.png"]
    assert found.labels.tolist() == [0] * 8 + [1] * 7 + [2] * 8
    # It may be there the next time.
    assert not cache.is_dir() or not [*cache.iterdir()]
    assert probe(weights, data, KnnConfig(k=5))["train"] == 23


def test_encoders_have_features_and_classifiers_do_not(
    weights: Weights, data: Path, small_config: ModelConfig
) -> None:
    train, _ = open_labelled(data)
    state = {k: v for k, v in weights.state.items() if "decoder" not in k and k != "mask_token"}
    encoder = replace(weights, state=state, kind="encoder")
    assert torch.equal(extract(encoder, train).tokens, extract(weights, train).tokens)
    with pytest.raises(CheckpointError, match="is a classifier, whose encoder was fine-tuned"):
        extract(replace(weights, kind="classifier"), train)
    with pytest.raises(ConfigError, match="this encoder has 2: 0 to 1"):
        extract(weights, train, blocks=[2])
    with pytest.raises(ConfigError, match="give a multiple of the patch side, 8"):
        extract(weights, train, image_size=50)


def test_processes_share_the_images(
    data: Path, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Centre squares and crops: two processes keep the features of one, and print one report."""
    words = [
        "evaluate", "linear", str(tmp_path / "small.safetensors"), str(data), "solver=lars",
        "views=2", "epochs=2", "--json",
    ]  # fmt: skip
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "two")}
    done = subprocess.run(
        [sys.executable, *launch, "-m", "mae_core", *words],
        capture_output=True, text=True, timeout=300, check=False, env=environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    assert mae(words) == 0
    assert json.loads(done.stdout)["seeds"] == json.loads(capsys.readouterr().out)["seeds"]
    one, two = (
        {path.name: load_file(path) for path in (tmp_path / folder).rglob("*.safetensors")}
        for folder in ("one", "two")
    )
    assert len(one) == 3  # two views of what is learned from, and what is measured on
    assert one.keys() == two.keys()
    for name, alone in one.items():
        assert two[name]["rows"].equal(alone["rows"])
        torch.testing.assert_close(two[name]["tokens"], alone["tokens"], rtol=0, atol=1e-5)


# --- nearest neighbours


def test_votes_are_those_of_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    known, queries = torch.randn(40, 7, generator=generator), torch.randn(9, 7, generator=generator)
    labels = torch.randint(0, 4, (40,), generator=generator)
    votes = knn_scores(known, labels, queries, 4, k=6, temperature=0.2)
    for query, vote in zip(queries.double(), votes, strict=True):
        similar = []
        for other, label in zip(known.double(), labels.tolist(), strict=True):
            cosine = sum(a * b for a, b in zip(query, other, strict=True))
            similar.append((float(cosine / (query.norm() * other.norm())), label))
        similar.sort(reverse=True)
        wanted = [0.0] * 4
        for cosine, label in similar[:6]:
            wanted[label] += math.exp((cosine - similar[0][0]) / 0.2)
        assert vote.tolist() == pytest.approx(wanted, rel=1e-4)


def test_neighbours_that_there_are_not_are_refused() -> None:
    known, labels = torch.randn(5, 3), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ConfigError, match="k is 6; there are 5 images"):
        knn_scores(known, labels, known, 1, k=6)
    with pytest.raises(ConfigError, match="temperature is 0"):
        knn_scores(known, labels, known, 1, k=2, temperature=0)


# --- linear probes


@pytest.fixture
def blobs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features that a line separates in part, of very different scales; and others to measure."""
    generator = torch.Generator().manual_seed(3)
    centres = 1.2 * torch.randn(5, 12, generator=generator)
    labels = torch.arange(300) % 5
    x = centres[labels] + torch.randn(300, 12, generator=generator)
    x = x * torch.logspace(-2, 2, 12) + 5
    return x[:200], labels[:200], x[200:], labels[200:]


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
def test_lbfgs_is_scikit_learns_logistic_regression(
    blobs: tuple[Tensor, Tensor, Tensor, Tensor], penalty: float
) -> None:
    x, y, queries, _ = blobs
    scaler = StandardScaler().fit(x.double().numpy())
    peer = LogisticRegression(C=1 / (len(x) * penalty), tol=1e-8, max_iter=10_000)
    peer.fit(scaler.transform(x.double().numpy()), y.numpy())
    wanted = peer.predict_proba(scaler.transform(queries.double().numpy()))
    got = fit_lbfgs(x, y, 5, penalty).logits(queries).softmax(dim=1).numpy()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-3)
    assert (got.argmax(axis=1) == wanted.argmax(axis=1)).all()


def test_a_sweep_finds_what_is_best_without_the_measured_images(
    blobs: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    x, y, queries, wanted = blobs
    seen: list[int] = []

    def fit(features: Tensor, labels: Tensor, classes: int, value: float) -> object:
        seen.append(len(features))
        return fit_lbfgs(features, labels, classes, value)

    found = sweep(x, y, 5, fit, [100.0, 1e-2])  # type: ignore[arg-type]
    # So strong a penalty tells nothing.
    assert found.setting == 1e-2
    assert seen == [160, 160, 200]
    assert score(found.logits(queries).argmax(dim=1), wanted, 5).accuracy > 0.7
    with pytest.raises(ConfigError, match="fewer than two images"):
        sweep(x[:5], y[:5], 5, fit, [1.0])  # type: ignore[arg-type]


def test_a_fifth_of_each_class_chooses() -> None:
    labels = torch.tensor([0] * 10 + [1] * 5 + [2] * 2)
    learn, choose = split_rows(labels, 0)
    assert torch.bincount(labels[choose]).tolist() == [2, 1, 1]
    assert sorted([*learn.tolist(), *choose.tolist()]) == list(range(17))
    assert not torch.equal(split_rows(labels, 1)[1], choose)
    assert torch.equal(split_rows(labels, 0)[1], choose)


@pytest.mark.parametrize("solver", ["adamw", "lars"])
def test_trained_probes_learn_and_are_the_same_for_a_seed(
    blobs: tuple[Tensor, Tensor, Tensor, Tensor], solver: str
) -> None:
    x, y, queries, wanted = blobs

    def trained(seed: int) -> Tensor:
        if solver == "lars":
            probe = fit_lars([x, x], y, 5, base_lr=100.0, epochs=60, batch_size=50, seed=seed)
        else:
            probe = sweep(
                x, y, 5, lambda *given: fit_adamw(*given, epochs=20, seed=seed), LEARNING_RATES
            )
        return probe.logits(queries)

    first = trained(0)
    assert score(first.argmax(dim=1), wanted, 5).accuracy > 0.7
    assert torch.equal(trained(0), first)
    assert not torch.equal(trained(1), first)


def test_lars_takes_the_steps_of_the_paper(blobs: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """You et al. 2017: a weight's step is as long as its norm says, a bias's is plain."""
    x, y, _, _ = blobs
    found = fit_lars([x], y, 5, base_lr=1.0, epochs=2, batch_size=200, warmup_epochs=0)
    scaled = (x - x.mean(dim=0)) / (x.var(dim=0, correction=0) + 1e-6).sqrt()
    start = 0.01 * torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    weight, bias = start.requires_grad_(), torch.zeros(5, requires_grad=True)
    speeds = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for rate in (200 / 256, 200 / 256 * 0.5):  # half a cosine over two steps
        loss = F.cross_entropy(F.linear(scaled, weight, bias), y)
        gradients = torch.autograd.grad(loss, [weight, bias])
        trust = 0.001 * weight.norm() / gradients[0].norm()
        with torch.no_grad():
            for i, (one, gradient) in enumerate(
                zip((weight, bias), (gradients[0] * trust, gradients[1]), strict=True)
            ):
                speeds[i] = 0.9 * speeds[i] + gradient
                one -= rate * speeds[i]
    torch.testing.assert_close(found.weight, weight.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.bias, bias.detach(), rtol=0, atol=1e-5)


# --- scores


def test_scores_count_right_and_wrong() -> None:
    found = score(torch.tensor([0, 1, 1, 2, 2, 2]), torch.tensor([0, 0, 1, 2, 2, 1]), 3)
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.confusion == ((1, 1, 0), (0, 1, 1), (0, 0, 2))
    assert found.per_class == pytest.approx((0.5, 0.5, 1.0))
    two = pooled([found, score(torch.tensor([0] * 6), torch.tensor([0, 0, 1, 2, 2, 1]), 3)])
    assert two.accuracy == pytest.approx(0.5)
    assert two.confusion == ((3, 1, 0), (2, 1, 1), (2, 0, 2))
    assert two.deviation == pytest.approx(math.sqrt(2) * (4 / 6 - 0.5))
    # Of six images, not of twelve.
    assert two.interval == pytest.approx(wilson_interval(3, 6))


@pytest.mark.parametrize(
    ("right", "n", "wanted"),
    # Newcombe 1998, table I, method 3.
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)),
     (1, 29, (0.0061, 0.1718))],
)  # fmt: skip
def test_the_interval_is_wilsons(right: int, n: int, wanted: tuple[float, float]) -> None:
    assert wilson_interval(right, n) == pytest.approx(wanted, abs=5e-5)


# --- the commands


def test_either_probe_classifies_colours(weights: Weights, data: Path) -> None:
    for config in (KnnConfig(k=5, blocks=(0, 1)), LinearConfig(blocks=(1, 0), seeds=2)):
        report = probe(weights, data, config)
        assert report["accuracy"] == 1.0
        assert report["block"] == config.blocks[-1]
        assert [row["block"] for row in report["blocks"]] == [0, 1]
        assert report["seeds"] == [1.0] * config.seeds
        assert report["confusion"][0] == [4 * config.seeds, 0, 0]
        assert (report["train"], report["measured"]) == (24, 12)


def test_random_encoders_differ_by_their_seed(weights: Weights, data: Path, cache: Path) -> None:
    report = probe(weights, data, KnnConfig(k=5, init="random", seed=1, seeds=2))
    assert len(report["seeds"]) == 2
    # Features of two encoders, neither of which is that of the weights.
    assert len([*cache.iterdir()]) == 4
    probe(weights, data, KnnConfig(k=5))
    assert len([*cache.iterdir()]) == 6


@pytest.mark.parametrize("command", ["knn", "linear"])
def test_the_command_prints_a_table_or_json_and_writes_a_report(
    command: str, weights: Weights, data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    fields = ["k=5"] if command == "knn" else ["seeds=2"]
    line = ["evaluate", command, str(tmp_path / "small.safetensors"), str(data), *fields]
    out = tmp_path / "report"
    assert mae([*line, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{command} of small (weights): 3 classes, 24 images to learn from, 12 measured" in said
    assert "100.0 %" in said
    assert "by class: blue 100 %, green 100 %, red 100 %" in said
    assert {path.name for path in out.iterdir()} == {
        "report.json",
        "evaluation.html",
        "confusion.png",
    }
    page = Page(out / "evaluation.html")
    assert f"{command} of small on 3 classes" in page.text
    assert shlex.join(["mae", *line, "--out", str(out)]) in page.text
    assert mae([*line, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    kept = json.loads((out / "report.json").read_text())
    for report in (printed, kept):
        del report["seconds"]
    assert printed == kept
    assert printed.keys() >= {"accuracy", "interval", "seeds", "per_class", "confusion"}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (["k=100"], "k is 100; there are 24 images to choose from"),
        (["blocks=7"], "blocks are \\[7\\]; this encoder has 2"),
        (["solver=adamw"], "KnnConfig has no field solver"),
        (["pool=max"], "pool='max'"),
        (["blocks="], "blocks=\\[\\]"),
        (["--json", "k=0"], "k=0"),
        (["--jsn", "k=3"], "mae evaluate knn has no --jsn; see mae evaluate knn --help"),
    ],
)
def test_fields_that_do_not_fit_are_refused(
    fields: list[str], sentence: str, weights: Weights, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        mae(["evaluate", "knn", str(tmp_path / "small.safetensors"), str(data), *fields])


def test_views_are_for_lars(weights: Weights, data: Path) -> None:
    with pytest.raises(ConfigError, match="views=2 is for solver=lars"):
        LinearConfig(views=2)
    config = LinearConfig(solver="lars", views=2, epochs=20, base_lr=50.0)
    assert probe(weights, data, config)["accuracy"] > 0.6


def test_training_measures_classes_on_the_way(run_config: MakeRun, data: Path) -> None:
    config = run_config()
    run = train(replace(config, data=replace(config.data, labelled=str(data))))
    measured = {line["step"]: line["probe_knn"] for line in run.metrics() if "probe_knn" in line}
    assert [*measured] == [4, 8]
    # On the device of the run.
    assert measured[8] == KnnProbe(data).accuracy(run.model.to(choose_device()))
    report = (run.folder / "report.html").read_text()
    assert "Nearest neighbours: accuracy on labelled images" in report
    # The weights say nothing of where the images lay.
    assert str(data) not in json.dumps(read_weights(run.folder).record)
    with pytest.raises(DataError, match="is not a folder"):
        train(replace(config, data=replace(config.data, labelled=str(data / "nothing"))))
