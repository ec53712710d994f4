import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.service import ReconstructionService
from app.settings import AppSettings
from mae_core import (
    MAX_SEED,
    NORM_PIX_VIEWS,
    CheckpointError,
    ConfigError,
    DeviceError,
    ImageFormatError,
    ImageLimitError,
    MAEError,
    MaskError,
    Reconstructor,
    decode_image,
)
from mae_core.checkpoint import save_weights
from tests.app.serving import encoded, example, small_reconstructor, small_service


def same(left: Image.Image, right: Image.Image) -> bool:
    return bool(np.array_equal(np.asarray(left), np.asarray(right)))


class CountingReconstructor(Reconstructor):
    """Counts its runs, and how many of them were under way at once."""

    def __init__(self, seconds: float = 0.0) -> None:
        plain = small_reconstructor()
        super().__init__(plain.model, plain.name, device="cpu", precision="float32")
        self.runs = self.under_way = self.most_under_way = 0
        self._seconds = seconds
        self._counter = threading.Lock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._counter:
            self.runs += 1
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        time.sleep(self._seconds)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            with self._counter:
                self.under_way -= 1


def test_an_answer_is_what_the_reconstructor_says(service: ReconstructionService) -> None:
    picture = example("cat")
    answer = service.reconstruct(picture, 0.5, 3, "block", "squash", "small-random")
    direct = small_reconstructor()(picture, 0.5, 3, strategy="block", fit="squash")
    assert list(answer.panels) == ["original", "masked", "reconstruction", "pasted"]
    assert all(same(answer.panels[name], panel) for name, panel in direct.panels().items())
    expected = direct.facts()
    assert {**answer.facts, "seconds": 0} == {**expected, "seconds": 0}
    assert (answer.facts["visible"], answer.facts["patches"]) == (24, 49)


def test_defaults_are_random_crop_and_the_first_model(service: ReconstructionService) -> None:
    facts = service.reconstruct(example("cat"), 0.75, 2).facts
    assert (facts["strategy"], facts["fit"], facts["model"]) == ("random", "crop", "small-random")


def test_the_same_request_is_answered_from_the_cache() -> None:
    model = CountingReconstructor()
    service = ReconstructionService({"m": model})
    first = service.reconstruct(example("cat"), 0.75, 2)
    # 2.0 is how JSON may write 2.
    assert service.reconstruct(example("cat"), 0.75, 2.0, "random", "crop", "m") is first
    assert model.runs == 1


