"""Job: clip shards to feature shards through frozen encoders. `python -m ray_jobs.extract_features --help`.

Ray Data decodes clips in tasks on CPUs and pushes them through one pool of actors for each encoder. Frames travel as
bytes, in blocks of bounded size; Ray Data holds back what the object store has no room for. Killed, the job goes on
where it was, shard by shard.

Exit status: 0 all clips have features; 3 finished, and some clips are in quarantine.jsonl, by name with the reason;
2 wrong input, nothing was done; 1 the job itself failed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from conclugen import backbones
from ray_jobs import ray_cluster, ray_loggers
from ray_jobs.extraction.clip_features import Decoder, EncoderStage, stages, unique
from ray_jobs.extraction.feature_shards import ExtractionSummary, ShardCollector, finish
from ray_jobs.extraction.plan import Augmentation, Decoding, EncoderChoice, Extraction
from shards.access import LOCAL_RESULT, AccessError, refuse_url
from shards.clips.clip_progress import ClipProgress
from shards.clips.reader import ClipManifest, ClipReader
from shards.foreign.mapping import split_assignment


@dataclass(frozen=True)
class Resources:
    """What the cluster gives. gpus: encoder -> share of a GPU for each of its actors (0: a CPU); actors: encoder -> the
    most of them; cpus: of each decoding task and each actor; clips_per_task: decoded by one task; block_bytes: of what
    travels between stages at once (a single longer clip is a block of its own)."""

    gpus: Mapping[str, float] = field(default_factory=dict)
    actors: Mapping[str, int] = field(default_factory=dict)
    cpus: float = 1.0
    clips_per_task: int = 8
    block_bytes: int = 32 << 20

    def __post_init__(self) -> None:
        if not self.cpus > 0 or self.clips_per_task < 1 or self.block_bytes < 1:
            raise ValueError("--cpus, --clips-per-task and --block-mib take positive numbers")
        if any(share < 0 for share in self.gpus.values()) or any(count < 1 for count in self.actors.values()):
            raise ValueError("--gpus takes shares of 0 and more, --actors counts of 1 and more")


def extract(plan: Extraction, resources: Resources, quiet: bool = False) -> ExtractionSummary:
    """Make the feature shards of a claimed extraction that are not there yet, and finish the data set."""
    began = time.monotonic()
    collector = ShardCollector(plan)
    already = sum(report.clips_in for report in collector.reports.values())
    progress, done = ClipProgress(plan.clips.rows, already, quiet), 0
    if collector.todo:
        for table in feature_tables(plan, collector.todo, resources):
            done += collector.add(table)
            progress.show(done)
    progress.show(done, last=True)
    return finish(plan, collector, began)


def feature_tables(plan: Extraction, shards: Sequence[int], resources: Resources) -> Iterator[pa.Table]:
    """Rows of the given shards as Ray Data finishes them, in order: see `ray_jobs.extraction.clip_features`."""
    dataset = feature_dataset(plan, shards, resources)
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def feature_dataset(plan: Extraction, shards: Sequence[int], resources: Resources) -> Any:
    """The lazy Ray dataset of the given shards' rows."""
    size = resources.clips_per_task
    ranges = [
        (shard, start, min(start + size, int(plan.clips.counts[shard])))
        for shard in shards
        for start in range(0, int(plan.clips.counts[shard]), size)
    ]
    takes = [info.takes for info in plan.infos]
    decode = _DecodeRanges(Decoder(ClipReader(plan.clips), unique(takes), plan.decoding), ranges)
    devices = {name: "cuda" for name, share in resources.gpus.items() if share}
    with data_settings(resources):
        dataset = ray.data.range(len(ranges), override_num_blocks=len(ranges))
        dataset = dataset.map_batches(decode, batch_size=None, batch_format="numpy", num_cpus=resources.cpus)
        for stage in stages(plan.choices, takes, plan.augmentation, plan.dtype, devices, plan.sequences):
            name = stage.choice.name
            dataset = dataset.map_batches(
                _EncoderActor,
                fn_constructor_args=(stage,),
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=resources.actors.get(name, 1)),
                num_cpus=resources.cpus,
                num_gpus=resources.gpus.get(name) or None,
                zero_copy_batch=True,
                # Selects nothing; but stages whose arguments differ are not fused, and decoding must not run within the
                # first encoder's actors.
                label_selector={},
            )
    return dataset


@contextmanager
def data_settings(resources: Resources) -> Iterator[None]:
    """Ray Data's settings for datasets that are made within; those of this process otherwise stay what they are."""
    context = ray.data.DataContext.get_current()
    before = context.copy()
    context.target_max_block_size = resources.block_bytes
    # Shards are finished in order: a killed job leaves few begun, and this process holds the rows of few.
    context.execution_options.preserve_order = True
    context.enable_progress_bars = context.print_on_execution_start = False
    ray_loggers.quieten(ray_loggers.DATA)
    try:
        yield
    finally:
        ray.data.DataContext._set_current(before)


@dataclass(frozen=True)
class _DecodeRanges:
    """In a task: numbers of ranges -> tables of one clip each, which Ray gathers into blocks."""

    decoder: Decoder
    ranges: list[tuple[int, int, int]]

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        for number in batch["id"]:
            yield from self.decoder.tables(*self.ranges[int(number)])


class _EncoderActor:
    """In an actor: holds one encoder, and sends every block through it."""

    def __init__(self, stage: EncoderStage) -> None:
        self._stage = stage
        assert stage.encoder is not None  # the weights are loaded here, not while the first block waits

    def __call__(self, table: pa.Table) -> pa.Table:
        return self._stage(table)


