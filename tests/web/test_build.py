"""The site: what is in it, and that a build replaces nothing but an earlier build."""

import gzip
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import web.build
from app.examples import examples
from app.i18n import LOCALES
from mae_core.errors import ConfigError
from mae_core.weights import DEFAULT_WEIGHTS
from tests.sources import ROOT
from web.build import build_site, finish, main
from web.headers import HEADERS


def content_of(site: Path) -> dict[str, bytes]:
    paths = [path for path in site.rglob("*") if path.is_file()]
    return {path.relative_to(site).as_posix(): path.read_bytes() for path in paths}


def facts_of(site: Path) -> dict[str, Any]:
    """What the service worker knows."""
    line = re.search(r"(?m)^const SITE = (.*);$", (site / "sw.js").read_text())
    assert line
    facts: dict[str, Any] = json.loads(line[1])
    return facts


VERSION = json.loads((ROOT / "package.json").read_text("utf-8"))["dependencies"]["onnxruntime-web"]
ORT = f"ort/{VERSION}"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with a small runtime; models are not exported."""
    root = tmp_path / "project"
    for folder in ("app/assets", "app/locales", "app/stage", "web"):
        shutil.copytree(ROOT / folder, root / folder)
    for name in ("LICENSE", "package.json"):
        shutil.copyfile(ROOT / name, root / name)
    package = root / "node_modules/onnxruntime-web/dist"
    package.mkdir(parents=True)
    pins = {}
    for name in json.loads((root / "web/runtime.json").read_text()):
        (package / name).write_bytes(name.encode() * 99)
        pins[name] = hashlib.sha256(name.encode() * 99).hexdigest()
    (root / "web/runtime.json").write_text(json.dumps(pins))

    def export(folder: Path, weights: list[str]) -> None:
        folder.mkdir()
        (folder / "index.json").write_text(json.dumps(weights))
        (folder / "a-0123.onnx").write_bytes(b"model")

    monkeypatch.setattr(web.build, "_export", export)
    return root


def test_the_site_has_its_files_where_its_modules_look_for_them(site: Path) -> None:
    files = content_of(site)
    modules = {f"{folder}/{path.name}" for folder in ("web", "app/stage")
               for path in (ROOT / folder).glob("*.js")} - {"web/sw.js"}  # fmt: skip
    assert modules <= files.keys()
    assert files["app/stage/backend.js"] == b"export * from '../../web/backend-onnx.js';\n"
    assert json.loads(files["examples.json"]) == [*examples()]
    for name, path in examples().items():
        assert files[f"examples/{name}.jpg"] == path.read_bytes()
        assert f"thumbnails/{name}.jpg" in files
    for language in ("en", "zh"):
        texts, said = json.loads(files[f"locales/{language}.json"]), LOCALES[language]
        assert (texts["labels"], texts["web"]) == (said["labels"], said["web"])
        for part, own in texts["stage"].items():
            # What is true without a server takes the place of what the other page says.
            assert own == said["stage"][part] | said["web_stage"].get(part, {})
    style = files["style.css"].decode()
    for path in [ROOT / "app/assets/style.css", *ROOT.glob("app/stage/*.css"),
                 *ROOT.glob("web/*.css")]:  # fmt: skip
        assert path.read_text("utf-8") in style
    # Licences of what others made.
    assert {"LICENSE", "examples/LICENSES.md", f"{ORT}/LICENSE"} <= files.keys()


def test_the_models_are_those_that_are_described(site: Path) -> None:
    index = json.loads((site / "models/index.json").read_text("utf-8"))
    (model,) = index["models"]
    data = gzip.decompress((site / "models" / model["file"]).read_bytes())
    digest = hashlib.sha256(data).hexdigest()
    assert (index["v"], model["name"], model["bytes"]) == (1, DEFAULT_WEIGHTS, len(data))
    assert model["sha256"] == digest
    assert model["file"] == f"{DEFAULT_WEIGHTS}-{digest[:12]}.onnx.gz"
    assert model["licence"]
    assert model["loss_db"]["pictures"] == len(examples())


def test_the_runtime_is_that_of_the_npm_package(site: Path) -> None:
    assert f"const FOLDER = '{ORT}/';" in (site / "web/runtime.js").read_text("utf-8")
    pins = json.loads((ROOT / "web/runtime.json").read_text())
    for name, sha256 in pins.items():
        if name.endswith(".wasm"):
            data = gzip.decompress((site / f"{ORT}/{name}.gz").read_bytes())
        else:
            data = (site / f"{ORT}/{name}").read_bytes()
        assert hashlib.sha256(data).hexdigest() == sha256
    lock = json.loads((ROOT / "package-lock.json").read_text())
    version = lock["packages"]["node_modules/onnxruntime-web"]["version"]
    assert json.loads((ROOT / "package.json").read_text())["dependencies"] == {
        "onnxruntime-web": version
    }
    assert f"ONNX Runtime Web {version}" in (site / f"{ORT}/LICENSE").read_text()


def test_the_service_worker_knows_every_file(site: Path) -> None:
    facts, files = facts_of(site), content_of(site)
    known = facts["files"] | facts["later"]
    assert known.keys() == files.keys() - {"sw.js", "index.html", "_headers"}
    for name, sha256 in known.items():
        assert hashlib.sha256(files[name]).hexdigest() == sha256, name
    assert facts["page"] == files["index.html"].decode()
    assert facts["headers"] == HEADERS
    # A first visit waits for the others.
    assert max(len(files[name]) for name in facts["files"]) < 10**5
    # As they are, in an address.
    assert all(re.fullmatch(r"[\w./-]+", name, re.ASCII) for name in files)


def test_one_policy_is_in_the_page_and_in_the_headers(site: Path) -> None:
    page, headers = (site / "index.html").read_text("utf-8"), (site / "_headers").read_text()
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert found
    assert HEADERS["Content-Security-Policy"] == f"{found[1]}; frame-ancestors *"
    assert headers == "/*\n" + "".join(f"  {name}: {value}\n" for name, value in HEADERS.items())
    assert "unsafe-inline" not in headers
    assert "'unsafe-eval'" not in headers


def test_every_module_that_a_page_imports_is_loaded_early(site: Path) -> None:
    page = (site / "index.html").read_text("utf-8")
    links = re.findall(r'<link rel="modulepreload" href="([^"]+)"', page)
    assert {"web/backend-onnx.js", "app/stage/masking.js"} <= {*links}
    assert "web/worker.js" not in links
    assert len(links) == len({*links})
    assert all((site / name).is_file() for name in links)


def test_the_page_can_be_installed(site: Path) -> None:
    manifest = json.loads((site / "manifest.webmanifest").read_text("utf-8"))
    assert manifest["start_url"] == manifest["scope"] == "."
    assert {"name", "short_name", "display"} <= manifest.keys()
    assert {icon.get("purpose") for icon in manifest["icons"]} == {None, "maskable"}
    for icon in manifest["icons"]:
        with Image.open(site / icon["src"]) as picture:
            assert icon["sizes"] == f"{picture.width}x{picture.height}"


def test_the_same_sources_give_the_same_bytes_in_the_place_of_an_earlier_build(
    root: Path, tmp_path: Path
) -> None:
    site = tmp_path / "deep" / "site"
    build_site(site, root=root)
    first = content_of(site)
    (root / "web/page.js").write_text("changed();\n")
    build_site(site, root=root)
    assert content_of(site)["web/page.js"] == b"changed();\n"
    (root / "web/page.js").unlink()
    (root / "web/index.html").write_text("<!-- policy -->")
    build_site(site, root=root)
    assert "web/page.js" not in content_of(site)
    for name in ("page.js", "index.html"):
        shutil.copyfile(ROOT / "web" / name, root / "web" / name)
    build_site(site, root=root)
    assert content_of(site) == first
    assert [path.name for path in site.parent.iterdir()] == ["site"]


def test_a_folder_of_something_else_is_left_alone(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds files that no build wrote \\(thesis.txt\\)"):
        build_site(site, root=root)
    assert main([str(site)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    (site / "thesis.txt").unlink()
    build_site(site, root=root)
    (site / "web" / "mine.js").write_text("added by hand")
    with pytest.raises(ConfigError, match="\\(web/mine.js\\)"):
        build_site(site, root=root)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match="give another folder"):
        build_site(file, root=root)


def test_a_build_that_fails_leaves_the_site_as_it_was(root: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    build_site(site, root=root)
    before = content_of(site)
    runtime = root / "node_modules/onnxruntime-web/dist/ort.wasm.min.mjs"
    runtime.write_bytes(b"changed")
    with pytest.raises(ConfigError, match="is not the file whose SHA-256 is in web/runtime.json"):
        build_site(site, root=root)
    runtime.unlink()
    with pytest.raises(ConfigError, match="is missing; run `npm ci`"):
        build_site(site, root=root)
    assert content_of(site) == before
    assert {path.name for path in tmp_path.iterdir()} == {"project", "site"}


def test_a_page_without_a_place_for_its_policy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<html></html>")
    with pytest.raises(ConfigError, match="needs one line <!-- policy -->"):
        finish(tmp_path)
