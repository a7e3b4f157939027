"""Coverage results as JSON, table and figure: what is drawn and printed is what was computed."""

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from skipwise.data.balanced import Balanced
from skipwise.data.coverage import Coverage, coverage
from skipwise.data.skips import Contiguous, FullLength, PoSE
from skipwise.data.until_seen import UntilSeen, examples_until_seen
from skipwise.errors import InputError
from skipwise.report import svg
from skipwise.report.coverage import (
    CURVES,
    Result,
    _drawn_distances,
    coverage_figure,
    coverage_json,
    coverage_tables,
)


def result(sampler, title="PoSE (2 chunks)", times=1):
    found = coverage(sampler, draws=200)
    return Result(
        title=title,
        train_length=37,
        target_length=sampler.target_length,
        coverage=found,
        until_seen=examples_until_seen(sampler, times, found=found, rows=50_000),
        times=times,
    )


def planted(probability, error=0.0, until_seen=None, title="planted"):
    """A result of made-up numbers, train length 4."""
    probability = np.array(probability)
    return Result(
        title=title,
        train_length=4,
        target_length=len(probability) + 1,
        coverage=Coverage(probability, np.full(len(probability), error)),
        until_seen=until_seen or UntilSeen(None, None, None, None, 0),
        times=3,
    )


def printed(results, width=80):
    console = Console(file=io.StringIO(), width=width)
    for table in coverage_tables(results):
        console.print(table)
    return console.file.getvalue()


def cells(text):
    """Row name -> cells, of a printed table."""
    rows = [line.split("  ") for line in text.splitlines()]
    return {
        row[0]: row[1:] for row in ([cell.strip() for cell in line if cell.strip()] for line in rows) if row
    }


def test_json_holds_every_distance_or_every_stride():
    whole = result(PoSE(37, 301))
    document = coverage_json(whole)
    assert document["distance"] == list(range(1, 301))
    assert document["probability"] == whole.coverage.probability.tolist()
    assert document["error"] == [0.0] * 300
    assert document["exact"] is True
    thin = coverage_json(whole, stride=7)
    assert thin["distance"] == list(range(1, 301, 7))
    assert thin["probability"] == [document["probability"][d - 1] for d in thin["distance"]]
    assert len(thin["error"]) == len(thin["distance"])
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_json_says_what_is_known_of_the_wait():
    wait = coverage_json(result(PoSE(37, 301), times=2))["examples_until_seen"]
    assert wait["times"] == 2
    assert wait["never"] is False
    assert wait["at_least"] == pytest.approx(2 * 265)
    assert wait["at_least"] <= wait["mean"] <= wait["at_most"]
    assert coverage_json(result(Contiguous(37, 301)))["examples_until_seen"] == {
        **{"times": 1, "never": True, "mean": None, "error": None, "at_least": None, "at_most": None},
    }
    document = coverage_json(result(PoSE(37, 301, 3)))
    assert document["exact"] is False
    assert min(document["error"]) > 0
    assert document["examples_until_seen"]["at_least"] is None
    assert document["examples_until_seen"]["mean"] > 0


def test_the_table_holds_the_telling_numbers():
    wait = UntilSeen(400.0, 1234.5, 567.8, 9.87, 12)
    rows = cells(printed([planted([1, 0.99999, 0.5, 0.25, 0.125, 0.0625, 0.0005, 0.25], 0.0035, wait)]))
    assert rows["1"] == ["1"]
    assert rows["2"] == [">0.9999"]
    assert rows["4 (train length)"] == ["0.25"]
    assert rows["8"] == ["0.25"]
    assert rows["standard error at most"] == ["0.0035"]
    assert rows["lowest from there on"] == ["0.0005"]
    assert rows["at distance"] == ["7"]
    assert rows["highest / lowest"] == ["500"]
    assert rows["examples until all"] == ["568"]
    assert "were seen 3 times" in rows
    assert rows["standard error"] == ["9.87"]
    assert rows["at least"] == ["400"]
    assert rows["at most"] == ["1,234"]


