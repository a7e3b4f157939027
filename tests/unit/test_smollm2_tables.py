"""benchmarks/smollm2: from the lines of a search to tables and figures, on lines that are made up."""

import importlib.util
import json
import math
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from transformers import LlamaConfig

from skipwise import make_sampler
from skipwise.rope import extend_rope

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "smollm2"))
import figure
import prompts
import runs
import table
import together

FOLDER = Path(runs.__file__).parent

UNTOUCHED = {
    **{"interpolation": "untouched", "steps": 0, "documents": 4, "trials": 0, "seed": 0},
    **{"perplexity": [30.0, 29.0, 28.0], "buckets": [31.0, 30.0, 29.0, 28.0, 32.0], "last_bucket_8k": 20.0},
    "other": {"c": [4.0, 2.0], "legal": [10.0, 5.0], "german": [10.0, 10.0]},
}


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("smollm2_grids", FOLDER / "grids" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entry(grid, name):
    return next(each for each in runs.grid(grid) if each["name"] == name)


def measured(settings, **scores):
    """A line of these settings; nine buckets from 20 on, the last bucket as given by `last`."""
    last = scores.pop("last", 28.0)
    lengths = [length for length in settings.get("retrieval_lengths", []) if length <= 131_072]
    line = {
        **{key: value for key, value in settings.items() if key != "name"},
        **{"perplexity": [27.0 - i for i in range(7)], "buckets": [*(20.0 + i for i in range(8)), last]},
        **{"last_bucket_8k": 25.0, "other": {"c": [5.0, 2.2], "legal": [10.0, 5.0], "german": [9.0, 12.0]}},
        **{"retrieval": [0.9] * len(lengths), "tokens": 13_107_200, "train_seconds": 100.0},
        **{"training_memory_gib": 20.0, "loss": [3.0, 2.25], "device": "a GPU", "versions": {"torch": "2"}},
    }
    return line | scores


@pytest.fixture
def load(tmp_path):
    def loaded(*lines):
        file = tmp_path / "made.jsonl"
        file.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")
        return runs.load([file])

    return loaded


def tables(page):
    """Every table of a page: its rows of cells, the head first."""
    found, last = [], False
    for text in page.splitlines():
        if text.startswith("|"):
            found += [] if last else [[]]
            found[-1].append([cell.strip() for cell in text.strip("|").split("|")])
        last = text.startswith("|")
    return [[rows[0], *rows[2:]] for rows in found]


def cells(page, head, name):
    """Head -> cell of the row `name` of the first table whose first head is `head`."""
    rows = next(each for each in tables(page) if each[0][0] == head and any(row[0] == name for row in each))
    return dict(zip(rows[0], next(row for row in rows if row[0] == name), strict=True))


def test_the_grids_are_those_that_make_writes_and_every_setting_can_be_made(make):
    names = ("flagship", "table1", "factors", "train_length", "steps", "cost", "beyond")
    assert {name: runs.grid(name) for name in names} == {name: getattr(make, name)() for name in names}
    config = LlamaConfig(max_position_embeddings=8192, rope_theta=1e5, hidden_size=576, num_attention_heads=9)
    for each in (each for name in (*names, "seeds") for each in runs.grid(name) if each["steps"]):
        extended = extend_rope(config, each["target"], each["interpolation"], each["rope"])
        assert extended.max_position_embeddings == each["target"]
        options = {key: each[key] for key in ("chunks", "content", "headroom")}
        sampler = make_sampler(each["sampler"], each["train_length"], each["target"], **options)
        assert sampler.row_length == each["train_length"]
        assert each["step_tokens"] % each["train_length"] == 0
        assert max(each["retrieval_lengths"]) <= max(each["target"], 131_072)


def test_table_1_differs_in_its_rows_alone():
    kept = {"name", "sampler", "chunks", "content", "headroom", "train_length"}
    entries = [each for each in runs.grid("table1") if each["steps"]]
    rest = [{key: value for key, value in each.items() if key not in kept} for each in entries]
    assert len(entries) == 12
    assert all(each == rest[0] for each in rest)
    assert not set(rest[0]["mix"]) & {"self", "book", "library"}, "rows that the untouched model could teach"


def test_other_text_is_relative_to_the_untouched_model(load):
    page = table.page(load(UNTOUCHED, measured(entry("table1", "PoSE, N = 2"), last=26.5)))
    found = cells(page, "setting", "PoSE, N = 2")
    assert found["other 2k"] == f"{100 * (math.sqrt(1.25 * 1.0) - 1):+.1f}" == "+11.8"
    assert found["other 8k"] == f"{100 * (math.sqrt(1.1 * 1.0) - 1):+.1f}" == "+4.9"
    kinds = cells(page, "other text, 2k / 8k", "PoSE, N = 2")
    assert list(kinds.values())[1:] == ["+25.0 / +10.0", "+0.0 / +0.0", "-10.0 / +20.0"]
    assert list(kinds)[-1] == "german"
    assert (found["8k bucket"], found["last"], found["from 8k"]) == ("24.00", "26.50", "+10.4")
    assert (found["near"], found["from near"]) == ("25.00", "+6.0")
    assert (found["s"], found["tokens (M)"], found["tokens/s"]) == ("100", "13.1", "131,072")
    assert (found["GiB"], found["loss"], found["books"]) == ("20.0", "2.250", "4")
    assert cells(page, "setting", "untouched")["other 2k"] == ""


def test_a_run_is_compared_with_the_last_untouched_model_before_it(load):
    later = UNTOUCHED | {"other": {"c": [5.0, 2.2], "new": [3.0, 3.0]}}
    pose = measured(entry("table1", "PoSE, N = 2")) | {"other": {"c": [5.0, 2.2], "new": [3.3, 3.0]}}
    early, _, first, _, second = load(pose, UNTOUCHED, pose, later, pose)
    for run, c in ((early, [0.25, 0.1]), (first, [0.25, 0.1]), (second, [0.0, 0.0])):
        assert run.changes["c"] == pytest.approx(c)
        assert run.changes["new"] == pytest.approx([0.1, 0.0]), "of which there is only one later"


def test_keys_found_stand_over_prompts_by_length(load):
    pose = entry("table1", "PoSE, N = 2")
    shares = [1.0, 0.96, 0.9, 0.5, 0.02, 0.0, 0.98]
    page = table.page(load(measured(pose, retrieval=shares, trials=50)))
    found = list(cells(page, "passkey", "PoSE, N = 2").items())[1:]
    assert [head for head, _ in found] == ["2k", "4k", "8k", "16k", "32k", "64k", "128k"]
    assert [keys for _, keys in found] == [f"{count}/50" for count in (50, 48, 45, 25, 1, 0, 49)]
    counted = load(measured(pose, retrieval=[0.5] * 7, retrieval_found=[3] * 7, trials=[6] * 7))
    assert counted[0].passkey == {2048 << i: (3, 6) for i in range(7)}
    beyond = measured(pose, retrieval_lengths=[262_144, 8192, 2048], retrieval=[0.25, 0.75], trials=4)
    assert load(beyond)[0].passkey == {2048: (1, 4), 8192: (3, 4)}, "sorted; not asked past the target"


def test_lengths_and_buckets_double_to_the_target(load):
    six = entry("factors", "yarn, 64 times")
    (run,) = load(measured(six, perplexity=list(range(1, 10)), buckets=list(range(1, 12))))
    assert list(run.windows)[-1] == list(run.buckets)[-1] == 524_288
    assert (run.buckets[512], run.buckets[8192], run.last) == (1, 5, 11)


def test_ruler_by_length_and_task(load):
    shares = {"8192": {"niah_single_2": 1.0, "niah_multivalue": 0.5}, "131072": {"niah_single_2": 0.25}}
    page = table.page(load(measured(entry("table1", "CREAM"), ruler=shares)))
    (found,) = [each for each in tables(page) if each[0][0] == "RULER (%)"]
    assert found[1:] == [["CREAM, 8k", "75", "50", "100"], ["CREAM, 128k", "25", "", "25"]]


def test_seeds_have_the_intervals_of_an_oracle(load):
    three = [28.0, 27.0, 29.5]
    lines = [
        measured(entry("table1", "PoSE, N = 2") | {"seed": seed}, last=value, trials=50, retrieval=[0.96] * 7)
        for seed, value in enumerate(three)
    ]
    again = measured(entry("table1", "PoSE, N = 2"), last=99.0)
    page = table.page(load(UNTOUCHED, again, *lines))
    found = cells(page, "setting", "PoSE, N = 2")
    rows = next(each for each in tables(page) if "seeds" in each[0])
    found = dict(zip(rows[0], rows[1], strict=True))
    low, high = stats.t.interval(0.95, 2, statistics.mean(three), stats.sem(three))
    assert found["last"] == f"28.17 [{low:.2f}, {high:.2f}]", "the later run of seed 0"
    assert found["seeds"] == "0, 1, 2"
    exact = stats.binomtest(144, 150).proportion_ci(method="wilson")
    keys = cells(page, "passkey (% in brackets)", "PoSE, N = 2")
    assert keys["128k"] == f"144/150 [{100 * exact.low:.1f}, {100 * exact.high:.1f}]"
    expected = {count: stats.t.ppf(0.975, count) for count in range(1, 10)}
    assert pytest.approx(expected, abs=6e-4) == together.T95


def test_one_seed_has_no_interval(load):
    page = table.page(load(measured(entry("table1", "PoSE, N = 2"))))
    assert page.split("## Seeds")[1].split("##")[0].strip() == "Not measured."


def test_what_is_not_measured_is_named(load):
    page = table.page(load(UNTOUCHED, measured(entry("table1", "PoSE, N = 2"))))
    sections = {each.split("\n")[0]: each for each in page.split("\n## ")}
    assert sections[table.SECTIONS["beyond"]].strip().endswith("\n\nNot measured.")
    missing = sections[table.SECTIONS["table1"]].strip().splitlines()[-1]
    assert missing.startswith("Not measured: interpolated, untrained; contiguous control; full-length")
    assert "PoSE, N = 2;" not in missing
    assert "What failed" not in page
    assert "The search" not in page
    same = ("100 steps", "rows of 8,192", "PoSE, N = 2")
    assert {cells(page, "setting", name)["last"] for name in same} == {"28.00"}


def test_rows_stand_in_the_order_of_the_grid_whatever_that_of_the_lines(load):
    lines = [measured(each) for each in runs.grid("table1") if each["steps"]]
    found = table.page(load(*lines[::-1]))
    rows = next(each for each in tables(found) if each[0][0] == "setting")
    assert [row[0] for row in rows[1:]] == [each["name"] for each in runs.grid("table1") if each["steps"]]
    assert found == table.page(load(*lines[::-1]))
    assert all(len(row) == len(rows[0]) for rows in tables(found) for row in rows)


def test_the_later_line_counts_and_the_earlier_stands_at_the_end(load):
    pose = entry("table1", "PoSE, N = 2")
    page = table.page(load(measured(pose, last=31.0), measured(pose, last=30.0)))
    assert cells(page, "setting", "PoSE, N = 2")["last"] == "30.00"
    found = cells(page, "no", "1")
    assert (found["last"], found["from"]) == ("31.00", "made 1")


def test_what_failed_is_listed_with_its_reason_and_counts_nowhere(load):
    failed = entry("table1", "CREAM") | {"error": "OutOfMemoryError: 1 | 2\n3"}
    page = table.page(load(failed, failed | {"interpolation": "untouched", "name": "x"}))
    (rows,) = tables(page)
    assert rows[1] == ["made 1", "CREAM", "OutOfMemoryError: 1 / 2 3"]
    assert len(rows) == 3


def test_unknown_settings_and_old_lines_are_shown(load):
    first = {
        **{"interpolation": "yarn", "rope": {}, "sampler": "pose", "chunks": 2, "train_length": 8192},
        **{"steps": 100, "rows": 32, "learning_rate": 3e-4, "library": 0.3, "trials": 5, "documents": 2},
        **{"perplexity": [48.0], "buckets": [34.0], "other": 8.0, "retrieval": [0.2], "train_seconds": 5.0},
        **{"tokens": 10, "versions": {}, "novel_key": 3, "many": list(range(50)), "peak_memory_gib": 48.4},
    }
    page = table.page(load({"interpolation": "untouched", "steps": 100, "other": 10.0}, first))
    found = cells(page, "no", "2")
    assert found["setting"] == (
        "yarn, pose 2 on rows of 8,192, 100 steps, lr 0.0003, rows 32, library 0.3, novel_key 3, "
        "many 50 values"
    )
    assert (found["other 2k"], found["other 8k"], found["GiB"]) == ("-20.0", "", "48.4")
    assert cells(page, "passkey", "2")["2k"] == "1/5"


def test_a_long_list_of_divisors_has_a_short_name():
    geometric = [40 ** (number / 32) for number in range(32)]
    line = {"interpolation": "longrope", "rope": {"long_factor": geometric, "short_factor": geometric}}
    line["rope"]["attention_factor"] = 1.27726
    assert runs.method(line) == "longrope (as base 4e6, attention × 1.277)"
    other = [1.0] * 16 + [16.0] * 16
    names = [runs.spread(each) for each in (other, [*other[:-2], 15.0, 16.0])]
    assert all(each.startswith("1 to 16, list ") for each in names)
    assert names[0] != names[1]
    assert runs.method({"interpolation": "abf", "rope": {"rope_theta": 16e6}}) == "abf (base 1.6e7)"


def test_methods_by_factor(load):
    lines = [
        measured(entry("factors", name), last=last)
        for name, last in (("yarn, 4 times", 30.0), ("linear, 4 times", 40.0), ("yarn, 2 times", 29.0))
    ]
    lines[0] |= {"buckets": [1.0] * 6 + [30.0], "retrieval": [0.1, 0.2, 0.3, 0.4]}
    page = table.page(load(*lines))
    assert list(cells(page, "last bucket", "linear").items())[1:] == [("2 times", ""), ("4 times", "40.00")]
    assert cells(page, "last bucket", "yarn")["2 times"] == "29.00"
    assert cells(page, "passkey at the target", "yarn")["4 times"] == "4/10"


def test_the_cheapest_pose_of_equal_quality_is_set_against_full_length(load):
    full = measured(entry("table1", "full-length, rows of 131,072"), last=28.0, train_seconds=200.0)
    full["training_memory_gib"] = 80.0
    lines = [
        measured(entry("steps", f"{steps} steps"), last=last, train_seconds=seconds)
        for steps, last, seconds in ((50, 28.1, 40.0), (100, 27.9, 80.0), (200, 27.0, 160.0))
    ]
    worse = measured(entry("steps", "20 steps"), last=20.0, train_seconds=1.0) | {"dev": ["a", "b"]}
    found = cells(table.page(load(full, worse, *lines)), "full-length", "full-length, rows of 131,072")
    assert (found["PoSE, steps"], found["times s"], found["times GiB"]) == ("100", "2.5", "4.0")
    found = cells(table.page(load(full, lines[0])), "full-length", "full-length, rows of 131,072")
    assert (found["PoSE, steps"], found["times s"]) == ("none measured", "")


def test_the_flagship_is_told_from_the_untouched_model_by_its_name(load):
    judged = UNTOUCHED | {"name": "flagship", "buckets": [1.0] * 9, "other": {"c": [8.0, 4.0]}}
    found = load(UNTOUCHED, judged)
    assert found[1].changes["c"] == [1.0, 1.0]
    page = table.page(found)
    assert cells(page, "setting", "flagship")["other 2k"] == "+100.0"
    assert cells(page, "setting", "untouched")["8k bucket"] == "32.00"
    more_books = table.page(load(UNTOUCHED | {"documents": 10}))
    assert cells(more_books, "no", "1")["books"] == "10", "not beside rows that read four"


def test_figures_are_drawn_of_what_there_is(load):
    names = ("perplexity", "passkey", "other", "cost", "steps")
    drawings = [getattr(figure, name) for name in names]
    assert [each(load()) for each in drawings] == [None] * 5
    lines = [
        measured(each) for name in ("table1", "steps", "cost") for each in runs.grid(name) if each["steps"]
    ]
    drawn = [each(load(UNTOUCHED, *lines)) for each in drawings]
    curves = [[len(line.get_xdata()) for line in each.axes[0].get_lines()] for each in drawn]
    assert curves[0].count(9) == 4, "four trained variants, nine buckets each"
    assert curves[1].count(7) == 4
    assert curves[2].count(3) == 4, "kinds of other text"
    assert sorted(curves[3]) == [3, 4, 6], "full-length twice, PoSE by steps"
    assert curves[4] == [6, 6]
    np.testing.assert_allclose(drawn[2].axes[0].get_lines()[1].get_xdata(), [25.0, 0.0, -10.0])


def test_answers_stand_beside_each_other_as_they_were_written():
    said = [["def f(x):\n    return x * 2 | 1"] * len(prompts.PROMPTS), ["Yes."] * len(prompts.PROMPTS)]
    said[1][1] = said[0][1]
    page = prompts.page(["before", "after"], said, 120)
    assert page.count("Both answers are the same.") == 1
    assert page.count(r"| def f(x):<br>&nbsp;&nbsp;&nbsp;&nbsp;return x \* 2 \| 1 | Yes. |") == 5
    assert prompts.cell("a <b> `c`") == r"a &lt;b&gt; \`c\`"
