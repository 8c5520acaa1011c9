"""Faults injected into real runs at random moments, many times: what was lost, and how long until it went on.

    python -m tests.campaigns.faults --repeat 5 --results faults.jsonl --table docs/lab/reliability.md

Each run gets its rows in one of four ways (`data.payload`), and is compared with one that met no fault: the samples of
every step in order, the final weights, the loss curve in the journal and in MLflow. One line of the results for each
run; the table is made of all lines of the file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import mlflow
import psutil
import ray
import torch
from filelock import FileLock
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from ray_jobs.checkpoint_store import CheckpointStore
from ray_jobs.pretrain import pretrain
from ray_jobs.run_config import PretrainJob
from ray_jobs.tracking.journal import metric_history
from ray_jobs.training import node_refresh as known_nodes
from ray_jobs.training.pretraining import PretrainResult
from tests.cluster import trace
from tests.cluster.runs import small_job, with_run, without_ray_of_the_test
from tests.cluster.trace import Plan
from tests.feature_corpus import write_corpus
from tests.ray_of_tests import RAY_OF_TESTS

Payload = Literal["auto", "object_store", "worker", "host", "device"]
PAYLOADS: tuple[Payload, ...] = ("object_store", "worker", "host", "device")
REPOSITORY = Path(__file__).resolve().parent.parent.parent
PACE_S = 0.05
# A crowded machine may take minutes for the first step; only where a rank hangs by intent is the limit waited for.
STALL_S, SHORT_STALL_S = 300.0, 60.0
# Longer than the stall limit: a rank that stands still has said where by then, and another start may follow.
_WAIT_S = STALL_S + 120.0
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"


@dataclass(frozen=True)
class Outcome:
    """One fault in one run. weights: largest difference of any tensor from the run without fault. date: UTC, when the
    fault's run began; load: the machine's load average of the minute before its end, to read recovery_s by. payload:
    how rows reached the run's workers."""

    fault: str
    step: int
    survived: bool
    lost: int
    doubled: int
    starts: int
    steps_repeated: int
    recovery_s: float
    weights: float
    tracked: bool
    error: str
    seconds: float
    date: str
    load: float
    payload: str


