"""What an ablation (and sweeps) came to, as a page, tables and pictures: what `tuning.report` does.

Reads the ledgers of the folders, and what their journals say of how they were made. Writes `report.html` (one file
that needs no other), `report.md`, `report.csv` (every number), `table.tex` and `references.bib` for a paper, pictures,
and `figures.py` with `figures.json`, which draws them again, into FOLDER/report, and logs them to the MLflow run of the
folder where it has one.
"""

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from conclugen import fields
from conclugen.common import uris
from conclugen.common.atomic import remove_remnants_in, write_json, write_text
from conclugen.common.locks import folder_held
from conclugen.common.names import file_name
from conclugen.common.reading import inside
from conclugen.common.tables import csv_text
from conclugen.evaluation.statistics import Interval
from conclugen.tasks import registry
from ray_jobs import figure_style
from ray_jobs.provenance import bibliography
from ray_jobs.tracking.destination import uri_of_run
from ray_jobs.tracking.journal import Journal, read_records
from ray_jobs.tracking.mlflow_sink import flush_journal
from ray_jobs.tracking.standing import standing
from tuning.ledger import LINES as LEDGER
from tuning.ledger import Ledger, Record
from tuning.report import drawings, sweep_response
from tuning.report import findings as report_findings
from tuning.report import protocols as report_protocols
from tuning.report.drawings import Drawing
from tuning.report.findings import LEVEL, Family, score_name
from tuning.report.latex import latex
from tuning.report.page import Block, Charts, Heading, Text, codes_of, html, markdown
from tuning.report.setup import Setup
from tuning.report.systems import Results
from tuning.report.tables import (
    Entry,
    Line,
    Table,
    best_trial,
    claim_table,
    class_table,
    confusion_table,
    cost_table,
    group_table,
    main_systems,
    raw_rows_table,
    reference_table,
    results_table,
    retrieval_table,
    taken_for,
    trials_table,
)

_log = logging.getLogger(__name__)
_SCORES = ("accuracy", "uar", "f1_macro")
_TAGS = ("dataset", "system", "recipe", "configuration", "tasks", "modalities", "seed")
_COLUMNS = ("kind", "key", "status", *_TAGS, "metric", "value")
_TRACKING_S = 30.0


@contextlib.contextmanager
def being_written(folder: Path) -> Iterator[None]:
    """Hold the report of a folder alone. Raises FolderInUseError, and OSError where it cannot be written to."""
    if not folder.is_dir():
        yield  # `report` says what is wrong
        return
    place = inside(folder, "report")
    with folder_held(place, "a report is being written here", "another folder"):
        remove_remnants_in(place)
        yield


