"""Writes that are whole or not there, after a power cut too: all is made aside, flushed, then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skipwise.errors import RunError


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill; it becomes ``folder`` (replacing what was there) only if no error is raised."""
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        with disk_errors(folder):
            yield aside
            flush(*sorted(aside.rglob("*"), reverse=True), aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    aside.replace(folder)
    flush(folder.parent)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON in one step."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8, in one step; what UTF-8 cannot hold (lone surrogates) becomes ``?``."""
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` in one step."""
    aside = path.with_name(path.name + ".partial")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_bytes(content)
            flush(aside)
            aside.replace(path)
            flush(path.parent)
        finally:
            aside.unlink(missing_ok=True)


def flush(*paths: Path) -> None:
    """Wait until the disk holds what was written to these files (or, of a folder, its names)."""
    for path in paths:
        if os.name == "nt":
            return  # there a file that is open for reading cannot be flushed, and a folder not be opened
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into one line that names the place."""
    try:
        yield
    except Exception as error:
        if _disk_is_full(error):
            raise RunError(
                f"the disk that holds {path} is full: free some space, then run the same command"
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise RunError(f"{path} cannot be written: {error.strerror}") from error
        raise


def _disk_is_full(error: Exception) -> bool:
    """Writers in compiled code (safetensors, Arrow) have error types of their own and no errno.

    torch.save says only where it stopped: its archive came out shorter than what it wrote.
    """
    words = str(error).lower()
    return (
        getattr(error, "errno", None) == errno.ENOSPC
        or "no space left on device" in words
        or ("inline_container" in words and "unexpected pos" in words)
    )
