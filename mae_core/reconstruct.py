"""From a picture to four panels: original, masked, reconstruction, pasted.

from mae_core import Reconstructor
r = Reconstructor.from_pretrained()
out = r("photo.jpg", mask_ratio=0.75, seed=2)
out.panels()["pasted"].save("pasted.png")

Any size goes through any model, for its positions are resampled: `image_size=` up to 1024, and
at most `MAX_PATCHES` patches. A picture of 1024 x 1024 pixels in patches of 16 takes at most
300 MiB beyond the weights, for models up to the size of `large`, in float32 on a CPU. Pictures
that share a forward pass (`Reconstructor.batch`) have no more than `MAX_PATCHES` patches together,
so that a pass of many takes no more than a pass of one may.
"""

import copy
import itertools
import math
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mae_core.config import ModelConfig
from mae_core.devices import choose_device, choose_precision, choose_threads
from mae_core.errors import ConfigError, ImageLimitError, MAEError, MaskError
from mae_core.images import (
    ImageSource,
    Picture,
    channels_to_tensor,
    fit_image,
    fitted_size,
    is_channels,
    size_of,
    to_pil,
    to_tensor,
    viewable,
)
from mae_core.model.losses import reconstruction_loss
from mae_core.model.mae import MaskedAutoencoder, forward_flops
from mae_core.model.masking import PatchMask, custom_mask, draw_mask
from mae_core.model.patches import (
    PatchStatistics,
    denormalize_patches,
    patch_statistics,
    patchify,
    unpatchify,
)
from mae_core.rasters import open_picture
from mae_core.value_range import RangeSpec
from mae_core.weights.contents import Hints
from mae_core.weights.registry import load_pretrained, weights_name
from mae_core.weights.saved import Weights

# How a model of per-patch normalised pixels can be shown (see `rebuild`), the default first.
NORM_PIX_VIEWS = ("estimated", "answer", "normalized")

# The largest `image_size` that can be asked for, in pixels, and the most patches of a picture, or
# of the pictures of one forward pass: 1024 x 1024 pixels in patches of 16.
MAX_IMAGE_SIZE = 1024
MAX_PATCHES = 4096

# What a removed patch looks like in the masked panel: mid grey, 0..1.
REMOVED_COLOUR = 0.5

# SSIM's window and constants (Wang et al. 2004), for pixels in 0..1.
_SSIM_WINDOW, _SSIM_SIGMA = 11, 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2

# What one deviation of a patch's pixels becomes in the view `normalized`, in pixels of 0..1: two
# deviations to either side of mid grey fill the range, and few pixels of photographs lie beyond.
_NORMALIZED_CONTRAST = 0.25

# Cells along a side of a patch from which its mean is estimated.
_MEAN_CELLS = 4

# Filling stops when what is wrong has shrunk by so much, far below a level of grey, or after so
# many steps: holes of blocks in 256 x 256 cells take up to 600.
_FILL_TOLERANCE, _FILL_STEPS = 1e-5, 1000
_TINY = 1e-30


