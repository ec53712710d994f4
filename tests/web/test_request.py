"""Questions that the browser takes and refuses, beside those of the page with a server."""

import json
from typing import Any

import pytest

from app.experiments import _NUMBERS, KINDS, Plan
from app.i18n import LOCALES
from app.request import check_choice, parse
from mae_core import MAEError
from tests.javascript import run

READ = """
import { checkRequest, readPlan } from './web/request.js';
const models = [
  { name: 'tiny', grid: [14, 14], patch_size: 16 }, { name: 'other', grid: [7, 7], patch_size: 14 },
];
console.log(JSON.stringify(given.map((plan) => {
  try {
    const { kind, request, number, format } = readPlan(plan);
    return { kind, number, format, settings: checkRequest(request, models) };
  } catch ({ text, values }) {
    return { text, values };
  }
})));
"""
MODELS = ["tiny", "other"]

MASK = {"strategy": "random", "ratio": 0.5, "seed": 3, "rows": [], "drawing": ""}
REQUEST = {
    "v": 1, "picture": "old", "mask": MASK, "fit": "squash", "model": "tiny", "image_size": None,
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
    of(fit="crop"), of(view="normalized"), of(model="other"), of(model="third"),
    *(of(image_size=size) for size in (0, 224, 224.0, 1025, "224")),
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
_TEXTS = {"mask": {"mask_rows", "mask_whole"}, "seed": {"whole"}}


def of_python(plan: Any) -> Any:
    """What the page with a server takes; the code of an error, if it refuses it."""
    try:
        read = Plan.from_json(plan, b"")
        model = read.values.get("model")
        name = MODELS[0] if model is None else check_choice("model", model, MODELS)
        request = parse(read.values, name, 1024, lambda _: "")
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
        elif told.get("text") == "image_size":
            assert case["request"]["image_size"] not in (None, 224)
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


def test_gif_and_whole_frames_are_the_servers(node: str) -> None:
    gif, whole = json.loads(run(node, READ, [{**ASKED, "format": "gif"}, of(fit="whole")]))
    assert (gif["text"], gif["values"]["allowed"]) == ("choice", "webp")
    assert (whole["text"], whole["values"]["allowed"]) == ("choice", "crop, squash")


def test_a_models_file_takes_one_size(node: str) -> None:
    cases = [of(image_size=98, model="other"), of(image_size=224, model="other")]
    own, other = json.loads(run(node, READ, cases))
    assert own["settings"]["image_size"] == 98
    assert other == {"text": "image_size", "values": {"given": "224", "allowed": 98}}
