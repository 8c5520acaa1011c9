"""Pictures are checked by what is drawn: texts, positions and pixels, read back from the figure or the PNG."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from matplotlib.text import Text
from sklearn.decomposition import PCA

from conclugen.evaluation.statistics import Interval
from ray_jobs import figure_style, plots
from ray_jobs.embedding import timeline


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written, in order."""
    figures = []
    print_png = FigureCanvasAgg.print_png

    def keep(canvas, target, **options):
        if isinstance(target, Path):  # matplotlib takes a renderer by printing to nowhere
            figures.append(canvas.figure)
        print_png(canvas, target, **options)

    monkeypatch.setattr(FigureCanvasAgg, "print_png", keep)
    return figures


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def test_confusion_writes_shares_and_counts(tmp_path, drawn):
    counts = [[3, 1, 0], [0, 0, 0], [2, 0, 6]]
    path = plots.confusion(counts, ("calm", "happy", "sad"), tmp_path / "new" / "c.png", title="t")
    assert imread(path).shape[2] == 4
    found = texts(drawn[0])
    for expected in ("calm (4)", "happy (0)", "sad (8)", "predicted", "true (rows)", "t", ".75", ".25"):
        assert expected in found, expected
    assert found.count("-") == 3
    shares = np.asarray(drawn[0].axes[0].images[0].get_array(), dtype=np.float64)
    np.testing.assert_allclose(shares, np.array([[3, 1, 0], [0, 0, 0], [1, 0, 3]]) / 4)
    with pytest.raises(ValueError, match=r"shape \(2, 2\), expected \(3, 3\)"):
        plots.confusion(np.eye(2), ("a", "b", "c"), tmp_path / "x.png")


def _svg(path):
    return ElementTree.parse(path).getroot()  # noqa: S314 - our own file


NAMES = [f"a rather long class name {i}" for i in range(8)]
VALUE = Interval(0.9, 0.8, 1.0, 0.95, 9)
KINDS = {
    "confusion": lambda path, width: plots.confusion(np.eye(8), NAMES, path, title="t " * 60, width=width),
    "bars": lambda path, width: plots.interval_bars(dict.fromkeys(NAMES, VALUE), path, title="t " * 60, width=width),
    "map": lambda path, width: plots.representation_map(
        np.random.default_rng(0).normal(size=(8, 4)),
        NAMES,
        path,
        title="t " * 60,
        lacking=[*[""] * 7, "text"],
        width=width,
    ),
    "panels": lambda path, width: plots.panels(
        [plots.Panel(name, {name: [(0, 1.0), (5, 2.0)]}) for name in NAMES], path, title="t " * 60, width=width
    ),
    "differences": lambda path, width: plots.paired_differences(
        {name: dict.fromkeys((0.03, 0.1, 1.0), VALUE) for name in NAMES}, path, title="t " * 60, width=width
    ),
    "efficiency": lambda path, width: plots.label_efficiency(
        {name: dict.fromkeys((0.03, 0.1, 1.0), VALUE) for name in NAMES}, path, title="t " * 60, width=width
    ),
    "lines": lambda path, width: plots.interval_lines(
        {name: [(0, 0.5, 0.4, 0.6), (1, 0.7, None, None)] for name in NAMES}, path, xlabel="x", ylabel="y", width=width
    ),
    "points": lambda path, width: plots.points(
        {name: [(0.1, 0.5), (10.0, 0.7)] for name in NAMES[:2]}, path, xlabel="x", ylabel="y", width=width
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("venue", "part"),
    [
        ("acl", "column"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("acl", "page"), ("cvpr", "column"), ("cvpr", "page"))
        ),
    ],
)
def test_pictures_are_as_wide_as_the_venue_says_and_nothing_is_cut_off(tmp_path, kind, venue, part):
    width = getattr(figure_style.VENUES[venue], part)
    path = KINDS[kind](tmp_path / f"{kind}.png", width)
    image = imread(path)[..., :3]
    assert image.shape[1] == round(width * 200)
    for border in (image[0], image[-1], image[:, 0], image[:, -1]):
        assert (border == 1).all()
    points = float(_svg(path.with_suffix(".svg")).get("width").removesuffix("pt"))
    assert points == pytest.approx(72 * width, abs=0.01)
    box = re.search(rb"/MediaBox \[ 0 0 ([0-9.]+) [0-9.]+ \]", path.with_suffix(".pdf").read_bytes())
    assert float(box[1]) == pytest.approx(72 * width, abs=0.01)


