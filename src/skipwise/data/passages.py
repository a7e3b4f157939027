"""Documents and a tokenizer -> passages of token ids.

A document is tokenized once, whole, without special tokens, into a memory-mapped Arrow file. A passage is
a stretch of one document that starts at a random offset, drawn anew at every visit: passages that always
start at a document's first token make a model memorise openings. Longer documents are visited more often,
so that every stretch of text counts about the same.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset, Features, Value
from datasets import List as ListOf

from skipwise.data.documents import datasets_session
from skipwise.data.token_ids import token_table
from skipwise.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = npt.NDArray[np.int32]
Indices = npt.NDArray[np.int64]

_LAYOUT = "1"  # part of the cache key: raise it when the cached columns change
_FEATURES = Features({"input_ids": ListOf(Value("int32")), "source": Value("string")})
_BYTES_AT_ONCE = 4 << 20  # text tokenized in one call; its encodings take some fifty times as much memory
# Streams of their own: what a caller draws from (seed, epoch, example) is independent of these.
_ORDER_STREAM, _SPLIT_STREAM = 1, 2


def tokenize_documents(
    documents: Dataset, tokenizer: "PreTrainedTokenizerBase", *, cache_dir: Path
) -> "TokenizedDocuments":
    """Tokenize every document, or reuse what an earlier call with equal documents and tokenizer wrote.

    `documents` has the columns `text` and `source`. The ids lie in one file under `cache_dir`, written
    aside and then renamed. Raises InputError when there are no documents.
    """
    if not len(documents):
        raise InputError("no documents to tokenize")
    key = hashlib.sha256(_LAYOUT.encode())
    key.update(documents._fingerprint.encode())
    key.update(_content(tokenizer))
    name = key.hexdigest()[:32]
    rows_at_once = _BYTES_AT_ONCE * len(documents) // max(1, documents.data.nbytes)
    with datasets_session(cache_dir):
        tokens = documents.map(
            partial(_encode, tokenizer=tokenizer),
            batched=True,
            batch_size=min(max(1, rows_at_once), 1000),
            remove_columns=documents.column_names,
            features=_FEATURES,
            cache_file_name=str(cache_dir / f"tokens-{name}.arrow"),
            load_from_cache_file=True,
            new_fingerprint=name,
        )
    return TokenizedDocuments(tokens)


def _encode(batch: Any, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    # verbose=False: a document may well be longer than the model's window, that is the point.
    encoded = tokenizer(
        list(batch["text"]),
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    ids = [np.asarray(row, dtype=np.int32) for row in encoded["input_ids"]]
    return {"input_ids": ids, "source": batch["source"]}


def _content(tokenizer: "PreTrainedTokenizerBase") -> bytes:
    """Serialise what decides the ids of a text, for the cache key."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        for state in ("truncation", "padding"):  # of the last call, and not used here
            content.pop(state, None)
        return json.dumps(content, sort_keys=True).encode()
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        saved = b"".join(path.name.encode() + path.read_bytes() for path in files)
    return type(tokenizer).__qualname__.encode() + saved


