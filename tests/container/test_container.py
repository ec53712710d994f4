"""What the container's files promise, as far as it can be told without an engine.

`rehearse.py` beside this builds and runs the image, by hand.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.app.serving import settings_from
from tests.sources import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the Dockerfile and its argument, continued lines joined."""
    lines = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in whole.splitlines()]


def arguments(name: str) -> list[str]:
    return [argument for instruction, argument in instructions() if instruction == name]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in " ".join(arguments("ENV")).split())


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return loaded


SERVICES = compose()["services"]


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
        "hadolint"
    )
    if hadolint is None:
        pytest.skip("there is no hadolint; requirements-dev.txt has it")
    found = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


def test_the_base_is_pinned_to_a_python_that_we_run_on() -> None:
    (tag,) = [given.partition("=")[2] for given in arguments("ARG") if "PYTHON_IMAGE" in given]
    assert re.fullmatch(r"docker\.io/library/python:3\.1[0-2]\.\d+-slim-\w+", tag)
    assert {base.split()[0] for base in arguments("FROM")} == {"${PYTHON_IMAGE}"}


def test_it_runs_as_uid_1000_and_signals_reach_python() -> None:
    assert arguments("USER") == ["1000"]
    assert arguments("CMD")[-1] == '["python", "-m", "app"]'
    assert "ENTRYPOINT" not in dict(instructions())


def test_what_is_written_goes_where_a_read_only_container_lets_it() -> None:
    values = environment()
    (volume,) = arguments("VOLUME")
    for name in ("XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME"):
        assert Path(values[name]).is_relative_to(volume)
    for name in ("HOME", "GRADIO_TEMP_DIR"):
        assert Path(values[name]).is_relative_to("/tmp")


def test_it_listens_where_it_says() -> None:
    values = environment()
    assert arguments("EXPOSE") == [values["MAE_PORT"]]
    settings = settings_from(values)
    assert (settings.host, settings.port) == ("0.0.0.0", 7860)


def test_only_what_runs_goes_into_the_image() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line]
    rules = [line for line in ignored if not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = {
        word for given in arguments("COPY") if "--from" not in given for word in given.split()[:-1]
    }
    assert allowed == copied == {"requirements.txt", "mae_core", "app", "weights"}


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
def test_a_service_can_do_nothing_it_need_not(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert "privileged" not in service


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
def test_a_service_keeps_what_was_fetched_and_has_room_for_the_rest(
    service: dict[str, Any],
) -> None:
    (volume,) = service["volumes"]
    name, _, target = volume.partition(":")
    assert name in compose()["volumes"]
    assert [target] == arguments("VOLUME")
    (tmpfs,) = service["tmpfs"]
    size = re.fullmatch(r"/tmp:size=(\d+)g,mode=1777", tmpfs)
    assert size is not None
    assert int(size[1]) >= 2 * float(service["environment"]["MAE_DISK_GB"])


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
def test_a_service_is_given_the_time_to_drain(service: dict[str, Any]) -> None:
    grace = re.fullmatch(r"(\d+)s", service["stop_grace_period"])
    assert grace is not None
    assert int(grace[1]) > settings_from(service["environment"]).drain_seconds


def test_the_gpu_is_asked_for_by_one_service_only() -> None:
    gpu = SERVICES["gpu"]
    assert gpu["profiles"] == ["gpu"]
    # An empty TORCH_INDEX leaves PyPI's torch, which has CUDA.
    assert gpu["build"]["args"] == {"TORCH_INDEX": ""}
    assert settings_from(gpu["environment"]).device == "cuda"
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert "deploy" not in SERVICES["cpu"]
    assert "profiles" not in SERVICES["cpu"]
