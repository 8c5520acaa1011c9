"""The tables of a report, before they become HTML or Markdown: heads of several levels, cells with marks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from conclugen.evaluation.config import RAW_SYSTEMS
from ray_jobs.verdict import which
from tuning.ledger import WITH_RAW, Record
from tuning.report.findings import LEVEL, Family, points, score_name
from tuning.report.sweep_response import stopped
from tuning.report.systems import WITH_RAW_SYSTEM, Results, Row, System, Value, best
from tuning.sweep.objective import LABELLED, OBJECTIVES

REFERENCES = ("best single task", "untrained heads", "strongest raw row")
MACRO = ("uar", "f1_macro")
_HOLE = "—"
_MOST_GROUPS = 40
_MOST_TRIALS = 10


@dataclass(frozen=True)
class Entry:
    """A cell. mark: "best", "second", "hole", "significant", "words" (no number), or "". hint: what a reader asks of it
    (a reason)."""

    text: str
    mark: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Line:
    """section: a heading above the first of the lines that share it."""

    name: str
    entries: tuple[Entry, ...]
    section: str = ""


@dataclass(frozen=True)
class Table:
    """head: for each column its headings from the outermost to the innermost. corner: of the names' column."""

    title: str
    corner: str
    head: tuple[tuple[str, ...], ...]
    lines: tuple[Line, ...]
    note: str = ""
    footnotes: tuple[str, ...] = field(default=())


def results_table(results: Results, rows: Sequence[Row], title: str, scores: Sequence[str], note: str = "") -> Table:
    """The papers' layout: rows systems; columns data sets, scores and fractions; best and second of each column."""
    columns = [
        (dataset, score, fraction)
        for dataset in results.datasets
        for score in scores
        for fraction in results.scores(dataset).get(score, ())
    ]
    values = [
        [_value(row.systems.get(dataset), score, fraction) for dataset, score, fraction in columns] for row in rows
    ]
    reasons: dict[str, str] = {}
    lines = []
    for row, line in zip(rows, values, strict=True):
        entries = []
        for index, (dataset, _, _) in enumerate(columns):
            value = line[index]
            if value is None:
                entries.append(_hole(row, dataset, reasons))
            else:
                column = [other[index] for other in values]
                entries.append(Entry(shown(value), _rank(value, column), _hint(value)))
        section = f"recipe {row.recipe}" if row.recipe else "without heads"
        lines.append(Line(row.name, tuple(entries), section))
    head = tuple((dataset, score_name(score), f"{fraction:.0%} of labels") for dataset, score, fraction in columns)
    footnotes = tuple(f"{mark} {reason}" for reason, mark in reasons.items())
    for row in rows:
        for dataset, system in row.systems.items():
            if single := which({share: system.choices(share) for share in results.fractions(dataset)}):
                footnotes += (f"{dataset}: {single}.",)
    if set(MACRO) & set(scores):
        footnotes += tuple(
            f"{dataset}: no test row of class {', '.join(absent)}; macro scores are of the other classes."
            for dataset in results.datasets
            if (absent := results.absent(dataset))
        )
    return Table(title, "representation", head, tuple(lines), note, footnotes)


def claim_table(families: Sequence[Family], title: str, note: str) -> Table:
    """Rows pairs, columns fractions: difference in the score with its interval, and the corrected p-value."""
    fractions = sorted({family.fraction for family in families})
    lines = []
    for (dataset, recipe), own in _by_place(families).items():
        pairs = dict.fromkeys((c.first, c.second) for family in own.values() for c in family.comparisons)
        for pair in pairs:
            found = [_comparison(own.get(fraction), pair[0], second=pair[1]) for fraction in fractions]
            name = f"{_bare(pair[0], recipe)} minus {_bare(pair[1], recipe)}"
            lines.append(Line(name, tuple(found), _section(families, dataset, recipe)))
    head = tuple((f"{fraction:.0%} of labels",) for fraction in fractions)
    return Table(title, _difference(families), head, tuple(lines), note, _left_out(families))


