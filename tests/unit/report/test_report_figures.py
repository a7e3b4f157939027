"""Figures hold the series they were given, are not blank, and do not exist without data."""

import io
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread
from report_sample import (
    BENCHMARKS,
    DEPTHS,
    LENGTHS,
    MODELS,
    PASSKEY,
    PERPLEXITY,
    RULER,
    TARGET,
    document,
    everything,
    run_facts,
    scores,
    write_run,
)

from skipwise.report import figures
from skipwise.report.dots import Dots, dot_chart
from skipwise.report.heat import depth_heat, heat_map
from skipwise.report.inputs import Model, read_run
from skipwise.report.plots import OWN_NAMES, all_plots
from skipwise.report.style import curve_styles, styles
from skipwise.report.svg import SCHEME, inline_svg, png
from skipwise.scores import Score, Scores

NAMES = (
    *("passkey_by_length", "passkey_heat_map", "needle_heat_map_number", "needle_heat_map_sentence"),
    *("needle_heat_map_several", "ruler_by_length", "ruler_by_task"),
    *("perplexity_by_window", "perplexity_last_quarter", "perplexity_by_position", "sliding_perplexity"),
    *("longppl_by_length", "benchmarks", "coverage", "training_loss"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(write_run(tmp_path_factory.mktemp("run")) / "run.json")


@pytest.fixture(scope="module")
def plots(run):
    return {plot.name: plot for plot in all_plots(run, document(everything()), run.models)}


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
    for name, values in PASSKEY.items():
        x, y = series(plots["passkey_by_length"].figure)[titles[name]]
        assert x == list(LENGTHS)
        assert y == pytest.approx([100 * value for value in values])


def test_error_bars_are_one_standard_error(plots):
    (axes,) = plots["passkey_by_length"].figure.axes
    bars = [container for container in axes.containers if container.has_yerr]
    assert len(bars) == len(PASSKEY)
    (low, high) = bars[1][2][0].get_segments()[3]  # interpolated at 4k: 46 % of 50 trials
    assert high[1] - low[1] == pytest.approx(2 * 100 * math.sqrt(0.46 * 0.54 / 50))


def test_positions_sit_in_the_middle_of_their_bucket(plots):
    x, y = series(plots["perplexity_by_position"].figure)["PoSE"]
    assert x[:3] == [256.0, 768.0, 1536.0]
    assert y == pytest.approx([0.93 * value for value in PERPLEXITY["pose"]])


def test_heat_map_cells_hold_the_percentages(plots):
    figure = plots["passkey_heat_map"].figure
    rows = [row for row in scores() if row.depth is not None and row.model == "contiguous"]
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left") == "Contiguous control"]
    drawn = np.asarray(axes.collections[0].get_array())
    assert drawn.shape == (len(DEPTHS), len(LENGTHS))
    for row in rows:
        assert drawn[DEPTHS.index(row.depth), LENGTHS.index(row.length)] == pytest.approx(100 * row.value)
    texts = [text.get_text() for text in axes.texts]
    assert texts == [f"{value:.0f}" for value in drawn.ravel()]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "depth 0 must be at the top"


def test_ruler_by_task_has_a_row_a_task(plots):
    (axes,) = [axes for axes in plots["ruler_by_task"].figure.axes if axes.get_title(loc="left") == "PoSE"]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(RULER)
    rows = [row for row in everything() if row.task == "ruler" and row.model == "pose" and row.subtask]
    expected = np.array([row.value for row in rows]).reshape(3, len(RULER)).T
    assert np.asarray(axes.collections[0].get_array()) == pytest.approx(100 * expected)


def test_captions_count_the_trials_of_what_is_drawn(plots):
    for name, words in {
        "passkey_by_length": "(50 trials a point)",
        "passkey_heat_map": "(10 trials a cell)",
        "needle_heat_map_several": "(10 trials a cell)",
        "ruler_by_task": "(50 prompts a cell)",
        "perplexity_by_window": "(40 documents)",
        "benchmarks": "(400 questions each)",
    }.items():
        assert words in plots[name].caption


def test_needles_and_passkeys_do_not_mix(plots):
    for name, kind in (("needle_heat_map_number", "number"), ("needle_heat_map_several", "several")):
        rows = [row for row in everything() if row.subtask == kind and row.depth is not None]
        axes = plots[name].figure.axes
        assert len(axes) == len(MODELS)
        drawn = [text.get_text() for panel in axes for text in panel.texts]
        assert sorted(drawn) == sorted(f"{100 * row.value:.0f}" for row in rows)


def test_benchmarks_are_drawn_with_one_standard_error(plots):
    (axes,) = plots["benchmarks"].figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[0] == "BoolQ"
    assert labels[-1] == "average"
    assert len(labels) == len(BENCHMARKS) + 1
    rows = {row.subtask: row for row in everything() if (row.model, row.task) == ("pose", "benchmark")}
    color = styles(["pose"])["pose"].color
    bars = [line for line in axes.lines if line.get_color() == color and line.get_marker() == "None"]
    (marks,) = [
        line for line in axes.lines if line.get_markerfacecolor() == color and line.get_marker() == "o"
    ]
    assert list(marks.get_xdata()[:-1]) == pytest.approx([100 * row.value for row in rows.values()])
    for bar, row in zip(bars, rows.values(), strict=False):
        assert list(bar.get_xdata()) == pytest.approx(
            [100 * (row.value - row.stderr), 100 * (row.value + row.stderr)]
        )
    # The first row is on top, and the models of a row stand beside each other.
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    places = [line.get_ydata()[0] for line in axes.lines if line.get_marker() not in ("None", None, "")]
    assert len(set(places)) == len(MODELS)


def test_dots_without_a_value_leave_a_gap_and_hollow_ones_are_outlines():
    look = styles(["a"])["a"]
    series = Dots(
        title="A",
        style=look,
        values=(1.0, math.nan, 3.0),
        low=(0.5, math.nan, math.nan),
        high=(2.0, math.nan, math.nan),
        hollow=(True, False, False),
    )
    (axes,) = dot_chart([series], ["x", "y", "z"], "points", line=0.0).axes
    drawn = {line.get_gid(): line for line in axes.lines if line.get_gid()}
    assert list(drawn["hollow"].get_data()[1]) == [0.0]
    assert list(drawn["full"].get_data()[1]) == [2.0]
    assert drawn["hollow"].get_markerfacecolor() != look.color
    assert drawn["full"].get_markerfacecolor() == look.color


def test_every_name_is_one_that_a_report_may_remove(plots):
    assert all(OWN_NAMES.fullmatch(name) for name in plots)
    assert not OWN_NAMES.fullmatch("mine")


def test_a_colour_map_that_keeps_its_order_in_grey(plots):
    mesh = plots["passkey_heat_map"].figure.axes[0].collections[0]
    grey = mesh.get_cmap()(np.linspace(0, 1, 50))[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(grey) < 0).all()
    assert mesh.get_clim() == (0, 100)


def test_heat_map_marks_what_was_not_measured():
    rows = [Score(model="a", task="passkey", length=8, value=0.4, depth=depth) for depth in (0.0, 1.0)]
    rows += [Score(model="a", task="passkey", length=24, value=1.0, depth=1.0)]
    (axes,) = heat_map(depth_heat(rows, "passkey"), [Model(name="a", title="A")]).axes
    assert [text.get_text() for text in axes.texts] == ["40", "–", "40", "100"]


def test_axes_name_their_units_and_lengths(plots):
    expected = {
        "passkey_by_length": ("prompt length (tokens)", "keys found (%)"),
        "ruler_by_length": ("prompt length (tokens)", "RULER, average (%)"),
        "sliding_perplexity": ("window length (tokens)", "perplexity"),
        "longppl_by_length": ("window length (tokens)", "LongPPL"),
        "benchmarks": ("score (%)", ""),
        "perplexity_by_window": ("window length (tokens)", "perplexity"),
        "perplexity_last_quarter": ("window length (tokens)", "perplexity"),
        "perplexity_by_position": ("position in the document (tokens)", "perplexity"),
        "coverage": ("relative distance (tokens)", "probability of being covered"),
        "training_loss": ("optimizer step", "training loss (nats per token)"),
    }
    for name, labels in expected.items():
        (axes,) = plots[name].figure.axes
        assert (axes.get_xlabel(), axes.get_ylabel()) == labels
    (axes,) = plots["passkey_by_length"].figure.axes
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
    assert all_plots(run, Scores(), run.models)[0].name == "coverage"
    assert heat_map(depth_heat([], "passkey"), run.models) is None
    assert dot_chart([], [], "x") is None
    assert figures.shares([], run, "y", 0.9) is None
    assert figures.training_loss([]) is None


@pytest.mark.parametrize("title", ["_hidden", "$\\frac{", "模型", "a" * 200, "<script>&\"'"])
def test_hostile_titles_are_drawn_as_they_are(run, title):
    rows = [Score(model="a", task="passkey", length=length, value=0.5) for length in (64, TARGET)]
    rows += [Score(model="a", task="passkey", length=64, value=0.5, depth=0.5)]
    rows += [Score(model="a", task="ruler", subtask=title, length=64, value=0.5)]
    rows += [Score(model="a", task="benchmark", subtask=title, length=0, value=0.5)]
    found, models = Scores(scores=tuple(rows)), [Model(name="a", title=title)]
    drawn = all_plots(run, found, models)
    assert [plot.name for plot in drawn[:4]] == [NAMES[0], NAMES[1], "ruler_by_task", "benchmarks"]
    for plot in drawn[:4]:
        svg = inline_svg(plot.figure, plot.name, plot.alt)
        assert "<script" not in svg
        assert png(plot.figure)
    legend = drawn[0].figure.legends[0]
    assert legend.get_texts()[0].get_text()[:7] == title[:7]


def test_inline_svg_is_repeatable_and_takes_the_colours_of_the_page(run):
    def drawn(name: str) -> str:
        return inline_svg(all_plots(run, document(), run.models)[0].figure, name, 'a "quoted" alt')

    assert drawn("one") == drawn("one")
    text = drawn("one")
    assert text.startswith("<svg ")
    assert 'aria-label="a &quot;quoted&quot; alt"' in text
    assert "var(--blue)" in text
    assert "currentColor" in text
    assert not set(SCHEME) & set(text.split('"')), "a colour of the light scheme is left"
    assert "http" not in text


def test_every_mark_of_a_drawing_has_its_own_id(plots):
    text = inline_svg(plots["benchmarks"].figure, "name", "alt")
    ids = re.findall(r'(?<= id=")[^"]+', text)
    assert len(ids) == len(set(ids)) > 20
    assert {each.strip("#") for each in re.findall(r'#[^")]+(?=[")])', text)} <= set(ids)


def test_neither_pyplot_nor_torch_is_imported():
    unwanted = "{'matplotlib.pyplot', 'torch', 'transformers'}"
    code = f"import sys, skipwise.report.page; sys.exit(bool({unwanted} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
