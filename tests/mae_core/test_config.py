"""Configs: presets, plain data and back, changes from a command line, and every refusal."""

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae_core.config import (
    PRESETS,
    Checked,
    DataConfig,
    MaskConfig,
    ModelConfig,
    OptimConfig,
    StageConfig,
    TrainConfig,
    from_dict,
    load_yaml,
    preset,
    save_yaml,
    to_dict,
    with_overrides,
    without_places,
)
from mae_core.errors import ConfigError


@dataclass(frozen=True)
class Inner(Checked):
    """For the generic part: every kind of field there is."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    name: Literal["adamw", "muon"] = "adamw"


@dataclass(frozen=True)
class Outer(Checked):
    """A config that holds others."""

    inner: Inner = Inner()
    stages: tuple[Inner, ...] = (Inner(),)
    out: str = "runs"
    limit: int | None = None
    flip: bool = True


COUNT = "Input should be greater than or equal to 1"
WHOLE = "Input should be a valid integer, got a number with a fractional part"


def refusal(text: str) -> str:
    return f"^{re.escape(text)}$"


# --- presets


def test_presets_are_the_papers() -> None:
    shapes = {
        name: (c.patch_size, c.embed_dim, c.depth, c.num_heads)
        for name, c in PRESETS.items()
        if name in ("base", "large", "huge")
    }
    assert shapes == {
        "base": (16, 768, 12, 12), "large": (16, 1024, 24, 16), "huge": (14, 1280, 32, 16),
    }  # fmt: skip
    for name in shapes:
        config = PRESETS[name]
        decoder = config.decoder_embed_dim, config.decoder_depth, config.decoder_num_heads
        assert decoder == (512, 8, 16)
        assert (config.image_size, config.in_chans, config.mlp_ratio) == (224, 3, 4.0)
        assert config.layer_norm_eps == 1e-6


def test_presets_are_found_by_name() -> None:
    assert list(PRESETS) == ["tiny", "compact", "small", "base", "large", "huge"]
    assert preset("tiny") is PRESETS["tiny"]


def test_unknown_preset_is_named() -> None:
    message = "no preset is called 'giant'; choose one of tiny, compact, small, base, large, huge"
    with pytest.raises(ConfigError, match=refusal(message)):
        preset("giant")


def test_grid_and_patch_dim() -> None:
    config = ModelConfig(image_size=96, patch_size=8, in_chans=1, mean=(0.5,), std=(0.2,))
    assert config.grid_size == 12
    assert config.patch_dim == 64


# --- what a model may be


@pytest.mark.parametrize(
    "name",
    ["image_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads",
     "decoder_embed_dim", "decoder_depth", "decoder_num_heads"],
)  # fmt: skip
@pytest.mark.parametrize("value", [0, -1])
def test_counts_are_at_least_one(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=refusal(f"{name}={value}: {COUNT}")):
        ModelConfig(**{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 225}, "image_size 225 is not a multiple of patch_size 16"),
        ({"embed_dim": 100},
         "embed_dim 100 does not divide into 12 heads and by 4; pick a multiple of both"),
        ({"embed_dim": 6, "num_heads": 3},
         "embed_dim 6 does not divide into 3 heads and by 4; pick a multiple of both"),
        ({"decoder_embed_dim": 100},
         "decoder_embed_dim 100 does not divide into 16 heads and by 4; pick a multiple of both"),
        ({"in_chans": 4, "mean": (0.5, 0.5, 0.5)},
         "mean has 3 values for in_chans=4; give one value a channel"),
        ({"in_chans": 4, "bands": (1, 2)},
         "bands has 2 values for in_chans=4; give one value a channel"),
        ({"bands": (0, 1, 2)}, f"bands.0=0: {COUNT}"),
        ({"value_range": ((5.0, 1.0),)},
         "the value range is ((5.0, 1.0),); give auto, dtype, or LOW,HIGH such as 0,4095"),
        ({"in_chans": 4, "mean": (0.5,) * 4},
         "std has 3 values for in_chans=4; give one value a channel"),
        ({"std": (0.2, 0.0, 0.2)}, "std.1=0.0: Input should be greater than 0"),
        ({"mean": (0.2, float("nan"), 0.2)}, "mean.1=nan: Input should be a finite number"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio=inf: Input should be a finite number"),
        ({"depth": 1.5}, f"depth=1.5: {WHOLE}"),
        ({"depth": "many"},
         "depth='many': Input should be a valid integer, unable to parse string as an integer"),
    ],
)  # fmt: skip
def test_models_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=refusal(message)):
        ModelConfig(**changes)


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("tiny").depth = 3  # type: ignore[misc]


# --- plain data and back


@given(
    heads=st.integers(1, 8), width=st.integers(1, 8), depth=st.integers(1, 40),
    patch_size=st.integers(1, 32), grid=st.integers(1, 20), norm_pix=st.booleans(),
    channels=st.integers(1, 6),
)  # fmt: skip
def test_any_model_goes_through_json(
    heads: int, width: int, depth: int, patch_size: int, grid: int, norm_pix: bool, channels: int
) -> None:
    config = ModelConfig(
        image_size=patch_size * grid, patch_size=patch_size, in_chans=channels,
        embed_dim=4 * heads * width, num_heads=heads, depth=depth, norm_pix=norm_pix,
        mean=(0.5,) * channels, std=(0.25,) * channels,
    )  # fmt: skip
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_nested_config_goes_through_json() -> None:
    config = Outer(inner=Inner(lr=0.5), stages=(Inner(name="muon"), Inner()), limit=3)
    assert from_dict(Outer, json.loads(json.dumps(to_dict(config)))) == config


def test_a_direct_call_is_checked_and_lists_become_tuples() -> None:
    config = ModelConfig(mean=[0, 0.5, 1])  # type: ignore[arg-type]
    assert (config.mean, type(config.mean[0])) == ((0.0, 0.5, 1.0), float)
    sentence = "crop=1: Input should be 'random', 'fixed' or 'centre'"
    with pytest.raises(ConfigError, match=refusal(sentence)):
        DataConfig(crop=1)  # type: ignore[arg-type]


def test_a_deep_value_is_refused_in_a_short_sentence() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, "x" * 100_000, list(range(100_000))):
        with pytest.raises(ConfigError, match="^std") as caught:
            from_dict(ModelConfig, {"std": value})
        assert len(str(caught.value)) < 200
    with pytest.raises(ConfigError) as caught:
        from_dict(ModelConfig, {"x" * 100_000: 1})
    assert len(str(caught.value)) < 500


def test_a_preset_is_a_model() -> None:
    assert from_dict(TrainConfig, {"model": "small"}).model == PRESETS["small"]
    with pytest.raises(ConfigError, match="no preset is called 'giant'"):
        from_dict(TrainConfig, {"model": "giant"})


# --- files


def test_a_run_goes_through_yaml(tmp_path: Path) -> None:
    config = TrainConfig(
        model=PRESETS["tiny"], stages=(StageConfig(64, 0.5), StageConfig(share=0.5)), epochs=1e-7,
        out="runs/\u5c71 # no: comment\udcff", data=DataConfig(folder="007"),
    )  # fmt: skip
    save_yaml(config, tmp_path / "config.yaml", recipe="quick")
    assert load_yaml(TrainConfig, tmp_path / "config.yaml") == config
    assert (tmp_path / "config.yaml").read_text().startswith("recipe: quick\noptim:")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("limit: 1e5", Outer(limit=100_000)),
        ("inner: {lr: 1e-4}", Outer(inner=Inner(lr=1e-4))),
        ("inner:\n  lr: -2.5E+3", Outer(inner=Inner(lr=-2500))),
        ("inner: {betas: [0.5, 1]}", Outer(inner=Inner(betas=(0.5, 1.0)))),
        ("stages:\n- lr: 1\n- {}", Outer(stages=(Inner(lr=1.0), Inner()))),
        ("out: '007'\nlimit: null\nflip: false", Outer(out="007", flip=False)),
        ("recipe: quick\nout: 007a", Outer(out="007a")),
    ],
)
def test_yaml_is_read_as_people_write_it(text: str, expected: Outer, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert load_yaml(Outer, tmp_path / "a.yaml") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out: 7", ": out=7: Input should be a valid string"),
        ("limt: 7", ": Outer has no field limt; did you mean limit?"),
        ("1: 7", ": 1=1: Keys should be strings"),
        ("- 7", " holds no fields; write lines such as steps: 1000"),
        ("", " holds no fields; write lines such as steps: 1000"),
        ("a: [", " cannot be read: while parsing a flow"),
        ("out: !!python/object/apply:os.system [ls]", " cannot be read: could not determine a"),
        ("\udcff", " cannot be read: 'utf-8' codec can't decode"),
    ],
)
def test_yaml_that_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(os.fsencode(text))
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{path}{message}')}"):
        load_yaml(Outer, path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.yaml cannot be read: .*No such file"):
        load_yaml(Outer, tmp_path / "a.yaml")


def test_the_json_of_an_earlier_version_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrainConfig(optim=OptimConfig(base_lr=1e-6))
    values = {"recipe": "quick", **to_dict(config), "tensorboard": False}
    values["system"]["shard"] = False
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert load_yaml(TrainConfig, tmp_path / "config.json") == config
    assert not caplog.records


def test_fields_of_earlier_versions_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    values = {"system": {"shard": False}, "tensorboard": False}
    assert from_dict(TrainConfig, values) == TrainConfig()
    assert not caplog.records
    assert from_dict(TrainConfig, {"system": {"shard": True}}) == TrainConfig()
    assert caplog.messages == ["system.shard=True of an earlier version is left out"]
    with pytest.raises(ConfigError, match="TrainConfig has no field tensorboard"):
        with_overrides(TrainConfig(), ["tensorboard=false"])


def test_fields_left_out_have_their_defaults() -> None:
    assert from_dict(ModelConfig, {"depth": 3}) == ModelConfig(depth=3)


def test_unknown_fields_are_named() -> None:
    with pytest.raises(ConfigError, match="^Inner has no field wd; it has lr, betas, name$"):
        from_dict(Inner, {"wd": 1, "lr": 1e-3, "decay": 2})


# --- changes from a command line


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("depth=3", "depth", 3),
        ("mlp_ratio=2", "mlp_ratio", 2.0),
        ("layer_norm_eps=1e-5", "layer_norm_eps", 1e-5),
        ("norm_pix=true", "norm_pix", True),
        ("norm_pix=yes", "norm_pix", True),
        ("mean=[0, 0.5, 1]", "mean", (0.0, 0.5, 1.0)),
    ],
)
def test_an_override_changes_its_field_only(text: str, field: str, value: Any) -> None:
    changed = with_overrides(preset("tiny"), [text])
    assert changed == dataclasses.replace(preset("tiny"), **{field: value})
    assert type(getattr(changed, field)) is type(value)


def test_no_override_changes_nothing() -> None:
    assert with_overrides(preset("tiny"), []) == preset("tiny")


@pytest.mark.parametrize(
    "texts",
    [
        ["decoder_embed_dim=192", "decoder_num_heads=3"],
        ["decoder_num_heads=3", "decoder_embed_dim=192"],
    ],
)
def test_fields_that_hang_together_go_in_any_order(texts: list[str]) -> None:
    changed = with_overrides(preset("tiny"), texts)
    assert (changed.decoder_embed_dim, changed.decoder_num_heads) == (192, 3)


def test_what_all_overrides_make_together_is_still_checked() -> None:
    with pytest.raises(ConfigError, match="embed_dim 200 does not divide into 3 heads"):
        with_overrides(preset("tiny"), ["depth=2", "embed_dim=200"])


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["inner.lr=0.5", "inner.name=muon"], Outer(inner=Inner(lr=0.5, name="muon"))),
        (["inner.betas=[0.8, 0.9]"], Outer(inner=Inner(betas=(0.8, 0.9)))),
        (['inner={"lr": 2}'], Outer(inner=Inner(lr=2.0))),
        (['inner={"lr": 2}', "inner.name=muon"], Outer(inner=Inner(lr=2.0, name="muon"))),
        (['stages=[{"lr": 1}, {}]'], Outer(stages=(Inner(lr=1.0), Inner()))),
        (["out=a=b"], Outer(out="a=b")),
        (["out="], Outer(out="")),
        (["out=007"], Outer(out="007")),
        (["out=1e3"], Outer(out="1e3")),
        (["out=null"], Outer(out="null")),
        (["limit=5"], Outer(limit=5)),
        (["limit=5", "limit=null"], Outer()),
        (["limit=None"], Outer()),
        (["flip=False"], Outer(flip=False)),
        (["inner.lr=1", "inner.lr=2"], Outer(inner=Inner(lr=2.0))),
        (["inner.betas=0.8, 0.9"], Outer(inner=Inner(betas=(0.8, 0.9)))),
        (["inner.betas=0.5"], Outer(inner=Inner(betas=(0.5, 0.5)))),
        (["inner.betas=1"], Outer(inner=Inner(betas=(1.0, 1.0)))),
        (["limit=1e5"], Outer(limit=100_000)),
    ],
)
def test_overrides_reach_every_kind_of_field(texts: list[str], expected: Outer) -> None:
    assert with_overrides(Outer(), texts) == expected


def test_the_config_given_stays_as_it_was() -> None:
    config = Outer()
    with_overrides(config, ["inner.lr=0.5", "out=elsewhere"])
    assert config == Outer()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flip", "'flip' is not of the form field=value, such as epochs=20"),
        ("=3", "'=3' is not of the form field=value, such as epochs=20"),
        ("speed=3", "Outer has no field speed; it has inner, stages, out, limit, flip"),
        ("flop=3", "Outer has no field flop; did you mean flip?"),
        ("betas=3", "Outer has no field betas; did you mean inner.betas?"),
        ("inner.wd=3", "Outer has no field inner.wd; it has lr, betas, name"),
        ("inner.nam=3", "Outer has no field inner.nam; did you mean inner.name?"),
        ("out.lr=3", "Outer has no field out.lr; did you mean inner.lr?"),
        ("inner=3", "inner=3: it has fields of its own; give a mapping of them, or one of them as "
         "inner.FIELD=VALUE"),
        ("stages.0.share=1", "Outer has no field stages.0.share; give stages=VALUE as a whole"),
        ("inner.lr.peak=1", "Outer has no field inner.lr.peak; give inner.lr=VALUE as a whole"),
        ("inner.lr=fast",
         "inner.lr='fast': Input should be a valid number, unable to parse string as a number"),
        ("inner.lr=NaN", "inner.lr=nan: Input should be a finite number"),
        ("inner.betas=few",
         "inner.betas.0='few': Input should be a valid number, unable to parse string as a number"),
        ("inner.betas=0.9,0.95,1",
         "inner.betas=[0.9, 0.95, 1]: Tuple should have at most 2 items after validation, not 3"),
        ("stages=3", "stages.0=3: it has fields of its own; give a mapping of them"),
        ('stages=[{}, {"wd": 1}]', "stages.1.wd=1: Unexpected keyword argument"),
        ("inner.name=sgd", "inner.name='sgd': Input should be 'adamw' or 'muon'"),
        ('inner={"wd": 1}', "Inner has no field wd; it has lr, betas, name"),
    ],
)  # fmt: skip
def test_overrides_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=refusal(message)):
        with_overrides(Outer(), [text])


def test_whole_numbers_are_not_rounded() -> None:
    with pytest.raises(ConfigError, match=refusal(f"depth=1.5: {WHOLE}")):
        with_overrides(preset("tiny"), ["depth=1.5"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["data.folder=a", "data.pack=b"], "data.folder and data.pack are given; give one source"),
        (["data.color_jitter=1.5"], "data.color_jitter=1.5: Input should be less than or equal to"),
        (["model.pca_components=769"], "a patch has 768 values, so give 0 to that many"),
        (["model.pca_components=9", "model.norm_pix=true"], "norm_pix or pca_components, not both"),
        (["optim.lr=0", "optim.base_lr=0"], "optim.lr and optim.base_lr are both 0"),
        (["data.short_side=15"], "short_side is 15; give at least 16 pixels, or 0 to keep"),
        (["recovery.spike=1"], "recovery.spike is 1.0; give 0, or a number above 1"),
        (["ema=1"], "ema=1: Input should be less than 1"),
        (["mask.ratio=0.9,0.5"], "mask.ratio is [0.9, 0.5]; give the smaller number first"),
        (["mask.ratio=0"], "mask.ratio.0=0: Input should be greater than 0"),
        (["lr=1"], "TrainConfig has no field lr; did you mean optim.lr?"),
        (['stages=[{"image_size": 16}]'], "16 is not a multiple of the patch side 16 from 32"),
        (["model.norm_pix=true", "seam_weight=0.3"], "seam_weight is 0.3, for models that predict"),
        (["adversarial.weight=0.5"], "give adversarial.width=16 too, or set them to 0"),
        (["adversarial.features_weight=1"], "give adversarial.width=16 too, or set them to 0"),
        (["loss=l1"], "loss='l1': Input should be 'mse' or 'log_mse'"),
    ],
)
def test_runs_that_cannot_be(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        with_overrides(TrainConfig(), texts)


@pytest.mark.parametrize("order", [1, -1])
def test_a_preset_is_changed_by_the_fields_after_it(order: int) -> None:
    config = with_overrides(TrainConfig(), ["model=tiny", "model.norm_pix=true"][::order])
    assert config.model == dataclasses.replace(PRESETS["tiny"], norm_pix=order == 1)
    with pytest.raises(ConfigError, match="no preset is called 'giant'; choose one of tiny"):
        with_overrides(TrainConfig(), ["model=giant"])


def test_numbers_may_be_written_as_people_write_them() -> None:
    texts = ["mask.ratio=0.75", "steps=1e5", "optim.betas=0.9,0.95", "data.crop_area=0.2,1"]
    config = with_overrides(TrainConfig(), texts)
    assert config.mask.ratio == (0.75, 0.75)
    assert (config.steps, type(config.steps)) == (100_000, int)
    assert config.optim.betas == (0.9, 0.95)
    assert config.data.crop_area == (0.2, 1.0)


def test_numbers_of_numpy_are_numbers() -> None:
    config = TrainConfig(
        seed=np.int64(2),  # type: ignore[arg-type]
        steps=np.int32(5),  # type: ignore[arg-type]
        ema=np.float32(0.5),  # type: ignore[arg-type]
        mask=MaskConfig(ratio=(np.float32(0.5), np.float64(0.75))),  # type: ignore[arg-type]
        model=ModelConfig(depth=np.int64(3)),  # type: ignore[arg-type]
        stages=(StageConfig(np.int64(32), np.float64(1)),),  # type: ignore[arg-type]
    )
    kinds = {type(value) for value in (config.seed, config.steps, config.model.depth)}
    assert kinds == {int}
    assert json.loads(json.dumps(to_dict(config)))["mask"]["ratio"] == [0.5, 0.75]
    assert from_dict(TrainConfig, {"seed": np.int64(2)}).seed == 2
    with pytest.raises(ConfigError, match="steps=.*1.5.*: Input should be a valid integer"):
        from_dict(TrainConfig, {"steps": np.float64(1.5)})


@pytest.mark.parametrize(
    ("given", "aside"),
    [
        ("steps=7", "epochs"),
        ("optim.warmup_steps=7", "optim.warmup_epochs"),
        ("optim.base_lr=7", "optim.lr"),
    ],
)
def test_what_is_given_puts_the_recipes_other_way_to_say_it_aside(given: str, aside: str) -> None:
    def value_of(config: TrainConfig) -> float:
        value: Any = config
        for name in aside.split("."):
            value = getattr(value, name)
        return float(value)

    recipe = with_overrides(TrainConfig(), [f"{aside}=3"])
    assert value_of(with_overrides(recipe, [given])) == 0
    assert value_of(with_overrides(recipe, [given, f"{aside}=2"])) == 2
    assert value_of(with_overrides(recipe, ["seed=1"])) == 3


def test_a_record_of_a_run_names_no_place() -> None:
    config = TrainConfig(
        data=DataConfig(folder="/secret/a", holdout="/secret/b", cache="/secret/c"),
        out="/secret/d", resume="/secret/e", init_from="/secret/f",
    )  # fmt: skip
    text = json.dumps(without_places(config))
    assert "secret" not in text
    for source in ("pack", "shards"):
        placed = TrainConfig(data=DataConfig(**{source: "/secret/g"}))
        assert "secret" not in json.dumps(without_places(placed))
