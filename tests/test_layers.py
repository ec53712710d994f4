"""The layers of docs/design.md, held by walking every import."""

import ast
import graphlib
import importlib
import subprocess
import sys

import pytest

from tests.sources import ROOT, Source, imported_modules, sources_of

# What the modules of a part may import, beside those of the same part. A part is a module or a
# sub-package of `mae_core`; a new one is given its line.
ANY = None
MAY_IMPORT: dict[str, set[str] | None] = {
    "errors": set(),
    "_compat": set(),
    "measurements": {"errors"},
    "config": {"errors", "measurements"},
    "recipes": {"config", "errors", "weights"},
    "devices": {"errors"},
    "distributed": {"devices", "errors"},
    "reporting": set(),
    "model": {"_compat", "config", "errors"},
    "photographs": {"errors", "measurements"},
    "images": {"errors", "measurements", "photographs"},
    "metrics": {"errors", "model"},
    "inpainting": {"metrics"},
    "normpix": {"config", "errors", "model"},
    "weights": {"config", "devices", "errors", "model"},
    "reconstruct": {
        "config", "devices", "errors", "images", "measurements", "metrics", "model", "normpix",
        "photographs", "weights",
    },
    "settings": {"config", "errors", "images", "model", "reconstruct", "weights"},
    "data": {"config", "errors", "images", "measurements", "photographs"},
    "evaluation": {
        "_compat", "config", "data", "devices", "distributed", "errors", "images", "inpainting",
        "measurements", "metrics", "model", "normpix", "photographs", "reconstruct", "reporting",
        "weights",
    },
    "inside": {
        "config", "devices", "errors", "images", "inpainting", "metrics", "model", "normpix",
        "reconstruct", "weights",
    },
    # `evaluation` too, in these modules only: TRAINING_MEETS_EVALUATION.
    "training": {
        "config", "data", "devices", "distributed", "errors", "evaluation", "images",
        "measurements", "model", "photographs", "recipes", "reconstruct", "reporting",
        "weights",
    },
    "finetune": {
        "config", "data", "distributed", "errors", "evaluation", "training", "weights",
    },
    "ablate": {
        "config", "data", "devices", "errors", "evaluation", "finetune", "training", "weights",
    },
    "cli": ANY,
    "train": {"cli"},
    "__main__": {"cli"},
    "": ANY,
}  # fmt: skip
TRAINING_MEETS_EVALUATION = {"mae_core.training.callbacks"}
ENTRY_POINTS = {"mae_core.cli", "mae_core.train", "mae_core.__main__"}

APP_WITH_GRADIO = {
    "app.__main__", "app.gradio_seam", "app.serving", "app.page", "app.deploy", "app.space",
}  # fmt: skip

# What the site is built of beside files: it has no part of the server's page.
WEB_OF_APP = {"app.examples"}

# What would let a network read or write files.
FILES = {"io", "json", "os", "pathlib", "shutil", "tempfile", "PIL", "safetensors",
         "huggingface_hub"}  # fmt: skip

CORE = sources_of("mae_core")
APP = sources_of("app")
WEB = sources_of("web")
MODULES = {source.module for source in CORE + APP + WEB}
APP_WITHOUT_GRADIO = [s for s in APP if ".".join(s.module.split(".")[:2]) not in APP_WITH_GRADIO]


def unit_of(module: str) -> str:
    """The module or sub-package that the tables name: `mae_core.model.mae` is in `.model`."""
    return ".".join(module.split(".")[:2])


def part_of(module: str) -> str:
    return unit_of(module).removeprefix("mae_core").removeprefix(".")


def imports_of(source: Source) -> set[str]:
    return imported_modules(source, MODULES)


def by_name(source: Source) -> str:
    return source.module


@pytest.mark.parametrize("source", CORE, ids=by_name)
def test_parts_import_what_they_stand_on(source: Source) -> None:
    own = part_of(source.module)
    assert own in MAY_IMPORT, f"give {source.module} a line in MAY_IMPORT"
    allowed = MAY_IMPORT[own]
    if allowed is ANY:
        return
    parts = {
        part_of(name) for name in imports_of(source) if name in MODULES and "mae_core." in name
    }
    assert parts - {own} <= allowed, source.module


def test_no_imports_go_in_circles() -> None:
    graph = {
        source.module: {name for name in imports_of(source) if name in MODULES} - {source.module}
        for source in CORE
    }
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("source", CORE, ids=by_name)
def test_core_knows_no_page(source: Source) -> None:
    tops = {name.split(".")[0] for name in imports_of(source)}
    assert not tops & {"app", "gradio", "gradio_client", "tests", "benchmarks", "web"}


