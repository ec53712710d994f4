"""Runs that begin with weights of every format, of another decoder, size or target."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mae_core.cli import mae
from mae_core.config import ModelConfig, StageConfig, TrainConfig
from mae_core.distributed import World
from mae_core.errors import CheckpointError, ConfigError
from mae_core.model.mae import MaskedAutoencoder, resample_pos_embed
from mae_core.recipes import RECIPES
from mae_core.training.checkpoint import RunState
from mae_core.training.train import start_run, train
from mae_core.weights.export import convert, write_official
from mae_core.weights.files import load_checkpoint
from mae_core.weights.formats import Hints, save_weights
from mae_core.weights.registry import read_weights
from tests.mae_core.conftest import MakeRun

ALONE = World(0, 1, torch.device("cpu"))
HEADS = ["model.num_heads=2", "model.decoder_num_heads=2"]


@pytest.fixture
def trained(small_config: ModelConfig) -> MaskedAutoencoder:
    """Weights that no initialisation draws, positions included."""
    model = MaskedAutoencoder(small_config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return model.eval()


def written(folder: Path, model: MaskedAutoencoder, target: str) -> Path:
    """The model in a format; of timm's only the encoder."""
    save_weights(folder / "trained.safetensors", model, record={})
    name = {"official": "weights.pth", "huggingface": "weights", "timm": "encoder.safetensors"}
    if target == "mae_core":
        return folder / "trained.safetensors"
    convert(read_weights(folder / "trained.safetensors"), folder / name[target], target)
    return folder / name[target]


def begin(config: TrainConfig, changes: list[str] = HEADS) -> RunState:
    return start_run(config, ALONE, changes)[1]


def of_decoder(key: str) -> bool:
    return key.startswith(("decoder_", "mask_token", "pca_"))


def assert_same(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[key], expected[key]) for key in expected)


# --- every format


