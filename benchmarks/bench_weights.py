"""Weights beside each other and beside inpainting, on a hold-out: the tables of a model card.

    python -m benchmarks.bench_weights HOLDOUT mae-tiny runs/mine
    python -m benchmarks.bench_weights HOLDOUT mae-tiny runs/mine --images 60 --out /tmp/look

PSNR, SSIM, seams and sharpness (`mae evaluate reconstruction`) of removed patches under six kinds
of masks, the same for all; and under random masks of 75 %:

* KID (Binkowski et al. 2018) between rebuilt and true patches, times 1000, as `mae-tiny`'s encoder
  sees them: the output of its sixth block for each removed patch of the whole pasted image,
  normalised to mean 0 and deviation 1. No network trained by others is needed. 0 is no difference;
  figures are comparable only with those of the same features. So weights have to be of 224 pixels
  in patches of 16.
* mesh: by how many dB the spectrum of reconstructions stands out at multiples of 1/16 cycle a
  pixel, the patches' frequency, over its neighbourhood and beyond that of the true images. 0 is no
  mesh.
* pattern: the power of the mean error over an image's removed patches, without their mean colours,
  over what it would be if the errors of patches had nothing in common (`common_pattern`). 1 is no
  common pattern.
* flicker: the standard deviation of a removed pixel over eight masks, in levels of 255.

Writes a dated Markdown file, the numbers as JSON, and a grid of pictures for each kind of mask into
benchmarks/results/, or `--out`.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import layer_norm

from benchmarks import reports
from mae_core.errors import ConfigError, MAEError
from mae_core.evaluation.reconstruction import (
    evaluate_reconstruction,
    load_images,
    summarize,
)
from mae_core.images import DecodedImage, to_tensor
from mae_core.metrics import compose, kernel_distance
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import draw_mask
from mae_core.model.patches import patchify, pixel_mask
from mae_core.reconstruct import Reconstructor, rebuild
from mae_core.weights.registry import load, weights_name

PACKAGES = ("torch", "timm", "opencv-python-headless")

MASKS = {
    "25 %": ("random", 0.25), "50 %": ("random", 0.5), "75 %": ("random", 0.75),
    "90 %": ("random", 0.9), "50 % in blocks": ("block", 0.5), "75 % grid": ("grid", 0.75),
}  # fmt: skip
FIGURES = {
    "psnr": ("PSNR in dB", 2), "ssim": ("SSIM", 3), "seams": ("Seams in levels", 1),
    "seams_pasted": ("Seams of the pasted image in levels", 1), "sharpness": ("Sharpness", 2),
}  # fmt: skip

# Whose encoder KID looks through, and which block of it.
FEATURES, BLOCK = "mae-tiny", 5
# Patches in one of the sets that KID is the mean of, and their number.
SET, SETS = 1000, 20

# Masks that flicker is measured over, and images.
FLICKER_MASKS, FLICKER_IMAGES = 8, 40

GRID_IMAGES = 6


@torch.inference_mode()
def rebuilt_images(
    model: MaskedAutoencoder, images: Sequence[DecodedImage], seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Originals, reconstructions (N, 3, H, W) and masks (N, L) under random masks of 75 %."""
    config, parts = model.config, []
    for begin in range(0, len(images), 20):
        several = images[begin : begin + 20]
        batch = torch.cat([to_tensor(one, config.mean, config.std) for one in several])
        seeds = range(seed + begin, seed + begin + len(several))
        mask = draw_mask("random", len(batch), model.grid_of(batch), 0.75, seed=seeds)
        found = rebuild(model, batch, mask)
        parts.append((found.original, found.pixels, mask.mask))
    originals, pixels, masks = map(torch.cat, zip(*parts, strict=True))
    return originals, pixels.clamp(0, 1), masks


