"""How jobs end that are stopped, as a table: each job x {interrupt, terminate, kill -9} x {start, middle, publication},
each followed by the same command.

    python -m tests.campaigns.endings                       # commands without Ray: minutes
    python -m tests.campaigns.endings --jobs pretrain,ablate,sweep    # these start a Ray for every cell
    python -m tests.campaigns.endings --jobs pretrain,ablate,sweep --joined --chained --results FILE   # a part

`start`: the command line is read, the work begins; `middle`: before half of the renames that an undisturbed run's main
thread makes; `publication`: before the last one; a command that renames nothing has the first alone. A cell holds the
status of the stopped job, what it says, and what the same command comes to: `same` is what an undisturbed run leaves;
`untouched`: the stopped job left nothing at all, so that the same command would be the undisturbed run. Anything else
is a fault, and the campaign ends with status 1.

`--joined`: jobs join one Ray that the campaign starts. `--chained`: one folder for the three points of a signal. The
command is stopped at its start, the same command in the middle, the same again at its publication; then it runs to its
end, and must leave what an undisturbed run leaves. A command that continues has fewer renames left, so these points are
recognised by the file that is written, not by a count. `--results`: each row is written as soon as it is known, with
the commit and the day; rows that are right are not run again. `--table` prints them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from conclugen import Pretrainer, export, presets
from conclugen.common.atomic import write_json
from conclugen.common.options import save
from conclugen.common.revision import running_revision
from ray_jobs.evaluate import EvaluateJob
from ray_jobs.run_config import DataConfig, PretrainJob, RunConfig, ShardsConfig
from ray_jobs.run_folder import RunFolder
from ray_jobs.tracking.journal import Journal, read_records
from ray_jobs.tracking.mlflow_environment import connect
from shards import Manifest, View
from shards.clips.reader import ClipManifest
from tests.campaigns.results_fuzz.folders import MAKERS
from tests.cluster.sweeps import fixed_space, small_sweep
from tests.feature_corpus import WIDTHS, write_corpus
from tests.ray_jobs.extraction.extraction_loop import make_clips
from tests.shards.media.make_media import make_video
from tests.shards.small_data import make_samples, write
from tests.stops import Ended, Stops, plain
from tuning.ledger import Ledger
from tuning.sweep.folder import SCHEDULE, SweepFolder
from tuning.sweep.population import Schedule
from tuning.sweep.search import searcher
from tuning.sweep.sweep import identity, prepare

SIGNALS = {"interrupt": signal.SIGINT, "terminate": signal.SIGTERM, "kill -9": signal.SIGKILL}
STATUSES = {"interrupt": 130, "terminate": 143, "kill -9": -9}
POINTS = ("start", "middle", "publication")
_RAY = ("pretrain", "ablate", "sweep", "build", "features", "embed", "demo", "run")
_ENVIRONMENT = {"RAY_worker_niceness": "0", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
ENDLESS = ("serve",)  # ends when it is stopped, and not before: tests/cluster/test_serve.py


@dataclass(frozen=True)
class Job:
    """prepare: makes what the job reads in a new folder; arguments: of the command there; result: what it left, in a
    form that can be compared. status: of a run that nothing disturbs (1: `check` has found something to say)."""

    command: str
    prepare: Callable[[Path], None]
    arguments: Callable[[Path], list[object]]
    result: Callable[[Path], Any]
    status: int = 0


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _arrays(folder: Path) -> None:
    random = np.random.default_rng(0)
    np.savez(
        folder / "x.npz",
        v=random.normal(size=(60, 500)).astype(np.float32),
        speaker=np.array([f"s{i % 6}" for i in range(60)]),
        part=np.array(["train" if i % 6 < 4 else "test" for i in range(60)]),
    )


def _shards(folder: Path) -> None:
    write(folder / "data", make_samples(35))


def _tars(folder: Path) -> None:
    _shards(folder)
    for path in (folder / "data").iterdir():
        if not path.name.endswith(".tar"):
            path.unlink()


def _without_an_index(folder: Path) -> None:
    _shards(folder)
    (folder / "data" / "part-000001.index.parquet").unlink()


def _views(folder: Path) -> dict[str, str]:
    manifest = Manifest.open(folder / "data")
    return {name: View.open(manifest, name).digest for name in View.names(manifest)}


def _corpus(folder: Path) -> None:
    write_corpus(folder / "data", speakers=9, takes=6)


def _pickled(folder: Path) -> None:
    random = np.random.default_rng(0)
    document = {
        part: {"vision": random.normal(size=(20, 3, 4)), "id": [f"{part}{i}" for i in range(20)]} for part in "ab"
    }
    (folder / "x.pkl").write_bytes(pickle.dumps(document))


def _published(folder: Path) -> None:
    for number in range(12):
        place = folder / "features" / "audio_spectrograms_cropped_128" / "train"
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{number}.npy", np.zeros(4, np.float32))


def _videos(folder: Path) -> None:
    (folder / "videos").mkdir()
    for number in range(6):
        make_video(folder / "videos" / f"{number}.mp4", 10, (48, 64))


def _clips(folder: Path) -> None:
    make_clips(folder / "data", 3, 2, pictures=10)


def _finished_run(folder: Path) -> None:
    """As pretraining leaves it, and evaluated once."""
    _corpus(folder)
    manifest = Manifest.open(folder / "data")
    composition = {name: tuple(columns) for name, columns in manifest.modalities.items()}
    widths = {name: sum(WIDTHS[column] for column in columns) for name, columns in composition.items()}
    config = presets.build(
        "contrast_only",
        global_batch=16,
        model={"representation_dim": 8, "projection_dim": 4, "reconstruction_hidden_dim": 8, "standardize": False},
    )
    place = RunFolder(folder / "out" / "a")
    export.save(
        place.model, Pretrainer(config, widths, 1), {"modalities": {m: list(c) for m, c in composition.items()}}
    )
    data = DataConfig(str(folder / "data"), label="emotion")
    save(PretrainJob(config, data, RunConfig("a", str(folder / "out"))), place.config)
    with Journal(place.journal, experiment="e", name="a") as journal:
        journal.metrics(0, {"loss": 1.0})


def _evaluated_run(folder: Path) -> None:
    _finished_run(folder)
    place = folder / "out/a/evaluation/data-emotion"
    place.mkdir(parents=True)
    shards = ShardsConfig(str(folder / "data"), validation_view=None)
    write_json(place / "scores.json", {"job": asdict(EvaluateJob("a", "emotion", shards)), "cells": []})


def _population(folder: Path) -> None:
    """A sweep by population as it stands at its end, without its trials; one weight changed once."""
    write_corpus(folder / "data", speakers=9, takes=4)
    space = fixed_space(epochs=2, global_batch=(30,))
    job = small_sweep(folder / "data", folder / "out", "a", space=space, scheduler="pbt", objective="effective_rank")
    ready, place = prepare(job), SweepFolder(folder / "out" / "a")
    place.acquire(identity(ready))
    save(job, place.settings)
    choices = searcher("random", ready.space, 0, "max", folder).ask(0, 0)
    assert choices is not None
    Schedule(ready.space.config(choices), ((2, {"contrastive": 0.5}),), job.objective, 1.0).save(place.path / SCHEDULE)


def _ablated(folder: Path) -> None:
    MAKERS["ablation"](folder / "a")


def _tracked(folder: Path) -> Any:
    """Of each run on the server its status and how often each metric has each step."""
    client = connect(f"sqlite:///{folder / 'mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "e"]
    runs = client.search_runs([experiment.experiment_id])
    return sorted(
        (
            run.info.status,
            [
                (m.key, m.step)
                for key in sorted(run.data.metrics)
                for m in client.get_metric_history(run.info.run_id, key)
            ],
        )
        for run in runs
    )


def _evaluation(folder: Path) -> Any:
    place = folder / "out/a/evaluation/data-emotion"
    names = sorted(path.name for path in place.iterdir())
    return names, json.loads((place / "scores.json").read_text())["cells"], (place / "table.md").read_text()


def _embedded(folder: Path) -> Any:
    files = sorted((folder / "embeddings").glob("*.parquet"))
    return {path.name: pq.read_table(path).to_pydict() for path in files}


def _statuses(journal: Path) -> list[str]:
    return [record["status"] for record, _ in read_records(journal) if record["kind"] == "status"]


def _run(folder: Path) -> Any:
    steps = [record["step"] for record, _ in read_records(folder / "out/a/journal.jsonl") if record["kind"] == "metrics"
             and record["series"] == "train"]  # fmt: skip
    weights = (folder / "out/a/model/model.safetensors").read_bytes()
    return steps, weights, _statuses(folder / "out/a/journal.jsonl")[-1]


def _demonstrated(folder: Path) -> Any:
    """What does not tell of the time: pixels, features, weights."""
    out, run = folder / "out", RunFolder(folder / "out/runs/demo")
    digests = ClipManifest.open(out / "clips").digest, Manifest.open(out / "features").digest
    return digests, (run.model / "model.safetensors").read_bytes(), _statuses(run.journal)


def _walked(folder: Path) -> Any:
    """Embeddings, and that the rest is there. What was sent to a store is noted under its address, which is a path."""
    place = folder / "out/x"
    with np.load(place / "embeddings.npz", allow_pickle=False) as archive:
        vectors = archive["vectors"].tobytes()
    names = (re.sub("mlflow-[0-9a-f]{8}", "mlflow", path.name) for path in place.iterdir())
    return vectors, sorted(name for name in names if not name.startswith("."))


def _ledger(folder: Path) -> Any:
    records = list(Ledger.open(folder / "out/a").history())
    finished = sorted(record.key for record in records if record.status == "finished")
    return finished, len(set(finished)) == len(finished), _statuses(folder / "out/a/journal.jsonl")[-1]


_SMALL = ["--pretrain.model.representation-dim", 16, "--pretrain.model.projection-dim", 8]
JOBS: dict[str, Job] = {
    "pack": Job(
        "pack",
        _arrays,
        lambda folder: [
            *("--source", folder / "x.npz", "--output", folder / "out", "--column", "v", "--group", "speaker"),
            *("--meta", "part", "--view-by", "part", "--max-shard-mb", "0.09", "--quiet"),
        ],
        lambda folder: content(folder / "out"),
    ),
    "split": Job(
        "split",
        _shards,
        lambda folder: [folder / "data", "--parts", "train=0.6,test=0.4"],
        _views,
    ),
    "index": Job(
        "index", _tars, lambda folder: [folder / "data"], lambda folder: Manifest.open(folder / "data").digest
    ),
    "verify --repair": Job(
        "verify",
        _without_an_index,
        lambda folder: [folder / "data", "--repair", "--quiet"],
        # A kill may leave a hidden temporary file.
        lambda folder: {name: data for name, data in content(folder / "data").items() if not name.startswith(".")},
    ),
    "stats": Job(
        "stats",
        _shards,
        lambda folder: [folder / "data", "--json", folder / "stats.json"],
        lambda folder: (folder / "stats.json").read_text().replace(str(folder), ""),
    ),
    "check": Job(
        "check", _shards, lambda folder: [folder / "data"], lambda folder: sorted(content(folder / "data")), 1
    ),
    "convert-pickle": Job(
        "convert-pickle",
        _pickled,
        lambda folder: [folder / "x.pkl", "--out", folder / "x.npz", "--overwrite"],
        lambda folder: {name: array.tobytes() for name, array in np.load(folder / "x.npz").items()},
    ),
    "author_features": Job(
        "author_features",
        _published,
        lambda folder: [folder / "features", "--output", folder / "out"],
        lambda folder: sorted(content(folder / "out")),
    ),
    "render": Job(
        "render",
        lambda folder: None,
        lambda folder: [folder / "out", "--speakers", 1, "--takes", 1, "--processes", 1, "--overwrite"],
        lambda folder: content(folder / "out"),
    ),
    "export": Job(
        "export",
        _finished_run,
        lambda folder: ["a", "--output", folder / "out", "--folder", folder / "shared", "--no-programs"],
        lambda folder: content(folder / "shared"),
    ),
    "track": Job("track", lambda folder: MAKERS["run"](folder / "a"), lambda folder: [folder / "a"], _tracked),
    "report": Job(
        "report", _ablated, lambda folder: [folder / "a", "--no-tracking"], lambda folder: content(folder / "a/report")
    ),
    "evaluate": Job(
        "evaluate",
        _finished_run,
        lambda folder: [
            *("--run", "a", "--label", "emotion", "--data", folder / "data", "--output", folder / "out"),
            *("--comparison.methods", "probe", "--comparison.fractions", "1.0", "--comparison.draws", 1),
        ],
        _evaluation,
    ),
    "build": Job(
        "build",
        _videos,
        lambda folder: [
            *("--adapter", "folder", "--source", folder / "videos", "--output", folder / "out", "--faces", "off"),
            *("--clips-per-shard", 2, "--quiet"),
        ],
        lambda folder: ClipManifest.open(folder / "out").digest,
    ),
    "features": Job(
        "features",
        _clips,
        lambda folder: [
            *("--data", folder / "data", "--output", folder / "out", "--quiet"),
            *("--encoders", "random-image,random-audio,random-text"),
        ],
        lambda folder: Manifest.open(folder / "out").digest,
    ),
    "embed": Job(
        "embed",
        _evaluated_run,
        lambda folder: [
            *("--run", "a", "--data", folder / "data", "--output", folder / "out"),
            *("--embeddings", folder / "embeddings"),
        ],
        _embedded,
    ),
    "doctor": Job(
        "doctor",
        lambda folder: None,
        lambda folder: ["check", "--output", folder],
        lambda folder: sorted(content(folder)),
    ),
    "sweep replay": Job(
        "sweep replay", _population, lambda folder: [folder / "out/a"], lambda folder: content(folder / "out/a/model")
    ),
    "controlled": Job(
        "controlled",
        lambda folder: None,
        lambda folder: [
            *("--run", "a", "--output", folder / "out", "--systems", "contrastive", "--data-seeds", 0, "--epochs", 1),
            *(
                "--factors.widths",
                "video=24,audio=20",
                "--factors.speakers",
                9,
                "--factors.clips",
                12,
                "--judging.fractions",
                "1.0",
            ),
            *("--global-batch", 36, "--representation-dim", 8, "--projection-dim", 4, "--parallel", 1),
        ],
        lambda folder: [(folder / "out/a" / name).read_text() for name in ("page.md", "results.csv")],
    ),
    "run": Job(
        "run",
        _arrays,
        lambda folder: [folder / "x.npz", "--group", "speaker", "--output", folder / "out", "--epochs", 1, "--quiet"],
        _walked,
    ),
    "demo": Job(
        "demo",
        lambda folder: None,
        lambda folder: ["--output", folder / "out", "--speakers", 6, "--takes", 1, "--epochs", 2, "--batch", 8],
        _demonstrated,
    ),
    "pretrain": Job(
        "pretrain",
        _corpus,
        lambda folder: [
            *("--data", folder / "data", "--run", "a", "--output", folder / "out", "--batch", 60, "--epochs", 3),
            *("--run.checkpoint-every", 3, "--view", "everything", "--data.validation-view", "none", *_SMALL),
        ],
        _run,
    ),
    "ablate": Job(
        "ablate",
        _corpus,
        lambda folder: [
            *("--data.faces", folder / "data", "--run", "a", "--output", folder / "out", "--seeds", "1,2"),
            *("--sections", "baselines", "--recipes", "improved", "--epochs", 1, "--sizes.global-batch", 60),
            *("--judging.draws", 1, "--judging.fractions", "0.3"),
        ],
        _ledger,
    ),
    "sweep": Job(
        "sweep",
        _corpus,
        lambda folder: [
            *("--data", folder / "data", "--label", "emotion", "--run", "a", "--output", folder / "out"),
            *("--trials", 3, "--search", "random", "--scheduler", "none", "--epochs", 4, "--space.global-batch", 60),
            *("--space.representation-dim", 16, "--objective", "effective_rank"),
        ],
        _ledger,
    ),
}


def _stops(folder: Path, address: str) -> Stops:
    environment = _ENVIRONMENT | ({"RAY_ADDRESS": address} if address else {})
    return Stops(folder, environment, ("torch", "ray.train", "mlflow", "sklearn.linear_model"))


@contextlib.contextmanager
def _ray(joined: bool) -> Iterator[str]:
    """The address of a Ray that jobs join; an empty one where each starts its own."""
    if not joined:
        yield ""
        return
    import ray

    os.environ |= _ENVIRONMENT  # its workers import the project from here
    with tempfile.TemporaryDirectory(prefix="re", ignore_cleanup_errors=True) as folder:  # socket paths must be short
        ray.init("local", num_cpus=8, include_dashboard=False, logging_level="warning", _temp_dir=folder)
        try:
            yield ray.get_runtime_context().gcs_address
        finally:
            ray.shutdown()


def cell(stops: Stops, job: Job, folder: Path, how: str, point: str, renames: int, expected: Any) -> tuple[bool, str]:
    """(whether all is as it should be, what happened)."""
    if not renames and point != "start":
        return True, "—"
    job.prepare(folder)
    before = content(folder)
    place = {"start": 1, "middle": max(1, renames // 2), "publication": renames}[point]
    at = "work" if point == "start" else "rename"
    ended = stops.run(job.command, job.arguments(folder), SIGNALS[how], at, place)
    said = _said(ended) if how != "kill -9" else ""
    if {name: data for name, data in content(folder).items() if not name.endswith(".lock")} == before:
        right = ended.status == STATUSES[how] and (how == "kill -9" or bool(said))
        return right, f"{ended.status}; {'' if right else '**'}untouched" + (f"; “{said}”" if said else "")
    again = stops.run(job.command, job.arguments(folder))
    right = ended.status == STATUSES[how] and again.status == job.status and job.result(folder) == expected
    right &= how == "kill -9" or bool(said)
    outcome = "same" if right else f"**status {again.status}, {again.error.strip()[-200:] or 'another result'}**"
    return right, f"{ended.status}; {outcome}" + (f"; “{said}”" if said else "")


def points_of(targets: Sequence[str], folder: Path) -> tuple[str, str] | None:
    """Names below the folder that a job renames to once: the one nearest to the middle of its renames, and the last;
    None where there are not two."""
    counts = Counter(targets)
    own = [i for i, name in enumerate(targets) if counts[name] == 1 and Path(name).is_relative_to(folder)]
    if len(own) < 2:
        return None
    middle = min(own[:-1], key=lambda i: abs(i - (len(targets) - 1) / 2))
    return tuple(str(Path(targets[i]).relative_to(folder)) for i in (middle, own[-1]))  # type: ignore[return-value]


def chain(
    stops: Stops, job: Job, folder: Path, how: str, places: tuple[str, str], expected: Any
) -> tuple[bool, list[str]]:
    """(whether all is as it should be, what happened at each of the three points)."""
    job.prepare(folder)
    whole, told = True, []
    for point in ("work", *(plain(folder / place) for place in places)):
        before = content(folder)
        ended = stops.run(job.command, job.arguments(folder), SIGNALS[how], point)
        said = "" if how == "kill -9" else _said(ended)
        right = ended.status == STATUSES[how] and (how == "kill -9" or bool(said))
        same = {name: data for name, data in content(folder).items() if not name.endswith(".lock")} == before
        if not right:
            print(f"{job.command}, {how}, {point}: {ended.error[-3000:]}", file=sys.stderr, flush=True)
        whole &= right
        mark = str(ended.status) if right else f"**{ended.status}**"
        told.append(mark + ("; untouched" if same else "") + (f"; “{said}”" if said else ""))
    again = stops.run(job.command, job.arguments(folder))
    right = again.status == job.status and job.result(folder) == expected
    if not right:
        print(f"{job.command}, {how}, the end: {again.status}: {again.error[-3000:]}", file=sys.stderr, flush=True)
    told[-1] += "; then the same" if right else f"; **then status {again.status}, another result**"
    return whole and right, told


def _said(ended: Ended) -> str:
    lines = [line for line in ended.error.splitlines() if line.startswith(("interrupted: ", "terminated: "))]
    return lines[-1].partition(": ")[2] if lines else ""


@dataclass(frozen=True)
class Row:
    """What happened to a job by a signal. cells: by point."""

    job: str
    signal: str
    right: bool
    cells: dict[str, str]
    commit: str = ""
    day: str = ""


def _rows(results: Path | None) -> list[Row]:
    if results is None or not results.exists():
        return []
    return [Row(**json.loads(line)) for line in results.read_text(encoding="utf-8").splitlines()]


def table(rows: Sequence[Row]) -> str:
    """The last row of each job and signal."""
    last = {(row.job, row.signal): row for row in rows}
    lines = ["| job | signal | start | middle | publication | commit, day |", "|---" * 6 + "|"]
    for name in JOBS:
        for how in SIGNALS:
            if row := last.get((name, how)):
                cells = [row.cells.get(point, "") for point in POINTS]
                lines.append(f"| {name} | {how} | {' | '.join(cells)} | {row.commit}, {row.day} |")
    return "\n".join(lines)


def _commit() -> str:
    commit, _, dirty = running_revision().partition("-")
    return f"{commit[:9]}{dirty and '-dirty'}"


def _row(
    stops: Stops, name: str, how: str, base: Path, points: Sequence[str], reference: Reference, chained: bool
) -> tuple[bool, dict[str, str]]:
    """(whether all is as it should be, what happened, by point)."""
    job, folder, cells, whole = JOBS[name], base / "case", {}, True
    folder.mkdir()
    places = points_of(reference.ended.targets, base / "reference") if chained else None
    if places is not None:
        whole, told = chain(stops, job, folder, how, places, reference.result)
        cells = dict(zip(POINTS, told, strict=True))
    else:
        for point in points:
            right, cells[point] = cell(stops, job, folder, how, point, reference.ended.renames, reference.result)
            whole &= right
            shutil.rmtree(folder)
            folder.mkdir()
    shutil.rmtree(folder)
    return whole, cells


@dataclass(frozen=True)
class Reference:
    """An undisturbed run, in base/reference, and what it left."""

    ended: Ended
    result: Any


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default=",".join(name for name in JOBS if name not in _RAY))
    parser.add_argument("--signals", default=",".join(SIGNALS))
    parser.add_argument("--points", default=",".join(POINTS))
    parser.add_argument("--joined", action="store_true", help="jobs join one Ray instead of starting one each")
    parser.add_argument("--chained", action="store_true", help="the three points of a signal in one folder")
    parser.add_argument("--results", type=Path, help="JSON lines; what is right there is not run again")
    parser.add_argument("--table", action="store_true", help="only print the table of the results")
    given = parser.parse_args(arguments)
    rows, whole, commit = _rows(given.results), True, _commit()
    done = {(row.job, row.signal) for row in rows if row.right}
    left = [
        (name, how) for name in given.jobs.split(",") for how in given.signals.split(",") if (name, how) not in done
    ]
    if given.table or not left:
        print(table(rows))
        return 0
    with (
        tempfile.TemporaryDirectory(prefix="ends-") as base,
        _ray(given.joined) as address,
        _stops(Path(base), address) as stops,
    ):
        for name in dict.fromkeys(name for name, _ in left):
            job, folder = JOBS[name], Path(base) / "reference"
            folder.mkdir()
            job.prepare(folder)
            undisturbed = stops.run(job.command, job.arguments(folder))
            if undisturbed.status != job.status:
                print(f"{name}: status {undisturbed.status}: {undisturbed.error}", file=sys.stderr, flush=True)
                whole = False
            else:
                reference = Reference(undisturbed, job.result(folder))
                for how in (how for of, how in left if of == name):
                    told = _row(stops, name, how, Path(base), given.points.split(","), reference, given.chained)
                    row = Row(name, how, *told, commit, time.strftime("%Y-%m-%d", time.gmtime()))
                    print(f"| {name} | {how} | {' | '.join(row.cells.values())} |", flush=True)
                    whole &= row.right
                    if given.results is not None:
                        with given.results.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
            shutil.rmtree(folder)
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
