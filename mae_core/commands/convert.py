"""Write weights in another format: mae convert SRC DST --to FORMAT.

    mae convert mae_visualize_vit_large.pth mae-large --to huggingface
    mae convert mae-tiny encoder.safetensors --to timm
    mae convert runs/flowers flowers.onnx --to onnx

SRC is a name, a file, a folder or a repository on the Hugging Face hub, in any format that opens;
DST must not be there yet. The tensors are the same bit for bit, but for --dtype.

    mae_core      a .safetensors file that knows its own shape and training
    official      a .pth file as the paper's authors publish them
    huggingface   a folder for transformers' ViTMAE, versions 4 and 5
    timm          the encoder or classifier for timm: .safetensors, .pth or .bin
    onnx          a .onnx graph of encoder and decoder, the mask an input
    torch_export  the same as a .pt2 program of torch.export
"""

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mae_core.config import PRESETS, ModelConfig
from mae_core.errors import CheckpointError, ConfigError, PatchError
from mae_core.model.patches import grid_of
from mae_core.reconstruct import MAX_PATCHES
from mae_core.weights.architecture import Beside, infer_config
from mae_core.weights.contents import Contents, Hints
from mae_core.weights.export import write_huggingface, write_official, write_timm
from mae_core.weights.registry import read_pretrained
from mae_core.weights.saved import Weights, save_weights

# What a file of each format may end in. A folder may be called anything but these.
_SUFFIXES = {
    "mae_core": (".safetensors",),
    "official": (".pth", ".pt", ".bin"),
    "huggingface": (),
    "timm": (".safetensors", ".pth", ".bin"),
    "onnx": (".onnx",),
    "torch_export": (".pt2",),
}
_GRAPHS = ("onnx", "torch_export")
_DTYPES = ("float32", "float16", "bfloat16")

# timm's names of our presets.
_TIMM_NAMES = {
    "tiny": "vit_tiny_patch16_224",
    "small": "vit_small_patch16_224",
    "base": "vit_base_patch16_224",
    "large": "vit_large_patch16_224",
    "huge": "vit_huge_patch14_224",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    target, path = arguments.to, _destination(arguments.destination)
    image_size = None if arguments.image_size is None else tuple(arguments.image_size)
    _check_arguments(path, target, arguments.dtype, image_size)
    contents = read_pretrained(arguments.source, hints=_hints(arguments))
    print(f"read {arguments.source}: {_described(contents)}")
    convert(contents, path, target, dtype=arguments.dtype, image_size=image_size)
    print(f"wrote {path}: {target}, {_size(path) / 1e6:.1f} MB{_left_out(contents, target)}")
    print(f"open it with: {_how_to_open(contents, path, target)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mae convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC", help="weights to read")
    parser.add_argument("destination", metavar="DST", help="file or folder to write")
    parser.add_argument("--to", required=True, choices=_SUFFIXES, help="the format to write")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="number format")
    known = parser.add_argument_group("what some files do not tell of themselves")
    known.add_argument("--num-heads", type=int, metavar="N", help="of the encoder")
    known.add_argument("--decoder-num-heads", type=int, metavar="N", help="of the decoder")
    known.add_argument(
        "--norm-pix", action=argparse.BooleanOptionalAction,
        help="whether the target was normalised per patch",
    )  # fmt: skip
    known.add_argument("--layer-norm-eps", type=float, metavar="E", help="epsilon of LayerNorms")
    known.add_argument(
        "--grid", type=int, nargs=2, metavar=("H", "W"),
        help="patches of position tables that are neither sin-cos nor square",
    )  # fmt: skip
    parser.add_argument(
        "--image-size", type=int, nargs=2, metavar=("H", "W"),
        help="pixels that a graph takes; the model's own if not given",
    )  # fmt: skip
    return parser


def _hints(arguments: argparse.Namespace) -> Hints | None:
    hints = Hints(
        num_heads=arguments.num_heads,
        decoder_num_heads=arguments.decoder_num_heads,
        norm_pix=arguments.norm_pix,
        layer_norm_eps=arguments.layer_norm_eps,
        grid=None if arguments.grid is None else tuple(arguments.grid),
    )
    return None if hints == Hints() else hints


