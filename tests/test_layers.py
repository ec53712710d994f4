"""The layers of docs/design.md, held by walking every import."""

import ast
import subprocess
import sys

import pytest

import mae_core
from tests.sources import ROOT, Source, imported_modules, sources_of

# A module may import modules of lower layers, and siblings of its own sub-package. A package
# stands for all that is in it. Every module has to be here: a new one is given its layer.
LAYERS = {
    "mae_core.errors": 0,
    "mae_core._compat": 0,
    "mae_core.value_range": 1,
    "mae_core.config": 2,
    "mae_core.patches": 2,
    "mae_core.masking": 2,
    "mae_core.images": 2,
    "mae_core.devices": 3,
    "mae_core.rasters": 3,
    "mae_core.models": 3,
    "mae_core.downloads": 3,
    "mae_core.checkpoint": 4,
    "mae_core.data": 4,
    "mae_core.weights": 5,
    "mae_core.graph": 5,
    "mae_core.entry": 5,
    "mae_core.recipes": 6,
    "mae_core.reconstruction": 6,
    "mae_core.training": 6,
    "mae_core.model_card": 6,
    "mae_core.evaluation": 7,
    "mae_core.train": 8,
    "mae_core.evaluate": 8,
    "mae_core.reconstruct": 8,
    "mae_core.pack": 8,
    "mae_core.push": 8,
    "mae_core.convert": 8,
    "mae_core.info": 8,
    "mae_core.fetch": 8,
    "mae_core": 9,
}
ENTRY_POINTS = {name for name, layer in LAYERS.items() if layer == 8}

APP_WITH_GRADIO = {"app.__main__", "app.ui", "app.handlers", "app.components", "app.deploy",
                    "app.space"}  # fmt: skip
APP_WITHOUT_GRADIO = {
    "app",
    "app.settings",
    "app.service",
    "app.cache",
    "app.fetching",
    "app.guard",
    "app.health",
    "app.i18n",
    "app.logs",
    "app.metrics",
    "app.models",
    "app.pictures",
    "app.rates",
    "app.repositories",
    "app.scheduler",
    "app.sessions",
    "app.storage",
    "app.values",
    "app.visitors",
    "app.zerogpu",
}

# What would let a network read or write files.
FILES = {"io", "json", "os", "pathlib", "shutil", "tempfile", "PIL", "safetensors",
         "huggingface_hub"}  # fmt: skip

CORE = sources_of("mae_core")
APP = sources_of("app")
MODULES = {source.module for source in CORE + APP}


def unit_of(module: str) -> str:
    """The module or sub-package that the tables name: `mae_core.models.mae` is in `.models`."""
    return ".".join(module.split(".")[:2])


def imports_of(source: Source) -> set[str]:
    return imported_modules(source, MODULES)


def by_name(source: Source) -> str:
    return source.module


@pytest.mark.parametrize("source", CORE, ids=by_name)
def test_every_module_has_a_layer(source: Source) -> None:
    assert unit_of(source.module) in LAYERS, f"give {source.module} a layer in LAYERS"


@pytest.mark.parametrize("source", CORE, ids=by_name)
def test_imports_go_down(source: Source) -> None:
    own = unit_of(source.module)
    for imported in imports_of(source):
        target = unit_of(imported)
        if not target.startswith("mae_core") or (target == own and own != "mae_core"):
            continue
        assert LAYERS[target] < LAYERS[own], (
            f"{source.module} (layer {LAYERS[own]}) imports {imported} (layer {LAYERS[target]})"
        )


@pytest.mark.parametrize("source", CORE, ids=by_name)
def test_core_knows_no_page(source: Source) -> None:
    tops = {name.split(".")[0] for name in imports_of(source)}
    assert not tops & {"app", "gradio", "gradio_client", "tests", "benchmarks"}


def test_public_package_imports_no_entry_point() -> None:
    package = next(source for source in CORE if source.module == "mae_core")
    assert not imports_of(package) & ENTRY_POINTS