def report(
    folder: Path, sweeps: Sequence[Path] = (), scores: Sequence[str] | None = None, asked: Sequence[Path] = ()
) -> list[Path]:
    """Write the report of a folder; returns the files.

    scores: of the tables; None: accuracy, unweighted average recall and macro F1, as far as the ledger has them.
    asked: folders of runs whose protocols were asked; the folder's own, where it is a run's, are in it too.
    Raises ValueError: no ledger and no protocols, no finished cell or trial, a score that nothing has.
    """
    found = report_protocols.found_in(asked, folder)
    ledgers = [place for place in (folder, *sweeps) if place is not folder or not found or (place / LEDGER).is_dir()]
    records = [record for place in ledgers for record in Ledger.open(place, must_exist=True).records()]
    results = Results.of(records)
    finished = [record for record in records if record.status == "finished"]
    if not finished and not found:
        raise ValueError(f"{folder}: none of {len(records)} cells and trials is finished; let the ablation continue")
    known = {score for dataset in results.datasets for score in results.scores(dataset)}
    if results.systems:
        for score in scores or ():
            fields.choose("--scores", score, sorted(known))
    scores = scores or [score for score in _SCORES if score in known]
    place = inside(folder, "report")
    place.mkdir(exist_ok=True)
    families = _families(results)
    setup = Setup.read(folder)
    kind = "Ablation" if results.systems else "Sweep" if results.trials or not found else "Protocols of"
    title = f"{kind} {folder.resolve().name}"
    made = _lead(results, records) if records else f"{datetime.now(UTC):%Y-%m-%d}. Made from protocols.json alone."
    won = [*report_findings.winners(results, families["references"]), *_best_trials(results.trials)]
    lead = [*won, *filter(None, [setup.stamp]), made]
    blocks = [
        *setup.blocks(results, records),
        *_missing([folder, *sweeps]),
        *(_ablation(results, families, scores) if results.systems else ()),
        *(_sweep(results.trials, results.baselines) if results.trials else ()),
        *report_protocols.blocks(found),
    ]
    shown = [drawing for block in blocks if isinstance(block, Charts) for drawing in block.drawings]
    with figure_style.stamped(setup.stamp):
        pictures = [drawings.draw(drawing, place) for drawing in shown]
    texts = {
        "report.html": html(title, lead, blocks, place, codes_of(results.tasks) if results.systems else None),
        "report.md": markdown(title, lead, blocks),
        "report.csv": _csv(records),
        "table.tex": latex([block for block in blocks if isinstance(block, Table)], setup.about(results)),
        "references.bib": bibliography(setup.tags),
    }
    if shown:
        texts[drawings.SCRIPT] = resources.files(__package__).joinpath(drawings.SCRIPT).read_text("utf-8")
        write_json(
            place / drawings.DATA, drawings.document(shown, setup.stamp), sort_keys=False
        )  # systems have an order
    if found:
        texts["protocols.csv"] = report_protocols.as_csv(found)
    written = []
    for name, text in texts.items():
        write_text(place / name, text)
        written.append(place / name)
    written += [place / drawings.DATA] if shown else []
    return [*written, *(path for picture in pictures for path in figure_style.files_of(picture))]


def track(folder: Path, files: Sequence[Path], tracking_uri: str | None = None) -> str | None:
    """Log the files to the run of the folder's journal; returns where, None when there is no run or no server."""
    journal_path = folder / "journal.jsonl"
    if not journal_path.is_file():
        return None
    uri = uri_of_run(folder, tracking_uri)
    with Journal(journal_path) as journal:
        for path in files:
            journal.artifact(path, target="report")
    try:
        run = flush_journal(journal_path, uri, _TRACKING_S)
    except Exception as error:  # a report is worth as much without a server
        _log.warning(
            "MLflow at %s: %s; the report's files are sent with the journal later", uris.public(uri), uris.scrub(error)
        )
        return None
    return f"run {run} in {uris.public(uri)}"


def _families(results: Results) -> dict[str, list[Family]]:
    """ "claim": all tasks against fewer; "configurations": named ones against all tasks; "references": everything
    against single task, untrained heads and raw."""
    places = [
        (dataset, recipe, fraction)
        for dataset in results.datasets
        for recipe in results.recipes
        for fraction in results.fractions(dataset)
    ]
    makers = {
        "claim": report_findings.all_against_fewer,
        "configurations": report_findings.configured_against_all,
        "references": report_findings.against_references,
    }
    return {name: [make(results, *place) for place in places] for name, make in makers.items()}


def _lead(results: Results, records: Sequence[Record]) -> str:
    failed = sum(record.status == "failed" and not record.tags.get("unserved") for record in records)
    cells = sum(record.status == "finished" and record.kind == "cell" for record in records)
    trials = sum(record.status == "finished" and record.kind == "trial" for record in records)
    counts = [f"{cells} finished cells" * bool(cells), f"{trials} finished trials" * bool(trials)]
    counts.append(f"{failed} failed (marked holes)" * bool(failed))
    seeds = f", seeds {', '.join(map(str, results.seeds))}" if results.seeds else ""
    return f"{datetime.now(UTC):%Y-%m-%d}: {', '.join(filter(None, counts))}{seeds}. Made from the ledger alone."


