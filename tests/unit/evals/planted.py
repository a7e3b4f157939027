"""Models whose answers are known, to judge the judges."""

import numpy as np

from skipwise.scores import Subject


class PlantedReader:
    """A `Reader` that answers ``say(prompt token ids)`` and loses ``lose(row)`` nats on every token."""

    subject = Subject(name="planted")

    def __init__(self, tokenizer, *, say=None, lose=None, rows=3):
        self.tokenizer = tokenizer
        self.say = say
        self.lose = lose
        self.rows = rows
        self.asked = []

    def at_once(self, length):
        return self.rows

    def losses(self, rows, first=1):
        assert len({len(row) for row in rows}) == 1
        assert 1 <= first < len(rows[0])
        self.asked += [list(map(int, row)) for row in rows]
        return [np.asarray(self.lose(np.asarray(row)), dtype=np.float64)[first:] for row in rows]

    def generate(self, prompts, new_tokens):
        self.asked += [list(map(int, prompt)) for prompt in prompts]
        return [self.say(prompt) for prompt in prompts]
