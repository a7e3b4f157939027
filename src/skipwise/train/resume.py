"""Checkpoints to resume from: complete or not counted."""

from __future__ import annotations

from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in ``folder`` whose every file is there and whole."""
    found = get_last_checkpoint(str(folder))
    return Path(found) if found else None
