"""Rebuild a picture without a browser: python -m mae_core.reconstruct IMAGE --out DIR.

    python -m mae_core.reconstruct photo.jpg --mask-ratio 0.75 --seed 2 --out panels

writes `original.png masked.png reconstruction.png pasted.png panels.png metrics.json`.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mae_core.checkpoint import write_atomically
from mae_core.entry import run_entry
from mae_core.images import FITS, decode_image
from mae_core.masking import STRATEGIES
from mae_core.reconstruction import Reconstruction, Reconstructor


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    # The picture first: a mistyped name should not wait for the weights.
    image = decode_image(arguments.image)
    reconstructor = Reconstructor.from_pretrained(arguments.weights, device=arguments.device)
    out = reconstructor(
        image, mask_ratio=arguments.mask_ratio, seed=arguments.seed,
        strategy=arguments.strategy, fit=arguments.fit,
    )  # fmt: skip
    write(out, Path(arguments.out))
    psnr = "nothing removed" if out.psnr is None else f"{out.psnr:.2f} dB on removed patches"
    print(
        f"{out.visible} of {out.patches} patches seen, {psnr}, {out.seconds * 1000:.0f} ms on "
        f"{out.device}; wrote {arguments.out}"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mae_core.reconstruct",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", help="a picture file")
    parser.add_argument("--mask-ratio", type=float, default=0.75, help="fraction removed, 0 to 1")
    parser.add_argument("--seed", type=int, default=0, help="of the mask")
    parser.add_argument("--strategy", choices=STRATEGIES, default="random")
    parser.add_argument("--fit", choices=FITS, default="crop")
    parser.add_argument("--weights", help="name, .safetensors file or folder of a run")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--out", required=True, help="folder to write to")
    return parser


def write(out: Reconstruction, folder: Path) -> None:
    """Write the four panels, their row and the facts into a folder.

    Raises:
        CheckpointError: If a file cannot be written.
    """
    for name, panel in {**out.panels(), "panels": out.strip()}.items():
        write_atomically(folder / f"{name}.png", partial(panel.save, format="PNG"))
    text = json.dumps(out.facts(), indent=2) + "\n"
    write_atomically(folder / "metrics.json", lambda path: path.write_text(text))


if __name__ == "__main__":
    run_entry(main)