class Bench:
    """Where faults are injected: a made-up corpus, a run without fault, one folder for each run with one, and one
    MLflow store for all of them."""

    def __init__(self, base: Path):
        self.base = base
        self.shards = base / "shards"
        self.tracking_uri = f"sqlite:///{base}/mlflow.db"
        self.reference_store = base / "reference" / "mlflow.db"  # as it was when the run without fault had ended
        with self._alone():
            if not self.shards.exists():
                write_corpus(self.shards)
        self.count = 0
        self.steps = 0
        self.payload: Payload = "auto"  # of jobs from now on
        self._reference: PretrainResult | None = None

    def job(self, name: str, **run: Any) -> PretrainJob:
        """Two epochs by two workers."""
        job = small_job(self.shards, self.base / name, name, workers=2, epochs=2)
        # One read task: a process less for each start of each rank.
        job = replace(job, data=replace(job.data, read_tasks=1, payload=self.payload))
        mine = {"max_failures": 3, "stall_timeout_s": STALL_S, "tracking_uri": self.tracking_uri}
        return with_run(job, **{**mine, **run})

    def run_of(self, name: str) -> Path:
        return self.base / name / name

    def _alone(self) -> FileLock:
        """What several processes share is made by one."""
        return FileLock(self.base / ".lock")

    def reference(self) -> PretrainResult:
        """The run without fault, made once; its ranks trace two steps. A process that comes later gets the finished
        run."""
        if self._reference is None:
            with self._alone():
                self._reference = pretrain(self.job("reference", profile=2, profile_ranks="all"), trace.train)
                if not self.reference_store.exists():
                    shutil.copy(self.base / "mlflow.db", self.reference_store)
            self.steps = self._reference.step
        return self._reference

    def inject(self, fault: str, draw: random.Random, payload: Payload) -> Outcome:
        """Run a job whose rows come in that way, let it meet the fault, and compare."""
        self.count += 1
        before, self.payload = self.payload, payload
        try:
            return self._inject(fault, draw)
        finally:
            self.payload = before

    def _inject(self, fault: str, draw: random.Random) -> Outcome:
        name = f"{re.sub('[^A-Za-z]+', '-', fault)}-{os.getpid()}-{self.count}"
        step, rank = draw.randrange(9, self.steps - 8), draw.randrange(2)
        begun = time.time()
        date = time.strftime("%Y-%m-%d %H:%M", time.gmtime(begun))
        error = ""
        injected = [(begun, step)]
        try:
            injected = list(FAULTS[fault](self, name, step, rank))
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"[:500]
            traceback.print_exc()
        run = self.run_of(name)
        noted = trace.inflicted(run)
        if noted.is_file():
            note = json.loads(noted.read_text())
            injected = [(note["time"], note["step"])]
        try:
            seen = trace.compare(run, self.run_of("reference"), injected[0])
            weights = self.difference(run)
            tracked = self.is_tracked(run)
        except Exception as problem:
            error = error or f"{type(problem).__name__}: {problem}"[:500]
            took, load = round(time.time() - begun, 1), round(os.getloadavg()[0], 1)
            return Outcome(fault, step, False, -1, -1, 0, 0, -1.0, -1.0, False, error, took, date, load, self.payload)
        exact = 1e-8 if fault in OTHER_WORLD else 0.0
        survived = not error and seen.lost == seen.doubled == 0 and weights <= exact and tracked
        return Outcome(
            fault,
            injected[0][1],
            survived,
            seen.lost,
            seen.doubled,
            seen.starts,
            seen.steps_repeated,
            round(seen.recovery_s, 2),
            weights,
            tracked,
            error,
            round(time.time() - begun, 1),
            date,
            round(os.getloadavg()[0], 1),
            self.payload,
        )

    def difference(self, run: Path) -> float:
        mine, theirs = (CheckpointStore(r / "checkpoints").load(self.steps) for r in (run, self.run_of("reference")))
        assert mine.tensors.keys() == theirs.tensors.keys() and mine.cursor == theirs.cursor
        pairs = [(mine.tensors[name], theirs.tensors[name]) for name in mine.tensors]
        return max(float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel())

    def is_tracked(self, run: Path) -> bool:
        """One MLflow run of that name, each step once, and the same loss curve as without fault."""
        here, there = (metric_history(r / "journal.jsonl")["loss"] for r in (run, self.run_of("reference")))
        steps = list(range(1, self.steps + 1))
        close = all(abs(a - b) <= 1e-8 for (_, a), (_, b) in zip(here, there, strict=True))
        client = mlflow.MlflowClient(self.tracking_uri)
        experiment = client.get_experiment_by_name("conclugen")
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id], f"tags.`mlflow.runName` = '{run.name}'")
        sent = [m.step for m in client.get_metric_history(found[0].info.run_id, "loss")]
        return (
            len(found) == 1 and found[0].info.status == "FINISHED" and steps == sent == [s for s, _ in here] and close
        )

    def reached(self, name: str, step: int, job: subprocess.Popen[bytes] | None = None) -> float:
        """Wait until a run has made a step, in a process of its own if one is given; returns the time then."""
        self.wait(lambda: trace.last_step(self.run_of(name)) >= step, f"reach step {step}", name, job)
        return time.time()

    def met(self, name: str, number: int, job: subprocess.Popen[bytes]) -> tuple[float, int]:
        """Wait until a run, in a process of its own, has met a plan; returns when, and after which step."""
        note = trace.inflicted(self.run_of(name), number)
        self.wait(lambda: note.is_file() and note.stat().st_size > 0, f"meet fault {number}", name, job)
        met = json.loads(note.read_text())
        return met["time"], met["step"]

    def wait(
        self, condition: Callable[[], bool], what: str, name: str, job: subprocess.Popen[bytes] | None = None
    ) -> None:
        deadline = time.monotonic() + _WAIT_S
        while not condition():
            if time.monotonic() > deadline or (job is not None and job.poll() is not None):
                log = self.base / f"{name}.log"
                said = log.read_text(errors="replace")[-3000:] if log.is_file() else ""
                raise TimeoutError(f"{name} did not {what}\n{said}\n{trace.stacks(self.run_of(name))}")
            time.sleep(0.05)


# ---- faults: each runs the job to its end, and yields when it was injected and after which step -------------------


def in_worker(action: str, length: int = 0) -> Callable[[Bench, str, int, int], Iterator[tuple[float, int]]]:
    """A fault that a worker inflicts on itself (`trace.Plan`); rank 0 where it concerns checkpoints."""

    def run(bench: Bench, name: str, step: int, rank: int) -> Iterator[tuple[float, int]]:
        of_rank = rank if action in ("kill", "hang", "raise") else 0
        trace.give(bench.run_of(name), Plan(action, step, of_rank, until=step + length), Plan(pace_s=PACE_S))
        stall_s = SHORT_STALL_S if action == "hang" else STALL_S
        pretrain(bench.job(name, stall_timeout_s=stall_s), trace.train)
        yield time.time(), step

    return run


