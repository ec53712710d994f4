"""Upload a finished run to the Hugging Face hub: mae push RUN_DIR USER/NAME.

    mae push runs/flowers me/flowers dry_run=true
    mae push runs/flowers me/flowers private=true license=apache-2.0

One commit brings the weights in our format (`weights.safetensors`) and in transformers'
(`model.safetensors`, `config.json`, `preprocessor_config.json`), a model card (`README.md`) and the
last grid of reconstructions, which shows some of the run's images: look at the dry run first.

    private   whether only you can see it; false
    license   as the hub names it; unknown, as only you know what your images allow
    update    whether it may go on top of what is already there; false
    dry_run   write what would be uploaded to RUN_DIR/hub and send nothing; false

The token is the one that `hf auth login` or the variable HF_TOKEN gives.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mae_core.config import with_overrides
from mae_core.errors import ConfigError
from mae_core.weights.publish import NO_LICENSE, push

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PushConfig:
    """How a run is uploaded; see `push`."""

    private: bool = False
    license: str = NO_LICENSE
    update: bool = False
    dry_run: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # It tells of every request.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    if len(arguments) < 2:
        raise ConfigError("give the run's folder and where it goes: RUN_DIR USER/NAME")
    config = with_overrides(PushConfig(), arguments[2:])
    address = push(
        Path(arguments[0]), arguments[1], license_name=config.license, private=config.private,
        update=config.update, dry_run=config.dry_run,
    )  # fmt: skip
    _log.info("wrote %s; nothing was sent" if config.dry_run else "uploaded %s", address)
    return 0
