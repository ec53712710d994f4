"""Settings as JSON; what the page's replay to, `tests/app/test_replay.py` says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mae_core.cli import mae
from mae_core.errors import ConfigError, ImageError, MAEError, MaskError
from mae_core.images import png_bytes
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import MAX_SEED
from mae_core.reconstruct import ReconstructionRequest
from mae_core.settings import Mask, Settings, digest_of, read_settings, rows_of, save_settings
from mae_core.weights.formats import save_weights
from tests.pictures import draw_picture

DIGEST = "0123456789abcdef" * 4
PLAIN = Settings(DIGEST, Mask(), "crop", "mae-tiny", None, "estimated")
ALL = [
    PLAIN,
    Settings(DIGEST, Mask("grid", 0.5, MAX_SEED), "whole", "me/model", 448, "answer"),
    Settings(DIGEST, Mask(rows=("0110", "1001")), "squash", "mae-tiny", None, "normalized"),
    Settings(DIGEST, Mask(drawing=DIGEST), "crop", "mae-tiny", None, "estimated"),
]
PANELS = ("original", "masked", "reconstruction", "pasted", "panels")


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_settings_are_the_same_after_json(settings: Settings, tmp_path: Path) -> None:
    written = json.dumps(settings.to_json())
    assert read_settings(json.loads(written)) == settings
    (tmp_path / "settings.json").write_text(written)
    assert read_settings(tmp_path / "settings.json") == settings
    assert read_settings(str(tmp_path / "settings.json")) == settings


def test_the_form_is_the_one_that_was_given_out() -> None:
    assert json.loads(json.dumps(ALL[2].to_json())) == {
        "v": 1,
        "picture": DIGEST,
        "mask": {
            "strategy": "random", "ratio": 0.75, "seed": 0, "rows": ["0110", "1001"], "drawing": "",
        },
        "fit": "squash",
        "model": "mae-tiny",
        "image_size": None,
        "view": "normalized",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"v": 2}, "of version 2; give settings of version 1"),
        ({"v": True}, "of version True"),
        ({"v": None}, "of version None"),
        ({"picture": "\x1b[31m"}, "settings.picture=.*String should match"),
        ({"picture": f"{DIGEST}\n"}, "settings.picture=.*String should match"),
        ({"mask": None}, "settings.mask=None: .* give a mapping"),
        ({"picture": 5}, "settings.picture=5: Input should be a valid string"),
        ({"fit": "stretch"}, "settings.fit='stretch': choose crop, squash, whole"),
        ({"view": "raw"}, "settings.view='raw': choose estimated, answer, normalized"),
        ({"image_size": 0}, "settings.image_size=0: Input should be greater"),
        ({"panels": []}, "Settings has no field panels; it has picture, mask"),
        ({"mask": {"strategy": "blocks"}}, "strategy='blocks': choose random, block, grid"),
        ({"mask": {"ratio": 7}}, "settings.mask.ratio=7: Input should be less"),
        ({"mask": {"ratio": float("nan")}}, "settings.mask.ratio=nan: Input should be a finite"),
        ({"mask": {"seed": MAX_SEED + 1}}, "settings.mask.seed=9.*: Input should be"),
        ({"mask": {"rows": ["01", "x1"]}}, "settings.mask.rows.1='x1': String should match"),
        ({"mask": {"rows": ["01", "0"]}}, "not equally long"),
        ({"mask": {"rows": ["11", "11"]}}, "removes every patch; leave at least one"),
        ({"mask": {"rows": 7}}, "settings.mask.rows=7: Input should be a valid"),
    ],
    ids=str,
)
def test_settings_of_another_form_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MAEError, match=words):
        read_settings({**PLAIN.to_json(), **changes})


@pytest.mark.parametrize("source", [[], None, 5])
def test_what_is_no_settings_is_refused(source: Any) -> None:
    with pytest.raises(ConfigError, match="settings are given as .*; give the path of a settings"):
        read_settings(source)


def test_files_that_hold_no_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    with pytest.raises(ConfigError, match="no settings can be read at .*No such file"):
        read_settings(path)
    for text in (b"", b"\xff", b"[1]", b"[" * 10**5, b" " * 2**20 + b"{}"):
        path.write_bytes(text)
        with pytest.raises(ConfigError, match="'settings.json' is no JSON object of at most"):
            read_settings(path)
    del (data := PLAIN.to_json())["fit"]
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="settings.fit=.*: Field required"):
        read_settings(path)


def test_a_request_is_saved_and_made_again(tmp_path: Path) -> None:
    mask = np.array([[True, False], [False, False]])
    path = tmp_path / "deep" / "settings.json"
    drawn = ReconstructionRequest("a", 0.1 + 0.2, 5, "block", "whole", None, 96, "answer")
    for request in (drawn, replace(drawn, mask=mask)):
        save_settings(path, request, DIGEST, "mae-tiny")
        again = read_settings(path).of("a")
        assert replace(again, mask=None) == drawn
        assert (again.mask is None) == (request.mask is None)
    np.testing.assert_array_equal(again.mask, mask)
    assert rows_of(mask) == ("10", "00")


def test_numpys_numbers_are_saved(tmp_path: Path) -> None:
    numbers = ReconstructionRequest("a", np.float32(0.5), np.int64(5), image_size=np.int32(96))
    save_settings(tmp_path / "settings.json", numbers, DIGEST, "mae-tiny")
    again = read_settings(tmp_path / "settings.json").of("a")
    assert again == ReconstructionRequest("a", 0.5, 5, image_size=96)


def test_a_digest_is_of_the_files_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_of(tmp_path / "a") == digest_of(str(tmp_path / "a")) == digest_of(b"abc") == known


def test_a_png_is_the_same_pixels_and_the_same_bytes_again() -> None:
    for image in (draw_picture(0), draw_picture(0).convert("L")):
        data = png_bytes(image)
        assert data == png_bytes(image.copy())
        assert data.startswith(b"\x89PNG")


# --- mae reconstruct --settings


@pytest.fixture
def command(small_model: MaskedAutoencoder, tmp_path: Path) -> list[str]:
    weights, picture = tmp_path / "small.safetensors", tmp_path / "picture.png"
    save_weights(weights, small_model, record={})
    draw_picture(0, 96, 64).save(picture)
    return ["reconstruct", str(picture), "--weights", str(weights), "--device", "cpu"]


def settings_of(folder: Path) -> Any:
    return json.loads((folder / "settings.json").read_text())


@pytest.mark.parametrize(
    "flags",
    [
        ["--mask-ratio", "0.3", "--seed", "5", "--strategy", "block", "--fit", "whole"],
        ["--image-size", "96", "--view", "answer"],
        ["--mask", "MASK"],
    ],
    ids=str,
)
def test_what_the_command_wrote_it_makes_again(
    command: list[str], flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.eye(6, dtype=np.uint8) * 255).save(tmp_path / "mask.png")
    flags = [str(tmp_path / "mask.png") if flag == "MASK" else flag for flag in flags]
    first, again = tmp_path / "first", tmp_path / "again"
    assert mae([*command, *flags, "--out", str(first)]) == 0
    written = settings_of(first)
    assert (written["picture"], written["model"]) == (digest_of(command[1]), "small")
    assert bool(written["mask"]["rows"]) == ("--mask" in flags)
    replay = ["--settings", str(first / "settings.json")]
    assert mae([*command, *replay, "--out", str(again)]) == 0
    for name in PANELS:
        assert (first / f"{name}.png").read_bytes() == (again / f"{name}.png").read_bytes()
    assert settings_of(again) == written
    assert capsys.readouterr().err == ""


def test_flags_that_the_settings_have_are_refused_beside_them(
    command: list[str], tmp_path: Path
) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert mae([*command, *out]) == 0
    replay = [*command, *out, "--settings", str(tmp_path / "out" / "settings.json")]
    for flag, value in (
        ("--seed", "0"), ("--mask-ratio", "0.75"), ("--strategy", "random"), ("--fit", "crop"),
        ("--image-size", "48"), ("--view", "estimated"), ("--mask", "m.png"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"say what {flag} says; leave one of the two out"):
            mae([*replay, flag, value])
    replay[3] = "mae-tiny"
    with pytest.raises(ConfigError, match="--weights is mae-tiny, and the settings are of 'small'"):
        mae(replay)


def test_settings_name_the_weights(tmp_path: Path) -> None:
    draw_picture(0).save(tmp_path / "picture.png")
    given = replace(PLAIN, picture=digest_of(tmp_path / "picture.png"))
    (tmp_path / "settings.json").write_text(json.dumps(given.to_json()))
    command = ["reconstruct", str(tmp_path / "picture.png"), "--device", "cpu"]
    settings = ["--settings", str(tmp_path / "settings.json"), "--out", str(tmp_path)]
    assert mae([*command, *settings]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["model"] == "mae-tiny"


@pytest.mark.parametrize("model", ["me/model", "small", "small.safetensors", "TMP", ""])
def test_settings_choose_neither_a_path_nor_a_repository(
    command: list[str], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = str(tmp_path / "small.safetensors") if model == "TMP" else model
    given = replace(PLAIN, model=model, picture=digest_of(command[1]))
    (tmp_path / "settings.json").write_text(json.dumps(given.to_json()))
    replay = [*command[:2], "--settings", "settings.json", "--out", str(tmp_path / "out")]
    words = f"the settings are of '{model[:20]}.*; give these weights by --weights"
    with pytest.raises(ConfigError, match=words):
        mae(replay)
    assert not (tmp_path / "out").exists()


def test_another_picture_is_taken_with_a_warning(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {**PLAIN.to_json(), "model": "small", "picture": "0" * 64}
    (tmp_path / "settings.json").write_text(json.dumps(other))
    settings = ["--settings", str(tmp_path / "settings.json"), "--out", str(tmp_path / "out")]
    assert mae([*command, *settings]) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {command[1]} is not the picture of these settings")
    assert said.count("\n") == 1
    assert settings_of(tmp_path / "out")["picture"] == digest_of(command[1])


def test_a_drawn_mask_is_given_with_the_settings(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawing = tmp_path / "drawing.png"
    Image.fromarray(np.eye(6, dtype=np.uint8) * 255).save(drawing)
    given = Settings(
        digest_of(command[1]), Mask(drawing=digest_of(drawing)), "crop", "small", None, "estimated"
    )
    (tmp_path / "settings.json").write_text(json.dumps(given.to_json()))
    replay = [*command, "--settings", str(tmp_path / "settings.json"), "--out", str(tmp_path)]
    with pytest.raises(MaskError, match="have a drawn mask; give its picture by --mask"):
        mae(replay)
    with pytest.raises(ImageError, match="no file can be read"):
        mae([*replay, "--mask", str(tmp_path / "missing.png")])
    assert mae([*replay, "--mask", str(drawing)]) == 0
    assert settings_of(tmp_path)["mask"]["rows"] == [*rows_of(np.eye(6, dtype=bool))]
    assert "warning" not in capsys.readouterr().err
