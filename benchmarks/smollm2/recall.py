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
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
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


def _words(text: str) -> list[str]:
    """The words of a text; an underscore stands for a space."""
    return [each.replace("_", " ") for each in text.split()]


T = TypeVar("T")
TURN = "\0"
"""Between question and answer in the forms of quotes."""

FIRST = _words(
    """Anna Ben Carla David Elena Frank Grace Henry Ines Jonas Karim Laura Miguel Nora Oscar Priya Ruth
Samir Tomas Ursula Victor Wanda Yusuf Zoe Mara Leo Hana Pavel Aisha Colin Dora Emil Fatima
George Mei Olu"""
)
LAST = _words(
    """Adams Baker Castillo Dubois Evans Fischer Gupta Haddad Ivanov Jensen Keller Lopez Moreau
Nakamura Okafor Parker Quinn Rossi Schmidt Turner Ueda Varga Walsh Young Zhang Brown Cohen
Mensah Novak Larsen"""
)
SYLLABLES = _words(
    """ba ben bra cal cor da del dor el fa fen gal gra hal har il ja jun ka kel lan lor ma mer mir na
nor ol or pel per qui ra ren ros sa sel shi ta tel tor ul va vel vin wa wil ya yor zan zel"""
)
TOWN_ENDS = _words("""ton ford mouth wick haven bury field dale stad burg ville minster""")
ADJECTIVES = _words(
    """blue old small heavy wooden broken silver narrow round painted empty striped borrowed iron
yellow folded dusty green tall rusty quiet second cracked foreign leather polished crooked spare"""
)
NOUNS = _words(
    """kettle clock ladder basket piano lantern suitcase mirror bicycle violin teapot cabinet umbrella
typewriter barrel compass drum carpet telescope anchor saddle bottle chair globe stove statue
wagon printer boiler vase"""
)
COLOURS = _words(
    """red dark_blue olive crimson pale_green ochre turquoise black ivory violet silver brown orange
maroon teal beige lilac bright_yellow grey copper"""
)
FOODS = _words(
    """lentils rice dumplings roast_duck mushrooms cabbage noodles trout pancakes barley pears
chestnuts beans goat_cheese onions lamb pumpkin plums spinach"""
)
MONTHS = _words("""January February March April May June July August September October November December""")
RECORD_NAMES = _words("""parcel order server file vessel case ticket flight patient account shipment train""")
DIGITS = (1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 8, 8, 9)
"""How many digits a number has."""

ATTRIBUTES = {
    "person": """number: locker number, membership number, badge number, room number, extension, test score,
        PIN, account number, telephone number, employee number, queue number, lucky number
        number: customer number, door code, bicycle lock combination, alarm code
        size: shoe size, hat size, seat
        date: birthday, wedding day, day of arrival, next appointment
        code: ticket code, licence plate, library card, booking reference
        name: dentist, tutor, landlord, best friend
        phrase: nickname, password, favourite book, secret sign
        dish: favourite dish, usual breakfast
        colour: favourite colour, coat colour
        street: street, home address
        money: invoice total, monthly rent, debt
        hex: session token, device id
        uuid: user id
        word: middle word, answer, codename""",
    "thing": """number: serial number, weight in grams, catalogue number, inventory number, lot number
        number: stock number, price in pence
        size: shelf, drawer
        date: date of purchase, last inspection
        code: batch code, tag, storage box
        name: owner, maker, previous owner
        colour: label colour, lining
        money: price, insured value, repair bill
        hex: checksum, chip id
        uuid: asset id
        word: label, hidden inscription
        phrase: inscription, hiding place""",
    "town": """number: population, postcode, dialling code, founding year, number of houses
        number: mine depth, elevation, census number
        date: market day, founding day
        code: station code, map square
        name: mayor, patron, postmaster
        word: motto, old name
        phrase: town motto, local legend
        dish: local dish
        colour: flag colour
        street: main street
        money: yearly budget, bridge toll""",
    "record": """number: weight, reference number, confirmation number, port, sequence number, size in bytes
        number: access number, counter
        size: gate, priority
        date: due date, date of departure
        code: route, clearance code, status code
        name: contact, recipient, inspector
        hex: checksum, commit, key id
        uuid: request id, trace id
        word: state, passphrase hint
        phrase: comment, contents
        money: total, fee""",
}
"""What can be said about a kind of entity, by the kind of value it has."""

KINDS = {
    kind: [
        (value.strip(), [each.strip() for each in names.split(",")])
        for value, names in re.findall(r"(\w+):([^:]+)(?=\n\s+\w+:|$)", listed)
    ]
    for kind, listed in ATTRIBUTES.items()
}
"""(kind of value, attributes) by the kind of entity."""

