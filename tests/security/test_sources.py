"""What the program's own code never does: run data, start shells, read pickles."""

import ast
from collections.abc import Iterator

import pytest

from tests.sources import Source, sources_of

SOURCES = sources_of("mae_core") + sources_of("app") + sources_of("web")

_NEVER = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads",
    "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "dill.load", "joblib.load",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load", "numpy.fromregex",
    "subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp",
}  # fmt: skip
_MODULES = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "telnetlib", "xml"}

# What a process and its own fork send each other, past nobody else.
_ALLOWED = {"app.models.zerogpu": {"pickle", "pickle.loads"}}


def calls(source: Source) -> Iterator[tuple[str, ast.Call]]:
    """Every call by the name that it is written with, `np` being numpy."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func).replace("np.", "numpy."), node


def keyword(call: ast.Call, name: str) -> object:
    """The constant given for a keyword; None if there is none."""
    for given in call.keywords:
        if given.arg == name:
            return given.value.value if isinstance(given.value, ast.Constant) else given.value
    return None


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.module)
def test_data_are_never_run(source: Source) -> None:
    never = _NEVER - _ALLOWED.get(source.module, set())
    found = [f"line {call.lineno}: {name}" for name, call in calls(source) if name in never]
    assert not found


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.module)
def test_modules_that_run_data_are_not_imported(source: Source) -> None:
    imported = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            imported.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.add((node.module or "").partition(".")[0])
    assert not imported & (_MODULES - _ALLOWED.get(source.module, set()))


def test_pickled_weights_are_read_as_weights_only() -> None:
    loads = [call for source in SOURCES for name, call in calls(source) if name == "torch.load"]
    assert loads
    assert all(keyword(call, "weights_only") is True for call in loads)


def test_arrays_are_read_without_pickles() -> None:
    for source in SOURCES:
        for name, call in calls(source):
            if name == "numpy.load":
                assert keyword(call, "allow_pickle") in (None, False), source.module


def test_no_command_goes_through_a_shell() -> None:
    for source in SOURCES:
        for name, call in calls(source):
            assert keyword(call, "shell") in (None, False), f"{source.module}: {name}"
            assert keyword(call, "trust_remote_code") in (None, False), f"{source.module}: {name}"
            assert keyword(call, "verify") in (None, True), f"{source.module}: {name}"
