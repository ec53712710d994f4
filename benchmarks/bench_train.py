"""How fast training is: our step beside transformers' ViTMAE, and what the sparse encoder saves.

    python -m benchmarks.bench_train
    python -m benchmarks.bench_train --models tiny --rounds 2 --batch-size 4 --out /tmp/look
    python -m benchmarks.bench_train --device cuda --models base large --batch-size 256 \
        --steps-per-round 10 --warmup 3 --compile

A step is forward, backward and fused AdamW, in bfloat16 autocast, on one batch of random
pictures of 224 pixels at 75 %; each contestant draws its masks itself. Ours is put together
from the parts the trainer uses; transformers' is a plain loop over the model as it comes, and
once more with its attention spelled out (`eager`), which is what ours does on a CPU. Weights
are random: time does not depend on them, and the tests hold that both compute the same.

The second table is the paper's table 2: encoders that see visible patches only, beside one
that sees mask tokens too.

All contestants of a table run in every round, in shuffled order, so that a slow moment of the
machine falls on all of them; beside them, in the same rounds, a plain matrix product in
bfloat16 says what the machine can do. Medians are reported; a ratio is the median of the
rounds' ratios, with its quartiles.

Writes a dated Markdown file and the numbers as JSON into benchmarks/results/.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import reports
from benchmarks.bench_reconstruct import Run, quartiles, time_rounds
from benchmarks.peers import transformers_mae
from mae_core import MaskedAutoencoder, ModelConfig
from mae_core.config import PRESETS, MaskConfig, OptimConfig
from mae_core.model.losses import reconstruction_loss
from mae_core.model.mae import forward_flops
from mae_core.training.optim import build_optimizers, mask_at
from mae_core.training.trainer import autocast, compile_blocks, prefer_fast_attention

PRECISION = "bfloat16"
MASK_RATIO = 0.75
# Whose versions matter.
PACKAGES = ("torch", "timm", "transformers")
OPTIM = OptimConfig(lr=1.5e-4)
# Products large enough that their rate is the machine's and not the call's: side and number.
MATMULS = {"cpu": (2048, 1), "cuda": (8192, 20)}
COMPILED = "compiled (ours by blocks, as the trainer does; transformers' as a whole)"
# Decoder blocks of the paper's table 2.
DEEP, SHALLOW = 8, 1


@dataclass(frozen=True)
class Row:
    """A contestant's training steps, and how another compares to it.

    Attributes:
        model: The preset.
        who: The contestant.
        images_per_second: At the median.
        quartiles: Images per second; half of the rounds lie between.
        gflop: Of one picture's training step.
        utilization: Share of the matrix product's rate, 0..1.
        ratio: The time of the contestant that all are compared with, over this one's.
        ratio_quartiles: Of the rounds' ratios.
    """

    model: str
    who: str
    images_per_second: float
    quartiles: tuple[float, float]
    gflop: float
    utilization: float
    ratio: float
    ratio_quartiles: tuple[float, float]


def ours(config: ModelConfig, images: Tensor, args: argparse.Namespace) -> Run:
    """Steps of our model, from the trainer's parts."""
    torch.manual_seed(0)
    device = images.device
    model = MaskedAutoencoder(config).to(device)
    prefer_fast_attention(model, device)
    if args.compile:
        compile_blocks(model)
    optimizers = build_optimizers(model, OPTIM)
    grid_size, masks = model.grid_of(images), MaskConfig(ratio=(MASK_RATIO, MASK_RATIO))

    def steps() -> None:
        for i in range(args.steps_per_round):
            mask = mask_at(i, len(images), grid_size, masks, seed=0)
            mask = (mask.pin_memory() if device.type == "cuda" else mask).to(device)
            with autocast(PRECISION, device):
                output = model(images, mask)
                loss = reconstruction_loss(output.pred, model.target(images), output.mask)
            update(loss, optimizers)

    return steps


def theirs(config: ModelConfig, images: Tensor, args: argparse.Namespace, attention: str) -> Run:
    """Steps of transformers' ViTMAEForPreTraining of the same shape."""
    torch.manual_seed(0)
    peer = transformers_mae(config, MASK_RATIO, attn_implementation=attention)
    peer = peer.to(images.device).train()
    optimizer = peer_optimizer(peer)
    forward = torch.compile(peer) if args.compile else peer

    def steps() -> None:
        for _ in range(args.steps_per_round):
            with torch.autocast(images.device.type, torch.bfloat16):
                loss = forward(images).loss
            update(loss, [optimizer])

    return steps


def peer_optimizer(peer: nn.Module) -> torch.optim.Optimizer:
    """The fused AdamW that ours has, with its learning rate, betas and decay."""
    parameters = [parameter for parameter in peer.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        parameters, lr=OPTIM.lr, betas=OPTIM.betas, weight_decay=OPTIM.weight_decay, fused=True
    )


def update(loss: Tensor, optimizers: list[torch.optim.Optimizer]) -> None:
    """The backward pass and the optimisers' step."""
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def matmul(device: str) -> tuple[Run, float]:
    """Square matrix products in bfloat16, and the operations of one call."""
    side, times = MATMULS[device]
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))

    def products() -> None:
        for _ in range(times):
            torch.mm(a, b)

    return products, 2.0 * side**3 * times


def random_images(config: ModelConfig, args: argparse.Namespace) -> Tensor:
    """(N, C, H, W) of noise on the device."""
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch_size, config.in_chans, config.image_size, config.image_size)
    return torch.randn(shape, generator=generator).to(args.device)


