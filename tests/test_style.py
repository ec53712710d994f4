"""What ruff and mypy do not hold: lengths of functions, and nothing public left unsaid."""

import ast
import shutil
import statistics
import subprocess
from collections.abc import Iterator

import pytest

from tests.sources import ROOT, Source, sources_of

SOURCES = sources_of("mae_core") + sources_of("app")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def public_definitions(
    node: ast.Module | ast.ClassDef, prefix: str = ""
) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Public functions, classes and methods; what is inside a function is nobody's business."""
    for child in node.body:
        if isinstance(child, Function | ast.ClassDef) and not child.name.startswith("_"):
            yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from public_definitions(child, f"{prefix}{child.name}.")


def code_lines(function: Function) -> int:
    """Lines from `def` to the end, less the docstring."""
    length = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        length -= (first.end_lineno or 0) - first.lineno + 1
    return length


_BOUND = ("self", "cls", "mcs")


def untyped_parameters(function: Function) -> list[str]:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += [extra for extra in (arguments.vararg, arguments.kwarg) if extra]
    return [a.arg for a in named if a.annotation is None and a.arg not in _BOUND]


def by_name(source: Source) -> str:
    return source.module


@pytest.mark.parametrize("source", SOURCES, ids=by_name)
def test_no_function_is_over_80_lines(source: Source) -> None:
    too_long = [
        f"{function.name} ({(function.end_lineno or 0) - function.lineno + 1} lines)"
        for function in functions(source.tree)
        if (function.end_lineno or 0) - function.lineno + 1 > 80
    ]
    assert not too_long


def test_half_of_the_functions_are_short() -> None:
    lengths = [code_lines(f) for source in SOURCES for f in functions(source.tree)]
    assert statistics.median(lengths) < 10


@pytest.mark.parametrize("source", SOURCES, ids=by_name)
def test_module_says_what_it_is_for(source: Source) -> None:
    assert ast.get_docstring(source.tree), f"{source.module} has no docstring"


@pytest.mark.parametrize("source", SOURCES, ids=by_name)
def test_public_things_are_documented(source: Source) -> None:
    silent = [name for name, node in public_definitions(source.tree) if not ast.get_docstring(node)]
    assert not silent


@pytest.mark.parametrize("source", SOURCES, ids=by_name)
def test_functions_are_typed(source: Source) -> None:
    untyped = [
        f"{function.name}: {', '.join(untyped_parameters(function)) or 'what it returns'}"
        for function in functions(source.tree)
        if untyped_parameters(function) or function.returns is None
    ]
    assert not untyped


# Split, so that this file does not hold what it looks for.
MACHINE_PATHS = ["/wo" + "rk/", "/ro" + "ot/", "/tmp/" + "bash_jobs"]


def test_no_file_holds_a_path_of_somebodys_machine() -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout, so nothing says which files are ours")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    ).stdout.decode()  # fmt: skip
    files = [ROOT / name for name in listed.split("\0") if name]
    assert files
    found = [
        f"{file.relative_to(ROOT)}: {path}"
        for file in files
        if file.is_file()
        for path in MACHINE_PATHS
        if path.encode() in file.read_bytes()
    ]
    assert not found
