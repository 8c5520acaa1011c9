"""Reads pickled files of numpy arrays without executing anything of them.

A pickle is a program for a stack machine that may import and call whatever it names. Here its opcodes are listed by
`pickletools.genops`, which runs none of them, and a machine of our own follows those that build plain containers,
numbers, text and numpy arrays. A name is a word on a list, never an import; what any other opcode would do is refused.
Memory stays a small multiple of the file's size: an array's bytes must be in the file, and a repeated reference is one
object however often it occurs.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_MOST_BYTES = 64 << 30
_DTYPE = re.compile(r"[<>|=]?([fiubSUO])(\d{0,6})|\?")
_CORE = ("numpy.core.", "numpy._core.")


class PickleError(ValueError):
    """A pickle that holds more than arrays and plain containers, or is damaged; `position`: the byte."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(f"byte {position}: {message}")
        self.position = position


class _Name:
    """A global that a pickle names: a word, which is compared and never looked up."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Mark:
    pass


class _Array:
    """A numpy array that is being put together."""

    def __init__(self) -> None:
        self.array: np.ndarray | None = None


class _Dtype:
    """A numpy dtype that is being put together."""

    def __init__(self, code: str) -> None:
        if not _DTYPE.fullmatch(code):
            raise ValueError(f"the dtype {code[:40]!r} is not read, expected numbers, text or objects")
        self.dtype = np.dtype(code)


_MARK = _Mark()


def read_pickle(path: Path) -> Any:
    """What a pickled file holds: dicts, lists, tuples, numbers, text, bytes (also text of Python 2) and arrays.

    Raises PickleError for anything else and for a damaged file, ValueError for an empty one or one of over 64 GiB,
    OSError for one that can't be read.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        if not 0 < size <= _MOST_BYTES:
            raise ValueError(f"{path} has {size} bytes, expected 1 to {_MOST_BYTES}")
        # A mapped file gives no more than it has, whatever length an opcode claims, before memory is taken.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Machine().run(data)


