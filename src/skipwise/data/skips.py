"""The method: a passage of tokens becomes one short row whose position indices skip.

A model with a window of ``Lc`` tokens (the *train length*) is taught a window of ``Lt`` tokens (the
*target length*) on rows of ``Lc`` tokens. The row is cut into chunks; inside a chunk positions advance by
one, between chunks they jump, so that over many rows every relative distance below ``Lt`` is seen.

Source: Zhu et al., "PoSE: Efficient Context Window Extension of LLMs via Positional Skip-wise Training",
ICLR 2024, arXiv 2309.10400, section 3; RandPos is Ruoss et al. 2023, arXiv 2305.16843.

Contract of every sampler: its parameters are fixed (and checked) when it is made;
``sample(token_ids, rng)`` turns one passage into one `Row` and draws from nothing but ``rng``. For a worked
example, take ``Lc = 8``, ``Lt = 20``, chunk lengths (3, 5) and skips (0, 7)::

    position_ids  0 1 2 | 10 11 12 13 14      strictly increasing, at most Lt - 1 = 19
    token_ids     x[0:3] | x[v + 3 : v + 8]   v: how far the second chunk's text is moved
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

Content = Literal["uniform", "contiguous", "aligned"]


@dataclass(frozen=True, slots=True, eq=False)
class Chunks:
    """How a row was cut: three int64 arrays of shape ``(N,)``, in tokens.

    ``lengths`` are l_i, ``skips`` are u_i (added to the row index to give the position) and ``text_skips``
    are v_i (added to the row index to give the index into the passage).
    """

    lengths: NDArray[np.int64]
    skips: NDArray[np.int64]
    text_skips: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One training example: ``token_ids`` and ``position_ids`` (int64), both of shape ``(row_length,)``.

    ``taught``: learned from the untouched model instead of from its text (`skipwise.train.restoration`).
    """

    token_ids: NDArray[np.integer]
    position_ids: NDArray[np.int64]
    chunks: Chunks
    taught: bool = False


class Sampler(Protocol):
    """What the data path needs of a sampler. Lengths are in tokens."""

    @property
    def row_length(self) -> int:
        """Tokens in every row."""

    @property
    def target_length(self) -> int:
        """Every position is below this."""

    @property
    def passage_length(self) -> tuple[int, int]:
        """The shortest passage `sample` accepts, and the longest it can make use of."""

    def sample(self, token_ids: NDArray[np.integer], rng: np.random.Generator) -> Row:
        """One row from one passage of at least ``passage_length[0]`` tokens."""


@dataclass(frozen=True)
class PoSE:
    """Positional Skip-wisE rows.

    Chunk lengths: ``l_0 ~ U{1 .. Lc - N + 1}`` and so on, each uniform over what leaves at least one token to
    every later chunk (the paper's coverage code for N = 2 and 3, continued to any N). Skips: ``u_0 = 0``,
    ``u_i ~ U{u_(i-1) .. Lt - Lc}``. Text: ``uniform`` draws v_i in the same way below ``Lx - Lc`` (the
    paper's default), ``contiguous`` sets v_i = 0, ``aligned`` sets v_i = u_i and so needs passages of Lt.

    N = 1 is the contiguous control. With N = Lc every token is its own chunk, as in `RandPos`, and any
    increasing positions from 0 on can come, but not with equal chance: what is left to skip, Lt - Lc - u_i,
    halves on average with every chunk, so that all but the first few crowd at the far end.

    Raises ValueError for lengths that make no sense.
    """

    train_length: int
    target_length: int
    chunks: int = 2
    content: Content = "uniform"

    def __post_init__(self) -> None:
        check_lengths(self.train_length, self.target_length)
        if not 1 <= self.chunks <= self.train_length:
            raise ValueError(f"chunks = {self.chunks}: must be from 1 to train_length = {self.train_length}")
        if self.content not in get_args(Content):
            raise ValueError(f"content = {self.content!r}: must be one of {', '.join(get_args(Content))}")

    @property
    def row_length(self) -> int:
        """Tokens in every row: the train length."""
        return self.train_length

    @property
    def passage_length(self) -> tuple[int, int]:
        """``uniform`` spreads its chunks over up to Lt tokens, ``aligned`` needs them all."""
        shortest = self.target_length if self.content == "aligned" else self.train_length
        longest = self.train_length if self.content == "contiguous" else self.target_length
        return shortest, longest

    def sample(self, token_ids: NDArray[np.integer], rng: np.random.Generator) -> Row:
        """One row from a passage ``token_ids`` of shape ``(Lx,)``."""
        check_passage(token_ids, self.passage_length[0])
        lengths = self._chunk_lengths(rng)
        skips = self._skips(rng)
        if self.content == "uniform":
            text_skips = increasing_skips(self.chunks, len(token_ids) - self.train_length, rng)
        else:
            text_skips = skips if self.content == "aligned" else np.zeros_like(skips)
        return make_row(token_ids, Chunks(lengths, skips, text_skips))

    def _skips(self, rng: np.random.Generator) -> NDArray[np.int64]:
        return increasing_skips(self.chunks, self.target_length - self.train_length, rng)

    def _chunk_lengths(self, rng: np.random.Generator) -> NDArray[np.int64]:
        lengths, left = [], self.train_length
        for later_chunks in range(self.chunks - 1, 0, -1):
            lengths.append(int(rng.integers(1, left - later_chunks, endpoint=True)))
            left -= lengths[-1]
        return np.array([*lengths, left])


