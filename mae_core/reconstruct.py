"""From an image to four panels: original, masked, reconstruction, pasted.

    out = Reconstructor(model)("photo.jpg", mask_ratio=0.75, seed=2)
    out.strip().save("panels.png")
    out.panels()["pasted"].save("pasted.png")

An image of 1024 x 1024 pixels in patches of 16 takes at most 300 MiB beyond the weights, for models
up to the size of `large`, in float32 on a CPU; and no forward pass has more patches than that one.
"""

import copy
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from mae_core.config import ModelConfig, NotNegativeInt, validated
from mae_core.devices import choose_device, choose_precision, choose_threads
from mae_core.errors import ConfigError, ImageError, MAEError, MaskError
from mae_core.images import (
    FITS,
    DecodedImage,
    ImageSource,
    channels_to_tensor,
    fit_image,
    fitted_box,
    fitted_size,
    is_channels,
    open_image,
    png_bytes,
    size_of,
    to_pil,
    to_tensor,
    viewable,
)
from mae_core.measurements import RangeSpec
from mae_core.metrics import compose, removed_psnr, removed_ssim
from mae_core.model.losses import reconstruction_loss
from mae_core.model.mae import MaskedAutoencoder, forward_flops
from mae_core.model.masking import PatchMask, custom_mask, draw_mask
from mae_core.model.patches import (
    denormalize_patches,
    grid_of,
    patch_statistics,
    patchify,
    pixel_mask,
    unpatchify,
)
from mae_core.normpix import estimate_statistics
from mae_core.weights.files import write_atomically

__all__ = [
    "MAX_IMAGE_SIZE",
    "MAX_PATCHES",
    "NORM_PIX_VIEWS",
    "Prepared",
    "Rebuilt",
    "Reconstruction",
    "ReconstructionRequest",
    "Reconstructor",
    "mask_from_drawing",
    "open_fitted",
    "paste_back",
    "paste_panel",
    "rebuild",
    "to_pixels",
]

# How a model of per-patch normalised pixels can be shown (see `rebuild`), the default first.
NORM_PIX_VIEWS = ("estimated", "answer", "normalized")

# The largest `image_size` that can be asked for, in pixels, and the most patches of an image, or
# of the images of one forward pass: 1024 x 1024 pixels in patches of 16.
MAX_IMAGE_SIZE = 1024
MAX_PATCHES = 4096

# What a removed patch looks like in the masked panel: mid grey, 0..1.
REMOVED_COLOUR = 0.5

# What one deviation of a patch's pixels becomes in the view `normalized`, in pixels of 0..1: two
# deviations to either side of mid grey fill the range, and few pixels of photographs lie beyond.
_NORMALIZED_CONTRAST = 0.25

Result = TypeVar("Result")


