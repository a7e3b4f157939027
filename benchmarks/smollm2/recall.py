"""Synthetic documents to train recall on: facts stated somewhere in a long text and asked for at its end.

    python benchmarks/smollm2/recall.py TOKENS.npz OUT.npz|OUT.jsonl --model FOLDER_OR_GGUF --count 4000

The filler is a passage of a novel, some sentences repeated over and over, or lines of records. A fact links
an entity and an attribute to a value; one to about forty are stated in many wordings, and some or all are
asked in one of many forms, also the model's chat format. In every fifth document passages of the novel are
asked for instead, by their first words. A document is determined by its generator's seed.

Published retrieval tests (passkey, needle in a haystack, RULER, line retrieval) are what the trained models
are judged on. Nothing here is tuned to them: none of their wording, their filler or their keywords may occur
(`FORBIDDEN`; a document in which one does, for instance out of a novel, is drawn again).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import string
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from recall_facts import Draw, Fact
from recall_words import (
    BACKWARDS,
    CHAT_ANSWERS,
    CHAT_LIST,
    CHAT_LIST_TASKS,
    CHAT_QUESTIONS,
    FORMS,
    LINES,
    NOUNS,
    PLAIN_SENTENCES,
    QUOTE_FORMS,
    RECORDS,
    STATEMENTS,
    SYSTEMS,
    TASKS,
    TURN,
)
from transformers import PreTrainedTokenizerBase

from skipwise.models.load import find_checkpoint, load_tokenizer

FORBIDDEN = """pass key, passkey, pass-key, magic number, special magic, grass is green, sky is blue, sun
is yellow, here we go, there and back again, needle, haystack, san francisco, dolores
park, best thing to do, coded text, one of the special, info hidden, quiz you,
register_content"""
FORBIDDEN_PARTS = FORBIDDEN.replace("\n", " ").split(", ")
QUOTES_SHARE, REPEATED_SHARE, RECORDS_SHARE = 0.2, 0.25, 0.1
MOST_FACTS = 40
LAST_PLACE = 0.95
"""No fact stands behind this part of the filler."""


@dataclass
class Document:
    """Token ids, and what a test wants to know about them."""

    ids: np.ndarray
    questions_at: int
    """Index of the first token of the questions."""
    answers: list[str]
    """What is to be said after ``questions_at`` and stands before it."""
    facts: list[tuple[int, int]] = field(default_factory=list)
    """First token and end of each statement."""


@dataclass(frozen=True)
class Borders:
    """By token id: what stands at the end of a sentence or line, and what may follow it.

    Many novels break their lines within sentences, so a line counts where it ends like a sentence or record.
    """

    ends: np.ndarray
    begins: np.ndarray
    newline: np.ndarray
    titles: np.ndarray
    closes: np.ndarray

    def after(self, ids: np.ndarray) -> np.ndarray:
        """Every index before which a sentence may be inserted, sorted."""
        before, here, behind = ids[:-2], ids[1:-1], ids[2:]
        sentences = self.ends[here] & ~self.titles[before] & self.begins[behind]
        lines = self.newline[here] & self.closes[before]
        return np.flatnonzero(np.where(self.newline[here], lines, sentences)) + 2


@lru_cache(maxsize=4)
def borders_of(tokenizer: PreTrainedTokenizerBase) -> Borders:
    """The tables of a tokenizer."""
    texts = tokenizer.batch_decode([[each] for each in range(len(tokenizer))])
    closing = (*".!?\"':>})];\n", *string.digits)
    return Borders(
        ends=np.array([text.endswith((".", "!", "?")) for text in texts]),
        begins=np.array([text.startswith((" ", "\n")) for text in texts]),
        newline=np.array([text.endswith("\n") for text in texts]),
        titles=np.array([text.strip() in {"Mr", "Mrs", "Dr", "St", "Messrs"} for text in texts]),
        closes=np.array([text.endswith(closing) for text in texts]),
    )


class Maker:
    """One document in the making: its random generator, tokenizer, filler and"""

    def __init__(
        self, rng: np.random.Generator, tokenizer: PreTrainedTokenizerBase, novels: list[np.ndarray]
    ):
        self.rng, self.tokenizer, self.novels = rng, tokenizer, novels
        self.borders = borders_of(tokenizer)
        self.ends = np.cumsum([len(novel) for novel in novels])
        snippet = self.decode(self.passage(700))
        found = re.findall(r"\b[a-z]{5,10}\b", snippet)[1:-1]
        self.draw = Draw(rng, found or NOUNS)
        self.sentences = [
            " ".join(each.split())
            for each in re.split(r"(?<=[.!?])\s+", snippet)[1:-1]
            if 20 < len(each) < 200
        ]

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of each text."""
        encoded = self.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        return [np.array(each.ids, dtype=np.int64) for each in encoded]

    def decode(self, ids: np.ndarray) -> str:
        """The text of token ids."""
        return str(self.tokenizer.backend_tokenizer.decode(ids.tolist(), skip_special_tokens=False))

    def passage(self, length: int) -> np.ndarray:
        """``length`` tokens of the novels from a random place; of several novels where they are short."""
        pieces, missing = [], length
        while missing > 0:
            place = self.rng.integers(self.ends[-1])
            novel = self.novels[int(np.searchsorted(self.ends, place, side="right"))]
            start = self.rng.integers(0, max(len(novel) - missing, 0) + 1)
            pieces.append(novel[start : start + missing].astype(np.int64))
            missing -= len(pieces[-1])
        return np.concatenate(pieces)

    def repeated(self, length: int) -> np.ndarray:
        """A handful of sentences over and over, in order or at random."""
        pool = self.sentences if self.draw.chance(0.5) and self.sentences else PLAIN_SENTENCES
        some = [self.draw.one(pool) for _ in range(self.rng.integers(2, 13))]
        gap = self.draw.one([" ", " ", "\n"])
        ids = self.encode([gap + sentence for sentence in some])
        count = length // min(len(each) for each in ids) + 1
        order = (
            np.arange(count) % len(ids) if self.draw.chance(0.5) else self.rng.integers(len(ids), size=count)
        )
        return np.concatenate([ids[each] for each in order])

    def records(self, length: int) -> np.ndarray:
        """Lines of one kind of record or code."""
        template, names = self.draw.one(RECORDS), [self.draw.syllables(2) for _ in range(24)]
        most, number = 10 ** self.draw.below(2, 7), self.draw.below(1000, 5000)
        pieces: list[np.ndarray] = []
        while sum(map(len, pieces)) < length:
            lines = []
            for n, a, b in self.rng.integers(most, size=(100, 3)).tolist():
                fields = {"name": names[a % 24], "other": names[b % 24], "x": f"{b:06x}"}
                lines.append(template.format(i=number, n=n, m=a % 60, s=b % 60, **fields) + "\n")
                number += 1
            pieces += self.encode(lines)
        return np.concatenate(pieces)

    def filler(self, length: int, *, novel: bool = False) -> np.ndarray:
        """``length`` tokens that end where a sentence or line does, as far as possible."""
        kind, more = (1.0 if novel else self.rng.random()), length + 128
        if kind < REPEATED_SHARE:
            ids = self.repeated(more)
        else:
            ids = self.records(more) if kind < REPEATED_SHARE + RECORDS_SHARE else self.passage(more)
        ids = ids[:more]
        places = self.borders.after(ids)
        end = int(places[-1]) if len(places) and places[-1] >= length else len(ids)
        return ids[end - length : end]

    def facts(self, count: int) -> list[Fact]:
        """``count`` facts or a few less, each with its statement; no two values are the same."""
        found: dict[tuple[str, str], Fact] = {}
        values: set[str] = set()
        wordings = [self.draw.one(STATEMENTS + LINES) for _ in range(self.rng.integers(1, 6))]
        free = self.draw.chance(0.7)
        for entity, attribute, value in self.draw.facts(count):
            template = self.draw.one(STATEMENTS + LINES if free else wordings)
            fact = Fact(entity, attribute, value, own_line=template in LINES)
            if (entity, attribute) not in found and value not in values:
                fact.statement = fact.fill(template)
                found[entity, attribute] = fact
                values.add(value)
        return list(found.values())

    def chat(self, turns: list[tuple[str, str]]) -> tuple[str, str]:
        """Start of the document and text of the questions, in the model's chat format.

        The whole text is the first message's beginning, or stands before the chat.
        """
        spoken = [
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
            for question, answer in turns
        ]
        if self.draw.chance(0.3):
            return "", "\n\n" + "".join(spoken)
        opening = self.draw.one(SYSTEMS) + "<|im_start|>user\n" + self.draw.one(TASKS)
        return opening, "\n\n" + "".join(spoken).removeprefix("<|im_start|>user\n")

    def ask(self, facts: list[Fact]) -> tuple[str, str, list[str]]:
        """Start of the document, text of the questions, and the answers."""
        if self.draw.chance(0.4):
            if self.draw.chance(0.25):
                names, lines = ("\n".join(fact.fill(each) for fact in facts) for each in CHAT_LIST)
                turns = [(self.draw.one(CHAT_LIST_TASKS) + names, lines)]
            else:
                question, answer = self.draw.one(CHAT_QUESTIONS), self.draw.one(CHAT_ANSWERS)
                turns = [(fact.fill(question), fact.fill(answer)) for fact in facts]
            return (*self.chat(turns), [fact.value for fact in facts])
        header, item, between, footer = self.draw.one(FORMS)
        asked = between.join(fact.fill(item, i + 1) for i, fact in enumerate(facts))
        backwards = item.startswith(BACKWARDS)
        return "", header + asked + footer, [fact.entity if backwards else fact.value for fact in facts]

    def recall(self, length: int) -> Document:
        """A document of facts."""
        count = int(math.exp(self.rng.uniform(0, math.log(MOST_FACTS + 1))))
        while True:
            facts = self.facts(count)
            asked = self.rng.permutation(len(facts))
            if self.draw.chance(0.5):
                asked = asked[: self.rng.integers(1, len(facts) + 1)]
            opening, questions, answers = self.ask([facts[each] for each in asked])
            first, last, *bare = self.encode([opening, questions, *(fact.statement for fact in facts)])
            taken = len(first) + len(last) + sum(len(each) + 3 for each in bare)
            if taken < 0.6 * length:
                return self.place(length, facts, (first, last, answers), taken)
            count = max(1, count // 2)

    def place(
        self, length: int, facts: list[Fact], ends: tuple[np.ndarray, np.ndarray, list[str]], taken: int
    ) -> Document:
        """The facts in the filler, at random depths; what is too long is cut from the filler's start."""
        first, last, answers = ends
        filler = self.filler(length)
        places = self.borders.after(filler)
        latest = taken + LAST_PLACE * (length - taken)
        places = places[(places >= taken) & (places <= latest)]
        if not len(places):
            places = np.array([(taken + length) // 2])
        after_line = self.borders.newline[filler[places - 1]]
        chosen = []
        for fact in facts:
            allowed = places[after_line] if fact.own_line and after_line.any() else places
            nearest = np.searchsorted(allowed, self.rng.uniform(taken, latest))
            chosen.append(int(allowed[min(int(nearest), len(allowed) - 1)]))
        order = sorted(range(len(facts)), key=chosen.__getitem__)
        texts = []
        for each in order:
            fact, line_before = facts[each], self.borders.newline[filler[chosen[each] - 1]]
            before = "" if line_before else "\n" if fact.own_line else " "
            texts.append(before + fact.statement + ("\n" if line_before or fact.own_line else ""))
        pieces, spans, done, size = [], [], 0, 0
        for each, ids in zip(order, self.encode(texts), strict=True):
            pieces += [filler[done : chosen[each]], ids]
            size += chosen[each] - done + len(ids)
            spans.append((size - len(ids), size))
            done = chosen[each]
        text = np.concatenate([*pieces, filler[done:]])
        questions_at = length - len(last)
        shift = questions_at - len(text)
        ids = np.concatenate([first, text[len(first) - shift :], last])
        return Document(ids, questions_at, answers, [(start + shift, end + shift) for start, end in spans])

    def quote(self, length: int) -> Document:
        """A document whose own passages are asked for by their first"""
        filler = self.filler(length, novel=True)
        count = int(self.rng.integers(1, max(2, min(8, length // 700) + 1)))
        chat, form = self.draw.chance(0.4), self.draw.one(QUOTE_FORMS)
        for _ in range(20):
            low = min(120 + 200 * count, length // 2)
            places = self.borders.after(filler)
            places = places[(places >= low) & (places < length - 90)]
            if len(places):
                spans = [self.span(filler, int(place)) for place in self.rng.permutation(places)[:count]]
                text = self.decode(filler[low:])
                spans = [
                    (head, rest) for head, rest in spans if text.count(head) == 1 and "\ufffd" not in rest
                ]
                asked = [form.format(head=head, rest=rest) for head, rest in spans]
                turns = [(task, answer.strip()) for task, answer in (each.split(TURN) for each in asked)]
                opening, questions = "", "\n\n" + "\n\n".join(each.replace(TURN, "") for each in asked)
                if chat and turns:
                    opening, questions = self.chat(turns)
                first, last = self.encode([opening, questions])
                if spans and len(first) + len(last) <= low:
                    ids = np.concatenate([first, filler[len(first) + len(last) :], last])
                    return Document(ids, length - len(last), [rest.strip() for _, rest in spans])
            filler, count = self.filler(length, novel=True), max(1, count - 1)
        return self.recall(length)

    def span(self, filler: np.ndarray, place: int) -> tuple[str, str]:
        """The first 6 to 12 words of the passage at ``place``, and its next 20 to 60 tokens."""
        starts = np.flatnonzero(self.borders.begins[filler[place + 1 : place + 31]]) + place + 1
        head = int(starts[min(int(self.rng.integers(5, 12)), len(starts) - 1)]) if len(starts) else place + 8
        end = head + int(self.rng.integers(20, 61))
        opening, both = (self.decode(filler[place:each]) for each in (head, end))
        skipped = len(opening) - len(opening.lstrip())
        return opening.strip(), both[skipped + len(opening.strip()) :].rstrip()


def forbidden(text: str) -> bool:
    """Whether a published test's wording occurs, in whatever case and however its lines are broken."""
    plain = text.replace("\n", " ")
    lower = plain.lower()
    return "VAR " in plain or any(each in lower for each in FORBIDDEN_PARTS)


def make_document(
    rng: np.random.Generator, tokenizer: PreTrainedTokenizerBase, length: int, novels: list[np.ndarray]
) -> Document:
    """A document that holds nothing forbidden, with what a test wants to know."""
    while True:
        maker = Maker(rng, tokenizer, novels)
        document = (maker.quote if maker.draw.chance(QUOTES_SHARE) else maker.recall)(length)
        if not forbidden(maker.decode(document.ids)):
            return document


def recall_document(
    rng: np.random.Generator, tokenizer: PreTrainedTokenizerBase, length: int, novels: list[np.ndarray]
) -> np.ndarray:
    """Exactly ``length`` (512 or more) token ids of one document; ``novels`` are 1-D arrays of token ids."""
    return make_document(rng, tokenizer, length, novels).ids


def as_text(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray, length: int) -> str | None:
    """The end of ``ids`` as text of exactly ``length`` tokens; None if no cut gives that many.

    Text that is tokenized again may have a token more or less, so ``ids`` should be some more than asked for.
    They are cut at their start, where the filler is.
    """
    kept = length
    for _ in range(10):
        text = str(tokenizer.decode(ids[-kept:].tolist()))
        found = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if found == length:
            return text
        kept += length - found
    return None


def main() -> None:
    """Write the documents."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokens", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", type=int, default=0, help="of --parts that processes make side by side")
    parser.add_argument("--parts", type=int, default=1)
    options = parser.parse_args()
    tokenizer = load_tokenizer(find_checkpoint(options.model))
    tokens = np.load(options.tokens)
    novels = np.split(tokens["train"], np.cumsum(tokens["train_lengths"])[:-1])
    spare = 32 if options.out.suffix == ".jsonl" else 0
    rows = [
        recall_document(np.random.default_rng([options.seed, i]), tokenizer, options.length + spare, novels)
        for i in range(options.part, options.count, options.parts)
    ]
    if spare:
        texts = filter(None, (as_text(tokenizer, row, options.length) for row in rows))
        options.out.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    else:
        lengths = np.array([len(row) for row in rows])
        np.savez_compressed(
            options.out, recall=np.concatenate(rows).astype(np.uint16), recall_lengths=lengths
        )
    print(len(rows), "documents,", options.out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
