"""Folders of video to clip shards, on all CPUs of the cluster: what `ray_jobs.build_shards` does."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from conclugen.common import machine, paths, uris
from conclugen.common.ending import resumable
from conclugen.common.locks import folder_held
from conclugen.common.options import JobFailedError
from conclugen.common.screen import ClipProgress, doing
from ray_jobs import ray_cluster
from ray_jobs.options.build import BuildJob
from shards.access import LOCAL_RESULT, LOCAL_SOURCE, refuse_url
from shards.adapters import read_clips
from shards.clips.build import ShardReport, build_shard, load_report
from shards.clips.plan import BuildOptions, BuildPlan, ShardTask
from shards.clips.summary import BuildSummary, finish
from shards.media.face_search import FaceSearch
from shards.media.limits import Limits
from shards.output_folder import OwnershipLostError
from shards.packing.labels import LabelSpec
from shards.tools.check_clips import describe_clips, doubt_clips
from shards.transcripts.recogniser import create_recogniser

_TELL_EVERY = 1.0  # seconds between a shard's messages to the driver
_AHEAD = 2  # tasks waiting for each CPU: none idles, and a killed driver leaves few behind


def connect(num_cpus: float = 1.0) -> None:
    """Join the cluster, or start a local Ray with as many logical CPUs as there are cores (or a task takes): more tasks
    at once would only take more memory."""
    ray_cluster.connect(max(machine.cores(), math.ceil(num_cpus)), spare=0)


def build(plan: BuildPlan, num_cpus: float = 1.0, num_gpus: float = 0.0, quiet: bool = False) -> BuildSummary:
    """Build the shards of a claimed plan that are not there yet, each in a Ray task, and finish the data set."""
    reports = {task.name: report for task in plan.tasks if (report := load_report(task)) is not None}
    resumed = len(reports)
    todo = [task for task in plan.tasks if task.name not in reports]
    total = sum(len(task.clips) for task in plan.tasks)
    progress = ClipProgress(total, sum(report.clips_in for report in reports.values()), quiet)
    done: dict[str, int] = {}
    told = resumable(lambda: f"{len(reports)} of {len(plan.tasks)} shards are built; the same command continues")
    with told, doing("decoding clips"):
        if todo:
            remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, num_returns="streaming", max_retries=3)(
                _build_task
            )
            for shard, message in _run(remote, todo, num_cpus):
                if isinstance(message, ShardReport):
                    reports[shard] = message
                    done[shard] = message.done
                else:
                    done[shard] = max(message, done.get(shard, 0))  # a task that was tried again starts over
                progress.show(sum(done.values()))
        progress.show(sum(done.values()), last=True)
        return finish(plan, [reports[task.name] for task in plan.tasks], resumed)


def _build_task(task: ShardTask) -> Iterator[int | ShardReport]:
    """In a worker: the number of clips done so far, about once a second, and the report at the end."""
    uris.scrub_output()
    done: list[int] = []
    messages: list[int] = []
    # A generator can't yield from within the callback, so the shard is built on a thread and this one reports it.
    result: list[ShardReport | BaseException] = []

    def work() -> None:
        try:
            result.append(build_shard(task, lambda report: done.append(report.done)))
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=work, name="build", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_TELL_EVERY)
        if done and (not messages or done[-1] != messages[-1]):
            messages.append(done[-1])
            yield done[-1]
    if isinstance(result[0], BaseException):
        raise result[0]
    yield result[0]


def _run(remote: Any, todo: Sequence[ShardTask], num_cpus: float) -> Iterator[tuple[str, int | ShardReport]]:
    """(shard, what its task reports) until all have reported their end. Tasks are submitted as the cluster has CPUs for
    them, also those of nodes that join later, and some more, by which an autoscaler sees that it is worth while."""
    waiting = list(reversed(todo))
    running: dict[Any, ShardTask] = {}
    while waiting or running:
        slots = max(1, int(ray.cluster_resources().get("CPU", 0) / num_cpus)) * _AHEAD
        while waiting and len(running) < slots:
            task = waiting.pop()
            running[remote.remote(task)] = task
        ready, _ = ray.wait(list(running), num_returns=1)
        for stream in ready:
            try:
                yield running[stream].name, ray.get(next(stream))
            except StopIteration:
                del running[stream]


def plan_of(job: BuildJob) -> BuildPlan:
    """Read the set and plan the build; prints what is missing or left out. ValueError for wrong input."""
    refuse_url("source", job.source, LOCAL_SOURCE)
    refuse_url("table", job.table, LOCAL_SOURCE)
    refuse_url("folds", job.folds, LOCAL_SOURCE)
    refuse_url("unpack", job.unpack, LOCAL_RESULT)
    refuse_url("output", job.output, LOCAL_RESULT)
    options = BuildOptions(
        clips_per_shard=job.clips_per_shard,
        shuffle_seed=job.shuffle_seed,
        sound=job.sound,
        audio_rate=None if job.audio_rate == "source" else job.audio_rate,
        audio_length=job.audio_length,
        faces=job.faces,
        face_finder=job.face_finder,
        face_weights=None if job.face_weights is None else str(paths.absolute(job.face_weights, "face_weights")),
        recogniser=job.transcribe,
        speech_model=job.speech_model,
        grammar=job.grammar,
        device="cuda" if job.gpus else "cpu",
        timeout=job.timeout,
        limits=Limits(
            max_seconds=job.max_seconds,
            max_pixels=int(job.max_megapixels * 1e6),
            audio_gap_seconds=job.audio_gap_seconds,
            audio_gap_share=job.audio_gap_share,
            picture_gap_seconds=job.picture_gap_seconds,
        ),
    )
    if options.faces != "off":
        FaceSearch(options.face_finder, options.face_weights)  # said now, not of every clip
    if options.recogniser is not None:
        create_recogniser(options.recogniser, options.speech_model, options.grammar)  # said now, not in every task
    clips = read_clips(
        job.adapter,
        job.source,
        job.allow_incomplete,
        table=job.table,
        fields=job.field,
        labels=tuple(LabelSpec.parse(text) for text in job.label),
        folds=job.folds,
        encoding=job.encoding,
        unpack=job.unpack,
    )
    for line in describe_clips(clips):
        print(line)
    for count in clips.counts:
        if not count.complete:
            print(f"warning: the set is not complete, and goes on with what is there: {count}", flush=True)
    for doubt in doubt_clips(clips):
        print(f"warning: {doubt}", flush=True)
    return BuildPlan.make(clips, job.output.absolute(), options)


def run(job: BuildJob) -> int:
    """Run the job; returns the exit status."""
    plan = plan_of(job)
    with folder_held(plan.out, "clip shards are being built here", "another --output"):
        plan.acquire(job.overwrite)
        connect(job.cpus)
        try:
            summary = build(plan, job.cpus, job.gpus, job.quiet)
        except OwnershipLostError as error:  # also as Ray hands it on from a task
            raise JobFailedError(str(error).splitlines()[-1]) from error
    print("\n".join(summary.lines(plan.out)))
    return summary.exit_status
