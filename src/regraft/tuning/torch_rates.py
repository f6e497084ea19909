"""The learning rate that a PyTorch model starts with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from regraft.targets._torch_modules import tensors_of
from regraft.tuning import Job, seeds, sweeps
from regraft.tuning.torch import Tuning
from regraft.tuning.torch_data import training


def rate_of(job: Job, outputs: Callable[[Any], Any], loss_of: Callable[[Any, Any], Any]) -> float:
    """The learning rate as given, or found; the model is as before afterwards."""
    settings, model = job.settings, job.model
    if settings.lr != "auto":
        return settings.lr
    before = {name: tensor.detach().clone() for name, tensor in tensors_of(model).items()}
    # What is adapted is so by now.
    still = job.policy.batchnorm == "adapt"
    policy = replace(job.policy, batchnorm="freeze") if still else job.policy
    tuning = Tuning(model, policy, receipt=job.loading, reference=job.reference)
    optimizer = torch.optim.AdamW(tuning.groups(1.0, settings.weight_decay))
    scales = [group["lr"] for group in optimizer.param_groups]
    torch.manual_seed(seeds.derived(settings.seed, 0))
    tuning.begin(optimizer)
    batches = _forever(training(job.data.x, job.data.y, settings))
    model.train()
    device = next(model.parameters()).device

    def step(rate: float) -> float:
        for group, scale in zip(optimizer.param_groups, scales, strict=True):
            group["lr"] = rate * scale
        x, y = next(batches)
        x = {k: v.to(device) for k, v in x.items()} if isinstance(x, dict) else x.to(device)
        optimizer.zero_grad()
        loss = loss_of(outputs(x), y.to(device))
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    try:
        return sweeps.suggested(*sweeps.sweep(step))
    finally:
        tuning.release()
        with torch.no_grad():
            for name, tensor in tensors_of(model).items():
                tensor.copy_(before[name])
                tensor.grad = None


def _forever(loader: Any) -> Any:
    while True:
        yield from loader
