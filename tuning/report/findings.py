"""What a report says of the numbers: which comparisons are made, in which families, and the sentences that follow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from conclugen.evaluation.statistics import Comparison, Crossed, Scores, paired_tests
from tuning.report.systems import WITH_RAW_SYSTEM, Results, System, best, class_counts, count_word

LEVEL = 0.05
_SCORE_NAMES = {
    "accuracy": "accuracy",
    "uar": "unweighted average recall",
    "f1_macro": "F1 (macro)",
    "f1_weighted": "F1 (weighted)",
    "precision_weighted": "precision (weighted)",
    "recall_weighted": "recall (weighted)",
}


def score_name(score: str) -> str:
    """A score as people call it; one of somebody else's by its own name."""
    return _SCORE_NAMES.get(score, score)


@dataclass(frozen=True)
class Family:
    """Comparisons corrected together: of one data set, recipe and fraction. missing: why there are none. unit: what a
    unit of their intervals is called. score: that differs, `accuracy` or `uar`. left_out: labels of two systems -> the
    seeds that their comparison does without, as one of them lacks those."""

    dataset: str
    recipe: str
    fraction: float
    comparisons: tuple[Comparison, ...]
    missing: str = ""
    unit: str = "speaker"
    score: str = "accuracy"
    left_out: Mapping[tuple[str, str], tuple[int, ...]] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """In words: where its comparisons are made."""
        by = "" if self.score == "accuracy" else f", by {score_name(self.score)}"
        return f"{self.dataset}, {self.recipe}, {self.fraction:.0%} of labels{by}"


def all_against_fewer(results: Results, dataset: str, recipe: str, fraction: float) -> Family:
    """The claim of the method: all tasks against each smaller combination of them."""
    tasks = results.tasks
    whole = results.find(dataset, recipe, tasks, None)
    others = [
        system
        for system in results.settled(dataset)
        if system.system == "pretrained" and system.recipe == recipe and system.complete
        if set(system.tasks) < set(tasks)
    ]
    others.sort(key=lambda system: (len(system.tasks), [tasks.index(task) for task in system.tasks]))
    pairs = [] if whole is None else [(whole, other) for other in others]
    return _of_all(results, dataset, recipe, fraction, whole, pairs)


def against_references(results: Results, dataset: str, recipe: str, fraction: float) -> Family:
    """Every pretrained system of a recipe, and all tasks beside the raw features, against the best single task,
    untrained heads and the strongest raw row.

    Which single task and which raw row are best is judged on the test speakers themselves, in their favour.
    """
    metric = f"{results.score(dataset)}@{fraction:g}"
    own = [s for s in results.of_set(dataset) if s.system == "pretrained" and s.recipe == recipe]
    single = best((s for s in own if s.complete and _is_single(s, results.tasks)), metric)
    untrained = [s for s in results.of_set(dataset) if s.system == "untrained" and s.recipe == recipe and s.complete]
    raw = results.strongest_raw(dataset, metric)
    most = max((len(s.tasks) for s in own if s.complete), default=0)
    own += [s for s in results.of_set(dataset) if _beside_raw(s, recipe) and s.complete and len(s.tasks) == most]
    references = [system for system in (single, *untrained, raw) if system is not None]
    place = {task: i for i, task in enumerate(results.tasks)}
    own.sort(key=lambda s: (not s.complete, len(s.tasks), [place.get(task, len(place)) for task in s.tasks]))
    pairs = [(system, reference) for system in own for reference in references if system is not reference]
    return _family(results, dataset, recipe, fraction, pairs)


def configured_against_all(results: Results, dataset: str, recipe: str, fraction: float) -> Family:
    """Every named configuration (what a sweep found) against all tasks at the ablation's own settings."""
    tasks = results.tasks
    whole = results.find(dataset, recipe, tasks, None)
    named = [s for s in results.of_set(dataset) if s.configuration and s.recipe == recipe]
    pairs = [] if whole is None else [(system, whole) for system in named]
    return _of_all(results, dataset, recipe, fraction, whole, pairs)


