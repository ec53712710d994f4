"""A model as a graph that runs without this package: torch.export (.pt2) and ONNX.

The graph draws nothing: which patches are visible is an input, so one file serves every mask, and
what it gives is what `MaskedAutoencoder` gives. Image height and width are fixed when the graph is
made: its position tables are resampled then and stored at that size. `export_onnx` says what goes
in and comes out, and so does the file itself: see `describe`.
"""

import importlib
import io
import json
import os
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mae_core.config import ModelConfig
from mae_core.errors import ConfigError
from mae_core.model.mae import MaskedAutoencoder, resample_pos_embed
from mae_core.model.masking import PatchMask
from mae_core.model.patches import grid_of
from mae_core.weights.files import write_atomically
from mae_core.weights.formats import Weights

# The oldest that torch translates to without converting: more runtimes know it.
ONNX_OPSET = 18

# The one extra file in a .pt2.
PROGRAM_FACTS = "mae_core.json"

_IDS = (
    "ids_shuffle = argsort(noise (N, L), axis 1, stable); ids_keep = ids_shuffle[:, :K]; "
    "ids_restore = argsort(ids_shuffle, axis 1). Random noise removes patches at random; noise "
    "of 0 (visible) and 1 (removed), K zeros in each row, removes just those"
)


def export_program(
    weights: Weights, path: Path, *, image_size: tuple[int, int] | None = None
) -> None:
    """Write a model as a torch.export program, for `torch.export.load`.

    What `describe` says is in its extra file `PROGRAM_FACTS`, as JSON. For the rest see
    `export_onnx`.
    """
    grid_size = _grid_for(weights.config, image_size)
    facts = {PROGRAM_FACTS: json.dumps(describe(weights.config, grid_size))}
    # Through memory: where a write to the disk fails, torch's own writer ends the process.
    content = io.BytesIO()
    torch.export.save(trace(weights, grid_size), content, extra_files=facts)
    write_atomically(path, lambda partial: partial.write_bytes(content.getbuffer()))


def export_onnx(weights: Weights, path: Path, *, image_size: tuple[int, int] | None = None) -> None:
    """Write a model as an ONNX file, with what `describe` says as its metadata.

    With h · w = L patches of P values, K of them visible, N and K any number from 1 on:

        images       (N, C, H, W) float32, (pixel / 255 - mean) / std per channel
        ids_keep     (N, K) int64, the visible patches
        ids_restore  (N, L) int64, where each patch stands when the visible ones come first
        pred         (N, L, P) float32, every patch, pixels in (p, q, c) order
        latent       (N, 1 + K, D) float32, the encoder's output, the class token first

    A model whose target is principal components gives pixels all the same; one with
    `encoder_mask_tokens` gives a latent of (N, 1 + L, D). The ids are those of a `PatchMask`, and
    the graph does not check them. Without torch, noise of shape (N, L) is a mask:

        ids_shuffle = numpy.argsort(noise, axis=1, kind="stable")
        ids_keep = ids_shuffle[:, :K]
        ids_restore = numpy.argsort(ids_shuffle, axis=1)

    Models above 1.5 GiB (`huge`), which ONNX cannot hold in one file, have their parameters in
    `path` + `.data` next to it, and the two have to stay together.

    Args:
        weights: The model.
        path: Where to, usually `*.onnx`; replaced only once the new file is whole.
        image_size: (H, W) in pixels that the graph takes; the model's own if not given.

    Raises:
        ConfigError: If the packages that write ONNX are not installed.
        ConfigError: If a side is no multiple of the patch side, or the grid is a single patch.
        CheckpointError: If the file cannot be written.
    """
    check_packages("onnx", "onnxscript")
    grid_size = _grid_for(weights.config, image_size)
    program = translate(trace(weights, grid_size), ("pred", "latent"))
    program.model.metadata_props.update(describe(weights.config, grid_size))

    def write(partial: Path) -> None:
        # A graph names its data by the name that it is first written under.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            graph, data = (Path(folder, path.name + suffix) for suffix in ("", ".data"))
            program.save(graph)
            if data.exists():
                with data.open("rb+") as file:
                    os.fsync(file.fileno())
                # Removed first, so that an old graph never meets new data.
                path.unlink(missing_ok=True)
                data.replace(path.with_name(data.name))
            graph.replace(partial)

    write_atomically(path, write)


def check_packages(*names: str) -> None:
    """Refuse to begin what needs packages that are missing.

    Raises:
        ConfigError: If one of them is not installed.
    """
    try:
        for name in names:
            importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"ONNX files need the packages {', '.join(names)}; pip install -r requirements-onnx.txt"
        ) from error