def test_training_never_imports_evaluation() -> None:
    for source in CORE:
        if unit_of(source.module) == "mae_core.training":
            assert "mae_core.evaluation" not in {unit_of(name) for name in imports_of(source)}


def test_models_know_no_files_data_or_training() -> None:
    for source in CORE:
        if unit_of(source.module) == "mae_core.models":
            imported = imports_of(source)
            assert not {name.split(".")[0] for name in imported} & FILES, source.module
            assert not {unit_of(name) for name in imported} & {
                "mae_core.data", "mae_core.training", "mae_core.checkpoint", "mae_core.images",
            }, source.module  # fmt: skip


@pytest.mark.parametrize("source", APP, ids=by_name)
def test_gradio_stays_in_the_page(source: Source) -> None:
    unit = unit_of(source.module)
    assert unit in APP_WITH_GRADIO | APP_WITHOUT_GRADIO, f"say whether {unit} may import gradio"
    if unit in APP_WITHOUT_GRADIO:
        assert "gradio" not in {name.split(".")[0] for name in imports_of(source)}


@pytest.mark.parametrize("source", APP, ids=by_name)
def test_app_uses_public_names_only(source: Source) -> None:
    for name in core_names_used(source):
        assert name in mae_core.__all__, f"{source.module} uses mae_core.{name}, not public"


def core_names_used(source: Source) -> set[str]:
    """What a file takes from `mae_core`: imported names, attributes, or paths of sub-modules."""
    names = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mae_core."):
            names.add((node.module or "").removeprefix("mae_core."))
        elif isinstance(node, ast.ImportFrom) and node.module == "mae_core":
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(
                alias.name.removeprefix("mae_core.")
                for alias in node.names
                if alias.name.startswith("mae_core.")
            )
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "mae_core"
        ):
            names.add(node.attr)
    return names


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    odd = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [m for m in MODULES if odd & set(m.split("."))], "a helper lives with its noun"


IMPORT_AND_LOOK = """
import gc, random, sys
opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
import numpy, torch
torch.manual_seed(1); random.seed(1); numpy.random.seed(1)
before = torch.get_rng_state(), random.getstate()
settings = torch.get_num_threads(), torch.get_default_dtype()
state = numpy.random.get_state()[1].copy()

import mae_core

assert torch.equal(before[0], torch.get_rng_state()), "draws from torch's generator"
assert before[1] == random.getstate(), "draws from random's generator"
assert (state == numpy.random.get_state()[1]).all(), "draws from numpy's generator"
assert settings == (torch.get_num_threads(), torch.get_default_dtype()), "changes settings"
assert "gradio" not in sys.modules, "imports gradio"
models = [o for o in gc.get_objects() if type(o) is mae_core.MaskedAutoencoder]
assert not models, "builds a model"
weights = [n for n in opened if n.endswith((".safetensors", ".pt", ".pth", "manifest.json"))]
assert not weights, weights
entries = [n for n in sys.modules if n.startswith("mae_core.") and n in %r]
assert not entries, entries
"""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


def test_import_is_inert() -> None:
    done = run_python(IMPORT_AND_LOOK % ENTRY_POINTS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_gradio_free_modules_import_without_gradio() -> None:
    modules = ", ".join(sorted(APP_WITHOUT_GRADIO & MODULES))
    done = run_python(f"import sys, {modules}; assert 'gradio' not in sys.modules")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_no_module_is_called_as_one_of_the_standard_library() -> None:
    # A script that is run from the package's folder would import ours in its place.
    assert [path for path in [*ROOT.glob("mae_core/**/*.py"), *ROOT.glob("app/**/*.py")]
            if path.stem in sys.stdlib_module_names] == []  # fmt: skip


def test_torch_can_be_imported_from_within_the_package() -> None:
    for folder in (ROOT / "mae_core", ROOT / "mae_core" / "training", ROOT / "app"):
        subprocess.run([sys.executable, "-c", "import torch"], cwd=folder, check=True)
