"""What no visitor should ever read: where the program lies, and how it failed."""

import re
import sys
from pathlib import Path

from tests.sources import ROOT

# A home folder that is the root of all files would be found everywhere.
_FOLDERS = {str(ROOT), sys.prefix, sys.base_prefix, str(Path.home())} - {"/", "/usr"}
_WORDS = [
    "Traceback",
    "site-packages",
    r"\.py\b.{0,20}line \d",
    "Error: ",
    "<module ",
    "object at 0x",
]
_INTERNALS = re.compile("|".join([*map(re.escape, sorted(_FOLDERS)), *_WORDS]))


def internals_in(text: str) -> list[str]:
    """Internals found in an answer, with what is around them."""
    found = _INTERNALS.finditer(text)
    return [text[max(0, match.start() - 60) : match.end() + 60] for match in found]
