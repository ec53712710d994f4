"""`python -m mae_core` is the command `mae`."""

from mae_core.cli import entry

entry()