@dataclass(frozen=True)
class RandPos:
    """Every token its own chunk: Lc positions drawn without replacement from {0 .. Lt - 1}, sorted.

    The paper's baseline and the limit of many chunks. The first position is not always 0.
    """

    train_length: int
    target_length: int

    def __post_init__(self) -> None:
        check_lengths(self.train_length, self.target_length)

    @property
    def row_length(self) -> int:
        """Tokens in every row: the train length."""
        return self.train_length

    @property
    def passage_length(self) -> tuple[int, int]:
        """The text is contiguous."""
        return self.train_length, self.train_length

    def sample(self, token_ids: NDArray[np.integer], rng: np.random.Generator) -> Row:
        """One row from a passage ``token_ids`` of shape ``(Lx,)``."""
        check_passage(token_ids, self.train_length)
        position_ids = rng.choice(self.target_length, self.train_length, replace=False, shuffle=False)
        position_ids.sort()
        skips = position_ids - np.arange(self.train_length)
        chunks = Chunks(np.ones_like(skips), skips, np.zeros_like(skips))
        return Row(np.array(token_ids[: self.train_length]), position_ids, chunks)


@dataclass(frozen=True)
class Contiguous:
    """The control: rows of Lc tokens at positions 0 .. Lc - 1, whatever the target."""

    train_length: int
    target_length: int

    def __post_init__(self) -> None:
        check_lengths(self.train_length, self.target_length)

    @property
    def row_length(self) -> int:
        """Tokens in every row: the train length."""
        return self.train_length

    @property
    def passage_length(self) -> tuple[int, int]:
        """One row's worth of text."""
        return self.row_length, self.row_length

    def sample(self, token_ids: NDArray[np.integer], rng: np.random.Generator) -> Row:  # noqa: ARG002
        """The first ``row_length`` tokens of the passage; nothing is drawn."""
        check_passage(token_ids, self.row_length)
        zero = np.zeros(1, dtype=np.int64)
        return make_row(token_ids, Chunks(np.array([self.row_length]), zero, zero))


@dataclass(frozen=True)
class FullLength(Contiguous):
    """The expensive baseline: rows of Lt tokens at positions 0 .. Lt - 1."""

    @property
    def row_length(self) -> int:
        """Tokens in every row: the target length."""
        return self.target_length


def example_rng(seed: int, epoch: int, example: int) -> np.random.Generator:
    """The generator of one example of one epoch.

    Counter-based (Philox), so the same (seed, epoch, example) gives the same row for any number of workers
    and processes and after a resume, and no two examples share a stream.
    """
    counter = np.array([0, 0, 0, example], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(_Key(seed, epoch), counter))  # type: ignore[arg-type]


class _Key(ISeedSequence):
    """Two 64-bit words that key a generator as they are.

    Philox has an argument ``key`` too, but then begins by reading entropy from the system, for nothing.
    """

    def __init__(self, *words: int) -> None:
        self.words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:  # noqa: ARG002
        return np.array(self.words, dtype)


def make_row(passage: NDArray[np.integer], chunks: Chunks) -> Row:
    """The row that ``chunks`` cut from ``passage``: chunk i is one piece of its text and one of positions."""
    token_ids, position_ids = [], []
    start = 0
    lengths, skips, text_skips = chunks.lengths.tolist(), chunks.skips.tolist(), chunks.text_skips.tolist()
    for length, skip, text_skip in zip(lengths, skips, text_skips, strict=True):
        end = start + length
        token_ids.append(passage[start + text_skip : end + text_skip])
        position_ids.append(np.arange(start + skip, end + skip))
        start = end
    return Row(np.concatenate(token_ids), np.concatenate(position_ids), chunks)


def increasing_skips(count: int, largest: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``count`` integers that never fall: 0 first, each next uniform from the one before to ``largest``."""
    skips = [0]
    for _ in range(count - 1):
        skips.append(int(rng.integers(skips[-1], largest, endpoint=True)))
    return np.array(skips)


def check_lengths(train_length: int, target_length: int) -> None:
    """Raise ValueError unless 1 <= train_length <= target_length."""
    if train_length < 1:
        raise ValueError(f"train_length = {train_length}: must be at least 1 token")
    if target_length < train_length:
        raise ValueError(
            f"target_length = {target_length}: must be at least train_length = {train_length} tokens"
        )


def check_passage(token_ids: NDArray[np.integer], shortest: int) -> None:
    """Raise ValueError for a passage of fewer than ``shortest`` tokens."""
    if len(token_ids) < shortest:
        raise ValueError(f"token_ids has {len(token_ids)} tokens: this sampler needs at least {shortest}")
