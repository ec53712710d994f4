"""One picture through the ONNX file, beside the model that it was made from.

    python -m benchmarks.bench_onnx
    python -m benchmarks.bench_onnx --presets tiny --rounds 3 --threads 1 --out /tmp/look

Needs `requirements-onnx.txt`. Every contestant encodes and decodes the same picture with the same
mask, in float32 and on as many threads: the model itself (eager), the torch.export program as it
was read from its file, and ONNX Runtime. Weights are random: time does not depend on them. All
are timed in every round, in shuffled order, so that a slow moment of the machine falls on all of
them. Medians are reported; a ratio is the median of the rounds' ratios, with its quartiles.

Writes a dated Markdown file and the numbers as JSON into benchmarks/results/.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from benchmarks import reports
from benchmarks.bench_reconstruct import Run, quartiles, time_rounds
from mae_core import MaskedAutoencoder, random_mask
from mae_core.config import PRESETS
from mae_core.model.masking import PatchMask
from mae_core.weights.formats import Weights
from mae_core.weights.onnx import export_onnx, export_program

MASK_RATIO = 0.75
# Whose versions matter.
PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime")
EAGER = "PyTorch, eager"


@dataclass(frozen=True)
class Row:
    """A contestant's time for one picture, and how it compares to the eager model.

    Attributes:
        preset: The model.
        who: The contestant.
        threads: Of the processor.
        median: Milliseconds.
        quartiles: Milliseconds; half of the rounds lie between.
        ratio: The eager model's time over this one's; 1 for itself.
        ratio_quartiles: Of the rounds' ratios.
        difference: Largest difference of `pred` or `latent` from the eager model's.
    """

    preset: str
    who: str
    threads: int
    median: float
    quartiles: tuple[float, float]
    ratio: float
    ratio_quartiles: tuple[float, float]
    difference: float


class Contestants:
    """One model in three forms; each call gives `pred` and `latent`."""

    def __init__(self, preset: str, folder: Path) -> None:
        """Make the model and write both files into `folder`."""
        self.config = PRESETS[preset]
        torch.manual_seed(0)
        weights = Weights(self.config, MaskedAutoencoder(self.config).state_dict(), {})
        self.onnx_file, program_file = folder / f"{preset}.onnx", folder / f"{preset}.pt2"
        export_onnx(weights, self.onnx_file)
        export_program(weights, program_file)
        self.model = weights.build()
        self.program = torch.export.load(program_file).module()
        self.megabytes = {
            "parameters": sum(tensor.nbytes for tensor in weights.state.values()) / 1e6,
            "ONNX": self.onnx_file.stat().st_size / 1e6,
            "torch.export": program_file.stat().st_size / 1e6,
        }

    def session(self, threads: int) -> Any:
        """ONNX Runtime with the file."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Its threads wait for more work in a busy loop, which would be taken from the others.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return onnxruntime.InferenceSession(
            self.onnx_file, options, providers=["CPUExecutionProvider"]
        )

    def eager(self, images: Tensor, patch_mask: PatchMask) -> Sequence[Tensor]:
        """The model itself."""
        latent = self.model.encode(images, patch_mask)
        grid_size = self.model.grid_of(images)
        return self.model.decode(latent, patch_mask.ids_restore, grid_size), latent


def bench(
    contestants: Contestants, preset: str, threads: int, args: argparse.Namespace
) -> list[Row]:
    """Time all forms of one model on as many threads."""
    torch.set_num_threads(threads)
    config = contestants.config
    images = torch.randn(1, config.in_chans, config.image_size, config.image_size)
    patch_mask = random_mask(1, config.grid_size**2, MASK_RATIO, seed=0)
    given = (images, patch_mask.ids_keep, patch_mask.ids_restore)
    named = dict(zip(("images", "ids_keep", "ids_restore"), given, strict=True))
    arrays = {name: tensor.numpy() for name, tensor in named.items()}
    session = contestants.session(threads)
    runs: dict[str, Run] = {
        EAGER: lambda: contestants.eager(images, patch_mask),
        "torch.export": lambda: contestants.program(*given),
        "ONNX Runtime": lambda: session.run(["pred", "latent"], arrays),
    }
    outputs = {name: [torch.as_tensor(value) for value in run()] for name, run in runs.items()}
    times = time_rounds(runs, args.rounds, args.warmup, "cpu")
    return [
        row_of(preset, name, threads, times, difference(outputs[name], outputs[EAGER]))
        for name in runs
    ]


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference between two outputs."""
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


def row_of(preset: str, who: str, threads: int, times: dict[str, Any], difference: float) -> Row:
    """Sum up one contestant's times."""
    own = times[who]
    ratios = [eager / mine for eager, mine in zip(times[EAGER], own, strict=True)]
    return Row(
        preset, who, threads, statistics.median(own), quartiles(own), statistics.median(ratios),
        quartiles(ratios), difference,
    )  # fmt: skip


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        f"# One picture through the ONNX file, {report['date']}",
        "",
        f"`{report['command']}`",
        "",
        f"{report['device']}, {report['cores']} cores, load before {report['load_before']:.1f}; "
        f"{report['versions']}. Batch 1, mask ratio {MASK_RATIO}, float32, random weights, "
        f"{report['rounds']} interleaved rounds; encoder and decoder. The difference is the "
        "largest of any value from the eager model's.",
        "",
        "| model | | threads | median ms | quartiles | times eager's speed | quartiles "
        "| difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        low, high = row["quartiles"]
        ratio_low, ratio_high = row["ratio_quartiles"]
        lines.append(
            f"| {row['preset']} | {row['who']} | {row['threads']} | {row['median']:.1f} "
            f"| {low:.1f} to {high:.1f} | {row['ratio']:.2f} "
            f"| {ratio_low:.2f} to {ratio_high:.2f} | {row['difference']:.1e} |"
        )
    lines += ["", "| model | parameters, MB | ONNX, MB | torch.export, MB |", "|---|---|---|---|"]
    for preset, sizes in report["megabytes"].items():
        lines.append(f"| {preset} | " + " | ".join(f"{size:.1f}" for size in sizes.values()) + " |")
    return "\n".join([*lines, ""])


def parse_args(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time one picture through the ONNX file.")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["base"])
    parser.add_argument("--rounds", type=int, default=25, help="timed rounds, at least 2")
    parser.add_argument("--warmup", type=int, default=3, help="rounds before them")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure, print and write."""
    args = parse_args(arguments)
    report: dict[str, Any] = {
        **reports.conditions("bench_onnx", arguments, "cpu", PACKAGES),
        "rounds": args.rounds,
        "rows": [],
        "megabytes": {},
    }
    for preset in args.presets:
        with tempfile.TemporaryDirectory() as folder:
            contestants = Contestants(preset, Path(folder))
            with torch.inference_mode():
                for threads in args.threads:
                    rows = bench(contestants, preset, threads, args)
                    report["rows"] += [asdict(row) for row in rows]
            report["megabytes"][preset] = contestants.megabytes
    reports.write(report, markdown(report), "onnx-cpu", args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
