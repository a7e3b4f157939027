"""Write what follows from the schema of a recipe: the table of its keys and the JSON schema for editors.

    python tools/recipe_table.py

makes `docs/recipes.md` and `recipes/schema.json`. Nothing in them is written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from skipwise.config import Recipe, parse_length, recipe_schema

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "recipes.md"
SCHEMA = ROOT / "recipes" / "schema.json"

INTRODUCTION = """\
# Recipes

A recipe is a YAML file that says everything about one run. Two keys are needed, `model` and `target_length`;
everything else has a default. Shipped ones are in [recipes/](../recipes/README.md).

    skipwise train RECIPE.yaml [KEY=VALUE ...] [--output DIR] [--fresh]

trains and writes the run folder: `checkpoint/` is the extended model, `recipe.yaml` the recipe with every
default spelled out (itself a recipe), `run.json` what it ran on and took. The same command again goes on
where it stopped; `--fresh` starts over. `KEY=VALUE` sets a key on top of the file, sections joined by dots,
the value in YAML; `training.adapter={}` is a section with its defaults.

    skipwise train recipes/smollm2-135m-128k.yaml 'data.files=[books, more/*.jsonl]' training.steps=500

A mistyped key is refused with the nearest name, and all mistakes are reported at once.

    skipwise train RECIPE.yaml --dry-run

tries the recipe without its cost, in seconds and without a GPU: the model's config is read and extended, a
tiny model of the same config is probed at the target, trained two steps with the recipe's own settings on
its own text, exported and read back. It ends with what could not be tried: kernels that are not installed,
text that is not there.

## Several kinds of text

Text of one kind costs a model what it knew of others: trained on books alone it loses short tasks (Gao et al.
2024, ProLong, mix 40 % of short text into long code and books). `data.beside` names further text, each entry
with its share of the rows; `data.files` has what they leave.

```yaml
data:
  files: [books/]
  beside:
    - files: [recall.jsonl]
      share: 0.2
    - files: [short.jsonl, chat.jsonl]
      share: 0.25
      sampler: contiguous
      pack: true
```

The rows are counted out, not drawn: every step has each share as exactly as whole numbers allow, and what is
left over is carried to the next, so that no part is ever more than about a row away from its share. Rows of
one part lie next to each other in a step. `pack` joins documents by the end-of-text token and cuts rows from
that, as in ordinary pretraining (attention reaches back over the token): none is lost for being short.
Without it, rows are of one document, and shorter ones are left out. The control has contiguous rows of every
part with the same shares, and full-length rows (`sampler.name=full-length`) are so in every part. Documents
to judge on are set aside from `data.files` only.

## Keeping short ability

A new rotary base or scale, and some hundred steps on one kind of text, cost a model some of what it could do
inside its own window. LongReD (Dong et al. 2025, arXiv 2502.07365) restores it by distillation from the
untouched model on short text. A part of the text with `taught: true` is learned so:

```yaml
data:
  files: [books/]
  beside:
    - files: [general.jsonl]
      share: 0.125
      sampler: contiguous
      pack: true
      taught: true
```

On its rows the model does not learn the text. It learns the whole prediction that the untouched model makes
after each token, by the Kullback-Leibler divergence of the two (LongReD compares hidden states of some layers
instead). So a row says more than its next tokens do, and pulls towards no other style or topic. A token
counts as much as one of any other row, and the loss curve is of both: near 0 for these rows, so lower in all.

The text may be anything that the model should still do: general pages, code, conversations, and also text
that the untouched model wrote itself, which needs no corpus. It costs one forward pass more on these rows
(about a third of a step's work for them), and the untouched model's weights lie beside those in training, in
bfloat16 on a GPU, two bytes a parameter; `training.micro_batch: auto` and `gradient_checkpointing: auto`
count them in, `skipwise plan` does not. Use it where short tasks matter as much as the window. Where the
model shall learn something new from short text (instructions, another language), leave `taught` out: it would
learn to stay as it was. It needs rows within the model's own window and a whole copy of the model on every
GPU, so it goes with neither full-length rows nor sharding. The control has the same taught rows.

## From an editor

`skipwise train --schema` prints the JSON schema. An editor with the YAML language server completes and
checks the keys of a file that begins with `# yaml-language-server: $schema=recipes/schema.json`.
"""
NAMES: dict[Any, str] = {str: "text", int: "whole number", float: "number", bool: "true or false"}
LIMITS = (("ge", "at least"), ("gt", "more than"), ("lt", "less than"), ("le", "at most"))


def page() -> str:
    """The Markdown page: an introduction, then a table for every section."""
    lines = [INTRODUCTION]
    for name, section in sections(Recipe, ""):
        lines += [f"## `{name}`" if name else "## Top level", ""]
        if name:
            lines += [" ".join((section.__doc__ or "").split()), ""]
        lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
        lines += [row(key, field) for key, field in section.model_fields.items() if not inner(field)]
        lines.append("")
    lines += ["Lengths are in tokens, and may be written `16k` (x 1,024) or `1M` (x 1,048,576). Made by", ""]
    return "\n".join([*lines[:-1], "`python tools/recipe_table.py` from `skipwise.config`.", ""])


def sections(section: type[BaseModel], name: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section with the name by which keys reach it, the outermost first."""
    yield name, section
    for key, field in section.model_fields.items():
        if found := inner(field):
            yield from sections(found, f"{name}.{key}".lstrip("."))


def inner(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, if it holds one."""
    for each in (field.annotation, *get_args(field.annotation)):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None


def row(key: str, field: FieldInfo) -> str:
    """One line of a table."""
    limits = [
        f"{words} {getattr(each, name)}"
        for each in field.metadata
        for name, words in LIMITS
        if hasattr(each, name)
    ]
    value = ", ".join([kind(field.annotation, tuple(field.metadata)), *limits])
    return f"| `{key}` | {value} | {default(field)} | {field.description} |"


def kind(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """What may be written, in words."""
    if any(getattr(each, "func", None) is parse_length for each in metadata):
        return "tokens"
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(inside[0], inside[1:])
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in inside)
    if origin in (Union, UnionType):
        return " or ".join(kind(each) for each in inside if each is not NoneType)
    if origin is tuple or origin is list:
        return f"list: {kind(inside[0])}"
    if origin is dict:
        return f"keys with values: {kind(inside[1])}"
    return NAMES[annotation]


def default(field: FieldInfo) -> str:
    """The default as YAML has it."""
    if field.is_required():
        return "needed"
    value = field.default
    if value is None or value in ((), {}):
        return "empty"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value).strip(chr(34))}`"


def schema() -> str:
    """The JSON schema as a file."""
    return json.dumps(recipe_schema(), indent=1) + "\n"


def main() -> None:
    """Write both files."""
    PAGE.write_text(page(), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
