"""Torch files read without running anything in them, and within the memory that they hold.

`torch.load(weights_only=True)` runs nothing and checks that tensors fit their storages. Three
things it does not do. It allocates what some allowed functions ask for: `bytearray(10**12)`,
`torch.FloatTensor(10**12)`, or a set of the same list a thousand times. It unpacks compressed
archives. And one harmless object beside the weights, such as a path, makes it refuse the file. So
the pickle is followed first without making anything: other names than those of tensors and plain
data are refused, so are too many copies, and inert objects take the place of harmless ones.
"""

import argparse
import contextlib
import io
import pickletools
import threading
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from mae_core.errors import CheckpointError

# No honest file has more: an optimiser's state of a huge model is a pickle of about a megabyte.
_MAX_PICKLE_BYTES = 2**25
_MAX_INSTRUCTIONS = 5_000_000

# What torch makes by itself and weights need. It allows more.
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

# What torch may make beside plain data is one setting for all threads.
_stand_ins_lock = threading.Lock()


def shown(text: object) -> str:
    """Text out of a file that anybody may have written: quoted, printable and short."""
    characters = str(text)
    return ascii(characters if len(characters) <= 60 else characters[:57] + "...")


class _Inert:
    """In place of a path, a date or a number of numpy: takes all that those do, keeps nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _InertDict:
    """In place of a kind of dict, called or by `__new__`: torch fills plain ones only."""

    def __new__(cls, *_: object) -> dict[Any, Any]:  # type: ignore[misc]
        return {}


class _InertList:
    """Likewise of a kind of list."""

    def __new__(cls, *_: object) -> list[Any]:  # type: ignore[misc]
        return []


def load_torch(path: Path, *, is_zip: bool, mmap: bool) -> Any:
    """The content of a torch file.

    Args:
        path: The file.
        is_zip: Whether it is a zip archive; else it is of the older layout.
        mmap: Whether numbers stay on the disk until they are used; for zip archives only.

    Raises:
        CheckpointError: If it is damaged, would run code, is compressed, or makes far more than
            it holds.
    """
    try:
        names = _names_in_zip(path) if is_zip else _names_in_legacy(path)
        stand_ins = [
            (made, f"{module}.{name}")
            for module, name in sorted(names)
            if (made := _stand_in(path.name, module, name)) is not None
        ]
        with _allowed(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_zip)
    except CheckpointError:
        raise
    except Exception as error:  # torch, zipfile and pickletools raise a dozen types
        raise CheckpointError(
            f"{path.name!r} is damaged or was cut short, or claims more than it has; download it "
            "again"
        ) from error


@contextlib.contextmanager
def _allowed(stand_ins: list[Any]) -> Any:
    if not stand_ins:
        yield
        return
    with _stand_ins_lock, torch.serialization.safe_globals(stand_ins):
        yield


def _stand_in(file: str, module: str, name: str) -> Any:
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
    raise CheckpointError(_refusal(file, module, name))


def _refusal(file: str, module: str, name: str) -> str:
    package = module.partition(".")[0]
    if module == "torch" or (package == "torch" and ("Storage" in name or "rebuild" in name)):
        return (
            f"{file!r} holds sparse, quantised or otherwise special tensors ({shown(name)}); save "
            "the weights as ordinary float tensors"
        )
    advice = "do not use the file unless you know why it does; take safetensors"
    if module.startswith("torch.nn"):
        advice = (
            "it holds a whole module instead of its numbers: if you trust it, open it where it was "
            "made and save module.state_dict()"
        )
    elif name.rpartition(".")[2][:1].isupper():
        advice = (
            f"that is a class of the package {shown(package)}: if you trust the file, open it "
            "where that is and save the model's state_dict alone, or as safetensors"
        )
    return (
        f"{file!r} asks to run {shown(f'{module}.{name}')}, which weights never need, and nothing "
        f"was run; {advice}"
    )


def _names_in_zip(path: Path) -> set[tuple[str, str]]:
    with zipfile.ZipFile(path) as archive:
        # By their names below the archive's one folder.
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if "archive_format" in entries:
            raise CheckpointError(
                f"{path.name!r} is a torch.export program, which holds a graph; give the weights "
                "that it was made from"
            )
        if "constants.pkl" in entries or any(name.startswith("code/") for name in entries):
            raise CheckpointError(
                f"{path.name!r} is a TorchScript archive, which holds a program; save the model's "
                "state_dict with torch.save instead"
            )
        if "data.pkl" not in entries:
            raise CheckpointError(
                f"{path.name!r} is a zip archive that torch.save did not write; unpack it, or give "
                "the weights themselves"
            )
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise CheckpointError(
                f"{path.name!r} is compressed, which torch.save never does, and may unfold into "
                "any amount of memory; unpack it yourself if you trust it, or take another file"
            )
        with archive.open(entries["data.pkl"]) as file:
            return _names_in(io.BytesIO(file.read(_MAX_PICKLE_BYTES)), path.name)


def _names_in_legacy(path: Path) -> set[tuple[str, str]]:
    with path.open("rb") as whole:
        file = io.BytesIO(whole.read(_MAX_PICKLE_BYTES))
    names = _names_in(file, path.name)
    if not file.getvalue().startswith(_LEGACY_MAGIC):
        for module, name in names:
            _stand_in(path.name, module, name)
        raise CheckpointError(
            f"{path.name!r} is a pickle that torch.save did not write; save the weights with "
            "torch.save or as safetensors"
        )
    # The layout's version, facts of the machine, the content, the order of the storages.
    return names.union(*(_names_in(file, path.name) for _ in range(4)))


def _names_in(file: IO[bytes], name: str) -> set[tuple[str, str]]:
    """(module, name) of each function or class that one pickle names; `file` is left at its end."""
    pickle = _Pickle()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name == "STOP":
            break
        if opcode.name == "PROTO" and (argument or 0) > 2:
            raise CheckpointError(
                f"{name!r} is written in version {argument} of pickles, and only version 2 can be "
                "read without running it; save the weights again without pickle_protocol=, or as "
                "safetensors"
            )
        if count > _MAX_INSTRUCTIONS:
            raise ValueError("an endless pickle")
        pickle.step(opcode.name, argument)
        if pickle.copied > 2 * pickle.held + 2**20:
            raise CheckpointError(
                f"{name!r} copies the same items again and again, into far more bytes than the "
                "file has; it is made to harm: take it from another source"
            )
    return pickle.names


@dataclass
class _Sized:
    """A list, set, dict or text, of which only the length matters."""

    length: int = 0


_FILLING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS"}
_OF_MARK = {"TUPLE", "APPENDS", "SETITEMS"}
_POPPED = {"APPEND": 1, "SETITEM": 2, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "BINPERSID": 1,
           "REDUCE": 2, "NEWOBJ": 2, "BUILD": 1}  # fmt: skip


@dataclass
class _Pickle:
    """A pickle's machine, in which objects are lengths.

    Instructions that torch does not know count as constants: torch refuses them.

    Attributes:
        names: (module, name) pairs, by the modules of Python 3.
        held: Instructions and characters so far, which is what the file itself has.
        copied: Items that calls may have copied.
    """

    stack: list[Any] = field(default_factory=list)
    below: list[list[Any]] = field(default_factory=list)
    memo: dict[Any, Any] = field(default_factory=dict)
    names: set[tuple[str, str]] = field(default_factory=set)
    held: int = 0
    copied: int = 0

    def step(self, opcode: str, argument: Any) -> None:
        """Follow one instruction."""
        self.held += 1
        if opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif opcode == "MARK":
            self.below.append(self.stack)
            self.stack = []
        elif opcode in _OF_MARK:
            taken, self.stack = self.stack, self.below.pop()
            self._do(opcode, argument, taken)
        else:
            kept = len(self.stack) - _POPPED.get(opcode, 0)
            taken, self.stack = self.stack[kept:], self.stack[:kept]
            self._do(opcode, argument, taken)

    def _do(self, opcode: str, argument: Any, taken: list[Any]) -> None:
        if opcode in _FILLING:
            if isinstance(self.stack[-1], _Sized):
                self.stack[-1].length += len(taken)
        elif opcode == "BUILD":
            self.copied += _length_of_all(taken[-1])
        else:
            self.stack.append(self._made(opcode, argument, taken))

    def _made(self, opcode: str, argument: Any, taken: list[Any]) -> Any:
        if opcode.startswith("TUPLE"):
            return tuple(taken)
        if opcode in ("REDUCE", "NEWOBJ"):
            # A set made of a list copies it, and one list may be named again and again.
            copied = _length_of_all(taken[-1])
            self.copied += copied
            return _Sized(copied)
        if opcode == "GLOBAL":
            module, _, name = argument.partition(" ")
            self.names.add(("builtins" if module == "__builtin__" else module, name))
            return None
        if isinstance(argument, str):
            self.held += len(argument)
            return _Sized(len(argument))
        return _Sized() if opcode in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET") else None


def _length_of_all(given: Any) -> int:
    """Of what a call is given: of each item of a tuple of arguments."""
    items = given if isinstance(given, tuple) else (given,)
    return sum(
        item.length if isinstance(item, _Sized) else len(item)
        for item in items
        if isinstance(item, _Sized | tuple)
    )
