r"""Made pictures with exact masks, to compare encoders by: textured shapes on photographs.

    python -m benchmarks.made_sets PHOTOGRAPHS OUT
    mae evaluate segment mae-tiny OUT/segment head=linear freeze=true epochs=12 optim.lr=1e-2
    mae evaluate segment mae-tiny OUT/segment head=linear freeze=true epochs=12 optim.lr=1e-2 \
        init=random --out runs/random
    mae evaluate detect mae-tiny OUT/detect

A class is a shape and its texture; colours, sizes and turns are random, and shapes cover each
other. `segment` is laid out as ADE20K, with the background as the first class, `detect` as COCO.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae_core.data.datasets import find_images
from mae_core.images import fit_image, open_image

CLASSES = ("disk", "square", "triangle", "ring", "cross")

Mask = NDArray[np.bool_]


def outline(kind: str, side: int, rng: np.random.Generator) -> Mask:
    """(side, side) mask of a shape of random place, size and turn."""
    radius = side * rng.uniform(0.12, 0.28)
    x, y = rng.uniform(radius, side - radius, 2)
    turn = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[:side, :side] + 0.5
    u, v = (columns - x) / radius, (rows - y) / radius
    u, v = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
    distance = np.hypot(u, v)
    inside: dict[str, Mask] = {
        "disk": distance < 1,
        "square": np.maximum(abs(u), abs(v)) < 0.8,
        "triangle": (v < 0.5) & (v > 1.73 * abs(u) - 1),
        "ring": (distance < 1) & (distance > 0.5),
        "cross": (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 1),
    }
    return inside[kind]


def texture(kind: str, side: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(side, side, 3) levels of two random colours in the pattern of a class."""
    rows, columns = np.mgrid[:side, :side]
    period, phase = rng.uniform(7, 13), rng.uniform(0, 2 * np.pi)
    a, b = (np.sin(2 * np.pi * one / period + phase) for one in (columns, rows))
    patterns = {
        "disk": a > 0, "square": b > 0, "triangle": a * b > 0,
        "ring": np.hypot(a, b) > 1, "cross": rng.random((side, side)) > 0.5,
    }  # fmt: skip
    first, second = rng.uniform(0, 255, (2, 3))
    second = np.where(abs(first - second).max() < 60, 255 - first, second)
    colours = np.where(patterns[kind][:, :, None], first, second)
    return colours + rng.normal(0, 12, (side, side, 3))


def make(photograph: Path, side: int, rng: np.random.Generator) -> tuple[Image.Image, list[Any]]:
    """A picture and its objects, (number of the class, visible mask) each."""
    opened = fit_image(open_image(photograph), "crop", image_size=side, patch_size=1)
    pixels = np.array(opened, dtype=float)
    objects: list[tuple[int, Mask]] = []
    for number in rng.integers(0, len(CLASSES), int(rng.integers(1, 5))).tolist():
        mask = outline(CLASSES[number], side, rng)
        pixels[mask] = texture(CLASSES[number], side, rng)[mask]
        objects = [(one, other & ~mask) for one, other in objects] + [(number, mask)]
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image, [(number, mask) for number, mask in objects if mask.sum() >= 16]


def counts_of(mask: Mask) -> list[int]:
    """COCO's run lengths of a mask: column by column, zeros first."""
    flat = np.concatenate(([False], mask.flatten(order="F"), [not mask[-1, -1]]))
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(n) for n in np.diff(np.concatenate(([0], ends)))]


def main() -> None:
    """Make both sets."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=400, help="pictures to learn from; 400")
    parser.add_argument("--val", type=int, default=100, help="pictures to measure on; 100")
    parser.add_argument("--side", type=int, default=128, help="pixels; 128")
    args = parser.parse_args()
    photographs = find_images(args.photographs)
    chosen = np.random.default_rng(0).permutation(len(photographs))
    if len(photographs) < args.train + args.val:
        parser.error(f"{len(photographs)} photographs; {args.train + args.val} are needed")
    begin = 0
    for part, folder, count in (("train", "training", args.train), ("val", "validation", args.val)):
        images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
        for i in range(count):
            rng = np.random.default_rng((1 + (part == "val"), i))
            image, objects = make(photographs[chosen[begin + i]], args.side, rng)
            labels = np.ones((args.side, args.side), dtype=np.uint8)
            name = f"{i:05d}"
            for number, mask in objects:
                labels[mask] = 2 + number
                rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
                left, top = int(columns[0]), int(rows[0])
                annotations.append({
                    "id": len(annotations) + 1, "image_id": i, "category_id": 1 + number,
                    "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                    "area": int(mask.sum()), "iscrowd": 0,
                    "segmentation": {"size": [args.side, args.side], "counts": counts_of(mask)},
                })  # fmt: skip
            images.append({
                "id": i, "file_name": f"{name}.png", "width": args.side, "height": args.side,
            })  # fmt: skip
            for path in (
                args.out / f"segment/images/{folder}/{name}.png",
                args.out / f"detect/{part}/{name}.png",
            ):  # fmt: skip
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
            path = args.out / f"segment/annotations/{folder}/{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(path)
        categories = [{"id": 1 + i, "name": name} for i, name in enumerate(CLASSES)]
        values = {"images": images, "annotations": annotations, "categories": categories}
        (args.out / f"detect/{part}.json").write_text(json.dumps(values))
        begin += count
    (args.out / "segment/classes.txt").write_text("\n".join(("background", *CLASSES)) + "\n")
    print(f"wrote {args.out}/segment and {args.out}/detect: {args.train} + {args.val} pictures")


if __name__ == "__main__":
    main()
