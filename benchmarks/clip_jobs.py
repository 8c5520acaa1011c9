"""Speed and memory of build and extraction beside the obvious loop: `python -m benchmarks.clip_jobs CLIPS`.

CLIPS is a folder of videos, taken several times over. The loop is one process that prepares one clip after the other,
then decodes and encodes one after the other, and writes the same shards; the jobs are those of `ray_jobs.build_shards`
and `ray_jobs.extract_features` on a local Ray. Both features are compared, so that both have done the same work. Each
way has processes of its own; the start of Ray is reported apart. CPU seconds and memory are of the whole process tree,
the memory as proportional set size: what processes share, such as Ray's object store, counts once.

--beside COMMIT puts an older state of the project there, out of this repository, by its own copy of this benchmark;
with --rounds N whole runs of both take turns, and the table has medians with the lowest and highest.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from benchmarks.beside import HERE, older
from conclugen.common.options import Command, save
from conclugen.fields import choose
from ray_jobs import building
from ray_jobs.extraction.clip_features import Decoded, unique
from ray_jobs.extraction.extract import choices_of, connect, extract, resources_of
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
# Where the benchmark has been, the newest place first: the older one takes lists as separate words.
_MODULES = {"benchmarks.clip_jobs": ",", "ray_jobs.extraction.bench": " "}
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
        beside: Commit of this repository that is measured as well.
        rounds: Whole runs of each state, in turns.
        json: File for the figures; none: they are only printed.
        measure: One way and its folder, in a process of its own: how the benchmark calls itself.
    """

    videos: Path
    repeat: int = 4
    ways: tuple[str, ...] = WAYS
    encoders: tuple[str, ...] = ("offline",)
    text: str | None = None
    beside: str | None = None
    rounds: int = 1
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
    resources = resources_of(job, [choice.name for choice in extraction.choices])
    connect(resources)
    with Meter() as used:
        extract(extraction, resources, quiet=True)
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


Figures = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Way -> stage -> name of a figure -> its value, of one run."""

_COLUMNS: Mapping[str, tuple[str, str]] = {
    "seconds": ("seconds", ".1f"),
    "clips/s": ("clips_per_second", ".2f"),
    "clips/s a core": ("clips_per_second_and_core", ".2f"),
    "CPU seconds": ("cpu_seconds", ".1f"),
    "clips a CPU second": ("clips_per_cpu_second", ".2f"),
    "peak memory, MiB": ("peak_mib", ",.0f"),
}


def table(runs: Mapping[str, Sequence[Figures]]) -> str:
    """For people and documents: state -> its runs; of several the median with the lowest and highest."""
    lines = [f"| stage | way | {' | '.join(_COLUMNS)} |", "|" + "---|" * (2 + len(_COLUMNS))]
    for stage in STAGES:
        for state, own in runs.items():
            for way in own[0]:
                cells = []
                for figure, form in _COLUMNS.values():
                    values = [run[way][stage][figure] for run in own]
                    spread = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
                    cells.append(f"{statistics.median(values):{form}}{spread}")
                lines.append(f"| {stage} | {way if state == HERE else f'{way}, {state}'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ratios(runs: Mapping[str, Sequence[Figures]], stage: str) -> list[str]:
    """A stage's jobs beside the loop and beside the older state: medians of the ratios within a round."""

    def between(figure: str, way: str, state: str) -> str:
        pairs = zip(runs[HERE], runs[state], strict=True)
        values = [one["jobs"][stage][figure] / other[way][stage][figure] for one, other in pairs]
        spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
        return f"{statistics.median(values):.2f}{spread}"

    lines = []
    for state in runs:
        of = "" if state == HERE else f" of {state}"
        lines.append(
            f"{stage}, jobs beside the loop{of}: {between('clips_per_second', 'loop', state)} of its clips/s, "
            f"{between('cpu_seconds', 'loop', state)} of its CPU seconds."
        )
        if state != HERE:
            lines.append(
                f"{stage}, jobs beside the jobs{of}: {between('peak_mib', 'jobs', state)} of their peak memory."
            )
    return lines


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
    if job.rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {job.rounds}")
    if job.beside is not None and (job.weights or job.mirror or job.plugin):
        raise ValueError("--beside: an older state has options of its own; leave out --weights, --mirror and --plugin")
    choices_of(job.encoders, job)
    with older(job.beside) as tree:
        states: dict[str, Callable[[Path], dict[str, Any]]] = {HERE: lambda root: _measured(job, root)}
        if tree is not None and job.beside is not None:
            states[job.beside] = lambda root: _older(job, tree, root)
        runs: dict[str, list[dict[str, Any]]] = {state: [] for state in states}
        differences = []
        for number in range(job.rounds):
            for state in list(states)[:: -1 if number % 2 else 1]:
                with _folder() as root:
                    count = repeated(job.videos, root / "videos", job.repeat)
                    runs[state].append(states[state](root))
                    if state == HERE and len(job.ways) == len(WAYS):
                        differences.append(largest_difference(root / "loop/features", root / "jobs/features"))
    return _tell(job, count, runs, differences)


