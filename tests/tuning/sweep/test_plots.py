"""The pictures of a search, read back from the figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.cluster.sweeps import small_space
from tests.tuning.sweep.made_trials import Kit
from tuning.sweep import plots
from tuning.sweep.space import Range

WIDTHS = {"video": 6, "audio": 5}


def test_each_parameter_has_a_panel_of_the_trials_that_chose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task's own parameters are chosen by the trials with that task alone; panels that are left over stay empty."""
    drawn: list[Figure] = []

    print_png = FigureCanvasAgg.print_png

    def keep(canvas: FigureCanvasAgg, target: object, **options: Any) -> None:
        if isinstance(target, Path):  # matplotlib takes a renderer by printing to nowhere
            drawn.append(canvas.figure)  # type: ignore[arg-type]
        print_png(canvas, target, **options)

    monkeypatch.setattr(FigureCanvasAgg, "print_png", keep)
    kit = Kit(tmp_path, small_space(epochs=9, weight_decay=Range(1e-4, 1e-4)).resolve(WIDTHS), trials=8)
    for number in range(8):
        assert kit.store.propose() is not None
        kit.end(number, 0.1 * number, "stopped" if number % 3 == 0 else "finished")
    choices = kit.store.choices
    values = {name: {n: own[name] for n, own in choices.items() if name in own} for name in plots.columns(kit.store)}
    varied = {name: own for name, own in values.items() if len({str(value) for value in own.values()}) > 1}
    assert any(len(own) < 8 for own in varied.values()) and len(varied) % 4, "what this test is about"
    plots.slices(kit.store, tmp_path / "slices.png")
    shown = [axes for axes in drawn[0].axes if axes.axison]
    assert len(shown) == len(varied) < len(drawn[0].axes)
    for axes, own in zip(shown, varied.values(), strict=True):
        points = [(line.get_marker(), y) for line in axes.lines for y in np.asarray(line.get_ydata())]
        assert sorted(points) == sorted(("x" if n % 3 == 0 else "o", 0.1 * n) for n in own)
        assert {line.get_markersize() for line in axes.lines} == {4}, "one size in all panels"
