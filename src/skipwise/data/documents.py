"""Files, folders and Hugging Face datasets -> documents.

One row a document, exactly the columns `text` (str, never blank) and `source` (str: the name of the file
or dataset it came from), in the order of the sources. `datasets` does the reading and keeps what it read
in memory-mapped files, so a corpus may be larger than memory.
"""

import errno
import glob
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, Value
from datasets.exceptions import DatasetGenerationError

from skipwise.errors import InputError, RunError, SkipwiseError

_KINDS = {".txt": "text", ".md": "text", ".py": "text", ".parquet": "parquet"} | {
    ending + packed: "json" for ending in (".jsonl", ".json") for packed in ("", ".gz", ".zst")
}
_ENDINGS = ", ".join(_KINDS)
_FEATURES = Features({"text": Value("string"), "source": Value("string")})
_ROWS_AT_ONCE = 64  # held in memory while reading: a novel is about a megabyte
_HUB_NAME = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?", re.ASCII)


def load_documents(
    sources: Sequence[str | Path], *, text_column: str = "text", cache_dir: Path, split: str = "train"
) -> Dataset:
    """Load every document of `sources`; blank ones, and files met a second time, are left out.

    A source is a file (.txt, .md, .py: one document; .jsonl, .json, each also .gz or .zst, and .parquet:
    one document a row), a folder (read recursively, in sorted order, hidden files skipped), a glob (`**`
    too), or, where no such path exists, the name of a Hugging Face dataset, `owner/name` or
    `owner/name:config`. `text_column` is the column of tables that holds the text; `split` is read of hub
    datasets only. What is read is kept under `cache_dir` and reused until the file changes; the hub client
    keeps its own downloads where HF_HOME says.

    Raises InputError, naming the source, for anything missing, unreadable, unsupported or without text.
    """
    if not sources:
        raise InputError("no documents: name at least one file, folder, glob or Hugging Face dataset")
    parts, seen = [], set[Path]()
    with datasets_session(cache_dir):
        for source in sources:
            if hub := hub_name(source):
                part = _load_hub(str(source), hub, split, text_column, cache_dir)
            else:
                files = [file for file in readable_files(source) if file.resolve() not in seen]
                seen.update(file.resolve() for file in files)
                if not files:  # all of them came with an earlier source
                    continue
                part = _load_files(files, text_column, cache_dir)
            if not len(part):
                raise InputError(f"{source}: holds no text; leave it out or check the file")
            parts.append(part)
        return datasets.concatenate_datasets(parts)


@contextmanager
def datasets_session(cache_dir: Path) -> Iterator[None]:
    """Make `cache_dir`; meanwhile `datasets` shows no bars or logs and reports no use of it to its hub."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{cache_dir}: cannot be the cache folder ({error.strerror})") from error
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    had_bars = not datasets.are_progress_bars_disabled()
    counted = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else even a local file costs a request
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counted
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if had_bars:
            datasets.enable_progress_bars()


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    return next((kind for ending, kind in _KINDS.items() if name.endswith(ending)), None)


def hub_name(source: str | Path) -> re.Match[str] | None:
    """Match a string that can only be a dataset's name: nothing on disk, and no file ending such as .txt."""
    if not isinstance(source, str) or Path(source).expanduser().exists():
        return None
    match = _HUB_NAME.fullmatch(source)
    if match is None or source.startswith(".") or re.search(r"\.[A-Za-z]\w*$", match["path"]):
        return None
    return match


def readable_files(source: str | Path) -> list[Path]:
    """List the readable files a path or glob stands for, sorted."""
    path = Path(source).expanduser()
    if path.is_file():
        if _kind(path) is None:
            raise InputError(f"{source}: unsupported ending; supported: {_ENDINGS}")
        return [path]
    if path.is_dir():
        # Only names below the folder count as hidden: the folder itself was asked for.
        found = [p for p in path.rglob("*") if not any(n.startswith(".") for n in p.relative_to(path).parts)]
    elif glob.has_magic(str(source)):
        matches = glob.iglob(str(path), recursive=True)  # noqa: PTH207  Path.glob takes no absolute pattern
        found = [Path(name) for name in matches]
    else:
        raise InputError(f"{source}: no such file or folder")
    files = sorted({p for p in found if _kind(p) and p.is_file()})
    if not files:
        raise InputError(f"{source}: no file found with a supported ending ({_ENDINGS})")
    return files