STATEMENTS = """The {a} of {e} is {v}.
{E}'s {a} is {v}.
Keep in mind that the {a} of {e} is {v}.
As for {e}, the {a} is {v}.
It had been written down that the {a} of {e} was {v}.
By the way, {e}'s {a} is {v}.
Somebody asked about {e}, and the answer was plain: the {a} is {v}.
"What is {e}'s {a}?" she asked. "It is {v}," he said.
"Mark my words," said the clerk, "the {a} of {e} is {v}."
They chose {v} as the {a} of {e}.
For {e} the {a} given was {v}.
The {a} of {e} is {v}. Yes, {v}.
The {a} of {e} is {v}. I say it again: {e}'s {a} is {v}.
If anyone should want the {a} of {e}, tell them {v}.
(The {a} of {e}: {v}.)
You will find the {a} of {e} to be {v}.
I had it from a friend that the {a} of {e} is {v}.
Few people knew it, but the {a} of {e} was {v}.
When it comes to {e}, {v} is the {a}.
Do not forget: {e}, {a}, {v}.""".splitlines()
"""Sentences that state a fact. e: the entity, a: the attribute, v: the value; E, A: with a capital letter."""

LINES = r"""Note: the {a} of {e} is {v}.
{E}: {a} {v}
{e} | {a} | {v}
{{"name": "{e}", "{k}": "{v}"}}
{{"{e}": {{"{a}": "{v}"}}}}
{e} / {a} -> {v}
{k}({e}) = {v}
{X}: {v}
MEMO. To: the office. Subject: {a} of {e}. Text: {v}.
- {e}, {a}: {v}
* **{A}** ({e}): `{v}`
{e} (n.), {a}: {v}.
record["{e}"]["{k}"] = "{v}"
{e},{a},{v}
09:14 INFO set {a} of {e} to {v}
Question: the {a} of {e}? Answer: {v}.
<entry name="{e}" {k}="{v}"/>
Reminder: {e} - {a} - {v}
{a} -> {e} -> {v}
{E}\t{a}\t{v}
P.S. The {a} of {e}, which you wanted, is {v}.
[{e}] {k} = {v}""".replace(r"\t", "\t").splitlines()
"""The same as lines of their own; k: the attribute with underscores, X: in capitals."""

FORMS = [
    ("\n\n", "The {a} of {e} is {v}.", " ", "\n"),
    ("\n\n", "The {a} of {e} is {v}", "\n", "\n"),
    ("\n\nTo sum up: ", "{E}'s {a} is {v}.", " ", "\n"),
    ("\n\nOnce more, what was said above.\n", "{s}", "\n", "\n"),
    ("\n\n", "Q: What is the {a} of {e}?\nA: {v}", "\n\n", "\n"),
    ("\n\nQuestions about the text.\n\n", "Question: What is {e}'s {a}?\nAnswer: {v}", "\n", "\n"),
    ("\n\n", "What is {e}'s {a}? It is {v}.", " ", "\n"),
    ("\n\n", "What is the {a} of {e}? The {a} of {e} is {v}.", "\n", "\n"),
    ("\n\nQUIZ\n\n", "{i}. {A} of {e}? {v}", "\n", "\n"),
    ("\n\n| name | what | value |\n|---|---|---|\n", "| {e} | {a} | {v} |", "\n", "\n"),
    ("\n\nThe same as JSON:\n\n{\n", '  "{a} of {e}": "{v}"', ",\n", "\n}\n"),
    ("\n\nA list of what we know:\n\n", "- {a} of {e}: {v}", "\n", "\n"),
    ("\n\n", '"And the {a} of {e}?"\n"{v}."', "\n", "\n"),
    ("\n\nTEST. Fill the gaps.\n\n", "{i}) The {a} of {e} is ____. Solution: {v}", "\n", "\n"),
    ("\n\n", '>>> record["{e}"]["{k}"]\n\'{v}\'', "\n", "\n"),
    ("\n\nFrom the value to its owner:\n", "{A} {v} belongs to {e}.", "\n", "\n"),
    ("\n\nname;{what};value\n".replace("{what}", "attribute"), "{e};{a};{v}", "\n", "\n"),
]
"""Ways to ask: header, item (i: its number, s: the statement), what stands between items, footer."""

