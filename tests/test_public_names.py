"""`mae_core.__all__` is sorted, and is what the package has."""

import inspect
import types

import pytest

import mae_core
from mae_core import errors


def in_order(name: str) -> tuple[bool, bool, str]:
    """Constants, then classes, then functions, each by the alphabet."""
    return not name.isupper(), not name[0].isupper(), name


def test_all_is_sorted_and_has_no_doubles() -> None:
    assert mae_core.__all__ == sorted(set(mae_core.__all__), key=in_order)


def test_all_is_what_is_public() -> None:
    public = {
        name
        for name, value in vars(mae_core).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(mae_core.__all__)


def test_all_holds_what_others_build_on() -> None:
    promised = {
        "MAEError", "MaskedAutoencoder", "PatchMask", "Reconstructor", "block_mask",
        "custom_mask", "grid_mask", "mask_from_noise", "num_visible", "random_mask",
    }  # fmt: skip
    assert promised <= set(mae_core.__all__)


def test_all_holds_every_error() -> None:
    tree = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert tree <= set(mae_core.__all__)


@pytest.mark.parametrize("name", sorted(mae_core.__all__))
def test_public_thing_says_what_it_is(name: str) -> None:
    value = getattr(mae_core, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        assert value.__module__.startswith("mae_core."), f"{name} is not ours"
        assert inspect.getdoc(value)
