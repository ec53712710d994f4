"""Every field that docs/training.md names in its table of ablations is one, with such a value."""

import re
import shlex
from pathlib import Path

import pytest

from mae_core.config import with_overrides
from mae_core.recipes import recipe

PAGE = Path(__file__).resolve().parents[1] / "docs" / "training.md"
ROWS = [line.split("|")[3] for line in PAGE.read_text(encoding="utf-8").splitlines()
        if re.match(r"\|.*\|.*\| .*`[^`]*(mask|model|data)\.[a-z_]+=", line)]  # fmt: skip


def test_the_table_is_found() -> None:
    assert len(ROWS) > 20


@pytest.mark.parametrize("row", ROWS)
def test_a_rows_fields_are_accepted(row: str) -> None:
    fields = re.findall(r"`([^`]*=[^`]*)`", row)
    assert fields
    for field in fields:
        with_overrides(recipe("large"), ["model.norm_pix=false", *shlex.split(field)])
