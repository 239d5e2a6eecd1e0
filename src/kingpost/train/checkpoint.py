"""Checkpoints: written whole or not at all, hashed, without pickle; a damaged one gives way to the one before."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kingpost.errors import RunError
from kingpost.files import write_atomically

STATE, MANIFEST = "state.safetensors", "manifest.json"


def save(folder: Path, step: int, epoch: int, state: dict[str, Any], keep: int) -> Path:
    """Write ``folder/step-N-epoch-M`` and delete all but the newest ``keep``.

    A checkpoint of the same place in the run holds the same bits, so one that is there already is left alone.

    Args:
        folder: of all checkpoints of a run.
        step: optimizer steps done.
        epoch: epochs done, evaluation included.
        state: nested dicts, lists and tuples of tensors and plain values.
        keep: how many to keep, this one included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    final = folder / name_of(step, epoch)
    if final.exists():
        return final
    temporary = folder / f".{final.name}.tmp"
    temporary.mkdir()
    tensors: list[Tensor] = []
    tree = _pack(state, tensors, {}, "")
    save_file({str(index): tensor for index, tensor in enumerate(tensors)}, temporary / STATE)
    manifest = {"format": 1, "step": step, "sha256": _sha256(temporary / STATE), "tree": tree}
    body = json.dumps(manifest)
    (temporary / MANIFEST).write_text(json.dumps({"sha256": _digest(body), "body": body}), encoding="utf-8")
    for path in (temporary / STATE, temporary / MANIFEST, temporary):
        _sync(path)
    temporary.rename(final)
    _sync(folder)
    for old in all_in(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def load_newest(folder: Path, device: torch.device, damaged: Callable[[Path, str], None]) -> dict[str, Any] | None:
    """The state of the newest checkpoint that is whole; None if there is none.

    Args:
        folder: of all checkpoints of a run.
        device: where the tensors go.
        damaged: told of each checkpoint that had to be passed over, and why.

    Raises:
        RunError: there are checkpoints, but every one is damaged.
    """
    found = all_in(folder)
    for path in reversed(found):
        try:
            return _load(path, device)
        except (OSError, ValueError, KeyError) as error:
            damaged(path, str(error))
    if found:
        raise RunError(f"all {len(found)} checkpoints in {folder} are damaged; train again from the recipe")
    return None


def name_of(step: int, epoch: int) -> str:
    """Name of the checkpoint of a place in the run; sorted by name they are sorted by age.

    >>> name_of(step=12, epoch=3)
    'step-000000012-epoch-000003'
    """
    return f"step-{step:09d}-epoch-{epoch:06d}"


def all_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def remove_unfinished(folder: Path) -> None:
    """Delete what a kill left half written."""
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path)


def save_weights(path: Path, model: torch.nn.Module) -> None:
    """The model's parameters and buffers by name, as safetensors; tensors that are shared are written once."""
    tensors: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size, tuple[int, ...]]] = set()
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() == 0 or key not in seen:
            tensors[name] = tensor.detach().contiguous()
        seen.add(key)
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))


def load_weights(path: Path, model: torch.nn.Module) -> None:
    """Read weights that :func:`save_weights` wrote into a model of the same form.

    Raises:
        RunError: names or shapes do not fit; says which.
    """
    saved = load_file(path)
    own = model.state_dict()
    by_place = {own[name].data_ptr(): name for name in saved if name in own}
    missing = [name for name, t in own.items() if name not in saved and t.data_ptr() not in by_place]
    extra = [name for name in saved if name not in own]
    wrong = [
        f"{name} {tuple(saved[name].shape)} for {tuple(own[name].shape)}"
        for name in saved
        if name in own and saved[name].shape != own[name].shape
    ]
    if missing or extra or wrong:
        raise RunError(f"{path} does not fit the model: missing {missing}, unknown {extra}, other shape {wrong}")
    with torch.no_grad():
        for name, tensor in saved.items():
            own[name].copy_(tensor)


def _load(path: Path, device: torch.device) -> dict[str, Any]:
    wrapped = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if _digest(wrapped["body"]) != wrapped["sha256"]:
        raise ValueError("the manifest's hash does not fit")
    manifest = json.loads(wrapped["body"])
    if _sha256(path / STATE) != manifest["sha256"]:
        raise ValueError("the hash of the tensors does not fit")
    tensors = load_file(path / STATE, device=str(device))
    state = _unpack(manifest["tree"], tensors)
    assert isinstance(state, dict)
    return state


def _pack(value: Any, tensors: list[Tensor], places: dict[Any, int], path: str) -> Any:
    """A tree of plain JSON values in which each tensor is replaced by its number; shared tensors share a number."""
    if isinstance(value, Tensor):
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else len(tensors)
        if key not in places:
            places[key] = len(tensors)
            tensors.append(value.detach().contiguous())
        return {"tensor": places[key]}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, tensors, places, f"{path}.{key}")] for key, item in value.items()]}
    if isinstance(value, tuple | list):
        packed = [_pack(item, tensors, places, f"{path}.{index}") for index, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": packed}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"cannot save {type(value).__name__} at {path.lstrip('.')}: state is tensors and plain values")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[str(inner)]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in inner}
    items = [_unpack(item, tensors) for item in inner]
    return tuple(items) if kind == "tuple" else items


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
