import errno
import gzip
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from skipwise.data import documents as module
from skipwise.data.documents import load_documents
from skipwise.errors import InputError, RunError


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load sources relative to tmp_path, as (source, text) pairs."""
    monkeypatch.chdir(tmp_path)

    def run(*sources, **options):
        loaded = load_documents(sources, cache_dir=tmp_path / ".cache", **options)
        assert loaded.features == {"text": datasets.Value("string"), "source": datasets.Value("string")}
        return list(zip(loaded["source"], loaded["text"], strict=True))

    return run


@pytest.fixture
def no_network(monkeypatch):
    """Fail the test at its end if anything looked up or called another machine."""
    tried = []

    def refuse(*args, **options):
        tried.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    yield
    assert tried == []


def write(name: str, content: str | bytes = "words") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)  # no time of day in the names of the tests


def error_line(load, *sources, **options) -> str:
    with pytest.raises(InputError) as caught:
        load(*sources, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("ending", [".txt", ".md", ".py", ".TXT"])
def test_a_text_file_is_one_document_with_its_line_breaks(load, ending):
    path = write("one" + ending, "first\n\nsecond é\n")
    assert load(path) == [(path.name, "first\n\nsecond é\n")]


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".jsonl", lines({"text": "a", "n": 1}, {"text": "b"})),
        (".jsonl.gz", packed(lines({"text": "a"}, {"text": "b", "n": [1]}))),
        (".jsonl.zst", zstandard.compress(lines({"text": "a"}, {"text": "b", "n": {"k": 1}}))),
        (".json", json.dumps([{"text": "a"}, {"text": "b"}], indent=1)),
        (".json.gz", packed(json.dumps([{"text": "a"}, {"text": "b"}]).encode())),
        (".json.zst", zstandard.compress(json.dumps([{"text": "a"}, {"text": "b"}]).encode())),
    ],
)
def test_json_of_every_packing_is_one_document_a_row(load, ending, content):
    assert load(write("rows" + ending, content)) == [("rows" + ending, "a"), ("rows" + ending, "b")]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_parquet_is_one_document_a_row(load, kind):
    pq.write_table(pa.table({"n": [1, 2], "text": pa.array(["a", "b"], kind)}), "rows.parquet")
    assert load("rows.parquet") == [("rows.parquet", "a"), ("rows.parquet", "b")]


def test_a_folder_is_read_recursively_sorted_and_without_hidden_or_foreign_files(load):
    for name in ("z.txt", "b/__pkg__/y.py", "a.md", "c.csv", ".hidden.txt", "b/.git/x.txt", "b/a[1] {2}.txt"):
        write(f"corpus/{name}", name)
    write("corpus/m.jsonl", lines({"text": "row"}))
    write("corpus/empty.txt", "")
    assert [text for _, text in load("corpus")] == [
        "a.md",
        "b/__pkg__/y.py",
        "b/a[1] {2}.txt",
        "row",
        "z.txt",
    ]


def test_a_glob_with_double_stars_takes_any_depth_and_only_supported_files(load):
    for name in ("a.txt", "one/b.txt", "one/two/c.txt", "one/d.md", "one/e.txt.bak"):
        write(f"corpus/{name}", name)
    assert [text for _, text in load("corpus/**/*.txt*")] == ["a.txt", "one/b.txt", "one/two/c.txt"]
    assert [text for _, text in load(str(Path("corpus/*/?.md").absolute()))] == ["one/d.md"]


def test_files_may_differ_in_their_other_columns_and_the_text_may_be_numbers(load):
    write("a.jsonl", lines({"body": "a", "meta": {"x": 1}}))
    write("b.jsonl", lines({"meta": "none", "body": 7}, {"body": "mixed"}, {"body": None}, {"body": " \n"}))
    pq.write_table(pa.table({"body": ["p"], "vector": [[1.5]]}), "c.parquet")
    assert [text for _, text in load("*.jsonl", "c.parquet", text_column="body")] == ["a", "7", "mixed", "p"]


def test_a_long_json_file_may_change_its_other_columns_on_the_way(load):
    first, later = {"text": "a" * 700_000, "meta": {"x": 1}}, {"text": "b", "meta": {"y": [2]}, "more": 3}
    write("long.jsonl", lines(*[first] * 16, later))
    assert [text[0] for _, text in load("long.jsonl")] == ["a"] * 16 + ["b"]


def test_a_byte_order_mark_is_no_text_and_line_ends_become_newlines(load):
    assert load(write("dos.txt", b"\xef\xbb\xbfone\r\ntwo")) == [("dos.txt", "one\ntwo")]


def test_sources_keep_their_order_and_a_file_met_twice_counts_once(load):
    write("b/one.txt", "one"), write("a.txt", "two")
    assert [text for _, text in load("b", "a.txt", "b/one.txt", "./b/../a.txt")] == ["one", "two"]


def test_local_files_need_no_network(load, no_network):
    write("a.txt"), write("b.jsonl", lines({"text": "b"})), write("bad.json", "{")
    pq.write_table(pa.table({"text": ["c"]}), "c.parquet")
    assert len(load("a.txt", "b.jsonl", "c.parquet")) == 3
    error_line(load, "bad.json")


def test_more_rows_than_one_batch_stay_in_order(load):
    write("many.jsonl", lines(*({"text": f"row {i}"} for i in range(301))))
    assert [text for _, text in load("many.jsonl")] == [f"row {i}" for i in range(301)]


def test_a_changed_file_is_read_again(load):
    path = write("a.txt", "before")
    os.utime(path, (1, 1))
    assert load(path) == [("a.txt", "before")]
    assert load(write("a.txt", "after!")) == [("a.txt", "after!")]


@pytest.mark.parametrize(
    "source", ["books/nope.parquet", "nope", "books/nope.jsonl.gz", "./nope/x", "a/b/c", Path("owner/name")]
)
def test_a_missing_path_is_told_without_a_network_try(load, no_network, source):
    assert error_line(load, source) == f"{source}: no such file or folder"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("empty.txt", "", "holds no text"),
        ("blank.md", " \n\t\n", "holds no text"),
        ("empty.jsonl", "", "holds no text"),
        ("newlines.jsonl", "\n\n", "holds no text"),
        ("list.json", "[]", "holds no text"),
        ("null.jsonl", lines({"text": None}, {"text": ""}), "holds no text"),
        ("empty.jsonl.gz", packed(b""), "holds no text"),
        ("latin.txt", "é".encode("latin-1"), "cannot be read as text ('utf-8' codec"),
        ("cut.jsonl", b'{"text": "a"}\n{"text":', "cannot be read as json"),
        ("garbage.json", "not json", "cannot be read as json"),
        ("fake.jsonl.gz", "plain", "cannot be read as json"),
        ("cut.jsonl.gz", packed(lines({"text": "a"}) * 999)[:-9], "cannot be read as json"),
        ("fake.jsonl.zst", "plain text", "cannot be read as json"),
        ("fake.parquet", "plain", "cannot be read as parquet"),
        ("empty.parquet", "", "cannot be read as parquet"),
        ("table.csv", "text\na\n", "unsupported ending; supported: .txt,"),
        ("lists.jsonl", lines({"text": ["a"]}), "column 'text' holds list values"),
        ("rows.jsonl", lines({"body": "a", "n": 1}), "no column 'text'; choose one of its columns (body, n)"),
    ],
)
def test_an_unusable_file_gives_one_line_that_names_it(load, name, content, told):
    line = error_line(load, write(name, content))
    assert line.startswith(f"{name}: {told}")


def test_a_parquet_file_without_the_column_or_without_rows_is_told(load):
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), "a.parquet")
    assert "(body, n)" in error_line(load, "a.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), "b.parquet")
    assert error_line(load, "b.parquet").startswith("b.parquet: holds no text")


def test_the_one_unreadable_file_of_a_folder_is_named(load):
    write("corpus/a.txt"), write("corpus/b.txt", b"\xff\xfe\xff"), write("corpus/c.txt")
    assert error_line(load, "corpus").startswith("corpus/b.txt: cannot be read as text")


def test_sources_that_match_nothing_are_told(load):
    Path("empty").mkdir()
    write("tables/a.csv")
    for source in ("empty", "tables", "tables/*", "*.txt"):
        assert error_line(load, source).startswith(f"{source}: no file found with a supported ending")
    assert error_line(load).startswith("no documents")


def test_a_blank_source_is_told_even_beside_others(load):
    write("a.txt"), write("b.txt", " ")
    assert error_line(load, "a.txt", "b.txt").startswith("b.txt: holds no text")


def test_a_cache_folder_that_cannot_be_is_told(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="cannot be the cache folder"):
        load_documents(["a.txt"], cache_dir=file)


def test_a_full_disk_is_not_blamed_on_the_file(load, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets, "load_dataset_builder", full)
    with pytest.raises(RunError, match="disk of the cache folder is full"):
        load(write("a.txt"))


@pytest.mark.parametrize(
    ("source", "config"), [("owner/name", None), ("owner/name-v1.5:20220301.en", "20220301.en")]
)
def test_a_hub_name_is_loaded_with_its_configuration_and_split(load, monkeypatch, tmp_path, source, config):
    asked = []

    def hub(path, name, **options):
        asked.append((path, name, options))
        return datasets.Dataset.from_dict({"body": ["a", " ", "b"], "n": [1, 2, 3]})

    monkeypatch.setattr(datasets, "load_dataset", hub)
    assert load(source, text_column="body", split="validation") == [(source, "a"), (source, "b")]
    options = {"split": "validation", "cache_dir": str(tmp_path / ".cache")}
    assert asked == [(source.split(":")[0], config, options)]
    assert "(body, n)" in error_line(load, source)


def test_a_folder_named_like_a_hub_dataset_wins(load, no_network):
    write("owner/name/a.txt", "mine")
    assert load("owner/name") == [("a.txt", "mine")]


def test_a_hub_failure_is_one_line(load, monkeypatch):
    def fail(*args, **options):
        raise ConnectionError("Couldn't reach it\nin any of five tries")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    line = error_line(load, "owner/name")
    assert line.startswith("owner/name: no such file or folder, and it cannot be loaded as a Hugging Face")
    assert line.endswith("(Couldn't reach it)")


def test_progress_bars_are_off_while_loading_and_back_after(load, monkeypatch, capfd):
    during = []
    real = module._as_documents
    monkeypatch.setattr(
        module, "_as_documents", lambda *a: during.append(datasets.are_progress_bars_disabled()) or real(*a)
    )
    before = datasets.are_progress_bars_disabled()
    load(write("a.txt"))
    error_line(load, write("bad.json", "{"))
    assert during == [True]
    assert datasets.are_progress_bars_disabled() == before
    assert capfd.readouterr() == ("", "")


def test_another_process_reads_the_same_from_the_cache_and_loads_neither_torch_nor_the_home_folder(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text("a")
    (corpus / "b.jsonl").write_bytes(lines({"text": "b"}))
    code = """if True:
        import sys
        from pathlib import Path
        from skipwise.data import passages
        from skipwise.data.documents import load_documents
        loaded = load_documents([sys.argv[1]], cache_dir=Path(sys.argv[2]))
        assert "torch" not in sys.modules
        print(loaded._fingerprint, loaded["text"][:])"""
    home = tmp_path / "home"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(home), "HF_HUB_OFFLINE": "1"}
    env = {name: value for name, value in env.items() if name not in ("HF_HOME", "XDG_CACHE_HOME")}
    command = [sys.executable, "-c", code, str(corpus), str(tmp_path / "cache")]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    cached = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.arrow")}
    here = load_documents([str(corpus)], cache_dir=tmp_path / "cache")
    assert said == f"{here._fingerprint} {here['text'][:]}\n"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.arrow")} == cached
    assert not home.exists()