def beside(
    bench: Bench,
    name: str,
    step: int,
    act: Callable[[], None],
    pace_s: float = PACE_S,
    plans: Sequence[Plan] = (),
    **run: Any,
) -> tuple[float, int]:
    """Run a job, and once it has made the step do something to it; its workers meet `plans` too."""
    return one_after_another(bench, name, [(step, act)], [*plans, Plan(pace_s=pace_s)], **run)[0]


def one_after_another(
    bench: Bench, name: str, acts: Sequence[tuple[int, Callable[[], None]]], plans: Sequence[Plan], **run: Any
) -> list[tuple[float, int]]:
    """Run a job to its end, and each time it has made a step do something to it; returns when, and after which step."""
    trace.give(bench.run_of(name), *plans)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            pretrain(bench.job(name, **run), trace.train)
        except BaseException as error:
            errors.append(error)

    # Here the faults, there the job: a node can only be started by the main thread.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    done = []
    for step, act in acts:
        bench.wait(lambda step=step: errors or trace.last_step(bench.run_of(name)) >= step, f"reach step {step}", name)
        if errors:
            raise errors[0]
        done.append((time.time(), trace.last_step(bench.run_of(name))))
        act()
    thread.join(timeout=900)
    if errors:
        raise errors[0]
    if thread.is_alive():
        raise TimeoutError(f"{name} has not ended")
    return done


def controller(bench: Bench, name: str, step: int, rank: int) -> Iterator[tuple[float, int]]:
    """SIGKILL of the Train controller's process; the workers use up every CPU of the cluster."""
    yield beside(bench, name, step, kill_controller)


def kill_controller() -> None:
    os.kill(controller_process(), signal.SIGKILL)


def controller_process() -> int:
    """The Train controller's process among those of this Ray."""
    folder = str(Path(ray._private.worker._global_node.get_session_dir_path()))
    for process in psutil.process_iter(["pid", "cmdline", "ppid"]):
        if any("TrainController" in word for word in process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.Error):
                if any(folder in word for word in psutil.Process(process.info["ppid"]).cmdline()):
                    return int(process.info["pid"])
    raise ProcessLookupError("no Train controller runs")


def driver(bench: Bench, name: str, step: int, rank: int) -> Iterator[tuple[float, int]]:
    """SIGKILL of the job itself, which is then started again under its name, on the same cluster."""
    Plan(pace_s=PACE_S).give(bench.run_of(name))
    first = start(bench, name)
    at = bench.reached(name, step, first)
    before = trace.last_step(bench.run_of(name))
    first.kill()
    first.wait()
    if start(bench, name).wait(timeout=400) != 0:
        raise RuntimeError((bench.base / f"{name}.log").read_text()[-2000:])
    yield at, before


