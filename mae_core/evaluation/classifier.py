"""Fine-tuned classifiers on whole images: what is in them, and how often that is right.

report = measure("mae-base-finetuned", "imagenet", ClassifierConfig(class_names="imagenet"))
report["accuracy"], report["interval"], report["per_class"]
"""

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mae_core._compat import ensure_torchvision_imports
from mae_core.config import Checked, ModelConfig, NotNegativeInt, PositiveShare, to_dict
from mae_core.data.datasets import find_images, shown
from mae_core.data.labelled import LabelledImages, Part, open_part
from mae_core.data.transforms import Crop, centre_crop
from mae_core.devices import choose_device, choose_precision
from mae_core.errors import ConfigError, DataError
from mae_core.evaluation.features import computed
from mae_core.evaluation.scores import figures_of, score
from mae_core.weights.formats import OFFICIAL_CROP_SHARE, Weights
from mae_core.weights.registry import read_weights, weights_name

if TYPE_CHECKING:
    from mae_core.model.blocks import VisionTransformer

__all__ = ["ClassifierConfig", "PredictConfig", "classify", "measure", "predict"]

_log = logging.getLogger(__name__)

# How ImageNet calls its classes.
_SYNSET = re.compile(r"n\d{8}")

# The confusion matrix's column of what is predicted and is no class of the data.
_ANOTHER = "(another class)"


@dataclass(frozen=True)
class PredictConfig(Checked):
    """How images are shown to a classifier.

    Attributes:
        image_size: Side of the squares in pixels, a multiple of the patch side; 0 for the
            classifier's own.
        crop_share: Share of the shorter side that the centre square has; None for the one that the
            weights were measured on. MAE's fine-tuning measures at 0.875 (a resize to 256 pixels
            and a crop of 224), and larger sizes than 224 at 1.
        precision: `float32`, `bfloat16` (autocast), or `auto`, see `choose_precision`.
        class_names: File with the name of a class on each line, in the order of the outputs, or
            `imagenet` for its 1000 synsets; empty for those that the weights have.
    """

    image_size: NotNegativeInt = 0
    crop_share: PositiveShare | None = None
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    class_names: str = ""


@dataclass(frozen=True)
class ClassifierConfig(PredictConfig):
    """Which labelled images a classifier is measured on.

    Attributes:
        part: As for `open_part`: `val`, `train`, or `all` of a folder of classes.
    """

    part: Part = "val"


