"""Let timm import where torchvision's compiled operators do not load.

A CPU build of torch beside a CUDA build of torchvision cannot load torchvision's
extension, and `import torchvision` then fails because it describes two operators that
nobody registered. Declaring their schemas is enough for timm. The detector needs
two operators, which are written in Python then: slower, but the same. On a machine where the plain
import works, nothing happens here.
"""

import importlib

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_MISSING_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# A torch library lives only as long as its object.
_library: torch.library.Library | None = None


def ensure_torchvision_imports() -> None:
    """Import torchvision, declaring its missing operators first if it fails without them."""
    global _library
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        _library = torch.library.Library("torchvision", "DEF")
        for schema in _MISSING_OPERATORS:
            _library.define(schema)
        _library.impl("nms", _nms, "CompositeExplicitAutograd")
        boxes, align = (
            importlib.import_module(f"torchvision.ops.{name}") for name in ("boxes", "roi_align")
        )
        # The one asks for the extension first; the other has a slow way without it.
        vars(boxes)["_assert_has_ops"] = lambda: None
        vars(align)["_roi_align"] = _roi_align


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Torchvision's non-maximum suppression: numbers of the (n, 4) boxes kept, best score first."""
    order = scores.argsort(descending=True, stable=True)
    corners = boxes[order].detach().double().cpu().numpy()
    start, end = corners[:, :2], corners[:, 2:]
    areas, kept = (end - start).prod(axis=1), np.ones(len(order), dtype=bool)
    for i in range(len(order)):
        if kept[i]:
            rest = slice(i + 1, None)
            sides = np.minimum(end[i], end[rest]) - np.maximum(start[i], start[rest])
            both = sides.clip(min=0).prod(axis=1)
            kept[rest] &= both <= iou_threshold * (areas[i] + areas[rest] - both)
    return order[torch.from_numpy(kept).to(order.device)]


def _roi_align(
    features: Tensor, rois: Tensor, scale: float, height: int, width: int, samples: int,
    aligned: bool,
) -> Tensor:  # fmt: skip
    """Torchvision's RoIAlign of boxes that lie in their image.

    Args:
        features: (N, C, H, W).
        rois: (K, 5): number of the image, left, top, right, bottom.
        scale: Of the features over the boxes.
        height: Of the result.
        width: Of the result.
        samples: On each side of a cell; without, as many as it has pixels there.
        aligned: Whether pixel centres lie at halves.

    Returns:
        (K, C, height, width).
    """
    cells, last = rois.new_tensor((width, height)), [max(n - 1, 1) for n in features.shape[:1:-1]]
    corners = rois[:, 1:] * scale - (0.5 if aligned else 0)
    start, sizes = corners[:, :2], corners[:, 2:] - corners[:, :2]
    sizes = sizes if aligned else sizes.clamp(min=1)
    counts = (sizes / cells).ceil() if samples <= 0 else torch.full_like(sizes, samples)
    groups, group_of = (
        torch.cat((rois[:, :1], counts), dim=1).long().unique(dim=0, return_inverse=True)
    )
    parts, order = list[Tensor](), list[Tensor]()
    for number, (i, *across) in enumerate(groups.tolist()):
        rows = (group_of == number).nonzero().squeeze(1)
        lines = []
        for axis in (0, 1):
            count = across[axis] * (width, height)[axis]
            shares = (torch.arange(count, device=rois.device) + 0.5) / count
            places = start[rows, axis, None] + shares * sizes[rows, axis, None]
            lines.append(places * (2 / last[axis]) - 1)  # -1 and 1 are the first and last pixel
        x, y = lines
        grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
        sampled = F.grid_sample(
            features[i : i + 1].float(), grid.float().flatten(0, 1)[None], padding_mode="border",
            align_corners=True,
        )  # fmt: skip
        # (1, C, rows * height * samples, width * samples)
        means = F.avg_pool2d(sampled, across[::-1])[0].unflatten(1, (len(rows), height))
        parts.append(means.transpose(0, 1))
        order.append(rows)
    if not parts:
        return features.new_zeros(0, features.shape[1], height, width)
    return torch.cat(parts)[torch.cat(order).argsort()].to(features.dtype)
