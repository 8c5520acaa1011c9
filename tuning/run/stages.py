"""What `run` does, stage by stage: each is a job that can be run alone, and is passed over where it is done."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from conclugen import presets
from conclugen.common import commands, machine, screen
from conclugen.common.ending import resumable
from conclugen.common.locks import folder_held
from conclugen.common.options import GOOD, PARTIAL, save
from conclugen.common.paths import absolute
from conclugen.common.reading import read_mapping
from conclugen.encoders import resolve
from conclugen.evaluation.config import ComparisonConfig
from conclugen.tasks import registry
from ray_jobs import evaluation, figure_style, ray_cluster
from ray_jobs.embed import EmbedJob
from ray_jobs.embedding import embed
from ray_jobs.evaluate import EvaluateJob, evaluate
from ray_jobs.extraction.extract import choices_of
from ray_jobs.pretrain import pretrain
from ray_jobs.provenance import stamp_of
from ray_jobs.run_config import DEFAULT_OUTPUT, GPU_PROFILE, DataConfig, PretrainJob, RunConfig, ShardsConfig
from ray_jobs.run_folder import CHOSEN, DATA
from shards import Manifest, View
from shards.packing.labels import LabelSpec
from shards.tools.check import kind_of
from tuning.run import data, found, page, sizes
from tuning.run.done import Stages
from tuning.run.job import RunJob

_HEALTH_CHECKS, _REPORTS = 6, 20  # of a pretraining


def run(job: RunJob) -> int:
    """Do what is left to do; returns the exit status."""
    RunConfig(name=job.name, output=job.output)  # says what is wrong with them
    for text in job.label:
        LabelSpec.parse(text)
    kind = kind_of(absolute(job.source, "source"))
    with folder_held(job.folder, "a run is being made here", "another --run", field="--output", file=".making.lock"):
        (job.folder / DATA).mkdir(exist_ok=True)
        try:
            with resumable(Stages(job.folder).told), screen.warnings_heard() as heard:
                stages = Stages(job.folder, heard=heard)
                try:
                    return _run(job, kind, stages)
                finally:
                    if any((job.folder / DATA).iterdir()):  # else the source was refused, and nothing is left of it
                        stages.note()
        finally:
            with contextlib.suppress(OSError):  # there is something in it, unless the source was refused
                (job.folder / DATA).rmdir()


def _run(job: RunJob, kind: str, stages: Stages) -> int:
    if job.overwrite:
        stages.forget()
    stages.begin(f"data: {job.source} ({kind}) to feature shards with views, in {job.folder / DATA}", "data")
    if kind in ("clips", "shards"):
        job = _with_ray(job)
    manifest, whole = data.feature_shards(job, stages)
    stages.part("views")
    if View.names(manifest):
        stages.again()  # of those that an earlier start made
    views, lines = data.views_of(job, manifest)
    print("\n".join(lines), flush=True)

    rows = View.open(manifest, views.train).rows
    chosen = sizes.sizes(rows, job.gpu, batch=job.batch, representation=job.representation)
    present = data.present(manifest, views.train)
    learned, rare = sizes.modalities(present, rows)
    if job.modalities is not None:
        learned, rare = list(job.modalities), {}
    if not learned:
        raise ValueError(f"source: no modality of {job.source} has enough of {rows} rows: {present}")
    fixed = job.chosen(chosen, tuple(learned))
    save(fixed, job.folder / CHOSEN)
    given = [name for name in ("batch", "representation", "epochs", "modalities") if getattr(job, name) is not None]
    print(
        f"chosen from {rows} rows to learn from: modalities {', '.join(learned)}; batch {chosen.batch}, representation "
        f"{chosen.representation}, {fixed.epochs} epochs" + (f" (given: {', '.join(given)})" if given else "")
    )
    for name, count in rare.items():
        print(f"note: {count} of {rows} rows have {name}, which is left out; --modalities names it all the same")
    again = commands.typed(["run", "--config", str(job.folder / CHOSEN)])
    print(f"written to {job.folder / CHOSEN}; repeated by: {again}")

    stages.begin(
        f"pretraining without labels: {fixed.preset}, recipe {fixed.recipe}, {fixed.epochs} epochs", "pretraining"
    )
    stages.again()  # it continues where an earlier start ended
    pretrained = pretrain(pretraining(fixed, chosen, manifest, views))
    model = str(read_mapping(pretrained.model / "config.json")["digest"])

    verdicts: dict[str, Path] = {}
    failed: dict[str, str] = {}
    labels = list(dict.fromkeys(LabelSpec.parse(text).name for text in job.label))
    if views.test is None and labels:
        failed = dict.fromkeys(
            labels, f"{manifest.rows} rows are too few to judge by, at least {sizes.FEWEST_ROWS} are needed"
        )
        print("\n".join(f"warning: label {label} is not evaluated: {why}" for label, why in failed.items()), flush=True)
    for label in labels if views.test is not None else ():
        stages.begin(f"evaluation: label {label} on rows that pretraining never saw", f"evaluation of {label}")
        asked = _evaluation(fixed, manifest, views, label, rows)
        inputs = {"model": model, "job": dataclasses.asdict(asked), "data": manifest.digest}
        place = evaluation.place_of(pretrained.folder, evaluation.series_of(pretrained.folder, asked))
        if stages.done(f"evaluate {label}", inputs) and (place / "scores.json").is_file():
            stages.again()
            print(f"evaluated already: {place}")
        else:
            try:
                place = evaluate(asked).folder
            except ValueError as error:
                failed[label] = str(error)
                print(f"warning: not evaluated: {error}", flush=True)
                continue
            stages.end(f"evaluate {label}", inputs)
        verdicts[label] = place
        print(found.verdict_of(place), flush=True)

    stages.begin("embeddings of every row", "embeddings")
    vectors = job.folder / "embeddings.npz"
    inputs = {"model": model, "data": manifest.digest, "labels": sorted(verdicts)}
    if stages.done("embed", inputs) and vectors.is_file():
        stages.again()
    else:
        probe = next(iter(verdicts), None)
        places = job.folder / "embeddings"
        status = embed.run(
            EmbedJob(
                run=job.name,
                data=manifest.folder,
                output=Path(job.output),
                embeddings=places,
                label=probe,
                evaluation=None if probe is None else verdicts[probe].name,
                overwrite=True,
            )
        )
        whole = whole and not status
        found.gather(manifest, places, vectors)
        stages.end("embed", inputs)

    stages.begin("what is in them: clusters, neighbours, retrieval", "what is in them")
    with figure_style.stamped(stamp_of(manifest.info)):
        findings = found.examine(vectors, manifest, pretrained.folder, views, fixed)
    print("\n".join(findings.lines), flush=True)
    report = page.write(fixed, manifest, pretrained, findings, verdicts, failed, stages.warned())
    print(
        f"\nreport      {report}\nembeddings  {vectors}   (numpy: keys, vectors, groups, labels)"
        f"\nfigures     {job.folder / 'figures'}\nmodel       {pretrained.model}"
        f"\nconfigured  {job.folder / CHOSEN}\nnext        {_next(fixed, manifest, kind, list(verdicts))}"
    )
    return GOOD if whole and not failed else PARTIAL


def _with_ray(job: RunJob) -> RunJob:
    """The job beside a Ray that holds all its stages. A local Ray has more logical CPUs than there are cores, so that
    an actor of each encoder fits in; tasks that decode then take several, or there would be more of them than cores."""
    encoders = len(resolve(list(job.encoders)))
    choices_of(job.encoders, job)  # wrong ones are refused before any work
    ray_cluster.connect(max(encoders + 1, job.workers, machine.cores()))
    return job


def _fields(task: str, sized: dict[str, int]) -> dict[str, int]:
    """Those of the sizes that the task has a field for."""
    own = {each.name for each in dataclasses.fields(registry.get(task).Config)}
    return {name: value for name, value in sized.items() if name in own}


def _served(task: str, recipe: str, modalities: tuple[str, ...]) -> bool:
    """Whether these modalities serve it: one alone can't be compared with another."""
    kind = registry.get(task)
    try:
        kind.inputs(kind.adapted(kind.recipe(recipe), modalities), modalities)
    except ValueError:
        return False
    return True


