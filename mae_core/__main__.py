"""`python -m mae_core` is the command `mae`."""

from mae_core.cli import entry

if __name__ == "__main__":
    entry()
