"""Plots of benchmark figures as SVG text, which needs no plotting library."""

import math
from collections.abc import Mapping, Sequence
from html import escape

_COLOURS = ("#2563eb", "#dc2626", "#059669", "#9333ea")


def bars(values: Mapping[str, float], title: str) -> str:
    """Horizontal bars, one for each name, with its value beside it."""
    height, left, width = 26, 290, 380
    most = max(values.values(), default=1.0) or 1.0
    parts = [f'<text x="10" y="22" font-weight="bold">{escape(title)}</text>']
    for i, (name, value) in enumerate(values.items()):
        y = 40 + i * height
        length = width * value / most
        parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{height - 8}" fill="{_COLOURS[0]}"/>')
        parts.append(f'<text x="{left + length + 6:.1f}" y="{y + 14}">{value:,.0f}</text>')
    return _page(left + width + 100, 50 + height * len(values), parts)


def lines(series: Mapping[str, Sequence[tuple[float, float]]], title: str, across: str, up: str) -> str:
    """Lines through the points of each name, both axes logarithmic to base 2; all numbers must be above 0."""
    points = [point for each in series.values() for point in each]
    low_x, high_x = (pick(math.log2(x) for x, _ in points) for pick in (min, max))
    low_y, high_y = math.floor(min(math.log2(y) for _, y in points)), math.ceil(max(math.log2(y) for _, y in points))
    left, top, width, height = 80, 50, 460, 280

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + width * (math.log2(x) - low_x) / max(1e-9, high_x - low_x),
            top + height * (high_y - math.log2(y)) / max(1, high_y - low_y),
        )

    parts = [f'<text x="10" y="22" font-weight="bold">{escape(title)}</text>']
    for exponent in range(low_y, high_y + 1):
        _, y_at = place(2**low_x, 2.0**exponent)
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y_at:.1f}" y2="{y_at:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y_at + 4:.1f}" text-anchor="end">{2.0**exponent:g}</text>')
    for x in sorted({x for x, _ in points}):
        x_at, _ = place(x, 2.0**low_y)
        parts.append(f'<text x="{x_at:.1f}" y="{top + height + 20}" text-anchor="middle">{x:,.0f}</text>')
    for i, (name, each) in enumerate(series.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        placed = [place(x, y) for x, y in each]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        parts.append(f'<text x="{left + 12}" y="{top + 18 + 18 * i}" fill="{colour}">{escape(name)}</text>')
    parts.append(f'<text x="{left + width / 2}" y="{top + height + 44}" text-anchor="middle">{escape(across)}</text>')
    parts.append(f'<text x="10" y="{top - 8}">{escape(up)}</text>')
    return _page(left + width + 40, top + height + 60, parts)


def _page(width: float, height: float, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )
