"""Makes a manifest of the shards of a folder that are whole, with indexes rebuilt where they are lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from conclugen.common.atomic import write_bytes
from conclugen.common.locks import folder_held
from shards.access import AccessError, reaching, refuse_url
from shards.errors import ManifestError, ShardError
from shards.files import read_whole
from shards.format import publication
from shards.format.index import INDEX_SUFFIX, IndexRows, decode_index, encode_index
from shards.format.layout import BLOCK, LayoutError, SampleLayout, archive_bytes, parse_header
from shards.format.manifest import OTHER_KIND, TAR_SUFFIX, Manifest, ShardEntry, check_shard_name, table_of
from shards.format.raw_sample import parse_raw
from shards.format.record import Record
from shards.format.schema import Schema
from shards.verification.check import check_shard
from shards.verification.clips import DAMAGED


@dataclass
class Outcome:
    """The new manifest; shards whose index was rebuilt; shards left out with the reason; what else to know."""

    manifest: Manifest
    rebuilt: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def repair(folder: str | Path) -> Outcome:
    """Write a manifest of the whole shards of a local folder.

    With a readable manifest only its shards are looked at, in its order, and their content must have the digest it
    says; without one, every `*.tar` is. Damaged shards stay where they are. Raises ValueError where nothing is whole,
    or where neither manifest nor any index says what the columns are.
    """
    refuse_url("FOLDER", folder, "Copy it to a local folder to repair it")
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a local folder; copy the data set there to repair it")
    with folder_held(folder, "shards are being written here", "another time", field="FOLDER"):
        finished = publication.finish(folder)
        publication.refuse_unfinished(folder, "repaired")
        outcome = _repair(folder)
    if finished is not None:
        outcome.notes.insert(
            0, f"{finished.words} were being published when their writer was stopped: that is done now"
        )
    return outcome


def _repair(folder: Path) -> Outcome:
    try:
        old: Manifest | None = Manifest.open(folder)
    except FileNotFoundError:
        old = None
    except ManifestError as error:
        if error.problem == OTHER_KIND:
            raise ValueError(f"{folder}: clip shards are not repaired here. {DAMAGED}") from None
        old = None
    if old is not None:
        names = old.shards["name"].to_pylist()
        digests = dict(zip(names, old.shards["digest"].to_pylist(), strict=True))
    else:
        names = sorted(path.name.removesuffix(TAR_SUFFIX) for path in folder.glob(f"*{TAR_SUFFIX}"))
        digests = {}
    schema = old.schema if old is not None else _schema_of(folder, names)
    kept: list[ShardEntry] = []
    rebuilt, left_out = [], []
    holder: dict[str, str] = {}
    for name in names:
        try:
            entry, is_new = _whole_entry(folder, name, schema, digests.get(name), holder)
        except ShardError as error:
            left_out.append((name, str(error)))
            continue
        kept.append(entry)
        if is_new:
            rebuilt.append(name)
    if not kept:
        reasons = "; ".join(reason for _, reason in left_out[:3])
        raise ValueError(f"{folder}: no shard is whole, nothing was written. {reasons}")
    manifest = Manifest.assemble(folder, kept, {} if old is None else old.info)
    outcome = Outcome(manifest, rebuilt, left_out)
    if old is None and rebuilt:
        outcome.notes.append(
            "neither manifest nor index was left to compare rebuilt shards with: their numbers are taken as they are"
        )
    if old is not None and old.digest != manifest.digest and (folder / "views").is_dir():
        outcome.notes.append("views were made for the old manifest and no longer open: make them again with `split`")
    return outcome


def _schema_of(folder: Path, names: list[str]) -> Schema:
    for name in names:
        try:
            with reaching(str(folder / f"{name}{INDEX_SUFFIX}")):
                return decode_index(name, read_whole(folder / f"{name}{INDEX_SUFFIX}")).schema
        except AccessError:
            raise
        except (OSError, ShardError):
            continue
    raise ValueError(
        f"{folder}: neither a readable manifest nor a readable index says what the columns are; "
        "use `conclugen index`, or pack the data again"
    )


def _whole_entry(
    folder: Path, name: str, schema: Schema, digest: bytes | None, holder: dict[str, str]
) -> tuple[ShardEntry, bool]:
    """A shard's entry after all of it was read, and whether its index was rebuilt; ShardError where it is not whole."""
    check_shard_name(name)
    tar, index_path = folder / f"{name}{TAR_SUFFIX}", folder / f"{name}{INDEX_SUFFIX}"
    if not tar.is_file():
        raise ShardError(name, f"file {tar.name} is missing")
    try:
        with reaching(str(index_path)):
            data = read_whole(index_path)
        return _checked(folder, name, schema, data, digest, holder), False
    except AccessError:
        raise
    except (OSError, ShardError) as error:
        try:
            data = rebuild_index(tar, schema)
        except ShardError as second:
            raise ShardError(name, f"{_reason(error)}; its index cannot be rebuilt: {second.problem}") from None
        return _checked(folder, name, schema, data, digest, holder, write_to=index_path), True


