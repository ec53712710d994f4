"""What the command lines share: errors a user can mend end in one line, not a traceback.

And a container's CPU quota bounds torch's threads.
"""

import sys
from collections.abc import Callable
from typing import NoReturn

import torch

from mae_core.devices import choose_threads
from mae_core.errors import MAEError


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
