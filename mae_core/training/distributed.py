"""Processes that train one model together, as `torchrun` starts them.

Every process computes the gradient of its own share of the batch; DistributedDataParallel
averages them, or `fully_shard` also splits parameters and optimiser state. A checkpoint always
holds whole tensors, so a run may go on with another number of processes.
"""

import datetime
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from mae_core.devices import choose_device
from mae_core.errors import DeviceError, TrainingError
from mae_core.model.mae import MaskedAutoencoder

# The first process measures and writes while the others wait.
_TIMEOUT = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class World:
    """Who trains together.

    Attributes:
        rank: Number of this process, from 0; the first one logs, measures and writes.
        size: Processes in all.
        device: Where this process computes.
    """

    rank: int
    size: int
    device: torch.device
    _votes: Tensor = field(default_factory=lambda: torch.zeros(()), repr=False, compare=False)

    @property
    def is_first(self) -> bool:
        """Whether this process logs, measures and writes."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether any process says so. Every process has to ask; the device is not waited for.

        Raises:
            TrainingError: If another process is gone.
        """
        if self.size == 1:
            return flag
        # On the CPU, so that gloo carries it.
        self._votes.fill_(flag)
        try:
            dist.all_reduce(self._votes, dist.ReduceOp.MAX)
        except RuntimeError as error:
            raise TrainingError(
                "another process of this run has ended; what it said tells why"
            ) from error
        return bool(self._votes.item())

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes of a tensor of numbers, on its device."""
        if self.size == 1:
            return value
        mean = value / self.size
        dist.all_reduce(mean)
        return mean

    def wait(self) -> None:
        """Go on once every process has come this far."""
        self.any(False)


@contextmanager
def joined_world(device: str = "auto") -> Iterator[World]:
    """The processes that torchrun started, or this one alone.

    At the end all have come this far; what joins them stays until the process ends, which
    `end_process` sees to.

    Raises:
        TrainingError: If the others cannot be reached.
        DeviceError: If the device is not there, or a machine has more processes than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device)
    if size == 1:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        chosen = _own_gpu(int(os.environ["LOCAL_RANK"]))
    elif chosen.type == "mps":
        # There is one such device, and no way to average gradients on it.
        chosen = torch.device("cpu")
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", timeout=_TIMEOUT
        )
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"the {size} processes could not join ({error}); start them with torchrun, and give "
            "every node the same --rdzv-endpoint"
        ) from error
    world = World(dist.get_rank(), size, chosen)
    yield world
    world.wait()


def end_process(status: int) -> NoReturn:
    """Exit with a status; at once, where this process has trained with others.

    The threads that carried tensors free them when they get to it, and need the interpreter's
    lock for that. While the group is taken down whoever has the lock waits for these threads,
    and an interpreter that is being taken down aborts the process when they ask for it. So
    neither is done: everything is written and closed by now, and the system takes the rest.
    """
    if not dist.is_initialized():
        sys.exit(status)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _own_gpu(local_rank: int) -> torch.device:
    """The GPU of this process, from now on the one that CUDA means."""
    gpus = torch.cuda.device_count()
    if local_rank >= gpus:
        raise DeviceError(
            f"process {local_rank + 1} of this machine has no GPU, for there are {gpus}; give "
            f"torchrun --nproc-per-node {gpus}"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def distribute(model: MaskedAutoencoder, world: World, *, shard: bool) -> nn.Module:
    """What to call in place of `model`, so that its gradients are averaged over all processes.

    Args:
        model: On the world's device; the same in every process.
        world: Who trains together.
        shard: Whether parameters are split too; `model` itself is changed then.
    """
    if shard:
        _require_processes(world)
        # `pred` is a view, which nothing writes into.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        for block in (*model.blocks, *model.decoder_blocks):
            fully_shard(block)
        fully_shard(model)
        return model
    if world.size == 1:
        return model
    # A view into the reduced bucket saves a copy of all gradients.
    ids = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def _require_processes(world: World) -> None:
    if world.size == 1:
        raise TrainingError(
            "system.shard splits the model over processes and there is one; start several with "
            "torchrun, or leave system.shard out"
        )


@contextmanager
def gradients_kept_local(model: nn.Module, *, local: bool) -> Iterator[None]:
    """Backward passes in here leave the processes' gradients unaveraged where `local`.

    Of micro-batches that add up to one step, only the last one has to average.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(not local)
        yield
        return
    keep = local and isinstance(model, DistributedDataParallel)
    with model.no_sync() if keep else nullcontext():  # type: ignore[operator]
        yield


def whole(values: Any) -> Any:
    """Nested plain data with every split tensor put together, on the CPU.

    Every process has to call it with the same structure.
    """
    if isinstance(values, DTensor):
        return values.full_tensor().cpu()
    if isinstance(values, Tensor):
        return values.detach().cpu()
    if isinstance(values, Mapping):
        return {key: whole(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [whole(value) for value in values]
    return values


def split_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of `like`, split over the processes as `like` is."""
    value = value.to(like.device)
    if isinstance(like, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value, like.device_mesh, like.placements)
    return value
