"""What every training worker runs: stream, step, validate, checkpoint, and meet the other ranks."""

from __future__ import annotations

import functools
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from conclugen import Pretrainer, distributed
from conclugen.common import uris
from conclugen.training import checkpoint
from conclugen.training.checkpoint import Checkpoint, HostMemory, Snapshot
from ray_jobs.checkpoint_store import CheckpointWriter
from ray_jobs.mixture import AnySource, Mixture, open_source
from ray_jobs.run_config import PretrainJob
from ray_jobs.run_folder import RunFolder
from ray_jobs.source import mates
from ray_jobs.training import far_folder, numa, payloads, run_metrics
from ray_jobs.training.failures import Heartbeat
from ray_jobs.training.input_gauge import InputTimes
from ray_jobs.training.payloads import Node, Payload
from ray_jobs.training.rank_meeting import RankMeeting
from ray_jobs.training.step_profile import profiled
from ray_jobs.training.step_recorder import Measures, NullRecorder, StepRecorder
from ray_jobs.training.validation import open_validation
from shards import CorruptSample, Cursor
from shards.errors import CorruptionLog

_MOST_BLOCKED = 0.01  # of the time, by checkpoints that are due by time
_REST = 1 / _MOST_BLOCKED - 1  # seconds of training for one of a pause
# The stalled rank reports first; the others' collectives time out this much later.
COLLECTIVES_LATER_S = 30.0


@dataclass(frozen=True)
class Attempt:
    """One attempt of a run's workers. `identity` is stored with each checkpoint; `step_bytes`: device memory of a
    training step, where it is known; `home`: see `far_folder.home`."""

    job: PretrainJob
    folder: str
    total_steps: int
    name: str
    identity: Mapping[str, Any]
    step_bytes: int = 0
    home: Any = None


def train(attempt: Attempt) -> None:
    """The training of one rank, from the newest checkpoint to the end; how it fails is noted in the run's folder."""
    uris.scrub_output()
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    who = f"node {socket.gethostname()} ({ray.util.get_node_ip_address()}), where rank {rank} runs,"
    folder = far_folder.reach(attempt.folder, attempt.name, attempt.home, who)
    limit_s = attempt.job.run.stall_timeout_s
    with Heartbeat(folder.failures, attempt.name, rank, world, limit_s, folder.append) as heartbeat:
        _train(attempt, folder, rank, world, heartbeat)


def _train(attempt: Attempt, folder: RunFolder, rank: int, world: int, heartbeat: Heartbeat) -> None:
    job, run, context = attempt.job, attempt.job.run, ray.train.get_context()
    torch.set_num_threads(run.cpus_per_worker)
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train announces its doings; the progress line is ours

    # The allowed share of corrupt samples is of the whole: no rank judges it alone.
    quarantine = folder.quarantine(rank)
    source = open_source(replace(job.data, max_corrupt_share=1.0), job.pretrain, quarantine.note)
    refuse_other_data(source, attempt.identity)
    # Before the ranks meet to restore: after it one rank may note new samples while another reads the known ones.
    watch = Watch(source, job, folder)
    meeting = RankMeeting(rank, world, run.stall_timeout_s)
    device = ray.train.torch.get_device()
    # Before anything starts threads, which inherit it.
    bound = numa.bind(device, [ray.util.get_node_ip_address(), context.get_local_rank()], meeting.exchange)
    if bound is not None and rank == 0:
        print(bound, flush=True)
    state = newest_state(attempt, rank, meeting)
    if run.gpu:
        distributed.separate(timedelta(seconds=run.stall_timeout_s + COLLECTIVES_LATER_S))
    step = 0 if state is None else int(state.meta["step_number"])
    cursor = Cursor(epoch=0, step=0) if state is None else Cursor.from_dict(state.cursor)
    payload = prepared(attempt, source, rank, device, meeting, functools.partial(heartbeat.beat, step))
    watch.all_read = payload.all_read
    job = replace(job, data=replace(job.data, payload=payload.name))  # type: ignore[arg-type]  # one of its words

    # The stream starts first: its tasks come up and read while the model is built.
    with payload.stream(rank, world, cursor, attempt.total_steps - step) as batches:
        pretrainer = Pretrainer(
            job.pretrain,
            widths=source.reader.widths,
            steps_per_epoch=source.steps_per_epoch,
            standardization=folder.load_standardization(),
            device=device,
        )
        if state is not None:
            checkpoint.restore_everywhere(state, pretrainer)
            del state
        recorder = NullRecorder()
        if rank == 0:
            ideal_s = run_metrics.ideal_seconds(job.pretrain, source.reader.widths, world, pretrainer.device)
            about = functools.partial(mates, source, job.pretrain.global_batch)
            recorder = StepRecorder(folder, job, open_validation(source, job.pretrain), attempt.name, ideal_s, about)
        checkpointer = Checkpointer(attempt, rank, recorder)
        if step == 0:
            checkpointer.begin(pretrainer)
        heartbeat.beat(step)
        with profiled(run, folder.profile, rank, step, attempt.total_steps) as profile:
            for rows in recorder.timed(payload.on_device(batches, device), batches.counters):
                values = pretrainer.step(rows)
                step = pretrainer.step_number
                recorder.add(step, values)
                last = step == attempt.total_steps
                due = last or (run.checkpoint_every is not None and step % run.checkpoint_every == 0)
                if due or meeting.due(step):
                    note = watch.note(quarantine.take()) | {"input": asdict(recorder.input.times())}
                    notices = meeting.hold(step, note | {"keep": checkpointer.wants_one})
                    due |= notices[0]["keep"]
                    due |= watch.judge(step, notices)
                    heartbeat.announced = watch.announced
                    recorder.warn_of_waits([InputTimes(**notice["input"]) for notice in notices])
                if last or step % run.report_every == 0:
                    recorder.write()
                if due:
                    compare(meeting.exchange(pretrainer.checksum()), step)
                    checkpointer.keep(pretrainer, source.plan.cursor_at(step), at_once=last or watch.leaving)
                with recorder.input.paused():
                    profile.step()
                heartbeat.beat(step)
    if pretrainer.step_number != attempt.total_steps:
        raise ValueError(f"the data ended after step {pretrainer.step_number} of {attempt.total_steps}")


