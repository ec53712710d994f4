"""What a pickle would do, found out without doing it.

A torch file is a pickle beside raw numbers, and a pickle is a program. `torch.load` with
`weights_only=True` runs no code, but makes tensors as large as a file asks for. So the program
is followed here first, with stand-ins for what it would make: only the few things that
`torch.save` writes for tensors and plain data are allowed, no tensor may reach beyond its
numbers, and all of them may have no more bytes than the file. Paths, dates and numbers of numpy
beside the weights are named in `PLAIN`: they are allowed, and none of them is made.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

from mae_core.errors import CheckpointError
from mae_core.weights.files import shown

# Bytes of one number, by the storage that torch names in a file.
_ITEM_BYTES = {
    "ByteStorage": 1, "CharStorage": 1, "BoolStorage": 1, "ShortStorage": 2, "HalfStorage": 2,
    "BFloat16Storage": 2, "IntStorage": 4, "FloatStorage": 4, "LongStorage": 8,
    "DoubleStorage": 8, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16,
}  # fmt: skip

_REBUILD = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_ENCODE = "_codecs.encode"
# What torch makes by itself and does nothing but hold data.
_HARMLESS = {
    *_REBUILD, _ENCODE, "torch._utils._rebuild_parameter", "collections.OrderedDict",
    "collections.Counter", "builtins.set", "builtins.complex", "torch.Size", "torch.device",
}  # fmt: skip

NAMESPACE = "argparse.Namespace"
# What holds items like a dict, and like a list.
DICTS = {
    "collections.defaultdict", "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict", "lightning_fabric.utilities.data."
    "AttributeDict", "lightning.fabric.utilities.data.AttributeDict",
}  # fmt: skip
LISTS = {"collections.deque"}
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_NUMBERS = ("bool", "int", "uint", "float", "complex")
# What may lie beside weights and is of no use for them: named, and never made.
PLAIN = {
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
    *(f"datetime.{name}" for name in ("date", "time", "datetime", "timedelta", "timezone")),
    *(f"builtins.{name}" for name in ("list", "dict", "int", "float", "str", "bool", "bytes",
                                      "tuple", "frozenset", "range", "slice")),
    *(f"{module}.multiarray.{name}" for module in ("numpy.core", "numpy._core")
      for name in ("scalar", "_reconstruct")),
    "numpy.ndarray", "numpy.dtype", "numpy.bool_",
    *(f"numpy.{kind}{bits}" for kind in _NUMBERS for bits in ("", 8, 16, 32, 64, 128)),
    "types.SimpleNamespace", "decimal.Decimal", "fractions.Fraction", "uuid.UUID",
    "torch.torch_version.TorchVersion",
}  # fmt: skip
_MADE_BY_US = {NAMESPACE} | DICTS | LISTS | PLAIN
_DTYPES = {
    f"torch.{name}"
    for name in (
        "float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64",
        "bool", "complex64", "complex128",
    )
}  # fmt: skip
# Python 2 had other names.
_OLD_MODULES = {"__builtin__": "builtins"}

_MAX_STEPS = 5_000_000
# Items that are copied beyond those that a file has: shapes and the like are in every file.
_MAX_COPIED = 1_000_000
# Characters of all the bytes that are written as text.
_MAX_ENCODED = 2**25
_MAX_DIMENSIONS = 16

_MARK = object()
_DATA = object()


@dataclass(frozen=True)
class _Named:
    """A function or class that the pickle names."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """Room for a number of numbers."""

    numbers: int


@dataclass
class _Items:
    """A list, set or dict, of which only the length matters."""

    count: int = 0


@dataclass
class Survey:
    """What following a pickle has shown.

    Attributes:
        needed_bytes: Room that its tensors need.
        has_plain: Whether it names any of `NAMESPACE`, `DICTS`, `LISTS` and `PLAIN`, which torch
            does not make by itself.
        protocol: Of the pickle.
        value: The number or text that it is, if it is one.
    """

    needed_bytes: int = 0
    has_plain: bool = False
    protocol: int = 2
    value: Any = None


@dataclass
class _Machine:
    """The stack and the memo of a pickle, with stand-ins for objects."""

    name: str
    stack: list[Any] = field(default_factory=list)
    memo: dict[Any, Any] = field(default_factory=dict)
    storages: dict[Any, int] = field(default_factory=dict)
    has_plain: bool = False
    protocol: int = 2
    encoded: int = 0
    items: int = 0
    copied: int = 0

    def since_mark(self) -> list[Any]:
        """Take what lies above the last mark."""
        start = len(self.stack) - 1 - self.stack[::-1].index(_MARK)
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    def step(self, opcode: str, argument: Any) -> None:
        """Do one instruction."""
        if opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _EMPTY:
            self.stack.append(_Items())
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        else:
            action = _ACTIONS.get(opcode)
            if action is None:
                raise CheckpointError(
                    f"{self.name!r} has the pickle instruction {opcode}, which torch.save does "
                    "not write; save the weights again with torch.save or as safetensors"
                )
            action(self, argument)

    def find(self, argument: str) -> None:
        """A function or class is named: `module name`."""
        module, _, name = argument.partition(" ")
        self.stack.append(self._named(module, name))

    def find_on_stack(self, _: Any) -> None:
        """The same with the two texts on the stack."""
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self._named(module, name))

    def _named(self, module: str, name: str) -> _Named:
        full = f"{_OLD_MODULES.get(module, module)}.{name}"
        is_storage = module == "torch" and name in _ITEM_BYTES
        if is_storage or full in _HARMLESS or full in _DTYPES:
            return _Named(full)
        if full in _MADE_BY_US:
            self.has_plain = True
            return _Named(full)
        if module.split(".")[0] == "torch" and ("Storage" in name or "rebuild" in name):
            raise CheckpointError(
                f"{self.name!r} holds sparse, quantised or otherwise special tensors "
                f"({shown(name)}); save the weights as ordinary float tensors"
            )
        raise CheckpointError(
            f"{self.name!r} asks to run {shown(full)}, which weights never need, and nothing was "
            f"run; {_advice(module, name)}"
        )

    def make(self, _: Any) -> None:
        """A function or class is called: `REDUCE`, `NEWOBJ`."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Named) or not isinstance(arguments, tuple):
            raise ValueError("a call of what is no function")
        if function.name in _REBUILD:
            self._check_tensor(*arguments[:4])
        elif function.name == _ENCODE:
            self._count_encoded(*arguments)
        else:
            self._count_copied(*arguments)
        if function.name == "torch.Size":
            self.stack.append(arguments[0] if arguments else ())
        else:
            self.stack.append(_DATA)

    def add(self, items: list[Any]) -> None:
        """Items are put into the list, set or dict on the stack."""
        self.items += len(items)
        if isinstance(self.stack[-1], _Items):
            self.stack[-1].count += len(items)

    def build(self, _: Any) -> None:
        """An object takes over what lies on the stack: `BUILD`."""
        self._count_copied(*_drop(self, 1))

    def _count_copied(self, *values: Any) -> None:
        """A set made of a list copies it, and one list may be named again and again."""
        for value in values:
            if isinstance(value, _Items):
                self.copied += value.count
            elif isinstance(value, tuple | str):
                self.copied += len(value)
        if self.copied > self.items + _MAX_COPIED:
            raise CheckpointError(
                f"{self.name!r} copies the same items again and again; it is made to harm: take it "
                "from another source"
            )

    def _count_encoded(self, text: Any, encoding: Any) -> None:
        """Old pickles hold bytes as text, which one instruction may ask for again and again."""
        if not isinstance(text, str) or encoding != "latin1":
            raise ValueError("bytes of no kind")
        self.encoded += len(text)
        if self.encoded > _MAX_ENCODED:
            raise CheckpointError(
                f"{self.name!r} makes more bytes than the file has; it is made to harm: take it "
                "from another source"
            )

    def _check_tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> None:
        if (
            not isinstance(storage, _Storage)
            or not len(size) == len(stride) <= _MAX_DIMENSIONS
            or not all(type(number) is int and number >= 0 for number in (offset, *size, *stride))
        ):
            raise ValueError("a tensor of no shape")
        steps = ((length - 1) * step for length, step in zip(size, stride, strict=True))
        end = 0 if 0 in size else offset + 1 + sum(steps)
        if end > storage.numbers:
            raise CheckpointError(
                f"a tensor in {self.name!r} reaches beyond its numbers; the file is damaged or "
                "made to harm: take it from another source"
            )

    def persist(self, _: Any) -> None:
        """Numbers outside the pickle are named: ("storage", type, key, device, count[, view])."""
        tag, kind, key, _device, count, *view = self.stack.pop()
        size = _ITEM_BYTES.get(kind.name.rpartition(".")[2], 0)
        if tag not in ("storage", b"storage") or not size or type(count) is not int or count < 0:
            raise ValueError("numbers of no kind")
        self.storages[key] = max(self.storages.get(key, 0), count * size)
        if view and view[0] is not None:
            _view_key, start, length = view[0]
            if not (type(start) is type(length) is int and 0 <= start <= start + length <= count):
                raise ValueError("a view beyond its numbers")
            count = length
        self.stack.append(_Storage(count))


def _advice(module: str, name: str) -> str:
    """What to do about a file that names what is not allowed."""
    if module.startswith("torch.nn"):
        return (
            "it holds a whole module instead of its numbers: if you trust it, open it where it was "
            "made and save module.state_dict()"
        )
    if name.rpartition(".")[2][:1].isupper():
        return (
            f"that is a class of the package {shown(module.partition('.')[0])}, whose code would "
            "have to run: if you trust the file, open it where that is and save the model's "
            "state_dict alone, or as safetensors"
        )
    return (
        "do not use the file unless you know why it does, and then save its state_dict alone, or "
        "take safetensors"
    )


def _take(count: int) -> Callable[[_Machine, Any], None]:
    def tuple_of(machine: _Machine, _: Any) -> None:
        items = tuple(machine.stack[-count:])
        del machine.stack[-count:]
        machine.stack.append(items)

    return tuple_of


def _drop(machine: _Machine, count: int) -> list[Any]:
    if len(machine.stack) <= count:
        raise IndexError("the stack is empty")
    items = machine.stack[-count:]
    del machine.stack[-count:]
    return items


_CONSTANTS = {
    "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK,
}  # fmt: skip
_EMPTY = {"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING",
             "SHORT_BINUNICODE"}  # fmt: skip
_ACTIONS: dict[str, Callable[[_Machine, Any], object]] = {
    "PROTO": lambda machine, protocol: setattr(machine, "protocol", protocol),
    "FRAME": lambda machine, _: None,
    "MEMOIZE": lambda machine, _: machine.memo.update({len(machine.memo): machine.stack[-1]}),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.since_mark())),
    "TUPLE1": _take(1),
    "TUPLE2": _take(2),
    "TUPLE3": _take(3),
    "APPEND": lambda machine, _: machine.add(_drop(machine, 1)),
    "APPENDS": lambda machine, _: machine.add(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.add(_drop(machine, 2)),
    "SETITEMS": lambda machine, _: machine.add(machine.since_mark()),
    "BUILD": _Machine.build,
    "GLOBAL": _Machine.find,
    "STACK_GLOBAL": _Machine.find_on_stack,
    "REDUCE": _Machine.make,
    "NEWOBJ": _Machine.make,
    "BINPERSID": _Machine.persist,
}


def survey(file: IO[bytes], name: str) -> Survey:
    """Follow one pickle to its end, where `file` is left.

    Args:
        file: At the pickle's first byte.
        name: Of the file, for messages.

    Raises:
        CheckpointError: If it does what `torch.save` never writes, or is damaged.
    """
    machine = _Machine(name)
    try:
        for steps, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if opcode.name == "STOP":
                break
            if steps > _MAX_STEPS:
                raise ValueError("too long")
            machine.step(opcode.name, argument)
        value = machine.stack[-1]
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        raise CheckpointError(
            f"the pickle in {name!r} is damaged or cut short; download the file again"
        ) from error
    return Survey(sum(machine.storages.values()), machine.has_plain, machine.protocol, value)
