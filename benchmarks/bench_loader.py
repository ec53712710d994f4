"""Does data keep up: the loader alone beside a training step, on the same device, at 224 pixels.

    python -m benchmarks.bench_loader --folder PICTURES
    python -m benchmarks.bench_loader --models tiny --rounds 2 --batches 2 --out /tmp/look
    python -m benchmarks.bench_loader --folder PICTURES --device cuda --batch-size 256 \
        --batches 40 --steps-per-round 20 --workers 16 --compile

The loader gives batches to nobody: its images per second are counted once its look-ahead is
full. Sources: the folder with each picture decoded every time, the pack of it (on a GPU
resident there, and once more with its regions travelling), and, where `datasets` is installed,
tar shards of it. A step is bench_train's: forward, backward and fused AdamW in bfloat16 autocast
at a mask ratio of 75 %. All of them run in every round, in shuffled order; medians are
reported, and a ratio is the median of the rounds' ratios, with its quartiles. Above 1 the loader
is faster than the step; as both share a CPU's cores, only well above 1 does the step not wait.

Writes a dated Markdown file and the numbers as JSON into benchmarks/results/.
"""

import argparse
import importlib.util
import random
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import reports
from benchmarks.bench_reconstruct import Run, quartiles
from benchmarks.bench_train import ours, random_images
from mae_core.config import PRESETS, DataConfig
from mae_core.data.datasets import find_images
from mae_core.data.loader import BatchLoader, Dataset, open_dataset

SIDE = 224
# Batches before the timed ones: more than the loader prepares ahead.
WARM_BATCHES = 6
# Pictures that are drawn where no folder is given, and their size.
GENERATED, WIDTH, HEIGHT = 512, 500, 375

# Runs once and says how many images it did in a second.
Speed = Callable[[], float]


def gather_pictures(args: argparse.Namespace, folder: Path) -> None:
    """Fill a folder with links to the pictures to load, or with drawn ones."""
    folder.mkdir()
    if args.folder:
        for i, path in enumerate(find_images(args.folder)[: args.pictures]):
            (folder / f"{i:06d}{path.suffix}").symlink_to(path.resolve())
        return
    rng = np.random.default_rng(0)
    for i in range(min(GENERATED, args.pictures)):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        picture = coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i:06d}.jpg", quality=90)


def open_sources(args: argparse.Namespace, work: Path) -> dict[str, tuple[Dataset, DataConfig]]:
    """What is loaded from, by name."""
    folder = work / "pictures"
    gather_pictures(args, folder)
    base = DataConfig(short_side=args.short_side, workers=args.workers)
    decoded = replace(base, folder=str(folder), decode="epoch")
    packed = replace(base, folder=str(folder))
    pack = open_dataset(packed, work / "cache")
    sources = {"folder, decoded each epoch": (open_dataset(decoded, work), decoded)}
    if args.device == "cpu":
        sources["pack"] = (pack, packed)
    else:
        sources["pack, resident on the device"] = (pack, replace(packed, resident=True))
        sources["pack, regions travel"] = (pack, packed)
    if importlib.util.find_spec("datasets"):
        shards = replace(base, shards=str(write_shards(folder, work)))
        sources["shards"] = (open_dataset(shards, work), shards)
    return sources


def write_shards(folder: Path, work: Path) -> Path:
    """Four tar files of the pictures of the commonest suffix; returns their pattern."""
    paths = find_images(folder)
    suffixes = [path.suffix for path in paths]
    commonest = max(set(suffixes), key=suffixes.count)
    paths = [path for path in paths if path.suffix == commonest]
    for i in range(4):
        with tarfile.open(work / f"shard-{i}.tar", "w", dereference=True) as tar:
            for path in paths[i::4]:
                tar.add(path, path.name)
    return work / "shard-{0..3}.tar"


def loading(source: Dataset, config: DataConfig, args: argparse.Namespace) -> Speed:
    """The loader alone."""
    loader = BatchLoader(
        source, config, batch_size=args.batch_size, seed=0, mean=(0.5,) * 3, std=(0.25,) * 3,
        device=torch.device(args.device),
    )  # fmt: skip

    def speed() -> float:
        # Without an end in sight, a pack goes to the device.
        batches = loader.batches(0, 10**9, lambda step: SIDE)
        for _ in islice(batches, WARM_BATCHES):
            pass
        wait_for(args.device)
        begun = time.perf_counter()
        for _ in islice(batches, args.batches):
            pass
        wait_for(args.device)
        seconds = time.perf_counter() - begun
        batches.close()
        return float(args.batches * args.batch_size / seconds)

    return speed


