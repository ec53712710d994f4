"""Masks: the official order, exact counts, nestedness, and every refusal."""

import itertools
import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mae_core.errors import MaskError
from mae_core.model.masking import (
    MAX_SEED,
    STRATEGIES,
    PatchMask,
    block_mask,
    custom_mask,
    draw_mask,
    grid_mask,
    mask_from_noise,
    num_visible,
    random_mask,
)
from tests import references

# Patches that seed 2 keeps at 75 % on 14 x 14, in shuffled order: what the official notebook
# keeps. Printed once by
#   torch.argsort(torch.rand(1, 196, generator=torch.Generator().manual_seed(2)))[0, :49]
SEED_2_KEEPS = [
    82, 108, 20, 163, 128, 102, 140, 184, 67, 77, 41, 146, 70, 30, 174, 133, 9, 129, 176,
    122, 137, 61, 155, 191, 152, 7, 169, 96, 156, 111, 125, 91, 98, 130, 160, 72, 31, 79,
    97, 88, 114, 180, 149, 17, 166, 185, 170, 28, 27,
]  # fmt: skip

GRIDS = [(14, 14), (7, 9), (1, 12), (12, 1), (16, 8)]
RATIOS = [0.0, 0.1, 0.25, 0.3, 0.5, 0.6, 0.75, 0.9, 0.95, 1.0]

ratios = st.integers(0, 100).map(lambda percent: percent / 100)
grids = st.tuples(st.integers(1, 12), st.integers(1, 12)).filter(lambda g: g[0] * g[1] > 1)
seeds = st.integers(0, 2**31)


def removed(mask: PatchMask) -> torch.Tensor:
    return mask.mask.bool()


# --- how many stay visible


@given(length=st.integers(1, 5000), thousandths=st.integers(0, 1000))
def test_visible_count_has_no_float_error(length: int, thousandths: int) -> None:
    exact = int(length * (1 - Fraction(thousandths, 1000)))
    assert num_visible(length, thousandths / 1000) == min(max(exact, 1), length)


@pytest.mark.parametrize("length", [49, 50, 64, 100, 196, 256, 784, 1000])
def test_visible_count_of_every_percent(length: int) -> None:
    for percent in range(101):
        exact = int(length * (1 - Fraction(percent, 100)))
        assert num_visible(length, percent / 100) == max(exact, 1)


def test_visible_count_where_the_official_code_loses_one() -> None:
    assert int(100 * (1 - 0.9)) == 9
    assert num_visible(100, 0.9) == 10
    assert num_visible(196, 0.75) == 49


@given(length=st.integers(1, 500), mask_ratio=st.floats(0, 1))
def test_visible_count_is_within_its_bounds(length: int, mask_ratio: float) -> None:
    assert 1 <= num_visible(length, mask_ratio) <= length
    if length > 1:
        assert 1 <= num_visible(length, mask_ratio, for_loss=True) <= length - 1


def test_visible_count_takes_whole_ratios() -> None:
    assert num_visible(196, 0) == 196
    assert num_visible(196, 1) == 1
    assert num_visible(196, 0, for_loss=True) == 195


@pytest.mark.parametrize(
    "mask_ratio",
    [-0.01, 1.01, 75, float("nan"), float("inf"), "0.75", None, True, [0.75], 0.75j],
)
def test_ratio_that_is_no_number_in_range_is_refused(mask_ratio: Any) -> None:
    expected = re.escape(f"mask_ratio is {mask_ratio!r}; give a number from 0 to 1, such as 0.75")
    with pytest.raises(MaskError, match=f"^{expected}$"):
        num_visible(196, mask_ratio)


def test_too_few_patches_are_refused() -> None:
    for length, for_loss in ((0, False), (1, True)):
        with pytest.raises(MaskError, match=f"{length} patches are too few to mask; use a larger"):
            num_visible(length, 0.75, for_loss=for_loss)


