"""Whether pictures are rebuilt faster together: one forward pass of several, and one each.

    python -m benchmarks.bench_batch
    python -m benchmarks.bench_batch --models mae-tiny --batches 8 --rounds 5 --out /tmp/look

Everything that a page does with a decoded picture is timed: it is fitted, masked, run and scored.
Both ways have the same pictures and seeds and are timed in every round, in an order of its own, so
that a slow moment of the machine falls on both. The ratio is the time for each picture alone over
that in a batch: above 1, batches pay. It is the median of the rounds' ratios, with its quartiles.

A model is bundled weights by name, or a preset with random weights. Writes a dated Markdown file
and the numbers as JSON into benchmarks/results/.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks import reports
from benchmarks.bench_reconstruct import quartiles
from mae_core import MaskedAutoencoder, Reconstructor
from mae_core.config import PRESETS
from mae_core.reconstruct import ReconstructionRequest
from mae_core.weights.registry import load

PACKAGES = ("torch", "timm")
SIDE = 320

Ways = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Row:
    """One model and one size of batch.

    Attributes:
        model: Its name.
        precision: Of its parameters.
        batch: Pictures of a batch.
        alone: Milliseconds for each picture, one by one; median.
        together: Milliseconds for each picture of a batch; median.
        ratio: `alone` over `together`, median of the rounds.
        ratio_quartiles: Of the rounds' ratios.
    """

    model: str
    precision: str
    batch: int
    alone: float
    together: float
    ratio: float
    ratio_quartiles: tuple[float, float]


def reconstructor_of(name: str, device: str, precision: str) -> Reconstructor:
    """Bundled weights, or a preset with random ones."""
    if name not in PRESETS:
        model = load(name)
        return Reconstructor(model, name, device=device, precision=precision)
    torch.manual_seed(0)
    model = MaskedAutoencoder(PRESETS[name])
    return Reconstructor(model, f"random {name}", device=device, precision=precision)


def requests_of(count: int) -> list[ReconstructionRequest]:
    """Different pictures under different masks."""
    pictures = [Image.effect_noise((SIDE, SIDE), 20 + i).convert("RGB") for i in range(count)]
    return [ReconstructionRequest(picture, seed=i) for i, picture in enumerate(pictures)]


def time_round(ways: Ways, order: Sequence[str], device: str) -> dict[str, float]:
    """Milliseconds of each way."""
    times = {}
    for way in order:
        begun = time.perf_counter()
        ways[way]()
        if device != "cpu":
            torch.cuda.synchronize()
        times[way] = 1000 * (time.perf_counter() - begun)
    return times


def bench(reconstructor: Reconstructor, batch: int, args: argparse.Namespace) -> Row:
    """Time one model with batches of one size."""
    requests = requests_of(batch)
    ways: Ways = {
        "alone": lambda: [reconstructor.batch([request]) for request in requests],
        "together": lambda: reconstructor.batch(requests),
    }
    order, shuffle = list(ways), random.Random(0)
    rounds = []
    for i in range(args.warmup + args.rounds):
        shuffle.shuffle(order)
        times = time_round(ways, order, args.device)
        if i >= args.warmup:
            rounds.append(times)
    ratios = [times["alone"] / times["together"] for times in rounds]
    alone, together = (
        statistics.median(times[way] for times in rounds) / batch for way in ("alone", "together")
    )
    return Row(
        reconstructor.name, reconstructor.precision, batch, alone, together,
        statistics.median(ratios), quartiles(ratios),
    )  # fmt: skip


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        f"# Pictures together, {report['date']}",
        "",
        f"`{report['command']}`",
        "",
        f"{report['device']}, {report['threads']} threads, load before "
        f"{report['load_before']:.1f}; {report['versions']}. Pictures of {SIDE} x {SIDE} cut to "
        f"the model's size, mask ratio 0.75, {report['rounds']} interleaved rounds.",
        "",
        "| model | precision | batch | ms a picture, alone | ms a picture, in a batch "
        "| alone / in a batch | quartiles |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        low, high = row["ratio_quartiles"]
        lines.append(
            f"| {row['model']} | {row['precision']} | {row['batch']} | {row['alone']:.1f} "
            f"| {row['together']:.1f} | {row['ratio']:.2f} | {low:.2f} to {high:.2f} |"
        )
    return "\n".join([*lines, ""])


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time pictures together and one by one.")
    parser.add_argument("--models", nargs="+", default=["mae-tiny", "base"])
    parser.add_argument("--batches", nargs="+", type=int, default=[2, 4, 8, 16])
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds, at least 2")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before them")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="torch's own choice if not given")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


def main() -> None:
    """Measure, print and write."""
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    report: dict[str, Any] = {
        **reports.conditions("bench_batch", sys.argv[1:], args.device, PACKAGES),
        "rounds": args.rounds,
        "rows": [],
    }
    for name in args.models:
        reconstructor = reconstructor_of(name, args.device, args.precision)
        report["rows"] += [asdict(bench(reconstructor, n, args)) for n in args.batches]
    reports.write(report, markdown(report), f"batch-{args.device}", args.out)


if __name__ == "__main__":
    main()