class _Machine:
    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: Any) -> Any:
        position = 0
        try:
            for opcode, argument, where in pickletools.genops(data):
                position = where or 0
                if opcode.name == "STOP":
                    return _resolved(self._pop())
                step = _STEPS.get(opcode.name)
                if step is None:
                    raise PickleError(
                        position,
                        f"{opcode.name} would build an object of a class or run code; only arrays, numbers, text, "
                        "lists, tuples and dicts are read. Save those alone where it was made: numpy.savez(FILE, x=x)",
                    )
                step(self, argument)
        except PickleError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError, MemoryError) as error:
            raise PickleError(position, str(error) or type(error).__name__) from None
        raise PickleError(position, "the file ends before its end (STOP)")

    # The stack

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("the stack is at a mark where a value is needed")
        return value

    def _to_mark(self) -> list[Any]:
        for number in range(len(self._stack) - 1, -1, -1):
            if self._stack[number] is _MARK:
                items = self._stack[number + 1 :]
                del self._stack[number:]
                return items
        raise ValueError("there is no mark on the stack")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def pop(self, _: Any) -> None:
        self._stack.pop()

    def pop_mark(self, _: Any) -> None:
        self._to_mark()

    def duplicate(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def put(self, number: Any) -> None:
        self._memo[int(number)] = self._stack[-1]

    def memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, number: Any) -> None:
        self._stack.append(self._memo[int(number)])

    # Containers

    def append(self, _: Any) -> None:
        value = self._pop()
        self._top(list).append(value)

    def appends(self, _: Any) -> None:
        values = self._to_mark()
        self._top(list).extend(values)

    def set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._top(dict)[_key(key)] = value

    def set_items(self, _: Any) -> None:
        items = self._to_mark()
        self._top(dict).update(_pairs(items))

    def list_of_mark(self, _: Any) -> None:
        self._stack.append(self._to_mark())

    def dict_of_mark(self, _: Any) -> None:
        self._stack.append(dict(_pairs(self._to_mark())))

    def tuple_of_mark(self, _: Any) -> None:
        self._stack.append(tuple(self._to_mark()))

    def tuple_of(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._stack.append(tuple(reversed(items)))

    def _top(self, kind: type[Any]) -> Any:
        if type(self._stack[-1]) is not kind:
            raise ValueError(f"a {kind.__name__} is needed, found {type(self._stack[-1]).__name__}")
        return self._stack[-1]

    # Names and what they may do

    def name(self, argument: Any) -> None:
        module, _, name = str(argument).partition(" ")
        self._stack.append(_Name(_known(module, name)))

    def name_of_stack(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name that is not text")
        self._stack.append(_Name(_known(module, name)))

    def reduce(self, _: Any) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that is not a name")
        self._stack.append(_CALLS[function.name](*arguments))

    def build(self, _: Any) -> None:
        state = self._pop()
        made = self._stack[-1]
        if isinstance(made, _Array):
            _fill(made, state)
        elif isinstance(made, _Dtype):
            _order(made, state)
        else:
            raise ValueError(f"the state of a {type(made).__name__}, which has none")


def _known(module: str, name: str) -> str:
    for core in _CORE:
        module = f"core.{module.removeprefix(core)}" if module.startswith(core) else module
    known = f"{module}.{name}"
    if known not in _CALLS:
        raise ValueError(
            f"it names {module[:80]}.{name[:80]}, which is not an array; only arrays, numbers, text, lists, tuples and "
            "dicts are read. Save those alone where it was made: numpy.savez(FILE, x=x)"
        )
    return known


def _key(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if value is not None and type(value) not in (str, int, float, bool):
        raise ValueError(f"a dict's key of the type {type(value).__name__}, expected text or a number")
    return value


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    if len(items) % 2:
        raise ValueError("a dict with a key without a value")
    return [(_key(items[i]), items[i + 1]) for i in range(0, len(items), 2)]


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"bytes are needed, found {type(value).__name__}")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    shape = (value,) if isinstance(value, int) else value
    if not isinstance(shape, tuple) or len(shape) > 32 or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"the shape {str(value)[:80]} is none")
    return shape


def _from_bytes(data: bytes, dtype: Any, shape: tuple[int, ...], order: str) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or dtype.dtype.kind == "O":
        raise ValueError("an array of bytes without a dtype of numbers or text")
    kind = dtype.dtype
    size = math.prod(shape) * kind.itemsize
    if size != len(data) or (not size and max(shape, default=0) > 1 << 32):
        raise ValueError(f"an array of shape {shape} of {kind} needs {size} bytes, {len(data)} are there")
    if not kind.itemsize or not size:
        return np.zeros(shape, kind) if not math.prod(shape) else np.full(shape, "", kind)
    return np.frombuffer(data, kind).reshape(shape, order=order)  # type: ignore[call-overload]


def _fill(made: _Array, state: Any) -> None:
    """numpy's own state of an array: version, shape, dtype, whether in Fortran's order, and its bytes (or objects)."""
    if not isinstance(state, tuple) or len(state) not in (4, 5):
        raise ValueError("the state of an array is not numpy's")
    shape, dtype, fortran, data = _shape(state[-4]), state[-3], state[-2], state[-1]
    order = "F" if fortran else "C"
    if isinstance(dtype, _Dtype) and dtype.dtype.kind == "O":
        if type(data) is not list or math.prod(shape) != len(data):
            raise ValueError(f"an array of {math.prod(shape)} objects needs as many")
        objects = np.empty(len(data), object)
        for number, value in enumerate(data):
            objects[number] = value
        made.array = objects.reshape(shape, order=order)  # type: ignore[call-overload]
        return
    made.array = _from_bytes(_bytes(data), dtype, shape, order)


def _order(made: _Dtype, state: Any) -> None:
    """numpy's own state of a dtype: version, byte order, and what structured ones have, which are not read."""
    if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
        raise ValueError("a structured dtype, which is not read")
    order = state[1].decode() if isinstance(state[1], bytes) else state[1]
    if order not in ("<", ">", "|", "="):
        raise ValueError(f"the byte order {str(order)[:20]!r} is none")
    if order in "<>":
        made.dtype = made.dtype.newbyteorder("<" if order == "<" else ">")


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    if not isinstance(kind, _Name) or kind.name != "numpy.ndarray":
        raise ValueError("an array of another class than numpy.ndarray")
    return _Array()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    made = _Array()
    made.array = _from_bytes(_bytes(data), dtype, _shape(shape), "F" if order == "F" else "C")
    return made


def _dtype(code: Any, *_: Any) -> _Dtype:
    return _Dtype(code.decode() if isinstance(code, bytes) else str(code))


def _scalar(dtype: Any, data: Any) -> Any:
    return _from_bytes(_bytes(data), dtype, (), "C").item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How Python 3 writes bytes for Python 2."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes that are not written as Latin-1")
    return text.encode("latin-1")


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    if not isinstance(pairs, list | tuple) or any(type(p) not in (list, tuple) or len(p) != 2 for p in pairs):
        raise ValueError("an OrderedDict of something else than pairs")
    return {_key(key): value for key, value in pairs}