def bench_peer(name: str, args: argparse.Namespace) -> tuple[list[Row], float]:
    """Ours and transformers', compared with transformers' as it comes."""
    config = PRESETS[name]
    images = random_images(config, args)
    runs = {
        "ours": ours(config, images, args),
        "transformers": theirs(config, images, args, "sdpa"),
        "transformers, eager attention": theirs(config, images, args, "eager"),
    }
    return compare(name, runs, dict.fromkeys(runs, config), "transformers", args)


def bench_mask_tokens(name: str, args: argparse.Namespace) -> tuple[list[Row], float]:
    """Ours, compared with an encoder that sees mask tokens (He et al. 2022, table 2)."""
    deep = replace(PRESETS[name], decoder_depth=DEEP)
    base = f"mask tokens in the encoder, {DEEP} decoder blocks"
    configs = {
        base: replace(deep, encoder_mask_tokens=True),
        f"visible patches only, {DEEP} decoder blocks": deep,
        f"visible patches only, {SHALLOW} decoder block": replace(deep, decoder_depth=SHALLOW),
    }
    images = random_images(deep, args)
    runs = {who: ours(config, images, args) for who, config in configs.items()}
    return compare(name, runs, configs, base, args)


def compare(
    model: str,
    runs: dict[str, Run],
    configs: dict[str, ModelConfig],
    base: str,
    args: argparse.Namespace,
) -> tuple[list[Row], float]:
    """Time contestants in turn; returns their rows and the matrix product's GFLOP/s."""
    product, product_flops = matmul(args.device)
    times = time_rounds({**runs, "matmul": product}, args.rounds, args.warmup, args.device)
    rates = [product_flops / milliseconds / 1e6 for milliseconds in times["matmul"]]
    rows = []
    for who, config in configs.items():
        grid_size = (config.grid_size, config.grid_size)
        # The backward pass has two products for each one of the forward pass.
        gflop = 3 * forward_flops(config, grid_size, MASK_RATIO) / 1e9
        pictures = args.batch_size * args.steps_per_round
        speeds = [1000 * pictures / milliseconds for milliseconds in times[who]]
        used = [speed * gflop / rate for speed, rate in zip(speeds, rates, strict=True)]
        ratios = [other / own for other, own in zip(times[base], times[who], strict=True)]
        row = Row(
            model, who, statistics.median(speeds), quartiles(speeds), gflop,
            statistics.median(used), statistics.median(ratios), quartiles(ratios),
        )  # fmt: skip
        rows.append(row)
    return rows, statistics.median(rates)


def table(rows: list[dict[str, Any]], matmul_gflops: dict[str, float], ratio: str) -> list[str]:
    """Rows as lines of Markdown."""
    lines = [
        "| model | | images/s | quartiles | GFLOP an image | GFLOP/s | matmul GFLOP/s "
        f"| utilisation | {ratio} | quartiles |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["quartiles"]
        ratio_low, ratio_high = row["ratio_quartiles"]
        lines.append(
            f"| {row['model']} | {row['who']} | {row['images_per_second']:.1f} "
            f"| {low:.1f} to {high:.1f} | {row['gflop']:.1f} "
            f"| {row['images_per_second'] * row['gflop']:.0f} "
            f"| {matmul_gflops[row['model']]:.0f} | {row['utilization']:.0%} "
            f"| {row['ratio']:.2f} | {ratio_low:.2f} to {ratio_high:.2f} |"
        )
    return lines


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    return "\n".join(
        [
            f"# Training steps, {report['date']}",
            "",
            f"`{report['command']}`",
            "",
            f"{report['device']}, {report['threads']} threads, load before "
            f"{report['load_before']:.1f}; {report['versions']}. Batch {report['batch_size']}, "
            f"mask ratio {MASK_RATIO}, {PRECISION} autocast, fused AdamW, "
            f"{COMPILED if report['compile'] else 'not compiled'}, random pictures; "
            f"{report['rounds']} interleaved rounds of {report['steps_per_round']} steps.",
            "",
            "## Sidecar transformers",
            "",
            *table(report["peer"], report["peer_matmul_gflops"], "times transformers' speed"),
            "",
            "## What the encoder saves by leaving out removed patches",
            "",
            *table(
                report["mask_tokens"], report["mask_tokens_matmul_gflops"],
                "times the speed with mask tokens",
            ),
            "",
        ]
    )  # fmt: skip


def parse_args(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time training steps, beside transformers.")
    parser.add_argument("--models", nargs="+", choices=PRESETS, default=["small", "base"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, at least 2")
    parser.add_argument("--steps-per-round", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=1, help="rounds before them")
    parser.add_argument("--device", choices=tuple(MATMULS), default="cpu")
    parser.add_argument("--threads", type=int, help="torch's own choice if not given")
    parser.add_argument("--compile", action="store_true", help="compile every contestant")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args(arguments)


def conditions(args: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """What the figures depend on, for the report."""
    return {
        **reports.conditions("bench_train", arguments, args.device, PACKAGES),
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "steps_per_round": args.steps_per_round,
        "compile": args.compile,
    }


def main(arguments: Sequence[str]) -> None:
    """Measure, print and write."""
    args = parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    report: dict[str, Any] = conditions(args, arguments)
    for key, bench in (("peer", bench_peer), ("mask_tokens", bench_mask_tokens)):
        report[key], report[f"{key}_matmul_gflops"] = [], {}
        for name in args.models:
            rows, rate = bench(name, args)
            report[key] += [asdict(row) for row in rows]
            report[f"{key}_matmul_gflops"][name] = rate
    page = markdown(report)
    reports.write(report, page, f"train-{args.device}", args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
