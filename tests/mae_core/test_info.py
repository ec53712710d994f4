"""mae info: what it says of each format, and of what is not there."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mae_core.cli import mae, main
from mae_core.config import PRESETS
from mae_core.model.mae import MaskedAutoencoder
from mae_core.weights.formats import save_weights
from mae_core.weights.names import official_from_huggingface
from mae_core.weights.registry import list_weights
from tests import checkpoints
from tests.checkpoints import SMALL

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return checkpoints.write_all(tmp_path_factory.mktemp("formats"))


@pytest.fixture(autouse=True)
def _empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TORCH_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))


def info(weights: object, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert mae(["info", str(weights), "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def counted(config: Any, decoder: bool) -> int:
    with torch.device("meta"):
        state = MaskedAutoencoder(config).state_dict()
    return sum(
        t.numel() for k, t in state.items()
        if k.startswith(("decoder_", "mask_token")) == decoder
    )  # fmt: skip


def test_every_format_is_described(
    written: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, path in written.items():
        facts = info(path, capsys)
        has_decoder = facts["kind"] == "autoencoder"
        assert facts["decoder"] == has_decoder, name
        assert facts["architecture"]["embed_dim"]["value"] == 192
        assert facts["parameters"]["encoder"] == counted(SMALL, decoder=False)
        assert facts["parameters"].get("decoder", 0) == has_decoder * counted(SMALL, decoder=True)
        assert ("decoder_depth" in facts["architecture"]) == has_decoder
        assert facts["number_format"] == "float32"
        assert facts["licence"].startswith("not known")
        assert any("reconstruct" in use for use in facts["uses"]) == has_decoder
        assert any("init_from=" in use for use in facts["uses"]) == (facts["kind"] != "classifier")
        assert all("timm" in use for use in facts["uses"] if use.startswith("convert"))


@pytest.mark.parametrize(
    ("name", "value", "origin"),
    [
        ("official full", "pixels", "assumed"),
        ("official training", "normalised pixels", "config"),
        ("transformers 4", "pixels", "config"),
        ("official encoder", "not told by an encoder", "assumed"),
        ("official classifier", "10 classes", "shapes"),
    ],
)
def test_the_target_is_said_with_how_it_is_known(
    name: str, value: str, origin: str, written: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    target = info(written[name], capsys)["target"]
    assert (target["value"], target["from"]) == (value, origin)


def test_a_published_file_is_known_by_its_name(
    written: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mae_visualize_vit_large.pth"
    shutil.copy(written["official full"], path)
    facts = info(path, capsys)
    assert facts["licence"] == "CC-BY-NC-4.0"
    assert facts["target"] == {"value": "pixels", "from": "registry"}


@pytest.mark.parametrize("channels", [3, 1, 4])
def test_only_commands_that_work_are_offered(
    channels: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    statistics = (0.5,) * channels
    config = replace(SMALL, in_chans=channels, mean=statistics, std=statistics)
    path = tmp_path / "a name.safetensors"
    save_weights(path, MaskedAutoencoder(config), record={})
    commands = info(path, capsys)["uses"]
    assert [use.split()[0].rstrip(":") for use in commands] == [
        "reconstruct", "train", "convert",
    ]  # fmt: skip
    # As a shell would take them apart.
    typed = [shlex.split(use) for use in commands]
    assert all(any(word.endswith(str(path)) for word in words) for words in typed)


def test_variants_are_not_offered_where_they_do_not_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(SMALL, pca_components=8)
    path = checkpoints.write_own(
        tmp_path / "x.safetensors", config, checkpoints.random_state(config)
    )
    facts = info(path, capsys)
    assert facts["target"]["value"] == "8 principal components"
    convert = next(use for use in facts["uses"] if use.startswith("convert"))
    assert "mae_core" in convert
    assert "huggingface" not in convert


def test_the_text_has_a_line_for_each_field(
    written: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert mae(["info", str(written["official full"])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["embed_dim", "192", "(shapes)"] for line in lines)
    assert any(line.split() == ["num_heads", "3", "(known", "width)"] for line in lines)
    assert any(line.startswith("decoder ") and line.endswith("yes") for line in lines)
    assert any(line.split() == ["target", "pixels", "(assumed)"] for line in lines)


def test_what_a_file_writes_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.device("meta"):
        model = MaskedAutoencoder(SMALL)
    model.load_state_dict(checkpoints.random_state(SMALL), assign=True)
    record = {"recipe": "\x1b[2J" + "x" * 10_000, "\x1b]0;": 1}
    save_weights(tmp_path / "x.safetensors", model, record=record)
    assert mae(["info", str(tmp_path / "x.safetensors")]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 1000


def test_every_name_that_is_not_here_is_described_from_the_manifest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, entry in list_weights().items():
        if entry.bundled:
            continue
        facts = info(name, capsys)
        assert facts["on_this_machine"] is False
        assert (facts["kind"], facts["licence"]) == (entry.kind, entry.licence)
        assert facts["parameters"] == {"total": entry.parameters}
        assert facts["fetch"] == f"mae fetch {name}"
    facts = info("somebody/weights", capsys)
    assert facts["fetch"].endswith("fetch somebody/weights")
    # A mistyped path may look like a repository.
    assert "if there is such a repository; nothing lies at that path" in facts["source"]


def test_parameters_are_counted_as_the_paper_counts() -> None:
    assert counted(PRESETS["base"], decoder=False) == 85_798_656
    assert counted(PRESETS["large"], decoder=True) == 26_240_256


def test_writers_of_the_tests_and_the_names_of_the_program_agree() -> None:
    state = checkpoints.random_state(SMALL)
    for version in (4, 5):
        back = official_from_huggingface(checkpoints.huggingface_state(state, version))
        assert back.keys() == state.keys()


@pytest.mark.parametrize(
    ("weights", "status", "words"),
    [("mae-tiny", 0, "comes with this project"), ("nothing", 2, "error: 'nothing' is neither")],
)
def test_it_runs_as_a_command(
    weights: str, status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", weights]) == status
    said = capsys.readouterr()
    assert words in said.out + said.err