def start(bench: Bench, name: str) -> subprocess.Popen[bytes]:
    arguments = ["--shards", str(bench.shards), "--output", str(bench.base / name), "--name", name]
    arguments += ["--read-tasks", "1", "--max-failures", "3", "--tracking-uri", bench.tracking_uri]
    arguments += ["--payload", bench.payload]
    environment = without_ray_of_the_test() | {k: v for k, v in os.environ.items() if k.startswith("RAY_TRAIN_")}
    environment |= {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "token"}
    with (bench.base / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.runs", *arguments],
            cwd=REPOSITORY,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def patiently(start: Callable[[], Any]) -> Any:
    """Start a node; on a busy machine it may miss the 30 s that Ray gives it."""
    for attempt in range(4):
        try:
            return start()
        except Exception as error:
            if attempt == 3 or "timed out during startup" not in str(error):
                raise
    raise AssertionError("unreachable")


class Nodes:
    """Nodes that join the Ray which runs already, whose own node must have no room for a worker."""

    current: Nodes | None = None

    def __init__(self, cpus: int = 1, count: int = 2) -> None:
        self.cpus, self.count = cpus, count
        self.cluster = Cluster()
        self.cluster.head_node = ray._private.worker._global_node
        self.nodes: list[Any] = []
        try:
            self.complete()
        except BaseException:
            self.close()
            raise
        Nodes.current = self

    def lose(self, node_id: str | None = None) -> None:
        """SIGKILL of all processes of a node, the last one where none is named."""
        node = next((node for node in self.nodes if node.node_id == node_id), None) if node_id else self.nodes[-1]
        assert node is not None, f"{node_id} is none of {[node.node_id for node in self.nodes]}"
        self.nodes.remove(node)
        try:
            self.cluster.remove_node(node, allow_graceful=False)
        except AssertionError as error:  # it does not wait for the kernel to take a killed process away
            print(f"the node: {error}", flush=True)

    def add(self) -> None:
        self.nodes.append(patiently(lambda: self.cluster.add_node(num_cpus=self.cpus)))

    def complete(self) -> None:
        while len(self.nodes) < self.count:
            self.add()

    def lose_and_add(self, node_id: str | None = None) -> None:
        """A node dies, the last one where none is named, and another one comes 3 s later."""
        self.lose(node_id)
        time.sleep(3)
        self.add()

    def take_away(self, notice_s: float, node_id: str | None = None) -> None:
        """A node, the last one where none is named, is announced to be taken away, and is."""
        node_id = node_id or self.nodes[-1].node_id
        self.announce(notice_s, node_id)
        time.sleep(notice_s)
        self.lose(node_id)

    def announce(self, seconds: float, node_id: str) -> None:
        """Tell the cluster that a node will be taken away, as a cloud does for a spot instance."""
        client = ray._private.worker.global_worker.gcs_client
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline = int((time.time() + seconds) * 1000)
        accepted, why = client.drain_node(node_id, reason, "taken away", deadline)
        assert accepted, why

    def close(self) -> None:
        """End what is left, and wait until Ray knows: it would still send somebody there."""
        while self.nodes:
            self.lose()
        known_nodes.bring_up_to_date()
        Nodes.current = None


def cluster() -> Nodes:
    assert Nodes.current is not None
    Nodes.current.complete()
    return Nodes.current


def node_returns(bench: Bench, name: str, step: int, rank: int) -> Iterator[tuple[float, int]]:
    """A node dies at once with its worker, and another one comes later."""
    yield beside(bench, name, step, cluster().lose_and_add)


def node_in_write(bench: Bench, name: str, step: int, rank: int) -> Iterator[tuple[float, int]]:
    """The node of the rank that writes dies while a checkpoint is half written, and another one comes."""
    nodes, run = cluster(), bench.run_of(name)

    def act() -> None:
        bench.wait(trace.inflicted(run).is_file, "stand in a checkpoint's write", name)
        nodes.lose_and_add(trace.node_of(run, 0))

    yield beside(bench, name, step, act, plans=[Plan("cut", step, waits=True)])


def node_stays_away(bench: Bench, name: str, step: int, rank: int) -> Iterator[tuple[float, int]]:
    """A node dies for good: the run continues with one worker."""
    yield beside(bench, name, step, cluster().lose, min_workers=1)


def node_comes_back(bench: Bench, name: str, step: int, rank: int) -> Iterator[tuple[float, int]]:
    """A node dies, the run continues with one worker, another node comes, and some time later it has two again."""
    nodes, run = cluster(), bench.run_of(name)

    def act() -> None:
        nodes.lose()
        bench.wait(lambda: trace.starts(run)[-1].world == 1, "continue one worker", name)
        nodes.add()

    injected = beside(bench, name, min(step, 12), act, pace_s=3.0, min_workers=1)
    worlds = [start.world for start in trace.starts(run)]
    if worlds != [2, 1, 2]:
        raise AssertionError(f"workers of each start: {worlds}")
    yield injected


def preemption(bench: Bench, name: str, step: int, rank: int) -> Iterator[tuple[float, int]]:
    """A node is taken away 20 s after a notice, and another one comes. The notice must lead to a checkpoint."""
    nodes = cluster()

    def act() -> None:
        nodes.take_away(20)
        nodes.add()

    # No other checkpoint is due before the end, and steps are slow enough that the end comes later than the node's.
    at, before = beside(bench, name, min(step, 12), act, pace_s=1.5, checkpoint_every=1000)
    first_again = [r["step"] for r in trace.read_trace(bench.run_of(name)) if r["time"] > at + 20]
    if min(first_again, default=1) <= before:
        raise AssertionError(f"noticed after step {before}, but the run went on from step {min(first_again) - 1}")
    yield at, before


FAULTS: dict[str, Callable[[Bench, str, int, int], Iterator[tuple[float, int]]]] = {
    "SIGKILL of a worker": in_worker("kill"),
    "SIGKILL of the Train controller": controller,
    "SIGKILL of the job": driver,
    "a rank hangs": in_worker("hang"),
    "checkpoint write killed": in_worker("cut"),
    "checkpoint torn in its place": in_worker("torn"),
    "disk full while checkpointing": in_worker("full", length=8),
    "storage fails two times of three": in_worker("flaky"),
    "node lost, another comes": node_returns,
    "node lost in a checkpoint's write": node_in_write,
    "node lost for good": node_stays_away,
    "node lost, back later": node_comes_back,
    "preemption with notice": preemption,
}
ON_NODES = (
    "node lost, another comes",
    "node lost in a checkpoint's write",
    "node lost for good",
    "node lost, back later",
    "preemption with notice",
)
OTHER_WORLD = ("node lost for good", "node lost, back later")


@contextlib.contextmanager
def place(faults: list[str]) -> Iterator[None]:
    """A Ray for these faults: two CPUs in one node, or a head without CPUs and two nodes of one CPU each."""
    on_nodes = faults[0] in ON_NODES
    with tempfile.TemporaryDirectory(prefix="rf", ignore_cleanup_errors=True) as folder:

        def start() -> None:
            ray.shutdown()
            cpus = 0 if on_nodes else 2
            ray.init("local", num_cpus=cpus, include_dashboard=False, logging_level="warning", _temp_dir=folder)

        patiently(start)
        nodes = Nodes() if on_nodes else None
        try:
            yield
        finally:
            if nodes:
                nodes.close()
            ray.shutdown()


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: one row for each fault. Recovery is told of the runs that noted the machine's load beside it."""
    by_fault: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        by_fault[result["fault"]].append(result)
    lines = [
        "| fault | injected | by payload | survived | samples lost | samples doubled | largest difference of weights "
        "| recovery, median | recovery, longest | load average, median |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for fault in [fault for fault in FAULTS if fault in by_fault]:
        runs = by_fault[fault]
        timed = [run for run in runs if run["survived"] and "load" in run]
        times = [run["recovery_s"] for run in timed]
        lost, doubled = (sum(run[name] for run in runs if run[name] >= 0) for name in ("lost", "doubled"))
        weights = max((run["weights"] for run in runs), default=-1)
        shown = "none" if weights == 0 else f"{weights:.0e}"
        timing = "- | - | -"
        if timed:
            load = statistics.median(run["load"] for run in timed)
            timing = f"{statistics.median(times):.0f} s of {len(times)} | {max(times):.0f} s | {load:.0f}"
        survived = sum(run["survived"] for run in runs)
        ways = Counter(run.get("payload", "object_store") for run in runs)
        by_payload = ", ".join(f"{payload} {ways[payload]}" for payload in PAYLOADS if ways[payload])
        lines.append(f"| {fault} | {len(runs)} | {by_payload} | {survived} | {lost} | {doubled} | {shown} | {timing} |")
    return "\n".join(lines)


def write_table(results: Path, document: Path) -> None:
    """Put the table of all results between the document's two marks."""
    text = document.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = table([json.loads(line) for line in results.read_text().splitlines()])
    document.write_text(f"{before}{BEGIN}\n{rows}\n{END}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="times that each fault is injected (default 3)")
    parser.add_argument("--results", type=Path, default=Path("faults.jsonl"), help="file that outcomes are appended to")
    parser.add_argument("--only", action="append", choices=sorted(FAULTS), help="these faults (default: all)")
    parser.add_argument("--payload", action="append", choices=PAYLOADS, help="rows come in one of these ways (all)")
    parser.add_argument("--table", type=Path, help="document whose table is written again from all results")
    parser.add_argument("--seed", type=int, default=None, help="of the moments (default: drawn)")
    parser.add_argument("--folder", type=Path, help="where runs stay, and the one without fault is found again")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    chosen = [fault for fault in FAULTS if fault in (options.only or FAULTS)]
    survived = True
    torch.set_num_threads(1)
    for name, value in RAY_OF_TESTS.items():
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory(prefix="faults-") as base:
        bench = Bench((options.folder or Path(base)).absolute())
        for group in ([f for f in chosen if f not in ON_NODES], [f for f in chosen if f in ON_NODES]):
            if not group or not options.repeat:
                continue
            with place(group):
                bench.reference()
                for _ in range(options.repeat):
                    for fault in group:
                        outcome = bench.inject(fault, draw, draw.choice(options.payload or PAYLOADS))
                        survived &= outcome.survived
                        with options.results.open("a") as file:
                            file.write(json.dumps(asdict(outcome)) + "\n")
                        print(json.dumps(asdict(outcome)), flush=True)
    if options.table:
        write_table(options.results, options.table)
    return 0 if survived else 1


if __name__ == "__main__":
    sys.exit(main())
