"""Torch files read without running anything in them.

`torch.load(weights_only=True)` runs nothing and checks that tensors fit their storages. But it
allocates what some allowed functions ask for, such as `bytearray(10**12)`; it unpacks compressed
archives; and one harmless object beside the weights, such as a path, makes it refuse the file. So
the names in the pickle are read first, without making anything: names of tensors and plain data
are allowed, inert objects stand in for harmless ones, and all others are refused.
"""

import argparse
import io
import pickletools
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mae_core.errors import CheckpointError

# The optimiser state of a huge model is a pickle of about a megabyte.
_MAX_PICKLE_BYTES = 2**25
_MAX_INSTRUCTIONS = 5_000_000

# What weights need and torch makes by itself; torch allows more.
_BY_TORCH = {
    "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter", "torch.Size", "torch.device", "collections.OrderedDict",
    "collections.Counter", "builtins.set", "builtins.complex", "_codecs.encode",
}  # fmt: skip
# Plain data that may lie beside weights and is of no use for them.
_INERT_MODULES = {
    "pathlib", "pathlib._local", "datetime", "decimal", "fractions", "uuid", "numpy",
    "numpy.core.multiarray", "numpy._core.multiarray", "torch.torch_version",
}  # fmt: skip
_INERT_NAMES = {"types.SimpleNamespace"} | {
    f"builtins.{name}" for name in ("list", "dict", "int", "float", "str", "bool", "bytes",
                                    "tuple", "frozenset", "range", "slice")
}  # fmt: skip
_LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric"}

# How a torch file of before version 1.6 begins: the pickle of a number.
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# torch has one list of allowed names for all threads.
_allowed_names_lock = threading.Lock()


def shown(text: object) -> str:
    """Text out of a file that anybody may have written: quoted, printable and short."""
    characters = str(text)
    return ascii(characters if len(characters) <= 60 else characters[:57] + "...")


class _Inert:
    """In place of a path, a date or a value of numpy: takes what those take, keeps nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _always_new(kind: Callable[[], Any]) -> type:
    """A class whose objects are new ones of `kind`, the only dicts and lists that torch fills."""
    return type("Inert", (), {"__new__": lambda *_: kind()})


_InertDict, _InertList = _always_new(dict), _always_new(list)


def load_torch(path: Path, *, is_zip: bool, mmap: bool) -> Any:
    """The content of a torch file.

    Args:
        path: The file.
        is_zip: Whether it is a zip archive; else it is of the layout before torch 1.6.
        mmap: Whether values stay on the disk until they are used; for zip archives only.

    Raises:
        CheckpointError: If it is damaged, not of `torch.save`, or holds more than plain data.
    """
    try:
        names = _names_in_zip(path) if is_zip else _names_in_legacy(path)
        stand_ins = [(_stand_in(path.name, *pair), ".".join(pair)) for pair in sorted(names)]
        allowed: list[Any] = [pair for pair in stand_ins if pair[0] is not None]
        with _allowed_names_lock, torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_zip)
    except CheckpointError:
        raise
    except Exception as error:  # torch, zipfile and pickletools raise a dozen types
        raise CheckpointError(
            f"{path.name!r} is damaged or was cut short, or claims more than it has; take another "
            "copy"
        ) from error


def _stand_in(file: str, module: str, name: str) -> type | None:
    """What to make for a name in a pickle; None for what torch makes itself."""
    full, package = f"{module}.{name}", module.partition(".")[0]
    is_dtype = isinstance(vars(torch).get(name), torch.dtype)
    if full in _BY_TORCH or (module == "torch" and (is_dtype or name.endswith("Storage"))):
        return None
    if full == "argparse.Namespace":
        return argparse.Namespace
    if full == "collections.defaultdict" or (name == "AttributeDict" and package in _LIGHTNING):
        return _InertDict
    if full == "collections.deque":
        return _InertList
    if module in _INERT_MODULES or full in _INERT_NAMES:
        return _Inert
    raise _refusal(file, shown(full))


def _refusal(file: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{file!r} holds {what}, which plain weights never do, and nothing in it was run; "
        "if you trust it, open it where it was made and save the model's state_dict alone, as "
        "ordinary float tensors, with torch.save or as safetensors"
    )


def _names_in_zip(path: Path) -> set[tuple[str, str]]:
    with zipfile.ZipFile(path) as archive:
        # By their names below the archive's one folder.
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if len(entries) < len(archive.infolist()) or "data.pkl" not in entries:
            raise _refusal(path.name, "an archive that torch.save did not write")
        if "constants.pkl" in entries:
            raise _refusal(path.name, "a TorchScript program")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            # They may unfold into any amount of memory.
            raise _refusal(path.name, "compressed entries")
        with archive.open(entries["data.pkl"]) as file:
            return _names_in(io.BytesIO(file.read(_MAX_PICKLE_BYTES)), path.name)


def _names_in_legacy(path: Path) -> set[tuple[str, str]]:
    with path.open("rb") as whole:
        file = io.BytesIO(whole.read(_MAX_PICKLE_BYTES))
    if not file.getvalue().startswith(_LEGACY_MAGIC):
        raise _refusal(path.name, "a pickle that torch.save did not write")
    # A number, the layout's version, facts of the machine, the content, the order of the storages.
    return set().union(*(_names_in(file, path.name) for _ in range(5)))


def _names_in(file: io.BytesIO, name: str) -> set[tuple[str, str]]:
    """(module, name) of each function or class that one pickle names; `file` is left at its end."""
    names = set()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name == "GLOBAL":
            module, _, attribute = str(argument).partition(" ")
            names.add(("builtins" if module == "__builtin__" else module, attribute))
        elif opcode.name == "PROTO" and argument not in (0, 1, 2):  # torch reads no later ones
            raise _refusal(name, f"a pickle of version {argument}")
        elif count > _MAX_INSTRUCTIONS:
            raise ValueError("an endless pickle")
    return names