class TokenizedDocuments:
    """Token ids of documents, read from a memory-mapped Arrow file without copying.

    `documents[i]` is a read-only view, int32, shape (tokens,); `lengths` has every document's tokens,
    int64, shape (documents,). Pickles as the file's path and the selected rows, so workers share its pages.
    """

    def __init__(self, tokens: Dataset, rows: Indices | None = None):
        self._tokens = tokens
        self._rows = np.arange(len(tokens), dtype=np.int64) if rows is None else rows
        chunks = [chunk for chunk in tokens.data.column("input_ids").chunks if len(chunk)]
        bounds: list[Ids] = [chunk.offsets.to_numpy(zero_copy_only=True) for chunk in chunks]
        # Found once, so that a document is one slice: its length, its chunk, and where in that it starts.
        lengths = np.concatenate([np.diff(each) for each in bounds])
        self.lengths: Indices = lengths[self._rows].astype(np.int64)
        self._starts = np.concatenate([each[:-1] - each[0] for each in bounds])[self._rows]
        chunk_of = np.repeat(np.arange(len(chunks), dtype=np.int32), [len(chunk) for chunk in chunks])
        self._chunks = chunk_of[self._rows]
        self._values: list[Ids] = [chunk.flatten().to_numpy(zero_copy_only=True) for chunk in chunks]

    @classmethod
    def from_ids(cls, ids: Dataset | Sequence[Any], *, column: str = "input_ids") -> "TokenizedDocuments":
        """Take documents that are tokenized already: a `datasets.Dataset`, or lists or arrays of token ids.

        `column` of a dataset holds a list of integers in every row. Lists of int32 are not copied and stay
        memory-mapped, whatever was selected or shuffled before; others are cast once, into the dataset's
        cache when it is on disk. Every id is read once, to check it. Raises InputError as `token_table`.
        """
        tokens = token_table(ids, column)
        chosen = tokens._indices
        return cls(tokens, None if chosen is None else chosen.column(0).to_numpy().astype(np.int64))

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenizedDocuments, (self._tokens, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Ids:
        start = self._starts[index]
        ids: Ids = self._values[self._chunks[index]][start : start + self.lengths[index]]
        return ids

    @property
    def total_tokens(self) -> int:
        """Tokens of all documents together."""
        return int(self.lengths.sum())

    def select(self, indices: Sequence[int] | Indices) -> "TokenizedDocuments":
        """Return the documents at `indices`, in that order, over the same file."""
        return TokenizedDocuments(self._tokens, self._rows[np.asarray(indices, dtype=np.int64)])

    def source(self, index: int) -> str:
        """Name of the file or dataset that document `index` came from; with `from_ids`, its row there."""
        row = int(self._rows[index])
        if "source" not in self._tokens.column_names:
            return f"row {row}"
        return str(self._tokens.data.column("source")[row].as_py())


class Passages:
    """Visits to documents, shuffled anew every epoch, each giving a passage from a random offset.

    A document of n tokens is visited n // min_length times an epoch; `len(passages)` counts the visits of
    one epoch. Documents shorter than `min_length` tokens are never visited: `kept` and `dropped` count
    documents. The order depends on (seed, epoch) alone, so every process and every worker sees the same.

    With `from_start`, as conversations need it, every document is visited once an epoch, from its first
    token.

    Raises InputError when no document is long enough.
    """

    def __init__(
        self,
        documents: TokenizedDocuments,
        *,
        min_length: int,
        max_length: int,
        seed: int,
        from_start: bool = False,
    ):
        if not 1 <= min_length <= max_length:
            raise InputError(f"passages need 1 <= min_length ({min_length}) <= max_length ({max_length})")
        long_enough = np.flatnonzero(documents.lengths >= min_length)
        self.kept = len(long_enough)
        self.dropped = len(documents) - self.kept
        if not self.kept:
            longest = int(documents.lengths.max(initial=0))
            raise InputError(
                f"no document has the {min_length} tokens of min_length: the longest of {len(documents)} has "
                f"{longest}; add longer documents or lower min_length"
            )
        self.min_length, self.max_length, self.seed = min_length, max_length, seed
        self.from_start = from_start
        self._documents = documents.select(long_enough)
        lengths = self._documents.lengths
        self._visits: Indices = np.ones_like(lengths) if from_start else lengths // min_length
        self._size = int(self._visits.sum())
        self._order: tuple[int, Indices] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_order": None}  # quicker to draw again than to send

    def __len__(self) -> int:
        return self._size

    def draw(self, epoch: int, example: int, rng: np.random.Generator) -> Ids:
        """Return the passage of visit `example` of `epoch`: a view, min_length to max_length tokens.

        It starts at an offset uniform over {0 .. n - min_length} of the document's n tokens, the only
        number taken from `rng` (none with `from_start`), and ends after max_length tokens or with the
        document. Raises IndexError outside 0 <= example < len(self).
        """
        if not 0 <= example < self._size:
            raise IndexError(f"example {example} of an epoch of {self._size}")
        tokens = self._documents[self._epoch_order(epoch)[example]]
        start = 0 if self.from_start else int(rng.integers(len(tokens) - self.min_length + 1))
        return tokens[start : start + self.max_length]

    def _epoch_order(self, epoch: int) -> Indices:
        """Return the document of every visit of `epoch`."""
        if self._order is None or self._order[0] != epoch:
            visited = np.repeat(np.arange(self.kept), self._visits)
            self._order = epoch, visited[_generator(self.seed, _ORDER_STREAM, epoch).permutation(self._size)]
        return self._order[1]


def split_documents(
    documents: TokenizedDocuments, *, held_out: int, min_length: int, seed: int
) -> tuple[TokenizedDocuments, TokenizedDocuments]:
    """Split into (train, held out): up to `held_out` documents of at least `min_length` tokens, by `seed`.

    Never more than half of the documents that long are set aside; all others, short ones too, are train.
    Both keep the order of `documents`.
    """
    eligible = np.flatnonzero(documents.lengths >= min_length)
    count = max(0, min(held_out, len(eligible) // 2))
    chosen = np.sort(_generator(seed, _SPLIT_STREAM).permutation(eligible)[:count])
    train = np.setdiff1d(np.arange(len(documents)), chosen)
    return documents.select(train), documents.select(chosen)


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=stream)))