@torch.inference_mode()
def patch_features(model: MaskedAutoencoder, images: Tensor, masks: Tensor) -> Tensor:
    """(n, D) of the removed patches of (N, 3, H, W) images in 0..1."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.config.mean, model.config.std))
    found = []
    for image, mask in zip(images, masks, strict=True):
        (tokens,) = model.features_of_blocks((image[None] - mean) / std, [BLOCK])
        found.append(layer_norm(tokens[0, 1:][mask.bool()], tokens.shape[-1:]))
    return torch.cat(found)


def mesh_of(images: Tensor) -> list[float]:
    """Power at 1/16 to 8/16 cycles a pixel over that beside it, in dB, as a mean over images."""
    side = images.shape[-1]
    window = torch.hann_window(side, periodic=False)
    grey = images.mean(dim=1)
    grey = (grey - grey.mean(dim=(1, 2), keepdim=True)) * window * window[:, None]
    power = torch.fft.fft2(grey).abs().square().mean(dim=0)
    # Both axes; what is across them is summed near 0, where a regular mesh is.
    lines = power[:4].sum(dim=0) + power[:, :4].sum(dim=1)
    found = []
    for k in range(1, 9):
        at = k * side // 16
        around = torch.cat((lines[at - 6 : at - 2], lines[at + 3 : at + 7]))
        found.append(10 * torch.log10(lines[at] / around.log().mean().exp()).item())
    return found


def common_pattern(pred: Tensor, target: Tensor, mask: Tensor, channels: int) -> Tensor:
    """What the errors of an image's removed patches have in common.

    The power of their mean, without each patch's mean colour, over what it would be if they had
    nothing in common: about 1 then, and n if n patches have the same error.

    Args:
        pred: (N, L, P).
        target: (N, L, P).
        mask: (N, L), 1 = removed; at least one patch removed.
        channels: Of the image; a patch's values are in the order row, column, channel.

    Returns:
        (N,) float32.
    """
    errors = (pred.float() - target.float()).unflatten(2, (-1, channels))
    errors = (errors - errors.mean(dim=2, keepdim=True)).flatten(2) * mask[:, :, None]
    common = errors.sum(dim=1).square().mean(dim=1)
    alone = errors.square().sum(dim=1).mean(dim=1)
    ratio: Tensor = common / alone.clamp(min=1e-12)
    return ratio


def flicker_of(model: MaskedAutoencoder, images: Sequence[DecodedImage]) -> float:
    """The standard deviation over masks of pixels that at least two of them remove, in levels."""
    total, square, count = 0.0, 0.0, 0.0
    patch = model.config.patch_size
    for number in range(FLICKER_MASKS):
        originals, pixels, masks = rebuilt_images(model, images, 1000 * (number + 1))
        h, w = (side // patch for side in originals.shape[-2:])
        removed = pixel_mask(masks, (h, w), patch)
        total = total + pixels * removed
        square = square + pixels.square() * removed
        count = count + removed
    counted = torch.as_tensor(count) >= 2
    mean = total / torch.as_tensor(count).clamp(min=1)
    variance = (square / torch.as_tensor(count).clamp(min=1) - mean.square()).clamp(min=0)
    return float(255 * variance.mean(dim=1, keepdim=True)[counted].mean().sqrt())


def measure(name: str, images: Sequence[DecodedImage], *, baselines: bool) -> dict[str, Any]:
    """All figures of weights; of Telea inpainting too with `baselines`."""
    model, reference = load(name).eval(), load(FEATURES).eval()
    for field in ("image_size", "patch_size"):
        ours, needed = (getattr(of.config, field) for of in (model, reference))
        if ours != needed:
            raise ConfigError(f"{name} has {field} {ours}; give weights that have {needed}")
    found: dict[str, Any] = {}
    for title, (strategy, ratio) in MASKS.items():
        figures = evaluate_reconstruction(
            model, images, mask_ratio=ratio, strategy=strategy, baselines=baselines
        )
        found[title] = {
            method: {figure: one.mean for figure, one in of.items()}
            for method, of in summarize(figures).items()
        }
        print(f"{name}, {title}: {found[title]['model']['psnr']:.2f} dB", file=sys.stderr)
    originals, pixels, masks = rebuilt_images(model, images, 0)
    grid_size = model.grid_of(originals)
    pasted = compose(originals, pixels, pixel_mask(masks, grid_size, model.config.patch_size))
    true, ours = (patch_features(reference, of, masks) for of in (originals, pasted))
    generator = torch.Generator().manual_seed(0)
    sets = [
        [of[torch.randperm(len(of), generator=generator)[:SET]] for of in (true, ours)]
        for _ in range(SETS)
    ]
    distances = [kernel_distance(*two).item() for two in sets]
    mesh = [ours - true for ours, true in zip(mesh_of(pixels), mesh_of(originals), strict=True)]
    patches = (patchify(of, model.config.patch_size) for of in (pixels, originals))
    pattern = common_pattern(*patches, masks, channels=3).mean().item()
    flicker = flicker_of(model, images[:FLICKER_IMAGES])
    return found | {
        "kid": [1000 * np.mean(distances), 1000 * np.std(distances)],
        "mesh": mesh, "pattern": pattern, "flicker": flicker,
    }  # fmt: skip


def draw(names: Sequence[str], images: Sequence[DecodedImage], out: Path) -> None:
    """A grid for each kind of mask: original, masked, and what each of the weights makes of it."""
    models = [Reconstructor(load(name), name, precision="float32") for name in names]
    for title, (strategy, ratio) in MASKS.items():
        rows = []
        for seed, image in enumerate(images[:GRID_IMAGES]):
            found = [
                one(image, mask_ratio=ratio, seed=seed, strategy=strategy).panels()
                for one in models
            ]
            panels = [found[0]["original"], found[0]["masked"], *(one["pasted"] for one in found)]
            rows.append(np.concatenate([np.asarray(panel) for panel in panels], axis=1))
        stem = title.replace(" %", "").replace(" ", "-")
        Image.fromarray(np.concatenate(rows)).save(out / f"weights-{stem}.png")


def page_of(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    weights: Mapping[str, Any] = report["weights"]
    first = next(iter(weights.values()))
    lines = [
        "# Weights beside each other", "", f"`{report['command']}`, {report['images']} images, "
        f"{report['device']}, {report['versions']}", "",
    ]  # fmt: skip
    for figure, (title, digits) in FIGURES.items():
        rows = {name: [of[mask]["model"][figure] for mask in MASKS] for name, of in weights.items()}
        if "telea" in first["75 %"]:
            rows["Telea inpainting"] = [first[mask]["telea"][figure] for mask in MASKS]
        lines += [f"{title}:", "", f"| | {' | '.join(MASKS)} |", "|---" * (len(MASKS) + 1) + "|"]
        lines += [
            f"| {name} | {' | '.join(f'{value:.{digits}f}' for value in values)} |"
            for name, values in rows.items()
        ]
        lines.append("")
    header = "| | KID x 1000 | mesh in dB at 1/16 to 8/16 | pattern | flicker |"
    lines += ["At 75 %:", "", header, "|---|---|---|---|---|"]
    for name, of in weights.items():
        mesh = " ".join(f"{value:.1f}" for value in of["mesh"])
        lines.append(
            f"| {name} | {of['kid'][0]:.1f} ± {of['kid'][1]:.1f} | {mesh} | {of['pattern']:.1f} "
            f"| {of['flicker']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("holdout", type=Path, help="folder of images")
    parser.add_argument("weights", nargs="+", help="names, files or folders of runs")
    parser.add_argument("--images", type=int, default=None, help="the first so many; all")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    # Names say enough: the places are those of this machine.
    names = [weights_name(name) for name in args.weights]
    if len(set(names)) < len(names):
        parser.error(f"weights have to have names of their own, and these are {', '.join(names)}")
    arguments = ["HOLDOUT", *names, *(["--images", str(args.images)] if args.images else [])]
    report = reports.conditions("bench_weights", arguments, "cpu", PACKAGES)
    try:
        images = load_images(args.holdout, load(FEATURES).config)[: args.images]
        report |= {"images": len(images), "weights": {}}
        for name, weights in zip(names, args.weights, strict=True):
            report["weights"][name] = measure(weights, images, baselines=name == names[0])
    except MAEError as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    draw(args.weights, images, args.out)
    reports.write(report, page_of(report), "weights", args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
