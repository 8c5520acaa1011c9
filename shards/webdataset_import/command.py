"""`python -m shards index`: makes shards that other tools wrote readable, by an index beside each and a manifest.

The shards themselves stay as they are. Their members need not lie at fixed distances, so reading them takes a slower
path; `python -m shards pack` writes fast ones.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from conclugen.common.atomic import write_bytes
from conclugen.common.locks import folder_held, is_of_lock
from shards import names
from shards.access import LOCAL_RESULT, LOCAL_SOURCE, refuse_url
from shards.doubts import Samples, classes_of
from shards.errors import ShardError
from shards.format import publication
from shards.format.index import INDEX_SUFFIX, IndexRows, encode_index, values_digest
from shards.format.manifest import MANIFEST_NAME, TAR_SUFFIX, Manifest, check_shard_name
from shards.format.publication import Publication
from shards.format.record import check_text
from shards.format.schema import Column, Label, Schema, counted_classes, named_by_number
from shards.options import IndexJob
from shards.webdataset_import.mapping import LabelSource, MemberMapping, Source
from shards.webdataset_import.member import MemberError, read_npy
from shards.webdataset_import.tarscan import Member, scan_tar

# As `webdataset` groups members: the key is all before the first dot of the file's own name.
_KEY_AND_EXTENSION = re.compile(r"((?:.*/|)[^./][^./]*)\.([^/]+)")
_TEXT_LIMIT = 16 * 1024**2
_MOST_LABEL_NUMBERS = 1 << 25  # of one label, of all samples together: a gigabyte while they are encoded
_ADJACENT = "Write the archive with the members of a sample next to each other (for GNU tar: --sort=name)"


@dataclass
class _Draft:
    """A shard whose members are found and checked, before labels have numbers."""

    name: str
    keys: list[str]
    members: np.ndarray
    checksums: np.ndarray
    present: np.ndarray
    labels: dict[str, list[Any]]
    groups: list[str | None]
    texts: list[str | None]
    meta: dict[str, list[str | None]]


def index_folder(
    folder: str | Path,
    mapping: MemberMapping | None = None,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
    tell: Callable[[FolderContents], None] = lambda contents: None,
) -> Manifest:
    """Write an index beside every `*.tar` of a local folder, and their manifest; all or nothing. `tell` sees what the
    folder holds before anything is written. out: a folder for index, manifest and links to the shards instead, where
    theirs is not to be written.

    Raises ShardError, naming shard and sample, for whatever `scan_tar` refuses, duplicate members and keys, samples
    whose members are not adjacent, arrays that are not (D,) or (1, D) floats of one width and dtype in all shards;
    ValueError for a folder without shards or with a manifest (unless `overwrite`), and for labels that don't fit.
    """
    refuse_url("FOLDER", folder, LOCAL_SOURCE)
    refuse_url("output", out, LOCAL_RESULT)
    source, folder = Path(folder).absolute(), Path(folder if out is None else out).absolute()
    mapping = mapping or MemberMapping()
    of = {"index": mapping.to_dict(), "source": str(source)}
    if publication.finish_same(folder, of):
        return Manifest.open(folder)
    with folder_held(folder, "shards or their index are being written here", "another --output"):
        return _index_folder(source, folder, mapping, overwrite, progress, tell, of)


def _index_folder(
    source: Path,
    folder: Path,
    mapping: MemberMapping,
    overwrite: bool,
    progress: Callable[[str], None] | None,
    tell: Callable[[FolderContents], None],
    of: Mapping[str, Any],
) -> Manifest:
    publication.finish(folder)
    if not overwrite or folder == source:
        publication.refuse_unfinished(folder, "indexed")
    if (
        folder != source
        and not overwrite
        and any(not is_of_lock(path.name) and path.name != publication.STAGING for path in folder.iterdir())
    ):
        raise ValueError(f"output: {folder} is not empty; name another folder, or replace its index with --overwrite")
    if (folder / MANIFEST_NAME).exists() and not overwrite:
        raise ValueError(f"{folder} has a manifest already; ask to overwrite it if the shards changed")
    contents = read_folder(source, mapping, progress)
    tell(contents)
    staging = publication.discard(folder)
    try:
        for draft in contents.drafts:
            if folder != source:
                (staging / f"{draft.name}{TAR_SUFFIX}").symlink_to(source / f"{draft.name}{TAR_SUFFIX}")
            write_bytes(staging / f"{draft.name}{INDEX_SUFFIX}", _encode(draft, contents, mapping))
        shards = [draft.name for draft in contents.drafts]
        staged = Manifest.assemble(staging, shards, {"indexed": mapping.to_dict()}, tars=source)
        links = [f"{name}{TAR_SUFFIX}" for name in shards] if folder != source else []
        files = publication.staged_names(staging, links)
        publication.publish(folder, Publication(files, replaces=False, of=of, digest=staged.digest))
    except BaseException:
        if publication.pending(folder) is None:
            shutil.rmtree(staging, ignore_errors=True)
        raise
    manifest = Manifest.open(folder)
    if manifest.digest != staged.digest:
        raise ShardError(
            MANIFEST_NAME,
            "is not the one that was just written: another process writes into this folder",
            expected=staged.digest,
            found=manifest.digest,
            remedy="Index into a folder of its own, with --output",
        )
    return manifest


@dataclass
class FolderContents:
    """What the shards of a folder hold, read and checked; nothing is written. values: label -> value of each sample."""

    schema: Schema
    drafts: list[_Draft]
    values: dict[str, list[list[Any]]]

    def samples(self) -> Samples:
        """Labels, speakers, parts (a meta field `split`) and texts, for doubts."""
        drafts = self.drafts
        classes = {
            label.name: [c for values in self.values[label.name] for c in classes_of(label, values)]
            for label in self.schema.labels
            if label.classes
        }
        texts = sum(text is not None for draft in drafts for text in draft.texts)
        parts = [part for draft in drafts for part in draft.meta["split"]] if "split" in self.schema.meta else None
        groups = [group for draft in drafts for group in draft.groups] if self.schema.grouped else None
        return Samples(sum(len(d.keys) for d in drafts), self.schema.labels, classes, groups, parts, texts)

    def lines(self) -> list[str]:
        """What was understood, in words."""
        lines = [f"{len(self.drafts)} shards, {sum(len(draft.keys) for draft in self.drafts)} samples"]
        for number, column in enumerate(self.schema.columns):
            there = sum(int(draft.present[:, number].sum()) for draft in self.drafts)
            lines.append(f"column {column.name}: {column.width} x {column.dtype}, in {there} samples")
        return lines + self.samples().lines()

    def doubts(self) -> list[str]:
        """What may be meant otherwise."""
        return self.samples().doubts()


def read_folder(folder: Path, mapping: MemberMapping, progress: Callable[[str], None] | None = None) -> FolderContents:
    """Read and check every sample of every `*.tar` of a folder; raises as `index_folder` does."""
    paths = sorted(folder.glob(f"*{TAR_SUFFIX}"))
    packed = sorted(path.name for pattern in ("*.tar.*", "*.tgz") for path in folder.glob(pattern) if path.is_file())
    if packed:
        raise ValueError(
            f"{folder} holds {len(packed)} compressed archive(s) such as {packed[0]}, which cannot be read by range: "
            "decompress them, for instance with gunzip, or move them elsewhere"
        )
    if not paths:
        raise ValueError(f"{folder} has no *{TAR_SUFFIX}")
    samples = {path: _samples(path) for path in paths}
    _refuse_shared_keys(samples)
    extensions = dict(mapping.columns) or _npy_extensions(samples)
    if not extensions:
        raise ValueError(f"{folder}: no sample has an .npy member; name the columns with --column NAME=EXTENSION")
    columns: dict[str, Column] = {}
    drafts = []
    for number, path in enumerate(paths):
        drafts.append(_draft(path, samples.pop(path), extensions, mapping, columns))
        if progress is not None:
            progress(f"shard {number + 1} of {len(paths)}: {drafts[-1].name}, {len(drafts[-1].keys)} samples")
    absent = [name for name in extensions if name not in columns]
    if absent:
        raise ValueError(
            f"column {absent[0]!r}: no sample has a member .{extensions[absent[0]]} that is not all NaN; "
            "leave the column out, or correct its extension"
        )
    schema = Schema(
        tuple(columns[name] for name in extensions),
        {name: tuple(members) for name, members in mapping.modalities.items()},
        tuple(_label(source, drafts) for source in mapping.labels),
        mapping.group is not None,
        tuple(mapping.meta),
    )
    values = {label.name: [_label_values(draft, label) for draft in drafts] for label in schema.labels}
    return FolderContents(schema, drafts, values)


def _samples(path: Path) -> dict[str, dict[str, Member]]:
    """Key -> extension -> member, in the order of the archive."""
    shard = path.name.removesuffix(TAR_SUFFIX)
    check_shard_name(shard)
    samples: dict[str, dict[str, Member]] = {}
    current = None
    for member in scan_tar(path):
        split = split_name(member.name)
        if split is None:
            continue
        key, extension = split
        if key != current and key in samples:
            raise ShardError(
                shard, f"member {member.name!r} lies apart from its sample, or the key is used twice", sample=key,
                remedy=_ADJACENT,
            )  # fmt: skip
        current = key
        if extension in samples.setdefault(key, {}):
            raise ShardError(shard, f"member {member.name!r} occurs twice", sample=key, remedy=_ADJACENT)
        samples[key][extension] = member
    if not samples:
        raise ShardError(shard, "has no members named KEY.EXTENSION", remedy="Remove it from the folder")
    return samples


def _refuse_shared_keys(samples: Mapping[Path, Mapping[str, Any]]) -> None:
    holder: dict[str, str] = {}
    for path, keys in samples.items():
        for key in keys:
            if holder.setdefault(key, path.name) != path.name:
                raise ShardError(path.name, f"key occurs in {holder[key]} as well; rename one", sample=key)


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a member, as `webdataset` splits its name; None for what belongs to no sample."""
    match = _KEY_AND_EXTENSION.fullmatch(name)
    if match is None or (name.startswith("__") and name.endswith("__")):
        return None
    return match[1], match[2].lower()


