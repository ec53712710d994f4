"""Every error this package raises on purpose, in one tree.

    MAEError
    ├── ConfigError        a field, recipe or command-line value that is not allowed
    ├── PatchError         images and patch grids that do not fit each other
    ├── MaskError          a mask ratio, seed or mask that is not allowed
    ├── ImageError         an image that cannot be used
    │   ├── ImageFormatError     not an image, or a format that is not accepted
    │   └── ImageLimitError      an image too large, too small or too narrow
    ├── CheckpointError    a file of weights or a checkpoint that cannot be used
    ├── DataError          a folder of images that cannot be trained or evaluated on
    ├── DeviceError        a device that is not on this machine
    ├── DownloadError      weights that cannot be fetched
    ├── HubError           a hub that cannot be reached or refuses
    └── TrainingError      a training run that cannot go on

Each message says what was given, what is allowed and what to do. Entry points catch
`MAEError` once and end with `error: …` and exit status 2.
"""

__all__ = [
    "CheckpointError", "ConfigError", "DataError", "DeviceError", "DownloadError", "HubError",
    "ImageError", "ImageFormatError", "ImageLimitError", "MAEError", "MaskError", "PatchError",
    "TrainingError",
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
    """A field, recipe or command-line value that is not allowed."""

    code = "config"


class PatchError(MAEError):
    """Images and patch grids that do not fit each other."""

    code = "patches"


class MaskError(MAEError):
    """A mask ratio, seed or mask that is not allowed."""

    code = "mask"


class ImageError(MAEError):
    """An image that cannot be used."""

    code = "image"


class ImageFormatError(ImageError):
    """Not an image, or a format that is not accepted."""

    code = "image_format"


class ImageLimitError(ImageError):
    """An image too large, too small or too narrow."""

    code = "image_limit"


class CheckpointError(MAEError):
    """A file of weights or a checkpoint that cannot be used."""

    code = "checkpoint"


class DataError(MAEError):
    """A folder of images that cannot be trained or evaluated on."""

    code = "data"


class DeviceError(MAEError):
    """A device that is not on this machine."""

    code = "device"


class DownloadError(MAEError):
    """Weights that cannot be fetched."""

    code = "download"


class HubError(MAEError):
    """A hub that cannot be reached or refuses."""

    code = "hub"


class TrainingError(MAEError):
    """A training run that cannot go on."""

    code = "training"
