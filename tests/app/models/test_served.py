"""A training run that goes on while it is served."""

import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

import app.models.served
from app.models.served import NoMemoryError, Progress, ServedModel
from app.pictures import PictureFile
from app.request import Mask, Request
from app.service import ReconstructionService
from app.settings import AppSettings
from mae_core import MaskedAutoencoder, PatchMask, Reconstruction, Reconstructor
from mae_core.errors import ConfigError, ImageError, MaskError
from mae_core.reconstruct import ReconstructionRequest
from mae_core.weights import list_weights, locate, read_weights
from mae_core.weights.files import CHECKPOINT_FILE
from mae_core.weights.formats import save_weights
from tests.app.serving import events_of, example, save_step, small_reconstructor
from tests.downloading import isolate
from tests.pictures import draw_picture


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that has got to step 400 of 1,000."""
    folder = tmp_path / "flowers"
    save_step(folder, 400)
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that models were read from, in order."""
    paths: list[Path] = []

    def counting(source: str, *, fetch: bool) -> Any:
        paths.append(locate(source))
        return read_weights(source, fetch=fetch)

    monkeypatch.setattr(app.models.served, "read_weights", counting)
    return paths


@pytest.fixture(autouse=True)
def _nothing_else_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def served(run: Path) -> ReconstructionService:
    return load(run)


def load(*runs: Path) -> ReconstructionService:
    """The runs and nothing that could be fetched."""
    weights = tuple(map(str, runs))
    return ReconstructionService.load(AppSettings(device="cpu", weights=weights, fetch="none"))


def guess(service: ReconstructionService) -> Image.Image:
    return service.reconstruct(example("cat"), 0.75, 2).panels["reconstruction"]


def guess_at(step: int) -> Image.Image:
    """What the model that `save_step` saved at a step makes of the same request."""
    return small_reconstructor(seed=step)(example("cat"), 0.75, 2).panels()["reconstruction"]


def assert_same(left: Image.Image, right: Image.Image) -> None:
    # The page may run the model in bfloat16; models of two seeds differ by much more.
    difference = np.abs(np.asarray(left, np.int16) - np.asarray(right, np.int16))
    assert difference.mean() < 2


def test_models_of_two_steps_can_be_told_apart() -> None:
    with pytest.raises(AssertionError):
        assert_same(guess_at(400), guess_at(600))


def test_a_running_run_is_in_the_list_with_its_step(run: Path) -> None:
    service = served(run)
    bundled = [name for name, entry in list_weights().items() if entry.bundled]
    assert service.models == ("flowers", *bundled)
    assert service.progress == {"flowers": Progress(400, 1000)}
    facts = service.reconstruct(example("cat"), 0.75, 2).facts
    assert (facts["model"], facts["step"], facts["steps"]) == ("flowers", 400, 1000)
    assert_same(guess(service), guess_at(400))


def test_a_newer_checkpoint_answers_the_next_request(run: Path, reads: list[Path]) -> None:
    service = served(run)
    first = guess(service)
    assert guess(service) is first
    save_step(run, 600)
    second = guess(service)
    assert_same(second, guess_at(600))
    # From the cache again, and read once only.
    assert guess(service) is second
    assert service.progress == {"flowers": Progress(600, 1000)}
    assert reads == [run / CHECKPOINT_FILE] * 2


def test_the_end_of_the_run_is_noticed(run: Path) -> None:
    service = served(run)
    guess(service)
    save_weights(run / "weights.safetensors", small_reconstructor(seed=7).model, record={})
    assert service.progress == {"flowers": None}
    assert_same(guess(service), guess_at(7))
    assert "step" not in service.reconstruct(example("cat"), 0.75, 2).facts


def test_the_label_is_new_before_any_request(run: Path) -> None:
    service = served(run)
    events = events_of(service)
    assert events.model_choices("en")[0] == ("flowers (step 400 of 1000)", "flowers")
    save_step(run, 600)
    assert events.model_choices("en")[0] == ("flowers (step 600 of 1000)", "flowers")


