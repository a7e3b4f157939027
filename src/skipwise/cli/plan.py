"""``skipwise plan``: what would an extension take, with PoSE and at full length: memory, time and cost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipwise.cli.options import tokens
from skipwise.cli.reporting import one_line_errors
from skipwise.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from skipwise.plan import Plan, Run

_WIDTH = 80
_NAMES = {"full": "full", "lora": "LoRA", "qlora": "QLoRA", "pose": "PoSE", "full-length": "full-length"}


def plan(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, .gguf file or Hugging Face hub name.")],
    target_length: Annotated[
        str | None, typer.Option(help="The window wanted, in tokens: 32768, 32k, 1M.")
    ] = None,
    train_length: Annotated[
        str | None, typer.Option(help="Tokens in a row of PoSE; default: the model's window.")
    ] = None,
    hardware: Annotated[
        str, typer.Option(help="b200, h200, h100, a100-80g, a100-40g, l40s, l4, 5090, 4090, 3090, mi300x ...")
    ] = "h100",
    gpus: Annotated[int, typer.Option(min=1, help="GPUs; rows and weights are divided (FSDP2).")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 200,
    rows_per_step: Annotated[int, typer.Option(min=1, help="Rows in one optimizer step.")] = 16,
    micro_batch: Annotated[int, typer.Option(min=1, help="Rows in one forward pass of one GPU.")] = 1,
    weights: Annotated[
        str, typer.Option(help="Of full training: float32, or bfloat16 rounded stochastically.")
    ] = "float32",
    optimizer: Annotated[str, typer.Option(help="adamw or adamw-8bit.")] = "adamw",
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--gradient-checkpointing/--no-gradient-checkpointing",
            help="Default: only where it does not fit without.",
        ),
    ] = None,
    liger: Annotated[
        bool | None,
        typer.Option("--liger/--no-liger", help="Its kernels; default: where it has them for the family."),
    ] = None,
    logits_chunk: Annotated[
        int, typer.Option(min=0, help="Tokens whose logits are in memory at once without Liger; 0: all.")
    ] = 1024,
    rank: Annotated[int, typer.Option(min=1, help="Of LoRA's adapters.")] = 16,
    price: Annotated[
        float | None, typer.Option(min=0, help="US dollars a GPU and hour; default: a guess at its rent.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as one JSON object.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Say what an extension needs: memory, time and cost, of PoSE beside training at full length.

    Takes seconds and reads only the model's config. Exit code 0 also when nothing fits.
    """
    with one_line_errors(debug=debug):
        from skipwise.models.load import find_checkpoint, load_config
        from skipwise.models.size import model_size
        from skipwise.plan import make_plan
        from skipwise.plan.hardware import find_hardware
        from skipwise.plan.memory import Settings
        from skipwise.rope import model_window

        gpu = find_hardware(hardware)
        choices: dict[str, Any] = {
            "weights": _one_of("--weights", weights, ("float32", "bfloat16")),
            "optimizer": _one_of("--optimizer", optimizer, ("adamw", "adamw-8bit")),
        }
        if target_length is None:
            raise InputError("no target: say --target-length, for example 32k")
        target = tokens("--target-length", target_length)
        given = tokens("--train-length", train_length) if train_length else None
        config = load_config(find_checkpoint(model))
        length = given or model_window(config)
        if length > target:
            raise InputError(f"rows of {length} tokens are longer than the target of {target}")
        size = model_size(config)
        choices["liger"] = size.liger if liger is None else liger
        choices["loss"] = "fused" if choices["liger"] else "chunked" if logits_chunk else "whole"
        choices["logits_chunk"] = logits_chunk
        found = make_plan(
            size,
            target_length=target,
            train_length=length,
            hardware=gpu,
            settings=Settings(row_length=length, micro_batch=micro_batch, gpus=gpus, rank=rank, **choices),
            steps=steps,
            rows_per_step=rows_per_step,
            price=price,
            gradient_checkpointing=gradient_checkpointing,
        )
        if as_json:
            typer.echo(json.dumps(found.to_json(), allow_nan=False))
        else:
            _print(found)


