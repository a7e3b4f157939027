"""Checkpoints -> scores: perplexity by position and passkey retrieval."""
