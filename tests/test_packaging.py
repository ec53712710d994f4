"""What `pip install .` brings: the library, the bundled weights and the command `mae`.

The pins of requirements*.txt lie in the ranges of pyproject.toml: what is tested may be installed.
"""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.sources import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
RANGES = {
    "": PROJECT["dependencies"],
    **PROJECT["optional-dependencies"],
}
# Which file pins the requirements of the library ("") and of an extra.
PINNED_IN = {
    "": "requirements.txt", "demo": "requirements.txt", "train": "requirements-train.txt",
    "data": "requirements-data.txt", "dense": "requirements-dense.txt",
    "onnx": "requirements-onnx.txt", "science": "requirements-science.txt",
}  # fmt: skip
# What must not be needed to import the library, and to use it without these.
OPTIONAL = (
    "app", "cachetools", "cv2", "datasets", "gradio", "imagecodecs", "jinja2", "matplotlib", "onnx",
    "onnxruntime", "onnxscript", "pillow_heif", "prometheus_client", "pycocotools",
    "pydantic_settings", "segmentation_models_pytorch", "starlette", "tensorboard",
    "tifffile", "transformers",
)  # fmt: skip


def pins_of(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if re.match(r"[\w-]+==", line))


def test_each_extra_has_its_file_of_pins() -> None:
    assert set(PINNED_IN) == set(RANGES)


@pytest.mark.parametrize("file", sorted(set(PINNED_IN.values())))
def test_each_pin_lies_in_its_range_and_each_range_has_a_pin(file: str) -> None:
    extras = [extra for extra, where in PINNED_IN.items() if where == file]
    ranges = [Requirement(text) for extra in extras for text in RANGES[extra]]
    pins = pins_of(file)
    assert sorted(requirement.name for requirement in ranges) == sorted(pins)
    for requirement in ranges:
        assert requirement.specifier.contains(pins[requirement.name]), requirement
        assert any(bound.operator == ">=" for bound in requirement.specifier), requirement


def test_make_takes_the_pythons_that_the_project_takes() -> None:
    supported = SpecifierSet(PROJECT["requires-python"])
    taken = [f"3.{minor}" for minor in range(30) if supported.contains(f"3.{minor}")]
    assert taken == ["3.11", "3.12", "3.13", "3.14"]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert "(3, 11) <= sys.version_info[:2] <= (3, 14)" in makefile
    assert set(re.findall(r"(3\.\d+) to (3\.\d+)", makefile)) == {("3.11", "3.14")}


def test_every_package_is_listed() -> None:
    folders = {path.parent.relative_to(ROOT) for path in ROOT.glob("mae_core/**/__init__.py")}
    names = {".".join(folder.parts) for folder in folders}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == names | {"mae_core.bundled"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git has, or would take: building leaves files beside the sources."""
    folder = tmp_path_factory.mktemp("build")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "app", "mae_core",
         "tests", "weights", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True, capture_output=True)
    (path,) = (folder / "dist").glob("mae_core-*-py3-none-any.whl")
    return path


def test_the_wheel_holds_the_library_and_the_weights_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry_points,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert "mae = mae_core.cli:entry" in archive.read(entry_points).decode()
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.glob("mae_core/**/*")
        if path.is_file() and path.suffix != ".pyc"
    }
    weights = {f"mae_core/bundled/{path.name}" for path in ROOT.glob("weights/*")}
    assert {name for name in weights if name.endswith((".safetensors", "manifest.json"))}
    assert names == sources | weights


USE = """
import sys
for name in %r:
    sys.modules[name] = None
import mae_core
for name in mae_core.__all__:
    getattr(mae_core, name)
from mae_core.weights.registry import WEIGHTS_FOLDER
assert str(WEIGHTS_FOLDER).startswith(sys.argv[1]), WEIGHTS_FOLDER
image = mae_core.Reconstructor(mae_core.load())(sys.argv[2], mask_ratio=0.75, seed=2).strip()
assert image.size == (4 * 224 + 3 * 8, 224), image.size
"""


def test_the_installed_library_works_alone(wheel: Path, tmp_path: Path) -> None:
    """Away from the checkout, and without anything that only an extra brings."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    picture = ROOT / "app" / "assets" / "examples" / "cat.jpg"
    done = subprocess.run(
        [sys.executable, "-c", USE % (OPTIONAL,), str(site), str(picture)],
        cwd=tmp_path, env={"PYTHONPATH": str(site), "PATH": ""}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("arguments", [[], ["train", "--help"]])
def test_help_does_not_wait_for_torch(arguments: list[str]) -> None:
    code = (
        "import atexit, sys; from mae_core.cli import entry; "
        "atexit.register(lambda: print('torch' in sys.modules, 'numpy' in sys.modules)); "
        f"entry({arguments})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "usage: mae" in done.stdout
    assert done.stdout.endswith("False False\n")
