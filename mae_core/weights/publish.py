"""Upload a finished run to the Hugging Face hub, with a model card.

A pushed repository holds the weights twice: as `weights.safetensors`, which has all that this
package knows of them and is what it reads there, and in transformers' format, so that
`ViTMAEForPreTraining.from_pretrained` opens the same name, or if they are a classifier in timm's.
Models that transformers' ViTMAE has no place for, and classifiers of another epsilon than timm's,
are pushed in our format alone. The card says what the weights' record says, and no more.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, constants

from mae_core.config import to_dict
from mae_core.errors import CheckpointError, ConfigError, DownloadError
from mae_core.weights.export import (
    TRANSFORMERS_FILES,
    lacks_epsilon,
    lost_in,
    why_not,
    write_json,
    write_timm_files,
    write_transformers_files,
)
from mae_core.weights.files import WEIGHTS_FILE, weights_in, write_atomically
from mae_core.weights.formats import Weights
from mae_core.weights.hub import UPLOAD_STATUSES, is_repository, open_hub, reason_of
from mae_core.weights.registry import locate, read_weights

# The grid of reconstructions next to the card.
GRID_FILE = "reconstructions.png"

# What the hub calls weights whose owner has named no licence.
NO_LICENSE = "unknown"

# Classes that the card of a classifier names.
_MOST_NAMES = 50

# What the card shows of the record.
_FACTS = {
    "recipe": "recipe",
    "init_from": "began with the weights",
    "pictures": "images",
    "pictures_seen": "images seen, with repetition",
    "steps": "steps",
    "hours": "hours",
    "device": "device",
    "processes": "processes",
    "cores": "CPU cores of the machine",
    "torch": "torch",
}
_SCORES = {"accuracy": "accuracy, 0 to 1"}
_FIGURES = {"holdout_psnr": "PSNR (dB)", "holdout_ssim": "SSIM", "holdout_loss": "loss"}


def push(
    run: Path,
    repo_id: str,
    *,
    license_name: str = NO_LICENSE,
    private: bool = False,
    update: bool = False,
    dry_run: bool = False,
) -> str:
    """Upload a finished run; returns the address of the commit, or the folder of the dry run.

    Args:
        run: The run's folder.
        repo_id: USER/NAME on the hub.
        license_name: As the hub names it, such as `apache-2.0`.
        private: Whether only its owner can see it.
        update: Whether it may go on top of what is already there.
        dry_run: Whether it is only written to the folder `hub` of the run.

    Raises:
        CheckpointError: If the run is not finished or its weights are damaged.
        ConfigError: If the hub cannot have a repository of that name.
        DownloadError: If there is no token, or the hub cannot be reached or refuses.
    """
    if not is_repository(repo_id):
        raise ConfigError(
            f"{repo_id!r} is no name on a hub; give USER/NAME, such as me/flowers, of letters, "
            "digits, '-', '_' and '.'"
        )
    if dry_run:
        write_repository(run / "hub", repo_id, run, license_name=license_name)
        return str(run / "hub")
    with tempfile.TemporaryDirectory() as folder:
        write_repository(Path(folder), repo_id, run, license_name=license_name)
        return _upload(Path(folder), repo_id, private=private, update=update)


def write_repository(
    folder: Path, repo_id: str, run: Path, *, license_name: str = NO_LICENSE
) -> None:
    """Write what a run's repository holds; files of an earlier call are replaced or removed."""
    path = run / WEIGHTS_FILE
    if not path.is_file():
        if not run.is_dir() or weights_in(run) is None:
            raise CheckpointError(
                f"{str(run)!r} is not the folder of a run; give the out= of a training run"
            )
        record = read_weights(locate(run)).record
        raise CheckpointError(
            f"the run in {str(run)!r} is not finished: it is at step {record['step']} of "
            f"{record['steps']}; start the same training command again, and upload it after that"
        )
    weights = read_weights(path)
    for name in (*TRANSFORMERS_FILES, GRID_FILE):
        (folder / name).unlink(missing_ok=True)
    config: dict[str, Any] = {
        "mae_core": {"model": to_dict(weights.config), "train": weights.record.get("train")}
    }
    if _lacking(weights) is None:
        write = write_timm_files if weights.kind == "classifier" else write_transformers_files
        write(folder, weights, config)
    else:
        write_json(folder / "config.json", {"model_type": "mae_core", **config})
    write_atomically(folder / WEIGHTS_FILE, lambda partial: shutil.copyfile(path, partial))
    grids = sorted(run.glob("reconstructions/step-*.png"))
    if grids:
        write_atomically(folder / GRID_FILE, lambda partial: shutil.copyfile(grids[-1], partial))
    card = write_card(repo_id, weights, license_name=license_name, has_grid=bool(grids))
    write_atomically(
        folder / "README.md", lambda partial: partial.write_text(card, encoding="utf-8")
    )


