"""PSNR and SSIM of reconstructions, over removed pixels only.

Images are (N, C, H, W) in 0..1; `removed` is (N, 1, H, W), 1 = removed.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# SSIM's window and constants (Wang et al. 2004), for pixels in 0..1.
_SSIM_WINDOW, _SSIM_SIGMA = 11, 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2


def compose(original: Tensor, other: Tensor, removed: Tensor) -> Tensor:
    """`original` where pixels are visible and `other` where they are removed, within 0..1."""
    return (original * (1 - removed) + other * removed).clamp(0, 1)


def removed_psnr(pixels: Tensor, original: Tensor, removed: Tensor) -> Tensor:
    """(N,) peak signal-to-noise ratios in dB; NaN where nothing was removed."""
    error = ((pixels - original).square() * removed).sum(dim=(1, 2, 3))
    count = removed.sum(dim=(1, 2, 3)) * pixels.shape[1]
    return -10 * torch.log10(error / count)


def removed_ssim(pixels: Tensor, original: Tensor, removed: Tensor) -> Tensor:
    """(N,) structural similarities (Wang et al. 2004) of the pasted images, at most 1.

    Means over removed pixels and channels; NaN where nothing was removed or a side is too short
    for the window, below 6 pixels.
    """
    if min(pixels.shape[-2:]) <= _SSIM_WINDOW // 2:
        return torch.full((len(pixels),), math.nan)
    pasted = compose(original, pixels, removed)
    total = torch.zeros_like(removed[:, 0, 0, 0])
    # One channel at a time: a dozen copies of it are alive at once.
    for x, y in zip(pasted.split(1, dim=1), original.split(1, dim=1), strict=True):
        total = total + (_ssim_map(x, y) * removed).sum(dim=(1, 2, 3))
    return total / (removed.sum(dim=(1, 2, 3)) * pixels.shape[1])


def removed_edges(
    images: Tensor, original: Tensor, removed: Tensor, patch_size: int
) -> tuple[Tensor, Tensor]:
    """Seams and sharpness of reconstructed, or pasted, images: (N,) each.

    Both look at the absolute differences of neighbouring pixels. Seams are their mean across the
    borders of removed patches minus that inside removed patches, beyond the original's, in
    levels of 0..255; 0 is as in the original. Sharpness is the mean inside removed patches over
    the original's; 1 is as in the original. NaN where nothing was removed, and a sharpness that
    is not finite where the original is flat.
    """
    sums = torch.zeros(4, len(images))  # across and inside, of the images and of the original
    counts = torch.zeros(2, len(images))
    for side in (2, 3):
        hole = removed.movedim(side, 2)
        on_border = torch.zeros(hole.shape[2] - 1, 1)
        on_border[patch_size - 1 :: patch_size] = 1
        # A border counts if one of its sides is removed; inside, both are of one patch.
        across = torch.maximum(hole[:, :, 1:], hole[:, :, :-1]) * on_border
        inside = hole[:, :, 1:] * (1 - on_border)
        counts += torch.stack([where.sum(dim=(1, 2, 3)) for where in (across, inside)])
        steps = [image.movedim(side, 2).diff(dim=2).abs().mean(dim=1, keepdim=True)
                 for image in (images, original)]  # fmt: skip
        sums += torch.stack(
            [(step * where).sum(dim=(1, 2, 3)) for step in steps for where in (across, inside)]
        )
    across, inside, true_across, true_inside = sums / counts.repeat(2, 1)
    return 255 * ((across - inside) - (true_across - true_inside)), inside / true_inside


def kernel_distance(first: Tensor, second: Tensor) -> Tensor:
    """Squared distance of two sets of features: () float64; 0 on average if they are alike.

    The unbiased estimate of the maximum mean discrepancy under the kernel (x . y / D + 1)^3, as in
    the Kernel Inception Distance (Binkowski et al. 2018). It may be below 0.

    Args:
        first: (n, D); n of at least 2.
        second: (m, D); m of at least 2.
    """
    first, second = first.double(), second.double()

    def similar(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    within = [
        (own.sum() - own.diagonal().sum()) / (len(own) * (len(own) - 1))
        for own in (similar(first, first), similar(second, second))
    ]
    return within[0] + within[1] - 2 * similar(first, second).mean()


def _ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """(N, 1, H, W) similarity at each pixel, edges mirrored."""
    half, (height, width) = _SSIM_WINDOW // 2, x.shape[-2:]
    offsets = torch.arange(-half, half + 1, dtype=x.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * _SSIM_SIGMA**2))
    weights: list[float] = (kernel / kernel.sum()).tolist()

    def blur(values: Tensor) -> Tensor:
        padded = F.pad(values, (half, half, half, half), mode="reflect")
        # Sums of shifted views: on a CPU a third of the time of two convolutions.
        rows = padded[..., half : half + width] * weights[half]
        for i, weight in enumerate(weights[:half]):
            j = _SSIM_WINDOW - 1 - i
            rows.add_(padded[..., i : i + width] + padded[..., j : j + width], alpha=weight)
        blurred: Tensor = rows[..., half : half + height, :] * weights[half]
        for i, weight in enumerate(weights[:half]):
            j = _SSIM_WINDOW - 1 - i
            blurred.add_(rows[..., i : i + height, :] + rows[..., j : j + height, :], alpha=weight)
        return blurred

    mean_x, mean_y = blur(x), blur(y)
    var_x = blur(x * x) - mean_x**2
    var_y = blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _SSIM_C1) / (mean_x**2 + mean_y**2 + _SSIM_C1)
    return luminance * (2 * covariance + _SSIM_C2) / (var_x + var_y + _SSIM_C2)
