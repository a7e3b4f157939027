"""Question answering (RULER section 3.4): a question about one of many documents of a data set.

Rules of `scripts/data/synthetic/qa.py`: the question's own documents, then others of the same article
(SQuAD), then any others, all in random order; when there are no more, they come again. Sample number i asks
question number i. The data sets are files that RULER's `download_qa_dataset.sh` downloads: SQuAD's
`dev-v2.0.json` (Rajpurkar et al. 2018) and HotpotQA's `hotpot_dev_distractor_v1.json` (Yang et al. 2018).
Unit of size: a document.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skipwise.errors import InputError
from skipwise.evals.ruler.recipe import Draft, Recipe
from skipwise.evals.ruler.templates import DOCUMENT, QUESTION


@dataclass(frozen=True, slots=True)
class Question:
    """``own`` and ``near``: numbers of documents; the answer is in the first ones."""

    text: str
    answers: tuple[str, ...]
    own: tuple[int, ...]
    near: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Questions in the order of their file, and all documents of it, each once, sorted."""

    path: Path
    questions: Sequence[Question]
    documents: Sequence[str]


def question_recipe(questions: QuestionSet, index: int, rng: np.random.Generator) -> Recipe:
    """Prompts with question ``index``. Raises InputError when there is none."""
    if index >= len(questions.questions):
        raise InputError(
            f"{questions.path} has {len(questions.questions)} questions with an answer: ask for fewer samples"
        )
    question, documents = questions.questions[index], questions.documents
    kept = {*question.own, *question.near}
    far = [number for number in range(len(documents)) if number not in kept]
    order = [*question.own, *rng.permutation(question.near).astype(int), *rng.permutation(far).astype(int)]
    letters = np.cumsum([0, *(1 + len(documents[number]) for number in order)])
    seed = int(rng.integers(2**62))

    def weight(size: int) -> float:
        times, rest = divmod(size, len(order))
        return float(times * letters[-1] + letters[rest])

    def build(size: int) -> Draft:
        shown = np.resize(order, size)  # repeats them
        np.random.default_rng([seed, size]).shuffle(shown)
        context = "\n\n".join(
            DOCUMENT.format(number=number, document=documents[each]) for number, each in enumerate(shown, 1)
        )
        return Draft(
            QUESTION.prompt.format(context=context, query=question.text), QUESTION.prefix, question.answers
        )

    return Recipe(len(question.own), build, weight=weight)


def read_squad(path: str | Path) -> QuestionSet:
    """SQuAD 2.0: questions that can be answered, each with its paragraph and the others of the article."""
    with _Reading(path, "SQuAD's dev-v2.0.json") as file:
        articles = [article["paragraphs"] for article in file.load()["data"]]
        documents = sorted({paragraph["context"] for article in articles for paragraph in article})
        number = {document: place for place, document in enumerate(documents)}
        questions = []
        for article in articles:
            near = dict.fromkeys(number[paragraph["context"]] for paragraph in article)
            for paragraph in article:
                own = number[paragraph["context"]]
                questions += [
                    Question(
                        each["question"],
                        tuple(dict.fromkeys(answer["text"] for answer in each["answers"])),
                        (own,),
                        tuple(place for place in near if place != own),
                    )
                    for each in paragraph["qas"]
                    if not each["is_impossible"]
                ]
    return QuestionSet(Path(path), questions, documents)


def read_hotpotqa(path: str | Path) -> QuestionSet:
    """HotpotQA in the distractor setting: questions with their ten paragraphs, of which two are needed."""
    with _Reading(path, "HotpotQA's hotpot_dev_distractor_v1.json") as file:
        rows = [
            (row["question"], row["answer"], [f"{title}\n{''.join(text)}" for title, text in row["context"]])
            for row in file.load()
        ]
    documents = sorted({document for *_, own in rows for document in own})
    number = {document: place for place, document in enumerate(documents)}
    questions = [
        Question(question, (answer,), tuple(dict.fromkeys(number[document] for document in own)))
        for question, answer, own in rows
    ]
    return QuestionSet(Path(path), questions, documents)


class _Reading:
    """Says in one line which file was expected, whatever is wrong with the one that is there."""

    def __init__(self, path: str | Path, expected: str) -> None:
        self.path, self.expected = Path(path), expected

    def load(self) -> Any:
        return json.loads(self.path.read_text(encoding="utf-8"))

    def __enter__(self) -> _Reading:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise InputError(
                f"{self.path} cannot be read ({error.strerror}): give {self.expected}"
            ) from error
        if isinstance(error, (ValueError, KeyError, TypeError)):
            raise InputError(f"{self.path} is not {self.expected}: download that file") from error
