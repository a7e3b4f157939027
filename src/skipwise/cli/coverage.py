"""``skipwise coverage``: which relative distances a sampler's rows show, as a table, JSON or a figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from skipwise.cli.options import tokens
from skipwise.cli.reporting import one_line_errors
from skipwise.errors import InputError

_FIGURES = (".png", ".svg")


def coverage(
    train_length: Annotated[str | None, typer.Option(help="Tokens in a row: 2048, 2k.")] = None,
    target_length: Annotated[str | None, typer.Option(help="The window wanted, in tokens: 16k, 1M.")] = None,
    sampler: Annotated[
        list[str] | None,
        typer.Option(
            help="pose, balanced, cream, randpos, contiguous, full-length, or pose:0.8,contiguous:0.2 to "
            "mix; once for each to compare. Default: pose."
        ),
    ] = None,
    chunks: Annotated[
        list[int] | None,
        typer.Option(help="Chunks of a row (pose, balanced); once for each to compare. Default: 2."),
    ] = None,
    times: Annotated[int, typer.Option(min=1, max=1000, help="How often every distance is to be seen.")] = 1,
    draws: Annotated[
        int, typer.Option(min=100, help="Rows drawn where there is no closed form (three chunks, cream).")
    ] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the rows drawn.")] = 0,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one object with the lists distance, probability and error (its standard error) and "
            "examples_until_seen; for several samplers, a list of such objects.",
        ),
    ] = False,
    stride: Annotated[int, typer.Option(min=1, help="Of the distances in the JSON: 1, 1 + stride, ...")] = 1,
    figure: Annotated[
        Path | None, typer.Option(help="Draw all samplers into this .png or .svg file.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Show how likely one training example covers each relative distance.

    And how many examples it takes, on average, until every distance has been seen.
    """
    with one_line_errors(debug=debug):
        if figure is not None and figure.suffix.lower() not in _FIGURES:
            raise InputError(f"--figure {figure}: must end in {' or '.join(_FIGURES)}")
        lengths = _tokens("--train-length", train_length), _tokens("--target-length", target_length)
        samplers = _samplers(sampler or ["pose"], chunks or [2], *lengths)
        results = [_result(title, each, lengths, times, draws, seed) for title, each in samplers.items()]
        if figure is not None:
            _draw(results, figure)
        if as_json:
            _print_json(results, stride)
        else:
            _print_tables(results, figure)


def _tokens(option: str, value: str | None) -> int:
    if value is None:
        raise InputError(f"no {option}: say, for example, --train-length 2k --target-length 16k")
    return tokens(option, value)


def _samplers(names: list[str], chunks: list[int], train_length: int, target_length: int) -> dict[str, Any]:
    """Title -> sampler, each once: one that has no chunks is the same for every number of them."""
    from skipwise.data.samplers import make_sampler, title

    if target_length < 2:
        raise InputError(f"--target-length {target_length}: must be at least 2 tokens to have a distance")
    found = {}
    for name in names:
        for count in chunks:
            try:
                sampler = make_sampler(name, train_length, target_length, chunks=count)
            except ValueError as error:
                raise InputError(str(error)) from None
            parts = getattr(sampler, "samplers", (sampler,))
            in_chunks = f" ({count} chunks)" if any(hasattr(part, "chunks") for part in parts) else ""
            found[title(sampler) + in_chunks] = sampler
    return found


def _result(title: str, sampler: Any, lengths: tuple[int, int], times: int, draws: int, seed: int) -> Any:
    from skipwise.data.coverage import coverage
    from skipwise.data.until_seen import examples_until_seen
    from skipwise.report.coverage import Result

    found = coverage(sampler, draws=draws, seed=seed)
    until_seen = examples_until_seen(sampler, times, found=found, seed=seed)
    train, target = lengths
    return Result(
        title=title,
        train_length=train,
        target_length=target,
        coverage=found,
        until_seen=until_seen,
        times=times,
    )


def _draw(results: list[Any], path: Path) -> None:
    from skipwise.files import write_bytes
    from skipwise.report.coverage import coverage_figure
    from skipwise.report.svg import png, svg_file

    drawn = coverage_figure(results)
    write_bytes(path, svg_file(drawn) if path.suffix.lower() == ".svg" else png(drawn))


def _print_json(results: list[Any], stride: int) -> None:
    from skipwise.report.coverage import coverage_json

    documents = [coverage_json(result, stride) for result in results]
    typer.echo(json.dumps(documents[0] if len(documents) == 1 else documents, allow_nan=False))


def _print_tables(results: list[Any], figure: Path | None) -> None:
    from rich.console import Console

    from skipwise.report.coverage import coverage_tables

    console = Console(highlight=False, markup=False)
    for table in coverage_tables(results):
        console.print(table)
        console.print()
    if figure is not None:
        console.print(f"Figure: {figure}", soft_wrap=True)