def _destination(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{text[:80]!r} begins with the home folder of somebody unknown here; write it out"
        ) from error


def _check_arguments(
    path: Path, target: str, dtype: str, image_size: tuple[int, int] | None
) -> None:
    """Refuse what cannot end well before anything is fetched or read."""
    suffixes = _SUFFIXES[target]
    if suffixes and path.suffix not in suffixes:
        raise ConfigError(
            f"{path.name!r} is no name for --to {target}; let it end in {' or '.join(suffixes)}"
        )
    if not suffixes and any(path.suffix in of_files for of_files in _SUFFIXES.values()):
        raise ConfigError(f"--to {target} writes a folder; {path.name!r} is a name for a file")
    if target in _GRAPHS and dtype != "float32":
        raise ConfigError(f"--to {target} writes float32 only; leave --dtype out")
    if target not in _GRAPHS and image_size is not None:
        raise ConfigError(f"--image-size is for --to {' and '.join(_GRAPHS)} only; leave it out")
    # An unfinished folder is for `write_huggingface` to judge.
    if os.path.lexists(path) and not (path.is_dir() and target == "huggingface"):
        raise ConfigError(f"{str(path)!r} is there already; remove it or give another name")


def convert(
    contents: Contents,
    path: str | Path,
    target: str,
    *,
    dtype: str = "float32",
    image_size: tuple[int, int] | None = None,
) -> None:
    """Write what was read in another format.

    Args:
        contents: What `read_pretrained` or `read_contents` gave.
        path: File or folder to write; a file is replaced.
        target: `mae_core`, `official`, `huggingface`, `timm`, `onnx` or `torch_export`.
        dtype: Number format to write: `float32`, `float16` or `bfloat16`; graphs are float32.
        image_size: (H, W) in pixels of the pictures that a graph takes; the model's own if not
            given. Only for `onnx` and `torch_export`.

    Raises:
        CheckpointError: If the format has no place for these weights, the number format no place
            for their values, or the file cannot be written.
        ConfigError: If no format is called `target`.
        PatchError: If a graph's pictures do not divide into patches, or into more than
            `MAX_PATCHES`.
    """
    path = Path(path)
    if target in _GRAPHS:
        _write_graph(_whole_model(contents, target), path, target, image_size)
        return
    contents = _in_dtype(contents, dtype)
    if target == "mae_core":
        weights = _whole_model(contents, target)
        save_weights(path, weights.build(), record=weights.record, dtype=getattr(torch, dtype))
    elif target == "official":
        write_official(path, contents)
    elif target == "huggingface":
        write_huggingface(path, contents)
    elif target == "timm":
        write_timm(path, contents)
    else:
        raise ConfigError(f"no format is called {target!r}; choose one of {', '.join(_SUFFIXES)}")


def _whole_model(contents: Contents, target: str) -> Weights:
    if contents.kind != "autoencoder":
        raise CheckpointError(
            f"these weights hold no decoder ({contents.kind}), which {target} needs; convert the "
            "file with encoder and decoder, or write --to timm or official"
        )
    return Weights(contents.config, contents.state, contents.record)


def _write_graph(
    weights: Weights, path: Path, target: str, image_size: tuple[int, int] | None
) -> None:
    if image_size is not None:
        patches = math.prod(grid_of(*image_size, weights.config.patch_size))
        if patches > MAX_PATCHES:
            raise PatchError(
                f"a {image_size[0]}x{image_size[1]} picture has {patches:,} patches, and at most "
                f"{MAX_PATCHES:,} are taken; give a smaller --image-size"
            )
    # Late: its packages are an extra.
    from mae_core.weights.onnx import export_onnx, export_program

    write = export_onnx if target == "onnx" else export_program
    write(weights, path, image_size=image_size)


def _in_dtype(contents: Contents, dtype: str) -> Contents:
    state = {key: tensor.to(getattr(torch, dtype)) for key, tensor in contents.state.items()}
    for key, tensor in state.items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{key} holds numbers that are too large for {dtype}; write float32 or bfloat16"
            )
    return replace(contents, state=state, dtype=dtype)


