"""The right number in the right cell, in every form a table takes."""

import io
import math

import pytest
from report_sample import LENGTHS, PERPLEXITY, RETRIEVAL, scores
from rich.console import Console

from skipwise.errors import InputError
from skipwise.report import markdown_tables, score_tables
from skipwise.report.inputs import parse_scores
from skipwise.report.tables import grid, length_label, titled, value_text


def printed(rows: list[dict], width: int = 80, **options) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    for table in score_tables(rows, **options):
        console.print(table)
    return console.file.getvalue()


def row(model: str, length: int, value: float | None, task: str = "retrieval", **more) -> dict:
    return {"model": model, "task": task, "length": length, "value": value} | more


@pytest.mark.parametrize(
    ("tokens", "label"),
    [
        *((1, "1"), (256, "256"), (512, "512"), (1000, "1000"), (1023, "1023"), (1024, "1k"), (1536, "1.5k")),
        *(
            (2048, "2k"),
            (3000, "3000"),
            (4096, "4k"),
            (131_072, "128k"),
            (1_048_576, "1M"),
            (123_457, "123457"),
        ),
    ],
)
def test_length_labels(tokens, label):
    assert length_label(tokens) == label


@pytest.mark.parametrize(
    ("task", "value", "text"),
    [
        *(("retrieval", 1.0, "100"), ("retrieval", 0.0, "0"), ("retrieval", 2 / 3, "66.7")),
        *(("retrieval", 0.98, "98"), ("retrieval", math.nan, "nan"), ("perplexity", 4.7349, "4.73")),
        *(("perplexity", 99.994, "99.99"), ("perplexity", 99.996, "100.0"), ("perplexity", 999.96, "1,000")),
        *(
            ("perplexity", 12345.6, "12,346"),
            ("perplexity", 99_999.9, "1.0e5"),
            ("perplexity", 3.21e12, "3.2e12"),
        ),
        *(("perplexity", math.inf, "∞"), ("perplexity_last_quarter", 5.0, "5.00")),
    ],
)
def test_values_are_short(task, value, text):
    assert value_text(task, value) == text
    assert len(text) <= 6


def test_every_cell_of_the_grid_holds_its_score():
    parsed = parse_scores(reversed(scores()))
    for task, expected in (("retrieval", RETRIEVAL), ("perplexity", PERPLEXITY)):
        table = grid(parsed, task, titled(list(RETRIEVAL), None))
        assert table.lengths == LENGTHS
        assert [model.name for model in table.models] == list(expected)
        found = {
            model.name: tuple(cell.value for cell in row)
            for model, row in zip(table.models, table.cells, strict=True)
        }
        assert found == expected


def test_best_is_highest_for_retrieval_and_lowest_finite_for_perplexity():
    both = [row("a", 8, 0.5), row("b", 8, 0.75)]
    both += [row("a", 8, 9.0, "perplexity"), row("b", 8, math.inf, "perplexity")]
    models = titled(["a", "b"], None)
    assert grid(parse_scores(both), "retrieval", models).best(0) == 0.75
    assert grid(parse_scores(both), "perplexity", models).best(0) == 9.0


def test_terminal_tables_fit_eighty_columns_and_lose_nothing():
    lengths = [128 * 2**power for power in range(14)]
    name = "a model with quite a long name, longer than its column"
    rows = [row(name, length, 12_345.6, "perplexity") for length in lengths]
    text = printed(rows)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("12,346") == len(lengths)
    header_words = {word for line in text.splitlines() if "model " in line for word in line.split()}
    assert {length_label(length) for length in lengths} <= header_words
    assert len(score_tables(rows)) > 1
    assert len(score_tables(scores())) == 2


def test_terminal_rows_and_missing_cells():
    rows = [row("one", 256, 1.0), row("one", 1024, 0.5), row("two", 1024, 0.25)]
    lines = printed(rows).splitlines()
    assert [line.split() for line in lines if line.strip()][1:] == [
        ["model", "256", "1k"],
        ["─" * len(lines[0])],
        ["one", "100", "50"],
        ["two", "–", "25"],
    ]


def test_titles_give_order_and_words_and_are_not_markup():
    rows = [row("a", 256, 1.0), row("b", 256, 0.0), row("c", 256, 0.5)]
    text = printed(rows, titles={"b": "[red]B[/red]", "gone": "Gone", "a": "A"})
    names = [line.split()[0] for line in text.splitlines()[-3:]]
    assert names == ["[red]B[/red]", "A", "c"]


def test_markdown_has_the_same_cells_and_escapes_pipes():
    text = markdown_tables([row("a|b", 256, 1.0), row("a|b", 2048, None), row("c", 256, 0.333)])
    assert text.splitlines() == [
        "**Retrieval (% of keys found)**",
        "",
        "| model | 256 | 2k |",
        "|---|---:|---:|",
        "| a\\|b | 100 | nan |",
        "| c | 33.3 | – |",
    ]
    assert text.endswith("|\n")


def test_no_scores_no_tables():
    assert score_tables([]) == []
    assert markdown_tables([]) == ""
    assert markdown_tables([row("a", 8, 0.5, "something else")]) == ""


def test_a_score_measured_again_replaces_the_first():
    assert "| a | 75 |" in markdown_tables([row("a", 8, 0.5), row("a", 8, 0.75)])


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"model": "a", "task": "retrieval", "length": 8}, "no 'value'"),
        (row("a", 0, 0.5), "at least 1 token"),
        (row("a", 8, "0.5"), "'value' must be a number"),
        (row("a", True, 0.5), "'length' must be a whole number"),
        (row("a", 8, 9.0, "perplexity_bucket"), "no 'start'"),
        (row("a", 8, 0.5, "retrieval_at_depth"), "no 'depth'"),
    ],
)
def test_a_bad_row_is_named(bad, words):
    with pytest.raises(InputError, match=f"score 2: .*{words}"):
        score_tables([row("a", 8, 0.5), bad])