def _missing(places: Sequence[Path]) -> Iterator[Block]:
    """What of the folders was not run, not sent, or refused, before everything that is read from them."""
    told = [
        f"{place.resolve().name}: {line}" for place in places for line in [*_not_run(place), *standing(place).lines()]
    ]
    if told:
        yield Heading("What is not there", "missing")
        yield Text(tuple(told), listed=True)


def _not_run(place: Path) -> Iterator[str]:
    """Trials that a sweep was asked for and has no result of; an ablation's missing cells are holes in its tables."""
    asked: object = None
    with contextlib.suppress(OSError, ValueError):
        for record, _ in read_records(place / "journal.jsonl"):
            if record["kind"] == "params":
                asked = record["values"].get("trials", asked)
    records = [record for record in Ledger.open(place).records() if record.kind == "trial"]
    died = sum(record.status == "failed" and not record.tags.get("diverged") for record in records)
    if isinstance(asked, int) and 0 < len(records) - died < asked:
        more = f" ({died} died)" if died else ""
        yield f"{asked - len(records) + died} of {asked} trials have no result{more}."


def _ablation(results: Results, families: dict[str, list[Family]], scores: Sequence[str]) -> Iterator[Block]:
    units = ", ".join(f"{dataset}: {results.unit(dataset)}" for dataset in results.datasets)
    unit = (
        f"Differences in percentage points over all test rows, 95 % bootstrap interval over units ({units}) and "
        "pretraining seeds, crossed, draws of labels averaged, and the p-value of an exact paired sign-flip test over "
        "units, seeds and draws averaged, corrected by Holm within one data set, recipe and fraction. Bold: p at most "
        f"{LEVEL} and an interval without 0. Two or three seeds say little of others."
    )
    named = results.configurations()
    if not named or any(family.comparisons for family in families["claim"]):
        yield Heading(f"Are {results.counted} better than fewer?", "claim")
        told = [sentence for family in families["claim"] for sentence in report_findings.sentences(family)]
        yield Text((report_findings.summary(families["claim"]),))
        yield Text(tuple(told), listed=True)
        yield claim_table(families["claim"], f"{results.counted.capitalize()} against fewer", unit)
    explained = (
        "In %, mean over seeds ± sample deviation over seeds, each seed a mean over draws of labels (and cross-fitted "
        "folds). Bold: best of the column; underlined: second. Raw features have no seed."
    ) + results.normalised
    if named:
        yield Heading("Named configurations", "configurations")
        yield results_table(results, named, f"Named configurations beside all {results.counted}", scores, explained)
        yield claim_table(
            families["configurations"],
            f"Named configurations against all {results.counted} at the ablation's settings",
            unit,
        )
    yield Heading("Task combinations", "combinations")
    known = registry.registered()
    codes = codes_of(results.tasks)
    yield Text(tuple(f"{name} ({codes[name]}): {known[name].title}" for name in results.tasks if name in known), True)
    yield results_table(results, results.combinations(), "Every combination of tasks", scores, explained)
    for rows, title in (
        (results.presets(), "The published presets"),
        (results.subsets(), "Modality subsets"),
    ):
        if rows:
            yield results_table(results, rows, title, scores, explained)
    beside = results.with_raw()
    if beside:
        yield results_table(results, beside, "Representation + raw, each half of the variance", scores, explained)
    yield Heading("Label efficiency", "labels")
    yield Charts.of(_figures(results, families))
    yield Heading("Significance against references", "significance")
    told = [line for family in families["references"] for line in report_findings.against_raw(results, family)]
    if told:
        yield Text(tuple(told), listed=True)
    yield reference_table(
        families["references"],
        "Every system against the best single task, untrained heads and the strongest raw row",
        unit + " Which single task and which raw row are best is judged on the test rows, in their favour.",
    )
    yield Heading("By unit and class", "groups")
    for dataset in results.datasets:
        fraction = min(results.fractions(dataset), default=1.0)
        chosen = main_systems(results, dataset, fraction)
        if chosen:
            yield group_table(results, dataset, chosen, fraction)
            yield class_table(dataset, chosen, fraction)
        for system in [s for s in chosen if s.recipe][:1] + [s for s in chosen if s.is_raw][-1:]:
            confusion = confusion_table(dataset, system, fraction)
            if confusion is not None:
                yield confusion
    retrieval = retrieval_table(results)
    if retrieval is not None:
        yield Heading("Retrieval", "retrieval")
        yield retrieval
    yield Heading("Cost", "cost")
    yield cost_table(results)


