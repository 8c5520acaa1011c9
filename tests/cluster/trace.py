"""What training consumed: every step's rows by rank, and the faults that a run is to meet, injected in its workers."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO
from unittest.mock import patch

import numpy as np
import psutil
import ray
import ray.train

from conclugen import Pretrainer, storage
from ray_jobs.checkpoint_store import CheckpointStore
from ray_jobs.training import worker as train_worker
from ray_jobs.training.failures import Heartbeat
from ray_jobs.training.payloads import Payload
from ray_jobs.training.worker import Attempt


@dataclass(frozen=True)
class Plan:
    """What happens in the workers of one run: `action` once on `rank` after `step`.

    kill, raise, invalid, hang, stop (SIGSTOP), end (of the data on that rank): at that step. cut, torn: in the next
    checkpoint's write, which a SIGKILL ends before its rename, or which stands half written in its place. full: no room
    for a checkpoint from that step to `until`. flaky: two of three accesses to checkpoints fail from that step on.
    none: the pace alone. pace_s: seconds that each step takes longer, up to step `until` where it is given. waits: of
    cut and torn: the write stands still until another process's end ends this one. stall_s: of hang: the rank's stall
    limit from then on, so that a test need not wait for the run's, which has to cover the start on a busy machine;
    None: the run's.
    """

    action: str = "none"
    step: int = 0
    rank: int = 0
    until: int = 0
    pace_s: float = 0.0
    waits: bool = False
    stall_s: float | None = None

    def give(self, run: Path) -> None:
        give(run, self)


def give(run: Path, *plans: Plan) -> None:
    """Put plans where the workers of the run look for them, before it starts; it meets them one after the other."""
    run.parent.mkdir(parents=True, exist_ok=True)
    _plans_of(run).write_text(json.dumps([asdict(plan) for plan in plans]))


def inflicted(run: Path, number: int = 0) -> Path:
    """Where the workers note when, and after which step, a plan of the run came true."""
    return run.parent / f"{run.name}.inflicted-{number}.json"


def stacks(run: Path, wait_s: float = 5.0) -> str:
    """Where every thread of each process stands that has worked for the run and lives."""
    asked = []
    for path in sorted((run.parent / f"{run.name}.trace").glob("*.stacks")):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(int(path.stem.rpartition("-")[2]), signal.SIGUSR1)
            asked.append(path)
    time.sleep(wait_s if asked else 0)
    return "\n".join(f"{path.stem}:\n{path.read_text()}" for path in asked)


def _plans_of(run: Path) -> Path:
    return run.parent / f"{run.name}.plan.json"


def train(attempt: Attempt) -> None:
    """In place of `train_worker.train`: the same, with a trace, and with the run's plan."""
    context = ray.train.get_context()
    with ExitStack() as stack:
        Injection(Path(attempt.folder), attempt.name, context.get_world_rank(), context.get_world_size(), stack)
        train_worker.train(attempt)


_stacks: list[TextIO] = []  # open as long as the process lives: a signal handler writes to them


