"""What runs of all kinds share before their first step: a folder, a config, a batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from mae_core.config import RunConfig, save_yaml
from mae_core.distributed import World
from mae_core.errors import ConfigError, TrainingError
from mae_core.training.report import CONFIG_FILE
from mae_core.weights.files import write_atomically


@contextmanager
def alone_in(out: Path, world: World) -> Iterator[None]:
    """Make the folder of a run; refuse a second run in it at the same time."""
    if not world.is_main:
        yield
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(out / ".lock").acquire(timeout=0)
    except filelock.Timeout as error:
        raise TrainingError(
            f"another process trains in {str(out)!r}; wait for it, or give another out="
        ) from error
    except OSError as error:
        raise TrainingError(
            f"the folder {str(out)!r} cannot be written to ({error.strerror}); give another out="
        ) from error
    with lock:
        yield


def check_batch(config: RunConfig, world: World) -> None:
    """Refuse a batch that ranks and micro-batches cannot share alike."""
    shares = world.size * config.system.accumulate
    if config.batch_size % shares:
        # A mean of means would not be the mean.
        raise ConfigError(
            f"batch_size {config.batch_size} does not divide into {world.size} processes "
            f"times {config.system.accumulate} micro-batches; pick a multiple of {shares}"
        )


def write_config(config: RunConfig, recipe_name: str, world: World) -> None:
    """Write `config.yaml` into the folder of a run."""
    if world.is_main:
        path = Path(config.out) / CONFIG_FILE
        write_atomically(path, lambda partial: save_yaml(config, partial, recipe=recipe_name))
