"""Build the page without a server into a folder that any static host serves: python -m web.build.

    python -m web.build build/web                                with mae-compact
    python -m web.build build/web --weights mae-compact,runs/flowers      the first is the default

The folder is new, empty or that of an earlier build, which stays as it is if this one fails. The
same sources give the same bytes.
"""

import argparse
import functools
import gzip
import hashlib
import json
import posixpath
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from app.examples import EXAMPLES, examples, thumbnail
from mae_core import MAEError, list_weights
from mae_core.errors import ConfigError
from mae_core.evaluation.web import measure_web_loss
from mae_core.weights import DEFAULT_WEIGHTS, export_web, read_weights, weights_name
from web.headers import DOCUMENT_POLICY, HEADERS

ROOT = Path(__file__).resolve().parents[1]

# Where the page gets its answers in place of the server's.
_BACKEND = "export * from '../../web/backend-onnx.js';\n"

# What a module imports before it runs.
_IMPORT = re.compile(r"(?m)^(?:import|export)\b[^'\";]*?\bfrom '(\.[^']+)'")

# The service worker fetches these when they are first used, and the rest at once.
_LATER = re.compile(r"ort/|models/.*\.onnx|examples/")
# No part of what a service worker keeps: itself, and the document, which it has inside.
_NEVER_KEPT = {"sw.js", "index.html", "_headers"}
_SITE_LINE = re.compile(r"(?m)^const SITE = (\{.*\});$")

# The icon: patches of a landscape by colour; a dot is a removed one.
_ICON = ("s.y.", ".s.y", "g..s", ".gg.")
_COLOURS = {"s": "#7cc7e8", "y": "#ffd166", "g": "#4cb782", ".": "#24493a"}
_GROUND = "#0f2a1f"


def build_site(site: Path, weights: Sequence[str] = (), *, root: Path = ROOT) -> None:
    """Write the site into a folder, in place of what an earlier build wrote there.

    Args:
        site: The folder; made if there is none.
        weights: Names, files, runs or USER/NAMEs, as `mae_core.load` takes them, the default one
            first; `mae-compact` if none are given.
        root: The project's folder.

    Raises:
        ConfigError: If the folder holds anything else, or a source is missing or changed.
        MAEError: If the weights cannot be read or exported.
    """
    strange = _strange_files(site)
    if strange:
        raise ConfigError(
            f"{str(site)!r} holds files that no build wrote ({', '.join(strange[:3])}); give "
            "another folder, or empty it"
        )
    site.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=site.parent, prefix=".web-build-") as folder:
        new, old = Path(folder) / "new", Path(folder) / "old"
        lay_out(new, weights, root=root)
        if site.exists():
            site.rename(old)
        try:
            new.rename(site)
        except OSError:
            old.rename(site)
            raise


def lay_out(site: Path, weights: Sequence[str] = (), *, root: Path = ROOT) -> None:
    """Write the site into a new or empty folder; for the rest see `build_site`."""
    copied = {"LICENSE": root / "LICENSE"}
    for name in ("index.html", "sw.js", "manifest.webmanifest"):
        copied[name] = root / "web" / name
    for folder in ("web", "app/stage"):
        modules = (path for path in (root / folder).glob("*.js") if path.name != "sw.js")
        copied |= {f"{folder}/{path.name}": path for path in modules}
    pictures = examples()
    copied |= {f"examples/{path.name}": path for path in pictures.values()}
    copied["examples/LICENSES.md"] = root / "app/assets/examples/LICENSES.md"
    for name, path in copied.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, site / name)
    (site / "app/stage/backend.js").write_text(_BACKEND, "utf-8")
    (site / "locales").mkdir()
    for path in (root / "app/locales").glob("*.json"):
        (site / "locales" / path.name).write_text(_locale(path), "utf-8", newline="\n")
    (site / "style.css").write_bytes(b"".join(path.read_bytes() for path in _styles(root)))
    version = json.loads((root / "package.json").read_text("utf-8"))["dependencies"]
    _copy_runtime(site / "ort" / version["onnxruntime-web"], root)
    (site / "thumbnails").mkdir()
    for name, path in pictures.items():
        (site / "thumbnails" / f"{name}.jpg").write_bytes(thumbnail(path))
    (site / "examples.json").write_text(json.dumps([*pictures]), "utf-8")
    for name, side, margin in (("192", 192, 0.1), ("512", 512, 0.1), ("maskable", 512, 0.22)):
        _icon(side, margin).save(site / f"icon-{name}.png", optimize=True)
    _export(site / "models", weights or [DEFAULT_WEIGHTS])
    finish(site)


