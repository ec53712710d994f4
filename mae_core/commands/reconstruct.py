"""Rebuild a picture without a browser: mae reconstruct IMAGE --out DIR.

    mae reconstruct photo.jpg --mask-ratio 0.75 --seed 2 --out panels
    mae reconstruct photo.jpg --image-size 448 --fit whole --out panels

writes `original.png masked.png reconstruction.png pasted.png panels.png metrics.json`.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from mae_core.commands.entry import add_measurement_flags, numbers
from mae_core.images import FITS
from mae_core.model.masking import STRATEGIES
from mae_core.photographs import read_file
from mae_core.reconstruct import (
    NORM_PIX_VIEWS,
    Reconstruction,
    ReconstructionRequest,
    Reconstructor,
)
from mae_core.weights.files import write_atomically


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    # The picture first: a mistyped name should not wait for the weights.
    read_file(arguments.image, 1)
    reconstructor = Reconstructor.from_pretrained(arguments.weights, device=arguments.device)
    request = ReconstructionRequest(
        arguments.image, mask_ratio=arguments.mask_ratio, seed=arguments.seed,
        strategy=arguments.strategy, fit=arguments.fit, image_size=arguments.image_size,
        view=arguments.view, bands=arguments.bands, value_range=arguments.range,
    )  # fmt: skip
    torch.set_num_threads(reconstructor.threads_for([request]))
    out = reconstructor(**vars(request))
    write(out, Path(arguments.out), arguments.show)
    print(
        f"{out.visible} of {out.patches} patches seen, {_quality(out)}, "
        f"{out.seconds * 1000:.0f} ms on {out.device}; wrote {arguments.out}"
    )
    return 0


def _quality(out: Reconstruction) -> str:
    if out.psnr is None:
        return "no PSNR in this view" if out.removed.any() else "nothing removed"
    told = ", told the answer's brightness and contrast" if out.view == "answer" else ""
    return f"{out.psnr:.2f} dB on removed patches{told}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mae reconstruct",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", help="a picture file")
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


def write(out: Reconstruction, folder: Path, show: Sequence[int] = ()) -> None:
    """Write the four panels, their row and the facts into a folder.

    Args:
        out: What is written.
        folder: Made if it is not there.
        show: See `Reconstruction.panels`.

    Raises:
        CheckpointError: If a file cannot be written.
        ConfigError: If there are no such channels to show.
    """
    for name, panel in {**out.panels(show), "panels": out.strip(show=show)}.items():
        write_atomically(folder / f"{name}.png", partial(panel.save, format="PNG"))
    text = json.dumps(out.facts(), indent=2) + "\n"
    write_atomically(folder / "metrics.json", lambda path: path.write_text(text))