def stepping(run: Run, args: argparse.Namespace) -> Speed:
    """Training steps on pictures that are there already."""

    def speed() -> float:
        wait_for(args.device)
        begun = time.perf_counter()
        run()
        wait_for(args.device)
        seconds = time.perf_counter() - begun
        return float(args.steps_per_round * args.batch_size / seconds)

    return speed


def wait_for(device: str) -> None:
    """Until a GPU has done all that it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


def measure(runs: dict[str, Speed], args: argparse.Namespace) -> dict[str, list[float]]:
    """Images per second of all runs in every round, each round in an order of its own."""
    order, shuffle = list(runs), random.Random(0)
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(args.warmup + args.rounds):
        shuffle.shuffle(order)
        for name in order:
            speed = runs[name]()
            if i >= args.warmup:
                speeds[name].append(speed)
    return speeds


def summary(values: list[float]) -> dict[str, Any]:
    """Median and quartiles."""
    return {"median": statistics.median(values), "quartiles": quartiles(values)}


def bench(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Time every source and every model, and compare them."""
    sources = open_sources(args, work)
    runs = {name: loading(*source, args) for name, source in sources.items()}
    for model in args.models:
        config = PRESETS[model]
        runs[model] = stepping(ours(config, random_images(config, args), args), args)
    speeds = measure(runs, args)
    ratios = {
        name: {
            model: summary([a / b for a, b in zip(speeds[name], speeds[model], strict=True)])
            for model in args.models
        }
        for name in sources
    }
    speed_of = {name: summary(values) for name, values in speeds.items()}
    return {
        "pictures": len(find_images(work / "pictures")),
        "loader": {name: {**speed_of[name], "ratios": ratios[name]} for name in sources},
        "step": {model: speed_of[model] for model in args.models},
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    step, loader = report["step"], report["loader"]
    lines = [
        f"# Loader and training step, {report['date']}",
        "",
        f"`{report['command']}`",
        "",
        f"{report['device']}, {report['threads']} threads, {report['cores']} cores, load before "
        f"{report['load_before']:.1f}; {report['versions']}. Batch {report['batch_size']}, {SIDE} "
        f"pixels; {report['pictures']} {report['origin']}, shorter side at most "
        f"{report['short_side']}; {report['workers']} workers; "
        f"{report['rounds']} interleaved rounds.",
        "",
        "| training step | images/s | quartiles |",
        "|---|---|---|",
        *(f"| {name} | {spread(row, 0, ' | ')} |" for name, row in step.items()),
        "",
        f"| loader alone | images/s | quartiles | {' | '.join(f'over {m}' for m in step)} |",
        "|---|---|---|" + "---|" * len(step),
    ]
    for name, row in loader.items():
        ratios = " | ".join(f"{spread(row['ratios'][model], 2, ' (')})" for model in step)
        lines.append(f"| {name} | {spread(row, 0, ' | ')} | {ratios} |")
    return "\n".join([*lines, ""])


def spread(row: dict[str, Any], digits: int, between: str) -> str:
    """A median and its quartiles."""
    low, high = row["quartiles"]
    return f"{row['median']:.{digits}f}{between}{low:.{digits}f} to {high:.{digits}f}"


def parse_args(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time the loader, beside a training step.")
    parser.add_argument("--folder", default="", help="pictures to load; drawn ones if not given")
    parser.add_argument("--pictures", type=int, default=2000, help="take at most so many")
    parser.add_argument("--short-side", type=int, default=256)
    parser.add_argument("--models", nargs="+", choices=PRESETS, default=["tiny", "small", "base"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=8, help="loaded in a round")
    parser.add_argument("--steps-per-round", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, at least 2")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before them")
    parser.add_argument("--workers", type=int, default=DataConfig.workers)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="torch's own choice if not given")
    parser.add_argument("--compile", action="store_true", help="compile the models' blocks")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args(arguments)


def conditions(args: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """What the figures depend on, for the report."""
    return {
        **reports.conditions("bench_loader", arguments, args.device, ("torch", "pillow")),
        "origin": "pictures of a folder" if args.folder else f"drawn pictures, {WIDTH}x{HEIGHT}",
        "short_side": args.short_side,
        "batch_size": args.batch_size,
        "workers": args.workers,
        "rounds": args.rounds,
    }


def main(arguments: Sequence[str]) -> None:
    """Measure, print and write."""
    args = parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    report = conditions(args, arguments)
    with tempfile.TemporaryDirectory() as work:
        report.update(bench(args, Path(work)))
    page = markdown(report)
    reports.write(report, page, f"loader-{args.device}", args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
