"""Damaged videos through build and extraction, in blocks: a folder of files is one data set, as a user would have it.

In every block lie undamaged files too. Whatever became of their neighbours, their features must be, bit for bit, those
that they have alone; and every damaged one must be in the feature shards or, by name and with a reason, in quarantine.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from ray_jobs.extraction.clip_features import ALL_REASONS
from shards.adapters import read_clips
from shards.clips.build import build_shard
from shards.clips.plan import BuildOptions, BuildPlan
from shards.clips.reader import ClipManifest, ClipReader
from shards.clips.summary import finish
from shards.format.manifest import Manifest
from shards.media.limits import REASONS, Limits
from shards.reading.reader import Reader
from tests.campaigns.clip_fuzz.damage import EVERY_KIND, STORED, generator, variant
from tests.ray_jobs.extraction.extraction_loop import make_plan, run_loop

CONTROLS = 3  # undamaged files of each block
TIMEOUT = 60.0  # seconds for one clip
MADE, BUILD, EXTRACTION, CONTAINED, DEFECT = "features", "build", "extraction", "child ended", "defect"

# Builds clip shards and extracts features: (source, clips, features, what to do in between) -> nothing.
Jobs = Callable[[Path, Path, Path, Callable[[], None]], None]


class DefectError(AssertionError):
    """What must not happen: a crash, a clip that is lost or told of twice, an undamaged one that changed."""


@dataclass(frozen=True)
class Result:
    """What became of one case. outcome: features, build or extraction (quarantined there, with the reason), child ended
    (the process that prepared it was ended, or died: quarantined too), or defect."""

    seed: int
    case: int
    kind: str
    clip: str
    outcome: str
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def one_process(
    videos: Path,
    clips: Path,
    features: Path,
    between: Callable[[], None],
    isolated: bool = False,
    encoders: tuple[str, ...] = ("random-image", "random-audio"),
) -> None:
    """Both jobs without Ray; isolated: clips are prepared in a child process, as in the job."""
    plan = BuildPlan.make(read_clips("folder", videos), clips, BuildOptions(clips_per_shard=64, timeout=TIMEOUT))
    plan.acquire()
    finish(plan, [build_shard(task, isolated=isolated) for task in plan.tasks])
    between()
    run_loop(make_plan(ClipManifest.open(clips), features, encoders))


def shortened(path: Path, target: Path, seconds: float = 1.0) -> Path:
    """The packets of the first second or so in a file of the same format: what a decoder meets is the source's own."""
    with av.open(str(path)) as source, av.open(str(target), "w", format=_muxer(path)) as out:
        streams = {s.index: out.add_stream_from_template(s) for s in (*source.streams.video, *source.streams.audio)}
        starts = {index: Fraction(source.streams[index].start_time or 0) for index in streams}
        for packet in source.demux(*(source.streams[index] for index in streams)):
            if packet.dts is None or packet.pts is None or not packet.size:
                continue
            index = packet.stream.index
            if float((packet.pts - starts[index]) * packet.time_base) >= seconds:
                continue
            packet.stream = streams[index]
            out.mux(packet)
    return target


def _muxer(path: Path) -> str:
    return {".mpg": "mpeg", ".mp4": "mp4"}[path.suffix]


def name_of(case: int, source: Path) -> str:
    return f"case{case:05d}{source.suffix}"


def run_block(
    seed: int, cases: Sequence[int], sources: Sequence[Path], folder: Path, jobs: Jobs, alone: Mapping[str, bytes]
) -> list[Result]:
    """Build and extract a folder of the cases' files and of controls; DefectError for what must not happen.

    alone: features of each undamaged source (`features_of` a folder that holds nothing else).
    """
    shutil.rmtree(folder, ignore_errors=True)
    videos, clips, features = (folder / name for name in ("videos", "clips", "features"))
    videos.mkdir(parents=True)
    chosen = {case: sources[int(generator(seed, case).integers(len(sources)))] for case in cases}
    for case, source in chosen.items():
        (videos / name_of(case, source)).write_bytes(variant(seed, case, source.read_bytes()))
    controls = {f"control{i}_{source.name}": source for i, source in enumerate(sources[:CONTROLS])}
    for name, source in controls.items():
        shutil.copyfile(source, videos / name)
    later = {name_of(case, chosen[case]) for case in cases if EVERY_KIND[case % len(EVERY_KIND)] == STORED}
    jobs(videos, clips, features, lambda: damage_stored(clips, later, seed))
    names = {name_of(case, source) for case, source in chosen.items()}
    fates = account(clips, features, names | set(controls))
    made = features_of(features)
    for name, source in controls.items():
        if fates[name][0] != MADE or made[name] != alone[source.name]:
            raise DefectError(f"the undamaged {name} became {fates[name]}, or its features differ")
    for name in later:
        if fates[name] != (EXTRACTION, "stored_damaged"):
            raise DefectError(f"{name} was damaged in its shard, and became {fates[name]}")
    results = []
    for case, source in chosen.items():
        outcome, reason = fates[name_of(case, source)]
        outcome = CONTAINED if reason in ("timeout", "crashed") else outcome
        results.append(Result(seed, case, EVERY_KIND[case % len(EVERY_KIND)], source.name, outcome, reason))
    return results


