"""Damage that checksums do not tell: indexes and manifests that lie, with digests that agree with the lie."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from shards.format import manifest as manifest_module
from shards.format.index import content_digest
from shards.format.manifest import Manifest
from shards.format.schema import Schema
from tests.campaigns.shard_fuzz.corruptions import MANIFEST, Damage, kind
from tests.campaigns.shard_fuzz.targets import Target

_INDEX_KEY, _MANIFEST_KEY = b"conclugen.index", b"conclugen.shards"
_ABSURD = (-1, -(2**63), 2**63 - 1, 2**62, 10**12, 0, 1, 512, 10240)


class Lie:
    """A data set's tables, to be changed and sealed again."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.tars = {shard: target.files[f"{shard}.tar"] for shard in target.shards}
        tables = {shard: _table(target.files[f"{shard}.index.parquet"]) for shard in target.shards}
        self.columns = {shard: {n: t[n].to_pylist() for n in t.column_names} for shard, t in tables.items()}
        self.types = {shard: table.schema.remove_metadata() for shard, table in tables.items()}
        self.descriptions: dict[str, dict[str, Any]] = {
            shard: json.loads(table.schema.metadata[_INDEX_KEY]) for shard, table in tables.items()
        }
        whole = _table(target.files[MANIFEST])
        self.shards = whole.replace_schema_metadata(None).to_pylist()
        self.description: dict[str, Any] = json.loads(whole.schema.metadata[_MANIFEST_KEY])

    def row(self, shard: str) -> dict[str, Any]:
        return next(row for row in self.shards if row["name"] == shard)

    def seal(self, note: str, touched: set[str] | None = None, follow: bool = True) -> Damage:
        """All files, with every digest made again. follow: the manifest's counts and sizes are those of the indexes."""
        files: dict[str, bytes | None] = {f"{shard}.tar": data for shard, data in self.tars.items()}
        for shard, columns in self.columns.items():
            arrays = [pa.array(columns[field.name], field.type) for field in self.types[shard]]
            description = self.descriptions[shard]
            checksums = np.array(columns["checksum"], np.uint64)
            description["digest"] = content_digest(description["layout"], checksums).hex()
            sink = pa.BufferOutputStream()
            types = self.types[shard].with_metadata({_INDEX_KEY: json.dumps(description)})
            pq.write_table(pa.Table.from_arrays(arrays, schema=types), sink, write_page_checksum=True)
            data = sink.getvalue().to_pybytes()
            files[f"{shard}.index.parquet"] = data
            row = self.row(shard)
            row |= {"index_bytes": len(data), "index_digest": xxhash.xxh3_128_digest(data)}
            row["digest"] = bytes.fromhex(description["digest"])
            if follow:
                row |= {"count": len(checksums), "bytes": len(self.tars[shard])}
                row["stride"] = description["layout"].get("stride", 0)
        files[MANIFEST] = self._manifest()
        return Damage(files, touched or set(self.target.shards), note, sealed=True)

    def _manifest(self) -> bytes:
        table = pa.Table.from_pylist(self.shards, schema=manifest_module._TABLE)
        loose = Manifest.__new__(Manifest)  # its constructor would refuse the lie
        loose.shards = table
        try:
            loose.schema = Schema.from_dict(self.description["schema"])
            self.description["digest"] = loose._content_digest()
        except (ValueError, TypeError):
            pass  # a schema that is refused before any digest is looked at
        self.description.pop("check", None)
        self.description["check"] = manifest_module._self_check(self.description)
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({_MANIFEST_KEY: json.dumps(self.description)}), sink)
        return sink.getvalue().to_pybytes()


def _table(data: bytes) -> pa.Table:
    return pq.ParquetFile(pa.BufferReader(data)).read()


def _lie(name: str, *targets: str) -> Callable[[Callable[[random.Random, Lie, str], str]], None]:
    """Registers a change to one shard's index; it returns what it did."""

    def register(function: Callable[[random.Random, Lie, str], str]) -> None:
        def apply(rng: random.Random, target: Target) -> Damage:
            lie, shard = Lie(target), rng.choice(target.shards)
            return lie.seal(f"{shard}: {function(rng, lie, shard)}", {shard})

        kind(f"sealed: {name}", *targets)(apply)

    return register


@_lie("absurd offsets and sizes")
def _numbers(rng: random.Random, lie: Lie, shard: str) -> str:
    names = [name for name in lie.columns[shard] if name == "offset" or name.startswith("member.")]
    name, row, value = rng.choice(names), rng.randrange(len(lie.target.keys[shard])), rng.choice(_ABSURD)
    lie.columns[shard][name][row] = value
    return f"{name}[{row}] = {value}"


@_lie("key twice")
def _twice(rng: random.Random, lie: Lie, shard: str) -> str:
    other = rng.choice(lie.target.shards)
    keys = lie.columns[shard]["key"]
    row, source = rng.randrange(len(keys)), rng.choice(lie.columns[other]["key"])
    keys[row] = source if keys[row] != source else keys[row - 1]
    return f"key[{row}] = {keys[row]}"


@_lie("rows more or less in the index")
def _rows(rng: random.Random, lie: Lie, shard: str) -> str:
    row, times = rng.randrange(len(lie.target.keys[shard])), rng.choice((0, 2))
    for values in lie.columns[shard].values():
        values[row : row + 1] = values[row : row + 1] * times
    return f"row {row}, {times} times"