def reference_table(families: Sequence[Family], title: str, note: str) -> Table:
    """Rows systems; columns kinds of reference and fractions. The hint says which system a reference is."""
    fractions = sorted({family.fraction for family in families})
    there = {_kind(c.second) for family in families for c in family.comparisons}
    columns = [(kind, fraction) for kind in REFERENCES if kind in there for fraction in fractions]
    lines = []
    for (dataset, recipe), own in _by_place(families).items():
        for first in dict.fromkeys(c.first for family in own.values() for c in family.comparisons):
            entries = [_comparison(own.get(fraction), first, kind=kind) for kind, fraction in columns]
            lines.append(Line(_bare(first, recipe), tuple(entries), _section(families, dataset, recipe)))
    head = tuple((f"minus {kind}", f"{fraction:.0%} of labels") for kind, fraction in columns)
    return Table(title, _difference(families), head, tuple(lines), note, _left_out(families))


def _left_out(families: Sequence[Family]) -> tuple[str, ...]:
    """In words: which seeds differences do without, a sentence for all that lack the same seeds at the same shares."""
    shares: dict[tuple[str, str, str, tuple[int, ...]], list[float]] = {}
    for family in families:
        for (first, second), seeds in family.left_out.items():
            pair = f"{_bare(first, family.recipe)} minus {_bare(second, family.recipe)}"
            shares.setdefault((family.dataset, family.recipe, pair, seeds), []).append(family.fraction)
    pairs: dict[tuple[str, ...], list[str]] = {}
    for (dataset, recipe, pair, seeds), fractions in shares.items():
        numbers = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        at = " and ".join(f"{fraction:.0%}" for fraction in sorted(fractions))
        pairs.setdefault((dataset, recipe, at, numbers), []).append(pair)
    return tuple(
        f"{dataset}, {recipe}, {at} of labels: without {numbers}, which not both systems have: {'; '.join(listed)}."
        for (dataset, recipe, at, numbers), listed in pairs.items()
    )


def _difference(families: Sequence[Family]) -> str:
    """The corner of a table of differences."""
    scores = dict.fromkeys(score_name(family.score) for family in families)
    return f"paired difference in {' or '.join(scores) or 'accuracy'}"


def _section(families: Sequence[Family], dataset: str, recipe: str) -> str:
    """A heading within such a table; of several scores it tells which."""
    score = next(family.score for family in families if family.dataset == dataset)
    by = f", {score_name(score)}" if len({family.score for family in families}) > 1 else ""
    return f"{dataset}, recipe {recipe}{by}"


def _by_place(families: Sequence[Family]) -> dict[tuple[str, str], dict[float, Family]]:
    by_place: dict[tuple[str, str], dict[float, Family]] = {}
    for family in families:
        by_place.setdefault((family.dataset, family.recipe), {})[family.fraction] = family
    return by_place


def _kind(label: str) -> str:
    single, untrained, raw = REFERENCES
    if not label.endswith("]"):  # raw rows have no recipe
        return raw
    return untrained if label.startswith("untrained heads") else single


def _comparison(family: Family | None, first: str, second: str | None = None, kind: str | None = None) -> Entry:
    """Of a system with another: that of a name, or of a kind."""
    found = [
        c
        for c in (family.comparisons if family is not None else ())
        if c.first == first and (c.second == second if kind is None else _kind(c.second) == kind)
    ]
    if not found:
        return Entry(_HOLE, "hole", family.missing if family is not None else "")
    c = found[0]
    text = f"{points(c.difference)} [{points(c.interval.low)}, {points(c.interval.high)}] p {p_shown(c.adjusted)}"
    mark = "significant" if c.verdict(LEVEL) in ("better", "worse") else ""
    units = "speakers" if family is None else f"{family.unit}s"
    return Entry(text, mark, f"minus {c.second}; uncorrected p {p_shown(c.p_value)}; {c.verdict(LEVEL, units)}")


