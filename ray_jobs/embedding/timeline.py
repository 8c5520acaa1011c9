"""A picture of how a clip's windows change: probabilities of the classes over time, or how far windows are apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ray_jobs.figure_style import COLOURS, PAGE, colour, heading, legend_beside, new_figure, save, styled

_STYLES = ("-", "--", "-.", ":")


def draw(
    stretches: Sequence[tuple[float, float]],
    embeddings: np.ndarray,
    probabilities: np.ndarray | None,
    classes: Sequence[str],
    path: Path,
    title: str,
) -> Path:
    """Write the picture. stretches: (n, 2) seconds; embeddings (n, R); probabilities (n, K) or None. Values are drawn
    at the middle of their window. ValueError for less than two windows."""
    if len(stretches) < 2:
        raise ValueError(f"a timeline of {len(stretches)} window(s), expected two or more")
    with styled():
        return save(_figure(stretches, embeddings, probabilities, classes, title), path)


def _figure(
    stretches: Sequence[tuple[float, float]],
    embeddings: np.ndarray,
    probabilities: np.ndarray | None,
    classes: Sequence[str],
    title: str,
) -> Figure:
    middle = np.mean(stretches, axis=1)
    figure = new_figure(PAGE, 0.43 * PAGE)
    axes = figure.subplots()
    if probabilities is not None:
        marks = []
        for number in range(len(classes)):
            style = _STYLES[number // len(COLOURS) % len(_STYLES)]
            marks += axes.plot(middle, probabilities[:, number], style, color=colour(number))
        axes.set_ylabel("probability")
        if probabilities.min() >= 0 and probabilities.max() <= 1:
            axes.set_ylim(0, 1)
        legend_beside(figure, marks, classes)
    else:
        axes.plot(middle[1:], change(embeddings), color=colour(0))
        axes.set_ylabel("1 - cosine to the window before")
        axes.set_ylim(bottom=0)
    axes.set(xlabel="seconds (middle of the window)", title=heading(title))
    axes.set_xlim(stretches[0][0], stretches[-1][1])
    return figure


def change(embeddings: np.ndarray) -> np.ndarray:
    """(n - 1,): one minus the cosine of each window's embedding to that of the window before."""
    norms = np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    unit = embeddings / norms
    result: np.ndarray = 1 - (unit[1:] * unit[:-1]).sum(axis=1)
    return result
