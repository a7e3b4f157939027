"""What is compared, how it is paired, and what is said about what is not."""

import json
import math

import pytest
from report_sample import document, everything, share, trials
from typer.testing import CliRunner

from skipwise.cli.main import app
from skipwise.errors import InputError
from skipwise.report.asked import difference_of_settings
from skipwise.report.compare import compare, place
from skipwise.report.comparison import comparison_markdown
from skipwise.report.difference_grids import difference_cell, difference_grids
from skipwise.report.difference_plots import difference_plots
from skipwise.report.merge import labels, read_all
from skipwise.scores import Evaluation, Score, Scores, Subject


@pytest.fixture(scope="module")
def found():
    return compare(document(everything()))


def losses(model, values, length=64, **more):
    weights = more.pop("weights", ())
    total = sum(weights) or len(values)
    mean = math.fsum(v * w for v, w in zip(values, weights or [1.0] * len(values), strict=True)) / total
    more = {"task": "perplexity"} | more
    return Score(
        model=model,
        length=length,
        value=math.exp(mean),
        n=len(values),
        samples=tuple(values),
        weights=tuple(weights),
        **more,
    )


def pair(*rows, settings=({"x": 1}, {"x": 1}), tokenizers=("t", "t"), task="perplexity"):
    return compare(
        Scores(
            subjects=tuple(
                Subject(name=name, tokenizer=each) for name, each in zip("ab", tokenizers, strict=True)
            ),
            evaluations=tuple(
                Evaluation(model=name, task=task, settings=each)
                for name, each in zip("ab", settings, strict=True)
            ),
            scores=rows,
        )
    )


HARD = [1.0, 2.0, 3.0, 4.0, 5.0, 2.5, 3.5]
"""Losses that differ far more from document to document than from model to model."""
EASIER = [value - 0.1 - 0.01 * value for value in HARD]


def test_every_score_is_compared_once_and_none_at_a_depth(found):
    own = [each for each in found.differences if each.model == "pose"]
    keys = [(each.task, each.subtask, each.length, each.start) for each in own]
    assert len(keys) == len(set(keys))
    scores = [
        score.key[:3] + score.key[4:]
        for score in found.scores.scores
        if score.model == "pose" and score.depth is None
    ]
    assert set(keys) == {*scores, ("benchmark", "", 0, None)}
    assert {each.model for each in found.differences} == {"interpolated", "contiguous", "pose"}


def test_estimates_are_points_and_ratios(found):
    by_key = {(each.model, each.task, each.subtask, each.length): each for each in found.differences}
    assert by_key["pose", "passkey", "", 4096].estimate == pytest.approx(0.98)
    whole = by_key["pose", "perplexity", "", 2048]
    assert whole.estimate == pytest.approx(5.22 / 5.14)
    low, high = whole.bounds
    assert low < whole.estimate < high
    assert high - low < 0.04, "documents differ by 20 %: paired, that cancels"
    assert whole.paired


def test_the_average_over_tasks_and_benchmarks_is_drawn_within_them(found):
    by_key = {(each.model, each.task, each.subtask, each.length): each for each in found.differences}
    average = by_key["contiguous", "benchmark", "", 0]
    parts = [each for each in found.differences if (each.model, each.task) == ("contiguous", "benchmark")]
    parts = [each for each in parts if each.subtask]
    assert average.estimate == pytest.approx(sum(each.estimate for each in parts) / 6)
    assert average.units == 2400
    width = average.bounds[1] - average.bounds[0]
    widths = [each.bounds[1] - each.bounds[0] for each in parts]
    assert width < min(widths) / 2  # about 1 / sqrt(6) of theirs
    ruler = by_key["pose", "ruler", "", 16384]
    assert ruler.units == 13 * 50
    assert ruler.bounds[1] - ruler.bounds[0] < 0.1


@pytest.mark.parametrize(
    ("other", "paired"),
    [
        ({"documents": {"hash": "h", "count": 7}, "lengths": [64, 128], "files": ["b"]}, True),
        ({"documents": {"hash": "g", "count": 7}, "lengths": [64], "files": ["a"]}, False),
        ({"documents": {"hash": "h", "count": 7}, "lengths": [64], "files": ["a"], "stride": 8}, False),
    ],
)
def test_pairs_need_the_same_settings(other, paired):
    first = {"documents": {"hash": "h", "count": 7}, "lengths": [64], "files": ["a"]}
    found = pair(losses("a", HARD), losses("b", EASIER), settings=(first, other))
    (each,) = found.differences
    assert each.paired == paired
    assert each.interval.excludes_zero == paired, "without pairs these documents are too few to tell"
    assert (
        any("not paired" in note and "b was not asked what a was" in note for note in found.notes) != paired
    )
    assert ("†" in difference_cell(each).text) != paired


