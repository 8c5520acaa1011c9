"""The figures of a report as data: drawn with it, kept in `figures.json` beside it, and drawn again by `figures.py`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from conclugen.common.reading import read_json
from conclugen.evaluation.statistics import Interval
from ray_jobs import plots

DATA, SCRIPT = "figures.json", "figures.py"
EFFICIENCY, DIFFERENCES, LINES, POINTS, BARS = "label_efficiency", "differences", "lines", "points", "bars"
_INTERVAL = ("estimate", "low", "high", "level", "groups")


@dataclass(frozen=True)
class Drawing:
    """One figure.

    Attributes:
        name: Of its files, without an ending.
        caption: What it shows.
        kind: Which of the functions of `ray_jobs.plots` draws it.
        data: Of systems: name -> share of labels, as text -> an interval's parts. Of lines: name -> (x, y, low, high).
            Of points: name -> (x, y). Of bars: name -> an interval's parts.
        told: Of differences, the (name, share) at which one is shown.
        options: Further ones of that function: labels, title, scales.
    """

    name: str
    caption: str
    kind: str
    data: Mapping[str, Any]
    told: Sequence[tuple[str, float]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def of_systems(
    name: str,
    caption: str,
    kind: str,
    systems: Mapping[str, Mapping[float, Interval]],
    told: Collection[tuple[str, float]] = (),
    **options: Any,
) -> Drawing:
    """A figure of intervals by system and share of labels."""
    plain = {
        system: {f"{share:g}": [getattr(value, part) for part in _INTERVAL] for share, value in row.items()}
        for system, row in systems.items()
    }
    return Drawing(name, caption, kind, plain, tuple(sorted(told)), options)


def draw(
    drawing: Drawing,
    folder: Path,
    *,
    width: float = plots.PAGE,
    title: bool = True,
    rename: Mapping[str, str] | None = None,
    leave_out: Collection[str] = (),
) -> Path:
    """Write the figure into the folder; returns its PNG. rename: system -> name to be shown; leave_out: systems."""
    shown = {name: name if rename is None else rename.get(name, name) for name in drawing.data if name not in leave_out}
    path = folder / f"{drawing.name}.png"
    options = {**drawing.options, "width": width} | ({} if title else {"title": ""})
    if drawing.kind == LINES:
        ticks = options.pop("ticks", None)
        named = None if ticks is None else {float(place): text for place, text in ticks.items()}
        series = {shown[name]: [tuple(point) for point in drawing.data[name]] for name in shown}
        return plots.interval_lines(series, path, ticks=named, **options)
    if drawing.kind == POINTS:
        return plots.points({shown[name]: [(x, y) for x, y in drawing.data[name]] for name in shown}, path, **options)
    if drawing.kind == BARS:
        return plots.interval_bars({shown[name]: Interval(*drawing.data[name]) for name in shown}, path, **options)
    systems = {
        shown[name]: {float(share): Interval(*parts) for share, parts in drawing.data[name].items()} for name in shown
    }
    if drawing.kind == EFFICIENCY:
        return plots.label_efficiency(systems, path, **options)
    if drawing.kind == DIFFERENCES:
        told = {(shown[name], share) for name, share in drawing.told if name in shown}
        return plots.paired_differences(systems, path, told=told, **options)
    kinds = ", ".join((EFFICIENCY, DIFFERENCES, LINES, POINTS, BARS))
    raise ValueError(f"{drawing.name}: kind must be one of {kinds}, got {drawing.kind!r}")


def document(drawings: Sequence[Drawing], stamp: str = "") -> dict[str, Any]:
    """What `figures.json` holds. stamp: what every figure says at its foot."""
    return {"stamp": stamp, "figures": [asdict(drawing) for drawing in drawings]}


def load(path: Path) -> tuple[list[Drawing], str]:
    """The figures of a `figures.json`, and their stamp. ValueError for a file that holds none."""
    found = read_json(path, nan=True)
    try:
        shown = [
            Drawing(**{**each, "told": tuple((str(name), float(share)) for name, share in each["told"])})
            for each in found["figures"]
        ]
        return shown, str(found.get("stamp", ""))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: has no figures of a report ({error}); make the report again") from None
