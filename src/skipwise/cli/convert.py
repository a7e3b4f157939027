"""``skipwise convert``: a Baichuan 7B checkpoint as a stock Llama checkpoint, ready to be extended."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skipwise.cli.reporting import one_line_errors


def convert(
    checkpoint: Annotated[str, typer.Argument(help="Baichuan 7B checkpoint folder or hub name.")],
    output: Annotated[Path, typer.Argument(help="New folder for the Llama checkpoint.")],
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Write a Baichuan-7B or Baichuan2-7B checkpoint as a stock Llama one that computes the same.

    No remote code is run, and memory holds a small part of the weights at a time.
    """
    with one_line_errors(debug=debug):
        from skipwise.models.convert import convert_checkpoint

        done = convert_checkpoint(checkpoint, output)
        head = "its head normalized once and for all" if done.norm_head else "its head as it is"
        tokens = f"a tokenizer of {done.tokens:,} tokens" if done.tokens else "no tokenizer: it had none"
        files = "file" if done.files == 1 else "files"
        typer.echo(f"{done.family} as Llama: W_pack split into q, k and v, {head}.")
        typer.echo(f"{output}: {done.tensors} tensors, {_size(done.size)} in {done.files} {files}; {tokens}.")
        typer.echo(f"Next: skipwise extend {output} --target-length 16k --data YOUR-TEXT")


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
