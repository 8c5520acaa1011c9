"""What became of a damaged data set: read exactly, refused or quarantined by name. Anything else is a defect."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np

from shards.errors import CorruptionError, ManifestError, ShardError
from shards.format.manifest import Manifest
from shards.planning.view import View
from shards.reading.reader import Reader
from shards.reading.rows import Rows
from shards.verification.check import verify
from shards.verification.repair import repair
from tests.campaigns.shard_fuzz.targets import VIEW, Target, Values

EXACT, REFUSED, QUARANTINED, LIE = "exact", "refused", "quarantined", "told by verify"


class DefectError(AssertionError):
    """A broken promise: a wrong value, a fault without its name, silence where something is missing."""


@dataclass
class Reading:
    """Names met while everything was read. exact: keys of rows equal to the originals; refused: shards (or the files
    of manifest and view) that were refused; quarantined: keys of rows left out, by shard; lies: shards that were read
    as tables say which were sealed after they were made to lie, and what differs: `verify` must tell."""

    exact: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    quarantined: dict[str, set[str]] = field(default_factory=dict)
    lies: dict[str, str] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        return REFUSED if self.refused else QUARANTINED if self.quarantined else LIE if self.lies else EXACT


def check(condition: bool, message: str) -> None:
    if not condition:
        raise DefectError(message)


@contextlib.contextmanager
def bounded(seconds: float, memory: int) -> Iterator[None]:
    """Ends the block with TimeoutError after so many seconds, and with MemoryError beyond so many more bytes."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"takes longer than {seconds:g} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + memory, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def same_as_made(rows: Rows, i: int, values: Values) -> bool:
    """Whether row i is exactly the sample as it was made: features bit for bit, presence, labels, group."""
    for modality, expected in values.features.items():
        found = rows.features[modality][i]
        if bool(rows.present[modality][i]) != (expected is not None):
            return False
        if found.tobytes() != (np.zeros_like(found) if expected is None else expected).tobytes():
            return False
    assert rows.group is not None
    return int(rows.group[i]) == values.group and all(
        np.array_equal(rows.labels[name][i], expected, equal_nan=True) for name, expected in values.labels.items()
    )


def _difference(rows: Rows, i: int, key: str, target: Target) -> str | None:
    if key not in target.values:
        return f"key {key!r} was never written"
    return None if same_as_made(rows, i, target.values[key]) else f"WRONG VALUE: {key}"


def _left_out(rows: Rows, i: int) -> bool:
    """Whether nothing of row i could be taken for a value."""
    return (
        not any(present[i] for present in rows.present.values())
        and not any(x[i].any() for x in rows.features.values())
        and all(np.all((x[i] == -1) | np.isnan(x[i].astype(float))) for x in rows.labels.values())
        and (rows.group is None or rows.group[i] == -1)
    )


def read_everything(folder: Path, target: Target, sealed: bool = False, view_of_rows: bool = True) -> Reading:
    """Open and read every row of every shard, whole and through the view, and compare it with what was made.

    sealed: note a difference as a lie. view_of_rows: rows still have the numbers that the view was made by.
    """
    reading = Reading()
    try:
        manifest = Manifest.open(folder)
    except (ManifestError, FileNotFoundError) as error:
        check("manifest.parquet" in str(error), f"does not name the manifest: {error}")
        reading.refused["manifest.parquet"] = str(error)
        return reading
    selections: list[View | None] = [None]
    try:
        selections.append(View.open(manifest, VIEW))
    except ShardError as error:
        check(VIEW in error.shard and bool(error.remedy), f"does not name the view and a remedy: {error}")
        reading.refused[f"views/{VIEW}.parquet"] = str(error)
    numbers = {key: i for i, key in enumerate(target.values)}
    for view in selections:
        reader = Reader(manifest, view, max_corrupt_share=1.0)
        named: set[str] = set()
        for shard, name in enumerate(manifest.shards["name"].to_pylist()):
            try:
                rows = reader.read(shard, 0, int(reader.counts[shard]))
                keys = reader.metadata(shard)["key"].to_pylist()
            except ShardError as error:
                check(error.shard == name and name in str(error), f"names {error.shard!r} for {name!r}")
                reading.refused[name] = str(error)
                continue
            places = list(range(len(keys))) if view is None else view.indices(shard).tolist()
            if len(rows) != len(places):  # the manifest counts fewer samples than the index has
                check(sealed, f"{name}: {len(rows)} rows were read of {len(places)}")
                reading.lies[name] = f"{len(rows)} rows were read of {len(places)}"
                continue
            bad = {damage.key for damage in reader.corrupt if damage.shard == name}
            named |= bad
            for i, place in enumerate(places):
                key = keys[place]
                if key in bad:
                    check(_left_out(rows, i), f"{name}, {key}: quarantined, but a value is left in its row")
                    reading.quarantined.setdefault(name, set()).add(key)
                    continue
                difference = _difference(rows, i, key, target)
                if view is not None and view_of_rows and difference is None and numbers[key] % 3 == 1:
                    difference = f"the view selects {key}, which is not in it"
                check(sealed or difference is None, f"{name}: {difference}")
                if difference is not None:
                    reading.lies[name] = difference
                else:
                    reading.exact.add(key)
            if bad:
                _check_strict(manifest, view, shard, name, bad)
        if view is None:
            lost = set(target.values) - reading.exact - named
            lost -= {key for name in reading.refused for key in target.keys.get(name, ())}
            left = set(manifest.shards["name"].to_pylist())
            lost -= {key for name, own in target.keys.items() if name not in left for key in own}
            check(sealed or not lost, f"samples lost in silence: {sorted(lost)}")
            for name, own in target.keys.items():
                if lost & set(own):
                    reading.lies.setdefault(name, f"samples lost: {sorted(lost & set(own))}")
    return reading


def _check_strict(manifest: Manifest, view: View | None, shard: int, name: str, bad: set[str]) -> None:
    """A reader that bears no damage stops at it, with shard and sample."""
    strict = Reader(manifest, view, max_corrupt_share=0.0)
    try:
        strict.read(shard, 0, int(strict.counts[shard]))
    except CorruptionError as error:
        check(error.shard == name and error.sample in bad, f"names {error.shard!r}, {error.sample!r} for {name}, {bad}")
    else:
        raise DefectError(f"{name}: damage {bad} was borne by a reader that bears none")


def judge(folder: Path, target: Target, touched: set[str], sealed: bool = False, view_of_rows: bool = True) -> str:
    """The outcome of a damaged data set, after reading and `verify`. touched: names of the shards that the damage can
    concern; all others must be read exactly unless manifest or view is refused. Raises DefectError for a broken
    promise, and lets through what reading or `verify` raise beyond their own errors."""
    reading = read_everything(folder, target, sealed, view_of_rows)
    if "manifest.parquet" not in reading.refused:
        for shard in set(target.shards) - touched:
            check(shard not in reading.refused, f"{shard}, which is whole, is refused: {reading.refused.get(shard)}")
            check(set(target.keys[shard]) <= reading.exact, f"{shard} is whole, but not all of it was read")
    try:
        problems = verify(folder)
    except FileNotFoundError as error:
        check("manifest.parquet" in reading.refused, f"verify finds no manifest: {error}")
        return reading.outcome
    check(all(problem.reason and problem.remedy for problem in problems), "a problem without reason or remedy")
    named = {(Path(problem.shard).name, problem.sample) for problem in problems}
    for name in [*reading.refused, *reading.lies]:
        check(any(name in problem.shard for problem in problems), f"verify does not name {name}: {named}, {reading}")
    for name, keys in reading.quarantined.items():
        missing = {key for key in keys if (name, key) not in named} if name not in reading.refused else set()
        # One problem of the whole archive stands for its samples.
        check(not missing or (name, None) in named, f"verify does not name {name}, {missing}: {named}")
    return reading.outcome


def judge_repair(folder: Path, target: Target) -> str:
    """After `repair`: a manifest of whole shards that is read exactly and verified, or a refusal that says why."""
    try:
        outcome = repair(folder)
    except ShardError as error:
        raise DefectError(f"repair ends with a fault of one shard: {error}") from error
    except ValueError as error:
        check("whole" in str(error) or "columns" in str(error), f"does not say why: {error}")
        return "nothing whole"
    (folder / "views" / f"{VIEW}.parquet").unlink(missing_ok=True)  # it may be stale now, and says so
    View.where(outcome.manifest, np.ones(outcome.manifest.rows, bool), "unused").save()
    check(all(name in reason for name, reason in outcome.left_out), f"reasons do not name shards: {outcome.left_out}")
    reader = Reader(outcome.manifest, max_corrupt_share=0.0)
    for shard, name in enumerate(outcome.manifest.shards["name"].to_pylist()):
        rows = reader.read(shard, 0, int(reader.counts[shard]))
        for i, key in enumerate(reader.metadata(shard)["key"].to_pylist()):
            check(same_as_made(rows, i, target.values[key]), f"WRONG VALUE after repair: {name}, {key}")
    problems = verify(folder)
    check(not problems, f"verify after repair: {problems}")
    kept = len(outcome.manifest)
    return "all kept" if kept == len(target.shards) else f"{kept} of {len(target.shards)} kept"
