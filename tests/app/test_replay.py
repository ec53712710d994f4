"""`mae reconstruct --settings` makes the files that the page gave out, byte by byte.

On the same machine and in the same precision.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.page.files import panel_file
from app.request import parse
from app.service import ReconstructionService
from mae_core import Reconstructor, devices
from mae_core.cli import mae
from mae_core.settings import digest_of
from mae_core.weights.formats import save_weights
from tests.app.serving import encoded, example, small_reconstructor
from tests.pictures import draw_picture


def turned() -> bytes:
    """A JPEG that lies on its side."""
    picture, buffer = draw_picture(1, 120, 70), io.BytesIO()
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def transparent() -> bytes:
    picture = draw_picture(2, 90, 130).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    return encoded(picture)


ROWS = [[int(x > y) for x in range(7)] for y in range(7)]
# As large as the example.
DRAWING = encoded(Image.fromarray(np.array(ROWS, np.uint8) * 255).resize((451, 300)))


@pytest.mark.parametrize(
    ("image", "values", "precision"),
    [
        (example("cat"), {"seed": 2}, "float32"),
        (example("cat"), {"seed": 2}, "auto"),
        (turned(), {"fit": "whole", "strategy": "block", "mask_ratio": 0.5, "seed": 2**63 - 1},
         "float32"),
        (transparent(), {"fit": "squash", "mask": ROWS}, "float32"),
        (example("cat"), {"fit": "squash", "mask": DRAWING}, "float32"),
    ],
    ids=["example", "default precision", "turned", "transparent", "drawn"],
)  # fmt: skip
def test_settings_of_the_page_make_its_files_again(
    image: bytes, values: dict[str, Any], precision: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    # The command has no flag for it.
    if precision == "float32":
        monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: False)
    model = small_reconstructor().model
    reconstructor = Reconstructor(model, "small-random", device="cpu", precision=precision)
    service = ReconstructionService({"small-random": reconstructor})
    asked = {"image": image, "mask_ratio": 0.75, "seed": 0, **values}
    answer = service.reconstruct(**asked)
    request = parse(asked, "small-random", 1024, digest_of)  # type: ignore[arg-type]

    save_weights(tmp_path / "small-random.safetensors", model, record={})
    (tmp_path / "picture").write_bytes(image)
    (tmp_path / "drawing").write_bytes(DRAWING)
    (tmp_path / "settings.json").write_text(json.dumps(request.to_json()))
    command = [
        "reconstruct", str(tmp_path / "picture"), "--settings", str(tmp_path / "settings.json"),
        "--weights", str(tmp_path / "small-random.safetensors"), "--device", "cpu",
        "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    if request.mask.drawing:
        command += ["--mask", str(tmp_path / "drawing")]
    assert mae(command) == 0
    assert capsys.readouterr().err == ""
    for name, panel in answer.panels.items():
        given = panel_file(panel, name, tmp_path / "files").read_bytes()
        assert (tmp_path / "out" / f"{name}.png").read_bytes() == given
