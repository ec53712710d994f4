"""Slow and obvious versions of what the package does quickly: oracles for its tests.

Everything here is written from the paper's words with plain loops, in float64, and shares no
code with `mae_core`.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def patchify(images: Array, patch_size: int) -> Array:
    """(N, C, H, W) -> (N, L, P), one value after the other."""
    n, c, height, width = images.shape
    h, w = height // patch_size, width // patch_size
    patches = np.zeros((n, h * w, patch_size * patch_size * c))
    for image in range(n):
        for row in range(h):
            for column in range(w):
                values = []
                for p in range(patch_size):
                    for q in range(patch_size):
                        for channel in range(c):
                            y, x = row * patch_size + p, column * patch_size + q
                            values.append(images[image, channel, y, x])
                patches[image, row * w + column] = values
    return patches


def sincos_table(dim: int, h: int, w: int) -> Array:
    """(1 + h * w, dim): zeros for the class token, then x in the first half, y in the second."""
    table = np.zeros((1 + h * w, dim))
    quarter = dim // 4
    for y in range(h):
        for x in range(w):
            row = table[1 + y * w + x]
            for i in range(quarter):
                omega = 1 / 10000 ** (i / quarter)
                row[i] = math.sin(x * omega)
                row[quarter + i] = math.cos(x * omega)
                row[2 * quarter + i] = math.sin(y * omega)
                row[3 * quarter + i] = math.cos(y * omega)
    return table


def resize_bicubic(grid: Array, h: int, w: int) -> Array:
    """(h', w', D) -> (h, w, D) by Keys' cubic with a = -0.75, edges repeated, centres aligned."""
    rows = np.stack([_cubic_at(grid, (y + 0.5) * grid.shape[0] / h - 0.5) for y in range(h)])
    columns = rows.transpose(1, 0, 2)
    resized = [_cubic_at(columns, (x + 0.5) * grid.shape[1] / w - 0.5) for x in range(w)]
    return np.stack(resized).transpose(1, 0, 2)


def _cubic_at(values: Array, position: float) -> Array:
    """The curve through `values` along their first axis, at a fractional position."""
    total = np.zeros_like(values[0])
    for i in range(math.floor(position) - 1, math.floor(position) + 3):
        distance = abs(position - i)
        if distance <= 1:
            weight = 1.25 * distance**3 - 2.25 * distance**2 + 1
        else:
            weight = -0.75 * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        total += weight * values[min(max(i, 0), len(values) - 1)]
    return total


def random_mask(noise: Sequence[float], visible: int) -> tuple[list[int], list[int], list[int]]:
    """Mask, kept ids and restoring ids of one image: sort patches by noise, keep the lowest."""
    shuffled = sorted(range(len(noise)), key=lambda patch: noise[patch])
    mask = [0 if patch in shuffled[:visible] else 1 for patch in range(len(noise))]
    restore = [shuffled.index(patch) for patch in range(len(noise))]
    return mask, shuffled[:visible], restore


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    mean = x.mean(axis=-1, keepdims=True)
    var = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * weight + bias


def gelu(x: Array) -> Array:
    values = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.ravel()]
    return np.array(values).reshape(x.shape)


def attention(x: Array, state: Mapping[str, Array], prefix: str, heads: int) -> Array:
    """Self-attention of one image's (T, D) tokens, head by head."""
    qkv = x @ state[f"{prefix}.qkv.weight"].T + state[f"{prefix}.qkv.bias"]
    dim = x.shape[1]
    side = dim // heads
    outputs = []
    for head in range(heads):
        query, key, value = (
            qkv[:, part * dim + head * side : part * dim + (head + 1) * side] for part in range(3)
        )
        scores = query @ key.T / math.sqrt(side)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        outputs.append(weights / weights.sum(axis=1, keepdims=True) @ value)
    joined = np.concatenate(outputs, axis=1)
    return joined @ state[f"{prefix}.proj.weight"].T + state[f"{prefix}.proj.bias"]


def block(x: Array, state: Mapping[str, Array], prefix: str, heads: int, eps: float) -> Array:
    """One pre-norm transformer block on (T, D) tokens."""
    normed = layer_norm(x, state[f"{prefix}.norm1.weight"], state[f"{prefix}.norm1.bias"], eps)
    x = x + attention(normed, state, f"{prefix}.attn", heads)
    normed = layer_norm(x, state[f"{prefix}.norm2.weight"], state[f"{prefix}.norm2.bias"], eps)
    hidden = gelu(normed @ state[f"{prefix}.mlp.fc1.weight"].T + state[f"{prefix}.mlp.fc1.bias"])
    return x + hidden @ state[f"{prefix}.mlp.fc2.weight"].T + state[f"{prefix}.mlp.fc2.bias"]


