"""Weights read and written tensor by tensor: memory holds about one output shard, however many there are.

Reads safetensors, or PyTorch's ``.bin`` files without running anything in them (``weights_only``); writes
safetensors.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from skipwise.errors import InputError
from skipwise.files import write_json

INDEX = "model.safetensors.index.json"
_LAYOUTS = ((INDEX, "*.safetensors"), ("pytorch_model.bin.index.json", "pytorch_model*.bin"))
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Shards:
    """The tensors of a checkpoint folder, mapped from disk; safetensors if there are any.

    ``tensors`` has a meta tensor (shape and dtype, no memory) for every name. Raises InputError for a folder
    without weights, a missing, unreadable or pickled shard, a name that comes twice, a dtype that is not a
    float of 16 bits or more (quantized weights).
    """

    def __init__(self, folder: Path) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._homes: dict[str, Any] = {}
        for file in _files(folder):
            home = _open(file)
            for name in list(home.keys()):
                if name in self.tensors:
                    raise InputError(f"{file}: {name} comes a second time in this checkpoint")
                self.tensors[name] = _meta(home, name, file)
                self._homes[name] = home

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start`` to ``stop`` of a tensor, in memory of their own: no file is written through."""
        home = self._homes[name]
        stored = home[name] if isinstance(home, dict) else home.get_slice(name)
        return torch.clone(stored[start:stop], memory_format=torch.contiguous_format)


def write_shards(
    folder: Path,
    planned: Mapping[str, torch.Tensor],
    make: Callable[[str], torch.Tensor],
    max_shard_size: int | str,
) -> int:
    """Write ``make(name)`` for every planned tensor (meta tensors will do); returns the number of files."""
    split = split_torch_state_dict_into_shards(
        dict(planned), filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for file, names in split.filename_to_tensors.items():
        save_file({name: make(name) for name in names}, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    return len(split.filename_to_tensors)


def _files(folder: Path) -> list[Path]:
    for index, pattern in _LAYOUTS:
        if (folder / index).is_file():
            try:
                names = set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values())
            except (ValueError, KeyError, AttributeError) as error:
                raise InputError(f"{folder / index} is not an index of shards") from error
            files = [folder / name for name in sorted(names)]
            absent = next((file for file in files if not file.is_file()), None)
            if absent:
                raise InputError(f"{absent} is missing: the download of this checkpoint is not complete")
            return files
        files = sorted(folder.glob(pattern))
        if files:
            return files
    raise InputError(f"{folder} has no weights: no .safetensors and no pytorch_model*.bin file")


def _open(file: Path) -> Any:
    """Something with ``keys``, mapped from disk: a safetensors file, or the dict of a PyTorch file."""
    try:
        if file.suffix == ".safetensors":
            return safe_open(file, framework="pt")
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{file} holds more than weights and is not opened: it could run code") from error
    except (SafetensorError, OSError, RuntimeError, EOFError) as error:
        raise InputError(f"{file} cannot be read: it is cut short, or in another format") from error
    if not isinstance(content, dict) or not all(isinstance(each, torch.Tensor) for each in content.values()):
        raise InputError(f"{file} is not a dictionary of weights")
    return content


def _meta(home: Any, name: str, file: Path) -> torch.Tensor:
    if isinstance(home, dict):
        shape, dtype = home[name].shape, home[name].dtype
    else:
        stored = home.get_slice(name)
        shape, dtype = stored.get_shape(), _DTYPES.get(stored.get_dtype())
    if dtype not in _DTYPES.values():
        raise InputError(
            f"{file}: {name} is not in a 16, 32 or 64 bit float: start from the original weights"
        )
    return torch.empty(shape, dtype=dtype, device="meta")
