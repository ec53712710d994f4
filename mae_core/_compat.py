"""Let timm import where torchvision's compiled operators do not load.

A CPU build of torch beside a CUDA build of torchvision cannot load torchvision's
extension, and `import torchvision` then fails because it describes two operators that
nobody registered. We use neither; declaring their schemas is enough. On a machine where
the plain import works, nothing happens here.
"""

import importlib

import torch

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
        importlib.import_module("torchvision")
