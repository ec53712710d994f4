"""How many threads, and how they wait: on an idle machine, and with one core taken.

    python -m benchmarks.bench_threads
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python -m benchmarks.bench_threads
    python -m benchmarks.bench_threads --work rebuild:mae-compact:1 --rounds 5 --out /tmp/look

Work is KIND:MODEL:BATCH, with KIND `rebuild` (pictures into panels, as the page does) or `train`
(a step of AdamW at 128 pixels, as the trainer does); a model is bundled weights by name, or a
preset with random weights. Each way is a process of its own, for torch reads how threads wait when
it is loaded. `before` is torch by itself, `after` what the page and the command lines do. The ways
take turns, idle and busy alike, so that a slow moment of the machine falls on all of them. Busy: a
process that only counts has the last core. Writes a dated Markdown file and the numbers as JSON
into benchmarks/results/.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import reports
from benchmarks.bench_batch import reconstructor_of, requests_of
from benchmarks.bench_reconstruct import quartiles
from mae_core import MaskedAutoencoder, random_mask
from mae_core.config import PRESETS
from mae_core.devices import choose_precision, choose_threads
from mae_core.model.losses import reconstruction_loss
from mae_core.training.trainer import autocast, prefer_fast_attention

PACKAGES = ("torch", "timm")
WORK = ("rebuild:mae-compact:1", "rebuild:mae-compact:8", "rebuild:small:1", "rebuild:base:1",
        "train:tiny:32", "train:small:16")  # fmt: skip

# Threads (0 is torch's choice, -1 ours) and environment of each way; the first is the default.
WAYS: dict[str, tuple[int, dict[str, str]]] = {
    "before": (0, {}),
    "one thread": (1, {}),
    "passive": (0, {"OMP_WAIT_POLICY": "PASSIVE"}),
    "short spin": (0, {"GOMP_SPINCOUNT": "1000"}),
    "after": (-1, {"GOMP_SPINCOUNT": "1000"}),
}
SETTINGS = {"OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT"}
_SPIN = "import os; os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})\nwhile True: pass"


def training_step(preset: str, batch: int) -> Callable[[], object]:
    """Forward, backward and update, in the precision that the trainer takes."""
    cpu = torch.device("cpu")
    precision = choose_precision("auto", cpu)
    torch.manual_seed(0)
    model = MaskedAutoencoder(PRESETS[preset])
    prefer_fast_attention(model, cpu)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images = torch.randn(batch, 3, 128, 128)
    mask = random_mask(batch, 64, 0.75, seed=0)

    def step() -> None:
        with autocast(precision, cpu):
            output = model(images, mask)
            loss = reconstruction_loss(output.pred, model.target(images), output.mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def made(work: str, threads: int) -> Callable[[], object]:
    """What is timed, with the threads of a way."""
    kind, model, batch = work.split(":")
    if kind == "train":
        torch.set_num_threads(threads if threads > 0 else choose_threads())
        return training_step(model, int(batch))
    reconstructor, requests = reconstructor_of(model, "cpu", "auto"), requests_of(int(batch))
    if threads:
        torch.set_num_threads(threads if threads > 0 else reconstructor.threads_for(requests))
    return lambda: reconstructor.batch(requests)


def serve(work: str, threads: int) -> None:
    """Do the work once for each line that comes; tell its wall and CPU time in milliseconds."""
    do = made(work, threads)
    for _ in range(2):
        do()
    print(torch.get_num_threads(), flush=True)
    for _ in sys.stdin:
        begun, used = time.perf_counter(), time.process_time()
        do()
        wall, cpu = time.perf_counter() - begun, time.process_time() - used
        print(json.dumps([1000 * wall, 1000 * cpu]), flush=True)


@contextmanager
def child(work: str, way: str) -> Iterator[subprocess.Popen[str]]:
    """A process that serves one way."""
    threads, settings = WAYS[way]
    line = [sys.executable, "-m", "benchmarks.bench_threads", "--serve", work, str(threads)]
    plain = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    with subprocess.Popen(
        line, env=plain | settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def answer(process: subprocess.Popen[str], ask: bool = True) -> Any:
    """The next line of a child."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the child has no pipes")
    if ask:
        process.stdin.write("\n")
        process.stdin.flush()
    return json.loads(process.stdout.readline())


