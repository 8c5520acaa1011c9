"""The one style of every picture: colours and marks, letters, the widths of venues, and the files it is written as.

A picture is written as PNG (to look at), SVG and PDF (for papers): exactly as wide as it was asked for, so that letters
have their size on the page, with text as text and TrueType fonts, which venues ask for. The same picture is the same
file, byte for byte. Names of classes, systems and data sets are text, never formulae.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from conclugen.common.atomic import atomic_path
from conclugen.common.extras import needed_for
from conclugen.common.tables import one_line

with needed_for("drawing plots"):
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties, findfont, get_font

# Eight that stay apart with red-green blindness, each at least 3:1 against its paper (WCAG 2.1, 1.4.11). Five of them
# are of Okabe & Ito (2008), "Color Universal Design"; their orange, sky blue and yellow are too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#882255", "#000000", "#3333FF", "#996633")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
BETTER, WORSE, UNDECIDED = COLOURS[2], COLOURS[1], COLOURS[0]
"""Of a difference that is shown, in favour or not, and of one that is not."""
CHANCE, FAINT, GRID = "#666666", "#9AA4B0", "#DDDDDD"

FORMATS = ("png", "svg", "pdf")
_DOTS_PER_INCH = 200
_TALLEST = 60.0  # inches: a picture has at most 65,536 dots a side
_NARROW = 4.5  # inches: less is a column
_LEGEND_LINE = 0.145  # inches
_LETTERS_PER_INCH = 14.5  # of the body size, about; titles are larger


@dataclass(frozen=True)
class Venue:
    """Inches that a picture may be wide: within a column, and across the page. One column: both are the same."""

    column: float
    page: float


VENUES = {
    "cvpr": Venue(3.25, 6.875),
    "ieee": Venue(3.5, 7.16),
    "acm": Venue(3.33, 7.0),
    "acl": Venue(3.03, 6.3),
    "interspeech": Venue(3.15, 6.69),
    "icassp": Venue(3.39, 7.0),
    "neurips": Venue(5.5, 5.5),
    "iclr": Venue(5.5, 5.5),
}
"""By their authors' kits; ICCV and ECCV's workshops use CVPR's, ICML's columns are CVPR's."""
PAGE = VENUES["cvpr"].page

STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # `$` begins no formula
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "figure.titlesize": 9,
    "figure.titleweight": "bold",
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "figure.constrained_layout.w_pad": 0.04,
    "figure.constrained_layout.h_pad": 0.04,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "conclugen",
}


def colour(index: int) -> str:
    """Of the series at a place; they repeat after eight, and marks tell those apart."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


_stamp: ContextVar[str] = ContextVar("stamp", default="")


@contextlib.contextmanager
def stamped(text: str) -> Iterator[None]:
    """Every picture of the block says this at its foot."""
    token = _stamp.set(text)
    try:
        yield
    finally:
        _stamp.reset(token)


@contextlib.contextmanager
def styled(more: Mapping[Any, Any] = MappingProxyType({})) -> Iterator[None]:
    """The style within the block. more: matplotlib's parameters that differ."""
    with mpl.rc_context({**STYLE, **more}):
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of these inches, apart from pyplot's global state. Of hundreds of names it is crowded, not taller than
    can be written."""
    return Figure(figsize=(width, min(height, _TALLEST)), layout="constrained")


def save(figure: Figure, path: Path | str) -> Path:
    """Write the picture beside `path` (`.png`) in every format, its folder made where it is missing; returns the PNG.
    Called within `styled`."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    canvas = FigureCanvasAgg(figure)
    if text := _stamp.get():
        line = drawable(text, figure.get_figwidth())
        foot = 0.12 * (1 + line.count("\n")) / figure.get_figheight()
        figure.get_layout_engine().set(rect=(0, foot, 1, 1 - foot))  # type: ignore[union-attr, call-arg]
        figure.text(0.995, 0.01, line, ha="right", va="bottom", fontsize=6, color=CHANCE)
    # Laid out once, by the letters of the PNG: `Figure.savefig` would do so twice, and draw twice, for each file.
    figure.set_dpi(_DOTS_PER_INCH)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    undated = {"CreationDate": None, "Creator": None, "Producer": None}
    writers = {
        "png": partial(canvas.print_png, metadata={"Software": None}),
        "svg": partial(FigureCanvasSVG(figure).print_svg, metadata={"Date": None, "Creator": None}),
        "pdf": partial(FigureCanvasPdf(figure).print_pdf, metadata=undated),
    }
    for place in files_of(target):
        figure.set_dpi(_DOTS_PER_INCH)  # of pictures within a drawing; the writer of another format has changed it
        with atomic_path(place) as temporary:
            writers[place.suffix[1:]](temporary)
    return target


def files_of(path: Path) -> tuple[Path, ...]:
    """Of a picture's PNG: the files that it is written as."""
    return tuple(path.with_suffix(f".{kind}") for kind in FORMATS)


def drawable(name: str, width: float = PAGE / 2) -> str:
    """A name as it can be drawn, another one for each other name: on lines that fit so many inches, and in escapes
    where the fonts lack a character (all such would be the same empty box); `font.family` of a matplotlibrc may name
    more fonts."""
    line = one_line(name) if name else ""
    if not set(map(ord, line)) <= _characters(tuple(mpl.rcParams["font.family"])):
        line = ascii(name)
    letters = max(8, round(width * _LETTERS_PER_INCH))
    lines = []
    while len(line) > letters:
        cut = line.rfind(" ", 0, letters) + 1 or letters
        lines.append(line[:cut])
        line = line[cut:]
    return "\n".join([*lines, line])


def heading(title: str, width: float = PAGE) -> str:
    """A picture's title as it can be drawn; bold letters are wider."""
    return drawable(title, 0.8 * width)


@cache
def _characters(families: tuple[str, ...]) -> frozenset[int]:
    """Those that one of the fonts has."""
    found: set[int] = set()
    for family in families:
        with contextlib.suppress(ValueError):  # not installed
            path = findfont(FontProperties(family=[family]), fallback_to_default=False)
            found |= get_font(path).get_charmap().keys()
    return frozenset(found)


def legend(within: Axes | Figure, handles: Sequence[Any], names: Sequence[str], width: float, **more: Any) -> None:
    """A legend of names, each on lines of so many inches. Matplotlib leaves out labels that begin with `_`; this does
    not."""
    made = within.legend(handles, list(map(str, range(len(names)))), **more)
    for text, name in zip(made.get_texts(), names, strict=True):
        text.set_text(drawable(name, width))


def with_legend(width: float, height: float, names: Sequence[str]) -> Figure:
    """A new figure of these inches, higher where `legend_beside` with these names needs it."""
    narrow = width < _NARROW
    lines = [drawable(name, (0.4 if narrow else 0.25) * width).count("\n") + 1 for name in names]
    half = math.ceil(len(lines) / 2)
    room = _LEGEND_LINE * (max(sum(lines[:half]), sum(lines[half:])) if narrow else sum(lines)) + 0.2
    return new_figure(width, height + room if narrow else max(height, room))


def legend_beside(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """A legend to the right of everything; below it in a picture of a column's width."""
    width = figure.get_figwidth()
    if width < _NARROW:
        legend(figure, handles, names, 0.4 * width, loc="outside lower center", ncols=2)
    else:
        legend(figure, handles, names, 0.25 * width, loc="outside right upper")