class Injection:
    """Sits in one worker process: wraps the step, the data and the storage."""

    def __init__(self, run: Path, attempt: str, rank: int, world: int, stack: ExitStack):
        plans = json.loads(_plans_of(run).read_text()) if _plans_of(run).is_file() else []
        self.plans = [(Plan(**plan), inflicted(run, number)) for number, plan in enumerate(plans)]
        self.rank, self.at, self.accesses = rank, 0, 0
        folder = run.parent / f"{run.name}.trace"
        folder.mkdir(exist_ok=True)
        self.process = psutil.Process()
        self.header: dict[str, Any] = {"attempt": attempt, "rank": rank, "world": world}
        self.header["node"] = ray.get_runtime_context().get_node_id()
        self.trace = (folder / f"{attempt}-{rank}.jsonl").open("a", buffering=1)
        # Where a test waits in vain, it asks every process where it stands.
        _stacks.append((folder / f"{attempt}-{rank}-{os.getpid()}.stacks").open("a"))
        faulthandler.register(signal.SIGUSR1, _stacks[-1], all_threads=True)
        originals = Pretrainer.step, storage.save_file, CheckpointStore._write, CheckpointStore.load, Payload.stream
        step, save_file, write, load, stream = originals
        make_heartbeat = train_worker.Heartbeat

        def stepped(pretrainer: Pretrainer, batch: Any) -> Any:
            values = step(pretrainer, batch)
            present = np.logical_or.reduce([np.asarray(x) for x in batch.present.values()])
            row = np.asarray(batch.row)
            self.after_step(pretrainer.step_number, row.tolist(), row[~present].tolist())
            return values

        def saved(tensors: Any, path: Any, *rest: Any) -> None:
            save_file(tensors, path, *rest)
            self.in_write(Path(path))

        def written(store: CheckpointStore, *arguments: Any) -> None:
            self.access()
            write(store, *arguments)

        def loaded(store: CheckpointStore, *arguments: Any) -> Any:
            self.access()
            return load(store, *arguments)

        def streamed(payload: Payload, rank: int, world: int, cursor: Any, steps: int) -> Any:
            for plan, _ in self.plans:
                if plan.action == "end" and rank == plan.rank:
                    steps = min(steps, plan.step)
            return stream(payload, rank, world, cursor, steps)

        def watched(*arguments: Any) -> Heartbeat:
            self.heartbeat = make_heartbeat(*arguments)
            return self.heartbeat

        stack.enter_context(patch.object(train_worker, "Heartbeat", watched))
        stack.enter_context(patch.object(Pretrainer, "step", stepped))
        stack.enter_context(patch.object(storage, "save_file", saved))
        stack.enter_context(patch.object(CheckpointStore, "_write", written))
        stack.enter_context(patch.object(CheckpointStore, "load", loaded))
        stack.enter_context(patch.object(Payload, "stream", streamed))

    def after_step(self, step: int, rows: list[int], absent: list[int]) -> None:
        self.at = step
        self.header.setdefault("start", f"{self.header['attempt']} from {step}")  # Ray restarts groups by itself too
        used = {"memory": self.process.memory_info().rss, "files": self.process.num_fds()}
        record = {**self.header, "step": step, "time": time.time(), "rows": rows, "absent": absent, **used}
        self.trace.write(json.dumps(record) + "\n")
        time.sleep(max((plan.pace_s for plan, _ in self.plans if step <= plan.until or not plan.until), default=0.0))
        for plan, done in self.plans:
            if self.rank == plan.rank and step == plan.step and not done.exists():
                self.inflict(plan, done)

    def inflict(self, plan: Plan, done: Path) -> None:
        action = plan.action
        if action in ("none", "cut", "torn", "end"):
            return
        self.note(done)
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif action == "hang":
            if plan.stall_s is not None:
                self.heartbeat._limit = plan.stall_s
            time.sleep(3600)
        elif action == "raise":
            raise RuntimeError("a passing fault")
        elif action == "invalid":
            raise ValueError("a fault that would come back")

    def in_write(self, path: Path) -> None:
        """The tensors of a checkpoint are written beside the place where it will stand."""
        if not path.parent.name.startswith(".step-"):
            return
        for plan, done in self.plans:
            if self.at < plan.step:
                continue
            if plan.action == "full" and self.at < plan.until:
                os.truncate(path, path.stat().st_size // 2)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            if plan.action in ("cut", "torn") and not done.exists():
                self.note(done)
                if plan.action == "torn":
                    os.truncate(path, path.stat().st_size // 2)
                    path.parent.rename(path.parent.parent / path.parent.name.split(".")[1])
                while plan.waits:
                    time.sleep(1)
                os.kill(os.getpid(), signal.SIGKILL)

    def access(self) -> None:
        if any(plan.action == "flaky" and self.at >= plan.step for plan, _ in self.plans):
            self.accesses += 1
            if self.accesses % 3:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    def note(self, done: Path) -> None:
        done.write_text(json.dumps({"time": time.time(), "step": self.at}))


@dataclass(frozen=True)
class Comparison:
    """A run's samples against those of a run without fault, and the seconds until it was beyond the fault."""

    lost: int
    doubled: int
    starts: int
    steps_repeated: int
    recovery_s: float


def read_trace(run: Path) -> list[dict[str, Any]]:
    """Every step that any rank made in any attempt, in order of time."""
    records: list[dict[str, Any]] = []
    for path in (run.parent / f"{run.name}.trace").glob("*.jsonl"):
        for line in path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue  # torn by the kill
    return sorted(records, key=lambda record: record["time"])


def history(records: Sequence[dict[str, Any]]) -> dict[int, list[int]]:
    """Step -> global rows in order, of the steps that made the final state: an attempt undoes the steps
    after its first. Steps that a rank of an attempt never reached have not happened."""
    starts: dict[str, dict[int, dict[int, dict[str, Any]]]] = {}
    for record in records:
        starts.setdefault(record["start"], {}).setdefault(record["step"], {})[record["rank"]] = record
    made: dict[int, list[int]] = {}
    for steps in starts.values():
        for step in [step for step in made if step >= min(steps)]:
            del made[step]
        for step, ranks in sorted(steps.items()):
            if len(ranks) == next(iter(ranks.values()))["world"]:
                made[step] = [row for rank in sorted(ranks) for row in ranks[rank]["rows"] if row >= 0]
    return made


def compare(run: Path, reference: Path, injected: tuple[float, int]) -> Comparison:
    """injected: when, and after which step; the first attempt of a run meets it."""
    records = read_trace(run)
    mine, theirs = history(records), history(read_trace(reference))
    lost = doubled = 0
    for step in {*mine, *theirs}:
        here, there = Counter(mine.get(step, [])), Counter(theirs.get(step, []))
        lost += (there - here).total()
        doubled += (here - there).total()
        if here == there and mine[step] != theirs[step]:
            raise AssertionError(f"step {step}: the same rows in another order")
    at, step = injected
    starts = list(dict.fromkeys(record["start"] for record in records))
    # Ranks that a fault leaves alone may make another step before they are stopped.
    step = max([step, *(record["step"] for record in records if len(starts) > 1 and record["start"] == starts[0])])
    beyond = [record["time"] for record in records if record["time"] > at and record["step"] > step]
    worked = {(record["start"], record["step"]) for record in records}
    return Comparison(lost, doubled, len(starts), len(worked) - len(mine), min(beyond, default=float("nan")) - at)


@dataclass(frozen=True)
class Began:
    """One start of a run: its first step, and its number of workers."""

    first: int
    world: int


def starts(run: Path) -> list[Began]:
    """Starts that made a step, in order of time."""
    records = read_trace(run)
    firsts = {record["start"]: record for record in reversed(records)}
    return [Began(firsts[name]["step"], firsts[name]["world"]) for name in dict.fromkeys(r["start"] for r in records)]


def node_of(run: Path, rank: int) -> str:
    """Where a rank stood when the newest step of it was made."""
    return str([record["node"] for record in read_trace(run) if record["rank"] == rank][-1])


@contextmanager
def at_step(run: Path, step: int, act: Callable[[], None]) -> Iterator[None]:
    """Do something once a run, which the block makes, has made a step."""
    ended = threading.Event()

    def wait() -> None:
        while last_step(run) < step and not ended.is_set():
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert last_step(run) >= step, f"no step {step}"


def last_step(run: Path) -> int:
    """The furthest step that any rank has made in any attempt, 0 before the first."""
    return max((record["step"] for record in read_trace(run)), default=0)
