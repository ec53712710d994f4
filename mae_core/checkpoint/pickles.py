"""What a pickle would do, found out without doing it.

A torch file is a pickle beside raw numbers, and a pickle is a program. `torch.load` with
`weights_only=True` runs no code, but makes tensors as large as a file asks for. So the program
is followed here first, with stand-ins for what it would make: only the few things that
`torch.save` writes for tensors and plain data are allowed, no tensor may reach beyond its
numbers, and all of them may have no more bytes than the file.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

from mae_core.checkpoint.files import shown
from mae_core.errors import CheckpointError

# Bytes of one number, by the storage that torch names in a file.
_ITEM_BYTES = {
    "ByteStorage": 1, "CharStorage": 1, "BoolStorage": 1, "ShortStorage": 2, "HalfStorage": 2,
    "BFloat16Storage": 2, "IntStorage": 4, "FloatStorage": 4, "LongStorage": 8,
    "DoubleStorage": 8, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16,
}  # fmt: skip

_REBUILD = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_NAMESPACE = "argparse.Namespace"
# What does nothing but hold data.
_HARMLESS = {
    *_REBUILD, _NAMESPACE, "torch._utils._rebuild_parameter", "collections.OrderedDict",
    "collections.Counter", "builtins.set", "torch.Size", "torch.device",
}  # fmt: skip
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
class Survey:
    """What following a pickle has shown.

    Attributes:
        needed_bytes: Room that its tensors need.
        has_namespace: Whether it holds an `argparse.Namespace`, as the official training
            script saves its options.
        value: The number or text that it is, if it is one.
    """

    needed_bytes: int = 0
    has_namespace: bool = False
    value: Any = None


@dataclass
class _Machine:
    """The stack and the memo of a pickle, with stand-ins for objects."""

    name: str
    stack: list[Any] = field(default_factory=list)
    memo: dict[Any, Any] = field(default_factory=dict)
    storages: dict[Any, int] = field(default_factory=dict)
    has_namespace: bool = False

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
            self.has_namespace |= full == _NAMESPACE
            return _Named(full)
        if module.split(".")[0] == "torch" and ("Storage" in name or "rebuild" in name):
            raise CheckpointError(
                f"{self.name!r} holds sparse, quantised or otherwise special tensors "
                f"({shown(name)}); save the weights as ordinary float tensors"
            )
        raise CheckpointError(
            f"{self.name!r} asks to run {shown(full)}, which weights never need, and nothing was "
            "run; do not use the file unless you know why it does, and then save its state_dict "
            "alone, or take safetensors"
        )

    def make(self, _: Any) -> None:
        """A function or class is called: `REDUCE`, `NEWOBJ`."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Named) or not isinstance(arguments, tuple):
            raise ValueError("a call of what is no function")
        if function.name in _REBUILD:
            self._check_tensor(*arguments[:4])
        if function.name == "torch.Size":
            self.stack.append(arguments[0] if arguments else ())
        else:
            self.stack.append(_DATA)

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


def _take(count: int) -> Callable[[_Machine, Any], None]:
    def tuple_of(machine: _Machine, _: Any) -> None:
        items = tuple(machine.stack[-count:])
        del machine.stack[-count:]
        machine.stack.append(items)

    return tuple_of


def _drop(machine: _Machine, count: int) -> None:
    if len(machine.stack) <= count:
        raise IndexError("the stack is empty")
    del machine.stack[len(machine.stack) - count :]


_CONSTANTS = {
    "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK,
    "EMPTY_LIST": _DATA, "EMPTY_DICT": _DATA, "EMPTY_SET": _DATA,
}  # fmt: skip
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING",
             "SHORT_BINUNICODE"}  # fmt: skip
_ACTIONS: dict[str, Callable[[_Machine, Any], object]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MEMOIZE": lambda machine, _: machine.memo.update({len(machine.memo): machine.stack[-1]}),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.since_mark())),
    "TUPLE1": _take(1),
    "TUPLE2": _take(2),
    "TUPLE3": _take(3),
    "APPEND": lambda machine, _: _drop(machine, 1),
    "APPENDS": lambda machine, _: machine.since_mark(),
    "SETITEM": lambda machine, _: _drop(machine, 2),
    "SETITEMS": lambda machine, _: machine.since_mark(),
    "BUILD": lambda machine, _: _drop(machine, 1),
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
    return Survey(sum(machine.storages.values()), machine.has_namespace, value)
