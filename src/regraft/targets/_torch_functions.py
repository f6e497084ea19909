"""Calls of PyTorch's functions: a mode that sees each, and their arguments by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from regraft.targets._taps import Session

_CONV = ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
# Parameters of functions that are written in C and tell none themselves.
_PARAMETERS: dict[str, list[str]] = {
    "conv1d": _CONV, "conv2d": _CONV, "conv3d": _CONV,
    "scaled_dot_product_attention":
        ["query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"],
    "avg_pool1d": ["input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"],
    "avg_pool2d": ["input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"],
    "gelu": ["input", "approximate"],
    "batch_norm":
        ["input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"],
    "layer_norm": ["input", "normalized_shape", "weight", "bias", "eps"],
    "group_norm": ["input", "num_groups", "weight", "bias", "eps"],
    "softmax": ["input", "dim", "dtype"], "dropout": ["input", "p", "training"],
    "masked_fill": ["input", "mask", "value"], "max_pool2d":
        ["input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"],
    "max_pool1d": ["input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"],
}  # fmt: skip
_NOT_TOLD = frozenset(("__get__", "__set__", "size", "dim", "is_contiguous", "_set_grad_enabled"))


def functions_heard(session: Session) -> Any:
    from torch.overrides import TorchFunctionMode

    class Functions(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            given: dict[str, Any] = kwargs or {}
            name: str = getattr(func, "__name__", "")
            if name in _NOT_TOLD:
                return func(*args, **given)
            named, call = _named(func, name, args, given)
            return session.function(name, named, call)

    return Functions()


def _named(
    func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], Callable[[dict[str, Any]], Any]]:
    """Arguments by name where names are known, by place otherwise, and how to call with them."""
    names = _PARAMETERS.get(name) or _signature(func)
    keys = [names[i] if i < len(names) else str(i) for i in range(len(args))]
    named = dict(zip(keys, args, strict=True)) | kwargs

    def call(changed: dict[str, Any]) -> Any:
        first = [changed[key] for key in keys]
        return func(*first, **{k: v for k, v in changed.items() if k not in keys})

    return named, call


_signatures: dict[Any, list[str]] = {}


def _signature(func: Any) -> list[str]:
    if func not in _signatures:
        try:
            _signatures[func] = list(inspect.signature(func).parameters)
        except (TypeError, ValueError):
            _signatures[func] = []
        if any(name in ("args", "kwargs") for name in _signatures[func]):
            _signatures[func] = []
    return _signatures[func]
