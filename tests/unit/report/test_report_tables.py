"""The right number in the right cell, in every form a table takes."""

import io
import math
import random

import pytest
from report_sample import LENGTHS, MODELS, PASSKEY, PERPLEXITY, RULER, document, everything, scores
from rich.console import Console

from skipwise.report import markdown_tables, score_tables
from skipwise.report.grids import all_grids
from skipwise.report.inputs import Model, models_of
from skipwise.report.measures import MEASURES, effective_length, reach
from skipwise.report.words import length_label, perplexity_text, points_text, ratio_text, share_text
from skipwise.scores import Evaluation, Score, Scores, Subject


def printed(found: Scores, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    for table in score_tables(found):
        console.print(table)
    return console.file.getvalue()


def of(*rows: Score, subjects: tuple[Subject, ...] = ()) -> Scores:
    return Scores(scores=rows, subjects=subjects)


def row(model: str, length: int, value: float, task: str = "passkey", **more) -> Score:
    return Score(model=model, task=task, length=length, value=value, **more)


def cells(found: Scores, title: str) -> dict[str, list[str]]:
    """Row -> texts, of the one table whose title begins so."""
    (grid,) = [grid for grid in all_grids(found, models_of(found)) if grid.title.startswith(title)]
    return {name: [cell.text for cell in row] for name, row in zip(grid.rows, grid.cells, strict=True)} | {
        "": list(grid.columns)
    }


@pytest.mark.parametrize(
    ("tokens", "label"),
    [
        *((1, "1"), (256, "256"), (512, "512"), (1000, "1000"), (1023, "1023"), (1024, "1k"), (1536, "1.5k")),
        *((2048, "2k"), (3000, "3000"), (4096, "4k"), (131_072, "128k"), (1_048_576, "1M")),
        (123_457, "123457"),
    ],
)
def test_length_labels(tokens, label):
    assert length_label(tokens) == label


@pytest.mark.parametrize(
    ("words", "value", "text"),
    [
        *((share_text, 1.0, "100"), (share_text, 0.0, "0"), (share_text, 2 / 3, "66.7")),
        *((share_text, 0.98, "98"), (share_text, math.nan, "nan"), (perplexity_text, 4.7349, "4.73")),
        *((perplexity_text, 99.994, "99.99"), (perplexity_text, 99.996, "100.0")),
        *((perplexity_text, 999.96, "1,000"), (perplexity_text, 12345.6, "12,346")),
        *((perplexity_text, 99_999.9, "1.0e5"), (perplexity_text, 3.21e12, "3.2e12")),
        *((perplexity_text, math.inf, "∞"), (perplexity_text, 5.0, "5.00")),
        *((MEASURES["ruler"].text, 0.5, "50.0"), (MEASURES["passkey"].text, 0.5, "50")),
        *((points_text, 0.032, "+3.2"), (points_text, -0.004, "−0.4"), (points_text, -0.0001, "0.0")),
        *((ratio_text, 0.9523, "×0.952"), (ratio_text, 0.0337, "×0.034"), (ratio_text, 3.84e-5, "×3.8e−5")),
        *((ratio_text, 12.34, "×12.3"), (ratio_text, 24_000.0, "×2.4e4"), (ratio_text, math.inf, "∞")),
        *((ratio_text, 0.0996, "×0.100"), (ratio_text, 9.9996, "×10.0"), (ratio_text, 999.96, "×1.0e3")),
    ],
)
def test_values_are_short(words, value, text):
    assert words(value) == text
    assert len(text) <= 8


def test_every_cell_of_the_grid_holds_its_score():
    titles = {model["name"]: model["title"] for model in MODELS}
    rows = scores()
    random.Random(0).shuffle(rows)
    for title, expected, text in (
        ("Passkey", PASSKEY, share_text),
        ("Perplexity, whole", PERPLEXITY, perplexity_text),
    ):
        assert cells(document(rows), title) == {
            **{titles[name]: [text(value) for value in values] for name, values in expected.items()},
            "": [length_label(length) for length in LENGTHS],
        }


def test_best_is_highest_for_shares_and_lowest_finite_for_perplexity():
    found = of(
        *(row("a", 8, 0.5), row("b", 8, 0.75), row("c", 8, math.nan)),
        *(row("a", 8, 9.0, "perplexity"), row("b", 8, math.inf, "perplexity")),
    )
    strong = [[row[0].strong for row in grid.cells] for grid in all_grids(found, models_of(found))]
    assert strong == [[False, True, False], [True, False]]


def test_a_needle_has_a_table_a_kind_with_the_mean_over_depths():
    rows = [row("a", 64, 0.5, "needle", subtask="number")]
    rows += [row("a", 64, value, "needle", subtask="number", depth=value) for value in (0.0, 1.0)]
    rows += [row("a", 64, 0.25, "needle", subtask="several"), row("a", 64, 0.75, "needle", subtask="own")]
    assert cells(of(*rows), "Needle in a haystack, a number (")["a"] == ["50"]
    assert cells(of(*rows), "Needle in a haystack, several numbers (")["a"] == ["25"]
    assert cells(of(*rows), "Needle in a haystack, own (")["a"] == ["75"]


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ({4096: 0.9, 8192: 0.856, 16384: 0.85}, "8k"),
        ({4096: 0.84, 8192: 0.86, 16384: 0.5}, "8k"),  # the largest, whatever is below it
        ({4096: 0.84, 8192: 0.5}, "< 4k"),
        ({4096: 0.9, 8192: 0.9}, "≥ 8k"),
    ],
)
def test_the_effective_length_of_ruler(values, label):
    rows = [row("a", length, value, "ruler") for length, value in values.items()]
    assert cells(of(*rows[::-1]), "RULER, average")["a"][-1] == label
    assert cells(of(*rows), "RULER, average")[""][-1] == "effective"