# --- one mask from noise


@given(
    values=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60),
    mask_ratio=ratios,
)  # fmt: skip
def test_mask_from_noise_is_a_sort(values: list[float], mask_ratio: float) -> None:
    visible = num_visible(len(values), mask_ratio)
    patch_mask = mask_from_noise(torch.tensor([values]), mask_ratio)
    mask, kept, restore = references.random_mask(values, visible)
    assert patch_mask.mask.tolist() == [mask]
    assert patch_mask.ids_keep.tolist() == [kept]
    assert patch_mask.ids_restore.tolist() == [restore]
    assert patch_mask.num_patches == len(values)
    assert patch_mask.num_visible == visible


def test_mask_is_floats_with_one_for_removed() -> None:
    patch_mask = mask_from_noise(torch.tensor([[0.3, 0.1, 0.9, 0.5]]), 0.5)
    assert patch_mask.mask.dtype == torch.float32
    assert patch_mask.mask.tolist() == [[0, 0, 1, 1]]
    assert patch_mask.ids_keep.tolist() == [[1, 0]]


def test_mask_moves_to_another_device() -> None:
    moved = random_mask(2, 16, 0.75, seed=0).to("meta")
    assert {moved.mask.device.type, moved.ids_keep.device.type, moved.ids_restore.device.type} == {
        "meta"
    }


def test_rows_of_a_batch_of_masks_are_the_masks_of_those_images() -> None:
    whole = random_mask(5, 16, 0.75, seed=0)
    part = whole.rows(1, 3)
    for name in ("mask", "ids_keep", "ids_restore"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[1:3])


def test_masks_of_single_images_are_a_batch() -> None:
    whole = random_mask(3, 16, 0.75, seed=[4, 2, 4])
    joined = PatchMask.cat([random_mask(1, 16, 0.75, seed=seed) for seed in (4, 2, 4)])
    for name in ("mask", "ids_keep", "ids_restore"):
        assert torch.equal(getattr(joined, name), getattr(whole, name))


# --- random


def test_seed_2_is_the_official_notebooks_mask() -> None:
    patch_mask = random_mask(1, 14 * 14, 0.75, seed=2)
    noise = torch.rand(1, 196, generator=torch.Generator().manual_seed(2))
    ids_shuffle = torch.argsort(noise, dim=1)
    official = torch.ones(1, 196)
    official[:, :49] = 0
    official = torch.gather(official, 1, torch.argsort(ids_shuffle, dim=1))
    assert torch.equal(patch_mask.ids_keep, ids_shuffle[:, :49])
    assert torch.equal(patch_mask.mask, official)
    assert patch_mask.ids_keep[0].tolist() == SEED_2_KEEPS


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    for strategy in STRATEGIES:
        draw_mask(strategy, 2, (7, 9), 0.75, seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_batch_of_one_seed_is_drawn_at_once() -> None:
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(7))
    expected = mask_from_noise(noise, 0.5)
    assert torch.equal(random_mask(3, 16, 0.5, seed=7).ids_keep, expected.ids_keep)


# --- every strategy


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(grid_size=grids, mask_ratio=ratios, seed=seeds, n=st.integers(1, 3))
def test_counts_are_exact(
    strategy: str, grid_size: tuple[int, int], mask_ratio: float, seed: int, n: int
) -> None:
    length = grid_size[0] * grid_size[1]
    visible = num_visible(length, mask_ratio)
    patch_mask = draw_mask(strategy, n, grid_size, mask_ratio, seed=seed)
    assert patch_mask.mask.shape == patch_mask.ids_restore.shape == (n, length)
    assert patch_mask.ids_keep.shape == (n, visible)
    assert (patch_mask.mask.sum(dim=1) == length - visible).all()
    for mask, kept, restore in zip(
        patch_mask.mask, patch_mask.ids_keep, patch_mask.ids_restore, strict=True
    ):
        assert sorted(kept.tolist()) == (mask == 0).nonzero().flatten().tolist()
        assert sorted(restore.tolist()) == list(range(length))
        assert restore[kept].tolist() == list(range(visible))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("grid_size", GRIDS)
