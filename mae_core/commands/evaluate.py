"""Measure how well a model rebuilds the images of a folder: mae evaluate WEIGHTS FOLDER.

    mae evaluate mae-tiny IMAGES --mask-ratio 0.75 --seed 0
    mae evaluate runs/mine IMAGES --strategy block --json

prints the loss, PSNR and SSIM of removed patches with their spread over the images,
beside the mean colour and OpenCV's Telea inpainting under the same masks (not with
--no-baselines). The model runs in float32. Weights trained on normalised pixels are measured
with brightness and contrast estimated from visible patches.

PSNR is the mean of the images' own, each at most 100 dB; pooled, it is that of the mean squared
error of all of them. Files that cannot be read are named; --json has all of them, and the figures
of each image (null for what is not a number).
"""

import argparse
import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mae_core.commands.entry import add_measurement_flags
from mae_core.data.datasets import shown
from mae_core.evaluation.reconstruction import (
    MAX_PSNR,
    FittedImages,
    Summary,
    evaluate_reconstruction,
    summarize,
)
from mae_core.images import FITS
from mae_core.model.masking import STRATEGIES
from mae_core.reconstruct import Reconstructor
from mae_core.weights.registry import load, weights_name

# Decimals of each figure in the table, and unreadable files that it names.
_DIGITS = {"loss": 3, "psnr": 2, "ssim": 3}
_NAMED = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # In the precision of every figure that is measured during training.
    reconstructor = Reconstructor(
        load(args.weights), weights_name(args.weights), device=args.device,
        precision="float32", in_place=True,
    )  # fmt: skip
    config = reconstructor.config
    images = FittedImages(
        args.folder, config, args.fit, args.image_size, args.bands, args.range,
    )  # fmt: skip
    figures = evaluate_reconstruction(
        reconstructor.model, images, mask_ratio=args.mask_ratio, seed=args.seed,
        strategy=args.strategy, baselines=args.baselines,
    )  # fmt: skip
    facts = {
        "weights": reconstructor.name, "pictures": len(images.names), "files": len(images),
        "device": str(reconstructor.device), "precision": reconstructor.precision,
        "mask_ratio": args.mask_ratio, "strategy": args.strategy, "seed": args.seed,
        "fit": args.fit, "image_size": args.image_size or config.image_size,
    }  # fmt: skip
    unreadable, methods = [shown(name) for name in images.unreadable], summarize(figures)
    if not args.json:
        print(_table(facts, unreadable, methods))
        return 0
    report = {
        **facts,
        "unreadable": unreadable,
        "methods": {
            method: {
                name: {key: value for key, value in vars(summary).items() if value is not None}
                for name, summary in summaries.items()
            }
            for method, summaries in methods.items()
        },
        "not_finite": {
            method: {name: sum(not math.isfinite(v) for v in values) for name, values in of.items()}
            for method, of in figures.items()
        },
        "rows": [
            {"file": shown(file)} | {
                method: {
                    name: values[i] if math.isfinite(values[i]) else None
                    for name, values in of.items()
                }
                for method, of in figures.items()
            }
            for i, file in enumerate(images.names)
        ],
    }  # fmt: skip
    print(json.dumps(report, indent=2))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mae evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", help="name, .safetensors file or folder of a run")
    parser.add_argument("folder", help="folder of images")
    parser.add_argument("--mask-ratio", type=float, default=0.75, help="fraction removed")
    parser.add_argument("--seed", type=int, default=0, help="image i gets seed + i")
    parser.add_argument("--strategy", choices=STRATEGIES, default="random")
    parser.add_argument("--fit", choices=FITS, default="crop")
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="the model's own if not given"
    )
    add_measurement_flags(parser)
    parser.add_argument(
        "--no-baselines", dest="baselines", action="store_false", help="measure the model only"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _table(
    facts: Mapping[str, Any],
    unreadable: Sequence[str],
    methods: Mapping[str, Mapping[str, Summary]],
) -> str:
    lines = [", ".join(f"{key} {value}" for key, value in facts.items())]
    if unreadable:
        named = ", ".join(unreadable[:_NAMED]) + (" …" if len(unreadable) > _NAMED else "")
        lines.append(
            f"{facts['pictures']} of {facts['files']} images, {len(unreadable)} unreadable: {named}"
        )
    heads = ("loss", "PSNR (dB)", "SSIM", "pooled (dB)")
    lines += ["", f"{'removed patches':<16}{'n':>7}" + "".join(f"{head:>16}" for head in heads)]
    for method, summaries in methods.items():
        cells = [
            f"{summaries[name].mean:.{digits}f} ± {summaries[name].std:.{digits}f}"
            if name in summaries
            else "-"
            for name, digits in _DIGITS.items()
        ]
        psnr = summaries.get("psnr")
        cells.append(f"{psnr.pooled:.2f}" if psnr else "-")
        lines.append(
            f"{method:<16}{psnr.n if psnr else 0:>7}" + "".join(f"{cell:>16}" for cell in cells)
        )
        if psnr and psnr.capped:
            lines.append(f"  of which {psnr.capped} without error, taken as {MAX_PSNR:g} dB")
    return "\n".join(lines)
