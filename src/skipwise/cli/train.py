"""``skipwise train``: a recipe becomes a checkpoint with a longer window, or is only tried."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipwise.cli.reporting import one_line_errors
from skipwise.errors import InputError

if TYPE_CHECKING:
    from skipwise.config import Recipe
    from skipwise.pipeline.dry_run import DryRun

_GO_ON = "; the same command again goes on from what was saved"
_WIDTH = 80


def train(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE.yaml", help="What to run (see docs/recipes.md).")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Set on top of the recipe, in YAML: training.steps=100, sampler.name=cream.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Run folder; default: runs/RECIPE.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete what the output folder holds and start over.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Everything but the cost: a tiny model of the same config, seconds."),
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of a recipe, for editors.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train as a recipe says and write the extended checkpoint.

    The same command again goes on where it stopped.
    """
    with one_line_errors(debug=debug, again="" if dry_run or schema else _GO_ON):
        from skipwise.config import load_recipe

        if schema:
            _print_schema()
            return
        if recipe is None:
            raise InputError("no recipe: name a file, for example recipes/smollm2-135m-128k.yaml")
        resolved = load_recipe(recipe, overrides or ())
        if dry_run:
            _try(resolved)
            return
        _train(resolved, output or Path("runs") / recipe.stem, fresh)


def empty_run(output: Path, fresh: bool) -> None:
    """Empty a run folder on request; refuse to delete anything else."""
    if fresh and output.exists():
        if not (output / "recipe.yaml").is_file():
            raise InputError(f"{output} is not a run of skipwise: it is not deleted")
        for each in output.iterdir():
            if each.is_dir():
                shutil.rmtree(each)
            elif each.name != "recipe.yaml":
                each.unlink()
        (output / "recipe.yaml").unlink()  # last: without it the folder is nobody's, and not deleted again


def _train(recipe: Recipe, output: Path, fresh: bool) -> None:
    from rich.console import Console

    from skipwise import processes
    from skipwise.pipeline import train as run_train

    with processes.main_first():
        empty_run(output, fresh)
    console = Console(highlight=False, markup=False, soft_wrap=True, quiet=not processes.is_main())
    console.print(f"Run folder: {output}")
    command = shlex.join(["skipwise", *sys.argv[1:]])
    checkpoint = run_train(recipe, output, command=command, say=console.print)
    console.print(f"Checkpoint {checkpoint}")


def _print_schema() -> None:
    import json

    from skipwise.config import recipe_schema

    typer.echo(json.dumps(recipe_schema(), indent=1))


def _try(recipe: Recipe) -> None:
    import yaml
    from rich.console import Console

    console = Console(highlight=False, markup=False, width=_WIDTH)
    said = recipe.model_dump(mode="json", exclude_defaults=True)
    console.print("The recipe; every other key is at its default:\n")
    console.print(yaml.safe_dump(said, sort_keys=False).rstrip(), soft_wrap=True)
    from skipwise.pipeline.dry_run import dry_run

    _show(recipe, dry_run(recipe), console)


def _show(recipe: Recipe, found: DryRun, console: Any) -> None:
    from rich.table import Table

    from skipwise.config import format_length

    window, target = format_length(found.window), format_length(recipe.target_length)
    training = recipe.training
    budget = f"{training.steps:,} steps of {training.rows_per_step} rows, {found.tokens:,} tokens in all"
    losses = " -> ".join(f"{loss:.3f}" for loss in found.loss)
    facts = Table.grid(padding=(0, 2))
    facts.add_row("Model", f"{found.family}, {window} -> {target} tokens by {recipe.interpolation}")
    facts.add_row("Rows", f"{found.sampler}, {format_length(found.row_length)} tokens")
    for number, part in enumerate(found.parts):
        facts.add_row("" if number else "Text", part)
    facts.add_row("Budget", budget)
    facts.add_row("Tried", "on a tiny model of the same config, with the settings of the recipe:")
    facts.add_row("", "probed at the target: every probe holds")
    facts.add_row("", f"trained {len(found.loss)} steps: loss {losses}")
    facts.add_row("", "exported, and read back by transformers with the same logits")
    for number, reason in enumerate(found.not_tried):
        facts.add_row("" if number else "Not tried", reason)
    console.print()
    console.print(facts)
