"""Checkpoints to resume from: complete or not counted.

A checkpoint is complete when it holds `MANIFEST`, with the size and the CRC-32 of every file, written when
all else is on the disk. What a killed run, a full disk or a power cut leaves has none, or one that does not
hold.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import Trainer

from skipwise import processes
from skipwise.errors import RunError
from skipwise.files import disk_errors, flush, write_json

MANIFEST = "complete.json"
_BLOCK = 1 << 24
_log = logging.getLogger(__name__)  # not set up by anybody: one line on stderr


def resume_point(folder: Path) -> Path | None:
    """The newest complete checkpoint in ``folder``, the same for every process of the run, or None.

    Newer ones that are not complete, and what is left of older ones, are removed (by the main process):
    Trainer would write into them, and count them when it deletes old checkpoints.
    """
    found: list[Path | None] = [None]
    if processes.is_main():
        found = [last_complete_checkpoint(folder)]
        for each in _checkpoints(folder):
            if found[0] is None or _step(each) > _step(found[0]) or not (each / MANIFEST).exists():
                _remove(each)
    if processes.count() > 1:
        broadcast_object_list(found)
    return found[0]


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder`` whose every file is there and whole; says which are skipped.

    Reads it once, at the speed of the disk (CRC-32 takes 0.6 s a GB and core, on up to 4 cores). Raises
    RunError when a file is there and cannot be read.
    """
    for each in _checkpoints(folder):
        fault = _fault(each)
        if fault is None:
            return each
        _log.warning("%s is skipped: %s", each, fault)
    return None


@contextmanager
def complete_or_removed(trainer: Trainer) -> Iterator[None]:
    """While ``trainer`` writes the checkpoint of its step: complete it, then delete old ones.

    Deletes only when the new one is complete, so at least one complete checkpoint is always there (Trainer
    itself deletes before). Keeps ``save_total_limit`` of them, the best among them. A checkpoint that fails
    is removed, and a full disk is a RunError that names the place.
    """
    folder, writes = Path(str(trainer.args.output_dir)), trainer.args.should_save
    checkpoint = folder / f"checkpoint-{trainer.state.global_step}"
    limit, trainer.args.save_total_limit = trainer.args.save_total_limit, None
    try:
        with disk_errors(checkpoint):
            if writes:
                (checkpoint / MANIFEST).unlink(missing_ok=True)
            yield
            processes.wait()  # until all have written their part
            if writes:
                seal(checkpoint)
            processes.wait()
    except BaseException:
        if writes:
            _remove(checkpoint)
        raise
    finally:
        trainer.args.save_total_limit = limit
    if writes:
        best = trainer.state.best_model_checkpoint
        _delete_old(folder, limit, Path(best).name if best else None)


def seal(checkpoint: Path) -> None:
    """Declare ``checkpoint`` complete: flush every file, then write down its size and checksum."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != MANIFEST]
    flush(*checkpoint.rglob("*"), checkpoint, checkpoint.parent)
    with ThreadPoolExecutor(4) as pool:
        sums = pool.map(_checksum, files)
        found = {
            path.relative_to(checkpoint).as_posix(): {"bytes": path.stat().st_size, "crc32": each}
            for path, each in zip(files, sums, strict=True)
        }
    write_json(checkpoint / MANIFEST, {"files": found})


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words, or None."""
    try:
        listed: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return "it was not finished"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is damaged"
    try:
        for name, expected in listed.items():
            if not (checkpoint / name).is_file():
                return f"{name} is missing"
            size = (checkpoint / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes of {expected['bytes']}"
        with ThreadPoolExecutor(4) as pool:
            sums = pool.map(_checksum, [checkpoint / name for name in listed])
            for (name, expected), found in zip(listed.items(), sums, strict=True):
                if found != expected["crc32"]:
                    return f"{name} was altered"
    except OSError as error:
        raise RunError(f"{error.filename or checkpoint} cannot be read: {error.strerror}") from error
    return None


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            found = zlib.crc32(block, found)
    return found


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _checkpoints(folder: Path) -> list[Path]:
    """Every checkpoint, complete or not, the newest first: by step, for clocks and copies mislead."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in found if path.is_dir()), key=_step, reverse=True)


def _delete_old(folder: Path, limit: int | None, best: str | None) -> None:
    complete = [path for path in _checkpoints(folder) if (path / MANIFEST).exists()]
    wanted = sorted(complete, key=lambda path: path not in complete[:1] and path.name != best)
    kept = wanted[: max(limit, 2 if best else 1)] if limit else wanted
    for path in _checkpoints(folder):
        if path not in kept:
            _remove(path)


def _remove(checkpoint: Path) -> None:
    """Its manifest goes first: half a checkpoint must not count."""
    with suppress(OSError):
        (checkpoint / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)
