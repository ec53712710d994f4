"""The command `mae`: one sub-command for each thing that people do with a model.

    mae reconstruct IMAGE            four panels and their figures
    mae train RECIPE field=value     a training run, started or gone on with
    mae evaluate ...                 figures on a folder of images
    mae info WEIGHTS                 what a file of weights is
    mae convert WEIGHTS OUT          the same weights in another format
    mae fetch WEIGHTS                published weights, to have them offline
    mae pack FOLDER OUT              a folder of images, decoded once for training
    mae push RUN USER/NAME           a run to the Hugging Face hub

`mae COMMAND --help` says more. `python -m mae_core` is the same command.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

COMMANDS = ("train", "evaluate", "reconstruct", "convert", "info", "fetch", "pack", "push")


def entry(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a sub-command and exit with its status: 2 and `error: …` for an `MAEError`."""
    name, *arguments = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        sys.exit(0)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"give one of {', '.join(COMMANDS)}"
        print(f"error: mae has no command {name!r}; {advice}", file=sys.stderr)
        sys.exit(2)
    # OpenMP's threads spin at each barrier until the last of them arrives. If another program
    # occupies a core, that one is not scheduled and the spinning wastes its time: a step takes
    # several times as long. libgomp reads this when torch is imported, so it is set before.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    main = importlib.import_module(f"mae_core.commands.{name}").main
    end_process = importlib.import_module("mae_core.training.distributed").end_process
    run_entry = importlib.import_module("mae_core.commands.entry").run_entry
    run_entry(lambda: main(arguments), end_process)
    raise AssertionError("run_entry ends the process")