BACKWARDS = "{A} {v} belongs to"
CHAT_QUESTIONS = """What is the {a} of {e}?
What is {e}'s {a}?
Tell me the {a} of {e}.
According to the text, what is the {a} of {e}?
Look up the {a} of {e} in the text above.
{E}: which {a}? Answer with the value only.""".splitlines()
CHAT_ANSWERS = ["{v}", "{v}", "The {a} of {e} is {v}.", "It is {v}.", "{E}'s {a} is {v}."]
CHAT_LIST = ("- {a} of {e}", "- {a} of {e}: {v}")
CHAT_LIST_TASKS = [
    "Complete this list from the text.\n",
    "Find these in the text:\n",
    "Give the value of each:\n",
]
SYSTEMS = [
    "",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n",
]
TASKS = ["", "Read this text.\n\n", "Here is a long document; my questions follow it.\n\n", "Text:\n"]
QUOTE_FORMS = [
    'As it was written above: "{head}\0{rest}"',
    'Continue the passage that begins with "{head}".\0\n{head}{rest}',
    'How does the passage "{head} ..." go on?\0 {head}{rest}',
    "Repeat word for word what follows: {head}\0{rest}",
    "Find the sentence that starts like this and copy it: {head} ...\0\n> {head}{rest}",
    'Quotation ("{head} ..."):\0\n"{head}{rest}"',
]
RECORDS = [
    "{name}_{i}: {n}",
    '{{"id": {i}, "name": "{name}", "value": {n}, "ok": true}}',
    "{i},{name},{other},{x},{n}",
    "2031-04-07 12:{m:02}:{s:02} INFO {name}: {other} took {n}",
    "{other}.{name}[{i}] = {n};",
    "def {name}_{i}(x): return x + {n}",
    "{name} {other} {i}: {n} pieces, row {m}.",
    "<item id='{i}' name='{name}' x='{x}'>{n}</item>",
]

PLAIN_SENTENCES = re.findall(
    r"[A-Z][^.]+\.",
    """The train was late again. Nobody had closed the window. She put the cups back on the shelf. A dog
barked behind the house. The meeting lasted until noon. He forgot his hat on the bench. Two boats
lay in the harbour. The baker opened his shop early. It rained for most of the week. The children
counted the steps. My uncle keeps bees. The stairs creaked at night. Somebody had moved the table.
The letter came on a Tuesday. We walked as far as the mill. The soup was too hot to eat. Her brother
repairs clocks. The road bends to the left here. Old maps hung on the wall. They sold apples by the
gate. The lamp went out twice. He read the page slowly. The teacher wiped the board. A cart stood in
the yard. The river was low this year. Every room had a fireplace. The machine hummed all day. She
tied the parcel with string. The guests left before midnight. The key turned with a click. There was
flour on the floor. The band played an old waltz. He paid in small coins. The bridge was closed for
repairs. A cat slept on the ledger. The doctor washed his hands. They painted the fence in spring.
The bell rang three times. Coffee was served in the garden. The office is on the second floor. I
left my umbrella at the library. The horses were tired. A stranger asked for the way. The tailor
measured the sleeves. Bread was dear that winter. The wind tore at the sails. The twins shared one
bicycle. He whistled while he worked. The museum opens at ten. Our neighbour grows tomatoes. The
printer ran out of paper. She learned to swim last summer. The judge asked for silence. Snow lay on
the roofs. The potter broke a plate. The clerk stamped the form. Three men carried the piano. The
shop sells nails and rope. The engine needs more oil. The actor forgot his line. Everyone waited for
the ferry. The cellar smelled of wine.""".replace("\n", " "),
)


