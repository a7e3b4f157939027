"""Figures hold the series they were given, are not blank, and do not exist without data."""

import io
import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread
from report_sample import DEPTHS, LENGTHS, MODELS, PERPLEXITY, RETRIEVAL, TARGET, run_facts, scores, write_run

from skipwise.report import figures
from skipwise.report.inputs import Model, Score, parse_scores, read_run
from skipwise.report.plots import NAMES, all_plots
from skipwise.report.style import curve_styles, styles
from skipwise.report.svg import SCHEME, inline_svg, png


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(write_run(tmp_path_factory.mktemp("run")) / "run.json")


@pytest.fixture(scope="module")
def plots(run):
    return {plot.name: plot for plot in all_plots(run, parse_scores(scores()), run.models)}


def series(figure) -> dict[str, tuple[list[float], list[float]]]:
    """Legend title -> the data drawn under it."""
    (axes,) = figure.axes
    titles = [text.get_text() for text in figure.legends[0].get_texts()]
    colors = [handle.get_color() for handle in figure.legends[0].legend_handles]
    drawn = {line.get_color(): line for line in axes.lines if line.get_marker() not in ("None", "^up")}
    return {
        title: tuple(map(list, drawn[color].get_data())) for title, color in zip(titles, colors, strict=True)
    }


def test_all_figures_are_drawn_and_not_blank(plots):
    assert tuple(plots) == NAMES
    for name, plot in plots.items():
        pixels = imread(io.BytesIO(png(plot.figure)))[..., :3]
        dark = (pixels.min(axis=2) < 0.8).mean()
        assert 0.01 < dark < 0.95, name
        assert pixels.shape[1] == pytest.approx(plot.figure.get_figwidth() * 150, abs=1)


def test_lines_by_length_hold_the_scores(plots):
    titles = {model["name"]: model["title"] for model in MODELS}
    assert series(plots["perplexity_by_window"].figure) == {
        titles[name]: (list(LENGTHS), list(values)) for name, values in PERPLEXITY.items()
    }
    for name, values in RETRIEVAL.items():
        x, y = series(plots["retrieval_by_length"].figure)[titles[name]]
        assert x == list(LENGTHS)
        assert y == pytest.approx([100 * value for value in values])


def test_error_bars_are_one_standard_error(plots):
    (axes,) = plots["retrieval_by_length"].figure.axes
    bars = [container for container in axes.containers if container.has_yerr]
    assert len(bars) == len(RETRIEVAL)
    (low, high) = bars[1][2][0].get_segments()[3]  # interpolated at 4k: 46 % of 50 trials
    assert high[1] - low[1] == pytest.approx(2 * 100 * math.sqrt(0.46 * 0.54 / 50))


def test_positions_sit_in_the_middle_of_their_bucket(plots):
    x, y = series(plots["perplexity_by_position"].figure)["PoSE"]
    assert x[:3] == [256.0, 768.0, 1536.0]
    assert y == pytest.approx([0.93 * value for value in PERPLEXITY["pose"]])


def test_heat_map_cells_hold_the_percentages(plots):
    figure = plots["retrieval_heat_map"].figure
    rows = [row for row in scores() if row["task"] == "retrieval_at_depth" and row["model"] == "contiguous"]
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left") == "Contiguous control"]
    drawn = np.asarray(axes.collections[0].get_array())
    assert drawn.shape == (len(DEPTHS), len(LENGTHS))
    for row in rows:
        assert drawn[DEPTHS.index(row["depth"]), LENGTHS.index(row["length"])] == pytest.approx(
            100 * row["value"]
        )
    texts = [text.get_text() for text in axes.texts]
    assert texts == [f"{value:.0f}" for value in drawn.ravel()]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "depth 0 must be at the top"


def test_heat_map_marks_what_was_not_measured():
    rows = [
        Score(model="a", task="retrieval_at_depth", length=8, value=0.4, depth=depth) for depth in (0.0, 1.0)
    ]
    rows += [Score(model="a", task="retrieval_at_depth", length=24, value=1.0, depth=1.0)]
    (axes,) = figures.heat_map(rows, [Model(name="a", title="A")]).axes
    assert [text.get_text() for text in axes.texts] == ["40", "–", "40", "100"]


def test_axes_name_their_units_and_lengths(plots):
    expected = {
        "retrieval_by_length": ("window length (tokens)", "keys found (%)"),
        "perplexity_by_window": ("window length (tokens)", "perplexity"),
        "perplexity_last_quarter": ("window length (tokens)", "perplexity"),
        "perplexity_by_position": ("position in the document (tokens)", "perplexity"),
        "coverage": ("relative distance (tokens)", "probability of being covered"),
        "training_loss": ("optimizer step", "training loss (nats per token)"),
    }
    for name, labels in expected.items():
        (axes,) = plots[name].figure.axes
        assert (axes.get_xlabel(), axes.get_ylabel()) == labels
    (axes,) = plots["retrieval_by_length"].figure.axes
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["512", "1k", "2k", "4k", "8k", "16k"]
    assert [text.get_text() for text in axes.texts] == ["original window", "target"]


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ((5.0, 6.0, 7.0, 8.0), "linear"),
        ((5.0, 5.0, 5.0, 5.0), "linear"),
        ((2.0, 4.0, 8.0, 30.0), "log"),
        ((5.0, 6.0, 7.0, 4000.0), "function"),
    ],
)
def test_the_perplexity_axis_follows_the_range(run, values, scale):
    rows = [
        Score(model="a", task="perplexity", length=2**i, value=value) for i, value in enumerate(values, 5)
    ]
    lines = figures.score_lines(rows, "perplexity", [Model(name="a", title="A")])
    (axes,) = figures.perplexity(lines, run, "x").axes
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert low <= min(values) <= max(values) <= high
    heights = axes.transAxes.inverted().transform(
        axes.transData.transform([(32, value) for value in values])
    )[:, 1]
    assert (np.diff(heights) >= 0).all()
    assert heights.min() >= 0
    assert heights.max() <= 1


