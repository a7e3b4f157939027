"""Token ids from elsewhere: every layout gives the same documents, without a copy where none is needed."""

import pickle
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Features, LargeList, Value, concatenate_datasets, load_from_disk
from datasets import List as ListOf

from skipwise.data import token_ids
from skipwise.data.passages import Passages, TokenizedDocuments
from skipwise.errors import InputError

ROWS = [[1, 2], [3], [], [4, 5, 6], [7]]
LARGEST = 2**31 - 1


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def dataset_of(rows=ROWS, dtype="int32", kind=ListOf, column="input_ids", **options):
    features = Features({column: kind(Value(dtype), **options), "other": Value("string")})
    return Dataset.from_dict({column: rows, "other": ["x"] * len(rows)}, features=features)


def read(ids, **options):
    documents = TokenizedDocuments.from_ids(ids, **options)
    found = [documents[i] for i in range(len(documents))]
    assert all(each.dtype == np.int32 and not each.flags.writeable for each in found)
    assert documents.lengths.tolist() == [len(each) for each in found]
    return [each.tolist() for each in found]


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("kind", [ListOf, LargeList])
def test_every_list_of_integers_is_read(dtype, kind):
    assert read(dataset_of(dtype=dtype, kind=kind)) == ROWS


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_a_selection_is_read_as_it_is(dtype):
    dataset = dataset_of(dtype=dtype)
    shuffled = dataset.shuffle(seed=1)
    assert read(shuffled) == shuffled["input_ids"][:] != ROWS
    assert read(dataset.select([3, 0, 3])) == [ROWS[3], ROWS[0], ROWS[3]]
    assert read(dataset.select(range(1, 4))) == ROWS[1:4]
    assert read(dataset.select(range(1, 4)).select([2, 1])) == [ROWS[3], ROWS[2]]
    chunks = concatenate_datasets([dataset.select(range(1, 4)), dataset, dataset])
    assert read(chunks) == [*ROWS[1:4], *ROWS, *ROWS]
    assert read(chunks.select([12, 0, 6])) == [ROWS[4], ROWS[1], ROWS[3]]
    assert [TokenizedDocuments.from_ids(chunks).select([12, 0])[i].tolist() for i in (0, 1)] == [[7], [3]]
    assert read(dataset.with_format("numpy").select([4])) == [ROWS[4]]


def test_lists_of_one_length_and_other_columns():
    assert read(dataset_of([[1, 2], [5, 6], [3, 4]], length=2).select(range(1, 3))) == [[5, 6], [3, 4]]
    both = dataset_of(column="tokens").add_column("input_ids", ["text"] * 5)
    assert read(both, column="tokens") == ROWS


@pytest.mark.parametrize(
    "ids",
    [
        ROWS,
        tuple(tuple(row) for row in ROWS),
        [np.array(row, np.uint16) for row in ROWS],
        [np.array(row, np.int32) for row in ROWS],
        [np.array(ROWS[0], np.uint64), *ROWS[1:]],
        dataset_of()["input_ids"],
    ],
    ids=["lists", "tuples", "uint16", "int32", "mixed", "column"],
)
def test_sequences_are_read(ids):
    assert read(ids) == ROWS


def test_documents_may_all_be_empty():
    assert read([[], []]) == read(dataset_of([[], []])) == [[], []]


