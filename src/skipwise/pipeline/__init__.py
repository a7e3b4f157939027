"""The flow, end to end: a recipe goes in, a checkpoint with a longer window and its evidence come out.

    checkpoint, documents -> rope -> rows -> probes, training -> export -> evaluation -> scores and report

`train` stops after the export; `extend` goes on with the same run folder and judges what came out.
"""

from skipwise.pipeline.run import extend, train

__all__ = ["extend", "train"]
