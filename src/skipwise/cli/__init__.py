"""Argument parsing only; everything else is imported inside the commands, so that `--help` is instant."""
