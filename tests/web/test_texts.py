"""What a visitor of the page without a server is told, in both languages."""

import re
import string

from app.i18n import LOCALES
from tests.sources import ROOT

PROBLEM = re.compile(r"new Problem\(\s*'(\w+)'")


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_each_problem_has_its_text() -> None:
    names = set()
    for path in (ROOT / "web").glob("*.js"):
        names |= set(PROBLEM.findall(path.read_text(encoding="utf-8")))
    assert names <= set(LOCALES["en"]["web"])


def test_both_languages_say_the_same_things() -> None:
    english, chinese = (LOCALES[each]["web"] for each in ("en", "zh"))
    assert [*english] == [*chinese]
    for name, text in english.items():
        assert fields(text) == fields(chinese[name]), name
        assert re.search("[\u4e00-\u9fff]", chinese[name]), name


def test_what_the_parts_say_otherwise_is_a_text_of_theirs() -> None:
    english, chinese = (LOCALES[each] for each in ("en", "zh"))
    for part, others in english["web_stage"].items():
        assert [*others] == [*chinese["web_stage"][part]]
        assert {*others} <= {*english["stage"][part]}
