"""Every error this package raises on purpose, in one tree.

    MAEError
    ├── ConfigError        a field, recipe or command-line value that is not allowed
    ├── PatchError         pictures and patch grids that do not fit each other
    ├── MaskError          a mask ratio, seed or mask that is not allowed
    ├── ImageError         a picture that cannot be used
    │   ├── ImageFormatError     not a picture, or a format that is not accepted
    │   └── ImageLimitError      a picture too large, too small or too narrow
    ├── CheckpointError    a file of weights or a checkpoint that cannot be used
    ├── DataError          a folder of pictures that cannot be trained or evaluated on
    ├── DeviceError        a device that is not there
    ├── DownloadError      weights that cannot be fetched
    ├── HubError           a hub that cannot be reached or refuses
    └── TrainingError      a training run that cannot go on

Each message says what was given, what is allowed and what to do. Entry points catch
`MAEError` once and end with `error: …` and exit status 2.
"""


class MAEError(Exception):
    """Base of every error a caller can cause and mend."""


class ConfigError(MAEError):
    """A field, recipe or command-line value that is not allowed."""


class PatchError(MAEError):
    """Pictures and patch grids that do not fit each other."""


class MaskError(MAEError):
    """A mask ratio, seed or mask that is not allowed."""


class ImageError(MAEError):
    """A picture that cannot be used."""


class ImageFormatError(ImageError):
    """Not a picture, or a format that is not accepted."""


class ImageLimitError(ImageError):
    """A picture too large, too small or too narrow."""


class CheckpointError(MAEError):
    """A file of weights or a checkpoint that cannot be used."""


class DataError(MAEError):
    """A folder of pictures that cannot be trained or evaluated on."""


class DeviceError(MAEError):
    """A device that is not there."""


class DownloadError(MAEError):
    """Weights that cannot be fetched."""


class HubError(MAEError):
    """A hub that cannot be reached or refuses."""


class TrainingError(MAEError):
    """A training run that cannot go on."""
