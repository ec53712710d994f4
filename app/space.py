"""What a Gradio Space starts: `python app/space.py`.

The page as `python -m app` serves it, on every address of the machine where no other is given.
"""

import contextlib
import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Serve until stopped; returns the exit status."""
    # Python looks for modules beside this file, where ours would hide others of the same name,
    # and not where our packages are.
    sys.path[0] = str(ROOT)
    # Where names of weights that came with the files begin.
    os.chdir(ROOT)
    os.environ.setdefault("GRADIO_SERVER_NAME", "0.0.0.0")
    # On ZeroGPU it has to come before torch; elsewhere there may be none.
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("spaces")
    page = importlib.import_module("app.__main__")
    return int(page.main([]))


if __name__ == "__main__":
    sys.exit(main())
