"""WebDataset tars of videos (also .tar.gz, video2dataset, Hugging Face folders such as `train/*.tar`), unpacked first.

A sample is what shares a name up to its first dot: a video, and, where there are any, a sound file, `.txt` (its
transcript) and `.json`, whose values are columns `json.NAME` for `--field` and `--label`.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from conclugen.common.atomic import write_bytes
from shards import names
from shards.adapters import folder
from shards.adapters.clip_set import ClipSet, Rejected
from shards.adapters.files import VIDEO_SUFFIXES, shown
from shards.errors import ShardError
from shards.packing.labels import LabelSpec
from shards.webdataset_import.tarscan import Member, scan_tar

_SOUNDS = frozenset([".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus"])
_SPLITS = frozenset(["train", "training", "valid", "validation", "val", "dev", "test", "eval"])
_TABLE, _RECORD = "clips.jsonl", "unpacked.json"
_LONGEST_TEXT = 1 << 20


def read(
    source: Path,
    unpack: Path | None = None,
    fields: Mapping[str, str] | None = None,
    labels: Sequence[LabelSpec] = (),
    encoding: str | None = None,
) -> ClipSet:
    """Clips of all `.tar`, `.tar.gz` and `.tgz` below a folder, unpacked into `unpack` (once, seen by all nodes).

    The split is the name of an archive's folder, where it is one of a split. A sample without a video is left out, by
    name; an archive that can't be read is rejected as a whole. Raises ValueError without `unpack`, for a folder
    that holds something else, and as the adapter `folder` does for columns and labels.
    """
    archives = sorted(path for path in source.rglob("*") if path.is_file() and _is_archive(path))
    if not archives:
        raise ValueError(f"{source} has no .tar, .tar.gz or .tgz")
    if unpack is None:
        size = sum(path.stat().st_size for path in archives) / 2**30
        raise ValueError(
            f"--unpack FOLDER: name where the videos of {len(archives)} archives go ({size:.1f} GiB or more)"
        )
    record = _unpacked(source, archives, unpack, encoding)
    if not record["clips"]:
        raise ValueError(
            f"{source}: no sample of {len(archives)} archives has a video; found .{', .'.join(record['kinds'])}"
        )
    clips = folder.read(unpack, unpack / _TABLE, fields, labels)
    clips.name, clips.left_out = source.name, {**clips.left_out, **record["left_out"]}
    clips.rejected += [Rejected(name, "unreadable", message) for name, message in record["rejected"]]
    return clips


def _is_archive(path: Path) -> bool:
    return path.name.lower().endswith((".tar", ".tar.gz", ".tgz"))


def _unpacked(source: Path, archives: Sequence[Path], unpack: Path, encoding: str | None) -> dict[str, Any]:
    """Videos and table in `unpack`, and the record of what was met; an earlier one's of the same archives."""
    described = [[str(p.relative_to(source)), p.stat().st_size, p.stat().st_mtime_ns] for p in archives]
    identity = {"archives": described, "encoding": encoding}
    if (unpack / _RECORD).is_file():
        found: dict[str, Any] = json.loads((unpack / _RECORD).read_bytes())
        if found.get("identity") == json.loads(json.dumps(identity)) and (unpack / _TABLE).is_file():
            return found
        raise ValueError(f"--unpack {unpack} holds what was unpacked of other archives; name another folder")
    unpack.mkdir(parents=True, exist_ok=True)
    if any(
        not path.name.isdigit() for path in unpack.iterdir()
    ):  # those of a start that was interrupted are made again
        raise ValueError(f"--unpack {unpack} is not empty; name another folder")
    rows: list[dict[str, Any]] = []
    record: dict[str, Any] = {"identity": identity, "rejected": [], "left_out": {}, "kinds": []}
    kinds: set[str] = set()
    for number, path in enumerate(archives):
        place = unpack / f"{number:06d}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        name = str(path.relative_to(source))
        try:
            found_rows = list(_samples(path, place, name, kinds, record["left_out"], encoding))
        except (ShardError, OSError, EOFError, ValueError) as error:
            shutil.rmtree(place)
            record["rejected"].append([shown(name), str(error)])
            continue
        split = path.parent.name if path.parent != source and path.parent.name.lower() in _SPLITS else None
        rows += [{**row, "split": split} for row in found_rows]
    record |= {"clips": len(rows), "kinds": sorted(kinds)[:8]}
    write_bytes(unpack / _TABLE, "".join(json.dumps(row) + "\n" for row in rows).encode())
    write_bytes(unpack / _RECORD, json.dumps(record).encode())
    return record


def _samples(
    path: Path, place: Path, name: str, kinds: set[str], left_out: dict[str, str], encoding: str | None
) -> Iterator[dict[str, Any]]:
    """Rows of the table of one archive, whose files are in `place` when they come."""
    tar = path
    if not path.name.lower().endswith(".tar"):
        tar = place / "archive.tar"
        with gzip.open(path, "rb") as packed, tar.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    samples: dict[str, dict[str, Member]] = {}
    for member in scan_tar(tar):
        parent, _, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        if not stem:
            continue  # a hidden file
        key = f"{parent}/{stem}" if parent else stem
        if samples.setdefault(key, {}).setdefault(extension.lower(), member) is not member:
            raise ValueError(f"the sample {key!r} has two members .{extension.lower()}")
        kinds.add(extension.lower())
    with tar.open("rb") as file:
        for number, (key, members) in enumerate(samples.items()):
            video = _of_kind(members, VIDEO_SUFFIXES)
            if video is None:
                left_out[f"{shown(name)}: {shown(key)}"] = "no video in the sample"
                continue
            row: dict[str, Any] = {"key": key.replace("/", "_")}
            for what, found in (("path", video), ("audio", _of_kind(members, _SOUNDS))):
                if found is not None:
                    target = place / f"{number:06d}{PurePosixPath(found.name).suffix.lower()}"
                    _copy(file, found, target)
                    row[what] = f"{place.name}/{target.name}"
            if "txt" in members:
                row["text"], _ = names.decode_text(_read(file, members["txt"]), encoding)
            if "json" in members:
                row |= _flat(json.loads(names.decode_text(_read(file, members["json"]))[0]))
            yield row
    if tar != path:
        tar.unlink()


def _of_kind(members: Mapping[str, Member], suffixes: frozenset[str]) -> Member | None:
    return next((m for extension, m in members.items() if f".{extension.rpartition('.')[2]}" in suffixes), None)


def _read(file: BinaryIO, member: Member) -> bytes:
    if member.size > _LONGEST_TEXT:
        raise ValueError(f"{member.name} has {member.size} bytes, expected at most {_LONGEST_TEXT}")
    file.seek(member.offset)
    return file.read(member.size)


def _copy(file: BinaryIO, member: Member, target: Path) -> None:
    file.seek(member.offset)
    left = member.size
    with target.open("wb") as out:
        while left:
            part = file.read(min(left, 1 << 20))
            out.write(part)
            left -= len(part)


def _flat(value: Any, name: str = "json") -> dict[str, Any]:
    """Text and numbers of a JSON document by their place, such as `json.labels.mood`."""
    if isinstance(value, dict):
        return {key: part for inner, item in value.items() for key, part in _flat(item, f"{name}.{inner}").items()}
    return {name: value} if isinstance(value, str | int | float) else {}
