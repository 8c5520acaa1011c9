"""Clip shards to feature shards through frozen encoders: what `ray_jobs.extract_features` does.

A task decodes a clip and sends it through the encoders that run on CPUs, whose weights its process keeps for the next
one: as many processes as there are cores, one thread each, and nothing but features leaves them. Encoders on GPUs (and
those for which actors are asked) have actors of their own; what they take travels as bytes, in blocks of bounded size,
and Ray Data holds back what the object store has no room for. Killed, the job resumes where it was, shard by shard.
"""

from __future__ import annotations

import math
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import ray
import torch

from conclugen.common import machine, paths, uris
from conclugen.common.ending import resumable
from conclugen.common.locks import bytes_in, check_room, folder_held
from conclugen.common.options import JobFailedError
from conclugen.common.screen import ClipProgress, doing
from conclugen.encoders import EncoderError, registry
from conclugen.encoders.hub_models import absolute, bare, located, place_of_data
from ray_jobs import ray_cluster, ray_loggers
from ray_jobs.extraction.clip_features import Decoder, EncoderStage, stages, unique
from ray_jobs.extraction.feature_shards import ExtractionSummary, ShardCollector, finish, load_report
from ray_jobs.extraction.plan import Augmentation, Decoding, EncoderChoice, Extraction
from ray_jobs.options.extract import EncoderOptions, ExtractJob
from shards.access import LOCAL_RESULT, AccessError, refuse_url
from shards.clips.reader import ClipManifest, ClipReader
from shards.format.layout import least_bytes
from shards.output_folder import OwnershipLostError
from shards.tools.check_stored import warn_of_stored

_KEPT = 4  # things that a process of tasks keeps
Number = TypeVar("Number", int, float)
T = TypeVar("T")


@dataclass(frozen=True)
class Resources:
    """What the cluster gives. gpus: encoder -> share of a GPU for each of its actors (0: a CPU); actors: encoder -> the
    most of them (1 of one on a GPU; no others have any); cpus: of each task and each actor; clips_per_task: clips of
    one task; block_bytes: of what travels between stages at once (a single longer clip is a block of its own)."""

    gpus: Mapping[str, float] = field(default_factory=dict)
    actors: Mapping[str, int] = field(default_factory=dict)
    cpus: float = 1.0
    clips_per_task: int = 8
    block_bytes: int = 32 << 20

    def has_actors(self, encoder: str) -> bool:
        """Whether the encoder has actors of its own, rather than run where clips are decoded."""
        return bool(self.gpus.get(encoder)) or encoder in self.actors

    @property
    def most_actors(self) -> int:
        """Of all encoders together."""
        return sum(self.actors.get(name, 1) for name in {*self.gpus, *self.actors} if self.has_actors(name))

    def __post_init__(self) -> None:
        if not self.cpus > 0 or self.clips_per_task < 1 or self.block_bytes < 1:
            raise ValueError("cpus, clips_per_task and block_mib: must be positive")
        if any(share < 0 for share in self.gpus.values()) or any(count < 1 for count in self.actors.values()):
            raise ValueError("gpus and actors: must be shares of 0 or more, and counts of 1 or more")


def extract(plan: Extraction, resources: Resources, quiet: bool = False) -> ExtractionSummary:
    """Make the feature shards of a claimed extraction that are not there yet, and finish the data set."""
    began = time.monotonic()
    collector = ShardCollector(plan)
    already = sum(report.clips_in for report in collector.reports.values())
    progress, done = ClipProgress(plan.clips.rows, already, quiet), 0
    told = resumable(
        lambda: f"{len(collector.reports)} of {len(plan.clips)} shards are done; the same command continues"
    )
    with told, doing("decoding clips and sending them through the encoders"):
        if collector.todo:
            for table in feature_tables(plan, collector.todo, resources):
                done += collector.add(table)
                progress.show(done)
        progress.show(done, last=True)
        return finish(plan, collector, began)