def encoder_arguments(add: Any) -> None:
    """Options that choose encoders, shared with `ray_jobs.embed`."""
    add("--weights", action="append", default=[], metavar="ENCODER=FILE", help="local copy of an encoder's weights")
    add("--mirror", metavar="FOLDER|URL", help="where published weight files are found under their own names")
    add("--gpus", action="append", default=[], metavar="[ENCODER=]SHARE", help="GPU share of each actor (default: 0)")
    add("--actors", action="append", default=[], metavar="[ENCODER=]N", help="most actors of an encoder (default: 1)")
    add("--cpus", type=float, default=1.0, help="CPUs of each task and actor (default: 1)")
    add("--clips-per-task", type=int, default=8, metavar="N", help="clips decoded by one task (default: 8)")
    add("--block-mib", type=float, default=32.0, metavar="N", help="size of what travels at once (default: 32)")


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m ray_jobs.extract_features", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sets = "\n".join(f"  {name:<19} {', '.join(members)}" for name, members in backbones.SETS.items())
    known = "\n".join(f"  {name:<19} {what}" for name, (_, _, what) in backbones.ENCODERS.items())
    parser.epilog = f"sets of encoders:\n{sets}\n\nencoders:\n{known}"
    add = parser.add_argument
    add("--clips", required=True, metavar="FOLDER|URL", help="clip shards, as ray_jobs.build_shards makes them")
    add("--out", required=True, type=Path, metavar="FOLDER", help="where feature shards go")
    add("--encoders", nargs="+", default=["offline"], metavar="NAME", help="encoders or sets (default: offline)")
    add("--overwrite", action="store_true", help="replace another extraction in --out")
    add("--crop", default="follow", help="follow the face (default), union of its boxes (as published), or none")
    add("--whole-frames", action="store_true", help="whole frames where a clip's face is not seen (default: left out)")
    add("--low-confidence", action="store_true", help="use transcripts that a recogniser was unsure of")
    add("--views", type=int, default=0, metavar="K", help="augmented views of every clip beside the clean one")
    add("--view-strength", default="mild", help="mild (default) or strong")
    add("--seed", type=int, default=127, help="of the augmented views (default: 127)")
    add("--dtype", default="float32", help="of the feature shards: float32 (default) or float16")
    add("--sequences", action="store_true", help="keep vectors before their mean over time: OUT/sequences/SHARD.tar")
    add("--quiet", action="store_true", help="no progress lines")
    encoder_arguments(add)
    return parser


def choices_of(names: Sequence[str], weights: Sequence[str], mirror: str | None) -> tuple[EncoderChoice, ...]:
    """Encoders as the command line names them. ValueError for an unknown one, or weights of one that is not used."""
    resolved = backbones.resolve(names)
    given = dict(split_assignment("--weights", text) for text in weights)
    for name in given:
        if name not in resolved:
            raise ValueError(f"--weights {name}=...: that encoder is not among {', '.join(resolved)}")
    return tuple(EncoderChoice(name, given.get(name), mirror) for name in resolved)


def resources_of(args: argparse.Namespace, names: Sequence[str]) -> Resources:
    """Resources as the command line names them; a number without a name is every encoder's."""
    return Resources(
        _per_encoder("--gpus", args.gpus, names, float),
        _per_encoder("--actors", args.actors, names, int),
        args.cpus,
        args.clips_per_task,
        int(args.block_mib * 2**20),
    )


def _per_encoder(option: str, texts: Sequence[str], names: Sequence[str], kind: type[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        if equals and name not in names:
            raise ValueError(f"{option} {text}: that encoder is not among {', '.join(names)}")
        try:
            found.update(dict.fromkeys([name] if equals else names, kind(value)))
        except ValueError:
            raise ValueError(f"{option} {text}: expected a number, or ENCODER=number") from None
    return found


def plan_of(args: argparse.Namespace) -> Extraction:
    """ValueError or OSError for wrong input, weights that can't be had among it."""
    refuse_url("--out", args.out, LOCAL_RESULT)
    out = args.out.expanduser().absolute()
    clips = ClipManifest.open(args.clips)
    if clips.is_local and Path(clips.folder) == out:
        raise ValueError(f"--out {out} is the folder of the clips; choose another one")
    return Extraction.make(
        clips,
        out,
        choices_of(args.encoders, args.weights, args.mirror),
        decoding=Decoding(args.crop, args.low_confidence, args.whole_frames),
        augmentation=Augmentation(args.views, args.view_strength, args.seed),
        dtype=args.dtype,
        sequences=args.sequences,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit status."""
    args = arguments().parse_args(argv)
    try:
        plan = plan_of(args)
        resources = resources_of(args, [choice.name for choice in plan.choices])
        plan.claim(args.overwrite)
    except (ValueError, OSError) as error:
        print(f"python -m ray_jobs.extract_features: {error}", file=sys.stderr)
        return 2
    ray_cluster.connect(len(plan.choices))
    try:
        summary = extract(plan, resources, args.quiet)
    except AccessError as error:  # also as Ray hands it on from a task
        print(f"python -m ray_jobs.extract_features: {str(error).splitlines()[-1]}", file=sys.stderr)
        return 1
    print("\n".join(summary.lines(plan.out)))
    return summary.exit_status


if __name__ == "__main__":
    sys.exit(main())