class Draw:
    """Random words, values and facts."""

    def __init__(self, rng: np.random.Generator, found: list[str]) -> None:
        self.rng, self.found = rng, found

    def one(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[int(self.rng.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return bool(self.rng.random() < probability)

    def below(self, start: int, end: int) -> int:
        """An integer of ``start`` to ``end - 1``."""
        return int(self.rng.integers(start, end))

    def letters(self, count: int, alphabet: str) -> str:
        """Letters out of an alphabet."""
        return "".join(alphabet[each] for each in self.rng.integers(len(alphabet), size=count))

    def syllables(self, count: int) -> str:
        """An invented word."""
        return "".join(self.one(SYLLABLES) for _ in range(count))

    def name(self) -> str:
        """A first and a last name, each common or invented."""
        first = self.one(FIRST) if self.chance(0.5) else self.syllables(2).capitalize()
        last = self.one(LAST) if self.chance(0.4) else self.syllables(self.below(2, 4)).capitalize()
        return f"{first} {last}"

    def entity(self, kind: str) -> str:
        """A person, thing, town or record."""
        if kind == "thing":
            return f"the {self.one(ADJECTIVES)} {self.one(NOUNS)}"
        if kind == "town":
            return (self.syllables(self.below(1, 3)) + self.one(TOWN_ENDS)).capitalize()
        if kind == "record":
            label = self.syllables(2) if self.chance(0.4) else str(self.below(10, 10_000))
            return f"{self.one(RECORD_NAMES)} {label}"
        return self.name()

    def value(self, kind: str) -> str:
        """The text of a value of a kind."""
        return str(getattr(self, f"_{kind}")())

    def _number(self) -> int:
        digits = self.one(DIGITS)
        return self.below(10 ** (digits - 1), 10**digits)

    def _size(self) -> int:
        return self.below(2, 100)

    def _hex(self) -> str:
        return self.letters(self.one((4, 6, 8, 8, 12, 16)), "0123456789abcdef")

    def _uuid(self) -> str:
        return str(uuid.UUID(bytes=self.rng.bytes(16), version=4))

    def _code(self) -> str:
        kinds = self.one(("AA-0", "AAA-00", "AA-00-AA", "A0A-A0A", "AAAA", "AAA-AAA-AAA", "0-AAA", "AAAAA-0"))
        alphabets = {"A": string.ascii_uppercase, "0": string.digits}
        parts = [self.letters(2 if each == "0" else 1, alphabets[each]) for each in kinds.replace("-", "")]
        places = iter(parts)
        return "".join("-" if each == "-" else next(places) for each in kinds)

    def _date(self) -> str:
        day, month, year = self.below(1, 29), self.below(1, 13), self.below(1900, 2030)
        named = MONTHS[month - 1]
        return self.one(
            (
                f"{day} {named} {year}",
                f"{year}-{month:02}-{day:02}",
                f"{named} {day}",
                f"{named} {day}, {year}",
            )
        )

    def _colour(self) -> str:
        return self.one(COLOURS)

    def _word(self) -> str:
        return self.one(self.found) if self.chance(0.7) else self.syllables(3)

    def _phrase(self) -> str:
        if self.chance(0.5):
            start = self.below(0, max(len(self.found) - 4, 1))
            return " ".join(self.found[start : start + self.below(2, 5)])
        link = self.one(("and", "under", "without"))
        return f"{self.one(ADJECTIVES)} {self.one(NOUNS)} {link} {self.one(NOUNS)}"

    def _dish(self) -> str:
        return f"{self.one(FOODS)} {self.one(('with', 'and'))} {self.one(FOODS)}"

    def _street(self) -> str:
        kind = self.one(("Street", "Lane", "Road", "Square", "Alley"))
        return f"{self.below(1, 200)} {self.one((self.one(LAST), self.syllables(2).capitalize()))} {kind}"

    def _money(self) -> str:
        return self.one(("${}", "£{}", "{} euros", "{} crowns")).format(
            f"{self.below(100, 2_000_000) / 100:,.2f}"
        )

    def _name(self) -> str:
        return self.name()

    def facts(self, count: int) -> Iterator[tuple[str, str, str]]:
        """Entity, attribute and value of each fact, all different.

        One attribute of many entities, a few entities with many attributes each, or any of any.
        """
        kind, style = self.one(list(ATTRIBUTES)), self.rng.random()
        options = [self.attribute(kind) for _ in range(self.below(1, 4))]
        entities = [self.entity(kind) for _ in range(1 + count // 5)]
        pairs: set[tuple[str, str]] = set()
        values: set[str] = set()
        for _ in range(count):
            if style < 0.45:
                entity, (attribute, what) = self.entity(kind), self.one(options)
            elif style < 0.65:
                entity, (attribute, what) = self.one(entities), self.attribute(kind)
            else:
                other = self.one(list(ATTRIBUTES))
                entity, (attribute, what) = self.entity(other), self.attribute(other)
            value = self.value(what)
            if (entity, attribute) not in pairs and value not in values:
                yield entity, attribute, value
            pairs.add((entity, attribute))
            values.add(value)

    def attribute(self, kind: str) -> tuple[str, str]:
        """An attribute of a kind of entity, and the kind of its value; numbers are the most frequent."""
        what, attributes = self.one(KINDS[kind])
        return self.one(attributes), what


@dataclass
class Fact:
    """The ``value`` of an ``attribute`` of an ``entity``, and the sentence or line that states it."""

    entity: str
    attribute: str
    value: str
    statement: str = ""
    own_line: bool = False

    def fill(self, template: str, number: int = 0) -> str:
        """``template`` with this fact's words in the places of its fields."""
        entity, attribute = self.entity, self.attribute
        return template.format(
            e=entity,
            E=entity[0].upper() + entity[1:],
            a=attribute,
            A=attribute[0].upper() + attribute[1:],
            X=f"{attribute} of {entity}".upper(),
            k=attribute.replace(" ", "_"),
            v=self.value,
            s=self.statement,
            i=number,
        )


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
