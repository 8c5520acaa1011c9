"""Draws this report's figures again, from `figures.json` beside this file: edit it, and `python figures.py`.

It needs conclugen installed, and writes PNG, SVG and PDF into the folder `paper` beside it.
"""

from pathlib import Path

from ray_jobs import figure_style
from tuning.report import drawings

VENUE = "cvpr"  # cvpr, ieee, acm, acl, interspeech, icassp, neurips, iclr
IN_A_COLUMN: set[str] = set()  # names of figures (see `figures.json`) of one column
TITLES = False  # a paper has captions
RENAME: dict[str, str] = {}  # system -> its name in the paper, such as "untrained heads [improved]": "untrained"
LEAVE_OUT: set[str] = set()  # systems that are not drawn
STYLE: dict[str, object] = {}  # parameters of matplotlib, such as "font.family": "serif"

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    venue = figure_style.VENUES[VENUE]
    figure_style.STYLE.update(STYLE)
    figures, stamp = drawings.load(here / drawings.DATA)
    for figure in figures:
        width = venue.column if figure.name in IN_A_COLUMN else venue.page
        with figure_style.stamped(stamp):
            path = drawings.draw(figure, here / "paper", width=width, title=TITLES, rename=RENAME, leave_out=LEAVE_OUT)
        print(path)
