"""Pictures of runs and evaluations: confusion matrix, map of representations, curves, bars, dots and lines.

Every function writes PNG, SVG and PDF in the style of `ray_jobs.figure_style`, returns the PNG, and needs no display.
width: inches of the picture.
"""

import itertools
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.common.extras import needed_for
from conclugen.evaluation.statistics import Interval
from ray_jobs.figure_style import (
    BETTER,
    CHANCE,
    FAINT,
    PAGE,
    UNDECIDED,
    VENUES,
    WORSE,
    colour,
    drawable,
    heading,
    legend,
    legend_beside,
    marker,
    new_figure,
    save,
    styled,
    with_legend,
)

with needed_for("drawing plots"):
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

_SMOOTHED_FROM = 200  # a curve with more points than this gets a running mean
_MARKED_UP_TO = 12  # one with fewer has a mark at each
_MOST_NAMED = 24  # of a map's colours and marks; the rest is grey
_MEDIAN_FROM = 9  # so many points have a running median
_LINES_HEIGHT = 0.5  # of the width
_LEAST_PANEL = 1.3  # inches of a panel
_COLUMN = VENUES["cvpr"].column


@dataclass(frozen=True)
class Panel:
    """Of `panels`: curves of (x, y) points by name, and dashed lines at what chance gives, by name."""

    title: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    chance: Mapping[str, float] = field(default_factory=dict)


