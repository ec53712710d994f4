"""Adversarial fine-tuning: a discriminator asks for reconstructions that look like photographs.

A squared error is smallest for the mean of all that might be there, which is blurred. A small
convolutional network learns to tell pasted images from true ones, cell by cell, and the model gets
its gradient beside that of the pixels' loss (Goodfellow et al. 2014; scores of patches as in Isola
et al. 2017; hinge as in Lim and Ye 2017; spectral norm by Miyato et al. 2018). The official weights
with a GAN loss came without code or description; nothing here is taken from them.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from mae_core.config import TrainConfig
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import PatchMask
from mae_core.model.patches import pixel_mask, unpatchify
from mae_core.training.pretraining import Reconstruction, pixel_loss

# Side in pixels of the cells that are scored: four halvings.
CELL = 16

# Third entry of an offset's random seed; order, crops and masks have 0 to 2.
_OFFSET = 3

# Strength of details, in the images' deviations, below which they are not enlarged any further:
# about three levels of 255.
_DETAIL_FLOOR = 0.05

# Distances in patches, down and right, at which details are compared.
_DISTANCES = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))

_TINY = 1e-12


class Discriminator(nn.Module):
    """Scores each cell of 16 pixels: above 0 for a photograph, below 0 for a rebuilt one.

    It sees each image beside its details, in units of the strength that the photograph's have
    there: a faint mesh in a plain sky has to count as much as one in grass, and what is blurred is
    weak wherever it is. From the third convolution on it also sees how alike the details of patches
    near each other are.
    """

    def __init__(self, in_chans: int, width: int, patch_size: int) -> None:
        super().__init__()
        self._patch_size = patch_size
        outputs = [width * 2**i for i in range(4)]
        inputs = [2 * in_chans, *outputs[:-1]]
        inputs[2] += len(_DISTANCES)
        # Averages halve the size: strides would leave a checkerboard in what is asked for.
        self.convolutions = nn.ModuleList(
            spectral_norm(nn.Conv2d(a, b, 3, padding=1))
            for a, b in zip(inputs, outputs, strict=True)
        )
        self.score = spectral_norm(nn.Conv2d(outputs[-1], 1, 3, padding=1))

    def forward(self, images: Tensor, photographs: Tensor) -> Tensor:
        """Images and what they are of, (N, C, H, W), normalised -> (N, 1, H // 16, W // 16)."""
        details, true = (of - _mean_around(of, 5) for of in (images, photographs))
        strength = _mean_around(true.square().mean(dim=1, keepdim=True), 9).sqrt()
        values = torch.cat((images, details / (strength + _DETAIL_FLOOR)), dim=1)
        values = values.contiguous(memory_format=torch.channels_last)  # 1.2 times as fast on a CPU
        for number, convolution in enumerate(self.convolutions):
            if number == 2:
                values = torch.cat((values, _likeness(details, self._patch_size)), dim=1)
            values = F.avg_pool2d(F.leaky_relu(convolution(values), 0.2), 2)
        scores: Tensor = self.score(values)
        return scores


def _likeness(details: Tensor, patch_size: int) -> Tensor:
    """Correlation of details with those `_DISTANCES` away, (N, C, H, W) -> (N, 6, H // 4, W // 4).

    One matrix predicts all patches, so the texture that is learned first is the same in each.
    Few photographs repeat at a distance of patches; this shows it to convolutions of 3 pixels.
    """

    def mean(values: Tensor) -> Tensor:
        return _mean_around(F.avg_pool2d(values.mean(dim=1, keepdim=True), 4), 5)

    # At a quarter of the resolution, so by whole patches only if 4 divides their side.
    power = mean(details.square()) + _DETAIL_FLOOR**2 / 4
    found = []
    for distance in _DISTANCES:
        y, x = (patch_size * count for count in distance)
        product = mean(details * details.roll((y, x), dims=(2, 3)))
        alike = product / (power * power.roll((y // 4, x // 4), dims=(2, 3))).sqrt()
        # Of the patches on both sides.
        found.append((alike + alike.roll((-y // 4, -x // 4), dims=(2, 3))) / 2)
    return torch.cat(found, dim=1)


def _mean_around(images: Tensor, side: int) -> Tensor:
    """The mean of the square of that side around each pixel, as far as it is in the image."""
    return F.avg_pool2d(images, side, stride=1, padding=side // 2, count_include_pad=False)


class Adversaries(nn.Module):
    """A masked autoencoder and the discriminator that it is trained against, for one step."""

    def __init__(self, model: MaskedAutoencoder, config: TrainConfig) -> None:
        super().__init__()
        self.model, self._config = model, config
        self.discriminator = Discriminator(
            config.model.in_chans, config.adversarial.width, config.model.patch_size
        )

    def forward(
        self, images: Tensor, mask: PatchMask, offset: tuple[int, int], weight: float
    ) -> Tensor:
        """The losses and scores of `AdversarialReconstruction.figures`, as means over images: (4,).

        The gradient at each image's prediction is that of the pixels' loss plus the adversarial
        one, scaled to `weight` times its length (an image's own, as Esser et al. 2021 scale it for
        a batch). That depends on no other image, so micro-batches and ranks add up to the batch,
        but for the spectral norms, which each pass brings nearer to their value.

        Args:
            images: (N, C, H, W), normalised.
            mask: Of N images.
            offset: (y, x), 0 to 15: how far the discriminator's cells are moved, from step to step,
                so that no pattern fits them.
            weight: Length of the adversarial gradient over that of the pixels' loss.
        """
        config = self._config
        pred, patch = self.model(images, mask).pred, config.model.patch_size
        grid_size = self.model.grid_of(images)
        removed = pixel_mask(mask.mask, grid_size, patch)
        scale = mask.mask.numel()  # the gradient of a mean over patches is too short for float16
        leaf = pred.detach().float().requires_grad_()

        def paste() -> Tensor:
            return torch.where(removed.bool(), unpatchify(leaf, patch, grid_size), images)

        rest = pixel_loss(config, self.model, leaf, images, mask)
        (gradient,) = torch.autograd.grad(rest, leaf)
        if config.adversarial.features_weight:
            perceptual = config.adversarial.features_weight * self._feature_loss(paste(), images)
            gradient = gradient + torch.autograd.grad(scale * perceptual, leaf)[0] / scale
            rest = rest + perceptual

        top, left = offset
        around = (left, CELL - left, top, CELL - top)
        true, pasted = (F.pad(of, around, mode="reflect") for of in (images, paste()))
        with parametrize.cached():  # one step of the spectral norms' power iteration for both
            real, rebuilt = (self.discriminator(of, true).float() for of in (true, pasted))
        cells = F.avg_pool2d(F.pad(removed, around), CELL)  # how much of each was removed

        def mean(values: Tensor) -> Tensor:
            of_images = (values * cells).sum(dim=(1, 2, 3)) / cells.sum(dim=(1, 2, 3)).clamp(min=1)
            return of_images.mean()

        if weight:
            (sharper,) = torch.autograd.grad(-scale * mean(rebuilt), leaf, retain_graph=True)
            lengths = [one.flatten(1).norm(dim=1) for one in (gradient, sharper)]
            factor = weight * lengths[0] / lengths[1].clamp(min=_TINY)
            gradient = gradient + factor.view(-1, 1, 1) * sharper
        against = mean(F.relu(1 - real)) + mean(F.relu(1 + rebuilt))
        # By itself: `backward` would compute the gradient of the pasted images too.
        parameters = list(self.discriminator.parameters())
        of_parameters = torch.autograd.grad(scale * against, parameters)
        path = (pred.float() * gradient).sum()
        for parameter, of_one in zip(parameters, of_parameters, strict=True):
            path = path + (parameter * of_one).sum() / scale
        loss = rest.detach() + path - path.detach()
        return torch.stack((loss, against.detach(), mean(real).detach(), mean(rebuilt).detach()))

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW of the discriminator, without weight decay."""
        optim, factor = self._config.optim, self._config.adversarial.lr_factor
        group = {"params": list(self.discriminator.parameters()), "lr_scale": factor}
        return torch.optim.AdamW([group], lr=optim.lr, betas=optim.betas, weight_decay=0)

    def _feature_loss(self, pasted: Tensor, images: Tensor) -> Tensor:
        """1 minus the mean cosine of what the encoder makes of patches: of both images, whole."""
        blocks = (self._config.model.depth // 2, self._config.model.depth - 1)
        with torch.no_grad():
            true = self.model.features_of_blocks(images, blocks)
        found = self.model.features_of_blocks(pasted, blocks)
        cosines = [
            F.cosine_similarity(a.float(), b.float(), dim=-1)
            for a, b in zip(found, true, strict=True)
        ]
        return 1 - torch.stack(cosines).mean()


class AdversarialReconstruction(Reconstruction):
    """The loss of `Adversaries` on crops of a loader, under masks of their own."""

    figures = ("loss_discriminator", "score_real", "score_rebuilt")

    def loss(self, step: int, images: Tensor, mask: PatchMask, forward: nn.Module) -> Tensor:
        """(4,): the loss and `figures`."""
        config = self._config.adversarial
        y, x = np.random.default_rng((self._config.seed, _OFFSET, step)).integers(CELL, size=2)
        risen = (step + 1 - config.begin) / (config.ramp + 1)
        weight = config.weight * min(max(risen, 0.0), 1.0)
        losses: Tensor = forward(images, mask, (int(y), int(x)), weight)
        return losses
