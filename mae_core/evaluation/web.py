"""What a file for the browser loses against the model that it was made of."""

from pathlib import Path

import torch

from mae_core.evaluation.reconstruction import MAX_PSNR, FittedImages
from mae_core.images import resized, to_tensor
from mae_core.metrics import removed_psnr
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import random_mask
from mae_core.model.patches import pixel_mask
from mae_core.reconstruct import rebuild, to_pixels
from mae_core.weights import WebLoss

__all__ = ["measure_web_loss"]

_MASK_RATIO = 0.75
_SEEDS = (2, 3, 4)


def measure_web_loss(model: MaskedAutoencoder, content: bytes, folder: str | Path) -> WebLoss:
    """Rebuild the images below a folder by the model and by ONNX Runtime, under the same masks.

    Three random masks of each image remove 75 %. A model of per-patch normalised pixels is
    measured in the view `estimated` (see `rebuild`). Needs `onnxruntime`.

    Args:
        model: In evaluation mode, float32, on the CPU.
        content: Of the file that `export_web` writes for it.
        folder: Of the images.

    Raises:
        DataError: If the folder has no image that can be read.
    """
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = InferenceSession(content, options, providers=["CPUExecutionProvider"])
    config, pictures = model.config, FittedImages(folder, model.config)
    h, w = config.table_grid
    mask = random_mask(len(_SEEDS), h * w, _MASK_RATIO, seed=_SEEDS)
    removed = pixel_mask(mask.mask, (h, w), config.patch_size)
    losses: list[float] = []
    for picture in pictures:
        fitted = resized(picture, (w * config.patch_size, h * config.patch_size))
        images = to_tensor(fitted, config.mean, config.std).repeat(len(_SEEDS), 1, 1, 1)
        wanted = rebuild(model, images, mask)
        (pred,) = session.run(["pred"], {
            "images": images.numpy(), "ids_keep": mask.ids_keep.numpy(),
            "ids_restore": mask.ids_restore.numpy(),
        })  # fmt: skip
        got = to_pixels(config, torch.from_numpy(pred), images, mask)
        theirs, ours = (
            removed_psnr(pixels, wanted.original, removed).clamp(max=MAX_PSNR)
            for pixels in (wanted.pixels, got)
        )
        losses += (theirs - ours).tolist()
    # Plus 0, so that there is no minus zero.
    mean, worst = (round(x, 4) + 0.0 for x in (sum(losses) / len(losses), max(losses)))
    return WebLoss(mean, worst, len(pictures.names))
