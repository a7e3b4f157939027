"""``skipwise eval TASK``: judge a checkpoint or a served model; one command a task."""

from __future__ import annotations

import functools
import inspect
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from skipwise.cli.options import lengths_of, tokens
from skipwise.cli.reporting import one_line_errors
from skipwise.errors import InputError

app = typer.Typer(
    name="eval",
    help="Judge a model: perplexity, retrieval, benchmarks.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Lengths = Annotated[
    str | None,
    typer.Option(help="Lengths in tokens, such as 2k,8k,32k; default: doublings from 2k to the window."),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        help="Text: .txt .md .py .jsonl .json .parquet (.gz and .zst too), folder, glob, hub dataset."
    ),
]
TextColumn = Annotated[str, typer.Option(help="Column of tables that holds the text.")]
Documents = Annotated[int, typer.Option(min=1, help="Documents, at most: long ones first.")]
Seed = Annotated[int, typer.Option(min=0, help="Of every random choice: the same seed asks the same.")]


def _common(
    model: Annotated[
        str | None,
        typer.Argument(help="Checkpoint folder, .gguf file or hub name; with --base-url its name there."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of scores.json, which tasks share; default: runs/eval-MODEL.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the scores call the model.")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="Judge a served model: http://host:port/v1 (vLLM, SGLang, llama.cpp).")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="With --base-url: the checkpoint that is served, for its tokenizer.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="auto (on a GPU the checkpoint's own), float32, bfloat16 or float16.")
    ] = "auto",
    attention: Annotated[
        str,
        typer.Option(help="auto, sdpa, eager, flash_attention_2, flash_attention_3, xformers."),
    ] = "auto",
    piece: Annotated[
        str | None, typer.Option(help="Tokens in one forward pass; default: as many as fit.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what was measured before.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """The options of every task."""


def _task(make: Callable[..., Any]) -> Callable[..., None]:
    """A command out of a function that takes a task's own options and says how to make the task.

    What ``make`` returns is called with the opened reader and the output folder. The command has the options
    of `_common` too.
    """
    shared, own = inspect.signature(_common), inspect.signature(make)
    names = list(shared.parameters)

    @functools.wraps(make)
    def command(**given: Any) -> None:
        with one_line_errors(debug=given["debug"], again="; the same command again goes on from there"):
            _run(make(**{key: value for key, value in given.items() if key not in names}), given)

    parameters = [shared.parameters["model"], *own.parameters.values()]
    parameters += [shared.parameters[key] for key in names[1:]]
    keyword = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    hints = get_type_hints(_common, include_extras=True) | get_type_hints(make, include_extras=True)
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [each.replace(annotation=hints[each.name]) for each in keyword]
    )
    command.__annotations__ = {each.name: hints[each.name] for each in keyword}
    app.command()(command)
    return command


@_task
def perplexity(
    data: Data = None,
    lengths: Lengths = None,
    documents: Documents = 10,
    stride: Annotated[
        str | None,
        typer.Option(help="Slide a window of each length by so many tokens, instead of by position."),
    ] = None,
    document_length: Annotated[
        str | None, typer.Option(help="With --stride: tokens of each document; default: the longest window.")
    ] = None,
    text_column: TextColumn = "text",
) -> Any:
    """Perplexity at every length from one pass a document; with --stride over a sliding window.

    By position (the default) each window is read from its first token. A sliding window is the measure of
    Press et al. 2021 and of the PoSE paper (stride 1,024).
    """

    def make(reader: Any, output: Path) -> Any:
        from skipwise.evals.perplexity import Perplexity, SlidingPerplexity
        from skipwise.pipeline.evaluation import read_texts, tokenize

        wanted = lengths_of(lengths, reader.subject.window)
        size = max(wanted) if document_length is None else tokens("--document-length", document_length)
        if document_length is not None and (stride is None or size < max(wanted)):
            raise InputError(
                f"--document-length {document_length}: goes with --stride, and is at least the longest of "
                "--lengths"
            )
        texts = read_texts(data or [], text_column, output / "cache", characters=min(wanted))
        chosen = tokenize(texts, reader.tokenizer, tokens=size, count=documents)
        source = {"files": sorted(data or [])}
        if stride is None:
            return Perplexity(documents=chosen, lengths=wanted, source=source)
        step = tokens("--stride", stride)
        return SlidingPerplexity(documents=chosen, lengths=wanted, stride=step, source=source)

    return make


@_task
def passkey(
    lengths: Lengths = None,
    trials: Annotated[int, typer.Option(min=1, help="Prompts at each length.")] = 50,
    depth: Annotated[str, typer.Option(help="grid (ten depths in turn) or random.")] = "grid",
    seed: Seed = 0,
) -> Any:
    """Passkey retrieval: a five-digit key in filler sentences (Mohtashami and Jaggi 2023)."""

    def make(reader: Any, output: Path) -> Any:  # noqa: ARG001
        from skipwise.evals.passkey import Passkey

        wanted = lengths_of(lengths, reader.subject.window)
        return Passkey(lengths=wanted, trials=trials, depth=depth, seed=seed)

    return make


@_task
def needle(
    data: Data = None,
    lengths: Lengths = None,
    depths: Annotated[int, typer.Option(min=2, help="Depths, evenly spaced from the start to the end.")] = 11,
    kinds: Annotated[
        str, typer.Option(help="number, sentence, several: what is hidden; commas for more than one.")
    ] = "number,sentence,several",
    trials: Annotated[int, typer.Option(min=1, help="Prompts for each length, depth and kind.")] = 3,
    text_column: TextColumn = "text",
    seed: Seed = 0,
) -> Any:
    """Needle in a haystack of real text: a heat map over length and depth."""

    def make(reader: Any, output: Path) -> Any:
        from skipwise.evals.needle import Needle
        from skipwise.pipeline.evaluation import read_texts

        return Needle(
            lengths=lengths_of(lengths, reader.subject.window),
            depths=depths,
            kinds=kinds.split(","),
            trials=trials,
            seed=seed,
            texts=read_texts(data or [], text_column, output / "cache"),
            source={"files": sorted(data or [])},
        )

    return make


@_task
def ruler(
    data: Data = None,
    lengths: Lengths = None,
    tasks: Annotated[
        str, typer.Option(help="Names of RULER's tasks, with commas; all: all possible.")
    ] = "all",
    samples: Annotated[int, typer.Option(min=1, help="Prompts for each task and length (RULER: 500).")] = 50,
    squad: Annotated[Path | None, typer.Option(help="SQuAD's dev-v2.0.json, for qa_1.")] = None,
    hotpotqa: Annotated[
        Path | None, typer.Option(help="HotpotQA's hotpot_dev_distractor_v1.json, for qa_2.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask through the tokenizer's chat template.")] = False,
    text_column: TextColumn = "text",
    seed: Seed = 0,
) -> Any:
    """RULER's 13 tasks (Hsieh et al. 2024) made from local text, and the effective length.

    The haystacks of essays come from --data. Without the files of SQuAD and HotpotQA the two tasks made of
    them are left out.
    """

    def make(reader: Any, output: Path) -> Any:
        from skipwise.evals.ruler import Ruler
        from skipwise.pipeline.evaluation import read_texts

        return Ruler(
            lengths=lengths_of(lengths, reader.subject.window),
            tasks=None if tasks == "all" else tuple(tasks.split(",")),
            samples=samples,
            texts=read_texts(data or [], text_column, output / "cache"),
            source={"files": sorted(data or [])},
            squad=squad,
            hotpotqa=hotpotqa,
            chat=chat,
            seed=seed,
        )

    return make


@_task
def longppl(
    data: Data = None,
    lengths: Lengths = None,
    documents: Documents = 10,
    evaluator: Annotated[
        str | None, typer.Option(help="Checkpoint that chooses the key tokens; default: the model itself.")
    ] = None,
    short_length: Annotated[str, typer.Option(help="Tokens of the short context.")] = "4k",
    text_column: TextColumn = "text",
) -> Any:
    """LongPPL: perplexity over the tokens that need the long context (Fang et al. 2024)."""

    def make(reader: Any, output: Path) -> Any:
        from skipwise.evals.longppl import LongPPL
        from skipwise.pipeline.evaluation import open_reader, read_texts, tokenize

        wanted = lengths_of(lengths, reader.subject.window)
        short = tokens("--short-length", short_length)
        texts = read_texts(data or [], text_column, output / "cache", characters=min(wanted))
        return LongPPL(
            documents=tokenize(texts, reader.tokenizer, tokens=max(wanted), count=documents),
            lengths=wanted,
            short_length=short,
            evaluator=None if evaluator is None else open_reader(evaluator),
            source={"files": sorted(data or [])},
        )

    return make


@_task
def benchmarks(
    tasks: Annotated[
        str,
        typer.Option(
            help="paper (BoolQ, PIQA, WinoGrande, TruthfulQA, ARC-Challenge, HellaSwag) or names of "
            "lm-evaluation-harness, with commas."
        ),
    ] = "paper",
    data_folder: Annotated[
        Path | None, typer.Option(help="Folder with a folder of data a task, for use without a network.")
    ] = None,
    task_folder: Annotated[Path | None, typer.Option(help="Folder with task files (YAML).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each task, at most.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions in one forward pass.")] = 8,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the examples before each question; default: the harness's own.")
    ] = 1234,
) -> Any:
    """Original abilities, through lm-evaluation-harness (pip install 'skipwise\\[benchmarks]')."""

    from skipwise.evals.benchmarks import Benchmarks

    asked = Benchmarks(
        tasks=None if tasks == "paper" else tuple(tasks.split(",")),
        data_folder=data_folder,
        task_folder=task_folder,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
    )
    return lambda reader, output: asked  # noqa: ARG005


def _run(make_task: Callable[[Any, Path], Any], given: dict[str, Any]) -> None:
    from rich.console import Console

    from skipwise.pipeline.evaluation import file_name, judge, model_name, open_reader
    from skipwise.report import score_tables, write_report
    from skipwise.scores import FILE

    model, piece = given["model"], given["piece"]
    name = given["name"] or model_name(model or "served")
    folder = given["output"] or Path("runs") / f"eval-{file_name(name)}"
    reader = open_reader(
        model,
        piece=None if piece is None else tokens("--piece", piece),
        **{key: given[key] for key in ("name", "base_url", "tokenizer", "dtype", "attention")},
    )
    task = make_task(reader, folder)
    command = shlex.join(["skipwise", *sys.argv[1:]])
    with _Bar(task.name) as progress:
        found = judge(reader, task, folder, command=command, fresh=given["fresh"], progress=progress)
    console = Console(highlight=False, markup=False)
    for table in score_tables(found):
        console.print(table)
        console.print()
    for note in found.evaluations[0].notes:
        console.print(note)
    for what, path in (("Report", write_report(folder)), ("Scores", folder / FILE)):
        console.print(f"{what:<11}{path}", soft_wrap=True)


class _Bar:
    """What is done of a task, on stderr."""

    def __init__(self, task: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=Console(stderr=True))
        self.task = self.bar.add_task(task, total=None)

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def __call__(self, done: int, total: int) -> None:
        self.bar.update(self.task, completed=done, total=total)
