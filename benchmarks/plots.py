"""Plots of benchmark figures."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure


def bars(values: Mapping[str, float], title: str) -> Figure:
    """Horizontal bars, one for each name, with its value beside it."""
    figure = Figure(figsize=(8, 1 + 0.3 * len(values)), layout="constrained")
    axes = figure.add_subplot(title=title)
    axes.bar_label(axes.barh(list(values), list(values.values())), fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    return figure


def lines(series: Mapping[str, Sequence[tuple[float, float]]], title: str, across: str, up: str) -> Figure:
    """Lines through the points of each name, both axes logarithmic to base 2."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=across, ylabel=up)
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.grid(axis="y", alpha=0.4)
    axes.legend()
    return figure
