"""Why training on a CPU spells attention out: a step with torch's fused kernel and without.

    python -m benchmarks.bench_attention
    python -m benchmarks.bench_attention --rounds 20

The two take turns, so that a slow moment of the machine falls on both; medians, and the median
and quartiles of the rounds' ratios, are printed.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from mae_core import MaskedAutoencoder, random_mask
from mae_core.config import PRESETS
from mae_core.model.losses import reconstruction_loss
from mae_core.training.trainer import autocast, prefer_fast_attention

PRESET, BATCH_SIZE, MASK_RATIO = "tiny", 32, 0.75
SIDES = (128, 224)


def training_step(plain: bool, side: int) -> Callable[[], None]:
    """Forward and backward of one batch, as the trainer does them on a CPU."""
    cpu = torch.device("cpu")
    torch.manual_seed(0)
    model = MaskedAutoencoder(PRESETS[PRESET])
    if plain:
        prefer_fast_attention(model, cpu)
    images = torch.randn(BATCH_SIZE, 3, side, side)
    mask = random_mask(BATCH_SIZE, (side // 16) ** 2, MASK_RATIO, seed=0)

    def step() -> None:
        with autocast("bfloat16", cpu):
            output = model(images, mask)
            loss = reconstruction_loss(output.pred, model.target(images), output.mask)
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def seconds(step: Callable[[], None]) -> float:
    """Of one call."""
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


def main() -> None:
    """Print a line for each picture size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    print(f"{PRESET}, batch {BATCH_SIZE}, bfloat16, {torch.get_num_threads()} threads, img/s")
    for side in SIDES:
        fused, plain = training_step(False, side), training_step(True, side)
        for step in (fused, plain):
            step()
        pairs = [(seconds(fused), seconds(plain)) for _ in range(rounds)]
        rates = [BATCH_SIZE / statistics.median(times) for times in zip(*pairs, strict=True)]
        low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
        print(
            f"{side} pixels: fused {rates[0]:.0f}, plain {rates[1]:.0f}, "
            f"ratio {middle:.2f} ({low:.2f} to {high:.2f})"
        )


if __name__ == "__main__":
    main()
