"""Upload a finished run to the Hugging Face hub, with a model card.

A pushed repository holds the weights twice: as `weights.safetensors`, which has all that this
package knows of them and is what it reads there, and in transformers' format, so that
`ViTMAEForPreTraining.from_pretrained` opens the same name. Models that transformers' ViTMAE has no
place for are pushed in our format alone. The card says what the weights' record says, and no more.
"""

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCardData, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from mae_core.config import ModelConfig, to_dict
from mae_core.errors import CheckpointError, ConfigError, HubError
from mae_core.weights.export import HUGGINGFACE_FILES, huggingface_writers, lost_in, why_not
from mae_core.weights.files import write_atomically
from mae_core.weights.formats import Weights
from mae_core.weights.registry import WEIGHTS_FILE, locate, read_weights

# The grid of reconstructions next to the card.
GRID_FILE = "reconstructions.png"

# What the hub calls weights whose owner has named no licence.
NO_LICENSE = "unknown"

# Where a dry run writes, inside the run's folder.
_DRY_RUN_FOLDER = "hub"

# Measurements on the way that the card shows, besides the last.
_MOST_ROWS = 8

_FIGURES = {"holdout_psnr": "PSNR (dB)", "holdout_ssim": "SSIM", "holdout_loss": "loss"}
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


def push(
    run: Path,
    repo_id: str,
    *,
    metrics: Sequence[Mapping[str, Any]] = (),
    license_name: str = NO_LICENSE,
    private: bool = False,
    update: bool = False,
    dry_run: bool = False,
) -> str:
    """Upload a finished run, or write what would be uploaded.

    Args:
        run: The run's folder.
        repo_id: USER/NAME on the hub.
        metrics: The lines of the run's `metrics.jsonl`.
        license_name: As the hub names it, such as `apache-2.0`.
        private: Whether only its owner can see it.
        update: Whether it may go on top of what is already there.
        dry_run: Whether it is only written to the folder `hub` of the run.

    Returns:
        The address of the commit, or the folder of the dry run.

    Raises:
        CheckpointError: If the run is not finished or its weights are damaged.
        ConfigError: If the hub cannot have a repository of that name.
        HubError: If there is no token, or the hub cannot be reached or refuses.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id, re.ASCII):
        raise ConfigError(
            f"{repo_id!r} is no name on a hub; give USER/NAME, such as me/flowers, of letters, "
            "digits, '-', '_' and '.'"
        )
    if dry_run:
        folder = run / _DRY_RUN_FOLDER
        write_repository(folder, repo_id, run, metrics=metrics, license_name=license_name)
        return str(folder)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_repository(folder, repo_id, run, metrics=metrics, license_name=license_name)
        return _upload(folder, repo_id, private=private, update=update)


def write_repository(
    folder: Path,
    repo_id: str,
    run: Path,
    *,
    metrics: Sequence[Mapping[str, Any]] = (),
    license_name: str = NO_LICENSE,
) -> None:
    """Write what a run's repository holds.

    Args:
        folder: Where to; files of these names are replaced, or removed if they do not belong.
        repo_id: USER/NAME on the hub.
        run: The run's folder.
        metrics: The lines of the run's `metrics.jsonl`.
        license_name: As the hub names it.

    Raises:
        CheckpointError: If the run is not finished, its weights are damaged, or the files cannot
            be written.
    """
    path = run / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(_unfinished(run))
    weights = read_weights(path)
    ours = {"mae_core": {"model": to_dict(weights.config), "train": weights.record.get("train")}}
    for name in (*HUGGINGFACE_FILES, GRID_FILE):
        (folder / name).unlink(missing_ok=True)
    if why_not(weights, "huggingface") is None:
        for name, write in huggingface_writers(weights, ours).items():
            write_atomically(folder / name, write)
    else:
        config = json.dumps({"model_type": "mae_core", **ours}, indent=2) + "\n"
        _write_text(folder / "config.json", config)
    write_atomically(folder / WEIGHTS_FILE, lambda partial: shutil.copyfile(path, partial))
    grids = sorted(run.glob("reconstructions/step-*.png"))
    if grids:
        write_atomically(folder / GRID_FILE, lambda partial: shutil.copyfile(grids[-1], partial))
    card = write_card(repo_id, weights, metrics, license_name=license_name, has_grid=bool(grids))
    _write_text(folder / "README.md", card)


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _unfinished(run: Path) -> str:
    """Why there is nothing to upload."""
    if not run.is_dir():
        return f"{str(run)!r} is not the folder of a run; give the out= of a training run"
    record = read_weights(locate(run)).record
    return (
        f"the run in {str(run)!r} is not finished: it is at step {record['step']} of "
        f"{record['steps']}; start the same training command again, and upload it after that"
    )


# --- the card


def write_card(
    repo_id: str,
    weights: Weights,
    metrics: Sequence[Mapping[str, Any]],
    *,
    license_name: str = NO_LICENSE,
    has_grid: bool,
) -> str:
    """The Hugging Face model card of a trained run, as Markdown with the hub's fields in front.

    Args:
        repo_id: USER/NAME on the hub.
        weights: The weights it is about, with the record of their training.
        metrics: The lines of the run's `metrics.jsonl`.
        license_name: As the hub names it, such as `apache-2.0`.
        has_grid: Whether `GRID_FILE` lies next to the card.
    """
    lacking = why_not(weights, "huggingface")
    fields = ModelCardData(
        license=license_name,
        library_name="mae_core" if lacking else "transformers",
        pipeline_tag="image-feature-extraction",
        tags=["masked-autoencoder", "mae", "mae_core", "vit", "self-supervised-learning"],
    )
    grid = (
        f"![Reconstructions]({GRID_FILE})\n\n*Each row: original, masked, reconstruction, and "
        "pasted (the true pixels put back where they were seen).*"
    )
    parts = [
        f"---\n{fields.to_yaml()}\n---\n\n# {repo_id.split('/')[-1]}",
        _summary(weights.config),
        grid if has_grid else "",
        f"## Training\n\n{_training(weights.record)}",
        f"## How good they are\n\n{_figures(weights.record, metrics)}",
        f"## How to use them\n\n{_usage(repo_id, weights, lacking)}",
        "## How far to trust them\n\nWhat the model draws is a guess: it fills in what is usual in "
        "the images it was trained on, with their biases. What was really hidden may look quite "
        "different.",
        "## Licence\n\nNone has been named: ask whoever uploaded the weights before using them."
        if license_name == NO_LICENSE
        else "",
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
        "Learners*](https://arxiv.org/abs/2111.06377), CVPR 2022): it sees a few patches of an "
        "image and draws the others.\n\n"
        f"Encoder of depth {config.depth} and width {config.embed_dim}; decoder of depth "
        f"{config.decoder_depth} and width {config.decoder_embed_dim}; patches of "
        f"{config.patch_size} x {config.patch_size} in images of {height} x {width}; predicts "
        f"{target}."
    )


def _training(record: Mapping[str, Any]) -> str:
    known = [[label, _cell(record[name])] for name, label in _FACTS.items() if record.get(name)]
    if not known:
        return "Nothing is recorded about the training of these weights."
    text = f"{_table(['', ''], known)}\n\nThe whole configuration is in `config.json`."
    if record.get("changes"):
        text += " Fields were changed while it ran; the weights' header lists them as `changes`."
    return text


def _figures(record: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    names = [name for name in _FIGURES if isinstance(record.get(name), int | float)]
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
        "Mean over the images held out by whoever trained it, on removed patches, 75 % removed "
        f"at random, as measured by `mae train`. The last row is these weights.\n\n{table}"
    )


def _usage(repo_id: str, weights: Weights, lacking: str | None) -> str:
    text = f"""```python
import mae_core

model = mae_core.load("{repo_id}")
mae_core.Reconstructor(model)("photo.jpg", seed=2).strip().save("photo-mae.png")
```

