"""How far our model's numbers are from those of transformers' ViTMAE, from one file of weights.

    python -m benchmarks.parity
    python -m benchmarks.parity --presets base --image-size 448

Transformers builds its model, every parameter of it is filled with seeded noise (positions and
tokens too, which it leaves at zero), and its weights are written as it names them in version
4, as in version 5, and as `save_pretrained` of the installed version writes them. We open each
file by its content. Both models then get the same images and the same noise, in float32.

Writes a dated Markdown file and the numbers as JSON into benchmarks/results/.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import reports
from benchmarks.peers import transformers_mae
from mae_core import ModelConfig
from mae_core.config import PRESETS
from mae_core.model.losses import reconstruction_loss
from mae_core.model.masking import mask_from_noise
from mae_core.weights.registry import load

MASK_RATIO = 0.75
PACKAGES = ("torch", "timm", "transformers")

# Version 5's names and version 4's for the same parameter, after the layers' own.
_RENAMED = (
    ("vit.layers.", "vit.encoder.layer."),
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
    ("attention.o_proj", "attention.output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)


@dataclass(frozen=True)
class Row:
    """What one file's numbers differ by.

    Attributes:
        preset: The model's shape.
        target: `pixels` or `norm_pix`.
        names: Whose names the file has.
        pred_max: Largest difference of the prediction.
        pred_mean: Mean absolute difference of the prediction.
        pred_scale: Mean absolute value of the prediction, to compare them with.
        latent_max: Largest difference of the encoder's output.
        latent_mean: Mean absolute difference of the encoder's output.
        loss: Theirs.
        loss_difference: Absolute.
    """

    preset: str
    target: str
    names: str
    pred_max: float
    pred_mean: float
    pred_scale: float
    latent_max: float
    latent_mean: float
    loss: float
    loss_difference: float


def fill(model: torch.nn.Module, seed: int) -> None:
    """Give every parameter seeded noise of a size at which a deep model's output stays sane."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        is_scale = parameter.ndim == 1 and name.endswith("weight")
        parameter.data = 1 + 0.1 * noise if is_scale else 0.02 * noise


def names_of_version_4(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state with the names of version 5, under those of the files on the hub."""
    renamed = {}
    for name, tensor in state.items():
        for new, old in _RENAMED:
            name = name.replace(new, old)
        renamed[name] = tensor.contiguous()
    return renamed


def save_names_4(peer: Any, folder: Path) -> None:
    """As files on the hub are."""
    peer.config.save_pretrained(folder)
    save_file(names_of_version_4(peer.state_dict()), folder / "model.safetensors")


def save_names_5(peer: Any, folder: Path) -> None:
    """As the model in memory is called."""
    peer.config.save_pretrained(folder)
    state = {name: tensor.contiguous() for name, tensor in peer.state_dict().items()}
    save_file(state, folder / "model.safetensors")


def save_installed(peer: Any, folder: Path) -> None:
    """As the installed version saves it."""
    peer.save_pretrained(folder)


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "version 4": save_names_4, "version 5": save_names_5, "save_pretrained": save_installed,
}  # fmt: skip


def compare(preset: str, config: ModelConfig, folder: Path, batch: int) -> Iterator[Row]:
    """One model under each set of names."""
    peer = transformers_mae(config, MASK_RATIO).eval()
    fill(peer, seed=0)
    generator = torch.Generator().manual_seed(1)
    side, length = config.image_size, config.grid_size**2
    images = torch.randn(batch, 3, side, side, generator=generator)
    noise = torch.rand(batch, length, generator=generator)
    with torch.inference_mode():
        theirs = peer(images, noise=noise)
        latent = peer.vit(images, noise=noise).last_hidden_state
    for names, write in WRITERS.items():
        place = folder / re.sub(r"\W", "-", f"{preset}-{config.norm_pix}-{names}")
        place.mkdir()
        write(peer, place)
        model = load(place)
        with torch.inference_mode():
            ours = model(images, mask_from_noise(noise, MASK_RATIO))
            loss = reconstruction_loss(ours.pred, model.target(images), ours.mask)
        pred, hidden = (ours.pred - theirs.logits).abs(), (ours.latent - latent).abs()
        yield Row(
            preset, "norm_pix" if config.norm_pix else "pixels", names,
            pred.max().item(), pred.mean().item(), theirs.logits.abs().mean().item(),
            hidden.max().item(), hidden.mean().item(),
            theirs.loss.item(), (loss - theirs.loss).abs().item(),
        )  # fmt: skip


def page_of(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        "# Our model and transformers' ViTMAE, from the same files",
        "",
        f"`{report['command']}`",
        "",
        f"{report['date']}, {report['device']}, {report['threads']} threads, "
        f"{report['versions']}. {report['batch']} images of noise, 75 % removed, float32, seeded "
        "noise in every parameter. Differences are absolute.",
        "",
        "| model | target | names in the file | pred, largest | pred, mean | mean size of pred "
        "| latent, largest | latent, mean | loss | loss differs by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        lines.append(
            f"| {row['preset']} | {row['target']} | {row['names']} | {row['pred_max']:.1e} "
            f"| {row['pred_mean']:.1e} | {row['pred_scale']:.2f} | {row['latent_max']:.1e} "
            f"| {row['latent_mean']:.1e} | {row['loss']:.6f} | {row['loss_difference']:.1e} |"
        )
    return "\n".join([*lines, ""])


def main(argv: list[str] | None = None) -> int:
    """Compare, print and write down; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    options = _parser().parse_args(arguments)
    report = reports.conditions("parity", arguments, "cpu", PACKAGES)
    rows = []
    for preset in options.presets:
        for norm_pix in (False, True):
            config = replace(PRESETS[preset], norm_pix=norm_pix, image_size=options.image_size)
            with tempfile.TemporaryDirectory() as folder:
                rows += compare(preset, config, Path(folder), options.batch)
    report |= {"batch": options.batch, "rows": [asdict(row) for row in rows]}
    reports.write(report, page_of(report), "parity-cpu", Path(options.out))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.parity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["base", "large"])
    parser.add_argument("--image-size", type=int, default=224, help="side in pixels")
    parser.add_argument("--batch", type=int, default=2, help="images compared")
    parser.add_argument("--out", default="benchmarks/results", help="folder to write to")
    return parser


if __name__ == "__main__":
    sys.exit(main())
