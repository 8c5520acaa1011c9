"""Speed and memory of build and extraction beside the obvious loop: `python -m benchmarks.clip_jobs CLIPS`.

CLIPS is a folder of videos, taken several times over. The loop is one process that prepares one clip after the other,
then decodes and encodes one after the other, and writes the same shards; the jobs are those of `ray_jobs.build_shards`
and `ray_jobs.extract_features` on a local Ray. Both features are compared, so that both have done the same work. Each
way has processes of its own; the start of Ray is reported apart. CPU seconds and memory are of the whole process tree,
the memory as proportional set size: what processes share, such as Ray's object store, counts once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from conclugen.common.options import Command, save
from conclugen.fields import choose
from ray_jobs import building, ray_cluster
from ray_jobs.extraction.clip_features import Decoded, unique
from ray_jobs.extraction.extract import choices_of, extract, resources_of
from ray_jobs.extraction.plan import Extraction
from ray_jobs.options.extract import EncoderOptions
from shards.adapters import read_clips
from shards.clips.build import build_shard
from shards.clips.plan import BuildOptions, BuildPlan
from shards.clips.reader import META, ClipManifest, ClipReader
from shards.clips.summary import finish
from shards.format.manifest import Manifest
from shards.format.schema import Sample
from shards.format.writer import write_shard
from shards.reading.reader import Reader

WAYS = ("loop", "jobs")
STAGES = ("build", "extract")
_LOOK_EVERY = 0.25  # seconds between looks at the process tree
_SAME = 1e-4  # relative difference of features that another order of sums may make


class Meter:
    """`with Meter() as used: ...`; then `used.seconds`, `used.cpu_seconds` and `used.peak_bytes` of this process and
    all that descend from it. A process that lives for less than a quarter of a second may be missed."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self.peak_bytes = 0
        self._cpu: dict[int, float] = {}
        self._before: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="meter", daemon=True)

    def __enter__(self) -> Meter:
        self._look()
        self._before = dict(self._cpu)
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began
        self._stop.set()
        self._thread.join()
        self._look()
        self.cpu_seconds = sum(used - self._before.get(pid, 0.0) for pid, used in self._cpu.items())

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_EVERY):
            self._look()

    def _look(self) -> None:
        own = psutil.Process()
        total = 0
        for process in (own, *own.children(recursive=True)):
            try:
                times = process.cpu_times()
                total += proportional_bytes(process.pid)
            except (psutil.Error, OSError):
                continue
            self._cpu[process.pid] = times.user + times.system
        self.peak_bytes = max(self.peak_bytes, total)

    def to_dict(self, clips: int) -> dict[str, float]:
        return {
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "clips_per_second": clips / self.seconds,
            "clips_per_second_and_core": clips / self.seconds / (os.cpu_count() or 1),
            "clips_per_cpu_second": clips / self.cpu_seconds,
            "peak_mib": self.peak_bytes / 2**20,
        }


@dataclass(frozen=True, kw_only=True)
class ClipJobs(EncoderOptions):
    """Speed and memory of build and extraction beside the obvious loop.

    Attributes:
        videos: Folder of videos.
        repeat: How often each video is taken.
        ways: Which are measured.
        encoders: Encoders, or sets of them.
        text: What every clip says, for encoders of text; none: nothing.
        json: File for the figures; none: they are only printed.
        measure: One way and its folder, in a process of its own: how the benchmark calls itself.
    """

    videos: Path
    repeat: int = 4
    ways: tuple[str, ...] = WAYS
    encoders: tuple[str, ...] = ("offline",)
    text: str | None = None
    json: Path | None = None
    measure: tuple[str, str] | None = None


def proportional_bytes(pid: int) -> int:
    """Proportional set size of a process (Linux); where the system has none, its resident set."""
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    if not rollup.exists():
        resident: int = psutil.Process(pid).memory_info().rss
        return resident
    line = next(line for line in rollup.read_text().splitlines() if line.startswith("Pss:"))
    return 1024 * int(line.split()[1])


def repeated(videos: Path, folder: Path, times: int) -> int:
    """Links to every video of a folder, `times` over, under names of their own; how many."""
    folder.mkdir(parents=True)
    paths = [videos / clip.video for clip in read_clips("folder", videos).clips]
    for number in range(times):
        for path in paths:
            (folder / f"{number:03d}_{path.name}").symlink_to(path.absolute())
    return len(paths) * times


def plan_build(videos: Path, out: Path, text: str | None = None) -> BuildPlan:
    clips = read_clips("folder", videos)
    clips.clips = [replace(clip, transcript=text) for clip in clips.clips]
    plan = BuildPlan.make(clips, out, BuildOptions())
    plan.acquire()
    return plan


def loop_build(plan: BuildPlan) -> None:
    """One clip after the other, in this process."""
    finish(plan, [build_shard(task, isolated=False) for task in plan.tasks])


def loop_extract(plan: Extraction) -> None:
    """One clip after the other through one encoder after the other, in this process."""
    encoders = [choice.create("cpu") for choice in plan.choices]
    takes = unique([encoder.info.takes for encoder in encoders])
    reader = ClipReader(plan.clips)
    for shard in range(len(plan.clips)):
        table = reader.table(shard)
        samples = []
        for row, clip in enumerate(reader.clips(shard)):
            inputs = Decoded.of(clip, takes, plan.decoding, plan.clips.limits).inputs()
            values: dict[str, np.ndarray | None] = {}
            for encoder in encoders:
                item = inputs.get(encoder.info.takes.key)
                values[encoder.info.column] = None if item is None else encoder.encode([item])[0]
            meta = {name: table[f"meta.{name}"][row].as_py() for name in META}
            samples.append(Sample(clip.key, values, {}, None, clip.text, meta=meta))
        write_shard(plan.out, plan.clips.entry(shard).name, plan.schema, samples)
    Manifest.assemble(plan.out, [plan.clips.entry(shard).name for shard in range(len(plan.clips))], plan.info)


