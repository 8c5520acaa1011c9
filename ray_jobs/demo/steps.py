"""The demo's steps, one after another: each is a job that can be run alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray

from conclugen import presets
from conclugen.common import machine
from conclugen.common.screen import ClipProgress
from conclugen.encoders import registry
from conclugen.evaluation.config import ComparisonConfig
from ray_jobs import ray_cluster
from ray_jobs.building import build
from ray_jobs.embedding.clips import Embedded, Windows, embed_files
from ray_jobs.embedding.model import RunModel
from ray_jobs.evaluate import EvaluateJob, evaluate
from ray_jobs.evaluation import EvaluateResult
from ray_jobs.extraction.extract import Resources, extract
from ray_jobs.extraction.feature_shards import ExtractionSummary
from ray_jobs.extraction.plan import EncoderChoice, Extraction
from ray_jobs.pretrain import pretrain
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig, ShardsConfig
from ray_jobs.training.pretraining import PretrainResult
from shards import Manifest
from shards.adapters import read_clips
from shards.clips.plan import BuildOptions, BuildPlan
from shards.clips.reader import ClipManifest
from shards.clips.sheet import face_sheet
from shards.clips.summary import BuildSummary
from shards.corpus.emotions import EMOTIONS
from shards.corpus.writing import TABLE_NAME, ClipPlan, ClipRow, CorpusConfig, write_clip, write_corpus
from shards.media.limits import MediaError
from shards.packing.labels import LabelSpec
from shards.planning.split import make_views

WORKERS = 2
LABEL, RUN = "emotion", "demo"
SHARES = {"train": 0.6, "valid": 0.15, "test": 0.25}
FRACTIONS = (0.1, 1.0)
# Each shard of clips is one task with a process of its own for unsafe files: few shards for few clips.
_CLIPS_PER_SHARD = 60
_CLIPS_PER_TASK = 8
# A core each for two tasks: more at a time gain nothing on the two cores that the demo reckons with.
_CPUS_OF_A_BUILD = 4.0


@dataclass(frozen=True)
class DemoConfig:
    """output: folder of all that is made; corpus: what is rendered; epochs, global_batch: of pretraining."""

    output: Path
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    epochs: int = 60
    global_batch: int = 64


@dataclass(frozen=True)
class NewClip:
    """A clip of a speaker that is in no part of the corpus, and what the model makes of it."""

    path: Path
    row: ClipRow
    embedded: Embedded
    classes: tuple[str, ...]


@dataclass(frozen=True)
class DemoResult:
    """What each step gave; seconds: of each, in order."""

    config: DemoConfig
    table: Path
    built: BuildSummary
    extracted: ExtractionSummary
    views: tuple[str, ...]
    sheet: Path
    pretrained: PretrainResult
    evaluated: EvaluateResult
    new_clip: NewClip
    seconds: dict[str, float]


def run(config: DemoConfig) -> DemoResult:
    """Walk the whole path below `config.output`, which is empty. ValueError, OSError or WeightsError for what keeps a
    step from starting."""
    steps = _Steps()
    output = config.output
    with steps.step("start", "starting Ray, loading the encoders"):
        choices = tuple(EncoderChoice(name) for name in registry.resolve(["offline"]))
        for choice in choices:
            choice.create("cpu")  # what is not installed is said before any work is done
        ray_cluster.connect(len(choices) + 1)

    count = len(config.corpus.clips)
    with steps.step("render", f"rendering {count} clips of {config.corpus.speakers} talking faces"):
        write_corpus(output / "video", config.corpus, _render_in_tasks)
        table = output / "video" / TABLE_NAME

    with steps.step("shards", "clips to shards: checked, cut, faces found, sound as FLAC"):
        labels = (
            LabelSpec(LABEL, (LABEL,), "class", tuple(EMOTIONS)),
            LabelSpec("valence", ("valence",), "continuous"),
        )
        fields = {"group": "speaker", "text": "transcript"}
        clips = read_clips("folder", output / "video", table=table, fields=fields, labels=labels)
        plan = BuildPlan.make(clips, output / "clips", BuildOptions(clips_per_shard=_CLIPS_PER_SHARD))
        plan.acquire()
        built = build(plan, _CPUS_OF_A_BUILD)
        print("\n".join(built.lines(plan.out)), flush=True)
        sheet = output / "faces.png"
        face_sheet(ClipManifest.open(output / "clips"), LABEL, sheet)

    with steps.step("features", f"frozen encoders: {', '.join(choice.name for choice in choices)}"):
        extraction = Extraction.make(ClipManifest.open(output / "clips"), output / "features", choices)
        extraction.acquire()
        extracted = extract(extraction, Resources(clips_per_task=16))
        print("\n".join(extracted.lines(extraction.out)), flush=True)
        views, lines = make_views(Manifest.open(output / "features"), "group", SHARES, seed=config.corpus.seed)
        for view in views:
            view.save()
        print("\n".join(lines), flush=True)

    with steps.step("pretrain", f"pretraining without labels: preset conclugen, recipe improved, {WORKERS} workers"):
        pretrained = pretrain(_pretraining(config))

    with steps.step("evaluate", "evaluation on speakers that pretraining never saw"):
        evaluated = evaluate(_evaluation(config))

    with steps.step("embed", "a clip of a new speaker through encoders and model"):
        new_clip = _embed_new_clip(config, choices, pretrained)
    return DemoResult(
        config, table, built, extracted, tuple(lines), sheet, pretrained, evaluated, new_clip, steps.seconds
    )


class _Steps:
    """Tells what is done, and measures it."""

    _COUNT = 7

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str, what: str) -> Iterator[None]:
        print(f"\n{len(self.seconds) + 1}/{self._COUNT}  {what}", flush=True)
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began


def _pretraining(config: DemoConfig) -> PretrainJob:
    sizes = {"representation_dim": 256, "projection_dim": 128, "reconstruction_hidden_dim": 256}
    return PretrainJob(
        pretrain=presets.build("conclugen", global_batch=config.global_batch, epochs=config.epochs, model=sizes),
        data=DataConfig(folder=str(config.output / "features"), label=LABEL),
        run=RunConfig(
            name=RUN, output=str(config.output / "runs"), workers=WORKERS, checkpoint_every=100, report_every=25
        ),
    )


def _evaluation(config: DemoConfig) -> EvaluateJob:
    """Of the shares of labels that the summary shows, and no others."""
    return EvaluateJob(
        run=RUN,
        label=LABEL,
        data=ShardsConfig(folder=str(config.output / "features")),
        output=str(config.output / "runs"),
        comparison=ComparisonConfig(fractions=FRACTIONS),
    )


def _embed_new_clip(config: DemoConfig, choices: tuple[EncoderChoice, ...], pretrained: PretrainResult) -> NewClip:
    """Another seed draws another speaker; the emotion is drawn as well, so that nobody picks a lucky one."""
    seed = config.corpus.seed + 1
    emotion = str(np.random.default_rng(seed).choice(list(EMOTIONS)))
    folder = config.output / "new_clip"
    others = CorpusConfig(speakers=1, takes=1, seed=seed, silent=0, without_transcript=0, without_valence=0)
    rows = write_corpus(folder, others)
    row = next(row for row in rows if row.emotion == emotion)
    path = folder / row.path
    model = RunModel.open(pretrained.folder, LABEL)
    used = [choice.create("cpu") for choice in choices if choice.name in model.encoder_names]
    (embedded,) = embed_files(model, used, [str(path)], "concat", Windows(), [row.transcript])
    if not isinstance(embedded, Embedded):
        _, error = embedded
        assert isinstance(error, MediaError)
        raise error
    return NewClip(path, row, embedded, () if model.probe is None else model.probe.classes)


def _write_some(folder: Path, plans: Sequence[ClipPlan]) -> list[ClipRow]:
    return [write_clip(folder, plan) for plan in plans]


def _render_in_tasks(folder: Path, plans: Sequence[ClipPlan]) -> Iterator[ClipRow]:
    """Write the planned clips below a folder that all nodes see, a task for each core at a time; rows as they come."""
    remote: Any = ray.remote(num_cpus=1)(_write_some)
    waiting = [plans[start : start + _CLIPS_PER_TASK] for start in range(0, len(plans), _CLIPS_PER_TASK)][::-1]
    running: list[Any] = []
    progress, done = ClipProgress(len(plans)), 0
    while waiting or running:
        # A local Ray is started with more CPUs than the machine has cores; more renderers than cores gain nothing.
        while waiting and len(running) < machine.cores():
            running.append(remote.remote(folder, waiting.pop()))
        ready, running = ray.wait(running, num_returns=1)
        for reference in ready:
            rows = ray.get(reference)
            done += len(rows)
            yield from rows
        progress.show(done, last=done == len(plans))
