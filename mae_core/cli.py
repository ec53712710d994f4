"""The command `mae`: one sub-command for each thing that people do with a model.

`mae COMMAND --help` shows its flags and examples; each is the docstring of a function below.
`python -m mae_core` is the same command. Nothing heavy is imported before a sub-command runs.
"""

import argparse
import dataclasses
import difflib
import functools
import inspect
import io
import json
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from mae_core.errors import ConfigError, MAEError, MaskError

if TYPE_CHECKING:
    from PIL.Image import Image

    from mae_core.config import ModelConfig
    from mae_core.evaluation.probes import KnnConfig, LinearConfig
    from mae_core.finetune import Method
    from mae_core.images import DecodedImage
    from mae_core.photographs import ImageLimits
    from mae_core.reconstruct import ReconstructionRequest
    from mae_core.training.dense import DenseConfig

# What the library takes, said here too so that `--help` does not wait for it; a test compares them.
STRATEGIES = ("random", "block", "grid")
FITS = ("crop", "squash", "whole")
VIEWS = ("estimated", "answer", "normalized")
FORMATS = ("mae_core", "official", "huggingface", "timm", "onnx", "torch_export")

_Command: TypeAlias = Callable[[argparse.Namespace], int]
_AddArguments: TypeAlias = Callable[[argparse.ArgumentParser], None]