def _lacking(weights: Weights) -> str | None:
    """Why the weights are pushed in our format alone; None if they are not."""
    if weights.kind == "classifier":
        return lacks_epsilon(weights)
    return why_not(weights, "huggingface")


# --- the card


def write_card(
    repo_id: str, weights: Weights, *, license_name: str = NO_LICENSE, has_grid: bool
) -> str:
    """The Hugging Face model card of a trained run: Markdown with the hub's fields in front."""
    config, record, lacking = weights.config, weights.record, _lacking(weights)
    if weights.kind == "classifier":
        return _classifier_card(repo_id, weights, license_name, lacking)
    fields = ModelCardData(
        license=license_name,
        library_name="mae_core" if lacking else "transformers",
        pipeline_tag="image-feature-extraction",
        tags=["masked-autoencoder", "mae", "mae_core", "vit", "self-supervised-learning"],
    )
    target = "pixels"
    if config.norm_pix:
        target = "pixels, normalised in each patch"
    elif config.pca_components:
        target = f"{config.pca_components} principal components of patches"
    height, width = (side * config.patch_size for side in config.table_grid)
    grid = (
        f"![Reconstructions]({GRID_FILE})\n\n*Each row: original, masked, reconstruction, and "
        "pasted (the true pixels put back where they were seen).*\n\n"
    )
    facts = _table(record, _FACTS) or "Nothing is recorded about the training of these weights."
    figures = _table(record, _FIGURES)
    if figures:
        figures = (
            "Mean over the images held out by whoever trained it, on removed patches, 75 % "
            f"removed at random, as measured by `mae train`.\n\n{figures}"
        )
    return f"""---
{fields.to_yaml()}
---

# {repo_id.split("/")[-1]}

Weights of a masked autoencoder (He et al., [*Masked Autoencoders Are Scalable Vision
Learners*](https://arxiv.org/abs/2111.06377), CVPR 2022): it sees a few patches of an image and
draws the others.

Encoder of depth {config.depth} and width {config.embed_dim}; decoder of depth \
{config.decoder_depth} and width {config.decoder_embed_dim}; patches of \
{config.patch_size} x {config.patch_size} in images of {height} x {width}; predicts {target}.

{grid if has_grid else ""}## Training

{facts}

The whole configuration is in `config.json`.

## How good they are

{figures or "Nothing was held out, so nothing was measured."}

## How to use them

```python
import mae_core

model = mae_core.load("{repo_id}")
mae_core.Reconstructor(model)("photo.jpg", seed=2).strip().save("photo-mae.png")
```

{_in_transformers(repo_id, weights, lacking)}

The interactive page: `python -m app --weights {repo_id}`

## How far to trust them

What the model draws is a guess: it fills in what is usual in the images it was trained on, with
their biases. What was really hidden may look quite different.
"""


