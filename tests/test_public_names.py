"""`mae_core.__all__` is sorted, and is what the package has, for people and for type checkers."""

import ast
import inspect
import subprocess
import sys

import pytest

import mae_core
from mae_core import errors
from tests.sources import ROOT


def in_order(name: str) -> tuple[bool, bool, str]:
    """Constants, then classes, then functions, each by the alphabet."""
    return not name.isupper(), not name[0].isupper(), name


def test_all_is_sorted_and_has_no_doubles() -> None:
    assert mae_core.__all__ == sorted(set(mae_core.__all__), key=in_order)


def test_all_is_what_is_found_and_what_type_checkers_see() -> None:
    tree = ast.parse((ROOT / "mae_core" / "__init__.py").read_text("utf-8"))
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mae_core.")
        for alias in node.names
    }
    assert seen == mae_core._HOME
    assert set(mae_core.__all__) == set(seen) <= set(dir(mae_core))


def test_a_name_is_found_before_its_module_was_imported_and_after() -> None:
    code = (
        "import sys, mae_core; "
        "assert 'mae_core.config' not in sys.modules; "
        "assert mae_core.preset.__module__ == 'mae_core.config'; "
        "assert mae_core.errors.MAEError is mae_core.MAEError; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_star_brings_every_name() -> None:
    names: dict[str, object] = {}
    exec("from mae_core import *", names)
    assert {*mae_core.__all__} <= names.keys()
    assert names["random_mask"] is mae_core.model.masking.random_mask


@pytest.mark.parametrize("name", ["nothing", "__nothing__", "_nothing"])
def test_there_is_no_other_name(name: str) -> None:
    with pytest.raises(AttributeError, match=f"^module 'mae_core' has no attribute '{name}'$"):
        getattr(mae_core, name)


def test_a_parts_missing_requirement_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("mae_core.images")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(vars(mae_core), "images", raising=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match="PIL"):
        mae_core.images  # noqa: B018


def test_all_holds_what_others_build_on() -> None:
    promised = {
        "MAEError", "MaskedAutoencoder", "PatchMask", "Reconstructor", "block_mask",
        "custom_mask", "grid_mask", "load", "num_visible", "random_mask", "train",
    }  # fmt: skip
    assert promised <= set(mae_core.__all__)


def test_all_holds_every_error() -> None:
    tree = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert tree == set(errors.__all__)


@pytest.mark.parametrize("name", sorted(mae_core.__all__))
def test_public_thing_says_what_it_is(name: str) -> None:
    value = getattr(mae_core, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        assert value.__module__.startswith("mae_core."), f"{name} is not ours"
        assert inspect.getdoc(value)
