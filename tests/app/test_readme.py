"""The README's Python runs as it stands."""

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mae_core.weights.registry

ROOT = Path(__file__).resolve().parents[2]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_librarys_lines_run(tmp_path: Path) -> None:
    code = next(snippet for snippet in SNIPPETS if "mae_core.load" in snippet)
    strip = tmp_path / "cat.png"
    names: dict[str, Any] = {}
    exec(code.replace('"cat.png"', repr(str(strip))), names)
    with Image.open(strip) as image:
        assert image.size == (4 * 224 + 3 * 8, 224)
    assert names["output"].pred.shape == (2, 196, 768)
    assert names["features"].shape == (2, names["model"].config.embed_dim)
    assert names["vit"](names["images"]).shape == (2, 100)


def test_the_api_snippet_gets_four_pictures_and_facts(
    page_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = next(snippet for snippet in SNIPPETS if "gradio_client" in snippet)
    names: dict[str, object] = {}
    exec(code.replace("http://127.0.0.1:7860", page_url), names)
    for panel in ("original", "masked", "reconstruction", "pasted"):
        with Image.open(str(names[panel])) as image:
            assert image.format == "PNG"
    assert str(names["facts"]["psnr"]) in capsys.readouterr().out  # type: ignore[index]


def test_the_model_that_the_readme_names_is_bundled() -> None:
    named = re.findall(r"mae-[a-z]+(?=`| PICTURES)", (ROOT / "README.md").read_text())
    assert named
    assert set(named) <= set(mae_core.weights.registry.list_weights())
