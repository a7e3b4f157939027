"""The words of RULER's prompts, kept as they are because scores compare only between the same prompts.

Source: NVIDIA/RULER, `scripts/data/synthetic/constants.py` (templates, answer prefixes), `niah.py` (needle,
noise, the singular of the template), `qa.py` (documents); Apache-2.0, (c) 2024 NVIDIA CORPORATION. In the
state after 2025-05-13, when "assgined" in the prefix of variable tracking became "assigned".
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Template:
    """A ``prompt`` with fields in braces, and the ``prefix``, which begins the answer for the model."""

    prompt: str
    prefix: str


NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
"""``kind`` in the plural, even where a single value is hidden."""

MANY_NEEDLES = Template(
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What are all the special magic {kind} for {query} mentioned in the provided text?",
    " The special magic {kind} for {query} mentioned in the provided text are",
)

ONE_NEEDLE = Template(
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What is the special magic {kind} for {query} mentioned in the provided text?",
    " The special magic {kind} for {query} mentioned in the provided text is",
)
"""``kind`` in the singular: one value is asked for."""

VARIABLES = Template(
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {query} in the text above.",
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables are "
    "assigned the value {query}, they are: ",
)

COMMON_WORDS = Template(
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?",
    " Answer: The top 10 words that appear most often in the list are:",
)

CODED_WORDS = Template(
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. {context}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?",
    " Answer: According to the coded text above, the three most frequently appeared words are:",
)

DOCUMENT = "Document {number}:\n{document}"

QUESTION = Template(
    "Answer the question based on the given documents. Only give me the answer and do not output any other "
    "words.\n\nThe following are given documents.\n\n{context}\n\nAnswer the question based on the given "
    "documents. Only give me the answer and do not output any other words.\n\nQuestion: {query}",
    " Answer:",
)
