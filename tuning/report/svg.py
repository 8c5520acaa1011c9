"""Charts as inline SVG: they take their colours from the page, dark or light, and print sharply.

Each returns one `<svg>` with a title for screen readers. Sizes are in pixels of its own box; the page scales it.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

from conclugen.common.tables import one_line

_WIDTH, _HEIGHT = 460.0, 280.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 26.0, 40.0
_MARKS = 8  # kinds of points, told apart by shape as well as by colour


def lines(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float, float]]],
    *,
    xlabel: str,
    ylabel: str,
    percent: bool = True,
) -> str:
    """Lines of (x, y, deviation) over a logarithmic x, with a legend below. x at the series' own values."""
    points = [point for own in series.values() for point in own]
    xs = sorted({x for x, _, _ in points})
    scale = _Scale.of(xs, [y - d for _, y, d in points] + [y + d for _, y, d in points])
    body = [_frame(title, scale, xlabel, ylabel, percent), _x_ticks(scale, xs, [f"{x:.0%}" for x in xs])]
    for number, own in enumerate(series.values()):
        kind = f"s{number % _MARKS}"
        # Side by side, so that whiskers at one x do not hide each other.
        shift = (number - (len(series) - 1) / 2) * 3.0
        places = [(scale.x(x) + shift, y, d) for x, y, d in sorted(own)]
        path = " ".join(f"{'L' if i else 'M'}{x:.1f} {scale.y(y):.1f}" for i, (x, y, _) in enumerate(places))
        body.append(f'<path class="line {kind}" d="{path}"/>')
        for x, y, deviation in places:
            if deviation > 0:
                low, high = scale.y(y - deviation), scale.y(y + deviation)
                body.append(f'<path class="whisker {kind}" d="M{x:.1f} {low:.1f}V{high:.1f}"/>')
            body.append(_mark(number, x, scale.y(y)))
    return _svg(title, body, list(series))


def interval_lines(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float | None, float | None, float | None]]],
    *,
    xlabel: str,
    ylabel: str,
    log: bool = False,
    diagonal: bool = False,
    ticks: Mapping[float, str] | None = None,
) -> str:
    """Lines of (x, y, low, high) with the interval as a whisker; points without y are gaps. log: of x. diagonal: the
    line x = y, and both axes from 0 to 1. ticks: place on x -> its name; none: five round places, or the lines' own."""
    points = [point for own in series.values() for point in own]
    ys = [v for point in points for v in point[1:] if v is not None] or [0.0, 1.0]
    xs = sorted({point[0] for point in points})
    scale = _Scale.of([0.0, 1.0] if diagonal else xs, [0.0, 1.0] if diagonal else ys, log)
    named = dict(ticks or {x: f"{x:.3g}" for x in ([0.0, 0.25, 0.5, 0.75, 1.0] if diagonal else xs)})
    body = [_frame(title, scale, xlabel, ylabel, False), _x_ticks(scale, list(named), list(named.values()))]
    if diagonal:
        body.append(f'<path class="axis" d="M{scale.x(0):.1f} {scale.y(0):.1f}L{scale.x(1):.1f} {scale.y(1):.1f}"/>')
    for number, own in enumerate(series.values()):
        kind = f"s{number % _MARKS}"
        shift = 0.0 if diagonal else (number - (len(series) - 1) / 2) * 3.0
        places = [(scale.x(x) + shift, y, low, high) for x, y, low, high in own if y is not None]
        path = " ".join(f"{'L' if i else 'M'}{x:.1f} {scale.y(y):.1f}" for i, (x, y, _, _) in enumerate(places))
        body.append(f'<path class="line {kind}" d="{path}"/>' if places else "")
        for x, y, low, high in places:
            if low is not None and high is not None:
                ends = f"M{x:.1f} {scale.y(low):.1f}V{scale.y(high):.1f}"
                body.append(f'<path class="whisker {kind}" d="{ends}"/>')
            body.append(_mark(number, x, scale.y(y)))
    return _svg(title, body, list(series))


