"""What a report says of the numbers: which comparisons are made, in which families, and the sentences that follow."""

from collections.abc import Sequence
from dataclasses import dataclass

from tuning.report_data import TASKS, Results, System, best
from tuning.significance import Comparison, compare

LEVEL = 0.05


@dataclass(frozen=True)
class Family:
    """Comparisons corrected together: of one data set, recipe and fraction. missing: why there are none."""

    dataset: str
    recipe: str
    fraction: float
    comparisons: tuple[Comparison, ...]
    missing: str = ""


def three_against_fewer(results: Results, dataset: str, recipe: str, fraction: float) -> Family:
    """The claim of the method: all three tasks against each combination of one or two of them."""
    three = results.find(dataset, recipe, TASKS, None)
    others = [
        system
        for system in results.of_set(dataset)
        if system.system == "pretrained" and system.recipe == recipe and system.complete and len(system.tasks) < 3
        if set(system.tasks) <= set(TASKS)
    ]
    others.sort(key=lambda system: (len(system.tasks), [TASKS.index(task) for task in system.tasks]))
    if three is None or not three.finished:
        return Family(dataset, recipe, fraction, (), "no finished cell of all three tasks")
    return _family(dataset, recipe, fraction, [(three, other) for other in others])


def against_references(results: Results, dataset: str, recipe: str, fraction: float) -> Family:
    """Every pretrained system of a recipe against the best single task, untrained heads and the best raw features.

    Which single task and which raw features are best is judged on the test speakers themselves, in their favour.
    """
    metric = f"accuracy@{fraction:g}"
    own = [s for s in results.of_set(dataset) if s.system == "pretrained" and s.recipe == recipe]
    single = best((s for s in own if s.complete and len(s.tasks) == 1 and s.tasks[0] in TASKS), metric)
    untrained = [s for s in results.of_set(dataset) if s.system == "untrained" and s.recipe == recipe and s.complete]
    raw = best((s for s in results.of_set(dataset) if s.system == "raw"), metric)
    references = [system for system in (single, *untrained, raw) if system is not None]
    own.sort(key=lambda s: (not s.complete, len(s.tasks), [TASKS.index(t) if t in TASKS else 9 for t in s.tasks]))
    pairs = [(system, reference) for system in own for reference in references if system is not reference]
    return _family(dataset, recipe, fraction, pairs)


def sentences(family: Family) -> list[str]:
    """In words: where three tasks are better, worse, or not shown to differ; at most one sentence of each kind."""
    place = f"{family.dataset}, {family.recipe}, {family.fraction:.0%} of labels"
    if family.missing or not family.comparisons:
        return [f"{place}: nothing can be said: {family.missing or 'nothing to compare with'}."]
    parts = []
    for verdict in ("better", "worse", "no difference shown"):
        found = [c for c in family.comparisons if c.verdict(LEVEL) == verdict]
        if found:
            listed = ", ".join(f"{_short(c.second)} ({100 * c.difference:+.1f}, p {_p(c.adjusted)})" for c in found)
            told = {
                "better": "better than",
                "worse": "worse than",
                "no difference shown": "not shown to differ from",
            }[verdict]
            parts.append(f"{told} {listed}")
    everywhere = all(c.verdict(LEVEL) == "better" for c in family.comparisons)
    answer = "yes" if everywhere else "no"
    return [f"{place}: three tasks better than each one and two of them? {answer}: {'; '.join(parts)}."]


def _family(dataset: str, recipe: str, fraction: float, pairs: Sequence[tuple[System, System]]) -> Family:
    metric = f"accuracy@{fraction:g}"
    usable = [(a, b) for a, b in pairs if a.groups(metric) and b.groups(metric)]
    if not usable:
        return Family(dataset, recipe, fraction, (), "no two finished systems to compare")
    rows = usable[0][0].finished[0].groups["rows"]
    if len(rows) < 2:
        return Family(dataset, recipe, fraction, (), "fewer than two test groups")
    scores = {system.label: system.groups(metric) for pair in usable for system in pair}
    named = {f"{a.label} | {b.label}": (a.label, b.label) for a, b in usable}
    return Family(dataset, recipe, fraction, tuple(compare(named, scores.__getitem__, rows).values()))


def _short(label: str) -> str:
    return label.partition(" [")[0]


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
