"""Text that every CPython has: the sources of its own library, and passkey prompts of a short length.

The base model of the demo was trained on it, the demo trains on it again, and some modules are kept out of
both, to be judged on.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from skipwise.errors import InputError
from skipwise.evals.passkey import FILLER, TASK, PromptBuilder

HELD_OUT = (
    "argparse",
    "calendar",
    "configparser",
    "difflib",
    "imaplib",
    "inspect",
    "mailbox",
    "optparse",
    "pickle",
    "statistics",
    "subprocess",
    "tarfile",
)
"""Modules never trained on; each is longer than the demo's target."""

_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "_bundled"}
_TESTS = {"test", "tests", "idle_test"}


def library_folder() -> Path:
    """Where the running Python keeps its library."""
    return Path(sysconfig.get_paths()["stdlib"])


def held_out_documents(folder: Path | None = None) -> list[str]:
    """The text of the held-out modules, in the order of `HELD_OUT`.

    Raises InputError when the library of the running Python (or the ``folder`` given) lacks one.
    """
    folder = folder or library_folder()
    missing = [module for module in HELD_OUT if not (folder / f"{module}.py").is_file()]
    if missing:
        raise InputError(
            f"{folder} has no {missing[0]}.py: the demo reads the library sources of a complete CPython "
            "installation; run it with one"
        )
    return [(folder / f"{module}.py").read_text(encoding="utf-8") for module in HELD_OUT]


def library_documents(folder: Path | None = None, *, tests: bool = False) -> Iterator[str]:
    """The text of every other module of the library, in sorted order; its tests only on request."""
    folder = folder or library_folder()
    skipped = _NOT_LIBRARY if tests else _NOT_LIBRARY | _TESTS
    for path in sorted(folder.rglob("*.py")):
        place = path.relative_to(folder)
        if skipped.intersection(place.parts) or (len(place.parts) == 1 and path.stem in HELD_OUT):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            yield text


def passkey_documents(
    tokenizer: PreTrainedTokenizerBase, library: str, *, length: int, count: int, seed: int
) -> list[str]:
    """``count`` documents of exactly ``length`` tokens that pose the passkey question and answer it.

    Half of them hide the key among the paper's filler sentences, half among excerpts of ``library``.
    """
    rng = np.random.default_rng([seed, length])
    documents: list[str] = []
    while len(documents) < count:
        token_ids = passkey_tokens(tokenizer, library, length, rng)
        text = str(tokenizer.decode(token_ids))
        # Pieces are tokenized one by one; where the joined text would be cut otherwise, draw again.
        if tokenizer(text, add_special_tokens=False)["input_ids"] == token_ids:
            documents.append(text)
    return documents


def passkey_tokens(
    tokenizer: PreTrainedTokenizerBase, library: str, length: int, rng: np.random.Generator
) -> list[int]:
    """One passkey prompt with its answer, ``length`` tokens, key and depth drawn at random."""
    filler = FILLER if rng.random() < 0.5 else _excerpt(library, 8 * length, rng)
    # Half without the task line: the key may then stand a whole window before the question.
    task = TASK + "\n" if rng.random() < 0.5 else ""
    depth = float(np.clip(rng.uniform(-0.05, 1.05), 0.0, 1.0))  # both ends are met, not only approached
    builder = PromptBuilder(tokenizer, filler, task)
    return builder.build(length, depth, int(rng.integers(10_000, 100_000))).token_ids


def _excerpt(text: str, characters: int, rng: np.random.Generator) -> str:
    start = int(rng.integers(0, len(text) - characters))
    return text[start : start + characters]