def against_raw(results: Results, family: Family) -> list[str]:
    """In words: the strongest raw row of that set and share, by name, and every system of all modalities minus it."""
    raw = results.strongest_raw(family.dataset, f"{family.score}@{family.fraction:g}")
    suffix = f" [{family.recipe}]"
    named = {c.first.removesuffix(suffix): c for c in family.comparisons if raw is not None and c.second == raw.label}
    told = [
        f"{name} {points(c.difference)} [{points(c.interval.low)}, {points(c.interval.high)}], p {_p(c.adjusted)}, "
        f"{c.verdict(LEVEL, f'{family.unit}s')}"
        for name, c in named.items()
        if not name.endswith(")")  # of some modalities: those are in the table
    ]
    if raw is None or not told:
        return []
    return [f"{family.place}: strongest raw row {raw.label}; minus it: {'; '.join(told)}."]


def _beside_raw(system: System, recipe: str) -> bool:
    return system.system == WITH_RAW_SYSTEM and system.recipe == recipe and not system.configuration


def sentences(family: Family) -> list[str]:
    """In words: where all tasks are better, worse, or not shown to differ; at most one sentence of each kind."""
    place = family.place
    if family.missing or not family.comparisons:
        return [f"{place}: nothing can be said: {family.missing or 'nothing to compare with'}."]
    count = count_word(family.comparisons[0].first.partition(" [")[0].count(" + ") + 1)
    question = f"{place}: {count} tasks better than each smaller combination?"
    if not family.comparisons[0].tellable(LEVEL):  # nor any other: one family has the same groups
        listed = ", ".join(f"{_short(c.second)} ({points(c.difference)})" for c in family.comparisons)
        return [f"{question} {family.comparisons[0].verdict(LEVEL, f'{family.unit}s')}: minus {listed}."]
    parts = []
    for verdict in ("better", "worse", "no difference shown"):
        found = [c for c in family.comparisons if c.verdict(LEVEL) == verdict]
        if found:
            listed = ", ".join(f"{_short(c.second)} ({points(c.difference)}, p {_p(c.adjusted)})" for c in found)
            told = {
                "better": "better than",
                "worse": "worse than",
                "no difference shown": "not shown to differ from",
            }[verdict]
            parts.append(f"{told} {listed}")
    everywhere = all(c.verdict(LEVEL) == "better" for c in family.comparisons)
    answer = "yes" if everywhere else "no"
    return [f"{question} {answer}: {'; '.join(parts)}."]


def _of_all(
    results: Results,
    dataset: str,
    recipe: str,
    fraction: float,
    whole: System | None,
    pairs: Sequence[tuple[System, System]],
) -> Family:
    """Pairs that all tasks (`whole`) are in."""
    if whole is None or not whole.finished:
        missing = f"no finished cell of all {results.counted}"
        return Family(dataset, recipe, fraction, (), missing, score=results.score(dataset))
    return _family(results, dataset, recipe, fraction, pairs)


def _family(
    results: Results, dataset: str, recipe: str, fraction: float, pairs: Sequence[tuple[System, System]]
) -> Family:
    score = results.score(dataset)
    empty = Family(dataset, recipe, fraction, (), score=score)
    usable, left_out = {}, {}
    for first, second in pairs:
        *scores, without = _common(first, second, score, fraction)
        if all(scores):
            usable[first.label, second.label] = (scores[0], scores[1])
        if without and first.finished and second.finished:
            left_out[first.label, second.label] = without
    empty = replace(empty, left_out=left_out)
    if not usable:
        return replace(empty, missing="no two finished systems with a common seed")
    records = [r for first, second in pairs if (first.label, second.label) in usable for r in first.finished]
    counted = ((r, class_counts(r) if score == "uar" else r.groups.get("rows", {})) for r in records)
    record, rows = next((pair for pair in counted if pair[1]), (records[0], {}))
    if len(rows) < 2:
        return replace(empty, missing="fewer than two test groups")
    unit = str(record.tags.get("unit", "speaker"))
    return replace(empty, comparisons=tuple(paired_tests(usable, rows)), unit=unit)