def _reason(error: OSError | ShardError) -> str:
    return error.problem if isinstance(error, ShardError) else "its index is missing"


def _checked(
    folder: Path,
    name: str,
    schema: Schema,
    data: bytes,
    digest: bytes | None,
    holder: dict[str, str],
    write_to: Path | None = None,
) -> ShardEntry:
    """The entry of a shard whose index and content agree; ShardError with the first problem otherwise."""
    size = (folder / f"{name}{TAR_SUFFIX}").stat().st_size
    index = decode_index(name, data, size)
    if index.schema != schema:
        raise ShardError(name, "schema differs from the other shards'")
    if digest is not None and index.digest != digest:
        raise ShardError(
            name, "content differs from the manifest's digest", expected=digest.hex(), found=index.digest.hex()
        )
    if write_to is not None:
        write_bytes(write_to, data)
    entry = ShardEntry(name, len(index), size, index.stride, index.digest, len(data), xxhash.xxh3_128_digest(data))
    alone = Manifest(str(folder), schema, table_of([entry]))
    for problem in check_shard(alone, entry, holder):
        for key in [key for key, shard in holder.items() if shard == name]:
            del holder[key]  # a shard that is left out has no key
        raise ShardError(name, problem.reason, sample=problem.sample)
    return entry


def rebuild_index(tar: Path, schema: Schema) -> bytes:
    """The index of a shard that this package wrote, made from it; ShardError where any byte is not as written."""
    name = tar.name.removesuffix(TAR_SUFFIX)
    size = tar.stat().st_size
    with tar.open("rb") as file:
        shortest = SampleLayout(schema.columns, 1)
        file.seek(shortest.json_offset - BLOCK)
        try:
            header = parse_header(file.read(BLOCK))
        except LayoutError as error:
            raise ShardError(name, f"first sample: {error}") from None
        if header is None or not 0 < header.size <= size:
            raise ShardError(name, "has no samples of these columns")
        layout = SampleLayout(schema.columns, header.size)
        file.seek(0)
        records: list[Record] = []
        checksums = []
        while True:
            at = len(records) * layout.stride
            sample = file.read(layout.stride)
            if not any(sample[:BLOCK]):
                break
            if len(sample) != layout.stride:
                raise ShardError(name, f"ends within a sample at byte {at + len(sample)}")
            try:
                records.append(parse_raw(schema, layout, sample))
            except ValueError as error:
                raise ShardError(name, f"sample number {len(records)} at byte {at}: {error}") from None
            checksums.append(xxhash.xxh3_64_intdigest(sample))
        file.seek(len(records) * layout.stride)
        if archive_bytes(len(records), layout.stride) != size or any(file.read(size)):
            raise ShardError(name, f"does not end as it should after {len(records)} samples")
    if not records:
        raise ShardError(name, "has no samples")
    rows = IndexRows.of_records(schema, records, layout.stride, np.array(checksums, np.uint64))
    return encode_index(schema, layout.to_dict(), rows)
