"""Pack a folder of images: mae pack FOLDER OUT [field=value …].

    mae pack IMAGES packs/mine short_side=160

Decodes every image once into `OUT`, to train on with `data.pack=OUT` on any machine. Packing again
does nothing unless a file came, went or changed.

Fields: `short_side=256`, the most pixels that an image keeps on its shorter side, 0 for all of
them; `max_unreadable=0.05`, the largest share of files that may be unreadable; and for measurements
`channels=3`, `bands=3,2,1` and `range=auto`, which `DataConfig` explains.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mae_core.config import DataConfig, ModelConfig, with_overrides
from mae_core.data.datasets import ImageReader, find_images
from mae_core.data.pack import pack_folder
from mae_core.errors import ConfigError


@dataclass(frozen=True)
class PackConfig:
    """How images are packed: fields of `DataConfig`, with its limits."""

    short_side: int = DataConfig.short_side
    max_unreadable: float = DataConfig.max_unreadable
    channels: int = ModelConfig.in_chans
    bands: tuple[int, ...] = DataConfig.bands
    range: str = DataConfig.range

    def __post_init__(self) -> None:
        DataConfig(short_side=self.short_side, max_unreadable=self.max_unreadable, range=self.range)
        ModelConfig(in_chans=self.channels, bands=self.bands)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    if len(arguments) < 2 or "=" in arguments[1]:
        raise ConfigError("give a folder of images and a folder for the pack")
    folder, out, *overrides = arguments
    config = with_overrides(PackConfig(), overrides)
    reader = ImageReader(config.channels, config.bands, config.range, config.short_side)
    found = reader.find_range(find_images(folder, quiet=True))
    reader = replace(reader, value_range=found or config.range)
    pack = pack_folder(folder, out, reader=reader, max_unreadable=config.max_unreadable)
    print(
        f"{len(pack)} images, {pack.pixels.nbytes / 1e6:.0f} MB in {out}; "
        f"train on them with data.pack={out}"
    )
    return 0
