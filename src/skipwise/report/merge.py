"""Several `scores.json` -> one, in which no two models have the same name or title."""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from skipwise.errors import InputError
from skipwise.scores import FILE, Scores


def read_all(paths: Sequence[Path]) -> Scores:
    """The scores of these files, or of the folders that hold one, in one.

    A model of one file is that of another if all that is recorded of it is the same and no task was done in
    both. Otherwise models of one name are told apart by where their files lie: ``run-a/pose``. Raises
    InputError for a file that is not understood, and when there are no scores.
    """
    files = list(dict.fromkeys((path / FILE if path.is_dir() else path).resolve() for path in paths))
    parts = [Scores.read(file) for file in files]
    if not any(part.scores for part in parts):
        raise InputError(f"{paths[0]}: holds no scores: run skipwise eval first")
    clashing = _clashing(parts)
    renamed = [_renamed(part, label, clashing) for part, label in zip(parts, labels(files), strict=True)]
    joined = Scores.joined(renamed)
    subjects = {each.name: each for each in joined.subjects}
    titles = Counter(each.title or each.name for each in subjects.values())
    own = tuple(
        each.model_copy(update={"title": f"{each.title} ({each.name})"}) if titles[each.title] > 1 else each
        for each in subjects.values()
    )
    return joined.model_copy(update={"subjects": own})


def labels(files: Sequence[Path]) -> list[str]:
    """A short name for each file: its folders from the last on, as many as tell all apart."""
    places = [(*file.parent.parts, *(() if file.name == FILE else (file.stem,))) for file in files]
    for count in range(1, max(map(len, places)) + 1):
        found = ["/".join(place[-count:]) for place in places]
        if len(set(found)) == len(found):
            return found
    return [str(file) for file in files]


def _clashing(parts: Sequence[Scores]) -> set[str]:
    """Names that stand for more than one model, or for one that was asked something twice."""
    found = set()
    for one, other in itertools.combinations(parts, 2):
        known = {each.name: each for each in one.subjects}
        done = {(each.model, each.task) for each in one.scores}
        found |= {each.name for each in other.subjects if known.get(each.name, each) != each}
        found |= {each.model for each in other.scores if (each.model, each.task) in done}
    return found


def _renamed(part: Scores, label: str, clashing: set[str]) -> Scores:
    names = {name: f"{label}/{name}" for name in clashing}
    return Scores(
        subjects=tuple(
            each.model_copy(
                update={"name": names[each.name], "title": f"{each.title or each.name} ({label})"}
            )
            if each.name in names
            else each
            for each in part.subjects
        ),
        evaluations=tuple(
            each.model_copy(update={"model": names.get(each.model, each.model)}) for each in part.evaluations
        ),
        scores=tuple(
            each.model_copy(update={"model": names.get(each.model, each.model)}) for each in part.scores
        ),
    )