def pretraining(job: RunJob, chosen: sizes.Sizes, manifest: Manifest, views: data.Views) -> PretrainJob:
    """The pretraining of what was chosen."""
    assert job.modalities is not None and job.epochs is not None
    kept = presets.PRESETS[presets.ALIASES.get(job.preset, job.preset)][1] if job.preset in presets.PRESETS else ()
    sized = {"clusters": chosen.clusters, "queue_batches": chosen.queue}
    tasks: dict[str, Any] = {name: _fields(name, sized) for name in kept if _served(name, job.recipe, job.modalities)}
    if tasks:
        tasks |= {name: None for name in kept if name not in tasks}
    config = presets.build(
        job.preset,
        job.recipe,
        modalities=job.modalities,
        global_batch=chosen.batch,
        epochs=job.epochs,
        seed=job.seed,
        model={
            "representation_dim": chosen.representation,
            "projection_dim": chosen.projection,
            "reconstruction_hidden_dim": chosen.hidden,
        },
        tasks=tasks,
        **({name.removeprefix("pretrain."): value for name, value in GPU_PROFILE.items()} if job.gpu else {}),
    )
    steps = View.open(manifest, views.train).rows // chosen.batch * job.epochs
    names = [LabelSpec.parse(text).name for text in job.label]
    voted = next((each.name for each in manifest.labels if each.name in names and each.kind == "class"), None)
    return PretrainJob(
        pretrain=config,
        data=DataConfig(
            folder=manifest.folder,
            view=views.train,
            validation_view=views.valid,
            label=voted if views.valid is not None else None,
        ),
        run=RunConfig(
            name=job.name,
            output=job.output,
            workers=job.workers,
            gpu=job.gpu,
            tracking_uri=job.tracking_uri,
            checkpoint_every=max(1, steps // _HEALTH_CHECKS),
            report_every=max(1, steps // _REPORTS),
        ),
    )


def _evaluation(job: RunJob, manifest: Manifest, views: data.Views, label: str, rows: int) -> EvaluateJob:
    assert views.test is not None
    classes = max(1, len(manifest.schema.label(label).classes))
    return EvaluateJob(
        run=job.name,
        label=label,
        data=ShardsConfig(folder=manifest.folder, view=views.train, validation_view=views.valid),
        test_view=views.test,
        comparison=ComparisonConfig(methods=("probe",), fractions=sizes.fractions(rows, classes)),
        output=job.output,
        tracking_uri=job.tracking_uri,
    )


def _next(job: RunJob, manifest: Manifest, kind: str, labels: list[str]) -> str:
    """The command that one would type now."""
    where = [] if job.output == DEFAULT_OUTPUT else ["--output", job.output]
    data = ["--data", str(manifest.folder)]
    if labels:
        return commands.typed(["sweep", *data, "--label", labels[0], "--run", f"{job.name}-search", *where])
    if kind == "clips":
        return commands.typed(["embed", "NEW.mp4", "--run", job.name, *where])
    return commands.typed(["embed", *data, "--run", job.name, *where])