def _classifier_card(repo_id: str, weights: Weights, license_name: str, lacking: str | None) -> str:
    config = weights.config
    fields = ModelCardData(
        license=license_name,
        library_name="mae_core" if lacking else "timm",
        pipeline_tag="image-classification",
        tags=["masked-autoencoder", "mae", "mae_core", "vit", "image-classification"],
    )
    pooled = "the mean of the patch tokens"
    if "fc_norm.weight" not in weights.state:
        pooled = "the class token"
    height, width = (side * config.patch_size for side in config.table_grid)
    facts, figures = (_table(weights.record, labels) for labels in (_FACTS, _SCORES))
    if figures:
        figures = f"On images kept apart by whoever trained it.\n\n{figures}"
    elsewhere = f"They are in mae_core's format alone: {lacking}."
    if lacking is None:
        elsewhere = f"""```python
import timm

model = timm.create_model("hf-hub:{repo_id}", pretrained=True).eval()
```"""
    names = [" ".join(name.split()).replace("`", "'") for name in weights.classes]
    more = f", and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    listed = ", ".join(f"`{name}`" for name in names[:_MOST_NAMES])
    classes = f"The classes: {listed}{more}." if names else "Names of the classes are not recorded."
    return f"""---
{fields.to_yaml()}
---

# {repo_id.split("/")[-1]}

A classifier of {weights.num_classes} classes: the encoder of a masked autoencoder (He et al.,
[*Masked Autoencoders Are Scalable Vision Learners*](https://arxiv.org/abs/2111.06377), CVPR 2022),
fine-tuned, with a linear head on {pooled}.

Depth {config.depth}, width {config.embed_dim}; patches of {config.patch_size} x \
{config.patch_size} in images of {height} x {width}.

{classes}

## Training

{facts or "Nothing is recorded about the training of these weights."}

The whole configuration is in `config.json`.

## How good they are

{figures or "Nothing is recorded."}

## How to use them

```
mae evaluate predict {repo_id} PICTURES
mae evaluate classifier {repo_id} DATA
```

{elsewhere}

## How far to trust them

A classifier names one of its classes for any picture, also where none of them is in it. On other
kinds of pictures than those it was trained on its errors and biases are other ones.
"""


def _in_transformers(repo_id: str, weights: Weights, lacking: str | None) -> str:
    if lacking is not None:
        return f"They are in mae_core's format alone: {lacking.partition(';')[0]}."
    lost = lost_in(weights, "huggingface")
    said = f"\n\ntransformers' format does not say {', '.join(lost)}." if lost else ""
    return f"""```python
from transformers import ViTMAEForPreTraining

model = ViTMAEForPreTraining.from_pretrained("{repo_id}")
```{said}"""


def _table(record: dict[str, Any], labels: dict[str, str]) -> str:
    """What is known of `labels`; a value stays within its cell and names no folder."""
    rows = []
    for name, label in labels.items():
        value = record.get(name)
        if isinstance(value, int | float):
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        else:
            shown = " ".join(str(value or "").replace("\\", "/").split("/")[-1].split())
        if shown:
            rows.append(f"| {label} | " + shown.replace("|", "\\|") + " |")
    return "\n".join(["| | |", "| --- | --- |", *rows]) if rows else ""


# --- the upload


def _upload(folder: Path, repo_id: str, *, private: bool, update: bool) -> str:
    api, advice = open_hub(), ""
    try:
        api.create_repo(repo_id, private=private, exist_ok=update)
        advice = "; the repository is there by now, so try again with --update"
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="Upload a run of mae_core",
            # What an earlier push wrote and this one does not would be other weights.
            delete_patterns=[*TRANSFORMERS_FILES, GRID_FILE] if update else None,
        )  # fmt: skip
    except Exception as error:  # a dozen types without a common base
        raise DownloadError(
            f"could not upload {repo_id} to {constants.ENDPOINT}: "
            f"{reason_of(error, UPLOAD_STATUSES)}{advice}",
            code="hub",
        ) from error
    return str(commit.commit_url)