def test_the_largest_id_and_a_table_of_ids():
    assert read([[LARGEST, 0]]) == [[LARGEST, 0]]
    assert read(dataset_of([[LARGEST, 0]], "uint32")) == [[LARGEST, 0]]
    assert read(np.arange(6).reshape(2, 3)) == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (dataset_of(column="tokens"), "no column 'input_ids' in the dataset, which has tokens, other"),
        (
            dataset_of(dtype="float32"),
            "column 'input_ids' holds list<.*: float>: must hold lists of integers",
        ),
        (Dataset.from_dict({"input_ids": ["text"]}), "holds string: must hold lists"),
        (dataset_of(dtype="int64").select([]), "there are no documents"),
        (dataset_of([[1], [], None, [2]]), "row 2 is null: must be a list of ids from 0 to 2147483647"),
        (dataset_of([[1], [], None, [2]], "int64"), "row 2 is null"),
        (dataset_of([[1, 2], None], length=2), "row 1 is null"),
        (dataset_of([[1], [], [2, None], [3]]), "row 2 holds an id that is null or negative"),
        (dataset_of([[1], [], [2, -1], [3]]), "row 2 holds an id that is null or negative"),
        (dataset_of([[1], [], [2, -100], [3]], "int64"), "row 2 holds an id that is null or negative"),
        (concatenate_datasets([dataset_of(), dataset_of([[], [-1]])]), "row 6 holds an id"),
        (dataset_of([[-1], [3], [2]]).select([2, 0]), "row 1 holds an id"),
        (
            dataset_of([[1], [LARGEST + 1]], "int64"),
            "2147483648 not in range.*every row must be a list of ids",
        ),
        (DatasetDict(train=dataset_of()), "DatasetDict is neither one split of a dataset nor a list"),
        (dataset_of().to_iterable_dataset(), "IterableDataset is neither"),
        (None, "NoneType is neither"),
        ([], "there are no documents"),
        ([1, 2], "row 0 is no list of integers: must be a list of ids"),
        ([[1], [[2]]], "row 1 is no list of integers"),
        ([[1], [[2], [3, 4]]], "row 1 is no list of integers"),
        ([[1], None], "row 1 is no list of integers"),
        ([[1], [2, None]], "row 1 is no list of integers"),
        ([[1], [2.0]], "row 1 is no list of integers"),
        (["text"], "row 0 is no list of integers"),
        ([[1], [2, -1]], "row 1 goes from -1 to 2: must be a list of ids from 0 to 2147483647"),
        ([[1], np.array([LARGEST + 1])], "row 1 goes from 2147483648 to 2147483648"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(ids, message):
    with pytest.raises(InputError, match=message) as caught:
        TokenizedDocuments.from_ids(ids)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_flawed_rows_that_are_not_selected_do_no_harm(dtype):
    dataset = dataset_of([[1], None, [2, 1], [8, -1], [9]], dtype)
    assert read(dataset.filter(lambda row: row["input_ids"] is not None and -1 not in row["input_ids"])) == [
        [1],
        [2, 1],
        [9],
    ]
    nulls = dataset_of([[1], None, [2, 1], [8], [None]], dtype)
    assert read(nulls.select(range(2, 4))) == [[2, 1], [8]]


def test_too_many_ids_for_a_list_are_told(monkeypatch):
    monkeypatch.setattr(token_ids, "_LARGEST", 7)
    with pytest.raises(InputError, match="8 in a list: keep more than 7 in a dataset on disk"):
        TokenizedDocuments.from_ids([[1, 2, 3], [4, 5, 6, 7, 7]])


def mapped_file(address: int) -> str:
    """Name of the file that is mapped at `address`, empty for other memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, last = line.split(maxsplit=5)
        low, high = (int(each, 16) for each in span.split("-"))
        if low <= address < high:
            return last
    return ""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mappings")
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_what_is_on_disk_stays_there(tmp_path, dtype):
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 99, length) for length in rng.integers(50, 150, 301)]
    dataset_of(rows, dtype, column="tokens").save_to_disk(tmp_path)
    dataset = load_from_disk(tmp_path).shuffle(seed=3)
    before = set(tmp_path.iterdir())
    documents = TokenizedDocuments.from_ids(dataset, column="tokens")
    written = set(tmp_path.iterdir()) - before
    assert len(written) == (dtype != "int32")  # a cast, in the dataset's cache
    passages = Passages(documents, min_length=20, max_length=30, seed=0)
    sent = pickle.loads(pickle.dumps(documents))
    assert len(pickle.dumps(documents)) < 12_000
    views = [documents[7], sent[7], passages.draw(0, 5, np.random.default_rng(0))]
    for view in views:
        assert mapped_file(view.__array_interface__["data"][0]).endswith(".arrow")
    assert not mapped_file(views[0].copy().__array_interface__["data"][0]).endswith(".arrow")
    assert sent[7].tolist() == documents[7].tolist() == dataset[7]["tokens"]
    TokenizedDocuments.from_ids(dataset, column="tokens")
    assert set(tmp_path.iterdir()) == before | written  # cast once


def test_a_cast_holds_few_rows_at_once(monkeypatch):
    seen, cast = [], Dataset.cast
    monkeypatch.setattr(
        Dataset,
        "cast",
        lambda *inputs, batch_size: seen.append(batch_size) or cast(*inputs, batch_size=batch_size),
    )
    monkeypatch.setattr(token_ids, "_BYTES_AT_ONCE", 1000 * 8 * 7)
    for length in (100, 700, 1100, 8000):
        assert read(dataset_of([[3] * length] * 50, "int64")) == [[3] * length] * 50
    assert read(dataset_of(dtype="int64")) == ROWS
    assert seen[1] <= 10 <= seen[0] <= 70
    assert seen[2:] == [6, 1, 1000]


def test_documents_without_a_source_name_their_row():
    documents = TokenizedDocuments.from_ids(dataset_of().select([3, 1]))
    assert [documents.source(i) for i in range(2)] == ["row 3", "row 1"]


def test_arrays_are_copied_not_watched():
    array = np.array([1, 2, 3], np.int32)
    documents = TokenizedDocuments.from_ids([array])
    array[:] = 9
    assert documents[0].tolist() == [1, 2, 3]
    assert isinstance(documents._tokens.data.column("input_ids").type, pa.ListType)
