"""Small data sets to be damaged: all their files in memory, the values they were made of, and what lies where."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.format.index import group_id
from shards.format.manifest import Manifest
from shards.format.schema import Sample
from shards.planning.view import View
from shards.webdataset_import.command import index_folder
from shards.webdataset_import.mapping import LabelSource, MemberMapping, Source
from tests.shards import small_data
from tests.shards.webdataset_import.plain_tars import npy

VIEW = "some"
CLASSES = ("calm", "angry", "sad")
MAPPING = MemberMapping(
    columns={"a": "a.npy", "b": "b.npy"},
    modalities={"one": ("a",), "two": ("a", "b")},
    labels=(LabelSource("mood", Source.parse("json#mood"), "class", CLASSES),),
    group=Source.parse("json#speaker"),
    text=Source.parse("txt"),
)


@dataclass(frozen=True)
class Values:
    """One sample as it was made: what a reader must give, as arrays; modalities that are missing are None."""

    features: Mapping[str, np.ndarray | None]
    labels: Mapping[str, np.ndarray]
    group: int


@dataclass(frozen=True)
class Region:
    """Bytes [start, stop) of an archive: header | npy header | payload | other (text members) | padding | trailer."""

    kind: str
    start: int
    stop: int
    key: str | None


@dataclass(frozen=True)
class Target:
    """A whole data set. files: name -> bytes. keys: shard -> keys in order. regions: shard -> what its archive is
    made of, as Python's tarfile sees it. stale: the files of another data set with the same schema, names and counts.
    """

    name: str
    files: dict[str, bytes]
    keys: dict[str, list[str]]
    values: dict[str, Values]
    regions: dict[str, list[Region]]
    stale: dict[str, bytes]

    @property
    def shards(self) -> list[str]:
        return list(self.keys)

    def regions_of(self, shard: str, *kinds: str) -> list[Region]:
        return [region for region in self.regions[shard] if region.kind in kinds and region.stop > region.start]


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _regions(data: bytes) -> list[Region]:
    found, end = [], 0
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            key = info.name.split(".")[0]
            payload, stop = info.offset_data, info.offset_data + info.size
            found.append(Region("header", info.offset, payload, key))
            if info.name.endswith(".npy"):
                found.append(Region("npy header", payload, payload + 128, key))
                found.append(Region("payload", payload + 128, stop, key))
            else:
                found.append(Region("other", payload, stop, key))
            end = -(-stop // 512) * 512
            found.append(Region("padding", stop, end, key))
    return [*found, Region("trailer", end, len(data), None)]


def _save_view(manifest: Manifest) -> None:
    View.where(manifest, np.arange(manifest.rows) % 3 != 1, VIEW, {"by": "number"}).save()


def native_values(sample: Sample) -> Values:
    columns = {name: None if x is None or np.isnan(x).all() else x for name, x in sample.columns.items()}
    two, three, audio = columns["v2d"], columns["v3d"], columns["audio"]
    video = None if two is None or three is None else np.concatenate([two, three]).astype(np.float32)
    mood, valence = sample.labels["mood"], sample.labels["valence"]
    return Values(
        {"video": video, "audio": audio},
        {
            "mood": np.array(-1 if mood is None else CLASSES.index(mood)),
            "valence": np.array(np.nan if valence is None else valence),
            "signs": np.array(sample.labels["signs"]),
        },
        group_id(sample.group),
    )


def native(folder: Path, count: int = 21, seed: int = 0) -> Target:
    """Shards of the project's own writer."""

    def build(name: str, seed: int) -> dict[str, bytes]:
        _save_view(small_data.write(folder / name, small_data.make_samples(count, seed), shard_samples=8))
        return _files(folder / name)

    files = build("native", seed)
    values = {sample.key: native_values(sample) for sample in small_data.make_samples(count, seed)}
    return _target("native", files, values, build("native-stale", seed + 1))


def imported_members(count: int, seed: int, first: int) -> tuple[list[list[tuple[str, bytes]]], dict[str, Values]]:
    """The members of each sample, and their values; every fourth has no member b, every fifth a b full of NaN."""
    rng = np.random.default_rng(seed)
    samples, values = [], {}
    for i in range(first, first + count):
        key = f"k{i}"
        a, b = rng.standard_normal(3).astype(np.float32), rng.standard_normal((1, 4))
        missing = i % 4 == 3
        if i % 5 == 4:
            b[:] = np.nan
        members = [
            (f"{key}.a.npy", npy(a)),
            (f"{key}.json", json.dumps({"mood": CLASSES[i % 3], "speaker": f"p{i % 2}"}).encode()),
        ]
        members += [] if missing else [(f"{key}.b.npy", npy(b))]
        members += [(f"{key}.txt", f"said {i}".encode())]
        samples.append(members)
        both = None if missing or np.isnan(b).any() else np.concatenate([a, b[0]]).astype(np.float64)
        values[key] = Values({"one": a, "two": both}, {"mood": np.array(i % 3)}, group_id(f"p{i % 2}"))
    return samples, values


def archive(members: list[tuple[str, bytes]], kind: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if kind == tarfile.PAX_FORMAT:
                info.pax_headers = {"comment": f"about {name}"}
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def imported(folder: Path, count: int = 7, seed: int = 0) -> Target:
    """Shards as other tools write them: one ustar, one PAX, one GNU."""

    def build(name: str, seed: int) -> tuple[dict[str, bytes], dict[str, Values]]:
        place = folder / name
        place.mkdir(parents=True)
        values: dict[str, Values] = {}
        for number, kind in enumerate((tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
            samples, own = imported_members(count, seed + number, number * count)
            values |= own
            (place / f"t{number}.tar").write_bytes(archive([m for s in samples for m in s], kind))
        _save_view(index_folder(place, MAPPING))
        return _files(place), values

    files, values = build("imported", seed)
    return _target("imported", files, values, build("imported-stale", seed + 10)[0])


def _target(name: str, files: dict[str, bytes], values: dict[str, Values], stale: dict[str, bytes]) -> Target:
    tars = {file.removesuffix(".tar"): data for file, data in files.items() if file.endswith(".tar")}
    regions = {shard: _regions(data) for shard, data in tars.items()}
    keys = {
        shard: list(dict.fromkeys(region.key for region in parts if region.key is not None))
        for shard, parts in regions.items()
    }
    assert [key for own in keys.values() for key in own] == list(values) and len(keys) == 3 and set(files) == set(stale)
    return Target(name, files, keys, values, regions, stale)


def targets(folder: Path) -> list[Target]:
    """One data set of each sort."""
    return [native(folder), imported(folder)]


def generator(seed: int, case: int) -> random.Random:
    """The only source of chance of a case."""
    return random.Random(f"{seed}/{case}")