def entry(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command in a process of its own, and end the process."""
    args = list(sys.argv[1:] if argv is None else argv)
    # OpenMP's threads spin at each barrier until the last of them arrives. If another program
    # occupies a core, that one is not scheduled and the spinning wastes its time: a step takes
    # several times as long. libgomp reads this when torch is imported, so it is set before.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without ± loses that, not the rest
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mae_core").setLevel(logging.INFO)
    status = main(args)
    if args[:1] in (["train"], ["evaluate"]):
        from mae_core.distributed import end_process

        end_process(status)
    sys.exit(status)


def main(argv: Sequence[str]) -> int:
    """Run a sub-command; the exit status is 2 after an `MAEError`, printed as `error: …`."""
    try:
        status = mae(argv)
        sys.stdout.flush()
    except MAEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # `mae info ... | head` has read enough; Python's own flush at the end has to go elsewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as shells report it
    except OSError as error:
        # A name that no file system takes, a folder that may not be entered.
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT
    return status


def mae(argv: Sequence[str]) -> int:
    """Run a sub-command and return its exit status.

    Raises:
        MAEError: If the arguments or what they name cannot be used.
    """
    parser = _Parser(prog="mae", description="Masked autoencoders: reconstruct, train, measure.")
    _add_commands(parser, COMMANDS)
    _check_command(argv[:1], COMMANDS, "mae has no command")
    if argv[:1] == ["evaluate"]:
        _check_command(argv[1:2], EVALUATIONS, "mae evaluate measures no")
    args, unknown = parser.parse_known_args(argv or ["--help"])
    if "fields" in args:  # argparse of Python 3.11 takes none after an option
        args.fields += [word for word in unknown if not word.startswith("-")]
        unknown = [word for word in unknown if word.startswith("-")]
    if unknown:
        command = " ".join(argv[: 1 + (argv[0] == "evaluate")])
        raise ConfigError(f"mae {command} has no {unknown[0]}; see mae {command} --help")

    args.line = shlex.join(["mae", *argv])  # a report says what made it

    import torch

    from mae_core.devices import choose_threads

    torch.set_num_threads(choose_threads())
    status: int = args.function(args)
    return status


def _name(function: _Command) -> str:
    return function.__name__.removeprefix("_").replace("_", "-")


def _add_commands(
    parser: argparse.ArgumentParser, commands: Mapping[_Command, _AddArguments]
) -> None:
    """Commands by their functions, whose docstrings are their help."""
    parsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for function, add_arguments in commands.items():
        manual = inspect.getdoc(function) or ""
        command = parsers.add_parser(
            _name(function), help=manual.partition(".\n")[0], description=manual,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        command.set_defaults(function=function)
        add_arguments(command)


def _check_command(given: Sequence[str], commands: Iterable[_Command], trouble: str) -> None:
    names = [_name(function) for function in commands]
    if given and not given[0].startswith("-") and given[0] not in names:
        near = difflib.get_close_matches(given[0], names, n=1)
        advice = f"did you mean {near[0]}?" if near else f"give {', '.join(names)}"
        raise ConfigError(f"{trouble} {given[0]!r}; {advice}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}; give numbers such as 3,2,1") from error


def _add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """What `reconstruct` and `evaluate` share."""
    add = parser.add_argument
    add("--mask-ratio", type=float, default=0.75, help="fraction removed, 0 to 1; 0.75")
    add("--strategy", choices=STRATEGIES, default="random", help="of the mask; random")
    add("--fit", choices=FITS, default="crop", help="how an image becomes a square; crop")
    add("--image-size", type=int, metavar="PIXELS",
        help="multiple of the patch side; the model's own if not given")  # fmt: skip
    add("--bands", type=_numbers, default=(), metavar="N,N,N",
        help="bands that are the model's channels; those of its training if not given")  # fmt: skip
    add("--range", metavar="LOW,HIGH",
        help="values of more than 8 bits that become black and white, auto or dtype; those of the "
        "model's training if not given")  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda or mps")


# --- reconstruct


def _add_reconstruct(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("image", metavar="IMAGE", help="an image file")
    add("--out", metavar="DIR", required=True, help="folder to write to")
    add("--weights", metavar="W", help="name, file, folder of a run or USER/NAME; mae-compact")
    add("--seed", type=int, help="of the mask; 0")
    add("--settings", metavar="FILE",
        help="settings.json of the page or of this command, in place of the flags that it has: "
        "all but --bands, --range and --device; weights that mae fetch does not list are given by "
        "--weights again")  # fmt: skip
    add("--mask", metavar="FILE",
        help="own mask, a PNG or .npy as large as IMAGE or the grid of patches: what is not black, "
        "0 or transparent is removed, a patch by its majority")  # fmt: skip
    add("--full-size", action="store_true",
        help="write full.png too: IMAGE in its own size, removed patches rebuilt")  # fmt: skip
    add("--view", choices=VIEWS,
        help="of weights trained on normalised pixels: brightness and contrast estimated, the "
        "original's (which uses the answer), or the bare prediction")  # fmt: skip
    add("--show", type=_numbers, default=(), metavar="N,N,N",
        help="channels of the model that the panels show as RGB, or one in grey")  # fmt: skip
    _add_image_arguments(parser)
    # None is what was not given; the request has the defaults.
    parser.set_defaults(mask_ratio=None, strategy=None, fit=None)


def _reconstruct(args: argparse.Namespace) -> int:
    """Rebuild an image: four panels and their figures.

        mae reconstruct photo.jpg --mask-ratio 0.75 --seed 2 --out panels
        mae reconstruct photo.jpg --weights runs/mine --mask drawn.png --out panels

    It writes original.png, masked.png, reconstruction.png, pasted.png, their row panels.png,
    metrics.json, and settings.json, with which the panels are made again, to the same bytes on the
    same kind of machine and in the same precision:

        mae reconstruct photo.jpg --settings panels/settings.json --out again
    """
    import torch

    from mae_core.images import png_bytes
    from mae_core.photographs import read_file
    from mae_core.reconstruct import Reconstructor, paste_back
    from mae_core.settings import SETTINGS_FILE, digest_of, save_settings
    from mae_core.weights.files import write_atomically
    from mae_core.weights.registry import load, weights_name

    # The image first: a mistyped name should not wait for the weights.
    read_file(args.image, 1)
    picture = digest_of(args.image)
    request, weights = _request_of(args, picture)
    model, name = load(weights), weights_name(weights)
    reconstructor = Reconstructor(model, name, device=args.device, in_place=True)
    if args.mask:
        request = dataclasses.replace(request, mask=_read_mask(args, request, model.config))
    full = _full_size(args, model.config) if args.full_size else None
    torch.set_num_threads(reconstructor.threads_for([request]))
    out = reconstructor(**vars(request))
    out.save(args.out, args.show)
    folder = Path(args.out).expanduser()
    save_settings(folder / SETTINGS_FILE, request, picture, name)
    if full:
        data = png_bytes(paste_back(full, out, args.show))
        write_atomically(folder / "full.png", lambda path: path.write_bytes(data))
    quality = "no PSNR in this view" if out.removed.any() else "nothing removed"
    if out.psnr is not None:
        told = ", told the answer's brightness and contrast" if out.view == "answer" else ""
        quality = f"{out.psnr:.2f} dB on removed patches{told}"
    print(
        f"{out.visible} of {out.patches} patches seen, {quality}, "
        f"{out.seconds * 1000:.0f} ms on {out.device}; wrote {args.out}"
    )
    return 0


def _request_of(
    args: argparse.Namespace, picture: str
) -> tuple["ReconstructionRequest", str | None]:
    """What is asked for, but for a mask from a file, and of which weights."""
    from mae_core.photographs import read_file
    from mae_core.reconstruct import ReconstructionRequest
    from mae_core.settings import digest_of, read_settings
    from mae_core.weights.registry import list_weights, weights_name

    names = ("mask_ratio", "seed", "strategy", "fit", "image_size", "view")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    more = {"bands": args.bands, "value_range": args.range}
    if args.settings is None:
        return ReconstructionRequest(args.image, **given, **more), args.weights

    settings = read_settings(args.settings)
    drawing = settings.mask.drawing
    if given or (args.mask and not drawing):
        flag = next(iter(given), "mask").replace("_", "-")
        raise ConfigError(f"--settings say what --{flag} says; leave one of the two out")
    if args.weights and weights_name(args.weights) != settings.model:
        raise ConfigError(
            f"--weights is {weights_name(args.weights)}, and the settings are of "
            f"{settings.model!r:.80}; give these, or leave --weights out"
        )
    # Settings come from strangers too: they choose neither a path nor a repository of the hub.
    if not args.weights and settings.model not in list_weights():
        raise ConfigError(
            f"the settings are of {settings.model!r:.80}, which is no name that mae fetch lists; "
            "give these weights by --weights"
        )
    if drawing:
        if not args.mask:
            raise MaskError("these settings have a drawn mask; give its picture by --mask")
        read_file(args.mask, 1)
    for path, digest, expected in (
        (args.image, picture, settings.picture),
        (args.mask, drawing and digest_of(args.mask), drawing),
    ):
        if digest != expected:
            print(
                f"warning: {path} is not the picture of these settings: its SHA-256 is "
                f"{digest}, and theirs is {expected}; the panels will be others",
                file=sys.stderr,
            )
    request = dataclasses.replace(settings.of(args.image), **more)
    return request, args.weights or settings.model


def _read_mask(
    args: argparse.Namespace, request: "ReconstructionRequest", config: "ModelConfig"
) -> Any:
    """(h, w) booleans, True = removed, from a file of the image's shape or of the grid's."""
    import numpy as np

    from mae_core.images import size_of
    from mae_core.photographs import DEFAULT_LIMITS, read_drawing
    from mae_core.reconstruct import mask_from_drawing

    try:
        values = np.load(args.mask) if args.mask.endswith(".npy") else read_drawing(args.mask)
    except Exception as error:  # NumPy raises many types for damaged headers
        raise MaskError(f"the mask {args.mask} cannot be read: {error}") from error
    if not isinstance(values, np.ndarray) or not values.size or values.dtype.kind not in "buif":
        raise MaskError(f"the mask {args.mask} holds no numbers; give an image, or 0 and 1")
    size = size_of(_opened(args, config, DEFAULT_LIMITS))
    return mask_from_drawing(values, size, config, request.fit, request.image_size)


def _full_size(args: argparse.Namespace, config: "ModelConfig") -> "Image":
    """The image at its own resolution; large ones are rebuilt from a smaller copy."""
    from PIL.Image import Image

    from mae_core.photographs import ImageLimits

    opened = _opened(args, config, ImageLimits(keep_pixels=ImageLimits.max_pixels))
    if isinstance(opened, Image):
        return opened
    raise ConfigError(
        f"--full-size is for models of 1 or 3 channels, and this one has {config.in_chans}; leave "
        "it out"
    )


def _opened(
    args: argparse.Namespace, config: "ModelConfig", limits: "ImageLimits"
) -> "DecodedImage":
    """The image with the channels of a model, not fitted."""
    from mae_core.images import open_image

    return open_image(
        args.image, config.in_chans, bands=args.bands or config.bands,
        value_range=args.range or config.value_range or "auto", limits=limits,
    )  # fmt: skip


# --- evaluate


def _evaluate(args: argparse.Namespace) -> int:
    """Measure what a model learned.

    mae evaluate reconstruction mae-compact IMAGES
    mae evaluate knn mae-tiny FLOWERS
    mae evaluate linear runs/mine FLOWERS seeds=3
    mae evaluate classifier runs/tuned FLOWERS
    mae evaluate predict runs/tuned PICTURE PICTURE
    mae evaluate segment mae-tiny VOC2012
    mae evaluate detect mae-tiny COCO
    """
    raise ConfigError(f"say what to measure: mae evaluate {', '.join(map(_name, EVALUATIONS))}")


def _add_reconstruction(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("weights", metavar="WEIGHTS", help="name, file, folder of a run or USER/NAME")
    add("folder", metavar="FOLDER", help="folder of images")
    add("--seed", type=int, default=0, help="image i gets seed + i; 0")
    _add_image_arguments(parser)
    add("--no-baselines", dest="baselines", action="store_false", help="measure the model only")
    add("--json", action="store_true", help="print JSON, with the figures of each image")


# Columns of the table of reconstructions: titles and digits by the name of the figure.
_COLUMNS = {
    "loss": ("loss", 3), "psnr": ("PSNR (dB)", 2), "ssim": ("SSIM", 3), "seams": ("seams", 1),
    "seams_pasted": ("seams pasted", 1), "sharpness": ("sharpness", 2),
}  # fmt: skip


def _reconstruction(args: argparse.Namespace) -> int:
    """Measure how well a model rebuilds the images of a folder.

        mae evaluate reconstruction mae-compact IMAGES --mask-ratio 0.75 --seed 0
        mae evaluate reconstruction runs/mine IMAGES --strategy block --json

    It prints loss, PSNR, SSIM, seams and sharpness of removed patches with their spread over the
    images, beside the mean colour and OpenCV's Telea inpainting under the same masks. Seams, of the
    reconstruction and of the pasted image, are by how many levels (of 0 to 255) pixels jump more
    at the borders of removed patches than inside, beyond the original's; sharpness is how much
    neighbours differ inside, over the original's. All are means over images. The model runs in
    float32, with brightness and contrast estimated from visible patches where it predicts
    normalised pixels. The PSNR of an image counts up to 100 dB; pooled, it is that of the mean
    squared error of all of them. In JSON, null is what is not a number.
    """
    from mae_core.data.datasets import shown
    from mae_core.evaluation.reconstruction import (
        MAX_PSNR,
        FittedImages,
        evaluate_reconstruction,
        summarize,
    )
    from mae_core.reconstruct import Reconstructor
    from mae_core.weights.registry import load, weights_name

    # In the precision of every figure that is measured during training.
    reconstructor = Reconstructor(
        load(args.weights), weights_name(args.weights), device=args.device, precision="float32",
        in_place=True,
    )  # fmt: skip
    config = reconstructor.config
    images = FittedImages(args.folder, config, args.fit, args.image_size, args.bands, args.range)
    figures = evaluate_reconstruction(
        reconstructor.model, images, mask_ratio=args.mask_ratio, seed=args.seed,
        strategy=args.strategy, baselines=args.baselines,
    )  # fmt: skip
    facts = {
        "weights": reconstructor.name, "pictures": len(images.names), "files": len(images),
        "device": str(reconstructor.device), "precision": reconstructor.precision,
        "mask_ratio": args.mask_ratio, "strategy": args.strategy, "seed": args.seed,
        "fit": args.fit, "image_size": args.image_size or config.image_size,
    }  # fmt: skip
    methods: Mapping[str, Mapping[str, Any]] = summarize(figures)
    if args.json:
        rows: list[dict[str, Any]] = [{"file": shown(name)} for name in images.names]
        for method, of in figures.items():
            for i, row in enumerate(rows):
                each = ((name, values[i]) for name, values in of.items())
                row[method] = {name: v if math.isfinite(v) else None for name, v in each}
        unreadable = [shown(name) for name in images.unreadable]
        report = {**facts, "unreadable": unreadable, "methods": methods, "rows": rows}
        print(
            json.dumps(
                report,
                indent=2,
                default=lambda one: {k: v for k, v in vars(one).items() if v is not None},
            )
        )
        return 0
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    titles = [title for title, _ in _COLUMNS.values()]
    table = [["removed patches", "n", *titles, "pooled (dB)"]]
    for method, summaries in methods.items():
        cells = []
        for name, (_, digits) in _COLUMNS.items():
            one = summaries.get(name)
            cells.append(f"{one.mean:.{digits}f} ± {one.std:.{digits}f}" if one else "-")
        psnr = summaries.get("psnr")
        n, pooled = ("0", "-") if psnr is None else (str(psnr.n), f"{psnr.pooled:.2f}")
        table.append([method, n, *cells, pooled])
    print(f"\n{_table(table)}")
    for method, summaries in methods.items():
        if "psnr" in summaries and (capped := summaries["psnr"].capped):
            print(f"{method}: {capped} images without error, taken as {MAX_PSNR:g} dB")
    return 0


def _add_probe(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("weights", metavar="WEIGHTS", help="name, file, folder of a run or USER/NAME")
    add("data", metavar="DATA", help="folder with a folder for each class, or hub:USER/NAME")
    add("fields", metavar="field=value", nargs="*", default=[])
    add(
        "--out", metavar="DIR", type=Path, help="folder for evaluation.html, report.json and charts"
    )
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--json", action="store_true", help="print JSON")


def _knn(args: argparse.Namespace) -> int:
    """Classify images by the nearest neighbours of their frozen features.

        mae evaluate knn mae-tiny FLOWERS
        mae evaluate knn runs/mine FLOWERS k=10 pool=cls blocks=5,8,11 --json
        mae evaluate knn mae-tiny FLOWERS init=random seeds=3

    FLOWERS has a folder for each class in train and in val, or directly below it; then one image in
    five is measured on. Fields are those of `KnnConfig`: k=20, temperature=0.07, pool=mean,
    blocks=-1, image_size=0, init=weights, seed=0, seeds=1. The interval is Wilson's, 95 %, over
    images. Features are kept in ~/.cache/mae_core/features.
    """
    from mae_core.evaluation.probes import KnnConfig

    return _probe(args, KnnConfig())


def _linear(args: argparse.Namespace) -> int:
    """Classify images by a linear classifier on frozen features.

        mae evaluate linear mae-tiny FLOWERS seeds=3
        mae evaluate linear mae-tiny FLOWERS blocks=0,2,4,6,8,10,11 pool=cls
        mae evaluate linear mae_pretrain_vit_base.pth IMAGENET solver=lars pool=cls

    Fields are those of `LinearConfig`: solver=lbfgs, which finds its own strength on a fifth of the
    training images, as adamw does its learning rate; lars is the paper's recipe, with epochs=90,
    batch_size=16384, base_lr=0.1 and views=0; the others and DATA are those of `mae evaluate knn`.
    """
    from mae_core.evaluation.probes import LinearConfig

    return _probe(args, LinearConfig())


def _probe(args: argparse.Namespace, plain: "KnnConfig | LinearConfig") -> int:
    from mae_core.config import with_overrides
    from mae_core.distributed import init_distributed
    from mae_core.evaluation.probes import probe
    from mae_core.evaluation.report import save_report

    config = with_overrides(plain, args.fields)
    with init_distributed() as world:
        report = probe(args.weights, args.data, config, device=args.device, world=world)
        if world.is_main:
            print(json.dumps(report, indent=2) if args.json else _as_table(report))
            if args.out:
                save_report(report, args.out.expanduser(), args.line)
    return 0


def _add_finetune(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("weights", metavar="WEIGHTS", help="name, file, folder of a run or USER/NAME")
    add("data", metavar="DATA", help="folder with a folder for each class, or hub:USER/NAME")
    add("fields", metavar="field=value", nargs="*", default=[])
    add("--out", metavar="DIR", help="folder of runs and report; runs/METHOD if not given")
    add("--json", action="store_true", help="print JSON")


def _finetune(args: argparse.Namespace) -> int:
    """Train an encoder as a classifier, end to end.

        mae evaluate finetune mae-tiny FLOWERS --out runs/flowers
        mae evaluate finetune mae-tiny FLOWERS image_size=96 epochs=30 seeds=3 init=random
        torchrun --nproc-per-node 8 -m mae_core evaluate finetune WEIGHTS IMAGENET recipe=base

    The same command again goes on where a stopped one ended. DIR is the folder of the run, with the
    classifier as weights.safetensors; each of several seeds has a folder in it. The recipe is
    `small`, or that of the paper for `base`, `large` and `huge`. Fields are those of
    `FinetuneConfig`, such as image_size=0 (the model's own), epochs=50, batch_size=64,
    optim.base_lr=8e-3, layer_decay=0.85, drop_path=0.1, mixup=0, cutmix=0, init=weights (or
    random), seed=0 and seeds=1. DATA are those of `mae evaluate knn`.
    """
    return _fine_tuned(args, "finetune")


def _partial(args: argparse.Namespace) -> int:
    """Train the last blocks of an encoder as a classifier.

        mae evaluate partial mae-tiny FLOWERS seeds=3
        mae evaluate partial mae-tiny FLOWERS blocks=0,0.5,1,4 --out runs/partial

    Each number of blocks is trained on its own: 0 is norm and head alone, 0.5 the MLP of the last
    block too. If not given, it is 0, 0.5, 1, 2, 4 and all. All else is as in `mae evaluate
    finetune`; curve.png shows the accuracy over the blocks.
    """
    return _fine_tuned(args, "partial")


def _scratch(args: argparse.Namespace) -> int:
    """Train an encoder of the same shape as a classifier, from random parameters.

        mae evaluate scratch mae-tiny FLOWERS seeds=3

    It is what fine-tuning is compared with: the same shape, strong regularisation, no pre-training
    (He et al. 2022, table 11). All else is as in `mae evaluate finetune`.
    """
    return _fine_tuned(args, "scratch")


def _fine_tuned(args: argparse.Namespace, method: "Method") -> int:
    from mae_core.config import split_field
    from mae_core.evaluation.report import save_report
    from mae_core.finetune import fine_tune

    out = args.out or f"runs/{method}"
    changes = dict(map(split_field, _with_out(args.fields, out)))
    report = fine_tune(args.weights, args.data, method, **changes)
    if "stopped_by" in report:
        return 128 + int(report["stopped_by"])
    if report:  # on rank 0
        save_report(report, Path(out).expanduser(), args.line)
        print(json.dumps(report, indent=2) if args.json else _as_table(report))
    return 0


def _with_out(fields: Sequence[str], out: str) -> list[str]:
    """The fields of a run that is evaluated, with its folder."""
    if any(field.startswith("out=") for field in fields):
        raise ConfigError("the folder is given by --out DIR")
    return [*fields, f"out={out}"]


def _as_table(report: Mapping[str, Any]) -> str:
    table = [["block", "accuracy", "95 % interval", "seeds"]]
    for row in report["blocks"]:
        low, high = row["interval"]
        seeds = " ".join(f"{100 * value:.1f}" for value in row["seeds"])
        cells = [f"{100 * row['accuracy']:.1f} %", f"{100 * low:.1f} to {100 * high:.1f}", seeds]
        table.append([str(row["block"]), *cells])
    return (
        f"{report['method']} of {report['weights']} ({report['init']}): {len(report['classes'])} "
        f"classes, {report['train']} images to learn from, {report['measured']} measured\n\n"
        f"{_table(table)}\n\nby class: {_by_class(report)}"
    )


def _add_predict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("weights", metavar="WEIGHTS", help="name, file, folder of a run or USER/NAME")
    add("fields", metavar="PICTURE", nargs="*", default=[], help="file or folder; or field=value")
    add("--top", type=int, default=5, metavar="N", help="classes of each picture; 5")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--json", action="store_true", help="print JSON")


def _predict(args: argparse.Namespace) -> int:
    """Name what is in pictures by a fine-tuned classifier.

        mae evaluate predict runs/tuned cat.jpg dog.jpg --top 3
        mae evaluate predict mae-base-finetuned PICTURES class_names=imagenet --json

    It sees the centre square of each picture. Fields are those of `PredictConfig`: crop_share=
    of the shorter side, image_size=0 for the classifier's own, precision=float32, and class_names=
    for weights that do not name their classes: a file with a name on each line, or imagenet. What
    cannot be read is named; the exit status is 2 if nothing can be.
    """
    from mae_core.config import with_overrides
    from mae_core.evaluation.classifier import PredictConfig, predict
    from mae_core.reporting import printable

    fields = [
        word
        for word in args.fields
        if "=" in word and word.partition("=")[0].isidentifier() and not os.path.lexists(word)
    ]
    pictures = [word for word in args.fields if word not in fields]
    if not pictures:
        raise ConfigError("no picture is named; give files or folders after the weights")
    config = with_overrides(PredictConfig(), fields)
    report = predict(args.weights, pictures, config, top=args.top, device=args.device)
    if args.json:
        print(json.dumps(report, indent=2))
        return 0
    for picture in report["pictures"]:
        print(picture["file"])
        rows = [
            (
                printable(one["name"] or f"class {one['output']}"),
                f"{100 * one['probability']:.1f} %",
            )
            for one in picture["classes"]
        ]
        print("\n".join(f"  {line}" for line in _table(rows).splitlines()))
    if report["unreadable"]:
        print(f"\nnot read: {', '.join(report['unreadable'])}")
    return 0


def _classifier(args: argparse.Namespace) -> int:
    """Measure a fine-tuned classifier on labelled images.

        mae evaluate classifier runs/tuned FLOWERS --out report
        mae evaluate classifier runs/tuned OTHERS part=all
        mae evaluate classifier mae-base-finetuned IMAGENET class_names=imagenet

    FLOWERS is as for `mae evaluate knn`; part=train measures on its other part, part=all on a
    folder of classes as a whole. The classes of the data are found among the classifier's by their
    names; where nothing names these, both have to be as many and in the same order. The other
    fields are those of `mae evaluate predict`. The interval is Wilson's, 95 %, over images.
    """
    from mae_core.config import with_overrides
    from mae_core.evaluation.classifier import ClassifierConfig, measure
    from mae_core.evaluation.report import save_report

    config = with_overrides(ClassifierConfig(), args.fields)
    report = measure(args.weights, args.data, config, device=args.device)
    print(json.dumps(report, indent=2) if args.json else _as_lines(report))
    if args.out:
        save_report(report, args.out.expanduser(), args.line)
    return 0


def _as_lines(report: Mapping[str, Any]) -> str:
    low, high = (100 * value for value in report["interval"])
    lines = [
        f"classifier of {report['weights']}: {len(report['per_class'])} classes, "
        f"{report['measured']} images measured, {report['unreadable']} could not be read",
        "",
        f"accuracy {100 * report['accuracy']:.1f} % (95 % interval {low:.1f} to {high:.1f})",
    ]
    if "top5" in report:
        lines.append(f"among the five likeliest {100 * report['top5']:.1f} %")
    return "\n".join([*lines, "", f"by class: {_by_class(report)}"])


def _by_class(report: Mapping[str, Any]) -> str:
    """The figure of each class, the worst first."""
    told = {name: value for name, value in report["per_class"].items() if value is not None}
    return ", ".join(
        f"{name} {100 * told[name]:.0f} %" for name in sorted(told, key=told.__getitem__)
    )


def _add_transfer(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("weights", metavar="WEIGHTS", help="name, file, folder of a run or USER/NAME")
    add("data", metavar="DATA", help="folder of pictures and annotations")
    add("fields", metavar="field=value", nargs="*", default=[])
    add("--out", metavar="DIR", help="folder of the runs, report.json and pictures.png; "
        "runs/segment or runs/detect")  # fmt: skip
    add("--json", action="store_true", help="print JSON")


def _segment(args: argparse.Namespace) -> int:
    """Train a segmenter on an encoder and measure it: mean intersection over union.

        mae evaluate segment mae-tiny ADEChallengeData2016 image_size=512
        mae evaluate segment runs/mine VOC2012 head=linear freeze=true seeds=3 --out runs/voc
        mae evaluate segment mae-tiny VOC2012 init=random

    DATA has images/{training,validation} and annotations/{training,validation} as ADE20K, or
    JPEGImages, SegmentationClass and ImageSets/Segmentation as Pascal VOC; classes.txt names other
    classes. Fields are those of `SegmentConfig`: head=upernet (or linear), freeze=false,
    init=weights (or random), layer_decay=0.75, image_size=0 (the model's own), channels=256,
    scale=0.5,2, flip=true, epochs=100, batch_size=16, optim.lr=1e-4, seed=0, seeds=1,
    resamples=1000, and what every run has. The same command goes on where a stopped one ended.
    head=upernet needs requirements-dense.txt.
    """
    from mae_core.evaluation.segmentation import (
        SegmentationFigures,
        measure_segmentation,
        segmentation_report,
    )
    from mae_core.training.segment import SegmentConfig, segment

    return _transferred(
        args, SegmentConfig(out="runs/segment"), segment, measure_segmentation,
        SegmentationFigures.summary, segmentation_report,
    )  # fmt: skip


def _detect(args: argparse.Namespace) -> int:
    """Train Mask R-CNN on an encoder and measure it: average precision of boxes and masks.

        mae evaluate detect mae_pretrain_vit_base.pth COCO image_size=1024 batch_size=64
        mae evaluate detect runs/mine MINE seeds=3 --out runs/boxes
        mae evaluate detect mae-tiny MINE init=random

    COCO has annotations/instances_{train,val}2017.json, train2017 and val2017; or MINE train.json,
    val.json, train and val. Fields are those of `DetectConfig`: freeze=false, init=weights (or
    random), layer_decay=0.7, image_size=0 (the model's own), channels=256, scale=0.1,2, flip=true,
    epochs=100, batch_size=16, optim.lr=1e-4, seed=0, seeds=1, resamples=100, and what every run
    has. The same command goes on where a stopped one ended. It needs requirements-dense.txt.
    """
    from mae_core.evaluation.detection import (
        DetectionFigures,
        detection_report,
        measure_detection,
    )
    from mae_core.training.detect import DetectConfig, detect

    return _transferred(
        args, DetectConfig(out="runs/detect"), detect, measure_detection, DetectionFigures.summary,
        detection_report,
    )  # fmt: skip


def _transferred(
    args: argparse.Namespace, plain: "DenseConfig", train: Any, measure: Any, summary: Any,
    report_of: Any,
) -> int:  # fmt: skip
    """Train, measure, print the report, and write it and the pictures into the folder."""
    from mae_core.config import with_overrides
    from mae_core.weights.export import write_json
    from mae_core.weights.files import write_atomically

    config = with_overrides(plain, _with_out(args.fields, args.out or plain.out))
    begun = time.perf_counter()
    done = train(args.weights, args.data, config, measure, summary)
    if done.stopped_by:
        return 128 + int(done.stopped_by)
    if not done.figures:  # on other ranks than 0
        return 0
    found = report_of(
        done.figures, done.facts["classes"], resamples=config.resamples, seed=config.seed
    )
    report = {**done.facts, **found, "seconds": round(time.perf_counter() - begun, 1)}
    folder, drawing = Path(config.out).expanduser(), done.figures[0].drawing
    write_json(folder / "report.json", report)
    write_atomically(folder / "pictures.png", lambda path: drawing.save(path, format="PNG"))
    if args.json:
        print(json.dumps(report, indent=2))
        return 0
    seeds = " ".join(f"{100 * value:.1f}" for value in report["seeds"])
    low, high = (100 * value for value in report["interval"] or (0, 0))
    interval = f"; 95 % interval {low:.1f} to {high:.1f}" if report["interval"] else ""
    names = ("miou", "pixel_accuracy", "box_ap", "box_ap50", "box_ap75", "mask_ap")
    figures = ", ".join(f"{name} {100 * report[name]:.1f}" for name in names if name in report)
    print(
        f"{report['method']} of {report['weights']} ({report['init']}): {report['train']} images "
        f"to learn from, {report['measured']} measured\n\n{figures} (percent){interval}; "
        f"by seed {seeds}\n\n"
        f"by class: {_by_class(report)}\n\nwrote {config.out}"
    )
    return 0


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


# --- weights: info, convert, export-web, fetch, push


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", metavar="WEIGHTS", help="name, file, folder or USER/NAME")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _info(args: argparse.Namespace) -> int:
    """Say what weights are and what they can be used for.

        mae info mae_pretrain_vit_base.pth
        mae info runs/mine --json

    Weights that are not on this machine are described as far as the manifest knows them; nothing
    is fetched. In brackets is where a fact comes from.
    """
    from mae_core.weights.info import as_lines, describe

    facts = describe(args.weights)
    print(json.dumps(facts, indent=2) if args.json else "\n".join(as_lines(facts)))
    return 0


def _add_convert(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SRC", help="name, file, folder or USER/NAME, in any format that opens")
    add("destination", metavar="DST", help="file or folder to write; not there yet")
    add("--to", required=True, choices=FORMATS, help="the format to write")
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32",
        help="number format; float32")  # fmt: skip
    add("--image-size", type=int, nargs=2, metavar=("H", "W"),
        help="pixels that a graph takes; the model's own if not given")  # fmt: skip
    add("--json", action="store_true", help="print JSON")
    add = parser.add_argument_group("what some files do not tell of themselves").add_argument
    add("--num-heads", type=int, metavar="N", help="of the encoder")
    add("--decoder-num-heads", type=int, metavar="N", help="of the decoder")
    add("--norm-pix", action=argparse.BooleanOptionalAction,
        help="whether the target was normalised per patch")  # fmt: skip
    add("--layer-norm-eps", type=float, metavar="E", help="epsilon of LayerNorms")
    add("--grid", type=int, nargs=2, metavar=("H", "W"),
        help="patches of position tables that are neither sin-cos nor square")  # fmt: skip


def _convert(args: argparse.Namespace) -> int:
    """Write weights in another format.

        mae convert mae_visualize_vit_large.pth mae-large --to huggingface
        mae convert mae-tiny encoder.safetensors --to timm
        mae convert runs/flowers flowers.onnx --to onnx

    The tensors are the same bit for bit, but for --dtype. Formats:

        mae_core      a .safetensors file that knows its own shape, training and classes
        official      a .pth file as the paper's authors publish them
        huggingface   a folder for transformers' ViTMAE, versions 4 and 5; of a classifier of the
                      class token for ViTForImageClassification
        timm          the encoder or classifier for timm: .safetensors, .pth or .bin, or a folder
                      with config.json, which names the classes
        onnx          a .onnx graph of encoder and decoder, the mask an input
        torch_export  the same as a .pt2 program of torch.export
    """
    from mae_core.weights.export import (
        check_destination,
        convert,
        lost_in,
        lost_names,
        opening_line,
    )
    from mae_core.weights.formats import Hints
    from mae_core.weights.registry import read_weights

    path, target = Path(args.destination), args.to
    size = args.image_size and tuple(args.image_size)
    check_destination(path, target, dtype=args.dtype, image_size=size)
    hints = Hints(
        num_heads=args.num_heads, decoder_num_heads=args.decoder_num_heads, norm_pix=args.norm_pix,
        layer_norm_eps=args.layer_norm_eps, grid=args.grid and tuple(args.grid),
    )  # fmt: skip
    weights = read_weights(args.source, hints=None if hints == Hints() else hints)
    convert(weights, path, target, dtype=args.dtype, image_size=size)
    lost = lost_in(weights, target) + ["classes"] * lost_names(weights, path, target)
    facts = {
        "read": args.source, "format": weights.format, "kind": weights.kind,
        "wrote": str(path), "to": target, "cannot_say": lost,
        "open_with": opening_line(weights, path, target),
    }  # fmt: skip
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    count = sum(tensor.numel() for tensor in weights.state.values())
    about = f"{weights.format}, {weights.kind}, {weights.dtype}, {count:,} parameters"
    print(f"read {args.source}: {about}")
    said = ", the encoder alone" if target == "timm" and weights.kind == "autoencoder" else ""
    if facts["cannot_say"]:
        said += f"; not stored: {', '.join(facts['cannot_say'])} (give them when you open it)"
    print(f"wrote {path}: {target}{said}")
    print(f"open it with: {facts['open_with']}")
    return 0


def _add_export_web(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("weights", metavar="WEIGHTS", help="name, file, folder of a run or USER/NAME")
    add("--out", metavar="FOLDER", required=True, type=Path, help="folder to write to")
    add("--storage", choices=("auto", "int8", "float16"), default="auto",
        help="of matrices; auto: int8 if measured and little is lost, else float16")  # fmt: skip
    add("--data", metavar="IMAGES", help="folder of images to measure on")


def _export_web(args: argparse.Namespace) -> int:
    """Write a model for the page that runs in a browser without a server.

        mae export-web mae-compact --out models --data IMAGES
        mae export-web runs/flowers --out models --storage float16

    It writes NAME.onnx, an ONNX graph of encoder and decoder with the mask as an input, and
    NAME.json, which says what it is. Matrices are stored in 8 or 16 bits, and the calculation is
    float32. With --data the file is run in ONNX Runtime, and what it loses against the model is
    written down: dB on removed patches, under three random masks of each image that remove 75 %.
    Little is at most 0.02 dB on average and 0.1 dB of one image.
    """
    from mae_core.evaluation.web import measure_web_loss
    from mae_core.weights.registry import entry_of, find, read_weights, weights_name
    from mae_core.weights.web import WebLoss, export_web

    weights, entry = read_weights(args.weights), entry_of(args.weights, find(args.weights))
    made = export_web(
        weights, args.out.expanduser(), name=weights_name(args.weights),
        licence=entry.licence if entry else None,
        storage=None if args.storage == "auto" else args.storage,
        measure=functools.partial(measure_web_loss, folder=args.data) if args.data else None,
    )  # fmt: skip
    print(f"wrote {args.out / made['file']}: {made['storage']}, {made['bytes'] / 1e6:.1f} MB")
    if made["loss_db"]:
        loss = WebLoss(**made["loss_db"])
        print(
            f"it loses {loss.mean} dB on average and {loss.worst} dB at most, on "
            f"{loss.pictures} images"
        )
        if not loss.is_small:
            print("warning: that is above 0.02 dB on average or 0.1 dB at most", file=sys.stderr)
    elif args.storage == "auto":
        print("nothing was measured; --data IMAGES halves the file where int8 loses little")
    return 0


def _add_fetch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="of the table, or USER/NAME")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _fetch(args: argparse.Namespace) -> int:
    """Fetch published weights, to have them offline; without a name, list them.

        mae fetch
        mae fetch mae-large-visualize
        mae fetch USER/NAME

    Files go to the caches of torch.hub (TORCH_HOME) and huggingface_hub (HF_HOME); what is there is
    not fetched again, and what is left of a file comes next time. The token of private
    repositories is that of `hf auth login` or HF_TOKEN. HF_HUB_OFFLINE=1 forbids the network.
    """
    from mae_core.weights.hub import shown_bytes
    from mae_core.weights.registry import find, list_weights, locate

    if args.names:
        paths = {name: str(locate(name)) for name in args.names}
        print(json.dumps(paths, indent=2) if args.json else "\n".join(paths.values()))
        return 0
    here = {name: find(name) is not None for name in list_weights()}
    if args.json:
        entries = list_weights().values()
        rows = [dataclasses.asdict(one) | {"here": here[one.name]} for one in entries]
        print(json.dumps(rows, indent=2))
        return 0
    table = [["name", "size", "here", "holds", "predicts", "licence", "what it is"]]
    for name, one in list_weights().items():
        size = "about " * (one.bytes is None) + shown_bytes(one.expected_bytes)
        is_here = "yes" if here[name] else "no"
        table.append([name, size, is_here, one.kind, one.target, one.licence, one.summary])
    print(_table(table))
    return 0


def _add_push(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="folder of a finished run")
    add("repo", metavar="USER/NAME", help="repository on the hub")
    add("--private", action="store_true", help="only you can see it")
    add("--license", default="unknown", help="as the hub names it, such as apache-2.0")
    add("--update", action="store_true", help="go on top of what is already there")
    add("--dry-run", action="store_true", help="write to RUN/hub and send nothing")


def _push(args: argparse.Namespace) -> int:
    """Upload a finished run to the Hugging Face hub.

        mae push runs/flowers me/flowers --dry-run
        mae push runs/flowers me/flowers --private --license apache-2.0

    One commit brings the weights in our format and in transformers', a model card and the last grid
    of reconstructions, which shows some of the run's images: look at the dry run first. The token
    is that of `hf auth login` or HF_TOKEN.
    """
    from mae_core.weights.publish import push

    address = push(
        args.run, args.repo, license_name=args.license, private=args.private,
        update=args.update, dry_run=args.dry_run,
    )  # fmt: skip
    print(f"wrote {address}; nothing was sent" if args.dry_run else f"uploaded {address}")
    return 0


# --- runs: train, pack


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="`mae train` lists them")
    parser.add_argument("fields", metavar="field=value", nargs="*", default=[])
    parser.add_argument("--config", metavar="FILE", help="config.yaml of a run, instead of RECIPE")


def _train(args: argparse.Namespace) -> int:
    """Train a masked autoencoder; the same command again goes on where a stopped run ended.

        mae train quick data=PICTURES
        mae train quick data=PICTURES data.holdout=OTHERS steps=4000
        mae train --config runs/quick/config.yaml out=runs/again
        torchrun --nproc-per-node 8 -m mae_core.train base data.pack=PACK

    Recipes are functions in `recipes.py`; every field of `TrainConfig` can be changed. The run's
    folder (`out=`) receives config.yaml, metrics.jsonl, checkpoint.pt, images in reconstructions/,
    and at the end weights.safetensors and report.html. Ctrl-C and SIGTERM save before they end it.
    """
    from mae_core.config import split_field
    from mae_core.recipes import RECIPES
    from mae_core.training.train import train

    recipe, fields = args.recipe, args.fields
    if args.config:
        recipe, fields = Path(args.config), [*filter(None, [recipe]), *fields]
    elif not recipe:
        print("usage: mae train RECIPE [field=value ...]\n\nrecipes:")
        for name, make in RECIPES.items():
            print(f"  {name:<14} {(make.__doc__ or '').splitlines()[0]}")
        return 0
    run = train(recipe, **dict(map(split_field, fields)))
    return 128 + run.stopped_by if run.stopped_by else 0


def _add_ablate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("grid", metavar="GRID.yaml", help="what is varied and measured")
    add("--jobs", type=int, default=1, help="runs at a time; 1")
    add("--dry-run", action="store_true", help="list the runs and train nothing")
    add("--json", action="store_true", help="print JSON")


def _ablate(args: argparse.Namespace) -> int:
    """Train and measure a grid of runs: one table and plot.

        mae ablate masks.yaml --dry-run
        mae ablate masks.yaml --jobs 2

    masks.yaml:

        recipe: quick
        fields: {data.folder: PICTURES, steps: 400}
        grid:
          mask.ratio: [0.5, 0.75, 0.9]
          model.decoder_depth: [1, 4]
        seeds: [0, 1, 2]
        measure:
          psnr: {kind: reconstruction, data: HOLDOUT}
          linear: {kind: linear, data: FLOWERS, pool: cls}
        out: runs/masks

    Each run is in a folder of its own in `out`, with log.txt; results.json, table.md and plot.png
    are beside them. What is finished is not done again, so the same command goes on where it
    stopped. The exit status is 1 if a run failed.
    """
    from mae_core.ablate import load_ablation, run_ablation, save_results

    if args.jobs < 1:
        raise ConfigError(f"--jobs is {args.jobs}; give 1 or more")
    ablation = load_ablation(args.grid)
    if args.dry_run:
        rows = ablation.combinations()
        print(f"{len(rows) * len(ablation.seeds)} runs: seeds {list(ablation.seeds)} of each of")
        print("\n".join(f"  {json.dumps(fields)}" for fields in rows))
        return 0
    found = run_ablation(ablation, args.jobs)
    table = save_results(ablation, found)
    print(json.dumps([vars(row) for row in found], indent=2) if args.json else table)
    return int(any(row.failed for row in found))


def _add_pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="folder of images")
    parser.add_argument("out", metavar="OUT", help="folder for the pack")
    parser.add_argument("fields", metavar="field=value", nargs="*", default=[])


def _pack(args: argparse.Namespace) -> int:
    """Pack a folder of images, decoded once for training with data.pack=OUT.

        mae pack IMAGES packs/mine
        mae pack IMAGES packs/mine short_side=160

    Fields: `short_side=256`, the most pixels that an image keeps on its shorter side, 0 for all;
    `max_unreadable=0.05`, the largest share of unreadable files; and for measurements `channels=3`,
    `bands=3,2,1` and `range=auto`, which `DataConfig` explains. Images of `data.holdout` in the
    pack are left out of training, told by the hashes of their files. Packing again does nothing
    unless a file came, went or changed.
    """
    from mae_core.config import PackConfig, with_overrides
    from mae_core.data.datasets import ImageReader, find_images
    from mae_core.data.pack import pack_folder

    folder, out = args.folder, args.out
    config = with_overrides(PackConfig(), args.fields)
    reader = ImageReader(config.channels, config.bands, config.range, config.short_side)
    found = reader.find_range(find_images(folder, quiet=True))
    reader = dataclasses.replace(reader, value_range=found or config.range)
    pack = pack_folder(folder, out, reader=reader, max_unreadable=config.max_unreadable)
    print(
        f"{len(pack)} images, {pack.pixels.nbytes / 1e6:.0f} MB in {out}; "
        f"train on them with data.pack={out}"
    )
    return 0


EVALUATIONS: dict[_Command, _AddArguments] = {
    _reconstruction: _add_reconstruction,
    _knn: _add_probe,
    _linear: _add_probe,
    _classifier: _add_probe,
    _predict: _add_predict,
    _finetune: _add_finetune,
    _partial: _add_finetune,
    _scratch: _add_finetune,
    _segment: _add_transfer,
    _detect: _add_transfer,
}

# A sub-command's function, whose docstring is its help, and what adds its args.
COMMANDS: dict[_Command, _AddArguments] = {
    _reconstruct: _add_reconstruct,
    _train: _add_train,
    _ablate: _add_ablate,
    _evaluate: functools.partial(_add_commands, commands=EVALUATIONS),
    _info: _add_info,
    _convert: _add_convert,
    _export_web: _add_export_web,
    _fetch: _add_fetch,
    _pack: _add_pack,
    _push: _add_push,
}
