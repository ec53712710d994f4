"""Questions that the browser takes and refuses, beside those of the page with a server."""

import json
from typing import Any

import pytest

from app.experiments import _NUMBERS, KINDS, Plan
from app.i18n import LOCALES
from app.request import check_patches, parse
from mae_core import MAEError
from tests.javascript import run

READ = """
import { readPlan, readRequest } from './web/request.js';
const offer = {
  models: [{ name: 'tiny', patch_size: 16 }, { name: 'other', patch_size: 14 }], most: 1024,
  picture: 'digest',
};
console.log(JSON.stringify(given.map((plan) => {
  try {
    const { kind, request, number, format } = readPlan(plan);
    return { kind, number, format, settings: readRequest(request, offer) };
  } catch ({ text, values }) {
    return { text, values };
  }
})));
"""
PATCHES = {"tiny": 16, "other": 14}

MASK = {"strategy": "random", "ratio": 0.5, "seed": 3, "rows": [], "drawing": ""}
REQUEST = {
    "v": 1, "picture": "old", "mask": MASK, "fit": "whole", "model": "tiny", "image_size": None,
    "view": "answer",
}  # fmt: skip


def of(**changes: Any) -> dict[str, Any]:
    """A plan whose request is another one."""
    return {"v": 1, "kind": "single", "request": REQUEST | changes}


def masked(**changes: Any) -> dict[str, Any]:
    return of(mask=MASK | changes)


def without(name: str) -> dict[str, Any]:
    return of(mask={key: value for key, value in MASK.items() if key != name})


ASKED = {"v": 1, "kind": "film", "request": REQUEST}
OTHERS: list[Any] = [None, True, False, 0, 1, -1, 1.5, 2, "", "1", "webp", [], {}, [1], 1e300]
CASES: list[Any] = [
    *OTHERS,
    of(),
    {"v": 1, "kind": "single"},
    *({**ASKED, "v": value} for value in OTHERS),
    *({**ASKED, "kind": kind} for kind in (*KINDS, *OTHERS)),
    *({**ASKED, "kind": kind, "frames": 2} for kind in KINDS),
    *({**ASKED, "kind": kind, "format": "webp"} for kind in KINDS),
    *({**ASKED, "format": value} for value in OTHERS),
    *(
        {**ASKED, "kind": kind, name: value}
        for kind, numbers in _NUMBERS.items() for name, (least, most, _) in numbers.items()
        for value in (least - 1, least, most, most + 1, *OTHERS)
    ),
    {**ASKED, "request": {}},
    {**ASKED, "request": {"mask": MASK}},
    *({**ASKED, "request": value} for value in OTHERS),
    *(of(**{name: value}) for name in (*REQUEST, "speed") for value in OTHERS),
    of(fit="squash"), of(view="normalized"), of(model="other"), of(model="third"),
    *(of(image_size=size) for size in (0, 1, 16, 17, 224, 224.0, 1024, 1025, 1040, "224")),
    of(image_size=28, model="other"), of(image_size=32, model="other"),
    *(
        masked(**{name: value})
        for name in (*MASK, "colour") for value in OTHERS if value not in ([], {})
    ),
    *(without(name) for name in MASK),
    *(masked(strategy=strategy) for strategy in ("block", "grid", "story")),
    *(masked(ratio=ratio) for ratio in (0.05, 0.0499999, 0.95, 0.9500001, 0.12345678, 1 / 3)),
    *(masked(seed=seed) for seed in (0, 2.0, 2**31, 2**53 - 1, 2**63, 1e30)),
    masked(drawing="digest"),
    *(masked(rows=rows) for rows in (
        ["01", "10"], [[0, 1], [1, 0]], [["0", "1"], [1.0, 0]], ["0"], ["1"], ["11", "11"],
        ["01", "1"], ["01", "12"], ["01", ""], ["0 ", "10"], [[]], [[2]], [None], "01", [5], ["1a"],
        ["0" * 64] * 64, ["0" * 64] * 65, ["0" * 4097], ["0"] * 4097,
    )),
    of(mask={"rows": ["01", "10"]}), of(mask={"rows": ["01"], "ratio": None, "seed": 1}),
    of(mask={"rows": ["01"], "ratio": 7}),
]  # fmt: skip

# What the browser calls otherwise than Python.
_TEXTS = {"mask": {"mask_rows", "mask_whole"}, "seed": {"whole"}, "image_size": {"whole"}}


def of_python(plan: Any) -> Any:
    """What the page with a server takes; the code of an error, if it refuses it."""
    try:
        read = Plan.from_json(plan, b"")
        models = [*PATCHES]
        model = read.values.get("model")
        if model is None:
            model = models[0]
        if model not in models:
            return "choice"
        request = parse(read.values, str(model), 1024, lambda _: "digest")
        check_patches(request, PATCHES[str(model)])
    except MAEError as error:
        return error.code
    return {
        "kind": read.kind, "number": read.number, "format": read.format,
        "settings": json.loads(json.dumps(request.to_json())),
    }  # fmt: skip


@pytest.fixture(scope="module")
def found(node: str) -> list[Any]:
    """What the browser says of each case."""
    answers: list[Any] = json.loads(run(node, READ, CASES))
    return answers


def test_the_browser_takes_and_refuses_what_the_server_does(found: list[Any]) -> None:
    for case, told in zip(CASES, found, strict=True):
        wanted = of_python(case)
        if told.get("text") == "needs_server":
            assert case["kind"] in ("attention", "training")
        elif isinstance(wanted, str):
            assert told.get("text") in _TEXTS.get(wanted, {wanted}), case
        else:
            assert told == wanted, case


def test_every_problem_fills_its_text(found: list[Any]) -> None:
    for told in found:
        if "text" in told:
            for texts in (LOCALES["en"]["web"], LOCALES["zh"]["web"]):
                texts[told["text"]].format(**told["values"])


def test_seeds_beyond_what_a_browser_holds_exactly_are_refused(node: str) -> None:
    (told,) = json.loads(run(node, READ, [masked(seed=2**53)]))
    assert (told["text"], told["values"]["most"]) == ("whole", 2**53 - 1)


def test_gif_is_the_servers(node: str) -> None:
    (told,) = json.loads(run(node, READ, [{**ASKED, "format": "gif"}]))
    assert (told["text"], told["values"]["allowed"]) == ("choice", "webp")