def _npy_extensions(samples: Mapping[Path, Mapping[str, Mapping[str, Member]]]) -> dict[str, str]:
    """Column name -> extension of all .npy members of all shards; a bare `.npy` becomes the column `features`."""
    found = {
        e for shard in samples.values() for sample in shard.values() for e in sample if re.search(r"(^|\.)npy$", e)
    }
    columns: dict[str, str] = {}
    for extension in sorted(found):
        name = extension.removesuffix("npy").rstrip(".").replace(".", "_") or "features"
        if name in columns:
            raise ValueError(f"members .{columns[name]} and .{extension} would both be the column {name!r}; name them")
        columns[name] = extension
    return columns


def _draft(
    path: Path,
    samples: Mapping[str, Mapping[str, Member]],
    extensions: Mapping[str, str],
    mapping: MemberMapping,
    columns: dict[str, Column],
) -> _Draft:
    """Read and check every sample of a shard; the first array of a column decides its width and dtype."""
    shard = path.name.removesuffix(TAR_SUFFIX)
    count = len(samples)
    draft = _Draft(
        shard,
        list(samples),
        np.full((count, len(extensions), 2), -1, np.int64),
        np.zeros(count, np.uint64),
        np.zeros((count, len(extensions)), bool),
        {label.name: [] for label in mapping.labels},
        [],
        [],
        {name: [] for name in mapping.meta},
    )
    with path.open("rb") as file:
        for row, (key, members) in enumerate(samples.items()):
            digest = xxhash.xxh3_64()
            for number, (name, extension) in enumerate(extensions.items()):
                member = members.get(extension)
                if member is None:
                    continue
                data = _read(file, member)
                digest.update(data)
                draft.members[row, number] = member.offset, member.size
                draft.present[row, number] = _check_array(shard, key, name, data, mapping.nan, columns)
            draft.checksums[row] = digest.intdigest()
            values = _Values(shard, key, file, members, mapping.encoding)
            for label in mapping.labels:
                draft.labels[label.name].append(values.get(label.source))
            draft.groups.append(values.string(mapping.group, names.name))
            draft.texts.append(values.string(mapping.text, names.text))
            for name, source in mapping.meta.items():
                draft.meta[name].append(values.string(source, names.text))
    return draft