@dataclass(frozen=True)
class Reconstruction:
    """One picture rebuilt, with everything needed to rebuild it again.

    Attributes:
        original: (C, H, W) pixels in 0..1, as the model saw the picture.
        reconstruction: (C, H, W) the model's picture in 0..1, visible patches too.
        removed: (h, w) booleans, True = removed.
        patch_size: Side of a patch in pixels.
        loss: The model's loss on removed patches; None if nothing was removed.
        psnr: Of the removed patches, in dB, for pixels in 0..1; None likewise, and in the view
            `normalized`. In the view `answer` it is not the model's own: that one is told the
            brightness and contrast of what it is to guess.
        ssim: Of the pasted picture, averaged over removed pixels, at most 1; None as `psnr`.
        mask_ratio: As asked for, 0..1; with a custom mask the share it removed.
        seed: Of the mask; not used by a custom mask.
        strategy: `random`, `block`, `grid` or `custom`.
        fit: How the picture was brought to size; `none` for channels, which are taken as they are.
        view: One of `NORM_PIX_VIEWS`; None where the model predicts pixels.
        model: Name of the weights.
        device: Where the model ran.
        precision: Number format the model ran in.
        seconds: From the fitted picture to the predicted pixels, of all pictures that shared the
            forward pass.
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
    view: str | None
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
    def height(self) -> int:
        """H: pixels."""
        return int(self.original.shape[1])

    @property
    def width(self) -> int:
        """W: pixels."""
        return int(self.original.shape[2])

    @property
    def patches(self) -> int:
        """L: patches of the picture."""
        return int(self.removed.size)

    @property
    def visible(self) -> int:
        """K: patches the model saw."""
        return int((~self.removed).sum())

    def panels(self, show: Sequence[int] = ()) -> dict[str, Image.Image]:
        """The pictures `original`, `masked`, `reconstruction` and `pasted`, of one size.

        Args:
            show: Channels of the model, numbered from 1: three, to be seen as red, green and blue,
                or one, in grey. Without any, the first three; the first of fewer.

        Raises:
            ConfigError: If there are no such channels.
        """
        removed = self._removed_pixels()
        original, rebuilt = viewable(self.original, show), viewable(self.reconstruction, show)
        grey = torch.full_like(original, REMOVED_COLOUR)
        return {
            "original": to_pil(original),
            "masked": to_pil(compose(original, grey, removed)),
            "reconstruction": to_pil(rebuilt),
            "pasted": to_pil(compose(original, rebuilt, removed)),
        }

    def strip(self, gap: int = 8, show: Sequence[int] = ()) -> Image.Image:
        """The four `panels` in one row on white, `gap` pixels apart."""
        panels = list(self.panels(show).values())
        width, height = panels[0].size
        row = Image.new("RGB", (4 * width + 3 * gap, height), "white")
        for i, panel in enumerate(panels):
            row.paste(panel, (i * (width + gap), 0))
        return row

    def facts(self) -> dict[str, Any]:
        """What was done and how well it went, as plain data for JSON."""
        names = (
            "model", "device", "precision", "mask_ratio", "seed", "strategy", "fit", "view",
            "height", "width", "visible", "patches", "loss", "psnr", "ssim", "seconds",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def _removed_pixels(self) -> Tensor:
        mask = torch.from_numpy(self.removed.astype(np.float32))
        return pixel_mask(mask.reshape(1, -1), self.grid_size, self.patch_size)[0]


@dataclass(frozen=True)
class ReconstructionRequest:
    """What is to be rebuilt: the arguments of one call of a `Reconstructor`, which says more.

    Attributes:
        image: A picture, or channels.
        mask_ratio: Fraction removed, 0..1.
        seed: Of the mask.
        strategy: `random`, `block` or `grid`.
        fit: `crop`, `squash` or `whole`.
        mask: (h, w) booleans, True = removed, instead of ratio, seed and strategy.
        image_size: Pixels that `fit` aims at; the model's own if not given.
        view: One of `NORM_PIX_VIEWS`.
        bands: Which bands of the picture are the model's channels, numbered from 1; what the model
            was trained on if empty.
        value_range: Of values of more than 8 bits; what the model was trained on if None.
    """

    image: ImageSource | Tensor
    mask_ratio: float = 0.75
    seed: int = 0
    strategy: str = "random"
    fit: str = "crop"
    mask: ArrayLike | None = None
    image_size: int | None = None
    view: str = "estimated"
    bands: Sequence[int] = ()
    value_range: RangeSpec | None = None


@dataclass(frozen=True)
class _Prepared:
    """A request whose values are all allowed.

    `ready` is a fitted picture, or channels as the model's input, and `request` says of the mask
    what was done.
    """

    request: ReconstructionRequest
    ready: Picture | Tensor
    grid_size: tuple[int, int]
    patch_mask: PatchMask

    @property
    def key(self) -> Hashable:
        """What must be alike for a common forward pass."""
        return self.grid_size, self.patch_mask.num_visible, self.request.view


class Reconstructor:
    """A model made ready to rebuild pictures.

    Attributes:
        model: The masked autoencoder, in evaluation mode, in the precision it runs in.
        name: Of the weights, for people.
        device: Where the model is.
        precision: `float32` or `bfloat16`.
    """

    def __init__(
        self,
        model: MaskedAutoencoder,
        name: str,
        *,
        device: str = "auto",
        precision: str = "auto",
        in_place: bool = False,
    ) -> None:
        """Make a model ready to run.

        Args:
            model: Stays as it is. It is copied if it is elsewhere, in another precision or in
                training mode, and shared otherwise.
            name: Of the weights, for people.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps` (see `devices`).
            precision: `auto`, `float32` or `bfloat16`.
            in_place: Move and convert `model` itself, which saves the copy. For a model that
                nobody else uses.

        Raises:
            DeviceError: If the device is not there or the precision has no such name.
        """
        self.name = name
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        dtype = getattr(torch, self.precision)
        if not in_place and not _is_ready(model, self.device, dtype):
            model = copy.deepcopy(model)
        self.model = model.to(self.device, dtype).eval()

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
        hints: Hints | None = None,
    ) -> "Reconstructor":
        """Load weights by name or path.

        Args:
            weights: A name that `list_weights` gives, a `.safetensors` file, or the folder of
                a run; the default bundled weights if not given.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
            precision: `auto`, `float32` or `bfloat16`.
            hints: What shapes cannot tell of a file, such as `norm_pix`.

        Raises:
            CheckpointError: If there are no such weights or the file is damaged.
            DownloadError: If published weights cannot be fetched.
            DeviceError: If the device is not there.
        """
        model = load_pretrained(weights, hints=hints).build()
        name = weights_name(weights)
        return cls(model, name, device=device, precision=precision, in_place=True)

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.model.config

    def __call__(
        self,
        image: ImageSource | Tensor,
        mask_ratio: float = 0.75,
        seed: int = 0,
        *,
        strategy: str = "random",
        fit: str = "crop",
        mask: ArrayLike | None = None,
        image_size: int | None = None,
        view: str = "estimated",
        bands: Sequence[int] = (),
        value_range: RangeSpec | None = None,
    ) -> Reconstruction:
        """Remove patches of a picture and rebuild it.

        Args:
            image: Bytes of a picture file, a path, a PIL image or an array (see `open_picture`),
                which are made grey for a model of one channel; or, for a model of any number of
                channels, a tensor or an array (C, H, W) of floats in 0..1, whose sides are
                multiples of the patch side. Such channels are not resized.
            mask_ratio: Fraction removed, 0..1.
            seed: Of the mask; the same seed gives the same mask on every device.
            strategy: `random`, `block` or `grid`.
            fit: `crop`, `squash` or `whole`.
            mask: (h, w) booleans, True = removed, instead of ratio, seed and strategy.
            image_size: Pixels that `fit` aims at, a multiple of the patch side and at most
                `MAX_IMAGE_SIZE`: both sides, or of a whole frame the shorter one (see
                `fit_image`). The model's own if not given.
            view: How a model of per-patch normalised pixels is shown, one of `NORM_PIX_VIEWS`
                (see `rebuild`). Other models have one view, and it means nothing to them.
            bands: Which bands of the picture are the model's channels, numbered from 1; those it
                was trained on if empty.
            value_range: `auto`, `dtype` or pairs, for values of more than 8 bits (see
                `open_picture`); what the model was trained on, else `auto`, if not given.

        Raises:
            ImageError: If the picture cannot be used.
            ImageLimitError: If it would have more than `MAX_PATCHES` patches.
            MaskError: If ratio, seed, strategy or mask are not allowed.
            ConfigError: If fit, size, view or range are not allowed.
            PatchError: If channels do not divide into patches.
        """
        request = ReconstructionRequest(
            image, mask_ratio, seed, strategy, fit, mask, image_size, view, bands, value_range
        )
        (result,) = self.batch([request])
        if isinstance(result, MAEError):
            raise result
        return result

    def batch(self, requests: Sequence[ReconstructionRequest]) -> list[Reconstruction | MAEError]:
        """Rebuild several pictures, those that allow it in one forward pass.

        Pictures share a pass where grid, number of visible patches and view are alike, and they
        have at most `MAX_PATCHES` patches together. Each gets the mask that it gets alone, and in
        float32 the same pixels but for rounding.

        Args:
            requests: Any number.

        Returns:
            For each request what it gets, or the error that a call with it alone would raise:
            one that cannot be done does not spoil the others.
        """
        results: dict[int, Reconstruction | MAEError] = {}
        prepared: dict[int, _Prepared] = {}
        for i, request in enumerate(requests):
            one = self._prepared_or_refused(request)
            if isinstance(one, MAEError):
                results[i] = one
            else:
                prepared[i] = one
        for indices in _passes(prepared):
            shared = self._reconstruct([prepared[i] for i in indices])
            results.update(zip(indices, shared, strict=True))
        return [results[i] for i in range(len(requests))]

    def threads_for(self, requests: Sequence[ReconstructionRequest]) -> int:
        """CPU threads worth giving to `batch` with these, for `torch.set_num_threads`.

        Programs call it; a `Reconstructor` leaves the settings of its process alone.

        Args:
            requests: Any number.
        """
        return choose_threads(sum(self._flops(request) for request in requests))

    def _flops(self, request: ReconstructionRequest) -> float:
        side = (request.image_size or self.config.image_size) // self.config.patch_size
        try:
            return forward_flops(self.config, (side, side), request.mask_ratio)
        except MaskError:
            # `batch` says what is wrong with it.
            return 0

    def rebuild(self, images: Tensor, patch_mask: PatchMask, view: str) -> "Rebuilt":
        """Run the model, as the function `rebuild` does.

        Nothing else looks at the model's numbers, so that a sub-class can have it run elsewhere.
        """
        return rebuild(self.model, images, patch_mask, view)

    def on_cpu(self) -> "Reconstructor":
        """A copy that runs on the CPU; it takes nothing of the device's memory."""
        state = {name: tensor.cpu().clone() for name, tensor in self.model.state_dict().items()}
        model = Weights(self.config, state, record={}).build()
        return Reconstructor(model, self.name, device="cpu", in_place=True)

    def _reconstruct(self, prepared: Sequence[_Prepared]) -> list[Reconstruction]:
        """One forward pass."""
        config, first = self.config, prepared[0]
        begun = time.perf_counter()
        images = torch.cat([self._input(one.ready) for one in prepared])
        patch_mask = _stacked([one.patch_mask for one in prepared])
        rebuilt = self.rebuild(images, patch_mask, first.request.view)
        seconds = time.perf_counter() - begun
        scores = score(rebuilt, patch_mask, first.grid_size, config.patch_size)
        return [
            Reconstruction(
                original=rebuilt.original[i], reconstruction=rebuilt.pixels[i],
                removed=(patch_mask.mask[i].numpy() > 0).reshape(first.grid_size),
                patch_size=config.patch_size,
                loss=scores.loss[i], psnr=scores.psnr[i], ssim=scores.ssim[i],
                mask_ratio=_plain(one.request.mask_ratio), seed=_plain(one.request.seed),
                strategy=one.request.strategy, fit=one.request.fit, view=rebuilt.view,
                model=self.name, device=str(self.device), precision=self.precision,
                seconds=seconds,
            )
            for i, one in enumerate(prepared)
        ]  # fmt: skip

    def _input(self, ready: Picture | Tensor) -> Tensor:
        """(1, C, H, W) as the model takes it."""
        if isinstance(ready, Tensor):
            return ready
        return to_tensor(ready, self.config.mean, self.config.std)

    def _prepared_or_refused(self, request: ReconstructionRequest) -> _Prepared | MAEError:
        try:
            return self._prepare(request)
        except MAEError as error:
            return error

    def _prepare(self, request: ReconstructionRequest) -> _Prepared:
        """Fit a picture to the model, and draw its mask."""
        _check_view(request.view)
        ready = self._fitted(request)
        if isinstance(ready, Tensor):
            grid_size, request = self.model.grid_of(ready), replace(request, fit="none")
        else:
            patch = self.config.patch_size
            width, height = size_of(ready)
            grid_size = height // patch, width // patch
        if request.mask is None:
            drawn = draw_mask(request.strategy, 1, grid_size, request.mask_ratio, seed=request.seed)
            return _Prepared(request, ready, grid_size, drawn)
        given = _custom_mask(request.mask, grid_size)
        ratio = 1 - given.num_visible / given.num_patches
        request = replace(request, strategy="custom", mask_ratio=ratio)
        return _Prepared(request, ready, grid_size, given)

    def _fitted(self, request: ReconstructionRequest) -> Picture | Tensor:
        """A picture fitted to the model, or channels as its input."""
        config, image, image_size = self.config, request.image, request.image_size
        if is_channels(image, config.in_chans):
            if image_size is not None:
                raise ConfigError("image_size resizes pictures only; resize the channels yourself")
            images = channels_to_tensor(image, config.mean, config.std)
            _check_patches(*self.model.grid_of(images))
            return images
        assert not isinstance(image, Tensor)  # all of them are channels
        picture = picture_for(image, config, request.bands, request.value_range)
        return fit_to_model(picture, config, request.fit, image_size)


def _plain(number: Any) -> Any:
    """NumPy's numbers as Python's, which JSON can hold."""
    return number.item() if isinstance(number, np.generic) else number


def _is_ready(model: MaskedAutoencoder, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a model would stay as it is if it were moved there and set to evaluation mode."""
    there = torch.empty(0, device=device).device  # `cuda` with its number
    tensors = itertools.chain(model.parameters(), model.buffers())
    return not any(module.training for module in model.modules()) and all(
        tensor.device == there and tensor.dtype == dtype for tensor in tensors
    )


def _passes(prepared: Mapping[int, _Prepared]) -> Iterator[list[int]]:
    """Which requests share a forward pass."""
    alike: dict[Hashable, list[int]] = {}
    for i, one in prepared.items():
        alike.setdefault(one.key, []).append(i)
    for indices in alike.values():
        most = MAX_PATCHES // prepared[indices[0]].patch_mask.num_patches
        yield from (indices[start : start + most] for start in range(0, len(indices), most))


def _stacked(masks: Sequence[PatchMask]) -> PatchMask:
    """Masks of one image each as one of as many."""
    return PatchMask(
        torch.cat([one.mask for one in masks]),
        torch.cat([one.ids_keep for one in masks]),
        torch.cat([one.ids_restore for one in masks]),
    )


def picture_for(
    source: ImageSource,
    config: ModelConfig,
    bands: Sequence[int] = (),
    value_range: RangeSpec | None = None,
) -> Picture:
    """Any picture with the channels of a model, of the bands and the range it was trained on.

    Args:
        source: See `open_picture`.
        config: The model's shape.
        bands: Go before the model's.
        value_range: Likewise; `auto` where neither is given.

    Raises:
        ImageError: If the picture cannot be used.
        ConfigError: If the range is not allowed.
    """
    return open_picture(
        source, config.in_chans, bands=bands or config.bands,
        value_range=value_range or config.value_range or "auto",
    )  # fmt: skip


def fit_to_model(
    picture: Picture, config: ModelConfig, fit: str = "crop", image_size: int | None = None
) -> Picture:
    """Bring a picture to a size that a model takes.

    Args:
        picture: Any picture.
        config: The model's shape.
        fit: `crop`, `squash` or `whole`; see `fit_image`.
        image_size: What it aims at, in pixels, at most `MAX_IMAGE_SIZE`; the model's own if not
            given.

    Raises:
        ConfigError: If the fit or the size is not allowed.
        ImageLimitError: If the picture would have more than `MAX_PATCHES` patches.
    """
    patch = config.patch_size
    side = config.image_size if image_size is None else _check_image_size(image_size, patch)
    width, height = fitted_size(size_of(picture), fit, image_size=side, patch_size=patch)
    _check_patches(height // patch, width // patch)
    return fit_image(picture, fit, image_size=side, patch_size=patch)


def _check_image_size(image_size: int, patch_size: int) -> int:
    most = MAX_IMAGE_SIZE // patch_size * patch_size
    # NumPy's integers are Integral as well.
    if isinstance(image_size, bool) or not isinstance(image_size, Integral):
        raise ConfigError(f"image_size is a {type(image_size).__name__}; give a whole number")
    if not patch_size <= image_size <= most or image_size % patch_size:
        nearest = min(max(round(image_size / patch_size), 1) * patch_size, most)
        raise ConfigError(
            f"image_size is {image_size}; this model takes multiples of {patch_size} from "
            f"{patch_size} to {most}, such as {nearest}"
        )
    return int(image_size)


def _check_patches(h: int, w: int) -> None:
    if h * w > MAX_PATCHES:
        raise ImageLimitError(
            f"the picture would have {h} x {w} patches, and at most {MAX_PATCHES} are taken; "
            "give a smaller image_size, or crop it"
        )


def _check_view(view: str) -> None:
    if view not in NORM_PIX_VIEWS:
        raise ConfigError(f"no view is called {view!r}; choose {', '.join(NORM_PIX_VIEWS)}")


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
        view: One of `NORM_PIX_VIEWS`; None where the model predicts pixels.
    """

    original: Tensor
    pixels: Tensor
    loss: Tensor
    view: str | None = None


@torch.inference_mode()
def rebuild(
    model: MaskedAutoencoder, images: Tensor, patch_mask: PatchMask, view: str = "estimated"
) -> Rebuilt:
    """Run a model on normalised images and bring its prediction back to pixels.

    A model of per-patch normalised pixels predicts no brightness or contrast of a patch. Only
    what is predicted is honest, so there are three views of it:

    * `estimated`: both are estimated from the visible patches (`estimate_statistics`).
    * `answer`: both are the original's own, so hidden pixels reach the picture. What others
      show; not to be mistaken for what the model knows.
    * `normalized`: the prediction as it came, around mid grey. No pixel is looked at, and it
      is not to be compared with the original.

    Args:
        model: In evaluation mode; on any device, in any precision.
        images: (N, C, H, W), normalised, on the CPU.
        patch_mask: N masks, on the CPU.
        view: One of `NORM_PIX_VIEWS`; means nothing to models that predict pixels.

    Raises:
        PatchError: If images and mask do not fit each other or the model.
        ConfigError: If no view has that name.
    """
    _check_view(view)
    device, grid_size = model.pos_embed.device, model.grid_of(images)
    latent = model.encode(images.to(device), patch_mask.to(device))
    pred = model.decode(latent, patch_mask.ids_restore.to(device), grid_size).float().cpu()
    target = model.target(images)
    loss = torch.stack(
        [reconstruction_loss(pred[i], target[i], patch_mask.mask[i]) for i in range(len(images))]
    )
    pred = model.patches_from(pred)
    mean = torch.tensor(model.config.mean).view(1, -1, 1, 1)
    std = torch.tensor(model.config.std).view(1, -1, 1, 1)
    original = images * std + mean
    if not model.config.norm_pix:
        return Rebuilt(original, _pixels(model, pred, grid_size), loss)
    if view == "normalized":
        pixels = unpatchify(pred, model.config.patch_size, grid_size)
        return Rebuilt(original, (0.5 + _NORMALIZED_CONTRAST * pixels).clamp(0, 1), loss, view)
    statistics = (
        patch_statistics(patchify(images, model.config.patch_size))
        if view == "answer"
        else estimate_statistics(model, images, patch_mask, grid_size)
    )
    pred = denormalize_patches(pred, statistics)
    return Rebuilt(original, _pixels(model, pred, grid_size), loss, view)


def _pixels(model: MaskedAutoencoder, patches: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Patches in the units of the model's input as (N, C, H, W) pixels in 0..1."""
    pixels = unpatchify(patches, model.config.patch_size, grid_size)
    mean = torch.tensor(model.config.mean).view(1, -1, 1, 1)
    std = torch.tensor(model.config.std).view(1, -1, 1, 1)
    return (pixels * std + mean).clamp(0, 1)


def estimate_statistics(
    model: MaskedAutoencoder, images: Tensor, patch_mask: PatchMask, grid_size: tuple[int, int]
) -> PatchStatistics:
    """Mean and variance of every patch, as far as the visible patches tell.

    A model trained on per-patch normalised pixels does not predict a patch's brightness and
    contrast. A visible patch has its own. Into the removed ones both are continued smoothly
    (`fill_smoothly`): the variance from patch to patch; the mean from cells of a quarter of a
    patch, because what tells most about it are the pixels at the edges of its neighbours.
    Hidden pixels are never looked at.

    Returns:
        (N, L, 1) each.
    """
    raw = patch_statistics(patchify(images, model.config.patch_size))
    n, (h, w), cells = len(images), grid_size, min(_MEAN_CELLS, model.config.patch_size)
    hidden = patch_mask.mask.bool().reshape(n, 1, h, w)
    # No cell crosses the edge of a patch, not even where `cells` does not divide its side.
    grey = images.mean(dim=1, keepdim=True)
    grey = F.adaptive_avg_pool2d(grey, (h * cells, w * cells))
    holes = hidden.repeat_interleave(cells, dim=2).repeat_interleave(cells, dim=3)
    mean = F.avg_pool2d(fill_smoothly(grey, holes), cells).reshape(n, -1, 1)
    var = fill_smoothly(raw.var.reshape(n, 1, h, w), hidden).reshape(n, -1, 1)
    return PatchStatistics(torch.where(hidden.reshape(n, -1, 1), mean, raw.mean), var)


def fill_smoothly(values: Tensor, hidden: Tensor) -> Tensor:
    """Continue known values into holes, as a stretched membrane would.

    Solves Laplace's equation by conjugate gradients: each hidden value becomes the mean of its
    neighbours, so that none is outside of what is known.

    Args:
        values: (N, 1, h, w) floats; those that are hidden are never looked at.
        hidden: (N, 1, h, w) booleans, True = to be filled; not all of an image.

    Returns:
        (N, 1, h, w) of the same number format, the known values unchanged.
    """
    holes = hidden.double()
    known = torch.where(hidden, 0.0, values.double())
    level = _total(known) / _total(1 - holes)
    filled = torch.where(hidden, level, known)
    residual = -_laplacian(filled) * holes
    direction, size = residual, _total(residual.square())
    goal = _FILL_TOLERANCE**2 * size
    for _ in range(_FILL_STEPS):
        if bool((size <= goal).all()):
            break
        change = _laplacian(direction) * holes
        # Images that are done stay as they are, so that none depends on the others of its batch;
        # the tiny number is for those that have no error left.
        step = torch.where(size > goal, size / (_total(direction * change) + _TINY), 0.0)
        filled = filled + step * direction
        residual = residual - step * change
        previous, size = size, _total(residual.square())
        direction = residual + size / (previous + _TINY) * direction
    return torch.where(hidden, filled.to(values.dtype), values)


def _laplacian(x: Tensor) -> Tensor:
    """Four times each value of (N, 1, h, w) less its four neighbours, edges repeated."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across = padded[:, :, 1:-1, 2:] + padded[:, :, 1:-1, :-2]
    return 4 * x - across - padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]


def _total(x: Tensor) -> Tensor:
    """Sum of each image's values: (N, 1, h, w) to (N, 1, 1, 1)."""
    return x.sum(dim=(1, 2, 3), keepdim=True)


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
        The model's loss, the PSNR in dB and the mean SSIM of each image; the last two None in
        the view `normalized`, which is of other pixels than the original.
    """
    if rebuilt.view == "normalized":
        nothing: list[float | None] = [None] * len(rebuilt.loss)
        return Scores(_finite(rebuilt.loss), nothing, nothing)
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
        pixels: (N, C, H, W) in 0..1.
        original: (N, C, H, W) in 0..1.
        removed: (N, 1, H, W), 1 = removed.

    Returns:
        (N,) the mean over removed pixels and channels, at most 1; not a number where nothing
        was removed or a side is too short for the window, below 6 pixels.
    """
    if min(pixels.shape[-2:]) <= _SSIM_WINDOW // 2:
        return torch.full((len(pixels),), math.nan)
    pasted = compose(original, pixels, removed)
    # One channel at a time: of a large picture, a dozen copies are alive at once.
    pairs = zip(pasted.split(1, dim=1), original.split(1, dim=1), strict=True)
    total = sum(_total(_ssim_map(x, y) * removed) for x, y in pairs)
    similarity: Tensor = (total / (_total(removed) * pixels.shape[1])).flatten()
    return similarity


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