@pytest.mark.parametrize("target", ["mae_core", "official", "huggingface"])
def test_a_whole_model_is_taken_as_it_is(
    target: str, trained: MaskedAutoencoder, run_config: MakeRun, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO")
    path = written(tmp_path, trained, target)
    state = begin(run_config(init_from=str(path), model=ModelConfig()))
    assert_same(state.model.state_dict(), dict(trained.state_dict()))
    assert state.model.config == trained.config
    assert state.init_from == path.stem
    assert "decoder starts fresh" not in caplog.text


def test_of_an_encoder_the_decoder_is_the_runs_own(
    trained: MaskedAutoencoder, run_config: MakeRun, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO")
    path = written(tmp_path, trained, "timm")
    own = ModelConfig(
        decoder_embed_dim=24, decoder_depth=3, decoder_num_heads=3, norm_pix=True
    )  # fmt: skip
    config = run_config(init_from=str(path), model=own)
    state = begin(config, ["model.num_heads=2"])
    assert state.model.config == replace(
        trained.config, decoder_embed_dim=24, decoder_depth=3, decoder_num_heads=3, norm_pix=True
    )
    # As a run from scratch would draw it.
    torch.manual_seed(config.seed)
    fresh = MaskedAutoencoder(state.model.config).state_dict()
    taken = {k: v for k, v in trained.state_dict().items() if not of_decoder(k)}
    assert_same(state.model.state_dict(), {k: taken[k] if k in taken else fresh[k] for k in fresh})
    assert state.init_from == "encoder (encoder only, fresh decoder)"
    assert "init_from=encoder: its encoder is taken; the decoder starts fresh" in caplog.messages


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        (["model.decoder_depth=2"], "decoder_depth"),
        (["model.decoder_embed_dim=24", "model.decoder_num_heads=6"],
         "decoder_embed_dim, decoder_num_heads"),
        (["model.decoder_num_heads=4"], "decoder_num_heads"),
        (["model.pca_components=5"], "pca_components"),
    ],
)  # fmt: skip
def test_another_decoder_starts_fresh(
    changes: list[str], differing: str, trained: MaskedAutoencoder, run_config: MakeRun,
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO")
    config = run_config(init_from=str(written(tmp_path, trained, "mae_core")))
    state = begin(config, changes)
    before, after = trained.state_dict(), state.model.state_dict()
    for key, value in after.items():
        if not of_decoder(key):
            assert torch.equal(value, before[key]), key
    assert not torch.equal(after["decoder_embed.weight"][:4], before["decoder_embed.weight"][:4])
    assert not torch.equal(after["mask_token"][..., :4], before["mask_token"][..., :4])
    assert f"the decoder starts fresh, as {differing} differ" in caplog.text
    assert state.init_from == "trained (encoder only, fresh decoder)"


# --- what may change


def test_another_image_size_stretches_both_tables(
    trained: MaskedAutoencoder, run_config: MakeRun, tmp_path: Path
) -> None:
    config = run_config(init_from=str(written(tmp_path, trained, "mae_core")))
    state = begin(config, ["model.image_size=64"])
    before, after = trained.state_dict(), state.model.state_dict()
    for key, value in after.items():
        if key in ("pos_embed", "decoder_pos_embed"):
            assert value.shape[1] == 1 + 8 * 8
            assert torch.equal(value, resample_pos_embed(before[key], (6, 6), (8, 8)))
            assert torch.equal(value[:, 0], before[key][:, 0])
        else:
            assert torch.equal(value, before[key]), key
    assert state.init_from == "trained"


def test_the_target_may_change_and_the_decoder_is_kept(
    trained: MaskedAutoencoder, run_config: MakeRun, tmp_path: Path
) -> None:
    config = run_config(init_from=str(written(tmp_path, trained, "mae_core")))
    state = begin(config, ["model.norm_pix=true"])
    assert state.model.config == replace(trained.config, norm_pix=True)
    assert_same(state.model.state_dict(), dict(trained.state_dict()))


# --- heads, which no shape tells


def test_guessed_heads_are_said_and_may_be_corrected(
    trained: MaskedAutoencoder, run_config: MakeRun, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    config = run_config(init_from=str(written(tmp_path, trained, "official")))
    guessed = begin(config, [])
    assert guessed.model.config.num_heads == 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "model.num_heads=1 is a guess for init_from=" in caplog.text
    assert "model.decoder_num_heads=16 is a guess" in caplog.text
    caplog.clear()
    told = begin(config, HEADS)
    assert (told.model.config.num_heads, told.model.config.decoder_num_heads) == (2, 2)
    assert_same(told.model.state_dict(), dict(trained.state_dict()))
    assert not caplog.records


def test_heads_that_the_weights_know_cannot_be_changed(
    trained: MaskedAutoencoder, run_config: MakeRun, tmp_path: Path
) -> None:
    for target in ("mae_core", "huggingface"):
        config = run_config(init_from=str(written(tmp_path, trained, target)))
        with pytest.raises(ConfigError, match="another shape; give model.num_heads=2"):
            begin(config, ["model.num_heads=4"])


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "fitting"),
    [
        (["model.embed_dim=64"], "give model.embed_dim=32, or leave"),
        (["model.depth=3", "model.mlp_ratio=2"], "give model.depth=2 model.mlp_ratio=4.0, or"),
        (["model.patch_size=16", "model.depth=1"], "give model.patch_size=8 model.depth=2, or"),
        (["model.encoder_mask_tokens=true"], "give model.encoder_mask_tokens=False, or"),
        (["model.in_chans=1", "model.mean=[0.5]", "model.std=[0.5]"], "give model.in_chans=3, or"),
    ],
)
def test_another_encoder_is_refused_with_what_would_fit(
    changes: list[str], fitting: str, trained: MaskedAutoencoder, run_config: MakeRun,
    tmp_path: Path,
) -> None:  # fmt: skip
    path = written(tmp_path, trained, "mae_core")
    config = run_config(init_from=str(path))
    with pytest.raises(ConfigError, match=fitting) as caught:
        begin(config, changes)
    assert f"init_from={path} holds an encoder of another shape" in str(caught.value)


def test_weights_bring_their_channels(run_config: MakeRun, tmp_path: Path) -> None:
    config = replace(run_config().model, in_chans=1, mean=(0.5,), std=(0.5,))
    save_weights(tmp_path / "grey.safetensors", MaskedAutoencoder(config), record={})
    start = run_config(init_from=str(tmp_path / "grey.safetensors"))
    assert begin(start, []).model.config.in_chans == 1
    with pytest.raises(ConfigError, match="mean has 1 values for in_chans=4"):
        begin(start, ["model.in_chans=4"])


def test_the_decoder_of_another_mlp_ratio_starts_fresh(
    run_config: MakeRun, small_config: ModelConfig, tmp_path: Path
) -> None:
    wide = replace(small_config, decoder_mlp_ratio=2.0)
    save_weights(tmp_path / "wide.safetensors", MaskedAutoencoder(wide), record={})
    start = run_config(init_from=str(tmp_path / "wide.safetensors"))
    assert begin(start, []).init_from == "wide"
    assert begin(start, ["model.decoder_mlp_ratio=4"]).init_from.endswith("fresh decoder)")


def test_tables_of_any_grid_are_stretched_over_another(
    run_config: MakeRun, small_config: ModelConfig, tmp_path: Path
) -> None:
    wide = replace(small_config, grid=(6, 9))
    save_weights(tmp_path / "wide.safetensors", MaskedAutoencoder(wide), record={})
    start = run_config(init_from=str(tmp_path / "wide.safetensors"))
    assert begin(start, []).model.pos_embed.shape[1] == 1 + 6 * 9
    assert begin(start, ["model.grid=null"]).model.pos_embed.shape[1] == 1 + 6 * 6


