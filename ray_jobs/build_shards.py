"""Job: folders of video to clip shards, on all CPUs of the cluster. `python -m ray_jobs.build_shards --help`.

Exit status: 0 all clips are in the shards; 3 finished, and some clips are in quarantine.jsonl, by name with the reason;
2 wrong input, nothing was built; 1 the job itself failed.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray

from ray_jobs import ray_cluster
from shards.access import LOCAL_RESULT, LOCAL_SOURCE, refuse_url
from shards.adapters import ADAPTERS, read_clips
from shards.check_clips import describe_clips, doubt_clips
from shards.clips.build import ShardReport, build_shard, load_report
from shards.clips.clip_progress import ClipProgress
from shards.clips.plan import FACES, BuildOptions, BuildPlan, ShardTask
from shards.clips.summary import BuildSummary, finish
from shards.foreign.mapping import split_assignment
from shards.media.limits import AUDIO_LENGTHS, Limits
from shards.packing.labels import LabelSpec
from shards.transcripts.recogniser import BACKENDS, create_recogniser

_TELL_EVERY = 1.0  # seconds between a shard's messages to the driver
_AHEAD = 2  # tasks waiting for each CPU: none idles, and a killed driver leaves few behind


def connect(num_cpus: float = 1.0) -> None:
    """Join the cluster, or start a local Ray with as many logical CPUs as there are cores (or a task takes): more tasks
    at once would only take more memory."""
    ray_cluster.connect(max(os.cpu_count() or 1, math.ceil(num_cpus)), spare=0)


def build(plan: BuildPlan, num_cpus: float = 1.0, num_gpus: float = 0.0, quiet: bool = False) -> BuildSummary:
    """Build the shards of a claimed plan that are not there yet, each in a Ray task, and finish the data set."""
    reports = {task.name: report for task in plan.tasks if (report := load_report(task)) is not None}
    resumed = len(reports)
    todo = [task for task in plan.tasks if task.name not in reports]
    total = sum(len(task.clips) for task in plan.tasks)
    progress = ClipProgress(total, sum(report.clips_in for report in reports.values()), quiet)
    done: dict[str, int] = {}
    if todo:
        remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, num_returns="streaming", max_retries=3)(_build_task)
        for shard, message in _run(remote, todo, num_cpus):
            if isinstance(message, ShardReport):
                reports[shard] = message
                done[shard] = message.done
            else:
                done[shard] = max(message, done.get(shard, 0))  # a task that was tried again begins anew
            progress.show(sum(done.values()))
    progress.show(sum(done.values()), last=True)
    return finish(plan, [reports[task.name] for task in plan.tasks], resumed)


def _build_task(task: ShardTask) -> Iterator[int | ShardReport]:
    """In a worker: the number of clips done so far, about once a second, and the report at the end."""
    done: list[int] = []
    messages: list[int] = []
    # A generator can't yield from within the callback, so the shard is built on a thread and this one tells of it.
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
    """(shard, what its task tells) until all have told of their end. Tasks are submitted as the cluster has CPUs for
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


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m ray_jobs.build_shards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    layouts = "\n".join(f"  {name:<10} {layout}" for name, (_, _, layout) in ADAPTERS.items())
    recognisers = "\n".join(f"  {name:<13} {what}" for name, (_, what) in BACKENDS.items())
    parser.epilog = f"adapters:\n{layouts}\n\nrecognisers:\n{recognisers}"
    add = parser.add_argument
    add("--adapter", required=True, metavar="NAME", help=f"how the set is laid out: {', '.join(ADAPTERS)}")
    add("--source", required=True, type=Path, metavar="FOLDER", help="the data set")
    add("--out", required=True, type=Path, metavar="FOLDER", help="where shards go; seen by all nodes")
    add("--allow-incomplete", action="store_true", help="go on where clips of the set are missing")
    add("--overwrite", action="store_true", help="replace another build in --out")
    add("--table", type=Path, metavar="FILE", help="folder: CSV, TSV, JSONL or Parquet, a row for each clip")
    add("--field", action="append", default=[], metavar="NAME=COLUMN", help="folder: name of a column in the table")
    add("--label", action="append", default=[], metavar="NAME[=COLUMN]:KIND[:CLASS,...]", help="folder: a label")
    add("--encoding", metavar="NAME",
        help="folder: of a table or transcripts that are not UTF-8, such as cp1252 (default: utf-8)")  # fmt: skip
    add("--unpack", type=Path, metavar="FOLDER", help="webdataset: where the videos are unpacked; seen by all nodes")
    add("--folds", type=Path, metavar="FILE", help="mosei: official folds (.json, or the SDK's .py)")
    add("--clips-per-shard", type=int, metavar="N", help="default: 8 to 256, by the number of clips")
    add("--shuffle-seed", type=int, default=0, metavar="N", help="of the order of clips over all shards (default: 0)")
    add("--sound", default="flac", help="flac (default) or wav")
    add("--audio-rate", default="16000", metavar="HZ", help="sample rate of the sound, or `source` (default: 16000)")
    add("--audio-length", default=BuildOptions.audio_length, metavar="|".join(AUDIO_LENGTHS),
        help="sound shorter or longer than the picture: "
        + "; ".join(f"{name}: {what}" for name, what in AUDIO_LENGTHS.items()) + " (default: %(default)s)")  # fmt: skip
    add("--audio-gap-seconds", type=float, default=Limits.audio_gap_seconds, metavar="SECONDS",
        help="refuse: by how much they may differ (default: %(default)g)")  # fmt: skip
    add("--audio-gap-share", type=float, default=Limits.audio_gap_share, metavar="SHARE",
        help="refuse: and further by this share of the picture's length (default: %(default)g)")  # fmt: skip
    add("--faces", default="keep", help=f"clips without a face: {', '.join(FACES)} (off: look for none; default: keep)")
    add("--transcribe", metavar="NAME", help=f"recogniser for clips without a transcript: {', '.join(BACKENDS)}")
    add("--speech-model", metavar="NAME|FOLDER", help="model of the recogniser")
    add("--grammar", metavar="grid|FILE", help="pocketsphinx: only sentences of this JSGF grammar")
    add("--max-seconds", type=float, default=Limits.max_seconds, help="longest clip (default: %(default)g)")
    add(
        "--max-megapixels", type=float, default=Limits.max_pixels / 1e6, help="largest picture (default: %(default).1f)"
    )
    add("--timeout", type=float, default=BuildOptions.timeout, metavar="SECONDS", help="for one clip (default: 300)")
    add("--cpus", type=float, default=1.0, help="CPUs of a task (default: 1)")
    add("--gpus", type=float, default=0.0, help="GPUs of a task, for the recogniser (default: 0)")
    add("--quiet", action="store_true", help="no progress lines")
    return parser


