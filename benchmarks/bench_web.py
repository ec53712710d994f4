"""The page without a server: is it what Python gives, how soon, how fast, and how much memory.

    make web
    python -m benchmarks.bench_web build/web

Serves the built site as plain files and opens it in a real Chromium:

* `same`: 1,000 random masks beside `draw_mask`; the examples under three ratios and strategies
  beside `Reconstructor`, whose weights have 32 bits where the site's have 8;
* `first`: from the address to the first panels in a fresh profile, on loopback and behind a server
  that sends 20 Mbit/s, and on a second visit;
* `slider` and `brush`: from a move to painted panels, beside the model alone: in the browser, as
  the page's facts say, and in Python, as the page with a server runs it;
* `memory`: of the browser's processes, after 20 pictures, after each 100 more, and when it is asked
  to give back what it can.

Needs Chromium and Playwright (`pip install -r requirements-dev.txt`). Writes a dated Markdown file
and the numbers as JSON.
"""

import argparse
import base64
import contextlib
import io
import os
import random
import re
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks import reports
from benchmarks.bench_page import ACTS, CHROMIUM, bare
from mae_core import Reconstructor, load
from mae_core.model.masking import STRATEGIES, draw_mask
from mae_core.weights import DEFAULT_WEIGHTS

EXAMPLES = Path(__file__).parent.parent / "app" / "assets" / "examples"
GRIDS = [(14, 14), (7, 7), (16, 12), (9, 21), (1, 5), (32, 32)]
RATIOS = (0.25, 0.75, 0.95)
SLOW_BYTES = 20_000_000 / 8  # a second

MASKS = """async (cases) => {
  const { drawMask } = await import(new URL('app/stage/masking.js', document.baseURI));
  return cases.map(([strategy, grid, ratio, seed]) => {
    const { idsKeep, idsRestore } = drawMask(strategy, grid, ratio, BigInt(seed));
    return [idsKeep, idsRestore];
  });
}"""
VIEW = """async (settings) => {
  const { stage } = await import(new URL('app/stage/stage.js', document.baseURI));
  const found = new AbortController();
  const shown = new Promise((resolve) => stage.addEventListener('view', () => {
    if (stage.view.settings.mask.seed === settings.request.mask.seed) resolve();
  }, {signal: found.signal}));
  await stage.open(settings);
  await shown;
  found.abort();
  return stage.view;
}"""
READ = """async (address) => {
  const file = await (await fetch(address)).blob();
  return new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.readAsDataURL(file);
  });
}"""
MOVE = """async ([act, number]) => {
  const panels = document.querySelector('#panels .panels');
  const painted = new Promise((resolve) => new MutationObserver(() => resolve(performance.now()))
    .observe(panels, {attributes: true, attributeFilter: ['data-view']}));
  const begun = performance.now();
  eval(act)(number);
  const end = await painted;
  return [end - begun, 1000 * JSON.parse(panels.dataset.view).facts.seconds];
}"""


class Files(SimpleHTTPRequestHandler):
    """A plain file server that counts what it sends, and may send slowly."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Send a file, all of them together at the server's pace."""
        server: Any = self.server
        while piece := source.read(16_384):
            with server.lock:
                server.sent += len(piece)
                if server.pace:
                    time.sleep(len(piece) / server.pace)
            outputfile.write(piece)