def _read(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


def _check_array(shard: str, key: str, name: str, data: bytes, nan: str, columns: dict[str, Column]) -> bool:
    """Whether the column is present; ShardError where it is not a float array like those before it."""
    try:
        array = read_npy(data)
    except MemberError as error:
        raise ShardError(shard, f"column {name!r}: {error}", sample=key) from None
    width = array.shape[-1] if array.ndim else 0
    if array.shape not in ((width,), (1, width)) or width == 0:
        raise ShardError(
            shard, f"column {name!r} has an unusable shape", sample=key, expected="(D,)", found=array.shape
        )
    column = columns.setdefault(name, Column(name, width, array.dtype.newbyteorder("=").name))
    if (width, array.dtype.newbyteorder("=").name) != (column.width, column.dtype):
        raise ShardError(
            shard,
            f"column {name!r} has another width or dtype than in the samples before it",
            sample=key,
            expected=f"{column.dtype} ({column.width},)",
            found=f"{array.dtype.name} {array.shape}",
            remedy="Write all samples alike, or put different data into different folders",
        )
    finite = np.isfinite(array)
    if finite.all() or nan == "any" or np.isnan(array).all():
        return bool(finite.all())
    raise ShardError(
        shard,
        f"column {name!r}: element {int(np.flatnonzero(~finite.reshape(-1))[0])} is not finite, others are",
        sample=key,
        remedy="Fill the gaps, or count such a column as missing with --nan-row-missing any",
    )


class _Values:
    """Labels and strings of one sample; each JSON member is parsed once."""

    def __init__(
        self, shard: str, key: str, file: BinaryIO, members: Mapping[str, Member], encoding: str | None
    ) -> None:
        self._shard, self._key, self._file, self._members = shard, key, file, members
        self._encoding = encoding
        self._parsed: dict[str, Any] = {}

    def get(self, source: Source) -> Any:
        """The value, None where the member or the path does not exist."""
        member = self._members.get(source.extension)
        if member is None:
            return None
        if source.extension not in self._parsed:
            self._parsed[source.extension] = self._parse(source, member)
        value = self._parsed[source.extension]
        for part in source.path:
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def string(self, source: Source | None, read: Callable[[Any], str | None]) -> str | None:
        """`read` is `names.name` or `names.text`."""
        value = None if source is None else self.get(source)
        try:
            value = read(value)
        except ValueError as error:
            raise ShardError(self._shard, f"{source} is {error}", sample=self._key) from None
        try:
            check_text(str(source), value)
        except ValueError as error:
            raise ShardError(self._shard, str(error), sample=self._key) from None
        return value

    def _parse(self, source: Source, member: Member) -> Any:
        if member.size > _TEXT_LIMIT:
            raise ShardError(self._shard, f"member {member.name!r} has {member.size} bytes", sample=self._key)
        data = _read(self._file, member)
        try:
            text, _ = names.decode_text(data, self._encoding)
            if source.path or source.extension.split(".")[-1] == "json":
                return json.loads(text)
        except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or a number of more digits than `int` takes
            raise ShardError(self._shard, f"member {member.name!r} cannot be read: {error}", sample=self._key) from None
        return text.strip()


def _label(source: LabelSource, drafts: Sequence[_Draft]) -> Label:
    """The label with its classes: those given, or the names (sorted), or 0 up to the highest number in the data."""
    values = [value for draft in drafts for value in draft.labels[source.name]]
    known = [value for value in values if names.plain(value) is not None]
    if not known:
        raise ValueError(f"label {source.name!r}: no sample has a value at {source.source}")
    if source.kind == "continuous":
        return Label(source.name, source.kind, width=_width(source, drafts, known[0], len(values)))
    if source.classes or source.kind == "multilabel":
        return Label(source.name, source.kind, source.classes)
    found = [_class_value(source.name, draft, key, value) for draft, key, value in _each(source.name, drafts)]
    known = [value for value in found if value is not None]
    if all(isinstance(value, int) for value in known):
        return Label(source.name, source.kind, _counted(source, drafts, max(known)))
    return Label(source.name, source.kind, tuple(sorted(set(map(str, known)))))


def _each(name: str, drafts: Sequence[_Draft]) -> Iterator[tuple[_Draft, str, Any]]:
    for draft in drafts:
        for key, value in zip(draft.keys, draft.labels[name], strict=True):
            yield draft, key, value


def _class_value(name: str, draft: _Draft, key: str, value: Any) -> Any:
    try:
        return names.class_value(value)
    except ValueError as error:
        raise ShardError(draft.name, f"label {name!r} is {error}", sample=key) from None


def _counted(source: LabelSource, drafts: Sequence[_Draft], highest: int) -> tuple[str, ...]:
    try:
        return counted_classes(highest)
    except ValueError as error:
        shard, key = _first(source, drafts, lambda value: names.class_value(value) == highest)
        raise ShardError(
            shard,
            f"label {source.name!r} ({source.source}): {error}",
            sample=key,
            remedy=f"Names are listed by --label {source.name}={source.source}:class:NAME,NAME",
        ) from None


def _width(source: LabelSource, drafts: Sequence[_Draft], first: Any, samples: int) -> int:
    """Numbers of a continuous label, as the first sample that has it says; refused where all samples together would
    have too many: one that lacks the label takes as much room as one that has it."""
    width = len(first) if isinstance(first, list) else 1
    if width * samples > max(_MOST_LABEL_NUMBERS, samples):
        shard, key = _first(source, drafts, lambda value: True)
        raise ShardError(
            shard,
            f"label {source.name!r} ({source.source}) has {width} numbers, which for {samples} samples is more than "
            f"{_MOST_LABEL_NUMBERS}",
            sample=key,
            remedy="Correct the value, or store such long ones as arrays, KEY.NAME.npy",
        )
    return width


def _first(source: LabelSource, drafts: Sequence[_Draft], fits: Callable[[Any], bool]) -> tuple[str, str]:
    """Shard and key of the first sample that has the label, with a value that fits."""
    return next(
        (draft.name, key)
        for draft in drafts
        for key, value in zip(draft.keys, draft.labels[source.name], strict=True)
        if value is not None and fits(value)
    )


def _label_values(draft: _Draft, label: Label) -> list[Any]:
    """The label of each sample as it is stored."""
    encoded = []
    for key, value in zip(draft.keys, draft.labels[label.name], strict=True):
        try:
            if label.kind == "class":
                encoded.append(label.encode(_class_in(label, draft, key, value)))
            else:
                encoded.append(label.encode(_numbers(label.name, value)))
        except (ValueError, TypeError) as error:
            raise ShardError(draft.name, str(error), sample=key) from None
    return encoded


def _class_in(label: Label, draft: _Draft, key: str, value: Any) -> Any:
    """Text such as "3" is the class of that name where there is one, and else its number; numbers are names where all
    listed classes are."""
    found = _class_value(label.name, draft, key, value)
    if found is None or (found == -1 and "-1" not in label.classes):
        return found
    named = named_by_number(label.classes) or (isinstance(value, str) and str(found) in label.classes)
    return str(found) if named else found


def _numbers(name: str, value: Any) -> Any:
    """A number, or numbers, of a label that has no classes or several."""
    try:
        if isinstance(value, list):
            return [names.number(item) for item in value]
        return None if names.plain(value) is None else names.number(value)
    except ValueError as error:
        raise ValueError(f"label {name!r} is {error}") from None


def _encode(draft: _Draft, contents: FolderContents, mapping: MemberMapping) -> bytes:
    schema = contents.schema
    labels = {name: values[contents.drafts.index(draft)] for name, values in contents.values.items()}
    layout = {
        "kind": "members",
        "mapping": mapping.to_dict(),
        "values": values_digest(draft.keys, labels, draft.groups, draft.texts, draft.meta),
    }
    rows = IndexRows(
        draft.keys,
        np.where(draft.members[..., 0] < 0, np.iinfo(np.int64).max, draft.members[..., 0]).min(axis=1),
        draft.checksums,
        draft.present,
        labels,
        draft.groups,
        draft.texts,
        draft.meta,
        draft.members,
    )
    return encode_index(schema, layout, rows)


# Command line


def run(job: IndexJob) -> int:
    """Index a folder; returns the exit status."""

    def tell(contents: FolderContents) -> None:
        for doubt in contents.doubts():
            print(f"warning: {doubt}", flush=True)

    manifest = index_folder(
        job.data,
        MemberMapping.of(job),
        out=job.output,
        overwrite=job.overwrite,
        progress=lambda line: print(line, flush=True),
        tell=tell,
    )
    print(f"{manifest.folder}: {manifest.rows} samples in {len(manifest)} shards, digest {manifest.digest}")
    return 0