def connect(resources: Resources) -> None:
    """Join a cluster, or start a local Ray with logical CPUs for the actors and for tasks on all cores: each more would
    be a process that waits. Raises NoRayError."""
    each = math.ceil(resources.cpus)
    ray_cluster.connect(resources.most_actors, each, spare=max(machine.cores(), each))


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
    # Those without actors come first: what they alone take never leaves their process.
    order = sorted(range(len(plan.choices)), key=lambda i: resources.has_actors(plan.choices[i].name))
    choices, infos = [plan.choices[i] for i in order], [plan.infos[i] for i in order]
    takes = [info.takes for info in infos]
    devices = {name: "cuda" for name, share in resources.gpus.items() if share}
    encoders = stages(choices, infos, takes, plan.augmentation, plan.dtype, devices, plan.sequences)
    within = tuple(stage for stage in encoders if not resources.has_actors(stage.choice.name))
    decoder = Decoder(ClipReader(plan.clips), unique(takes), plan.decoding)
    with data_settings(resources):
        # Equal limits fuse the numbers with what is done for them; else processes of their own would count to n.
        at_once = ray_cluster.processes()
        dataset = ray.data.range(len(ranges), concurrency=at_once, override_num_blocks=len(ranges))
        dataset = dataset.map_batches(
            _EncodeRanges(decoder, ranges, within, len(within) == len(encoders), max(1, int(resources.cpus))),
            batch_size=None,
            batch_format="numpy",
            num_cpus=resources.cpus,
            compute=ray.data.TaskPoolStrategy(at_once),
        )
        for stage in encoders[len(within) :]:
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
                # first encoder's few actors.
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
class _EncodeRanges:
    """In a task: numbers of ranges -> tables of their clips, which have been through some of the encoders, or (`whole`)
    all of them. Without the inputs of others a range is one table, else each clip is one, which Ray gathers into
    blocks."""

    decoder: Decoder
    ranges: list[tuple[int, int, int]]
    encoders: tuple[EncoderStage, ...] = ()
    whole: bool = False
    threads: int = 1
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        uris.scrub_output()
        encoders = once(self.token, self._begin)
        for number in batch["id"]:
            tables = (_through(encoders, table) for table in self.decoder.tables(*self.ranges[int(number)]))
            if self.whole:
                yield pa.concat_tables(tables)
            else:
                yield from tables

    def _begin(self) -> tuple[EncoderStage, ...]:
        """The first task's stages, which come by their weights as they are used."""
        machine.return_freed_memory()
        if self.encoders:
            torch.set_num_threads(self.threads)  # of each of the processes, which are as many as there are cores
        return self.encoders


def _through(encoders: Sequence[EncoderStage], table: pa.Table) -> pa.Table:
    for encoder in encoders:
        table = encoder(table)
    return table


_once: OrderedDict[str, Any] = OrderedDict()


def once(token: str, make: Callable[[], T]) -> T:
    """What `make` gives, made once in each process and kept for the tasks that come to it later with the same token,
    which is that of one job: models, whose weights would be loaded again by every task."""
    if token not in _once:
        _once[token] = make()
        if len(_once) > _KEPT:
            _once.popitem(last=False)
    found: T = _once[token]
    return found


class _EncoderActor:
    """In an actor: holds one encoder, and sends every block through it."""

    def __init__(self, stage: EncoderStage) -> None:
        uris.scrub_output()
        self._stage = stage
        assert stage.encoder is not None  # the weights are loaded here, not while the first block waits

    def __call__(self, table: pa.Table) -> pa.Table:
        return self._stage(table)