@contextmanager
def serving(site: Path) -> Iterator[Any]:
    """The site on a free port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(site))) as server:
        server.lock, server.sent, server.pace = threading.Lock(), 0, 0  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def masks(page: Page, count: int) -> int:
    """How many of so many random masks are those of Python."""
    chance = random.Random(14)
    cases = [
        [chance.choice(STRATEGIES), chance.choice(GRIDS), chance.random(), chance.getrandbits(62)]
        for _ in range(count)
    ]
    found = page.evaluate(MASKS, [[*case[:3], str(case[3])] for case in cases])
    same = 0
    for (strategy, grid, ratio, seed), ids in zip(cases, found, strict=True):
        mask = draw_mask(strategy, 1, grid, ratio, seed=seed)
        same += ids == [mask.ids_keep[0].tolist(), mask.ids_restore[0].tolist()]
    return same


def pictures(page: Page) -> dict[str, Any]:
    """The examples' reconstructions beside those of Python."""
    reconstructor = Reconstructor(load(DEFAULT_WEIGHTS), in_place=True)
    request = page.evaluate("JSON.parse(document.querySelector('.panels').dataset.view).settings")
    differing, levels, originals, losses = [], [], 0, []
    for number, picture in enumerate(sorted(EXAMPLES.glob("*.jpg"))):
        for i, ratio in enumerate(RATIOS):
            for j, strategy in enumerate(STRATEGIES):
                seed = 1000 + 100 * number + 10 * i + j
                mask = request["mask"] | {"ratio": ratio, "strategy": strategy, "seed": seed}
                asked = {"example": picture.stem, "request": request | {"mask": mask}}
                view = page.evaluate(VIEW, asked)
                wanted = reconstructor(picture, ratio, seed, strategy=strategy)
                panels = wanted.panels()
                originals += not np.array_equal(
                    pixels_of(page, view["original"]), panels["original"]
                )
                theirs = np.asarray(panels["reconstruction"]).astype(int)
                apart = np.abs(pixels_of(page, view["reconstruction"]) - theirs)
                differing.append(float((apart > 0).mean()))
                levels.append(int(apart.max()))
                losses.append(float(wanted.psnr or 0) - view["facts"]["psnr"])
    return {
        "cases": len(losses), "originals_that_differ": originals,
        "differing_bytes": {"mean": statistics.mean(differing), "worst": max(differing)},
        "largest_level": max(levels),
        "psnr_lost": {"mean": statistics.mean(losses), "worst": max(losses)},
    }  # fmt: skip