def test_the_same_picture_is_the_same_files_with_text_as_text(tmp_path):
    """Byte for byte, so that a paper's repository sees what changed; fonts as TrueType, which venues ask for."""
    name = '<b> & "$x$" 50 %'
    for folder in ("a", "b"):
        plots.interval_bars({name: VALUE}, tmp_path / folder / "bars.png")
    for kind in figure_style.FORMATS:
        one, other = (tmp_path / folder / f"bars.{kind}" for folder in ("a", "b"))
        assert one.read_bytes() == other.read_bytes()
    texts = [text.text for text in _svg(tmp_path / "a/bars.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert name in texts
    pdf = (tmp_path / "a/bars.pdf").read_bytes()
    assert b"/Type3" not in pdf and b"/CIDFontType2" in pdf
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["bars.pdf", "bars.png", "bars.svg"]


def test_map_is_scikit_learns_pca_up_to_sign(tmp_path, drawn):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 5)) * (5, 3, 1, 1, 1) + rng.normal(size=(60, 1)) * 2
    names = [("happy", "sad")[i % 2] for i in range(60)]
    plots.representation_map(values, names, tmp_path / "map.png")
    axes = drawn[0].axes[0]
    found = np.empty((60, 2))
    found[0::2], found[1::2] = (c.get_offsets() for c in axes.collections if len(c.get_offsets()))
    reference = PCA(2)
    expected = reference.fit_transform((values - values.mean(axis=0)) / values.std(axis=0))
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-9)
    assert axes.get_xlabel() == f"first component ({reference.explained_variance_ratio_[0]:.0%} of variance)"
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["happy", "sad"]


def test_rows_that_lack_a_modality_are_hollow_and_rare_names_are_one(tmp_path, drawn):
    values = np.random.default_rng(1).normal(size=(70, 5))
    present = {"video": np.ones(70, bool), "text": np.arange(70) >= 9, "audio": np.arange(70) >= 2}
    lacking = plots.lacking(present)
    assert lacking[:3] == ["text and audio", "text and audio", "text"] and not any(lacking[9:])
    names = [f"speaker {i % 30}" for i in range(60)] + ["speaker 5"] * 10
    plots.representation_map(values, names, tmp_path / "map.png", lacking=lacking)
    shown = [c for c in drawn[0].axes[0].collections if len(c.get_offsets())]
    hollow = [c for c in shown if len(c.get_facecolor()) == 0]
    assert sum(len(c.get_offsets()) for c in hollow) == 9 and sum(len(c.get_offsets()) for c in shown) == 70
    told = [" ".join(text.get_text().split()) for text in drawn[0].legends[0].get_texts()]
    assert len(told) == 25 and told[-2] == "7 others" and "speaker 5" in told
    assert told[-1] == "hollow: without text (7), text and audio (2)"


