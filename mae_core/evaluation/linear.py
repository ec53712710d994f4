"""Linear probes: a linear classifier on frozen, standardised features.

Three ways to fit one: L-BFGS and AdamW find their own strength or learning rate on a fifth of the
training images, and LARS is the recipe of the paper (He et al. 2022, table 10).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_core._compat import ensure_torchvision_imports
from mae_core.errors import ConfigError

__all__ = ["LinearProbe", "fit_adamw", "fit_lars", "fit_lbfgs", "split_rows", "sweep"]

# What a sweep tries: weights of the L2 penalty, and learning rates.
PENALTIES = tuple(10.0**power for power in range(-6, 1))
LEARNING_RATES = tuple(10.0 ** (power / 2) for power in range(-8, -1))

# Share of the training images that choose among them.
_CHOOSING = 0.2

# Of the BatchNorm without affine parameters.
_EPS = 1e-6


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of D features into C classes.

    Attributes:
        mean: (D,) of the training features.
        std: (D,) likewise.
        weight: (C, D).
        bias: (C,).
        setting: The strength of the penalty, or the learning rate.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    setting: float

    def logits(self, features: Tensor) -> Tensor:
        """(N, C) of (N, D) features."""
        x = (features - self.mean) / self.std
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


def _statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    # As a BatchNorm over all images: the biased variance.
    return features.mean(dim=0), (features.var(dim=0, correction=0) + _EPS).sqrt()


def fit_lbfgs(features: Tensor, labels: Tensor, num_classes: int, penalty: float) -> LinearProbe:
    """Minimise the mean cross-entropy + penalty / 2 * |weight|^2, in float64.

    It is scikit-learn's `LogisticRegression` of C = 1 / (N * penalty) on standardised features.

    Args:
        features: (N, D).
        labels: (N,) classes, 0..C-1.
        num_classes: C.
        penalty: 0 or more; above 0 the solution is unique.
    """
    mean, std = _statistics(features)
    x, y = ((features - mean) / std).double(), labels.to(features.device)
    weight = x.new_zeros(num_classes, x.shape[1], requires_grad=True)
    bias = x.new_zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=2000, tolerance_grad=1e-7, tolerance_change=0, history_size=20,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), y) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return LinearProbe(mean, std, weight.detach(), bias.detach(), penalty)


def fit_adamw(
    features: Tensor, labels: Tensor, num_classes: int, lr: float, *, epochs: int = 100,
    batch_size: int = 256, seed: int = 0,
) -> LinearProbe:  # fmt: skip
    """Train by AdamW with a cosine learning rate; `seed` fixes the start and the order."""
    return _trained(
        [features], labels, num_classes, epochs=epochs, batch_size=batch_size, seed=seed,
        optimizer=lambda *parameters: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0),
        lr=lr, warmup_epochs=0,
    )  # fmt: skip


def fit_lars(
    views: Sequence[Tensor], labels: Tensor, num_classes: int, *, base_lr: float = 0.1,
    epochs: int = 90, batch_size: int = 16384, warmup_epochs: float = 10, seed: int = 0,
) -> LinearProbe:  # fmt: skip
    """Train by LARS as the paper does (He et al. 2022, table 10).

    Args:
        views: (N, D) features of each random view of the images; epoch e learns from view e, and
            from the first again after the last.
        labels: (N,) classes, 0..C-1.
        num_classes: C.
        base_lr: Of a batch of 256.
        epochs: Passes over the images.
        batch_size: At most N are taken.
        warmup_epochs: Of a linear warm-up; half a cosine follows.
        seed: Of the start and the order.
    """
    # timm needs torchvision, and takes seconds to import.
    ensure_torchvision_imports()
    from timm.optim.lars import Lars

    lr = base_lr * min(batch_size, len(labels)) / 256
    return _trained(
        views, labels, num_classes, epochs=epochs, batch_size=batch_size, seed=seed,
        # Without weight decay timm adapts the step to a tensor's norm only if told to; biases
        # take plain steps, as in the official LARS.
        optimizer=lambda weight, bias: Lars(
            [{"params": [weight], "always_adapt": True}, {"params": [bias]}],
            lr=lr, momentum=0.9, weight_decay=0.0,
        ),
        lr=lr, warmup_epochs=warmup_epochs,
    )  # fmt: skip


def _trained(
    views: Sequence[Tensor], labels: Tensor, num_classes: int, *, epochs: int, batch_size: int,
    seed: int, optimizer: Callable[[nn.Parameter, nn.Parameter], torch.optim.Optimizer], lr: float,
    warmup_epochs: float,
) -> LinearProbe:  # fmt: skip
    mean, std = _statistics(torch.cat(list(views)))
    x = [(view - mean) / std for view in views]
    y, n = labels.to(mean.device), len(labels)
    generator = torch.Generator().manual_seed(seed)
    # As the paper begins: normal weights, zero biases.
    start = 0.01 * torch.randn(num_classes, mean.numel(), generator=generator)
    weight = nn.Parameter(start.to(mean))
    bias = nn.Parameter(mean.new_zeros(num_classes))
    solver = optimizer(weight, bias)
    steps = epochs * math.ceil(n / batch_size)
    warmup, step = warmup_epochs * math.ceil(n / batch_size), 0
    for epoch in range(epochs):
        order = torch.randperm(n, generator=generator).to(mean.device)
        for rows in order.split(batch_size):
            progress = (step - warmup) / max(steps - warmup, 1)
            scale = (step + 1) / warmup if step < warmup else (1 + math.cos(math.pi * progress)) / 2
            for group in solver.param_groups:
                group["lr"] = lr * scale
            logits = F.linear(x[epoch % len(x)][rows], weight, bias)
            solver.zero_grad()
            F.cross_entropy(logits, y[rows]).backward()
            solver.step()
            step += 1
    return LinearProbe(mean, std, weight.detach(), bias.detach(), lr)


def split_rows(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to learn from and a fifth of each class, at least one, to choose by."""
    rng = np.random.default_rng(seed)
    learn, choose = list[int](), list[int]()
    for label in labels.unique().tolist():
        rows = rng.permutation(np.flatnonzero(labels.cpu().numpy() == label)).tolist()
        count = max(round(_CHOOSING * len(rows)), 1)
        choose += rows[:count]
        learn += rows[count:]
    return torch.tensor(sorted(learn)), torch.tensor(sorted(choose))


def sweep(
    features: Tensor, labels: Tensor, num_classes: int, fit: Callable[..., LinearProbe],
    values: Sequence[float], *, seed: int = 0,
) -> LinearProbe:  # fmt: skip
    """Fit with each value on a part of the images, and with the best one on all of them.

    The best has the highest accuracy on the rest, and the lower cross-entropy among equals. What
    is measured on in the end is never looked at.

    Args:
        features: (N, D).
        labels: (N,) classes, 0..C-1.
        num_classes: C.
        fit: Makes a probe of features, labels, classes and one of the values.
        values: Of the penalty or the learning rate.
        seed: Of the parts.

    Raises:
        ConfigError: If a class has one image only.
    """
    if int(torch.bincount(labels, minlength=num_classes).min()) < 2:
        raise ConfigError("a class has fewer than two images to learn from; give two at least")
    learn, choose = split_rows(labels, seed)

    def quality(value: float) -> tuple[float, float]:
        probe = fit(features[learn], labels[learn], num_classes, value)
        logits, wanted = probe.logits(features[choose]), labels[choose].to(features.device)
        right = (logits.argmax(dim=1) == wanted).double().mean()
        return float(right), -float(F.cross_entropy(logits, wanted))

    return fit(features, labels, num_classes, max(values, key=quality))
