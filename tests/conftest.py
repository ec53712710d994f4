"""What every test starts from: no network, and property tests that always try the same cases."""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
from filelock import FileLock
from hypothesis import settings

# Before anything imports them: nothing is fetched, nothing is reported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

# Threads that wait give way: where two tests compute at a time they spin each other's cores away
# otherwise, and those of training take two to three times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Settings read the environment: those of a page in a test are what the test gives.
for name in [*os.environ]:
    if name in ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "SPACE_ID") or (
        name.startswith("MAE_") and not name.startswith("MAE_REQUIRE_")
    ):
        del os.environ[name]

# No deadline: a busy machine is no bug.
settings.register_profile("steady", derandomize=True, deadline=None, database=None)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def node() -> str:
    """Path of Node.js."""
    path = shutil.which("node")
    if path is None:
        _without_node("no Node.js on this machine: no node is on the PATH")
    return path


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page without a server, as `make web` builds it; once for all processes of a run."""
    # Not at the top: it takes torch a second to come.
    from web.build import ROOT, build_site

    if not (ROOT / "node_modules/onnxruntime-web").is_dir():
        _without_node("the npm package onnxruntime-web is not installed: npm ci")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    built = folder / "site"
    with FileLock(folder / "site.lock"):
        if not built.is_dir():
            build_site(built)
    return built


def _without_node(reason: str) -> NoReturn:
    if os.environ.get("MAE_REQUIRE_NODE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