def test_a_classifier_and_what_is_not_there_are_refused(
    trained: MaskedAutoencoder, run_config: MakeRun, tmp_path: Path
) -> None:
    contents = read_weights(written(tmp_path, trained, "mae_core"))
    state = {k: v for k, v in contents.state.items() if not of_decoder(k)}
    state["fc_norm.weight"], state["fc_norm.bias"] = (
        state.pop("norm.weight"),
        state.pop("norm.bias"),
    )
    state |= {"head.weight": torch.zeros(5, 32), "head.bias": torch.zeros(5)}
    write_official(tmp_path / "tuned.pth", replace(contents, state=state, kind="classifier"))
    with pytest.raises(ConfigError, match=r"tuned.pth holds a classifier, .* no last norm"):
        begin(run_config(init_from=str(tmp_path / "tuned.pth")))
    with pytest.raises(CheckpointError, match="nothing.pth"):
        begin(run_config(init_from=str(tmp_path / "nothing.pth")))


# --- whole runs


def test_a_run_from_an_encoder_ends_and_tells_where_it_began(
    trained: MaskedAutoencoder, run_config: MakeRun, small_config: ModelConfig, tmp_path: Path
) -> None:
    config = run_config(
        init_from=str(written(tmp_path, trained, "timm")), steps=2, save_every=1,
        stages=(StageConfig(48),),
    )  # fmt: skip
    assert train(config, **{"model.num_heads": 2}).finished
    weights = read_weights(Path(config.out) / "weights.safetensors")
    assert weights.config == small_config
    assert weights.record["init_from"] == "encoder (encoder only, fresh decoder)"
    content = load_checkpoint(Path(config.out) / "checkpoint.pt")
    assert content["init_from"] == weights.record["init_from"]
    # It goes on from its own checkpoint, decoder included.
    again = begin(replace(config, model=small_config), [])
    assert again.step == 2
    assert_same(again.model.state_dict(), content["model"])


def test_a_run_for_principal_components_finds_its_own(
    trained: MaskedAutoencoder, run_config: MakeRun, tmp_path: Path
) -> None:
    config = run_config(
        init_from=str(written(tmp_path, trained, "mae_core")), steps=1, save_every=1,
        stages=(StageConfig(48),),
    )  # fmt: skip
    assert train(config, **{"model.pca_components": 6}).finished
    weights = read_weights(Path(config.out) / "weights.safetensors")
    assert weights.config.pca_components == 6
    basis = weights.state["pca_basis"]
    torch.testing.assert_close(basis.T @ basis, torch.eye(6), rtol=0, atol=1e-5)
    # Weights that bring them keep them.
    onward = replace(config, init_from=config.out, out=str(tmp_path / "onward"))
    assert train(onward).finished
    after = read_weights(tmp_path / "onward" / "weights.safetensors")
    assert torch.equal(after.state["pca_basis"], basis)


def test_the_command_line_changes_the_model_of_the_weights(
    trained: MaskedAutoencoder, picture_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = written(tmp_path, trained, "mae_core")
    out = tmp_path / "out"
    arguments = [
        f"data.folder={picture_folder}", f"out={out}", "steps=1", "batch_size=4",
        'stages=[{"image_size":32}]',
    ]  # fmt: skip
    changes = ["model.decoder_embed_dim=20", "model.decoder_num_heads=5"]
    # 20 wide is no width for the 16 heads of the recipe's own decoder.
    assert mae(["train", "adapt", *changes, f"init_from={path}", *arguments]) == 0
    weights = read_weights(out / "weights.safetensors")
    assert weights.config == replace(trained.config, decoder_embed_dim=20, decoder_num_heads=5)
    monkeypatch.setitem(RECIPES, "plain", lambda: TrainConfig(steps=1))
    with pytest.raises(ConfigError, match="decoder_embed_dim 20 does not divide into 16 heads"):
        mae(["train", "plain", changes[0], *arguments])


def test_the_same_model_through_every_door_trains_alike(
    trained: MaskedAutoencoder, run_config: MakeRun, tmp_path: Path
) -> None:
    ends = []
    for target in ("mae_core", "official", "huggingface"):
        folder = tmp_path / target
        config = run_config(
            init_from=str(written(folder, trained, target)), out=str(folder / "run"), steps=2,
            stages=(StageConfig(48),),
        )  # fmt: skip
        heads = HEADS if target == "official" else []
        assert train(config, **dict(change.split("=") for change in heads)).finished
        ends.append(read_weights(folder / "run" / "weights.safetensors").state)
    assert not torch.equal(ends[0]["norm.bias"], trained.norm.bias)
    assert_same(ends[1], ends[0])
    assert_same(ends[2], ends[0])


def test_hints_and_overrides_say_the_same(
    trained: MaskedAutoencoder, run_config: MakeRun, tmp_path: Path
) -> None:
    path = written(tmp_path, trained, "official")
    told: Any = read_weights(path, hints=Hints(num_heads=2, decoder_num_heads=2)).config
    assert begin(run_config(init_from=str(path)), HEADS).model.config == told