def plan_of(args: argparse.Namespace) -> BuildPlan:
    """Read the set and plan the build; prints what is missing or left out. ValueError for wrong input."""
    refuse_url("--source", args.source, LOCAL_SOURCE)
    refuse_url("--table", args.table, LOCAL_SOURCE)
    refuse_url("--out", args.out, LOCAL_RESULT)
    options = BuildOptions(
        clips_per_shard=args.clips_per_shard,
        shuffle_seed=args.shuffle_seed,
        sound=args.sound,
        audio_rate=None if args.audio_rate == "source" else _whole("--audio-rate", args.audio_rate),
        audio_length=args.audio_length,
        faces=args.faces,
        recogniser=args.transcribe,
        speech_model=args.speech_model,
        grammar=args.grammar,
        device="cuda" if args.gpus else "cpu",
        timeout=args.timeout,
        limits=Limits(
            max_seconds=args.max_seconds,
            max_pixels=int(args.max_megapixels * 1e6),
            audio_gap_seconds=args.audio_gap_seconds,
            audio_gap_share=args.audio_gap_share,
        ),
    )
    if options.recogniser is not None:
        create_recogniser(options.recogniser, options.speech_model, options.grammar)  # said now, not in every task
    clips = read_clips(
        args.adapter,
        args.source,
        args.allow_incomplete,
        table=args.table,
        fields=dict(split_assignment("--field", text) for text in args.field),
        labels=tuple(LabelSpec.parse(text) for text in args.label),
        folds=args.folds,
        encoding=args.encoding,
        unpack=args.unpack,
    )
    for line in describe_clips(clips):
        print(line)
    for doubt in doubt_clips(clips):
        print(f"warning: {doubt}", flush=True)
    return BuildPlan.make(clips, args.out.absolute(), options)


def _whole(option: str, text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{option} {text!r}: expected a whole number, or `source`")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit status."""
    args = arguments().parse_args(argv)
    try:
        plan = plan_of(args)
        plan.claim(args.overwrite)
    except (ValueError, OSError) as error:
        print(f"python -m ray_jobs.build_shards: {error}", file=sys.stderr)
        return 2
    connect(args.cpus)
    summary = build(plan, args.cpus, args.gpus, args.quiet)
    print("\n".join(summary.lines(plan.out)))
    return summary.exit_status


if __name__ == "__main__":
    sys.exit(main())
