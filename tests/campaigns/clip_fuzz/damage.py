"""Kinds of damage to a video file, each a function of a seeded generator and the file's bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import numpy as np

Rng = np.random.Generator
_EXTREMES = (0, 1, 7, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# Boxes of an MP4 that hold boxes (ISO/IEC 14496-12).
_PARENTS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta"})


def bits(rng: Rng, data: bytearray) -> None:
    """1 to 200 flipped bits anywhere."""
    for place in rng.integers(0, len(data), int(rng.integers(1, 200))):
        data[place] ^= 1 << int(rng.integers(8))


def one_bit(rng: Rng, data: bytearray) -> None:
    """One flipped bit."""
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))


def cut(rng: Rng, data: bytearray) -> None:
    """The end is missing."""
    del data[int(rng.integers(1, len(data))) :]


def beheaded(rng: Rng, data: bytearray) -> None:
    """The begin is missing."""
    del data[: int(rng.integers(1, len(data) // 2))]


def zeroed(rng: Rng, data: bytearray) -> None:
    """A stretch of zeros, as of a lost sector."""
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 8192))
    stop = min(len(data), start + length)
    data[start:stop] = bytes(stop - start)


def replaced(rng: Rng, data: bytearray) -> None:
    """A stretch becomes noise, of the same or another length."""
    start = int(rng.integers(len(data)))
    data[start : start + int(rng.integers(1, 5000))] = rng.bytes(int(rng.integers(1, 5000)))


def doubled(rng: Rng, data: bytearray) -> None:
    """A stretch occurs twice."""
    start = int(rng.integers(len(data)))
    data[start:start] = data[start : start + int(rng.integers(1, 5000))]


def head(rng: Rng, data: bytearray) -> None:
    """Eight bytes within the first two KiB."""
    for place in rng.integers(0, min(len(data), 2048), 8):
        data[place] = int(rng.integers(256))


def tail(rng: Rng, data: bytearray) -> None:
    """Eight bytes within the last eight KiB, where an MP4 often has its index."""
    for place in len(data) - 1 - rng.integers(0, min(len(data), 8192), 8):
        data[place] = int(rng.integers(256))


def fields(rng: Rng, data: bytearray) -> None:
    """A header's field takes an extreme value: of an MP4 box (its size, or a number in it), of an MPEG-PS start code
    (what follows it: packet lengths, picture sizes, clocks)."""
    boxes = list(mp4_boxes(data, 0, len(data)))
    if boxes:
        start, stop = boxes[int(rng.integers(len(boxes)))]
        count = max(1, (min(stop, start + 256) - start) // 4)
        place = start + 4 * int(rng.integers(count) if rng.random() < 0.7 else 0)
    else:
        codes = [i for i in range(len(data) - 8) if data[i : i + 3] == b"\0\0\1" and data[i + 3] >= 0xB3]
        place = codes[int(rng.integers(len(codes)))] + 4 if codes else int(rng.integers(len(data)))
        place += int(rng.integers(4))
    place = min(place, len(data) - 4)
    struct.pack_into(">I", data, place, int(rng.choice(_EXTREMES)))


def mp4_boxes(data: bytes | bytearray, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """[begin, end) of every box with its header; nothing for what is no MP4."""
    while start + 8 <= stop:
        size, kind = struct.unpack_from(">I4s", data, start)
        if size < 8 or start + size > stop or not kind.isalnum():
            return
        yield start, start + size
        if kind in _PARENTS:
            yield from mp4_boxes(data, start + 8, start + size)
        start += size


# Of the clip as it is stored, between build and extraction: to the bytes of one member.
STORED = "in the clip shard"
KINDS: dict[str, Callable[[Rng, bytearray], None]] = {
    "one bit": one_bit,
    "bits": bits,
    "cut off": cut,
    "beheaded": beheaded,
    "zeros": zeroed,
    "noise": replaced,
    "doubled": doubled,
    "head": head,
    "tail": tail,
    "header fields": fields,
}
EVERY_KIND = (*KINDS, STORED)


def generator(seed: int, case: int) -> Rng:
    return np.random.default_rng([seed, case])


def variant(seed: int, case: int, data: bytes) -> bytes:
    """The damaged file of a case; of a case whose damage comes later, the file as it is."""
    kind = EVERY_KIND[case % len(EVERY_KIND)]
    if kind == STORED:
        return data
    copy = bytearray(data)
    KINDS[kind](generator(seed, case), copy)
    return bytes(copy)
