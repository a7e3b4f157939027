"""results/*.json -> RESULTS.md: python benchmarks/evals/table.py > benchmarks/evals/RESULTS.md"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main() -> None:
    """Print a section for each file."""
    print("# What the evaluations save\n\nMade by `table.py` of `results/`; how it was measured: README.md.")
    for path in sorted((HERE / "results").glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        versions, hardware = document["versions"], document["hardware"]
        print(f"\n## {hardware['device']}\n")
        print(
            f"`{document['command']}`, torch {versions['torch']}, transformers {versions['transformers']}.\n"
        )
        for title, lines in sections(document["cases"]):
            print(f"### {title}\n")
            print("\n".join(lines) + "\n")


def sections(cases: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Title and Markdown lines of each table."""
    rows = {name: case for name, case in cases.items() if "error" not in case}
    perplexity = [
        "| model | one pass | ten passes, same code | ten passes, `model(labels)` | largest difference |"
    ]
    perplexity += ["|---|---|---|---|---|"]
    passkey = [
        "| length | trials | all trials | one `generate` each | ratio | same answers |",
        "|---|---|---|---|---|---|",
    ]
    memory = ["| model, tokens | way | seconds | tokens a second | peak GiB |", "|---|---|---|---|---|"]
    for name, case in rows.items():
        if name.startswith("perplexity"):
            ways = [
                f"{case[f'{way}_seconds']:.2f} s ({case[f'{way}_ratio']:.2f} x), {case[f'{way}_gib']:.1f} GiB"
                for way in ("ours", "stock")
            ]
            first = f"{case['one_pass_seconds']:.2f} s, {case['one_pass_gib']:.1f} GiB"
            perplexity.append(
                f"| {case['shape']} | {first} | {' | '.join(ways)} | {case['stock_difference']:.0e} |"
            )
        elif name.startswith("passkey"):
            passkey.append(
                f"| {case['length']:,} | {case['trials']} | {case['ours_seconds']:.1f} s | "
                f"{case['generate_seconds']:.1f} s | {case['ratio']:.1f} | "
                f"{case['same_answers']} of {case['trials']} |"
            )
        else:
            for way in ("whole", "pieces"):
                what = "whole" if way == "whole" else f"pieces of {case['piece']:,}"
                memory.append(
                    f"| {case['shape']}, {case['length']:,} | {what} | {case[f'{way}_seconds']:.1f} | "
                    f"{case[f'{way}_tokens_per_second']:,.0f} | {case[f'{way}_gib']:.1f} |"
                )
    tables = [
        ("Perplexity at ten windows up to 131,072", perplexity),
        ("Passkey", passkey),
        ("One document", memory),
    ]
    return [(title, lines) for title, lines in tables if len(lines) > 2]


if __name__ == "__main__":
    main()