def pixels_of(page: Page, address: str) -> np.ndarray:
    """The picture at an address."""
    data = base64.b64decode(page.evaluate(READ, address).partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def opened(page: Page, url: str) -> float:
    """Open the page; seconds until its first panels."""
    page.goto("about:blank")
    begun = time.perf_counter()
    page.goto(url)
    page.locator("#panels .panels[data-view*=reconstruction]").wait_for(timeout=120_000)
    return time.perf_counter() - begun


def first(browser: Browser, server: Any, url: str, pace: float) -> dict[str, float]:
    """Seconds to the first panels in a fresh profile, and again; bytes that were sent."""
    server.pace, server.sent = pace, 0
    context = browser.new_context()
    page = context.new_page()
    fresh = opened(page, url)
    sent = server.sent
    page.wait_for_timeout(3000)
    server.sent = 0
    again = opened(page, url)
    context.close()
    server.pace = 0
    return {"fresh": fresh, "bytes": sent, "again": again, "bytes_again": server.sent}


def moves(page: Page, by: str, count: int, first_seed: int) -> list[list[float]]:
    """Milliseconds of each move, and of the model in it."""
    page.wait_for_timeout(1000)
    found = []
    for number in range(first_seed, first_seed + count + 5):
        found.append(page.evaluate(MOVE, [ACTS[by], number]))
        page.wait_for_timeout(100)
    return found[5:]


def memory() -> float:
    """MB of all processes of the browsers that this process started."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            # After the name, which may hold anything: state, parent.
            stat = (folder / "stat").read_text().rpartition(")")[2]
            parents[int(folder.name)] = int(stat.split()[1])
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    total = 0.0
    for pid in ours - {os.getpid()}:
        with contextlib.suppress(OSError):
            if b"chrom" in Path(f"/proc/{pid}/cmdline").read_bytes():
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += int(re.findall(r"(?m)^Pss: +(\d+) kB", rollup)[0]) / 1000
    return total


def steady(page: Page, first_seed: int) -> dict[str, float]:
    """MB after 20 pictures, after each 100 more, and when the browser gave back what it can."""
    examples = sorted(path.stem for path in EXAMPLES.glob("*.jpg"))
    request = page.evaluate("JSON.parse(document.querySelector('.panels').dataset.view).settings")
    found = {}
    for number in range(420):
        mask = request["mask"] | {"seed": first_seed + number}
        example = examples[number % len(examples)]
        page.evaluate(VIEW, {"example": example, "request": request | {"mask": mask}})
        if number % 100 == 19:
            page.wait_for_timeout(2000)
            found[f"after {number + 1}"] = memory()
    client = page.context.new_cdp_session(page)
    # As an operating system does that is short of memory.
    client.send("Memory.simulatePressureNotification", {"level": "critical"})
    client.send("Memory.forciblyPurgeJavaScriptMemory")
    page.wait_for_timeout(3000)
    return {**found, "after it gave back what it can": memory()}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure a site that `make web` built."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("site", type=Path)
    parser.add_argument("--moves", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    packages = ("torch", "playwright", "onnxruntime")
    report: dict[str, Any] = reports.conditions("bench_web", argv, "cpu", packages)
    with serving(args.site) as server, sync_playwright() as playwright:
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        report["chromium"] = browser.version
        report["first"] = {
            "loopback": first(browser, server, url, 0),
            "20 Mbit/s": first(browser, server, url, SLOW_BYTES),
        }
        page = browser.new_page(
            viewport={"width": 1440, "height": 900}, reduced_motion="reduce", bypass_csp=True
        )
        # The second visit has what the service worker gives it: threads.
        opened(page, url)
        page.wait_for_timeout(3000)
        opened(page, url)
        report["threads"] = page.evaluate("crossOriginIsolated ? navigator.hardwareConcurrency : 1")
        report["same"] = {"masks": masks(page, 1000), "pictures": pictures(page)}
        times = {}
        for by in ACTS:
            found = moves(page, by, args.moves, 5000)
            times[f"{by} to pixels"] = [total for total, _ in found]
            times[f"model in the browser ({by})"] = [model for _, model in found]
        times["model in Python"] = bare(DEFAULT_WEIGHTS, args.moves)
        report["memory_mb"] = steady(page, 3000)
        browser.close()
    report["milliseconds"] = {
        name: {"median": statistics.median(each), "p95": statistics.quantiles(each, n=20)[18]}
        for name, each in times.items()
    }
    reports.write(report, _page(report), "web", args.out)


def _page(report: dict[str, Any]) -> str:
    same, seen = report["same"], report["same"]["pictures"]
    rows = "\n".join(
        f"| {name} | {row['median']:.0f} | {row['p95']:.0f} |"
        for name, row in report["milliseconds"].items()
    )
    visits = "\n".join(
        f"| {name} | {row['fresh']:.1f} s, {row['bytes'] / 1e6:.1f} MB "
        f"| {row['again']:.1f} s, {row['bytes_again'] / 1e6:.1f} MB |"
        for name, row in report["first"].items()
    )
    amounts = ", ".join(f"{mb:.0f} MB {name}" for name, mb in report["memory_mb"].items())
    return (
        f"# The page without a server, {report['date']}\n\n`{report['command']}`\n\n"
        f"{report['device']}, {report['cores']} cores, load before {report['load_before']:.1f}; "
        f"{report['versions']}, Chromium {report['chromium']}, {report['threads']} threads.\n\n"
        f"{same['masks']} of 1,000 masks are those of Python. {seen['cases']} reconstructions: "
        f"{seen['originals_that_differ']} originals differ; of the reconstructions' bytes "
        f"{seen['differing_bytes']['mean']:.1%} differ on average and "
        f"{seen['differing_bytes']['worst']:.1%} at most, by at most {seen['largest_level']} of "
        f"255; PSNR lost {seen['psnr_lost']['mean']:.4f} dB on average, "
        f"{seen['psnr_lost']['worst']:.4f} dB at most.\n\n"
        f"| to the first panels | first visit | second visit |\n|---|---|---|\n{visits}\n\n"
        f"| milliseconds | median | p95 |\n|---|---|---|\n{rows}\n\n"
        f"Memory of the browser over pictures: {amounts}.\n"
    )


if __name__ == "__main__":
    main()
