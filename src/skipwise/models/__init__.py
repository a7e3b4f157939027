"""A checkpoint becomes a model that is ready for skipped positions, or is refused with the reason."""
