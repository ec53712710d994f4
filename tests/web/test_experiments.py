"""Answers in the browser, beside those of the page with a server, for the same runs."""

import base64
import functools
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app.experiments import Plan
from app.service import ReconstructionService
from app.settings import AppSettings
from mae_core import MaskedAutoencoder, ModelConfig
from mae_core.inside.stages import trace
from mae_core.inside.sweep import film_frame, film_ratios
from mae_core.reconstruct import ReconstructionRequest, open_fitted
from mae_core.settings import Mask, Settings
from tests.app.serving import CONFIG, example
from tests.app.test_experiments import parts_of
from tests.web.running import NotingReconstructor, answered, described, is_near

CAT = example("cat")
NAME = "small-random"
DRAWN = Mask("random", 0.5, 3)
OWN = replace(DRAWN, rows=("0100111", "1011010", "1111111", "0000111") + ("1110001",) * 3)


class Asked:
    """One picture and one model, on a page with a server and in the browser."""

    def __init__(self, node: str, config: ModelConfig = CONFIG, **fields: Any) -> None:
        torch.manual_seed(0)
        model = MaskedAutoencoder(config)
        # Weights as they are drawn predict next to nothing.
        torch.nn.init.normal_(model.decoder_pred.weight, std=0.2)
        self.node, self.config = node, config
        self.reconstructor = NotingReconstructor(model, NAME)
        self.settings = Settings(**{
            "picture": "", "mask": DRAWN, "fit": "crop", "model": NAME, "image_size": None,
            "view": "estimated",
        } | fields)  # fmt: skip
        fitted = open_fitted(CAT, config, self.settings.fit)
        assert isinstance(fitted, Image.Image)
        self.fitted = fitted.convert("RGB")

    @functools.cached_property
    def service(self) -> ReconstructionService:
        return ReconstructionService(
            {NAME: self.reconstructor}, settings=AppSettings(rate=0, workers=1)
        )

    def wanted(self, kind: str, **values: Any) -> list[dict[str, Any]]:
        """Parts of the page with a server."""
        request = {**self.settings.to_json(), "mask": {**vars(self.settings.mask)}}
        plan = {"v": 1, "kind": kind, "request": request, **values}
        return parts_of(self.service, Plan.from_json(plan, CAT))

    def found(self, kind: str, frame: bytes = b"", **values: Any) -> dict[str, Any]:
        """The answer in the browser, by the runs that there were."""
        width, height = self.fitted.size
        side = self.config.patch_size
        return answered(
            self.node, description=described(self.config, NAME), runs=self.reconstructor.runs,
            pixels=base64.b64encode(self.fitted.tobytes()).decode(),
            job={"settings": self.settings.to_json(), "grid": [height // side, width // side]},
            plan={"v": 1, "kind": kind, "request": {}, **values},
            frame=base64.b64encode(frame).decode(),
        )  # fmt: skip


def assert_same(found: Any, wanted: Any, path: str = "") -> None:
    """Hold two parts against each other: pictures by `is_near`, numbers but for rounding."""
    if isinstance(wanted, dict):
        assert set(found) == set(wanted), path
        for name, value in wanted.items():
            assert_same(found[name], value, f"{path}.{name}")
    elif isinstance(wanted, Image.Image):
        assert is_near(found, wanted), path
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted), path
        for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_same(one, other, f"{path}[{i}]")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-4, abs=2e-6), path
    else:
        assert found == wanted, path


def as_in_browser(part: dict[str, Any]) -> dict[str, Any]:
    """A part with what the browser says differently: where, for how long, and one baseline less."""
    part = dict(part)
    if "facts" in part:
        part["facts"] = part["facts"] | {"device": "wasm", "seconds": 0.5}
        part["settings"] = part["settings"] | {"picture": ""}
    if "baselines" in part:
        part["baselines"] = {"mean_colour": part["baselines"]["mean_colour"]}
    return part


NORM_PIX = replace(CONFIG, norm_pix=True)
ASKED: dict[str, tuple[ModelConfig, dict[str, Any]]] = {
    "pixels": (CONFIG, {}),
    "own mask": (CONFIG, {"mask": OWN}),
    "blocks of a whole frame": (CONFIG, {"mask": replace(DRAWN, strategy="block"), "fit": "whole"}),
    "estimated": (NORM_PIX, {}),
    "answer": (NORM_PIX, {"view": "answer"}),
    "normalized": (NORM_PIX, {"view": "normalized"}),
}
EACH = pytest.mark.parametrize(("config", "fields"), ASKED.values(), ids=ASKED)