def _locale(path: Path) -> str:
    """The texts of a language; what the parts of the stage say otherwise here takes its place."""
    texts = json.loads(path.read_text("utf-8"))
    for part, others in texts.pop("web_stage").items():
        texts["stage"][part] |= others
    return json.dumps(texts, ensure_ascii=False)


def finish(site: Path) -> None:
    """Fill in what is known once all files are there.

    In index.html these are the policy and the links that load modules early, in sw.js the headers
    and the lists of files.
    """
    page = (site / "index.html").read_text("utf-8")
    if page.count("<!-- policy -->") != 1:
        raise ConfigError("index.html needs one line <!-- policy -->; restore it")
    policy = f'<meta http-equiv="Content-Security-Policy" content="{DOCUMENT_POLICY}">'
    links = [f'<link rel="modulepreload" href="{name}">' for name in _modules(site, page)]
    page = page.replace("<!-- policy -->", policy).replace("<!-- modules -->", "\n".join(links))
    hashes = {
        name: hashlib.sha256((site / name).read_bytes()).hexdigest()
        for name in _names(site)
        if name not in _NEVER_KEPT
    }
    facts = json.dumps({
        "headers": HEADERS,
        "page": page,
        "files": {name: known for name, known in hashes.items() if not _LATER.match(name)},
        "later": {name: known for name, known in hashes.items() if _LATER.match(name)},
    })  # fmt: skip
    worker, found = _SITE_LINE.subn(
        lambda _: f"const SITE = {facts};", (site / "sw.js").read_text("utf-8")
    )
    if found != 1:
        raise ConfigError("sw.js has no line `const SITE = {...};`; restore it")
    # As hosts such as Netlify and Cloudflare Pages read it.
    lines = "".join(f"  {name}: {value}\n" for name, value in HEADERS.items())
    written = {"index.html": page, "sw.js": worker, "_headers": f"/*\n{lines}"}
    for name, text in written.items():
        (site / name).write_text(text, "utf-8", newline="\n")


def _names(site: Path) -> list[str]:
    """The files of a site, relative to it, in order."""
    paths = (path for path in site.rglob("*") if not path.is_dir())
    return sorted(path.relative_to(site).as_posix() for path in paths)


def _strange_files(site: Path) -> list[str]:
    """The files in a folder that no earlier build wrote."""
    if not site.is_dir():
        return [site.name] if site.exists() or site.is_symlink() else []
    worker = site / "sw.js"
    found = _SITE_LINE.search(worker.read_text("utf-8")) if worker.is_file() else None
    facts = json.loads(found[1]) if found else None
    known = {*facts["files"], *facts["later"], *_NEVER_KEPT} if facts else set()
    return [name for name in _names(site) if name not in known]


def _styles(root: Path) -> list[Path]:
    """The style sheets in the order in which the page with a server has them, then our own."""
    stage, web = (sorted((root / folder).glob("*.css")) for folder in ("app/stage", "web"))
    return [root / "app/assets/style.css", *stage, *web]


def _modules(site: Path, page: str) -> list[str]:
    """The modules that those of a document import, each after who imports it first."""
    found = re.findall(r'<script type="module" src="([^"]+)"', page)
    entries = {*found}
    for name in found:
        for given in _IMPORT.findall((site / name).read_text("utf-8")):
            imported = posixpath.normpath(f"{posixpath.dirname(name)}/{given}")
            if imported not in found and (site / imported).is_file():
                found.append(imported)
    return [name for name in found if name not in entries]


