"""States of an optimizer, a scheduler or random generators as safetensors, without pickle.

A state is nested dicts, lists and tuples of numbers, strings, None, dtypes, arrays and tensors. Its tensors
become the file's tensors, named by their path (``state.3.exp_avg``); the rest is JSON in the file's metadata.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

_FILE_BYTES = 4 * 1024**3
"""Tensors in one file, at most (or one tensor): what is copied from the GPU to be written at once."""


def save_state(state: Any, path: Path) -> None:
    """Write ``state`` to ``path`` (NAME.safetensors), and what is beyond 4 GiB to NAME-1.safetensors, ...

    Raises TypeError for a value that only pickle could hold.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_pack(state, "", tensors))
    for number, part in enumerate(_parts(tensors)):
        content = {name: tensor.detach().cpu().contiguous() for name, tensor in part.items()}
        save_file(_unshared(content), _part_path(path, number), metadata={"tree": tree} if not number else {})


def load_state(path: Path, device: torch.device) -> Any:
    """Read what `save_state` wrote, every tensor on the CPU.

    Numbers, and for a ``device`` that is the CPU all tensors, are copied; others are windows into the file,
    for whoever moves them to ``device``.
    """
    tensors: dict[str, Tensor] = {}
    tree = None
    for number in count():
        if number and not _part_path(path, number).exists():
            break
        with safe_open(_part_path(path, number), framework="pt") as file:
            tree = tree or json.loads(file.metadata()["tree"])
            for name in file.keys():  # noqa: SIM118, it is no dict
                tensor = file.get_tensor(name)
                copy = device.type == "cpu" or not tensor.ndim
                tensors[name] = tensor.clone() if copy else tensor
    return _unpack(tree, tensors)


def rng_state(device: torch.device) -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators, and of the one of ``device``."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def load_rng_state(states: dict[str, Any]) -> None:
    """Set what `rng_state` found; a kind of device that is not here is left out."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["cpu"])
    for kind in set(states) - {"python", "numpy", "cpu"}:
        if torch.get_device_module(kind).is_available():
            torch.get_device_module(kind).set_rng_state(states[kind])


def _part_path(path: Path, number: int) -> Path:
    return path.with_stem(f"{path.stem}-{number}") if number else path


def _parts(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if part and size + tensor.nbytes > _FILE_BYTES:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.nbytes
    yield part


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors that share memory, which safetensors refuses."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return tensors


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON, in which every object says what it stands for; its tensors go to ``tensors``."""

    def inner(key: object, each: Any) -> Any:
        return _pack(each, f"{path}.{key}" if path else str(key), tensors)

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [inner(key, each) for key, each in enumerate(value)]
    if isinstance(value, tuple):
        return {"tuple": [inner(key, each) for key, each in enumerate(value)]}
    if isinstance(value, dict):
        return {"dict": [[inner("key", key), inner(key, each)] for key, each in value.items()]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, np.ndarray):
        return {"array": inner("array", torch.from_numpy(value))}
    if isinstance(value, Tensor) and hasattr(value, "__tensor_flatten__"):
        names, context = value.__tensor_flatten__()
        return {
            "subclass": [type(value).__module__, type(value).__qualname__],
            "inner": {name: inner(name, getattr(value, name)) for name in names},
            "context": inner("context", context),
            "size": list(value.size()),
            "stride": list(value.stride()),
        }
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    raise TypeError(f"{path or 'the state'} is a {type(value).__qualname__}: only pickle could store it")


def _unpack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpack(each, tensors) for each in tree]
    if not isinstance(tree, dict):
        return tree
    if "tuple" in tree:
        return tuple(_unpack(tree["tuple"], tensors))
    if "dict" in tree:
        return {_unpack(key, tensors): _unpack(each, tensors) for key, each in tree["dict"]}
    if "dtype" in tree:
        return getattr(torch, tree["dtype"])
    if "array" in tree:
        return _unpack(tree["array"], tensors).numpy()
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    parts = {name: _unpack(each, tensors) for name, each in tree["inner"].items()}
    context = _unpack(tree["context"], tensors)
    return _tensor_class(*tree["subclass"]).__tensor_unflatten__(parts, context, tree["size"], tree["stride"])


def _tensor_class(module: str, name: str) -> Any:
    """The class, which the optimizer has imported: nothing is imported because a file says so."""
    found = getattr(sys.modules.get(module), name, None)
    if not (isinstance(found, type) and issubclass(found, Tensor)):
        raise TypeError(f"{module}.{name} is no tensor class of the optimizer in use")
    return found