def _load_files(files: list[Path], text_column: str, cache_dir: Path) -> Dataset:
    parts = [Dataset.from_dict({"text": [], "source": []}, features=_FEATURES)]
    for kind, group in groupby(files, key=_kind):
        if kind == "text":  # all at once: a source tree has thousands of files
            parts.append(_load_text(list(group), cache_dir))
        else:  # one by one: their other columns may differ
            parts += [_load_table(str(kind), file, text_column, cache_dir) for file in group]
    return datasets.concatenate_datasets([part for part in parts if len(part)] or parts[:1])


def _load_text(files: list[Path], cache_dir: Path) -> Dataset:
    table = _read("text", files, cache_dir, sample_by="document", encoding="utf-8-sig")
    return _as_documents(table, "text", [file.name for file in files])


def _load_table(kind: str, file: Path, text_column: str, cache_dir: Path) -> Dataset:
    options: dict[str, Any] = {}
    if kind == "parquet":  # the schema says at once whether the column is there; then read no other
        _require_column(file, text_column, _read(kind, [file], cache_dir, rows=False).column_names)
        options = {"columns": [text_column], "batch_size": _ROWS_AT_ONCE}
    table = _read(kind, [file], cache_dir, **options)
    if len(table):
        _require_column(file, text_column, table.column_names)
    return _as_documents(table, text_column, [file.name])


def _load_hub(source: str, name: re.Match[str], split: str, text_column: str, cache_dir: Path) -> Dataset:
    try:
        table = datasets.load_dataset(name["path"], name["config"], split=split, cache_dir=str(cache_dir))
    except Exception as error:
        what = "no such file or folder, and it cannot be loaded as a Hugging Face dataset"
        raise _failure(f"{source}: {what}", error) from error
    _require_column(source, text_column, table.column_names)
    return _as_documents(table.select_columns([text_column]), text_column, [source])


def _read(kind: str, files: list[Path], cache_dir: Path, *, rows: bool = True, **options: Any) -> Any:
    """Read local files of one kind with the builder of `datasets`: a table (a stream if not `rows`)."""
    names = [glob.escape(str(file.absolute())) for file in files]  # a name may hold brackets
    try:
        builder = datasets.load_dataset_builder(kind, data_files=names, cache_dir=str(cache_dir), **options)
        if not rows:
            return builder.as_streaming_dataset(split="train")
        builder.download_and_prepare()
        if not builder.info.splits.total_num_examples:
            return Dataset.from_dict({})
        return builder.as_dataset(split="train")
    except StopIteration:  # how the json builder meets a file of no bytes
        return Dataset.from_dict({})
    except Exception as error:
        if isinstance(error, DatasetGenerationError) and kind == "json" and not options:
            # Perhaps a later block of a long file has other columns than its first: try with larger blocks.
            return _read(kind, files, cache_dir, chunksize=1 << 30)
        for file in files if len(files) > 1 else ():  # which of them was it?
            _read(kind, [file], cache_dir, **options)
        raise _failure(f"{files[0]}: cannot be read as {kind}", error) from error


def _failure(what: str, error: BaseException) -> SkipwiseError:
    """Word an error of `datasets` in one line, with the cause that its wrappers hide."""
    while isinstance(error, DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return RunError("the disk of the cache folder is full: make room or choose another cache folder")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(f"{what} ({reason[:200]})")


def _require_column(source: str | Path, column: str, columns: Sequence[str]) -> None:
    if column not in columns:
        names = ", ".join(columns[:12]) + (", ..." if len(columns) > 12 else "")
        raise InputError(
            f"{source}: no column {column!r}; choose one of its columns ({names}) or leave it out"
        )


def _as_documents(table: Dataset, text_column: str, names: list[str]) -> Dataset:
    """Keep the text column as strings and add the source: `names` has one entry a row, or one for all."""
    if not len(table):
        return Dataset.from_dict({"text": [], "source": []}, features=_FEATURES)
    return table.map(
        _rows,
        batched=True,
        batch_size=_ROWS_AT_ONCE,
        with_indices=True,
        remove_columns=table.column_names,
        features=_FEATURES,
        fn_kwargs={"text_column": text_column, "names": names},
    )


def _rows(batch: Any, indices: list[int], text_column: str, names: list[str]) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {"text": [], "source": []}
    for index, value in zip(indices, batch[text_column], strict=True):
        name = names[index] if len(names) > 1 else names[0]
        if not isinstance(value, str | int | float | None):
            raise InputError(f"{name}: column {text_column!r} holds {type(value).__name__} values, not text")
        if value is not None and str(value).strip():
            rows["text"].append(str(value))
            rows["source"].append(name)
    return rows