def refuse_other_data(source: AnySource, identity: Mapping[str, Any]) -> None:
    """Raise ValueError where the data is not that with which the run began: somebody has written to its folder."""
    for name, found in source.identity().items():
        if name in identity and identity[name] != found:
            raise ValueError(
                f"{name}: found {found}, expected {identity[name]}: the data changed since the run began; restore it, "
                "or choose another run.name"
            )


def newest_state(attempt: Attempt, rank: int, meeting: RankMeeting) -> Checkpoint | None:
    """The newest whole checkpoint, or None where there is none: rank 0 alone reads it, the others have it without its
    tensors."""
    found = RunFolder(attempt.folder).store(attempt.job.run).newest() if rank == 0 else None
    told = meeting.hold(0, None if found is None else [found.meta, found.cursor, found.extra])[0]
    return None if told is None else found or Checkpoint({}, *told)


def prepared(
    attempt: Attempt, source: AnySource, rank: int, device: torch.device, meeting: RankMeeting, beat: Callable[[], None]
) -> Payload:
    """What brings the batches, with the rows read that it keeps. beat: called while they are read."""
    context = ray.train.get_context()
    node = Node(context.get_local_rank(), context.get_local_world_size())
    room = payloads.room(device, attempt.step_bytes, node.ranks, ray.util.get_node_ip_address())

    def tell(line: str) -> None:
        if rank == 0:
            print(line, flush=True)

    return payloads.prepare(source, node, room, device, attempt.name, meeting, tell, beat)


class RanksDifferError(RuntimeError):
    """Ranks that should hold the same parameters do not; a restart continues from a state that they shared."""


def compare(checksums: Sequence[int], step: int) -> None:
    """Raise RanksDifferError unless all ranks' parameters have the same checksum; it names those that most differ
    from."""
    usual, count = Counter(checksums).most_common(1)[0]
    if count == len(checksums):
        return
    ranks = [str(rank) for rank, checksum in enumerate(checksums) if checksum != usual]
    who = f"rank {', '.join(ranks)} from the others" if 2 * count > len(checksums) else "ranks from each other"
    raise RanksDifferError(
        f"after step {step} the parameters of {who} differ, though they were computed from the same numbers: a device "
        "or its memory is faulty, or the devices are not of one kind. No checkpoint was written of it; look at the "
        "nodes of these ranks if it comes back"
    )