def test_what_cannot_be_read_leaves_the_model_and_its_answers(
    run: Path, reads: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    service = served(run)
    first = guess(service)
    (run / CHECKPOINT_FILE).write_bytes(b"half a file")
    with caplog.at_level(logging.ERROR):
        assert guess(service) is not first
    assert "could not read the newer state of flowers" in caplog.text
    again = guess(service)
    assert_same(again, first)
    assert service.progress == {"flowers": Progress(400, 1000)}
    # It is not tried again for every request, but as soon as there is another file.
    assert len(reads) == 2
    save_step(run, 600)
    assert_same(guess(service), guess_at(600))


def test_a_folder_that_goes_away_leaves_the_model(run: Path) -> None:
    service = served(run)
    first = guess(service)
    (run / CHECKPOINT_FILE).unlink()
    assert guess(service) is first
    assert service.progress == {"flowers": Progress(400, 1000)}


def test_many_requests_read_a_newer_checkpoint_once(run: Path, reads: list[Path]) -> None:
    service = served(run)
    save_step(run, 600)
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda seed: service.reconstruct(example("cat"), 0.75, seed), range(16))
        )
    assert {answer.facts["step"] for answer in answers} == {600}
    assert len(reads) == 2


def test_an_answer_is_kept_under_the_state_that_gave_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = served(run)

    def then_save(data: bytes, **options: Any) -> Image.Image:
        # Between the look into the cache and the model's turn.
        save_step(run, 600)
        return Image.new("RGB", (112, 112))

    monkeypatch.setattr("app.pictures.decode_upload", then_save)
    answer = service.reconstruct(example("cat"), 0.75, 2)
    assert answer.facts["step"] == 600
    assert service.reconstruct(example("cat"), 0.75, 2) is answer


def test_two_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        save_step(tmp_path / parent / "run", 400)
    with pytest.raises(ConfigError, match="two weights are called 'run'"):
        load(*(tmp_path / name / "run" for name in "ab"))


def test_a_fixed_model_has_one_version() -> None:
    model = ServedModel.fixed(small_reconstructor("mine"))
    assert (model.name, model.version, model.progress) == ("mine", model.version, None)


def job(seed: int = 0, **changes: Any) -> ReconstructionRequest:
    return ReconstructionRequest(**({"image": draw_picture(seed), "seed": seed} | changes))


def test_jobs_are_answered_in_order_and_a_wrong_one_alone_is_refused() -> None:
    model = ServedModel.fixed(small_reconstructor())
    jobs = [job(0), job(1, mask_ratio=7), job(2, image_size=32), job(3)]
    results, state = model.run(jobs)
    assert isinstance(results[1], MaskError)
    for i in (0, 2, 3):
        result, expected = results[i], small_reconstructor()(**vars(jobs[i]))
        assert isinstance(result, Reconstruction)
        torch.testing.assert_close(
            result.reconstruction, expected.reconstruction, rtol=0, atol=1e-5
        )
        assert "notice" not in state.facts(result)
    assert model.run([]) == ([], state)


class FullDevice(Reconstructor):
    """Stands in for a GPU whose memory takes so many pictures at a time."""

    def __init__(self, most: int) -> None:
        super().__init__(small_reconstructor().model, "m", device="cpu", precision="float32")
        self.device = torch.device("cuda")
        self.most = most
        self.tried: list[int] = []

    def rebuild(self, images: Tensor, patch_mask: PatchMask, view: str) -> Any:
        self.tried.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().rebuild(images, patch_mask, view)


@pytest.mark.parametrize(("most", "tried"), [(8, [8]), (4, [8, 4, 4]), (3, [8, 4, 2, 2, 4, 2, 2])])
def test_what_does_not_fit_the_gpu_together_is_done_in_parts(most: int, tried: list[int]) -> None:
    device = FullDevice(most)
    results, state = ServedModel.fixed(device).run([job(i) for i in range(8)])
    assert device.tried == tried
    assert [result.seed for result in results if isinstance(result, Reconstruction)] == [*range(8)]
    assert not any("notice" in state.facts(one) for one in results)  # type: ignore[arg-type]


