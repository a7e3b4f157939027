"""Needle in a haystack: can the model find what somebody put into a real text, at any length and depth?

After Kamradt 2023 (github.com/gkamradt/LLMTest_NeedleInAHaystack): a sentence that has nothing to do with the
text is put between two of its sentences, and the question at the end asks for it. Three kinds:

- ``number``: a number of seven digits for a word, as in RULER (arXiv 2404.06654); found or not.
- ``sentence``: what is best to do in a town, as in Kamradt's test, but drawn at random, so that no model has
  met it in training; the share of its words that the answer has, articles and prepositions aside.
- ``several``: four numbers for one word; the share that the answer has. The first stands at the depth of the
  trial, the others at even distances from there to the end.

Prompts are built in tokens: ``length`` is that of the prompt with the room for its answer, exactly. All have
the same haystack, the beginning of the texts, so that what two of them share is read once.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from skipwise.errors import InputError
from skipwise.evals.reader import Reader, encode, start_tokens
from skipwise.evals.run import Item, fingerprint
from skipwise.evals.shares import share_score
from skipwise.scores import Score

TASK = "Something is hidden in this text. Find it and remember it: there is a question at the end.\n\n"

KINDS = ("number", "sentence", "several")

SEVERAL = 4
"""Needles in one haystack of the kind ``several``."""

SLACK = 12
"""Tokens of an answer beyond those of the right one, for a word or two before it."""

FAR = 128
"""Tokens from the place wanted to the next end of a sentence beyond which the needle goes just there."""

WORDS = ("anchor", "basket", "candle", "engine", "feather", "hammer", "kettle", "lantern", "saddle", "violin")
TOWNS = ("Bergen", "Bologna", "Cardiff", "Coimbra", "Ghent", "Graz", "Leiden", "Tartu", "Turku", "Utrecht")
ACTS = ("eat a pear", "read a poem", "mend a kite", "draw a horse", "bake a pie", "play the flute")
PLACES = ("bridge", "fountain", "lighthouse", "chapel", "windmill", "harbour", "library", "tower", "museum")
TIMES = ("rainy Monday", "sunny Tuesday", "windy Wednesday", "foggy Thursday", "snowy Friday")

_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s)|[。！？]|(?=\n[ \t]*\n)")
_SMALL_WORDS = {"a", "the", "near", "on"}


@dataclass(frozen=True, slots=True)
class Hidden:
    """What one prompt hides, the question at its end, and the right answer to it."""

    sentences: tuple[str, ...]
    question: str
    answer: str

    @classmethod
    def draw(cls, kind: str, rng: np.random.Generator) -> Hidden:
        """One of the kind, at random."""
        if kind == "sentence":
            town, act, place, time = (str(rng.choice(each)) for each in (TOWNS, ACTS, PLACES, TIMES))
            lead, fact = f"The best thing to do in {town} is to", f"{act} near the {place} on a {time}"
            return cls((f"{lead} {fact}.",), f"What is the best thing to do in {town}? {lead}", fact)
        word = rng.choice(WORDS)
        numbers = [str(each) for each in rng.integers(10**6, 10**7, size=SEVERAL)]
        if kind == "number":
            lead = f"The magic number for {word} is"
            return cls((f"{lead} {numbers[0]}.",), f"What is the magic number for {word}? {lead}", numbers[0])
        return cls(
            tuple(f"One of the magic numbers for {word} is {each}." for each in numbers),
            f"What are the {SEVERAL} magic numbers for {word}? The magic numbers for {word} are",
            ", ".join(numbers),
        )

    def share(self, said: str) -> float:
        """Which part of the right answer's words and numbers, each counted once, is in what a model said."""
        right = _words(self.answer) - _SMALL_WORDS
        return len(right & _words(said)) / len(right)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\d+|[^\W\d_]+", text.lower()))


@dataclass(frozen=True, slots=True)
class Haystack:
    """Token ids, and the places among them where a sentence has ended (the first place is 0)."""

    token_ids: NDArray[np.int64]
    ends: NDArray[np.int64]
    rounds: int
    """How many times the texts were gone through: 1 unless they are too short."""

    @classmethod
    def build(cls, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, tokens: int) -> Haystack:
        """At least so many ``tokens``: one text after the other, from the start again if they are too few.

        Raises InputError for a tokenizer that does not say where its tokens stand in a text.
        """
        if not tokenizer.is_fast:
            raise InputError(f"{type(tokenizer).__name__} does not say where sentences end: no haystack")
        parts: list[NDArray[np.int64]] = []
        ends, size, rounds = [np.zeros(1, dtype=np.int64)], 0, 0
        for number in itertools.count():
            rounds += number % len(texts) == 0
            # a token of any tokenizer in use has under 64 characters on average
            text = texts[number % len(texts)].strip()[: 64 * (tokens - size)] + "\n\n"
            read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            starts = np.array(read["offset_mapping"], dtype=np.int64).reshape(-1, 2)[:, 0]
            over = [match.end() for match in _SENTENCE_END.finditer(text)]
            ends.append(size + np.searchsorted(starts, over))
            parts.append(np.array(read["input_ids"], dtype=np.int64))
            size += len(parts[-1])
            if size >= tokens:
                return cls(np.concatenate(parts), np.unique(np.concatenate(ends)), rounds)
        raise AssertionError("a text has tokens")

    def place(self, depth: float, tokens: int) -> int:
        """The end of a sentence nearest to the fraction ``depth`` of the first ``tokens``."""
        wanted = round(depth * tokens)
        ends = self.ends[self.ends <= tokens]
        nearest = int(ends[np.abs(ends - wanted).argmin()])
        return nearest if abs(nearest - wanted) <= FAR else wanted


