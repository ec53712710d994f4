"""What a page on ZeroGPU does, one thing after another; prints as JSON what came of it.

python page.py FIRST SECOND: two files of weights.
"""

import json
import sys
import threading
from pathlib import Path
from typing import Any

import spaces  # type: ignore[import-not-found]
import torch
from PIL import Image

from app.models.served import ServedModel
from mae_core import MAEError, MaskedAutoencoder, Reconstruction, Reconstructor, load
from mae_core.inside.attention import attend
from mae_core.inside.leaks import prove
from mae_core.inside.stages import trace
from mae_core.reconstruct import ReconstructionRequest

found: dict[str, Any] = {}
picture = Image.effect_noise((112, 112), 60).convert("RGB")


def ask(model: ServedModel, seed: int = 2, mask_ratio: float = 0.75) -> Any:
    (result,), state = model.run([ReconstructionRequest(picture, mask_ratio, seed)])
    return (result, state.facts(result)) if isinstance(result, Reconstruction) else result


def difference(model: ServedModel, file: str, seed: int = 2) -> float:
    """The largest one between a model's pixels and those of the file's on the CPU."""
    read = load(file)
    with_cpu = Reconstructor(read, device="cpu", precision="float32")
    result, _ = ask(model, seed)
    gap = result.reconstruction - with_cpu(picture, seed=seed).reconstruction
    return float(gap.abs().max())


def in_thread(work: Any) -> Any:
    """Do something where nothing pretends, as models that visitors choose are read."""
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(work()))
    thread.start()
    thread.join()
    return got[0]


first_file, second_file, full = sys.argv[1:]
encode = MaskedAutoencoder.encode


def encode_unless_full(self: MaskedAutoencoder, *arguments: Any) -> Any:
    if spaces._forked and Path(full).exists():
        raise torch.OutOfMemoryError("CUDA out of memory")
    return encode(self, *arguments)


MaskedAutoencoder.encode = encode_unless_full  # type: ignore[method-assign]

first = ServedModel.open(first_file)
found["asked_at_start"] = len(spaces.calls)
parameters = first._state.reconstructor.model.parameters()
found["numbers_here"] = sum(int(parameter.count_nonzero()) for parameter in parameters)
found["max_batch"] = first.max_batch
found["first"] = in_thread(lambda: difference(first, first_file))
found["facts"] = in_thread(lambda: ask(first))[1]
# Read after the fork, in a thread of its own.
second = in_thread(lambda: ServedModel.open(second_file))
found["second"] = in_thread(lambda: difference(second, second_file))
found["second_again"] = in_thread(lambda: difference(second, second_file, seed=3))
found["workers"] = len({pid for pid, _ in spaces.calls})
# Forked again, the worker has it.
spaces.end_worker()
gone = Path(second_file).rename(second_file + ".gone")
(inherited, _) = in_thread(lambda: ask(second))
gone.rename(second_file)
found["inherited"] = type(inherited).__name__
# What looks inside a model goes there too.
request = ReconstructionRequest(picture, seed=2)
lent = first._state.reconstructor
here = Reconstructor(load(first_file), device="cpu", precision="float32")
rows = [attend(one, request, 5).decoder for one in (lent, here)]
found["attention"] = float((rows[0] - rows[1]).abs().max())
traces = [trace(one, request) for one in (lent, here)]
found["trace"] = traces[0].stages == traces[1].stages
found["proved"] = prove(lent, request).same
found["seconds"] = sorted({seconds for _, seconds in spaces.calls})
found["refused_here"] = type(ask(first, mask_ratio=7)).__name__
Path(full).touch()
found["full"] = in_thread(lambda: ask(first))[1]
Path(full).unlink()
sentences = {
    "quota": (
        "ZeroGPU quota exceeded",
        "You have exceeded your free ZeroGPU quota (10s requested "
        "vs. 3s left). Try again in 1 day, 0:12:00. <a href='https://x'>Subscribe</a>",
    ),
    "runs": ("ZeroGPU quota exceeded", "You have exceeded your ZeroGPU runs limit. "),
    "busy": ("ZeroGPU queue timeout", "No GPU was available after 60s. <a>Log in</a>"),
    "aborted": ("ZeroGPU worker error", "GPU task aborted"),
}
found["refusals"] = {}
for name, (title, message) in sentences.items():
    spaces.refusal = spaces.PageError(message, title)
    error = ask(first)
    assert isinstance(error, MAEError)
    found["refusals"][name] = [
        getattr(error, "reason", None),
        getattr(error, "wait", None),
        str(error),
    ]
spaces.refusal = None
spaces.end_worker()
print(json.dumps(found))