def test_files_count_where_no_hash_says_that_they_are_the_same():
    one, two = (Evaluation(model="a", task="ruler", settings={"files": [name]}) for name in "xy")
    assert difference_of_settings(one, two) == 'files: ["y"], not ["x"]'
    assert difference_of_settings(one, one) == ""
    nested = Evaluation(model="a", task="ruler", settings={"files": ["x"], "more": {"deep": 1}})
    assert difference_of_settings(one, nested) == "more.deep: 1, not null"


def test_no_record_or_other_numbers_of_units_are_not_paired():
    rows = losses("a", HARD), losses("b", EASIER)
    found = compare(Scores(scores=rows))
    assert not found.differences[0].paired
    assert "how they were asked is not recorded" in found.notes[-1]
    found = pair(rows[0], losses("b", EASIER[1:]))
    assert not found.differences[0].paired
    assert found.notes[-1].endswith("other numbers of units, so not paired (†).")


def test_weights_count():
    weights = [1.0] * 6 + [994.0]
    found = pair(losses("a", HARD, weights=weights), losses("b", [*HARD[:-1], 1.5], weights=weights))
    assert found.differences[0].estimate == pytest.approx(math.exp(-2.0 * 0.994))


def test_perplexities_of_other_tokenizers_are_not_compared():
    rows = losses("a", HARD), losses("b", EASIER), losses("a", HARD, task="longppl")
    found = pair(*rows, losses("b", EASIER, task="longppl"), tokenizers=("t", "u"))
    assert found.differences == ()
    assert found.notes == ("b and a have different tokenizers: their perplexities are not compared.",)
    keys = [share(trials(0.5, 20, 0), model=name, task="passkey", length=64) for name in "ab"]
    assert len(pair(*keys, tokenizers=("t", "u"), task="passkey").differences) == 1


@pytest.mark.parametrize(
    ("evaluators", "compared"),
    [(("self", "self"), False), ((7, 8), False), ((7, 7), True), ((7, "self"), False)],
)
def test_longppl_needs_one_evaluator_for_both(evaluators, compared):
    rows = [losses(name, HARD, task="longppl") for name in "ab"]
    settings = [{"evaluator": each} for each in evaluators]
    found = pair(*rows, settings=settings, task="longppl")
    assert len(found.differences) == compared
    assert compared or "judge both with one --evaluator" in found.notes[0]


def test_documents_without_key_tokens_do_not_count():
    rows = [
        losses(name, [*values[:5], 0.0, 0.0], weights=[3.0] * 5 + [0.0, 0.0])
        for name, values in (("a", HARD), ("b", EASIER))
    ]
    (each,) = pair(*rows).differences
    assert each.interval is None, "five documents are left"
    assert each.estimate < 1


def test_benchmarks_pair_one_by_one():
    """What else was asked does not matter, what was asked in the benchmark itself does."""
    rows = [
        share(trials(0.5, 40, 0), model=model, task="benchmark", subtask=name, length=0)
        for model in "ab"
        for name in ("boolq", "piqa")
    ]
    asked = {"boolq": {"data": 1}, "piqa": {"data": 2}}
    settings = ({"tasks": asked}, {"tasks": asked | {"piqa": {"data": 3}, "more": {"data": 4}}})
    found = pair(*rows, settings=settings, task="benchmark")
    assert {each.subtask: each.paired for each in found.differences} == {
        **{"boolq": True, "piqa": False, "": False},
    }


def test_a_benchmark_that_is_no_share_is_shown_and_not_compared():
    rows = [
        Score(model=model, task="benchmark", subtask=name, length=0, value=value, n=9)
        for model in "ab"
        for name, value in (("wikitext", 12.345), ("piqa", 0.5))
    ]
    found = pair(*rows, task="benchmark")
    assert [each.subtask for each in found.differences] == ["piqa"]
    text = comparison_markdown(found)
    assert "| wikitext | 12.35 | 12.35 |" in text
    assert "| PIQA | 50.0 | 50.0 (0.0) |" in text
    assert "average" not in text