def test_reach_ends_at_the_first_failure_and_the_effective_length_does_not():
    rows = [row("a", 4096 * 2**i, value) for i, value in enumerate((0.95, 0.5, 0.95))]
    assert reach(rows, 0.9) == (4096, False)
    assert effective_length(rows) == (16384, True)


def test_ruler_by_task_is_that_of_the_longest_length():
    found = document(everything()[::-1])
    table = cells(found, "RULER by task at 16k")
    assert sorted(table) == sorted(["", *RULER])
    assert table[""] == [model["title"] for model in MODELS]
    value = next(
        score.value
        for score in found.scores
        if (score.model, score.subtask, score.length) == ("pose", "cwe", 16384)
    )
    assert table["cwe"][3] == f"{100 * value:.1f}"
    assert "RULER, average of 13 tasks (%)" in printed(found)


def test_benchmarks_show_the_change_from_the_first_model_and_the_average():
    rows = [
        row(model, 0, value, "benchmark", subtask=name, n=100, stderr=0.03)
        for model, values in {"base": (0.5, 0.7), "new": (0.52, 0.64), "part": (0.5,)}.items()
        for name, value in zip(("boolq", "mine"), values, strict=False)
    ]
    lines = printed(of(*rows)).splitlines()
    assert lines[0].strip() == "Benchmarks (%), change from base"
    assert [line.split() for line in lines[1:] if "─" not in line] == [
        ["benchmark", "base", "new", "part"],
        ["BoolQ", "50.0", "52.0", "(+2.0)", "50.0", "(0.0)"],
        ["mine", "70.0", "64.0", "(−6.0)", "–"],
        ["average", "60.0", "58.0", "(−2.0)", "–"],
    ]
    (grid,) = all_grids(of(*rows), models_of(of(*rows)))
    assert grid.cells[2][0].error == "±2.1"  # 0.03 sqrt(2) / 2


def test_the_stride_of_a_sliding_window_is_told():
    done = Evaluation(model="a", task="sliding_perplexity", settings={"stride": 1024})
    found = Scores(scores=(row("a", 8, 5.0, "sliding_perplexity"),), evaluations=(done,))
    assert cells(found, "Perplexity, sliding window, stride 1,024")["a"] == ["5.00"]


def test_terminal_tables_fit_eighty_columns_and_lose_nothing():
    lengths = [128 * 2**power for power in range(14)]
    name = "a model with quite a long name, longer than its column"
    found = of(*(row(name, length, 12_345.6, "perplexity") for length in lengths))
    text = printed(found)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("12,346") == len(lengths)
    header_words = {word for line in text.splitlines() if "model " in line for word in line.split()}
    assert {length_label(length) for length in lengths} <= header_words
    assert len(score_tables(found)) == 3


def test_all_tables_fit_eighty_columns():
    text = printed(document(everything()), width=200)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("…") == 4  # two names in the headers of two tables


def test_terminal_rows_and_missing_cells():
    lines = printed(of(row("one", 256, 1.0), row("one", 1024, 0.5), row("two", 1024, 0.25))).splitlines()
    assert [line.split() for line in lines if line.strip()][1:] == [
        ["model", "256", "1k"],
        ["─" * len(lines[0])],
        ["one", "100", "50"],
        ["two", "–", "25"],
    ]


def test_subjects_give_order_and_words_and_are_not_markup():
    subjects = (Subject(name="b", title="[red]B[/red]"), Subject(name="gone"), Subject(name="a", title="A"))
    found = of(row("a", 256, 1.0), row("b", 256, 0.0), row("c", 256, 0.5), subjects=subjects)
    names = [line.split()[0] for line in printed(found).splitlines()[-3:]]
    assert names == ["[red]B[/red]", "A", "c"]
    assert models_of(found)[1] == Model(name="gone", title="gone")


def test_markdown_has_the_same_cells_and_escapes_pipes():
    text = markdown_tables(of(row("a|b", 256, 1.0), row("a|b", 2048, math.nan), row("c", 256, 0.333)))
    assert text.splitlines() == [
        "**Passkey retrieval (% of keys found)**",
        "",
        "| model | 256 | 2k |",
        "|---|---:|---:|",
        "| a\\|b | 100 | nan |",
        "| c | 33.3 | – |",
    ]
    assert text.endswith("|\n")


def test_no_scores_no_tables():
    assert score_tables(Scores()) == []
    assert markdown_tables(Scores()) == ""
    assert markdown_tables(of(row("a", 8, 0.5, "something else"))) == ""


def test_a_score_measured_again_replaces_the_first():
    assert "| a | 75 |" in markdown_tables(of(row("a", 8, 0.5), row("a", 8, 0.75)))