def plan_extraction(job: ClipJobs, folder: Path) -> Extraction:
    choices = choices_of(job.encoders, job)
    plan = Extraction.make(ClipManifest.open(folder / "clips"), folder / "features", choices)
    plan.acquire()
    return plan


def measure(way: str, job: ClipJobs, folder: Path) -> dict[str, Any]:
    """Build and extract in one of the `WAYS`; figures of each stage. folder: holds `videos`."""
    build = plan_build(folder / "videos", folder / "clips", job.text)
    figures: dict[str, Any] = {}
    if way == "loop":
        with Meter() as used:
            loop_build(build)
        figures["build"] = used.to_dict(build.found)
        extraction = plan_extraction(job, folder)
        with Meter() as used:
            loop_extract(extraction)
        figures["extract"] = used.to_dict(build.found)
        return figures
    with Meter() as used:
        building.connect()
    figures["ray start"] = {"seconds": used.seconds, "peak_mib": used.peak_bytes / 2**20}
    with Meter() as used:
        building.build(build, quiet=True)
    figures["build"] = used.to_dict(build.found)
    ray.shutdown()
    extraction = plan_extraction(job, folder)
    ray_cluster.connect(len(extraction.choices))
    with Meter() as used:
        extract(extraction, resources_of(job, [choice.name for choice in extraction.choices]), quiet=True)
    figures["extract"] = used.to_dict(build.found)
    return figures


def largest_difference(one: Path, other: Path) -> float:
    """Of all features of two folders, relative to the largest value of their modality. ValueError where they do not
    hold the same clips and modalities."""
    first, second = (dict(_rows(folder)) for folder in (one, other))
    if not first or first.keys() != second.keys():
        raise ValueError(f"{one} and {other} do not hold the same clips")
    largest = 0.0
    for key, values in first.items():
        if values.keys() != second[key].keys():
            raise ValueError(f"{key}: {sorted(values)} and {sorted(second[key])}")
        for modality, x in values.items():
            scale = max(float(np.abs(x).max()), 1e-12)
            largest = max(largest, float(np.abs(x - second[key][modality]).max()) / scale)
    return largest


def _rows(folder: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    reader = Reader(Manifest.open(folder))
    for shard in range(len(reader.manifest)):
        rows = reader.read(shard, 0, int(reader.manifest.counts[shard]))
        for i, key in enumerate(reader.metadata(shard)["key"].to_pylist()):
            yield key, {m: x[i].copy() for m, x in rows.features.items() if rows.present[m][i]}


def table(figures: dict[str, dict[str, Any]]) -> str:
    """For people and documents."""
    heads = ["stage", "way", "seconds", "clips/s", "clips/s a core", "CPU seconds", "clips a CPU second"]
    heads.append("peak memory, MiB")
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for stage in STAGES:
        for way, own in figures.items():
            x = own[stage]
            cells = [f"{x['seconds']:.1f}", f"{x['clips_per_second']:.2f}", f"{x['clips_per_second_and_core']:.2f}"]
            cells += [f"{x['cpu_seconds']:.1f}", f"{x['clips_per_cpu_second']:.2f}", f"{x['peak_mib']:,.0f}"]
            lines.append(f"| {stage} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cb", ignore_cleanup_errors=True) as name:  # socket paths must be short
        yield Path(name)


def run(job: ClipJobs) -> int:
    """Print the table; returns the exit status: 0, 1 where the two ways' features differ."""
    if job.measure is not None:
        way, folder = job.measure
        (Path(folder) / "figures.json").write_text(json.dumps(measure(way, job, Path(folder))))
        return 0
    for way in job.ways:
        choose("ways", way, WAYS)
    choices_of(job.encoders, job)
    with _folder() as root:
        return _compare(job, root, repeated(job.videos, root / "videos", job.repeat))


def _compare(job: ClipJobs, root: Path, count: int) -> int:
    figures: dict[str, dict[str, Any]] = {}
    for way in job.ways:
        folder = root / way
        folder.mkdir()
        (folder / "videos").symlink_to(root / "videos")
        environment = {**os.environ, "RAY_TMPDIR": str(root / "ray")}
        environment.pop("RAY_ADDRESS", None)
        save(replace(job, measure=(way, str(folder))), folder / "job.json")
        command = [sys.executable, "-m", "benchmarks.clip_jobs", "--config", str(folder / "job.json")]
        command += [word for module in job.plugin for word in ("--plugin", module)]
        subprocess.run(command, env=environment, check=True)  # noqa: S603 - this interpreter, this module
        figures[way] = json.loads((folder / "figures.json").read_text())
    print(f"{count} clips, {os.cpu_count()} cores, encoders {' '.join(job.encoders)}\n\n{table(figures)}\n")
    if "jobs" in figures:
        start = figures["jobs"]["ray start"]
        print(f"Ray itself: {start['seconds']:.1f} s to start, {start['peak_mib']:,.0f} MiB before any work.")
    different = False
    if len(figures) == len(WAYS):
        difference = largest_difference(root / "loop/features", root / "jobs/features")
        different = difference > _SAME
        print(f"Largest relative difference of features between the two: {difference:.1e}.")
    if job.json is not None:
        job.json.write_text(json.dumps({"clips": count, "encoders": job.encoders, "figures": figures}, indent=1))
    return int(different)


COMMAND = Command("benchmarks.clip_jobs", ClipJobs, run, bare="videos")
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