def _described(contents: Contents) -> str:
    config = contents.config
    facts = [
        f"{contents.format}, {contents.kind}, {contents.dtype}",
        f"{sum(tensor.numel() for tensor in contents.state.values()):,} parameters",
        f"{config.embed_dim} wide, {config.depth} deep, {config.num_heads} heads, patches of "
        f"{config.patch_size} pixels",
    ]
    assumed = [
        f"{field}={getattr(config, field)}"
        for field, origin in contents.origins.items()
        if origin == "assumed"
        and _is_of(contents, field)
        and getattr(config, field) not in (None, ())
    ]
    return "; ".join([*facts, *([f"assumed {', '.join(assumed)}"] if assumed else [])])


def _is_of(contents: Contents, field: str) -> bool:
    """Whether a field says anything about what these weights hold."""
    return contents.kind == "autoencoder" or not field.startswith("decoder_")


def _left_out(contents: Contents, target: str) -> str:
    if target == "official":
        untold = _untold(contents)
    else:
        own = {name: getattr(contents.config, name) for name in ("bands", "value_range")}
        untold = [f"{name}={value}" for name, value in own.items() if value]
        untold = [] if target == "mae_core" else untold
    said = ", the encoder alone" if target == "timm" and contents.kind == "autoencoder" else ""
    if untold:
        said += f"; it cannot say {', '.join(untold)}: who opens it has to know"
    return said


def _untold(contents: Contents) -> list[str]:
    """Fields for which nobody would take the right value from an official file, as texts."""
    nothing, known = Beside({}, {}, {}), Hints(grid=contents.config.grid)
    guess, origins = infer_config("", contents.state, contents.kind, nothing, known)
    untold = [
        f"{field}={getattr(contents.config, field)}"
        for field in contents.origins
        if getattr(contents.config, field) != getattr(guess, field) and _is_of(contents, field)
    ]
    # Sin-cos tables tell it, and nobody asks for it then.
    return [*untold, f"grid={known.grid}"] if origins["grid"] == known.source else untold


def _size(path: Path) -> int:
    """Bytes of a file and those that go with it (ONNX keeps large tensors apart), or a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir())
    data = path.with_name(path.name + ".data")
    return sum(file.stat().st_size for file in (path, data) if file.exists())


def _how_to_open(contents: Contents, path: Path, target: str) -> str:
    """One line of Python."""
    file = repr(str(path))
    if target == "mae_core":
        return f"mae_core.Reconstructor.from_pretrained({file})"
    if target == "official":
        return f'torch.load({file}, weights_only=True)["model"]'
    if target == "huggingface":
        model = "ViTMAEForPreTraining" if contents.kind == "autoencoder" else "ViTMAEModel"
        return f"transformers.{model}.from_pretrained({file})"
    if target == "timm":
        return _timm_call(contents, file)
    if target == "onnx":
        return f"onnxruntime.InferenceSession({file})"
    return f"torch.export.load({file}).module()"


def _timm_call(contents: Contents, file: str) -> str:
    """The call of timm that fits; every argument that is not the named model's own."""
    config, arguments = contents.config, [f"num_classes={contents.num_classes or 0}"]
    name = _nearest_preset(config)
    if "fc_norm.weight" in contents.state:
        arguments.append('global_pool="avg"')
    for field in ("patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio"):
        if getattr(config, field) != getattr(PRESETS[name], field):
            arguments.append(f"{field}={getattr(config, field)}")
    if config.grid is not None:
        height, width = (side * config.patch_size for side in config.grid)
        arguments.append(f"img_size=({height}, {width})")
    elif config.image_size != PRESETS[name].image_size:
        arguments.append(f"img_size={config.image_size}")
    if config.layer_norm_eps != PRESETS[name].layer_norm_eps:
        arguments.append(
            f"norm_layer=functools.partial(torch.nn.LayerNorm, eps={config.layer_norm_eps})"
        )
    joined = ", ".join([*arguments, f"checkpoint_path={file}"])
    return f'timm.create_model("{_TIMM_NAMES[name]}", {joined})'


def _nearest_preset(config: ModelConfig) -> str:
    """The preset whose encoder it is; the base one stands for all others."""
    for name, known in PRESETS.items():
        if (config.embed_dim, config.depth) == (known.embed_dim, known.depth):
            return name
    return "base"
