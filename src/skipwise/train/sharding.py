"""A run that asked for sharding gets it, or stops: Accelerate falls back to plain copies without a word."""

from __future__ import annotations

from transformers import Trainer

from skipwise.config import TrainingRecipe


def check_sharded(trainer: Trainer, recipe: TrainingRecipe) -> None:
    """Raises RunError when ``recipe`` asks for sharding and ``trainer`` would not shard."""
