"""The README of weights on a hub: what they are, how they were trained, how good they are.

Everything in it comes from the weights' own record and the run's metrics, and nothing is
claimed that they do not say.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from mae_core.config import ModelConfig
from mae_core.weights.saved import Weights

# The grid of reconstructions, as it is called beside the card.
GRID_FILE = "reconstructions.png"

# What the hub calls weights whose owner has named no licence.
NO_LICENSE = "unknown"

# Measurements on the way that the card shows, besides the last.
_MOST_ROWS = 8

_FIGURES = {"holdout_psnr": "PSNR (dB)", "holdout_ssim": "SSIM", "holdout_loss": "loss"}

_FACTS = {
    "recipe": "recipe",
    "init_from": "began with the weights",
    "pictures": "pictures",
    "pictures_seen": "pictures seen, with repetition",
    "steps": "steps",
    "hours": "hours",
    "device": "device",
    "processes": "processes",
    "cores": "CPU cores of the machine",
    "torch": "torch",
}


def write_card(
    repo_id: str,
    weights: Weights,
    metrics: Sequence[Mapping[str, Any]],
    *,
    license_name: str = NO_LICENSE,
    has_grid: bool,
) -> str:
    """The card as Markdown, with the hub's fields in front.

    Args:
        repo_id: USER/NAME on the hub.
        weights: The weights it is about, with the record of their training.
        metrics: The lines of the run's `metrics.jsonl`.
        license_name: As the hub names it, such as `apache-2.0`.
        has_grid: Whether `GRID_FILE` lies beside the card.
    """
    fields = ModelCardData(
        license=license_name,
        library_name="mae_core",
        pipeline_tag="image-feature-extraction",
        tags=["masked-autoencoder", "mae", "vit", "self-supervised-learning"],
    )
    parts = [
        f"---\n{fields.to_yaml()}\n---",
        f"# {repo_id.split('/')[-1]}",
        _summary(weights.config),
        _grid() if has_grid else "",
        f"## Training\n\n{_training(weights.record)}",
        f"## How good they are\n\n{_figures(weights.record, metrics)}",
        _usage(repo_id),
        _LIMITS,
        _licence(license_name),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(config: ModelConfig) -> str:
    target = "pixels"
    if config.norm_pix:
        target = "pixels, normalised in each patch"
    elif config.pca_components:
        target = f"{config.pca_components} principal components of patches"
    height, width = (side * config.patch_size for side in config.table_grid)
    return (
        "Weights of a masked autoencoder (He et al., [*Masked Autoencoders Are Scalable Vision "
        "Learners*](https://arxiv.org/abs/2111.06377), CVPR 2022): it sees a few patches of a "
        "picture and draws the others.\n\n"
        f"Encoder of depth {config.depth} and width {config.embed_dim}; decoder of depth "
        f"{config.decoder_depth} and width {config.decoder_embed_dim}; patches of "
        f"{config.patch_size} x {config.patch_size} in pictures of {height} x {width}; predicts "
        f"{target}."
    )


def _grid() -> str:
    return (
        f"![Reconstructions]({GRID_FILE})\n\n*Each row: original, masked, reconstruction, and "
        "pasted (the true pixels put back where they were seen).*"
    )


def _training(record: Mapping[str, Any]) -> str:
    known = [(label, record[name]) for name, label in _FACTS.items() if record.get(name)]
    if not known:
        return "Nothing is recorded about the training of these weights."
    table = _table(["", ""], [[label, _cell(value)] for label, value in known])
    text = f"{table}\n\nThe whole configuration is in `config.json`."
    if record.get("changes"):
        text += " Fields were changed while it ran; the weights' header lists them as `changes`."
    return text


def _figures(record: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    names = [name for name in _FIGURES if _is_number(record.get(name))]
    if not names:
        return "Nothing was held out, so nothing was measured."
    end = record.get("steps")
    measured = [
        line for line in metrics if line.get("step") != end and all(n in line for n in names)
    ]
    # Evenly spaced, where there are many.
    stride = -(-len(measured) // _MOST_ROWS) or 1
    rows = [*measured[stride - 1 :: stride], {**record, "step": end}]
    table = _table(
        ["step", *(_FIGURES[name] for name in names)],
        [[_cell(row.get("step")), *(_cell(row[name]) for name in names)] for row in rows],
    )
    return (
        "Mean over the pictures held out by whoever trained it, on removed patches, 75 % removed "
        f"at random, as measured by `mae train`. The last row is these weights.\n\n{table}"
    )


def _usage(repo_id: str) -> str:
    name = repo_id.split("/")[-1]
    return f"""## How to look at them

With `mae_core` and its page installed:

```
hf download {repo_id} --local-dir {name}
python -m app --weights {name}
```

From Python:

```python
from huggingface_hub import hf_hub_download
from mae_core import Reconstructor

r = Reconstructor.from_pretrained(
    hf_hub_download("{repo_id}", "weights.safetensors", local_dir="{name}")
)
out = r("photo.jpg", mask_ratio=0.75, seed=2)
out.panels()["pasted"].save("pasted.png")
```"""


_LIMITS = """## How far to trust them

What the model draws is a guess: it fills in what is usual in the pictures it was trained on, with
their biases. What was really hidden may look quite different."""


def _licence(license_name: str) -> str:
    if license_name != NO_LICENSE:
        return ""
    return "## Licence\n\nNone has been named: ask whoever uploaded the weights before using them."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object) -> str:
    """A value in a table; whatever it is, it stays within its cell and names no folder."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    text = " ".join(str(value).replace("\\", "/").split("/")[-1].split())
    return text.replace("|", "\\|")