def confusion(
    matrix: ArrayLike, names: Sequence[str], path: Path | str, *, title: str = "", width: float | None = None
) -> Path:
    """Confusion matrix (K, K) of counts, rows true: coloured and written as shares of the true class, with its rows.

    A class without rows is an empty line marked "-". Above 12 classes numbers are left out. width: by default that of a
    column, of the page for more than six classes.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    classes = len(names)
    if counts.shape != (classes, classes):
        raise ValueError(f"confusion matrix: shape {counts.shape}, expected ({classes}, {classes}) for {classes} names")
    support = counts.sum(axis=1)
    shares = np.divide(counts, support[:, None], out=np.zeros_like(counts), where=support[:, None] > 0)
    width = width or (_COLUMN if classes <= 6 else PAGE)
    with styled({"axes.grid": False}):
        figure = new_figure(width, max(min(0.85 * width, 0.4 * classes + 1.6), 0.16 * classes))
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
        figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046, pad=0.03)
        named = [drawable(name, width / 4) for name in names]
        axes.set_xticks(range(classes), named, rotation=45, ha="right", rotation_mode="anchor")
        counted = [f"{name} ({int(rows)})" for name, rows in zip(names, support, strict=True)]
        axes.set_yticks(range(classes), [drawable(name, width / 3) for name in counted])
        axes.set(xlabel="predicted", ylabel="true (rows)", title=heading(title, width))
        if classes <= 12:
            for row, column in itertools.product(range(classes), repeat=2):
                text = "-" if support[row] == 0 else f"{shares[row, column]:.2f}".removeprefix("0")
                ink = "black" if shares[row, column] > 0.5 else "white"
                axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=7)
        return save(figure, path)


def representation_map(
    representations: ArrayLike,
    names: Sequence[str],
    path: Path | str,
    *,
    title: str = "",
    method: Literal["pca", "tsne"] = "pca",
    lacking: Sequence[str] | None = None,
    width: float = PAGE,
) -> Path:
    """Two-dimensional map of (N, R) representations; `names` (N,) colours the points, in order of first sight, the most
    frequent 23 of more than 24.

    `pca`: the two directions of largest variance after standardisation, with their share of it on the axes; linear, so
    distances mean something. `tsne`: neighbourhoods only (scikit-learn, PCA start, fixed seed). At least 3 rows.

    lacking: (N,) the modalities that a row lacks, empty where it has all; such a point is hollow.
    """
    values = np.asarray(representations, dtype=np.float64)
    if values.ndim != 2 or len(values) != len(names) or len(values) < 3:
        raise ValueError(
            f"representations: shape {values.shape} with {len(names)} names; expected (N, R), N >= 3 of each"
        )
    if not np.isfinite(values).all():
        raise ValueError("representations: NaN or infinity found; leave out rows without a representation")
    points, labels = _tsne(values) if method == "tsne" else _principal(values)
    hollow = np.asarray([bool(text) for text in lacking or [""] * len(names)])
    counted = Counter(names)
    listed = list(dict.fromkeys(names))
    if len(listed) > _MOST_NAMED:
        most = {name for name, _ in counted.most_common(_MOST_NAMED - 1)}
        listed = [name for name in listed if name in most]
    owner = np.asarray([listed.index(name) if name in listed else len(listed) for name in names])
    entries = [(name, colour(index), marker(index)) for index, name in enumerate(listed)]
    if (others := len(counted) - len(listed)) > 0:
        entries.append((f"{others} others", FAINT, "."))
    told = [name for name, _, _ in entries]
    if hollow.any():
        without = Counter(text for text in lacking or () if text)
        told.append("hollow: without " + ", ".join(f"{text} ({rows})" for text, rows in without.most_common()))
    with styled():
        figure = with_legend(width, 0.64 * width, told)
        axes = figure.subplots()
        marks: list[Any] = []
        for index, (_, ink, shape) in enumerate(entries):
            for which, filled in ((~hollow, True), (hollow, False)):
                own = points[(owner == index) & which]
                drawn = axes.scatter(
                    own[:, 0],
                    own[:, 1],
                    s=11,
                    alpha=0.75,
                    linewidths=0.0 if filled else 0.8,
                    facecolors=ink if filled else "none",
                    edgecolors=ink,
                    marker=shape,
                )
                if filled:
                    marks.append(drawn)
        if hollow.any():
            marks.append(axes.scatter([], [], s=11, facecolors="none", edgecolors="black", linewidths=0.8, marker="o"))
        axes.set(xlabel=labels[0], ylabel=labels[1], title=heading(title, width))
        legend_beside(figure, marks, told)
        return save(figure, path)


def lacking(present: Mapping[str, NDArray[np.bool_]]) -> list[str]:
    """Of each row the modalities that it lacks, by name; empty where it has all. present: modality -> (N,)."""
    there = np.stack(list(present.values()), axis=1)
    return [" and ".join(name for name, has in zip(present, row, strict=True) if not has) for row in there.tolist()]


def panels(
    shown: Sequence[Panel], path: Path | str, *, xlabel: str = "step", title: str = "", width: float = PAGE
) -> Path:
    """Panels with one axis of x. Long curves are pale with a running mean; two points are not a trend, and get no line.
    Points that are not finite are gaps."""
    if not shown:
        raise ValueError("panels: none given")
    across = max(1, min(3, len(shown), round(width / _LEAST_PANEL) - 1))
    down = math.ceil(len(shown) / across)
    reach = [x for panel in shown for curve in panel.curves.values() for x, _ in curve]
    with styled():
        head = heading(title, width)
        figure = new_figure(width, max(_LEAST_PANEL, 0.24 * width) * down + 0.15 * (head.count("\n") + 2))
        places = figure.subplots(down, across, squeeze=False).ravel()
        for axes, panel in zip(places, shown, strict=False):
            _panel(axes, panel, width / across)
            if len(set(reach)) > 1:
                margin = 0.02 * (max(reach) - min(reach))
                axes.set_xlim(min(reach) - margin, max(reach) + margin)
        for index, axes in enumerate(places):
            axes.set_visible(index < len(shown))
            if index + across >= len(shown):  # nothing below
                axes.set_xlabel(xlabel)
        figure.suptitle(head)
        return save(figure, path)


def _panel(axes: Axes, panel: Panel, width: float) -> None:
    marks, told = [], []
    for index, (name, curve) in enumerate(panel.curves.items()):
        points = np.asarray(curve, dtype=np.float64).reshape(-1, 2)
        marks.append(_curve(axes, points[:, 0], points[:, 1], colour(index)))
        told.append(name)
    values = sorted(set(panel.chance.values()))
    for value in values:
        line = axes.axhline(value, color=CHANCE, linestyle="--", linewidth=0.9)
    if values:
        marks.append(line)
        told.append("chance" if len(values) == 1 else f"chance, {values[0]:.3g} to {values[-1]:.3g}")
    axes.set_title(drawable(panel.title, 0.8 * width))
    if len(told) > 1:
        legend(axes, marks, told, 0.7 * width, loc="best", fontsize=6)


def interval_bars(
    intervals: Mapping[str, Interval],
    path: Path | str,
    *,
    ylabel: str = "accuracy",
    title: str = "",
    whiskers: str = "",
    width: float = PAGE,
) -> Path:
    """One horizontal bar for each name, its interval as a whisker and its estimate in figures.

    Names that agree up to their first comma (`pretrained, probe` and `pretrained, neighbours`) share a colour.
    whiskers: what they are; none: an interval of the first one's level over groups.
    """
    if not intervals:
        raise ValueError("interval_bars: no system given")
    with styled({"axes.grid.axis": "x"}):
        figure = new_figure(width, 0.26 * len(intervals) + 0.9)
        axes = figure.subplots()
        names, values = list(intervals), list(intervals.values())
        estimates = np.asarray([value.estimate for value in values])
        low, high = (np.asarray([getattr(value, side) for value in values]) for side in ("low", "high"))
        places = np.arange(len(names))
        # A percentile interval need not hold the estimate: a whisker of negative length is none.
        lengths = np.maximum(np.stack([estimates - low, high - estimates]), 0)
        families = list(dict.fromkeys(name.partition(",")[0] for name in names))  # one colour for each system
        colours = [colour(families.index(name.partition(",")[0])) for name in names]
        axes.barh(places, estimates, height=0.62, color=colours, alpha=0.85)
        axes.errorbar(estimates, places, xerr=lengths, fmt="none", ecolor="black", capsize=2, linewidth=1.0)
        axes.axvline(0, color="black", linewidth=0.8)
        reach = float(np.nanmax(np.concatenate([high, estimates, [0.0]])))
        for place, estimate, end in zip(places, estimates, high, strict=True):
            axes.annotate(
                f"{estimate:.3f}", (max(estimate, end, 0.0), place), (6, 0), textcoords="offset points", va="center"
            )
        floor = min(0.0, float(np.nanmin(np.concatenate([low, estimates]))))
        axes.set_xlim(floor * 1.1, reach + 0.9 / width * (reach - floor or 1.0))
        axes.set_yticks(places, [drawable(name, 0.35 * width) for name in names])
        axes.invert_yaxis()
        told = f"{ylabel} ({whiskers or f'{values[0].level:.0%} interval over groups'})"
        axes.set(xlabel=drawable(told, 0.55 * width), title=heading(title, 0.7 * width))
        return save(figure, path)


def paired_differences(
    systems: Mapping[str, Mapping[float, Interval]],
    path: Path | str,
    *,
    xlabel: str = "difference in accuracy",
    title: str = "",
    told: Collection[tuple[str, float]] | None = None,
    width: float = PAGE,
) -> Path:
    """A panel for each share of labels, in it a dot for each system and its interval as a whisker, beside a line at
    zero; the dot is full where a difference is shown. The panels share their scale.

    told: systems and shares at which a difference is shown, where a test says so and not the interval alone.
    """
    shares = sorted({share for row in systems.values() for share in row})
    if not shares:
        raise ValueError("paired_differences: no system given")
    with styled({"axes.grid.axis": "x"}):
        room = 0.66 * width  # the rest is for names
        across = max(1, min(len(shares), round(room / _LEAST_PANEL)))
        down = math.ceil(len(shares) / across)
        names = [drawable(name, 0.3 * width) for name in systems]
        lines = sum(name.count("\n") + 1.6 for name in names)
        figure = new_figure(width, down * (0.12 * lines + 0.6) + 0.3)
        places = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, share in zip(places, shares, strict=False):
            axes.axvline(0, color="black", linewidth=0.9)
            for place, (name, row) in enumerate(systems.items()):
                if share not in row:
                    continue
                value = row[share]
                shown = value.excludes_zero if told is None else (name, share) in told
                ink = UNDECIDED if not shown else BETTER if value.estimate > 0 else WORSE
                axes.plot([value.low, value.high], [place, place], color=ink, linewidth=1.4)
                axes.plot(value.estimate, place, "o", color=ink, markerfacecolor=ink if shown else "white", ms=4.5)
            axes.xaxis.set_major_locator(MaxNLocator(4))  # more would run into each other
            axes.set(title=f"{share:.0%} of labels")
        for axes in places[len(shares) :]:
            axes.set_visible(False)
        places[0].set_yticks(range(len(systems)), names)
        places[0].set_ylim(len(systems) - 0.4, -0.6)
        figure.supxlabel(drawable(xlabel, 0.9 * width), fontsize=8)
        figure.suptitle(heading(title, width))
        return save(figure, path)


def label_efficiency(
    systems: Mapping[str, Mapping[float, Interval]],
    path: Path | str,
    *,
    ylabel: str = "accuracy",
    title: str = "",
    width: float = PAGE,
) -> Path:
    """A line for each system over the share of labels (logarithmic), with the interval as a whisker."""
    if not systems or not all(systems.values()):
        raise ValueError("label_efficiency: every system needs at least one label fraction")
    fractions = sorted({fraction for row in systems.values() for fraction in row})
    with styled():
        figure = with_legend(width, _LINES_HEIGHT * width, list(systems))
        axes = figure.subplots()
        marks: list[Any] = []
        for index, row in enumerate(systems.values()):
            shares = sorted(row)
            # Side by side, so that whiskers at one fraction do not hide each other.
            x = np.asarray(shares) * 1.035 ** (index - (len(systems) - 1) / 2)
            middle = np.asarray([row[share].estimate for share in shares])
            low, high = (np.asarray([getattr(row[share], side) for share in shares]) for side in ("low", "high"))
            drawn = axes.errorbar(
                x,
                middle,
                yerr=np.maximum(np.stack([middle - low, high - middle]), 0),
                color=colour(index),
                marker=marker(index),
                capsize=2,
            )
            marks.append(drawn)
        axes.set_xscale("log")
        axes.set_xticks(fractions, [f"{fraction:.0%}" for fraction in fractions])
        axes.minorticks_off()
        axes.set(
            xlabel="share of training rows with labels", ylabel=drawable(ylabel), title=heading(title, 0.8 * width)
        )
        legend_beside(figure, marks, list(systems))
        return save(figure, path)


def interval_lines(
    series: Mapping[str, Sequence[tuple[float, float, float | None, float | None]]],
    path: Path | str,
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    log: bool = False,
    diagonal: bool = False,
    ticks: Mapping[float, str] | None = None,
    width: float = PAGE,
) -> Path:
    """Lines of (x, y, low, high), the interval as a whisker where there is one; points that are not finite are gaps.

    log: of x. diagonal: the line x = y, for reliability, and both axes from 0 to 1. ticks: place on x -> its name.
    """
    if not series or not all(series.values()):
        raise ValueError("interval_lines: every line needs at least one point")
    with styled():
        figure = with_legend(width, _LINES_HEIGHT * width, list(series))
        axes = figure.subplots()
        xs = [point[0] for line in series.values() for point in line]
        reach = (max(xs) - min(xs)) or 1.0
        if diagonal:
            axes.plot([0, 1], [0, 1], color=CHANCE, linewidth=0.8, linestyle="--")
            axes.set(xlim=(0, 1), ylim=(0, 1))
        marks: list[Any] = []
        for index, line in enumerate(series.values()):
            place = index - (len(series) - 1) / 2  # side by side, so that whiskers at one x do not hide each other
            points = np.asarray([[np.nan if v is None else v for v in point] for point in line], dtype=np.float64)
            x, y, low, high = points.T
            if not diagonal:
                x = x * 1.02**place if log else x + 0.006 * reach * place
            whiskers = np.maximum(np.stack([y - low, high - y]), 0)
            whiskers[:, np.isnan(whiskers).any(axis=0)] = 0  # one end is not an interval
            drawn = axes.errorbar(
                x,
                y,
                yerr=whiskers,
                color=colour(index),
                marker=marker(index),
                capsize=2,
            )
            marks.append(drawn)
        if log:
            axes.set_xscale("log")
        if ticks:
            axes.set_xticks(list(ticks), list(map(drawable, ticks.values())))
            axes.minorticks_off()
        axes.set(xlabel=drawable(xlabel), ylabel=drawable(ylabel), title=heading(title, 0.8 * width))
        legend_beside(figure, marks, list(series))
        return save(figure, path)


def points(
    series: Mapping[str, Sequence[tuple[float, float]]],
    path: Path | str,
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    width: float = PAGE,
) -> Path:
    """Points (x, y) over a logarithmic x: full those of the first name, and of nine or more their running median over a
    third of them; hollow those of further names."""
    first, *others = [sorted(own) for own in series.values()]
    with styled():
        names = list(series) if len(first) < _MEDIAN_FROM else [*series, f"running median: {next(iter(series))}"]
        figure = with_legend(width, _LINES_HEIGHT * width, names)
        axes = figure.subplots()
        marks: list[Any] = []
        for index, own in enumerate([first, *others]):
            x, y = np.asarray(own, dtype=np.float64).reshape(-1, 2).T
            full = colour(0) if index == 0 else "white"
            marks += axes.plot(x, y, "o", color=colour(0), markerfacecolor=full, ms=4, zorder=3 - index)
        if len(first) >= _MEDIAN_FROM:
            window = len(first) // 3
            x, y = np.asarray(first, dtype=np.float64).T
            middle = np.sort(np.lib.stride_tricks.sliding_window_view(y, window), axis=1)[:, window // 2]
            marks += axes.plot(x[window // 2 :][: len(middle)], middle, color=colour(1), zorder=4)
        axes.set_xscale("log")
        axes.set(xlabel=drawable(xlabel), ylabel=drawable(ylabel), title=heading(title, 0.8 * width))
        legend_beside(figure, marks, names)
        return save(figure, path)


def _curve(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], ink: str) -> Any:
    """Its line in a legend."""
    shown = np.where(np.isfinite(y), y, np.nan)
    if len(y) <= _SMOOTHED_FROM:
        few = len(y) <= _MARKED_UP_TO
        return axes.plot(x, shown, color=ink, linestyle="" if len(y) <= 2 else "-", marker="o" if few else "")[0]
    axes.plot(x, shown, color=ink, linewidth=0.5, alpha=0.35)
    window = len(y) // 50
    known = np.isfinite(y).astype(np.float64)
    kernel = np.ones(window)
    weight = np.convolve(known, kernel, "same")
    total = np.convolve(np.nan_to_num(y, nan=0.0, posinf=0.0, neginf=0.0), kernel, "same")
    mean = np.divide(total, weight, out=np.full(len(y), np.nan), where=weight > 0)
    return axes.plot(x, mean, color=ink)[0]


def _principal(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[str, str]]:
    deviation = values.std(axis=0)
    scaled = (values - values.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    left, singular, right = np.linalg.svd(scaled, full_matrices=False)
    variance = singular**2 / max(float((singular**2).sum()), 1e-300)
    # Signs of singular vectors are arbitrary: the largest loading is made positive, so that machines agree.
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    points = np.zeros((len(values), 2))
    kept = min(2, len(singular))
    points[:, :kept] = (left * singular * signs)[:, :kept]
    shares = np.append(variance, 0.0)
    return points, (f"first component ({shares[0]:.0%} of variance)", f"second component ({shares[1]:.0%} of variance)")


def _tsne(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[str, str]]:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(values) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=127).fit_transform(values)
    return points, ("t-SNE, first dimension", "t-SNE, second dimension")