def test_growing_ratios_are_nested(strategy: str, grid_size: tuple[int, int]) -> None:
    for seed in range(5):
        masks = [removed(draw_mask(strategy, 2, grid_size, r, seed=seed)) for r in RATIOS]
        for fewer, more in itertools.pairwise(masks):
            assert not (fewer & ~more).any(), "what a small ratio removes, a larger one does too"


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_seed_an_image_gives_the_mask_it_would_get_alone(strategy: str, kind: Any) -> None:
    together = draw_mask(strategy, 3, (7, 9), 0.75, seed=kind([4, 2, 4]))
    for i, seed in enumerate((4, 2, 4)):
        alone = draw_mask(strategy, 1, (7, 9), 0.75, seed=seed)
        assert torch.equal(together.mask[i : i + 1], alone.mask)
        assert torch.equal(together.ids_keep[i : i + 1], alone.ids_keep)
        assert torch.equal(together.ids_restore[i : i + 1], alone.ids_restore)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_seeds_decide_and_nothing_else(strategy: str) -> None:
    first = draw_mask(strategy, 2, (14, 14), 0.6, seed=1)
    assert torch.equal(first.mask, draw_mask(strategy, 2, (14, 14), 0.6, seed=1).mask)
    others = [draw_mask(strategy, 2, (14, 14), 0.6, seed=seed).mask for seed in range(2, 8)]
    assert any(not torch.equal(first.mask, other) for other in others)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_generator_goes_on_where_it_stopped(strategy: str) -> None:
    generator = torch.Generator().manual_seed(3)
    drawn = [draw_mask(strategy, 1, (14, 14), 0.6, generator=generator) for _ in range(6)]
    assert torch.equal(drawn[0].mask, draw_mask(strategy, 1, (14, 14), 0.6, seed=3).mask)
    assert len({tuple(patch_mask.mask[0].tolist()) for patch_mask in drawn}) > 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_largest_seed_is_allowed(strategy: str) -> None:
    assert draw_mask(strategy, 1, (4, 4), 0.5, seed=MAX_SEED).num_visible == 8


# --- block


def test_blocks_hang_together() -> None:
    """More neighbours share their fate than in random masks; counted over many seeds."""

    def joined(strategy: str) -> int:
        squares = removed(draw_mask(strategy, 50, (14, 14), 0.5, seed=list(range(50))))
        grid = squares.reshape(50, 14, 14)
        across = (grid[:, :, 1:] == grid[:, :, :-1]).sum() + (grid[:, 1:] == grid[:, :-1]).sum()
        return int(across)

    neighbours = 50 * 2 * 13 * 14
    assert joined("random") / neighbours == pytest.approx(0.5, abs=0.02)
    assert joined("block") / neighbours > 0.8


def test_the_first_block_is_a_rectangle() -> None:
    # 8 % of the patches are fewer than the smallest block has, so one block holds them all.
    for seed in range(20):
        grid = removed(block_mask(1, (14, 14), 0.08, seed=seed)).reshape(14, 14)
        rows = grid.any(dim=1).nonzero().flatten()
        columns = grid.any(dim=0).nonzero().flatten()
        assert rows.tolist() == list(range(int(rows[0]), int(rows[-1]) + 1))
        whole = grid[rows[0] : rows[-1], columns[0] : columns[-1] + 1]
        assert whole.all(), "but for its last row, which is cut to the exact count"