def test_infinite_perplexity_sits_on_the_edge(run):
    rows = [
        Score(model="a", task="perplexity", length=2**i, value=v) for i, v in enumerate((5.0, math.inf), 5)
    ]
    lines = figures.score_lines(rows, "perplexity", [Model(name="a", title="A")])
    (axes,) = figures.perplexity(lines, run, "x").axes
    (heads,) = [line for line in axes.lines if line.get_gid() == "off-the-scale"]
    assert [list(part) for part in heads.get_data()] == [[64.0], [1.0]]
    only_infinite = figures.score_lines(rows[1:], "perplexity", [Model(name="a", title="A")])
    assert figures.perplexity(only_infinite, run, "x") is None


def test_coverage_and_training_hold_the_facts(plots):
    facts = run_facts()
    drawn = series(plots["coverage"].figure)
    assert list(drawn) == list(facts["coverage"]["probability"])
    for label, values in facts["coverage"]["probability"].items():
        assert drawn[label] == (facts["coverage"]["distance"], values)
    (axes,) = plots["training_loss"].figure.axes
    raw = {tuple(line.get_ydata()) for line in axes.lines}
    for history in facts["training"].values():
        assert tuple(row["loss"] for row in history) in raw
    assert [text.get_text() for text in plots["training_loss"].figure.legends[0].get_texts()] == [
        "Contiguous control",
        "PoSE",
    ]


def test_moving_mean_keeps_length_and_level():
    assert figures.moving_mean([3.0, 3.0, 3.0], 2) == [3.0, 3.0, 3.0]
    assert figures.moving_mean([0.0, 3.0, 6.0, 0.0], 2) == [1.5, 3.0, 3.0, 3.0]
    assert figures.moving_mean([1.0, 2.0], 1) == [1.0, 2.0]


def test_styles_differ_in_more_than_colour():
    looks = styles(["untouched", "pose", "x", "contiguous", "y", "interpolated", "z"])
    assert len({style.color for style in looks.values()}) == 7
    assert len({style.marker for style in looks.values()}) == 7
    assert styles(["x", "pose"])["pose"] == styles(["pose"])["pose"], "a model keeps its look in every figure"


def test_a_curve_looks_like_its_model():
    models = [Model(name="pose", title="PoSE"), Model(name="contiguous", title="Control")]
    looks = curve_styles(["PoSE, N = 2", "PoSE, N = 3", "contiguous", "other"], models)
    by_model = styles(["pose", "contiguous"])
    assert looks["PoSE, N = 2"] == by_model["pose"]
    assert looks["contiguous"] == by_model["contiguous"]
    assert len(set(looks.values())) == 4


def test_without_data_no_figure(run):
    assert all_plots(run, [], run.models)[0].name == "coverage"
    assert figures.heat_map([], run.models) is None
    assert figures.retrieval_by_length([], run) is None
    assert figures.training_loss([]) is None


@pytest.mark.parametrize("title", ["_hidden", "$\\frac{", "模型", "a" * 200, "<script>&\"'"])
def test_hostile_titles_are_drawn_as_they_are(run, title):
    rows = [Score(model="a", task="retrieval", length=length, value=0.5) for length in (64, TARGET)]
    rows += [Score(model="a", task="retrieval_at_depth", length=64, value=0.5, depth=0.5)]
    models = [Model(name="a", title=title)]
    for plot in all_plots(run, rows, models)[:2]:
        svg = inline_svg(plot.figure, plot.name, plot.alt)
        assert "<script" not in svg
        assert png(plot.figure)
    legend = all_plots(run, rows, models)[0].figure.legends[0]
    assert legend.get_texts()[0].get_text()[:7] == title[:7]


def test_inline_svg_is_repeatable_and_takes_the_colours_of_the_page(run):
    def drawn(name: str) -> str:
        rows = parse_scores(scores())
        return inline_svg(all_plots(run, rows, run.models)[0].figure, name, 'a "quoted" alt')

    assert drawn("one") == drawn("one")
    text = drawn("one")
    assert text.startswith("<svg ")
    assert 'aria-label="a &quot;quoted&quot; alt"' in text
    assert "var(--blue)" in text
    assert "currentColor" in text
    assert not set(SCHEME) & set(text.split('"')), "a colour of the light scheme is left"
    assert "http" not in text


def test_neither_pyplot_nor_torch_is_imported():
    unwanted = "{'matplotlib.pyplot', 'torch', 'transformers'}"
    code = f"import sys, skipwise.report.page; sys.exit(bool({unwanted} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
