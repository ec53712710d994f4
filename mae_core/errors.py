"""Every error this package raises on purpose, in one tree.

    MAEError
    ├── ConfigError        a field, recipe, device or command-line value that is not allowed
    ├── MaskError          a mask ratio, seed or mask that is not allowed
    ├── ImageError         an image that cannot be used
    ├── CheckpointError    a file of weights or a checkpoint that cannot be used
    ├── DataError          a folder of images that cannot be trained or evaluated on
    ├── DownloadError      weights that cannot be fetched, or a hub that refuses
    └── TrainingError      a training run that cannot go on

Each message says what was given, what is allowed and what to do. Entry points catch
`MAEError` once and end with `error: …` and exit status 2.
"""

__all__ = [
    "CheckpointError", "ConfigError", "DataError", "DownloadError", "ImageError", "MAEError",
    "MaskError", "TrainingError",
]  # fmt: skip


class MAEError(Exception):
    """Base of every error that a caller can cause and mend.

    Attributes:
        code: What went wrong, for programs: a page shows its own sentence for a code, in the
            language of its visitor. Each class has a default; `raise` may name a finer one.
        parameters: What such a sentence needs besides, by name: the value given, the limit.
    """

    code = "error"

    def __init__(self, message: str = "", *, code: str | None = None, **parameters: object) -> None:
        super().__init__(message)
        self.code = code or type(self).code
        self.parameters = parameters


class ConfigError(MAEError):
    """A value that is not allowed; the codes `patches` and `device` say of what."""

    code = "config"


class MaskError(MAEError):
    """A mask ratio, seed or mask that is not allowed."""

    code = "mask"


class ImageError(MAEError):
    """An image that cannot be used; the code `image_limit` is of its size."""

    code = "image"


class CheckpointError(MAEError):
    """A file of weights or a checkpoint that cannot be used."""

    code = "checkpoint"


class DataError(MAEError):
    """A folder of images that cannot be trained or evaluated on."""

    code = "data"


class DownloadError(MAEError):
    """Weights that cannot be fetched, or a hub that refuses (code `hub`)."""

    code = "download"


class TrainingError(MAEError):
    """A training run that cannot go on."""

    code = "training"
