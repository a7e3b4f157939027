"""Try every causal-LM family and write the table of outcomes, `docs/families.md`.

    python tools/family_table.py [FOLDER ...]

tries the families of the installed `transformers`, then those of the `transformers` in each FOLDER (such as
`.oldest`, which `make test-oldest` fills), records them as `docs/families-VERSION.json`, and makes the table
of all such files. No outcome is written by hand. About half a minute a version on two CPU cores.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TABLE = DOCS / "families.md"
LIMIT = 120
"""Seconds a family may take."""
VERDICTS = {
    "works": "the stock class does it all; the oracle holds",
    "repaired": "the stock class does not; as `skipwise` loads it, the oracle holds",
    "limited": "either, but refused unless `accept_limits` says yes; the limit comes last in its line",
    "refused": "nothing is trained; the reason is what the user is told",
    "not tried": "stock `transformers` does not build the model here",
    "fails": "none of these: a bug",
}
Outcomes = dict[str, dict[str, str]]


def record() -> Path:
    """Try the families of the `transformers` that is imported; returns the file written."""
    sys.path.insert(0, str(ROOT / "tests" / "families"))
    os.environ["TRANSFORMERS_VERBOSITY"] = "critical"
    import survey
    import tiny_configs
    import torch
    import transformers

    names = tiny_configs.families()
    outcomes: Outcomes = {}
    with multiprocessing.get_context("spawn").Pool(2, torch.set_num_threads, (1,)) as pool:
        results = pool.imap(survey.outcome, names)
        for name in names:
            try:
                outcomes[name] = results.next(LIMIT)
            except multiprocessing.TimeoutError:
                outcomes[name] = {"verdict": "fails", "reason": f"takes more than {LIMIT} seconds"}
    content = {
        "transformers": transformers.__version__,
        "torch": torch.__version__.partition("+")[0],
        "counts": dict(Counter(each["verdict"] for each in outcomes.values())),
        "families": outcomes,
    }
    path = DOCS / f"families-{transformers.__version__}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(path.name, content["counts"])
    return path


def table(records: list[dict[str, object]]) -> str:
    """The Markdown page of what was recorded, oldest version first."""
    versions = [str(each["transformers"]) for each in records]
    outcomes: list[Outcomes] = [each["families"] for each in records]  # type: ignore[misc]
    counts: list[dict[str, int]] = [each["counts"] for each in records]  # type: ignore[misc]
    lines = [
        "# Model families",
        "",
        *INTRODUCTION,
        "",
        f"| | {' | '.join(versions)} | |",
        f"|---|{'---|' * (len(versions) + 1)}",
        *(
            f"| {verdict} | {' | '.join(str(each.get(verdict, 0)) for each in counts)} | {meaning} |"
            for verdict, meaning in VERDICTS.items()
            if any(verdict in each for each in counts)
        ),
        "",
        f"| family | {' | '.join(versions)} | why |",
        f"|---|{'---|' * (len(versions) + 1)}",
    ]
    for name in sorted({name for each in outcomes for name in each}):
        found = [each.get(name) for each in outcomes]
        verdicts = " | ".join(each["verdict"] if each else "–" for each in found)
        lines.append(f"| {name} | {verdicts} | {_why(versions, found)} |")
    made = ", ".join(f"transformers {each['transformers']} with torch {each['torch']}" for each in records)
    lines += ["", f"Made by `python tools/family_table.py .oldest`, on the CPU: {made}.", ""]
    return "\n".join(lines)


INTRODUCTION = """\
Every causal-LM family of `transformers`, at both ends of the supported range, tried on a tiny model with
random weights (`tests/families`): its config extended from 64 to 256 tokens, loaded, probed, trained two
steps on rows of 48 tokens with skipped positions, with and without gradient checkpointing, exported, and read
by stock `transformers`. The oracle decides: the trained model's logits of a row must be those that the stock
model computes from the export for a long row in which every token at a skipped position is masked out. Each
is also extended with yarn, ntk and linear, and its cos and sin compared with the formulas' in float64. Layers
that are no attention see the filler of a long row: there the exported model must agree on the row itself.

`+ windows` is the form of a family in which layers attend within a sliding window; where a family always has
both kinds of layers, its plain line has them.""".splitlines()


def _why(versions: list[str], found: list[dict[str, str] | None]) -> str:
    """The reason, once if it is the same everywhere."""
    tried = {version: each["reason"] for version, each in zip(versions, found, strict=True) if each}
    if len(set(tried.values())) == 1:
        text = next(iter(tried.values()))
    else:
        text = "; ".join(f"{version}: {reason}" for version, reason in tried.items() if reason)
    return text.replace("|", "\\|").replace("<", "&lt;")


def main() -> None:
    """Record and tabulate; see the module's docstring."""
    record()
    for folder in sys.argv[1:]:
        path = os.pathsep.join(filter(None, (str(Path(folder).resolve()), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-c", "import family_table; family_table.record()"]
        subprocess.run(command, cwd=Path(__file__).parent, env=os.environ | {"PYTHONPATH": path}, check=True)
    files = DOCS.glob("families-*.json")
    records = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    records.sort(key=lambda each: [int(part) for part in each["transformers"].split(".")])
    TABLE.write_text(table(records), encoding="utf-8")


if __name__ == "__main__":
    main()
