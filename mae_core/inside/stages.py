"""What happens to one picture inside the model, stage by stage, counted on the tensors.

found = trace(Reconstructor(load()), ReconstructionRequest("cat.jpg"))
[(stage.name, stage.shape) for stage in found.stages]
found.flops / found.flops_all  # the cost at this mask ratio, against all patches
"""

import re
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mae_core.inside.hooks import twin
from mae_core.model.mae import MaskedAutoencoder, module_flops
from mae_core.model.masking import PatchMask
from mae_core.model.patches import patchify
from mae_core.reconstruct import ReconstructionRequest, Reconstructor
from mae_core.weights import is_decoder_key

__all__ = ["Stage", "Trace", "trace"]

# Modules that are a stage each, by their names in the model, and what a stage is called instead.
_MODULES = re.compile(r"patch_embed|norm|decoder_embed|(decoder_)?blocks\.\d+")
_CALLED = {
    "patch_embed": "embed", "blocks": "encoder_block", "decoder_blocks": "decoder_block",
    "decoder_pred": "predict",
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One step of a forward pass.

    Attributes:
        name: In this order: `patches` (pixels), `embed` (tokens of all patches), `keep` (the class
            token and those that the encoder gets, shuffled, with positions), `encoder_block` each,
            `norm`, `decoder_embed`, `restore` (in order again, mask tokens in place of the removed
            patches, with positions), `decoder_block` each, `predict` (a norm and pixels, or what
            the model predicts in their place, without the class token).
        block: Number of the block, from 0; None for other stages.
        shape: Of the tensor that the stage gives, of a batch of one.
        flops: Floating-point operations, as `forward_flops` counts them.
    """

    name: str
    block: int | None
    shape: tuple[int, ...]
    flops: int


@dataclass(frozen=True)
class Trace:
    """One forward pass.

    Attributes:
        stages: In the order in which they ran.
        grid_size: (h, w) patches.
        mask_ratio: Of a custom mask, the share that it removed.
        ids_keep: (K,) numbers of the visible patches, in shuffled order.
        ids_restore: (L,) position of each patch in that order, the removed ones last.
        encoder_ids: (K,) numbers of the patches of the encoder's tokens: `ids_keep`; with
            `encoder_mask_tokens` (L,), for there is one for each removed patch too.
        changes: For each encoder block the length of what it adds to the token of each of
            `encoder_ids`.
        encoder_tokens: Tokens in the encoder, the class token among them.
        encoder_tokens_all: The same if nothing were removed.
        flops: Of all stages; what `forward_flops` gives.
        flops_all: The same if nothing were removed.
        encoder_flops: Those of the embedding and the encoder's blocks.
        encoder_flops_all: The same if nothing were removed.
        encoder_parameters: How many values they are, the position table among them.
        decoder_parameters: Likewise.
    """

    stages: list[Stage]
    grid_size: tuple[int, int]
    mask_ratio: float
    ids_keep: list[int]
    ids_restore: list[int]
    encoder_ids: list[int]
    changes: list[list[float]]
    encoder_tokens: int
    encoder_tokens_all: int
    flops: int
    flops_all: int
    encoder_flops: int
    encoder_flops_all: int
    encoder_parameters: int
    decoder_parameters: int

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)


def trace(reconstructor: Reconstructor, request: ReconstructionRequest) -> Trace:
    """Run the model once on the picture and the mask of a request; the view means nothing here.

    Raises:
        MAEError: If the image cannot be used, or a field is not allowed.
    """
    request, images, patch_mask = reconstructor.prepare(request)
    shapes, changes = reconstructor.run_model(_watch, images, patch_mask)
    model, config = reconstructor.model, reconstructor.config
    grid_size, mask_ratio = model.grid_of(images), float(request.mask_ratio)
    flops = module_flops(config, grid_size, mask_ratio)
    flops_all = module_flops(config, grid_size, 0.0)
    stages = []
    for key, shape in shapes.items():
        name, _, block = key.partition(".")
        number = int(block) if block else None
        stages.append(Stage(_CALLED.get(name, name), number, shape, flops.get(key, 0)))
    parameters = {True: 0, False: 0}
    for name, parameter in model.named_parameters():
        parameters[is_decoder_key(name)] += parameter.numel()
    return Trace(
        stages, grid_size, mask_ratio, patch_mask.ids_keep[0].tolist(),
        patch_mask.ids_restore[0].tolist(), model.encoder_ids(patch_mask)[0].tolist(), changes,
        encoder_tokens=shapes["keep"][1], encoder_tokens_all=1 + patch_mask.num_patches,
        flops=sum(stage.flops for stage in stages),
        flops_all=sum(flops_all.values()),
        encoder_flops=_of_encoder(flops), encoder_flops_all=_of_encoder(flops_all),
        encoder_parameters=parameters[False], decoder_parameters=parameters[True],
    )  # fmt: skip


def _of_encoder(flops: dict[str, int]) -> int:
    return sum(count for key, count in flops.items() if not is_decoder_key(key))


@torch.inference_mode()
def _watch(
    model: MaskedAutoencoder, images: Tensor, patch_mask: PatchMask
) -> tuple[dict[str, tuple[int, ...]], list[list[float]]]:
    """Shapes in the order in which modules ran, and `Trace.changes`."""
    device, watched = model.pos_embed.device, twin(model)
    images, patch_mask = images.to(device), patch_mask.to(device)
    # The embedding's convolution cuts the picture itself.
    shapes = {"patches": tuple(patchify(images, model.config.patch_size).shape)}
    changes: list[list[float]] = []

    def before(name: str, module: nn.Module, given: tuple[Tensor]) -> None:
        shapes[name] = tuple(given[0].shape)

    def after(name: str, module: nn.Module, given: tuple[Tensor], result: Tensor) -> None:
        shapes[name] = tuple(result.shape)
        if name.startswith("blocks."):
            added = result[0, 1:].float() - given[0][0, 1:].float()
            changes.append(added.norm(dim=1).tolist())

    watched.blocks.register_forward_pre_hook(partial(before, "keep"))
    watched.decoder_blocks.register_forward_pre_hook(partial(before, "restore"))
    for name, module in watched.named_modules():
        if _MODULES.fullmatch(name):
            module.register_forward_hook(partial(after, name))
    # The module predicts the class token's row too.
    shapes["decoder_pred"] = tuple(watched(images, patch_mask).pred.shape)
    return shapes, changes
