"""Checkpoints that a kill at any moment cannot spoil, and training state stored without pickle.

A checkpoint is written to `checkpoints/.tmp-…`, forced to the disk and renamed to `checkpoints/step_N`: a folder of
that name is always whole. State is a JSON tree whose tensors lie beside it in safetensors, so that reading somebody
else's checkpoint runs no code.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

FOLDER = "checkpoints"
# `.old-step_N` is a whole checkpoint that was being replaced when the run was killed.
_NAME = re.compile(r"(?P<old>\.old-)?step_(?P<step>\d+)")
#: Marks the JSON objects that stand for something else than a dict with string keys.
_TAG = "__type__"


def save(directory: Path | str, step: int, write: Callable[[Path], None], *, keep: int = 2) -> Path:
    """Let `write(folder)` fill a new checkpoint of a run directory and return its path; the last `keep` ones stay.

    Checkpoints of later steps are removed: a run that saves step N has gone back to before them.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    folder = Path(directory) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".tmp-step_{step}"
    _remove(aside)  # left by a run that was killed while writing
    aside.mkdir()
    try:
        write(aside)
        _sync(aside)
        final, old = folder / f"step_{step}", folder / f".old-step_{step}"
        if final.exists():
            # No portable way swaps two folders at once; `latest` finds the old one if we die between the renames.
            _remove(old)
            final.rename(old)
        aside.rename(final)
        _sync_entry(folder)
    finally:
        _remove(aside)
    _prune(folder, step, keep)
    return final


def latest(directory: Path | str, until: float = math.inf) -> Path | None:
    """The last whole checkpoint of a run directory, of this step at most, or None."""
    found = [path for path in _checkpoints(Path(directory) / FOLDER) if step_of(path) <= until]
    return found[-1] if found else None


def step_of(checkpoint: Path | str) -> int:
    """The N of `…/step_N`."""
    match = _NAME.fullmatch(Path(checkpoint).name)
    if match is None:
        raise ValueError(f"{checkpoint} is not named step_N")
    return int(match["step"])


def _checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints by rising step; of one step, the replaced one comes before its replacement."""
    if not folder.is_dir():
        return []
    named = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted(named, key=lambda item: (int(item[0]["step"]), item[0]["old"] is None))]


def _prune(folder: Path, step: int, keep: int) -> None:
    whole = [path for path in _checkpoints(folder) if not path.name.startswith(".old-")]
    kept = [path for path in whole if step_of(path) <= step][-keep:]
    for path in [*folder.glob(".tmp-*"), *folder.glob(".old-*"), *(path for path in whole if path not in kept)]:
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a folder; renamed first, so that a kill half way leaves nothing that looks whole."""
    if path.exists():
        doomed = path.with_name(f".tmp-removed-{path.name.removeprefix('.tmp-')}")
        if doomed != path:
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
        shutil.rmtree(doomed)


def _sync(folder: Path) -> None:
    """Force a folder's files and names to the disk, so that no rename can get there before them."""
    for path in folder.rglob("*"):
        _sync_entry(path)
    _sync_entry(folder)


def _sync_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_state(path: Path | str, state: Any) -> None:
    """Store nested dict/list/tuple of None, bool, int, float, str, tensors and arrays in `path`.json + .safetensors.

    Everything comes back exactly, by type and bit; tensors come back on the CPU. TypeError names what cannot be kept.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _flatten(state, "", tensors)
    save_file(tensors, f"{path}.safetensors")
    Path(f"{path}.json").write_text(json.dumps(tree, allow_nan=False), encoding="utf-8")


def load_state(path: Path | str) -> Any:
    """What `save_state` stored under this path."""
    return _restore(json.loads(Path(f"{path}.json").read_text(encoding="utf-8")), load_file(f"{path}.safetensors"))


def _flatten(value: Any, where: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The JSON tree of a value; tensors move to `tensors` under their path."""
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        kind = "tensor" if isinstance(value, torch.Tensor) else "array" if isinstance(value, np.ndarray) else "scalar"
        key = where or "value"
        while key in tensors:  # {"a/b": …, "a": {"b": …}} give the same path
            key += "'"
        tensors[key] = _tensor(value, where)
        return {_TAG: kind, "key": key}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_TAG: "float", "value": repr(value)}
    if isinstance(value, Mapping):
        items = [(key, _flatten(item, f"{where}/{key}" if where else str(key), tensors)) for key, item in value.items()]
        if all(isinstance(key, str) for key in value) and _TAG not in value:
            return dict(items)
        return {_TAG: "dict", "items": [[_flatten(key, f"{where}/key", tensors), item] for key, item in items]}
    if isinstance(value, (list, tuple)):
        entries = [_flatten(item, f"{where}/{i}" if where else str(i), tensors) for i, item in enumerate(value)]
        return entries if isinstance(value, list) else {_TAG: "tuple", "items": entries}
    raise TypeError(f"cannot store a {type(value).__name__} at {where or 'the top'}")


def _tensor(value: torch.Tensor | np.ndarray | np.generic, where: str) -> torch.Tensor:
    """A CPU copy of its own memory, which is what safetensors takes."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    try:
        return torch.from_numpy(np.array(value, order="C"))
    except TypeError as error:
        raise TypeError(f"cannot store an array of {value.dtype} at {where or 'the top'}") from error


def _restore(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(tree, list):
        return [_restore(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    match tree.get(_TAG):
        case None:
            return {key: _restore(item, tensors) for key, item in tree.items()}
        case "tensor":
            return tensors[tree["key"]]
        case "array":
            return tensors[tree["key"]].numpy()
        case "scalar":
            return tensors[tree["key"]].numpy()[()]
        case "float":
            return float(tree["value"])
        case "tuple":
            return tuple(_restore(item, tensors) for item in tree["items"])
        case "dict":
            # A key that is a tuple was flattened like any value.
            return {_restore(key, tensors): _restore(item, tensors) for key, item in tree["items"]}
        case unknown:
            raise ValueError(f"unknown type {unknown!r} in stored state: written by a later version?")
