"""Original abilities: benchmarks of lm-evaluation-harness.

`harness` finds its tasks and their data, `models` hands it the model under evaluation, `task` is the
evaluation.
"""

from skipwise.evals.benchmarks.task import PAPER, Benchmarks

__all__ = ["PAPER", "Benchmarks"]