def mae_forward(
    image: Array,
    kept: Sequence[int],
    state: Mapping[str, Array],
    *,
    patch_size: int,
    depths: tuple[int, int],
    heads: tuple[int, int],
    eps: float,
    norm_pix: bool,
) -> tuple[Array, Array, float]:
    """Latent, prediction and loss of one (C, H, W) image whose `kept` patches are visible.

    Each mask token is put straight where its patch was, with nothing to shuffle back. Where
    `state` has a token for removed patches, the encoder gets all patches in the grid's order;
    where it has principal components, those are the target.
    """
    patches = patchify(image[None], patch_size)[0]  # (L, P)
    length = len(patches)
    # The convolution's weight is (D, C, p, q); a patch's values are in (p, q, c) order.
    projection = state["patch_embed.proj.weight"].transpose(0, 2, 3, 1)
    projection = projection.reshape(len(projection), -1)
    tokens = patches @ projection.T + state["patch_embed.proj.bias"]
    encoded = list(kept)
    if "encoder_mask_token" in state:
        encoded = list(range(length))
        for patch in range(length):
            if patch not in kept:
                tokens[patch] = state["encoder_mask_token"][0, 0]
    tokens = tokens + state["pos_embed"][0, 1:]
    cls_token = state["cls_token"][0] + state["pos_embed"][0, :1]
    x = np.concatenate([cls_token, tokens[encoded]])
    for i in range(depths[0]):
        x = block(x, state, f"blocks.{i}", heads[0], eps)
    latent = layer_norm(x, state["norm.weight"], state["norm.bias"], eps)

    embedded = latent @ state["decoder_embed.weight"].T + state["decoder_embed.bias"]
    x = np.repeat(state["mask_token"][0], 1 + length, axis=0)
    x[0] = embedded[0]
    for position, patch in enumerate(encoded):
        x[1 + patch] = embedded[1 + position]
    x = x + state["decoder_pos_embed"][0]
    for i in range(depths[1]):
        x = block(x, state, f"decoder_blocks.{i}", heads[1], eps)
    x = layer_norm(x, state["decoder_norm.weight"], state["decoder_norm.bias"], eps)
    pred = (x @ state["decoder_pred.weight"].T + state["decoder_pred.bias"])[1:]

    target = normalized_patches(patches) if norm_pix else patches
    if "pca_basis" in state:
        target = principal_components(patches, state["pca_mean"], state["pca_basis"])
    removed = [patch for patch in range(length) if patch not in kept]
    loss = np.mean([np.mean((pred[patch] - target[patch]) ** 2) for patch in removed])
    return latent, pred, float(loss)


def normalized_patches(patches: Array) -> Array:
    """Each (L, P) patch less its mean, over the root of its unbiased variance plus 1e-6."""
    rows = []
    for patch in patches:
        mean = sum(patch) / len(patch)
        var = sum((value - mean) ** 2 for value in patch) / (len(patch) - 1)
        rows.append([(value - mean) / math.sqrt(var + 1e-6) for value in patch])
    return np.array(rows)


def principal_components(patches: Array, mean: Array, basis: Array) -> Array:
    """(L, P) patches along each of q directions, the columns of (P, q)."""
    rows = []
    for patch in patches:
        rows.append([sum((patch - mean) * basis[:, i]) for i in range(basis.shape[1])])
    return np.array(rows)


def reconstruction_loss(
    pred: Array, target: Array, mask: Array, visible_weight: float, kind: str
) -> float:
    """Of (N, L, P) predictions under (N, L) masks, 1 = removed."""
    removed, visible, of_images = [], [], []
    for i in range(len(pred)):
        of_removed, of_visible = [], []
        for patch in range(len(mask[i])):
            error = sum((a - b) ** 2 for a, b in zip(pred[i, patch], target[i, patch], strict=True))
            (of_removed if mask[i, patch] else of_visible).append(error / len(pred[i, patch]))
        floored = sum(of_removed) / len(of_removed) + 0.01
        seen = sum(of_visible) / len(of_visible)
        of_images.append(math.log(floored) + visible_weight * seen / floored)
        removed += of_removed
        visible += of_visible
    if kind == "log_mse":
        return sum(of_images) / len(of_images)
    return sum(removed) / len(removed) + visible_weight * sum(visible) / len(visible)


