"""Health of a run as a few panels: one for each kind of measure on held-out rows, from before the first step on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray_jobs.plots import Panel

MOST = 6
_TITLES = {
    "neighbour_accuracy": "accuracy of neighbours' votes",
    "recall@10": "retrieval: match among 10",
    "effective_rank": "effective rank",
    "uniformity": "uniformity (lower: more even)",
    "alignment": "alignment (lower: closer)",
}
"""The kinds that have a panel whatever tasks say, the most telling first. Recall at 1 and 5 tells less of few rows, and
how many warnings there were is on the screen."""
_UNSHOWN = {"recall@1", "recall@5", "warnings"}

Curve = Sequence[tuple[int, float]]


def health_panels(history: Mapping[str, Curve], chances: Mapping[str, float]) -> list[Panel]:
    """At most six panels, with what chance gives.

    Args:
        history: `<kind>[/<where>]`, of a mixture `<corpus>/<kind>[/<where>]` -> (step, value) by step.
        chances: The same names -> the value of a model that has learned nothing, where there is one.
    """
    curves: dict[str, dict[str, Curve]] = {}
    chance: dict[str, dict[str, float]] = {}
    for name, curve in history.items():
        kind, where = _parted(name)
        if kind in _UNSHOWN or not curve:
            continue
        curves.setdefault(kind, {})[where or kind] = curve
        if name in chances:
            chance.setdefault(kind, {})[where or kind] = chances[name]
    kinds = [kind for kind in _TITLES if kind in curves] + [kind for kind in curves if kind not in _TITLES]
    titles = {kind: _TITLES.get(kind) or kind.replace("/", " ").replace("_", " ") for kind in kinds}
    return [Panel(titles[kind], curves[kind], chance.get(kind, {})) for kind in kinds[:MOST]]


def _parted(name: str) -> tuple[str, str]:
    """Kind, and of what: a modality, a pair, a corpus. A task's own measure is a kind by itself."""
    parts = name.split("/")
    known = _TITLES.keys() | _UNSHOWN
    place = next((at for at, part in enumerate(parts[:2]) if part in known), None)
    if place is None:
        return name, ""
    return parts[place], " ".join(parts[:place] + parts[place + 1 :])