def describe(config: ModelConfig, grid_size: tuple[int, int]) -> dict[str, str]:
    """What a graph of `grid_size` patches says of itself: short texts; lists are JSON."""
    side = config.patch_size
    units = "pixels normalised as the images are"
    if config.norm_pix:
        units = "each patch normalised by its own mean and deviation"
    order = "all patches in shuffled order" if config.encoder_mask_tokens else "ids_keep's patches"
    return {
        "mean": json.dumps(config.mean),
        "std": json.dumps(config.std),
        "patch_size": str(side),
        "grid": json.dumps(grid_size),
        "image_size": json.dumps((grid_size[0] * side, grid_size[1] * side)),
        "target": "norm_pix" if config.norm_pix else "pixels",
        "images": "(N, C, H, W) float32, (pixel / 255 - mean) / std per channel",
        "ids": _IDS,
        "pred": "(N, L, P) patches in rows of the grid, values in (row, column, channel) order; "
        + units,
        "latent": f"the class token, then {order}",
    }


class Graph(MaskedAutoencoder):
    """A model whose position tables are those of one grid, and whose mask is an input."""

    def __init__(self, weights: Weights, grid_size: tuple[int, int]) -> None:
        config, state = weights.config, dict(weights.state)
        side = min(grid_size) * config.patch_size
        # On `meta` nothing is drawn only to be overwritten.
        with torch.device("meta"):
            super().__init__(replace(config, image_size=side, grid=grid_size))
        for name in ("pos_embed", "decoder_pos_embed"):
            state[name] = resample_pos_embed(state[name], config.table_grid, grid_size)
        self.load_state_dict(state, strict=True, assign=True)
        self.requires_grad_(False)

    def forward(  # type: ignore[override]
        self, images: Tensor, ids_keep: Tensor, ids_restore: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`pred` and `latent`, as `export_onnx` has them."""
        mask = (ids_restore >= ids_keep.shape[1]).to(images.dtype)
        latent = self.encode(images, PatchMask(mask, ids_keep, ids_restore))
        pred = self.decode(latent, ids_restore, self.config.table_grid)
        return self.patches_from(pred), latent

    def decode(self, latent: Tensor, ids_restore: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """As the base does, but with one mask token that all removed patches are taken from.

        A tensor of L - K mask tokens would tie the graph to masks that remove two or more.
        """
        tokens = self.decoder_embed(latent)  # (N, 1 + K, E)
        mask_token = self.mask_token.expand(tokens.shape[0], 1, -1)
        rows = torch.cat((tokens[:, 1:], mask_token), dim=1)  # (N, K + 1, E)
        ids = ids_restore.clamp(max=tokens.shape[1] - 1)  # (N, L), K = removed
        whole = rows.gather(1, ids.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))  # (N, L, E)
        tokens = torch.cat((tokens[:, :1], whole), dim=1) + self.decoder_pos_embed
        pred: Tensor = self.decoder_pred(self.decoder_norm(self.decoder_blocks(tokens)))
        return pred[:, 1:]


def _grid_for(config: ModelConfig, image_size: tuple[int, int] | None) -> tuple[int, int]:
    if image_size is None:
        return config.table_grid
    grid_size = grid_of(*image_size, config.patch_size)
    if grid_size == (1, 1):
        raise ConfigError(
            f"a {image_size[0]}x{image_size[1]} image is a single patch, so there is nothing to "
            f"mask; give an image_size of more patches of {config.patch_size} pixels",
            code="patches",
        )
    return grid_size


def trace(
    weights: Weights, grid_size: tuple[int, int], graph: type[Graph] = Graph
) -> torch.export.ExportedProgram:
    """The graph, with N and K left open."""
    config, length = weights.config, grid_size[0] * grid_size[1]
    height, width = (side * config.patch_size for side in grid_size)
    # Sizes that are alike would be taken for one: N and K differ, and neither is 1.
    ids = torch.arange(length).expand(3, -1)
    examples = (torch.zeros(3, config.in_chans, height, width), ids[:, :2], ids)
    n, k = torch.export.Dim("N", min=1), torch.export.Dim("K", min=1, max=length)
    shapes = {"images": {0: n}, "ids_keep": {0: n, 1: k}, "ids_restore": {0: n}}
    with warnings.catch_warnings(action="ignore"):
        module = graph(weights, grid_size).eval()
        program = torch.export.export(module, examples, dynamic_shapes=shapes)
    # Three empty images, of no use in a file.
    program.example_inputs = None
    # They would say where on somebody's disk this file lies.
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def translate(
    program: torch.export.ExportedProgram, outputs: tuple[str, str]
) -> torch.onnx.ONNXProgram:
    """The ONNX form of what `trace` gave, with names for what goes in and comes out."""
    # By name, so that the file's sizes are called that.
    shapes = {"images": {0: "N"}, "ids_keep": {0: "N", 1: "K"}, "ids_restore": {0: "N"}}
    with warnings.catch_warnings(action="ignore"):
        translated = torch.onnx.export(
            program, (), input_names=tuple(shapes), output_names=outputs,
            opset_version=ONNX_OPSET, dynamic_shapes=shapes, verbose=False,
        )  # fmt: skip
    assert translated is not None
    return translated
