"""One picture by the weights of a training run on its way, early and late.

    for step, result in rebuild_by_snapshots("runs/quick", "photo.jpg", seed=2):
        print(step, result.psnr)

A run keeps them if its `snapshots` is above 0.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mae_core.errors import CheckpointError
from mae_core.images import ImageSource
from mae_core.reconstruct import Reconstruction, Reconstructor
from mae_core.weights.files import SNAPSHOTS_FOLDER
from mae_core.weights.registry import load

__all__ = ["find_snapshots", "open_snapshot", "rebuild_by_snapshots"]


def find_snapshots(run: str | Path) -> dict[int, Path]:
    """Steps done -> file, in order; empty for a folder without any."""
    found = Path(run).expanduser().joinpath(SNAPSHOTS_FOLDER).glob("step-*.safetensors")
    steps = {path.stem.removeprefix("step-"): path for path in found}
    return {int(step): steps[step] for step in sorted(steps) if step.isdecimal()}


def open_snapshot(path: Path, *, device: str = "auto") -> Reconstructor:
    """A snapshot ready to rebuild images.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    return Reconstructor(load(str(path)), path.stem, device=device, in_place=True)


def rebuild_by_snapshots(
    run: str | Path, image: ImageSource, *, device: str = "auto", **fields: Any
) -> Iterator[tuple[int, Reconstruction]]:
    """Rebuild an image by each snapshot of a run, while it is iterated over.

    Args:
        run: Folder of the run.
        image: As in a `ReconstructionRequest`, but no tensor.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        fields: Further fields of a `ReconstructionRequest`: mask_ratio, seed...

    Yields:
        Steps done, and the result.

    Raises:
        CheckpointError: If the run has no snapshots.
        MAEError: If the image cannot be used, or a value is not allowed.
    """
    snapshots = find_snapshots(run)
    if not snapshots:
        raise CheckpointError(
            f"{str(run)!r} has no snapshots; train with snapshots=8, or give the folder of a run "
            "that has them"
        )
    for step, path in snapshots.items():
        yield step, open_snapshot(path, device=device)(image, **fields)
