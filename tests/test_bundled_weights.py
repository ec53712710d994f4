"""The weights in the repository are what the manifest and the model card say."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest

from mae_core.cli import mae
from mae_core.evaluation.reconstruction import evaluate_reconstruction, load_images
from mae_core.reconstruct import Reconstructor
from mae_core.weights.registry import (
    DEFAULT_WEIGHTS,
    WEIGHTS_FOLDER,
    WeightsEntry,
    list_weights,
    load,
    locate,
    read_weights,
)

EXAMPLES = Path(__file__).resolve().parents[1] / "app" / "assets" / "examples"
MIB = 2**20

ENTRIES = [entry for entry in list_weights().values() if entry.bundled]
by_name = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry.name))


def test_the_default_weights_are_bundled_and_all_are_small() -> None:
    assert DEFAULT_WEIGHTS in {entry.name for entry in ENTRIES}
    assert all(entry.bytes <= 50 * MIB for entry in ENTRIES)
    # Every checkout, wheel and Space carries all of them.
    assert sum(entry.bytes for entry in ENTRIES) <= 64 * MIB
    files = {path.name for path in WEIGHTS_FOLDER.glob("*.safetensors")}
    assert files == {entry.file for entry in ENTRIES}


def test_the_help_names_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        mae(["reconstruct", "--help"])
    assert f"USER/NAME; {DEFAULT_WEIGHTS}\n" in capsys.readouterr().out


@by_name
def test_each_file_is_the_one_the_manifest_describes(entry: WeightsEntry) -> None:
    data = locate(entry.name).read_bytes()
    assert len(data) == entry.bytes
    assert hashlib.sha256(data).hexdigest() == entry.sha256


@by_name
def test_each_file_tells_how_it_was_trained_and_names_no_folder(entry: WeightsEntry) -> None:
    record = read_weights(locate(entry.name)).record
    assert {"recipe", "train", "pictures", "pictures_seen", "hours", "holdout_psnr"} <= set(record)
    assert not {"folder", "holdout", "cache"} & set(record["train"]["data"])
    assert "out" not in record["train"]


@by_name
def test_the_model_card_names_each_and_its_recipe(entry: WeightsEntry) -> None:
    card = (WEIGHTS_FOLDER / "README.md").read_text()
    record = read_weights(locate(entry.name)).record
    assert f"`{entry.name}`" in card
    assert f"`{record['recipe']}`" in card
    assert f"{record['pictures']:,}" in card
    assert f"{record['pictures_seen']:,}" in card


@by_name
def test_bfloat16_shows_the_same_pictures(entry: WeightsEntry) -> None:
    model = load(locate(entry.name))
    # Sharp weights enlarge rounding errors too. 48 dB is a root mean square of one level of 255.
    sharp = read_weights(locate(entry.name)).record["recipe"] == "sharpen"
    full, half = (
        Reconstructor(model, device="cpu", precision=precision)
        for precision in ("float32", "bfloat16")
    )
    for path in sorted(EXAMPLES.glob("*.jpg"))[:4]:
        first, second = full(path, seed=2), half(path, seed=2)
        np.testing.assert_array_equal(first.removed, second.removed)
        error = (first.reconstruction - second.reconstruction).square().mean().item()
        assert -10 * math.log10(error) > (48 if sharp else 50)


@by_name
@pytest.mark.parametrize(
    ("mask_ratio", "strategy"),
    [(0.25, "random"), (0.5, "random"), (0.75, "random"), (0.9, "random"), (0.5, "block")],
)
def test_each_beats_inpainting_on_the_example_pictures(
    entry: WeightsEntry, mask_ratio: float, strategy: str
) -> None:
    model = load(locate(entry.name))
    pictures = load_images(EXAMPLES, model.config)
    figures = evaluate_reconstruction(model, pictures, mask_ratio=mask_ratio, strategy=strategy)
    assert len(figures["model"]["psnr"]) == 12
    assert np.mean(figures["model"]["psnr"]) > np.mean(figures["telea"]["psnr"])
