"""Kinds of damage to the files of a data set whose index and manifest were written before it happened."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from shards.format.layout import archive_bytes
from tests.campaigns.shard_fuzz.targets import VIEW, Region, Target

VIEW_FILE = f"views/{VIEW}.parquet"
MANIFEST = "manifest.parquet"


@dataclass(frozen=True)
class Damage:
    """files: new bytes of what changed, None where the file is gone. touched: shards that may suffer from it.

    anew: the archives are to be indexed again. sealed: checksums and digests were made to agree with the damage, so
    that only sense, and not a checksum, can tell.
    """

    files: dict[str, bytes | None]
    touched: set[str] = field(default_factory=set)
    note: str = ""
    anew: bool = False
    sealed: bool = False


Corruption = Callable[[random.Random, Target], Damage]
KINDS: dict[str, tuple[Corruption, tuple[str, ...]]] = {}


def kind(name: str, *targets: str) -> Callable[[Corruption], Corruption]:
    """Registers a kind of damage, for these data sets only where some are named."""

    def register(function: Corruption) -> Corruption:
        KINDS[name] = function, targets or ("native", "imported")
        return function

    return register


def tar_damage(shard: str, data: bytes, note: str, **more: bool) -> Damage:
    return Damage({f"{shard}.tar": data}, {shard}, note, **more)


def flipped(data: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


def header(block: bytes, *, kind: bytes | None = None, size: bytes | None = None, name: bytes | None = None) -> bytes:
    """A tar header with other fields, and the checksum that belongs to them."""
    changed = bytearray(block)
    if kind is not None:
        changed[156:157] = kind
    if size is not None:
        changed[124:136] = size
    if name is not None:
        changed[:100] = name.ljust(100, b"\0")
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


def with_header(rng: random.Random, target: Target, **fields: bytes) -> tuple[str, bytes, str]:
    """An archive in which one array's own header (the last block before its payload) says something else."""
    shard = rng.choice(target.shards)
    npys = {region.start for region in target.regions_of(shard, "npy header")}
    region = rng.choice([region for region in target.regions_of(shard, "header") if region.stop in npys])
    data, at = target.files[f"{shard}.tar"], region.stop - 512
    return (
        shard,
        data[:at] + header(data[at : at + 512], **fields) + data[at + 512 :],
        f"{region.key} at {at}: {fields}",
    )


ABSURD_SIZES = (b"77777777777\0", b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7, b"\xff" * 12, b"-0000000100\0",
                b"00000000000\0", b"00000001001\0", b"9999999999x\0", b" " * 12)  # fmt: skip
LINKS = (b"1", b"2", b"3", b"4", b"5", b"6", b"M", b"Z")


def _region(rng: random.Random, target: Target, *kinds: str) -> tuple[str, Region]:
    shard = rng.choice([shard for shard in target.shards if target.regions_of(shard, *kinds)])
    return shard, rng.choice(target.regions_of(shard, *kinds))


# ---- bits ---------------------------------------------------------------------------------------------------------


def _flip(*kinds: str) -> Corruption:
    def flip(rng: random.Random, target: Target) -> Damage:
        shard, region = _region(rng, target, *kinds)
        at = rng.randrange(region.start, region.stop)
        return tar_damage(shard, flipped(target.files[f"{shard}.tar"], at, rng.randrange(8)), f"{region} at {at}")

    return flip


for _name in ("header", "npy header", "payload", "other", "padding", "trailer"):
    kind(f"bit: {'json, text' if _name == 'other' else _name}")(_flip(_name))


def _file_bits(rng: random.Random, target: Target, file: str) -> bytes:
    return flipped(target.files[file], rng.randrange(len(target.files[file])), rng.randrange(8))


@kind("bit: index")
def _flip_index(rng: random.Random, target: Target) -> Damage:
    shard = rng.choice(target.shards)
    return Damage({f"{shard}.index.parquet": _file_bits(rng, target, f"{shard}.index.parquet")}, {shard})


@kind("bit: manifest")
def _flip_manifest(rng: random.Random, target: Target) -> Damage:
    return Damage({MANIFEST: _file_bits(rng, target, MANIFEST)}, set(target.shards))


@kind("bit: view")
def _flip_view(rng: random.Random, target: Target) -> Damage:
    return Damage({VIEW_FILE: _file_bits(rng, target, VIEW_FILE)})


@kind("index bit, manifest lost")
def _flip_index_alone(rng: random.Random, target: Target) -> Damage:
    """What only a repair meets: no digest tells about the index."""
    return Damage({**_flip_index(rng, target).files, MANIFEST: None}, set(target.shards))


