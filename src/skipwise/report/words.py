"""Numbers and names as they are printed. Contract: the same words in every table, figure and sentence."""

import math

MISSING = "–"
MINUS = "−"

_BENCHMARKS = {
    "boolq": "BoolQ",
    "piqa": "PIQA",
    "winogrande": "WinoGrande",
    "truthfulqa_mc2": "TruthfulQA",
    "arc_challenge": "ARC-Challenge",
    "arc_easy": "ARC-Easy",
    "hellaswag": "HellaSwag",
}


def length_label(tokens: float) -> str:
    """256, 512, 1k, 1.5k, 128k, 1M: k is 1,024 tokens; other lengths keep their digits."""
    for unit, size in (("M", 1024**2), ("k", 1024)):
        if tokens >= size and tokens * 2 % size == 0:
            return f"{tokens / size:g}{unit}"
    return f"{tokens:g}" if tokens < 1e5 else f"{tokens:.0f}"


def share_text(share: float) -> str:
    """A share of 0 .. 1 in per cent: 100, 66.7."""
    return "nan" if math.isnan(share) else f"{100 * share:.1f}".removesuffix(".0")


def perplexity_text(value: float) -> str:
    """About four digits, at most six characters."""
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "∞"
    if value >= 99_999.5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    digits = 2 if value < 99.995 else 1 if value < 999.95 else 0
    return f"{value:,.{digits}f}"


def points_text(share: float) -> str:
    """A difference of shares in percentage points, with its sign: +3.2, −0.4, 0.0."""
    if math.isnan(share):
        return "nan"
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def ratio_text(ratio: float) -> str:
    """A ratio of perplexities to about three digits: ×0.952, ×0.034, ×3.8e−5, ×12.3, ×2.4e4."""
    if not math.isfinite(ratio):
        return "nan" if math.isnan(ratio) else "∞"
    if ratio and not 0.00095 <= ratio < 999.95:
        mantissa, exponent = f"{ratio:.1e}".split("e")
        return f"×{mantissa}e{int(exponent)}".replace("-", MINUS)
    if ratio < 0.0995:
        return f"×{ratio:.2g}"
    return f"×{ratio:.{3 if ratio < 9.9995 else 1}f}"


def cut(text: str, width: int) -> str:
    """`text` on one line, ended by an ellipsis if it is longer than `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def benchmark_title(name: str) -> str:
    """A benchmark as papers write it."""
    return _BENCHMARKS.get(name, name)


def one_or_range(counts: set[int]) -> str:
    """``50``, ``20 to 50``; empty for no counts."""
    if not counts:
        return ""
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
