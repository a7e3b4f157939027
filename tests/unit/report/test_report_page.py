"""The page stands alone, escapes what it is given, and shows what there is and nothing else."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_sample import LENGTHS, MODELS, document, everything, scores, write_run

from skipwise.errors import InputError, RunError
from skipwise.report import write_report
from skipwise.report.page import duration, fact_text, grouped
from skipwise.scores import Scores

SECTIONS = ("summary", "passkey", "needle", "ruler", "perplexity", "longppl", "benchmarks", "coverage")
SECTIONS += ("training", "recipe", "data", "models", "evaluations", "environment", "reproduce", "notes")
FIGURES = 15
HEAT_MAPS = 5  # one panel a model each
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Collects what the tests ask for, and fails on tags that do not nest."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.ids, self.tags, self.attributes, self.texts = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.attributes += attrs
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1] != "style":
            self.texts.append(" ".join(data.split()))

    def sections(self):
        return [attrs["id"] for tag, attrs in self.tags if tag == "section"]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    path = write_report(write_run(tmp_path_factory.mktemp("run"), document(everything())))
    return path, path.read_text("utf-8"), Page(path.read_text("utf-8"))


def test_all_sections_in_order_and_in_the_navigation(full):
    _, _, page = full
    assert page.sections() == list(SECTIONS)
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links == [f"#{name}" for name in SECTIONS]


def test_the_page_needs_nothing_but_itself(full):
    _, text, page = full
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "img"}
    assert all(
        (value or "").startswith("#")
        for key, value in page.attributes
        if key in ("src", "href", "xlink:href")
    )
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert all(part.startswith("#") for part in text.split("url(")[1:])


def test_ids_are_unique_and_every_reference_has_its_target(full):
    _, text, page = full
    assert len(page.ids) == len(set(page.ids))
    used = {value[1:] for key, value in page.attributes if key == "href"}
    used |= {part.split(")")[0].lstrip("#") for part in text.split("url(")[1:]}
    assert used <= set(page.ids)


def test_it_can_be_read_without_seeing_it(full):
    _, _, page = full
    headings = [tag for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert headings[:2] == ["h1", "h2"]
    assert headings.count("h1") == 1
    figures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(figures) == FIGURES - HEAT_MAPS + HEAT_MAPS * len(MODELS)
    assert all(attrs["role"] == "img" and len(attrs["aria-label"]) > 40 for attrs in figures)
    assert sum(tag == "figcaption" for tag, _ in page.tags) == FIGURES
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")


def test_numbers_of_the_headline_and_the_tables(full):
    _, text, page = full
    assert (
        "PoSE finds at least 90\u00a0% of hidden keys up to 16k tokens (the longest length tested), 8 times "
        "as far as Untouched (2k); Interpolated only up to 512 tokens, Contiguous control up to 2k tokens."
    ) in text
    row = text.split('<th scope="row">Contiguous control</th>')[1].split("</tr>")[0]
    assert [cell.split(">")[1].split("<")[0] or "bold" for cell in row.split("<td")[1:]] == [
        *("bold", "bold", "98", "76", "44", "18")
    ]
    assert row.count('class="beyond"') == 3
    for word in (
        "12345",
        "Example GPU, 80 GiB",
        "58 min 32 s",
        "38.4",
        "2e-05",
        "lengths.minimum",
        "--seed 7",
        "runs/small-16k/pose",
        "yarn",
        "00112233aabbccdd",
        "passkey: Untouched, Interpolated only, Contiguous control, PoSE",
    ):
        assert any(word in found for found in page.texts), word


def test_figures_are_written_and_stale_ones_removed(tmp_path):
    run = write_run(tmp_path / "run")
    write_report(run)
    assert len(list((run / "figures").glob("*.png"))) == len(list((run / "figures").glob("*.svg"))) == 7
    assert (run / "figures" / "coverage.svg").read_bytes().startswith(b"<?xml")
    (run / "figures" / "mine.png").write_bytes(b"kept")
    (run / "figures" / "retrieval_by_length.png").write_bytes(b"of an earlier version")
    rows = [row for row in scores() if row.task == "passkey" and row.depth is None]
    write_report(write_run(run, document(rows), coverage={}, training={}))
    assert {path.name for path in (run / "figures").iterdir()} == {
        *("passkey_by_length.png", "passkey_by_length.svg", "mine.png"),
    }
    assert {path.name for path in run.iterdir()} == {"figures", "report.html", "run.json", "scores.json"}


def test_scores_alone_make_a_page(tmp_path):
    rows = [row for row in everything() if row.model == "pose" and row.task in ("passkey", "benchmark")]
    document(rows).write(tmp_path / "scores.json")
    text = write_report(tmp_path).read_text("utf-8")
    page = Page(text)
    assert page.sections() == [
        *("summary", "passkey", "benchmarks", "models", "evaluations", "environment", "reproduce"),
    ]
    for word in (
        *(
            "Evaluation of Untouched, Interpolated only, Contiguous control, PoSE",
            "The seed of this run is 7.",
        ),
        *("skipwise eval passkey runs/small-16k/pose", "benchmark, PoSE", "Example GPU, 80 GiB", "0.1.0"),
    ):
        assert any(word in found for found in page.texts), word
    assert "original window" not in text


def test_absent_parts_leave_no_trace(tmp_path):
    absent = dict.fromkeys(
        ("training", "coverage", "data", "notes", "command", "recipe", "hardware", "models")
    )
    absent |= dict.fromkeys(("versions", "seconds", "peak_memory_gib", "seed", "window", "target_length"))
    rows = [row for row in scores() if row.task == "perplexity" and row.model == "pose"]
    text = write_report(write_run(tmp_path, Scores(scores=tuple(rows)), **absent)).read_text("utf-8")
    page = Page(text)
    assert page.sections() == ["summary", "perplexity"]
    assert sum(tag == "figure" for tag, _ in page.tags) == 1
    assert "None" not in text
    assert "Shaded" not in text
    assert "trained on" not in text


def test_a_run_without_scores_says_so(tmp_path):
    page = Page(write_report(write_run(tmp_path, document([]))).read_text("utf-8"))
    measured = ("passkey", "needle", "ruler", "perplexity", "longppl", "benchmarks", "evaluations")
    assert page.sections() == [name for name in SECTIONS if name not in measured]
    assert "There are no scores." in page.texts


def test_a_model_may_miss_a_task(tmp_path):
    rows = [row for row in scores() if row.model != "untouched" or row.task == "passkey"]
    rows = [row for row in rows if row.model != "pose" or row.length > LENGTHS[0]]
    text = write_report(write_run(tmp_path, document(rows))).read_text("utf-8")
    assert "<td>–</td>" in text
    assert text.count('<th scope="row">Untouched</th>') == 1


def test_hostile_text_is_escaped_everywhere(tmp_path):
    evil = "\"'><script>alert(1)</script>&{{ 7*7 }}"
    found = document([row for row in everything() if row.model == "pose"])
    own = {"name": evil, "title": evil, "description": evil, "path": evil, "rope_parameters": {evil: evil}}
    asked = {"model": evil, "settings": {evil: [evil]}, "notes": (evil,), "versions": {evil: evil}}
    found = Scores(
        subjects=(found.subjects[-1].model_copy(update=own),),
        evaluations=tuple(each.model_copy(update=asked) for each in found.evaluations),
        scores=tuple(
            row.model_copy(update={"model": evil} | ({"subtask": evil} if row.subtask else {}))
            for row in found.scores
        ),
    )
    run = write_run(
        tmp_path,
        found,
        title=evil,
        command=evil,
        models=[{"name": evil, "title": evil, "description": evil}],
        recipe={evil: {evil: evil}, "list": [evil]},
        versions={evil: evil},
        hardware={"device": evil, evil: evil},
        seconds={evil: 1.0},
        training={evil: [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval": 1.0}]},
        coverage={"distance": [1, 2], "probability": {evil: [1.0, 0.5]}},
        data={evil: evil},
        notes=[evil],
    )
    page = Page(write_report(run).read_text("utf-8"))
    assert not {tag for tag, _ in page.tags} & {"script"}
    assert sum(evil in text for text in page.texts) > 20
    assert "49" not in page.texts


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("scores.json", None, "no such file"),
        *((name, '{"schema": 1,', "not valid JSON, line 1") for name in ("scores.json", "run.json")),
        *((name, "[]", "must hold one JSON object") for name in ("scores.json", "run.json")),
        *((name, b"\xff\xfe", "cannot be read") for name in ("scores.json", "run.json")),
        ("scores.json", '{"schema": 1, "scores": []}', "schema 1 is not 2"),
        ("run.json", '{"schema": 2}', "schema 2 is not 1"),
        ("scores.json", '{"schema": 2, "scores": [{"model": "a"}]}', "scores.0.task"),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path, name, content, words):
    path = write_run(tmp_path) / name
    path.unlink() if content is None else path.write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    with pytest.raises(InputError) as caught:
        write_report(tmp_path)
    message = str(caught.value)
    assert str(path) in message
    assert words in message
    assert "\n" not in message
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seconds": {"train": "long"}}, "'train' must be a number"),
        ({"window": 2.5}, "'window' must be a whole number"),
        ({"models": ["pose"]}, "'models'"),
        ({"training": {"pose": [1]}}, "training of 'pose'"),
        ({"coverage": {"distance": [1, 2], "probability": {"a": [1.0]}}}, "coverage 'a'"),
        ({"coverage": {"distance": ["1"], "probability": {"a": [1.0]}}}, "numbers only"),
    ],
)
def test_bad_facts_are_named(tmp_path, changes, words):
    with pytest.raises(InputError, match=words) as caught:
        write_report(write_run(tmp_path, **changes))
    assert "run.json" in str(caught.value)


def test_scores_without_a_schema_are_refused(tmp_path):
    path = write_run(tmp_path) / "scores.json"
    path.write_text(json.dumps({"scores": []}))
    with pytest.raises(InputError, match="schema None is not 2"):
        write_report(tmp_path)


def test_a_folder_that_cannot_be_written_is_a_run_error_and_keeps_the_old_page(tmp_path, monkeypatch):
    page = write_report(write_run(tmp_path))
    before = page.read_bytes()

    def full_disk(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(RunError, match=r"the disk that holds .+ is full"):
        write_report(tmp_path)
    assert page.read_bytes() == before
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.84, "0.8 s"), (42.4, "42 s"), (59.7, "1 min"), (185.0, "3 min 5 s"), (3599.6, "1 h")),
        *((4320.0, "1 h 12 min"), (90_000.0, "25 h"), (float("nan"), "unknown")),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_facts_can_be_copied():
    assert [fact_text(value) for value in (2e-5, 8.0, 12345, True, None, "a b", [1, "x"], 0.948)] == [
        *("2e-05", "8", "12345", "true", "null", "a b", '[1, "x"]', "0.948")
    ]


def test_recipes_are_grouped_by_section():
    assert grouped({"a": {"b": 1, "c": {"d": 2, "e": {}}}, "f": 3, "g": {}}) == [
        ("", [("f", 3)]),
        ("a", [("b", 1), ("c.d", 2), ("c.e", {})]),
    ]
