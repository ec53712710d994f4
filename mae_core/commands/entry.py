"""What the command lines share: errors a user can mend end in one line, not a traceback.

And a container's CPU quota bounds torch's threads.
"""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

import torch

from mae_core.devices import choose_threads
from mae_core.errors import MAEError


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers that a flag takes, such as `3,2,1`.

    Raises:
        argparse.ArgumentTypeError: If they are none.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}; give numbers such as 3,2,1") from error


def add_measurement_flags(parser: argparse.ArgumentParser) -> None:
    """The flags `--bands` and `--range`, for pictures that are measurements."""
    parser.add_argument(
        "--bands", type=numbers, default=(), metavar="N,N,N",
        help="bands of the pictures that are the model's channels, from 1; those of its training "
        "if not given",
    )  # fmt: skip
    parser.add_argument(
        "--range", metavar="LOW,HIGH",
        help="values of more than 8 bits that become black and white, auto or dtype; those of the "
        "model's training if not given",
    )  # fmt: skip


def run_entry(main: Callable[[], int], end: Callable[[int], NoReturn] = sys.exit) -> None:
    """Run an entry point and exit with its status, or 2 and `error: …` for an MAEError.

    Args:
        main: Returns the status.
        end: Exits with it.
    """
    torch.set_num_threads(choose_threads())
    try:
        status = main()
    except MAEError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        # 128 + SIGINT, as shells report it.
        status = 130
    end(status)
