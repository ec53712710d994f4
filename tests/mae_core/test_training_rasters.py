"""Training on measurements: any number of channels, a range of values found or declared."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch

from mae_core.cli import mae
from mae_core.config import DataConfig, TrainConfig, load_yaml
from mae_core.data.pack import open_pack
from mae_core.errors import CheckpointError, ConfigError, DataError
from mae_core.evaluation.reconstruction import evaluate_reconstruction, load_images
from mae_core.reconstruct import Reconstructor
from mae_core.training.train import train
from mae_core.weights.registry import load, read_weights

MakeRun = Callable[..., TrainConfig]


def scene(i: int, bands: int) -> np.ndarray:
    """(60, 70, bands) in 0..1, smooth, with objects of their own in each band."""
    y, x = np.mgrid[0:60, 0:70] / 60
    each = [
        (np.sin(4 * x + band + i) + np.cos(5 * y + 2 * band - i) + 2) / 4 for band in range(bands)
    ]
    return np.stack(each, axis=-1)


@pytest.fixture
def satellite(tmp_path: Path) -> Path:
    """12 TIFF files of 4 bands of 16 bits, of which a twentieth is used."""
    folder = tmp_path / "satellite"
    folder.mkdir()
    for i in range(12):
        values = (scene(i, 4) * [1000, 1500, 2000, 3000]).astype(np.uint16)
        tifffile.imwrite(
            folder / f"{i:02}.tif", values, photometric="minisblack", planarconfig="contig",
            compression="zlib", tile=(16, 16),
        )  # fmt: skip
    return folder


@pytest.fixture
def radiographs(tmp_path: Path) -> Path:
    """12 grey PNG files of 12 bits in 16."""
    folder = tmp_path / "radiographs"
    folder.mkdir()
    for i in range(12):
        values = np.ascontiguousarray((scene(i, 1)[:, :, 0] * 4095).astype(np.uint16))
        (folder / f"{i:02}.png").write_bytes(imagecodecs.png_encode(values))
    return folder


def on(make: MakeRun, folder: Path, channels: int, **data: object) -> TrainConfig:
    config = make()
    model = dataclasses.replace(config.model, in_chans=channels)
    source = DataConfig(folder=str(folder), short_side=56, **data)  # type: ignore[arg-type]
    return dataclasses.replace(config, model=model, data=source)


def test_bands_of_a_satellite(run_config: MakeRun, satellite: Path) -> None:
    config = on(run_config, satellite, 4, holdout=str(satellite.parent / "holdout"))
    holdout = satellite.parent / "holdout"
    holdout.mkdir()
    (satellite / "00.tif").rename(holdout / "00.tif")
    assert train(config).finished
    weights = read_weights(Path(config.out) / "weights.safetensors")
    assert weights.config.value_range is not None
    highs = [round(high, -2) for _, high in weights.config.value_range]
    assert highs == [1000, 1500, 2000, 3000]
    assert all(0.3 < mean < 0.7 for mean in weights.config.mean)
    assert weights.record["holdout_psnr"] > 0
    # The weights bring their range along: the same picture in other units is another one.
    out = Reconstructor(weights.build(), "m", device="cpu")(holdout / "00.tif", image_size=48)
    values = tifffile.imread(holdout / "00.tif")
    assert out.original.shape == (4, 48, 48)
    assert abs(out.original[3].mean().item() - values[..., 3].mean() / 3000) < 0.05
    assert out.panels()["original"].mode == "RGB"
    false_colour = np.asarray(out.panels(show=(4, 2, 1))["original"]).astype(int)
    channels = (out.original[[3, 1, 0]] * 255).permute(1, 2, 0).numpy()
    assert np.abs(false_colour - channels).max() <= 1
    assert out.panels(show=(4,))["pasted"].mode == "L"


def test_chosen_bands_as_colours(run_config: MakeRun, satellite: Path) -> None:
    config = on(run_config, satellite, 3, bands=(4, 2, 1), range="0,3000")
    assert train(config).finished
    model = read_weights(Path(config.out) / "weights.safetensors").config
    assert (model.bands, model.value_range) == ((4, 2, 1), ((0, 3000),))
    pictures = load_images(satellite, model)
    values = tifffile.imread(satellite / "00.tif")
    red = np.asarray(pictures[0])[..., 0].mean() / 255 * 3000
    assert abs(red - values[..., 3].mean()) < 100


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("decode", ["once", "epoch"])
def test_grey_of_12_bits(
    run_config: MakeRun, radiographs: Path, channels: int, decode: str
) -> None:
    config = on(run_config, radiographs, channels, decode=decode)
    assert train(config).finished
    model = load(Path(config.out) / "weights.safetensors")
    ((low, high),) = model.config.value_range or ((0, 0),)
    assert low < 50
    assert 4000 < high <= 4095
    pictures = load_images(radiographs, model.config)
    # Not black: most levels are used.
    assert all(np.asarray(picture).std() > 30 for picture in pictures)
    figures = evaluate_reconstruction(model, pictures, baselines=False)["model"]
    assert len(figures["psnr"]) == 12


def test_a_run_keeps_the_range_it_began_with(run_config: MakeRun, radiographs: Path) -> None:
    config = on(run_config, radiographs, 1)
    whole = dataclasses.replace(config, out=config.out + "-whole")
    train(whole)
    train(dataclasses.replace(config, steps=4))
    # As a folder grows, its percentiles change; the run's do not.
    bright = np.full((60, 70), 60000, dtype=np.uint16)
    (radiographs / "99.png").write_bytes(imagecodecs.png_encode(bright))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, cache=""))
    assert train(config).finished
    found = read_weights(Path(config.out) / "weights.safetensors").config
    assert found == read_weights(Path(whole.out) / "weights.safetensors").config
    declared = dataclasses.replace(config, data=dataclasses.replace(config.data, range="0,9"))
    with pytest.raises(CheckpointError, match="of another model"):
        train(declared)


def test_weights_of_four_channels_are_gone_on_from(run_config: MakeRun, satellite: Path) -> None:
    first = on(run_config, satellite, 4)
    train(first)
    second = dataclasses.replace(
        first, out=first.out + "2", init_from=str(Path(first.out) / "weights.safetensors")
    )
    assert train(second).finished
    models = [read_weights(Path(one.out) / "weights.safetensors").config for one in (first, second)]
    assert models[0] == models[1]


def test_a_pack_of_measurements(
    run_config: MakeRun, satellite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = satellite.parent / "pack"
    assert mae(["pack", str(satellite), str(out), "short_side=56", "channels=4"]) == 0
    pack = open_pack(out)
    assert pack.channels == 4
    assert pack[0][0].shape == (56, 65, 4)
    config = run_config()
    data = DataConfig(pack=str(out))
    with pytest.raises(DataError, match="has channels 4 and the run 3; give the same"):
        train(dataclasses.replace(config, data=data))
    model = dataclasses.replace(config.model, in_chans=4)
    config = dataclasses.replace(config, data=data, model=model, out=config.out + "4")
    assert train(config).finished
    of_pack = read_weights(Path(config.out) / "weights.safetensors").config
    of_folder = on(run_config, satellite, 4)
    train(of_folder)
    expected = read_weights(Path(of_folder.out) / "weights.safetensors").config
    assert of_pack.value_range == expected.value_range
    assert of_pack.mean == pytest.approx(expected.mean, abs=0.01)


def test_statistics_that_are_given_are_kept(run_config: MakeRun, satellite: Path) -> None:
    config = on(run_config, satellite, 4)
    model = dataclasses.replace(config.model, mean=(0.4,) * 4, std=(0.3,) * 4)
    train(dataclasses.replace(config, model=model))
    assert read_weights(Path(config.out) / "weights.safetensors").config.mean == (0.4,) * 4


def test_the_run_says_its_range(run_config: MakeRun, radiographs: Path) -> None:
    config = on(run_config, radiographs, 1)
    train(config)
    written = load_yaml(TrainConfig, Path(config.out) / "config.yaml")
    assert written.model.value_range is not None
    assert written.model.value_range[0][1] > 4000
    assert written.data.range == "auto"


def test_colours_are_jittered_where_there_are_colours(run_config: MakeRun) -> None:
    config = run_config()
    grey = dataclasses.replace(config.model, in_chans=1)
    data = dataclasses.replace(config.data, color_jitter=0.4)
    with pytest.raises(
        ConfigError, match=r"data.color_jitter is of colours and model.in_chans is 1"
    ):
        dataclasses.replace(config, model=grey, data=data)


def test_photographs_have_no_range(run_config: MakeRun) -> None:
    config = run_config()
    train(config)
    model = read_weights(Path(config.out) / "weights.safetensors").config
    assert (model.value_range, model.bands) == (None, ())
    assert torch.tensor(model.mean).allclose(torch.tensor((0.485, 0.456, 0.406)))


def test_weights_of_another_range_are_warned_of(
    run_config: MakeRun, radiographs: Path, satellite: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = on(run_config, radiographs, 1)
    train(first)
    dark = radiographs.parent / "dark"
    dark.mkdir()
    for i in range(4):
        values = np.ascontiguousarray((scene(i, 1)[:, :, 0] * 500).astype(np.uint16))
        (dark / f"{i}.png").write_bytes(imagecodecs.png_encode(values))
    weights = str(Path(first.out) / "weights.safetensors")
    caplog.clear()
    begun = dataclasses.replace(on(run_config, dark, 1), init_from=weights)
    train(dataclasses.replace(begun, out=first.out + "2"))
    assert "these images have values from" in caplog.text
    assert read_weights(Path(first.out + "2") / "weights.safetensors").config.value_range == (
        read_weights(weights).config.value_range
    )
    data = dataclasses.replace(begun.data, range="dtype")
    train(dataclasses.replace(begun, out=first.out + "3", data=data))
    found = read_weights(Path(first.out + "3") / "weights.safetensors").config.value_range
    assert found == ((0, 65535),)


def test_a_pack_of_other_facts_is_refused_whenever_it_is_given(
    run_config: MakeRun, satellite: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packs = {}
    for name, flags in (("a", ["channels=4", "range=0,3000"]), ("b", ["channels=4", "range=0,9"]),
                        ("c", ["channels=3", "bands=1,2,3", "range=0,3000"])):  # fmt: skip
        packs[name] = str(satellite.parent / name)
        mae(["pack", str(satellite), packs[name], "short_side=56", *flags])
    config = run_config()
    model = dataclasses.replace(config.model, in_chans=4)
    config = dataclasses.replace(config, model=model, data=DataConfig(pack=packs["a"]), steps=4)
    train(config)
    for other, named in (("b", "range"), ("c", "channels")):
        data = DataConfig(pack=packs[other])
        with pytest.raises(DataError, match=f"has {named} .* and the run .*; give the same, or pa"):
            train(dataclasses.replace(config, data=data, steps=8))
    declared = DataConfig(pack=packs["a"], range="0,77")
    with pytest.raises(DataError, match="has range"):
        train(dataclasses.replace(config, data=declared, out=config.out + "2"))


def test_a_range_of_photographs_does_nothing_and_that_is_said(
    run_config: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_config()
    train(dataclasses.replace(config, data=dataclasses.replace(config.data, range="0,99")))
    assert "data.range=0,99 does nothing: no image" in caplog.text