@contextmanager
def neighbour() -> Iterator[subprocess.Popen[bytes]]:
    """A process that takes one core whenever it is continued."""
    with subprocess.Popen([sys.executable, "-c", _SPIN]) as process:
        process.send_signal(signal.SIGSTOP)
        try:
            yield process
        finally:
            process.kill()


def bench(work: str, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Time one piece of work, for at most so many seconds after the first round."""
    with ExitStack() as stack:
        spinner = stack.enter_context(neighbour())
        children, threads = {}, {}
        for way in WAYS:
            children[way] = stack.enter_context(child(work, way))
            threads[way] = answer(children[way], ask=False)
        times: dict[bool, dict[str, list[tuple[float, float]]]] = {
            busy: {way: [] for way in WAYS} for busy in (False, True)
        }
        begun = time.perf_counter()
        for i in range(rounds):
            if i and time.perf_counter() - begun > seconds:
                break
            for busy in (False, True):
                spinner.send_signal(signal.SIGCONT if busy else signal.SIGSTOP)
                for way in list(WAYS)[:: -1 if i % 2 else 1]:
                    times[busy][way].append(answer(children[way]))
            spinner.send_signal(signal.SIGSTOP)
    return [
        _row(work, way, threads[way], busy, times[busy]) for busy in (False, True) for way in WAYS
    ]


def _row(
    work: str, way: str, threads: int, busy: bool, times: dict[str, list[tuple[float, float]]]
) -> dict[str, Any]:
    walls = [wall for wall, _ in times[way]]
    ratios = [own / before for own, (before, _) in zip(walls, times["before"], strict=True)]
    return {
        "work": work, "way": way, "threads": threads, "busy": busy, "rounds": len(walls),
        "median": statistics.median(walls), "least": min(walls),
        "cpu": statistics.median(cpu for _, cpu in times[way]),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": quartiles(ratios) if len(ratios) > 1 else (ratios[0], ratios[0]),
    }  # fmt: skip


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        f"# Threads, {report['date']}",
        "",
        f"`{report['command']}`",
        "",
        f"{report['device']}, {report['capability']}, {report['cores']} cores, load before "
        f"{report['load_before']:.1f}; {report['versions']}. Interleaved rounds; the ratio is time "
        "over that of `before` in the same round, below 1 is faster.",
        "",
        "| work | machine | way | threads | median ms | least ms | CPU ms | time / before "
        "| quartiles |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        low, high = row["ratio_quartiles"]
        lines.append(
            f"| {row['work']} | {'busy' if row['busy'] else 'idle'} | {row['way']} "
            f"| {row['threads']} | {row['median']:.0f} | {row['least']:.0f} | {row['cpu']:.0f} "
            f"| {row['ratio']:.2f} | {low:.2f} to {high:.2f} |"
        )
    return "\n".join([*lines, ""])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["--serve"]:
        return serve(arguments[1], int(arguments[2]))
    parser = argparse.ArgumentParser(description="Time threads, idle and beside a busy neighbour.")
    parser.add_argument("--work", nargs="+", default=WORK, metavar="KIND:MODEL:BATCH")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--seconds", type=float, default=30, help="no further round of a piece of work after these"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(arguments)
    capability = torch.backends.cpu.get_cpu_capability()
    report: dict[str, Any] = {
        **reports.conditions("bench_threads", arguments, "cpu", PACKAGES),
        "capability": capability,
        "rows": [row for work in args.work for row in bench(work, args.rounds, args.seconds)],
    }
    reports.write(report, markdown(report), f"threads-{capability.lower()}", args.out)
    return None


if __name__ == "__main__":
    main()
