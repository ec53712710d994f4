"""The objective of pre-training: rebuild removed patches (He et al. 2022)."""

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

from torch import Tensor, nn

from mae_core.config import TrainConfig
from mae_core.data.loader import BatchLoader
from mae_core.distributed import World
from mae_core.model.losses import error_of, reconstruction_loss, seam_loss
from mae_core.model.mae import MaskedAutoencoder
from mae_core.model.masking import PatchMask
from mae_core.model.patches import unpatchify
from mae_core.training.optim import image_size_at, mask_at
from mae_core.training.trainer import Loss, Objective


def pixel_loss(
    config: TrainConfig, model: MaskedAutoencoder, pred: Tensor, images: Tensor, mask: PatchMask
) -> Tensor:
    """The mean loss of the prediction of (N, C, H, W) images: on patches and on seams."""
    loss = reconstruction_loss(
        pred, model.target(images), mask.mask, config.visible_weight, config.loss
    )
    if config.seam_weight:
        patch = config.model.patch_size
        pixels = unpatchify(pred, patch, model.grid_of(images))
        # A discriminator finds lines by itself, and steps inside would forbid the texture it wants.
        inside = not config.adversarial.width
        seams = seam_loss(pixels, images, mask.mask, patch, inside=inside)
        loss = loss + config.seam_weight * seams
    return loss


class Reconstruction(Objective):
    """The loss of a masked autoencoder on crops of a loader, under masks of its own."""

    def __init__(
        self, config: TrainConfig, model: MaskedAutoencoder, loader: BatchLoader, world: World
    ) -> None:
        self._config, self._model, self._loader, self._world = config, model, loader, world

    def losses(self, begin: int) -> Generator[Sequence[Loss], None, None]:
        """Those of each step from `begin` on; the next mask is drawn in a thread."""
        config, rank = self._config, self._world.rank
        share = config.batch_size // self._world.size
        size = share // config.system.accumulate
        rows = slice(rank * share, (rank + 1) * share)

        def side_at(step: int) -> int:
            return image_size_at(step, config.steps, config.stages)

        def draw(step: int) -> PatchMask:
            side = side_at(step) // config.model.patch_size
            return mask_at(step, config.batch_size, (side, side), config.mask, config.seed, rows)

        with (
            ThreadPoolExecutor(1) as pool,
            closing(self._loader.batches(begin, config.steps, side_at)) as batches,
        ):
            drawn = pool.submit(draw, begin)
            for step, (images, _) in enumerate(batches, begin):
                mask = drawn.result()
                if step + 1 < config.steps:
                    drawn = pool.submit(draw, step + 1)
                if images.device.type == "cuda":
                    mask = mask.pin_memory()
                mask = mask.to(images.device)
                yield [
                    partial(self.loss, step, images[i : i + size], mask.rows(i, i + size))
                    for i in range(0, share, size)
                ]

    def loss(self, step: int, images: Tensor, mask: PatchMask, forward: nn.Module) -> Tensor:
        """The mean loss of (N, C, H, W) images, and `figures` of them."""
        pred = forward(images, mask).pred
        return pixel_loss(self._config, self._model, pred, images, mask)

    def errors(self, losses: Tensor) -> Tensor:
        """Mean squared errors, whatever the loss makes of them."""
        return error_of(losses, self._config.loss)
