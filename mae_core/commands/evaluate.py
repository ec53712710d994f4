"""Measure a model: mae evaluate reconstruction WEIGHTS FOLDER.

    mae evaluate reconstruction mae-tiny PICTURES --mask-ratio 0.75 --seed 0
    mae evaluate reconstruction runs/mine PICTURES --strategy block --json

prints the loss, PSNR and SSIM of removed patches with their spread over the pictures,
beside the mean colour and OpenCV's Telea inpainting on the same masks (not with
--no-baselines). The model runs in float32. Weights trained on normalised pixels are measured
with brightness and contrast estimated from visible patches.

PSNR is the mean of the pictures' own, each at most 100 dB; pooled, it is that of the mean squared
error of all of them. Files that cannot be read are named; --json has all of them, and the figures
of each picture (null for what is not a number).
"""

import argparse
import dataclasses
import json
import logging
import math
from collections.abc import Sequence
from typing import Any

from mae_core.commands.entry import add_measurement_flags
from mae_core.data.datasets import shown
from mae_core.evaluation.reconstruction import (
    MAX_PSNR,
    Figures,
    FittedPictures,
    evaluate_reconstruction,
    summarize,
)
from mae_core.images import FITS
from mae_core.model.masking import STRATEGIES
from mae_core.reconstruct import Reconstructor

# Decimals of each figure in the table, and unreadable files that it names.
_DIGITS = {"loss": 3, "psnr": 2, "ssim": 3}
_NAMED = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # As every figure that is measured during training.
    reconstructor = Reconstructor.from_pretrained(
        arguments.weights, device=arguments.device, precision="float32"
    )
    config = reconstructor.config
    pictures = FittedPictures(
        arguments.folder, config, arguments.fit, arguments.image_size, arguments.bands,
        arguments.range,
    )  # fmt: skip
    figures = evaluate_reconstruction(
        reconstructor.model, pictures, mask_ratio=arguments.mask_ratio, seed=arguments.seed,
        strategy=arguments.strategy, baselines=arguments.baselines,
    )  # fmt: skip
    facts = {
        "weights": reconstructor.name, "pictures": len(pictures.names), "files": len(pictures),
        "device": str(reconstructor.device), "precision": reconstructor.precision,
        "mask_ratio": arguments.mask_ratio, "strategy": arguments.strategy,
        "seed": arguments.seed, "fit": arguments.fit,
        "image_size": arguments.image_size or config.image_size,
    }  # fmt: skip
    methods = {
        method: {name: dataclasses.asdict(summary) for name, summary in summaries.items()}
        for method, summaries in summarize(figures).items()
    }
    unreadable = [shown(name) for name in pictures.unreadable]
    if arguments.json:
        report = {
            **facts, "unreadable": unreadable, "methods": methods,
            "not_finite": {
                method: {name: sum(not math.isfinite(value) for value in values)
                         for name, values in of.columns().items()}
                for method, of in figures.items()
            },
            "rows": _rows([shown(name) for name in pictures.names], figures),
        }  # fmt: skip
        print(json.dumps(report, indent=2))
    else:
        print(_as_table(facts, unreadable, methods))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mae evaluate",
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
    add_measurement_flags(command)
    command.add_argument(
        "--no-baselines", dest="baselines", action="store_false", help="measure the model only"
    )
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _rows(names: Sequence[str], figures: dict[str, Figures]) -> list[dict[str, Any]]:
    """The figures of each picture; None for what is not a number, which JSON cannot hold."""
    return [
        {
            "file": name,
            **{
                method: {
                    figure: values[i] if math.isfinite(values[i]) else None
                    for figure, values in of.columns().items()
                }
                for method, of in figures.items()
            },
        }
        for i, name in enumerate(names)
    ]


def _as_table(
    facts: dict[str, Any], unreadable: Sequence[str], methods: dict[str, dict[str, Any]]
) -> str:
    lines = [", ".join(f"{key} {value}" for key, value in facts.items()), ""]
    if unreadable:
        named = ", ".join(unreadable[:_NAMED]) + (" …" if len(unreadable) > _NAMED else "")
        lines[1:] = [
            f"{facts['pictures']} of {facts['files']} pictures, {len(unreadable)} unreadable: "
            f"{named}",
            "",
        ]
    heads = ("loss", "PSNR (dB)", "SSIM", "pooled (dB)")
    lines.append(f"{'removed patches':<16}{'n':>7}" + "".join(f"{head:>16}" for head in heads))
    for method, summaries in methods.items():
        cells = [_cell(summaries.get(name), digits) for name, digits in _DIGITS.items()]
        psnr = summaries.get("psnr")
        cells.append(f"{psnr['pooled']:.2f}" if psnr else "-")
        n = psnr["n"] if psnr else 0
        lines.append(f"{method:<16}{n:>7}" + "".join(f"{cell:>16}" for cell in cells))
        if psnr and psnr["capped"]:
            lines.append(f"  of which {psnr['capped']} without error, taken as {MAX_PSNR:g} dB")
    return "\n".join(lines)


def _cell(summary: dict[str, Any] | None, digits: int) -> str:
    return f"{summary['mean']:.{digits}f} ± {summary['std']:.{digits}f}" if summary else "-"