def _sweep(trials: Sequence[Record], baselines: Sequence[Record]) -> Iterator[Block]:
    yield Heading("Loss weights and hyper-parameters", "weights")
    sweeps: dict[tuple[str, str], list[Record]] = {}
    for trial in trials:
        if (measured := sweep_response.objective(trial)) is not None:
            sweeps.setdefault((str(trial.tags.get("sweep", "sweep")), measured[0]), []).append(trial)
    if not sweeps:
        yield Text(("No trial has been measured by its objective.",))
        return
    for (sweep, name), own in sorted(sweeps.items()):
        yield trials_table(own, name, sweep)
        raw = raw_rows_table(own, _rows_beside(baselines, sweep), name, sweep)
        if raw is not None:
            yield raw
        top = best_trial(own, name)
        if top is not None:
            confusion = taken_for(f"{sweep}: confusion of trial {top.tags.get('number', '')}", [top.groups])
            if confusion is not None:
                yield confusion
        charts = sweep_response.weight_response(own).items()
        yield Charts.of(_response(sweep, task, points, name) for task, points in charts if points)
        yield from _importance(f"{sweep}: {name}", "", own)
        groups = sweep_response.by_tasks(own)
        if len(groups) > 1:
            for tasks, some in groups.items():
                if len(some) >= sweep_response.FEWEST_TRIALS:
                    yield from _importance(f"{sweep}: {name}", f" within {' + '.join(tasks)}", some)


def _rows_beside(baselines: Sequence[Record], sweep: str) -> list[Record]:
    """Of rows that were asked for more than once the newest; of untrained heads those of the last best trial only."""
    asked = sorted((r for r in baselines if r.tags["sweep"] == sweep), key=lambda record: record.time)
    beside = {str(record.tags["row"]): record for record in asked}
    untrained = [row for row, record in beside.items() if record.tags.get("system") == "untrained"]
    return [record for row, record in beside.items() if row not in untrained[:-1]]


def _response(sweep: str, task: str, points: Sequence[sweep_response.Point], objective: str) -> Drawing:
    """The objective by a task's weight."""
    series = {
        "trained to its end": [[p.weight, p.value] for p in points if not p.stopped],
        "stopped early, where it stood then": [[p.weight, p.value] for p in points if p.stopped],
    }
    title = f"{sweep}: weight of {task}"
    options = {"xlabel": "weight", "ylabel": objective, "title": title}
    data = {name: own for name, own in series.items() if own}
    return Drawing(file_name(f"weight_{sweep}_{task}"), title, drawings.POINTS, data, options=options)


def _importance(name: str, where: str, trials: Sequence[Record]) -> Iterator[Block]:
    found = sweep_response.importance(trials)
    if found is None:
        yield Text((f"{name}{where}: too few finished trials (or nothing varied) to say which parameters mattered.",))
        return
    warning = "" if found.score > 0.1 else " This is too little to trust the order below."
    when = "" if found.epoch is None else f", all of them after {found.epoch} epochs, when the first were stopped"
    yield Text(
        (
            f"Importance for {name}{where}. Fall of the R² of a random forest on held-out trials when a parameter's "
            f"values are shuffled among them ({found.trials} trials{when}; R² {found.score:.2f}).{warning}",
        )
    )
    shown = dict(list(found.parameters.items())[:15])
    bars = {parameter: [mean, mean - spread, mean + spread, 0.68, 0] for parameter, (mean, spread) in shown.items()}
    title = f"importance for {name}{where}"
    options = {"ylabel": "fall of R²", "whiskers": "deviation", "title": title}
    yield Charts.of([Drawing(file_name(re.sub(r"\W+", "_", title)), title, drawings.BARS, bars, options=options)])
    lines = tuple(
        Line(parameter, (Entry(f"{mean:.3f}"), Entry(f"{spread:.3f}"))) for parameter, (mean, spread) in shown.items()
    )
    yield Table(f"Importance for {name}{where}", "parameter", (("fall of R²",), ("deviation",)), lines)