"""
    if lacking is not None:
        text += f"They are in mae_core's format alone: {lacking.partition(';')[0]}.\n\n"
    else:
        text += f"""```python
from transformers import ViTMAEForPreTraining

model = ViTMAEForPreTraining.from_pretrained("{repo_id}")
```

"""
        if lost := lost_in(weights, "huggingface"):
            text += f"transformers' format does not say {', '.join(lost)}.\n\n"
    return f"{text}The interactive page: `python -m app --weights {repo_id}`"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def _cell(value: object) -> str:
    """A value in a table; whatever it is, it stays within its cell and names no folder."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    text = " ".join(str(value).replace("\\", "/").split("/")[-1].split())
    return text.replace("|", "\\|")


# --- the upload


def _upload(folder: Path, repo_id: str, *, private: bool, update: bool) -> str:
    with _explained(repo_id):
        token = get_token()
        if token is None:
            raise HubError("there is no token; run `hf auth login`, or set HF_TOKEN to one")
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=update)
    with _explained(repo_id, "; the repository is there by now, so try again with --update"):
        # What an earlier push wrote and this one does not would be other weights.
        stale = [*HUGGINGFACE_FILES, GRID_FILE] if update else None
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, delete_patterns=stale,
            commit_message="Upload a run of mae_core",
        )  # fmt: skip
        return str(commit.commit_url)


@contextlib.contextmanager
def _explained(repo_id: str, advice: str = "") -> Iterator[None]:
    """Turn whatever the hub's client raises into a HubError."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # a dozen types without a common base
        raise HubError(f"could not upload to {repo_id!r}: {_reason(error)}{advice}") from error


_SENTENCES = {
    400: "the hub refused it ({said})",
    401: "the hub does not know the token; make one that may write, and run `hf auth login`",
    403: "the token may not write there ({said}); use one of that owner that may",
    404: "the hub has no such owner or repository ({said}); check the name",
    409: "there already is a repository of that name; give another, or --update to go on top of it",
}


def _reason(error: Exception) -> str:
    """What a hub or the way to it had against an upload, and what to do."""
    while not isinstance(error, HfHubHTTPError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it"
    if isinstance(error, HFValidationError):
        return f"{error}; give another name"
    if not isinstance(error, HfHubHTTPError):
        return f"{error or type(error).__name__}; check the network and HF_ENDPOINT"
    said = error.server_message or "no reason given"
    sentence = _SENTENCES.get(error.response.status_code, "the hub answered {status} ({said})")
    return sentence.format(status=error.response.status_code, said=said)