@torch.inference_mode()
def classify(
    vit: "VisionTransformer", config: ModelConfig, images: LabelledImages | Sequence[Path | bytes],
    *, side: int, crop_share: float = OFFICIAL_CROP_SHARE, precision: str = "float32",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The logits of a classifier for the centre squares of images.

    Args:
        vit: On its device, in evaluation mode; its images are of `side` pixels.
        config: Channels, bands, value range and statistics of its images.
        images: Files; those that cannot be read are left out, with a warning.
        side: Of the squares in pixels.
        crop_share: Share of the shorter side that the square has, above 0 to 1.
        precision: `float32`, `bfloat16` by autocast, or `auto`.

    Returns:
        (M, C) float32 on the CPU, and (M,) the places of the M images that can be read.

    Raises:
        ConfigError: If the ViT takes images of another size.
        DataError: If no image can be read.
    """
    size = tuple(vit.patch_embed.img_size or ())
    if size != (side, side):
        raise ConfigError(
            f"images are of {side}x{side} pixels, and this classifier takes "
            f"{'x'.join(map(str, size))}; build it by build_classifier(image_size={side})"
        )
    if not 0 < crop_share <= 1:
        raise ConfigError(f"crop_share is {crop_share}; give a number above 0, at most 1")
    device = next(vit.parameters()).device
    is_narrow = choose_precision(precision, device) == "bfloat16"

    def logits(batch: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=is_narrow):
            outputs: Tensor = vit(batch)
        return outputs.float()

    def crop_of(_: int, height: int, width: int) -> Crop:
        return centre_crop(height, width, crop_share)

    if isinstance(images, LabelledImages):
        files, names = images.files, images.names
    else:
        files, names = images, [_name(file) for file in images]
    return computed(
        logits, files, names, config, side=side, crop_of=crop_of, device=device, range_of=files,
        title="classify",
    )  # fmt: skip


def _name(file: Path | bytes) -> str:
    return str(file) if isinstance(file, Path) else f"a file of {len(file):,} bytes"


def measure(
    weights: str | Path | Weights, data: str | Path, config: ClassifierConfig,
    *, device: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Measure the accuracy of a classifier on labelled images.

    The classes of the data are found among the classifier's by their names, where these are known.
    Else both have to be as many, and are in the same order.

    Args:
        weights: As `read_weights` takes them, or gave them.
        data: As for `open_part`.
        config: Which images, and how they are shown.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Returns:
        Plain data as of `probe`, with one seed. `top5` is the share of images whose class is among
        the five likeliest, where there are more than five. Where the classifier has other classes
        than the data, `classes` and `confusion` have one more, for all of them.

    Raises:
        MAEError: If the weights are no classifier, the data cannot be used, or the classes of the
            data cannot be found among the classifier's.
    """
    begun = time.perf_counter()
    name, read = _read(weights)
    side, place = config.image_size or read.config.image_size, choose_device(device)
    vit = read.build_classifier(image_size=side)
    images = open_part(data, config.part)
    names = _class_names(read, config)
    outputs = _outputs_of(images.classes, names, len(read.state["head.bias"]))
    logits, rows = classify(
        vit.to(place), read.config, images, side=side,
        crop_share=config.crop_share or read.crop_share,
        precision=config.precision,
    )  # fmt: skip
    labels, count = torch.from_numpy(images.labels)[rows], len(images.classes)
    others = logits.shape[1] > count
    number = torch.full((logits.shape[1],), count)
    number[outputs] = torch.arange(count)
    classes = [*images.classes, *([_ANOTHER] if others else [])]
    report = figures_of([score(number[logits.argmax(dim=1)], labels, len(classes))], classes)
    report["per_class"].pop(_ANOTHER, None)
    if logits.shape[1] > 5:
        best = logits.topk(5, dim=1).indices
        report["top5"] = (best == outputs[labels][:, None]).any(dim=1).float().mean().item()
    return {
        "method": "classifier", "weights": name, "data": str(data), **report, "classes": classes,
        "outputs": logits.shape[1], "classes_by": "names" if names else "order",
        "part": config.part, "measured": len(rows), "unreadable": len(images) - len(rows),
        "config": to_dict(config), "seconds": round(time.perf_counter() - begun, 1),
        "device": str(place),
    }  # fmt: skip


def predict(
    weights: str | Path | Weights, pictures: Sequence[str | Path], config: PredictConfig,
    *, top: int = 5, device: str = "auto",
) -> dict[str, Any]:  # fmt: skip
    """The likeliest classes of pictures.

    Args:
        weights: As `read_weights` takes them, or gave them.
        pictures: Files, and folders of them.
        config: How they are shown.
        top: Classes of each picture.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Returns:
        Plain data: `pictures` has for each that can be read its `file` and its `classes`, the
        likeliest first, with `output`, `name` (None if not known) and `probability`; `unreadable`
        names the others.

    Raises:
        MAEError: If the weights are no classifier, or no picture can be read.
    """
    if top < 1:
        raise ConfigError(f"top is {top}; give 1 or more")
    name, read = _read(weights)
    side, place = config.image_size or read.config.image_size, choose_device(device)
    vit, names = read.build_classifier(image_size=side), _class_names(read, config, described=True)
    files, unreadable = list[Path](), list[str]()
    for picture in pictures:
        path = Path(picture).expanduser()
        try:
            files += find_images(path, quiet=True) if path.is_dir() else [path]
        except DataError as error:
            _log.warning("left out %s: %s", shown(path), error)
            unreadable.append(shown(path))
    if not files:
        raise DataError("no picture can be read; give files, or folders with pictures in them")
    logits, rows = classify(
        vit.to(place), read.config, files, side=side,
        crop_share=config.crop_share or read.crop_share,
        precision=config.precision,
    )  # fmt: skip
    probabilities, numbers = logits.softmax(dim=1).topk(min(top, logits.shape[1]), dim=1)
    readable = set(rows.tolist())
    unreadable += [shown(file) for i, file in enumerate(files) if i not in readable]
    found = [
        {
            "file": shown(files[row]),
            "classes": [
                {"output": n, "name": names[n] if names else None, "probability": round(p, 6)}
                for n, p in zip(outputs, shares, strict=True)
            ],
        }
        for row, outputs, shares in zip(
            rows.tolist(), numbers.tolist(), probabilities.tolist(), strict=True
        )
    ]
    return {
        "weights": name, "outputs": logits.shape[1], "pictures": found, "unreadable": unreadable,
        "config": to_dict(config), "device": str(place),
    }  # fmt: skip


def _read(weights: str | Path | Weights) -> tuple[str, Weights]:
    if isinstance(weights, Weights):
        return weights.name, weights
    return weights_name(weights), read_weights(weights)


# --- which output is which class


def _class_names(
    weights: Weights, config: PredictConfig, *, described: bool = False
) -> tuple[str, ...]:
    """Names of the outputs, those of ImageNet in words too if `described`; empty if unknown."""
    given, count = config.class_names, len(weights.state["head.bias"])
    if not given:
        return weights.classes
    if given == "imagenet":
        names = _imagenet(described=described)
    else:
        try:
            text = Path(given).expanduser().read_text("utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"class_names={given}: it cannot be read as text ({error}); give a file with the "
                "name of a class on each line, or imagenet"
            ) from error
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) != count:
        raise ConfigError(
            f"class_names={given} has {len(names):,} names, and the classifier has {count:,} "
            "outputs; give one for each"
        )
    return names