@_lie("rows change places in the index")
def _places(rng: random.Random, lie: Lie, shard: str) -> str:
    i, j = rng.sample(range(len(lie.target.keys[shard])), 2)
    names = [name for name in lie.columns[shard] if name.startswith(("checksum", "member.", "present."))]
    for name in names:
        values = lie.columns[shard][name]
        values[i], values[j] = values[j], values[i]
    return f"{i}, {j}"


@_lie("labels, groups and texts")
def _labels(rng: random.Random, lie: Lie, shard: str) -> str:
    columns = lie.columns[shard]
    row = rng.randrange(len(columns["key"]))
    name = rng.choice([name for name in columns if name.startswith("label.")] + ["group", "text"])
    value = columns[name][row]
    if name == "label.mood":
        columns[name][row] = rng.choice([x for x in (-2, -1, 0, 1, 2, 3, 2**40) if x != value])
    elif name in ("group", "text"):
        columns[name][row] = rng.choice([x for x in (None, "other", "\0", "x" * 10000) if x != value])
    else:
        columns[name][row] = [9.0, 9.0] if isinstance(value, list) else 9.0
    return f"{name}[{row}]"


@_lie("presence")
def _presence(rng: random.Random, lie: Lie, shard: str) -> str:
    name = rng.choice([name for name in lie.columns[shard] if name.startswith("present.")])
    row = rng.randrange(len(lie.columns[shard][name]))
    lie.columns[shard][name][row] = not lie.columns[shard][name][row]
    return f"{name}[{row}]"


@_lie("layout")
def _layout(rng: random.Random, lie: Lie, shard: str) -> str:
    layout = lie.descriptions[shard]["layout"]
    changes: list[dict[str, Any]] = [
        {"kind": "members"}, {"kind": "fixed"}, {"kind": 3}, {"stride": 0}, {"stride": 2**62}, {"json": [0, 2**40]},
        {"json": []}, {"json": None}, {"json": [0, 10]}, {"payload": {}}, {"mapping": None}, {"kind": None},
    ]  # fmt: skip
    change = rng.choice(changes)
    lie.descriptions[shard]["layout"] = {**layout, **change}
    return str(change)


@_lie("npy header of another width or type")
def _npy(rng: random.Random, lie: Lie, shard: str) -> str:
    region = rng.choice(lie.target.regions_of(shard, "npy header"))
    data = bytearray(lie.tars[shard])
    text = bytes(data[region.start + 10 : region.stop])
    old, new = rng.choice(
        [(b"<f", b"<i"), (b"<f", b"|O"), (b"False", b"True "), (b"shape': (", b"shape': (1"),
         (b"(", b"(9999999"), (b"{", b"["), (b"', 'fort", b"8, 'fort")]
    )  # fmt: skip
    data[region.start + 10 : region.stop] = text.replace(old, new, 1)[: len(text)].ljust(len(text))
    lie.tars[shard] = bytes(data)
    row = lie.target.keys[shard].index(str(region.key))
    columns = lie.columns[shard]
    if lie.target.name == "native":
        stride = lie.descriptions[shard]["layout"]["stride"]
        covered = bytes(data[row * stride : (row + 1) * stride])
    else:
        places = [(columns[f"member.{c}.offset"][row], columns[f"member.{c}.size"][row]) for c in ("a", "b")]
        covered = b"".join(bytes(data[at : at + size]) for at, size in places if at >= 0)
    columns["checksum"][row] = xxhash.xxh3_64_intdigest(covered)
    return f"{region.key}: {old!r} -> {new!r}"


@kind("sealed: absurd counts and sizes in the manifest")
def _manifest_numbers(rng: random.Random, target: Target) -> Damage:
    lie = Lie(target)
    row: dict[str, Any] = rng.choice(lie.shards)
    name = rng.choice(("count", "bytes", "stride"))
    row[name] = rng.choice([value for value in (*_ABSURD, row[name] + 1, row[name] - 1) if value != row[name]])
    return lie.seal(f"{row['name']}: {name} = {row[name]}", follow=False)


@kind("sealed: names in the manifest")
def _manifest_names(rng: random.Random, target: Target) -> Damage:
    lie = Lie(target)
    row = rng.choice(lie.shards)
    names = ["../" + row["name"], "/etc/passwd", "", "x" * 5000, "a\0b", ".", row["name"] + "..", lie.shards[0]["name"]]
    name = rng.choice([name for name in names if name != row["name"]])
    damage = lie.seal(f"{row['name']}: {name[:20]!r}")
    row["name"] = name
    damage.files[MANIFEST] = lie._manifest()
    return damage


@kind("sealed: schema")
def _schema(rng: random.Random, target: Target) -> Damage:
    lie = Lie(target)
    values: dict[tuple[str, str], list[Any]] = {
        ("columns", "width"): [1 << 27, 1 << 40, 0, -1, "7", None, True, 2, 1.0],
        ("columns", "dtype"): ["float64", "float16", "object", "O", "int64", None, []],
        ("columns", "name"): ["other", "../x", "", None],
        ("labels", "classes"): [[], ["x"], ["x"] * 3, None, 5],
        ("labels", "kind"): ["continuous", "multilabel", "x", None, {}],
        ("labels", "width"): [1 << 50, 0, None, "1"],
    }
    section, name, value = rng.choice([(*place, value) for place, some in values.items() for value in some])
    everywhere = rng.random() < 0.7
    for description in (lie.description, *(lie.descriptions.values() if everywhere else ())):
        description["schema"][section][0][name] = value
    return lie.seal(f"{section}.{name} = {value!r}, {'everywhere' if everywhere else 'in the manifest'}")
