"""What the documents name is there: files, folders, modules and tests."""

import re
from pathlib import Path

import pytest

from tests.sources import ROOT

PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("tests/**/*.md")),
]
# As the project is looked at from the root, from the page, or from `tests/`, as docs/security.md
# says.
NAMED_FILE = re.compile(
    r"`((?:app|benchmarks|docs|mae_core|security|tests|web|weights)/[\w./-]*)(?:::(\w+))?`"
)
NAMED_MODULE = re.compile(r"`((?:app|mae_core|web)(?:\.[a-z]\w*)+)`")
# A test of the file named before it.
NAMED_TEST = re.compile(r"`…(?:::)?(\w+)…?`")
NAMED_ALONE = re.compile(r"`(\w+\.(?:py|js))`")
# In an installed package, and of another project.
ELSEWHERE = {"mae_core/bundled", "zero_to_fp32.py"}
SOURCES = {
    path.name
    for folder in ("app", "benchmarks", "mae_core", "tests", "web")
    for path in (ROOT / folder).rglob("*.*")
}
TESTS = "\n".join(path.read_text("utf-8") for path in ROOT.glob("tests/**/*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    missing = [
        target
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
        if not (page.parent / target).exists()
    ]
    for name, test in NAMED_FILE.findall(text):
        found = [root / name for root in (ROOT, ROOT / "tests") if (root / name).exists()]
        if not found or (test and f"def {test}(" not in found[-1].read_text("utf-8")):
            missing.append(f"{name}::{test}" if test else name)
    missing += [name for name in NAMED_ALONE.findall(text) if name not in SOURCES]
    missing += [name for name in NAMED_MODULE.findall(text) if not is_there(name)]
    missing += [
        name for name in NAMED_TEST.findall(text) if not re.search(rf"def \w*{name}\w*\(", TESTS)
    ]
    assert set(missing) <= ELSEWHERE


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or a word in the module that holds it."""
    parts = name.split(".")
    path = ROOT.joinpath(*parts)
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    holder = ROOT.joinpath(*parts[:-1])
    source = holder / "__init__.py" if holder.is_dir() else holder.with_suffix(".py")
    return source.is_file() and bool(re.search(rf"\b{parts[-1]}\b", source.read_text("utf-8")))