def _neighbours(h: int, w: int) -> list[tuple[int, int, int, int]]:
    """Each pixel with the one to its right and the one below it."""
    pairs = [(y, x, y, x + 1) for y in range(h) for x in range(w - 1)]
    return pairs + [(y, x, y + 1, x) for y in range(h - 1) for x in range(w)]


def seam_loss(
    pixels: Array, images: Array, removed: NDArray[np.bool_], patch_size: int, *, inside: bool
) -> float:
    """Of (N, C, H, W) predictions; removed is (N, H, W)."""
    n, c, h, w = images.shape
    of_images = []
    for i, across in itertools.product(range(n), (True, False) if inside else (True,)):
        pasted = np.where(removed[i], pixels[i], images[i])
        errors, truths = [], []
        for y, x, v, u in _neighbours(h, w):
            if across != ((y // patch_size, x // patch_size) != (v // patch_size, u // patch_size)):
                continue
            if removed[i, y, x] or removed[i, v, u]:
                for channel in range(c):
                    step, true = (a[channel, v, u] - a[channel, y, x] for a in (pasted, images[i]))
                    errors.append((step - true) ** 2)
                    truths.append(true**2)
        of_images.append(math.log(np.mean(errors) / (np.mean(truths) + 0.01) + 0.05))
    return float(np.mean(of_images))


def removed_edges(
    image: Array, original: Array, removed: NDArray[np.bool_], patch_size: int
) -> tuple[float, float]:
    """Seams in levels of 255 and sharpness of one (C, H, W) picture in 0..1; removed is (H, W)."""
    c, h, w = image.shape
    found = []
    for picture in (image, original):
        across, inside = [], []
        for y, x, v, u in _neighbours(h, w):
            steps = [abs(picture[channel, v, u] - picture[channel, y, x]) for channel in range(c)]
            if (y // patch_size, x // patch_size) != (v // patch_size, u // patch_size):
                across += steps if removed[y, x] or removed[v, u] else []
            else:
                inside += steps if removed[y, x] else []
        found.append((np.mean(across), np.mean(inside)))
    (across_, inside_), (true_across, true_inside) = found
    seams = 255 * ((across_ - inside_) - (true_across - true_inside))
    return float(seams), float(inside_ / true_inside)


def kernel_distance(first: Array, second: Array) -> float:
    """Of (n, D) and (m, D) features, by the sums in Binkowski et al. 2018."""

    def kernel(a: Array, b: Array) -> float:
        return (sum(x * y for x, y in zip(a, b, strict=True)) / len(a) + 1) ** 3

    def within(own: Array) -> float:
        n = len(own)
        pairs = [kernel(own[i], own[j]) for i in range(n) for j in range(n) if i != j]
        return sum(pairs) / (n * (n - 1))

    across = [kernel(a, b) for a in first for b in second]
    return within(first) + within(second) - 2 * sum(across) / len(across)


def removed_psnr(pixels: Array, original: Array, removed: NDArray[np.bool_]) -> float:
    """Of one (C, H, W) picture in 0..1, over (H, W) removed pixels, in dB."""
    errors = [
        (pixels[c, y, x] - original[c, y, x]) ** 2
        for c in range(pixels.shape[0])
        for y in range(pixels.shape[1])
        for x in range(pixels.shape[2])
        if removed[y, x]
    ]
    return -10 * math.log10(sum(errors) / len(errors))


def ssim_at(x: Array, y: Array, row: int, column: int) -> float:
    """SSIM of two (H, W) pictures in 0..1 at one pixel: 11 x 11 Gaussian window, sigma 1.5."""
    px, py = np.pad(x, 5, mode="reflect"), np.pad(y, 5, mode="reflect")
    total = mean_x = mean_y = square_x = square_y = product = 0.0
    for i in range(11):
        for j in range(11):
            weight = math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2))
            a, b = float(px[row + i, column + j]), float(py[row + i, column + j])
            total += weight
            mean_x += weight * a
            mean_y += weight * b
            square_x += weight * a * a
            square_y += weight * b * b
            product += weight * a * b
    mean_x, mean_y = mean_x / total, mean_y / total
    var_x, var_y = square_x / total - mean_x**2, square_y / total - mean_y**2
    covariance = product / total - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