@dataclass(frozen=True)
class ReconstructionRequest:
    """What is to be rebuilt, and how.

    Attributes:
        image: Bytes of an image file, a path, a PIL image or an array (see `open_image`),
            which are made grey for a model of one channel; or, for a model of any number of
            channels, a tensor or an array (C, H, W) of floats in 0..1, whose sides are
            multiples of the patch side. Such channels are not resized.
        mask_ratio: Fraction removed, 0..1.
        seed: Of the mask; the same seed gives the same mask on every device.
        strategy: `random`, `block` or `grid`.
        fit: `crop`, `squash` or `whole` (see `fit_image`).
        mask: (h, w) booleans, True = removed, instead of ratio, seed and strategy.
        image_size: Pixels that `fit` aims at, a multiple of the patch side and at most
            `MAX_IMAGE_SIZE`: both sides, or of a whole frame the shorter one. The model's own if
            not given.
        view: How a model of per-patch normalised pixels is shown, one of `NORM_PIX_VIEWS` (see
            `rebuild`). Other models have one view, and it means nothing to them.
        bands: Which bands of the image are the model's channels, numbered from 1; those it was
            trained on if empty.
        value_range: `auto`, `dtype` or pairs, for values of more than 8 bits (see
            `open_image`); what the model was trained on, else `auto`, if not given.
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
class Reconstruction:
    """One image rebuilt: pixels, figures, and the request as it was carried out.

    Attributes:
        original: (C, H, W) pixels in 0..1, as the model saw the image.
        reconstruction: (C, H, W) the model's image in 0..1, visible patches too.
        removed: (h, w) booleans, True = removed.
        loss: The model's loss on removed patches; None if nothing was removed.
        psnr: Of the removed patches, in dB, for pixels in 0..1; None likewise, and in the view
            `normalized`. In the view `answer` it is not the model's own: that one is told the
            brightness and contrast of what it is to guess.
        ssim: Of the pasted image, averaged over removed pixels, at most 1; None as `psnr`.
        mask_ratio: With a custom mask, the share that it removed.
        seed: Not used by a custom mask.
        strategy: `custom` for a mask that was given.
        fit: `none` for channels, which are taken as they are.
        view: None where the model predicts pixels.
        seconds: Of the forward pass, with all images that shared it.
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
    def patches(self) -> int:
        """L: patches of the image."""
        return int(self.removed.size)

    @property
    def visible(self) -> int:
        """K: patches the model saw."""
        return int((~self.removed).sum())

    def panels(self, show: Sequence[int] = ()) -> dict[str, Image.Image]:
        """The images `original`, `masked`, `reconstruction` and `pasted`, of one size.

        Args:
            show: Channels of the model, as `viewable` takes them: three, numbered from 1, to be
                seen as red, green and blue, or one, in grey.
        """
        mask = torch.from_numpy(self.removed.astype(np.float32))
        removed = pixel_mask(mask, self.grid_size, self.patch_size)[0]
        original, rebuilt = viewable(self.original, show), viewable(self.reconstruction, show)
        grey = torch.full_like(original, REMOVED_COLOUR)
        return {
            "original": to_pil(original),
            "masked": to_pil(compose(original, grey, removed)),
            "reconstruction": to_pil(rebuilt),
            "pasted": to_pil(compose(original, rebuilt, removed)),
        }

    def strip(self, gap: int = 8, show: Sequence[int] = ()) -> Image.Image:
        """The four `panels` in one row on white, `gap` pixels (0 or more) apart."""
        gap = validated(NotNegativeInt, gap, "gap")
        panels = list(self.panels(show).values())
        width, height = panels[0].size
        row = Image.new("RGB", (4 * width + 3 * gap, height), "white")
        for i, panel in enumerate(panels):
            row.paste(panel, (i * (width + gap), 0))
        return row

    def facts(self) -> dict[str, Any]:
        """What was done and how well it went, as plain data for JSON."""
        height, width = self.original.shape[1:]
        return {
            "model": self.model, "device": self.device, "precision": self.precision,
            "mask_ratio": self.mask_ratio, "seed": self.seed, "strategy": self.strategy,
            "fit": self.fit, "view": self.view, "height": height, "width": width,
            "visible": self.visible, "patches": self.patches,
            "loss": self.loss, "psnr": self.psnr, "ssim": self.ssim, "seconds": self.seconds,
        }  # fmt: skip

    def save(self, folder: str | Path, show: Sequence[int] = ()) -> None:
        """Write the panels, their strip (`panels.png`) and the facts (`metrics.json`)."""
        folder = Path(os.path.expanduser(folder))
        for name, panel in {**self.panels(show), "panels": self.strip(show=show)}.items():
            write_atomically(folder / f"{name}.png", methodcaller("write_bytes", png_bytes(panel)))
        text = json.dumps(self.facts(), indent=2) + "\n"
        write_atomically(folder / "metrics.json", methodcaller("write_text", text))


class Prepared(NamedTuple):
    """A checked request, ready for the model.

    Attributes:
        request: As it is carried out: what a custom mask or channels make of its fields.
        images: (1, C, H, W), normalised, on the CPU.
        patch_mask: One mask, on the CPU.
    """

    request: ReconstructionRequest
    images: Tensor
    patch_mask: PatchMask


