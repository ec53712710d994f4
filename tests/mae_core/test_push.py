"""Uploads, against a hub of our own; the real one has not been asked."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants, hf_hub_download
from PIL import Image

from mae_core.cli import mae, main
from mae_core.config import to_dict
from mae_core.errors import CheckpointError, ConfigError
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import mask_from_noise
from mae_core.weights import publish
from mae_core.weights.files import save_checkpoint
from mae_core.weights.formats import save_weights
from mae_core.weights.hub import fetch_repository, find_repository
from mae_core.weights.publish import push, write_card, write_repository
from mae_core.weights.registry import read_weights
from tests.downloading import CLOSED, Seen, isolate, use_hub
from tests.hub import TOKEN, Hub, running_hub

BOTH = {
    "README.md", "config.json", "weights.safetensors", "model.safetensors",
    "preprocessor_config.json",
}  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
SECRET_FOLDER = "/somebodys/private/place"

RECORD: dict[str, Any] = {
    "recipe": "quick", "init_from": "", "train": {"steps": 1000, "data": {"crop": "random"}},
    "changes": [], "pictures": 27042, "pictures_seen": 64000, "steps": 1000, "hours": 0.081,
    "holdout_loss": 0.31921, "holdout_psnr": 18.69021, "holdout_ssim": 0.5132,
    "device": "cpu", "cores": 2, "torch": "2.13.0+cpu",
}  # fmt: skip


@pytest.fixture
def run(small_model: MaskedAutoencoder, tmp_path: Path) -> Path:
    """The folder of a finished run, as `mae train` leaves it."""
    folder = tmp_path / "flowers"
    (folder / "reconstructions").mkdir(parents=True)
    for step, colour in ((0, "red"), (500, "green"), (1000, "blue")):
        Image.new("RGB", (40, 30), colour).save(folder / f"reconstructions/step-{step:06d}.png")
    places = {"data": {"folder": SECRET_FOLDER}, "out": SECRET_FOLDER}
    (folder / "config.json").write_text(json.dumps(places))
    save_weights(folder / "weights.safetensors", small_model, record=RECORD)
    return folder


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


def test_a_run_arrives_whole_in_one_commit(run: Path, hub: Hub, tmp_path: Path) -> None:
    """In a real process: what points the hub's client at ours is read when it is imported."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environ = inherited | {
        "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"),
        # Ours stores large files in the older way, as the real one still does for old clients.
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "mae_core", "push", str(run), "me/flowers"]
    done = subprocess.run(
        [*command, "--private", "--license", "cc-by-4.0"],
        capture_output=True, text=True, cwd=ROOT, env=environ, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert f"{hub.url}/me/flowers/commit/" in done.stdout
    assert hub.private["me/flowers"]
    assert len(hub.commits["me/flowers"]) == 1
    files = hub.files("me/flowers")
    assert set(files) == {*BOTH, "reconstructions.png"}
    assert files["weights.safetensors"] == (run / "weights.safetensors").read_bytes()
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(files["weights.safetensors"])
    assert read_weights(copy).record == RECORD
    with Image.open(io.BytesIO(files["reconstructions.png"])) as grid:
        assert grid.convert("RGB").getpixel((0, 0)) == (0, 0, 255)
    card = files["README.md"].decode()
    assert "![Reconstructions](reconstructions.png)" in card
    assert ModelCard(card).data.license == "cc-by-4.0"
    config = json.loads(files["config.json"])
    ours = config["mae_core"]
    assert (ours["model"]["embed_dim"], ours["train"]["steps"]) == (32, 1000)
    # What names this machine's folders stays at home.
    assert not [name for name, data in files.items() if b"/somebodys" in data]
    assert not (run / "hub").exists()


@pytest.fixture
def pushing(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs `mae push` here, and gives its last line: of standard error if it was refused."""
    isolate(monkeypatch, tmp_path / "cache")
    use_hub(monkeypatch, hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    def push_here(*arguments: str | Path, token: str = TOKEN) -> str:
        monkeypatch.setenv("HF_TOKEN", token)
        refused = main(["push", *map(str, arguments)])
        said = capsys.readouterr()
        assert TOKEN not in said.out + said.err
        line = (said.err if refused else said.out).splitlines()[-1]
        assert (refused, line.startswith("error: ")) in ((0, False), (2, True))
        return line.removeprefix("error: ")

    return push_here


# Of huggingface_hub 2 with httpx2, in every upload.
old_upload = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes")


@old_upload
def test_refusals_are_sentences(run: Path, hub: Hub, pushing: Callable[..., str]) -> None:
    assert pushing(run, "me/roses").startswith("uploaded ")
    said = pushing(run, "me/roses")
    assert "there already is a repository of that name; give another, or --update" in said
    assert pushing(run, "me/roses", "--update").startswith("uploaded ")
    # The same files again are no other commit.
    assert len(hub.commits["me/roses"]) == 1
    said = pushing(run, "you/roses")
    assert "may not write there (" in said
    assert "You are not you" in said
    assert "does not know the token" in pushing(run, "me/roses", token="hf_wrong")
    said = pushing(run, "me/roses", token="")
    assert said == "there is no token; run `hf auth login`, or set HF_TOKEN to one"
    # The repository was made, and then the commit refused: the way on is said, and works.
    hub.refuse_once["me/tulips/commit"] = 400
    said = pushing(run, "me/tulips")
    assert said.startswith(f"could not upload me/tulips to {hub.url}: it refused this (")
    assert said.endswith("the repository is there by now, so try again with --update")
    assert pushing(run, "me/tulips", "--update").startswith("uploaded ")
    assert len(hub.commits["me/tulips"]) == 1
    assert set(hub.files("me/tulips")) >= {"README.md", "weights.safetensors"}


@old_upload
def test_a_push_on_top_of_another_leaves_nothing_of_it(
    run: Path, small_model: MaskedAutoencoder, hub: Hub, pushing: Callable[..., str]
) -> None:
    assert pushing(run, "me/twice").startswith("uploaded ")
    assert "model.safetensors" in hub.files("me/twice")
    config = replace(small_model.config, encoder_mask_tokens=True)
    save_weights(run / "weights.safetensors", MaskedAutoencoder(config), record={})
    assert pushing(run, "me/twice", "--update").startswith("uploaded ")
    # transformers would open the weights of before.
    assert set(hub.files("me/twice")) == {
        "README.md", "config.json", "weights.safetensors", "reconstructions.png",
    }  # fmt: skip


def test_no_way_to_the_hub_is_a_sentence(
    run: Path, monkeypatch: pytest.MonkeyPatch, pushing: Callable[..., str]
) -> None:
    use_hub(monkeypatch, CLOSED)
    assert "it cannot be reached; check the network" in pushing(run, "me/lilies")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set; unset it" in pushing(run, "me/lilies")


def test_a_dry_run_writes_the_folder_and_sends_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(publish, "open_hub", None)
    (run / "hub").mkdir()
    (run / "hub" / "model.safetensors").write_bytes(b"of another run")
    folder = Path(push(run, "me/flowers", dry_run=True))
    assert folder == run / "hub"
    write_repository(tmp_path / "expected", "me/flowers", run)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "expected").iterdir()}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected


def test_a_run_without_pictures_has_a_card_without_any(run: Path, tmp_path: Path) -> None:
    for path in (run / "reconstructions").iterdir():
        path.unlink()
    write_repository(tmp_path / "out", "me/flowers", run)
    assert {path.name for path in (tmp_path / "out").iterdir()} == BOTH
    assert "![" not in (tmp_path / "out" / "README.md").read_text()


def test_transformers_opens_what_was_pushed_and_says_the_same(
    run: Path, small_model: MaskedAutoencoder, tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor, ViTMAEForPreTraining

    write_repository(tmp_path / "out", "me/flowers", run)
    peer, info = ViTMAEForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    config = small_model.config
    images = torch.randn(2, config.in_chans, config.image_size, config.image_size)
    drawn = torch.rand(2, config.grid_size**2)
    with torch.no_grad():
        ours = small_model.eval()(images, mask_from_noise(drawn, 0.75))
        theirs = peer.eval()(images, noise=drawn)
    torch.testing.assert_close(ours.pred, theirs.logits, rtol=0, atol=1e-5)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert tuple(processor.image_mean) == config.mean


@pytest.fixture
def downloads(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path / "cache")
    use_hub(monkeypatch, hub.url)


@pytest.mark.usefixtures("downloads")
def test_what_was_pushed_opens_here_with_nothing_lost(
    run: Path, small_model: MaskedAutoencoder, hub: Hub, tmp_path: Path
) -> None:
    config = replace(
        small_model.config, norm_pix=True, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6),
        bands=(3, 2, 1), value_range=((0.0, 4095.0),),
    )  # fmt: skip
    save_weights(run / "weights.safetensors", MaskedAutoencoder(config), record=RECORD)
    write_repository(tmp_path / "out", "me/bands", run)
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    hub.publish("me/bands", files)
    weights = read_weights("me/bands", progress=Seen())
    assert (weights.config, weights.record) == (config, RECORD)
    said = files["README.md"].decode()
    assert "transformers' format does not say bands=(3, 2, 1), value_range=((0.0, 4095.0),)" in said


@pytest.mark.usefixtures("downloads")
def test_the_half_that_transformers_fetched_is_not_taken_for_the_whole(
    run: Path, hub: Hub, tmp_path: Path
) -> None:
    write_repository(tmp_path / "out", "me/half", run)
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    hub.publish("me/half", files)
    for name in ("config.json", "model.safetensors"):
        hf_hub_download("me/half", name)
    assert find_repository("me/half") is None
    folder = fetch_repository("me/half", progress=Seen())
    assert find_repository("me/half") == folder
    assert read_weights("me/half", fetch=False).record == RECORD


@pytest.mark.parametrize("changes", [
    {"pca_components": 7}, {"encoder_mask_tokens": True}, {"grid": (6, 8)},
])  # fmt: skip
def test_what_transformers_has_no_place_for_is_pushed_in_our_format_alone(
    changes: dict[str, Any], run: Path, small_model: MaskedAutoencoder, tmp_path: Path
) -> None:
    config = replace(small_model.config, **changes)
    model = MaskedAutoencoder(config)
    if config.pca_components:
        model.set_pca(torch.zeros(config.patch_dim), torch.eye(config.patch_dim)[:, :7])
    save_weights(run / "weights.safetensors", model, record={})
    write_repository(tmp_path / "out", "me/flowers", run)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md", "config.json", "weights.safetensors", "reconstructions.png",
    }  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert "They are in mae_core's format alone: " in card
    assert "from_pretrained" not in card
    assert ModelCard(card).data.library_name == "mae_core"
    config_file = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config_file["model_type"] == "mae_core"


def test_a_decoder_of_its_own_width_is_said_to_transformers(
    run: Path, small_model: MaskedAutoencoder, tmp_path: Path
) -> None:
    config = replace(small_model.config, decoder_mlp_ratio=2.0)
    save_weights(run / "weights.safetensors", MaskedAutoencoder(config), record={})
    write_repository(tmp_path / "out", "me/flowers", run)
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["decoder_intermediate_size"] == 2 * config.decoder_embed_dim
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_an_unfinished_run_is_refused(
    run: Path, small_model: MaskedAutoencoder, tmp_path: Path
) -> None:
    (run / "weights.safetensors").unlink()
    config = {"model": to_dict(small_model.config), "steps": 1000}
    values = {"config": config, "model": small_model.state_dict(), "step": 400, "seconds": 1.0}
    save_checkpoint(run / "checkpoint.pt", values)
    with pytest.raises(CheckpointError, match="not finished: it is at step 400 of 1000; start"):
        push(run, "me/flowers", dry_run=True)
    with pytest.raises(CheckpointError, match="not the folder of a run"):
        push(tmp_path / "nothing", "me/flowers", dry_run=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="not the folder of a run"):
        push(tmp_path / "empty", "me/flowers", dry_run=True)


def test_damaged_weights_are_not_uploaded(run: Path) -> None:
    path = run / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        push(run, "me/flowers", dry_run=True)


@pytest.mark.parametrize("name", ["flowers", "a/b/c", "me/", "me/ä", "me/a--b", "", "../x/y"])
def test_names_that_no_hub_has_are_refused(run: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="give USER/NAME, such as me/flowers"):
        push(run, name, dry_run=True)


def test_mistakes_on_the_command_line_are_sentences(run: Path) -> None:
    with pytest.raises(ConfigError, match="required: USER/NAME; see mae push --help"):
        mae(["push", str(run)])
    with pytest.raises(ConfigError, match="mae push has no --public; see mae push --help"):
        mae(["push", str(run), "me/flowers", "--public"])


def card_of(run: Path, **record: object) -> str:
    weights = read_weights(run / "weights.safetensors")
    weights.record.update(record)
    return write_card("me/flowers", weights, has_grid=False)


def test_the_card_says_what_the_record_says(run: Path) -> None:
    card = card_of(run)
    fields = ModelCard(card).data.to_dict()
    assert fields["license"] == "unknown"
    assert fields["pipeline_tag"] == "image-feature-extraction"
    assert fields["library_name"] == "transformers"
    for line in (
        "| images | 27,042 |", "| hours | 0.081 |", "| steps | 1,000 |", "| recipe | quick |",
        "| PSNR (dB) | 18.69 |", "| SSIM | 0.5132 |", "| loss | 0.3192 |",
        'mae_core.load("me/flowers")',
        'ViTMAEForPreTraining.from_pretrained("me/flowers")',
        "python -m app --weights me/flowers", "Encoder of depth 2 and width 32; decoder",
    ):  # fmt: skip
        assert line in card, line
    assert "began with" not in card


def test_the_card_follows_the_record(run: Path) -> None:
    changed = card_of(run, init_from="mae-tiny", pictures=None)
    assert "| began with the weights | mae-tiny |" in changed
    assert "| images |" not in changed
    unmeasured = card_of(run, holdout_psnr=None, holdout_ssim=None, holdout_loss=None)
    assert "Nothing was held out" in unmeasured
    weights = read_weights(run / "weights.safetensors")
    weights.record.clear()
    assert "Nothing is recorded" in write_card("me/x", weights, has_grid=False)


def test_the_card_names_no_folder_and_keeps_its_table(run: Path) -> None:
    card = card_of(run, recipe="a|b\n# c", init_from=SECRET_FOLDER, device="C:\\me\\secret\\gpu")
    assert "| recipe | a\\|b # c |" in card
    assert "| began with the weights | place |" in card
    assert "| device | gpu |" in card
    assert "somebodys" not in card