def scatter(
    title: str,
    points: Sequence[tuple[float, float]],
    *,
    xlabel: str,
    ylabel: str,
    hollow: Sequence[tuple[float, float]] = (),
    legend: tuple[str, str] = ("", ""),
) -> str:
    """Points over a logarithmic x, and (of nine and more) their running median over a third of them; `hollow` ones are
    shown and count in no median. legend: names of points and of hollow ones, shown where there are hollow ones."""
    every = [*points, *hollow]
    scale = _Scale.of([x for x, _ in every], [y for _, y in every])
    low, high = math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high))
    decades = [10.0**power for power in range(low, high + 1) if scale.low <= 10.0**power <= scale.high]
    ticks = decades if len(decades) > 1 else sorted({min(x for x, _ in every), *decades, max(x for x, _ in every)})
    body = [_frame(title, scale, xlabel, ylabel, False), _x_ticks(scale, ticks, [f"{x:.3g}" for x in ticks])]
    for kind, own in (("point open", hollow), ("point", points)):
        body += [f'<circle class="{kind}" cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="3"/>' for x, y in own]
    if len(points) >= 9:
        ordered, window = sorted(points), max(3, len(points) // 3)
        middle = []
        for start in range(len(ordered) - window + 1):
            part = ordered[start : start + window]
            middle.append((part[window // 2][0], sorted(y for _, y in part)[window // 2]))
        path = " ".join(f"{'L' if i else 'M'}{scale.x(x):.1f} {scale.y(y):.1f}" for i, (x, y) in enumerate(middle))
        body.append(f'<path class="line s0" d="{path}"/>')
        legend = (f"{legend[0]}; line: running median", legend[1])
    if not hollow:
        return _svg(title, body, [])
    for number, (kind, name) in enumerate(zip(("point", "point open"), legend, strict=True)):
        y = _HEIGHT + 8 + 18 * number
        body.append(f'<circle class="{kind}" cx="{_LEFT + 6}" cy="{y}" r="3"/>')
        body.append(f'<text class="tick" x="{_LEFT + 18}" y="{y + 4}">{_named(name)}</text>')
    return _svg(title, body, [], _HEIGHT, _HEIGHT + 40)


def bars(title: str, values: Mapping[str, tuple[float, float]], *, xlabel: str) -> str:
    """Horizontal bars of (value, deviation), largest first as given."""
    row, left = 20.0, 208.0  # room for `tasks.some_task.something_long`
    height = _TOP + row * len(values) + _BOTTOM
    reach = max([value + deviation for value, deviation in values.values()] + [1e-12])
    floor = min([value - deviation for value, deviation in values.values()] + [0.0])

    def place(value: float) -> float:
        return left + (value - floor) / (reach - floor) * (_WIDTH - left - 48)

    body = [f'<text class="title" x="6" y="16">{_named(title)}</text>']
    for number, (name, (value, deviation)) in enumerate(values.items()):
        middle = _TOP + row * (number + 0.5)
        start, end = sorted((place(0), place(value)))
        body.append(f'<text class="tick" text-anchor="end" x="{left - 6}" y="{middle + 4:.1f}">{_named(name)}</text>')
        body.append(
            f'<rect class="bar" x="{start:.1f}" y="{middle - 6:.1f}" width="{max(end - start, 0.5):.1f}" height="12"/>'
        )
        low, high = place(value - deviation), place(value + deviation)
        body.append(f'<path class="whisker axis" d="M{low:.1f} {middle:.1f}H{high:.1f}"/>')
        body.append(f'<text class="tick" x="{max(high, end) + 5:.1f}" y="{middle + 4:.1f}">{value:.3f}</text>')
    body.append(f'<path class="axis" d="M{place(0):.1f} {_TOP}V{height - _BOTTOM + 4:.1f}"/>')
    body.append(
        f'<text class="label" text-anchor="middle" x="{left + 120}" y="{height - 12:.1f}">{_named(xlabel)}</text>'
    )
    return _svg(title, body, [], height)


class _Scale:
    """x logarithmic, or linear where it says so, y linear, with room around the points."""

    def __init__(self, low: float, high: float, bottom: float, top: float, step: float, log: bool = True) -> None:
        self.low, self.high, self.bottom, self.top, self.step, self.log = low, high, bottom, top, step, log

    @classmethod
    def of(cls, xs: Sequence[float], ys: Sequence[float], log: bool = True) -> "_Scale":
        low, high = min(xs), max(xs)
        step = _nice((max(ys) - min(ys) or 0.1) / 5)
        bottom, top = math.floor(min(ys) / step) * step, math.ceil(max(ys) / step) * step
        top = max(top, bottom + step)
        if not log:
            margin = 0.06 * ((high - low) or 1.0)
            return cls(low - margin, high + margin, bottom, top, step, log)
        if low == high:
            low, high = low / 2, high * 2
        margin = (high / low) ** 0.06
        return cls(low / margin, high * margin, bottom, top, step)

    def x(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.bottom) / (self.top - self.bottom)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _nice(step: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * (1 - 1e-9))


def _frame(title: str, scale: _Scale, xlabel: str, ylabel: str, percent: bool) -> str:
    parts = [f'<text class="title" x="{_LEFT}" y="16">{_named(title)}</text>']
    for number in range(round((scale.top - scale.bottom) / scale.step) + 1):
        value = scale.bottom + number * scale.step
        y = scale.y(value)
        text = f"{100 * value:.3g}" if percent else f"{value:.3g}"
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{text}</text>')
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(f'<path class="axis" d="M{_LEFT} {_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"/>')
    turned = f'transform="translate(13 {middle}) rotate(-90)"'
    parts.append(f'<text class="label" text-anchor="middle" {turned}>{_named(ylabel)}</text>')
    centre = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="label" text-anchor="middle" x="{centre}" y="{_HEIGHT - 6}">{_named(xlabel)}</text>')
    return "".join(parts)


def _x_ticks(scale: _Scale, xs: Sequence[float], names: Sequence[str]) -> str:
    y = _HEIGHT - _BOTTOM + 16
    ticks = [
        f'<text class="tick" text-anchor="middle" x="{scale.x(x):.1f}" y="{y}">{_named(name)}</text>'
        for x, name in zip(xs, names, strict=True)
    ]
    return "".join(ticks)


def _mark(number: int, x: float, y: float) -> str:
    kind = number % _MARKS
    shapes = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>',
        f'<path d="M{x - 3.5:.1f} {y - 3.5:.1f}h7v7h-7z"/>',
        f'<path d="M{x:.1f} {y - 4.5:.1f}l4.2 7.6h-8.4z"/>',
        f'<path d="M{x:.1f} {y - 4.8:.1f}l4.8 4.8l-4.8 4.8l-4.8 -4.8z"/>',
    )
    hollow = " hollow" if kind >= len(shapes) else ""
    return f'<g class="mark s{kind}{hollow}">{shapes[kind % len(shapes)]}</g>'


def _svg(
    title: str, body: Sequence[str], legend: Sequence[str], height: float = _HEIGHT, whole: float | None = None
) -> str:
    parts = list(body)
    for number, name in enumerate(legend):
        y = height + 8 + 18 * number
        parts.append(_mark(number, _LEFT + 6, y))
        parts.append(f'<text class="tick" x="{_LEFT + 18}" y="{y + 4:.1f}">{_named(name)}</text>')
    whole = whole or height + 18 * len(legend) + (4 if legend else 0)
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH:.0f} {whole:.0f}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{_named(title)}</title>{''.join(parts)}</svg>"
    )


def _named(text: str) -> str:
    return escape(one_line(text)) if text else ""