def damage_stored(clips: Path, names: Iterable[str], seed: int) -> None:
    """Flip a bit in one member of each of the named clips."""
    wanted = set(names)
    reader = ClipReader(ClipManifest.open(clips))
    rng = np.random.default_rng(seed)
    for shard in range(len(reader.manifest)):
        members = reader.index(shard).members
        assert members is not None
        path = clips / f"{reader.manifest.entry(shard).name}.tar"
        data = bytearray(path.read_bytes())
        for row, source in enumerate(reader.table(shard)["meta.source"].to_pylist()):
            if source in wanted:
                offset, size = rng.choice([m for m in members[row].tolist() if m[0] >= 0])
                data[int(offset + rng.integers(size))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)


def account(clips: Path, features: Path, names: set[str]) -> dict[str, tuple[str, str]]:
    """Name of each file -> (features, build or extraction; reason). DefectError unless each has exactly one fate."""
    fates: list[tuple[str, str, str]] = []
    for folder, outcome, reasons in ((clips, BUILD, REASONS), (features, EXTRACTION, ALL_REASONS)):
        for line in (folder / "quarantine.jsonl").read_text().splitlines():
            entry = json.loads(line)
            if entry["reason"] not in reasons or not entry["message"]:
                raise DefectError(f"quarantined without a known reason and a message: {entry}")
            fates.append((entry["source"], outcome, entry["reason"]))
    fates += [(name, MADE, "") for name in features_of(features)]
    told = Counter(name for name, _, _ in fates)
    if told != Counter(names):
        raise DefectError(f"lost: {sorted(names - set(told))}; twice or unknown: {sorted(told - Counter(names))}")
    for folder, total in ((clips, "found"), (features, "clips")):
        summary = json.loads((folder / "summary.json").read_text())
        if summary[total] != summary["written"] + sum(summary["quarantined"].values()):
            raise DefectError(f"{folder.name}: counts do not add up: {summary}")
    _check_stored(clips)
    return {name: (outcome, reason) for name, outcome, reason in fates}


def _check_stored(clips: Path) -> None:
    """What was written into clip shards keeps the limits, as far as its own description tells."""
    limits = Limits()
    reader = ClipReader(ClipManifest.open(clips))
    for shard in range(len(reader.manifest)):
        for row in range(reader.manifest.entry(shard).count):
            try:
                video = reader.read(shard, row).info["video"]
            except ValueError:
                continue  # damaged on purpose
            share = video["damaged"] / (video["pictures"] + video["damaged"])
            if not video["pictures"] or share > limits.max_damaged_share or video["seconds"] > limits.max_seconds:
                raise DefectError(f"stored beyond the limits: {video}")


def features_of(folder: Path) -> dict[str, bytes]:
    """Source file of each row -> bytes of all its features; DefectError for a number that is not finite."""
    found: dict[str, bytes] = {}
    if not (folder / "manifest.parquet").is_file():
        return found
    reader = Reader(Manifest.open(folder))
    for shard in range(len(reader.manifest)):
        rows = reader.read(shard, 0, int(reader.manifest.counts[shard]))
        for i, source in enumerate(reader.metadata(shard)["meta.source"].to_pylist()):
            values = [x[i] for m, x in sorted(rows.features.items()) if rows.present[m][i]]
            if not all(np.isfinite(x).all() for x in values):
                raise DefectError(f"features of {source} are not finite")
            found[source] = b"".join(x.tobytes() for x in values)
    return found
