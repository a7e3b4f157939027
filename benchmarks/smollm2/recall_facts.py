"""Random facts for recall documents: who or what, which attribute, which value, and how it is said."""

from __future__ import annotations

import string
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from recall_words import (
    ADJECTIVES,
    ATTRIBUTES,
    COLOURS,
    DIGITS,
    FIRST,
    FOODS,
    KINDS,
    LAST,
    MONTHS,
    NOUNS,
    RECORD_NAMES,
    SYLLABLES,
    TOWN_ENDS,
)

T = TypeVar("T")


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
