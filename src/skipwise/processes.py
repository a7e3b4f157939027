"""The processes of one run: how many, which one this is, who goes first, and agreement among all.

`torchrun` and `accelerate launch` start one process a device, each with the same program. A run without them
is a single process: then everything here returns at once. What is said here goes over the CPU (gloo), so that
no GPU waits for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState

from skipwise.environment import default_device
from skipwise.errors import RunError

_PATIENCE = timedelta(days=7)
"""How long processes wait for the first one, which may tokenize a large corpus meanwhile."""


def launched() -> int:
    """How many processes the launcher says it started, over all machines; 1 without one."""
    sizes = (os.environ.get(name) for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))
    return max(int(size) for size in (*sizes, 1) if size)


def join() -> PartialState:
    """This process among the others of its run, which wait for each other here the first time.

    Raises RunError if it does not find them: each would do the whole run alone, all in one folder.
    """
    state = PartialState(cpu=default_device() == "cpu")
    check_joined(state.num_processes)
    return state


def check_joined(found: int) -> None:
    """Raises RunError unless ``found``, what Accelerate says, are all the processes that were started."""
    if found != launched():
        raise RunError(
            f"{launched()} processes were started, but Accelerate sees {found}: each would train alone; "
            "start them with torchrun or accelerate launch, which set RANK and LOCAL_RANK too"
        )


def count() -> int:
    """The processes of this run, over all machines."""
    return int(join().num_processes)


def is_main() -> bool:
    """Whether this is the process that prints, writes and exports."""
    return bool(join().is_main_process)


def wait() -> None:
    """Go on when all are here."""
    if count() > 1:
        dist.barrier(group=_group())


@contextmanager
def main_first() -> Iterator[None]:
    """The body in the main process, then in all others, which find what it left: a cache, a folder.

    An error of the main process lets the others go too: they meet it themselves, or finish the work.
    """
    if not is_main():
        wait()
    try:
        yield
    finally:
        if is_main():
            wait()


def smallest(value: int) -> int:
    """The smallest ``value`` of all processes."""
    return _reduced(value, dist.ReduceOp.MIN)


def any_of(flag: bool) -> bool:
    """Whether ``flag`` is true in at least one process."""
    return bool(_reduced(int(flag), dist.ReduceOp.MAX))


def make_folder(folder: Path) -> None:
    """Make ``folder`` once; RunError where a process on another machine does not see it."""
    with main_first():
        if is_main():
            folder.mkdir(parents=True, exist_ok=True)
    if any_of(not folder.is_dir()):
        raise RunError(
            f"{folder} is not seen by all processes: the run folder must lie on storage that all machines "
            "share"
        )


def leave() -> None:
    """Part from the others at the end of a program, without the warning of torch."""
    if dist.is_initialized():
        _group.cache_clear()
        dist.destroy_process_group()


def _reduced(value: int, how: Any) -> int:
    if count() == 1:
        return value
    box = torch.tensor(value)
    dist.all_reduce(box, op=how, group=_group())
    return int(box)


@cache
def _group() -> Any:
    """All processes, over the CPU."""
    return dist.new_group(backend="gloo", timeout=_PATIENCE)
