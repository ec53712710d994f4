"""Ranks that train one model together, as `torchrun` starts them (DistributedDataParallel).

Every rank holds the whole model, so a run may go on with another number of ranks.
"""

import datetime
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mae_core.devices import choose_device
from mae_core.errors import ConfigError, TrainingError

Value = TypeVar("Value")

# Rank 0 measures and writes while the others wait.
_TIMEOUT = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class World:
    """This process, `rank`, among the `size` processes of a run, and where it computes."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank logs, measures and writes."""
        return self.rank == 0

    def any_rank(self, flag: bool) -> bool:
        """Logical OR over ranks. Collective: call it on every rank."""
        if self.size == 1:
            return flag
        # On the CPU, so that gloo carries it and the GPU is not waited for.
        flags = torch.tensor(float(flag))
        try:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        except RuntimeError as error:
            raise TrainingError(
                "another process of this run has ended; its own message tells why"
            ) from error
        return bool(flags.item())

    def barrier(self) -> None:
        """Wait for every rank. Collective."""
        self.any_rank(False)

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over ranks, on its device. Collective."""
        if self.size == 1:
            return value
        mean = value / self.size
        dist.all_reduce(mean)
        return mean

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, in their order, as each rank gets them. Collective."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the body on rank 0, then on the others, which find the files it made. Collective."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()


# One process, on a CPU.
ALONE = World(0, 1, torch.device("cpu"))


@contextmanager
def init_distributed() -> Iterator[World]:
    """The ranks that torchrun started, or this process alone.

    All ranks meet at the end. The process group stays until the process ends; see `end_process`.
    """
    size, chosen = int(os.environ.get("WORLD_SIZE", "1")), choose_device("auto")
    if size == 1:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= gpus:
            raise ConfigError(
                f"this machine has {gpus} GPUs for more processes; give torchrun "
                f"--nproc-per-node {gpus}",
                code="device",
            )
        chosen = torch.device("cuda", local_rank)
        torch.cuda.set_device(chosen)
    elif chosen.type == "mps":
        # No backend averages gradients there.
        chosen = torch.device("cpu")
    try:
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"the {size} processes could not join ({error}); start them with torchrun"
        ) from error
    world = World(dist.get_rank(), size, chosen)
    yield world
    world.barrier()


def distribute(model: nn.Module, world: World) -> nn.Module:
    """The module to call in place of `model`, so that gradients are averaged over ranks."""
    if world.size == 1:
        return model
    ids = [world.device.index] if world.device.type == "cuda" else None
    # Gradients as views of the reduced buckets save a copy of all gradients.
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def end_process(status: int) -> NoReturn:
    """Exit with a status; at once if this process has trained with others.

    Threads of the process group need the interpreter's lock to free tensors, so tearing down
    the group or the interpreter can deadlock. All files are written by then.
    """
    if not dist.is_initialized():
        sys.exit(status)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