def group_table(results: Results, dataset: str, systems: Sequence[System], fraction: float) -> Table:
    """Accuracy of each speaker (video) under each system; of many groups those on which the first system is worst and
    best."""
    metric = f"accuracy@{fraction:g}"
    rows = next(s.finished[0].groups.get("rows", {}) for s in systems if s.finished)
    scores = [system.groups(metric) for system in systems]
    listed = [group for group in scores[0] if all(group in score for score in scores)]
    note = ""
    if len(listed) > _MOST_GROUPS:
        ordered = sorted(listed, key=scores[0].__getitem__)
        listed = [*ordered[: _MOST_GROUPS // 2], *ordered[-_MOST_GROUPS // 2 :]]
        note = f"Of {len(ordered)} groups the {_MOST_GROUPS // 2} worst and best of the first column."
    lines = []
    for group in listed:
        top = max(score[group] for score in scores) if len(scores) > 1 else None
        entries = [Entry(f"{rows[group]:.0f}" if group in rows else "")]
        entries += [Entry(f"{100 * s[group]:.1f}", "best" if s[group] == top else "") for s in scores]
        lines.append(Line(group, tuple(entries)))
    spread = [Entry("")]
    for score in scores:
        each = list(score.values())
        spread.append(Entry(f"{100 * min(each):.1f} to {100 * max(each):.1f}" if each else ""))
    lines.append(Line("lowest to highest", tuple(spread)))
    head = (("rows",), *((system.label,) for system in systems))
    unit = results.unit(dataset)
    return Table(f"{dataset}: accuracy by {unit}, {fraction:.0%} of labels", unit, head, tuple(lines), note)


def class_table(dataset: str, systems: Sequence[System], fraction: float) -> Table:
    """Recall of each class."""
    suffix = f"@{fraction:g}"
    names = [m for m in systems[0].finished[0].metrics if m.startswith("recall/") and m.endswith(suffix)]
    lines = []
    for metric in names:
        values = [system.value(metric) for system in systems]
        entries = [Entry(_HOLE, "hole") if v is None else Entry(shown(v), _rank(v, values)) for v in values]
        lines.append(Line(metric.removeprefix("recall/").removesuffix(suffix), tuple(entries)))
    head = tuple((system.label,) for system in systems)
    return Table(f"{dataset}: recall by class, {fraction:.0%} of labels", "class", head, tuple(lines))


def confusion_table(dataset: str, system: System, fraction: float) -> Table | None:
    """What the rows of each class were taken for, in % of its rows; means over draws and seeds. None without numbers of
    it (a ledger of an earlier version)."""
    title = f"{dataset}: confusion of {system.label}, {fraction:.0%} of labels"
    return taken_for(title, [record.groups for record in system.finished], f"@{fraction:g}")


def taken_for(title: str, groups: Sequence[Mapping[str, Mapping[str, float]]], suffix: str = "") -> Table | None:
    """What the rows of each class were taken for, in % of its rows: `confusion/<class><suffix>` of the groups of one or
    more records, mean over these. None where none has it."""
    each = [own for own in groups if any(name.startswith("confusion/") for name in own)]
    if not each:
        return None
    rows = each[0]["class_rows"]
    lines = []
    for name, count in rows.items():
        own = [groups.get(f"confusion/{name}{suffix}", {}) for groups in each]
        entries = [Entry(f"{count:.0f}")]
        for other in rows:
            share = 100 * sum(one.get(other, 0.0) for one in own) / (len(own) * count) if count else 0.0
            entries.append(Entry(f"{share:.1f}" if count else _HOLE, "" if count else "hole"))
        lines.append(Line(name, tuple(entries)))
    head = (("rows",), *((f"taken for {name}",) for name in rows))
    return Table(title, "class", head, tuple(lines), "In % of the rows of each class; the diagonal is its recall.")


def retrieval_table(results: Results) -> Table | None:
    """Recall at 1, 5, 10 of the other modality of the same clip among the test rows, and measures of collapse."""
    systems = [s for s in results.systems if s.system == "pretrained" and s.finished]
    systems.sort(key=lambda s: (results.datasets.index(s.dataset), s.recipe, not s.complete, len(s.tasks), s.tasks))
    found = {m.partition("/")[2] for s in systems for m in s.finished[0].metrics if m.startswith("recall@")}
    pairs = sorted({_pair(name) for name in found})
    if not pairs:
        return None
    metrics = [(k, pair) for pair in pairs for k in (1, 5, 10)]
    lines = []
    for system in systems:
        peers = [s for s in systems if s.dataset == system.dataset]
        entries = []
        for k, pair in metrics:
            value = _retrieval(system, k, pair)
            column = [_retrieval(peer, k, pair) for peer in peers]
            entries.append(Entry(_HOLE, "hole") if value is None else Entry(shown(value), _rank(value, column)))
        lines.append(Line(system.label, tuple(entries), system.dataset))
    head = tuple((" and ".join(pair), f"recall@{k}") for k, pair in metrics)
    return Table(
        "Cross-modal retrieval",
        "representation",
        head,
        tuple(lines),
        "In %: is the other modality of the same clip among the k most similar test rows of its fold? Mean of both "
        "directions, over folds; ties count against the system. A model without a shared projection has none.",
    )


def trials_table(trials: Sequence[Record], name: str, sweep: str) -> Table:
    """The best trials of a sweep by their objective, those that ran to their end first."""
    least = OBJECTIVES.get(name) == "min"
    measured = [(record, float(record.metrics[name])) for record in trials if record.status == "finished"]
    measured.sort(key=lambda entry: (stopped(entry[0]), entry[1] if least else -entry[1]))
    lines = []
    for record, value in measured[:_MOST_TRIALS]:
        tags = record.tags
        lists = ("+".join(tags.get(kind, ())) for kind in ("tasks", "modalities"))
        state, weights = (Entry(str(tags.get(kind, "")), "words") for kind in ("state", "weights"))
        words = (Entry(text, "words") for text in lists)
        lines.append(Line(str(tags.get("number", "")), (state, Entry(f"{value:.4f}"), *words, weights)))
    seconds = sum(r.cost.get(f"{part}_seconds", 0.0) for r in trials for part in ("train", "measure"))
    early = sum(stopped(record) for record, _ in measured)
    each = [r.cost.get("cpu_seconds", 0.0) for r in trials]
    work = sum(each) if all(each) else 0.0  # trials of an earlier version do not tell it
    note = f"{len(trials)} trials, {early} of them stopped early; {seconds / 60:.1f} minutes of training and measuring"
    note += f", {work / 60:.1f} minutes of CPU time." if work else "."
    head = (("state",), (name,), ("tasks",), ("modalities",), ("weights",))
    title = f"{sweep}: best trials by {name} ({'least' if least else 'most'} first)"
    return Table(title, "trial", head, tuple(lines), note)


def best_trial(trials: Sequence[Record], name: str) -> Record | None:
    """Of those that ran to their end the best by the objective `name`."""
    measured = [r for r in trials if r.status == "finished" and not stopped(r) and np.isfinite(r.metrics[name])]
    sign = 1 if OBJECTIVES.get(name) == "min" else -1
    return min(measured, key=lambda record: sign * record.metrics[name], default=None)


def raw_rows_table(trials: Sequence[Record], rows: Sequence[Record], name: str, sweep: str) -> Table | None:
    """The raw rows and other baselines of a sweep beside its best trial (by its objective `name`), alone and beside raw
    features, by every score of a probe."""
    if not rows:
        return None
    top = best_trial(trials, name)
    named: list[tuple[str, Mapping[str, float]]] = []
    if top is not None:
        beside = {n.removeprefix(WITH_RAW): v for n, v in top.metrics.items() if n.startswith(WITH_RAW)}
        title = f"trial {top.tags.get('number', '')}, the best"
        named += [(title, top.metrics), *([(f"{title}, + raw", beside)] if beside else [])]
    named += [(str(record.tags["row"]), record.metrics) for record in rows]
    lines = []
    for label, metrics in named:
        entries = [Entry(f"{metrics[s]:.4f}") if s in metrics else Entry(_HOLE, "hole") for s in LABELLED]
        lines.append(Line(label, tuple(entries)))
    score = name if name in LABELLED else f"probe_{rows[0].tags.get('score', 'accuracy')}"
    raws = [r for r in rows if r.tags.get("system", "raw") in RAW_SYSTEMS and np.isfinite(r.metrics.get(score, np.nan))]
    note = ""
    if raws:
        raw = max(raws, key=lambda record: record.metrics[score])
        note = f"Strongest raw row by {score}: {raw.tags['row']} ({raw.metrics[score]:.4f})"
        if top is not None and score in top.metrics:
            note += f"; the best trial minus it: {top.metrics[score] - raw.metrics[score]:+.4f}"
            note += ", on the rows that chose the trial, in its favour"
        note += "."
    return Table(f"{sweep}: rows beside the best trial", "row", tuple((s,) for s in LABELLED), tuple(lines), note)


def cost_table(results: Results) -> Table:
    """What each system cost."""
    lines = []
    for system in results.systems:
        if not system.finished or system.system == WITH_RAW_SYSTEM:  # whose cost is in the representation's own
            continue
        seconds, work = system.cost("seconds"), system.cost("cpu_seconds")
        samples, memory = system.cost("samples"), system.cost("peak_memory_bytes")
        entries = (
            Entry(str(len(system.finished))),
            Entry(f"{seconds.mean:.0f}" if seconds else _HOLE),
            Entry(f"{work.mean:.0f}" if work else _HOLE),
            Entry(f"{samples.mean:,.0f}" if samples else _HOLE),
            Entry(f"{memory.mean / 2**20:,.0f}" if memory else _HOLE),
        )
        lines.append(Line(system.label, entries, system.dataset))
    head = tuple((name,) for name in ("seeds", "seconds", "CPU seconds", "samples seen", "peak memory, MiB"))
    return Table(
        "What each run cost", "system", head, tuple(lines), "Means over seeds; a run is all folds of one seed."
    )


def shown(value: Value) -> str:
    """In percent: `57.4 ± 0.4`."""
    deviation = "" if value.deviation is None else f" ± {100 * value.deviation:.1f}"
    return f"{100 * value.mean:.1f}{deviation}"


def p_shown(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def main_systems(results: Results, dataset: str, fraction: float) -> list[System]:
    """Those that single tables and curves show: all tasks, the best two and single task, and the references."""
    metric = f"{results.score(dataset)}@{fraction:g}"
    own = [s for s in results.of_set(dataset) if s.finished and s.complete]
    chosen: list[System | None] = []
    every = set(results.tasks)
    for recipe in results.recipes:
        mine = [s for s in own if s.recipe == recipe and not s.configuration]
        for count in dict.fromkeys((len(results.tasks), 2, 1)):
            pool = [s for s in mine if s.system == "pretrained" and len(s.tasks) == count and set(s.tasks) <= every]
            chosen.append(best(pool, metric))
        beside = (s for s in mine if s.system == WITH_RAW_SYSTEM and set(s.tasks) == every)
        chosen.append(best(beside, metric))
        chosen.append(best((s for s in mine if s.system == "untrained"), metric))
        named = [s for s in results.of_set(dataset) if s.configuration and s.recipe == recipe and s.finished]
        named.sort(key=lambda s: s.configuration)
        chosen += named
    chosen.append(results.strongest_raw(dataset, metric))
    return [system for system in chosen if system is not None]


def _value(system: System | None, score: str, fraction: float) -> Value | None:
    return None if system is None else system.value(f"{score}@{fraction:g}")


def _hole(row: Row, dataset: str, reasons: dict[str, str]) -> Entry:
    system = row.systems.get(dataset)
    reason = row.holes.get(dataset) or (system.reason if system is not None else "")
    if not reason:
        return Entry(_HOLE, "hole", "not run")
    mark = reasons.setdefault(f"{dataset}: {reason}", f"[{len(reasons) + 1}]")
    return Entry(f"{_HOLE} {mark}", "hole", reason)


def _rank(value: Value, column: Sequence[Value | None]) -> str:
    means = sorted({other.mean for other in column if other is not None}, reverse=True)
    if len(means) < 2:
        return ""
    return "best" if value.mean == means[0] else "second" if value.mean == means[1] else ""


def _hint(value: Value) -> str:
    if value.deviation is None and value.seeds == 1 and not value.missing:
        return "one run"
    lacking = f", {value.missing} missing" if value.missing else ""
    return f"{value.seeds} seed{'s' * (value.seeds != 1)}{lacking}"


def _bare(label: str, recipe: str) -> str:
    return label.removesuffix(f" [{recipe}]")


def _pair(name: str) -> tuple[str, str]:
    """Two modalities, whichever of them a model names first."""
    first, _, second = name.partition("-")
    return (first, second) if first <= second else (second, first)


def _retrieval(system: System, k: int, pair: tuple[str, str]) -> Value | None:
    first, second = pair
    return system.value(f"recall@{k}/{first}-{second}") or system.value(f"recall@{k}/{second}-{first}")
