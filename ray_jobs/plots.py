"""Pictures of runs and evaluations, written as PNG: confusion matrix, map of representations, curves, bars, lines.

Colours are told apart with red-green blindness too; marks differ in shape as well. Every function draws on a figure
of its own, without pyplot's global state, and needs no display.
"""

import contextlib
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from conclugen.common.atomic import atomic_path
from conclugen.common.extras import needed_for
from conclugen.common.tables import one_line
from conclugen.evaluation.statistics import Interval

with needed_for("drawing plots"):
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties, findfont, get_font
    from matplotlib.ticker import MaxNLocator

# Okabe & Ito (2008), "Color Universal Design", but Tol's wine for yellow, which is faint on white.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#882255")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_DOTS_PER_INCH = 150
_LINE, _TITLE = 40, 100  # characters of a name and of a title on one line
_LARGEST = 60.0  # inches: a picture has at most 65,536 dots a side
_SMOOTHED_FROM = 200  # a curve with more points than this gets a running mean
TEXT: dict[Any, Any] = {"text.parse_math": False}  # names of classes and data sets are text: `$` begins no formula
_STYLE: dict[Any, Any] = {
    **TEXT,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def drawable(name: str, width: int = _LINE) -> str:
    """A name as it can be drawn, another one for each other name: on lines of so many characters, and in escapes where
    the fonts lack one (all such would be the same empty box); `font.family` of a matplotlibrc may name more fonts."""
    line = one_line(name) if name else ""
    if not set(map(ord, line)) <= _characters(tuple(mpl.rcParams["font.family"])):
        line = ascii(name)
    lines = []
    while len(line) > width:
        cut = line.rfind(" ", 0, width) + 1 or width
        lines.append(line[:cut])
        line = line[cut:]
    return "\n".join([*lines, line])


def heading(title: str) -> str:
    """A picture's title as it can be drawn."""
    return drawable(title, _TITLE)


@cache
def _characters(families: tuple[str, ...]) -> frozenset[int]:
    """Those that one of the fonts has."""
    found: set[int] = set()
    for family in families:
        with contextlib.suppress(ValueError):  # not installed
            path = findfont(FontProperties(family=[family]), fallback_to_default=False)
            found |= get_font(path).get_charmap().keys()
    return frozenset(found)


def legend(axes: Axes, handles: Sequence[Any], names: Sequence[str], **more: Any) -> None:
    """A legend of names: matplotlib leaves out labels that begin with an underscore."""
    made = axes.legend(handles, list(map(str, range(len(names)))), **more)
    for text, name in zip(made.get_texts(), names, strict=True):
        text.set_text(drawable(name))


def confusion(matrix: ArrayLike, names: Sequence[str], path: Path | str, *, title: str = "") -> Path:
    """Confusion matrix (K, K) of counts, rows true: coloured and written as shares of the true class, with its rows.

    A class without rows is an empty line marked "-". Above 12 classes numbers are left out.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    classes = len(names)
    if counts.shape != (classes, classes):
        raise ValueError(f"confusion matrix: shape {counts.shape}, expected ({classes}, {classes}) for {classes} names")
    support = counts.sum(axis=1)
    shares = np.divide(counts, support[:, None], out=np.zeros_like(counts), where=support[:, None] > 0)
    with mpl.rc_context(_STYLE | {"axes.grid": False}):
        side = max(3.6, 0.62 * classes + 1.8)
        figure, axes = _figure(side + 1.0, side)
        image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
        figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046, pad=0.03)
        axes.set_xticks(range(classes), list(map(drawable, names)), rotation=45, ha="right", rotation_mode="anchor")
        labels = [drawable(f"{name} ({int(rows)})") for name, rows in zip(names, support, strict=True)]
        axes.set_yticks(range(classes), labels)
        axes.set(xlabel="predicted", ylabel="true (rows)", title=heading(title))
        if classes <= 12:
            for row, column in itertools.product(range(classes), repeat=2):
                text = "-" if support[row] == 0 else f"{shares[row, column]:.2f}".removeprefix("0")
                colour = "black" if shares[row, column] > 0.5 else "white"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
        return _write(figure, path)


def representation_map(
    representations: ArrayLike,
    names: Sequence[str],
    path: Path | str,
    *,
    title: str = "",
    method: Literal["pca", "tsne"] = "pca",
) -> Path:
    """Two-dimensional map of (N, R) representations; `names` (N,) colours the points, in order of first sight.

    `pca`: the two directions of largest variance after standardisation, with their share of it on the axes; linear, so
    distances mean something. `tsne`: neighbourhoods only (scikit-learn, PCA start, fixed seed). At least 3 rows.
    """
    values = np.asarray(representations, dtype=np.float64)
    if values.ndim != 2 or len(values) != len(names) or len(values) < 3:
        raise ValueError(
            f"representations: shape {values.shape} with {len(names)} names; expected (N, R), N >= 3 of each"
        )
    if not np.isfinite(values).all():
        raise ValueError("representations: NaN or infinity found; leave out rows without a representation")
    points, labels = _tsne(values) if method == "tsne" else _principal(values)
    listed = list(dict.fromkeys(names))
    owner = np.asarray([listed.index(name) for name in names])
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(7.2, 5.2)
        marks: list[Any] = []
        for index in range(len(listed)):
            own = points[owner == index]
            marks.append(
                axes.scatter(
                    own[:, 0],
                    own[:, 1],
                    s=16,
                    alpha=0.75,
                    linewidths=0,
                    color=_COLOURS[index % len(_COLOURS)],
                    marker=_MARKERS[index % len(_MARKERS)],
                )
            )
        axes.set(xlabel=labels[0], ylabel=labels[1], title=heading(title))
        legend(axes, marks, listed, loc="upper left", bbox_to_anchor=(1.01, 1.0), markerscale=1.6, borderaxespad=0)
        return _write(figure, path)


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]], path: Path | str, *, xlabel: str = "step", title: str = ""
) -> Path:
    """One panel for each curve of (x, y) points, for their scales differ; long ones pale with a running mean.

    Points that are not finite are gaps.
    """
    if not series:
        raise ValueError("curves: none given")
    columns = min(3, len(series))
    rows = math.ceil(len(series) / columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_size(3.6 * columns + 0.4, 2.5 * rows + 0.3), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        reach = [x for curve in series.values() for x, _ in curve]
        for panel, (name, curve) in zip(panels, series.items(), strict=False):
            points = np.asarray(curve, dtype=np.float64).reshape(-1, 2)
            _curve(panel, points[:, 0], points[:, 1])
            panel.set_title(drawable(name))
            if len(set(reach)) > 1:
                panel.set_xlim(min(reach), max(reach))
        for index, panel in enumerate(panels):
            panel.set_visible(index < len(series))
            if index + columns >= len(series):  # nothing below
                panel.set_xlabel(xlabel)
        figure.suptitle(heading(title))
        return _write(figure, path)


def interval_bars(
    intervals: Mapping[str, Interval], path: Path | str, *, ylabel: str = "accuracy", title: str = ""
) -> Path:
    """One horizontal bar for each name, its interval as a whisker and its estimate in figures.

    Names that agree up to their first comma (`pretrained, probe` and `pretrained, neighbours`) share a colour.
    """
    if not intervals:
        raise ValueError("interval_bars: no system given")
    with mpl.rc_context(_STYLE | {"axes.grid.axis": "x"}):
        figure, axes = _figure(7.0, 0.42 * len(intervals) + 1.3)
        names, values = list(intervals), list(intervals.values())
        estimates = np.asarray([value.estimate for value in values])
        low, high = (np.asarray([getattr(value, side) for value in values]) for side in ("low", "high"))
        places = np.arange(len(names))
        # A percentile interval need not hold the estimate: a whisker of negative length is none.
        whiskers = np.maximum(np.stack([estimates - low, high - estimates]), 0)
        families = list(dict.fromkeys(name.partition(",")[0] for name in names))  # one colour for each system
        colours = [_COLOURS[families.index(name.partition(",")[0]) % len(_COLOURS)] for name in names]
        axes.barh(places, estimates, height=0.62, color=colours, alpha=0.85)
        axes.errorbar(estimates, places, xerr=whiskers, fmt="none", ecolor="black", capsize=3, linewidth=1.2)
        axes.axvline(0, color="black", linewidth=0.8)
        reach = float(np.nanmax(np.concatenate([high, estimates, [0.0]])))
        for place, estimate, end in zip(places, estimates, high, strict=True):
            axes.annotate(
                f"{estimate:.3f}", (max(estimate, end, 0.0), place), (6, 0), textcoords="offset points", va="center"
            )
        floor = min(0.0, float(np.nanmin(np.concatenate([low, estimates]))))
        axes.set_xlim(floor * 1.1, reach + 0.14 * (reach - floor or 1.0))
        axes.set_yticks(places, list(map(drawable, names)))
        axes.invert_yaxis()
        level = values[0].level
        axes.set(xlabel=drawable(f"{ylabel} ({level:.0%} interval over groups)"), title=heading(title))
        return _write(figure, path)


def paired_differences(
    systems: Mapping[str, Mapping[float, Interval]],
    path: Path | str,
    *,
    xlabel: str = "difference in accuracy",
    title: str = "",
    told: Collection[tuple[str, float]] | None = None,
) -> Path:
    """A panel for each share of labels, in it a dot for each system and its interval as a whisker, beside a line at
    zero; the dot is full where a difference is shown. The panels share their scale.

    told: systems and shares at which a difference is shown, where a test says so and not the interval alone.
    """
    shares = sorted({share for row in systems.values() for share in row})
    if not shares:
        raise ValueError("paired_differences: no system given")
    with mpl.rc_context(_STYLE | {"axes.grid.axis": "x"}):
        figure = Figure(figsize=_size(2.6 * len(shares) + 2.4, 0.34 * len(systems) + 1.4), layout="constrained")
        panels = figure.subplots(1, len(shares), squeeze=False, sharex=True, sharey=True).ravel()
        for panel, share in zip(panels, shares, strict=True):
            panel.axvline(0, color="black", linewidth=1.0)
            for place, (name, row) in enumerate(systems.items()):
                if share not in row:
                    continue
                value = row[share]
                shown = value.excludes_zero if told is None else (name, share) in told
                colour = _COLOURS[0] if not shown else _COLOURS[2 if value.estimate > 0 else 3]
                panel.plot([value.low, value.high], [place, place], color=colour, linewidth=1.8)
                panel.plot(value.estimate, place, "o", color=colour, markerfacecolor=colour if shown else "white", ms=6)
            panel.xaxis.set_major_locator(MaxNLocator(4))  # more would run into each other
            panel.set(title=f"{share:.0%} of labels", xlabel=drawable(xlabel))
        panels[0].set_yticks(range(len(systems)), list(map(drawable, systems)))
        panels[0].invert_yaxis()
        figure.suptitle(heading(title))
        return _write(figure, path)


def label_efficiency(
    systems: Mapping[str, Mapping[float, Interval]], path: Path | str, *, ylabel: str = "accuracy", title: str = ""
) -> Path:
    """A line for each system over the share of labels (logarithmic), with the interval as a whisker."""
    if not systems or not all(systems.values()):
        raise ValueError("label_efficiency: every system needs at least one label fraction")
    fractions = sorted({fraction for row in systems.values() for fraction in row})
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(7.2, 4.2)
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
                color=_COLOURS[index % len(_COLOURS)],
                marker=_MARKERS[index % len(_MARKERS)],
                capsize=3,
                linewidth=1.6,
                markersize=6,
            )
            marks.append(drawn)
        axes.set_xscale("log")
        axes.set_xticks(fractions, [f"{fraction:.0%}" for fraction in fractions])
        axes.minorticks_off()
        axes.set(xlabel="share of training rows with labels", ylabel=drawable(ylabel), title=heading(title))
        legend(axes, marks, list(systems), loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
        return _write(figure, path)


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
) -> Path:
    """Lines of (x, y, low, high), the interval as a whisker where there is one; points that are not finite are gaps.

    log: of x. diagonal: the line x = y, for reliability, and both axes from 0 to 1. ticks: place on x -> its name.
    """
    if not series or not all(series.values()):
        raise ValueError("interval_lines: every line needs at least one point")
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(7.2, 4.2)
        xs = [point[0] for line in series.values() for point in line]
        reach = (max(xs) - min(xs)) or 1.0
        if diagonal:
            axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--")
            axes.set(xlim=(0, 1), ylim=(0, 1))
        marks: list[Any] = []
        for index, line in enumerate(series.values()):
            place = index - (len(series) - 1) / 2  # side by side, so that whiskers at one x do not hide each other
            points = np.asarray([[np.nan if v is None else v for v in point] for point in line], dtype=np.float64)
            x, y, low, high = points.T
            if not diagonal:
                x = x * 1.02**place if log else x + 0.006 * reach * place
            whiskers = np.nan_to_num(np.maximum(np.stack([y - low, high - y]), 0))
            drawn = axes.errorbar(
                x,
                y,
                yerr=whiskers,
                color=_COLOURS[index % len(_COLOURS)],
                marker=_MARKERS[index % len(_MARKERS)],
                capsize=2.5,
                linewidth=1.4,
                markersize=5,
            )
            marks.append(drawn)
        if log:
            axes.set_xscale("log")
        if ticks:
            axes.set_xticks(list(ticks), list(map(drawable, ticks.values())))
            axes.minorticks_off()
        axes.set(xlabel=drawable(xlabel), ylabel=drawable(ylabel), title=heading(title))
        legend(axes, marks, list(series), loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
        return _write(figure, path)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_size(width, height), layout="constrained")
    return figure, figure.subplots()


def _size(width: float, height: float) -> tuple[float, float]:
    """Of hundreds of names the picture is crowded, not larger than can be written."""
    return min(width, _LARGEST), min(height, _LARGEST)


def _write(figure: Figure, path: Path | str) -> Path:
    """PNG at `path`, its folder made where it is missing."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format="png", dpi=_DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.1)
    return target


def _curve(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    shown = np.where(np.isfinite(y), y, np.nan)
    if len(y) <= _SMOOTHED_FROM:
        axes.plot(x, shown, color=_COLOURS[0], linewidth=1.5, marker="o" if len(y) == 1 else "")
        return
    axes.plot(x, shown, color=_COLOURS[5], linewidth=0.6, alpha=0.7)
    window = len(y) // 50
    known = np.isfinite(y).astype(np.float64)
    kernel = np.ones(window)
    weight = np.convolve(known, kernel, "same")
    total = np.convolve(np.nan_to_num(y, nan=0.0, posinf=0.0, neginf=0.0), kernel, "same")
    mean = np.divide(total, weight, out=np.full(len(y), np.nan), where=weight > 0)
    axes.plot(x, mean, color=_COLOURS[0], linewidth=1.8)


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
