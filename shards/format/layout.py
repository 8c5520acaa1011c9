"""ustar headers and the fixed-stride sample: where each byte of a sample lies.

A sample is `<key>.<column>.npy` for each column in schema order, then `<key>.json`. Every member is a
512-byte header and a payload padded to 512 bytes, and the JSON is padded with spaces to the longest of its shard, so
all samples of a shard are equally long and a column of n samples is one strided array.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from shards.format.schema import Column

BLOCK = 512
RECORD = 20 * BLOCK  # tar pads an archive to this
NPY_HEADER_BYTES = 128
_NAME_BYTES = 100
_REGULAR = b"0"
_CHECKSUM = slice(148, 156)


class LayoutError(ValueError):
    """Bytes that are not the header they should be. The message is a reason; callers add shard and sample."""


def padded(size: int, block: int = BLOCK) -> int:
    """`size` rounded up to whole blocks."""
    return -(-size // block) * block


def archive_bytes(count: int, stride: int) -> int:
    """Size of an archive of `count` samples: the samples, two zero blocks, padding to a whole record."""
    return padded(count * stride + 2 * BLOCK, RECORD)


def least_bytes(columns: tuple[Column, ...], rows: int) -> int:
    """What shards of so many samples take at least: with the shortest JSON, without indexes and manifest."""
    return archive_bytes(rows, SampleLayout(columns, json_length=1).stride)


def tar_header(name: str, size: int) -> bytes:
    """Deterministic ustar header of a regular file: mode 0644, owner 0, time 0 (POSIX.1-1988, `ustar` format)."""
    encoded = name.encode("ascii")
    if not 0 < len(encoded) <= _NAME_BYTES or not 0 <= size < 8**11:
        raise LayoutError(f"member {name!r} of {size} bytes does not fit a ustar header")
    header = bytearray(BLOCK)
    header[: len(encoded)] = encoded
    header[100:108] = b"0000644\0"
    header[108:116] = header[116:124] = b"0000000\0"
    header[124:136] = b"%011o\0" % size
    header[136:148] = b"00000000000\0"
    header[_CHECKSUM] = b" " * 8
    header[156:157] = _REGULAR
    header[257:265] = b"ustar\x0000"
    header[_CHECKSUM] = b"%06o\0 " % sum(header)
    return bytes(header)


@dataclass(frozen=True)
class TarHeader:
    """The fields of a tar header that matter here; `name` still as bytes, with the ustar prefix joined."""

    name: bytes
    size: int
    kind: bytes


def parse_header(block: bytes | memoryview) -> TarHeader | None:
    """Parse 512 bytes; None for a zero block. Raises LayoutError where checksum or numbers are not those of a
    header."""
    raw = bytes(block)
    if len(raw) != BLOCK:
        raise LayoutError(f"header cut short: {len(raw)} of {BLOCK} bytes")
    if not any(raw):
        return None
    stored = _number(raw[_CHECKSUM], "checksum")
    if stored != sum(raw[:148]) + 8 * 32 + sum(raw[156:]):
        raise LayoutError("header checksum differs")
    name = raw[:100].split(b"\0", 1)[0]
    if raw[257:263] == b"ustar\0":
        prefix = raw[345:500].split(b"\0", 1)[0]
        name = prefix + b"/" + name if prefix else name
    return TarHeader(name, _number(raw[124:136], "size"), raw[156:157])


def _number(digits: bytes, what: str) -> int:
    """Octal text, or GNU base-256 where the first bit is set; negative numbers are refused."""
    if digits[0] & 0x80:
        if digits[0] != 0x80:
            raise LayoutError(f"{what} field is negative or beyond reason")
        return int.from_bytes(digits[1:], "big")
    text = digits.split(b"\0", 1)[0].strip(b" ")
    if not text:
        return 0
    if not all(0x30 <= digit <= 0x37 for digit in text):
        raise LayoutError(f"{what} field is not octal: {digits!r}")
    return int(text, 8)


def npy_header(column: Column) -> bytes:
    """npy 1.0 header of a (width,) array, 128 bytes, the same that `numpy.save` writes (NEP 1)."""
    text = f"{{'descr': '{column.numpy_dtype.str}', 'fortran_order': False, 'shape': ({column.width},), }}".encode()
    body = text.ljust(NPY_HEADER_BYTES - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + (NPY_HEADER_BYTES - 10).to_bytes(2, "little") + body


@dataclass(frozen=True)
class SampleLayout:
    """Offsets within a sample, in bytes from its start, for the given columns and JSON length."""

    columns: tuple[Column, ...]
    json_length: int

    @cached_property
    def header_offsets(self) -> tuple[int, ...]:
        """Tar header of each column's member."""
        offsets, position = [], 0
        for column in self.columns:
            offsets.append(position)
            position += BLOCK + padded(NPY_HEADER_BYTES + column.nbytes)
        return tuple(offsets)

    @cached_property
    def npy_offsets(self) -> tuple[int, ...]:
        """npy header of each column."""
        return tuple(offset + BLOCK for offset in self.header_offsets)

    @cached_property
    def payload_offsets(self) -> tuple[int, ...]:
        """First number of each column."""
        return tuple(offset + NPY_HEADER_BYTES for offset in self.npy_offsets)

    @cached_property
    def json_offset(self) -> int:
        """First byte of the JSON text."""
        last = self.columns[-1]
        return self.header_offsets[-1] + 2 * BLOCK + padded(NPY_HEADER_BYTES + last.nbytes)

    @cached_property
    def stride(self) -> int:
        """Bytes from one sample to the next."""
        return self.json_offset + padded(self.json_length)

    @cached_property
    def npy_headers(self) -> tuple[np.ndarray, ...]:
        """The npy header every sample must have, for each column, as (128,) uint8."""
        return tuple(np.frombuffer(npy_header(column), np.uint8) for column in self.columns)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "fixed",
            "stride": self.stride,
            "payload": dict(zip((c.name for c in self.columns), self.payload_offsets, strict=True)),
            "json": [self.json_offset, self.json_length],
        }

    @classmethod
    def from_dict(cls, columns: tuple[Column, ...], data: Mapping[str, Any]) -> SampleLayout:
        """The layout the columns give; LayoutError where the stored numbers claim anything else."""
        try:
            length = data["json"][1]
        except (KeyError, TypeError, IndexError):
            raise LayoutError(f"layout {data!r} has no JSON length") from None
        if not isinstance(length, int) or isinstance(length, bool) or not 0 < length < 1 << 31:
            raise LayoutError(f"layout claims a JSON of {length!r} bytes")
        layout = cls(columns, length)
        if layout.to_dict() != dict(data):
            raise LayoutError(f"layout {dict(data)} is not the one of these columns, {layout.to_dict()}")
        return layout

    def fill(self, raw: np.ndarray, keys: Sequence[str], payloads: Sequence[bytes], texts: Sequence[bytes]) -> None:
        """Write n whole samples into zeroed `raw` (n, stride) uint8; a payload holds all columns one after another."""
        ends = np.cumsum([column.nbytes for column in self.columns]).tolist()
        members = [
            (at, f".{c.name}.npy", NPY_HEADER_BYTES + c.nbytes)
            for c, at in zip(self.columns, self.header_offsets, strict=True)
        ]
        for at, ending, size in [*members, (self.json_offset - BLOCK, ".json", self.json_length)]:
            _fill_headers(raw[:, at : at + BLOCK], [key + ending for key in keys], size)
        for header, offset in zip(self.npy_headers, self.npy_offsets, strict=True):
            raw[:, offset : offset + NPY_HEADER_BYTES] = header
        places = [
            (at, at + c.nbytes, end - c.nbytes, end)
            for c, at, end in zip(self.columns, self.payload_offsets, ends, strict=True)
        ]
        memory, stride = raw.reshape(-1).data, self.stride
        for i, (payload, text) in enumerate(zip(payloads, texts, strict=True)):
            assert len(payload) == ends[-1] and len(text) <= self.json_length
            sample, values = memory[i * stride : (i + 1) * stride], memoryview(payload)
            for start, stop, first, last in places:
                sample[start:stop] = values[first:last]
            sample[self.json_offset : self.json_offset + self.json_length] = text.ljust(self.json_length)


def _fill_headers(headers: np.ndarray, names: Sequence[str], size: int) -> None:
    """(n, 512) `tar_header(name, size)` of each name, all at once: only name and checksum differ."""
    encoded = [name.encode("ascii") for name in names]
    for name in encoded:
        if not 0 < len(name) <= _NAME_BYTES:
            raise LayoutError(f"member {name.decode()!r} does not fit a ustar header")
    template = np.frombuffer(tar_header("-", size), np.uint8)
    padded_names = np.array(encoded, f"S{_NAME_BYTES}").view(np.uint8).reshape(-1, _NAME_BYTES)
    headers[:] = template
    headers[:, :_NAME_BYTES] = padded_names
    # The checksum counts its own field as spaces.
    own = int(template[_CHECKSUM].sum())
    sums = int(template.sum()) - own + 8 * ord(" ") - ord("-") + padded_names.sum(axis=1, dtype=np.int64)
    headers[:, _CHECKSUM.start : _CHECKSUM.start + 6] = (sums[:, None] >> np.arange(15, -1, -3)) % 8 + ord("0")