def test_the_table_of_what_is_never_seen_and_of_what_is_flat():
    never = UntilSeen(math.inf, math.inf, None, None, 0)
    flat = 0.1 + 2e-17 * np.arange(9)[::-1]  # least at the far end, but for rounding flat
    rows = cells(printed([planted([1, 1, 1] + [0.0] * 9, 0, never), planted([1, 1, 1, *flat])]))
    assert rows["examples until all"] == ["never", "–"]
    assert rows["lowest from there on"] == ["0", "0.1"]
    assert rows["at distance"] == ["4", "4"]
    assert rows["highest / lowest"] == ["–", "1"]
    rows = cells(printed([result(FullLength(37, 37), "whole")]))
    assert rows["lowest from there on"] == rows["highest / lowest"] == ["–"]
    assert rows["standard error at most"] == ["exact"]
    assert rows["examples until all"] == ["1"]


def test_tables_fit_a_terminal():
    many = [result(PoSE(37, 301), f"80 % PoSE, 20 % Contiguous ({number} chunks)") for number in range(9)]
    text = printed(many)
    assert max(map(len, text.splitlines())) <= 80
    assert len(coverage_tables(many)) == 3
    assert all(f"({number}" in text for number in range(9))
    assert "…" not in text


def test_the_figure_draws_what_was_computed():
    results = [
        result(PoSE(37, 301)),
        result(PoSE(37, 301, 3), "PoSE (3 chunks)"),
        result(Balanced(37, 301), "Balanced (2 chunks)"),
        result(Contiguous(37, 301), "Contiguous"),
    ]
    figure = coverage_figure(results)
    svg.png(figure)
    (axes,) = figure.axes
    curves = [line for line in axes.lines if len(line.get_xdata()) > 2]
    for line, each in zip(curves, results, strict=True):
        x = np.asarray(line.get_xdata())
        assert {1, 36, 37, 300} <= set(x.tolist())
        np.testing.assert_array_equal(line.get_ydata(), each.coverage.probability[x - 1])
    # Told apart without colour, and by their names.
    assert len({(line.get_marker(), str(line.get_linestyle())) for line in curves}) == 4
    assert len({line.get_marker() for line in curves}) == 4
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[0] == "PoSE (2 chunks)"
    assert legend[1].startswith("PoSE (3 chunks) ± 0.0")
    long = coverage_figure([result(PoSE(37, 301, 3), "80 % PoSE, 20 % Contiguous (3 chunks)")])
    assert "(3 chunks) ± 0.0" in long.legends[0].get_texts()[0].get_text()
    assert axes.get_xlabel() == "relative distance (tokens)"
    assert axes.get_ylabel() == "probability that one example covers it"
    assert [text.get_text() for text in axes.texts] == ["train length 37"]
    assert [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2] == [37]
    # Both the smallest probability, 1 / 265, and 0 have a place.
    heights = axes.transAxes.inverted().transform(
        axes.transData.transform([(300, 0), (300, 1 / 265), (300, 1)])
    )
    assert heights[0, 1] == pytest.approx(0)
    assert 0.05 < heights[1, 1] < 0.5
    assert 0.9 < heights[2, 1] <= 1


def test_both_sides_of_the_train_length_are_drawn():
    drawn = _drawn_distances(20_011, 100_003)
    assert {1, 20_010, 20_011, 100_002} <= set(drawn.tolist())
    assert (np.diff(drawn) > 0).all()


@pytest.mark.parametrize("sampler", [PoSE(37, 38), PoSE(37, 37), Contiguous(37, 301), PoSE(37, 100_003)])
def test_figures_of_any_lengths(sampler):
    figure = coverage_figure([result(sampler)])
    assert svg.png(figure)[:8] == b"\x89PNG\r\n\x1a\n"
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert 2 < len(labels) < 16
    assert len(set(labels)) == len(labels)
    assert len(figure.axes[0].lines[0].get_xdata()) < 2_500


def test_more_lines_than_can_be_told_apart():
    one = result(PoSE(37, 301))
    assert coverage_figure([one] * CURVES)
    with pytest.raises(InputError, match="8 samplers in one figure: at most 7"):
        coverage_figure([one] * (CURVES + 1))


def test_an_svg_file_is_whole_and_the_same_every_time():
    first, second = (svg.svg_file(coverage_figure([result(PoSE(37, 301))])) for _ in range(2))
    assert first == second
    assert first.startswith(b"<?xml")
    assert b"</svg>" in first
