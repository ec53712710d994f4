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
from collections.abc import Sequence
from pathlib import Path

from mae_core.weights.export import TARGETS, check_destination, convert, lost_in, opening_line
from mae_core.weights.formats import Hints, Weights
from mae_core.weights.registry import read_weights


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    path, target = Path(arguments.destination), arguments.to
    size = arguments.image_size and tuple(arguments.image_size)
    check_destination(path, target, dtype=arguments.dtype, image_size=size)
    hints = Hints(
        num_heads=arguments.num_heads, decoder_num_heads=arguments.decoder_num_heads,
        norm_pix=arguments.norm_pix, layer_norm_eps=arguments.layer_norm_eps,
        grid=arguments.grid and tuple(arguments.grid),
    )  # fmt: skip
    weights = read_weights(arguments.source, hints=None if hints == Hints() else hints)
    print(f"read {arguments.source}: {_described(weights)}")
    convert(weights, path, target, dtype=arguments.dtype, image_size=size)
    lost = lost_in(weights, target)
    said = ", the encoder alone" if target == "timm" and weights.kind == "autoencoder" else ""
    said += f"; it cannot say {', '.join(lost)}: who opens it has to know" if lost else ""
    print(f"wrote {path}: {target}{said}")
    print(f"open it with: {opening_line(weights, path, target)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mae convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC", help="weights to read")
    parser.add_argument("destination", metavar="DST", help="file or folder to write")
    parser.add_argument("--to", required=True, choices=TARGETS, help="the format to write")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32",
        help="number format",
    )  # fmt: skip
    parser.add_argument(
        "--image-size", type=int, nargs=2, metavar=("H", "W"),
        help="pixels that a graph takes; the model's own if not given",
    )  # fmt: skip
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
    return parser


def _described(weights: Weights) -> str:
    config, whole = weights.config, weights.kind == "autoencoder"
    assumed = [
        f"{field}={getattr(config, field)}"
        for field, origin in weights.origins.items()
        if origin == "assumed"
        and (whole or not field.startswith("decoder_"))
        and getattr(config, field) not in (None, ())
    ]
    return (
        f"{weights.format}, {weights.kind}, {weights.dtype}; "
        f"{sum(tensor.numel() for tensor in weights.state.values()):,} parameters; "
        f"{config.embed_dim} wide, {config.depth} deep, {config.num_heads} heads, patches of "
        f"{config.patch_size} pixels{'; assumed ' * bool(assumed)}{', '.join(assumed)}"
    )
