"""Checkpoints as a user would have them, in each library's own format."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np


def pth(folder: Path, content: Any, name: str = "model.pth") -> Path:
    """`torch.save` of a module's state dict, or of whatever else is given."""
    import torch

    content = content.state_dict() if isinstance(content, torch.nn.Module) else content
    torch.save(content, folder / name)
    return folder / name


def safetensors(folder: Path, content: Any, name: str = "model.safetensors") -> Path:
    """A module's tensors, or a dict of tensors, as the hub holds them; of ties the first."""
    import torch
    from safetensors.torch import save_file

    content = content.state_dict() if isinstance(content, torch.nn.Module) else content
    seen: set[int] = set()
    kept: dict[str, Any] = {}
    for key, tensor in content.items():
        if tensor.data_ptr() not in seen or not tensor.numel():
            seen.add(tensor.data_ptr())
            kept[key] = tensor.detach().clone().contiguous()
    save_file(kept, folder / name, metadata={"format": "pt"})
    return folder / name


def keras_model(folder: Path, model: Any, ending: str = "keras") -> Path:
    """`model.save` as `.keras` or `.h5`, or `save_weights` as `.weights.h5`."""
    path = folder / f"model.{ending}"
    if ending == "weights.h5":
        model.save_weights(path)
    else:
        model.save(path)
    return path


def pickled_tree(folder: Path, tree: Any) -> Path:
    """A JAX tree as nested dicts of numpy arrays in a plain pickle."""
    import jax

    path = folder / "params.pkl"
    path.write_bytes(pickle.dumps(jax.tree.map(np.asarray, _plain(tree))))
    return path


def npz_tree(folder: Path, tree: Any) -> Path:
    """A JAX tree as an `.npz` with paths as names, as the JAX vision libraries publish."""
    flat: dict[str, Any] = {}

    def walk(part: Any, path: tuple[str, ...]) -> None:
        if isinstance(part, dict):
            for key, inner in part.items():
                walk(inner, (*path, str(key)))
        else:
            flat["/".join(path)] = np.asarray(part)

    walk(_plain(tree), ())
    np.savez(folder / "params.npz", **flat)
    return folder / "params.npz"


def _plain(tree: Any) -> Any:
    if hasattr(tree, "items"):
        return {key: _plain(part) for key, part in tree.items()}
    return [_plain(part) for part in tree] if isinstance(tree, (list, tuple)) else tree
