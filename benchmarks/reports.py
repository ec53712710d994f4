"""What every report says of the run it comes from, and where it is written."""

import datetime
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def device_name(device: str) -> str:
    """What the machine calls its processor."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def conditions(
    benchmark: str, arguments: Sequence[str], device: str, packages: Sequence[str]
) -> dict[str, Any]:
    """What the figures of a benchmark depend on, before it begins.

    Args:
        benchmark: Name of its module.
        arguments: Of its command line.
        device: `cpu` or `cuda`.
        packages: Those whose version matters.
    """
    versions = [f"{name} {version(name)}" for name in packages]
    return {
        "date": datetime.date.today().isoformat(),
        "command": " ".join([f"python -m benchmarks.{benchmark}", *arguments]),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        # Above 0, something else was running: measure again when the machine is quiet.
        "load_before": os.getloadavg()[0],
        "versions": ", ".join([*versions, f"Python {platform.python_version()}"]),
    }


def write(report: dict[str, Any], page: str, name: str, out: Path) -> None:
    """Print a report, and write it as a page and as numbers.

    Args:
        report: The numbers, `conditions` among them.
        page: The same as Markdown.
        name: Ends the files' names, after the date.
        out: Folder of the files.
    """
    print(page)
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"{report['date']}-{name}"
    stem.with_suffix(".md").write_text(page, encoding="utf-8")
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