@EACH
@pytest.mark.parametrize(
    ("kind", "values"),
    [("single", {}), ("files", {}), ("film", {"frames": 3}), ("influence", {}),
     ("leak", {}), ("leak", {"noise": 2**31 - 1})],
    ids=str,
)  # fmt: skip
def test_an_answer_is_that_of_the_page_with_a_server(
    node: str, config: ModelConfig, fields: dict[str, Any], kind: str, values: dict[str, Any]
) -> None:
    asked = Asked(node, config, **fields)
    wanted = [as_in_browser(part) for part in asked.wanted(kind, **values)]
    found = asked.found(kind, **values)
    assert found["problem"] is None
    assert_same(found["parts"], wanted)


@pytest.mark.parametrize("name", [name for name in ASKED if name != "normalized"])
def test_doubt_is_that_of_the_page_with_a_server(node: str, name: str) -> None:
    config, fields = ASKED[name]
    asked = Asked(node, config, **fields)
    *progress, wanted = asked.wanted("doubt", masks=4)
    *found_progress, found = asked.found("doubt", masks=4)["parts"]
    assert found_progress == progress == [{"done": i + 1, "of": 4} for i in range(4)]
    for map_name in ("error", "disagreement"):
        one, other = (np.asarray(part[map_name].pop("picture"), int) for part in (found, wanted))
        assert np.array_equal(one[..., 2], other[..., 2])
        levels, others = (256 * picture[..., 0] + picture[..., 1] for picture in (one, other))
        assert np.abs(levels - others).max() <= 2  # of 65,535
    assert_same(found, wanted)


def test_the_picture_before_its_contrast_is_put_back_cannot_be_compared(node: str) -> None:
    asked = Asked(node, NORM_PIX, view="normalized")
    asked.wanted("single")
    assert asked.found("doubt", masks=2)["problem"]["text"] == "not_comparable"


@pytest.mark.parametrize("mask", [DRAWN, OWN], ids=["drawn", "own"])
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(NORM_PIX, depth=3, decoder_depth=2, mlp_ratio=3.3, decoder_mlp_ratio=2.2),
        replace(CONFIG, pca_components=5),
        replace(CONFIG, encoder_mask_tokens=True),
    ],
    ids=["plain", "deeper", "components", "mask tokens"],
)
def test_stages_are_those_that_the_library_sees(node: str, config: ModelConfig, mask: Mask) -> None:
    asked = Asked(node, config, mask=mask)
    request = ReconstructionRequest(CAT, mask.ratio, mask.seed, mask=mask.removed)
    if config.pca_components:
        values = config.patch_dim
        asked.reconstructor.model.set_pca(torch.zeros(values), torch.eye(values)[:, :5])
    wanted = trace(asked.reconstructor, request)
    _, images, drawn = asked.reconstructor.prepare(request)
    pred = torch.zeros(drawn.num_patches, config.patch_dim)
    asked.reconstructor.note(images[0], drawn.ids_keep[0], pred, wanted.changes)
    (found,) = asked.found("inside")["parts"]
    assert found == json.loads(json.dumps(wanted.to_json()))


def test_a_film_as_a_file_has_the_frames_of_the_library(node: str) -> None:
    asked = Asked(node)
    wanted = asked.wanted("film", frames=3)
    ratios = film_ratios(3)
    buffer = io.BytesIO()
    size = (3 * 112 + 16, 112 + 14)
    Image.new("RGB", size, "red").save(buffer, "WEBP")
    found = asked.found("film", frames=3, format="webp", frame=buffer.getvalue())
    *frames, last = found["parts"]
    assert len(frames) == 3
    for still, part, ratio in zip(found["stills"], wanted, ratios, strict=True):
        panels = Asked(node).reconstructor(CAT, ratio, 3).panels()
        assert part["mask_ratio"] == ratio
        assert is_near(still, film_frame(panels, ratio))
    assert last["name"] == "film.webp"
    with Image.open(io.BytesIO(last["file"])) as animation:
        assert (animation.n_frames, animation.size) == (3, size)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "rows", "problem"),
    [
        ("leak", ["0" * 7] * 7, {"text": "nothing_removed", "values": {}}),
        ("influence", ["0" * 7] * 7, {"text": "nothing_removed", "values": {}}),
        ("influence", ["1" * 7] * 6 + ["1" * 6 + "0"],
         {"text": "left_out", "values": {"visible": 1, "most": 256}}),
        ("single", ["01"] * 3,
         {"text": "mask_shape", "values": {"given": "3 × 2", "rows": 7, "columns": 7}}),
        ("attention", [], {"text": "needs_server", "values": {"kind": "attention"}}),
        ("training", [], {"text": "needs_server", "values": {"kind": "training"}}),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_told(
    node: str, kind: str, rows: list[str], problem: dict[str, Any]
) -> None:
    asked = Asked(node, mask=replace(DRAWN, rows=tuple(rows)))
    assert asked.found(kind)["problem"] == problem
