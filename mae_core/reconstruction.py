"""From a picture to four panels: original, masked, reconstruction, pasted.

from mae_core import Reconstructor
r = Reconstructor.from_pretrained()
out = r("photo.jpg", mask_ratio=0.75, seed=2)
out.panels()["pasted"].save("pasted.png")
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mae_core.checkpoint import load_weights
from mae_core.config import ModelConfig
from mae_core.devices import choose_device, choose_precision
from mae_core.errors import MaskError
from mae_core.images import ImageSource, decode_image, fit_image, to_pil, to_tensor
from mae_core.masking import PatchMask, custom_mask, draw_mask
from mae_core.models.mae import MaskedAutoencoder, reconstruction_loss
from mae_core.patches import (
    PatchStatistics,
    denormalize_patches,
    patch_statistics,
    patchify,
    unpatchify,
)
from mae_core.weights import locate_weights, weights_name

# What a removed patch looks like in the masked panel: mid grey, 0..1.
REMOVED_COLOUR = 0.5

# SSIM's window and constants (Wang et al. 2004), for pixels in 0..1.
_SSIM_WINDOW, _SSIM_SIGMA = 11, 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2

# Neighbours further than about two patches say little about a removed patch's statistics.
_STATISTICS_REACH = 1.0


@dataclass(frozen=True)
class Reconstruction:
    """One picture rebuilt, with everything needed to rebuild it again.

    Attributes:
        original: (3, H, W) pixels in 0..1, as the model saw the picture.
        reconstruction: (3, H, W) the model's picture in 0..1, visible patches too.
        removed: (h, w) booleans, True = removed.
        patch_size: Side of a patch in pixels.
        loss: The model's loss on removed patches; None if nothing was removed.
        psnr: Of the removed patches, in dB, for pixels in 0..1; None likewise.
        ssim: Of the pasted picture, averaged over removed pixels, at most 1; None likewise.
        mask_ratio: As asked for, 0..1; with a custom mask the share it removed.
        seed: Of the mask; not used by a custom mask.
        strategy: `random`, `block`, `grid` or `custom`.
        fit: How the picture was brought to size.
        model: Name of the weights.
        device: Where the model ran.
        precision: Number format the model ran in.
        seconds: From the decoded picture to the predicted pixels.
    """

    original: Tensor
    reconstruction: Tensor
    removed: NDArray[np.bool_]
    patch_size: int
    loss: float | None
    psnr: float | None
    ssim: float | None
    mask_ratio: float
    seed: int
    strategy: str
    fit: str
    model: str
    device: str
    precision: str
    seconds: float

    @property
    def grid_size(self) -> tuple[int, int]:
        """(h, w) patches."""
        h, w = self.removed.shape
        return h, w

    @property
    def patches(self) -> int:
        """L: patches of the picture."""
        return int(self.removed.size)

    @property
    def visible(self) -> int:
        """K: patches the model saw."""
        return int((~self.removed).sum())

    def panels(self) -> dict[str, Image.Image]:
        """The pictures `original`, `masked`, `reconstruction` and `pasted`, of one size."""
        removed = self._removed_pixels()
        grey = torch.full_like(self.original, REMOVED_COLOUR)
        return {
            "original": to_pil(self.original),
            "masked": to_pil(compose(self.original, grey, removed)),
            "reconstruction": to_pil(self.reconstruction),
            "pasted": to_pil(compose(self.original, self.reconstruction, removed)),
        }

    def strip(self, gap: int = 8) -> Image.Image:
        """The four panels in one row on white, `gap` pixels apart."""
        panels = list(self.panels().values())
        width, height = panels[0].size
        row = Image.new("RGB", (4 * width + 3 * gap, height), "white")
        for i, panel in enumerate(panels):
            row.paste(panel, (i * (width + gap), 0))
        return row

    def facts(self) -> dict[str, Any]:
        """What was done and how well it went, as plain data for JSON."""
        names = (
            "model", "device", "precision", "mask_ratio", "seed", "strategy", "fit", "visible",
            "patches", "loss", "psnr", "ssim", "seconds",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def _removed_pixels(self) -> Tensor:
        mask = torch.from_numpy(self.removed.astype(np.float32))
        return pixel_mask(mask.reshape(1, -1), self.grid_size, self.patch_size)[0]


class Reconstructor:
    """A model made ready to rebuild pictures.

    Attributes:
        model: The masked autoencoder, in evaluation mode, in the precision it runs in.
        name: Of the weights, for people.
        device: Where the model is.
        precision: `float32` or `bfloat16`.
    """

    def __init__(
        self, model: MaskedAutoencoder, name: str, *, device: str = "auto", precision: str = "auto"
    ) -> None:
        """Move a model to a device and a precision; `auto` chooses them (see `devices`).

        Raises:
            DeviceError: If the device is not there or the precision has no such name.
        """
        self.name = name
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.model = model.to(self.device, getattr(torch, self.precision)).eval()

    @classmethod
    def from_pretrained(
        cls, weights: str | Path | None = None, *, device: str = "auto", precision: str = "auto"
    ) -> "Reconstructor":
        """Load weights by name or path.

        Args:
            weights: A name that `list_weights` gives, a `.safetensors` file, or the folder of
                a run; the default bundled weights if not given.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            precision: `auto`, `float32` or `bfloat16`.

        Raises:
            CheckpointError: If there are no such weights or the file is damaged.
            DeviceError: If the device is not there.
        """
        model = load_weights(locate_weights(weights)).build()
        return cls(model, weights_name(weights), device=device, precision=precision)

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.model.config

    def __call__(
        self,
        image: ImageSource,
        mask_ratio: float = 0.75,
        seed: int = 0,
        *,
        strategy: str = "random",
        fit: str = "crop",
        mask: ArrayLike | None = None,
    ) -> Reconstruction:
        """Remove patches of a picture and rebuild it.

        Args:
            image: Bytes of a picture file, a path, a PIL image or an array.
            mask_ratio: Fraction removed, 0..1.
            seed: Of the mask; the same seed gives the same mask on every device.
            strategy: `random`, `block` or `grid`.
            fit: `crop`, `squash` or `whole`.
            mask: (h, w) booleans, True = removed, instead of ratio, seed and strategy.

        Raises:
            ImageError: If the picture cannot be used.
            MaskError: If ratio, seed, strategy or mask are not allowed.
        """
        config = self.config
        picture = fit_image(
            decode_image(image), fit, image_size=config.image_size, patch_size=config.patch_size
        )
        begun = time.perf_counter()
        images = to_tensor(picture, config.mean, config.std)
        grid_size = self.model.grid_of(images)
        if mask is None:
            patch_mask = draw_mask(strategy, 1, grid_size, mask_ratio, seed=seed)
        else:
            patch_mask, strategy = _custom_mask(mask, grid_size), "custom"
            mask_ratio = 1 - patch_mask.num_visible / patch_mask.num_patches
        rebuilt = rebuild(self.model, images, patch_mask)
        seconds = time.perf_counter() - begun
        scores = score(rebuilt, patch_mask, grid_size, config.patch_size)
        return Reconstruction(
            original=rebuilt.original[0], reconstruction=rebuilt.pixels[0],
            removed=(patch_mask.mask[0].numpy() > 0).reshape(grid_size),
            patch_size=config.patch_size,
            loss=scores.loss[0], psnr=scores.psnr[0], ssim=scores.ssim[0],
            mask_ratio=mask_ratio, seed=seed, strategy=strategy, fit=fit, model=self.name,
            device=str(self.device), precision=self.precision, seconds=seconds,
        )  # fmt: skip


def _custom_mask(mask: ArrayLike, grid_size: tuple[int, int]) -> PatchMask:
    if np.shape(mask) != grid_size:
        raise MaskError(
            f"the mask is of shape {np.shape(mask)}; this picture has {grid_size[0]} rows of "
            f"{grid_size[1]} patches"
        )
    return custom_mask(mask)


@dataclass(frozen=True)
class Rebuilt:
    """A batch of pictures rebuilt, on the CPU in float32.

    Attributes:
        original: (N, C, H, W) pixels in 0..1.
        pixels: (N, C, H, W) the model's pictures in 0..1.
        loss: (N,) mean squared error of the model's target over removed patches; not a
            number where nothing was removed.
    """

    original: Tensor
    pixels: Tensor
    loss: Tensor


@torch.inference_mode()
def rebuild(model: MaskedAutoencoder, images: Tensor, patch_mask: PatchMask) -> Rebuilt:
    """Run a model on normalised images and bring its prediction back to pixels.

    Args:
        model: In evaluation mode; on any device, in any precision.
        images: (N, C, H, W), normalised, on the CPU.
        patch_mask: N masks, on the CPU.

    Raises:
        PatchError: If images and mask do not fit each other or the model.
    """
    device, grid_size = model.pos_embed.device, model.grid_of(images)
    latent = model.encode(images.to(device), patch_mask.to(device))
    pred = model.decode(latent, patch_mask.ids_restore.to(device), grid_size).float().cpu()
    target = model.target(images)
    loss = torch.stack(
        [reconstruction_loss(pred[i], target[i], patch_mask.mask[i]) for i in range(len(images))]
    )
    pred = model.patches_from(pred)
    if model.config.norm_pix:
        statistics = estimate_statistics(model, images, patch_mask, grid_size)
        pred = denormalize_patches(pred, statistics)
    pixels = unpatchify(pred, model.config.patch_size, grid_size)
    mean = torch.tensor(model.config.mean).view(1, -1, 1, 1)
    std = torch.tensor(model.config.std).view(1, -1, 1, 1)
    return Rebuilt(images * std + mean, (pixels * std + mean).clamp(0, 1), loss)


def estimate_statistics(
    model: MaskedAutoencoder, images: Tensor, patch_mask: PatchMask, grid_size: tuple[int, int]
) -> PatchStatistics:
    """Mean and variance of every patch, as far as the visible patches tell.

    A model trained on per-patch normalised pixels does not predict a patch's brightness and
    contrast. A visible patch has its own; a removed one gets the mean of the visible ones',
    weighted by a Gaussian of their distance. Hidden pixels are never looked at.

    Returns:
        (N, L, 1) each.
    """
    raw = patch_statistics(patchify(images, model.config.patch_size))
    h, w = grid_size
    places = torch.cartesian_prod(torch.arange(h).float(), torch.arange(w).float())  # (L, 2)
    # In the log domain the nearest visible patch always counts, however far it is.
    logits = -torch.cdist(places, places).square() / (2 * _STATISTICS_REACH**2)
    hidden = patch_mask.mask.bool()
    weights = logits.masked_fill(hidden[:, None, :], -math.inf).softmax(dim=-1)  # (N, L, L)
    keep = (~hidden).unsqueeze(-1)
    # Zeros in place of hidden statistics: a weight of zero does not undo a NaN.
    mean, var = (torch.where(keep, value, 0.0) for value in (raw.mean, raw.var))
    return PatchStatistics(
        torch.where(keep, mean, weights @ mean), torch.where(keep, var, weights @ var)
    )


@dataclass(frozen=True)
class Scores:
    """Removed-patch figures of each image of a batch; None where nothing was removed."""

    loss: list[float | None]
    psnr: list[float | None]
    ssim: list[float | None]


def score(
    rebuilt: Rebuilt, patch_mask: PatchMask, grid_size: tuple[int, int], patch_size: int
) -> Scores:
    """Compare pictures on their removed patches.

    Returns:
        The model's loss, the PSNR in dB and the mean SSIM of each image.
    """
    removed = pixel_mask(patch_mask.mask, grid_size, patch_size)
    psnr = removed_psnr(rebuilt.pixels, rebuilt.original, removed)
    ssim = removed_ssim(rebuilt.pixels, rebuilt.original, removed)
    return Scores(*(_finite(values) for values in (rebuilt.loss, psnr, ssim)))


def _finite(values: Tensor) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def pixel_mask(mask: Tensor, grid_size: tuple[int, int], patch_size: int) -> Tensor:
    """(N, L) of patches -> (N, 1, H, W) of pixels, 1 = removed."""
    cells = mask.reshape(-1, 1, *grid_size)
    return cells.repeat_interleave(patch_size, dim=2).repeat_interleave(patch_size, dim=3)


def compose(original: Tensor, other: Tensor, removed: Tensor) -> Tensor:
    """`original` where pixels are visible and `other` where they are removed, within 0..1."""
    return (original * (1 - removed) + other * removed).clamp(0, 1)


def removed_psnr(pixels: Tensor, original: Tensor, removed: Tensor) -> Tensor:
    """Peak signal-to-noise ratio over removed pixels, in dB.

    Args:
        pixels: (N, C, H, W) in 0..1.
        original: (N, C, H, W) in 0..1.
        removed: (N, 1, H, W), 1 = removed.

    Returns:
        (N,); not a number where nothing was removed.
    """
    error = ((pixels - original).square() * removed).sum(dim=(1, 2, 3))
    count = removed.sum(dim=(1, 2, 3)) * pixels.shape[1]
    return -10 * torch.log10(error / count)


def removed_ssim(pixels: Tensor, original: Tensor, removed: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of the pasted picture over removed pixels.

    Args:
        pixels: (N, C, H, W) in 0..1; H and W at least 6.
        original: (N, C, H, W) in 0..1.
        removed: (N, 1, H, W), 1 = removed.

    Returns:
        (N,) the mean over removed pixels and channels, at most 1; not a number where nothing
        was removed.
    """
    similarity = _ssim_map(compose(original, pixels, removed), original)
    total = (similarity * removed).sum(dim=(1, 2, 3))
    return total / (removed.sum(dim=(1, 2, 3)) * pixels.shape[1])


def _ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """(N, C, H, W) similarity at each pixel, edges mirrored."""
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x**2
    var_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _SSIM_C1) / (mean_x**2 + mean_y**2 + _SSIM_C1)
    return luminance * (2 * covariance + _SSIM_C2) / (var_x + var_y + _SSIM_C2)


def _blur(x: Tensor) -> Tensor:
    """Gaussian window over (N, C, H, W), one direction after the other."""
    half = _SSIM_WINDOW // 2
    offsets = torch.arange(-half, half + 1, dtype=x.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * _SSIM_SIGMA**2))
    kernel = (kernel / kernel.sum()).to(x.device)
    channels = x.shape[1]
    padded = F.pad(x, (half, half, half, half), mode="reflect")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)
    return F.conv2d(rows, kernel.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)