def _imagenet(*, described: bool) -> tuple[str, ...]:
    ensure_torchvision_imports()
    from timm.data.imagenet_info import ImageNetInfo

    known = ImageNetInfo("imagenet-1k")
    return tuple(
        f"{name} {known.label_name_to_description(name)}" if described else name
        for name in known.label_names()
    )


def _outputs_of(classes: Sequence[str], names: Sequence[str], num_outputs: int) -> Tensor:
    """(C,) the output of each class of the data."""
    if not names:
        if len(classes) == num_outputs:
            _log.warning(
                "nothing names the classifier's %d outputs: they are taken for the classes of the "
                "data in order; class_names= says otherwise", num_outputs,
            )  # fmt: skip
            return torch.arange(num_outputs)
        advice = "give the names of its classes, by class_names=FILE"
        if all(map(_SYNSET.fullmatch, classes)):
            advice = "give the names of its classes: class_names=imagenet if it has ImageNet's 1000"
        raise DataError(
            f"the data has {len(classes):,} classes and the classifier {num_outputs:,} outputs, "
            f"which nothing names, so it cannot be told which is which; {advice}"
        )
    places = dict[str, list[int]]()
    for i, name in enumerate(names):
        places.setdefault(name, []).append(i)
    if missing := [name for name in classes if name not in places]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"the classifier has no class called {', '.join(map(shown, missing[:5]))}{more}; its "
            f"classes are called as {', '.join(map(shown, names[:5]))}: name the folders so, or "
            "give class_names=FILE"
        )
    if doubled := [name for name in classes if len(places[name]) > 1]:
        raise DataError(
            f"the classifier has more than one class called {shown(doubled[0])}; give "
            "class_names=FILE with a name of its own for each output"
        )
    return torch.tensor([places[name][0] for name in classes])
