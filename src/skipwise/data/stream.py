"""A stream of tokenized documents -> rows, without an index and without the corpus on disk.

Row ``k`` of a document is a pure function of (seed, epoch, the document's tokens, k): however many nodes
and workers share the documents, an epoch has the same rows, none twice and none lost, and a resumed stream
goes on with the very next one. Documents with the same tokens have the same rows: remove duplicates first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from skipwise.data.skips import Row, Sampler, example_rng

Documents = Iterable[Mapping[str, Any]]
Ids = NDArray[np.integer]

_MOST_WORKERS = 1024  # of one DataLoader
_MOST_BARREN_LAPS = 64  # epochs in a row without a row, before a worker of an endless stream gives up


@dataclass
class _Place:
    """Where the next row comes from: ``rows`` rows into the block that begins after ``read`` documents."""

    epoch: int  # as `set_epoch` gave it
    worker: tuple[int, int]  # which one, of how many
    lap: int = 0  # epochs that an endless stream has completed since
    read: int = 0
    documents: Any = None  # the documents' own state at the block's beginning, if they keep one
    rows: int = 0
    ended: bool = False

    @property
    def at_start(self) -> bool:
        return not (self.lap or self.read or self.rows or self.ended)


class RowStream(IterableDataset[Row]):
    """Rows of ``documents``, any iterable of dicts with token ids, for a DataLoader or a stock `Trainer`.

    Tokenize and split with `datasets`, as usual; ``column`` is all that is looked at::

        documents = load_dataset("org/corpus", split="train", streaming=True)
        documents = documents.map(lambda d: tokenizer(d["text"], add_special_tokens=False))
        rows = RowStream(split_dataset_by_node(documents, rank, world), PoSE(2048, 16384), seed=0)

    **Rows.** With ``shortest, longest = sampler.passage_length`` (tokens): a document of n >= shortest
    tokens is visited ``n // shortest`` times an epoch, each time for a passage of up to ``longest`` tokens
    from an offset uniform over {0 .. n - shortest}, as `skipwise.data.passages.Passages` does; with
    ``from_start``, as conversations (`Turns`) need it, once and from its first token. Shorter documents
    are left out. Token ids may be lists or, faster, numpy arrays (``with_format("numpy")``).

    **Order.** Documents as they come, ``block`` at a time; the visits of a block are shuffled, and memory
    holds one block. A larger one mixes better. So does a shuffle buffer of `datasets`, but that is lost when
    a state is loaded.

    **Epochs.** One pass is one epoch, number 0 until `set_epoch` says otherwise. With ``endless=True`` the
    pass goes on with the next epoch, and the next: for a `Trainer` that is to resume beyond the first,
    because it takes all of ``max_steps`` for one epoch of an iterable dataset.

    **Splitting.** A `torch.utils.data.IterableDataset`, as those of `datasets` are, splits itself over the
    workers of a DataLoader; other iterables are read whole by each worker, which takes its turn. Under
    `Trainer` or Accelerate leave `split_dataset_by_node` out: they deal out the batches themselves.

    **Resume.** `state_dict` and `load_state_dict` (with workers: of torchdata's `StatefulDataLoader`) are
    exact, given the same documents, sampler, nodes and workers. At most one block is read again, or all
    before it where the documents keep no state. `Trainer` needs neither: it skips the rows it has seen.

    Raises ValueError for a bad parameter, for a document without ``column`` or with anything but integers
    in it, and at the end of an epoch in which no document was long enough.
    """

    def __init__(
        self,
        documents: Documents,
        sampler: Sampler,
        *,
        seed: int,
        column: str = "input_ids",
        block: int = 64,
        endless: bool = False,
        from_start: bool = False,
    ) -> None:
        if isinstance(documents, Iterator):
            raise ValueError(
                f"documents = a {type(documents).__name__}: must be something that can be read again, such "
                "as a list or a dataset"
            )
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed = {seed}: must be from 0 to 2^64 - 1")
        if block < 1:
            raise ValueError(f"block = {block}: must be at least 1 document")
        self.documents, self.sampler, self.seed = documents, sampler, seed
        self.column, self.block = column, block
        self.endless, self.from_start = endless, from_start
        self.shortest, self.longest = sampler.passage_length
        # In shared memory: each worker of a DataLoader has a copy of this object, persistent ones for good.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._barren = torch.zeros((_MOST_WORKERS, 2), dtype=torch.int64).share_memory_()
        self._place: _Place | None = None  # of the pass that goes on, or of the one that comes if loaded
        self._loaded = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch.share_memory_()
        self._barren.share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass, in all workers; `Trainer` and Accelerate call this."""
        if epoch != int(self._epoch):
            self._place, self._loaded = None, False
        self._epoch.fill_(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the next row comes from, in plain numbers; the documents' own state is part of it."""
        place = self._place or _Place(int(self._epoch), _worker())
        return {"seed": self.seed, "block": self.block} | asdict(place) | {"worker": list(place.worker)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass begin with the row after ``state``, in the epoch of ``state``.

        Raises ValueError when ``state`` was taken with another seed or block.
        """
        for name in ("seed", "block"):
            if state[name] != getattr(self, name):
                raise ValueError(f"{name} = {getattr(self, name)}: must be the loaded state's {state[name]}")
        place = {name: value for name, value in state.items() if name not in ("seed", "block")}
        self._place, self._loaded = _Place(**place | {"worker": tuple(state["worker"])}), True
        # Not backwards: StatefulDataLoader loads late, a caller may be in the epoch after that of the state.
        self._epoch.fill_(max(self._place.epoch, int(self._epoch)))

    def __iter__(self) -> Iterator[Row]:
        if not self._loaded:
            self._place = None
        self._loaded = False
        return self._pass(self._place)

    def _pass(self, loaded: _Place | None) -> Iterator[Row]:
        place = self._beginning(loaded)
        barren_laps = 0
        while not place.ended:
            reader = _Reader(self, place)
            yield from self._lap(place, reader)
            barren_laps = 0 if reader.kept else barren_laps + 1
            if barren_laps:
                self._check_barren(place, barren_laps, reader.longest)
            if self.endless and reader.read:
                place.lap, place.read, place.documents, place.rows = place.lap + 1, 0, None, 0
            else:
                place.ended = True
            self._place = place

    def _beginning(self, loaded: _Place | None) -> _Place:
        """Where a pass begins: at the loaded place, if it is one of this epoch and this worker."""
        start = _Place(int(self._epoch), _worker())
        if loaded is None or (loaded.ended and loaded.epoch < start.epoch):
            return start
        if loaded.epoch < start.epoch:
            raise ValueError(
                f"epoch = {start.epoch}: must be the loaded state's {loaded.epoch}; set_epoch goes back to it"
            )
        if loaded.at_start:
            return start
        if loaded.worker != start.worker:
            here, there = ("worker {} of {}".format(*place.worker) for place in (start, loaded))
            raise ValueError(f"{here}: must be {there}, with which the loaded state was taken")
        return loaded

    def _lap(self, place: _Place, reader: _Reader) -> Iterator[Row]:
        """What is left of one epoch, from ``place`` on; ``place`` goes along."""
        epoch = place.epoch + place.lap
        documents = iter(reader)
        while block := list(islice(documents, self.block)):
            hashes = [blake2b(tokens.astype("<i8").tobytes(), digest_size=8) for tokens in block]
            visits = [(i, k) for i, tokens in enumerate(block) for k in range(self._visits(tokens))]
            all_hashes = b"".join(each.digest() for each in hashes)
            example_rng(self.seed, epoch, _number(blake2b(all_hashes, digest_size=8))).shuffle(visits)
            for i, k in visits[place.rows :]:
                visit = hashes[i].copy()
                visit.update(k.to_bytes(8, "little"))
                place.rows += 1
                self._place = place
                yield self._row(block[i], example_rng(self.seed, epoch, _number(visit)))
            place.read, place.documents, place.rows = reader.read, reader.state(), 0

    def _visits(self, tokens: Ids) -> int:
        return 1 if self.from_start else len(tokens) // self.shortest

    def _row(self, tokens: Ids, rng: np.random.Generator) -> Row:
        start = 0 if self.from_start else int(rng.integers(len(tokens) - self.shortest + 1))
        return self.sampler.sample(tokens[start : start + self.longest], rng)

    def _check_barren(self, place: _Place, laps: int, longest: int) -> None:
        """Raise when no worker had a row in the epoch that the pass began with, or this one never has.

        One worker without a row is no error yet: another may have all the long documents.
        """
        worker, workers = place.worker
        mark = place.epoch * _MOST_WORKERS + workers
        if place.lap == 0:
            self._barren[worker, 0] = longest  # first: whoever sees the mark shall find it
            self._barren[worker, 1] = mark
        marks = self._barren[:workers]
        if bool((marks[:, 1] == mark).all()):
            who, longest = "the stream", int(marks[:, 0].max())
        elif laps == _MOST_BARREN_LAPS:
            who = f"the part of worker {worker} of {workers}"
        else:
            return
        raise ValueError(
            f"no document of {who} has the {self.shortest} tokens of a row: the longest has {longest}"
        )


class _Reader:
    """This worker's documents of one epoch, from ``place`` on, that are long enough for a row.

    Counted, all in this epoch: ``read`` documents up to here, ``kept`` of them long enough since ``place``,
    and the tokens of the ``longest`` since then.
    """

    def __init__(self, rows: RowStream, place: _Place) -> None:
        documents: Any = rows.documents
        epoch = place.epoch + place.lap
        self.turn, self.workers = place.worker
        self.turn += epoch  # so that no worker has the same share for ever
        if isinstance(documents, IterableDataset):  # splits itself
            self.turn, self.workers = 0, 1
            if hasattr(documents, "shard"):
                # The same documents in an object of our own: the epoch of the original lies in memory that
                # all workers write to, and a state loaded into it would count for every later pass too.
                documents = documents.shard(num_shards=1, index=0)
        if hasattr(documents, "set_epoch"):
            documents.set_epoch(epoch)
        self.stateful = hasattr(documents, "state_dict") and hasattr(documents, "load_state_dict")
        if place.documents is not None:
            documents.load_state_dict(place.documents)
        self.documents, self.column = documents, rows.column
        self.shortest = rows.shortest
        self.skip, self.read = (0 if self.stateful else place.read), place.read
        self.kept = self.longest = 0

    def state(self) -> Any:
        """Where the documents are, None if they do not know."""
        return self.documents.state_dict() if self.stateful else None

    def __iter__(self) -> Iterator[Ids]:
        for document in islice(self.documents, self.skip, None):
            self.read += 1
            if (self.read - self.turn) % self.workers:
                continue
            tokens = self._tokens(document)
            self.longest = max(self.longest, len(tokens))
            if len(tokens) >= self.shortest:
                self.kept += 1
                yield tokens

    def _tokens(self, document: Mapping[str, Any]) -> Ids:
        if self.column not in document:
            raise ValueError(f"column = {self.column!r}: must be one of the documents' {', '.join(document)}")
        ids = document[self.column]
        try:
            tokens = np.asarray(ids)
        except ValueError:  # lists of several lengths
            tokens = np.empty((0, 0))
        if tokens.ndim != 1 or (len(tokens) and tokens.dtype.kind not in "iu"):
            raise ValueError(
                f"column = {self.column!r}: must hold lists of integers, and document {self.read} has "
                f"{str(ids)[:40]!r}"
            )
        return tokens


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


def _number(digest: blake2b) -> int:
    return int.from_bytes(digest.digest(), "little")