def choices_of(
    names: Sequence[str], options: EncoderOptions, provided: Mapping[str, str] | None = None
) -> tuple[EncoderChoice, ...]:
    """Encoders by their names. provided: who had them, as data tell. ValueError for an unknown one, a plugin that does
    not serve, or weights of an encoder that is not used."""
    for module in options.plugin:
        registry.plug(module)
    resolved = registry.resolve([located(name) for name in names] if provided is None else names, provided)
    # Workers have other working folders.
    places = _named("weights", options.weights or {}, resolved)
    given = {name: absolute(place, f"weights of {name}") for name, place in places.items()}
    mirror = options.mirror
    if mirror is not None and "://" not in mirror:
        mirror = str(paths.absolute(mirror, "mirror"))
    return tuple(
        EncoderChoice(
            name,
            _of(name, given) if provided is None else place_of_data(name, _of(name, given), mirror),
            mirror,
            registry.plugin_of(name),
        )
        for name in resolved
    )


def _named(field: str, given: Mapping[str, T], names: Sequence[str]) -> dict[str, T]:
    """What is given for encoders, by their names as `choices_of` has them. ValueError for one that is not there."""
    known = {*names, *(bare(name) for name in names)}
    found = {name if name in known else located(name): value for name, value in given.items()}
    for name in found:
        if name not in known:
            raise ValueError(f"{field}: {name}: that encoder is not among {', '.join(names)}")
    return found


def _of(name: str, given: Mapping[str, T]) -> T | None:
    """What is given for an encoder, or for the model of which it is a choice (`hf-audio:NAME` of
    `hf-audio:NAME@layer=9`)."""
    return given.get(name, given.get(bare(name)))


def resources_of(options: EncoderOptions, names: Sequence[str]) -> Resources:
    """Resources of these actors; a number without a name is everyone's."""
    return Resources(
        _per_encoder("gpus", options.gpus, names),
        {} if options.actors is None else _per_encoder("actors", options.actors, names),
        options.cpus,
        options.clips_per_task,
        int(options.block_mib * 2**20),
    )


def _per_encoder(field: str, given: Number | Mapping[str, Number], names: Sequence[str]) -> dict[str, Number]:
    if not isinstance(given, Mapping):
        return dict.fromkeys(names, given)
    found = _named(field, given, names)
    return {name: value for name in names if (value := _of(name, found)) is not None}


def plan_of(job: ExtractJob) -> Extraction:
    """ValueError or OSError for wrong input, including weights that cannot be found."""
    refuse_url("output", job.output, LOCAL_RESULT)
    out = paths.absolute(job.output, "output")
    choices = choices_of(job.encoders, job)
    clips = ClipManifest.open(job.data)
    if clips.is_local and Path(clips.folder) == out:
        raise ValueError(f"output: {out} is the folder of the clips; choose another one")
    return Extraction.make(
        clips,
        out,
        choices,
        decoding=Decoding(job.crop, job.low_confidence, job.whole_frames),
        augmentation=Augmentation(job.views, job.view_strength, job.seed),
        dtype=job.dtype,
        sequences=job.sequences,
    )


def room_needed(plan: Extraction, overwrite: bool) -> int:
    """Bytes that the shards which are not done will take beside what is there; clips that will be left out count too,
    for nobody knows them yet."""
    shards = range(len(plan.clips))
    if overwrite:
        return least_bytes(plan.schema.columns, plan.clips.rows) - bytes_in(plan.out)
    left = [shard for shard in shards if load_report(plan, shard) is None]
    return least_bytes(plan.schema.columns, sum(int(plan.clips.counts[shard]) for shard in left))


def run(job: ExtractJob) -> int:
    """Run the job; returns the exit status."""
    plan = plan_of(job)
    resources = resources_of(job, [choice.name for choice in plan.choices])
    warn_of_stored(plan.clips)
    with folder_held(plan.out, "features are being extracted here", "another --output"):
        # Before `--overwrite` takes away what is there, whose room will be free.
        check_room("--output", plan.out, room_needed(plan, job.overwrite), "features of the clips that are left")
        plan.acquire(job.overwrite)
        connect(resources)
        try:
            summary = extract(plan, resources, job.quiet)
        except (AccessError, OwnershipLostError, EncoderError) as error:  # also as Ray hands it on from a task
            raise JobFailedError(str(error).splitlines()[-1]) from error
    print("\n".join(summary.lines(plan.out)))
    return summary.exit_status
