"""Measure a model: python -m mae_core.evaluate reconstruction WEIGHTS FOLDER.

    python -m mae_core.evaluate reconstruction mae-tiny PICTURES --mask-ratio 0.75 --seed 0
    python -m mae_core.evaluate reconstruction runs/mine PICTURES --strategy block --json

prints the loss, PSNR and SSIM of removed patches with their spread over the pictures,
beside the mean colour and OpenCV's Telea inpainting on the same masks. Weights trained on
normalised pixels are measured with brightness and contrast estimated from visible patches.
"""

import argparse
import dataclasses
import json
import logging
from collections.abc import Sequence
from typing import Any

from mae_core.entry import run_entry
from mae_core.evaluation.reconstruction import (
    Figures,
    evaluate_reconstruction,
    load_pictures,
)
from mae_core.images import FITS
from mae_core.masking import STRATEGIES
from mae_core.reconstruction import Reconstructor


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    reconstructor = Reconstructor.from_pretrained(arguments.weights, device=arguments.device)
    config = reconstructor.config
    pictures = load_pictures(arguments.folder, config, arguments.fit, arguments.image_size)
    figures = evaluate_reconstruction(
        reconstructor.model, pictures, mask_ratio=arguments.mask_ratio, seed=arguments.seed,
        strategy=arguments.strategy,
    )  # fmt: skip
    facts = {
        "weights": reconstructor.name, "pictures": len(pictures),
        "device": str(reconstructor.device), "precision": reconstructor.precision,
        "mask_ratio": arguments.mask_ratio, "strategy": arguments.strategy,
        "seed": arguments.seed, "fit": arguments.fit,
        "image_size": arguments.image_size or config.image_size,
    }  # fmt: skip
    print(_as_json(facts, figures) if arguments.json else _as_table(facts, figures))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mae_core.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    command = kinds.add_parser("reconstruction", help="removed-patch loss, PSNR and SSIM")
    command.add_argument("weights", help="name, .safetensors file or folder of a run")
    command.add_argument("folder", help="folder of pictures")
    command.add_argument("--mask-ratio", type=float, default=0.75, help="fraction removed")
    command.add_argument("--seed", type=int, default=0, help="picture i gets seed + i")
    command.add_argument("--strategy", choices=STRATEGIES, default="random")
    command.add_argument("--fit", choices=FITS, default="crop")
    command.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="the model's own if not given"
    )
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _as_json(facts: dict[str, Any], figures: dict[str, Figures]) -> str:
    methods = {
        name: {key: dataclasses.asdict(value) for key, value in method.summary().items()}
        for name, method in figures.items()
    }
    return json.dumps({**facts, "methods": methods}, indent=2)


def _as_table(facts: dict[str, Any], figures: dict[str, Figures]) -> str:
    lines = [", ".join(f"{key} {value}" for key, value in facts.items()), ""]
    lines.append(f"{'removed patches':<16}{'loss':>16}{'PSNR (dB)':>16}{'SSIM':>16}")
    for name, method in figures.items():
        summary = method.summary()
        cells = [
            f"{summary[key].mean:.{digits}f} ± {summary[key].std:.{digits}f}"
            if key in summary
            else "-"
            for key, digits in (("loss", 3), ("psnr", 2), ("ssim", 3))
        ]
        lines.append(f"{name:<16}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    run_entry(main)