def _no_call(*_: Any) -> Any:
    raise ValueError("a class that is called where it only may be named")


# What a name does here. They are these functions; nothing is looked up by a name of the file.
_CALLS: dict[str, Callable[..., Any]] = {
    "core.multiarray._reconstruct": _reconstruct,
    "core.multiarray.scalar": _scalar,
    "core.numeric._frombuffer": _frombuffer,
    "numpy.ndarray": _no_call,
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,
    "collections.OrderedDict": _ordered,
    "builtins.bytes": lambda: b"",
    "__builtin__.bytes": lambda: b"",
}


def _old_text(machine: _Machine, argument: Any) -> None:
    """Text of Python 2: bytes, which are an array's content as well as words."""
    machine.push(argument.encode("latin-1") if isinstance(argument, str) else bytes(argument))


_PUSHED = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(_PUSHED, _Machine.push),
    **dict.fromkeys(["STRING", "BINSTRING", "SHORT_BINSTRING"], _old_text),
    **dict.fromkeys(["PROTO", "FRAME"], lambda machine, _: None),
    **dict.fromkeys(["PUT", "BINPUT", "LONG_BINPUT"], _Machine.put),
    **dict.fromkeys(["GET", "BINGET", "LONG_BINGET"], _Machine.get),
    "BYTEARRAY8": lambda machine, data: machine.push(bytes(data)),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate,
    "MEMOIZE": _Machine.memoize,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "LIST": _Machine.list_of_mark,
    "DICT": _Machine.dict_of_mark,
    "TUPLE": _Machine.tuple_of_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_of_stack,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}

_DEEPEST = 40
_MOST_VALUES = 20_000_000


def _resolved(value: Any) -> Any:
    """The value with its arrays in place. What is nested deeper than 40 containers, lies within itself, or unfolds to
    more than 20 million values (a few references can stand for many) is refused."""
    done: dict[int, tuple[Any, int]] = {}

    def resolve(item: Any, depth: int) -> tuple[Any, int]:
        """What the item is, and how many values it unfolds to."""
        if id(item) in done:
            return done[id(item)]
        if depth > _DEEPEST:
            raise ValueError(f"it is nested deeper than {_DEEPEST} containers")
        if isinstance(item, _Name | _Dtype | _Mark) or (isinstance(item, _Array) and item.array is None):
            raise ValueError("a class, or an array without content, where a value is needed")
        made, count = item, 1
        if isinstance(item, _Array):
            assert item.array is not None
            made = item.array
            if made.dtype.kind == "O":
                parts = [resolve(part, depth + 1) for part in made.reshape(-1)]
                made, count = np.empty(len(parts), object), 1 + sum(size for _, size in parts)
                for number, (part, _) in enumerate(parts):
                    made[number] = part
                made = made.reshape(item.array.shape)
        elif type(item) is dict:
            named = {key: resolve(part, depth + 1) for key, part in item.items()}
            made, count = {key: part for key, (part, _) in named.items()}, 1 + sum(n for _, n in named.values())
        elif type(item) in (list, tuple):
            parts = [resolve(part, depth + 1) for part in item]
            made, count = [part for part, _ in parts], 1 + sum(size for _, size in parts)
        if count > _MOST_VALUES:
            raise ValueError(f"it unfolds to more than {_MOST_VALUES} values")
        if isinstance(item, dict | list | tuple | _Array):
            done[id(item)] = made, count
        return made, count

    return resolve(value, 0)[0]
