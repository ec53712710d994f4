from collections.abc import Iterator
from itertools import cycle
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mae_core.config import preset
from mae_core.model.mae import MaskedAutoencoder, forward_flops
from mae_core.model.masking import random_mask
from mae_core.training import throughput
from mae_core.training.precision import prefer_fast_attention
from mae_core.training.throughput import measure_matmul_rate

CPU = torch.device("cpu")


class Device:
    """A clock that only products move, by what they take at a rate of FLOP/s."""

    def __init__(self, rates: Iterator[float]) -> None:
        self.now, self.rates = 100.0, rates
        self.sides: list[int] = []
        self.dtypes: set[torch.dtype] = set()

    def mm(self, a: Tensor, b: Tensor) -> None:
        rows, inner, columns = len(a), a.shape[1], b.shape[1]
        self.now += 2 * rows * inner * columns / next(self.rates)
        self.sides.append(rows)
        self.dtypes |= {a.dtype, b.dtype}


@pytest.mark.parametrize(("peak", "side"), [(1e9, 256), (1e11, 512), (1e12, 1024), (1e15, 2048)])
def test_the_rate_is_that_of_the_fastest_of_products_that_are_large_enough(
    monkeypatch: pytest.MonkeyPatch, peak: float, side: int
) -> None:
    # On the fastest, so that the test's matrices stay small.
    monkeypatch.setattr(throughput, "_LAST_SIDE", 2048)
    device = Device(cycle([0.5 * peak, 0.9 * peak, 0.7 * peak, peak, 0.2 * peak]))
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: device.now))
    monkeypatch.setattr(torch, "mm", device.mm)
    measured = measure_matmul_rate(CPU, torch.bfloat16)
    assert device.dtypes == {torch.bfloat16}
    assert device.sides == sorted(device.sides)
    assert device.sides[-1] == side
    assert measured == pytest.approx(peak, rel=0.11)
    if device.sides.count(side) >= 7:
        assert measured == pytest.approx(peak)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measuring_leaves_the_run_as_it_was(dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    rate = measure_matmul_rate(CPU, dtype)
    assert torch.equal(torch.get_rng_state(), before)
    # Between a pocket calculator and the largest computer there is.
    assert 1e5 < rate < 1e19


def test_a_training_step_costs_three_forward_passes() -> None:
    config = preset("tiny")
    torch.manual_seed(0)
    model = MaskedAutoencoder(config)
    prefer_fast_attention(model, CPU)  # torch does not count the backward pass of the fused one
    mask = random_mask(2, 196, 0.75, seed=0)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(2, 3, 224, 224), mask).loss.backward()
    counted = counter.get_total_flops() / 2
    # Less by what no gradient is asked for: the pictures'.
    assert 0.97 < counted / (3 * forward_flops(config, (14, 14), 0.75)) <= 1.0