def blocks_until_enough(grid_size: tuple[int, int], remove: int, seed: int) -> torch.Tensor:
    """(L,) The mask that blocks make when they are drawn one by one until enough is gone."""
    h, w = grid_size
    generator = torch.Generator().manual_seed(seed)
    gone = torch.zeros(h, w)

    def between(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    while True:
        area = h * w * between(16 / 196, 75 / 196)
        aspect = math.exp(between(math.log(0.3), math.log(1 / 0.3)))
        block_h = min(max(round(math.sqrt(area * aspect)), 1), h)
        block_w = min(max(round(math.sqrt(area / aspect)), 1), w)
        top, left = round(between(0, h - block_h)), round(between(0, w - block_w))
        for row, column in itertools.product(range(block_h), range(block_w)):
            if gone.sum() == remove:
                return gone.flatten()
            gone[top + row, left + column] = 1


@pytest.mark.parametrize("grid_size", [(14, 14), (7, 9), (16, 8)])
def test_blocks_go_one_after_another_up_to_95_percent(grid_size: tuple[int, int]) -> None:
    length = grid_size[0] * grid_size[1]
    for seed, mask_ratio in itertools.product((0, 2, 12345), (0.05, 0.4, 0.75, 0.95)):
        expected = blocks_until_enough(grid_size, length - num_visible(length, mask_ratio), seed)
        drawn = block_mask(1, grid_size, mask_ratio, seed=seed)
        assert torch.equal(drawn.mask[0], expected), (seed, mask_ratio)


def test_an_image_of_a_batch_takes_the_same_of_the_generator_whatever_the_others_are() -> None:
    """So it can be drawn without them. Blocks until the last patch is gone would not."""
    generator = torch.Generator().manual_seed(0)
    states = [generator.get_state()]
    for _ in range(4):
        draw_mask("block", 1, (14, 14), 0.5, generator=generator)
        states.append(generator.get_state())
    length = 192 * 4 + 196
    for before, after in itertools.pairwise(states):
        generator.set_state(before)
        torch.rand(length, generator=generator)
        assert torch.equal(generator.get_state(), after)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("seed", [3, [3, 1, 4, 1, 5, 9]])
def test_rows_of_a_batch_are_drawn_alone(strategy: str, seed: int | list[int]) -> None:
    whole = draw_mask(strategy, 6, (7, 9), 0.6, seed=seed)
    part = draw_mask(strategy, 6, (7, 9), 0.6, seed=seed, rows=slice(2, 4))
    for name in ("mask", "ids_keep", "ids_restore"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[2:4])


# --- grid


@pytest.mark.parametrize("grid_size", [(14, 14), (8, 12), (2, 2), (16, 4)])
def test_grid_75_keeps_one_of_every_2x2(grid_size: tuple[int, int]) -> None:
    h, w = grid_size
    places = set()
    for seed in range(12):
        grid = removed(grid_mask(1, grid_size, 0.75, seed=seed)).reshape(h, w)
        cells = (~grid).reshape(h // 2, 2, w // 2, 2).sum(dim=(1, 3))
        assert (cells == 1).all()
        places.add(tuple((~grid).nonzero()[0].tolist()))
    assert len(places) > 1, "the seed shifts the pattern"


@pytest.mark.parametrize("grid_size", [(14, 14), (8, 12), (6, 2)])
def test_grid_50_is_a_checkerboard(grid_size: tuple[int, int]) -> None:
    h, w = grid_size
    for seed in range(4):
        grid = removed(grid_mask(1, grid_size, 0.5, seed=seed)).reshape(h, w)
        assert (grid[:, 1:] != grid[:, :-1]).all()
        assert (grid[1:] != grid[:-1]).all()


# --- custom


@given(
    array=st.integers(1, 6).flatmap(
        lambda w: st.lists(st.lists(st.booleans(), min_size=w, max_size=w), min_size=1, max_size=6)
    )
)
def test_custom_mask_removes_what_is_said(array: list[list[bool]]) -> None:
    flat = np.array(array).reshape(-1)
    if flat.all():
        with pytest.raises(MaskError, match="removes every patch; leave at least one visible"):
            custom_mask(array)
        return
    patch_mask = custom_mask(array)
    assert patch_mask.mask[0].tolist() == flat.astype(float).tolist()
    assert patch_mask.ids_keep[0].tolist() == np.flatnonzero(~flat).tolist()
    assert patch_mask.ids_restore[0][patch_mask.ids_keep[0]].tolist() == list(range((~flat).sum()))


def test_custom_masks_of_a_batch() -> None:
    array = np.zeros((2, 2, 3), dtype=bool)
    array[0, 0, 0] = array[1, 1, 2] = True
    patch_mask = custom_mask(array)
    assert patch_mask.mask.tolist() == [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]
    assert patch_mask.ids_keep.tolist() == [[1, 2, 3, 4, 5], [0, 1, 2, 3, 4]]


def test_custom_mask_of_nothing_removed() -> None:
    assert custom_mask(np.zeros((3, 3), dtype=bool)).num_visible == 9


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 2)), "this one is float64 of shape (2, 2)"),
        (np.zeros(4, dtype=bool), "this one is bool of shape (4,)"),
        (np.zeros((0, 4), dtype=bool), "this one is bool of shape (0, 4)"),
        (np.zeros((1, 1, 2, 2), dtype=bool), "this one is bool of shape (1, 1, 2, 2)"),
        ("yes", "a custom mask is a (h, w) or (N, h, w) array of booleans, True = removed"),
        ([[True, False], [True]], "the rows of a custom mask are not equally long"),
        ([[[True, False]], [[True, True]]], "the mask removes every patch"),
        (
            [[[True, False, False]], [[True, True, False]]],
            "images of one batch keep 1 to 2 patches",
        ),
    ],
)
def test_custom_masks_that_cannot_be(array: Any, message: str) -> None:
    with pytest.raises(MaskError, match=re.escape(message)):
        custom_mask(array)


