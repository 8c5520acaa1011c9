"""A picture of how a clip's windows change: probabilities of the classes over time, or how far windows are apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from conclugen.common.atomic import atomic_path
from ray_jobs.plots import TEXT, heading, legend

_STYLES = ("-", "--", "-.", ":")
# Okabe & Ito (2008), told apart with red-green blindness too.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")


def draw(
    stretches: Sequence[tuple[float, float]],
    embeddings: np.ndarray,
    probabilities: np.ndarray | None,
    classes: Sequence[str],
    path: Path,
    title: str,
) -> Path:
    """Write a PNG. stretches: (n, 2) seconds; embeddings (n, R); probabilities (n, K) or None. Values stand at the
    middle of their window. ValueError for less than two windows."""
    if len(stretches) < 2:
        raise ValueError(f"a timeline of {len(stretches)} window(s), expected two or more")
    with mpl.rc_context(TEXT):
        figure = _figure(stretches, embeddings, probabilities, classes, title)
        path.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(figure)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
    return path


def _figure(
    stretches: Sequence[tuple[float, float]],
    embeddings: np.ndarray,
    probabilities: np.ndarray | None,
    classes: Sequence[str],
    title: str,
) -> Figure:
    middle = np.mean(stretches, axis=1)
    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    axes = figure.subplots()
    if probabilities is not None:
        marks = []
        for number in range(len(classes)):
            style = _STYLES[number // len(_COLOURS) % len(_STYLES)]
            marks += axes.plot(middle, probabilities[:, number], style, color=_COLOURS[number % len(_COLOURS)])
        axes.set_ylabel("probability")
        if probabilities.min() >= 0 and probabilities.max() <= 1:
            axes.set_ylim(0, 1)
        legend(axes, marks, classes, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    else:
        axes.plot(middle[1:], change(embeddings), color=_COLOURS[0])
        axes.set_ylabel("1 - cosine to the window before")
        axes.set_ylim(bottom=0)
    axes.set(xlabel="seconds (middle of the window)", title=heading(title))
    axes.set_xlim(stretches[0][0], stretches[-1][1])
    axes.grid(color="#DDDDDD", linewidth=0.6)
    return figure


def change(embeddings: np.ndarray) -> np.ndarray:
    """(n - 1,): one minus the cosine of each window's embedding to that of the window before."""
    norms = np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    unit = embeddings / norms
    result: np.ndarray = 1 - (unit[1:] * unit[:-1]).sum(axis=1)
    return result
