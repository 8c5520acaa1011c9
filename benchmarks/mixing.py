"""What mixing corpora costs and keeps: the mixed plan beside a plain one, and beside other ways to mix.

Corpora of random features are written, then read in turns, so that a change of the machine's load meets all of them:

  plain        one folder with the rows of all corpora, by `EpochPlan`
  mixed        the corpora by `MixedPlan`
  webdataset   `webdataset.RandomMix` of the same shards
  ray          `ray.data.Dataset.mix` of the same rows (with --ray, where the installed version has it)

Of each the seconds a sample, by the clock and of this process's CPU time (Ray reads in processes of its own), by how
many rows the worst window of 1, 4 and 16 batches misses its share, and whether a reader that is made again after some
batches continues with the rows that it would have read. Ratios are medians of those within a turn. Other ways mix whole
archives, or out of a few that are open: --archive-mb says how large archives are.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np

from benchmarks import command_line
from conclugen.common.atomic import write_json
from shards import Column, Cursor, EpochPlan, Manifest, Reader, Sample, Schema, ShardWriter
from shards.planning.mixed_plan import MixedPlan
from shards.planning.shares import whole_weights
from shards.reading.mixed_reader import MixedReader
from shards.reading.stream import stream

WIDTH = 2048  # float32: 8 KiB a sample
WINDOWS = (1, 4, 16)

Batches = Iterator[np.ndarray]  # (rows,) int64 for each batch: the number of every sample, which names its corpus


def write(folder: Path, first: int, rows: int, seed: int, archive_bytes: int = 64 << 20) -> Manifest:
    """Samples first, first + 1, ..., whose first feature is their number."""
    rng = np.random.default_rng(seed)
    with ShardWriter(folder, Schema((Column("video", WIDTH),)), max_shard_bytes=archive_bytes) as writer:
        for row in range(first, first + rows):
            values = rng.standard_normal(WIDTH, np.float32)
            values[0] = row
            writer.append(Sample(f"k{row}", {"video": values}))
    assert writer.manifest is not None
    return writer.manifest


def plain(whole: Manifest, batch: int, start: int, steps: int) -> Batches:
    plan = EpochPlan(whole.counts, 0, batch, remainder="carry")
    for step in stream(Reader(whole), plan, 0, 1, plan.cursor_at(start), steps):
        yield step.features["video"][:, 0].astype(np.int64)


def mixed(manifests: Mapping[str, Manifest], weights: Sequence[int], batch: int, start: int, steps: int) -> Batches:
    names = sorted(manifests)
    plan = MixedPlan({n: manifests[n].counts for n in names}, dict(zip(names, weights, strict=True)), 0, batch)
    reader = MixedReader({n: Reader(manifests[n]) for n in names})
    for step in stream(reader, plan, 0, 1, plan.advance(Cursor(), start), steps):
        yield step.features["video"][:, 0].astype(np.int64)


def webdataset_mix(manifests: Mapping[str, Manifest], weights: Sequence[int], batch: int, steps: int) -> Batches:
    """Shards in random order, a shuffle buffer, and a corpus drawn for every sample: as its documentation shows."""
    import webdataset

    parts = []
    for name in sorted(manifests):
        tars = [manifests[name].path(f"{shard}.tar") for shard in manifests[name].shards["name"].to_pylist()]
        part = webdataset.WebDataset(tars, shardshuffle=len(tars), resampled=False).repeat().shuffle(1000).decode()
        parts.append(part.to_tuple("video.npy"))
    samples = iter(webdataset.RandomMix(parts, probs=list(weights)))
    for _ in range(steps):
        rows = np.stack([features for (features,) in itertools.islice(samples, batch)])
        yield rows[:, 0].astype(np.int64)


def ray_mix(manifests: Mapping[str, Manifest], weights: Sequence[int], batch: int, steps: int) -> Batches:
    """`Dataset.mix` by weights of each corpus's shards, read by Ray's own reader of WebDataset."""
    import ray.data

    parts = []
    for name in sorted(manifests):
        tars = [manifests[name].path(f"{shard}.tar") for shard in manifests[name].shards["name"].to_pylist()]
        parts.append(ray.data.read_webdataset(tars, shuffle="files"))
    first, *others = parts
    whole = first.mix(*others, weights=[weight / sum(weights) for weight in weights])
    batches = whole.iter_batches(batch_size=batch, batch_format="numpy")
    for rows in itertools.islice(batches, steps):
        yield np.array([row[0] for row in rows["video.npy"]], np.int64)


def worst(batches: Sequence[np.ndarray], borders: np.ndarray, weights: Sequence[int], length: int) -> float:
    """Rows by which a corpus misses its share at most in any window of `length` batches."""
    counts = np.array([np.bincount(np.searchsorted(borders, b, side="right"), minlength=len(weights)) for b in batches])
    share = np.array(weights) / sum(weights)
    drift = np.concatenate(
        [np.zeros((1, len(weights))), np.cumsum(counts - share * counts.sum(1, keepdims=True), axis=0)]
    )
    return float(np.abs(drift[length:] - drift[:-length]).max())


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float | str]]:
    """Every way's figures by name."""
    sizes, weights = options.rows, whole_weights(options.weights)
    if len(sizes) != len(weights):
        raise ValueError(
            f"--weights: found {len(weights)}, expected one for each of the {len(sizes)} corpora of --rows"
        )
    firsts, archive_bytes = [0, *itertools.accumulate(sizes)], int(options.archive_mb * 1e6)
    manifests = {
        f"c{i}": write(folder / f"c{i}", first, rows, i, archive_bytes)
        for i, (first, rows) in enumerate(zip(firsts, sizes, strict=False))
    }
    whole, borders = write(folder / "whole", 0, sum(sizes), 9, archive_bytes), np.array(firsts[1:-1])
    batch, steps, restart = options.batch, options.steps, options.steps // 2
    ways: dict[str, Callable[[int, int], Batches]] = {
        "plain": lambda start, count: plain(whole, batch, start, count),
        "mixed": lambda start, count: mixed(manifests, weights, batch, start, count),
        # These know no place to begin at: made again, they begin again.
        "webdataset": lambda start, count: webdataset_mix(manifests, weights, batch, count),
    }
    if options.ray:
        ways["ray"] = lambda start, count: ray_mix(manifests, weights, batch, count)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    read: dict[str, list[np.ndarray]] = {}
    for _ in range(options.repeats):
        for name, way in ways.items():
            batches = way(0, steps)
            first = next(batches)  # start-up: indexes, threads, buffers
            begin, used = time.perf_counter(), time.process_time()
            read[name] = [first, *batches]
            samples = batch * max(1, len(read[name]) - 1)
            seconds[name].append((time.perf_counter() - begin) / samples)
            cpu[name].append((time.process_time() - used) / samples)
    found: dict[str, dict[str, float | str]] = {}
    for name, way in ways.items():
        again = list(way(restart, min(4, steps - restart)))
        expected = read[name][restart : restart + len(again)]
        same = len(again) == len(expected) and all(np.array_equal(a, b) for a, b in zip(again, expected, strict=True))
        found[name] = {"us_a_sample": 1e6 * statistics.median(seconds[name])}
        for column, spent in (("beside_plain", seconds), ("cpu_beside", cpu)):
            found[name][column] = statistics.median(a / b for a, b in zip(spent[name], spent["plain"], strict=True))
        if name == "ray":
            del found[name]["cpu_beside"]
        if name != "plain":
            for length in WINDOWS:
                if length < len(read[name]):
                    found[name][f"worst_of_{length}"] = worst(read[name], borders, weights, length)
        found[name]["goes_on"] = "the same rows" if same else "other rows"
    return found