def _measured(job: ClipJobs, root: Path) -> dict[str, Any]:
    """This code's figures by way, each measured in a process of its own."""
    figures: dict[str, Any] = {}
    for way in job.ways:
        folder = root / way
        folder.mkdir()
        (folder / "videos").symlink_to(root / "videos")
        save(replace(job, measure=(way, str(folder))), folder / "job.json")
        words = ["benchmarks.clip_jobs", "--config", str(folder / "job.json")]
        words += [word for module in job.plugin for word in ("--plugin", module)]
        _python(words, root)
        figures[way] = json.loads((folder / "figures.json").read_text())
    return figures


def _older(job: ClipJobs, tree: Path, root: Path) -> dict[str, Any]:
    """Figures of another state, of the same folder of videos and by its own benchmark."""
    module = next(name for name in _MODULES if (tree / f"{name.replace('.', '/')}.py").is_file())
    told = root / "older.json"
    words = [module, str(root / "videos"), "--repeat", "1", "--json", str(told)]
    words += [] if job.text is None else ["--text", job.text]
    for option, values in (("--ways", job.ways), ("--encoders", job.encoders)):
        words += [option, *_MODULES[module].join(values).split(" ")]
    _python(words, root, tree)
    figures: dict[str, Any] = json.loads(told.read_text())["figures"]
    return figures


def _python(words: Sequence[str], root: Path, tree: Path | None = None) -> None:
    """A module of the project in a process of its own, on no Ray but its own; tree: of another state's files."""
    environment = {**os.environ, "RAY_TMPDIR": str(root / "ray")}
    environment.pop("RAY_ADDRESS", None)
    if tree is not None:
        environment["PYTHONPATH"] = str(tree)
    subprocess.run([sys.executable, "-m", *words], env=environment, check=True, cwd=tree)  # noqa: S603 - this project


def _tell(job: ClipJobs, count: int, runs: dict[str, list[dict[str, Any]]], differences: list[float]) -> int:
    print(f"{count} clips, {os.cpu_count()} cores, encoders {' '.join(job.encoders)}, {job.rounds} rounds\n")
    print(f"{table(runs)}\n")
    if len(job.ways) == len(WAYS):
        print("\n".join(line for stage in STAGES for line in ratios(runs, stage)))
    if "jobs" in job.ways:
        start = runs[HERE][0]["jobs"]["ray start"]
        print(f"Ray itself: {start['seconds']:.1f} s to start, {start['peak_mib']:,.0f} MiB before any work.")
    if differences:
        print(f"Largest relative difference of features between the two: {max(differences):.1e}.")
    if job.json is not None:
        of_one = {"clips": count, "encoders": job.encoders, "figures": runs[HERE][0]}
        job.json.write_text(json.dumps({**of_one, "runs": runs}, indent=1))
    return int(max(differences, default=0.0) > _SAME)


COMMAND = Command("benchmarks.clip_jobs", ClipJobs, run, bare="videos")
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