class Watch:
    """What the ranks tell each other when they meet: new corrupt samples, and notices that nodes will be taken away."""

    def __init__(self, source: AnySource, job: PretrainJob, folder: RunFolder):
        # Of each corpus by its own rows: a small one that is all corrupt would be a small share of the mixture.
        self._logs: dict[str, tuple[CorruptionLog, Callable[[int], int]]]
        if isinstance(source, Mixture):
            self._logs = source.corruption_logs(job.data.max_corrupt_share)
        else:
            log = CorruptionLog(source.view.rows, job.data.max_corrupt_share)
            self._logs = {"": (log, lambda step: step * job.pretrain.global_batch)}
        for sample in source.reader.still_corrupt(folder.quarantined()):  # it may have been restored since
            self._log_of(sample).know(sample)
        self._known: set[str] = set()
        self.leaving = False
        self.all_read = False  # whether all rows were read before the first step

    @property
    def announced(self) -> bool:
        """Whether a node of the ranks will be taken away; `leaving` holds from the exchange that first reports it."""
        return bool(self._known)

    def note(self, corrupt: list[CorruptSample]) -> dict[str, Any]:
        """What this rank has to tell."""
        notice = ray.train.get_preemption_info()
        return {
            "corrupt": [asdict(sample) for sample in corrupt],
            "leaving": notice.preempted_node_ids if notice else [],
        }

    def judge(self, step: int, notes: list[dict[str, Any]]) -> bool:
        """Whether a checkpoint is wanted now, because of a node that leaves. Same on every rank.

        Raises CorruptionError where more than the share `data.max_corrupt_share` of all samples is corrupt.
        """
        leaving = {node for note in notes for node in note["leaving"]}
        self.leaving = bool(leaving - self._known)
        self._known |= leaving
        for log, rows_before in self._logs.values():
            log.rows_read = log.total_rows if self.all_read else rows_before(step)
        for note in notes:
            for fields in note["corrupt"]:
                sample = CorruptSample(**fields)
                self._log_of(sample).add(sample)
        for log, _ in self._logs.values():
            log.check()  # what was known may be too much already
        return self.leaving

    def _log_of(self, sample: CorruptSample) -> CorruptionLog:
        """The log of the sample's corpus, where there are several (`MixedReader` names shards CORPUS/SHARD)."""
        name = "" if "" in self._logs else sample.shard.partition("/")[0]
        return self._logs[name][0]


class CheckpointClock:
    """When the next checkpoint by time is due: after `every_s` seconds, and not before training has gone on for 99
    times as long as the last one paused it."""

    def __init__(self, every_s: float | None, clock: Callable[[], float] = time.monotonic):
        self._every_s, self._clock = every_s, clock
        self._next = clock() + (every_s or 0)

    def due(self, busy: bool) -> bool:
        """busy: the last one is still being written."""
        return self._every_s is not None and not busy and self._clock() >= self._next

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Around what pauses training."""
        begun = self._clock()
        yield
        ended = self._clock()
        self._next = max(begun + (self._every_s or 0), ended + (ended - begun) * _REST)

    def went_on(self, seconds: float) -> None:
        """What pauses training went on beside it for so long. How much of that training waited for is not known on the
        host; it counts as a pause."""
        self._next = max(self._next, self._clock() + seconds * _REST)


class Checkpointer:
    """Checkpoints: rank 0 copies the state and has it written while training continues."""

    def __init__(self, attempt: Attempt, rank: int, recorder: NullRecorder):
        self._run, self._identity, self._recorder = attempt.job.run.name, attempt.identity, recorder
        self._clock = CheckpointClock(attempt.job.run.checkpoint_every_s)
        self._memory = HostMemory()
        self._writer: CheckpointWriter | None = None
        if rank == 0:
            store = RunFolder(attempt.folder).store(attempt.job.run)
            stored = functools.partial(_tell_stored, attempt.job.run.name)
            self._writer = CheckpointWriter(store, before=recorder.sync, stored=stored)

    @property
    def wants_one(self) -> bool:
        """Whether a checkpoint is due by time; on rank 0 alone, whose word counts."""
        return self._writer is not None and self._clock.due(self._writer.busy)

    def begin(self, pretrainer: Pretrainer) -> None:
        """Measure what the curves begin with, while the first steps go on."""
        measured = self._recorder.validate(pretrainer, warn=False)
        if self._writer is not None and measured is not None:
            state = checkpoint.snapshot(pretrainer, {}, memory=self._memory)
            self._writer.do(functools.partial(_measure, measured, state))

    def keep(self, pretrainer: Pretrainer, cursor: Cursor, at_once: bool) -> None:
        """Keep the state of now, and what is measured of it; at_once: wait until it is stored, rather than let training
        continue."""
        pretrainer.check_finite()  # on every rank alike
        if self._writer is None:
            return
        began = time.perf_counter()
        with self._clock.keeping():
            self._writer.wait()  # the memory is its own until then
            self._recorder.write()
            measured = self._recorder.validate(pretrainer)
            extra = {"measures": {}, "identity": dict(self._identity)}
            state = checkpoint.snapshot(pretrainer, cursor.to_dict(), extra, memory=self._memory)
            self._writer.submit(pretrainer.step_number, state, functools.partial(self._completed, measured))
        run_metrics.tell(self._run, checkpoint_blocked_seconds=time.perf_counter() - began)
        if at_once:
            self._writer.finish()

    def _completed(self, measured: Measures | None, state: Snapshot) -> Snapshot:
        """The snapshot with what is measured of its model, where that is a number; in the writer's thread."""
        self._clock.went_on(state.arrived())
        measures = {} if measured is None else measured(state)
        finite = {f"validation/{name}": value for name, value in measures.items() if value == value}
        return replace(state, document={**state.document, "extra": {**state.document["extra"], "measures": finite}})


def _tell_stored(run: str, seconds: float) -> None:
    run_metrics.tell(run, checkpoint_seconds=seconds)


def _measure(measured: Measures, state: Snapshot) -> None:
    measured(state)