@contextmanager
def local_ray(folder: str) -> Iterator[None]:
    """A Ray of this process, with more logical CPUs than there are cores: its tasks wait for each other otherwise."""
    import ray

    ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _temp_dir=f"{folder}/ray")
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()


def run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="mixing") as folder, local_ray(folder) if options.ray else nullcontext():
        found = measure(options, Path(folder))
    columns = ["us_a_sample", "beside_plain", "cpu_beside", *(f"worst_of_{length}" for length in WINDOWS), "goes_on"]
    print(f"{'':<12}" + "".join(f"{column:>15}" for column in columns))
    for name, values in found.items():
        cells = (values.get(column, "-") for column in columns)
        print(f"{name:<12}" + "".join(f"{c:>15.3g}" if isinstance(c, float) else f"{c:>15}" for c in cells))
    if options.json:
        write_json(options.json, found)
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, nargs="+", default=[4000, 2000, 1000], help="rows of each corpus")
    parser.add_argument("--weights", type=int, nargs="+", default=[3, 2, 5], help="weight of each corpus")
    parser.add_argument("--archive-mb", type=float, default=64.0, help="megabytes of an archive of samples")
    parser.add_argument("--batch", type=int, default=512, help="rows of a batch")
    parser.add_argument("--steps", type=int, default=40, help="batches that are read")
    parser.add_argument("--repeats", type=int, default=5, help="how often each way is timed, in turns")
    parser.add_argument("--ray", action="store_true", help="with Ray Data's own mix, which starts a Ray")
    parser.add_argument("--json", type=Path, help="file for the figures")


def main(arguments: Sequence[str] | None = None) -> int:
    return command_line.main("mixing", __doc__, add_arguments, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
