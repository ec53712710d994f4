"""No installed package is older than the fix of an advisory that we know, and all are pinned."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.sources import ROOT

ADVISORIES = tomllib.loads(Path(__file__).with_name("advisories.toml").read_text("utf-8"))
REQUIREMENTS = sorted(ROOT.glob("requirements*.txt"))


@pytest.mark.parametrize("advisory", ADVISORIES["advisory"], ids=lambda advisory: advisory["id"])
def test_what_is_installed_has_the_fix(advisory: dict[str, str]) -> None:
    assert set(advisory) == {"id", "package", "fixed", "why"}
    assert re.fullmatch(r"CVE-\d{4}-\d{4,}|GHSA(-[23456789cfghjmpqrvwx]{4}){3}", advisory["id"])
    try:
        installed = version(advisory["package"])
    except PackageNotFoundError:
        pytest.skip(f"{advisory['package']} is not installed")
    assert Version(installed) >= Version(advisory["fixed"])


@pytest.mark.parametrize("advisory", ADVISORIES["open"], ids=lambda advisory: advisory["ids"][0])
def test_what_has_no_fix_yet_is_held_by_a_test(advisory: dict[str, str]) -> None:
    """When this fails because the fix is installed, the entry has had its time."""
    assert set(advisory) == {"package", "ids", "danger", "held_by", "test"}
    path, _, name = advisory["test"].partition("::")
    assert f"def {name}" in (ROOT / path).read_text("utf-8")
    assert Version(version("pillow")) < Version("13"), "the fix is installed: delete the entry"


def test_each_advisory_is_listed_once() -> None:
    listed = [(advisory["id"], advisory["package"]) for advisory in ADVISORIES["advisory"]]
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.name)
def test_requirements_name_one_version_and_no_place(path: Path) -> None:
    lines = [line.partition(" #")[0].strip() for line in path.read_text("utf-8").splitlines()]
    for line in filter(None, lines):
        if line.startswith("#"):
            continue
        if line.startswith("-r "):
            assert (path.parent / line.removeprefix("-r ")).is_file()
            continue
        requirement = Requirement(line)
        assert requirement.url is None
        assert re.fullmatch(r"==[\w.+!]+", str(requirement.specifier)), line