@kind("bytes: noise anywhere")
def _noise(rng: random.Random, target: Target) -> Damage:
    file = rng.choice(list(target.files))
    data = bytearray(target.files[file])
    start, length = rng.randrange(len(data)), rng.choice((1, 7, 64, 512, 4096))
    data[start : start + length] = rng.randbytes(len(data[start : start + length]))
    return _file_damage(target, file, bytes(data), f"{file} from {start}, {length}")


@kind("bytes: sectors of zeros")
def _zeros(rng: random.Random, target: Target) -> Damage:
    file = rng.choice([file for file, data in target.files.items() if len(data) > 512])
    data = bytearray(target.files[file])
    start = rng.randrange(len(data) // 512) * 512
    length = len(data[start : start + rng.choice((512, 1024, 4096))])
    data[start : start + length] = bytes(length)
    return _file_damage(target, file, bytes(data), f"{file} from {start}, {length}")


def _file_damage(target: Target, file: str, data: bytes | None, note: str = "") -> Damage:
    shard = file.removesuffix(".tar").removesuffix(".index.parquet")
    touched = set(target.shards) if file == MANIFEST else {shard} & set(target.shards)
    return Damage({file: data}, touched, note or file)


# ---- ends ---------------------------------------------------------------------------------------------------------


def _cut(place: Callable[[random.Random, Target, str], int]) -> Corruption:
    def cut(rng: random.Random, target: Target) -> Damage:
        shard = rng.choice(target.shards)
        at = place(rng, target, shard)
        return tar_damage(shard, target.files[f"{shard}.tar"][:at], f"{shard} cut at {at}")

    return cut


def _within(*kinds: str) -> Callable[[random.Random, Target, str], int]:
    def place(rng: random.Random, target: Target, shard: str) -> int:
        region = rng.choice(target.regions_of(shard, *kinds))
        return rng.randrange(region.start + 1, region.stop) if region.stop > region.start + 1 else region.start

    return place


def _edge(kind: str, end: str) -> Callable[[random.Random, Target, str], int]:
    return lambda rng, target, shard: getattr(rng.choice(target.regions_of(shard, kind)), end)


CUTS: dict[str, Callable[[random.Random, Target, str], int]] = {
    "cut: empty": lambda rng, target, shard: 0,
    "cut: in header": _within("header"),
    "cut: after header": _edge("header", "stop"),
    "cut: in npy header": _within("npy header"),
    "cut: in payload": _within("payload", "other"),
    "cut: in padding": _within("padding"),
    "cut: between members": _edge("header", "start"),
    "cut: before trailer": _edge("trailer", "start"),
    "cut: in trailer": _within("trailer"),
}
for _name, _place in CUTS.items():
    kind(_name)(_cut(_place))


@kind("cut: index, manifest, view")
def _cut_table(rng: random.Random, target: Target) -> Damage:
    file = rng.choice([file for file in target.files if file.endswith(".parquet")])
    data = target.files[file]
    at = rng.choice((0, 1, 4, len(data) - 1, len(data) - 4, len(data) - 8, rng.randrange(len(data))))
    return _file_damage(target, file, data[:at], f"{file} cut at {at}")


@kind("grown: bytes after the end")
def _grown(rng: random.Random, target: Target) -> Damage:
    file = rng.choice(list(target.files))
    more = rng.choice((b"\0", bytes(512), bytes(10240), rng.randbytes(100), target.files[file]))
    return _file_damage(target, file, target.files[file] + more, f"{file} + {len(more)}")


@kind("lost: a file")
def _lost(rng: random.Random, target: Target) -> Damage:
    return _file_damage(target, rng.choice([file for file in target.files if file != VIEW_FILE]), None)


# ---- files in the wrong place ---------------------------------------------------------------------------------------


@kind("swapped: shards, indexes or both")
def _swapped(rng: random.Random, target: Target) -> Damage:
    one, two = rng.sample(target.shards, 2)
    suffixes = rng.choice(((".tar",), (".index.parquet",), (".tar", ".index.parquet")))
    files: dict[str, bytes | None] = {}
    for suffix in suffixes:
        files[one + suffix], files[two + suffix] = target.files[two + suffix], target.files[one + suffix]
    return Damage(files, {one, two}, f"{one}, {two}: {suffixes}")


@kind("stale: files of another data set")
def _stale(rng: random.Random, target: Target) -> Damage:
    shard = rng.choice(target.shards)
    tars = [file for file in target.files if file.endswith(".tar")]
    indexes = [file for file in target.files if file.endswith(".index.parquet")]
    files = rng.choice(([MANIFEST], [VIEW_FILE], [f"{shard}.tar"], [f"{shard}.index.parquet"], tars, indexes,
                        [MANIFEST, *indexes], [f"{shard}.tar", f"{shard}.index.parquet"]))  # fmt: skip
    touched = {shard} if len(files) <= 2 and files[0].startswith(shard) else set(target.shards)
    if files == [VIEW_FILE]:
        touched = set()
    return Damage({file: target.stale[file] for file in files}, touched, ", ".join(files))


# ---- samples and members in the wrong place -------------------------------------------------------------------------


def slots(target: Target, shard: str) -> list[bytes]:
    """Each sample's bytes, from its first header to the next sample's."""
    regions, data = target.regions[shard], target.files[f"{shard}.tar"]
    starts = [next(r.start for r in regions if r.key == key) for key in target.keys[shard]]
    ends = [*starts[1:], next(r.start for r in regions if r.kind == "trailer")]
    return [data[start:end] for start, end in zip(starts, ends, strict=True)]


def _joined(target: Target, shard: str, parts: list[bytes]) -> bytes:
    body = b"".join(parts)
    return body.ljust(archive_bytes(1, len(body)), b"\0")


@kind("moved: samples change places")
def _moved(rng: random.Random, target: Target) -> Damage:
    shard = rng.choice(target.shards)
    parts = slots(target, shard)
    i, j = rng.sample(range(len(parts)), 2)
    parts[i], parts[j] = parts[j], parts[i]
    return tar_damage(shard, _joined(target, shard, parts), f"{shard}: {i}, {j}")


@kind("moved: members within a sample")
def _members(rng: random.Random, target: Target) -> Damage:
    shard = rng.choice(target.shards)
    parts = slots(target, shard)
    i = rng.randrange(len(parts))
    parts[i] = b"".join(reversed(members(target, shard, i)))
    return tar_damage(shard, _joined(target, shard, parts), f"{shard}: {i}")


def members(target: Target, shard: str, number: int) -> list[bytes]:
    """Each member of a sample, with its header and padding."""
    key = target.keys[shard][number]
    headers = [r.start for r in target.regions[shard] if r.key == key and r.kind == "header"]
    end = max(r.stop for r in target.regions[shard] if r.key == key)
    data = target.files[f"{shard}.tar"]
    return [data[a:b] for a, b in zip(headers, [*headers[1:], end], strict=True)]


@kind("doubled: a sample in place of another")
def _doubled(rng: random.Random, target: Target) -> Damage:
    shard = rng.choice(target.shards)
    parts = slots(target, shard)
    i, j = rng.sample(range(len(parts)), 2)
    parts[i] = parts[j]
    return tar_damage(shard, _joined(target, shard, parts), f"{shard}: {j} over {i}")


@kind("count: a sample more or less")
def _count(rng: random.Random, target: Target) -> Damage:
    shard = rng.choice(target.shards)
    parts = slots(target, shard)
    i = rng.randrange(len(parts))
    parts[i : i + 1] = rng.choice(([], [parts[i], parts[i]]))
    return tar_damage(shard, _joined(target, shard, parts), f"{shard}: {i}")


# ---- headers that lie -----------------------------------------------------------------------------------------------


def _lying(fields: Callable[[random.Random], dict[str, bytes]], anew: bool = False) -> Corruption:
    return lambda rng, target: tar_damage(*with_header(rng, target, **fields(rng)), anew=anew)


LIES: dict[str, Callable[[random.Random], dict[str, bytes]]] = {
    "header: sparse": lambda rng: {"kind": b"S"},
    "header: PAX or long name": lambda rng: {"kind": rng.choice((b"x", b"g", b"L", b"K"))},
    "header: link, device, unknown": lambda rng: {"kind": rng.choice(LINKS)},
    "header: absurd size": lambda rng: {"size": rng.choice(ABSURD_SIZES)},
    "header: path outside": lambda rng: {
        "name": rng.choice((b"../k0.a.npy", b"/k0.a.npy", b"x/../../k.npy", b"\xff.npy", b""))
    },
}
for _name, _fields in LIES.items():
    kind(_name)(_lying(_fields))


# ---- archives that are indexed only after the damage ----------------------------------------------------------------


def _anew(damage: Damage) -> Damage:
    return Damage(damage.files, damage.touched, damage.note, anew=True)


for _name, _fields in LIES.items():
    kind(f"indexed after: {_name.removeprefix('header: ')}", "imported")(_lying(_fields, anew=True))
AFTER: dict[str, Corruption | None] = {
    "cut": None,
    "moved samples": _moved,
    "moved members": _members,
    "doubled sample": _doubled,
    "bit of a header": _flip("header", "padding", "trailer"),
}
for _name, _function in AFTER.items():

    def _after(rng: random.Random, target: Target, function: Corruption | None = _function) -> Damage:
        return _anew((function or _cut(rng.choice(list(CUTS.values()))))(rng, target))

    kind(f"indexed after: {_name}", "imported")(_after)
