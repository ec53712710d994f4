"""A model as a file that a page in a browser runs with onnxruntime-web.

    export_web(read_weights("mae-compact"), Path("models"), name="mae-compact")

Its size is how long a visitor waits, so its matrices are stored in 8 or 16 bits. They are cast to
float32 by operators of constants, which ONNX Runtime computes once, when it makes the session. All
other arithmetic is float32: that of 8 bits saturates on older CPUs.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mae_core.config import to_dict
from mae_core.errors import CheckpointError
from mae_core.model.mae import MaskedAutoencoder
from mae_core.weights.export import write_json
from mae_core.weights.files import write_atomically
from mae_core.weights.formats import Weights
from mae_core.weights.onnx import Graph, check_packages, trace, translate

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

# Where the file has its own description, as JSON.
WEB_PROPERTY = "mae_web"

Storage = Literal["int8", "float16"]

# A browser holds the file and the float32 numbers in at most 4 GiB.
_MAX_BYTES = 2**30
_BYTES_OF_A_VALUE: dict[Storage, int] = {"int8": 1, "float16": 2}


@dataclass(frozen=True)
class WebLoss:
    """What a file loses against the float32 model, in dB of PSNR on removed patches.

    Attributes:
        mean: Over all pictures and masks.
        worst: Of one picture and mask.
        pictures: How many were measured.
    """

    mean: float
    worst: float
    pictures: int

    @property
    def is_small(self) -> bool:
        """Whether nobody would see it: 0.02 dB on average and 0.1 dB of a picture."""
        return self.mean <= 0.02 and self.worst <= 0.1


def export_web(
    weights: Weights,
    folder: Path,
    *,
    name: str,
    licence: str | None = None,
    storage: Storage | None = None,
    measure: Callable[[MaskedAutoencoder, bytes], WebLoss] | None = None,
) -> dict[str, Any]:
    """Write NAME.onnx, and NAME.json with what it is.

    The graph is that of `export_onnx`, with other outputs. T tokens are those that
    `MaskedAutoencoder.encoder_ids` numbers:

        pred     (N, L, P) float32, every patch, pixels in (p, q, c) order
        changes  (depth, N, T) float32, the length of what each encoder block adds to each token

    The same weights and packages give the same bytes.

    Args:
        weights: The model.
        folder: Where to; files of these names are replaced, the description last.
        name: Of the model; what has no place in a file's name or an address becomes a hyphen.
        licence: Of the weights, for people; None if not known.
        storage: Of matrices. If not given, `int8` where it is measured and loses little (see
            `WebLoss.is_small`) or float16 is too large, else `float16`.
        measure: Runs the content of a file against the float32 model.

    Returns:
        The description. In the file it is the property `WEB_PROPERTY`, as JSON and without `file`,
        `bytes` and `sha256`.

    Raises:
        CheckpointError: If the weights have no decoder or no three channels, are too large for a
            browser or for float16, or a file cannot be written.
        ConfigError: If the packages that write ONNX, or run it to measure, are not installed.
    """
    check_packages("onnx", "onnxscript", *(["onnxruntime"] if measure else []))
    model, config = weights.build(), weights.config
    if config.in_chans != 3:
        raise CheckpointError(
            f"{weights.name!r} is a model of {config.in_chans} channels, and the page in a browser "
            "shows pictures of 3; give weights of 3 channels"
        )
    for key, tensor in weights.state.items():
        if tensor.ndim > 1 and tensor.abs().max() > torch.finfo(torch.float16).max:
            raise CheckpointError(
                f"{key} holds numbers that are too large for float16; give other weights"
            )
    parameters = sum(tensor.numel() for tensor in weights.state.values())
    kinds = _storages(weights.name, parameters, storage, measured=measure is not None)
    program = translate(trace(weights, config.table_grid, _WebGraph), ("pred", "changes"))
    for kind in kinds:
        content = _stored(program.model_proto, kind)
        loss = measure(model, content.SerializeToString()) if measure else None
        if loss is None or loss.is_small:
            break

    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"
    facts = {
        "licence": licence,
        "target": "norm_pix" if config.norm_pix else "pixels",
        "mean": config.mean, "std": config.std,
        "patch_size": config.patch_size, "grid": config.table_grid,
        "storage": kind, "parameters": parameters,
        "step": _count(weights.record, "step"), "steps": _count(weights.record, "steps"),
        "loss_db": loss and asdict(loss),
        "config": to_dict(config),
    }  # fmt: skip
    content.metadata_props.add(key=WEB_PROPERTY, value=json.dumps({"v": 1, "name": name, **facts}))
    data = content.SerializeToString()
    file = folder / f"{name}.onnx"
    described = {
        "v": 1, "name": name, "file": file.name, "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(), **facts,
    }  # fmt: skip
    write_atomically(file, lambda partial: partial.write_bytes(data))
    write_json(file.with_suffix(".json"), described)
    return described


def _storages(
    name: str, parameters: int, storage: Storage | None, *, measured: bool
) -> list[Storage]:
    """Storages to try, the preferred first; a `CheckpointError` if none fits a browser."""
    wanted: list[Storage] = ["int8", "float16"] if measured else ["float16"]
    wanted = [storage] if storage else wanted
    kinds = [kind for kind in wanted if parameters * _BYTES_OF_A_VALUE[kind] <= _MAX_BYTES]
    if not kinds:
        most = _MAX_BYTES // _BYTES_OF_A_VALUE[wanted[0]]
        advice = ", or the storage int8" if wanted[0] == "float16" else ""
        raise CheckpointError(
            f"{name!r} has {parameters:,} parameters; a browser can hold a file of 1 GiB, "
            f"{most:,} of them as {wanted[0]}; give smaller weights{advice}"
        )
    return kinds


def _count(record: Mapping[str, Any], name: str) -> int | None:
    """A number of steps; a record may come from anybody."""
    value = record.get(name)
    return value if isinstance(value, int) else None


class _WebGraph(Graph):
    def forward(  # type: ignore[override]
        self, images: Tensor, ids_keep: Tensor, ids_restore: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`pred` and `changes`, as `export_web` has them."""
        lengths: list[Tensor] = []

        def note(block: nn.Module, given: tuple[Tensor], result: Tensor) -> None:
            lengths.append((result[:, 1:] - given[0][:, 1:]).norm(dim=2))

        hooks = [block.register_forward_hook(note) for block in self.blocks]
        pred, _ = super().forward(images, ids_keep, ids_restore)
        for hook in hooks:
            hook.remove()
        return pred, torch.stack(lengths)