def test_averages_over_other_tasks_of_ruler_are_not_compared():
    rows = [
        share(trials(0.5, 20, 0), model=model, task="ruler", subtask=name, length=64)
        for model, names in {"a": ("vt", "cwe"), "b": ("vt",)}.items()
        for name in names
    ]
    rows += [Score(model=name, task="ruler", length=64, value=0.5) for name in "ab"]
    found = pair(*rows, task="ruler")
    assert [each.subtask for each in found.differences] == ["vt"]
    assert any("different tasks of RULER (cwe)" in note for note in found.notes)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ([], EASIER, "does not hold what each unit contributed"),
        (HARD[:5], EASIER[:5], "no interval for fewer than 6 documents"),
        ([*HARD, math.inf], [*EASIER, 1.0], "a loss is not finite"),
    ],
)
def test_no_interval_is_explained(first, second, words):
    rows = [losses(name, values or [1.0]) for name, values in (("a", first), ("b", second))]
    if not first:
        rows[0] = rows[0].model_copy(update={"samples": ()})
    found = pair(*rows)
    (each,) = found.differences
    assert each.bounds is None
    assert any(words in note for note in found.notes), found.notes
    assert difference_cell(each).note == ""
    assert each.json()["low"] is None
    json.dumps(found.json(), allow_nan=False)


def test_marks_of_a_cell(found):
    cells = {
        (each.model, each.task, each.subtask, each.length): difference_cell(each)
        for each in found.differences
    }
    equal = cells["pose", "passkey", "", 512]
    assert (equal.text, equal.note, equal.strong) == ("0.0°", "−7.1 to +7.1", False)
    better = cells["contiguous", "passkey", "", 4096]
    assert better.text == "+76.0*"
    assert better.strong
    assert cells["pose", "perplexity", "", 2048].text == "×1.016*"
    assert not cells["pose", "perplexity", "", 2048].note.startswith("×")


def test_the_baseline_can_be_chosen(found):
    by_title = compare(document(everything()), "Contiguous control")
    assert by_title == compare(document(everything()), "contiguous")
    assert by_title.models[0].name == by_title.scores.subjects[0].name == "contiguous"
    back = {
        (each.task, each.subtask, each.length, each.start): each
        for each in by_title.differences
        if each.model == "untouched"
    }
    for each in found.differences:
        if each.model == "contiguous" and not each.ratio:
            assert back[each.task, each.subtask, each.length, each.start].estimate == -each.estimate
    with pytest.raises(InputError, match="--baseline gone: not among untouched, interpolated"):
        compare(document(), "gone")


def test_what_happens_by_chance_is_said(found):
    known = [each for each in found.differences if each.interval]
    apart = sum(each.interval.excludes_zero for each in known)
    assert f"In {apart} of {len(known)} cases" in found.notes[1]
    assert "about one in twenty would by chance" in found.notes[1]


def test_tables_and_figures_hold_every_group(found):
    grids = difference_grids(found)
    titles = [grid.title for grid in grids]
    assert titles[0] == "Passkey retrieval: percentage points more than Untouched"
    assert "Perplexity, whole window: times Untouched's" in titles
    assert "RULER by task at 16k tokens: percentage points more than Untouched" in titles
    assert len(titles) == len(set(titles)) == 11
    by_length = grids[0]
    assert by_length.rows == ("baseline", "Interpolated only", "Contiguous control", "PoSE")
    assert [cell.text for cell in by_length.cells[0]] == ["100", "100", "98", "0", "0", "0"]
    plots = difference_plots(found)
    assert len({plot.name for plot in plots}) == 11
    passkey = plots[0].figure.axes[0]
    drawn = [line for line in passkey.lines if len(line.get_xdata()) == 1]
    own = [each for each in found.differences if each.task == "passkey"]
    assert sorted(line.get_ydata()[0] for line in drawn) == pytest.approx(
        sorted(100 * each.estimate for each in own)
    )
    full = sum(each.interval.excludes_zero for each in own)
    assert sum(line.get_markerfacecolor() != "#ffffff" for line in drawn) == full
    assert passkey.get_ylabel() == "change (percentage points)"
    assert "+76.0* (+64.0 to +88.0)" in plots[0].alt
    assert {place(each) for each in own} == {"512", "1k", "2k", "4k", "8k", "16k"}


def model_of(folder, name, task="passkey", path="p", share_=0.5, title=""):
    rows = [share(trials(share_, 20, 0), model=name, task=task, length=64)]
    done = (Evaluation(model=name, task=task, settings={"trials": 20}),)
    file = folder / "scores.json"
    Scores(
        subjects=(Subject(name=name, path=path, title=title),), evaluations=done, scores=tuple(rows)
    ).write(file)
    return file


def test_models_of_one_name_are_told_apart_by_their_folders(tmp_path):
    files = [model_of(tmp_path / name, "pose", path=name, title="PoSE") for name in ("one", "two")]
    merged = read_all([files[0].parent, files[1], files[0]])
    assert [each.name for each in merged.subjects] == ["one/pose", "two/pose"]
    assert [each.title for each in merged.subjects] == ["PoSE (one)", "PoSE (two)"]
    assert [each.model for each in merged.scores] == ["one/pose", "two/pose"]
    assert [each.model for each in merged.evaluations] == ["one/pose", "two/pose"]


