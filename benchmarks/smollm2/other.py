"""Text unlike the novels, to judge on and never to train on, as token ids in one file.

    python benchmarks/smollm2/other.py OUT.npz --model FOLDER_OR_GGUF --root FOLDER

| kind | source | version | licence |
|---|---|---|---|
| python | modules of CPython's library that `tokens.py` holds out too | of the running Python | PSF-2.0 |
| c | /usr/include/linux (linux-libc-dev) | 6.1.187-1 | GPL-2 with syscall note |
| c | /usr/include/python3.11 (libpython3.11-dev) | 3.11.2-6 | PSF-2.0 |
| technical | English reStructuredText of linux-doc-6.1 | 6.1.192-2 | GPL-2 |
| mathematics | docstrings of sympy, a module a document | 1.14.0 | BSD-3-Clause |
| legal | /usr/share/common-licenses (base-files), each once | 12.4+deb12u11 | verbatim copies |
| legal | debian-policy | 4.6.2.0 | GPL-2+ |
| essays | An Anarchist FAQ (anarchism) | 15.3-3 | GPL-2 |
| german | Debian-Referenz (debian-reference-de), a chapter a document | 2.100 | GPL-2+ |

FOLDER holds the Debian packages that are not installed: `apt-get download linux-doc-6.1 debian-policy
anarchism debian-reference-de`, then `dpkg-deb -x EACH.deb FOLDER`. A kind whose source is missing is skipped
with a note.
`KIND` and `KIND_lengths` are written: documents of `SHORTEST` to `LONGEST` tokens, `MOST` a kind, in an order
drawn by the seed. german is no English: judge it apart.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import html
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from skipwise.demo import corpus
from skipwise.models.load import find_checkpoint, load_tokenizer

SHORTEST, LONGEST, MOST = 2_048, 25_000, 100_000


def read(path: Path) -> str:
    """The text of a file, compressed or not."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return content.decode(encoding="utf-8", errors="replace")


def plain(page: str) -> str:
    """The text of an HTML page: no tags, and a blank line after each paragraph."""
    page = re.sub(r"(?is)<(script|style|head)\b.*?</\1>", "", page)
    page = re.sub(r"\s+", " ", page)
    page = re.sub(r"(?i)</(p|h\d|li|blockquote|div)>|<br\s*/?>", "\n\n", page)
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    return re.sub(r"\s*\n\s*\n\s*", "\n\n", text).strip()


def docstrings(path: Path) -> str:
    """The docstrings of a module, in its order, blank lines between."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(read(path))) if isinstance(node, kinds)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return "\n\n\n".join(filter(None, map(ast.get_docstring, nodes)))


def python() -> Iterator[str]:
    """Modules."""
    yield from corpus.held_out_documents()


def c(*roots: Path) -> Iterator[str]:
    """Headers."""
    for folder in ("usr/include/linux", "usr/include/python3.11"):
        yield from map(read, files(roots, folder, "**/*.h"))


def technical(*roots: Path) -> Iterator[str]:
    """Documents about Linux, without its translations."""
    for path in files(roots, "usr/share/doc/linux-doc-6.1/Documentation", "**/*.rst.gz"):
        if "translations" not in path.parts:
            yield read(path)


def mathematics() -> Iterator[str]:
    """What sympy says about itself."""
    found = importlib.util.find_spec("sympy")
    if found is not None and found.origin is not None:
        for path in sorted(Path(found.origin).parent.rglob("*.py")):
            if "tests" not in path.parts and path.stat().st_size > 4 * SHORTEST:
                yield docstrings(path)


def legal(*roots: Path) -> Iterator[str]:
    """Licences, each once, and a policy."""
    yield from sorted({read(path) for path in files(roots, "usr/share/common-licenses", "*")})
    yield from map(read, files(roots, "usr/share/doc/debian-policy", "policy.txt.gz"))


def essays(*roots: Path) -> Iterator[str]:
    """Arguments about politics."""
    yield from (plain(read(path)) for path in files(roots, "usr/share/doc/anarchism/html", "sec*.html"))


def german(*roots: Path) -> Iterator[str]:
    """Chapters of a manual."""
    for path in files(roots, "usr/share/debian-reference", "ch*.de.html"):
        yield plain(read(path))


def files(roots: tuple[Path, ...], folder: str, pattern: str) -> list[Path]:
    """The files under ``folder`` in the first root that has some, sorted."""
    for root in roots:
        found = sorted(path for path in (root / folder).glob(pattern) if path.is_file())
        if found:
            return found
    return []


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--root", type=Path, default=Path("/"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tokenizer = load_tokenizer(find_checkpoint(options.model))
    roots = (options.root, Path("/"))
    kinds = {each.__name__: each(*roots) for each in (c, technical, legal, essays, german)}
    arrays = {}
    for name, texts in {"python": python(), "mathematics": mathematics(), **kinds}.items():
        documents = [text for text in texts if len(text) >= SHORTEST]
        chosen: list[np.ndarray] = []
        for each in np.random.default_rng(options.seed).permutation(len(documents)):
            ids = tokenizer(documents[each], add_special_tokens=False, verbose=False)["input_ids"]
            room = min(LONGEST, MOST - sum(map(len, chosen)))
            if min(len(ids), room) >= SHORTEST:
                chosen.append(np.array(ids[:room], dtype=np.uint16))
        if not chosen:
            print(f"{name}: skipped, its source is missing (see --help)")
            continue
        arrays[name] = np.concatenate(chosen)
        arrays[f"{name}_lengths"] = np.array([len(each) for each in chosen])
        print(f"{name}: {arrays[name].size:,} tokens, {len(chosen)} of {len(documents)} documents")
    np.savez_compressed(options.out, **arrays)
    print(options.out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
