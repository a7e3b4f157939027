"""Token ids that somebody else made -> a checked table of them, one row a document.

Whoever comes from another trainer holds a `datasets.Dataset` with a column of token ids, or lists of them.
The table has the one column `input_ids`, lists of int32; what is that already is not copied.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Value
from datasets import List as ListOf

from skipwise.errors import InputError

_LARGEST = int(np.iinfo(np.int32).max)
_BYTES_AT_ONCE = 64 << 20  # of ids that are cast
_RULE = f"must be a list of ids from 0 to {_LARGEST}"


def token_table(ids: Dataset | Sequence[Any], column: str) -> Dataset:
    """Check every row of `column` of a dataset, or every one of a sequence of lists or arrays of token ids.

    A dataset whose `column` holds lists of int32 is used as it lies, memory-mapped or not, with its
    selection and order; lists of other integers are cast, into the dataset's cache when it is on disk.

    Raises InputError for no rows, a missing column, other types, null rows, and ids below 0 or above int32.
    """
    tokens = _one_column(ids, column) if isinstance(ids, Dataset) else _in_memory(ids)
    if not len(tokens):
        raise InputError("token ids: there are no documents")
    flaw = _flaw(tokens)
    if flaw and tokens._indices is not None:  # perhaps of a row that is not selected
        tokens = tokens.flatten_indices()
        flaw = _flaw(tokens)
    if flaw:
        raise InputError(f"token ids: {flaw}: {_RULE}")
    return tokens


def _one_column(dataset: Dataset, column: str) -> Dataset:
    if column not in dataset.column_names:
        raise InputError(f"no column {column!r} in the dataset, which has {', '.join(dataset.column_names)}")
    kind = dataset.data.schema.field(column).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_integer(kind.value_type):
        raise InputError(f"column {column!r} holds {kind}: must hold lists of integers")
    tokens = dataset.select_columns([column])
    if column != "input_ids":
        tokens = tokens.rename_column(column, "input_ids")
    if pa.types.is_list(kind) and kind.value_type == pa.int32():
        return tokens
    rows_at_once = _BYTES_AT_ONCE * len(tokens) // max(1, tokens.data.nbytes)
    features = Features({"input_ids": ListOf(Value("int32"))})
    try:
        return tokens.cast(features, batch_size=min(max(1, rows_at_once), 1000))
    except pa.ArrowInvalid as error:
        raise InputError(f"column {column!r}: {error}: every row {_RULE}") from error


def _in_memory(ids: Sequence[Any]) -> Dataset:
    if not isinstance(ids, Sequence | np.ndarray):
        raise InputError(f"token ids: {type(ids).__name__} is neither one split of a dataset nor a list")
    documents = [_array(row, each) for row, each in enumerate(ids)]
    bounds = np.cumsum([0, *map(len, documents)])
    if bounds[-1] > _LARGEST:
        raise InputError(f"token ids: {bounds[-1]} in a list: keep more than {_LARGEST} in a dataset on disk")
    values = np.concatenate([np.empty(0, np.int32), *documents])
    table = pa.table({"input_ids": pa.ListArray.from_arrays(bounds.astype(np.int32), values)})
    return Dataset(table, fingerprint="in-memory")  # to find one would take longer than all the rest


def _array(row: int, ids: Any) -> npt.NDArray[np.int32]:
    try:
        array = np.asarray(ids)
    except (TypeError, ValueError):  # lists of unequal lengths, tensors of another device
        array = np.asarray(None)
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "iu"):
        raise InputError(f"token ids: row {row} is no list of integers: {_RULE}")
    if len(array) and not 0 <= array.min() <= array.max() <= _LARGEST:
        raise InputError(f"token ids: row {row} goes from {array.min()} to {array.max()}: {_RULE}")
    return array.astype(np.int32)


def _flaw(tokens: Dataset) -> str | None:
    """Say what is wrong with the first flawed row of the table, selected or not."""
    before = 0
    for chunk in tokens.data.column("input_ids").chunks:
        if chunk.null_count:
            return f"row {before + pc.index(chunk.is_null(), True).as_py()} is null"
        values = chunk.flatten()
        if values.null_count or (len(values) and pc.min(values).as_py() < 0):
            place = pc.index(pc.fill_null(pc.less(values, 0), True), True).as_py()
            row = before + pc.list_parent_indices(chunk)[place].as_py()
            return f"row {row} holds an id that is null or negative"
        before += len(chunk)
    return None
