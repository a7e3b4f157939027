"""RULER (Hsieh et al. 2024, arXiv 2404.06654): 13 tasks from a tokenizer and local text, and their scores.

`tasks` and `templates` hold the benchmark's rules, `retrieval`, `tracing`, `aggregation` and `questions`
write prompts of any size by them, `generator` makes a prompt as long as a length allows, `scoring` judges an
answer. No model is needed for any of it, and nothing is downloaded. `docs/ruler.md` lists what differs from
the benchmark's own generator. `evaluation` asks a model.
"""

from skipwise.evals.ruler.evaluation import Ruler

__all__ = ["Ruler"]