def _common(first: System, second: System, score: str, fraction: float) -> tuple[Crossed, Crossed, tuple[int, ...]]:
    """The score's parts by group, of each seed for which both have them, and the seeds for which only one has, or
    neither; raw features have no seed and stand beside any. Draws of labels are averaged."""

    def parts(system: System, seed: int) -> Scores:
        if score == "uar":  # a cell judged before recall was kept by group has none
            return system.recalls(fraction, {seed})
        return system.groups(f"{score}@{fraction:g}", {seed})

    found = [{seed: one for seed in sorted(system.seeds) if (one := parts(system, seed))} for system in (first, second)]
    if first.recipe and second.recipe:
        both = found[0].keys() & found[1].keys()
        found = [{seed: one for seed, one in of.items() if seed in both} for of in found]
    asked = [(system, of) for system, of in zip((first, second), found, strict=True) if system.recipe]
    without = {seed for system, _ in asked for seed in system.asked for _, of in asked if seed not in of}
    return [[one] for one in found[0].values()], [[one] for one in found[1].values()], tuple(sorted(without))


def winners(results: Results, references: Sequence[Family]) -> list[str]:
    """In words, of each data set and share of labels: what is first, and by how much the best representation is ahead
    of the strongest raw row, or behind it. references: as `against_references` makes them."""
    told = []
    for dataset in results.datasets:
        for fraction in results.fractions(dataset):
            score = results.score(dataset)
            metric = f"{score}@{fraction:g}"
            raw = results.strongest_raw(dataset, metric)
            compared = {
                c.first: (c, family.unit)
                for family in references
                if (family.dataset, family.fraction) == (dataset, fraction)
                for c in family.comparisons
                if raw is not None and c.second == raw.label
            }
            known = {s.label: s for s in results.of_set(dataset) if s.value(metric) is not None}
            first = best(known.values(), metric)
            own = best((known[name] for name in compared if name in known), metric)
            if first is None:
                continue
            value = first.value(metric)
            assert value is not None
            line = f"{dataset}, {fraction:.0%} of labels: first is {first.label}, {score_name(score)} "
            line += f"{100 * value.mean:.1f} %."
            if own is not None and raw is not None:
                c, unit = compared[own.label]
                who = "It" if own == first else f"The best representation, {own.label},"
                where = f"{points(c.difference)} points [{points(c.interval.low)}, {points(c.interval.high)}]"
                line += f" {who} is {where} from the strongest raw row, {raw.label}: {c.verdict(LEVEL, unit + 's')} "
                line += f"(p {_p(c.adjusted)})."
            told.append(line)
    return told


def points(difference: float) -> str:
    """In percentage points, with its sign; what rounds to nothing has none."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def summary(families: Sequence[Family]) -> str:
    """How often all tasks are better than every smaller combination, and how often one of these is better."""
    made = [family for family in families if family.comparisons]
    if not made:
        return "All tasks and smaller combinations are not both finished anywhere: nothing can be said yet."
    verdicts = [{c.verdict(LEVEL) for c in family.comparisons} for family in made]
    ahead = sum(found == {"better"} for found in verdicts)
    behind = sum("worse" in found for found in verdicts)
    untold = sum(not family.comparisons[0].tellable(LEVEL) for family in made)
    few = f" In {untold} it cannot be told with so few speakers." if untold else ""
    return (
        f"Of {len(made)} settings (data set, recipe, share of labels), all tasks are significantly better than every "
        f"smaller combination in {ahead}, and significantly worse than at least one in {behind}.{few}"
    )


def _is_single(system: System, tasks: Sequence[str]) -> bool:
    return not system.configuration and len(system.tasks) == 1 and system.tasks[0] in tasks


def _short(label: str) -> str:
    return label.partition(" [")[0]


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