def test_one_model_with_its_tasks_in_two_folders_stays_one(tmp_path):
    files = [model_of(tmp_path / task, "pose", task=task) for task in ("passkey", "needle")]
    merged = read_all(files)
    assert [each.name for each in merged.subjects] == ["pose"]
    assert {score.task for score in merged.scores} == {"passkey", "needle"}
    other = model_of(tmp_path / "other", "pose", task="ruler", path="another model")
    assert [each.name for each in read_all([files[0], other]).subjects] == ["passkey/pose", "other/pose"]
    files.append(model_of(tmp_path / "again", "pose"))
    assert [each.name for each in read_all(files).subjects] == ["passkey/pose", "needle/pose", "again/pose"]


def test_titles_of_other_names_are_told_apart(tmp_path):
    files = [model_of(tmp_path / name, name, title="Model") for name in ("a", "b")]
    assert [each.title for each in read_all(files).subjects] == ["Model (a)", "Model (b)"]


def test_labels_take_as_many_folders_as_they_need(tmp_path):
    files = [tmp_path / "x" / "run" / "scores.json", tmp_path / "y" / "run" / "scores.json"]
    assert labels(files) == ["x/run", "y/run"]
    assert labels([tmp_path / "seed-0.json", tmp_path / "seed-1.json"]) == ["seed-0", "seed-1"]


def test_nothing_to_compare_is_an_error(tmp_path):
    Scores().write(tmp_path / "scores.json")
    with pytest.raises(InputError, match="holds no scores"):
        read_all([tmp_path])


def test_the_command_writes_a_folder(tmp_path):
    for model in ("untouched", "pose"):
        rows = [row for row in everything() if row.model == model and row.task in ("passkey", "benchmark")]
        found = document(rows)
        own = [each for each in found.subjects if each.name == model]
        found.model_copy(update={"subjects": tuple(own)}).write(tmp_path / model / "scores.json")
    output = tmp_path / "compared"
    arguments = [
        "compare",
        *(str(tmp_path / name) for name in ("untouched", "pose")),
        "--output",
        str(output),
    ]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    tables = done.output[: done.output.index("Report ")]
    assert max(map(len, tables.splitlines())) <= 80
    assert "+98.0*°" in tables
    assert "95 % intervals: paired bootstrap" in " ".join(tables.split())
    assert {path.name for path in output.iterdir()} == {
        *("scores.json", "comparison.json", "comparison.md", "figures", "report.html"),
    }
    values = json.loads((output / "comparison.json").read_text())
    assert values["baseline"] == "untouched"
    (row,) = [each for each in values["differences"] if (each["task"], each["length"]) == ("passkey", 4096)]
    assert row["estimate"] == pytest.approx(0.98)
    assert row["differs"] is True
    assert (row["method"], row["paired"], row["units"]) == ("newcombe", True, 50)
    assert len(Scores.read(output).subjects) == 2
    page = (output / "report.html").read_text("utf-8")
    assert "<h2>Differences</h2>" in page
    assert "PoSE against Untouched: 3 of 13 scores better, 7 worse" in page.replace("\u00a0", " ")
    assert {path.stem for path in (output / "figures").iterdir()} >= {
        *("difference_passkey", "difference_benchmark_by_task", "passkey_heat_map", "benchmarks"),
    }
    again = CliRunner().invoke(app, [*arguments, "--seed", "1"], env={"COLUMNS": "80"})
    assert again.exit_code == 0


def test_the_command_does_not_overwrite_what_it_reads(tmp_path):
    model_of(tmp_path / "a", "a")
    before = (tmp_path / "a" / "scores.json").read_bytes()
    done = CliRunner().invoke(app, ["compare", str(tmp_path / "a"), "--output", str(tmp_path / "a")])
    assert done.exit_code == 2
    assert (tmp_path / "a" / "scores.json").read_bytes() == before


def test_a_single_model_has_its_scores_shown(tmp_path):
    model_of(tmp_path / "a", "a")
    done = CliRunner().invoke(app, ["compare", str(tmp_path / "a"), "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "Passkey retrieval (% of keys found)" in done.output
    assert "Differences" not in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_markdown_holds_differences_scores_and_notes(tmp_path):
    text = comparison_markdown(compare(document()))
    assert "| Contiguous control | 0.0° (−7.1 to +7.1) |" in text
    assert "**Passkey retrieval (% of keys found)**" in text
    assert text.endswith("weak evidence.\n")