def test_map_by_neighbourhoods_and_of_one_column(tmp_path):
    values = np.random.default_rng(0).normal(size=(30, 4))
    assert plots.representation_map(values, ["a"] * 30, tmp_path / "t.png", method="tsne").stat().st_size > 1000
    assert plots.representation_map(values[:, :1], ["a"] * 30, tmp_path / "o.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="NaN or infinity"):
        plots.representation_map(np.full((3, 2), np.nan), ["a"] * 3, tmp_path / "n.png")


def test_panels_have_gaps_where_not_finite_and_chance_drawn(tmp_path, drawn):
    series = {
        "loss": [(0, 3.0), (1, float("nan")), (2, 1.0)],
        "loss/contrastive": [(i, 5.0 + (-1) ** i) for i in range(1000)],
        "one": [(4, 1.0)],
        "more": [(0, 1.0), (1, 2.0)],
    }
    shown = [plots.Panel(name, {name: curve}) for name, curve in series.items()]
    shown.append(plots.Panel("recall", {"a-b": [(0, 0.1)], "a-c": [(0, 0.3)]}, {"a-b": 0.1, "a-c": 0.25}))
    plots.panels(shown, tmp_path / "panels.png")
    panels = [axes for axes in drawn[0].axes if axes.get_visible()]
    assert [panel.get_title() for panel in panels] == [*series, "recall"]
    np.testing.assert_array_equal(panels[0].lines[0].get_ydata(), [3, np.nan, 1])
    mean = panels[1].lines[1].get_ydata()
    np.testing.assert_allclose(mean[20:-20], 5.0)  # a window of 20 averages the alternation away
    assert [panel.get_xlabel() for panel in panels] == ["", "", "step", "step", "step"]
    assert panels[3].lines[0].get_linestyle() == "None", "two points are no trend"
    assert [line.get_ydata()[0] for line in panels[4].lines if line.get_linestyle() == "--"] == [0.1, 0.25]
    assert [text.get_text() for text in panels[4].get_legend().get_texts()] == ["a-b", "a-c", "chance, 0.1 to 0.25"]
    with pytest.raises(ValueError, match="none given"):
        plots.panels([], tmp_path / "x.png")


def test_bars_stand_at_their_estimates_with_their_intervals(tmp_path, drawn):
    intervals = {"raw": Interval(0.6, 0.5, 0.75, 0.9, 20), "ours": Interval(-0.1, -0.2, 0.05, 0.9, 20)}
    plots.interval_bars(intervals, tmp_path / "bars.png", ylabel="difference")
    axes = drawn[0].axes[0]
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], [0.6, -0.1])
    whiskers = axes.collections[0].get_segments()
    np.testing.assert_allclose([segment[:, 0] for segment in whiskers], [[0.5, 0.75], [-0.2, 0.05]])
    assert axes.get_xlabel() == "difference (90% interval over groups)"
    assert {"0.600", "-0.100", "raw", "ours"} <= set(texts(drawn[0]))


def test_label_efficiency_draws_each_system_over_its_fractions(tmp_path, drawn):
    value = Interval(0.5, 0.4, 0.6, 0.95, 20)
    systems = {"raw": {0.03: value, 1.0: value}, "ours": {0.1: value}}
    plots.label_efficiency(systems, tmp_path / "lines.png")
    axes = drawn[0].axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["3%", "10%", "100%"]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["raw", "ours"]
    assert axes.get_xscale() == "log" and len(axes.xaxis.get_minorticklocs()) == 0, "no marks but at the shares"
    assert {label.get_fontsize() for label in axes.get_xticklabels()} == {7.0}, "the least that venues let pass"
    raw, ours = (container.lines[0].get_xdata() for container in axes.containers)
    beside = raw / [0.03, 1.0]  # as far to the left of the share as the other one is to the right
    np.testing.assert_allclose([*beside * ours / 0.1, beside[0] / beside[1]], 1.0)
    assert 0.95 < beside[0] < 1.0


# Rows of the projections of linear RGB in Viénot, Brettel & Mollon (1999), "Digital video colourmaps for checking".
DEUTERANOPIA = [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]
PROTANOPIA = [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]


def test_differences_stand_beside_zero_full_where_it_is_left_out(tmp_path, drawn):
    rows = {
        "new": {0.03: Interval(0.05, 0.02, 0.08, 0.95, 20), 1.0: Interval(0.01, -0.02, 0.04, 0.95, 20)},
        "old": {0.03: Interval(-0.05, -0.08, -0.02, 0.95, 20)},
    }
    plots.paired_differences(rows, tmp_path / "d.png", xlabel="x", title="t")
    few, every = drawn[0].axes
    assert [few.get_title(), every.get_title()] == ["3% of labels", "100% of labels"]
    assert [label.get_text() for label in few.get_yticklabels()] == ["new", "old"]
    dots = [[line for line in panel.lines if line.get_marker() == "o"] for panel in (few, every)]
    assert [[(*dot.get_xdata(), *dot.get_ydata()) for dot in row] for row in dots] == [
        [(0.05, 0), (-0.05, 1)],
        [(0.01, 0)],
    ]
    assert [dot.get_markerfacecolor() != "white" for row in dots for dot in row] == [True, True, False]
    assert dots[0][0].get_color() != dots[0][1].get_color()
    assert [list(line.get_xdata()) for line in few.lines if len(line.get_xdata()) == 2] == [
        *([0, 0], [0.02, 0.08], [-0.08, -0.02])
    ]
    plots.paired_differences(rows, tmp_path / "f.png", told={("old", 0.03)})  # a test saw no difference of "new"
    few, every = drawn[1].axes
    dots = [line for panel in (few, every) for line in panel.lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() != "white" for dot in dots] == [False, True, False]
    with pytest.raises(ValueError, match="no system given"):
        plots.paired_differences({}, tmp_path / "e.png")