def _one_of(option: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise InputError(f"{option} {value!r}: must be one of {', '.join(known)}")
    return value


def _print(found: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, width=_WIDTH)
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(found):
        facts.add_row(name, value)
    console.print(facts)
    console.print()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    table.add_column("")
    for run in found.runs:
        title = _NAMES[run.settings.method] if run.rows == "pose" else ""
        table.add_column(f"{title}\n{_NAMES[run.rows]}", justify="right")
    for name, *values in _lines(found):
        table.add_row(name, *values)
    console.print(table)
    for run in found.runs:
        if not run.fits:
            console.print()
            console.print(_does_not_fit(found, run))
    console.print()
    console.print(_inference(found))
    if not found.size.traced:
        console.print(
            f"The forward pass of {found.size.family} could not be traced: activations are an estimate."
        )


def _facts(found: Plan) -> Iterator[tuple[str, str]]:
    from skipwise.config import format_length

    settings, hardware = found.runs[0].settings, found.hardware
    yield "Model", f"{found.size.family}, {_count(found.size.parameters)} parameters"
    rows = f"{found.rows_per_step} rows a step, {settings.micro_batch} in a micro-batch"
    yield "Training", f"{found.steps} steps, {rows}"
    lengths = format_length(found.train_length), format_length(found.target_length)
    yield "Rows", f"PoSE {lengths[0]} tokens, full-length {lengths[1]}"
    yield (
        "Weights",
        f"{settings.weights} if all are trained; {settings.optimizer}; adapters of rank {settings.rank}",
    )
    chunks = f"logits of {settings.logits_chunk} tokens at a time" if settings.logits_chunk else "all logits"
    yield "Kernels", "Liger's" if settings.liger else f"stock; {chunks}"
    each = f"{found.gpus} x {hardware.title} ({hardware.memory:g} GiB)"
    yield "Hardware", f"{each}, {found.price:.2f} dollars a GPU and hour"


def _lines(found: Plan) -> Iterator[tuple[str, ...]]:
    """The table's rows; memory in GiB on each GPU, at the moment of the peak."""
    from skipwise.plan import GIB

    names = ("weights", "gradients", "optimizer", "activations", "loss", "temporary", "total")
    yield "GiB a GPU", *("" for _ in found.runs)
    for name in names:
        yield f"  {name}", *(_size(getattr(run.memory, name) / GIB) for run in found.runs)
    yield "checkpointing", *("yes" if run.settings.gradient_checkpointing else "no" for run in found.runs)
    yield "fits", *("yes" if run.fits else "no" for run in found.runs)
    yield "time", *(_time(run.seconds) if run.fits else "-" for run in found.runs)
    yield "dollars", *(_dollars(run.cost) if run.fits else "-" for run in found.runs)
    yield "MFU", *(f"{run.mfu:.0%}" if run.fits else "-" for run in found.runs)


def _does_not_fit(found: Plan, run: Run) -> str:
    from skipwise.plan import GIB

    what = f"{_NAMES[run.settings.method]}, {_NAMES[run.rows]} rows"
    where = f"{found.gpus} x {found.hardware.title} ({found.hardware.memory:g} GiB)"
    needs = f"needs {run.memory.total / GIB:.1f} GiB"
    needs += " on each" if found.gpus > 1 else ""
    if run.way_out:
        return f"{what}: does not fit on {where}: {needs}; with {run.way_out}"
    shorter = "PoSE rows" if run.rows == "full-length" else "a smaller --train-length"
    return f"{what}: does not fit on {where}: {needs}; try {shorter}"


def _inference(found: Plan) -> str:
    from skipwise.config import format_length
    from skipwise.plan import GIB

    memory = found.inference
    parts = f"weights {_size(memory.weights / GIB)} + cache {_size(memory.cache / GIB)}"
    where = f"{found.gpus} x {found.hardware.title}"
    verdict = "fits on" if found.inference_fits else "does not fit on"
    tokens = format_length(found.target_length)
    return (
        f"Inference, one sequence of {tokens} tokens in bfloat16: {parts} "
        f"= {_size(memory.total / GIB)} GiB, {verdict} {where}"
    )


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def _size(gib: float) -> str:
    return f"{gib:,.0f}" if gib >= 100 else f"{gib:.1f}" if gib >= 0.95 else f"{gib:.2f}"


def _dollars(cost: float) -> str:
    return f"{cost:,.0f}" if cost >= 100 else f"{cost:.2f}"


def _time(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
