"""Small results folders of each kind, whole, as jobs write them; and what reads them."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np

import conclugen
from conclugen import Pretrainer, export, presets
from conclugen.common.atomic import write_json
from ray_jobs.options.evaluate import EvaluateJob
from ray_jobs.run_config import ShardsConfig
from ray_jobs.run_folder import RunFolder
from ray_jobs.tracking.destination import remember, uri_of_run
from ray_jobs.tracking.journal import Journal, metric_history
from ray_jobs.training import failures
from shards import Manifest
from tests.feature_corpus import WIDTHS, write_corpus
from tuning.ledger import Ledger, Record

Reader = Callable[[Path], object]


def run(folder: Path) -> None:
    """A pretraining run that was evaluated."""
    folder.mkdir(parents=True)
    remember(folder, None)
    write_json(folder / "run.json", {"seed": 1, "manifest": "ab" * 32})
    write_json(folder / "config.json", {"run": {"name": "run", "tracking_uri": None}, "pretrain": {"seed": 1}})
    write_json(folder / ".attempt", {"attempt": "a"})
    (folder / "plots").mkdir()
    (folder / "plots" / "losses.png").write_bytes(b"picture")
    record = {"attempt": "a", "rank": 0, "world": 1, "step": 3, "error": "E", "message": "m", "fatal": True}
    record |= {"waited": False, "time": 1.0, "trace": "", "announced": False, "group": "g"}
    (folder / "failures.jsonl").write_text(json.dumps(record) + "\n")
    damage = {"row": 1, "shard": "s", "key": "k", "reason": "r"}
    (folder / "quarantine").mkdir()
    (folder / "quarantine" / "rank-0.jsonl").write_text(json.dumps(damage) + "\n")
    place = folder / "evaluation" / "faces-emotion"
    job = {"run": "run", "label": "emotion", "data": {"folder": "x"}, "test_view": "test", "fusion": "concat"}
    place.mkdir(parents=True)
    write_json(place / "scores.json", {"job": job, "cells": []})
    with Journal(folder / "journal.jsonl", experiment="e", name="run") as journal:
        journal.params({"a": 1, "b": {"c": "text"}})
        journal.tags({"digest": "abc"})
        for step in range(4):
            journal.metrics(step, {"loss": 1.0 / (step + 1), "recall@1": 0.5})
        journal.artifact(folder / "plots", "plots")
        journal.artifact(folder / "config.json")
        journal.status("FINISHED")


@cache
def _evaluated() -> tuple[tempfile.TemporaryDirectory[str], Path]:
    """A finished run with its model and the shards that it is of, evaluated once; made once."""
    kept = tempfile.TemporaryDirectory(prefix="model-")
    folder = Path(kept.name) / "run"
    run(folder)
    write_corpus(folder / "data", speakers=9, takes=4)
    composition = {name: list(columns) for name, columns in Manifest.open(folder / "data").modalities.items()}
    widths = {name: sum(WIDTHS[column] for column in columns) for name, columns in composition.items()}
    sizes = {"representation_dim": 8, "projection_dim": 4, "reconstruction_hidden_dim": 8, "standardize": False}
    made = Pretrainer(presets.build("contrast_only", global_batch=16, model=sizes), widths, 1)
    export.save(folder / "model", made, {"modalities": composition, "data": {"data.manifest": "0123abcd"}})
    _judged(folder)
    _opened(folder)
    return kept, folder


def _judged(folder: Path) -> None:
    data = {"folder": str(folder / "data"), "view": "train"}
    config = {"run": {"name": "run", "commit": "feed"}, "data": data, "pretrain": {"seed": 1}}
    write_json(folder / "config.json", config)
    cells = [
        {"system": system, "method": "probe", "fraction": share, "scores": {"accuracy": 0.5}, "intervals": ends}
        for system in ("pretrained", "raw")
        for share, ends in ((0.1, {}), (1.0, {"accuracy": [0.4, 0.6]}))
    ]
    job = EvaluateJob("run", "emotion", ShardsConfig(data["folder"], validation_view=None))
    said = {"main_score": "accuracy", "verdict": "No difference is shown.", "cells": cells}
    write_json(folder / "evaluation" / "faces-emotion" / "scores.json", {"job": asdict(job), **said})


def model(folder: Path) -> None:
    """A finished run that was evaluated, with the probe that was kept of it."""
    shutil.copytree(_evaluated()[1], folder)
    _judged(folder)


def ablation(folder: Path) -> None:
    """Cells of two systems in two seeds."""
    folder.mkdir(parents=True)
    remember(folder, None)
    write_json(folder / "ablation.json", {"sizes": {"epochs": 3}, "judging": {"folds": 2}})
    with Ledger.open(folder) as ledger:
        for seed in (0, 1):
            for tasks in (["contrastive"], ["contrastive", "clustering", "reconstruction"]):
                metrics = {f"{score}@{fraction}": 0.5 for score in ("accuracy", "f1_weighted") for fraction in (0.1, 1)}
                tags = {"dataset": "faces", "system": "pretrained", "recipe": "improved", "configuration": ""}
                tags |= {
                    "tasks": tasks,
                    "modalities": ["video", "audio"],
                    "complete": True,
                    "seed": seed,
                    "rows": ["a"],
                }
                groups = {f"accuracy@{f}": {"s1": 0.5, "s2": 0.4} for f in (0.1, 1)} | {"rows": {"s1": 3, "s2": 4}}
                name = f"k{seed}{len(tasks)}"
                ledger.append(Record(name, "cell", "finished", {}, tags, metrics | {"recall/joy@1": 0.5}, groups, {}))
        ledger.append(Record("failed", "cell", "failed", {}, {**tags, "seed": 7}, reason="out of memory"))
    with Journal(folder / "journal.jsonl", experiment="e", name="ablation") as journal:
        parent = journal.identity.run_id
        journal.status("FINISHED")
    with Journal(folder / "runs" / "k01" / "journal.jsonl", experiment="e", name="cell", parent=parent) as journal:
        journal.metrics(0, {"accuracy@0.1": 0.5})
        journal.status("FINISHED")


def sweep(folder: Path) -> None:
    """Trials that have ended."""
    folder.mkdir(parents=True)
    remember(folder, None)
    write_json(folder / "run.json", {"search": "random", "space.epochs": 3})
    (folder / "sweep.yaml").write_text("name: s\ndata: {folder: /x, label: emotion}\ntrials: 3\n")
    write_json(folder / "schedule.json", {"format": 1, "config": {}, "changes": [], "objective": "x", "value": 1.0})
    with Ledger.open(folder) as ledger:
        for number in range(3):
            (folder / "trials" / f"{number:04d}").mkdir(parents=True)
            choices = {"tasks": "contrastive", "modalities": "video+audio", "weight": 0.1 * number}
            write_json(folder / "trials" / f"{number:04d}" / "choices.json", choices)
            tags = {
                "tasks": ["contrastive"],
                "modalities": ["video", "audio"],
                "weights": "contrastive=1",
                "number": number,
            }
            tags |= {
                "state": "finished",
                "diverged": False,
                "epochs": [1],
                "curve": [0.5],
                "objective": "probe_accuracy",
            }
            metrics = {"probe_accuracy": 0.3 + number / 10}
            ledger.append(
                Record(f"t{number}", "trial", "finished", {"tasks": {}}, tags | {"sweep": "s"}, metrics, {}, {})
            )
    with Journal(folder / "journal.jsonl", experiment="e", name="s") as journal:
        journal.status("FINISHED")


MAKERS: dict[str, Callable[[Path], None]] = {"run": run, "ablation": ablation, "sweep": sweep, "model": model}


# ---- what reads them; each may raise ValueError or OSError, and write into the folder ------------------------------


def _command(name: str, *options: str) -> Reader:
    def read(folder: Path) -> object:
        from tests import jobs

        return jobs.load(name).main([str(folder), *options])

    return read


def _records(folder: Path) -> object:
    ledger = Ledger.open(folder)
    return [(record, ledger.arrays(record)) for record in ledger.records()]


def _documents(folder: Path) -> object:
    place = RunFolder(folder)
    for read in (place.load_pretraining, place.last_attempt, place.quarantined, place.load_standardization):
        with contextlib.suppress(ValueError, OSError):
            read()
    failures.read(place.failures, "a")
    return place.belongs({"seed": 1, "manifest": "ab" * 32})


def _evaluation(folder: Path) -> object:
    from ray_jobs.embedding.model import _evaluation_of

    return [_evaluation_of(path) for path in sorted(folder.glob("evaluation/*/scores.json"))]


def _opened(folder: Path) -> object:
    """As `embed` and `serve` do it: with the probe that was kept, or one that is fitted again."""
    from ray_jobs.embedding.model import RunModel

    opened = RunModel.open(RunFolder(folder))
    rows = {name: np.ones((2, width), np.float32) for name, width in opened.embedder.widths.items()}
    return opened.represent(rows, "concat"), opened.identity("concat")


def _export(folder: Path) -> object:
    """Whatever the run holds, an export is a folder that can be loaded."""
    from tests import jobs

    status = jobs.load("export").main(
        [folder.name, "--output", str(folder.parent), "--no-programs", "--folder", str(folder / "shared")]
    )
    if status == 0:
        conclugen.load(folder / "shared")
    return status


def _continued(folder: Path) -> object:
    with Journal(folder / "journal.jsonl") as journal:
        journal.metrics(99, {"loss": 0.0})
    return metric_history(folder / "journal.jsonl")


def _sweep(folder: Path) -> object:
    from tuning.sweep.__main__ import COMMAND
    from tuning.sweep.folder import SweepFolder
    from tuning.sweep.population import Schedule

    for read in (
        lambda: Schedule.load(folder / "schedule.json"),
        lambda: COMMAND.parse(["--config", str(folder / "sweep.yaml")]),
        lambda: SweepFolder(folder).belongs({"search": "random"}),
    ):
        with contextlib.suppress(ValueError, OSError):
            read()
    return list(SweepFolder(folder).proposals())


READERS: dict[str, dict[str, Reader]] = {
    "run": {
        "destination": uri_of_run,
        "documents": _documents,
        "evaluation": _evaluation,
        "journal": _continued,
        "track": _command("track", "--timeout", "2"),
    },
    "ablation": {
        "ledger": _records,
        "report": _command("report", "--no-tracking"),
        "track": _command("track", "--timeout", "2"),
    },
    "sweep": {"ledger": _records, "sweep": _sweep, "report": _command("report", "--no-tracking")},
    "model": {"export": _export, "opened": _opened},
}
