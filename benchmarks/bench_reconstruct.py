"""How long one picture takes: our model beside transformers' ViTMAE, one picture at a time.

    python -m benchmarks.bench_reconstruct
    python -m benchmarks.bench_reconstruct --presets tiny --rounds 3 --out /tmp/look

Every contestant gets the same picture and the same noise, and does the same work: patches,
mask, encoder, decoder, loss. Weights are random: time does not depend on them, and the tests
hold that both compute the same. All contestants are timed in every round, in shuffled order,
so that a slow moment of the machine falls on all of them; beside them, in the same rounds, a
plain matrix product says what the machine can do. Medians are reported; a ratio is the median
of the rounds' ratios, with its quartiles.

Writes a dated Markdown file and the numbers as JSON into benchmarks/results/.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import reports
from benchmarks.peers import transformers_mae
from mae_core import MaskedAutoencoder, ModelConfig, Reconstructor
from mae_core.config import PRESETS
from mae_core.model.losses import reconstruction_loss
from mae_core.model.mae import forward_flops
from mae_core.model.masking import mask_from_noise

MASK_RATIO = 0.75
# Whose versions matter.
PACKAGES = ("torch", "timm", "transformers")
# A product large enough that its rate is the machine's and not the call's.
MATMUL_SIDE = 2048
PRECISIONS = ("float32", "bfloat16")

Run = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """A contestant's time for one picture, in milliseconds, and how others compare to it.

    Attributes:
        preset: The model.
        who: `ours` or `transformers`.
        precision: Of the parameters.
        median: Milliseconds.
        quartiles: Milliseconds; half of the rounds lie between.
        gflops: GFLOP/s at the median.
        ratio: transformers' time over this one's, in the same precision; 1 for transformers.
        ratio_quartiles: Of the rounds' ratios.
    """

    preset: str
    who: str
    precision: str
    median: float
    quartiles: tuple[float, float]
    gflops: float
    ratio: float
    ratio_quartiles: tuple[float, float]


def ours(config: ModelConfig, precision: str, device: str, images: Tensor, noise: Tensor) -> Run:
    """Our model as the demo runs it."""
    torch.manual_seed(0)
    model = Reconstructor(MaskedAutoencoder(config), device=device, precision=precision).model

    def run() -> Tensor:
        output = model(images, mask_from_noise(noise, MASK_RATIO).to(device))
        return reconstruction_loss(output.pred, model.target(images), output.mask)

    return run


def theirs(config: ModelConfig, precision: str, device: str, images: Tensor, noise: Tensor) -> Run:
    """Transformers' ViTMAEForPreTraining of the same shape, as it comes."""
    peer = transformers_mae(config, MASK_RATIO)
    dtype = getattr(torch, precision)
    peer = peer.to(device, dtype).eval()
    return lambda: peer(images.to(dtype), noise=noise)


def matmul(precision: str, device: str) -> Run:
    """One square matrix product."""
    dtype = getattr(torch, precision)
    a, b = (torch.randn(MATMUL_SIDE, MATMUL_SIDE, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b


def time_rounds(runs: dict[str, Run], rounds: int, warmup: int, device: str) -> dict[str, Any]:
    """Milliseconds of every run in every round; each round in an order of its own."""
    order, shuffle = list(runs), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(warmup + rounds):
        shuffle.shuffle(order)
        for name in order:
            begun = time.perf_counter()
            runs[name]()
            if device != "cpu":
                torch.cuda.synchronize()
            if i >= warmup:
                times[name].append(1000 * (time.perf_counter() - begun))
    return times


def quartiles(values: list[float]) -> tuple[float, float]:
    """The first and third quartile."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def bench_preset(name: str, args: argparse.Namespace) -> tuple[list[Row], dict[str, float]]:
    """Time one model's contestants, and the matrix product beside them."""
    config, device = PRESETS[name], args.device
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(
        1, config.in_chans, config.image_size, config.image_size, generator=generator
    ).to(device)
    noise = torch.rand(1, config.grid_size**2, generator=generator)
    runs: dict[str, Run] = {}
    for precision in PRECISIONS:
        runs[f"ours {precision}"] = ours(config, precision, device, images, noise)
        runs[f"transformers {precision}"] = theirs(
            config, precision, device, images, noise.to(device)
        )
        runs[f"matmul {precision}"] = matmul(precision, device)
    times = time_rounds(runs, args.rounds, args.warmup, device)
    flops = forward_flops(config, (config.grid_size, config.grid_size), MASK_RATIO)
    rows = [
        row_of(name, who, precision, times, flops)
        for precision in PRECISIONS
        for who in ("ours", "transformers")
    ]
    rates = {
        precision: 2 * MATMUL_SIDE**3 / statistics.median(times[f"matmul {precision}"]) / 1e6
        for precision in PRECISIONS
    }
    return rows, rates


def row_of(preset: str, who: str, precision: str, times: dict[str, Any], flops: int) -> Row:
    """Sum up one contestant's times."""
    own = times[f"{who} {precision}"]
    ratios = [
        peer / mine for peer, mine in zip(times[f"transformers {precision}"], own, strict=True)
    ]
    median = statistics.median(own)
    return Row(
        preset, who, precision, median, quartiles(own), flops / median / 1e6,
        statistics.median(ratios), quartiles(ratios),
    )  # fmt: skip


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        f"# One picture, {report['date']}",
        "",
        f"`{report['command']}`",
        "",
        f"{report['device']}, {report['threads']} threads, load before "
        f"{report['load_before']:.1f}; {report['versions']}. Batch 1, mask ratio {MASK_RATIO}, "
        f"random weights, {report['rounds']} interleaved rounds; forward pass with loss.",
        "",
        "| model | | precision | median ms | quartiles | GFLOP/s | matmul GFLOP/s "
        "| times transformers' speed | quartiles |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        low, high = row["quartiles"]
        ratio_low, ratio_high = row["ratio_quartiles"]
        lines.append(
            f"| {row['preset']} | {row['who']} | {row['precision']} | {row['median']:.1f} "
            f"| {low:.1f} to {high:.1f} | {row['gflops']:.0f} "
            f"| {report['matmul_gflops'][row['preset']][row['precision']]:.0f} "
            f"| {row['ratio']:.2f} | {ratio_low:.2f} to {ratio_high:.2f} |"
        )
    return "\n".join([*lines, ""])


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time one picture, beside transformers.")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["base", "large"])
    parser.add_argument("--rounds", type=int, default=25, help="timed rounds, at least 2")
    parser.add_argument("--warmup", type=int, default=3, help="rounds before them")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="torch's own choice if not given")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    """Measure, print and write."""
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    report: dict[str, Any] = {
        **reports.conditions("bench_reconstruct", sys.argv[1:], args.device, PACKAGES),
        "rounds": args.rounds,
        "rows": [],
        "matmul_gflops": {},
    }
    for name in args.presets:
        rows, rates = bench_preset(name, args)
        report["rows"] += [asdict(row) for row in rows]
        report["matmul_gflops"][name] = rates
    page = markdown(report)
    reports.write(report, page, f"reconstruct-{args.device}", args.out)


if __name__ == "__main__":
    main()
