"""Statistics of BatchNorm in PyTorch: kept as they are, or measured anew on other data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch

from regraft.targets._torch_modules import Names, unwrapped
from regraft.tuning.receipts import nothing_measured

_Norm = torch.nn.modules.batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]


def measure(
    model: torch.nn.Module, batches: Iterable[Any], around: torch.nn.Module | None = None
) -> int:
    """Sets running means and variances to the averages over these batches; how many layers.

    This is AdaBN where the batches are of another domain than the one that was trained on (Li et
    al. 2016, Revisiting Batch Normalization For Practical Domain Adaptation), and recalibration
    after weights were averaged. Only these layers run in training mode: dropout stays off, unlike
    in `torch.optim.swa_utils.update_bn`. Variances are averages of the batches' own, so batches
    should be as large as in training.

    **Arguments:**

    - `batches`: inputs, or tuples that begin with them; a dict goes in by keyword.
    - `around`: the module that a batch is given to where it is not the model, but holds it.

    Layers that no batch comes to (an auxiliary head, in training alone) keep what they have, and so
    do all where anything is raised. **Raises** `TargetError` where there are no batches.
    """
    norms = [m for m in model.modules() if isinstance(m, _Norm) and m.track_running_stats]
    if not norms:
        return 0
    whole = around or model
    flags = [(module, module.training) for module in whole.modules()]
    momenta = [(norm, norm.momentum) for norm in norms]
    kept = [(norm, {n: b.clone() for n, b in norm.named_buffers()}) for norm in norms]
    device = next(model.parameters()).device
    whole.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # which torch takes for a plain average
            norm.training = True
        with torch.no_grad():
            for batch in _some(batches):
                x = batch[0] if isinstance(batch, (tuple, list)) else batch
                if isinstance(x, Mapping):
                    whole(**{key: part.to(device) for key, part in x.items()})
                else:
                    whole(x.to(device))
    except BaseException:
        _put(kept)
        raise
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum
        for module, flag in flags:
            module.training = flag
    _put([(norm, buffers) for norm, buffers in kept if not norm.num_batches_tracked])
    return len(norms)


def _some(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches. **Raises** `TargetError` after none."""
    none = True
    for batch in batches:
        none = False
        yield batch
    if none:
        raise nothing_measured()


def _put(kept: Iterable[tuple[torch.nn.Module, Mapping[str, Any]]]) -> None:
    """Buffers as they were."""
    for norm, buffers in kept:
        for name, buffer in norm.named_buffers():
            buffer.copy_(buffers[name])


def holders(model: torch.nn.Module, known: Collection[str]) -> list[tuple[Any, list[str]]]:
    """Modules that hold buffers of these names, and which."""
    inner = unwrapped(model)
    names = Names(inner)
    found: list[tuple[Any, list[str]]] = []
    for path, module in inner.named_modules():
        prefix = f"{names.shown(path)}." if path else ""
        own = [f"{prefix}{leaf}" for leaf, _ in module.named_buffers(recurse=False)]
        if own := [name for name in own if name in known]:
            found.append((module, own))
    return found


def staying(module: Any, still: Callable[[], bool]) -> list[Any]:
    """Hooks that let a module run in evaluation mode whenever `still` says so; its own flag is as
    before when it has run, since trainers set it when they like."""
    flags: list[bool] = []

    def before(module: Any, inputs: Any) -> None:
        flags.append(module.training)
        if still():
            module.training = False

    def after(module: Any, inputs: Any, outputs: Any) -> None:
        module.training = flags.pop()

    return [
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after, always_call=True),
    ]