def _stored(model: "ModelProto", kind: Storage) -> "ModelProto":
    """A model with its larger constants in fewer bits, and without remarks of the exporter."""
    from onnx.numpy_helper import to_array

    graph = model.graph
    direct = {node.input[1] for node in graph.node if node.op_type == "MatMul"}
    constants: list[TensorProto] = []
    casts: list[NodeProto] = []
    for tensor in graph.initializer:
        values = to_array(tensor)
        if values.dtype == np.float32 and values.ndim > 1:
            # Tables of positions have three dimensions. Outputs are the last axis of a matrix that
            # MatMul takes, and the first of convolutions and of what is transposed before.
            axis = None if values.ndim == 3 or kind == "float16" else int(tensor.name in direct)
            made, nodes = _narrowed(tensor.name, values, axis)
            constants += made
            casts += nodes
        else:
            constants.append(tensor)
    nodes = [*casts, *graph.node]
    part: Any
    for part in (model, graph, *nodes, *constants):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    for field in ("initializer", "node", "value_info"):
        graph.ClearField(field)
    graph.initializer.extend(constants)
    graph.node.extend(nodes)
    return model


def _narrowed(
    name: str, values: NDArray[np.float32], axis: int | None
) -> tuple[list["TensorProto"], list["NodeProto"]]:
    """Constants and the operators that make a float32 tensor of them.

    Args:
        name: Of the tensor.
        values: What is in it.
        axis: Of the outputs, each of which gets a scale to be stored as int8; None for float16.
    """
    from onnx import TensorProto
    from onnx.helper import make_node
    from onnx.numpy_helper import from_array

    if axis is None:
        stored = from_array(values.astype(np.float16), f"{name}.float16")
        return [stored], [make_node("Cast", [stored.name], [name], to=TensorProto.FLOAT)]
    others = tuple(i for i in range(values.ndim) if i != axis)
    scale = np.abs(values).max(axis=others, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1
    stored = from_array(np.rint(values / scale).astype(np.int8), f"{name}.int8")
    scales = from_array(scale, f"{name}.scale")
    return [stored, scales], [
        make_node("Cast", [stored.name], [f"{name}.whole"], to=TensorProto.FLOAT),
        make_node("Mul", [f"{name}.whole", scales.name], [name]),
    ]
