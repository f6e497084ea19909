"""As DeepSpeed lays its checkpoints out (`DeepSpeedEngine.save_checkpoint`), which is not installed
here: its own `zero_to_fp32.py` reads these folders to the same values.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from formats.samples import Values, arrays

SUFFIX = ""

_BUFFERS, _FROZEN = ("count", "flags", "half"), ("head.weight",)


def make(path: Path, stage: int = 2, processes: int = 2, **more: Any) -> Values:
    """A checkpoint's folder. Parameters are in two groups, one is frozen, one shares another's
    values; some of the arrays are buffers. Returns what `zero_to_fp32` gives, integers kept."""
    path.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays().items()}
    tensors["head.weight"] = tensors["head.weight"].float()
    buffers = {name: tensors.pop(name) for name in _BUFFERS}
    frozen = {name: tensors.pop(name) for name in _FROZEN}
    tensors["scalar"] = torch.tensor(0.5)
    names = list(tensors)
    groups = [OrderedDict((n, tensors[n]) for n in part) for part in (names[:2], names[2:])]
    _models(path, stage, processes, groups, buffers, frozen, more)
    _optimizers(path, stage, processes, groups)
    found = {**buffers, **frozen, **tensors, "tied.weight": tensors["stem.weight"]}
    values = {name: tensor.numpy() for name, tensor in found.items()}
    values["half"] = values["half"].astype(np.float32)
    return values


def _models(
    path: Path,
    stage: int,
    processes: int,
    groups: list[OrderedDict[str, torch.Tensor]],
    buffers: dict[str, torch.Tensor],
    frozen: dict[str, torch.Tensor],
    more: dict[str, Any],
) -> None:
    """The model's file, one of each process in stage 3, where weights are placeholders."""
    for rank in range(processes if stage == 3 else 1):
        low = torch.bfloat16
        module = {
            name: torch.empty(0, dtype=low) if stage == 3 else tensor.to(low)
            for group in groups
            for name, tensor in group.items()
        }
        state = {
            "module": OrderedDict({**module, **buffers}),
            "buffer_names": list(buffers),
            "param_shapes": [OrderedDict((n, t.shape) for n, t in g.items()) for g in groups],
            "frozen_param_shapes": OrderedDict((n, t.shape) for n, t in frozen.items()),
            "frozen_param_fragments": OrderedDict(
                (n, _parts(t, processes)[rank] if stage == 3 else t) for n, t in frozen.items()
            ),
            "shared_params": {"tied.weight": "stem.weight"},
            "ds_version": "0.17.5",
            **more,
        }
        name = f"zero_pp_rank_{rank}_mp_rank_00" if stage == 3 else "mp_rank_00"
        torch.save(state, path / f"{name}_model_states.pt")


def _optimizers(
    path: Path, stage: int, processes: int, groups: list[OrderedDict[str, torch.Tensor]]
) -> None:
    """Each process' flat vectors of the weights in full precision."""
    for rank in range(processes):
        vectors: list[torch.Tensor] = []
        for group in groups:
            if stage == 3:
                parts = [_parts(t, processes)[rank] for t in group.values()]
                vectors.append(torch.cat(parts))
            else:
                whole = torch.cat([t.reshape(-1) for t in group.values()])
                step = 2 * processes
                padded = torch.zeros(math.ceil(len(whole) / step) * step)
                padded[: len(whole)] = whole
                vectors.append(padded.chunk(processes)[rank].clone())
        key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        count = processes if stage == 3 else [processes] * len(groups)
        state = {"zero_stage": stage, "partition_count": count, key: vectors,
                 "base_optimizer_state": {"state": {0: {"exp_avg": torch.ones(3)}}}}  # fmt: skip
        prefix = "bf16_" if stage == 1 else ""
        file = path / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": state, "ds_config": {}, "ds_version": "0.17.5"}, file)


def _parts(tensor: torch.Tensor, processes: int) -> list[torch.Tensor]:
    """A tensor's flat elements in equal parts, the last ones padded."""
    flat = tensor.reshape(-1)
    length = math.ceil(len(flat) / processes)
    padded = torch.zeros(length * processes)
    padded[: len(flat)] = flat
    return [part.clone() for part in padded.split(max(1, length))][:processes] if length else [
        flat.clone() for _ in range(processes)
    ]  # fmt: skip