def _copy_runtime(folder: Path, root: Path) -> None:
    """Copy ONNX Runtime's files, each checked by its SHA-256; compress the binaries.

    Not every host compresses what it serves, and the binaries are most of a first visit.
    """
    folder.mkdir(parents=True)
    shutil.copyfile(root / "web/LICENSE-onnxruntime", folder / "LICENSE")
    package = root / "node_modules/onnxruntime-web/dist"
    for name, sha256 in json.loads((root / "web/runtime.json").read_text("utf-8")).items():
        try:
            content = (package / name).read_bytes()
        except FileNotFoundError as error:
            raise ConfigError(
                f"{name} of the npm package onnxruntime-web is missing; run `npm ci` in the "
                "project's folder, or `make web`"
            ) from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ConfigError(
                f"{name} of the npm package onnxruntime-web is not the file whose SHA-256 is in "
                "web/runtime.json; run `npm ci`, or after an update write the new one there"
            )
        if name.endswith(".wasm"):
            name, content = f"{name}.gz", gzip.compress(content, 9, mtime=0)
        (folder / name).write_bytes(content)


def _export(folder: Path, weights: Sequence[str]) -> None:
    """Write each model, compressed, by the name of its content, and their descriptions."""
    folder.mkdir()
    models: list[dict[str, Any]] = []
    for name in weights:
        entries = list_weights().values()
        entry = next((entry for entry in entries if name in (entry.name, entry.repo)), None)
        with tempfile.TemporaryDirectory(dir=folder) as exported:
            described = export_web(
                read_weights(name), Path(exported), name=weights_name(name),
                licence=entry.licence if entry else None,
                measure=functools.partial(measure_web_loss, folder=EXAMPLES),
            )  # fmt: skip
            stem, digest = Path(described["file"]).stem, described["sha256"][:12]
            file = re.sub(r"[^\w.-]+", "-", f"{stem}-{digest}.onnx.gz", flags=re.ASCII)
            content = (Path(exported) / described["file"]).read_bytes()
            (folder / file).write_bytes(gzip.compress(content, 9, mtime=0))
        if any(model["file"] == file for model in models):
            raise ConfigError(f"the weights {name!r} are given twice; give each once")
        models.append(described | {"file": file})
    index = json.dumps({"v": 1, "models": models}, ensure_ascii=False, indent=1)
    (folder / "index.json").write_text(f"{index}\n", "utf-8", newline="\n")


def _icon(side: int, margin: float) -> Image.Image:
    """A square picture of patches, most of them removed; `margin` is a share of the side."""
    icon = Image.new("RGB", (side, side), _GROUND)
    draw = ImageDraw.Draw(icon)
    cell = side * (1 - 2 * margin) / len(_ICON)
    for y, row in enumerate(_ICON):
        for x, patch in enumerate(row):
            left, top = round(side * margin + x * cell), round(side * margin + y * cell)
            size = round(cell * 0.88)
            draw.rectangle((left, top, left + size, top + size), _COLOURS[patch])
    return icon


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 2 after an error that can be mended."""
    parser = argparse.ArgumentParser(
        "python -m web.build", None, __doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("site", type=Path, metavar="OUT", help="the folder")
    parser.add_argument(
        "--weights", default="", metavar="W,...", help=f"(default: {DEFAULT_WEIGHTS})"
    )
    arguments = parser.parse_args(argv)
    weights = [part.strip() for part in arguments.weights.split(",") if part.strip()]
    try:
        build_site(arguments.site, weights)
    except MAEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    names = _names(arguments.site)
    size = sum((arguments.site / name).stat().st_size for name in names)
    print(f"{arguments.site}: {len(names)} files, {size / 1e6:.1f} MB")
    print(f"try it: python -m web.serve {arguments.site}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
