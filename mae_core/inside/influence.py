"""Which visible patches a removed patch came from: what changes when each is left out in turn.

    found = influence(Reconstructor(load()), "cat.jpg", mask_ratio=0.75)
    found.change[:, 0]  # of the first removed patch, by each visible patch

That is exact, and one run of the model for each visible patch. A program that takes its runs one
by one asks for the masks (`leave_one_out`) and compares what comes (`patch_change`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mae_core.errors import MAEError, MaskError
from mae_core.images import ImageSource
from mae_core.model.patches import patchify
from mae_core.reconstruct import MAX_PATCHES, Reconstruction, ReconstructionRequest, Reconstructor

__all__ = ["MAX_RUNS", "Influence", "influence", "leave_one_out", "patch_change"]

# The most visible patches that are left out in turn.
MAX_RUNS = 256


@dataclass(frozen=True)
class Influence:
    """How much each removed patch's prediction changes without each visible patch.

    Attributes:
        reconstruction: With all visible patches.
        visible: (K,) numbers of the visible patches, in row-major order.
        removed: (R,) numbers of the removed patches, likewise.
        change: (K, R) root mean square changes of pixels in 0..1.
    """

    reconstruction: Reconstruction
    visible: NDArray[np.int64]
    removed: NDArray[np.int64]
    change: NDArray[np.float32]


def leave_one_out(removed: NDArray[np.bool_]) -> list[tuple[int, NDArray[np.bool_]]]:
    """Masks that remove one more patch each.

    Args:
        removed: (h, w) booleans, True = removed.

    Returns:
        For each visible patch, in row-major order, its number and the (h, w) mask without it.

    Raises:
        MaskError: If nothing is removed, or fewer than 2 or more than `MAX_RUNS` patches are
            visible.
    """
    visible = np.flatnonzero(~removed)
    if len(visible) == removed.size:
        raise MaskError(
            "no patch is removed, so none is predicted from others; give a higher mask_ratio",
            code="nothing_removed",
        )
    if len(visible) < 2:
        raise MaskError(
            f"of {removed.size} patches {len(visible)} is visible, and one has to stay when one is "
            "left out; give a lower mask_ratio",
            code="left_out", visible=len(visible), most=MAX_RUNS,
        )  # fmt: skip
    if len(visible) > MAX_RUNS:
        raise MaskError(
            f"{len(visible)} patches are visible, and at most {MAX_RUNS} are left out in turn; "
            "give a higher mask_ratio or a smaller image_size",
            code="left_out", visible=len(visible), most=MAX_RUNS,
        )  # fmt: skip
    masks = []
    for patch in visible:
        mask = removed.copy()
        mask.flat[patch] = True
        masks.append((int(patch), mask))
    return masks


def patch_change(before: Reconstruction, after: Reconstruction) -> NDArray[np.float32]:
    """(h, w) root mean square differences of two predictions, of pixels in 0..1.

    They are of the view that was asked for: of a model of per-patch normalised pixels, `estimated`
    changes with the brightness and contrast estimated from visible patches too; `normalized` is
    the model alone.
    """
    difference: Tensor = after.reconstruction - before.reconstruction
    patches = patchify(difference[None], before.patch_size)[0]  # (L, P)
    changes: NDArray[np.float32] = patches.square().mean(dim=1).sqrt().numpy()
    return changes.reshape(before.grid_size)


def influence(
    reconstructor: Reconstructor, image: ImageSource | Tensor, *,
    progress: Callable[[int, int], None] | None = None, **fields: Any,
) -> Influence:  # fmt: skip
    """Leave out each visible patch in turn, several in one forward pass.

    Args:
        reconstructor: With the model.
        image: As in a `ReconstructionRequest`; it is opened once.
        progress: Is called with the runs done and the runs in all, after each forward pass.
        fields: Others of the `ReconstructionRequest`.

    Raises:
        MAEError: If the image cannot be used, or a field or the mask is not allowed.
    """
    before = reconstructor(image, **fields)
    runs = leave_one_out(before.removed)
    # The pixels that the model saw, instead of the file again and again; 1.0000001 is rounding.
    request = replace(
        ReconstructionRequest(image, **fields), image=before.original.clamp(0, 1), image_size=None
    )
    changes: list[NDArray[np.float32]] = []
    together = MAX_PATCHES // before.patches
    for start in range(0, len(runs), together):
        requests = [replace(request, mask=mask) for _, mask in runs[start : start + together]]
        for after in reconstructor.batch(requests):
            if isinstance(after, MAEError):
                raise after
            changes.append(patch_change(before, after)[before.removed])
        if progress:
            progress(len(changes), len(runs))
    visible = np.array([patch for patch, _ in runs])
    return Influence(before, visible, np.flatnonzero(before.removed), np.stack(changes))
