"""What a sweep leaves to be read: a table of the best trials, the best configuration, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conclugen.common.atomic import write_text
from conclugen.common.options import save
from conclugen.common.tables import markdown, markdown_head, markdown_row, one_line
from ray_jobs import figure_style, plots
from ray_jobs.run_config import PretrainJob
from tuning.ledger import WITH_RAW
from tuning.sweep import plots as sweep_plots
from tuning.sweep.folder import TrialStore, trial_name
from tuning.sweep.job import SweepJob
from tuning.sweep.objective import LABELLED

_SHOWN = 10
_RECALL = "probe_recall/"


def table(store: TrialStore, mode: str, most: int = _SHOWN) -> str:
    """The best trials as Markdown: objective, other means, what was chosen. Fixed choices are left out."""
    order = store.ranking(mode)[:most]
    if not order:
        return "No trial has reached a measurement.\n"
    varied = [
        name for name in sweep_plots.columns(store) if len({str(c.get(name)) for c in store.choices.values()}) > 1
    ]
    measures = [
        name
        for name in ("probe_accuracy", "probe_uar", "probe_macro_f1", "recall@1", "effective_rank", "cluster_usage")
        if name != store.objective and any(name in store.metrics[number] for number in order)
    ]
    head = ["trial", "state", store.objective, *measures, *(name.removeprefix("tasks.") for name in varied)]
    lines = markdown_head(head)
    for number in order:
        metrics, choices = store.metrics[number], store.choices[number]
        cells = [trial_name(number), store.outcomes[number].state, f"{store.value(number):.4f}"]
        cells += [f"{metrics[name]:.3f}" if name in metrics else "" for name in measures]
        cells += [_shown(choices.get(name)) for name in varied]
        lines.append(markdown_row(cells))
    beside: list[tuple[str, str, Mapping[str, float]]] = [
        (f"{trial_name(order[0])} + raw", "trial", _with_raw(store.metrics[order[0]]))
    ]
    beside += [
        (name, "raw row" if name in store.raw_rows else "baseline", record.metrics)
        for name, record in store.baselines.items()
    ]
    for name, kind, scores in beside:
        own = [f"{scores[store.objective]:.4f}" if store.objective in scores else ""]
        own += [f"{scores[measure]:.3f}" if measure in scores else "" for measure in measures]
        if any(own):
            lines.append(markdown_row([name, kind, *own, *[""] * len(varied)]))
    return "\n".join([*lines, *_notes(store, order[0])]) + "\n"


def strongest_raw(store: TrialStore) -> tuple[str, str, float] | None:
    """Name of the raw row that trials are compared with, the score, and its value: the best by the objective, or by
    what probes are chosen by (`measure.select_by`) where that needs no label. None where there is no label."""
    score = store.objective if store.objective in LABELLED else f"probe_{store.select_by}"
    rows = {name: metrics[score] for name, metrics in store.raw_rows.items() if np.isfinite(metrics[score])}
    best = max(rows, key=rows.__getitem__, default=None)
    return None if best is None else (best, score, rows[best])


def _notes(store: TrialStore, best: int) -> list[str]:
    """What the best trial adds to the strongest raw row, alone and beside raw features, and both rows' recall of each
    class."""
    metrics, raw, notes = store.metrics[best], strongest_raw(store), []
    if raw is not None and raw[1] in metrics:
        name, score, value = raw
        told = f"Trial {trial_name(best)} minus {name}, the strongest raw row, {score}: {metrics[score] - value:+.3f}"
        both = _with_raw(metrics)
        if score in both:
            told += f"; beside raw features {both[score] - value:+.3f}"
        notes += ["", markdown(f"{told} (on the rows that chose the trial, in its favour).")]
    rows: dict[str, Mapping[str, float]] = {f"trial {trial_name(best)}": metrics}
    if raw is not None:
        rows[raw[0]] = store.raw_rows[raw[0]]
    for row, numbers in rows.items():
        recalls = {name.removeprefix(_RECALL): v for name, v in numbers.items() if name.startswith(_RECALL)}
        if recalls:
            listed = ", ".join(f"{one_line(name)} {value:.2f}" for name, value in recalls.items())
            notes += ["", markdown(f"Recall by class, {row}: {listed}.")]
    return notes


def _with_raw(metrics: Mapping[str, float]) -> dict[str, float]:
    """Scores of a trial beside the raw features; empty of one that was stopped."""
    return {name.removeprefix(WITH_RAW): value for name, value in metrics.items() if name.startswith(WITH_RAW)}


def _confusion(store: TrialStore, best: int) -> Path | None:
    """A picture of what the best trial took the rows of each class for; None where that was not measured."""
    groups = store.groups[best]
    classes = list(groups.get("class_rows", ()))
    if not classes:
        return None
    matrix = np.asarray([[groups[f"confusion/{name}"].get(other, 0.0) for other in classes] for name in classes])
    path = store.folder.plots / "confusion.png"
    plots.confusion(matrix.astype(np.int64), classes, path, title=f"trial {trial_name(best)}")
    return path


def best_job(store: TrialStore, job: SweepJob, number: int) -> PretrainJob:
    """The pretraining of a trial, whole, as `ray_jobs.pretrain --config` takes it."""
    return PretrainJob(store.config(number), store.space.data(job.data, store.choices[number]), job.best_run())


def write(store: TrialStore, job: SweepJob, mode: str, missing: Sequence[str] = ()) -> list[Path]:
    """`table.md`, `best.yaml` and the plots, into the sweep's folder; the files written. missing: what was not run, a
    sentence each."""
    folder = store.folder
    title = f"# {markdown(job.name)}: {len(store.outcomes)} trials by {store.objective} ({mode})"
    below = "".join(f"\n{markdown(line)}\n" for line in missing)
    write_text(folder.table, f"{title}\n\n{table(store, mode)}{below}")
    written = [folder.table]
    order = store.ranking(mode)
    if not order:
        return written
    save(best_job(store, job, order[0]), folder.best)
    folder.plots.mkdir(exist_ok=True)
    drawn = [
        _confusion(store, order[0]),
        sweep_plots.history(store, mode, folder.plots / "objective.png", strongest_raw(store)),
        sweep_plots.slices(store, folder.plots / "slices.png"),
    ]
    pictures = [path for picture in drawn if picture is not None for path in figure_style.files_of(picture)]
    return [*written, folder.best, *pictures]


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def costs(trials: Mapping[int, Mapping[str, float]], elapsed: float) -> dict[str, float]:
    """What the trials of this start cost; elapsed: seconds from the first one's beginning to the last one's end.

    Means over trials, but `process_start_seconds` over the processes that ran them one after another.
    """
    if not trials:
        return {}
    mean = {
        name: sum(cost[name] for cost in trials.values()) / len(trials)
        for name in ("train_seconds", "measure_seconds", "overhead_seconds")
    }
    starts = [cost["process_start_seconds"] for cost in trials.values() if cost["process_start_seconds"]]
    # A population's members change processes in mid-training, and their last results tell of no start.
    started = {"processes": float(len(starts)), "process_start_seconds": sum(starts) / len(starts)} if starts else {}
    return {"trials_per_minute": 60 * len(trials) / max(elapsed, 1e-9), **mean, **started}
