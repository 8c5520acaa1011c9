"""Members of imported shards: a strict, bounded npy parser."""

from __future__ import annotations

import re

import numpy as np

from shards.format.schema import Column

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 4096
# The three fields that `numpy.save` writes for a plain array, in the order it writes them, and nothing else.
_HEADER = re.compile(
    r"\{'descr': '(?P<descr>[<>|=]?[a-zA-Z]\d{0,4})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>(?:\d{1,18}(?:, ?\d{1,18})*,?)?)\),? ?\}\s*"
)


class MemberError(ValueError):
    """A member that is not what it should be; the message is a reason, callers add shard and sample."""


def read_npy(data: bytes | memoryview) -> np.ndarray:
    """A float array from npy bytes (format 1.0 or 2.0), as a view on them.

    Raises MemberError for anything else: objects, structures, integers, a size that differs from what the header says.
    """
    view = memoryview(data)
    if bytes(view[:6]) != _MAGIC:
        raise MemberError("not an npy array")
    version = bytes(view[6:8])
    if version not in (b"\x01\x00", b"\x02\x00"):
        raise MemberError(f"npy version {version!r} is not read, expected 1.0 or 2.0")
    width = 2 if version[0] == 1 else 4
    length = int.from_bytes(view[8 : 8 + width], "little")
    start = 8 + width + length
    if length > _MAX_HEADER or start > len(view):
        raise MemberError(f"npy header claims {length} bytes of {len(view)}")
    text = bytes(view[8 + width : start]).decode("latin-1")
    match = _HEADER.fullmatch(text)
    if match is None:
        raise MemberError(f"npy header {text[:120]!r} is not that of a plain array")
    if not re.fullmatch(r"[<>=]?f[248]", match["descr"]):
        raise MemberError(f"npy dtype {match['descr']!r} is not read, expected float16, float32 or float64")
    dtype = np.dtype(match["descr"])
    shape = tuple(int(part) for part in match["shape"].replace(" ", "").split(",") if part)
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    if size != len(view) - start:
        raise MemberError(f"npy shape {shape} of {dtype} needs {size} bytes, the member has {len(view) - start}")
    array = np.frombuffer(view, dtype, offset=start)
    return array.reshape(shape, order="F" if match["fortran"] == "True" else "C")


def parse_npy(data: bytes | memoryview, column: Column) -> np.ndarray:
    """(width,) array of a member stored as (width,) or (1, width); MemberError where width or dtype differ."""
    array = read_npy(data)
    if array.shape not in ((column.width,), (1, column.width)) or array.dtype.newbyteorder("<") != column.numpy_dtype:
        raise MemberError(f"found {array.dtype} {array.shape}")
    return array.reshape(column.width)
