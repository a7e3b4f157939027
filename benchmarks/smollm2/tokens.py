"""The text of the search as token ids, in one file that travels.

    python benchmarks/smollm2/tokens.py NOVELS_FOLDER OUT.npz --model FOLDER_OR_GGUF

train, dev: novels (`train.parquet` and `dev.parquet`, column text). library: sources of CPython's library
(PSF licence); other: some of its modules that are never trained on, to judge text unlike the novels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from skipwise.demo import corpus
from skipwise.models.load import find_checkpoint, load_tokenizer


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("novels", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--books", type=int, default=77)
    options = parser.parse_args()
    tokenizer = load_tokenizer(find_checkpoint(options.model))
    library = list(corpus.library_documents())
    texts = {
        "train": pq.read_table(options.novels / "train.parquet")["text"].to_pylist()[: options.books],
        "dev": pq.read_table(options.novels / "dev.parquet")["text"].to_pylist(),
        "library": library,
        "other": corpus.held_out_documents(),
    }
    arrays = {}
    for kind, documents in texts.items():
        ids = [
            np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.uint16)
            for text in documents
        ]
        arrays[kind] = np.concatenate(ids)
        arrays[f"{kind}_lengths"] = np.array([len(each) for each in ids])
    np.savez_compressed(options.out, **arrays)
    print({kind: int(array.size) for kind, array in arrays.items()}, options.out.stat().st_size)


if __name__ == "__main__":
    main()