def test_public_package_imports_no_entry_point() -> None:
    package = next(source for source in CORE if source.module == "mae_core")
    assert not imports_of(package) & ENTRY_POINTS


def test_training_and_evaluation_meet_in_callbacks_only() -> None:
    meeting = {
        source.module
        for source in CORE
        if part_of(source.module) == "training"
        and "evaluation" in {part_of(name) for name in imports_of(source)}
    }
    assert meeting <= TRAINING_MEETS_EVALUATION


def test_models_know_no_files_data_or_training() -> None:
    for source in CORE:
        if unit_of(source.module) == "mae_core.model":
            imported = imports_of(source)
            assert not {name.split(".")[0] for name in imported} & FILES, source.module


@pytest.mark.parametrize("source", APP, ids=by_name)
def test_gradio_stays_in_the_page(source: Source) -> None:
    if source in APP_WITHOUT_GRADIO:
        assert "gradio" not in {name.split(".")[0] for name in imports_of(source)}


@pytest.mark.parametrize("source", WEB, ids=by_name)
def test_the_site_knows_no_server(source: Source) -> None:
    imported = imports_of(source)
    assert {name for name in imported if name.split(".")[0] == "app"} <= WEB_OF_APP
    assert not {name.split(".")[0] for name in imported} & {"gradio", "starlette", "tests"}


def test_the_site_is_built_by_deploy_only() -> None:
    # A Space that runs the page has no web/.
    for source in APP:
        if unit_of(source.module) != "app.deploy":
            assert "web" not in {name.split(".")[0] for name in imports_of(source)}, source.module


@pytest.mark.parametrize("source", APP + WEB, ids=by_name)
def test_app_uses_public_names_only(source: Source) -> None:
    """What `mae_core` or one of its parts lists in `__all__`."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            assert not [a.name for a in node.names if a.name.startswith("mae_core.")], source.module
        elif isinstance(node, ast.ImportFrom) and unit_of(node.module or "").startswith("mae_core"):
            part = importlib.import_module(node.module or "")
            for alias in node.names:
                assert alias.name in part.__all__, f"{node.module}.{alias.name} is not public"


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    odd = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [m for m in MODULES if odd & set(m.split("."))], "a helper lives with its noun"


IMPORT_AND_LOOK = """
import gc, importlib, random, sys
opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
import numpy, torch
torch.manual_seed(1); random.seed(1); numpy.random.seed(1)
before = torch.get_rng_state(), random.getstate()
settings = torch.get_num_threads(), torch.get_default_dtype()
state = numpy.random.get_state()[1].copy()

import mae_core

entries = [n for n in sys.modules if n in %r]
assert not entries, entries
for name in %r:
    importlib.import_module(name)

assert torch.equal(before[0], torch.get_rng_state()), "draws from torch's generator"
assert before[1] == random.getstate(), "draws from random's generator"
assert (state == numpy.random.get_state()[1]).all(), "draws from numpy's generator"
assert settings == (torch.get_num_threads(), torch.get_default_dtype()), "changes settings"
assert "gradio" not in sys.modules, "imports gradio"
assert "matplotlib" not in sys.modules, "imports what only a report needs"
models = [o for o in gc.get_objects() if type(o) is mae_core.MaskedAutoencoder]
assert not models, "builds a model"
weights = [n for n in opened if n.endswith((".safetensors", ".pt", ".pth", "manifest.json"))]
assert not weights, weights
"""


def test_imports_are_inert_and_need_no_gradio() -> None:
    """Of the library, and of the modules of the page that are to be without Gradio."""
    modules = [source.module for source in CORE + APP_WITHOUT_GRADIO]
    code = IMPORT_AND_LOOK % (ENTRY_POINTS, modules)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_no_module_is_called_as_one_of_the_standard_library() -> None:
    # A script that is run from the package's folder would import ours in its place.
    for source in CORE + APP + WEB:
        assert source.path.stem not in sys.stdlib_module_names, source.module


def test_torch_can_be_imported_from_within_the_package() -> None:
    # A program that is run from one of these folders has it first on its path.
    folders = [str(ROOT / name) for name in ("mae_core", "mae_core/training", "app")]
    code = f"import sys; sys.path[:0] = {folders}; import torch"
    subprocess.run([sys.executable, "-c", code], check=True)
