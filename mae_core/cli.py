"""The command `mae`: one sub-command for each thing that people do with a model."""

import importlib
import sys
from collections.abc import Sequence

from mae_core.commands.entry import run_entry
from mae_core.errors import ConfigError

COMMANDS = ("train", "evaluate", "reconstruct", "convert", "info", "fetch", "pack", "push")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    name = arguments[0] if arguments else ""
    if name not in COMMANDS:
        raise ConfigError(f"give one of {', '.join(COMMANDS)}")
    module = importlib.import_module(f"mae_core.commands.{name}")
    status: int = module.main(arguments[1:])
    return status


def entry() -> None:
    """The command `mae`."""
    run_entry(main)