def _figures(results: Results, families: dict[str, list[Family]]) -> list[Drawing]:
    """Of each data set: scores over the share of labels, and all tasks minus each smaller combination."""
    shown = []
    for dataset in results.datasets:
        score, fractions = results.score(dataset), results.fractions(dataset)
        if not fractions:
            continue
        curves = {}
        for system in main_systems(results, dataset, min(fractions)):
            row = {}
            for fraction in fractions:
                value = system.value(f"{score}@{fraction:g}")
                if value is not None:
                    spread = value.deviation or 0.0
                    row[fraction] = Interval(value.mean, value.mean - spread, value.mean + spread, 0.68, value.seeds)
            curves[system.label] = row
        title = f"{dataset}: mean and deviation over seeds"
        name = file_name(f"label_efficiency_{dataset}")
        shown.append(
            drawings.of_systems(name, title, drawings.EFFICIENCY, curves, ylabel=score_name(score), title=title)
        )
        for recipe in results.recipes:
            found = [f for f in families["claim"] if (f.dataset, f.recipe) == (dataset, recipe) and f.comparisons]
            rows: dict[str, dict[float, Interval]] = {}
            told = set()
            for family in found:
                for c in family.comparisons:
                    rows.setdefault(c.second, {})[family.fraction] = c.interval
                    if c.verdict(LEVEL) in ("better", "worse"):
                        told.add((c.second, family.fraction))
            if rows:
                title = f"{dataset}, {recipe}: {' + '.join(results.tasks)} minus ..."
                name = file_name(f"all_tasks_{dataset}_{recipe}")
                label = f"difference in {score_name(score)}"
                shown.append(
                    drawings.of_systems(name, title, drawings.DIFFERENCES, rows, told, xlabel=label, title=title)
                )
    return shown


def _best_trials(trials: Sequence[Record]) -> Iterator[str]:
    """In words, of each sweep: its best trial."""
    sweeps: dict[tuple[str, str], list[Record]] = {}
    for trial in trials:
        if (measured := sweep_response.objective(trial)) is not None:
            sweeps.setdefault((str(trial.tags.get("sweep", "sweep")), measured[0]), []).append(trial)
    for (sweep, name), own in sorted(sweeps.items()):
        top = best_trial(own, name)
        if top is not None:
            tasks = " + ".join(top.tags.get("tasks", ()))
            who = f"trial {top.tags.get('number', '')}, {tasks}"
            yield f"{sweep}: first of {len(own)} is {who}, {name} {top.metrics[name]:.4f}."


def _csv(records: Sequence[Record]) -> str:
    """Every number of every record, one a line; groups as `accuracy@0.03/group/NAME`; a failed record is one line
    whose metric is `reason`."""
    rows: list[Sequence[object]] = [_COLUMNS]
    for record in records:
        tags = record.tags
        head = [record.kind, record.key, record.status]
        for name in _TAGS:
            value = tags.get(name, "")
            head.append("+".join(value) if isinstance(value, list) else str(value))
        numbers: dict[str, float | str] = {**record.metrics}
        numbers |= {f"cost/{name}": value for name, value in record.cost.items()}
        numbers |= {f"{m}/group/{g}": value for m, own in record.groups.items() for g, value in own.items()}
        if record.status == "failed":
            numbers = {"reason": record.reason, **numbers}
        rows += [[*head, name, value] for name, value in numbers.items()]
    return csv_text(rows)
