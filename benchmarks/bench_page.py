"""From a move of slider or brush to changed pixels, in a real Chromium, beside the bare model.

    python -m app
    python -m benchmarks.bench_page --moves 100
    python -m benchmarks.bench_page --moves 100 --by brush

Moves the seed, each time to one that nobody has asked for, or flips one more patch of the mask, and
waits until the canvas of the reconstruction is painted anew. The browser's own resource timing says
where the time went:

* `join`: from the move until the server has taken the event;
* `answer`: until the event stream has brought the answer: the line, the model, the panels' files;
* `fetch`: until the reconstruction is fetched;
* `paint`: until it is decoded and all four panels are drawn.

The bare model, the same weights on the same picture in this process, runs after the moves, in the
threads that the page gives it. Needs Chromium and Playwright (`pip install -r
requirements-dev.txt`). Writes a dated Markdown file and the numbers as JSON.
"""

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import sync_playwright

from benchmarks import reports
from mae_core import Reconstructor, load
from mae_core.reconstruct import ReconstructionRequest
from mae_core.weights.registry import DEFAULT_WEIGHTS

EXAMPLE = Path(__file__).parent.parent / "app" / "assets" / "examples" / "cat.jpg"
PARTS = ("join", "answer", "fetch", "paint")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PACKAGES = ("gradio", "torch", "playwright")

# What a visitor does, by a number that is another one each time.
ACTS = {
    "slider": """(seed) => {
  const slider = document.querySelector('#seed input[type=range]');
  slider.value = seed;
  slider.dispatchEvent(new Event('input', {bubbles: true}));
}""",
    "brush": """(number) => {
  const grid = document.querySelector('#panel-masked svg.grid');
  const {left, top, width, height} = grid.getBoundingClientRect();
  // 37 and 196 have no common divisor: each patch comes once.
  const patch = 37 * number % 196;
  const at = {
    bubbles: true, pointerType: 'mouse', pointerId: 1, isPrimary: true, buttons: 1,
    clientX: left + width * (patch % 14 + 0.5) / 14,
    clientY: top + height * (Math.floor(patch / 14) + 0.5) / 14,
  };
  grid.dispatchEvent(new PointerEvent('pointerdown', at));
  grid.dispatchEvent(new PointerEvent('pointerup', at));
}""",
}

MOVE = """async ([act, number]) => {
  const panels = document.querySelector('#panels [data-view]');
  performance.clearResourceTimings();
  const painted = new Promise((resolve) => new MutationObserver(() => resolve(performance.now()))
    .observe(panels, {attributes: true, attributeFilter: ['data-view']}));
  const begun = performance.now();
  eval(act)(number);
  const end = await painted;
  const timing = (pattern) => performance.getEntriesByType('resource')
    .find((entry) => pattern.test(entry.name));
  const fetched = timing(/reconstruction[.]png/);
  return [begun, timing(/queue[/]join/).responseEnd, fetched.startTime, fetched.responseEnd, end];
}"""


def moves(url: str, by: str, count: int, first_seed: int) -> list[list[float]]:
    """Milliseconds of each part, for each move."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
        page.goto(url)
        page.locator("#panels [data-view]").wait_for()
        page.wait_for_timeout(2000)
        page.evaluate(MOVE, [ACTS["slider"], first_seed])
        found = []
        for number in range(first_seed + 1, first_seed + count + 6):
            marks = page.evaluate(MOVE, [ACTS[by], number])
            found.append([end - begin for begin, end in pairwise(marks)])
            page.wait_for_timeout(100)
        browser.close()
    # The first ones warm up connections and caches.
    return found[5:]


def bare(weights: str, count: int) -> list[float]:
    """Milliseconds of the model alone, from a decoded picture to four panels."""
    reconstructor = Reconstructor(load(weights), in_place=True)
    request = ReconstructionRequest(EXAMPLE, 0.75, 0)
    torch.set_num_threads(reconstructor.threads_for([request]))
    found = []
    for seed in range(count + 5):
        begun = time.perf_counter()
        reconstructor(EXAMPLE, 0.75, seed).panels()
        found.append(1000 * (time.perf_counter() - begun))
    return found[5:]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure a page that is being served."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--by", choices=ACTS, default="slider")
    parser.add_argument("--moves", type=int, default=100)
    parser.add_argument("--first-seed", type=int, default=1000, help="none may be asked for before")
    parser.add_argument("--weights", default=DEFAULT_WEIGHTS, help="what the page serves")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    report: dict[str, Any] = reports.conditions("bench_page", argv, "cpu", PACKAGES)
    found = moves(args.url, args.by, args.moves, args.first_seed)
    totals, model = [sum(parts) for parts in found], bare(args.weights, args.moves)
    columns = {f"{args.by} to pixels": totals, "bare model": model}
    columns |= {name: [parts[i] for parts in found] for i, name in enumerate(PARTS)}
    report["milliseconds"] = {
        name: {"median": statistics.median(times), "p95": statistics.quantiles(times, n=20)[18]}
        for name, times in columns.items()
    }
    report["ratio"] = statistics.median(totals) / statistics.median(model)
    rows = "\n".join(
        f"| {name} | {row['median']:.0f} | {row['p95']:.0f} |"
        for name, row in report["milliseconds"].items()
    )
    page = (
        f"# {args.by.title()} to pixels, {report['date']}\n\n`{report['command']}`\n\n"
        f"{report['device']}, {report['cores']} cores, load before {report['load_before']:.1f}; "
        f"{report['versions']}.\n\n"
        f"{args.moves} moves; {report['ratio']:.2f} times the bare model.\n\n"
        f"| milliseconds | median | p95 |\n|---|---|---|\n{rows}\n"
    )
    reports.write(report, page, "page", args.out)


if __name__ == "__main__":
    main()