@dataclass(frozen=True, slots=True)
class Trial:
    """A needle to hide at a depth. ``room``: tokens for the answer."""

    haystack: Haystack
    hidden: Hidden
    depth: float
    room: int

    def prompt(self, tokenizer: PreTrainedTokenizerBase, length: int) -> list[int]:
        """``length - room`` token ids. Raises InputError when there is no room for a haystack."""
        start = start_tokens(tokenizer) + encode(tokenizer, TASK)
        needles = [encode(tokenizer, f"\n{sentence}\n") for sentence in self.hidden.sentences]
        question = encode(tokenizer, "\n\n" + self.hidden.question)
        tokens = length - self.room - len(start) - sum(map(len, needles)) - len(question)
        if tokens < 0:
            raise InputError(
                f"a prompt with its needle needs {length - tokens} tokens with this tokenizer, more than the "
                f"length {length}: evaluate longer lengths"
            )
        step = (1 - self.depth) / len(needles)
        places = [self.haystack.place(self.depth + number * step, tokens) for number in range(len(needles))]
        edges = itertools.pairwise([0, *places, tokens])
        found = start
        for (first, end), after in zip(edges, [*needles, question], strict=True):
            found += self.haystack.token_ids[first:end].tolist() + after
        return found


@dataclass(frozen=True, kw_only=True)
class Needle:
    """``trials`` needles of each of ``kinds`` at each of ``lengths`` and ``depths`` (evenly from 0 to 1).

    The same seed hides the same in the same places for every model. ``texts`` are the haystack.
    """

    lengths: Sequence[int]
    depths: int
    kinds: Sequence[str]
    trials: int
    seed: int
    texts: Sequence[str]
    source: dict[str, Any] = field(default_factory=dict)
    """Where the texts come from, for the record."""
    notes: list[str] = field(default_factory=list, init=False)
    """What a reader of the scores should know, from the items on."""
    name: str = "needle"

    @property
    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        texts = {"count": len(self.texts), "hash": fingerprint([fingerprint(text) for text in self.texts])}
        return {
            "lengths": sorted(self.lengths),
            "depths": self.depths,
            "kinds": list(self.kinds),
            "trials": self.trials,
            "seed": self.seed,
            "texts": texts,
            **self.source,
        }

    def items(self, reader: Reader) -> list[Item]:
        """Of each length, the deepest needles first: what stands before the next ones is known then.

        Raises InputError for a kind that is none, no text, and a length without room for the fixed parts.
        """
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise InputError(f"--kinds {','.join(self.kinds)!r}: must be of {', '.join(KINDS)}")
        if not any(text.strip() for text in self.texts):
            raise InputError("no text for a haystack: name some with --data")
        haystack = Haystack.build(self.texts, reader.tokenizer, max(self.lengths))
        if haystack.rounds > 1:
            self.notes[:] = [f"the haystack has its texts {haystack.rounds} times over: they are too short"]
        found = []
        for length, kind in itertools.product(sorted(self.lengths), self.kinds):
            numbers = list(itertools.product(range(self.depths), range(self.trials)))
            code = KINDS.index(kind)
            drawn = [
                Hidden.draw(kind, np.random.default_rng([self.seed, length, code, *each])) for each in numbers
            ]
            room = SLACK + max(len(encode(reader.tokenizer, " " + each.answer)) for each in drawn)
            for (place, trial), hidden in zip(numbers, drawn, strict=True):
                what = Trial(haystack, hidden, self.places[place], room)
                found.append(Item(f"{length}/{kind}/{place}/{trial}", length, what))
        for each in found:
            if each.length == min(self.lengths):
                each.what.prompt(reader.tokenizer, each.length)  # raises where there is no room
        return sorted(found, key=lambda each: (each.length, -each.what.depth))

    @property
    def places(self) -> list[float]:
        """The depths."""
        return [round(each, 6) for each in np.linspace(0.0, 1.0, self.depths).tolist()]

    def measure(self, reader: Reader, items: Sequence[Item]) -> list[dict[str, Any]]:
        """Of each trial: the share of the answer that was found, and what the model said."""
        said: dict[str, str] = {}
        for room in {each.what.room for each in items}:
            alike = [each for each in items if each.what.room == room]
            prompts = [each.what.prompt(reader.tokenizer, each.length) for each in alike]
            answers = reader.generate(prompts, room)
            said |= {each.key: answer for each, answer in zip(alike, answers, strict=True)}
        return [{"found": each.what.hidden.share(said[each.key]), "answer": said[each.key]} for each in items]

    def scores(self, model: str, results: dict[str, dict[str, Any]]) -> list[Score]:
        """Of each kind and length: the share found over all depths, then at each."""
        found = []
        for kind, length in itertools.product(self.kinds, sorted(self.lengths)):
            of = {"model": model, "task": self.name, "subtask": kind, "length": length}
            by_depth = [
                [results[f"{length}/{kind}/{place}/{trial}"]["found"] for trial in range(self.trials)]
                for place in range(self.depths)
            ]
            found.append(share_score(list(itertools.chain(*by_depth)), **of))
            for depth, shares in zip(self.places, by_depth, strict=True):
                found.append(share_score(shares, depth=depth, **of))
        return found
