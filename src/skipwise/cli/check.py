"""``skipwise check``: does a checkpoint learn from skipped positions: as it is, repaired, or not at all?"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipwise.cli.options import interpolation_options, tokens
from skipwise.cli.reporting import one_line_errors
from skipwise.errors import InputError

if TYPE_CHECKING:
    from skipwise.models.check import CheckReport

_REFUSED = 1
"""Exit code of a check that ran and found a model that cannot be extended."""
_WIDTH = 80


def check(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, .gguf file or Hugging Face hub name.")],
    target_length: Annotated[
        str | None,
        typer.Option(
            help="The window wanted, in tokens: 32768, 32k, 1M. Default: 4 times the model's window."
        ),
    ] = None,
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
    accept_limits: Annotated[
        bool,
        typer.Option(
            "--accept-limits",
            help="Go on though a limit that cannot be repaired was found (hybrids; layers without "
            "positions).",
        ),
    ] = False,
    full: Annotated[
        bool,
        typer.Option("--full", help="Probe the real weights, not a tiny model with the checkpoint's config."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Say whether a model can be extended: as it is, after repairs, or not, and why.

    Takes seconds, and reads only the config unless --full is given. Exit code 1 if the model is refused.
    """
    with one_line_errors(debug=debug):
        found = _check(
            model,
            None if target_length is None else tokens("--target-length", target_length),
            interpolation=_method(interpolation),
            interpolation_options=interpolation_options(interpolation_option or []),
            accept_limits=accept_limits,
            full=full,
        )
        if as_json:
            typer.echo(json.dumps(found.to_json(), allow_nan=False))
        else:
            _print(found)
    if found.verdict == "refused":
        raise typer.Exit(_REFUSED)


def _check(model: str, target: int | None, *, full: bool, **how: Any) -> CheckReport:
    """The report. What libraries print, as DeepSpeed does when it is imported, goes to stderr."""
    with redirect_stdout(sys.stderr):
        from skipwise.environment import default_device
        from skipwise.models.check import check_checkpoint
        from skipwise.models.hints import check_safetensors, check_stock_config
        from skipwise.models.load import find_checkpoint

        checkpoint = find_checkpoint(model)
        check_stock_config(checkpoint)
        if full:
            check_safetensors(checkpoint)
        return check_checkpoint(model, target, full=full, device=default_device(), **how)


def _method(value: str) -> Any:
    from typing import get_args

    from skipwise.config import Interpolation

    if value not in get_args(Interpolation):
        raise InputError(f"--interpolation {value!r}: must be one of {', '.join(get_args(Interpolation))}")
    return value


def _print(found: CheckReport) -> None:
    from rich.console import Console
    from rich.table import Table

    from skipwise.config import format_length

    console = Console(highlight=False, markup=False, width=_WIDTH)
    facts = Table.grid(padding=(0, 2))
    facts.add_row("Family", found.family)
    facts.add_row("Verdict", found.verdict)
    facts.add_row("Reason", found.reason)
    if found.window and found.target_length:
        facts.add_row(
            "Window", f"{format_length(found.window)} -> {format_length(found.target_length)} tokens"
        )
    facts.add_row("RoPE", _parameters(found.rope) or "none")
    if found.angle_error is not None:
        facts.add_row("Angles", f"cos and sin off by {found.angle_error:.1e} at the target, against float64")
    console.print(facts)
    if not found.backends and not found.not_run:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for title in ("Attention", "Across the skip", "Causal", "Against the long row"):
        table.add_column(title)
    for name, each in found.backends.items():
        values = each.to_json()
        error = f"off by {each.report.oracle_error:.1e}"
        table.add_row(name, _yes(values["visible"]), _yes(values["causal"]), error)
    console.print()
    console.print(table)
    for name, reason in found.not_run.items():
        console.print(f"{name}: {reason}")


def _parameters(rope: dict[str, Any]) -> str:
    """``key value`` pairs; by layer type where they are nested; of long lists the size."""
    parts = []
    for key, value in rope.items():
        if isinstance(value, dict):
            parts.append(f"{key}: {_parameters(value)}")
        elif isinstance(value, list):
            parts.append(f"{key} of {len(value)}")
        elif value is not None:
            parts.append(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}")
    return "; ".join(parts) if any(isinstance(each, dict) for each in rope.values()) else ", ".join(parts)


def _yes(found: bool) -> str:
    return "yes" if found else "no"