# --- seeds, generators and strategies that cannot be


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 2.0, True, "2", {"seed": 2}, np.int64(-1)])
def test_seed_that_is_no_whole_number_in_range(seed: Any) -> None:
    expected = re.escape(f"seed is {seed!r}; it must be a whole number from 0 to {MAX_SEED}")
    with pytest.raises(MaskError, match=f"^{expected}$"):
        random_mask(1, 16, 0.5, seed=seed)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_numbers_of_numpy_are_numbers(strategy: str) -> None:
    expected = draw_mask(strategy, 2, (14, 14), 0.75, seed=[2, 3])
    drawn = draw_mask(
        strategy, 2, (14, 14), np.float32(0.75), seed=[np.int64(2), np.uint8(3)]  # type: ignore[arg-type]
    )  # fmt: skip
    assert torch.equal(drawn.ids_restore, expected.ids_restore)
    assert torch.equal(drawn.ids_keep, expected.ids_keep)


def test_a_bad_seed_among_good_ones() -> None:
    with pytest.raises(MaskError, match=r"seed is 1\.5; it must be a whole number"):
        random_mask(2, 16, 0.5, seed=[1, 1.5])  # type: ignore[list-item]


def test_as_many_seeds_as_images() -> None:
    with pytest.raises(MaskError, match="3 seeds for a batch of 2; give one for each image"):
        random_mask(2, 16, 0.5, seed=[1, 2, 3])


def test_exactly_one_source_of_chance() -> None:
    with pytest.raises(MaskError, match="seed is None and generator is None; give one of the two"):
        draw_mask("random", 1, (4, 4), 0.5)
    with pytest.raises(MaskError, match="seed is 1 and generator is .*; give one of the two"):
        draw_mask("random", 1, (4, 4), 0.5, seed=1, generator=torch.Generator())


def test_an_unknown_strategy_is_named() -> None:
    expected = "no strategy is called 'spiral'; choose random, block, grid"
    with pytest.raises(MaskError, match=f"^{expected}$"):
        draw_mask("spiral", 1, (4, 4), 0.5, seed=1)
