import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mae_core.inside.sweep as sweeps
from mae_core.errors import ConfigError, MaskError
from mae_core.inside.sweep import (
    baseline_psnr,
    encode_film,
    film_frame,
    film_ratios,
    save_film,
    sweep,
)
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import STRATEGIES
from mae_core.reconstruct import Reconstructor
from tests import references
from tests.pictures import draw_picture


@pytest.fixture
def reconstructor(small_model: MaskedAutoencoder) -> Reconstructor:
    return Reconstructor(small_model, "small", device="cpu", precision="float32")


def test_a_film_goes_from_nearly_all_to_little_in_even_steps() -> None:
    ratios = film_ratios()
    assert ratios[:2] + ratios[-2:] == [0.95, 0.9, 0.1, 0.05]
    assert len(ratios) == 19
    assert film_ratios(3, 0.1, 0.9) == [0.1, 0.5, 0.9]
    assert film_ratios(4, 1, 0) == [1, 0.666667, 0.333333, 0]
    with pytest.raises(ConfigError, match="frames is 1; a film has at least 2"):
        film_ratios(1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_patches_only_come_back_from_frame_to_frame(
    reconstructor: Reconstructor, strategy: str
) -> None:
    results = [*sweep(reconstructor, draw_picture(0), seed=5, strategy=strategy, fit="whole")]
    assert [result.mask_ratio for result in results] == film_ratios()
    assert {(result.seed, result.strategy, result.fit) for result in results} == {
        (5, strategy, "whole")
    }
    for more, less in itertools.pairwise(results):
        assert not (less.removed & ~more.removed).any()
    assert results[0].removed.sum() > results[-1].removed.sum()


def test_a_sweep_computes_a_frame_when_it_is_asked_for(reconstructor: Reconstructor) -> None:
    frames = sweep(reconstructor, draw_picture(0), [0.5, 7])
    assert next(frames).mask_ratio == 0.5
    with pytest.raises(MaskError, match="7"):
        next(frames)


def test_baselines_fill_the_same_mask(reconstructor: Reconstructor) -> None:
    result = reconstructor(draw_picture(0), 0.5, seed=1)
    figures = baseline_psnr(result.original, result.removed)
    assert list(figures) == ["mean_colour", "telea"]
    original = result.original.double().numpy()
    removed = result.removed.repeat(8, axis=0).repeat(8, axis=1)
    colour = np.empty_like(original)
    colour[:] = original[:, ~removed].mean(axis=1)[:, None, None]
    expected = references.removed_psnr(colour, original, removed)
    assert figures["mean_colour"] == pytest.approx(expected, abs=1e-3)
    # A smooth picture is better continued than filled with one colour.
    assert figures["telea"] is not None
    assert figures["telea"] > expected
    whole = reconstructor(draw_picture(0), 0.0)
    assert set(baseline_psnr(whole.original, whole.removed).values()) == {None}


def test_a_frame_shows_three_panels_and_the_ratio(reconstructor: Reconstructor) -> None:
    panels = reconstructor(draw_picture(0), 0.75).panels()
    frame = film_frame(panels, 0.75)
    assert (frame.mode, frame.size) == ("RGB", (3 * 48 + 2 * 8, 48 + 8 + 6))
    for i, name in enumerate(("masked", "reconstruction", "pasted")):
        part = frame.crop((i * 56, 0, i * 56 + 48, 48))
        assert part.tobytes() == panels[name].tobytes()
    bar = np.asarray(frame)[-6:]
    filled = (bar == bar[0, 0]).all(axis=2)
    assert (filled.sum(axis=1) == 0.75 * 160).all()
    assert np.asarray(frame.crop((48, 0, 56, 48))).min() == 255
    grey = {name: panel.convert("L") for name, panel in panels.items()}
    assert film_frame(grey, 0.0).mode == "RGB"


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other)).mean())


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".GIF"])
def test_a_film_is_an_animation_that_repeats(
    reconstructor: Reconstructor, tmp_path: Path, suffix: str
) -> None:
    results = [*sweep(reconstructor, draw_picture(0), [0.9, 0.5, 0.1])]
    path = tmp_path / "deep" / f"film{suffix}"
    save_film(results, path, seconds=0.2)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with Image.open(path) as film:
        assert (film.n_frames, film.info["loop"], film.size) == (3, 0, (160, 62))  # type: ignore[attr-defined]
        drawn = [film_frame(result.panels(), result.mask_ratio) for result in results]
        for i in range(3):
            film.seek(i)
            shown = film.convert("RGB")
            assert film.info["duration"] == 200
            # Both formats lose something.
            assert np.argmin([mean_difference(shown, frame) for frame in drawn]) == i
            assert mean_difference(shown, drawn[i]) < 10


def test_films_that_cannot_be_written_are_refused_before_work_begins(tmp_path: Path) -> None:
    never = (pytest.fail("computed") for _ in range(1))
    for name in ("film.mp4", "film"):
        with pytest.raises(ConfigError, match="choose webp or gif"):
            save_film(never, tmp_path / name)
    for seconds in (0, -1, math.nan, 1e9):
        with pytest.raises(ConfigError, match="a frame is shown for 0.02 to 60"):
            save_film(never, tmp_path / "film.gif", seconds=seconds)
    frame = Image.new("RGB", (4, 4))
    for frames in ([], [frame, Image.new("RGB", (5, 4))]):
        with pytest.raises(ConfigError, match="give at least one, of one size"):
            encode_film(frames, "gif")
    assert [*tmp_path.iterdir()] == []


def test_without_opencv_a_film_has_one_baseline(
    reconstructor: Reconstructor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sweeps.FILLERS, "telea")
    result = reconstructor(draw_picture(0))
    assert list(baseline_psnr(result.original, result.removed)) == ["mean_colour"]