def test_a_point_with_one_end_of_its_interval_has_no_whisker(tmp_path, drawn):
    points = [(1.0, 0.5, None, 0.6), (2.0, 0.5, 0.4, None), (3.0, 0.5, None, None), (4.0, 0.5, 0.4, 0.6)]
    plots.interval_lines({"a": points}, tmp_path / "lines.png", xlabel="x", ylabel="y")
    (whiskers,) = drawn[0].axes[0].containers[0].lines[2]
    heights = [end[1] - start[1] for start, end in whiskers.get_segments()]
    np.testing.assert_allclose(heights, [0, 0, 0, 0.2])


def test_points_have_a_running_median_of_those_of_the_first_name(tmp_path, drawn):
    rng = np.random.default_rng(0)
    whole = [(float(10**x), float(y)) for x, y in rng.normal(size=(11, 2))]
    early = [(0.1, 0.5)]
    plots.points({"whole": whole, "early": early}, tmp_path / "points.png", xlabel="weight", ylabel="y")
    lines = drawn[0].axes[0].lines
    assert [sorted(zip(*line.get_data(), strict=True)) for line in lines[:2]] == [sorted(whole), early]
    assert [line.get_markerfacecolor() == "white" for line in lines[:2]] == [False, True]
    rows = sorted(whole)
    expected = [(rows[n + 1][0], float(np.median([y for _, y in rows[n : n + 3]]))) for n in range(9)]
    np.testing.assert_allclose(np.transpose(lines[2].get_data()), expected)
    plots.points({"whole": whole[:8]}, tmp_path / "few.png", xlabel="weight", ylabel="y")
    assert len(drawn[1].axes[0].lines) == 1


@pytest.mark.parametrize("projection", [DEUTERANOPIA, PROTANOPIA, np.eye(3)])
def test_colours_are_told_apart_without_red_and_green(projection):
    seen = np.clip(_rgb(figure_style.COLOURS) ** 2.2 @ np.asarray(projection).T, 0, 1) ** (1 / 2.2)
    distance = np.linalg.norm(seen[:, None] - seen[None], axis=2) + np.eye(len(seen))
    assert distance.min() > 0.12


def test_lines_stand_out_from_their_paper():
    """At least 3:1 (WCAG 2.1, success criterion 1.4.11)."""
    linear = np.where(
        (rgb := _rgb([*figure_style.COLOURS, "#ffffff"])) <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4
    )
    *inks, ground = linear @ [0.2126, 0.7152, 0.0722]
    for ink in inks:
        assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 3


def _rgb(colours):
    return np.asarray([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in colours])


@pytest.mark.parametrize(
    "name",
    [
        "$x^2$",  # a formula
        r"$\bad$",  # none that can be drawn
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("a $5 b", "100 %", "_under_", "#1 {x}")),
    ],
)
def test_names_are_text_and_never_formulae(tmp_path, drawn, name):
    """A class, a system, a metric and a title of any name are drawn as they stand, in every kind of picture."""
    value = Interval(0.5, 0.4, 0.6, 0.95, 4)
    plots.confusion([[1, 0], [0, 1]], (name, "b"), tmp_path / "a.png", title=name)
    plots.representation_map(np.eye(4), [name, name, "b", "b"], tmp_path / "b.png", title=name)
    plots.panels([plots.Panel(name, {name: [(0, 1.0), (1, 0.5)], "b": []})], tmp_path / "c.png")
    plots.interval_bars({name: value, "b": value}, tmp_path / "d.png", ylabel=name, title=name)
    plots.label_efficiency({name: {0.1: value, 1.0: value}}, tmp_path / "e.png", ylabel=name, title=name)
    timeline.draw([(0, 1), (1, 2)], np.eye(2), np.eye(2), (name, "b"), tmp_path / "f.png", name)
    for figure in drawn:
        named = [text for text in figure.findobj(Text) if name in text.get_text()]
        assert named and not any(text.get_parse_math() for text in named)
    assert len(drawn) == 6
