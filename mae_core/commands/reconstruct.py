"""Rebuild an image without a browser: mae reconstruct IMAGE --out FOLDER.

    mae reconstruct photo.jpg --mask-ratio 0.75 --seed 2 --out panels
    mae reconstruct photo.jpg --image-size 448 --fit whole --out panels

writes `original.png masked.png reconstruction.png pasted.png panels.png metrics.json`.
"""

import argparse
from collections.abc import Sequence

import torch

from mae_core.commands.entry import add_measurement_flags, numbers
from mae_core.images import FITS
from mae_core.model.masking import STRATEGIES
from mae_core.photographs import read_file
from mae_core.reconstruct import NORM_PIX_VIEWS, ReconstructionRequest, Reconstructor
from mae_core.weights.registry import load, weights_name


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(argv)
    # The image first: a mistyped name should not wait for the weights.
    read_file(args.image, 1)
    model = load(args.weights)
    reconstructor = Reconstructor(
        model, weights_name(args.weights), device=args.device, in_place=True
    )
    request = ReconstructionRequest(
        args.image, mask_ratio=args.mask_ratio, seed=args.seed, strategy=args.strategy,
        fit=args.fit, image_size=args.image_size, view=args.view, bands=args.bands,
        value_range=args.range,
    )  # fmt: skip
    torch.set_num_threads(reconstructor.threads_for([request]))
    out = reconstructor(**vars(request))
    out.save(args.out, args.show)
    quality = "no PSNR in this view" if out.removed.any() else "nothing removed"
    if out.psnr is not None:
        told = ", told the answer's brightness and contrast" if out.view == "answer" else ""
        quality = f"{out.psnr:.2f} dB on removed patches{told}"
    print(
        f"{out.visible} of {out.patches} patches seen, {quality}, "
        f"{out.seconds * 1000:.0f} ms on {out.device}; wrote {args.out}"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mae reconstruct",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", help="an image file")
    parser.add_argument("--mask-ratio", type=float, default=0.75, help="fraction removed, 0 to 1")
    parser.add_argument("--seed", type=int, default=0, help="of the mask")
    parser.add_argument("--strategy", choices=STRATEGIES, default="random")
    parser.add_argument("--fit", choices=FITS, default="crop")
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS",
        help="what to fit to, a multiple of the patch side; the model's own if not given",
    )  # fmt: skip
    parser.add_argument(
        "--view", choices=NORM_PIX_VIEWS, default="estimated",
        help="of weights trained on normalised pixels: brightness and contrast estimated, the "
        "original's (which uses the answer), or the bare prediction",
    )  # fmt: skip
    add_measurement_flags(parser)
    parser.add_argument(
        "--show", type=numbers, default=(), metavar="N,N,N",
        help="channels of the model that the panels show as red, green and blue, or one in grey",
    )  # fmt: skip
    parser.add_argument("--weights", help="name, .safetensors file or folder of a run")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--out", required=True, help="folder to write to")
    return parser
