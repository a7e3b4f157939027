"""The command line: one function a command; this file has `demo` and `extend`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from skipwise.cli.check import check
from skipwise.cli.compare import compare
from skipwise.cli.convert import convert
from skipwise.cli.coverage import coverage
from skipwise.cli.evaluate import app as evaluate
from skipwise.cli.options import interpolation_options
from skipwise.cli.plan import plan
from skipwise.cli.reporting import one_line_errors
from skipwise.cli.train import empty_run, train

app = typer.Typer(
    name="skipwise",
    help="Teach a RoPE language model a longer context window, training only at its short length (PoSE).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete what the output folder holds and start over.")]
Seed = Annotated[int, typer.Option(min=0, help="Of every random choice.")]


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    seed: Seed = 0,
    fresh: Fresh = False,
    debug: Debug = False,
) -> None:
    """Extend the small model that comes with the package 16 times, and show what that changed.

    Needs no network and no GPU: 256 -> 4,096 tokens in a few minutes on two CPU cores.
    """
    with one_line_errors(debug=debug, again=_GO_ON):
        from skipwise.demo.run import demo_recipe

        empty_run(output, fresh)
        recipe = demo_recipe(output.with_name(output.name + "-data"), seed)
        _extend(recipe, output)


@app.command()
def extend(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, .gguf file or Hugging Face hub name.")],
    more_data: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="More files for --data (an unquoted glob)."),
    ] = None,
    target_length: Annotated[
        str | None, typer.Option(help="The window wanted, in tokens: 32768, 32k, 1M.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Text: .txt .md .py .jsonl .json .parquet (also .gz, .zst), folder, glob, hub dataset."
        ),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of tables that holds the text.")] = "text",
    eval_data: Annotated[
        list[str] | None, typer.Option(help="Text to judge on; default: some long documents are set aside.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Run folder; default: runs/MODEL-TARGET.")] = None,
    train_length: Annotated[
        str | None, typer.Option(help="Tokens in a row; default: the model's window.")
    ] = None,
    allow_longer_rows: Annotated[
        bool, typer.Option("--allow-longer-rows", help="Let --train-length exceed the model's window.")
    ] = False,
    interpolation: Annotated[
        str,
        typer.Option(
            help="linear, ntk, abf, yarn, ntk-by-parts, pose-yarn, llama3, longrope or none (window only)."
        ),
    ] = "yarn",
    interpolation_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="More of the interpolation, such as rope_theta=1e6 (abf); commas make a list (longrope).",
        ),
    ] = None,
    sampler: Annotated[
        str,
        typer.Option(
            help="pose, balanced, cream, randpos, contiguous, full-length, or pose:0.8,contiguous:0.2 to mix."
        ),
    ] = "pose",
    chunks: Annotated[int, typer.Option(help="Chunks of a row (pose, balanced).")] = 2,
    content: Annotated[
        str, typer.Option(help="uniform, contiguous or aligned text (pose, balanced).")
    ] = "uniform",
    control: Annotated[
        bool, typer.Option("--control", help="Also train contiguous rows at the same budget, to compare.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 200,
    rows_per_step: Annotated[int, typer.Option(help="Rows in one optimizer step.")] = 16,
    micro_batch: Annotated[int, typer.Option(help="Rows in one forward pass.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-5,
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--gradient-checkpointing/--no-gradient-checkpointing",
            help="Less activation memory, more time; default: only where it does not fit without.",
        ),
    ] = None,
    attention: Annotated[
        str,
        typer.Option(
            help="auto, sdpa, eager, flash_attention_2, flash_attention_3, flex_attention or xformers."
        ),
    ] = "auto",
    accept_limits: Annotated[
        bool,
        typer.Option("--accept-limits", help="Go on with hybrids, and with layers that have no positions."),
    ] = False,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints to resume from.")] = 100,
    eval_lengths: Annotated[
        str | None, typer.Option(help="Lengths to judge at, such as 2k,8k,32k; default: doublings.")
    ] = None,
    eval_documents: Annotated[int, typer.Option(help="Documents for perplexity, at most.")] = 8,
    trials: Annotated[int, typer.Option(help="Passkey prompts at each length.")] = 20,
    seed: Seed = 0,
    fresh: Fresh = False,
    debug: Debug = False,
) -> None:
    """Extend a model's window and judge it before and after.

    The same command again goes on where it stopped.
    """
    with one_line_errors(debug=debug, again=_GO_ON):
        from skipwise.config import make_recipe
        from skipwise.errors import InputError

        if target_length is None:
            raise InputError("no target: say --target-length, for example 32k")
        if more_data and not data:
            raise InputError(f"unexpected {more_data[0]!r}: name text files after --data")
        recipe = make_recipe(
            {
                "model": model,
                "target_length": target_length,
                "train_length": train_length,
                "allow_longer_rows": allow_longer_rows,
                "interpolation": interpolation,
                "interpolation_options": interpolation_options(interpolation_option or []),
                "data": {
                    "files": [*(data or ()), *(more_data or ())],
                    "text_column": text_column,
                    "evaluation_files": eval_data or (),
                },
                "sampler": {"name": sampler, "chunks": chunks, "content": content},
                "training": {
                    "steps": steps,
                    "rows_per_step": rows_per_step,
                    "micro_batch": micro_batch,
                    "learning_rate": learning_rate,
                    "precision": precision,
                    "gradient_checkpointing": "auto"
                    if gradient_checkpointing is None
                    else gradient_checkpointing,
                    "save_every": save_every,
                },
                "evaluation": {
                    "lengths": eval_lengths.split(",") if eval_lengths else (),
                    "documents": eval_documents,
                    "trials": trials,
                },
                "control": control,
                "attention": attention,
                "accept_limits": accept_limits,
                "seed": seed,
            }
        )
        folder = output or Path("runs") / f"{Path(model).name.removesuffix('.gguf')}-{target_length}"
        empty_run(folder, fresh)
        _extend(recipe, folder)


app.command()(train)
app.command()(plan)
app.command()(check)
app.command()(convert)
app.command()(coverage)
app.command()(compare)
app.add_typer(evaluate)

_GO_ON = "; the same command again goes on from what was saved"


def _extend(recipe: Any, output: Path) -> None:
    from rich.console import Console

    from skipwise.pipeline import extend as run_extend

    command = shlex.join(["skipwise", *sys.argv[1:]])
    console = Console(highlight=False, markup=False)
    console.print(f"Run folder: {output}")
    report = run_extend(recipe, output, command=command, say=console.print)
    _show(output, report, console)


def _show(output: Path, report: Path, console: Any) -> None:
    from skipwise.report import score_tables
    from skipwise.scores import Scores

    for table in score_tables(Scores.read(output)):
        console.print()
        console.print(table)
    console.print()
    for what, path in (
        ("Report", report),
        ("Scores", output / "scores.json"),
        ("Checkpoint", output / "checkpoint"),
    ):
        console.print(f"{what:<11}{path}", soft_wrap=True)


def run() -> None:
    """Entry point of the ``skipwise`` command."""
    app()


if __name__ == "__main__":
    run()