@pytest.mark.parametrize(
    "change",
    [
        {"mask_ratio": 0.5},
        {"seed": 3},
        {"strategy": "grid"},
        {"fit": "squash"},
        {"model": "other"},
        {"image": "dogs"},
        {"image_size": 160},
        {"view": "answer"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_any_other_request_is_computed(change: dict[str, Any]) -> None:
    models = {"m": CountingReconstructor(), "other": CountingReconstructor()}
    service = ReconstructionService(models)
    request = {"image": "cat", "mask_ratio": 0.75, "seed": 2, "model": "m"}
    answers = []
    for given in (request, {**request, **change}):
        answers.append(service.reconstruct(**{**given, "image": example(str(given["image"]))}))
    assert answers[0] is not answers[1]
    assert models["m"].runs + models["other"].runs == 2


def test_a_picture_is_decoded_once_while_sliders_move(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def counting(data: bytes) -> Image.Image:
        decoded.append(len(data))
        return decode_image(data)

    monkeypatch.setattr("app.service.decode_image", counting)
    service = small_service()
    for seed in range(5):
        service.reconstruct(example("cat"), 0.75, seed)
    assert len(decoded) == 1


def test_a_model_runs_one_request_at_a_time() -> None:
    model = CountingReconstructor(seconds=0.02)
    service = ReconstructionService({"m": model})
    picture = example("cat")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda seed: service.reconstruct(picture, 0.75, seed), range(8)))
    assert [answer.facts["seed"] for answer in answers] == list(range(8))
    assert (model.runs, model.most_under_way) == (8, 1)


BAD_VALUES: list[tuple[dict[str, Any], type[MAEError], str]] = [
    ({"image": None}, ImageFormatError, "choose one"),
    ({"image": "cat.jpg"}, ImageFormatError, "choose one"),
    ({"image": b""}, ImageFormatError, "empty"),
    ({"image": b"not a picture"}, ImageFormatError, "give a picture"),
    ({"image": encoded(Image.new("RGB", (300, 1)))}, ImageLimitError, "300 x 1"),
    ({"mask_ratio": "0.5"}, MaskError, "from 0.05 to 0.95"),
    ({"mask_ratio": None}, MaskError, "from 0.05 to 0.95"),
    ({"mask_ratio": True}, MaskError, "from 0.05 to 0.95"),
    ({"mask_ratio": math.nan}, MaskError, "from 0.05 to 0.95"),
    ({"mask_ratio": math.inf}, MaskError, "from 0.05 to 0.95"),
    ({"mask_ratio": 0.96}, MaskError, "from 0.05 to 0.95"),
    ({"mask_ratio": 0}, MaskError, "from 0.05 to 0.95"),
    ({"mask_ratio": [0.5]}, MaskError, "from 0.05 to 0.95"),
    ({"seed": "2"}, MaskError, "whole number"),
    ({"seed": None}, MaskError, "whole number"),
    ({"seed": True}, MaskError, "whole number"),
    ({"seed": 1.5}, MaskError, "whole number"),
    ({"seed": math.nan}, MaskError, "whole number"),
    ({"seed": math.inf}, MaskError, "whole number"),
    ({"seed": -1}, MaskError, "whole number"),
    ({"seed": MAX_SEED + 1}, MaskError, "whole number"),
    ({"strategy": "spiral"}, MaskError, "random, block, grid"),
    ({"strategy": None}, MaskError, "random, block, grid"),
    ({"fit": "stretch"}, ConfigError, "crop, squash, whole"),
    ({"fit": 3}, ConfigError, "crop, squash, whole"),
    ({"model": "other"}, ConfigError, "choose small-random"),
    ({"model": ["small-random"]}, ConfigError, "choose small-random"),
    ({"image_size": "224"}, ConfigError, "whole number of pixels up to 1024"),
    ({"image_size": True}, ConfigError, "whole number of pixels up to 1024"),
    ({"image_size": math.nan}, ConfigError, "whole number of pixels up to 1024"),
    ({"image_size": 1040}, ConfigError, "up to 1024"),
    ({"image_size": 10**400}, ConfigError, "up to 1024"),
    ({"image_size": 0}, ConfigError, "multiples of 16"),
    ({"image_size": -16}, ConfigError, "multiples of 16"),
    ({"image_size": 100}, ConfigError, "multiples of 16"),
    ({"view": "best"}, ConfigError, "estimated, answer, normalized"),
    ({"view": None}, ConfigError, "estimated, answer, normalized"),
    ({"model": "me/mine"}, ConfigError, "choose small-random"),
    ({"strategy": "x" * 10_000}, MaskError, "xxx...; choose"),
]


@pytest.mark.parametrize(
    ("bad", "kind", "words"), BAD_VALUES, ids=[str(case[0])[:40] for case in BAD_VALUES]
)
def test_a_bad_value_says_what_is_allowed(
    service: ReconstructionService, bad: dict[str, Any], kind: type[MAEError], words: str
) -> None:
    request = {"image": example("cat"), "mask_ratio": 0.75, "seed": 2, **bad}
    with pytest.raises(kind) as caught:
        service.reconstruct(**request)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_larger_size_gives_larger_panels(service: ReconstructionService) -> None:
    # 160.0 is how JSON may write 160.
    answer = service.reconstruct(example("cat"), 0.75, 2, image_size=160.0)
    assert {panel.size for panel in answer.panels.values()} == {(160, 160)}
    direct = small_reconstructor()(example("cat"), 0.75, 2, image_size=160)
    assert same(answer.panels["pasted"], direct.panels()["pasted"])


def test_the_hosts_bound_on_sizes_holds() -> None:
    service = ReconstructionService({"m": small_reconstructor("m")}, max_image_size=128)
    assert service.reconstruct(example("cat"), 0.75, 2, image_size=128).facts["height"] == 128
    with pytest.raises(ConfigError, match="up to 128"):
        service.reconstruct(example("cat"), 0.75, 2, image_size=144)
    # The model's own size is never too large.
    assert (
        ReconstructionService({"m": small_reconstructor("m")}, max_image_size=16)
        .reconstruct(example("cat"), 0.75, 2)
        .facts["height"]
        == 112
    )


def test_large_answers_push_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.service._ANSWERS_BYTES", 8 * 2**20)
    service = small_service()
    answers = [service.reconstruct(example("cat"), 0.75, seed, image_size=448) for seed in range(5)]
    # Four panels of 448 x 448 pixels are 2.3 MiB.
    assert service._answers.size == 3 * 4 * 448 * 448 * 3
    assert service.reconstruct(example("cat"), 0.75, 4, image_size=448) is answers[4]
    assert service.reconstruct(example("cat"), 0.75, 0, image_size=448) is not answers[0]


def test_views_differ_and_only_one_uses_the_answer() -> None:
    norm = small_reconstructor("norm", norm_pix=True)
    service = ReconstructionService({"norm": norm})
    answers = {
        view: service.reconstruct(example("cat"), 0.75, 2, view=view) for view in NORM_PIX_VIEWS
    }
    assert [answer.facts["view"] for answer in answers.values()] == list(NORM_PIX_VIEWS)
    default = service.reconstruct(example("cat"), 0.75, 2)
    assert default is answers["estimated"]
    pictures = {answer.panels["reconstruction"].tobytes() for answer in answers.values()}
    assert len(pictures) == 3


def test_the_edges_of_the_ranges_are_allowed(service: ReconstructionService) -> None:
    for mask_ratio, seed in ((0.05, 0), (0.95, MAX_SEED)):
        facts = service.reconstruct(example("cat"), mask_ratio, seed).facts
        assert (facts["mask_ratio"], facts["seed"]) == (mask_ratio, seed)


def load(*weights: str, device: str = "cpu") -> ReconstructionService:
    return ReconstructionService.load(AppSettings(device=device, weights=weights, fetch="none"))


def test_models_are_loaded_by_path_in_order(tmp_path: Path) -> None:
    for name in ("second", "first"):
        save_weights(tmp_path / f"{name}.safetensors", small_reconstructor().model, record={})
    paths = [str(tmp_path / "first.safetensors"), str(tmp_path / "second.safetensors")]
    service = load(*paths)
    assert service.models[:2] == ("first", "second")
    facts = service.reconstruct(example("cat"), 0.75, 2).facts
    assert (facts["model"], facts["device"]) == (service.models[0], "cpu")


def test_two_weights_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_weights(path, small_reconstructor().model, record={})
    with pytest.raises(ConfigError, match="a name of its own"):
        load(str(path), str(path))


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load(str(tmp_path / "none.safetensors"))


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_weights(path, small_reconstructor().model, record={})
    with pytest.raises(DeviceError):
        load(str(path), device="abacus")


def test_no_model_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="no model"):
        ReconstructionService({})
