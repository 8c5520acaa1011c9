"""Pictures of a sweep: the objective over its trials, and over each parameter that varied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from ray_jobs.figure_style import COLOURS, PAGE, drawable, heading, legend, new_figure, save, styled
from tuning.sweep.folder import TrialStore
from tuning.sweep.space import names

_MARKS = {"stopped": ("x", COLOURS[1]), "finished": ("o", COLOURS[0])}
_BEST, _RAW = COLOURS[2], COLOURS[3]
_MOST_SLICES = 12
_SHORT = 5
_FIRST = ("modalities", "tasks", "recipe")


@styled()
def history(store: TrialStore, mode: str, path: Path, raw: tuple[str, str, float] | None = None) -> Path:
    """The objective of every trial in the order of their numbers, the best so far of those that were finished, and a
    line at the strongest raw row (name, score, value), where the objective is its score."""
    ended = {n: o for n, o in sorted(store.outcomes.items()) if o.curve and np.isfinite(store.value(n))}
    pick = max if mode == "max" else min
    figure = new_figure(PAGE, 0.5 * PAGE)
    axes = figure.subplots()
    marks: list[Any] = []
    told = []
    for state, (marker, colour) in _MARKS.items():
        points = [(n, store.value(n)) for n, o in ended.items() if o.state == state]
        if points:
            marks += axes.plot(*zip(*points, strict=True), marker, color=colour)
            told.append(state)
    best: list[tuple[int, float]] = []
    for n, o in ended.items():
        if o.state == "finished":
            best.append((n, pick([store.value(n), *(value for _, value in best[-1:])])))
    if best:
        marks += axes.step(*zip(*best, strict=True), where="post", color=_BEST)
        told.append("best so far")
    if raw is not None and raw[1] == store.objective:
        marks.append(axes.axhline(raw[2], color=_RAW, linestyle="--"))
        told.append(raw[0])
    axes.set(xlabel="trial", ylabel=drawable(store.objective), title="objective over trials")
    legend(axes, marks, told, PAGE / 3)
    return save(figure, path)


@styled()
def slices(store: TrialStore, path: Path) -> Path:
    """One panel for each parameter that varied: the objective of the trials that had it, over its values."""
    ended = [n for n, o in store.outcomes.items() if o.curve and np.isfinite(store.value(n))]
    varied = [
        name
        for name in columns(store)
        if len({str(store.choices[n][name]) for n in ended if name in store.choices[n]}) > 1
    ][:_MOST_SLICES]
    across = min(4, max(1, len(varied)))
    down = max(1, -(-len(varied) // across))
    figure = new_figure(PAGE, 0.3 * PAGE * down)
    panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for place, axes in enumerate(panels):
        if place < len(varied):
            _slice(axes, store, varied[place], [n for n in ended if varied[place] in store.choices[n]])
        else:
            axes.set_axis_off()
    figure.supylabel(heading(store.objective))
    return save(figure, path)


def _slice(axes: Any, store: TrialStore, name: str, numbers: Sequence[int]) -> None:
    values = [store.choices[n][name] for n in numbers]
    for state, (marker, colour) in _MARKS.items():
        own = [place for place, n in enumerate(numbers) if store.outcomes[n].state == state]
        heights = [store.value(numbers[place]) for place in own]
        if all(isinstance(value, float) for value in values):
            axes.plot([values[place] for place in own], heights, marker, color=colour)
        else:
            options = sorted(set(values), key=lambda value: (isinstance(value, str), value))
            axes.plot([options.index(values[place]) for place in own], heights, marker, color=colour)
            labels = [drawable(option, PAGE / 8) for option in _short(options)]
            slanted = any(len(label) > 4 for label in labels)
            axes.set_xticks(
                range(len(options)), labels, rotation=30 if slanted else 0, ha="right" if slanted else "center"
            )
    if all(isinstance(value, float) and value > 0 for value in values) and max(values) > 5 * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if max(values) < 100 * min(values) else (1.0,)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(drawable(name.removeprefix("tasks.").removeprefix("model."), PAGE / 4))


def columns(store: TrialStore) -> list[str]:
    """Every name that some trial chose, the ones that all have first."""
    found = list(dict.fromkeys(name for choices in store.choices.values() for name in choices))
    return [*(name for name in _FIRST if name in found), *(name for name in found if name not in _FIRST)]


def _short(options: Sequence[Any]) -> list[str]:
    """Names of tasks and modalities by their first letters, as many as tell them apart."""
    parts = [tuple(names(option)) if isinstance(option, str) else (str(option),) for option in options]
    known = {name for some in parts for name in some}
    longest = max(map(len, known), default=_SHORT)
    length = next((n for n in range(_SHORT, longest) if len({name[:n] for name in known}) == len(known)), longest)
    return ["+".join(name[:length] for name in some) for some in parts]
