"""The browser's arithmetic beside a model in Python: its runs are noted and handed over."""

import base64
import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mae_core import MaskedAutoencoder, ModelConfig, Reconstructor
from mae_core.config import to_dict
from mae_core.model.masking import PatchMask
from mae_core.reconstruct import Rebuilt
from tests.javascript import run

# `given` is {job, plan, runs}; a run is found by the picture and the mask that it was of.
ANSWER = """
import { createHash } from 'node:crypto';
import { normalise } from './web/arithmetic.js';
import { answer } from './web/experiments.js';
const { description, pixels, runs, frame } = given;
const floats = (text) => new Float32Array(new Uint8Array(Buffer.from(text, 'base64')).buffer);
const picture = Buffer.from(pixels, 'base64');
const stills = [];
const job = {
  ...given.job, description, device: 'wasm',
  images: normalise(picture, description.mean, description.std),
  encodeStill: async (raster) => {
    stills.push(raster);
    return Buffer.from(frame, 'base64');
  },
};
const run = async ({ idsKeep }, images) => {
  const hash = createHash('sha256').update(new Uint8Array(images.buffer)).update(idsKeep.join());
  const found = runs[hash.digest('hex')];
  return { pred: floats(found.pred), changes: floats(found.changes), seconds: 0.5 };
};
const parts = [];
let problem = null;
try {
  for await (const part of answer(given.plan, job, run)) parts.push(part);
} catch ({ text, values }) {
  problem = { text, values };
}
const plain = (_, value) =>
  (value instanceof Uint8Array ? { bytes: Buffer.from(value).toString('base64') } : value);
console.log(JSON.stringify({ parts, problem, stills }, plain));
"""


class NotingReconstructor(Reconstructor):
    """Notes what the model predicts, by picture and mask.

    Attributes:
        runs: As `ANSWER` takes them.
    """

    def __init__(self, model: MaskedAutoencoder, name: str) -> None:
        super().__init__(model, name, device="cpu", precision="float32")
        self.runs: dict[str, dict[str, str]] = {}

    def rebuild(self, images: Tensor, patch_mask: PatchMask, view: str) -> Rebuilt:
        preds: list[Tensor] = []
        note = self.model.decoder_pred.register_forward_hook(
            lambda _, __, pred: preds.append(pred[:, 1:])
        )
        rebuilt = super().rebuild(images, patch_mask, view)
        note.remove()
        for image, ids_keep, pred in zip(images, patch_mask.ids_keep, *preds, strict=True):
            self.note(image, ids_keep, pred)
        return rebuilt

    def note(self, image: Tensor, ids_keep: Tensor, pred: Tensor, changes: Any = ()) -> None:
        """Note a run on one picture."""
        key = hashlib.sha256(image.contiguous().numpy().tobytes())
        key.update(",".join(map(str, ids_keep.tolist())).encode())
        self.runs[key.hexdigest()] = {"pred": encoded(pred), "changes": encoded(changes)}


def described(config: ModelConfig, name: str) -> dict[str, Any]:
    """A model as `mae export-web` describes it, as far as the arithmetic needs it."""
    return {
        "v": 1, "name": name, "licence": None, "storage": "float32", "step": None, "steps": None,
        "target": "norm_pix" if config.norm_pix else "pixels",
        "mean": config.mean, "std": config.std, "patch_size": config.patch_size,
        "grid": config.table_grid, "config": to_dict(config),
    }  # fmt: skip


def encoded(values: Any) -> str:
    """Numbers as float32 in base64."""
    return base64.b64encode(np.asarray(values, np.float32).tobytes()).decode()


def floats(text: str) -> NDArray[np.float32]:
    """The numbers that `encoded` had."""
    return np.frombuffer(base64.b64decode(text), np.float32)


def answered(node: str, **given: Any) -> dict[str, Any]:
    """What `answer` of the browser gives; pictures as PIL has them."""

    def picture(value: dict[str, Any]) -> Any:
        if set(value) == {"bytes"}:
            return base64.b64decode(value["bytes"])
        if set(value) == {"width", "height", "data"}:
            return Image.frombytes("RGB", (value["width"], value["height"]), value["data"])
        return value

    answer: dict[str, Any] = json.loads(run(node, ANSWER, given), object_hook=picture)
    return answer


def is_near(one: Image.Image, other: Image.Image) -> bool:
    """Whether pictures are the same but for one level in at most one of 10,000 values.

    Sums of float32 in another order round otherwise.
    """
    a, b = (np.asarray(each, int) for each in (one, other))
    if a.shape != b.shape:
        return False
    apart = np.abs(a - b)
    return bool(apart.max() <= 1 and (apart > 0).mean() <= 1e-4)
