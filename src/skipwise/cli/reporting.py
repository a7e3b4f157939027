"""How a command ends: what went wrong in one line, an exit code, no traceback unless asked for."""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from skipwise.errors import SkipwiseError

ENDED_BY_SIGNAL = 128
"""Added to a signal's number: the exit code of a command that the signal ended, as shells have it."""


@contextmanager
def one_line_errors(*, debug: bool, again: str = "") -> Iterator[None]:
    """Report an error in one line and exit: 2 for bad input, 1 for a failed run; ``debug`` lets it through.

    ``again`` says how to go on after an interruption.
    """
    quiet_libraries()
    try:
        yield
    except SkipwiseError as error:
        if debug:
            raise
        fail(str(error), error.exit_code)
    except KeyboardInterrupt as interrupt:
        if debug:
            raise
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        fail(f"interrupted{again}", ENDED_BY_SIGNAL + number)
    except OSError as error:
        if debug:
            raise
        full = error.errno == errno.ENOSPC
        fail(f"the disk is full: free some space{again}" if full else f"{error}", 1)
    except Exception as error:
        if debug:
            raise
        reason = " ".join(str(error).split())
        fail(f"unexpected {type(error).__name__}: {reason} (--debug shows where)", 1)


def fail(message: str, exit_code: int) -> None:
    """Print ``message`` on stderr and leave."""
    print(f"skipwise: {message}", file=sys.stderr)  # noqa: T201
    raise typer.Exit(exit_code)


def quiet_libraries() -> None:
    """Keep other libraries' bars, hints and deprecation notes off the terminal; before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # rows may be prepared in forked workers
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