class Reconstructor:
    """A model made ready to rebuild images.

    Attributes:
        model: The masked autoencoder, in evaluation mode, where and in what precision it runs.
    """

    def __init__(
        self, model: MaskedAutoencoder, name: str | None = None, *, device: str = "auto",
        precision: str = "auto", in_place: bool = False,
    ) -> None:  # fmt: skip
        """Make a model ready to run.

        Args:
            model: Stays as it is. It is copied if it is elsewhere, in another precision or in
                training mode, and shared otherwise.
            name: Of the weights, for people; the model's own, else `model`, if not given.
            device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps` (see `choose_device`).
            precision: `auto`, `float32` or `bfloat16` (see `choose_precision`).
            in_place: Move and convert `model` itself, which saves the copy. For a model with
                no other user.
        """
        if not isinstance(model, MaskedAutoencoder):
            raise ConfigError(f"{model!r} is not a model; give mae_core.load(...)")
        self.name = name or model.name or "model"
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        dtype = getattr(torch, self.precision)
        if not in_place:
            there = torch.empty(0, device=self.device).device  # `cuda` with its number
            training = any(module.training for module in model.modules())
            formats = {(tensor.device, tensor.dtype) for tensor in model.state_dict().values()}
            if training or formats != {(there, dtype)}:
                model = copy.deepcopy(model)
        self.model = model.to(self.device, dtype).eval()

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.model.config

    def __call__(
        self, image: ImageSource | Tensor, mask_ratio: float = 0.75, seed: int = 0, *,
        strategy: str = "random", fit: str = "crop", mask: ArrayLike | None = None,
        image_size: int | None = None, view: str = "estimated", bands: Sequence[int] = (),
        value_range: RangeSpec | None = None,
    ) -> Reconstruction:  # fmt: skip
        """Remove patches of an image and rebuild it.

        The arguments are the fields of a `ReconstructionRequest`, which says what they mean.

        Raises:
            MAEError: If the image cannot be used, or an argument is not allowed.
        """
        request = ReconstructionRequest(
            image, mask_ratio, seed, strategy, fit, mask, image_size, view, bands, value_range
        )
        (result,) = self.batch([request])
        if isinstance(result, MAEError):
            raise result
        return result

    def batch(self, requests: Sequence[ReconstructionRequest]) -> list[Reconstruction | MAEError]:
        """Rebuild several images, those that allow it in one forward pass.

        Images share a pass where size, number of visible patches and view are alike, and they
        have at most `MAX_PATCHES` patches together. Each gets the mask that it gets alone, and in
        float32 the same pixels but for rounding.

        Returns:
            For each request its result, or the error that a call with it alone would raise: one
            that cannot be done does not spoil the others.
        """
        results: dict[int, Reconstruction | MAEError] = {}
        prepared: dict[int, Prepared] = {}
        alike: dict[Hashable, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            try:
                prepared[i] = _, image, mask = self.prepare(request)
            except MAEError as error:
                results[i] = error
            else:
                alike[image.shape, mask.num_visible, request.view].append(i)
        for group in alike.values():
            most = MAX_PATCHES // prepared[group[0]][2].num_patches
            for start in range(0, len(group), most):
                shared = group[start : start + most]
                rebuilt = self._reconstruct([prepared[i] for i in shared])
                results.update(zip(shared, rebuilt, strict=True))
        return [results[i] for i in range(len(requests))]

    def threads_for(self, requests: Sequence[ReconstructionRequest]) -> int:
        """CPU threads worth giving to `batch` with these, for `torch.set_num_threads`.

        Programs call it; a `Reconstructor` leaves the settings of its process alone.
        """
        flops = 0
        for request in requests:
            side = (request.image_size or self.config.image_size) // self.config.patch_size
            # At any mask ratio the same, so that a page can tell how many workers a model is worth.
            flops += forward_flops(self.config, (side, side), 0.0)
        return choose_threads(flops)

    def rebuild(self, images: Tensor, patch_mask: PatchMask, view: str) -> "Rebuilt":
        """Run the model, as the function `rebuild` does."""
        return self.run_model(rebuild, images, patch_mask, view)

    def run_model(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Call `work(model, *arguments)` where the model's parameters are.

        Nothing else reads them, so that a sub-class can run the model elsewhere: `work` is a
        function of a module, and what it takes and gives can be pickled, tensors on the CPU.
        """
        return work(self.model, *arguments)

    def on_cpu(self) -> "Reconstructor":
        """A copy that runs on the CPU; it takes none of the device's memory."""
        with torch.device("meta"):
            model = MaskedAutoencoder(self.config)
        state = {name: tensor.cpu().clone() for name, tensor in self.model.state_dict().items()}
        model.load_state_dict(state, assign=True)
        return Reconstructor(model, self.name, device="cpu", in_place=True)

    def prepare(self, request: ReconstructionRequest) -> Prepared:
        """Check a request, fit its image to the model, and draw its mask.

        Raises:
            MAEError: If the image cannot be used, or a field is not allowed.
        """
        _check_view(request.view)
        config, image = self.config, request.image
        if is_channels(image, config.in_chans):
            if request.image_size is not None:
                raise ConfigError("image_size resizes images only; resize the channels yourself")
            pixels = channels_to_tensor(image, config.mean, config.std)
            request = replace(request, fit="none")
        else:
            assert not isinstance(image, Tensor)  # all tensors are channels
            fitted = open_fitted(
                image, config, request.fit, request.image_size, request.bands, request.value_range
            )
            pixels = to_tensor(fitted, config.mean, config.std)
        grid_size = self.model.grid_of(pixels)
        _check_patches(*grid_size)
        if request.mask is None:
            mask = draw_mask(request.strategy, 1, grid_size, request.mask_ratio, seed=request.seed)
            return Prepared(request, pixels, mask)
        if not isinstance(request.seed, Integral):
            raise MaskError(f"seed is {request.seed!r}; give a whole number, also with a mask")
        mask = custom_mask(request.mask)
        if np.shape(request.mask) != grid_size:
            raise MaskError(
                f"the mask is of shape {np.shape(request.mask)}; this image has {grid_size[0]} "
                f"rows of {grid_size[1]} patches",
                code="mask_shape", rows=grid_size[0], columns=grid_size[1],
            )  # fmt: skip
        ratio = 1 - mask.num_visible / mask.num_patches
        request = replace(request, strategy="custom", mask_ratio=ratio)
        return Prepared(request, pixels, mask)

    def _reconstruct(self, prepared: Sequence[Prepared]) -> list[Reconstruction]:
        """One forward pass of alike requests."""
        requests = [request for request, _, _ in prepared]
        images = torch.cat([pixels for _, pixels, _ in prepared])
        patch_mask = PatchMask.cat([mask for _, _, mask in prepared])
        begun = time.perf_counter()
        rebuilt = self.rebuild(images, patch_mask, requests[0].view)
        seconds = time.perf_counter() - begun

        grid_size, patch_size = self.model.grid_of(images), self.config.patch_size
        psnr = ssim = torch.full_like(rebuilt.loss, math.nan)
        if rebuilt.view != "normalized":  # whose pixels are not the original's
            removed = pixel_mask(patch_mask.mask, grid_size, patch_size)
            psnr = removed_psnr(rebuilt.pixels, rebuilt.original, removed)
            ssim = removed_ssim(rebuilt.pixels, rebuilt.original, removed)
        return [
            Reconstruction(
                original=rebuilt.original[i], reconstruction=rebuilt.pixels[i],
                removed=(patch_mask.mask[i].numpy() > 0).reshape(grid_size),
                patch_size=patch_size, loss=_finite(rebuilt.loss[i]),
                psnr=_finite(psnr[i]), ssim=_finite(ssim[i]),
                # NumPy's numbers too, which JSON cannot hold.
                mask_ratio=float(request.mask_ratio), seed=int(request.seed),
                strategy=request.strategy, fit=request.fit, view=rebuilt.view,
                model=self.name, device=str(self.device), precision=self.precision,
                seconds=seconds,
            )
            for i, request in enumerate(requests)
        ]  # fmt: skip


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def open_fitted(
    source: ImageSource, config: ModelConfig, fit: str = "crop", image_size: int | None = None,
    bands: Sequence[int] = (), value_range: RangeSpec | None = None,
) -> DecodedImage:  # fmt: skip
    """Any image with the channels and the size of a model; see `ReconstructionRequest`.

    Raises:
        ImageError: If the image cannot be used, or would have more than `MAX_PATCHES` patches.
    """
    image = open_image(
        source, config.in_chans, bands=bands or config.bands,
        value_range=value_range or config.value_range or "auto",
    )  # fmt: skip
    patch, side = config.patch_size, config.image_size
    if image_size is not None:
        most = MAX_IMAGE_SIZE // patch * patch
        # NumPy's integers are Integral too, and so is bool.
        whole = isinstance(image_size, Integral) and not isinstance(image_size, bool)
        if not whole or not patch <= image_size <= most or image_size % patch:
            raise ConfigError(
                f"image_size is {image_size!r}; this model takes multiples of {patch} from {patch} "
                f"to {most}"
            )
        side = int(image_size)
    width, height = fitted_size(size_of(image), fit, image_size=side, patch_size=patch)
    _check_patches(height // patch, width // patch)
    return fit_image(image, fit, image_size=side, patch_size=patch)


def mask_from_drawing(
    drawing: NDArray[Any], size: tuple[int, int], config: ModelConfig, fit: str = "crop",
    image_size: int | None = None,
) -> NDArray[np.bool_]:  # fmt: skip
    """A mask from a black-and-white drawing over an image.

    Args:
        drawing: Numbers of the shape of the patches, or of the aspect of the image, which it is
            fitted with; 0 = visible. A patch is removed if more than half of it is not 0.
        size: (width, height) of the image, as it was opened.
        config: Of the model.
        fit: "crop", "squash" or "whole".
        image_size: In pixels; the model's own if not given.

    Returns:
        (h, w) booleans, True = removed.

    Raises:
        MaskError: If the drawing has another shape.
    """
    width, height = size
    side, image_size = config.patch_size, image_size or config.image_size
    fitted = fitted_size(size, fit, image_size=image_size, patch_size=side)
    columns, rows = (pixels // side for pixels in fitted)
    drawn: NDArray[np.bool_] = np.asarray(drawing) != 0
    if drawn.shape == (rows, columns):
        return drawn
    # Large images are opened smaller than their file, so the aspect is compared.
    if drawn.ndim != 2 or abs(drawn.shape[1] * height / width / drawn.shape[0] - 1) > 0.01:
        raise MaskError(
            f"the drawn mask has shape {drawn.shape}; give the image's, ({height}, {width}) as it "
            f"is opened, or ({rows}, {columns}) as its patches"
        )
    white = Image.fromarray(np.where(drawn, 255, 0).astype(np.uint8))
    white = white.resize((width, height), Image.Resampling.BOX)
    pixels = np.asarray(fit_image(white, fit, image_size=image_size, patch_size=side))
    removed: NDArray[np.bool_] = pixels.reshape(rows, side, columns, side).mean(axis=(1, 3)) > 127.5
    return removed


def paste_back(
    picture: Image.Image, result: Reconstruction, show: Sequence[int] = ()
) -> Image.Image:
    """`paste_panel` of a result; `show` as in `Reconstruction.panels`."""
    prediction = to_pil(viewable(result.reconstruction, show))
    return paste_panel(picture, prediction, result.removed, result.fit)


def paste_panel(
    picture: Image.Image, prediction: Image.Image, removed: NDArray[np.bool_], fit: str
) -> Image.Image:
    """The picture at its own resolution, with the removed patches replaced by the prediction.

    All other pixels are the picture's own. The prediction is resized bicubically to the part of
    the picture that the model saw, whose edges are rounded to whole pixels.

    Args:
        picture: What was rebuilt, decoded and upright, of any resolution; RGB or grey.
        prediction: The panel `reconstruction`.
        removed: (h, w) booleans, True = removed.
        fit: With which the picture was rebuilt.

    Raises:
        ImageError: If it was not fitted, or the picture is of another mode.
    """
    if fit not in FITS or picture.mode not in ("RGB", "L"):
        raise ImageError(
            f"the picture is of mode {picture.mode} and was rebuilt with the fit {fit!r}; give one "
            f"of mode RGB or L, rebuilt with {', '.join(FITS)}"
        )
    box = fitted_box(picture.size, fit, prediction.width)
    width, height = box[2] - box[0], box[3] - box[1]
    # A pixel belongs to the patch that its middle lies in.
    rows, columns = (
        (2 * np.arange(pixels) + 1) * patches // (2 * pixels)
        for pixels, patches in zip((height, width), removed.shape, strict=True)
    )
    holes = Image.fromarray(np.where(removed[rows[:, None], columns], 255, 0).astype(np.uint8))
    enlarged = prediction.resize((width, height), Image.Resampling.BICUBIC)
    pasted = picture.copy()
    pasted.paste(enlarged.convert(picture.mode), box[:2], holes)
    return pasted


def _check_patches(h: int, w: int) -> None:
    if h * w > MAX_PATCHES:
        raise ImageError(
            f"the image would have {h} x {w} patches, and at most {MAX_PATCHES} are taken; "
            "give a smaller image_size, or crop it",
            code="image_limit",
        )


def _check_view(view: str) -> None:
    if view not in NORM_PIX_VIEWS:
        raise ConfigError(f"no view is called {view!r}; choose {', '.join(NORM_PIX_VIEWS)}")


@dataclass(frozen=True)
class Rebuilt:
    """A batch of images rebuilt, on the CPU in float32.

    Attributes:
        original: (N, C, H, W) pixels in 0..1.
        pixels: (N, C, H, W) the model's images in 0..1.
        loss: (N,) mean squared error of the model's target over removed patches; NaN where
            nothing was removed.
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
    * `answer`: both are the original's own, so hidden pixels reach the image. What others
      show; not to be mistaken for what the model knows.
    * `normalized`: the prediction as it came, around mid grey. No pixel is looked at, and it
      is not to be compared with the original.

    Args:
        model: In evaluation mode; on any device, in any precision.
        images: (N, C, H, W), normalised, on the CPU.
        patch_mask: N masks, on the CPU.
        view: One of `NORM_PIX_VIEWS`; means nothing to models that predict pixels.
    """
    _check_view(view)
    config, device, grid_size = model.config, model.pos_embed.device, model.grid_of(images)
    latent = model.encode(images.to(device), patch_mask.to(device))
    pred = model.decode(latent, patch_mask.ids_restore.to(device), grid_size).float().cpu()
    target = model.target(images)
    loss = torch.stack([*map(reconstruction_loss, pred, target, patch_mask.mask)])  # (N,)
    pixels = to_pixels(config, model.patches_from(pred), images, patch_mask, view)
    return Rebuilt(_shown(config, images), pixels, loss, view if config.norm_pix else None)


def to_pixels(
    config: ModelConfig, patches: Tensor, images: Tensor, patch_mask: PatchMask,
    view: str = "estimated",
) -> Tensor:  # fmt: skip
    """Bring predicted patches back to pixels in 0..1; all tensors are on the CPU.

    Args:
        config: Of the model that predicted them.
        patches: (N, L, P), as `MaskedAutoencoder.patches_from` gives them.
        images: (N, C, H, W), normalised: what the model was given.
        patch_mask: N masks.
        view: As in `rebuild`.

    Returns:
        (N, C, H, W).
    """
    _check_view(view)
    grid_size = grid_of(images.shape[2], images.shape[3], config.patch_size)
    if config.norm_pix and view == "normalized":
        grey = unpatchify(patches, config.patch_size, grid_size) * _NORMALIZED_CONTRAST + 0.5
        return grey.clamp(0, 1)
    if config.norm_pix:
        statistics = (
            patch_statistics(patchify(images, config.patch_size))
            if view == "answer"
            else estimate_statistics(images, patch_mask.mask, grid_size, config.patch_size)
        )
        patches = denormalize_patches(patches, statistics)
    return _shown(config, unpatchify(patches, config.patch_size, grid_size)).clamp(0, 1)


def _shown(config: ModelConfig, images: Tensor) -> Tensor:
    """Normalised images as pixels."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (config.mean, config.std))
    return images * std + mean