def test_what_does_not_fit_the_gpu_alone_is_computed_on_the_cpu(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = FullDevice(0)
    results, state = ServedModel.fixed(device).run([job(0), job(1, mask_ratio=7), job(2)])
    assert device.tried == [2, 1, 1, 1]
    assert isinstance(results[1], MaskError)
    for i in (0, 2):
        result = results[i]
        assert isinstance(result, Reconstruction)
        facts = state.facts(result)
        assert (facts["device"], facts["notice"], facts["model"]) == ("cpu", "cpu", "m")
        expected = small_reconstructor()(**vars(job(i)))
        error = (result.reconstruction - expected.reconstruction).square().mean().item()
        assert error < 1e-4
    assert "the memory of cuda is full" in caplog.text


@pytest.mark.parametrize(
    "fault",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_where_the_host_has_no_memory_that_job_fails_in_words(
    monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    reconstructor = small_reconstructor()
    rebuild = reconstructor.rebuild

    def failing(images: Tensor, patch_mask: PatchMask, view: str) -> Any:
        if images.shape[-1] == 64:
            raise fault
        return rebuild(images, patch_mask, view)

    monkeypatch.setattr(reconstructor, "rebuild", failing)
    results, _ = ServedModel.fixed(reconstructor).run([job(0), job(1, image_size=64), job(2)])
    assert [type(result) for result in results] == [Reconstruction, NoMemoryError, Reconstruction]
    assert "not enough memory" in str(results[1])


def test_torch_says_so_when_the_host_has_no_memory() -> None:
    # What the words are made from; torch has no class of its own for it.
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        torch.empty(10**15)


def test_an_unexpected_error_is_that_of_its_job_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(image: Any, *arguments: Any, **options: Any) -> Any:
        if image.size == (9, 9):
            raise ZeroDivisionError("a bug")
        return image

    monkeypatch.setattr("mae_core.reconstruct.open_image", opened)
    odd = job(1, image=Image.new("RGB", (9, 9)))
    results, _ = ServedModel.fixed(small_reconstructor()).run([job(0), odd, job(2)])
    assert [type(one) for one in results] == [Reconstruction, ZeroDivisionError, Reconstruction]


def test_a_run_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    reconstructor = small_reconstructor()
    begun, go_on = threading.Event(), threading.Event()
    batch = reconstructor.batch

    def hanging(requests: Any) -> Any:
        if requests[0].seed == 1:
            begun.set()
            assert go_on.wait(240)
        return batch(requests)

    monkeypatch.setattr(reconstructor, "batch", hanging)
    model = ServedModel.fixed(reconstructor)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(model.run, [job(1)])
        assert begun.wait(240)
        (second,), _ = model.run([job(2)])
        assert isinstance(second, Reconstruction)
        assert not first.done()
        go_on.set()
        assert isinstance(first.result()[0][0], Reconstruction)


def test_every_run_sets_the_threads_of_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread has a number of its own, and one worker runs models of several sizes."""
    seen: list[int] = []

    class Watched(Reconstructor):
        def batch(self, requests: Any) -> Any:
            seen.append(torch.get_num_threads())
            return super().batch(requests)

    plain = small_reconstructor()
    model = ServedModel.fixed(Watched(plain.model, "watched", device="cpu"))
    worth = [1, 3, 1]
    monkeypatch.setattr(Watched, "threads_for", lambda self, requests: worth[len(seen)])
    before = torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        for seed in range(3):
            pool.submit(model.run, [job(seed)]).result()
    assert seen == worth
    assert torch.get_num_threads() == before


def asked(**changes: Any) -> Request:
    """A request for a model of 7 x 7 patches."""
    mask = {name: changes.pop(name) for name in ("strategy", "ratio", "seed", "rows")
            if name in changes}  # fmt: skip
    values = {"fit": "crop", "model": "m", "image_size": None, "view": "estimated"} | changes
    return Request("digest", Mask(**mask), **values)


def test_keys_are_equal_where_a_pass_may_be_shared() -> None:
    model = ServedModel.fixed(small_reconstructor())
    key = model.batch_key(asked())
    assert key == model.batch_key(asked(strategy="grid", seed=5, fit="squash", image_size=112))
    # 12 of 49 patches are seen: what a pass has to agree in.
    assert key == model.batch_key(asked(ratio=0.752))
    assert key == model.batch_key(asked(rows=("0" * 7, "0" * 5 + "11", *["1" * 7] * 5)))
    assert key != ServedModel.fixed(small_reconstructor("another")).batch_key(asked())
    changes = ({"ratio": 0.5}, {"image_size": 96}, {"fit": "whole"}, {"view": "answer"})
    for change in (*changes, {"rows": ("0" * 7, *["1" * 7] * 6)}):
        assert key != model.batch_key(asked(**change))
    # 64 x 64 patches: as many as a pass may have.
    assert model.batch_key(asked(image_size=1024)) != model.batch_key(asked(image_size=1024))


def mapped_files() -> str:
    return Path("/proc/self/maps").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_a_model_that_is_served_is_nowhere_but_in_memory(tmp_path: Path, name: str) -> None:
    """A file that is cut short while it is mapped would end the process."""
    path, model = tmp_path / name, small_reconstructor().model
    if path.suffix == ".pth":
        torch.save({"model": model.state_dict()}, path)
    else:
        save_weights(path, model, record={})
        with safe_open(path, framework="pt") as mapped:
            tensor = mapped.get_tensor("pos_embed")
        # So does it look where it is not read into memory.
        assert str(path) in mapped_files()
        del tensor
    served_model = ServedModel.open(str(path), device="cpu")
    assert str(path) not in mapped_files()
    with path.open("r+b") as file:
        file.truncate(100)
    (result,), _ = served_model.run([job(0)])
    assert isinstance(result, Reconstruction)


def test_a_picture_that_is_none_is_refused() -> None:
    (result,), _ = ServedModel.fixed(small_reconstructor()).run([job(0, image=b"no")])
    assert isinstance(result, ImageError)


def test_a_model_sees_the_values_that_it_was_trained_on(tmp_path: Path) -> None:
    # Of 12 bits in 16, as a radiograph; the page's own guess is brighter.
    values = np.linspace(0, 2000, 128 * 128).reshape(128, 128).astype(np.uint16)
    path = tmp_path / "x.png"
    Image.fromarray(values).save(path)
    config = replace(small_reconstructor().config, in_chans=1, mean=(0.5,), std=(0.5,))
    brightness = []
    for value_range in (None, ((0.0, 4000.0),)):
        torch.manual_seed(0)
        model = MaskedAutoencoder(replace(config, value_range=value_range))
        save_weights(tmp_path / "m.safetensors", model, record={})
        service = ReconstructionService.load(
            AppSettings(weights=(str(tmp_path / "m.safetensors"),), device="cpu")
        )
        answer = service.reconstruct(PictureFile(path), 0.75, 0)
        brightness.append(np.asarray(answer.panels["original"]).mean())
    assert brightness[0] == pytest.approx(127, abs=3)
    assert brightness[1] == pytest.approx(64, abs=3)


@pytest.mark.parametrize(("channels", "bands"), [(4, ()), (3, (4, 2, 1))])
def test_a_model_of_other_bands_is_refused_at_the_start(
    channels: int, bands: tuple[int, ...], tmp_path: Path
) -> None:
    statistics = (0.5,) * channels
    config = replace(
        small_reconstructor().config, in_chans=channels, mean=statistics, std=statistics,
        bands=bands,
    )  # fmt: skip
    save_weights(tmp_path / "m.safetensors", MaskedAutoencoder(config), record={})
    with pytest.raises(ConfigError, match="the page takes colour or grey; use mae reconstruct"):
        ReconstructionService.load(
            AppSettings(weights=(str(tmp_path / "m.safetensors"),), device="cpu")
        )
