"""Weights written in every format, opened by the libraries they are for, and read back."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mae_core.cli import mae, main
from mae_core.config import ModelConfig, preset
from mae_core.errors import CheckpointError, ConfigError, MAEError
from mae_core.images import to_tensor
from mae_core.model.losses import reconstruction_loss
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import PatchMask, mask_from_noise
from mae_core.weights.export import convert, write_huggingface, write_official, write_timm
from mae_core.weights.formats import Hints, Kind, Weights, save_weights
from mae_core.weights.registry import read_weights
from tests.pictures import draw_picture

# Nothing here is a default: every width, depth, head count and number differs.
CONFIG = ModelConfig(
    image_size=48, patch_size=8, embed_dim=24, depth=3, num_heads=3,
    decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=4, mlp_ratio=2.0, norm_pix=True,
    layer_norm_eps=1e-5, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6),
)  # fmt: skip
HINTS = Hints(num_heads=3, decoder_num_heads=4, norm_pix=True, layer_norm_eps=1e-5)


def build(config: ModelConfig = CONFIG) -> MaskedAutoencoder:
    """A model with noise in every parameter, positions and LayerNorms included."""
    model = MaskedAutoencoder(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
    return model


def contents_of(model: MaskedAutoencoder, kind: Kind = "autoencoder") -> Weights:
    state, num_classes = dict(model.state_dict()), None
    if kind != "autoencoder":
        state = {k: v for k, v in state.items() if not k.startswith(("decoder_", "mask_token"))}
    if kind == "classifier":
        num_classes, width = 5, model.config.embed_dim
        state["fc_norm.weight"], state["fc_norm.bias"] = (
            state.pop("norm.weight"),
            state.pop("norm.bias"),
        )
        state["head.weight"], state["head.bias"] = noise(5, width), noise(5)
    config = model.config
    if kind != "autoencoder":
        config = replace(config, decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16)
    return Weights(config, state, kind=kind, format="official", num_classes=num_classes)


def all_visible(count: int, length: int) -> PatchMask:
    """Nothing is removed, and patches stay in the order of the grid."""
    return mask_from_noise(torch.arange(float(length)).expand(count, -1), 0.0)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_same(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert given.keys() == expected.keys()
    for key, value in expected.items():
        assert given[key].dtype == value.dtype
        assert torch.equal(given[key], value), key


# --- transformers opens it


def opened_by_transformers(folder: Path, cls: str, **changes: object) -> Any:
    # Imported late: transformers needs the torchvision that importing mae_core has mended.
    import transformers

    model, info = getattr(transformers, cls).from_pretrained(
        folder, output_loading_info=True, **changes
    )
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize("norm_pix", [True, False])
def test_transformers_opens_the_folder_and_says_the_same(tmp_path: Path, norm_pix: bool) -> None:
    model = build(replace(CONFIG, norm_pix=norm_pix))
    write_huggingface(tmp_path / "out", contents_of(model))
    peer = opened_by_transformers(tmp_path / "out", "ViTMAEForPreTraining")
    images, drawn = noise(2, 3, 48, 48), noise(2, 36, seed=2)
    with torch.no_grad():
        ours, theirs = model(images, mask_from_noise(drawn, 0.75)), peer(images, noise=drawn)
    torch.testing.assert_close(ours.pred, theirs.logits, rtol=0, atol=1e-5)
    loss = reconstruction_loss(ours.pred, model.target(images), ours.mask)
    torch.testing.assert_close(loss, theirs.loss, rtol=1e-5, atol=0)


def test_transformers_opens_an_encoder(tmp_path: Path) -> None:
    model = build()
    write_huggingface(tmp_path / "out", contents_of(model, "encoder"))
    peer = opened_by_transformers(tmp_path / "out", "ViTMAEModel", mask_ratio=0.5)
    images, drawn = noise(2, 3, 48, 48), noise(2, 36, seed=2)
    with torch.no_grad():
        ours = model.encode(images, mask_from_noise(drawn, 0.5))
        theirs = peer(images, noise=drawn).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_the_image_processor_prepares_pictures_as_we_do(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    write_huggingface(tmp_path / "out", contents_of(build()))
    picture = draw_picture(0, 48, 48)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    theirs = processor(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(theirs, to_tensor(picture, CONFIG.mean, CONFIG.std))
    assert processor(draw_picture(0, 90, 60), return_tensors="pt")["pixel_values"].shape[2:] == (
        48, 48,
    )  # fmt: skip


def test_the_config_says_all_that_transformers_asks(tmp_path: Path) -> None:
    from transformers import ViTMAEConfig

    write_huggingface(tmp_path / "out", contents_of(build()))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    asked = set(ViTMAEConfig().to_dict()) - set(ViTMAEConfig.__mro__[1]().to_dict())
    assert asked <= set(written)
    assert written["architectures"] == ["ViTMAEForPreTraining"]
    assert written["layer_norm_eps"] == 1e-5
    assert written["norm_pix_loss"] is True
    assert (written["intermediate_size"], written["decoder_intermediate_size"]) == (48, 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_transformers_opens_narrow_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    convert(contents_of(build()), tmp_path / "out", "huggingface", dtype=str(dtype)[6:])
    peer = opened_by_transformers(tmp_path / "out", "ViTMAEForPreTraining")
    assert {parameter.dtype for parameter in peer.parameters()} == {dtype}


# --- timm opens it


def timm_model(contents: Weights, path: Path, **changes: object) -> Any:
    import timm

    config = contents.config
    return timm.create_model(
        "vit_base_patch16_224", img_size=config.image_size, patch_size=config.patch_size,
        embed_dim=config.embed_dim, depth=config.depth, num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio, in_chans=config.in_chans,
        norm_layer=partial(torch.nn.LayerNorm, eps=config.layer_norm_eps),
        num_classes=contents.num_classes or 0, checkpoint_path=path, **changes,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
@pytest.mark.parametrize("changes", [{}, {"in_chans": 1, "mean": (0.5,), "std": (0.5,)}])
def test_timm_opens_the_encoder_and_says_the_same(
    tmp_path: Path, suffix: str, changes: dict[str, Any]
) -> None:
    model = build(replace(CONFIG, **changes))
    contents = contents_of(model)
    write_timm(tmp_path / f"out{suffix}", contents)
    peer = timm_model(contents, tmp_path / f"out{suffix}")
    images = noise(2, model.config.in_chans, 48, 48)
    with torch.no_grad():
        ours, theirs = model.encode(images, all_visible(2, 36)), peer.forward_features(images)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_timm_opens_a_classifier(tmp_path: Path) -> None:
    model = build()
    contents = contents_of(model, "classifier")
    write_timm(tmp_path / "out.pth", contents)
    peer = timm_model(contents, tmp_path / "out.pth", global_pool="avg")
    images = noise(2, 3, 48, 48)
    with torch.no_grad():
        # Its `norm` is the classifier's `fc_norm`: undone, pooled, and done again.
        latent = []
        model.norm.register_forward_hook(lambda _, given, __: latent.append(given[0]))
        model.encode(images, all_visible(2, 36))
        pooled = model.norm(latent[0][:, 1:].mean(dim=1))
        expected = pooled @ contents.state["head.weight"].T + contents.state["head.bias"]
        torch.testing.assert_close(peer(images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", [{"pca_components": 7}, {"encoder_mask_tokens": True}])
def test_timm_opens_the_encoder_of_the_variants(tmp_path: Path, variant: dict[str, Any]) -> None:
    model = build(replace(CONFIG, norm_pix=False, **variant))
    contents = contents_of(model)
    write_timm(tmp_path / "out.safetensors", contents)
    keys = load_file(tmp_path / "out.safetensors").keys()
    assert keys == contents_of(build(), "encoder").state.keys()
    images = noise(1, 3, 48, 48)
    with torch.no_grad():
        theirs = timm_model(contents, tmp_path / "out.safetensors").forward_features(images)
        torch.testing.assert_close(
            model.encode(images, all_visible(1, 36)), theirs, rtol=0, atol=1e-5
        )


# --- official


@pytest.mark.parametrize("kind", ["autoencoder", "encoder", "classifier"])
def test_an_official_file_holds_just_the_parameters(tmp_path: Path, kind: Kind) -> None:
    contents = contents_of(build(), kind)
    write_official(tmp_path / "out.pth", contents)
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    assert content.keys() == {"model"}
    assert_same(content["model"], contents.state)


@pytest.mark.parametrize("target", ["official", "timm"])
def test_views_are_written_without_what_they_look_at(tmp_path: Path, target: str) -> None:
    contents = contents_of(build())
    large = torch.zeros(1_000_000)
    large[:24] = contents.state["norm.bias"]
    viewed = replace(contents, state=contents.state | {"norm.bias": large[:24]})
    convert(viewed, tmp_path / "out.pth", target)
    assert (tmp_path / "out.pth").stat().st_size < 1_000_000


# --- there and back

PATHS = {
    "mae_core": "{}.safetensors", "official": "{}.pth", "huggingface": "{}",
    "timm": "{}.safetensors",
}  # fmt: skip


# What each kind has a place in.
PLACES: dict[Kind, tuple[str, ...]] = {
    "autoencoder": ("mae_core", "official", "huggingface", "timm"),
    "encoder": ("official", "huggingface", "timm"),
    "classifier": ("mae_core", "official", "timm"),
}
WAYS = [
    (kind, first, second)
    for kind, places in PLACES.items()
    for first in places
    for second in PLACES["encoder" if first == "timm" and kind == "autoencoder" else kind]
]


@pytest.mark.parametrize(("kind", "first", "second"), WAYS)
def test_every_way_there_and_back_is_bitwise(
    tmp_path: Path, kind: Kind, first: str, second: str
) -> None:
    contents = contents_of(build(), kind)
    for number, target in enumerate((first, second)):
        path = tmp_path / PATHS[target].format(number)
        expected = contents
        if target == "timm" and contents.kind == "autoencoder":
            expected = contents_of(build(), "encoder")
        convert(contents, path, target)
        contents = read_weights(path, hints=HINTS)
        assert contents.kind == expected.kind
        assert contents.num_classes == expected.num_classes
        assert_same(contents.state, expected.state)
        if target in ("official", "timm"):
            # They have no place for the channel statistics.
            expected = replace(expected, config=with_statistics_of(contents, expected.config))
        assert contents.config == expected.config


def with_statistics_of(contents: Weights, config: ModelConfig) -> ModelConfig:
    return replace(config, mean=contents.config.mean, std=contents.config.std)


@pytest.mark.parametrize("target", ["mae_core", "huggingface"])
def test_formats_that_know_everything_need_no_hints(tmp_path: Path, target: str) -> None:
    contents = contents_of(build())
    path = tmp_path / PATHS[target].format("out")
    convert(contents, path, target)
    assert read_weights(path).config == CONFIG


def test_a_record_stays_with_its_weights(tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", build(), record={"recipe": "quick"})
    assert mae(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"),
                 "--to", "mae_core", "--dtype", "float16"]) == 0  # fmt: skip
    again = read_weights(tmp_path / "b.safetensors")
    assert (again.record, again.dtype) == ({"recipe": "quick"}, "float16")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("target", PATHS)
def test_narrow_numbers_are_those_of_torch(tmp_path: Path, target: str, dtype: str) -> None:
    contents = contents_of(build(), "encoder" if target == "timm" else "autoencoder")
    path = tmp_path / PATHS[target].format("out")
    convert(contents, path, target, dtype=dtype)
    again = read_weights(path, hints=HINTS)
    assert again.dtype == dtype
    rounded = {k: v.to(getattr(torch, dtype)).float() for k, v in contents.state.items()}
    assert_same(again.state, rounded)


# --- what is refused


@pytest.mark.parametrize("target", ["official", "huggingface"])
@pytest.mark.parametrize("variant", [{"pca_components": 7}, {"encoder_mask_tokens": True}])
def test_variants_without_a_place_are_refused(
    tmp_path: Path, target: str, variant: dict[str, Any]
) -> None:
    contents = contents_of(build(replace(CONFIG, norm_pix=False, **variant)))
    field = next(iter(variant))
    with pytest.raises(CheckpointError, match=f"a model with {field} has no place in .*; write"):
        convert(contents, tmp_path / "out", target)
    assert not list(tmp_path.iterdir())


def test_a_classifier_is_none_of_transformers(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a classifier has no place .*, such as timm"):
        convert(contents_of(build(), "classifier"), tmp_path / "out", "huggingface")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "target"),
    [("encoder", "mae_core"), ("encoder", "onnx"), ("encoder", "torch_export"),
     ("classifier", "onnx"), ("classifier", "torch_export")],
)  # fmt: skip
def test_what_needs_a_decoder_says_so(tmp_path: Path, target: str, kind: Kind) -> None:
    with pytest.raises(CheckpointError, match=rf"no decoder \({kind}\), which {target} needs"):
        convert(contents_of(build(), kind), tmp_path / "out", target)
    assert not list(tmp_path.iterdir())


def test_numbers_too_large_for_a_format_are_refused(tmp_path: Path) -> None:
    contents = contents_of(build())
    state = contents.state | {"norm.bias": torch.full((24,), 7e4)}
    with pytest.raises(CheckpointError, match="norm.bias holds numbers .* too large for float16"):
        convert(replace(contents, state=state), tmp_path / "o.pth", "official", dtype="float16")
    assert not list(tmp_path.iterdir())


def test_a_format_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'keras'; choose one of mae_core, official, hugging"):
        convert(contents_of(build()), tmp_path / "out", "keras")


# --- folders


def test_a_folder_that_is_somebodys_is_refused(tmp_path: Path) -> None:
    contents, folder = contents_of(build()), tmp_path / "out"
    write_huggingface(folder, contents)
    with pytest.raises(CheckpointError, match="is not an empty folder; give another"):
        write_huggingface(folder, contents)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="is not an empty folder"):
        write_huggingface(tmp_path / "file", contents)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not an empty folder"):
        write_huggingface(tmp_path / "notes", contents)
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["notes.txt"]


def test_a_folder_that_may_not_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(_: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "there").mkdir()
    # Rights are nothing to root, who may run the tests.
    monkeypatch.setattr(Path, "iterdir", locked)
    with pytest.raises(CheckpointError, match="there' .Permission denied.; change its rights"):
        write_huggingface(tmp_path / "there", contents_of(build()))


def test_folders_beside_it_are_left_alone(tmp_path: Path) -> None:
    folder, other = tmp_path / "out", tmp_path / "out.partial"
    folder.mkdir()
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    contents = contents_of(build())
    write_huggingface(folder, contents)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.partial"}
    assert (other / "notes.txt").read_text() == "mine"
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "preprocessor_config.json", "config.json",
    }  # fmt: skip
    assert_same(read_weights(folder).state, contents.state)


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_cannot_be_finished_is_removed(
    tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    if there:
        folder.mkdir()
    import mae_core.weights.export as export

    whole = export.write_atomically

    def full_disk(path: Path, write: Any) -> None:
        if path.name == "config.json":
            raise CheckpointError("could not write 'config.json': the disk is full")
        whole(path, write)

    monkeypatch.setattr(export, "write_atomically", full_disk)
    with pytest.raises(CheckpointError, match="the disk is full"):
        write_huggingface(folder, contents_of(build()))
    assert [path.name for path in tmp_path.rglob("*")] == (["out"] if there else [])


# --- the command


def test_the_command_says_what_it_read_and_wrote_and_how_to_open_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_weights(tmp_path / "a.safetensors", build(), record={})
    for target, name in PATHS.items():
        path = str(tmp_path / name.format(target))
        assert mae(["convert", str(tmp_path / "a.safetensors"), path, "--to", target]) == 0
        read, wrote, opened = capsys.readouterr().out.splitlines()
        count = sum(value.numel() for value in build().state_dict().values())
        assert f"mae_core, autoencoder, float32, {count:,} parameters" in read
        assert wrote.startswith(f"wrote {path}: {target}")
        assert wrote.endswith("the encoder alone") == (target == "timm")
        run_line(opened.removeprefix("open it with: "))


def run_line(line: str) -> Any:
    """What the command prints has to run as it stands."""
    import functools

    import timm
    import transformers

    import mae_core

    names = {"torch": torch, "timm": timm, "transformers": transformers, "mae_core": mae_core,
             "functools": functools}  # fmt: skip
    return eval(line, names)


@pytest.mark.parametrize(
    ("name", "known"),
    [("tiny", "vit_tiny_patch16_224"), ("small", "vit_small_patch16_224"), ("compact", None)],
)
def test_the_line_for_timm_is_short_for_models_that_timm_knows(
    name: str, known: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = preset(name)
    model = MaskedAutoencoder(replace(config, decoder_depth=1))
    path = tmp_path / "out.pth"
    save_weights(tmp_path / "a.safetensors", model, record={})
    mae(["convert", str(tmp_path / "a.safetensors"), str(path), "--to", "timm"])
    line = capsys.readouterr().out.splitlines()[-1].removeprefix("open it with: ")
    own = ", " if known else ", embed_dim=256, num_heads=4, "
    assert line == (
        f'timm.create_model("{known or "vit_base_patch16_224"}", num_classes=0{own}'
        f"checkpoint_path={str(path)!r})"
    )
    peer = run_line(line).eval()
    images = noise(1, 3, 224, 224)
    with torch.no_grad():
        theirs = peer.forward_features(images)
        ours = model.eval().encode(images, all_visible(1, 196))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_options_say_what_shapes_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_official(tmp_path / "a.pth", contents_of(build()))
    options = ["--num-heads", "3", "--decoder-num-heads", "4", "--norm-pix",
               "--layer-norm-eps", "1e-5"]  # fmt: skip
    target = tmp_path / "b.safetensors"
    assert mae(["convert", str(tmp_path / "a.pth"), str(target), "--to", "mae_core", *options]) == 0
    assert "assumed" not in capsys.readouterr().out.replace("assumed mean", "")
    config = read_weights(target).config
    assert config == with_statistics_of(read_weights(target), CONFIG)
    again = ["--num-heads", "6", "--decoder-num-heads", "2", "--no-norm-pix"]
    target = tmp_path / "c.safetensors"
    mae(["convert", str(tmp_path / "a.pth"), str(target), "--to", "mae_core", *again])
    config = read_weights(target).config
    assert (config.num_heads, config.decoder_num_heads, config.norm_pix) == (6, 2, False)
    assert config.layer_norm_eps == 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["b.pth", "--to", "mae_core"], "'b.pth' is no name for --to mae_core; .* .safetensors"),
        (["b.npz", "--to", "timm"], "let it end in .safetensors or .pth or .bin"),
        (["b.safetensors", "--to", "huggingface"], "--to huggingface writes a folder"),
        (["b.onnx", "--to", "onnx", "--dtype", "float16"], "--to onnx writes float32 only"),
        (["b.pth", "--to", "official", "--image-size", "32", "48"], "--image-size is for --to on"),
        (["taken.pth", "--to", "official"], "taken.pth' is there already; remove it or give"),
        (["taken", "--to", "huggingface"], "taken' is not an empty folder"),
        (["link.pth", "--to", "official"], "link.pth' is there already"),
        (["link.pth/b.bin", "--to", "official"], "could not write .*its folder is one"),
        (["b.onnx", "--to", "onnx", "--norm-pix", "--num-heads", "6"], "stores num_heads="),
    ],
)
def test_commands_that_cannot_end_well_are_refused(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    source = tmp_path / "a.safetensors"
    save_weights(source, build(), record={})
    (tmp_path / "taken.pth").write_text("mine")
    (tmp_path / "link.pth").symlink_to(tmp_path / "nowhere")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").write_text("mine")
    with pytest.raises(MAEError, match=message):
        mae(["convert", str(source), str(tmp_path / arguments[0]), *arguments[1:]])
    assert (tmp_path / "taken.pth").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.safetensors", "taken.pth", "taken", "link.pth",
    }  # fmt: skip


def test_what_an_official_file_cannot_say_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_weights(tmp_path / "a.safetensors", build(), record={})
    mae(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.pth"), "--to", "official"])
    line = capsys.readouterr().out.splitlines()[1]
    for said in ("num_heads=3", "decoder_num_heads=4", "norm_pix=True", "layer_norm_eps=1e-05",
                 "mean=(0.1, 0.2, 0.3)", "std=(0.4, 0.5, 0.6)"):  # fmt: skip
        assert said in line
    known = build(replace(preset("tiny"), depth=1, decoder_depth=1, decoder_embed_dim=512,
                          decoder_num_heads=16))  # fmt: skip
    save_weights(tmp_path / "known.safetensors", known, record={})
    source = str(tmp_path / "known.safetensors")
    mae(["convert", source, str(tmp_path / "known.pth"), "--to", "official"])
    assert "not stored" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "name"), [("official", "b.pth"), ("huggingface", "b"), ("timm", "b.safetensors")]
)
def test_a_range_of_values_that_is_lost_is_said(
    target: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(preset("tiny"), depth=1, decoder_depth=1, value_range=((0.0, 4095.0),))
    save_weights(tmp_path / "a.safetensors", build(config), record={})
    mae(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / name), "--to", target])
    assert "not stored" in (said := capsys.readouterr().out)
    assert "value_range=((0.0, 4095.0),)" in said


def test_guessed_heads_are_said_before_a_picture_is_drawn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_official(tmp_path / "a.pth", contents_of(build()))
    read_weights(tmp_path / "a.pth").build()
    assert "does not say its decoder_num_heads: 16 is a guess" in caplog.text
    assert "--decoder-num-heads N writes the right one down" in caplog.text
    caplog.clear()
    read_weights(tmp_path / "a.pth", hints=HINTS).build()
    assert not caplog.text


def test_the_command_runs_and_explains_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_weights(tmp_path / "a.safetensors", build(), record={})
    source, path = str(tmp_path / "a.safetensors"), str(tmp_path / "b.pth")
    assert main(["convert", source, path, "--to", "official"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert f"wrote {path}: official" in said.out
    assert main(["convert", source, str(tmp_path / "c.pth"), "--to", "official", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["to"], facts["kind"]) == ("official", "autoencoder")
    assert "num_heads=3" in facts["cannot_say"]
    missing = str(tmp_path / "nothing.pth")
    assert main(["convert", missing, str(tmp_path / "d.pth"), "--to", "official"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
